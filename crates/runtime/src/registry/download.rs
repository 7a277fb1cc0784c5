//! Content by digest into a file: resumed where a connection broke, never larger than announced, hashed on the way.

use std::{
    fs,
    io::{self, Read, Write},
    path::PathBuf,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::body::Incoming;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use super::{
    RegistryError, Session,
    session::{Call, Endpoint},
};
use crate::image::{archive::hex, config::Descriptor, progress::Part};

/// Chunks of a body that wait for the disk.
const WAITING: usize = 32;
/// After so many bytes a broken connection counts as the first again.
const PROGRESS: u64 = 1 << 20;

/// A file that grows, and the digest of all in it. Written by a thread of its own, so that hashing and the disk
/// hold no other task up.
pub(crate) struct Intake {
    chunks: mpsc::Sender<Bytes>,
    task: JoinHandle<io::Result<String>>,
    /// Bytes taken in so far, those that were there included.
    pub(crate) taken: u64,
}

impl Intake {
    /// Goes on with what is in `path`, if it is at most `size` bytes. `guard` lives until the file is not
    /// touched any more, also when the caller goes away.
    pub(crate) async fn open(
        path: PathBuf,
        size: u64,
        guard: impl Send + 'static,
    ) -> Result<Intake, RegistryError> {
        let (chunks, incoming) = mpsc::channel(WAITING);
        let (tell, told) = oneshot::channel();
        let task = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            write(path, size, tell, incoming)
        });
        match told.await {
            Ok(taken) => Ok(Intake { chunks, task, taken }),
            Err(_) => Err(ended(task.await)),
        }
    }

    async fn push(&mut self, chunk: Bytes) -> Result<(), RegistryError> {
        let count = chunk.len() as u64;
        if self.chunks.send(chunk).await.is_err() {
            // the thread says why
            return Err(ended((&mut self.task).await));
        }
        self.taken += count;
        Ok(())
    }

    /// The digest of the file, `sha256:<hex>`.
    pub(crate) async fn finish(self) -> Result<String, RegistryError> {
        drop(self.chunks);
        match self.task.await {
            Ok(Ok(digest)) => Ok(digest),
            other => Err(ended(other)),
        }
    }
}

fn ended(outcome: Result<io::Result<String>, tokio::task::JoinError>) -> RegistryError {
    match outcome {
        Ok(Err(error)) => error.into(),
        Ok(Ok(_)) => io::Error::other("the content was not taken in").into(),
        Err(error) => io::Error::other(error).into(),
    }
}

fn write(
    path: PathBuf,
    size: u64,
    tell: oneshot::Sender<u64>,
    mut incoming: mpsc::Receiver<Bytes>,
) -> io::Result<String> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut options = fs::File::options();
    let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(named)?;
    let mut hasher = Sha256::new();
    let mut there = file.metadata()?.len();
    if there > size {
        file.set_len(0)?;
        there = 0;
    }
    let mut buffer = vec![0; 128 * 1024];
    let mut left = there;
    while left > 0 {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..count]);
        left = left.saturating_sub(count as u64);
    }
    drop(buffer);
    // the caller may have gone
    let _ = tell.send(there);
    while let Some(chunk) = incoming.blocking_recv() {
        if let Err(error) = file.write_all(&chunk) {
            if error.kind() == io::ErrorKind::StorageFull {
                // a full disk is not made fuller by what nobody can use
                drop(fs::remove_file(&path));
            }
            return Err(named(error));
        }
        hasher.update(&chunk);
    }
    Ok(format!("sha256:{}", hex(&hasher.finalize())))
}

/// Fetches `descriptor` from `endpoint` into `intake`, which may hold its beginning already. `elsewhere`: it may be
/// asked for at another place, too.
pub(crate) async fn fetch(
    session: &Session,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    elsewhere: bool,
    intake: &mut Intake,
    part: &Part,
) -> Result<(), RegistryError> {
    let mut patience = session.patience().or_elsewhere(elsewhere);
    let mut ranges = true;
    let mut counted = intake.taken;
    part.at(intake.taken);
    while intake.taken < descriptor.size {
        let outcome = attempt(session, endpoint, descriptor, &mut ranges, intake, part).await;
        let Err(error) = outcome else { continue };
        if intake.taken >= counted + PROGRESS {
            patience.renew(session);
            counted = intake.taken;
        }
        patience.bear(error).await?;
    }
    Ok(())
}

/// One request. Where the registry turns out to have no `ranges`, the next one is for the whole.
async fn attempt(
    session: &Session,
    endpoint: &Endpoint,
    descriptor: &Descriptor,
    ranges: &mut bool,
    intake: &mut Intake,
    part: &Part,
) -> Result<(), RegistryError> {
    let host = endpoint.host();
    let mut call = Call::new(Method::GET, endpoint.uri(&format!("blobs/{}", descriptor.digest))?);
    let ranged = intake.taken > 0 && *ranges;
    if ranged {
        let range = HeaderValue::try_from(format!("bytes={}-", intake.taken));
        call.headers.extend(range.ok().map(|range| (header::RANGE, range)));
    }
    let response = session.send(endpoint, "pull", &call).await?;
    let length = response.headers().get(header::CONTENT_LENGTH);
    let length: Option<u64> = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let from = match response.status() {
        StatusCode::PARTIAL_CONTENT if ranged && begin(response.headers()) == Some(intake.taken) => {
            intake.taken
        }
        // the whole again: what is there is passed over
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if ranged => {
            *ranges = false;
            return Ok(());
        }
        status if status.is_success() => {
            return Err(RegistryError::invalid(host, format!("it answers {status} to a download")));
        }
        _ => return Err(session.failure(host, response).await),
    };
    if length.is_some_and(|length| from.saturating_add(length) != descriptor.size) {
        return Err(RegistryError::invalid(
            host,
            format!(
                "{} has {} bytes, but {} are announced",
                descriptor.digest,
                from.saturating_add(length.unwrap_or(0)),
                descriptor.size
            ),
        ));
    }
    body(session, host, response.into_body(), from, descriptor, intake, part).await
}

/// Where the part that is sent begins.
fn begin(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()
}

async fn body(
    session: &Session,
    host: &str,
    mut body: Incoming,
    mut at: u64,
    descriptor: &Descriptor,
    intake: &mut Intake,
    part: &Part,
) -> Result<(), RegistryError> {
    while let Some(frame) = session.frame(host, &mut body).await? {
        let Ok(mut data) = frame.into_data() else { continue };
        let count = data.len() as u64;
        if at + count > descriptor.size {
            return Err(RegistryError::invalid(
                host,
                format!("{} has more than the {} bytes announced", descriptor.digest, descriptor.size),
            ));
        }
        let passed = intake.taken.saturating_sub(at).min(count);
        at += count;
        let _ = data.split_to(usize::try_from(passed).unwrap_or(data.len()));
        if !data.is_empty() {
            part.add(data.len() as u64);
            intake.push(data).await?;
        }
    }
    if at < descriptor.size {
        return Err(RegistryError::broken(
            host,
            format!("{} ended after {at} of {} bytes", descriptor.digest, descriptor.size),
        ));
    }
    Ok(())
}
