//! Paths and operations, from the table of kinds.

use std::sync::Arc;

use api::kinds::{Kind, Subresource};
use serde_json::{Map, Value, json};

use super::Dialect;
use super::schemas::{list_type, object_type};

const FORMS: [&str; 4] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];
const PATCHES: [&str; 5] = [
    "application/apply-patch+cbor",
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// Every path of the kinds.
pub(super) fn paths(kinds: &[&Arc<Kind>], dialect: Dialect) -> Value {
    let mut out = Map::new();
    for kind in kinds {
        let root = match kind.group.as_str() {
            "" => format!("/api/{}", kind.version),
            group => format!("/apis/{group}/{}", kind.version),
        };
        let make = Maker { kind, dialect };
        let within = if kind.namespaced { format!("{root}/namespaces/{{namespace}}") } else { root.clone() };
        let collection = format!("{within}/{}", kind.plural);
        add(&mut out, &collection, make.collection(), make.parameters(false));
        if kind.has_verb("get") {
            let item = format!("{collection}/{{name}}");
            add(&mut out, &item, make.item(None), make.parameters(true));
        }
        for sub in &kind.subresources {
            let path = format!("{collection}/{{name}}/{}", sub.name);
            add(&mut out, &path, make.item(Some(sub)), make.parameters(true));
        }
        if kind.namespaced && kind.has_verb("list") {
            let all = Map::from_iter([("get".to_owned(), make.list("ForAllNamespaces"))]);
            add(&mut out, &format!("{root}/{}", kind.plural), all, vec![make.pretty()]);
        }
    }
    Value::Object(out)
}

fn add(out: &mut Map<String, Value>, path: &str, mut operations: Map<String, Value>, parameters: Vec<Value>) {
    if operations.is_empty() {
        return;
    }
    operations.insert("parameters".to_owned(), Value::Array(parameters));
    out.insert(path.to_owned(), Value::Object(operations));
}

struct Maker<'a> {
    kind: &'a Kind,
    dialect: Dialect,
}

