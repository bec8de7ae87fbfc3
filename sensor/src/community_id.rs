//! Community ID v1 of a flow: the name under which Zeek, Suricata and others know it too. Pure.
//!
//! Specification: <https://github.com/corelight/community-id-spec>. It knows addresses, protocol and ports only: flows in
//! different VLANs or tunnels can share an ID. Called by [`crate::replay`] for the view `sensor`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sensor_common::flow::{FlowRecord, state};
use sensor_common::packet::protocol;
use sha1::{Digest, Sha1};

/// Hashed in front: networks that do not want to share IDs choose another. All publish with 0.
const SEED: u16 = 0;

/// The ID with seed 0: `1:` and 28 characters.
pub fn community_id(record: &FlowRecord) -> String {
    let key = &record.key;
    let (low, high) = ((key.low, key.low_port), (key.high, key.high_port));
    let (icmp_type, icmp_code) = record.icmp_message();
    let (a, b) = match message(key.protocol, icmp_type, icmp_code) {
        // By the message, as its sender sent it; the flow's own order is by the echo identifier.
        Some(Message { ports: (from, to), answered }) => {
            let sender_high = (record.state & state::INITIATOR_HIGH != 0) != (record.first[0].direction & 1 != 0);
            let (sender, receiver) = if sender_high { (high.0, low.0) } else { (low.0, high.0) };
            let (sent, received) = ((sender, from), (receiver, to));
            if answered && received < sent { (received, sent) } else { (sent, received) }
        }
        None => (low, high),
    };
    let mut hash = Sha1::new();
    hash.update(SEED.to_be_bytes());
    let words = if key.family == 4 { 1 } else { 4 };
    for word in a.0[..words].iter().chain(&b.0[..words]) {
        hash.update(word.to_be_bytes());
    }
    hash.update([key.protocol, 0]);
    if has_ports(key.protocol) {
        hash.update(a.1.to_be_bytes());
        hash.update(b.1.to_be_bytes());
    }
    let mut text = String::with_capacity(30);
    text.push_str("1:");
    STANDARD.encode_string(hash.finalize(), &mut text);
    text
}

fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP | protocol::ICMPV6)
}

/// What stands for the ports of an ICMP message.
struct Message {
    /// Of its sender and its receiver.
    ports: (u16, u16),
    /// Whether there is an answer to it, which belongs to the same flow.
    answered: bool,
}

