//! Ten thousand verdicts come and go: none is lost on the way to the kernel, none stays there, each is in the audit once,
//! and memory has a bound.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, LpmTrie, Map, MapData};
use sensor_common::flow::FlowKey;
use sensor_common::verdict::{Entry, PrefixData};
use sensor_tests::agent::Agent;
use sensor_tests::checks::{Must as _, wait_for};
use sensor_tests::pins::PinMount;
use serde_json::Value;

use super::door::Door;
use super::scene::{Files, lab, metric, number};

const COUNT: u64 = 10_000;
/// Connections that add at once.
const DOORS: u64 = 8;
/// How long each holds.
const SECONDS: u64 = 6;
/// What a busy machine may take to let all of them end.
const LONG: Duration = Duration::from_secs(60);
/// Bytes that the agent may take for all of them.
const MEMORY: u64 = 96 << 20;

/// The scope of verdict number `number`: addresses, prefixes and flows of both families.
fn scope(number: u64) -> String {
    let (high, low) = (number >> 8, number & 0xff);
    match number % 10 {
        0..=3 => format!("198.19.{high}.{low}"),
        4 => format!("198.18.{}.{}/28", 128 + (number / 10) / 16, (number / 10) % 16 * 16),
        5 | 6 => format!("2001:db8:1::{number:x}"),
        7 => format!("2001:db8:2:{number:x}::/64"),
        8 => format!("tcp,198.18.0.10:80,198.19.{high}.{low}:{}", 1_024 + number),
        _ => format!("udp,[2001:db8::10]:53,[2001:db8:3::{number:x}]:{}", 1_024 + number),
    }
}

/// Adds verdicts in requests of a thousand each.
fn add_lists(agent: &Agent, numbers: std::ops::Range<u64>, seconds: u64) -> Duration {
    let (begun, mut open) = (Instant::now(), Door::open(&agent.socket()).must("connect"));
    for first in numbers.clone().step_by(1_000) {
        let scopes: Vec<String> = (first..numbers.end.min(first + 1_000)).map(scope).collect();
        let count = scopes.len() as u64;
        let body = serde_json::json!({ "scopes": scopes, "action": "drop", "for_seconds": seconds }).to_string();
        let (code, answer) = open.ask("POST", "/v1/verdicts/batch", &body).must("add verdicts");
        assert_eq!((code, answer["added"].as_u64()), (200, Some(count)), "{answer}");
    }
    begun.elapsed()
}

