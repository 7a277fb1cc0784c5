//! The typed calls: build the request, send it, read object or `Status`.

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Body, Client, Error, Kind, TransportError};

/// Restricts a list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// For example `app=web`.
    pub label_selector: String,
    /// For example `spec.nodeName=a`.
    pub field_selector: String,
}

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Delete only the object with this uid.
    pub uid: Option<String>,
    /// Delete only this revision.
    pub resource_version: Option<String>,
    /// Seconds; 0 removes at once.
    pub grace_period_seconds: Option<i64>,
    /// `Background`, `Foreground` or `Orphan`.
    pub propagation_policy: Option<&'static str>,
}

/// A change to send as PATCH.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' strategic merge patch.
    Strategic(Value),
    /// RFC 6902: the list of operations.
    Json(Value),
    /// Server-side apply.
    Apply {
        /// The field manager.
        manager: String,
        /// Take over fields that others own.
        force: bool,
        /// The applied configuration.
        object: Value,
    },
}

/// The URL path of a collection, or of an object in it (`name`), or of its subresource.
pub fn path_of(group: &str, version: &str, plural: &str, ns: &str, name: &str, sub: &str) -> String {
    let mut path =
        if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    if !ns.is_empty() {
        path.push_str("/namespaces/");
        path.push_str(ns);
    }
    for part in [plural, name, sub] {
        if !part.is_empty() {
            path.push('/');
            path.push_str(part);
        }
    }
    path
}

fn kind_path<K: Kind>(ns: &str, name: &str, sub: &str) -> String {
    path_of(K::GROUP, K::VERSION, K::URL_PATH_SEGMENT, ns, name, sub)
}

/// Percent-encodes a query value.
pub fn encode(text: &str) -> String {
    text.bytes()
        .map(|b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => (b as char).to_string(),
            _ => format!("%{b:02X}"),
        })
        .collect()
}

impl Client {
    /// Reads one object. `ns` is empty for cluster-scoped kinds.
    pub async fn get<K: Kind>(&self, ns: &str, name: &str) -> Result<K, Error> {
        self.call(Method::GET, &kind_path::<K>(ns, name, ""), None::<&()>).await
    }

    /// Lists objects of one namespace, or of all where `ns` is empty.
    pub async fn list<K: Kind>(&self, ns: &str, options: &ListOptions) -> Result<Vec<K>, Error> {
        #[derive(serde::Deserialize)]
        struct List {
            #[serde(default)]
            items: Option<Vec<Value>>,
        }
        let path = format!(
            "{}?labelSelector={}&fieldSelector={}",
            kind_path::<K>(ns, "", ""),
            encode(&options.label_selector),
            encode(&options.field_selector)
        );
        let list: List = self.call(Method::GET, &path, None::<&()>).await?;
        list.items
            .unwrap_or_default()
            .into_iter()
            .map(|mut item| {
                // items of a list may leave out what the list's own kind says
                item["apiVersion"] = json!(K::API_VERSION);
                item["kind"] = json!(K::KIND);
                serde_json::from_value(item)
                    .map_err(|source| Error::Decode { what: format!("GET {path}"), source })
            })
            .collect()
    }

    /// Creates an object.
    pub async fn create<K: Kind>(&self, ns: &str, object: &K) -> Result<K, Error> {
        self.call(Method::POST, &kind_path::<K>(ns, "", ""), Some(object)).await
    }

    /// Replaces an object (409 where its resourceVersion is stale).
    pub async fn update<K: Kind>(&self, ns: &str, object: &K) -> Result<K, Error> {
        let name = object.metadata().name.as_deref().unwrap_or_default();
        self.call(Method::PUT, &kind_path::<K>(ns, name, ""), Some(object)).await
    }

    /// Replaces an object's status.
    pub async fn update_status<K: Kind>(&self, ns: &str, object: &K) -> Result<K, Error> {
        let name = object.metadata().name.as_deref().unwrap_or_default();
        self.call(Method::PUT, &kind_path::<K>(ns, name, "status"), Some(object)).await
    }

    /// Patches an object.
    pub async fn patch<K: Kind>(&self, ns: &str, name: &str, patch: &Patch) -> Result<K, Error> {
        self.patch_path(&kind_path::<K>(ns, name, ""), patch).await
    }

    /// Patches an object's status.
    pub async fn patch_status<K: Kind>(&self, ns: &str, name: &str, patch: &Patch) -> Result<K, Error> {
        self.patch_path(&kind_path::<K>(ns, name, "status"), patch).await
    }

