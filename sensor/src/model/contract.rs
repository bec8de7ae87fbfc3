//! The contract of a model: what it wants, what it says, and what it promises.
//!
//! Every check says what to change, and all that do not depend on each other run. Nothing here knows of tract or of
//! files: the keys come as a [`Document`]. `models/contract.schema.json` is the same contract as a JSON schema, and
//! `models/contract.py` writes it. Called by [`super::load`].

mod rows;

use std::collections::HashSet;

use sensor_common::features::{CONTRACT_VERSION, FEATURES, Feature, by_name, hash_of};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::distribution::Distribution;
use super::document::{Document, PREFIX};
use super::problem::{Problem, Problems};
use super::scale::{Kind, Scale};

pub use rows::{Golden, MIN_GOLDEN};

/// Labels that a verdict word can tell apart.
const MAX_LABELS: usize = 256;
/// Longest name or label: they become values of metric labels.
const MAX_NAME: usize = 64;

/// The contract whose models carry one hash of all their features; earlier ones are not read.
const WITH_ONE_HASH: u32 = 2;
/// Features that an error names.
const SHOWN: usize = 8;
const RETRAIN: &str = "train it again on `sensor extract` of this version; or, if it serves as well under the definitions \
                       that `sensor features` shows, say so with `sensor model restamp FILE`";

/// Every key, without its prefix.
pub const KEYS: [&str; 18] = [
    "kind",
    "name",
    "contract_version",
    "contract_hash",
    "feature_hashes",
    "features",
    "labels",
    "threshold",
    "thresholds",
    "min_packets",
    "golden_inputs",
    "golden_outputs",
    "quantiles",
    "score_quantiles",
    "score",
    "output",
    "trained_on",
    "training",
];

/// Scores from which on something is done, each in (0, 1] and report ≤ tag ≤ drop.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, Deserialize)]
pub struct Thresholds {
    /// From here on a flow is reported: counted and logged under its label.
    pub report: f32,
    /// From here on its packets may be marked.
    pub tag: f32,
    /// From here on its packets may be dropped.
    pub drop: f32,
}

impl Thresholds {
    /// The same for all.
    pub const fn all(threshold: f32) -> Thresholds {
        Thresholds { report: threshold, tag: threshold, drop: threshold }
    }
}

/// What a model says about itself.
#[derive(Clone, Debug)]
pub struct Contract {
    /// `sensor.kind`
    pub kind: Kind,
    /// `sensor.name`, "" if absent.
    pub name: String,
    /// `sensor.features`: the input columns, in order.
    pub features: Vec<&'static Feature>,
    /// `sensor.labels`: the output columns of a classifier; label 0 is benign.
    pub labels: Vec<String>,
    /// `sensor.threshold` and `sensor.thresholds`.
    pub thresholds: Thresholds,
    /// `sensor.min_packets`: flows with fewer packets are not scored (1 if absent).
    pub min_packets: u64,
    /// `sensor.golden_inputs` and `sensor.golden_outputs`.
    pub golden: Vec<Golden>,
    /// `sensor.quantiles`: one distribution per feature, or none.
    pub quantiles: Vec<Distribution>,
    /// `sensor.score_quantiles`
    pub score_quantiles: Option<Distribution>,
    /// `sensor.score` of an anomaly model.
    pub scale: Option<Scale>,
    /// `sensor.trained_on`, "" if absent.
    pub trained_on: String,
    /// `sensor.training`: what else the file says of its training, shown as it is; null if absent.
    pub training: Value,
}

/// What building the graph needs of a contract; known even if other parts of it are wrong.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Columns of the input.
    pub features: usize,
    /// Columns of the output.
    pub outputs: usize,
    /// `sensor.output`: the output to take.
    pub output: Option<String>,
}

