//! The CRI server: image store, sandboxes, containers, shim, logs.
