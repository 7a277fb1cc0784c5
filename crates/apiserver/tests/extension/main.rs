//! What extends the server from outside: admission webhooks, aggregated APIs. Each test has a server of its own and real
//! HTTPS programs in the same process.

#[allow(dead_code, reason = "shared with the security tests")]
#[path = "../security/cluster.rs"]
mod cluster;
mod program;
mod webhooks;
