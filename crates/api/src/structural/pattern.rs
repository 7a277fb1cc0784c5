//! Regular expressions of definitions. Their syntax is RE2's as Go has it (<https://golang.org/s/re2syntax>); here they
//! are rewritten for the `regex` crate, which differs in what `\d`, `\w`, `\s` and `\b` match (Unicode there, ASCII in Go), in
//! classes within classes, and in the words for what is wrong.

use std::iter::Peekable;
use std::str::CharIndices;
use std::sync::OnceLock;

use regex::Regex;

const MAX_REPEAT: u32 = 1000;

/// A regular expression, compiled when first used.
#[derive(Debug)]
pub struct Pattern {
    text: String,
    compiled: OnceLock<Result<Regex, String>>,
}

impl Pattern {
    /// Of a text that need not be a valid expression.
    pub fn new(text: &str) -> Self {
        Self { text: text.to_owned(), compiled: OnceLock::new() }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The compiled expression, or what is wrong with it: "error parsing regexp: …".
    pub fn compiled(&self) -> Result<&Regex, &str> {
        self.compiled.get_or_init(|| compile(&self.text)).as_ref().map_err(String::as_str)
    }
}

/// Compiles an expression in Go's syntax. The error is in Go's words.
pub fn compile(pattern: &str) -> Result<Regex, String> {
    let translated = Translator::new(pattern).run().map_err(|e| format!("error parsing regexp: {e}"))?;
    // What the syntax allows can only be too large.
    Regex::new(&translated).map_err(|_| format!("error parsing regexp: expression too large: `{pattern}`"))
}

struct Translator<'a> {
    pattern: &'a str,
    chars: Peekable<CharIndices<'a>>,
    out: String,
    /// Open groups.
    depth: usize,
    /// Whether something stands before that a repetition can apply to.
    has_argument: bool,
    /// Where the repetition before the current place began.
    repetition: Option<usize>,
}

impl<'a> Translator<'a> {
    fn new(pattern: &'a str) -> Self {
        Self {
            pattern,
            chars: pattern.char_indices().peekable(),
            out: String::with_capacity(pattern.len() + 8),
            depth: 0,
            has_argument: false,
            repetition: None,
        }
    }

    fn at(&mut self) -> usize {
        self.chars.peek().map_or(self.pattern.len(), |(at, _)| *at)
    }

