//! Settings of earlier versions that are gone, and what took their place: a file that names one gets an answer it can
//! act on.

use super::file;

/// Name, and what does its work now.
const REMOVED: [(&str, &str); 2] = [
    ("breaker.flow_share", "breaker.source_share counts proven sources: many flows of one source are one"),
    ("breaker.min_flows", "breaker.min_sources is the least number of accused sources"),
];

/// The first one in this text, with its line and column.
pub(super) fn in_text(text: &str) -> Option<(&'static str, &'static str, (usize, usize))> {
    REMOVED.iter().find_map(|(name, replaced)| Some((*name, *replaced, file::place_of(text, name)?)))
}

/// What took the place of the setting behind this variable's name.
pub(super) fn of_variable(name: &str) -> Option<String> {
    let found = REMOVED.iter().find(|(setting, _)| super::environment::name_of(setting) == name)?;
    Some(explain(found.0, found.1))
}

pub(super) fn explain(setting: &str, replaced: &str) -> String {
    format!("{setting} is no setting any more: {replaced}; remove this one")
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Source};

    #[test]
    fn a_setting_that_is_gone_names_what_replaced_it() {
        for (text, word) in [
            ("[breaker]\nflow_share = 0.8\n", "breaker.source_share"),
            ("breaker.min_flows = 9", "breaker.min_sources"),
        ] {
            let error = format!("{:#}", Config::parse(text, "sensor.toml").expect_err(text));
            assert!(error.starts_with("sensor.toml:") && error.contains(word), "{error}");
        }
        let environment = vec![("SENSOR_BREAKER_FLOW_SHARE".to_owned(), "0.8".to_owned())];
        let error = Source { environment, ..Source::default() }.resolve().expect_err("gone").to_string();
        assert!(error.contains("breaker.source_share"), "{error}");
    }
}
