//! Events: one layout for the core kind and the one of events.k8s.io, whose fields have other names.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use k8s_openapi::schemars::JsonSchema;
use serde_json::{Value, json};

use super::Layout;
use super::column::{Column, NAME, string_of};
use super::duration::since;
use super::format::{int, text, text_or};

static EVENT: &[Column] = &[
    string_of("Last Seen", Event::json_schema, "lastTimestamp"),
    string_of("Type", Event::json_schema, "type"),
    string_of("Reason", Event::json_schema, "reason"),
    string_of("Object", Event::json_schema, "involvedObject"),
    string_of("Subobject", ObjectReference::json_schema, "fieldPath").wide(),
    string_of("Source", Event::json_schema, "source").wide(),
    string_of("Message", Event::json_schema, "message"),
    string_of("First Seen", Event::json_schema, "firstTimestamp").wide(),
    string_of("Count", Event::json_schema, "count").wide(),
    NAME.wide(),
];

pub(super) static LAYOUTS: &[Layout] = &[
    Layout { group: "", kind: "Event", columns: EVENT, cells: event },
    Layout { group: "events.k8s.io", kind: "Event", columns: EVENT, cells: event },
];

/// The field of either form.
fn either<'a>(o: &'a Value, core: &str, new: &str) -> &'a str {
    text_or(o, core, text(o, new))
}

fn event(o: &Value, now: Timestamp) -> Vec<Value> {
    let time = |t: &str| since(Some(t).filter(|t| !t.is_empty()), now);
    let event_time = text(o, "/eventTime");
    let first = Some(either(o, "/firstTimestamp", "/deprecatedFirstTimestamp")).filter(|t| !t.is_empty());
    let first = time(first.unwrap_or(event_time));
    let mut last = match either(o, "/lastTimestamp", "/deprecatedLastTimestamp") {
        "" => first.clone(),
        t => time(t),
    };
    let mut count = int(o, "/count").max(int(o, "/deprecatedCount"));
    if let Some(series) = o.get("series").filter(|s| !s.is_null()) {
        last = time(text(series, "/lastObservedTime"));
        count = int(series, "/count");
    } else if count == 0 {
        count = 1;
    }
    let kind = either(o, "/involvedObject/kind", "/regarding/kind").to_lowercase();
    let target = match either(o, "/involvedObject/name", "/regarding/name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = [
        either(o, "/source/component", "/deprecatedSource/component"),
        either(o, "/reportingComponent", "/reportingController"),
    ];
    let host = [either(o, "/source/host", "/deprecatedSource/host"), text(o, "/reportingInstance")];
    let first_set = |all: [&str; 2]| all.into_iter().find(|s| !s.is_empty()).unwrap_or_default().to_owned();
    let (component, host) = (first_set(component), first_set(host));
    let source = if host.is_empty() { component } else { format!("{component}, {host}") };
    vec![
        json!(last),
        json!(text(o, "/type")),
        json!(text(o, "/reason")),
        json!(target),
        json!(either(o, "/involvedObject/fieldPath", "/regarding/fieldPath")),
        json!(source),
        json!(either(o, "/message", "/note").trim()),
        json!(first),
        json!(count),
        json!(text(o, "/metadata/name")),
    ]
}
