//! The last log lines, kept for `sensor support`.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of the last lines that are kept.
const KEPT: usize = 256 << 10;

/// How long a line may wait for standard error: a part of the shortest lease.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// For so long after a line that waited in vain no other one waits.
const REST: Duration = Duration::from_secs(2);

/// Standard error, and the last lines that were written there.
#[derive(Clone, Default)]
pub(super) struct Recent(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// When a line waited in vain for standard error, and how many were lost since.
    stuck: Option<(Instant, u64)>,
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
        let mut kept = self.lock();
        kept.keep(line);
        // A reader that stopped reading, or has gone, must not stop the agent.
        let lost = match &mut kept.stuck {
            Some((since, lost)) if since.elapsed() < REST => {
                *lost += 1;
                return Ok(line.len());
            }
            stuck => stuck.map_or(0, |(_, lost)| lost),
        };
        if !can_write() {
            kept.stuck = Some((Instant::now(), lost + 1));
            return Ok(line.len());
        }
        kept.stuck = None;
        drop(kept);
        let mut stderr = io::stderr();
        if lost > 0 {
            let _ = writeln!(stderr, "{lost} log lines were lost: standard error took none");
        }
        let _ = stderr.write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Whether standard error takes a line now, or within [`PATIENCE`].
fn can_write() -> bool {
    let stderr = io::stderr();
    let mut wanted = [PollFd::new(&stderr, PollFlags::OUT)];
    // What cannot be polled, as a file, is written to.
    poll(&mut wanted, Some(&PATIENCE)).map_or(true, |ready| ready > 0)
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
