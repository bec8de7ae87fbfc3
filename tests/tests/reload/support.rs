//! `sensor support`, with an agent and without.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use sensor_tests::checks::{Must as _, run_sensor, text};
use sensor_tests::process::output;
use sensor_tests::topology::EDGE_V4;
use tempfile::TempDir;

use super::scene::{Files, arrives, command, lab, udp};

const PORT: u16 = 7_991;
const SECRET: &str = "hunter2";

/// What is in an archive.
fn unpacked(archive: &Path) -> BTreeMap<String, String> {
    let directory = TempDir::with_prefix("sensor-support-").map_err(Into::into).must("make a directory");
    output(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(directory.path())).must("unpack");
    let folder = directory.path().join("sensor-support");
    let entries = std::fs::read_dir(&folder).map_err(Into::into).must("look into it");
    entries
        .map(|entry| {
            let path = entry.map_err(Into::into).must("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            (name, std::fs::read_to_string(&path).map_err(Into::into).must("read an item"))
        })
        .collect()
}

#[test]
fn an_archive_tells_what_is_wrong_and_no_address_or_secret() {
    let lab = lab();
    let files = Files::new(&format!(
        "# api_token = \"{SECRET}\"\n# see https://bob:{SECRET}@example.org/\n[policy]\nnever_drop = [\"198.19.7.0/24\"]\n\
         [model]\npath = \"\"\n"
    ));
    let agent = files.agent(&lab, &[]);
    let sink = udp(&lab.edge.netns, (EDGE_V4, PORT));
    let client = udp(&lab.clients[0].netns, (lab.clients[0].v4[0], 0));
    assert!(arrives(&client, &sink, 100));
    agent.ask_json(&["verdicts", "add", "drop", "198.19.8.0/24"]).must("add a verdict");
    agent.ask_json(&["allow", "add", "2001:db8:9::/48"]).must("allow");
    // The log tells of addresses.
    assert!(agent.log().contains("2001:db8:9::/48"), "{}", agent.log());
    let addresses =
        ["198.19.7.0", "198.19.8.0", "2001:db8:9::", &lab.clients[0].v4[0].to_string(), &EDGE_V4.to_string()];

    let archive = files.path("a.tar.gz");
    let made = command(&lab, &agent, &["support", "-o", &archive.to_string_lossy()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let mode = std::fs::metadata(&archive).map_err(Into::into).must("the archive").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let items = unpacked(&archive);
    let has = |name: &str, word: &str| {
        let item = items.get(name).unwrap_or_else(|| panic!("no {name}: {}", items["MANIFEST"]));
        assert!(item.contains(word), "no {word} in {name}: {item}");
    };
    has("MANIFEST", "flows.json");
    has("MANIFEST", "only with --with-addresses");
    has("versions.txt", "kernel Linux");
    has("status.json", "\"source_verdicts\": 1");
    has("config-in-force.toml", "address-");
    has("config-file.toml", "never_drop = [");
    assert!(!items["config-file.toml"].contains("api_token"), "comments are the writer's own");
    has("config-check.txt", "right");
    has("metrics.txt", "sensor_config_info");
    has("log-agent.txt", "is never dropped from now on");
    has("doctor.txt", "kernel");
    has("interfaces.json", "\"driver\": \"veth\"");
    has("process.txt", "Max locked memory");
    for (name, item) in &items {
        assert!(!item.contains(SECRET), "a secret in {name}: {item}");
        for address in addresses {
            assert!(!item.contains(address), "{address} in {name}: {item}");
        }
    }
    // The same name is not written over.
    let again = command(&lab, &agent, &["support", "-o", &archive.to_string_lossy()]);
    assert!(!again.status.success() && text(&again.stderr).contains("a.tar.gz"), "{}", text(&again.stderr));

    let whole = files.path("b.tar.gz");
    let made = command(&lab, &agent, &["support", "--with-addresses", "-o", &whole.to_string_lossy()]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let items = unpacked(&whole);
    for (name, word) in [
        ("flows.json", lab.clients[0].v4[0].to_string()),
        ("verdicts.json", "198.19.8.0/24".to_owned()),
        ("allow.json", "2001:db8:9::/48".to_owned()),
    ] {
        assert!(items[name].contains(&word), "no {word} in {name}");
    }
    assert!(items.values().all(|item| !item.contains(SECRET)), "secrets are removed all the same");
    agent.stop().must("stop the agent");
}

#[test]
fn without_an_agent_there_is_an_archive_with_what_there_is() {
    let lab = lab();
    let files = Files::new("[policy]\nthreshold = 7\n");
    let (archive, socket, config) = (files.text("c.tar.gz"), files.text("none.sock"), files.text("sensor.toml"));
    let words = ["support", "-o", &archive, "--socket", &socket, "--config", &config, "--unit", "no-such-unit"];
    let made = run_sensor(&lab.edge.netns, &[], &words);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let items = unpacked(Path::new(&archive));
    assert!(items["config-check.txt"].contains("sensor.toml:2:13: policy.threshold"), "{items:#?}");
    for missing in ["status.json", "metrics.txt", "log-agent.txt", "log-journal.txt", "process.txt"] {
        assert!(!items.contains_key(missing), "{missing}");
        let line = items["MANIFEST"].lines().find(|line| line.starts_with(missing)).unwrap_or_default();
        assert!(line.contains("missing: "), "{missing}: {}", items["MANIFEST"]);
    }
    assert!(items["MANIFEST"].contains("no agent answers at"), "{}", items["MANIFEST"]);
    // A disk that is full leaves nothing behind.
    let full = files.path("full");
    std::fs::create_dir(&full).map_err(Into::into).must("make a directory");
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=4k", "tmpfs"]).arg(&full);
    output(&mut mount).must("mount a small disk");
    std::fs::write(full.join("filler"), [0; 4096]).map_err(Into::into).must("fill it");
    let on_it = full.join("d.tar.gz").to_string_lossy().into_owned();
    let failed = run_sensor(&lab.edge.netns, &[], &["support", "-o", &on_it, "--socket", &socket]);
    let left = std::fs::read_dir(&full).map_err(Into::into).must("look").count();
    output(Command::new("umount").arg(&full)).must("unmount");
    assert_eq!(failed.status.code(), Some(1));
    assert!(text(&failed.stderr).contains("No space left"), "{}", text(&failed.stderr));
    assert_eq!(left, 1, "something is left on the full disk");
}
