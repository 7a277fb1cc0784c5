//! Durations as Go writes them: `1h30m`, `-1.5s`, `100ms`. Schedules, expressions, flags and configuration files use them.
//!
//! Source: the documentation of Go's `time.ParseDuration`.

use std::time::Duration;

/// Nanoseconds; 63 bits of them. The error is Go's text.
pub fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.strip_prefix(['-', '+']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 19 {
            return Err(invalid());
        }
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let scale: i128 = match unit {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            unit => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        let mut size = whole.parse::<i128>().unwrap_or(0) * scale;
        let mut part = scale;
        for digit in fraction.bytes() {
            part /= 10;
            size += i128::from(digit - b'0') * part;
        }
        total = total.saturating_add(size);
        rest = next;
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// A length of time; `None` where the text is no duration, or a negative one.
pub fn length(text: &str) -> Option<Duration> {
    parse(text).ok().and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let good = [
            ("0", 0),
            ("1h30m", 5_400_000_000_000),
            ("-1.5s", -1_500_000_000),
            ("+100ms", 100_000_000),
            ("1.h.5m", 3_630_000_000_000),
            ("2562047h47m16.854775807s", i64::MAX),
        ];
        for (text, nanos) in good {
            assert_eq!(parse(text), Ok(nanos), "{text}");
        }
        for text in ["", "-", ".s", "x", "1..5s", "2562048h", "99999999999999999999s"] {
            assert_eq!(parse(text), Err(format!("time: invalid duration {text:?}")));
        }
        assert_eq!(parse("3"), Err("time: missing unit in duration \"3\"".to_owned()));
        assert_eq!(parse("3d"), Err("time: unknown unit \"d\" in duration \"3d\"".to_owned()));
        assert_eq!((length("90s"), length("-1s")), (Some(Duration::from_secs(90)), None));
    }
}
