//! The main process goes away and comes back; containers do not notice.

use std::fs;

use cri::v1;

use crate::support::{Node, eventually, log, output, shell};

fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_process_adopts_pids_and_finds_exits() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("adopt").await;
    let lasting = node.run(&sandbox, shell("lasting", "while true; do echo tick; sleep 0.05; done")).await;
    let ending = node.run(&sandbox, shell("ending", "sleep 1000")).await;
    let created = node.create(&sandbox, shell("created", "exit 0")).await.unwrap();
    let (lasting_pid, ending_pid) = (node.pid(&lasting).await, node.pid(&ending).await);
    node.runtime.shutdown();
    // Nobody is there to see this end.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(ending_pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("the container ends", || !alive(ending_pid)).await;
    let ticks = |path: &str| fs::read_to_string(path).unwrap().lines().count();
    let path = node.status(&lasting).await.log_path;
    let before = ticks(&path);
    eventually("output is logged without a main process", || ticks(&path) > before + 2).await;
    node.restart().await;
    assert_eq!(node.pid(&lasting).await, lasting_pid);
    assert!(alive(lasting_pid));
    let status = node.status(&ending).await;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 137);
    assert!(status.finished_at > status.started_at);
    // It goes on as before: exec, start, later exits, removal.
    assert_eq!(node.exec_text(&lasting, "echo hello").await, "hello\n");
    node.start_container(&created).await.unwrap();
    assert_eq!(node.ended(&created).await.exit_code, 0);
    assert!(
        node.cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap().into_inner().items[0]
            .state
            == 0
    );
    node.remove_sandbox(&sandbox).await;
    // an adopted shim is nobody's child here: it may be about to end
    eventually("nothing is left", || node.traces().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_shim_is_no_file_of_the_node_and_is_adopted_too() {
    let mut node = Node::start().await;
    node.config.shim = Some(fs::read(&node.config.exe).unwrap().leak());
    node.config.exe = "/no/such/program".into();
    node.restart().await;
    let sandbox = node.sandbox("embedded").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let pid = node.pid(&id).await;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:\t")).unwrap();
    let program = fs::read_link(format!("/proc/{shim}/exe")).unwrap();
    assert_eq!(program.to_str(), Some("/memfd:navarch-shim (deleted)"));
    node.restart().await;
    assert_eq!(node.pid(&id).await, pid);
    assert_eq!(node.exec_text(&id, "echo hello").await, "hello\n");
    node.remove_sandbox(&sandbox).await;
    eventually("nothing is left", || node.traces().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_shim_makes_the_sandbox_not_ready_and_kills_its_containers() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("orphan").await;
    let id = node.run(&sandbox, shell("main", "echo up; sleep 1000")).await;
    let pid = node.pid(&id).await;
    let path = node.status(&id).await.log_path;
    eventually("its output is logged", || fs::read_to_string(&path).is_ok_and(|log| log.contains("up")))
        .await;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent: i32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(parent).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let status = node.ended(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    assert_eq!(output(&log(&status)), "up\n");
    eventually("the container is dead", || !alive(pid)).await;
    let items =
        node.cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    assert_eq!(items[0].state(), v1::PodSandboxState::SandboxNotready);
    node.remove_sandbox(&sandbox).await;
    eventually("everything is gone", || node.traces().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_nothing_is_said_to_run() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("reboot").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    node.runtime.shutdown();
    // What a reboot does: processes and /run are gone, the disk stays.
    let disk = node.config.root.with_extension("kept");
    fs::rename(&node.config.root, &disk).unwrap();
    assert_eq!(runtime::reset(&node.config), Vec::<String>::new());
    fs::rename(&disk, &node.config.root).unwrap();
    node.restart().await;
    let status = node.status(&id).await;
    assert_eq!(status.state(), v1::ContainerState::ContainerExited);
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    let items =
        node.cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap().into_inner().items;
    assert_eq!(items[0].state(), v1::PodSandboxState::SandboxNotready);
    node.remove_sandbox(&sandbox).await;
    // The pod can be made again under the same name.
    node.sandbox("reboot").await;
}
