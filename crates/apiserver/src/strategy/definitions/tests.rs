//! What the validation of definitions says, and what updates may leave as it was.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::*;

fn now() -> Context {
    Context::new("2026-01-01T00:00:00Z".parse().unwrap())
}

fn definition(schema: Value) -> Value {
    with_versions(
        json!([{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]),
    )
}

fn with_versions(versions: Value) -> Value {
    json!({
        "metadata": {"name": "widgets.example.com", "generation": 1},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": versions,
        },
    })
}

fn spec_of(properties: Value) -> Value {
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": properties}}})
}

fn shown(errors: &ErrorList) -> String {
    errors.0.iter().map(|e| format!("{e}\n")).collect()
}

fn created(mut object: Value) -> (Value, String) {
    Definition.default(&mut object);
    Definition.prepare_create(&now(), &mut object);
    let mut errors = ErrorList::default();
    Definition.validate_create(&object, &mut errors);
    (object, shown(&errors))
}

fn check(object: Value, expected: Expect) {
    expected.assert_eq(&created(object).1);
}

/// Stores a definition as it is (perhaps by older rules), edits it, and says what is wrong then.
fn change(mut old: Value, edit: impl Fn(&mut Value)) -> (Value, String) {
    Definition.default(&mut old);
    Definition.prepare_create(&now(), &mut old);
    let mut new = old.clone();
    edit(&mut new);
    Definition.default(&mut new);
    Definition.prepare_update(&now(), &mut new, &old);
    let mut errors = ErrorList::default();
    Definition.validate_update(&new, &old, &mut errors);
    (new, shown(&errors))
}

