//! The static policy of processors: containers of Guaranteed pods that ask for whole processors have them for
//! themselves; all others share what is left.
//!
//! Rule: Kubernetes documentation, "Control CPU Management Policies on the Node". What a pod is refused for, and the
//! checks of what is remembered, are the reference's.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::assignment::take;
use super::checkpoint::Cpus;
use super::cpu_set::CpuSet;
use super::machine::{Level, Machine};
use super::options::CpuOptions;
use super::topology::{Hint, Wishes, masks};
use super::{Refused, containers, passes_on};
use crate::resources::{milli, qos_class};

/// What is decided so far, and by which rules.
#[derive(Debug, Clone)]
pub struct Processors {
    machine: Arc<Machine>,
    options: CpuOptions,
    reserved: CpuSet,
    /// What all share that have none of their own.
    pub pool: CpuSet,
    /// Who has which for itself.
    pub given: Cpus,
}

/// What a container may have for itself; 0: it shares.
pub fn exclusive(pod: &Pod, container: &Container) -> usize {
    if qos_class(pod) != "Guaranteed" || whole_pod(pod) {
        return 0;
    }
    let resources = container.resources.as_ref();
    let amount = |list: Option<&std::collections::BTreeMap<String, _>>| {
        list.and_then(|list| list.get("cpu"))
            .map(|amount: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| milli(&amount.0))
    };
    let request = resources.and_then(|resources| {
        amount(resources.requests.as_ref()).or_else(|| amount(resources.limits.as_ref()))
    });
    let request = request.filter(|milli| *milli > 0 && milli % 1000 == 0).unwrap_or(0);
    usize::try_from(request / 1000).unwrap_or(0)
}

/// Resources of the pod as a whole have no place in these policies.
pub(super) fn whole_pod(pod: &Pod) -> bool {
    let whole = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    whole.is_some_and(|whole| whole.requests.is_some() || whole.limits.is_some())
}

impl Processors {
    /// `reserved` in number, or by name where `named` has any; `kept` is what is remembered.
    pub fn new(
        machine: Arc<Machine>,
        options: CpuOptions,
        (reserved, named): (usize, CpuSet),
        kept: Option<(CpuSet, Cpus)>,
    ) -> Result<Self, String> {
        if reserved == 0 && named.is_empty() {
            let why = "[cpumanager] the static policy requires systemreserved.cpu + kubereserved.cpu to be greater than zero";
            return Err(why.to_owned());
        }
        let all = machine.all();
        let reserved = if named.is_empty() {
            take(&machine, &all, reserved, &options).map_err(|_| {
                format!(
                    "new static policy error: [cpumanager] unable to reserve the required amount of CPUs (size of  did not \
                     equal {reserved})"
                )
            })?
        } else {
            named
        };
        let fresh = if options.strict_reservation { all.minus(&reserved) } else { all };
        let kept = kept.filter(|(pool, given)| !pool.is_empty() || !given.is_empty());
        let (pool, given) = kept.unwrap_or((fresh, Cpus::new()));
        let this = Self { machine, options, reserved, pool, given };
        this.check()?;
        Ok(this)
    }

