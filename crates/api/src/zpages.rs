//! `/statusz` and `/flagz`, which every part of Kubernetes serves: text for people, or an object for programs that ask for it.
//!
//! Rule: KEP-4827 and KEP-4828; Kubernetes documentation, "Kubernetes z-pages". Both gates are open in v1.36.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::accept;
use crate::codec::encode_yaml;

/// The group of the objects.
const GROUP: &str = "config.k8s.io";
/// The media types offered, as a 406 lists them.
const OFFERED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf, text/plain";

/// A page.
#[derive(Debug, Clone, Copy)]
pub enum Page<'a> {
    /// `/statusz`.
    Status {
        /// When the process started.
        started: Timestamp,
        /// The part's version.
        version: &'a str,
        /// Pages for people that the part serves, in order.
        paths: &'a [&'a str],
    },
    /// `/flagz`: options of the command line by name. Secrets are not among them.
    Flags(&'a BTreeMap<String, String>),
}

/// A page as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status: 200 or 406.
    pub code: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// A value for a header `Warning`.
    pub warning: Option<String>,
    /// The body.
    pub body: Vec<u8>,
}

impl Page<'_> {
    /// The page of a part (`kubelet`), in the form that the values of `Accept` ask for; `now` is the time.
    pub fn answer<'a>(
        self,
        component: &str,
        accept: impl IntoIterator<Item = &'a str>,
        now: Timestamp,
    ) -> Answer {
        let (name, kind) = match self {
            Self::Status { .. } => ("statusz", "Statusz"),
            Self::Flags(_) => ("flagz", "Flagz"),
        };
        let clauses = accept::clauses(accept.into_iter().filter(|value| !value.trim().is_empty()));
        let text = || Answer {
            code: 200,
            content_type: "text/plain; charset=utf-8",
            warning: None,
            body: self.text(component, name, now).into_bytes(),
        };
        if clauses.is_empty() {
            return text();
        }
        for clause in &clauses {
            let plain = [&clause.kind, &clause.group, &clause.version].iter().all(|part| part.is_empty());
            let structured = clause.kind == kind
                && clause.group == GROUP
                && matches!(clause.version.as_str(), "v1alpha1" | "v1beta1");
            let as_yaml = match clause.media.as_str() {
                _ if clause.is_foreign => continue,
                "*/*" | "text/*" | "text/plain" if plain => return text(),
                "*/*" | "application/*" | "application/json" if structured => false,
                "application/yaml" if structured => true,
                _ => continue,
            };
            let object = self.object(component, kind, &clause.version, now);
            let warning = (clause.version == "v1alpha1").then(|| {
                format!(
                    "299 - \"This version of the {name} endpoint is deprecated. Please use a newer version.\""
                )
            });
            let (content_type, body) = match as_yaml {
                true => ("application/yaml", encode_yaml(&object)),
                false => ("application/json", object.to_string().into_bytes()),
            };
            return Answer { code: 200, content_type, warning, body };
        }
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": format!("only the following media types are accepted: {OFFERED}"),
            "reason": "NotAcceptable", "code": 406});
        let body = status.to_string().into_bytes();
        Answer { code: 406, content_type: "application/json", warning: None, body }
    }

    fn object(self, component: &str, kind: &str, version: &str, now: Timestamp) -> Value {
        let mut object = json!({"kind": kind, "apiVersion": format!("{GROUP}/{version}"),
            "metadata": {"name": component}});
        match self {
            Self::Status { started, version, paths } => {
                let whole = Timestamp::from_second(started.as_second()).unwrap_or(started);
                object["startTime"] = json!(whole.to_string());
                object["uptimeSeconds"] = json!(up(started, now).as_secs());
                object["goVersion"] = json!("");
                object["binaryVersion"] = json!(version);
                object["emulationVersion"] = json!(minor(version));
                object["paths"] = json!(paths);
            }
            Self::Flags(flags) => object["flags"] = json!(flags),
        }
        object
    }

    fn text(self, component: &str, name: &str, now: Timestamp) -> String {
        let mut text = format!(
            "\n{component} {name}\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
             compatibility guarantees and is for debugging purposes only.\n"
        );
        match self {
            Self::Status { started, version, paths } => {
                let up = up(started, now).as_secs();
                let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
                let started = started.strftime("%a %b %e %H:%M:%S UTC %Y");
                // writing to a String cannot fail
                let _ = write!(
                    text,
                    "\nStarted: {started}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nGo version: \n\
                     Binary version: {version}\nEmulation version: {}\nPaths: {}\n",
                    minor(version),
                    paths.join(" ")
                );
            }
            Self::Flags(flags) => {
                text.extend(flags.iter().map(|(name, value)| format!("{name}: {value}\n")));
            }
        }
        text
    }
}

