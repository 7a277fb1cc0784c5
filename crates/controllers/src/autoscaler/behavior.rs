//! How a proposed size becomes the next one: recent proposals steady it, policies bound its pace, the autoscaler its ends.
//!
//! The history is a measurement: after a restart it begins with the size the target has, so that nothing shrinks at once.
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};

/// How long the highest proposal counts where the autoscaler does not say.
const DOWNSCALE_WINDOW: i32 = 300;
/// Without policies a target may double, or grow to this.
const SMALL: i32 = 4;

/// What happened lately: sizes proposed, and pods added and removed.
#[derive(Debug, Default)]
pub(super) struct History {
    proposals: Vec<(Timestamp, i32)>,
    added: Vec<(Timestamp, i32)>,
    removed: Vec<(Timestamp, i32)>,
}

impl History {
    pub(super) fn new(size: i32, now: Timestamp) -> Self {
        Self { proposals: vec![(now, size)], ..Self::default() }
    }

    /// The target was scaled.
    pub(super) fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        if to > from {
            self.added.push((now, to - from));
        } else {
            self.removed.push((now, from - to));
        }
    }

    fn propose(&mut self, size: i32, keep: i32, now: Timestamp) {
        self.proposals.retain(|(at, _)| is_recent(*at, keep, now));
        self.proposals.push((now, size));
    }

    fn forget(&mut self, behavior: &HorizontalPodAutoscalerBehavior, now: Timestamp) {
        let rules = [&behavior.scale_up, &behavior.scale_down];
        let policies = rules.into_iter().flatten().flat_map(|r| r.policies.iter().flatten());
        let longest = policies.map(|p| p.period_seconds).max().unwrap_or(0);
        for list in [&mut self.added, &mut self.removed] {
            list.retain(|(at, _)| is_recent(*at, longest, now));
        }
    }

    fn within(list: &[(Timestamp, i32)], seconds: i32, now: Timestamp) -> i32 {
        list.iter()
            .filter(|(at, _)| is_recent(*at, seconds, now))
            .fold(0, |sum, (_, n)| i32::saturating_add(sum, *n))
    }
}

fn is_recent(at: Timestamp, seconds: i32, now: Timestamp) -> bool {
    now.duration_since(at) < SignedDuration::from_secs(i64::from(seconds))
}

/// A size between bounds, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Normal {
    pub(super) size: i32,
    /// Reason and message of AbleToScale.
    pub(super) able: (&'static str, &'static str),
    /// Of ScalingLimited, and whether it is.
    pub(super) limited: bool,
    pub(super) limit: (&'static str, &'static str),
}

/// The bounds of an autoscaler and where its target stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Range {
    pub(super) current: i32,
    pub(super) min: i32,
    pub(super) max: i32,
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABLE: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABLE: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const IN_RANGE: (&str, &str) = ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FAST_UP: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const TOO_FAST_DOWN: (&str, &str) =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");

/// The next size for a proposal.
pub(super) fn normalize(
    history: &mut History,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    range: Range,
    proposed: i32,
    now: Timestamp,
) -> Normal {
    let (steady, stable) = stabilize(history, behavior, range.current, proposed, now);
    let able = if steady == proposed { READY } else { stable };
    let (size, limit) = match behavior {
        None => bound(range, steady),
        Some(behavior) => {
            history.forget(behavior, now);
            bound_by_rules(history, behavior, range, steady, now)
        }
    };
    Normal { size, able, limited: size != steady, limit }
}

/// The lowest of the recent proposals on the way up, the highest on the way down.
fn stabilize(
    history: &mut History,
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    current: i32,
    proposed: i32,
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    let window = |rules: Option<&HPAScalingRules>, default| {
        rules.and_then(|r| r.stabilization_window_seconds).unwrap_or(default)
    };
    let up = window(behavior.and_then(|b| b.scale_up.as_ref()), 0);
    let down = window(behavior.and_then(|b| b.scale_down.as_ref()), DOWNSCALE_WINDOW);
    let recent = |seconds: i32| {
        history.proposals.iter().filter(move |(at, _)| is_recent(*at, seconds, now)).map(|(_, n)| *n)
    };
    let result = if behavior.is_some() && proposed >= current {
        (recent(up).chain([proposed]).min().unwrap_or(proposed), UP_STABLE)
    } else {
        (recent(down).chain([proposed]).max().unwrap_or(proposed), DOWN_STABLE)
    };
    history.propose(proposed, up.max(down), now);
    result
}

fn bound(range: Range, wanted: i32) -> (i32, (&'static str, &'static str)) {
    let pace = range.current.saturating_mul(2).max(SMALL);
    let (most, why) = if range.max > pace { (pace, TOO_FAST_UP) } else { (range.max, TOO_MANY) };
    if wanted < range.min {
        (range.min, TOO_FEW)
    } else if wanted > most {
        (most, why)
    } else {
        (wanted, IN_RANGE)
    }
}

