//! Credentials for images out of a pod's `imagePullSecrets`, and of credential providers: which entries of docker's
//! configuration fit an image, the most specific first.
//!
//! Rule: Kubernetes documentation, "Images" ("Interpretation of config.json"): hosts may have `*` in each of their
//! parts, paths are prefixes, several entries that fit are tried in turn.

use std::collections::BTreeMap;

use base64::Engine;
use cri::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

use crate::digest::sha256;
use crate::image_records::{PullSecret, Source};

/// Under this name docker's configuration knows its own registry.
const DOCKER_HUB: &str = "index.docker.io";

/// Credentials, and where they are from.
#[derive(Debug, Clone, PartialEq)]
pub struct Credential {
    /// For the runtime.
    pub auth: AuthConfig,
    /// Whose they are.
    pub source: Source,
}

/// What a pod knows of registries.
#[derive(Debug, Default)]
pub struct Keyring {
    /// By host and path; several for one place stay in their order.
    entries: BTreeMap<String, Vec<Credential>>,
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default)]
    identitytoken: String,
}

impl Keyring {
    /// Of these Secrets; others than docker's two kinds, and broken ones, hold nothing.
    pub fn of<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut keyring = Self::default();
        for secret in secrets {
            let data =
                |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| &bytes.0[..]);
            let entries = match secret.type_.as_deref() {
                Some("kubernetes.io/dockerconfigjson") => data(".dockerconfigjson")
                    .map(|bytes| serde_json::from_slice::<DockerConfig>(bytes).map(|config| config.auths)),
                Some("kubernetes.io/dockercfg") => data(".dockercfg").map(serde_json::from_slice),
                _ => None,
            };
            match entries {
                Some(Ok(entries)) => {
                    entries.into_iter().for_each(|(place, entry)| keyring.add(&place, entry, secret))
                }
                Some(Err(_)) => {
                    let name = secret.metadata.name.as_deref().unwrap_or_default();
                    tracing::warn!(secret = name, "a pull secret cannot be read");
                }
                None => {}
            }
        }
        keyring
    }

    fn add(&mut self, place: &str, entry: Entry, secret: &Secret) {
        let (mut username, mut password) = (entry.username, entry.password);
        if !entry.auth.is_empty() {
            let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim());
            let Some((user, word)) = decoded
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok())
                .and_then(|text| text.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned())))
            else {
                return;
            };
            (username, password) = (user, word);
        }
        let auth =
            AuthConfig { username, password, identity_token: entry.identitytoken, ..AuthConfig::default() };
        let parts = [&auth.username, &auth.password, &auth.identity_token];
        let of = secret.metadata.clone();
        let secret = PullSecret {
            uid: of.uid.unwrap_or_default(),
            namespace: of.namespace.unwrap_or_default(),
            name: of.name.unwrap_or_default(),
            credential_hash: sha256(serde_json::to_vec(&parts).unwrap_or_default()),
        };
        self.insert(place, auth, Source::Secret(secret));
    }

    /// Takes in credentials for a place: a host, with a path or without, as docker writes it.
    pub fn insert(&mut self, place: &str, auth: AuthConfig, source: Source) {
        let bare = place.strip_prefix("https://").or_else(|| place.strip_prefix("http://")).unwrap_or(place);
        let (host, path) = bare.split_once('/').map_or((bare, ""), |(host, path)| (host, path));
        // docker writes the API's version into the address of its own registry
        let path = match path.split_once('/') {
            Some(("v1" | "v2", rest)) => rest,
            _ if matches!(path, "v1" | "v2") => "",
            _ => path,
        };
        let key = if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") };
        self.entries.entry(key).or_default().push(Credential { auth, source });
    }

    /// The credentials that fit a repository (`docker.io/library/nginx`), best first; none is common.
    pub fn lookup(&self, repository: &str) -> Vec<Credential> {
        // backwards: a longer path comes before its beginning
        let fitting = self.entries.iter().rev().filter(|(place, _)| fits(place, repository));
        let found: Vec<Credential> = fitting.flat_map(|(_, all)| all.clone()).collect();
        if found.is_empty() && repository.starts_with("docker.io/") {
            return self.entries.get(DOCKER_HUB).cloned().unwrap_or_default();
        }
        found
    }
}

/// Whether a place, which may have `*`, is that of a repository.
pub fn fits(place: &str, repository: &str) -> bool {
    let split = |text: &str| -> (Vec<String>, String, String) {
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
        (host.split('.').map(str::to_owned).collect(), port.to_owned(), path.to_owned())
    };
    let ((hosts, port, path), (own_hosts, own_port, own_path)) = (split(place), split(repository));
    port == own_port
        && hosts.len() == own_hosts.len()
        && own_path.starts_with(&path)
        && hosts.iter().zip(&own_hosts).all(|(pattern, part)| glob(pattern.as_bytes(), part.as_bytes()))
}

