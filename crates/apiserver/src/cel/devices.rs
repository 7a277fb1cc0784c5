//! Selectors of devices: `device.driver == "a.example.com" && device.attributes["a.example.com"].model == "b"`.
//!
//! Rule: Kubernetes documentation, "Dynamic Resource Allocation"; the fields of `CELDeviceSelector`.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};

use super::Program;
use super::check::Env;
use super::decl::Decl;
use super::estimate::estimate;
use super::eval::{Error, Scope};
use super::library::{opaque_name, quantity, semver};
use super::types::Type;
use super::value::{Key, Map, Value};

/// What a selector may cost at worst.
const LIMIT: u64 = 1_000_000;
/// Attributes and capacities of one device.
const MOST: u64 = 32;
/// Bytes of the name of a driver.
const DRIVER: u64 = 63;

/// Why a selector is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is wrong, and how.
    Wrong(String),
    /// It may cost too much.
    TooComplex,
}

/// Checks a selector.
///
/// # Errors
///
/// Why it cannot be used.
pub fn check(source: &str) -> Result<(), Refusal> {
    Selector::compile(source).map(drop)
}

fn compiled(source: &str) -> Result<Program, Refusal> {
    static DEVICE: LazyLock<Decl> = LazyLock::new(device);
    let mut env = Env { bindings: true, ..Env::default() };
    env.declare("device", DEVICE.ty());
    let program = Program::compile(&env, source).map_err(Refusal::Wrong)?;
    if !program.ty().is_bool() && !program.ty().is_dyn() {
        let why = format!("must evaluate to bool or the unknown type, not {}", program.ty());
        return Err(Refusal::Wrong(why));
    }
    if estimate(&program.expr, &["device"], &DEVICE).max > LIMIT {
        Err(Refusal::TooComplex)
    } else {
        Ok(program)
    }
}

/// A selector that was checked.
#[derive(Debug, Clone)]
pub struct Selector {
    program: Program,
}

impl Selector {
    /// Reads and checks a selector.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    pub fn compile(source: &str) -> Result<Self, Refusal> {
        compiled(source).map(|program| Self { program })
    }

    /// Whether it selects a device of the driver.
    ///
    /// # Errors
    ///
    /// Why it says nothing of this device.
    pub fn matches(&self, driver: &str, device: &Device) -> Result<bool, Error> {
        let scope = Scope::new(vec![("device", value_of(driver, device)?)]);
        match scope.eval(&self.program.expr).0? {
            Value::Bool(yes) => Ok(yes),
            other => Err(Error::new(format!("expression returned {}, expected bool", other.type_name()))),
        }
    }
}

/// What expressions see of a device. Names without a domain are of the driver's.
fn value_of(driver: &str, device: &Device) -> Result<Value<'static>, Error> {
    let mut attributes = BTreeMap::new();
    for (name, attribute) in device.attributes.iter().flatten() {
        put(&mut attributes, driver, name, attribute_value(attribute)?);
    }
    let mut capacity = BTreeMap::new();
    for (name, amount) in device.capacity.iter().flatten() {
        put(&mut capacity, driver, name, quantity::amount_of(&amount.value.0)?);
    }
    let domains = |of: BTreeMap<Key, BTreeMap<Key, Value<'static>>>| {
        let maps = of.into_iter().map(|(domain, names)| (domain, Value::Map(Map::made(names))));
        Value::Map(Map::Domains(Arc::new(maps.collect())))
    };
    let fields = [
        ("driver", Value::text(driver)),
        ("attributes", domains(attributes)),
        ("capacity", domains(capacity)),
        ("allowMultipleAllocations", Value::Bool(device.allow_multiple_allocations == Some(true))),
    ];
    Ok(Value::Map(Map::made(
        fields.into_iter().map(|(name, value)| (Key::String(name.into()), value)).collect(),
    )))
}

fn put(
    to: &mut BTreeMap<Key, BTreeMap<Key, Value<'static>>>,
    driver: &str,
    name: &str,
    value: Value<'static>,
) {
    let (domain, name) = name.split_once('/').unwrap_or((driver, name));
    to.entry(Key::String(domain.into())).or_default().insert(Key::String(name.into()), value);
}

