//! What a request asks for, read from its method and URL alone.
//!
//! Rule: Kubernetes documentation, "Kubernetes API Concepts" (resource URIs, verbs).

use std::num::IntErrorKind;

use http::Method;

/// A decoded query string; a name may stand several times.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d`; broken escapes stay as they are.
    pub fn parse(text: &str) -> Self {
        Self(
            text.split('&')
                .filter(|p| !p.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
                })
                .collect(),
        )
    }

    /// The first value of `name`; empty where absent.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// Every value of `name`.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether `name` stands in the query.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(n, _)| n == name)
    }

    /// A switch: present and neither `0` nor `false`.
    pub fn flag(&self, name: &str) -> bool {
        self.has(name) && self.get(name) != "0" && !self.get(name).eq_ignore_ascii_case("false")
    }

    /// A whole number; none where absent. The error is that of Go's `strconv`.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, String> {
        if !self.has(name) {
            return Ok(None);
        }
        let text = self.get(name);
        text.parse().map(Some).map_err(|error: std::num::ParseIntError| {
            let why = match error.kind() {
                IntErrorKind::PosOverflow | IntErrorKind::NegOverflow => "value out of range",
                _ => "invalid syntax",
            };
            format!("strconv.ParseInt: parsing {}: {why}", api::field::quote(text))
        })
    }
}

/// Decodes percent escapes.
pub fn decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |i: usize| bytes.get(i).and_then(|b| (*b as char).to_digit(16));
        if bytes[at] == b'%'
            && let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2))
        {
            out.push((high * 16 + low) as u8);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What a request asks for.
#[derive(Debug, Clone, Default)]
pub struct RequestInfo {
    /// The path as sent, without the query.
    pub path: String,
    /// Whether the path names a resource of an API (else only `path` and `verb` count).
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the
    /// method in lower case.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace; empty for none.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Object name; empty for collections.
    pub name: String,
    /// Subresource; empty for none.
    pub subresource: String,
    /// What follows the subresource (`proxy`).
    pub rest: String,
    /// The query.
    pub query: Query,
}

impl RequestInfo {
    /// Reads method, path and query.
    pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Self {
        let mut info = Self {
            path: path.to_owned(),
            verb: method.as_str().to_ascii_lowercase(),
            query: Query::parse(query.unwrap_or_default()),
            ..Self::default()
        };
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        let mut rest: &[&str] = match parts[..] {
            ["api", version, ..] if parts.len() > 2 && !parts[2].is_empty() => {
                info.version = version.to_owned();
                &parts[2..]
            }
            ["apis", group, version, ..] if parts.len() > 3 && !parts[3].is_empty() => {
                info.group = group.to_owned();
                info.version = version.to_owned();
                &parts[3..]
            }
            _ => return info,
        };
        info.is_resource = true;
        let deprecated_watch = rest[0] == "watch" && rest.len() > 1;
        if deprecated_watch {
            rest = &rest[1..];
        }
        if rest[0] == "namespaces" && rest.len() > 1 {
            info.namespace = decode(rest[1]);
            // `namespaces/NAME/status` and `/finalize` are subresources of the namespace itself
            if rest.len() > 2 && !matches!(rest[2], "status" | "finalize" | "") {
                rest = &rest[2..];
            }
        }
        info.resource = rest[0].to_owned();
        info.name = rest.get(1).map(|n| decode(n)).unwrap_or_default();
        info.subresource = rest.get(2).map(|s| (*s).to_owned()).unwrap_or_default();
        info.rest = rest.get(3..).map(|r| r.join("/")).unwrap_or_default();
        info.verb = match *method {
            Method::POST => "create",
            Method::GET if deprecated_watch || info.query.flag("watch") => {
                if info.name.is_empty() || deprecated_watch || info.subresource.is_empty() {
                    "watch"
                } else {
                    "get"
                }
            }
            Method::GET if info.name.is_empty() => "list",
            Method::GET => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if info.name.is_empty() => "deletecollection",
            Method::DELETE => "delete",
            // what is behind a proxy takes every method
            Method::HEAD if info.subresource == "proxy" => "get",
            Method::OPTIONS if info.subresource == "proxy" => "options",
            _ => "",
        }
        .to_owned();
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: Method, url: &str, expected: &str) {
        let (path, query) = url.split_once('?').map_or((url, None), |(p, q)| (p, Some(q)));
        let i = RequestInfo::parse(&method, path, query);
        let text = format!(
            "{} {}/{} ns={} {}/{}/{}",
            i.verb, i.group, i.version, i.namespace, i.resource, i.name, i.subresource
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn urls_name_verb_resource_and_object() {
        check(Method::GET, "/api/v1/pods", "list /v1 ns= pods//");
        check(Method::GET, "/api/v1/pods?watch=1", "watch /v1 ns= pods//");
        check(Method::GET, "/api/v1/namespaces/a/pods/b/log", "get /v1 ns=a pods/b/log");
        check(Method::PUT, "/api/v1/namespaces/a/finalize", "update /v1 ns=a namespaces/a/finalize");
        check(Method::GET, "/api/v1/namespaces/a", "get /v1 ns=a namespaces/a/");
        check(Method::GET, "/api/v1/watch/namespaces/a/pods/b", "watch /v1 ns=a pods/b/");
        check(
            Method::DELETE,
            "/apis/apps/v1/namespaces/a/deployments",
            "deletecollection apps/v1 ns=a deployments//",
        );
        check(Method::GET, "/apis/apps/v1", "get / ns= //");
    }
}
