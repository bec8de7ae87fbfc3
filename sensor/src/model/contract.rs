//! The contract that a model file carries in its ONNX `metadata_props`, under keys that start with `sensor.`.
//!
//! Every check says what to change. Nothing here knows of tract. Called by [`super::Model::load`].

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result, bail, ensure};
use sensor_common::features::{CONTRACT_VERSION, FEATURES, Feature, by_name, contract_hash};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Prefix of the keys.
pub const PREFIX: &str = "sensor.";
/// Golden rows that a model must bring at least.
pub const MIN_GOLDEN: usize = 4;
/// Labels that a verdict word can tell apart.
const MAX_LABELS: usize = 256;

/// Inputs and the outputs that training saw for them.
#[derive(Clone, Debug)]
pub struct Golden {
    /// One value per feature, NaN = missing.
    pub input: Vec<f32>,
    /// One probability per label.
    pub output: Vec<f32>,
}

/// What a model says about itself.
#[derive(Clone, Debug)]
pub struct Contract {
    /// `sensor.name`, "" if absent.
    pub name: String,
    /// `sensor.features`: the input columns, in order.
    pub features: Vec<&'static Feature>,
    /// `sensor.labels`: the output columns; label 0 is benign.
    pub labels: Vec<String>,
    /// `sensor.threshold`: from this score on a flow is reported, in (0, 1].
    pub threshold: f32,
    /// `sensor.min_packets`: flows with fewer packets are not scored (1 if absent).
    pub min_packets: u64,
    /// `sensor.golden_inputs` and `sensor.golden_outputs`.
    pub golden: Vec<Golden>,
    /// `sensor.trained_on`, "" if absent.
    pub trained_on: String,
}

impl Contract {
    /// Reads and checks the contract.
    ///
    /// # Errors
    /// If a property is missing, malformed, or for another feature contract than this agent's.
    pub fn parse<'a>(properties: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Contract> {
        let properties = Properties(properties.filter(|(key, _)| key.starts_with(PREFIX)).collect());
        ensure!(
            !properties.0.is_empty(),
            "the file carries no contract: its metadata_props have no keys that start with {PREFIX:?}; \
             export it with models/train.py or add them (see models/README.md)"
        );
        let kind = properties.text("kind")?;
        ensure!(kind == "classifier", "sensor.kind is {kind:?}; this version runs models of kind \"classifier\"");
        properties.check_version()?;
        let features = features(&properties.json::<Vec<String>>("features")?)?;
        // After the names: an unknown name says more than a different hash.
        properties.check_hash()?;
        let labels: Vec<String> = properties.json("labels")?;
        check_labels(&labels)?;
        let threshold: f32 = properties.number("threshold")?;
        ensure!(
            threshold > 0.0 && threshold <= 1.0,
            "sensor.threshold is {threshold}; it must be above 0 and at most 1"
        );
        let min_packets = if properties.has("min_packets") { properties.number("min_packets")? } else { 1 };
        ensure!(min_packets > 0, "sensor.min_packets is 0; the smallest flow has 1 packet");
        let golden = golden(
            properties.json("golden_inputs")?,
            properties.json("golden_outputs")?,
            features.len(),
            labels.len(),
        )?;
        let text = |key| properties.text(key).unwrap_or_default().to_owned();
        Ok(Contract {
            name: text("name"),
            trained_on: text("trained_on"),
            features,
            labels,
            threshold,
            min_packets,
            golden,
        })
    }
}

struct Properties<'a>(BTreeMap<&'a str, &'a str>);

