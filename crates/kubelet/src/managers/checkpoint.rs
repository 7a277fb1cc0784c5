//! The files that remember who has which processors and which memory, `cpu_manager_state` and `memory_manager_state`, in
//! the reference's form: JSON, and a checksum over the same content as Go's `%#v` would print it.
//!
//! A checksum of 0 is taken as none. With the policy none nothing is remembered, and so no file is written.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cpu_set::CpuSet;
use super::memory::{Block, NodeState};
use crate::files::write_json;

/// The file of processors.
pub const CPU: &str = "cpu_manager_state";
/// The file of memory.
pub const MEMORY: &str = "memory_manager_state";

/// Who has which processors: by pod, then by container.
pub type Cpus = BTreeMap<String, BTreeMap<String, CpuSet>>;
/// Who has which memory.
pub type Blocks = BTreeMap<String, BTreeMap<String, Vec<Block>>>;

#[derive(Debug, Serialize, Deserialize)]
struct CpuFile {
    #[serde(rename = "policyName")]
    policy: String,
    #[serde(rename = "defaultCpuSet", alias = "defaultCPUSet")]
    pool: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: BTreeMap<String, BTreeMap<String, String>>,
    checksum: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct MemoryFile {
    #[serde(rename = "policyName")]
    policy: String,
    #[serde(rename = "machineState")]
    nodes: BTreeMap<usize, NodeState>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    entries: Blocks,
    checksum: u64,
}

/// FNV-1a, 32 bits.
pub(crate) fn checksum(text: &str) -> u64 {
    let hash =
        text.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u64::from(hash)
}

/// A map as Go prints it, in order.
pub(crate) fn map<K, V>(all: &BTreeMap<K, V>, print: impl Fn(&K, &V) -> String) -> String {
    let entries: Vec<String> = all.iter().map(|(key, value)| print(key, value)).collect();
    format!("map[{}]", entries.join(" "))
}

impl CpuFile {
    fn sum(&self) -> u64 {
        let entries = map(&self.entries, |pod, all| {
            format!("{pod}:{}", map(all, |name, cpus| format!("{name}:{cpus}")))
        });
        checksum(&format!(
            "(*state.CPUManagerCheckpoint){{PolicyName:(string){} DefaultCPUSet:(string){} \
             Entries:(map[string]map[string]string){entries} Checksum:(checksum.Checksum)0}}",
            self.policy, self.pool
        ))
    }
}

impl MemoryFile {
    fn sum(&self) -> u64 {
        let list = |all: &[usize]| {
            let all: Vec<String> = all.iter().map(usize::to_string).collect();
            format!("([]int)[{}]", all.join(" "))
        };
        let nodes = map(&self.nodes, |id, node| {
            let tables = map(&node.memory_map, |name, table| {
                format!(
                    "{name}:<*>{{TotalMemSize:(uint64){} SystemReserved:(uint64){} Allocatable:(uint64){} \
                     Reserved:(uint64){} Free:(uint64){}}}",
                    table.total, table.system_reserved, table.allocatable, table.reserved, table.free
                )
            });
            format!(
                "{id}:<*>{{NumberOfAssignments:(int){} MemoryMap:(map[v1.ResourceName]*state.MemoryTable){tables} \
                 Cells:{}}}",
                node.number_of_assignments,
                list(&node.cells)
            )
        });
        let block = |block: &Block| {
            format!(
                "{{NUMAAffinity:{} Type:(v1.ResourceName){} Size:(uint64){}}}",
                list(&block.numa_affinity),
                block.resource,
                block.size
            )
        };
        let blocks = |all: &Vec<Block>| all.iter().map(block).collect::<Vec<_>>().join(" ");
        let entries = map(&self.entries, |pod, all| {
            format!("{pod}:{}", map(all, |name, all| format!("{name}:[{}]", blocks(all))))
        });
        checksum(&format!(
            "(*state.MemoryManagerCheckpoint){{PolicyName:(string){} MachineState:(state.NUMANodeMap){nodes} \
             Entries:(state.ContainerMemoryAssignments){entries} Checksum:(checksum.Checksum)0}}",
            self.policy
        ))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether what is written is what was counted.
pub(crate) fn check(given: u64, counted: u64) -> Result<(), String> {
    if given == 0 || given == counted { Ok(()) } else { Err("checkpoint is corrupted".to_owned()) }
}

fn same(configured: &str, found: &str) -> Result<(), String> {
    if configured == found {
        return Ok(());
    }
    Err(format!("configured policy {configured:?} differs from state checkpoint policy {found:?}"))
}

fn failed(manager: &str, path: &Path, why: &str) -> String {
    format!(
        "could not restore state from checkpoint: {why}, please drain this node and delete the {manager} manager \
         checkpoint file {:?} before restarting Kubelet",
        path.display().to_string()
    )
}

/// The shared processors, and who has the others; none where nothing is remembered.
pub fn read_cpus(folder: &Path, policy: &str) -> Result<Option<(CpuSet, Cpus)>, String> {
    let path = folder.join(CPU);
    let load = || {
        let Some(file) = read::<CpuFile>(&path)? else { return Ok(None) };
        check(file.checksum, file.sum())?;
        same(policy, &file.policy)?;
        let pool = CpuSet::parse(&file.pool)
            .map_err(|why| format!("could not parse default cpu set {:?}: {why}", file.pool))?;
        let mut given = Cpus::new();
        for (pod, containers) in file.entries {
            for (name, text) in containers {
                let cpus = CpuSet::parse(&text).map_err(|why| {
                    format!("could not parse cpuset {text:?} for container {name:?} in pod {pod:?}: {why}")
                })?;
                given.entry(pod.clone()).or_default().insert(name, cpus);
            }
        }
        Ok(Some((pool, given)))
    };
    load().map_err(|why: String| failed("CPU", &path, &why))
}

/// Writes what [`read_cpus`] reads.
pub fn write_cpus(folder: &Path, policy: &str, pool: &CpuSet, given: &Cpus) -> io::Result<()> {
    let text = |all: &BTreeMap<String, CpuSet>| {
        all.iter().map(|(name, cpus)| (name.clone(), cpus.to_string())).collect()
    };
    let entries = given.iter().map(|(pod, all)| (pod.clone(), text(all))).collect();
    let mut file = CpuFile { policy: policy.to_owned(), pool: pool.to_string(), entries, checksum: 0 };
    file.checksum = file.sum();
    write_json(folder, CPU, &file)
}

/// The nodes' memory, and who has of it; none where nothing is remembered.
pub fn read_memory(
    folder: &Path,
    policy: &str,
) -> Result<Option<(BTreeMap<usize, NodeState>, Blocks)>, String> {
    let path = folder.join(MEMORY);
    let load = || {
        let Some(file) = read::<MemoryFile>(&path)? else { return Ok(None) };
        check(file.checksum, file.sum())?;
        same(policy, &file.policy).map_err(|why| format!("[memorymanager] {why}"))?;
        Ok(Some((file.nodes, file.entries)))
    };
    load().map_err(|why: String| failed("memory", &path, &why))
}

/// Writes what [`read_memory`] reads.
pub fn write_memory(
    folder: &Path,
    policy: &str,
    nodes: &BTreeMap<usize, NodeState>,
    given: &Blocks,
) -> io::Result<()> {
    let mut file =
        MemoryFile { policy: policy.to_owned(), nodes: nodes.clone(), entries: given.clone(), checksum: 0 };
    file.checksum = file.sum();
    write_json(folder, MEMORY, &file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_reference() {
        let empty =
            CpuFile { policy: "none".to_owned(), pool: String::new(), entries: BTreeMap::new(), checksum: 0 };
        assert_eq!(empty.sum(), 1_353_318_690);
        let text = r#"{"policyName":"static","machineState":{"0":{"numberOfAssignments":0,"memoryMap":{"memory":
            {"total":2048,"systemReserved":512,"allocatable":1536,"reserved":512,"free":1024}},"cells":[]}},
            "entries":{"pod":{"container1":[{"numaAffinity":[0],"type":"memory","size":512}]}},"checksum":4215593881}"#;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(MEMORY), text).unwrap();
        let (nodes, given) = read_memory(folder.path(), "static").unwrap().unwrap();
        assert_eq!(given["pod"]["container1"][0].size, 512);
        write_memory(folder.path(), "static", &nodes, &given).unwrap();
        let written = std::fs::read_to_string(folder.path().join(MEMORY)).unwrap();
        assert!(written.ends_with("\"checksum\":4215593881}"), "{written}");
        let why = read_memory(folder.path(), "Static").unwrap_err();
        assert!(
            why.contains("configured policy \"Static\" differs from state checkpoint policy \"static\""),
            "{why}"
        );
    }

