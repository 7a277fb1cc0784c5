//! `/stats/summary`: what containers use, as the runtime measures it, grouped by pod.
//!
//! Only what was measured is reported; a field without a measurement is absent, not zero.

use std::collections::BTreeMap;
use std::sync::Arc;

use cri::v1::{ContainerStats, FilesystemUsage, UInt64Value};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use crate::observed::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};

/// The answer's JSON (kubelet `stats/v1alpha1` Summary).
pub(super) fn summary(pods: &[Arc<Pod>], stats: &[ContainerStats]) -> Value {
    let node = pods.iter().find_map(|p| p.spec.as_ref()?.node_name.clone());
    let node = node.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let mut by_pod: BTreeMap<[&str; 3], Vec<&ContainerStats>> = BTreeMap::new();
    for stat in stats {
        let Some(attributes) = &stat.attributes else { continue };
        let label = |name: &str| attributes.labels.get(name).map_or("", String::as_str);
        by_pod.entry([label(POD_NAMESPACE), label(POD_NAME), label(POD_UID)]).or_default().push(stat);
    }
    let items: Vec<Value> = by_pod
        .into_iter()
        .map(|([namespace, name, uid], stats)| {
            let mut item = json!({
                "podRef": {"name": name, "namespace": namespace, "uid": uid},
                "containers": stats.iter().map(|s| container(s)).collect::<Vec<_>>(),
            });
            let known = pods.iter().find(|p| p.metadata.uid.as_deref() == Some(uid));
            if let Some(start) = known.and_then(|p| p.status.as_ref()?.start_time.as_ref()) {
                item["startTime"] = json!(start);
            }
            item
        })
        .collect();
    json!({"node": {"nodeName": node}, "pods": items})
}

fn container(stats: &ContainerStats) -> Value {
    let label = stats.attributes.as_ref().and_then(|a| a.labels.get(CONTAINER_NAME));
    let mut out = json!({"name": label.map_or("", String::as_str)});
    if let Some(cpu) = &stats.cpu {
        let values = [
            ("usageNanoCores", &cpu.usage_nano_cores),
            ("usageCoreNanoSeconds", &cpu.usage_core_nano_seconds),
        ];
        out["cpu"] = measured(cpu.timestamp, &values);
    }
    if let Some(memory) = &stats.memory {
        let values = [
            ("availableBytes", &memory.available_bytes),
            ("usageBytes", &memory.usage_bytes),
            ("workingSetBytes", &memory.working_set_bytes),
            ("rssBytes", &memory.rss_bytes),
            ("pageFaults", &memory.page_faults),
            ("majorPageFaults", &memory.major_page_faults),
        ];
        out["memory"] = measured(memory.timestamp, &values);
    }
    if let Some(FilesystemUsage { timestamp, used_bytes, inodes_used, .. }) = &stats.writable_layer {
        out["rootfs"] = measured(*timestamp, &[("usedBytes", used_bytes), ("inodesUsed", inodes_used)]);
    }
    out
}

fn measured(nanoseconds: i64, values: &[(&str, &Option<UInt64Value>)]) -> Value {
    let mut out = Map::new();
    if let Ok(time) = Timestamp::from_nanosecond(i128::from(nanoseconds)) {
        let seconds = Timestamp::from_second(time.as_second()).unwrap_or(time);
        out.insert("time".to_owned(), json!(seconds.to_string()));
    }
    for (name, value) in values {
        if let Some(value) = value {
            out.insert((*name).to_owned(), json!(value.value));
        }
    }
    Value::Object(out)
}