    fn rest(&mut self) -> &'a str {
        let at = self.at();
        &self.pattern[at..]
    }

    fn skip(&mut self, bytes: usize) {
        let end = self.at() + bytes;
        while self.chars.next_if(|(at, _)| *at < end).is_some() {}
    }

    fn literal(&mut self, c: char) {
        self.out.push_str(&regex::escape(c.encode_utf8(&mut [0; 4])));
        self.argument();
    }

    fn argument(&mut self) {
        self.has_argument = true;
        self.repetition = None;
    }

    fn run(mut self) -> Result<String, String> {
        while let Some(&(at, c)) = self.chars.peek() {
            match c {
                '(' => self.open(at)?,
                ')' => {
                    if self.depth == 0 {
                        return Err(format!("unexpected ): `{}`", self.pattern));
                    }
                    self.depth -= 1;
                    self.skip(1);
                    self.out.push(')');
                    self.argument();
                }
                '|' => {
                    self.skip(1);
                    self.out.push('|');
                    self.has_argument = false;
                    self.repetition = None;
                }
                '[' => self.class(at)?,
                '*' | '+' | '?' => {
                    self.skip(1);
                    self.out.push(c);
                    self.repeat(at)?;
                }
                '{' => self.counted(at)?,
                '\\' => self.escape(at)?,
                '^' | '$' | '.' => {
                    self.skip(1);
                    self.out.push(c);
                    self.argument();
                }
                c => {
                    self.skip(c.len_utf8());
                    self.literal(c);
                }
            }
        }
        if self.depth > 0 {
            return Err(format!("missing closing ): `{}`", self.pattern));
        }
        Ok(self.out)
    }

    fn open(&mut self, at: usize) -> Result<(), String> {
        let rest = &self.pattern[at..];
        if !rest.starts_with("(?") {
            self.skip(1);
            self.out.push('(');
            self.depth += 1;
        } else if let Some(name) = rest.strip_prefix("(?P<").or_else(|| rest.strip_prefix("(?<")) {
            let Some(end) = name.find('>') else { return Err(format!("invalid named capture: `{rest}`")) };
            let whole = rest.len() - name.len() + end + 1;
            let name = &name[..end];
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(format!("invalid named capture: `{}`", &rest[..whole]));
            }
            self.skip(whole);
            // Names matter to nobody here, and Go allows some that begin with a digit.
            self.out.push('(');
            self.depth += 1;
        } else {
            for (n, c) in rest.char_indices().skip(2) {
                match c {
                    'i' | 'm' | 's' | 'U' | '-' => {}
                    ':' | ')' if !rest[..n].ends_with('-') => {
                        self.out.push_str(&rest[..=n]);
                        self.skip(n + 1);
                        if c == ':' {
                            self.depth += 1;
                        } else if n == 2 {
                            return Err("missing argument to repetition operator: `?`".to_owned());
                        }
                        self.has_argument = false;
                        self.repetition = None;
                        return Ok(());
                    }
                    c => {
                        let upto = &rest[..n + c.len_utf8()];
                        return Err(format!("invalid or unsupported Perl syntax: `{upto}`"));
                    }
                }
            }
            return Err(format!("missing closing ): `{}`", self.pattern));
        }
        self.has_argument = false;
        self.repetition = None;
        Ok(())
    }

    /// A repetition whose operator, which began at `at`, has been written.
    fn repeat(&mut self, at: usize) -> Result<(), String> {
        let end = self.at();
        if let Some(first) = self.repetition {
            return Err(format!("invalid nested repetition operator: `{}`", &self.pattern[first..end]));
        }
        if !self.has_argument {
            return Err(format!("missing argument to repetition operator: `{}`", &self.pattern[at..end]));
        }
        if self.rest().starts_with('?') {
            self.skip(1);
            self.out.push('?');
        }
        self.repetition = Some(at);
        Ok(())
    }

    fn counted(&mut self, at: usize) -> Result<(), String> {
        let rest = &self.pattern[at..];
        let Some((least, most, length)) = counts(rest) else {
            self.skip(1);
            self.literal('{');
            return Ok(());
        };
        let text = &rest[..length];
        let most_or_least = most.unwrap_or(least);
        if least > MAX_REPEAT || most_or_least > MAX_REPEAT || most_or_least < least {
            return Err(format!("invalid repeat count: `{text}`"));
        }
        self.skip(length);
        self.out.push_str(text);
        self.repeat(at)
    }

    fn escape(&mut self, at: usize) -> Result<(), String> {
        let rest = &self.pattern[at..];
        match rest[1..].chars().next() {
            None => return Err("trailing backslash at end of expression: ``".to_owned()),
            Some('Q') => {
                let quoted = &rest[2..];
                let end = quoted.find("\\E");
                for c in quoted[..end.unwrap_or(quoted.len())].chars() {
                    self.literal(c);
                }
                self.skip(2 + end.map_or(quoted.len(), |end| end + 2));
                return Ok(());
            }
            Some(c @ ('A' | 'z' | 'B')) => {
                self.skip(2);
                self.out.extend(['\\', c]);
            }
            Some('b') => {
                self.skip(2);
                self.out.push_str("(?-u:\\b)");
            }
            Some(_) => match self.class_escape(rest)? {
                Some((class, length)) => {
                    self.skip(length);
                    self.out.push_str(&format!("[{class}]"));
                }
                None => {
                    let (c, length) = char_escape(rest)?;
                    self.skip(length);
                    self.literal(c);
                }
            },
        }
        self.argument();
        Ok(())
    }

    /// A class such as `\d` or `\pL`, in the form it has between brackets, and how long it is.
    fn class_escape(&self, rest: &str) -> Result<Option<(String, usize)>, String> {
        let class = match rest[1..].chars().next() {
            Some('d') => "0-9",
            Some('D') => "[^0-9]",
            Some('s') => "\\t\\n\\f\\r ",
            Some('S') => "[^\\t\\n\\f\\r ]",
            Some('w') => "0-9A-Za-z_",
            Some('W') => "[^0-9A-Za-z_]",
            Some(c @ ('p' | 'P')) => {
                let length = match rest[2..].chars().next() {
                    Some('{') => rest.find('}').map(|end| end + 1),
                    Some(letter) => Some(2 + letter.len_utf8()),
                    None => None,
                };
                let wrong = |text: &str| Err(format!("invalid character class range: `{text}`"));
                let Some(length) = length else { return wrong(rest) };
                let text = &rest[..length];
                let name = text[2..].trim_start_matches('{').trim_end_matches('}');
                let (negated, name) = match name.strip_prefix('^') {
                    Some(name) => (c == 'p', name),
                    None => (c == 'P', name),
                };
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                    return wrong(text);
                }
                let class = format!("\\{}{{{name}}}", if negated { 'P' } else { 'p' });
                // Only the names are checked: a class with a property is small.
                if Regex::new(&class).is_err() {
                    return wrong(text);
                }
                return Ok(Some((class, length)));
            }
            _ => return Ok(None),
        };
        Ok(Some((class.to_owned(), 2)))
    }

    fn class(&mut self, start: usize) -> Result<(), String> {
        let whole = &self.pattern[start..];
        let unclosed = || format!("missing closing ]: `{whole}`");
        self.skip(1);
        self.out.push('[');
        if self.rest().starts_with('^') {
            self.skip(1);
            self.out.push('^');
        }
        let mut is_first = true;
        loop {
            let rest = self.rest();
            if rest.is_empty() {
                return Err(unclosed());
            }
            if rest.starts_with(']') && !is_first {
                self.skip(1);
                self.out.push(']');
                self.argument();
                return Ok(());
            }
            is_first = false;
            if rest.starts_with("[:")
                && let Some(end) = rest[2..].find(":]")
            {
                let name = &rest[2..2 + end];
                let text = &rest[..end + 4];
                const NAMES: [&str; 14] = [
                    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
                    "space", "upper", "word", "xdigit",
                ];
                if !NAMES.contains(&name.trim_start_matches('^')) {
                    return Err(format!("invalid character class range: `{text}`"));
                }
                self.out.push_str(text);
                self.skip(text.len());
                continue;
            }
            if rest.starts_with('\\')
                && rest.len() > 1
                && let Some((class, length)) = self.class_escape(rest)?
            {
                self.out.push_str(&class);
                self.skip(length);
                continue;
            }
            let (low, length) = class_char(rest, &unclosed)?;
            let mut high = low;
            let mut total = length;
            // A dash before the closing bracket stands for itself.
            if let Some(after) = rest[length..].strip_prefix('-')
                && !after.is_empty()
                && !after.starts_with(']')
            {
                let (last, length) = class_char(after, &unclosed)?;
                high = last;
                total += 1 + length;
                if high < low {
                    return Err(format!("invalid character class range: `{}`", &rest[..total]));
                }
            }
            self.out.push_str(&format!("\\x{{{:x}}}-\\x{{{:x}}}", low as u32, high as u32));
            self.skip(total);
        }
    }
}

