//! Admission of streams: `exec`, `attach`, `portforward` and `proxy` are CONNECT requests whose object is the options
//! in the URL.

use serde_json::{Value, json};

use crate::admission::{Notes, Operation, Options, Request, chain};
use crate::pipeline::Call;
use crate::status::ApiResult;

/// The type of the options of a stream: (plural, subresource, kind).
const OPTIONS: &[(&str, &str, &str)] = &[
    ("pods", "exec", "PodExecOptions"),
    ("pods", "attach", "PodAttachOptions"),
    ("pods", "portforward", "PodPortForwardOptions"),
    ("pods", "proxy", "PodProxyOptions"),
    ("services", "proxy", "ServiceProxyOptions"),
    ("nodes", "proxy", "NodeProxyOptions"),
];

/// Asks admission whether a stream may begin; anything else passes.
pub async fn admit(call: &Call<'_>, notes: &mut Notes) -> ApiResult<()> {
    let (plural, subresource) = (call.kind.plural.as_str(), call.info.subresource.as_str());
    let Some((.., kind)) = OPTIONS.iter().find(|(p, s, _)| *p == plural && *s == subresource) else {
        return Ok(());
    };
    if !call.kind.group.is_empty() {
        return Ok(());
    }
    let request = Request {
        object_type: Some(("", "v1", kind)),
        ..Request::of(call, Operation::Connect, Options::None)
    };
    let mut options = options(call, kind);
    chain::admit(call.server, &request, &mut options, notes).await
}

fn options(call: &Call<'_>, kind: &str) -> Value {
    let query = &call.info.query;
    let mut options = json!({"kind": kind, "apiVersion": "v1"});
    match kind {
        "PodExecOptions" | "PodAttachOptions" => {
            for name in ["stdin", "stdout", "stderr", "tty"] {
                if query.flag(name) {
                    options[name] = json!(true);
                }
            }
            if query.has("container") {
                options["container"] = json!(query.get("container"));
            }
            if kind == "PodExecOptions" {
                options["command"] = match query.all("command").collect::<Vec<_>>() {
                    command if command.is_empty() => Value::Null,
                    command => json!(command),
                };
            }
        }
        "PodPortForwardOptions" => {
            let ports: Vec<i64> = query.all("ports").filter_map(|p| p.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = json!(ports);
            }
        }
        _ => {
            let path = if query.has("path") { query.get("path").to_owned() } else { call.info.rest.clone() };
            if !path.is_empty() {
                options["path"] = json!(path);
            }
        }
    }
    options
}
