//! Pods with users of their own.

use std::{fs, os::unix::fs::MetadataExt};

use cri::v1::{self, NamespaceMode};

use crate::support::{Node, output, security, shell};

const IDS: u32 = 65536;

/// Users of a pod, from `first` on.
fn users(first: u32) -> v1::UserNamespace {
    let ids = vec![v1::IdMapping { host_id: first, container_id: 0, length: IDS }];
    v1::UserNamespace { mode: NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids }
}

/// A sandbox whose users begin at `first`.
async fn sandbox(node: &mut Node, name: &str, first: u32, pid: NamespaceMode) -> String {
    let mut config = node.sandbox_config(name);
    let linux = config.linux.as_mut().unwrap();
    let options = linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap();
    options.userns_options = Some(users(first));
    options.pid = pid as i32;
    linux.sysctls.insert("kernel.shmmax".to_owned(), "1000000".to_owned());
    linux.sysctls.insert("net.core.somaxconn".to_owned(), "77".to_owned());
    node.run_sandbox(config).await
}

/// A folder of the node, shown as `pod` has its owners.
fn mount(path: &std::path::Path, target: &str, pod: &v1::UserNamespace) -> v1::Mount {
    v1::Mount {
        host_path: path.display().to_string(),
        container_path: target.to_owned(),
        uid_mappings: pod.uids.clone(),
        gid_mappings: pod.gids.clone(),
        ..Default::default()
    }
}

async fn said(node: &mut Node, sandbox: &str, config: v1::ContainerConfig) -> String {
    let id = node.run(sandbox, config).await;
    let status = node.ended(&id).await;
    output(&crate::support::log(&status))
}

/// The user of a process, as the node sees it.
fn owner(pid: i32) -> (u32, u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    (of("Uid:"), of("Gid:"))
}

