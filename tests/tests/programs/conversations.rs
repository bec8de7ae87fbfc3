//! Crafted conversations: what real edges carry, and what other tools are known to count wrong.

use sensor_common::packet::protocol;
use sensor_common::tcp::{ACK, FIN, RST, SYN};
use sensor_tests::frames::{Frame, SERVICE_VLAN, VLAN};

use crate::rig::at;

const PSH: u8 = 0x08;
const URG_ECE_CWR: u8 = 0xe0;
const IPV4: [&str; 2] = ["198.18.0.1", "198.18.0.2"];

/// Frames in the order of their arrival; true = received, false = sent.
pub(crate) type Conversation = Vec<(bool, Vec<u8>)>;

fn pair(client_port: u16, server_port: u16) -> (std::net::SocketAddr, std::net::SocketAddr) {
    (at(&format!("{}:{client_port}", IPV4[0])), at(&format!("{}:{server_port}", IPV4[1])))
}

fn pair6(client_port: u16, server_port: u16) -> (std::net::SocketAddr, std::net::SocketAddr) {
    (at(&format!("[2001:db8::1]:{client_port}")), at(&format!("[2001:db8:0:0:ffff::2]:{server_port}")))
}

/// Every conversation, with a name.
pub(crate) fn all() -> Vec<(&'static str, Conversation)> {
    let mut all = tcp();
    all.extend(datagrams());
    all.extend(layers());
    all
}

/// A TCP connection from `seq` on: handshake, data both ways, close by both sides.
fn connection(port: u16, seq: u32, answer: u32) -> Conversation {
    let (client, server) = pair(port, 443);
    let up = |flags| Frame::tcp(client, server, flags);
    let down = |flags| Frame::tcp(server, client, flags).hops(57, 0x28);
    let (s, a) = (seq, answer);
    let after = |seq: u32, bytes: u32| seq.wrapping_add(bytes);
    vec![
        (true, up(SYN).seq(s, 0).tcp_options(20).window(65_535).build()),
        (false, down(SYN | ACK).seq(a, after(s, 1)).tcp_options(20).window(28_960).build()),
        (true, up(ACK).seq(after(s, 1), after(a, 1)).tcp_options(12).window(502).build()),
        (true, up(ACK | PSH).seq(after(s, 1), after(a, 1)).payload(517).tcp_options(12).build()),
        (false, down(ACK).seq(after(a, 1), after(s, 518)).window(0).build()),
        (false, down(ACK).seq(after(a, 1), after(s, 518)).payload(1448).tcp_options(12).build()),
        (false, down(ACK | PSH).seq(after(a, 1449), after(s, 518)).payload(1).build()),
        (true, up(ACK | URG_ECE_CWR).seq(after(s, 518), after(a, 1450)).build()),
        (true, up(FIN | ACK).seq(after(s, 518), after(a, 1450)).payload(31).build()),
        // The acknowledgement one short of the FIN does not close; the next one does.
        (false, down(ACK).seq(after(a, 1450), after(s, 549)).build()),
        (false, down(FIN | ACK).seq(after(a, 1450), after(s, 550)).build()),
        (true, up(ACK).seq(after(s, 550), after(a, 1451)).build()),
    ]
}

