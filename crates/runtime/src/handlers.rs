//! The handlers of RuntimeClasses: which program runs a sandbox's containers.
//!
//! The handler without a name is the shim itself. Others are OCI runtimes by path, as configured, or those that
//! a distribution's package puts where programs are; they are looked for when asked for, so that one installed
//! later is found without a restart.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::error::RuntimeError;

/// Programs that are handlers by their own name wherever they are installed: those that need nothing but the bundle.
const KNOWN: [&str; 3] = ["crun", "runc", "youki"];
const FOLDERS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Programs by handler, beside those that are found.
pub type Handlers = BTreeMap<String, PathBuf>;

/// The program of a handler; none for the shim itself.
pub(crate) fn program(configured: &Handlers, handler: &str) -> Result<Option<PathBuf>, RuntimeError> {
    if handler.is_empty() {
        return Ok(None);
    }
    if let Some(path) = configured.get(handler) {
        return match executable(path) {
            Ok(()) => Ok(Some(path.clone())),
            Err(why) => {
                let path = path.display();
                Err(RuntimeError::State(format!(
                    "the program of runtime {handler:?}, {path}, cannot be run: {why}"
                )))
            }
        };
    }
    match found(handler) {
        Some(path) => Ok(Some(path)),
        None => Err(RuntimeError::NotFound(format!("no runtime for {handler:?} is configured"))),
    }
}

/// The names of all handlers, the shim's empty one first.
pub(crate) fn names(configured: &Handlers) -> BTreeSet<String> {
    let known = KNOWN.iter().filter(|name| found(name).is_some()).map(|name| (*name).to_owned());
    std::iter::once(String::new()).chain(configured.keys().cloned()).chain(known).collect()
}

fn found(handler: &str) -> Option<PathBuf> {
    let name = KNOWN.iter().find(|name| **name == handler)?;
    FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| executable(path).is_ok())
}

fn executable(path: &Path) -> Result<(), String> {
    let metadata = path.metadata().map_err(|error| error.to_string())?;
    match metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        true => Ok(()),
        false => Err("it is no program".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_known_by_name_and_their_programs_must_be_there() {
        let handlers = Handlers::from([
            ("shell".to_owned(), PathBuf::from("/bin/sh")),
            ("gone".to_owned(), PathBuf::from("/no/such/program")),
            ("text".to_owned(), PathBuf::from("/etc/passwd")),
        ]);
        assert_eq!(program(&handlers, "").unwrap(), None);
        assert_eq!(program(&handlers, "shell").unwrap(), Some("/bin/sh".into()));
        for (name, why) in [
            ("other", "no runtime for \"other\" is configured"),
            ("sh", "no runtime for \"sh\" is configured"),
            ("../sh", "no runtime for"),
            ("gone", "the program of runtime \"gone\", /no/such/program, cannot be run: No such file"),
            ("text", "/etc/passwd, cannot be run: it is no program"),
        ] {
            let error = program(&handlers, name).unwrap_err().to_string();
            assert!(error.contains(why), "{name}: {error}");
        }
        assert!(names(&handlers).contains("gone"), "it may be installed at any time");
    }
}
