//! Nobody reads what the agent writes, or nothing can be written: a pager, a collector that is stuck, a full disk. The
//! agent goes on, holds its verdicts, counts what was lost and ends when it is told to; commands end with an error, or
//! quietly.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write as _, pipe};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sensor_tests::agent::{Agent, binary};
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::process::output;
use sensor_tests::topology::{EDGE_V4, HostSpec, Lab, LabSpec, UPLINK};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(15);
/// What the agent may take to end: its usual time, and some seconds that it waits for its last lines.
const ENDS: Duration = Duration::from_secs(8);
const PAGE: usize = 4_096;
/// Pages that a pipe has.
const PIPE: usize = 16;

fn full() -> File {
    File::options().write(true).open("/dev/full").map_err(Into::into).must("open /dev/full")
}

/// A pipe with so many full pages.
fn filled(pages: usize) -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().map_err(Into::into).must("a pipe");
    writer.write_all(&vec![b'x'; pages * PAGE]).map_err(Into::into).must("fill the pipe");
    (reader, writer)
}

fn lab() -> Lab {
    Lab::build(&LabSpec { clients: vec![HostSpec::default()], ..LabSpec::default() }).must("build the hosts")
}

fn pings(lab: &Lab) -> bool {
    let mut ping = lab.clients[0].netns.command("ping");
    output(ping.args(["-q", "-c", "2", "-i", "0.05", "-W", "1", &EDGE_V4.to_string()])).is_ok()
}

/// A configuration file that protects so many addresses that a change of them makes a log line longer than a pipe takes
/// at once.
fn write_config(folder: &TempDir, addresses: u32) -> String {
    let path = folder.path().join("sensor.toml");
    let list: Vec<_> = (1..=addresses).map(|n| format!("\"2001:db8:aaaa:bbbb:cccc:dddd:eeee:{n:x}/128\"")).collect();
    let text = format!("mode = \"enforce\"\n[policy]\nnever_drop = [{}]\n[audit]\nstdout = true\n", list.join(", "));
    std::fs::write(&path, text).map_err(Into::into).must("write the configuration");
    path.to_string_lossy().into_owned()
}

fn hash(agent: &Agent) -> String {
    agent.status().must("ask for the status")["config"]["hash"].to_string()
}

/// Has it say a long line.
fn reload(agent: &Agent, folder: &TempDir, addresses: u32) {
    let before = hash(agent);
    write_config(folder, addresses);
    agent.kill(Signal::HUP).must("ask for a reload");
    wait_for("the configuration is taken", PATIENCE, || hash(agent) != before);
}

#[test]
fn a_pipe_that_nobody_reads_stops_nothing() {
    let (lab, folder) = (lab(), TempDir::with_prefix("sensor-break-").map_err(Into::into).must("a directory"));
    let config = write_config(&folder, 10);
    // Two pages are left on standard error: the lines of the start fit, and then a long one does not. On standard
    // output nothing does.
    let (_unread, stderr) = filled(PIPE - 2);
    let (_unread_too, stdout) = filled(PIPE);
    let args = ["-i", UPLINK, "--config", &config, "--model", "", "--summary"];
    let agent = Agent::start_into(&lab.edge.netns, &args, stdout, stderr).must("start the agent");
    let client = lab.clients[0].v4[0].to_string();
    agent.ask_json(&["verdicts", "add", "drop", &client, "--for", "1h"]).must("block the client");
    assert!(!pings(&lab), "the verdict holds");
    for addresses in [300, 20, 300] {
        reload(&agent, &folder, addresses);
    }
    let status = agent.status().must("ask for the status");
    assert_eq!(status["lease"]["state"], "active");
    assert!(!pings(&lab), "it still holds");
    let begun = Instant::now();
    agent.stop().must("it ends with success");
    assert!(begun.elapsed() < ENDS, "{:?}", begun.elapsed());
    println!(
        "a pipe that nobody reads: three reloads answered, the client stays blocked, ended in {:?}",
        begun.elapsed()
    );
}

#[test]
fn what_cannot_be_written_is_lost_and_counted() {
    let lab = lab();
    let gone = || {
        let (reader, writer): (PipeReader, _) = pipe().map_err(Into::into).must("a pipe");
        drop(reader);
        Stdio::from(writer)
    };
    for (name, [stdout, stderr]) in
        [("a full disk", [full().into(), full().into()]), ("a reader that has gone", [gone(), gone()])]
    {
        let folder = TempDir::with_prefix("sensor-break-").map_err(Into::into).must("a directory");
        let config = write_config(&folder, 10);
        let args = ["-i", UPLINK, "--config", &config, "--model", "", "--summary"];
        let agent = Agent::start_into(&lab.edge.netns, &args, stdout, stderr).must("start the agent");
        reload(&agent, &folder, 20);
        let lost = |metric: &str, labels: &[(&str, &str)]| agent.metrics().must("scrape").sum(metric, labels);
        let log = "sensor_log_lost_lines_total";
        wait_for("all that was lost is counted", PATIENCE, || {
            lost(log, &[("sink", "stderr")]) >= 3.0
                && lost(log, &[("sink", "stdout")]) >= 1.0
                && lost("sensor_audit_lost_lines_total", &[]) >= 2.0
        });
        println!("{name}: {} log lines lost and counted", lost(log, &[]));
        agent.stop().must("it ends with success");
    }
}

/// How `sensor WORDS` ends, and what it says on standard error.
fn command(words: &[&str], stdout: Stdio) -> (Option<i32>, String) {
    let mut command = Command::new(binary().must("find the binary"));
    let out = command.args(words).stdin(Stdio::null()).stdout(stdout).output().map_err(Into::into).must("run it");
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn commands_end_quietly_without_a_reader_and_with_an_error_on_a_full_disk() {
    for words in [
        &["--help"][..],
        &["--version"],
        &["features"],
        &["metrics", "--format", "json"],
        &["config"],
        &["config", "--default"],
        &["doctor", "-i", "lo", "--json"],
        &["extract", "--help"],
    ] {
        let usual = command(words, Stdio::null()).0;
        let (reader, writer) = pipe().map_err(Into::into).must("a pipe");
        drop(reader);
        let (code, said) = command(words, writer.into());
        assert_eq!((code, said.as_str()), (usual, ""), "{words:?} without a reader");
        let (code, said) = command(words, full().into());
        assert_eq!(code, Some(1), "{words:?} on a full disk: {said}");
        assert!(said.contains("standard output") && !said.contains("panicked"), "{words:?}: {said}");
    }
    // Whatever nobody reads or takes on standard error changes nothing.
    let mut wrong = Command::new(binary().must("find the binary"));
    let status =
        wrong.args(["status", "--socket", "/nowhere"]).stderr(full()).status().map_err(Into::into).must("run it");
    assert_eq!(status.code(), Some(1));
}
