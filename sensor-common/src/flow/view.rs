//! What the host reads out of a record: sums that are still open, halves by side, values that follow from others.

use super::{Direction, FlowRecord, IDLE_NS, Opening, Pauses, state};
use crate::packet::protocol;
use crate::tcp;

/// Active or idle periods, µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Periods {
    /// How many.
    pub count: u64,
    /// Their sum.
    pub sum_us: u64,
    /// The shortest, 0 if there is none.
    pub min_us: u64,
    /// The longest.
    pub max_us: u64,
    /// Sum of squares, µs²; `u64::MAX` if it is larger than that.
    pub square_us2: u64,
}

impl FlowRecord {
    /// A direction (0 = forward) that has sent something.
    pub fn direction(&self, side: usize) -> Option<&Direction> {
        let valid = side == 0 || self.state & state::REVERSE != 0;
        self.directions.get(side).filter(|half| valid && half.packets > 0)
    }

    /// What the first packets of a direction say, if it has sent something.
    pub fn opening(&self, side: usize) -> Option<&Opening> {
        self.direction(side).and(self.openings.get(side))
    }

    /// Type and code of the first packet of an ICMP or ICMPv6 flow.
    pub fn icmp_message(&self) -> (u8, u8) {
        let opening = &self.openings[self.first[0].direction as usize & 1];
        (opening.icmp_type, opening.icmp_code)
    }

    /// Arrival of the first frame of a direction, ns.
    pub fn first_ns_of(&self, side: usize) -> Option<u64> {
        let began = self.first[0].direction as usize;
        self.direction(side).map(|_| if side == began { self.first_ns } else { self.reply_ns })
    }

    /// Arrival of the SYN that opened the connection, ns: the initiator's first packet, if it is one.
    pub fn syn_ns(&self) -> Option<u64> {
        self.opening(0).filter(|opening| tcp::is_first_syn(opening.flags)).and(self.first_ns_of(0))
    }

    /// Bursts of a direction: they alternate.
    pub fn bursts_of(&self, side: usize) -> u64 {
        let of_first = (self.bursts as u64).div_ceil(2);
        if self.first[0].direction as usize == side { of_first } else { self.bursts as u64 - of_first }
    }

    /// Ways of the flow's bucket that other flows held when it was born, 0 to 8; 8: one of them was given up for it.
    pub fn occupied_ways(&self) -> u32 {
        self.state >> state::WAYS_SHIFT
    }

    /// Active periods: runs of frames with gaps of at most 5 s ([`IDLE_NS`]); the present one counts as if it ended now.
    /// A period of one frame is 0 µs long.
    pub fn active(&self) -> Periods {
        const { assert!(IDLE_NS == 5_000_000_000) };
        let duration_us = self.last_ns.saturating_sub(self.first_ns) / 1000;
        let over = self.over();
        let present_us = duration_us.saturating_sub(over.active_start_us);
        let square = present_us.saturating_mul(present_us);
        Periods {
            count: self.idles as u64 + 1,
            sum_us: duration_us.saturating_sub(over.idle_sum_us),
            min_us: over.active_min_us.min(present_us),
            max_us: over.active_max_us.max(present_us),
            square_us2: over.active_square_us2.saturating_add(square),
        }
    }

    /// Idle periods: gaps of more than 5 s.
    pub fn idle(&self) -> Periods {
        let Pauses { idle_sum_us, idle_min_us, idle_max_us, idle_square_us2, .. } = self.over();
        let min_us = if self.idles == 0 { 0 } else { idle_min_us };
        Periods {
            count: self.idles as u64,
            sum_us: idle_sum_us,
            min_us,
            max_us: idle_max_us,
            square_us2: idle_square_us2,
        }
    }

    /// The periods that are over.
    fn over(&self) -> Pauses {
        if self.idles > 0 {
            return self.pauses;
        }
        Pauses { active_min_us: u64::MAX, idle_min_us: u64::MAX, ..bytemuck::Zeroable::zeroed() }
    }

    /// The record with zeros in what is not valid (leftovers of the slot's earlier flows), so that two can be compared.
    pub fn normalized(&self) -> FlowRecord {
        let mut record = *self;
        for side in [0, 1] {
            if self.direction(side).is_none() {
                record.openings[side] = bytemuck::Zeroable::zeroed();
            }
        }
        if self.state & state::REVERSE == 0 {
            record.directions[1] = bytemuck::Zeroable::zeroed();
        }
        for arrival in record.first.iter_mut().skip(self.first_len as usize) {
            *arrival = bytemuck::Zeroable::zeroed();
        }
        if self.idles == 0 {
            record.pauses = bytemuck::Zeroable::zeroed();
        }
        if self.key.protocol != protocol::TCP {
            record.numbers = bytemuck::Zeroable::zeroed();
        }
        if self.spare.generation != self.generation {
            record.spare = bytemuck::Zeroable::zeroed();
        }
        record
    }
}
