//! `cargo xtask ebpf`: compiles `sensor-ebpf` for the kernel into sensor-ebpf/object, where it is committed with a manifest
//! of what it was made of, and from where the agent's build takes it. The object of benches goes to target/bpf.
//!
//! Invariants: an object's bytes depend on the sources and the version of the compiler, not on the folder, the user, the
//! host's cargo settings or who built the compiler; the committed object is used only while its sources match, and then
//! no toolchain is needed (docs/decisions/0021-committed-object.md).

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;

use crate::{
    cmd, setup,
    toolchain::{self, Compiler, Here, Linker, Toolchain},
};

mod budget;
mod loaded;
#[path = "../../sensor-ebpf/object/manifest.rs"]
mod manifest;
mod programs;
mod stack;
mod strip;
mod write;

use manifest::{FOLDER, MANIFEST, Manifest, OBJECT};

/// The target of all supported hosts, which are little-endian.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// The object of benches, from the workspace root.
const BENCH_OBJECT: &str = "target/bpf/sensor-ebpf-bench.o";
/// What makes it that.
const BENCH_FEATURE: [&str; 2] = ["--features", "bench"];
/// ELF `e_machine` of BPF.
const EM_BPF: u16 = 247;

/// What to do with the object.
#[derive(Args)]
pub(crate) struct EbpfArgs {
    /// Change nothing: fail if the committed object's sources, compiler or flags are not those of its manifest; compile
    /// it again, and compare byte for byte, if the pinned toolchain is here
    #[arg(long)]
    check: bool,
    /// Have this kernel load the programs, too: what its verifier walks, and bytes of machine code (builds the agent; root)
    #[arg(long)]
    load: bool,
    /// Make what is found the budget that it is compared with, sensor-ebpf/budget.toml (as --load)
    #[arg(long)]
    update_budget: bool,
}

/// The agent's object, which is there.
pub(crate) struct Built {
    object: PathBuf,
    /// What compiled it, if its manifest says so.
    compiler: Option<String>,
}

/// `cargo xtask ebpf`.
///
/// # Errors
/// As [`build`] or [`check`]; or a program is over a limit of `budget`, or this kernel refuses it.
pub(crate) fn ebpf(args: EbpfArgs) -> Result<()> {
    let EbpfArgs { check: only_check, load, update_budget } = args;
    if only_check {
        let found = toolchain::find(&Here)?;
        return check(found.as_ref());
    }
    let built = match named()? {
        Some(built) => built,
        None => build(&setup::toolchain(setup::Options::BUILD)?)?,
    };
    let costs = costs(&built, load || update_budget)?;
    if update_budget {
        budget::update(&built, &costs)?;
    }
    budget::compare(&costs)
}

/// What the programs cost, also in this kernel, beside their budget. For a caller that has the object.
///
/// # Errors
/// As [`ebpf`].
pub(crate) fn check_budget(built: &Built) -> Result<()> {
    budget::compare(&costs(built, true)?)
}

fn costs(built: &Built, load: bool) -> Result<budget::Costs> {
    let bytes = fs::read(&built.object).with_context(|| format!("cannot read {}", built.object.display()))?;
    let programs = programs::programs(&bytes).with_context(|| format!("looking into {}", built.object.display()))?;
    let loaded = if load { loaded::loaded()? } else { None };
    let costs = budget::Costs::new(&programs, loaded)?;
    print!("{costs}");
    Ok(costs)
}

/// The object that the agent's build is to embed: the one that `SENSOR_EBPF_OBJECT` names, the committed one if its
/// sources match, else one that is compiled now.
///
/// # Errors
/// As [`build`], when it has to be compiled and there is no toolchain, and none can be had.
pub(crate) fn ready() -> Result<Built> {
    if let Some(built) = named()? {
        return Ok(built);
    }
    let root = cmd::workspace_root();
    let changes = match Manifest::read(&root) {
        Ok(manifest) => {
            let changes = manifest.changes(&root);
            if changes.is_empty() {
                let Manifest { compiler, linker, sources, .. } = manifest;
                let count = sources.len();
                println!(
                    "eBPF object: {FOLDER}/{OBJECT} as committed: its {count} sources match ({compiler}, {linker})"
                );
                return Ok(Built { object: root.join(FOLDER).join(OBJECT), compiler: Some(compiler) });
            }
            changes
        }
        Err(error) => vec![error],
    };
    println!("eBPF object: {FOLDER}/{OBJECT} has to be compiled anew; changed: {}", changes.join(", "));
    build(&setup::toolchain(setup::Options::BUILD)?)
}

