//! A registry that breaks off, stalls or sends something else than it promised. Its images are busybox with one layer of their
//! own, which is what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{NetNs, image};

/// How large the layer of each image is, in bytes.
const SIZE: usize = 256 << 10;

/// What happens to an image's layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The first who asks gets half of it, then nothing until he gives up.
    StallsOnce,
    /// So does everybody.
    Stalls,
    /// One byte is wrong.
    Corrupt,
    /// There is another digest in the manifest than the registry has.
    Lies,
}

/// A running registry, over plain HTTP.
pub struct FaultyRegistry {
    address: SocketAddr,
    net: NetNs,
    shared: Arc<Shared>,
}

struct Shared {
    /// busybox's own layer.
    base: Vec<u8>,
    images: Mutex<BTreeMap<String, Image>>,
    /// Images whose layer was asked for.
    asked: Mutex<BTreeSet<String>>,
    ends: AtomicBool,
}

#[derive(Clone)]
struct Image {
    fault: Fault,
    config: Vec<u8>,
    manifest: Vec<u8>,
    layer: Vec<u8>,
}

impl FaultyRegistry {
    /// Starts one on the loopback interface of `net`.
    pub fn start(net: &NetNs) -> anyhow::Result<Self> {
        let mut archive = tar::Archive::new(File::open(image::busybox()?)?);
        let mut base = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            if entry.path()?.ends_with("layer.tar") {
                entry.read_to_end(&mut base)?;
            }
        }
        let listener = net.run(|| TcpListener::bind("127.0.0.1:0"))??;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            base,
            images: Mutex::default(),
            asked: Mutex::default(),
            ends: AtomicBool::new(false),
        });
        let served = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if served.ends.load(Ordering::Relaxed) {
                    return;
                }
                let shared = served.clone();
                std::thread::spawn(move || {
                    // the other side may go away at any moment
                    let _ = shared.serve(&stream);
                    let _ = stream.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(Self { address, net: net.clone(), shared })
    }

    /// Adds an image; its full name.
    pub fn add(&self, tag: &str, fault: Fault) -> anyhow::Result<String> {
        let mut layer = layer(tag)?;
        let digests = [digest(&self.shared.base), digest(&layer)];
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": {"Cmd": ["sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": digests},
        })
        .to_string()
        .into_bytes();
        let part = |kind: &str, digest: &str, size: usize| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size});
        let promised = if fault == Fault::Lies { digest(b"another") } else { digests[1].clone() };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": part("config.v1+json", &digest(&config), config.len()),
            "layers": [part("layer.v1.tar", &digests[0], self.shared.base.len()), part("layer.v1.tar", &promised, layer.len())],
        })
        .to_string()
        .into_bytes();
        if fault == Fault::Corrupt
            && let Some(byte) = layer.get_mut(SIZE / 2)
        {
            *byte ^= 1;
        }
        held(&self.shared.images).insert(tag.to_owned(), Image { fault, config, manifest, layer });
        Ok(format!("{}/box:{tag}", self.address))
    }

    /// Whether the image's layer was asked for.
    pub fn asked(&self, tag: &str) -> bool {
        held(&self.shared.asked).contains(tag)
    }

    /// `registries.yaml` by which it is reached.
    pub fn settings(&self) -> String {
        format!("mirrors:\n  \"{0}\": {{endpoint: [\"http://{0}\"]}}\n", self.address)
    }
}

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        let address = self.address;
        // wakes the one who listens
        let _ = self.net.run(move || TcpStream::connect(address));
    }
}

impl Shared {
    fn serve(&self, mut stream: &TcpStream) -> anyhow::Result<()> {
        let mut lines = BufReader::new(stream).lines();
        let first = lines.next().context("no request")??;
        let mut from = 0;
        for line in lines {
            let line = line?.to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(range) = line.strip_prefix("range: bytes=") {
                from = range.trim_end_matches('-').parse()?;
            }
        }
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = path.split('?').next().unwrap_or_default();
        let Some((tag, body, is_layer)) = self.find(path) else {
            let status = if path == "/v2/" { "200 OK" } else { "404 Not Found" };
            write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
            return Ok(());
        };
        let fault = held(&self.images).get(&tag).map_or(Fault::None, |image| image.fault);
        let before = is_layer && !held(&self.asked).insert(tag);
        let kind = if path.contains("/manifests/") {
            format!("application/vnd.oci.image.manifest.v1+json\r\nDocker-Content-Digest: {}", digest(&body))
        } else {
            "application/octet-stream".to_owned()
        };
        let rest = body.get(from..).unwrap_or_default();
        let status = match from {
            0 => "200 OK".to_owned(),
            _ => format!(
                "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
                body.len().saturating_sub(1),
                body.len()
            ),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            rest.len()
        )?;
        if method == "HEAD" {
            return Ok(());
        }
        if is_layer && (fault == Fault::Stalls || (fault == Fault::StallsOnce && !before)) {
            stream.write_all(&rest[..rest.len() / 2])?;
            let _ = stream.read(&mut [0])?;
            return Ok(());
        }
        Ok(stream.write_all(rest)?)
    }

    /// Whose content a path names, the content, and whether it is the layer that goes wrong.
    fn find(&self, path: &str) -> Option<(String, Vec<u8>, bool)> {
        let name = path.rsplit('/').next().filter(|name| !name.is_empty())?;
        let base = || (name == digest(&self.base)).then(|| (String::new(), self.base.clone(), false));
        let images = held(&self.images);
        images
            .iter()
            .find_map(|(tag, image)| {
                let of_manifest = name == tag || name == digest(&image.manifest);
                match () {
                    () if of_manifest => Some((tag.clone(), image.manifest.clone(), false)),
                    () if name == digest(&image.config) => Some((tag.clone(), image.config.clone(), false)),
                    () if image.promises(name) => Some((tag.clone(), image.layer.clone(), true)),
                    () => None,
                }
            })
            .or_else(base)
    }
}

impl Image {
    /// Whether the manifest has that digest as the last layer's.
    fn promises(&self, name: &str) -> bool {
        let manifest: serde_json::Value = serde_json::from_slice(&self.manifest).unwrap_or_default();
        manifest["layers"][1]["digest"] == name
    }
}

/// A layer with one file that is like no other image's.
fn layer(tag: &str) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(SIZE);
    let mut block = Sha256::digest(tag);
    while content.len() < SIZE {
        content.extend_from_slice(&block);
        block = Sha256::digest(block);
    }
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, "stamp", &content[..])?;
    Ok(builder.into_inner()?)
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
