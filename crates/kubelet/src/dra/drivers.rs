//! The DRA drivers of this node: the sockets that registered, which of them are there, and what becomes of a driver's
//! ResourceSlices when none of them is.
//!
//! A driver may have several sockets at a time, while it is updated: the newest that is there is called.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use client::queue::Backoff;
use client::{Client, DeleteOptions, encode, path_of};
use k8s_openapi::Resource as _;
use k8s_openapi::api::resource::v1::ResourceSlice;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::health::Health;
use super::messages::{
    Claim, NodePrepareResourcesRequest, NodePrepareResourcesResponse, NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse, NodeWatchResourcesRequest, NodeWatchResourcesResponse,
};
use crate::csi::messages::PluginInfo;
use crate::grpc::{self, Plugin};
use crate::metrics;

/// Longest wait for a driver's answer.
const ANSWER: Duration = Duration::from_secs(45);
/// A driver that went away may come back within this before its ResourceSlices are removed.
const GRACE: Duration = Duration::from_secs(30);
/// Slices that could not be removed are tried again after this, doubling.
const WIPE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// The same for a driver's socket that takes no connection.
const CONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The same for hearing how devices are.
const LISTEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Stands for all drivers in [`State::gone`]; none can be called so.
const ALL: &str = "";

/// A version of the API that drivers have, the newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
    V1,
    V1Beta1,
}

impl Service {
    /// The newest that both sides have; `offered` by the driver.
    fn choose(offered: &[String]) -> Result<Self, String> {
        if offered.is_empty() {
            return Err("empty list of supported gRPC services (aka supported versions)".to_owned());
        }
        let known = [("v1.DRAPlugin", Self::V1), ("v1beta1.DRAPlugin", Self::V1Beta1)];
        let found = known.iter().find(|(name, _)| offered.iter().any(|offer| offer == name));
        found.map(|(_, service)| *service).ok_or_else(|| {
            let quoted = |names: Vec<&str>| {
                let all: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
                format!("[{}]", all.join(" "))
            };
            format!(
                "none of services supported by the plugin ({}) are supported by the kubelet ({})",
                quoted(offered.iter().map(String::as_str).collect()),
                quoted(known.iter().map(|(name, _)| *name).collect())
            )
        })
    }
}

/// A socket of a driver.
struct Instance {
    session: u64,
    /// At which it registered.
    socket: PathBuf,
    /// At which it is called.
    endpoint: PathBuf,
    connected: bool,
    driver: Driver,
}

#[derive(Default)]
struct State {
    /// By name; the newest socket of each is the last.
    drivers: BTreeMap<String, Vec<Instance>>,
    sessions: u64,
    /// Drivers that are not there, and when their slices are removed.
    gone: BTreeMap<String, Instant>,
}

impl State {
    /// A driver that is not there has some time to come back.
    fn settle(&mut self, name: &str) {
        let there = self.drivers.get(name).is_some_and(|all| all.iter().any(|one| one.connected));
        if there {
            self.gone.remove(name);
        } else {
            self.gone.entry(name.to_owned()).or_insert_with(|| Instant::now() + GRACE);
        }
    }
}

/// The drivers of this node.
pub struct Drivers {
    client: Client,
    node: String,
    state: Mutex<State>,
    health: Mutex<Health>,
    present: watch::Sender<u64>,
    reported: watch::Sender<u64>,
}

/// A registered driver.
#[derive(Clone)]
pub(super) struct Driver {
    name: String,
    service: Service,
    plugin: Plugin,
}

impl Driver {
    /// Makes claims ready for use on this node.
    pub(super) async fn prepare(&self, claims: Vec<Claim>) -> Result<NodePrepareResourcesResponse, Status> {
        let method = match self.service {
            Service::V1 => "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodePrepareResources",
            Service::V1Beta1 => "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodePrepareResources",
        };
        self.call(method, NodePrepareResourcesRequest { claims }).await
    }

    /// Undoes that.
    pub(super) async fn unprepare(
        &self,
        claims: Vec<Claim>,
    ) -> Result<NodeUnprepareResourcesResponse, Status> {
        let method = match self.service {
            Service::V1 => "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin/NodeUnprepareResources",
            Service::V1Beta1 => "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin/NodeUnprepareResources",
        };
        self.call(method, NodeUnprepareResourcesRequest { claims }).await
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let begin = Instant::now();
        let answer = self.plugin.call_within(method, request, ANSWER).await;
        let code = answer.as_ref().err().map_or(Code::Ok, Status::code);
        metrics::DRA_CALLS.time(&[&self.name, &grpc::name_of(code), method], begin.elapsed());
        answer
    }
}

