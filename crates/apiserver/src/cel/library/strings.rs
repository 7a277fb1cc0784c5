//! cel-go's string functions, version 2. Places count characters, not bytes.

use super::super::eval::{Error, Work};
use super::super::overloads::Declared;
use super::super::value::Value;
use super::operators::{fits, show};
use super::{int, text, text_format};

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "contains",
        signatures: "string.(string):bool",
        body: |work, args| {
            let (all, part) = (text(args, 0)?, text(args, 1)?);
            work.spend((all.len() + part.len()) as u64 / 16)?;
            Ok(Value::Bool(all.contains(part)))
        },
    },
    Declared {
        name: "startsWith",
        signatures: "string.(string):bool",
        body: |_, args| Ok(Value::Bool(text(args, 0)?.starts_with(text(args, 1)?))),
    },
    Declared {
        name: "endsWith",
        signatures: "string.(string):bool",
        body: |_, args| Ok(Value::Bool(text(args, 0)?.ends_with(text(args, 1)?))),
    },
    Declared {
        name: "charAt",
        signatures: "string.(int):string",
        body: |_, args| {
            let (all, at) = (text(args, 0)?, int(args, 1)?);
            let place = usize::try_from(at).map_err(|_| out_of_range(at))?;
            match all.chars().nth(place) {
                Some(c) => Ok(Value::text(c.to_string())),
                None if all.chars().count() == place => Ok(Value::text("")),
                None => Err(out_of_range(at)),
            }
        },
    },
    Declared {
        name: "indexOf",
        signatures: "string.(string):int string.(string,int):int",
        body: |work, args| find(work, args, false),
    },
    Declared {
        name: "lastIndexOf",
        signatures: "string.(string):int string.(string,int):int",
        body: |work, args| find(work, args, true),
    },
    Declared {
        name: "lowerAscii",
        signatures: "string.():string",
        body: |_, args| Ok(Value::text(text(args, 0)?.to_ascii_lowercase())),
    },
    Declared {
        name: "upperAscii",
        signatures: "string.():string",
        body: |_, args| Ok(Value::text(text(args, 0)?.to_ascii_uppercase())),
    },
    Declared {
        name: "trim",
        signatures: "string.():string",
        body: |_, args| Ok(Value::text(text(args, 0)?.trim())),
    },
    Declared {
        name: "replace",
        signatures: "string.(string,string):string string.(string,string,int):string",
        body: |work, args| {
            let (all, from, to) = (text(args, 0)?, text(args, 1)?, text(args, 2)?);
            let limit = match args.get(3) {
                None => usize::MAX,
                // a negative count means all
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                Some(_) => return Err(Error::no_overload()),
            };
            let most = if from.is_empty() { all.chars().count() + 1 } else { all.len() / from.len() };
            let times = if from.is_empty() { most } else { all.matches(from).count() }.min(limit);
            fits(all.len().saturating_add(times.saturating_mul(to.len())))?;
            work.spend(all.len() as u64 / 16 + times as u64)?;
            Ok(Value::text(all.replacen(from, to, limit.min(most))))
        },
    },
    Declared {
        name: "split",
        signatures: "string.(string):list(string) string.(string,int):list(string)",
        body: |work, args| {
            let (all, by) = (text(args, 0)?, text(args, 1)?);
            let limit = match args.get(2) {
                None => -1,
                Some(Value::Int(n)) => *n,
                Some(_) => return Err(Error::no_overload()),
            };
            work.spend(all.len() as u64)?;
            let parts = |most: usize| -> Vec<Value<'_>> {
                if !by.is_empty() {
                    return all.splitn(most, by).map(Value::text).collect();
                }
                // every character is a part; what is left over goes with the last
                let mut parts: Vec<Value<'_>> = Vec::new();
                let mut rest = all;
                while let Some(c) = rest.chars().next() {
                    if parts.len() + 1 == most {
                        parts.push(Value::text(rest));
                        break;
                    }
                    parts.push(Value::text(c.to_string()));
                    rest = &rest[c.len_utf8()..];
                }
                parts
            };
            Ok(Value::list(match limit {
                0 => Vec::new(),
                n => parts(usize::try_from(n).unwrap_or(usize::MAX)),
            }))
        },
    },
    Declared {
        name: "substring",
        signatures: "string.(int):string string.(int,int):string",
        body: |_, args| {
            let all = text(args, 0)?;
            let count = all.chars().count() as i64;
            let from = int(args, 1)?;
            let to = if args.len() > 2 { int(args, 2)? } else { count };
            if !(0..=count).contains(&from) {
                return Err(out_of_range(from));
            }
            if !(0..=count).contains(&to) {
                return Err(out_of_range(to));
            }
            if from > to {
                return Err(Error::new(format!("invalid substring range. start: {from}, end: {to}")));
            }
            Ok(Value::text(all.chars().skip(from as usize).take((to - from) as usize).collect::<String>()))
        },
    },
    Declared {
        name: "join",
        signatures: "list(string).():string list(string).(string):string",
        body: |work, args| {
            let Some(Value::List(list)) = args.first() else { return Err(Error::no_overload()) };
            let by = if args.len() > 1 { text(args, 1)? } else { "" };
            work.spend(list.len() as u64)?;
            let mut out = String::new();
            for (at, item) in list.iter().enumerate() {
                let Value::String(item) = item else { return Err(Error::no_overload()) };
                fits(out.len().saturating_add(item.len()).saturating_add(by.len()))?;
                if at > 0 {
                    out.push_str(by);
                }
                out.push_str(&item);
            }
            Ok(Value::text(out))
        },
    },
    Declared {
        name: "strings.quote",
        signatures: "(string):string",
        body: |_, args| {
            let mut out = String::from("\"");
            for c in text(args, 0)?.chars() {
                match c {
                    '\u{7}' => out.push_str("\\a"),
                    '\u{8}' => out.push_str("\\b"),
                    '\u{c}' => out.push_str("\\f"),
                    '\n' => out.push_str("\\n"),
                    '\r' => out.push_str("\\r"),
                    '\t' => out.push_str("\\t"),
                    '\u{b}' => out.push_str("\\v"),
                    '\\' => out.push_str("\\\\"),
                    '"' => out.push_str("\\\""),
                    c => out.push(c),
                }
            }
            out.push('"');
            Ok(Value::text(out))
        },
    },
    Declared {
        name: "format",
        signatures: "string.(list(dyn)):string",
        body: |work, args| {
            let Some(Value::List(values)) = args.get(1) else { return Err(Error::no_overload()) };
            text_format::format(text(args, 0)?, values, work).map(Value::text)
        },
    },
];

