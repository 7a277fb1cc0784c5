//! The crash tests of signing requests, of tokens of all kinds, and of roles that are put together.
use std::time::Duration;

use client::Patch;
use jiff::SignedDuration;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRole;
use serde_json::{Value, json};

use crate::account_tokens::{bearer, secret, text, until};
use crate::certificates::{approve, csr, has, issued, request};
use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;
use crate::roles::resources;
use crate::tokens::{signed_by, token};

/// Longer than any time that passes here: nodes are not what this is about.
const AGES: Duration = Duration::from_hours(1_000_000);

/// Requests that are approved by themselves, by somebody, for nothing, or never.
pub struct Certificates;

impl Certificates {
    /// Waits until what can be decided is.
    async fn decided(cluster: &Hollow, what: &str, names: &[&str]) {
        let through = |c: &CertificateSigningRequest| issued(c).is_some() || has(c, "Failed");
        let is = |c: &CertificateSigningRequest, name: &str| c.metadata.name.as_deref() == Some(name);
        cluster
            .until::<CertificateSigningRequest>(what, |l| {
                // What went had been decided: nothing else goes before its time.
                names.iter().all(|name| l.iter().filter(|c| is(c, name)).all(|c| through(c)))
            })
            .await;
    }
}

impl Story for Certificates {
    const WRITERS: &'static [&'static str] = &["certificate-controller"];

    fn prepare(cluster: &mut Hollow) {
        cluster.config.node_monitor_grace_period = AGES;
    }

    async fn create(cluster: &Hollow) {
        let kubelet = request("system:nodes", "system:node:n1");
        for (name, signer, request) in [
            ("node", "kube-apiserver-client-kubelet", &kubelet),
            ("user", "kube-apiserver-client", &request("devs", "jane")),
            // A serving certificate needs other usages.
            ("serving", "kubelet-serving", &kubelet),
            ("forgotten", "kube-apiserver-client", &request("devs", "joe")),
        ] {
            cluster.create::<CertificateSigningRequest>("", csr(name, signer, request)).await;
        }
        for name in ["user", "serving"] {
            approve(cluster, name).await;
        }
    }

    async fn up(cluster: &Hollow) {
        cluster.until::<CertificateSigningRequest>("there", |l| l.len() == 4).await;
        Self::decided(cluster, "decided", &["node", "user", "serving"]).await;
    }

    async fn change(cluster: &Hollow) {
        let late = csr("late", "kube-apiserver-client-kubelet", &request("system:nodes", "system:node:n2"));
        cluster.create::<CertificateSigningRequest>("", late).await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        Self::decided(cluster, what, &["node", "user", "serving", "late"]).await;
        let hour = async || cluster.clock.pass(3600);
        cluster.until_in_time::<CertificateSigningRequest>(what, |l| l.is_empty(), hour).await;
    }
}

/// Tokens that hold, expire, are not used, and lose their account; a role that loses a part; a forged CA.
pub struct Tokens;

fn role(name: &str, resource: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"to": "mine"}},
        "rules": [{"apiGroups": [""], "resources": [resource], "verbs": ["get"]}]})
}

async fn roles_are(cluster: &Hollow, what: &str, want: &[&str]) {
    let is = |r: &ClusterRole| r.metadata.name.as_deref() == Some("mine") && resources(r) == want;
    cluster.until::<ClusterRole>(what, |l| l.iter().any(|r| is(r))).await;
}

/// The Secrets of service accounts in the namespace.
fn keys(l: &[std::sync::Arc<Secret>]) -> Vec<&str> {
    let ours = l.iter().filter(|s| s.metadata.namespace.as_deref() == Some("d"));
    let mut names: Vec<_> = ours.filter_map(|s| s.metadata.name.as_deref()).collect();
    names.sort_unstable();
    names
}

