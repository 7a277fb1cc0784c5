//! The API server: one generic request pipeline over the table of kinds.
//!
//! A request walks [`server`] (TLS, body limits) → [`request_info`] → [`auth`] → [`pipeline`] → [`read`] or [`write`]
//! (decode in [`body`], admission, [`strategy`], [`registry`]) → [`answer`]. Reads come from the [`watch_cache`];
//! writes are single-key transactions of the store. In-process clients enter at [`pipeline`] through [`local`].
//!
//! What is absent: there are no handlers per kind. A kind is one row of `api::kinds` and at most one strategy.
//!
//! Tasks: the accept loop and one task per connection ([`server`]); one follower of the store that feeds all
//! watches ([`watch_cache`]); one forwarder per in-process watch ([`local`]); one follower of the definitions of custom
//! resources, and one cleaner for each that is being deleted ([`extensions`]); one follower of flow schemas and priority
//! levels ([`fairness`]).

mod administration;
pub mod admission;
pub mod aggregation;
pub mod answer;
pub mod audit;
pub mod auth;
pub mod backend;
pub mod body;
mod bootstrap;
pub mod cbor;
pub mod cel;
pub mod compression;
pub mod convert;
pub mod deletion;
pub mod discovery;
pub mod encryption;
pub mod extensions;
pub mod fairness;
pub mod fields;
pub mod html_links;
pub mod list_body;
pub mod local;
pub mod managed;
pub mod negotiate;
pub mod node_proxy;
pub mod object_meta;
pub mod openapi;
pub mod options;
pub mod patching;
pub mod pipeline;
pub mod pki;
pub mod read;
pub mod registry;
pub mod request_info;
mod request_metrics;
pub mod server;
mod service_claims;
mod service_ips;
pub mod status;
pub mod strategy;
pub mod subresources;
pub mod watch_cache;
pub mod webhook;
pub mod write;

pub use options::Options;
pub use pki::{Identity, Pki};
pub use server::{Config, Server, StartError};
