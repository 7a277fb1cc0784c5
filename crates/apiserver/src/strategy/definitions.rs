//! Definitions of custom resources.
//!
//! The reference checks its internal form of a definition: what all versions have in common (schema, subresources, columns,
//! selectable fields) counts as the definition's, so errors stand at `spec.validation.openAPIV3Schema` rather than at
//! `spec.versions[0].schema.openAPIV3Schema`, and the webhook's parts directly below `spec.conversion`. [`View`] is that
//! form. What stored definitions may break because the rule is younger than they are, updates may leave so.

mod conversion;
pub mod internal;
mod schema;
#[cfg(test)]
mod tests;

use api::field::{Cursor, ErrorList, Reason, is_printable};
use api::structural::field_path::{self, Step};
use api::structural::{Node, Structural};
use api::{codec, names};
use serde_json::{Value, json};

use super::generic::{self, immutable};
use super::tree::{child, each, make, put, put_absent, text};
use super::{Context, Strategy};
use crate::cel;
use crate::extensions::FINALIZER;
use crate::extensions::conditions::{self, Condition};

const APPROVED: &str = "api-approved.kubernetes.io";
const MAX_SELECTABLE_FIELDS: usize = 8;
const SCHEMA_TYPE: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// The strategy of CustomResourceDefinition.
pub(super) struct Definition;

impl Strategy for Definition {
    fn default(&self, object: &mut Value) {
        let Some(spec) = make(object, "spec") else { return };
        if let Some(names) = make(spec, "names") {
            let kind = text(names, "kind").to_owned();
            if !kind.is_empty() {
                put(names, "singular", kind.to_lowercase());
                put(names, "listKind", format!("{kind}List"));
            }
        }
        if let Some(conversion) = make(spec, "conversion") {
            put(conversion, "strategy", "None");
            if let Some(service) = child(conversion, "webhook")
                .and_then(|w| child(w, "clientConfig"))
                .and_then(|c| child(c, "service"))
            {
                put_absent(service, "port", 443);
            }
        }
        for version in each(spec, "versions") {
            if let Some(schema) = child(version, "schema").and_then(|s| child(s, "openAPIV3Schema")) {
                type_nested(schema);
            }
        }
    }

