//! Images of real software from Debian packages, as docker archives.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::json;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::{cache_dir, debian, run};

/// What goes into an image beside the packages.
#[derive(Clone, Copy, Default)]
pub struct Recipe<'a> {
    /// The image's name with tag.
    pub reference: &'a str,
    /// Debian packages; libraries they need come along.
    pub packages: &'a [&'a str],
    /// Files: path without leading slash, content. A path that ends in `/` is a folder.
    pub files: &'a [(&'a str, &'a str)],
    /// What runs by default.
    pub command: &'a [&'a str],
    /// Links in `/bin` to every applet of busybox.
    pub busybox: bool,
}

/// `busybox:test`: a shell, wget, nc, httpd and the like, static.
pub fn busybox() -> anyhow::Result<PathBuf> {
    build(&Recipe {
        reference: "docker.io/library/busybox:test",
        packages: &["busybox-static"],
        files: &[
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
            ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
            ("tmp/", ""),
            ("root/", ""),
        ],
        command: &["sh"],
        busybox: true,
    })
}

/// `nginx:test`: Debian's nginx, logging to the container's output.
pub fn nginx() -> anyhow::Result<PathBuf> {
    build(&Recipe {
        reference: "docker.io/library/nginx:test",
        packages: &["nginx", "nginx-common"],
        files: &[
            ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/sh\n"),
            ("etc/group", "root:x:0:\nwww-data:x:33:\n"),
            ("var/log/nginx/", ""),
            ("var/lib/nginx/", ""),
            ("run/", ""),
            ("usr/share/nginx/html/index.html", "<title>Welcome to nginx!</title>\n"),
            (
                "etc/nginx/nginx.conf",
                "user www-data; worker_processes 1; daemon off; pid /run/nginx.pid; error_log /dev/stderr notice;\n\
                 events { worker_connections 512; }\n\
                 http { access_log /dev/stdout; include /etc/nginx/mime.types;\n\
                 server { listen 80; root /usr/share/nginx/html; } }\n",
            ),
        ],
        command: &["/usr/sbin/nginx"],
        busybox: false,
    })
}

/// The archive of `recipe`, from the cache where it was built before.
pub fn build(recipe: &Recipe<'_>) -> anyhow::Result<PathBuf> {
    let key = format!("{:?}{:?}{:?}{:?}", recipe.packages, recipe.files, recipe.command, recipe.busybox);
    let digest = hex(&Sha256::digest(format!("{}{key}", recipe.reference)));
    let folder = cache_dir().join("images");
    let archive = folder.join(format!("{}.tar", &digest[..24]));
    if archive.exists() {
        return Ok(archive);
    }
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let work = tempfile::tempdir()?;
    let root = work.path().join("root");
    std::fs::create_dir(&root)?;
    for package in with_libraries(recipe.packages)? {
        let deb = download(&package, &folder)?;
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
    }
    for folder in ["usr/share/doc", "usr/share/man", "usr/share/lintian"] {
        let _ = std::fs::remove_dir_all(root.join(folder));
    }
    for (path, content) in recipe.files {
        let target = root.join(path);
        if path.ends_with('/') {
            std::fs::create_dir_all(&target)?;
        } else {
            std::fs::create_dir_all(target.parent().context("a file needs a folder")?)?;
            std::fs::write(&target, content).with_context(|| path.to_string())?;
        }
    }
    if recipe.busybox {
        let busybox = root.join("bin/busybox");
        for applet in run(Command::new(&busybox).arg("--list"))?.lines().filter(|a| *a != "busybox") {
            symlink("busybox", root.join("bin").join(applet))?;
        }
    }
    pack(recipe, &root, &work, &archive)?;
    Ok(archive)
}

/// The packages and the libraries they depend on.
pub(crate) fn with_libraries(packages: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let mut all: BTreeSet<String> = packages.iter().map(ToString::to_string).collect();
    let options = ["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"];
    let more = ["--no-breaks", "--no-replaces", "--no-enhances"];
    let text = debian::apt_cache(&[&options[..], &more[..], packages].concat())?;
    let is_library = |name: &str| name.starts_with("lib") || name == "zlib1g";
    let libraries = text.lines().filter(|l| is_library(l) && !l.contains(':') && !l.contains('<'));
    // Perl, debconf and what they bring serve the installation, not the program.
    all.extend(
        libraries.map(str::trim).filter(|l| !l.contains("perl") && !l.contains("debconf")).map(str::to_owned),
    );
    Ok(all)
}

/// The package's file, from the cache where it is there.
pub(crate) fn download(package: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let keep = folder.join(format!("{package}.deb"));
    if keep.exists() {
        return Ok(keep);
    }
    let work = tempfile::tempdir_in(folder)?;
    let fetch =
        || run(Command::new("apt-get").args(["download", "--quiet", package]).current_dir(work.path()));
    if fetch().is_err() {
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
        fetch()?;
    }
    let mut files = std::fs::read_dir(work.path())?;
    let Some(file) = files.next() else { bail!("apt-get download {package} left no file") };
    std::fs::rename(file?.path(), &keep)?;
    Ok(keep)
}

/// Writes a docker archive of one layer.
fn pack(recipe: &Recipe<'_>, root: &Path, work: &TempDir, archive: &Path) -> anyhow::Result<()> {
    let layer = work.path().join("layer.tar");
    let mut builder = tar::Builder::new(File::create(&layer)?);
    builder.follow_symlinks(false);
    builder.append_dir_all(".", root)?;
    builder.into_inner()?.flush()?;
    let diff_id = hex(&Sha256::digest(std::fs::read(&layer)?));
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Cmd": recipe.command, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{diff_id}")]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "testkit"}],
    })
    .to_string();
    let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
    let manifest = json!([{"Config": config_name, "RepoTags": [recipe.reference], "Layers": ["layer.tar"]}]);

    let partial = tempfile::NamedTempFile::new_in(archive.parent().context("the archive needs a folder")?)?;
    let mut builder = tar::Builder::new(partial);
    for (name, text) in [(config_name.as_str(), config.as_str()), ("manifest.json", &manifest.to_string())] {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, text.as_bytes())?;
    }
    builder.append_path_with_name(&layer, "layer.tar")?;
    builder.into_inner()?.persist(archive)?;
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_names_its_layer_by_digest() {
        let archive = busybox().unwrap();
        let mut archive = tar::Archive::new(File::open(archive).unwrap());
        let mut names = BTreeSet::new();
        let mut config = None;
        let mut layer = None;
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            match name.as_str() {
                "layer.tar" => layer = Some(bytes),
                "manifest.json" => {}
                _ => config = Some(serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()),
            }
            names.insert(name);
        }
        assert_eq!(names.len(), 3, "{names:?}");
        let digest = format!("sha256:{}", hex(&Sha256::digest(layer.unwrap())));
        assert_eq!(config.unwrap()["rootfs"]["diff_ids"][0], digest);
    }
}
