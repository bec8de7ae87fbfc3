//! `sensor model restamp`: gives a model the hashes of today's definitions, where its owner says that it serves under
//! them.
//!
//! Only the keys of the contract change: every other byte of the file stays as it is. Called by `cli`, which checks the
//! result before it is written.

use std::fs::File as Disk;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};
use sensor_common::features::{CONTRACT_VERSION, Feature, by_name};
use tract_onnx::pb::StringStringEntryProto;

use super::contract::own_hashes;
use super::document::{Document, PREFIX};
use super::file::{File, side_car_of};
use super::network;

/// Field of `ModelProto` that holds the keys (onnx.proto).
const METADATA_PROPS: u32 = 14;
/// What goes, and what is set anew.
const KEYS: [&str; 3] = ["contract_version", "contract_hash", "feature_hashes"];

/// A model with new hashes, and which features they are of.
pub struct Restamped {
    /// The file.
    pub file: File,
    /// Features whose hash was another one; `None` if the file did not say what each one's was.
    pub changed: Option<Vec<&'static str>>,
    /// The contract is the side-car's.
    pub in_side_car: bool,
}

/// Sets version and hashes of a model's contract.
///
/// # Errors
/// If the file is no model, has no contract, or names no features or unknown ones.
pub fn restamp(file: &File) -> Result<Restamped> {
    let proto = network::decode(&file.onnx)?;
    let properties = proto.metadata_props.iter().map(|entry| (entry.key.as_str(), entry.value.as_str()));
    let own = Document::from_properties(properties).map_err(|problem| anyhow::anyhow!("{problem}"))?;
    drop(proto);
    let (document, side_car) = match &file.side_car {
        Some(text) if own.is_empty() => {
            (Document::from_toml(text).map_err(|problem| anyhow::anyhow!("{problem}"))?, Some(text))
        }
        _ => (own, None),
    };
    ensure!(
        !document.is_empty(),
        "the file carries no contract: add one with models/contract.py, or put a side-car beside the file (docs/models.md)"
    );
    let names: Vec<String> = document
        .get("features")
        .and_then(|names| serde_json::from_value(names.clone()).ok())
        .context("its contract has no list of features: `sensor model check` says what else is wrong")?;
    let features: Vec<&Feature> = names
        .iter()
        .map(|name| {
            by_name(name).with_context(|| format!("there is no feature {name:?} any more: train the model again"))
        })
        .collect::<Result<_>>()?;
    let hashes = own_hashes(&features);
    let former: Option<Vec<String>> =
        document.get("feature_hashes").and_then(|hashes| serde_json::from_value(hashes.clone()).ok());
    let changed = former.filter(|former| former.len() == features.len()).map(|former| {
        let pairs = features.iter().zip(former.iter().zip(&hashes));
        pairs.filter(|(_, (former, now))| former != now).map(|(feature, _)| feature.name).collect()
    });
    let mut file = file.clone();
    let in_side_car = side_car.is_some();
    if let Some(text) = side_car {
        let mut table: toml::Table = text.parse().context("the side-car is no TOML")?;
        for key in KEYS {
            table.remove(key);
        }
        table.insert("contract_version".to_owned(), i64::from(CONTRACT_VERSION).into());
        table.insert("feature_hashes".to_owned(), hashes.into());
        file.side_car = Some(toml::to_string(&table).context("cannot write the side-car as TOML")?);
    } else {
        let hashes = serde_json::to_string(&hashes).context("cannot write the hashes as JSON")?;
        let version = CONTRACT_VERSION.to_string();
        file.onnx = replaced(&file.onnx, &[("contract_version", version), ("feature_hashes", hashes)])?;
    }
    Ok(Restamped { file, changed, in_side_car })
}

/// The file with these keys set behind all else, and without those of [`KEYS`] that it had.
fn replaced(bytes: &[u8], keys: &[(&str, String)]) -> Result<Vec<u8>> {
    let mut rest = bytes;
    let mut out = Vec::with_capacity(bytes.len() + 4096);
    while !rest.is_empty() {
        let start = rest;
        let (tag, wire) = decode_key(&mut rest)?;
        if tag == METADATA_PROPS && wire == WireType::LengthDelimited {
            let length = decode_varint(&mut rest)? as usize;
            let Some((entry, behind)) = rest.split_at_checked(length) else { bail!("the file is cut short") };
            rest = behind;
            let key = StringStringEntryProto::decode(entry)?.key;
            if key.strip_prefix(PREFIX).is_some_and(|key| KEYS.contains(&key)) {
                continue;
            }
        } else {
            skip_field(wire, tag, &mut rest, DecodeContext::default())?;
        }
        out.extend_from_slice(&start[..start.len() - rest.len()]);
    }
    for (key, value) in keys {
        let entry = StringStringEntryProto { key: format!("{PREFIX}{key}"), value: value.clone() }.encode_to_vec();
        encode_key(METADATA_PROPS, WireType::LengthDelimited, &mut out);
        encode_varint(entry.len() as u64, &mut out);
        out.extend_from_slice(&entry);
    }
    Ok(out)
}

/// Puts what changed of the model in place of what is at `path`, or beside it, whole.
///
/// # Errors
/// The disk does not take it; then what was there stays.
pub fn write(restamped: &Restamped, path: &Path) -> Result<()> {
    let Restamped { file, in_side_car, .. } = restamped;
    if let (true, Some(text)) = (in_side_car, &file.side_car) {
        // The graph is the same; a new place needs it, too.
        if !path.exists() {
            put(path, &file.onnx)?;
        }
        return put(&side_car_of(path), text.as_bytes());
    }
    put(path, &file.onnx)
}

fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    // What a link points to, not the link.
    let place = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let path = place.as_path();
    let builder = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(".model-").tempfile_in(folder)?;
        if let Ok(metadata) = path.metadata() {
            file.as_file().set_permissions(metadata.permissions())?;
        }
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Disk::open(folder)?.sync_all()
    };
    builder().with_context(|| format!("cannot write {}", path.display()))
}
