//! The Store trait, the embedded engine and the conformance suite.
