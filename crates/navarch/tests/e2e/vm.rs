//! The same binary and tests on another kernel: pure cgroup v2 with AppArmor, WireGuard and IPVS.

use std::time::Duration;

use testkit::vm::Vm;

/// All that concerns nodes; `make test-vm` runs it.
#[test]
#[ignore = "takes long under emulation"]
fn all_tests_of_nodes_pass_on_cgroup_v2_with_apparmor() {
    for topic in [
        "wireguard::",
        "node::",
        "adoption::",
        "cni::",
        "commands::",
        "dual_stack::",
        "names::",
        "network::",
        "streams::",
        "volumes::",
    ] {
        println!("{topic}");
        let vm = Vm { limit: Duration::from_secs(1800), show: true, ..Vm::default() };
        vm.test(&[topic], &[]);
    }
}

/// Policies, services, load balancers and `reset` are the same where IPVS balances; `make test-vm` runs it.
#[test]
#[ignore = "takes long under emulation"]
fn the_network_is_the_same_with_ipvs() {
    let modules = &["ip_vs", "ip_vs_rr", "ip_vs_sh"];
    let vm = Vm { limit: Duration::from_secs(1800), modules, show: true, ..Vm::default() };
    vm.test(&["ipvs::"], &[]);
    let environment = &[("NAVARCH_TEST_ARGUMENTS", "--proxy-mode ipvs")];
    Vm { environment, ..vm }.test(&["network::", "dual_stack::"], &[]);
}
