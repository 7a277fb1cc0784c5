//! `KubeSchedulerConfiguration`: what is read, and in which words it is refused.
use std::time::Duration;

use scheduler::configuration::{ConfigurationError, read};
use scheduler::filter::FILTERS;
use scheduler::profile::{Profile, Strategy};
use scheduler::score::SCORES;

fn text(rest: &str) -> String {
    format!("apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n{rest}")
}

fn config(rest: &str) -> scheduler::Config {
    read(text(rest).as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

fn refusal(rest: &str) -> String {
    match read(text(rest).as_bytes()) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

fn weight(profile: &Profile, name: &str) -> i64 {
    profile.weights[SCORES.iter().position(|s| s.name == name).expect("score")]
}

fn filters(profile: &Profile, name: &str) -> bool {
    profile.runs(FILTERS.iter().position(|f| f.name == name).expect("filter"))
}

#[test]
fn an_empty_configuration_is_the_default_one() {
    let config = config("");
    let default = Profile::default();
    assert_eq!(config.profiles.len(), 1);
    assert_eq!(format!("{:?}", config.profiles[0]), format!("{default:?}"));
    assert_eq!(
        (config.backoff.initial, config.backoff.max),
        (Duration::from_secs(1), Duration::from_secs(10))
    );
}

#[test]
fn profiles_choose_their_plugins() {
    let config = config(
        r"
parallelism: 32
percentageOfNodesToScore: 30
podInitialBackoffSeconds: 2
podMaxBackoffSeconds: 60
leaderElection: {leaderElect: true, leaseDuration: 20s}
clientConnection: {kubeconfig: /etc/kubernetes/scheduler.conf, qps: 50.5, burst: 100}
profiles:
- schedulerName: default-scheduler
  plugins:
    score:
      disabled: [{name: NodeResourcesBalancedAllocation}]
      enabled: [{name: ImageLocality, weight: 7}, {name: NodeAffinity}]
    filter: {disabled: [{name: NodePorts}]}
- schedulerName: packed
  percentageOfNodesToScore: 100
  plugins:
    multiPoint:
      disabled: [{name: '*'}]
      enabled: [{name: PrioritySort}, {name: DefaultBinder}, {name: NodeResourcesFit, weight: 3}]
  pluginConfig:
  - name: NodeResourcesFit
    args:
      apiVersion: kubescheduler.config.k8s.io/v1
      kind: NodeResourcesFitArgs
      ignoredResources: [example.com/foo]
      scoringStrategy: {type: MostAllocated, resources: [{name: cpu, weight: 2}, {name: memory}]}
",
    );
    let [first, packed] = &config.profiles[..] else { panic!("two profiles") };
    assert_eq!(weight(first, "NodeResourcesBalancedAllocation"), 0);
    assert_eq!((weight(first, "ImageLocality"), weight(first, "NodeAffinity")), (7, 1));
    assert_eq!(weight(first, "TaintToleration"), 3);
    assert!(!filters(first, "NodePorts") && filters(first, "NodeName"));
    assert_eq!((first.percentage_of_nodes_to_score, packed.percentage_of_nodes_to_score), (30, 100));
    assert!(first.preemption.is_some() && packed.preemption.is_none() && !packed.gates);
    assert_eq!(packed.weights.iter().sum::<i64>(), 3);
    assert!(filters(packed, "NodeResourcesFit") && !filters(packed, "TaintToleration"));
    assert_eq!(packed.fit.strategy, Strategy::Most);
    assert_eq!(packed.fit.resources, [("cpu".to_owned(), 2), ("memory".to_owned(), 1)]);
    assert_eq!(packed.fit.ignored, ["example.com/foo"]);
    assert_eq!(config.backoff.max, Duration::from_secs(60));
}

#[test]
fn arguments_of_all_plugins_are_read() {
    let config = config(
        r"
profiles:
- pluginConfig:
  - {name: DefaultPreemption, args: {minCandidateNodesPercentage: 20, minCandidateNodesAbsolute: 5}}
  - {name: InterPodAffinity, args: {hardPodAffinityWeight: 9, ignorePreferredTermsOfExistingPods: true}}
  - name: NodeAffinity
    args:
      addedAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms: [{matchExpressions: [{key: pool, operator: In, values: [a]}]}]
  - {name: NodeResourcesBalancedAllocation, args: {resources: [{name: example.com/gpu, weight: 1}]}}
  - name: NodeResourcesFit
    args:
      scoringStrategy:
        type: RequestedToCapacityRatio
        requestedToCapacityRatio: {shape: [{utilization: 0, score: 0}, {utilization: 100, score: 10}]}
  - name: PodTopologySpread
    args:
      defaultingType: List
      defaultConstraints: [{maxSkew: 2, topologyKey: rack, whenUnsatisfiable: ScheduleAnyway}]
  - {name: VolumeBinding, args: {bindTimeoutSeconds: 30}}
  - {name: DynamicResources, args: {filterTimeout: 5s, bindingTimeout: 1m30s}}
  - {name: SomebodysPlugin, args: {anything: goes}}
",
    );
    let profile = &config.profiles[0];
    assert_eq!(profile.scheduler_name, "default-scheduler");
    let preemption = profile.preemption.expect("runs");
    assert_eq!((preemption.min_candidate_percentage, preemption.min_candidate_absolute), (20, 5));
    assert_eq!((profile.affinity.hard_weight, profile.affinity.ignore_preferred_of_existing), (9, true));
    assert_eq!(profile.balanced, ["example.com/gpu"]);
    assert_eq!(profile.fit.strategy, Strategy::Shape(vec![(0, 0), (100, 100)]));
    assert_eq!((profile.default_spread.len(), profile.system_spread), (1, false));
    assert_eq!(profile.bind_timeout, Duration::from_secs(30));
    assert_eq!(profile.device_timeout, Duration::from_secs(90));
}

#[test]
fn extenders_are_read() {
    let config = config(
        r"
extenders:
- urlPrefix: https://127.0.0.1:8888/sched/
  filterVerb: filter
  prioritizeVerb: prioritize
  weight: 5
  bindVerb: bind
  httpTimeout: 150ms
  nodeCacheCapable: true
  ignorable: true
  tlsConfig: {insecure: true, serverName: x}
  managedResources: [{name: example.com/foo, ignoredByScheduler: true}]
",
    );
    let extender = &config.extenders[0];
    assert_eq!(extender.url_prefix, "https://127.0.0.1:8888/sched");
    assert_eq!((extender.weight, extender.timeout), (5, Duration::from_millis(150)));
    assert!(extender.ignorable && extender.node_cache_capable && extender.tls.insecure);
    assert_eq!(extender.managed, [("example.com/foo".to_owned(), true)]);
}

#[test]
fn what_cannot_be_is_refused_in_the_references_words() {
    for (config, said) in [
        ("parallelism: 0", "parallelism: Invalid value: 0: should be an integer value greater than zero"),
        ("parallelizm: 1", r#"strict decoding error: unknown field "parallelizm""#),
        (
            "parallelism: many",
            "json: cannot unmarshal string into Go struct field KubeSchedulerConfiguration.parallelism of type int32",
        ),
        (
            "profiles: [{schedulerName: a, plugins: {scores: {}}}]",
            r#"strict decoding error: unknown field "profiles[0].plugins.scores""#,
        ),
        (
            "profiles: [{schedulerName: 7}]",
            "json: cannot unmarshal number into Go struct field KubeSchedulerProfile.profiles.schedulerName of type string",
        ),
        (
            "profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {foo: 1}}]}]",
            r#"strict decoding error: decoding .profiles[0].pluginConfig[0]: strict decoding error: decoding args for plugin NodeResourcesFit: strict decoding error: unknown field "foo""#,
        ),
        (
            "profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {kind: NodeAffinityArgs}}]}]",
            "decoding .profiles[0].pluginConfig[0]: args for plugin NodeResourcesFit were not of type \
             NodeResourcesFitArgs.kubescheduler.config.k8s.io, got NodeAffinityArgs.kubescheduler.config.k8s.io",
        ),
        (
            "profiles: [{schedulerName: a}, {schedulerName: a}]",
            r#"profiles[1].schedulerName: Duplicate value: "profiles[0].schedulerName""#,
        ),
        ("profiles: [{schedulerName: a}, {}]", "profiles[1].schedulerName: Required value"),
        (
            "percentageOfNodesToScore: 101",
            "percentageOfNodesToScore: Invalid value: 101: not in valid range [0-100]",
        ),
        ("podInitialBackoffSeconds: 0", "podInitialBackoffSeconds: Invalid value: 0: must be greater than 0"),
        (
            "podInitialBackoffSeconds: 20",
            "podMaxBackoffSeconds: Invalid value: 10: must be greater than or equal to PodInitialBackoffSeconds",
        ),
        (
            "leaderElection: {resourceLock: configmaps}",
            r#"leaderElection.resourceLock: Invalid value: "configmaps": resourceLock value must be "leases""#,
        ),
        (
            "profiles: [{plugins: {score: {enabled: [{name: NodeName}]}}}]",
            r#"profiles[0].plugins.score.enabled[0]: Invalid value: "NodeName": plugin "NodeName" does not extend ScorePlugin plugin"#,
        ),
        (
            "profiles: [{plugins: {filter: {enabled: [{name: EBSLimits}]}}}]",
            r#"profiles[0].plugins.filter.enabled[0]: Invalid value: "EBSLimits": was invalid in version "v1" (KubeSchedulerConfiguration is version "kubescheduler.config.k8s.io/v1")"#,
        ),
        (
            "profiles: [{pluginConfig: [{name: InterPodAffinity, args: {hardPodAffinityWeight: 101}}]}]",
            "profiles[0].pluginConfig[0].args.hardPodAffinityWeight: Invalid value: 101: not in valid range [0, 100]",
        ),
        (
            "profiles: [{pluginConfig: [{name: PodTopologySpread, args: {defaultConstraints: [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: ScheduleAnyway}], defaultingType: System}}]}]",
            r#"profiles[0].pluginConfig[0].args.defaultingType: Invalid value: "System": when .defaultConstraints are not empty"#,
        ),
        (
            "extenders: [{urlPrefix: 'http://a', prioritizeVerb: p}]",
            "extenders[0].weight: Invalid value: 0: must have a positive weight applied to it",
        ),
        (
            "extenders: [{urlPrefix: 'http://a', bindVerb: b}, {urlPrefix: 'http://b', bindVerb: b}]",
            r#"extenders: Invalid value: "found 2 extenders implementing bind": only one extender can implement bind"#,
        ),
        (
            "extenders: [{urlPrefix: 'http://a', managedResources: [{name: cpu}]}]",
            r#"extenders[0].managedResources[0].name: Invalid value: "cpu": is an invalid extended resource name"#,
        ),
    ] {
        assert_eq!(refusal(config), said, "{config}");
    }
}

#[test]
fn other_kinds_are_refused() {
    let other = b"apiVersion: kubescheduler.config.k8s.io/v1beta3\nkind: KubeSchedulerConfiguration\n";
    let error = read(other).err().map(|e| e.to_string()).unwrap_or_default();
    assert_eq!(
        error,
        r#"no kind "KubeSchedulerConfiguration" is registered for version "kubescheduler.config.k8s.io/v1beta3""#
    );
    assert!(matches!(read(b"{"), Err(ConfigurationError::Syntax(_))));
}
