//! The configuration out of its files: one, and those of a folder, each of which changes what is there so far.
//!
//! Rule: Kubernetes documentation, "Set Kubelet Parameters Via A Configuration File" ("Drop-in directory for kubelet
//! configuration files"). As upstream decodes them, a field of nothing stands for its default: tools write fields out that nobody set.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{API_VERSION, ConfigurationError, KIND, KubeletConfiguration, wrong};
use crate::managers::cpu_set::CpuSet;

/// How the names of a folder's files end.
const DROP_IN: &str = "conf";
/// Fields for which nothing is an answer.
const ANSWERS: [&str; 6] = [
    "containerLogMonitorInterval",
    "crashLoopBackOff",
    "enforceNodeAllocatable",
    "evictionHard",
    "resolvConf",
    "userNamespaces",
];
/// Numbers that are never 0.
const NUMBERS: [&str; 7] = [
    "eventBurst",
    "kubeAPIBurst",
    "maxOpenFiles",
    "maxPods",
    "nodeLeaseDurationSeconds",
    "port",
    "registryBurst",
];

impl KubeletConfiguration {
    /// Reads `file`, and then those of `folder` and of the folders in it whose names end in `.conf`, by name. Without
    /// either it is what [`Self::without_file`] says.
    pub fn load(file: Option<&Path>, folder: Option<&Path>) -> Result<Self, ConfigurationError> {
        let mut files: Vec<PathBuf> = file.into_iter().map(Path::to_owned).collect();
        if let Some(folder) = folder {
            files.extend(drop_ins(folder)?);
        }
        let mut whole = None;
        for path in files {
            let failed = |source| ConfigurationError::Read { path: path.clone(), source };
            let text = std::fs::read(&path).map_err(failed)?;
            let read = value(&text).map_err(|error| wrong(format!("{}: {error}", path.display())))?;
            whole = Some(match whole {
                Some(whole) => {
                    api::patch::merge::apply(&whole, &read).map_err(|error| wrong(error.to_string()))?
                }
                None => read,
            });
        }
        whole.map_or_else(|| Ok(Self::without_file()), Self::of)
    }

    /// Reads YAML or JSON, and checks what it says.
    pub fn parse(text: &[u8]) -> Result<Self, ConfigurationError> {
        Self::of(value(text).map_err(wrong)?)
    }

    fn of(mut value: Value) -> Result<Self, ConfigurationError> {
        if let Value::Object(fields) = &mut value {
            fields.retain(|name, value| !stands_for_default(name, value));
            fields.values_mut().for_each(without_nulls);
        }
        let says = |field: &str| value.get(field).is_some();
        let reports_follow = says("nodeStatusUpdateFrequency") && !says("nodeStatusReportFrequency");
        let mut this: Self = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        if reports_follow {
            this.node_status_report_frequency.clone_from(&this.node_status_update_frequency);
        }
        this.check()?;
        let named = CpuSet::parse(&this.reserved_system_cpus).map_err(wrong)?;
        if !named.is_empty() {
            this.kube_reserved.remove("cpu");
            this.system_reserved.insert("cpu".to_owned(), named.len().to_string());
        }
        Ok(this)
    }
}

/// What a file says, as it stands there.
fn value(text: &[u8]) -> Result<Value, String> {
    let (value, warnings) = api::codec::parse_yaml(text).map_err(|error| error.to_string())?;
    if let Some(duplicate) = warnings.into_iter().next() {
        return Err(duplicate);
    }
    let [version, kind] = ["apiVersion", "kind"].map(|field| value[field].as_str().unwrap_or_default());
    if (version, kind) != (API_VERSION, KIND) {
        return Err(format!("{version} {kind} is not a {API_VERSION} {KIND}"));
    }
    Ok(value)
}

/// The files of a folder and of those in it, by name.
fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, ConfigurationError> {
    let failed = |source| ConfigurationError::Read { path: folder.to_owned(), source };
    let entries: Result<Vec<_>, _> = std::fs::read_dir(folder).map_err(failed)?.collect();
    let mut entries = entries.map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            found.extend(drop_ins(&path)?);
        } else if path.extension().is_some_and(|end| end == DROP_IN) {
            found.push(path);
        }
    }
    Ok(found)
}

