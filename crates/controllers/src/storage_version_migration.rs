//! Migrations to a new storage version: every object of a resource is written anew, as it is, so that the store holds it in the
//! version that is stored now. Runs where the gate `StorageVersionMigrator` is open.
//!
//! Rule: KEP-4192, v1.36. Of the migrations of a resource one runs at a time, the oldest first. What was written after the migration
//! began (`status.resourceVersion`) is in the new version already. A definition of custom resources says that it is migrated, and
//! when nothing changed it meanwhile, that nothing is stored in older versions any more. All of it can be done twice.
mod plan;

use client::{Cache, Change, Error, Patch, encode, path_of};
use http::Method;
use jiff::SignedDuration;
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration as Migration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use self::plan::{FAILED, Next, RUNNING, SUCCEEDED};
use crate::discovery::{self, Served};
use crate::ownership::name;
use crate::runner::{Context, Failure, Outcome, Reconcile, Runner};

/// Who applies the objects; owns no field of them.
const MANAGER: &str = "storage-version-migrator-controller";
/// A resource that is not served may be defined just now: so long it is waited for.
const PATIENCE: SignedDuration = SignedDuration::from_mins(1);
/// Objects in one answer.
const PAGE: usize = 500;
const PARTIAL: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";

/// A group and the plural in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Resource {
    group: String,
    plural: String,
}

impl Resource {
    fn of(migration: &Migration) -> Self {
        let of = migration.spec.as_ref().map(|s| &s.resource);
        let text = |part: Option<&String>| part.cloned().unwrap_or_default();
        Self { group: text(of.map(|r| &r.group)), plural: text(of.map(|r| &r.resource)) }
    }

    /// The path of the definition of a custom resource of that name.
    fn definition(&self) -> String {
        let name = format!("{}.{}", self.plural, self.group);
        path_of("apiextensions.k8s.io", "v1", "customresourcedefinitions", "", &name, "")
    }
}

struct Controller {
    context: Context,
    migrations: Cache<Migration>,
}

pub(crate) async fn run(context: Context) {
    let migrations = context.reader.caches().of::<Migration>();
    let controller = Controller { context: context.clone(), migrations: migrations.clone() };
    Runner::new(&context, controller)
        .on(&migrations, |_, change: &Change<Migration>| [Resource::of(change.object())])
        .run(5)
        .await;
}

/// How writing one object anew ended.
enum Written {
    /// It is in the new version, by this write or by another, or is gone.
    Yes,
    /// It never will be.
    Never(String),
}

impl Controller {
    async fn say(&self, migration: &Migration) -> Result<(), Failure> {
        self.context.client.update_status("", migration).await?;
        Ok(())
    }

    async fn fail(&self, migration: &Migration, why: &str) -> Result<(), Failure> {
        let message = format!("migration encountered unhandled error: {why}");
        let now = self.context.clock.now();
        self.say(&plan::with(migration, FAILED, "StorageVersionMigrationFailed", &message, now)).await
    }

