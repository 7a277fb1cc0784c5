//! The runtime's side: a network's plugins are executed one after the other, each with what those before it made.
//!
//! What ADD was called with and what it answered is written down (`DIR/NETWORK@CONTAINER@IFNAME.json`), so that DEL and
//! CHECK are given it, with the configuration of that time, and GC knows what there is where plugins have none of their own.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use rustix::io::Errno;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use crate::configuration::List;
use crate::error::{CniError, code};
use crate::result::{Attachment, CniResult};
use crate::version::Version;

/// A plugin has this long.
const PATIENCE: Duration = Duration::from_secs(120);
/// A plugin's answer is cut here.
const MAX_ANSWER: u64 = 4 << 20;
/// A plugin that is just being written cannot be executed; it is tried so often.
const BUSY_ROUNDS: u32 = 5;
const BUSY_WAIT: Duration = Duration::from_millis(200);

/// A container as plugins are told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its id and the interface's name.
    pub attachment: Attachment,
    /// Its network namespace; none when it is gone already.
    pub netns: Option<PathBuf>,
    /// `CNI_ARGS`.
    pub args: Vec<(String, String)>,
    /// What plugins with a capability of that name are given (`portMappings`, `bandwidth`).
    pub capabilities: Map<String, Value>,
}

/// Why a network could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// No folder has the plugin.
    #[error("failed to find plugin {plugin:?} in path {folders:?}")]
    NotFound {
        /// Its type.
        plugin: String,
        /// Where it was looked for.
        folders: Vec<PathBuf>,
    },
    /// The plugin said no.
    #[error("plugin type={plugin:?} name={network:?} failed ({command})")]
    Plugin {
        /// Its type.
        plugin: String,
        /// The network.
        network: String,
        /// What it was asked.
        command: &'static str,
        /// What it answered.
        #[source]
        source: CniError,
    },
    /// It cannot be run.
    #[error("cannot run plugin {plugin:?}")]
    Run {
        /// Its type.
        plugin: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What was made cannot be written down.
    #[error("cannot {what} {}", .path.display())]
    Notes {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Executes plugins.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Where plugins are, in order.
    pub bin_dirs: Vec<PathBuf>,
    /// Where attachments are written down.
    pub notes: PathBuf,
}

/// What is known of an attachment.
struct Note {
    bin_dirs: Vec<PathBuf>,
    list: List,
    container: Container,
    result: Option<Value>,
}

impl Runner {
    /// Connects a container. After an error it must be disconnected: some plugins may have succeeded.
    pub async fn add(&self, list: &List, container: &Container) -> Result<CniResult, ChainError> {
        // written first: whatever happens from here on, DEL and GC know what to take back
        self.save(list, container, None)?;
        let mut previous = None;
        for plugin in &list.plugins {
            let stdin = configuration(list, plugin, &container.capabilities, previous.as_ref());
            let answer = self.call(list, plugin, "ADD", Some(container), stdin).await?;
            previous = Some(answer);
        }
        let last = previous.unwrap_or_default();
        let result = CniResult::read(&last).map_err(|source| {
            let plugin = list.plugins.last().map(type_of).unwrap_or_default();
            failed(list, plugin, "ADD", source)
        })?;
        self.save(list, container, Some(&last))?;
        Ok(result)
    }

    /// Disconnects a container, by the configuration with which it was connected; else by `list`.
    pub async fn del(&self, list: Option<&List>, container: &Container) -> Result<(), ChainError> {
        let notes = self.notes_of(&container.attachment)?;
        if notes.is_empty() {
            return match list {
                Some(list) => self.disconnect(list, container, None).await,
                None => Ok(()),
            };
        }
        for (path, note) in notes {
            self.take_back(&path, note, container.netns.clone()).await?;
        }
        Ok(())
    }

    /// Disconnects a container as it was connected.
    async fn take_back(&self, path: &Path, note: Note, netns: Option<PathBuf>) -> Result<(), ChainError> {
        let then = Self { bin_dirs: note.bin_dirs, notes: self.notes.clone() };
        let container = Container { netns, ..note.container };
        then.disconnect(&note.list, &container, note.result.as_ref()).await?;
        forget(path)
    }

    async fn disconnect(
        &self,
        list: &List,
        container: &Container,
        result: Option<&Value>,
    ) -> Result<(), ChainError> {
        let result = result.filter(|_| list.version >= Version::V0_4_0);
        for plugin in list.plugins.iter().rev() {
            let stdin = configuration(list, plugin, &container.capabilities, result);
            match self.call(list, plugin, "DEL", Some(container), stdin).await {
                // the plugin has nothing of it
                Err(ChainError::Plugin { source, .. }) if source.code == code::UNKNOWN_CONTAINER => {}
                done => drop(done?),
            }
        }
        Ok(())
    }

    /// Looks whether a container is connected as ADD left it. Networks that know no CHECK are taken to be well.
    pub async fn check(&self, container: &Container) -> Result<(), ChainError> {
        for (_, note) in self.notes_of(&container.attachment)? {
            let list = &note.list;
            if list.version < Version::V0_4_0 || list.disable_check {
                continue;
            }
            for plugin in &list.plugins {
                let stdin = configuration(list, plugin, &note.container.capabilities, note.result.as_ref());
                self.call(list, plugin, "CHECK", Some(container), stdin).await?;
            }
        }
        Ok(())
    }

    /// What ADD answered earlier.
    pub fn result(&self, attachment: &Attachment) -> Result<Option<CniResult>, ChainError> {
        let notes = self.notes_of(attachment)?;
        Ok(notes.into_iter().find_map(|(_, note)| CniResult::read(&note.result?).ok()))
    }

    /// Disconnects every container that is not in `valid`, and has the plugins of `list` free what belongs to none of them.
    pub async fn gc(&self, list: Option<&List>, valid: &[Attachment]) -> Result<(), ChainError> {
        for (path, note) in self.all_notes()? {
            if valid.contains(&note.container.attachment) {
                continue;
            }
            // the namespace may have gone with the container
            let netns = note.container.netns.clone().filter(|path| path.exists());
            self.take_back(&path, note, netns).await?;
        }
        let Some(list) = list.filter(|l| l.version >= Version::V1_1_0 && !l.disable_gc) else {
            return Ok(());
        };
        for plugin in &list.plugins {
            let mut stdin = configuration(list, plugin, &Map::new(), None);
            stdin["cni.dev/valid-attachments"] = json!(valid);
            // the key's name in the first drafts, which plugins still read
            stdin["cni.dev/attachments"] = json!(valid);
            self.call(list, plugin, "GC", None, stdin).await?;
        }
        Ok(())
    }

    /// Whether ADD can succeed: all plugins are there, and those that can say so are ready.
    pub async fn status(&self, list: &List) -> Result<(), ChainError> {
        for plugin in &list.plugins {
            self.find(type_of(plugin))?;
        }
        if list.version >= Version::V1_1_0 {
            for plugin in &list.plugins {
                let stdin = configuration(list, plugin, &Map::new(), None);
                self.call(list, plugin, "STATUS", None, stdin).await?;
            }
        }
        Ok(())
    }

    fn find(&self, plugin: &str) -> Result<PathBuf, ChainError> {
        let found = self.bin_dirs.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file());
        found
            .ok_or_else(|| ChainError::NotFound { plugin: plugin.to_owned(), folders: self.bin_dirs.clone() })
    }

    /// Executes a plugin; what it answered, null where it said nothing.
    async fn call(
        &self,
        list: &List,
        plugin: &Map<String, Value>,
        command: &'static str,
        container: Option<&Container>,
        stdin: Value,
    ) -> Result<Value, ChainError> {
        let name = type_of(plugin);
        let program = self.find(name)?;
        let unable = |source| ChainError::Run { plugin: name.to_owned(), source };
        let path = std::env::join_paths(&self.bin_dirs)
            .map_err(|error| unable(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let mut process = Command::new(&program);
        process.env("CNI_COMMAND", command).env("CNI_PATH", path);
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"] {
            process.env_remove(name);
        }
        if let Some(container) = container {
            let args: Vec<String> = container.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
            process.env("CNI_CONTAINERID", &container.attachment.container_id);
            process.env("CNI_IFNAME", &container.attachment.ifname);
            process.env("CNI_NETNS", container.netns.as_deref().unwrap_or(Path::new("")));
            process.env("CNI_ARGS", args.join(";"));
        }
        process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let child = spawn(&mut process).await.map_err(unable)?;
        let output = tokio::time::timeout(PATIENCE, converse(child, stdin.to_string().into_bytes()))
            .await
            .map_err(|_| {
                unable(io::Error::new(io::ErrorKind::TimedOut, format!("no answer in {PATIENCE:?}")))
            })?
            .map_err(unable)?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !said.trim().is_empty() {
            tracing::debug!(plugin = name, command, output = said.trim(), "plugin wrote to standard error");
        }
        if !output.status.success() {
            let error = serde_json::from_slice::<CniError>(&output.stdout).unwrap_or_else(|_| {
                let stdout = String::from_utf8_lossy(&output.stdout);
                let text = if said.trim().is_empty() { stdout } else { said };
                CniError::new(code::INTERNAL, format!("{}: {}", output.status, text.trim()))
            });
            return Err(failed(list, name, command, error));
        }
        if output.stdout.trim_ascii().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output.stdout).map_err(|error| {
            failed(list, name, command, CniError::new(code::DECODING_FAILURE, format!("no JSON: {error}")))
        })
    }

    fn note_path(&self, network: &str, attachment: &Attachment) -> PathBuf {
        // neither names of networks nor ids hold an `@`
        self.notes.join(format!("{network}@{}@{}.json", attachment.container_id, attachment.ifname))
    }

    fn save(&self, list: &List, container: &Container, result: Option<&Value>) -> Result<(), ChainError> {
        let path = self.note_path(&list.name, &container.attachment);
        let failed = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| ChainError::Notes { what, path, source }
        };
        std::fs::create_dir_all(&self.notes).map_err(failed("make", &self.notes))?;
        let note = json!({
            "binDirs": self.bin_dirs,
            "list": list.to_json(),
            "attachment": container.attachment,
            "netns": container.netns,
            "args": container.args,
            "capabilities": container.capabilities,
            "result": result,
        });
        let draft = path.with_extension("tmp");
        std::fs::write(&draft, note.to_string()).map_err(failed("write", &draft))?;
        std::fs::rename(&draft, &path).map_err(failed("rename", &draft))
    }

    fn notes_of(&self, attachment: &Attachment) -> Result<Vec<(PathBuf, Note)>, ChainError> {
        let mut notes = self.all_notes()?;
        notes.retain(|(_, note)| note.container.attachment == *attachment);
        Ok(notes)
    }

    fn all_notes(&self) -> Result<Vec<(PathBuf, Note)>, ChainError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| ChainError::Notes { what: "read", path, source }
        };
        let entries = match std::fs::read_dir(&self.notes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(&self.notes)(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed(&self.notes))?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(failed(&path))?;
            let note = serde_json::from_slice(&bytes).ok().and_then(note);
            let broken = || io::Error::new(io::ErrorKind::InvalidData, "no note of an attachment");
            found.push((path.clone(), note.ok_or_else(|| failed(&path)(broken()))?));
        }
        Ok(found)
    }
}

