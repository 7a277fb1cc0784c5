//! Arguments of plugins.
use std::collections::HashSet;
use std::time::Duration;

use api::field::Cursor;
use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::plugins::{GONE, gone};
use super::{Problems, duration};
use crate::filter::node_affinity::Selection;
use crate::profile::{PreemptionArgs, Profile, Strategy, default_resources};

/// Brings `pluginConfig` of a profile into it.
pub(super) fn apply(list: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let mut seen = HashSet::new();
    for at in list.items() {
        let (name, args) = (at.key("name").str(), at.key("args"));
        if !seen.insert(name) {
            problems.errors.duplicate(&at.path, &json!(name));
        }
        if GONE.contains(&name) {
            problems.errors.invalid(&at.path, &json!(name), &gone());
            continue;
        }
        match name {
            "DefaultPreemption" => preemption(&args, profile, problems),
            "InterPodAffinity" => affinity(&args, profile, problems),
            "NodeAffinity" => added_affinity(&args.key("addedAffinity"), profile, problems),
            "NodeResourcesBalancedAllocation" => balanced(&args.key("resources"), profile, problems),
            "NodeResourcesFit" => fit(&args, profile, problems),
            "PodTopologySpread" => spread(&args, profile, problems),
            "VolumeBinding" => binding(&args, profile, problems),
            "DynamicResources" => devices(&args, profile, problems),
            _ => {}
        }
    }
}

fn typed<T: DeserializeOwned>(at: &Cursor<'_>, problems: &mut Problems) -> Option<T> {
    match serde_json::from_value(at.json().clone()) {
        Ok(value) => Some(value),
        Err(error) => {
            problems.errors.type_invalid(&at.path, at.json(), &error.to_string());
            None
        }
    }
}

fn preemption(args: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let (percentage, absolute) =
        (args.key("minCandidateNodesPercentage"), args.key("minCandidateNodesAbsolute"));
    let (percent, number) = (problems.number(&percentage, 10), problems.number(&absolute, 100));
    if !(0..=100).contains(&percent) {
        problems.errors.invalid(&percentage.path, &json!(percent), "not in valid range [0, 100]");
    }
    if number < 0 {
        problems.errors.invalid(&absolute.path, &json!(number), "not in valid range [0, inf)");
    }
    if percent == 0 && number == 0 {
        let zero = |other: &str| format!("cannot be zero at the same time as {other}");
        problems.errors.invalid(&percentage.path, &json!(0), &zero("minCandidateNodesAbsolute"));
        problems.errors.invalid(&absolute.path, &json!(0), &zero("minCandidateNodesPercentage"));
    }
    let size = |n: i64| usize::try_from(n).unwrap_or(0);
    if let Some(args) = &mut profile.preemption {
        *args =
            PreemptionArgs { min_candidate_percentage: size(percent), min_candidate_absolute: size(number) };
    }
}

fn affinity(args: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let at = args.key("hardPodAffinityWeight");
    let weight = problems.number(&at, 1);
    if !(0..=100).contains(&weight) {
        problems.errors.invalid(&at.path, at.json(), "not in valid range [0, 100]");
    }
    profile.affinity.hard_weight = weight;
    profile.affinity.ignore_preferred_of_existing =
        args.key("ignorePreferredTermsOfExistingPods").bool() == Some(true);
}

fn added_affinity(at: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    if !at.exists() {
        return;
    }
    const OPERATORS: [&str; 6] = ["DoesNotExist", "Exists", "Gt", "In", "Lt", "NotIn"];
    let required = at.key("requiredDuringSchedulingIgnoredDuringExecution").key("nodeSelectorTerms");
    let preferred = at.key("preferredDuringSchedulingIgnoredDuringExecution");
    let terms = required.items().chain(preferred.items().map(|p| p.key("preference")));
    for term in terms {
        for requirement in term.key("matchExpressions").items().chain(term.key("matchFields").items()) {
            let operator = requirement.key("operator");
            if !OPERATORS.contains(&operator.str()) {
                problems.errors.not_supported(&operator.path, operator.json(), &OPERATORS);
            }
        }
    }
    if let Some(affinity) = typed::<NodeAffinity>(at, problems) {
        profile.added_affinity = Selection::compile(&affinity);
    }
}

/// Names and weights; a weight that is not given is 1.
fn resources(at: &Cursor<'_>, problems: &mut Problems) -> Vec<(String, i64)> {
    let mut list = Vec::new();
    for resource in at.items() {
        let weight = problems.number(&resource.key("weight"), 1);
        list.push((resource.key("name").str().to_owned(), if weight == 0 { 1 } else { weight }));
    }
    if list.is_empty() { default_resources() } else { list }
}

fn balanced(at: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let list = resources(at, problems);
    let mut seen = HashSet::new();
    for (i, (name, weight)) in list.iter().enumerate() {
        if !seen.insert(name) {
            problems.errors.duplicate(&format!("{}[{i}].name", at.path), &json!(name));
        }
        if *weight != 1 {
            problems.errors.invalid(&format!("{}[{i}].weight", at.path), &json!(weight), "must be 1");
        }
    }
    profile.balanced = list.into_iter().map(|(name, _)| name).collect();
}