fn tcp() -> Vec<(&'static str, Conversation)> {
    let syn = |port| {
        let (client, server) = pair(port, 22);
        (true, Frame::tcp(client, server, SYN).seq(7, 0).build())
    };
    let answered = |port, flags| {
        let (client, server) = pair(port, 22);
        (false, Frame::tcp(server, client, flags).seq(90, 8).build())
    };
    let ack = |port, flags| {
        let (client, server) = pair(port, 22);
        (true, Frame::tcp(client, server, flags).seq(8, 91).build())
    };
    let mut reused = connection(40_010, 1000, 2000);
    reused.extend(connection(40_010, 900_000, 70_000));
    let mut long = Vec::new();
    for turn in 0..40 {
        long.push(ack(40_009, ACK | PSH));
        if turn % 3 == 0 {
            long.push(answered(40_009, ACK));
        }
    }
    let (client, server) = pair(40_011, 22);
    let many = Frame::tcp(server, client, ACK | PSH).payload(4200).build();
    vec![
        ("connection", connection(40_001, 1000, 2000)),
        ("sequence numbers that wrap", connection(40_002, u32::MAX - 530, u32::MAX - 700)),
        ("sequence numbers that wrap inside of the FIN", connection(40_003, u32::MAX - 548, u32::MAX - 1450)),
        ("port reuse", reused),
        ("reset instead of an answer", vec![syn(40_004), answered(40_004, RST | ACK)]),
        ("reset by the client", vec![syn(40_005), answered(40_005, SYN | ACK), ack(40_005, ACK), ack(40_005, RST)]),
        ("retransmitted SYN", vec![syn(40_006), syn(40_006), syn(40_006), answered(40_006, SYN | ACK)]),
        ("SYN-ACK first", vec![answered(40_007, SYN | ACK), ack(40_007, ACK), answered(40_007, ACK | PSH)]),
        ("data first", vec![answered(40_008, ACK | PSH), ack(40_008, ACK)]),
        ("more arrivals than are kept one by one", long),
        ("every flag", (0..=255).map(|flags| (true, Frame::tcp(client, server, flags).build())).collect()),
        ("large segment", vec![(false, many)]),
    ]
}

fn datagrams() -> Vec<(&'static str, Conversation)> {
    let ((client, server), (client6, server6)) = (pair(5353, 53), pair6(5353, 53));
    let (same, same6) = (at("198.18.0.9:123"), at("[2001:db8::9]:123"));
    let echo = pair(0x4242, 0x4242);
    let echo6 = pair6(0x4242, 0x4242);
    let none = pair(0, 0);
    let new = Frame::new;
    vec![
        (
            "UDP",
            vec![(true, Frame::udp(client, server).payload(40).build()), (false, Frame::udp(server, client).build())],
        ),
        (
            "UDP over IPv6",
            vec![
                (true, Frame::udp(client6, server6).payload(1).build()),
                (false, Frame::udp(server6, client6).build()),
            ],
        ),
        ("UDP with a long silence", vec![(true, Frame::udp(client, server).payload(1232).build())]),
        ("UDP-Lite", vec![(true, new(protocol::UDP_LITE, client, server).payload(9).build())]),
        (
            "SCTP",
            vec![
                (true, new(protocol::SCTP, client, server).payload(20).build()),
                (false, new(protocol::SCTP, server, client).build()),
            ],
        ),
        (
            "ports equal",
            vec![
                (true, Frame::udp(pair(500, 500).0, pair(500, 500).1).build()),
                (false, Frame::udp(pair(500, 500).1, pair(500, 500).0).build()),
            ],
        ),
        (
            "talk to oneself",
            vec![(true, Frame::udp(same, same).payload(48).build()), (false, Frame::udp(same, same).build())],
        ),
        (
            "talk to oneself over IPv6",
            vec![(true, Frame::tcp(same6, same6, SYN).build()), (true, Frame::tcp(same6, same6, SYN | ACK).build())],
        ),
        (
            "both ends on one address",
            vec![
                (true, Frame::udp(at("198.18.0.9:9"), at("198.18.0.9:7")).build()),
                (true, Frame::udp(at("198.18.0.9:7"), at("198.18.0.9:9")).build()),
            ],
        ),
        (
            "ping",
            vec![
                (true, Frame::icmp(echo.0, echo.1, 8, 0).payload(56).build()),
                (false, Frame::icmp(echo.1, echo.0, 0, 0).payload(56).build()),
            ],
        ),
        (
            "ping over IPv6",
            vec![
                (true, Frame::icmp(echo6.0, echo6.1, 128, 0).payload(56).build()),
                (false, Frame::icmp(echo6.1, echo6.0, 129, 0).payload(56).build()),
            ],
        ),
        (
            "ICMP errors",
            vec![
                (false, Frame::icmp(none.1, none.0, 3, 3).payload(28).build()),
                (false, Frame::icmp(none.1, none.0, 11, 0).payload(28).build()),
            ],
        ),
        ("ICMPv6 errors", vec![(true, Frame::icmp(pair6(0, 0).1, pair6(0, 0).0, 1, 4).payload(60).build())]),
        (
            "ESP",
            vec![
                (true, new(50, client, server).payload(84).build()),
                (true, new(50, client6, server6).payload(84).build()),
            ],
        ),
        ("GRE, no payload", vec![(true, new(47, client, server).build())]),
        ("no next header", vec![(true, new(59, client6, server6).build())]),
    ]
}

