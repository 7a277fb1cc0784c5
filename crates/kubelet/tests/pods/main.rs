//! Whole pods on a kubelet, with the real API server and a runtime whose containers do what the test says.

mod credential_providers;
mod csi_driver;
mod device_plugin;
mod disks;
mod dra;
mod dra_driver;
mod fake;
mod gate;
mod life;
mod logind;
mod node;
mod node_decides;
mod persistent;
mod processors;
mod resize;
mod restart_all;
mod restarts;
mod selinux;
mod shutdown;
mod volumes;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use client::{Client, DeleteOptions, Kind, Patch};
use fake::Fake;
use gate::{Closed, Gate};
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::{
    ContainerStatus, Event, Namespace, PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount,
};
use kubelet::server::ServingCertificate;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use testserver::{TestServer, object};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A cluster of one node, `n1`; its pods live in namespace `d`.
struct Cluster {
    client: Client,
    api: TestServer,
    fake: Fake,
    kubelet: Option<(CancellationToken, tokio::task::JoinHandle<Result<(), kubelet::Error>>)>,
    settings: kubelet::configuration::KubeletConfiguration,
    /// Where the kernel shows the machine, or a test another one.
    system: std::path::PathBuf,
    /// What volumes need of it.
    host: kubelet::storage::host::Host,
    /// Who says that the machine goes down.
    logind: kubelet::shutdown::logind::Place,
    /// Labels that its Node is made with.
    labels: BTreeMap<String, String>,
    /// Programs that give credentials for images.
    credential_providers: Option<kubelet::credential_providers::Place>,
    /// Where the kubelet's server listens.
    address: SocketAddr,
    /// What of its requests to the API does not get through.
    gate: watch::Sender<Closed>,
}

/// A pod called `p` on the node, without a token.
fn pod(spec: Value) -> Value {
    let mut spec = spec;
    spec["nodeName"] = json!("n1");
    spec["automountServiceAccountToken"] = json!(false);
    json!({"metadata": {"name": "p", "labels": {"app": "p"}}, "spec": spec})
}

