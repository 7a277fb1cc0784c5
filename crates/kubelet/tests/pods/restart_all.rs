//! A container whose end begins its whole pod anew.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_one_container_begins_the_pod_anew() {
    let cluster = Cluster::start().await;
    let mut web = web();
    web["restartPolicy"] = json!("Never");
    let codes = json!({"operator": "In", "values": [42]});
    web["restartPolicyRules"] = json!([{"action": "RestartAllContainers", "exitCodes": codes}]);
    let other = json!({"name": "other", "image": "web:1",
        "lifecycle": {"preStop": {"exec": {"command": ["prepare"]}}}});
    let first = json!({"name": "first", "image": "web:1"});
    let spec = json!({"restartPolicy": "Never", "initContainers": [first], "containers": [web, other]});
    cluster.create::<Pod>("d", pod(spec)).await;
    let count = |p: &Pod, name: &str| status_of(p, name).restart_count;
    for round in 0..2 {
        let p =
            cluster.until_pod("initializing", |p| running(p, "first") && count(p, "first") == round).await;
        assert_eq!(condition(&p, "Initialized"), "False");
        cluster.fake.exit("first", 0);
        let both = |p: &Pod| running(p, "web") && running(p, "other") && count(p, "other") == round;
        let p = cluster.until_pod("running", both).await;
        assert_eq!((count(&p, "web"), phase(&p)), (round, "Running"));
        assert_eq!(condition(&p, "AllContainersRestarting"), "False");
        if round == 0 {
            cluster.fake.exit("web", 42);
        }
    }
    assert!(cluster.fake.books.lock().executed.is_empty(), "nobody is asked to prepare");
    cluster.until_event("Killing", "Container other is restarted with all others of its pod").await;
    // any other end is the pod's
    cluster.fake.exit("other", 0);
    cluster.fake.exit("web", 0);
    cluster.until_pod("over", |p| phase(p) == "Succeeded").await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}
