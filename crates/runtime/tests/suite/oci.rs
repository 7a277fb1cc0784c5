//! Containers that another OCI runtime runs: Debian's crun as the handler of a RuntimeClass.

use std::{collections::BTreeMap, fs, path::PathBuf};

use cri::v1;
use tonic::Code;

use crate::{
    streaming::{connect, request},
    support::{Node, eventually, log, output, security, shell},
};

/// A node whose handler `small` is crun; every command that it is given is noted in the file `commands`.
async fn node() -> Node {
    let mut node = Node::start().await;
    let crun = testkit::debian::crun(&node.path("")).unwrap();
    let noting = node.path("noting");
    let commands = node.path("commands");
    let script = format!("#!/bin/sh\necho \"$@\" >>{}\nexec {} \"$@\"\n", commands.display(), crun.display());
    testkit::executable(&noting, script.as_bytes()).unwrap();
    node.config.handlers = BTreeMap::from([
        ("small".to_owned(), noting),
        ("gone".to_owned(), PathBuf::from("/no/such/runtime")),
    ]);
    node.restart().await;
    node
}

async fn try_sandbox(
    node: &mut Node,
    config: v1::PodSandboxConfig,
    handler: &str,
) -> Result<String, tonic::Status> {
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: handler.to_owned() };
    Ok(node.cri.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

async fn sandbox(node: &mut Node, name: &str) -> String {
    let config = node.sandbox_config(name);
    try_sandbox(node, config, "small").await.unwrap()
}

/// The commands that were given, without what differs from run to run.
fn commands(node: &Node) -> Vec<String> {
    let text = fs::read_to_string(node.path("commands")).unwrap();
    let verb = |line: &str| {
        line.split(" --log-format json ").nth(1).and_then(|rest| rest.split(' ').next()).map(str::to_owned)
    };
    text.lines().filter_map(verb).collect()
}

async fn stop(node: &mut Node, id: &str, timeout: i64) {
    let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout };
    node.cri.stop_container(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn crun_runs_a_container_from_create_to_delete() {
    let mut node = node().await;
    let sandbox = sandbox(&mut node, "life").await;
    let config = shell("main", "echo out; echo err >&2; trap 'exit 7' TERM; while true; do sleep 0.1; done");
    let id = node.run(&sandbox, config).await;
    let path = node.status(&id).await.log_path;
    eventually("its output is logged", || {
        fs::read_to_string(&path).is_ok_and(|log| log.lines().count() == 2)
    })
    .await;
    assert_eq!(node.exec_text(&id, "hostname; cat /proc/1/comm; id -u").await, "life-host\nsh\n0\n");
    let failed = node.exec(&id, "echo no >&2; exit 3").await;
    assert_eq!((failed.exit_code, failed.stderr.as_slice()), (3, &b"no\n"[..]));
    stop(&mut node, &id, 20).await;
    let status = node.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (7, "Error"));
    assert_eq!(log(&status), "stdout F out\nstderr F err\n");
    node.remove_sandbox(&sandbox).await;
    let expected = ["create", "state", "start", "exec", "exec", "kill", "delete"];
    assert_eq!(commands(&node), expected);
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn crun_is_told_of_user_capabilities_mounts_and_limits() {
    let mut node = node().await;
    let sandbox = sandbox(&mut node, "told").await;
    fs::create_dir(node.path("volume")).unwrap();
    fs::write(node.path("volume/file"), "content\n").unwrap();
    let script =
        "id -u; id -G; grep CapEff /proc/self/status; grep -E 'NoNewPrivs|Seccomp:' /proc/self/status
        cat /data/file; (echo more >/data/file) 2>/dev/null || echo read-only; pwd; echo $GREETING $HOME
        touch /new 2>/dev/null || echo sealed; unshare -U true 2>/dev/null || echo confined
        df /dev/shm | tail -1 | cut -d' ' -f1; cat /etc/hostname; [ -s /proc/kcore ] || echo masked";
    let mut config = shell("main", script);
    config.working_dir = "/made/for/it".to_owned();
    config.envs = vec![v1::KeyValue { key: "GREETING".to_owned(), value: "hello".to_owned() }];
    config.mounts = vec![v1::Mount {
        host_path: node.path("volume").display().to_string(),
        container_path: "/data".to_owned(),
        readonly: true,
        ..Default::default()
    }];
    let context = security(&mut config);
    context.run_as_user = Some(v1::Int64Value { value: 1234 });
    context.run_as_group = Some(v1::Int64Value { value: 77 });
    context.supplemental_groups = vec![88];
    context.no_new_privs = true;
    context.readonly_rootfs = true;
    context.masked_paths = vec!["/proc/kcore".to_owned()];
    context.seccomp = Some(v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::RuntimeDefault as i32,
        localhost_ref: String::new(),
    });
    config.linux.as_mut().unwrap().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 900,
        ..Default::default()
    });
    let id = node.run(&sandbox, config).await;
    let status = node.ended(&id).await;
    let said = output(&log(&status));
    let expected = "1234\n77 88\nCapEff:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\ncontent\nread-only\n\
        /made/for/it\nhello /\nsealed\nconfined\ntmpfs\ntold-host\nmasked\n";
    assert_eq!(said, expected);
    assert_eq!(status.user.unwrap().linux.unwrap().uid, 1234);
    // a container that uses more than it may
    let mut config = shell("greedy", "tail /dev/zero");
    config.linux.as_mut().unwrap().resources =
        Some(v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    let id = node.run(&sandbox, config).await;
    let status = node.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn crun_containers_have_terminals_and_attached_streams() {
    let mut node = node().await;
    let sandbox = sandbox(&mut node, "tty").await;
    let mut config = shell("main", "stty -echo; tty; read line; echo got $line; exit 6");
    (config.stdin, config.tty) = (true, true);
    let id = node.run(&sandbox, config).await;
    let attach =
        v1::AttachRequest { container_id: id.clone(), stdin: true, tty: true, stdout: true, stderr: false };
    let url = node.cri.attach(attach).await.unwrap().into_inner().url;
    let mut client = connect(&url, "v5.channel.k8s.io").await.unwrap();
    let url = node.cri.exec(request(&id, "tty; echo ready; read go; stty size; exit 4", true, true)).await;
    let mut second = connect(&url.unwrap().into_inner().url, "v4.channel.k8s.io").await.unwrap();
    second.until(1, "ready").await;
    second.send(4, b"{\"Width\":99,\"Height\":33}").await;
    second.send(0, b"go\n").await;
    let [_, out, _, status] = second.rest().await;
    assert!(out.contains("33 99"), "{out}");
    assert!(status.contains("\"message\":\"4\""), "{status}");
    client.send(0, b"hello\n").await;
    client.until(1, "got hello").await;
    let status = node.ended(&id).await;
    assert_eq!(status.exit_code, 6);
    let log = log(&status);
    assert!(log.contains("/dev/") && log.contains("got hello"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn crun_containers_are_adopted_after_a_restart() {
    let mut node = node().await;
    let sandbox = sandbox(&mut node, "adopt").await;
    let lasting = node.run(&sandbox, shell("lasting", "while true; do echo tick; sleep 0.05; done")).await;
    let ending = node.run(&sandbox, shell("ending", "read line; exit 5")).await;
    let pid = node.pid(&lasting).await;
    node.runtime.shutdown();
    node.restart().await;
    assert_eq!(node.pid(&lasting).await, pid);
    assert_eq!(node.ended(&ending).await.exit_code, 5);
    assert_eq!(node.exec_text(&lasting, "echo hello").await, "hello\n");
    let request = v1::ContainerStatsRequest { container_id: lasting.clone() };
    let stats = node.cri.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
    // ended by the kernel, not by crun
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert_eq!(node.ended(&lasting).await.exit_code, 137);
    node.remove_sandbox(&sandbox).await;
    // an adopted shim is nobody's child here: it may be about to end
    eventually("nothing is left", || node.traces().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crun_containers_share_the_pods_processes_and_memory() {
    let mut node = node().await;
    let mut config = node.sandbox_config("shared");
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.namespace_options =
        Some(v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() });
    let sandbox = try_sandbox(&mut node, config, "small").await.unwrap();
    let mut one = shell("one", "echo here >/dev/shm/file; sleep 1000");
    security(&mut one).namespace_options =
        Some(v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() });
    let mut two = shell("two", "sleep 2000");
    security(&mut two).namespace_options = security(&mut one).namespace_options.clone();
    let first = node.run(&sandbox, one).await;
    let second = node.run(&sandbox, two).await;
    let seen = node.exec_text(&second, "ps; until cat /dev/shm/file; do sleep 0.05; done").await;
    assert!(seen.contains("sleep 1000") && seen.contains("here"), "{seen}");
    assert!(node.exec_text(&first, "ip link").await.contains("lo"));
    // without a namespace of its own nothing but the control group ends the rest
    stop(&mut node, &second, 0).await;
    assert_eq!(node.ended(&second).await.exit_code, 137);
    // the whole sandbox at once, while a container runs
    let request = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    node.cri.stop_pod_sandbox(request).await.unwrap();
    assert_eq!(node.ended(&first).await.exit_code, 137);
    node.remove_sandbox(&sandbox).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_of_a_crun_container_reach_the_node_where_they_are_to() {
    let mut node = node().await;
    let sandbox = sandbox(&mut node, "mounts").await;
    let volume = node.path("shared");
    fs::create_dir(&volume).unwrap();
    rustix::mount::mount_bind(&volume, &volume).unwrap();
    rustix::mount::mount_change(&volume, rustix::mount::MountPropagationFlags::SHARED).unwrap();
    let script = "mkdir /data/sub; mount -t tmpfs none /data/sub; touch /data/sub/file; sleep 1000";
    let mut config = shell("main", script);
    security(&mut config).privileged = true;
    config.mounts = vec![v1::Mount {
        host_path: volume.display().to_string(),
        container_path: "/data".to_owned(),
        propagation: v1::MountPropagation::PropagationBidirectional as i32,
        ..Default::default()
    }];
    let id = node.run(&sandbox, config).await;
    eventually("the container's mount is the node's, too", || volume.join("sub/file").exists()).await;
    // what is the container's alone is not
    let root = node.config.root.display().to_string();
    assert!(!fs::read_to_string("/proc/self/mounts").unwrap().contains(&format!("{root}/containers")));
    stop(&mut node, &id, 0).await;
    node.remove_sandbox(&sandbox).await;
    for mount in [volume.join("sub"), volume] {
        rustix::mount::unmount(mount, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_an_image_are_filled_for_crun_too() {
    let mut node = node().await;
    let image = crate::mounts::image_with_volumes(&node).await;
    let sandbox = sandbox(&mut node, "volumes").await;
    let script =
        "cat /data/link; stat -c '%a %u' /data/inner/file; touch /data/new /new/deep/new && echo written
        touch /sealed 2>/dev/null || echo sealed";
    let mut config = v1::ContainerConfig { image: Some(image), ..shell("main", script) };
    security(&mut config).readonly_rootfs = true;
    let id = node.run(&sandbox, config).await;
    assert_eq!(output(&log(&node.ended(&id).await)), "content\n4750 33\nwritten\nsealed\n");
    node.remove_sandbox(&sandbox).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_handler_or_program_is_said() {
    let mut node = node().await;
    let config = node.sandbox_config("wrong");
    let error = try_sandbox(&mut node, config.clone(), "other").await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "no runtime for \"other\" is configured"));
    let error = try_sandbox(&mut node, config, "gone").await.unwrap_err();
    let why = "the program of runtime \"gone\", /no/such/runtime, cannot be run: No such file or directory";
    assert!(error.message().starts_with(why), "{error}");
    let sandbox = sandbox(&mut node, "wrong").await;
    let mut config = shell("missing", "");
    config.command = vec!["/no/such/program".to_owned()];
    let id = node.create(&sandbox, config).await.unwrap();
    let error = node.start_container(&id).await.unwrap_err();
    let why = "OCI runtime create failed: executable file `/no/such/program` not found";
    assert!(error.message().starts_with(why), "{error}");
    let status = node.status(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let request = v1::ExecSyncRequest { container_id: id.clone(), cmd: vec!["nope".to_owned()], timeout: 20 };
    let error = node.cri.exec_sync(request).await.unwrap_err();
    assert!(error.message().contains("OCI runtime exec failed: executable file `nope` not found"), "{error}");
    // the program is taken away while its container runs: the container still ends
    fs::remove_file(node.path("noting")).unwrap();
    stop(&mut node, &id, 0).await;
    assert_eq!(node.ended(&id).await.exit_code, 137);
    node.remove_sandbox(&sandbox).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}