    /// Deletes an object; done when the server has accepted it, not when the object is gone.
    pub async fn delete<K: Kind>(&self, ns: &str, name: &str, options: &DeleteOptions) -> Result<(), Error> {
        self.delete_path(&kind_path::<K>(ns, name, ""), options).await
    }

    /// Deletes whatever stands at `path`.
    pub async fn delete_path(&self, path: &str, options: &DeleteOptions) -> Result<(), Error> {
        let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(seconds) = options.grace_period_seconds {
            body["gracePeriodSeconds"] = json!(seconds);
        }
        if let Some(policy) = options.propagation_policy {
            body["propagationPolicy"] = json!(policy);
        }
        if let Some(uid) = &options.uid {
            body["preconditions"]["uid"] = json!(uid);
        }
        if let Some(version) = &options.resource_version {
            body["preconditions"]["resourceVersion"] = json!(version);
        }
        self.call::<_, Value>(Method::DELETE, path, Some(&body)).await.map(drop)
    }

    /// POSTs to a subresource, for example `binding`, `token` or `eviction`.
    pub async fn create_subresource<K: Kind, B, R>(
        &self,
        ns: &str,
        name: &str,
        sub: &str,
        body: &B,
    ) -> Result<R, Error>
    where
        B: Serialize + Sync,
        R: DeserializeOwned,
    {
        self.call(Method::POST, &kind_path::<K>(ns, name, sub), Some(body)).await
    }

    /// Sends JSON to any path and reads JSON.
    pub async fn call<B: Serialize + ?Sized, R: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<R, Error> {
        let bytes = match body {
            Some(body) => encode_body(&method, path, body)?,
            None => Bytes::new(),
        };
        let mut request = Request::builder().method(&method).uri(path);
        if !bytes.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        self.decode(&method, path, request.body(bytes)?).await
    }

    /// Patches whatever stands at `path`.
    pub async fn patch_path<R: DeserializeOwned>(&self, path: &str, patch: &Patch) -> Result<R, Error> {
        let (content_type, body, query) = match patch {
            Patch::Merge(body) => ("application/merge-patch+json", body, String::new()),
            Patch::Strategic(body) => ("application/strategic-merge-patch+json", body, String::new()),
            Patch::Json(body) => ("application/json-patch+json", body, String::new()),
            Patch::Apply { manager, force, object } => (
                "application/apply-patch+yaml",
                object,
                format!("?fieldManager={}&force={force}", encode(manager)),
            ),
        };
        let bytes = encode_body(&Method::PATCH, path, body)?;
        let request = Request::patch(format!("{path}{query}"))
            .header(header::CONTENT_TYPE, content_type)
            .body(bytes)?;
        self.decode(&Method::PATCH, path, request).await
    }

    async fn decode<R: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        request: Request<Bytes>,
    ) -> Result<R, Error> {
        let answer = self.request(request).await?;
        let (parts, body) = answer.into_parts();
        let what = || format!("{method} {path}");
        if parts.status.is_success() {
            return serde_json::from_slice(&body).map_err(|source| Error::Decode { what: what(), source });
        }
        Err(api_error(parts.status, &body))
    }

    /// Sends a request as it is and collects the answer, whatever its status.
    pub async fn request(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        let (parts, body) = self.send(request).await?.into_parts();
        let bytes = body.collect().await.map_err(TransportError::Broken)?.to_bytes();
        Ok(Response::from_parts(parts, bytes))
    }

    /// Sends a request as it is; the answer's body streams.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        Ok(self.transport().send(request).await?)
    }
}

fn encode_body<B: Serialize + ?Sized>(method: &Method, path: &str, body: &B) -> Result<Bytes, Error> {
    serde_json::to_vec(body)
        .map(Bytes::from)
        .map_err(|source| Error::Decode { what: format!("{method} {path}"), source })
}

/// The error an unsuccessful answer stands for; an answer without a `Status` becomes one.
pub(crate) fn api_error(code: http::StatusCode, body: &[u8]) -> Error {
    let status = serde_json::from_slice::<Status>(body).unwrap_or_else(|_| Status {
        code: Some(code.as_u16().into()),
        message: Some(String::from_utf8_lossy(body).trim().chars().take(1024).collect()),
        ..Status::default()
    });
    Error::Api(Box::new(Status { code: status.code.or(Some(code.as_u16().into())), ..status }))
}