/// A query parameter: name, type, what it is for.
type Query = (&'static str, &'static str, &'static str);

const DRY_RUN: Query = ("dryRun", "string", "`All`: process the request in full, but store nothing.");
const MANAGER: Query = ("fieldManager", "string", "Who makes the change; recorded in managedFields.");
const FIELDS: Query = (
    "fieldValidation",
    "string",
    "What to do with unknown or duplicate fields: `Ignore`, `Warn` (default) or `Strict`.",
);
const FORCE: Query = ("force", "boolean", "Take over fields that other appliers own. Apply patches only.");
const WRITE: &[Query] = &[DRY_RUN, MANAGER, FIELDS];
const PATCHED: &[Query] = &[DRY_RUN, MANAGER, FIELDS, FORCE];
const DELETED: &[Query] = &[
    DRY_RUN,
    ("gracePeriodSeconds", "integer", "Seconds until the object is removed; 0 removes it at once."),
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy."),
    ("propagationPolicy", "string", "What happens to dependents: `Orphan`, `Background` or `Foreground`."),
];
const LISTED: &[Query] = &[
    ("allowWatchBookmarks", "boolean", "Whether a watch may send BOOKMARK events."),
    ("continue", "string", "The token of the last page; the answer goes on after it."),
    ("fieldSelector", "string", "Only objects whose fields match."),
    ("labelSelector", "string", "Only objects whose labels match."),
    ("limit", "integer", "The most items to answer with."),
    ("resourceVersion", "string", "How new the answer must be, or where a watch begins."),
    ("resourceVersionMatch", "string", "How resourceVersion is meant: `Exact` or `NotOlderThan`."),
    ("sendInitialEvents", "boolean", "A watch begins with the objects there are."),
    ("timeoutSeconds", "integer", "The longest time for a list or watch."),
    ("watch", "boolean", "Send changes as they happen."),
];

impl Maker<'_> {
    fn pretty(&self) -> Value {
        self.query(&("pretty", "string", "`true`: print the answer for people."))
    }

    fn parameters(&self, named: bool) -> Vec<Value> {
        let mut out = Vec::new();
        let mut path = |name: &str, what: String| {
            let mut parameter = json!({"name": name, "in": "path", "description": what, "required": true, "uniqueItems": true});
            self.set_type(&mut parameter, "string");
            out.push(parameter);
        };
        if named {
            path("name", format!("name of the {}", self.kind.kind));
        }
        if self.kind.namespaced {
            path("namespace", "the namespace".to_owned());
        }
        out.push(self.pretty());
        out
    }

    fn set_type(&self, parameter: &mut Value, ty: &str) {
        match self.dialect {
            Dialect::V2 => parameter["type"] = json!(ty),
            Dialect::V3 => parameter["schema"] = json!({"type": ty, "uniqueItems": true}),
        }
    }

    fn query(&self, (name, ty, what): &Query) -> Value {
        let mut parameter = json!({"name": name, "in": "query", "description": what, "uniqueItems": true});
        self.set_type(&mut parameter, ty);
        parameter
    }

    /// `apps_v1`, and `AppsV1` for operation names.
    fn tag(&self) -> (String, String) {
        let group = match self.kind.group.as_str() {
            "" => "core",
            group => group.strip_suffix(".k8s.io").unwrap_or(group),
        };
        let upper = |s: &str| {
            let mut chars = s.chars();
            chars.next().map(|c| c.to_uppercase().collect::<String>() + chars.as_str()).unwrap_or_default()
        };
        let pascal: String = group.split('.').map(upper).collect();
        let mut camel = pascal.clone();
        if let Some(first) = camel.get_mut(..1) {
            first.make_ascii_lowercase();
        }
        (format!("{camel}_{}", self.kind.version), pascal + &upper(&self.kind.version))
    }

    fn operation(
        &self,
        action: &str,
        id: String,
        what: String,
        body: Option<(&str, &[&str])>,
        answer: &str,
        queries: &[Query],
        gvk: Value,
    ) -> Value {
        let mut parameters: Vec<Value> = queries.iter().map(|q| self.query(q)).collect();
        let mut operation = json!({
            "description": what,
            "operationId": id,
            "tags": [self.tag().0],
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        });
        let reference = |ty: &str| {
            if ty.is_empty() {
                json!({"type": "string"})
            } else {
                json!({"$ref": self.dialect.reference(ty)})
            }
        };
        match self.dialect {
            Dialect::V2 => {
                let consumes =
                    body.map_or(&["*/*"][..], |(ty, forms)| if ty == PATCH { forms } else { &["*/*"] });
                operation["consumes"] = json!(consumes);
                operation["produces"] = json!(FORMS);
                operation["schemes"] = json!(["https"]);
                operation["responses"] = json!({
                    "200": {"description": "OK", "schema": reference(answer)},
                    "401": {"description": "Unauthorized"},
                });
                if let Some((ty, _)) = body {
                    let schema = if ty == PATCH { json!({"type": "object"}) } else { reference(ty) };
                    parameters
                        .insert(0, json!({"name": "body", "in": "body", "required": true, "schema": schema}));
                }
            }
            Dialect::V3 => {
                let content: Map<String, Value> =
                    FORMS.iter().map(|f| ((*f).to_owned(), json!({"schema": reference(answer)}))).collect();
                operation["responses"] = json!({
                    "200": {"description": "OK", "content": content},
                    "401": {"description": "Unauthorized"},
                });
                if let Some((ty, forms)) = body {
                    let schema = if ty == PATCH { json!({"type": "object"}) } else { reference(ty) };
                    let content: Map<String, Value> =
                        forms.iter().map(|f| ((*f).to_owned(), json!({"schema": schema}))).collect();
                    operation["requestBody"] = json!({"content": content});
                }
            }
        }
        if !parameters.is_empty() {
            operation["parameters"] = Value::Array(parameters);
        }
        operation
    }

    fn id(&self, verb: &str, middle: &str, suffix: &str) -> String {
        let scope = if self.kind.namespaced && suffix != "ForAllNamespaces" { "Namespaced" } else { "" };
        format!("{verb}{}{middle}{scope}{}{suffix}", self.tag().1, self.kind.kind)
    }

    fn gvk(&self) -> Value {
        json!({"group": self.kind.group, "version": self.kind.version, "kind": self.kind.kind})
    }

    fn list(&self, suffix: &str) -> Value {
        let what = format!("list or watch objects of kind {}", self.kind.kind);
        self.operation(
            "list",
            self.id("list", "", suffix),
            what,
            None,
            &list_type(self.kind),
            LISTED,
            self.gvk(),
        )
    }

    fn collection(&self) -> Map<String, Value> {
        let kind = self.kind;
        let mut out = Map::new();
        if kind.has_verb("list") {
            out.insert("get".to_owned(), self.list(""));
        }
        if kind.has_verb("create") {
            let what = format!("create a {}", kind.kind);
            let ty = object_type(kind);
            let body = Some((ty.as_str(), &["*/*"][..]));
            let made = self.operation("post", self.id("create", "", ""), what, body, &ty, WRITE, self.gvk());
            out.insert("post".to_owned(), made);
        }
        if kind.has_verb("deletecollection") {
            let what = format!("delete a collection of {}", kind.kind);
            let body = Some((DELETE_OPTIONS, &["*/*"][..]));
            let queries: Vec<Query> = DELETED
                .iter()
                .chain(LISTED.iter().filter(|q| q.0 != "watch" && q.0 != "allowWatchBookmarks"))
                .copied()
                .collect();
            let id = self.id("delete", "Collection", "");
            let made = self.operation("deletecollection", id, what, body, STATUS, &queries, self.gvk());
            out.insert("delete".to_owned(), made);
        }
        out
    }

    fn item(&self, sub: Option<&Subresource>) -> Map<String, Value> {
        let kind = self.kind;
        let verbs = sub.map_or(&kind.verbs, |s| &s.verbs);
        // Options of exec, proxy and the like come as query parameters; what goes through has no schema.
        let own = object_type(kind);
        let ty = match sub {
            Some(s) if s.name == "status" => own.as_str(),
            Some(s) => s.type_name.as_deref().unwrap_or_default(),
            None => own.as_str(),
        };
        let suffix: String = sub.map_or(String::new(), |s| {
            let mut name = s.name.clone();
            if let Some(first) = name.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            name
        });
        let gvk = match sub {
            Some(s) => json!({"group": s.kind.group, "version": s.kind.version, "kind": s.kind.kind}),
            None => self.gvk(),
        };
        let of = sub.map_or(String::new(), |s| format!("{} of ", s.name));
        let mut out = Map::new();
        for verb in verbs {
            let (method, action, name, what, queries): (&str, &str, &str, &str, &[Query]) = match *verb {
                "get" => ("get", "get", "read", "read", &[]),
                "create" => ("post", "post", "create", "create", WRITE),
                "update" => ("put", "put", "replace", "replace", WRITE),
                "patch" => ("patch", "patch", "patch", "partially update", PATCHED),
                "delete" => ("delete", "delete", "delete", "delete", DELETED),
                _ => continue,
            };
            // A kind's own `create` belongs to the collection.
            if sub.is_none() && *verb == "create" {
                continue;
            }
            let body = match *verb {
                "create" | "update" if !ty.is_empty() => Some((ty, &["*/*"][..])),
                // Custom resources have no strategic merge.
                "patch" if kind.definition.is_some() => Some((PATCH, &PATCHES[..4])),
                "patch" if !ty.is_empty() => Some((PATCH, &PATCHES[..])),
                "delete" if sub.is_none() => Some((DELETE_OPTIONS, &["*/*"][..])),
                _ => None,
            };
            let answer = if *verb == "delete" && !kind.delete_answers_object { STATUS } else { ty };
            let queries = if ty.is_empty() { &[] } else { queries };
            let what = format!("{what} {of}the specified {}", kind.kind);
            let id = self.id(name, "", &suffix);
            out.insert(
                method.to_owned(),
                self.operation(action, id, what, body, answer, queries, gvk.clone()),
            );
        }
        out
    }
}
