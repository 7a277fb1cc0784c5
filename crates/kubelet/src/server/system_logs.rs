//! `/logs/`: the node's own log files. No link leads out of their folder.
//!
//! Rule: KubeletConfiguration, `enableSystemLogHandler`.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::Path;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use super::Server;
use super::answers::{Body, Refusal, answer, full};

/// Bytes read at once.
const BLOCK: usize = 64 * 1024;

impl Server {
    pub(super) async fn system_logs(&self, path: &[&str]) -> Result<Response<Body>, Refusal> {
        if path.is_empty() {
            return Ok(moved("logs"));
        }
        let (root, path) = (self.about.system_logs.clone().unwrap_or_default(), path.join("/"));
        let read = tokio::task::spawn_blocking(move || read(&root, &path)).await;
        read.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
    }
}

/// What lies at `path` below `root`: a file's content as it is now, or a folder's names as links. Blocks on the disk.
fn read(root: &Path, path: &str) -> Result<Response<Body>, Refusal> {
    let refused = |error: Errno| match error {
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {
            (StatusCode::NOT_FOUND, "404 page not found".to_owned())
        }
        // a link that leads out, among others
        Errno::ACCESS | Errno::PERM | Errno::XDEV | Errno::LOOP => {
            (StatusCode::FORBIDDEN, "403 Forbidden".to_owned())
        }
        error => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let found = open(root, path).map_err(refused)?;
    let stat = fstat(&found).map_err(refused)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if !path.is_empty() && !path.ends_with('/') => {
            Ok(moved(path.rsplit('/').next().unwrap_or_default()))
        }
        FileType::Directory => {
            Ok(answer(StatusCode::OK, "text/html; charset=utf-8", full(list(found).map_err(refused)?)))
        }
        FileType::RegularFile => {
            // what is written meanwhile is not sent
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            let mut response = answer(StatusCode::OK, "text/plain; charset=utf-8", content(found, size));
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
            Ok(response)
        }
        _ => Err((StatusCode::FORBIDDEN, "403 Forbidden".to_owned())),
    }
}

/// To a folder's address, which ends in a slash: links in its list are relative to that.
fn moved(name: &str) -> Response<Body> {
    let mut moved = answer(StatusCode::MOVED_PERMANENTLY, "text/plain; charset=utf-8", full(""));
    let place = HeaderValue::from_str(&format!("{}/", escape(name)));
    moved.headers_mut().extend(place.ok().map(|place| (header::LOCATION, place)));
    moved
}

fn open(root: &Path, path: &str) -> rustix::io::Result<OwnedFd> {
    let root = openat(CWD, root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = path.trim_matches('/');
    let path = if path.is_empty() { "." } else { path };
    // a pipe would wait for its writer
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    openat2(&root, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

fn list(folder: OwnedFd) -> rustix::io::Result<String> {
    let mut names = Vec::new();
    for entry in Dir::new(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(if entry.file_type() == FileType::Directory { format!("{name}/") } else { name });
        }
    }
    names.sort();
    let shown = |name: &String| format!("<a href=\"{}\">{}</a>\n", escape(name), html(name));
    let links: String = names.iter().map(shown).collect();
    Ok(format!(
        "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n{links}</pre>\n"
    ))
}

/// A name as a part of an address.
fn escape(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    name.bytes().fold(String::new(), |text, byte| match plain(byte) {
        true => text + &char::from(byte).to_string(),
        false => text + &format!("%{byte:02X}"),
    })
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;")
}

/// The first `size` bytes of a file.
fn content(file: OwnedFd, size: u64) -> Body {
    let state = (File::from(file), size);
    let blocks = futures_util::stream::unfold(Some(state), |state| async move {
        let (file, left) = state.filter(|(_, left)| *left > 0)?;
        let read = tokio::task::spawn_blocking(move || block(file, left)).await;
        Some(match read.map_err(io::Error::other).flatten() {
            Ok((bytes, file, left)) => (Ok(Frame::data(bytes)), Some((file, left))),
            Err(error) => (Err(error), None),
        })
    });
    BodyExt::boxed_unsync(StreamBody::new(blocks))
}

/// The next block. A file that became shorter cuts the answer off.
fn block(mut file: File, left: u64) -> io::Result<(Bytes, File, u64)> {
    let mut bytes = vec![0; usize::try_from(left).unwrap_or(BLOCK).min(BLOCK)];
    let count = file.read(&mut bytes)?;
    if count == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    bytes.truncate(count);
    Ok((bytes.into(), file, left - count as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn got(root: &Path, path: &str) -> String {
        match read(root, path) {
            Ok(response) => {
                let code = response.status().as_u16();
                let place = response.headers().get(header::LOCATION).cloned();
                let body = response.into_body().collect().await.expect("body").to_bytes();
                let text = String::from_utf8_lossy(&body).into_owned();
                format!("{code} {}{text}", place.map_or("", |_| "moved to ").to_owned())
            }
            Err((code, why)) => format!("{} {why}", code.as_u16()),
        }
    }

    #[tokio::test]
    async fn files_and_folders_are_shown_and_no_link_leads_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("log");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("a <b>.log"), "one\n").unwrap();
        std::fs::write(root.join("sub/large"), vec![b'x'; 3 * BLOCK + 7]).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("sub/large", root.join("in")).unwrap();
        rustix::fs::mknodat(CWD, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(got(&root, "a <b>.log").await, "200 one\n");
        assert_eq!(got(&root, "in").await.len(), "200 ".len() + 3 * BLOCK + 7);
        let listed = got(&root, "").await;
        assert!(listed.contains("<a href=\"a%20%3Cb%3E.log\">a &lt;b&gt;.log</a>\n"), "{listed}");
        assert!(listed.contains("<a href=\"sub/\">sub/</a>\n"), "{listed}");
        assert_eq!(got(&root, "sub").await, "301 moved to ");
        assert!(got(&root, "sub/").await.contains("large"));
        for (path, code) in
            [("out", "403"), ("../secret", "403"), ("pipe", "403"), ("none", "404"), ("in/x", "404")]
        {
            assert!(got(&root, path).await.starts_with(code), "{path}: {}", got(&root, path).await);
        }
    }
}
