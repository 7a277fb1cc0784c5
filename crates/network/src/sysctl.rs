//! Kernel settings of a network namespace below `/proc/sys/net`.

use std::io;

use crate::netns::Place;

/// Writes settings (paths below `/proc/sys`, as in `net/ipv4/ip_forward`) in the namespace of `place` and returns those
/// whose value was another one before, with that value.
pub(crate) fn set(place: &Place, settings: &[(String, &str)]) -> Result<Vec<(String, String)>, SysctlError> {
    // which namespace /proc/sys/net shows depends on the thread that opens the file
    let settings: Vec<(String, String)> =
        settings.iter().map(|(name, value)| (name.clone(), (*value).to_owned())).collect();
    place
        .run(move || {
            let mut before = Vec::new();
            for (name, value) in settings {
                let path = format!("/proc/sys/{name}");
                let fail = |source| SysctlError::File { name: name.clone(), source };
                let old = std::fs::read_to_string(&path).map_err(fail)?.trim().to_owned();
                if old != value {
                    let fail = |source| SysctlError::File { name: name.clone(), source };
                    std::fs::write(&path, &value).map_err(fail)?;
                    before.push((name, old));
                }
            }
            Ok(before)
        })
        .map_err(SysctlError::Namespace)?
}

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The file.
    #[error("cannot set {name}")]
    File {
        /// The setting, with slashes.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace")]
    Namespace(#[source] nlink::Error),
}
