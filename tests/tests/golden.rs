//! Golden captures: each holds one thing that other tools get wrong, and its values were computed by hand.
//!
//! tests/golden/make.py makes the captures; tests/golden/expected/NAME.toml says what each must give and why. Values are
//! compared exactly, in every view and on every path that can run here; a difference is printed as capture, flow,
//! feature, expected, got.

use std::fmt::{Display, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::ValueEnum as _;
use sensor::replay::capture::Capture;
use sensor::replay::{ExtractOptions, View, run};
use sensor_common::counter::Cause;
use sensor_common::features::{FEATURES, Sample};
use sensor_common::flow::FlowRecord;
use sensor_common::packet::{self, Captured};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn capture(name: &str) -> PathBuf {
    folder().join("captures").join(name).with_extension("pcap")
}

/// What a capture must give.
struct Golden {
    name: String,
    packets: u64,
    refused: toml::Table,
    timeout_s: Option<u64>,
    gso: Option<toml::Table>,
    flows: Vec<Flow>,
}

/// What one flow of it must give. Flows of one tuple stand in the order in which they start.
struct Flow {
    ends: (SocketAddr, SocketAddr),
    protocol: u64,
    /// View → column → value.
    views: toml::Table,
}

impl Flow {
    fn name(&self) -> String {
        format!("{} → {} protocol {}", self.ends.0, self.ends.1, self.protocol)
    }
}

fn golden(path: &Path) -> Golden {
    let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
    let text = std::fs::read_to_string(path).expect("expected values");
    let mut file: toml::Table = text.parse().unwrap_or_else(|error| panic!("{name}: {error}"));
    let toml::Value::Array(flows) = file.remove("flow").expect("flows") else { panic!("{name}: flow is no list") };
    let flows = flows.into_iter().map(|flow| {
        let toml::Value::Table(mut flow) = flow else { panic!("{name}: a flow is no table") };
        let mut end = |key: &str| {
            let text = flow.remove(key).expect(key);
            text.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{name}: {key} = {text}"))
        };
        let ends = (end("src"), end("dst"));
        let protocol = flow.remove("protocol").and_then(|number| number.as_integer()).expect("protocol") as u64;
        Flow { ends, protocol, views: flow }
    });
    let mut table = |key: &str| match file.remove(key) {
        None => None,
        Some(toml::Value::Table(table)) => Some(table),
        Some(other) => panic!("{name}: {key} = {other}"),
    };
    let (flows, refused, gso) = (flows.collect(), table("refused").unwrap_or_default(), table("gso"));
    let mut number = |key: &str| file.remove(key).map(|value| value.as_integer().expect("a number") as u64);
    let (packets, timeout_s) = (number("packets").expect("packets"), number("timeout_s"));
    assert!(file.is_empty(), "{name}: what is {file}?");
    Golden { name, packets, refused, timeout_s, gso, flows }
}

fn all() -> Vec<Golden> {
    let files = std::fs::read_dir(folder().join("expected")).expect("expected values");
    let mut paths: Vec<_> = files.map(|file| file.expect("file").path()).collect();
    paths.sort();
    paths.iter().map(|path| golden(path)).collect()
}

fn number(value: &toml::Value) -> f64 {
    value.as_float().or(value.as_integer().map(|whole| whole as f64)).expect("a number")
}

/// The same number, or both missing.
fn same(a: f64, b: f64) -> bool {
    a == b || a.is_nan() && b.is_nan()
}

/// Whether a cell holds this number, or this list of them; an empty one holds none.
fn cell_is(text: &str, expected: &toml::Value) -> bool {
    let parsed = |text: &str| if text.is_empty() { f64::NAN } else { text.parse().expect("a number") };
    match expected {
        toml::Value::Array(list) => {
            let got: Vec<f64> = text.trim_matches(['[', ']']).split(", ").map(parsed).collect();
            got.len() == list.len() && got.iter().zip(list).all(|(got, expected)| same(*got, number(expected)))
        }
        expected => same(parsed(text), number(expected)),
    }
}

/// Columns of a view that say which flow a row is of: initiator's address and port, responder's, protocol.
fn identity(view: View) -> [&'static str; 5] {
    match view {
        View::Sensor => ["src", "sport", "dst", "dport", "protocol"],
        View::CicFlowMeter => ["Src IP", "Src Port", "Dst IP", "Dst Port", "Protocol"],
        View::NfStream => ["src_ip", "src_port", "dst_ip", "dst_port", "protocol"],
    }
}

/// Rows of a view as CSV.
struct Rows {
    header: csv::StringRecord,
    rows: Vec<csv::StringRecord>,
}

impl Rows {
    fn cell<'a>(&self, row: &'a csv::StringRecord, column: &str) -> Option<&'a str> {
        self.header.iter().position(|name| name == column).and_then(|position| row.get(position))
    }

    /// Takes the first row of a flow out.
    fn take(&mut self, view: View, golden: &Golden, flow: &Flow) -> Option<csv::StringRecord> {
        let end = |end: SocketAddr| [end.ip().to_string(), end.port().to_string()];
        let [[src, sport], [dst, dport]] = [end(flow.ends.0), end(flow.ends.1)];
        let wanted = [src, sport, dst, dport, flow.protocol.to_string()];
        let file = format!("{}.pcap", golden.name);
        let is = |row| {
            identity(view).iter().zip(&wanted).all(|(column, value)| self.cell(row, column) == Some(value))
                && self.cell(row, "capture").is_none_or(|path| Path::new(path).ends_with(&file))
        };
        let found = self.rows.iter().position(is)?;
        Some(self.rows.remove(found))
    }
}