    fn status_keeps(&self) -> &'static [&'static str] {
        &[]
    }

    fn prepare_status_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        generic::prepare_status_update(self.status_keeps(), new, old);
    }

    fn prepare_create(&self, _context: &Context, object: &mut Value) {
        object["status"] = json!({
            "conditions": null,
            "acceptedNames": {"plural": "", "kind": ""},
            "storedVersions": null,
        });
        store_version(object);
    }

    fn validate_create(&self, object: &Value, errors: &mut ErrorList) {
        required_name(object, errors);
        let options = Options::of_new();
        spec(&View::of(object), &options, errors);
        status(object, errors);
        stored_versions(object, errors);
        approval(object, None, errors);
        preserve_unknown(object, None, errors);
    }

    fn prepare_update(&self, _context: &Context, new: &mut Value, old: &Value) {
        generic::prepare_update(true, true, new, old);
        store_version(new);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut ErrorList) {
        let mut wrong = ErrorList::default();
        spec(
            &View::of(new),
            &Options { bad_bundle_allowed: may_keep_bundle(old), ..Options::of_new() },
            &mut wrong,
        );
        if !wrong.is_empty() {
            // Only now it matters what the old one broke; to know that takes as long as the check itself.
            wrong = ErrorList::default();
            spec(&View::of(new), &Options::of_old(old), &mut wrong);
        }
        errors.0.extend(wrong.0);
        let (new_spec, old_spec) = (&new["spec"], &old["spec"]);
        if is_established(old) {
            immutable("spec.scope", &new_spec["scope"], &old_spec["scope"], errors);
            immutable("spec.names.kind", &new_spec["names"]["kind"], &old_spec["names"]["kind"], errors);
        }
        immutable("spec.group", &new_spec["group"], &old_spec["group"], errors);
        immutable("spec.names.plural", &new_spec["names"]["plural"], &old_spec["names"]["plural"], errors);
        status(new, errors);
        stored_versions(new, errors);
        approval(new, Some(old), errors);
        preserve_unknown(new, Some(old), errors);
    }

    fn validate_status_update(&self, new: &Value, _old: &Value, errors: &mut ErrorList) {
        status(new, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>) -> Vec<String> {
        let formats = |object: &Value| {
            let mut found = Vec::new();
            for version in versions_of(object) {
                schema::unknown_formats(&version["schema"]["openAPIV3Schema"], &mut found);
            }
            found.sort();
            found.dedup();
            found
        };
        let known = old.map(formats).unwrap_or_default();
        formats(new).into_iter().filter(|format| !known.contains(format)).collect()
    }

    fn begin_deletion(&self, context: &Context, object: &mut Value) {
        generic::add_finalizer(object, FINALIZER);
        let condition = Condition {
            type_: "Terminating",
            status: true,
            reason: "InstanceDeletionPending",
            message: "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        };
        conditions::set(object, &condition, context.now);
    }

    fn allows_unconditional_update(&self) -> bool {
        false
    }
}

/// Brings schemas that the codec passed over (they stand where JSON allows several types) into the form of the others.
fn type_nested(schema: &mut Value) {
    for key in ["items", "additionalProperties", "additionalItems"] {
        if schema[key].is_object() {
            let shape = api::schema::root(SCHEMA_TYPE);
            if let Ok(decoded) = codec::decode_value(schema[key].clone(), shape) {
                schema[key] = decoded.value;
            }
            type_nested(&mut schema[key]);
        }
    }
    for key in ["properties", "patternProperties", "definitions"] {
        for (_, member) in schema.get_mut(key).and_then(Value::as_object_mut).into_iter().flatten() {
            type_nested(member);
        }
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        each(schema, key).for_each(type_nested);
    }
    if let Some(not) = child(schema, "not") {
        type_nested(not);
    }
}

/// Adds the storage version to those that objects may be stored in.
fn store_version(object: &mut Value) {
    let storage = versions_of(object).iter().find(|v| v["storage"] == json!(true));
    let Some(name) = storage.map(|v| v["name"].clone()) else { return };
    let Some(status) = make(object, "status") else { return };
    match status["storedVersions"].as_array_mut() {
        Some(stored) if stored.contains(&name) => {}
        Some(stored) => stored.push(name),
        None => status["storedVersions"] = json!([name]),
    }
}

fn versions_of(object: &Value) -> &[Value] {
    list(&object["spec"]["versions"])
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn is_established(object: &Value) -> bool {
    list(&object["status"]["conditions"])
        .iter()
        .any(|condition| condition["type"] == "Established" && condition["status"] == "True")
}

/// Whether a bundle of certificates may be one that cannot be read: before anything is served, or where it was so.
fn may_keep_bundle(old: &Value) -> bool {
    let bundle = &old["spec"]["conversion"]["webhook"]["clientConfig"]["caBundle"];
    !is_established(old) || conversion::bad_bundle(bundle).is_some()
}

/// Which younger rules hold.
struct Options {
    schema_required: bool,
    structural: bool,
    pruned_defaults: bool,
    known_review_version: bool,
    bad_bundle_allowed: bool,
    schema: schema::Options,
    /// Schemas that were there before: their rules are not compiled again.
    known_schemas: Vec<Value>,
}

impl Options {
    fn of_new() -> Self {
        Self {
            schema_required: true,
            structural: true,
            pruned_defaults: true,
            known_review_version: true,
            // Whoever makes the definition may put the bundle in later.
            bad_bundle_allowed: true,
            schema: schema::Options { known_types: true, atomic_sets: true, keys_given: true },
            known_schemas: Vec::new(),
        }
    }

    fn of_old(old: &Value) -> Self {
        let schemas: Vec<&Value> = versions_of(old).iter().map(|v| &v["schema"]["openAPIV3Schema"]).collect();
        let all = |test: &dyn Fn(&Value) -> bool| schemas.iter().filter(|s| s.is_object()).all(|s| test(s));
        let none = |test: &dyn Fn(&Value) -> bool| all(&|schema| !schema::any(schema, test));
        let webhook = &old["spec"]["conversion"]["webhook"];
        let reviews = list(&webhook["conversionReviewVersions"]);
        Self {
            schema_required: schemas.iter().all(|s| s.is_object()),
            structural: all(&|s| Structural::parse(s).is_ok_and(|s| s.is_structural())),
            pruned_defaults: all(&|s| !Structural::parse(s).is_ok_and(|s| s.has_unpruned_defaults())),
            known_review_version: reviews.is_empty() || reviews.iter().any(conversion::is_known_review),
            bad_bundle_allowed: may_keep_bundle(old),
            schema: schema::Options {
                known_types: none(&schema::has_unknown_type),
                atomic_sets: none(&schema::is_loose_set),
                keys_given: none(&schema::has_bad_keys),
            },
            known_schemas: schemas.into_iter().cloned().collect(),
        }
    }
}

/// A definition as the reference sees it: what all versions have in common is the definition's own.
struct View<'a> {
    spec: &'a Value,
    versions: &'a [Value],
}

impl<'a> View<'a> {
    fn of(object: &'a Value) -> Self {
        Self { spec: &object["spec"], versions: versions_of(object) }
    }

    fn is_shared(&self, key: &str) -> bool {
        self.versions.windows(2).all(|pair| is_same(&pair[0][key], &pair[1][key]))
    }

    /// What all versions have.
    fn shared(&self, key: &str) -> &'a Value {
        match self.versions.first() {
            Some(version) if self.is_shared(key) => &version[key],
            _ => &Value::Null,
        }
    }

    /// What this version has for itself.
    fn own(&self, version: &'a Value, key: &str) -> &'a Value {
        if self.is_shared(key) { &Value::Null } else { &version[key] }
    }

    fn has_any_status(&self) -> bool {
        self.versions.iter().any(|version| has_status(&version["subresources"]))
    }

    fn show_versions(&self) -> String {
        internal::versions(self.versions, |key| !self.is_shared(key))
    }
}

/// Whether two parts are equal; null, absent and an empty list are one.
fn is_same(a: &Value, b: &Value) -> bool {
    let is_empty = |v: &Value| v.is_null() || v.as_array().is_some_and(Vec::is_empty);
    a == b || is_empty(a) && is_empty(b)
}

fn has_status(subresources: &Value) -> bool {
    !subresources["status"].is_null()
}

fn required_name(object: &Value, errors: &mut ErrorList) {
    let (metadata, spec) = (Cursor::root(object).key("metadata"), &object["spec"]);
    let required = format!("{}.{}", text(&spec["names"], "plural"), text(spec, "group"));
    for field in [metadata.key("generateName"), metadata.key("name")] {
        if !field.str().is_empty() && field.str() != required {
            errors.invalid(&field.path, field.json(), r#"must be spec.names.plural+"."+spec.group"#);
        }
    }
}

fn spec(view: &View<'_>, options: &Options, errors: &mut ErrorList) {
    let at = Cursor::at(view.spec, "spec");
    group(&at.key("group"), errors);
    one_of(&at.key("scope"), &["Cluster", "Namespaced"], errors);
    let preserves = view.spec["preserveUnknownFields"] == json!(true);
    schemas_given(view, options, preserves, errors);
    let schemas = || view.versions.iter().map(|v| &v["schema"]["openAPIV3Schema"]);
    let has_defaults = schemas().any(|s| schema::any(s, &|s| !s["default"].is_null()));
    if has_defaults && preserves {
        let detail = "must be false in order to use defaults in the schema";
        errors.invalid("spec.preserveUnknownFields", &json!(true), detail);
    }
    let has_extensions = || schemas().any(|s| schema::any(s, &has_extension));
    let must_be_structural = options.structural || !preserves || has_defaults || has_extensions();
    let checks = Checks { options, structural: must_be_structural };

    for (n, version) in view.versions.iter().enumerate() {
        each_version(view, version, &format!("spec.versions[{n}]"), &checks, errors);
    }
    version_set(view, errors);
    for name in ["plural", "singular", "kind", "listKind"] {
        let field = at.key("names").key(name);
        if field.str().is_empty() {
            errors.required(&field.path, "");
        }
    }
    names_valid(&at.key("names"), errors);
    checks.schema(view.shared("schema"), "spec.validation", view.has_any_status(), errors);
    subresources(&Cursor::at(view.shared("subresources"), "spec.subresources"), errors);
    columns(&Cursor::at(view.shared("additionalPrinterColumns"), "spec.additionalPrinterColumns"), errors);
    selectable(view.shared("selectableFields"), view.shared("schema"), "spec", errors);
    let conversion = at.key("conversion");
    if conversion.exists() && conversion.key("strategy").str() != "None" && preserves {
        let strategy = conversion.key("strategy");
        let detail = "must be None if spec.preserveUnknownFields is true";
        errors.invalid(&strategy.path, strategy.json(), detail);
    }
    conversion::check(&conversion, options.known_review_version, options.bad_bundle_allowed, errors);
}

fn group(at: &Cursor<'_>, errors: &mut ErrorList) {
    let wrong = names::dns1123_subdomain(at.str());
    if at.str().is_empty() {
        errors.required(&at.path, "");
    } else if !wrong.is_empty() {
        errors.invalid(&at.path, at.json(), &wrong.join(","));
    } else if !at.str().contains('.') {
        errors.invalid(&at.path, at.json(), "should be a domain with at least one dot");
    }
}

fn one_of(at: &Cursor<'_>, accepted: &[&str], errors: &mut ErrorList) {
    if at.str().is_empty() {
        errors.required(&at.path, "");
    } else if !accepted.contains(&at.str()) {
        errors.not_supported(&at.path, at.json(), accepted);
    }
}

fn schemas_given(view: &View<'_>, options: &Options, preserves: bool, errors: &mut ErrorList) {
    if view.shared("schema")["openAPIV3Schema"].is_object() {
        return;
    }
    for (n, version) in view.versions.iter().enumerate() {
        let is_missing = !view.own(version, "schema")["openAPIV3Schema"].is_object();
        let at = format!("spec.versions[{n}].schema.openAPIV3Schema");
        if is_missing && options.schema_required {
            errors.required(&at, "schemas are required");
        } else if is_missing && !preserves && version["served"] == json!(true) {
            errors.required(&at, "because otherwise all fields are pruned");
        }
    }
}

fn has_extension(schema: &Value) -> bool {
    let is_set = |key: &str| !matches!(&schema[key], Value::Null | Value::Bool(false));
    !schema["x-kubernetes-preserve-unknown-fields"].is_null()
        || is_set("x-kubernetes-embedded-resource")
        || is_set("x-kubernetes-int-or-string")
        || is_set("x-kubernetes-list-type")
        || !list(&schema["x-kubernetes-list-map-keys"]).is_empty()
        || !list(&schema["x-kubernetes-validations"]).is_empty()
}

fn each_version(view: &View<'_>, version: &Value, path: &str, checks: &Checks<'_>, errors: &mut ErrorList) {
    let at = Cursor::at(version, path);
    let name = at.key("name");
    let wrong = names::dns1035_label(name.str());
    if !wrong.is_empty() {
        errors.invalid(&name.path, &json!(name.str()), &wrong.join(","));
    }
    deprecation(&at, errors);
    // Of several versions with one name, the first is asked.
    let subresources_of = view.versions.iter().find(|v| v["name"] == version["name"]).unwrap_or(version);
    let schema = view.own(version, "schema");
    checks.schema(schema, &format!("{path}.schema"), has_status(&subresources_of["subresources"]), errors);
    let own = |key: &str| Cursor::at(view.own(version, key), &format!("{path}.{key}"));
    subresources(&own("subresources"), errors);
    columns(&own("additionalPrinterColumns"), errors);
    selectable(view.own(version, "selectableFields"), &version["schema"], path, errors);
}

fn deprecation(version: &Cursor<'_>, errors: &mut ErrorList) {
    let warning = version.key("deprecationWarning");
    let Some(Value::String(text)) = warning.value else { return };
    let mut refuse = |detail: &str| errors.invalid(&warning.path, warning.json(), detail);
    if version.key("deprecated").bool() != Some(true) {
        return refuse("can only be set for deprecated versions");
    }
    if text.len() > 256 {
        refuse("must be <= 256 characters long");
    }
    if text.is_empty() {
        refuse("must not be an empty string");
    }
    if let Some((n, _)) = text.char_indices().find(|(_, c)| !is_printable(*c)) {
        refuse(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {n}"
        ));
    }
}

fn version_set(view: &View<'_>, errors: &mut ErrorList) {
    let mut refuse = |detail: &str| {
        let body = format!("Invalid value: {}: {detail}", view.show_versions());
        errors.push(Reason::Invalid, "spec.versions", body);
    };
    let name_of = |version: &Value| version["name"].clone();
    let is_repeated = |n: usize, version| view.versions[..n].iter().any(|v| name_of(v) == name_of(version));
    if view.versions.iter().enumerate().any(|(n, version)| is_repeated(n, version)) {
        refuse("must contain unique version names");
    }
    if view.versions.iter().filter(|v| v["storage"] == json!(true)).count() != 1 {
        refuse("must have exactly one version marked as storage version");
    }
    // The first version's name is the definition's, too.
    let first = view.versions.first().map_or("", |version| text(version, "name"));
    let wrong = names::dns1035_label(first);
    if !first.is_empty() && !wrong.is_empty() {
        errors.invalid("spec.version", &json!(first), &wrong.join(","));
    }
}

fn names_valid(at: &Cursor<'_>, errors: &mut ErrorList) {
    let label = |field: &Cursor<'_>, lead: &str, text: &str, errors: &mut ErrorList| {
        let wrong = names::dns1035_label(text);
        if !wrong.is_empty() {
            errors.invalid(&field.path, &json!(field.str()), &format!("{lead}{}", wrong.join(",")));
        }
    };
    for name in ["plural", "singular"] {
        let field = at.key(name);
        if !field.str().is_empty() {
            label(&field, "", field.str(), errors);
        }
    }
    for name in ["kind", "listKind"] {
        let field = at.key(name);
        if !field.str().is_empty() {
            let lead = "may have mixed case, but should otherwise match: ";
            label(&field, lead, &field.str().to_lowercase(), errors);
        }
    }
    for field in at.key("shortNames").items() {
        label(&field, "", field.str(), errors);
    }
    let (kind, list_kind) = (at.key("kind"), at.key("listKind"));
    if !kind.str().is_empty() && kind.str() == list_kind.str() {
        errors.invalid(&list_kind.path, list_kind.json(), "kind and listKind may not be the same");
    }
    for field in at.key("categories").items() {
        label(&field, "", field.str(), errors);
    }
}

