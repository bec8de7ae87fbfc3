//! `cargo xtask dist`: what people install. Static binaries, packages, the container image, checksums, bill of
//! materials.
//!
//! Invariant: two runs on the same source give the same bytes, from whatever folder ([`again`] tests it). What is made
//! is in target/dist; target/static holds what it was made from.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::{cmd, ebpf};

mod again;
mod alone;
mod binary;
mod crates;
mod image;
mod notices;
mod packages;
mod release;
mod rust;
mod sbom;
mod stage;
mod target;
mod tools;

use binary::Builder;
use release::Release;
use rust::Rust;
pub(crate) use target::Arch;
use tools::Tools;

/// The list of checksums.
const SUMS: &str = "SHA256SUMS";

/// What to make.
#[derive(Args, Clone)]
pub(crate) struct DistArgs {
    /// Architectures [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ARCH")]
    arch: Vec<Arch>,
    /// Kinds of packages [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND")]
    only: Vec<Kind>,
    /// Package FOLDER/x86_64/sensor, FOLDER/aarch64/sensor and FOLDER/pages, as another run left them, and build nothing
    #[arg(long, value_name = "FOLDER")]
    prebuilt: Option<PathBuf>,
    /// Make everything a second time, in another folder and from nothing, and fail if a byte differs
    #[arg(long)]
    check_reproducible: bool,
}

impl DistArgs {
    /// Only the Debian package, for the machine that makes it.
    ///
    /// # Errors
    /// On an architecture that no packages are made for.
    pub(crate) fn deb_of_this_machine() -> Result<Self> {
        let host = Arch::host().context("packages are made on x86-64 or aarch64")?;
        Ok(Self { arch: vec![host], only: vec![Kind::Deb], prebuilt: None, check_reproducible: false })
    }
}

/// A kind of package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// tar.gz with the static binary and all that belongs to it
    Archive,
    /// Debian, Ubuntu
    Deb,
    /// Fedora, RHEL, SUSE
    Rpm,
    /// Alpine
    Apk,
    /// Container image of all chosen architectures, in one archive
    Image,
}

/// `cargo xtask dist`.
///
/// # Errors
/// When a tool or toolchain cannot be had, a build fails, or (with `--check-reproducible`) two runs differ.
pub(crate) fn dist(args: DistArgs) -> Result<()> {
    let target = cmd::workspace_root().join("target");
    let (work, out) = (target.join("static"), target.join("dist"));
    let release = Release::of_this_source()?;
    let tools = Tools::ensure()?;
    let arches = if args.arch.is_empty() { Arch::ALL.to_vec() } else { args.arch.clone() };
    // Pages are written by a program that has to run here.
    let host = Arch::host().context("packages are made on x86-64 or aarch64")?;
    let mut needed = arches.clone();
    if !needed.contains(&host) {
        needed.push(host);
    }
    let rust = Rust::choose(&needed)?;
    let built = match &args.prebuilt {
        Some(folder) => folder.canonicalize().with_context(|| format!("--prebuilt {}", folder.display()))?,
        None => build(&Builder { rust: &rust, tools: &tools, folder: &work }, &arches, host)?,
    };
    package(&args, &release, &tools, &rust, &Places { arches: &arches, built: &built, work: &work, out: &out })?;
    if args.check_reproducible {
        again::compare(&args, &release, &work, &out)?;
    }
    Ok(())
}

/// The static binary of one architecture.
///
/// # Errors
/// When a tool or toolchain cannot be had, or the build fails.
pub(crate) fn binary(arch: Arch) -> Result<PathBuf> {
    let folder = cmd::workspace_root().join("target/static");
    let tools = Tools::ensure()?;
    let rust = Rust::choose(&[arch])?;
    ebpf::ready()?;
    Builder { rust: &rust, tools: &tools, folder: &folder }.sensor(arch)
}

/// Builds the binaries and what is written by them; returns the folder that holds both as `--prebuilt` wants them.
fn build(builder: &Builder, arches: &[Arch], host: Arch) -> Result<PathBuf> {
    ebpf::ready()?;
    let built = builder.folder.join("built");
    empty(&built)?;
    for arch in arches {
        let binary = builder.sensor(*arch)?;
        if *arch == host {
            alone::check(&binary, builder.folder)?;
        }
        let folder = built.join(arch.kernel());
        empty(&folder)?;
        fs::copy(&binary, folder.join("sensor")).with_context(|| format!("cannot copy {}", binary.display()))?;
    }
    builder.pages(host, &built.join("pages"))?;
    Ok(built)
}

/// Where a run finds and leaves things.
struct Places<'a> {
    arches: &'a [Arch],
    built: &'a Path,
    work: &'a Path,
    out: &'a Path,
}

fn package(args: &DistArgs, release: &Release, tools: &Tools, rust: &Rust, places: &Places) -> Result<()> {
    let Places { arches, built, work, out } = *places;
    let kinds = if args.only.is_empty() { Kind::value_variants() } else { &args.only };
    let crates = crates::linked(rust, arches)?;
    let notices = notices::text(&crates, tools)?;
    empty(out)?;
    let mut made = Vec::new();
    let mut stages = Vec::new();
    for arch in arches {
        let stage = work.join("stage").join(arch.kernel());
        let binary = built.join(arch.kernel()).join("sensor");
        stage::lay_out(&stage, release, &binary, &built.join("pages"), &notices)?;
        for kind in kinds.iter().filter(|kind| **kind != Kind::Image) {
            made.push(packages::package(*kind, tools, release, *arch, &stage, out)?);
        }
        stages.push((*arch, stage));
    }
    if kinds.contains(&Kind::Image) {
        made.push(image::image(release, &stages, work, out)?);
    }
    let materials = out.join(format!("sensor-{}.cdx.json", release.version));
    fs::write(&materials, sbom::document(&crates, release)?)
        .with_context(|| format!("cannot write {}", materials.display()))?;
    made.push(materials);
    sign_off(&made, out, &stages)
}

/// Writes the checksums, and says what was made.
fn sign_off(made: &[PathBuf], out: &Path, stages: &[(Arch, PathBuf)]) -> Result<()> {
    let mut sums = String::new();
    println!("\n{}:", out.display());
    for file in made {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        sums.push_str(&format!("{}  {name}\n", image::sha256(file)?));
        println!("  {:>10}  {name}", megabytes(file)?);
    }
    let list = out.join(SUMS);
    fs::write(&list, sums).with_context(|| format!("cannot write {}", list.display()))?;
    println!("  {:>10}  {SUMS}", megabytes(&list)?);
    for (arch, stage) in stages {
        println!("the binary in them: {} ({})", megabytes(&stage.join("common/usr/bin/sensor"))?, arch.kernel());
    }
    Ok(())
}

fn megabytes(file: &Path) -> Result<String> {
    let bytes = fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    Ok(if bytes < 100_000 { format!("{bytes} B") } else { format!("{:.1} MB", bytes as f64 / 1e6) })
}

/// Makes `folder` an empty one.
fn empty(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}
