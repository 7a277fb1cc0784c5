//! CEL's own operators and functions: arithmetic, comparison, membership, sizes, conversions.
//!
//! Rule: the CEL language definition, "Standard Definitions"; texts of errors as cel-go has them.

use std::cmp::Ordering;
use std::sync::Arc;

use super::super::eval::{Error, Work, member};
use super::super::overloads::Declared;
use super::super::time::{self, SECOND};
use super::super::value::{Key, Map, Value};
use super::Opaque;

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    // these four compute their arguments one by one: the evaluator does them itself
    Declared { name: "_&&_", signatures: "(bool,bool):bool", body: |_, _| Err(Error::no_overload()) },
    Declared { name: "_||_", signatures: "(bool,bool):bool", body: |_, _| Err(Error::no_overload()) },
    Declared { name: "_?_:_", signatures: "(bool,A,A):A", body: |_, _| Err(Error::no_overload()) },
    Declared {
        name: "@not_strictly_false",
        signatures: "(bool):bool",
        body: |_, _| Err(Error::no_overload()),
    },
    Declared {
        name: "!_",
        signatures: "(bool):bool",
        body: |_, args| match args {
            [Value::Bool(b)] => Ok(Value::Bool(!b)),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "-_",
        signatures: "(int):int (double):double",
        body: |_, args| match args {
            [Value::Int(i)] => i.checked_neg().map(Value::Int).ok_or_else(overflow),
            [Value::Double(d)] => Ok(Value::Double(-d)),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "_+_",
        signatures: "(int,int):int (uint,uint):uint (double,double):double (string,string):string \
            (bytes,bytes):bytes (list(A),list(A)):list(A) (timestamp,duration):timestamp \
            (duration,timestamp):timestamp (duration,duration):duration",
        body: add,
    },
    Declared {
        name: "_-_",
        signatures: "(int,int):int (uint,uint):uint (double,double):double (timestamp,timestamp):duration \
            (timestamp,duration):timestamp (duration,duration):duration",
        body: subtract,
    },
    Declared {
        name: "_*_",
        signatures: "(int,int):int (uint,uint):uint (double,double):double",
        body: |_, args| match args {
            [Value::Int(a), Value::Int(b)] => a.checked_mul(*b).map(Value::Int).ok_or_else(overflow),
            [Value::Uint(a), Value::Uint(b)] => {
                a.checked_mul(*b).map(Value::Uint).ok_or_else(unsigned_overflow)
            }
            [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "_/_",
        signatures: "(int,int):int (uint,uint):uint (double,double):double",
        body: |_, args| match args {
            [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
                Err(Error::new("division by zero"))
            }
            [Value::Int(a), Value::Int(b)] => a.checked_div(*b).map(Value::Int).ok_or_else(overflow),
            [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a / b)),
            [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "_%_",
        signatures: "(int,int):int (uint,uint):uint",
        body: |_, args| match args {
            [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
                Err(Error::new("modulus by zero"))
            }
            [Value::Int(a), Value::Int(b)] => a.checked_rem(*b).map(Value::Int).ok_or_else(overflow),
            [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a % b)),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "_==_",
        signatures: "(A,A):bool",
        body: |work, args| match args {
            [a, b] => a.equals(b, work).map(Value::Bool),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "_!=_",
        signatures: "(A,A):bool",
        body: |work, args| match args {
            [a, b] => a.equals(b, work).map(|same| Value::Bool(!same)),
            _ => Err(Error::no_overload()),
        },
    },
    Declared { name: "_<_", signatures: ORDERED, body: |_, args| compared(args, Ordering::is_lt) },
    Declared { name: "_<=_", signatures: ORDERED, body: |_, args| compared(args, Ordering::is_le) },
    Declared { name: "_>_", signatures: ORDERED, body: |_, args| compared(args, Ordering::is_gt) },
    Declared { name: "_>=_", signatures: ORDERED, body: |_, args| compared(args, Ordering::is_ge) },
    Declared {
        name: "@in",
        signatures: "(A,list(A)):bool (A,map(A,B)):bool",
        body: |work, args| match args {
            [value, Value::List(list)] => list.contains(value, work).map(Value::Bool),
            [key, Value::Map(map)] => Ok(Value::Bool(map.get(key).is_some())),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "_[_]",
        signatures: "(list(A),int):A (map(A,B),A):B (optional(list(A)),int):optional(A) \
        (optional(map(A,B)),A):optional(B)",
        body: |_, args| match args {
            [Value::Optional(None), _] => Ok(Value::Optional(None)),
            [Value::Optional(Some(of)), key] => Ok(Value::Optional(member(of, key).ok().map(Arc::new))),
            [value, key] => member(value, key),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "size",
        signatures: "(string):int (bytes):int (list(A)):int (map(A,B)):int string.():int bytes.():int \
            list(A).():int map(A,B).():int",
        body: |_, args| match args {
            [v @ (Value::String(_) | Value::Bytes(_) | Value::List(_) | Value::Map(_))] => {
                Ok(Value::Int(v.size() as i64))
            }
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "type",
        signatures: "(A):type",
        body: |_, args| match args {
            [v] => Ok(Value::Type(Arc::from(v.type_name()))),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "dyn",
        signatures: "(A):dyn",
        body: |_, args| match args {
            [v] => Ok(v.clone()),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "int",
        signatures: "(int):int (double):int (string):int (uint):int (duration):int (timestamp):int",
        body: to_int,
    },
    Declared {
        name: "uint",
        signatures: "(uint):uint (double):uint (int):uint (string):uint",
        body: to_uint,
    },
    Declared {
        name: "double",
        signatures: "(double):double (int):double (string):double (uint):double",
        body: |_, args| match args {
            [Value::Double(d)] => Ok(Value::Double(*d)),
            [Value::Int(i)] => Ok(Value::Double(*i as f64)),
            [Value::Uint(u)] => Ok(Value::Double(*u as f64)),
            [Value::String(s)] => s
                .parse()
                .map(Value::Double)
                .map_err(|_| Error::new(format!("strconv.ParseFloat: parsing {:?}: invalid syntax", &**s))),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "string",
        signatures: "(string):string (bool):string (bytes):string (double):string (duration):string (int):string \
            (timestamp):string (uint):string (IP):string (CIDR):string",
        body: |_, args| match args {
            [Value::Bytes(b)] if std::str::from_utf8(b).is_err() => {
                Err(Error::new("invalid UTF-8 in bytes, cannot convert to string"))
            }
            [v] => show(v).map(Value::text).ok_or_else(Error::no_overload),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "bytes",
        signatures: "(bytes):bytes (string):bytes",
        body: |_, args| match args {
            [Value::Bytes(b)] => Ok(Value::Bytes(b.clone())),
            [Value::String(s)] => Ok(Value::Bytes(s.as_bytes().into())),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "bool",
        signatures: "(bool):bool (string):bool",
        body: |_, args| match args {
            [Value::Bool(b)] => Ok(Value::Bool(*b)),
            [Value::String(s)] => match &**s {
                "true" | "True" | "TRUE" | "t" | "T" | "1" => Ok(Value::Bool(true)),
                "false" | "False" | "FALSE" | "f" | "F" | "0" => Ok(Value::Bool(false)),
                other => Err(Error::new(format!("strconv.ParseBool: parsing {other:?}: invalid syntax"))),
            },
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "timestamp",
        signatures: "(timestamp):timestamp (int):timestamp (string):timestamp",
        body: |_, args| match args {
            [Value::Timestamp(t)] => Ok(Value::Timestamp(*t)),
            [Value::Int(seconds)] => jiff::Timestamp::from_second(*seconds)
                .ok()
                .filter(|t| time::in_range(*t))
                .map(Value::Timestamp)
                .ok_or_else(timestamp_overflow),
            [Value::String(s)] => time::parse_timestamp(s)
                .map(Value::Timestamp)
                .ok_or_else(|| Error::new(format!("invalid timestamp {:?}, expected RFC 3339", &**s))),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "duration",
        signatures: "(duration):duration (int):duration (string):duration",
        body: |_, args| match args {
            [Value::Duration(d)] => Ok(Value::Duration(*d)),
            [Value::Int(nanos)] => Ok(Value::Duration(*nanos)),
            [Value::String(s)] => time::parse_duration(s)
                .map(Value::Duration)
                .ok_or_else(|| Error::new(format!("time: invalid duration {:?}", &**s))),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "cel.@mapInsert",
        signatures: "(map(A,B),A,B):map(A,B) (map(A,B),map(A,B)):map(A,B)",
        body: |work, args| {
            // the accumulator of a macro is extended in place; this is for what is no accumulator
            let Some(Value::Map(map)) = args.first() else { return Err(Error::no_overload()) };
            work.spend(map.len() as u64)?;
            let mut entries = std::collections::BTreeMap::new();
            let mut put = |key: &Value<'_>, value| {
                let known = entries.insert(Key::of(key).ok_or_else(Error::no_overload)?, value);
                known.map_or(Ok(()), |_| {
                    let key = show(key).unwrap_or_default();
                    Err(Error::new(format!("insert failed: key {key} already exists")))
                })
            };
            for key in map.keys() {
                if let Some(value) = map.get(&key) {
                    put(&key, value)?;
                }
            }
            match args {
                [_, Value::Map(more)] => {
                    for key in more.keys() {
                        if let Some(value) = more.get(&key) {
                            put(&key, value)?;
                        }
                    }
                }
                [_, key, value] => put(key, value.clone())?,
                _ => return Err(Error::no_overload()),
            }
            Ok(Value::Map(Map::made(entries)))
        },
    },
];

const ORDERED: &str = "(bool,bool):bool (int,int):bool (int,double):bool (int,uint):bool (uint,uint):bool \
    (uint,double):bool (uint,int):bool (double,double):bool (double,int):bool (double,uint):bool \
    (string,string):bool (bytes,bytes):bool (timestamp,timestamp):bool (duration,duration):bool";

fn overflow() -> Error {
    Error::new("integer overflow")
}

fn unsigned_overflow() -> Error {
    Error::new("unsigned integer overflow")
}

fn timestamp_overflow() -> Error {
    Error::new("timestamp overflow")
}

fn add<'a>(work: &mut Work, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match args {
        [Value::Int(a), Value::Int(b)] => a.checked_add(*b).map(Value::Int).ok_or_else(overflow),
        [Value::Uint(a), Value::Uint(b)] => a.checked_add(*b).map(Value::Uint).ok_or_else(unsigned_overflow),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::String(a), Value::String(b)] => {
            fits(a.len().saturating_add(b.len()))?;
            work.spend((a.len() + b.len()) as u64 / 16)?;
            Ok(Value::text(format!("{}{}", &**a, &**b)))
        }
        [Value::Bytes(a), Value::Bytes(b)] => {
            fits(a.len().saturating_add(b.len()))?;
            Ok(Value::Bytes(a.iter().chain(b.iter()).copied().collect()))
        }
        [Value::List(a), Value::List(b)] => a.plus(b, work),
        [Value::Timestamp(t), Value::Duration(d)] | [Value::Duration(d), Value::Timestamp(t)] => {
            shifted(*t, *d)
        }
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(|| Error::new("duration overflow"))
        }
        _ => Err(Error::no_overload()),
    }
}

/// Refuses texts that no expression has use for.
pub(in super::super) fn fits(bytes: usize) -> Result<(), Error> {
    if bytes > super::super::eval::MAX_TEXT { Err(Error::too_much()) } else { Ok(()) }
}

fn shifted<'a>(at: jiff::Timestamp, nanos: i64) -> Result<Value<'a>, Error> {
    at.checked_add(jiff::SignedDuration::from_nanos(nanos))
        .ok()
        .filter(|t| time::in_range(*t))
        .map(Value::Timestamp)
        .ok_or_else(timestamp_overflow)
}

fn subtract<'a>(_: &mut Work, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let duration_overflow = || Error::new("duration overflow");
    match args {
        [Value::Int(a), Value::Int(b)] => a.checked_sub(*b).map(Value::Int).ok_or_else(overflow),
        [Value::Uint(a), Value::Uint(b)] => a.checked_sub(*b).map(Value::Uint).ok_or_else(unsigned_overflow),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [Value::Timestamp(a), Value::Timestamp(b)] => {
            let nanos = a.as_nanosecond() - b.as_nanosecond();
            i64::try_from(nanos).map(Value::Duration).map_err(|_| duration_overflow())
        }
        [Value::Timestamp(t), Value::Duration(d)] => {
            shifted(*t, d.checked_neg().ok_or_else(duration_overflow)?)
        }
        [Value::Duration(a), Value::Duration(b)] => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(duration_overflow)
        }
        _ => Err(Error::no_overload()),
    }
}

/// Which of two values comes first.
pub(in super::super) fn order(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    let floats = |a: f64, b: f64| a.partial_cmp(&b);
    match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
        (Value::Uint(a), Value::Uint(b)) => Some(a.cmp(b)),
        (Value::Int(a), Value::Uint(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Uint(a), Value::Int(b)) => Some(i128::from(*a).cmp(&i128::from(*b))),
        (Value::Double(a), Value::Double(b)) => floats(*a, *b),
        (Value::Int(a), Value::Double(b)) => floats(*a as f64, *b),
        (Value::Double(a), Value::Int(b)) => floats(*a, *b as f64),
        (Value::Uint(a), Value::Double(b)) => floats(*a as f64, *b),
        (Value::Double(a), Value::Uint(b)) => floats(*a, *b as f64),
        (Value::String(a), Value::String(b)) => Some((**a).cmp(&**b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

fn compared<'a>(args: &[Value<'a>], test: fn(Ordering) -> bool) -> Result<Value<'a>, Error> {
    match args {
        // nothing is before, behind or beside what is no number
        [Value::Double(d), _] | [_, Value::Double(d)] if d.is_nan() => Ok(Value::Bool(false)),
        [a, b] => order(a, b).map(|o| Value::Bool(test(o))).ok_or_else(Error::no_overload),
        _ => Err(Error::no_overload()),
    }
}

fn to_int<'a>(_: &mut Work, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match args {
        [Value::Int(i)] => Ok(Value::Int(*i)),
        [Value::Uint(u)] => i64::try_from(*u).map(Value::Int).map_err(|_| overflow()),
        [Value::Double(d)] if d.is_finite() && d.abs() < 9_223_372_036_854_775_807.0 => {
            Ok(Value::Int(*d as i64))
        }
        [Value::Double(_)] => Err(overflow()),
        [Value::String(s)] => s
            .parse()
            .map(Value::Int)
            .map_err(|_| Error::new(format!("strconv.ParseInt: parsing {:?}: invalid syntax", &**s))),
        [Value::Duration(d)] => Ok(Value::Int(d / SECOND)),
        [Value::Timestamp(t)] => Ok(Value::Int(t.as_second())),
        _ => Err(Error::no_overload()),
    }
}

fn to_uint<'a>(_: &mut Work, args: &[Value<'a>]) -> Result<Value<'a>, Error> {
    match args {
        [Value::Uint(u)] => Ok(Value::Uint(*u)),
        [Value::Int(i)] => u64::try_from(*i).map(Value::Uint).map_err(|_| unsigned_overflow()),
        [Value::Double(d)] if d.is_finite() && *d >= 0.0 && *d < 18_446_744_073_709_551_615.0 => {
            Ok(Value::Uint(*d as u64))
        }
        [Value::Double(_)] => Err(unsigned_overflow()),
        [Value::String(s)] => s
            .parse()
            .map(Value::Uint)
            .map_err(|_| Error::new(format!("strconv.ParseUint: parsing {:?}: invalid syntax", &**s))),
        _ => Err(Error::no_overload()),
    }
}

/// A value as `string()` gives it.
pub(in super::super) fn show(value: &Value<'_>) -> Option<String> {
    Some(match value {
        Value::String(s) => s.to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Int(i) => i.to_string(),
        Value::Uint(u) => u.to_string(),
        Value::Double(d) => show_double(*d),
        Value::Bytes(b) => String::from_utf8_lossy(b).into_owned(),
        Value::Duration(d) => time::show_duration(*d),
        Value::Timestamp(t) => time::show_timestamp(*t),
        Value::Opaque(o) if matches!(**o, Opaque::Ip(_) | Opaque::Cidr(_)) => o.show()?,
        _ => return None,
    })
}

/// A number as Go's `%g` prints it.
pub(in super::super) fn show_double(d: f64) -> String {
    if d.is_nan() {
        return "NaN".to_owned();
    }
    if d.is_infinite() {
        return if d > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let scientific = format!("{d:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(e) if !(-4..21).contains(&e) => {
            let sign = if e < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", e.unsigned_abs())
        }
        _ => format!("{d}"),
    }
}
