//! Who may do what, and what nobody may read: each test has a server of its own.

mod audit;
mod authentication;
mod authorization;
mod cluster;
mod create;
mod encryption;
mod fairness;
mod kms;
mod nodes;
mod outside;
mod reviews;
