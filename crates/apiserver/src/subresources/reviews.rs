//! Reviews: who am I, who is this token, may I, may they. Nothing is stored.

use api::field::ErrorList;
use api::meta;
use api::selector::{FieldSelector, LabelSelector};
use client::Body;
use http::Response;
use serde_json::{Value, json};

use crate::admission::{Notes, Operation, Options, Request, chain};
use crate::answer;
use crate::auth::authorize::{Attributes, Decision, Grant};
use crate::auth::{UserInfo, token};
use crate::body::{self, WriteOptions};
use crate::managed::{self, Writer};
use crate::negotiate::{Form, View};
use crate::pipeline::Call;
use crate::status::{ApiError, ApiResult};
use crate::write;

/// Reads a review, records who sent it, and asks admission.
async fn sent(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Value> {
    let options = WriteOptions::parse("CreateOptions", &call.info.query, &call.parts.headers)?;
    let (headers, warnings) = (&call.parts.headers, &mut notes.warnings);
    let mut review = body::decode(call.kind, headers, &call.body, options.validation, warnings)?;
    let namespace = write::namespace_of(call, &review)?;
    if !meta::namespace(&review).is_empty() {
        review["metadata"]["namespace"] = json!(namespace);
    }
    let writer = Writer {
        shape: call.kind.shape(),
        api_version: call.kind.api_version(),
        manager: &options.manager,
        subresource: "",
        has_status: true,
        status_keeps: &[],
        now: call.now(),
    };
    managed::update(&writer, None, &mut review);
    let request = Request::of(call, Operation::Create, Options::Write(&options));
    chain::admit(call.server, &request, &mut review, notes).await?;
    Ok(review)
}

/// Whose is this token?
pub async fn token(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let mut review = sent(call, notes).await?;
    let asked: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let audiences: Vec<&str> =
        if asked.is_empty() { vec![token::ISSUER] } else { asked.iter().map(String::as_str).collect() };
    let text = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    if text.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let mut legacy_token = None;
    review["status"] = match call.server.authentication.token(call.server, &text, &audiences).await {
        Ok(Some((user, of_token))) => {
            let common: Vec<&&str> = audiences.iter().filter(|a| of_token.iter().any(|t| t == *a)).collect();
            let status = json!({"authenticated": true, "user": user.to_value(), "audiences": common});
            legacy_token = user.legacy_token;
            status
        }
        _ => json!({"user": {}, "error": "invalid bearer token"}),
    };
    let mut response = reviewed(call, &review)?;
    if let Some(legacy_token) = legacy_token {
        legacy_token.note(&mut response);
    }
    Ok(response)
}

/// Who am I?
pub async fn own_user(call: &Call<'_>, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let mut review = sent(call, notes).await?;
    meta::metadata_mut(&mut review)
        .insert("creationTimestamp".to_owned(), json!(meta::format_time(call.now())));
    review["status"] = json!({"userInfo": call.user.to_value()});
    reviewed(call, &review)
}

fn reviewed(call: &Call<'_>, review: &Value) -> ApiResult<Response<Body>> {
    Ok(answer::value(201, &Form { view: View::Object, ..call.form()? }, review))
}

/// Subject, self-subject and local-subject access reviews, and the list of one's own rules.
pub async fn access(call: &Call<'_>, plural: &str, notes: &mut Notes) -> ApiResult<Response<Body>> {
    let mut review = sent(call, notes).await?;
    if plural == "selfsubjectrulesreviews" {
        return own_rules(call, review);
    }
    let spec = review["spec"].clone();
    let user = if plural == "selfsubjectaccessreviews" {
        call.user.clone()
    } else {
        let extra = spec["extra"].as_object().into_iter().flatten();
        UserInfo {
            name: spec["user"].as_str().unwrap_or_default().to_owned(),
            uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
            groups: texts(&spec["groups"]).map(str::to_owned).collect(),
            extra: extra.map(|(key, v)| (key.clone(), texts(v).map(str::to_owned).collect())).collect(),
            ..UserInfo::default()
        }
    };
    let resource = &spec["resourceAttributes"];
    let text = |key: &str| resource[key].as_str().unwrap_or_default();
    let other = &spec["nonResourceAttributes"];
    let mut errors = ErrorList::default();
    crate::strategy::reviews::access(plural, &call.info.namespace, &review, &mut errors);
    if !errors.is_empty() {
        return Err(ApiError::invalid_named(&call.kind.group, "", "", &errors));
    }
    let (field_selector, fields_ignored) = field_selector(&resource["fieldSelector"]);
    let (label_selector, labels_ignored) = label_selector(&resource["labelSelector"]);
    let attributes = Attributes {
        verb: if resource.is_object() { text("verb") } else { other["verb"].as_str().unwrap_or_default() },
        group: text("group"),
        resource: match text("subresource") {
            "" => text("resource").to_owned(),
            sub => format!("{}/{sub}", text("resource")),
        },
        namespace: text("namespace"),
        name: text("name"),
        path: other["path"].as_str(),
        version: match text("version") {
            "" => "*",
            version => version,
        },
        field_selector: &field_selector,
        label_selector: &label_selector,
    };
    review["status"] = match call.server.authorizer.decide_fully(&user, &attributes).await {
        Decision::Allowed(why) => reasoned(json!({"allowed": true}), &why),
        Decision::Denied(why) => reasoned(json!({"allowed": false, "denied": true}), &why),
        Decision::NoOpinion(why) => reasoned(json!({"allowed": false}), &why),
    };
    let ignored: Vec<String> = [("field", fields_ignored), ("label", labels_ignored)]
        .into_iter()
        .filter_map(|(of, how)| {
            Some(format!("spec.resourceAttributes.{of}Selector {} due to parse error", how?))
        })
        .collect();
    if !ignored.is_empty() {
        review["status"]["evaluationError"] = json!(ignored.join("; "));
    }
    reviewed(call, &review)
}

fn texts(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// What of a selector was not understood: terms are all demanded, so without one of them the question is a wider one.
fn ignored(understood: usize, asked: usize) -> Option<&'static str> {
    match understood {
        n if n == asked => None,
        0 => Some("ignored"),
        _ => Some("partially ignored"),
    }
}

/// A review's selector by fields as one text, and whether something of it is ignored.
fn field_selector(of: &Value) -> (String, Option<&'static str>) {
    let raw = of["rawSelector"].as_str().unwrap_or_default();
    let requirements: Vec<&Value> = of["requirements"].as_array().into_iter().flatten().collect();
    if requirements.is_empty() {
        let reads = FieldSelector::parse(raw).is_ok();
        return if reads { (raw.to_owned(), None) } else { (String::new(), Some("ignored")) };
    }
    let terms: Vec<String> = requirements
        .iter()
        .filter_map(|r| {
            let sign = match r["operator"].as_str()? {
                "In" => "=",
                "NotIn" => "!=",
                _ => return None,
            };
            let [value] = r["values"].as_array()?.as_slice() else { return None };
            let value = value.as_str()?.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            Some(format!("{}{sign}{value}", r["key"].as_str()?))
        })
        .collect();
    (terms.join(","), ignored(terms.len(), requirements.len()))
}

/// A review's selector by labels as one text, and whether something of it is ignored.
fn label_selector(of: &Value) -> (String, Option<&'static str>) {
    let raw = of["rawSelector"].as_str().unwrap_or_default();
    let requirements: Vec<&Value> = of["requirements"].as_array().into_iter().flatten().collect();
    if requirements.is_empty() {
        let reads = LabelSelector::parse(raw).is_ok();
        return if reads { (raw.to_owned(), None) } else { (String::new(), Some("ignored")) };
    }
    let terms: Vec<String> = requirements
        .iter()
        .filter_map(|r| {
            let (key, values) = (r["key"].as_str()?, texts(&r["values"]).collect::<Vec<_>>().join(","));
            match r["operator"].as_str()? {
                "In" => Some(format!("{key} in ({values})")),
                "NotIn" => Some(format!("{key} notin ({values})")),
                "Exists" => Some(key.to_owned()),
                "DoesNotExist" => Some(format!("!{key}")),
                _ => None,
            }
        })
        .collect();
    (terms.join(","), ignored(terms.len(), requirements.len()))
}

fn reasoned(mut status: Value, why: &str) -> Value {
    if !why.is_empty() {
        status["reason"] = json!(why);
    }
    status
}

fn own_rules(call: &Call<'_>, mut review: Value) -> ApiResult<Response<Body>> {
    let namespace = review["spec"]["namespace"].as_str().unwrap_or_default().to_owned();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let (mut resources, mut others) = (Vec::new(), Vec::new());
    let mut add = |rule: &k8s_openapi::api::rbac::v1::PolicyRule, _: &Grant<'_>| {
        if rule.resources.is_some() {
            resources
                .push(json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources,
                "resourceNames": rule.resource_names}));
        }
        if rule.non_resource_urls.is_some() {
            others.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
        false
    };
    call.server.authorizer.each_rule(call.user, &namespace, &mut add);
    if call.user.is_in(crate::auth::MASTERS) {
        resources.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        others.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    review["status"] = json!({"resourceRules": resources, "nonResourceRules": others, "incomplete": false});
    reviewed(call, &review)
}
