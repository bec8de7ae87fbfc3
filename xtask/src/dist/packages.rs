//! The packages (.deb, .rpm, .apk), made by nfpm from packaging/nfpm.yaml, and the archive for all other systems.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    Kind,
    release::{MAINTAINER, REVISION, Release},
    target::Arch,
    tools::Tools,
};
use crate::cmd;

/// The description of the packages.
const DESCRIPTION: &str = "packaging/nfpm.yaml";

/// Makes the package of this kind from what is laid out in `stage`; returns where it is.
///
/// # Errors
/// When nfpm refuses the description or a file.
pub(super) fn package(
    kind: Kind,
    tools: &Tools,
    release: &Release,
    arch: Arch,
    stage: &Path,
    folder: &Path,
) -> Result<PathBuf> {
    let (version, kernel, go) = (release.version, arch.kernel(), arch.go());
    let (packager, name) = match kind {
        Kind::Deb => ("deb", format!("sensor_{version}-{REVISION}_{go}.deb")),
        Kind::Rpm => ("rpm", format!("sensor-{version}-{REVISION}.{kernel}.rpm")),
        // Alpine keeps packages in a folder for each architecture, without it in the name.
        Kind::Apk => ("apk", format!("sensor-{version}-r{REVISION}.{kernel}.apk")),
        Kind::Archive | Kind::Image => return archive(release, arch, stage, folder),
    };
    let package = folder.join(name);
    let mut nfpm = tools.command("nfpm");
    nfpm.current_dir(stage).args(["package", "--packager", packager, "--target"]).arg(&package);
    nfpm.arg("--config").arg(cmd::workspace_root().join(DESCRIPTION));
    nfpm.env("SENSOR_ARCH", go).env("SENSOR_VERSION", version).env("SENSOR_MAINTAINER", MAINTAINER);
    nfpm.env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    cmd::run(&mut nfpm)?;
    Ok(package)
}

/// `sensor-VERSION-linux-ARCH.tar.gz`: one folder that holds usr and etc.
fn archive(release: &Release, arch: Arch, stage: &Path, folder: &Path) -> Result<PathBuf> {
    let name = format!("sensor-{}-linux-{}", release.version, arch.kernel());
    let archive = folder.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--use-compress-program=gzip -9n", "--file"]).arg(&archive);
    tar.args(STABLE_TAR).arg(format!("--mtime=@{}", release.epoch));
    tar.arg(format!("--transform=s,^\\.,{name},"));
    for tree in ["common", "systemd"] {
        tar.arg("-C").arg(stage.join(tree)).arg(".");
    }
    cmd::run(&mut tar)?;
    Ok(archive)
}

/// What makes GNU tar write the same bytes for the same files, whoever owns them and in whatever order the folder has
/// them.
pub(super) const STABLE_TAR: [&str; 5] = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--format=gnu"];