/// Reads and checks a contract; what is wrong is added to `problems`.
pub fn read(document: &Document, problems: &mut Problems) -> (Option<Shape>, Option<Contract>) {
    if document.is_empty() {
        problems.add(Problem::new(
            "contract",
            format!("the file carries no contract: its metadata_props have no keys that start with {PREFIX:?}"),
            "add one with models/contract.py, or put a side-car beside the file (docs/models.md)",
        ));
        return (None, None);
    }
    let keys = Keys(document);
    document.unknown(&KEYS, problems);
    let kind = problems.take(keys.get::<Kind>("kind", "\"classifier\" or \"anomaly\""));
    let version = problems.take(keys.version());
    let features = keys.features(problems);
    if let (Some(version), Some(features)) = (version, &features) {
        // Only with the names known: an unknown name says more than a different hash.
        problems.take(if version == WITH_ONE_HASH { keys.hash(features) } else { keys.hashes(features) });
    }
    let labels = problems.take(keys.labels(kind));
    let thresholds = problems.take(keys.thresholds());
    let min_packets = problems.take(keys.min_packets());
    let scale = match (kind, &features) {
        (Some(kind), Some(features)) => problems.take(keys.scale(kind, features.len())),
        _ => None,
    };
    let output = problems.take(keys.optional::<String>("output", "the name of an output"));
    let shape = match (&features, kind, &labels, &scale) {
        (Some(features), Some(Kind::Classifier), Some(labels), _) => Some((features.len(), labels.len())),
        (Some(features), Some(Kind::Anomaly), _, Some(Some(scale))) => {
            Some((features.len(), scale.width(features.len())))
        }
        _ => None,
    };
    let shape = shape.map(|(features, outputs)| Shape { features, outputs, output: output.clone().flatten() });
    let golden = shape.as_ref().and_then(|shape| problems.take(keys.golden(shape)));
    let quantiles = features.as_ref().and_then(|features| problems.take(keys.quantiles(features)));
    let score_quantiles = problems.take(keys.score_quantiles());
    let name = problems.take(keys.name());
    let trained_on = problems.take(keys.optional::<String>("trained_on", "text"));
    let training = document.get("training").cloned().unwrap_or(Value::Null);
    let contract = || {
        Some(Contract {
            kind: kind?,
            name: name?,
            features: features?,
            labels: labels?,
            thresholds: thresholds?,
            min_packets: min_packets?,
            golden: golden?,
            quantiles: quantiles?,
            score_quantiles: score_quantiles?,
            scale: scale?,
            trained_on: trained_on?.unwrap_or_default(),
            training,
        })
    };
    (shape, contract())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PerAction {
    report: Option<f32>,
    tag: Option<f32>,
    drop: Option<f32>,
}

struct Keys<'a>(&'a Document);

