//! A cluster for one test.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::netns::NetNs;
use crate::{Disk, Mounted, run, tools};

/// Lines of the server's log shown when a test fails.
const TAIL: usize = 60;

/// How a cluster is started.
#[derive(Clone, Default)]
pub struct Options {
    /// The `navarch` to run.
    pub binary: PathBuf,
    /// Parts left out (`--disable`).
    pub disable: Vec<&'static str>,
    /// More arguments of `navarch server`.
    pub arguments: Vec<String>,
    /// More variables of its environment.
    pub environment: Vec<(&'static str, OsString)>,
    /// The value of `NAVARCH_LOG`; empty for the default.
    pub log: &'static str,
    /// The cluster's folder is on a disk of its own of so many bytes.
    pub disk: Option<u64>,
}

/// More arguments of every server and agent: `NAVARCH_TEST_ARGUMENTS`, by which tests are run on nodes that are set up otherwise.
pub(crate) fn arguments_of_all() -> Vec<String> {
    let given = std::env::var("NAVARCH_TEST_ARGUMENTS").unwrap_or_default();
    given.split_whitespace().map(str::to_owned).collect()
}

/// A running server in a network namespace and a folder of its own. Dropping it removes everything and proves
/// that nothing is left.
pub struct Cluster {
    options: Options,
    net: NetNs,
    /// Unmounted before it goes.
    disk: Option<(Mounted, Disk)>,
    folder: TempDir,
    server: Option<Child>,
    /// kubectl's minor version.
    minor: u32,
}

impl Cluster {
    /// Starts all parts of `binary`.
    pub fn start(binary: impl Into<PathBuf>) -> anyhow::Result<Self> {
        Self::with(Options { binary: binary.into(), ..Options::default() })
    }

    /// Starts only the API.
    pub fn api_only(binary: impl Into<PathBuf>) -> anyhow::Result<Self> {
        let disable = vec!["controllers", "scheduler", "agent", "proxy", "dns"];
        Self::with(Options { binary: binary.into(), disable, ..Options::default() })
    }

    /// Starts with these options; returns when the API is ready.
    pub fn with(options: Options) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("navarch-test-").tempdir()?;
        let disk = options.disk.map(|bytes| {
            let disk = Disk::new(bytes)?;
            disk.format()?;
            anyhow::Ok((disk.mount(&folder.path().join("disk"))?, disk))
        });
        let disk = disk.transpose()?;
        let mut this = Self { options, net: NetNs::new()?, disk, folder, server: None, minor: tools::NEW };
        this.start_server()?;
        Ok(this)
    }

    /// The cluster's folder.
    pub fn data_dir(&self) -> PathBuf {
        let disk = self.disk.as_ref().map(|_| "disk/data");
        self.folder.path().join(disk.unwrap_or("data"))
    }

    /// The first digits of the SHA-256 of that folder's path, by which the machine's parts of the cluster are told from those of others.
    pub fn instance(&self) -> anyhow::Result<String> {
        let path = self.data_dir().canonicalize()?;
        let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
        Ok(digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect())
    }

    /// The `navarch` that runs.
    pub fn binary(&self) -> &Path {
        &self.options.binary
    }

