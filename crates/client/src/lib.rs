//! Typed client, shared caches, work queues, leader election and event recorder.
