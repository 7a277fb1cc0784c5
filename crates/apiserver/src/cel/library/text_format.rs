//! `'%s has %d'.format([a, b])`: cel-go's string formatting.

use super::super::eval::{Error, Work};
use super::super::value::{List, Value};
use super::operators::fits;
use super::strings::plain;

/// Fills a text's clauses with values.
pub(super) fn format(pattern: &str, values: &List<'_>, work: &mut Work) -> Result<String, Error> {
    let mut out = String::new();
    let mut next = 0;
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        work.spend(1)?;
        fits(out.len())?;
        if c != '%' {
            out.push(c);
            continue;
        }
        if rest.next_if_eq(&'%').is_some() {
            out.push('%');
            continue;
        }
        let mut precision = None;
        if rest.next_if_eq(&'.').is_some() {
            let mut digits = String::new();
            while let Some(d) = rest.next_if(char::is_ascii_digit) {
                digits.push(d);
            }
            let parsed: usize =
                digits.parse().map_err(|_| Error::new("could not parse formatting clause: precision"))?;
            precision = Some(parsed.min(100));
        }
        let Some(verb) = rest.next() else {
            return Err(Error::new("could not parse formatting clause: unexpected end of string"));
        };
        let value = values.get(next).ok_or_else(|| Error::new(format!("index {next} out of range")))?;
        next += 1;
        out.push_str(&clause(verb, precision, &value, work)?);
    }
    Ok(out)
}

fn clause(verb: char, precision: Option<usize>, value: &Value<'_>, work: &mut Work) -> Result<String, Error> {
    let refuse = |what: &str| {
        Error::new(format!(
            "error during formatting: {what} clause can only be used on {}",
            match verb {
                'd' => "integers",
                'x' | 'X' => "integers, byte buffers, and strings",
                'o' | 'b' => "integers and bools",
                _ => "doubles",
            }
        ))
    };
    Ok(match verb {
        's' => string(value, work)?,
        'd' => match value {
            Value::Int(i) => i.to_string(),
            Value::Uint(u) => u.to_string(),
            Value::Double(d) if !d.is_finite() => super::operators::show_double(*d),
            _ => return Err(refuse("decimal")),
        },
        'f' | 'e' => {
            let number = match value {
                Value::Double(d) => *d,
                Value::Int(i) => *i as f64,
                Value::Uint(u) => *u as f64,
                _ => return Err(refuse("fixed-point")),
            };
            let digits = precision.unwrap_or(6);
            if !number.is_finite() {
                super::operators::show_double(number).trim_start_matches('+').to_owned()
            } else if verb == 'f' {
                format!("{number:.digits$}")
            } else {
                let text = format!("{number:.digits$e}");
                let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
                let exponent: i32 = exponent.parse().unwrap_or(0);
                let sign = if exponent < 0 { '-' } else { '+' };
                format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
            }
        }
        'b' => match value {
            Value::Bool(b) => u8::from(*b).to_string(),
            Value::Int(i) if *i < 0 => format!("-{:b}", i.unsigned_abs()),
            Value::Int(i) => format!("{i:b}"),
            Value::Uint(u) => format!("{u:b}"),
            _ => return Err(refuse("binary")),
        },
        'o' => match value {
            Value::Int(i) if *i < 0 => format!("-{:o}", i.unsigned_abs()),
            Value::Int(i) => format!("{i:o}"),
            Value::Uint(u) => format!("{u:o}"),
            _ => return Err(refuse("octal")),
        },
        'x' | 'X' => {
            let bytes = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
            let text = match value {
                Value::Int(i) if *i < 0 => format!("-{:x}", i.unsigned_abs()),
                Value::Int(i) => format!("{i:x}"),
                Value::Uint(u) => format!("{u:x}"),
                Value::String(s) => bytes(s.as_bytes()),
                Value::Bytes(b) => bytes(b),
                _ => return Err(refuse("hex")),
            };
            if verb == 'X' { text.to_ascii_uppercase() } else { text }
        }
        other => {
            return Err(Error::new(format!(
                "could not parse formatting clause: unrecognized formatting clause \"{other}\""
            )));
        }
    })
}

/// A value as text; lists and maps as literals.
fn string(value: &Value<'_>, work: &mut Work) -> Result<String, Error> {
    work.spend(1)?;
    match value {
        Value::List(list) => work.deeper(|work| {
            let mut out = String::from("[");
            for (at, item) in list.iter().enumerate() {
                if at > 0 {
                    out.push_str(", ");
                }
                out.push_str(&string(&item, work)?);
                fits(out.len())?;
            }
            out.push(']');
            Ok(out)
        }),
        Value::Map(map) => work.deeper(|work| {
            let mut parts = Vec::new();
            for key in map.keys() {
                if let Some(value) = map.get(&key) {
                    parts.push(format!("{}: {}", string(&key, work)?, string(&value, work)?));
                }
            }
            parts.sort_unstable();
            let out = format!("{{{}}}", parts.join(", "));
            fits(out.len())?;
            Ok(out)
        }),
        Value::Type(name) => Ok(name.to_string()),
        other => plain(other).ok_or_else(|| {
            Error::new(format!(
                "error during formatting: string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps, was given {}",
                other.type_name()
            ))
        }),
    }
}
