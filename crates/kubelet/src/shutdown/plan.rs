//! Which pods end when, and how long they have: pure.
//!
//! Rule: Kubernetes documentation, "Node Shutdowns", "Pod Priority based graceful node shutdown".

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

/// Pods from this priority on are critical.
const CRITICAL: i32 = 2_000_000_000;

/// How long pods of a priority have, up to the next period's (`ShutdownGracePeriodByPodPriority`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Period {
    /// The least priority of its pods; those of the first period may have less.
    pub priority: i32,
    /// Seconds.
    #[serde(rename = "shutdownGracePeriodSeconds")]
    pub seconds: i64,
}

impl Period {
    /// The same as a length of time.
    pub fn length(self) -> Duration {
        Duration::from_secs(u64::try_from(self.seconds).unwrap_or(0))
    }
}

/// The periods in the order of their priorities, from `shutdownGracePeriod`, `shutdownGracePeriodCriticalPods` and
/// `shutdownGracePeriodByPodPriority`; none where the node goes down at once. The error has the reference's words.
pub fn periods(whole: &str, critical: &str, by_priority: &[Period]) -> Result<Vec<Period>, String> {
    let nanos = |field: &str, text: &str| {
        api::duration::parse(text).map_err(|_| format!("{field}: invalid duration {text:?}"))
    };
    let all = nanos("shutdownGracePeriod", whole)?;
    let last = nanos("shutdownGracePeriodCriticalPods", critical)?;
    if last > all {
        return Err(format!(
            "invalid configuration: shutdownGracePeriodCriticalPods {{{critical}}} must be <= shutdownGracePeriod {{{whole}}}"
        ));
    }
    for (field, nanos, text) in
        [("shutdownGracePeriod", all, whole), ("shutdownGracePeriodCriticalPods", last, critical)]
    {
        if nanos != 0 && nanos < SECOND {
            return Err(format!(
                "invalid configuration: {field} {{{text}}} must be either zero or otherwise >= 1 sec"
            ));
        }
    }
    if by_priority.is_empty() {
        let period = |priority, nanos: i64| Period { priority, seconds: nanos / SECOND };
        return Ok(match all {
            0 => Vec::new(),
            _ => vec![period(0, all - last), period(CRITICAL, last)],
        });
    }
    if all > 0 || last > 0 {
        let text =
            "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time";
        return Err(format!("invalid configuration: {text}"));
    }
    let mut sorted = by_priority.to_vec();
    sorted.sort_by_key(|period| period.priority);
    Ok(sorted)
}

const SECOND: i64 = 1_000_000_000;

/// The pods of each period, in the order in which they end; periods without pods are left out. `periods` are sorted.
pub fn groups(periods: &[Period], pods: Vec<Arc<Pod>>) -> Vec<(Period, Vec<Arc<Pod>>)> {
    let mut groups: Vec<(Period, Vec<Arc<Pod>>)> = periods.iter().map(|p| (*p, Vec::new())).collect();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        // who is below the first one goes with it
        let at = periods.partition_point(|period| period.priority <= priority).saturating_sub(1);
        if let Some((_, members)) = groups.get_mut(at) {
            members.push(pod);
        }
    }
    groups.retain(|(_, members)| !members.is_empty());
    groups
}

/// All that the node asks for.
pub fn whole(periods: &[Period]) -> Duration {
    periods.iter().map(|period| period.length()).fold(Duration::ZERO, Duration::saturating_add)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn period(priority: i32, seconds: i64) -> Period {
        Period { priority, seconds }
    }

    #[test]
    fn critical_pods_have_their_part_of_the_whole_period() {
        let check = |whole: &str, critical: &str, expected: &[Period]| {
            assert_eq!(periods(whole, critical, &[]).as_deref(), Ok(expected));
        };
        check("0s", "0s", &[]);
        check("30s", "10s", &[period(0, 20), period(CRITICAL, 10)]);
        check("1m30s", "0", &[period(0, 90), period(CRITICAL, 0)]);
        let sorted = periods("0s", "0s", &[period(1000, 5), period(-7, 60), period(0, 1)]).unwrap();
        assert_eq!(sorted, [period(-7, 60), period(0, 1), period(1000, 5)]);
        assert_eq!(whole(&sorted), Duration::from_secs(66));
    }

    #[test]
    fn periods_that_cannot_hold_are_refused_in_the_references_words() {
        let check = |whole: &str, critical: &str, by_priority: &[Period], why: &str| {
            assert_eq!(periods(whole, critical, by_priority).unwrap_err(), why);
        };
        let begin = "invalid configuration: shutdownGracePeriod";
        check("1s", "2s", &[], &format!("{begin}CriticalPods {{2s}} must be <= shutdownGracePeriod {{1s}}"));
        check("1ms", "0s", &[], &format!("{begin} {{1ms}} must be either zero or otherwise >= 1 sec"));
        check(
            "1s",
            "-1s",
            &[],
            &format!("{begin}CriticalPods {{-1s}} must be either zero or otherwise >= 1 sec"),
        );
        let both =
            "Cannot specify both shutdownGracePeriodByPodPriority and shutdownGracePeriod at the same time";
        check("1s", "0s", &[period(0, 1)], &format!("invalid configuration: {both}"));
        check("soon", "0s", &[], "shutdownGracePeriod: invalid duration \"soon\"");
    }

    #[test]
    fn pods_end_from_the_least_priority_to_the_highest_with_the_period_below_them() {
        let pod = |name: &str, priority: Option<i32>| -> Arc<Pod> {
            let pod = json!({"metadata": {"name": name}, "spec": {"priority": priority, "containers": []}});
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let pods = || {
            vec![
                pod("system", Some(2_000_001_000)),
                pod("plain", None),
                pod("least", Some(-50)),
                pod("edge", Some(1000)),
                pod("above", Some(1001)),
                pod("below", Some(999)),
            ]
        };
        let shown = |periods: &[Period]| -> Vec<(i64, String)> {
            let name = |pod: &Arc<Pod>| pod.metadata.name.clone().unwrap_or_default();
            let names = |all: Vec<Arc<Pod>>| all.iter().map(name).collect::<Vec<_>>().join(" ");
            groups(periods, pods()).into_iter().map(|(period, all)| (period.seconds, names(all))).collect()
        };
        let list = |expected: &[(i64, &str)]| -> Vec<(i64, String)> {
            expected.iter().map(|(seconds, names)| (*seconds, (*names).to_owned())).collect()
        };
        let all = [period(0, 60), period(1000, 20), period(1_000_000, 7), period(CRITICAL, 10)];
        let expected = list(&[(60, "plain least below"), (20, "edge above"), (10, "system")]);
        assert_eq!(shown(&all), expected, "and nobody waits for a period that has no pods");
        assert_eq!(shown(&[period(5000, 1)]), list(&[(1, "system plain least edge above below")]));
    }
}
