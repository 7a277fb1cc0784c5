//! What the CRI validation suite asks of every runtime and no other file here does: asking twice, lists, their filters and
//! streams of them, attributes, codes of refusals, one name for an image, sources of mounts.

use std::{collections::HashMap, fs};

use cri::v1;
use futures_util::StreamExt;
use tonic::Code;

use crate::support::{IMAGE, Node, log, output, security, shell};

const NOBODY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_or_never_was_is_stopped_and_removed_without_an_error() {
    let mut node = Node::start().await;
    let stop_sandbox = |id: &str| v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    let remove_sandbox = |id: &str| v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    let stop = |id: &str| v1::StopContainerRequest { container_id: id.to_owned(), timeout: 0 };
    let remove = |id: &str| v1::RemoveContainerRequest { container_id: id.to_owned() };
    let image = v1::ImageSpec { image: NOBODY.to_owned(), ..Default::default() };
    let unwanted = v1::RemoveImageRequest { image: Some(image) };
    for _ in 0..2 {
        node.cri.stop_pod_sandbox(stop_sandbox(NOBODY)).await.unwrap();
        node.cri.remove_pod_sandbox(remove_sandbox(NOBODY)).await.unwrap();
        node.cri.stop_container(stop(NOBODY)).await.unwrap();
        node.cri.remove_container(remove(NOBODY)).await.unwrap();
        node.images.remove_image(unwanted.clone()).await.unwrap();
    }
    let sandbox = node.sandbox("twice").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    for _ in 0..2 {
        node.cri.stop_container(stop(&id)).await.unwrap();
    }
    for _ in 0..2 {
        node.cri.remove_container(remove(&id)).await.unwrap();
    }
    for _ in 0..2 {
        node.cri.stop_pod_sandbox(stop_sandbox(&sandbox)).await.unwrap();
    }
    for _ in 0..2 {
        node.cri.remove_pod_sandbox(remove_sandbox(&sandbox)).await.unwrap();
    }
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_says_what_it_is_and_that_it_is_ready() {
    let mut node = Node::empty().await;
    let version = node.cri.version(v1::VersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((version.runtime_name.as_str(), version.runtime_api_version.as_str()), ("navarch", "v1"));
    assert!(!version.runtime_version.is_empty() && !version.version.is_empty());
    let status = node.cri.status(v1::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    for wanted in ["RuntimeReady", "NetworkReady"] {
        let condition = status.conditions.iter().find(|condition| condition.r#type == wanted);
        assert!(condition.is_some_and(|condition| condition.status), "{wanted}: {:?}", status.conditions);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_by_id_state_sandbox_and_labels() {
    let mut node = Node::start().await;
    let labelled = |value: &str| HashMap::from([("colour".to_owned(), value.to_owned())]);
    let mut sandboxes = Vec::new();
    for colour in ["red", "blue"] {
        let mut config = node.sandbox_config(colour);
        config.labels = labelled(colour);
        sandboxes.push(node.run_sandbox(config).await);
    }
    let mut containers = Vec::new();
    for (sandbox, colour) in sandboxes.iter().zip(["red", "blue"]) {
        let mut config = shell("main", "sleep 1000");
        config.labels = labelled(colour);
        containers.push(node.run(sandbox, config).await);
    }
    let stop = v1::StopContainerRequest { container_id: containers[1].clone(), timeout: 0 };
    node.cri.stop_container(stop).await.unwrap();
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: sandboxes[1].clone() };
    node.cri.stop_pod_sandbox(stop).await.unwrap();
    let (red, blue) = (sandboxes[0].clone(), sandboxes[1].clone());
    let (running, ended) = (containers[0].clone(), containers[1].clone());

    let mut cri = node.cri.clone();
    let mut pods = async |filter: v1::PodSandboxFilter| {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        let listed = cri.list_pod_sandbox(request).await.unwrap().into_inner().items;
        listed.into_iter().map(|item| item.id).collect::<Vec<_>>().join(" ")
    };
    let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state as i32 });
    let all = v1::PodSandboxFilter::default();
    assert_eq!(pods(all.clone()).await.split(' ').count(), 2);
    assert_eq!(pods(v1::PodSandboxFilter { id: red.clone(), ..all.clone() }).await, red);
    let ready = v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxReady), ..all.clone() };
    assert_eq!(pods(ready.clone()).await, red);
    let down = v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxNotready), ..all.clone() };
    assert_eq!(pods(down).await, blue);
    let labels = v1::PodSandboxFilter { label_selector: labelled("blue"), ..all.clone() };
    assert_eq!(pods(labels).await, blue);
    assert!(pods(v1::PodSandboxFilter { label_selector: labelled("blue"), ..ready }).await.is_empty());
    assert!(pods(v1::PodSandboxFilter { id: "none".to_owned(), ..all }).await.is_empty());

    let mut cri = node.cri.clone();
    let mut listed = async |filter: v1::ContainerFilter| {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        let listed = cri.list_containers(request).await.unwrap().into_inner().containers;
        listed.into_iter().map(|item| item.id).collect::<Vec<_>>().join(" ")
    };
    let all = v1::ContainerFilter::default();
    assert_eq!(listed(all.clone()).await.split(' ').count(), 2);
    assert_eq!(listed(v1::ContainerFilter { id: running.clone(), ..all.clone() }).await, running);
    let of = v1::ContainerFilter { pod_sandbox_id: blue.clone(), ..all.clone() };
    assert_eq!(listed(of).await, ended);
    let exited = v1::ContainerStateValue { state: v1::ContainerState::ContainerExited as i32 };
    assert_eq!(listed(v1::ContainerFilter { state: Some(exited), ..all.clone() }).await, ended);
    let labels = v1::ContainerFilter { label_selector: labelled("red"), ..all };
    assert_eq!(listed(labels).await, running);

    let filter = v1::ContainerStatsFilter { label_selector: labelled("red"), ..Default::default() };
    let request = v1::ListContainerStatsRequest { filter: Some(filter) };
    let stats = node.cri.list_container_stats(request).await.unwrap().into_inner().stats;
    assert_eq!(stats.iter().map(|one| &one.attributes.as_ref().unwrap().id).collect::<Vec<_>>(), [&running]);
    let filter = v1::PodSandboxStatsFilter { label_selector: labelled("red"), ..Default::default() };
    let request = v1::ListPodSandboxStatsRequest { filter: Some(filter) };
    let stats = node.cri.list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
    assert_eq!(stats.iter().map(|one| &one.attributes.as_ref().unwrap().id).collect::<Vec<_>>(), [&red]);
    for sandbox in [red, blue] {
        node.remove_sandbox(&sandbox).await;
    }
}

