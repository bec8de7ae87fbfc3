//! Following one flow's record: when to look at it, and what to enter into the [`Ledger`].
//!
//! A flow is looked at [`VISIT_TICKS`] after it was first noticed and, while it sends, that often again; and when it ends.
//! Invariant: a flow is judged once, its reset and each of its bytes are entered once.

use sensor_common::context::{ANSWER_NS, Ends, tick_of};
use sensor_common::flow::{FlowRecord, state};

use super::ledger::{Events, Ledger};

/// Number of the SYN among TCP's flags.
const SYN_BIT: usize = sensor_common::tcp::SYN.trailing_zeros() as usize;

/// Time between two looks at a flow, in ticks: 1.07 s, so that the first comes after the flow's time for an answer.
pub(super) const VISIT_TICKS: u32 = 16;

const _: () = assert!((VISIT_TICKS as u64) << sensor_common::table::TICK_SHIFT > ANSWER_NS);

/// What a look at a record takes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Brief {
    generation: u32,
    first_ns: u64,
    last_ns: u64,
    /// Arrival of the first packet in reverse direction.
    answered_ns: Option<u64>,
    reset: bool,
    /// A reset ended the handshake.
    refused: bool,
    bytes: u64,
    /// SYNs of a TCP handshake that was begun, not refused and not completed; or the one in whose name it was begun
    /// knows nothing of it, and resets it. 0: it is none, or not begun by a SYN.
    half_open: u64,
    /// The handshake was completed.
    opened: bool,
}

impl Brief {
    /// What is needed of a record.
    pub fn of(record: &FlowRecord) -> Brief {
        // Of a flow from an endpoint to itself, no packet can be told to be an answer.
        let own = record.state & state::SELF != 0;
        let half_open = record.state & (state::SYN | state::ESTABLISHED | state::RST_REVERSE) == state::SYN;
        Brief {
            generation: record.generation,
            first_ns: record.first_ns,
            last_ns: record.last_ns,
            answered_ns: if own { Some(record.first_ns) } else { record.first_ns_of(1) },
            reset: record.state & state::RST != 0,
            refused: record.state & state::RST_EARLY != 0,
            bytes: record.l3_bytes(),
            half_open: if half_open { u64::from(record.directions[0].flag(SYN_BIT)).max(1) } else { 0 },
            opened: record.state & (state::SYN | state::ESTABLISHED) == state::SYN | state::ESTABLISHED,
        }
    }
}

/// What is remembered of the flow in one slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    bytes: u64,
    tag: u32,
    generation: u32,
    /// Tick of the last look, or when the flow was noticed.
    visited: u32,
    /// What the index showed then.
    seen: u16,
    judged: bool,
    reset: bool,
    /// SYNs without a connection that were entered.
    half_open: u32,
}

impl Watch {
    /// Whether it is time to look at the flow in this slot, of which the index shows `tag` and `seen`.
    pub fn is_due(&mut self, tag: u32, seen: u16, now: u32) -> bool {
        if tag != self.tag {
            *self = Watch { tag, visited: now, ..Watch::default() };
            return false;
        }
        tag != 0 && (!self.judged || self.seen != seen) && now.wrapping_sub(self.visited) >= VISIT_TICKS
    }

    /// Ticks for which it stays not due, while the index shows the same.
    pub fn rest(&self, seen: u16, now: u32) -> u32 {
        if self.tag == 0 || (self.judged && self.seen == seen) {
            return u32::MAX;
        }
        VISIT_TICKS.saturating_sub(now.wrapping_sub(self.visited))
    }

    /// The look is taken; the index showed `seen`.
    pub fn looked(&mut self, seen: u16, now: u32) {
        self.visited = now;
        self.seen = seen;
    }

    /// Whether it is this flow that is watched.
    pub fn is_of(&self, tag: u32, generation: u32) -> bool {
        self.tag == tag && self.generation == generation
    }

    /// Enters what is new since the last look. `ended`: it is the last.
    pub fn enter(&mut self, flow: &Brief, ends: &Ends, now_ns: u64, ended: bool, ledger: &mut Ledger) {
        if self.generation != flow.generation {
            (self.generation, self.bytes, self.judged, self.reset) = (flow.generation, 0, false, false);
            self.half_open = 0;
        }
        let new = Events {
            bytes: flow.bytes.saturating_sub(self.bytes),
            resets: (flow.reset && !self.reset) as u64,
            ..Events::default()
        };
        // A record that is over may be followed by another one of the same flow.
        self.bytes = if ended { 0 } else { flow.bytes };
        self.reset |= flow.reset;
        ledger.add(ends, tick_of(flow.last_ns.min(now_ns)), new);
        let until_ns = flow.first_ns.saturating_add(ANSWER_NS);
        if now_ns < until_ns && !ended {
            return;
        }
        // Each SYN, once it is clear that none of them led to anything.
        let half_open = flow.half_open.saturating_sub(u64::from(self.half_open));
        self.half_open = flow.half_open.min(u64::from(u32::MAX)) as u32;
        if self.judged {
            ledger.add(ends, tick_of(flow.last_ns.min(now_ns)), Events { half_open, ..Events::default() });
            return;
        }
        self.judged = true;
        let unanswered = flow.answered_ns.is_none_or(|at| at > until_ns);
        let judged = Events {
            judged: 1,
            unanswered: unanswered as u64,
            failed: (unanswered || flow.refused) as u64,
            half_open,
            opened: flow.opened as u64,
            ..Events::default()
        };
        ledger.add(ends, tick_of(until_ns.min(now_ns)), judged);
    }
}
