//! What the verdict maps hold. Written whole by the agent; the programs change rate, counts and lock only.

use bytemuck::{Pod, Zeroable};

use super::{Action, Origin, Verdict, cost, round_expiry};

/// A verdict on a flow, a source or a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Entry {
    /// The agent's number of this verdict.
    pub id: u64,
    /// End of validity, monotonic ns, a whole unit of [`super::EXPIRY_SHIFT`]: it ends with the words that records took from it.
    pub until_ns: u64,
    /// Number of an [`Action`].
    pub action: u8,
    /// Number of an [`Origin`].
    pub origin: u8,
    /// Number of the label in the model's list.
    pub label: u8,
    /// Reserved, zero.
    pub flags: u8,
    /// Sequence lock of the rate ([`crate::lock`]).
    pub sequence: u32,
    /// What a wire packet costs, 2^-16 ns ([`super::cost`]), 0 = no limit.
    pub packet_cost: u64,
    /// What a frame byte costs, likewise.
    pub byte_cost: u64,
    /// Theoretical arrival time of the packet rate, monotonic ns.
    pub packet_tat_ns: u64,
    /// Of the byte rate.
    pub byte_tat_ns: u64,
    /// Parts of a nanosecond that `packet_tat_ns` lacks, 2^-16 ns.
    pub packet_rest: u16,
    /// Of `byte_tat_ns`.
    pub byte_rest: u16,
    /// Reserved, zero.
    pub reserved: u32,
    /// Frames that this entry dropped, or would have in mode enforce. A record that obeys a drop verdict of its own counts
    /// in its `dropped`, not here.
    pub packets: u64,
    /// Bytes of these frames.
    pub bytes: u64,
}

const _: () = assert!(size_of::<Entry>() == 80);

/// A rate limit; 0 = none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rate {
    /// Wire packets a second.
    pub packets: u64,
    /// Frame bytes a second.
    pub bytes: u64,
}

impl Entry {
    /// A verdict that holds until `until_ns` (monotonic clock, rounded up to the unit), without a rate.
    pub const fn new(action: Action, origin: Origin, id: u64, until_ns: u64) -> Entry {
        Entry {
            id,
            until_ns: round_expiry(until_ns),
            action: action as u8,
            origin: origin as u8,
            label: 0,
            flags: 0,
            sequence: 0,
            packet_cost: 0,
            byte_cost: 0,
            packet_tat_ns: 0,
            byte_tat_ns: 0,
            packet_rest: 0,
            byte_rest: 0,
            reserved: 0,
            packets: 0,
            bytes: 0,
        }
    }

    /// The same with the model's label.
    #[must_use]
    pub const fn labelled(self, label: u8) -> Entry {
        Entry { label, ..self }
    }

    /// The same with a rate, for [`Action::Limit`] and for services.
    #[must_use]
    pub const fn limited(self, rate: Rate) -> Entry {
        Entry { packet_cost: cost(rate.packets), byte_cost: cost(rate.bytes), ..self }
    }

    /// The rate that [`Entry::limited`] was told, as exactly as its costs hold it.
    pub const fn rate(&self) -> Rate {
        Rate { packets: cost(self.packet_cost), bytes: cost(self.byte_cost) }
    }

    /// The word that a record takes over; its generation is still 0.
    #[inline(always)]
    pub const fn word(&self) -> Verdict {
        // `until_ns` is a whole unit, so the shift that `Verdict::new` would round is exact.
        let units = self.until_ns >> super::EXPIRY_SHIFT;
        let low = (self.action & 0xf) as u64 | ((self.origin & 0xf) as u64) << 4 | (self.label as u64) << 8;
        Verdict(low | units << 32)
    }

    /// The action that is wanted at `now_ns`: pass once expired. Lease and ceiling are the caller's to check.
    #[inline(always)]
    pub const fn action_at(&self, now_ns: u64) -> Action {
        if self.until_ns <= now_ns { Action::Pass } else { Action::from_number(self.action) }
    }

    /// What a renewed entry takes over from the one that it replaces: the state of the rate, and the counts.
    pub const fn carry_on(&mut self, before: &Entry) {
        self.packet_tat_ns = before.packet_tat_ns;
        self.byte_tat_ns = before.byte_tat_ns;
        self.packet_rest = before.packet_rest;
        self.byte_rest = before.byte_rest;
        self.packets = before.packets;
        self.bytes = before.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::EXPIRY_SHIFT;

    #[test]
    fn an_entry_ends_with_the_words_taken_from_it() {
        let unit = 1 << EXPIRY_SHIFT;
        for until_ns in [5 * unit, 5 * unit - 1, 5 * unit + 1] {
            let entry = Entry::new(Action::Drop, Origin::Operator, 1, until_ns).labelled(3);
            let word = entry.word().with_generation(9);
            assert_eq!((word.label(), word.origin(), word.until_ns()), (3, 1, entry.until_ns));
            for now_ns in [0, until_ns - 1, until_ns, 5 * unit - 1, 5 * unit, 6 * unit - 1, 6 * unit] {
                assert_eq!(word.action_at(9, now_ns), entry.action_at(now_ns), "{until_ns} at {now_ns}");
            }
        }
        let forever = Entry::new(Action::Drop, Origin::Operator, 1, u64::MAX);
        assert_eq!(forever.word().until_ns(), forever.until_ns);
    }
}
