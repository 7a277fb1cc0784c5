//! Groups of pods against the real API server.
use k8s_openapi::api::scheduling::v1alpha2::PodGroup;

use super::*;

async fn start() -> Cluster {
    let gates = "GenericWorkload=true,GangScheduling=true".parse().expect("gates");
    let options = apiserver::Options { feature_gates: gates, ..Default::default() };
    let config = Config { seed: Some(1), pod_groups: scheduler::PodGroups::Gangs, ..Config::default() };
    Cluster::start_on(options, config).await
}

fn member(name: &str, group: &str, cpu: &str) -> Value {
    let mut value = pod(name, cpu);
    value["spec"]["schedulingGroup"] = json!({"podGroupName": group});
    value
}

fn group(name: &str, least: usize) -> Value {
    json!({"metadata": {"name": name}, "spec": {"schedulingPolicy": {"gang": {"minCount": least}}}})
}

fn bound(l: &[Arc<Pod>], prefix: &str) -> usize {
    let ours = l.iter().filter(|p| p.metadata.name.as_deref().is_some_and(|n| n.starts_with(prefix)));
    ours.filter(|p| node_of(p).is_some()).count()
}

/// Type, status, reason and message of the conditions of a kind.
fn conditions<T: serde::Serialize>(status: &T) -> Vec<String> {
    let status = serde_json::to_value(status).expect("json");
    let list = status["conditions"].as_array().cloned().unwrap_or_default();
    let text = |c: &Value, key: &str| c[key].as_str().unwrap_or_default().to_owned();
    list.iter().map(|c| ["type", "status", "reason", "message"].map(|key| text(c, key)).join(" / ")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_waits_for_its_group_its_pods_and_its_room() {
    let cluster = start().await;
    cluster.node(node("n", "4")).await;
    cluster.create::<Pod>("d", member("a-0", "a", "2")).await;
    cluster.create::<Pod>("d", member("a-1", "a", "2")).await;
    cluster.create::<PodGroup>("d", group("a", 3)).await;
    // What comes later and needs no group is bound meanwhile, so that the pods of the gang were seen by then.
    cluster.create::<Pod>("d", pod("single", "1")).await;
    let pods = cluster.until::<Pod>("the single pod is bound", |l| bound(l, "single") == 1).await;
    assert_eq!(bound(&pods, "a-"), 0);
    assert!(
        pods.iter().all(|p| node_of(p).is_some() || conditions(&p.status).is_empty()),
        "nothing was tried"
    );

    cluster.create::<Pod>("d", member("a-2", "a", "2")).await;
    let said = "PodScheduled / False / Unschedulable / pod group is unschedulable, waiting for minCount pods from a gang to \
        be scheduled";
    let full = "PodScheduled / False / Unschedulable / 0/1 nodes are available: 1 Insufficient cpu. no new claims to \
        deallocate, preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    let has = |l: &[Arc<Pod>], text: &str| {
        l.iter().filter(|p| conditions(&p.status).contains(&text.to_owned())).count()
    };
    cluster.until::<Pod>("one fits, two do not", |l| has(l, said) == 1 && has(l, full) == 2).await;
    let no = "PodGroupScheduled / False / Unschedulable / pod group is unschedulable".to_owned();
    cluster.until::<PodGroup>("the group says so", |l| conditions(&l[0].status).contains(&no)).await;

    cluster.node(node("m", "4")).await;
    cluster.until::<Pod>("the whole gang", |l| bound(l, "a-") == 3).await;
    let yes = "PodGroupScheduled / True / Scheduled / ".to_owned();
    cluster.until::<PodGroup>("the group says so", |l| conditions(&l[0].status).contains(&yes)).await;
    // One more than it needs: bound as any other, and the condition stays when it does not fit.
    cluster.create::<Pod>("d", member("a-3", "a", "1")).await;
    cluster.create::<Pod>("d", member("a-4", "a", "4")).await;
    cluster
        .until::<Pod>("a fourth", |l| {
            bound(l, "a-") == 4 && has(l, full) + has(l, &full.replace("0/1", "0/2")) <= 1
        })
        .await;
    let groups = cluster.until::<PodGroup>("still", |l| conditions(&l[0].status).contains(&yes)).await;
    assert_eq!(groups.len(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_has_others_leave_only_for_all_of_it() {
    let cluster = start().await;
    cluster.node(node("n", "4")).await;
    for (name, value) in [("low", 1), ("high", 1000)] {
        cluster.create::<PriorityClass>("", json!({"metadata": {"name": name}, "value": value})).await;
    }
    let with = |mut value: Value, class: &str| {
        value["spec"]["priorityClassName"] = json!(class);
        value
    };
    cluster.create::<Pod>("d", with(pod("victim", "3"), "low")).await;
    cluster.until::<Pod>("victim is bound", |l| bound(l, "victim") == 1).await;
    // Three of two CPUs each never fit on four.
    cluster.create::<PodGroup>("d", group("big", 3)).await;
    for n in 0..3 {
        cluster.create::<Pod>("d", with(member(&format!("big-{n}"), "big", "2"), "high")).await;
    }
    let said = |p: &Pod| conditions(&p.status).iter().any(|c| c.contains("waiting for minCount pods"));
    let pods = cluster.until::<Pod>("the gang is too big", |l| l.iter().any(|p| said(p))).await;
    let going = |l: &[Arc<Pod>]| l.iter().filter(|p| p.metadata.deletion_timestamp.is_some()).count();
    assert_eq!(going(&pods), 0, "nobody goes in vain");

    cluster.create::<PodGroup>("d", group("fits", 2)).await;
    for n in 0..2 {
        cluster.create::<Pod>("d", with(member(&format!("fits-{n}"), "fits", "2"), "high")).await;
    }
    let waits = "pod group is unschedulable, pod group is waiting for preemption to complete".to_owned();
    cluster.until::<Pod>("the victim is asked to go", |l| going(l) == 1 && bound(l, "fits-") == 0).await;
    cluster
        .until::<PodGroup>("the group waits", |l| {
            l.iter().any(|g| conditions(&g.status).iter().any(|c| c.ends_with(&waits)))
        })
        .await;
    // No kubelet runs here that would end it.
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete::<Pod>("d", "victim", &now).await.expect("delete");
    cluster.until::<Pod>("the gang has its place", |l| bound(l, "fits-") == 2).await;
    cluster.stop().await;
}
