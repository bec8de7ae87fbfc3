//! How long all has been quiet, counted while an agent runs.

use std::time::Duration;

/// Time without anything above a cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Quiet {
    spent_ns: u64,
    /// When it was last looked at. `None`: not since the start, whose clock may have begun anew.
    last_ns: Option<u64>,
}

impl Quiet {
    /// As an earlier agent left it.
    pub(super) fn resume(spent_ms: u64) -> Quiet {
        Quiet { spent_ns: spent_ms.saturating_mul(1_000_000), last_ns: None }
    }

    /// To be kept, ms.
    pub(super) fn spent_ms(self) -> u64 {
        self.spent_ns / 1_000_000
    }

    /// Something is above a cap: it begins anew.
    pub(super) fn broken(&mut self, now_ns: u64) {
        *self = Quiet { spent_ns: 0, last_ns: Some(now_ns) };
    }

    /// It is `now_ns`. Whether it has been quiet for `enough`; zero: never.
    pub(super) fn second(&mut self, busy: bool, now_ns: u64, enough: Duration) -> bool {
        if busy {
            self.broken(now_ns);
            return false;
        }
        let last = self.last_ns.replace(now_ns).unwrap_or(now_ns);
        self.spent_ns = self.spent_ns.saturating_add(now_ns.saturating_sub(last));
        !enough.is_zero() && u128::from(self.spent_ns) >= enough.as_nanos()
    }
}
