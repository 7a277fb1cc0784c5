//! Who runs again and who does not: containers with policies of their own, starts that fail, and kubelets that stop.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_own_policies_decide_how_their_pod_ends() {
    let cluster = Cluster::start().await;
    let mut once = web();
    once["restartPolicy"] = json!("Never");
    cluster.create::<Pod>("d", pod(json!({"containers": [once]}))).await;
    let p = cluster.until_pod("running", |p| running(p, "web")).await;
    assert_eq!(condition(&p, "PodScheduled"), "True", "it came with its node");
    cluster.fake.exit("web", 0);
    let p = cluster.until_pod("over", |p| phase(p) == "Succeeded").await;
    assert_eq!(p.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()), Some("Always"));
    cluster.delete(None).await;
    cluster.until_gone().await;
    let first = json!({"name": "first", "image": "web:1", "restartPolicy": "Never"});
    cluster.create::<Pod>("d", pod(json!({"initContainers": [first], "containers": [web()]}))).await;
    cluster.until_pod("init runs", |p| running(p, "first")).await;
    cluster.fake.exit("first", 1);
    cluster.until_pod("over", |p| phase(p) == "Failed").await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_that_fail_leave_no_more_containers_than_others() {
    let mut settings = kubelet::configuration::KubeletConfiguration::without_file();
    settings.crash_loop_back_off.max_container_restart_period = Some("1s".to_owned());
    let cluster = Cluster::with(settings).await;
    cluster.fake.books.lock().broken.insert("web".into());
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("tried again", |p| status_of(p, "web").restart_count >= 3).await;
    let left = cluster.fake.books.lock().containers.len();
    assert!(left < 4, "{left}");
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sandboxes_that_broke_do_not_pile_up() {
    let mut settings = kubelet::configuration::KubeletConfiguration::without_file();
    settings.crash_loop_back_off.max_container_restart_period = Some("1s".to_owned());
    let cluster = Cluster::with(settings).await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    for count in 0..4 {
        let again = |p: &Pod| status_of(p, "web").restart_count == count && running(p, "web");
        cluster.until_pod("runs", again).await;
        cluster.fake.break_sandbox();
    }
    cluster.until_pod("runs", |p| status_of(p, "web").restart_count == 4 && running(p, "web")).await;
    let left = cluster.fake.books.lock().sandboxes.len();
    assert!(left < 5, "{left}");
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_with_many_pods_stops() {
    const PODS: usize = 70;
    let mut cluster = Cluster::start().await;
    for at in 0..PODS {
        let mut one = pod(json!({"containers": [web()]}));
        one["metadata"]["name"] = json!(format!("p{at}"));
        cluster.create::<Pod>("d", one).await;
    }
    let run =
        |list: &[Arc<Pod>]| (list.iter().filter(|p| phase(p) == "Running").count() == PODS).then_some(());
    cluster.until::<Pod, _>("all run", run).await;
    cluster.stop_kubelet().await;
    cluster.stop().await;
}
