//! Numbers of a direction, or of both together, as the views of other tools need them: sums, gaps, sample deviations.

use sensor_common::flow::{Direction, FlowRecord};
use sensor_common::packet::protocol;

use super::Row;

/// From the initiator.
pub(super) const FORWARD: usize = 0;
/// From the responder.
pub(super) const BACKWARD: usize = 1;
/// Both directions together.
pub(super) const BOTH: usize = 2;

/// What a set of packets adds up to.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) square: u64,
    pub(super) min: u64,
    pub(super) max: u64,
}

impl Sums {
    fn and(self, other: Sums) -> Sums {
        Sums {
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            square: self.square.wrapping_add(other.square),
            min: self.min.min(other.min),
            max: self.max.max(other.max),
        }
    }

    pub(super) fn mean(&self) -> f64 {
        self.bytes as f64 / self.packets as f64
    }

    pub(super) fn variance(&self) -> f64 {
        variance(self.packets, self.bytes, self.square.into())
    }

    pub(super) fn deviation(&self) -> f64 {
        self.variance().sqrt()
    }
}

/// Times between the frames of a set.
#[derive(Clone, Copy)]
pub(super) struct Gaps {
    count: u64,
    pub(super) span_ns: u64,
    square_ns: u128,
    pub(super) min_ns: u64,
    pub(super) max_ns: u64,
}

impl Gaps {
    pub(super) fn mean_ns(&self) -> f64 {
        self.span_ns as f64 / self.count as f64
    }

    pub(super) fn deviation_ns(&self) -> f64 {
        variance(self.count, self.span_ns, self.square_ns).sqrt()
    }
}

/// Sample variance from a count, a sum and a sum of squares; 0 of one value, NaN of none. Exact up to the division, but
/// for squares beyond 128 bits.
pub(super) fn variance(count: u64, sum: u64, square: u128) -> f64 {
    match count {
        0 => f64::NAN,
        1 => 0.0,
        _ => {
            let spread = square
                .checked_mul(count.into())
                .and_then(|square| Some(square.saturating_sub((sum as u128).checked_mul(sum.into())?)));
            let (n, square, sum) = (count as f64, square as f64, sum as f64);
            spread.map_or((n * square - sum * sum).max(0.0), |spread| spread as f64) / (n * (n - 1.0))
        }
    }
}

pub(super) fn half(record: &FlowRecord, side: usize) -> Option<&Direction> {
    record.direction(side)
}

fn combined<T>(record: &FlowRecord, side: usize, of: impl Fn(&Direction) -> T, and: impl Fn(T, T) -> T) -> Option<T> {
    match side {
        BOTH => match (half(record, FORWARD).map(&of), half(record, BACKWARD).map(&of)) {
            (Some(a), Some(b)) => Some(and(a, b)),
            (a, b) => a.or(b),
        },
        side => half(record, side).map(of),
    }
}

/// L4 payload.
pub(super) fn payload(record: &FlowRecord, side: usize) -> Option<Sums> {
    let of = |half: &Direction| Sums {
        packets: half.packets,
        bytes: half.payload_bytes,
        square: half.payload_square,
        min: half.payload_min.into(),
        max: half.payload_max.into(),
    };
    combined(record, side, of, Sums::and)
}

/// L3 lengths.
pub(super) fn l3(record: &FlowRecord, side: usize) -> Option<Sums> {
    let of = |half: &Direction| Sums {
        packets: half.packets,
        bytes: half.l3_bytes,
        square: half.l3_square,
        min: half.l3_min.into(),
        max: half.l3_max.into(),
    };
    combined(record, side, of, Sums::and)
}

/// A count, 0 in a direction that sent nothing.
pub(super) fn count(record: &FlowRecord, side: usize, of: impl Fn(&Direction) -> u64) -> u64 {
    combined(record, side, of, |a, b| a + b).unwrap_or(0)
}

pub(super) fn packets(record: &FlowRecord, side: usize) -> u64 {
    count(record, side, |half| half.packets)
}

/// Packets with a TCP flag, by its bit; 0 in other flows.
pub(super) fn flag(record: &FlowRecord, side: usize, bit: usize) -> i64 {
    if record.key.protocol != protocol::TCP {
        return 0;
    }
    count(record, side, |half| half.flag(bit).into()) as i64
}

/// First and last frame, ns.
pub(super) fn times(record: &FlowRecord, side: usize) -> Option<(u64, u64)> {
    match side {
        BOTH => Some((record.first_ns, record.last_ns)),
        side => Some((record.first_ns_of(side)?, half(record, side)?.last_ns)),
    }
}

pub(super) fn gaps(record: &FlowRecord, side: usize) -> Option<Gaps> {
    let (first_ns, last_ns) = times(record, side)?;
    let arrivals = count(record, side, |half| half.arrivals());
    let (low, high, min_ns, max_ns) = match half(record, side) {
        Some(half) if side != BOTH => (half.iat_square_low, half.iat_square_high, half.iat_min_ns, half.iat_max_ns),
        _ => (record.iat_square_low, record.iat_square_high, record.iat_min_ns, record.iat_max_ns),
    };
    (arrivals > 1).then(|| Gaps {
        count: arrivals - 1,
        span_ns: last_ns.saturating_sub(first_ns),
        square_ns: (high as u128) << 64 | low as u128,
        min_ns,
        max_ns,
    })
}

/// Duration of the flow, ns.
pub(super) fn duration_ns(row: &Row<'_>) -> u64 {
    row.record.last_ns.saturating_sub(row.record.first_ns)
}

/// A number or NaN.
pub(super) fn or_missing(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variances_are_of_samples() {
        assert!(variance(0, 0, 0).is_nan());
        assert_eq!(variance(1, 7, 49), 0.0);
        assert_eq!(variance(3, 600, 140_000), 10_000.0);
        // Two gaps of 40 hours and 1 ns more: doubles alone would give 0 or noise.
        let gap = 40 * 3_600_000_000_000u64;
        let square = (gap as u128).pow(2) + (gap as u128 + 1).pow(2);
        assert_eq!(variance(2, 2 * gap + 1, square), 0.5);
    }
}
