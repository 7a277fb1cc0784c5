//! What comes of settings, a machine and pods.

use serde_json::{Value, json};

use super::machine::tests::machine;
use super::*;

fn settings(text: &str) -> KubeletConfiguration {
    let head = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";
    KubeletConfiguration::parse(format!("{head}{text}").as_bytes()).unwrap()
}

fn pod(uid: &str, cpus: &[&str]) -> Pod {
    let one = |(at, cpu): (usize, &&str)| -> Value {
        let amounts = json!({"cpu": cpu, "memory": "1Mi"});
        json!({"name": format!("c{at}"), "resources": {"requests": amounts, "limits": amounts}})
    };
    let list: Vec<Value> = cpus.iter().enumerate().map(one).collect();
    serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {"containers": list}})).unwrap()
}

/// Two sockets of four cores with two threads each.
fn open(folder: &Path, text: &str) -> Result<(Managers, Devices), String> {
    let machine = Arc::new(machine([2, 1, 4, 2], 1 << 30));
    Ok((Managers::open(folder, machine, &settings(text))?, Devices::open(folder)))
}

async fn admit(
    (managers, devices): &(Managers, Devices),
    pod: &Pod,
    alive: &[&str],
) -> Result<String, String> {
    let alive = alive.iter().map(|uid| (*uid).to_owned()).collect();
    let admitted = managers.admit((pod, false), &alive, devices).await;
    admitted.map_err(|refused| format!("{}: {}", refused.reason, refused.message))?;
    let uid = pod.metadata.uid.as_deref().unwrap();
    Ok(containers(pod).map(|one| managers.of(uid, &one.name).0.to_string()).collect::<Vec<_>>().join(" "))
}

const STATIC: &str = "cpuManagerPolicy: static\nkubeReserved: {cpu: 500m}\n";

#[tokio::test]
async fn one_place_for_a_container_or_for_the_whole_pod() {
    let folder = tempfile::tempdir().unwrap();
    let near = |more: &str| open(folder.path(), &format!("{STATIC}{more}")).unwrap();
    let clean = |managers: (Managers, Devices)| managers.0.keep(|_| false);
    let two = pod("a", &["6", "6"]);
    // 0-3,8-11 and 4-7,12-15; 0 is reserved
    let any = near("");
    assert_eq!(admit(&any, &two, &[]).await.unwrap(), "1-3,9-11 4-6,12-14");
    clean(any);
    let containers = near("topologyManagerPolicy: restricted\n");
    assert_eq!(admit(&containers, &two, &[]).await.unwrap(), "1-3,9-11 4-6,12-14");
    clean(containers);
    let pods = near("topologyManagerPolicy: single-numa-node\ntopologyManagerScope: pod\n");
    let why = "TopologyAffinityError: Resources cannot be allocated with Topology locality";
    assert_eq!(admit(&pods, &two, &[]).await.unwrap_err(), why);
    assert_eq!(admit(&pods, &pod("b", &["2", "2"]), &[]).await.unwrap(), "1,9 2,10");
    assert_eq!(admit(&pods, &pod("c", &["4", "4"]), &["b"]).await.unwrap(), "4-5,12-13 6-7,14-15");
    // who is gone has nothing any more
    assert_eq!(admit(&pods, &pod("d", &["4", "2"]), &["c"]).await.unwrap(), "1-2,9-10 3,11");
    let short = |name: &str| name.replace("kubelet_", "").replace("_manager", "").replace("_total", "");
    let shown = |Sample { name, labels, value, .. }: Sample| {
        let labels = labels.into_iter().fold(String::new(), |text, (_, value)| format!("{text} {value}"));
        format!("{}{labels}: {value}", short(name))
    };
    let shown: Vec<String> = pods.0.measure().into_iter().map(shown).collect();
    expect_test::expect![[r#"
        topology_admission_requests: 4
        topology_admission_errors: 1
        cpu_pinning_requests: 6
        cpu_pinning_errors: 0
        memory_pinning_requests: 0
        memory_pinning_errors: 0
        container_aligned_compute_resources_count numa_node container: 0
        container_aligned_compute_resources_failure_count numa_node container: 0
        container_aligned_compute_resources_count physical_cpu container: 0
        container_aligned_compute_resources_failure_count physical_cpu container: 0
        container_aligned_compute_resources_count uncore_cache container: 6
        container_aligned_compute_resources_count numa_node pod: 3
        container_aligned_compute_resources_failure_count numa_node pod: 1
        cpu_shared_pool_size_millicores: 1000
        cpu_exclusive_cpu_allocation_count: 14
        cpu_allocation_per_numa 0: 6
        cpu_allocation_per_numa 1: 8"#]]
    .assert_eq(&shown.join("\n"));
    // and another kubelet knows who has what
    drop(pods);
    let again = near("topologyManagerPolicy: best-effort\n");
    assert_eq!(again.0.of("d", "c1").0.to_string(), "3,11");
    assert_eq!(again.0.allocatable().0.to_string(), "1-15");
}

#[tokio::test]
async fn refusals_have_the_names_of_the_reference() {
    let folder = tempfile::tempdir().unwrap();
    let managers =
        open(folder.path(), &format!("{STATIC}cpuManagerPolicyOptions: {{full-pcpus-only: 'true'}}\n"))
            .unwrap();
    assert_eq!(
        admit(&managers, &pod("a", &["1"]), &[]).await.unwrap_err(),
        "SMTAlignmentError: SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2"
    );
    let refused = managers.0.measure().into_iter().find(|sample| {
        sample.name.ends_with("failure_count") && sample.labels.contains(&("boundary", CORE.to_owned()))
    });
    assert_eq!(refused.map(|sample| sample.value), Some(1));
    let plain = open(tempfile::tempdir().unwrap().path(), STATIC).unwrap();
    assert_eq!(
        admit(&plain, &pod("a", &["2", "16"]), &[]).await.unwrap_err(),
        "UnexpectedAdmissionError: Allocate failed due to not enough cpus available to satisfy request: requested=16, \
         available=13, which is unexpected"
    );
    assert!(!plain.0.has_own("a"), "refused as a whole");
}

#[test]
fn what_does_not_fit_the_machine_is_refused() {
    let check = |text: &str, why: &str| {
        let folder = tempfile::tempdir().unwrap();
        let error = open(folder.path(), text).map(drop).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    };
    check("cpuManagerPolicy: static\n", "systemreserved.cpu + kubereserved.cpu to be greater than zero");
    check("reservedSystemCPUs: 3-16\n", "Invalid cpuset specified by --reserved-cpus");
    check(
        "memoryManagerPolicy: Static\n",
        "is not equal to the value \"100Mi\" determined by Node Allocatable",
    );
    let wide = "cpuManagerPolicy: static\nkubeReserved: {cpu: '17'}\n";
    check(wide, "unable to reserve the required amount of CPUs (size of  did not equal 17)");
}

#[test]
fn without_policies_nothing_is_pinned_or_written() {
    let folder = tempfile::tempdir().unwrap();
    let (managers, _) = open(folder.path(), "").unwrap();
    let mut numbers = LinuxContainerResources { cpu_quota: 5, ..Default::default() };
    managers.pin("a", "c0", &mut numbers);
    assert_eq!(numbers, LinuxContainerResources { cpu_quota: 5, ..Default::default() });
    assert!(std::fs::read_dir(folder.path()).unwrap().next().is_none());
}
