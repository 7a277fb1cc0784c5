//! `cargo xtask schema`: the schema descriptor from the published OpenAPI document and `.proto` files.
//!
//! Keeps facts only (names, types, tags, list keys, patch strategies), never prose. Types of alpha and beta versions are
//! left out, but for those that the server serves where a gate is opened. What neither input says (which zero values count as "not set") comes
//! from `schema_supplement.txt`. The output's format is described at `api::schema`, which reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// How the names of types of alpha and beta versions begin that can be served (`crates/api/src/kinds/prerelease.txt`).
const SERVED: [&str; 3] = [
    "io.k8s.api.scheduling.v1alpha2.",
    "io.k8s.api.storagemigration.v1beta1.",
    "io.k8s.api.resource.v1beta2.DeviceTaint",
];

/// Where the inputs are and the output goes.
#[derive(clap::Args)]
pub struct Args {
    /// The OpenAPI v2 document (JSON).
    #[arg(long)]
    openapi: PathBuf,
    /// The folder that holds `k8s.io/**/generated.proto`.
    #[arg(long)]
    proto: PathBuf,
    /// The descriptor to write.
    #[arg(long, default_value = "crates/api/src/schema/descriptor.txt")]
    out: PathBuf,
}

/// Writes the descriptor.
pub fn run(args: &Args) -> Result<()> {
    let text = std::fs::read_to_string(&args.openapi)
        .with_context(|| format!("reading {}", args.openapi.display()))?;
    let document: Value = serde_json::from_str(&text).context("parsing the OpenAPI document")?;
    let definitions = document["definitions"].as_object().context("no definitions")?;
    let mut messages = Messages::default();
    read_protos(&args.proto, &mut messages)?;
    let supplement = Supplement::parse(include_str!("schema_supplement.txt"));

    let mut out = String::from(
        "# The types of Kubernetes' API, v1.36: facts only. Made by `cargo xtask schema`; do not edit.\n",
    );
    let mut package = "";
    let mut types = 0;
    for (name, definition) in definitions {
        if is_prerelease(name) && !SERVED.iter().any(|beginning| name.starts_with(beginning)) {
            continue;
        }
        let (this_package, short) = name.rsplit_once('.').context("a definition without a package")?;
        if this_package != package {
            package = this_package;
            writeln!(out, "P {package}")?;
        }
        write_type(&mut out, name, short, definition, &messages, &supplement)
            .with_context(|| format!("definition {name}"))?;
        types += 1;
    }
    std::fs::write(&args.out, &out).with_context(|| format!("writing {}", args.out.display()))?;
    println!("{types} types, {} bytes in {}", out.len(), args.out.display());
    Ok(())
}

fn is_prerelease(name: &str) -> bool {
    name.split('.').any(|part| {
        part.strip_prefix('v').is_some_and(|v| {
            v.starts_with(|c: char| c.is_ascii_digit()) && (v.contains("alpha") || v.contains("beta"))
        })
    })
}

fn write_type(
    out: &mut String,
    name: &str,
    short: &str,
    definition: &Value,
    messages: &Messages,
    supplement: &Supplement,
) -> Result<()> {
    write!(out, "T {short}")?;
    if definition["x-kubernetes-map-type"] == "atomic" {
        out.push_str(" atomic");
    }
    let top = definition["x-kubernetes-group-version-kind"].is_array();
    let special = special_type(name);
    if let Some(special) = special {
        write!(out, " ={special}")?;
    }
    out.push('\n');
    let Some(properties) = definition["properties"].as_object().filter(|_| special.is_none()) else {
        return Ok(());
    };
    let mut tags = BTreeMap::new();
    let message = message_name(name);
    messages.flatten(&message, properties, &mut TagPath::default(), &mut tags)?;
    let required: Vec<&str> =
        definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (field, property) in properties {
        let found = tags.get(&plain_name(field));
        let tag = match found {
            Some(path) => path.tags.iter().map(u32::to_string).collect::<Vec<_>>().join("/"),
            None if field == "apiVersion" || field == "kind" || messages.is_missing(&message) => "0".into(),
            None => bail!("field {field} has no protobuf tag"),
        };
        let ty = type_expression(property)?;
        write!(out, " {field} {tag} {ty}")?;
        let is_required = required.contains(&field.as_str());
        for word in attributes(property) {
            write!(out, " {word}")?;
        }
        if is_required {
            out.push_str(" r");
        }
        if let Some(word) = supplement.presence(name, field, &ty, is_required, top) {
            write!(out, " {word}")?;
        }
        if supplement.says("null", name, field, &ty, top) {
            out.push_str(" null");
        }
        if let Some(path) = found
            && !path.embedded.is_empty()
        {
            write!(out, " e={}", path.embedded.join("/"))?;
        }
        if let Some(default) = supplement.default(name, field) {
            write!(out, " d={default}")?;
        }
        out.push('\n');
    }
    Ok(())
}

