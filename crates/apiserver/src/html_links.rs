//! Links in HTML that comes through the proxy: absolute paths get the proxy's prefix, so that a browser stays behind it.
//!
//! The text is rewritten as it flows: what is kept back is at most one tag of [`TAG`] bytes. Only the values of
//! attributes that hold URLs change; every other byte stays as it was.

use std::io::Write;

use bytes::Bytes;
use client::Body;
use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzEncoder, MultiGzDecoder};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

/// Longest tag that is rewritten; a longer one passes as it is.
const TAG: usize = 64 * 1024;
/// Compressed bytes taken at a time: what they may grow to is in memory at once.
const SLICE: usize = 1024;

/// Elements and their attributes that hold a URL.
const LINKS: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("track", &["src"]),
    ("video", &["poster", "src"]),
];

/// Elements whose content is text, whatever it looks like.
const RAW: &[&str] =
    &["iframe", "noembed", "noframes", "plaintext", "script", "style", "textarea", "title", "xmp"];

/// How URLs change.
#[derive(Debug, Clone)]
pub struct Links {
    /// The path of the proxy, without a slash at its end.
    pub prefix: String,
    /// `host:port` of the backend.
    pub backend: String,
    /// The host that the client asked for; empty where it named none.
    pub asked: String,
}

impl Links {
    /// The URL behind the proxy, for one of the same host with an absolute path; `None`: it stays as it is.
    pub fn rewrite(&self, url: &str) -> Option<String> {
        let (host, rest) = match url.split_once("://") {
            Some(("http" | "https", rest)) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                (&rest[..end], &rest[end..])
            }
            _ => ("", url),
        };
        if !rest.starts_with('/') || rest.starts_with("//") {
            return None;
        }
        let same = host == self.backend || host == self.asked;
        if !host.is_empty() && !same {
            return None;
        }
        // an absolute URL of the host that was asked keeps its scheme and host
        let kept = if !host.is_empty() && host == self.asked { url.strip_suffix(rest)? } else { "" };
        let has_prefix =
            rest.strip_prefix(&self.prefix).is_some_and(|r| r.is_empty() || r.starts_with(['/', '?', '#']));
        let prefix = if has_prefix { "" } else { &self.prefix };
        Some(format!("{kept}{prefix}{rest}"))
    }
}

enum Mode {
    Text,
    Comment,
    Raw(&'static str),
}

/// Rewrites a document that comes in pieces.
pub struct Rewriter {
    links: Links,
    mode: Mode,
    /// What cannot be told yet.
    held: Vec<u8>,
}

impl Rewriter {
    /// At the beginning of a document.
    pub fn new(links: Links) -> Self {
        Self { links, mode: Mode::Text, held: Vec::new() }
    }

    /// Takes a piece; what can be told of the document now.
    pub fn push(&mut self, piece: &[u8]) -> Vec<u8> {
        let mut text = std::mem::take(&mut self.held);
        text.extend_from_slice(piece);
        let mut out = Vec::with_capacity(text.len());
        let mut at = 0;
        while at < text.len() {
            match self.step(&text[at..], &mut out) {
                0 => break,
                used => at += used,
            }
        }
        self.held = text.split_off(at);
        out
    }

    /// What is left at the document's end.
    pub fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }

    /// Writes what the beginning of `text` stands for and returns how much that is; 0: more must come.
    fn step(&mut self, text: &[u8], out: &mut Vec<u8>) -> usize {
        match self.mode {
            Mode::Comment => match find(text, b"-->") {
                Some(end) => {
                    self.mode = Mode::Text;
                    copy(&text[..end + 3], out)
                }
                None => copy(&text[..text.len().saturating_sub(2)], out),
            },
            Mode::Raw(name) => match find_end_tag(text, name) {
                Some(end) => {
                    self.mode = Mode::Text;
                    copy(&text[..end], out)
                }
                None => copy(&text[..text.len().saturating_sub(name.len() + 2)], out),
            },
            Mode::Text => match text.iter().position(|b| *b == b'<') {
                None => copy(text, out),
                Some(0) => self.markup(text, out),
                Some(end) => copy(&text[..end], out),
            },
        }
    }

