//! The live summary: one line per second from two readings of the totals. Pure: the time is an argument.
//! Printed by `agent` on standard output when `log.summary` is set.

use std::time::Duration;

use crate::config::Mode;
use crate::metrics::Totals;

/// Lines between two headers.
const HEADER_EVERY: u32 = 20;

/// Writes the lines of one run.
#[derive(Debug)]
pub struct Summary {
    mode: Mode,
    colour: bool,
    lines: u32,
    before: Totals,
}

impl Summary {
    /// `colour`: whether standard output is a terminal.
    pub fn new(mode: Mode, colour: bool, start: Totals) -> Summary {
        Summary { mode, colour, lines: 0, before: start }
    }

    /// The mode can change while the agent runs.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// The line for the time since the last call, with a header before it when due. No line feed at the end.
    ///
    /// `clock`: the time of day as it is printed. `elapsed`: since the last call (or [`Summary::new`]).
    pub fn line(&mut self, clock: &str, elapsed: Duration, now: Totals) -> String {
        let before = std::mem::replace(&mut self.before, now);
        let seconds = elapsed.as_secs_f64().max(1e-3);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let since = |now: u64, before: u64| now.saturating_sub(before);
        // In mode observe, verdicts are withheld: they are shown all the same, they are what the mode is for.
        let verdicts = since(now.verdicts, before.verdicts) + since(now.would_verdicts, before.would_verdicts);
        let dropped = since(now.dropped, before.dropped);
        let lost = since(now.lost, before.lost);

        let mut text = String::new();
        if self.lines.is_multiple_of(HEADER_EVERY) {
            let header = format!(
                "{:8} {:7} {:>9} {:>9} {:>8} {:>7} {:>7} {:>8} {:>8} {:>8} {:>8}",
                "time", "mode", "packets/s", "Mb/s", "flows", "new", "ended", "scored", "verdicts", "dropped", "lost"
            );
            text = self.paint(header, "1") + "\n";
        }
        self.lines = self.lines.wrapping_add(1);
        text += &format!(
            "{clock:8} {:7} {:>9} {:>9.2} {:>8} {:>7} {:>7} {:>8} {} {} {}",
            self.mode,
            rate(now.packets, before.packets).round(),
            rate(now.bytes, before.bytes) * 8.0 / 1e6,
            now.flows_active,
            since(now.flows_created, before.flows_created),
            since(now.flows_ended, before.flows_ended),
            since(now.scored, before.scored),
            self.mark(verdicts, "33"),
            self.mark(dropped, "31"),
            self.mark(lost, "35"),
        );
        text
    }

    /// A number of eight columns, painted unless 0.
    fn mark(&self, number: u64, colour: &str) -> String {
        let text = format!("{number:>8}");
        if number == 0 { text } else { self.paint(text, colour) }
    }

    fn paint(&self, text: String, colour: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text }
    }
}

/// The time of day, UTC, from seconds since the epoch: `HH:MM:SS`.
pub fn clock(unix_seconds: u64) -> String {
    let day = unix_seconds % 86_400;
    format!("{:02}:{:02}:{:02}", day / 3600, day / 60 % 60, day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_per_second() {
        let start = Totals { packets: 100, bytes: 1_000, scored: 7, ..Totals::default() };
        let mut summary = Summary::new(Mode::Observe, false, start);
        let now = Totals { packets: 2_100, bytes: 2_501_000, scored: 10, flows_active: 9, would_verdicts: 4, ..start };
        let text = summary.line(&clock(86_400 + 3_661), Duration::from_secs(2), now);
        let (header, line) = text.split_once('\n').expect("a header first");
        assert_eq!(header.split_whitespace().count(), line.split_whitespace().count());
        assert_eq!(header.len(), line.len());
        assert_eq!(
            line.split_whitespace().collect::<Vec<_>>(),
            ["01:01:01", "observe", "1000", "10.00", "9", "0", "0", "3", "4", "0", "0"]
        );
        let next = summary.line("01:01:02", Duration::from_secs(1), now);
        assert!(!next.contains('\n') && next.contains(" 0.00 "), "{next}");
    }

    #[test]
    fn colours_and_headers() {
        let mut summary = Summary::new(Mode::Enforce, true, Totals::default());
        let lines: Vec<_> = (0..41)
            .map(|n| summary.line("00:00:00", Duration::from_secs(1), Totals { dropped: n, ..Totals::default() }))
            .collect();
        assert_eq!(lines.iter().filter(|line| line.contains("packets/s")).count(), 3);
        assert!(lines[1].contains("\x1b[31m       1\x1b[0m"), "{:?}", lines[1]);
    }
}
