//! Gives up history that is older than the window, once for all servers on one etcd.
//!
//! The protocol is Kubernetes' own, on the same key: at the end of every window each server tries to move the
//! key's version on; the one that succeeds compacts to the revision that it saw one window before.

use std::sync::Weak;

use tonic::Status;

use super::Shared;
use super::connection::{Repeat, request};
use super::layout;
use super::pb::etcdserverpb::{CompactionRequest, Compare, TxnRequest, compare, response_op};

/// The key that kube-apiserver uses, too.
const KEY: &str = "compact_rev_key";

/// Runs until the store is gone.
pub(super) async fn run(shared: Weak<Shared>) {
    let (mut version, mut revision) = (0, 0);
    loop {
        let Some(window) = shared.upgrade().map(|shared| shared.options.history) else { return };
        tokio::time::sleep(window).await;
        let Some(shared) = shared.upgrade() else { return };
        match round(&shared, version, revision).await {
            Ok(next) => (version, revision) = next,
            Err(status) => {
                tracing::warn!(error = %super::connection::chain(&status), "etcd's history could not be compacted");
            }
        }
    }
}

/// One attempt; returns the key's version and etcd's revision as they are now.
async fn round(shared: &Shared, version: i64, revision: i64) -> Result<(i64, i64), Status> {
    let txn = TxnRequest {
        compare: vec![Compare {
            key: KEY.into(),
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Version.into(),
            target_union: Some(compare::TargetUnion::Version(version)),
            ..Compare::default()
        }],
        success: vec![layout::put_op(KEY.into(), revision.to_string().into(), 0)],
        failure: vec![layout::get_op(KEY.into())],
    };
    let send = |member: super::connection::Member| {
        let txn = txn.clone();
        async move { member.kv().txn(request(txn)).await }
    };
    let answer = shared.connection.call(Repeat::No, send).await?.value;
    let now = answer.header.map_or(0, |header| header.revision);
    if !answer.succeeded {
        let found = answer.responses.into_iter().next().and_then(|response| response.response);
        let Some(response_op::Response::ResponseRange(range)) = found else { return Ok((version, now)) };
        return Ok((range.kvs.first().map_or(0, |kv| kv.version), now));
    }
    if revision > 0 {
        let compaction = CompactionRequest { revision, physical: false };
        let send =
            |member: super::connection::Member| async move { member.kv().compact(request(compaction)).await };
        match shared.connection.call(Repeat::Yes, send).await {
            Ok(_) => tracing::debug!(revision, "etcd's history is compacted"),
            Err(status) if layout::is_compacted(&status) => {}
            Err(status) => return Err(status),
        }
    }
    Ok((version + 1, now))
}
