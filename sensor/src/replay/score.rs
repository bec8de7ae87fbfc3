//! `sensor replay`: the flows of a capture, scored by a model, with what the policy would do. Needs no privileges.
//!
//! The frames go through the parser and the record update of the programs, the rows through the code that scores live
//! flows, so a score here is the score there. A flow's number counts the flows of a capture in the order in which they
//! begin, whether snapshots are asked for or not. Called by `cli`; [`record_of`] by `sensor model explain --capture`.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use sensor_common::context::HostContext;
use sensor_common::features::Sample;
use sensor_common::flow::FlowRecord;
use sensor_common::packet;
use sensor_common::verdict::Action;
use serde::Serialize;

use super::capture::Capture;
use super::endpoints;
use super::engine::{Engine, Native, Sink, Stop};
use super::failure;
use super::reader::{Next, Reader};
use super::source::Source;
use super::table::{DEFAULT_MAX_FLOWS, Reason, Table, Timeouts};
use crate::allow::List;
use crate::config::{ActionName, PolicyConfig};
use crate::context::REPLAY_SEED;
use crate::model::gaps::{Gaps, gaps, names};
use crate::model::{Model, Score};
use crate::policy::Policy;
use crate::view::protocol_name;

/// Flows that are scored in one call.
const BATCH: usize = 512;

/// Form of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Comma-separated values with a header.
    #[default]
    Csv,
    /// One JSON object a line.
    Json,
}

/// What to replay.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Captures, each with a flow table of its own; `-` is standard input.
    pub captures: Vec<PathBuf>,
    /// Packet counts at which a flow is scored while it goes on; every flow is scored when it ends.
    pub snapshots: Vec<u64>,
    /// Form of the rows.
    pub form: Form,
    /// Tunnels whose inner flows are counted, and whether first payload bytes are looked at.
    pub parser: packet::Options,
    /// From score to action.
    pub policy: PolicyConfig,
}

/// One scored flow.
#[derive(Debug, Serialize)]
struct Row<'a> {
    capture: &'a str,
    flow: u64,
    /// Time of the last packet, Unix seconds.
    time: f64,
    /// Why the flow is looked at: "snapshot", or how it ended.
    reason: &'static str,
    src: String,
    sport: u16,
    dst: String,
    dport: u16,
    protocol: String,
    packets: u64,
    /// Empty below the model's smallest number of packets, and where the model's answer is not finite.
    score: Option<f32>,
    label: Option<&'a str>,
    /// What mode enforce would do, without verdicts of looks before.
    action: ActionName,
}

/// Looks, reports and actions of one label.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    looks: u64,
    reported: u64,
    tag: u64,
    limit: u64,
    drop: u64,
}

/// Scores the flows of captures: rows to `output`, a summary by label to `report`.
///
/// # Errors
/// If the model or `output` fails. A capture that cannot be read (to its end) does not stop the others: what was read
/// of it is in the output, and the error that is returned at the end names each such capture.
pub fn replay(
    options: &ReplayOptions,
    model: &mut Model,
    output: &mut dyn Write,
    report: &mut dyn Write,
) -> Result<()> {
    let policy = Policy::new(&options.policy, &model.labels, model.thresholds, model.min_packets);
    let width = model.features.len();
    let mut scorer = Scorer {
        model,
        policy,
        allow: List::of(&options.policy.never_drop, &options.policy.never_drop_ports, &[]),
        writer: Writer::new(options.form, output),
        pending: Vec::with_capacity(BATCH),
        records: Vec::with_capacity(BATCH),
        contexts: Vec::with_capacity(BATCH),
        counts: BTreeMap::new(),
        young: 0,
        unscored: 0,
        missing: vec![0; width],
    };
    let mut failures = Vec::new();
    for path in &options.captures {
        let name = path.display().to_string();
        let mut take = |number: u64, sample: &Sample<'_>, reason: Reason| scorer.add(&name, number, sample, reason);
        let Visited { notes, outcome } = visit(path, options.parser, &options.snapshots, &mut take)?;
        // What came before an error is good.
        scorer.flush(&name)?;
        // A report that nobody reads must not cost the rows.
        for note in notes {
            let _unread = writeln!(report, "{name}: {note}");
        }
        if let Err(error) = outcome {
            let error = error.context(name);
            let _unread = writeln!(report, "error: {error:#}");
            failures.push(error);
        }
    }
    scorer.writer.finish()?;
    scorer.summary(report)?;
    failure(failures, options.captures.len()).map_or(Ok(()), Err)
}

