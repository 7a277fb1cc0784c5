//! `navarch up`, `down`, `reset` and what they say when something is missing.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use testkit::NetNs;

use crate::NAVARCH;

fn navarch(host: &NetNs, home: &Path, line: &str) -> Output {
    let mut command = Command::new(NAVARCH);
    command.args(line.split_whitespace()).arg("--data-dir").arg(home.join("data"));
    command.env("HOME", home).env_remove("KUBECONFIG");
    host.enter(&mut command);
    command.output().unwrap()
}

/// What a successful command printed.
#[track_caller]
fn said(output: &Output) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn up_adds_a_context_down_stops_and_reset_removes_both() {
    let host = NetNs::new().unwrap();
    let home = tempfile::tempdir().unwrap();
    let kubeconfig = home.path().join(".kube/config");
    std::fs::create_dir(home.path().join(".kube")).unwrap();
    let other = "apiVersion: v1\nkind: Config\ncurrent-context: mine\ncontexts:\n- name: mine\n  context: {cluster: c, \
        user: u}\nclusters:\n- name: c\n  cluster: {server: 'https://c'}\nusers:\n- name: u\n  user: {token: t}\n";
    std::fs::write(&kubeconfig, other).unwrap();

    let up = said(&navarch(&host, home.path(), "up"));
    assert!(up.contains("ready") && up.contains("--context navarch"), "{up}");
    let merged = std::fs::read_to_string(&kubeconfig).unwrap();
    assert!(merged.contains("current-context: mine") && merged.contains("name: navarch"), "{merged}");
    let again = said(&navarch(&host, home.path(), "up"));
    assert!(again.contains("runs already"), "{again}");

    let second = navarch(&host, home.path(), "server");
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && text.contains("navarch down"), "{text}");

    assert!(said(&navarch(&host, home.path(), "down")).contains("stopped"));
    assert!(said(&navarch(&host, home.path(), "down")).contains("no server runs"));
    let reset = said(&navarch(&host, home.path(), "reset"));
    assert!(reset.contains("left: nothing"), "{reset}");
    let left = std::fs::read_to_string(&kubeconfig).unwrap();
    assert!(left.contains("name: mine") && !left.contains("navarch"), "{left}");
    assert!(said(&navarch(&host, home.path(), "reset")).contains("nothing is left"));
}

#[test]
fn a_taken_port_is_named_with_what_to_do() {
    let host = NetNs::new().unwrap();
    let home = tempfile::tempdir().unwrap();
    let taken = host.run(|| std::net::TcpListener::bind("0.0.0.0:6443")).unwrap().unwrap();
    let output = navarch(&host, home.path(), "server --disable controllers,scheduler,agent,proxy,dns");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("0.0.0.0:6443") && text.contains("--listen"), "{text}");
    drop(taken);
    said(&navarch(&host, home.path(), "reset"));
}

#[test]
fn without_root_the_parts_that_need_it_are_named() {
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    // a copy where nobody may execute it
    let binary = home.path().join("navarch");
    testkit::run(Command::new("cp").arg(NAVARCH).arg(&binary)).unwrap();
    let mut command = Command::new(&binary);
    command.arg("server").arg("--data-dir").arg(home.path().join("data")).uid(65534).gid(65534);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("root is needed") && text.contains("--disable agent,proxy,dns"), "{text}");
}

#[test]
fn reset_refuses_a_folder_that_holds_no_cluster() {
    let host = NetNs::new().unwrap();
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("data")).unwrap();
    std::fs::write(home.path().join("data/precious"), "x").unwrap();
    let output = navarch(&host, home.path(), "reset");
    assert!(!output.status.success());
    assert!(home.path().join("data/precious").exists());
}
