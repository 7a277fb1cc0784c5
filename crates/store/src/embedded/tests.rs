//! What the embedded engine promises beyond the conformance suite.

mod faults;
mod promises;