/// A container `web` with a volume at `/v`.
fn with_volume(volume: Value) -> Value {
    let mut volume = volume;
    volume["name"] = json!("v");
    json!({"containers": [{"name": "web", "image": "web:1", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [volume]})
}

/// What the machine may take for anything that a test waits for; more is a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where a kubelet listens that may start anew. A free port of 127.0.0.1 would be taken meanwhile by some connection of another test.
fn own_address() -> SocketAddr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let cluster = COUNT.fetch_add(1, Ordering::Relaxed);
    assert_ne!(cluster, u8::MAX, "more clusters than addresses");
    SocketAddr::from(([127, cluster, high, low], 10250))
}

fn web() -> Value {
    json!({"name": "web", "image": "web:1"})
}

impl Cluster {
    async fn start() -> Self {
        Self::with(kubelet::configuration::KubeletConfiguration::without_file()).await
    }

    /// The same with these settings of the kubelet.
    async fn with(settings: kubelet::configuration::KubeletConfiguration) -> Self {
        let api = TestServer::start(Default::default()).await;
        let client = api.client.clone();
        let system = kubelet::managers::machine::SYSTEM.into();
        let fake = Fake::new();
        let (host, logind) = Default::default();
        let (kubelet, credential_providers, labels) = Default::default();
        let mut cluster = Self {
            client,
            api,
            fake,
            kubelet,
            settings,
            system,
            host,
            logind,
            labels,
            credential_providers,
            address: own_address(),
            gate: watch::Sender::new(Closed::Nothing),
        };
        cluster.create::<Namespace>("", json!({"metadata": {"name": "d"}})).await;
        cluster.create::<ServiceAccount>("d", json!({"metadata": {"name": "default"}})).await;
        cluster.start_kubelet().await;
        cluster
    }

    async fn start_kubelet(&mut self) {
        let local = "127.0.0.1".parse().expect("address");
        let names =
            self.api.server.pki().server("system:node:n1", &[], &["n1"], &[local]).expect("certificate");
        let config = kubelet::Config {
            node_name: "n1".into(),
            cri: cri::clients(cri::observed(cri::to_process(self.fake.clone()), kubelet::metrics::called)),
            root: self.api.folder.path().join("kubelet"),
            logs: self.api.folder.path().join("logs"),
            node_ips: vec![local],
            listen: self.address,
            certificate: ServingCertificate::new(&names.cert_pem, &names.key_pem)
                .expect("certificate")
                .into(),
            client_ca_pem: self.api.server.pki().ca_pem().to_owned(),
            cluster_dns: vec!["10.96.0.10".into()],
            cluster_domain: "cluster.local".into(),
            pod_cidr: None,
            cgroup_parent: "/test".into(),
            labels: self.labels.clone(),
            version: "v1.36.0".into(),
            settings: self.settings.clone(),
            flags: BTreeMap::new(),
            system: self.system.clone(),
            host: self.host.clone(),
            logind: self.logind.clone(),
            credential_providers: self.credential_providers.clone(),
        };
        let stop = CancellationToken::new();
        let client = self.api.server.client("system:node:n1", &["system:nodes"]);
        let client = Gate::client(&client, self.gate.subscribe());
        let run = tokio::spawn(kubelet::run(client, config, stop.clone()));
        self.kubelet = Some((stop, run));
    }

    async fn stop_kubelet(&mut self) {
        if let Some((stop, run)) = self.kubelet.take() {
            stop.cancel();
            let ended = tokio::time::timeout(PATIENCE, run).await;
            ended.expect("it ends").expect("no panic").expect("no error");
        }
    }

    /// What the kubelet's server answers an administrator.
    async fn ask(&self, path: &str) -> String {
        let pki = self.api.server.pki();
        let identity = pki.client("admin", &["system:masters"]).expect("certificate");
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(pki.ca_pem().as_bytes()) {
            roots.add(cert.expect("certificate")).expect("authority");
        }
        let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes());
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificate");
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).expect("key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("identity");
        let tcp = tokio::net::TcpStream::connect(self.address).await.expect("the kubelet listens");
        let name = ServerName::try_from("127.0.0.1").expect("name");
        let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.expect("TLS");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(tls)).await.expect("HTTP");
        tokio::spawn(connection);
        let request = http::Request::get(path).header("host", "n1").body(String::new()).expect("request");
        let answer = sender.send_request(request).await.expect("answer");
        let body = answer.into_body().collect().await.expect("body").to_bytes();
        String::from_utf8_lossy(&body).into_owned()
    }

    async fn create<K: Kind>(&self, ns: &str, value: Value) -> K {
        self.client.create(ns, &object::<K>(value)).await.expect("create")
    }

    /// A claim `name` bound to a volume `pv-NAME`, as a controller leaves them.
    async fn claim(&self, name: &str, volume: Value, status: Value) {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "volumeName": format!("pv-{name}"),
            "storageClassName": "", "volumeMode": volume["volumeMode"], "resources": {"requests": {"storage": "1Gi"}}});
        let claim: PersistentVolumeClaim =
            self.create("d", json!({"metadata": {"name": name}, "spec": spec})).await;
        let mut spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"},
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": "d", "name": name, "uid": claim.metadata.uid}});
        let more = volume.as_object().cloned().unwrap_or_default();
        spec.as_object_mut().expect("object").extend(more);
        self.create::<PersistentVolume>(
            "",
            json!({"metadata": {"name": format!("pv-{name}")}, "spec": spec}),
        )
        .await;
        let mut whole =
            json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "2Gi"}});
        whole.as_object_mut().expect("object").extend(status.as_object().cloned().unwrap_or_default());
        let patch = Patch::Merge(json!({"status": whole}));
        self.client.patch_status::<PersistentVolumeClaim>("d", name, &patch).await.expect("bound");
    }

    async fn delete(&self, grace: Option<i64>) {
        let options = DeleteOptions { grace_period_seconds: grace, ..DeleteOptions::default() };
        self.client.delete::<Pod>("d", "p", &options).await.expect("delete");
    }

    /// Waits for a state of the API's objects.
    async fn until<K: Kind, T>(&self, what: &str, done: impl Fn(&[Arc<K>]) -> Option<T>) -> T {
        testserver::until(&self.client, what, done).await
    }

    /// Waits for a state of the pod `p`.
    async fn until_pod(&self, what: &str, done: impl Fn(&Pod) -> bool) -> Arc<Pod> {
        let named = |p: &&Arc<Pod>| p.metadata.name.as_deref() == Some("p") && done(p);
        self.until::<Pod, _>(what, |list| list.iter().find(named).cloned()).await
    }

    async fn until_gone(&self) {
        self.until::<Pod, _>("the pod is gone", |list| list.is_empty().then_some(())).await;
    }

    async fn until_event(&self, reason: &str, message: &str) {
        let is = |e: &Arc<Event>| {
            e.reason.as_deref() == Some(reason) && e.message.as_deref().is_some_and(|m| m.contains(message))
        };
        self.until::<Event, _>(&format!("{reason}: {message}"), |list| list.iter().any(is).then_some(()))
            .await;
    }

    /// Waits for a state of the runtime's books.
    async fn until_books(&self, what: &str, done: impl Fn(&fake::Books) -> bool) {
        let seen = async {
            while !done(&self.fake.books.lock()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, seen).await.expect(what);
    }

    async fn stop(mut self) {
        self.stop_kubelet().await;
        self.api.server.shutdown().await;
        // volumes of secrets are filesystems in memory
        kubelet::volumes::unmount_all(&self.api.folder.path().join("kubelet")).expect("unmounted");
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

/// `True`, `False` or nothing.
fn condition<'a>(pod: &'a Pod, kind: &str) -> &'a str {
    let list = pod.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    list.iter().find(|c| c.type_ == kind).map_or("", |c| c.status.as_str())
}

fn status_of(pod: &Pod, name: &str) -> ContainerStatus {
    let status = pod.status.clone().unwrap_or_default();
    let lists =
        [status.container_statuses, status.init_container_statuses, status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|c| c.name == name).unwrap_or_default()
}

fn waiting(pod: &Pod, name: &str) -> String {
    status_of(pod, name).state.and_then(|s| s.waiting).and_then(|w| w.reason).unwrap_or_default()
}

fn running(pod: &Pod, name: &str) -> bool {
    status_of(pod, name).state.is_some_and(|s| s.running.is_some())
}
