//! Steps of pods, in the order they come.

use k8s_openapi::api::core::v1::Container as Spec;

use super::*;
use crate::observed::Sandbox;
use serde_json::json;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}),
    )
    .unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn container(name: &str, run: Run, exit_code: i32, attempt: u32) -> Container {
    Container {
        id: format!("{name}{attempt}"),
        name: name.to_owned(),
        sandbox: "s".to_owned(),
        attempt,
        run,
        created: at(100 + i64::from(attempt)),
        started: at(100),
        finished: at(200),
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: String::new(),
        image_id: String::new(),
        fingerprint: String::new(),
        log_path: String::new(),
        user: None,
        recursive: Vec::new(),
        resources: None,
    }
}

fn with(containers: Vec<Container>) -> Observed {
    let sandbox = Sandbox { id: "s".to_owned(), ready: true, attempt: 0, ips: vec![] };
    Observed { sandboxes: vec![sandbox], containers }
}

fn steps(pod: &Pod, observed: &Observed, now: i64) -> String {
    let plan = next(pod, observed, &Health::default(), &Backoffs::default(), false, at(now));
    plan.actions
        .iter()
        .map(|a| match a {
            Action::Sandbox(n) => format!("sandbox#{n}"),
            Action::Start { name, attempt } => format!("start {name}#{attempt}"),
            Action::Kill { id, .. } => format!("kill {id}"),
            Action::Prepare { id, .. } => format!("prepare {id}"),
            Action::StopSandbox(id) => format!("stop {id}"),
            Action::Finish => "finish".to_owned(),
        })
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn a_new_pod_gets_a_sandbox_then_init_containers_in_order_then_the_rest() {
    let p = pod(
        json!({"initContainers": [{"name": "i1"}, {"name": "i2"}], "containers": [{"name": "a"}, {"name": "b"}]}),
    );
    assert_eq!(steps(&p, &Observed::default(), 0), "sandbox#0");
    assert_eq!(steps(&p, &with(vec![]), 0), "start i1#0");
    assert_eq!(steps(&p, &with(vec![container("i1", Run::Running, 0, 0)]), 0), "");
    let one = container("i1", Run::Exited, 0, 0);
    assert_eq!(steps(&p, &with(vec![one.clone()]), 300), "start i2#0");
    let two = container("i2", Run::Exited, 0, 0);
    assert_eq!(steps(&p, &with(vec![one, two]), 300), "start a#0, start b#0");
}

#[test]
fn the_restart_policy_decides_who_runs_again() {
    for (policy, code, expected) in [
        ("Always", 0, "start a#1"),
        ("OnFailure", 1, "start a#1"),
        ("OnFailure", 0, "stop s"),
        ("Never", 1, "stop s"),
    ] {
        let p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        assert_eq!(
            steps(&p, &with(vec![container("a", Run::Exited, code, 0)]), 300),
            expected,
            "{policy} {code}"
        );
    }
}

#[test]
fn a_container_of_which_the_runtime_knows_nothing_more_runs_again_whatever_the_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        assert_eq!(steps(&p, &with(vec![container("a", Run::Unknown, 0, 0)]), 300), "start a#1", "{policy}");
    }
}

#[test]
fn the_second_restart_waits_ten_seconds() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let mut backoffs = Backoffs::default();
    backoffs.count("a", at(200), at(199));
    let observed = with(vec![container("a", Run::Exited, 1, 1)]);
    let plan = next(&p, &observed, &Health::default(), &backoffs, false, at(205));
    assert_eq!(plan, Plan { actions: vec![], wake: Some(at(210)) });
    let plan = next(&p, &observed, &Health::default(), &backoffs, false, at(210));
    assert_eq!(plan.actions.len(), 1);
}

#[test]
fn no_restart_waits_longer_than_the_node_lets_it() {
    let delays = |longest: u64| {
        let mut backoffs = Backoffs::up_to(std::time::Duration::from_secs(longest));
        let mut next = || {
            backoffs.count("a", at(0), at(0));
            backoffs.delay("a").as_secs()
        };
        [next(), next(), next(), next()]
    };
    assert_eq!((delays(300), delays(25), delays(3)), ([10, 20, 40, 80], [10, 20, 25, 25], [3; 4]));
}

#[test]
fn a_run_that_never_began_counts_as_a_short_one() {
    let mut backoffs = Backoffs::default();
    let mut next = |now: i64, finished: i64| {
        backoffs.count("a", at(now), at(finished));
        backoffs.delay("a").as_secs()
    };
    // the runtime knows when it was given up, and no beginning
    let delays = [next(1000, 1000), next(1010, 1010), next(1030, 1030), next(1631, 1629), next(2300, 2231)];
    assert_eq!(delays, [10, 20, 40, 80, 10], "ten minutes after its start it has run for long");
}

