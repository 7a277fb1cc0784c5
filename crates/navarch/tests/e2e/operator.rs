//! An operator as people write them, with `kube` and its runtime: its own definition, a controller that owns
//! ConfigMaps through server-side apply, a status, a finalizer.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::Action;
use kube::runtime::finalizer::{self, Event};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{Controller, watcher};
use kube::{Client, CustomResource, CustomResourceExt as _, Resource as _, ResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use testkit::{Cluster, eventually};

use crate::cluster;

/// The operator's name, as field manager and in its finalizer.
const OPERATOR: &str = "librarian";
const FINALIZER: &str = "example.com/librarian";

#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Debug, Clone)]
#[kube(
    group = "example.com",
    version = "v1",
    kind = "Shelf",
    plural = "shelves",
    namespaced,
    status = "ShelfStatus"
)]
#[kube(shortname = "sh", printcolumn = r#"{"name":"Books","type":"integer","jsonPath":".status.books"}"#)]
struct ShelfSpec {
    books: Vec<String>,
    #[schemars(range(min = 1, max = 9))]
    level: u8,
}

#[derive(Serialize, Deserialize, JsonSchema, Debug, Clone, Default)]
struct ShelfStatus {
    books: usize,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// kube wants a named error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

fn failed(error: impl std::fmt::Display) -> Failed {
    Failed(error.to_string())
}

async fn reconcile(shelf: Arc<Shelf>, client: Arc<Client>) -> Result<Action, Failed> {
    let namespace = shelf.namespace().unwrap_or_default();
    let shelves: Api<Shelf> = Api::namespaced(client.as_ref().clone(), &namespace);
    let step = async |event| match event {
        Event::Apply(shelf) => keep(&client, &shelf).await,
        Event::Cleanup(shelf) => bury(&client, &shelf).await,
    };
    finalizer::finalizer(&shelves, FINALIZER, shelf, step).await.map_err(failed)
}

/// One ConfigMap for each shelf, and the status.
async fn keep(client: &Client, shelf: &Shelf) -> Result<Action, Failed> {
    let namespace = shelf.namespace().unwrap_or_default();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(shelf.name_any()),
            owner_references: Some(shelf.controller_owner_ref(&()).into_iter().collect()),
            ..ObjectMeta::default()
        },
        data: Some([("books".to_owned(), shelf.spec.books.join(","))].into()),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(OPERATOR).force();
    maps.patch(&shelf.name_any(), &params, &Patch::Apply(&map)).await.map_err(failed)?;
    let shelves: Api<Shelf> = Api::namespaced(client.clone(), &namespace);
    let status = json!({
        "apiVersion": Shelf::api_version(&()), "kind": Shelf::kind(&()),
        "status": {"books": shelf.spec.books.len()}
    });
    shelves.patch_status(&shelf.name_any(), &params, &Patch::Apply(&status)).await.map_err(failed)?;
    Ok(Action::await_change())
}

/// Leaves a note, so that the test sees that the finalizer ran before the object went.
async fn bury(client: &Client, shelf: &Shelf) -> Result<Action, Failed> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &shelf.namespace().unwrap_or_default());
    let metadata =
        ObjectMeta { name: Some(format!("{}-was-here", shelf.name_any())), ..ObjectMeta::default() };
    let note = ConfigMap { metadata, ..ConfigMap::default() };
    match maps.create(&PostParams::default(), &note).await {
        Ok(_) => Ok(Action::await_change()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Action::await_change()),
        Err(error) => Err(failed(error)),
    }
}

/// The operator itself: the definition, then the controller until the test drops it.
async fn operate(client: Client) -> Result<(), Failure> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply(OPERATOR).force();
    definitions.patch("shelves.example.com", &params, &Patch::Apply(Shelf::crd())).await?;
    let established = await_condition(definitions, "shelves.example.com", conditions::is_crd_established());
    tokio::time::timeout(Duration::from_secs(20), established).await??;
    Controller::new(Api::<Shelf>::all(client.clone()), watcher::Config::default())
        .owns(Api::<ConfigMap>::all(client.clone()), watcher::Config::default())
        .run(reconcile, |_, _, _| Action::requeue(Duration::from_millis(200)), Arc::new(client))
        .for_each(|done| async {
            if let Err(error) = done {
                eprintln!("{OPERATOR}: {error:?}");
            }
        })
        .await;
    Ok(())
}

