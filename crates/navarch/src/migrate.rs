//! `navarch datastore migrate`: the cluster's data from its folder into etcd, or back. No server may run meanwhile.

use std::path::Path;

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use store::embedded::Embedded;
use store::etcd::Etcd;
use store::transfer::Snapshot;

use crate::data_dir::DataDir;
use crate::datastore::DatastoreOptions;

/// What to do with the data.
#[derive(Subcommand)]
pub enum DatastoreAction {
    /// Moves all data from one engine to the other and checks it. May be run again where it was cut off.
    Migrate {
        /// Where the data is.
        #[arg(long, value_enum)]
        from: Engine,
        /// Where it goes.
        #[arg(long, value_enum)]
        to: Engine,
        /// The etcd.
        #[command(flatten)]
        datastore: DatastoreOptions,
    },
}

/// Where data can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Engine {
    /// In the cluster's folder.
    Embedded,
    /// In the etcd of `--datastore-endpoints`.
    Etcd,
}

/// Does what was asked.
pub fn main(path: &Path, action: DatastoreAction) -> anyhow::Result<()> {
    let DatastoreAction::Migrate { from, to, datastore } = action;
    if from == to {
        bail!("the data is to move from one engine to the other: --from and --to are the same");
    }
    if datastore.datastore_endpoints.is_empty() {
        bail!("--datastore-endpoints has to name the etcd");
    }
    let data = match from {
        Engine::Embedded => {
            DataDir::at(path)?.with_context(|| format!("there is no cluster in {}", path.display()))?
        }
        Engine::Etcd => DataDir::create(path)?,
    };
    // refuses when a server runs on the folder, and keeps one from starting
    let _lock = data.lock()?;
    let runtime = tokio::runtime::Runtime::new()?;
    match from {
        Engine::Embedded => runtime.block_on(to_etcd(&data, &datastore)),
        Engine::Etcd => runtime.block_on(to_embedded(&data, &datastore)),
    }
}

async fn to_etcd(data: &DataDir, options: &DatastoreOptions) -> anyhow::Result<()> {
    let folder = data.store();
    if !folder.join("store.redb").exists() {
        bail!("{} holds no data; was it moved already?", folder.display());
    }
    let settings = options.embedded();
    let opened = folder.clone();
    let source = tokio::task::spawn_blocking(move || Embedded::open(&opened, settings)).await??;
    let snapshot = source.snapshot().await?;
    let name = format!("the folder {}", folder.display());
    let revision = store::etcd::create(options.etcd(), &snapshot, 0, &name).await?;
    source.close().await?;
    drop(source);
    // a server started without --datastore-endpoints must not find the old state
    let kept = data.root().join(format!("store.moved-at-{}", snapshot.revision));
    std::fs::rename(&folder, &kept).with_context(|| format!("cannot rename {}", folder.display()))?;
    report(&snapshot, revision);
    println!("the old data is kept in {}", kept.display());
    Ok(())
}

async fn to_embedded(data: &DataDir, options: &DatastoreOptions) -> anyhow::Result<()> {
    let source = Etcd::open(options.etcd()).await?;
    let running = source.servers().await?;
    if !running.is_empty() {
        bail!("servers run on this etcd: {}; stop them first", running.join(", "));
    }
    let snapshot = source.snapshot().await?;
    if snapshot.entries.is_empty() {
        bail!("this etcd holds no data under {}", options.datastore_prefix);
    }
    let (folder, copy, settings) = (data.store(), snapshot.clone(), options.embedded());
    let made = move || -> anyhow::Result<Snapshot> {
        store::embedded::create(&folder, &copy, 0)?;
        let made = Embedded::open(&folder, settings)?;
        let runtime = tokio::runtime::Handle::current();
        let written = runtime.block_on(made.snapshot())?;
        runtime.block_on(made.close())?;
        Ok(written)
    };
    let written = tokio::task::spawn_blocking(made).await??;
    // keys whose time was over while they moved
    let expired = snapshot.entries.iter().filter(|entry| entry.expires_at.is_some()).count();
    let lost = snapshot.entries.len().saturating_sub(written.entries.len());
    if lost > expired || (lost == 0 && written.checksum() != snapshot.checksum()) {
        bail!(
            "what was written is not what was read ({} of {} keys)",
            written.entries.len(),
            snapshot.entries.len()
        );
    }
    if source.snapshot().await?.revision != snapshot.revision {
        bail!(
            "etcd was written to meanwhile; stop all servers, remove {} and run it again",
            data.store().display()
        );
    }
    source.close().await;
    report(&snapshot, written.revision);
    println!("the data in etcd is left as it is");
    Ok(())
}

fn report(snapshot: &Snapshot, revision: u64) {
    println!(
        "moved {} keys, {} bytes, checksum {}; revision {} goes on as {revision}",
        snapshot.entries.len(),
        snapshot.bytes(),
        snapshot.checksum(),
        snapshot.revision
    );
}
