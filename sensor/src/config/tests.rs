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

fn source(variables: &[(&str, &str)], flags: &[(&str, &str, &str)]) -> Source {
    Source {
        file: Some("test.toml".into()),
        environment: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        flags: flags
            .iter()
            .map(|(origin, setting, value)| Override {
                origin: (*origin).to_owned(),
                setting: (*setting).to_owned(),
                value: toml::Value::String((*value).to_owned()),
            })
            .collect(),
    }
}

#[test]
fn flags_win_over_variables_and_those_over_the_file() {
    let text = "mode = \"tag\"\n[agent]\nlease = \"7s\"\n[policy]\nthreshold = 0.5\n";
    let variables = [("SENSOR_MODE", "enforce"), ("SENSOR_POLICY_THRESHOLD", "0.75"), ("SENSOR_LOG", "debug")];
    let config = source(&variables, &[]).resolve_text(text).expect("valid");
    assert_eq!((config.mode, config.policy.threshold, config.agent.lease), (Mode::Enforce, Some(0.75), 7 * SECOND));
    let config = source(&variables, &[("--mode", "mode", "observe")]).resolve_text(text).expect("valid");
    assert_eq!((config.mode, config.policy.threshold), (Mode::Observe, Some(0.75)));
    assert_eq!(source(&[], &[]).resolve_text("").expect("valid"), Config::default());
}

#[test]
fn every_setting_has_a_variable_of_its_own() {
    let settings = environment::settings();
    assert!(settings.len() > 60, "{}", settings.len());
    let names: std::collections::BTreeSet<_> = settings.keys().map(|setting| environment::name_of(setting)).collect();
    assert_eq!(names.len(), settings.len(), "no two have the same");
    for (setting, value) in &settings {
        // Text as it stands there, all else as in the file.
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let (found, wrong) = environment::overrides(&[(environment::name_of(setting), text.clone())]);
        assert_eq!(wrong, [""; 0], "{setting}");
        assert_eq!((&found[0].setting, &found[0].value), (setting, value), "{setting} = {text}");
    }
}

#[test]
fn lists_can_be_written_with_commas() {
    let variables = [
        ("SENSOR_INTERFACES", "eth0, eth1"),
        ("SENSOR_POLICY_SESSION_PORTS", "22,2222"),
        ("SENSOR_POLICY_NEVER_DROP", "[\"198.18.0.0/15\"]"),
        ("SENSOR_POLICY_NEVER_DROP_HOST", ""),
        ("SENSOR_POLICY_LABEL_ACTIONS", "scan=tag, flood=drop"),
        ("SENSOR_TAG_MARK", "0x10"),
        ("SENSOR_MODEL_PATH", ""),
    ];
    let config = source(&variables, &[]).resolve_text("").expect("valid");
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.policy.session_ports, [22, 2222]);
    assert_eq!(config.policy.never_drop, ["198.18.0.0/15".parse().expect("a prefix")]);
    assert!(config.policy.never_drop_host.is_empty() && config.model.path.is_none());
    assert_eq!((config.policy.label_actions.len(), config.tag.mark), (2, 0x10));
}

