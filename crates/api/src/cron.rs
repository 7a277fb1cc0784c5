//! Cron schedules: five fields, or a descriptor; what is wrong with one, and when it strikes next.
//!
//! Source: Kubernetes documentation, "CronJob", schedule syntax. Times are of a zone's wall clock: one that a change of the
//! clock leaves out is not made up for, one that it repeats strikes twice.
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

/// The latest year a schedule is followed into, counted from where the search begins: some never strike.
const YEARS: i16 = 5;

/// Values a field admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Field {
    bits: u64,
    /// Written as `*`: of the two day fields the other alone decides.
    any: bool,
}

impl Field {
    fn has(self, value: i8) -> bool {
        u32::try_from(value).is_ok_and(|v| self.bits & (1 << v) != 0)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    Fields { minute: Field, hour: Field, day: Field, month: Field, weekday: Field },
    Every(SignedDuration),
}

/// A schedule that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule(Rule);

struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MINUTE: Bounds = Bounds { low: 0, high: 59, names: &[] };
const HOUR: Bounds = Bounds { low: 0, high: 23, names: &[] };
const DAY: Bounds = Bounds { low: 1, high: 31, names: &[] };
const MONTH: Bounds = Bounds {
    low: 1,
    high: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: Bounds = Bounds { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Schedule {
    /// Reads a schedule. The error is the text the API server shows.
    pub fn parse(schedule: &str) -> Result<Self, String> {
        let schedule = schedule.trim();
        let fields = match schedule {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ if schedule.starts_with('@') => return every(schedule),
            fields => fields,
        };
        let list: Vec<&str> = fields.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = list.as_slice() else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", list.len(), list.join(" ")));
        };
        Ok(Self(Rule::Fields {
            minute: field(minute, &MINUTE)?,
            hour: field(hour, &HOUR)?,
            day: field(day, &DAY)?,
            month: field(month, &MONTH)?,
            weekday: field(weekday, &WEEKDAY)?,
        }))
    }

    /// The first time after `after` that it strikes by the clocks of `zone`; `None` when it does not within five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let whole = Timestamp::from_second(after.as_second()).ok()?;
        match &self.0 {
            Rule::Every(pause) => whole.checked_add(*pause).ok(),
            Rule::Fields { .. } => {
                let start = whole.as_second().div_euclid(60).checked_add(1)?.checked_mul(60)?;
                self.search(Timestamp::from_second(start).ok()?.to_zoned(zone.clone()))
            }
        }
    }

    /// Whether it strikes at fixed distances, whatever the clocks say.
    pub fn is_interval(&self) -> bool {
        matches!(self.0, Rule::Every(_))
    }

    fn search(&self, mut at: Zoned) -> Option<Timestamp> {
        let Rule::Fields { minute, hour, month, .. } = &self.0 else { return None };
        let last = at.year().checked_add(YEARS)?;
        while at.year() <= last {
            at = if !month.has(at.month()) {
                let next = at.date().first_of_month().checked_add(jiff::Span::new().months(1)).ok()?;
                midnight(next, &at)?
            } else if !self.has_day(&at) {
                midnight(at.date().tomorrow().ok()?, &at)?
            } else if !hour.has(at.hour()) {
                at.checked_add(SignedDuration::from_mins(i64::from(60 - at.minute()))).ok()?
            } else if !minute.has(at.minute()) {
                at.checked_add(SignedDuration::from_mins(1)).ok()?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }

    /// Of day and weekday both must fit if one of them is `*`, otherwise either.
    fn has_day(&self, at: &Zoned) -> bool {
        let Rule::Fields { day, weekday, .. } = &self.0 else { return false };
        let (fits_day, fits_weekday) = (day.has(at.day()), weekday.has(at.weekday().to_sunday_zero_offset()));
        if day.any || weekday.any { fits_day && fits_weekday } else { fits_day || fits_weekday }
    }
}

/// The first moment of the day, which need not be midnight.
fn midnight(date: Date, like: &Zoned) -> Option<Zoned> {
    date.to_zoned(like.time_zone().clone()).ok()?.start_of_day().ok()
}

fn every(schedule: &str) -> Result<Schedule, String> {
    let Some(text) = schedule.strip_prefix("@every ") else {
        return Err(format!("unrecognized descriptor: {schedule}"));
    };
    match crate::duration::parse(text) {
        Ok(pause) => {
            // Whole seconds, at least one.
            let pause = SignedDuration::from_secs((pause / 1_000_000_000).max(1));
            Ok(Schedule(Rule::Every(pause)))
        }
        Err(why) => Err(format!("failed to parse duration {schedule}: {why}")),
    }
}

fn field(text: &str, bounds: &Bounds) -> Result<Field, String> {
    let mut all = Field { bits: 0, any: false };
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let one = range(part, bounds)?;
        all = Field { bits: all.bits | one.bits, any: all.any || one.any };
    }
    Ok(all)
}

fn number(word: &str) -> Result<u32, String> {
    let parsed: i64 = word.parse().map_err(|_| {
        format!("failed to parse int from {word}: strconv.Atoi: parsing \"{word}\": invalid syntax")
    })?;
    u32::try_from(parsed).map_err(|_| format!("negative number ({parsed}) not allowed: {word}"))
}

fn range(text: &str, bounds: &Bounds) -> Result<Field, String> {
    let Bounds { low, high, names } = *bounds;
    let named = |word: &str| -> Result<u32, String> {
        let lower = word.to_ascii_lowercase();
        match names.iter().zip(low..).find(|(name, _)| **name == lower) {
            Some((_, value)) => Ok(value),
            None => number(word),
        }
    };
    let (span, step) = match text.split_once('/') {
        Some((_, step)) if step.contains('/') => return Err(format!("too many slashes: {text}")),
        Some((span, step)) => (span, Some(step)),
        None => (text, None),
    };
    let mut any = false;
    let (start, end) = match span.split_once('-') {
        _ if span == "*" || span == "?" => {
            any = true;
            (low, high)
        }
        Some((_, last)) if last.contains('-') => return Err(format!("too many hyphens: {text}")),
        Some((first, last)) => (named(first)?, named(last)?),
        // A single number with a step runs to the end.
        None => {
            let start = named(span)?;
            (start, if step.is_some() { high } else { start })
        }
    };
    let step = step.map_or(Ok(1), number)?;
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {text}"));
    }
    if end > high {
        return Err(format!("end of range ({end}) above maximum ({high}): {text}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    let Some(stride) = usize::try_from(step).ok().filter(|s| *s > 0) else {
        return Err(format!("step of range should be a positive number: {text}"));
    };
    let bits = (start..=end).step_by(stride).fold(0, |bits, value| bits | 1 << value);
    Ok(Field { bits, any: any && stride == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_that_run_are_accepted_and_others_explained() {
        for good in ["* * * * *", "*/5 0-6 1,15 jan-mar mon", "@daily", "0 3 * * 0", "@every 1h30m"] {
            assert!(Schedule::parse(good).is_ok(), "{good}");
        }
        let check = |text: &str, want: &str| assert_eq!(Schedule::parse(text), Err(want.into()));
        check("61 * * * *", "end of range (61) above maximum (59): 61");
        check("@never", "unrecognized descriptor: @never");
        check("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]");
        check("1-2-3 * * * *", "too many hyphens: 1-2-3");
        check("*/0 * * * *", "step of range should be a positive number: */0");
        check("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax");
        check("@every soon", "failed to parse duration @every soon: time: invalid duration \"soon\"");
        check("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\"");
        check("@every 5d", "failed to parse duration @every 5d: time: unknown unit \"d\" in duration \"5d\"");
    }

    /// The next three times, by the zone's clock.
    fn strikes(schedule: &str, zone: &str, after: &str, want: [&str; 3]) {
        let (schedule, zone) =
            (Schedule::parse(schedule).expect("schedule"), TimeZone::get(zone).expect("zone"));
        let mut at: Timestamp = after.parse().expect("time");
        for want in want {
            at = schedule.next(at, &zone).expect("strikes");
            assert_eq!(at.to_zoned(zone.clone()).strftime("%F %T %z").to_string(), want, "{schedule:?}");
        }
    }

    #[test]
    fn times_follow_fields_zone_and_both_kinds_of_days() {
        let at = "2026-01-30T23:58:30Z";
        strikes(
            "*/30 * * * *",
            "UTC",
            at,
            ["2026-01-31 00:00:00 +0000", "2026-01-31 00:30:00 +0000", "2026-01-31 01:00:00 +0000"],
        );
        strikes(
            "0 9 * * *",
            "Asia/Tokyo",
            at,
            ["2026-01-31 09:00:00 +0900", "2026-02-01 09:00:00 +0900", "2026-02-02 09:00:00 +0900"],
        );
        strikes(
            "0 0 29 2 *",
            "UTC",
            at,
            ["2028-02-29 00:00:00 +0000", "2032-02-29 00:00:00 +0000", "2036-02-29 00:00:00 +0000"],
        );
        // Either day when both are given, both when one is a star.
        strikes(
            "0 0 13 * fri",
            "UTC",
            at,
            ["2026-02-06 00:00:00 +0000", "2026-02-13 00:00:00 +0000", "2026-02-20 00:00:00 +0000"],
        );
        strikes(
            "0 0 */1 * fri",
            "UTC",
            at,
            ["2026-02-06 00:00:00 +0000", "2026-02-13 00:00:00 +0000", "2026-02-20 00:00:00 +0000"],
        );
        strikes(
            "@every 90m",
            "UTC",
            at,
            ["2026-01-31 01:28:30 +0000", "2026-01-31 02:58:30 +0000", "2026-01-31 04:28:30 +0000"],
        );
    }

    #[test]
    fn a_time_the_clock_leaves_out_is_skipped_and_a_repeated_one_strikes_twice() {
        let zone = "America/New_York";
        strikes(
            "30 2 * * *",
            zone,
            "2026-03-07T12:00:00Z",
            ["2026-03-09 02:30:00 -0400", "2026-03-10 02:30:00 -0400", "2026-03-11 02:30:00 -0400"],
        );
        strikes(
            "30 1 * * *",
            zone,
            "2026-10-31T12:00:00Z",
            ["2026-11-01 01:30:00 -0400", "2026-11-01 01:30:00 -0500", "2026-11-02 01:30:00 -0500"],
        );
    }

    #[test]
    fn a_day_that_never_comes_has_no_next_time() {
        let schedule = Schedule::parse("59 23 31 2 *").expect("schedule");
        assert_eq!(schedule.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }
}