fn note(mut value: Value) -> Option<Note> {
    let mut take = |key: &str| value.get_mut(key).map(Value::take);
    Some(Note {
        bin_dirs: serde_json::from_value(take("binDirs")?).ok()?,
        list: List::from_json(take("list")?)?,
        container: Container {
            attachment: serde_json::from_value(take("attachment")?).ok()?,
            netns: serde_json::from_value(take("netns")?).ok()?,
            args: serde_json::from_value(take("args")?).ok()?,
            capabilities: serde_json::from_value(take("capabilities")?).ok()?,
        },
        result: take("result").filter(|r| !r.is_null()),
    })
}

fn forget(path: &Path) -> Result<(), ChainError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ChainError::Notes { what: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn failed(list: &List, plugin: &str, command: &'static str, source: CniError) -> ChainError {
    ChainError::Plugin { plugin: plugin.to_owned(), network: list.name.clone(), command, source }
}

fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// What a plugin reads (specification, "Deriving execution configuration from plugin configuration").
fn configuration(
    list: &List,
    plugin: &Map<String, Value>,
    capabilities: &Map<String, Value>,
    previous: Option<&Value>,
) -> Value {
    let mut config = plugin.clone();
    let wanted = config.remove("capabilities").unwrap_or_default();
    let given: Map<String, Value> = capabilities
        .iter()
        .filter(|(name, _)| wanted.get(name.as_str()) == Some(&Value::Bool(true)))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !given.is_empty() {
        config.insert("runtimeConfig".to_owned(), Value::Object(given));
    }
    config.insert("name".to_owned(), list.name.clone().into());
    config.insert("cniVersion".to_owned(), list.version.text().into());
    config.remove("cniVersions");
    config.remove("prevResult");
    if let Some(previous) = previous.filter(|p| !p.is_null()) {
        config.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(config)
}

async fn spawn(process: &mut Command) -> io::Result<Child> {
    let mut round = 0;
    loop {
        match process.spawn() {
            Err(error)
                if error.raw_os_error() == Some(Errno::TXTBSY.raw_os_error()) && round < BUSY_ROUNDS =>
            {
                round += 1;
                tokio::time::sleep(BUSY_WAIT).await;
            }
            spawned => return spawned,
        }
    }
}

/// Writes and reads at once: a plugin may answer before it has read all.
async fn converse(mut child: Child, stdin: Vec<u8>) -> io::Result<Output> {
    let (input, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        let Some(mut input) = input else { return Ok(()) };
        match input.write_all(&stdin).await {
            // it has seen enough
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let read = async {
        match out {
            Some(out) => out.take(MAX_ANSWER).read_to_end(&mut stdout).await.map(|_| ()),
            None => Ok(()),
        }
    };
    let read_errors = async {
        match err {
            Some(err) => err.take(MAX_ANSWER).read_to_end(&mut stderr).await.map(|_| ()),
            None => Ok(()),
        }
    };
    tokio::try_join!(write, read, read_errors)?;
    Ok(Output { status: child.wait().await?, stdout, stderr })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Plugins that write down how they were called, and a network of them.
    struct Lab {
        dir: tempfile::TempDir,
        runner: Runner,
    }

    impl Lab {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let runner = Runner { bin_dirs: vec![dir.path().join("bin")], notes: dir.path().join("notes") };
            std::fs::create_dir(dir.path().join("bin")).unwrap();
            Self { dir, runner }
        }

        fn plugin(&self, name: &str, script: &str) {
            let log = self.dir.path().join("log");
            let head = format!(
                "#!/bin/sh\nin=$(cat)\necho \"{name} $CNI_COMMAND $CNI_CONTAINERID $CNI_ARGS $in\" >> {}\n",
                log.display()
            );
            let path = self.dir.path().join("bin").join(name);
            std::fs::write(&path, head + script).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }

        fn log(&self) -> String {
            let path = self.dir.path().join("log");
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let _ = std::fs::remove_file(path);
            text
        }
    }

    fn list(version: &str) -> List {
        List::from_json(json!({"name": "net", "cniVersion": version, "plugins": [
            {"type": "first"}, {"type": "second", "capabilities": {"portMappings": true}}]}))
        .unwrap()
    }

    fn container(id: &str) -> Container {
        let ports = json!({"portMappings": [{"hostPort": 80}], "bandwidth": {}});
        Container {
            attachment: Attachment { container_id: id.to_owned(), ifname: "eth0".to_owned() },
            netns: Some("/run/netns/a".into()),
            args: vec![("IgnoreUnknown".to_owned(), "1".to_owned()), ("K".to_owned(), "v".to_owned())],
            capabilities: ports.as_object().unwrap().clone(),
        }
    }

    const ANSWER: &str = r#"echo '{"cniVersion":"1.1.0","ips":[{"address":"10.1.0.2/24"}],"future":1}'"#;

    #[tokio::test]
    async fn each_plugin_is_given_what_those_before_it_made_and_del_goes_backwards() {
        let lab = Lab::new();
        lab.plugin("first", ANSWER);
        lab.plugin("second", ANSWER);
        let result = lab.runner.add(&list("1.1.0"), &container("a")).await.unwrap();
        assert_eq!(result.addresses(), ["10.1.0.2".parse::<std::net::IpAddr>().unwrap()]);
        let prev = r#""prevResult":{"cniVersion":"1.1.0","future":1,"ips":[{"address":"10.1.0.2/24"}]}"#;
        let second = |command: &str| {
            format!(
                r#"second {command} a IgnoreUnknown=1;K=v {{"cniVersion":"1.1.0","name":"net",{prev},"runtimeConfig":{{"portMappings":[{{"hostPort":80}}]}},"type":"second"}}"#
            )
        };
        let first = r#"first ADD a IgnoreUnknown=1;K=v {"cniVersion":"1.1.0","name":"net","type":"first"}"#;
        assert_eq!(lab.log(), format!("{first}\n{}\n", second("ADD")));
        // the folder says something else by now: what was made is taken back as it was made
        let other = List { name: "other".to_owned(), ..list("1.0.0") };
        lab.runner.del(Some(&other), &Container { netns: None, ..container("a") }).await.unwrap();
        let first = format!(
            r#"first DEL a IgnoreUnknown=1;K=v {{"cniVersion":"1.1.0","name":"net",{prev},"type":"first"}}"#
        );
        assert_eq!(lab.log(), format!("{}\n{first}\n", second("DEL")));
        assert_eq!(lab.runner.all_notes().unwrap().len(), 0);
    }

    #[tokio::test]
    async fn a_plugins_own_words_reach_the_runtime() {
        let lab = Lab::new();
        let why = |error: ChainError| {
            format!(
                "{error}: {}",
                std::error::Error::source(&error).map(|e| e.to_string()).unwrap_or_default()
            )
        };
        let missing = lab.runner.status(&list("1.0.0")).await.unwrap_err().to_string();
        assert!(missing.starts_with("failed to find plugin \"first\" in path"), "{missing}");
        lab.plugin("first", r#"echo '{"code":11,"msg":"later","details":"no lease"}'; exit 1"#);
        let error = lab.runner.add(&list("1.0.0"), &container("a")).await.unwrap_err();
        assert_eq!(why(error), r#"plugin type="first" name="net" failed (ADD): later: no lease"#);
        lab.plugin("first", "echo oops >&2; exit 3");
        let error = lab.runner.add(&list("1.0.0"), &container("a")).await.unwrap_err();
        assert_eq!(why(error), r#"plugin type="first" name="net" failed (ADD): exit status: 3: oops"#);
        // what half-way failed is known, and taken back
        lab.plugin("first", "");
        lab.plugin("second", "");
        lab.log();
        lab.runner.gc(None, &[]).await.unwrap();
        assert_eq!(lab.log().lines().filter(|l| l.contains(" DEL a ")).count(), 2);
    }

    #[tokio::test]
    async fn gc_disconnects_what_nobody_claims_and_only_new_plugins_hear_of_it() {
        let lab = Lab::new();
        lab.plugin("first", ANSWER);
        lab.plugin("second", ANSWER);
        for (version, calls) in [("1.0.0", 2), ("1.1.0", 4)] {
            lab.runner.add(&list(version), &container("a")).await.unwrap();
            lab.runner.add(&list(version), &container("b")).await.unwrap();
            lab.log();
            let a = container("a").attachment;
            lab.runner.gc(Some(&list(version)), std::slice::from_ref(&a)).await.unwrap();
            let log = lab.log();
            assert_eq!(log.lines().count(), calls, "{log}");
            assert_eq!(log.lines().filter(|l| l.contains(" DEL b ")).count(), 2, "{log}");
            assert!(lab.runner.result(&a).unwrap().is_some());
        }
    }
}
