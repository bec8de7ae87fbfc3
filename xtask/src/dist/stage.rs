//! What is installed, laid out below a folder as it is installed: the input of every package, archive and image.
//!
//! Invariant: names, modes, times and content depend on the source alone. The trees: `common` is in everything, `systemd`
//! and `openrc` are for the service manager, `deb` and `rpm` for what those formats want in places of their own;
//! `scripts` are run when a package is installed or removed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use super::{empty, release::Release};
use crate::cmd;

/// Mode of what is executed, and of every folder.
const PROGRAM: u32 = 0o755;
/// Mode of all other files.
const PLAIN: u32 = 0o644;

/// What is installed as it is: place in the project, place below the stage.
const FILES: [(&str, &str); 13] = [
    ("models/sensor.onnx", "common/usr/share/sensor/sensor.onnx"),
    ("models/sensor.md", "common/usr/share/sensor/sensor.md"),
    ("packaging/prometheus/sensor.rules.yml", "common/usr/share/sensor/prometheus/sensor.rules.yml"),
    ("packaging/grafana/sensor.json", "common/usr/share/sensor/grafana/sensor.json"),
    ("README.md", "common/usr/share/doc/sensor/README.md"),
    ("packaging/systemd/sensor.service", "systemd/usr/lib/systemd/system/sensor.service"),
    ("packaging/systemd/sensor-pins.service", "systemd/usr/lib/systemd/system/sensor-pins.service"),
    ("packaging/systemd/sensor.sysusers.conf", "systemd/usr/lib/sysusers.d/sensor.conf"),
    ("packaging/systemd/sensor.tmpfiles.conf", "systemd/usr/lib/tmpfiles.d/sensor.conf"),
    ("packaging/debian/copyright", "deb/usr/share/doc/sensor/copyright"),
    ("packaging/debian/lintian-overrides", "deb/usr/share/lintian/overrides/sensor"),
    ("LICENSE-MIT", "rpm/usr/share/licenses/sensor/LICENSE-MIT"),
    ("LICENSE-APACHE", "rpm/usr/share/licenses/sensor/LICENSE-APACHE"),
];
/// The same for what is executed.
const PROGRAMS: [(&str, &str); 1] = [("packaging/openrc/sensor", "openrc/etc/init.d/sensor")];
/// What nfpm takes into packages to be run: it records the times of these files, too.
const SCRIPTS: [&str; 9] = [
    "debian/postinst",
    "debian/prerm",
    "debian/postrm",
    "rpm/post",
    "rpm/preun",
    "rpm/postun",
    "apk/pre-install",
    "apk/post-upgrade",
    "apk/pre-deinstall",
];
/// The line of config/sensor.toml that names the model, and what it is in a package.
const MODEL_HERE: &str = "path = \"models/sensor.onnx\"";
const MODEL_INSTALLED: &str = "path = \"/usr/share/sensor/sensor.onnx\"";

/// Lays everything out below `folder`, which is emptied first.
///
/// # Errors
/// When a file is missing or cannot be written; or config/sensor.toml no longer names the model as it did.
pub(super) fn lay_out(folder: &Path, release: &Release, binary: &Path, pages: &Path, notices: &str) -> Result<()> {
    empty(folder)?;
    let root = cmd::workspace_root();
    let stage = Stage { folder };
    stage.copy(binary, "common/usr/bin/sensor", PROGRAM)?;
    for (from, to) in FILES {
        stage.copy(&root.join(from), to, PLAIN)?;
    }
    for (from, to) in PROGRAMS {
        stage.copy(&root.join(from), to, PROGRAM)?;
    }
    for script in SCRIPTS {
        stage.copy(&root.join("packaging").join(script), &format!("scripts/{script}"), PROGRAM)?;
    }
    for page in sorted(&root.join("docs"))?.into_iter().filter(|file| file.extension().is_some_and(|e| e == "md")) {
        stage.copy(&page, &format!("common/usr/share/doc/sensor/docs/{}", name(&page)), PLAIN)?;
    }
    let config = fs::read_to_string(root.join("config/sensor.toml")).context("cannot read config/sensor.toml")?;
    stage.write("common/etc/sensor/sensor.toml", installed_config(&config)?.as_bytes())?;

    for page in sorted(&pages.join("man"))? {
        stage.compressed(&format!("common/usr/share/man/man1/{}", name(&page)), &read(&page)?)?;
    }
    let completions = pages.join("completions");
    stage.copy(&completions.join("sensor.bash"), "common/usr/share/bash-completion/completions/sensor", PLAIN)?;
    stage.copy(&completions.join("sensor.fish"), "common/usr/share/fish/vendor_completions.d/sensor.fish", PLAIN)?;
    // Debian has a folder of its own for completions of packages.
    stage.copy(&completions.join("_sensor"), "deb/usr/share/zsh/vendor-completions/_sensor", PLAIN)?;
    for tree in ["rpm", "openrc"] {
        stage.copy(&completions.join("_sensor"), &format!("{tree}/usr/share/zsh/site-functions/_sensor"), PLAIN)?;
    }

    stage.compressed("common/usr/share/doc/sensor/THIRD-PARTY", notices.as_bytes())?;
    stage.compressed("common/usr/share/doc/sensor/changelog", &read(&root.join("CHANGELOG.md"))?)?;
    stage.compressed("deb/usr/share/doc/sensor/changelog.Debian", release.debian_changelog()?.as_bytes())?;
    set_times(folder, release.epoch)
}