/// Compares one view of captures that have the same timeouts; what differs goes to `differences`, a line each. The number
/// of values compared.
fn compare(goldens: &[&Golden], view: View, kernel: bool, differences: &mut String) -> usize {
    let timeout = goldens[0].timeout_s.map(Duration::from_secs);
    let options = ExtractOptions {
        captures: goldens.iter().map(|golden| capture(&golden.name)).collect(),
        view,
        kernel,
        idle_timeout: timeout,
        active_timeout: timeout,
        ..ExtractOptions::default()
    };
    let (mut output, mut report) = (Vec::new(), Vec::new());
    let totals = run(&options, Box::new(&mut output), &mut report).expect("readable");
    let mut say = |golden: &str, flow: &str, feature: &str, expected: &dyn Display, got: &dyn Display| {
        let _ = writeln!(differences, "{golden} | {flow} | {feature} | {expected} | {got}");
    };
    let names = goldens.iter().map(|golden| golden.name.as_str()).collect::<Vec<_>>().join(" ");
    for cause in Cause::ALL {
        let of = |golden: &&Golden| golden.refused.get(cause.name()).map_or(0, |count| number(count) as u64);
        let (expected, got) = (goldens.iter().map(of).sum::<u64>(), totals.refused[cause as usize]);
        if got != expected {
            say(&names, "", &format!("refused as {}", cause.name()), &expected, &got);
        }
    }
    let expected = goldens.iter().map(|golden| golden.packets).sum::<u64>();
    if totals.packets != expected {
        say(&names, "", "packets", &expected, &totals.packets);
    }
    let mut reader = csv::Reader::from_reader(&output[..]);
    let header = reader.headers().expect("header").clone();
    let mut rows = Rows { header, rows: reader.records().map(|row| row.expect("row")).collect() };
    let view_name = name(view);
    let mut compared = 0;
    for golden in goldens {
        for flow in &golden.flows {
            let Some(row) = rows.take(view, golden, flow) else {
                say(&golden.name, &flow.name(), "row", &"one", &"none");
                continue;
            };
            let Some(toml::Value::Table(values)) = flow.views.get(&view_name) else { continue };
            for (feature, expected) in values {
                compared += 1;
                let Some(text) = rows.cell(&row, feature) else {
                    say(&golden.name, &flow.name(), feature, expected, &"no such column");
                    continue;
                };
                if !cell_is(text, expected) {
                    say(&golden.name, &flow.name(), feature, expected, &text);
                }
            }
        }
    }
    for row in &rows.rows {
        say("", &row.iter().take(9).collect::<Vec<_>>().join(" "), "row", &"none", &"one");
    }
    compared
}

/// The view's name on the command line.
fn name(view: View) -> String {
    view.to_possible_value().expect("not hidden").get_name().to_owned()
}

