//! Numbers as text, in the shortest form that reads back to the same number.

/// Appends a whole number.
#[inline]
pub(super) fn integer(text: &mut Vec<u8>, value: i64) {
    // Most cells of a row are a single digit.
    if (0..10).contains(&value) {
        text.push(b'0' + value as u8);
    } else {
        text.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    }
}

/// Appends a finite number. It has a point, whole or not: readers that infer types from the first rows (polars, pandas,
/// DuckDB) would take the column for one of whole numbers, and fail at the first that is none.
#[inline]
pub(super) fn float(text: &mut Vec<u8>, value: f64) {
    let whole = value as i64;
    // Whole numbers are most of the numbers, and their digits cost a fraction of a general float's. Not −0.
    if whole as f64 == value && whole.unsigned_abs() < 1 << 53 && (whole != 0 || value.is_sign_positive()) {
        integer(text, whole);
        text.extend_from_slice(b".0");
        return;
    }
    let mut buffer = zmij::Buffer::new();
    let number = buffer.format_finite(value);
    match number.split_once('e') {
        Some((digits, exponent)) if !digits.contains('.') => {
            for part in [digits, ".0e", exponent] {
                text.extend_from_slice(part.as_bytes());
            }
        }
        _ => text.extend_from_slice(number.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back() {
        for value in [0.0, -0.0, 1.0, -7.0, 10.0, 0.1, 1e-9, 123.456, 9.0e15, 9_007_199_254_740_992.0, 1e300, -2.5e-300]
        {
            let mut text = Vec::new();
            float(&mut text, value);
            let text = String::from_utf8(text).expect("text");
            assert!(text.contains('.'), "{value} as {text}");
            let back: f64 = text.parse().expect("number");
            assert_eq!(back.to_bits(), f64::to_bits(value), "{value} as {text}");
        }
        let mut text = Vec::new();
        integer(&mut text, i64::MIN);
        assert_eq!(text, b"-9223372036854775808");
    }
}
