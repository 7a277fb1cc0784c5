//! The controllers against the real API server, with hollow nodes instead of kubelets and scheduler.
mod autoscalers;
mod budgets;
mod crash;
mod crash_sets;
mod cronjobs;
mod daemons;
mod garbage;
mod hollow;
mod jobs;
mod nodes;
mod quotas;
mod roles;
mod services;
mod stateful;
mod workloads;
