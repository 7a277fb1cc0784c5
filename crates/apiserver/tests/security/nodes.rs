//! What a kubelet may read and write: its own, and what its pods need.

use client::Client;
use http::Method;
use serde_json::{Value, json};

use crate::cluster::{Answer, Cluster, send};

async fn get(client: &Client, path: &str) -> u16 {
    send(client, Method::GET, path, Value::Null).await.0
}

fn why((_, status): &Answer) -> &str {
    status["message"].as_str().unwrap_or_default()
}

/// A cluster with nodes `n1` and `n2`, a pod on each that uses the Secret and claim of its name, and a bystander.
async fn start() -> (Cluster, Client) {
    let cluster = Cluster::start().await;
    for node in ["n1", "n2"] {
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}});
        cluster.make("/api/v1/nodes", object).await;
    }
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    cluster.post("/api/v1/namespaces/a/serviceaccounts", account).await;
    for name in ["n1", "n2", "other"] {
        for (plural, kind) in [("secrets", "Secret"), ("configmaps", "ConfigMap")] {
            let object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
            cluster.make(&format!("/api/v1/namespaces/a/{plural}"), object).await;
        }
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeName": name}});
        cluster.make("/api/v1/namespaces/a/persistentvolumeclaims", claim).await;
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"},
            "claimRef": {"namespace": "a", "name": name}}});
        cluster.make("/api/v1/persistentvolumes", volume).await;
    }
    for node in ["n1", "n2"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node}, "spec": {"nodeName": node,
            "containers": [{"name": "c", "image": "i", "envFrom": [{"secretRef": {"name": node}}]}],
            "volumes": [{"name": "c", "configMap": {"name": node}},
                {"name": "v", "persistentVolumeClaim": {"claimName": node}}]}});
        cluster.make("/api/v1/namespaces/a/pods", pod).await;
    }
    let kubelet = cluster.user("system:node:n1", &["system:nodes"]);
    (cluster, kubelet)
}

#[tokio::test]
async fn a_kubelet_reads_what_its_pods_refer_to() {
    let (cluster, kubelet) = start().await;
    for plural in ["secrets", "configmaps", "persistentvolumeclaims", "pods"] {
        assert_eq!(get(&kubelet, &format!("/api/v1/namespaces/a/{plural}/n1")).await, 200, "{plural}");
        for name in ["n2", "other"] {
            assert_eq!(
                get(&kubelet, &format!("/api/v1/namespaces/a/{plural}/{name}")).await,
                403,
                "{plural}/{name}"
            );
        }
        assert_eq!(get(&kubelet, &format!("/api/v1/namespaces/a/{plural}")).await, 403, "all {plural}");
    }
    assert_eq!(get(&kubelet, "/api/v1/persistentvolumes/n1").await, 200);
    assert_eq!(get(&kubelet, "/api/v1/persistentvolumes/n2").await, 403);
    assert_eq!(get(&kubelet, "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Dn1").await, 200);
    assert_eq!(get(&kubelet, "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Dn2").await, 403);
    assert_eq!(get(&kubelet, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await, 200);
    assert_eq!(get(&kubelet, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2").await, 403);
    assert_eq!(get(&kubelet, "/api/v1/nodes/n1").await, 200);
    assert_eq!(get(&kubelet, "/api/v1/nodes/n2").await, 403);
    assert_eq!(get(&kubelet, "/api/v1/services").await, 200);
    let refused = send(&kubelet, Method::GET, "/api/v1/namespaces/a/secrets/n2", Value::Null).await;
    assert_eq!(
        why(&refused),
        "secrets \"n2\" is forbidden: User \"system:node:n1\" cannot get resource \"secrets\" in API group \"\" in the namespace \"a\": no relationship found between node 'n1' and this object"
    );
    // with the pod goes the right
    let path = "/api/v1/namespaces/a/pods/n1?gracePeriodSeconds=0";
    assert_eq!(send(&cluster.admin, Method::DELETE, path, Value::Null).await.0, 200);
    assert_eq!(get(&kubelet, "/api/v1/namespaces/a/secrets/n1").await, 403);
    // the name alone makes no kubelet
    let claimant = cluster.user("system:node:n2", &[]);
    assert_eq!(get(&claimant, "/api/v1/namespaces/a/secrets/n2").await, 403);
}

#[tokio::test]
async fn a_kubelet_writes_its_own_objects() {
    let (cluster, kubelet) = start().await;
    let patch = |path: &'static str, body: Value| {
        let kubelet = kubelet.clone();
        async move { send(&kubelet, Method::PATCH, path, body).await }
    };
    let label = |key: &str| json!({"metadata": {"labels": {key: "x"}}});
    assert_eq!(patch("/api/v1/nodes/n1", label("kubernetes.io/os")).await.0, 200);
    let refused = patch("/api/v1/nodes/n1", label("node-restriction.kubernetes.io/team")).await;
    assert!(
        why(&refused).ends_with("is not allowed to modify labels: node-restriction.kubernetes.io/team"),
        "{refused:?}"
    );
    let taints = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    let refused = patch("/api/v1/nodes/n1", taints).await;
    assert!(why(&refused).ends_with("node \"n1\" is not allowed to modify taints"), "{refused:?}");
    let refused = patch("/api/v1/nodes/n2", label("a")).await;
    assert!(why(&refused).ends_with("node \"n1\" is not allowed to modify node \"n2\""), "{refused:?}");
    let status = || json!({"status": {"phase": "Running"}});
    assert_eq!(patch("/api/v1/namespaces/a/pods/n1/status", status()).await.0, 200);
    assert_eq!(patch("/api/v1/namespaces/a/pods/n2/status", status()).await.0, 403);
    for (pod, code) in [("n2", 403), ("n1", 200)] {
        let path = format!("/api/v1/namespaces/a/pods/{pod}?gracePeriodSeconds=0");
        assert_eq!(send(&kubelet, Method::DELETE, &path, Value::Null).await.0, code);
    }
    let lease = |name: &str| {
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
            "spec": {"holderIdentity": name}})
    };
    cluster
        .post(
            "/api/v1/namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-node-lease"}}),
        )
        .await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert_eq!(send(&kubelet, Method::POST, leases, lease("n1")).await.0, 201);
    assert_eq!(send(&kubelet, Method::POST, leases, lease("n2")).await.0, 403);
    assert_eq!(get(&kubelet, &format!("{leases}/n1")).await, 200);
    assert_eq!(get(&kubelet, &format!("{leases}/n2")).await, 403);
}