    /// Whether what is remembered is of this machine and these settings.
    fn check(&self) -> Result<(), String> {
        let Self { reserved, pool, .. } = self;
        if pool.is_empty() && !self.given.is_empty() && !self.options.strict_reservation {
            return Err("default cpuset cannot be empty".to_owned());
        }
        if self.options.strict_reservation {
            let shared = reserved.and(pool);
            if !shared.is_empty() {
                return Err(format!(
                    "some of strictly reserved cpus: \"{shared}\" are present in defaultCpuSet: \"{pool}\""
                ));
            }
        } else if !reserved.within(pool) {
            return Err(format!(
                "not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{pool}\""
            ));
        }
        let mut known = pool.clone();
        for (pod, all) in &self.given {
            for (container, cpus) in all {
                if !pool.and(cpus).is_empty() {
                    return Err(format!(
                        "pod: {pod}, container: {container} cpuset: \"{cpus}\" overlaps with default cpuset \"{pool}\""
                    ));
                }
                known = known.union(cpus);
            }
        }
        if self.options.strict_reservation {
            known = known.union(reserved);
        }
        let all = self.machine.all();
        if known == all {
            return Ok(());
        }
        Err(format!("current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""))
    }

    /// What can be given at all.
    pub fn allocatable(&self) -> CpuSet {
        self.machine.all().minus(&self.reserved)
    }

    /// What nobody has for himself yet, and may.
    pub fn free(&self) -> CpuSet {
        self.pool.minus(&self.reserved)
    }

    /// What a container has for itself.
    pub fn of(&self, uid: &str, container: &str) -> Option<&CpuSet> {
        self.given.get(uid)?.get(container)
    }

    /// What containers of the pod before `container` leave to it.
    fn left(&self, pod: &Pod, container: Option<&str>) -> CpuSet {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut left = CpuSet::default();
        for earlier in containers(pod).take_while(|one| Some(one.name.as_str()) != container) {
            let Some(cpus) = self.of(uid, &earlier.name) else { continue };
            left = if passes_on(pod, earlier) { left.union(cpus) } else { left.minus(cpus) };
        }
        left
    }

    /// Gives a container what it asks for, once; whether it asks for anything.
    pub fn give(&mut self, pod: &Pod, container: &Container, hint: Hint) -> Result<bool, Refused> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let count = exclusive(pod, container);
        if count == 0 || self.of(uid, &container.name).is_some() {
            return Ok(count > 0);
        }
        if self.options.full_cores_only {
            let per_core = self.machine.per_core().max(1);
            if !count.is_multiple_of(per_core) {
                return Err(Refused::Threads(format!(
                    "SMT Alignment Error: requested {count} cpus not multiple cpus per core = {per_core}"
                )));
            }
            // whoever shares a core with a reserved processor is not free as a core
            let taken = self.machine.whole(&self.reserved, Level::Core);
            let free = self.pool.minus(&taken).union(&self.left(pod, Some(&container.name))).len();
            if count > free {
                return Err(Refused::Threads(format!(
                    "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {free}, \
                     requested CPUs = {count}, CPUs per core = {per_core}"
                )));
            }
        }
        let mut free = self.free().union(&self.left(pod, Some(&container.name)));
        if self.options.full_cores_only {
            free = free.minus(&self.machine.whole(&self.reserved, Level::Core));
        }
        let near = hint.mask.map(|nodes| {
            let near = self.machine.of_nodes(nodes);
            let near =
                if self.options.align_by_socket { self.machine.whole(&near, Level::Socket) } else { near };
            near.and(&free)
        });
        let near = near.unwrap_or_default();
        let first =
            take(&self.machine, &near, count.min(near.len()), &self.options).map_err(Refused::Other)?;
        let rest = take(&self.machine, &free.minus(&first), count - first.len(), &self.options)
            .map_err(Refused::Other)?;
        let cpus = first.union(&rest);
        self.pool = self.pool.minus(&cpus);
        self.given.entry(uid.to_owned()).or_default().insert(container.name.clone(), cpus);
        Ok(true)
    }

    /// Whether no core is ever shared.
    pub fn gives_whole_cores(&self) -> bool {
        self.options.full_cores_only
    }

    /// Takes back what pods have that are not to be kept. Whether there was any.
    pub fn keep(&mut self, kept: impl Fn(&str) -> bool) -> bool {
        let gone: Vec<String> = self.given.keys().filter(|uid| !kept(uid)).cloned().collect();
        for uid in &gone {
            for cpus in self.given.remove(uid).unwrap_or_default().values() {
                self.pool = self.pool.union(cpus);
            }
        }
        !gone.is_empty()
    }

    /// Where a container's processors could come from.
    pub fn wishes(&self, pod: &Pod, container: &Container) -> Wishes {
        let count = exclusive(pod, container);
        if count == 0 {
            return None;
        }
        match self.of(pod.metadata.uid.as_deref().unwrap_or_default(), &container.name) {
            Some(cpus) if cpus.len() != count => Some(Vec::new()),
            Some(cpus) => Some(self.hints(cpus, &CpuSet::default(), count)),
            None => Some(self.hints(&self.free(), &self.left(pod, Some(&container.name)), count)),
        }
    }

    /// Where those of a whole pod could come from.
    pub fn pod_wishes(&self, pod: &Pod) -> Wishes {
        let (mut long, mut most) = (0, 0);
        for container in containers(pod) {
            let count = exclusive(pod, container);
            if passes_on(pod, container) {
                most = most.max(long + count);
            } else {
                long += count;
            }
        }
        let count = most.max(long);
        if count == 0 {
            return None;
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut has = CpuSet::default();
        for container in containers(pod) {
            let Some(cpus) = self.of(uid, &container.name) else { continue };
            if cpus.len() != exclusive(pod, container) {
                return Some(Vec::new());
            }
            has = has.union(cpus);
        }
        if has.len() == count {
            return Some(self.hints(&has, &CpuSet::default(), count));
        }
        Some(self.hints(&self.free(), &has, count))
    }

    /// The sets of nodes that have enough; those as small as on an empty machine are preferred.
    fn hints(&self, free: &CpuSet, reusable: &CpuSet, count: usize) -> Vec<Hint> {
        let groups = self.machine.groups(&self.machine.all(), Level::Node);
        let nodes: Vec<usize> = groups.keys().copied().collect();
        let mut least = nodes.len();
        let mut found = Vec::new();
        for mask in masks(&nodes) {
            let own = self.machine.of_nodes(mask);
            if own.len() >= count {
                least = least.min(mask.count());
            }
            let enough = own.and(&free.union(reusable)).len() >= count;
            if reusable.within(&own) && enough {
                found.push(Hint { mask: Some(mask), preferred: false });
            }
        }
        let sockets = self.machine.count(Level::Socket).max(1);
        let per_socket = nodes.len() / sockets;
        for hint in &mut found {
            let Some(mask) = hint.mask else { continue };
            let spans = self.machine.groups(&self.machine.of_nodes(mask), Level::Socket).len();
            let aligned =
                self.options.align_by_socket && per_socket > 0 && spans == least.div_ceil(per_socket);
            hint.preferred = aligned || mask.count() == least;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::machine::tests::machine;
    use super::super::topology::Mask;
    use super::*;

    fn pod(uid: &str, spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid}, "spec": spec})).unwrap()
    }

