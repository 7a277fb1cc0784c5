//! Who may use images that are on the node: an image that was pulled with a pod's credentials is for pods that have them,
//! whatever their pull policy says; others must get it from its registry themselves.
//!
//! What was pulled how is remembered in files, one for each image. A pull that is under way has a file, too: an image
//! that came while nobody looked is for those who prove that they may have it.
//!
//! Rule: KEP-2535; Kubernetes documentation, "Images" ("Ensure Image Pull Credential Verification"). The files are those
//! of every kubelet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use cri::v1;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::digest::sha256;
use crate::files::write_json;
use crate::image_name;

/// Which images pods must prove to have credentials for (`imagePullCredentialsVerificationPolicy`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Policy {
    /// None.
    Never,
    /// Those that the kubelet pulled.
    NotPreloaded,
    /// All but these: names without a tag, or a folder of a registry and all below it (`host/folder/*`).
    NotAllowed(Vec<String>),
    /// All.
    Always,
}

/// A Secret whose credentials pulled an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PullSecret {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Digest of the credentials; whoever has the same ones has proved enough.
    pub credential_hash: String,
}

impl PullSecret {
    fn is_proof(&self, known: &PullSecret) -> bool {
        let same = (&self.uid, &self.namespace, &self.name) == (&known.uid, &known.namespace, &known.name);
        same || (!known.credential_hash.is_empty() && self.credential_hash == known.credential_hash)
    }
}

/// A service account whose token a credential provider was given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PullAccount {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Whose credentials they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Those of a Secret.
    Secret(PullSecret),
    /// Those of a service account.
    ServiceAccount(PullAccount),
    /// The node's, or there are none: what they pull is for every pod.
    Node,
}

impl Source {
    fn is_proof(&self, known: &Source) -> bool {
        match (self, known) {
            (Self::Secret(own), Self::Secret(known)) => own.is_proof(known),
            (Self::ServiceAccount(own), Self::ServiceAccount(known)) => own == known,
            _ => false,
        }
    }
}

/// Who may use an image by one of its names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Access {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_secrets: Vec<PullSecret>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    kubernetes_service_accounts: Vec<PullAccount>,
    /// It was given to the node without credentials of a pod.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    node_pods_accessible: bool,
}

impl Access {
    fn sources(self) -> Vec<Source> {
        let accounts = self.kubernetes_service_accounts.into_iter().map(Source::ServiceAccount);
        self.kubernetes_secrets.into_iter().map(Source::Secret).chain(accounts).collect()
    }
}

/// Most Secrets, and most service accounts, that are remembered for one name.
const SOURCES: usize = 100;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pulled {
    kind: String,
    api_version: String,
    last_updated_time: Timestamp,
    image_ref: String,
    #[serde(default)]
    credential_mapping: BTreeMap<String, Access>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Intent {
    kind: String,
    api_version: String,
    image: String,
}

const API_VERSION: &str = "kubelet.config.k8s.io/v1beta1";
const PULLED: &str = "pulled";
const PULLING: &str = "pulling";

/// What is known of an image that is on the node.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every pod may use it.
    Free,
    /// Pods with one of these may.
    With(Vec<Source>),
}

impl Verdict {
    /// Whether a pod with such credentials may use it.
    pub fn lets_in(&self, own: &[Source]) -> bool {
        match self {
            Self::Free => true,
            Self::With(known) => own.iter().any(|source| known.iter().any(|known| source.is_proof(known))),
        }
    }
}

/// The records of the node.
pub struct ImageRecords {
    folder: PathBuf,
    policy: Policy,
    /// Pulls under way, by image; held while files are read and written.
    pulls: Mutex<HashMap<String, u32>>,
}

impl ImageRecords {
    /// Those in `folder`, which need not be there.
    pub fn open(folder: PathBuf, policy: Policy) -> Self {
        Self { folder, policy, pulls: Mutex::default() }
    }

    /// Who may use the image with this id by this name.
    pub fn verdict(&self, image: &str, repository: &str, id: &str) -> Verdict {
        let pulls = self.pulls.lock();
        let record = match read::<Pulled>(&self.folder.join(PULLED).join(file(id))) {
            Ok(record) => record,
            Err(why) => {
                tracing::warn!(why, image, "the record of a pulled image cannot be read");
                return Verdict::With(Vec::new());
            }
        };
        let intent = || self.folder.join(PULLING).join(file(image)).exists();
        let pulled = record.is_some() || pulls.contains_key(image) || intent();
        let free = match &self.policy {
            Policy::Never => true,
            Policy::NotPreloaded => !pulled,
            Policy::NotAllowed(list) => list.iter().any(|allowed| is_allowed(allowed, repository)),
            Policy::Always => false,
        };
        if free {
            return Verdict::Free;
        }
        match record.and_then(|mut record| record.credential_mapping.remove(repository)) {
            Some(access) if access.node_pods_accessible => Verdict::Free,
            Some(access) => Verdict::With(access.sources()),
            None => Verdict::With(Vec::new()),
        }
    }

