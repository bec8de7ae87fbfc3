//! Lines that never hold up whoever writes them: a bounded queue, and a thread that writes to the descriptor.
//!
//! Invariant: [`Lines::write`] neither waits nor fails. A line that finds the queue full, or that its descriptor does
//! not take (a pipe nobody reads, a full disk, a file system that hangs), is lost and counted. What waits at the end of
//! the process is waited for within a limit. Called by [`super`], [`super::journal`] and the agent's summary.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

/// Lines that may wait for their descriptor: some 2 MiB.
const QUEUE: usize = 8_192;
/// Time between two looks whether all is written.
const LOOK: Duration = Duration::from_millis(2);

/// Where lines are handed over; clones share one queue.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Inner>);

struct Inner {
    queue: NonBlocking,
    dropped: ErrorCounter,
    handed: AtomicU64,
    counts: Arc<Counts>,
    /// Ends the thread. `None` once it was given up.
    guard: Option<WorkerGuard>,
}

/// What the thread tells.
#[derive(Default)]
struct Counts {
    /// Lines that were tried.
    done: AtomicU64,
    /// Lines that could not be written.
    failed: AtomicU64,
    /// The last one could not be.
    failing: AtomicBool,
}

impl Lines {
    /// Starts the thread `name`, which writes each line to `out` by one call.
    pub(crate) fn new(name: &str, out: impl Write + Send + 'static) -> Lines {
        let counts = Arc::<Counts>::default();
        let writer = Writer { out, cut: false, counts: counts.clone() };
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(QUEUE).thread_name(name);
        let (queue, guard) = builder.finish(writer);
        let dropped = queue.error_counter();
        Lines(Arc::new(Inner { queue, dropped, handed: AtomicU64::new(0), counts, guard: Some(guard) }))
    }

    /// Lines to a standard stream of this process.
    ///
    /// # Errors
    /// It is closed, or there is no descriptor left.
    pub(crate) fn to(name: &str, stream: impl AsFd) -> io::Result<Lines> {
        // Not the library's stream: its lock is held while a pipe is full, and its buffer keeps what a full disk
        // refused.
        Ok(Lines::new(name, File::from(stream.as_fd().try_clone_to_owned()?)))
    }

    /// Hands a line over, with its line feed.
    pub(crate) fn write(&self, line: &[u8]) {
        self.0.handed.fetch_add(1, Ordering::Relaxed);
        // A full queue is no error here; the crate counts it.
        let _ = self.0.queue.clone().write_all(line);
    }

    /// Lines that were lost since the start.
    pub(crate) fn lost(&self) -> u64 {
        self.0.dropped() + self.0.counts.failed.load(Ordering::Relaxed)
    }

    /// Whether nothing waits, and the last line was written.
    pub(crate) fn is_well(&self) -> bool {
        self.0.waiting() == 0 && !self.0.counts.failing.load(Ordering::Relaxed)
    }

    /// Waits until what was handed over is written, or until `limit` is over; whether it is.
    pub(crate) fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.0.waiting() > 0 {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

impl Inner {
    fn dropped(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }

    /// Lines in the queue and in the thread's hands.
    fn waiting(&self) -> u64 {
        let done = self.counts.done.load(Ordering::Acquire) + self.dropped();
        self.handed.load(Ordering::Relaxed).saturating_sub(done)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A guard whose thread is stuck says so by `println!`, which would wait for the same reader, or panic.
        if self.waiting() > 0 {
            std::mem::forget(self.guard.take());
        }
    }
}

struct Writer<W> {
    out: W,
    /// Of the last line only the beginning was written.
    cut: bool,
    counts: Arc<Counts>,
}

impl<W: Write> Writer<W> {
    fn put(&mut self, mut line: &[u8]) -> io::Result<()> {
        if self.cut {
            self.out.write_all(b"\n")?;
            self.cut = false;
        }
        let whole = line.len();
        while !line.is_empty() {
            match self.out.write(line) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => line = &line[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.cut = line.len() < whole;
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// One line for each call, as the queue hands them over; never an error, which the crate's thread would swallow.
impl<W: Write> Write for Writer<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let failed = self.put(line).is_err();
        self.counts.failing.store(failed, Ordering::Relaxed);
        self.counts.failed.fetch_add(u64::from(failed), Ordering::Relaxed);
        self.counts.done.fetch_add(1, Ordering::Release);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_pipe_that_nobody_reads_costs_lines_and_no_time() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let lines = Lines::to("test", &writer).expect("a thread");
        drop(writer);
        let begun = Instant::now();
        let line = [[b'x'; 999].as_slice(), b"\n"].concat();
        (0..20_000).for_each(|_| lines.write(&line));
        assert!(!lines.flush(Duration::from_millis(50)) && !lines.is_well());
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
        let lost = lines.lost();
        assert!(lost > 10_000, "64 in the pipe and {QUEUE} in the queue are kept, {lost} lost");
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            reader.read_to_end(&mut text).map(|_| text)
        });
        assert!(lines.flush(LONG) && lines.is_well());
        drop(lines);
        let text = reading.join().expect("no panic").expect("read");
        assert_eq!(text.len() as u64, (20_000 - lost) * 1_000, "each line is whole, or counted");
    }

    #[test]
    fn a_queue_that_is_stuck_can_be_given_up() {
        let (_reader, writer) = io::pipe().expect("a pipe");
        let lines = Lines::to("test", &writer).expect("a thread");
        (0..2 * QUEUE).for_each(|_| lines.write(&[b'x'; 4096]));
        let begun = Instant::now();
        drop(lines);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_full_disk_and_a_reader_that_has_gone_lose_each_line_and_stop_nothing() {
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let (reader, gone) = io::pipe().expect("a pipe");
        drop(reader);
        for out in [full, File::from(std::os::fd::OwnedFd::from(gone))] {
            let lines = Lines::new("test", out);
            (0..100).for_each(|_| lines.write(b"a line\n"));
            assert!(lines.flush(LONG));
            assert_eq!((lines.lost(), lines.is_well()), (100, false));
        }
    }

    #[test]
    fn half_a_line_does_not_spoil_the_next_one() {
        /// Takes three bytes, then nothing once, then all.
        struct Disk(Arc<std::sync::Mutex<Vec<u8>>>, u32);
        impl Write for Disk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 += 1;
                let count = match self.1 {
                    1 => 3,
                    2 => return Err(io::ErrorKind::StorageFull.into()),
                    _ => bytes.len(),
                };
                self.0.lock().expect("whole").extend_from_slice(&bytes[..count]);
                Ok(count)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let text = Arc::<std::sync::Mutex<Vec<u8>>>::default();
        let lines = Lines::new("test", Disk(text.clone(), 0));
        lines.write(b"first\n");
        lines.write(b"second\n");
        assert!(lines.flush(LONG) && lines.is_well());
        assert_eq!((lines.lost(), text.lock().expect("whole").as_slice()), (1, &b"fir\nsecond\n"[..]));
    }
}
