//! `navarch image`: asks the running server.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use runtime::image::progress::{State, Step};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::command::{self, ArchiveKind, ImageAction};
use crate::data_dir::DataDir;
use crate::server::images::{Answer, Listed, Login, Question};

/// Does what was asked.
pub fn main(path: &Path, action: ImageAction) -> anyhow::Result<()> {
    let Some(data) = DataDir::at(path)? else {
        bail!("there is no cluster in {}; start one with `navarch up`", path.display());
    };
    match action {
        ImageAction::Import { archives } => archives.iter().try_for_each(|archive| import(&data, archive)),
        ImageAction::ImportSelf { reference } => import_self(&data, &reference),
        ImageAction::Pull { image, login } => pull(&data, image, login),
        ImageAction::Push { image, to, login } => push(&data, image, to, login),
        ImageAction::Export { images, output, format } => export(&data, images, &output, format),
        ImageAction::List => list(&data),
        ImageAction::Inspect { images } => inspect(&data, images),
        ImageAction::Prune => prune(&data),
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

fn pull(data: &DataDir, image: String, login: command::Login) -> anyhow::Result<()> {
    match ask(data, &Question::Pull(image.clone(), credentials(login)?))? {
        Answer::Images(images) => {
            images.iter().for_each(|pulled| println!("pulled {image} ({})", short(&pulled.id)));
            Ok(())
        }
        other => unexpected(other),
    }
}

fn push(data: &DataDir, image: String, to: Option<String>, login: command::Login) -> anyhow::Result<()> {
    let to = to.unwrap_or_else(|| image.clone());
    match ask(data, &Question::Push(image, to.clone(), credentials(login)?))? {
        Answer::Pushed(digest) => {
            println!("pushed {to}@{digest}");
            Ok(())
        }
        other => unexpected(other),
    }
}

/// What a registry is told, with the password from standard input.
fn credentials(login: command::Login) -> anyhow::Result<Option<Login>> {
    let Some(username) = login.username else { return Ok(None) };
    let mut password = String::new();
    std::io::stdin().read_line(&mut password).context("reading the password from standard input")?;
    Ok(Some(Login(username, password.trim_end_matches(['\r', '\n']).to_owned())))
}

fn export(data: &DataDir, images: Vec<String>, output: &Path, format: ArchiveKind) -> anyhow::Result<()> {
    // the server works in another folder
    let path = std::path::absolute(output).with_context(|| output.display().to_string())?;
    match ask(data, &Question::Export(images, path, matches!(format, ArchiveKind::Docker)))? {
        Answer::Exported(bytes) => {
            println!("exported {} ({:.1} MB)", output.display(), megabytes(bytes));
            Ok(())
        }
        other => unexpected(other),
    }
}

fn inspect(data: &DataDir, images: Vec<String>) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for image in images {
        match ask(data, &Question::Inspect(image.clone()))? {
            Answer::Inspected(Some(value)) => found.push(value),
            Answer::Inspected(None) => bail!("there is no image {image}; `navarch image list` names them"),
            other => return unexpected(other),
        }
    }
    println!("{}", serde_json::to_string_pretty(&found)?);
    Ok(())
}

fn prune(data: &DataDir) -> anyhow::Result<()> {
    match ask(data, &Question::Prune)? {
        Answer::Images(images) => {
            images.iter().for_each(|image| println!("removed {}", name(image)));
            let bytes = images.iter().map(|image| image.size).sum();
            println!("{} images, {:.1} MB", images.len(), megabytes(bytes));
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
                let (id, size) = (short(&image.id), megabytes(image.size));
                println!("{id:<14} {size:>6.1} MB  {}", image.names.join(", "));
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
    image.names.first().unwrap_or(&image.id)
}

/// A digest as people tell images apart.
fn short(digest: &str) -> &str {
    digest.trim_start_matches("sha256:").get(..12).unwrap_or(digest)
}

#[allow(clippy::cast_precision_loss, reason = "people are shown one digit after the point")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
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
    let mut shown = Shown::new(std::io::stderr().is_terminal());
    let mut answers = BufReader::new(stream);
    loop {
        let mut line = String::new();
        answers.read_line(&mut line)?;
        match serde_json::from_str(&line).context("the server ended before it answered")? {
            Answer::Progress(steps) => eprint!("{}", shown.next(&steps)),
            answer => return Ok(answer),
        }
    }
}

/// Letters of a bar.
const BAR: usize = 30;

/// What was shown of how far something is: bars that are drawn over each other on a terminal, else a line for each part
/// that is finished.
struct Shown {
    terminal: bool,
    lines: usize,
    finished: BTreeSet<String>,
}

impl Shown {
    fn new(terminal: bool) -> Shown {
        Shown { terminal, lines: 0, finished: BTreeSet::new() }
    }

    /// What is to be written now.
    fn next(&mut self, steps: &[Step]) -> String {
        let mut text = String::new();
        if self.terminal {
            if self.lines > 0 {
                text = format!("\x1b[{}A", self.lines);
            }
            self.lines = steps.len();
            // each line is cleared, since a shorter one may stand where a longer one was
            text.extend(steps.iter().map(|step| format!("\x1b[2K{}\n", bar(step))));
            return text;
        }
        for step in steps.iter().filter(|step| matches!(step.state, State::Done | State::Present)) {
            if self.finished.insert(step.digest.clone()) {
                text.push_str(&format!("{} {}\n", short(&step.digest), words(step)));
            }
        }
        text
    }
}

fn bar(step: &Step) -> String {
    let finished = matches!(step.state, State::Unpacking | State::Done | State::Present);
    let moved = if finished { step.size } else { step.moved.min(step.size) };
    // a part of nothing is whole
    let full = (u128::from(moved) * BAR as u128)
        .checked_div(u128::from(step.size))
        .map_or(BAR, |full| full as usize);
    let bar = format!("{}{}", "=".repeat(full), " ".repeat(BAR - full));
    format!("{} [{bar}] {}", short(&step.digest), words(step))
}

fn words(step: &Step) -> String {
    let size = megabytes(step.size);
    match step.state {
        State::Waiting => "waiting".to_owned(),
        State::Moving => format!("{:.1} of {size:.1} MB", megabytes(step.moved)),
        State::Unpacking => format!("unpacking {size:.1} MB"),
        State::Done => format!("done, {size:.1} MB"),
        State::Present => "there already".to_owned(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn step(digest: &str, moved: u64, state: State) -> Step {
        Step { digest: format!("sha256:{digest:0<64}"), size: 2_000_000, moved, state }
    }

    #[test]
    fn bars_grow_and_are_drawn_over_each_other() {
        let mut shown = Shown::new(true);
        let first = shown.next(&[step("a", 1_000_000, State::Moving), step("b", 0, State::Waiting)]);
        let half = format!("a00000000000 [{}{}] 1.0 of 2.0 MB\n", "=".repeat(15), " ".repeat(15));
        let none = format!("b00000000000 [{}] waiting\n", " ".repeat(30));
        assert_eq!(first, format!("\x1b[2K{half}\x1b[2K{none}"));
        let second = shown.next(&[step("a", 9_000_000, State::Done), step("b", 0, State::Present)]);
        let whole = |name: &str, words: &str| format!("\x1b[2K{name} [{}] {words}\n", "=".repeat(30));
        let (a, b) = (whole("a00000000000", "done, 2.0 MB"), whole("b00000000000", "there already"));
        assert_eq!(second, format!("\x1b[2A{a}{b}"));
        let empty = Step { size: 0, ..step("c", 0, State::Moving) };
        assert!(bar(&empty).contains(&"=".repeat(30)));
    }

    #[test]
    fn without_a_terminal_each_part_is_told_once_it_is_finished() {
        let mut shown = Shown::new(false);
        assert_eq!(shown.next(&[step("a", 1, State::Moving)]), "");
        let steps = [step("a", 2_000_000, State::Done), step("b", 0, State::Unpacking)];
        assert_eq!(shown.next(&steps), "a00000000000 done, 2.0 MB\n");
        assert_eq!(shown.next(&steps), "");
    }
}
