//! The static binary of one architecture, and the pages that are written from its command line.
//!
//! Invariant: its bytes depend on the source, the pinned toolchain and the pinned linker, not on the folder, the user
//! or the caller's settings.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{rust::Rust, target::Arch, tools::Tools};
use crate::cmd;

/// The profile of what is shipped (Cargo.toml).
const PROFILE: &str = "dist";
/// What writes man pages and completions.
const PAGES: [&str; 2] = ["--example", "pages"];
/// Largest stripped binary that is shipped, bytes: a limit of the project, so that growth is noticed.
const MAX_BYTES: u64 = 26_000_000;

/// What builds binaries.
pub(super) struct Builder<'a> {
    /// The Rust toolchain.
    pub(super) rust: &'a Rust,
    /// The C compiler and linker.
    pub(super) tools: &'a Tools,
    /// The folder of what is compiled.
    pub(super) folder: &'a Path,
}

impl Builder<'_> {
    /// Builds `sensor` for `arch`; returns where it is.
    ///
    /// # Errors
    /// When the build fails, or the binary is not static or too large.
    pub(super) fn sensor(&self, arch: Arch) -> Result<PathBuf> {
        let mut build = self.cargo(arch)?;
        build.args(["--bin", "sensor"]);
        if Some(arch) == Arch::host() {
            // In one go with what `pages` needs, so that the two share all they can.
            build.args(PAGES);
        }
        cmd::run(&mut build)?;
        let binary = self.made(arch, "sensor");
        let bytes = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
        check(&bytes, arch).with_context(|| format!("{} cannot be shipped", binary.display()))?;
        Ok(binary)
    }

    /// Writes man pages and completions into `folder`, with a program for `host`, this machine's architecture.
    ///
    /// # Errors
    /// When the program cannot be built or run.
    pub(super) fn pages(&self, host: Arch, folder: &Path) -> Result<()> {
        cmd::run(self.cargo(host)?.args(PAGES))?;
        cmd::run(Command::new(self.made(host, "examples/pages")).arg(folder))
    }

    fn made(&self, arch: Arch, name: &str) -> PathBuf {
        self.folder.join(arch.triple()).join(PROFILE).join(name)
    }

    /// `cargo build` of the agent's package for `arch`, up to what of it.
    fn cargo(&self, arch: Arch) -> Result<Command> {
        let mut build = self.tools.command("cargo-zigbuild");
        build.current_dir(cmd::workspace_root());
        build.args(["zigbuild", "--locked", "-p", "sensor", "--profile", PROFILE, "--target", arch.triple()]);
        build.arg("--target-dir").arg(self.folder);
        build.env("CARGO", self.rust.program("cargo")).env("RUSTC", self.rust.program("rustc"));
        build.env("RUSTC_WRAPPER", "").env("CARGO_INCREMENTAL", "0");
        build.env("CARGO_ZIGBUILD_ZIG_PATH", self.tools.zig()?);
        build.env("CARGO_ZIGBUILD_CACHE_DIR", self.tools.cache());
        build.env("ZIG_GLOBAL_CACHE_DIR", self.tools.cache());
        // Where this was built must not be in what is shipped: panics name files.
        let mut places = vec![(cmd::workspace_root(), "/sensor")];
        places.extend(cmd::cargo_home().map(|home| (home, "/cargo")));
        places.push((self.rust.source(), "/rust"));
        let mut rust: Vec<_> =
            places.iter().map(|(at, name)| format!("--remap-path-prefix={}={name}", at.display())).collect();
        let c: Vec<_> = places.iter().map(|(at, name)| format!("-ffile-prefix-map={}={name}", at.display())).collect();
        if self.rust.builds_std {
            // Such a toolchain has no start files of musl beside its std: the linker's own are used.
            rust.push("-Clink-self-contained=no".to_owned());
        }
        build.env("CARGO_ENCODED_RUSTFLAGS", rust.join("\u{1f}")).env("CFLAGS", c.join(" "));
        if self.rust.builds_std {
            build.args(["-Z", "build-std=std,panic_unwind"]).env("RUSTC_BOOTSTRAP", "1");
        }
        Ok(build)
    }
}

/// Whether these bytes are a static ELF program of `arch` of a size that may be shipped.
fn check(bytes: &[u8], arch: Arch) -> Result<()> {
    use object::{
        Endianness,
        elf::{EM_AARCH64, EM_X86_64, FileHeader64, PT_INTERP},
        read::elf::{FileHeader, ProgramHeader},
    };
    let header = FileHeader64::<Endianness>::parse(bytes).context("it is no 64-bit ELF file")?;
    let endian = header.endian().context("its byte order is unknown")?;
    let machine = match arch {
        Arch::X86_64 => EM_X86_64,
        Arch::Aarch64 => EM_AARCH64,
    };
    if header.e_machine(endian) != machine {
        bail!("it is of ELF machine {}, not {machine}", header.e_machine(endian));
    }
    let segments = header.program_headers(endian, bytes).context("its program headers cannot be read")?;
    if segments.iter().any(|segment| segment.p_type(endian) == PT_INTERP) {
        bail!("it is not static: it names a dynamic loader");
    }
    if bytes.len() as u64 > MAX_BYTES {
        bail!("it has {} bytes, more than the {MAX_BYTES} that may be shipped", bytes.len());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF header with one program header of this type.
    fn elf(machine: u16, segment: u32) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[54..56].copy_from_slice(&56_u16.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&segment.to_le_bytes());
        bytes
    }

    #[test]
    fn only_static_programs_of_the_architecture_are_shipped() {
        let (x86_64, load, interpreter) = (62, 1, 3);
        check(&elf(x86_64, load), Arch::X86_64).unwrap();
        let error = check(&elf(x86_64, load), Arch::Aarch64).unwrap_err();
        assert!(error.to_string().contains("machine 62"), "{error}");
        let error = check(&elf(x86_64, interpreter), Arch::X86_64).unwrap_err();
        assert!(error.to_string().contains("not static"), "{error}");
        let mut large = elf(x86_64, load);
        large.resize(MAX_BYTES as usize + 1, 0);
        assert!(check(&large, Arch::X86_64).unwrap_err().to_string().contains("bytes"));
    }
}
