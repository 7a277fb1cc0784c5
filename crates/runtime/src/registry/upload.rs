//! Content and manifests into a registry (OCI distribution specification, "Pushing").

use std::path::PathBuf;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};

use super::{
    RegistryError, Session,
    session::{Call, Endpoint, Payload, escape, resolve},
};
use crate::image::progress::{Part, State};

const ACTIONS: &str = "pull,push";

/// Puts the file `path` of `size` bytes with `digest` there, unless the registry has it.
pub(crate) async fn push_blob(
    session: &Session,
    endpoint: &Endpoint,
    digest: &str,
    path: PathBuf,
    size: u64,
    part: &Part,
) -> Result<(), RegistryError> {
    let look = Call::new(Method::HEAD, endpoint.uri(&format!("blobs/{digest}"))?);
    let mut patience = session.patience();
    loop {
        let tried = async {
            let response = session.send(endpoint, ACTIONS, &look).await?;
            match response.status() {
                StatusCode::OK => return Ok(State::Present),
                StatusCode::NOT_FOUND => {}
                _ => return Err(session.failure(endpoint.host(), response).await),
            }
            part.set(State::Moving);
            upload(session, endpoint, digest, &path, size, part).await?;
            Ok(State::Done)
        };
        match tried.await {
            Ok(state) => {
                part.set(state);
                return Ok(());
            }
            Err(error) => patience.bear(error).await?,
        }
    }
}

async fn upload(
    session: &Session,
    endpoint: &Endpoint,
    digest: &str,
    path: &std::path::Path,
    size: u64,
    part: &Part,
) -> Result<(), RegistryError> {
    let host = endpoint.host();
    let begin = Call::new(Method::POST, endpoint.uri("blobs/uploads/")?);
    let response = session.get(endpoint, ACTIONS, &begin).await?;
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let place = location.and_then(|to| resolve(&begin.uri, to));
    let place = place.ok_or_else(|| RegistryError::invalid(host, "it names no place for an upload"))?;
    // whoever takes the content gets the credentials: only the registry itself may
    if place.authority() != Some(&endpoint.authority) || place.scheme() != Some(&endpoint.scheme) {
        return Err(RegistryError::invalid(host, format!("it wants the upload at {place}, another host")));
    }
    let joint = if place.query().is_some() { '&' } else { '?' };
    let uri = format!("{place}{joint}digest={}", escape(digest))
        .parse()
        .map_err(|_| RegistryError::invalid(host, "it names no valid place for an upload"))?;
    let mut call = Call::new(Method::PUT, uri);
    call.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    call.payload = Payload::File(path.to_owned(), size, part.clone());
    session.get(endpoint, ACTIONS, &call).await.map(drop)
}

/// Puts a manifest under `reference` (a tag or its digest).
pub(crate) async fn push_manifest(
    session: &Session,
    endpoint: &Endpoint,
    reference: &str,
    media_type: &str,
    manifest: Bytes,
) -> Result<(), RegistryError> {
    let mut call = Call::new(Method::PUT, endpoint.uri(&format!("manifests/{reference}"))?);
    let kind = HeaderValue::try_from(media_type)
        .map_err(|_| RegistryError::invalid(endpoint.host(), "the manifest's media type cannot be sent"))?;
    call.headers.insert(header::CONTENT_TYPE, kind);
    call.payload = Payload::Bytes(manifest);
    let mut patience = session.patience();
    loop {
        match session.get(endpoint, ACTIONS, &call).await {
            Ok(_) => return Ok(()),
            Err(error) => patience.bear(error).await?,
        }
    }
}
