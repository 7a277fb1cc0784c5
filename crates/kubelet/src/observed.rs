//! What the runtime says about a pod: sandboxes and containers, found by the labels that every kubelet puts on them.

use std::collections::HashMap;

use cri::v1;
use jiff::Timestamp;

/// Label: the pod's name.
pub const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's uid.
pub const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: how often the container was started again.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";
/// Annotation: where the container leaves its last words.
pub const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Annotation: what the container leaves if it leaves no words: nothing (`File`), or the end of its log.
pub const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
/// Annotation: [`crate::plan::fingerprint`].
pub const FINGERPRINT: &str = "io.kubernetes.container.hash";
/// Annotation: the pod's grace period when the container was started.
pub const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";

/// What a container does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// Made, not started.
    Created,
    /// Running.
    Running,
    /// Over.
    Exited,
    /// The runtime does not know.
    Unknown,
}

impl Run {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Unknown => "unknown",
        }
    }
}

/// One container of the pod, of this or an earlier run.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// The runtime's id.
    pub id: String,
    /// The name in the pod.
    pub name: String,
    /// The sandbox it belongs to.
    pub sandbox: String,
    /// 0 for the first run.
    pub attempt: u32,
    /// What it does.
    pub run: Run,
    /// When it was made.
    pub created: Timestamp,
    /// When it was started; the epoch where it was not.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// Exit code.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, ...
    pub reason: String,
    /// The runtime's words, or the container's last ones.
    pub message: String,
    /// The image as the pod names it.
    pub image: String,
    /// The image's id.
    pub image_id: String,
    /// [`crate::plan::fingerprint`] when it was made; empty where it is not known.
    pub fingerprint: String,
    /// Its log.
    pub log_path: String,
    /// User, group and further groups of its process, where the runtime tells.
    pub user: Option<(i64, i64, Vec<i64>)>,
    /// Places inside whose mounts are read-only together with what is below them.
    pub recursive: Vec<String>,
    /// What the kernel lets it have, where the runtime tells.
    pub resources: Option<v1::LinuxContainerResources>,
}

/// The sandbox of the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Sandbox {
    /// The runtime's id.
    pub id: String,
    /// Whether it is ready.
    pub ready: bool,
    /// 0 for the first one.
    pub attempt: u32,
    /// The pod's addresses.
    pub ips: Vec<String>,
}

/// Everything of one pod.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The newest sandbox first.
    pub sandboxes: Vec<Sandbox>,
    /// The newest run of each container first.
    pub containers: Vec<Container>,
}

impl Observed {
    /// The newest sandbox, where it is ready.
    pub fn ready_sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first().filter(|s| s.ready)
    }

    /// The newest run of a container.
    pub fn newest(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|c| c.name == name)
    }

    /// All runs of a container that are still known, the newest first.
    pub fn runs<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Container> {
        self.containers.iter().filter(move |c| c.name == name)
    }

    /// Containers that run.
    pub fn running(&self) -> impl Iterator<Item = &Container> {
        self.containers.iter().filter(|c| c.run == Run::Running)
    }
}

