//! A capture, packet by packet, and what is to be said of it as a whole: link types that are not read, and time that
//! steps back. Called by [`super::extract`] and [`super::score`].

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context as _, Result};

use super::capture::{Capture, Captured};
use super::link;

/// What a capture has next.
pub(super) enum Next<'a> {
    /// A packet.
    Packet(Captured<'a>),
    /// A packet of a link type that is not read; it was counted.
    Foreign,
    /// Its end.
    End,
}

/// A capture that is being read.
pub(super) struct Reader {
    capture: Capture<Box<dyn Read>>,
    /// Packets of link types that are not read.
    foreign: BTreeMap<u32, u64>,
    /// Time of the latest packet so far, ns.
    latest_ns: u64,
    /// Packets that are older than one before them.
    older: u64,
    /// By so much at most, ns.
    step_ns: u64,
}

impl Reader {
    pub(super) fn new(capture: Capture<Box<dyn Read>>) -> Reader {
        Reader { capture, foreign: BTreeMap::new(), latest_ns: 0, older: 0, step_ns: 0 }
    }

    /// Whether all that was read from the input has been handed out: the next packet may have to be waited for.
    pub(super) fn is_drained(&self) -> bool {
        self.capture.is_drained()
    }

    /// Packets that were read so far.
    pub(super) fn packets(&self) -> u64 {
        self.capture.packets()
    }

    /// The next packet. In a file with a link type for each interface, one that is not read loses its own packets only.
    ///
    /// # Errors
    /// If the file is cut short or damaged there, or has one link type, which is not read.
    pub(super) fn next(&mut self) -> Result<Next<'_>> {
        let (by_interface, number) = (self.capture.is_pcapng(), self.capture.packets() + 1);
        let Some(captured) = self.capture.read()? else { return Ok(Next::End) };
        if !link::is_read(captured.link) {
            if !by_interface {
                return Err(link::unsupported(captured.link)).with_context(|| format!("packet {number}"));
            }
            *self.foreign.entry(captured.link).or_default() += 1;
            return Ok(Next::Foreign);
        }
        if captured.time_ns < self.latest_ns {
            self.older += 1;
            self.step_ns = self.step_ns.max(self.latest_ns - captured.time_ns);
        }
        self.latest_ns = self.latest_ns.max(captured.time_ns);
        Ok(Next::Packet(captured))
    }

    /// Packets that were of link types that are not read.
    pub(super) fn foreign(&self) -> u64 {
        self.foreign.values().sum()
    }

    /// What is to be said of the packets so far, a line each.
    pub(super) fn notes(&self) -> Vec<String> {
        let of = |(link, count): (&u32, &u64)| format!("{count} packets are of link type {link}, which is not read");
        let mut notes: Vec<String> = self.foreign.iter().map(of).collect();
        if self.older > 0 {
            let step = self.step_ns as f64 / 1e9;
            notes.push(format!(
                "{} packets are older than one before them, by up to {step} s: times of their flows are not exact \
                 (`reordercap` sorts a capture)",
                self.older
            ));
        }
        notes
    }

    /// At the end: whether anything could be read.
    ///
    /// # Errors
    /// If every packet was of a link type that is not read.
    pub(super) fn check(&self) -> Result<()> {
        match self.foreign.first_key_value() {
            Some((link, _)) if self.foreign() == self.packets() => {
                Err(link::unsupported(*link)).context("none of its packets can be read")
            }
            _ => Ok(()),
        }
    }
}