/// The record and the host context of flow `number` of a capture when it ended, numbered as [`replay`] does. `parser`
/// as there.
///
/// # Errors
/// If there is no such flow, or the capture cannot be read up to it.
pub fn record_of(path: &Path, parser: packet::Options, number: u64) -> Result<(FlowRecord, HostContext)> {
    let (mut found, mut last) = (None, 0);
    let visited = visit(path, parser, &[], &mut |at, sample, _| {
        last = last.max(at);
        if at == number {
            found = Some((*sample.record, *sample.context));
        }
        Ok(())
    })?;
    match found {
        Some(found) => Ok(found),
        None => {
            visited.outcome.with_context(|| path.display().to_string())?;
            bail!("{} has no flow {number}; its last one is {last}, see `sensor replay`", path.display())
        }
    }
}

/// What came of a capture.
struct Visited {
    /// What is to be said of it, a line each.
    notes: Vec<String>,
    /// Why it could not be read to its end.
    outcome: Result<()>,
}

/// Gives each record of a capture, with the number of its flow, to `take`.
///
/// # Errors
/// Those of `take`; the capture's own are in [`Visited`].
fn visit(
    path: &Path,
    parser: packet::Options,
    snapshots: &[u64],
    take: &mut dyn FnMut(u64, &Sample<'_>, Reason) -> Result<()>,
) -> Result<Visited> {
    ensure!(!snapshots.contains(&0), "a snapshot at 0 packets does not exist: start from 1");
    let opened = Source::open(path).and_then(|source| Capture::open(source.input));
    let mut capture = match opened {
        Ok(capture) => Reader::new(capture),
        Err(error) => return Ok(Visited { notes: Vec::new(), outcome: Err(error) }),
    };
    let (context, number) = (Rc::new(Cell::new(HostContext::NONE)), Rc::new(Cell::new(0)));
    let table = Table::new(Timeouts::default(), snapshots.to_vec())
        .with_max_flows(DEFAULT_MAX_FLOWS)
        .with_context(REPLAY_SEED, Rc::clone(&context))
        .with_numbers(Rc::clone(&number));
    let mut engine = Native::new(table).with_options(parser);
    let mut numbered = Numbered { take, context: &context, number: &number };
    let outcome = loop {
        match capture.next() {
            Ok(Next::Packet(captured)) => match engine.frame(&captured, &mut numbered) {
                Ok(()) => {}
                Err(Stop::Capture(error)) => break Err(error),
                Err(Stop::Failed(error)) => return Err(error),
            },
            Ok(Next::Foreign) => {}
            Ok(Next::End) => break capture.check(),
            Err(error) => break Err(error),
        }
    };
    engine.finish(&mut numbered)?;
    Ok(Visited { notes: capture.notes(), outcome })
}

/// Takes records with their numbers.
struct Numbered<'a> {
    take: &'a mut dyn FnMut(u64, &Sample<'_>, Reason) -> Result<()>,
    /// That of the record.
    context: &'a Cell<HostContext>,
    /// Likewise.
    number: &'a Cell<u64>,
}

impl Sink for Numbered<'_> {
    fn record(&mut self, record: &FlowRecord, reason: Reason) -> Result<()> {
        (self.take)(self.number.get(), &Sample { record, context: &self.context.get() }, reason)
    }
}

struct Scorer<'a> {
    model: &'a mut Model,
    policy: Policy,
    allow: List,
    writer: Writer<'a>,
    pending: Vec<(u64, Reason)>,
    records: Vec<FlowRecord>,
    contexts: Vec<HostContext>,
    counts: BTreeMap<String, Count>,
    /// Looks at flows with too few packets.
    young: u64,
    /// Looks whose answer was not finite.
    unscored: u64,
    /// In how many of those each feature was missing.
    missing: Vec<u64>,
}

