//! Who else decides: programs outside, and modes that are chosen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apiserver::Options;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Cluster, send, write};
use crate::outside::Outside;

const CONFIGS: &str = "/api/v1/namespaces/a/configmaps";

fn decides(asked: Arc<AtomicU64>) -> impl Fn(&str, Value) -> Value + Send + Sync + 'static {
    move |_, review| {
        asked.fetch_add(1, Ordering::SeqCst);
        let (user, what) = (&review["spec"]["user"], &review["spec"]["resourceAttributes"]);
        let status = if user == "mallory" {
            json!({"allowed": false, "denied": true, "reason": "never"})
        } else {
            json!({"allowed": user == "ann" && what["resource"] == "configmaps" && what["verb"] == "list",
                "reason": "the book says so"})
        };
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": status})
    }
}

#[tokio::test]
async fn a_program_outside_decides_and_is_remembered() {
    let (dir, asked) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(0)));
    let outside = Outside::start(decides(asked.clone())).await;
    let options = Options {
        authorization_mode: ["Webhook", "Node", "RBAC"].map(str::to_owned).into(),
        authorization_webhook_config_file: Some(outside.kubeconfig(dir.path())),
        ..Options::default()
    };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    let ann = cluster.user("ann", &[]);
    let before = asked.load(Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(send(&ann, Method::GET, CONFIGS, Value::Null).await.0, 200);
    }
    assert_eq!(asked.load(Ordering::SeqCst), before + 1);
    let (code, status) = send(&ann, Method::GET, "/api/v1/namespaces/a/secrets", Value::Null).await;
    assert_eq!(code, 403);
    assert!(status["message"].as_str().unwrap().ends_with(": the book says so"), "{status}");
    // a no is final, whatever roles say
    let mallory = cluster.user("mallory", &[]);
    assert_eq!(send(&mallory, Method::GET, "/api", Value::Null).await.0, 200, "discovery is everybody's");
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
        "user": "mallory", "resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let review = cluster.make("/apis/authorization.k8s.io/v1/subjectaccessreviews", review).await;
    assert_eq!(review["status"], json!({"allowed": false, "denied": true, "reason": "never"}));
}

#[tokio::test]
async fn a_program_that_is_not_there_denies_where_the_file_says_so() {
    for (policy, expected) in [("Deny", 403), ("NoOpinion", 200)] {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1/", "insecure-skip-tls-verify": true}}]});
        let kubeconfig = write(dir.path(), "nobody.kubeconfig", &config.to_string());
        let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": [
            {"type": "Webhook", "name": "w", "webhook": {"timeout": "1s", "subjectAccessReviewVersion": "v1",
                "matchConditionSubjectAccessReviewVersion": "v1", "failurePolicy": policy,
                "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": kubeconfig}}},
            {"type": "Node", "name": "n"}, {"type": "RBAC", "name": "r"}]});
        let file = write(dir.path(), "authorization.yaml", &config.to_string());
        let cluster =
            Cluster::in_dir(dir, Options { authorization_config: Some(file), ..Options::default() })
                .await
                .unwrap();
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "v"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "ann"}]});
        cluster.make("/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings", binding).await;
        let ann = cluster.user("ann", &[]);
        assert_eq!(send(&ann, Method::GET, CONFIGS, Value::Null).await.0, expected, "{policy}");
    }
}

