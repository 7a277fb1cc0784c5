//! What the CRI validation suite asks of every runtime and no other file here does: asking twice, lists and their filters,
//! one name for an image, sources of mounts.

use std::{collections::HashMap, fs};

use cri::v1;

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
    assert_eq!(node.status(&container).await.image_id, id);
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
    node.remove_sandbox(&sandbox).await;
}
