//! One watch of etcd: every change of the whole key space after a revision, over as many connections as it takes.
//!
//! The whole key space, because then every revision comes with an event: how far the watch is, is known exactly, with no need of
//! progress notifications, which older members send too early. Keys that are not ours are dropped here.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::Shared;
use super::connection::{Member, request};
use super::pb::etcdserverpb::watch_request::RequestUnion;
use super::pb::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use super::pb::mvccpb::event::EventType;
use super::pb::{etcdserverpb, mvccpb};
use crate::{Event, EventKind, Revision, StoreError};

/// The pause before the watch is opened again, growing up to the second value.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The message of a status that never comes from etcd.
const RESTORED: &str = "etcd is behind what it showed before";

struct Open {
    member: Member,
    responses: Streaming<WatchResponse>,
    /// Dropped, it ends the watch.
    _requests: mpsc::Sender<WatchRequest>,
}

/// What came: all of our events up to a revision.
pub(super) struct Arrived {
    pub events: Vec<Event>,
    /// Nothing at or before this revision is to come.
    pub seen: Revision,
}

pub(super) struct Source {
    /// Everything up to here was delivered.
    seen: Revision,
    open: Option<Open>,
    pause: Duration,
}

impl Source {
    /// Changes after `from`, which is not in the future.
    pub(super) fn new(from: Revision) -> Source {
        Source { seen: from, open: None, pause: PAUSE }
    }

    /// The next changes; waits for them, through failures of members. Errors are final.
    pub(super) async fn next(&mut self, shared: &Shared) -> Result<Arrived, StoreError> {
        loop {
            let open = match &mut self.open {
                Some(open) => open,
                None => match self.open(shared).await {
                    Ok(open) => self.open.insert(open),
                    Err(status) => {
                        self.failed(&status).await?;
                        continue;
                    }
                },
            };
            let status = match open.responses.message().await {
                Ok(Some(response)) => match self.arrived(shared, response) {
                    Ok(None) => continue,
                    Ok(Some(arrived)) => return Ok(arrived),
                    Err(Refused::Final(error)) => return Err(error),
                    Err(Refused::Reopen(status)) => status,
                },
                Ok(None) => Status::unavailable("the watch's stream ended"),
                Err(status) => status,
            };
            if let Some(open) = self.open.take() {
                shared.connection.give_up(&open.member).await;
            }
            self.failed(&status).await?;
        }
    }

    async fn failed(&mut self, status: &Status) -> Result<(), StoreError> {
        if status.message() == RESTORED {
            tracing::error!(
                after = self.seen,
                "etcd's revision went back: it was restored from an older state"
            );
            return Err(StoreError::Compacted { oldest: self.seen });
        }
        if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument) {
            return Err(super::layout::error(status));
        }
        tracing::warn!(
            error = %super::connection::chain(status),
            after = self.seen,
            "the watch of etcd broke off; it is opened again"
        );
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }

    async fn open(&self, shared: &Shared) -> Result<Open, Status> {
        let member = shared.connection.connect().await?;
        let create = WatchCreateRequest {
            key: vec![0],
            range_end: vec![0],
            // From the last one that is known: a compaction just behind it is told then. What came before is left out.
            start_revision: shared.layout.raw(self.seen).max(1),
            progress_notify: true,
            prev_kv: true,
            ..WatchCreateRequest::default()
        };
        let (requests, receiver) = mpsc::channel(1);
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        requests.try_send(create).map_err(|error| Status::internal(error.to_string()))?;
        let opening = async {
            let stream = request(ReceiverStream::new(receiver));
            let mut responses = member.watch().watch(stream).await?.into_inner();
            // The first answer is about the watch itself.
            match responses.message().await? {
                Some(first) if first.created => {
                    let known = first.header.map_or(0, |header| shared.layout.revision(header.revision));
                    Ok((Open { member: member.clone(), responses, _requests: requests }, known))
                }
                Some(first) => {
                    Err(Status::unavailable(format!("the watch was refused: {}", first.cancel_reason)))
                }
                None => Err(Status::unavailable("the watch's stream ended")),
            }
        };
        let opened = tokio::time::timeout(shared.options.timeout, opening).await;
        let opened =
            opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("etcd did not open the watch in time")));
        if opened.is_err() {
            shared.connection.give_up(&member).await;
        }
        let (open, known) = opened?;
        // A member may be behind for a moment. A cluster that is behind was restored from an older state: what the
        // watch waits for will have other contents.
        if known < self.seen && shared.newest().await? < self.seen {
            return Err(Status::data_loss(RESTORED));
        }
        Ok(open)
    }

    fn arrived(&mut self, shared: &Shared, response: WatchResponse) -> Result<Option<Arrived>, Refused> {
        if response.compact_revision > 0 {
            let oldest = shared.layout.revision(response.compact_revision);
            return Err(Refused::Final(StoreError::Compacted { oldest }));
        }
        if response.canceled {
            return Err(Refused::Reopen(Status::unavailable(response.cancel_reason)));
        }
        self.pause = PAUSE;
        let Some(last) = response.events.last().and_then(|event| event.kv.as_ref()) else { return Ok(None) };
        let seen = shared.layout.revision(last.mod_revision);
        let mut events = Vec::with_capacity(response.events.len());
        for event in response.events {
            let Some(kv) = event.kv.as_ref() else { continue };
            if shared.layout.revision(kv.mod_revision) <= self.seen
                || shared.layout.our_key(&kv.key).is_none()
            {
                continue;
            }
            match convert(shared, event) {
                Some(event) => events.push(event),
                // Its previous value is compacted: the watch is too far behind.
                None => return Err(Refused::Final(StoreError::Compacted { oldest: seen })),
            }
        }
        if seen <= self.seen {
            return Ok(None);
        }
        self.seen = seen;
        Ok(Some(Arrived { events, seen }))
    }
}

enum Refused {
    Final(StoreError),
    Reopen(Status),
}

fn convert(shared: &Shared, event: mvccpb::Event) -> Option<Event> {
    let kind = if event.r#type() == EventType::Put { EventKind::Put } else { EventKind::Delete };
    let prev = event.prev_kv.and_then(|prev| shared.layout.key_value(prev));
    let mut kv = shared.layout.key_value(event.kv?)?;
    match (kind, &prev) {
        (EventKind::Put, None) if kv.create_revision != kv.mod_revision => return None,
        (EventKind::Put, _) => {}
        (EventKind::Delete, Some(prev)) => {
            kv.value = prev.value.clone();
            kv.create_revision = prev.create_revision;
        }
        (EventKind::Delete, None) => return None,
    }
    Some(Event { kind, kv, prev })
}

/// The oldest revision that can be read: what a watch from the beginning is told.
pub(super) async fn oldest(shared: &Shared) -> Option<Revision> {
    let member = shared.connection.connect().await.ok()?;
    let create = WatchCreateRequest {
        key: shared.layout.own_key("nothing"),
        start_revision: 1,
        ..WatchCreateRequest::default()
    };
    let (requests, receiver) = mpsc::channel(1);
    requests.try_send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).ok()?;
    let asking = async {
        let mut responses =
            member.watch().watch(request(ReceiverStream::new(receiver))).await.ok()?.into_inner();
        loop {
            let response: etcdserverpb::WatchResponse = responses.message().await.ok()??;
            if response.compact_revision > 0 {
                return Some(shared.layout.revision(response.compact_revision));
            }
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(2), asking).await.ok().flatten();
    drop(requests);
    found
}