/// `crictl runp` and `crictl create` of the shortest configuration.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_which_little_is_said_has_the_nodes_name_hosts_and_resolvers() {
    let mut node = Node::start().await;
    let config = v1::PodSandboxConfig {
        metadata: node.sandbox_config("short").metadata,
        log_directory: node.sandbox_config("short").log_directory,
        dns_config: Some(v1::DnsConfig::default()),
        ..Default::default()
    };
    let sandbox = node.run_sandbox(config).await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let name = rustix::system::uname().nodename().to_str().unwrap().to_owned();
    let said = node.exec_text(&id, "hostname; cat /etc/hostname; echo $HOSTNAME").await;
    assert_eq!(said, format!("{name}\n{name}\n{name}\n"));
    for file in ["/etc/hosts", "/etc/resolv.conf"] {
        let said = node.exec_text(&id, &format!("cat {file}")).await;
        assert_eq!(said, fs::read_to_string(file).unwrap_or_default(), "{file}");
    }
    node.remove_sandbox(&sandbox).await;
}

/// Since v1.36 of the CRI one name says which image it is, wherever that is told.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_has_one_id_wherever_it_is_named() {
    let mut node = Node::start().await;
    let image = |name: &str| Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
    let request = v1::ImageStatusRequest { image: image(IMAGE), verbose: false };
    let id = node.images.image_status(request).await.unwrap().into_inner().image.unwrap().id;
    let sandbox = node.sandbox("image").await;
    let mut config = shell("main", "sleep 1000");
    config.image = Some(v1::ImageSpec {
        image: id.clone(),
        user_specified_image: IMAGE.to_owned(),
        ..Default::default()
    });
    let container = node.run(&sandbox, config).await;
    let status = node.status(&container).await;
    assert_eq!((status.image_id.as_str(), status.image.unwrap().image.as_str()), (id.as_str(), IMAGE));
    let filter = v1::ContainerFilter { id: container, ..Default::default() };
    let request = v1::ListContainersRequest { filter: Some(filter) };
    let listed = node.cri.list_containers(request).await.unwrap().into_inner().containers;
    assert_eq!(listed[0].image_id, id);
    node.remove_sandbox(&sandbox).await;
    let filter = v1::ListImagesRequest { filter: Some(v1::ImageFilter { image: image(IMAGE) }) };
    let listed = node.images.list_images(filter.clone()).await.unwrap().into_inner().images;
    assert_eq!(listed.iter().map(|one| &one.id).collect::<Vec<_>>(), [&id]);
    node.images.remove_image(v1::RemoveImageRequest { image: image(&id) }).await.unwrap();
    assert!(node.images.list_images(filter).await.unwrap().into_inner().images.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_of_mounts_may_be_missing_links_and_parts_of_images() {
    let mut node = Node::start().await;
    fs::create_dir(node.path("real")).unwrap();
    fs::write(node.path("real/file"), "behind a link\n").unwrap();
    std::os::unix::fs::symlink(node.path("real"), node.path("link")).unwrap();
    let mount = |host: &str, container: &str| v1::Mount {
        host_path: node.path(host).display().to_string(),
        container_path: container.to_owned(),
        ..Default::default()
    };
    let whole = v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
    let image = |container: &str, part: &str| v1::Mount {
        container_path: container.to_owned(),
        image: Some(whole.clone()),
        image_sub_path: part.to_owned(),
        ..Default::default()
    };
    let script =
        "cat /link/file; echo made >/missing/file; cat /whole/etc/group | head -1; head -1 /part/group
        (echo x >/whole/new) 2>/dev/null || echo sealed";
    let mut config = shell("mounts", script);
    config.mounts = vec![
        mount("link", "/link"),
        mount("missing/below", "/missing"),
        image("/whole", ""),
        image("/part", "etc"),
    ];
    let (status, said) = node.script(config).await;
    assert_eq!(output(&said), "behind a link\nroot:x:0:\nroot:x:0:\nsealed\n", "{status:?}");
    assert_eq!(fs::read_to_string(node.path("missing/below/file")).unwrap(), "made\n");
    let mut config = shell("nothing", "true");
    config.mounts = vec![image("/part", "etc/none")];
    let sandbox = node.sandbox("nothing").await;
    let started = match node.create(&sandbox, config).await {
        Ok(id) => node.start_container(&id).await,
        Err(refused) => Err(refused),
    };
    assert!(started.unwrap_err().message().contains("etc/none"));
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hidden_and_sealed_paths_are_those_that_were_asked_for() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("paths").await;
    let script = "[ -d /home/web ] || echo hidden
        (echo >/etc/passwd) 2>/dev/null || echo sealed";
    let mut config = shell("main", script);
    let context = security(&mut config);
    context.masked_paths = vec!["/home".to_owned()];
    context.readonly_paths = vec!["/etc/passwd".to_owned()];
    let id = node.run(&sandbox, config).await;
    let status = node.ended(&id).await;
    assert_eq!(output(&log(&status)), "hidden\nsealed\n");
    // a context without any is that of a pod with `procMount: Unmasked`; no context at all says nothing
    let script = "grep -c ' /proc/' /proc/mounts; (echo 77 >/proc/sys/net/core/somaxconn) 2>/dev/null && echo open; true";
    for (name, context, expected) in [("unmasked", true, "0\nopen\n"), ("unsaid", false, "")] {
        let mut config = shell(name, script);
        if context {
            // AppArmor's default profile would deny the write too
            security(&mut config).apparmor = Some(v1::SecurityProfile {
                profile_type: v1::security_profile::ProfileType::Unconfined as i32,
                ..Default::default()
            });
        }
        let id = node.run(&sandbox, config).await;
        let said = output(&log(&node.ended(&id).await));
        assert!(said.starts_with(expected) && said.contains("open") == context, "{name}: {said}");
    }
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_twice_for_a_sandbox_has_one() {
    let mut node = Node::start().await;
    let request = v1::RunPodSandboxRequest {
        config: Some(node.sandbox_config("twice")),
        runtime_handler: String::new(),
    };
    let calls = (0..4).map(|_| {
        let (mut cri, request) = (node.cri.clone(), request.clone());
        async move { cri.run_pod_sandbox(request).await }
    });
    let answers = futures_util::future::join_all(calls).await;
    let codes = answers.iter().filter_map(|answer| answer.as_ref().err().map(tonic::Status::code));
    assert_eq!(codes.collect::<Vec<_>>(), [Code::AlreadyExists; 3]);
    let listed = node.cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap();
    let [one]: [v1::PodSandbox; 1] = listed.into_inner().items.try_into().unwrap();
    let again = node.cri.run_pod_sandbox(request.clone()).await.unwrap_err();
    assert_eq!(again.code(), Code::AlreadyExists);
    // one that could not be made keeps nobody from trying again
    let mut wrong = request;
    wrong.config.as_mut().unwrap().metadata.as_mut().unwrap().attempt = 1;
    wrong.config.as_mut().unwrap().linux.as_mut().unwrap().cgroup_parent = "not/a/path".to_owned();
    for _ in 0..2 {
        let code = node.cri.run_pod_sandbox(wrong.clone()).await.unwrap_err().code();
        assert_ne!(code, Code::AlreadyExists);
    }
    node.remove_sandbox(&one.id).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_removed_whether_it_is_created_runs_or_has_ended() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("remove").await;
    let created = node.create(&sandbox, shell("created", "true")).await.unwrap();
    let running = node.run(&sandbox, shell("running", "sleep 1000")).await;
    let ended = node.run(&sandbox, shell("ended", "true")).await;
    node.ended(&ended).await;
    for id in [created, running, ended] {
        node.cri.remove_container(v1::RemoveContainerRequest { container_id: id.clone() }).await.unwrap();
        let request = v1::ContainerStatusRequest { container_id: id, verbose: false };
        assert_eq!(node.cri.container_status(request).await.unwrap_err().code(), Code::NotFound);
    }
    let listed = node.cri.list_containers(v1::ListContainersRequest::default()).await.unwrap();
    assert!(listed.into_inner().containers.is_empty());
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_sandbox_was_given_is_told_again() {
    let mut node = Node::start().await;
    let mut config = node.sandbox_config("attributes");
    config.labels = [("foo".to_owned(), "bar".to_owned())].into();
    config.annotations = [("abc".to_owned(), "def".to_owned())].into();
    let id = node.run_sandbox(config.clone()).await;
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
    let answer = node.cri.pod_sandbox_status(request.clone()).await.unwrap().into_inner();
    let status = answer.status.unwrap();
    assert_eq!(status.metadata, config.metadata);
    assert_eq!((&status.labels, &status.annotations), (&config.labels, &config.annotations));
    assert!(status.created_at > 0 && answer.timestamp >= status.created_at);
    // `nsenter -t PID -n` reaches the pod's network
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
    let own = inode(&format!("/proc/{}/ns/net", info["pid"]));
    assert_eq!(own, inode(info["netns"].as_str().unwrap()));
    assert_ne!(own, inode("/proc/self/ns/net"));
    assert_eq!(info["runtimeSpec"]["linux"]["namespaces"][0]["path"], info["netns"]);

    // what tools on the node read of containers
    let mut main = shell("main", "sleep 1000");
    main.annotations = [("mine".to_owned(), "yes".to_owned())].into();
    let container = node.run(&id, main).await;
    let verbose = v1::ContainerStatusRequest { container_id: container.clone(), verbose: true };
    let info = node.cri.container_status(verbose).await.unwrap().into_inner().info;
    let spec = serde_json::from_str::<serde_json::Value>(&info["info"]).unwrap()["runtimeSpec"].take();
    assert_eq!(spec["process"]["args"], serde_json::json!(["/bin/sh", "-c", "sleep 1000"]));
    assert!(spec["process"]["env"].as_array().unwrap().contains(&"FROM_IMAGE=yes".into()), "{spec}");
    let note = |name: &str| spec["annotations"][name].as_str().unwrap();
    assert_eq!((note("mine"), note("io.kubernetes.cri.container-name")), ("yes", "main"));
    assert_eq!(
        (note("io.kubernetes.cri.sandbox-id"), note("io.kubernetes.cri.sandbox-name")),
        (&*id, "attributes")
    );
    assert!(spec["linux"]["cgroupsPath"].as_str().unwrap().ends_with(&container));
    let filter = v1::PodSandboxFilter { id: id.clone(), ..Default::default() };
    let request_list = v1::ListPodSandboxRequest { filter: Some(filter) };
    let listed = node.cri.list_pod_sandbox(request_list).await.unwrap().into_inner().items.remove(0);
    assert_eq!((listed.metadata, listed.labels), (status.metadata, status.labels));
    assert_eq!((listed.annotations, listed.created_at), (status.annotations, status.created_at));

    // what the pod as a whole may use, after a resize; it is known after a restart as well
    let resources = |cpu_quota, memory_limit_in_bytes| {
        Some(v1::LinuxContainerResources { cpu_quota, memory_limit_in_bytes, ..Default::default() })
    };
    let update = v1::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: id.clone(),
        overhead: resources(1000, 4096),
        resources: resources(50_000, 8192),
    };
    node.cri.update_pod_sandbox_resources(update).await.unwrap();
    node.restart().await;
    let answer = node.cri.pod_sandbox_status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    assert_eq!(info["overhead"], serde_json::json!({"cpu": {"quota": 1000}, "memory": {"limit": 4096}}));
    assert_eq!(info["resources"], serde_json::json!({"cpu": {"quota": 50_000}, "memory": {"limit": 8192}}));
    node.remove_sandbox(&id).await;
}

/// All items of a stream of lists.
async fn gathered<T, I>(stream: tonic::Streaming<T>, items: fn(T) -> Vec<I>) -> Vec<I> {
    let lists: Vec<Vec<I>> = stream.map(|message| items(message.unwrap())).collect().await;
    assert!(lists.iter().all(|list| !list.is_empty()));
    lists.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_as_streams_with_the_same_items() {
    let mut node = Node::start().await;
    let mut pods = Vec::new();
    for name in ["one", "two"] {
        let sandbox = node.sandbox(name).await;
        let id = node.run(&sandbox, shell(name, "sleep 1000")).await;
        pods.push((sandbox, id));
    }
    let (sandbox, container) = pods[1].clone();
    let mut cri = node.cri.clone();
    let all = cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    let stream = cri.stream_pod_sandboxes(v1::StreamPodSandboxesRequest::default()).await.unwrap();
    assert_eq!(gathered(stream.into_inner(), |message| message.pod_sandboxes).await, all);
    let filter = Some(v1::PodSandboxFilter { id: sandbox.clone(), ..Default::default() });
    let stream = cri.stream_pod_sandboxes(v1::StreamPodSandboxesRequest { filter }).await.unwrap();
    assert_eq!(gathered(stream.into_inner(), |message| message.pod_sandboxes).await.len(), 1);
    let filter = Some(v1::PodSandboxFilter { id: NOBODY.to_owned(), ..Default::default() });
    let stream = cri.stream_pod_sandboxes(v1::StreamPodSandboxesRequest { filter }).await.unwrap();
    assert!(gathered(stream.into_inner(), |message| message.pod_sandboxes).await.is_empty());

    let filter = Some(v1::ContainerFilter { pod_sandbox_id: sandbox.clone(), ..Default::default() });
    let request = v1::ListContainersRequest { filter: filter.clone() };
    let listed = cri.list_containers(request).await.unwrap().into_inner().containers;
    let stream = cri.stream_containers(v1::StreamContainersRequest { filter }).await.unwrap();
    assert_eq!(gathered(stream.into_inner(), |message| message.containers).await, listed);
    let filter = Some(v1::ContainerStatsFilter { id: container.clone(), ..Default::default() });
    let stream = cri.stream_container_stats(v1::StreamContainerStatsRequest { filter }).await.unwrap();
    let stats = gathered(stream.into_inner(), |message| message.container_stats).await;
    assert_eq!(stats.into_iter().map(|one| one.attributes.unwrap().id).collect::<Vec<_>>(), [container]);
    let stream = cri.stream_pod_sandbox_stats(v1::StreamPodSandboxStatsRequest::default()).await.unwrap();
    assert_eq!(gathered(stream.into_inner(), |message| message.pod_sandbox_stats).await.len(), 2);
    let stream = cri.stream_pod_sandbox_metrics(v1::StreamPodSandboxMetricsRequest {}).await.unwrap();
    assert_eq!(gathered(stream.into_inner(), |message| message.pod_sandbox_metrics).await.len(), 2);
    let listed = node.images.list_images(v1::ListImagesRequest::default()).await.unwrap().into_inner().images;
    let stream = node.images.stream_images(v1::StreamImagesRequest::default()).await.unwrap();
    assert_eq!(gathered(stream.into_inner(), |message| message.images).await, listed);
    for (sandbox, _) in pods {
        node.remove_sandbox(&sandbox).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_have_the_codes_that_clients_know() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("codes").await;
    let created = node.create(&sandbox, shell("created", "true")).await.unwrap();
    let running = node.run(&sandbox, shell("running", "sleep 1000")).await;
    let mut cri = node.cri.clone();
    macro_rules! refused {
        ($call:ident($request:expr)) => {
            cri.$call($request).await.err().map(|error| error.code())
        };
    }
    let (pod_sandbox_id, container_id) = (NOBODY.to_owned(), NOBODY.to_owned());
    let missing = Some(Code::NotFound);
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: pod_sandbox_id.clone(), verbose: false };
    assert_eq!(refused!(pod_sandbox_status(request)), missing);
    let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    assert_eq!(refused!(pod_sandbox_stats(request)), missing);
    let request = v1::PortForwardRequest { pod_sandbox_id: pod_sandbox_id.clone(), port: vec![80] };
    assert_eq!(refused!(port_forward(request)), missing);
    let request = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id, ..Default::default() };
    assert_eq!(refused!(update_pod_sandbox_resources(request)), missing);
    let request = v1::StartContainerRequest { container_id: container_id.clone() };
    assert_eq!(refused!(start_container(request)), missing);
    let request = v1::ContainerStatsRequest { container_id: container_id.clone() };
    assert_eq!(refused!(container_stats(request)), missing);
    let linux = Some(v1::LinuxContainerResources::default());
    let request = v1::UpdateContainerResourcesRequest { container_id, linux, ..Default::default() };
    assert_eq!(refused!(update_container_resources(request)), missing);
    for (id, expected) in [(NOBODY, Code::NotFound), (&created, Code::FailedPrecondition)] {
        let container_id = id.to_owned();
        let request = v1::ReopenContainerLogRequest { container_id: container_id.clone() };
        assert_eq!(refused!(reopen_container_log(request)), Some(expected));
        let request = v1::ExecSyncRequest {
            container_id: container_id.clone(),
            cmd: vec!["true".to_owned()],
            timeout: 1,
        };
        assert_eq!(refused!(exec_sync(request)), Some(expected));
        let request =
            v1::AttachRequest { container_id: container_id.clone(), stdout: true, ..Default::default() };
        assert_eq!(refused!(attach(request)), Some(expected));
        let request = v1::CheckpointContainerRequest { container_id, ..Default::default() };
        assert_eq!(refused!(checkpoint_container(request)), Some(expected));
    }
    let request = v1::CheckpointContainerRequest { container_id: running.clone(), ..Default::default() };
    let error = cri.checkpoint_container(request).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    assert!(error.message().contains("CRIU"), "{error}");
    let request = v1::ExecRequest { container_id: running.clone(), stdout: true, ..Default::default() };
    assert_eq!(refused!(exec(request)), Some(Code::InvalidArgument), "no command");
    let cmd = vec!["true".to_owned()];
    let request = v1::ExecRequest { container_id: running, cmd, ..Default::default() };
    assert_eq!(refused!(exec(request)), Some(Code::InvalidArgument), "no stream");
    let handler = v1::RunPodSandboxRequest {
        config: Some(node.sandbox_config("other")),
        runtime_handler: "nobodys".to_owned(),
    };
    assert_eq!(refused!(run_pod_sandbox(handler)), missing);
    assert_eq!(refused!(run_pod_sandbox(v1::RunPodSandboxRequest::default())), Some(Code::InvalidArgument));

    let other = v1::ContainerConfig {
        image: Some(v1::ImageSpec { image: "nobodys:1".to_owned(), ..Default::default() }),
        ..shell("other", "true")
    };
    assert_eq!(node.create(&sandbox, other).await.unwrap_err().code(), Code::NotFound);
    let nameless = v1::ContainerConfig { metadata: None, ..shell("", "true") };
    assert_eq!(node.create(&sandbox, nameless).await.unwrap_err().code(), Code::InvalidArgument);
    let image = Some(v1::ImageSpec { image: "Not A Name".to_owned(), ..Default::default() });
    let pull = v1::PullImageRequest { image, ..Default::default() };
    assert_eq!(node.images.pull_image(pull).await.unwrap_err().code(), Code::InvalidArgument);
    let [image, runtime_handler] = [IMAGE, "nobodys"].map(str::to_owned);
    let image = Some(v1::ImageSpec { image, runtime_handler, ..Default::default() });
    let pull = v1::PullImageRequest { image, ..Default::default() };
    assert_eq!(node.images.pull_image(pull).await.unwrap_err().code(), Code::NotFound);
    let nothing = v1::ImageStatusRequest::default();
    assert_eq!(node.images.image_status(nothing).await.unwrap_err().code(), Code::InvalidArgument);
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    node.cri.stop_pod_sandbox(stop).await.unwrap();
    let late = node.create(&sandbox, shell("late", "true")).await.unwrap_err();
    assert_eq!(late.code(), Code::FailedPrecondition);
    node.remove_sandbox(&sandbox).await;
}
