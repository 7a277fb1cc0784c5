//! The crash test of migrations to a new storage version.
use k8s_openapi::api::storagemigration::v1beta1::StorageVersionMigration as Migration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition as Definition;

use crate::crash::{Story, at_every_write};
use crate::hollow::Hollow;
use crate::migrations::{is_through, migration, options, revisions, store_v2, stored, widgets};

/// Two migrations of custom resources whose storage version has changed.
pub struct Migrations;

impl Story for Migrations {
    const WRITERS: &'static [&'static str] = &["storage-version-migrator-controller"];

    fn options() -> apiserver::Options {
        options()
    }

    fn prepare(cluster: &mut Hollow) {
        cluster.config.storage_migrations = true;
        // Nodes are not what this is about.
        cluster.config.node_monitor_grace_period = std::time::Duration::from_hours(1_000_000);
    }

    async fn create(cluster: &Hollow) {
        widgets(cluster, 4).await;
        store_v2(cluster).await;
        cluster.until::<Definition>("both", |l| l.iter().any(|d| stored(d).0 == ["v1", "v2"])).await;
    }

    async fn up(_: &Hollow) {}

    async fn change(cluster: &Hollow) {
        cluster.create::<Migration>("", migration("first", "example.com", "widgets")).await;
        cluster.create::<Migration>("", migration("second", "example.com", "widgets")).await;
    }

    async fn end(cluster: &Hollow, what: &str) {
        let list =
            cluster.until::<Migration>(what, |l| l.len() == 2 && l.iter().all(|m| is_through(m))).await;
        let since = |m: &Migration| m.status.as_ref()?.resource_version.as_ref()?.parse::<u64>().ok();
        let first = list.iter().filter_map(|m| since(m)).min().expect("a revision");
        let now = revisions(cluster).await;
        assert!(now.len() == 4 && now.iter().all(|r| *r > first), "{what}: {now:?} after {first}");
        cluster.until::<Definition>(what, |l| l.iter().any(|d| stored(d).0 == ["v2"])).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_any_write_leaves_no_object_in_the_old_version() {
    at_every_write::<Migrations>(5).await;
}
