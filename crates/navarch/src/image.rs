//! `navarch image`: asks the running server.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::command::ImageAction;
use crate::data_dir::DataDir;
use crate::server::images::{Answer, Listed, Question};

/// Does what was asked.
pub fn main(path: &Path, action: ImageAction) -> anyhow::Result<()> {
    let Some(data) = DataDir::at(path)? else {
        bail!("there is no cluster in {}; start one with `navarch up`", path.display());
    };
    match action {
        ImageAction::Import { archives } => archives.iter().try_for_each(|archive| import(&data, archive)),
        ImageAction::ImportSelf { reference } => import_self(&data, &reference),
        ImageAction::List => list(&data),
        ImageAction::Remove { images } => images.into_iter().try_for_each(|image| remove(&data, image)),
    }
}

fn import(data: &DataDir, archive: &Path) -> anyhow::Result<()> {
    // the server works in another folder
    let path = archive.canonicalize().with_context(|| archive.display().to_string())?;
    match ask(data, &Question::Import(path))? {
        Answer::Images(images) => {
            images.iter().for_each(|image| println!("imported {}", name(image)));
            Ok(())
        }
        other => unexpected(other),
    }
}

fn list(data: &DataDir) -> anyhow::Result<()> {
    match ask(data, &Question::List)? {
        Answer::Images(images) => {
            println!("{:<14} {:>9}  NAME", "ID", "SIZE");
            for image in &images {
                let id = image.id.trim_start_matches("sha256:").get(..12).unwrap_or(&image.id);
                println!("{id:<14} {:>6.1} MB  {}", image.size as f64 / 1e6, image.tags.join(", "));
            }
            Ok(())
        }
        other => unexpected(other),
    }
}

fn remove(data: &DataDir, image: String) -> anyhow::Result<()> {
    match ask(data, &Question::Remove(image.clone()))? {
        Answer::Removed(true) => {
            println!("removed {image}");
            Ok(())
        }
        Answer::Removed(false) => bail!("there is no image {image}; `navarch image list` names them"),
        other => unexpected(other),
    }
}

fn name(image: &Listed) -> &str {
    image.tags.first().unwrap_or(&image.id)
}

fn unexpected(answer: Answer) -> anyhow::Result<()> {
    match answer {
        Answer::Failed(why) => bail!("{why}"),
        other => bail!("the server answered something else: {other:?}"),
    }
}

fn ask(data: &DataDir, question: &Question) -> anyhow::Result<Answer> {
    let socket = data.image_socket();
    let mut stream = UnixStream::connect(&socket).with_context(|| {
        format!(
            "cannot reach the server at {}; is it running (`navarch up`), and are you root?",
            socket.display()
        )
    })?;
    let mut line = serde_json::to_vec(question)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    serde_json::from_str(&answer).context("the server ended before it answered")
}

/// Packs this program with the shared libraries it uses (none, in a static build) as a docker archive.
fn import_self(data: &DataDir, reference: &str) -> anyhow::Result<()> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "navarch", Path::new("/proc/self/exe"))?;
    for library in libraries()? {
        let inside = library.strip_prefix("/").unwrap_or(&library).display().to_string();
        append(&mut layer, &inside, &library)?;
    }
    let layer = layer.into_inner()?;
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": ["/navarch"], "Cmd": ["web"], "ExposedPorts": {"8080/tcp": {}}},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]},
    })
    .to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest =
        json!([{"Config": config_name, "RepoTags": [reference], "Layers": ["layer.tar"]}]).to_string();

    let mut archive = tar::Builder::new(tempfile::NamedTempFile::new()?);
    let parts: [(&str, &[u8]); 3] =
        [(&config_name, config.as_bytes()), ("manifest.json", manifest.as_bytes()), ("layer.tar", &layer)];
    for (name, bytes) in parts {
        archive.append_data(&mut header(bytes.len() as u64, 0o644), name, bytes)?;
    }
    let archive = archive.into_inner()?;
    import(data, archive.path())
}

fn append(layer: &mut tar::Builder<Vec<u8>>, name: &str, file: &Path) -> anyhow::Result<()> {
    let source = File::open(file).with_context(|| file.display().to_string())?;
    let size = source.metadata()?.len();
    layer.append_data(&mut header(size, 0o755), name, source).with_context(|| file.display().to_string())
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header
}

/// Shared objects mapped into this process, the dynamic linker included.
fn libraries() -> anyhow::Result<BTreeSet<PathBuf>> {
    let own = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let mapped =
        maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.starts_with('/'));
    let mut found: BTreeSet<PathBuf> = mapped.map(PathBuf::from).filter(|path| *path != own).collect();
    if !found.is_empty() {
        // the kernel looks for the linker by the name in the program, a link on most systems
        let linkers = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"].map(PathBuf::from);
        found.extend(linkers.into_iter().filter(|linker| linker.exists()));
    }
    Ok(found)
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