#[test]
fn a_deleted_pod_stops_sidecars_last_and_finishes_when_nothing_is_left() {
    let mut p = pod(
        json!({"initContainers": [{"name": "one", "restartPolicy": "Always"}, {"name": "two", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}]}),
    );
    p.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    let (one, two) = (container("one", Run::Running, 0, 0), container("two", Run::Running, 0, 0));
    let all = with(vec![one.clone(), two.clone(), container("a", Run::Running, 0, 0)]);
    assert_eq!(steps(&p, &all, 0), "kill a0, prepare two0, prepare one0");
    let a_ended = container("a", Run::Exited, 0, 0);
    let sidecars = with(vec![one.clone(), two, a_ended.clone()]);
    assert_eq!(steps(&p, &sidecars, 0), "kill two0, prepare one0");
    assert_eq!(steps(&p, &with(vec![one, a_ended.clone()]), 0), "kill one0");
    assert_eq!(steps(&p, &with(vec![a_ended.clone()]), 0), "stop s");
    let mut over = with(vec![a_ended]);
    over.sandboxes[0].ready = false;
    assert_eq!(steps(&p, &over, 0), "finish");
}

#[test]
fn sidecars_of_a_pod_that_is_over_share_its_time() {
    let sidecars = ["one", "two"].map(|name| json!({"name": name, "restartPolicy": "Always"}));
    let p = pod(
        json!({"restartPolicy": "Never", "terminationGracePeriodSeconds": 30, "initContainers": sidecars,
        "containers": [{"name": "a"}]}),
    );
    let grace = |now: i64| {
        let all = [("one", Run::Running), ("two", Run::Running), ("a", Run::Exited)];
        let observed = with(all.map(|(name, run)| container(name, run, 0, 0)).into());
        let plan = next(&p, &observed, &Health::default(), &Backoffs::default(), false, at(now));
        match &plan.actions[..] {
            [Action::Kill { name, grace, .. }, Action::Prepare { grace: same, .. }] if name == "two" => {
                assert_eq!(grace, same);
                *grace
            }
            other => panic!("{other:?}"),
        }
    };
    // the main container ended at 200
    assert_eq!([grace(200), grace(212), grace(1000)], [30, 18, 2]);
}

#[test]
fn an_unhealthy_container_is_killed() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let health = Health {
        unhealthy: [("a0".to_owned(), Unhealthy { why: "why".to_owned(), grace: Some(7) })].into(),
        ..Health::default()
    };
    let observed = with(vec![container("a", Run::Running, 0, 0)]);
    let plan = next(&p, &observed, &health, &Backoffs::default(), false, at(0));
    assert!(matches!(&plan.actions[..], [Action::Kill { why, grace: 7, .. }] if why == "why"));
}

#[test]
fn a_lost_sandbox_is_made_again() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    let mut observed = with(vec![container("a", Run::Running, 0, 0)]);
    observed.sandboxes[0].ready = false;
    assert_eq!(steps(&p, &observed, 0), "kill a0");
    observed.containers[0].run = Run::Exited;
    assert_eq!(steps(&p, &observed, 0), "sandbox#1");
}

#[test]
fn a_pod_past_its_deadline_is_stopped() {
    let mut p = pod(json!({"activeDeadlineSeconds": 10, "containers": [{"name": "a"}]}));
    p.status = serde_json::from_value(json!({"startTime": "1970-01-01T00:01:00Z"})).unwrap();
    let observed = with(vec![container("a", Run::Running, 0, 0)]);
    assert_eq!(steps(&p, &observed, 65), "");
    assert_eq!(steps(&p, &observed, 70), "kill a0");
}

#[test]
fn a_step_that_failed_waits_without_holding_up_the_others_or_the_deletion() {
    let mut p = pod(json!({"containers": [{"name": "a"}, {"name": "b"}]}));
    let mut backoffs = Backoffs::default();
    backoffs.hold("a", at(50));
    let plan = next(&p, &with(vec![]), &Health::default(), &backoffs, false, at(10));
    assert!(matches!(&plan.actions[..], [Action::Start { name, .. }] if name == "b"));
    assert_eq!(plan.wake, Some(at(50)));
    backoffs.hold(SANDBOX, at(60));
    let plan = next(&p, &Observed::default(), &Health::default(), &backoffs, false, at(10));
    assert_eq!(plan, Plan { actions: vec![], wake: Some(at(60)) });
    p.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
    let plan = next(&p, &Observed::default(), &Health::default(), &backoffs, false, at(10));
    assert_eq!(plan.actions, [Action::Finish]);
}

#[test]
fn a_container_made_but_never_started_gets_its_run() {
    let p = pod(json!({"containers": [{"name": "a"}]}));
    assert_eq!(steps(&p, &with(vec![container("a", Run::Created, 0, 3)]), 10), "start a#3");
}

#[test]
fn restart_counts_survive_a_runtime_that_forgot() {
    let mut p = pod(json!({"containers": [{"name": "a"}]}));
    p.status = serde_json::from_value(json!({"containerStatuses": [
        {"name": "a", "containerID": "x://1", "restartCount": 4, "ready": true, "image": "", "imageID": ""}]}))
    .unwrap();
    assert_eq!(steps(&p, &with(vec![]), 10), "start a#5");
}