/// How schemas are checked.
struct Checks<'a> {
    options: &'a Options,
    structural: bool,
}

impl Checks<'_> {
    /// Checks the `schema` of a version (or of all).
    fn schema(&self, validation: &Value, path: &str, has_status: bool, errors: &mut ErrorList) {
        let schema = &validation["openAPIV3Schema"];
        if !schema.is_object() {
            return;
        }
        let path = format!("{path}.openAPIV3Schema");
        let mut found = ErrorList::default();
        if has_status {
            status_root(schema, &path, &mut found);
        }
        if schema["nullable"] == json!(true) {
            found.forbidden(&format!("{path}.nullable"), "nullable cannot be true at the root");
        }
        let mut unparsed = ErrorList::default();
        // rules are compiled against the types of a schema that is one
        let mut has_types = false;
        if self.structural {
            match Structural::parse(schema) {
                Err(error) => unparsed.invalid(&path, &json!(""), &error.to_string()),
                Ok(structural) => {
                    let mut wrong = structural.check(&path);
                    if wrong.is_empty() {
                        wrong = structural.check_defaults(&path, self.options.pruned_defaults);
                    }
                    has_types = wrong.is_empty();
                    found.0.extend(wrong.0);
                }
            }
        }
        let mut badly_written = ErrorList::default();
        schema::check(schema, &path, self.options.schema, &mut badly_written);
        let uncompiled = if has_types && !self.options.known_schemas.contains(schema) {
            cel::rules::check(schema, &path, &badly_written)
        } else {
            ErrorList::default()
        };
        found.0.extend(badly_written.0);
        found.0.extend(uncompiled.0);
        // That a schema does not parse has been said better where it was looked at piece by piece.
        errors.0.extend(if found.is_empty() { unparsed.0 } else { found.0 });
    }
}