    /// A step at a `<`.
    fn markup(&mut self, text: &[u8], out: &mut Vec<u8>) -> usize {
        match text.get(1) {
            None => 0,
            Some(b'!') if text.len() < 4 && b"<!--".starts_with(text) => 0,
            Some(b'!') if text.starts_with(b"<!--") => {
                self.mode = Mode::Comment;
                copy(&text[..4], out)
            }
            Some(c) if c.is_ascii_alphabetic() => match tag_end(text) {
                Some(end) => {
                    let name = self.tag(&text[..end], out);
                    if let Some(name) = name {
                        self.mode = Mode::Raw(name);
                    }
                    end
                }
                None if text.len() > TAG => copy(text, out),
                None => 0,
            },
            Some(_) => copy(&text[..1], out),
        }
    }

    /// Writes a whole start tag with its URLs rewritten; the element's name where its content is raw text.
    fn tag(&self, tag: &[u8], out: &mut Vec<u8>) -> Option<&'static str> {
        let name_end = tag[1..].iter().position(|b| ends_name(*b)).map_or(tag.len(), |i| i + 1);
        let name = String::from_utf8_lossy(&tag[1..name_end]).to_ascii_lowercase();
        let raw = RAW.iter().copied().find(|r| *r == name);
        let Some((_, wanted)) = LINKS.iter().find(|(element, _)| *element == name) else {
            out.extend_from_slice(tag);
            return raw;
        };
        let mut done = 0;
        for (key, value) in attributes(tag, name_end) {
            let key = String::from_utf8_lossy(&tag[key]).to_ascii_lowercase();
            let rewritten = match std::str::from_utf8(&tag[value.clone()]) {
                Ok(url) if wanted.contains(&key.as_str()) => self.links.rewrite(url.trim()),
                _ => None,
            };
            if let Some(rewritten) = rewritten {
                out.extend_from_slice(&tag[done..value.start]);
                out.extend_from_slice(rewritten.as_bytes());
                done = value.end;
            }
        }
        out.extend_from_slice(&tag[done..]);
        raw
    }
}

fn copy(bytes: &[u8], out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(bytes);
    bytes.len()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|w| w == what)
}

fn find_end_tag(text: &[u8], name: &str) -> Option<usize> {
    text.windows(name.len() + 2)
        .position(|w| w.starts_with(b"</") && w[2..].eq_ignore_ascii_case(name.as_bytes()))
}

fn ends_name(b: u8) -> bool {
    b.is_ascii_whitespace() || matches!(b, b'/' | b'>')
}

/// The length of the start tag that `text` begins with.
fn tag_end(text: &[u8]) -> Option<usize> {
    let mut quote = None;
    let mut after_equals = false;
    for (at, byte) in text.iter().enumerate() {
        match (quote, byte) {
            (Some(q), b) if *b == q => quote = None,
            (Some(_), _) => {}
            (None, b'>') => return Some(at + 1),
            (None, b'"' | b'\'') if after_equals => quote = Some(*byte),
            (None, _) => {}
        }
        after_equals = *byte == b'=' || after_equals && byte.is_ascii_whitespace();
    }
    None
}

