//! `cargo xtask ebpf`: compiles `sensor-ebpf` for the kernel and leaves the object where the agent's build finds it, and beside it that
//! of benches, which the agent's build embeds for the tests' crate only (feature `bench`).
//!
//! Invariant: an object's bytes depend on the source and the toolchain, not on the folder, the user or the host's
//! cargo settings; the file is only written when its content changed, so that the agent is not rebuilt for nothing.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::{cmd, linker, toolchain, toolchain::Toolchain};

mod budget;
mod loaded;
mod programs;
mod stack;

/// The target of all supported hosts, which are little-endian.
const TARGET: &str = "bpfel-unknown-none";
/// What the agent's build script embeds, from the workspace root, unless SENSOR_EBPF_OBJECT names another file.
const OBJECT: &str = "target/bpf/sensor-ebpf.o";
/// What it embeds for benches, beside the other: `SENSOR_EBPF_OBJECT`, too, has it beside it if the tests' crate is built.
const BENCH_OBJECT: &str = "sensor-ebpf-bench.o";
/// What makes it that.
const BENCH_FEATURE: [&str; 2] = ["--features", "bench"];
/// ELF `e_machine` of BPF.
const EM_BPF: u16 = 247;

/// Which objects a build embeds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Objects {
    /// The agent's.
    Agent,
    /// That of benches as well, as every build does that the tests' crate takes part in.
    All,
}

/// What to say of the object.
#[derive(Args)]
pub(crate) struct EbpfArgs {
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
    /// What compiled it, if that was done here.
    compiler: Option<String>,
}

/// `cargo xtask ebpf`.
///
/// # Errors
/// As [`build`]; or a program is over a limit of `budget`, or this kernel refuses it.
pub(crate) fn ebpf(args: EbpfArgs) -> Result<()> {
    let EbpfArgs { load, update_budget } = args;
    let built = build(Objects::All)?;
    let costs = costs(&built, load || update_budget)?;
    if update_budget {
        budget::update(&built, &costs)?;
    }
    budget::compare(&costs)
}

/// What the programs cost, also in this kernel, beside their budget. For a caller that has built the object.
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

/// Builds the objects, or checks the one that `SENSOR_EBPF_OBJECT` names.
///
/// # Errors
/// When no toolchain or linker is found (the message says how to get them) or the compilation fails.
pub(crate) fn build(objects: Objects) -> Result<Built> {
    if let Some(path) = env::var_os("SENSOR_EBPF_OBJECT").map(PathBuf::from) {
        let bytes = fs::read(&path).with_context(|| format!("cannot read SENSOR_EBPF_OBJECT={}", path.display()))?;
        check_is_bpf(&bytes).with_context(|| format!("SENSOR_EBPF_OBJECT={} is no eBPF object", path.display()))?;
        println!("eBPF object: {} as it is, {} bytes (SENSOR_EBPF_OBJECT)", path.display(), bytes.len());
        return Ok(Built { object: path, compiler: None });
    }
    let toolchain = toolchain::require()?;
    println!("eBPF toolchain: {} ({}, LLVM {})", toolchain.rustc.display(), toolchain.release, toolchain.llvm_major);
    let linker = linker::require(&toolchain)?;
    let object = cmd::workspace_root().join(OBJECT);
    compile(&toolchain, &linker, &[], &object)?;
    if objects == Objects::All {
        compile(&toolchain, &linker, &BENCH_FEATURE, &object.with_file_name(BENCH_OBJECT))?;
    }
    Ok(Built { object, compiler: Some(format!("rustc {}, LLVM {}", toolchain.release, toolchain.llvm_major)) })
}

