//! The Container Network Interface, specification 1.1 (<https://www.cni.dev/docs/spec/>). Knows no network.
//!
//! - the data: [`CniResult`], [`CniError`] and [`Version`], read and written in every version from 0.3.0 on;
//! - the plugin's side: [`plugin::serve`] speaks the protocol for a [`plugin::Plugin`];
//! - the runtime's side: [`folder::load`] picks the configuration that Kubernetes would, [`chain::Runner`] has its plugins
//!   executed one after the other and remembers what they answered.
//!
//! What passes between plugins stays JSON as it came, so that a key of a later specification is not lost on the way.

pub mod chain;
pub mod configuration;
pub mod error;
pub mod folder;
pub mod plugin;
mod result;
mod version;

pub use error::CniError;
pub use result::{Attachment, CniResult, Dns, Interface, Ip, Route};
pub use version::{CNI_VERSION, Version};
