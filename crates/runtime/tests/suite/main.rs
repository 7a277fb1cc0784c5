//! The runtime on this machine, for real: processes, namespaces, control groups. Needs root.

mod apparmor;
mod cdi;
mod conformance;
mod figures;
mod hostile_registry;
mod images;
mod lifecycle;
mod limits;
mod mounts;
mod namespaces;
mod oci;
mod registry;
mod restart;
mod security;
mod selinux;
mod spdy;
mod streaming;
mod support;
mod user_namespace;
mod vm;
