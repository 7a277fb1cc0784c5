//! Blocks of PEM, as Go's `encoding/pem` reads them: what is none is passed over, lines `Key: value` before the data are headers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const BEGIN: &str = "-----BEGIN ";
const DASHES: &str = "-----";

/// A block: `-----BEGIN label-----`.
pub(super) struct Block {
    pub(super) label: String,
    pub(super) has_headers: bool,
    pub(super) contents: Vec<u8>,
}

/// The blocks of a text, in their order.
pub(super) fn blocks(bytes: &[u8]) -> Vec<Block> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(line) = lines.get(at) {
        at += 1;
        let label = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(DASHES));
        // what has a beginning, but is no block, may still hold one
        if let Some((block, lines)) = label.and_then(|label| block(label, &lines[at..])) {
            found.push(block);
            at += lines;
        }
    }
    found
}

/// The block whose lines follow its first, and how many those are.
fn block(label: &str, lines: &[&str]) -> Option<(Block, usize)> {
    let headers = lines.iter().take_while(|line| line.contains(':')).count();
    let end = format!("{DASHES}END {label}{DASHES}");
    let last = lines.iter().position(|line| line.starts_with("-----END "))?;
    if last < headers || lines[last] != end {
        return None;
    }
    let data: String = lines[headers..last].iter().flat_map(|line| line.split_ascii_whitespace()).collect();
    let contents = STANDARD.decode(data).ok()?;
    Some((Block { label: label.to_owned(), has_headers: headers > 0, contents }, last + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_labels_headers_and_data() {
        let text = "words\n-----BEGIN A-----\nK: v\n\nAQ\n ID\n-----END A-----\n-----BEGIN B-----\n!\n-----END B-----\n\
            -----BEGIN C-----\n-----BEGIN D-----\r\nBA==\r\n-----END D-----\r\n-----BEGIN E-----\nBA==\n";
        let found: Vec<_> =
            blocks(text.as_bytes()).into_iter().map(|b| (b.label, b.has_headers, b.contents)).collect();
        assert_eq!(found, [("A".to_owned(), true, vec![1, 2, 3]).clone(), ("D".to_owned(), false, vec![4])]);
        assert_eq!(blocks(b"").len(), 0);
        assert_eq!(blocks(&[0xff, b'\n', b'-']).len(), 0);
    }
}
