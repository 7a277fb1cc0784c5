//! Which store a server stands on: the embedded one in its folder, or an etcd cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use store::Store;
use store::embedded::{self, Embedded};
use store::etcd::{self, Etcd};
use store::transfer::Snapshot;

use crate::data_dir::DataDir;

/// Where the cluster's data is, and for how long its past.
#[derive(Args, Clone)]
pub struct DatastoreOptions {
    /// Members of an etcd cluster to keep the data in (`https://a:2379,https://b:2379`); without them it is in the
    /// cluster's folder.
    #[arg(long, value_delimiter = ',')]
    pub datastore_endpoints: Vec<String>,
    /// The certificate authority of etcd's members; the system's where it is not given.
    #[arg(long, requires = "datastore_endpoints")]
    pub datastore_cafile: Option<PathBuf>,
    /// The certificate to show to etcd.
    #[arg(long, requires = "datastore_keyfile")]
    pub datastore_certfile: Option<PathBuf>,
    /// Its key.
    #[arg(long, requires = "datastore_certfile")]
    pub datastore_keyfile: Option<PathBuf>,
    /// What the cluster's keys in etcd begin with; one for each cluster when several share one etcd.
    #[arg(long, default_value = "/registry", requires = "datastore_endpoints")]
    pub datastore_prefix: String,
    /// How long old states stay readable and watches can begin there (`90s`, `5m`, `1h`).
    #[arg(long, value_parser = parse_duration, default_value = "5m")]
    pub datastore_history: Duration,
    /// How large the data in the cluster's folder may grow, history included (`512Mi`, `8Gi`); etcd has a quota of its own.
    #[arg(long, value_parser = parse_size, default_value = "2Gi", conflicts_with = "datastore_endpoints")]
    pub datastore_quota: u64,
}

impl DatastoreOptions {
    /// The embedded engine's settings.
    pub fn embedded(&self) -> embedded::Options {
        embedded::Options {
            history: self.datastore_history,
            quota: self.datastore_quota,
            ..embedded::Options::default()
        }
    }

    /// The etcd engine's settings.
    pub fn etcd(&self) -> etcd::Options {
        etcd::Options {
            endpoints: self.datastore_endpoints.clone(),
            ca_file: self.datastore_cafile.clone(),
            cert_file: self.datastore_certfile.clone(),
            key_file: self.datastore_keyfile.clone(),
            prefix: self.datastore_prefix.clone(),
            history: self.datastore_history,
            ..etcd::Options::default()
        }
    }
}

/// The open store of a server.
#[derive(Clone)]
pub enum Datastore {
    /// In the cluster's folder.
    Embedded(Arc<Embedded>),
    /// In etcd.
    Etcd(Arc<Etcd>),
}

impl Datastore {
    /// Opens what the options name.
    pub async fn open(options: &DatastoreOptions, data: &DataDir) -> anyhow::Result<Self> {
        if !options.datastore_endpoints.is_empty() {
            let etcd = Etcd::open(options.etcd()).await.context("cannot open the cluster's data in etcd")?;
            return Ok(Self::Etcd(etcd));
        }
        let (folder, settings) = (data.store(), options.embedded());
        let opened = tokio::task::spawn_blocking(move || Embedded::open(&folder, settings)).await?;
        Ok(Self::Embedded(opened.context("cannot open the cluster's data")?))
    }

    /// The store.
    pub fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store) => store.clone(),
            Self::Etcd(store) => store.clone(),
        }
    }

    /// Whether other servers may stand on the same data.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Etcd(_))
    }

    /// Tells others on the same data that this server stands on it.
    pub async fn announce(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Embedded(_) => Ok(()),
            Self::Etcd(store) => store.announce(name).await.context("cannot write to etcd"),
        }
    }

    /// The whole data at one revision.
    pub async fn snapshot(&self) -> anyhow::Result<Snapshot> {
        match self {
            Self::Embedded(store) => Ok(store.snapshot().await?),
            Self::Etcd(store) => Ok(store.snapshot().await?),
        }
    }

    /// Brings everything to the disk and lets go of it.
    pub async fn close(&self) -> anyhow::Result<()> {
        match self {
            Self::Embedded(store) => store.close().await.context("cannot close the cluster's data"),
            Self::Etcd(store) => {
                store.close().await;
                Ok(())
            }
        }
    }
}

/// `90s`, `5m`, `1h`, or several of them in a row; at least one second.
fn parse_duration(text: &str) -> anyhow::Result<Duration> {
    let mut seconds = 0u64;
    let mut digits = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                digits.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => bail!("{c:?} is no unit of time; use s, m or h"),
        };
        let number: u64 =
            std::mem::take(&mut digits).parse().context("a number has to stand before its unit")?;
        seconds = number.checked_mul(unit).and_then(|n| seconds.checked_add(n)).context("too long")?;
    }
    if !digits.is_empty() || seconds == 0 {
        bail!("a time like 90s, 5m or 1h is needed");
    }
    Ok(Duration::from_secs(seconds))
}

/// `1000000`, `512Mi`, `8Gi`; at least 16 MiB.
fn parse_size(text: &str) -> anyhow::Result<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1u64 << 40,
        _ => bail!("{unit:?} is no unit of size; use Ki, Mi, Gi or Ti"),
    };
    let size =
        number.parse::<u64>().context("a number is needed")?.checked_mul(factor).context("too large")?;
    if size < 16 << 20 {
        bail!("less than 16Mi is too small for a cluster");
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_with_their_units() {
        assert_eq!(parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(parse_duration("90s").unwrap(), Duration::from_secs(90));
        for bad in ["", "5", "m", "0s", "5d", "99999999999999999999h", "18446744073709551615h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_size("512Mi").unwrap(), 512 << 20);
        assert_eq!(parse_size("20000000").unwrap(), 20_000_000);
        for bad in ["", "Mi", "1Mi", "8GB", "-1Gi", "99999999999Ti"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
