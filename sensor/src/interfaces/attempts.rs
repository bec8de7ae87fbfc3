//! Attempts to watch an interface that failed before: each pause is twice the one before. An attempt may have had XDP
//! on the interface for a moment, for which some drivers stop the link.

use std::time::Duration;

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Those on one interface.
#[derive(Clone, Debug, Default)]
pub struct Attempts {
    /// After the last one.
    pause: Duration,
    /// When the next one is due.
    next: Duration,
    error: String,
}

impl Attempts {
    /// Whether it is time for one. `now`: since any fixed moment.
    pub fn due(&self, now: Duration) -> bool {
        now >= self.next
    }

    /// Whether one has failed.
    pub fn have_failed(&self) -> bool {
        !self.pause.is_zero()
    }

    /// Seconds to the next one, after one failed.
    pub fn pause(&self) -> u64 {
        self.pause.as_secs()
    }

    /// It failed. Whether that is to be said: the error is another one, or the pause is longer than before.
    pub fn failed(&mut self, error: String, now: Duration) -> bool {
        let pause = (2 * self.pause).clamp(Duration::from_secs(1), LONGEST_PAUSE);
        let is_news = pause > self.pause || error != self.error;
        *self = Attempts { pause, next: now + pause, error };
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_minute_and_only_news_are_told() {
        let mut attempts = Attempts::default();
        assert!(!attempts.have_failed());
        let (mut tried, mut told) = (Vec::new(), Vec::new());
        for second in 0..300 {
            let now = Duration::from_secs(second);
            if attempts.due(now) {
                tried.push(second);
                if attempts.failed("no place".to_owned(), now) {
                    told.push(second);
                }
            }
        }
        assert_eq!(tried, [0, 1, 3, 7, 15, 31, 63, 123, 183, 243]);
        assert_eq!(told, [0, 1, 3, 7, 15, 31, 63]);
        assert!(attempts.failed("no memory".to_owned(), Duration::from_secs(303)), "another reason");
        assert!(attempts.have_failed() && attempts.pause() == 60);
    }
}
