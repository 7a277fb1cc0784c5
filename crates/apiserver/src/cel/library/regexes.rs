//! Regular expressions: CEL's `matches`, Kubernetes' `find` and `findAll`. The `regex` crate takes time linear in the text,
//! as RE2 does.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use api::structural::Pattern;
use parking_lot::Mutex;
use regex::Regex;

use super::super::eval::{Error, Work};
use super::super::overloads::Declared;
use super::super::value::Value;
use super::text;

/// Patterns that are kept compiled.
const KEPT: usize = 512;

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "matches",
        signatures: "(string,string):bool string.(string):bool",
        body: |work, args| {
            let regex = prepared(work, args)?;
            Ok(Value::Bool(regex.is_match(text(args, 0)?)))
        },
    },
    Declared {
        name: "find",
        signatures: "string.(string):string",
        body: |work, args| {
            let regex = prepared(work, args)?;
            let found = regex.find(text(args, 0)?).map_or("", |m| m.as_str());
            Ok(Value::text(found))
        },
    },
    Declared {
        name: "findAll",
        signatures: "string.(string):list(string) string.(string,int):list(string)",
        body: |work, args| {
            let regex = prepared(work, args)?;
            let limit = match args.get(2) {
                None => usize::MAX,
                Some(Value::Int(n)) => usize::try_from(*n).unwrap_or(usize::MAX),
                Some(_) => return Err(Error::no_overload()),
            };
            let found = regex.find_iter(text(args, 0)?).take(limit).map(|m| Value::text(m.as_str()));
            let found: Vec<_> = found.collect();
            work.spend(found.len() as u64)?;
            Ok(Value::list(found))
        },
    },
];

fn prepared(work: &mut Work, args: &[Value<'_>]) -> Result<Regex, Error> {
    let (subject, pattern) = (text(args, 0)?, text(args, 1)?);
    work.spend((subject.len() + pattern.len()) as u64)?;
    compile(pattern).map_err(Error::new)
}

/// A pattern, compiled once however often it is asked for.
pub(in super::super) fn compile(pattern: &str) -> Result<Regex, String> {
    static COMPILED: LazyLock<Mutex<HashMap<String, Arc<Pattern>>>> = LazyLock::new(Mutex::default);
    let known = COMPILED.lock().get(pattern).cloned();
    let compiled = known.unwrap_or_else(|| {
        let fresh = Arc::new(Pattern::new(pattern));
        let mut compiled = COMPILED.lock();
        if compiled.len() >= KEPT {
            compiled.clear();
        }
        compiled.insert(pattern.to_owned(), fresh.clone());
        fresh
    });
    compiled.compiled().cloned().map_err(str::to_owned)
}
