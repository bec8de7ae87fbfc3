//! The files that the web server serves: their bytes follow from their name, so that a client can check each byte it
//! received without having the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, Result};

use crate::rng::Rng;

/// Sizes in bytes of the served files, small first: icons and API answers, pages, pictures, downloads.
pub const SIZES: [u64; 10] = [0, 137, 1_460, 9_000, 48_000, 130_000, 700_000, 2_000_000, 8_000_000, 24_000_000];

/// The name of the file of `size` bytes, without a slash.
#[must_use]
pub fn name(size: u64) -> String {
    format!("file-{size}.bin")
}

/// The bytes of the file of `size` bytes. They do not compress, and no two sizes begin alike.
#[must_use]
pub fn bytes(size: u64) -> Vec<u8> {
    let mut rng = Rng::new(size);
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&rng.next_u64().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The bytes of a served file, made once for the whole process.
///
/// # Errors
/// If `size` is none of [`SIZES`].
pub fn served(size: u64) -> Result<&'static [u8]> {
    static FILES: LazyLock<BTreeMap<u64, Vec<u8>>> =
        LazyLock::new(|| SIZES.into_iter().map(|size| (size, bytes(size))).collect());
    FILES.get(&size).map(Vec::as_slice).with_context(|| format!("no file of {size} bytes is served"))
}

/// Writes every file of [`SIZES`] into `directory`.
///
/// # Errors
/// If a file cannot be written.
pub fn write_all(directory: &Path) -> Result<()> {
    for size in SIZES {
        let path = directory.join(name(size));
        std::fs::write(&path, served(size)?).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
