//! Custom resources: what a CustomResourceDefinition says about the objects of each of its versions.
//!
//! [`rows`] turns a definition into rows of the table of kinds; each carries its [`Definition`], from which everything
//! else follows: schema, printer columns, selectable fields, subresources, conversion. Rule: Kubernetes
//! documentation, "Custom Resource Definitions" and "Versions in CustomResourceDefinitions".

use std::any::Any;
use std::cmp::Ordering;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::jsonpath::JsonPath;
use crate::kinds::{Durability, GroupVersionKind, Kind, Subresource};
use crate::schema::Shape;
use crate::structural::Structural;

/// What discovery lists for a custom resource, in its order.
const VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
/// ... and while its definition is being deleted.
const TERMINATING_VERBS: &[&str] = &["delete", "deletecollection", "get", "list", "watch"];
const SUBRESOURCE_VERBS: &[&str] = &["get", "patch", "update"];

/// An additional printer column.
#[derive(Debug, Clone, PartialEq)]
pub struct PrinterColumn {
    /// The heading.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub type_: String,
    /// The OpenAPI format; may be empty.
    pub format: String,
    /// What it means.
    pub description: String,
    /// 0 is always shown, more only in wide output.
    pub priority: i64,
    /// Where its cells come from, for example `.spec.replicas`; none where the definition has what is no path.
    pub path: Option<JsonPath>,
}

/// Where a custom resource has what its `scale` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScalePaths {
    /// The wanted count, for example `spec.replicas`.
    pub replicas: String,
    /// The observed count, for example `status.replicas`.
    pub status_replicas: String,
    /// The selector in text form; empty where there is none.
    pub selector: String,
}

/// How objects get from one version to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conversion {
    /// Only `apiVersion` changes.
    None,
    /// A webhook does it; `spec.conversion.webhook` of the definition.
    Webhook(Value),
}

/// A custom resource as one of its versions, with all the others at hand.
pub struct Definition {
    family: Arc<Family>,
    at: usize,
}

/// What all versions of a custom resource share.
pub struct Family {
    /// The definition's name, `plural.group`.
    pub name: String,
    /// The definition's uid.
    pub uid: String,
    /// The API group.
    pub group: String,
    /// The kind of its objects.
    pub kind: String,
    /// How objects get from one version to another.
    pub conversion: Conversion,
    /// Whether the definition is being deleted: nothing is created any more.
    pub is_terminating: bool,
    /// All versions, served or not, in the definition's order.
    pub versions: Vec<Version>,
    storage: usize,
    spec: Value,
    names: Value,
    number: u64,
    memo: OnceLock<Arc<dyn Any + Send + Sync>>,
}

/// What a definition says about one version.
pub struct Version {
    /// Its name, for example `v1`.
    pub name: String,
    /// What a table shows after the name.
    pub columns: Vec<PrinterColumn>,
    /// Paths that field selectors may name, without the leading dot.
    pub selectable: Vec<String>,
    /// Whether `status` is a subresource.
    pub has_status: bool,
    /// Where `scale` finds its counts; none where it is no subresource.
    pub scale: Option<ScalePaths>,
    /// A text for `Warning` headers where the version is deprecated.
    pub deprecation: Option<String>,
    /// What its objects must be.
    pub schema: Arc<Structural>,
    is_served: bool,
    memo: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Version {
    /// The shape of its objects.
    pub fn shape(&self) -> Shape<'_> {
        self.schema.shape()
    }

    /// What another crate derived from this version (compiled rules, for example); made at first use.
    pub fn memo(&self, make: impl FnOnce() -> Arc<dyn Any + Send + Sync>) -> &Arc<dyn Any + Send + Sync> {
        self.memo.get_or_init(make)
    }
}

impl Definition {
    /// What all versions share.
    pub fn family(&self) -> &Family {
        &self.family
    }

    /// The version that this stands for.
    pub fn own(&self) -> &Version {
        &self.family.versions[self.at]
    }

    /// The version that objects are stored in.
    pub fn storage(&self) -> &Version {
        &self.family.versions[self.family.storage]
    }

    /// Whether objects are stored in this version.
    pub fn is_storage(&self) -> bool {
        self.at == self.family.storage
    }

