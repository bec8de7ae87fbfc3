//! Whole numbers that follow from a record's sums: what real-valued features are of, for kernel and host alike
//! ([`crate::whole`]).

use super::{Direction, FlowRecord, Periods};
use crate::whole::{FRACTION_BITS, Wide, fraction, rate, variance};

/// The flow itself, where a function takes a side: both directions together.
pub const BOTH: usize = 2;

/// The gaps between successive frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gaps {
    /// How many.
    pub count: u64,
    /// The time that they take together, ns.
    pub span_ns: u64,
    /// The smallest, ns.
    pub min_ns: u64,
    /// The largest, ns.
    pub max_ns: u64,
    /// Sum of their squares, ns².
    pub square_ns2: Wide,
}

impl Gaps {
    const NONE: Gaps = Gaps { count: 0, span_ns: 0, min_ns: 0, max_ns: 0, square_ns2: Wide { high: 0, low: 0 } };

    /// Their mean, ns, rounded down; 0 if there are none.
    #[inline(always)]
    pub fn mean_ns(&self) -> u64 {
        self.span_ns.checked_div(self.count).unwrap_or(0)
    }

    /// Their population variance, ns², as [`variance`] gives it.
    #[inline(always)]
    pub fn variance_ns2(&self) -> u64 {
        variance(self.count, self.span_ns, self.square_ns2, 0)
    }
}

impl Direction {
    /// Mean L3 length, in steps of 2⁻¹⁶ bytes.
    #[inline(always)]
    pub fn l3_mean(&self) -> u64 {
        fraction(self.l3_bytes, self.packets)
    }

    /// Population variance of the L3 length, in steps of 2⁻¹⁶ bytes², as [`variance`] gives it.
    #[inline(always)]
    pub fn l3_variance(&self) -> u64 {
        variance(self.packets, self.l3_bytes, Wide { high: 0, low: self.l3_square }, FRACTION_BITS)
    }

    /// Mean payload, in steps of 2⁻¹⁶ bytes.
    #[inline(always)]
    pub fn payload_mean(&self) -> u64 {
        fraction(self.payload_bytes, self.packets)
    }

    /// Population variance of the payload, in steps of 2⁻¹⁶ bytes², as [`variance`] gives it.
    #[inline(always)]
    pub fn payload_variance(&self) -> u64 {
        variance(self.packets, self.payload_bytes, Wide { high: 0, low: self.payload_square }, FRACTION_BITS)
    }
}

impl FlowRecord {
    /// Time from the first frame to the last, ns.
    #[inline(always)]
    pub fn duration_ns(&self) -> u64 {
        self.last_ns.saturating_sub(self.first_ns)
    }

    /// Wire packets of both directions per second of duration, in steps of 2⁻¹⁶, as [`rate`] gives it.
    #[inline(always)]
    pub fn packet_rate(&self) -> u64 {
        rate(self.packets(), self.duration_ns())
    }

    /// The gaps of a direction's frames, or of the flow's ([`BOTH`]).
    #[inline(always)]
    pub fn gaps(&self, side: usize) -> Gaps {
        if side == BOTH {
            return Gaps {
                count: self.frames().saturating_sub(1),
                span_ns: self.duration_ns(),
                min_ns: self.iat_min_ns,
                max_ns: self.iat_max_ns,
                square_ns2: Wide { high: self.iat_square_high as u64, low: self.iat_square_low },
            };
        }
        let (Some(half), Some(first_ns)) = (self.direction(side), self.first_ns_of(side)) else { return Gaps::NONE };
        Gaps {
            count: half.arrivals().saturating_sub(1),
            span_ns: half.last_ns.saturating_sub(first_ns),
            min_ns: half.iat_min_ns,
            max_ns: half.iat_max_ns,
            square_ns2: Wide { high: half.iat_square_high as u64, low: half.iat_square_low },
        }
    }
}

impl Periods {
    /// Their mean, µs, rounded down; 0 if there are none.
    #[inline(always)]
    pub fn mean_us(&self) -> u64 {
        self.sum_us.checked_div(self.count).unwrap_or(0)
    }

    /// Whether [`Periods::variance_us2`] is known: the sum of their squares fits, or all are equal.
    #[inline(always)]
    pub fn spread_is_known(&self) -> bool {
        self.min_us == self.max_us || self.square_us2 != u64::MAX
    }

    /// Their population variance, µs², as [`variance`] gives it.
    #[inline(always)]
    pub fn variance_us2(&self) -> u64 {
        if self.min_us == self.max_us {
            return 0;
        }
        variance(self.count, self.sum_us, Wide { high: 0, low: self.square_us2 }, 0)
    }
}
