//! Samples → medians, minima and ratios, as a table or as JSON.

use std::fmt::Write as _;

use sensor::bpf::load::ProgramInfo;
use serde_json::{Value, json};

/// Samples of one subject, ns a packet, one for each round.
pub(crate) struct Samples {
    pub(crate) name: &'static str,
    pub(crate) ns: Vec<f64>,
}

impl Samples {
    fn min(&self) -> f64 {
        self.ns.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn median(&self) -> f64 {
        let mut sorted = self.ns.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
    }
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
        let _ =
            writeln!(text, "{:<44} {:>9} {:>9} {:>8} {:>14}", "ns/packet", "median", "min", "× call", "× parse+clock");
        for subject in &self.subjects {
            let (median, min) = (subject.median(), subject.min());
            let (name, to_call, to_clock) = (subject.name, median / call, median / clock);
            let _ = writeln!(text, "{name:<44} {median:>9.1} {min:>9.1} {to_call:>8.2} {to_clock:>14.2}");
        }
        text += "* one run in each system call, whose cost goes off with the floor's: caches are cold whatever the number\n  \
                 of flows; compare these rows only with themselves in another build\n";
        let _ = writeln!(text, "\n{:<44} {:>22} {:>13}", "program", "verified instructions", "bytes of code");
        for program in &self.programs {
            let verified = program.verified_instructions.map_or("unknown".to_owned(), |count| count.to_string());
            let _ = writeln!(text, "{:<44} {verified:>22} {:>13}", program.name, program.jited_bytes);
        }
        text
    }
}
