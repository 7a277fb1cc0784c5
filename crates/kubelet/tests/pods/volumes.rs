//! Environment and volumes, as containers see them.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};

use super::*;

fn host_path(cluster: &Cluster, container: &str, path: &str) -> std::path::PathBuf {
    let config = cluster.fake.container(container).expect("a container").config;
    let mount = config.mounts.iter().find(|m| m.container_path == path).expect("a mount");
    mount.host_path.clone().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_and_volumes_come_from_the_cluster_and_follow_it() {
    let mut cluster = Cluster::start().await;
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "m"}, "data": {"greeting": "hello"}})).await;
    cluster
        .create::<ConfigMap>("d", json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "CA"}}))
        .await;
    cluster
        .create::<Secret>(
            "d",
            json!({"metadata": {"name": "s"}, "stringData": {"key": "hidden", "run": "#!/bin/sh\n"}}),
        )
        .await;
    let spec = json!({
        "containers": [{"name": "web", "image": "web:1", "args": ["$(GREETING)-$(NOT_SET)"],
            "env": [
                {"name": "GREETING", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "greeting"}}},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "volumeMounts": [{"name": "map", "mountPath": "/map"}, {"name": "secret", "mountPath": "/secret"},
                {"name": "all", "mountPath": "/all"}, {"name": "scratch", "mountPath": "/scratch", "subPath": "a/b"}]}],
        "volumes": [{"name": "map", "configMap": {"name": "m"}}, {"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o755}},
            {"name": "scratch", "emptyDir": {}},
            {"name": "all", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "kube-root-ca.crt"}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}]});
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let config = cluster.fake.container("web").unwrap().config;
    let env = |name: &str| config.envs.iter().find(|e| e.key == name).map(|e| e.value.clone());
    assert_eq!(env("GREETING").as_deref(), Some("hello"));
    assert_eq!(env("SECRET").as_deref(), Some("hidden"));
    assert_eq!(env("IP").as_deref(), Some("127.0.0.1"));
    assert!(env("KUBERNETES_SERVICE_HOST").is_some());
    assert_eq!(config.args, ["hello-$(NOT_SET)"]);
    let written = |path: &str| config.mounts.iter().any(|m| m.container_path == path && !m.readonly);
    assert_eq!(["/map", "/secret", "/all", "/scratch"].map(written), [false, false, false, true]);
    let read =
        |path: &std::path::Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
    let map = host_path(&cluster, "web", "/map");
    assert_eq!(read(&map.join("greeting")), "hello");
    let secret = host_path(&cluster, "web", "/secret");
    assert_eq!(read(&secret.join("key")), "hidden");
    let ran = std::process::Command::new(secret.join("run")).status().expect("a script of a secret runs");
    assert!(ran.success());
    let all = host_path(&cluster, "web", "/all");
    assert_eq!(read(&all.join("ca.crt")), "CA");
    assert_eq!(read(&all.join("labels")), "app=\"p\"");
    assert_eq!(read(&all.join("token")).split('.').count(), 3, "a token");
    assert!(host_path(&cluster, "web", "/scratch").is_dir());
    assert!(read(&host_path(&cluster, "web", "/etc/hosts")).contains("127.0.0.1\tp\n"));
    // a change reaches the volume without anyone asking
    let token = read(&all.join("token"));
    let change = Patch::Merge(json!({"data": {"greeting": "good bye"}}));
    cluster.client.patch::<ConfigMap>("d", "m", &change).await.expect("changed");
    let seen = async {
        while read(&map.join("greeting")) != "good bye" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("the volume follows");
    assert_eq!(read(&all.join("token")), token, "a token is made once in its life");
    // also for a kubelet that did not start the pod itself
    cluster.stop_kubelet().await;
    cluster.start_kubelet().await;
    let label = Patch::Merge(json!({"metadata": {"labels": {"app": "q"}}}));
    cluster.client.patch::<Pod>("d", "p", &label).await.expect("labelled");
    let seen = async {
        while read(&all.join("labels")) != "app=\"q\"" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("the labels follow");
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_waits_for_its_config_map_and_starts_when_it_comes() {
    let cluster = Cluster::start().await;
    let spec = json!({"containers": [{"name": "web", "image": "web:1", "envFrom": [{"configMapRef": {"name": "env"}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "configMap": {"name": "late"}}]});
    cluster.create::<Pod>("d", pod(spec)).await;
    let missing = "MountVolume.SetUp failed for volume \"v\" : configmap \"late\" not found";
    cluster.until_event("FailedMount", missing).await;
    let p = cluster.until_pod("waits", |p| waiting(p, "web") == "ContainerCreating").await;
    assert_eq!(condition(&p, "PodReadyToStartContainers"), "False");
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "late"}, "data": {"a": "1"}})).await;
    let p = cluster.until_pod("next it misses", |p| waiting(p, "web") == "CreateContainerConfigError").await;
    let message = status_of(&p, "web").state.unwrap().waiting.unwrap().message.unwrap();
    assert!(message.contains("configmap \"env\" not found"), "{message}");
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "env"}, "data": {"A": "1"}})).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_follow_although_another_ones_config_map_is_gone() {
    let cluster = Cluster::start().await;
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "m"}, "data": {"a": "1"}})).await;
    let labels = json!({"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]});
    let spec = json!({"containers": [{"name": "web", "image": "web:1",
            "volumeMounts": [{"name": "map", "mountPath": "/map"}, {"name": "labels", "mountPath": "/labels"}]}],
        "volumes": [{"name": "map", "configMap": {"name": "m"}}, {"name": "labels", "downwardAPI": labels}]});
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let [map, labels] = ["/map/a", "/labels/labels"].map(|path| {
        let (folder, name) = path.rsplit_once('/').expect("a folder");
        host_path(&cluster, "web", folder).join(name)
    });
    cluster.client.delete::<ConfigMap>("d", "m", &DeleteOptions::default()).await.expect("deleted");
    cluster.until_event("FailedMount", "configmap \"m\" not found").await;
    let label = Patch::Merge(json!({"metadata": {"labels": {"app": "q"}}}));
    cluster.client.patch::<Pod>("d", "p", &label).await.expect("labelled");
    let seen = async {
        while std::fs::read_to_string(&labels).unwrap() != "app=\"q\"" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.expect("the labels follow");
    assert_eq!(std::fs::read_to_string(&map).unwrap(), "1", "what there was stays");
    cluster.fake.exit("web", 1);
    cluster.until_pod("again", |p| running(p, "web") && status_of(p, "web").restart_count == 1).await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_wrote_goes_when_it_is_over() {
    let cluster = Cluster::start().await;
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "web", "image": "web:1",
            "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}, {"name": "memory", "mountPath": "/m"}]}],
        "volumes": [{"name": "scratch", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory"}}]});
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let places = ["/scratch", "/m"].map(|path| host_path(&cluster, "web", path));
    places.iter().for_each(|place| std::fs::write(place.join("file"), "1").unwrap());
    cluster.fake.exit("web", 0);
    cluster.until_pod("over", |p| phase(p) == "Succeeded").await;
    let gone = async {
        while places.iter().any(|place| place.exists()) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("they are gone");
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_container_starts_before_the_services_are_known() {
    let mut cluster = Cluster::start().await;
    cluster.stop_kubelet().await;
    cluster.gate.send_replace(Closed::Services);
    cluster.start_kubelet().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    let p = cluster.until_pod("waits", |p| waiting(p, "web") == "CreateContainerConfigError").await;
    let message = status_of(&p, "web").state.unwrap().waiting.unwrap().message.unwrap();
    assert_eq!(message, "services have not yet been read at least once, cannot construct envvars");
    cluster.gate.send_replace(Closed::Nothing);
    cluster.until_pod("running", |p| running(p, "web")).await;
    let config = cluster.fake.container("web").unwrap().config;
    assert!(config.envs.iter().any(|variable| variable.key == "KUBERNETES_SERVICE_HOST"));
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_starts_anew_while_the_api_does_not_answer() {
    let cluster = Cluster::start().await;
    cluster.create::<ConfigMap>("d", json!({"metadata": {"name": "m"}, "data": {"A": "1"}})).await;
    cluster.create::<Secret>("d", json!({"metadata": {"name": "s"}, "stringData": {"B": "2"}})).await;
    let from = json!([{"configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}]);
    let mut web = web();
    web["envFrom"] = from;
    cluster.create::<Pod>("d", pod(json!({"containers": [web]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let first = cluster.fake.container("web").unwrap().status.id;
    cluster.gate.send_replace(Closed::Requests);
    cluster.fake.exit("web", 1);
    let again = |container: &fake::Container| {
        let envs = &container.config.envs;
        container.status.id != first && ["A", "B"].iter().all(|name| envs.iter().any(|e| e.key == *name))
    };
    cluster.until_books("it runs again", |books| books.containers.iter().any(&again)).await;
    cluster.gate.send_replace(Closed::Nothing);
    cluster.until_pod("running", |p| running(p, "web") && status_of(p, "web").restart_count == 1).await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}
