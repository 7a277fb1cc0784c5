//! Webhook configurations: defaults and validation. What a webhook's client configuration and a rule must look like
//! holds for conversions and admission policies, too.
//!
//! An update keeps what was allowed before stricter rules came (the reference's ratcheting): side effects, unknown review
//! versions and repeated names are refused only where the old object had none of them.

use api::field::{Cursor, ErrorList};
use api::names;
use serde_json::{Value, json};

use super::tree::{child, each, make, put_absent};
use super::{Strategy, label_selector};
use crate::cel::match_conditions;

/// Both kinds of webhook configuration.
pub(super) struct Configuration;

/// Versions of the review that servers know.
const REVIEWS: &[&str] = &["v1", "v1beta1"];
const NO_SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun"];
const SIDE_EFFECTS: &[&str] = &["None", "NoneOnDryRun", "Some", "Unknown"];

impl Strategy for Configuration {
    fn default(&self, object: &mut Value) {
        let mutating = object["kind"] == "MutatingWebhookConfiguration";
        for hook in each(object, "webhooks") {
            put_absent(hook, "failurePolicy", "Fail");
            put_absent(hook, "matchPolicy", "Equivalent");
            make(hook, "namespaceSelector");
            make(hook, "objectSelector");
            put_absent(hook, "timeoutSeconds", 10);
            if mutating {
                put_absent(hook, "reinvocationPolicy", "Never");
            }
            if let Some(service) = child(hook, "clientConfig").and_then(|c| child(c, "service")) {
                put_absent(service, "port", 443);
            }
            for rule in each(hook, "rules") {
                put_absent(rule, "scope", "*");
            }
        }
    }

    fn has_status(&self) -> bool {
        false
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        super::admission_policies::reserved_name(new, old)
    }

    fn validate_create(&self, object: &Value, errors: &mut ErrorList) {
        validate(object, &Strictness::ALL, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        validate(new, &Strictness::after(old, new), errors);
    }
}

/// Which of the newer rules hold.
struct Strictness {
    no_side_effects: bool,
    known_review: bool,
    unique_names: bool,
    /// Whether match conditions are looked at.
    conditions: bool,
}

impl Strictness {
    const ALL: Self =
        Self { no_side_effects: true, known_review: true, unique_names: true, conditions: true };

