//! Control groups, whichever version the node has: v1 hierarchies, hybrid (v1 controllers and an empty v2
//! tree beside them) or v2.
//!
//! A group is named by its absolute path (`/navarch-1234/pod5/abc`), the same in every hierarchy.

use std::{
    fs, io,
    os::fd::AsFd,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Pid;

use crate::{
    cgroup_device,
    spec::{CgroupJoin, CgroupMount},
};

/// Longest wait for the processes of a killed group to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// A v1 hierarchy.
#[derive(Debug)]
struct Hierarchy {
    /// Folder name below `/sys/fs/cgroup`.
    name: String,
    /// Controllers, or `name=...`.
    options: Vec<String>,
    mount: PathBuf,
}

/// The node's control groups.
#[derive(Debug)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    unified: Option<PathBuf>,
}

/// Limits of one group; `None` leaves a value alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Limits {
    /// CPU shares as in v1: 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// CPU time per period in microseconds; negative: unlimited.
    pub cpu_quota: Option<i64>,
    /// Period in microseconds.
    pub cpu_period: Option<u64>,
    /// Memory in bytes; negative: unlimited.
    pub memory: Option<i64>,
    /// Memory and swap together in bytes; negative: unlimited.
    pub memory_swap: Option<i64>,
    /// Processes and threads; negative: unlimited.
    pub pids: Option<i64>,
    /// CPUs, as a list (`0-3,5`).
    pub cpuset_cpus: Option<String>,
    /// Memory nodes, as a list.
    pub cpuset_mems: Option<String>,
    /// Huge pages: page size (`2MB`) and bytes. Where nobody counts them, none is as good as any: kubelets say so of every size.
    pub hugepages: Vec<(String, u64)>,
    /// Files of v2 to write as they are.
    pub unified: Vec<(String, String)>,
}

/// Use of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in nanoseconds.
    pub cpu_nanos: u64,
    /// Memory in bytes, caches included.
    pub memory: u64,
    /// Memory in bytes that cannot be taken back easily: `memory` without inactive file pages.
    pub working_set: u64,
    /// Anonymous memory in bytes.
    pub rss: u64,
    /// Memory limit in bytes, when there is one.
    pub memory_limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that needed the disk.
    pub major_page_faults: u64,
    /// Swap in bytes.
    pub swap: u64,
    /// Swap limit in bytes, when there is one.
    pub swap_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
}