/// With a status subresource, status is checked by `properties.status` alone: the root may only say what is not lost so.
fn status_root(schema: &Value, path: &str, errors: &mut ErrorList) {
    const ALLOWED: &str = "Description Type Format Title Maximum ExclusiveMaximum Minimum ExclusiveMinimum MaxLength MinLength Pattern MaxItems MinItems UniqueItems MultipleOf Required Items Properties ExternalDocs Example XPreserveUnknownFields XValidations";
    for field in internal::set_fields(schema) {
        if field == "Type" && text(schema, "type") != "object" {
            let detail = r#"only "object" is allowed as the type at the root of the schema if the status subresource is enabled"#;
            errors.invalid(&format!("{path}.type"), &schema["type"], detail);
            return;
        }
        if !ALLOWED.split(' ').any(|allowed| allowed == field) {
            let detail = format!(
                "only [{ALLOWED}] fields are allowed at the root of the schema if the status subresource is enabled"
            );
            let body = format!("Invalid value: {}: {detail}", internal::schema(schema));
            errors.push(Reason::Invalid, path, body);
            return;
        }
    }
}

fn subresources(at: &Cursor<'_>, errors: &mut ErrorList) {
    let scale = at.key("scale");
    if !scale.exists() {
        return;
    }
    for (name, prefix) in [("specReplicasPath", ".spec"), ("statusReplicasPath", ".status")] {
        let field = scale.key(name);
        if field.str().is_empty() {
            errors.required(&field.path, "");
        } else if simple_path(&field, errors) && !field.str().starts_with(&format!("{prefix}.")) {
            errors.invalid(&field.path, field.json(), &format!("should be a json path under {prefix}"));
        }
    }
    let selector = scale.key("labelSelectorPath");
    if !selector.str().is_empty()
        && simple_path(&selector, errors)
        && ![".spec.", ".status."].iter().any(|prefix| selector.str().starts_with(prefix))
    {
        errors.invalid(
            &selector.path,
            selector.json(),
            "should be a json path under either .spec or .status",
        );
    }
}

