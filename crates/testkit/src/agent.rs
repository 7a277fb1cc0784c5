//! A further node of a cluster, on a host of its own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::cluster::arguments_of_all;
use crate::netns::NetNs;
use crate::{Cluster, HOST_ADDRESS, run};

/// A running `navarch agent` in a network namespace that is wired to the cluster's. Dropping it removes everything and proves
/// that nothing is left.
pub struct Agent {
    name: String,
    net: NetNs,
    folder: TempDir,
    binary: PathBuf,
    token: String,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Agent {
    /// Joins the node `node-<number>` (2 to 9) to `cluster`.
    pub fn join(cluster: &Cluster, number: u8) -> anyhow::Result<Self> {
        Self::join_with(cluster, number, &[])
    }

    /// The same with more arguments of `navarch agent`.
    pub fn join_with(cluster: &Cluster, number: u8, arguments: &[&str]) -> anyhow::Result<Self> {
        let net = NetNs::beside(cluster.net(), number)?;
        let folder = tempfile::Builder::new().prefix("navarch-agent-").tempdir()?;
        let token = cluster.navarch("token")?.trim().to_owned();
        let binary = cluster.binary().to_owned();
        let arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        let name = format!("node-{number}");
        let mut this = Self { name, net, folder, binary, token, arguments, child: None };
        this.start()?;
        Ok(this)
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The agent's process id.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The agent's data folder.
    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The node's host.
    pub fn net(&self) -> &NetNs {
        &self.net
    }

    /// Starts the agent, again on the same folder.
    pub fn start(&mut self) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("agent.log"))?;
        let mut command = self.command("agent");
        command.args(["--node-name", &self.name, "--server", &format!("https://{HOST_ADDRESS}:6443")]);
        command.args(&self.arguments).args(arguments_of_all());
        // once is enough
        if !self.folder.path().join("data/agent/client.pem").exists() {
            command.args(["--token", &self.token]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("cannot run {}", self.binary.display()))?);
        Ok(())
    }

    /// Kills the agent as a crash would (SIGKILL).
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    /// Stops the agent and runs `navarch reset`; what it printed. It fails when something is left.
    pub fn reset(&mut self) -> anyhow::Result<String> {
        self.signal(Signal::TERM);
        run(&mut self.command("reset"))
    }

    /// `navarch image import` on this node.
    pub fn import(&self, archive: &Path) -> anyhow::Result<String> {
        run(self.command("image").arg("import").arg(archive))
    }

    /// The agent's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    fn command(&self, what: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(what).arg("--data-dir").arg(self.data_dir());
        command.env("HOME", self.folder.path());
        self.net.enter(&mut command);
        command
    }

    fn signal(&mut self, signal: Signal) {
        let Some(mut child) = self.child.take() else { return };
        // still our child: the id cannot have gone to another
        if let Some(pid) = Pid::from_raw(child.id() as i32) {
            let _ = kill_process(pid, signal);
        }
        let _ = child.wait();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        if failing {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "--- end of the log of {}\n{}\n---",
                self.name,
                lines[lines.len().saturating_sub(40)..].join("\n")
            );
        }
        self.signal(Signal::TERM);
        if !self.data_dir().exists() {
            return;
        }
        let reset = crate::output(&mut self.command("reset"), "");
        if failing {
            return;
        }
        let reset = reset.expect("navarch reset runs");
        assert!(
            reset.status.success(),
            "navarch reset left something on {}:\n{}{}",
            self.name,
            String::from_utf8_lossy(&reset.stdout),
            String::from_utf8_lossy(&reset.stderr)
        );
    }
}