fn out_of_range(at: i64) -> Error {
    Error::new(format!("index out of range: {at}"))
}

/// The place, in characters, of the first (or last) occurrence; of a last one, at or before an offset.
fn find<'a>(work: &mut Work, args: &[Value<'a>], last: bool) -> Result<Value<'a>, Error> {
    let (all, part) = (text(args, 0)?, text(args, 1)?);
    work.spend((all.len() + part.len()) as u64 / 4)?;
    let count = all.chars().count() as i64;
    let byte = |at: i64| all.char_indices().nth(at as usize).map_or(all.len(), |(b, _)| b);
    let offset = if args.len() > 2 { Some(int(args, 2)?) } else { None };
    if let Some(at) = offset
        && (at < 0 || (!part.is_empty() && at > count) || (part.is_empty() && at > count))
    {
        return Err(out_of_range(at));
    }
    let found = if last {
        let end = match offset {
            // the occurrence may begin at the offset
            Some(at) => byte(at).saturating_add(part.len()).min(all.len()),
            None => all.len(),
        };
        let end = (end..=all.len()).find(|e| all.is_char_boundary(*e)).unwrap_or(all.len());
        all[..end].rfind(part)
    } else {
        let start = byte(offset.unwrap_or(0));
        all[start..].find(part).map(|at| at + start)
    };
    Ok(Value::Int(found.map_or(-1, |b| all[..b].chars().count() as i64)))
}

/// A value as a part of a text: what `%s` prints.
pub(super) fn plain(value: &Value<'_>) -> Option<String> {
    match value {
        Value::Null => Some("null".to_owned()),
        other => show(other),
    }
}
