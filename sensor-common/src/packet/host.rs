//! The parser with its memory, as the host uses it: frames in, packets that know their flow out.

use super::{Frame, Options, Packet, Refusal, parse_with};
use crate::fragment::Fragments;
use crate::hash::Seed;

/// Parses frame after frame, and gives later fragments the flow of the first: what the kernel programs do.
#[derive(Clone, Debug)]
pub struct Parser {
    options: Options,
    fragments: Fragments,
}

impl Parser {
    /// A parser that has seen nothing. With the options and the seed of loaded programs, it refuses what they refuse.
    pub fn new(options: Options, seed: Seed) -> Parser {
        Parser { options, fragments: Fragments::new(seed) }
    }

    /// Parses a frame that arrived at `now_ns`.
    ///
    /// # Errors
    /// Why the frame belongs to no flow.
    pub fn parse<F: Frame>(&mut self, frame: F, now_ns: u64) -> Result<Packet, Refusal> {
        let mut packet = parse_with(frame, self.options)?;
        self.fragments.pass(&mut packet, now_ns)?;
        Ok(packet)
    }
}