    /// The `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        self.family.api_version(self.own())
    }

    /// The schema as the definition has it (`openAPIV3Schema`).
    pub fn openapi(&self) -> &Value {
        &self.family.spec["versions"][self.at]["schema"]["openAPIV3Schema"]
    }

    /// Whether objects mean the same by both: all is equal but for the beginning of the definition's end.
    pub fn is_like(&self, other: &Self) -> bool {
        self.at == other.at
            && (Arc::ptr_eq(&self.family, &other.family) || self.family.is_like(&other.family))
    }

    /// Tells this very state of the definition and version from all others of this process.
    pub fn number(&self) -> u64 {
        self.family.number + self.at as u64
    }
}

impl Family {
    /// The version with this `apiVersion`.
    pub fn version_of(&self, api_version: &str) -> Option<&Version> {
        let (group, name) = api_version.split_once('/')?;
        self.versions.iter().find(|v| group == self.group && v.name == name)
    }

    /// What another crate derived from this state of the definition (the client of its webhook, for example); made at
    /// first use.
    pub fn memo(&self, make: impl FnOnce() -> Arc<dyn Any + Send + Sync>) -> &Arc<dyn Any + Send + Sync> {
        self.memo.get_or_init(make)
    }

    /// The `apiVersion` of objects of a version.
    pub fn api_version(&self, version: &Version) -> String {
        format!("{}/{}", self.group, version.name)
    }

    fn is_like(&self, other: &Self) -> bool {
        self.uid == other.uid && self.names == other.names && self.spec == other.spec
    }
}

impl fmt::Debug for Definition {
    /// All that its objects depend on: documents made from kinds are told apart by this text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Family { name, is_terminating, spec, names, .. } = &*self.family;
        write!(f, "{name} {} terminating={is_terminating} {names} {spec}", self.own().name)
    }
}

impl PartialEq for Definition {
    fn eq(&self, other: &Self) -> bool {
        self.is_like(other) && self.family.is_terminating == other.family.is_terminating
    }
}

impl Eq for Definition {}

/// The value at a simple JSON path: `.spec.list[0].name`, `.metadata.labels['a.b/c']`.
pub fn at<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let (mut value, mut rest) = (object, path.strip_prefix('$').unwrap_or(path));
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix('[') {
            let (index, after) = inside.split_once(']')?;
            value = match index.trim_matches(['\'', '"']) {
                name if name.len() < index.len() => value.get(name)?,
                number => value.get(number.parse::<usize>().ok()?)?,
            };
            rest = after;
            continue;
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        value = value.get(&rest[..end])?;
        rest = &rest[end..];
    }
    Some(value)
}

/// Brings numbers into the form they are printed in: what is whole has no fraction, and what no 64-bit integer holds is
/// floating point.
pub fn normalise_numbers(value: &mut Value) {
    match value {
        Value::Object(map) => map.values_mut().for_each(normalise_numbers),
        Value::Array(list) => list.iter_mut().for_each(normalise_numbers),
        Value::Number(number) if !number.is_i64() => {
            let float = number.as_f64().unwrap_or_default();
            // 2^63 is the first that does not fit
            if float.fract() == 0.0
                && (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&float)
            {
                *value = Value::from(float as i64);
            } else if number.is_u64() {
                *value = Value::from(float);
            }
        }
        _ => {}
    }
}

/// A condition of a definition, where it is there.
pub fn condition<'a>(definition: &'a Value, type_: &str) -> Option<&'a Value> {
    definition["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == type_)
}

/// Whether a condition of a definition is true.
pub fn is_true(definition: &Value, type_: &str) -> bool {
    condition(definition, type_).is_some_and(|c| c["status"] == "True")
}

/// The name of the version that new objects are stored in; empty where no version says so.
pub fn storage_version(definition: &Value) -> &str {
    versions(definition).find(|v| v["storage"] == true).map_or("", |v| text(v, "name"))
}

/// The rows of the table of kinds that a definition stands for: one for each served version, none until it is
/// established.
pub fn rows(definition: &Value) -> Vec<Arc<Kind>> {
    let Some(family) = family(definition) else { return Vec::new() };
    let served = (0..family.versions.len()).filter(|at| family.versions[*at].is_served);
    let mut rows: Vec<Arc<Kind>> = served.map(|at| Arc::new(row(&family, at))).collect();
    rows.sort_by(|a, b| compare_versions(&a.version, &b.version));
    rows
}

/// The row of the version that objects are stored in, served or not; none until the definition is established.
pub fn storage_row(definition: &Value) -> Option<Arc<Kind>> {
    let family = family(definition)?;
    Some(Arc::new(row(&family, family.storage)))
}

