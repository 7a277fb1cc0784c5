//! CBOR (RFC 8949) in and out, by way of JSON trees.
//!
//! What is taken is what the reference takes: definite and indefinite lengths, tags (mostly ignored), text and byte
//! strings as keys; no duplicate keys, no invalid UTF-8 in text, no NaN and no infinities, no numbers beyond 64 bits. What
//! is given is deterministic: sorted keys, shortest numbers. Strings are byte strings, which need no proof of being
//! UTF-8, and bytes are tagged as to be shown in base64.
//!
//! Rule: KEP-4222; the reference's `cbor` serializer.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Number, Value};

use super::DecodeError;
use crate::schema::{Scalar, Shape};

/// How deep an item may nest.
const MAX_DEPTH: usize = 64;
/// Items of one list, and members of one map.
const MAX_ITEMS: usize = 1024;

/// Tag 55799 says of what it encloses that it is CBOR.
const SELF_DESCRIBED: [u8; 3] = [0xd9, 0xd9, 0xf7];
const TAG_TIME: u64 = 0;
const TAG_EPOCH: u64 = 1;
const TAG_BASE64URL: u64 = 21;
const TAG_BASE64: u64 = 22;
const TAG_BASE16: u64 = 23;
const BIGNUMS: [u64; 2] = [2, 3];

/// Reads one item; nothing may follow it.
pub fn parse_cbor(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut reader = Reader { rest: bytes };
    let value = reader.item(0)?;
    match reader.rest.len() {
        0 => Ok(value),
        more => {
            Err(refused(format!("{more} bytes of extraneous data starting at index {}", bytes.len() - more)))
        }
    }
}

fn refused(why: impl Into<String>) -> DecodeError {
    DecodeError::Cbor(why.into())
}

fn ended() -> DecodeError {
    refused("unexpected EOF")
}

struct Reader<'a> {
    rest: &'a [u8],
}

