//! Rules of devices, claims of them and slices.

use serde_json::{Value, json};

use super::rare::status_change;
use super::{ErrorList, named, refused};

fn claim(exactly: Value) -> Value {
    json!({"metadata": {"name": "c"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": exactly}]}}})
}

#[test]
fn the_devices_of_others_are_looked_at_from_namespaces_that_say_so() {
    const WHY: &str = "[]: Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace";
    let check = |kind: &str, object: &Value, labels: Value| {
        let mut errors = ErrorList::default();
        let rule = named("resource.k8s.io", kind).namespace_rule().expect("a rule");
        rule(&labels, object, &mut errors);
        if errors.is_empty() { String::new() } else { errors.aggregate() }
    };
    let plain = claim(json!({"deviceClassName": "d"}));
    let looks = claim(json!({"deviceClassName": "d", "adminAccess": true}));
    let template = json!({"spec": {"spec": looks["spec"]}});
    let label = json!({"resource.kubernetes.io/admin-access": "true"});
    assert_eq!(check("ResourceClaim", &plain, Value::Null), "");
    assert_eq!(check("ResourceClaim", &looks, label.clone()), "");
    assert_eq!(check("ResourceClaim", &looks, Value::Null), WHY);
    assert_eq!(check("ResourceClaimTemplate", &template, json!({"a": "b"})), WHY);
    assert_eq!(check("ResourceClaimTemplate", &template, label), "");
}

#[test]
fn the_status_of_an_allocated_device_is_whole() {
    let device = |more: Value| {
        let mut device = json!({"driver": "a.b", "pool": "p", "device": "d"});
        device.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
        device
    };
    let result = json!({"request": "r", "driver": "a.b", "pool": "p", "device": "d"});
    let allocation = json!({"devices": {"results": [result]}});
    let mut old = claim(json!({"deviceClassName": "d"}));
    old["status"] = json!({"allocation": allocation});
    let check = |devices: Value| {
        let status = json!({"allocation": allocation, "devices": devices});
        status_change("resource.k8s.io", "ResourceClaim", &old, status).1
    };
    let network = |ips: Value| device(json!({"networkData": {"interfaceName": "eth0", "ips": ips}}));
    assert_eq!(check(json!([network(json!(["10.0.0.1/24", "fd00::1/64"]))])), "");
    assert_eq!(
        check(json!([network(json!(["x", "fd00:0::1/64"])), device(json!({}))])),
        r#"[status.devices[0].networkData.ips[0]: Invalid value: "x": must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64), status.devices[0].networkData.ips[1]: Invalid value: "fd00:0::1/64": must be in canonical form ("fd00::1/64"), status.devices[1]: Duplicate value: {"Device":"d","Driver":"a.b","Pool":"p","ShareID":""}]"#
    );
    assert_eq!(
        check(json!([device(json!({"conditions": [{"type": "A", "status": "True", "reason": "R"}]}))])),
        "status.devices[0].conditions[0].lastTransitionTime: Required value: must be set"
    );
}

#[test]
fn errors_of_a_map_in_a_slice_name_the_key() {
    let slice = |device: Value| {
        let mut spec = json!({"driver": "a.b", "nodeName": "n", "pool": {"name": "p", "generation": 1,
            "resourceSliceCount": 1}, "devices": [{"name": "d"}]});
        spec["devices"][0].as_object_mut().unwrap().extend(device.as_object().cloned().unwrap());
        refused("resource.k8s.io", "ResourceSlice", json!({"metadata": {"name": "s"}, "spec": spec}))
    };
    assert_eq!(
        slice(json!({"attributes": {"/x": {"int": 1}}, "capacity": {"y/": {"value": "1"}}})),
        r#"[spec.devices[0].attributes[/x]: Invalid value: "": the domain must not be empty, spec.devices[0].capacity[y/]: Invalid value: "": the name must not be empty]"#
    );
    let policy = |policy: Value| {
        slice(
            json!({"allowMultipleAllocations": true, "capacity": {"m": {"value": "10", "requestPolicy": policy}}}),
        )
    };
    let at = "spec.devices[0].capacity[m].requestPolicy";
    assert_eq!(policy(json!({"default": "2", "validValues": ["1", "2"]})), "");
    assert_eq!(
        policy(json!({"default": "3", "validValues": ["1", "11", "1"]})),
        format!(
            r#"[{at}.validValues[2]: Invalid value: "1": values must be sorted in ascending order, {at}.validValues[1]: Invalid value: "11": option is larger than capacity value: 10, {at}.validValues[2]: Duplicate value: "1", {at}.validValues: Invalid value: "3": default value is not valid according to the requestPolicy]"#
        )
    );
    assert_eq!(
        policy(json!({"default": "1", "validRange": {"min": "2", "max": "9"}})),
        format!(r#"{at}.validRange.min: Invalid value: "1": default is less than min: 2"#)
    );
}
