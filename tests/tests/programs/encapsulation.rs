//! What edges carry around IP: the programs read of it what the host reads, with everything switched on and off.

use sensor::bpf::load::LoadOptions;
use sensor_common::flow::FlowKey;
use sensor_common::packet::{self, Encapsulation, Options, Ports, protocol};
use sensor_common::tcp::{ACK, SYN};
use sensor_tests::frames::{Frame, VLAN};
use sensor_tests::rng::Rng;

use crate::rig::{self, Rig, at, options};

/// Bytes of an Ethernet header.
const LINK: usize = 14;

/// The frame with `header` and `carried` as its payload.
fn around(frame: Frame, header: &[u8], carried: &[u8]) -> Vec<u8> {
    let content = [header, carried].concat();
    let mut bytes = frame.payload(content.len()).build();
    let start = bytes.len() - content.len();
    bytes[start..].copy_from_slice(&content);
    bytes
}

/// A UDP datagram over IPv4 with another length in its header.
fn stating(length: u16, mut frame: Vec<u8>) -> Vec<u8> {
    frame[LINK + 24..LINK + 26].copy_from_slice(&length.to_be_bytes());
    frame
}

/// The frame with other bytes between its Ethernet addresses and its IP header.
fn linked(frame: &[u8], link: &[u8]) -> Vec<u8> {
    [&frame[..LINK - 2], link, &frame[LINK..]].concat()
}

