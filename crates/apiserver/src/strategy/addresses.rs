//! Addresses, ranges and port names in objects.

use std::net::IpAddr;

use api::field::ErrorList;
use api::names;
use serde_json::json;

/// Whether the text is an address.
pub(super) fn is_ip(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok()
}

/// An address; IPv4 parts with leading zeros are refused by name.
pub(super) fn ip(path: &str, text: &str, errors: &mut ErrorList) {
    if is_ip(text) {
        return;
    }
    let octets: Vec<&str> = text.split('.').collect();
    let legacy = octets.len() == 4
        && octets.iter().all(|o| {
            !o.is_empty() && o.len() <= 4 && o.trim_start_matches('0').parse::<u8>().is_ok() || *o == "0"
        });
    let detail = if legacy {
        "must not have leading 0s"
    } else {
        "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
    };
    errors.invalid(path, &json!(text), detail);
}

/// An address in the one form it has; of what is no address nothing is said.
pub(super) fn canonical(path: &str, text: &str, errors: &mut ErrorList) {
    let Ok(ip) = text.parse::<IpAddr>() else { return };
    if is_mapped(ip) {
        errors.invalid(path, &json!(text), "must not be an IPv4-mapped IPv6 address");
    } else if ip.to_string() != text {
        let why = format!("must be in canonical form ({})", api::field::quote(&ip.to_string()));
        errors.invalid(path, &json!(text), &why);
    }
}

/// As [`ip`]; an IPv4 address in the form of an IPv6 one is refused, too.
pub(super) fn strict_ip(path: &str, text: &str, errors: &mut ErrorList) {
    ip(path, text, errors);
    if text.parse::<IpAddr>().is_ok_and(is_mapped) {
        errors.invalid(path, &json!(text), "must not be an IPv4-mapped IPv6 address");
    }
}

fn is_mapped(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// An address whose decimal parts may begin with zeros.
pub(super) fn sloppy_ip(text: &str) -> Option<IpAddr> {
    let (head, tail) = text.rsplit_once(':').map_or(("", text), |(head, tail)| (head, tail));
    let without_zeros = |part: &str| {
        let digits = part.trim_start_matches('0');
        if digits.is_empty() && !part.is_empty() { "0".to_owned() } else { digits.to_owned() }
    };
    text.parse().ok().or_else(|| {
        let parts: Vec<String> = tail.split('.').map(without_zeros).collect();
        let colon = if text.contains(':') { ":" } else { "" };
        format!("{head}{colon}{}", parts.join(".")).parse().ok().filter(|_| parts.len() == 4)
    })
}

/// As [`parse_cidr`], but numbers may begin with zeros.
pub(super) fn sloppy_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let ip = sloppy_ip(ip)?;
    let bits: u8 = bits.bytes().all(|b| b.is_ascii_digit()).then(|| bits.parse().ok())??;
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

/// A range in no form that programs read differently.
pub(super) fn strict_cidr(path: &str, text: &str, errors: &mut ErrorList) {
    let Some((ip, bits)) = sloppy_cidr(text) else { return cidr(path, text, errors) };
    let zeros = parse_cidr(text).is_none()
        || text.split_once('/').is_some_and(|(_, length)| length != bits.to_string());
    if zeros {
        errors.invalid(path, &json!(text), "must not have leading 0s in IP or prefix length");
    } else if is_mapped(ip) {
        errors.invalid(path, &json!(text), "must not have an IPv4-mapped IPv6 address");
    } else {
        no_host_bits(path, text, errors);
    }
}

/// As [`strict_cidr`], in the one form that a range has.
pub(super) fn canonical_cidr(path: &str, text: &str, errors: &mut ErrorList) {
    let before = errors.len();
    strict_cidr(path, text, errors);
    let Some((ip, bits)) = parse_cidr(text).filter(|_| errors.len() == before) else { return };
    let canonical = format!("{ip}/{bits}");
    if canonical != text {
        let why = format!("must be in canonical form ({})", api::field::quote(&canonical));
        errors.invalid(path, &json!(text), &why);
    }
}

/// The address and prefix length of a range, if it is one.
pub(super) fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (ip, bits) = text.split_once('/')?;
    let ip: IpAddr = ip.parse().ok()?;
    let bits: u8 = bits.parse().ok()?;
    (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some((ip, bits))
}

/// A range of addresses.
pub(super) fn cidr(path: &str, text: &str, errors: &mut ErrorList) {
    if parse_cidr(text).is_none() {
        errors.invalid(path, &json!(text), "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
    }
}

/// An address with the length of its network's prefix, in the one form it has.
pub(super) fn interface(path: &str, text: &str, errors: &mut ErrorList) {
    let Some((ip, bits)) = sloppy_cidr(text) else {
        let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        return errors.invalid(path, &json!(text), why);
    };
    let canonical = format!("{ip}/{bits}");
    if canonical != text {
        let why = format!("must be in canonical form ({})", api::field::quote(&canonical));
        errors.invalid(path, &json!(text), &why);
    }
}

fn bits_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(u32::from(v4)) << 96,
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The first address of a range.
pub(super) fn network(ip: IpAddr, bits: u8) -> IpAddr {
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) };
    let first = bits_of(ip) & mask;
    match ip {
        // the upper quarter holds all of an IPv4 address
        IpAddr::V4(_) => IpAddr::V4(u32::try_from(first >> 96).unwrap_or_default().into()),
        IpAddr::V6(_) => IpAddr::V6(first.into()),
    }
}

