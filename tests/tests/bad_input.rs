//! Starts that must fail: one line that says what to do, an exit code, nothing attached, and an agent that runs already
//! is not disturbed. Needs root.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use sensor::bpf::load::{Kernel, LoadOptions};
use sensor_tests::agent::{Agent, binary};
use sensor_tests::checks::{Must as _, assert_clean, assert_refused, has_xdp, run_sensor, shipped_model};
use sensor_tests::netns::NetNs;
use tempfile::TempDir;

/// A namespace with two interfaces and a directory for files.
struct Place {
    netns: NetNs,
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        let netns = NetNs::new("edge").must("make a namespace");
        netns.ip("link add eth0 type veth peer name eth1").must("make interfaces");
        for device in ["eth0", "eth1"] {
            netns.ip(&format!("link set {device} up")).must("set an interface up");
        }
        Self { netns, directory: TempDir::new().map_err(Into::into).must("make a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        std::fs::write(self.path(name), content).map_err(Into::into).must("write a file");
        self.path(name).to_string_lossy().into_owned()
    }

    /// `sensor run` with `args` (and a socket of its own) must fail with exit code 1 and a line that holds `words`, and
    /// leave no socket and no program behind.
    #[track_caller]
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let socket = self.path("own.sock");
        let text = socket.to_string_lossy();
        let output = run_sensor(&self.netns, &[], &[&["run", "--pins", "", "--socket", &text], args].concat());
        assert_refused(&output, 1, words);
        assert!(!socket.exists(), "the control socket is left behind");
    }

    #[track_caller]
    fn is_clean(&self) {
        for device in ["eth0", "eth1"] {
            assert_clean(&self.netns, device);
        }
    }
}

#[test]
fn a_missing_interface_is_named_with_those_there_are() {
    let place = Place::new();
    place.refuses(&["-i", "nope0", "--model", ""], &["no interface", "nope0", "eth0, eth1, lo"]);
    // The first of the two exists, and is let go again.
    place.refuses(&["-i", "eth0", "-i", "nope0", "--model", ""], &["no interface", "nope0"]);
    place.is_clean();
}

#[test]
fn without_privileges_it_says_which_are_missing() {
    let place = Place::new();
    // Where others may go, which a home directory or a temporary one is not.
    let copy = std::env::temp_dir().join(format!("sensor-unprivileged-{}", std::process::id()));
    std::fs::copy(binary().must("find the binary"), &copy).map_err(Into::into).must("copy the binary");
    let _removed = RemoveOnDrop(&copy);
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).map_err(Into::into).must("make it run");
    let copy = copy.to_string_lossy();
    let prefix = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", &*copy];
    let output = run_sensor(&place.netns, &prefix, &["run", "-i", "eth0", "--model", "", "--pins", ""]);
    assert_refused(&output, 1, &["needs root", "CAP_BPF", "CAP_NET_ADMIN", "sudo", "sensor doctor"]);
    place.is_clean();
}

struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(self.0);
    }
}

/// The shipped model with `find` replaced by `by`, of the same length, where it first occurs after `after`.
fn edited(after: &[u8], find: &[u8], by: &[u8]) -> Vec<u8> {
    let mut bytes = std::fs::read(shipped_model()).map_err(Into::into).must("read the model");
    let position = |bytes: &[u8], word: &[u8], from: usize| {
        let at = bytes[from..].windows(word.len()).position(|window| window == word);
        from + at.unwrap_or_else(|| panic!("{} is not in the model", String::from_utf8_lossy(word)))
    };
    let start = position(&bytes, after, 0);
    let at = position(&bytes, find, start);
    assert_eq!(find.len(), by.len());
    bytes[at..at + find.len()].copy_from_slice(by);
    bytes
}

#[test]
fn a_model_that_cannot_be_used_stops_the_start() {
    let place = Place::new();
    let refuses = |model: &str, words: &[&str]| {
        place.refuses(&["-i", "eth0", "--mode", "enforce", "--model", model], words);
    };
    refuses("/nowhere/model.onnx", &["no model at /nowhere/model.onnx", "--model FILE"]);
    let whole = std::fs::read(shipped_model()).map_err(Into::into).must("read the model");
    refuses(&place.write("cut.onnx", &whole[..whole.len() / 2]), &["cut.onnx", "cut short"]);
    refuses(&place.write("empty.onnx", []), &["empty.onnx", "cut short"]);
    refuses(&place.write("text.onnx", "this is no model\n"), &["text.onnx", "not an ONNX"]);
    let renamed = edited(b"sensor.features", b"\"reset_early\"", b"\"reset_earlx\"");
    let words = ["renamed.onnx", "\"reset_earlx\"", "did you mean \"reset_early\"", "sensor features"];
    refuses(&place.write("renamed.onnx", renamed), &words);
    let foreign = edited(b"sensor.kind", b"classifier", b"classifies");
    refuses(&place.write("kind.onnx", foreign), &["kind.onnx", "classifies"]);
    // What the file promises is not what the graph computes.
    let promises = edited(b"sensor.golden_outputs", b"[[0.9", b"[[0.1");
    refuses(&place.write("golden.onnx", promises), &["golden.onnx", "golden row 0", "same weights"]);
    place.is_clean();
}

