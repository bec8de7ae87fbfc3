//! Reads capture files: pcap (micro- and nanoseconds) and pcapng, both byte orders.
//!
//! Invariant: memory is one read-ahead buffer, which grows for a record that is larger, and never beyond [`MAX_RECORD`],
//! whatever the file claims. A frame is lent from that buffer, not copied. Every error names the packet at which reading
//! stopped. Called by [`super::extract`].
//!
//! The format is decoded here because exactness is asked for where readers differ: the interface's time unit and offset
//! (`if_tsresol`, `if_tsoffset`), packets without a timestamp, options that are not UTF-8, lengths above the snap length.

use std::io::{ErrorKind, Read};
use std::ops::Range;

use anyhow::{Context, Result, bail, ensure};

/// Largest record of a capture that is read, in bytes. Frames are below 256 KiB; a larger claim is a damaged file.
pub const MAX_RECORD: u32 = 16 << 20;
/// Most interfaces that a pcapng section may describe; each takes memory for as long as the section lasts.
pub const MAX_INTERFACES: usize = 65_536;
/// Bytes that are read ahead: few system calls, and still inside a core's cache.
const READ_AHEAD: usize = 256 << 10;

/// One captured frame.
#[derive(Clone, Copy, Debug)]
pub struct Captured<'a> {
    /// Time of the packet, ns since the epoch of the capture: 1 (0 is "none" in a record) to `i64::MAX`.
    pub time_ns: u64,
    /// Link type (tcpdump.org registry).
    pub link: u32,
    /// Bytes that were kept.
    pub bytes: &'a [u8],
    /// Length of the frame on the wire, in bytes; at least that of `bytes`.
    pub wire_len: u32,
}

/// An interface of a pcapng section.
struct Interface {
    link: u32,
    snap_len: u32,
    /// Time units in a second.
    units: u64,
    offset_s: i64,
}

enum Format {
    Pcap { link: u32, nanoseconds: bool },
    PcapNg { interfaces: Vec<Interface> },
}

/// A capture that is being read.
pub struct Capture<R> {
    input: ReadAhead<R>,
    format: Format,
    big_endian: bool,
    packets: u64,
    last_ns: u64,
}

/// Where the bytes of a packet lie in the block that was read last.
struct Found {
    time_ns: u64,
    link: u32,
    /// Inside the block.
    bytes: Range<usize>,
    wire_len: u32,
}

impl<R: Read> Capture<R> {
    /// Reads the file's header.
    ///
    /// # Errors
    /// If the input is neither pcap nor pcapng, or ends inside its header.
    pub fn open(input: R) -> Result<Capture<R>> {
        let mut input = ReadAhead::new(input);
        let Some(magic) = input.take(4)? else {
            ensure!(input.is_drained(), "the file is too short to be a capture");
            bail!("the file is empty");
        };
        let magic: [u8; 4] = input.bytes(magic).try_into()?;
        if magic == [0x0a, 0x0d, 0x0d, 0x0a] {
            let mut capture = Capture::new(input, Format::PcapNg { interfaces: Vec::new() });
            capture.section().context("the first pcapng section header is damaged")?;
            return Ok(capture);
        }
        let (big_endian, nanoseconds) = match magic {
            [0xa1, 0xb2, 0xc3, 0xd4] => (true, false),
            [0xa1, 0xb2, 0x3c, 0x4d] => (true, true),
            [0xd4, 0xc3, 0xb2, 0xa1] => (false, false),
            [0x4d, 0x3c, 0xb2, 0xa1] => (false, true),
            _ => bail!("neither a pcap nor a pcapng file (it starts with {magic:02x?})"),
        };
        let header = input.take(20)?.context("the file ends inside the pcap header")?;
        let mut capture = Capture::new(input, Format::Pcap { link: 0, nanoseconds });
        capture.big_endian = big_endian;
        // The upper half of the field tells about frame check sequences.
        let link = capture.u32(capture.input.bytes(header), 16) & 0xffff;
        capture.format = Format::Pcap { link, nanoseconds };
        Ok(capture)
    }

    fn new(input: ReadAhead<R>, format: Format) -> Capture<R> {
        Capture { input, format, big_endian: false, packets: 0, last_ns: 0 }
    }

    /// Whether each packet is of an interface with a link type of its own.
    pub fn is_pcapng(&self) -> bool {
        matches!(self.format, Format::PcapNg { .. })
    }

    /// Packets that were read so far.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Whether all that was read from the input has been handed out: the next packet may have to be waited for.
    pub fn is_drained(&self) -> bool {
        self.input.is_drained()
    }

