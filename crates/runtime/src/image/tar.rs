//! A streaming reader of tar archives (ustar, GNU long names, PAX) that trusts nothing: names, attributes and
//! counts have upper limits, so that an archive cannot make the reader hold more than a few megabytes.

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

const BLOCK: usize = 512;
/// Longest path or link target in bytes.
const MAX_NAME: u64 = 8192;
/// Longest PAX header in bytes (extended attributes are in it).
const MAX_PAX: u64 = 1 << 20;
/// Most bytes that PAX headers say of all entries that follow; it is copied for each.
const MAX_GLOBAL: usize = 64 * 1024;
/// Most headers of one entry.
const MAX_HEADERS: u32 = 100;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file; its content follows.
    File,
    /// Hard link to an earlier entry.
    HardLink,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Folder.
    Dir,
    /// Named pipe.
    Fifo,
}

/// One entry, without its content.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Path as the archive says it.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Content's length in bytes.
    pub size: u64,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// Reads entries one after the other.
pub struct Reader<R> {
    inner: R,
    /// Bytes of the current entry's content, and padding behind it, not read yet.
    content: u64,
    padding: u64,
    global: BTreeMap<String, Vec<u8>>,
}

fn bad(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.into())
}

impl<R: Read> Reader<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Reader<R> {
        Reader { inner, content: 0, padding: 0, global: BTreeMap::new() }
    }

    /// The next entry; `None` at the end. Content of the one before that was not read is skipped.
    pub fn next_entry(&mut self) -> io::Result<Option<Entry>> {
        let (mut long_name, mut long_link) = (None, None);
        let mut pax: Option<BTreeMap<String, Vec<u8>>> = None;
        for _ in 0..MAX_HEADERS {
            self.skip()?;
            let mut header = [0; BLOCK];
            if !self.fill(&mut header)? || header.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            check_sum(&header)?;
            let size = number(&header[124..136])?;
            self.begin(size);
            match header[156] {
                b'L' => long_name = Some(self.text(MAX_NAME)?),
                b'K' => long_link = Some(self.text(MAX_NAME)?),
                b'x' => pax = Some(parse_pax(&self.take(MAX_PAX)?)?),
                b'g' => {
                    let records = parse_pax(&self.take(MAX_PAX)?)?;
                    self.global.extend(records);
                    let length = |(key, value): (&String, &Vec<u8>)| key.len() + value.len();
                    if self.global.iter().map(length).sum::<usize>() > MAX_GLOBAL {
                        return Err(bad("the archive says too much of all its entries"));
                    }
                }
                kind => {
                    let mut records = self.global.clone();
                    records.extend(pax.unwrap_or_default());
                    return self.entry(kind, &header, long_name, long_link, records).map(Some);
                }
            }
        }
        Err(bad("an entry of the archive has too many headers"))
    }

    fn entry(
        &mut self,
        kind: u8,
        header: &[u8; BLOCK],
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        mut pax: BTreeMap<String, Vec<u8>>,
    ) -> io::Result<Entry> {
        let mut path = long_name.unwrap_or_else(|| {
            let name = until_nul(&header[..100]);
            let prefix = until_nul(&header[345..500]);
            // GNU archives keep other things where ustar has the prefix.
            if &header[257..263] == b"ustar\0" && !prefix.is_empty() {
                [prefix, b"/", name].concat()
            } else {
                name.to_vec()
            }
        });
        if let Some(name) = pax.remove("path") {
            path = name;
        }
        let link =
            pax.remove("linkpath").or(long_link).unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        if path.len() as u64 > MAX_NAME
            || link.len() as u64 > MAX_NAME
            || path.contains(&0)
            || link.contains(&0)
        {
            return Err(bad("a path in the archive is too long or contains NUL"));
        }
        let decimal = |text: &[u8]| std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
        let field = |pax: &BTreeMap<String, Vec<u8>>, name: &str, raw: &[u8]| match pax.get(name) {
            Some(text) => decimal(text).ok_or_else(|| bad(format!("PAX {name}"))),
            None => number(raw),
        };
        if pax.keys().any(|key| key.starts_with("GNU.sparse.")) || kind == b'S' {
            return Err(bad("sparse files in archives are not supported"));
        }
        let size = field(&pax, "size", &header[124..136])?;
        let id =
            |value: u64| u32::try_from(value).map_err(|_| bad("an owner in the archive is out of range"));
        let (uid, gid) =
            (id(field(&pax, "uid", &header[108..116])?)?, id(field(&pax, "gid", &header[116..124])?)?);
        let mtime = match pax.get("mtime").and_then(|text| std::str::from_utf8(text).ok()) {
            Some(text) => parse_time(text),
            None => {
                (number(&header[136..148]).ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0), 0)
            }
        };
        let kind = match kind {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::Char,
            b'4' => Kind::Block,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => return Err(bad(format!("entry type {:?} is not supported", other as char))),
        };
        let size = if kind == Kind::File { size } else { 0 };
        if kind == Kind::File {
            self.begin(size);
        }
        let device = |raw: &[u8]| number(raw).ok().and_then(|value| u32::try_from(value).ok()).unwrap_or(0);
        let xattrs = pax
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix("SCHILY.xattr.")?.to_owned(), value)))
            .collect();
        Ok(Entry {
            kind,
            path,
            link,
            mode: (number(&header[100..108])? & 0o7777) as u32,
            uid,
            gid,
            size,
            mtime,
            device: (device(&header[329..337]), device(&header[337..345])),
            xattrs,
        })
    }

    fn begin(&mut self, size: u64) {
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64).wrapping_sub(size);
    }

    fn take(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        if self.content > limit {
            return Err(bad("a header in the archive is too long"));
        }
        let expected = self.content;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        if bytes.len() as u64 != expected {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes)
    }

    fn text(&mut self, limit: u64) -> io::Result<Vec<u8>> {
        Ok(until_nul(&self.take(limit)?).to_vec())
    }

    fn skip(&mut self) -> io::Result<()> {
        let left = self.content.saturating_add(self.padding);
        (self.content, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.inner).take(left), &mut io::sink())?;
        if skipped != left { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }

    /// Fills a block; false at the end of the stream.
    fn fill(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The current entry's content.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.content == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = buffer.len().min(usize::try_from(self.content).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.content -= count as u64;
        Ok(count)
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// An octal number, or GNU's binary one.
fn number(field: &[u8]) -> io::Result<u64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        let (head, tail) = field.split_at(field.len().saturating_sub(8));
        let high = head
            .iter()
            .enumerate()
            .any(|(index, byte)| if index == 0 { byte & 0x7f != 0 } else { *byte != 0 });
        if high || field.len() < 9 && field[0] & 0x7f != 0 {
            return Err(bad("a number in the archive is out of range"));
        }
        let mut value = 0_u64;
        for (index, byte) in tail.iter().enumerate() {
            let byte = if index == 0 && head.is_empty() { byte & 0x7f } else { *byte };
            value = value << 8 | u64::from(byte);
        }
        return Ok(value);
    }
    let text = until_nul(field).trim_ascii();
    if text.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(text).map_err(|_| bad("a number in the archive"))?;
    u64::from_str_radix(text, 8).map_err(|_| bad(format!("{text:?} is not an octal number")))
}