/// Whether a path that is not empty begins as it must.
fn simple_path(at: &Cursor<'_>, errors: &mut ErrorList) -> bool {
    let is_simple = at.str().starts_with('.');
    if !is_simple {
        errors.invalid(&at.path, at.json(), "must be a simple json path starting with .");
    }
    is_simple
}

fn columns(at: &Cursor<'_>, errors: &mut ErrorList) {
    const TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
    const FORMATS: [&str; 8] = ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];
    for column in at.items() {
        let (name, ty, format) = (column.key("name"), column.key("type"), column.key("format"));
        if name.str().is_empty() {
            errors.required(&name.path, "");
        }
        let detail = format!("must be one of {}", TYPES.join(","));
        if ty.str().is_empty() {
            errors.required(&ty.path, &detail);
        } else if !TYPES.contains(&ty.str()) {
            errors.invalid(&ty.path, ty.json(), &detail);
        }
        if !format.str().is_empty() && !FORMATS.contains(&format.str()) {
            let detail = format!("must be one of {}", FORMATS.join(","));
            errors.invalid(&format.path, format.json(), &detail);
        }
        let path = Cursor { path: format!("{}.JSONPath", column.path), ..column.key("jsonPath") };
        if path.str().is_empty() {
            errors.required(&path.path, "");
        } else {
            simple_path(&path, errors);
        }
    }
}

