//! Writing the manifest of an object; reading it is in the file that the agent's build script shares.

use std::{collections::BTreeSet, fs, io, path::Path};

use super::manifest::{LOCK, Manifest, WORKSPACE, hash, hash_of_file, locked, profile};

const HEAD: &str = "\
# What sensor-ebpf.o beside this file was compiled from, and by what. `cargo xtask ebpf` writes both; do not edit them.
# A build embeds the object as long as all of this still holds (docs/decisions/0021-committed-object.md).
";

impl Manifest {
    /// Describes an object whose compilation read `sources` (paths from `root`) and `packages` (name and version).
    ///
    /// # Errors
    /// If a file cannot be read, or Cargo.lock has no such package.
    pub(super) fn of(
        root: &Path,
        object: &[u8],
        sources: BTreeSet<String>,
        packages: &BTreeSet<(String, String)>,
    ) -> io::Result<Manifest> {
        let all = locked(&fs::read_to_string(root.join(LOCK))?);
        let mut pinned = BTreeSet::new();
        for (name, version) in packages {
            let line = all.iter().find(|line| line.starts_with(&format!("{name} {version} ")));
            let missing = || io::Error::other(format!("{LOCK} has no checksum of {name} {version}"));
            pinned.insert(line.ok_or_else(missing)?.clone());
        }
        let hashed = sources.into_iter().map(|source| {
            let hash = hash_of_file(&root.join(&source))?;
            Ok((source, hash))
        });
        Ok(Manifest {
            object: hash(object),
            profile: hash(profile(&fs::read_to_string(root.join(WORKSPACE))?).as_bytes()),
            packages: pinned,
            sources: hashed.collect::<io::Result<_>>()?,
            ..Manifest::default()
        })
    }

    /// The text of the file.
    pub(super) fn text(&self) -> String {
        let Manifest { object, compiler, linker, flags, profile, packages, sources } = self;
        let mut text =
            format!("{HEAD}object {object}\ncompiler {compiler}\nlinker {linker}\nflags {flags}\nprofile {profile}\n");
        packages.iter().for_each(|package| text.push_str(&format!("package {package}\n")));
        sources.iter().for_each(|(path, hash)| text.push_str(&format!("source {hash} {path}\n")));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKED: &str = "[[package]]\nname = \"one\"\nversion = \"1.0.0\"\nsource = \"r\"\nchecksum = \"aa\"\n\n\
        [[package]]\nname = \"own\"\nversion = \"0.1.0\"\n";
    const ROOT: &str = "[package]\n\n[profile.release]\n# why\ndebug = 1\n\n[profile.dev]\ndebug = 2\n";

    fn workspace() -> (tempfile::TempDir, Manifest) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("Cargo.toml", ROOT);
        write("Cargo.lock", LOCKED);
        write("src/a file.rs", "one");
        write("sensor-ebpf/object/sensor-ebpf.o", "object");
        let packages = [("one".to_owned(), "1.0.0".to_owned())].into();
        let sources = ["src/a file.rs".to_owned()].into();
        let mut manifest = Manifest::of(folder.path(), b"object", sources, &packages).unwrap();
        (manifest.compiler, manifest.linker, manifest.flags) = ("rustc 1".into(), "linker 1".into(), "-a -b".into());
        (folder, manifest)
    }

    #[test]
    fn what_is_written_is_read() {
        let (_folder, manifest) = workspace();
        assert_eq!(Manifest::parse(&manifest.text()).unwrap(), manifest);
        for (text, what) in [("", "object"), ("object 1\n", "compiler"), ("nonsense\n", "nonsense")] {
            assert!(Manifest::parse(text).unwrap_err().contains(what), "{text:?}");
        }
    }

    #[test]
    fn each_thing_that_goes_into_the_object_is_looked_at_and_nothing_else() {
        let (folder, manifest) = workspace();
        let changes = || manifest.changes(folder.path());
        assert_eq!(changes(), [""; 0]);
        let change = |name: &str, text: &str, expected: &[&str]| {
            let path = folder.path().join(name);
            let before = fs::read(&path).unwrap();
            fs::write(&path, text).unwrap();
            assert_eq!(changes(), expected, "{name}");
            fs::write(&path, before).unwrap();
        };
        change("src/a file.rs", "two", &["src/a file.rs"]);
        change("sensor-ebpf/object/sensor-ebpf.o", "other", &["sensor-ebpf/object/sensor-ebpf.o"]);
        change("Cargo.lock", &LOCKED.replace("\"aa\"", "\"bb\""), &["Cargo.lock (one 1.0.0)"]);
        change("Cargo.lock", &LOCKED.replace("0.1.0", "0.2.0"), &[]);
        change("Cargo.toml", &ROOT.replace("debug = 1", "debug = 0"), &["Cargo.toml ([profile.release])"]);
        change("Cargo.toml", &ROOT.replace("debug = 2", "debug = 0").replace("# why", "# because"), &[]);
        fs::remove_file(folder.path().join("src/a file.rs")).unwrap();
        assert!(changes()[0].starts_with("src/a file.rs ("), "{:?}", changes());
    }

    #[test]
    fn a_package_that_is_not_locked_is_an_error() {
        let (folder, _) = workspace();
        let packages = [("two".to_owned(), "1.0.0".to_owned())].into();
        let error = Manifest::of(folder.path(), b"", BTreeSet::new(), &packages).unwrap_err();
        assert!(error.to_string().contains("two 1.0.0"), "{error}");
    }
}