/// Types that are no plain messages: the descriptor's letter for them.
fn special_type(name: &str) -> Option<&'static str> {
    Some(match name {
        "io.k8s.apimachinery.pkg.api.resource.Quantity" => "q",
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString" => "o",
        "io.k8s.apimachinery.pkg.apis.meta.v1.Time" => "t",
        "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => "u",
        "io.k8s.apimachinery.pkg.runtime.RawExtension" => "x",
        "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1" => "f",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool"
        | "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray"
        | "io.k8s.apimachinery.pkg.apis.meta.v1.Patch" => "j",
        _ => return None,
    })
}

fn type_expression(schema: &Value) -> Result<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.trim_start_matches("#/definitions/");
        return Ok(special_type(name)
            .filter(|letter| *letter != "j")
            .map_or_else(|| format!("@{name}"), str::to_owned));
    }
    let kind = (schema["type"].as_str().unwrap_or_default(), schema["format"].as_str().unwrap_or_default());
    Ok(match kind {
        ("string", "byte") => "y".into(),
        ("string", _) => "s".into(),
        ("boolean", _) => "b".into(),
        ("integer", "int32") => "i".into(),
        ("integer", _) => "l".into(),
        ("number", _) => "d".into(),
        ("array", _) => format!("[]{}", type_expression(&schema["items"])?),
        ("object", _) if schema["additionalProperties"].is_object() => {
            format!("{{}}{}", type_expression(&schema["additionalProperties"])?)
        }
        other => bail!("cannot express type {other:?}"),
    })
}

fn attributes(property: &Value) -> Vec<String> {
    let text = |key: &str| property[key].as_str().map(str::to_owned);
    let mut words = Vec::new();
    match text("x-kubernetes-list-type").as_deref() {
        Some("map") => {
            let keys: Vec<&str> = property["x-kubernetes-list-map-keys"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            words.push(format!("L={}", keys.join(",")));
        }
        Some("set") => words.push("set".into()),
        _ => {}
    }
    if let Some(kind @ ("atomic" | "granular")) = text("x-kubernetes-map-type").as_deref() {
        words.push(kind.into());
    }
    if let Some(strategy) = text("x-kubernetes-patch-strategy") {
        words.push(format!("p={strategy}"));
    }
    if let Some(key) = text("x-kubernetes-patch-merge-key") {
        words.push(format!("k={key}"));
    }
    words
}

/// The rules of `schema_supplement.txt`.
struct Supplement {
    rules: Vec<(String, Vec<String>)>,
}

impl Supplement {
    fn parse(text: &str) -> Self {
        let rules = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .filter_map(|line| {
                let (rule, fields) = line.split_once(' ')?;
                Some((rule.to_owned(), fields.split_ascii_whitespace().map(str::to_owned).collect()))
            })
            .collect();
        Self { rules }
    }

    fn says(&self, rule: &str, name: &str, field: &str, ty: &str, top: bool) -> bool {
        self.rules.iter().filter(|(r, _)| r == rule).flat_map(|(_, fields)| fields).any(|pattern| {
            let (pattern, of) = pattern.split_once('@').unwrap_or((pattern, ""));
            let Some((of_type, of_field)) = pattern.rsplit_once('.') else { return false };
            of_field == field
                && (of_type.is_empty() || name == of_type || name.ends_with(&format!(".{of_type}")))
                && match of {
                    "" => true,
                    "top" => top && ty.starts_with('@'),
                    target => ty.ends_with(&format!(".{target}")),
                }
        })
    }

    /// `!`: always printed, its zero included; `z`: its zero is the same as not set; none: may be absent, and zero differs.
    fn presence(&self, name: &str, field: &str, ty: &str, required: bool, top: bool) -> Option<char> {
        let says = |rule| self.says(rule, name, field, ty, top);
        if top && (field == "apiVersion" || field == "kind") {
            return Some('z');
        }
        if required {
            return (!says("reference")).then_some('!');
        }
        if says("always") || says("null") || says("inline") {
            return Some('!');
        }
        match ty.chars().next() {
            Some('[' | '{' | 'y') => (!says("set-list")).then_some('z'),
            Some('s') => (!says("set-text")).then_some('z'),
            Some('b' | 'i' | 'l' | 'd') => (says("plain") && !says("set-scalar")).then_some('z'),
            _ => None,
        }
    }

    fn default(&self, name: &str, field: &str) -> Option<String> {
        self.rules.iter().filter(|(rule, _)| rule == "default").flat_map(|(_, f)| f).find_map(|entry| {
            let (pattern, value) = entry.split_once('=')?;
            let (of_type, of_field) = pattern.rsplit_once('.')?;
            (of_field == field && name.ends_with(&format!(".{of_type}"))).then(|| value.to_owned())
        })
    }
}

/// A protobuf field: its name, tag, and the message it refers to, if any.
struct ProtoField {
    name: String,
    tag: u32,
    message: Option<String>,
    repeated: bool,
}

/// Where a field is in a message: tags from the outside in, and the types of the embedded messages on the way.
#[derive(Default, Clone)]
struct TagPath {
    tags: Vec<u32>,
    embedded: Vec<String>,
}

#[derive(Default)]
struct Messages {
    by_name: BTreeMap<String, Vec<ProtoField>>,
}

impl Messages {
    fn is_missing(&self, message: &str) -> bool {
        !self.by_name.contains_key(message)
    }

    /// Paths of tags by plain name. A message field whose name is no property is an embedded message: JSON has
    /// its fields in the outer object.
    fn flatten(
        &self,
        message: &str,
        properties: &serde_json::Map<String, Value>,
        path: &mut TagPath,
        tags: &mut BTreeMap<String, TagPath>,
    ) -> Result<()> {
        let Some(fields) = self.by_name.get(message) else { return Ok(()) };
        for field in fields {
            let lower = plain_name(&field.name);
            path.tags.push(field.tag);
            let is_property = properties.keys().any(|p| plain_name(p) == lower);
            match &field.message {
                Some(embedded) if !is_property && !field.repeated => {
                    path.embedded.push(embedded.rsplit('.').next().unwrap_or_default().to_owned());
                    self.flatten(embedded, properties, path, tags)?;
                    path.embedded.pop();
                }
                _ if is_property => {
                    tags.entry(lower).or_insert_with(|| path.clone());
                }
                _ => {}
            }
            path.tags.pop();
        }
        Ok(())
    }
}

/// What JSON and protobuf names have in common: letters and digits, without case (`x-kubernetes-map-type` is
/// `xKubernetesMapType`, `$ref` is `ref`).
fn plain_name(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// The message of a definition: the package's first two parts are swapped and dashes become underscores.
fn message_name(definition: &str) -> String {
    definition.replacen("io.k8s.", "k8s.io.", 1).replace('-', "_")
}

fn read_protos(folder: &Path, messages: &mut Messages) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            read_protos(&path, messages)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            read_proto(&std::fs::read_to_string(&path)?, messages);
        }
    }
    Ok(())
}

