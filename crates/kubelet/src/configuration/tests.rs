//! What is read, and what is refused.

use super::*;
use crate::eviction::threshold::{Threshold, Value};

fn parse(text: &str) -> Result<KubeletConfiguration, String> {
    let head = format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{text}");
    KubeletConfiguration::parse(head.as_bytes()).map_err(|error| error.to_string())
}

#[test]
fn a_file_of_the_references_form_is_read() {
    let read = parse(
        "maxPods: 30\nkubeReserved: {cpu: 100m}\nsystemReserved: {cpu: '1', memory: 1Gi}\n\
         evictionHard: {memory.available: 5%}\nevictionSoft: {nodefs.available: 1Gi}\n\
         evictionSoftGracePeriod: {nodefs.available: 1m30s}\nevictionMinimumReclaim: {nodefs.available: 500Mi}\n",
    )
    .unwrap();
    assert_eq!((read.max_pods, read.reserved("cpu"), read.reserved("memory")), (30, 1100, 1 << 30));
    let thresholds = read.thresholds().unwrap();
    assert_eq!(thresholds.len(), 3);
    assert_eq!((thresholds[0].signal, thresholds[0].value), (Signal::Memory, Value::Percent(5.0)));
    assert_eq!(thresholds[1].grace, Some(Duration::from_secs(90)));
    assert_eq!(thresholds[1].reclaim, Some(Value::Amount(500 << 20)));
    assert_eq!(thresholds[2], Threshold { signal: Signal::AllocatableMemory, ..thresholds[0] });
    let health = |text: &str| parse(text).unwrap().healthz_address().unwrap();
    assert_eq!(health(""), "127.0.0.1:10248".parse().ok());
    assert_eq!(health("healthzBindAddress: '::'\nhealthzPort: 1"), "[::]:1".parse().ok());
    assert_eq!(health("healthzPort: 0"), None);
    let period = |text: &str| parse(text).unwrap().volume_stats_period().unwrap();
    assert_eq!(period("volumeStatsAggPeriod: 1m30s"), Some(Duration::from_secs(90)));
    assert_eq!(period("volumeStatsAggPeriod: '-1s'"), None);
    let signs = |text: &str| {
        let signs = parse(text).unwrap().signs().unwrap();
        [signs.update, signs.report, signs.lease].map(|time| time.as_secs())
    };
    assert_eq!(signs(""), [10, 300, 10]);
    assert_eq!(signs("nodeStatusUpdateFrequency: 20s\nnodeLeaseDurationSeconds: 8"), [20, 20, 2]);
    assert_eq!(signs("nodeStatusUpdateFrequency: 20s\nnodeStatusReportFrequency: 1m"), [20, 60, 10]);
    let list = "shutdownGracePeriodByPodPriority: [{priority: 9, shutdownGracePeriodSeconds: 7}]";
    assert_eq!(parse(list).unwrap().shutdown_periods().unwrap(), [Period { priority: 9, seconds: 7 }]);
    assert_eq!(parse("").unwrap().shutdown_periods().unwrap(), []);
    assert_eq!(
        parse("").unwrap().thresholds().unwrap().len(),
        6,
        "the reference's five, and of all pods together"
    );
}

#[test]
fn thresholds_that_are_turned_off_or_that_others_stand_for_do_not_count() {
    let read = parse(
        "enforceNodeAllocatable: [none]\nevictionHard: {memory.available: 0%, containerfs.available: 5%, pid.available: 10%}\n\
         evictionSoft: {memory.available: 100%, nodefs.available: 5%}\n\
         evictionSoftGracePeriod: {memory.available: 1m, nodefs.available: 0s}\n\
         evictionMinimumReclaim: {pid.available: '0'}\nevictionPressureTransitionPeriod: 0s\n",
    )
    .unwrap();
    let thresholds = read.thresholds().unwrap();
    let told = thresholds.iter().map(|threshold| (threshold.signal, threshold.grace, threshold.reclaim));
    let expected = [(Signal::Pid, None, Some(Value::Amount(0))), (Signal::NodeFs, None, None)];
    assert_eq!(told.collect::<Vec<_>>(), expected, "a soft threshold without a wait is a hard one");
    assert_eq!(read.pressure_transition().unwrap(), Duration::from_secs(300));
    assert!(read.limits_layers() && !parse("").unwrap().limits_layers());
}

