//! What KubeletConfiguration says of processors, memory and topology: read, and refused in the reference's words.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::cpu_set::CpuSet;
use super::machine::{Level, Machine};
use super::topology::{Mask, Policy};
use crate::configuration::KubeletConfiguration;

/// `reservedMemory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MemoryReservation {
    /// The NUMA node.
    pub numa_node: usize,
    /// How much of its memory and huge pages.
    pub limits: BTreeMap<String, String>,
}

/// `cpuManagerPolicyOptions`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuOptions {
    /// `full-pcpus-only`.
    pub full_cores_only: bool,
    /// `distribute-cpus-across-numa`.
    pub distribute_across_numa: bool,
    /// `align-by-socket`.
    pub align_by_socket: bool,
    /// `distribute-cpus-across-cores`.
    pub distribute_across_cores: bool,
    /// `strict-cpu-reservation`.
    pub strict_reservation: bool,
    /// `prefer-align-cpus-by-uncorecache`.
    pub prefer_caches: bool,
}

/// `topologyManagerPolicyOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopologyOptions {
    /// `prefer-closest-numa-nodes`.
    pub prefer_closest: bool,
    /// `max-allowable-numa-nodes`.
    pub most_nodes: usize,
}

impl Default for TopologyOptions {
    fn default() -> Self {
        Self { prefer_closest: false, most_nodes: NODES }
    }
}

/// More NUMA nodes make too many sets of them.
const NODES: usize = 8;

/// The gates of options, and whether they are open where nothing is said.
const GATES: [(&str, bool); 4] = [
    ("CPUManagerPolicyAlphaOptions", false),
    ("CPUManagerPolicyBetaOptions", true),
    ("TopologyManagerPolicyAlphaOptions", false),
    ("TopologyManagerPolicyBetaOptions", true),
];

/// How far an option is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Alpha,
    Beta,
    Stable,
}

const CPU: [(&str, Stage); 6] = [
    ("align-by-socket", Stage::Alpha),
    ("distribute-cpus-across-cores", Stage::Alpha),
    ("distribute-cpus-across-numa", Stage::Beta),
    ("prefer-align-cpus-by-uncorecache", Stage::Beta),
    ("full-pcpus-only", Stage::Stable),
    ("strict-cpu-reservation", Stage::Stable),
];
const TOPOLOGY: [(&str, Stage); 2] =
    [("prefer-closest-numa-nodes", Stage::Stable), ("max-allowable-numa-nodes", Stage::Stable)];

fn available(
    settings: &KubeletConfiguration,
    manager: &str,
    known: &[(&str, Stage)],
    name: &str,
) -> Result<(), String> {
    let stage = known.iter().find(|(option, _)| *option == name).map(|(_, stage)| *stage);
    let stage = stage.ok_or_else(|| format!("unknown {manager} Manager Policy option: {name:?}"))?;
    let level = match stage {
        Stage::Stable => return Ok(()),
        Stage::Alpha => "Alpha",
        Stage::Beta => "Beta",
    };
    let gate = format!("{manager}ManagerPolicy{level}Options");
    let open = GATES.iter().find(|(known, _)| **known == gate).is_some_and(|(_, open)| *open);
    if settings.feature_gates.get(&gate).copied().unwrap_or(open) {
        return Ok(());
    }
    Err(format!("{manager} Manager Policy {level}-level Options not enabled, but option {name:?} provided"))
}

/// As Go reads a truth.
fn truth(name: &str, text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => {
            Err(format!("bad value for option {name:?}: strconv.ParseBool: parsing {text:?}: invalid syntax"))
        }
    }
}

/// The options of the static policy; that of none has none.
pub fn cpu(settings: &KubeletConfiguration) -> Result<CpuOptions, String> {
    let mut options = CpuOptions::default();
    let given = &settings.cpu_manager_policy_options;
    if settings.cpu_manager_policy == "none" && !given.is_empty() {
        let list: Vec<String> = given.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        return Err(format!(
            "new none policy error: None policy: received unsupported options: map[{}]",
            list.join(" ")
        ));
    }
    for (name, value) in given {
        available(settings, "CPU", &CPU, name)?;
        let value = truth(name, value)?;
        match name.as_str() {
            "align-by-socket" => options.align_by_socket = value,
            "distribute-cpus-across-cores" => options.distribute_across_cores = value,
            "distribute-cpus-across-numa" => options.distribute_across_numa = value,
            "prefer-align-cpus-by-uncorecache" => options.prefer_caches = value,
            "full-pcpus-only" => options.full_cores_only = value,
            _ => options.strict_reservation = value,
        }
    }
    let both = |one: (bool, &str), other: (bool, &str)| match one.0 && other.0 {
        true => {
            Err(format!("static policy options {} and {} can not be used at the same time", one.1, other.1))
        }
        false => Ok(()),
    };
    let cores = (options.distribute_across_cores, "distribute-cpus-across-cores");
    let caches = (options.prefer_caches, "prefer-align-cpus-by-uncorecache");
    both((options.full_cores_only, "full-pcpus-only"), cores)?;
    both((options.distribute_across_numa, "distribute-cpus-across-numa"), cores)?;
    both(caches, cores)?;
    both(caches, (options.distribute_across_numa, "distribute-cpus-across-numa"))?;
    if options.align_by_socket && settings.topology_manager_policy == "single-numa-node" {
        return Err(
            "Topology manager single-numa-node policy is incompatible with CPUManager align-by-socket policy option"
                .to_owned(),
        );
    }
    Ok(options)
}

