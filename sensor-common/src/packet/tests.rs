//! Hand-made frames of each encapsulation, and what must be read of them.

use super::*;
use crate::fragment::TIMEOUT_NS;
use crate::hash::SEED_WORDS;
use crate::tcp::SYN;

const A: [u8; 4] = [198, 18, 0, 1];
const B: [u8; 4] = [198, 18, 0, 2];
const INNER_A: [u8; 4] = [198, 19, 0, 1];
const INNER_B: [u8; 4] = [198, 19, 0, 2];

fn ethernet(ethertype: u16, rest: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1][..], &ethertype.to_be_bytes(), rest].concat()
}

/// Source, destination, protocol, identification, flags and offset.
fn ipv4_fragment(ends: [[u8; 4]; 2], protocol: u8, id: u16, fragment: u16, rest: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0xb8];
    header.extend((20 + rest.len() as u16).to_be_bytes());
    header.extend(id.to_be_bytes());
    header.extend(fragment.to_be_bytes());
    header.extend([61, protocol, 0, 0]);
    [&header[..], &ends[0], &ends[1], rest].concat()
}

fn ipv4(ends: [[u8; 4]; 2], protocol: u8, rest: &[u8]) -> Vec<u8> {
    ipv4_fragment(ends, protocol, 7, 0x4000, rest)
}

/// From 2001:db8::1 to 2001:db8::2, with a flow label.
fn ipv6(next: u8, rest: &[u8]) -> Vec<u8> {
    let address = |last| [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
    let mut header = vec![0x6b, 0x8a, 0xbc, 0xde];
    header.extend((rest.len() as u16).to_be_bytes());
    header.extend([next, 61]);
    [&header[..], &address(1), &address(2), rest].concat()
}

fn udp(ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    [&ports[0].to_be_bytes()[..], &ports[1].to_be_bytes(), &len, &[0, 0], payload].concat()
}

fn tcp(flags: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2];
    header.extend([((20 + options.len()) << 2) as u8, flags, 0xfa, 0xf0, 0, 0, 0, 0]);
    [&header[..], options, payload].concat()
}

/// The datagram that tunnels carry here, and what must be read of it.
fn inner() -> Vec<u8> {
    ipv4([INNER_A, INNER_B], protocol::UDP, &udp([5000, 53], &[1, 2, 3, 4]))
}

fn is_inner(packet: &Packet) -> bool {
    let FlowKey { low, high, low_port, high_port, protocol, family, .. } = packet.key;
    (low[0], high[0]) == (u32::from_be_bytes(INNER_A), u32::from_be_bytes(INNER_B))
        && (low_port, high_port, protocol, family) == (5000, 53, protocol::UDP, 4)
        && (packet.header_len, packet.payload_len) == (28, 4)
        && packet.marks & mark::TUNNELLED != 0
}

fn all(frame: &[u8]) -> Packet {
    parse_with(frame, Options::ALL).unwrap_or_else(|cause| panic!("{}: {frame:02x?}", cause.name()))
}

fn plain(frame: &[u8]) -> Packet {
    parse(frame).unwrap_or_else(|cause| panic!("{}: {frame:02x?}", cause.name()))
}

/// The long way, whatever the frame.
#[derive(Clone, Copy)]
struct Long<'a>(&'a [u8]);
impl Stages for Long<'_> {
    fn link(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::link(self.0, packet, place)
    }
    fn network(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::network(self.0, packet, place)
    }
    fn extensions(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::extensions(self.0, packet, place)
    }
    fn tunnel(self, packet: &mut Packet, place: &mut Place) -> bool {
        stage::tunnel(self.0, Options::NONE, packet, place)
    }
    fn transport(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::transport(self.0, packet, place)
    }
    fn tcp_options(self, packet: &mut Packet, place: &mut Place) {
        stage::tcp_options(self.0, packet, place)
    }
}

