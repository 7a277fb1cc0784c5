//! Reads image archives: OCI image layouts and `docker save`, as tar, optionally compressed.
//!
//! Everything is first staged: each file's bytes go to a file named by a number while their digest is taken.
//! Names inside of the archive are only ever keys of a table, so they cannot lead anywhere.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use sha2::{Digest, Sha256};

use super::{
    ImageError,
    config::{Descriptor, DockerManifest, Document, MAX_DOCUMENT, Platform},
    tar::{Kind, Reader},
    unpack::Caps,
};

/// A staged file.
#[derive(Debug, Clone)]
pub struct Staged {
    /// Where its bytes are.
    pub file: PathBuf,
    /// `sha256:<hex>` of them.
    pub digest: String,
    /// How many.
    pub size: u64,
}

/// An image found in an archive.
#[derive(Debug)]
pub struct Found {
    /// Names it carries.
    pub names: Vec<String>,
    /// Its manifest, when the archive has one.
    pub manifest: Option<Staged>,
    /// Its configuration.
    pub config: Staged,
    /// Its layers, lowest first, compressed or not.
    pub layers: Vec<Staged>,
}

/// All files of an archive.
pub struct Archive {
    by_path: HashMap<Vec<u8>, Staged>,
    by_digest: HashMap<String, Staged>,
    links: HashMap<Vec<u8>, Vec<u8>>,
}

/// Undoes whatever compression a stream has: gzip, zstd or none.
pub fn decompressed<'a>(stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut stream = BufReader::with_capacity(64 * 1024, stream);
    let head = stream.fill_buf()?;
    if head.starts_with(&[0x1f, 0x8b]) {
        Ok(Box::new(flate2::bufread::MultiGzDecoder::new(stream)))
    } else if is_zstd(head) {
        Ok(Box::new(Zstd { decoder: FrameDecoder::new(), inside: false, source: stream }))
    } else {
        Ok(Box::new(stream))
    }
}

/// Whether a stream begins as zstd's do: with a frame, or with one to be skipped.
pub fn is_zstd(head: &[u8]) -> bool {
    head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || matches!(head, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// What the frames of a zstd stream hold, one after the other. Layers that can be fetched in parts (`zstd:chunked`) have many, and
/// such that are to be skipped (RFC 8878, 3.1).
struct Zstd<R> {
    decoder: FrameDecoder,
    /// A frame is begun.
    inside: bool,
    source: R,
}

impl<R: BufRead> Zstd<R> {
    /// Finds the next frame; false at the end.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    if io::copy(&mut (&mut self.source).take(length), &mut io::sink())? != length {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error.to_string())),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.inside && !self.begin()? {
                return Ok(0);
            }
            self.inside = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.inside = false;
        }
    }
}

/// Takes the digest of what is read through it.
pub struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    count: u64,
}

impl<R: Read> Hashing<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Hashing<R> {
        Hashing { inner, hasher: Sha256::new(), count: 0 }
    }

    /// Digest and length of all that was read.
    pub fn finish(self) -> (String, u64) {
        (format!("sha256:{}", hex(&self.hasher.finalize())), self.count)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        Ok(count)
    }
}

