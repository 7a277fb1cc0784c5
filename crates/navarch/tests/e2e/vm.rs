//! The same binary and tests on another kernel: pure cgroup v2 with AppArmor and WireGuard.

use std::time::Duration;

use testkit::vm::Vm;

#[test]
fn pods_are_bounded_on_cgroup_v2_and_nodes_encrypt() {
    let vm = Vm { limit: Duration::from_secs(400), ..Vm::default() };
    vm.test(&["the_limits_of_a_pod_hold", "nodes_encrypt_what_their_pods_send"], &[]);
}

/// All that concerns nodes; `make test-vm` runs it.
#[test]
#[ignore = "takes long under emulation"]
fn all_tests_of_nodes_pass_on_cgroup_v2_with_apparmor() {
    for topic in [
        "adoption::",
        "cni::",
        "commands::",
        "dual_stack::",
        "names::",
        "network::",
        "node::",
        "streams::",
        "volumes::",
    ] {
        println!("{topic}");
        let vm = Vm { limit: Duration::from_secs(1800), show: true, ..Vm::default() };
        vm.test(&[topic], &[]);
    }
}