fn time(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(nanos.into()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn container(c: v1::ContainerStatus, sandbox: String) -> Container {
    let meta = c.metadata.unwrap_or_default();
    let run = match v1::ContainerState::try_from(c.state) {
        Ok(v1::ContainerState::ContainerCreated) => Run::Created,
        Ok(v1::ContainerState::ContainerRunning) => Run::Running,
        Ok(v1::ContainerState::ContainerExited) => Run::Exited,
        _ => Run::Unknown,
    };
    Container {
        id: c.id,
        name: c.labels.get(CONTAINER_NAME).cloned().unwrap_or(meta.name),
        sandbox,
        attempt: c.annotations.get(RESTART_COUNT).and_then(|n| n.parse().ok()).unwrap_or(meta.attempt),
        run,
        created: time(c.created_at),
        started: time(c.started_at),
        finished: time(c.finished_at),
        exit_code: c.exit_code,
        fingerprint: c.annotations.get(FINGERPRINT).cloned().unwrap_or_default(),
        log_path: c.log_path,
        user: c.user.and_then(|u| u.linux).map(|u| (u.uid, u.gid, u.supplemental_groups)),
        recursive: c
            .mounts
            .iter()
            .filter(|m| m.recursive_read_only)
            .map(|m| m.container_path.clone())
            .collect(),
        resources: c.resources.and_then(|resources| resources.linux),
        reason: c.reason,
        message: c.message,
        image: c
            .image
            .map(|i| if i.user_specified_image.is_empty() { i.image } else { i.user_specified_image })
            .unwrap_or_default(),
        image_id: if c.image_ref.is_empty() { c.image_id } else { c.image_ref },
    }
}

/// Most bytes of a container's last words.
const WORDS: u64 = 4096;
/// What the end of a log may stand in with.
const LOG_LINES: usize = 80;
const LOG_BYTES: usize = 2048;

/// What a container that has ended says about its end: its termination message file, else the end of its log where
/// the pod asks for that and it failed.
fn last_words(status: &v1::ContainerStatus) -> String {
    use std::io::Read as _;
    let annotation = |name: &str| status.annotations.get(name).map(String::as_str).unwrap_or_default();
    let inside = annotation(TERMINATION_PATH);
    let file = status.mounts.iter().find(|m| !inside.is_empty() && m.container_path == inside);
    let mut text = Vec::new();
    if let Some(file) = file.and_then(|m| open_plain(&m.host_path)) {
        // an unreadable file is as good as an empty one
        let _ = file.take(WORDS).read_to_end(&mut text);
    }
    if text.is_empty() && annotation(TERMINATION_POLICY) == "FallbackToLogsOnError" && status.exit_code != 0 {
        text = log_end(&status.log_path);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The container may have put anything in the file's place: no link is followed, nothing but a file is read.
fn open_plain(path: &str) -> Option<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file =
        std::fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path).ok()?;
    file.metadata().is_ok_and(|m| m.is_file()).then_some(file)
}

fn log_end(path: &str) -> Vec<u8> {
    use std::io::{Read as _, Seek as _, SeekFrom};
    let Some(mut file) = open_plain(path) else { return Vec::new() };
    // each record carries its time and stream besides its text
    let window = (LOG_BYTES + LOG_LINES * 64) as u64;
    let size = file.metadata().map_or(0, |m| m.len());
    let mut raw = Vec::new();
    if file.seek(SeekFrom::Start(size.saturating_sub(window))).is_err() || file.read_to_end(&mut raw).is_err()
    {
        return Vec::new();
    }
    let records: Vec<&[u8]> = raw.split_inclusive(|b| *b == b'\n').collect();
    let from = records.len().saturating_sub(LOG_LINES).max(usize::from(size > window));
    let mut text = Vec::new();
    for record in records.get(from..).unwrap_or_default() {
        let mut fields = record.splitn(4, |b| *b == b' ');
        let partial = fields.nth(2).is_some_and(|tag| tag.starts_with(b"P"));
        let line = fields.next().unwrap_or_default();
        text.extend_from_slice(if partial { line.strip_suffix(b"\n").unwrap_or(line) } else { line });
    }
    let from = text.len().saturating_sub(LOG_BYTES);
    text.split_off(from)
}

/// Asks the runtime about the pod with this uid. What cannot change any more is taken from `before`.
pub async fn observe(
    runtime: &cri::RuntimeClient,
    uid: &str,
    before: &Observed,
) -> Result<Observed, tonic::Status> {
    let selector: HashMap<String, String> = [(POD_UID.to_owned(), uid.to_owned())].into();
    let sandboxes = v1::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
    let containers = v1::ContainerFilter { label_selector: selector, ..Default::default() };
    let (mut one, mut two) = (runtime.clone(), runtime.clone());
    let (sandboxes, containers) = futures_util::future::try_join(
        one.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(sandboxes) }),
        two.list_containers(v1::ListContainersRequest { filter: Some(containers) }),
    )
    .await?;
    let mut observed = Observed::default();
    for listed in sandboxes.into_inner().items {
        let ready = listed.state == v1::PodSandboxState::SandboxReady as i32;
        let known = before.sandboxes.iter().find(|s| s.id == listed.id).map(|s| s.ips.clone());
        let ips = match known.filter(|ips| !ready || !ips.is_empty()) {
            Some(ips) => ips,
            None => addresses(runtime.clone(), &listed.id).await?,
        };
        let attempt = listed.metadata.map_or(0, |m| m.attempt);
        observed.sandboxes.push(Sandbox { id: listed.id, ready, attempt, ips });
    }
    observed.sandboxes.sort_by_key(|s| std::cmp::Reverse(s.attempt));
    for item in containers.into_inner().containers {
        if let Some(known) = before.containers.iter().find(|c| c.id == item.id && c.run == Run::Exited) {
            observed.containers.push(known.clone());
            continue;
        }
        let request = v1::ContainerStatusRequest { container_id: item.id, verbose: false };
        let mut status = match runtime.clone().container_status(request).await {
            Ok(answer) => answer.into_inner().status.unwrap_or_default(),
            // gone since it was listed
            Err(error) if error.code() == tonic::Code::NotFound => continue,
            Err(error) => return Err(error),
        };
        if status.state == v1::ContainerState::ContainerExited as i32 {
            let words = last_words(&status);
            if !status.message.is_empty() && !words.is_empty() {
                status.message.push_str(": ");
            }
            status.message.push_str(&words);
        }
        observed.containers.push(container(status, item.pod_sandbox_id));
    }
    observed.containers.sort_by(|a, b| b.created.cmp(&a.created).then(b.attempt.cmp(&a.attempt)));
    Ok(observed)
}

