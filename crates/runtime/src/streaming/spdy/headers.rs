//! Header blocks: names and values, compressed with zlib over the protocol's dictionary (SPDY/3.1 §2.6.10).
//!
//! One stream of compression goes through all blocks of one direction, so a block that cannot be read ends the
//! connection.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::SpdyError;

/// Most bytes of a block when it is decompressed.
const MAX_BLOCK: usize = 64 * 1024;
/// Most headers of a block.
const MAX_HEADERS: usize = 200;

/// Words the dictionary begins with, each after its length.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
/// What follows them.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut all = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        // a word is short
        all.extend_from_slice(&(word.len() as u32).to_be_bytes());
        all.extend_from_slice(word.replace('_', " ").as_bytes());
    }
    all.extend_from_slice(REST.as_bytes());
    all
}

/// Reads the blocks of one direction.
pub(super) struct Reader(Decompress);

impl Reader {
    pub(super) fn new() -> Reader {
        Reader(Decompress::new(true))
    }

    /// The headers of a block.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, SpdyError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let broken = || SpdyError::Broken("a header block cannot be decompressed");
        let mut plain = Vec::with_capacity(1024);
        loop {
            let (before_in, before_out) = (self.0.total_in(), plain.len());
            let status = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before_in).unwrap_or(usize::MAX);
            block = block.get(taken..).ok_or_else(broken)?;
            match status {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| broken())?;
                    continue;
                }
                Err(_) | Ok(Status::StreamEnd) => return Err(broken()),
                Ok(Status::Ok | Status::BufError) => {}
            }
            if plain.len() > MAX_BLOCK {
                return Err(SpdyError::TooLarge("a header block"));
            }
            let full = plain.len() == plain.capacity();
            if full {
                plain.reserve(4096);
            } else if block.is_empty() {
                return Ok(plain);
            } else if taken == 0 && plain.len() == before_out {
                return Err(broken());
            }
        }
    }
}

fn parse(mut block: &[u8]) -> Result<Vec<(String, String)>, SpdyError> {
    let broken = || SpdyError::Broken("a header block ends early");
    let number = |from: &mut &[u8]| -> Result<usize, SpdyError> {
        let (head, rest) = from.split_first_chunk::<4>().ok_or_else(broken)?;
        *from = rest;
        usize::try_from(u32::from_be_bytes(*head)).map_err(|_| broken())
    };
    let count = number(&mut block)?;
    if count > MAX_HEADERS {
        return Err(SpdyError::TooLarge("the number of headers"));
    }
    let mut headers = Vec::with_capacity(count);
    for _ in 0..count {
        let mut text = || -> Result<String, SpdyError> {
            let length = number(&mut block)?;
            let (text, rest) = block.split_at_checked(length).ok_or_else(broken)?;
            block = rest;
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        headers.push((text()?.to_ascii_lowercase(), text()?));
    }
    Ok(headers)
}

/// Writes the blocks of one direction.
pub(super) struct Writer(Compress);

impl Writer {
    pub(super) fn new() -> Writer {
        let mut compress = Compress::new(Compression::fast(), true);
        // it fails for raw streams only
        let _ = compress.set_dictionary(&dictionary());
        Writer(compress)
    }

    /// The block of some headers.
    pub(super) fn write(&mut self, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
                plain.extend_from_slice(text.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut plain = plain.as_slice();
        loop {
            let before = self.0.total_in();
            // compressing into memory cannot fail
            let _ = self.0.compress_vec(plain, &mut block, FlushCompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before).unwrap_or(plain.len());
            plain = &plain[taken.min(plain.len())..];
            if plain.is_empty() && block.len() < block.capacity() {
                return block;
            }
            block.reserve(256);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        let all = dictionary();
        let (a, b) = all.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        assert_eq!((all.len(), (b << 16) | a), (1423, 0xe3c6_a7c2));
    }

    #[test]
    fn blocks_are_read_as_they_were_written() {
        let (mut writer, mut reader) = (Writer::new(), Reader::new());
        for headers in [&[("streamtype", "error"), ("port", "80")][..], &[], &[("x", &"long ".repeat(5000))]]
        {
            let block = writer.write(headers);
            let read = reader.read(&block).unwrap();
            let read: Vec<(&str, &str)> = read.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
            assert_eq!(read, headers);
        }
    }

    #[test]
    fn a_block_that_grows_without_end_is_refused() {
        let mut writer = Writer::new();
        let block = writer.write(&[("x", &"a".repeat(1 << 20))]);
        assert!(block.len() < 64 * 1024, "{}", block.len());
        assert!(matches!(Reader::new().read(&block), Err(SpdyError::TooLarge(_))));
    }

    #[test]
    fn broken_blocks_are_refused() {
        assert!(Reader::new().read(b"no zlib").is_err());
        assert!(Reader::new().read(b"").is_err());
        assert!(parse(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']).is_err());
        assert!(parse(&[0xff; 4]).is_err());
    }
}