fn class_char(rest: &str, unclosed: &dyn Fn() -> String) -> Result<(char, usize), String> {
    match rest.chars().next() {
        None => Err(unclosed()),
        Some('\\') => char_escape(rest),
        Some(c) => Ok((c, c.len_utf8())),
    }
}

/// An escape that stands for one character, and how long it is.
fn char_escape(rest: &str) -> Result<(char, usize), String> {
    let Some(c) = rest[1..].chars().next() else {
        return Err("trailing backslash at end of expression: ``".to_owned());
    };
    let wrong = |length: usize| {
        let end = rest.char_indices().map(|(at, _)| at).find(|at| *at >= length).unwrap_or(rest.len());
        format!("invalid escape sequence: `{}`", &rest[..end])
    };
    let octal = |from: usize| -> (char, usize) {
        let digits: String = rest[from..].chars().take(3).take_while(|c| ('0'..='7').contains(c)).collect();
        let code = u32::from_str_radix(&digits, 8).unwrap_or_default();
        (char::from_u32(code).unwrap_or_default(), from + digits.len())
    };
    Ok(match c {
        'a' => ('\x07', 2),
        'f' => ('\x0c', 2),
        'n' => ('\n', 2),
        'r' => ('\r', 2),
        't' => ('\t', 2),
        'v' => ('\x0b', 2),
        '0' => octal(1),
        '1'..='7' => match rest[2..].chars().next() {
            Some('0'..='7') => octal(1),
            _ => return Err(wrong(2)),
        },
        'x' => {
            let (digits, length) = match rest[2..].strip_prefix('{') {
                Some(braced) => {
                    let end = braced.find('}').ok_or_else(|| wrong(rest.len()))?;
                    (&braced[..end], 4 + end)
                }
                None => (rest.get(2..4).ok_or_else(|| wrong(rest.len()))?, 4),
            };
            let code = u32::from_str_radix(digits, 16).ok().and_then(char::from_u32);
            (code.ok_or_else(|| wrong(length))?, length)
        }
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => (c, 2),
        c => return Err(wrong(1 + c.len_utf8())),
    })
}