/// Adds verdicts one by one, over several connections at once.
fn add(agent: &Agent, numbers: std::ops::Range<u64>, seconds: u64) -> Duration {
    let (begun, socket) = (Instant::now(), agent.socket());
    std::thread::scope(|scope_| {
        for door in 0..DOORS {
            let (socket, numbers) = (&socket, numbers.clone());
            scope_.spawn(move || {
                let mut open = Door::open(socket).must("connect");
                for number in numbers.filter(|number| number % DOORS == door) {
                    let scope = scope(number);
                    let body = format!(r#"{{"scope":"{scope}","action":"drop","for_seconds":{seconds}}}"#);
                    let (code, answer) = open.ask("POST", "/v1/verdicts", &body).must("add a verdict");
                    assert_eq!((code, &answer["scope"]), (200, &Value::from(scope)), "{answer}");
                }
            });
        }
    });
    begun.elapsed()
}

/// Entries in the kernel's maps: of flows, of sources.
fn in_kernel(pins: &Path) -> [usize; 2] {
    let open = |name: &str| MapData::from_pin(pins.join(name)).map_err(Into::into).must("open a pinned map");
    let flows = HashMap::<_, [u8; size_of::<FlowKey>()], [u8; size_of::<Entry>()]>::try_from(Map::HashMap(open(
        "FLOW_VERDICTS",
    )));
    let singles = HashMap::<_, [u8; size_of::<PrefixData>()], [u8; size_of::<Entry>()]>::try_from(Map::HashMap(open(
        "SINGLE_SOURCES",
    )));
    let prefixes = LpmTrie::<_, [u8; size_of::<PrefixData>()], [u8; size_of::<Entry>()]>::try_from(Map::LpmTrie(open(
        "SOURCE_VERDICTS",
    )));
    let flows = flows.map_err(Into::into).must("read FLOW_VERDICTS");
    let singles = singles.map_err(Into::into).must("read SINGLE_SOURCES");
    let prefixes = prefixes.map_err(Into::into).must("read SOURCE_VERDICTS");
    [flows.keys().count(), singles.keys().count() + prefixes.keys().count()]
}

fn held(agent: &Agent) -> u64 {
    let status = agent.status().must("ask for the status");
    number(&status, "/enforcement/flow_verdicts") + number(&status, "/enforcement/source_verdicts")
}

/// Numbers of the verdicts in the lines of one event, each there once.
fn ids(files: &Files, event: &str) -> HashSet<u64> {
    let lines = files.events(event);
    let ids: HashSet<u64> = lines.iter().filter_map(|line| line["id"].as_u64()).collect();
    assert_eq!(ids.len(), lines.len(), "each {event} is in the audit once");
    ids
}

#[test]
fn ten_thousand_verdicts_come_and_go() {
    let (lab, mount) = (lab(1, 0), PinMount::new().must("mount a BPF file system"));
    let settings = "mode = \"enforce\"\n[kernel]\nflows = 8192\n[audit]\nmax_mib = 1\nfiles = 1000\n";
    let files = Files::new(settings, None);
    let agent = files.agent(&lab, &["--pins", &mount.path().to_string_lossy()]);
    let memory = || agent.metrics().must("scrape").sum("process_resident_memory_bytes", &[]) as u64;
    let before = memory();

    let added = add_lists(&agent, 0..COUNT, SECONDS);
    let (peak, in_book, in_maps) = (memory(), held(&agent), in_kernel(&mount.path()));
    let begun = Instant::now();
    wait_for("all have ended", LONG, || held(&agent) == 0);
    let ended = begun.elapsed();
    assert_eq!(in_kernel(&mount.path()), [0, 0], "nothing stays in the kernel");
    let expired = metric(&agent, "sensor_verdict_changes_total", &[("change", "expired")], COUNT);
    assert_eq!(expired, COUNT);
    println!(
        "bulk: {COUNT} verdicts added in {:.2} s ({:.0} a second, in lists); {in_book} held then, {in_maps:?} in \
         the kernel's maps (flows, sources); all ended {:.2} s later",
        added.as_secs_f64(),
        COUNT as f64 / added.as_secs_f64(),
        ended.as_secs_f64(),
    );

    // Taken back at once.
    let one_by_one = add(&agent, 0..COUNT / 5, 3_600);
    let in_maps: usize = in_kernel(&mount.path()).iter().sum();
    assert_eq!(in_maps as u64, COUNT / 5, "every verdict is in the kernel");
    let begun = Instant::now();
    let gone = agent.ask_json(&["verdicts", "remove", "--all"]).must("take all back");
    let removed = begun.elapsed();
    assert_eq!(gone.as_array().map(Vec::len), Some(COUNT as usize / 5));
    assert_eq!((held(&agent), in_kernel(&mount.path())), (0, [0, 0]), "nothing stays");
    let after = memory();
    println!(
        "bulk: {} added one by one over {DOORS} connections in {:.2} s, taken back by one command in {:.2} s; resident memory {:.1} MiB before, {:.1} with {in_book} held, {:.1} at the end",
        COUNT / 5,
        one_by_one.as_secs_f64(),
        removed.as_secs_f64(),
        before as f64 / 1048576.0,
        peak as f64 / 1048576.0,
        after as f64 / 1048576.0,
    );
    assert!(peak.max(after) < before + MEMORY, "{before}, {peak}, {after} bytes of memory");

    let metrics = agent.metrics().must("scrape");
    assert_eq!(metrics.sum("sensor_audit_lost_lines_total", &[]), 0.0);
    agent.stop().must("stop the agent");
    let (entered, expired, removed) = (ids(&files, "verdict"), ids(&files, "expired"), ids(&files, "removed"));
    assert_eq!(entered.len() as u64, COUNT + COUNT / 5);
    assert_eq!((expired.len() as u64, removed.len() as u64), (COUNT, COUNT / 5));
    assert!(expired.is_disjoint(&removed) && expired.union(&removed).all(|id| entered.contains(id)));
    let rotated = (1..2_000).take_while(|number| files.path(&format!("state/audit.jsonl.{number}")).exists()).count();
    assert!(rotated >= 2, "{rotated} full files");
    println!("bulk: {} audit lines, each verdict and its end once, in {} files", files.audit().len(), rotated + 1);
}
