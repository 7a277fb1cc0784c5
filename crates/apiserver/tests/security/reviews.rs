//! Reviews and requests of tokens: what is refused, and what of a question is not understood.

use serde_json::{Value, json};

use crate::cluster::Cluster;

const SUBJECT: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

async fn refused(cluster: &Cluster, path: &str, body: Value) -> (u16, String) {
    let (code, answer) = cluster.post(path, body).await;
    (code, answer["message"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn a_token_is_bound_to_a_pod_of_its_own_account() {
    let cluster = Cluster::start().await;
    for name in ["s", "other"] {
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
        cluster.make("/api/v1/namespaces/a/serviceaccounts", account).await;
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "other", "containers": [{"name": "c", "image": "i"}]}});
    let pod = cluster.make("/api/v1/namespaces/a/pods", pod).await;
    let path = "/api/v1/namespaces/a/serviceaccounts/s/token";
    let request = |metadata: Value, spec: Value| json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": metadata, "spec": spec});
    let bound = |kind: &str, uid: &str| json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": "p", "uid": uid}});
    for (metadata, spec, code, message) in [
        (
            json!({}),
            bound("Pod", ""),
            400,
            "cannot bind token for serviceaccount \"s\" to pod running with different serviceaccount name.",
        ),
        (json!({}), bound("ConfigMap", ""), 400, "cannot bind token to object of type /v1, Kind=ConfigMap"),
        (
            json!({"name": "t"}),
            json!({}),
            422,
            "TokenRequest.authentication.k8s.io \"s\" is invalid: metadata.name: Invalid value: \"t\": must match the service account name if specified",
        ),
        (
            json!({"namespace": "b"}),
            json!({}),
            422,
            "TokenRequest.authentication.k8s.io \"s\" is invalid: metadata.namespace: Invalid value: \"b\": must match the service account namespace if specified",
        ),
        (
            json!({}),
            json!({"expirationSeconds": 1}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes",
        ),
    ] {
        assert_eq!(refused(&cluster, path, request(metadata, spec)).await, (code, message.to_owned()));
    }
    let path = "/api/v1/namespaces/a/serviceaccounts/other/token";
    let (code, why) = refused(&cluster, path, request(json!({}), bound("Pod", "x"))).await;
    assert_eq!(code, 409);
    assert_eq!(
        why,
        "Operation cannot be fulfilled on Pod \"p\": the UID in the bound object reference (x) does not match the UID in record. The object might have been deleted and then recreated"
    );
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    cluster.make(path, request(json!({"name": "other"}), bound("Pod", uid))).await;
}

#[tokio::test]
async fn a_review_tells_what_of_its_selectors_it_did_not_understand() {
    let cluster = Cluster::start().await;
    let ask = |fields: Value, labels: Value| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {"user": "u", "resourceAttributes": {
            "verb": "list", "resource": "pods", "fieldSelector": fields, "labelSelector": labels}}})
    };
    let term = |key: &str, operator: &str, values: Value| json!({"key": key, "operator": operator, "values": values});
    let fine = ask(
        json!({"requirements": [term("spec.nodeName", "In", json!(["n"]))]}),
        json!({"rawSelector": "a in (b,c)"}),
    );
    assert_eq!(cluster.make(SUBJECT, fine).await["status"], json!({"allowed": false}));
    let half = ask(
        json!({"requirements": [term("a", "In", json!(["n"])), term("b", "Later", json!([]))]}),
        json!({"rawSelector": "!!"}),
    );
    assert_eq!(
        cluster.make(SUBJECT, half).await["status"]["evaluationError"],
        "spec.resourceAttributes.fieldSelector partially ignored due to parse error; spec.resourceAttributes.labelSelector ignored due to parse error"
    );
    let bad = ask(json!({"rawSelector": "a=b"}), json!({"requirements": [term("k", "In", json!(["a b"]))]}));
    let (code, why) = refused(&cluster, SUBJECT, bad).await;
    assert_eq!(code, 422);
    assert!(
        why.contains(
            "spec.resourceAttributes.labelSelector.requirements[0].values[0]: Invalid value: \"a b\""
        ),
        "{why}"
    );
}

#[tokio::test]
async fn a_review_is_of_its_kind_and_of_its_namespace() {
    let cluster = Cluster::start().await;
    let path = "/apis/authorization.k8s.io/v1/namespaces/a/localsubjectaccessreviews";
    let spec = json!({"user": "u", "resourceAttributes": {"namespace": "a"}});
    for (path, body, code, message) in [
        (
            path,
            json!({"metadata": {"namespace": "b"}, "spec": spec}),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            path,
            Value::Null,
            400,
            "the object provided is unrecognized (must be of type LocalSubjectAccessReview): couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)",
        ),
        (
            SUBJECT,
            json!({"apiVersion": "v1", "kind": "Pod"}),
            400,
            "Pod in version \"v1\" cannot be handled as a SubjectAccessReview: converting (v1.Pod) to (authorization.SubjectAccessReview): unknown conversion",
        ),
        // at cluster scope a namespace is dropped
        (SUBJECT, json!({"metadata": {"namespace": "b"}, "spec": spec}), 201, ""),
    ] {
        assert_eq!(refused(&cluster, path, body).await, (code, message.to_owned()));
    }
}
