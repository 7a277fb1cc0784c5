//! Keys held elsewhere: the client of a KMS v2 plugin on a unix socket.
//!
//! Rule: KEP-3299 and the published `k8s.io/kms/apis/v2` protocol. The plugin seals a seed; values are sealed under
//! keys expanded from it, so the plugin is asked once per seed and not once per value. A task asks for the status once
//! a minute and takes a new seed when the plugin's key changes; writes are refused when no good status was seen for
//! three minutes, because they might be sealed under a key that was withdrawn.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use super::ciphers::{self, Cipher};
use super::config::{ConfigError, KmsConfiguration};

/// How often the plugin is asked for its status.
const STATUS: Duration = Duration::from_secs(60);
/// How long writes go on after the last good status.
const GRACE: Duration = Duration::from_secs(180);
/// Seeds kept open; each is one key change of the plugin.
const SEEDS: usize = 1024;
/// Longest sealed seed and longest key id, in bytes.
const SHORT: usize = 1024;
/// Most bytes of annotations.
const ANNOTATIONS: usize = 32 * 1024;

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: HashMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(map = "string, bytes", tag = "3")]
    annotations: HashMap<String, Vec<u8>>,
}

/// What stands in the store.
#[derive(Clone, PartialEq, Message)]
struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    encrypted_dek_source: Vec<u8>,
    #[prost(map = "string, bytes", tag = "4")]
    annotations: HashMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    encrypted_dek_source_type: i32,
}

/// `encrypted_dek_source_type`: the source is an AES-GCM key.
const SOURCE_KEY: i32 = 0;
/// ... is a seed that keys are expanded from.
const SOURCE_SEED: i32 = 1;

/// What the plugin answered or why it did not; shown to the administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KmsError(String);

/// The seed that writes use.
struct Current {
    cipher: Arc<Cipher>,
    sealed: Vec<u8>,
    key_id: String,
    annotations: HashMap<String, Vec<u8>>,
}

/// One plugin.
pub struct Kms {
    name: String,
    timeout: Duration,
    channel: Channel,
    current: RwLock<Option<Arc<Current>>>,
    seen: Mutex<Option<Instant>>,
    /// One refresh at a time: two would take two seeds.
    refreshing: tokio::sync::Mutex<()>,
    opened: Mutex<HashMap<Vec<u8>, Arc<Cipher>>>,
}

impl Kms {
    /// Connects when it is first used; begins to ask for the status.
    pub fn start(config: &KmsConfiguration) -> Result<Arc<Self>, ConfigError> {
        let failed = |reason: &str| ConfigError::Kms {
            name: config.name.clone(),
            endpoint: config.endpoint.clone(),
            reason: reason.to_owned(),
        };
        let socket = config.socket().ok_or_else(|| failed("not a unix socket"))?;
        let timeout = config.timeout().ok_or_else(|| failed("no timeout"))?;
        let connector = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        let channel = tonic::transport::Endpoint::from_static("http://localhost")
            .connect_with_connector_lazy(connector);
        let kms = Arc::new(Self {
            name: config.name.clone(),
            timeout,
            channel,
            current: RwLock::default(),
            seen: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
            opened: Mutex::default(),
        });
        tokio::spawn(follow(Arc::downgrade(&kms)));
        Ok(kms)
    }

