//! Optional values: what may or may not be there.
//!
//! Rule: cel-go's `OptionalTypes`. `or` and `orValue` compute their argument only where it is needed, so the evaluator
//! does them itself; they stand here for the check.

use std::sync::Arc;

use super::super::eval::{Error, member};
use super::super::overloads::Declared;
use super::super::value::Value;

pub(in super::super) static FUNCTIONS: &[Declared] = &[
    Declared {
        name: "optional.of",
        signatures: "(A):optional(A)",
        body: |_, args| match args {
            [v] => Ok(Value::some(v.clone())),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "optional.ofNonZeroValue",
        signatures: "(A):optional(A)",
        body: |_, args| match args {
            [v] if v.is_zero() => Ok(Value::Optional(None)),
            [v] => Ok(Value::some(v.clone())),
            _ => Err(Error::no_overload()),
        },
    },
    Declared { name: "optional.none", signatures: "():optional(A)", body: |_, _| Ok(Value::Optional(None)) },
    Declared {
        name: "hasValue",
        signatures: "optional(A).():bool",
        body: |_, args| match args {
            [Value::Optional(of)] => Ok(Value::Bool(of.is_some())),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "value",
        signatures: "optional(A).():A",
        body: |_, args| match args {
            [Value::Optional(Some(of))] => Ok((**of).clone()),
            [Value::Optional(None)] => Err(Error::new("optional.none() dereference")),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "or",
        signatures: "optional(A).(optional(A)):optional(A)",
        body: |_, _| Err(Error::no_overload()),
    },
    Declared { name: "orValue", signatures: "optional(A).(A):A", body: |_, _| Err(Error::no_overload()) },
    Declared {
        name: "_?._",
        signatures: "(dyn,string):optional(dyn)",
        body: |_, args| match args {
            [v, key] => chosen(v, key),
            _ => Err(Error::no_overload()),
        },
    },
    Declared {
        name: "_[?_]",
        signatures: "(list(A),int):optional(A) (optional(list(A)),int):optional(A) (map(A,B),A):optional(B) \
            (optional(map(A,B)),A):optional(B)",
        body: |_, args| match args {
            [v, key] => chosen(v, key),
            _ => Err(Error::no_overload()),
        },
    },
];

fn chosen<'a>(value: &Value<'a>, key: &Value<'_>) -> Result<Value<'a>, Error> {
    Ok(Value::Optional(match value {
        Value::Optional(None) => None,
        Value::Optional(Some(of)) => member(of, key).ok().map(Arc::new),
        value => member(value, key).ok().map(Arc::new),
    }))
}