/// Lower case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl Archive {
    /// Stages the archive `stream` in the folder `staging`.
    pub fn stage(stream: impl Read, staging: &Path, caps: Caps) -> Result<Archive, ImageError> {
        let mut archive =
            Archive { by_path: HashMap::new(), by_digest: HashMap::new(), links: HashMap::new() };
        let mut reader = Reader::new(decompressed(stream)?);
        let (mut total, mut count) = (0_u64, 0_u64);
        while let Some(entry) = reader.next_entry()? {
            count += 1;
            total = total.saturating_add(entry.size);
            if count > caps.entries || total > caps.bytes {
                return Err(ImageError::Invalid("the archive is too large".to_owned()));
            }
            let path = normal(&entry.path);
            match entry.kind {
                Kind::File => {
                    let file = staging.join(count.to_string());
                    let mut out = fs::File::create_new(&file)?;
                    let mut hashing = Hashing::new(&mut reader);
                    io::copy(&mut hashing, &mut out)?;
                    out.flush()?;
                    let (digest, size) = hashing.finish();
                    let staged = Staged { file, digest, size };
                    archive.by_digest.insert(staged.digest.clone(), staged.clone());
                    archive.by_path.insert(path, staged);
                }
                // `docker save` stores equal layers once and links to them.
                Kind::Symlink => {
                    let folder =
                        path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |end| &path[..end]);
                    let target = normal(&[folder, b"/", entry.link.as_slice()].concat());
                    archive.links.insert(path, target);
                }
                Kind::HardLink => {
                    archive.links.insert(path, normal(&entry.link));
                }
                _ => {}
            }
        }
        Ok(archive)
    }

    /// The images in it.
    pub fn images(&self) -> Result<Vec<Found>, ImageError> {
        if self.by_path.contains_key(&b"index.json"[..]) {
            let index: Document = self.document(self.path(b"index.json")?)?;
            let mut found: Vec<Found> = Vec::new();
            for descriptor in index.manifests.unwrap_or_default() {
                let names = names_of(&descriptor);
                if let Some(image) = self.resolve(&descriptor, names, 0)? {
                    found.push(image);
                }
            }
            if found.is_empty() {
                return Err(ImageError::Invalid("the archive has no image for this machine".to_owned()));
            }
            return Ok(found);
        }
        if self.by_path.contains_key(&b"manifest.json"[..]) {
            let manifests: Vec<DockerManifest> = self.document(self.path(b"manifest.json")?)?;
            return manifests.into_iter().map(|manifest| self.docker(manifest)).collect();
        }
        Err(ImageError::Invalid(
            "not an image archive: neither index.json (OCI) nor manifest.json (docker save) is in it"
                .to_owned(),
        ))
    }

    fn docker(&self, manifest: DockerManifest) -> Result<Found, ImageError> {
        let layers = manifest.layers.unwrap_or_default();
        Ok(Found {
            names: manifest.repo_tags.unwrap_or_default(),
            manifest: None,
            config: self.path(manifest.config.as_bytes())?.clone(),
            layers: layers
                .iter()
                .map(|path| self.path(path.as_bytes()).cloned())
                .collect::<Result<_, _>>()?,
        })
    }

    /// Follows an index down to the manifest for this machine.
    fn resolve(
        &self,
        descriptor: &Descriptor,
        names: Vec<String>,
        depth: u32,
    ) -> Result<Option<Found>, ImageError> {
        if depth > 4 {
            return Err(ImageError::Invalid("image indexes are nested too deep".to_owned()));
        }
        if descriptor.platform.as_ref().is_some_and(|platform| !platform.is_here()) {
            return Ok(None);
        }
        let staged = self.blob(descriptor)?;
        let document: Document = self.document(staged)?;
        if let Some(manifests) = document.manifests {
            // Archives of one machine's image list the others without their content.
            let mut there: Vec<&Descriptor> =
                manifests.iter().filter(|inner| self.by_digest.contains_key(&inner.digest)).collect();
            // as from a registry: what every processor of the kind can run goes first
            there.sort_by_key(|inner| inner.platform.as_ref().map_or(u8::MAX, Platform::rank));
            for inner in there {
                if let Some(found) = self.resolve(inner, names.clone(), depth + 1)? {
                    return Ok(Some(found));
                }
            }
            return Ok(None);
        }
        let (Some(config), Some(layers)) = (document.config, document.layers) else {
            return Err(ImageError::Invalid(format!(
                "{} is neither an index nor a manifest",
                descriptor.digest
            )));
        };
        if !config.media_type.is_empty() && !config.media_type.contains("image") {
            // Some other artifact (a chart, a signature).
            return Ok(None);
        }
        Ok(Some(Found {
            names,
            manifest: Some(staged.clone()),
            config: self.blob(&config)?.clone(),
            layers: layers.iter().map(|layer| self.blob(layer).cloned()).collect::<Result<_, _>>()?,
        }))
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<&Staged, ImageError> {
        let staged = self.by_digest.get(&descriptor.digest).ok_or_else(|| {
            ImageError::Invalid(format!("content with digest {} is missing", descriptor.digest))
        })?;
        if staged.size != descriptor.size {
            return Err(ImageError::Invalid(format!(
                "{} has {} bytes, but {} are announced",
                descriptor.digest, staged.size, descriptor.size
            )));
        }
        Ok(staged)
    }

    fn path(&self, path: &[u8]) -> Result<&Staged, ImageError> {
        let mut path = normal(path);
        for _ in 0..8 {
            if let Some(staged) = self.by_path.get(&path) {
                return Ok(staged);
            }
            match self.links.get(&path) {
                Some(target) => path.clone_from(target),
                None => break,
            }
        }
        Err(ImageError::Invalid(format!("{} is missing in the archive", String::from_utf8_lossy(&path))))
    }

    fn document<T: serde::de::DeserializeOwned>(&self, staged: &Staged) -> Result<T, ImageError> {
        parse(&staged.file, staged.size)
    }
}

/// Reads a JSON document of bounded size.
pub fn parse<T: serde::de::DeserializeOwned>(file: &Path, size: u64) -> Result<T, ImageError> {
    if size > MAX_DOCUMENT {
        return Err(ImageError::Invalid("an image document is too large".to_owned()));
    }
    serde_json::from_slice(&fs::read(file)?)
        .map_err(|error| ImageError::Invalid(format!("image document: {error}")))
}

fn names_of(descriptor: &Descriptor) -> Vec<String> {
    let Some(annotations) = &descriptor.annotations else { return Vec::new() };
    // containerd and docker write the whole name in the first, podman and skopeo in the second, where others
    // write a bare tag.
    let full = annotations.get("io.containerd.image.name");
    let reference =
        annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains(['/', ':']));
    full.or(reference).cloned().into_iter().collect()
}

/// Without `./`, empty parts and `..`.
fn normal(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn plain(stream: &[u8]) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        decompressed(stream)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn a_zstd_stream_is_all_its_frames() {
        let frame = |text: &[u8]| compress_to_vec(text, CompressionLevel::Fastest);
        let skipped = |number: u8, length: u32| {
            let content = vec![7; 3];
            [&[0x50 + number, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), &content].concat()
        };
        let large = b"0123456789".repeat(100_000);
        let stream =
            [frame(b"one "), skipped(0, 3), frame(b""), frame(&large), frame(b" end"), skipped(15, 3)];
        let expected = [b"one ".as_slice(), &large, b" end"].concat();
        assert_eq!(plain(&stream.concat()).unwrap(), expected);
        assert_eq!(plain(&[skipped(1, 3), frame(b"x")].concat()).unwrap(), b"x");
        assert!(plain(&[frame(b"x"), skipped(0, 9)].concat()).is_err(), "cut");
        assert!(plain(&[frame(b"x"), b"garbage".to_vec()].concat()).is_err());
        let whole = frame(&large);
        assert!(plain(&whole[..whole.len() / 2]).is_err());
    }
}