#[test]
fn processors_reserved_by_number_count_in_the_place_of_others() {
    let read = parse("kubeReserved: {cpu: '1', memory: 1Gi}\nreservedSystemCPUs: 0-1,4\n").unwrap();
    assert_eq!((read.reserved("cpu"), read.reserved("memory")), (3000, 1 << 30));
    assert_eq!(read.kept_back(0)["memory"].to_string(), "1124Mi");
}

#[test]
fn groups_of_the_nodes_own_programs_are_held_where_that_is_wished() {
    let read = parse(
        "kubeReserved: {cpu: '1'}\nkubeReservedCgroup: /k\nsystemReserved: {memory: 1Gi}\nsystemReservedCgroup: /s\n\
         enforceNodeAllocatable: [pods, kube-reserved-compressible, system-reserved]",
    )
    .unwrap();
    let told: Vec<String> = read
        .enforcements()
        .iter()
        .flat_map(|one| [one.event(&Ok(())), one.event(&Err(format!("{:?}", one.amounts)))])
        .collect();
    let expected = [
        "Updated limits on system reserved cgroup /s",
        r#"Failed to enforce System Reserved Cgroup Limits on "/s": {"memory": "1Gi"}"#,
        "Updated limits on kube reserved cgroup /k",
        r#"Failed to enforce Kube Reserved Compressible Cgroup Limits on "/k": {"cpu": "1"}"#,
    ];
    assert_eq!(told, expected);
    assert!(read.enforces_allocatable() && parse("").unwrap().enforcements().is_empty());
}

