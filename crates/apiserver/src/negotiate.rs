//! Which form an answer takes: JSON, YAML or protobuf; the object itself, a Table, or metadata only.
//!
//! Rule: Kubernetes API Concepts, "Resource representations" and "Receiving resources as Tables".

use api::accept::{self, Clause};
use http::{HeaderMap, header};

use crate::status::{ApiError, ApiResult};

/// The media type of objects in protobuf.
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// What the answer holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum View {
    /// The objects.
    Object,
    /// A `Table` of `meta.k8s.io` in this version.
    Table(String),
    /// `PartialObjectMetadata`, or (`of_list`) `PartialObjectMetadataList`, of `meta.k8s.io` in this version.
    Metadata {
        /// `v1` or `v1beta1`.
        version: String,
        /// Whether the list's form was asked for.
        of_list: bool,
    },
}

/// The chosen form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Form {
    /// How it is written.
    pub format: Format,
    /// What it holds.
    pub view: View,
}

impl Form {
    /// JSON objects.
    pub const JSON: Form = Form { format: Format::Json, view: View::Object };

    /// The `Content-Type` of the answer.
    pub fn content_type(&self) -> &'static str {
        match self.format {
            Format::Json => "application/json",
            Format::Yaml => "application/yaml",
            Format::Protobuf => PROTOBUF,
        }
    }
}

/// The media types offered, as a 406 lists them.
pub const OFFERED: &[&str] = &["application/json", "application/yaml", PROTOBUF];

/// The media types of watches.
const STREAMS: &[&str] =
    &["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

/// What is answered: decides which forms there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// A document that has no other forms (discovery, reviews, errors).
    Document,
    /// One object.
    Object,
    /// A list of objects.
    List,
    /// A stream of events.
    Watch,
}

/// Chooses by the `Accept` header; 406 where nothing fits.
pub fn choose(headers: &HeaderMap, answer: Answer) -> ApiResult<Form> {
    choose_of(headers, answer, answer != Answer::Document)
}

/// [`choose`], with protobuf (`has_messages`) or without: what has no schema has no messages.
pub fn choose_of(headers: &HeaderMap, answer: Answer, has_messages: bool) -> ApiResult<Form> {
    let clauses = clauses(headers);
    if clauses.is_empty() {
        return Ok(Form::JSON);
    }
    let mut known = false;
    for clause in &clauses {
        let format = match clause.media.as_str() {
            "application/json" | "*/*" | "" => Format::Json,
            "application/yaml" => Format::Yaml,
            PROTOBUF if has_messages => Format::Protobuf,
            media => {
                known |= OFFERED.contains(&media) || media == "application/*";
                continue;
            }
        };
        known = true;
        if clause.is_foreign || answer == Answer::Watch && format == Format::Yaml {
            continue;
        }
        let view = match (clause.kind.as_str(), answer) {
            ("", _) => View::Object,
            (_, Answer::Document) => continue,
            // tables have no messages
            ("Table", _) if format == Format::Protobuf => continue,
            ("Table", _) if is_meta(clause) => View::Table(clause.version.clone()),
            (kind @ ("PartialObjectMetadata" | "PartialObjectMetadataList"), _) if is_meta(clause) => {
                View::Metadata { version: clause.version.clone(), of_list: kind.ends_with("List") }
            }
            _ => continue,
        };
        return Ok(Form { format, view });
    }
    Err(match answer {
        Answer::List | Answer::Watch if !known => ApiError::no_representation(OFFERED.iter().chain(STREAMS)),
        _ if !known => ApiError::no_representation(OFFERED.iter()),
        Answer::Watch => ApiError::not_acceptable(STREAMS),
        _ => ApiError::not_acceptable(OFFERED),
    })
}

/// What the client accepts, the best first; empty where it does not say.
fn clauses(headers: &HeaderMap) -> Vec<Clause> {
    accept::clauses(headers.get_all(header::ACCEPT).iter().map(|value| value.to_str().unwrap_or_default()))
}

/// The media types that the client accepts, in lower case, the best first; empty where it does not say.
pub fn media_types(headers: &HeaderMap) -> Vec<String> {
    clauses(headers).into_iter().map(|clause| clause.media).collect()
}

fn is_meta(clause: &Clause) -> bool {
    clause.group == "meta.k8s.io" && matches!(clause.version.as_str(), "v1" | "v1beta1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        match choose(&headers, Answer::Object) {
            Ok(form) => format!("{:?} {:?}", form.format, form.view),
            Err(error) => error.code.to_string(),
        }
    }

    #[test]
    fn accept_headers_choose_as_documented() {
        assert_eq!(check("*/*"), "Json Object");
        assert_eq!(check("application/*"), "406");
        assert_eq!(check("text/plain, application/yaml"), "Yaml Object");
        assert_eq!(
            check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
            "Json Table(\"v1\")"
        );
        let protobuf = "application/vnd.kubernetes.protobuf";
        assert_eq!(check(&format!("{protobuf},application/json")), "Protobuf Object");
        assert_eq!(check(&format!("application/json,{protobuf}")), "Json Object");
        assert_eq!(check(&format!("{protobuf};as=Table;v=v1;g=meta.k8s.io,application/json")), "Json Object");
        assert_eq!(check("application/json;q=0.5,application/yaml;q=0.9"), "Yaml Object");
        assert_eq!(check("application/json;stream=watch;charset=utf-8"), "Json Object");
        assert_eq!(check("application/json;stream=other,application/yaml;sv=v1"), "Yaml Object");
        assert_eq!(check("application/json;sv=v2"), "406");
    }
}
