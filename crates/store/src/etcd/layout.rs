//! Our keys and revisions, and etcd's.
//!
//! Keys under `/registry/` lie under the configured prefix (by default the same, Kubernetes' own). Beside it lies a
//! small folder of the engine's own keys, `<prefix>.navarch/`; keys that are not under `/registry/` are in there, too.
//! A revision is etcd's plus a fixed offset, which is zero unless the cluster's data came from a store whose numbers were
//! already higher: resource versions never go back.

use std::sync::Arc;

use tonic::Status;

use super::pb::etcdserverpb::{Compare, PutRequest, RequestOp, request_op};
use super::pb::etcdserverpb::{RangeRequest, compare};
use super::pb::mvccpb;
use crate::{KeyValue, Revision, StoreError};

/// What all our keys begin with.
pub(super) const ROOT: &str = "/registry/";

/// Where keys are that are not under it.
const OTHER: &str = "other/";

/// How keys and revisions are translated.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// `/registry/`, or what stands for it; ends with a slash.
    root: String,
    own: String,
    pub offset: u64,
}

impl Layout {
    pub(super) fn new(prefix: &str) -> Layout {
        let prefix = prefix.trim_matches('/');
        Layout { root: format!("/{prefix}/"), own: format!("/{prefix}.navarch/"), offset: 0 }
    }

    /// A key of the engine's own.
    pub(super) fn own_key(&self, name: &str) -> Vec<u8> {
        format!("{}{name}", self.own).into_bytes()
    }

    /// What the keys of the two folders with data begin with.
    pub(super) fn trees(&self) -> [Vec<u8>; 2] {
        [self.root.clone().into_bytes(), self.own_key(OTHER)]
    }

    /// The key in etcd.
    pub(super) fn key(&self, key: &str) -> Vec<u8> {
        match key.strip_prefix(ROOT) {
            Some(rest) => format!("{}{rest}", self.root).into_bytes(),
            None => self.own_key(&format!("{OTHER}{key}")),
        }
    }

    /// Our key; none where it belongs to somebody else.
    pub(super) fn our_key(&self, key: &[u8]) -> Option<Arc<str>> {
        let key = std::str::from_utf8(key).ok()?;
        if let Some(rest) = key.strip_prefix(&self.root) {
            return Some(format!("{ROOT}{rest}").into());
        }
        key.strip_prefix(&self.own)?.strip_prefix(OTHER).map(Arc::from)
    }

    /// Our revision.
    pub(super) fn revision(&self, raw: i64) -> Revision {
        u64::try_from(raw).unwrap_or(0) + self.offset
    }

    /// etcd's revision; 0 for those before its first.
    pub(super) fn raw(&self, revision: Revision) -> i64 {
        i64::try_from(revision.saturating_sub(self.offset)).unwrap_or(i64::MAX)
    }

    /// A revision to read at: etcd takes 0 for "now", so what lies before its first is compacted.
    pub(super) fn readable(&self, at: Revision) -> Result<i64, StoreError> {
        match self.raw(at) {
            0 => Err(StoreError::Compacted { oldest: self.offset + 1 }),
            raw => Ok(raw),
        }
    }

    pub(super) fn key_value(&self, kv: mvccpb::KeyValue) -> Option<KeyValue> {
        Some(KeyValue {
            key: self.our_key(&kv.key)?,
            value: kv.value,
            mod_revision: self.revision(kv.mod_revision),
            create_revision: self.revision(kv.create_revision),
        })
    }
}

/// The end of the range of keys that begin with `prefix`.
pub(super) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// One key, now.
pub(super) fn get(key: Vec<u8>) -> RangeRequest {
    RangeRequest { key, ..RangeRequest::default() }
}

pub(super) fn put_op(key: Vec<u8>, value: bytes::Bytes, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest {
            key,
            value,
            lease,
            ..PutRequest::default()
        })),
    }
}

pub(super) fn get_op(key: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(request_op::Request::RequestRange(get(key))) }
}

/// "The key was last written at this revision."
pub(super) fn written_at(key: Vec<u8>, raw: i64) -> Compare {
    Compare {
        key,
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        target_union: Some(compare::TargetUnion::ModRevision(raw)),
        ..Compare::default()
    }
}

/// "The key does not exist", or with `exists` that it does.
pub(super) fn exists(key: Vec<u8>, exists: bool) -> Compare {
    use compare::CompareResult::{Equal, Greater};
    Compare {
        key,
        result: if exists { Greater } else { Equal }.into(),
        target: compare::CompareTarget::Create.into(),
        target_union: Some(compare::TargetUnion::CreateRevision(0)),
        ..Compare::default()
    }
}

/// What a status of etcd means to callers of the store. `Compacted` and `Future` need figures that the status does not carry:
/// see `super::Etcd::explain`.
pub(super) fn error(status: &Status) -> StoreError {
    let message = status.message();
    if message.contains("database space exceeded") {
        return StoreError::NoSpace {
            reason: format!(
                "etcd's quota is used up ({message}); compact and defragment etcd or raise its --quota-backend-bytes, then \
                 disarm the alarm; deletes still go on"
            ),
        };
    }
    if message.contains("corrupt cluster") {
        return StoreError::Corrupt { file: "etcd".into(), reason: message.to_owned() };
    }
    StoreError::Unavailable(format!("etcd: {}", super::connection::chain(status)))
}

/// Is the request over etcd's size limit?
pub(super) fn is_too_large(status: &Status) -> bool {
    let message = status.message();
    message.contains("request is too large") || message.contains("message larger than max")
}

pub(super) fn is_compacted(status: &Status) -> bool {
    status.message().contains("revision has been compacted")
}

pub(super) fn is_future(status: &Status) -> bool {
    status.message().contains("is a future revision")
}

pub(super) fn is_lost_lease(status: &Status) -> bool {
    status.message().contains("requested lease not found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_kubernetes_own_unless_a_prefix_says_otherwise() {
        let plain = Layout::new("/registry");
        assert_eq!(plain.key("/registry/core/pods/a/b"), b"/registry/core/pods/a/b");
        assert_eq!(plain.our_key(b"/registry/core/pods/a/b").as_deref(), Some("/registry/core/pods/a/b"));
        assert_eq!(plain.our_key(&plain.own_key("offset")), None);
        assert_eq!(plain.our_key(&plain.key("/some/key")).as_deref(), Some("/some/key"));
        let other = Layout::new("one/registry/");
        assert_eq!(other.key("/registry/core/pods/"), b"/one/registry/core/pods/");
        assert_eq!(other.our_key(b"/one/registry/x").as_deref(), Some("/registry/x"));
        assert_eq!(other.our_key(b"/registry/x"), None, "another cluster's");
    }

    #[test]
    fn revisions_are_shifted_by_the_offset() {
        let layout = Layout { offset: 100, ..Layout::new("/registry") };
        assert_eq!((layout.revision(7), layout.raw(107)), (107, 7));
        assert!(matches!(layout.readable(99), Err(StoreError::Compacted { oldest: 101 })));
    }

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert_eq!(prefix_end(b"/a/"), b"/a0");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b""), [0]);
    }
}