/// Frames by name; those that only a setting leads into, with the kind of tunnel.
fn frames() -> Vec<(&'static str, Option<Encapsulation>, Vec<u8>)> {
    let (a, b) = (at("198.18.0.1:40000"), at("198.18.0.2:9"));
    let port = |number: u16| at(&format!("198.18.0.2:{number}"));
    let (a6, b6) = (at("[2001:db8::1]:1000"), at("[2001:db8::2]:80"));
    let v4 = Frame::udp(at("198.19.0.1:5000"), at("198.19.0.2:53")).payload(20).build();
    let v6 = Frame::tcp(at("[2001:db8:1::1]:5000"), at("[2001:db8:1::2]:80"), ACK).payload(20).build();
    let tagged = Frame::udp(at("198.19.0.1:5000"), at("198.19.0.2:53")).tag(VLAN, 9).payload(20).build();
    let syn = Frame::tcp(at("198.19.0.1:5000"), at("198.19.0.2:80"), SYN).tcp_options(20);
    let gre = |header: &[u8], carried: &[u8]| around(Frame::new(protocol::GRE, a, b), header, carried);
    let over_udp = |number, header: &[u8], carried: &[u8]| around(Frame::udp(a, port(number)), header, carried);
    let echo = Frame::icmp(at("198.18.9.9:0"), a, 3, 1);
    use Encapsulation::{Geneve, Gre, Gtp, Ip, Vxlan};
    vec![
        ("PPPoE, IPv4", None, linked(&v4, &[0x88, 0x64, 0x11, 0, 0, 1, 0, 50, 0, 0x21])),
        ("PPPoE, IPv6", None, linked(&v6, &[0x88, 0x64, 0x11, 0, 0, 1, 0, 82, 0, 0x57])),
        ("PPPoE in a VLAN", None, linked(&v4, &[0x81, 0, 0, 7, 0x88, 0x64, 0x11, 0, 0, 1, 0, 50, 0, 0x21])),
        ("MPLS, two labels", None, linked(&v4, &[0x88, 0x47, 0, 1, 0, 64, 0, 2, 1, 64])),
        ("MPLS, IPv6", None, linked(&v6, &[0x88, 0x47, 0, 2, 1, 64])),
        ("a SYN with options", None, {
            let mut frame = syn.build();
            let start = frame.len() - 20;
            frame[start..].copy_from_slice(&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]);
            frame
        }),
        ("a SYN with 40 bytes of nothing", None, syn.clone().tcp_options(40).build()),
        (
            "AH behind IPv4",
            None,
            around(Frame::new(protocol::AH, a, b), &[17, 2, 0, 0], &[&[0; 12], &v4[34..]].concat()),
        ),
        ("ESP", None, Frame::new(protocol::ESP, a, b).payload(40).build()),
        ("IPv6 extension headers", None, {
            let frame = Frame::udp(a6, b6).extension(protocol::HOP_BY_HOP, 8).extension(protocol::ROUTING, 24);
            frame.extension(protocol::DESTINATION_OPTIONS, 8).extension(protocol::AH, 24).payload(30).build()
        }),
        ("an ICMP error", None, around(echo.clone(), &v4[LINK..LINK + 28], &[])),
        ("an ICMPv6 error that quotes extension headers", None, {
            let sent =
                Frame::udp(a6, b6).extension(protocol::HOP_BY_HOP, 8).extension(protocol::DESTINATION_OPTIONS, 16);
            around(Frame::icmp(at("[2001:db8::fe]:0"), a6, 3, 0), &sent.payload(30).build()[LINK..], &[])
        }),
        ("an ICMP error that quotes nothing", None, echo.build()),
        ("a first IPv4 fragment", None, Frame::udp(a, b).fragment(0, true).payload(16).build()),
        ("a later IPv4 fragment", None, Frame::udp(a, b).fragment(3, true).payload(16).build()),
        ("the last IPv4 fragment", None, Frame::udp(a, b).fragment(6, false).payload(3).build()),
        ("a first IPv6 fragment", None, Frame::tcp(a6, b6, ACK).fragment(0, true).payload(16).build()),
        ("a later IPv6 fragment", None, Frame::tcp(a6, b6, ACK).fragment(5, false).payload(16).build()),
        ("a fragment of what is not known", None, Frame::udp(b, a).fragment(3, true).payload(16).build()),
        ("GRE", Some(Gre), gre(&[0, 0, 8, 0], &v4[LINK..])),
        ("GRE with a key, IPv6", Some(Gre), gre(&[0x20, 0, 0x86, 0xdd, 1, 2, 3, 4], &v6[LINK..])),
        ("GRE with all its fields", Some(Gre), gre(&[0xb0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 9], &v4[LINK..])),
        ("GRE, bridged", Some(Gre), gre(&[0, 0, 0x65, 0x58], &tagged)),
        ("PPTP", None, gre(&[0x30, 1, 0x88, 0x0b, 0, 4, 0, 1, 0, 0, 0, 1], &[0xff, 3, 0, 0x21])),
        ("IP in IP", Some(Ip), around(Frame::new(protocol::IPV4, a, b), &v4[LINK..], &[])),
        ("6in4", Some(Ip), around(Frame::new(protocol::IPV6, a, b), &v6[LINK..], &[])),
        ("4in6", Some(Ip), around(Frame::new(protocol::IPV4, a6, b6), &v4[LINK..], &[])),
        ("VXLAN", Some(Vxlan), over_udp(4789, &[8, 0, 0, 0, 0, 1, 2, 0], &v4)),
        ("VXLAN on the port that Linux takes", Some(Vxlan), over_udp(8472, &[8, 0, 0, 0, 0, 1, 2, 0], &v4)),
        ("VXLAN on a port that a setting names", None, over_udp(14_789, &[8, 0, 0, 0, 0, 1, 2, 0], &v4)),
        ("Geneve on a port that a setting names", None, over_udp(16_081, &[0, 0, 0x65, 0x58, 0, 0, 7, 0], &v4)),
        ("a datagram with surplus behind it", None, stating(28, Frame::udp(a, b).payload(100).build())),
        ("a datagram that claims more than there is", None, stating(900, Frame::udp(a, b).payload(100).build())),
        ("VXLAN with a VLAN inside", Some(Vxlan), over_udp(4789, &[8, 0, 0, 0, 0, 1, 2, 0], &tagged)),
        ("VXLAN of a SYN", Some(Vxlan), over_udp(4789, &[8, 0, 0, 0, 0, 1, 3, 0], &syn.payload(0).build())),
        ("VXLAN of what is not IP", None, over_udp(4789, &[8, 0, 0, 0, 0, 1, 2, 0], &[0; 40])),
        ("Geneve", Some(Geneve), over_udp(6081, &[0, 0, 0x65, 0x58, 0, 0, 7, 0], &v4)),
        ("Geneve with options", Some(Geneve), over_udp(6081, &[1, 0, 8, 0, 0, 0, 7, 0, 1, 2, 3, 4], &v4[LINK..])),
        ("GTP-U", Some(Gtp), over_udp(2152, &[0x30, 255, 0, 40, 0, 0, 0, 1], &v4[LINK..])),
        (
            "GTP-U with an extension header",
            Some(Gtp),
            over_udp(2152, &[0x34, 255, 0, 48, 0, 0, 0, 1, 0, 0, 0, 0x85, 1, 0, 9, 0], &v6[LINK..]),
        ),
        ("GTP-U echo", None, over_udp(2152, &[0x32, 1, 0, 4, 0, 0, 0, 0, 0, 1, 0, 0], &[])),
    ]
}

