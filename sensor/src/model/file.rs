//! A model as it lies on disk: the ONNX file and, where that carries no contract, the side-car TOML beside it.
//!
//! Invariant: what was checked is what is loaded. A [`File`] is read once; the isolated check and the load get the same
//! bytes, so a file that is replaced in between changes nothing. Called by [`super::load`] and by the agent's loader.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;
use sha2::{Digest, Sha256};

use super::document;

/// Largest model file that is read unless the configuration says otherwise, in bytes.
pub const MAX_FILE: u64 = 64 << 20;

/// The bytes of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File {
    /// Name for messages, and of the model if its contract gives none.
    pub stem: String,
    /// The ONNX file.
    pub onnx: Vec<u8>,
    /// The side-car, if there is one.
    pub side_car: Option<String>,
}

impl File {
    /// Reads `path` and its side-car.
    ///
    /// # Errors
    /// If a file cannot be read, is no regular file, or is larger than `max_bytes`.
    pub fn read(path: &Path, max_bytes: u64) -> Result<File> {
        let onnx = read(path, max_bytes, "model.max_file_mib")
            .with_context(|| format!("read the model {}", path.display()))?;
        let beside = side_car_of(path);
        let side_car = match beside.try_exists() {
            Ok(true) => {
                let what = || format!("read the side-car {}", beside.display());
                let bytes = read(&beside, document::MAX_TEXT as u64, "no contract is larger").with_context(what)?;
                Some(String::from_utf8(bytes).context("it is not UTF-8").with_context(what)?)
            }
            _ => None,
        };
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(File { stem, onnx, side_car })
    }

    /// A model without a side-car.
    pub fn from_bytes(onnx: Vec<u8>, stem: String) -> File {
        File { stem, onnx, side_car: None }
    }

    /// SHA-256 of the ONNX file, and of the side-car behind it if the contract is from there; hexadecimal.
    pub fn hash(&self, with_side_car: bool) -> String {
        let mut hash = Sha256::new_with_prefix(&self.onnx);
        if let Some(text) = self.side_car.as_ref().filter(|_| with_side_car) {
            hash.update(text);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Writes the file for [`File::decode`]: how it is handed to another process, without another copy of it.
    ///
    /// # Errors
    /// If `output` takes no more.
    pub fn encode(&self, mut output: impl Write) -> std::io::Result<()> {
        let File { stem, onnx, side_car } = self;
        for part in [Some(stem.as_bytes()), Some(onnx), side_car.as_ref().map(String::as_bytes)].into_iter().flatten() {
            output.write_all(&(part.len() as u64).to_le_bytes())?;
            output.write_all(part)?;
        }
        output.flush()
    }

    /// The file that [`File::encode`] wrote.
    ///
    /// # Errors
    /// If it is cut short, goes on behind its end, or its texts are not UTF-8.
    pub fn decode(mut input: impl Read) -> Result<File> {
        let mut part = || part(&mut input);
        let stem = String::from_utf8(part()?.context("cut short")?)?;
        let onnx = part()?.context("cut short")?;
        let side_car = part()?.map(String::from_utf8).transpose()?;
        ensure!(part()?.is_none(), "there is more behind the side-car");
        Ok(File { stem, onnx, side_car })
    }
}

/// The side-car of a model: its whole name and `.toml` behind it, as in `sensor.onnx.toml`. Not `sensor.toml`: that is what
/// the agent's configuration is called, in the same directory.
pub fn side_car_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".toml");
    PathBuf::from(name)
}

/// The next part; `None` at the end.
fn part(input: &mut impl Read) -> Result<Option<Vec<u8>>> {
    let mut length = Vec::new();
    input.take(8).read_to_end(&mut length)?;
    if length.is_empty() {
        return Ok(None);
    }
    let length = u64::from_le_bytes(length[..].try_into().context("cut short")?);
    // Not all at once: whoever wrote the length may have lied.
    let mut bytes = Vec::new();
    input.take(length).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 == length, "cut short");
    Ok(Some(bytes))
}

/// `limit` is where the limit of `max_bytes` comes from.
fn read(path: &Path, max_bytes: u64, limit: &str) -> Result<Vec<u8>> {
    // Opening a pipe would wait for its other end; what was opened is asked what it is, so that nothing takes its place.
    let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "it is not a file");
    let size = metadata.len();
    ensure!(size <= max_bytes, "the file has {size} bytes; at most {max_bytes} are read ({limit})");
    let mut bytes = Vec::with_capacity(size as usize);
    // It may grow while it is read.
    file.take(max_bytes + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= max_bytes, "the file has more than {max_bytes} bytes ({limit})");
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_car_is_not_the_configuration() {
        assert_eq!(side_car_of(Path::new("/etc/sensor/sensor.onnx")), Path::new("/etc/sensor/sensor.onnx.toml"));
    }

    #[test]
    fn what_is_no_file_is_refused_and_a_limit_has_its_name() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("m.onnx");
        // Nobody writes into it: opening it for reading would wait for ever.
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
            .expect("pipe");
        let text = |max_bytes| format!("{:#}", File::read(&path, max_bytes).expect_err("no model"));
        assert!(text(100).ends_with("it is not a file"), "{}", text(100));
        std::fs::remove_file(&path).expect("remove");
        std::fs::write(&path, [0; 11]).expect("write");
        assert!(text(10).contains("has 11 bytes; at most 10 are read (model.max_file_mib)"), "{}", text(10));
        std::fs::write(side_car_of(&path), vec![b' '; document::MAX_TEXT + 1]).expect("write");
        assert!(text(11).contains("m.onnx.toml") && text(11).contains("no contract is larger"), "{}", text(11));
    }

    #[test]
    fn what_is_sent_arrives() {
        for side_car in [None, Some("kind = \"anomaly\"".to_owned())] {
            let file = File { stem: "m".to_owned(), onnx: vec![1, 2, 3], side_car };
            let mut bytes = Vec::new();
            file.encode(&mut bytes).expect("memory takes it");
            assert_eq!(File::decode(&bytes[..]).expect("whole"), file);
            for end in (0..bytes.len()).filter(|end| *end != 8 + 1 + 8 + 3) {
                assert!(File::decode(&bytes[..end]).is_err(), "cut at {end}");
            }
        }
        assert!(File::decode(&[0xff; 64][..]).is_err());
    }
}