fn up(started: Timestamp, now: Timestamp) -> SignedDuration {
    now.duration_since(started).max(SignedDuration::ZERO)
}

/// `1.36` of `v1.36.0+more`.
fn minor(version: &str) -> &str {
    let version = version.trim_start_matches('v');
    let end = version.match_indices('.').nth(1).map_or(version.len(), |(at, _)| at);
    &version[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const BETA: &str = "v=v1beta1;g=config.k8s.io;as=Statusz";

    fn ask(accept: &str) -> Answer {
        let started = "2026-01-02T03:04:05.6Z".parse().unwrap();
        let page = Page::Status { started, version: "1.36.0+x", paths: &["/flagz", "/healthz"] };
        page.answer("kubelet", [accept], "2026-01-02T04:05:07Z".parse().unwrap())
    }

    #[test]
    fn people_get_text_and_programs_what_they_name_in_full() {
        let check = |accept: &str, code: u16, content_type: &str| {
            let answer = ask(accept);
            assert_eq!((answer.code, answer.content_type), (code, content_type), "{accept}");
            answer
        };
        let text = "text/plain; charset=utf-8";
        for accept in ["", "text/plain", "*/*", "application/json;v=foo;g=config.k8s.io;as=Statusz,*/*"] {
            check(accept, 200, text);
        }
        for accept in [
            "application/xml",
            "application/json",
            "application/json;v=v1beta1;g=config.k8s.io",
            "application/json;v=v1beta1;g=config.k8s.io;as=Flagz",
        ] {
            check(accept, 406, "application/json");
        }
        check(&format!("application/vnd.kubernetes.protobuf;{BETA}"), 406, "application/json");
        let yaml = check(&format!("application/yaml;{BETA}"), 200, "application/yaml");
        let text = String::from_utf8_lossy(&yaml.body);
        assert!(text.contains("\nuptimeSeconds: 3661\n"), "{text}");
        let json = check(&format!("application/json;{BETA}"), 200, "application/json");
        let shown: Value = serde_json::from_slice(&json.body).unwrap();
        assert_eq!(
            shown,
            json!({"kind": "Statusz", "apiVersion": "config.k8s.io/v1beta1", "metadata": {"name": "kubelet"},
                "startTime": "2026-01-02T03:04:05Z", "uptimeSeconds": 3661, "goVersion": "",
                "binaryVersion": "1.36.0+x", "emulationVersion": "1.36", "paths": ["/flagz", "/healthz"]})
        );
    }

    #[test]
    fn the_older_version_comes_with_a_warning() {
        let alpha = "application/json;v=v1alpha1;g=config.k8s.io;as=Statusz";
        assert!(ask(&format!("{alpha},application/json;{BETA}")).warning.is_some());
        assert_eq!(ask(&format!("application/json;{BETA},{alpha}")).warning, None);
    }

    #[test]
    fn text_says_since_when_and_how_long() {
        let text = String::from_utf8(ask("").body).unwrap();
        assert!(text.starts_with("\nkubelet statusz\nWarning: This endpoint"), "{text}");
        assert!(text.contains("\nStarted: Fri Jan  2 03:04:05 UTC 2026\nUp: 1 hr 01 min 01 sec\n"), "{text}");
        let flags = BTreeMap::from([("data-dir".to_owned(), "/d".to_owned())]);
        let page = Page::Flags(&flags).answer("kubelet", [], Timestamp::UNIX_EPOCH);
        assert!(String::from_utf8(page.body).unwrap().ends_with("only.\ndata-dir: /d\n"));
    }
}
