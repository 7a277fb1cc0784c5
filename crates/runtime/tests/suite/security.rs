//! What confines a container.

use std::{fs, os::unix::fs::PermissionsExt};

use cri::v1::{self, NamespaceMode};

use crate::support::{Node, output, security, shell};

#[tokio::test(flavor = "multi_thread")]
async fn users_and_groups_are_found_in_the_image() {
    let mut node = Node::start().await;
    let mut config = shell("name", "id; echo $HOME; touch /tmp/mine && stat -c %u /tmp/mine");
    security(&mut config).run_as_username = "web".to_owned();
    security(&mut config).supplemental_groups = vec![777];
    let (status, log) = node.script(config).await;
    let log = output(&log);
    assert!(log.contains("uid=33(web) gid=34(web) groups=34(web),90(ssl),777"), "{log}");
    assert!(log.ends_with("/home/web\n33\n"), "{log}");
    let user = status.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid, user.supplemental_groups), (33, 34, vec![34, 777, 90]));
    let mut config = shell("unknown", "id");
    security(&mut config).run_as_username = "nobody-here".to_owned();
    let sandbox = node.sandbox("unknown").await;
    let id = node.create(&sandbox, config).await.unwrap();
    let error = node.start_container(&id).await.unwrap_err();
    assert!(error.message().contains("unable to find user nobody-here"), "{error}");
}

