//! NodeAffinity: `nodeSelector` and required node affinity; the preferred terms are scored in `score::node_affinity`.
//! Rule: <https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#node-affinity>
use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

use super::Verdict;
use crate::pod_info::Demand;
use crate::profile::Profile;
use crate::snapshot::NodeInfo;

#[derive(Debug, Clone, PartialEq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
    /// Malformed: matches nothing.
    Never,
}

#[derive(Debug, Clone, PartialEq)]
struct Requirement {
    key: String,
    test: Test,
}

impl Requirement {
    fn compile(r: &NodeSelectorRequirement) -> Self {
        let values = r.values.clone().unwrap_or_default();
        let number = || match &values[..] {
            [one] => one.parse::<i64>().ok(),
            _ => None,
        };
        let test = match r.operator.as_str() {
            "In" => Test::In(values),
            "NotIn" => Test::NotIn(values),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::DoesNotExist,
            "Gt" => number().map_or(Test::Never, Test::Gt),
            "Lt" => number().map_or(Test::Never, Test::Lt),
            _ => Test::Never,
        };
        Self { key: r.key.clone(), test }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let has = |list: &[String]| value.is_some_and(|v| list.iter().any(|l| l == v));
        let number = value.and_then(|v| v.parse::<i64>().ok());
        match &self.test {
            Test::In(list) => has(list),
            Test::NotIn(list) => !has(list),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
            Test::Gt(limit) => number.is_some_and(|n| n > *limit),
            Test::Lt(limit) => number.is_some_and(|n| n < *limit),
            Test::Never => false,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Term {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Term {
    fn compile(term: &NodeSelectorTerm) -> Self {
        let list =
            |l: &Option<Vec<NodeSelectorRequirement>>| l.iter().flatten().map(Requirement::compile).collect();
        Self { labels: list(&term.match_expressions), fields: list(&term.match_fields) }
    }

    /// A term without requirements matches nothing.
    fn matches(&self, node: &NodeInfo) -> bool {
        (!self.labels.is_empty() || !self.fields.is_empty())
            && self.labels.iter().all(|r| r.matches(node.label(&r.key)))
            && self.fields.iter().all(|r| r.key == "metadata.name" && r.matches(Some(&node.name)))
    }
}

/// Node affinity, compiled.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// One must match; `None`: no requirement.
    required: Option<Vec<Term>>,
    preferred: Vec<(i32, Term)>,
}

impl Selection {
    /// Compiles the API's form.
    pub fn compile(affinity: &NodeAffinity) -> Self {
        let required = affinity.required_during_scheduling_ignored_during_execution.as_ref();
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.iter().flatten();
        Self {
            required: required.map(|r| r.node_selector_terms.iter().map(Term::compile).collect()),
            preferred: preferred.map(|p| (p.weight, Term::compile(&p.preference))).collect(),
        }
    }

    /// A requirement alone, such as that of a volume.
    pub fn required(selector: &NodeSelector) -> Self {
        let terms = selector.node_selector_terms.iter().map(Term::compile).collect();
        Self { required: Some(terms), preferred: Vec::new() }
    }

    /// Whether the required terms allow the node.
    pub fn allows(&self, node: &NodeInfo) -> bool {
        self.required.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(node)))
    }

    /// The only nodes, by name, that the required terms can mean; `None`: some term names none.
    pub fn names(&self) -> Option<BTreeSet<&str>> {
        let terms = self.required.as_deref().filter(|terms| !terms.is_empty())?;
        let mut all = BTreeSet::new();
        for term in terms {
            let mut named =
                term.fields.iter().filter(|r| r.key == "metadata.name").filter_map(|r| match &r.test {
                    Test::In(names) => Some(names.iter().map(String::as_str).collect::<BTreeSet<_>>()),
                    _ => None,
                });
            let first = named.next()?;
            all.extend(named.fold(first, |a, b| &a & &b));
        }
        Some(all)
    }

    /// Sum of the weights of the preferred terms that match.
    pub fn preference(&self, node: &NodeInfo) -> i64 {
        self.preferred.iter().filter(|(_, t)| t.matches(node)).map(|(w, _)| i64::from(*w)).sum()
    }
}

/// Whether `nodeSelector` and required affinity allow the node.
pub fn allows(demand: &Demand, node: &NodeInfo) -> bool {
    demand.node_selector.iter().all(|(k, v)| node.label(k) == Some(v)) && demand.affinity.allows(node)
}

pub(super) fn run(demand: &Demand, node: &NodeInfo, profile: &Profile) -> Verdict {
    if !profile.added_affinity.allows(node) {
        return Verdict::unresolvable("node(s) didn't match scheduler-enforced node affinity");
    }
    if !allows(demand, node) {
        return Verdict::unresolvable("node(s) didn't match Pod's node affinity/selector");
    }
    Verdict::Fits
}
