//! Times to live: keys whose times are close share one lease, so that a busy cluster does not keep one lease per Event.
//!
//! A lease is used for new keys for a twentieth of its time (a minute at most) and is granted for that much longer (and a second for the write):
//! every key lives at least as long as was asked for. Keys of one lease go in one revision.

use std::collections::HashMap;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Status;

use super::connection::{Connection, Repeat, request};
use super::pb::etcdserverpb::LeaseGrantRequest;

/// The longest time that a lease is used for new keys, in seconds.
const SHARED_SECONDS: u64 = 60;
/// Keys per lease: what one revision deletes at once.
const KEYS: u32 = 1000;
/// The longest time to live that etcd grants, in seconds.
const LONGEST: u64 = 9_000_000_000;

#[derive(Clone, Copy)]
struct Group {
    lease: i64,
    open_until: Instant,
    keys: u32,
}

/// The leases in use, by the time to live in seconds that they stand for.
#[derive(Default)]
pub(super) struct Leases {
    groups: Mutex<HashMap<u64, Group>>,
}

impl Leases {
    /// A lease that gives a key at least this time to live.
    pub(super) async fn of(&self, connection: &Connection, ttl: Duration) -> Result<i64, Status> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = seconds.clamp(1, LONGEST - SHARED_SECONDS);
        let mut groups = self.groups.lock().await;
        let now = Instant::now();
        if let Some(group) = groups.get_mut(&seconds)
            && now < group.open_until
            && group.keys < KEYS
        {
            group.keys += 1;
            return Ok(group.lease);
        }
        groups.retain(|_, group| now < group.open_until);
        let shared = (seconds / 20).clamp(1, SHARED_SECONDS);
        let grant = LeaseGrantRequest { ttl: i64::try_from(seconds + shared + 1).unwrap_or(i64::MAX), id: 0 };
        // A grant that was carried out twice leaves an empty lease, which ends by itself.
        let granted = connection
            .call(Repeat::Yes, |member| async move { member.lease().lease_grant(request(grant)).await })
            .await?;
        let lease = granted.value.id;
        groups.insert(seconds, Group { lease, open_until: now + Duration::from_secs(shared), keys: 1 });
        Ok(lease)
    }

    /// A lease that etcd no longer knows.
    pub(super) async fn forget(&self, lease: i64) {
        self.groups.lock().await.retain(|_, group| group.lease != lease);
    }
}
