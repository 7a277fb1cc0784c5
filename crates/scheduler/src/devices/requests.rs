//! What claims ask for, in one form, and whether a device is that.
use std::collections::BTreeMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{
    CapacityRequirements, Device, DeviceAttribute, DeviceCapacity, DeviceClass, DeviceRequest,
    DeviceSelector, DeviceTaint, DeviceToleration, ExactDeviceRequest,
};

use super::{Devices, Selector};

/// How many devices a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Count(usize),
    /// All that match.
    All,
}

/// One way to satisfy a request.
#[derive(Debug)]
pub(super) struct Want {
    /// The request's name, with that of the alternative (`gpu/big`).
    pub(super) name: String,
    /// Of the request alone.
    pub(super) base: String,
    pub(super) class: Arc<DeviceClass>,
    /// Those of class and request, with words for errors.
    pub(super) selectors: Vec<(String, Arc<dyn Selector>)>,
    pub(super) mode: Mode,
    pub(super) admin: bool,
    pub(super) tolerations: Vec<DeviceToleration>,
    /// What is asked of a device's capacity.
    pub(super) capacity: BTreeMap<String, Quantity>,
}

fn amounts(of: Option<&CapacityRequirements>) -> BTreeMap<String, Quantity> {
    let requests = of.and_then(|c| c.requests.as_ref()).into_iter().flatten();
    requests.filter_map(|(name, q)| Some((name.clone(), q.0.parse().ok()?))).collect()
}

fn compile(
    devices: &Devices,
    what: &str,
    list: Option<&Vec<DeviceSelector>>,
    into: &mut Vec<(String, Arc<dyn Selector>)>,
) -> Result<(), String> {
    for (i, selector) in list.into_iter().flatten().enumerate() {
        let expression = selector.cel.as_ref().map(|c| c.expression.as_str()).unwrap_or_default();
        let words = format!("{what}: selector #{i}");
        let compiled =
            devices.selector(expression).map_err(|e| format!("{words}: CEL compile error: {e}"))?;
        into.push((words, compiled));
    }
    Ok(())
}

/// Any device of a class.
pub(super) fn any_of(devices: &Devices, class: &str) -> Result<Want, String> {
    let exactly = ExactDeviceRequest { device_class_name: class.to_owned(), ..ExactDeviceRequest::default() };
    let request = DeviceRequest { exactly: Some(exactly), ..DeviceRequest::default() };
    alternatives(devices, "", &request)?.pop().ok_or_else(String::new)
}

/// The ways to satisfy a request, the best first.
pub(super) fn alternatives(
    devices: &Devices,
    claim: &str,
    request: &DeviceRequest,
) -> Result<Vec<Want>, String> {
    let want = |name: String,
                class_name: &str,
                selectors: Option<&Vec<DeviceSelector>>,
                mode: Option<&str>,
                count: Option<i64>| {
        let class = devices
            .classes
            .get(class_name)
            .ok_or_else(|| format!("request {name}: device class {class_name} does not exist"))?
            .clone();
        let mut compiled = Vec::new();
        compile(devices, &format!("class {class_name}"), class.spec.selectors.as_ref(), &mut compiled)?;
        compile(devices, &format!("claim {claim}, request {name}"), selectors, &mut compiled)?;
        let mode = match mode {
            Some("All") => Mode::All,
            _ => Mode::Count(usize::try_from(count.unwrap_or(1)).unwrap_or(0)),
        };
        let base = request.name.clone();
        let (tolerations, capacity) = (Vec::new(), BTreeMap::new());
        Ok::<_, String>(Want {
            name,
            base,
            class,
            selectors: compiled,
            mode,
            admin: false,
            tolerations,
            capacity,
        })
    };
    if let Some(exact) = &request.exactly {
        let mode = exact.allocation_mode.as_deref();
        let mut one = want(
            request.name.clone(),
            &exact.device_class_name,
            exact.selectors.as_ref(),
            mode,
            exact.count,
        )?;
        one.admin = exact.admin_access == Some(true);
        one.tolerations = exact.tolerations.clone().unwrap_or_default();
        one.capacity = amounts(exact.capacity.as_ref());
        return Ok(vec![one]);
    }
    let mut list = Vec::new();
    for sub in request.first_available.iter().flatten() {
        let (name, mode) = (format!("{}/{}", request.name, sub.name), sub.allocation_mode.as_deref());
        let mut one = want(name, &sub.device_class_name, sub.selectors.as_ref(), mode, sub.count)?;
        one.tolerations = sub.tolerations.clone().unwrap_or_default();
        one.capacity = amounts(sub.capacity.as_ref());
        list.push(one);
    }
    if list.is_empty() {
        return Err(format!("claim {claim}, request {}: unsupported request type", request.name));
    }
    Ok(list)
}

