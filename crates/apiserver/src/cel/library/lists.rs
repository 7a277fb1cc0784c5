//! Kubernetes' list functions: order, sums, extremes, places.

use std::cmp::Ordering;

use super::super::eval::{Error, Work};
use super::super::overloads::Declared;
use super::super::value::{List, Value};
use super::operators::order;

const EXTREMES: &str = "list(int).():int list(uint).():uint list(double).():double list(bool).():bool \
    list(duration).():duration list(timestamp).():timestamp list(string).():string list(bytes).():bytes";

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "isSorted",
        signatures: "list(int).():bool list(uint).():bool list(double).():bool list(bool).():bool \
            list(duration).():bool list(timestamp).():bool list(string).():bool list(bytes).():bool",
        body: |work, args| {
            let list = list(args)?;
            work.spend(list.len() as u64)?;
            let mut before: Option<Value<'_>> = None;
            for item in list.iter() {
                if let Some(before) = &before
                    && order(before, &item).ok_or_else(Error::no_overload)?.is_gt()
                {
                    return Ok(Value::Bool(false));
                }
                before = Some(item);
            }
            Ok(Value::Bool(true))
        },
    },
    Declared {
        name: "sum",
        signatures: "list(int).():int list(uint).():uint list(double).():double list(duration).():duration",
        body: |work, args| {
            let list = list(args)?;
            work.spend(list.len() as u64)?;
            let mut items = list.iter();
            let Some(mut sum) = items.next() else { return Ok(Value::Int(0)) };
            if list.len() == 1
                && !matches!(sum, Value::Int(_) | Value::Uint(_) | Value::Double(_) | Value::Duration(_))
            {
                return Err(Error::no_overload());
            }
            for item in items {
                sum = match (&sum, &item) {
                    (Value::Int(a), Value::Int(b)) => {
                        Value::Int(a.checked_add(*b).ok_or_else(|| Error::new("integer overflow"))?)
                    }
                    (Value::Uint(a), Value::Uint(b)) => {
                        Value::Uint(a.checked_add(*b).ok_or_else(|| Error::new("unsigned integer overflow"))?)
                    }
                    (Value::Double(a), Value::Double(b)) => Value::Double(a + b),
                    (Value::Duration(a), Value::Duration(b)) => {
                        Value::Duration(a.checked_add(*b).ok_or_else(|| Error::new("duration overflow"))?)
                    }
                    _ => return Err(Error::no_overload()),
                };
            }
            Ok(sum)
        },
    },
    Declared {
        name: "min",
        signatures: EXTREMES,
        body: |work, args| extreme(work, args, "min", Ordering::Less),
    },
    Declared {
        name: "max",
        signatures: EXTREMES,
        body: |work, args| extreme(work, args, "max", Ordering::Greater),
    },
    Declared { name: "indexOf", signatures: "list(A).(A):int", body: |work, args| place(work, args, false) },
    Declared {
        name: "lastIndexOf",
        signatures: "list(A).(A):int",
        body: |work, args| place(work, args, true),
    },
];

fn list<'v, 'a>(args: &'v [Value<'a>]) -> Result<&'v List<'a>, Error> {
    match args.first() {
        Some(Value::List(list)) => Ok(list),
        _ => Err(Error::no_overload()),
    }
}

fn extreme<'a>(
    work: &mut Work,
    args: &[Value<'a>],
    name: &str,
    wanted: Ordering,
) -> Result<Value<'a>, Error> {
    let list = list(args)?;
    work.spend(list.len() as u64)?;
    let mut items = list.iter();
    let mut best = items.next().ok_or_else(|| Error::new(format!("{name} called on empty list")))?;
    for item in items {
        if order(&item, &best).ok_or_else(Error::no_overload)? == wanted {
            best = item;
        }
    }
    Ok(best)
}

fn place<'a>(work: &mut Work, args: &[Value<'a>], last: bool) -> Result<Value<'a>, Error> {
    let (list, [_, wanted]) = (list(args)?, args) else { return Err(Error::no_overload()) };
    let mut found = -1;
    for (at, item) in list.iter().enumerate() {
        if item.equals(wanted, work)? {
            found = at as i64;
            if !last {
                break;
            }
        }
    }
    Ok(Value::Int(found))
}
