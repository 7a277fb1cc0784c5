//! Semantic versions: `semver('1.2.3').isLessThan(semver('2.0.0'))`.
//!
//! Rule: semver.org 2.0.0; with a second argument `true`, a leading `v`, missing parts and leading zeros are put right.

use std::cmp::Ordering;
use std::fmt;

use super::super::eval::Error;
use super::super::overloads::Declared;
use super::super::value::Value;
use super::{Opaque, made, opaque, text};

/// A version.
#[derive(Debug, Clone)]
pub(in super::super) struct Version {
    numbers: [u64; 3],
    pre: Vec<Part>,
    build: String,
}

/// An identifier of a pre-release: numbers come before words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(u64),
    Word(String),
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        for (at, part) in self.pre.iter().enumerate() {
            f.write_str(if at == 0 { "-" } else { "." })?;
            match part {
                Part::Number(n) => write!(f, "{n}")?,
                Part::Word(w) => f.write_str(w)?,
            }
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build)?;
        }
        Ok(())
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.order(other).is_eq()
    }
}

impl Version {
    fn order(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            // a release comes after its pre-releases
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => self.pre.cmp(&other.pre),
        })
    }
}

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "semver",
        signatures: "(string):Semver (string,bool):Semver",
        body: |_, args| parse(args).map(|v| made(Opaque::Semver(v))),
    },
    Declared {
        name: "isSemver",
        signatures: "(string):bool (string,bool):bool",
        body: |_, args| {
            text(args, 0)?;
            Ok(Value::Bool(parse(args).is_ok()))
        },
    },
    Declared { name: "major", signatures: "Semver.():int", body: |_, args| number(args, 0) },
    Declared { name: "minor", signatures: "Semver.():int", body: |_, args| number(args, 1) },
    Declared { name: "patch", signatures: "Semver.():int", body: |_, args| number(args, 2) },
    Declared {
        name: "isLessThan",
        signatures: "Semver.(Semver):bool",
        body: |_, args| Ok(Value::Bool(of(args, 0)?.order(of(args, 1)?).is_lt())),
    },
    Declared {
        name: "isGreaterThan",
        signatures: "Semver.(Semver):bool",
        body: |_, args| Ok(Value::Bool(of(args, 0)?.order(of(args, 1)?).is_gt())),
    },
    Declared {
        name: "compareTo",
        signatures: "Semver.(Semver):int",
        body: |_, args| Ok(Value::Int(of(args, 0)?.order(of(args, 1)?) as i64)),
    },
];

fn of<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v Version, Error> {
    match opaque(args, at)? {
        Opaque::Semver(version) => Ok(version),
        _ => Err(Error::no_overload()),
    }
}

fn number<'a>(args: &[Value<'a>], at: usize) -> Result<Value<'a>, Error> {
    Ok(Value::Int(i64::try_from(of(args, 0)?.numbers[at]).unwrap_or(i64::MAX)))
}

/// A version as a value.
pub(in super::super) fn version<'a>(given: &str) -> Result<Value<'a>, Error> {
    parse(&[Value::text(given)]).map(|v| made(Opaque::Semver(v)))
}

fn parse(args: &[Value<'_>]) -> Result<Version, Error> {
    let given = text(args, 0)?;
    let lenient = matches!(args.get(1), Some(Value::Bool(true)));
    let wrong = |why: &str| Error::new(why.to_owned());
    let (rest, build) = match given.split_once('+') {
        Some((_, "")) => return Err(wrong("build meta data is empty")),
        Some((rest, build)) => (rest, build),
        None => (given, ""),
    };
    let (core, pre) = match rest.split_once('-') {
        Some((core, pre)) => (core, Some(pre)),
        None => (rest, None),
    };
    let mut parts: Vec<&str> = if lenient { core.trim_start_matches('v') } else { core }.split('.').collect();
    while lenient && parts.len() < 3 && pre.is_none() && build.is_empty() {
        parts.push("0");
    }
    let [major, minor, patch] = parts[..] else { return Err(wrong("No Major.Minor.Patch elements found")) };
    let number = |text: &str| -> Result<u64, Error> {
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Error::new(format!("Invalid character(s) found in number {text:?}")));
        }
        if text.len() > 1 && text.starts_with('0') && !lenient {
            return Err(Error::new(format!("Number must not contain leading zeroes {text:?}")));
        }
        text.parse()
            .map_err(|_| Error::new(format!("strconv.ParseUint: parsing {text:?}: value out of range")))
    };
    let identifier = |part: &str| -> Result<Part, Error> {
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(Error::new(format!("Invalid character(s) found in prerelease {part:?}")));
        }
        if part.bytes().all(|b| b.is_ascii_digit()) {
            if part.len() > 1 && part.starts_with('0') {
                return Err(Error::new(format!(
                    "Numeric PreRelease version must not contain leading zeroes {part:?}"
                )));
            }
            return Ok(part.parse().map_or_else(|_| Part::Word(part.to_owned()), Part::Number));
        }
        Ok(Part::Word(part.to_owned()))
    };
    let pre = pre.map(|p| p.split('.').map(identifier).collect::<Result<Vec<_>, _>>()).transpose()?;
    let well_formed = |b: &str| !b.is_empty() && b.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !build.is_empty() && !build.split('.').all(well_formed) {
        return Err(wrong("Invalid character(s) found in build meta data"));
    }
    Ok(Version {
        numbers: [number(major)?, number(minor)?, number(patch)?],
        pre: pre.unwrap_or_default(),
        build: build.to_owned(),
    })
}