/// Compares a view of every capture that has values for it.
fn compare_all(view: View, kernel: bool, at_least: usize) {
    let mut differences = String::new();
    let all = all();
    let has_values = |golden: &&Golden| golden.flows.iter().any(|flow| flow.views.contains_key(&name(view)));
    let (usual, others): (Vec<_>, Vec<_>) =
        all.iter().filter(has_values).partition(|golden| golden.timeout_s.is_none());
    let mut compared = 0;
    // The programs are loaded once for a list; on the host, what differs is told by capture.
    let size = if kernel { usual.len() } else { 1 };
    for goldens in usual.chunks(size).chain(others.chunks(1)) {
        compared += compare(goldens, view, kernel, &mut differences);
    }
    assert!(differences.is_empty(), "capture | flow | feature | expected | got\n{differences}");
    println!("{}: {compared} values are as computed by hand", name(view));
    assert!(compared >= at_least, "only {compared} values");
}

#[test]
fn values_computed_by_hand() {
    compare_all(View::Sensor, false, 600);
}

#[test]
fn values_computed_by_hand_under_the_names_of_cicflowmeter() {
    compare_all(View::CicFlowMeter, false, 100);
}

#[test]
fn values_computed_by_hand_under_the_names_of_nfstream() {
    compare_all(View::NfStream, false, 100);
}

#[test]
fn values_computed_by_hand_through_the_kernel() {
    compare_all(View::Sensor, true, 600);
}

/// Frames of a capture with the time of each.
fn frames(path: &Path) -> Vec<(u64, Vec<u8>)> {
    let mut capture = Capture::open(std::fs::File::open(path).expect("a capture")).expect("a capture");
    let mut frames = Vec::new();
    while let Some(frame) = capture.read().expect("whole") {
        frames.push((frame.time_ns, frame.bytes.to_vec()));
    }
    frames
}

/// A frame as a hook sees it under segmentation offload.
#[derive(Clone, Copy)]
struct Super<'a> {
    frame: Captured<'a>,
    segments: u32,
    size: u32,
}

impl<'a> packet::Frame for Super<'a> {
    type Window = &'a [u8];
    fn window(self, offset: u32, len: u32) -> Option<&'a [u8]> {
        self.frame.window(offset, len)
    }
    fn wire_len(self) -> u32 {
        self.frame.wire_len
    }
    fn segments(self) -> (u32, u32) {
        (self.segments, self.size)
    }
}

/// The one flow's record of a capture, where frame `gso.0` (from 1) stands for `gso.1` segments of `gso.2` bytes.
fn record(name: &str, gso: (usize, u32, u32)) -> FlowRecord {
    let mut record = FlowRecord::zeroed();
    for (number, (time_ns, bytes)) in frames(&capture(name)).into_iter().enumerate() {
        let frame = Captured { bytes: &bytes, wire_len: bytes.len() as u32 };
        let (segments, size) = if number + 1 == gso.0 { (gso.1, gso.2) } else { (1, 0) };
        let packet = packet::parse(Super { frame, segments, size }).expect("well-formed");
        if number == 0 {
            record.start(&packet, time_ns, 0, 1);
        }
        record.update(&packet, time_ns);
    }
    record
}

#[test]
fn a_super_packet_counts_as_its_segments() {
    let mut compared = 0;
    for golden in all() {
        let Some(gso) = golden.gso else { continue };
        let figure = |key: &str| gso[key].as_integer().expect("a number") as u32;
        let on = record(&golden.name, (figure("frame") as usize, figure("segments"), figure("size")));
        let off = record(gso["equals"].as_str().expect("a name"), (0, 1, 0));
        assert!(on.frames() < off.frames() && on.packets() == off.packets());
        for feature in FEATURES {
            // Frames are fewer: what is kept by frame, its time, its order and its link header, is another thing. All other
            // sums are equal.
            if ["inter-arrival", "first-n"].contains(&feature.group)
                || ["frames", "frame_bytes"].contains(&feature.name)
            {
                continue;
            }
            let (on, off) = (feature.value(&Sample::of(&on)), feature.value(&Sample::of(&off)));
            assert!(same(on, off), "{} | {} | {off} on the wire | {on} as a super-packet", golden.name, feature.name);
            compared += 1;
        }
    }
    assert!(compared > 60, "only {compared} features");
}

#[test]
fn committed_captures_are_what_the_script_makes() {
    let made = Command::new("python3").arg(folder().join("make.py")).arg("--check").output().expect("python3 runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
