//! The notices of third parties: each crate that is linked with its licence, and each licence text once.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use anyhow::{Context, Result};

use super::{crates::Crates, stage, tools::Tools};

/// How files with licences begin.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];
/// How deep they are looked for: C sources in a crate have theirs beside them.
const DEPTH: u32 = 3;
/// The licence of the C library that is linked, in Zig's package.
const MUSL: &str = "lib/libc/musl/COPYRIGHT";

/// The text.
///
/// # Errors
/// When a licence cannot be read.
pub(super) fn text(crates: &Crates, tools: &Tools) -> Result<String> {
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::new();
    for ((name, version), linked) in crates {
        if linked.checksum.is_none() {
            // Of this project.
            continue;
        }
        let from = linked.repository.as_deref().unwrap_or("crates.io");
        writeln!(list, "{name} {version}: {} ({from})", linked.license)?;
        collect(&linked.folder, DEPTH, &mut |text| texts.entry(text).or_default().push(format!("{name} {version}")))?;
    }
    let zig = tools.zig()?;
    let musl = zig.parent().unwrap_or(Path::new("/")).join(MUSL);
    texts.entry(read(&musl)?).or_default().push("musl, the C library".to_owned());
    list.push_str("musl, the C library: MIT (https://musl.libc.org)\n");
    list.push_str("Rust's standard library: MIT OR Apache-2.0 (https://github.com/rust-lang/rust)\n");

    let mut out = format!("The binary `sensor` has in it code of others:\n\n{list}\n");
    let mut texts: Vec<_> = texts.into_iter().collect();
    texts.sort_by(|a, b| a.1.cmp(&b.1));
    for (text, owners) in texts {
        writeln!(out, "{}\n{}\n\n{}\n", "-".repeat(78), owners.join(", "), text.trim_end())?;
    }
    Ok(out)
}

/// Gives each licence at or below `folder` to `found`, in the order of names.
fn collect(folder: &Path, depth: u32, found: &mut impl FnMut(String)) -> Result<()> {
    for path in stage::sorted(folder)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_uppercase();
        if path.is_dir() {
            if depth > 1 {
                collect(&path, depth - 1, found)?;
            }
        } else if NAMES.iter().any(|prefix| name.starts_with(prefix)) && !name.ends_with(".RS") {
            found(read(&path)?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).replace('\r', ""))
}
