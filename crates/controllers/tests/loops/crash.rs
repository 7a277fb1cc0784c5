//! The controllers die at one of their writes after the other, before it or right after it took effect. Started again, they
//! reach the same end: no extra pod, no lost revision, nothing left behind.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, ListWatch, Selection, Transport, TransportError};
use http::{Method, Request, Response};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::Mutex;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::hollow::{Hollow, Writers};
use crate::workloads::{complete, deployment};
use crate::{
    crash_batch, crash_claims, crash_credentials, crash_ends, crash_migrations, crash_nodes, crash_scaling,
    crash_services, crash_sets, crash_volumes, crash_world,
};

/// Lets so many writes of all controllers through; the next one is cut off, and with it the process.
struct Cut {
    inner: Arc<dyn Transport>,
    left: AtomicI64,
    takes_effect: bool,
    dead: CancellationToken,
    /// How many writes of each controller took effect, or are under way: one's effect is seen before its answer has come.
    writes: Mutex<BTreeMap<String, usize>>,
}

/// A controller's way to the API server.
struct Writer {
    name: String,
    cut: Arc<Cut>,
}

#[async_trait]
impl Transport for Writer {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, TransportError> {
        let cut = &self.cut;
        // Events are no part of the end state.
        if request.method() == Method::GET || request.uri().path().contains("/events") {
            return cut.inner.send(request).await;
        }
        let is_question = request.uri().path().ends_with("accessreviews");
        let left = cut.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            *cut.writes.lock().entry(self.name.clone()).or_default() += 1;
            let answer = cut.inner.send(request).await;
            if is_question || !answer.as_ref().is_ok_and(|a| a.status().is_success()) {
                *cut.writes.lock().entry(self.name.clone()).or_default() -= 1;
            }
            return answer;
        }
        if left == 0 && cut.takes_effect {
            let _ = cut.inner.send(request).await;
        }
        cut.dead.cancel();
        std::future::pending().await
    }

    async fn list_watch(&self, selection: &Selection) -> Option<Result<ListWatch, client::Error>> {
        self.cut.inner.list_watch(selection).await
    }
}

/// What happens in a run, and how it must end.
pub trait Story {
    /// The controllers without whose writes it does not end.
    const WRITERS: &'static [&'static str];
    /// The API server's options.
    fn options() -> apiserver::Options {
        apiserver::Options::default()
    }
    /// How the controllers reach the API server.
    fn transport(inner: Arc<dyn Transport>) -> Arc<dyn Transport> {
        inner
    }
    /// What the controllers are told, and who else lives in the cluster.
    fn prepare(_: &mut Hollow) {}
    /// The first objects.
    async fn create(cluster: &Hollow);
    /// Waits until they stand.
    async fn up(cluster: &Hollow);
    /// What is asked for then, wherever the controllers are by now.
    async fn change(cluster: &Hollow);
    /// Waits for the end state, and checks what must hold in it.
    async fn end(cluster: &Hollow, what: &str);
}

/// Whose writes took effect; `None`: the controllers died.
async fn run<S: Story>(writes: i64, takes_effect: bool) -> Option<BTreeSet<String>> {
    let mut cluster = Hollow::start_on_server(S::options()).await;
    cluster.stop_controllers().await;
    S::prepare(&mut cluster);
    let dead = CancellationToken::new();
    let way = S::transport(cluster.client.transport().clone());
    let cut = Arc::new(Cut {
        inner: way.clone(),
        left: AtomicI64::new(writes),
        takes_effect,
        dead: dead.clone(),
        writes: Mutex::default(),
    });
    let shared = cut.clone();
    let writers: Writers = Arc::new(move |name| {
        Client::new(Arc::new(Writer { name: name.to_owned(), cut: shared.clone() }) as Arc<dyn Transport>)
    });
    cluster.start_controllers_as(Some(writers));
    S::create(&cluster).await;
    tokio::select! {
        () = S::up(&cluster) => {}
        () = dead.cancelled() => {}
    }
    S::change(&cluster).await;
    let what = format!("cut at write {writes}, takes effect: {takes_effect}");
    let died = tokio::select! {
        () = S::end(&cluster, &what) => dead.is_cancelled(),
        () = dead.cancelled() => true,
    };
    // Also where it did not die: a write after the end, such as a repeated status, could still meet the cut and would never
    // return.
    cluster.kill_controllers().await;
    if died {
        let writer = Client::new(way);
        cluster.restart_controllers_as(Arc::new(move |_| writer.clone()));
        S::end(&cluster, &what).await;
    }
    cluster.stop().await;
    let wrote =
        cut.writes.lock().iter().filter(|(_, count)| **count > 0).map(|(name, _)| name.clone()).collect();
    (!died).then_some(wrote)
}