    /// A pull of `image` begins.
    pub fn begin(&self, image: &str) -> std::io::Result<()> {
        let mut pulls = self.pulls.lock();
        let intent = Intent {
            kind: "ImagePullIntent".to_owned(),
            api_version: API_VERSION.to_owned(),
            image: image.to_owned(),
        };
        write_json(&self.folder.join(PULLING), &file(image), &intent)?;
        *pulls.entry(image.to_owned()).or_default() += 1;
        Ok(())
    }

    /// It came to nothing.
    pub fn failed(&self, image: &str) {
        self.end(&mut self.pulls.lock(), image);
    }

    /// It brought the image with this id, with credentials of that source.
    pub fn pulled(&self, image: &str, repository: &str, id: &str, source: &Source) {
        let mut pulls = self.pulls.lock();
        match self.note(repository, id, |access| match source {
            Source::Node => {
                *access = Access { node_pods_accessible: true, ..Access::default() };
            }
            _ if access.node_pods_accessible => {}
            Source::Secret(secret) => {
                let known = &mut access.kubernetes_secrets;
                known.retain(|k| (&k.uid, &k.name) != (&secret.uid, &secret.name));
                known.truncate(SOURCES - 1);
                known.insert(0, secret.clone());
            }
            Source::ServiceAccount(account) => {
                let known = &mut access.kubernetes_service_accounts;
                known.retain(|known| known != account);
                known.truncate(SOURCES - 1);
                known.insert(0, account.clone());
            }
        }) {
            Ok(()) => self.end(&mut pulls, image),
            // the file of the pull stays: the image is not for everybody
            Err(why) => tracing::warn!(why, image, "how an image was pulled is not remembered"),
        }
    }

    fn note(&self, repository: &str, id: &str, change: impl FnOnce(&mut Access)) -> Result<(), String> {
        let folder = self.folder.join(PULLED);
        let mut record = read::<Pulled>(&folder.join(file(id))).ok().flatten().unwrap_or_else(|| Pulled {
            kind: "ImagePulledRecord".to_owned(),
            api_version: API_VERSION.to_owned(),
            last_updated_time: Timestamp::now(),
            image_ref: id.to_owned(),
            credential_mapping: BTreeMap::new(),
        });
        change(record.credential_mapping.entry(repository.to_owned()).or_default());
        record.last_updated_time = Timestamp::now();
        write_json(&folder, &file(id), &record).map_err(|error| error.to_string())
    }

    fn end(&self, pulls: &mut HashMap<String, u32>, image: &str) {
        if let Some(count) = pulls.get_mut(image).filter(|count| **count > 1) {
            *count -= 1;
            return;
        }
        pulls.remove(image);
        // one that cannot be removed only asks for a proof more
        let _ = std::fs::remove_file(self.folder.join(PULLING).join(file(image)));
    }

    /// Pulls that a kubelet was stopped in: what came of them is for those who prove that they may have it.
    pub async fn settle(&self, images: &mut cri::ImageClient) {
        for intent in list::<Intent>(&self.folder.join(PULLING)) {
            let Ok(name) = image_name::parse(&intent.image) else { continue };
            let image = if name.untagged { format!("{}:latest", intent.image) } else { intent.image.clone() };
            let image = Some(v1::ImageSpec { image, ..v1::ImageSpec::default() });
            let request = v1::ImageStatusRequest { image, verbose: false };
            let Ok(answer) = images.image_status(request).await else { continue };
            let mut pulls = self.pulls.lock();
            let noted = match answer.into_inner().image {
                Some(found) => self.note(&name.repository, &found.id, |_| {}),
                None => Ok(()),
            };
            if noted.is_ok() {
                self.end(&mut pulls, &intent.image);
            }
        }
    }

    /// Forgets images that were not there at `then`.
    pub fn prune(&self, ids: &HashSet<&str>, then: Timestamp) {
        let _held = self.pulls.lock();
        let folder = self.folder.join(PULLED);
        let gone = list::<Pulled>(&folder)
            .into_iter()
            .filter(|record| record.last_updated_time < then && !ids.contains(record.image_ref.as_str()));
        for record in gone {
            if let Err(error) = std::fs::remove_file(folder.join(file(&record.image_ref))) {
                tracing::warn!(%error, image = record.image_ref, "the record of an image is not removed");
            }
        }
    }
}

