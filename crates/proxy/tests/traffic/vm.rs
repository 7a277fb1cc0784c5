//! The same on a kernel that has IPVS.

use std::time::Duration;

use testkit::vm::Vm;

/// What balances, and its ways to choose.
const MODULES: &[&str] = &["ip_vs", "ip_vs_rr", "ip_vs_sh", "ip_vs_lc"];

#[test]
fn ipvs_carries_what_the_maps_carry() {
    let vm = Vm { limit: Duration::from_secs(900), modules: MODULES, ..Vm::default() };
    // of the maps and their time
    vm.test(&[], &["ten_thousand_services"]);
}