impl Cgroups {
    /// Finds what is mounted.
    pub fn detect() -> io::Result<Cgroups> {
        let found = Cgroups::parse(&fs::read_to_string("/proc/self/mountinfo")?);
        if found.hierarchies.is_empty() && found.unified.is_none() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no cgroup file system is mounted"));
        }
        Ok(found)
    }

    fn parse(mountinfo: &str) -> Cgroups {
        let mut found = Cgroups { hierarchies: Vec::new(), unified: None };
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    let name = mount.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let known = ["rw", "ro", "xattr", "clone_children", "noprefix"];
                    let options: Vec<String> = options
                        .split(',')
                        .filter(|option| !known.contains(option) && !option.starts_with("release_agent="))
                        .map(str::to_owned)
                        .collect();
                    if !found.hierarchies.iter().any(|known| known.options == options) {
                        found.hierarchies.push(Hierarchy { name, options, mount });
                    }
                }
                (Some("cgroup2"), _) if found.unified.is_none() => found.unified = Some(mount),
                _ => {}
            }
        }
        // v1 hierarchies without controllers (systemd's own) beside a v2 tree that has them.
        let controller = |hierarchy: &Hierarchy| hierarchy.options.iter().any(|option| option == "memory");
        if found.unified.is_some() && !found.hierarchies.iter().any(controller) {
            found.hierarchies.clear();
        }
        found
    }

    /// Only v2 counts.
    pub fn is_v2(&self) -> bool {
        self.hierarchies.is_empty()
    }

    /// The folder of `group` in the v2 tree, also where that has no controllers.
    pub(crate) fn unified(&self, group: &str) -> Option<PathBuf> {
        Some(self.unified.as_deref()?.join(relative(group).ok()?))
    }

    /// The folder of `group` in which a controller's files are.
    pub(crate) fn folder(&self, controller: &str, group: &str) -> Option<PathBuf> {
        let root = if self.is_v2() { self.unified.as_deref() } else { self.controller(controller) };
        Some(root?.join(relative(group).ok()?))
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        self.hierarchies
            .iter()
            .find(|hierarchy| hierarchy.options.iter().any(|option| option == name))
            .map(|hierarchy| hierarchy.mount.as_path())
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        self.hierarchies.iter().map(|hierarchy| hierarchy.mount.as_path()).chain(self.unified.as_deref())
    }

    /// Makes `group` and its ancestors everywhere; returns those that were new, topmost first.
    pub fn create(&self, group: &str) -> io::Result<Vec<String>> {
        let relative = relative(group)?;
        let mut created = Vec::new();
        for (index, root) in self.roots().enumerate() {
            let cpuset = self.controller("cpuset") == Some(root);
            let unified = self.is_v2() && Some(root) == self.unified.as_deref();
            let mut dir = root.to_owned();
            let mut path = String::new();
            for component in relative.components() {
                if unified {
                    enable_controllers(&dir);
                }
                let parent = dir.clone();
                dir.push(component);
                path = format!("{path}/{}", component.as_os_str().to_string_lossy());
                match fs::create_dir(&dir) {
                    Ok(()) if index == 0 => created.push(path.clone()),
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    Err(error) => return Err(named(&dir, error)),
                }
                if cpuset {
                    // A v1 cpuset starts empty, and then takes no process.
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let inherited = fs::read_to_string(parent.join(file))?;
                        write(&dir.join(file), inherited.trim())?;
                    }
                }
            }
        }
        Ok(created)
    }

    /// How a process enters `group`.
    pub fn join(&self, group: &str) -> io::Result<CgroupJoin> {
        let relative = relative(group)?;
        Ok(CgroupJoin {
            tasks: self
                .hierarchies
                .iter()
                .map(|hierarchy| hierarchy.mount.join(&relative).join("tasks"))
                .collect(),
            unified: self.unified.as_ref().map(|root| root.join(&relative)),
        })
    }

    /// What a container sees below `/sys/fs/cgroup`.
    pub fn container_mounts(&self) -> Vec<CgroupMount> {
        if self.is_v2() {
            return vec![CgroupMount { name: String::new(), options: Vec::new() }];
        }
        let mount = |hierarchy: &Hierarchy| CgroupMount {
            name: hierarchy.name.clone(),
            options: match hierarchy.options.as_slice() {
                // A named hierarchy has no controllers and must say so.
                [name] if name.starts_with("name=") => vec!["none".to_owned(), name.clone()],
                options => options.to_vec(),
            },
        };
        self.hierarchies.iter().map(mount).collect()
    }

    /// The file whose `oom_kill` line counts the kernel's kills in `group`.
    pub fn oom_file(&self, group: &str) -> Option<PathBuf> {
        let relative = relative(group).ok()?;
        match (self.controller("memory"), &self.unified) {
            (Some(root), _) => Some(root.join(relative).join("memory.oom_control")),
            (None, Some(root)) if self.is_v2() => Some(root.join(relative).join("memory.events")),
            _ => None,
        }
    }

    /// Applies `limits` to `group`.
    pub fn apply(&self, group: &str, limits: &Limits) -> io::Result<()> {
        if self.is_v2() { self.apply_v2(group, limits) } else { self.apply_v1(group, limits) }
    }

    fn apply_v1(&self, group: &str, limits: &Limits) -> io::Result<()> {
        let relative = relative(group)?;
        if let Some((file, _)) = limits.unified.first() {
            let why = format!("{file}: this node has control groups of version 1");
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let set = |controller: &str, file: &str, value: &str| match self.controller(controller) {
            Some(root) => write(&root.join(&relative).join(file), value),
            None => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{file}: this node has no cgroup controller {controller}"),
            )),
        };
        if let Some(shares) = limits.cpu_shares {
            set("cpu", "cpu.shares", &shares.max(2).to_string())?;
        }
        if let Some(period) = limits.cpu_period {
            set("cpu", "cpu.cfs_period_us", &period.to_string())?;
        }
        if let Some(quota) = limits.cpu_quota {
            set("cpu", "cpu.cfs_quota_us", &quota.max(-1).to_string())?;
        }
        if let Some(memory) = limits.memory {
            let memory = memory.max(-1).to_string();
            let swap = limits.memory_swap.map(|swap| swap.max(-1).to_string());
            // The limit of both must never be below that of memory alone, so the order depends on the direction.
            let swap_first =
                swap.as_ref().is_some_and(|swap| set("memory", "memory.memsw.limit_in_bytes", swap).is_ok());
            set("memory", "memory.limit_in_bytes", &memory)?;
            if let (Some(swap), false) = (swap, swap_first) {
                // Kernels without swap accounting have no such file; nothing can be swapped there.
                let _ = set("memory", "memory.memsw.limit_in_bytes", &swap);
            }
        }
        if let Some(pids) = limits.pids {
            set("pids", "pids.max", &max_or(pids))?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            set("cpuset", "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            set("cpuset", "cpuset.mems", mems)?;
        }
        for (size, bytes) in &limits.hugepages {
            let file = format!("hugetlb.{size}.limit_in_bytes");
            let counted =
                self.controller("hugetlb").is_some_and(|root| root.join(&relative).join(&file).exists());
            if counted || *bytes > 0 {
                set("hugetlb", &file, &bytes.to_string())?;
            }
        }
        Ok(())
    }

    fn apply_v2(&self, group: &str, limits: &Limits) -> io::Result<()> {
        let Some(root) = &self.unified else { return Ok(()) };
        let dir = root.join(relative(group)?);
        let set = |file: &str, value: &str| write(&dir.join(file), value);
        if let Some(shares) = limits.cpu_shares {
            set("cpu.weight", &weight(shares).to_string())?;
        }
        if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
            let quota = limits
                .cpu_quota
                .filter(|quota| *quota > 0)
                .map_or("max".to_owned(), |quota| quota.to_string());
            set("cpu.max", &format!("{quota} {}", limits.cpu_period.unwrap_or(100_000)))?;
        }
        if let Some(memory) = limits.memory {
            set("memory.max", &max_or(memory))?;
            if let Some(both) = limits.memory_swap {
                let swap = if both < 0 || memory < 0 { -1 } else { (both - memory).max(0) };
                let _ = set("memory.swap.max", &max_or(swap));
            }
        }
        if let Some(pids) = limits.pids {
            set("pids.max", &max_or(pids))?;
        }
        if let Some(cpus) = &limits.cpuset_cpus {
            set("cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &limits.cpuset_mems {
            set("cpuset.mems", mems)?;
        }
        for (size, bytes) in &limits.hugepages {
            let file = format!("hugetlb.{size}.max");
            if dir.join(&file).exists() || *bytes > 0 {
                set(&file, &bytes.to_string())?;
            }
        }
        for (file, value) in &limits.unified {
            if file.contains('/') || !file.contains('.') {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("{file}: not a cgroup file"),
                ));
            }
            set(file, value)?;
        }
        Ok(())
    }

    /// Which devices processes of `group` may use; `None`: all.
    pub fn allow_devices(&self, group: &str, rules: Option<&[cgroup_device::Rule]>) -> io::Result<()> {
        let Some(rules) = rules else { return Ok(()) };
        let relative = relative(group)?;
        if let Some(root) = self.controller("devices") {
            let dir = root.join(relative);
            write(&dir.join("devices.deny"), "a")?;
            for rule in rules {
                write(&dir.join("devices.allow"), &rule.to_string())?;
            }
        } else if let (true, Some(root)) = (self.is_v2(), &self.unified) {
            let dir = fs::File::open(root.join(relative))?;
            crate::sys::attach_device_program(dir.as_fd(), &cgroup_device::program(rules))?;
        }
        Ok(())
    }

    /// Current use of `group`.
    pub fn usage(&self, group: &str) -> io::Result<Usage> {
        let relative = relative(group)?;
        let mut usage = Usage::default();
        if self.is_v2() {
            let Some(root) = &self.unified else { return Ok(usage) };
            let dir = root.join(relative);
            usage.cpu_nanos = keyed(&fs::read_to_string(dir.join("cpu.stat"))?, "usage_usec") * 1000;
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            usage.memory = number(&dir.join("memory.current"));
            usage.working_set = usage.memory.saturating_sub(keyed(&stat, "inactive_file"));
            usage.rss = keyed(&stat, "anon");
            usage.page_faults = keyed(&stat, "pgfault");
            usage.major_page_faults = keyed(&stat, "pgmajfault");
            usage.swap = number(&dir.join("memory.swap.current"));
            let limit =
                |file: &str| fs::read_to_string(dir.join(file)).ok().and_then(|max| max.trim().parse().ok());
            usage.memory_limit = limit("memory.max");
            usage.swap_limit = limit("memory.swap.max");
            usage.pids = number(&dir.join("pids.current"));
            return Ok(usage);
        }
        let dir = |controller: &str| self.controller(controller).map(|root| root.join(&relative));
        if let Some(dir) = dir("cpuacct") {
            usage.cpu_nanos = fs::read_to_string(dir.join("cpuacct.usage"))?.trim().parse().unwrap_or(0);
        }
        if let Some(dir) = dir("memory") {
            let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
            usage.memory = number(&dir.join("memory.usage_in_bytes"));
            usage.working_set = usage.memory.saturating_sub(keyed(&stat, "total_inactive_file"));
            usage.rss = keyed(&stat, "total_rss");
            usage.page_faults = keyed(&stat, "total_pgfault");
            usage.major_page_faults = keyed(&stat, "total_pgmajfault");
            usage.swap = keyed(&stat, "total_swap");
            // "Unlimited" is the largest multiple of the page size.
            let limit = number(&dir.join("memory.limit_in_bytes"));
            usage.memory_limit = Some(limit).filter(|limit| *limit < 1 << 62);
            let both = dir.join("memory.memsw.limit_in_bytes");
            let both = Some(both).filter(|file| file.exists()).map(|file| number(&file));
            let both = both.filter(|both| *both < 1 << 62);
            usage.swap_limit = both.zip(usage.memory_limit).map(|(both, memory)| both.saturating_sub(memory));
        }
        if let Some(dir) = dir("pids") {
            usage.pids = number(&dir.join("pids.current"));
        }
        Ok(usage)
    }

    /// Kills every process of `group` and of the groups below it, and waits until they are gone.
    pub fn kill(&self, group: &str) -> io::Result<()> {
        let relative = relative(group)?;
        if let Some(root) = &self.unified {
            let dir = root.join(&relative);
            match fs::write(dir.join("cgroup.kill"), "1") {
                Ok(()) => wait_until_empty(&dir)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(named(&dir, error)),
            }
        }
        // v1 only, or processes that joined by v1 alone.
        let deadline = Instant::now() + KILL_TIMEOUT;
        for hierarchy in &self.hierarchies {
            let dir = hierarchy.mount.join(&relative);
            loop {
                let pids = processes_below(&dir);
                if pids.is_empty() {
                    break;
                }
                for pid in &pids {
                    let _ = crate::sys::kill(*pid, libc::SIGKILL);
                }
                if Instant::now() > deadline {
                    return Err(named(&dir, io::Error::new(io::ErrorKind::TimedOut, "processes do not end")));
                }
                pause();
            }
        }
        Ok(())
    }

    /// Kills what runs in `group` and removes it with the groups below it. A missing group is no error.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        self.kill(group)?;
        let relative = relative(group)?;
        for root in self.roots() {
            remove_tree(&root.join(&relative))?;
        }
        Ok(())
    }

    /// Removes `group` unless something still is in it.
    pub fn remove_if_empty(&self, group: &str) {
        if let Ok(relative) = relative(group) {
            for root in self.roots() {
                let _ = fs::remove_dir(root.join(&relative));
            }
        }
    }

    /// Folders of `group` that exist.
    pub fn existing(&self, group: &str) -> Vec<PathBuf> {
        let Ok(relative) = relative(group) else { return Vec::new() };
        self.roots().map(|root| root.join(&relative)).filter(|dir| dir.exists()).collect()
    }
}

