//! `cargo xtask tidy`: checks what neither rustc nor clippy checks, against the data in `crates.toml`.
//!
//! Every check collects all its findings before the task fails, so that one run shows everything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::Deserialize;

/// Longest source file that needs no reason, in lines.
const MAX_LINES: usize = 800;

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Rules {
    edges: BTreeMap<String, BTreeSet<String>>,
    test_edges: BTreeMap<String, BTreeSet<String>>,
    licences: Licences,
    duplicates: BTreeMap<String, String>,
    long_files: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Licences {
    allowed: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
}

/// Runs every check on the tree at `root`.
pub fn run(root: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(root.join("crates.toml")).context("crates.toml")?;
    let rules: Rules = toml::from_str(&text).context("crates.toml")?;
    let metadata = metadata(root)?;
    let sources = sources(root)?;

    let mut findings = Vec::new();
    edges(&rules, &metadata, &mut findings);
    dependencies(&rules, &metadata, &mut findings);
    map(root, &metadata, &mut findings)?;
    files(root, &rules, &sources, &mut findings)?;
    if findings.is_empty() {
        println!(
            "tidy: {} crates, {} files, nothing to say",
            metadata.workspace_members.len(),
            sources.len()
        );
        return Ok(());
    }
    for finding in &findings {
        eprintln!("tidy: {finding}");
    }
    bail!("{} findings", findings.len())
}

/// What cargo resolves for Linux with default features.
fn metadata(root: &Path) -> anyhow::Result<Metadata> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--filter-platform", &platform])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("unexpected output of cargo metadata")
}

/// Every `.rs` file of the workspace, relative to the root.
fn sources(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.join("crates")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Edges between our own crates, in the manifest and in the list.
fn edges(rules: &Rules, metadata: &Metadata, findings: &mut Vec<String>) {
    let members: BTreeMap<&str, &Package> = metadata
        .packages
        .iter()
        .filter(|p| metadata.workspace_members.contains(&p.id))
        .map(|p| (p.name.as_str(), p))
        .collect();
    let none = BTreeSet::new();
    for (name, package) in &members {
        let Some(allowed) = rules.edges.get(*name) else {
            findings.push(format!("crate {name} is not in [edges] of crates.toml"));
            continue;
        };
        let for_tests = rules.test_edges.get(*name).unwrap_or(&none);
        for dependency in &package.dependencies {
            let to = &dependency.name;
            if !members.contains_key(to.as_str()) || allowed.contains(to) {
                continue;
            }
            let test = dependency.kind.as_deref() == Some("dev");
            if !(test && for_tests.contains(to)) {
                let kind = if test { "test edge" } else { "edge" };
                findings.push(format!("{kind} {name} -> {to} is not allowed by crates.toml"));
            }
        }
    }
    for name in rules.edges.keys().chain(rules.test_edges.keys()) {
        if !members.contains_key(name.as_str()) {
            findings.push(format!("crates.toml names {name}, which is no crate of the workspace"));
        }
    }
}

/// Licences and versions of everything that is compiled in.
fn dependencies(rules: &Rules, metadata: &Metadata, findings: &mut Vec<String>) {
    let resolved: BTreeSet<&str> = metadata.resolve.nodes.iter().map(|n| n.id.as_str()).collect();
    let mut versions: HashMap<&str, Vec<&str>> = HashMap::new();
    for package in metadata.packages.iter().filter(|p| resolved.contains(p.id.as_str())) {
        versions.entry(&package.name).or_default().push(&package.version);
        let licence = package.license.as_deref().unwrap_or("");
        if !licence_allowed(licence, &rules.licences.allowed) {
            findings.push(format!("licence of {} {} is '{licence}'", package.name, package.version));
        }
    }
    for (name, versions) in &versions {
        if versions.len() > 1 && !rules.duplicates.contains_key(*name) {
            findings.push(format!("{name} is compiled in the versions {}", versions.join(", ")));
        }
    }
    for name in rules.duplicates.keys() {
        if versions.get(name.as_str()).is_none_or(|v| v.len() < 2) {
            findings.push(format!("crates.toml excuses duplicates of {name}, but there are none"));
        }
    }
}

/// An SPDX expression: `/` is the old way to write OR, AND binds tighter than OR.
fn licence_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let expression = expression.replace(" / ", " OR ").replace('/', " OR ");
    let parts = split_top_level(&expression, " OR ");
    if parts.len() > 1 {
        return parts.iter().any(|part| licence_allowed(part, allowed));
    }
    let parts = split_top_level(&expression, " AND ");
    if parts.len() > 1 {
        return parts.iter().all(|part| licence_allowed(part, allowed));
    }
    let single = expression.trim();
    match single.strip_prefix('(').and_then(|s| s.strip_suffix(')')) {
        Some(inner) => licence_allowed(inner, allowed),
        None => allowed.contains(single),
    }
}

/// Splits at `separator` outside parentheses.
fn split_top_level<'a>(text: &'a str, separator: &str) -> Vec<&'a str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0usize);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ if depth == 0 && at >= start && text[at..].starts_with(separator) => {
                parts.push(&text[start..at]);
                start = at + separator.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// Every crate is on the map.
fn map(root: &Path, metadata: &Metadata, findings: &mut Vec<String>) -> anyhow::Result<()> {
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap_or_default();
    for package in metadata.packages.iter().filter(|p| metadata.workspace_members.contains(&p.id)) {
        if !page.contains(&format!("crates/{}", package.name)) {
            findings.push(format!("crates/{} is not on the map in ARCHITECTURE.md", package.name));
        }
    }
    Ok(())
}

/// Every file says what it is and is short enough to be read.
fn files(root: &Path, rules: &Rules, sources: &[PathBuf], findings: &mut Vec<String>) -> anyhow::Result<()> {
    let mut long = BTreeSet::new();
    for source in sources {
        let name = source.display().to_string();
        let text = std::fs::read_to_string(root.join(source)).with_context(|| name.clone())?;
        let lines = text.lines().count();
        if lines > MAX_LINES {
            if !rules.long_files.contains_key(&name) {
                findings.push(format!("{name} has {lines} lines (more than {MAX_LINES})"));
            }
            long.insert(name.clone());
        }
        let derived = text.starts_with("// Derived by `cargo xtask");
        if !derived && !text.starts_with("//!") {
            findings.push(format!("{name} does not start with //!"));
        }
    }
    for name in rules.long_files.keys().filter(|n| !long.contains(*n)) {
        findings.push(format!("crates.toml excuses {name}, which is not long"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(expression: &str) -> bool {
        let list = ["MIT", "Apache-2.0", "BSD-3-Clause"].map(String::from).into();
        licence_allowed(expression, &list)
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        assert!(allowed("GPL-3.0 OR MIT"));
        assert!(allowed("GPL-3.0/MIT"));
        assert!(!allowed("GPL-3.0"));
        assert!(!allowed(""));
    }

    #[test]
    fn every_part_of_a_conjunction_must_be_allowed() {
        assert!(allowed("(Apache-2.0 OR GPL-2.0) AND BSD-3-Clause"));
        assert!(!allowed("MIT AND GPL-2.0"));
        assert!(!allowed("(MIT AND GPL-2.0) OR (GPL-3.0 AND MIT)"));
    }
}
