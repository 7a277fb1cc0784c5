//! A real image registry for one test: Debian's `docker-registry` on a port of the loopback interface, and Debian's
//! `skopeo` to put images into it.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::{NetNs, debian, etcd::die_with_parent, run};

/// Who may use a registry that was started with a password.
pub const USER: (&str, &str) = ("me", "pass word:1");
/// [`USER`] as `htpasswd -B` writes it.
const HTPASSWD: &str = "me:$2b$05$5Zcholhg97YOyq6E74BwPOD2.W8WySrByc14oliIjCVgZI8UOfroe\n";
/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// skopeo, and what it needs beside the libraries of every system.
const SKOPEO: &[&str] = &["skopeo", "libdevmapper1.02.1", "libgpgme11", "libassuan0", "libgpg-error0"];
/// A new port may be taken by somebody else before the registry listens there.
const TRIES: usize = 5;

/// How a registry is started.
#[derive(Clone, Copy, Default)]
pub struct Options<'a> {
    /// Certificate and key (PEM files); without them it speaks plain HTTP.
    pub tls: Option<(&'a Path, &'a Path)>,
    /// It asks for [`USER`].
    pub password: bool,
    /// The host it runs on; the test's own without one.
    pub net: Option<&'a NetNs>,
}

/// A running registry. Dropping it ends and removes everything.
pub struct Registry {
    folder: TempDir,
    port: u16,
    process: Child,
    password: bool,
    tls: bool,
}

impl Registry {
    /// Starts one.
    pub fn start(options: Options<'_>) -> anyhow::Result<Self> {
        let mut last = None;
        for _ in 0..TRIES {
            match Self::attempt(options) {
                Ok(registry) => return Ok(registry),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("the registry was not tried")?)
    }

    fn attempt(options: Options<'_>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("navarch-registry-").tempdir()?;
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let root = folder.path().join("data");
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\n\
             http:\n  addr: 127.0.0.1:{port}\n",
            root.display()
        );
        if let Some((certificate, key)) = options.tls {
            let line = format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display());
            config.push_str(&line);
        }
        if options.password {
            let file = folder.path().join("htpasswd");
            std::fs::write(&file, HTPASSWD)?;
            config.push_str(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", file.display()));
        }
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config)?;
        let log = std::fs::File::create(folder.path().join("log"))?;
        let mut command = program()?;
        command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("OTEL_TRACES_EXPORTER", "none");
        die_with_parent(&mut command);
        if let Some(net) = options.net {
            net.enter(&mut command);
        }
        let process = command.spawn().context("cannot run docker-registry")?;
        let mut registry =
            Registry { folder, port, process, password: options.password, tls: options.tls.is_some() };
        registry.answers(options.net)?;
        Ok(registry)
    }

    fn answers(&mut self, net: Option<&NetNs>) -> anyhow::Result<()> {
        let port = self.port;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.try_wait()? {
                bail!("the registry ended ({status}):\n{}", self.log());
            }
            let dial = move || TcpStream::connect(("127.0.0.1", port)).map(drop);
            let dialed = match net {
                Some(net) => net.run(dial)?,
                None => dial(),
            };
            match dialed {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => bail!("the registry: {error}\n{}", self.log()),
                Err(_) => crate::wait::pause(),
            }
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Host and port, as image names begin.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where it keeps its content.
    pub fn data(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    /// `skopeo ARGUMENTS`, with credentials and trust for this registry where it goes `to` it, else `from` it.
    pub fn skopeo(&self, to: bool, arguments: &[&str], net: Option<&NetNs>) -> anyhow::Result<String> {
        let mut command = skopeo()?;
        command.args(["copy", "--quiet"]);
        let side = if to { "dest" } else { "src" };
        command.arg(format!("--{side}-tls-verify=false"));
        if self.password {
            command.arg(format!("--{side}-creds={}:{}", USER.0, USER.1));
        }
        command.args(arguments);
        if let Some(net) = net {
            net.enter(&mut command);
        }
        run(&mut command)
    }

    /// Puts an archive (`docker-archive:…`, `oci-archive:…`) into it as `name`; its full name.
    pub fn put(&self, archive: &str, name: &str, net: Option<&NetNs>) -> anyhow::Result<String> {
        let full = format!("{}/{name}", self.host());
        self.skopeo(true, &[archive, &format!("docker://{full}")], net)?;
        Ok(full)
    }

    /// `registries.yaml` by which it is reached: plain HTTP, or TLS with the authority `ca`.
    pub fn settings(&self, ca: Option<&Path>) -> String {
        let host = self.host();
        match ca.filter(|_| self.tls) {
            Some(ca) => format!("configs:\n  \"{host}\": {{tls: {{ca_file: {}}}}}\n", ca.display()),
            None => format!("mirrors:\n  \"{host}\": {{endpoint: [\"http://{host}\"]}}\n"),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Debian's registry.
pub(crate) fn program() -> anyhow::Result<Command> {
    debian::command("docker-registry", &["docker-registry"])
}

/// Debian's skopeo, without its files in `/etc`.
pub fn skopeo() -> anyhow::Result<Command> {
    let mut command = debian::command("skopeo", SKOPEO)?;
    command.arg("--insecure-policy");
    Ok(command)
}
