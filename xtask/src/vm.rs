//! `cargo xtask vm`: the agent on other kernels and the other architecture, each booted under qemu (tests/vm).
//!
//! Kernels are Debian's cloud kernels, fetched with apt's own checks of signatures into target/vm, apart from the
//! packages of this machine; nothing of them is installed. Without KVM, so that it is the same everywhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    cmd,
    dist::{self, Arch},
    setup,
};

/// Another mirror than Debian's own; tests/systemd reads it, too.
const MIRROR: &str = "SENSOR_DEBIAN_MIRROR";
const DEFAULT_MIRROR: &str = "http://deb.debian.org/debian";
/// Where kernels are looked for. A suite that is gone from the mirror is passed over.
const SUITES: [&str; 6] = ["bookworm", "bookworm-updates", "bookworm-backports", "trixie", "trixie-backports", "sid"];
/// The file of apt's settings for one architecture.
const CONFIG: &str = "apt.conf";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Which kernels.
#[derive(Args)]
pub(crate) struct VmArgs {
    /// Kernels, by the beginning of their versions
    #[arg(value_name = "VERSION", default_values_t = ["6.1".to_owned(), "6.12".to_owned(), "7.2".to_owned()])]
    kernels: Vec<String>,
    /// Architectures; each but this machine's is emulated wholly
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ARCH", default_value = "x86_64,arm64")]
    arch: Vec<Arch>,
    /// Test this static binary instead of building one; for one architecture only
    #[arg(long, value_name = "FILE")]
    sensor: Option<PathBuf>,
}

/// `cargo xtask vm`.
///
/// # Errors
/// When a kernel cannot be had, or a check in one fails. All others are tested before.
pub(crate) fn vm(args: &VmArgs) -> Result<()> {
    ensure!(args.sensor.is_none() || args.arch.len() == 1, "--sensor FILE is of one architecture: name it with --arch");
    setup::ensure(setup::Options::VM)?;
    let mut table = Vec::new();
    for arch in args.arch.iter().copied() {
        let sensor = match &args.sensor {
            Some(file) => file.canonicalize().with_context(|| format!("--sensor {}", file.display()))?,
            None => dist::binary(arch)?,
        };
        let packages = Packages::of(arch)?;
        let busybox = packages.unpacked("busybox-static")?.join("usr/bin/busybox");
        // Before Debian 13.
        let busybox = if busybox.exists() { busybox } else { packages.unpacked("busybox-static")?.join("bin/busybox") };
        for version in &args.kernels {
            let begun = Instant::now();
            let outcome = packages.kernel(version).and_then(|kernel| boot(arch, &kernel, &sensor, &busybox));
            let line = match &outcome {
                Ok(checks) => format!("{version:<6} {:<8} passed, {checks} checks", arch.kernel()),
                Err(error) => format!("{version:<6} {:<8} FAILED: {error:#}", arch.kernel()),
            };
            println!("{line}");
            table.push((format!("{line}, {} s", begun.elapsed().as_secs()), outcome.is_ok()));
        }
    }
    println!("\nkernel matrix:");
    table.iter().for_each(|(line, _)| println!("  {line}"));
    let failed = table.iter().filter(|(_, passed)| !passed).count();
    ensure!(failed == 0, "{failed} of {} kernels failed; each console is above", table.len());
    Ok(())
}

/// An unpacked kernel.
struct Kernel {
    image: PathBuf,
    /// The folder with its modules.
    folder: PathBuf,
}

