//! Webhook configurations as data that can be matched against requests at once.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use api::kinds::Kind;
use api::selector::LabelSelector;
use serde_json::Value;

use super::matching::Rule;
use crate::cel::match_conditions::MatchConditions;
use crate::watch_cache::WatchCache;
use crate::webhook::{Hook, Hooks};

/// Where the object does not say it.
const TIMEOUT: u64 = 10;

/// The two kinds of configuration: mutating, validating.
pub(super) fn configuration_kinds() -> [&'static Arc<Kind>; 2] {
    static KINDS: LazyLock<[Option<&'static Arc<Kind>>; 2]> = LazyLock::new(|| {
        ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"]
            .map(|plural| api::kinds::find("admissionregistration.k8s.io", "v1", plural))
    });
    KINDS.map(|kind| kind.expect("the table of kinds has the webhook configurations"))
}

/// All webhooks of one state of the configurations.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    /// Revisions of the last change to configurations: mutating, validating.
    pub(super) state: [u64; 2],
    pub(super) mutating: Vec<Arc<Webhook>>,
    pub(super) validating: Vec<Arc<Webhook>>,
}

impl Compiled {
    pub(super) fn new(state: [u64; 2], cache: &WatchCache, hooks: &Hooks) -> Self {
        let [mutating, validating] = configuration_kinds().map(|kind| {
            // the cache's order is that of names, which is the order of webhooks
            let configurations = cache.list(kind, &kind.storage_prefix, None).items;
            configurations.iter().flat_map(|c| webhooks(c.name(), c.value(), hooks)).collect()
        });
        Self { state, mutating, validating }
    }
}

/// One webhook of a configuration.
#[derive(Debug)]
pub(super) struct Webhook {
    /// The name of the configuration it is in.
    pub(super) configuration: String,
    pub(super) name: String,
    /// Tells it from all others: configuration, name, and which of that name.
    pub(super) uid: String,
    pub(super) rules: Vec<Rule>,
    /// Whether requests for the same objects in other versions count.
    pub(super) equivalent: bool,
    pub(super) namespaces: LabelSelector,
    pub(super) objects: LabelSelector,
    pub(super) conditions: MatchConditions,
    /// Whether the request is refused where the webhook cannot be asked.
    pub(super) fails_closed: bool,
    pub(super) timeout: Duration,
    /// Whether a dry run may be shown to it.
    pub(super) takes_dry_run: bool,
    /// Versions of the review it takes, best first.
    pub(super) versions: Vec<String>,
    /// Whether it runs again where something changed after it.
    pub(super) again: bool,
    /// Whom to call; or why nobody can be called.
    pub(super) hook: Result<Arc<Hook>, String>,
}

fn webhooks(configuration: &str, value: &Value, hooks: &Hooks) -> Vec<Arc<Webhook>> {
    let mut made: Vec<Arc<Webhook>> = Vec::new();
    for webhook in value["webhooks"].as_array().into_iter().flatten() {
        let text = |key: &str| webhook[key].as_str().unwrap_or_default();
        let name = text("name").to_owned();
        let same_name = made.iter().filter(|w| w.name == name).count();
        // a selector that cannot be read was refused when it was written; it selects nothing
        let selector =
            |key: &str| LabelSelector::from_value(&webhook[key]).unwrap_or_else(|_| LabelSelector::nothing());
        made.push(Arc::new(Webhook {
            uid: format!("{configuration}/{name}/{same_name}"),
            configuration: configuration.to_owned(),
            rules: list(webhook, "rules").map(Rule::new).collect(),
            equivalent: text("matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            conditions: MatchConditions::new(&webhook["matchConditions"], false),
            fails_closed: text("failurePolicy") != "Ignore",
            timeout: Duration::from_secs(webhook["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT)),
            takes_dry_run: matches!(text("sideEffects"), "None" | "NoneOnDryRun"),
            versions: list(webhook, "admissionReviewVersions")
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect(),
            again: text("reinvocationPolicy") == "IfNeeded",
            hook: hooks.of(&webhook["clientConfig"]).map_err(|e| e.to_string()),
            name,
        }));
    }
    made
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}
