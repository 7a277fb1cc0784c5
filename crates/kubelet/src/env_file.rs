//! Variables out of a file of a volume (`fileKeyRef`), which an init container wrote.
//!
//! Rule: KEP-3721; Kubernetes documentation, "Define Environment Variable Values Using An Init Container": a subset of a
//! shell's syntax, with all values in single quotes.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::FileKeySelector;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// Most characters of a key, and bytes of a value.
const KEY: usize = 128;
const VALUE: usize = 32 * 1024;
/// Most bytes of a file that are read: containers write it.
const FILE: u64 = 1 << 20;

/// The value of a variable; none where it is not there and need not be.
pub fn value(
    wanted: &FileKeySelector,
    volumes: &BTreeMap<String, PathBuf>,
) -> Result<Option<String>, String> {
    let (name, key) = (&wanted.volume_name, &wanted.key);
    let optional = wanted.optional == Some(true);
    let root = volumes
        .get(name)
        .ok_or_else(|| format!("cannot find the volume {name:?} referenced by FileKeyRef"))?;
    if key.len() > KEY {
        return Err(format!("environment variable key {key:?} exceeds maximum length of {KEY} characters"));
    }
    let text = match read(root, &wanted.path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && optional => return Ok(None),
        Err(error) => {
            tracing::warn!(%error, volume = name, path = wanted.path, "a file of variables cannot be read");
            return Err("couldn't parse env file".to_owned());
        }
    };
    let found = find(&text, key).map_err(|error| {
        tracing::warn!(error, volume = name, path = wanted.path, "a file of variables is not one");
        "couldn't parse env file".to_owned()
    })?;
    match found.filter(|value| !value.is_empty()) {
        Some(value) if value.len() > VALUE => {
            Err(format!("environment variable value for key {key:?} exceeds maximum size of 32KB"))
        }
        Some(value) => Ok(Some(value)),
        None if optional => Ok(None),
        None => Err(format!("environment variable key {key:?} not found in file")),
    }
}

/// The file at `path` of the volume; no link leads out of that.
fn read(root: &Path, path: &str) -> std::io::Result<String> {
    let volume = openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // a pipe in its place must not hold the kubelet up
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = std::fs::File::from(openat2(&volume, path, flags, Mode::empty(), inside)?);
    if !file.metadata()?.is_file() {
        return Err(Errno::INVAL.into());
    }
    let mut text = String::new();
    file.take(FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// The value of `key`; the error says where the text is not what it should be, up to there.
fn find(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let wrong = |what: &str| format!("invalid environment variable format at line {number}: {what}");
        let line = line.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or_else(|| wrong("missing '='"))?;
        if name.trim_end_matches([' ', '\t']).is_empty() {
            return Err(wrong("empty variable name"));
        }
        if name.contains([' ', '\t']) {
            return Err(wrong("whitespace before '=' is not allowed"));
        }
        if value.is_empty() || value.starts_with([' ', '\t']) {
            // as a shell reads it
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let mut rest =
            value.strip_prefix('\'').ok_or_else(|| wrong("value must be enclosed in single quotes"))?;
        let mut found = String::new();
        let after = loop {
            if let Some((last, after)) = rest.split_once('\'') {
                found.push_str(last);
                break after;
            }
            found.push_str(rest);
            found.push('\n');
            rest = lines.next().ok_or_else(|| wrong("unclosed single quote"))?.1;
        };
        let after = after.trim_start_matches([' ', '\t']);
        if !after.is_empty() && !after.starts_with('#') {
            return Err(wrong("unexpected content after closing quote"));
        }
        if name == key {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(path: &str, key: &str, optional: bool) -> FileKeySelector {
        FileKeySelector {
            volume_name: "v".to_owned(),
            path: path.to_owned(),
            key: key.to_owned(),
            optional: Some(optional),
        }
    }

    #[test]
    fn values_stand_in_single_quotes_and_may_have_many_lines() {
        let text = "# first\n\n  A='1'\nB='two\nlines'  # and more\nC= 'no'\nD=\nE='$(A) \\n \"'\n";
        let check = |key: &str, expected: Option<&str>| {
            assert_eq!(find(text, key), Ok(expected.map(str::to_owned)), "{key}");
        };
        check("A", Some("1"));
        check("B", Some("two\nlines"));
        check("C", Some(""));
        check("D", Some(""));
        check("E", Some("$(A) \\n \""));
        check("F", None);
        for (text, why) in [
            ("A", "line 1: missing '='"),
            ("='1'", "line 1: empty variable name"),
            ("A ='1'", "line 1: whitespace before '='"),
            ("# x\nA=1", "line 2: value must be enclosed in single quotes"),
            ("A='1' 2", "line 1: unexpected content after closing quote"),
            ("A='1\n2", "line 1: unclosed single quote"),
        ] {
            let error = find(text, "Z").unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_file_is_one_of_the_volume_whatever_the_pod_put_there() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("v");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(folder.path().join("secret"), "A='stolen'").unwrap();
        std::fs::write(root.join("env"), "A='1'\nLONG='".to_owned() + &"x".repeat(VALUE + 1) + "'").unwrap();
        std::os::unix::fs::symlink("../secret", root.join("out")).unwrap();
        std::os::unix::fs::symlink("/env", root.join("link")).unwrap();
        let volumes = BTreeMap::from([("v".to_owned(), root)]);
        let get = |path: &str, key: &str, optional| value(&selector(path, key, optional), &volumes);
        assert_eq!(get("env", "A", false), Ok(Some("1".to_owned())));
        assert_eq!(get("link", "A", false), Ok(Some("1".to_owned())));
        assert_eq!(get("out", "A", true), Ok(None));
        assert!(get("out", "A", false).is_err());
        assert_eq!(get("none", "A", true), Ok(None));
        assert_eq!(get("none", "A", false).unwrap_err(), "couldn't parse env file");
        assert_eq!(get("env", "Z", true), Ok(None));
        assert_eq!(get("env", "Z", false).unwrap_err(), "environment variable key \"Z\" not found in file");
        assert!(get("env", "LONG", false).unwrap_err().ends_with("exceeds maximum size of 32KB"));
        assert!(get(".", "A", false).is_err(), "a folder");
        let elsewhere = FileKeySelector { volume_name: "w".to_owned(), ..selector("env", "A", true) };
        let why = value(&elsewhere, &volumes).unwrap_err();
        assert_eq!(why, "cannot find the volume \"w\" referenced by FileKeyRef");
    }
}
