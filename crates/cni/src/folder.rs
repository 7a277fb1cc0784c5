//! The folder of network configurations, as Kubernetes' runtimes read it: `/etc/cni/net.d`.
//!
//! The first file by name that can be used counts. The folder is read whenever the
//! network is used, so that a change needs no notice.

use std::path::{Path, PathBuf};

use crate::configuration::{ConfigurationError, List, files};

/// Endings that count.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// There is no network.
#[derive(Debug, thiserror::Error)]
pub enum NoNetwork {
    /// No file can be used. The words are those that people look for.
    #[error("cni plugin not initialized: no networks found in {}", .folder.display())]
    None {
        /// Where.
        folder: PathBuf,
        /// What is wrong with the last file, when there are any.
        #[source]
        last: Option<ConfigurationError>,
    },
    /// The folder cannot be read.
    #[error("cni plugin not initialized")]
    Folder(#[source] ConfigurationError),
}

/// The network of `folder`, and what is wrong with the files that come before it.
pub fn load(folder: &Path) -> Result<(List, Vec<ConfigurationError>), NoNetwork> {
    let mut wrong = Vec::new();
    for file in files(folder, &ENDINGS).map_err(NoNetwork::Folder)? {
        match List::load(&file) {
            Ok(list) => return Ok((list, wrong)),
            Err(error) => wrong.push(error),
        }
    }
    Err(NoNetwork::None { folder: folder.to_owned(), last: wrong.pop() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(files: &[(&str, &str)], expect: &str) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let text = match load(folder.path()) {
            Ok((list, _)) => {
                let types: Vec<&str> = list.plugins.iter().map(|p| p["type"].as_str().unwrap()).collect();
                format!("{} {} {}", list.name, list.version, types.join(","))
            }
            Err(NoNetwork::None { last, .. }) => last.map_or("none".to_owned(), |e| match e {
                ConfigurationError::Invalid { why, .. } => why,
                ConfigurationError::Json { .. } => "no JSON".to_owned(),
                other => other.to_string(),
            }),
            Err(other) => other.to_string(),
        };
        assert_eq!(text, expect);
    }

    const LIST: &str =
        r#"{"cniVersion": "1.0.0", "name": "l", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
    const ONE: &str = r#"{"cniVersion": "0.3.1", "name": "one", "type": "ptp"}"#;

    #[test]
    fn the_first_file_by_name_that_can_be_used_counts() {
        check(&[], "none");
        check(&[("20.conf", ONE), ("10.conflist", LIST)], "l 1.0.0 bridge,portmap");
        check(&[("05.json", ONE), ("10.conflist", LIST)], "one 0.3.1 ptp");
        check(&[("05.txt", ONE), ("06.conflist.bak", ONE), ("10.conflist", LIST)], "l 1.0.0 bridge,portmap");
        check(&[("05.conf", "{"), ("06.conf", LIST), ("10.conflist", LIST)], "l 1.0.0 bridge,portmap");
        // a list under another name has no type, and no list under a list's name no plugins
        check(&[("06.conf", LIST)], "a plugin's configuration is missing 'type'");
        check(&[("06.conflist", ONE)], "no plugin configs found");
        check(&[("06.conf", "{")], "no JSON");
    }

    #[test]
    fn what_a_list_says_wrong_is_named() {
        let with = |name: &str, rest: &str| format!(r#"{{"name": "{name}", {rest}}}"#);
        check(&[("a.conflist", &with("", "\"plugins\": []"))], "no network name");
        check(&[("a.conflist", &with("a/b", "\"plugins\": []"))], "invalid network name \"a/b\"");
        check(&[("a.conflist", &with("a", "\"plugins\": []"))], "no 'cniVersion' key");
        check(
            &[("a.conflist", &with("a", r#""cniVersion": "7.0.0", "plugins": []"#))],
            "incompatible CNI versions: config is \"7.0.0\", supported are 0.3.0 to 1.1.0",
        );
        check(
            &[("a.conflist", &with("a", r#""cniVersion": "1.0.0", "plugins": [{"type": "../x"}]"#))],
            "invalid plugin name \"../x\"",
        );
        check(
            &[(
                "a.conflist",
                &with("a", r#""cniVersions": ["0.4.0", "1.1.0", "9.0.0"], "plugins": [{"type": "x"}]"#),
            )],
            "a 1.1.0 x",
        );
    }

    #[test]
    fn plugins_in_a_folder_of_the_networks_name_follow_unless_the_list_is_complete() {
        let more = ("l/10-more.conf", r#"{"type": "tuning"}"#);
        check(&[("10.conflist", LIST), more], "l 1.0.0 bridge,portmap,tuning");
        let complete = LIST.replacen('{', r#"{"loadOnlyInlinedPlugins": true, "#, 1);
        check(&[("10.conflist", &complete), more], "l 1.0.0 bridge,portmap");
    }
}
