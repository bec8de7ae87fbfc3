//! Verdicts: what becomes of a flow's packets, and who says so.
//!
//! A verdict says what mode enforce would do. What is done is bounded by a ceiling for each origin
//! ([`crate::control::Control::ceilings`]), so a change of mode, or a breaker that trips, is one store and holds for the
//! next packet; what a ceiling held back is counted by the programs packet by packet ([`settle`]).
//!
//! * The verdict **word** ([`Verdict`]) stands in a flow's record: 64 bits, stored by the agent in one write.
//! * An **entry** ([`Entry`]) stands in a map, by flow, by source address or prefix, or by service, and gives its word to
//!   the records that are started while it holds.
//!
//! Layout of the word, from the low bits: action 4, origin 4, label 8, generation 16, expiry 32. The generation is that of
//! the record the verdict was meant for: a store that comes too late for a reused slot has no effect. Numbers of actions
//! and origins that this version does not know pass.

mod entry;
pub mod known;
mod protection;
mod rate;
pub mod repeat;
mod scope;

pub use self::entry::{Entry, Rate};
pub use self::known::{KNOWN_NS, KNOWN_SETS, KnownSet};
pub use self::protection::{
    CLEARED_HIGH, CLEARED_LOW, EPOCHS, LOOPBACK, Link, cleared, is_essential, is_of_link, is_proven, is_scoped,
    local_end,
};
pub use self::rate::{BURST_NS, COST_SHIFT, MAX_CHARGED_BYTES, RELAPSE_NS, cost};
pub use self::repeat::{REPEAT_SETS, RepeatSet};
pub use self::scope::{
    ALLOWED_FLAG, MAX_ALLOWED, MAX_SERVICES, MAX_VERDICTS, PORT_WORDS, PrefixData, PrefixKey, ServiceKey, mapped,
    port_bit,
};

/// What happens to a flow's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Action {
    /// Passed untouched.
    Pass = 0,
    /// Passed with the configured skb mark (and DSCP, if set).
    Tag = 1,
    /// Passed up to a rate, dropped beyond it.
    Limit = 2,
    /// Dropped, in both directions.
    Drop = 3,
}

impl Action {
    /// Every action, in the order of its number.
    pub const ALL: [Action; 4] = [Action::Pass, Action::Tag, Action::Limit, Action::Drop];

    /// The name in metrics, logs and the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Action::Pass => "pass",
            Action::Tag => "tag",
            Action::Limit => "limit",
            Action::Drop => "drop",
        }
    }

    /// The action with this number; an unknown number passes.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Action {
        match number {
            1 => Action::Tag,
            2 => Action::Limit,
            3 => Action::Drop,
            _ => Action::Pass,
        }
    }
}

/// Who wants a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Origin {
    /// The model, by the policy.
    #[default]
    Model = 0,
    /// An operator, by command.
    Operator = 1,
    /// Another sensor of the fleet.
    Fleet = 2,
    /// A rule of the agent on what was measured, without a model: the limit of half-open attempts.
    Rule = 3,
}

impl Origin {
    /// Every origin, in the order of its number.
    pub const ALL: [Origin; 4] = [Origin::Model, Origin::Operator, Origin::Fleet, Origin::Rule];

    /// The name in metrics, logs and the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Origin::Model => "model",
            Origin::Operator => "operator",
            Origin::Fleet => "fleet",
            Origin::Rule => "rule",
        }
    }

    /// The origin with this number, `None` of an unknown number.
    pub const fn from_number(number: u8) -> Option<Origin> {
        match number {
            0 => Some(Origin::Model),
            1 => Some(Origin::Operator),
            2 => Some(Origin::Fleet),
            3 => Some(Origin::Rule),
            _ => None,
        }
    }
}

/// Expiries are kept in units of 2^30 ns (about 1.07 s) of the monotonic clock.
pub const EXPIRY_SHIFT: u32 = 30;

/// The end of validity that a word can hold: `until_ns` rounded up to the unit.
pub const fn round_expiry(until_ns: u64) -> u64 {
    expiry_units(until_ns) << EXPIRY_SHIFT
}

const fn expiry_units(until_ns: u64) -> u64 {
    let unit = 1u64 << EXPIRY_SHIFT;
    let units = until_ns / unit + !until_ns.is_multiple_of(unit) as u64;
    if units > u32::MAX as u64 { u32::MAX as u64 } else { units }
}