/// Cuts a story at its writes: by default at every `step`th, with `EVERY_WRITE=1` (`make test-crash`) at all.
pub async fn at_every_write<S: Story>(step: i64) {
    let step = if std::env::var_os("EVERY_WRITE").is_some() { 1 } else { step };
    for (takes_effect, first) in [(false, 0), (true, step / 2)] {
        let mut writes = first;
        // The number of writes varies a little with timing; the loop ends at the first run that was not cut.
        let wrote = loop {
            match run::<S>(writes, takes_effect).await {
                Some(wrote) => break wrote,
                None => writes += step,
            }
            assert!(writes < 500, "endless writes");
        };
        for writer in S::WRITERS {
            assert!(wrote.contains(*writer), "{writer} wrote nothing; those who did: {wrote:?}");
        }
    }
}

/// Who writes in which story.
const STORIES: [&[&str]; 14] = [
    Deployments::WRITERS,
    crash_batch::Batch::WRITERS,
    crash_claims::Claims::WRITERS,
    crash_credentials::Certificates::WRITERS,
    crash_credentials::Tokens::WRITERS,
    crash_ends::Ends::WRITERS,
    crash_migrations::Migrations::WRITERS,
    crash_nodes::Nodes::WRITERS,
    crash_scaling::Scaling::WRITERS,
    crash_services::Services::WRITERS,
    crash_sets::Sets::WRITERS,
    crash_volumes::Volumes::WRITERS,
    crash_world::World::WRITERS,
    // Writes nothing but events.
    &["expand-controller"],
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_controller_writes_in_a_story() {
    let mut cluster = Hollow::start().await;
    cluster.stop_controllers().await;
    cluster.config.load_balancer_pool = Some("192.0.2.0/31".into());
    cluster.config.pod_groups = true;
    cluster.config.storage_migrations = true;
    let (started, way) = (Arc::new(Mutex::new(BTreeSet::new())), cluster.client.clone());
    let seen = started.clone();
    cluster.start_controllers_as(Some(Arc::new(move |name| {
        seen.lock().insert(name.to_owned());
        way.clone()
    })));
    cluster.stop_controllers().await;
    let told: BTreeSet<String> = STORIES.iter().flat_map(|s| s.iter().map(|&name| name.to_owned())).collect();
    assert_eq!(*started.lock(), told, "the controllers, and those of the stories");
    cluster.stop().await;
}

/// A deployment that is rolled over, and one that is deleted.
struct Deployments;

impl Story for Deployments {
    const WRITERS: &'static [&'static str] = &[
        "deployment-controller",
        "replicaset-controller",
        "endpointslice-controller",
        "generic-garbage-collector",
    ];

    async fn create(cluster: &Hollow) {
        let service = json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
        cluster.create::<Service>("d", service).await;
        cluster.create::<Deployment>("d", deployment("web", 3)).await;
        cluster.create::<Deployment>("d", deployment("gone", 1)).await;
    }

    async fn up(cluster: &Hollow) {
        cluster.until::<Pod>("first pods", |l| l.len() == 4).await;
    }

    async fn change(cluster: &Hollow) {
        let image = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i:2"}]}}}});
        cluster.merge::<Deployment>("d", "web", image).await;
        cluster.delete::<Deployment>("d", "gone", "Foreground").await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        cluster.until::<Deployment>(what, |l| l.len() == 1 && l.iter().all(|d| complete(d, 3))).await;
        let image = |p: &Pod| p.spec.as_ref().and_then(|s| s.containers[0].image.clone());
        cluster
            .until::<Pod>(what, |l| l.len() == 3 && l.iter().all(|p| image(p).as_deref() == Some("i:2")))
            .await;
        // Of the first template there may be a set or none, when the process died before it was made.
        let sets = cluster.until::<ReplicaSet>(what, |l| l.len() <= 2).await;
        let sizes: i32 = sets.iter().map(|s| s.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)).sum();
        assert_eq!(sizes, 3, "{what}");
        let mut revisions: Vec<_> = sets
            .iter()
            .map(|s| {
                s.metadata.annotations.as_ref().expect("annotations")["deployment.kubernetes.io/revision"]
                    .clone()
            })
            .collect();
        revisions.sort();
        assert_eq!(revisions, (1..=sets.len()).map(|n| n.to_string()).collect::<Vec<_>>(), "{what}");
        cluster
            .until::<EndpointSlice>(what, |l| {
                let web: Vec<_> =
                    l.iter()
                        .filter(|s| {
                            s.metadata.labels.as_ref().is_some_and(|l| {
                                l.get("kubernetes.io/service-name").is_some_and(|n| n == "web")
                            })
                        })
                        .collect();
                web.len() == 1 && web[0].endpoints.as_ref().map_or(0, Vec::len) == 3
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_changes_nothing_in_the_end() {
    at_every_write::<Deployments>(17).await;
}