fn relative(group: &str) -> io::Result<PathBuf> {
    let path = Path::new(group);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::RootDir));
    if !plain || !path.is_absolute() || path.parent().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{group:?} is not a cgroup path")));
    }
    Ok(path.strip_prefix("/").unwrap_or(path).to_owned())
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    fs::write(path, value).map_err(|error| named(path, error))
}

fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

pub(crate) fn number(path: &Path) -> u64 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

pub(crate) fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

/// v2: lets the children of `dir` use what `dir` itself can; a controller that is not there is left out.
fn enable_controllers(dir: &Path) {
    let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    let control = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&control).unwrap_or_default();
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|known| known == controller) {
            let _ = fs::write(&control, format!("+{controller}"));
        }
    }
}

/// Waits for the kernel's word that no process is left below the v2 group `dir`.
fn wait_until_empty(dir: &Path) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let path = dir.join("cgroup.events");
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        // Reading arms the event, so the file is opened and read before the wait.
        let mut file = match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let mut text = String::new();
        io::Read::read_to_string(&mut file, &mut text)?;
        if keyed(&text, "populated") == 0 {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(named(dir, io::Error::new(io::ErrorKind::TimedOut, "processes do not end")));
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&left))?;
    }
}

/// Before looking again at a v1 group.
#[allow(clippy::disallowed_methods, reason = "cgroup v1 has no event for the end of a group's last process")]
fn pause() {
    std::thread::sleep(Duration::from_millis(2));
}

