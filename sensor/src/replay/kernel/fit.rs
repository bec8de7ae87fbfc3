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
    /// It states no length, in a way that the programs do not meet.
    NoLength,
}

impl Unfit {
    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Unfit::TooShort => "shorter than a test run takes",
            Unfit::TooLong => "longer than a test run takes",
            Unfit::Cut => "cut by the capture where the programs read",
            Unfit::NoLength => "without the length that a network card fills in",
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
    /// A frame that the capture cut is padded with zeros to its length on the wire, and one whose length its sender's
    /// card was to fill in gets it, if the host makes the same of it then as before.
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
        if let Ok(packet) = &host {
            fill_in_length(&mut self.frame, packet);
        }
        let cut = frame.is_some_and(|frame| frame.bytes.len() < frame.wire_len as usize);
        self.link = room;
        let unfit = match self.frame.len() {
            len if len < *self.lengths.start() => Some(Unfit::TooShort),
            len if len > *self.lengths.end() => Some(Unfit::TooLong),
            _ if packet::parse_with(&self.frame[..], self.options) == host => None,
            _ if cut => Some(Unfit::Cut),
            _ => Some(Unfit::NoLength),
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

/// Writes the length of `packet`'s datagram into its IP header if it states none and has room for it, as a network card
/// does before it sends; the programs see what was sent.
fn fill_in_length(frame: &mut [u8], packet: &Packet) {
    let (field, len) = match packet.key.family {
        4 => (2, packet.l3_len()),
        _ => (4, packet.l3_len().saturating_sub(40)),
    };
    let at = packet.l3_offset as usize + field;
    if let (Ok(len), Some(field)) = (u16::try_from(len), frame.get_mut(at..at + 2))
        && field == [0, 0]
    {
        field.copy_from_slice(&len.to_be_bytes());
    }
}
