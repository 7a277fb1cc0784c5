//! `KubeSchedulerConfiguration` (`kubescheduler.config.k8s.io/v1`), read as it is.
//!
//! `clientConnection`, `leaderElection`, `parallelism`, `enableProfiling` and `enableContentionProfiling` are checked and
//! have no effect: the scheduler is part of the server, and one thread decides.
//! Rule: <https://kubernetes.io/docs/reference/config-api/kube-scheduler-config.v1/>
mod args;
mod extenders;
mod plugins;
mod shape;

use std::collections::HashMap;
use std::time::Duration;

use api::field::{Cursor, ErrorList};
use serde_json::json;

use shape::Misshapen;

use crate::Config;
use crate::profile::Profile;
use crate::queue::Backoff;

/// The group of the configuration and of plugins' arguments.
const GROUP: &str = "kubescheduler.config.k8s.io";
/// The only version there is.
const VERSION: &str = "kubescheduler.config.k8s.io/v1";

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// Not YAML, or not JSON.
    #[error("couldn't get version/kind; json parse error: {0}")]
    Syntax(String),
    /// Another kind or version.
    #[error("no kind {kind:?} is registered for version {version:?}")]
    Kind {
        /// What it says it is.
        kind: String,
        /// Of which version.
        version: String,
    },
    /// A value is of another type.
    #[error("{0}")]
    Type(String),
    /// Fields that are unknown, or given twice.
    #[error("strict decoding error: {0}")]
    Strict(String),
    /// Fields with values that cannot be.
    #[error("{0}")]
    Invalid(String),
}

/// What reading gathers beside the result.
struct Problems {
    errors: ErrorList,
}

impl Problems {
    /// An integer, or its default.
    fn number(&mut self, at: &Cursor<'_>, default: i64) -> i64 {
        if !at.exists() {
            return default;
        }
        at.i64().unwrap_or_else(|| {
            self.errors.type_invalid(&at.path, at.json(), "must be an integer");
            default
        })
    }
}

/// Reads a configuration, YAML or JSON.
pub fn read(text: &[u8]) -> Result<Config, ConfigurationError> {
    let (value, duplicates) =
        api::codec::parse_yaml(text).map_err(|error| ConfigurationError::Syntax(error.to_string()))?;
    let root = Cursor::root(&value);
    let (version, kind) = (root.key("apiVersion").str(), root.key("kind").str());
    if version != VERSION || kind != "KubeSchedulerConfiguration" {
        return Err(ConfigurationError::Kind { kind: kind.to_owned(), version: version.to_owned() });
    }
    check_shape(&root, duplicates)?;
    let mut problems = Problems { errors: ErrorList::default() };
    let config = config(&root, &mut problems);
    if !problems.errors.is_empty() {
        return Err(ConfigurationError::Invalid(problems.errors.aggregate()));
    }
    Ok(config)
}

/// Refuses unknown fields and values of another type, those of plugins' arguments included.
fn check_shape(root: &Cursor<'_>, mut strict: Vec<String>) -> Result<(), ConfigurationError> {
    let mut found = Misshapen::default();
    shape::CONFIGURATION.check(root, "", "", &mut found);
    if let Some(text) = found.mistyped {
        return Err(ConfigurationError::Type(text));
    }
    strict.append(&mut found.unknown);
    for (i, profile) in root.key("profiles").items().enumerate() {
        for (j, plugin) in profile.key("pluginConfig").items().enumerate() {
            let (name, args) = (plugin.key("name").str(), plugin.key("args"));
            let (Some(shape), Some(value)) = (shape::args(name), args.value) else { continue };
            let at = format!("decoding .profiles[{i}].pluginConfig[{j}]: ");
            let mut found = Misshapen::default();
            shape.check(&Cursor::root(value), "", "", &mut found);
            let kind = args.key("kind");
            if let Some(text) = found.mistyped {
                return Err(ConfigurationError::Type(format!("{at}decoding args for plugin {name}: {text}")));
            } else if kind.exists() && kind.str() != format!("{name}Args") {
                return Err(ConfigurationError::Type(format!(
                    "{at}args for plugin {name} were not of type {name}Args.{GROUP}, got {}.{GROUP}",
                    kind.str()
                )));
            } else if !found.unknown.is_empty() {
                let unknown = found.unknown.join(", ");
                strict.push(format!(
                    "{at}strict decoding error: decoding args for plugin {name}: strict decoding error: {unknown}"
                ));
            }
        }
    }
    if strict.is_empty() { Ok(()) } else { Err(ConfigurationError::Strict(strict.join(", "))) }
}