#[test]
fn what_cannot_hold_is_refused() {
    let check = |text: &str, why: &str| {
        let error = parse(text).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    };
    check("cpuManager: static", "unknown field `cpuManager`");
    check("cpuManagerPolicy: dynamic", "unknown policy: \"dynamic\"");
    check("memoryManagerPolicy: static", "unknown policy: \"static\"");
    check("featureGates: {MadeUp: true}", "unrecognized feature gate: MadeUp");
    check("reservedSystemCPUs: '1.3'", "parsing \"1.3\": invalid syntax");
    check(
        "cpuManagerPolicyOptions: {full-pcpus-only: 'true'}",
        "None policy: received unsupported options: map[full-pcpus-only:true]",
    );
    let options = |text: &str, why: &str| {
        check(&format!("cpuManagerPolicy: static\ncpuManagerPolicyOptions: {text}"), why);
    };
    options("{full: 'true'}", "unknown CPU Manager Policy option: \"full\"");
    options("{full-pcpus-only: 'yes'}", "bad value for option \"full-pcpus-only\"");
    options(
        "{align-by-socket: 'true'}",
        "CPU Manager Policy Alpha-level Options not enabled, but option \"align-by-socket\" provided",
    );
    options(
        "{full-pcpus-only: 'true', distribute-cpus-across-cores: 'true'}\nfeatureGates: {CPUManagerPolicyAlphaOptions: true}",
        "can not be used at the same time",
    );
    options(
        "{distribute-cpus-across-numa: 'true', distribute-cpus-across-cores: 'true'}\nfeatureGates: {CPUManagerPolicyAlphaOptions: true}",
        "static policy options distribute-cpus-across-numa and distribute-cpus-across-cores can not be used at the same time",
    );
    check("topologyManagerPolicy: near", "(--topology-manager-policy) \"near\" must be one of: [\"none\" ");
    check("topologyManagerScope: node", "must be one of: [\"container\" \"pod\"]");
    check(
        "topologyManagerPolicyOptions: {max-allowable-numa-nodes: '4'}",
        "the minimum value of \"max-allowable-numa-nodes\" should not be less than 8",
    );
    check("reservedMemory: [{numaNode: 0, limits: {cpu: '1'}}]", "the limit type \"cpu\" for NUMA node 0");
    check("reservedMemory: [{numaNode: 0, limits: {memory: '0'}}]", "may not be zero for NUMA node 0");
    let twice = "{numaNode: 0, limits: {memory: 1Gi}}";
    check(&format!("reservedMemory: [{twice}, {twice}]"), "has a duplicate value for NUMA node 0");
    check("containerRuntimeEndpoint: tcp://127.0.0.1:1", "must be unix:// and an absolute path");
    check("evictionHard: {disk: 1Gi}", "unsupported eviction signal disk");
    check("evictionHard: {memory.available: lots}", "must be a positive quantity or a percentage");
    check("evictionSoft: {memory.available: 1Gi}", "grace period must be specified");
    check("evictionSoft: {containerfs.available: 1Gi}", "grace period must be specified");
    check("evictionHard: {containerfs.inodesFree: some}", "must be a positive quantity or a percentage");
    check("imageMinimumGCAge: '5'", "imageMinimumGCAge: invalid duration");
    check("healthzBindAddress: here", "must be a valid IP address");
    check("healthzPort: 70000", "invalid value");
    check("volumeStatsAggPeriod: often", "volumeStatsAggPeriod: invalid duration");
    check("shutdownGracePeriod: 1s\nshutdownGracePeriodCriticalPods: 2s", "{2s} must be <= ");
    check("crashLoopBackOff: {maxContainerRestartPeriod: 10m}", "must be between 1s and 300s");
    check("containerLogMaxSize: big", "containerLogMaxSize \"big\": ");
    check("containerLogMaxFiles: 1", "containerLogMaxFiles at least 2");
    check("containerLogMaxWorkers: 0", "containerLogMaxWorkers at least 1");
    check("nodeLeaseDurationSeconds: -1", "nodeLeaseDurationSeconds must be greater than 0");
    check("nodeStatusReportFrequency: '-1s'", "nodeStatusReportFrequency: invalid duration");
    check("memorySwap: {swapBehavior: UnlimitedSwap}", "must be one of: ");
    check(
        "allowedUnsafeSysctls: [kernel.hostname]",
        "the sysctls \"kernel.hostname\" are not known to be namespaced",
    );
    check("registerWithTaints: [{key: a, effect: Never}]", "invalid taint effect: \"Never\"");
    check("registerWithTaints: [{key: a/b/c, effect: NoSchedule}]", "invalid taint \"a/b/c\": ");
    check("registerWithTaints: [{key: a, value: 'b c', effect: NoSchedule}]", "invalid taint \"a\": ");
    check("serializeImagePulls: true\nmaxParallelImagePulls: 2", "cannot be larger than 1 unless");
    check("imageMaximumGCAge: old", "imageMaximumGCAge: invalid duration");
    check("imagePullCredentialsVerificationPolicy: Sometimes", "must be one of: NeverVerify, ");
    check("imageMaximumGCAge: 2m", "imageMaximumGCAge 2m must be greater than imageMinimumGCAge 2m0s");
    check("preloadedImagesVerificationAllowlist: [a]", "can only be set with the policy");
    let pattern = |pattern: &str, why: &str| {
        let policy = "imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages";
        check(&format!("{policy}\npreloadedImagesVerificationAllowlist: [q.io/team/*, '{pattern}']"), why);
    };
    pattern(" q.io/a", "leading/trailing spaces are not allowed");
    pattern("", "the supplied pattern is too short");
    pattern("q.io/*/a", "only patterns ending with '/*' are allowed");
    pattern("/*", "at least registry hostname is required");
    pattern("q.io/a:1", "neither tag nor digest is accepted");
    pattern("nginx", "neither tag nor digest is accepted");
    pattern("q.io/A", "repository name must be lowercase");
    check("kubeReserved: {gpu: '1'}", "cannot be reserved");
    check("imageGCLowThresholdPercent: 90", "must be less than");
    check("userNamespaces: {idsPerPod: 70000}", "must be a positive multiple of 65536, got 70000");
    check("enforceNodeAllocatable: [all]", "option \"all\" specified for enforceNodeAllocatable");
    check(
        "enforceNodeAllocatable: [pods, pods]",
        "duplicated enforcements \"pods\" in enforceNodeAllocatable",
    );
    check(
        "enforceNodeAllocatable: [kube-reserved, kube-reserved-compressible]\nkubeReservedCgroup: /k",
        "both \"kube-reserved\" and \"kube-reserved-compressible\" cannot be specified together",
    );
    check("enforceNodeAllocatable: [pods, none]", "may not contain additional enforcements when \"none\"");
    check(
        "enforceNodeAllocatable: [pods, system-reserved]\nkubeReservedCgroup: /k",
        "systemReservedCgroup (--system-reserved-cgroup) must be specified when \"system-reserved\" contained in",
    );
    check(
        "enforceNodeAllocatable: [kube-reserved-compressible]",
        "kubeReservedCgroup (--kube-reserved-cgroup) must be specified when \"kube-reserved-compressible\"",
    );
    check("reservedSystemCPUs: '0'\nkubeReservedCgroup: /k", "can't use reservedSystemCPUs");
    assert!(KubeletConfiguration::parse(b"kind: Pod").is_err());
}