fn layers() -> Vec<(&'static str, Conversation)> {
    let ((client, server), (client6, server6)) = (pair(6000, 80), pair6(6000, 80));
    let udp = || Frame::udp(client, server).payload(18);
    let tcp6 = || Frame::tcp(client6, server6, ACK | PSH).payload(100);
    let back6 = || Frame::tcp(server6, client6, ACK).hops(255, 0xb9);
    let (hop, route, options) = (protocol::HOP_BY_HOP, protocol::ROUTING, protocol::DESTINATION_OPTIONS);
    vec![
        (
            "VLAN",
            vec![(true, udp().tag(VLAN, 0xe064).build()), (false, Frame::udp(server, client).tag(VLAN, 100).build())],
        ),
        ("priority tag", vec![(true, udp().tag(VLAN, 0x6000).build())]),
        (
            "QinQ",
            vec![
                (true, udp().tag(SERVICE_VLAN, 7).tag(VLAN, 9).build()),
                (true, tcp6().tag(SERVICE_VLAN, 7).tag(VLAN, 9).build()),
            ],
        ),
        ("old QinQ", vec![(true, udp().tag(0x9100, 7).tag(VLAN, 4095).build())]),
        ("the same without a tag", vec![(true, udp().build())]),
        (
            "IPv4 options",
            (1..=10).map(|words| (true, udp().options(words * 4).hops(words as u8, words as u8).build())).collect(),
        ),
        ("first fragment", vec![(true, udp().fragment(0, true).build())]),
        (
            "padding",
            vec![(true, Frame::udp(client, server).payload(1).pad(60).build()), (true, back6().pad(200).build())],
        ),
        ("hop by hop", vec![(true, tcp6().extension(hop, 8).build()), (true, back6().extension(hop, 64).build())]),
        ("routing", vec![(true, tcp6().extension(route, 24).build())]),
        ("destination options", vec![(true, tcp6().extension(options, 8).extension(options, 512).build())]),
        (
            "authentication",
            vec![
                (true, tcp6().extension(protocol::AH, 24).build()),
                (true, tcp6().extension(protocol::AH, 28).build()),
            ],
        ),
        (
            "fragment header",
            vec![(true, tcp6().fragment(0, true).build()), (true, tcp6().extension(hop, 8).fragment(0, false).build())],
        ),
        ("eight extension headers", vec![(true, (0..8).fold(tcp6(), |frame, _| frame.extension(options, 8)).build())]),
        ("mobility, HIP, shim6", vec![(true, tcp6().extension(135, 8).extension(139, 40).extension(140, 8).build())]),
        (
            "3 kB",
            vec![
                (true, Frame::udp(client, server).payload(3000).build()),
                (false, Frame::udp(server, client).payload(3000).build()),
            ],
        ),
        (
            "jumbo frames of several buffers",
            vec![(true, Frame::udp(client, server).payload(8900).build()), (true, tcp6().payload(8900).build())],
        ),
    ]
}
