//! What `cargo metadata` says about this workspace and everything it links.
//!
//! Only the fields the checks need are kept. The lockfile must be complete: a build that would
//! change it fails here.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

/// One package, ours or a dependency.
#[derive(Debug, Default, Clone)]
pub(crate) struct Package {
    /// Name in its `Cargo.toml`.
    pub(crate) name: String,
    /// Version, as text.
    pub(crate) version: String,
    /// Licence expression; none when the package does not say.
    pub(crate) licence: Option<String>,
    /// Registry or git address; none for a package of this workspace.
    pub(crate) source: Option<String>,
    /// Declared dependencies: name and kind.
    pub(crate) dependencies: Vec<Dependency>,
}

/// A declared dependency.
#[derive(Debug, Clone)]
pub(crate) struct Dependency {
    /// Name of the package depended on.
    pub(crate) name: String,
    /// Only built for tests.
    pub(crate) test_only: bool,
    /// Only built for the build script.
    pub(crate) build_only: bool,
}

/// All packages, and who links whom.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    /// By cargo's package id.
    pub(crate) packages: BTreeMap<String, Package>,
    /// Pairs (dependent, dependency) of package ids as resolved.
    pub(crate) links: Vec<(String, String)>,
}

impl Metadata {
    /// Packages of this workspace.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Package> {
        self.packages.values().filter(|package| package.source.is_none())
    }
}

/// Asks cargo. The target is fixed so that no package of another platform has to be downloaded.
///
/// # Errors
/// When cargo fails, as it does on a stale lockfile, or prints something else than its format 1.
pub(crate) fn load(root: &Path) -> anyhow::Result<Metadata> {
    let output = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["metadata", "--format-version", "1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let value: Value = serde_json::from_slice(&output.stdout).context("parse cargo metadata")?;
    Ok(parse(&value))
}

fn parse(value: &Value) -> Metadata {
    let mut metadata = Metadata::default();
    for package in array(value.get("packages")) {
        let dependencies = array(package.get("dependencies")).map(dependency).collect();
        metadata.packages.insert(
            text(package.get("id")),
            Package {
                name: text(package.get("name")),
                version: text(package.get("version")),
                licence: optional(package.get("license")),
                source: optional(package.get("source")),
                dependencies,
            },
        );
    }
    for node in array(value.pointer("/resolve/nodes")) {
        for link in array(node.get("deps")) {
            metadata.links.push((text(node.get("id")), text(link.get("pkg"))));
        }
    }
    metadata
}

fn dependency(value: &Value) -> Dependency {
    let kind = optional(value.get("kind"));
    Dependency {
        name: text(value.get("name")),
        test_only: kind.as_deref() == Some("dev"),
        build_only: kind.as_deref() == Some("build"),
    }
}

fn array(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter()
}

fn optional(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).map(str::to_owned)
}

fn text(value: Option<&Value>) -> String {
    optional(value).unwrap_or_default()
}