fn fit(args: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let texts = |at: &Cursor<'_>| at.items().map(|t| t.str().to_owned()).collect::<Vec<_>>();
    let (ignored, groups) = (args.key("ignoredResources"), args.key("ignoredResourceGroups"));
    for name in ignored.items() {
        problems.errors.invalid_all(&name.path, name.json(), api::names::qualified_name(name.str()));
    }
    for group in groups.items() {
        if group.str().contains('/') {
            problems.errors.invalid(&group.path, group.json(), "resource group name can't contain '/'");
        }
        problems.errors.invalid_all(&group.path, group.json(), api::names::qualified_name(group.str()));
    }
    (profile.fit.ignored, profile.fit.ignored_groups) = (texts(&ignored), texts(&groups));
    let at = args.key("scoringStrategy");
    if !at.exists() {
        return;
    }
    let list = resources(&at.key("resources"), problems);
    for (i, (name, weight)) in list.iter().enumerate().filter(|(_, (_, w))| !(1..=100).contains(w)) {
        let text = format!("resource weight of {name} not in valid range (0, 100]");
        problems.errors.invalid(&format!("{}.resources[{i}].weight", at.path), &json!(weight), &text);
    }
    profile.fit.resources = list;
    let (kind, ratio) = (at.key("type"), at.key("requestedToCapacityRatio"));
    if ratio.exists() && kind.str() != "RequestedToCapacityRatio" {
        problems.errors.forbidden(&ratio.path, "must be nil when type is not RequestedToCapacityRatio");
    }
    profile.fit.strategy = match kind.str() {
        "LeastAllocated" | "" => Strategy::Least,
        "MostAllocated" => Strategy::Most,
        "RequestedToCapacityRatio" if ratio.exists() => Strategy::Shape(shape(&ratio.key("shape"), problems)),
        "RequestedToCapacityRatio" => {
            problems.errors.required(&ratio.path, "must be specified when type is RequestedToCapacityRatio");
            Strategy::Least
        }
        _ => {
            let known = ["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
            problems.errors.not_supported(&kind.path, kind.json(), &known);
            Strategy::Least
        }
    };
}

/// Points of utilisation and score; scores are given from 0 to 10.
fn shape(at: &Cursor<'_>, problems: &mut Problems) -> Vec<(i64, i64)> {
    let mut points: Vec<(i64, i64)> = Vec::new();
    for point in at.items() {
        let (x, y) = (point.key("utilization"), point.key("score"));
        let (utilization, score) = (problems.number(&x, 0), problems.number(&y, 0));
        if points.last().is_some_and(|(last, _)| *last >= utilization) {
            problems.errors.invalid(&x.path, x.json(), "values must be sorted in increasing order");
        }
        if !(0..=100).contains(&utilization) {
            problems.errors.invalid(&x.path, x.json(), "not in valid range [0, 100]");
        }
        if !(0..=10).contains(&score) {
            problems.errors.invalid(&y.path, y.json(), "not in valid range [0, 10]");
        }
        points.push((utilization, score * 10));
    }
    if points.is_empty() {
        problems.errors.required(&at.path, "at least one point must be specified");
    }
    points
}

fn spread(args: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let (list, kind) = (args.key("defaultConstraints"), args.key("defaultingType"));
    let system = match kind.str() {
        // What is not said follows from whether there is a list.
        "" => list.is_empty(),
        "System" => true,
        "List" => false,
        _ => {
            problems.errors.not_supported(&kind.path, kind.json(), &["System", "List"]);
            false
        }
    };
    if kind.str() == "System" && !list.is_empty() {
        problems.errors.invalid(&kind.path, kind.json(), "when .defaultConstraints are not empty");
    }
    let mut seen = HashSet::new();
    for c in list.items() {
        let (skew, key) = (c.key("maxSkew"), c.key("topologyKey"));
        if problems.number(&skew, 0) <= 0 {
            problems.errors.invalid(&skew.path, skew.json(), "not in valid range (0, inf)");
        }
        if key.str().is_empty() {
            problems.errors.required(&key.path, "can not be empty");
        } else {
            problems.errors.invalid_all(&key.path, key.json(), api::names::qualified_name(key.str()));
        }
        let action = c.key("whenUnsatisfiable");
        match action.str() {
            "" => problems.errors.required(&action.path, "can not be empty"),
            "DoNotSchedule" | "ScheduleAnyway" => {}
            _ => problems.errors.not_supported(
                &action.path,
                action.json(),
                &["DoNotSchedule", "ScheduleAnyway"],
            ),
        }
        let selector = c.key("labelSelector");
        if selector.exists() {
            let text = "constraint must not define a selector, as they deduced for each pod";
            problems.errors.forbidden(&selector.path, text);
        }
        if !seen.insert((key.str(), action.str())) {
            problems.errors.duplicate(&c.path, &json!(format!("{{{}, {}}}", key.str(), action.str())));
        }
    }
    profile.system_spread = system;
    if !system {
        let constraints =
            if list.exists() { typed::<Vec<TopologySpreadConstraint>>(&list, problems) } else { None };
        profile.default_spread = constraints.unwrap_or_default();
    }
}

fn devices(args: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let timeout = args.key("bindingTimeout");
    if !timeout.exists() {
        return;
    }
    match duration(timeout.str()) {
        Some(time) if time >= Duration::from_secs(1) => profile.device_timeout = time,
        Some(_) => problems.errors.invalid(&timeout.path, timeout.json(), "must be at least 1 second"),
        None => problems.errors.invalid(&timeout.path, timeout.json(), "must be a duration such as 10m"),
    }
}

fn binding(args: &Cursor<'_>, profile: &mut Profile, problems: &mut Problems) {
    let (timeout, shape) = (args.key("bindTimeoutSeconds"), args.key("shape"));
    let seconds = problems.number(&timeout, 600);
    if seconds < 0 {
        let text = "invalid BindTimeoutSeconds, should not be a negative value";
        problems.errors.invalid(&timeout.path, timeout.json(), text);
    }
    if shape.exists() {
        let text = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
        problems.errors.invalid(&shape.path, shape.json(), text);
    }
    profile.bind_timeout = Duration::from_secs(u64::try_from(seconds).unwrap_or(600));
}
