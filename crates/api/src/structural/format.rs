//! Formats of texts that custom resources may name. Others say nothing.
//!
//! Source: Kubernetes documentation, "CustomResourceDefinition", `format`; RFC 1034, RFC 3339, RFC 5322.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use regex::Regex;

const KNOWN: [&str; 27] = [
    "bsonobjectid",
    "uri",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "cidr",
    "mac",
    "uuid",
    "uuid3",
    "uuid4",
    "uuid5",
    "isbn",
    "isbn10",
    "isbn13",
    "creditcard",
    "ssn",
    "hexcolor",
    "rgbcolor",
    "byte",
    "password",
    "date",
    "duration",
    "datetime",
    "k8sshortname",
    "k8slongname",
    "k8sipsloppy",
];

/// Whether a format is checked. Dashes in its name do not matter.
pub fn is_known(format: &str) -> bool {
    !format.is_empty() && KNOWN.contains(&format.replace('-', "").as_str())
}

/// Whether a text has a format; true for unknown ones.
pub(super) fn matches(format: &str, text: &str) -> bool {
    match format.replace('-', "").as_str() {
        "bsonobjectid" => text.len() == 24 && text.bytes().all(|b| b.is_ascii_hexdigit()),
        "uri" => is_request_uri(text),
        "email" => is_email(text),
        "hostname" => is_hostname(text),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.contains(':') && text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => is_cidr(text),
        "mac" => is_mac(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some('3')),
        "uuid4" => is_uuid(text, Some('4')),
        "uuid5" => is_uuid(text, Some('5')),
        "isbn" => is_isbn10(text) || is_isbn13(text),
        "isbn10" => is_isbn10(text),
        "isbn13" => is_isbn13(text),
        "creditcard" => is_credit_card(text),
        "ssn" => SSN.is_match(text),
        "hexcolor" => HEX_COLOR.is_match(text),
        "rgbcolor" => RGB_COLOR.is_match(text),
        "byte" => BASE64.is_match(text),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "datetime" => is_date_time(text),
        "duration" => is_duration(text),
        "k8sshortname" => {
            text.len() <= 63 && !text.contains('.') && crate::names::dns1123_subdomain(text).is_empty()
        }
        "k8slongname" => text.len() <= 253 && crate::names::dns1123_subdomain(text).is_empty(),
        "k8sipsloppy" => is_ip_sloppy(text),
        _ => true,
    }
}

static SSN: LazyLock<Regex> = LazyLock::new(|| regex(r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$"));
static HEX_COLOR: LazyLock<Regex> = LazyLock::new(|| regex("^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$"));
static RGB_COLOR: LazyLock<Regex> = LazyLock::new(|| {
    let part = r"\s*(0|[1-9][0-9]?|1[0-9]{2}|2[0-4][0-9]|25[0-5])\s*";
    regex(&format!(r"^rgb\({part},{part},{part}\)$"))
});
static BASE64: LazyLock<Regex> = LazyLock::new(|| {
    regex("^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$")
});
static HOSTNAME: LazyLock<Regex> = LazyLock::new(|| {
    let (one, inner) = (r"[a-zA-Z0-9\p{S}\p{L}]", r"[a-zA-Z0-9\-\p{S}\p{L}]");
    regex(&format!(
        r"^({one}((-?{one}{{0,62}})?)|({one}(({inner}{{0,61}}{one})?)(\.)){{1,}}({one})(-?{one}){{1,62}})$"
    ))
});
static CREDIT_CARD: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|(222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11}|6[27][0-9]{14})$",
    )
});

#[allow(clippy::unwrap_used, reason = "the expressions are constants of this file, and its tests use each")]
fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}

/// An absolute URI or an absolute path.
fn is_request_uri(text: &str) -> bool {
    if text.bytes().any(|b| b < 0x20 || b == 0x7f || b == b' ') {
        return false;
    }
    let rest = match text.split_once(':') {
        _ if text.starts_with('/') => text,
        Some((scheme, rest))
            if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b)) =>
        {
            rest
        }
        _ => return false,
    };
    let is_hex = |b: Option<&u8>| b.is_some_and(u8::is_ascii_hexdigit);
    let bytes = rest.as_bytes();
    let escapes_are_whole = bytes
        .iter()
        .enumerate()
        .all(|(n, b)| *b != b'%' || is_hex(bytes.get(n + 1)) && is_hex(bytes.get(n + 2)));
    let port_is_number = rest.strip_prefix("//").is_none_or(|rest| {
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default();
        let after = if host.starts_with('[') {
            match host.split_once(']') {
                Some((_, after)) => after,
                None => return false,
            }
        } else {
            host.find(':').map_or("", |at| &host[at..])
        };
        after.is_empty()
            || after.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()))
    });
    escapes_are_whole && port_is_number
}

