//! Addresses of hollow nodes and of their pods. Nothing answers there.
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Pods: the shared address space of RFC 6598, `100.64.0.0/10`, four million addresses.
const PODS: u32 = u32::from_be_bytes([100, 64, 0, 0]);
const PODS_MASK: u32 = (1 << 22) - 1;
/// Nodes: the benchmarking range of RFC 2544, `198.18.0.0/15`.
const NODES: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const NODES_MASK: u32 = (1 << 17) - 1;

/// Gives pods their addresses.
#[derive(Debug, Default)]
pub(crate) struct Addresses(AtomicU32);

impl Addresses {
    /// Notes an address that a pod has from an earlier run.
    pub(crate) fn taken(&self, address: &str) {
        let Ok(address) = address.parse::<Ipv4Addr>() else { return };
        let number = u32::from(address);
        if number & !PODS_MASK == PODS {
            self.0.fetch_max(number & PODS_MASK, Relaxed);
        }
    }

    /// One that no pod of the last four million had.
    pub(crate) fn next(&self) -> Ipv4Addr {
        Ipv4Addr::from(PODS | (self.0.fetch_add(1, Relaxed) + 1) & PODS_MASK)
    }
}

/// A node's, by its number.
pub(crate) fn of_node(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(NODES | (number as u32 + 1) & NODES_MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_an_earlier_run_are_not_given_again() {
        let addresses = Addresses::default();
        assert_eq!(addresses.next().to_string(), "100.64.0.1");
        addresses.taken("100.64.1.7");
        addresses.taken("10.0.0.200");
        assert_eq!(addresses.next().to_string(), "100.64.1.8");
        assert_eq!(of_node(0).to_string(), "198.18.0.1");
    }
}
