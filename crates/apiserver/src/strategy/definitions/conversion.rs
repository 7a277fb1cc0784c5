//! How objects are converted between the versions of a definition.

use api::field::{Cursor, ErrorList};
use api::names;
use base64::Engine as _;
use serde_json::{Value, json};
use x509_parser::pem::Pem;

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Checks `spec.conversion`. A bundle of certificates that cannot be read is refused unless `bad_bundle_allowed`.
pub(super) fn check(
    at: &Cursor<'_>,
    must_know_review: bool,
    bad_bundle_allowed: bool,
    errors: &mut ErrorList,
) {
    if !at.exists() {
        return;
    }
    let strategy = at.key("strategy");
    super::one_of(&strategy, &["None", "Webhook"], errors);
    let webhook = at.key("webhook");
    let config = Cursor::at(webhook.key("clientConfig").json(), "spec.conversion.webhookClientConfig");
    let reviews = webhook.key("conversionReviewVersions");
    let reviews = Cursor::at(reviews.json(), "spec.conversion.conversionReviewVersions");
    if strategy.str() != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if config.exists() {
            errors.forbidden(&config.path, detail);
        }
        if !reviews.is_empty() {
            errors.forbidden(&reviews.path, detail);
        }
        return;
    }
    if config.exists() {
        client(&config, errors);
        let bundle = config.key("caBundle");
        if !bad_bundle_allowed && let Some(why) = bad_bundle(bundle.json()) {
            errors.invalid(&bundle.path, bundle.json(), &why);
        }
    } else {
        errors.required(&config.path, "required when strategy is set to Webhook");
    }
    review_versions(&reviews, must_know_review, errors);
}

fn client(config: &Cursor<'_>, errors: &mut ErrorList) {
    let (url, service) = (config.key("url"), config.key("service"));
    match (url.exists(), service.exists()) {
        (true, false) => webhook_url(&url, errors),
        (false, true) => webhook_service(&service, errors),
        _ => errors.required(&config.path, "exactly one of url or service is required"),
    }
}

/// A webhook's address: https, a host, and no more than a path.
fn webhook_url(at: &Cursor<'_>, errors: &mut ErrorList) {
    let form = "; desired format: https://host[/path]";
    let (rest, fragment) = at.str().split_once('#').unwrap_or((at.str(), ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let is_scheme = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
    };
    let (scheme, rest) = match rest.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_lowercase(), rest),
        _ => (String::new(), rest),
    };
    let authority = rest.strip_prefix("//").map_or("", |rest| rest.split('/').next().unwrap_or_default());
    let (user, host) =
        authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    let mut refuse = |value: &str, detail: &str| errors.invalid(&at.path, &json!(value), detail);
    if scheme != "https" {
        refuse(&scheme, &format!("'https' is the only allowed URL scheme{form}"));
    }
    if host.is_empty() {
        refuse("", &format!("host must be specified{form}"));
    }
    if let Some(user) = user {
        refuse(user, "user information is not permitted in the URL");
    }
    if !fragment.is_empty() {
        refuse(fragment, "fragments are not permitted in the URL");
    }
    if !query.is_empty() {
        refuse(query, "query parameters are not permitted in the URL");
    }
}

fn webhook_service(at: &Cursor<'_>, errors: &mut ErrorList) {
    // The reference takes one for the other here.
    for (field, shown) in [("namespace", "name"), ("name", "namespace")] {
        if at.key(field).str().is_empty() {
            errors.required(&at.key(shown).path, "");
        }
    }
    let port = at.key("port");
    if !(1..=65_535).contains(&port.i64().unwrap_or_default()) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&port.path, &json!(port.i64().unwrap_or_default()), detail);
    }
    let path = at.key("path");
    let mut refuse = |detail: &str| errors.invalid(&path.path, path.json(), detail);
    match path.str() {
        "" | "/" => {}
        "//" => refuse("segment[0] may not be empty"),
        text => {
            if !text.starts_with('/') {
                refuse("must start with a '/'");
            }
            let mut inner = text.chars();
            inner.next();
            let inner = inner.as_str();
            for (n, step) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
                if step.is_empty() {
                    refuse(&format!("segment[{n}] may not be empty"));
                    continue;
                }
                for wrong in names::dns1123_subdomain(step) {
                    refuse(&format!("segment[{n}]: {wrong}"));
                }
            }
        }
    }
}

/// Why a bundle of certificates (base64 of PEM) cannot be used; none for an empty one.
pub(super) fn bad_bundle(bundle: &Value) -> Option<String> {
    let text = bundle.as_str().filter(|text| !text.is_empty())?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    let blocks: Vec<Pem> = Pem::iter_from_buffer(&bytes).flatten().collect();
    let why = if blocks.is_empty() {
        "unable to parse bytes as PEM block".to_owned()
    } else {
        let mut certificates = blocks.iter().filter(|block| block.label == "CERTIFICATE").peekable();
        if certificates.peek().is_none() {
            "no valid certificate authority data seen".to_owned()
        } else if certificates.any(|block| block.parse_x509().is_ok()) {
            return None;
        } else {
            "failed to parse certificate: x509: malformed certificate".to_owned()
        }
    };
    Some(format!("unable to load root certificates: {why}"))
}

/// Whether the server speaks a version of ConversionReview.
pub(super) fn is_known_review(version: &Value) -> bool {
    version.as_str().is_some_and(|version| REVIEW_VERSIONS.contains(&version))
}

fn review_versions(at: &Cursor<'_>, must_know_one: bool, errors: &mut ErrorList) {
    if at.is_empty() {
        return errors.required(&at.path, "");
    }
    let mut seen = Vec::new();
    for version in at.items() {
        if seen.contains(&version.str()) {
            errors.invalid(&version.path, version.json(), "duplicate version");
            continue;
        }
        seen.push(version.str());
        errors.invalid_all(&version.path, version.json(), names::dns1035_label(version.str()));
    }
    if must_know_one && !at.items().any(|version| is_known_review(version.json())) {
        let detail = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.invalid(&at.path, at.json(), &detail);
    }
}