    /// The next packet, `None` at the end of the file.
    ///
    /// # Errors
    /// If the file is cut short or damaged there; what was read before is good.
    pub fn read(&mut self) -> Result<Option<Captured<'_>>> {
        let found = match self.format {
            Format::Pcap { link, nanoseconds } => self.pcap(link, nanoseconds),
            Format::PcapNg { .. } => self.pcapng(),
        };
        let found = found.with_context(|| format!("the capture cannot be read at packet {}", self.packets + 1))?;
        let Some(Found { time_ns, link, bytes, wire_len }) = found else { return Ok(None) };
        self.packets += 1;
        let time_ns = time_ns.clamp(1, i64::MAX as u64);
        self.last_ns = time_ns;
        let bytes = self.input.bytes(bytes);
        Ok(Some(Captured { time_ns, link, bytes, wire_len: wire_len.max(bytes.len() as u32) }))
    }

    fn pcap(&mut self, link: u32, nanoseconds: bool) -> Result<Option<Found>> {
        let Some(header) = self.input.take_or_end(16)? else { return Ok(None) };
        let header = self.input.bytes(header);
        let (seconds, fraction) = (self.u32(header, 0) as u64, self.u32(header, 4) as u64);
        let (len, wire_len) = (self.u32(header, 8), self.u32(header, 12));
        ensure!(len <= MAX_RECORD, "the record claims {len} bytes: the file is damaged");
        let bytes = self.input.take(len as usize)?.context("the file ends inside a packet: it was cut short")?;
        let unit_ns = if nanoseconds { 1 } else { 1_000 };
        Ok(Some(Found { time_ns: seconds * 1_000_000_000 + fraction * unit_ns, link, bytes, wire_len }))
    }

    /// Reads blocks up to the next one that holds a packet.
    fn pcapng(&mut self) -> Result<Option<Found>> {
        loop {
            let Some(kind) = self.input.take_or_end(4)? else { return Ok(None) };
            let kind: [u8; 4] = self.input.bytes(kind).try_into()?;
            if kind == [0x0a, 0x0d, 0x0d, 0x0a] {
                self.section()?;
                continue;
            }
            let body = self.body()?;
            let at = body.start;
            let body = self.input.bytes(body);
            let found = match self.u32(&kind, 0) {
                1 => {
                    let interface = self.interface(body)?;
                    if let Format::PcapNg { interfaces } = &mut self.format {
                        ensure!(
                            interfaces.len() < MAX_INTERFACES,
                            "a pcapng section describes more than {MAX_INTERFACES} interfaces: the file is damaged"
                        );
                        interfaces.push(interface);
                    }
                    None
                }
                2 => Some(self.packet(body, true)?),
                3 => Some(self.simple_packet(body)?),
                6 => Some(self.packet(body, false)?),
                _ => None,
            };
            if let Some(Found { time_ns, link, bytes, wire_len }) = found {
                let bytes = at + bytes.start..at + bytes.end;
                return Ok(Some(Found { time_ns, link, bytes, wire_len }));
            }
        }
    }

    /// A block's body, between the two words that give the block's length.
    fn body(&mut self) -> Result<Range<usize>> {
        const CUT: &str = "the file ends inside a block: it was cut short";
        let word = self.input.take(4)?.context(CUT)?;
        let len = self.u32(self.input.bytes(word), 0);
        ensure!((12..=MAX_RECORD).contains(&len), "a pcapng block claims {len} bytes: the file is damaged");
        let len = len as usize - 12;
        // Some writers state a length that is not a multiple of four but pad all the same.
        let padded = len.next_multiple_of(4);
        let rest = self.input.take(padded + 4)?.context(CUT)?;
        let closing = self.u32(self.input.bytes(rest.start + padded..rest.end), 0) as usize;
        ensure!(
            closing == len + 12,
            "a pcapng block of {} bytes ends with length {closing}: the file is damaged",
            len + 12
        );
        Ok(rest.start..rest.start + len)
    }

    /// A section header: its byte-order magic stands behind the length that it is needed for.
    fn section(&mut self) -> Result<()> {
        const CUT: &str = "the file ends inside a section header: it was cut short";
        let start = self.input.take(8)?.context(CUT)?;
        let start: [u8; 8] = self.input.bytes(start).try_into()?;
        self.big_endian = match start[4..] {
            [0x1a, 0x2b, 0x3c, 0x4d] => true,
            [0x4d, 0x3c, 0x2b, 0x1a] => false,
            _ => bail!("a pcapng section has no byte-order magic: the file is damaged"),
        };
        let len = self.u32(&start, 0);
        ensure!((28..=MAX_RECORD).contains(&len), "a pcapng section header claims {len} bytes: the file is damaged");
        // Type, length and magic (12 bytes) are read; the rest is of no use here.
        self.input.take(len as usize - 12)?.context(CUT)?;
        if let Format::PcapNg { interfaces } = &mut self.format {
            interfaces.clear();
        }
        Ok(())
    }

    fn interface(&self, body: &[u8]) -> Result<Interface> {
        ensure!(body.len() >= 8, "an interface description is too short");
        let mut interface =
            Interface { link: self.u16(body, 0) as u32, snap_len: self.u32(body, 4), units: 1_000_000, offset_s: 0 };
        let mut at = 8;
        while at + 4 <= body.len() {
            let (code, len) = (self.u16(body, at), self.u16(body, at + 2) as usize);
            let Some(value) = body.get(at + 4..at + 4 + len) else { break };
            match (code, len) {
                (0, _) => break,
                // if_tsresol: a power of ten, or of two with the top bit set.
                (9, 1) if value[0] & 0x80 == 0 => {
                    interface.units = 10u64.checked_pow(value[0] as u32).context("if_tsresol is out of range")?;
                }
                (9, 1) => {
                    let power = (value[0] & 0x7f) as u32;
                    interface.units = 1u64.checked_shl(power).context("if_tsresol is out of range")?;
                }
                (14, 8) => {
                    let (a, b) = (self.u32(value, 0) as u64, self.u32(value, 4) as u64);
                    interface.offset_s = if self.big_endian { a << 32 | b } else { b << 32 | a } as i64;
                }
                _ => {}
            }
            at += 4 + len.next_multiple_of(4);
        }
        Ok(interface)
    }

    fn described(&self, id: u32) -> Result<&Interface> {
        let Format::PcapNg { interfaces } = &self.format else { bail!("not a pcapng file") };
        interfaces.get(id as usize).with_context(|| format!("interface {id} of a packet was never described"))
    }

    /// Enhanced packet block, or the obsolete packet block that differs in its first word.
    fn packet(&self, body: &[u8], obsolete: bool) -> Result<Found> {
        ensure!(body.len() >= 20, "a packet block is too short");
        let id = if obsolete { self.u16(body, 0) as u32 } else { self.u32(body, 0) };
        let interface = self.described(id)?;
        let stamp = (self.u32(body, 4) as u64) << 32 | self.u32(body, 8) as u64;
        let (len, wire_len) = (self.u32(body, 12) as usize, self.u32(body, 16));
        ensure!(len <= body.len() - 20, "a packet block of {} bytes claims a packet of {len}", body.len());
        let ns = stamp as u128 * 1_000_000_000 / interface.units as u128;
        let ns = ns as i128 + interface.offset_s as i128 * 1_000_000_000;
        let time_ns = ns.clamp(0, u64::MAX as i128) as u64;
        Ok(Found { time_ns, link: interface.link, bytes: 20..20 + len, wire_len })
    }

    /// A simple packet block carries no time: it gets that of the packet before.
    fn simple_packet(&self, body: &[u8]) -> Result<Found> {
        ensure!(body.len() >= 4, "a simple packet block is too short");
        let interface = self.described(0)?;
        let wire_len = self.u32(body, 0);
        let snap_len = if interface.snap_len == 0 { u32::MAX } else { interface.snap_len };
        let len = (wire_len.min(snap_len) as usize).min(body.len() - 4);
        Ok(Found { time_ns: self.last_ns, link: interface.link, bytes: 4..4 + len, wire_len })
    }

    fn u16(&self, bytes: &[u8], at: usize) -> u16 {
        let word = [bytes[at], bytes[at + 1]];
        if self.big_endian { u16::from_be_bytes(word) } else { u16::from_le_bytes(word) }
    }

    fn u32(&self, bytes: &[u8], at: usize) -> u32 {
        let word = [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        if self.big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
    }
}

