//! What extends the server from outside: admission policies and webhooks, custom resources. Each test has a server of its own and real
//! HTTPS programs in the same process.

mod aggregation;
#[allow(dead_code, reason = "shared with the security tests")]
#[path = "../security/cluster.rs"]
mod cluster;
mod conversion;
mod definitions;
mod policies;
mod program;
mod quotas;
mod webhooks;
mod widgets;
