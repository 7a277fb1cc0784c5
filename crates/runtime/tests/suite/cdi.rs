//! What devices by CDI need beyond device files: hooks, and options of mounts.

use std::{fs, path::PathBuf};

use cri::v1;
use serde_json::Value;

use crate::support::{Node, eventually, shell};

/// A node where the device `v.com/c=d` needs what `edits` says.
async fn node(edits: &str) -> Node {
    let mut node = Node::start().await;
    describe(&node, edits);
    node.config.cdi_folders = vec![node.path("cdi")];
    node.restart().await;
    node
}

fn describe(node: &Node, edits: &str) {
    fs::create_dir_all(node.path("cdi")).unwrap();
    let text = format!(
        "cdiVersion: 0.7.0\nkind: v.com/c\ndevices:\n- name: d\n  containerEdits:\n    {}\n",
        edits.replace('\n', "\n    ")
    );
    fs::write(node.path("cdi/v.yaml"), text).unwrap();
}

fn with_device(script: &str) -> v1::ContainerConfig {
    let mut config = shell("main", script);
    config.cdi_devices = vec![v1::CdiDevice { name: "v.com/c=d".to_owned() }];
    config
}

/// A hook of the node that notes its state and its namespaces in `NAME.state` and `NAME.ns`.
fn noting(node: &Node, step: &str, more: &str) -> PathBuf {
    let (path, base) = (node.path(step), node.path("").display().to_string());
    let script = format!(
        "#!/bin/sh\ncat >{base}/{step}.state\nreadlink /proc/self/ns/mnt /proc/self/ns/pid >{base}/{step}.ns\n\
         echo \"$@ $WHO\" >{base}/{step}.args\n{more}\n"
    );
    testkit::executable(&path, script.as_bytes()).unwrap();
    path
}

fn state(node: &Node, step: &str) -> Value {
    let text =
        fs::read_to_string(node.path(&format!("{step}.state"))).unwrap_or_else(|e| panic!("{step}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{step}: {e}: {text}"))
}