#[tokio::test]
async fn a_program_is_asked_what_its_conditions_hold_for() {
    let (dir, asked) = (tempfile::tempdir().unwrap(), Arc::new(AtomicU64::new(0)));
    let seen = Arc::new(std::sync::Mutex::new(Value::Null));
    let (count, last) = (asked.clone(), seen.clone());
    let outside = Outside::start(move |_, review| {
        count.fetch_add(1, Ordering::SeqCst);
        *last.lock().unwrap() = review["spec"].clone();
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "status": {"allowed": true}})
    })
    .await;
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthorizationConfiguration", "authorizers": [
        {"type": "Webhook", "name": "w", "webhook": {"subjectAccessReviewVersion": "v1", "failurePolicy": "Deny",
            "matchConditionSubjectAccessReviewVersion": "v1",
            "connectionInfo": {"type": "KubeConfigFile", "kubeConfigFile": outside.kubeconfig(dir.path())},
            "matchConditions": [{"expression": "has(request.resourceAttributes)"},
                {"expression": "request.resourceAttributes.namespace == 'a'"},
                {"expression": "request.user != 'eve' || request.extra['nosuch'][0] == 'x'"}]}},
        {"type": "RBAC", "name": "r"}]});
    let file = write(dir.path(), "authorization.yaml", &config.to_string());
    let options = Options { authorization_config: Some(file), ..Options::default() };
    let cluster = Cluster::in_dir(dir, options).await.unwrap();
    let ann = cluster.user("ann", &[]);
    assert_eq!(send(&ann, Method::GET, "/api/v1/namespaces/b/configmaps", Value::Null).await.0, 403);
    assert_eq!(send(&ann, Method::GET, "/metrics", Value::Null).await.0, 403);
    assert_eq!(asked.load(Ordering::SeqCst), 0, "nobody has asked");
    let selecting = format!("{CONFIGS}?labelSelector=a%20in%20(y,x),!b&fieldSelector=metadata.name!=n");
    assert_eq!(send(&ann, Method::GET, &selecting, Value::Null).await.0, 200);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let attributes = seen.lock().unwrap()["resourceAttributes"].clone();
    assert_eq!(
        attributes["labelSelector"],
        json!({"requirements": [{"key": "a", "operator": "In", "values": ["x", "y"]},
            {"key": "b", "operator": "DoesNotExist"}]})
    );
    assert_eq!(
        attributes["fieldSelector"],
        json!({"requirements": [{"key": "metadata.name", "operator": "NotIn", "values": ["n"]}]})
    );
    // a condition that cannot be evaluated denies, as the policy says
    let eve = cluster.user("eve", &[]);
    let (code, status) = send(&eve, Method::GET, CONFIGS, Value::Null).await;
    assert_eq!(code, 403);
    assert!(status["message"].as_str().unwrap().contains("no such key: nosuch"), "{status}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_namespace_that_enforces_more_warns_of_its_pods() {
    let cluster = Cluster::start().await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    cluster.make("/api/v1/namespaces/a/serviceaccounts", account).await;
    let pod = |name: &str, spec: Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "image": "i"}]}});
        pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        pod
    };
    for name in ["one", "two"] {
        let spec = json!({"hostNetwork": true, "containers": [
            {"name": "c", "image": "i", "securityContext": {"privileged": true}}]});
        cluster.make("/api/v1/namespaces/a/pods", pod(name, spec)).await;
    }
    cluster.make("/api/v1/namespaces/a/pods", pod("three", json!({"hostPID": true}))).await;
    cluster.make("/api/v1/namespaces/a/pods", pod("good", json!({}))).await;
    let label = async |level: &str| {
        let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
        let (code, headers, _) =
            crate::cluster::send_with(&cluster.admin, Method::PATCH, "/api/v1/namespaces/a", &[], labels)
                .await;
        assert_eq!(code, 200);
        let warnings = headers.get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned());
        warnings.collect::<Vec<_>>().join("\n")
    };
    expect_test::expect![[r#"
        299 - "existing pods in namespace \"a\" violate the new PodSecurity enforce level \"baseline:latest\""
        299 - "one (and 1 other pod): host namespaces, privileged"
        299 - "three: host namespaces"
    "#]]
    .assert_eq(&format!("{}\n", label("baseline").await));
    assert_eq!(label("privileged").await, "");
}

#[tokio::test]
async fn who_grants_rights_must_hold_them_or_may_bind_and_escalate() {
    let cluster = Cluster::start().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = |name: &str, rules: Value| json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules});
    let bind = |name: &str, role: &str, user: &str| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}]})
    };
    let (roles, bindings) = (format!("{rbac}/clusterroles"), format!("{rbac}/clusterrolebindings"));
    let write = json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles", "clusterrolebindings"], "verbs": ["create", "update", "get"]});
    let pods = json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]);
    let secrets = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
    cluster.make(&roles, role("granter", json!([write, pods[0]]))).await;
    cluster.make(&bindings, bind("granter", "granter", "ann")).await;
    cluster.make(&roles, role("reader", secrets.clone())).await;
    let ann = cluster.user("ann", &[]);
    let post = async |path: &str, body: Value| send(&ann, Method::POST, path, body).await.0;
    assert_eq!(post(&roles, role("mine", pods.clone())).await, 201);
    assert_eq!(post(&roles, role("more", secrets.clone())).await, 403);
    assert_eq!(post(&bindings, bind("mine", "mine", "bob")).await, 201);
    assert_eq!(post(&bindings, bind("more", "reader", "ann")).await, 403);
    let lifts = json!([{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["escalate"]},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["bind"], "resourceNames": ["reader"]}]);
    cluster.make(&roles, role("lifter", lifts)).await;
    cluster.make(&bindings, bind("lifter", "lifter", "ann")).await;
    assert_eq!(post(&roles, role("more", secrets)).await, 201);
    assert_eq!(post(&bindings, bind("more", "reader", "ann")).await, 201);
    assert_eq!(post(&bindings, bind("admin", "cluster-admin", "ann")).await, 403);
}
