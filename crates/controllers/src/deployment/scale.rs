//! Scaling a deployment that is paused or in the middle of a rollout: the change is spread over its sets in
//! proportion to their sizes, so that a canary stays a canary.
use std::cmp::Reverse;

use super::bounds::{desired, is_rolling, max_surge};
use super::plan::{Pass, annotated_desired, annotated_max, available, replicas};
use crate::ownership::name;

pub(super) fn scale(pass: &mut Pass<'_>) {
    let wanted = desired(pass.d);
    if let Some(only) = active_or_latest(pass) {
        // The sizes noted on the set must follow even when its size is right already, or every pass would think
        // that the deployment was just scaled.
        let noted = annotated_desired(&pass.sets[only]).is_none_or(|v| v == wanted);
        if replicas(&pass.sets[only]) != wanted || !noted {
            pass.resize(only, wanted);
        }
        return;
    }
    if let Some(new) = pass.new
        && annotated_desired(&pass.sets[new]) == Some(wanted)
        && replicas(&pass.sets[new]) == wanted
        && available(&pass.sets[new]) == wanted
    {
        for i in pass.old() {
            if replicas(&pass.sets[i]) > 0 {
                pass.resize(i, 0);
            }
        }
        return;
    }
    if is_rolling(pass.d) {
        proportionally(pass);
    }
}

/// The one set to scale: the only active one, or the newest when none is. `None` when several are active.
fn active_or_latest(pass: &Pass<'_>) -> Option<usize> {
    let active: Vec<usize> = (0..pass.sets.len()).filter(|i| replicas(&pass.sets[*i]) > 0).collect();
    match active[..] {
        [] => pass.new.or_else(|| pass.old().last().copied()),
        [only] => Some(only),
        _ => None,
    }
}

fn proportionally(pass: &mut Pass<'_>) {
    let wanted = desired(pass.d);
    let mut active: Vec<usize> = (0..pass.sets.len()).filter(|i| replicas(&pass.sets[*i]) > 0).collect();
    let total: i32 = active.iter().map(|i| replicas(&pass.sets[*i])).sum();
    let allowed = if wanted > 0 { wanted.saturating_add(max_surge(pass.d)) } else { 0 };
    let to_add = allowed - total;
    // The largest set takes what rounding leaves over: among equals the newest grows and the oldest shrinks.
    // Indexes are in order of age.
    if to_add > 0 {
        active.sort_by_key(|i| (Reverse(replicas(&pass.sets[*i])), Reverse(*i)));
    } else {
        active.sort_by_key(|i| (Reverse(replicas(&pass.sets[*i])), *i));
    }
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::with_capacity(active.len());
    for &i in &active {
        let size = replicas(&pass.sets[i]);
        let share = if to_add == 0 { 0 } else { proportion(pass, i, to_add, added) };
        added += share;
        sizes.push(size + share);
    }
    for (position, (&i, size)) in active.iter().zip(sizes).enumerate() {
        let size = if position == 0 { (size + to_add - added).max(0) } else { size };
        tracing::trace!(set = name(&pass.sets[i].metadata), size, "proportional scaling");
        pass.resize(i, size);
    }
}

/// The share of one set in the change `to_add` of which `added` is given out.
fn proportion(pass: &Pass<'_>, index: usize, to_add: i32, added: i32) -> i32 {
    let (set, left) = (&pass.sets[index], to_add - added);
    let size = i64::from(replicas(set));
    if size == 0 || left == 0 {
        return 0;
    }
    let wanted = desired(pass.d);
    let share = if wanted == 0 {
        -size
    } else {
        let after = i64::from(wanted.saturating_add(max_surge(pass.d)));
        let before = annotated_max(set)
            .filter(|v| *v > 0)
            .or_else(|| pass.d.status.as_ref().and_then(|s| s.replicas).filter(|v| *v > 0))
            .map_or(after, i64::from);
        // Rounded half away from zero; all values are positive.
        (2 * size * after + before) / (2 * before) - size
    };
    let share = i32::try_from(share).unwrap_or(if share > 0 { i32::MAX } else { i32::MIN });
    if to_add > 0 { share.min(left) } else { share.max(left) }
}
