//! Pure decisions of the cron job controller: which time is due, and when to look again.
use std::time::Duration;

use api::cron::Schedule;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// More missed times than that are told of: a clock may be wrong.
const MANY: i64 = 100;
/// How much later than the time itself a pass comes, so that it surely is due.
const SLACK: Duration = Duration::from_millis(100);

/// A schedule and what it has to be followed from.
pub(super) struct Times {
    pub(super) schedule: Schedule,
    pub(super) zone: TimeZone,
    pub(super) created: Timestamp,
    pub(super) last: Option<Timestamp>,
    /// How late a job may start.
    pub(super) deadline: Option<SignedDuration>,
}

/// The latest time that is due and not yet served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Timestamp,
    /// More than a hundred times passed unserved.
    pub(super) missed_many: bool,
}

impl Times {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        self.schedule.next(after, &self.zone)
    }

    /// The latest time up to `now` that no job stands for; an error when the schedule never strikes.
    pub(super) fn due(&self, now: Timestamp) -> Result<Option<Due>, &'static str> {
        let served = self.last.unwrap_or(self.created);
        let reach = self.deadline.and_then(|d| now.checked_sub(d).ok());
        self.latest(reach.map_or(served, |r| r.max(served)), now)
    }

    fn latest(&self, after: Timestamp, now: Timestamp) -> Result<Option<Due>, &'static str> {
        let first = self.next(after).ok_or("invalid schedule")?;
        let second = self.next(first).ok_or("invalid schedule")?;
        if now < first {
            return Ok(None);
        }
        if now < second {
            return Ok(Some(Due { at: first, missed_many: false }));
        }
        let pause = second.duration_since(first).as_secs().max(1);
        let steps = now.duration_since(first).as_secs() / pause;
        let missed_many = steps + 1 > MANY;
        if self.schedule.is_interval() {
            let at = first + SignedDuration::from_secs(steps * pause);
            return Ok(Some(Due { at, missed_many }));
        }
        // Looking back further and further, so that a long silence costs no walk over all its times.
        let mut back = pause;
        let from = loop {
            let from = (now - SignedDuration::from_secs(back)).max(first);
            if from == first || self.next(from).is_some_and(|t| t <= now) {
                break from;
            }
            back = back.saturating_mul(2).min(now.duration_since(first).as_secs() + 1);
        };
        let mut at = first;
        let mut next = self.next(from);
        while let Some(time) = next.filter(|t| *t <= now) {
            at = time;
            next = self.next(time);
        }
        Ok(Some(Due { at, missed_many }))
    }

    /// How long until the next time after `now`.
    pub(super) fn pause(&self, now: Timestamp) -> Option<Duration> {
        let next = match self.latest(self.last.unwrap_or(self.created), now) {
            Ok(Some(due)) => self.next(due.at),
            Ok(None) => self.next(self.last.unwrap_or(self.created)),
            Err(_) => self.next(now),
        };
        // What was due is served or given up by now.
        let next = next.filter(|t| *t > now).or_else(|| self.next(now))?;
        Some(next.duration_since(now).unsigned_abs() + SLACK)
    }

    /// Whether a job for `at` would start too late.
    pub(super) fn too_late(&self, at: Timestamp, now: Timestamp) -> bool {
        self.deadline.is_some_and(|d| at.saturating_add(d).is_ok_and(|end| end < now))
    }
}

/// A time as messages show it (Go's RFC1123Z).
pub(super) fn shown(at: Timestamp) -> String {
    at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        format!("2026-01-{text}Z").parse().expect("time")
    }

    fn times(schedule: &str, last: Option<&str>, deadline: Option<i64>) -> Times {
        Times {
            schedule: Schedule::parse(schedule).expect("schedule"),
            zone: TimeZone::UTC,
            created: time("01T00:00:30"),
            last: last.map(time),
            deadline: deadline.map(SignedDuration::from_secs),
        }
    }

    fn check(times: Times, now: &str, due: Option<(&str, bool)>, pause: u64) {
        let found = times.due(time(now)).expect("strikes");
        assert_eq!(found.map(|d| (d.at, d.missed_many)), due.map(|(t, m)| (time(t), m)), "{now}");
        assert_eq!(times.pause(time(now)), Some(Duration::from_secs(pause) + SLACK), "{now}");
    }

    #[test]
    fn the_latest_time_is_due_once_and_missed_ones_are_dropped() {
        let hourly = |last, deadline| times("0 * * * *", last, deadline);
        check(hourly(None, None), "01T00:30:00", None, 1800);
        check(hourly(None, None), "01T01:00:00", Some(("01T01:00:00", false)), 3600);
        check(hourly(Some("01T01:00:00"), None), "01T01:00:01", None, 3599);
        check(hourly(Some("01T01:00:00"), None), "01T05:10:00", Some(("01T05:00:00", false)), 3000);
        check(hourly(None, None), "11T00:10:00", Some(("11T00:00:00", true)), 3000);
        // Only what may still start is looked at.
        check(hourly(None, Some(60)), "11T00:10:00", None, 3000);
        check(hourly(None, Some(700)), "11T00:10:00", Some(("11T00:00:00", false)), 3000);
    }

    #[test]
    fn irregular_times_and_intervals_are_found_exactly() {
        // 1 January 2026 is a Thursday: the pause between the first two times is an hour, the weekend's is long.
        let office = || times("0 9-17 * * 1-5", None, None);
        check(office(), "04T12:00:00", Some(("02T17:00:00", false)), 21 * 3600);
        let every = || times("@every 50m", None, None);
        check(every(), "01T03:00:00", Some(("01T02:30:30", false)), 20 * 60 + 30);
    }

    #[test]
    fn messages_show_times_as_mail_does() {
        assert_eq!(shown(time("05T09:03:00")), "Mon, 05 Jan 2026 09:03:00 +0000");
    }

    #[test]
    fn a_schedule_that_never_strikes_is_an_error() {
        let never = times("0 0 31 2 *", None, None);
        assert_eq!(
            (never.due(time("02T00:00:00")), never.pause(time("02T00:00:00"))),
            (Err("invalid schedule"), None)
        );
    }
}
