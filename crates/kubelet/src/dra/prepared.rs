//! The claims that drivers made ready, or were asked to, on this node: who uses them, and which devices they came to.
//! Kept in a file: what a driver was asked for, it is told when nobody needs it any more, whatever happens to the kubelet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::claim::is_for;
use super::messages::{self, Claim};

/// The file, in the kubelet's folder.
const FILE: &str = "dra_manager_state";

/// A device as its driver told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) pool: String,
    pub(super) device: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) share: Option<String>,
    /// The claim's requests that it is for; none: all.
    #[serde(default)]
    requests: Vec<String>,
    /// Its names in CDI.
    #[serde(default)]
    pub(super) cdi: Vec<String>,
}

impl From<messages::Device> for Device {
    fn from(told: messages::Device) -> Self {
        Self {
            pool: told.pool_name,
            device: told.device_name,
            share: told.share_id,
            requests: told.request_names,
            cdi: told.cdi_device_ids,
        }
    }
}

/// A claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Prepared {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Uids of the pods that use it.
    pub(super) pods: BTreeSet<String>,
    /// Devices by driver, also where a driver has none to tell of.
    pub(super) drivers: BTreeMap<String, Vec<Device>>,
    /// Its drivers said so, since this kubelet began: what an earlier one heard may be lost by a restart of the machine.
    #[serde(skip)]
    pub(super) ready: bool,
}

impl Prepared {
    /// As drivers are told of it.
    pub(super) fn message(&self) -> Claim {
        Claim { namespace: self.namespace.clone(), uid: self.uid.clone(), name: self.name.clone() }
    }

    /// Devices for a request, and their drivers.
    pub(super) fn devices<'a>(&'a self, request: &'a str) -> impl Iterator<Item = (&'a str, &'a Device)> {
        let all = self
            .drivers
            .iter()
            .flat_map(|(driver, devices)| devices.iter().map(move |device| (driver.as_str(), device)));
        all.filter(move |(_, device)| is_for(&device.requests, request))
    }
}

/// `namespace/name`, by which a claim is known.
pub(super) fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

/// All of them, by `namespace/name`.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Book {
    pub(super) claims: BTreeMap<String, Prepared>,
}

impl Book {
    /// What an earlier kubelet wrote into `folder`. What cannot be read is an error: a driver could wait forever.
    pub(super) fn read(folder: &Path) -> Result<Self, String> {
        let path = folder.join(FILE);
        let wrong = |why: String| format!("{}: {why}; drain the node, then remove the file", path.display());
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| wrong(error.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    /// Writes them down.
    pub(super) fn save(&self, folder: &Path) -> Result<(), String> {
        crate::files::write_json(folder, FILE, self)
            .map_err(|error| format!("checkpoint ResourceClaim state: {error}"))
    }

    /// Keys of the claims that a pod uses.
    pub(super) fn of_pod(&self, uid: &str) -> BTreeSet<String> {
        let used = self.claims.iter().filter(|(_, claim)| claim.pods.contains(uid));
        used.map(|(key, _)| key.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_down_is_read_again_but_has_to_be_prepared_anew() {
        let folder = tempfile::tempdir().unwrap();
        let device = |name: &str, request: &str| Device {
            pool: "n1".to_owned(),
            device: name.to_owned(),
            share: None,
            requests: vec![request.to_owned()],
            cdi: vec![format!("example.com/dev={name}")],
        };
        let claim = Prepared {
            namespace: "d".to_owned(),
            name: "c".to_owned(),
            uid: "cu".to_owned(),
            pods: ["u1".to_owned()].into(),
            drivers: [("b".to_owned(), vec![device("1", "r"), device("2", "s")]), ("a".to_owned(), vec![])]
                .into(),
            ready: true,
        };
        let book = Book { claims: [(key("d", "c"), claim.clone())].into() };
        assert_eq!(Book::read(folder.path()), Ok(Book::default()));
        book.save(folder.path()).unwrap();
        let read = Book::read(folder.path()).unwrap();
        assert_eq!(read.claims["d/c"], Prepared { ready: false, ..claim.clone() });
        assert_eq!((read.of_pod("u1"), read.of_pod("u2")), (["d/c".to_owned()].into(), BTreeSet::new()));
        let names = |request: &str| -> Vec<String> {
            claim.devices(request).map(|(driver, device)| format!("{driver} {}", device.device)).collect()
        };
        assert_eq!(
            (names(""), names("s")),
            (vec!["b 1".to_owned(), "b 2".to_owned()], vec!["b 2".to_owned()])
        );
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert!(Book::read(folder.path()).unwrap_err().ends_with("; drain the node, then remove the file"));
    }
}