/// `*` for any number of characters, `?` for one, `[a-c]` for one of a set. Only the last `*` is tried anew: the pattern is
/// somebody's, and must not cost more than its length for each character.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut rest, mut at, mut star) = (pattern, 0, None);
    loop {
        if let Some((b'*', after)) = rest.split_first() {
            rest = after;
            star = Some((after, at));
            continue;
        }
        match (text.get(at), one(rest)) {
            (None, _) if rest.is_empty() => return true,
            (Some(found), Some((takes, after))) if takes(*found) => {
                rest = after;
                at += 1;
            }
            _ => {
                let Some((after, begin)) = star.filter(|(_, begin)| *begin < text.len()) else {
                    return false;
                };
                rest = after;
                at = begin + 1;
                star = Some((after, at));
            }
        }
    }
}

/// What the pattern's first element takes, and the elements after it; none at its end, and for a set that does not end.
fn one(pattern: &[u8]) -> Option<(impl Fn(u8) -> bool + '_, &[u8])> {
    let (first, rest) = pattern.split_first()?;
    let (set, rest) = match first {
        b'[' => {
            let end = rest.iter().position(|byte| *byte == b']')?;
            (&rest[..end], &rest[end + 1..])
        }
        _ => (&pattern[..1], rest),
    };
    let is_set = *first == b'[';
    let takes = move |found: u8| match first {
        _ if is_set => in_set(set, found),
        b'?' => true,
        byte => *byte == found,
    };
    Some((takes, rest))
}

/// Whether a set (`a-c`, `^xy`) holds a byte.
fn in_set(set: &[u8], found: u8) -> bool {
    let (set, wanted) = set.strip_prefix(b"^").map_or((set, true), |set| (set, false));
    let mut at = 0;
    let mut hit = false;
    while let Some(low) = set.get(at) {
        let range = set.get(at + 1) == Some(&b'-') && at + 2 < set.len();
        let high = if range { &set[at + 2] } else { low };
        hit |= (low..=high).contains(&&found);
        at += if range { 3 } else { 1 };
    }
    hit == wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use serde_json::{Value, json};

    fn keyring(auths: Value) -> Keyring {
        let bytes = json!({ "auths": auths }).to_string().into_bytes();
        Keyring::of([&Secret {
            type_: Some("kubernetes.io/dockerconfigjson".to_owned()),
            data: Some([(".dockerconfigjson".to_owned(), ByteString(bytes))].into()),
            ..Secret::default()
        }])
    }

    fn users(auths: &Value, image: &str) -> Vec<String> {
        let repository = crate::image_name::parse(image).unwrap().repository;
        keyring(auths.clone()).lookup(&repository).into_iter().map(|one| one.auth.username).collect()
    }

    #[test]
    fn the_most_specific_entry_comes_first() {
        let auths = json!({
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
            "q.io": {"username": "all", "password": "x"},
            "q.io/team": {"username": "team", "password": "x"},
            "*.k.io": {"username": "wild", "password": "x"},
            "p.io:5000": {"username": "port", "password": "x"},
            "r[1-3].io": {"username": "set", "password": "x"},
            "d.io": {"auth": "bWU6cHc="},
            "broken.io": {"auth": "!"},
        });
        let check = |image: &str, expected: &[&str]| assert_eq!(users(&auths, image), expected, "{image}");
        check("nginx", &["hub"]);
        check("q.io/team/app:1", &["team", "all"]);
        check("q.io/other", &["all"]);
        check("a.k.io/x", &["wild"]);
        check("a.b.k.io/x", &[]);
        check("k.io/x", &[]);
        check("p.io:5000/x", &["port"]);
        check("p.io/x", &[]);
        check("r2.io/x", &["set"]);
        check("r4.io/x", &[]);
        check("d.io/x", &["me"]);
        check("broken.io/x", &[]);
        assert_eq!(keyring(auths.clone()).lookup("d.io/x")[0].auth.password, "pw");
    }

    #[test]
    fn patterns_take_what_they_say_and_a_hostile_one_costs_little() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("a*", "a", true),
            ("a*c*e", "abcdce", true),
            ("*b", "aab", true),
            ("*b", "aba", false),
            ("a?c", "abc", true),
            ("a?", "a", false),
            ("[^x]", "a", true),
            ("[^x]", "x", false),
            ("[a", "[a", false),
            ("*[0-9]", "ab7", true),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), expected, "{pattern} {text}");
        }
        // tries beyond the last star would be 2 to the power of 40
        assert!(!glob(format!("{}b", "*a".repeat(40)).as_bytes(), "a".repeat(200).as_bytes()));
    }

    #[test]
    fn only_dockers_two_kinds_of_secrets_count() {
        let secret = |kind: &str, key: &str, text: &str| Secret {
            type_: Some(kind.to_owned()),
            data: Some([(key.to_owned(), ByteString(text.as_bytes().to_vec()))].into()),
            ..Secret::default()
        };
        let old = secret("kubernetes.io/dockercfg", ".dockercfg", r#"{"q.io": {"username": "old"}}"#);
        let opaque = secret("Opaque", ".dockercfg", r#"{"q.io": {"username": "no"}}"#);
        let broken = secret("kubernetes.io/dockercfg", ".dockercfg", "{");
        let found = Keyring::of([&old, &opaque, &broken]).lookup("q.io/x");
        assert_eq!(found.iter().map(|one| one.auth.username.as_str()).collect::<Vec<_>>(), ["old"]);
    }
}
