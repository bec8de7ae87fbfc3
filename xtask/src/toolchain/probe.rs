//! Whether a compiler and a linker work together: found by linking a program, since no version number tells.
//!
//! The program has what the real ones have and what linkers of another LLVM have stumbled over: functions, debug
//! information of which BTF is made, atomic operations, and `core`. (An empty crate is not enough: a linker of LLVM 22
//! takes the bitcode that LLVM 23 makes of that, and fails with "Invalid record" later.)

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash, Hasher},
    path::Path,
};

use anyhow::{Context, Result};

use super::{Compiler, Linker};
use crate::{cmd, ebpf};

const MANIFEST: &str = "\
[package]\nname = \"probe\"\nedition = \"2024\"\n\n[profile.release]\ndebug = 2\n\n[workspace]\n";

const SOURCE: &str = r#"#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
use core::arch::asm;

#[unsafe(link_section = ".data")]
#[unsafe(no_mangle)]
static mut WORD: u64 = 1;

#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn add(value: u64) -> u64 {
    let word = &raw mut WORD;
    unsafe { asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value) }
    unsafe { word.read_volatile() }.checked_div(value).unwrap_or(7)
}

#[unsafe(link_section = "xdp")]
#[unsafe(no_mangle)]
extern "C" fn probe(context: *mut core::ffi::c_void) -> u32 {
    (add(context as u64) & 2) as u32
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
"#;

/// Whether the two link it; says why not.
pub(super) fn links(compiler: &Compiler, linker: &Linker) -> bool {
    match link(compiler, linker) {
        Ok(()) => true,
        Err(error) => {
            let (compiler, linker) = (compiler.rustc.display(), linker.path.display());
            println!("{compiler} and {linker} do not work together: {}", errors(&format!("{error:#}")));
            false
        }
    }
}

fn link(compiler: &Compiler, linker: &Linker) -> Result<()> {
    // A folder for each pair: `core` is compiled for the first probe of a pair only.
    let mut pair = DefaultHasher::new();
    (&compiler.rustc, compiler.name(), &linker.path, linker.name()).hash(&mut pair);
    let folder = cmd::workspace_root().join("target/probe").join(format!("{:016x}", pair.finish()));
    write(&folder.join("Cargo.toml"), MANIFEST)?;
    write(&folder.join("src/main.rs"), SOURCE)?;
    let mut cargo = compiler.command("cargo")?;
    cargo.current_dir(&folder).args(["build", "--quiet", "--release", "--target", ebpf::TARGET]);
    cargo.args(["-Z", "build-std=core", "--target-dir"]).arg(folder.join("target"));
    cargo.env("CARGO_ENCODED_RUSTFLAGS", ebpf::flags(compiler, linker).join("\u{1f}"));
    cmd::output(&mut cargo).map(drop)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    let folder = path.parent().context("a path without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The lines of a compiler's long message that say what went wrong.
fn errors(text: &str) -> String {
    let says_so = |line: &&str| line.contains("rror") || line.contains("ERROR");
    let repeats = |line: &&str| line.contains("could not compile") || line.contains("For more information");
    let lines = text.lines().map(str::trim).filter(says_so).filter(|line| !repeats(line));
    lines.take(3).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_is_found_in_a_long_message() {
        let text =
            "  Compiling\nerror: linking failed\n  = note: x\n    LLVM ERROR: Invalid record\nerror: could not compile";
        assert_eq!(errors(text), "error: linking failed; LLVM ERROR: Invalid record");
    }
}