/// Compiles the crate with these features, as `object`.
fn compile(toolchain: &Toolchain, linker: &Path, features: &[&str], object: &Path) -> Result<()> {
    let mut cargo = cargo_for_bpf(toolchain, "cargo", "build", features)?;
    cmd::run(cargo.env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain, linker).join("\u{1f}")))?;

    let root = cmd::workspace_root();
    let built = root.join("target/bpf").join(TARGET).join("release/sensor-ebpf");
    let bytes = stripped(&built, toolchain)?;
    check_is_bpf(&bytes).with_context(|| format!("{} is no eBPF object", built.display()))?;
    let state = if write_if_changed(object, &bytes)? { "new" } else { "unchanged" };
    let shown = object.strip_prefix(&root).unwrap_or(object);
    println!("eBPF object: {}, {} bytes, {state}", shown.display(), bytes.len());
    Ok(())
}

/// Clippy on `sensor-ebpf` for the BPF target, of both objects: the host's run sees only its empty host `main`.
///
/// # Errors
/// When the toolchain has no clippy, or clippy finds something.
pub(crate) fn clippy() -> Result<()> {
    let toolchain = toolchain::require()?;
    let flags = flags(&toolchain, &linker::require(&toolchain)?);
    for features in [&[][..], &BENCH_FEATURE] {
        let mut clippy = cargo_for_bpf(&toolchain, "cargo-clippy", "clippy", features)?;
        // cargo-clippy starts `$CARGO`; unset, it would be the first cargo in PATH, of another toolchain.
        clippy.env("CARGO", toolchain.program("cargo").context("the eBPF toolchain has no cargo")?);
        clippy.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
        // Not sensor-common, which the host's clippy sees: two versions of clippy need not agree on one `#[expect]`.
        cmd::run(clippy.args(["--no-deps", "--", "-D", "warnings"]))?;
    }
    Ok(())
}

fn cargo_for_bpf(toolchain: &Toolchain, program: &str, subcommand: &str, features: &[&str]) -> Result<Command> {
    let root = cmd::workspace_root();
    let mut cargo = toolchain.command(program)?;
    cargo.current_dir(&root).arg(subcommand);
    cargo.args(["--release", "--target", TARGET, "-Z", "build-std=core", "-p", "sensor-ebpf", "--target-dir"]);
    cargo.arg(root.join("target/bpf")).args(features);
    Ok(cargo)
}

fn flags(toolchain: &Toolchain, linker: &Path) -> Vec<String> {
    let mut flags = vec![
        // v3 has the atomic operations whose result is used (kernel 5.12 and newer).
        "-Ctarget-cpu=v3".to_owned(),
        // BTF is made from debug information.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // Else LLVM turns every zeroing of a few fields into a call of a byte loop, which the verifier has to walk
        // (docs/decisions/0004).
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        format!("-Clinker={}", linker.display()),
    ];
    // BTF holds file names: without these the object would differ from folder to folder.
    let source = toolchain.sysroot.join("lib/rustlib/src/rust");
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

/// The object without `.debug*` sections, which nothing reads after BTF was made; with them where no tool is found.
fn stripped(built: &Path, toolchain: &Toolchain) -> Result<Vec<u8>> {
    let Some(objcopy) = find_objcopy(toolchain) else {
        println!("note: no llvm-objcopy found; the object keeps its debug sections, which only makes it larger");
        return fs::read(built).with_context(|| format!("cannot read {}", built.display()));
    };
    let stripped = built.with_extension("stripped");
    cmd::run(Command::new(objcopy).arg("--strip-debug").arg(built).arg(&stripped))?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// The objcopy of the toolchain's own LLVM (GNU's does not know BPF).
fn find_objcopy(toolchain: &Toolchain) -> Option<PathBuf> {
    let rustlib = fs::read_dir(toolchain.sysroot.join("lib/rustlib")).into_iter().flatten().flatten();
    let shipped = rustlib.map(|entry| entry.path().join("bin/rust-objcopy")).find(|file| cmd::is_executable(file));
    let packaged = || {
        let file = linker::llvm_prefix(toolchain.llvm_major).join("bin/llvm-objcopy");
        cmd::is_executable(&file).then_some(file)
    };
    shipped.or_else(packaged).or_else(|| cmd::find_in_path("llvm-objcopy"))
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
    let next = path.with_extension("o.new");
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