    /// Those that the old state met; conditions that no webhook changed stay as they are.
    fn after(old: &Value, new: &Value) -> Self {
        let conditions = |object: &Value| -> Vec<Value> {
            let hooks = object["webhooks"].as_array().into_iter().flatten();
            hooks.map(|h| h["matchConditions"].clone()).collect()
        };
        let hooks = || old["webhooks"].as_array().into_iter().flatten();
        let mut names: Vec<&str> = hooks().map(|h| h["name"].as_str().unwrap_or_default()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        Self {
            no_side_effects: hooks().all(|h| is_one(&h["sideEffects"], NO_SIDE_EFFECTS)),
            known_review: hooks().all(|h| {
                let versions = h["admissionReviewVersions"].as_array();
                versions.is_none_or(|l| l.is_empty() || l.iter().any(|v| is_one(v, REVIEWS)))
            }),
            unique_names: names.len() == count,
            conditions: conditions(old) != conditions(new),
        }
    }
}

fn is_one(value: &Value, list: &[&str]) -> bool {
    value.as_str().is_some_and(|v| list.contains(&v))
}

fn validate(object: &Value, strictness: &Strictness, errors: &mut ErrorList) {
    let mutating = object["kind"] == "MutatingWebhookConfiguration";
    let mut names: Vec<&str> = Vec::new();
    for hook in Cursor::root(object).key("webhooks").items() {
        webhook(&hook, mutating, strictness, errors);
        review_versions(&hook.key("admissionReviewVersions"), strictness.known_review, errors);
        let name = hook.key("name");
        if name.str().is_empty() {
            continue;
        }
        if strictness.unique_names && names.contains(&name.str()) {
            errors.duplicate(&name.path, name.json());
        }
        names.push(name.str());
    }
}

fn webhook(at: &Cursor<'_>, mutating: bool, strictness: &Strictness, errors: &mut ErrorList) {
    fully_qualified(&at.key("name"), errors);
    for rule in at.key("rules").items() {
        rule_with_operations(&rule, errors);
    }
    one_of(&at.key("failurePolicy"), &["Fail", "Ignore"], errors);
    one_of(&at.key("matchPolicy"), &["Equivalent", "Exact"], errors);
    let effects = at.key("sideEffects");
    let allowed = if strictness.no_side_effects { NO_SIDE_EFFECTS } else { SIDE_EFFECTS };
    if effects.exists() {
        one_of(&effects, allowed, errors);
    } else {
        errors.required(&effects.path, &format!("must specify one of {}", allowed.join(", ")));
    }
    let timeout = at.key("timeoutSeconds");
    if timeout.i64().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
        errors.invalid(&timeout.path, timeout.json(), "the timeout value must be between 1 and 30 seconds");
    }
    for key in ["namespaceSelector", "objectSelector"] {
        label_selector::validate(&at.key(key), errors);
    }
    if mutating {
        one_of(&at.key("reinvocationPolicy"), &["IfNeeded", "Never"], errors);
    }
    client_config(&at.key("clientConfig"), errors);
    if strictness.conditions {
        let conditions = at.key("matchConditions");
        match_conditions::validate(conditions.json(), &conditions.path, false, errors);
    }
}

/// Refuses a text that is not one of a list.
pub(super) fn one_of(at: &Cursor<'_>, supported: &[&str], errors: &mut ErrorList) {
    if at.exists() && !supported.contains(&at.str()) {
        errors.not_supported(&at.path, at.json(), supported);
    }
}

/// A domain of at least three segments.
fn fully_qualified(at: &Cursor<'_>, errors: &mut ErrorList) {
    let name = at.str();
    let wrong = names::dns1123_subdomain(name);
    if name.is_empty() {
        errors.required(&at.path, "");
    } else if !wrong.is_empty() {
        errors.invalid(&at.path, at.json(), &wrong.join(","));
    } else if name.split('.').count() < 3 {
        let why = "should be a domain with at least three segments separated by dots";
        errors.invalid(&at.path, at.json(), why);
    }
}

fn review_versions(at: &Cursor<'_>, known: bool, errors: &mut ErrorList) {
    let all = REVIEWS.join(", ");
    if at.is_empty() {
        errors.required(&at.path, &format!("must specify one of {all}"));
        return;
    }
    let mut seen: Vec<&str> = Vec::new();
    for version in at.items() {
        if seen.contains(&version.str()) {
            errors.invalid(&version.path, version.json(), "duplicate version");
            continue;
        }
        seen.push(version.str());
        errors.invalid_all(&version.path, version.json(), names::dns1035_label(version.str()));
    }
    if known && !seen.iter().any(|v| REVIEWS.contains(v)) {
        errors.invalid(&at.path, at.json(), &format!("must include at least one of {all}"));
    }
}

/// A rule of a webhook or an admission policy: operations on resources.
pub(super) fn rule_with_operations(at: &Cursor<'_>, errors: &mut ErrorList) {
    let operations = at.key("operations");
    if operations.is_empty() {
        errors.required(&operations.path, "");
    }
    alone(&operations, "if '*' is present, must not specify other operations", errors);
    for operation in operations.items() {
        one_of(&operation, &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"], errors);
    }
    let (groups, versions) = (at.key("apiGroups"), at.key("apiVersions"));
    if groups.is_empty() {
        errors.required(&groups.path, "");
    }
    alone(&groups, "if '*' is present, must not specify other API groups", errors);
    if versions.is_empty() {
        errors.required(&versions.path, "");
    }
    alone(&versions, "if '*' is present, must not specify other API versions", errors);
    for version in versions.items().filter(|v| v.str().is_empty()) {
        errors.required(&version.path, "");
    }
    resources(&at.key("resources"), errors);
    one_of(&at.key("scope"), &["*", "Cluster", "Namespaced"], errors);
}

/// Refuses `*` among others.
fn alone(at: &Cursor<'_>, why: &str, errors: &mut ErrorList) {
    if at.len() > 1 && at.items().any(|item| item.str() == "*") {
        errors.invalid(&at.path, at.json(), why);
    }
}

fn resources(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.is_empty() {
        errors.required(&at.path, "");
    }
    // what `x/*` and `*/y` take in already
    let (mut whole, mut everywhere): (Vec<&str>, Vec<&str>) = Default::default();
    let (mut all, mut star, mut plain) = (false, false, false);
    for item in at.items() {
        let text = item.str();
        if text.is_empty() {
            errors.required(&item.path, "");
            continue;
        }
        all |= text == "*/*";
        star |= text == "*";
        let Some((resource, sub)) = text.split_once('/') else {
            // as the reference has it, the last one without a subresource counts
            plain = text != "*";
            continue;
        };
        if whole.contains(&resource) {
            let why = format!("if '{resource}/*' is present, must not specify {text}");
            errors.invalid(&item.path, item.json(), &why);
        }
        if everywhere.contains(&sub) {
            let why = format!("if '*/{sub}' is present, must not specify {text}");
            errors.invalid(&item.path, item.json(), &why);
        }
        if sub == "*" {
            whole.push(resource);
        }
        if resource == "*" {
            everywhere.push(sub);
        }
    }
    if at.len() > 1 && all {
        errors.invalid(&at.path, at.json(), "if '*/*' is present, must not specify other resources");
    }
    if star && plain {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(&at.path, at.json(), why);
    }
}

/// Where a webhook is: a URL or a service.
pub(super) fn client_config(at: &Cursor<'_>, errors: &mut ErrorList) {
    let (by_url, by_service) = (at.key("url"), at.key("service"));
    match (by_url.exists(), by_service.exists()) {
        (true, false) => url(&by_url, errors),
        (false, true) => service(&by_service, errors),
        _ => errors.required(&at.path, "exactly one of url or service is required"),
    }
}

/// A URL as Go's parser takes it apart.
#[derive(Default)]
struct Url<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    query: &'a str,
    fragment: &'a str,
}

fn parse_url(text: &str) -> Result<Url<'_>, &'static str> {
    if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return Err("net/url: invalid control character in URL");
    }
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let is_scheme = |s: &str| {
        s.starts_with(|c: char| c.is_ascii_alphabetic())
            && s.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    let (scheme, rest) = match rest.split_once(':') {
        Some(("", _)) => return Err("missing protocol scheme"),
        Some((scheme, rest)) if is_scheme(scheme) => (scheme, rest),
        Some((before, _)) if !before.contains('/') => {
            return Err("first path segment in URL cannot contain colon");
        }
        _ => ("", rest),
    };
    let Some(authority) = rest.strip_prefix("//") else {
        return Ok(Url { scheme, query, fragment, ..Url::default() });
    };
    let authority = authority.split('/').next().unwrap_or_default();
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user), host),
        None => (None, authority),
    };
    let port = host.rsplit_once(']').map_or(host, |(_, after)| after).rsplit_once(':');
    if port.is_some_and(|(_, port)| !port.bytes().all(|b| b.is_ascii_digit())) {
        return Err("invalid port after host");
    }
    if host.contains(' ') {
        return Err("invalid character \" \" in host name");
    }
    Ok(Url { scheme, user, host, query, fragment })
}

