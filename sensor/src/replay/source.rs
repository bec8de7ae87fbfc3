//! Where a capture's bytes come from: a file, a pipe or standard input (`-`), plain or compressed with gzip or zstd.
//!
//! The compression is told by the first bytes, never by the name. Called by [`super::extract`].

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, ErrorKind, Read};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use flate2::bufread::GzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Bytes that are read at once from a compressed file.
const COMPRESSED_READ: usize = 64 << 10;

/// An opened capture.
pub(super) struct Source {
    /// Its bytes, decompressed.
    pub(super) input: Box<dyn Read>,
    /// Size of the file, in bytes; `None` for a stream.
    pub(super) len: Option<u64>,
    /// Bytes of the file that were read so far.
    pub(super) read: Rc<Cell<u64>>,
}

/// Whether `path` stands for standard input.
pub(super) fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

impl Source {
    /// Opens a file, or standard input for `-`.
    ///
    /// # Errors
    /// If it cannot be opened, is a directory or is empty.
    pub(super) fn open(path: &Path) -> Result<Source> {
        let read = Rc::new(Cell::new(0));
        let (raw, len): (Box<dyn Read>, _) = if is_stdin(path) {
            (Box::new(io::stdin().lock()), None)
        } else {
            let file = File::open(path).context("open the capture")?;
            let about = file.metadata().context("open the capture")?;
            ensure!(!about.is_dir(), "it is a directory: name the captures inside it");
            ensure!(!about.is_file() || about.len() > 0, "the file is empty");
            let len = about.is_file().then_some(about.len());
            (Box::new(file), len)
        };
        let input = decompressed(Counted { input: raw, read: Rc::clone(&read) }).context("read the capture")?;
        Ok(Source { input, len, read })
    }
}

/// Looks at the first bytes and puts a decompressor before the rest, where one is needed.
fn decompressed(mut raw: Counted) -> io::Result<Box<dyn Read>> {
    let mut magic = Vec::with_capacity(4);
    raw.by_ref().take(4).read_to_end(&mut magic)?;
    let compression = magic.clone();
    let whole = Cursor::new(magic).chain(raw);
    Ok(match compression[..] {
        [0x1f, 0x8b, ..] => {
            let input = Gzip::new(BufReader::with_capacity(COMPRESSED_READ, whole));
            Box::new(Named { name: "gzip", input })
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let input = Zstd::new(BufReader::with_capacity(COMPRESSED_READ, whole));
            Box::new(Named { name: "zstd", input })
        }
        _ => Box::new(whole),
    })
}

/// Counts what is read.
struct Counted {
    input: Box<dyn Read>,
    read: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(into)?;
        self.read.set(self.read.get() + read as u64);
        Ok(read)
    }
}

/// Says in errors which decompressor met them.
struct Named<R> {
    name: &'static str,
    input: R,
}

impl<R: Read> Read for Named<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let name = self.name;
        self.input.read(into).map_err(|error| io::Error::new(error.kind(), format!("decompress ({name}): {error}")))
    }
}

/// The members of a gzip file, one after the other (RFC 1952), and zeros behind them, as tapes and block copies pad.
struct Gzip<R> {
    /// `None` at the end of the file.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> Gzip<R> {
    fn new(input: R) -> Gzip<R> {
        Gzip { member: Some(GzDecoder::new(input)) }
    }
}

/// Whether anything but zeros is left: then its first byte is the next.
fn skip_zeros(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let bytes = input.fill_buf()?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let (all, end) = (zeros == bytes.len(), bytes.is_empty());
        input.consume(zeros);
        if end || !all {
            return Ok(!end);
        }
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.member {
            let read = member.read(into)?;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            if skip_zeros(member.get_mut())? {
                self.member = self.member.take().map(|member| GzDecoder::new(member.into_inner()));
            } else {
                self.member = None;
            }
        }
        Ok(0)
    }
}

/// The frames of a zstd file, one after the other (RFC 8878: a file may hold several, and frames to skip).
struct Zstd<R> {
    input: R,
    decoder: FrameDecoder,
    inside: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(input: R) -> Zstd<R> {
        Zstd { input, decoder: FrameDecoder::new(), inside: false }
    }

    /// Goes to the next frame; false at the end of the file.
    fn next(&mut self) -> io::Result<bool> {
        while !self.input.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.input) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut self.input.by_ref().take(length as u64), &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::new(ErrorKind::InvalidData, error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.inside && !self.next()? {
                return Ok(0);
            }
            self.inside = true;
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
            }
            let read = self.decoder.read(into)?;
            if read > 0 || into.is_empty() {
                return Ok(read);
            }
            self.inside = false;
        }
    }
}
