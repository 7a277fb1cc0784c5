//! What one scheduler profile does: which filters and scores run, with which weights and arguments.
//! Rule: <https://kubernetes.io/docs/reference/scheduling/config/#profiles>
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::TopologySpreadConstraint;

use crate::counts::AffinityArgs;
use crate::filter::FILTERS;
use crate::filter::node_affinity::Selection;
use crate::score::{COUNT, SCORES};

/// How NodeResourcesFit scores a node.
#[derive(Debug, Clone, PartialEq)]
pub enum Strategy {
    /// The emptier, the better.
    Least,
    /// The fuller, the better.
    Most,
    /// By a line through points of utilisation (percent, rising) and score (0 to 100).
    Shape(Vec<(i64, i64)>),
}

/// Arguments of NodeResourcesFit.
#[derive(Debug, Clone, PartialEq)]
pub struct FitArgs {
    /// How it scores.
    pub strategy: Strategy,
    /// Resources that count, with their weights.
    pub resources: Vec<(String, i64)>,
    /// Extended resources that the filter does not look at.
    pub ignored: Vec<String>,
    /// The same by the part of the name before the slash.
    pub ignored_groups: Vec<String>,
}

/// Arguments of DefaultPreemption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreemptionArgs {
    /// Share of the nodes that are tried, in percent.
    pub min_candidate_percentage: usize,
    /// At least so many are.
    pub min_candidate_absolute: usize,
}

/// One profile.
#[derive(Debug, Clone)]
pub struct Profile {
    /// `spec.schedulerName` of its pods.
    pub scheduler_name: String,
    /// Bit set over [`FILTERS`].
    pub filters: u32,
    /// Weights of [`SCORES`]; 0: does not run.
    pub weights: [i64; COUNT],
    /// Share of the nodes that is scored, in percent; 0: adaptive.
    pub percentage_of_nodes_to_score: i32,
    /// NodeResourcesFit.
    pub fit: FitArgs,
    /// Resources that NodeResourcesBalancedAllocation balances.
    pub balanced: Vec<String>,
    /// Node affinity of every pod of the profile.
    pub added_affinity: Selection,
    /// InterPodAffinity.
    pub affinity: AffinityArgs,
    /// Spread constraints of pods that bring none; their selector is that of the pod's services and owner.
    pub default_spread: Vec<TopologySpreadConstraint>,
    /// Whether these are the system's.
    pub system_spread: bool,
    /// DefaultPreemption; `None`: does not run.
    pub preemption: Option<PreemptionArgs>,
    /// SchedulingGates holds pods back.
    pub gates: bool,
    /// Whether DynamicResources runs after filtering, which shows in messages.
    pub deallocates: bool,
    /// How long binding waits for volumes.
    pub bind_timeout: Duration,
    /// How long binding waits for devices.
    pub device_timeout: Duration,
}

/// CPU and memory, alike.
pub(crate) fn default_resources() -> Vec<(String, i64)> {
    vec![("cpu".to_owned(), 1), ("memory".to_owned(), 1)]
}

/// The constraints of v1.36 for pods that bring none.
pub(crate) fn system_spread() -> Vec<TopologySpreadConstraint> {
    let constraint = |key: &str, max_skew| TopologySpreadConstraint {
        topology_key: key.to_owned(),
        max_skew,
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..TopologySpreadConstraint::default()
    };
    vec![constraint(crate::counts::HOSTNAME, 3), constraint("topology.kubernetes.io/zone", 5)]
}

impl Profile {
    /// The default profile of v1.36 under a name.
    pub fn named(scheduler_name: &str) -> Self {
        Self {
            scheduler_name: scheduler_name.to_owned(),
            filters: (1 << FILTERS.len()) - 1,
            weights: std::array::from_fn(|i| SCORES[i].weight),
            percentage_of_nodes_to_score: 0,
            fit: FitArgs {
                strategy: Strategy::Least,
                resources: default_resources(),
                ignored: Vec::new(),
                ignored_groups: Vec::new(),
            },
            balanced: default_resources().into_iter().map(|(name, _)| name).collect(),
            added_affinity: Selection::default(),
            affinity: AffinityArgs { hard_weight: 1, ignore_preferred_of_existing: false },
            default_spread: system_spread(),
            system_spread: true,
            preemption: Some(PreemptionArgs { min_candidate_percentage: 10, min_candidate_absolute: 100 }),
            gates: true,
            deallocates: true,
            bind_timeout: Duration::from_secs(600),
            device_timeout: Duration::from_secs(600),
        }
    }

    /// Devices that were given before should be ready by now.
    pub(crate) fn devices_since(&self) -> Timestamp {
        Timestamp::now().checked_sub(self.device_timeout).unwrap_or(Timestamp::MIN)
    }

    /// Whether a filter runs.
    pub fn runs(&self, filter: usize) -> bool {
        self.filters & (1 << filter) != 0
    }
}

impl Default for Profile {
    fn default() -> Self {
        Self::named("default-scheduler")
    }
}
