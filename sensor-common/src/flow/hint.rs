//! What the first payload bytes of a direction look like. The bytes themselves are never kept.
//!
//! Called by [`super::FlowRecord::update`] for the first packet with payload of each direction, where the program or the
//! caller asked for hints ([`Packet::sample_len`] is not 0). Without branches on the bytes: each would double what the
//! verifier walks.

use super::opening::Opening;
use crate::packet::{Packet, protocol};

/// Unit of [`Opening::hint_entropy`]: 1/32 bit.
pub const ENTROPY_UNIT: u32 = 32;

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// 256 · log2(n), rounded to the nearest, for n from 0 (never used) to 16; a power of two long, so that a masked index
/// is in bounds.
const LOG2: [u16; 32] = [
    0, 0, 256, 406, 512, 594, 662, 719, 768, 812, 850, 886, 918, 947, 975, 1000, 1024, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0,
];

/// Bit 7 of each byte that is zero, exactly.
#[inline(always)]
fn zeros(word: u64) -> u64 {
    !(((word & !HIGH).wrapping_add(!HIGH)) | word) & HIGH
}

/// How many of the bit 7s are set.
#[inline(always)]
fn count(mask: u64) -> u64 {
    (mask >> 7).wrapping_mul(LOW) >> 56
}

/// Bit 7 of each byte that is printable ASCII, tab, line feed or carriage return.
#[inline(always)]
fn text(word: u64) -> u64 {
    let printable = (word & !HIGH).wrapping_add(0x60 * LOW) & !word & HIGH & !zeros(word ^ (0x7f * LOW));
    printable | zeros(word ^ (0x09 * LOW)) | zeros(word ^ (0x0a * LOW)) | zeros(word ^ (0x0d * LOW))
}

/// Fills the hints of `opening`.
#[inline(always)]
pub(super) fn hint(opening: &mut Opening, packet: &Packet) {
    let sample = &packet.sample;
    let words = [(sample[0] as u64) << 32 | sample[1] as u64, (sample[2] as u64) << 32 | sample[3] as u64];
    let len = if packet.sample_len > 16 { 16 } else { packet.sample_len as u64 };
    opening.hint_len = len as u8;
    opening.hint_text = (count(text(words[0])) + count(text(words[1]))) as u8;
    opening.hint_high = (count(words[0] & HIGH) + count(words[1] & HIGH)) as u8;
    // H = log2(n) − (1/n) Σ log2(times that the byte at each position occurs).
    let padding = 16 - len;
    let mut sum = 0u64;
    let mut position = 0;
    while position < 16 {
        let byte = words[position / 8] >> (56 - 8 * (position % 8)) & 0xff;
        let found = count(zeros(words[0] ^ (byte * LOW))) + count(zeros(words[1] ^ (byte * LOW)));
        // Padding is zero bytes too. All ones or nothing: is the byte zero, is the position inside?
        let is_zero = byte.wrapping_sub(1) as i64 >> 63;
        let inside = (position as u64).wrapping_sub(len) as i64 >> 63;
        let times = found.wrapping_sub(padding & is_zero as u64);
        sum += LOG2[(times & 31) as usize] as u64 & inside as u64;
        position += 1;
    }
    let mean = sum.checked_div(len).unwrap_or(0);
    opening.hint_entropy =
        ((LOG2[(len & 31) as usize] as u64).saturating_sub(mean) / (256 / ENTROPY_UNIT as u64)) as u8;
    opening.version = version(packet);
}

