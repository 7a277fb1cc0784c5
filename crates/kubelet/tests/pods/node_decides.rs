//! What the node decides by itself: whom it takes, whom it ends, and pods of its own.

use k8s_openapi::api::core::v1::Node;
use kubelet::configuration::KubeletConfiguration;

use super::*;

pub fn reason(pod: &Pod) -> (&str, &str) {
    let status = pod.status.as_ref();
    let reason = status.and_then(|status| status.reason.as_deref()).unwrap_or_default();
    (reason, status.and_then(|status| status.message.as_deref()).unwrap_or_default())
}

/// Starts the kubelet anew with these settings.
pub async fn restart(cluster: &mut Cluster, settings: &str) {
    cluster.stop_kubelet().await;
    let text = format!("apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n{settings}");
    cluster.settings = KubeletConfiguration::parse(text.as_bytes()).expect("settings");
    cluster.start_kubelet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_does_not_fit_or_belongs_elsewhere_is_refused() {
    let cluster = Cluster::start().await;
    cluster.until::<Node, _>("registered", |list| list.first().cloned()).await;
    let mut greedy = web();
    greedy["resources"] = json!({"requests": {"cpu": "1k"}});
    cluster.create::<Pod>("d", pod(json!({"containers": [greedy]}))).await;
    let p = cluster.until_pod("refused", |p| phase(p) == "Failed").await;
    let (why, message) = reason(&p);
    assert_eq!(why, "OutOfcpu");
    let begin =
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000, used: 0, capacity: ";
    assert!(message.starts_with(begin), "{message}");
    assert_eq!(condition(&p, "DisruptionTarget"), "");
    assert_eq!(condition(&p, "Ready"), "", "nothing was looked at");
    let bare = |e: &&Arc<Event>| {
        e.reason.as_deref() == Some("OutOfcpu")
            && e.message.as_deref().is_some_and(|m| m.starts_with("Node didn't have enough resource"))
    };
    cluster.until::<Event, _>("an event", |list| list.iter().find(bare).map(drop)).await;
    assert!(cluster.fake.books.lock().sandboxes.is_empty(), "nothing of it ran");
    cluster.delete(None).await;
    cluster.until_gone().await;
    let elsewhere = json!({"nodeSelector": {"disk": "ssd"}, "containers": [web()]});
    cluster.create::<Pod>("d", pod(elsewhere)).await;
    let p = cluster.until_pod("refused", |p| phase(p) == "Failed").await;
    assert_eq!(reason(&p).0, "NodeAffinity");
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_deleted_at_once_makes_room_before_its_containers_ended() {
    let mut cluster = Cluster::start().await;
    restart(&mut cluster, "failSwapOn: false\nmaxPods: 1\nevictionHard: {nodefs.available: 1Mi}\n").await;
    cluster.fake.books.lock().stuck.insert("web".into());
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("runs", |p| phase(p) == "Running").await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    let mut other = web();
    other["name"] = json!("other");
    cluster.create::<Pod>("d", pod(json!({"containers": [other]}))).await;
    let p = cluster.until_pod("accepted", |p| !matches!(phase(p), "" | "Pending")).await;
    assert_eq!((phase(&p), reason(&p)), ("Running", ("", "")), "{p:?}");
    let still = cluster.fake.container("web").expect("a container").status.state;
    assert_eq!(still, cri::v1::ContainerState::ContainerRunning as i32, "the first one was not yet gone");
    cluster.fake.exit("web", 0);
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_critical_pod_takes_the_place_of_another() {
    let mut cluster = Cluster::start().await;
    restart(&mut cluster, "maxPods: 1\nevictionHard: {nodefs.available: 1Mi}\n").await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("runs", |p| phase(p) == "Running").await;
    let mut critical = pod(json!({"priorityClassName": "system-node-critical", "containers": [web()]}));
    critical["metadata"]["name"] = json!("critical");
    cluster.create::<Pod>("d", critical).await;
    let runs = |list: &[Arc<Pod>]| {
        let found = list.iter().find(|p| p.metadata.name.as_deref() == Some("critical"))?;
        (phase(found) == "Running").then_some(())
    };
    cluster.until::<Pod, _>("the critical one runs", runs).await;
    let p = cluster.until_pod("ended", |p| phase(p) == "Failed").await;
    assert_eq!(reason(&p), ("Preempting", "Preempted in order to admit critical pod"));
    assert_eq!(condition(&p, "DisruptionTarget"), "True");
    cluster.until_event("Preempting", "Preempted in order to admit critical pod").await;
    assert_eq!(cluster.fake.books.lock().stops.clone(), [("web".to_owned(), 30)], "it had its time");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_makes_room_whichever_of_the_two_a_new_kubelet_sees_first() {
    let mut cluster = Cluster::start().await;
    restart(&mut cluster, "maxPods: 1\nevictionHard: {nodefs.available: 1Mi}\n").await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("runs", |p| phase(p) == "Running").await;
    cluster.stop_kubelet().await;
    let named = ["a", "z"];
    for name in named {
        let mut critical = pod(json!({"priorityClassName": "system-node-critical", "containers": [web()]}));
        critical["metadata"]["name"] = json!(name);
        cluster.create::<Pod>("d", critical).await;
    }
    cluster.start_kubelet().await;
    let p = cluster.until_pod("ended", |p| phase(p) == "Failed").await;
    assert_eq!(reason(&p).0, "Preempting");
    // there is room for one of them
    let one = |list: &[Arc<Pod>]| {
        let of =
            |name: &&str| list.iter().find(|p| p.metadata.name.as_deref() == Some(*name)).map(|p| phase(p));
        let mut phases: Vec<&str> = named.iter().filter_map(of).collect();
        phases.sort_unstable();
        (phases == ["Failed", "Running"]).then_some(())
    };
    cluster.until::<Pod, _>("one of them runs", one).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_ends_pods_and_is_told() {
    let mut cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    // whatever is free, it is less than this
    restart(&mut cluster, "evictionHard: {nodefs.available: 1000Ti}\n").await;
    let p = cluster.until_pod("evicted", |p| phase(p) == "Failed").await;
    let (why, message) = reason(&p);
    assert_eq!(why, "Evicted");
    let begin = "The node was low on resource: ephemeral-storage. Threshold quantity: 1000Ti, available: ";
    assert!(message.starts_with(begin), "{message}");
    assert_eq!(condition(&p, "DisruptionTarget"), "True");
    let stops = cluster.fake.books.lock().stops.clone();
    assert_eq!(stops, [("web".to_owned(), 2)], "it had hardly any time");
    cluster.until_event("EvictionThresholdMet", "Attempting to reclaim ephemeral-storage").await;
    cluster.until_event("Evicted", "The node was low on resource").await;
    let starved = |list: &[Arc<Event>]| {
        let told = list.iter().find(|event| event.reason.as_deref() == Some("Evicted"))?;
        told.metadata.annotations.as_ref()?.get("starved_resource").cloned()
    };
    assert_eq!(cluster.until::<Event, _>("what was short", starved).await, "ephemeral-storage");
    let pressed = |list: &[Arc<Node>]| {
        let conditions = list.first()?.status.as_ref()?.conditions.as_ref()?;
        let found = conditions.iter().find(|c| c.type_ == "DiskPressure" && c.status == "True")?;
        found.reason.clone()
    };
    assert_eq!(cluster.until::<Node, _>("disk pressure", pressed).await, "KubeletHasDiskPressure");
    cluster.until_event("NodeHasDiskPressure", "Node n1 status is now: NodeHasDiskPressure").await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    // and who comes now is not let in
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    let p = cluster.until_pod("refused", |p| phase(p) == "Failed").await;
    assert_eq!(reason(&p), ("Evicted", "Pod was rejected: The node had condition: [DiskPressure]. "));
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_over_its_limit_ends_its_pod() {
    let cluster = Cluster::start().await;
    let mut container = web();
    container["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let spec =
        json!({"volumes": [{"name": "data", "emptyDir": {"sizeLimit": "1Mi"}}], "containers": [container]});
    cluster.create::<Pod>("d", pod(spec)).await;
    let p = cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    let uid = p.metadata.uid.clone().unwrap();
    let volume =
        cluster.api.folder.path().join(format!("kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/data"));
    std::fs::write(volume.join("big"), vec![7; 2 << 20]).unwrap();
    let p = cluster.until_pod("evicted", |p| phase(p) == "Failed").await;
    assert_eq!(reason(&p), ("Evicted", "Usage of EmptyDir volume \"data\" exceeds the limit \"1Mi\". "));
    assert_ne!(condition(&p, "DisruptionTarget"), "True", "it is its own fault");
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

fn file(image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: own, namespace: d}}\nspec: {{terminationGracePeriodSeconds: 3, \
         containers: [{{name: web, image: '{image}'}}]}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_in_the_nodes_folder_is_a_pod_and_the_api_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = KubeletConfiguration::without_file();
    settings.static_pod_path = Some(folder.path().to_owned());
    let mut cluster = Cluster::with(settings).await;
    let path = folder.path().join("own.yaml");
    std::fs::write(&path, file("web:1")).unwrap();
    let shown = |list: &[Arc<Pod>]| {
        let ready =
            |p: &&Arc<Pod>| p.metadata.name.as_deref() == Some("own-n1") && condition(p, "Ready") == "True";
        list.iter().find(ready).cloned()
    };
    let first = cluster.until::<Pod, _>("the API shows it", shown).await;
    let annotations = first.metadata.annotations.clone().unwrap();
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(annotations["kubernetes.io/config.mirror"], annotations["kubernetes.io/config.hash"]);
    let owner = first.metadata.owner_references.clone().unwrap().remove(0);
    assert_eq!((owner.kind.as_str(), owner.name.as_str()), ("Node", "n1"));
    let id = cluster.fake.container("web").unwrap().status.id;

    // deleting the image deletes no pod: it comes back, and says how the same container is
    let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete::<Pod>("d", "own-n1", &options).await.expect("delete");
    let again = |list: &[Arc<Pod>]| shown(list).filter(|pod| pod.metadata.uid != first.metadata.uid);
    cluster.until::<Pod, _>("it is shown again", again).await;
    assert_eq!(cluster.fake.container("web").unwrap().status.id, id);

    // a kubelet that starts again finds the pod it left
    cluster.stop_kubelet().await;
    let before = cluster.client.get::<Pod>("d", "own-n1").await.unwrap();
    cluster.start_kubelet().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [{"name": "other", "image": "web:1"}]}))).await;
    cluster.until_pod("the kubelet is at work", |p| running(p, "other")).await;
    let after = cluster.client.get::<Pod>("d", "own-n1").await.unwrap();
    assert_eq!(before.metadata.uid, after.metadata.uid);
    assert_eq!(cluster.fake.container("web").unwrap().status.id, id);
    cluster.delete(Some(0)).await;

    // another definition is another pod, which waits for the first one's end
    cluster.fake.add_image("web:2");
    std::fs::write(&path, file("web:2")).unwrap();
    let changed = |list: &[Arc<Pod>]| {
        shown(list).filter(|pod| pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("web:2"))
    };
    cluster.until::<Pod, _>("the new definition", changed).await;
    assert!(cluster.fake.books.lock().stops.contains(&("web".to_owned(), 3)));

    std::fs::remove_file(&path).unwrap();
    cluster.until_gone().await;
    let clean = async {
        while !cluster.fake.books.lock().sandboxes.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, clean).await.expect("nothing runs any more");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_a_pod_before_there_is_an_api_and_leaves_the_others_what_they_have() {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = KubeletConfiguration::without_file();
    settings.static_pod_path = Some(folder.path().to_owned());
    let mut cluster = Cluster::with(settings).await;
    cluster.create::<Pod>("d", pod(json!({"containers": [{"name": "other", "image": "web:1"}]}))).await;
    cluster.until_pod("runs", |p| running(p, "other")).await;
    let other = cluster.fake.container("other").unwrap().status.id;
    cluster.stop_kubelet().await;
    cluster.gate.send_replace(Closed::Everything);
    std::fs::write(folder.path().join("own.yaml"), file("web:1")).unwrap();
    cluster.start_kubelet().await;
    let runs = cri::v1::ContainerState::ContainerRunning as i32;
    let is = |name: &'static str, image: &'static str| {
        move |books: &fake::Books| {
            books.containers.iter().any(|c| {
                let named = c.config.metadata.as_ref().is_some_and(|m| m.name == name);
                named
                    && c.status.state == runs
                    && c.config.image.as_ref().is_some_and(|i| i.user_specified_image == image)
            })
        }
    };
    cluster.until_books("it runs", is("web", "web:1")).await;
    // nor does a change of its file wait
    cluster.fake.add_image("web:2");
    std::fs::write(folder.path().join("own.yaml"), file("web:2")).unwrap();
    cluster.until_books("the new one runs", is("web", "web:2")).await;
    let id = cluster.fake.container("web").unwrap().status.id;
    cluster.gate.send_replace(Closed::Nothing);
    let shown = |list: &[Arc<Pod>]| {
        let own =
            |p: &&Arc<Pod>| p.metadata.name.as_deref() == Some("own-n1") && condition(p, "Ready") == "True";
        list.iter().find(own).map(drop)
    };
    cluster.until::<Pod, _>("the API shows it", shown).await;
    assert_eq!(cluster.fake.container("web").unwrap().status.id, id);
    assert_eq!(cluster.fake.container("other").unwrap().status.id, other, "it was somebody's all the time");
    assert!(is("other", "web:1")(&cluster.fake.books.lock()));
    std::fs::remove_file(folder.path().join("own.yaml")).unwrap();
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_never_answers_keeps_no_kubelet_from_stopping() {
    let mut cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("runs", |p| running(p, "web")).await;
    cluster.fake.books.lock().hung = true;
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"look": "again"}}}));
    cluster.client.patch::<Pod>("d", "p", &patch).await.expect("patched");
    cluster.until_books("its worker waits", |books| books.unanswered > 0).await;
    cluster.stop_kubelet().await;
    cluster.fake.books.lock().hung = false;
    cluster.start_kubelet().await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}