impl Scorer<'_> {
    fn add(&mut self, capture: &str, number: u64, sample: &Sample<'_>, reason: Reason) -> Result<()> {
        self.pending.push((number, reason));
        self.records.push(*sample.record);
        self.contexts.push(*sample.context);
        if self.records.len() < BATCH { Ok(()) } else { self.flush(capture) }
    }

    fn flush(&mut self, capture: &str) -> Result<()> {
        let mut scores = Vec::with_capacity(self.records.len());
        self.model.score(&self.records, &self.contexts, &mut scores)?;
        let looks = self.records.iter().zip(&self.pending).zip(&scores);
        for (place, ((record, (number, reason)), score)) in looks.enumerate() {
            let enough = record.packets() >= self.policy.min_packets();
            let finite = self.model.unscored().binary_search(&place).is_err();
            if enough && !finite {
                self.unscored += 1;
                let row = self.model.inputs().chunks_exact(self.missing.len()).nth(place).unwrap_or_default();
                self.missing.iter_mut().zip(row).for_each(|(count, value)| *count += u64::from(value.is_nan()));
            }
            let scored = (enough && finite).then_some(*score);
            let decision = scored.map(|score| self.policy.decide(record, score, &self.allow));
            let label =
                scored.map(|Score { label, .. }| self.model.labels.get(usize::from(label)).map_or("?", String::as_str));
            match (label, &decision) {
                (Some(label), Some(decision)) => {
                    if !self.counts.contains_key(label) {
                        self.counts.insert(label.to_owned(), Count::default());
                    }
                    if let Some(count) = self.counts.get_mut(label) {
                        count.looks += 1;
                        count.reported += u64::from(decision.reported);
                        count.tag += u64::from(decision.would == Action::Tag);
                        count.limit += u64::from(decision.would == Action::Limit);
                        count.drop += u64::from(decision.would == Action::Drop);
                    }
                }
                _ => self.young += u64::from(!enough),
            }
            let (from, to) = endpoints(record);
            self.writer.row(&Row {
                capture,
                flow: *number,
                time: record.last_ns as f64 / 1e9,
                reason: reason.name(),
                src: from.address.to_string(),
                sport: from.port,
                dst: to.address.to_string(),
                dport: to.port,
                protocol: protocol_name(record.key.protocol),
                packets: record.packets(),
                score: scored.map(|score| score.score),
                label,
                action: decision.map_or(Action::Pass, |decision| decision.would).into(),
            })?;
        }
        self.pending.clear();
        self.contexts.clear();
        self.records.clear();
        Ok(())
    }

    fn summary(&mut self, report: &mut dyn Write) -> Result<()> {
        writeln!(report, "{:<16} {:>9} {:>9} {:>9} {:>9} {:>9}", "label", "looks", "reported", "tag", "limit", "drop")?;
        for (label, Count { looks, reported, tag, limit, drop }) in &self.counts {
            writeln!(report, "{label:<16} {looks:>9} {reported:>9} {tag:>9} {limit:>9} {drop:>9}")?;
        }
        if self.young > 0 {
            let least = self.policy.min_packets();
            writeln!(report, "{} looks at flows of fewer than {least} packets have no score", self.young)?;
        }
        if self.unscored > 0 {
            let Gaps { missing, far } = gaps(self.model)?;
            let counted = |name: &String| {
                let place = self.model.features.iter().position(|feature| feature.name == name)?;
                let count = self.missing[place];
                (count > 0).then(|| format!("{name} ({count})"))
            };
            let missing: Vec<String> = missing.iter().filter_map(counted).collect();
            write!(
                report,
                "{} looks have no score, and the flows pass: the model's answer is not finite",
                self.unscored
            )?;
            if !missing.is_empty() {
                write!(report, "; it needs, and these were missing: {}", names(&missing))?;
            } else if !far.is_empty() {
                write!(report, "; huge values make it so in: {}", names(&far))?;
            }
            writeln!(report, "; see `sensor model check`")?;
        }
        Ok(())
    }
}