async fn client(cluster_config: Kubeconfig) -> Result<Client, Failure> {
    let config = kube::Config::from_custom_kubeconfig(cluster_config, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Runs `story` beside the operator, on the cluster's host.
fn beside_the_operator<F>(cluster: &Cluster, story: impl FnOnce(Client) -> F + Send + 'static)
where
    F: Future<Output = Result<(), Failure>>,
{
    let file = cluster.data_dir().join("admin.kubeconfig");
    let work = move || -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(text)?;
        let both = async {
            let client = client(Kubeconfig::read_from(file)?).await?;
            tokio::select! {
                ended = operate(client.clone()) => ended.and(Err("the operator ended".into())),
                told = story(client) => told,
            }
        };
        runtime.block_on(both).map_err(text)
    };
    cluster.net().run(work).unwrap().unwrap();
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Waits for what an object's watch shows.
async fn shown<K>(api: &Api<K>, name: &str, what: &str, is: impl Fn(&K) -> bool) -> Result<K, Failure>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let condition = |object: Option<&K>| object.is_some_and(&is);
    let wait = await_condition(api.clone(), name, condition);
    let object = tokio::time::timeout(Duration::from_secs(30), wait).await.map_err(|_| what.to_owned())??;
    Ok(object.ok_or("no object")?)
}

#[test]
fn an_operator_written_with_kube_keeps_its_objects() {
    let cluster = cluster();
    beside_the_operator(&cluster, |client| async move {
        let shelves: Api<Shelf> = Api::default_namespaced(client.clone());
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let definitions: Api<CustomResourceDefinition> = Api::all(client);
        let established =
            await_condition(definitions, "shelves.example.com", conditions::is_crd_established());
        tokio::time::timeout(Duration::from_secs(30), established).await??;

        // what the schema forbids is refused with its reason
        let steep = Shelf::new("steep", ShelfSpec { books: Vec::new(), level: 12 });
        let refused = shelves.create(&PostParams::default(), &steep).await.unwrap_err();
        assert!(refused.to_string().contains("spec.level"), "{refused}");

        let shelf = Shelf::new("a", ShelfSpec { books: vec!["Emma".into(), "Ulysses".into()], level: 1 });
        shelves.create(&PostParams::default(), &shelf).await?;
        let books = |n: usize| move |shelf: &Shelf| shelf.status.as_ref().is_some_and(|s| s.books == n);
        let shelf = shown(&shelves, "a", "two books are counted", books(2)).await?;
        assert!(shelf.finalizers().contains(&FINALIZER.to_owned()));
        let map = maps.get("a").await?;
        assert_eq!(map.data.as_ref().unwrap()["books"], "Emma,Ulysses");

        // a change by anybody is taken up, and one to what the operator owns is taken back
        let more = Patch::Merge(json!({"spec": {"books": ["Emma"]}}));
        shelves.patch("a", &PatchParams::default(), &more).await?;
        shown(&shelves, "a", "one book is counted", books(1)).await?;
        let theirs = Patch::Merge(json!({"data": {"books": "none"}}));
        maps.patch("a", &PatchParams::default(), &theirs).await?;
        let is_ours = |map: &ConfigMap| map.data.as_ref().is_some_and(|data| data["books"] == "Emma");
        shown(&maps, "a", "the operator's data is back", is_ours).await?;

        // the finalizer runs, then the object goes, then what it owned
        shelves.delete("a", &DeleteParams::default()).await?;
        shown(&maps, "a-was-here", "the finalizer ran", |_| true).await?;
        let uid = map.uid().unwrap_or_default();
        let gone = await_condition(maps.clone(), "a", conditions::is_deleted(&uid));
        tokio::time::timeout(Duration::from_secs(30), gone).await.map_err(|_| "the owned object stays")??;
        assert!(shelves.list(&ListParams::default()).await?.items.is_empty());
        Ok(())
    });
    // kubectl knows the kind as the operator described it
    cluster
        .apply("apiVersion: example.com/v1\nkind: Shelf\nmetadata: {name: b}\nspec: {books: [], level: 2}\n")
        .unwrap();
    eventually("the columns are the definition's", || {
        let table = cluster.kubectl("get sh").unwrap();
        if table.contains("BOOKS") { Ok(()) } else { Err(table) }
    });
}
