//! The function libraries: CEL's own operators and functions, cel-go's extensions that Kubernetes turns on, and
//! Kubernetes' own. Each file declares its functions as a table of signatures and bodies.
//!
//! Rule: Kubernetes documentation, "Common Expression Language in Kubernetes"; what is turned on is that of
//! `MustBaseEnvSet` of the release.

pub(super) mod authz;
mod format;
mod lists;
mod net;
pub(super) mod operators;
mod optional;
mod patch;
pub(super) mod quantity;
mod regexes;
pub(super) mod semver;
mod sets;
mod strings;
mod text_format;
mod times;
mod urls;

use super::eval::Error;
use super::overloads::Declared;
use super::value::Value;

/// All tables.
pub(super) static ALL: &[&[Declared]] = &[
    operators::FUNCTIONS,
    authz::FUNCTIONS,
    format::FUNCTIONS,
    lists::FUNCTIONS,
    net::FUNCTIONS,
    optional::FUNCTIONS,
    patch::FUNCTIONS,
    quantity::FUNCTIONS,
    regexes::FUNCTIONS,
    semver::FUNCTIONS,
    sets::FUNCTIONS,
    strings::FUNCTIONS,
    times::FUNCTIONS,
    urls::FUNCTIONS,
];

/// A value of a library's own type.
#[derive(Debug, Clone)]
pub(super) enum Opaque {
    Quantity(api::quantity::Quantity),
    Url(urls::Url),
    Ip(std::net::IpAddr),
    Cidr(net::Cidr),
    Semver(semver::Version),
    Format(&'static format::Named),
    Authorizer(authz::Authorizer),
    PathCheck(authz::PathCheck),
    GroupCheck(authz::GroupCheck),
    ResourceCheck(authz::ResourceCheck),
    Decision(authz::Decision),
}

/// The names of the types, as signatures and as errors write them.
const NAMES: &[(&str, &str)] = &[
    ("Quantity", "kubernetes.Quantity"),
    ("URL", "kubernetes.URL"),
    ("IP", "net.IP"),
    ("CIDR", "net.CIDR"),
    ("Semver", "kubernetes.Semver"),
    ("NamedFormat", "kubernetes.NamedFormat"),
    ("Authorizer", "kubernetes.authorization.Authorizer"),
    ("PathCheck", "kubernetes.authorization.PathCheck"),
    ("GroupCheck", "kubernetes.authorization.GroupCheck"),
    ("ResourceCheck", "kubernetes.authorization.ResourceCheck"),
    ("Decision", "kubernetes.authorization.Decision"),
];

/// The full name of a type that signatures name shortly.
pub(super) fn opaque_name(short: &str) -> &'static str {
    NAMES.iter().find(|(s, _)| *s == short).map_or("dyn", |(_, full)| full)
}

/// The full name of a library's type, where it is one.
pub(super) fn known_type(full: &str) -> Option<&'static str> {
    NAMES.iter().find(|(_, f)| *f == full).map(|(_, f)| *f)
}

impl Opaque {
    pub(super) fn type_name(&self) -> &'static str {
        opaque_name(match self {
            Opaque::Quantity(_) => "Quantity",
            Opaque::Url(_) => "URL",
            Opaque::Ip(_) => "IP",
            Opaque::Cidr(_) => "CIDR",
            Opaque::Semver(_) => "Semver",
            Opaque::Format(_) => "NamedFormat",
            Opaque::Authorizer(_) => "Authorizer",
            Opaque::PathCheck(_) => "PathCheck",
            Opaque::GroupCheck(_) => "GroupCheck",
            Opaque::ResourceCheck(_) => "ResourceCheck",
            Opaque::Decision(_) => "Decision",
        })
    }

    /// What it counts for in costs.
    pub(super) fn size(&self) -> u64 {
        match self {
            Opaque::Ip(ip) => {
                if ip.is_ipv4() {
                    4
                } else {
                    16
                }
            }
            Opaque::Cidr(cidr) => cidr.size(),
            _ => 1,
        }
    }

    pub(super) fn equals(&self, other: &Opaque) -> bool {
        match (self, other) {
            (Opaque::Quantity(a), Opaque::Quantity(b)) => a == b,
            (Opaque::Url(a), Opaque::Url(b)) => a == b,
            (Opaque::Ip(a), Opaque::Ip(b)) => a == b,
            (Opaque::Cidr(a), Opaque::Cidr(b)) => a == b,
            (Opaque::Semver(a), Opaque::Semver(b)) => a == b,
            (Opaque::Format(a), Opaque::Format(b)) => a.name == b.name,
            _ => false,
        }
    }

    /// The value as text, where it has one.
    pub(super) fn show(&self) -> Option<String> {
        Some(match self {
            Opaque::Quantity(q) => q.to_string(),
            Opaque::Url(u) => u.text.clone(),
            Opaque::Ip(ip) => ip.to_string(),
            Opaque::Cidr(cidr) => cidr.to_string(),
            Opaque::Semver(version) => version.to_string(),
            _ => return None,
        })
    }
}

/// The text an argument is.
fn text<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v str, Error> {
    match args.get(at) {
        Some(Value::String(s)) => Ok(s),
        _ => Err(Error::no_overload()),
    }
}

/// The whole number an argument is.
fn int(args: &[Value<'_>], at: usize) -> Result<i64, Error> {
    match args.get(at) {
        Some(Value::Int(i)) => Ok(*i),
        _ => Err(Error::no_overload()),
    }
}

/// The library's value an argument is.
fn opaque<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v Opaque, Error> {
    match args.get(at) {
        Some(Value::Opaque(o)) => Ok(o),
        _ => Err(Error::no_overload()),
    }
}

fn made<'a>(value: Opaque) -> Value<'a> {
    Value::Opaque(std::sync::Arc::new(value))
}

/// Whether a text is a regular expression.
pub(super) fn regex_compiles(pattern: &str) -> bool {
    regexes::compile(pattern).is_ok()
}