    /// The host this cluster runs on.
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// The server's process id.
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Child::id)
    }

    /// Uses kubectl and Helm of Kubernetes 1.`minor` from now on.
    pub fn use_client(&mut self, minor: u32) {
        self.minor = minor;
    }

    /// Starts the server on the same folder; returns when the API is ready.
    pub fn start_server(&mut self) -> anyhow::Result<()> {
        if self.server.is_some() {
            bail!("the server runs already");
        }
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.options.binary);
        command.arg("server").arg("--data-dir").arg(self.data_dir()).args(["--node-name", "node-1"]);
        command.args(self.options.disable.iter().flat_map(|part| ["--disable", part]));
        command.args(&self.options.arguments).args(arguments_of_all());
        command.envs(self.options.environment.iter().cloned());
        if !self.options.log.is_empty() {
            command.env("NAVARCH_LOG", self.options.log);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        self.net.enter(&mut command);
        let mut server =
            command.spawn().with_context(|| format!("cannot run {}", self.options.binary.display()))?;
        let mut first = String::new();
        if let Some(stdout) = server.stdout.take() {
            BufReader::new(stdout).read_line(&mut first)?;
        }
        if first.is_empty() {
            let status = server.wait()?;
            bail!("the server ended before it was ready ({status}):\n{}", self.log_tail());
        }
        self.server = Some(server);
        Ok(())
    }

    /// Stops the server as `navarch down` does.
    pub fn stop_server(&mut self) -> anyhow::Result<()> {
        self.signal_server(Signal::TERM)
    }

    /// Kills the server as a crash would (SIGKILL).
    pub fn kill_server(&mut self) -> anyhow::Result<()> {
        self.signal_server(Signal::KILL)
    }

    fn signal_server(&mut self, signal: Signal) -> anyhow::Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        let pid = Pid::from_raw(server.id() as i32).context("the server has no process id")?;
        // still our child: the id cannot have gone to another
        let _ = kill_process(pid, signal);
        let status = server.wait()?;
        if signal == Signal::TERM && !status.success() {
            bail!("the server ended with {status} after SIGTERM:\n{}", self.log_tail());
        }
        Ok(())
    }

    /// A command on the cluster's host, with the administrator's credential, kubectl and Helm.
    pub fn command(&self, program: impl AsRef<Path>) -> anyhow::Result<Command> {
        let tools = tools::folder(self.minor)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let paths = std::iter::once(tools.clone()).chain(std::env::split_paths(&path));
        let own = tools.join(program.as_ref());
        let mut command = Command::new(if own.is_file() { &own } else { program.as_ref() });
        command.env("PATH", std::env::join_paths(paths)?);
        command.env("KUBECONFIG", self.data_dir().join("admin.kubeconfig"));
        command.env("HOME", self.folder.path());
        self.net.enter(&mut command);
        Ok(command)
    }

    /// Runs kubectl; its output. `line` is split at spaces.
    pub fn kubectl(&self, line: &str) -> anyhow::Result<String> {
        self.kubectl_args(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// Runs kubectl with these arguments; its output. A `--timeout` in seconds is that of an ordinary machine.
    pub fn kubectl_args(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run(self.command("kubectl")?.args(patient(arguments)))
    }

    /// Runs kubectl with `input` on its standard input; its output.
    pub fn kubectl_with(&self, line: &str, input: &str) -> anyhow::Result<String> {
        let mut command = self.command("kubectl")?;
        command.args(line.split_whitespace());
        let output = crate::output(&mut command, input)?;
        crate::checked(&command, output)
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<String> {
        self.kubectl_with("apply -f -", yaml)
    }

    /// An object or a list as JSON: `get("pods -l app=web")`.
    pub fn get(&self, what: &str) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&format!("get {what} -o json"))?)?)
    }

    /// Runs Helm; its output.
    pub fn helm(&self, line: &str) -> anyhow::Result<String> {
        run(self.command("helm")?.args(patient(&line.split_whitespace().collect::<Vec<_>>())))
    }

    /// Runs our own binary on this cluster's folder.
    pub fn navarch(&self, line: &str) -> anyhow::Result<String> {
        run(self.navarch_command(line).env("HOME", self.folder.path()))
    }

    /// Our own binary on this cluster's folder, to be run otherwise.
    pub fn navarch_command(&self, line: &str) -> Command {
        let mut command = Command::new(&self.options.binary);
        command.args(line.split_whitespace()).arg("--data-dir").arg(self.data_dir());
        command.envs(self.options.environment.iter().cloned());
        self.net.enter(&mut command);
        command
    }

    /// `navarch image import`.
    pub fn import(&self, archive: &Path) -> anyhow::Result<String> {
        let mut command = self.navarch_command("image import");
        run(command.arg(archive))
    }

    /// GET over plain HTTP from the cluster's host; the body. Anything but 200 is an error.
    pub fn http_get(&self, address: SocketAddr, path: &str) -> anyhow::Result<String> {
        let path = path.to_owned();
        self.net.run(move || http_get(address, &path))?
    }

    /// The end of the server's log.
    pub fn log_tail(&self) -> String {
        let log = std::fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    /// `navarch reset`, with what it printed; it fails when something is left.
    pub fn reset(&mut self) -> anyhow::Result<Output> {
        self.stop_server()?;
        crate::output(self.navarch_command("reset").env("HOME", self.folder.path()), "")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            eprintln!("--- end of the server's log\n{}\n---", self.log_tail());
        }
        let stopped = self.stop_server();
        if !self.data_dir().exists() {
            return;
        }
        let reset = crate::output(self.navarch_command("reset").env("HOME", self.folder.path()), "");
        if failing {
            return;
        }
        stopped.expect("the server stops");
        let reset = reset.expect("navarch reset runs");
        assert!(
            reset.status.success(),
            "navarch reset left something:\n{}{}",
            String::from_utf8_lossy(&reset.stdout),
            String::from_utf8_lossy(&reset.stderr)
        );
    }
}

/// The arguments with the `--timeout` that this machine needs.
fn patient(arguments: &[&str]) -> Vec<String> {
    let mut is_timeout = false;
    let mut longer = |argument: &&str| {
        let seconds = if is_timeout { Some(*argument) } else { argument.strip_prefix("--timeout=") };
        is_timeout = *argument == "--timeout";
        let number = seconds.and_then(|text| text.strip_suffix('s')?.parse::<u32>().ok());
        match (seconds, number) {
            (Some(seconds), Some(number)) => {
                let before = argument.strip_suffix(seconds).unwrap_or_default();
                format!("{before}{}s", number * crate::slowness())
            }
            _ => (*argument).to_owned(),
        }
    };
    arguments.iter().map(&mut longer).collect()
}

fn http_get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let patience = Duration::from_secs(5) * crate::slowness();
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    // who took the connection answers, however much else the machine has to do
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("no complete HTTP answer")?;
    if head.split_whitespace().nth(1) != Some("200") {
        bail!("{address}{path}: {}\n{body}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
