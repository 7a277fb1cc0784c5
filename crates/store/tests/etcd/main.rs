//! The etcd engine on a real etcd: the conformance suite, several servers, failing members, TLS.

mod conformance;
mod members;
mod tls;
mod transfer;
