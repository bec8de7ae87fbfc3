//! Samples → medians, minima and ratios, as a table or as JSON.

use std::fmt::Write as _;

use sensor::bpf::load::ProgramInfo;
use serde_json::{Value, json};

/// Samples of one subject, ns a packet, one for each round.
pub(crate) struct Samples {
    pub(crate) name: &'static str,
    /// The subject that does the same with a hash map of the kernel.
    pub(crate) hash: Option<&'static str>,
    pub(crate) ns: Vec<f64>,
}

impl Samples {
    fn min(&self) -> f64 {
        quantile(&self.ns, 0.0)
    }

    fn median(&self) -> f64 {
        median(&self.ns)
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

/// All that one run measured. The first two subjects are the floors.
pub(crate) struct Report {
    cpu: usize,
    packets: u32,
    programs: Vec<ProgramInfo>,
    subjects: Vec<Samples>,
}

impl Report {
    pub(crate) fn new(cpu: usize, packets: u32, programs: Vec<ProgramInfo>, subjects: Vec<Samples>) -> Report {
        Report { cpu, packets, programs, subjects }
    }

    /// Medians of the floors: nothing but the call, and parse and clock.
    fn floors(&self) -> (f64, f64) {
        (self.subjects[0].median(), self.subjects[1].median())
    }

    /// What a subject's case costs with a hash map of the kernel.
    fn with_hash(&self, subject: &Samples) -> Option<f64> {
        let hash = subject.hash?;
        self.subjects.iter().find(|other| other.name == hash).map(Samples::median)
    }

    pub(crate) fn json(&self) -> Value {
        let (call, clock) = self.floors();
        let subjects: Vec<_> = self
            .subjects
            .iter()
            .map(|subject| {
                json!({
                    "name": subject.name,
                    "median_ns": subject.median(),
                    "min_ns": subject.min(),
                    "ratio_to_call": subject.median() / call,
                    "ratio_to_parse_and_clock": subject.median() / clock,
                    "ratio_to_lru_hash": self.with_hash(subject).map(|hash| subject.median() / hash),
                    "samples_ns": subject.ns,
                })
            })
            .collect();
        json!({ "cpu": self.cpu, "packets": self.packets, "subjects": subjects, "programs": self.programs })
    }

    pub(crate) fn table(&self) -> String {
        let (call, clock) = self.floors();
        let rounds = self.subjects[0].ns.len();
        let mut text = format!("{rounds} interleaved rounds on CPU {}, {} packets each\n\n", self.cpu, self.packets);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<50} {:>8} {:>8} {:>8} {:>14} {:>11}",
            "ns/packet", "median", "min", "× call", "× parse+clock", "× LRU hash"
        );
        for subject in &self.subjects {
            let (median, min) = (subject.median(), subject.min());
            let (name, to_call, to_clock) = (subject.name, median / call, median / clock);
            let to_hash = self.with_hash(subject).map_or(String::new(), |hash| format!("{:.2}", median / hash));
            let _ = writeln!(text, "{name:<50} {median:>8.1} {min:>8.1} {to_call:>8.2} {to_clock:>14.2} {to_hash:>11}");
        }
        let _ = writeln!(text, "\n{:<44} {:>22} {:>13}", "program", "verified instructions", "bytes of code");
        for program in &self.programs {
            let verified = program.verified_instructions.map_or("unknown".to_owned(), |count| count.to_string());
            let _ = writeln!(text, "{:<44} {verified:>22} {:>13}", program.name, program.jited_bytes);
        }
        text
    }
}