/// A range whose address has no bits beyond its prefix.
fn no_host_bits(path: &str, text: &str, errors: &mut ErrorList) {
    if let Some((ip, bits)) = parse_cidr(text) {
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) };
        if bits_of(ip) & !mask & if ip.is_ipv4() { u128::MAX << 96 } else { u128::MAX } != 0 {
            errors.invalid(path, &json!(text), "must not have bits set beyond the prefix length");
        }
    }
}

/// Whether `inner` lies in `outer` and is smaller.
pub(super) fn strictly_contains((outer, bits): (IpAddr, u8), (inner, inner_bits): (IpAddr, u8)) -> bool {
    let mask = if bits == 0 { 0 } else { u128::MAX << (128 - u32::from(bits)) };
    outer.is_ipv4() == inner.is_ipv4() && inner_bits > bits && bits_of(outer) & mask == bits_of(inner) & mask
}

/// An address that endpoints may have: no loopback, link-local, multicast or unspecified one.
pub(super) fn endpoint_ip(path: &str, text: &str, errors: &mut ErrorList) {
    let Ok(ip) = text.parse::<IpAddr>() else {
        return self::ip(path, text, errors);
    };
    let value = json!(text);
    let (link_local, link_local_multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if ip.is_unspecified() {
        errors.invalid(path, &value, &format!("may not be unspecified ({text})"));
    }
    if ip.is_loopback() {
        errors.invalid(path, &value, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    if link_local {
        errors.invalid(path, &value, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        errors.invalid(
            path,
            &value,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        );
    }
}

/// The name of a port: at most 15 of lower case letters, digits and single `-`, with a letter (RFC 6335).
pub(super) fn port_name(name: &str) -> Vec<String> {
    let mut messages = Vec::new();
    if name.len() > 15 {
        messages.push("must be no more than 15 characters".to_owned());
    }
    if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
        messages.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        messages.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        messages.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        messages.push("must not begin or end with a hyphen".to_owned());
    }
    messages
}

/// `*.` and a subdomain.
pub(super) fn wildcard_subdomain(text: &str) -> Vec<String> {
    let good = text.strip_prefix("*.").is_some_and(|rest| names::dns1123_subdomain(rest).is_empty());
    if good {
        return Vec::new();
    }
    vec![names::regex_error(
        "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
        "\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*",
        &["*.example.com"],
    )]
}