fn file(name: &str) -> String {
    format!("sha256-{}", sha256(name))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn list<T: DeserializeOwned>(folder: &Path) -> Vec<T> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| read(&entry.path()).ok().flatten()).collect()
}

fn is_allowed(allowed: &str, repository: &str) -> bool {
    match allowed.strip_suffix("/*") {
        Some(folder) => repository.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')),
        None => allowed == repository,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPOSITORY: &str = "q.io/team/app";

    fn secret(uid: &str, hash: &str) -> Source {
        Source::Secret(PullSecret {
            uid: uid.to_owned(),
            namespace: "d".to_owned(),
            name: "s".to_owned(),
            credential_hash: hash.to_owned(),
        })
    }

    fn account(uid: &str) -> Source {
        Source::ServiceAccount(PullAccount {
            uid: uid.to_owned(),
            namespace: "d".to_owned(),
            name: "s".to_owned(),
        })
    }

    #[test]
    fn what_a_pods_credentials_pulled_is_for_pods_that_have_them() {
        let folder = tempfile::tempdir().unwrap();
        let records = ImageRecords::open(folder.path().to_owned(), Policy::NotPreloaded);
        let verdict = || records.verdict("q.io/team/app:1", REPOSITORY, "sha256:1");
        assert_eq!(verdict(), Verdict::Free, "it was there before");
        records.begin("q.io/team/app:1").unwrap();
        assert_eq!(verdict(), Verdict::With(Vec::new()), "it comes at this moment");
        records.pulled("q.io/team/app:1", REPOSITORY, "sha256:1", &secret("u", "h"));
        records.pulled("q.io/team/app:1", REPOSITORY, "sha256:1", &account("a"));
        let found = verdict();
        for (own, expected) in [
            (vec![], false),
            (vec![secret("u", "h")], true),
            (vec![secret("u", "rotated")], true),
            (vec![secret("other", "h")], true),
            (vec![secret("other", "x")], false),
            (vec![account("a")], true),
            (vec![account("made anew")], false),
            (vec![Source::Node], false),
        ] {
            assert_eq!(found.lets_in(&own), expected, "{own:?}");
        }
        let elsewhere = records.verdict("p.io/app:1", "p.io/app", "sha256:1");
        assert_eq!(elsewhere, Verdict::With(Vec::new()), "the same image by another name");
        // another kubelet knows it, too
        let again = ImageRecords::open(folder.path().to_owned(), Policy::NotPreloaded);
        assert!(!again.verdict("q.io/team/app:1", REPOSITORY, "sha256:1").lets_in(&[]));
        records.begin("q.io/team/app:1").unwrap();
        records.pulled("q.io/team/app:1", REPOSITORY, "sha256:1", &Source::Node);
        assert_eq!(verdict(), Verdict::Free, "its registry gives it to everybody");
        assert_eq!(std::fs::read_dir(folder.path().join(PULLING)).unwrap().count(), 0);
        records.prune(&HashSet::from(["sha256:1"]), Timestamp::MAX);
        assert_eq!(std::fs::read_dir(folder.path().join(PULLED)).unwrap().count(), 1);
        records.prune(&HashSet::new(), Timestamp::MAX);
        assert_eq!(std::fs::read_dir(folder.path().join(PULLED)).unwrap().count(), 0);
    }

    #[test]
    fn the_policy_says_which_images_need_a_proof() {
        let folder = tempfile::tempdir().unwrap();
        let free = |policy: Policy, image: &str| {
            let records = ImageRecords::open(folder.path().to_owned(), policy);
            records.verdict(&format!("{image}:1"), image, "sha256:1") == Verdict::Free
        };
        let records = ImageRecords::open(folder.path().to_owned(), Policy::Always);
        records.pulled("q.io/team/app:1", REPOSITORY, "sha256:1", &secret("u", "h"));
        assert!(free(Policy::Never, REPOSITORY));
        assert!(!free(Policy::Always, "q.io/none") && !free(Policy::Always, REPOSITORY));
        let list = || Policy::NotAllowed(vec!["q.io/team/*".to_owned(), "p.io/one".to_owned()]);
        assert!(free(list(), REPOSITORY) && free(list(), "p.io/one"));
        assert!(!free(list(), "q.io/teams/app") && !free(list(), "p.io/one/two"));
    }

    #[test]
    fn a_record_that_cannot_be_read_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let records = ImageRecords::open(folder.path().to_owned(), Policy::NotPreloaded);
        records.pulled("a:1", "docker.io/library/a", "sha256:1", &Source::Node);
        std::fs::write(folder.path().join(PULLED).join(file("sha256:1")), "{").unwrap();
        assert_eq!(records.verdict("a:1", "docker.io/library/a", "sha256:1"), Verdict::With(Vec::new()));
    }
}