/// `{n}`, `{n,}` or `{n,m}`: the numbers and the length. None where it is no repetition but plain text.
fn counts(text: &str) -> Option<(u32, Option<u32>, usize)> {
    let number = |digits: &str| -> Option<u32> {
        let is_number = !digits.is_empty()
            && digits.bytes().all(|b| b.is_ascii_digit())
            && (digits.len() == 1 || !digits.starts_with('0'));
        is_number.then(|| digits.parse().unwrap_or(u32::MAX))
    };
    let end = text.find('}')?;
    let inner = &text[1..end];
    match inner.split_once(',') {
        None => number(inner).map(|n| (n, Some(n), end + 1)),
        Some((least, "")) => number(least).map(|n| (n, None, end + 1)),
        Some((least, most)) => Some((number(least)?, Some(number(most)?), end + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(pattern: &str) -> String {
        compile(pattern).expect_err("is wrong").trim_start_matches("error parsing regexp: ").to_owned()
    }

    #[test]
    fn what_is_wrong_is_said_in_the_words_of_go() {
        assert_eq!(compile("(").unwrap_err(), "error parsing regexp: missing closing ): `(`");
        for (pattern, text) in [
            ("a)", "unexpected ): `a)`"),
            ("[a", "missing closing ]: `[a`"),
            ("*a", "missing argument to repetition operator: `*`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("a{2,1}", "invalid repeat count: `{2,1}`"),
            ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
            ("(?!a)", "invalid or unsupported Perl syntax: `(?!`"),
            ("(?P<n", "invalid named capture: `(?P<n`"),
            ("[b-a]", "invalid character class range: `b-a`"),
            ("[[:nosuch:]]", "invalid character class range: `[:nosuch:]`"),
            ("\\p{Nosuch}", "invalid character class range: `\\p{Nosuch}`"),
            ("\\y", "invalid escape sequence: `\\y`"),
            ("\\1", "invalid escape sequence: `\\1`"),
            ("a\\", "trailing backslash at end of expression: ``"),
        ] {
            assert_eq!(wrong(pattern), text);
        }
    }

    #[test]
    fn expressions_match_as_in_go() {
        for (pattern, text, is_match) in [
            ("^a+$", "aaa", true),
            ("^a+$", "aaa\n", false),
            ("^\\d$", "٣", false),
            ("^\\D$", "٣", true),
            ("^\\w+$", "é", false),
            ("^[\\w.-]+$", "a-b.c", true),
            ("^[[]$", "[", true),
            ("^[a&&b]$", "&", true),
            ("^[]a]+$", "]a", true),
            ("^a{,2}$", "a{,2}", true),
            ("^\\Qa.b\\E+$", "a.bb", true),
            ("^(?i)ABC$", "abc", true),
            ("^(?P<1n>x)(?:y)$", "xy", true),
            ("^[[:alpha:]_-]*$", "a_-", true),
            ("^\\x41\\x{1F600}\\101$", "A😀A", true),
            ("\\bfoo\\b", "a foo b", true),
            ("^#$", "#", true),
        ] {
            assert_eq!(compile(pattern).unwrap().is_match(text), is_match, "{pattern} on {text:?}");
        }
    }
}
