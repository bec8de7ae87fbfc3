//! The configuration file and the struct say the same, and what cannot work is refused with a useful line.

use super::*;

fn parse(text: &str) -> Result<Config> {
    let config = Config::parse(text, "test.toml")?;
    config.validate().map(|()| config)
}

fn refused(text: &str) -> String {
    let message = format!("{:#}", parse(text).expect_err(text));
    assert!(!message.contains('\n'), "one line: {message}");
    message
}

#[test]
fn the_default_file_is_the_default() {
    assert_eq!(parse(DEFAULT_FILE).expect("valid"), Config::default());
    Config::default().validate().expect("the defaults are valid");
}

#[test]
fn the_default_file_mentions_every_key() {
    let mut full = Config::default();
    full.policy.threshold = Some(0.5);
    full.tag.dscp = Some(8);
    let table: toml::Table = full.to_toml().expect("TOML").parse().expect("TOML");
    let mut missing = Vec::new();
    let mut section = String::new();
    let mut mentioned = Vec::new();
    for line in DEFAULT_FILE.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            mentioned.push(section.clone());
        }
        // An optional setting without a default stands there as a comment.
        let line = line.strip_prefix("# ").unwrap_or(line);
        if let Some((key, _)) = line.split_once(" = ") {
            mentioned.push(if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") });
        }
    }
    for (name, value) in &table {
        match value {
            toml::Value::Table(keys) => missing.extend(
                keys.keys().map(|key| format!("{name}.{key}")).chain([name.clone()]).filter(|k| !mentioned.contains(k)),
            ),
            _ if !mentioned.contains(name) => missing.push(name.clone()),
            _ => {}
        }
    }
    assert!(missing.is_empty(), "config/sensor.toml does not mention {missing:?}");
}

#[test]
fn toml_round_trip() {
    let mut config = Config { interfaces: vec!["eth0".into(), "eth1".into()], ..Config::default() };
    config.model.path = None;
    config.metrics.listen = None;
    config.policy.threshold = Some(0.75);
    config.policy.label_actions.insert("scan".into(), ActionName::Tag);
    config.tag.dscp = Some(8);
    let text = config.to_toml().expect("TOML");
    assert_eq!(parse(&text).expect("valid"), config, "{text}");
}

#[test]
fn messages_name_the_line() {
    let message = refused("mode = \"observe\"\n\n[agent]\npol_interval = \"1s\"\n");
    assert!(message.starts_with("test.toml:4:1: ") && message.contains("pol_interval"), "{message}");
    let message = refused("[agent]\nlease = \"5 parsecs\"\n");
    assert!(message.starts_with("test.toml:2:9: ") && message.contains("duration"), "{message}");
    let message = refused("mode = \"block\"\n");
    assert!(message.starts_with("test.toml:1:8: ") && message.contains("enforce"), "{message}");
    let message = refused("[policy]\nnever_drop = [\"10.0.0.0/33\"]\n");
    assert!(message.starts_with("test.toml:2:"), "{message}");
}

#[test]
fn what_cannot_work_is_refused() {
    for (text, word) in [
        ("interfaces = [\"eth0\", \"eth0\"]", "twice"),
        ("interfaces = [\"a name/with\"]", "interface name"),
        ("[kernel]\nflows = 65537", "power of two"),
        ("[kernel]\nflows = 4096", "8192"),
        ("[agent]\npoll_interval = \"2s\"", "10ms to 1s"),
        ("[agent]\npoll_interval = \"500ms\"\nlease = \"2s\"", "five times"),
        ("[agent]\nidle_timeout = \"2h\"", "1h"),
        ("[agent]\nsocket = \"sensor.sock\"", "absolute"),
        ("[model]\nmax_batch = 0", "from 1"),
        ("[policy]\nthreshold = 1.5", "0.0 to 1.0"),
        ("[policy]\nmin_packets = 3", "power of two"),
        ("[tag]\nmark = 0x153", "widen the mask"),
        ("[tag]\ndscp = 64", "0 to 63"),
        ("[log]\nlevel = \"sensor=loud\"", "log.level"),
    ] {
        let message = refused(text);
        assert!(message.contains(word), "{text}: {message}");
    }
}
