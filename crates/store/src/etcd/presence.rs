//! Which servers stand on this etcd: each keeps one key with a lease, so that nobody moves the data away under them.

use std::sync::Weak;
use std::time::Duration;

use tonic::Status;

use super::Shared;
use super::connection::{Member, Repeat, request};
use super::layout;
use super::pb::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest, TxnRequest,
};
use crate::StoreError;

const SERVERS: &str = "servers/";
/// A server that is gone is forgotten after this time.
const TTL: Duration = Duration::from_secs(15);

/// The names of the servers that are there now.
pub(super) async fn servers(shared: &Shared) -> Result<Vec<String>, StoreError> {
    let key = shared.layout.own_key(SERVERS);
    let range_end = layout::prefix_end(&key);
    let found = shared.read(RangeRequest { range_end, ..layout::get(key) }).await;
    let found = found.map_err(|status| layout::error(&status))?;
    Ok(found.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).collect())
}

/// Makes this server known; the lease to keep.
pub(super) async fn announce(shared: &Shared, name: &str) -> Result<i64, Status> {
    let grant = LeaseGrantRequest { ttl: TTL.as_secs() as i64, id: 0 };
    let send = |member: Member| async move { member.lease().lease_grant(request(grant)).await };
    let lease = shared.connection.call(Repeat::Yes, send).await?.value.id;
    let key = shared.layout.own_key(&format!("{SERVERS}{lease:x}"));
    let put = layout::put_op(key, name.to_owned().into(), lease);
    shared.transact(Repeat::Yes, TxnRequest { success: vec![put], ..TxnRequest::default() }).await?;
    Ok(lease)
}

/// Keeps it known until the store is gone.
pub(super) async fn keep(shared: Weak<Shared>, name: String, mut lease: i64) {
    loop {
        tokio::time::sleep(TTL / 3).await;
        let Some(shared) = shared.upgrade() else { return };
        let alive = async {
            let send = |member: Member| {
                let ask = tokio_stream::once(LeaseKeepAliveRequest { id: lease });
                async move { member.lease().lease_keep_alive(request(ask)).await }
            };
            let mut answers = shared.connection.call(Repeat::Yes, send).await?.value;
            let answer = tokio::time::timeout(shared.options.timeout, answers.message()).await;
            let answer = answer.map_err(|_| Status::deadline_exceeded("no answer to the keep-alive"))??;
            Ok::<bool, Status>(answer.is_some_and(|answer| answer.ttl > 0))
        };
        match alive.await {
            Ok(true) => {}
            // The lease ran out while etcd could not be reached.
            Ok(false) => match announce(&shared, &name).await {
                Ok(new) => lease = new,
                Err(status) => tracing::debug!(error = %status, "this server could not be announced"),
            },
            Err(status) => tracing::debug!(error = %status, "the lease of this server could not be kept"),
        }
    }
}

/// Forgets this server at once.
pub(super) async fn leave(shared: &Shared, lease: i64) {
    let revoke = LeaseRevokeRequest { id: lease };
    let send = |member: Member| async move { member.lease().lease_revoke(request(revoke)).await };
    if let Err(status) = shared.connection.call(Repeat::Yes, send).await {
        tracing::debug!(error = %status, "the lease of this server ends by itself");
    }
}
