//! The verdict word: 64 bits in a flow record, stored by the agent in one write and obeyed by the kernel.
//!
//! Layout, from the low bits: action 8, label 8, generation 16, expiry 32. The generation is that of the record the
//! verdict was meant for: a store that comes too late for a reused slot has no effect.

/// What happens to a flow's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Action {
    /// Passed untouched.
    Pass = 0,
    /// Passed with the configured skb mark (and DSCP, if set).
    Tag = 1,
    /// Dropped, in both directions.
    Drop = 2,
}

impl Action {
    /// Every action, in the order of its number.
    pub const ALL: [Action; 3] = [Action::Pass, Action::Tag, Action::Drop];

    /// The name in metrics, logs and the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Pass => "pass",
            Action::Tag => "tag",
            Action::Drop => "drop",
        }
    }

    /// The action with this number; an unknown number passes.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Action {
        match number {
            1 => Action::Tag,
            2 => Action::Drop,
            _ => Action::Pass,
        }
    }
}

/// Expiries are kept in units of 2^30 ns (about 1.07 s) of the monotonic clock.
pub const EXPIRY_SHIFT: u32 = 30;

/// A verdict as it stands in a record. The zero word is "no verdict".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Verdict(pub u64);

impl Verdict {
    /// A verdict for the record of `generation`, valid until `until_ns` (monotonic clock, rounded up to the unit).
    pub const fn new(action: Action, label: u8, generation: u32, until_ns: u64) -> Verdict {
        let unit = 1u64 << EXPIRY_SHIFT;
        let units = until_ns / unit + !until_ns.is_multiple_of(unit) as u64;
        let expiry = if units > u32::MAX as u64 { u32::MAX as u64 } else { units };
        Verdict(action as u64 | (label as u64) << 8 | ((generation & 0xffff) as u64) << 16 | expiry << 32)
    }

    /// The action that holds at `now_ns` for a record of `generation`: pass if expired or meant for another flow.
    /// The lease is the caller's to check.
    #[inline(always)]
    pub const fn action_at(self, generation: u32, now_ns: u64) -> Action {
        if self.0 as u8 == 0 || (self.0 >> 16) as u16 != generation as u16 || (self.0 >> 32) <= now_ns >> EXPIRY_SHIFT {
            return Action::Pass;
        }
        Action::from_number(self.0 as u8)
    }

    /// The action that was stored, whether or not it still holds.
    pub const fn action(self) -> Action {
        Action::from_number(self.0 as u8)
    }

    /// Number of the label in the model's list.
    pub const fn label(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// End of validity, monotonic nanoseconds.
    pub const fn until_ns(self) -> u64 {
        (self.0 >> 32) << EXPIRY_SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_only_for_its_generation_and_time() {
        let unit = 1 << EXPIRY_SHIFT;
        let verdict = Verdict::new(Action::Drop, 7, 0x1_0003, 5 * unit - 1);
        assert_eq!(verdict.action_at(0x1_0003, 0), Action::Drop);
        assert_eq!(verdict.action_at(0x1_0003, 5 * unit - 1), Action::Drop);
        assert_eq!(verdict.action_at(0x1_0003, 5 * unit), Action::Pass);
        assert_eq!(verdict.action_at(0x1_0004, 0), Action::Pass);
        assert_eq!((verdict.label(), verdict.until_ns()), (7, 5 * unit));
        assert_eq!(Verdict::default().action_at(0, 0), Action::Pass);
        assert_eq!(Verdict(0xff).action_at(0, 0), Action::Pass, "unknown actions pass");
    }
}
