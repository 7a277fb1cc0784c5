//! Starts clusters for tests and waits on conditions.
