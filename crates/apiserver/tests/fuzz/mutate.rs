//! Changes of inputs, by a generator of numbers that repeats: bytes, words and trees.

use serde_json::{Value, json};

/// A small generator of numbers.
pub struct Dice(u64);

/// What texts are broken with: pieces of selectors, paths, quantities, expressions and formats.
const WORDS: &[&str] = &[
    "",
    " ",
    ",",
    "=",
    "==",
    "!=",
    "!",
    " in (",
    " notin (",
    ")",
    "(",
    "a,b",
    "\\",
    "\\,",
    "\"",
    "'",
    "`",
    "é",
    "\u{feff}",
    "\0",
    "\u{10ffff}",
    "%",
    "%00",
    "%zz",
    "/",
    "//",
    "..",
    "./",
    "~0",
    "~1",
    "~",
    "-",
    "--",
    "_",
    "__",
    ".",
    "*",
    "$",
    "$patch",
    "metadata.name",
    "spec.nodeName",
    "0",
    "-1",
    "1e9",
    "1e999",
    "9223372036854775808",
    "18446744073709551616",
    "0x1",
    "1Ki",
    "1e3k",
    "NaN",
    "{}",
    "[]",
    "[",
    "{",
    "]",
    "}",
    "null",
    "true",
    "&a [*a]",
    "!!binary x",
    "- - -",
    "f:",
    "k:{}",
    "v:1",
    "i:0",
    ".",
    "object",
    "oldObject",
    "request",
    "params",
    "authorizer",
    "namespaceObject",
    "self",
    "oldSelf",
    "has(",
    "object.spec",
    "object.metadata.labels",
    ".all(x, ",
    ".exists(x, ",
    ".map(x, ",
    ".filter(x, ",
    ".exists_one(x, ",
    "x",
    "cel.bind(y, ",
    " && ",
    " || ",
    " ? ",
    " : ",
    " + ",
    " - ",
    " * ",
    " / ",
    " % ",
    " < ",
    " >= ",
    " in ",
    "size(",
    "string(",
    "int(",
    "double(",
    "bytes(",
    "duration(",
    "timestamp(",
    "dyn(",
    "type(",
    "matches(",
    ".matches('(a*)*b')",
    ".find('[')",
    ".findAll('.')",
    ".split(',')",
    ".replace('a', 'b')",
    ".format([1])",
    "'%s %d'",
    ".substring(-1)",
    ".indexOf('')",
    ".sum()",
    ".min()",
    ".sort()",
    ".flatten()",
    ".slice(1, 0)",
    "lists.range(9999999)",
    "quantity('1Gi')",
    "url('http://[')",
    "ip('::1')",
    "cidr('10.0.0.0/33')",
    "semver('1.0.0')",
    "optional.of(",
    "optional.none()",
    ".?x",
    "[?0]",
    ".orValue(",
    "Object{",
    "JSONPatch{op: 'add'}",
    "0u",
    "1.0",
    "-9223372036854775808",
    "b'\\x00'",
    "r'\\'",
    "'''",
    "[1, 2]",
    "{'a': 1}",
    "sets.contains([1], ",
    "format.named('dns1123Label')",
    "2024-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "1h",
    "1ns",
    "999999999h",
    "10.0.0.1",
    "::ffff:1.2.3.4",
    "a.example.com/b",
    "sha256:",
];

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 33) as usize % limit
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// Breaks bytes: single ones, runs of them, words put in, parts of themselves repeated.
    pub fn bytes(&mut self, data: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(data.len() + 1);
            let end = (at + self.below(16)).min(data.len());
            match self.below(6) {
                0 if at < data.len() => data[at] = self.next() as u8,
                1 if at < data.len() => data[at] ^= 1 << self.below(8),
                2 => drop(data.drain(at..end)),
                3 => {
                    let part = data[at..end].repeat(1 + self.below(4));
                    data.splice(at..at, part);
                }
                4 => data.truncate(at),
                _ => {
                    let word = self.pick(WORDS).as_bytes();
                    data.splice(at..at, word.iter().copied());
                }
            }
        }
    }

    /// Breaks a text, which stays one.
    pub fn text(&mut self, text: &str) -> String {
        let mut chars: Vec<char> = text.chars().collect();
        for _ in 0..=self.below(3) {
            let at = self.below(chars.len() + 1);
            let end = (at + self.below(12)).min(chars.len());
            match self.below(5) {
                0 => drop(chars.drain(at..end)),
                1 => {
                    let part = chars[at..end].repeat(1 + self.below(3));
                    chars.splice(at..at, part);
                }
                2 if self.once_in(100) => {
                    let part = chars[at..end].repeat(2_000);
                    chars.splice(at..at, part);
                }
                _ => {
                    let word = self.pick(WORDS);
                    let to = if self.once_in(2) { at } else { end };
                    chars.splice(at..to, word.chars());
                }
            }
        }
        chars.into_iter().take(50_000).collect()
    }

    /// Breaks a tree: values become what does not belong there, members go, come, move or take others' names.
    pub fn tree(&mut self, value: &mut Value, donors: &[Value]) {
        for _ in 0..=self.below(3) {
            self.one(value, donors);
        }
    }

    fn one(&mut self, value: &mut Value, donors: &[Value]) {
        match value {
            Value::Object(map) if !map.is_empty() && !self.once_in(6) => {
                let keys: Vec<String> = map.keys().cloned().collect();
                let key = self.pick(&keys).clone();
                match self.below(12) {
                    0 => drop(map.remove(&key)),
                    1 => {
                        let taken = map.remove(&key).unwrap_or_default();
                        let name = if self.once_in(2) { self.text(&key) } else { self.pick(&keys).clone() };
                        map.insert(name, taken);
                    }
                    2 => {
                        let name = self.pick(WORDS);
                        let strange = self.strange(donors);
                        map.insert((*name).to_owned(), strange);
                    }
                    _ => {
                        if let Some(member) = map.get_mut(&key) {
                            self.one(member, donors);
                        }
                    }
                }
            }
            Value::Array(list) if !list.is_empty() && !self.once_in(6) => {
                let at = self.below(list.len());
                match self.below(8) {
                    0 => drop(list.remove(at)),
                    1 => {
                        let again = list[at].clone();
                        list.push(again);
                    }
                    2 => list.reverse(),
                    _ => self.one(&mut list[at], donors),
                }
            }
            Value::String(text) if !self.once_in(3) => *text = self.text(text),
            Value::Number(number) if !self.once_in(3) => {
                let n = number.as_i64().unwrap_or_default();
                let near = [n.wrapping_add(1), n.wrapping_neg(), n.wrapping_mul(1000), i64::MAX, i64::MIN, 0];
                *value = json!(self.pick(&near));
            }
            place => *place = self.strange(donors),
        }
    }

    fn strange(&mut self, donors: &[Value]) -> Value {
        match self.below(12) {
            0 => Value::Null,
            1 => json!(self.once_in(2)),
            2 => json!(*self.pick(&[i64::MAX, i64::MIN, 0, -1, 65_536, 4_294_967_296])),
            3 => json!(*self.pick(&[1e300, -0.0, 0.5, u64::MAX as f64])),
            4 => json!([]),
            5 => json!({}),
            6 => json!([null, 1, {}, "a", [["x"]]]),
            7 => (0..self.below(90)).fold(json!("deep"), |inner, at| {
                if at % 2 == 0 { json!([inner]) } else { json!({"a": inner}) }
            }),
            8 => json!(self.pick(WORDS)),
            9 => json!(self.pick(WORDS).repeat(1 + self.below(300))),
            _ => self.part_of(donors),
        }
    }

    /// Something from somewhere else.
    fn part_of(&mut self, donors: &[Value]) -> Value {
        let mut part = self.pick(donors);
        while !self.once_in(4) {
            let below: Vec<&Value> = match part {
                Value::Object(map) => map.values().collect(),
                Value::Array(list) => list.iter().collect(),
                _ => break,
            };
            if below.is_empty() {
                break;
            }
            part = below[self.below(below.len())];
        }
        part.clone()
    }
}