fn selectable(fields: &Value, validation: &Value, path: &str, errors: &mut ErrorList) {
    let schema = &validation["openAPIV3Schema"];
    let list_path = format!("{path}.selectableFields");
    if list(fields).is_empty() {
        return;
    }
    if !schema.is_object() {
        let detail = if path == "spec" {
            "selectableFields may only be set when validations.schema is included"
        } else {
            "selectableFields may only be set when version.schema.openAPIV3Schema is not included"
        };
        return errors.invalid(&list_path, &json!(""), detail);
    }
    let node = match Node::parse(schema) {
        Ok(node) => node,
        Err(error) => {
            return errors.invalid(&format!("{path}.schema.openAPIV3Schema"), &json!(""), &error.to_string());
        }
    };
    let mut seen = Vec::new();
    for field in Cursor::at(fields, &list_path).items() {
        let at = field.key("jsonPath");
        if at.str().is_empty() {
            errors.required(&at.path, "");
            continue;
        }
        match field_path::resolve(&node, at.str(), false) {
            Err(why) => errors.invalid(&at.path, at.json(), &format!("is an invalid path: {why}")),
            Ok((steps, found)) => {
                if steps.first() == Some(&Step::Field("metadata".to_owned())) {
                    errors.invalid(&at.path, at.json(), "must not point to fields in metadata");
                }
                if !found.is_some_and(|node| matches!(node.ty.as_str(), "string" | "boolean" | "integer")) {
                    errors.invalid(
                        &at.path,
                        at.json(),
                        "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
                    );
                }
                if seen.contains(&steps) {
                    errors.duplicate(&at.path, at.json());
                } else {
                    seen.push(steps);
                }
            }
        }
    }
    if seen.len() > MAX_SELECTABLE_FIELDS {
        errors.too_many(&list_path, seen.len(), MAX_SELECTABLE_FIELDS);
    }
}

