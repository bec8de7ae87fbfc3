//! One parser, one record update, two machines: on every capture there is, the programs in the kernel (by test run) and
//! native code have the same integers. Needs root.

use std::path::{Path, PathBuf};

use sensor::replay::{ExtractOptions, run};
use sensor_common::packet::Options;
use sensor_tests::differences::Difference;
use sensor_tests::frames::Frame;
use sensor_tests::live::{Clock, Crossing, Way, Wire};
use sensor_tests::parity::{Outcome, Parity, SETTINGS, captures};
use sensor_tests::rng::Rng;

const SECOND_NS: u64 = 1_000_000_000;

/// The smallest table: captures with more flows have to make do with it, too.
fn parity() -> Parity {
    Parity::load(0, Options::NONE).expect("programs load (as root, on kernel 6.1 or newer)")
}

/// All captures there are, and whether they are more than the few that are part of the project.
fn all_captures() -> (Vec<PathBuf>, bool) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("SENSOR_CAPTURES").map_or_else(|| here.join("../../shared/captures"), PathBuf::from);
    let files = if folder.is_dir() { captures(std::slice::from_ref(&folder)).unwrap_or_default() } else { Vec::new() };
    if !files.is_empty() {
        return (files, true);
    }
    println!(
        "no captures at {} (set SENSOR_CAPTURES to a folder of them): comparing those of tests/golden only",
        folder.display()
    );
    (captures(&[here.join("golden/captures")]).expect("captures of the project"), false)
}

#[test]
fn every_capture_gives_the_same_integers_in_the_kernel_and_natively() {
    let (files, _) = all_captures();
    for (setting, options) in SETTINGS {
        let mut parity = Parity::load(0, options).expect("programs load");
        let mut all = Outcome::default();
        for file in &files {
            let outcome = parity.capture(file).unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
            for mismatch in &outcome.described {
                println!("{}: {mismatch}", file.display());
            }
            if let Some(reason) = &outcome.stopped {
                println!("{}: compared up to packet {}: {reason}", file.display(), outcome.packets);
            }
            all.add(&outcome);
        }
        println!("{setting}: {} files: {all}", files.len());
        assert!(all.packets > 0, "no capture can be read");
        assert_eq!(all.mismatches, 0, "mismatches are printed above");
    }
}

/// Frames of each capture that cross a wire here; `cargo xtask parity --live` takes all.
const CROSSING: u64 = 60;

/// The first frames of every `nth` capture, over a veth pair to the programs at their real hooks.
fn cross(way: Way, clock: Clock, nth: usize) {
    let (files, many) = all_captures();
    for (setting, options) in SETTINGS {
        let mut wire = Wire::new(way, clock, options).expect("a veth pair with the programs (as root)");
        let mut all = Crossing::default();
        for file in files.iter().step_by(if many { nth } else { 1 }) {
            let crossing = wire.capture(file, CROSSING).unwrap_or_else(|error| panic!("{}: {error:#}", file.display()));
            for Difference { field, left, right } in &crossing.differences {
                println!("{}: {field}: kernel {left}, native {right}", file.display());
            }
            all.add(&crossing);
        }
        println!("{}, {clock:?} clock, {setting}: {all}", way.name());
        assert!(all.frames > 100, "{all}");
        assert!(all.differences.is_empty(), "differences are printed above");
    }
}

#[test]
fn captures_on_a_wire_give_the_same_integers_at_native_xdp() {
    cross(Way::Native, Clock::Replay, 2);
}

#[test]
fn captures_on_a_wire_give_the_same_integers_at_generic_xdp() {
    cross(Way::Generic, Clock::Replay, 5);
}

#[test]
fn captures_on_a_wire_give_the_same_integers_at_tc_ingress() {
    cross(Way::Stack, Clock::Replay, 2);
}

#[test]
fn captures_on_a_wire_give_the_same_integers_at_tc_egress() {
    cross(Way::Egress, Clock::Replay, 5);
}

/// Times too: native code counts at the times that the kernel took.
#[test]
fn captures_on_a_wire_give_the_same_integers_under_the_kernels_clock() {
    cross(Way::Native, Clock::Kernel, 5);
}

/// Many times the flows that the table holds: each keeps its one record.
#[test]
fn flows_without_a_place_in_the_table_lose_nothing() {
    let mut rng = Rng::new(0x10ad);
    let mut frames = Vec::new();
    for number in 0..60_000u64 {
        let (host, port) = (rng.range(0..60), 1 + rng.range(0..1000));
        let client = format!("198.18.0.{host}:{port}").parse().expect("address");
        let server = "198.19.0.1:53".parse().expect("address");
        let frame = if rng.one_in(3) { Frame::udp(server, client) } else { Frame::udp(client, server) };
        frames.push((SECOND_NS + number * 100_000, frame.payload(rng.range(0..100) as usize).build()));
    }
    let outcome = parity().frames(frames.iter().map(|(time, frame)| (*time, &frame[..]))).expect("a run");
    assert_eq!(outcome.described, []);
    assert!(outcome.flows > 30_000 && outcome.packets == 60_000, "{outcome}");
}

/// The comparison can fail: the same frames under clocks that differ.
#[test]
fn a_difference_is_named() {
    let frame = Frame::udp("198.18.0.1:9".parse().expect("address"), "198.18.0.2:9".parse().expect("address")).build();
    let mut parity = parity();
    parity.skew_ns(7);
    let outcome = parity.frames([(SECOND_NS, &frame[..]), (2 * SECOND_NS, &frame[..])]).expect("a run");
    let fields: Vec<_> = outcome.described.iter().map(|one| one.field.as_str()).collect();
    assert!(fields.contains(&"first_ns") && fields.contains(&"directions[0].last_ns"), "{fields:?}");
    let first = &outcome.described[0];
    assert!(first.flow.starts_with("198.18.0.1:9 > 198.18.0.2:9 protocol 17"), "{first}");
}

/// `sensor extract` and `sensor extract --kernel`: the same bytes.
#[test]
fn extract_writes_the_same_rows_with_and_without_the_kernel() {
    let (all, many) = all_captures();
    // Of many one in twenty, in the folder's order: every origin, and link types that are not Ethernet. The hostile files of one
    // origin claim lengths that no test run takes: they are compared above.
    let hostile = |path: &PathBuf| path.to_string_lossy().contains("/tcpdump/");
    let files: Vec<PathBuf> =
        all.into_iter().filter(|path| !hostile(path)).step_by(if many { 20 } else { 1 }).collect();
    let extract = |kernel: bool| {
        let options =
            ExtractOptions { captures: files.clone(), snapshots: vec![2, 8, 64], kernel, ..ExtractOptions::default() };
        let (mut rows, mut report) = (Vec::new(), Vec::new());
        // Files that are no captures, or damaged ones, are an error at the end.
        let outcome = run(&options, Box::new(&mut rows), &mut report).map_err(|error| format!("{error:#}"));
        (String::from_utf8(rows).expect("text"), String::from_utf8(report).expect("text"), outcome)
    };
    let ((native, reported, outcome), (kernel, reported_too, outcome_too)) = (extract(false), extract(true));
    println!("{} rows; {}", native.lines().count(), reported.lines().last().unwrap_or_default());
    assert!(native.lines().count() > if many { 1000 } else { 20 }, "{reported}");
    for (number, (native, kernel)) in native.lines().zip(kernel.lines()).enumerate() {
        assert_eq!(native, kernel, "row {number}: native (left) and kernel (right)");
    }
    assert_eq!(native.len(), kernel.len());
    assert_eq!(reported, reported_too);
    assert_eq!(outcome, outcome_too);
}