fn namespaces(node: &Node, step: &str) -> Vec<String> {
    let text = fs::read_to_string(node.path(&format!("{step}.ns"))).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_are_run_where_and_when_the_specification_says() {
    let mut node = node("env: [A=b]").await;
    // finds the container's root as vendors' hooks do
    let into_root = "bundle=$(sed -n 's/.*\"bundle\":\"\\([^\"]*\\)\".*/\\1/p' BASE/createContainer.state)
root=$(sed -n 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/p' $bundle/config.json)
echo hooked >$root/from-hook";
    let into_root = into_root.replace("BASE", &node.path("").display().to_string());
    let mut edits = "hooks:".to_owned();
    for (step, more) in [
        ("prestart", ""),
        ("createRuntime", ""),
        ("createContainer", into_root.as_str()),
        ("poststart", ""),
        ("poststop", ""),
    ] {
        let path = noting(&node, step, more);
        edits.push_str(&format!(
            "\n- {{hookName: {step}, path: {}, args: [own-name, one], env: [WHO=me]}}",
            path.display()
        ));
    }
    edits.push_str("\n- {hookName: startContainer, path: /bin/sh, args: [sh, -c, 'cat >/tmp/state; id -u >/tmp/who; cat /from-hook >/tmp/seen']}");
    describe(&node, &edits);
    let sandbox = node.sandbox("hooks").await;
    let mut config = with_device("cat /tmp/seen /tmp/who; while true; do sleep 0.1; done");
    config.annotations.insert("about".to_owned(), "this".to_owned());
    let context = crate::support::security(&mut config);
    context.run_as_user = Some(v1::Int64Value { value: 1234 });
    let id = node.run(&sandbox, config).await;
    // all that comes before the answer has happened
    let pid = i64::from(node.pid(&id).await);
    for (step, status) in [
        ("prestart", "creating"),
        ("createRuntime", "creating"),
        ("createContainer", "creating"),
        ("poststart", "running"),
    ] {
        let state = state(&node, step);
        assert_eq!((&state["id"], &state["status"]), (&id.as_str().into(), &status.into()), "{step}");
        assert_eq!(state["annotations"]["about"], "this", "{step}");
        assert_eq!(fs::read_to_string(node.path(&format!("{step}.args"))).unwrap(), "one me\n", "{step}");
        let wanted = if step == "createContainer" { 1 } else { pid };
        assert_eq!(state["pid"], wanted, "{step}");
    }
    let own = ["mnt", "pid"].map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
    let own = own.map(|link| link.display().to_string()).to_vec();
    for step in ["prestart", "createRuntime", "poststart"] {
        assert_eq!(namespaces(&node, step), own, "{step}");
    }
    let theirs = ["mnt", "pid"].map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap());
    let theirs = theirs.map(|link| link.display().to_string()).to_vec();
    assert_eq!(namespaces(&node, "createContainer"), theirs);
    assert_eq!(node.exec_text(&id, "cat /tmp/seen /tmp/who").await, "hooked\n1234\n");
    let text = node.exec_text(&id, "cat /tmp/state").await;
    let inside: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&inside["status"], &inside["pid"]), (&"created".into(), &1.into()));
    assert!(!node.path("poststop.state").exists());
    let stop = v1::StopContainerRequest { container_id: id.clone(), timeout: 0 };
    node.cri.stop_container(stop).await.unwrap();
    eventually("the last hook is run", || {
        fs::read(node.path("poststop.args")).is_ok_and(|text| text.ends_with(b"\n"))
    })
    .await;
    assert_eq!(state(&node, "poststop")["status"], "stopped");
    node.remove_sandbox(&sandbox).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_that_fails_or_stalls_stops_the_start_and_the_last_hooks_are_run() {
    let mut node = node("env: [A=b]").await;
    let last = noting(&node, "poststop", "");
    let failing = node.path("failing");
    let sandbox = node.sandbox("failing").await;
    let cases = [
        ("createRuntime", "echo no such card >&2; exit 3", 35, "failed: exit status: 3: no such card"),
        ("createContainer", "exit 1", 35, "failed: exit status: 1"),
        ("createRuntime", "exec sleep 1000", 1, "failed: it did not end within 1 s"),
    ];
    for (attempt, (step, script, timeout, why)) in (0..).zip(cases) {
        testkit::executable(&failing, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        let hook = format!("{{hookName: {step}, path: {}, timeout: {timeout}}}", failing.display());
        describe(&node, &format!("hooks: [{hook}, {{hookName: poststop, path: {}}}]", last.display()));
        let mut config = with_device("true");
        config.metadata.as_mut().unwrap().attempt = attempt;
        let id = node.create(&sandbox, config).await.unwrap();
        let refused = node.start_container(&id).await.unwrap_err();
        let wanted = format!("{step} hook {} {why}", failing.display());
        assert!(refused.message().contains(&wanted), "{}", refused.message());
        eventually("the last hook is run", || {
            fs::read(node.path("poststop.args")).is_ok_and(|text| text.ends_with(b"\n"))
        })
        .await;
        assert_eq!(state(&node, "poststop")["id"], id.as_str());
        fs::remove_file(node.path("poststop.args")).unwrap();
    }
    node.remove_sandbox(&sandbox).await;
    assert_eq!(node.traces(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vendors_mounts_have_its_options() {
    let mut node = node("env: [A=b]").await;
    fs::create_dir(node.path("vendor")).unwrap();
    let mount = format!(
        "mounts: [{{hostPath: {}, containerPath: /vendor, options: [ro, nosuid, nodev, noexec, rbind]}}]",
        node.path("vendor").display()
    );
    describe(&node, &mount);
    testkit::executable(&node.path("vendor/tool"), b"#!/bin/sh\n").unwrap();
    let (_, said) = node.script(with_device("/vendor/tool; grep ' /vendor ' /proc/mounts")).await;
    assert!(said.contains("/vendor/tool: Permission denied"), "{said}");
    for option in ["ro,", "nosuid", "nodev", "noexec"] {
        assert!(said.contains(option), "{option}: {said}");
    }
}
