//! One parser, one record update, two machines: on every capture there is, the programs in the kernel (by test run) and
//! native code have the same integers. Needs root.

use std::path::{Path, PathBuf};

use sensor_tests::frames::Frame;
use sensor_tests::parity::{Outcome, Parity, captures};
use sensor_tests::rng::Rng;

const SECOND_NS: u64 = 1_000_000_000;

/// The smallest table: captures with more flows have to make do with it, too.
fn parity() -> Parity {
    Parity::load(0).expect("programs load (as root, on kernel 5.15 or newer)")
}

/// Captures are not part of the project: see the message for where they are looked for.
#[test]
fn every_capture_gives_the_same_integers_in_the_kernel_and_natively() {
    let folder = std::env::var_os("SENSOR_CAPTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/captures"), PathBuf::from);
    let files = captures(std::slice::from_ref(&folder)).unwrap_or_default();
    if files.is_empty() {
        println!("no captures at {} (set SENSOR_CAPTURES to a folder of them): nothing was compared", folder.display());
        return;
    }
    let mut parity = parity();
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
    println!("{} files: {all}", files.len());
    assert!(all.packets > 0, "{} holds no capture that can be read", folder.display());
    assert_eq!(all.mismatches, 0, "mismatches are printed above");
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
