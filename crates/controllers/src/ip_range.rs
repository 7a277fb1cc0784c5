//! A range of addresses in CIDR notation.
use std::net::IpAddr;

/// All addresses that share a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    address: IpAddr,
    prefix: u8,
}

impl Range {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (address, prefix): (IpAddr, u8) = (address.parse().ok()?, prefix.parse().ok()?);
        (prefix <= if address.is_ipv4() { 32 } else { 128 }).then_some(Self { address, prefix })
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.address.is_ipv6()
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            (a ^ b).checked_shr(width - u32::from(self.prefix)).unwrap_or(0) == 0
        };
        match (self.address, ip) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.into(), b.into(), 128),
            _ => false,
        }
    }

    /// Its addresses, lowest first.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let (bits, width) = match self.address {
            IpAddr::V4(a) => (u128::from(u32::from(a)), 32),
            IpAddr::V6(a) => (u128::from(a), 128),
        };
        let host = u128::MAX.checked_shr(128 - (width - u32::from(self.prefix))).unwrap_or(0);
        let (first, last) = (bits & !host, bits | host);
        let v6 = self.is_ipv6();
        (first..=last).map(move |n| match u32::try_from(n) {
            Ok(n) if !v6 => IpAddr::V4(n.into()),
            _ => IpAddr::V6(n.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_that_share_the_prefix() {
        let text = |range: &str| {
            let all = Range::parse(range).unwrap().addresses();
            all.take(5).map(|a| a.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text("192.0.2.202/30"), "192.0.2.200 192.0.2.201 192.0.2.202 192.0.2.203");
        assert_eq!(text("192.0.2.7/32"), "192.0.2.7");
        assert_eq!(text("fd00::5/127"), "fd00::4 fd00::5");
        assert_eq!(text("fd00::/64"), "fd00:: fd00::1 fd00::2 fd00::3 fd00::4");
        assert_eq!(text("0.0.0.0/0"), "0.0.0.0 0.0.0.1 0.0.0.2 0.0.0.3 0.0.0.4");
        assert!(Range::parse("10.0.0.0/33").is_none() && Range::parse("10.0.0.0").is_none());
    }
}
