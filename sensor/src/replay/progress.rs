//! A progress bar on standard error, where that is a terminal. Called by [`super::run`].

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often the bar is drawn.
const INTERVAL: Duration = Duration::from_millis(100);
/// Packets between two looks at the clock.
const STRIDE: u64 = 4096;

/// Shows how far a capture is read, or nothing.
pub(super) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar for a capture of `len` bytes (`None` for a stream); none at all unless `shown` and on a terminal.
    pub(super) fn new(shown: bool, name: &str, len: Option<u64>) -> Progress {
        if !shown {
            return Progress { bar: ProgressBar::hidden() };
        }
        let (bar, form) = match len {
            Some(len) => (
                ProgressBar::new(len),
                "{prefix} {bar:24} {percent:>3} % {binary_bytes_per_sec}, {eta} left, {wide_msg}",
            ),
            None => (ProgressBar::no_length(), "{prefix} {spinner} {binary_bytes} {binary_bytes_per_sec}, {wide_msg}"),
        };
        bar.set_draw_target(ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(INTERVAL);
        Progress { bar }
    }

    /// After each packet: `packets` and `flows` so far, `read` bytes of the file.
    #[inline]
    pub(super) fn packet(&self, packets: u64, state: impl Fn() -> (u64, usize)) {
        if packets.is_multiple_of(STRIDE) && !self.bar.is_hidden() {
            let (read, flows) = state();
            self.bar.set_position(read);
            self.bar.set_message(format!("{packets} packets, {flows} flows held"));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