    #[test]
    fn what_cannot_be_trusted_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CPU);
        assert_eq!(read_cpus(folder.path(), "static"), Ok(None));
        let pool = CpuSet::parse("0-3").unwrap();
        let given: Cpus =
            [("pod".to_owned(), [("a".to_owned(), CpuSet::parse("4,6").unwrap())].into())].into();
        write_cpus(folder.path(), "static", &pool, &given).unwrap();
        assert_eq!(read_cpus(folder.path(), "static"), Ok(Some((pool, given))));
        let text = std::fs::read_to_string(&path).unwrap();
        let check = |text: String, why: &str| {
            std::fs::write(&path, text).unwrap();
            let found = read_cpus(folder.path(), "static").unwrap_err();
            assert!(found.contains(why), "{found}");
            assert!(found.contains("delete the CPU manager checkpoint file"), "{found}");
        };
        check(text.replace("4,6", "4-6"), "checkpoint is corrupted");
        check(
            text.replace("static", "none").replace("checksum\":", "checksum\":0,\"x\":"),
            "policy \"static\" differs",
        );
        check(
            r#"{"policyName":"static","defaultCpuSet":"1.3","checksum":0}"#.to_owned(),
            "could not parse default cpu set \"1.3\"",
        );
        check("{".to_owned(), "EOF");
    }
}