    fn container(name: &str, cpu: &str) -> Value {
        let amounts = json!({"cpu": cpu, "memory": "1Mi"});
        json!({"name": name, "resources": {"limits": amounts, "requests": amounts}})
    }

    fn processors(shape: [usize; 4], reserved: usize, options: CpuOptions) -> Processors {
        Processors::new(Arc::new(machine(shape, 0)), options, (reserved, CpuSet::default()), None).unwrap()
    }

    /// Gives all containers of a pod what they want, and says what that is and what is left to share.
    fn give(processors: &mut Processors, pod: &Pod) -> Result<String, Refused> {
        let uid = pod.metadata.uid.clone().unwrap();
        let mut text = String::new();
        for one in containers(pod) {
            processors.give(pod, one, Hint::default())?;
            let cpus = processors.of(&uid, &one.name).map(ToString::to_string).unwrap_or("shared".to_owned());
            text.push_str(&format!("{}={cpus} ", one.name));
        }
        Ok(format!("{text}pool={}", processors.pool))
    }

    #[test]
    fn whole_processors_of_guaranteed_pods_are_exclusive() {
        let mut all = processors([1, 1, 4, 2], 1, CpuOptions::default());
        assert_eq!(all.allocatable().to_string(), "1-7");
        let two = pod("two", json!({"containers": [container("a", "2"), container("b", "500m")]}));
        assert_eq!(give(&mut all, &two).unwrap(), "a=1,5 b=shared pool=0,2-4,6-7");
        assert_eq!(give(&mut all, &two).unwrap(), "a=1,5 b=shared pool=0,2-4,6-7", "given once");
        let burstable = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]});
        assert_eq!(give(&mut all, &pod("b", burstable)).unwrap(), "c=shared pool=0,2-4,6-7");
        let whole = json!({"resources": {"limits": {"cpu": "2", "memory": "1Mi"}}, "containers": [container("c", "2")]});
        assert_eq!(give(&mut all, &pod("w", whole)).unwrap(), "c=shared pool=0,2-4,6-7");
        let many = pod("many", json!({"containers": [container("a", "6")]}));
        let why = "not enough cpus available to satisfy request: requested=6, available=5";
        assert_eq!(give(&mut all, &many).unwrap_err(), Refused::Other(why.to_owned()));
        assert!(all.keep(|uid| uid != "two") && !all.keep(|uid| uid != "two"));
        assert_eq!(give(&mut all, &many).unwrap(), "a=1-3,5-7 pool=0,4");
    }

    #[test]
    fn init_containers_leave_theirs_and_sidecars_keep_theirs() {
        let mut all = processors([1, 1, 4, 2], 1, CpuOptions::default());
        let mut sidecar = container("side", "1");
        sidecar["restartPolicy"] = json!("Always");
        let one = pod(
            "p",
            json!({"initContainers": [container("first", "4"), sidecar, container("second", "2")],
                "containers": [container("a", "2"), container("b", "2")]}),
        );
        // the sidecar is content with the other half of the reserved core; the others take what the first left
        let found = give(&mut all, &one).unwrap();
        assert_eq!(found, "first=1-2,5-6 side=4 second=1,5 a=1,5 b=2,6 pool=0,3,7");
        assert!(all.keep(|_| false));
        assert_eq!(all.pool.to_string(), "0-7");
    }

    #[test]
    fn full_cores_are_asked_for_in_full_cores() {
        let full = CpuOptions { full_cores_only: true, ..CpuOptions::default() };
        let mut all = processors([1, 1, 2, 2], 1, full);
        let odd = pod("odd", json!({"containers": [container("a", "1")]}));
        let why = "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2";
        assert_eq!(give(&mut all, &odd).unwrap_err(), Refused::Threads(why.to_owned()));
        let four = pod("four", json!({"containers": [container("a", "4")]}));
        let why = "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 2, requested CPUs = 4, CPUs per core = 2";
        assert_eq!(give(&mut all, &four).unwrap_err(), Refused::Threads(why.to_owned()));
        let two = pod("two", json!({"containers": [container("a", "2")]}));
        assert_eq!(give(&mut all, &two).unwrap(), "a=1,3 pool=0,2");
    }

    #[test]
    fn reserved_processors_are_shared_or_nobodys() {
        let strict = CpuOptions { strict_reservation: true, ..CpuOptions::default() };
        let all = processors([1, 1, 4, 2], 2, strict);
        assert_eq!(
            (all.pool.to_string(), all.allocatable().to_string()),
            ("1-3,5-7".into(), "1-3,5-7".into())
        );
        let all = processors([1, 1, 4, 2], 2, CpuOptions::default());
        assert_eq!(all.pool.to_string(), "0-7");
        let none = Processors::new(Arc::new(machine([1, 1, 4, 2], 0)), strict, (0, CpuSet::default()), None);
        assert!(none.unwrap_err().contains("to be greater than zero"));
    }

    #[test]
    fn what_is_remembered_must_be_of_this_machine() {
        let check = |strict: bool, pool: &str, given: &str, expected: Result<(), &str>| {
            let options = CpuOptions { strict_reservation: strict, ..CpuOptions::default() };
            let given: Cpus = match given {
                "" => Cpus::new(),
                cpus => [("p".to_owned(), [("c".to_owned(), CpuSet::parse(cpus).unwrap())].into())].into(),
            };
            let kept = Some((CpuSet::parse(pool).unwrap(), given));
            let found =
                Processors::new(Arc::new(machine([1, 1, 4, 1], 0)), options, (1, CpuSet::default()), kept);
            assert_eq!(found.map(drop), expected.map_err(str::to_owned));
        };
        check(false, "0,3", "1-2", Ok(()));
        check(true, "3", "1-2", Ok(()));
        check(false, "", "1-2", Err("default cpuset cannot be empty"));
        check(false, "1-3", "", Err("not all reserved cpus: \"0\" are present in defaultCpuSet: \"1-3\""));
        check(
            true,
            "0-3",
            "",
            Err("some of strictly reserved cpus: \"0\" are present in defaultCpuSet: \"0-3\""),
        );
        check(
            false,
            "0-3",
            "1",
            Err("pod: p, container: c cpuset: \"1\" overlaps with default cpuset \"0-3\""),
        );
        check(
            false,
            "0-2",
            "",
            Err("current set of available CPUs \"0-3\" doesn't match with CPUs in state \"0-2\""),
        );
    }

    #[test]
    fn hints_name_the_nodes_that_have_enough() {
        let show = |wishes: Wishes| {
            let one = |hint: Hint| {
                let nodes: String = hint.mask.unwrap().nodes().map(|node| node.to_string()).collect();
                format!("{nodes}{}", if hint.preferred { "+" } else { "" })
            };
            wishes.map_or("any".to_owned(), |all| all.into_iter().map(one).collect::<Vec<_>>().join(" "))
        };
        let mut all = processors([2, 1, 4, 2], 1, CpuOptions::default());
        let want = |count: &str| pod(count, json!({"containers": [container("a", count)]}));
        let wishes = |all: &Processors, pod: &Pod| {
            let own = show(all.wishes(pod, &pod.spec.as_ref().unwrap().containers[0]));
            assert_eq!(own, show(all.pod_wishes(pod)), "one container is the pod");
            own
        };
        assert_eq!(wishes(&all, &want("500m")), "any");
        assert_eq!(wishes(&all, &want("2")), "0+ 1+ 01");
        assert_eq!(wishes(&all, &want("8")), "1+ 01");
        assert_eq!(wishes(&all, &want("9")), "01+");
        assert_eq!(wishes(&all, &want("16")), "");
        // an affinity is kept as far as it goes
        let eight = want("8");
        let one = &eight.spec.as_ref().unwrap().containers[0];
        all.give(&eight, one, Hint { mask: Some(Mask::of([0])), preferred: false }).unwrap();
        assert_eq!(all.of("8", "a").unwrap().to_string(), "1-4,8-11");
        assert_eq!(wishes(&all, &eight), "01", "what it has");
        // nodes of one socket are as good as one
        let sockets = CpuOptions { align_by_socket: true, ..CpuOptions::default() };
        let all = processors([2, 2, 2, 1], 1, sockets);
        assert_eq!(wishes(&all, &want("2")), "1+ 2+ 3+ 01+ 02 03 12 13 23+ 012 013 023 123 0123");
    }
}