#[tokio::test]
async fn a_kubelet_makes_mirror_pods_only() {
    let (cluster, kubelet) = start().await;
    let node = cluster.get("/api/v1/nodes/n1").await.1;
    let mirror = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "static", "namespace": "a",
        "annotations": {"kubernetes.io/config.mirror": "x", "kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "h"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": node["metadata"]["uid"], "controller": true}]},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    let refusal = |change: fn(&mut Value)| {
        let (kubelet, mut pod) = (kubelet.clone(), mirror.clone());
        change(&mut pod);
        async move {
            let answer = send(&kubelet, Method::POST, "/api/v1/namespaces/a/pods", pod).await;
            why(&answer).rsplit("is forbidden: ").next().unwrap_or_default().to_owned()
        }
    };
    assert_eq!(
        refusal(|p| p["metadata"]["annotations"] = json!({})).await,
        "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"n1\" can only create mirror pods"
    );
    assert_eq!(
        refusal(|p| p["spec"]["nodeName"] = json!("n2")).await,
        "node \"n1\" can only create pods with spec.nodeName set to itself"
    );
    assert_eq!(
        refusal(|p| p["metadata"]["ownerReferences"] = json!([])).await,
        "node \"n1\" can only create pods with an owner reference set to itself"
    );
    assert!(
        refusal(|p| p["metadata"]["ownerReferences"][0]["uid"] = json!("stolen"))
            .await
            .contains("UID mismatch")
    );
    assert_eq!(
        refusal(|p| p["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "other"}}])).await,
        "node \"n1\" can not create pods that reference secrets"
    );
    assert_eq!(refusal(|_| {}).await, "");
    assert_eq!(get(&kubelet, "/api/v1/namespaces/a/pods/static").await, 200);
}

#[tokio::test]
async fn a_kubelet_asks_for_tokens_of_its_pods() {
    let (cluster, kubelet) = start().await;
    let path = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let mut codes = Vec::new();
    for name in ["n1", "n2"] {
        let pod = cluster.get(&format!("/api/v1/namespaces/a/pods/{name}")).await.1;
        let request = |audiences: Value, uid: &Value| {
            json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": audiences,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}}})
        };
        for body in [
            request(json!([]), &pod["metadata"]["uid"]),
            request(json!([]), &json!("another")),
            request(json!(["vault"]), &pod["metadata"]["uid"]),
        ] {
            codes.push(send(&kubelet, Method::POST, path, body).await.0);
        }
    }
    assert_eq!(codes, [201, 403, 403, 403, 403, 403]);
    let unbound = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    assert_eq!(send(&kubelet, Method::POST, path, unbound).await.0, 403);
}
