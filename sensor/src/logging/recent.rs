//! The last log lines, kept for `sensor support`, on their way to standard error.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

use super::lines::Lines;

/// Bytes of the last lines that are kept.
const KEPT: usize = 256 << 10;

/// The last lines; clones share them.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Recent {
    /// One more line.
    pub(super) fn keep(&self, line: &[u8]) {
        self.lock().keep(line);
    }

    /// All that is kept.
    pub(super) fn text(&self) -> String {
        self.lock().lines.iter().map(|line| String::from_utf8_lossy(line)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Whoever panicked left whole lines behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn keep(&mut self, line: &[u8]) {
        self.bytes += line.len();
        self.lines.push_back(line.to_vec());
        while self.bytes > KEPT {
            let Some(oldest) = self.lines.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }
}

/// Keeps lines as they come out of the formatter, one for each call, and hands them on.
#[derive(Clone)]
pub(super) struct Through {
    pub(super) recent: Recent,
    pub(super) lines: Lines,
}

impl io::Write for Through {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.recent.keep(line);
        self.lines.write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Through {
    type Writer = Through;

    fn make_writer(&'a self) -> Through {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept() {
        let mut kept = Kept::default();
        let line = [b'x'; 1000];
        (0..1000).for_each(|_| kept.keep(&line));
        kept.keep(b"the last");
        assert!(kept.bytes <= KEPT && kept.bytes > KEPT - 2000, "{}", kept.bytes);
        assert_eq!(kept.bytes, kept.lines.iter().map(Vec::len).sum::<usize>());
        assert_eq!(kept.lines.back().map(Vec::as_slice), Some(&b"the last"[..]));
    }
}