impl Drivers {
    /// None yet; of the node of that name.
    pub fn new(client: Client, node: String) -> Arc<Self> {
        let (present, reported) = (watch::Sender::new(0), watch::Sender::new(0));
        Arc::new(Self { client, node, state: Mutex::default(), health: Mutex::default(), present, reported })
    }

    /// Changes whenever a driver comes or goes.
    pub fn present(&self) -> watch::Receiver<u64> {
        self.present.subscribe()
    }

    /// Changes whenever devices are better or worse.
    pub fn reported(&self) -> watch::Receiver<u64> {
        self.reported.subscribe()
    }

    /// How a device is.
    pub(super) fn health(&self, driver: &str, pool: &str, device: &str) -> (&'static str, Option<String>) {
        self.health.lock().of(driver, pool, device)
    }

    /// The driver of that name.
    pub(super) fn get(&self, name: &str) -> Result<Driver, String> {
        if name.is_empty() {
            return Err("DRA driver name is empty".to_owned());
        }
        let state = self.state.lock();
        let all = state.drivers.get(name).map(Vec::as_slice).unwrap_or_default();
        let newest = all.iter().rev().find(|one| one.connected).or(all.last());
        newest.map(|one| one.driver.clone()).ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Takes in the driver that registered at `socket` and is called at `endpoint`.
    pub(crate) fn join(
        self: &Arc<Self>,
        socket: &Path,
        endpoint: &Path,
        info: &PluginInfo,
    ) -> Result<Joined, String> {
        let name = &info.name;
        let service = Service::choose(&info.supported_versions).map_err(|why| {
            let at = endpoint.display();
            format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {at}: {why}")
        })?;
        let plugin = Plugin::at(endpoint)?;
        let session = {
            let mut state = self.state.lock();
            let all = state.drivers.get(name).map(Vec::as_slice).unwrap_or_default();
            if all.iter().any(|one| one.endpoint == endpoint && one.socket != socket) {
                let at = endpoint.display();
                return Err(format!("endpoint {at} already registered for DRA driver plugin {name}"));
            }
            state.sessions += 1;
            let session = state.sessions;
            let all = state.drivers.entry(name.clone()).or_default();
            // a socket that was made anew
            all.retain(|one| one.socket != socket);
            all.push(Instance {
                session,
                socket: socket.to_owned(),
                endpoint: endpoint.to_owned(),
                // it has just answered at its other socket
                connected: true,
                driver: Driver { name: name.clone(), service, plugin: plugin.clone() },
            });
            state.settle(name);
            session
        };
        self.tell();
        Ok(Joined {
            drivers: self.clone(),
            name: name.clone(),
            session,
            plugin,
            endpoint: endpoint.to_owned(),
        })
    }

    fn tell(&self) {
        self.present.send_modify(|count| *count += 1);
    }

    fn connected(&self, name: &str, session: u64, connected: bool) {
        let changed = {
            let mut state = self.state.lock();
            let mut all = state.drivers.get_mut(name).into_iter().flatten();
            let one = all.find(|one| one.session == session);
            let changed =
                one.is_some_and(|one| std::mem::replace(&mut one.connected, connected) != connected);
            state.settle(name);
            changed
        };
        if changed {
            self.tell();
        }
    }

    fn leave(&self, name: &str, session: u64) {
        {
            let mut state = self.state.lock();
            let Some(all) = state.drivers.get_mut(name) else { return };
            all.retain(|one| one.session != session);
            if all.is_empty() {
                state.drivers.remove(name);
            }
            state.settle(name);
        }
        self.tell();
    }

    /// Before drivers register, none is there: what earlier ones offered on this node is taken back.
    pub async fn begin(&self) {
        if let Err(error) = self.wipe(ALL).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "old ResourceSlices are not removed yet"
            );
            self.state.lock().gone.insert(ALL.to_owned(), Instant::now() + WIPE.0);
        }
    }

    /// Removes the slices of drivers that do not come back, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut present = self.present.subscribe();
        let mut backoffs: BTreeMap<String, Backoff> = BTreeMap::new();
        loop {
            let next = {
                let state = self.state.lock();
                backoffs.retain(|name, _| state.gone.contains_key(name));
                state.gone.iter().min_by_key(|(_, at)| **at).map(|(name, at)| (name.clone(), *at))
            };
            let due = async {
                match next {
                    Some((name, at)) => {
                        tokio::time::sleep_until(at).await;
                        name
                    }
                    None => std::future::pending().await,
                }
            };
            let name = tokio::select! {
                () = stop.cancelled() => return,
                Ok(()) = present.changed() => continue,
                name = due => name,
            };
            let wiped = self.wipe(&name).await;
            let mut state = self.state.lock();
            // it may be back by now
            let Some(at) = state.gone.get_mut(&name) else { continue };
            match wiped {
                Ok(()) => drop(state.gone.remove(&name)),
                Err(error) => {
                    let fresh = || Backoff::new(WIPE.0, WIPE.1);
                    *at = Instant::now() + backoffs.entry(name.clone()).or_insert_with(fresh).next();
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(driver = name, error, "ResourceSlices are not removed yet");
                }
            }
        }
    }

    /// Removes the node's slices of a driver.
    async fn wipe(&self, name: &str) -> Result<(), client::Error> {
        let mut selector = format!("spec.nodeName={}", self.node);
        if name != ALL {
            selector = format!("spec.driver={name},{selector}");
        }
        let (group, version) = (ResourceSlice::GROUP, ResourceSlice::VERSION);
        let path = path_of(group, version, "resourceslices", "", "", "");
        let path = format!("{path}?fieldSelector={}", encode(&selector));
        match self.client.delete_path(&path, &DeleteOptions::default()).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

/// A socket that was taken in; with this it is forgotten.
pub(crate) struct Joined {
    drivers: Arc<Drivers>,
    name: String,
    session: u64,
    plugin: Plugin,
    endpoint: PathBuf,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.drivers.leave(&self.name, self.session);
        tracing::info!(driver = self.name, endpoint = %self.endpoint.display(), "DRA driver deregistered");
    }
}

