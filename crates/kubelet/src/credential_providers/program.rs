//! A program that is asked for credentials: a request on its standard input, a response on its standard output
//! (credentialprovider.kubelet.k8s.io).

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cri::v1::AuthConfig;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;
use tokio::time::Instant;

use super::configuration::{ProviderError, Settings, Variable};
use crate::metrics;

/// The version in which service accounts are told.
pub const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
/// Versions that programs may speak.
pub const VERSIONS: [&str; 3] =
    [V1, "credentialprovider.kubelet.k8s.io/v1alpha1", "credentialprovider.kubelet.k8s.io/v1beta1"];
/// A program that takes longer is ended.
const LIMIT: Duration = Duration::from_secs(60);
/// Most bytes of an answer, and of what is said about a failure.
const ANSWER: u64 = 1 << 20;
const COMPLAINT: u64 = 4 << 10;

/// A program with its arguments.
pub struct Program {
    name: String,
    file: PathBuf,
    version: String,
    args: Vec<String>,
    env: Vec<Variable>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    kind: &'static str,
    api_version: &'a str,
    image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service_account_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_account_annotations: Option<&'a BTreeMap<String, String>>,
}

/// What a program said.
#[derive(Debug, Clone)]
pub struct Response {
    /// For what it counts.
    pub cache_key_type: CacheKeyType,
    /// How long; nothing: as long as the configuration says.
    pub cache_duration: Option<Duration>,
    /// Credentials by place.
    pub auth: BTreeMap<String, AuthConfig>,
}

/// For what an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum CacheKeyType {
    /// For the image.
    Image,
    /// For all images of its registry.
    Registry,
    /// For all images.
    Global,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Answer {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    cache_key_type: CacheKeyType,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

impl Program {
    /// The program of a provider.
    pub fn find(folder: &Path, settings: &Settings) -> Result<Self, ProviderError> {
        let file = folder.join(&settings.name);
        let runs = std::fs::metadata(&file)
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
        if !runs {
            return Err(ProviderError::Program(file));
        }
        Ok(Self {
            name: settings.name.clone(),
            file,
            version: settings.api_version.clone(),
            args: settings.args.clone(),
            env: settings.env.clone(),
        })
    }

    /// Asks about an image; nothing where it failed, which goes to the log.
    pub async fn ask(
        &self,
        image: &str,
        token: &str,
        annotations: Option<&BTreeMap<String, String>>,
    ) -> Option<Response> {
        let begin = Instant::now();
        let ran = tokio::time::timeout(LIMIT, self.run(image, token, annotations)).await;
        metrics::CREDENTIAL_PROVIDER.time(&[&self.name], begin.elapsed());
        let ran = ran.unwrap_or_else(|_| Err(format!("it took longer than {} s", LIMIT.as_secs())));
        if ran.is_err() {
            metrics::CREDENTIAL_PROVIDER_ERRORS.add(&[&self.name]);
        }
        match ran.and_then(|said| self.understand(&said)) {
            Ok(response) => Some(response),
            Err(why) => {
                tracing::warn!(why, provider = self.name, image, "a credential provider gives nothing");
                None
            }
        }
    }

    async fn run(
        &self,
        image: &str,
        token: &str,
        annotations: Option<&BTreeMap<String, String>>,
    ) -> Result<Vec<u8>, String> {
        let request = Request {
            kind: "CredentialProviderRequest",
            api_version: &self.version,
            image,
            service_account_token: token,
            service_account_annotations: annotations.filter(|annotations| !annotations.is_empty()),
        };
        let request = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        let failed = |error: std::io::Error| error.to_string();
        let mut command = Command::new(&self.file);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|variable| (&variable.name, &variable.value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let tell = async move {
            if let Some(mut stdin) = stdin {
                // a program need not read what it is asked
                let _ = stdin.write_all(&request).await;
            }
        };
        let ((), said, complaint, ended) =
            tokio::join!(tell, take(stdout, ANSWER), take(stderr, COMPLAINT), child.wait());
        let ended = ended.map_err(failed)?;
        if !ended.success() {
            let mut complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
            // what a program says goes to the log
            if !token.is_empty() {
                complaint = complaint.replace(token, "(the token)");
            }
            return Err(format!("{ended}: {complaint}"));
        }
        Ok(said)
    }

    /// Reads a response. It may hold credentials, so that no error says what stands in it.
    fn understand(&self, said: &[u8]) -> Result<Response, String> {
        const BROKEN: &str = "error decoding credential provider plugin response from stdout";
        let head: Head = serde_json::from_slice(said).map_err(|_| BROKEN)?;
        if head.api_version != self.version {
            return Err(format!(
                "apiVersion from credential plugin response did not match expected apiVersion:{}, actual apiVersion:{}",
                self.version, head.api_version
            ));
        }
        if head.kind != "CredentialProviderResponse" {
            return Err(format!("unexpected kind {:?}", head.kind));
        }
        let answer: Answer = serde_json::from_slice(said).map_err(|_| BROKEN)?;
        let cache_duration = match &answer.cache_duration {
            // a negative one is over already
            Some(text) => {
                let nanos = api::duration::parse(text).map_err(|_| BROKEN)?;
                Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
            }
            None => None,
        };
        let auth = answer.auth.unwrap_or_default().into_iter().map(|(place, login)| {
            let Login { username, password } = login;
            (place, AuthConfig { username, password, ..AuthConfig::default() })
        });
        Ok(Response { cache_key_type: answer.cache_key_type, cache_duration, auth: auth.collect() })
    }
}

/// What comes, up to `limit` bytes; the rest is read and forgotten, so that the writer is not held up.
async fn take(from: Option<impl AsyncRead + Unpin>, limit: u64) -> Vec<u8> {
    let mut found = Vec::new();
    if let Some(mut from) = from {
        // what came before an error counts
        let _ = (&mut from).take(limit).read_to_end(&mut found).await;
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
    found
}