/// The specification's mapping of ICMP: type and type of the answer (or question), else type and code.
fn message(number: u8, icmp_type: u8, icmp_code: u8) -> Option<Message> {
    let other = match (number, icmp_type) {
        // Echo; router advertisement and solicitation; timestamp, information, address mask.
        (protocol::ICMP, 0) => Some(8),
        (protocol::ICMP, 8) => Some(0),
        (protocol::ICMP, 9) => Some(10),
        (protocol::ICMP, 10) => Some(9),
        (protocol::ICMP, 13 | 15 | 17) => Some(icmp_type + 1),
        (protocol::ICMP, 14 | 16 | 18) => Some(icmp_type - 1),
        // Echo, home agent discovery; multicast listeners; router and neighbour solicitation; node information.
        (protocol::ICMPV6, 128 | 130 | 133 | 135 | 139 | 144) => Some(icmp_type + 1),
        (protocol::ICMPV6, 129 | 131 | 134 | 136 | 140 | 145) => Some(icmp_type - 1),
        (protocol::ICMP | protocol::ICMPV6, _) => None,
        _ => return None,
    };
    let ports = (icmp_type.into(), other.unwrap_or(icmp_code).into());
    Some(Message { ports, answered: other.is_some() })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use sensor_common::flow::{Domain, FlowKey};

    use super::*;

    /// A flow whose first packet goes from `src` to `dst`; ICMP: of that type and code.
    fn flow(number: u8, src: &str, dst: &str, ports: (u16, u16)) -> FlowRecord {
        let words = |address: &str| match address.parse().expect(address) {
            IpAddr::V4(address) => ([address.into(), 0, 0, 0], 4),
            IpAddr::V6(address) => {
                let bits = u128::from(address);
                ([96, 64, 32, 0].map(|shift| (bits >> shift) as u32), 6)
            }
        };
        let ((source, family), (destination, _)) = (words(src), words(dst));
        let icmp = matches!(number, protocol::ICMP | protocol::ICMPV6);
        // An echo's identifier is both ports of its key.
        let (sport, dport) = if icmp { (77, 77) } else { ports };
        let (key, from_low) = FlowKey::canonical(source, destination, sport, dport, number, family, Domain::default());
        let mut record = FlowRecord { key, ..FlowRecord::zeroed() };
        if !from_low {
            record.state |= state::INITIATOR_HIGH;
        }
        if icmp {
            (record.openings[0].icmp_type, record.openings[0].icmp_code) = (ports.0 as u8, ports.1 as u8);
        }
        record
    }

    /// Values of the reference implementation (PyPI communityid); the first two and the ICMP ones of 192.168.0.0/24 are
    /// among those that the specification publishes.
    #[test]
    fn values_of_the_reference_implementation() {
        for (number, src, dst, ports, expected) in [
            (protocol::TCP, "128.232.110.120", "66.35.250.204", (34855, 80), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (protocol::TCP, "66.35.250.204", "128.232.110.120", (80, 34855), "1:LQU9qZlK+B5F3KDmev6m5PMibrg="),
            (protocol::UDP, "192.168.1.52", "8.8.8.8", (54585, 53), "1:d/FP5EW3wiY1vCndhwleRRKHowQ="),
            (protocol::TCP, "2001:db8::1:2", "2001:db8::1", (40000, 443), "1:2HC2crGIRScBwlYrTKd/sP96hBg="),
            (protocol::TCP, "127.0.0.1", "127.0.0.1", (9000, 80), "1:KqXcJPvAIWM1T/n7WecSyWueuzo="),
            (protocol::SCTP, "192.168.170.8", "192.168.170.56", (7, 80), "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ="),
            // No ports, and none are hashed.
            (46, "192.168.1.2", "10.1.2.3", (0, 0), "1:udDmpGRv1SpgOVjieqhnVw2iW1s="),
        ] {
            assert_eq!(community_id(&flow(number, src, dst, ports)), expected, "{src}:{} {dst}:{}", ports.0, ports.1);
        }
    }

    #[test]
    fn icmp_values_of_the_reference_implementation() {
        let (a, b, v4) = ("192.168.0.89", "192.168.0.1", protocol::ICMP);
        let (c, d, v6) = ("2001:db8::1", "2001:db8::2", protocol::ICMPV6);
        for (number, src, dst, (icmp_type, icmp_code), expected) in [
            (v4, a, b, (8, 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
            (v4, b, a, (0, 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="),
            // No answer exists: from whom to whom counts.
            (v4, a, b, (3, 1), "1:LXCfhMUFbYXe+CEMrQuZCbiLY3o="),
            (v4, b, a, (20, 0), "1:xka8imJTHE0ZCHTDqMsnK5QKoh8="),
            (v4, a, b, (20, 1), "1:tz/fHIDUHs19NkixVVoOZywde+I="),
            (v4, "127.0.0.1", "127.0.0.1", (8, 0), "1:PRCVIRO2XedYcoD1kwnYlWfzz28="),
            (v6, "fe80::200:86ff:fe05:80da", "fe80::260:97ff:fe07:69ea", (135, 0), "1:dGHyGvjMfljg6Bppwm3bg0LO8TY="),
            (v6, c, d, (128, 0), "1:u2vMS3HiWth2lIMKHB1fjELshpQ="),
            (v6, d, c, (128, 0), "1:YDcnf7YthUKAbDNo6Cs3rX4jq4w="),
            (v6, c, d, (129, 0), "1:YDcnf7YthUKAbDNo6Cs3rX4jq4w="),
            (v6, d, c, (1, 4), "1:qxd1LeYGiZWewhdgFCEH4g39f1w="),
        ] {
            let record = flow(number, src, dst, (icmp_type, icmp_code));
            assert_eq!(community_id(&record), expected, "{src} {dst} {icmp_type}/{icmp_code}");
        }
    }
}
