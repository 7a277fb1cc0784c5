//! Images whose credentials a program gives.

use std::path::Path;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kubelet::credential_providers::Place;

use super::*;

const AUDIENCE: &str = "registry.example";

/// A program whose answers hold for an hour, for `scope`; each time it is asked is a line of `asked`.
fn program(folder: &Path, attributes: &str, scope: &str) -> Place {
    let (configuration, programs) = (folder.join("providers.yaml"), folder.to_owned());
    let text = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: giver\n  \
         apiVersion: credentialprovider.kubelet.k8s.io/v1\n  matchImages: ['*.io/team']\n  \
         defaultCacheDuration: 1h\n{attributes}"
    );
    std::fs::write(&configuration, text).expect("configuration");
    let answer = format!(
        r#"{{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
        "cacheKeyType": "{scope}", "auth": {{"q.io": {{"username": "me", "password": "pw"}}}}}}"#
    );
    let script =
        format!("#!/bin/sh\ncat >> {0}/asked\necho >> {0}/asked\necho '{answer}'\n", folder.display());
    testkit::executable(&folder.join("giver"), script.as_bytes()).expect("program");
    Place { configuration, programs }
}

/// What it was asked so far.
fn asked(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("asked")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a request")).collect()
}

impl Cluster {
    /// Starts the kubelet anew with that program, and a registry that knows one user.
    async fn ask_program(&mut self, place: Place) {
        let registry = ["q.io/team/app:1", "q.io/team/other:1", "q.io/mine:1"];
        self.fake.books.lock().registry.extend(registry.map(|image| (image.to_owned(), "me".to_owned())));
        self.stop_kubelet().await;
        self.credential_providers = Some(place);
        self.start_kubelet().await;
    }

    /// Whether a pod with that image runs, or why it waits.
    async fn outcome(&self, image: &str, account: &str) -> String {
        let container = json!({"name": "web", "image": image, "imagePullPolicy": "IfNotPresent"});
        self.create::<Pod>("d", pod(json!({"containers": [container], "serviceAccountName": account}))).await;
        let known = |p: &Pod| running(p, "web") || waiting(p, "web").starts_with("Err");
        let outcome = waiting(&*self.until_pod("runs or not", known).await, "web");
        self.delete(Some(0)).await;
        self.until_gone().await;
        outcome
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_gives_credentials_for_images_that_fit_and_is_not_asked_twice() {
    let folder = tempfile::tempdir().expect("folder");
    let mut cluster = Cluster::start().await;
    cluster.ask_program(program(folder.path(), "", "Registry")).await;
    assert_eq!(cluster.outcome("q.io/team/app:1", "default").await, "");
    assert_eq!(cluster.outcome("q.io/team/other:1", "default").await, "");
    assert_eq!(cluster.outcome("q.io/mine:1", "default").await, "ErrImagePull");
    let expected = json!({"apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderRequest", "image": "q.io/team/app"});
    assert_eq!(asked(folder.path()), [expected]);
    // the node's own credentials are no pod's secret
    cluster.stop_kubelet().await;
    cluster.credential_providers = None;
    cluster.start_kubelet().await;
    assert_eq!(cluster.outcome("q.io/team/app:1", "default").await, "");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_is_given_the_token_of_the_pods_account_and_its_image_is_for_that_account() {
    let folder = tempfile::tempdir().expect("folder");
    let mut cluster = Cluster::start().await;
    for (name, annotations) in
        [("a", json!({"role": "reader"})), ("b", json!({"role": "reader"})), ("none", json!({}))]
    {
        let meta = json!({"name": name, "annotations": annotations});
        cluster.create::<ServiceAccount>("d", json!({ "metadata": meta })).await;
    }
    let attributes = format!(
        "  tokenAttributes: {{serviceAccountTokenAudience: {AUDIENCE}, cacheType: ServiceAccount, \
         requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [role]}}\n"
    );
    cluster.ask_program(program(folder.path(), &attributes, "Image")).await;
    // a kubelet may not have tokens for anybody
    assert_eq!(cluster.outcome("q.io/team/app:1", "a").await, "ErrImagePull");
    assert_eq!(asked(folder.path()).len(), 0);
    let rule = json!({"verbs": ["request-serviceaccounts-token-audience"], "apiGroups": [""], "resources": [AUDIENCE]});
    cluster.create::<ClusterRole>("", json!({"metadata": {"name": "asks"}, "rules": [rule]})).await;
    let api = "rbac.authorization.k8s.io";
    let binding = json!({"metadata": {"name": "asks"},
        "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": "asks"},
        "subjects": [{"apiGroup": api, "kind": "Group", "name": "system:nodes"}]});
    cluster.create::<ClusterRoleBinding>("", binding).await;
    assert_eq!(cluster.outcome("q.io/team/app:1", "a").await, "");
    assert_eq!(cluster.outcome("q.io/team/app:1", "none").await, "ErrImagePull", "no annotation");
    let requests = asked(folder.path());
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0]["serviceAccountAnnotations"], json!({"role": "reader"}));
    assert_eq!(requests[0]["serviceAccountToken"].as_str().map(|token| token.split('.').count()), Some(3));
    // the account has proved enough, another one asks for itself
    cluster.fake.books.lock().registry.clear();
    assert_eq!(cluster.outcome("q.io/team/app:1", "a").await, "");
    assert_eq!(cluster.outcome("q.io/team/app:1", "b").await, "ErrImagePull");
    assert_eq!(asked(folder.path()).len(), 2);
    cluster.stop().await;
}