/// The policy, whether it decides for whole pods, and its options.
pub fn topology(settings: &KubeletConfiguration) -> Result<(Policy, bool, TopologyOptions), String> {
    let policy = match settings.topology_manager_policy.as_str() {
        "none" => Policy::None,
        "best-effort" => Policy::BestEffort,
        "restricted" => Policy::Restricted,
        "single-numa-node" => Policy::SingleNumaNode,
        other => {
            return Err(format!(
                "invalid configuration: topologyManagerPolicy (--topology-manager-policy) {other:?} must be one of: \
                 [\"none\" \"best-effort\" \"restricted\" \"single-numa-node\"]"
            ));
        }
    };
    let whole = match settings.topology_manager_scope.as_str() {
        "container" => false,
        "pod" => true,
        other => {
            return Err(format!(
                "invalid configuration: topologyManagerScope (--topology-manager-scope) {other:?} must be one of: \
                 [\"container\" \"pod\"]"
            ));
        }
    };
    let mut options = TopologyOptions::default();
    for (name, value) in &settings.topology_manager_policy_options {
        available(settings, "Topology", &TOPOLOGY, name)?;
        if name == "prefer-closest-numa-nodes" {
            options.prefer_closest = truth(name, value)?;
            continue;
        }
        options.most_nodes = value.parse().map_err(|_| {
            format!(
                "unable to convert policy option to integer {name:?}: strconv.Atoi: parsing {value:?}: invalid syntax"
            )
        })?;
        if options.most_nodes < NODES {
            return Err(format!("the minimum value of {name:?} should not be less than {NODES}"));
        }
    }
    Ok((policy, whole, options))
}

/// Whether what is set can hold on any machine.
pub fn check(settings: &KubeletConfiguration) -> Result<(), String> {
    if let Some(name) = settings.feature_gates.keys().find(|name| !GATES.iter().any(|(gate, _)| gate == name))
    {
        return Err(format!("unrecognized feature gate: {name}"));
    }
    if !matches!(settings.cpu_manager_policy.as_str(), "none" | "static") {
        return Err(format!("unknown policy: {:?}", settings.cpu_manager_policy));
    }
    if !matches!(settings.memory_manager_policy.as_str(), "None" | "Static") {
        return Err(format!("unknown policy: {:?}", settings.memory_manager_policy));
    }
    CpuSet::parse(&settings.reserved_system_cpus)
        .map_err(|why| format!("unable to parse reservedSystemCPUs: {why}"))?;
    topology(settings)?;
    cpu(settings)?;
    let mut known = BTreeSet::new();
    for MemoryReservation { numa_node, limits } in &settings.reserved_memory {
        for (name, amount) in limits {
            if name != "memory" && !name.starts_with("hugepages-") {
                return Err(format!(
                    "invalid configuration: the limit type {name:?} for NUMA node {numa_node} is not supported, only \
                     [memory hugepages-<HugePageSize>] is accepted"
                ));
            }
            let amount: api::quantity::Quantity =
                amount.parse().map_err(|why| format!("reservedMemory {name} {amount:?}: {why}"))?;
            if amount.signum() <= 0 {
                return Err(format!(
                    "invalid configuration: reserved memory may not be zero for NUMA node {numa_node} and resource {name:?}"
                ));
            }
            if !known.insert((*numa_node, name)) {
                return Err(format!(
                    "invalid configuration: the reserved memory has a duplicate value for NUMA node {numa_node} and resource {name:?}"
                ));
            }
        }
    }
    Ok(())
}

/// Whether what is set can hold on this machine.
pub fn fits(settings: &KubeletConfiguration, machine: &Machine) -> Result<(), String> {
    let reserved = CpuSet::parse(&settings.reserved_system_cpus)?;
    if !reserved.within(&machine.all()) {
        return Err(format!(
            "Invalid cpuset specified by --reserved-cpus: {reserved} is not within {}",
            machine.all()
        ));
    }
    let (policy, _, options) = topology(settings)?;
    if policy != Policy::None && machine.nodes.len() > options.most_nodes.min(Mask::MOST) {
        let most = options.most_nodes.min(Mask::MOST);
        return Err(format!("unsupported on machines with more than {most} NUMA Nodes"));
    }
    let aligned = cpu(settings)?.align_by_socket;
    if aligned && machine.count(Level::Socket) > machine.nodes.len() {
        return Err(
            "Align by socket is not compatible with hardware where number of sockets are more than number of NUMA"
                .to_owned(),
        );
    }
    Ok(())
}