#[test]
fn defaults_of_names_conversion_and_status_are_filled_in() {
    let (object, errors) = created(definition(json!({"type": "object"})));
    assert_eq!(errors, "");
    assert_eq!(
        object["spec"]["names"],
        json!({"plural": "widgets", "kind": "Widget", "singular": "widget", "listKind": "WidgetList"})
    );
    assert_eq!(object["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(
        object["status"],
        json!({"conditions": null, "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": ["v1"]})
    );
}

#[test]
fn schemas_below_items_and_additional_properties_are_typed_as_others() {
    let item = json!({"type": "object", "nullable": false, "nosuch": 1, "properties": {"a": {
        "type": "object", "additionalProperties": {"type": "string", "zz": 1}}}});
    let (object, errors) = created(definition(spec_of(json!({"l": {"type": "array", "items": item}}))));
    assert_eq!(errors, "");
    assert_eq!(
        object["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["l"]["items"],
        json!({"type": "object", "properties": {"a": {"type": "object", "additionalProperties": {"type": "string"}}}})
    );
}

#[test]
fn what_versions_have_in_common_stands_at_the_definition() {
    let bad = json!({"type": "object", "properties": {"spec": {}}});
    let version = |name: &str, schema: &Value| json!({"name": name, "served": true, "storage": name == "v1", "schema": {"openAPIV3Schema": schema}});
    check(
        with_versions(json!([version("v1", &bad), version("v2", &bad)])),
        expect![[r#"
            spec.validation.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields
        "#]],
    );
    check(
        with_versions(
            json!([version("v1", &json!({"type": "object"})), version("v2", &bad), {"name": "v3", "served": true, "storage": true}]),
        ),
        expect![[r#"
            spec.versions[2].schema.openAPIV3Schema: Required value: schemas are required
            spec.versions[1].schema.openAPIV3Schema.properties[spec].type: Required value: must not be empty for specified object fields
            spec.versions: Invalid value: [{"Name":"v1","Served":true,"Storage":true,"Deprecated":false,"DeprecationWarning":null,"Schema":{"OpenAPIV3Schema":{"ID":"","Schema":"","Ref":null,"Description":"","Type":"object","Nullable":false,"Format":"","Title":"","Maximum":null,"ExclusiveMaximum":false,"Minimum":null,"ExclusiveMinimum":false,"MaxLength":null,"MinLength":null,"Pattern":"","MaxItems":null,"MinItems":null,"UniqueItems":false,"MultipleOf":null,"Enum":null,"MaxProperties":null,"MinProperties":null,"Required":null,"Items":null,"AllOf":null,"OneOf":null,"AnyOf":null,"Not":null,"Properties":null,"AdditionalProperties":null,"PatternProperties":null,"Dependencies":null,"AdditionalItems":null,"Definitions":null,"ExternalDocs":null,"Example":null,"Default":null,"XPreserveUnknownFields":null,"XEmbeddedResource":false,"XIntOrString":false,"XListMapKeys":null,"XListType":null,"XMapType":null,"XValidations":null}},"Subresources":null,"AdditionalPrinterColumns":null,"SelectableFields":null},{"Name":"v2","Served":true,"Storage":false,"Deprecated":false,"DeprecationWarning":null,"Schema":{"OpenAPIV3Schema":{"ID":"","Schema":"","Ref":null,"Description":"","Type":"object","Nullable":false,"Format":"","Title":"","Maximum":null,"ExclusiveMaximum":false,"Minimum":null,"ExclusiveMinimum":false,"MaxLength":null,"MinLength":null,"Pattern":"","MaxItems":null,"MinItems":null,"UniqueItems":false,"MultipleOf":null,"Enum":null,"MaxProperties":null,"MinProperties":null,"Required":null,"Items":null,"AllOf":null,"OneOf":null,"AnyOf":null,"Not":null,"Properties":{"spec":{"ID":"","Schema":"","Ref":null,"Description":"","Type":"","Nullable":false,"Format":"","Title":"","Maximum":null,"ExclusiveMaximum":false,"Minimum":null,"ExclusiveMinimum":false,"MaxLength":null,"MinLength":null,"Pattern":"","MaxItems":null,"MinItems":null,"UniqueItems":false,"MultipleOf":null,"Enum":null,"MaxProperties":null,"MinProperties":null,"Required":null,"Items":null,"AllOf":null,"OneOf":null,"AnyOf":null,"Not":null,"Properties":null,"AdditionalProperties":null,"PatternProperties":null,"Dependencies":null,"AdditionalItems":null,"Definitions":null,"ExternalDocs":null,"Example":null,"Default":null,"XPreserveUnknownFields":null,"XEmbeddedResource":false,"XIntOrString":false,"XListMapKeys":null,"XListType":null,"XMapType":null,"XValidations":null}},"AdditionalProperties":null,"PatternProperties":null,"Dependencies":null,"AdditionalItems":null,"Definitions":null,"ExternalDocs":null,"Example":null,"Default":null,"XPreserveUnknownFields":null,"XEmbeddedResource":false,"XIntOrString":false,"XListMapKeys":null,"XListType":null,"XMapType":null,"XValidations":null}},"Subresources":null,"AdditionalPrinterColumns":null,"SelectableFields":null},{"Name":"v3","Served":true,"Storage":true,"Deprecated":false,"DeprecationWarning":null,"Schema":null,"Subresources":null,"AdditionalPrinterColumns":null,"SelectableFields":null}]: must have exactly one version marked as storage version
            status.storedVersions: Invalid value: ["v1"]: must have the storage version v3
        "#]],
    );
}

#[test]
fn keywords_and_lists_are_checked_where_they_stand() {
    check(
        definition(spec_of(json!({
            "a": {"type": "string", "id": "x", "x-kubernetes-map-type": "loose"},
            "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k", "k", "z", "o"],
                "items": {"type": "object", "nullable": true, "properties": {
                    "k": {"type": "string", "nullable": true}, "o": {"type": "object"}}}},
            "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}},
            "m": {"type": "object", "properties": {"x": {"type": "string"}}, "additionalProperties": {"type": "string"}},
            "n": {"type": "array", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "string"}},
        }))),
        expect![[r#"
            spec.validation.openAPIV3Schema.properties[spec].properties[a].id: Forbidden: id is not supported
            spec.validation.openAPIV3Schema.properties[spec].properties[a].type: Invalid value: "string": must be object if x-kubernetes-map-type is specified
            spec.validation.openAPIV3Schema.properties[spec].properties[a].x-kubernetes-map-type: Unsupported value: "loose": supported values: "atomic", "granular"
            spec.validation.openAPIV3Schema.properties[spec].properties[l].x-kubernetes-list-map-keys: Invalid value: ["k","k","z","o"]: must not contain duplicate entries
            spec.validation.openAPIV3Schema.properties[spec].properties[l].x-kubernetes-list-map-keys: Invalid value: ["k","k","z","o"]: entries must all be names of item properties
            spec.validation.openAPIV3Schema.properties[spec].properties[l].items.properties[o].type: Invalid value: "object": must be a scalar type if parent array's x-kubernetes-list-type is map
            spec.validation.openAPIV3Schema.properties[spec].properties[l].items.nullable: Forbidden: cannot be nullable when x-kubernetes-list-type is map
            spec.validation.openAPIV3Schema.properties[spec].properties[l].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property
            spec.validation.openAPIV3Schema.properties[spec].properties[l].items.properties[k].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it cannot be nullable
            spec.validation.openAPIV3Schema.properties[spec].properties[l].items.properties[k].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property
            spec.validation.openAPIV3Schema.properties[spec].properties[l].items.properties[k].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it cannot be nullable
            spec.validation.openAPIV3Schema.properties[spec].properties[l].items.properties[o].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property
            spec.validation.openAPIV3Schema.properties[spec].properties[m].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive
            spec.validation.openAPIV3Schema.properties[spec].properties[n].x-kubernetes-list-type: Required value: must be map if x-kubernetes-list-map-keys is non-empty
            spec.validation.openAPIV3Schema.properties[spec].properties[s].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set
        "#]],
    );
}

#[test]
fn rules_have_a_shape() {
    let rules = json!([
        {"rule": " "},
        {"rule": "true", "message": " ", "messageExpression": " ", "reason": "Nosuch"},
        {"rule": "a &&\nb"},
        {"rule": "true", "fieldPath": ".zz"},
        {"rule": "true", "fieldPath": ".n", "reason": "FieldValueForbidden", "message": "m"},
    ]);
    let mut schema = spec_of(json!({"n": {"type": "integer"}}));
    schema["properties"]["spec"]["x-kubernetes-validations"] = rules;
    check(
        definition(schema),
        expect![[r#"
            spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Required value: rule is not specified
            spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[1].message: Invalid value: " ": must be non-empty if specified
            spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[1].messageExpression: Required value: must be non-empty if specified
            spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[1].reason: Unsupported value: "Nosuch": supported values: "FieldValueDuplicate", "FieldValueForbidden", "FieldValueInvalid", "FieldValueRequired"
            spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[2].message: Required value: message must be specified if rule contains line breaks
            spec.validation.openAPIV3Schema.properties[spec].x-kubernetes-validations[3].fieldPath: Invalid value: ".zz": must be a valid path
        "#]],
    );
}

#[test]
fn columns_selectable_fields_and_scale_are_checked() {
    let mut object = definition(spec_of(json!({"n": {"type": "integer"}, "o": {"type": "object"}})));
    let version = &mut object["spec"]["versions"][0];
    version["additionalPrinterColumns"] = json!([{"name": "", "type": "", "jsonPath": "x"}, {"name": "a", "type": "string", "format": "z", "jsonPath": ""}]);
    version["selectableFields"] =
        json!([{"jsonPath": ".spec.n"}, {"jsonPath": ".spec.n"}, {"jsonPath": ".spec.o"}]);
    version["subresources"] = json!({"status": {}, "scale": {
        "specReplicasPath": ".status.n", "statusReplicasPath": ".spec.n", "labelSelectorPath": ".x"}});
    version["schema"]["openAPIV3Schema"]["nullable"] = json!(true);
    version["schema"]["openAPIV3Schema"]["type"] = json!("string");
    check(
        object,
        expect![[r#"
            spec.validation.openAPIV3Schema.type: Invalid value: "string": only "object" is allowed as the type at the root of the schema if the status subresource is enabled
            spec.validation.openAPIV3Schema.nullable: Forbidden: nullable cannot be true at the root
            spec.validation.openAPIV3Schema.type: Invalid value: "string": must be object at the root
            spec.subresources.scale.specReplicasPath: Invalid value: ".status.n": should be a json path under .spec
            spec.subresources.scale.statusReplicasPath: Invalid value: ".spec.n": should be a json path under .status
            spec.subresources.scale.labelSelectorPath: Invalid value: ".x": should be a json path under either .spec or .status
            spec.additionalPrinterColumns[0].name: Required value
            spec.additionalPrinterColumns[0].type: Required value: must be one of boolean,date,integer,number,string
            spec.additionalPrinterColumns[0].JSONPath: Invalid value: "x": must be a simple json path starting with .
            spec.additionalPrinterColumns[1].format: Invalid value: "z": must be one of byte,date,date-time,double,float,int32,int64,password
            spec.additionalPrinterColumns[1].JSONPath: Required value
            spec.selectableFields[1].jsonPath: Duplicate value: ".spec.n"
            spec.selectableFields[2].jsonPath: Invalid value: ".spec.o": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.
        "#]],
    );
}

#[test]
fn conversion_by_webhook_needs_a_client_and_a_known_review() {
    let mut object = definition(json!({"type": "object"}));
    object["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {
        "conversionReviewVersions": ["v9", "v9"],
        "clientConfig": {"service": {"name": "n", "namespace": "", "path": "/a//B", "port": 0}}}});
    check(
        object.clone(),
        expect![[r#"
            spec.conversion.webhookClientConfig.service.name: Required value: service name is required
            spec.conversion.webhookClientConfig.service.port: Invalid value: 0: port is not valid: must be between 1 and 65535, inclusive
            spec.conversion.webhookClientConfig.service.path: Invalid value: "/a//B": segment[1] may not be empty
            spec.conversion.webhookClientConfig.service.path: Invalid value: "/a//B": segment[2]: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')
            spec.conversion.conversionReviewVersions[1]: Invalid value: "v9": duplicate version
            spec.conversion.conversionReviewVersions: Invalid value: ["v9","v9"]: must include at least one of v1, v1beta1
        "#]],
    );
    object["spec"]["conversion"]["webhook"] = json!({
        "conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "http://u:p@h/x?q#f", "caBundle": "bm9uZQ=="}});
    let refused = [
        r#"spec.conversion.webhookClientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
        r#"spec.conversion.webhookClientConfig.url: Invalid value: "u:p": user information is not permitted in the URL"#,
        r#"spec.conversion.webhookClientConfig.url: Invalid value: "f": fragments are not permitted in the URL"#,
        r#"spec.conversion.webhookClientConfig.url: Invalid value: "q": query parameters are not permitted in the URL"#,
    ];
    assert_eq!(created(object.clone()).1, refused.map(|line| format!("{line}\n")).concat());
    // A bundle that cannot be read may stand in one that is not yet served.
    object["spec"]["conversion"]["webhook"]["clientConfig"]["url"] = json!("https://h/x");
    assert_eq!(created(object.clone()).1, "");
}

#[test]
fn the_community_groups_need_an_approval() {
    let mut object = definition(json!({"type": "object"}));
    object["spec"]["group"] = json!("x.k8s.io");
    object["metadata"] = json!({"name": "widgets.x.k8s.io", "annotations": {APPROVED: "yes"}});
    check(
        object.clone(),
        expect![[r#"
            metadata.annotations[api-approved.kubernetes.io]: Invalid value: "yes": protected groups must have approval annotation "api-approved.kubernetes.io" with either a URL or a reason starting with "unapproved", see https://github.com/kubernetes/enhancements/pull/1111
        "#]],
    );
    for good in ["unapproved, an experiment", "https://github.com/kubernetes/enhancements/pull/1"] {
        object["metadata"]["annotations"][APPROVED] = json!(good);
        assert_eq!(created(object.clone()).1, "");
    }
}

#[test]
fn scope_and_kind_are_fixed_once_established() {
    let edit = |new: &mut Value| {
        new["spec"]["scope"] = json!("Cluster");
        new["spec"]["names"]["kind"] = json!("Gadget");
    };
    let old = definition(json!({"type": "object"}));
    assert_eq!(change(old.clone(), edit).1, "");
    let mut established = old;
    Definition.default(&mut established);
    Definition.prepare_create(&now(), &mut established);
    established["status"]["conditions"] = json!([{"type": "Established", "status": "True"}]);
    let mut new = established.clone();
    edit(&mut new);
    let mut errors = ErrorList::default();
    Definition.validate_update(&new, &established, &mut errors);
    assert_eq!(
        shown(&errors),
        "spec.scope: Invalid value: \"Cluster\": field is immutable\nspec.names.kind: Invalid value: \"Gadget\": field is immutable\n"
    );
}

#[test]
fn a_new_storage_version_joins_the_stored_ones() {
    let (new, errors) = change(definition(json!({"type": "object"})), |new| {
        let mut second = new["spec"]["versions"][0].clone();
        second["name"] = json!("v2");
        new["spec"]["versions"][0]["storage"] = json!(false);
        new["spec"]["versions"].as_array_mut().unwrap().push(second);
    });
    assert_eq!((errors.as_str(), &new["status"]["storedVersions"]), ("", &json!(["v1", "v2"])));
    assert_eq!(new["metadata"]["generation"], json!(2));
    let (_, errors) = change(new, |new| {
        new["spec"]["versions"].as_array_mut().unwrap().remove(0);
        new["status"] = json!({});
    });
    assert_eq!(errors, "");
}

#[test]
fn what_older_rules_let_in_may_stay() {
    let loose = spec_of(json!({
        "s": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}},
        "d": {"type": "object", "default": {"gone": 1}},
    }));
    assert_ne!(created(definition(loose.clone())).1, "");
    let (_, errors) = change(definition(loose), |new| {
        new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["description"] = json!("d");
    });
    assert_eq!(errors, "");
}

#[test]
fn formats_that_mean_nothing_are_warned_of() {
    let object = definition(spec_of(json!({
        "a": {"type": "string", "format": "nosuch"},
        "b": {"type": "integer", "format": "int32"},
        "c": {"type": "string", "format": "date-time"},
    })));
    assert_eq!(Definition.warnings(&object, None), ["unrecognized format \"nosuch\""]);
    assert_eq!(Definition.warnings(&object, Some(&object)), [""; 0], "only what is new is worth a word");
}

#[test]
fn rules_are_read_where_nothing_else_is_wrong() {
    let bad = json!([{"rule": "self.nosuch"}]);
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "object", "x-kubernetes-map-type": "loose", "x-kubernetes-validations": bad},
        "b": {"type": "object", "x-kubernetes-validations": [{"rule": "1", "optionalOldSelf": true}],
            "properties": {"c": {"type": "string", "x-kubernetes-validations": [{"rule": "'a'"}]}}},
    }, "x-kubernetes-validations": bad});
    let shown = |rule: &str, optional: &str| {
        format!(
            "{{\"Rule\":\"{rule}\",\"Message\":\"\",\"MessageExpression\":\"\",\"Reason\":null,\"FieldPath\":\"\",\"OptionalOldSelf\":{optional}}}"
        )
    };
    let at = "spec.validation.openAPIV3Schema.properties";
    let why = "cel expression must evaluate to a bool";
    let expected = [
        format!(
            "{at}[a].x-kubernetes-map-type: Unsupported value: \"loose\": supported values: \"atomic\", \"granular\""
        ),
        format!(
            "{at}[b].properties[c].x-kubernetes-validations[0].rule: Invalid value: {}: {why}",
            shown("'a'", "null")
        ),
        format!("{at}[b].x-kubernetes-validations[0].rule: Invalid value: {}: {why}", shown("1", "true")),
        format!(
            "{at}[b].x-kubernetes-validations[0].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"
        ),
    ];
    assert_eq!(created(definition(schema)).1, expected.map(|line| line + "\n").concat());
}

#[test]
fn a_deprecation_is_told_in_characters_that_can_be_seen() {
    let mut object = definition(json!({"type": "object"}));
    object["spec"]["versions"][0]["deprecated"] = json!(true);
    for (text, wrong) in
        [("é\u{301} ok", None), ("a\u{200b}", Some(1)), ("é\u{a0}", Some(2)), ("\u{e000}", Some(0))]
    {
        object["spec"]["versions"][0]["deprecationWarning"] = json!(text);
        let errors = created(object.clone()).1;
        match wrong {
            None => assert_eq!(errors, ""),
            Some(at) => assert!(
                errors.ends_with(&format!("non-printable character found at index {at}\n")),
                "{errors}"
            ),
        }
    }
}