/// Reads the shape Kubernetes' generator prints: one field a line, no nested messages, no oneof.
fn read_proto(text: &str, messages: &mut Messages) {
    let mut package = String::new();
    let mut current: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("package ") {
            package = name.trim_end_matches(';').to_owned();
        } else if let Some(name) = line.strip_prefix("message ") {
            let name = format!("{package}.{}", name.trim_end_matches('{').trim());
            messages.by_name.entry(name.clone()).or_default();
            current = Some(name);
        } else if line == "}" {
            current = None;
        } else if let (Some(message), Some(field)) = (&current, read_field(line, &package))
            && let Some(fields) = messages.by_name.get_mut(message)
        {
            fields.push(field);
        }
    }
}

fn read_field(line: &str, package: &str) -> Option<ProtoField> {
    let (declaration, tag) = line.strip_suffix(';')?.rsplit_once('=')?;
    let tag = tag.trim().parse().ok()?;
    let (ty, name) = declaration.trim().rsplit_once(' ')?;
    let name = name.to_owned();
    if ty.starts_with("map<") {
        return Some(ProtoField { name, tag, message: None, repeated: true });
    }
    let (label, ty) = ty.split_once(' ')?;
    let message = match ty {
        "string" | "bytes" | "bool" | "int32" | "int64" | "uint32" | "uint64" | "double" | "float" => None,
        absolute if absolute.starts_with('.') => Some(absolute[1..].to_owned()),
        local => Some(format!("{package}.{local}")),
    };
    Some(ProtoField { name, tag, message, repeated: label == "repeated" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn embedded_messages_become_paths_of_tags() {
        let mut messages = Messages::default();
        read_proto(
            "package p;\nmessage Outer {\n  optional Inner inner = 2;\n  optional string Name = 1;\n}\nmessage Inner {\n  optional int32 size = 3;\n}\n",
            &mut messages,
        );
        let properties = serde_json::json!({"name": {}, "size": {}});
        let mut tags = BTreeMap::new();
        messages
            .flatten("p.Outer", properties.as_object().unwrap(), &mut TagPath::default(), &mut tags)
            .unwrap();
        assert_eq!(tags["name"].tags, [1]);
        assert_eq!(tags["size"].tags, [2, 3]);
        assert_eq!(tags["size"].embedded, ["Inner"]);
    }

    #[test]
    fn prerelease_versions_are_left_out() {
        assert!(is_prerelease("io.k8s.api.resource.v1beta1.Device"));
        assert!(!is_prerelease("io.k8s.api.resource.v1.Device"));
    }

    #[test]
    fn every_rule_of_the_supplement_is_known() {
        let known = [
            "set-text",
            "set-list",
            "set-scalar",
            "plain",
            "inline",
            "always",
            "null",
            "reference",
            "default",
        ];
        let supplement = Supplement::parse(include_str!("schema_supplement.txt"));
        assert!(supplement.rules.iter().all(|(rule, _)| known.contains(&rule.as_str())));
    }
}