impl Story for Tokens {
    const WRITERS: &'static [&'static str] = &[
        "bootstrap-signer",
        "token-cleaner",
        "tokens-controller",
        "legacy-serviceaccount-token-cleaner-controller",
        "root-ca-cert-publisher",
        "clusterrole-aggregation-controller",
    ];

    fn prepare(cluster: &mut Hollow) {
        cluster.config.node_monitor_grace_period = AGES;
    }

    async fn create(cluster: &Hollow) {
        let soon = (cluster.now() + SignedDuration::from_secs(600)).to_string();
        cluster.create::<Secret>("kube-system", token("aaaaaa", None)).await;
        cluster.create::<Secret>("kube-system", token("bbbbbb", Some(soon))).await;
        let robot = json!({"metadata": {"name": "robot"}, "secrets": [{"name": "old"}]});
        cluster.create::<ServiceAccount>("d", robot).await;
        cluster.create::<ServiceAccount>("d", json!({"metadata": {"name": "fired"}})).await;
        for (name, account) in [("key", "robot"), ("lost", "robot"), ("old", "robot"), ("theirs", "fired")] {
            cluster.create::<Secret>("d", secret(name, account)).await;
        }
        for (name, resource) in [("one", "pods"), ("two", "services")] {
            cluster.create::<ClusterRole>("", role(name, resource)).await;
        }
        let whole = json!({"metadata": {"name": "mine"}, "rules": [],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "mine"}}]}});
        cluster.create::<ClusterRole>("", whole).await;
    }

    async fn up(cluster: &Hollow) {
        signed_by(cluster, &["aaaaaa", "bbbbbb"]).await;
        for name in ["key", "lost", "old", "theirs"] {
            until(cluster, "a token", name, |s| !text(s, "token").is_empty()).await;
        }
        roles_are(cluster, "both", &["pods", "services"]).await;
        let is_authority = |m: &ConfigMap| {
            m.metadata.namespace.as_deref() == Some("d")
                && m.metadata.name.as_deref() == Some("kube-root-ca.crt")
        };
        cluster.until::<ConfigMap>("the authority", |l| l.iter().any(|m| is_authority(m))).await;
    }

    async fn change(cluster: &Hollow) {
        cluster.delete::<ServiceAccount>("d", "fired", "Background").await;
        cluster.delete::<Secret>("d", "lost", "Background").await;
        cluster.delete::<ClusterRole>("", "one", "Background").await;
        // The controllers may have died before they made it.
        let forged = Patch::Merge(json!({"data": {"ca.crt": "forged"}}));
        if let Err(error) = cluster.client.patch::<ConfigMap>("d", "kube-root-ca.crt", &forged).await {
            assert!(error.is_not_found(), "{error}");
        }
    }

    async fn end(cluster: &Hollow, what: &str) {
        cluster.until::<Secret>(what, |l| keys(l).iter().all(|k| ["key", "old"].contains(k))).await;
        let key = until(cluster, what, "key", |s| !text(s, "token").is_empty()).await;
        let month = async || cluster.clock.pass(30 * 86_400);
        let left = |l: &[std::sync::Arc<Secret>]| keys(l) == ["key"];
        let all = cluster.until_in_time::<Secret>(what, left, month).await;
        assert!(all.iter().any(|s| s.metadata.uid == key.metadata.uid && s.data == key.data), "{what}");
        assert_eq!(bearer(cluster, &text(&key, "token")).await, "system:serviceaccount:d:robot", "{what}");
        // The account may name it still: that it went while nobody looked is nowhere written, and it could be one to come.
        // The other bootstrap token has expired long ago.
        cluster.clock.pass(3600);
        let expired = |s: &Secret| s.metadata.name.as_deref() == Some("bootstrap-token-bbbbbb");
        cluster.until::<Secret>(what, |l| !l.iter().any(|s| expired(s))).await;
        signed_by(cluster, &["aaaaaa"]).await;
        roles_are(cluster, what, &["services"]).await;
        let forged =
            |m: &ConfigMap| m.data.as_ref().is_some_and(|d| d.get("ca.crt").is_some_and(|c| c == "forged"));
        cluster.until::<ConfigMap>(what, |l| !l.iter().any(|m| forged(m))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_no_request_undecided_and_none_for_ever() {
    at_every_write::<Certificates>(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_the_tokens_that_hold_and_no_others() {
    at_every_write::<Tokens>(11).await;
}
