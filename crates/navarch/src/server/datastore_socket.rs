//! The socket by which `navarch backup` reaches the server: only it has the data open.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::backup::{self, Answer};
use crate::datastore::Datastore;

/// Longest question in bytes; a path is the longest part of it.
const QUESTION: u64 = 16 * 1024;

/// Answers until `stop`, one question at a time.
pub async fn serve(
    path: &Path,
    datastore: Datastore,
    pki: PathBuf,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.context("accept")?.0,
            () = stop.cancelled() => break,
        };
        tokio::select! {
            answered = converse(stream, &datastore, &pki) => if let Err(error) = answered {
                tracing::debug!(error = %error, "backup command broke off");
            },
            () = stop.cancelled() => break,
        }
    }
    let _ = std::fs::remove_file(path);
    // the folder is there for others, too, unless this was the last
    if let Some(folder) = path.parent() {
        let _ = std::fs::remove_dir(folder);
    }
    Ok(())
}

async fn converse(stream: UnixStream, datastore: &Datastore, pki: &Path) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    BufReader::new(reader.take(QUESTION)).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line) {
        Ok(question) => match backup::write(datastore, pki.to_owned(), question).await {
            Ok(manifest) => Answer::Written(manifest),
            Err(error) => Answer::Failed(format!("{error:#}")),
        },
        Err(error) => Answer::Failed(format!("not understood: {error}")),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    writer.write_all(&text).await?;
    Ok(())
}
