//! What the machine is made of: sockets, NUMA nodes, caches, cores, threads and memory, as the kernel shows it below
//! `/sys/devices/system`. Tests show other machines in folders of their own.

use std::collections::BTreeMap;
use std::path::Path;

use super::cpu_set::CpuSet;

/// The kernel's folder.
pub const SYSTEM: &str = "/sys/devices/system";

/// What processors share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// A core, of which they are threads.
    Core,
    /// The last cache (level 3).
    Cache,
    /// Memory that is near.
    Node,
    /// A package.
    Socket,
}

/// Where a processor is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    /// The least processor of its core: cores are numbered anew in each socket.
    pub core: usize,
    /// The least processor that has the same last cache.
    pub cache: usize,
    /// Its NUMA node.
    pub node: usize,
    /// Its socket.
    pub socket: usize,
}

impl Place {
    fn at(&self, level: Level) -> usize {
        match level {
            Level::Core => self.core,
            Level::Cache => self.cache,
            Level::Node => self.node,
            Level::Socket => self.socket,
        }
    }
}

/// A NUMA node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Memory, bytes.
    pub memory: u64,
    /// Bytes in huge pages, by resource (`hugepages-2Mi`).
    pub pages: BTreeMap<String, u64>,
    /// How far the nodes are, in their order; nothing where the kernel does not say.
    pub distances: Vec<u64>,
}

/// A machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors that run.
    pub cpus: BTreeMap<usize, Place>,
    /// NUMA nodes; at least one.
    pub nodes: BTreeMap<usize, Node>,
}

fn text(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number(path: &Path) -> Option<usize> {
    text(path)?.parse().ok()
}

fn list(path: &Path) -> Option<CpuSet> {
    CpuSet::parse(&text(path)?).ok()
}

fn numbered(folder: &Path, prefix: &str) -> Vec<usize> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<usize> =
        entries.filter_map(|e| e.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()).collect();
    found.sort_unstable();
    found
}

impl Machine {
    /// Reads `system`, the kernel's folder or one like it; `memory` is that of the machine, bytes, where the kernel knows no nodes.
    pub fn read(system: &Path, memory: u64) -> Self {
        let (folder, nodes) = (system.join("cpu"), system.join("node"));
        let mut this = Self::default();
        let online = list(&folder.join("online"));
        let here = online.unwrap_or_else(|| numbered(&folder, "cpu").into_iter().collect());
        for cpu in here.iter() {
            let own = folder.join(format!("cpu{cpu}"));
            let topology = own.join("topology");
            let least = |set: Option<CpuSet>| set.and_then(|set| set.iter().next()).unwrap_or(cpu);
            let caches = own.join("cache");
            let mut last = numbered(&caches, "index").into_iter().map(|at| caches.join(format!("index{at}")));
            let last = last.rfind(|cache| number(&cache.join("level")) == Some(3));
            let socket = number(&topology.join("physical_package_id")).unwrap_or(0);
            let place = Place {
                core: least(list(&topology.join("thread_siblings_list"))),
                cache: last.map_or(usize::MAX, |cache| least(list(&cache.join("shared_cpu_list")))),
                node: 0,
                socket,
            };
            this.cpus.insert(cpu, place);
        }
        // without a cache of that level a socket is as good as one
        let sockets = this.groups(&here, Level::Socket);
        for place in this.cpus.values_mut().filter(|place| place.cache == usize::MAX) {
            place.cache = sockets.get(&place.socket).and_then(|all| all.iter().next()).unwrap_or(0);
        }
        for id in numbered(&nodes, "node") {
            let own = nodes.join(format!("node{id}"));
            for cpu in list(&own.join("cpulist")).unwrap_or_default().iter() {
                if let Some(place) = this.cpus.get_mut(&cpu) {
                    place.node = id;
                }
            }
            this.nodes.insert(id, node(&own));
        }
        if this.nodes.is_empty() {
            this.nodes.insert(0, Node { memory, ..Node::default() });
        }
        this
    }

    /// All processors.
    pub fn all(&self) -> CpuSet {
        self.cpus.keys().copied().collect()
    }

    /// `among`, by what they share.
    pub fn groups(&self, among: &CpuSet, level: Level) -> BTreeMap<usize, CpuSet> {
        let mut found: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for cpu in among.iter() {
            if let Some(place) = self.cpus.get(&cpu) {
                found.entry(place.at(level)).or_default().push(cpu);
            }
        }
        found.into_iter().map(|(id, cpus)| (id, cpus.into_iter().collect())).collect()
    }

    /// How many there are of something that has processors.
    pub fn count(&self, level: Level) -> usize {
        self.groups(&self.all(), level).len()
    }

    /// Threads of a core.
    pub fn per_core(&self) -> usize {
        self.cpus.len() / self.count(Level::Core).max(1)
    }

    /// `cpus` and all that share something with one of them.
    pub fn whole(&self, cpus: &CpuSet, level: Level) -> CpuSet {
        let touched = self.groups(cpus, level);
        let all = self.cpus.iter().filter(|(_, place)| touched.contains_key(&place.at(level)));
        all.map(|(cpu, _)| *cpu).collect()
    }