fn attribute_value(of: &DeviceAttribute) -> Result<Value<'static>, Error> {
    let list = |items: Vec<Value<'static>>| Ok(Value::list(items));
    match of {
        DeviceAttribute { bool: Some(b), .. } => Ok(Value::Bool(*b)),
        DeviceAttribute { int: Some(i), .. } => Ok(Value::Int(*i)),
        DeviceAttribute { string: Some(s), .. } => Ok(Value::text(s.as_str())),
        DeviceAttribute { version: Some(v), .. } => semver::version(v),
        DeviceAttribute { bools: Some(l), .. } => list(l.iter().map(|b| Value::Bool(*b)).collect()),
        DeviceAttribute { ints: Some(l), .. } => list(l.iter().map(|i| Value::Int(*i)).collect()),
        DeviceAttribute { strings: Some(l), .. } => list(l.iter().map(|s| Value::text(s.as_str())).collect()),
        DeviceAttribute { versions: Some(l), .. } => {
            list(l.iter().map(|v| semver::version(v)).collect::<Result<_, _>>()?)
        }
        _ => Err(Error::new("unsupported attribute value")),
    }
}

/// Attributes and capacities are kept by domain, then by name.
fn device() -> Decl {
    let by_domain = |value: Decl| Decl::map(Decl::map(value).of_max(MOST)).of_max(MOST);
    let quantity = Decl::scalar(Type::Opaque(opaque_name("Quantity")));
    Decl::object(
        "kubernetes.DRADevice",
        vec![
            ("driver", Decl::scalar(Type::String).of_max(DRIVER)),
            ("attributes", by_domain(Decl::scalar(Type::Dyn))),
            ("capacity", by_domain(quantity)),
            ("allowMultipleAllocations", Decl::scalar(Type::Bool)),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_name_attributes_by_domain() {
        for good in [
            r#"device.driver == "a.example.com""#,
            r#"device.attributes["a.example.com"].model == "b""#,
            r#"cel.bind(a, device.attributes["a.example.com"], a.x && a.y)"#,
            r#"device.capacity["a.example.com"].memory.compareTo(quantity("1Gi")) >= 0"#,
            r#"device.attributes["a.example.com"].version.isGreaterThan(semver("1.0.0"))"#,
            "device.attributes['a'].flag",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_selector_must_be_a_condition_that_is_cheap_enough() {
        let wrong = |source: &str| match check(source) {
            Err(Refusal::Wrong(why)) => why,
            other => format!("{other:?}"),
        };
        assert_eq!(wrong("1"), "must evaluate to bool or the unknown type, not int");
        assert!(wrong("device.zz").contains("undefined field 'zz'"));
        assert!(wrong("other.x").contains("undeclared reference to 'other'"));
        let all = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, d == a))))";
        assert_eq!(check(all), Err(Refusal::TooComplex));
    }

    #[test]
    fn selectors_read_attributes_and_capacity_of_a_device() {
        let device: Device = serde_json::from_value(serde_json::json!({
            "name": "gpu-0",
            "attributes": {"model": {"string": "a100"}, "other.example.com/fast": {"bool": true}, "version": {"version": "1.2.3"},
                "cores": {"int": 8}},
            "capacity": {"memory": {"value": "40Gi"}},
        }))
        .expect("device");
        let says = |source: &str| {
            let selector =
                Selector::compile(source).unwrap_or_else(|refusal| panic!("{source}: {refusal:?}"));
            selector.matches("gpu.example.com", &device).map_err(|e| e.to_string())
        };
        for (source, said) in [
            (r#"device.driver == "gpu.example.com""#, Ok(true)),
            (r#"device.attributes["gpu.example.com"].model == "a100""#, Ok(true)),
            (
                r#"device.attributes["other.example.com"].fast && device.attributes["gpu.example.com"].cores > 4"#,
                Ok(true),
            ),
            (r#"device.attributes["gpu.example.com"].version.isGreaterThan(semver("1.10.0"))"#, Ok(false)),
            (r#"device.capacity["gpu.example.com"].memory.compareTo(quantity("20Gi")) > 0"#, Ok(true)),
            (r#""nowhere" in device.attributes"#, Ok(false)),
            (r#""x" in device.attributes["nowhere"]"#, Ok(false)),
            (r#"has(device.attributes["nowhere"].x)"#, Ok(false)),
            (r#"device.attributes["nowhere"].x == 1"#, Err("no such key: x".to_owned())),
            ("device.allowMultipleAllocations", Ok(false)),
        ] {
            assert_eq!(says(source), said, "{source}");
        }
    }
}