    /// Changes the definition of the resource, if it has one.
    async fn define(
        &self,
        resource: &Resource,
        change: impl Fn(&Value, jiff::Timestamp) -> Value,
    ) -> Result<(), Failure> {
        let client = &self.context.client;
        let path = resource.definition();
        let definition = match client.call::<(), Value>(Method::GET, &path, None).await {
            Ok(definition) => definition,
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // With the revision it was read at: what it says of a generation must be of that.
        let next = change(&definition, self.context.clock.now());
        if next != definition {
            client.call::<_, Value>(Method::PUT, &format!("{path}/status"), Some(&next)).await?;
        }
        Ok(())
    }

    async fn begin(&self, resource: &Resource, migration: &Migration) -> Result<(), Failure> {
        let own = name(&migration.metadata);
        self.define(resource, |d, now| plan::migrating(d, own, now)).await?;
        let now = self.context.clock.now();
        self.say(&plan::with(migration, RUNNING, "MigrationRunning", "The migration is running", now)).await
    }

    async fn finish(&self, resource: &Resource, migration: &Migration) -> Result<(), Failure> {
        let is_done = plan::is(migration, SUCCEEDED);
        self.define(resource, |d, now| plan::migrated(d, is_done, now)).await?;
        self.say(&plan::without_running(migration, self.context.clock.now())).await
    }

    /// The resource as it is served; `None`: it is not, or its objects cannot be listed and changed.
    async fn served(&self, resource: &Resource) -> Result<Option<Served>, Failure> {
        let (served, failed) = discovery::kinds(&self.context.client).await?;
        let is_it = |s: &Served| s.group == resource.group && s.plural == resource.plural;
        let found = served.into_iter().find(|s| is_it(s) && s.can("list") && s.can("patch"));
        match failed.into_iter().find(|(version, _)| version.starts_with(&resource.group)) {
            Some((_, error)) if found.is_none() => Err(error.into()),
            _ => Ok(found),
        }
    }

    async fn page(&self, kind: &Served, limit: usize, from: &str) -> Result<Value, Failure> {
        let path = format!("{}?limit={limit}&continue={}", kind.path("", ""), encode(from));
        let request = http::Request::get(&path).header(http::header::ACCEPT, PARTIAL);
        let request = request.body(Default::default()).map_err(Error::from)?;
        let answer = self.context.client.request(request).await?;
        let (code, body) = (answer.status(), answer.into_body());
        let read = |what: &str| Failure::Invalid(format!("GET {path}: {what}"));
        if !code.is_success() {
            return Err(read(&String::from_utf8_lossy(&body[..body.len().min(512)])));
        }
        serde_json::from_slice(&body).map_err(|e| read(&e.to_string()))
    }

    /// Applies nothing at all, at the revision that was seen.
    async fn write(&self, kind: &Served, meta: &ObjectMeta) -> Result<Written, Failure> {
        let (ns, own) = (meta.namespace.as_deref().unwrap_or_default(), name(meta));
        // The uid, so that one that is gone is not made, and one of the same name not taken for it.
        let object = json!({"apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}});
        let patch = Patch::Apply { manager: MANAGER.to_owned(), force: false, object };
        match self.context.client.patch_path::<Value>(&kind.path(ns, own), &patch).await {
            Ok(_) => Ok(Written::Yes),
            Err(error) if error.is_conflict() || error.is_not_found() => Ok(Written::Yes),
            Err(error) if error.is_passing() => Err(error.into()),
            Err(error) => Ok(Written::Never(error.to_string())),
        }
    }

    async fn migrate(&self, resource: &Resource, migration: &Migration) -> Result<Outcome, Failure> {
        let now = self.context.clock.now();
        let Some(kind) = self.served(resource).await? else {
            let made = migration.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
            let left = PATIENCE - now.duration_since(made);
            if left > SignedDuration::ZERO {
                return Ok(Outcome::Retry);
            }
            self.fail(migration, "unable to obtain GVR from discovery").await?;
            return Ok(Outcome::Settled);
        };
        let since = migration.status.as_ref().and_then(|s| s.resource_version.clone()).unwrap_or_default();
        if since.is_empty() {
            let list = self.page(&kind, 1, "").await?;
            let mut next = migration.clone();
            let revision = list["metadata"]["resourceVersion"].as_str().map(str::to_owned);
            next.status.get_or_insert_default().resource_version = revision;
            // The change brings the migration back here.
            self.say(&next).await?;
            return Ok(Outcome::Settled);
        }
        let mut from = String::new();
        loop {
            let mut list = self.page(&kind, PAGE, &from).await?;
            for mut item in list["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
                let meta: ObjectMeta = serde_json::from_value(item["metadata"].take())
                    .map_err(|e| Failure::Invalid(e.to_string()))?;
                if plan::is_newer(&meta, &since) {
                    continue;
                }
                if let Written::Never(why) = self.write(&kind, &meta).await? {
                    self.fail(migration, &why).await?;
                    return Ok(Outcome::Settled);
                }
            }
            from = list["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
            if from.is_empty() {
                break;
            }
        }
        let now = self.context.clock.now();
        self.say(&plan::with(migration, SUCCEEDED, "StorageVersionMigrationSucceeded", "", now)).await?;
        Ok(Outcome::Settled)
    }
}

impl Reconcile for Controller {
    type Key = Resource;

    async fn reconcile(&self, key: &Resource) -> Result<Outcome, Failure> {
        let mut all = self.migrations.list();
        all.retain(|m| Resource::of(m) == *key);
        // One step; its write brings the resource back here.
        match plan::next(&all) {
            None => Ok(Outcome::Settled),
            Some(Next::Finish(migration)) => self.finish(key, migration).await.map(|()| Outcome::Settled),
            Some(Next::Begin(migration)) => self.begin(key, migration).await.map(|()| Outcome::Settled),
            Some(Next::Migrate(migration)) => self.migrate(key, migration).await,
        }
    }
}
