//! `jsonpatch.escapeKey`: a key as a part of a JSON pointer (RFC 6901).

use super::super::overloads::Declared;
use super::super::value::Value;
use super::text;

pub(in super::super) static FUNCTIONS: &[Declared] = &[Declared {
    name: "jsonpatch.escapeKey",
    signatures: "(string):string",
    body: |_, args| Ok(Value::text(text(args, 0)?.replace('~', "~0").replace('/', "~1"))),
}];
