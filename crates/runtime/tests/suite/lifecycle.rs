//! Sandboxes and containers from creation to removal.

use std::time::{Duration, Instant};

use cri::v1;
use futures_util::StreamExt;

use crate::support::{IMAGE, Node, PATIENCE, eventually, log, output, shell};

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_described_and_come_with_as_many_labels() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("metrics").await;
    let mut config =
        shell("main", "dd if=/dev/zero of=/file bs=64k count=16; echo done; while true; do sleep 0.1; done");
    config.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        ..Default::default()
    });
    let id = node.run(&sandbox, config).await;
    let path = node.status(&id).await.log_path;
    eventually("the file is written", || {
        std::fs::read_to_string(&path).is_ok_and(|log| log.contains("F done"))
    })
    .await;
    let described = node.cri.list_metric_descriptors(v1::ListMetricDescriptorsRequest {}).await.unwrap();
    let described = described.into_inner().descriptors;
    let listed = node.cri.list_pod_sandbox_metrics(v1::ListPodSandboxMetricsRequest {}).await.unwrap();
    let pods = listed.into_inner().pod_metrics;
    let pod = pods.iter().find(|pod| pod.pod_sandbox_id == sandbox).unwrap();
    let container = pod.container_metrics.iter().find(|one| one.container_id == id).unwrap();
    for metric in pod.metrics.iter().chain(&container.metrics) {
        let known = described.iter().find(|known| known.name == metric.name);
        let known = known.unwrap_or_else(|| panic!("{} is not described", metric.name));
        assert_eq!(known.label_keys.len(), metric.label_values.len(), "{}", metric.name);
    }
    let of = |name: &str| {
        let found = container.metrics.iter().find(|metric| metric.name == name);
        found.unwrap_or_else(|| panic!("no {name}")).value.unwrap().value
    };
    assert_eq!(of("container_spec_memory_limit_bytes"), 64 << 20);
    assert_eq!((of("container_spec_cpu_quota"), of("container_spec_cpu_period")), (50_000, 100_000));
    assert!((1..=3).contains(&of("container_processes")) && of("container_memory_max_usage_bytes") > 0);
    assert!(of("container_last_seen") >= of("container_start_time_seconds"));
    // what the validation suite looks for, as far as a container without a network of its own has it
    for name in "cpu_cfs_periods_total cpu_cfs_throttled_periods_total cpu_cfs_throttled_seconds_total
        cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total file_descriptors fs_inodes_free
        fs_inodes_total fs_limit_bytes fs_usage_bytes last_seen memory_cache memory_failcnt memory_failures_total
        memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes
        memory_working_set_bytes oom_events_total processes sockets spec_cpu_period spec_memory_limit_bytes
        spec_memory_swap_limit_bytes start_time_seconds threads threads_max ulimits_soft"
        .split_whitespace()
    {
        of(&format!("container_{name}"));
    }
    assert!(of("container_file_descriptors") >= 3 && of("container_fs_usage_bytes") >= 1 << 20);
    for name in ["receive", "transmit"] {
        for what in ["bytes", "errors", "packets", "packets_dropped"] {
            let name = format!("container_network_{name}_{what}_total");
            assert!(described.iter().any(|known| known.name == name), "{name}");
        }
    }
    assert!(described.iter().all(|known| !known.help.is_empty()));
    node.remove_sandbox(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn container_runs_and_its_output_is_logged() {
    let mut node = Node::start().await;
    let script = "echo out; echo err >&2; printf partial; env | grep -c FROM_IMAGE=yes >&2; hostname";
    let (status, _) = node.script(shell("main", script)).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    let log = log(&status);
    // Two pipes: the order holds within a stream only.
    let of =
        |stream: &str| log.lines().filter(|line| line.starts_with(stream)).collect::<Vec<_>>().join("\n");
    assert_eq!(of("stdout"), "stdout F out\nstdout F partialsb-main-host");
    assert_eq!(of("stderr"), "stderr F err\nstderr F 1");
    assert!(status.started_at > 0 && status.finished_at >= status.started_at);
    assert_eq!(status.image_ref.split('@').next(), Some("docker.io/library/box"));
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_signals_are_reported() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("codes").await;
    let failing = node.run(&sandbox, shell("failing", "exit 42")).await;
    let killed = node.run(&sandbox, shell("killed", "sleep 1000 & wait")).await;
    let status = node.ended(&failing).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"));
    let pid = node.pid(&killed).await;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    let status = node.ended(&killed).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_program_is_a_start_error_with_code_128() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("missing").await;
    for (command, part) in [
        ("/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
        ("nope", "exec: \"nope\": executable file not found in $PATH"),
        ("/etc", "exec: \"/etc\": permission denied"),
    ] {
        let config = v1::ContainerConfig { command: vec![command.to_owned()], ..shell(command, "") };
        let id = node.create(&sandbox, config).await.unwrap();
        let error = node.start_container(&id).await.unwrap_err();
        assert!(error.message().contains(part), "{error}");
        let status = node.status(&id).await;
        assert_eq!(status.state(), v1::ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
        assert!(status.message.contains(part));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_sync_returns_output_and_code_and_honours_its_timeout() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("exec").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let answer = node.exec(&id, "echo out; echo err >&2; exit 7").await;
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 7)
    );
    // It is in the container: its processes, its files, its environment.
    assert_eq!(
        node.exec_text(&id, "echo $FROM_IMAGE; grep -c sleep /proc/1/cmdline; hostname").await,
        "yes\n1\nexec-host\n"
    );
    let big = node.exec(&id, "seq 1 200000").await;
    assert_eq!(big.stdout.len(), 1_288_895);
    let request = v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: vec!["sleep".to_owned(), "4712".to_owned()],
        timeout: 1,
    };
    let begun = Instant::now();
    let error = node.cri.exec_sync(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::DeadlineExceeded);
    assert!(begun.elapsed() < PATIENCE);
    assert_eq!(node.exec_text(&id, "ps | grep -c '[s]leep 4712$' || true").await, "0\n");
    // What a command leaves in the background does not keep it from answering.
    assert_eq!(node.exec_text(&id, "sleep 100 & echo done").await, "done\n");
    let request = v1::ExecSyncRequest { container_id: id, cmd: vec!["nope".to_owned()], timeout: 0 };
    let error = node.cri.exec_sync(request).await.unwrap_err();
    assert!(error.message().contains("executable file not found in $PATH"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_gives_the_grace_period_and_then_kills() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("stop").await;
    let polite =
        node.run(&sandbox, shell("polite", "trap 'echo bye; exit 3' TERM; echo up; sleep 1000 & wait")).await;
    let deaf = node.run(&sandbox, shell("deaf", "trap '' TERM; echo up; sleep 1000")).await;
    for id in [&polite, &deaf] {
        let path = node.status(id).await.log_path;
        eventually("the trap is set", || std::fs::read_to_string(&path).is_ok_and(|log| log.contains("up")))
            .await;
    }
    let begun = Instant::now();
    let stop = |id: &String, timeout| v1::StopContainerRequest { container_id: id.clone(), timeout };
    node.cri.stop_container(stop(&polite, 1000)).await.unwrap();
    assert!(begun.elapsed() < PATIENCE);
    let status = node.status(&polite).await;
    assert_eq!((status.exit_code, output(&log(&status)).as_str()), (3, "up\nbye\n"));
    let begun = Instant::now();
    node.cri.stop_container(stop(&deaf, 1)).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(node.status(&deaf).await.exit_code, 137);
    // Again, and for one that never was.
    node.cri.stop_container(stop(&deaf, 1)).await.unwrap();
    node.cri.stop_container(stop(&"unknown".to_owned(), 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_asked_to_end_by_several_is_asked_once() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("once").await;
    let id = node
        .run(&sandbox, shell("main", "trap 'echo asked' TERM; echo up; while true; do sleep 0.05; done"))
        .await;
    let path = node.status(&id).await.log_path;
    let said = |text: &str| std::fs::read_to_string(&path).is_ok_and(|log| log.contains(text));
    eventually("the trap is set", || said("F up")).await;
    let container = id.clone();
    let stop = move |timeout| v1::StopContainerRequest { container_id: container.clone(), timeout };
    let (mut first, mut second) = (node.cri.clone(), node.cri.clone());
    let begin = Instant::now();
    let patient = stop(1000);
    let begun = tokio::spawn(async move { first.stop_container(patient).await });
    eventually("it was asked", || said("F asked")).await;
    // who has less patience is heard, too
    second.stop_container(stop(1)).await.unwrap();
    begun.await.unwrap().unwrap();
    assert!(begin.elapsed() < PATIENCE);
    let status = node.status(&id).await;
    assert_eq!((status.exit_code, output(&log(&status)).as_str()), (137, "up\nasked\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_ends_with_the_caller_that_waits_for_it() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("caller").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let request = v1::ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["sleep", "4711"].map(str::to_owned).into(),
        timeout: 0,
    };
    let mut cri = node.cri.clone();
    let caller = tokio::spawn(async move { cri.exec_sync(request).await });
    let runs = "ps | grep -c '[s]leep 4711' || true";
    let mut wanted = "1\n";
    for _ in 0..2 {
        let deadline = Instant::now() + PATIENCE * testkit::slowness();
        while node.exec_text(&id, runs).await != wanted {
            assert!(Instant::now() < deadline, "never {wanted}");
        }
        caller.abort();
        wanted = "0\n";
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_each_step_of_a_containers_life() {
    let mut node = Node::start().await;
    let mut events = node.cri.get_container_events(v1::GetEventsRequest {}).await.unwrap().into_inner();
    let sandbox = node.sandbox("events").await;
    let id = node.run(&sandbox, shell("main", "exit 5")).await;
    node.ended(&id).await;
    node.remove_sandbox(&sandbox).await;
    let mut seen = Vec::new();
    while seen.len() < 8 {
        let event = events.next().await.unwrap().unwrap();
        let whose = if event.container_id == id { "container" } else { "sandbox" };
        seen.push((whose, event.container_event_type()));
    }
    use v1::ContainerEventType::*;
    let expected = [
        ("sandbox", ContainerCreatedEvent),
        ("sandbox", ContainerStartedEvent),
        ("container", ContainerCreatedEvent),
        ("container", ContainerStartedEvent),
        ("container", ContainerStoppedEvent),
        ("container", ContainerDeletedEvent),
        ("sandbox", ContainerStoppedEvent),
        ("sandbox", ContainerDeletedEvent),
    ];
    assert_eq!(seen, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn log_is_rotated_without_losing_lines() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("rotate").await;
    let config =
        shell("main", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; echo end; sleep 1000");
    let id = node.run(&sandbox, config).await;
    let path = node.status(&id).await.log_path;
    let mut rotated = Vec::new();
    for number in 0..5 {
        let old = format!("{path}.{number}");
        if std::fs::rename(&path, &old).is_ok() {
            rotated.push(old);
            let request = v1::ReopenContainerLogRequest { container_id: id.clone() };
            node.cri.reopen_container_log(request).await.unwrap();
        }
    }
    rotated.push(path.clone());
    eventually("the last line", || {
        rotated.iter().any(|path| std::fs::read_to_string(path).unwrap().contains("F end\n"))
    })
    .await;
    let lines: Vec<String> = rotated
        .iter()
        .flat_map(|path| {
            std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        })
        .filter_map(|line| line.rsplit_once(" line ").map(|(_, number)| number.to_owned()))
        .collect();
    let expected: Vec<String> = (0..3000).map(|number: u32| number.to_string()).collect();
    assert_eq!(lines, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_taken_once_and_bidirectional_mounts_need_a_shared_source() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("once").await;
    let config = node.sandbox_config("once");
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let error = node.cri.run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::AlreadyExists);
    node.run(&sandbox, shell("main", "true")).await;
    let error = node.create(&sandbox, shell("main", "true")).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::AlreadyExists);
    // A mount that is private on any node.
    let mut config = shell("both", "true");
    config.mounts = vec![v1::Mount {
        host_path: node.config.run.join("netns").join(&sandbox).display().to_string(),
        container_path: "/both".to_owned(),
        propagation: v1::MountPropagation::PropagationBidirectional as i32,
        ..Default::default()
    }];
    let shared = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let shared = shared.lines().any(|line| line.contains(&sandbox) && line.contains(" shared:"));
    let id = node.create(&sandbox, config).await.unwrap();
    let result = node.start_container(&id).await;
    assert_eq!(result.is_ok(), shared, "{result:?}");
    // An image as a volume, of one layer and read-only.
    let mut config =
        shell("volume", "ls /image/bin/busybox; touch /image/x 2>/dev/null || echo readonly; sleep 0.1");
    let image = v1::ImageSpec { image: IMAGE.to_owned(), ..Default::default() };
    config.mounts =
        vec![v1::Mount { container_path: "/image".to_owned(), image: Some(image), ..Default::default() }];
    let id = node.run(&sandbox, config).await;
    let status = node.ended(&id).await;
    assert_eq!(output(&log(&status)), "/image/bin/busybox\nreadonly\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_sandboxes_leave_nothing_behind() {
    let mut node = Node::start().await;
    assert_eq!(node.traces(), Vec::<String>::new());
    let mut sandboxes = Vec::new();
    for number in 0..10 {
        let mut config = node.sandbox_config(&format!("pod{number}"));
        if number % 3 == 0 {
            let options = v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() };
            config.linux.as_mut().unwrap().security_context = Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            });
        }
        let sandbox = node.run_sandbox(config).await;
        node.run(&sandbox, shell("a", "sleep 1000")).await;
        node.run(&sandbox, shell("b", "mkdir /dirty; touch /dirty/file; exit 1")).await;
        sandboxes.push(sandbox);
    }
    assert!(node.traces().len() > 40);
    for sandbox in &sandboxes {
        node.remove_sandbox(sandbox).await;
        node.remove_sandbox(sandbox).await;
    }
    assert_eq!(node.traces(), Vec::<String>::new());
    assert!(
        node.cri
            .list_containers(v1::ListContainersRequest::default())
            .await
            .unwrap()
            .into_inner()
            .containers
            .is_empty()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn image_names_find_the_image() {
    let mut node = Node::start().await;
    let spec = |image: &str| Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
    for name in ["box", "docker.io/library/box", IMAGE] {
        let request = v1::ImageStatusRequest { image: spec(name), verbose: false };
        let image = node.images.image_status(request).await.unwrap().into_inner().image.unwrap();
        let request = v1::ImageStatusRequest { image: spec(&image.id), verbose: false };
        assert!(node.images.image_status(request).await.unwrap().into_inner().image.is_some());
    }
    let request = v1::ImageStatusRequest { image: spec("other"), verbose: false };
    assert!(node.images.image_status(request).await.unwrap().into_inner().image.is_none());
    let request = v1::RemoveImageRequest { image: spec("box") };
    node.images.remove_image(request.clone()).await.unwrap();
    node.images.remove_image(request).await.unwrap();
    assert!(node.runtime.list_images().is_empty());
    assert_eq!(std::fs::read_dir(node.config.root.join("layers")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_in_folders_without_end_count_and_are_removed_with_their_container() {
    const DEPTH: u64 = 12_000;
    let mut node = Node::start().await;
    let sandbox = node.sandbox("deep").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let own = node.config.root.join("containers").join(&id);
    let below = |at: &std::os::fd::OwnedFd| {
        rustix::fs::mkdirat(at, "d", rustix::fs::Mode::RWXU)?;
        rustix::fs::openat(at, "d", rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
    };
    // as a program in it does that goes down step by step
    let mut here = std::os::fd::OwnedFd::from(std::fs::File::open(own.join("upper")).unwrap());
    for _ in 0..DEPTH {
        here = below(&here).unwrap();
    }
    let request = v1::ContainerStatsRequest { container_id: id };
    let stats = node.cri.container_stats(request).await.unwrap().into_inner().stats.unwrap();
    let inodes = stats.writable_layer.unwrap().inodes_used.unwrap().value;
    assert!(inodes >= DEPTH, "{inodes}");
    node.remove_sandbox(&sandbox).await;
    assert!(!own.exists());
}