    /// The processors of some nodes.
    pub fn of_nodes(&self, nodes: super::topology::Mask) -> CpuSet {
        self.cpus.iter().filter(|(_, place)| nodes.has(place.node)).map(|(cpu, _)| *cpu).collect()
    }

    /// Bytes in huge pages of the whole machine, by resource.
    pub fn pages(&self) -> BTreeMap<String, u64> {
        let mut sum: BTreeMap<String, u64> = BTreeMap::new();
        for (name, bytes) in self.nodes.values().flat_map(|node| &node.pages) {
            *sum.entry(name.clone()).or_default() += bytes;
        }
        sum
    }
}

fn node(own: &Path) -> Node {
    let info = text(&own.join("meminfo")).unwrap_or_default();
    let total = info.lines().find_map(|line| line.split_once("MemTotal:"));
    let kib = total.and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u64>().ok());
    let folder = own.join("hugepages");
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let pages = entries.filter_map(|entry| {
        let kib: u64 =
            entry.file_name().to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = number(&entry.path().join("nr_hugepages"))? as u64;
        Some((pages_resource(kib), count.saturating_mul(kib.saturating_mul(1024))))
    });
    let distances = text(&own.join("distance")).unwrap_or_default();
    Node {
        memory: kib.unwrap_or(0).saturating_mul(1024),
        pages: pages.collect(),
        distances: distances.split_whitespace().filter_map(|far| far.parse().ok()).collect(),
    }
}

/// `hugepages-2Mi`, for pages of so many KiB.
fn pages_resource(kib: u64) -> String {
    let bytes = i64::try_from(kib.saturating_mul(1024)).unwrap_or(i64::MAX);
    let size = api::quantity::Quantity::from_value(bytes, api::quantity::Format::BinarySi);
    format!("hugepages-{size}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes a machine of so many sockets, nodes per socket, cores per node and threads per core: threads of a core are
    /// numbered far apart, as on most machines. Each node has a last cache and `memory` bytes.
    pub(crate) fn build(system: &Path, [sockets, nodes, cores, threads]: [usize; 4], memory: u64) {
        let all = sockets * nodes * cores;
        let write = |path: std::path::PathBuf, value: String| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value).unwrap();
        };
        let (cpu, node) = (system.join("cpu"), system.join("node"));
        write(cpu.join("online"), format!("0-{}\n", all * threads - 1));
        let join = |list: Vec<usize>| list.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        for at in 0..sockets * nodes {
            let of_node = |core: usize| (0..threads).map(move |thread| thread * all + core);
            let cores = at * cores..(at + 1) * cores;
            let list = join(cores.clone().flat_map(of_node).collect());
            for core in cores {
                let siblings = join(of_node(core).collect());
                for id in of_node(core) {
                    let own = cpu.join(format!("cpu{id}"));
                    write(own.join("topology/thread_siblings_list"), siblings.clone());
                    write(own.join("topology/physical_package_id"), (at / nodes).to_string());
                    write(own.join("cache/index3/level"), "3\n".to_owned());
                    write(own.join("cache/index3/shared_cpu_list"), list.clone());
                }
            }
            let own = node.join(format!("node{at}"));
            write(own.join("cpulist"), list);
            write(own.join("meminfo"), format!("Node {at} MemTotal:       {} kB\n", memory / 1024));
            write(own.join("hugepages/hugepages-2048kB/nr_hugepages"), "0\n".to_owned());
            let far = |to: usize| match to {
                _ if to == at => "10",
                _ if to / 2 == at / 2 => "11",
                _ => "21",
            };
            write(own.join("distance"), (0..sockets * nodes).map(far).collect::<Vec<_>>().join(" "));
        }
    }

    /// The machine that [`build`] writes.
    pub(crate) fn machine(shape: [usize; 4], memory: u64) -> Machine {
        let folder = tempfile::tempdir().unwrap();
        build(folder.path(), shape, memory);
        Machine::read(folder.path(), 0)
    }

    #[test]
    fn a_machine_is_read_as_the_kernel_shows_it() {
        let two = machine([2, 1, 4, 2], 1 << 30);
        assert_eq!((two.cpus.len(), two.count(Level::Core), two.per_core()), (16, 8, 2));
        assert_eq!(two.cpus[&13], Place { core: 5, cache: 4, node: 1, socket: 1 });
        assert_eq!(two.nodes[&1].memory, 1 << 30);
        assert_eq!(two.nodes[&1].pages["hugepages-2Mi"], 0);
        assert_eq!(two.groups(&two.all(), Level::Socket)[&0].to_string(), "0-3,8-11");
        // nothing is known: a core each, one socket, one node with all memory
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("cpu/cpu0")).unwrap();
        std::fs::create_dir_all(folder.path().join("cpu/cpu1")).unwrap();
        let bare = Machine::read(folder.path(), 5);
        assert_eq!((bare.count(Level::Core), bare.count(Level::Socket), bare.nodes[&0].memory), (2, 1, 5));
        // this one: whatever it is, it has a processor and memory
        let own = Machine::read(Path::new(SYSTEM), 1);
        assert!(!own.cpus.is_empty() && own.nodes.values().any(|node| node.memory > 0));
    }
}
