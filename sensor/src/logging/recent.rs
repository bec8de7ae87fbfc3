//! The last log lines, kept for `sensor support`.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Bytes of the last lines that are kept.
const KEPT: usize = 256 << 10;

/// Standard error, and the last lines that were written there.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
}

impl Recent {
    /// One line that went elsewhere.
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

/// One line, as it comes out of the formatter.
impl io::Write for Recent {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.keep(line);
        // A reader that stopped reading must not stop the agent.
        let _ = io::stderr().write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Recent {
    type Writer = Recent;

    fn make_writer(&'a self) -> Recent {
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