/// The object that `SENSOR_EBPF_OBJECT` names, if it does.
fn named() -> Result<Option<Built>> {
    let Some(path) = env::var_os("SENSOR_EBPF_OBJECT").map(PathBuf::from) else { return Ok(None) };
    let bytes = fs::read(&path).with_context(|| format!("cannot read SENSOR_EBPF_OBJECT={}", path.display()))?;
    check_is_bpf(&bytes).with_context(|| format!("SENSOR_EBPF_OBJECT={} is no eBPF object", path.display()))?;
    println!("eBPF object: {} as it is, {} bytes (SENSOR_EBPF_OBJECT)", path.display(), bytes.len());
    Ok(Some(Built { object: path, compiler: None }))
}

/// Compiles the object and writes it, with its manifest, to where it is committed.
///
/// # Errors
/// When the compilation fails, or a file cannot be written.
pub(crate) fn build(toolchain: &Toolchain) -> Result<Built> {
    let Toolchain { compiler, linker } = toolchain;
    println!("eBPF toolchain: {}, {}", compiler.rustc.display(), linker.path.display());
    let bytes = compile(toolchain, &[])?;
    let root = cmd::workspace_root();
    let manifest = describe(toolchain, &bytes)?;
    let object = root.join(FOLDER).join(OBJECT);
    let state = if write_if_changed(&object, &bytes)? { "new" } else { "unchanged" };
    write_if_changed(&root.join(FOLDER).join(MANIFEST), manifest.text().as_bytes())?;
    println!("eBPF object: {FOLDER}/{OBJECT}, {} bytes, {state}", bytes.len());
    if !toolchain.is_pinned() {
        println!(
            "note: {} and {} are not the pinned toolchain: this object serves you, but is not to be committed",
            compiler.name(),
            linker.name()
        );
    }
    Ok(Built { object, compiler: Some(compiler.name()) })
}

/// Fails if what is committed does not fit together; compiles the object again if the pinned toolchain is here.
///
/// # Errors
/// Names what differs, and what to do.
pub(crate) fn check(found: Option<&Toolchain>) -> Result<()> {
    const REMEDY: &str = "run `cargo xtask ebpf` and commit sensor-ebpf/object";
    let root = cmd::workspace_root();
    let manifest = Manifest::read(&root).map_err(|error| anyhow!("{error}: {REMEDY}"))?;
    let changes = manifest.changes(&root);
    ensure!(changes.is_empty(), "the committed object is older than its sources ({}): {REMEDY}", changes.join(", "));
    ensure!(manifest.flags == plain_flags(), "the committed object was compiled with other flags: {REMEDY}");
    ensure!(
        toolchain::is_pinned(&manifest.compiler, &manifest.linker),
        "the committed object was compiled by {} and {}, which are not the pinned toolchain: {REMEDY}",
        manifest.compiler,
        manifest.linker
    );
    println!("{FOLDER}/{OBJECT}: its sources, compiler and flags are those of its manifest");
    let Some(toolchain) = found.filter(|found| found.is_pinned()) else {
        println!("it was not compiled again: the pinned toolchain is not here (`cargo xtask setup --ebpf` gets it)");
        return Ok(());
    };
    let bytes = compile(toolchain, &[])?;
    let again = describe(toolchain, &bytes)?;
    ensure!(
        again.object == manifest.object,
        "compiled again by {} and {}, the object has other bytes than the committed one ({} and {} of SHA-256): {REMEDY}",
        toolchain.compiler.name(),
        toolchain.linker.name(),
        &again.object[..12],
        &manifest.object[..12]
    );
    ensure!(again == manifest, "{FOLDER}/{MANIFEST} is not what a compilation writes now: {REMEDY}");
    println!("{FOLDER}/{OBJECT}: compiled again, byte for byte the same");
    Ok(())
}

