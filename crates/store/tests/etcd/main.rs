//! The etcd engine on a real etcd: the conformance suite, several servers, failing members.

mod conformance;
mod members;
mod transfer;
