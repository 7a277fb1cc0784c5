//! The CRI server: image store, sandboxes, containers, shim, logs. No other program is needed on a node.
//!
//! # Parts
//!
//! - [`Runtime`] (in the main process): what exists ([`state`]), opening and adoption ([`adopt`]), the calls of
//!   the CRI ([`service`], with `sandbox_run`, `sandbox_stop`, `container_run`, `container_spec`, `exec`,
//!   `stats`, `view`), the streaming server ([`streaming`]).
//! - [`cdi`]: what a vendor's devices need in a container.
//! - [`user_namespace`]: whose users a pod's are.
//! - [`handlers`]: which program runs a sandbox's containers; [`oci_spec`]: what one other than the shim is told.
//! - [`shim`]: one process per pod, a small program (`shim_program`) or this same binary executed again, parent of the pod's containers. Reached by
//!   [`protocol`] through [`link`]; told what to run as data ([`spec`]).
//! - [`image`]: the image store; [`registry`]: where images come from and go to.
//! - [`cgroup`], [`cgroup_device`], [`capability`], [`seccomp`], [`apparmor`], [`selinux`]: what confines a container.
//! - [`reset`]: takes everything away again.
//!
//! # Tasks and their channels
//!
//! Per sandbox one task follows the shim's stream of exit records (`Runtime::follow`); it alone moves containers
//! to "exited", by a `watch` channel each that stop calls wait on, and publishes to one bounded `broadcast`
//! channel that `GetContainerEvents` reads. One task accepts streaming connections, one per connection pumps.
//!
//! # Invariants
//!
//! The truth about a running container is its shim's, the truth about everything else the record on disk; the
//! memory of the main process can be lost at any time. A container's mounts exist in its own mount namespace
//! only. The Kubernetes API is not known here.

mod adopt;
mod apparmor;
mod capability;
pub mod cdi;
pub mod cgroup;
pub mod cgroup_device;
mod container_run;
mod container_spec;
mod error;
mod exec;
mod handlers;
pub mod image;
mod in_root;
mod link;
mod metric_names;
mod metrics;
mod network;
mod oci_spec;
mod pressure;
mod protocol;
mod record;
pub mod registry;
mod reset;
mod sandbox_run;
mod sandbox_stop;
mod seccomp;
mod seccomp_file;
mod selinux;
mod service;
pub mod shim;
mod shim_program;
mod signal;
mod spec;
mod state;
mod stats;
mod streaming;
mod sys;
mod syscall_names;
mod user_namespace;
mod view;

pub use error::RuntimeError;
pub use handlers::Handlers;
pub use image::{ArchiveFormat, ImageSummary};
pub use network::{NetworkError, NetworkPod, NetworkResult, NoNetwork, PodNetwork, PortMapping};
pub use reset::reset;
pub use service::Service;
pub use state::{Config, Runtime};
