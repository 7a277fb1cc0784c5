//! Cluster DNS, authoritative from the shared caches, forwarding upstream.
