//! Captured frames as programs can be given them: by a test run, or on a device.
//!
//! Invariant: what is not given leaves no trace on the host either, so both have seen the same frames. Called by
//! [`super::KernelReplay`], and by the project's tests for frames on a wire.

use std::ops::RangeInclusive;

use anyhow::Result;
use sensor_common::counter::Cause;
use sensor_common::hash::Seed;
use sensor_common::packet::{self, Packet, Refusal};

use super::super::capture::Captured;
use super::super::link;

/// What a captured frame is to the programs.
#[derive(Debug)]
pub enum Fit<'a> {
    /// An Ethernet frame that they can be given, and what the host's parser makes of it.
    Frame(&'a [u8], Result<Packet, Refusal>),
    /// The frame cannot be given to them, and belongs to no flow on the host either.
    Refused(Refusal, Unfit),
    /// The frame belongs to a flow but cannot be given to them.
    Unfit(Unfit),
}

/// Why a frame cannot be given to the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unfit {
    /// Shorter than a test run takes.
    TooShort,
    /// Longer than a test run can take.
    TooLong,
    /// The capture lacks bytes of it that the programs would read.
    Cut,
}

impl Unfit {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Unfit::TooShort => "shorter than a test run takes",
            Unfit::TooLong => "longer than a test run takes",
            Unfit::Cut => "cut by the capture where the programs read",
        }
    }
}

/// Fits the frames of one capture after the other, and parses them on the host.
#[derive(Debug)]
pub struct Fitter {
    options: packet::Options,
    seed: Seed,
    /// Lengths that can be given.
    lengths: RangeInclusive<usize>,
    /// Gives later fragments their flow, as the programs do.
    parser: link::Parser,
    /// Whether fragments were seen since the programs' table of them was empty.
    fragments: bool,
    /// The frame as it is given to the programs.
    frame: Vec<u8>,
    link: Vec<u8>,
}

impl Fitter {
    /// For programs that were loaded with these options and hash keys, and take frames of these lengths.
    pub fn new(options: packet::Options, seed: Seed, lengths: RangeInclusive<usize>) -> Fitter {
        let parser = link::Parser::seeded(options, seed);
        Fitter { options, seed, lengths, parser, fragments: false, frame: Vec::new(), link: Vec::new() }
    }

    /// Begins a capture; whether the programs' table of fragments has to be emptied for it.
    pub fn begin(&mut self) -> bool {
        let fragments = std::mem::take(&mut self.fragments);
        if fragments {
            self.parser = link::Parser::seeded(self.options, self.seed);
        }
        fragments
    }

    /// The frame that was fitted last.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Makes of a captured frame what the programs can be given.
    ///
    /// A frame that the capture cut is padded with zeros to its length on the wire, if the host makes the same of it
    /// then as before.
    ///
    /// # Errors
    /// If the link type is not supported.
    pub fn fit(&mut self, captured: &Captured<'_>) -> Result<Fit<'_>> {
        let host = link::parse(captured, self.options)?;
        let mut room = std::mem::take(&mut self.link);
        let frame = link::ethernet(captured, &mut room)?;
        let most = self.lengths.end() + 1;
        self.frame.clear();
        if let Some(frame) = frame {
            self.frame.extend(&frame.bytes[..frame.bytes.len().min(most)]);
            self.frame.resize((frame.wire_len as usize).min(most), 0);
        }
        let cut = frame.is_some_and(|frame| frame.bytes.len() < frame.wire_len as usize);
        self.link = room;
        let unfit = match self.frame.len() {
            len if len < *self.lengths.start() => Some(Unfit::TooShort),
            len if len > *self.lengths.end() => Some(Unfit::TooLong),
            _ if cut && packet::parse_with(&self.frame[..], self.options) != host => Some(Unfit::Cut),
            _ => None,
        };
        Ok(match (unfit, host) {
            // What the programs do not see leaves no trace in their fragment table either.
            (None, host) => {
                self.fragments |= host.is_ok_and(|packet| packet.marks & packet::mark::FRAGMENT != 0);
                let host = host.and_then(|packet| self.parser.resolve(packet, captured.time_ns));
                Fit::Frame(&self.frame, host)
            }
            (Some(unfit), Ok(packet)) if packet.marks & packet::mark::LATER_FRAGMENT != 0 => {
                Fit::Refused(Cause::Fragment, unfit)
            }
            (Some(unfit), Err(cause)) => Fit::Refused(cause, unfit),
            (Some(unfit), Ok(_)) => Fit::Unfit(unfit),
        })
    }
}