fn bound_by_rules(
    history: &History,
    behavior: &HorizontalPodAutoscalerBehavior,
    range: Range,
    wanted: i32,
    now: Timestamp,
) -> (i32, (&'static str, &'static str)) {
    let current = range.current;
    if wanted > current {
        let pace = pace(history, behavior.scale_up.as_ref(), current, true, now).max(current);
        let (most, why) = if range.max > pace { (pace, TOO_FAST_UP) } else { (range.max, TOO_MANY) };
        if wanted > most {
            return (most, why);
        }
    } else if wanted < current {
        let pace = pace(history, behavior.scale_down.as_ref(), current, false, now).min(current);
        let (least, why) = if range.min < pace { (pace, TOO_FAST_DOWN) } else { (range.min, TOO_FEW) };
        if wanted < least {
            return (least, why);
        }
    }
    (wanted, IN_RANGE)
}

/// The size that the policies allow by now, of several the one that changes most unless the rules ask for the least.
fn pace(history: &History, rules: Option<&HPAScalingRules>, current: i32, up: bool, now: Timestamp) -> i32 {
    let select = rules.and_then(|r| r.select_policy.as_deref()).unwrap_or("Max");
    if select == "Disabled" {
        return current;
    }
    let policies = rules.and_then(|r| r.policies.as_deref()).unwrap_or_default();
    let sizes = policies.iter().map(|policy| {
        let seconds = policy.period_seconds;
        let added = History::within(&history.added, seconds, now);
        let removed = History::within(&history.removed, seconds, now);
        let start = current.saturating_sub(added).saturating_add(removed);
        let share = f64::from(start) * f64::from(policy.value) / 100.0;
        match (policy.type_.as_str(), up) {
            ("Percent", true) => (f64::from(start) + share).ceil() as i32,
            ("Percent", false) => (f64::from(start) - share) as i32,
            (_, true) => start.saturating_add(policy.value),
            (_, false) => start.saturating_sub(policy.value),
        }
    });
    let size = if (select == "Min") == up { sizes.min() } else { sizes.max() };
    size.unwrap_or(if up { i32::MAX } else { i32::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + seconds)
    }

    fn range(current: i32) -> Range {
        Range { current, min: 2, max: 100 }
    }

    #[test]
    fn a_target_doubles_at_most_and_shrinks_only_after_five_minutes() {
        let mut history = History::new(10, at(0));
        let grown = normalize(&mut history, None, range(10), 50, at(1));
        assert_eq!((grown.size, grown.limited, grown.limit), (20, true, TOO_FAST_UP));
        let held = normalize(&mut history, None, range(20), 5, at(100));
        assert_eq!((held.size, held.able, held.limit), (40, DOWN_STABLE, TOO_FAST_UP));
        let mut history = History::new(10, at(0));
        assert_eq!(normalize(&mut history, None, range(10), 5, at(299)).size, 10);
        let shrunk = normalize(&mut history, None, range(10), 1, at(301));
        assert_eq!((shrunk.size, shrunk.able, shrunk.limit), (5, DOWN_STABLE, IN_RANGE));
        let least = normalize(&mut history, None, range(10), 1, at(700));
        assert_eq!((least.size, least.limited, least.limit), (2, true, TOO_FEW));
    }

    fn check(
        behavior: Value,
        history: &mut History,
        current: i32,
        proposed: i32,
        now: i64,
        want: i32,
        limit: (&str, &str),
    ) {
        let behavior: HorizontalPodAutoscalerBehavior = serde_json::from_value(behavior).expect("behavior");
        let normal = normalize(history, Some(&behavior), range(current), proposed, at(now));
        assert_eq!((normal.size, normal.limit), (want, limit), "{behavior:?}");
    }

    #[test]
    fn policies_bound_the_change_per_period() {
        let up = json!({"scaleUp": {"selectPolicy": "Max", "stabilizationWindowSeconds": 0, "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]}});
        let mut history = History::new(10, at(0));
        check(up.clone(), &mut history, 10, 50, 10, 14, TOO_FAST_UP);
        history.scaled(10, 14, at(10));
        // The period has been used up, and begins anew.
        check(up.clone(), &mut history, 14, 50, 30, 14, TOO_FAST_UP);
        check(up, &mut history, 14, 50, 71, 18, TOO_FAST_UP);
        let down = |select: &str| {
            json!({"scaleDown": {"selectPolicy": select, "stabilizationWindowSeconds": 0, "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 60}, {"type": "Percent", "value": 10, "periodSeconds": 60}]}})
        };
        check(down("Min"), &mut History::default(), 80, 10, 0, 76, TOO_FAST_DOWN);
        check(down("Max"), &mut History::default(), 80, 10, 0, 72, TOO_FAST_DOWN);
        check(down("Disabled"), &mut History::default(), 80, 10, 0, 80, TOO_FAST_DOWN);
    }

    #[test]
    fn growth_waits_for_a_steady_proposal_where_a_window_asks_for_it() {
        let window = json!({"scaleUp": {"stabilizationWindowSeconds": 60, "policies": []}, "scaleDown": {"stabilizationWindowSeconds": 0, "policies": []}});
        let mut history = History::new(10, at(0));
        check(window.clone(), &mut history, 10, 20, 30, 10, IN_RANGE);
        check(window.clone(), &mut history, 10, 15, 61, 15, IN_RANGE);
        check(window, &mut history, 15, 30, 100, 15, IN_RANGE);
    }
}
