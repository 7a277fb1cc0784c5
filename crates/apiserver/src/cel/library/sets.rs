//! cel-go's `sets`: lists compared as sets.

use super::super::eval::{Error, Work};
use super::super::overloads::Declared;
use super::super::value::{List, Value};

const BOTH: &str = "(list(A),list(A)):bool";

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "sets.contains",
        signatures: BOTH,
        body: |work, args| lists(args).and_then(|(a, b)| within(work, b, a)).map(Value::Bool),
    },
    Declared {
        name: "sets.equivalent",
        signatures: BOTH,
        body: |work, args| {
            let (a, b) = lists(args)?;
            Ok(Value::Bool(within(work, a, b)? && within(work, b, a)?))
        },
    },
    Declared {
        name: "sets.intersects",
        signatures: BOTH,
        body: |work, args| {
            let (a, b) = lists(args)?;
            for item in a.iter() {
                if b.contains(&item, work)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        },
    },
];

fn lists<'v, 'a>(args: &'v [Value<'a>]) -> Result<(&'v List<'a>, &'v List<'a>), Error> {
    match args {
        [Value::List(a), Value::List(b)] => Ok((a, b)),
        _ => Err(Error::no_overload()),
    }
}

/// Whether every item of one list is in another.
fn within(work: &mut Work, inner: &List<'_>, outer: &List<'_>) -> Result<bool, Error> {
    for item in inner.iter() {
        if !outer.contains(&item, work)? {
            return Ok(false);
        }
    }
    Ok(true)
}