/// The first byte of an item, and the number that belongs to it; none for an indefinite length.
struct Head {
    major: u8,
    minor: u8,
    argument: Option<u64>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(ended)?;
        self.rest = rest;
        Ok(taken)
    }

    fn head(&mut self) -> Result<Head, DecodeError> {
        let first = self.take(1)?.first().copied().ok_or_else(ended)?;
        let (major, minor) = (first >> 5, first & 0x1f);
        let argument = match minor {
            0..=23 => Some(u64::from(minor)),
            24..=27 => {
                let bytes = self.take(1 << (minor - 24))?;
                Some(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
            }
            31 if matches!(major, 2..=5 | 7) => None,
            _ => return Err(refused(format!("invalid additional information {minor} for type {major}"))),
        };
        Ok(Head { major, minor, argument })
    }

    /// Whether an indefinite length ends here.
    fn is_break(&mut self) -> bool {
        match self.rest.split_first() {
            Some((0xff, rest)) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn item(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let head = self.head()?;
        match (head.major, head.argument) {
            (0, Some(number)) => i64::try_from(number)
                .map(Value::from)
                .map_err(|_| refused(format!("{number} overflows Go's int64"))),
            (1, Some(number)) => i64::try_from(number)
                .map(|number| Value::from(-1 - number))
                .map_err(|_| refused(format!("-1-{number} overflows Go's int64"))),
            (2, length) => self.bytes(2, length).map(|bytes| Value::String(text_of(bytes))),
            (3, length) => self.text(length).map(Value::String),
            (4, length) => self.list(length, self.deeper(depth)?),
            (5, length) => self.map(length, self.deeper(depth)?),
            (6, Some(tag)) => self.tagged(tag, self.deeper(depth)?),
            (7, argument) => self.simple(head.minor, argument),
            _ => Err(refused("unexpected \"break\" code")),
        }
    }

    fn deeper(&self, depth: usize) -> Result<usize, DecodeError> {
        if depth >= MAX_DEPTH {
            return Err(refused(format!("exceeded max nested level {MAX_DEPTH}")));
        }
        Ok(depth + 1)
    }

    /// The bytes of a string, joined where it comes in pieces.
    fn bytes(&mut self, major: u8, length: Option<u64>) -> Result<Vec<u8>, DecodeError> {
        if let Some(length) = length {
            return self.take(usize::try_from(length).map_err(|_| ended())?).map(<[u8]>::to_vec);
        }
        let mut all = Vec::new();
        while !self.is_break() {
            let head = self.head()?;
            match head.argument {
                Some(length) if head.major == major => {
                    all.extend_from_slice(self.take(usize::try_from(length).map_err(|_| ended())?)?);
                }
                _ => return Err(refused("wrong element type in indefinite-length string")),
            }
        }
        Ok(all)
    }

    fn text(&mut self, length: Option<u64>) -> Result<String, DecodeError> {
        String::from_utf8(self.bytes(3, length)?).map_err(|_| refused("invalid UTF-8 string"))
    }

    /// How often a container's items are read at most, and whether this many were announced.
    fn count(length: Option<u64>, what: &str) -> Result<Option<usize>, DecodeError> {
        let too_many = || refused(format!("exceeded max number of {what} {MAX_ITEMS} for CBOR"));
        let Some(length) = length else { return Ok(None) };
        usize::try_from(length).ok().filter(|count| *count <= MAX_ITEMS).map(Some).ok_or_else(too_many)
    }

    fn list(&mut self, length: Option<u64>, depth: usize) -> Result<Value, DecodeError> {
        let count = Self::count(length, "elements")?;
        let mut list = Vec::new();
        while count.map_or_else(|| !self.is_break(), |count| list.len() < count) {
            Self::count(Some(list.len() as u64 + 1), "elements")?;
            list.push(self.item(depth)?);
        }
        Ok(Value::Array(list))
    }

    fn map(&mut self, length: Option<u64>, depth: usize) -> Result<Value, DecodeError> {
        let count = Self::count(length, "key-value pairs")?;
        let mut map = Map::new();
        while count.map_or_else(|| !self.is_break(), |count| map.len() < count) {
            Self::count(Some(map.len() as u64 + 1), "key-value pairs")?;
            let head = self.head()?;
            let key = match head.major {
                2 => text_of(self.bytes(2, head.argument)?),
                3 => self.text(head.argument)?,
                _ => return Err(refused("a map key must be a string")),
            };
            if map.contains_key(&key) {
                let at = map.len();
                return Err(refused(format!("found duplicate map key {key:?} at map element index {at}")));
            }
            let value = self.item(depth)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }

    fn tagged(&mut self, tag: u64, depth: usize) -> Result<Value, DecodeError> {
        if BIGNUMS.contains(&tag) {
            return Err(refused("bignums are not supported"));
        }
        let is_bytes = self.rest.first().is_some_and(|first| first >> 5 == 2);
        if is_bytes && matches!(tag, TAG_BASE64URL | TAG_BASE64 | TAG_BASE16) {
            let head = self.head()?;
            let bytes = self.bytes(2, head.argument)?;
            return Ok(Value::String(match tag {
                TAG_BASE64URL => URL_SAFE_NO_PAD.encode(bytes),
                TAG_BASE64 => STANDARD.encode(bytes),
                _ => bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
            }));
        }
        let value = self.item(depth)?;
        match tag {
            TAG_TIME if !value.is_string() => Err(refused("tag number 0 must be followed by text string")),
            TAG_EPOCH => {
                let seconds =
                    value.as_i64().ok_or_else(|| refused("tag number 1 must be followed by a number"))?;
                let time = jiff::Timestamp::from_second(seconds).map_err(|e| refused(e.to_string()))?;
                Ok(Value::String(crate::meta::format_time(time)))
            }
            _ => Ok(value),
        }
    }

    fn simple(&mut self, minor: u8, argument: Option<u64>) -> Result<Value, DecodeError> {
        let number = match (minor, argument) {
            (20, _) => return Ok(Value::Bool(false)),
            (21, _) => return Ok(Value::Bool(true)),
            // what is undefined is not set, either
            (22 | 23, _) => return Ok(Value::Null),
            (25, Some(bits)) => half(bits as u16),
            (26, Some(bits)) => f64::from(f32::from_bits(bits as u32)),
            (27, Some(bits)) => f64::from_bits(bits),
            (31, _) => return Err(refused("unexpected \"break\" code")),
            (_, argument) => {
                return Err(refused(format!(
                    "simple value {} is not supported",
                    argument.unwrap_or_default()
                )));
            }
        };
        Number::from_f64(number)
            .map(Value::Number)
            .ok_or_else(|| refused("floating-point NaN and infinity are not supported"))
    }
}

/// A byte string where a text is expected.
fn text_of(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A number of 16 bits.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
    }
}

/// Prints a tree. With its shape, what is base64 in JSON becomes plain bytes.
pub fn encode_cbor(value: &Value, shape: Option<Shape<'_>>) -> Vec<u8> {
    let mut out = SELF_DESCRIBED.to_vec();
    write(&mut out, value, shape.unwrap_or(Shape::Any));
    out
}

fn head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    let bytes = argument.to_be_bytes();
    match argument {
        0..=23 => out.push(major | argument as u8),
        24..=0xff => out.extend([major | 24, argument as u8]),
        0x100..=0xffff => out.extend([&[major | 25], &bytes[6..]].concat()),
        0x1_0000..=0xffff_ffff => out.extend([&[major | 26], &bytes[4..]].concat()),
        _ => out.extend([&[major | 27], &bytes[..]].concat()),
    }
}

fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    head(out, 2, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn write(out: &mut Vec<u8>, value: &Value, shape: Shape<'_>) {
    match value {
        Value::Null => out.push(0xf6),
        Value::Bool(value) => out.push(if *value { 0xf5 } else { 0xf4 }),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) if number < 0 => head(out, 1, !number as u64),
            (_, Some(number)) => head(out, 0, number),
            _ => float(out, number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => {
            let bytes = matches!(shape, Shape::Scalar(Scalar::Bytes)).then(|| STANDARD.decode(text).ok());
            match bytes.flatten() {
                Some(bytes) => {
                    head(out, 6, TAG_BASE64);
                    string(out, &bytes);
                }
                None => string(out, text.as_bytes()),
            }
        }
        Value::Array(items) => {
            head(out, 4, items.len() as u64);
            let item = shape.item().unwrap_or(Shape::Any);
            items.iter().for_each(|value| write(out, value, item));
        }
        Value::Object(members) => {
            head(out, 5, members.len() as u64);
            // the order of encoded keys: short ones first, then by their bytes
            let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
            sorted.sort_by(|(a, _), (b, _)| (a.len(), a.as_bytes()).cmp(&(b.len(), b.as_bytes())));
            for (key, value) in sorted {
                string(out, key.as_bytes());
                write(out, value, member(shape, key));
            }
        }
    }
}

/// The shape of a member.
fn member<'a>(shape: Shape<'a>, key: &str) -> Shape<'a> {
    match shape {
        Shape::Message { ty, .. } => {
            let field = ty.get().fields.iter().find(|field| field.name == key);
            field.map_or(Shape::Any, |field| ty.shape_of(field))
        }
        Shape::Map { value, schema, .. } => schema.shape(value),
        _ => Shape::Any,
    }
}

