//! Samples → medians, minima and ratios, as a table or as JSON.

use std::fmt::Write as _;

use sensor::bpf::load::ProgramInfo;
use serde_json::{Value, json};

use crate::cases::{AGGREGATE, EMPTY, FLOOR, LRU};

/// Samples of one case, ns a packet, one for each round.
pub(crate) struct Samples {
    pub(crate) name: &'static str,
    pub(crate) ns: Vec<f64>,
}

impl Samples {
    fn min(&self) -> f64 {
        quantile(&self.ns, 0.0)
    }

    pub(crate) fn median(&self) -> f64 {
        median(&self.ns)
    }
}

/// Samples of cases on the same frames.
pub(crate) struct GroupSamples {
    pub(crate) name: &'static str,
    /// What the others are held against.
    pub(crate) references: Vec<Samples>,
    pub(crate) cases: Vec<Samples>,
}

impl GroupSamples {
    fn reference(&self, name: &str) -> Option<f64> {
        self.references.iter().find(|samples| samples.name == name).map(Samples::median)
    }

    fn case(&self, name: &str) -> Option<f64> {
        self.cases.iter().find(|samples| samples.name == name).map(Samples::median)
    }
}

/// The middle of the samples.
pub(crate) fn median(samples: &[f64]) -> f64 {
    quantile(samples, 0.5)
}

/// The value below which the share `q` of the samples lies, between neighbours in proportion; NaN without samples.
pub(crate) fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

/// All that one run measured. The first group has the references that are common to all.
pub(crate) struct Report {
    cpu: usize,
    packets: u32,
    programs: Vec<ProgramInfo>,
    groups: Vec<GroupSamples>,
}

/// A target: what is wanted, and where it is measured.
struct Target {
    what: &'static str,
    group: &'static str,
    case: &'static str,
    reference: &'static str,
    at_most: f64,
}

const TARGETS: [Target; 4] = [
    Target {
        what: "established flow, all statistics",
        group: "TCP over IPv4",
        case: "established flow",
        reference: FLOOR,
        at_most: 1.6,
    },
    Target {
        what: "packet of a dropped flow",
        group: "TCP over IPv4",
        case: "dropped by verdict",
        reference: FLOOR,
        at_most: 1.25,
    },
    Target {
        what: "65,536 flows at random",
        group: "acknowledgements of 65,536 flows at random",
        case: "established flow",
        reference: LRU,
        at_most: 0.5,
    },
    Target {
        what: "new-flow flood, table full",
        group: "SYNs, each a new flow",
        case: "table full of flows with history",
        reference: FLOOR,
        at_most: 4.0,
    },
];

/// What the object of netobserv's agent cost in units of the floor of its run. Recorded once, not measured here
/// (docs/performance.md).
const NETOBSERV: f64 = 3.1;
/// What an established flow is to cost of that, at most.
const OF_NETOBSERV: f64 = 0.5;

impl Report {
    pub(crate) fn new(cpu: usize, packets: u32, programs: Vec<ProgramInfo>, groups: Vec<GroupSamples>) -> Report {
        Report { cpu, packets, programs, groups }
    }

    /// The empty program of the group's hook.
    fn empty(&self, group: &GroupSamples) -> f64 {
        group.reference(EMPTY).or_else(|| self.groups.first()?.reference(EMPTY)).unwrap_or(f64::NAN)
    }

    /// Medians of targets that were measured, with the ratio that was found.
    fn targets(&self) -> impl Iterator<Item = (&'static str, &'static str, f64, f64)> {
        let found = |target: &Target| {
            let group = self.groups.iter().find(|group| group.name == target.group)?;
            let ratio = group.case(target.case)? / group.reference(target.reference)?;
            Some((target.what, target.reference, target.at_most, ratio))
        };
        TARGETS.iter().filter_map(found)
    }

    /// What an established flow costs of what netobserv's object does, by way of the ratio that is recorded.
    fn of_netobserv(&self) -> Option<f64> {
        self.targets().next().filter(|(what, ..)| *what == TARGETS[0].what).map(|(.., ratio)| ratio / NETOBSERV)
    }

