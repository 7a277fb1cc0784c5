//! An address range in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network: the address with its host bits cleared, and the prefix length in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr {
    base: IpAddr,
    len: u8,
}

/// Text that is no CIDR.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a CIDR (address/prefix length): {0:?}")]
pub struct ParseError(String);

impl Cidr {
    /// The network that holds `addr`; `None` when `len` is too long for the family.
    pub fn new(addr: IpAddr, len: u8) -> Option<Self> {
        let base = match addr {
            IpAddr::V4(a) if len <= 32 => {
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() & mask(u128::from(len), 32) as u32))
            }
            IpAddr::V6(a) if len <= 128 => {
                IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() & mask(u128::from(len), 128)))
            }
            _ => return None,
        };
        Some(Self { base, len })
    }

    /// The network address.
    pub fn base(&self) -> IpAddr {
        self.base
    }

    /// The prefix length in bits.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether this is an IPv6 network.
    pub fn is_ipv6(&self) -> bool {
        self.base.is_ipv6()
    }

    /// Whether `addr` lies in the network.
    pub fn contains(&self, addr: IpAddr) -> bool {
        Self::new(addr, self.len).is_some_and(|c| c.base == self.base && c.is_ipv6() == self.is_ipv6())
    }

    /// The `n`-th address, counted from the network address; `None` beyond the end.
    pub fn nth(&self, n: u64) -> Option<IpAddr> {
        let addr = match self.base {
            IpAddr::V4(a) => {
                IpAddr::V4(Ipv4Addr::from_bits(a.to_bits().checked_add(u32::try_from(n).ok()?)?))
            }
            IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits().checked_add(u128::from(n))?)),
        };
        self.contains(addr).then_some(addr)
    }

    /// Indices of the addresses pods may take: not the network address, not the gateway (the first), and
    /// for IPv4 not the broadcast address. Large IPv6 networks are cut to 2^20 addresses.
    pub fn usable(&self) -> std::ops::Range<u64> {
        let bits = if self.is_ipv6() { 128 } else { 32 } - u32::from(self.len);
        let size = 1u64 << bits.min(20);
        let end = if self.is_ipv6() || bits > 20 { size } else { size.saturating_sub(1) };
        2..end.max(2)
    }
}

fn mask(len: u128, width: u128) -> u128 {
    if len == 0 { 0 } else { (u128::MAX << (width - len)) & (u128::MAX >> (128 - width)) }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.len)
    }
}

impl FromStr for Cidr {
    type Err = ParseError;

    fn from_str(s: &str) -> Result<Self, ParseError> {
        let parsed = s.split_once('/').and_then(|(addr, len)| {
            let (addr, len): (IpAddr, u8) = (addr.parse().ok()?, len.parse().ok()?);
            Self::new(addr, len)
        });
        parsed.ok_or_else(|| ParseError(s.to_owned()))
    }
}

impl TryFrom<String> for Cidr {
    type Error = ParseError;

    fn try_from(s: String) -> Result<Self, ParseError> {
        s.parse()
    }
}

impl From<Cidr> for String {
    fn from(c: Cidr) -> String {
        c.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(s: &str) -> Cidr {
        s.parse().unwrap()
    }

    #[test]
    fn host_bits_are_cleared_and_membership_follows_the_prefix() {
        assert_eq!(cidr("10.244.3.7/24").to_string(), "10.244.3.0/24");
        assert!(cidr("10.244.3.0/24").contains("10.244.3.255".parse().unwrap()));
        assert!(!cidr("10.244.3.0/24").contains("10.244.4.0".parse().unwrap()));
        assert!(!cidr("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(cidr("fd00::/64").contains("fd00::ffff".parse().unwrap()));
        assert!(cidr("::/0").contains("fd00::ffff".parse().unwrap()));
    }

    #[test]
    fn network_gateway_and_broadcast_are_not_usable() {
        let c = cidr("10.244.0.0/29");
        let usable: Vec<_> = c.usable().filter_map(|n| c.nth(n)).map(|a| a.to_string()).collect();
        assert_eq!(usable, ["10.244.0.2", "10.244.0.3", "10.244.0.4", "10.244.0.5", "10.244.0.6"]);
        assert!(cidr("10.0.0.0/31").usable().is_empty());
        assert_eq!(c.nth(8), None);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "x/8"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }
}