/// The short way and the long way must say the same of what both can read.
#[test]
fn both_ways_agree() {
    let v4 = ipv4([B, A], protocol::TCP, &tcp(0x18, &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], b"hello"));
    let v6 = ipv6(protocol::UDP, &udp([5000, 53], b"hello"));
    let syn = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    let syns = [
        ipv4([A, B], protocol::TCP, &tcp(0x02, &[], b"hello")),
        ipv4([A, B], protocol::TCP, &tcp(0x02, &syn, b"hello")),
        ipv6(protocol::TCP, &tcp(0x12, &syn, b"hello")),
        ipv6(protocol::TCP, &tcp(0x12, &[2, 40, 5, 180], b"hello")),
    ];
    for datagram in [&v4, &v6].into_iter().chain(&syns) {
        let kind = if datagram[0] >> 4 == 4 { 0x0800u16 } else { 0x86dd };
        let tagged = ethernet(0x8100, &[&[0x20, 5], &kind.to_be_bytes()[..], datagram].concat());
        for mut frame in [ethernet(kind, datagram), tagged] {
            frame.extend([0; 9]);
            let (mut short, mut long) = (Packet::start(frame.len() as u32), Packet::start(frame.len() as u32));
            match super::plain(&frame[..], Options::NONE, &mut short) {
                Progress::Done => {}
                Progress::Options => {
                    let mut place = super::syn_options(&short);
                    stage::tcp_options(&frame[..], &mut short, &mut place);
                }
                Progress::More => panic!("not read the short way: {frame:02x?}"),
            }
            walk(Long(&frame), Options::NONE, &mut long).expect("well-formed");
            assert_eq!(short, long);
            assert_eq!(short.payload_len, 5);
            assert_eq!(short.mss, if datagram.windows(4).any(|four| four == &syn[..4]) { 1460 } else { 0 });
        }
    }
}

#[test]
fn the_ip_layer_is_told_in_full() {
    let packet = plain(&ethernet(0x0800, &inner()));
    assert_eq!((packet.ttl, packet.traffic_class, packet.marks), (61, 0xb8, mark::DONT_FRAGMENT));
    assert_eq!((packet.flow_label, packet.extensions, packet.fragment_id), (0, 0, 0));
    let packet = plain(&ethernet(0x86dd, &ipv6(protocol::UDP, &udp([1, 2], &[]))));
    assert_eq!((packet.traffic_class, packet.flow_label), (0xb8, 0xa_bcde));
    let mut options = inner();
    options[0] = 0x46;
    options.splice(20..20, [1; 4]);
    options[3] += 4;
    let packet = plain(&ethernet(0x0800, &options));
    assert_eq!(packet.marks, mark::DONT_FRAGMENT | mark::IP_OPTIONS);
    assert_eq!((packet.header_len, packet.payload_len), (32, 4));
}

#[test]
fn pppoe_and_mpls_lead_to_ip() {
    let session = |protocol: u16, rest: &[u8]| {
        let header = [&[0x11, 0, 0, 9, 0, 40], &protocol.to_be_bytes()[..]].concat();
        ethernet(0x8864, &[&header, rest].concat())
    };
    let packet = plain(&session(0x0021, &inner()));
    assert_eq!((packet.marks & mark::PPPOE, packet.l3_offset, packet.payload_len), (mark::PPPOE, 22, 4));
    assert_eq!(plain(&session(0x0057, &ipv6(protocol::UDP, &udp([1, 2], &[])))).key.family, 6);
    assert_eq!(parse(&session(0xc021, &inner())[..]), Err(Cause::NotIp), "link control");
    assert_eq!(parse(&session(0x0021, &[])[..20]), Err(Cause::TruncatedLink));

    let label = |last: bool| [0, 1, last as u8, 64];
    for labels in [1, 3, MAX_MPLS_LABELS] {
        let stack: Vec<u8> = (1..=labels).flat_map(|number| label(number == labels)).collect();
        let packet = plain(&ethernet(0x8847, &[&stack, &inner()[..]].concat()));
        assert_eq!((packet.marks & mark::MPLS, packet.l3_offset), (mark::MPLS, 14 + 4 * labels as u16));
    }
    let endless: Vec<u8> = (0..=MAX_MPLS_LABELS).flat_map(|_| label(false)).collect();
    assert_eq!(parse(&ethernet(0x8847, &[&endless, &inner()[..]].concat())[..]), Err(Cause::HeaderChain));
    assert_eq!(parse(&ethernet(0x8847, &[&label(true)[..], &[0; 20]].concat())[..]), Err(Cause::NotIp), "a pseudowire");
}

