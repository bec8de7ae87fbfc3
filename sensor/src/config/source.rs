//! Where settings come from, and which goes first: defaults, then the file, then `SENSOR_*` variables, then flags.
//!
//! The agent keeps its [`Source`] and resolves it again when it is to reload, so what won at the start wins then, too.

use std::fmt;
use std::path::{Path, PathBuf};

use super::file;
use super::{Config, Problem, environment, one_line};

/// The file that packages install, and that their unit names with `--config`.
pub const SYSTEM_FILE: &str = "/etc/sensor/sensor.toml";

/// One setting that wins over the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    /// Who says so: "SENSOR_MODE", "--mode".
    pub origin: String,
    /// Which, as in "agent.lease".
    pub setting: String,
    /// What, in the form of the file.
    pub value: toml::Value,
}

/// Where the settings of this process come from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// Variables whose names begin with `SENSOR_`.
    pub environment: Vec<(String, String)>,
    /// Flags.
    pub flags: Vec<Override>,
}

/// What is wrong with a configuration, each with its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong(pub Vec<String>);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Wrong {}

impl Source {
    /// Reads the file and applies what wins over it; checked.
    ///
    /// # Errors
    /// Everything that is wrong, as FILE:LINE:COLUMN, variable or flag, and what would be right.
    pub fn resolve(&self) -> Result<Config, Wrong> {
        let text = match &self.file {
            Some(path) => file::read(path).map_err(|error| Wrong(vec![format!("{error:#}")]))?,
            None => String::new(),
        };
        self.resolve_text(&text)
    }

    /// As [`Source::resolve`], with this text in place of the file's.
    pub(super) fn resolve_text(&self, text: &str) -> Result<Config, Wrong> {
        let name = self.file.as_deref().unwrap_or(Path::new("configuration")).display().to_string();
        let mut config = Config::parse(text, &name).map_err(|error| Wrong(vec![format!("{error:#}")]))?;
        let (mut overrides, mut wrong) = environment::overrides(&self.environment);
        overrides.extend(self.flags.iter().cloned());
        for one in &overrides {
            match with(&config, one) {
                Ok(changed) => config = changed,
                Err(error) => wrong.push(format!("{}: {error}", one.origin)),
            }
        }
        let place = |problem: &Problem| {
            let one = |setting: &&str| {
                let last = overrides.iter().rev().find(|one| one.setting == *setting).map(|one| one.origin.clone());
                let in_file = || file::place_of(text, setting).map(|(line, column)| format!("{name}:{line}:{column}"));
                last.or_else(in_file)
            };
            problem.settings.iter().find_map(one).unwrap_or_else(|| name.clone())
        };
        wrong.extend(config.problems().iter().map(|problem| format!("{}: {}", place(problem), problem.text)));
        if wrong.is_empty() { Ok(config) } else { Err(Wrong(wrong)) }
    }
}

/// The configuration with one setting changed.
fn with(config: &Config, one: &Override) -> Result<Config, String> {
    let mut table = toml::Table::try_from(config).map_err(|error| error.to_string())?;
    let (section, key) = one.setting.split_once('.').unwrap_or(("", &one.setting));
    let place = match table.get_mut(section) {
        Some(toml::Value::Table(section)) => section,
        _ => &mut table,
    };
    place.insert(key.to_owned(), one.value.clone());
    table.try_into().map_err(|error: toml::de::Error| one_line(&error))
}
