//! Extenders of a configuration.
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use api::field::Cursor;
use serde_json::json;

use super::{Problems, duration};
use crate::extender::{Settings, Tls};

/// How long an extender may take unless it is said.
const TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn read(list: &Cursor<'_>, problems: &mut Problems) -> Vec<Settings> {
    let mut managed = HashSet::new();
    let extenders: Vec<Settings> = list.items().map(|at| extender(&at, &mut managed, problems)).collect();
    let binders = extenders.iter().filter(|e| !e.bind_verb.is_empty()).count();
    if binders > 1 {
        let value = json!(format!("found {binders} extenders implementing bind"));
        problems.errors.invalid(&list.path, &value, "only one extender can implement bind");
    }
    extenders
}

fn extender(at: &Cursor<'_>, managed: &mut HashSet<String>, problems: &mut Problems) -> Settings {
    let text = |name: &str| at.key(name).str().to_owned();
    let flag = |name: &str| at.key(name).bool() == Some(true);
    let weight = at.key("weight");
    let value = problems.number(&weight, 0);
    if !text("prioritizeVerb").is_empty() && value <= 0 {
        problems.errors.invalid(&weight.path, &json!(value), "must have a positive weight applied to it");
    }
    let timeout = at.key("httpTimeout");
    let timeout = match duration(timeout.str()) {
        Some(time) if time.is_zero() => TIMEOUT,
        Some(time) => time,
        None => {
            problems.errors.invalid(&timeout.path, timeout.json(), "must be a duration such as 5s");
            TIMEOUT
        }
    };
    let mut resources = Vec::new();
    for resource in at.key("managedResources").items() {
        let name = resource.key("name");
        let wrong = api::names::qualified_name(name.str());
        if wrong.is_empty() && !is_extended(name.str()) {
            problems.errors.invalid(&name.path, name.json(), "is an invalid extended resource name");
        }
        problems.errors.invalid_all(&name.path, name.json(), wrong);
        if !managed.insert(name.str().to_owned()) {
            problems.errors.invalid(&name.path, name.json(), "duplicate extender managed resource name");
        }
        resources.push((name.str().to_owned(), resource.key("ignoredByScheduler").bool() == Some(true)));
    }
    Settings {
        url_prefix: text("urlPrefix").trim_end_matches('/').to_owned(),
        filter_verb: text("filterVerb"),
        preempt_verb: text("preemptVerb"),
        prioritize_verb: text("prioritizeVerb"),
        bind_verb: text("bindVerb"),
        weight: value,
        https: flag("enableHTTPS"),
        tls: tls(&at.key("tlsConfig"), problems),
        timeout,
        node_cache_capable: flag("nodeCacheCapable"),
        managed: resources,
        ignorable: flag("ignorable"),
    }
}

/// A name with a domain that is not Kubernetes' own.
fn is_extended(name: &str) -> bool {
    let domain = name.split_once('/').map(|(domain, _)| domain);
    !name.starts_with("requests.")
        && domain.is_some_and(|d| d != "kubernetes.io" && !d.ends_with(".kubernetes.io"))
}

fn tls(at: &Cursor<'_>, problems: &mut Problems) -> Tls {
    use base64::Engine as _;
    let file = |name: &str| Some(at.key(name).str()).filter(|t| !t.is_empty()).map(PathBuf::from);
    let mut data = |name: &str| -> Option<Vec<u8>> {
        let field = at.key(name);
        if field.str().is_empty() {
            return None;
        }
        match base64::engine::general_purpose::STANDARD.decode(field.str()) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                // Keys stay out of messages.
                problems.errors.invalid_shown(&field.path, "<data>", &error.to_string());
                None
            }
        }
    };
    Tls {
        insecure: at.key("insecure").bool() == Some(true),
        server_name: at.key("serverName").str().to_owned(),
        cert_data: data("certData"),
        key_data: data("keyData"),
        ca_data: data("caData"),
        cert_file: file("certFile"),
        key_file: file("keyFile"),
        ca_file: file("caFile"),
    }
}