fn family(definition: &Value) -> Option<Arc<Family>> {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    if !is_true(definition, "Established") {
        return None;
    }
    let (spec, names) = (&definition["spec"], &definition["status"]["acceptedNames"]);
    let storage = storage_version(definition);
    let (group, kind) = (text(spec, "group"), text(names, "kind"));
    Some(Arc::new(Family {
        name: text(&definition["metadata"], "name").to_owned(),
        uid: text(&definition["metadata"], "uid").to_owned(),
        group: group.to_owned(),
        kind: kind.to_owned(),
        conversion: match text(&spec["conversion"], "strategy") {
            "Webhook" => Conversion::Webhook(spec["conversion"]["webhook"].clone()),
            _ => Conversion::None,
        },
        is_terminating: is_true(definition, "Terminating"),
        versions: versions(definition).map(|source| version(group, kind, source)).collect::<Option<_>>()?,
        storage: versions(definition).position(|v| text(v, "name") == storage)?,
        spec: spec.clone(),
        names: names.clone(),
        number: NUMBER.fetch_add(list(&spec["versions"]).len() as u64, Relaxed),
        memo: OnceLock::new(),
    }))
}

/// None where the schema is none: such a definition cannot be made any more.
fn version(group: &str, kind: &str, source: &Value) -> Option<Version> {
    let scale = &source["subresources"]["scale"];
    let path = |key: &str| text(scale, key).trim_start_matches('.').to_owned();
    let name = text(source, "name");
    let schema = Structural::parse(&source["schema"]["openAPIV3Schema"]).ok()?;
    Some(Version {
        name: name.to_owned(),
        columns: columns(source),
        selectable: list(&source["selectableFields"])
            .iter()
            .map(|f| text(f, "jsonPath").trim_start_matches('.').to_owned())
            .collect(),
        has_status: source["subresources"]["status"].is_object(),
        scale: scale.is_object().then(|| ScalePaths {
            replicas: path("specReplicasPath"),
            status_replicas: path("statusReplicasPath"),
            selector: path("labelSelectorPath"),
        }),
        deprecation: (source["deprecated"] == true).then(|| match source["deprecationWarning"].as_str() {
            Some(words) => words.to_owned(),
            None => format!("{group}/{name} {kind} is deprecated"),
        }),
        schema,
        is_served: source["served"] == true,
        memo: OnceLock::new(),
    })
}

fn columns(source: &Value) -> Vec<PrinterColumn> {
    let given = list(&source["additionalPrinterColumns"]);
    if given.is_empty() {
        return vec![PrinterColumn {
            name: "Age".to_owned(),
            type_: "date".to_owned(),
            format: String::new(),
            description: crate::table::created_at(),
            priority: 0,
            path: JsonPath::parse(".metadata.creationTimestamp").ok(),
        }];
    }
    let column = |c: &Value| PrinterColumn {
        name: text(c, "name").to_owned(),
        type_: text(c, "type").to_owned(),
        format: text(c, "format").to_owned(),
        description: match text(c, "description") {
            "" => format!("Custom resource definition column (in JSONPath format): {}", text(c, "jsonPath")),
            given => given.to_owned(),
        },
        priority: c["priority"].as_i64().unwrap_or(0),
        path: JsonPath::parse(text(c, "jsonPath")).ok(),
    };
    given.iter().map(column).collect()
}

