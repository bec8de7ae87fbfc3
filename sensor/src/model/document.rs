//! A contract before it is understood: the keys that start with `sensor.` of an ONNX file's `metadata_props`, or a
//! side-car TOML file, both as JSON values under names without the prefix.
//!
//! Called by [`super::contract`]. Nothing here knows what a key means, only which ones hold plain text.

use serde_json::{Map, Number, Value};

use super::problem::{Problem, Problems};

/// Prefix of the keys in `metadata_props`.
pub const PREFIX: &str = "sensor.";
/// Largest contract, in bytes of text: parsed JSON takes many times its text.
pub const MAX_TEXT: usize = 4 << 20;
/// Keys whose value is text as it stands; all others hold JSON.
const PLAIN: [&str; 5] = ["kind", "name", "contract_hash", "trained_on", "output"];

/// The keys and values of a contract.
#[derive(Clone, Debug, Default)]
pub struct Document(Map<String, Value>);

impl Document {
    /// Reads `metadata_props`; keys of others are skipped. A value that is no JSON stays text, and the check of its key
    /// says what it should be.
    pub fn from_properties<'a>(properties: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Document, Problem> {
        let (mut map, mut size) = (Map::new(), 0);
        for (key, text) in properties {
            let Some(name) = key.strip_prefix(PREFIX) else { continue };
            size += key.len() + text.len();
            too_large(size)?;
            let value = if PLAIN.contains(&name) {
                Value::String(text.to_owned())
            } else {
                serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
            };
            map.insert(name.to_owned(), value);
        }
        Ok(Document(map))
    }

    /// Reads a side-car file; NaN becomes null, as in JSON.
    pub fn from_toml(text: &str) -> Result<Document, Problem> {
        too_large(text.len())?;
        let table: toml::Table = toml::from_str(text).map_err(|error| {
            // Not the error's own text, which quotes the line: a link could stand there, to a file that is nobody's to
            // read.
            let before = &text[..text.floor_char_boundary(error.span().map_or(0, |span| span.start))];
            let (line, column) = (before.matches('\n').count() + 1, before.lines().last().map_or(0, str::len) + 1);
            let problem = format!("it is not TOML: line {line}, column {column}: {}", error.message());
            Problem::new("side-car", problem, "write it with models/contract.py --side-car, or see docs/models.md")
        })?;
        Ok(Document(table.into_iter().map(|(key, value)| (key, json(value))).collect()))
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// Keys that are not in `known`.
    pub fn unknown(&self, known: &[&str], problems: &mut Problems) {
        for key in self.0.keys().filter(|key| !known.contains(&key.as_str())) {
            problems.add(Problem::new(
                &format!("{PREFIX}{key}"),
                "this version does not know the key",
                format!("remove it or mend its spelling; the keys are {}", known.join(", ")),
            ));
        }
    }

    /// The contract as JSON.
    pub fn into_json(self) -> Value {
        Value::Object(self.0)
    }
}

fn too_large(size: usize) -> Result<(), Problem> {
    if size > MAX_TEXT {
        return Err(Problem::new(
            "contract",
            format!("it has more than {MAX_TEXT} bytes"),
            "carry fewer golden rows or quantiles: a dozen rows and ten edges a feature are enough",
        ));
    }
    Ok(())
}

fn json(value: toml::Value) -> Value {
    match value {
        toml::Value::String(text) => Value::String(text),
        toml::Value::Integer(number) => Value::Number(number.into()),
        toml::Value::Float(number) => Number::from_f64(number).map_or(Value::Null, Value::Number),
        toml::Value::Boolean(flag) => Value::Bool(flag),
        toml::Value::Datetime(time) => Value::String(time.to_string()),
        toml::Value::Array(items) => Value::Array(items.into_iter().map(json).collect()),
        toml::Value::Table(table) => Value::Object(table.into_iter().map(|(key, value)| (key, json(value))).collect()),
    }
}
