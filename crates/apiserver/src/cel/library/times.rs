//! Parts of time stamps and durations.

use jiff::Zoned;

use super::super::eval::Error;
use super::super::overloads::Declared;
use super::super::time::{self, SECOND};
use super::super::value::Value;

const DATE: &str = "timestamp.():int timestamp.(string):int";
const CLOCK: &str = "timestamp.():int timestamp.(string):int duration.():int";

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared { name: "getFullYear", signatures: DATE, body: |_, a| part(a, |z| i64::from(z.year()), None) },
    Declared { name: "getMonth", signatures: DATE, body: |_, a| part(a, |z| i64::from(z.month()) - 1, None) },
    Declared {
        name: "getDayOfYear",
        signatures: DATE,
        body: |_, a| part(a, |z| i64::from(z.day_of_year()) - 1, None),
    },
    Declared {
        name: "getDayOfMonth",
        signatures: DATE,
        body: |_, a| part(a, |z| i64::from(z.day()) - 1, None),
    },
    Declared { name: "getDate", signatures: DATE, body: |_, a| part(a, |z| i64::from(z.day()), None) },
    Declared {
        name: "getDayOfWeek",
        signatures: DATE,
        body: |_, a| part(a, |z| i64::from(z.weekday().to_sunday_zero_offset()), None),
    },
    Declared {
        name: "getHours",
        signatures: CLOCK,
        body: |_, a| part(a, |z| i64::from(z.hour()), Some(|d| d / (3600 * SECOND))),
    },
    Declared {
        name: "getMinutes",
        signatures: CLOCK,
        body: |_, a| part(a, |z| i64::from(z.minute()), Some(|d| d / (60 * SECOND))),
    },
    Declared {
        name: "getSeconds",
        signatures: CLOCK,
        body: |_, a| part(a, |z| i64::from(z.second()), Some(|d| d / SECOND)),
    },
    Declared {
        name: "getMilliseconds",
        signatures: CLOCK,
        body: |_, a| part(a, |z| i64::from(z.millisecond()), Some(|d| d / 1_000_000)),
    },
];

fn part<'a>(
    args: &[Value<'a>],
    of_time: fn(&Zoned) -> i64,
    of_duration: Option<fn(i64) -> i64>,
) -> Result<Value<'a>, Error> {
    match (args, of_duration) {
        ([Value::Duration(d)], Some(of)) => Ok(Value::Int(of(*d))),
        ([Value::Timestamp(at)], _) => place(*at, None, of_time),
        ([Value::Timestamp(at), Value::String(zone)], _) => place(*at, Some(zone), of_time),
        _ => Err(Error::no_overload()),
    }
}

fn place<'a>(at: jiff::Timestamp, zone: Option<&str>, of: fn(&Zoned) -> i64) -> Result<Value<'a>, Error> {
    time::at_place(at, zone)
        .map(|z| Value::Int(of(&z)))
        .ok_or_else(|| Error::new(format!("unknown time zone {}", zone.unwrap_or_default())))
}