/// Those of other PID namespaces, shown as 0, are left out.
fn processes_below(dir: &Path) -> Vec<Pid> {
    let mut pids: Vec<Pid> = fs::read_to_string(dir.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| Pid::from_raw(line.parse().ok()?))
        .collect();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(processes_below(&entry.path()));
        }
    }
    pids
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // The last process is a zombie for a moment; v1 tells nobody when it is not any more.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                pause();
            }
            Err(error) => return Err(named(dir, error)),
        }
    }
}

/// `cpu.weight` of the second version for `cpu.shares` of the first: the least, the greatest and the usual one of both are
/// the same, as runc has it since 1.3.2 and crun since 1.23.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            // at most 10 000
            10_f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_processor_weighs_as_much_as_a_group_that_says_nothing() {
        let weights = [0, 2, 3, 512, 1024, 2048, 262_144, u64::MAX].map(weight);
        assert_eq!(weights, [1, 1, 2, 59, 100, 174, 10_000, 10_000]);
    }

    const HYBRID: &str = "\
26 25 0:21 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
27 26 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
28 26 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
29 26 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
30 26 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn hybrid_uses_v1_controllers_and_the_v2_tree_for_killing() {
        let cgroups = Cgroups::parse(HYBRID);
        assert!(!cgroups.is_v2());
        assert_eq!(cgroups.controller("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct")));
        let join = cgroups.join("/a/b").unwrap();
        assert_eq!(join.tasks.len(), 3);
        assert_eq!(join.unified, Some(PathBuf::from("/sys/fs/cgroup/unified/a/b")));
        let mounts = cgroups.container_mounts();
        assert_eq!(mounts[2].options, ["none", "name=systemd"]);
    }

    #[test]
    fn v2_alone_is_v2_even_beside_systemds_named_hierarchy() {
        let only = "30 26 0:25 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n\
                    29 26 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
        let cgroups = Cgroups::parse(only);
        assert!(cgroups.is_v2());
        assert!(cgroups.join("/a").unwrap().tasks.is_empty());
    }

    #[test]
    fn group_paths_cannot_leave_the_tree() {
        for bad in ["/../etc", "relative", "/a/../../b", "", "/"] {
            assert!(relative(bad).is_err(), "{bad:?}");
        }
        assert_eq!(relative("/a//b/").unwrap(), Path::new("a/b"));
    }
}
