//! The manifest of the committed eBPF object: what `sensor-ebpf.o` in this folder was compiled from, and by what.
//!
//! `cargo xtask ebpf` writes it, and the agent's build script reads it: both include this file, so that there is one
//! meaning of "the sources match". It uses nothing but `std` and `sha2`, because a build script pays for each crate.
//!
//! One fact a line: a word that says which, then its value. Hashes are SHA-256 in hexadecimal.

use std::{collections::BTreeSet, fs, io, path::Path};

use sha2::{Digest, Sha256};

/// The folder, from the workspace root.
pub(crate) const FOLDER: &str = "sensor-ebpf/object";
/// The object in it.
pub(crate) const OBJECT: &str = "sensor-ebpf.o";
/// The manifest in it.
pub(crate) const MANIFEST: &str = "MANIFEST";
/// Where the versions of other crates are pinned, from the workspace root.
pub(crate) const LOCK: &str = "Cargo.lock";
/// The workspace's manifest, whose release profile is the object's too.
pub(crate) const WORKSPACE: &str = "Cargo.toml";
/// The tables of it that count: for all crates, and for those of the object.
const PROFILE: [&str; 4] = [
    "[profile.release]",
    "[profile.release.package.\"*\"]",
    "[profile.release.package.sensor-common]",
    "[profile.release.package.sensor-ebpf]",
];

/// What an object was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Hash of the object.
    pub(crate) object: String,
    /// The compiler, as `rustc --version` prints it, without the distribution's note.
    pub(crate) compiler: String,
    /// The linker, with the LLVM that it holds.
    pub(crate) linker: String,
    /// The compiler's flags, but for those that name folders.
    pub(crate) flags: String,
    /// Hash of the workspace's release profile.
    pub(crate) profile: String,
    /// Name, version and checksum of each crate from elsewhere, as Cargo.lock has them.
    pub(crate) packages: BTreeSet<String>,
    /// Path from the workspace root, and hash.
    pub(crate) sources: Vec<(String, String)>,
}

impl Manifest {
    /// Reads the text of the file.
    ///
    /// # Errors
    /// A line that is not understood, or a fact that is missing; the message names it.
    pub(crate) fn parse(text: &str) -> Result<Manifest, String> {
        let mut manifest = Manifest::default();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let Some((word, value)) = line.split_once(' ') else { return Err(format!("{MANIFEST}: {line:?}")) };
            match (word, value.split_once(' ')) {
                ("object", _) => manifest.object = value.to_owned(),
                ("compiler", _) => manifest.compiler = value.to_owned(),
                ("linker", _) => manifest.linker = value.to_owned(),
                ("flags", _) => manifest.flags = value.to_owned(),
                ("profile", _) => manifest.profile = value.to_owned(),
                ("package", _) => drop(manifest.packages.insert(value.to_owned())),
                ("source", Some((hash, path))) => manifest.sources.push((path.to_owned(), hash.to_owned())),
                _ => return Err(format!("{MANIFEST}: {line:?}")),
            }
        }
        let Manifest { object, compiler, linker, flags: _, profile, packages: _, sources } = &manifest;
        for (value, name) in [(object, "object"), (compiler, "compiler"), (linker, "linker"), (profile, "profile")] {
            if value.is_empty() {
                return Err(format!("{MANIFEST} has no line \"{name}\""));
            }
        }
        if sources.is_empty() {
            return Err(format!("{MANIFEST} names no sources"));
        }
        Ok(manifest)
    }

    /// Reads the manifest of the workspace at `root`.
    ///
    /// # Errors
    /// As [`Manifest::parse`], or the file cannot be read.
    pub(crate) fn read(root: &Path) -> Result<Manifest, String> {
        let path = root.join(FOLDER).join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Manifest::parse(&text)
    }

    /// What is not as it was when the object was compiled, from the workspace root: files, crates, settings. Empty: the
    /// object in the folder is what these sources give.
    pub(crate) fn changes(&self, root: &Path) -> Vec<String> {
        let mut changed = Vec::new();
        for (path, hash) in &self.sources {
            match hash_of_file(&root.join(path)) {
                Ok(now) if now == *hash => {}
                Ok(_) => changed.push(path.clone()),
                Err(error) => changed.push(format!("{path} ({error})")),
            }
        }
        match fs::read_to_string(root.join(WORKSPACE)) {
            Ok(text) if hash(profile(&text).as_bytes()) == self.profile => {}
            _ => changed.push(format!("{WORKSPACE} ({})", PROFILE[0])),
        }
        let locked = fs::read_to_string(root.join(LOCK)).map(|text| locked(&text)).unwrap_or_default();
        let gone = self.packages.difference(&locked);
        changed.extend(gone.map(|package| {
            let name_and_version = package.rsplit_once(' ').map_or(package.as_str(), |(front, _)| front);
            format!("{LOCK} ({name_and_version})")
        }));
        match hash_of_file(&root.join(FOLDER).join(OBJECT)) {
            Ok(now) if now == self.object => {}
            Ok(_) => changed.push(format!("{FOLDER}/{OBJECT}")),
            Err(error) => changed.push(format!("{FOLDER}/{OBJECT} ({error})")),
        }
        changed
    }
}

/// SHA-256, in hexadecimal.
pub(crate) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn hash_of_file(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| hash(&bytes))
}

/// The tables of a Cargo.toml that set the release profile, without comments.
pub(crate) fn profile(text: &str) -> String {
    let mut within = false;
    let lines = text.lines().map(str::trim).filter(|line| {
        if line.starts_with('[') {
            within = PROFILE.contains(line);
        }
        within && !line.is_empty() && !line.starts_with('#')
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// `name version checksum` of each crate from a registry.
pub(crate) fn locked(lock: &str) -> BTreeSet<String> {
    let entry = |text: &str| {
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"'))
        };
        Some(format!("{} {} {}", field("name")?, field("version")?, field("checksum")?))
    };
    lock.split("[[package]]").filter_map(entry).collect()
}