    pub(crate) fn json(&self) -> Value {
        let groups: Vec<_> = self
            .groups
            .iter()
            .map(|group| {
                let row = |samples: &Samples| {
                    let median = samples.median();
                    let ratio = |name| group.reference(name).map(|reference| median / reference);
                    json!({
                        "name": samples.name,
                        "median_ns": median,
                        "min_ns": samples.min(),
                        "ratio_to_floor": ratio(FLOOR),
                        "ratio_to_lru_hash": ratio(LRU),
                        "ratio_to_aggregating_agent": ratio(AGGREGATE),
                        "ratio_to_empty_program": median / self.empty(group),
                        "samples_ns": samples.ns,
                    })
                };
                json!({
                    "name": group.name,
                    "references": group.references.iter().map(row).collect::<Vec<_>>(),
                    "cases": group.cases.iter().map(row).collect::<Vec<_>>(),
                })
            })
            .collect();
        let target = |(what, to, at_most, ratio)| json!({ "what": what, "to": to, "at_most": at_most, "ratio": ratio });
        let targets: Vec<_> = self.targets().map(target).collect();
        let netobserv =
            json!({ "recorded_ratio_to_floor": NETOBSERV, "at_most": OF_NETOBSERV, "ratio": self.of_netobserv() });
        json!({
            "cpu": self.cpu,
            "packets": self.packets,
            "groups": groups,
            "targets": targets,
            "netobserv_by_way_of_a_recorded_ratio": netobserv,
            "programs": self.programs,
        })
    }

    pub(crate) fn table(&self) -> String {
        let rounds = self.groups.first().and_then(|group| group.references.first()).map_or(0, |floor| floor.ns.len());
        let mut text = format!(
            "{rounds} interleaved rounds on CPU {}, {} packets each; ns a packet, medians. Ratios are to references on the \
             same frames:\nfloor = parse and clock, LRU = the same record in an LRU hash, agg = eight counters in a hash \
             map under a spin lock\n\n",
            self.cpu, self.packets
        );
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<40} {:>7} {:>7} | {:>7} {:>7} | {:>7} {:>6} | {:>7} {:>6} | {:>7}",
            "", "median", "min", "floor", "× floor", "LRU", "× LRU", "agg", "× agg", "× empty"
        );
        for group in &self.groups {
            let _ = writeln!(text, "{}", group.name);
            // What has a column of its own needs no row.
            let named = group.references.iter().filter(|samples| ![FLOOR, LRU, AGGREGATE].contains(&samples.name));
            for (samples, compared) in named.map(|row| (row, false)).chain(group.cases.iter().map(|row| (row, true))) {
                let (name, median, min) = (samples.name, samples.median(), samples.min());
                let _ = write!(text, "  {name:<38} {median:>7.1} {min:>7.1} |");
                for (reference, width) in [(FLOOR, 7), (LRU, 6), (AGGREGATE, 6)] {
                    let found = group.reference(reference).filter(|_| compared);
                    let ns = found.map_or(String::new(), |ns| format!("{ns:.1}"));
                    let ratio = found.map_or(String::new(), |ns| format!("{:.2}", median / ns));
                    let _ = write!(text, " {ns:>7} {ratio:>width$} |");
                }
                let _ = writeln!(text, " {:>7.1}", median / self.empty(group));
            }
        }
        let _ = writeln!(text, "\n{:<40} {:>8} {:>8}", "target", "at most", "found");
        for (what, to, at_most, ratio) in self.targets() {
            let _ = writeln!(text, "{what:<40} {at_most:>8.2} {ratio:>8.2} × {to}");
        }
        if let Some(ratio) = self.of_netobserv() {
            let _ = writeln!(
                text,
                "\nnot measured here, by way of a recorded ratio (netobserv's object: {NETOBSERV} floors): an established flow costs \
                 {ratio:.2} of it (target {OF_NETOBSERV:.2})"
            );
        }
        let _ = writeln!(text, "\n{:<44} {:>22} {:>13}", "program", "verified instructions", "bytes of code");
        for program in &self.programs {
            let verified = program.verified_instructions.map_or("unknown".to_owned(), |count| count.to_string());
            let _ = writeln!(text, "{:<44} {verified:>22} {:>13}", program.name, program.jited_bytes);
        }
        text
    }
}
