//! From a snapshot of the cluster to bindings.