#[tokio::test(flavor = "multi_thread")]
async fn root_inside_is_nobody_in_particular_outside() {
    let mut node = Node::start().await;
    let data = node.path("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("roots"), "x").unwrap();
    fs::write(data.join("webs"), "x").unwrap();
    std::os::unix::fs::chown(data.join("webs"), Some(33), Some(34)).unwrap();
    let pod = users(IDS);
    let id = sandbox(&mut node, "pod", IDS, NamespaceMode::Container).await;
    let mut config = shell(
        "main",
        "cat /proc/self/uid_map; stat -c '%n %u %g' / /etc/passwd /data /data/roots /data/webs /dev /dev/null /dev/pts \
         /dev/shm /etc/resolv.conf; touch /data/mine /new; stat -c '%n %u' /data/mine /new; \
         mkdir -p /made && stat -c '%n %u' /made /deep; \
         cat /proc/sys/kernel/shmmax /proc/sys/net/core/somaxconn; hostname; chown 33:34 /new && stat -c '%u %g' /new; sleep 1000",
    );
    config.mounts = vec![mount(&data, "/data", &pod), mount(&data, "/deep/below", &pod)];
    config.working_dir = "/made".to_owned();
    let main = node.run(&id, config).await;
    let seen = "         0      65536      65536\n/ 0 0\n/etc/passwd 0 0\n/data 0 0\n/data/roots 0 0\n/data/webs 33 34\n\
                /dev 0 0\n/dev/null 0 0\n/dev/pts 0 0\n/dev/shm 0 0\n/etc/resolv.conf 0 0\n/data/mine 0\n/new 0\n\
                /made 0\n/deep 0\n1000000\n77\npod-host\n33 34\n";
    let status = node.status(&main).await;
    crate::support::eventually("the container said what it sees", || {
        fs::read_to_string(&status.log_path).is_ok_and(|text| text.lines().count() == seen.lines().count())
    })
    .await;
    assert_eq!(output(&crate::support::log(&status)), seen);
    assert_eq!(status.user.unwrap().linux.unwrap().uid, 0);
    let pid = node.pid(&main).await;
    assert_eq!(owner(pid), (IDS, IDS));
    assert_eq!(fs::metadata(data.join("mine")).unwrap().uid(), 0, "on the disk it is as the pod sees it");
    // a further program is in the same namespace, and so is one with a terminal's worth of files
    assert_eq!(
        node.exec_text(&main, "id -u; cat /proc/self/uid_map; stat -c %u /data/mine").await.replace(' ', ""),
        "0\n06553665536\n0\n"
    );
    let link = |pid: i32, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
    assert_ne!(link(pid, "user"), link(std::process::id() as i32, "user"));
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
    let status = node.cri.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.linux.unwrap().namespaces.unwrap().options.unwrap().userns_options, Some(pod));

    // adopted by the next process
    node.restart().await;
    assert_eq!(node.exec_text(&main, "id -u").await, "0\n");
    let text = said(&mut node, &id, shell("after", "cat /proc/self/uid_map; stat -c %u /")).await;
    assert_eq!(text.replace(' ', ""), "06553665536\n0\n");
    node.remove_sandbox(&id).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_do_not_reach_the_node() {
    let mut node = Node::start().await;
    let secret = node.path("secret");
    fs::write(&secret, "the node's").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let id = sandbox(&mut node, "pod", 2 * IDS, NamespaceMode::Pod).await;
    let script = "mount -t tmpfs x /tmp && echo mounts; umount /proc/kcore 2>/dev/null || echo masked; \
                  mount -o remount,rw /ro 2>/dev/null; touch /ro/x 2>/dev/null || echo readonly; \
                  hostname other && hostname; ip link set lo down && echo network; \
                  mknod /disk b 254 0 2>/dev/null || echo nodevices; \
                  cat /unmapped/secret 2>/dev/null || echo foreign; \
                  unshare -U true && echo nested; kill -0 1 && echo pause";
    let mut config = shell("main", script);
    let add = ["SYS_ADMIN", "NET_ADMIN", "DAC_OVERRIDE", "DAC_READ_SEARCH"];
    let add_capabilities = add.map(str::to_owned).to_vec();
    security(&mut config).capabilities = Some(v1::Capability { add_capabilities, ..Default::default() });
    security(&mut config).namespace_options = Some(v1::NamespaceOption::default());
    security(&mut config).masked_paths = vec!["/proc/kcore".to_owned()];
    let unmapped = v1::Mount {
        host_path: node.path("").display().to_string(),
        container_path: "/unmapped".to_owned(),
        ..Default::default()
    };
    let readonly = v1::Mount { readonly: true, ..mount(&node.path(""), "/ro", &users(2 * IDS)) };
    config.mounts = vec![unmapped, readonly];
    let text = said(&mut node, &id, config).await;
    assert_eq!(text, "mounts\nmasked\nreadonly\nother\nnetwork\nnodevices\nforeign\nnested\npause\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_process_of_a_container_begins_with_a_keyring_of_its_own() {
    if !fs::exists("/proc/keys").unwrap() {
        return;
    }
    let mut node = Node::start().await;
    let id = sandbox(&mut node, "pod", 9 * IDS, NamespaceMode::Container).await;
    let mut config = shell("main", "sleep 1000");
    // `/proc/keys` is masked elsewhere; it shows keys of this pod's users only.
    security(&mut config).masked_paths = vec!["/home".to_owned()];
    let main = node.run(&id, config).await;
    let sessions = |text: String| text.lines().filter(|line| line.contains("keyring   _ses: ")).count();
    assert_eq!(
        sessions(node.exec_text(&main, "cat /proc/keys").await),
        2,
        "its own, and the first process's"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_user_of_the_pod_has_an_id_of_its_own_outside() {
    let mut node = Node::start().await;
    let shm = "echo x > /dev/shm/note; stat -c %u /dev/shm/note; id -u; id -G; sleep 1000";
    let mut pids = Vec::new();
    for (name, first) in [("one", IDS), ("two", 2 * IDS)] {
        let id = sandbox(&mut node, name, first, NamespaceMode::Container).await;
        let mut config = shell("main", shm);
        security(&mut config).run_as_user = Some(v1::Int64Value { value: 33 });
        security(&mut config).supplemental_groups = vec![1000];
        security(&mut config).seccomp = Some(v1::SecurityProfile::default());
        security(&mut config).no_new_privs = name == "one";
        let main = node.run(&id, config).await;
        let pid = node.pid(&main).await;
        assert_eq!(owner(pid), (first + 33, first + 34));
        assert_eq!(
            node.exec_text(&main, "id -u; id -G; stat -c %u /dev/shm/note").await,
            "33\n34 90 1000\n33\n"
        );
        let mut config = shell("terminal", "tty; stat -c '%u:%g' $(tty) /dev/console; echo x >/dev/tty");
        config.tty = true;
        security(&mut config).run_as_user = Some(v1::Int64Value { value: 33 });
        assert_eq!(said(&mut node, &id, config).await.replace('\r', ""), "/dev/pts/0\n33:5\n33:5\nx\n");
        let mut config = shell("far", "true");
        security(&mut config).run_as_user = Some(v1::Int64Value { value: 70000 });
        let far = node.create(&id, config).await.unwrap();
        let error = node.start_container(&far).await.unwrap_err();
        assert_eq!(error.message(), "user 70000 is not one of the pod's user namespace");
        pids.push(pid);
    }
    let map = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap();
    assert_ne!(map(&pids[0]), map(&pids[1]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_cannot_be_shown_and_mappings_of_others_are_refused() {
    let mut node = Node::start().await;
    let id = sandbox(&mut node, "pod", IDS, NamespaceMode::Container).await;
    let mut config = shell("kernel", "true");
    config.mounts = vec![mount(std::path::Path::new("/proc/sys"), "/there", &users(IDS))];
    let container = node.create(&id, config).await.unwrap();
    let error = node.start_container(&container).await.unwrap_err();
    assert_eq!(
        error.message(),
        "mounting /there: the file system of /proc/sys cannot be shown to the pod's user namespace: \
         idmapped mounts are not supported there"
    );
    let mut config = shell("others", "true");
    config.mounts = vec![mount(&node.path(""), "/there", &users(2 * IDS))];
    let error = node.create(&id, config).await.unwrap_err();
    assert!(error.message().contains("are not those of the pod's user namespace"), "{error}");
    let mut config = node.sandbox_config("handler");
    let options = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    options.namespace_options.as_mut().unwrap().userns_options =
        Some(v1::UserNamespace { mode: NamespaceMode::Pod as i32, ..Default::default() });
    let request = v1::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    let error = node.cri.run_pod_sandbox(request).await.unwrap_err();
    assert_eq!(error.message(), "user ids of the user namespace: 0 must be mapped");
    let status = node.cri.status(v1::StatusRequest::default()).await.unwrap().into_inner();
    let own = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    assert!(own.features.unwrap().user_namespaces);
}
