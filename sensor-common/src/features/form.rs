//! How a feature's value follows from its whole number: one monotone function for each form, so that a threshold on the
//! value is a threshold on the number.

use crate::flow::ENTROPY_UNIT;
use crate::whole::{FRACTION_BITS, expand};

/// How a whole number becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// It is the value.
    Count,
    /// Nanoseconds; the value is in seconds.
    Nanoseconds,
    /// Microseconds; the value is in seconds.
    Microseconds,
    /// Steps of 2⁻¹⁶.
    Fraction,
    /// Steps of 1/32, as entropies are kept.
    Entropy,
    /// A variance in steps of 2⁻¹⁶; the value is its root.
    Root,
    /// A variance in ns²; the value is its root, in seconds.
    RootNanoseconds,
    /// A variance in µs²; the value is its root, in seconds.
    RootMicroseconds,
}

impl Form {
    /// The whole number, in words. Empty where it is the value itself.
    pub const fn words(self) -> &'static str {
        const {
            assert!(FRACTION_BITS == 16 && ENTROPY_UNIT == 32);
        }
        match self {
            Form::Count => "",
            Form::Nanoseconds => "nanoseconds, rounded down",
            Form::Microseconds => "microseconds, rounded down",
            Form::Fraction => "1/65536, rounded down",
            Form::Entropy => "1/32, rounded down",
            Form::Root => "the variance in 1/65536, rounded down, its 55 leading binary digits",
            Form::RootNanoseconds => "the variance in ns², rounded down, its 55 leading binary digits",
            Form::RootMicroseconds => "the variance in µs², rounded down, its 55 leading binary digits",
        }
    }

    /// The value of a whole number. Monotone.
    pub fn value(self, whole: i64) -> f64 {
        let root = || expand(whole.max(0) as u64).sqrt();
        match self {
            Form::Count => whole as f64,
            Form::Nanoseconds => whole as f64 / 1e9,
            Form::Microseconds => whole as f64 / 1e6,
            Form::Fraction => whole as f64 / (1u64 << FRACTION_BITS) as f64,
            Form::Entropy => whole as f64 / ENTROPY_UNIT as f64,
            Form::Root => root() / (1u64 << (FRACTION_BITS / 2)) as f64,
            Form::RootNanoseconds => root() / 1e9,
            Form::RootMicroseconds => root() / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_keep_the_order_of_their_numbers(a in any::<i64>(), bits in 0..64u32, step in 1..1000i64) {
            use Form::{Count, Entropy, Fraction, Microseconds, Nanoseconds, Root, RootMicroseconds, RootNanoseconds};
            let (less, more) = (a >> bits, (a >> bits).saturating_add(step));
            for form in [Count, Nanoseconds, Microseconds, Fraction, Entropy, Root, RootNanoseconds, RootMicroseconds] {
                prop_assert!(form.value(less) <= form.value(more), "{form:?} of {less}");
                prop_assert!(form.value(more).is_finite());
            }
        }
    }
}
