//! Hollow nodes: nodes without machines. They register, send heartbeats, and say of their pods that they run; the API
//! server, the controllers and the scheduler that they meet are the real ones.
//!
//! What a pod does without running follows from the pod ([`pods`]): it is ready at once and stays so; a Job's pod succeeds
//! at once. Annotations say otherwise. A node can fall silent ([`Nodes::silence`]), as one whose machine was lost.
//!
//! The time is injected ([`Clock`]): it runs with the machine's, and can be moved ahead ([`Nodes::advance`]) in steps that are
//! short enough for every heartbeat in between to be seen.
//!
//! Tasks: one that sends heartbeats, one that maps changes of pods to keys, and a bounded number of workers, which act
//! for the kubelets of all nodes. All end with the token given to [`Nodes::start`].

mod addresses;
mod clock;
mod nodes;
pub mod pods;

pub use clock::Clock;
pub use nodes::{Config, Error, Nodes};