#[test]
fn what_is_no_setting_is_an_error_that_names_the_nearest() {
    let wrong = |name: &str, value: &str| {
        let Wrong(lines) = source(&[(name, value)], &[]).resolve_text("").expect_err(name);
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    assert!(wrong("SENSOR_POLICY_TRESHOLD", "0.9").contains("SENSOR_POLICY_THRESHOLD"));
    assert!(wrong("SENSOR_POLCY_THRESHOLD", "0.9").starts_with("SENSOR_POLCY_THRESHOLD: there is no such setting"));
    assert!(wrong("SENSOR_KERNEL_FLOWS", "many").contains("is not a number"));
    assert!(wrong("SENSOR_MODE", "block").contains("enforce"));
    assert!(wrong("SENSOR_AGENT_LEASE", "5 parsecs").contains("duration"));
    assert!(wrong("SENSOR_POLICY_LABEL_ACTIONS", "scan").contains("has no ="));
    assert!(wrong("SENSOR_POLICY_THRESHOLD", "1.5").starts_with("SENSOR_POLICY_THRESHOLD: policy.threshold = 1.5"));
    // Of the build, of tests, and of a cluster with a service named sensor.
    for name in [
        "SENSOR_EBPF_OBJECT",
        "SENSOR_BPF_RUSTC",
        "SENSOR_CAPTURES",
        "SENSOR_SERVICE_HOST",
        "SENSOR_SERVICE_PORT_METRICS",
        "SENSOR_PORT_9469_TCP",
        "SENSOR_PORT_9469_TCP_ADDR",
        "SENSOR_METRICS_SERVICE_PORT",
    ] {
        source(&[(name, "x")], &[]).resolve_text("").expect(name);
    }
    source(&[("SENSOR_PORT", "tcp://198.18.0.1:9469")], &[]).resolve_text("").expect("a service's address");
    let slip = wrong("SENSOR_POLICY_NEVER_DROP_PORT", "tcp/22");
    assert!(slip.contains("SENSOR_POLICY_NEVER_DROP_PORTS"), "{slip}");
}

#[test]
fn ranges_and_relations_have_their_place_too() {
    let wrong = |text: &str, flags: &[(&str, &str, &str)]| source(&[], flags).resolve_text(text).expect_err(text).0;
    let text = "[policy]\nthreshold =   1.5\nmin_packets = 3\n\n[kernel]\nflows = 65537\n";
    let lines = wrong(text, &[]);
    assert_eq!(lines.len(), 3, "all of them: {lines:?}");
    for place in
        ["test.toml:2:15: policy.threshold", "test.toml:3:15: policy.min_packets", "test.toml:6:9: kernel.flows"]
    {
        assert!(lines.iter().any(|line| line.starts_with(place)), "{place}: {lines:?}");
    }
    // Of two that do not go together, the one that the file has; where a flag says it, the flag.
    let interval = "agent.poll_interval = \"500ms\"\nagent.lease = \"2s\"";
    assert!(wrong(interval, &[])[0].starts_with("test.toml:2:15: agent.lease"), "{:?}", wrong(interval, &[]));
    let only = wrong("agent = { poll_interval = \"1s\" }\nagent2 = 1", &[]);
    assert!(only[0].starts_with("test.toml:2:1: unknown field"), "{only:?}");
    let flag = wrong("", &[("--poll-interval", "agent.poll_interval", "2s")]);
    assert!(flag[0].starts_with("--poll-interval: agent.poll_interval"), "{flag:?}");
    assert_eq!(flag.len(), 2, "and it is too long for the lease: {flag:?}");
}

#[test]
fn what_is_no_text_file_is_refused_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let refused = |path: &std::path::Path, word: &str| {
        let file = Source { file: Some(path.to_owned()), ..Source::default() };
        let error = file.resolve().expect_err(word).to_string();
        assert!(error.contains(word) && error.contains(&path.display().to_string()), "{word}: {error}");
    };
    refused(directory.path(), "not a regular file");
    refused(&directory.path().join("nothing"), "cannot read the configuration file");
    let pipe = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a pipe");
    refused(&pipe, "not a regular file");
    let file = directory.path().join("s.toml");
    std::fs::write(&file, vec![b'#'; 10 << 20]).expect("writes");
    refused(&file, "larger than 1024 KiB");
    std::fs::write(&file, b"mode = \"tag\"\n# \xff\n").expect("writes");
    refused(&file, ":2:3: this is not UTF-8");
}

#[test]
fn the_hash_tells_configurations_apart() {
    let other = Config { mode: Mode::Tag, ..Config::default() };
    assert_eq!(Config::default().hash().len(), 64);
    assert!(Config::default().hash() == Config::default().hash() && other.hash() != Config::default().hash());
}
