//! Starting, ending, restarting, adopting.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_runs_is_ready_and_leaves_nothing_when_deleted() {
    let cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    let p = cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    assert_eq!(phase(&p), "Running");
    for kind in ["PodReadyToStartContainers", "Initialized", "ContainersReady"] {
        assert_eq!(condition(&p, kind), "True", "{kind}");
    }
    let ready =
        p.status.as_ref().unwrap().conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(
        (ready.reason.as_deref(), ready.message.as_deref()),
        (None, None),
        "no trace of not being ready"
    );
    let status = status_of(&p, "web");
    assert!(status.container_id.as_deref().is_some_and(|id| id.starts_with("fake://c")));
    assert_eq!((status.ready, status.started, status.restart_count), (true, Some(true), 0));
    let whole = p.status.clone().unwrap();
    assert_eq!(whole.pod_ip.as_deref(), Some("127.0.0.1"));
    assert_eq!((whole.qos_class.as_deref(), whole.start_time.is_some()), (Some("BestEffort"), true));
    cluster.until_event("Started", "Container started").await;
    cluster.until_event("Pulled", "Container image \"web:1\" already present on machine").await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.until_event("Killing", "Stopping container web").await;
    let uid = p.metadata.uid.clone().unwrap();
    assert!(cluster.fake.books.lock().sandboxes.is_empty());
    assert!(!cluster.api.folder.path().join("kubelet/pods").join(&uid).exists());
    assert_eq!(std::fs::read_dir(cluster.api.folder.path().join("logs")).unwrap().count(), 0);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_is_healed_at_once_and_the_next_one_backs_off() {
    let cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    cluster.fake.exit("web", 3);
    let p =
        cluster.until_pod("restarted", |p| status_of(p, "web").restart_count == 1 && running(p, "web")).await;
    let last = status_of(&p, "web").last_state.and_then(|s| s.terminated).expect("a last state");
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    cluster.fake.exit("web", 3);
    let p = cluster.until_pod("backs off", |p| waiting(p, "web") == "CrashLoopBackOff").await;
    let message = status_of(&p, "web").state.unwrap().waiting.unwrap().message.unwrap();
    assert!(message.starts_with("back-off 10s restarting failed container=web pod=p_d("), "{message}");
    assert_eq!((phase(&p), condition(&p, "Ready")), ("Running", "False"));
    cluster.until_event("BackOff", "Back-off restarting failed container web in pod p_d(").await;
    // a pod that backs off can be deleted at once
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_kubelet_adopts_what_runs_without_a_moment_of_unreadiness() {
    let mut cluster = Cluster::start().await;
    let mut container = web();
    container["readinessProbe"] = json!({"exec": {"command": ["check"]}, "periodSeconds": 1});
    cluster.create::<Pod>("d", pod(json!({"containers": [container]}))).await;
    let before = cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    let id = cluster.fake.container("web").unwrap().status.id;
    cluster.stop_kubelet().await;
    let executed = cluster.fake.books.lock().executed.len();
    cluster.start_kubelet().await;
    // the new kubelet's own probe shows that it took the pod over
    let taken = async {
        while cluster.fake.books.lock().executed.len() == executed {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, taken).await.expect("probed again");
    let after = cluster.client.get::<Pod>("d", "p").await.unwrap();
    let since =
        |p: &Pod| p.status.clone().unwrap().conditions.unwrap().into_iter().find(|c| c.type_ == "Ready");
    assert_eq!(since(&before).unwrap().last_transition_time, since(&after).unwrap().last_transition_time);
    let status = status_of(&after, "web");
    assert_eq!((status.restart_count, status.ready), (0, true));
    assert_eq!(cluster.fake.container("web").unwrap().status.id, id);
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_forgot_its_containers_loses_no_count() {
    let mut cluster = Cluster::start().await;
    let forget = |cluster: &Cluster| {
        let mut books = cluster.fake.books.lock();
        books.containers.clear();
        books.sandboxes.clear();
    };
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    cluster.stop_kubelet().await;
    forget(&cluster);
    cluster.start_kubelet().await;
    let p = cluster.until_pod("again", |p| status_of(p, "web").restart_count == 1 && running(p, "web")).await;
    let last = status_of(&p, "web").last_state.and_then(|s| s.terminated).expect("an end");
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_left_that_was_deleted_meanwhile_is_cleaned_up() {
    let mut cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    let p = cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    cluster.stop_kubelet().await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.start_kubelet().await;
    let uid = p.metadata.uid.clone().unwrap();
    let folder = cluster.api.folder.path().join("kubelet/pods").join(uid);
    let clean = async {
        while folder.exists() || !cluster.fake.books.lock().sandboxes.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, clean).await.expect("nothing is left");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_like_pod_succeeds_or_fails_and_keeps_its_last_words() {
    let cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod(json!({"restartPolicy": "Never", "containers": [web()]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let mounts = cluster.fake.container("web").unwrap().config.mounts;
    let words = mounts.iter().find(|m| m.container_path == "/dev/termination-log").expect("mounted");
    std::fs::write(&words.host_path, "the end").unwrap();
    cluster.fake.exit("web", 2);
    let p = cluster.until_pod("failed", |p| phase(p) == "Failed").await;
    let ended = status_of(&p, "web").state.unwrap().terminated.expect("terminated");
    assert_eq!(
        (ended.exit_code, ended.reason.as_deref(), ended.message.as_deref()),
        (2, Some("Error"), Some("the end"))
    );
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.create::<Pod>("d", pod(json!({"restartPolicy": "OnFailure", "containers": [web()]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    cluster.fake.exit("web", 0);
    let p = cluster.until_pod("succeeded", |p| phase(p) == "Succeeded").await;
    assert_eq!(condition(&p, "Ready"), "False");
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_is_not_there_fails_a_pod_that_runs_once_and_is_tried_again_in_others() {
    let cluster = Cluster::start().await;
    cluster.fake.books.lock().broken.insert("web".into());
    cluster.create::<Pod>("d", pod(json!({"restartPolicy": "Never", "containers": [web()]}))).await;
    let p = cluster.until_pod("failed", |p| phase(p) == "Failed").await;
    let ended = status_of(&p, "web").state.and_then(|s| s.terminated).expect("it ended");
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (128, Some("StartError")));
    assert_eq!(ended.message.as_deref(), Some("no such program"));
    cluster.until_event("Failed", "Error: no such program").await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.create::<Pod>("d", pod(json!({"restartPolicy": "OnFailure", "containers": [web()]}))).await;
    let p = cluster.until_pod("waits", |p| waiting(p, "web") == "CrashLoopBackOff").await;
    let ended = status_of(&p, "web").last_state.and_then(|s| s.terminated).expect("it ended before");
    assert_eq!((ended.exit_code, phase(&p)), (128, "Running"));
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_containers_run_in_order_and_a_sidecar_stays() {
    let cluster = Cluster::start().await;
    let spec = json!({"restartPolicy": "Never",
        "initContainers": [{"name": "first", "image": "web:1"}, {"name": "side", "image": "web:1", "restartPolicy": "Always"}],
        "containers": [web()]});
    cluster.create::<Pod>("d", pod(spec)).await;
    let p = cluster.until_pod("init runs", |p| running(p, "first")).await;
    assert_eq!(
        (phase(&p), waiting(&p, "web").as_str(), condition(&p, "Initialized")),
        ("Pending", "PodInitializing", "False")
    );
    assert!(cluster.fake.container("side").is_none());
    cluster.fake.exit("first", 0);
    cluster.until_pod("all run", |p| running(p, "side") && running(p, "web")).await;
    cluster.fake.exit("side", 1);
    cluster
        .until_pod("sidecar again", |p| running(p, "side") && status_of(p, "side").restart_count == 1)
        .await;
    assert_eq!(status_of(&cluster.client.get::<Pod>("d", "p").await.unwrap(), "web").restart_count, 0);
    cluster.fake.books.lock().stubborn.insert("side".to_owned());
    cluster.fake.exit("web", 0);
    let p = cluster.until_pod("web is over", |p| !running(p, "web")).await;
    assert_eq!(phase(&p), "Running", "not over before its last process is gone");
    cluster.fake.exit("side", 0);
    cluster.until_pod("succeeded", |p| phase(p) == "Succeeded" && !running(p, "side")).await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_prepares_when_its_pod_is_deleted_and_ends_after_the_others() {
    let cluster = Cluster::start().await;
    let bye = json!({"preStop": {"exec": {"command": ["bye"]}}});
    let side = json!({"name": "side", "image": "web:1", "restartPolicy": "Always", "lifecycle": bye});
    let spec = json!({"terminationGracePeriodSeconds": 600, "initContainers": [side], "containers": [web()]});
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("all run", |p| running(p, "side") && running(p, "web")).await;
    cluster.fake.books.lock().stubborn.insert("web".to_owned());
    cluster.delete(None).await;
    cluster
        .until_books("web is asked, side's hook ran", |b| !b.stops.is_empty() && b.executed == ["bye"])
        .await;
    assert!(cluster.fake.books.lock().stops.iter().all(|(name, _)| name == "web"));
    cluster.fake.exit("web", 0);
    cluster.until_gone().await;
    let (stops, executed) = {
        let books = cluster.fake.books.lock();
        (books.stops.clone(), books.executed.clone())
    };
    assert_eq!(stops.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["web", "side"]);
    assert_eq!(executed, ["bye"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_is_as_ready_as_it_says_until_its_processes_are_gone() {
    let cluster = Cluster::start().await;
    let mut container = web();
    container["readinessProbe"] =
        json!({"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    let spec = json!({"terminationGracePeriodSeconds": 600, "containers": [container]});
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    cluster.fake.books.lock().stubborn.insert("web".to_owned());
    cluster.delete(None).await;
    cluster.until_books("asked to stop", |b| !b.stops.is_empty()).await;
    let asked = cluster.fake.books.lock().executed.len();
    cluster.until_books("asked whether it is ready", |b| b.executed.len() > asked + 1).await;
    let p = cluster.client.get::<Pod>("d", "p").await.unwrap();
    assert_eq!((condition(&p, "Ready"), status_of(&p, "web").ready), ("True", true));
    cluster.fake.books.lock().exec.insert("ready".to_owned(), 1);
    cluster.until_pod("no longer ready", |p| condition(p, "Ready") == "False" && running(p, "web")).await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_deleted_before_it_began_has_failed() {
    let cluster = Cluster::start().await;
    cluster.fake.books.lock().slow_pulls.insert("slow:1".to_owned());
    let mut waits = pod(json!({"containers": [{"name": "web", "image": "slow:1"}]}));
    waits["metadata"]["finalizers"] = json!(["example.com/count"]);
    cluster.create::<Pod>("d", waits).await;
    cluster.until_event("Pulling", "slow:1").await;
    cluster.delete(None).await;
    let p = cluster.until_pod("failed", |p| phase(p) == "Failed").await;
    let ended = status_of(&p, "web").state.and_then(|s| s.terminated).expect("it is over");
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    let counted = client::Patch::Merge(json!({"metadata": {"finalizers": null}}));
    cluster.client.patch::<Pod>("d", "p", &counted).await.expect("counted");
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_hook_that_fails_ends_the_container_and_a_probe_that_cannot_be_made_says_why() {
    let cluster = Cluster::start().await;
    cluster.fake.books.lock().exec.insert("hello".to_owned(), 3);
    let mut container = web();
    container["lifecycle"] = json!({"postStart": {"exec": {"command": ["hello"]}}});
    container["readinessProbe"] = json!({"tcpSocket": {"port": "nope"}, "periodSeconds": 1});
    cluster.create::<Pod>("d", pod(json!({"containers": [container]}))).await;
    cluster.until_event("FailedPostStartHook", "PostStartHook failed").await;
    cluster.until_event("Killing", "FailedPostStartHook").await;
    cluster.fake.books.lock().exec.clear();
    cluster.until_pod("runs again", |p| running(p, "web") && status_of(p, "web").restart_count > 0).await;
    let text = "Readiness probe errored and resulted in unknown state: strconv.Atoi: parsing \"nope\": invalid syntax";
    cluster.until_event("Unhealthy", text).await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shorter_grace_period_reaches_a_container_that_ignores_the_first() {
    let cluster = Cluster::start().await;
    let mut container = web();
    container["lifecycle"] = json!({"preStop": {"exec": {"command": ["bye"]}}});
    cluster
        .create::<Pod>("d", pod(json!({"terminationGracePeriodSeconds": 600, "containers": [container]})))
        .await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    cluster.fake.books.lock().stubborn.insert("web".to_owned());
    cluster.delete(None).await;
    let asked = async {
        while cluster.fake.books.lock().stops.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("asked to stop");
    assert_eq!(cluster.fake.books.lock().executed, ["bye"]);
    // 0 would take the object away at once; 1 is still the kubelet's to do
    cluster.delete(Some(1)).await;
    let again = async {
        while cluster.fake.books.lock().stops.len() < 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("asked again");
    let stops = cluster.fake.books.lock().stops.clone();
    assert!(stops[0].1 > 590 && stops[1].1 == 2, "{stops:?}");
    assert_eq!(cluster.fake.books.lock().executed, ["bye"], "the hook runs once");
    cluster.until_gone().await;
    // by force it is gone from the API at once; its containers still have a moment
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    cluster.fake.books.lock().stops.clear();
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.until_books("asked to stop", |b| b.stops == [("web".to_owned(), 2)]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_decide_readiness_and_restarts() {
    let cluster = Cluster::start().await;
    let mut container = web();
    container["readinessProbe"] =
        json!({"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    container["livenessProbe"] =
        json!({"exec": {"command": ["alive"]}, "periodSeconds": 1, "failureThreshold": 1});
    cluster.fake.books.lock().exec.insert("ready".to_owned(), 1);
    cluster.create::<Pod>("d", pod(json!({"containers": [container]}))).await;
    let p = cluster.until_pod("running", |p| running(p, "web")).await;
    assert_eq!(condition(&p, "Ready"), "False");
    cluster.until_event("Unhealthy", "Readiness probe failed").await;
    cluster.fake.books.lock().exec.insert("ready".to_owned(), 0);
    cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    cluster.fake.books.lock().exec.insert("alive".to_owned(), 1);
    cluster.until_event("Killing", "Container web failed liveness probe, will be restarted").await;
    cluster.fake.books.lock().exec.insert("alive".to_owned(), 0);
    cluster.until_pod("restarted", |p| status_of(p, "web").restart_count >= 1).await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_told_while_another_containers_image_comes_slowly() {
    let cluster = Cluster::start().await;
    cluster.fake.books.lock().registry.insert("slow:1".to_owned(), String::new());
    let mut container = web();
    container["readinessProbe"] =
        json!({"exec": {"command": ["ready"]}, "periodSeconds": 1, "failureThreshold": 1});
    let late = json!({"name": "late", "image": "slow:1", "imagePullPolicy": "Always"});
    cluster.create::<Pod>("d", pod(json!({"containers": [container, late]}))).await;
    cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    cluster.fake.books.lock().slow_pulls.insert("slow:1".to_owned());
    cluster.fake.exit("late", 1);
    cluster.until_pod("it is to run again", |p| !running(p, "late")).await;
    // more often than before the pull began
    for (code, ready) in [(1, false), (0, true), (1, false)] {
        cluster.fake.books.lock().exec.insert("ready".to_owned(), code);
        cluster.until_pod("told", |p| running(p, "web") && status_of(p, "web").ready == ready).await;
    }
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_sandbox_is_made_again() {
    let cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    cluster.fake.break_sandbox();
    cluster.until_event("SandboxChanged", "Pod sandbox changed, it will be killed and re-created.").await;
    cluster.until_pod("runs again", |p| status_of(p, "web").restart_count == 1 && running(p, "web")).await;
    let attempt =
        cluster.fake.books.lock().sandboxes.last().and_then(|s| s.config.metadata.clone()).unwrap().attempt;
    assert_eq!(attempt, 1);
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_cannot_be_had_say_why_and_hold_nothing_up() {
    let cluster = Cluster::start().await;
    let spec = json!({"containers": [
        {"name": "never", "image": "none:1", "imagePullPolicy": "Never"},
        {"name": "pulled", "image": "far:1", "imagePullPolicy": "IfNotPresent"},
        web()]});
    cluster.create::<Pod>("d", pod(spec)).await;
    cluster
        .until_pod("each says why, and the last one runs", |p| {
            waiting(p, "never") == "ErrImageNeverPull"
                && waiting(p, "pulled") == "ErrImagePull"
                && running(p, "web")
        })
        .await;
    cluster.until_pod("then it waits", |p| waiting(p, "pulled") == "ImagePullBackOff").await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    // a pull that never ends does not keep a pod from being deleted
    cluster.fake.books.lock().slow_pulls.insert("slow:1".to_owned());
    cluster.create::<Pod>("d", pod(json!({"containers": [{"name": "web", "image": "slow:1"}]}))).await;
    cluster.until_event("Pulling", "slow:1").await;
    cluster.delete(None).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_grew_large_is_put_aside() {
    let mut settings = kubelet::configuration::KubeletConfiguration::without_file();
    settings.container_log_max_size = "1Ki".to_owned();
    settings.container_log_monitor_interval = "50ms".to_owned();
    let cluster = Cluster::with(settings).await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("running", |p| running(p, "web")).await;
    let log = cluster.fake.container("web").unwrap().status.log_path;
    let aside = || {
        let folder = std::path::Path::new(&log).parent().unwrap();
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name.to_string_lossy().starts_with("0.log.")).count()
    };
    std::fs::write(&log, "x".repeat(1000)).unwrap();
    let before = cluster.fake.books.lock().reopened.len();
    std::fs::write(&log, "x".repeat(2000)).unwrap();
    cluster.until_books("opened anew", |books| books.reopened.len() > before).await;
    assert_eq!((aside(), std::fs::read(&log).unwrap().len()), (1, 0));
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_that_was_pulled_with_a_secret_is_for_pods_that_have_it() {
    let mut cluster = Cluster::start().await;
    let registry = [("q.io/app:1".to_owned(), "me".to_owned()), ("q.io/free:1".to_owned(), String::new())];
    cluster.fake.books.lock().registry.extend(registry);
    for (name, user) in [("s", "me"), ("same", "me"), ("other", "you")] {
        let auths = json!({"auths": {"q.io": {"username": user, "password": "pw"}}}).to_string();
        let secret = json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": auths}});
        cluster.create::<k8s_openapi::api::core::v1::Secret>("d", secret).await;
    }
    let with = |image: &str, policy: &str, secret: Option<&str>| {
        let secrets: Vec<Value> = secret.iter().map(|name| json!({"name": name})).collect();
        let container = json!({"name": "web", "image": image, "imagePullPolicy": policy});
        pod(json!({"containers": [container], "imagePullSecrets": secrets}))
    };
    let here = "already present on machine and can be accessed by the pod";
    for (image, policy, secret, runs) in [
        ("q.io/app:1", "IfNotPresent", Some("s"), true),
        ("q.io/app:1", "IfNotPresent", None, false),
        ("q.io/app:1", "IfNotPresent", Some("other"), false),
        ("q.io/app:1", "Never", Some("same"), true),
        ("q.io/app:1", "Never", None, false),
        ("q.io/free:1", "IfNotPresent", None, true),
        ("q.io/free:1", "Never", None, true),
    ] {
        cluster.create::<Pod>("d", with(image, policy, secret)).await;
        if runs {
            cluster.until_pod("runs", |p| running(p, "web")).await;
        } else {
            let reason = if policy == "Never" { "ErrImageNeverPull" } else { "ErrImagePull" };
            cluster.until_pod(reason, |p| waiting(p, "web") == reason).await;
        }
        cluster.delete(Some(0)).await;
        cluster.until_gone().await;
    }
    cluster.until_event("Pulled", &format!("Container image \"q.io/app:1\" {here}")).await;
    // the next kubelet knows it as well
    cluster.stop_kubelet().await;
    cluster.start_kubelet().await;
    cluster.create::<Pod>("d", with("q.io/app:1", "Never", None)).await;
    cluster.until_pod("no proof", |p| waiting(p, "web") == "ErrImageNeverPull").await;
    cluster.delete(Some(0)).await;
    cluster.until_gone().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_does_not_answer_changes_no_status() {
    let cluster = Cluster::start().await;
    cluster.create::<Pod>("d", pod(json!({"containers": [web()]}))).await;
    cluster.until_pod("ready", |p| condition(p, "Ready") == "True").await;
    cluster.fake.books.lock().down = true;
    // a change of the pod makes the kubelet look, and find nothing out
    let label = client::Patch::Merge(json!({"metadata": {"labels": {"look": "now"}}}));
    cluster.client.patch::<Pod>("d", "p", &label).await.expect("labelled");
    let options = DeleteOptions { grace_period_seconds: Some(30), ..DeleteOptions::default() };
    cluster.client.delete::<Pod>("d", "p", &options).await.expect("delete");
    let p = cluster.until_pod("being deleted", |p| p.metadata.deletion_timestamp.is_some()).await;
    assert_eq!((phase(&p), running(&p, "web")), ("Running", true));
    cluster.fake.books.lock().down = false;
    cluster.until_gone().await;
    cluster.stop().await;
}