impl Properties<'_> {
    fn has(&self, key: &str) -> bool {
        self.text(key).is_ok()
    }

    fn text(&self, key: &str) -> Result<&str> {
        let found = self.0.get(format!("{PREFIX}{key}").as_str()).copied();
        found.with_context(|| format!("the model's metadata_props lack {PREFIX}{key}"))
    }

    fn json<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        serde_json::from_str(self.text(key)?).with_context(|| format!("{PREFIX}{key} is not the JSON that is expected"))
    }

    fn number<T: std::str::FromStr>(&self, key: &str) -> Result<T> {
        let text = self.text(key)?;
        text.trim().parse().ok().with_context(|| format!("{PREFIX}{key} is {text:?}, not a number"))
    }

    fn check_version(&self) -> Result<()> {
        let version: u32 = self.number("contract_version")?;
        ensure!(
            version == CONTRACT_VERSION,
            "the model was trained for feature contract {version}, this agent computes contract {CONTRACT_VERSION}: \
             train it again on `sensor extract` of this version, or run the version of Sensor that it was made for"
        );
        Ok(())
    }

    fn check_hash(&self) -> Result<()> {
        let (hash, own) = (self.text("contract_hash")?, contract_hash());
        ensure!(
            hash == own,
            "the model was trained for features defined otherwise (sensor.contract_hash {hash}, this agent's is {own}): \
             train it again on `sensor extract` of this version; `sensor features` lists the definitions"
        );
        Ok(())
    }
}

fn features(names: &[String]) -> Result<Vec<&'static Feature>> {
    ensure!(!names.is_empty(), "sensor.features is empty; it must name the input columns in order");
    let mut seen = HashSet::new();
    names
        .iter()
        .map(|name| {
            ensure!(seen.insert(name), "sensor.features names {name:?} twice");
            match by_name(name) {
                Some(feature) => Ok(feature),
                None => bail!(
                    "the model wants the feature {name:?}, which contract {CONTRACT_VERSION} does not have; \
                     did you mean {:?}? `sensor features` lists all",
                    nearest(name)
                ),
            }
        })
        .collect()
}

fn check_labels(labels: &[String]) -> Result<()> {
    ensure!(
        (2..=MAX_LABELS).contains(&labels.len()),
        "sensor.labels has {} entries; it must have from 2 to {MAX_LABELS}, the benign one first",
        labels.len()
    );
    let unique: HashSet<_> = labels.iter().collect();
    ensure!(unique.len() == labels.len(), "sensor.labels names a label twice: {labels:?}");
    let plain = |label: &String| {
        !label.is_empty()
            && label.len() <= 64
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    match labels.iter().find(|label| !plain(label)) {
        // They become values of metric labels.
        Some(label) => bail!("the label {label:?} is not usable: at most 64 letters, digits, '-', '_' and '.'"),
        None => Ok(()),
    }
}

/// A number or, for NaN, which JSON does not have, null.
#[derive(Deserialize)]
#[serde(transparent)]
struct Value(Option<f32>);

fn golden(inputs: Vec<Vec<Value>>, outputs: Vec<Vec<Value>>, features: usize, labels: usize) -> Result<Vec<Golden>> {
    ensure!(
        inputs.len() >= MIN_GOLDEN && inputs.len() == outputs.len(),
        "{} rows of sensor.golden_inputs and {} of sensor.golden_outputs; there must be as many of both, at least {MIN_GOLDEN}",
        inputs.len(),
        outputs.len()
    );
    let plain = |row: Vec<Value>| row.into_iter().map(|value| value.0.unwrap_or(f32::NAN)).collect::<Vec<_>>();
    let rows = inputs.into_iter().zip(outputs).enumerate();
    rows.map(|(number, (input, output))| {
        ensure!(
            input.len() == features && output.len() == labels,
            "golden row {number} has {} inputs and {} outputs, but there are {features} features and {labels} labels",
            input.len(),
            output.len()
        );
        Ok(Golden { input: plain(input), output: plain(output) })
    })
    .collect()
}

/// The known name with the smallest edit distance.
fn nearest(name: &str) -> &'static str {
    // A name is bounded before it is compared: the file may hold anything.
    let name: Vec<char> = name.chars().take(64).collect();
    FEATURES.iter().map(|feature| feature.name).min_by_key(|known| distance(&name, known)).unwrap_or_default()
}

/// Levenshtein distance.
fn distance(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (line, from_b) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, from_a) in a.iter().enumerate() {
            let replaced = diagonal + (*from_a != from_b) as usize;
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[a.len()]
}