fn status(object: &Value, errors: &mut ErrorList) {
    names_valid(&Cursor::root(object).key("status").key("acceptedNames"), errors);
}

fn stored_versions(object: &Value, errors: &mut ErrorList) {
    let at = Cursor::root(object).key("status").key("storedVersions");
    if at.is_empty() {
        return errors.invalid(&at.path, &Value::Null, "must have at least one stored version");
    }
    let stored = list(at.json());
    for version in versions_of(object).iter().filter(|v| v["storage"] == json!(true)) {
        if !stored.contains(&version["name"]) {
            let detail = format!("must have the storage version {}", text(version, "name"));
            errors.invalid(&at.path, at.json(), &detail);
        }
    }
    for (n, name) in stored.iter().enumerate() {
        let is_repeated = stored[n + 1..].contains(name);
        if !is_repeated && !versions_of(object).iter().any(|version| version["name"] == *name) {
            let name_text = name.as_str().unwrap_or_default();
            errors.invalid(
                &format!("{}[{n}]", at.path),
                name,
                &format!("missing from spec.versions; {name_text} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name_text} and removes {name_text} from status.storedVersions"),
            );
        }
    }
}

#[derive(PartialEq, Eq)]
enum Approval {
    Missing,
    Bypassed,
    Approved,
    Invalid,
}

fn approval_of(object: &Value) -> Approval {
    let annotation = object["metadata"]["annotations"][APPROVED].as_str().unwrap_or_default();
    let is_url = annotation.split_once("://").is_some_and(|(scheme, rest)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && !rest.is_empty() && !rest.starts_with('/')
    });
    match annotation {
        "" => Approval::Missing,
        text if text.starts_with("unapproved") => Approval::Bypassed,
        _ if is_url => Approval::Approved,
        _ => Approval::Invalid,
    }
}

/// The groups of the Kubernetes community need a word of its reviewers.
fn approval(new: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let group = text(&new["spec"], "group");
    let is_protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')));
    let state = approval_of(new);
    if !is_protected || old.is_some_and(|old| approval_of(old) == state) {
        return;
    }
    let path = format!("metadata.annotations[{APPROVED}]");
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    let lead = format!("protected groups must have approval annotation \"{APPROVED}\"");
    match state {
        Approval::Missing => errors.required(&path, &format!("{lead}, {see}")),
        Approval::Invalid => errors.invalid(
            &path,
            &new["metadata"]["annotations"][APPROVED],
            &format!("{lead} with either a URL or a reason starting with \"unapproved\", {see}"),
        ),
        Approval::Bypassed | Approval::Approved => {}
    }
}

fn preserve_unknown(new: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let preserves = |object: &Value| object["spec"]["preserveUnknownFields"] == json!(true);
    if preserves(new) && !old.is_some_and(preserves) {
        errors.invalid(
            "spec.preserveUnknownFields",
            &json!(true),
            "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead",
        );
    }
}