/// `local@domain`, or `Name <local@domain>`.
fn is_email(text: &str) -> bool {
    let address = match (text.find('<'), text.trim_end().strip_suffix('>')) {
        (Some(start), Some(whole)) => &whole[start + 1..],
        (None, None) => text.trim(),
        _ => return false,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let is_atom = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-/=?^_`{|}~".contains(c) || !c.is_ascii())
    };
    let is_quoted = local.len() >= 2 && local.starts_with('"') && local.ends_with('"');
    let is_literal = domain
        .strip_prefix('[')
        .and_then(|d| d.strip_suffix(']'))
        .is_some_and(|d| d.parse::<IpAddr>().is_ok());
    (is_quoted || local.split('.').all(is_atom)) && (is_literal || domain.split('.').all(is_atom))
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 255 && HOSTNAME.is_match(text) && text.split('.').all(|label| label.len() <= 63)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let is_length = |most: u8| {
        let plain = length == "0" || !length.starts_with('0') && length.bytes().all(|b| b.is_ascii_digit());
        plain && length.parse::<u8>().is_ok_and(|n| n <= most)
    };
    match address.parse() {
        Ok(IpAddr::V4(_)) => is_length(32),
        Ok(IpAddr::V6(_)) => is_length(128),
        Err(_) => false,
    }
}

fn is_ip_sloppy(text: &str) -> bool {
    let is_octet = |s: &str| s.bytes().all(|b| b.is_ascii_digit()) && s.parse::<u16>().is_ok_and(|n| n < 256);
    let octets: Vec<&str> = text.split('.').collect();
    octets.len() == 4 && octets.iter().all(|o| is_octet(o)) || text.parse::<Ipv6Addr>().is_ok()
}

/// 6, 8 or 20 bytes: `00:00:5e:00:53:01`, `00-00-…` or `0000.5e00.5301`.
fn is_mac(text: &str) -> bool {
    let is_hex = |part: &str, length| part.len() == length && part.bytes().all(|b| b.is_ascii_hexdigit());
    let separated = |separator, length, counts: [usize; 3]| {
        let parts: Vec<&str> = text.split(separator).collect();
        counts.contains(&parts.len()) && parts.iter().all(|part| is_hex(part, length))
    };
    separated(':', 2, [6, 8, 20]) || separated('-', 2, [6, 8, 20]) || separated('.', 4, [3, 4, 10])
}

fn is_uuid(text: &str, version: Option<char>) -> bool {
    // Each dash may be left out.
    let mut digits = String::with_capacity(32);
    let mut may_dash = true;
    for c in text.chars() {
        match c {
            '-' if may_dash && matches!(digits.len(), 8 | 12 | 16 | 20) => may_dash = false,
            c if c.is_ascii_hexdigit() => {
                digits.push(c.to_ascii_lowercase());
                may_dash = true;
            }
            _ => return false,
        }
    }
    let variant = matches!(version, Some('4' | '5'));
    digits.len() == 32
        && may_dash
        && version.is_none_or(|v| digits[12..].starts_with(v))
        && (!variant || digits[16..].starts_with(['8', '9', 'a', 'b']))
}

fn without_separators(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '-' | ' ' | '\t')).collect()
}

fn is_isbn10(text: &str) -> bool {
    let text = without_separators(text);
    let digit = |(n, b): (usize, u8)| match b {
        b'0'..=b'9' => Some(u32::from(b - b'0')),
        b'X' if n == 9 => Some(10),
        _ => None,
    };
    let sum: Option<u32> = text.bytes().enumerate().map(|(n, b)| Some((n as u32 + 1) * digit((n, b))?)).sum();
    text.len() == 10 && sum.is_some_and(|sum| sum.is_multiple_of(11))
}

fn is_isbn13(text: &str) -> bool {
    let text = without_separators(text);
    let sum: u32 =
        text.bytes().enumerate().map(|(n, b)| u32::from(b.wrapping_sub(b'0')) * [1, 3][n % 2]).sum();
    text.len() == 13 && text.bytes().all(|b| b.is_ascii_digit()) && sum.is_multiple_of(10)
}

fn is_credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    let sum: u32 = digits
        .bytes()
        .rev()
        .enumerate()
        .map(|(n, b)| match (n % 2, u32::from(b - b'0')) {
            (1, d) if d > 4 => d * 2 - 9,
            (1, d) => d * 2,
            (_, d) => d,
        })
        .sum();
    CREDIT_CARD.is_match(&digits) && sum.is_multiple_of(10)
}

/// RFC 3339; the seconds' fraction and the zone in the forms that the reference takes.
fn is_date_time(text: &str) -> bool {
    let Some((date, rest)) = text.split_at_checked(10) else { return false };
    let Some(time) = rest.strip_prefix(['T', 't']) else { return false };
    if date.parse::<jiff::civil::Date>().is_err() {
        return false;
    }
    let number = |s: &str, most: u8| {
        s.len() == 2 && s.bytes().all(|b| b.is_ascii_digit()) && s.parse::<u8>().is_ok_and(|n| n <= most)
    };
    let clock = |s: &str| {
        let mut parts = s.split(':');
        let hour_and_minute =
            parts.next().is_some_and(|h| number(h, 23)) && parts.next().is_some_and(|m| number(m, 59));
        hour_and_minute && parts.next().is_some_and(|s| number(s, 59)) && parts.next().is_none()
    };
    let Some((seconds, rest)) = time.split_at_checked(8) else { return false };
    let zone = rest.strip_prefix('.').map_or(rest, |fraction| {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if digits == 0 { "." } else { &fraction[digits..] }
    });
    let is_offset = |zone: &str| {
        let Some(offset) = zone.strip_prefix(['+', '-']) else { return false };
        offset.split_once(':').is_some_and(|(h, m)| number(h, 23) && number(m, 59))
    };
    clock(seconds) && (zone == "Z" || zone == "z" || is_offset(zone))
}

/// As Go writes durations (`1h30m`, `-1.5s`), or as Scala does (`22 ns`, `3 days`).
fn is_duration(text: &str) -> bool {
    crate::duration::parse(text).is_ok() || is_scala_duration(text)
}

fn is_scala_duration(text: &str) -> bool {
    const UNITS: [&str; 11] = ["ns", "us", "µs", "ms", "s", "m", "h", "d", "w", "hr", "wk"];
    const PREFIXES: [&str; 8] = ["nano", "micro", "milli", "sec", "min", "hour", "day", "week"];
    let mut rest = text.trim();
    let mut known = false;
    let mut found = false;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let after = rest[digits..].trim_start();
        let end = after.find(|c: char| !c.is_ascii_alphabetic() && c != 'µ').unwrap_or(after.len());
        if digits == 0 || end == 0 || rest[..digits].parse::<i64>().is_err() {
            return false;
        }
        let unit = after[..end].to_lowercase();
        known |= UNITS.contains(&unit.as_str()) || PREFIXES.iter().any(|p| unit.starts_with(p));
        found = true;
        rest = after[end..].trim_start();
    }
    found && known
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_formats_or_not() {
        for (format, good, bad) in [
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
            ("uri", "http://foo.bar/?q=%20", "foo.bar"),
            ("uri", "/only/a/path", "http://a:b/"),
            ("email", "a.b@example.com", "a..b@example.com"),
            ("email", "A B <a@b.c>", "a@"),
            ("hostname", "a.example.com", "a_b.example.com"),
            ("ipv4", "10.0.0.1", "::1"),
            ("ipv6", "fe80::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:00:5e:00:53:01", "00:00:5e:00:53"),
            ("uuid", "7bcd8a37-5cf4-4e1e-9a3d-0e7f2bd0a7a6", "7bcd8a37-5cf4-4e1e-9a3d-0e7f2bd0a7a"),
            ("uuid4", "7bcd8a375cf44e1e9a3d0e7f2bd0a7a6", "7bcd8a37-5cf4-5e1e-9a3d-0e7f2bd0a7a6"),
            ("isbn", "0321751043", "0321751042"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("ssn", "111-11-1111", "11-111-1111"),
            ("hexcolor", "#FFF", "#FFFF"),
            ("rgbcolor", "rgb(255,255,255)", "rgb(256,0,0)"),
            ("byte", "aGVsbG8=", "aGVsbG8"),
            ("date", "2026-02-28", "2026-02-30"),
            ("date-time", "2014-12-15T19:30:20.000Z", "yesterday"),
            ("date-time", "2014-12-15T19:30:20+01:00", "2014-12-15T19:30:20"),
            ("duration", "1h30m", "1 parsec"),
            ("duration", "22 ns", ""),
            ("k8s-short-name", "a-b", "a.b"),
            ("k8s-long-name", "a.b", "A.b"),
        ] {
            assert!(is_known(format), "{format}");
            assert!(matches(format, good), "{format}: {good}");
            assert!(!matches(format, bad), "{format}: {bad}");
        }
        assert!(!is_known("int32") && !is_known("") && matches("password", "x"));
    }
}