/// The shipped configuration: the project's, with the model where packages put it.
fn installed_config(text: &str) -> Result<String> {
    if text.matches(MODEL_HERE).count() != 1 {
        bail!("config/sensor.toml has not one line `{MODEL_HERE}`, which packages change to where the model is");
    }
    Ok(text.replace(MODEL_HERE, MODEL_INSTALLED))
}

/// Gives everything below `path`, and itself, one time, which archives record.
pub(super) fn set_times(path: &Path, epoch: u64) -> Result<()> {
    if path.is_dir() {
        for entry in sorted(path)? {
            set_times(&entry, epoch)?;
        }
    }
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    file.set_modified(UNIX_EPOCH + Duration::from_secs(epoch))
        .with_context(|| format!("cannot set the time of {}", path.display()))
}

/// What is in a folder, by name.
pub(super) fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let entries: std::io::Result<Vec<_>> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut entries = entries.with_context(|| format!("cannot read {}", folder.display()))?;
    entries.sort();
    Ok(entries)
}

/// The names of what is in a folder, in order.
pub(super) fn names(folder: &Path) -> Result<Vec<String>> {
    Ok(sorted(folder)?.iter().map(|path| name(path)).collect())
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A folder that is filled.
struct Stage<'a> {
    folder: &'a Path,
}

impl Stage<'_> {
    fn copy(&self, from: &Path, to: &str, mode: u32) -> Result<()> {
        self.put(to, &read(from)?, mode)
    }

    fn write(&self, to: &str, bytes: &[u8]) -> Result<()> {
        self.put(to, bytes, PLAIN)
    }

    /// As `to.gz`, as small as gzip makes it and without a time in it.
    fn compressed(&self, to: &str, bytes: &[u8]) -> Result<()> {
        self.put(to, bytes, PLAIN)?;
        cmd::output(Command::new("gzip").arg("-9nf").arg(self.folder.join(to))).map(drop)
    }

    fn put(&self, to: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.folder.join(to);
        let parent = path.parent().context("a place in the stage has a folder")?;
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        // Whatever the caller's umask is.
        for folder in parent.ancestors().take_while(|folder| *folder != self.folder) {
            set_mode(folder, PROGRAM)?;
        }
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        set_mode(&path, mode)
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_configuration_differs_in_where_the_model_is() {
        let text = fs::read_to_string(cmd::workspace_root().join("config/sensor.toml")).unwrap();
        let installed = installed_config(&text).unwrap();
        let changed: Vec<_> = text.lines().zip(installed.lines()).filter(|(here, there)| here != there).collect();
        assert_eq!(changed, [(MODEL_HERE, MODEL_INSTALLED)]);
        assert!(installed_config("[model]\n").is_err());
    }

    #[test]
    fn every_file_that_is_installed_as_it_is_exists() {
        for (from, _) in FILES.into_iter().chain(PROGRAMS) {
            assert!(cmd::workspace_root().join(from).is_file(), "{from}");
        }
    }
}
