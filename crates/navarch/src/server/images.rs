//! The socket by which `navarch image` reaches the server: the CRI takes in no archives and tells of no progress.
//!
//! One JSON line asks, one answers; lines before that say how far it is. The folder of the socket is the administrator's alone, so who can connect
//! may do everything.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use runtime::image::progress::{Progress, Step};
use runtime::registry::Credentials;
use runtime::{ArchiveFormat, Runtime};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longest question in bytes; a path is the longest part of it.
const QUESTION: u64 = 16 * 1024;

/// Most askers at once.
const ASKERS: usize = 16;
/// How often it is told how far something is.
const TELLING: Duration = Duration::from_millis(100);

/// What can be asked.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// Take in this archive.
    Import(PathBuf),
    /// Bring this image from its registry.
    Pull(String, Option<Login>),
    /// Put an image into a registry under a name.
    Push(String, String, Option<Login>),
    /// Write images to this archive, for docker instead of as an OCI layout.
    Export(Vec<String>, PathBuf, bool),
    /// Name all images.
    List,
    /// Say all of this image.
    Inspect(String),
    /// Remove this image.
    Remove(String),
    /// Remove what nobody uses.
    Prune,
}

/// User name and password at a registry. Never printed.
#[derive(Serialize, Deserialize)]
pub struct Login(pub String, pub String);

impl From<Login> for Credentials {
    fn from(Login(username, password): Login) -> Credentials {
        Credentials::Basic { username, password }
    }
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// How far it is; another answer follows.
    Progress(Vec<Step>),
    /// The images taken in, pulled, removed, or all.
    Images(Vec<Listed>),
    /// The digest of what was pushed.
    Pushed(String),
    /// The bytes of the archive.
    Exported(u64),
    /// What is known of an image; `None`: there is none.
    Inspected(Option<serde_json::Value>),
    /// Whether there was one to remove.
    Removed(bool),
    /// It failed, and why.
    Failed(String),
}

/// An image.
#[derive(Debug, Serialize, Deserialize)]
pub struct Listed {
    /// `sha256:<hex>`.
    pub id: String,
    /// Full names: with tags, or without any, with digests.
    pub names: Vec<String>,
    /// Bytes of content.
    pub size: u64,
}

/// Answers until `stop`.
pub async fn serve(path: &Path, runtime: Arc<Runtime>, stop: CancellationToken) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    // what is asked ends with the set
    let mut askers = JoinSet::new();
    loop {
        let room = askers.len() < ASKERS;
        tokio::select! {
            accepted = listener.accept(), if room => {
                let (stream, runtime) = (accepted.context("accept")?.0, runtime.clone());
                askers.spawn(async move {
                    if let Err(error) = converse(stream, &runtime).await {
                        tracing::debug!(error = %error, "image command broke off");
                    }
                });
            }
            Some(_) = askers.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn converse(stream: UnixStream, runtime: &Arc<Runtime>) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader.take(QUESTION));
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let question = match serde_json::from_str(&line) {
        Ok(question) => question,
        Err(error) => return tell(&mut writer, &Answer::Failed(format!("not understood: {error}"))).await,
    };
    let progress = Progress::default();
    let mut steps = progress.watch();
    let mut tick = tokio::time::interval(TELLING);
    let mut work = std::pin::pin!(answer(question, runtime, &progress));
    let mut more = [0; 1];
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            // who has gone does not wait for it: what a pull has is kept for the next
            _ = reader.read(&mut more) => return Ok(()),
            _ = tick.tick() => if steps.has_changed()? {
                let now = steps.borrow_and_update().clone();
                tell(&mut writer, &Answer::Progress(now)).await?;
            }
        }
    };
    if steps.has_changed()? {
        let last = steps.borrow_and_update().clone();
        tell(&mut writer, &Answer::Progress(last)).await?;
    }
    tell(&mut writer, &done).await
}

async fn tell(writer: &mut OwnedWriteHalf, answer: &Answer) -> anyhow::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    writer.write_all(&text).await?;
    Ok(())
}

async fn answer(question: Question, runtime: &Arc<Runtime>, progress: &Progress) -> Answer {
    let listed = |images: Vec<runtime::ImageSummary>| {
        let images = images.into_iter();
        let listed = images.map(|image| {
            // who was pulled by digest has no tag
            let known = runtime.inspect_image(&image.id).filter(|_| image.tags.is_empty());
            let names = known.map_or(image.tags, |known| known.digests);
            Listed { id: image.id, names, size: image.size }
        });
        Answer::Images(listed.collect())
    };
    let outcome = match question {
        Question::Import(path) => runtime.import_image(&path).await.map(listed),
        Question::Pull(name, login) => {
            let pulled = runtime.pull_image(&name, login.map(Credentials::from), progress).await;
            pulled.map(|image| listed(vec![image]))
        }
        Question::Push(name, to, login) => {
            let pushed = runtime.push_image(&name, &to, login.map(Credentials::from), progress).await;
            pushed.map(Answer::Pushed)
        }
        Question::Export(names, path, docker) => {
            let format = if docker { ArchiveFormat::Docker } else { ArchiveFormat::Oci };
            runtime.export_images(names, format, &path).await.map(Answer::Exported)
        }
        Question::List => Ok(listed(runtime.list_images())),
        Question::Inspect(name) => {
            let image = runtime.inspect_image(&name);
            Ok(Answer::Inspected(image.and_then(|image| serde_json::to_value(image).ok())))
        }
        Question::Remove(name) => runtime.remove_image(&name).await.map(Answer::Removed),
        Question::Prune => runtime.prune_images().await.map(listed),
    };
    outcome.unwrap_or_else(|error| Answer::Failed(format!("{:#}", anyhow::Error::from(error))))
}
