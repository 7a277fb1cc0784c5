//! The socket by which `navarch image` reaches the server: CRI has no call to take in an archive.
//!
//! One JSON line asks, one answers. The folder of the socket is the administrator's alone, so who can connect
//! may do everything.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use runtime::Runtime;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

/// Longest question in bytes; a path is the longest part of it.
const QUESTION: u64 = 16 * 1024;

/// What can be asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Question {
    /// Take in this archive.
    Import(PathBuf),
    /// Name all images.
    List,
    /// Remove this image.
    Remove(String),
}

/// The answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The images taken in, or all.
    Images(Vec<Listed>),
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
    /// Full names.
    pub tags: Vec<String>,
    /// Bytes of content.
    pub size: u64,
}

/// Answers until `stop`.
pub async fn serve(path: &Path, runtime: Arc<Runtime>, stop: CancellationToken) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.context("accept")?.0,
            () = stop.cancelled() => break,
        };
        // one at a time: importing is bounded by the disk, and who asks is a person
        tokio::select! {
            answered = converse(stream, &runtime) => if let Err(error) = answered {
                tracing::debug!(error = %error, "image command broke off");
            },
            () = stop.cancelled() => break,
        }
    }
    let _ = std::fs::remove_file(path);
    Ok(())
}

async fn converse(stream: UnixStream, runtime: &Arc<Runtime>) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(QUESTION)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => answer(question, runtime).await,
        Err(error) => Answer::Failed(format!("not understood: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    writer.write_all(&text).await?;
    Ok(())
}

async fn answer(question: Question, runtime: &Arc<Runtime>) -> Answer {
    let listed = |images: Vec<runtime::ImageSummary>| {
        let images = images.into_iter();
        Answer::Images(images.map(|i| Listed { id: i.id, tags: i.tags, size: i.size }).collect())
    };
    let outcome = match question {
        Question::Import(path) => runtime.import_image(&path).await.map(listed),
        Question::List => Ok(listed(runtime.list_images())),
        Question::Remove(name) => runtime.remove_image(&name).await.map(Answer::Removed),
    };
    outcome.unwrap_or_else(|error| Answer::Failed(format!("{:#}", anyhow::Error::from(error))))
}
