//! Probes and lifecycle handlers.

use api::field::{Cursor, ErrorList};
use serde_json::{Value, json};

use super::{addresses, numbers};

/// A probe; `kind` is the field it stands in.
pub(super) fn validate(p: &Cursor<'_>, kind: &str, grace: i64, errors: &mut ErrorList) {
    handler(p, &["exec", "httpGet", "tcpSocket", "grpc"], grace, errors);
    for key in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        numbers::non_negative(&p.key(key), errors);
    }
    let period = p.key("terminationGracePeriodSeconds");
    if period.exists() {
        if period.i64().is_some_and(|s| s <= 0) {
            errors.invalid(&period.path, period.json(), "must be greater than 0");
        }
        if kind == "readinessProbe" {
            errors.invalid(&period.path, period.json(), "must not be set for readinessProbes");
        }
    }
    let success = p.key("successThreshold");
    if kind != "readinessProbe" && success.i64().is_some_and(|n| n != 1) {
        errors.invalid(&success.path, success.json(), "must be 1");
    }
}

/// `postStart` and `preStop`.
pub(super) fn lifecycle(l: &Cursor<'_>, grace: i64, errors: &mut ErrorList) {
    for key in ["postStart", "preStop"] {
        if l.key(key).exists() {
            handler(&l.key(key), &["exec", "httpGet", "tcpSocket", "sleep"], grace, errors);
        }
    }
    let signal = l.key("stopSignal");
    if signal.exists() && !signal.str().starts_with("SIG") {
        errors.invalid(&signal.path, signal.json(), "must be a valid signal name");
    }
}

fn handler(h: &Cursor<'_>, kinds: &[&str], grace: i64, errors: &mut ErrorList) {
    let mut given = 0;
    for kind in kinds {
        let at = h.key(kind);
        if !at.exists() {
            continue;
        }
        given += 1;
        if given > 1 {
            errors.forbidden(&at.path, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" => {
                if at.key("command").is_empty() {
                    errors.required(&at.key("command").path, "");
                }
            }
            "httpGet" => http_get(&at, errors),
            "tcpSocket" => port(&at.key("port"), errors),
            "grpc" => port(&at.key("port"), errors),
            _ => {
                let seconds = at.key("seconds").i64().unwrap_or_default();
                if seconds < 0 || seconds > grace {
                    errors.invalid(
                        &at.path,
                        &json!(seconds),
                        &format!(
                            "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                        ),
                    );
                }
            }
        }
    }
    if given == 0 {
        errors.required(&h.path, "must specify a handler type");
    }
}

fn http_get(at: &Cursor<'_>, errors: &mut ErrorList) {
    if at.key("path").str().is_empty() {
        errors.required(&at.key("path").path, "");
    }
    port(&at.key("port"), errors);
    let scheme = at.key("scheme");
    if !matches!(scheme.str(), "HTTP" | "HTTPS") {
        errors.not_supported(&scheme.path, scheme.json(), &["HTTP", "HTTPS"]);
    }
    for header in at.key("httpHeaders").items() {
        let name = header.key("name").str();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            errors.invalid(
                &at.key("httpHeaders").path,
                &json!(name),
                &api::names::regex_error(
                    "a valid HTTP header must consist of alphanumeric characters or '-'",
                    "[-A-Za-z0-9]+",
                    &["X-Header-Name"],
                ),
            );
        }
    }
}

fn port(at: &Cursor<'_>, errors: &mut ErrorList) {
    match at.value {
        Some(Value::String(name)) => errors.invalid_all(&at.path, at.json(), addresses::port_name(name)),
        Some(_) => numbers::port(at, errors),
        None => errors.invalid(&at.path, &json!(0), "must be between 1 and 65535, inclusive"),
    }
}