fn stands_for_default(name: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Number(number) => NUMBERS.contains(&name) && number.as_i64() == Some(0),
        _ if ANSWERS.contains(&name) => false,
        Value::Bool(_) => false,
        // the number of a processor is no length of time
        Value::String(text) => text.is_empty() || text != "0" && api::duration::parse(text) == Ok(0),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty() || name == "logging" && is_nothing(value),
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty() || api::duration::parse(text) == Ok(0),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_nothing),
    }
}

fn without_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(without_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n";

    #[test]
    fn fields_of_nothing_stand_for_their_defaults() {
        // as kubeadm writes out what nobody set
        let text = "authentication: {anonymous: {enabled: false}, x509: null}\ncontainerRuntimeEndpoint: ''\n\
                    cpuManagerReconcilePeriod: 0s\ncrashLoopBackOff: {}\nevictionPressureTransitionPeriod: 0s\n\
                    fileCheckFrequency: 0s\nhttpCheckFrequency: 0s\nimageMaximumGCAge: 0s\nimageMinimumGCAge: 0s\n\
                    logging: {flushFrequency: 0, options: {json: {infoBufferSize: '0'}}, verbosity: 0}\nmaxPods: 0\n\
                    memorySwap: {}\nnodeStatusReportFrequency: 0s\nnodeStatusUpdateFrequency: 0s\nport: 0\n\
                    runtimeRequestTimeout: 0s\nshutdownGracePeriod: 0s\nstaticPodPath: ''\nsyncFrequency: 0s\n\
                    topologyManagerPolicy: ''\ntlsCertFile: null\nvolumeStatsAggPeriod: 0s\n";
        let read = KubeletConfiguration::parse(format!("{HEAD}{text}").as_bytes()).unwrap();
        let shown = |settings: &KubeletConfiguration| serde_json::to_value(settings).unwrap();
        assert_eq!(shown(&read), shown(&KubeletConfiguration::default()));
        let read = |text: &str| KubeletConfiguration::parse(format!("{HEAD}{text}").as_bytes());
        assert!(read("evictionHard: {}").unwrap().eviction_hard.is_empty(), "no thresholds are an answer");
        assert!(read("healthzPort: 0").unwrap().healthz_address().unwrap().is_none());
        assert!(read("syncFrequency: 1m").is_err() && read("enableServer: false").is_err());
    }

    #[test]
    fn files_of_a_folder_change_what_is_there_in_the_order_of_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("d/15-below.conf")).unwrap();
        for (name, text) in [
            (
                "main",
                "maxPods: 30\nkubeReserved: {cpu: 100m, memory: 1Gi}\nallowedUnsafeSysctls: [net.ipv4.*, net.ipv6.*]\n",
            ),
            ("d/10-a.conf", "maxPods: 40\nkubeReserved: {cpu: 200m}\n"),
            ("d/15-below.conf/x.conf", "allowedUnsafeSysctls: [net.ipv4.tcp_syncookies]\n"),
            ("d/20-b.conf", "maxPods: 50\ncontainerLogMaxFiles: null\n"),
            ("d/30-c.yaml", "maxPods: 60\n"),
        ] {
            std::fs::write(at(name), format!("{HEAD}{text}")).unwrap();
        }
        let read = KubeletConfiguration::load(Some(&at("main")), Some(&at("d"))).unwrap();
        assert_eq!((read.max_pods, read.reserved("cpu"), read.reserved("memory")), (50, 200, 1 << 30));
        assert_eq!(read.allowed_unsafe_sysctls, ["net.ipv4.tcp_syncookies"]);
        assert_eq!(KubeletConfiguration::load(None, Some(&at("d"))).unwrap().max_pods, 50);
        assert_eq!(KubeletConfiguration::load(None, None).unwrap().max_pods, 110);
        std::fs::write(at("d/05-bad.conf"), "kind: Pod").unwrap();
        let error = KubeletConfiguration::load(None, Some(&at("d"))).unwrap_err().to_string();
        assert!(error.contains("d/05-bad.conf:  Pod is not a kubelet.config.k8s.io/v1beta1"), "{error}");
        assert!(KubeletConfiguration::load(None, Some(&at("none"))).is_err());
    }
}
