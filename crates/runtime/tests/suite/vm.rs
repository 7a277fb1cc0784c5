//! The same tests on another kernel: pure cgroup v2 with AppArmor, and what only one with SELinux shows.

use std::time::Duration;

use testkit::vm::Vm;

#[test]
fn limits_and_confinement_hold_on_cgroup_v2_with_apparmor() {
    let vm = Vm::default();
    let one = ["exit_codes_and_signals_are_reported", "hidden_and_sealed_paths", "crun_is_told"];
    vm.test(&[&["apparmor::", "limits::", "security::"][..], &one].concat(), &[]);
}

#[test]
fn images_of_several_layers_are_volumes_before_linux_6_8() {
    Vm::default().test(&["an_image_as_a_volume"], &[]);
}

#[test]
fn containers_are_labelled_on_a_kernel_with_selinux() {
    let vm = Vm { selinux: true, ..Vm::default() };
    vm.test(&["selinux::", "--include-ignored"], &[]);
}

/// All of them; minutes. `make test-vm` runs it.
#[test]
#[ignore = "takes minutes under emulation"]
fn all_tests_pass_on_cgroup_v2_with_apparmor() {
    let vm = Vm { limit: Duration::from_secs(2400), show: true, ..Vm::default() };
    // figures are of this machine, not of an emulated one; that kernel shows pods' files to no users of their own
    vm.test(&[], &["figures::", "user_namespace::"]);
}