impl Joined {
    /// Follows whether the driver is there and how its devices are, until its socket is `gone`.
    pub(crate) async fn follow(self, gone: &CancellationToken) {
        tokio::select! {
            () = gone.cancelled() => {}
            () = self.watch() => {}
            () = self.listen() => {}
        }
        if self.drivers.health.lock().forget(&self.name, self.session) {
            self.drivers.reported.send_modify(|count| *count += 1);
        }
    }

    /// A connection that asks nothing shows whether the driver is there.
    async fn watch(&self) {
        let mut backoff = Backoff::new(CONNECT.0, CONNECT.1);
        loop {
            match grpc::connect(&self.endpoint).await {
                Ok(connection) => {
                    backoff.reset();
                    self.drivers.connected(&self.name, self.session, true);
                    connection.await;
                    self.drivers.connected(&self.name, self.session, false);
                    tracing::info!(driver = self.name, "the connection to a DRA driver broke");
                }
                Err(error) => {
                    self.drivers.connected(&self.name, self.session, false);
                    tracing::debug!(driver = self.name, %error, "no connection to a DRA driver");
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    async fn listen(&self) {
        let mut backoff = Backoff::new(LISTEN.0, LISTEN.1);
        loop {
            let method = "/v1alpha1.DRAResourceHealth/NodeWatchResources";
            match self.plugin.stream(method, NodeWatchResourcesRequest {}).await {
                Ok(reports) => {
                    if self.hear(reports).await {
                        backoff.reset();
                    }
                }
                // a driver that does not watch its devices will not begin to
                Err(status) if status.code() == Code::Unimplemented => std::future::pending().await,
                Err(status) => {
                    tracing::debug!(driver = self.name, why = grpc::told(&status), "no reports of devices");
                }
            }
            tokio::time::sleep(backoff.next()).await;
        }
    }

    /// Takes in reports until there are no more; whether there was one.
    async fn hear(&self, mut reports: tonic::Streaming<NodeWatchResourcesResponse>) -> bool {
        let mut heard = false;
        let Drivers { health, reported, .. } = &*self.drivers;
        loop {
            let old = health.lock().next(&self.name, self.session);
            let changed = tokio::select! {
                report = reports.message() => match report {
                    Ok(Some(report)) => {
                        heard = true;
                        health.lock().report(&self.name, self.session, report.devices, Instant::now())
                    }
                    _ => break,
                },
                () = tokio::time::sleep_until(old.unwrap_or_else(Instant::now)), if old.is_some() => {
                    health.lock().expire(&self.name, self.session, Instant::now())
                }
            };
            if changed {
                reported.send_modify(|count| *count += 1);
            }
        }
        if health.lock().forget(&self.name, self.session) {
            reported.send_modify(|count| *count += 1);
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use tokio::sync::mpsc;

    use super::*;

    /// An API that says when it was asked for what.
    struct Api(mpsc::UnboundedSender<(Duration, String)>, Instant);

    #[async_trait]
    impl client::Transport for Api {
        async fn send(
            &self,
            request: http::Request<Bytes>,
        ) -> Result<http::Response<client::Body>, client::TransportError> {
            let _ = self.0.send((self.1.elapsed(), format!("{} {}", request.method(), request.uri())));
            let body = http_body_util::Full::new(Bytes::from_static(b"{}"));
            Ok(http::Response::new(body.map_err(|never| match never {}).boxed_unsync()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slices_of_a_driver_that_does_not_come_back_are_removed() {
        let (sender, mut asked) = mpsc::unbounded_channel();
        let drivers = Drivers::new(Client::new(Arc::new(Api(sender, Instant::now()))), "n1".to_owned());
        let info = |name: &str| PluginInfo {
            r#type: "DRAPlugin".to_owned(),
            name: name.to_owned(),
            endpoint: String::new(),
            supported_versions: vec!["v1.DRAPlugin".to_owned()],
        };
        drivers.begin().await;
        let slices = "DELETE /apis/resource.k8s.io/v1/resourceslices?fieldSelector=";
        let of = |selector: &str| format!("{slices}{}", encode(selector));
        assert_eq!(asked.recv().await, Some((Duration::ZERO, of("spec.nodeName=n1"))));
        let stop = CancellationToken::new();
        let (running, ends) = (drivers.clone(), stop.clone());
        let run = tokio::spawn(async move { running.run(ends).await });
        let joined = |name: &str| {
            drivers.join(
                Path::new("/registry").join(name).as_path(),
                Path::new("/own").join(name).as_path(),
                &info(name),
            )
        };
        let (_stays, breaks) = (joined("stays").unwrap(), joined("breaks").unwrap());
        let again = drivers.join(Path::new("/registry/other"), Path::new("/own/stays"), &info("stays"));
        let text = "endpoint /own/stays already registered for DRA driver plugin stays";
        assert_eq!(again.err().as_deref(), Some(text));
        tokio::time::sleep(Duration::from_secs(60)).await;
        drivers.connected("breaks", breaks.session, false);
        tokio::time::sleep(Duration::from_secs(20)).await;
        drivers.connected("breaks", breaks.session, true);
        tokio::time::sleep(Duration::from_secs(20)).await;
        // at 100 s for good
        drop(breaks);
        let expected = (Duration::from_secs(130), of("spec.driver=breaks,spec.nodeName=n1"));
        let (when, what) = asked.recv().await.unwrap();
        assert_eq!((Duration::from_secs(when.as_secs()), what), expected);
        assert_eq!(drivers.get("breaks").err().as_deref(), Some("DRA driver breaks is not registered"));
        assert!(drivers.get("stays").is_ok());
        stop.cancel();
        run.await.unwrap();
    }

    #[test]
    fn the_newest_version_that_both_have_is_taken() {
        let check = |offered: &[&str], expected: Result<Service, &str>| {
            let offered: Vec<String> = offered.iter().map(|&offer| offer.to_owned()).collect();
            assert_eq!(Service::choose(&offered), expected.map_err(str::to_owned));
        };
        check(&["v1beta1.DRAPlugin"], Ok(Service::V1Beta1));
        check(&["v1beta1.DRAPlugin", "v1.DRAPlugin"], Ok(Service::V1));
        check(&[], Err("empty list of supported gRPC services (aka supported versions)"));
        check(
            &["v1alpha4.Node", "1.0.0"],
            Err(
                "none of services supported by the plugin ([\"v1alpha4.Node\" \"1.0.0\"]) are supported by the kubelet \
                 ([\"v1.DRAPlugin\" \"v1beta1.DRAPlugin\"])",
            ),
        );
    }
}
