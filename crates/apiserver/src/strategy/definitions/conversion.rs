//! How objects are converted between the versions of a definition.

use api::field::{Cursor, ErrorList};
use api::names;
use base64::Engine as _;
use serde_json::Value;
use x509_parser::pem::Pem;

use crate::strategy::webhooks;

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
        (true, false) => webhooks::url(&url, errors),
        (false, true) => self::service(&service, errors),
        _ => errors.required(&config.path, "exactly one of url or service is required"),
    }
}

fn service(at: &Cursor<'_>, errors: &mut ErrorList) {
    // The reference takes one for the other here.
    for (field, shown, detail) in [
        ("namespace", "name", "service name is required"),
        ("name", "namespace", "service namespace is required"),
    ] {
        if at.key(field).str().is_empty() {
            errors.required(&at.key(shown).path, detail);
        }
    }
    webhooks::port(&at.key("port"), errors);
    webhooks::service_path(&at.key("path"), errors);
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