enum Writer<'a> {
    Csv(Box<csv::Writer<&'a mut dyn Write>>),
    Json(&'a mut dyn Write),
}

impl<'a> Writer<'a> {
    fn new(form: Form, output: &'a mut dyn Write) -> Writer<'a> {
        match form {
            Form::Csv => Writer::Csv(Box::new(csv::Writer::from_writer(output))),
            Form::Json => Writer::Json(output),
        }
    }

    fn row(&mut self, row: &Row<'_>) -> Result<()> {
        match self {
            Writer::Csv(writer) => writer.serialize(row)?,
            Writer::Json(writer) => {
                serde_json::to_writer(&mut **writer, row)?;
                writeln!(writer)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        match self {
            Writer::Csv(writer) => writer.flush()?,
            Writer::Json(writer) => writer.flush()?,
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A capture of three flows: one of five datagrams, two of one.
    pub(crate) fn capture() -> Vec<u8> {
        capture_of(&[(1, 7), (2, 8), (3, 7), (4, 7), (5, 7), (6, 7), (7, 9)])
    }

    /// Datagrams at these seconds from these ports.
    fn capture_of(datagrams: &[(u32, u16)]) -> Vec<u8> {
        let mut file = [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_le_bytes).concat();
        for &(second, port) in datagrams {
            let mut frame = vec![0u8; 12];
            frame.extend([0x08, 0x00, 0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
            frame.extend([port.to_be_bytes(), 53u16.to_be_bytes(), 12u16.to_be_bytes(), [0, 0]].concat());
            frame.extend([1, 2, 3, 4]);
            file.extend([second, 0, frame.len() as u32, frame.len() as u32].map(u32::to_le_bytes).concat());
            file.extend(frame);
        }
        file
    }

    #[test]
    fn every_flow_is_scored_and_keeps_its_number() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("c.pcap");
        std::fs::write(&path, capture()).expect("write");
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/sensor.onnx");
        let mut model = Model::load(Path::new(shipped)).expect("the shipped model");
        let options = |form, snapshots| ReplayOptions {
            captures: vec![path.clone()],
            snapshots,
            form,
            parser: packet::Options::NONE,
            policy: PolicyConfig::default(),
        };
        let (mut rows, mut report) = (Vec::new(), Vec::new());
        replay(&options(Form::Json, vec![1, 4]), &mut model, &mut rows, &mut report).expect("runs");
        let rows: Vec<serde_json::Value> = String::from_utf8(rows)
            .expect("text")
            .lines()
            .map(|line| serde_json::from_str(line).expect(line))
            .collect();
        // Snapshots at 1 of three flows and at 4 of one, and three ends.
        assert_eq!(rows.len(), 7);
        let long: Vec<_> = rows.iter().filter(|row| row["flow"] == 1).collect();
        assert_eq!(long.iter().map(|row| row["packets"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(4), Some(5)]);
        assert!(long[0]["score"].is_null(), "below the smallest number of packets");
        assert!(long[2]["score"].as_f64().is_some_and(|score| (0.0..=1.0).contains(&score)), "{long:?}");
        assert_eq!((&long[2]["sport"], &long[2]["dport"]), (&7.into(), &53.into()));
        let report = String::from_utf8(report).expect("text");
        assert!(report.contains("5 looks at flows of fewer than 4 packets"), "{report}");
        let mut csv = Vec::new();
        replay(&options(Form::Csv, vec![]), &mut model, &mut csv, &mut Vec::new()).expect("runs");
        assert_eq!(csv.iter().filter(|byte| **byte == b'\n').count(), 4, "a header and three flows");
        assert_eq!(record_of(&path, packet::Options::NONE, 1).expect("there").0.packets(), 5);
        let error = format!("{:#}", record_of(&path, packet::Options::NONE, 4).expect_err("three flows"));
        assert!(error.contains("no flow 4; its last one is 3"), "{error}");
    }

    #[test]
    fn a_flow_has_one_number_whatever_is_asked_for() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("c.pcap");
        // The flow that begins first is the last to end.
        let datagrams = [(1, 7), (2, 8), (50, 7), (100, 7), (101, 9), (150, 7)];
        std::fs::write(&path, capture_of(&datagrams)).expect("write");
        let flows = |snapshots: &[u64]| {
            let mut found = BTreeMap::new();
            let mut take = |number: u64, sample: &Sample<'_>, reason: Reason| {
                if reason.is_end() {
                    found.insert(number, (sample.record.key, sample.record.first_ns, sample.record.packets()));
                }
                Ok(())
            };
            visit(&path, packet::Options::NONE, snapshots, &mut take).expect("taken").outcome.expect("readable");
            found
        };
        let numbered = flows(&[]);
        assert_eq!(numbered.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
        let begun: Vec<u64> = numbered.values().map(|(_, first_ns, _)| *first_ns).collect();
        assert!(begun.is_sorted(), "{begun:?}");
        for snapshots in [&[1][..], &[2], &[4], &[1, 2, 4]] {
            assert_eq!(flows(snapshots), numbered, "{snapshots:?}");
        }
        for (number, (key, ..)) in &numbered {
            assert_eq!(record_of(&path, packet::Options::NONE, *number).expect("there").0.key, *key);
        }
    }

    #[test]
    fn a_capture_that_cannot_be_read_does_not_stop_the_others() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let [whole, cut, none, after] = ["whole", "cut", "none", "after"].map(|name| folder.path().join(name));
        let bytes = capture();
        for (path, bytes) in
            [(&whole, &bytes[..]), (&cut, &bytes[..bytes.len() - 9]), (&none, b"no capture"), (&after, &bytes)]
        {
            std::fs::write(path, bytes).expect("write");
        }
        let missing = folder.path().join("missing");
        let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/sensor.onnx");
        let mut model = Model::load(Path::new(shipped)).expect("the shipped model");
        let options = ReplayOptions {
            captures: vec![whole, cut, none, missing, after],
            snapshots: vec![],
            form: Form::Json,
            parser: packet::Options::NONE,
            policy: PolicyConfig::default(),
        };
        let (mut rows, mut report) = (Vec::new(), Vec::new());
        let error = replay(&options, &mut model, &mut rows, &mut report).expect_err("three cannot be read");
        let error = format!("{error:#}");
        assert!(error.contains("3 of 5 captures could not be read to their end"), "{error}");
        for part in ["cut: the capture cannot be read at packet 7", "none: neither a pcap", "missing: open the capture"]
        {
            assert!(error.contains(part), "{part}: {error}");
        }
        let rows = String::from_utf8(rows).expect("text");
        let of = |name: &str| rows.lines().filter(|line| line.contains(&format!("/{name}\""))).count();
        assert_eq!([of("whole"), of("cut"), of("after")], [3, 2, 3], "{rows}");
        let report = String::from_utf8(report).expect("text");
        assert!(report.contains("error: ") && report.contains("looks"), "the summary is there, too: {report}");
    }
}