/// A webhook's address: https, a host, and no more than a path.
pub(super) fn url(at: &Cursor<'_>, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let parts = match parse_url(at.str()) {
        Ok(parts) => parts,
        Err(why) => {
            let why = format!("url must be a valid URL: parse {}: {why}{FORM}", api::field::quote(at.str()));
            return errors.required(&at.path, &why);
        }
    };
    let mut refuse = |part: &str, why: &str| errors.invalid(&at.path, &json!(part), why);
    if parts.scheme != "https" {
        refuse(parts.scheme, &format!("'https' is the only allowed URL scheme{FORM}"));
    }
    if parts.host.is_empty() {
        refuse("", &format!("host must be provided{FORM}"));
    }
    if let Some(user) = parts.user {
        refuse(user, "user information is not permitted in the URL");
    }
    if !parts.fragment.is_empty() {
        refuse(parts.fragment, "fragments are not permitted in the URL");
    }
    if !parts.query.is_empty() {
        refuse(parts.query, "query parameters are not permitted in the URL");
    }
}

fn service(at: &Cursor<'_>, errors: &mut ErrorList) {
    for (key, why) in [("name", "service name is required"), ("namespace", "service namespace is required")] {
        if at.key(key).str().is_empty() {
            errors.required(&at.key(key).path, why);
        }
    }
    port(&at.key("port"), errors);
    service_path(&at.key("path"), errors);
}