/// TLS (RFC 8446 §5.1: a record, and in it a ClientHello or ServerHello with its own legacy version), DTLS (RFC 9147) or
/// QUIC (RFC 9000 §17.2: a long header with a version of the IETF's).
#[inline(always)]
fn version(packet: &Packet) -> u32 {
    let [first, second, third, _] = packet.sample;
    let kind = first >> 24;
    let major = first >> 16 & 0xff;
    let is_record = (20..=23).contains(&kind);
    match packet.key.protocol {
        protocol::TCP if is_record && major == 3 && packet.sample_len >= 5 => {
            let hello = second >> 16 & 0xff;
            let is_hello = kind == 22 && (hello == 1 || hello == 2) && packet.sample_len >= 11;
            if is_hello { third >> 8 & 0xffff } else { first >> 8 & 0xffff }
        }
        protocol::UDP if is_record && major == 0xfe && packet.sample_len >= 13 => first >> 8 & 0xffff,
        protocol::UDP if kind & 0xc0 == 0xc0 && packet.sample_len >= 5 => {
            let version = first << 8 | second >> 24;
            let known = version == 1 || version == 0x6b33_43cf || version >> 8 == 0x00ff_0000;
            if known { version } else { 0 }
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hinted(bytes: &[u8], transport: u8) -> Opening {
        let mut frame = vec![0u8; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2]);
        frame.extend([0, 9, 0, 9, 0, 8, 0, 0]);
        let mut packet = crate::packet::parse(&frame[..]).expect("well-formed");
        packet.key.protocol = transport;
        packet.sample_len = bytes.len().min(16) as u8;
        for (position, byte) in bytes.iter().take(16).enumerate() {
            packet.sample[position / 4] |= (*byte as u32) << (24 - 8 * (position % 4));
        }
        let mut opening = <Opening as bytemuck::Zeroable>::zeroed();
        hint(&mut opening, &packet);
        opening
    }

    #[test]
    fn classes_and_entropy_are_those_of_a_plain_count() {
        let samples: [&[u8]; 8] = [
            b"GET / HTTP/1.1\r\n",
            b"aaaaaaaaaaaaaaaa",
            b"ab\0\0",
            b"\x7f\x1f\x20\x7e\x80\xff\x09\x0a\x0d\x08",
            b"\0",
            &[0; 16],
            &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xf0],
            b"\0\0\0a",
        ];
        for bytes in samples {
            let opening = hinted(bytes, protocol::UDP);
            let n = bytes.len() as f64;
            let times = |byte: u8| bytes.iter().filter(|other| **other == byte).count() as f64;
            let entropy = -bytes.iter().map(|byte| (times(*byte) / n).log2() / n).sum::<f64>();
            let text = bytes.iter().filter(|b| (0x20..0x7f).contains(*b) || b"\t\n\r".contains(*b)).count();
            let high = bytes.iter().filter(|b| **b >= 0x80).count();
            assert_eq!(
                (opening.hint_len as usize, opening.hint_text as usize, opening.hint_high as usize),
                (bytes.len(), text, high),
                "{bytes:?}"
            );
            let found = opening.hint_entropy as f64 / ENTROPY_UNIT as f64;
            assert!((found - entropy).abs() <= 1.5 / ENTROPY_UNIT as f64, "{bytes:?}: {found}, {entropy}");
        }
    }

    #[test]
    fn versions_are_read() {
        let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3, 0, 0, 0, 0, 0];
        assert_eq!(hinted(&hello, protocol::TCP).version, 0x0303);
        assert_eq!(hinted(&hello[..9], protocol::TCP).version, 0x0301, "no hello in sight: the record's own");
        assert_eq!(hinted(&[0x17, 3, 3, 0, 9], protocol::TCP).version, 0x0303);
        assert_eq!(hinted(&hello, protocol::UDP).version, 0);
        assert_eq!(hinted(b"GET / HTTP/1.1\r\n", protocol::TCP).version, 0);
        assert_eq!(hinted(&[0xc3, 0, 0, 0, 1, 8], protocol::UDP).version, 1);
        assert_eq!(hinted(&[0xc3, 0x6b, 0x33, 0x43, 0xcf, 8], protocol::UDP).version, 0x6b33_43cf);
        assert_eq!(hinted(&[0xff, 0xff, 0, 0, 29], protocol::UDP).version, 0xff00_001d);
        assert_eq!(hinted(&[0xc3, 1, 2, 3, 4, 8], protocol::UDP).version, 0);
        assert_eq!(hinted(&[0x16, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9], protocol::UDP).version, 0xfefd);
    }
}
