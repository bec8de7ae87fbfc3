//! The whole numbers that real-valued features are made of: means, shares, rates and variances, rounded down, in
//! integers.
//!
//! Kernel and host run the same functions, so a threshold on a feature is a threshold on one whole number, and both
//! sides decide alike (docs/decisions/0037). Nothing here needs 128-bit multiplication or division, which BPF does not
//! have. Results fit an `i64`.

use crate::table::bit_length;

/// Fractions are whole numbers of 2⁻¹⁶.
pub const FRACTION_BITS: u32 = 16;
/// Binary digits that a large variance keeps.
const KEPT: u32 = 55;
/// Largest whole part of a fraction.
const MOST: u64 = (1 << (62 - FRACTION_BITS)) - 1;

/// `a / b`, rounded down, and what is left; 0 where `b` is 0, also where the compiler cannot see that it is not: a
/// panic cannot be compiled for the kernel.
#[inline(always)]
fn divide(a: u64, b: u64) -> (u64, u64) {
    (a.checked_div(b).unwrap_or(0), a.checked_rem(b).unwrap_or(0))
}

/// `part / whole` in steps of 2⁻¹⁶, rounded down; 0 where `whole` is 0. Exact below `whole` = 2⁴⁸; the result is at
/// most 2⁶² − 1.
#[inline(always)]
pub fn fraction(part: u64, whole: u64) -> u64 {
    if whole == 0 {
        return 0;
    }
    let (quotient, rest) = divide(part, whole);
    if quotient > MOST {
        return (MOST << FRACTION_BITS) | 0xffff;
    }
    // Beyond 2⁴⁸ the lowest bits of `whole` are left out, and the rest may reach it.
    let coarse = whole >> FRACTION_BITS;
    let (fine, _) = if whole >> 48 == 0 { divide(rest << FRACTION_BITS, whole) } else { divide(rest, coarse) };
    (quotient << FRACTION_BITS) + if fine > 0xffff { 0xffff } else { fine }
}

/// Events per second in steps of 2⁻¹⁶, of `count` events in `ns` nanoseconds, rounded down; 0 where `ns` is 0. Exact
/// below 2⁴⁷ events and 208 days; longer times count as 208 days. The result is at most 2⁶² − 1.
#[inline(always)]
pub fn rate(count: u64, ns: u64) -> u64 {
    const LONGEST: u64 = 1 << 54;
    const LARGEST: u64 = (1 << 62) - 1;
    if ns == 0 {
        return 0;
    }
    let ns = if ns > LONGEST { LONGEST } else { ns };
    let count = if count >> 47 == 0 { count << FRACTION_BITS } else { LARGEST };
    let (mut whole, mut rest) = divide(count, ns);
    // Times 10⁹, in three steps that fit into 64 bits.
    for _ in 0..3 {
        if whole > LARGEST / 1000 - 1 {
            return LARGEST;
        }
        let (more, left) = divide(rest * 1000, ns);
        (whole, rest) = (whole * 1000 + more, left);
    }
    whole
}

/// An unsigned number of 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wide {
    /// Its high 64 bits.
    pub high: u64,
    /// Its low 64 bits.
    pub low: u64,
}

impl Wide {
    /// `a * b`.
    #[inline(always)]
    const fn product(a: u64, b: u64) -> Wide {
        const LOW: u64 = u32::MAX as u64;
        let (a_high, a_low, b_high, b_low) = (a >> 32, a & LOW, b >> 32, b & LOW);
        let (low, one, other, high) = (a_low * b_low, a_low * b_high, a_high * b_low, a_high * b_high);
        let middle = (low >> 32) + (one & LOW) + (other & LOW);
        Wide { low: (middle << 32) | (low & LOW), high: high + (one >> 32) + (other >> 32) + (middle >> 32) }
    }

    #[inline(always)]
    const fn plus(self, other: Wide) -> Wide {
        let low = self.low.wrapping_add(other.low);
        let carry = (low < other.low) as u64;
        Wide { low, high: self.high.wrapping_add(other.high).wrapping_add(carry) }
    }

