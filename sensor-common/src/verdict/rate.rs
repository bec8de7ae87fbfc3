//! Rate limits: the generic cell rate algorithm (GCRA, ITU-T Recommendation I.371), a token bucket that keeps
//! one time instead of a number of tokens: the theoretical arrival time (TAT) at which the bucket is full again.

use super::Entry;

/// Costs are in units of 2^-16 ns, so that 100 Gbit/s (0.08 ns a byte) is exact to 0.02 %.
pub const COST_SHIFT: u32 = 16;
/// How far a burst may run ahead of its rate, ns: 100 ms worth of packets and bytes.
pub const BURST_NS: u64 = 100_000_000;
/// A frame is charged for at most this many bytes (and 2^16 segments), so that no product overflows at one a second.
pub const MAX_CHARGED_BYTES: u32 = 1 << 17;

/// What one packet or byte costs at `per_second` of them; 0 (no limit) stays 0.
pub const fn cost(per_second: u64) -> u64 {
    if per_second == 0 {
        return 0;
    }
    let cost = (1_000_000_000u64 << COST_SHIFT) / per_second;
    // Faster than what can be told apart is no limit at all.
    if cost == 0 { 1 } else { cost }
}

impl Entry {
    /// Whether `packets` wire packets of `bytes` in all are within both rates at `now_ns`; if so, they are charged. Call it
    /// under the entry's lock. The time may run back a little between CPUs.
    #[inline(always)]
    pub fn admits(&mut self, packets: u32, bytes: u32, now_ns: u64) -> bool {
        let limit_ns = now_ns.saturating_add(BURST_NS);
        if self.packet_cost != 0 && self.packet_tat_ns > limit_ns {
            return false;
        }
        if self.byte_cost != 0 && self.byte_tat_ns > limit_ns {
            return false;
        }
        let packets = if packets > 1 << 16 { 1 << 16 } else { packets } as u64;
        let bytes = if bytes > MAX_CHARGED_BYTES { MAX_CHARGED_BYTES } else { bytes } as u64;
        self.packet_tat_ns = charged(self.packet_tat_ns, &mut self.packet_rest, self.packet_cost, packets, now_ns);
        self.byte_tat_ns = charged(self.byte_tat_ns, &mut self.byte_rest, self.byte_cost, bytes, now_ns);
        true
    }
}

/// How far attempts beyond their rate run ahead of it at most, ns: 1 s after the last of them, the rate is kept again.
pub const RELAPSE_NS: u64 = 1_000_000_000;

impl Entry {
    /// Whether a half-open attempt at `now_ns` is within the packet rate. Other than with [`Entry::admits`], what is
    /// beyond it is charged as well: while more attempts come than the rate, all are beyond it. Of a flood, a share
    /// would otherwise pass that fills the queue of a service. Call it under the entry's lock.
    #[inline(always)]
    pub fn bears(&mut self, now_ns: u64) -> bool {
        let limit_ns = now_ns.saturating_add(BURST_NS);
        let within = self.packet_tat_ns <= limit_ns;
        let tat_ns = charged(self.packet_tat_ns, &mut self.packet_rest, self.packet_cost, 1, now_ns);
        let most_ns = limit_ns.saturating_add(RELAPSE_NS);
        // An attempt that is within the rate may cost more than that (one a minute).
        self.packet_tat_ns = if within || tat_ns < most_ns { tat_ns } else { most_ns };
        within || self.packet_cost == 0
    }
}

/// The arrival time after `count` more; `rest` is the part of a nanosecond that is left over.
#[inline(always)]
fn charged(tat_ns: u64, rest: &mut u16, cost: u64, count: u64, now_ns: u64) -> u64 {
    let from_ns = if tat_ns < now_ns { now_ns } else { tat_ns };
    let sum = cost.wrapping_mul(count).wrapping_add(*rest as u64);
    *rest = sum as u16;
    from_ns.wrapping_add(sum >> COST_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::{Action, Origin, Rate};

    const SECOND_NS: u64 = 1_000_000_000;

    fn limited(packets: u64, bytes: u64) -> Entry {
        Entry::new(Action::Limit, Origin::Operator, 1, u64::MAX).limited(Rate { packets, bytes })
    }

    /// Packets of `bytes` that pass in ten seconds of one every `every_ns`.
    fn passed(mut entry: Entry, every_ns: u64, bytes: u32) -> u64 {
        (0..10 * SECOND_NS / every_ns).filter(|i| entry.admits(1, bytes, SECOND_NS + i * every_ns)).count() as u64
    }

    #[test]
    fn attempts_beyond_the_rate_are_all_beyond_it() {
        let mut entry = limited(200, 0);
        let mut passed = |from: u64, seconds: u64, rate: u64| -> u64 {
            let at = |number: u64| SECOND_NS * (1000 + from) + number * SECOND_NS / rate;
            (0..seconds * rate).filter(|number| entry.bears(at(*number))).count() as u64
        };
        assert_eq!(passed(0, 10, 150), 1500, "below the rate");
        let burst = passed(10, 10, 3000);
        assert!(burst <= 25, "{burst} of 30,000, the burst alone");
        let first = passed(20, 2, 100);
        assert!((1..=80).contains(&first), "{first} of 200 right after the flood");
        assert_eq!(passed(22, 10, 150), 1500, "and then as before");
        let mut seldom = limited(1, 0);
        assert!(seldom.bears(SECOND_NS) && !seldom.bears(SECOND_NS + 1) && seldom.bears(5 * SECOND_NS));
    }

    #[test]
    fn rates_are_kept_within_the_burst() {
        for rate in [1u64, 7, 1000, 33_333] {
            let passed = passed(limited(rate, 0), 10_000, 100);
            let most = 10 * rate + rate / 10 + 1;
            assert!(passed >= 10 * rate && passed <= most, "{rate}/s: {passed}");
        }
        for rate in [1_000u64, 125_000, 12_345_678] {
            let bytes = 1500 * passed(limited(0, rate), 10_000, 1500);
            let most = 10 * rate + rate / 10 + 1500;
            assert!(bytes >= 10 * rate && bytes <= most, "{rate} B/s: {bytes}");
        }
    }

    #[test]
    fn both_rates_hold_and_what_is_refused_is_not_charged() {
        let passed = passed(limited(1_000_000, 150_000), 100_000, 1500);
        assert!((1000..=1011).contains(&passed), "{passed}");
        let mut entry = limited(1, 0);
        assert!(entry.admits(1, 60, SECOND_NS));
        let after = entry;
        assert!(!entry.admits(1, 60, SECOND_NS));
        assert_eq!(entry, after);
        assert!(entry.admits(1, 60, 3 * SECOND_NS), "an idle time does not add up");
        assert!(!entry.admits(1, 60, 3 * SECOND_NS + 1));
    }

    #[test]
    fn super_packets_cost_what_their_segments_do() {
        let mut entry = limited(100, 0);
        assert!(entry.admits(44, 64_000, SECOND_NS));
        assert!(!entry.admits(1, 60, SECOND_NS + 300_000_000));
        assert!(entry.admits(1, 60, SECOND_NS + 341_000_000));
    }

    #[test]
    fn the_largest_frame_at_the_least_rate_does_not_overflow() {
        let mut entry = limited(1, 1);
        assert!(entry.admits(u32::MAX, u32::MAX, SECOND_NS));
        assert_eq!(entry.byte_tat_ns, SECOND_NS + MAX_CHARGED_BYTES as u64 * SECOND_NS);
        assert_eq!(entry.packet_tat_ns, SECOND_NS + (SECOND_NS << 16));
    }
}