/// Settings that must not differ: nothing, everything, other ports, and each kind of tunnel.
fn settings() -> Vec<Options> {
    let mut all = vec![Options::NONE, Options::ALL, other_ports()];
    all.extend(Encapsulation::TUNNELS.map(|kind| Options { tunnels: kind.bit(), ..Options::NONE }));
    all
}

fn other_ports() -> Options {
    Options { vxlan_ports: Ports::of(&[9, 14_789]), geneve_ports: Ports::of(&[16_081]), ..Options::ALL }
}

#[test]
fn other_ports_lead_into_other_tunnels() {
    let inside = |options, wanted: &str| {
        let (_, _, frame) = frames().into_iter().find(|(name, ..)| *name == wanted).expect("a frame of that name");
        packet::parse_with(&frame[..], options).expect("a packet").key.encapsulation
    };
    for name in ["VXLAN", "VXLAN on the port that Linux takes", "Geneve"] {
        assert_eq!(inside(other_ports(), name), 0, "{name}");
    }
    assert_eq!(inside(other_ports(), "VXLAN on a port that a setting names"), Encapsulation::Vxlan as u8);
    assert_eq!(inside(other_ports(), "Geneve on a port that a setting names"), Encapsulation::Geneve as u8);
}

#[test]
fn the_frames_are_what_they_say() {
    for (name, kind, frame) in frames() {
        let packet =
            packet::parse_with(&frame[..], Options::ALL).unwrap_or_else(|cause| panic!("{name}: {}", cause.name()));
        let FlowKey { encapsulation, .. } = packet.key;
        assert_eq!(encapsulation, kind.map_or(0, |kind| kind as u8), "{name}");
    }
}

#[test]
fn the_programs_read_what_the_host_reads() {
    for parser in settings() {
        let mut rig = Rig::new(&LoadOptions { parser, ..options() });
        for (name, _, frame) in frames() {
            rig.wait(1000);
            rig.ingress(&frame);
            rig.compare(name);
            rig.egress(&frame);
            rig.compare(name);
            rig.stack_ingress(&frame);
            rig.compare(name);
        }
    }
}

#[test]
fn mutated_encapsulations_are_read_the_same() {
    let corpus = frames();
    let mut rig = Rig::new(&LoadOptions { flows: 65_536, parser: Options::ALL, ..options() });
    let mut rng = Rng::new(0x7e11);
    for number in 0..6000u32 {
        let (_, _, mut frame) = corpus[rng.range(0..corpus.len() as u64) as usize].clone();
        for _ in 0..rng.range(0..4) {
            let position = rng.range(0..frame.len() as u64) as usize;
            frame[position] = match rng.range(0..3) {
                0 => rng.next_u64() as u8,
                1 => frame[position] ^ 1 << rng.range(0..8),
                _ => rng.pick(&[0, 1, 4, 6, 0x45, 0x60, 0x88, 0xff]),
            };
        }
        rig.wait(rng.range(0..1 << 30));
        match rng.range(0..3) {
            0 => rig.ingress(&frame),
            1 if frame.len() >= 54 => rig.egress(&frame),
            _ if frame.len() >= 54 => rig.stack_ingress(&frame),
            _ => {}
        }
        if number % 1000 == 0 {
            rig.compare(&format!("mutated frame {number}"));
        }
    }
    rig.compare("mutated frames");
    assert!(rig::counters(&rig.kernel).flows_created > 500);
}
