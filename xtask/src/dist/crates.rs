//! Which crates are linked into the shipped binaries: the base of the bill of materials and of the third-party notices.
//!
//! Invariant: the set is what cargo resolves for the agent alone (`cargo tree`), without procedural macros, build and
//! test dependencies; facts of each crate are its own (`cargo metadata`, Cargo.lock).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::{rust::Rust, target::Arch, tools};
use crate::cmd;

/// Name and version, which tell crates apart.
pub(super) type Key = (String, String);

/// A crate that is linked.
#[derive(Debug)]
pub(super) struct Linked {
    /// As an SPDX expression.
    pub(super) license: String,
    /// Where its source is kept.
    pub(super) repository: Option<String>,
    /// Its folder.
    pub(super) folder: PathBuf,
    /// SHA-256 of the archive on crates.io, hexadecimal; none for crates of this workspace.
    pub(super) checksum: Option<String>,
    /// What it depends on, of what is linked.
    pub(super) dependencies: BTreeSet<Key>,
}

/// All of them.
pub(super) type Crates = BTreeMap<Key, Linked>;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    repository: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    dependencies: Vec<String>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

/// The crates that are linked for any of these architectures.
///
/// # Errors
/// When cargo cannot tell, or a crate names no licence.
pub(super) fn linked(rust: &Rust, arches: &[Arch]) -> Result<Crates> {
    let mut crates = Crates::new();
    let checksums = checksums()?;
    for arch in arches {
        let mut tree = cargo(rust);
        tree.args(["tree", "--locked", "-p", "sensor", "--edges", "normal,no-proc-macro", "--prefix", "none"]);
        let set = named(&cmd::output(tree.args(["--format", "{p}", "--target", arch.triple()]))?);
        let mut metadata = cargo(rust);
        metadata.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", arch.triple()]);
        let metadata: Metadata =
            serde_json::from_str(&cmd::output(&mut metadata)?).context("what `cargo metadata` prints")?;
        add(&mut crates, metadata, &set, &checksums)?;
    }
    Ok(crates)
}

fn cargo(rust: &Rust) -> Command {
    let mut command = Command::new(rust.program("cargo"));
    tools::clean(&mut command);
    command.env("RUSTC", rust.program("rustc")).current_dir(cmd::workspace_root());
    command
}

/// Names and versions in what `cargo tree` prints: `name v1.2.3`, and more that is not looked at.
fn named(tree: &str) -> BTreeSet<Key> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.strip_prefix('v')?.to_owned()))
    };
    tree.lines().filter_map(line).collect()
}

fn add(crates: &mut Crates, metadata: Metadata, set: &BTreeSet<Key>, checksums: &BTreeMap<Key, String>) -> Result<()> {
    let keys: BTreeMap<_, _> =
        metadata.packages.iter().map(|p| (p.id.clone(), (p.name.clone(), p.version.clone()))).collect();
    let nodes: BTreeMap<_, _> = metadata.resolve.nodes.into_iter().map(|node| (node.id, node.dependencies)).collect();
    for package in metadata.packages {
        let key = (package.name, package.version);
        if !set.contains(&key) {
            continue;
        }
        let Some(license) = package.license else {
            bail!("{} {} names no licence, so it cannot be shipped", key.0, key.1);
        };
        let needs = nodes.get(&package.id).into_iter().flatten().filter_map(|id| keys.get(id));
        let needs = needs.filter(|needed| set.contains(*needed)).cloned();
        let entry = crates.entry(key.clone()).or_insert_with(|| Linked {
            // The older form of "or".
            license: license.replace('/', " OR "),
            repository: package.repository,
            folder: package.manifest_path.parent().map(PathBuf::from).unwrap_or_default(),
            checksum: checksums.get(&key).cloned(),
            dependencies: BTreeSet::new(),
        });
        entry.dependencies.extend(needs);
    }
    Ok(())
}

fn checksums() -> Result<BTreeMap<Key, String>> {
    let text = fs::read_to_string(cmd::workspace_root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let lock: Lock = toml::from_str(&text).context("Cargo.lock")?;
    let known = lock.package.into_iter().filter_map(|p| Some(((p.name, p.version), p.checksum?)));
    Ok(known.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cargo_tree_prints_is_understood() {
        let set = named("sensor v0.1.0 (/sensor)\nlibc v0.2.189\nlibc v0.2.189 (*)\n\n[dev-dependencies]\n");
        let key = |name: &str, version: &str| (name.to_owned(), version.to_owned());
        assert_eq!(set, BTreeSet::from([key("libc", "0.2.189"), key("sensor", "0.1.0")]));
    }

    #[test]
    fn crates_have_their_dependencies_and_checksums() {
        let text = r#"{"packages": [
            {"id": "a", "name": "one", "version": "1.0.0", "license": "MIT/Apache-2.0", "repository": null,
             "manifest_path": "/c/one/Cargo.toml"},
            {"id": "b", "name": "two", "version": "2.0.0", "license": "MIT", "repository": "https://two",
             "manifest_path": "/c/two/Cargo.toml"},
            {"id": "c", "name": "macro", "version": "1.0.0", "license": null, "repository": null,
             "manifest_path": "/c/m/Cargo.toml"}],
            "resolve": {"nodes": [{"id": "a", "dependencies": ["b", "c"]}, {"id": "b", "dependencies": []},
                                  {"id": "c", "dependencies": []}]}}"#;
        let parse = || serde_json::from_str::<Metadata>(text).unwrap();
        let two = ("two".to_owned(), "2.0.0".to_owned());
        let set = named("one v1.0.0\ntwo v2.0.0\n");
        let mut crates = Crates::new();
        add(&mut crates, parse(), &set, &BTreeMap::from([(two.clone(), "ab".to_owned())])).unwrap();
        let one = &crates[&("one".to_owned(), "1.0.0".to_owned())];
        assert_eq!((one.license.as_str(), one.checksum.as_deref()), ("MIT OR Apache-2.0", None));
        assert_eq!(one.dependencies, BTreeSet::from([two.clone()]));
        assert_eq!(crates[&two].checksum.as_deref(), Some("ab"));
        let error = add(&mut crates, parse(), &named("macro v1.0.0\n"), &BTreeMap::new()).unwrap_err();
        assert!(error.to_string().contains("names no licence"), "{error}");
    }
}