/// A verdict as it stands in a record. The zero word is "no verdict".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Verdict(pub u64);

impl Verdict {
    /// The model's verdict for the record of `generation`, valid until `until_ns` (monotonic clock, rounded up to the unit).
    pub const fn new(action: Action, label: u8, generation: u32, until_ns: u64) -> Verdict {
        let low = action as u64 | (label as u64) << 8 | ((generation & 0xffff) as u64) << 16;
        Verdict(low | expiry_units(until_ns) << 32)
    }

    /// The same verdict, of another origin.
    #[must_use]
    pub const fn of(self, origin: Origin) -> Verdict {
        Verdict(self.0 & !0xf0 | (origin as u64) << 4)
    }

    /// The same verdict, for the record of `generation`.
    #[must_use]
    #[inline(always)]
    pub const fn with_generation(self, generation: u32) -> Verdict {
        Verdict(self.0 & !0xffff_0000 | ((generation & 0xffff) as u64) << 16)
    }

    /// Whether there is a verdict at all, whatever its generation and time: the one test that a flow without one pays for.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 & 0xf != 0
    }

    /// The action that is wanted at `now_ns` for a record of `generation`: pass if expired or meant for another flow.
    /// Lease and ceiling are the caller's to check.
    #[inline(always)]
    pub const fn action_at(self, generation: u32, now_ns: u64) -> Action {
        if !self.is_some() || (self.0 >> 16) as u16 != generation as u16 || (self.0 >> 32) <= now_ns >> EXPIRY_SHIFT {
            return Action::Pass;
        }
        self.action()
    }

    /// The action that was stored, whether or not it still holds.
    #[inline(always)]
    pub const fn action(self) -> Action {
        Action::from_number(self.0 as u8 & 0xf)
    }

    /// Number of the origin, 0 to 15.
    #[inline(always)]
    pub const fn origin(self) -> u8 {
        self.0 as u8 >> 4
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

/// What a packet under a verdict would meet in mode enforce, and what is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What mode enforce does.
    pub would: Action,
    /// What is done.
    pub done: Action,
}

/// Bounds a verdict's `action` by the ceiling of its origin. `over`: of [`Action::Limit`], whether the packet is beyond the
/// rate.
#[inline(always)]
pub const fn settle(action: Action, over: bool, ceiling: Action) -> Settled {
    let over = over && matches!(action, Action::Limit);
    let bounded = if (ceiling as u8) < action as u8 { ceiling } else { action };
    let would = if over { Action::Drop } else { action };
    Settled { would, done: if over && matches!(bounded, Action::Limit) { Action::Drop } else { bounded } }
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
        assert_eq!(round_expiry(5 * unit - 1), 5 * unit);
        assert_eq!(Verdict::default().action_at(0, 0), Action::Pass);
        assert_eq!(Verdict(0xf | 1 << 63).action_at(0, 0), Action::Pass, "unknown actions pass");
    }

    #[test]
    fn origin_and_generation_are_beside_the_action() {
        let verdict = Verdict::new(Action::Limit, 9, 1, u64::MAX).of(Origin::Fleet).with_generation(0x8002);
        assert_eq!((verdict.action(), verdict.origin(), verdict.label()), (Action::Limit, 2, 9));
        assert_eq!(verdict.action_at(0x8002, 0), Action::Limit);
        assert_eq!(verdict.of(Origin::Model), Verdict::new(Action::Limit, 9, 0x8002, u64::MAX));
    }

    #[test]
    fn a_ceiling_bounds_what_is_done_and_not_what_would_be() {
        use Action::{Drop, Limit, Pass, Tag};
        for ceiling in Action::ALL {
            assert_eq!(settle(Drop, false, ceiling), Settled { would: Drop, done: ceiling });
            assert_eq!(settle(Tag, true, ceiling), Settled { would: Tag, done: Tag.min(ceiling) }, "a tag has no rate");
            let within = settle(Limit, false, ceiling);
            assert_eq!(within, Settled { would: Limit, done: Limit.min(ceiling) });
        }
        for (ceiling, done) in [(Pass, Pass), (Tag, Tag), (Limit, Drop), (Drop, Drop)] {
            assert_eq!(settle(Limit, true, ceiling), Settled { would: Drop, done });
        }
    }
}
