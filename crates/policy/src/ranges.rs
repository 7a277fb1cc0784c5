//! Address blocks less their exceptions, as ranges that do not touch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use k8s_openapi::api::networking::v1::IPBlock;
use network::Cidr;

/// First and last address of a range.
pub type Range = (IpAddr, IpAddr);

/// The addresses of one family in any of `blocks`, each less its own exceptions: sorted, none touching the next.
pub fn ranges(blocks: &[&IPBlock], v6: bool) -> Vec<Range> {
    let mut found: Vec<(u128, u128)> = Vec::new();
    for block in blocks {
        let Some(whole) = span(&block.cidr, v6) else { continue };
        let mut rest = vec![whole];
        for except in block.except.iter().flatten().filter_map(|e| span(e, v6)) {
            rest = rest.into_iter().flat_map(|part| without(part, except)).collect();
        }
        found.extend(rest);
    }
    found.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::new();
    for (first, last) in found {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into_iter().map(|(first, last)| (address(first, v6), address(last, v6))).collect()
}

fn span(cidr: &str, v6: bool) -> Option<(u128, u128)> {
    let cidr: Cidr = cidr.parse().ok()?;
    if cidr.is_ipv6() != v6 {
        return None;
    }
    let (base, width) = match cidr.base() {
        IpAddr::V4(a) => (u128::from(u32::from(a)), 32),
        IpAddr::V6(a) => (u128::from(a), 128),
    };
    let host_bits = u32::from(width - cidr.prefix_len());
    let hosts = 1u128.checked_shl(host_bits).map_or(u128::MAX, |n| n - 1);
    Some((base, base | hosts))
}

/// `part` less `hole`: up to two pieces.
fn without(part: (u128, u128), hole: (u128, u128)) -> Vec<(u128, u128)> {
    if hole.1 < part.0 || hole.0 > part.1 {
        return vec![part];
    }
    let mut pieces = Vec::new();
    if hole.0 > part.0 {
        pieces.push((part.0, hole.0 - 1));
    }
    if hole.1 < part.1 {
        pieces.push((hole.1 + 1, part.1));
    }
    pieces
}

fn address(bits: u128, v6: bool) -> IpAddr {
    if v6 { Ipv6Addr::from(bits).into() } else { Ipv4Addr::from(bits as u32).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(blocks: &[(&str, &[&str])], v6: bool) -> String {
        let blocks: Vec<IPBlock> = blocks
            .iter()
            .map(|(cidr, except)| IPBlock {
                cidr: (*cidr).to_owned(),
                except: Some(except.iter().map(|e| (*e).to_owned()).collect()),
            })
            .collect();
        let found = ranges(&blocks.iter().collect::<Vec<_>>(), v6);
        found.iter().map(|(a, b)| format!("{a}-{b}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn exceptions_cut_holes_into_their_own_block_only() {
        assert_eq!(
            text(&[("10.0.0.0/8", &["10.1.0.0/16", "10.255.0.0/16"])], false),
            "10.0.0.0-10.0.255.255 10.2.0.0-10.254.255.255"
        );
        let other = [("10.0.0.0/8", &["10.1.0.0/16"] as &[&str]), ("10.1.2.0/24", &[])];
        assert_eq!(text(&other, false), "10.0.0.0-10.0.255.255 10.1.2.0-10.1.2.255 10.2.0.0-10.255.255.255");
        assert_eq!(text(&[("10.0.0.0/8", &["10.0.0.0/8"])], false), "");
    }

    #[test]
    fn whole_families_and_neighbours_are_one_range() {
        assert_eq!(text(&[("0.0.0.0/0", &[])], false), "0.0.0.0-255.255.255.255");
        assert_eq!(text(&[("::/0", &[])], true), "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
        assert_eq!(text(&[("::/0", &[])], false), "");
        assert_eq!(text(&[("10.0.1.0/24", &[]), ("10.0.0.0/24", &[])], false), "10.0.0.0-10.0.1.255");
    }
}
