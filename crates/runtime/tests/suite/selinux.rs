//! SELinux, on a kernel whose policy has labels for containers, and what is said where it has not.

use std::fs;

use cri::v1;

use crate::support::{IMAGE, Node, output, security, shell};

fn option(kind: &str, level: &str) -> Option<v1::SeLinuxOption> {
    Some(v1::SeLinuxOption { r#type: kind.to_owned(), level: level.to_owned(), ..Default::default() })
}

/// A pod that asks for `kind` and `level`.
fn pod(node: &Node, name: &str, kind: &str, level: &str) -> v1::PodSandboxConfig {
    let mut config = node.sandbox_config(name);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.selinux_options = option(kind, level);
    config
}

/// A container that stays.
fn idle(name: &str) -> v1::ContainerConfig {
    shell(name, "sleep 1000")
}

/// The labels of the container's own program and of one that is executed later, which are the same.
async fn label(node: &mut Node, id: &str) -> String {
    let both = node.exec_text(id, "cat /proc/1/attr/current; echo; cat /proc/self/attr/current").await;
    let (first, later) = both.split_once('\n').unwrap();
    let [first, later] = [first, later].map(|label| label.trim_matches(['\0', '\n']).to_owned());
    assert_eq!(first, later);
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_is_refused_where_the_kernel_has_none() {
    if fs::exists("/sys/fs/selinux/enforce").unwrap() {
        return;
    }
    let mut node = Node::start().await;
    let sandbox = node.sandbox("plain").await;
    let mut config = idle("main");
    security(&mut config).selinux_options = option("", "s0:c4,c5");
    let error = node.create(&sandbox, config.clone()).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unimplemented);
    assert_eq!(error.message(), "SELinux label :::s0:c4,c5: this node's kernel has no SELinux");
    // one that asks for nothing is none
    security(&mut config).selinux_options = Some(v1::SeLinuxOption::default());
    node.run(&sandbox, config).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a kernel with SELinux"]
async fn pods_have_categories_of_their_own_which_their_containers_share() {
    let mut node = Node::start().await;
    let mut labels = Vec::new();
    for pod in ["one", "other"] {
        let sandbox = node.sandbox(pod).await;
        let first = node.run(&sandbox, idle("first")).await;
        let mut config = idle("second");
        security(&mut config).no_new_privs = true;
        let second = node.run(&sandbox, config).await;
        let own = label(&mut node, &first).await;
        assert_eq!(label(&mut node, &second).await, own);
        let level = own.strip_prefix("system_u:system_r:container_t:").unwrap();
        assert!(level.starts_with("s0:c") && level.contains(",c"), "{own}");
        let context = format!("context=system_u:object_r:container_file_t:{level}");
        let mounts = node.exec_text(&first, "cat /proc/mounts").await.replace('"', "");
        for place in [" / ", " /dev ", " /dev/pts ", " /dev/shm "] {
            let mount = mounts.lines().find(|line| line.contains(place)).unwrap();
            assert!(mount.contains(&context), "{mount}");
        }
        labels.push(own);
    }
    assert_ne!(labels[0], labels[1]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a kernel with SELinux"]
async fn what_pods_and_containers_ask_for_is_their_label() {
    let mut node = Node::start().await;
    let config = pod(&node, "asks", "other_t", "s0:c7,c8");
    let sandbox = node.run_sandbox(config).await;
    let plain = node.run(&sandbox, idle("plain")).await;
    assert_eq!(label(&mut node, &plain).await, "system_u:system_r:other_t:s0:c7,c8");
    let mut config = idle("type");
    security(&mut config).selinux_options = option("container_t", "");
    let kind = node.run(&sandbox, config).await;
    assert_eq!(label(&mut node, &kind).await, "system_u:system_r:container_t:s0:c7,c8");
    let mut config = idle("level");
    security(&mut config).selinux_options = option("", "s0:c1");
    let level = node.run(&sandbox, config).await;
    assert_eq!(label(&mut node, &level).await, "system_u:system_r:container_t:s0:c1");
    // nothing of that is lost with the process that gave it
    node.restart().await;
    let again = node.run(&sandbox, idle("again")).await;
    assert_eq!(label(&mut node, &again).await, "system_u:system_r:other_t:s0:c7,c8");
    let mut config = idle("privileged");
    security(&mut config).privileged = true;
    let mut pod = node.sandbox_config("privileged");
    pod.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let sandbox = node.run_sandbox(pod).await;
    let privileged = node.run(&sandbox, config).await;
    let own = fs::read_to_string("/proc/self/attr/current").unwrap();
    assert_eq!(label(&mut node, &privileged).await, own.trim_matches(['\0', '\n']));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a kernel with SELinux"]
async fn labels_that_the_policy_does_not_have_are_named() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("wrong").await;
    for (kind, level, named) in [
        ("nobodys_t", "s0:c1,c2", "system_u:system_r:nobodys_t:s0:c1,c2"),
        ("", "s9", "system_u:system_r:container_t:s9"),
        ("container_file_t", "s0", "system_u:system_r:container_file_t:s0"),
    ] {
        let mut config = idle("wrong");
        security(&mut config).selinux_options = option(kind, level);
        let error = node.create(&sandbox, config).await.unwrap_err();
        let expected = format!("SELinux label {named:?}: this node's policy does not allow it");
        assert_eq!((error.code(), error.message()), (tonic::Code::InvalidArgument, expected.as_str()));
        let config = Some(pod(&node, "refused", kind, level));
        let request = v1::RunPodSandboxRequest { config, runtime_handler: String::new() };
        assert_eq!(node.cri.run_pod_sandbox(request).await.unwrap_err().message(), expected);
    }
    // one that it has, and that nobody may start
    let mut config = idle("forbidden");
    security(&mut config).selinux_options = option("forbidden_t", "s0");
    let error = node.create(&sandbox, config).await.unwrap_err();
    assert!(error.message().starts_with("SELinux label \"system_u:system_r:forbidden_t:s0\": "), "{error}");
    assert!(error.message().contains("does not let system_u:system_r:kernel_t:"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a kernel with SELinux"]
async fn a_relabelled_volume_is_for_its_pod_alone() {
    let mut node = Node::start().await;
    let volume = node.path("volume");
    fs::create_dir_all(volume.join("deep")).unwrap();
    fs::write(volume.join("deep/file"), "content").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", volume.join("link")).unwrap();
    let with = |name: &str, relabel| {
        let mut config = shell(name, "cat /v/deep/file");
        config.mounts.push(v1::Mount {
            container_path: "/v".to_owned(),
            host_path: volume.display().to_string(),
            selinux_relabel: relabel,
            ..Default::default()
        });
        config
    };
    let mut said = async |pod: &str, relabel| {
        let (status, text) = node.script(with(pod, relabel)).await;
        (status.exit_code, output(&text).trim_end().to_owned())
    };
    assert_eq!(said("before", false).await, (0, "content".to_owned()));
    assert_eq!(said("owner", true).await, (0, "content".to_owned()));
    let (code, text) = said("stranger", false).await;
    assert_eq!(code, 1);
    assert!(text.contains("Permission denied"), "{text}");
    assert_eq!(said("heir", true).await, (0, "content".to_owned()));

    let sandbox = node.sandbox("greedy").await;
    let mut config = with("greedy", true);
    config.mounts[0].host_path = "/usr".to_owned();
    let error = node.create(&sandbox, config).await.unwrap_err();
    assert!(error.message().ends_with("it belongs to the node"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a kernel with SELinux"]
async fn an_image_that_is_a_volume_is_for_all_pods() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("image").await;
    let mut config = idle("reads");
    config.mounts.push(v1::Mount {
        container_path: "/v".to_owned(),
        readonly: true,
        image: Some(v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() }),
        ..Default::default()
    });
    let id = node.run(&sandbox, config).await;
    node.exec_text(&id, "/v/bin/busybox true").await;
    let request = v1::ContainerStatusRequest { container_id: id, verbose: true };
    let info = node.cri.container_status(request).await.unwrap().into_inner().info;
    let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
    let mut label = [0; 256];
    let layer = info["layers"][0].as_str().unwrap();
    let length = rustix::fs::getxattr(layer, "security.selinux", &mut label).unwrap();
    let label = String::from_utf8_lossy(&label[..length]);
    assert_eq!(label.trim_end_matches('\0'), "system_u:object_r:container_file_t:s0");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a kernel with SELinux"]
async fn containers_of_another_oci_runtime_have_the_same_labels() {
    let mut node = Node::start().await;
    let crun = testkit::debian::crun(&node.path("")).unwrap();
    node.config.handlers = [("small".to_owned(), crun)].into();
    node.restart().await;
    let config = Some(pod(&node, "crun", "other_t", "s0:c7,c8"));
    let request = v1::RunPodSandboxRequest { config, runtime_handler: "small".to_owned() };
    let sandbox = node.cri.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id;
    let id = node.run(&sandbox, idle("main")).await;
    assert_eq!(label(&mut node, &id).await, "system_u:system_r:other_t:s0:c7,c8");
    let mounts = node.exec_text(&id, "cat /proc/mounts").await.replace('"', "");
    for place in [" / ", " /dev ", " /dev/shm "] {
        let mount = mounts.lines().find(|line| line.contains(place)).unwrap();
        assert!(mount.contains("context=system_u:object_r:container_file_t:s0:c7,c8"), "{mount}");
    }
}