async fn addresses(mut runtime: cri::RuntimeClient, id: &str) -> Result<Vec<String>, tonic::Status> {
    let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = match runtime.pod_sandbox_status(request).await {
        Ok(answer) => answer.into_inner().status.unwrap_or_default(),
        Err(error) if error.code() == tonic::Code::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let network = status.network.unwrap_or_default();
    let first = Some(network.ip).filter(|ip| !ip.is_empty());
    Ok(first.into_iter().chain(network.additional_ips.into_iter().map(|ip| ip.ip)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(dir: &std::path::Path, words: &str, policy: &str, exit_code: i32) -> v1::ContainerStatus {
        std::fs::write(dir.join("words"), words).unwrap();
        let log = "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr P tw\n2026-01-01T00:00:01Z stderr F o\n";
        std::fs::write(dir.join("0.log"), log).unwrap();
        v1::ContainerStatus {
            exit_code,
            log_path: dir.join("0.log").to_string_lossy().into_owned(),
            mounts: vec![v1::Mount {
                container_path: "/end".to_owned(),
                host_path: dir.join("words").to_string_lossy().into_owned(),
                ..Default::default()
            }],
            annotations: [(TERMINATION_PATH, "/end"), (TERMINATION_POLICY, policy)]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            ..Default::default()
        }
    }

    #[test]
    fn last_words_come_from_the_file_and_from_the_log_only_after_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let fallback = "FallbackToLogsOnError";
        assert_eq!(last_words(&ended(dir.path(), "bye", fallback, 1)), "bye");
        assert_eq!(last_words(&ended(dir.path(), "", fallback, 1)), "one\ntwo\n");
        assert_eq!(last_words(&ended(dir.path(), "", fallback, 0)), "");
        assert_eq!(last_words(&ended(dir.path(), "", "File", 1)), "");
        assert_eq!(last_words(&ended(dir.path(), &"x".repeat(9000), "File", 1)).len(), 4096);
    }

    #[test]
    fn a_link_in_the_place_of_the_last_words_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let status = ended(dir.path(), "", "File", 1);
        std::fs::remove_file(dir.path().join("words")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("words")).unwrap();
        assert_eq!(last_words(&status), "");
    }
}
