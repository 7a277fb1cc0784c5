//! The parts of OCI and Docker image documents that are used here. All of it is foreign input.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Largest JSON document of an image in bytes.
pub const MAX_DOCUMENT: u64 = 8 * 1024 * 1024;

/// Points to content.
#[derive(Debug, Clone, Deserialize)]
pub struct Descriptor {
    /// Kind of content.
    #[serde(rename = "mediaType", default)]
    pub media_type: String,
    /// `sha256:<hex>`.
    pub digest: String,
    /// Length in bytes.
    pub size: u64,
    /// Names, in an archive's index.
    #[serde(default)]
    pub annotations: Option<BTreeMap<String, String>>,
    /// What machine it is for.
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// A kind of machine, in Go's words.
#[derive(Debug, Clone, Deserialize)]
pub struct Platform {
    /// `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `linux`, ...
    #[serde(default)]
    pub os: String,
    /// Generation of the processor: `v8`, ...
    #[serde(default)]
    pub variant: String,
}

impl Platform {
    /// Whether this machine can run it.
    pub fn is_here(&self) -> bool {
        self.os == "linux" && self.architecture == architecture()
    }

    /// Among those this machine can run, the lowest is the safest: made for every processor of the kind first.
    pub fn rank(&self) -> u8 {
        match self.variant.as_str() {
            "" | "v1" => 0,
            "v8" if self.architecture == "arm64" => 0,
            variant => variant.trim_start_matches('v').parse().unwrap_or(u8::MAX - 1).min(u8::MAX - 1),
        }
    }

    /// This machine, `os/architecture`.
    pub fn here() -> String {
        format!("linux/{}", architecture())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(out, "/{}", self.variant) }
    }
}

/// This machine's, in Go's words.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An image index or manifest: what of both is used.
#[derive(Debug, Clone, Deserialize)]
pub struct Document {
    /// 2 in all that is understood.
    #[serde(rename = "schemaVersion", default)]
    pub schema_version: Option<u32>,
    /// What it says to be.
    #[serde(rename = "mediaType", default)]
    pub media_type: Option<String>,
    /// Of an index.
    #[serde(default)]
    pub manifests: Option<Vec<Descriptor>>,
    /// Of a manifest.
    #[serde(default)]
    pub config: Option<Descriptor>,
    /// Of a manifest, lowest first.
    #[serde(default)]
    pub layers: Option<Vec<Descriptor>>,
}

/// One image in the `manifest.json` of a `docker save` archive.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerManifest {
    /// Path of the image's configuration in the archive.
    pub config: String,
    /// Names.
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// Paths of layers in the archive, lowest first.
    #[serde(default)]
    pub layers: Option<Vec<String>>,
}

/// An image's configuration document.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageDocument {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    config: Option<ImageConfig>,
    /// Layers.
    pub rootfs: Rootfs,
}

/// Digests of the layers' plain archives, lowest first.
#[derive(Debug, Clone, Deserialize)]
pub struct Rootfs {
    /// `sha256:<hex>`.
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// How to run an image when nothing else is said.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// User, as in `docker run --user`.
    #[serde(deserialize_with = "nullable")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "nullable")]
    pub env: Vec<String>,
    /// Program and first arguments.
    #[serde(deserialize_with = "nullable")]
    pub entrypoint: Vec<String>,
    /// Arguments, or the program when there is no entry point.
    #[serde(deserialize_with = "nullable")]
    pub cmd: Vec<String>,
    /// Working directory.
    #[serde(deserialize_with = "nullable")]
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "nullable")]
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the program to end.
    #[serde(deserialize_with = "nullable")]
    pub stop_signal: String,
    /// Paths that are to be volumes of the container.
    #[serde(deserialize_with = "nullable")]
    pub volumes: BTreeMap<String, Option<Nothing>>,
}

/// What Go's sets have for values.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Nothing {}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl ImageDocument {
    /// Whether this machine can run it; images that do not say are believed.
    pub fn is_here(&self) -> bool {
        self.platform.is_here() || (self.platform.os.is_empty() && self.platform.architecture.is_empty())
    }

    /// `os/architecture`.
    pub fn platform(&self) -> String {
        self.platform.to_string()
    }

    /// How to run it.
    pub fn run_config(&self) -> ImageConfig {
        self.config.clone().unwrap_or_default()
    }
}