fn check_sum(header: &[u8; BLOCK]) -> io::Result<()> {
    let sum = header
        .iter()
        .enumerate()
        .map(|(index, byte)| if (148..156).contains(&index) { u64::from(b' ') } else { u64::from(*byte) })
        .sum::<u64>();
    if number(&header[148..156])? == sum { Ok(()) } else { Err(bad("not a tar archive, or a damaged one")) }
}

/// Records `<length> <key>=<value>\n`.
fn parse_pax(mut bytes: &[u8]) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut records = BTreeMap::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').ok_or_else(|| bad("PAX header"))?;
        let length: usize = std::str::from_utf8(&bytes[..space])
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|length| *length > space + 1 && *length <= bytes.len())
            .ok_or_else(|| bad("PAX header"))?;
        let record = bytes[space + 1..length].strip_suffix(b"\n").ok_or_else(|| bad("PAX header"))?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(|| bad("PAX header"))?;
        let key = String::from_utf8(record[..equals].to_vec()).map_err(|_| bad("PAX header"))?;
        records.insert(key, record[equals + 1..].to_vec());
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn parse_time(text: &str) -> (i64, u32) {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    (seconds.parse().unwrap_or(0), nanos.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_sizes_and_xattrs_survive() {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/file", "d".repeat(200));
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o4755);
        header.set_uid(70_000);
        builder.append_pax_extensions([("SCHILY.xattr.user.k", b"v\n1".as_slice())]).unwrap();
        builder.append_data(&mut header, &long, b"hello".as_slice()).unwrap();
        let bytes = builder.into_inner().unwrap();
        let mut reader = Reader::new(bytes.as_slice());
        let entry = reader.next_entry().unwrap().unwrap();
        assert_eq!((entry.path, entry.mode, entry.uid), (long.into_bytes(), 0o4755, 70_000));
        assert_eq!(entry.xattrs, [("user.k".to_owned(), b"v\n1".to_vec())]);
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        assert_eq!(content, "hello");
        assert!(reader.next_entry().unwrap().is_none());
    }

    #[test]
    fn giant_name_is_refused_before_it_is_read() {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::GNULongName);
        header.set_size(1 << 40);
        header.set_cksum();
        let endless = header.as_bytes().as_slice().chain(io::repeat(b'a'));
        assert!(Reader::new(endless).next_entry().is_err());
    }

    #[test]
    fn headers_that_pile_up_are_refused() {
        let header = |kind: u8, content: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_size(content.len() as u64);
            header.set_cksum();
            let mut block = [header.as_bytes().as_slice(), content].concat();
            block.resize(block.len().next_multiple_of(BLOCK), 0);
            block
        };
        let pax = |key: usize| {
            let text = format!(" SCHILY.xattr.user.{key:08}={}\n", "v".repeat(4096));
            format!("{}{text}", text.len() + 4).into_bytes()
        };
        let said: Vec<u8> = (0..20).flat_map(|key| header(b'g', &pax(key))).collect();
        assert!(Reader::new(&said[..]).next_entry().unwrap_err().to_string().contains("too much"));
        let names: Vec<u8> = (0..MAX_HEADERS).flat_map(|_| header(b'L', b"name")).collect();
        assert!(Reader::new(&names[..]).next_entry().unwrap_err().to_string().contains("too many"));
        let few = [header(b'g', &pax(0)), header(b'L', b"name"), header(b'0', b"")].concat();
        let entry = Reader::new(&few[..]).next_entry().unwrap().unwrap();
        assert_eq!((entry.path.as_slice(), entry.xattrs.len()), (&b"name"[..], 1));
    }

    #[test]
    fn cut_archive_is_an_error_not_an_end() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1000);
        builder.append_data(&mut header, "a", io::repeat(1).take(1000)).unwrap();
        let bytes = builder.into_inner().unwrap();
        let mut reader = Reader::new(&bytes[..900]);
        reader.next_entry().unwrap().unwrap();
        assert!(reader.read_to_end(&mut Vec::new()).is_err());
    }
}
