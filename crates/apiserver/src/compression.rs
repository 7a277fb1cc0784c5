//! Answers in gzip for clients that ask for it, compressed while they are sent.
//!
//! Rule: kube-apiserver's `APIResponseCompression`: what is longer than 128 KiB, at the level that costs the least.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use client::Body;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;

/// What is longer is compressed.
const THRESHOLD: u64 = 128 * 1024;
/// Bytes compressed at once: other requests of the thread wait that long.
const AT_ONCE: usize = 64 * 1024;
/// A frame holds at least this much, but for the last one.
const FRAME: usize = 16 * 1024;

/// Marks, as an extension, answers that are ours to compress: what another server or a container says is not.
#[derive(Debug, Clone, Copy)]
pub struct Ours;

/// Compresses an answer that is [`Ours`] and worth it.
pub fn compress(mut response: Response<Body>) -> Response<Body> {
    let is_long = response.body().size_hint().exact().is_some_and(|size| size > THRESHOLD);
    if response.extensions_mut().remove::<Ours>().is_none() || !is_long {
        return response;
    }
    let mut response = response.map(|body| Gzip::new(body).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    response
}

/// Whether the first `Accept-Encoding` names gzip. As upstream: a clause with a quality is not understood.
pub fn is_asked(asked: &HeaderMap) -> bool {
    let text = asked.get(header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(',').any(|clause| clause.trim() == "gzip")
}

struct Gzip {
    inner: Body,
    /// What came and is not compressed yet.
    plain: Bytes,
    /// None after the end.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Gzip {
    fn new(inner: Body) -> Self {
        let encoder = GzEncoder::new(Vec::with_capacity(2 * FRAME), Compression::fast());
        Self { inner, plain: Bytes::new(), encoder: Some(encoder) }
    }

    /// Compresses some of what is there; the frame that it fills.
    fn step(&mut self) -> io::Result<Option<Bytes>> {
        let Some(encoder) = &mut self.encoder else { return Ok(None) };
        let some = self.plain.split_to(self.plain.remaining().min(AT_ONCE));
        encoder.write_all(&some)?;
        let filled = encoder.get_ref().len() >= FRAME;
        Ok(filled.then(|| std::mem::replace(encoder.get_mut(), Vec::with_capacity(2 * FRAME)).into()))
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

impl http_body::Body for Gzip {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        loop {
            if !this.plain.is_empty() {
                match this.step() {
                    Ok(Some(frame)) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                    Ok(None) => continue,
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                }
            }
            match std::task::ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                // trailers do not occur
                Some(Ok(frame)) => this.plain = frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let last = this.encoder.take().map(GzEncoder::finish);
                    return Poll::Ready(last.map(|last| Ok(Frame::data(last?.into()))));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, length: usize, encoded: bool) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, accept.parse().unwrap());
        let mut response = crate::answer::bytes(200, "application/json", vec![b'x'; length]);
        if is_asked(&headers) {
            response.extensions_mut().insert(Ours);
        }
        let response = compress(response);
        assert_eq!(response.headers().contains_key(header::CONTENT_ENCODING), encoded, "{accept} {length}");
    }

    #[test]
    fn long_answers_are_compressed_for_who_asks_for_gzip_by_name() {
        check("gzip", 128 * 1024 + 1, true);
        check("gzip", 128 * 1024, false);
        check("deflate, gzip", 200_000, true);
        check("gzip;q=1.0", 200_000, false);
        check("identity", 200_000, false);
        check("", 200_000, false);
    }
}
