//! Every capture there is: each packet is in a record or counted by cause, whatever the file.

use std::collections::HashSet;
use std::path::Path;

use sensor_common::features::FEATURES;

use super::*;
use crate::replay::capture::Capture;
use crate::replay::source::Source;

/// Files below a folder, in the order of their names.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort_unstable();
    for path in entries {
        if path.is_dir() {
            files(&path, found);
        } else if path.file_name().is_none_or(|name| name != "README.md") {
            found.push(path);
        }
    }
}

/// Packets that the file holds, up to where it cannot be read on.
fn packets_in(path: &Path) -> u64 {
    let Ok(mut capture) = Source::open(path).and_then(|source| Capture::open(source.input)) else { return 0 };
    while let Ok(Some(_)) = capture.read() {}
    capture.packets()
}

#[test]
fn every_packet_of_every_capture_is_accounted_for() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::var_os("SENSOR_CAPTURES").map_or_else(|| here.join("../../shared/captures"), PathBuf::from);
    let mut paths = Vec::new();
    files(&folder, &mut paths);
    if paths.is_empty() {
        println!(
            "no captures at {} (set SENSOR_CAPTURES to a folder of them): reading those of tests/golden only",
            folder.display()
        );
        files(&here.join("../tests/golden/captures"), &mut paths);
    }
    for parser in [packet::Options::NONE, packet::Options::ALL] {
        balance(&paths, parser);
    }
}

fn balance(paths: &[PathBuf], parser: packet::Options) {
    let mut all = Totals::default();
    let (mut whole, mut link_types, mut damaged) = (0, 0, 0);
    for path in paths {
        // Few places, so that flows are given up, too.
        let captures = vec![path.clone()];
        let options = ExtractOptions { captures, max_flows: 64, parser, ..ExtractOptions::default() };
        let outcome = write(&options, Box::new(io::sink()), &mut io::sink());
        // A file whose packets do not balance is an error here.
        let super::super::Outcome { totals, failure } =
            outcome.unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
        let text = failure.map(|error| format!("{error:#}")).unwrap_or_default();
        if text.is_empty() {
            whole += 1;
            assert_eq!(totals.packets, packets_in(path), "{}", path.display());
        } else if text.contains("link type") {
            link_types += 1;
            // Read on to the end, if the format says the link type of each packet.
            let counted = totals.packets;
            assert!(text.contains("is not supported") && counted <= packets_in(path), "{text}");
            assert_eq!(counted, totals.refused[Cause::NotIp as usize], "{text}");
        } else {
            damaged += 1;
            assert!(
                ["cut short", "damaged", "neither a pcap", "is empty", "too short"]
                    .iter()
                    .any(|why| text.contains(why)),
                "{text}"
            );
            assert_eq!(totals.packets, packets_in(path), "{text}");
        }
        all.add(&totals);
    }
    println!(
        "{} files, {whole} read to their end, {damaged} damaged, {link_types} with a link type that is not supported: {}",
        paths.len(),
        summary(&all)
    );
    assert!(all.packets > 0, "no capture can be read");
}

/// Exports have integers where the contract says so: nothing may be cut off there.
#[test]
fn whole_features_are_whole() {
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/captures"), &mut paths);
    let mut fractions = HashSet::new();
    for path in &paths {
        let context = Rc::new(Cell::new(HostContext::NONE));
        let table = Table::new(Timeouts::default(), vec![2, 8]).with_context(REPLAY_SEED, Rc::clone(&context));
        let mut engine = Native::new(table).with_options(packet::Options::ALL);
        let mut sink = |record: &FlowRecord, _: Reason| -> Result<()> {
            let sample = Sample { record, context: &context.get() };
            for feature in FEATURES {
                let value = feature.value(&sample);
                if value.is_finite() && value != value.trunc() {
                    assert!(!feature.is_whole(), "{}: {value} in {}", feature.name, path.display());
                    fractions.insert(feature.name);
                }
            }
            Ok(())
        };
        let mut capture = open(path).expect("a capture");
        while let Some(captured) = capture.read().expect("readable") {
            engine.frame(&captured, &mut sink).expect("counted");
        }
        engine.finish(&mut sink).expect("counted");
    }
    for name in
        ["fwd_hint_text", "fwd_hint_high", "fwd_hint_entropy", "dst_failed_share_60s", "fwd_l3_mean", "duration"]
    {
        assert!(fractions.contains(name), "{name} is nowhere a fraction: {fractions:?}");
    }
}
