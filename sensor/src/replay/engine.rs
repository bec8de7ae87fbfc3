//! Engines: what turns captured frames into flow records.
//!
//! [`Native`] parses and counts here. Another engine may have the frames counted elsewhere (by the kernel programs, for
//! one); whatever it does, every frame that it was offered is in a record that it hands over, or refused with a cause.
//! Called by [`super::run`].

use sensor_common::counter::Cause;
use sensor_common::flow::FlowRecord;
use sensor_common::packet::{Options, Packet, mark};

use super::capture::Captured;
use super::link;
use super::table::{Reason, Table};

/// Takes records that are handed over.
pub trait Sink {
    /// A record, complete or (at a snapshot) as far as it is.
    ///
    /// # Errors
    /// If the output cannot take it; nothing more is handed over then.
    fn record(&mut self, record: &FlowRecord, reason: Reason) -> anyhow::Result<()>;
}

/// Why an engine stopped.
#[derive(Debug)]
pub enum Stop {
    /// The capture cannot be read on; what was offered before is good.
    Capture(anyhow::Error),
    /// The output or the engine itself failed.
    Failed(anyhow::Error),
}

/// Turns frames into records.
pub trait Engine {
    /// Takes the next frame of the capture. Its record is handed to `sink` whenever it ends or reaches a snapshot.
    ///
    /// # Errors
    /// See [`Stop`].
    fn frame(&mut self, captured: &Captured<'_>, sink: &mut dyn Sink) -> Result<(), Stop>;

    /// Nothing may follow for a while: counts what was taken but not counted yet.
    ///
    /// # Errors
    /// Those of `sink`.
    fn pause(&mut self, sink: &mut dyn Sink) -> anyhow::Result<()>;

    /// The capture is over: ends every flow.
    ///
    /// # Errors
    /// Those of `sink`.
    fn finish(&mut self, sink: &mut dyn Sink) -> anyhow::Result<()>;

    /// Frames that were refused so far, by cause.
    fn refused(&self) -> [u64; Cause::COUNT];

    /// Frames that could not be counted and are in no record, though they belong to a flow: why, and how many.
    fn left_out(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Flows that are held.
    fn flows(&self) -> usize;
}

/// Frames that are parsed before the first is counted.
const BATCH: usize = 64;

/// The parser and the record update that the kernel programs run, as native code.
pub struct Native {
    parser: link::Parser,
    table: Table,
    batch: Vec<(u64, Packet)>,
    refused: [u64; Cause::COUNT],
}

impl Native {
    /// An engine with this table, which reads the outermost flow of a frame.
    pub fn new(table: Table) -> Native {
        Native::with_parser(table, link::Parser::new(Options::NONE))
    }

    /// An engine with this table and this parser.
    pub fn with_parser(table: Table, parser: link::Parser) -> Native {
        Native { parser, table, batch: Vec::with_capacity(BATCH), refused: [0; Cause::COUNT] }
    }

    /// Reads frames under these options.
    #[must_use]
    pub fn with_options(self, options: Options) -> Native {
        Native { parser: link::Parser::new(options), ..self }
    }
}

impl Engine for Native {
    fn frame(&mut self, captured: &Captured<'_>, sink: &mut dyn Sink) -> Result<(), Stop> {
        match self.parser.parse(captured).map_err(Stop::Capture)? {
            Ok(packet) if packet.marks & mark::ICMP_ERROR != 0 => {
                let quoted = link::quoted(captured, &packet).map_err(Stop::Capture)?;
                // What came before has to be in the table.
                self.pause(sink).map_err(Stop::Failed)?;
                let mut sink = |record: &FlowRecord, reason| sink.record(record, reason);
                let counted = self.table.packet_with_quote(&packet, quoted.as_ref(), captured.time_ns, &mut sink);
                return counted.map_err(Stop::Failed);
            }
            Ok(packet) => self.batch.push((captured.time_ns, packet)),
            Err(cause) => self.refused[cause as usize] += 1,
        }
        if self.batch.len() < BATCH { Ok(()) } else { self.pause(sink).map_err(Stop::Failed) }
    }

    fn pause(&mut self, sink: &mut dyn Sink) -> anyhow::Result<()> {
        let result = self.table.packets(&self.batch, &mut |record, reason| sink.record(record, reason));
        self.batch.clear();
        result
    }

    fn finish(&mut self, sink: &mut dyn Sink) -> anyhow::Result<()> {
        self.pause(sink)?;
        self.table.finish(&mut |record, reason| sink.record(record, reason))
    }

    fn refused(&self) -> [u64; Cause::COUNT] {
        self.refused
    }

    fn flows(&self) -> usize {
        self.table.len()
    }
}
