//! Network configurations as administrators write them.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::result::is_identifier;
use crate::version::Version;

/// A network: plugins that are called one after the other.
#[derive(Debug, Clone, PartialEq)]
pub struct List {
    /// The network's name.
    pub name: String,
    /// The version that is spoken with its plugins.
    pub version: Version,
    /// CHECK is not to be called.
    pub disable_check: bool,
    /// GC is not to be called.
    pub disable_gc: bool,
    /// The plugins' configurations, each with a `type`.
    pub plugins: Vec<Map<String, Value>>,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// It cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not JSON.
    #[error("{} is no network configuration", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It says something wrong.
    #[error("{}: {why}", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What.
        why: String,
    },
}

impl List {
    /// Reads a list (`.conflist`) or the configuration of a single plugin (any other name).
    pub fn load(path: &Path) -> Result<Self, ConfigurationError> {
        let object = read(path)?;
        let is_list = path.extension() == Some(OsStr::new("conflist"));
        let mut list = if is_list { Self::of_list(object) } else { Self::of_plugin(object) }
            .map_err(|why| ConfigurationError::Invalid { path: path.to_owned(), why })?;
        if is_list && !list.1 {
            let folder = path.parent().unwrap_or(Path::new(".")).join(&list.0.name);
            list.0.add_folder(&folder)?;
        }
        if list.0.plugins.is_empty() {
            return Err(ConfigurationError::Invalid {
                path: path.to_owned(),
                why: "no plugin configs found".to_owned(),
            });
        }
        Ok(list.0)
    }

    /// A list, and whether it holds all of its plugins itself.
    fn of_list(object: Map<String, Value>) -> Result<(Self, bool), String> {
        let name = name(&object)?;
        let inlined = flag(&object, "loadOnlyInlinedPlugins")?;
        let plugins = match object.get("plugins") {
            None if !inlined => Vec::new(),
            None => return Err("no 'plugins' key".to_owned()),
            Some(Value::Array(items)) => items.iter().map(plugin).collect::<Result<_, _>>()?,
            Some(_) => return Err("invalid 'plugins' type".to_owned()),
        };
        let list = Self {
            version: version(&object)?,
            disable_check: flag(&object, "disableCheck")?,
            disable_gc: flag(&object, "disableGC")?,
            name,
            plugins,
        };
        Ok((list, inlined))
    }

    /// A list of one.
    fn of_plugin(object: Map<String, Value>) -> Result<(Self, bool), String> {
        let list = Self {
            name: name(&object)?,
            version: version(&object)?,
            disable_check: false,
            disable_gc: false,
            plugins: vec![plugin(&Value::Object(object))?],
        };
        Ok((list, true))
    }

    /// Further plugins stand in a folder of the network's name (specification 1.1, "loadOnlyInlinedPlugins").
    fn add_folder(&mut self, folder: &Path) -> Result<(), ConfigurationError> {
        for file in files(folder, &["conf"])? {
            let object = read(&file)?;
            let one = plugin(&Value::Object(object))
                .map_err(|why| ConfigurationError::Invalid { path: file, why })?;
            self.plugins.push(one);
        }
        Ok(())
    }

    /// The list as JSON, to be read back by [`Self::from_json`].
    pub fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "cniVersion": self.version.text(),
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "loadOnlyInlinedPlugins": true,
            "plugins": self.plugins,
        })
    }

    /// Reads what [`Self::to_json`] wrote.
    pub fn from_json(value: Value) -> Option<Self> {
        let Value::Object(object) = value else { return None };
        Self::of_list(object).ok().map(|(list, _)| list)
    }
}

/// Files of a folder with one of these endings, by name. A folder that is missing has none.
pub(crate) fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, ConfigurationError> {
    let failed = |source| ConfigurationError::Read { path: folder.to_owned(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let ending = path.extension().and_then(OsStr::to_str);
        if ending.is_some_and(|e| endings.contains(&e)) && !path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read(path: &Path) -> Result<Map<String, Value>, ConfigurationError> {
    let bytes =
        std::fs::read(path).map_err(|source| ConfigurationError::Read { path: path.to_owned(), source })?;
    serde_json::from_slice(&bytes)
        .map_err(|source| ConfigurationError::Json { path: path.to_owned(), source })
}

fn name(object: &Map<String, Value>) -> Result<String, String> {
    match object.get("name") {
        Some(Value::String(name)) if is_identifier(name) => Ok(name.clone()),
        Some(Value::String(name)) if !name.is_empty() => Err(format!("invalid network name {name:?}")),
        _ => Err("no network name".to_owned()),
    }
}

/// The newest version that the configuration offers (`cniVersions`), else the one it says.
fn version(object: &Map<String, Value>) -> Result<Version, String> {
    if let Some(offered) = object.get("cniVersions") {
        let Value::Array(offered) = offered else { return Err("invalid 'cniVersions' type".to_owned()) };
        let known = offered.iter().filter_map(|v| v.as_str()?.parse().ok()).max();
        if let Some(newest) = known {
            return Ok(newest);
        }
    }
    match object.get("cniVersion") {
        Some(Value::String(text)) => text.parse().map_err(|e: crate::version::Unknown| e.to_string()),
        Some(_) => Err("invalid 'cniVersion' type".to_owned()),
        None => Err("no 'cniVersion' key".to_owned()),
    }
}

/// Written as a boolean or as its name.
fn flag(object: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(set)) => Ok(*set),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("invalid value {other} of '{key}'")),
    }
}

fn plugin(value: &Value) -> Result<Map<String, Value>, String> {
    let Value::Object(object) = value else { return Err("a plugin's configuration is no object".to_owned()) };
    match object.get("type").and_then(Value::as_str) {
        Some(name) if !name.is_empty() && !name.contains('/') && name != "." && name != ".." => {
            Ok(object.clone())
        }
        Some(name) if !name.is_empty() => Err(format!("invalid plugin name {name:?}")),
        _ => Err("a plugin's configuration is missing 'type'".to_owned()),
    }
}
