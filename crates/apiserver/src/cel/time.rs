//! Time stamps and durations, as protobuf and Go write them.

use std::fmt::Write as _;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// Nanoseconds per second.
pub(super) const SECOND: i64 = 1_000_000_000;

/// An RFC 3339 time stamp.
pub(super) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    let parsed: Timestamp = text.parse().ok()?;
    // the date and the time are told apart by a T, as RFC 3339 in protobuf has it
    let well_formed = text.as_bytes().get(10).is_some_and(|b| matches!(b, b'T' | b't'));
    (well_formed && in_range(parsed)).then_some(parsed)
}

/// A date, as the start of its day.
pub(super) fn parse_date(text: &str) -> Option<Timestamp> {
    let date: jiff::civil::Date = text.parse().ok()?;
    date.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp())
}

/// Years 1 to 9999.
pub(super) fn in_range(at: Timestamp) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&at.as_second())
}

/// `2024-01-02T03:04:05.5Z`.
pub(super) fn show_timestamp(at: Timestamp) -> String {
    at.to_string()
}

/// Go's durations: `1h30m`, `-1.5s`, `100ms`.
pub(super) fn parse_duration(text: &str) -> Option<i64> {
    api::duration::parse(text).ok()
}

/// `5400s`, `1.5s`.
pub(super) fn show_duration(nanos: i64) -> String {
    let mut out = String::new();
    if nanos < 0 {
        out.push('-');
    }
    let (seconds, rest) = (nanos.unsigned_abs() / SECOND as u64, nanos.unsigned_abs() % SECOND as u64);
    let _ = write!(out, "{seconds}");
    if rest != 0 {
        let digits = format!("{rest:09}");
        let _ = write!(out, ".{}", digits.trim_end_matches('0'));
    }
    out.push('s');
    out
}

/// A moment as clocks at a place show it; the place is an IANA name or `[+-]HH:MM`.
pub(super) fn at_place(at: Timestamp, place: Option<&str>) -> Option<Zoned> {
    let Some(place) = place else { return Some(at.to_zoned(TimeZone::UTC)) };
    let zone = match place.split_once(':') {
        None if place.is_empty() => TimeZone::UTC,
        None => TimeZone::get(place).ok()?,
        Some((hours, minutes)) => {
            let negative = hours.starts_with('-');
            let hours: i32 = hours.trim_start_matches(['+', '-']).parse().ok()?;
            let minutes: i32 = minutes.parse().ok()?;
            let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
            let seconds = if negative { -seconds } else { seconds };
            TimeZone::fixed(jiff::tz::Offset::from_seconds(seconds).ok()?)
        }
    };
    Some(at.to_zoned(zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print() {
        for (text, shown) in [
            ("1h30m", Some("5400s")),
            ("1.5s", Some("1.5s")),
            ("-2ms", Some("-0.002s")),
            ("0", Some("0s")),
            ("+.5h", Some("1800s")),
            ("1", None),
            ("", None),
            ("1x", None),
            ("99999999999999999999h", None),
            ("9999999h", None),
        ] {
            assert_eq!(parse_duration(text).map(show_duration).as_deref(), shown, "{text}");
        }
    }
}
