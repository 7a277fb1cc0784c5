//! URLs, taken apart as Go's `net/url` does: `url('https://a:80/b?c=d').getHostname()`.

use std::collections::BTreeMap;

use super::super::eval::Error;
use super::super::overloads::Declared;
use super::super::value::{Key, Map, Value};
use super::{Opaque, made, opaque, text};

/// A URL's parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Url {
    pub(super) text: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "url",
        signatures: "(string):URL",
        body: |_, args| parse(text(args, 0)?).map(|u| made(Opaque::Url(u))),
    },
    Declared {
        name: "isURL",
        signatures: "(string):bool",
        body: |_, args| Ok(Value::Bool(parse(text(args, 0)?).is_ok())),
    },
    Declared {
        name: "getScheme",
        signatures: "URL.():string",
        body: |_, args| Ok(Value::text(of(args)?.scheme.as_str())),
    },
    Declared {
        name: "getHost",
        signatures: "URL.():string",
        body: |_, args| Ok(Value::text(of(args)?.host.as_str())),
    },
    Declared {
        name: "getHostname",
        signatures: "URL.():string",
        body: |_, args| Ok(Value::text(split_port(&of(args)?.host).0)),
    },
    Declared {
        name: "getPort",
        signatures: "URL.():string",
        body: |_, args| Ok(Value::text(split_port(&of(args)?.host).1)),
    },
    Declared {
        name: "getEscapedPath",
        signatures: "URL.():string",
        body: |_, args| Ok(Value::text(of(args)?.path.as_str())),
    },
    Declared {
        name: "getQuery",
        signatures: "URL.():map(string,list(string))",
        body: |work, args| {
            let mut query: BTreeMap<Key, Vec<Value<'_>>> = BTreeMap::new();
            for pair in of(args)?.query.split('&').filter(|p| !p.is_empty() && !p.contains(';')) {
                work.spend(1)?;
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                let (Some(key), Some(value)) = (unescape(key, true), unescape(value, true)) else { continue };
                query.entry(Key::String(key.into())).or_default().push(Value::text(value));
            }
            Ok(Value::Map(Map::made(query.into_iter().map(|(k, v)| (k, Value::list(v))).collect())))
        },
    },
];

fn of<'v>(args: &'v [Value<'_>]) -> Result<&'v Url, Error> {
    match opaque(args, 0)? {
        Opaque::Url(url) => Ok(url),
        _ => Err(Error::no_overload()),
    }
}

/// As `url.ParseRequestURI`: an absolute URL or an absolute path; what follows `#` is a part of the path.
fn parse(text: &str) -> Result<Url, Error> {
    let wrong = |why: &str| {
        Error::new(format!("URL parse error during conversion from string: parse {text:?}: {why}"))
    };
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err(wrong("net/url: invalid control character in URL"));
    }
    if text.is_empty() {
        return Err(wrong("empty url"));
    }
    let (scheme, rest) = match text.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c))) {
        Some(0) if text.starts_with(':') => return Err(wrong("missing protocol scheme")),
        Some(at) if text[at..].starts_with(':') && text.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            (text[..at].to_ascii_lowercase(), &text[at + 1..])
        }
        _ => (String::new(), text),
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !rest.starts_with('/') {
        // `mailto:x`: everything is opaque
        if scheme.is_empty() {
            return Err(wrong("invalid URI for request"));
        }
        return Ok(Url {
            text: text.to_owned(),
            scheme,
            host: String::new(),
            path: String::new(),
            query: query.to_owned(),
        });
    }
    let (mut host, mut path) = (String::new(), rest);
    // three slashes without a scheme are a path
    if (!scheme.is_empty() || !rest.starts_with("///"))
        && let Some(authority) = rest.strip_prefix("//")
    {
        let end = authority.find('/').unwrap_or(authority.len());
        let (all, after) = authority.split_at(end);
        let given = all.rsplit_once('@').map_or(all, |(_, host)| host);
        host = unescape(given, false).ok_or_else(|| wrong("invalid URL escape"))?;
        check_host(&host).map_err(|why| wrong(&why))?;
        path = after;
    }
    if unescape(path, false).is_none() {
        let at = path.find('%').unwrap_or(0);
        let bad: String = path[at..].chars().take(3).collect();
        return Err(wrong(&format!("invalid URL escape {bad:?}")));
    }
    Ok(Url { text: text.to_owned(), scheme, host, path: escape_path(path), query: query.to_owned() })
}

fn check_host(host: &str) -> Result<(), String> {
    let after = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("missing ']' in host")?.1,
        None => match host.rfind(':') {
            Some(at) => &host[at..],
            None => "",
        },
    };
    let digits = after.strip_prefix(':').unwrap_or(if after.is_empty() { "" } else { "x" });
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("invalid port {after:?} after host"));
    }
    match host.chars().find(|c| matches!(c, ' ' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}')) {
        Some(c) => Err(format!("invalid character {:?} in host name", c.to_string())),
        None => Ok(()),
    }
}

/// Host without brackets, and port.
fn split_port(host: &str) -> (&str, &str) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, port),
        _ => (host, ""),
    };
    (name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name), port)
}

fn unescape(text: &str, plus: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let pair = [bytes.next()?, bytes.next()?];
                out.push(u8::from_str_radix(std::str::from_utf8(&pair).ok()?, 16).ok()?);
            }
            b'+' if plus => out.push(b' '),
            other => out.push(other),
        }
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

/// A path with everything escaped that has to be.
fn escape_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for b in path.bytes() {
        if b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// Whether a text is a URL or an absolute path.
pub(super) fn is_absolute(text: &str) -> bool {
    parse(text).is_ok()
}