impl Keys<'_> {
    fn optional<T: DeserializeOwned>(&self, key: &str, expected: &str) -> Result<Option<T>, Problem> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|error| {
            let text = value.to_string();
            let short: String = text.chars().take(60).collect();
            let dots = if short.len() < text.len() { "…" } else { "" };
            problem(key, format!("it is {short}{dots}, not {expected} ({error})"), format!("make it {expected}"))
        })
    }

    fn get<T: DeserializeOwned>(&self, key: &str, expected: &str) -> Result<T, Problem> {
        self.optional(key, expected)?
            .ok_or_else(|| problem(key, format!("the contract lacks {PREFIX}{key}"), format!("add it: {expected}")))
    }

    fn version(&self) -> Result<u32, Problem> {
        let version: u32 = self.get("contract_version", "the version that `sensor features` shows")?;
        let fix = match version {
            WITH_ONE_HASH..=CONTRACT_VERSION => return Ok(version),
            ..WITH_ONE_HASH => "export it again with models/contract.py, which writes the keys of today".to_owned(),
            _ => format!(
                "run a newer version of Sensor, or export it again with models/contract.py of this one (contract \
                 {CONTRACT_VERSION})"
            ),
        };
        let text = format!(
            "the model's keys are of contract {version}; this agent reads contracts {WITH_ONE_HASH} to {CONTRACT_VERSION}"
        );
        Err(problem("contract_version", text, fix))
    }

    fn features(&self, problems: &mut Problems) -> Option<Vec<&'static Feature>> {
        let expected = "a JSON array of feature names, in the order of the input's columns";
        let names: Vec<String> = problems.take(self.get("features", expected))?;
        if names.is_empty() {
            problems.add(problem("features", "it is empty", "name the input columns in order"));
            return None;
        }
        if names.len() > FEATURES.len() {
            let text = format!("it has {} names; there are {} features", names.len(), FEATURES.len());
            problems.add(problem("features", text, "name each input column once"));
            return None;
        }
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        for name in &names {
            if !seen.insert(name) {
                problems.add(problem("features", format!("it names {name:?} twice"), "name each column once"));
            }
            match by_name(name) {
                Some(feature) => found.push(feature),
                None => problems.add(problem(
                    "features",
                    format!("the model wants the feature {name:?}, which contract {CONTRACT_VERSION} does not have"),
                    format!("did you mean {:?}? `sensor features` lists all", nearest(name)),
                )),
            }
        }
        (found.len() == names.len() && seen.len() == names.len()).then_some(found)
    }

    /// Contract 2: one hash of all features.
    fn hash(&self, features: &[&Feature]) -> Result<(), Problem> {
        let hash: String = self.get("contract_hash", "the hash that `sensor features` shows")?;
        let own = hash_of(features);
        if hash == own {
            return Ok(());
        }
        let text = format!(
            "one or more of its features are defined otherwise than when it was trained (hash {hash}, this agent's is {own})"
        );
        Err(problem("contract_hash", text, RETRAIN))
    }

    /// From contract 3 on: a hash of each feature.
    fn hashes(&self, features: &[&Feature]) -> Result<(), Problem> {
        let expected = "a JSON array with the hash that `sensor features` shows, for each feature";
        let hashes: Vec<String> = self.get("feature_hashes", expected)?;
        if hashes.len() != features.len() {
            let text = format!("it has {} entries for {} features", hashes.len(), features.len());
            return Err(problem("feature_hashes", text, format!("make it {expected}")));
        }
        let other = features.iter().zip(&hashes).filter(|(feature, hash)| feature.hash() != **hash);
        let names: Vec<_> = other.map(|(feature, _)| feature.name).collect();
        if names.is_empty() {
            return Ok(());
        }
        let more = names.len().saturating_sub(SHOWN);
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let shown = names[..names.len().min(SHOWN)].join(", ");
        let text = format!("these features are defined otherwise than when it was trained: {shown}{more}");
        Err(problem("feature_hashes", text, RETRAIN))
    }

    fn labels(&self, kind: Option<Kind>) -> Result<Vec<String>, Problem> {
        let expected = "a JSON array of names, the benign one first";
        let labels: Vec<String> = match (kind, self.optional("labels", expected)?) {
            (_, Some(labels)) => labels,
            (Some(Kind::Anomaly), None) => vec!["benign".to_owned(), "anomaly".to_owned()],
            (_, None) => self.get("labels", expected)?,
        };
        let most = if kind == Some(Kind::Anomaly) { 2 } else { MAX_LABELS };
        if !(2..=most).contains(&labels.len()) {
            let problem_text = format!("it has {} entries", labels.len());
            return Err(problem("labels", problem_text, format!("give it from 2 to {most}, the benign one first")));
        }
        let unique: HashSet<_> = labels.iter().collect();
        if unique.len() != labels.len() {
            return Err(problem("labels", format!("it names a label twice: {labels:?}"), "name each label once"));
        }
        match labels.iter().find(|label| !is_plain(label)) {
            Some(label) => Err(problem("labels", format!("the label {label:?} is not usable"), PLAIN)),
            None => Ok(labels),
        }
    }

    fn name(&self) -> Result<String, Problem> {
        let name = self.optional::<String>("name", "text")?.unwrap_or_default();
        if name.is_empty() || is_plain(&name) {
            return Ok(name);
        }
        Err(problem("name", "it is not usable as the value of a metric's label", PLAIN))
    }

    fn thresholds(&self) -> Result<Thresholds, Problem> {
        let single: Option<f32> = self.optional("threshold", "a number above 0 and at most 1")?;
        let expected = "a JSON object with numbers for report, tag and drop";
        let PerAction { report, tag, drop } =
            self.optional("thresholds", expected)?.unwrap_or(PerAction { report: None, tag: None, drop: None });
        let Some(report) = report.or(single) else {
            return Err(problem(
                "threshold",
                "the contract lacks sensor.threshold",
                "add the score from which on flows are reported: a number above 0 and at most 1",
            ));
        };
        if single.is_some_and(|single| single != report) {
            return Err(problem(
                "thresholds",
                "its report is another number than sensor.threshold",
                "give one of them only",
            ));
        }
        let tag = tag.unwrap_or(report);
        let thresholds = Thresholds { report, tag, drop: drop.unwrap_or(tag) };
        for (action, value) in [("report", report), ("tag", tag), ("drop", thresholds.drop)] {
            if !(value > 0.0 && value <= 1.0) {
                return Err(problem(
                    "threshold",
                    format!("that for {action} is {value}"),
                    "make it a number above 0 and at most 1",
                ));
            }
        }
        if !(report <= tag && tag <= thresholds.drop) {
            return Err(problem(
                "thresholds",
                format!("report {report}, tag {tag}, drop {} do not ascend", thresholds.drop),
                "a stronger action needs a score that is at least as high",
            ));
        }
        Ok(thresholds)
    }

    fn min_packets(&self) -> Result<u64, Problem> {
        match self.optional::<u64>("min_packets", "a number of packets")? {
            Some(0) => Err(problem("min_packets", "it is 0", "the smallest flow has 1 packet: make it at least 1")),
            other => Ok(other.unwrap_or(1)),
        }
    }

    fn scale(&self, kind: Kind, features: usize) -> Result<Option<Scale>, Problem> {
        let expected = "a JSON object with \"from\" and \"points\" (docs/models.md)";
        if kind == Kind::Classifier {
            return match self.0.get("score") {
                None => Ok(None),
                Some(_) => Err(problem(
                    "score",
                    "a classifier's score is 1 - P(first label)",
                    "remove it, or make the kind anomaly",
                )),
            };
        }
        let scale: Scale = self.get("score", expected)?;
        match scale.check(features) {
            Ok(()) => Ok(Some(scale)),
            Err(text) => Err(problem("score", text, "let models/contract.py make it from training scores")),
        }
    }
}

/// The hashes that a model of these features carries.
pub fn own_hashes(features: &[&Feature]) -> Vec<String> {
    features.iter().map(|feature| feature.hash()).collect()
}

const PLAIN: &str = "at most 64 letters, digits, '-', '_' and '.'";

fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_NAME
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn problem(key: &str, text: impl Into<String>, fix: impl Into<String>) -> Problem {
    Problem::new(&format!("{PREFIX}{key}"), text, fix)
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