    /// `self - other`, not below 0.
    #[inline(always)]
    const fn less(self, other: Wide) -> Wide {
        if self.high < other.high || (self.high == other.high && self.low < other.low) {
            return Wide { high: 0, low: 0 };
        }
        let borrow = (self.low < other.low) as u64;
        Wide { low: self.low.wrapping_sub(other.low), high: self.high - other.high - borrow }
    }

    /// Without its lowest `bits`, at most 63.
    #[inline(always)]
    const fn shifted(self, bits: u32) -> Wide {
        if bits == 0 {
            return self;
        }
        let bits = bits & 63;
        Wide { low: (self.low >> bits) | (self.high << 1 << (63 - bits)), high: self.high >> bits }
    }

    /// Times 2¹⁶.
    #[inline(always)]
    const fn raised(self) -> Wide {
        Wide { high: (self.high << FRACTION_BITS) | (self.low >> (64 - FRACTION_BITS)), low: self.low << FRACTION_BITS }
    }

    /// `self / divisor`, rounded down; the divisor is from 1 to 2³² − 1.
    #[inline(always)]
    fn divided(self, divisor: u64) -> Wide {
        const LOW: u64 = u32::MAX as u64;
        let (high, rest) = divide(self.high, divisor);
        let (middle, rest) = divide((rest << 32) | (self.low >> 32), divisor);
        let (low, _) = divide((rest << 32) | (self.low & LOW), divisor);
        Wide { high, low: (middle << 32) | low }
    }
}

/// The population variance of `count` values with this sum and this sum of squares, times 2^`scale` (0 or 16), rounded
/// down, as [`squash`] writes it; 0 where `count` is 0. It is `floor(floor(D · 2^scale / count) / count)`, where D =
/// count · square − sum²: exactly so below 2³² values, and below 2²⁴ where `scale` is 16.
#[inline(always)]
pub fn variance(count: u64, sum: u64, square: Wide, scale: u32) -> u64 {
    if count == 0 {
        return 0;
    }
    // sum² / count = quotient · sum + quotient · rest + rest² / count: the first two are whole, the last is small.
    let (quotient, rest) = divide(sum, count);
    let whole = Wide::product(quotient, sum).plus(Wide::product(quotient, rest));
    let rest_square = rest.wrapping_mul(rest);
    let (spread, small) = if scale == 0 && count >> 32 == 0 {
        (square.less(whole), divided_up(rest_square, count))
    } else if scale != 0 && count >> 24 == 0 {
        (square.less(whole).raised(), divided_up(rest_square << FRACTION_BITS, count))
    } else {
        let small = (rest >> 16).wrapping_mul(fraction(rest, count));
        if scale == 0 { (square.less(whole), small) } else { (square.less(whole).raised(), small << FRACTION_BITS) }
    };
    let spread = spread.less(Wide { high: 0, low: small });
    let length = bit_length(count) as u32;
    let extra = length.saturating_sub(32);
    squash(spread.shifted(extra).divided(count >> (extra & 63)))
}

#[inline(always)]
fn divided_up(value: u64, divisor: u64) -> u64 {
    let (quotient, rest) = divide(value, divisor);
    quotient + (rest > 0) as u64
}

/// A wide number in an `i64`, in the same order: as it is below 2⁵⁵, with its 55 leading binary digits from there on.
#[inline(always)]
pub fn squash(wide: Wide) -> u64 {
    let length = if wide.high == 0 { bit_length(wide.low) as u32 } else { 64 + bit_length(wide.high) as u32 };
    if length <= KEPT {
        return wide.low;
    }
    let exponent = length - KEPT;
    let leading = if exponent < 64 { wide.shifted(exponent).low } else { wide.high >> ((exponent - 64) & 63) };
    ((exponent as u64) << (KEPT - 1)) + leading
}