    /// Its name in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The id of the key that the plugin seals with now.
    pub fn key_id(&self) -> Option<String> {
        self.current.read().as_ref().map(|c| c.key_id.clone())
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, KmsError>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        let failed = |why: String| KmsError(format!("key management service {:?}: {why}", self.name));
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        let codec: tonic_prost::ProstCodec<Q, A> = tonic_prost::ProstCodec::default();
        let answer = tokio::time::timeout(self.timeout, async {
            client.ready().await.map_err(|e| failed(format!("{:?}", e)))?;
            let path = PathAndQuery::from_static(method);
            let answer = client.unary(tonic::Request::new(request), path, codec).await;
            answer.map_err(|status| failed(status.message().to_owned()))
        });
        match answer.await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(failed(format!("no answer within {:?}", self.timeout))),
        }
    }

    /// Asks for the status; takes a new seed where the plugin's key has changed.
    pub async fn refresh(&self) -> Result<(), KmsError> {
        let _one = self.refreshing.lock().await;
        let status: StatusResponse = self.call("/v2.KeyManagementService/Status", StatusRequest {}).await?;
        let failed = |why: String| Err(KmsError(format!("key management service {:?}: {why}", self.name)));
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            return failed(format!("expected KMS API version v2, got {:?}", status.version));
        }
        if status.healthz != "ok" {
            return failed(format!("got unexpected healthz status: {}", status.healthz));
        }
        let known = self.current.read().clone();
        if known.is_none_or(|current| current.key_id != status.key_id) {
            let fresh = self.new_seed(&status.key_id).await?;
            *self.current.write() = Some(Arc::new(fresh));
        }
        *self.seen.lock() = Some(Instant::now());
        Ok(())
    }

    async fn new_seed(&self, expected: &str) -> Result<Current, KmsError> {
        let seed: [u8; 32] = ciphers::random().map_err(|e| KmsError(e.to_string()))?;
        let request = EncryptRequest { plaintext: seed.to_vec(), uid: uuid::Uuid::new_v4().to_string() };
        let answer: EncryptResponse = self.call("/v2.KeyManagementService/Encrypt", request).await?;
        let failed = |why: &str| KmsError(format!("key management service {:?}: {why}", self.name));
        if answer.key_id != expected {
            return Err(failed("the key id of Encrypt differs from that of Status"));
        }
        if answer.key_id.is_empty() || answer.key_id.len() > SHORT {
            return Err(failed("the key id is empty or over 1 KiB"));
        }
        if answer.ciphertext.is_empty() || answer.ciphertext.len() > SHORT {
            return Err(failed("the sealed seed is empty or over 1 KiB"));
        }
        if answer.annotations.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() > ANNOTATIONS {
            return Err(failed("the annotations are over 32 KiB"));
        }
        let cipher = Arc::new(Cipher::seeded(&seed).map_err(|e| KmsError(e.to_string()))?);
        self.remember(answer.ciphertext.clone(), cipher.clone());
        Ok(Current {
            cipher,
            sealed: answer.ciphertext,
            key_id: answer.key_id,
            annotations: answer.annotations,
        })
    }

    fn remember(&self, sealed: Vec<u8>, cipher: Arc<Cipher>) {
        let mut opened = self.opened.lock();
        if opened.len() >= SEEDS {
            opened.clear();
        }
        opened.insert(sealed, cipher);
    }

    /// Appends the sealed `plain` to `out`.
    pub async fn seal(&self, plain: &[u8], place: &[u8], out: &mut Vec<u8>) -> Result<(), KmsError> {
        let is_fresh = self.seen.lock().is_some_and(|at| at.elapsed() < GRACE);
        if !is_fresh {
            self.refresh().await?;
        }
        let Some(current) = self.current.read().clone() else {
            return Err(KmsError(format!("key management service {:?}: no key yet", self.name)));
        };
        let mut data = Vec::with_capacity(plain.len() + 64);
        current.cipher.seal(plain, place, &mut data).map_err(|e| KmsError(e.to_string()))?;
        let object = EncryptedObject {
            encrypted_data: data,
            key_id: current.key_id.clone(),
            encrypted_dek_source: current.sealed.clone(),
            annotations: current.annotations.clone(),
            encrypted_dek_source_type: SOURCE_SEED,
        };
        out.reserve(object.encoded_len());
        // a Vec takes any length
        let _ = object.encode(out);
        Ok(())
    }

    /// Opens a value; true where the plugin has another key now.
    pub async fn open(&self, sealed: &[u8], place: &[u8]) -> Result<(Vec<u8>, bool), KmsError> {
        let object = EncryptedObject::decode(sealed).map_err(|e| KmsError(e.to_string()))?;
        let known = self.opened.lock().get(&object.encrypted_dek_source).cloned();
        let cipher = match known {
            Some(cipher) => cipher,
            None => self.fetch(&object).await?,
        };
        let plain = cipher.open(&object.encrypted_data, place).map_err(|e| KmsError(e.to_string()))?;
        if self.key_id().is_none() {
            // reading goes on without a status; what is read then counts as stale
            let _ = self.refresh().await;
        }
        let is_stale = self.key_id().is_none_or(|now| now != object.key_id)
            || object.encrypted_dek_source_type != SOURCE_SEED;
        Ok((plain, is_stale))
    }

    async fn fetch(&self, object: &EncryptedObject) -> Result<Arc<Cipher>, KmsError> {
        let request = DecryptRequest {
            ciphertext: object.encrypted_dek_source.clone(),
            uid: uuid::Uuid::new_v4().to_string(),
            key_id: object.key_id.clone(),
            annotations: object.annotations.clone(),
        };
        let answer: DecryptResponse = self.call("/v2.KeyManagementService/Decrypt", request).await?;
        let cipher = match object.encrypted_dek_source_type {
            SOURCE_SEED => Cipher::seeded(&answer.plaintext),
            SOURCE_KEY => Cipher::gcm(&answer.plaintext),
            other => return Err(KmsError(format!("unknown encryptedDEKSourceType {other}"))),
        };
        let cipher = Arc::new(cipher.map_err(|e| KmsError(e.to_string()))?);
        self.remember(object.encrypted_dek_source.clone(), cipher.clone());
        Ok(cipher)
    }
}

/// Ends when the plugin's last user does.
async fn follow(kms: Weak<Kms>) {
    let mut ticks = tokio::time::interval(STATUS);
    loop {
        ticks.tick().await;
        let Some(kms) = kms.upgrade() else { return };
        if let Err(error) = kms.refresh().await {
            tracing::warn!(%error, "key management service");
        }
    }
}
