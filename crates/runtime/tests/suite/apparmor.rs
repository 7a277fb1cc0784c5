//! AppArmor, where the kernel has it, and what is said where it has not.

use std::fs;

use cri::v1::{self, security_profile::ProfileType};

use crate::support::{Node, output, security, shell};

const POLICY: &str = "/sys/kernel/security/apparmor";

fn enabled() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|value| value.starts_with(b"Y"))
}

/// Tells its profile, and tries what the default one denies to root with all capabilities.
fn confined(name: &str, profile: Option<(ProfileType, &str)>) -> v1::ContainerConfig {
    let script = "cat /proc/self/attr/current; mkdir -p /tmp/m; mount -t tmpfs x /tmp/m 2>/dev/null && echo mounted; exit 0";
    let mut config = shell(name, script);
    let context = security(&mut config);
    context.capabilities =
        Some(v1::Capability { add_capabilities: vec!["SYS_ADMIN".to_owned()], ..Default::default() });
    context.apparmor = profile.map(|(kind, name)| v1::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: name.to_owned(),
    });
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_confine_containers_and_what_is_run_in_them() {
    let mut node = Node::start().await;
    if !enabled() {
        let sandbox = node.sandbox("none").await;
        let config = confined("none", Some((ProfileType::Localhost, "mine")));
        let error = node.create(&sandbox, config).await.unwrap_err();
        assert!(error.message().contains("this node's kernel has no AppArmor"), "{error}");
        return;
    }
    let default = "navarch-default (enforce)\n";
    let free = "unconfined\nmounted\n";
    for (name, profile, expected) in [
        ("unsaid", None, default),
        ("default", Some((ProfileType::RuntimeDefault, "")), default),
        ("free", Some((ProfileType::Unconfined, "")), free),
        ("named", Some((ProfileType::Localhost, "navarch-default")), default),
    ] {
        let (status, log) = node.script(confined(name, profile)).await;
        assert_eq!((output(&log).as_str(), status.exit_code), (expected, 0), "{name}");
    }
    let mut privileged = confined("privileged", None);
    security(&mut privileged).privileged = true;
    let sandbox_config = {
        let mut config = node.sandbox_config("privileged");
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
        config
    };
    let sandbox = node.run_sandbox(sandbox_config).await;
    let id = node.run(&sandbox, privileged).await;
    let status = node.ended(&id).await;
    assert_eq!(output(&crate::support::log(&status)), free);

    // what is run in a container later is confined as it is
    let sandbox = node.sandbox("exec").await;
    let id = node.run(&sandbox, shell("main", "sleep 1000")).await;
    assert_eq!(node.exec_text(&id, "cat /proc/self/attr/current").await, default);
    let error = node
        .create(&sandbox, confined("missing", Some((ProfileType::Localhost, "nobodys"))))
        .await
        .unwrap_err();
    assert_eq!(error.message(), "apparmor profile not found nobodys");
    // another node's end does not take the profile from under it
    drop(Node::empty().await);
    let profiles = || fs::read_to_string(format!("{POLICY}/profiles")).unwrap();
    assert!(profiles().contains("navarch-default (enforce)"), "{}", profiles());
    assert_eq!(node.exec_text(&id, "cat /proc/self/attr/current").await, default);
}