/// Boots it; how many checks passed.
fn boot(arch: Arch, kernel: &Kernel, sensor: &Path, busybox: &Path) -> Result<usize> {
    let script = cmd::workspace_root().join("tests/vm/run.sh");
    let mut command = Command::new(&script);
    command.arg(&kernel.image).arg(&kernel.folder);
    command.env("ARCH", arch.kernel()).env("SENSOR", sensor).env("BUSYBOX", busybox).env("TIMEOUT", "900");
    println!("$ {}", cmd::render(&command));
    let output = command.output().with_context(|| format!("cannot run {}", script.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let passed = text.lines().filter(|line| line.starts_with("PASS ")).count();
    let failed: Vec<_> = text.lines().filter(|line| line.starts_with("FAIL ")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    ensure!(output.status.success(), "it did not come to the end of its checks");
    Ok(passed)
}

/// Debian's packages of one architecture, apart from those of this machine.
struct Packages {
    arch: Arch,
    folder: PathBuf,
}

impl Packages {
    /// With fresh lists.
    fn of(arch: Arch) -> Result<Self> {
        let folder = cmd::workspace_root().join("target/vm").join(arch.kernel());
        let packages = Self { arch, folder };
        let create = |name: &str| {
            let path = packages.folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))
        };
        [
            "etc/apt.conf.d",
            "etc/preferences.d",
            "etc/sources.list.d",
            "state/lists/partial",
            "cache/archives/partial",
            "log",
            "deb",
            "unpacked",
        ]
        .into_iter()
        .try_for_each(create)?;
        let write = |name: &str, text: &str| {
            let path = packages.folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        let mirror = std::env::var(MIRROR).unwrap_or_else(|_| DEFAULT_MIRROR.to_owned());
        let source = |suite: &&str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        write("etc/sources.list", &SUITES.iter().map(source).collect::<String>())?;
        write("state/status", "")?;
        write(CONFIG, &packages.config())?;
        // Lists that are old are better than none, where there is no network: what they name may be here already.
        if let Err(error) = cmd::run(packages.apt("apt-get").args(["-q", "update"])) {
            eprintln!("warning: package lists of some suites are not fresh: {error:#}");
        }
        Ok(packages)
    }

    /// One of apt's programs, with folders of its own.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.folder.join(CONFIG)).current_dir(self.folder.join("deb"));
        command
    }

    /// The settings for that.
    fn config(&self) -> String {
        let (at, arch) = (self.folder.display(), self.arch.go());
        [
            format!("APT::Architecture {arch:?};\nAPT::Architectures {{ {arch:?}; }};\nAPT::Sandbox::User \"\";"),
            "Acquire::Languages \"none\";".to_owned(),
            format!("Dir::State \"{at}/state\";\nDir::State::status \"{at}/state/status\";"),
            format!("Dir::Cache \"{at}/cache\";\nDir::Log \"{at}/log\";\nDir::Etc \"{at}/etc\";"),
        ]
        .join("\n")
    }

    /// The folder that a package is unpacked in; it is fetched first, if it is not here.
    fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join("unpacked").join(package);
        if folder.exists() {
            return Ok(folder);
        }
        cmd::run(self.apt("apt-get").args(["-q", "download", package]))?;
        let begins = format!("{package}_");
        let entries = fs::read_dir(self.folder.join("deb")).context("cannot read the folder of packages")?;
        let mut files = entries.flatten().map(|entry| entry.path());
        let is_it = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&begins));
        let deb = files.find(is_it).with_context(|| format!("apt fetched no {package}"))?;
        // Whole, or not there.
        let partial = self.folder.join("unpacked").join(format!("{package}.partial"));
        let _ = fs::remove_dir_all(&partial);
        cmd::run(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(&partial))?;
        fs::rename(&partial, &folder).with_context(|| format!("cannot rename {}", partial.display()))?;
        Ok(folder)
    }

    /// The newest cloud kernel whose version begins like this.
    fn kernel(&self, version: &str) -> Result<Kernel> {
        let names = cmd::output(self.apt("apt-cache").args(["pkgnames", "linux-"]))?;
        let Some(name) = newest(&names, version, self.arch.go()) else {
            bail!("Debian's suites {} have no cloud kernel {version} for {}", SUITES.join(", "), self.arch.go());
        };
        let folder = self.unpacked(&name)?;
        // From Debian 14 on the modules are a package of their own.
        let modules = match name.strip_prefix("linux-binary-") {
            Some(rest) => self.unpacked(&format!("linux-modules-{rest}"))?,
            None => folder.clone(),
        };
        let image = image(&folder).with_context(|| format!("{name} has no image"))?;
        Ok(Kernel { image, folder: modules })
    }
}

/// The kernel's image: boot/vmlinuz-VERSION, from Debian 14 on usr/lib/modules/VERSION/vmlinuz.
fn image(folder: &Path) -> Option<PathBuf> {
    let entries = |folder: PathBuf| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_image = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    let modules = entries(folder.join("usr/lib/modules")).map(|version| version.join("vmlinuz"));
    entries(folder.join("boot")).find(is_image).or_else(|| modules.into_iter().find(|path| path.is_file()))
}

/// Of these packages' names, the newest cloud kernel whose version begins with `version`: "6.1" is not "6.12".
fn newest(names: &str, version: &str, arch: &str) -> Option<String> {
    let end = format!("-cloud-{arch}");
    let fits = |name: &&str| {
        let rest = name.strip_prefix("linux-image-").or_else(|| name.strip_prefix("linux-binary-"));
        let of = rest.and_then(|rest| rest.strip_suffix(&end)).and_then(|rest| rest.strip_prefix(version));
        of.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '+', '~']))
    };
    // Where a version is in two packages, linux-image-* is empty.
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    names
        .lines()
        .map(str::trim)
        .filter(fits)
        .max_by_key(|name| (numbers(name), name.starts_with("linux-binary-")))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_no_other_that_begins_alike() {
        let names = "linux-image-6.1.0-9-cloud-amd64\nlinux-image-6.1.0-50-cloud-amd64\nlinux-image-6.12.95+deb12-cloud-amd64\n\
                     linux-image-6.1.0-51-cloud-arm64\nlinux-image-6.1.0-60-amd64\nlinux-headers-6.1.0-70-cloud-amd64\n\
                     linux-binary-7.2.1+deb14-cloud-amd64\nlinux-image-6.1.0-50-cloud-amd64-unsigned\n";
        let found = |version| newest(names, version, "amd64");
        assert_eq!(found("6.1").as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert_eq!(found("6.12").as_deref(), Some("linux-image-6.12.95+deb12-cloud-amd64"));
        assert_eq!(found("7.2").as_deref(), Some("linux-binary-7.2.1+deb14-cloud-amd64"));
        assert_eq!(found("5.15"), None);
    }
}
