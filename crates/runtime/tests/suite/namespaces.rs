//! Whose processes, memory, name and network a container has.

use std::fs;

use cri::v1::{self, NamespaceMode};
use tonic::Code;

use crate::support::{Node, eventually, security, shell};

/// A running container in a sandbox of its own kind, and another one of the same.
async fn two(node: &mut Node, name: &str, options: v1::NamespaceOption) -> (String, [String; 2]) {
    let mut config = node.sandbox_config(name);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options =
        Some(options.clone());
    let sandbox = node.run_sandbox(config).await;
    let mut ids = [String::new(), String::new()];
    for (at, id) in ids.iter_mut().enumerate() {
        let mut config = shell(&format!("c{at}"), "sleep 1000");
        security(&mut config).namespace_options = Some(options.clone());
        *id = node.run(&sandbox, config).await;
    }
    (sandbox, ids)
}

#[tokio::test(flavor = "multi_thread")]
async fn each_namespace_is_the_nodes_the_pods_or_the_containers() {
    use NamespaceMode::{Container, Node as Host, Pod};
    let mut node = Node::start().await;
    for (name, network, pid, ipc) in [
        ("pod", Pod, Pod, Pod),
        ("container", Pod, Container, Pod),
        ("processes", Pod, Host, Pod),
        ("memory", Pod, Container, Host),
        ("network", Host, Container, Pod),
    ] {
        let options = v1::NamespaceOption {
            network: network as i32,
            pid: pid as i32,
            ipc: ipc as i32,
            ..Default::default()
        };
        let (sandbox, [one, other]) = two(&mut node, name, options.clone()).await;
        for (kind, mode) in [("net", network), ("pid", pid), ("ipc", ipc), ("uts", network)] {
            let link = format!("/proc/self/ns/{kind}");
            let [a, b] = [
                node.exec_text(&one, &format!("readlink {link}")).await,
                node.exec_text(&other, &format!("readlink {link}")).await,
            ];
            let nodes = fs::read_link(&link).unwrap().display().to_string();
            let seen = match (a == b, a.trim() == nodes) {
                (true, true) => Host,
                (true, false) => Pod,
                (false, _) => Container,
            };
            assert_eq!(seen, mode, "{name}: {kind}");
        }
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: sandbox.clone(), verbose: false };
        let status = node.cri.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
        assert_eq!(status.linux.unwrap().namespaces.unwrap().options, Some(options), "{name}");
        node.remove_sandbox(&sandbox).await;
    }
    let mut config = node.sandbox_config("users");
    for (mode, mapped) in [(NamespaceMode::Container, 0), (NamespaceMode::Target, 0), (NamespaceMode::Pod, 1)]
    {
        let ids = vec![v1::IdMapping { container_id: mapped, host_id: 1000, length: 10 }];
        let users = v1::UserNamespace { mode: mode as i32, uids: ids.clone(), gids: ids };
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options =
            Some(v1::NamespaceOption { userns_options: Some(users), ..Default::default() });
        let request =
            v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let error = node.cri.run_pod_sandbox(request).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{mode:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_another_container_are_shown_within_a_pod_only() {
    let mut node = Node::start().await;
    let (own, other) = (node.sandbox("own").await, node.sandbox("other").await);
    let target = node.run(&own, shell("target", "exec sleep 4711")).await;
    let looking = |name: &str| {
        let mut config = shell(name, "cat /proc/1/cmdline; sleep 1000");
        security(&mut config).namespace_options = Some(v1::NamespaceOption {
            pid: NamespaceMode::Target as i32,
            target_id: target.clone(),
            ..Default::default()
        });
        config
    };
    let id = node.run(&own, looking("near")).await;
    assert!(node.exec_text(&id, "cat /proc/1/cmdline").await.contains("4711"));
    let error = node.create(&other, looking("far")).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    for sandbox in [own, other] {
        node.remove_sandbox(&sandbox).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_settings_of_the_pods_memory_are_set() {
    let mut node = Node::start().await;
    let mut config = node.sandbox_config("sysctls");
    let sysctls = [("kernel.shm_rmid_forced", "1"), ("fs.mqueue.msg_max", "100")];
    config.linux.as_mut().unwrap().sysctls =
        sysctls.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let sandbox = node.run_sandbox(config).await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let seen = node.exec_text(&id, "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max").await;
    assert_eq!(seen, "1\n100\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_stopped_by_the_signal_it_asks_for() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("signal").await;
    let script = "trap 'exit 1' TERM; trap 'exit 2' USR1; echo up; while true; do sleep 0.05; done";
    for (name, asked, told, code) in [
        ("own", v1::Signal::Sigusr1, v1::Signal::Sigusr1, 2),
        ("plain", v1::Signal::RuntimeDefault, v1::Signal::Sigterm, 1),
    ] {
        let mut config = shell(name, script);
        config.stop_signal = asked as i32;
        let id = node.run(&sandbox, config).await;
        let status = node.status(&id).await;
        assert_eq!(status.stop_signal(), told);
        eventually("the traps are set", || {
            fs::read_to_string(&status.log_path).is_ok_and(|log| log.contains("up"))
        })
        .await;
        let stop = v1::StopContainerRequest { container_id: id.clone(), timeout: 60 };
        node.cri.stop_container(stop).await.unwrap();
        assert_eq!(node.status(&id).await.exit_code, code, "{name}");
    }
}
