//! The JSON of a list, copied piece by piece from the objects' own bytes while it is sent: a list of any length takes
//! the memory of one piece.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::vec;

use api::kinds::Kind;
use api::object::Object;
use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Frame, SizeHint};
use serde_json::json;

use crate::answer::ListMeta;
use crate::watch_cache::metadata_at;

/// A piece is at least this long, but for the last one.
const PIECE: usize = 128 * 1024;
const END: &[u8] = b"]}\n";

/// The body of a list in JSON.
pub struct ListBody<O> {
    /// What comes before the items; empty once it is sent.
    head: Bytes,
    items: vec::IntoIter<O>,
    /// Items of a typed list do not repeat the list's kind.
    is_typed: bool,
    /// Whether an item was sent.
    begun: bool,
    /// Bytes not sent yet.
    left: usize,
}

impl<O: AsRef<Object>> ListBody<O> {
    /// Of these items.
    pub fn new(kind: &Kind, items: Vec<O>, meta: &ListMeta) -> Self {
        let is_typed = kind.definition.is_none();
        let mut list_meta = meta.to_value();
        // lists that have no type of their own always say where they go on
        if !is_typed {
            list_meta["continue"] = json!(meta.next);
        }
        let (name, version) = (json!(kind.list_kind), json!(kind.api_version()));
        let head = format!("{{\"kind\":{name},\"apiVersion\":{version},\"metadata\":{list_meta},\"items\":[");
        let commas = items.len().saturating_sub(1);
        let sizes = items
            .iter()
            .map(|item| item_parts(item.as_ref(), is_typed).map_or(0, |(a, b)| a.len() + b.len()));
        let left = head.len() + sizes.sum::<usize>() + commas + END.len();
        Self { head: head.into(), items: items.into_iter(), is_typed, begun: false, left }
    }

    /// How long the list is.
    pub fn len(&self) -> usize {
        self.left
    }

    /// Whether nothing is left to send.
    pub fn is_empty(&self) -> bool {
        self.left == 0
    }

    /// The next piece; `None` at the end.
    fn piece(&mut self, at_least: usize) -> Option<Bytes> {
        if self.left == 0 {
            return None;
        }
        let mut out = BytesMut::with_capacity(self.left.min(at_least + at_least / 4));
        out.put_slice(&std::mem::take(&mut self.head));
        while out.len() < at_least {
            let Some(item) = self.items.next() else {
                out.put_slice(END);
                break;
            };
            if std::mem::replace(&mut self.begun, true) {
                out.put_u8(b',');
            }
            if let Some((open, rest)) = item_parts(item.as_ref(), self.is_typed) {
                out.put_slice(open);
                out.put_slice(rest);
            }
        }
        self.left = self.left.saturating_sub(out.len());
        Some(out.freeze())
    }

    /// The whole list at once.
    pub fn whole(mut self) -> Bytes {
        self.piece(usize::MAX / 2).unwrap_or_default()
    }
}

/// An item as two pieces: without the kind that a typed list says once, the bytes from `metadata` on are the item.
fn item_parts(object: &Object, is_typed: bool) -> Option<(&'static [u8], &[u8])> {
    let json = object.json();
    match metadata_at(json) {
        Some(at) if is_typed => Some((b"{", json.get(at..)?)),
        _ => Some((b"", json)),
    }
}

impl<O: AsRef<Object> + Unpin> http_body::Body for ListBody<O> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.get_mut().piece(PIECE).map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}