/// An input and the bytes of it that were read ahead.
struct ReadAhead<R> {
    input: R,
    buffer: Vec<u8>,
    /// Next byte to hand out.
    start: usize,
    /// End of what was read.
    end: usize,
}

impl<R: Read> ReadAhead<R> {
    fn new(input: R) -> ReadAhead<R> {
        ReadAhead { input, buffer: vec![0; READ_AHEAD], start: 0, end: 0 }
    }

    fn is_drained(&self) -> bool {
        self.start == self.end
    }

    fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// The next `len` bytes, in one piece, as a range for [`Self::bytes`] that holds until the next call. `None` if the
    /// input ends before that.
    fn take(&mut self, len: usize) -> Result<Option<Range<usize>>> {
        if self.end - self.start < len && !self.fill(len)? {
            return Ok(None);
        }
        let range = self.start..self.start + len;
        self.start += len;
        Ok(Some(range))
    }

    /// As [`Self::take`], where the input may end, but not between the bytes.
    fn take_or_end(&mut self, len: usize) -> Result<Option<Range<usize>>> {
        let range = self.take(len)?;
        ensure!(range.is_some() || self.is_drained(), "the file ends inside a record header: it was cut short");
        Ok(range)
    }

    /// Reads until `len` bytes are ahead; false if the input ends before that.
    #[cold]
    fn fill(&mut self, len: usize) -> Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < len {
            self.buffer.resize(len, 0);
        }
        while self.end < len {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Ok(false),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}