/// What [`squash`] was given, with the digits that it left out as zeros.
#[cfg(any(feature = "std", test))]
pub fn expand(squashed: u64) -> f64 {
    if squashed >> KEPT == 0 {
        return squashed as f64;
    }
    let exponent = (squashed >> (KEPT - 1)) - 1;
    let leading = squashed - (exponent << (KEPT - 1));
    leading as f64 * 2f64.powi(exponent as i32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wide(value: u128) -> Wide {
        Wide { high: (value >> 64) as u64, low: value as u64 }
    }

    proptest! {
        #[test]
        fn fractions_are_exact(part in 0..1u64 << 62, bits in 0..48u32, whole in 1..1u64 << 48) {
            let whole = (whole >> bits).max(1);
            let exact = ((part as u128) << FRACTION_BITS) / whole as u128;
            prop_assert_eq!(fraction(part, whole) as u128, exact.min((1 << 62) - 1));
        }

        #[test]
        fn large_fractions_are_near(part in any::<u64>(), whole in 1u64 << 48..) {
            let exact = ((part as u128) << FRACTION_BITS) / whole as u128;
            let difference = (fraction(part, whole) as i128 - exact as i128).abs();
            prop_assert!(difference <= 1, "{} of {exact}", difference);
        }

        #[test]
        fn rates_are_exact(count in 0..1u64 << 46, bits in 0..54u32, ns in 1..1u64 << 54) {
            let ns = (ns >> bits).max(1);
            let exact = ((count as u128) << FRACTION_BITS) * 1_000_000_000 / ns as u128;
            prop_assert_eq!(rate(count, ns) as u128, if exact < 1 << 61 { exact } else { rate(count, ns) as u128 });
            prop_assert!(rate(count, ns) < 1 << 62);
        }

        #[test]
        fn products_and_quotients_are_exact(a in any::<u64>(), b in any::<u64>(), divisor in 1..1u64 << 32) {
            let product = a as u128 * b as u128;
            prop_assert_eq!(Wide::product(a, b), wide(product));
            prop_assert_eq!(Wide::product(a, b).divided(divisor), wide(product / divisor as u128));
        }

        #[test]
        fn differences_end_at_zero(a in any::<u128>(), b in any::<u128>(), bits in 0..64u32) {
            prop_assert_eq!(wide(a).less(wide(b)), wide(a.saturating_sub(b)));
            prop_assert_eq!(wide(a).plus(wide(b)), wide(a.wrapping_add(b)));
            prop_assert_eq!(wide(a).shifted(bits), wide(a >> bits));
        }

        #[test]
        fn variances_are_exact(values in prop::collection::vec(0..1u64 << 48, 1..40), small in 4..48u32) {
            let values: Vec<u128> = values.iter().map(|value| (value >> small) as u128).collect();
            let (count, sum) = (values.len() as u128, values.iter().sum::<u128>());
            let square = values.iter().map(|value| value * value).sum::<u128>();
            let spread = count * square - sum * sum;
            let exact = |scale: u32| squash(wide((spread << scale) / count / count));
            for scale in [0, 16] {
                prop_assert_eq!(variance(count as u64, sum as u64, wide(square), scale), exact(scale));
            }
        }

        #[test]
        fn squashed_numbers_keep_their_order(a in any::<u128>(), b in any::<u128>(), bits in 0..128u32, near in 0..4u128) {
            let (a, b) = (a >> bits, b >> bits);
            for (less, more) in [(a.min(b), a.max(b)), (a, a.saturating_add(near)), (a.saturating_sub(near), a)] {
                let (less, more) = (squash(wide(less)), squash(wide(more)));
                prop_assert!(less <= more && expand(less) <= expand(more) && more <= i64::MAX as u64);
            }
            prop_assert!((expand(squash(wide(a))) - a as f64).abs() <= a as f64 * 1e-15);
        }
    }

    #[test]
    fn many_values_have_nearly_their_variance() {
        // Half are 0 and half are 1,000: variance 250,000.
        for bits in [25, 31, 33, 40] {
            let count = 1u64 << bits;
            for (scale, unit) in [(0, 1.0), (16, 65536.0)] {
                let variance = variance(count + 1, count / 2 * 1000, wide((count as u128) / 2 * 1_000_000), scale);
                let variance = expand(variance) / unit;
                assert!((variance - 250_000.0).abs() < 1.1, "{variance} of 2^{bits}");
            }
        }
    }

    #[test]
    fn the_edges_of_squashing_meet() {
        let edge = 1u128 << KEPT;
        assert_eq!(squash(wide(edge)), squash(wide(edge - 1)) + 1);
        assert_eq!(squash(wide(edge * 2)), squash(wide(edge * 2 - 1)) + 1);
        assert_eq!((fraction(5, 0), rate(5, 0), variance(0, 5, wide(5), 0)), (0, 0, 0));
    }
}