#[test]
fn extension_headers_are_named_and_skipped() {
    let behind = udp([5000, 53], &[9; 4]);
    // Hop-by-hop, routing, destination options, AH of 16 bytes.
    let chain = [
        &[protocol::ROUTING, 0, 0, 0, 0, 0, 0, 0][..],
        &[protocol::DESTINATION_OPTIONS, 0, 0, 0, 0, 0, 0, 0],
        &[protocol::AH, 0, 0, 0, 0, 0, 0, 0],
        &[protocol::UDP, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &behind,
    ]
    .concat();
    let packet = plain(&ethernet(0x86dd, &ipv6(protocol::HOP_BY_HOP, &chain)));
    let seen = extension::HOP_BY_HOP | extension::ROUTING | extension::DESTINATION | extension::AH;
    assert_eq!((packet.extensions, packet.key.protocol), (seen, protocol::UDP));
    assert_eq!((packet.header_len, packet.payload_len), (40 + 24 + 16 + 8, 4));
    // AH behind IPv4, and ESP, which ends the chain.
    let packet = plain(&ethernet(0x0800, &ipv4([A, B], protocol::AH, &[&chain[24..40], &behind].concat())));
    assert_eq!((packet.extensions, packet.key.protocol, packet.payload_len), (extension::AH, protocol::UDP, 4));
    let packet = plain(&ethernet(0x86dd, &ipv6(protocol::ESP, &[7; 20])));
    assert_eq!((packet.extensions, packet.key.protocol, packet.payload_len), (extension::ESP, protocol::ESP, 20));
    assert_eq!(packet.key.low_port, 0);
}

#[test]
fn options_of_a_syn_are_read() {
    // MSS 1460, SACK permitted, timestamps, no operation, window scale 7.
    let options = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
    let packet = plain(&ethernet(0x0800, &ipv4([A, B], protocol::TCP, &tcp(SYN, &options, &[]))));
    use tcp_option::{MSS, OTHER, SACK_PERMITTED, TIMESTAMPS, WSCALE};
    assert_eq!((packet.mss, packet.wscale), (1460, 7));
    assert_eq!(packet.tcp_options, MSS | SACK_PERMITTED | TIMESTAMPS | WSCALE);
    // The same on any other segment is not.
    let packet = plain(&ethernet(0x0800, &ipv4([A, B], protocol::TCP, &tcp(0x10, &options, &[]))));
    assert_eq!((packet.mss, packet.wscale, packet.tcp_options), (0, NO_WSCALE, 0));
    // An option that leaves the header ends them, as does one of no length; unknown ones count.
    for (options, expected) in [
        ([2, 4, 0x05, 0xb4, 30, 4, 0, 0, 8, 10, 0, 0], MSS | OTHER),
        ([2, 4, 0x05, 0xb4, 30, 0, 8, 10, 0, 0, 0, 0], MSS),
        ([1, 1, 1, 1, 1, 1, 1, 1, 4, 2, 0, 3], SACK_PERMITTED),
    ] {
        let packet = plain(&ethernet(0x0800, &ipv4([A, B], protocol::TCP, &tcp(SYN, &options, &[]))));
        assert_eq!(packet.tcp_options, expected, "{options:?}");
    }
    let full = [1; 40];
    assert_eq!(plain(&ethernet(0x0800, &ipv4([A, B], protocol::TCP, &tcp(SYN, &full, &[])))).tcp_options, 0);
}

/// Frames with the inner datagram in each kind of tunnel, and its kind and id.
fn tunnels() -> Vec<(Encapsulation, u32, Vec<u8>)> {
    let carried = inner();
    let bridged = ethernet(0x0800, &carried);
    let over =
        |protocol: u8, header: &[u8], rest: &[u8]| ethernet(0x0800, &ipv4([A, B], protocol, &[header, rest].concat()));
    let over_udp = |port: u16, header: &[u8], rest: &[u8]| {
        ethernet(0x0800, &ipv4([A, B], protocol::UDP, &udp([40_000, port], &[header, rest].concat())))
    };
    use Encapsulation::{Geneve, Gre, Gtp, Ip, Vxlan};
    vec![
        (Gre, 0, over(protocol::GRE, &[0, 0, 8, 0], &carried)),
        (Gre, 0x0102_0304, over(protocol::GRE, &[0x20, 0, 8, 0, 1, 2, 3, 4], &carried)),
        (Gre, 5, over(protocol::GRE, &[0xb0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 9], &carried)),
        (Gre, 0, over(protocol::GRE, &[0, 0, 0x65, 0x58], &bridged)),
        (Ip, 0, over(protocol::IPV4, &[], &carried)),
        (Ip, 0, ethernet(0x86dd, &ipv6(protocol::IPV4, &carried))),
        (Vxlan, 0x0a_0b0c, over_udp(4789, &[8, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0], &bridged)),
        (Geneve, 7, over_udp(6081, &[0, 0, 0x65, 0x58, 0, 0, 7, 0], &bridged)),
        (Geneve, 7, over_udp(6081, &[2, 0, 8, 0, 0, 0, 7, 0, 1, 2, 3, 1, 0, 0, 0, 0], &carried)),
        (Gtp, 0, over_udp(2152, &[0x30, 255, 0, 40, 0, 0, 0, 1], &carried)),
        (Gtp, 0, over_udp(2152, &[0x34, 255, 0, 48, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0, 9, 0], &carried)),
    ]
}

#[test]
fn inner_flows_are_read_where_they_are_asked_for() {
    for (kind, id, frame) in tunnels() {
        let packet = all(&frame);
        assert!(is_inner(&packet), "{kind:?}: {packet:?}");
        assert_eq!((packet.key.encapsulation, packet.key.tunnel), (kind as u8, id), "{kind:?}");
        assert_eq!((packet.sample_len, packet.sample[0]), (4, 0x0102_0304), "{kind:?}");
        assert_eq!(packet.frame_len as usize, frame.len());
        // Not asked for, or another kind asked for: the outer flow.
        let others = Options { tunnels: Options::ALL.tunnels & !kind.bit(), ..Options::NONE };
        for options in [Options::NONE, others] {
            let packet = parse_with(&frame[..], options).expect("the outer flow");
            assert_eq!((packet.key.encapsulation, packet.marks & mark::TUNNELLED), (0, 0), "{kind:?}");
            assert_eq!(packet.l3_offset, 14);
        }
    }
    // 6in4, and 6in4 in GRE: two levels.
    let v6 = ipv6(protocol::UDP, &udp([1, 2], &[3; 3]));
    let six_in_four = ipv4([A, B], protocol::IPV6, &v6);
    let twice = ipv4([A, B], protocol::GRE, &[&[0, 0, 8, 0], &six_in_four[..]].concat());
    for datagram in [&six_in_four, &twice] {
        let packet = all(&ethernet(0x0800, datagram));
        let seen = (packet.key.family, packet.key.encapsulation, packet.payload_len);
        assert_eq!(seen, (6, Encapsulation::Ip as u8, 3));
    }
    // A third level stays what the second carries.
    let thrice = ipv4([A, B], protocol::IPV4, &twice);
    assert_eq!(all(&ethernet(0x0800, &thrice)).key.protocol, protocol::IPV6);
}

#[test]
fn what_cannot_be_read_in_a_tunnel_counts_in_the_outer_flow() {
    let arp = ethernet(0x0806, &[0; 28]);
    let vxlan = [&[8, 0, 0, 0, 0, 0, 1, 0], &arp[..]].concat();
    let frame = ethernet(0x0800, &ipv4([A, B], protocol::UDP, &udp([40_000, 4789], &vxlan)));
    let packet = all(&frame);
    assert_eq!((packet.key.high_port, packet.key.encapsulation, packet.marks), (4789, 0, mark::DONT_FRAGMENT));
    assert_eq!(packet.payload_len as usize, vxlan.len());
    // An inner datagram that claims more than the tunnel holds, though the frame has padding.
    let mut long = inner();
    long[3] += 10;
    let frame = [ethernet(0x0800, &ipv4([A, B], protocol::IPV4, &long)), vec![0; 20]].concat();
    assert_eq!(all(&frame).key.protocol, protocol::IPV4);
    // PPTP's GRE is not read.
    let pptp = ipv4([A, B], protocol::GRE, &[0x30, 0x01, 0x88, 0x0b, 0, 4, 0, 1, 0, 0, 0, 1, 1, 2, 3, 4]);
    assert_eq!(all(&ethernet(0x0800, &pptp)).key.protocol, protocol::GRE);
}

fn seed() -> [u64; SEED_WORDS] {
    core::array::from_fn(|number| 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(number as u64 + 1))
}

#[test]
fn later_fragments_find_the_flow_of_the_first() {
    let mut parser = Parser::new(Options::NONE, seed());
    let whole = udp([5000, 53], &[1; 24]);
    let cut =
        |ends, id, fragment, part: &[u8]| ethernet(0x0800, &ipv4_fragment(ends, protocol::UDP, id, fragment, part));
    let (first, later) = (cut([B, A], 7, 0x2000, &whole[..16]), cut([B, A], 7, 2, &whole[16..]));
    assert_eq!(parser.parse(&later[..], 0), Err(Cause::Fragment), "the first one is not known yet");
    let head = parser.parse(&first[..], 1).expect("first");
    assert_eq!((head.marks, head.fragment_id, head.payload_len), (mark::FRAGMENT, 7, 8));
    let tail = parser.parse(&later[..], 2).expect("later");
    assert_eq!((tail.key, tail.from_low), (head.key, head.from_low));
    assert_eq!((tail.marks, tail.payload_len), (mark::FRAGMENT | mark::LATER_FRAGMENT, 16));
    for (what, other) in [("identification", cut([B, A], 8, 2, &whole)), ("direction", cut([A, B], 7, 2, &whole))] {
        assert_eq!(parser.parse(&other[..], 3), Err(Cause::Fragment), "another {what}");
    }
    assert!(parser.parse(&later[..], 1 + TIMEOUT_NS).is_ok());
    assert_eq!(parser.parse(&later[..], 2 + TIMEOUT_NS), Err(Cause::Fragment), "too late");
    let start = 10 * TIMEOUT_NS;
    parser.parse(&first[..], start).expect("first");
    assert!(parser.parse(&later[..], start - TIMEOUT_NS).is_ok(), "out of order");
    assert_eq!(parser.parse(&later[..], start - TIMEOUT_NS - 1), Err(Cause::Fragment), "the clock stepped back");

    // IPv6, with destination options that only the first fragment shows.
    let fragment = |next: u8, offset: u16| {
        let mut header = vec![next, 0];
        header.extend((offset << 3 | (offset == 0) as u16).to_be_bytes());
        header.extend([0, 1, 2, 3]);
        header
    };
    let options = [protocol::UDP, 0, 0, 0, 0, 0, 0, 0];
    let part = |offset, rest: &[u8]| {
        let header = fragment(protocol::DESTINATION_OPTIONS, offset);
        ethernet(0x86dd, &ipv6(protocol::FRAGMENT, &[&header, rest].concat()))
    };
    let head = parser.parse(&part(0, &[&options[..], &whole].concat())[..], 9).expect("first");
    assert_eq!((head.fragment_id, head.key.protocol), (0x0001_0203, protocol::UDP));
    let tail = parser.parse(&part(5, &[0; 8])[..], 9).expect("later");
    assert_eq!((tail.key, tail.extensions), (head.key, extension::FRAGMENT));
    // A fragment header that says "whole" is no fragment.
    let mut atomic = part(0, &[&options[..], &whole].concat());
    atomic[14 + 40 + 3] = 0;
    assert_eq!(parser.parse(&atomic[..], 9).expect("whole").marks, 0);
}

/// The flow that an ICMP error quotes.
fn quoted_by(frame: &[u8]) -> Option<(FlowKey, bool)> {
    let mut packet = plain(frame);
    assert_eq!(packet.marks & mark::ICMP_ERROR, mark::ICMP_ERROR);
    quoted(frame, Long(frame), &mut packet).then_some((packet.key, packet.from_low))
}

#[test]
fn icmp_errors_name_the_flow_they_quote() {
    let sent = ipv4([A, B], protocol::UDP, &udp([5000, 53], &[1; 40]));
    let flow = plain(&ethernet(0x0800, &sent));
    let error = |kind, quote: &[u8]| {
        let message = [&[kind, 3, 0, 0, 0, 0, 0, 0], quote].concat();
        ethernet(0x0800, &ipv4([[198, 18, 9, 9], A], protocol::ICMP, &message))
    };
    let frame = error(3, &sent[..28]);
    let packet = plain(&frame);
    assert_eq!((packet.icmp_type, packet.icmp_code), (3, 3));
    assert_eq!((packet.key.protocol, packet.key.low_port), (protocol::ICMP, 0), "counted in a flow of its own");
    assert_eq!(quoted_by(&frame), Some((flow.key, flow.from_low)));
    assert_eq!(quoted_by(&error(3, &sent[..27])), None, "a quote that is cut short");
    assert_eq!(quoted_by(&error(11, &[0; 28])), None, "a quote that is not IP");
    let echo = error(8, &sent[..28]);
    assert!(!quoted(&echo[..], Long(&echo), &mut plain(&echo)), "an echo request");
    // With an authentication header.
    let ah = [protocol::UDP, 4, 0, 0, 0, 0, 0, 7, 0, 0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let sent = ipv4([A, B], protocol::AH, &[&ah[..], &udp([5000, 53], &[1; 40])].concat());
    assert_eq!(quoted_by(&error(3, &sent[..52])), Some((flow.key, flow.from_low)));
    assert_eq!(quoted_by(&error(3, &sent[..28])), None, "no more than 8 bytes behind IP");
}

#[test]
fn icmpv6_errors_find_the_flow_behind_extension_headers() {
    let error = |sent: &[u8]| ethernet(0x86dd, &ipv6(protocol::ICMPV6, &[&[3, 0, 0, 0, 0, 0, 0, 0], sent].concat()));
    let sent = ipv6(protocol::TCP, &tcp(0x10, &[], &[1; 20]));
    let flow = plain(&ethernet(0x86dd, &sent));
    assert_eq!(quoted_by(&error(&sent[..48])), Some((flow.key, flow.from_low)));
    let datagram = udp([5000, 53], &[1; 40]);
    let behind = |headers: &[(u8, &[u8])]| {
        let mut rest = datagram.clone();
        let mut next = protocol::UDP;
        for (kind, header) in headers.iter().rev() {
            rest = [&[next], &header[1..], &rest].concat();
            next = *kind;
        }
        ipv6(next, &rest)
    };
    let options = [0, 0, 1, 4, 0, 0, 0, 0];
    let [atomic, first, later] = [0, 1, 8].map(|offset| [0, 0, 0, offset, 1, 2, 3, 4]);
    let long = [&[0, 2, 1, 20][..], &[0; 20]].concat();
    let udp = plain(&ethernet(0x86dd, &ipv6(protocol::UDP, &datagram)));
    type Chain<'a> = Vec<(u8, &'a [u8])>;
    let chains: [(&str, Chain<'_>, bool); 8] = [
        ("hop by hop", vec![(protocol::HOP_BY_HOP, &options)], true),
        ("destination", vec![(protocol::DESTINATION_OPTIONS, &long)], true),
        ("routing", vec![(protocol::ROUTING, &options)], true),
        ("an atomic fragment", vec![(protocol::FRAGMENT, &atomic)], true),
        ("a first fragment", vec![(protocol::FRAGMENT, &first)], true),
        ("a later fragment", vec![(protocol::FRAGMENT, &later)], false),
        ("all of them", vec![(0, &options), (60, &long), (43, &options), (44, &first), (60, &options)], true),
        ("more than are followed", vec![(60, &options); MAX_EXTENSION_HEADERS + 1], false),
    ];
    for (what, headers, found) in chains {
        let sent = behind(&headers);
        assert_eq!(quoted_by(&error(&sent)), found.then_some((udp.key, udp.from_low)), "{what}");
        // Ends anywhere: at worst nothing is found.
        for len in 0..sent.len() {
            let _any = quoted_by(&error(&sent[..len]));
        }
    }
}

#[test]
fn a_udp_datagram_ends_where_its_length_says() {
    let of = |stated: u16, carried: usize, rest: fn(u8, &[u8]) -> Vec<u8>, kind| {
        let mut datagram = udp([5000, 53], &vec![7; carried]);
        datagram[4..6].copy_from_slice(&stated.to_be_bytes());
        ethernet(kind, &rest(protocol::UDP, &datagram))
    };
    let v4: fn(u8, &[u8]) -> Vec<u8> = |number, rest| ipv4([A, B], number, rest);
    for (rest, kind, ip) in [(v4, 0x0800, 20), (ipv6 as fn(u8, &[u8]) -> Vec<u8>, 0x86dd, 40)] {
        let packet = all(&of(28, 100, rest, kind));
        assert_eq!((packet.payload_len, packet.l3_len(), packet.sample_len), (20, ip + 108, 16));
        assert_eq!((packet.payload_offset as u64, packet.sample[0]), (14 + ip + 8, 0x0707_0707));
        let packet = all(&of(9, 18, rest, kind));
        assert_eq!((packet.payload_len, packet.l3_len(), packet.sample_len), (1, ip + 26, 1));
        assert_eq!(all(&of(8, 18, rest, kind)).payload_len, 0);
        // More than there is: the rest was never sent, or is in other fragments.
        assert_eq!(all(&of(2000, 18, rest, kind)).payload_len, 18);
        for below in 0..8 {
            assert_eq!(parse(&of(below, 18, rest, kind)[..]), Err(Cause::MalformedTransport), "{below}");
        }
    }
    // UDP-Lite states the reach of its checksum there, of which 0 is all.
    for reach in [0u16, 8, 12] {
        let mut lite = udp([5000, 53], &[7; 30]);
        lite[4..6].copy_from_slice(&reach.to_be_bytes());
        assert_eq!(plain(&ethernet(0x0800, &ipv4([A, B], protocol::UDP_LITE, &lite))).payload_len, 30);
    }
    // A super-packet: the field may be that of one segment, or anything, for segmentation writes it.
    for stated in [0u16, 108, 308] {
        let frame = of(stated, 300, v4, 0x0800);
        let packet = parse(Super(&frame, (3, 100))).expect("a packet");
        assert_eq!((packet.payload_len, packet.segments, packet.l3_len()), (300, 3, 3 * 28 + 300), "{stated}");
    }
    // A jumbogram (RFC 2675).
    let mut datagram = udp([5000, 53], &[]);
    datagram[4..6].copy_from_slice(&[0, 0]);
    datagram.extend(vec![7; 70_000]);
    let jumbo = [&[protocol::UDP, 0, 0xc2, 4, 0, 1, 0x11, 0x80][..], &datagram].concat();
    let mut frame = ethernet(0x86dd, &ipv6(protocol::HOP_BY_HOP, &[]));
    frame.extend(&jumbo);
    let packet = plain(&frame);
    assert_eq!((packet.payload_len, packet.extensions), (70_000, extension::HOP_BY_HOP), "a jumbogram's own header");
    // A first fragment.
    let mut first = udp([5000, 53], &[7; 16]);
    first[4..6].copy_from_slice(&3000u16.to_be_bytes());
    let packet = plain(&ethernet(0x0800, &ipv4_fragment([A, B], protocol::UDP, 9, 0x2000, &first)));
    assert_eq!(packet.payload_len, 16);
}

#[test]
fn a_length_that_the_card_fills_in_is_that_of_the_frame() {
    let captured = |bytes: &[u8]| parse(super::Captured { bytes, wire_len: bytes.len() as u32 });
    let mut v4 = ethernet(0x0800, &ipv4([A, B], protocol::TCP, &tcp(0x18, &[], &[7; 3000])));
    v4[16..18].fill(0);
    let mut v6 = ethernet(0x86dd, &ipv6(protocol::TCP, &tcp(0x18, &[], &[7; 3000])));
    v6[18..20].fill(0);
    let mut datagrams = ethernet(0x0800, &ipv4([A, B], protocol::UDP, &udp([1, 2], &[7; 3000])));
    datagrams[16..18].fill(0);
    for frame in [&v4, &v6, &datagrams] {
        let packet = captured(frame).expect("a sender's frame");
        assert_eq!((packet.payload_len, packet.frame_len), (3000, frame.len() as u32));
        // The kernel says of a frame whether it is one. On the wire, hosts drop what states no length.
        let packet = parse(Super(frame, (3, 1000))).expect("a super-packet");
        assert_eq!((packet.payload_len, packet.segments), (3000, 3));
        assert!(matches!(parse(&frame[..]), Err(Cause::MalformedNetwork | Cause::MalformedTransport)));
    }
    // Padding cannot be told from payload.
    let mut short = ethernet(0x0800, &ipv4([A, B], protocol::TCP, &tcp(0x10, &[], &[])));
    short[16..18].fill(0);
    short.resize(60, 0);
    assert_eq!(captured(&short), Err(Cause::MalformedNetwork));
    // No card segments these.
    let mut ping = ethernet(0x0800, &ipv4([A, B], protocol::ICMP, &[8; 3000]));
    ping[16..18].fill(0);
    assert_eq!(captured(&ping), Err(Cause::MalformedNetwork));
    let nothing = ethernet(0x86dd, &ipv6(59, &[]));
    assert_eq!(captured(&[&nothing[..], &[0; 40]].concat()).expect("no next header").payload_len, 0);
}

#[test]
fn a_header_of_big_tcp_is_on_no_wire() {
    let segment = tcp(0x10, &[1; 12], &vec![7; 70_000]);
    let frame = |next, header: [u8; 8]| {
        let mut frame = ethernet(0x86dd, &ipv6(next, &[]));
        frame.extend(if next == protocol::TCP { &[][..] } else { &header[..] });
        frame.extend(&segment);
        frame
    };
    let jumbo = [protocol::TCP, 0, 0xc2, 4, 0, 1, 0x11, 0x98];
    let size = (70_000u32.div_ceil(1428), 1428);
    // Linux adds the header; kernels that do without it state no length and name TCP.
    for frame in [frame(protocol::HOP_BY_HOP, jumbo), frame(protocol::TCP, jumbo)] {
        let packet = parse_with(Super(&frame, size), Options::ALL).expect("a super-packet");
        assert_eq!((packet.header_len, packet.extensions, packet.payload_len), (72, 0, 70_000));
        assert_eq!((packet.segments, packet.sample[0]), (50, 0x0707_0707));
    }
    // Any other option is the sender's own.
    let packet = parse(Super(&frame(0, [protocol::TCP, 0, 5, 2, 0, 0, 1, 0]), size)).expect("a super-packet");
    assert_eq!((packet.header_len, packet.extensions), (80, extension::HOP_BY_HOP));
}

#[test]
fn tunnels_are_known_by_the_ports_of_their_setting() {
    let vni = [0x08, 0, 0, 0, 0, 0, 42, 0];
    let vxlan = |port| {
        ethernet(
            0x0800,
            &ipv4([A, B], protocol::UDP, &udp([1, port], &[&vni[..], &ethernet(0x0800, &inner())].concat())),
        )
    };
    let geneve = |port| {
        let header = [0, 0, 0x65, 0x58, 0, 0, 42, 0];
        ethernet(
            0x0800,
            &ipv4([A, B], protocol::UDP, &udp([1, port], &[&header[..], &ethernet(0x0800, &inner())].concat())),
        )
    };
    for frame in [vxlan(4789), vxlan(8472), geneve(6081)] {
        let packet = all(&frame);
        assert!(is_inner(&packet) && packet.key.tunnel == 42);
    }
    let others =
        Options { vxlan_ports: Ports::of(&[4790]), geneve_ports: Ports::of(&[6082, 6083, 6084, 6085]), ..Options::ALL };
    for (frame, is_tunnel) in [(vxlan(4789), false), (vxlan(4790), true), (geneve(6081), false), (geneve(6085), true)] {
        assert_eq!(is_inner(&parse_with(&frame[..], others).expect("a packet")), is_tunnel);
    }
}

#[test]
fn the_first_payload_bytes_are_sampled() {
    let frame = |payload: &[u8]| ethernet(0x0800, &ipv4([A, B], protocol::TCP, &tcp(0x18, &[], payload)));
    let packet = all(&frame(b"GET / HTTP/1.1\r\nHost"));
    assert_eq!((packet.sample_len, packet.sample[0], packet.sample[3]), (16, 0x4745_5420, 0x2e31_0d0a));
    let packet = all(&frame(b"abc"));
    assert_eq!((packet.sample_len, packet.sample), (3, [0x6162_6300, 0, 0, 0]));
    assert_eq!(plain(&frame(b"abc")).sample_len, 0, "only if asked for");
}

/// A frame of segmentation offload, as the kernel describes it.
#[derive(Clone, Copy)]
struct Super<'a>(&'a [u8], (u32, u32));

impl<'a> Frame for Super<'a> {
    type Window = &'a [u8];
    fn window(self, offset: u32, len: u32) -> Option<&'a [u8]> {
        self.0.window(offset, len)
    }
    fn wire_len(self) -> u32 {
        self.0.len() as u32
    }
    fn segments(self) -> (u32, u32) {
        self.1
    }
}

#[test]
fn segments_that_the_kernel_has_not_counted_follow_from_the_payload() {
    let frame = ethernet(0x0800, &ipv4([A, B], protocol::TCP, &tcp(0x10, &[], &[7; 250])));
    for (told, counted) in
        [((0, 100), (3, 100)), ((0, 125), (2, 125)), ((3, 100), (3, 100)), ((0, 250), (1, 0)), ((0, 0), (1, 0))]
    {
        let packet = parse(Super(&frame, told)).expect("a packet");
        assert_eq!((packet.segments, packet.segment_size), counted, "{told:?}");
    }
}