/// Compiles the object of benches, which the build of the tests' crate embeds with its feature `bench`.
///
/// # Errors
/// As [`build`], and when there is no toolchain and none can be had.
pub(crate) fn build_bench() -> Result<()> {
    if env::var_os("SENSOR_EBPF_OBJECT").is_some() {
        // Its folder has it, or the build says that it has not.
        return Ok(());
    }
    let toolchain = setup::toolchain(setup::Options::BUILD)?;
    let bytes = compile(&toolchain, &BENCH_FEATURE)?;
    write_if_changed(&cmd::workspace_root().join(BENCH_OBJECT), &bytes)?;
    println!("eBPF object of benches: {BENCH_OBJECT}, {} bytes", bytes.len());
    Ok(())
}

/// Compiles the crate with these features: the bytes of the object.
fn compile(toolchain: &Toolchain, features: &[&str]) -> Result<Vec<u8>> {
    let mut cargo = cargo_for_bpf(&toolchain.compiler, "cargo", "build", features)?;
    let flags = flags(&toolchain.compiler, &toolchain.linker);
    cmd::run(cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}")))?;
    let linked = linked();
    let bytes = fs::read(&linked).with_context(|| format!("cannot read {}", linked.display()))?;
    let bytes = strip::stripped(&bytes).with_context(|| format!("stripping {}", linked.display()))?;
    check_is_bpf(&bytes).with_context(|| format!("{} is no eBPF object", linked.display()))?;
    Ok(bytes)
}

/// What the linker writes.
fn linked() -> PathBuf {
    cmd::workspace_root().join("target/bpf").join(TARGET).join("release/sensor-ebpf")
}

/// The manifest of the object that was compiled last.
fn describe(toolchain: &Toolchain, object: &[u8]) -> Result<Manifest> {
    let root = cmd::workspace_root();
    let mut manifest = Manifest::of(&root, object, sources(&root)?, &packages(toolchain)?)
        .context("what the object was made of cannot be read")?;
    manifest.compiler = toolchain.compiler.name();
    manifest.linker = toolchain.linker.name();
    manifest.flags = plain_flags();
    Ok(manifest)
}

/// The files of the workspace that the compiler read, as it says itself, and the manifests of their crates.
fn sources(root: &Path) -> Result<BTreeSet<String>> {
    let list = linked().with_extension("d");
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let (_, files) = text.split_once(": ").with_context(|| format!("{} is no list of files", list.display()))?;
    // Spaces in names are escaped by a backslash.
    let files = files.replace("\\ ", "\0");
    let mut sources: BTreeSet<String> =
        ["sensor-ebpf/Cargo.toml", "sensor-common/Cargo.toml"].map(str::to_owned).into();
    for file in files.split_whitespace() {
        let file = file.replace('\0', " ");
        let within = Path::new(&file).strip_prefix(root);
        let within = within.with_context(|| format!("the kernel programs include {file}, outside of the workspace"))?;
        sources.insert(within.to_string_lossy().into_owned());
    }
    ensure!(sources.len() > 2, "{} names no files", list.display());
    Ok(sources)
}

/// Names and versions of the crates from elsewhere that the object is compiled with.
fn packages(toolchain: &Toolchain) -> Result<BTreeSet<(String, String)>> {
    let mut tree = toolchain.compiler.command("cargo")?;
    tree.current_dir(cmd::workspace_root()).args(["tree", "--locked", "-p", "sensor-ebpf", "--target", TARGET]);
    let text = cmd::output(tree.args(["-e", "normal", "--prefix", "none", "--format", "{p}"]))?;
    let package = |line: &str| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        (!name.starts_with("sensor-")).then(|| (name.to_owned(), version.to_owned()))
    };
    Ok(text.lines().filter_map(package).collect())
}