async fn status_of(node: &mut Node, config: v1::ContainerConfig) -> String {
    let (_, log) = node.script(config).await;
    output(&log)
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_processes_are_not_those_of_whoever_started_the_node() {
    let mut node = Node::start().await;
    let text = |file: &str| fs::read_to_string(file).unwrap();
    let most: u64 = text("/proc/sys/fs/nr_open").trim().parse().unwrap();
    let capabilities = text("/proc/self/status");
    let capabilities = capabilities.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    // without CAP_SYS_RESOURCE nobody raises a limit
    let may_raise = u64::from_str_radix(capabilities, 16).unwrap() & (1 << 24) != 0;
    let show = "ulimit -Sn; ulimit -Hn; ulimit -Su; ulimit -Sc";
    let log = status_of(&mut node, shell("limits", show)).await;
    if !may_raise {
        let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap();
        assert!(log.starts_with(&format!("{own}\n{own}\n")), "{log}");
        return;
    }
    let files = most.min(1 << 20);
    assert_eq!(log, format!("{files}\n{files}\nunlimited\nunlimited\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_seccomp_and_no_new_privs_are_as_asked() {
    let mut node = Node::start().await;
    let status = "while read -r name value; do case $name in Cap[EBA]*|NoNew*|Seccomp:) echo $name$value;; esac; done < /proc/self/status";
    let log = status_of(&mut node, shell("plain", status)).await;
    assert!(log.contains("CapEff:00000000a80425fb\nCapBnd:00000000a80425fb\nCapAmb:0000000000000000\nNoNewPrivs:0\nSeccomp:0"), "{log}");
    let mut config =
        shell("tight", &format!("{status}; unshare -m true 2>&1; mount -t tmpfs x /tmp 2>&1; echo alive"));
    let context = security(&mut config);
    context.no_new_privs = true;
    context.seccomp = Some(v1::SecurityProfile::default());
    context.capabilities =
        Some(v1::Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() });
    let log = status_of(&mut node, config).await;
    assert!(log.contains("CapEff:0000000000000000\nCapBnd:0000000000000000\n"), "{log}");
    assert!(log.contains("NoNewPrivs:1\nSeccomp:2"), "{log}");
    assert!(log.contains("alive") && log.contains("Operation not permitted"), "{log}");
    // Seccomp without no_new_privs, as an ordinary user.
    let mut config = shell("user", status);
    let context = security(&mut config);
    context.run_as_user = Some(v1::Int64Value { value: 1000 });
    context.seccomp = Some(v1::SecurityProfile::default());
    let log = status_of(&mut node, config).await;
    assert!(log.contains("CapEff:0000000000000000\nCapBnd:00000000a80425fb\nCapAmb:0000000000000000\nNoNewPrivs:0\nSeccomp:2"), "{log}");
    let mut config = shell("ambient", status);
    let context = security(&mut config);
    context.run_as_user = Some(v1::Int64Value { value: 1000 });
    context.capabilities = Some(v1::Capability {
        add_ambient_capabilities: vec!["NET_BIND_SERVICE".to_owned()],
        ..Default::default()
    });
    let log = status_of(&mut node, config).await;
    assert!(log.contains("CapAmb:0000000000000400"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_is_confined_like_the_container() {
    let mut node = Node::start().await;
    let mut config = shell("main", "sleep 1000");
    let context = security(&mut config);
    context.no_new_privs = true;
    context.seccomp = Some(v1::SecurityProfile::default());
    context.run_as_user = Some(v1::Int64Value { value: 33 });
    let sandbox = node.sandbox("exec").await;
    let id = node.run(&sandbox, config).await;
    let script = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; id -u; ls /proc/self/fd | wc -l";
    let text = node.exec_text(&id, script).await.replace('\t', "");
    // Three streams and the folder being listed: no file of the runtime came along.
    assert_eq!(text, "NoNewPrivs:1\nSeccomp:2\n33\n4\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn kernel_files_and_devices_of_the_node_are_out_of_reach() {
    let mut node = Node::start().await;
    let script = "cat /proc/kcore 2>/dev/null | head -c 1 | wc -c; echo x 2>/dev/null > /proc/sys/kernel/hostname || echo readonly; \
                  touch /sys/x 2>/dev/null || echo sealed; \
                  mknod /disk b 254 0 && head -c 1 /disk 2>/dev/null | wc -c; head -c 3 /dev/zero | wc -c; \
                  ls / | sort | head -1; readlink /proc/1/root; [ -e /proc/2/exe ] || echo alone";
    let (_, log) = node.script(shell("main", script)).await;
    assert_eq!(output(&log), "0\nreadonly\nsealed\n0\n3\nbin\n/\nalone\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn runtime_program_cannot_be_written_through_proc() {
    let mut node = Node::start().await;
    // The shim is the container's parent, and its program visible where the node's processes are.
    let mut config = shell("main", "cat /proc/$PPID/comm; (echo x > /proc/$PPID/exe) 2>&1");
    security(&mut config).namespace_options =
        Some(v1::NamespaceOption { pid: NamespaceMode::Node as i32, ..Default::default() });
    security(&mut config).privileged = true;
    let (_, log) = node.script(config).await;
    assert!(log.contains("navarch-shim") && log.contains("Read-only file system"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_made_as_asked_and_links_in_the_image_lead_nowhere() {
    let mut node = Node::start().await;
    let (data, file) = (node.path("data"), node.path("file"));
    fs::create_dir(&data).unwrap();
    fs::write(&file, "content\n").unwrap();
    let mount = |host: &std::path::Path, target: &str, readonly| v1::Mount {
        host_path: host.display().to_string(),
        container_path: target.to_owned(),
        readonly,
        ..Default::default()
    };
    let mut config = shell(
        "main",
        "echo written > /data/sub/new; cat /etc/file; touch /etc/file 2>/dev/null || echo readonly; cat /etc/resolv.conf; \
         touch /rootfile 2>/dev/null || echo rootro; df /dev/shm >/dev/null 2>&1; echo x > /dev/shm/x && cat /dev/shm/x",
    );
    config.mounts = vec![
        mount(&file, "/etc/file", true),
        mount(&data, "/data", false),
        mount(&node.path("made"), "/data/sub", false),
    ];
    security(&mut config).readonly_rootfs = true;
    let (status, log) = node.script(config).await;
    assert_eq!(output(&log), "content\nreadonly\nnameserver 10.96.0.10\nrootro\nx\n");
    assert_eq!(fs::read_to_string(node.path("made/new")).unwrap(), "written\n");
    assert_eq!(status.mounts.len(), 3);
    assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o755);
}

#[tokio::test(flavor = "multi_thread")]
async fn pod_shares_what_it_should() {
    let mut node = Node::start().await;
    let mut config = node.sandbox_config("shared");
    let options = v1::NamespaceOption { pid: NamespaceMode::Pod as i32, ..Default::default() };
    config.linux.as_mut().unwrap().security_context = Some(v1::LinuxSandboxSecurityContext {
        namespace_options: Some(options.clone()),
        ..Default::default()
    });
    config.linux.as_mut().unwrap().sysctls = [("net.core.somaxconn".to_owned(), "777".to_owned())].into();
    let sandbox = node.run_sandbox(config).await;
    let with_pid = |mut config: v1::ContainerConfig| {
        security(&mut config).namespace_options = Some(options.clone());
        config
    };
    let first = node.run(&sandbox, with_pid(shell("first", "echo hi > /dev/shm/note; sleep 1000"))).await;
    let second = node.run(&sandbox, with_pid(shell("second", "sleep 2000"))).await;
    let seen = node
        .exec_text(
            &second,
            "cat /dev/shm/note /proc/1/comm /proc/sys/net/core/somaxconn; tr -d '\\0' < /proc/1/cmdline; ps | grep -c '[s]leep 1000'",
        )
        .await;
    assert_eq!(seen, "hi\npause\n777\n/pause1\n");
    assert_eq!(node.exec_text(&first, "ls /rootfs 2>/dev/null; ip link | grep -c LOOPBACK,UP").await, "1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_network_pod_is_in_the_nodes_network() {
    let mut node = Node::start().await;
    let mut config = node.sandbox_config("host");
    let options = v1::NamespaceOption { network: NamespaceMode::Node as i32, ..Default::default() };
    config.linux.as_mut().unwrap().security_context =
        Some(v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
    let sandbox = node.run_sandbox(config).await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    let inside = node.exec_text(&id, "readlink /proc/self/ns/net").await;
    assert_eq!(inside.trim(), fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
    assert_eq!(fs::read_dir(node.config.run.join("netns")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_the_node_holds() {
    let mut node = Node::start().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("profile.json");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 10, "op": "SCMP_CMP_EQ"}]}]}"#;
    fs::write(&file, profile).unwrap();
    let with = |name: &str, path: &str| {
        let script =
            "trap 'echo told' USR2; mkdir /tmp/x 2>&1; kill -USR1 $$ 2>&1; kill -USR2 $$; echo alive";
        let mut config = shell(name, script);
        security(&mut config).seccomp = Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Localhost as i32,
            localhost_ref: path.to_owned(),
        });
        config
    };
    let log = status_of(&mut node, with("held", file.to_str().unwrap())).await;
    assert!(
        log.contains("/tmp/x': Input/output error") || log.contains("/tmp/x: Input/output error"),
        "{log}"
    );
    assert!(log.contains("Operation not permitted") && log.ends_with("told\nalive\n"), "{log}");
    let sandbox = node.sandbox("missing").await;
    let missing = folder.path().join("none.json");
    let made = node.create(&sandbox, with("missing", missing.to_str().unwrap())).await;
    let error = match made {
        Ok(id) => node.start_container(&id).await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.message().contains("none.json"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_merged_or_strict_for_the_container_and_what_is_run_in_it() {
    let mut node = Node::start().await;
    let sandbox = node.sandbox("groups").await;
    for (name, policy, expected) in [
        ("merge", v1::SupplementalGroupsPolicy::Merge, vec![34, 90, 1234]),
        ("strict", v1::SupplementalGroupsPolicy::Strict, vec![34, 1234]),
    ] {
        let mut config = shell(name, "sleep 1000");
        let context = security(&mut config);
        context.run_as_user = Some(v1::Int64Value { value: 33 });
        context.supplemental_groups = vec![1234];
        context.supplemental_groups_policy = policy as i32;
        let id = node.run(&sandbox, config).await;
        let mut told = node.status(&id).await.user.unwrap().linux.unwrap().supplemental_groups;
        told.sort_unstable();
        assert_eq!(told, expected, "{name}");
        for process in ["1", "self"] {
            let seen = node.exec_text(&id, &format!("grep ^Groups: /proc/{process}/status")).await;
            let mut seen: Vec<i64> =
                seen.split_whitespace().skip(1).map(|group| group.parse().unwrap()).collect();
            seen.sort_unstable();
            assert_eq!(seen, expected, "{name}: {process}");
        }
    }
    let mut config = shell("both", "echo $(id -u):$(id -g)");
    let context = security(&mut config);
    context.run_as_user = Some(v1::Int64Value { value: 1001 });
    context.run_as_group = Some(v1::Int64Value { value: 1002 });
    assert_eq!(status_of(&mut node, config).await, "1001:1002\n");
    let mut config = shell("alone", "");
    security(&mut config).run_as_group = Some(v1::Int64Value { value: 1002 });
    let error = node.create(&sandbox, config).await.unwrap_err();
    assert_eq!(
        (error.code(), error.message()),
        (tonic::Code::InvalidArgument, "a group is set without a user")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_the_network_or_the_name_needs_its_capability() {
    let mut node = Node::start().await;
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"}]}"#;
    fs::write(&profile, text).unwrap();
    let blocked = v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Localhost as i32,
        localhost_ref: profile.display().to_string(),
    };
    let free = v1::SecurityProfile {
        profile_type: v1::security_profile::ProfileType::Unconfined as i32,
        ..Default::default()
    };
    let mut config = node.sandbox_config("capabilities");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let sandbox = node.run_sandbox(config).await;
    let script = "ip link set lo mtu 1500 2>/dev/null && echo network
        hostname other 2>/dev/null && echo name
        grep -c '^CapBnd:.0000000000000000$' /proc/self/status";
    for (name, privileged, add, drop, profile, expected) in [
        ("plain", false, "", "", &free, "0\n"),
        ("network", false, "NET_ADMIN", "", &free, "network\n0\n"),
        ("name", false, "SYS_ADMIN", "", &free, "name\n0\n"),
        ("blocked", false, "SYS_ADMIN", "", &blocked, "0\n"),
        ("privileged", true, "", "", &blocked, "network\nname\n0\n"),
        ("all", false, "ALL", "", &free, "network\nname\n0\n"),
        ("none", false, "", "ALL", &free, "1\n"),
    ] {
        let mut config = shell(name, script);
        let list = |one: &str| vec![one.to_owned()].into_iter().filter(|one| !one.is_empty()).collect();
        let context = security(&mut config);
        context.privileged = privileged;
        context.seccomp = Some(profile.clone());
        context.capabilities = Some(v1::Capability {
            add_capabilities: list(add),
            drop_capabilities: list(drop),
            ..Default::default()
        });
        let id = node.run(&sandbox, config).await;
        let status = node.ended(&id).await;
        assert_eq!(output(&crate::support::log(&status)), expected, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn control_groups_are_read_only_but_for_privileged_containers() {
    let mut node = Node::start().await;
    let mut config = node.sandbox_config("groups");
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let sandbox = node.run_sandbox(config).await;
    let script = "cat /proc/self/cgroup; cd /sys/fs/cgroup; [ -d memory ] && cd memory; mkdir mine 2>&1 && rmdir mine && echo made";
    let v2 = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
    let mount = || {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        mounts.lines().find(|line| line.starts_with("cgroup2 ")).map(str::to_owned)
    };
    let before = mount();
    for (privileged, expected) in [(false, "Read-only file system"), (true, "made")] {
        let mut config = shell(if privileged { "privileged" } else { "plain" }, script);
        security(&mut config).privileged = privileged;
        let id = node.run(&sandbox, config).await;
        let status = node.ended(&id).await;
        let said = output(&crate::support::log(&status));
        assert!(said.contains(expected), "{said}");
        // as with containerd, where there are those of version 2 only
        let nodes = said.contains(&node.config.cgroup_parent);
        assert_eq!(nodes, privileged && v2, "{said}");
        // whose options are those of all
        assert_eq!(mount(), before);
    }
}
