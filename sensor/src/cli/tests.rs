//! Flags win over the file, the file over the defaults.

use super::*;

fn settings(arguments: &[&str]) -> Result<Config> {
    let line = ["sensor", "run"].iter().chain(arguments);
    match Cli::try_parse_from(line).context("command line")?.command {
        Command::Run { takeover: None, settings } => {
            // Not the environment of whoever runs the tests.
            Ok(Source { environment: Vec::new(), ..settings.source()? }.resolve()?)
        }
        other => anyhow::bail!("not `run`: {other:?}"),
    }
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn no_flags_are_the_defaults() {
    assert_eq!(settings(&[]).expect("valid"), Config::default());
}

#[test]
fn every_flag_reaches_its_setting() {
    let config = settings(&[
        "-i",
        "eth0",
        "-i",
        "eth1",
        "--model",
        "a.onnx",
        "--mode",
        "enforce",
        "--metrics-listen",
        "127.0.0.1:1",
        "--socket",
        "/tmp/s.sock",
        "--pins",
        "/tmp/pins",
        "--xdp-mode",
        "generic",
        "--poll-interval",
        "50ms",
        "--log-format",
        "json",
        "--bpf-log",
        "debug",
        "--summary",
    ])
    .expect("valid");
    assert_eq!(config.interfaces, ["eth0", "eth1"]);
    assert_eq!(config.model.path, Some(PathBuf::from("a.onnx")));
    assert_eq!((config.mode, config.kernel.xdp_mode), (Mode::Enforce, XdpMode::Generic));
    assert_eq!(config.metrics.listen, Some(SocketAddr::from(([127, 0, 0, 1], 1))));
    assert_eq!(config.agent.socket, PathBuf::from("/tmp/s.sock"));
    assert_eq!(config.agent.poll_interval, Duration::from_millis(50));
    assert_eq!((config.log.format, config.kernel.bpf_log), (LogFormat::Json, BpfLog::Debug));
    assert!(config.log.summary);
}

#[test]
fn flags_win_over_the_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "mode = \"tag\"\n[agent]\nlease = \"1s\"\n").expect("writes");
    let path = file.path().to_str().expect("UTF-8");
    assert_eq!(settings(&["--config", path]).expect("valid").mode, Mode::Tag);
    let config =
        settings(&["--config", path, "--mode", "observe", "--model", "", "--metrics-listen", ""]).expect("valid");
    assert_eq!((config.mode, config.model.path, config.metrics.listen), (Mode::Observe, None, None));
    let error = format!("{:#}", settings(&["--config", path, "--poll-interval", "500ms"]).expect_err("lease"));
    assert!(error.contains("five times") && error.contains(path), "{error}");
    let error = format!("{:#}", settings(&["--config", "/nowhere/s.toml"]).expect_err("absent"));
    assert!(error.contains("/nowhere/s.toml"), "{error}");
    let error = format!("{:#}", settings(&["--metrics-listen", "9469"]).expect_err("no address"));
    assert!(error.contains("127.0.0.1:9469"), "{error}");
}

#[test]
fn an_empty_flag_switches_off() {
    for (flag, off) in [
        ("--state-dir", (|config: &Config| config.agent.state_dir.is_none()) as fn(&Config) -> bool),
        ("--pins", |config| config.agent.pins.is_none()),
        ("--model", |config| config.model.path.is_none()),
        ("--metrics-listen", |config| config.metrics.listen.is_none()),
    ] {
        for arguments in [&[flag, ""][..], &[&format!("{flag}=")]] {
            assert!(off(&settings(arguments).expect(flag)), "{arguments:?}");
        }
    }
}

#[test]
fn no_help_shows_what_the_program_is_written_in() {
    use clap::CommandFactory;
    let mut commands = vec![Cli::command()];
    let mut seen = 0;
    while let Some(mut command) = commands.pop() {
        for help in [command.render_help(), command.render_long_help()] {
            let help = help.to_string();
            for internal in ["[`", "`]", "::", "See [", "[default: Some", "None]"] {
                // An IPv6 prefix is none of ours.
                let help = help.replace("2001:db8:66::/48", "");
                assert!(!help.contains(internal), "{} --help has {internal:?}:\n{help}", command.get_name());
            }
        }
        seen += 1;
        commands.extend(command.get_subcommands().cloned());
    }
    assert!(seen > 20, "{seen} commands");
}