/// The shortest form that holds the same number.
fn float(out: &mut Vec<u8>, number: f64) {
    let single = number as f32;
    if f64::from(single) != number {
        out.push(0xfb);
        return out.extend(number.to_be_bytes());
    }
    match to_half(single) {
        Some(bits) => {
            out.push(0xf9);
            out.extend(bits.to_be_bytes());
        }
        None => {
            out.push(0xfa);
            out.extend(single.to_be_bytes());
        }
    }
}

/// In 16 bits, where nothing is lost.
fn to_half(number: f32) -> Option<u16> {
    let bits = number.to_bits();
    let sign = (bits >> 16 & 0x8000) as u16;
    let (exponent, fraction) = ((bits >> 23 & 0xff) as i32 - 127, bits & 0x7f_ffff);
    let half_bits = match exponent {
        -127 if fraction == 0 => sign,
        -14..=15 => sign | ((exponent + 15) as u16) << 10 | (fraction >> 13) as u16,
        // too small for a leading one
        -24..=-15 => sign | ((fraction | 0x80_0000) >> (-exponent - 1)) as u16,
        _ => return None,
    };
    (half(half_bits) == f64::from(number)).then_some(half_bits)
}

/// An event of a watch: one item of a sequence, with the object's own item in it.
pub fn encode_cbor_event(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 32);
    head(&mut out, 5, 2);
    string(&mut out, b"type");
    string(&mut out, kind.as_bytes());
    string(&mut out, b"object");
    out.extend_from_slice(object);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
    }

    #[track_caller]
    fn check(bytes: &str, expected: Value) {
        assert_eq!(parse_cbor(&hex(bytes)).unwrap(), expected, "{bytes}");
    }

    #[track_caller]
    fn check_refused(bytes: &str, why: &str) {
        let refused = parse_cbor(&hex(bytes)).unwrap_err().to_string();
        assert!(refused.contains(why), "{bytes}: {refused}");
    }

    #[test]
    fn items_are_read_as_rfc_8949_shows_them() {
        check("00", json!(0));
        check("1818", json!(24));
        check("1a000f4240", json!(1_000_000));
        check("3903e7", json!(-1000));
        check("f93c00", json!(1.0));
        check("f90001", json!(5.960464477539063e-8));
        check("fa47c35000", json!(100_000.0));
        check("fb3ff199999999999a", json!(1.1));
        check("f4", json!(false));
        check("f7", Value::Null);
        check("6449455446", json!("IETF"));
        check("4449455446", json!("IETF"));
        check("d64401020304", json!("AQIDBA=="));
        check("d74401020304", json!("01020304"));
        check("c074323031332d30332d32315432303a30343a30305a", json!("2013-03-21T20:04:00Z"));
        check("c11a514b67b0", json!("2013-03-21T20:04:00Z"));
        check("83010203", json!([1, 2, 3]));
        check("9f018202039f0405ffff", json!([1, [2, 3], [4, 5]]));
        check("a26161016162820203", json!({"a": 1, "b": [2, 3]}));
        check("bf61610161629f0203ffff", json!({"a": 1, "b": [2, 3]}));
        check("7f657374726561646d696e67ff", json!("streaming"));
        check("d9d9f7a141610a", json!({"a": 10}));
    }

    #[test]
    fn what_has_no_place_in_an_object_is_refused() {
        check_refused("", "unexpected EOF");
        check_refused("a2616101616102", "duplicate map key \"a\"");
        check_refused("a2616101416102", "duplicate map key \"a\"");
        check_refused("a10102", "a map key must be a string");
        check_refused("f97e00", "NaN");
        check_refused("f97c00", "infinity");
        check_refused("1bffffffffffffffff", "overflows");
        check_refused("3bffffffffffffffff", "overflows");
        check_refused("c249010000000000000000", "bignums");
        check_refused("62c328", "invalid UTF-8");
        check_refused("0001", "extraneous data starting at index 1");
        check_refused("ff", "break");
        check_refused("1c", "additional information 28");
        check_refused("5f6161ff", "wrong element type");
        check_refused("9a7fffffff", "exceeded max number of elements");
        check_refused("5affffffff00", "unexpected EOF");
        check_refused(&"81".repeat(70), "exceeded max nested level");
        check_refused(&"c6".repeat(70), "exceeded max nested level");
        check_refused(&format!("9f{}", "00".repeat(1025)), "exceeded max number of elements");
    }

    #[test]
    fn what_is_given_is_the_shortest_and_reads_the_same() {
        let shown = |value: &Value| {
            let bytes = encode_cbor(value, None);
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        assert_eq!(
            shown(&json!({"bb": 1.5, "a": "x", "c": -500})),
            "d9d9f7a3416141784163390 1f3426262f93e00".replace(' ', "")
        );
        assert_eq!(shown(&json!(1.1)), "d9d9f7fb3ff199999999999a");
        assert_eq!(shown(&json!(65536.5)), "d9d9f7fa47800040");
        assert_eq!(shown(&json!(5.960464477539063e-8)), "d9d9f7f90001");
        assert_eq!(shown(&json!(0.00006103515625)), "d9d9f7f90400");
        let deep = json!({"a": [null, true, {"b": [1, -1, 1e300, "é", 255, 65535, 4_294_967_295_u64, i64::MAX, i64::MIN]}]});
        assert_eq!(parse_cbor(&encode_cbor(&deep, None)).unwrap(), deep);
    }

    #[test]
    fn bytes_are_bytes_where_the_type_is_known() {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "data": {"k": "AAH/"}});
        let bytes = encode_cbor(&secret, crate::codec::shape_of("v1", "Secret"));
        assert!(bytes.windows(6).any(|w| w == [0xa1, 0x41, b'k', 0xd6, 0x43, 0]), "{bytes:x?}");
        assert_eq!(parse_cbor(&bytes).unwrap(), secret);
    }
}
