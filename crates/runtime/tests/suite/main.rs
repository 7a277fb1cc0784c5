//! The runtime on this machine, for real: processes, namespaces, control groups. Needs root.

mod figures;
mod images;
mod lifecycle;
mod limits;
mod restart;
mod security;
mod streaming;
mod support;
