//! Selectors of devices: `device.driver == "a.example.com" && device.attributes["a.example.com"].model == "b"`.
//!
//! Rule: Kubernetes documentation, "Dynamic Resource Allocation"; the fields of `CELDeviceSelector`.

use std::sync::LazyLock;

use super::Program;
use super::check::Env;
use super::decl::Decl;
use super::estimate::estimate;
use super::library::opaque_name;
use super::types::Type;

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
    static DEVICE: LazyLock<Decl> = LazyLock::new(device);
    let mut env = Env { bindings: true, ..Env::default() };
    env.declare("device", DEVICE.ty());
    let program = Program::compile(&env, source).map_err(Refusal::Wrong)?;
    if !program.ty().is_bool() && !program.ty().is_dyn() {
        let why = format!("must evaluate to bool or the unknown type, not {}", program.ty());
        return Err(Refusal::Wrong(why));
    }
    if estimate(&program.expr, &["device"], &DEVICE).max > LIMIT { Err(Refusal::TooComplex) } else { Ok(()) }
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
}
