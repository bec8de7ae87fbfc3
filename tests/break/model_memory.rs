//! A large model is loaded where there is little memory: the process that checks it may be killed, the agent must not
//! be, and whoever asked must hear why.

use std::process::Command;
use std::time::Duration;

use sensor_tests::agent::binary;
use sensor_tests::cgroup::MemoryGroup;
use sensor_tests::checks::{Must as _, text, wait_for};
use sensor_tests::netns::NetNs;
use sensor_tests::onnx::model;
use sensor_tests::process::ChildGuard;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

const MIB: u64 = 1 << 20;

/// A sound model whose file has 59 MiB: most of it is a description (ModelProto.doc_string, field 6 of onnx.proto).
fn large() -> Vec<u8> {
    let mut file = model("large", 200.0, &[]);
    let length = 59 << 20;
    file.push(6 << 3 | 2);
    let mut rest = length;
    while rest >= 0x80 {
        file.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    file.push(rest as u8);
    file.resize(file.len() + length, b'x');
    file
}

#[test]
fn a_model_too_large_for_the_memory_there_is_ends_its_check_and_not_the_agent() {
    let edge = NetNs::new("edge").must("make a namespace");
    edge.ip("link add eth0 type veth peer name other0").must("make a pair");
    let folder = tempfile::tempdir().map_err(Into::into).must("make a directory");
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    std::fs::write(path("small.onnx"), model("small", 200.0, &[])).map_err(Into::into).must("write a model");
    std::fs::write(path("large.onnx"), large()).map_err(Into::into).must("write a model");
    // Not `ip netns exec`, which hides the control groups from what it runs.
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", edge.path().display())).arg(binary().must("find the binary"));
    command.args(["run", "-i", "eth0", "--pins", "", "--metrics-listen", "", "--model", &path("small.onnx")]);
    command.args(["--socket", &path("socket"), "--state-dir", &path("state")]);
    let log = folder.path().join("log");
    let mut agent = ChildGuard::spawn("sensor", &mut command, Some(&log)).must("start the agent");
    wait_for("it is ready", PATIENCE, || agent.log().contains("ready"));
    let ask = |words: &[&str]| {
        let mut command = Command::new(binary().must("find the binary"));
        command.args(words).args(["--socket", &path("socket")]);
        let output = command.output().map_err(Into::into).must("run sensor");
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let name = || {
        let (_, status, _) = ask(&["status", "--json"]);
        serde_json::from_str::<Value>(&status).expect("the status")["model"]["name"].clone()
    };
    let group = MemoryGroup::new().must("make a memory group");
    group.add(agent.pid()).must("move the agent into it");
    let mut refused = 0;
    // What the agent has already is charged elsewhere, so these are what it may take beyond that.
    for mib in [40, 80, 100, 120, 150, 200, 2_000] {
        group.limit(mib * MIB).must("leave it little memory");
        let (done, _, said) = ask(&["model", "load", &path("large.onnx")]);
        eprintln!("{mib} MiB: {done}, {said}");
        assert!(agent.is_running(), "{mib} MiB: the agent was killed: {}", agent.log());
        assert!(done || said.contains("memory"), "{mib} MiB: {said}");
        assert_eq!(name(), if done { "large" } else { "small" }, "{mib} MiB");
        refused += usize::from(!done);
        if done {
            break;
        }
    }
    assert!(refused >= 2, "the file alone takes more than 80 MiB in two processes");
    assert_eq!(name(), "large", "with memory enough it is loaded");
    assert!(agent.stop().must("stop the agent").success(), "{}", agent.log());
}