fn row(family: &Arc<Family>, at: usize) -> Kind {
    let definition = Definition { family: family.clone(), at };
    let (own, names) = (definition.own(), &family.names);
    let texts = |value: &Value| -> Vec<String> {
        list(value).iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (group, plural) = (&family.group, text(names, "plural"));
    let mut subresources = Vec::new();
    if own.has_status {
        let kind =
            GroupVersionKind { group: group.clone(), version: own.name.clone(), kind: family.kind.clone() };
        subresources.push(subresource("status", kind, false, None));
    }
    if own.scale.is_some() {
        let kind = GroupVersionKind {
            group: "autoscaling".to_owned(),
            version: "v1".to_owned(),
            kind: "Scale".to_owned(),
        };
        subresources.push(subresource("scale", kind, true, Some("io.k8s.api.autoscaling.v1.Scale")));
    }
    Kind {
        group: group.clone(),
        version: own.name.clone(),
        kind: family.kind.clone(),
        plural: plural.to_owned(),
        singular: text(names, "singular").to_owned(),
        list_kind: text(names, "listKind").to_owned(),
        namespaced: family.spec["scope"] == "Namespaced",
        verbs: if family.is_terminating { TERMINATING_VERBS } else { VERBS }.to_vec(),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        subresources,
        type_name: String::new(),
        storage_prefix: storage_prefix(group, plural),
        storage_version: family.api_version(definition.storage()),
        storage_hash: storage_hash(group, &definition.storage().name, &family.kind),
        durability: Durability::Disk,
        delete_answers_object: false,
        definition: Some(Arc::new(definition)),
    }
}

/// Where objects of a custom resource are stored.
pub fn storage_prefix(group: &str, plural: &str) -> String {
    format!("/registry/{group}/{plural}/")
}

fn subresource(name: &str, kind: GroupVersionKind, foreign_kind: bool, ty: Option<&str>) -> Subresource {
    Subresource {
        name: name.to_owned(),
        kind,
        foreign_kind,
        verbs: SUBRESOURCE_VERBS.to_vec(),
        type_name: ty.map(str::to_owned),
    }
}

/// Discovery's storage version hash: the first bytes of the hash of group, version and kind.
fn storage_hash(group: &str, version: &str, kind: &str) -> String {
    use base64::Engine as _;
    let digest = Sha256::digest(format!("{group}/{version}/{kind}"));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

/// Which of two versions comes first in discovery: `v2`, `v1`, `v1beta2`, `v1alpha1`, then others by their text.
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    match (parse_version(a), parse_version(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Stability, major, minor; larger is better.
fn parse_version(text: &str) -> Option<(u8, u64, u64)> {
    let rest = text.strip_prefix('v')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let number = |digits: &str| match digits.starts_with('0') {
        true => None,
        false => digits.parse::<u64>().ok(),
    };
    let major = number(&rest[..end])?;
    let rest = &rest[end..];
    match (rest, rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
        ("", _, _) => Some((2, major, 0)),
        (_, Some(minor), _) => Some((1, major, number(minor)?)),
        (_, _, Some(minor)) => Some((0, major, number(minor)?)),
        _ => None,
    }
}

fn versions(definition: &Value) -> impl Iterator<Item = &Value> {
    list(&definition["spec"]["versions"]).iter()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn definition() -> Value {
        let version = |name: &str, storage: bool| {
            json!({"name": name, "served": true, "storage": storage, "subresources": {"status": {}, "scale":
                {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}})
        };
        json!({"metadata": {"name": "widgets.example.com", "uid": "u"},
            "spec": {"group": "example.com", "scope": "Namespaced",
                "versions": [version("v1beta1", false), version("v1", true), {"name": "v1alpha1"}]},
            "status": {"acceptedNames": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList",
                "shortNames": ["wd"]}, "conditions": [{"type": "Established", "status": "True"}]}})
    }

    #[test]
    fn an_established_definition_has_a_row_for_each_served_version() {
        let rows = rows(&definition());
        let names: Vec<_> = rows.iter().map(|r| r.version.as_str()).collect();
        assert_eq!(names, ["v1", "v1beta1"]);
        assert_eq!(rows[1].key("ns", "w"), "/registry/example.com/widgets/ns/w");
        assert_eq!(rows[1].storage_version, "example.com/v1");
        assert!(rows[0].definition.as_ref().unwrap().is_storage());
        assert_eq!(rows[1].definition.as_ref().unwrap().storage().name, "v1");
        assert_eq!(rows[0].subresource("scale").unwrap().kind.api_version(), "autoscaling/v1");
        assert_eq!(rows[0].definition.as_ref().unwrap().own().columns[0].name, "Age");
    }

    #[test]
    fn a_definition_that_is_not_established_has_none() {
        let mut definition = definition();
        definition["status"]["conditions"] = Value::Null;
        assert!(rows(&definition).is_empty());
    }

    #[test]
    fn versions_come_by_stability_and_age() {
        let mut names = ["foo1", "v1alpha2", "v10", "v2", "v11beta2", "v12alpha1", "v3beta1", "foo10", "v1"];
        names.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(
            names,
            ["v10", "v2", "v1", "v11beta2", "v3beta1", "v12alpha1", "v1alpha2", "foo1", "foo10"]
        );
    }

    #[test]
    fn the_storage_hash_is_that_of_the_built_in_kinds() {
        let known = crate::kinds::find("", "v1", "configmaps").unwrap();
        assert_eq!(storage_hash("", "v1", "ConfigMap"), known.storage_hash);
    }
}
