//! Scalars that JSON carries as text: times and bytes, with the API's error texts.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use jiff::civil::DateTime;

/// The pieces of RFC 3339 in the notation that error texts use.
const SECONDS: [&str; 11] = ["2006", "-", "01", "-", "02", "T", "15", ":", "04", ":", "05"];
const ZONE: &str = "Z07:00";
const MICROS: &str = ".000000";

/// A time in UTC with whole seconds, or why the text is none.
pub(super) fn time(text: &str) -> Result<String, String> {
    let timestamp = parse(text, false)?;
    Ok(crate::meta::format_time(timestamp))
}

/// A time in UTC with six digits of a second, or why the text is none. Exactly six digits are demanded.
pub(super) fn micro_time(text: &str) -> Result<String, String> {
    let timestamp = parse(text, true)?;
    let micros = timestamp.as_microsecond().rem_euclid(1_000_000);
    let seconds = crate::meta::format_time(timestamp);
    Ok(format!("{}.{micros:06}Z", seconds.trim_end_matches('Z')))
}

fn parse(text: &str, micro: bool) -> Result<Timestamp, String> {
    let layout = || format!("{}{}{ZONE}", SECONDS.concat(), if micro { MICROS } else { "" });
    let fail = |rest: &str, piece: &str| {
        format!("parsing time {text:?} as \"{}\": cannot parse {rest:?} as \"{piece}\"", layout())
    };
    let mut rest = text;
    let mut numbers = [0i32; 6];
    let mut number = 0;
    for piece in SECONDS {
        let taken = if piece.as_bytes()[0].is_ascii_digit() {
            let digits = rest.get(..piece.len()).filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
            numbers[number] = digits.and_then(|d| d.parse().ok()).ok_or_else(|| fail(rest, piece))?;
            number += 1;
            piece.len()
        } else if rest.starts_with(piece) {
            piece.len()
        } else {
            return Err(fail(rest, piece));
        };
        rest = &rest[taken..];
    }
    let mut nanos = 0;
    if micro || rest.starts_with('.') {
        let digits = rest.strip_prefix('.').unwrap_or("");
        let count = digits.bytes().take_while(u8::is_ascii_digit).count();
        if micro && count != 6 || !micro && count == 0 {
            return Err(fail(rest, if micro { MICROS } else { ZONE }));
        }
        nanos = format!("{:0<9}", &digits[..count.min(9)]).parse().unwrap_or(0);
        rest = &digits[count..];
    }
    let offset = offset_seconds(rest).ok_or_else(|| fail(rest, ZONE))?;
    let [year, month, day, hour, minute, second] = numbers;
    let range = |what: &str| format!("parsing time {text:?}: {what} out of range");
    if !(1..=12).contains(&month) {
        return Err(range("month"));
    }
    for (value, limit, what) in [(hour, 23, "hour"), (minute, 59, "minute"), (second, 59, "second")] {
        if value > limit {
            return Err(range(what));
        }
    }
    let civil =
        DateTime::new(year as i16, month as i8, day as i8, hour as i8, minute as i8, second as i8, nanos)
            .map_err(|_| range("day"))?;
    civil
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()
        .and_then(|zoned| zoned.timestamp().checked_sub(jiff::SignedDuration::from_secs(offset)).ok())
        .ok_or_else(|| range("year"))
}

fn offset_seconds(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let sign = match zone.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = zone.get(1..)?.split_once(':')?;
    if hours.len() != 2 || minutes.len() != 2 {
        return None;
    }
    let (hours, minutes): (u8, u8) = (hours.parse().ok()?, minutes.parse().ok()?);
    (hours < 24 && minutes < 60).then(|| sign * (i64::from(hours) * 3600 + i64::from(minutes) * 60))
}

/// Base64 in its canonical form (line breaks inside are allowed on input), or why the text is none.
pub(super) fn bytes(text: String) -> Result<String, String> {
    let text = if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], "") } else { text };
    let illegal = |at: usize| format!("illegal base64 data at input byte {at}");
    match STANDARD.decode(&text) {
        Ok(_) => Ok(text),
        Err(base64::DecodeError::InvalidByte(at, _)) => Err(illegal(at)),
        Err(_) => Err(illegal(text.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_utc_with_whole_seconds() {
        assert_eq!(time("2024-02-29T23:30:00.123+01:00").unwrap(), "2024-02-29T22:30:00Z");
        assert_eq!(micro_time("2024-01-01T00:00:00.000001Z").unwrap(), "2024-01-01T00:00:00.000001Z");
    }

    #[test]
    fn refused_times_name_the_piece() {
        assert_eq!(
            micro_time("2020-01-01T00:00:00Z").unwrap_err(),
            "parsing time \"2020-01-01T00:00:00Z\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"Z\" as \".000000\""
        );
        assert_eq!(
            time("x").unwrap_err(),
            "parsing time \"x\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"x\" as \"2006\""
        );
        assert_eq!(
            time("2023-02-30T00:00:00Z").unwrap_err(),
            "parsing time \"2023-02-30T00:00:00Z\": day out of range"
        );
        for text in
            ["", "2023", "2023-01-01T00:00:00", "2023-01-01T00:00:00+1:0", "9999-99-99T99:99:99Z", "é"]
        {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn base64_errors_name_the_byte() {
        assert_eq!(bytes("b%".into()).unwrap_err(), "illegal base64 data at input byte 1");
        assert_eq!(bytes("Y\nQ==".into()).unwrap(), "YQ==");
    }
}