/// Clippy on `sensor-ebpf` for the BPF target, of both objects: the host's run sees only its empty host `main`.
///
/// # Errors
/// When the toolchain has no clippy, or clippy finds something.
pub(crate) fn clippy(toolchain: &Toolchain) -> Result<()> {
    let Toolchain { compiler, linker } = toolchain;
    for features in [&[][..], &BENCH_FEATURE] {
        let mut clippy = cargo_for_bpf(compiler, "cargo-clippy", "clippy", features)?;
        // cargo-clippy starts `$CARGO`; unset, it would be the first cargo in PATH, of another toolchain.
        clippy.env("CARGO", compiler.program("cargo").context("the eBPF toolchain has no cargo")?);
        clippy.env("CARGO_ENCODED_RUSTFLAGS", flags(compiler, linker).join("\u{1f}"));
        // Not sensor-common, which the host's clippy sees: two versions of clippy need not agree on one `#[expect]`.
        cmd::run(clippy.args(["--no-deps", "--", "-D", "warnings"]))?;
    }
    Ok(())
}

fn cargo_for_bpf(compiler: &Compiler, program: &str, subcommand: &str, features: &[&str]) -> Result<Command> {
    let root = cmd::workspace_root();
    let mut cargo = compiler.command(program)?;
    cargo.current_dir(&root).arg(subcommand);
    cargo.args(["--release", "--locked", "--target", TARGET, "-Z", "build-std=core", "-p", "sensor-ebpf"]);
    cargo.arg("--target-dir").arg(root.join("target/bpf")).args(features);
    Ok(cargo)
}

/// What makes the code what it is.
const FLAGS: [&str; 4] = [
    // v3 has the atomic operations whose result is used (kernel 5.12 and newer).
    "-Ctarget-cpu=v3",
    // BTF is made from debug information.
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // Else LLVM turns every zeroing of a few fields into a call of a byte loop, which the verifier has to walk
    // (docs/decisions/0004).
    "-Clink-arg=--disable-expand-memcpy-in-order",
];

/// The flags that a manifest names.
fn plain_flags() -> String {
    FLAGS.join(" ")
}

/// [`FLAGS`], and those that name folders of this machine.
pub(crate) fn flags(compiler: &Compiler, linker: &Linker) -> Vec<String> {
    let mut flags: Vec<String> = FLAGS.map(str::to_owned).into();
    flags.push(format!("-Clinker={}", linker.path.display()));
    // BTF holds file names: without these the object would differ from folder to folder.
    let source = compiler.sysroot.join("lib/rustlib/src/rust");
    let places = [(Some(cmd::workspace_root()), "/sensor"), (cmd::cargo_home(), "/cargo"), (Some(source), "/rust")];
    for (place, name) in places {
        let Some(place) = place else { continue };
        flags.push(format!("--remap-path-prefix={}={name}", place.display()));
        if let Ok(resolved) = place.canonicalize()
            && resolved != place
        {
            flags.push(format!("--remap-path-prefix={}={name}", resolved.display()));
        }
    }
    flags
}

fn check_is_bpf(bytes: &[u8]) -> Result<()> {
    if bytes.get(..4) != Some(b"\x7fELF") {
        bail!("it is no ELF file");
    }
    let machine = bytes.get(18..20).map_or(0, |field| u16::from_le_bytes([field[0], field[1]]));
    if machine != EM_BPF {
        bail!("its ELF machine is {machine}, not {EM_BPF} (little-endian BPF)");
    }
    Ok(())
}

/// Replaces `path` in one step when its content differs; returns whether it did.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let next = path.with_extension("new");
    fs::write(&next, bytes).with_context(|| format!("cannot write {}", next.display()))?;
    fs::rename(&next, path).with_context(|| format!("cannot move {} to {}", next.display(), path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process;

    #[test]
    fn only_little_endian_bpf_objects_are_accepted() {
        let mut elf = *b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\xf7\0";
        check_is_bpf(&elf).unwrap();
        elf[18] = 62;
        assert!(check_is_bpf(&elf).unwrap_err().to_string().contains("machine is 62"));
        assert!(check_is_bpf(b"#!/bin/sh\n").is_err());
        assert!(check_is_bpf(b"\x7fELF").is_err());
    }

    #[test]
    fn an_unchanged_object_is_not_written_again() {
        let dir = env::temp_dir().join(format!("sensor-xtask-test-{}", process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("object.o");
        assert!(write_if_changed(&path, b"one").unwrap());
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        assert!(!write_if_changed(&path, b"one").unwrap());
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
        assert!(write_if_changed(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::remove_dir_all(&dir).unwrap();
    }
}
