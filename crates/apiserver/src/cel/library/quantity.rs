//! Kubernetes' amounts: `quantity('1.5Gi').isGreaterThan(quantity('1G'))`.

use api::quantity::{Format, Quantity};

use super::super::eval::Error;
use super::super::overloads::Declared;
use super::super::value::Value;
use super::{Opaque, made, opaque, text};

/// An amount as a value.
pub(in super::super) fn amount_of<'a>(given: &str) -> Result<Value<'a>, Error> {
    let quantity: Result<Quantity, api::quantity::QuantityError> = given.parse();
    quantity.map(|q| made(Opaque::Quantity(q))).map_err(|error| Error::new(error.to_string()))
}

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "quantity",
        signatures: "(string):Quantity",
        body: |_, args| match text(args, 0)?.parse() {
            Ok(quantity) => Ok(made(Opaque::Quantity(quantity))),
            Err(error) => {
                let error: api::quantity::QuantityError = error;
                Err(Error::new(error.to_string()))
            }
        },
    },
    Declared {
        name: "isQuantity",
        signatures: "(string):bool",
        body: |_, args| Ok(Value::Bool(text(args, 0)?.parse::<Quantity>().is_ok())),
    },
    Declared {
        name: "sign",
        signatures: "Quantity.():int",
        body: |_, args| Ok(Value::Int(i64::from(of(args, 0)?.signum()))),
    },
    Declared {
        name: "isInteger",
        signatures: "Quantity.():bool",
        body: |_, args| {
            let quantity = of(args, 0)?;
            Ok(Value::Bool(whole(quantity).is_some()))
        },
    },
    Declared {
        name: "asInteger",
        signatures: "Quantity.():int",
        body: |_, args| {
            whole(of(args, 0)?).map(Value::Int).ok_or_else(|| Error::new("cannot convert value to integer"))
        },
    },
    Declared {
        name: "asApproximateFloat",
        signatures: "Quantity.():double",
        body: |_, args| Ok(Value::Double(of(args, 0)?.to_f64())),
    },
    Declared {
        name: "add",
        signatures: "Quantity.(Quantity):Quantity Quantity.(int):Quantity",
        body: |_, args| Ok(made(Opaque::Quantity(of(args, 0)?.plus(&amount(args)?)))),
    },
    Declared {
        name: "sub",
        signatures: "Quantity.(Quantity):Quantity Quantity.(int):Quantity",
        body: |_, args| Ok(made(Opaque::Quantity(of(args, 0)?.minus(&amount(args)?)))),
    },
    Declared {
        name: "isLessThan",
        signatures: "Quantity.(Quantity):bool",
        body: |_, args| Ok(Value::Bool(of(args, 0)? < of(args, 1)?)),
    },
    Declared {
        name: "isGreaterThan",
        signatures: "Quantity.(Quantity):bool",
        body: |_, args| Ok(Value::Bool(of(args, 0)? > of(args, 1)?)),
    },
    Declared {
        name: "compareTo",
        signatures: "Quantity.(Quantity):int",
        body: |_, args| Ok(Value::Int(of(args, 0)?.cmp(of(args, 1)?) as i64)),
    },
];

fn of<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v Quantity, Error> {
    match opaque(args, at)? {
        Opaque::Quantity(quantity) => Ok(quantity),
        _ => Err(Error::no_overload()),
    }
}

/// The second argument: another quantity or a whole number.
fn amount(args: &[Value<'_>]) -> Result<Quantity, Error> {
    match args.get(1) {
        Some(Value::Int(i)) => Ok(Quantity::from_value(*i, Format::DecimalSi)),
        _ => of(args, 1).cloned(),
    }
}

fn whole(quantity: &Quantity) -> Option<i64> {
    let value = quantity.value();
    (Quantity::from_value(value, Format::DecimalSi) == *quantity).then_some(value)
}