/// Where the names and values of a tag's attributes are.
fn attributes(tag: &[u8], start: usize) -> Vec<(std::ops::Range<usize>, std::ops::Range<usize>)> {
    let skip = |mut at: usize, wanted: fn(u8) -> bool| {
        while tag.get(at).is_some_and(|b| wanted(*b)) {
            at += 1;
        }
        at
    };
    let (mut at, mut all) = (start, Vec::new());
    loop {
        at = skip(at, |b| b.is_ascii_whitespace() || b == b'/');
        let key = at..skip(at, |b| !ends_name(b) && b != b'=');
        if key.is_empty() && tag.get(key.end) != Some(&b'=') {
            return all;
        }
        at = skip(key.end, |b| b.is_ascii_whitespace());
        if tag.get(at) != Some(&b'=') {
            continue;
        }
        at = skip(at + 1, |b| b.is_ascii_whitespace());
        let value = match tag.get(at) {
            Some(b'"') => at + 1..skip(at + 1, |b| b != b'"'),
            Some(b'\'') => at + 1..skip(at + 1, |b| b != b'\''),
            _ => at..skip(at, |b| !b.is_ascii_whitespace() && b != b'>'),
        };
        at = value.end + usize::from(matches!(tag.get(value.end), Some(b'"' | b'\'')));
        all.push((key, value));
    }
}

/// The codings of bodies that can be looked into.
enum Coding {
    Identity,
    Gzip(Box<(MultiGzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>)>),
    Deflate(Box<(DeflateDecoder<Vec<u8>>, DeflateEncoder<Vec<u8>>)>),
}

/// A document on its way: decompressed, rewritten, compressed again.
struct Document {
    coding: Coding,
    rewriter: Rewriter,
}

impl Document {
    fn push(&mut self, piece: &[u8]) -> std::io::Result<Vec<u8>> {
        let rewriter = &mut self.rewriter;
        match &mut self.coding {
            Coding::Identity => Ok(rewriter.push(piece)),
            Coding::Gzip(pair) => {
                for slice in piece.chunks(SLICE) {
                    pair.0.write_all(slice)?;
                    pair.1.write_all(&rewriter.push(&std::mem::take(pair.0.get_mut())))?;
                }
                // what the backend flushed must reach the client
                pair.1.flush()?;
                Ok(std::mem::take(pair.1.get_mut()))
            }
            Coding::Deflate(pair) => {
                for slice in piece.chunks(SLICE) {
                    pair.0.write_all(slice)?;
                    pair.1.write_all(&rewriter.push(&std::mem::take(pair.0.get_mut())))?;
                }
                pair.1.flush()?;
                Ok(std::mem::take(pair.1.get_mut()))
            }
        }
    }

    fn finish(&mut self) -> std::io::Result<Vec<u8>> {
        match &mut self.coding {
            Coding::Identity => Ok(self.rewriter.finish()),
            Coding::Gzip(pair) => {
                pair.0.try_finish()?;
                let rest = self.rewriter.push(&std::mem::take(pair.0.get_mut()));
                pair.1.write_all(&rest)?;
                pair.1.write_all(&self.rewriter.finish())?;
                pair.1.try_finish()?;
                Ok(std::mem::take(pair.1.get_mut()))
            }
            Coding::Deflate(pair) => {
                pair.0.try_finish()?;
                let rest = self.rewriter.push(&std::mem::take(pair.0.get_mut()));
                pair.1.write_all(&rest)?;
                pair.1.write_all(&self.rewriter.finish())?;
                pair.1.try_finish()?;
                Ok(std::mem::take(pair.1.get_mut()))
            }
        }
    }
}

