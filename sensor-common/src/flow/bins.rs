//! Histogram bins, and the exact wide sums behind the deviations. Called under the record's lock.

/// Size bins: payload of 0, 1–63, 64–127, 128–255, 256–511, 512–1023, 1024–1399, 1400 and more bytes.
pub const SIZE_BINS: usize = 8;
/// Inter-arrival bins, see [`IAT_BIN_EDGES_NS`].
pub const IAT_BINS: usize = 8;
/// Bin n holds times below edge n (and not below edge n − 1), the last one the rest: eightfold steps from 8.192 µs to
/// 2.147 s.
pub const IAT_BIN_EDGES_NS: [u64; IAT_BINS - 1] = [1 << 13, 1 << 16, 1 << 19, 1 << 22, 1 << 25, 1 << 28, 1 << 31];

/// The bin of a payload size, see [`SIZE_BINS`]. (Three comparisons, not seven: for the kernel each is a branch.)
#[inline(always)]
pub fn size_bin(payload: u32) -> usize {
    if payload >= 256 {
        if payload >= 1024 { 6 + (payload >= 1400) as usize } else { 4 + (payload >= 512) as usize }
    } else if payload >= 64 {
        2 + (payload >= 128) as usize
    } else {
        (payload > 0) as usize
    }
}

/// The bin of an inter-arrival time, see [`IAT_BIN_EDGES_NS`].
#[inline(always)]
pub fn iat_bin(iat_ns: u64) -> usize {
    let at_least = |edge: usize| iat_ns >= IAT_BIN_EDGES_NS[edge];
    if at_least(3) {
        if at_least(5) { 6 + at_least(6) as usize } else { 4 + at_least(4) as usize }
    } else if at_least(1) {
        2 + at_least(2) as usize
    } else {
        at_least(0) as usize
    }
}

/// [`add_square`] of a value of at most 32 bits.
#[inline(always)]
pub(super) fn add_small_square(low: &mut u64, high: &mut u32, value: u64) {
    let square = value.wrapping_mul(value);
    let sum = low.wrapping_add(square);
    *low = sum;
    if sum < square {
        *high = high.saturating_add(1);
    }
}

/// Adds `value`² to a 96-bit sum kept in two words (the BPF machine multiplies 64 bits to 64 bits).
///
/// Times between packets of one flow add up to its duration, so the sum of their squares in ns² is exact for flows of
/// up to 78 hours; beyond that it stays at its largest value.
#[inline(always)]
pub(super) fn add_square(low: &mut u64, high: &mut u32, value: u64) {
    let (upper, lower) = (value >> 32, value & 0xffff_ffff);
    let square = lower * lower;
    let sum = low.wrapping_add(square);
    let mut carry = (sum < square) as u64;
    *low = sum;
    if upper | carry != 0 {
        // (upper·2^32 + lower)² = upper²·2^64 + 2·upper·lower·2^32 + lower²
        let cross = upper.wrapping_mul(lower);
        let sum = low.wrapping_add(cross << 33);
        carry += (sum < cross << 33) as u64;
        *low = sum;
        let top = (*high as u64 + carry + (cross >> 31)).wrapping_add(upper.wrapping_mul(upper));
        *high = if top > u32::MAX as u64 { u32::MAX } else { top as u32 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_are_exact_over_64_bits() {
        let (mut low, mut high) = (0, 0);
        let mut expected = 0u128;
        for value in [0, 1, u32::MAX as u64, 1 << 32, 3_600_000_000_000, (1 << 42) + 12_345, 40 * 3_600_000_000_000] {
            add_square(&mut low, &mut high, value);
            expected += value as u128 * value as u128;
        }
        assert_eq!((high as u128) << 64 | low as u128, expected);
        for _ in 0..40 {
            add_square(&mut low, &mut high, 40 * 3_600_000_000_000);
        }
        assert_eq!(high, u32::MAX, "it does not wrap");
    }

    #[test]
    fn bins_are_what_they_say() {
        let edges = [
            (0, 0),
            (1, 1),
            (63, 1),
            (64, 2),
            (127, 2),
            (128, 3),
            (255, 3),
            (256, 4),
            (511, 4),
            (512, 5),
            (1023, 5),
            (1024, 6),
            (1399, 6),
            (1400, 7),
            (65_000, 7),
        ];
        for (payload, bin) in edges {
            assert_eq!(size_bin(payload), bin, "payload {payload}");
        }
        let times = [
            (0, 0),
            (8_191, 0),
            (8_192, 1),
            (65_535, 1),
            (65_536, 2),
            (524_288, 3),
            (4_194_303, 3),
            (4_194_304, 4),
            (33_554_432, 5),
            (268_435_456, 6),
            (2_147_483_647, 6),
            (2_147_483_648, 7),
            (u64::MAX, 7),
        ];
        for (iat_ns, bin) in times {
            assert_eq!(iat_bin(iat_ns), bin, "{iat_ns} ns");
        }
    }
}