impl Want {
    /// Whether names of requests, as constraints and configurations list them, mean this one; an empty list means all.
    pub(super) fn is_meant(&self, names: Option<&Vec<String>>) -> bool {
        match names {
            None => true,
            Some(names) => names.is_empty() || names.iter().any(|n| *n == self.name || *n == self.base),
        }
    }

    /// Whether the selectors of class and request select the device.
    pub(super) fn selects(&self, driver: &str, device: &Device) -> Result<bool, String> {
        for (words, selector) in &self.selectors {
            match selector.matches(driver, device) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(format!("{words}: runtime error: {error}")),
            }
        }
        Ok(true)
    }

    /// Whether none of a device's taints is in the way.
    pub(super) fn tolerates<'a>(&self, taints: impl Iterator<Item = &'a DeviceTaint>) -> bool {
        let covers = |t: &DeviceToleration, taint: &DeviceTaint| {
            let text = |t: &Option<String>| t.clone().unwrap_or_default();
            let (key, effect) = (text(&t.key), text(&t.effect));
            (effect.is_empty() || effect == taint.effect)
                && match t.operator.as_deref() {
                    Some("Exists") => key.is_empty() || key == taint.key,
                    None | Some("" | "Equal") => key == taint.key && text(&t.value) == text(&taint.value),
                    _ => false,
                }
        };
        let mut hard = taints.filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
        hard.all(|taint| self.tolerations.iter().any(|t| covers(t, taint)))
    }

    /// What the request consumes of a device that is shared; `None`: it cannot be had.
    pub(super) fn consumes(&self, device: &Device) -> Option<BTreeMap<String, Quantity>> {
        let offered = device.capacity.as_ref();
        if self.capacity.keys().any(|name| offered.is_none_or(|o| !o.contains_key(name))) {
            return None;
        }
        let of = |(name, capacity): (&String, &DeviceCapacity)| {
            Some((name.clone(), portion(self.capacity.get(name), capacity)?))
        };
        offered.into_iter().flatten().map(of).collect()
    }

    /// Whether a device that is not shared has what is asked of it.
    pub(super) fn is_enough(&self, device: &Device) -> bool {
        self.capacity.iter().all(|(name, wanted)| {
            let capacity = device.capacity.as_ref().and_then(|c| c.get(name));
            capacity.and_then(|c| c.value.0.parse::<Quantity>().ok()).is_some_and(|has| has >= *wanted)
        })
    }
}

/// How much of a capacity is given for what is asked, by the capacity's policy; `None`: the policy has no such amount.
fn portion(asked: Option<&Quantity>, capacity: &DeviceCapacity) -> Option<Quantity> {
    let parse = |q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0.parse::<Quantity>().ok();
    let (whole, policy) = (parse(&capacity.value)?, capacity.request_policy.as_ref());
    let Some(asked) = asked else {
        return policy.and_then(|p| p.default.as_ref()).map_or(Some(whole), parse);
    };
    let Some(policy) = policy else { return Some(*asked) };
    if let Some(range) = &policy.valid_range {
        let least = parse(&range.min)?;
        let mut given = if *asked < least { least } else { *asked };
        if let Some(step) = range.step.as_ref().and_then(parse).filter(|s| s.value() > 0) {
            let over = given.minus(&least).value();
            let steps = (over + step.value() - 1) / step.value();
            given = least.plus(&Quantity::from_value(steps.checked_mul(step.value())?, least.format()));
        }
        let most = range.max.as_ref().and_then(parse);
        return most.is_none_or(|most| given <= most).then_some(given);
    }
    match &policy.valid_values {
        Some(values) if !values.is_empty() => values.iter().filter_map(parse).filter(|v| v >= asked).min(),
        _ => Some(*asked),
    }
}

/// An attribute by its full name; a name without a domain is the driver's.
pub(super) fn attribute<'a>(driver: &str, device: &'a Device, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.attributes.as_ref()?;
    attributes.get(name).or_else(|| match name.split_once('/') {
        Some((domain, short)) if domain == driver => attributes.get(short),
        _ => None,
    })
}
