//! Makes of what the linker wrote the object that is embedded: without debug information, and with the same bytes from
//! every build of one compiler version.
//!
//! The `object` crate does it, not a tool of LLVM: which of those a machine has, and of which version, would show in
//! the bytes, and rustup's own does not start without its library path.

use anyhow::{Context, Result};
use object::{
    build::{
        ByteString,
        elf::{Builder, SectionData},
    },
    elf::{SHT_STRTAB, STB_LOCAL},
};

/// Sections that nobody reads once BTF is made: debug information, and relocations of BTF, which loaders apply by
/// instruction offset (`aya-obj` and libbpf both pass them by). They are more than half of the linker's output.
const UNREAD: [&str; 4] = [".debug", ".rel.debug", ".rel.BTF", ".comment"];

/// The object as it is embedded.
///
/// # Errors
/// If it is not a well-formed ELF file.
pub(super) fn stripped(linked: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("the linker's output cannot be read")?;
    for section in &mut builder.sections {
        let name = String::from_utf8_lossy(&section.name).into_owned();
        section.delete = UNREAD.iter().any(|unread| name.starts_with(unread));
    }
    for symbol in &mut builder.symbols {
        let in_deleted = symbol.section.is_some_and(|section| builder.sections.get(section).delete);
        symbol.delete = in_deleted;
        if symbol.st_bind() == STB_LOCAL
            && let Ok(name) = std::str::from_utf8(&symbol.name)
            && let Some(plain) = without_hashes(name)
        {
            symbol.name = ByteString::from(plain.into_bytes());
        }
    }
    // LLVM keeps the names of sections among those of symbols; the builder wants them apart.
    let names = builder.sections.add();
    names.name = ByteString::from(".shstrtab");
    (names.sh_type, names.data) = (SHT_STRTAB, SectionData::SectionString);
    let mut bytes = Vec::new();
    builder.write(&mut bytes).context("the stripped object cannot be written")?;
    Ok(bytes)
}

/// The name of a local symbol without what depends on how the compiler itself was built: a crate's disambiguator in a
/// mangled name (`Cs…_`, optional in the grammar of Rust RFC 2603), and the module's hash of a constant without a name.
/// `None`: it has neither.
fn without_hashes(name: &str) -> Option<String> {
    if let Some(rest) = name.strip_prefix("anon.") {
        let (hash, number) = rest.split_once('.')?;
        return hash.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| format!("anon.{number}"));
    }
    if !name.starts_with("_R") {
        return None;
    }
    let (mut plain, mut rest) = (String::new(), name);
    while let Some(start) = rest.find("Cs") {
        let (before, after) = rest.split_at(start);
        let digits = after[2..].bytes().take_while(u8::is_ascii_alphanumeric).count();
        let is_crate = digits > 0 && after[2 + digits..].starts_with('_');
        plain.push_str(before);
        plain.push('C');
        rest = if is_crate { &after[2 + digits + 1..] } else { &after[1..] };
    }
    plain.push_str(rest);
    (plain != name).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_tell_who_built_the_compiler() {
        let closure = "_RNCNvNtCscHKYAtHzlBx_11sensor_ebpf8programs7ingress0B5_";
        let other = "_RNCNvNtCsaxoYImHV4Oq_11sensor_ebpf8programs7ingress0B5_";
        assert_eq!(without_hashes(closure), without_hashes(other));
        assert_eq!(without_hashes(closure).unwrap(), "_RNCNvNtC11sensor_ebpf8programs7ingress0B5_");
        assert_eq!(without_hashes("anon.12f28d7f3460ddcd0a2f064116c9c9bc.3").unwrap(), "anon.3");
        for name in ["sensor_account", "anon.zz.1", "_RNvC3foo3bar", "Cs"] {
            assert_eq!(without_hashes(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_no_elf_file_is_refused() {
        assert!(stripped(b"#!/bin/sh\n").is_err());
        assert!(stripped(b"\x7fELF\x02\x01\x01").is_err());
    }
}
