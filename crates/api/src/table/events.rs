//! Events: one layout for the core kind and the one of events.k8s.io, whose fields have other names.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::Layout;
use super::column::{Column, NAME, string};
use super::duration::since;
use super::format::{int, text, text_or};

static EVENT: &[Column] = &[
    string("Last Seen", "Time since the last occurrence."),
    string("Type", "Normal or Warning."),
    string("Reason", "Why the event was made, in one word."),
    string("Object", "What the event is about."),
    string("Subobject", "The part of the object that the event is about.").wide(),
    string("Source", "Who reported the event.").wide(),
    string("Message", "What happened, for people."),
    string("First Seen", "Time since the first occurrence.").wide(),
    string("Count", "How often it occurred.").wide(),
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
