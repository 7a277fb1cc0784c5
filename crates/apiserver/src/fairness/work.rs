//! What a request is thought to cost, in seats.
//!
//! Rule: KEP-1040, "Request width": a list counts by the bytes it reads, a write by the watches it wakes.

use std::time::Duration;

use super::queues::Work;
use crate::pipeline::ApiServer;
use crate::request_info::RequestInfo;

/// Bytes that a seat stands for.
const BYTES: usize = 100_000;
/// A list from the cache is thought to hold no more than this at once.
const FROM_CACHE: usize = 1_000_000;
/// Most seats of a list.
const LIST_SEATS: u32 = 100;
/// Most seats of what a write sets off.
const WRITE_SEATS: u32 = 10;
/// Watches that a seat serves.
const WATCHES: usize = 10;
/// How long a write's event keeps the server busy.
const EVENT: Duration = Duration::from_millis(5);
/// No request takes more than this part of its level's seats.
const PART: f64 = 0.15;

/// The most seats that one request takes of a level with this many.
fn most_of(nominal: u32) -> u32 {
    ((f64::from(nominal) * PART).ceil() as u32).max(1)
}

/// Estimates a request, for a level with this many seats of its own.
pub fn estimate(server: &ApiServer, info: &RequestInfo, nominal: u32) -> Work {
    if !info.is_resource {
        return Work::ONE;
    }
    match info.verb.as_str() {
        "get" => Work::ONE,
        "list" => Work { seats: list(server, info).clamp(1, LIST_SEATS.min(most_of(nominal))), ..Work::ONE },
        "watch" if info.query.flag("sendInitialEvents") => {
            Work { seats: list(server, info).clamp(1, LIST_SEATS.min(most_of(nominal))), ..Work::ONE }
        }
        "create" | "update" | "patch" | "delete" if info.subresource != "token" => {
            write(server, info, nominal)
        }
        _ => Work::ONE,
    }
}

fn list(server: &ApiServer, info: &RequestInfo) -> u32 {
    let kinds = server.kinds.now();
    let Some(kind) = kinds.find(&info.group, &info.version, &info.resource) else { return 1 };
    let (count, size) = server.registry.cache().size_of(kind);
    let limit = info.query.get("limit").parse().ok().filter(|limit| *limit > 0).unwrap_or(count);
    let limited = count.min(limit);
    let (rv, matching) = (info.query.get("resourceVersion"), info.query.get("resourceVersionMatch"));
    let is_from_store =
        !info.query.get("continue").is_empty() || matching == "Exact" && !matches!(rv, "" | "0");
    let selects = info.query.has("fieldSelector") || info.query.has("labelSelector");
    let objects = match () {
        () if !info.name.is_empty() => 1,
        () if is_from_store && selects => limited.max(count / 2),
        () => limited,
    };
    let mut bytes = objects.saturating_mul(size);
    if !is_from_store {
        bytes = bytes.min(FROM_CACHE);
    }
    u32::try_from(bytes.div_ceil(BYTES)).unwrap_or(u32::MAX)
}

fn write(server: &ApiServer, info: &RequestInfo, nominal: u32) -> Work {
    let kinds = server.kinds.now();
    let Some(kind) = kinds.find(&info.group, &info.version, &info.resource) else { return Work::ONE };
    let watches = server.registry.cache().watches_of(kind);
    if watches < WATCHES {
        return Work::ONE;
    }
    let seats = u32::try_from(watches.div_ceil(WATCHES)).unwrap_or(u32::MAX);
    Work { seats: 1, after_seats: seats.clamp(1, WRITE_SEATS.min(most_of(nominal))), after: EVENT }
}
