//! Programs of Debian packages, unpacked into the cache with libraries that a small system lacks; nothing is installed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::{cache_dir, image, run};

/// `program` as the `PATH` has it, else of the first of these Debian packages; the others hold its libraries.
pub fn command(program: &str, packages: &[&str]) -> anyhow::Result<Command> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if let Some(found) = std::env::split_paths(&path).map(|p| p.join(program)).find(|p| p.is_file()) {
        return Ok(Command::new(found));
    }
    let folder = unpacked(program, packages)?;
    let places = ["usr/bin", "usr/sbin", "bin", "sbin"];
    let found = places.iter().map(|place| folder.join(place).join(program)).find(|p| p.is_file());
    let mut command = Command::new(found.with_context(|| format!("{program} is not in {packages:?}"))?);
    command.env("LD_LIBRARY_PATH", libraries(&folder)?);
    Ok(command)
}

/// Debian's CNI plugins.
pub struct CniPlugins {
    /// The folder with them.
    pub folder: PathBuf,
    /// Variables under which those that need iptables find it.
    pub environment: Vec<(&'static str, OsString)>,
}

/// Debian's CNI plugins, and the iptables that `portmap` runs.
pub fn cni_plugins() -> anyhow::Result<CniPlugins> {
    let libraries_of_iptables = [
        "libip4tc2",
        "libip6tc2",
        "libxtables12",
        "libmnl0",
        "libnetfilter-conntrack3",
        "libnfnetlink0",
        "libnftnl11",
    ];
    let packages: Vec<&str> =
        ["containernetworking-plugins", "iptables"].into_iter().chain(libraries_of_iptables).collect();
    let folder = unpacked("cni-plugins", &packages)?;
    // what installing the package would choose
    let sbin = folder.join("usr/sbin");
    for name in
        ["iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore"]
    {
        let link = sbin.join(name);
        if let Err(error) = std::os::unix::fs::symlink("xtables-nft-multi", &link)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(error).with_context(|| link.display().to_string());
        }
    }
    let libraries = libraries(&folder)?;
    let extensions = std::env::split_paths(&libraries).map(|l| l.join("xtables")).find(|l| l.is_dir());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let paths = std::iter::once(sbin).chain(std::env::split_paths(&path));
    let environment = vec![
        ("PATH", std::env::join_paths(paths)?),
        ("LD_LIBRARY_PATH", libraries),
        ("XTABLES_LIBDIR", extensions.context("iptables has no extensions")?.into()),
    ];
    Ok(CniPlugins { folder: folder.join("usr/lib/cni"), environment })
}

/// Packages in one folder, with a path to their libraries.
pub struct Unpacked {
    /// The folder.
    pub folder: PathBuf,
    libraries: OsString,
}

impl Unpacked {
    /// Of these packages; the cache knows them by `name`.
    pub fn new(name: &str, packages: &[&str]) -> anyhow::Result<Self> {
        let folder = unpacked(name, packages)?;
        Ok(Self { libraries: libraries(&folder)?, folder })
    }

    /// A program of `usr/bin`.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.folder.join("usr/bin").join(program));
        command.env("LD_LIBRARY_PATH", &self.libraries);
        command
    }
}

/// An OCI runtime, Debian's crun, as one program that is made in `folder`: it brings the libraries it needs itself.
pub fn crun(folder: &Path) -> anyhow::Result<PathBuf> {
    let unpacked = unpacked_crun()?;
    let program = folder.join("crun");
    let libraries = libraries(&unpacked)?;
    let (libraries, real) = (libraries.to_string_lossy(), unpacked.join("usr/bin/crun"));
    let script = format!("#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {} \"$@\"\n", real.display());
    crate::executable(&program, script.as_bytes())?;
    Ok(program)
}

pub(crate) fn unpacked_crun() -> anyhow::Result<PathBuf> {
    unpacked("crun", &["crun", "libyajl2", "libseccomp2", "libcap2"])
}

/// Debian's busybox, a program that needs no libraries.
pub fn busybox() -> anyhow::Result<PathBuf> {
    Ok(unpacked("busybox", &["busybox-static"])?.join("bin/busybox"))
}

fn unpacked(program: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    tree(program, || Ok(packages.iter().map(ToString::to_string).collect()))
}

/// These packages and the libraries they depend on but for the C library's, unpacked into the folder `name` of the cache.
pub(crate) fn with_libraries(name: &str, packages: &[&str]) -> anyhow::Result<PathBuf> {
    // another C library than that of the loader that every program names would not start
    let own = |package: &String| !["libc6", "libgcc-s1", "libstdc++6"].contains(&package.as_str());
    tree(name, || Ok(image::with_libraries(packages)?.into_iter().filter(own).collect()))
}

/// Packages, unpacked into the folder `program` of the cache; asks which ones only where it is not there.
pub(crate) fn tree(
    program: &str,
    packages: impl FnOnce() -> anyhow::Result<Vec<String>>,
) -> anyhow::Result<PathBuf> {
    let folder = cache_dir().join("debian").join(program);
    if folder.exists() {
        return Ok(folder);
    }
    let above = cache_dir().join("debian");
    std::fs::create_dir_all(&above)?;
    let work = tempfile::tempdir_in(&above)?;
    let root = work.path().join("root");
    // all at once: each run of apt-get reads the whole list of packages
    let names = packages()?;
    let fetch = || {
        let mut command = Command::new("apt-get");
        run(command.args(["download", "--quiet"]).args(&names).current_dir(work.path()))
    };
    if fetch().is_err() {
        run(Command::new("apt-get").args(["update", "--quiet"]))?;
        fetch()?;
    }
    for entry in std::fs::read_dir(work.path())? {
        let deb = entry?.path();
        if deb.extension().is_some_and(|kind| kind == "deb") {
            run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root))?;
        }
    }
    // Whoever is first wins.
    if std::fs::rename(&root, &folder).is_err() && !folder.exists() {
        bail!("cannot put {program} into {}", folder.display());
    }
    Ok(folder)
}

/// What `apt-cache` says, with the package lists of a fresh machine fetched where they are missing or old.
pub(crate) fn apt_cache(arguments: &[&str]) -> anyhow::Result<String> {
    let list = || run(Command::new("apt-cache").args(arguments));
    match list() {
        Ok(text) if !text.trim().is_empty() => Ok(text),
        _ => {
            run(Command::new("apt-get").args(["update", "--quiet"]))?;
            list()
        }
    }
}

/// The folders with libraries, as `LD_LIBRARY_PATH` wants them.
pub(crate) fn libraries(folder: &Path) -> anyhow::Result<OsString> {
    let mut found = Vec::new();
    for place in ["lib", "usr/lib"] {
        let place = folder.join(place);
        let below = std::fs::read_dir(&place).into_iter().flatten().flatten();
        found.extend(
            below
                .map(|entry| entry.path())
                .filter(|p| p.is_dir() && p.to_string_lossy().ends_with("-linux-gnu")),
        );
        found.push(place);
    }
    Ok(std::env::join_paths(found)?)
}
