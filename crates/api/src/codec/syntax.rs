//! Why a text is no JSON, in the words the API's clients know.
//!
//! Runs only after the fast parser has refused the text, so it may be slow; it must be exact: the message names the first
//! offending character and what was expected there.

/// How deep documents may nest.
const MAX_DEPTH: usize = 10_000;

/// The reason, or none where this scanner finds nothing wrong.
pub(super) fn explain(text: &[u8]) -> Option<String> {
    let mut scanner = Scanner { text, at: 0 };
    match scanner.document() {
        Ok(()) => None,
        Err(Stop::End) => Some("unexpected end of JSON input".to_owned()),
        Err(Stop::Depth) => Some("exceeded max depth".to_owned()),
        Err(Stop::Char(c, context)) => Some(format!("invalid character {} {context}", quote(c))),
    }
}

enum Stop {
    End,
    Depth,
    Char(u8, String),
}

struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
}

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), Stop> {
        // Open containers, true for objects. Iterative, because the depth is the client's choice.
        let mut open: Vec<bool> = Vec::new();
        loop {
            let mut is_closed = self.begin_value(&mut open)?;
            loop {
                if !is_closed {
                    break;
                }
                self.skip_space();
                let Some(in_object) = open.last().copied() else {
                    return match self.peek() {
                        None => Ok(()),
                        Some(c) => Err(Stop::Char(c, "after top-level value".into())),
                    };
                };
                match (self.next()?, in_object) {
                    (b',', true) => {
                        self.key("looking for beginning of object key string")?;
                        is_closed = false;
                    }
                    (b',', false) => is_closed = false,
                    (b'}', true) | (b']', false) => {
                        open.pop();
                    }
                    (c, true) => return Err(Stop::Char(c, "after object key:value pair".into())),
                    (c, false) => return Err(Stop::Char(c, "after array element".into())),
                }
            }
        }
    }

    /// Reads a scalar or an empty container (true), or opens a container up to its first value (false).
    fn begin_value(&mut self, open: &mut Vec<bool>) -> Result<bool, Stop> {
        self.skip_space();
        let first = self.next()?;
        match first {
            b'{' | b'[' => {
                if open.len() >= MAX_DEPTH {
                    return Err(Stop::Depth);
                }
                self.skip_space();
                let end = if first == b'{' { b'}' } else { b']' };
                if self.peek() == Some(end) {
                    self.at += 1;
                    return Ok(true);
                }
                open.push(first == b'{');
                if first == b'{' {
                    self.key("looking for beginning of object key string")?;
                }
                Ok(false)
            }
            b'"' => self.string().map(|()| true),
            b'-' | b'0'..=b'9' => self.number(first).map(|()| true),
            b't' => self.literal("true").map(|()| true),
            b'f' => self.literal("false").map(|()| true),
            b'n' => self.literal("null").map(|()| true),
            c => Err(Stop::Char(c, "looking for beginning of value".into())),
        }
    }

    fn key(&mut self, context: &str) -> Result<(), Stop> {
        self.skip_space();
        match self.next()? {
            b'"' => self.string()?,
            c => return Err(Stop::Char(c, context.into())),
        }
        self.skip_space();
        match self.next()? {
            b':' => Ok(()),
            c => Err(Stop::Char(c, "after object key".into())),
        }
    }

    fn string(&mut self) -> Result<(), Stop> {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => match self.next()? {
                    b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => {}
                    b'u' => {
                        for _ in 0..4 {
                            let c = self.next()?;
                            if !c.is_ascii_hexdigit() {
                                return Err(Stop::Char(c, "in \\u hexadecimal character escape".into()));
                            }
                        }
                    }
                    c => return Err(Stop::Char(c, "in string escape code".into())),
                },
                c if c < 0x20 => return Err(Stop::Char(c, "in string literal".into())),
                _ => {}
            }
        }
    }

    fn number(&mut self, first: u8) -> Result<(), Stop> {
        let mut first = first;
        if first == b'-' {
            first = self.next()?;
            if !first.is_ascii_digit() {
                return Err(Stop::Char(first, "in numeric literal".into()));
            }
        }
        if first != b'0' {
            self.digits();
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digit("after decimal point in numeric literal")?;
            self.digits();
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digit("in exponent of numeric literal")?;
            self.digits();
        }
        Ok(())
    }

    fn digit(&mut self, context: &str) -> Result<(), Stop> {
        match self.next()? {
            b'0'..=b'9' => Ok(()),
            c => Err(Stop::Char(c, context.into())),
        }
    }

    fn digits(&mut self) {
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), Stop> {
        for expected in word.bytes().skip(1) {
            let c = self.next()?;
            if c != expected {
                return Err(Stop::Char(c, format!("in literal {word} (expecting {})", quote(expected))));
            }
        }
        Ok(())
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, Stop> {
        let c = self.peek().ok_or(Stop::End)?;
        self.at += 1;
        Ok(c)
    }
}

/// A byte as a quoted character; bytes above ASCII as the character of that number.
fn quote(c: u8) -> String {
    match c {
        b'\'' => "'\\''".into(),
        b'"' => "'\"'".into(),
        b'\\' => "'\\\\'".into(),
        b'\n' => "'\\n'".into(),
        b'\r' => "'\\r'".into(),
        b'\t' => "'\\t'".into(),
        0x07 => "'\\a'".into(),
        0x08 => "'\\b'".into(),
        0x0b => "'\\v'".into(),
        0x0c => "'\\f'".into(),
        c if c < 0x20 || c == 0x7f => format!("'\\x{c:02x}'"),
        c if (0x80..0xa0).contains(&c) || c == 0xad => format!("'\\u{c:04x}'"),
        c => format!("'{}'", char::from(c)),
    }
}

#[cfg(test)]
mod tests {
    use super::explain;

    #[test]
    fn messages_name_the_character_and_the_place() {
        for (text, message) in [
            ("", "unexpected end of JSON input"),
            ("[{\"op\":", "unexpected end of JSON input"),
            ("{\"a\":{\"b\":\"c\"", "unexpected end of JSON input"),
            ("{} x", "invalid character 'x' after top-level value"),
            ("apiVersion: v1", "invalid character 'a' looking for beginning of value"),
            ("{a}", "invalid character 'a' looking for beginning of object key string"),
            ("{\"a\":1,}", "invalid character '}' looking for beginning of object key string"),
            ("{\"a\" 1}", "invalid character '1' after object key"),
            ("{\"a\":1 2}", "invalid character '2' after object key:value pair"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("tru3", "invalid character '3' in literal true (expecting 'e')"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            ("\"\\x\"", "invalid character 'x' in string escape code"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("\u{feff}{}", "invalid character 'ï' looking for beginning of value"),
        ] {
            assert_eq!(explain(text.as_bytes()).as_deref(), Some(message), "{text}");
        }
        assert_eq!(explain(b" {\"a\": [1, 2.5e3, {}, [], null]} "), None);
        assert_eq!(explain("[".repeat(10_001).as_bytes()).as_deref(), Some("exceeded max depth"));
    }
}