#[test]
fn a_container_that_runs_once_is_not_run_twice_by_a_runtime_that_forgot() {
    let told = |policy: &str, state: serde_json::Value| {
        let mut p = pod(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        p.status = serde_json::from_value(json!({"containerStatuses": [{"name": "a", "containerID": "x://1",
            "restartCount": 0, "ready": true, "image": "", "imageID": "", "state": state}]}))
        .unwrap();
        steps(&p, &with(vec![]), 10)
    };
    assert_eq!(told("Never", json!({"running": {}})), "stop s");
    assert_eq!(told("OnFailure", json!({"terminated": {"exitCode": 0}})), "stop s");
    assert_eq!(told("OnFailure", json!({"running": {}})), "start a#1");
    assert_eq!(told("Never", json!({"waiting": {}})), "start a#1");
    let init = |observed: Vec<Container>| {
        let mut p = pod(
            json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}),
        );
        p.status =
            serde_json::from_value(json!({"initContainerStatuses": [{"name": "i", "containerID": "x://1",
            "restartCount": 0, "ready": false, "image": "", "imageID": "", "state": {"running": {}}}]}))
            .unwrap();
        steps(&p, &with(observed), 10)
    };
    assert_eq!(init(vec![]), "stop s");
    assert_eq!(init(vec![container("a", Run::Running, 0, 0)]), "", "it succeeded unseen");
}

#[test]
fn a_changed_image_ends_the_running_container() {
    let p = pod(json!({"containers": [{"name": "a", "image": "new"}]}));
    let mut old = container("a", Run::Running, 0, 0);
    old.fingerprint =
        fingerprint(&Spec { name: "a".to_owned(), image: Some("old".to_owned()), ..Spec::default() });
    assert_eq!(steps(&p, &with(vec![old.clone()]), 10), "kill a0");
    old.fingerprint = fingerprint(&p.spec.as_ref().unwrap().containers[0]);
    assert_eq!(steps(&p, &with(vec![old]), 10), "");
}

#[test]
fn an_ephemeral_container_runs_once() {
    let p = pod(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}],
        "ephemeralContainers": [{"name": "debug"}]}));
    let (init, a) = (container("i", Run::Exited, 0, 0), container("a", Run::Running, 0, 0));
    assert_eq!(steps(&p, &with(vec![init.clone(), a.clone()]), 10), "start debug#0");
    let stuck = with(vec![container("i", Run::Running, 0, 0)]);
    assert_eq!(steps(&p, &stuck, 10), "start debug#0", "also beside an init container that does not end");
    assert_eq!(steps(&p, &with(vec![init, a, container("debug", Run::Exited, 1, 0)]), 300), "");
}

#[test]
fn a_containers_own_rules_come_before_the_pods_policy() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let p = pod(json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}]}));
    assert_eq!(steps(&p, &with(vec![container("a", Run::Exited, 42, 0)]), 300), "start a#1");
    assert_eq!(steps(&p, &with(vec![container("a", Run::Exited, 1, 0)]), 300), "stop s");
}

#[test]
fn an_end_may_begin_the_whole_pod_anew() {
    let rules = json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
    let p = pod(json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [
        {"name": "a", "restartPolicy": "Never", "restartPolicyRules": rules}, {"name": "b"}, {"name": "c"}]}));
    let made = |mut container: Container, second: i64| {
        container.created = at(second);
        container
    };
    let first = [
        container("i", Run::Exited, 0, 0),
        container("a", Run::Exited, 42, 0),
        container("c", Run::Exited, 0, 0),
    ];
    let mut all = first.to_vec();
    all.push(container("b", Run::Running, 0, 0));
    assert!(!is_over(&p, &with(all.clone())) && begins_anew(&p, &with(all.clone())));
    assert_eq!(steps(&p, &with(all), 300), "kill b0");
    // what was killed may match as well: that is the same restart
    let mut all = first.to_vec();
    all.push(container("b", Run::Exited, 143, 0));
    assert_eq!(steps(&p, &with(all.clone()), 300), "start i#1");
    all.insert(0, made(container("i", Run::Exited, 0, 1), 301));
    assert!(!begins_anew(&p, &with(all.clone())));
    assert_eq!(steps(&p, &with(all.clone()), 400), "start a#1, start b#1, start c#1");
    for name in ["a", "b", "c"] {
        all.insert(0, made(container(name, Run::Running, 0, 1), 401));
    }
    assert_eq!(steps(&p, &with(all.clone()), 500), "");
    // any other end is the pod's
    for container in &mut all[..3] {
        container.run = Run::Exited;
    }
    assert!(is_over(&p, &with(all)));
    let plain = with(vec![container("i", Run::Exited, 0, 0), container("a", Run::Exited, 1, 0)]);
    assert_eq!(steps(&p, &plain, 300), "start b#0, start c#0");
}

#[test]
fn a_sidecar_starts_again_while_the_main_container_runs() {
    let p = pod(
        json!({"restartPolicy": "Never", "initContainers": [{"name": "side", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}]}),
    );
    let a = container("a", Run::Running, 0, 0);
    let side = container("side", Run::Exited, 1, 0);
    assert_eq!(steps(&p, &with(vec![a, side]), 300), "start side#1");
}
