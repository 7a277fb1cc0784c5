//! An API server in a test's own process, over a store in a folder that goes with it, and waiting on what its objects come to.
//!
//! What goes wrong here is the test's failure, so it panics.

use std::sync::Arc;
use std::time::Duration;

use apiserver::{Options, Server, StartError};
use client::https::{Endpoint, Https};
use client::{Client, Kind};
use serde::de::DeserializeOwned;
use serde_json::Value;
use store::embedded::Embedded;
use tempfile::TempDir;

/// What a test waits for has to be so by then, also on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// So many objects are shown when a wait fails.
const SHOWN: usize = 20;

/// An API server, with its store and its folder.
pub struct TestServer {
    /// The server.
    pub server: Arc<Server>,
    /// Its data.
    pub store: Arc<Embedded>,
    /// The administrator, in process.
    pub client: Client,
    /// Where the data and the authority are; other parts may keep theirs here.
    pub folder: TempDir,
}

impl TestServer {
    /// A new cluster of these options.
    pub async fn start(options: Options) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::in_folder(folder, options).await.expect("the API server starts")
    }

    /// In a folder that may have data.
    pub async fn in_folder(folder: TempDir, options: Options) -> Result<Self, StartError> {
        let store =
            Embedded::open(&folder.path().join("store"), Default::default()).expect("the store opens");
        let server = Server::start(apiserver::Config {
            pki_dir: folder.path().join("pki"),
            listen: ([127, 0, 0, 1], 0).into(),
            store: store.clone(),
            addresses: Vec::new(),
            service_cidr: "10.96.0.0/16".to_owned(),
            version: "0.0.0".to_owned(),
            options,
        })
        .await?;
        let client = server.client("admin", &["system:masters"]);
        Ok(Self { server, store, client, folder })
    }

    /// Another client of it, by HTTPS, as this user and in these groups: it has a certificate.
    pub fn user(&self, name: &str, groups: &[&str]) -> Client {
        let identity = self.server.pki().client(name, groups).expect("a certificate");
        connect(&self.server, |endpoint| {
            endpoint.cert_pem = identity.cert_pem.clone().into();
            endpoint.key_pem = identity.key_pem.clone().into();
        })
    }

    /// Stops; the folder stays.
    pub async fn stop(self) -> TempDir {
        self.server.shutdown().await;
        drop((self.client, self.server));
        self.store.close().await.expect("the store closes");
        self.folder
    }
}

/// A client of the server by HTTPS: nobody, where `set` does not say who.
pub fn connect(server: &Server, set: impl FnOnce(&mut Endpoint)) -> Client {
    let mut endpoint = Endpoint {
        server: format!("https://{}", server.address()),
        ca_pem: server.pki().ca_pem().to_owned().into(),
        user_agent: "test".to_owned(),
        ..Endpoint::default()
    };
    set(&mut endpoint);
    Client::new(Arc::new(Https::new(&endpoint).expect("a client")))
}

/// From JSON; panics where the test wrote nonsense.
pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("an object of this kind")
}

/// Waits until `done` finds something in what the cache holds of a kind, looking after every change.
pub async fn until<K: Kind, T>(client: &Client, what: &str, done: impl Fn(&[Arc<K>]) -> Option<T>) -> T {
    // What is shown is what was looked at: a cache that nobody holds goes, and a new one is empty at first.
    let _cache = client.caches().of::<K>();
    match wait(client, PATIENCE, done).await {
        Some(found) => found,
        None => panic!("not so in time: {what}; {} are\n{}", K::KIND, shown::<K>(client)),
    }
}

/// Waits like `until`; `None` where it is not so within `patience`.
pub async fn wait<K: Kind, T>(
    client: &Client,
    patience: Duration,
    done: impl Fn(&[Arc<K>]) -> Option<T>,
) -> Option<T> {
    let cache = client.caches().of::<K>();
    cache.synced().await;
    let mut changes = cache.subscribe();
    let found = async {
        loop {
            if let Some(found) = done(&cache.list()) {
                return found;
            }
            changes.next().await.expect("the cache goes on");
            // what came at once is looked at once
            while changes.try_next().is_some() {}
        }
    };
    tokio::time::timeout(patience, found).await.ok()
}

/// The first objects of a kind, a line each, without what is long and says little.
pub fn shown<K: Kind>(client: &Client) -> String {
    let all = client.caches().of::<K>().list();
    let lines = all.iter().take(SHOWN).map(|object| {
        let mut value = serde_json::to_value(&**object).expect("JSON");
        for path in ["/metadata/managedFields", "/spec/containers", "/spec/volumes"] {
            if let Some(long) = value.pointer_mut(path) {
                *long = Value::Null;
            }
        }
        value.to_string()
    });
    let mut lines: Vec<String> = lines.collect();
    if all.len() > SHOWN {
        lines.push(format!("and {} more", all.len() - SHOWN));
    }
    lines.join("\n")
}
