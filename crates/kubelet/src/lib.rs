//! Runs the pods of one node through the CRI.
