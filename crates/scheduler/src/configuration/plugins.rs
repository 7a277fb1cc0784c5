//! Which plugins a profile runs, and with which weights.
use api::field::Cursor;
use serde_json::json;

use super::Problems;
use crate::filter::FILTERS;
use crate::profile::Profile;
use crate::score::SCORES;

/// The plugins there are, and the points they extend.
const PLUGINS: [(&str, &[&str]); 20] = [
    ("SchedulingGates", &["preEnqueue"]),
    ("PrioritySort", &["queueSort"]),
    ("NodeUnschedulable", &["filter"]),
    ("NodeName", &["filter"]),
    ("TaintToleration", &["filter", "preScore", "score"]),
    ("NodeAffinity", &["preFilter", "filter", "preScore", "score"]),
    ("NodePorts", &["preFilter", "filter"]),
    ("NodeResourcesFit", &["preFilter", "filter", "preScore", "score"]),
    ("VolumeRestrictions", &["preFilter", "filter"]),
    ("NodeVolumeLimits", &["preFilter", "filter"]),
    ("VolumeBinding", &["preFilter", "filter", "preScore", "score", "reserve", "preBind"]),
    ("VolumeZone", &["preFilter", "filter"]),
    ("PodTopologySpread", &["preFilter", "filter", "preScore", "score"]),
    ("InterPodAffinity", &["preFilter", "filter", "preScore", "score"]),
    ("DynamicResources", &["preEnqueue", "preFilter", "filter", "postFilter", "score", "reserve", "preBind"]),
    ("DefaultPreemption", &["preEnqueue", "postFilter"]),
    ("NodeResourcesBalancedAllocation", &["preScore", "score"]),
    ("ImageLocality", &["score"]),
    ("DefaultBinder", &["bind"]),
    ("NodeDeclaredFeatures", &["preFilter", "filter"]),
];

/// Plugins that were there once.
pub(super) const GONE: [&str; 4] = ["AzureDiskLimits", "CinderLimits", "EBSLimits", "GCEPDLimits"];

const POINTS: [&str; 13] = [
    "preEnqueue",
    "queueSort",
    "preFilter",
    "filter",
    "postFilter",
    "preScore",
    "score",
    "reserve",
    "permit",
    "preBind",
    "bind",
    "postBind",
    "multiPoint",
];

/// What a profile says of one extension point.
#[derive(Default)]
struct Set {
    enabled: Vec<(String, i64)>,
    disabled: Vec<String>,
}

impl Set {
    fn enables(&self, name: &str) -> Option<i64> {
        self.enabled.iter().find(|(n, _)| n == name).map(|(_, weight)| *weight)
    }

    fn disables(&self, name: &str) -> bool {
        self.disabled.iter().any(|n| n == name || n == "*")
    }
}

/// `ScorePlugin` of `score`.
fn type_of(point: &str) -> String {
    let (first, rest) = point.split_at(1);
    format!("{}{rest}Plugin", first.to_uppercase())
}

fn set(plugins: &Cursor<'_>, point: &str, problems: &mut Problems) -> Set {
    let at = plugins.key(point);
    let mut set = Set::default();
    for plugin in at.key("enabled").items() {
        let name = plugin.key("name");
        let known = PLUGINS.iter().find(|(known, _)| *known == name.str());
        if GONE.contains(&name.str()) {
            problems.errors.invalid(&plugin.path, &json!(name.str()), &gone());
        } else if known.is_none() {
            let text = format!("plugin {:?} does not exist", name.str());
            problems.errors.invalid(&plugin.path, &json!(name.str()), &text);
        } else if point != "multiPoint" && known.is_some_and(|(_, points)| !points.contains(&point)) {
            let text = format!("plugin {:?} does not extend {} plugin", name.str(), type_of(point));
            problems.errors.invalid(&plugin.path, &json!(name.str()), &text);
        } else if set.enables(name.str()).is_some() {
            let text = format!("plugin {:?} already registered", name.str());
            problems.errors.invalid(&plugin.path, &json!(name.str()), &text);
        }
        set.enabled.push((name.str().to_owned(), problems.number(&plugin.key("weight"), 0)));
    }
    for plugin in at.key("disabled").items() {
        set.disabled.push(plugin.key("name").str().to_owned());
    }
    set
}

/// The text about a plugin of [`GONE`].
pub(super) fn gone() -> String {
    format!("was invalid in version \"v1\" (KubeSchedulerConfiguration is version {:?})", super::VERSION)
}

/// Brings `plugins` of a profile into it.
pub(super) fn apply(at: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let multi = set(at, "multiPoint", problems);
    let mut sets = Vec::new();
    for point in POINTS.iter().filter(|p| **p != "multiPoint") {
        sets.push((*point, set(at, point, problems)));
    }
    // The weight with which a plugin runs at a point; 0: none given.
    let runs = |point: &str, name: &str| -> Option<i64> {
        let own = sets.iter().find(|(p, _)| *p == point).map(|(_, set)| set)?;
        if let Some(weight) = own.enables(name) {
            return Some(weight);
        }
        if own.disables(name) {
            return None;
        }
        match multi.enables(name) {
            Some(weight) => Some(weight),
            None if multi.disables(name) => None,
            None => Some(SCORES.iter().find(|s| s.name == name).map_or(0, |s| s.weight)),
        }
    };
    profile.filters = 0;
    for (i, filter) in FILTERS.iter().enumerate().filter(|(_, f)| runs("filter", f.name).is_some()) {
        let _ = filter;
        profile.filters |= 1 << i;
    }
    profile.weights = std::array::from_fn(|i| runs("score", SCORES[i].name).map_or(0, |w| w.max(1)));
    if runs("postFilter", "DefaultPreemption").is_none() {
        profile.preemption = None;
    }
    profile.deallocates = runs("postFilter", "DynamicResources").is_some();
    profile.gates = runs("preEnqueue", "SchedulingGates").is_some();
    let path = &at.path;
    if runs("queueSort", "PrioritySort").is_none() {
        problems.errors.required(&format!("{path}.queueSort"), "one queue sort plugin required for profile");
    }
    if runs("bind", "DefaultBinder").is_none() {
        problems.errors.required(&format!("{path}.bind"), "at least one bind plugin is needed for profile");
    }
}