/// The path behind a service's name.
pub(super) fn service_path(path: &Cursor<'_>, errors: &mut ErrorList) {
    let text = path.str();
    if matches!(text, "" | "/") {
        return;
    }
    if text == "//" {
        return errors.invalid(&path.path, path.json(), "segment[0] may not be empty");
    }
    let inner = text.strip_prefix('/');
    if inner.is_none() {
        errors.invalid(&path.path, path.json(), "must start with a '/'");
    }
    // the reference cuts the first character off, whatever it is
    let inner = inner.unwrap_or_else(|| text.split_at(text.chars().next().map_or(0, char::len_utf8)).1);
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    for (n, segment) in inner.split('/').enumerate() {
        if segment.is_empty() {
            errors.invalid(&path.path, path.json(), &format!("segment[{n}] may not be empty"));
            continue;
        }
        for why in names::dns1123_subdomain(segment) {
            errors.invalid(&path.path, path.json(), &format!("segment[{n}]: {why}"));
        }
    }
}

/// A port of a service that the server dials.
pub(super) fn port(at: &Cursor<'_>, errors: &mut ErrorList) {
    if !at.i64().is_some_and(|port| (1..=65535).contains(&port)) {
        let why = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&at.path, at.json(), why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(check: fn(&Cursor<'_>, &mut ErrorList), value: Value) -> Vec<String> {
        let mut errors = ErrorList::default();
        check(&Cursor::at(&value, "x"), &mut errors);
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn wildcards_among_resources_stand_alone() {
        assert_eq!(wrong(resources, json!(["pods", "*/status", "pods/*"])), [""; 0]);
        assert_eq!(
            wrong(resources, json!(["*", "pods"])),
            [
                r#"x: Invalid value: ["*","pods"]: if '*' is present, must not specify other resources without subresources"#
            ]
        );
        assert_eq!(
            wrong(resources, json!(["pods/*", "pods/log"])),
            [r#"x[1]: Invalid value: "pods/log": if 'pods/*' is present, must not specify pods/log"#]
        );
        assert_eq!(
            wrong(resources, json!(["*/*", "pods"])),
            [r#"x: Invalid value: ["*/*","pods"]: if '*/*' is present, must not specify other resources"#]
        );
    }

    #[test]
    fn a_url_is_taken_apart() {
        assert_eq!(wrong(url, json!("https://a:8443/b")), [""; 0]);
        assert_eq!(
            wrong(url, json!("https:///b")),
            [r#"x: Invalid value: "": host must be provided; desired format: https://host[/path]"#]
        );
        assert_eq!(
            wrong(url, json!("://b")),
            [
                r#"x: Required value: url must be a valid URL: parse "://b": missing protocol scheme; desired format: https://host[/path]"#
            ]
        );
    }

    #[test]
    fn a_path_of_a_service_has_segments() {
        let path = |p: &str| wrong(service, json!({"name": "a", "namespace": "b", "port": 443, "path": p}));
        assert_eq!(path("/a/b/"), [""; 0]);
        assert_eq!(path("//x"), [r#"x.path: Invalid value: "//x": segment[0] may not be empty"#]);
        assert_eq!(path("ax"), [r#"x.path: Invalid value: "ax": must start with a '/'"#]);
    }

    #[test]
    fn an_update_keeps_what_older_servers_allowed() {
        let with = |effects: &str| {
            json!({"kind": "ValidatingWebhookConfiguration", "webhooks": [{"name": "a.b.c",
            "sideEffects": effects, "admissionReviewVersions": ["v1"], "clientConfig": {"url": "https://a/"}}]})
        };
        let update = |old: &Value| {
            let mut errors = ErrorList::default();
            Configuration.validate_update(&with("Some"), old, &mut errors);
            errors.0.len()
        };
        assert_eq!((update(&with("Some")), update(&with("None"))), (0, 1));
    }
}