/// The body with its links rewritten; as it is where it is in a coding (`Content-Encoding`) that is none of gzip
/// and deflate.
pub fn rewrite_body(body: Body, coding: &str, links: Links) -> Result<Body, Body> {
    let level = Compression::fast();
    let coding = match coding {
        "" | "identity" => Coding::Identity,
        "gzip" => {
            Coding::Gzip(Box::new((MultiGzDecoder::new(Vec::new()), GzEncoder::new(Vec::new(), level))))
        }
        "deflate" => Coding::Deflate(Box::new((
            DeflateDecoder::new(Vec::new()),
            DeflateEncoder::new(Vec::new(), level),
        ))),
        _ => return Err(body),
    };
    let document = Document { coding, rewriter: Rewriter::new(links) };
    let pieces = futures_util::stream::unfold(Some((body, document)), |state| async move {
        let (mut body, mut document) = state?;
        loop {
            let piece = match body.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => document.push(&data),
                    // trailers would be about the bytes before they were rewritten
                    Err(_) => continue,
                },
                Some(Err(error)) => return Some((Err(error), None)),
                None => {
                    let last = document.finish().map_err(Into::into);
                    return Some((last.map(|bytes| Frame::data(Bytes::from(bytes))), None));
                }
            };
            match piece {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Some((Ok(Frame::data(Bytes::from(bytes))), Some((body, document)))),
                Err(error) => return Some((Err(error.into()), None)),
            }
        }
    });
    Ok(StreamBody::new(pieces).boxed_unsync())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn links() -> Links {
        Links {
            prefix: "/api/v1/namespaces/a/services/s/proxy".to_owned(),
            backend: "10.0.0.1:80".to_owned(),
            asked: "localhost:8001".to_owned(),
        }
    }

    #[test]
    fn urls_of_the_same_host_get_the_prefix() {
        let short = |url: &str| {
            let changed = links().rewrite(url)?;
            Some(changed.replace("/api/v1/namespaces/a/services/s/proxy", "P"))
        };
        for (url, expected) in [
            ("/x?y#z", Some("P/x?y#z")),
            ("/", Some("P/")),
            ("x/y", None),
            ("", None),
            ("#top", None),
            ("//other.com/x", None),
            ("http://other.com/x", None),
            ("http://10.0.0.1:80/x", Some("P/x")),
            ("http://localhost:8001/x", Some("http://localhost:8001P/x")),
            ("http://10.0.0.1:80", None),
            ("mailto:a@b", None),
            ("/api/v1/namespaces/a/services/s/proxy/x", Some("P/x")),
        ] {
            assert_eq!(short(url).as_deref(), expected, "{url}");
        }
    }

    const PAGE: &str = r##"<!DOCTYPE html><html><head><title><a href="/no"></title><!-- <a href="/no"> -->
<script src="/s.js">if (a < b) document.write('<a href="/no">')</script></head>
<body><a class=x HREF = '/a?b=1&amp;c' title=">">1</a><a href=/b>2</a><img src="c.png"/><IMG SRC="/d.png"/>
<a href="http://other/e">3</a> 1 < 2 <p href="/no"><form action="/f" method=post></form></body></html>"##;

    #[track_caller]
    fn expected() -> String {
        let p = &links().prefix;
        let mut page = PAGE.to_owned();
        for path in ["\"/s.js", "'/a?", "=/b>", "\"/d.png", "\"/f\""] {
            page = page.replacen(path, &path.replacen('/', &format!("{p}/"), 1), 1);
        }
        page
    }

    #[test]
    fn only_links_change_however_the_page_is_cut() {
        for size in [1, 2, 3, 7, 64, PAGE.len()] {
            let mut rewriter = Rewriter::new(links());
            let mut out = Vec::new();
            for piece in PAGE.as_bytes().chunks(size) {
                out.extend(rewriter.push(piece));
            }
            out.extend(rewriter.finish());
            assert_eq!(String::from_utf8(out).unwrap(), expected(), "pieces of {size}");
        }
    }

    #[test]
    fn a_tag_without_an_end_is_passed_on() {
        let mut rewriter = Rewriter::new(links());
        let text = format!("<a href=\"{}", "x".repeat(TAG * 2));
        let mut out = rewriter.push(text.as_bytes());
        assert!(rewriter.held.is_empty());
        out.extend(rewriter.finish());
        assert_eq!(out, text.as_bytes());
    }

    #[tokio::test]
    async fn compressed_pages_stay_compressed() {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(PAGE.as_bytes()).unwrap();
        let body = crate::answer::full(packed.finish().unwrap());
        let body = rewrite_body(body, "gzip", links()).unwrap_or_else(|body| body);
        let bytes = body.collect().await.unwrap().to_bytes();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
        assert_eq!(text, expected());
    }
}
