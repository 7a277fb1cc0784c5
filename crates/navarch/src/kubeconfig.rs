//! The administrator's kubeconfig, and our context in the user's own.
//!
//! Everything else in the user's file stays as it is (comments excepted: the file is data to every tool that
//! writes it). The rules of which file is meant are kubectl's
//! (<https://kubernetes.io/docs/concepts/configuration/organize-cluster-access-kubeconfig/>).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use base64::Engine;
use serde_json::{Value, json};

/// Names of our context, cluster and user.
pub const NAME: &str = "navarch";
/// The three lists of a kubeconfig and what an entry holds.
const LISTS: [(&str, &str); 3] = [("clusters", "cluster"), ("users", "user"), ("contexts", "context")];

/// A kubeconfig with one context.
pub fn new(server: &str, ca_pem: &str, cert_pem: &str, key_pem: &str) -> Value {
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": NAME, "cluster": {"server": server, "certificate-authority-data": encode(ca_pem)}}],
        "users": [{"name": NAME, "user": {
            "client-certificate-data": encode(cert_pem), "client-key-data": encode(key_pem)}}],
        "contexts": [{"name": NAME, "context": {"cluster": NAME, "user": NAME}}],
        "current-context": NAME,
    })
}

/// Writes a file that holds a key: complete or not at all, readable by its owner only.
pub fn write(path: &Path, config: &Value) -> anyhow::Result<()> {
    let text = serde_saphyr::to_string(config).context("cannot write YAML")?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    // a link (dotfiles in a repository) stays a link
    let target = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let temporary = target.with_extension(format!("navarch-{}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &target)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.with_context(|| format!("cannot write {}", target.display()))
}

/// The file that kubectl would change.
pub fn users_file() -> anyhow::Result<PathBuf> {
    if let Some(list) = std::env::var_os("KUBECONFIG").filter(|v| !v.is_empty()) {
        let paths: Vec<PathBuf> =
            std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()).collect();
        if let Some(path) = paths.iter().find(|p| p.exists()).or(paths.last()) {
            return Ok(path.clone());
        }
    }
    let home = std::env::home_dir().context("no home folder is known; set KUBECONFIG or HOME")?;
    Ok(home.join(".kube/config"))
}

/// Puts our entries into the file, in the place of earlier ones. Our context becomes the current one only
/// where there was none; the result says whether it is.
pub fn merge(path: &Path, ours: &Value) -> anyhow::Result<bool> {
    let mut file = read(path)?.unwrap_or_else(|| json!({"apiVersion": "v1", "kind": "Config"}));
    merge_into(&mut file, ours).with_context(|| path.display().to_string())?;
    write(path, &file)?;
    Ok(file["current-context"] == NAME)
}

/// Takes our entries out again, if they are those of the cluster `ours`; removes the file where nothing else
/// was in it.
pub fn remove(path: &Path, ours: &Value) -> anyhow::Result<()> {
    let Some(mut file) = read(path)? else { return Ok(()) };
    let entry = |config: &Value| {
        named(config, "clusters").map(|c| c["cluster"]["certificate-authority-data"].clone())
    };
    if entry(&file) != entry(ours) {
        return Ok(());
    }
    let mut empty = true;
    for (list, _) in LISTS {
        if let Some(entries) = file[list].as_array_mut() {
            entries.retain(|e| e["name"] != NAME);
            empty &= entries.is_empty();
        }
    }
    if file["current-context"] == NAME {
        file["current-context"] = json!("");
    }
    if empty {
        return std::fs::remove_file(path).with_context(|| path.display().to_string());
    }
    write(path, &file)
}

/// The file's content, `None` where it is missing or empty.
pub fn read(path: &Path) -> anyhow::Result<Option<Value>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) if text.trim().is_empty() => return Ok(None),
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let value: Value = serde_saphyr::from_str(&text)
        .with_context(|| format!("{} is no YAML; it was left as it is", path.display()))?;
    if !value.is_object() {
        bail!("{} is no kubeconfig; it was left as it is", path.display());
    }
    Ok(Some(value))
}

fn named<'a>(config: &'a Value, list: &str) -> Option<&'a Value> {
    config[list].as_array()?.iter().find(|e| e["name"] == NAME)
}

fn merge_into(file: &mut Value, ours: &Value) -> anyhow::Result<()> {
    for (list, _) in LISTS {
        let Some(entry) = named(ours, list) else { bail!("our own kubeconfig has no {list}") };
        if file[list].is_null() {
            file[list] = json!([]);
        }
        let Some(entries) = file[list].as_array_mut() else {
            bail!("{list} is no list; the file was left as it is")
        };
        match entries.iter_mut().find(|e| e["name"] == NAME) {
            Some(old) => *old = entry.clone(),
            None => entries.push(entry.clone()),
        }
    }
    if file["current-context"].as_str().is_none_or(str::is_empty) {
        file["current-context"] = json!(NAME);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: &str = "apiVersion: v1\nkind: Config\npreferences: {colors: true}\nclusters:\n- name: prod\n  \
        cluster: {server: https://prod, tls-server-name: x}\nusers:\n- name: me\n  user: {exec: {command: login, \
        apiVersion: v1}}\ncontexts:\n- name: prod\n  context: {cluster: prod, user: me, namespace: web}\n\
        current-context: prod\n";

    #[test]
    fn what_others_wrote_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        std::fs::write(&path, OTHER).unwrap();
        let before = read(&path).unwrap().unwrap();

        let ours = new("https://127.0.0.1:6443", "ca", "cert", "key");
        assert!(!merge(&path, &ours).unwrap());
        assert!(!merge(&path, &ours).unwrap(), "a second time changes nothing");
        let merged = read(&path).unwrap().unwrap();
        assert_eq!(merged["contexts"].as_array().unwrap().len(), 2);
        assert_eq!(merged["current-context"], "prod");
        assert_eq!(merged["users"][0]["user"]["exec"]["command"], "login");

        remove(&path, &ours).unwrap();
        assert_eq!(read(&path).unwrap().unwrap(), before);
    }

    #[test]
    fn a_new_file_gets_our_context_and_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".kube/config");
        let ours = new("https://127.0.0.1:6443", "ca", "cert", "key");
        assert!(merge(&path, &ours).unwrap());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        remove(&path, &new("https://127.0.0.1:6443", "another cluster", "cert", "key")).unwrap();
        assert!(path.exists(), "entries of another cluster are not ours to remove");
        remove(&path, &ours).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        for text in ["clusters: 5\n", "- a\n", "a: [\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(merge(&path, &new("https://x", "ca", "cert", "key")).is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
    }
}