fn config(root: &Cursor<'_>, problems: &mut Problems) -> Config {
    let parallelism = root.key("parallelism");
    if problems.number(&parallelism, 16) <= 0 {
        problems.errors.invalid(
            &parallelism.path,
            parallelism.json(),
            "should be an integer value greater than zero",
        );
    }
    connection(root, problems);
    let percentage = percentage(&root.key("percentageOfNodesToScore"), problems).unwrap_or(0);
    let mut profiles = Vec::new();
    let mut names: HashMap<&str, String> = HashMap::new();
    let list = root.key("profiles");
    for (i, at) in list.items().enumerate() {
        let name = at.key("schedulerName");
        // A single profile without a name is the default one.
        let text = if name.exists() || list.len() > 1 { name.str() } else { "default-scheduler" };
        if text.is_empty() {
            problems.errors.required(&name.path, "");
        }
        if let Some(first) = names.insert(text, format!("profiles[{i}].schedulerName")) {
            problems.errors.duplicate(&name.path, &json!(first));
        }
        profiles.push(profile(&at, text, percentage, problems));
    }
    same_order(&list, problems);
    if list.is_empty() {
        profiles.push(Profile { percentage_of_nodes_to_score: percentage, ..Profile::default() });
    }
    Config {
        profiles,
        backoff: backoff(root, problems),
        extenders: extenders::read(&root.key("extenders"), problems),
        ..Config::default()
    }
}

/// There is one queue: all profiles have to sort it alike.
fn same_order(profiles: &Cursor<'_>, problems: &mut Problems) {
    let sets = profiles.items().map(|p| p.key("plugins").key("queueSort"));
    let mut first = None;
    for (i, set) in sets.enumerate() {
        let enabled = set.key("enabled").len();
        if i == 0 && enabled > 1 {
            let path = "profiles[0].plugins.queueSort.Enabled";
            problems.errors.invalid(path, &json!(enabled), "only one queue sort plugin can be enabled");
        }
        let value = set.value.cloned();
        if *first.get_or_insert(value.clone()) != value {
            problems.errors.invalid(&set.path, set.json(), "must be the same for all profiles");
        }
    }
}

/// What concerns the reference as a process of its own: checked, no more.
fn connection(root: &Cursor<'_>, problems: &mut Problems) {
    let burst = root.key("clientConnection").key("burst");
    if problems.number(&burst, 100) < 0 {
        problems.errors.invalid(&burst.path, burst.json(), "must be non-negative");
    }
    let election = root.key("leaderElection");
    if election.key("leaderElect").bool() == Some(false) {
        return;
    }
    let mut time = |name: &str, default: u64| {
        let at = election.key(name);
        let time = if at.exists() { duration(at.str()) } else { Some(Duration::from_secs(default)) };
        match time {
            None => problems.errors.invalid(&at.path, at.json(), "must be a duration such as 15s"),
            Some(time) if time.is_zero() => {
                problems.errors.invalid(&at.path, at.json(), "must be greater than zero");
            }
            Some(_) => {}
        }
        time.unwrap_or_default()
    };
    let (lease, renew) = (time("leaseDuration", 15), time("renewDeadline", 10));
    time("retryPeriod", 2);
    if lease < renew {
        let at = election.key("leaseDuration");
        problems.errors.invalid(
            &at.path,
            election.key("renewDeadline").json(),
            "LeaseDuration must be greater than RenewDeadline",
        );
    }
    let lock = election.key("resourceLock");
    if lock.exists() && lock.str() != "leases" {
        problems.errors.invalid(&lock.path, lock.json(), "resourceLock value must be \"leases\"");
    }
}

/// A duration; an empty one is none at all.
fn duration(text: &str) -> Option<Duration> {
    if text.is_empty() { Some(Duration::ZERO) } else { api::duration::length(text) }
}

fn backoff(root: &Cursor<'_>, problems: &mut Problems) -> Backoff {
    let (initial, max) = (root.key("podInitialBackoffSeconds"), root.key("podMaxBackoffSeconds"));
    let (first, last) = (problems.number(&initial, 1), problems.number(&max, 10));
    if first <= 0 {
        problems.errors.invalid(&initial.path, initial.json(), "must be greater than 0");
    }
    if last < first {
        let text = "must be greater than or equal to PodInitialBackoffSeconds";
        problems.errors.invalid(&max.path, &json!(last), text);
    }
    let seconds = |n: i64| Duration::from_secs(u64::try_from(n).unwrap_or(1));
    Backoff { initial: seconds(first), max: seconds(last) }
}

fn percentage(at: &Cursor<'_>, problems: &mut Problems) -> Option<i32> {
    if !at.exists() {
        return None;
    }
    let number = problems.number(at, 0);
    if !(0..=100).contains(&number) {
        problems.errors.invalid(&at.path, at.json(), "not in valid range [0-100]");
    }
    i32::try_from(number).ok()
}

fn profile(at: &Cursor<'_>, name: &str, percent: i32, problems: &mut Problems) -> Profile {
    let mut profile = Profile::named(name);
    let own = percentage(&at.key("percentageOfNodesToScore"), problems);
    profile.percentage_of_nodes_to_score = own.unwrap_or(percent);
    plugins::apply(&at.key("plugins"), &mut profile, problems);
    args::apply(&at.key("pluginConfig"), &mut profile, problems);
    profile
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let got: Vec<_> =
            ["", "100ms", "1m30s", "1.5h", "5", "x"].map(|t| duration(t).map(|d| d.as_millis())).into();
        assert_eq!(got, [Some(0), Some(100), Some(90_000), Some(5_400_000), None, None]);
    }
}