#[test]
fn a_typo_in_the_configuration_is_found_by_its_line() {
    let place = Place::new();
    let typo = place.write("typo.toml", "mode = \"observe\"\n\n[agent]\nlaese = \"5s\"\n");
    place.refuses(&["-i", "eth0", "--config", &typo], &["typo.toml:4", "unknown field", "laese", "`lease`"]);
    let value = place.write("value.toml", "mode = \"observ\"\n");
    place.refuses(&["-i", "eth0", "--config", &value], &["value.toml:1", "observ", "enforce"]);
    let range = place.write("range.toml", "[agent]\nlease = \"100ms\"\n");
    place.refuses(&["-i", "eth0", "--config", &range], &["range.toml", "agent.lease", "five times"]);
    let address = ["-i", "eth0", "--model", "", "--metrics-listen", "9469"];
    place.refuses(&address, &["--metrics-listen", "127.0.0.1:9469"]);
    place.refuses(&["-i", "eth0", "--config", "/nowhere.toml"], &["/nowhere.toml"]);
    place.is_clean();
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let place = Place::new();
    for (args, word) in [
        (&["run", "-i", "eth0", "--mode", "enforec"][..], "enforce"),
        (&["run", "--nonsense"][..], "--nonsense"),
        (&["run", "--poll-interval", "soon"][..], "soon"),
    ] {
        let output = run_sensor(&place.netns, &[], args);
        let stderr = sensor_tests::checks::text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(word), "{stderr}");
    }
    place.is_clean();
}

#[test]
fn a_second_agent_is_refused_and_the_first_goes_on() {
    let place = Place::new();
    let first = Agent::start(&place.netns, &["-i", "eth0", "--model", ""]).must("start the first agent");
    let socket = first.socket().to_string_lossy().into_owned();

    let output =
        run_sensor(&place.netns, &[], &["run", "-i", "eth1", "--model", "", "--pins", "", "--socket", &socket]);
    assert_refused(&output, 1, &["another sensor agent is running with this socket", "pid", &socket]);
    // The harness's agent listens on 9469.
    let taken = ["-i", "eth1", "--model", "", "--metrics-listen", "127.0.0.1:9469"];
    place.refuses(&taken, &["127.0.0.1:9469", "in use", "--metrics-listen"]);
    let second = "another sensor agent watches eth0 already";
    for xdp_mode in ["native", "generic", "tc", "auto"] {
        let same = ["-i", "eth0", "--model", "", "--metrics-listen", "127.0.0.1:9470", "--xdp-mode", xdp_mode];
        place.refuses(&same, &[second, "--takeover"]);
    }
    // eth1 is free, and is let go when eth0 is refused.
    let both = ["-i", "eth1", "-i", "eth0", "--model", "", "--metrics-listen", ""];
    place.refuses(&both, &[second]);
    assert_clean(&place.netns, "eth1");

    assert!(has_xdp(&place.netns, "eth0"), "the first agent's program was taken off");
    assert_eq!(first.status().must("ask the first agent")["interfaces"][0]["name"], "eth0");
    first.stop().must("stop the first agent");
    place.is_clean();
}

#[test]
fn an_xdp_program_of_someone_else_stays() {
    let place = Place::new();
    for choice in [sensor::config::XdpMode::Generic, sensor::config::XdpMode::Native] {
        let entered = place.netns.enter().must("enter the namespace");
        let mut other = Kernel::load(&LoadOptions::default()).must("load a program");
        let attached = other.attach("eth0", choice, false).must("attach it");
        drop(entered);
        let before = place.netns.ip("-d link show dev eth0").must("look at the device");
        let args = ["-i", "eth0", "--model", "", "--xdp-mode", "native"];
        place.refuses(&args, &["eth0 already has an XDP program", "another tool"]);
        let after = place.netns.ip("-d link show dev eth0").must("look at the device");
        assert_eq!(before, after);
        place.netns.within(|| other.detach(attached)).must("enter the namespace").must("detach it");
        place.is_clean();
    }
}

#[test]
fn a_path_that_is_no_socket_is_left_alone() {
    let place = Place::new();
    let path = place.write("notes.txt", "mine");
    let output = run_sensor(&place.netns, &[], &["run", "-i", "eth0", "--model", "", "--pins", "", "--socket", &path]);
    assert_refused(&output, 1, &["not a socket", "notes.txt"]);
    assert_eq!(std::fs::read(&path).map_err(Into::into).must("read the file"), b"mine");
    let output = run_sensor(&place.netns, &[], &["status", "--socket", "/nowhere.sock"]);
    assert_refused(&output, 1, &["no agent answers at /nowhere.sock", "sensor run"]);
    place.is_clean();
}
