//! How a pod relates to other pods: the namespace and labels by which others' terms find it, its own affinity and
//! anti-affinity terms, and the constraints by which it wants to be spread. Equal ones are shared.
//! Rules: <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity>,
//! <https://kubernetes.io/docs/concepts/scheduling-eviction/topology-spread-constraints/>
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use api::selector::{LabelSelector, Operator, Requirement};
use k8s_openapi::api::core::v1::{
    Affinity, PodAffinityTerm, TopologySpreadConstraint, WeightedPodAffinityTerm,
};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Labels of the namespaces, by name.
pub type Namespaces = HashMap<String, Labels>;

/// One affinity or anti-affinity term.
#[derive(Debug, Clone, PartialEq)]
pub struct Term {
    /// The node label whose values are the domains.
    pub topology_key: Arc<str>,
    namespaces: Vec<String>,
    namespace_selector: LabelSelector,
    selector: LabelSelector,
}

impl Term {
    fn compile(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Self {
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(namespace.to_owned());
        }
        let selector = LabelSelector::from_typed(term.label_selector.as_ref());
        let mut selector = selector.unwrap_or_else(|_| LabelSelector::nothing());
        // The API merges these into the selector of pods it stores; saying it twice changes nothing.
        let keys = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        add_keys(&mut selector, &keys(&term.match_label_keys), labels, Operator::In);
        add_keys(&mut selector, &keys(&term.mismatch_label_keys), labels, Operator::NotIn);
        Self {
            topology_key: term.topology_key.as_str().into(),
            namespaces,
            namespace_selector: LabelSelector::from_typed(term.namespace_selector.as_ref())
                .unwrap_or_else(|_| LabelSelector::nothing()),
            selector,
        }
    }

    /// Whether the term speaks of that pod.
    pub fn matches(&self, other: &Relations, namespaces: &Namespaces) -> bool {
        let empty = Labels::new();
        let of_namespace = || namespaces.get(&other.namespace).unwrap_or(&empty);
        (self.namespaces.contains(&other.namespace) || self.namespace_selector.matches(of_namespace()))
            && self.selector.matches(&other.labels)
    }
}

fn add_keys(selector: &mut LabelSelector, keys: &[String], labels: &Labels, operator: Operator) {
    for key in keys {
        if let Some(value) = labels.get(key) {
            let requirement = Requirement { key: key.clone(), operator, values: vec![value.clone()] };
            if !selector.requirements.contains(&requirement) {
                selector.requirements.push(requirement);
            }
        }
    }
}

/// A pod's place among pods.
#[derive(Debug, Default)]
pub struct Relations {
    /// Distinguishes relations within this process.
    pub id: u64,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's labels.
    pub labels: Labels,
    /// Required affinity: all must hold.
    pub affinity: Vec<Term>,
    /// Required anti-affinity: none may be broken.
    pub anti_affinity: Vec<Term>,
    /// Preferred terms by weight; that of anti-affinity is negative.
    pub preferred: Vec<(i64, Term)>,
}

impl Relations {
    pub(crate) fn compile(id: u64, namespace: &str, labels: Labels, affinity: Option<&Affinity>) -> Self {
        let to = affinity.and_then(|a| a.pod_affinity.as_ref());
        let from = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let required = |list: Option<&Vec<PodAffinityTerm>>| {
            list.into_iter().flatten().map(|t| Term::compile(t, namespace, &labels)).collect()
        };
        let preferred = |list: Option<&Vec<WeightedPodAffinityTerm>>, sign: i64| -> Vec<(i64, Term)> {
            let term = |t: &WeightedPodAffinityTerm| {
                (sign * i64::from(t.weight), Term::compile(&t.pod_affinity_term, namespace, &labels))
            };
            list.into_iter().flatten().map(term).collect()
        };
        let mut weighted =
            preferred(to.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()), 1);
        weighted.extend(preferred(
            from.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref()),
            -1,
        ));
        Self {
            id,
            namespace: namespace.to_owned(),
            affinity: required(
                to.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            anti_affinity: required(
                from.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref()),
            ),
            preferred: weighted,
            labels,
        }
    }

    /// Whether the pod has terms of its own, so that others have to ask whether they are meant.
    pub fn has_terms(&self) -> bool {
        !(self.affinity.is_empty() && self.anti_affinity.is_empty() && self.preferred.is_empty())
    }

    /// Whether all required affinity terms speak of `other`.
    pub fn wants(&self, other: &Relations, namespaces: &Namespaces) -> bool {
        self.affinity.iter().all(|term| term.matches(other, namespaces))
    }
}

/// One spread constraint.
#[derive(Debug, Clone, PartialEq)]
pub struct Constraint {
    /// The node label whose values are the domains.
    pub topology_key: Arc<str>,
    /// How far the fullest domain may be ahead of the emptiest.
    pub max_skew: i64,
    /// With fewer domains than this, the emptiest counts as empty.
    pub min_domains: usize,
    /// Nodes that the pod's node affinity excludes do not count.
    pub honor_affinity: bool,
    /// Nodes with taints that the pod does not tolerate do not count.
    pub honor_taints: bool,
    selector: LabelSelector,
}

impl Constraint {
    fn compile(c: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let selector = LabelSelector::from_typed(c.label_selector.as_ref());
        let mut selector = selector.unwrap_or_else(|_| LabelSelector::nothing());
        add_keys(&mut selector, c.match_label_keys.as_deref().unwrap_or_default(), labels, Operator::In);
        Self {
            topology_key: c.topology_key.as_str().into(),
            max_skew: i64::from(c.max_skew),
            min_domains: c.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(1),
            honor_affinity: c.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: c.node_taints_policy.as_deref() == Some("Honor"),
            selector,
        }
    }

    /// Whether a pod of `namespace` with these labels counts. A constraint that selects everything counts nothing.
    pub fn counts(&self, namespace: &str, other: &Relations) -> bool {
        namespace == other.namespace && !self.selector.is_everything() && self.selector.matches(&other.labels)
    }

    /// Whether the pod itself will count once it is placed.
    pub fn counts_self(&self, own: &Relations) -> bool {
        self.selector.matches(&own.labels)
    }
}

/// How a pod wants to be spread.
#[derive(Debug, Default)]
pub struct Spread {
    /// Distinguishes spreads within this process; 0: none.
    pub id: u64,
    /// `DoNotSchedule`.
    pub hard: Vec<Constraint>,
    /// `ScheduleAnyway`.
    pub soft: Vec<Constraint>,
    /// The system's own defaults: nodes that lack a label are worse, not left out.
    pub is_default: bool,
}

impl Spread {
    pub(crate) fn compile(
        id: u64,
        list: &[TopologySpreadConstraint],
        labels: &Labels,
        is_default: bool,
    ) -> Self {
        let of = |action: &str| -> Vec<Constraint> {
            let chosen = list.iter().filter(|c| c.when_unsatisfiable == action);
            chosen.map(|c| Constraint::compile(c, labels)).collect()
        };
        Self { id, hard: of("DoNotSchedule"), soft: of("ScheduleAnyway"), is_default }
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.hard.is_empty() && self.soft.is_empty()
    }
}
