//! Any bytes as a frame, under any options: nothing panics, a packet that comes out has lengths that fit each other
//! and the frame, the short way through the parser and the long one agree, and so does whatever looks at the packet
//! next.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sensor_common::fragment::{self, Fragments};
use sensor_common::hash::SEED_WORDS;
use sensor_common::packet::{self, Captured, Options, Packet, Place, Progress, Refusal, Stages, mark, stage};

/// The long way, whatever the frame.
#[derive(Clone, Copy)]
struct Long<'a>(Captured<'a>, Options);

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
        stage::tunnel(self.0, self.1, packet, place)
    }
    fn transport(self, packet: &mut Packet, place: &mut Place) -> Result<(), Refusal> {
        stage::transport(self.0, packet, place)
    }
    fn tcp_options(self, packet: &mut Packet, place: &mut Place) {
        stage::tcp_options(self.0, packet, place)
    }
}

/// What [`packet`] promises of every packet. `wire_len`: that of the frame.
fn check(packet: &Packet, wire_len: u32) {
    let Packet { key, frame_len, l3_offset, payload_offset, header_len, payload_len, segments, segment_size, .. } =
        *packet;
    assert_eq!(frame_len, wire_len);
    assert_eq!((segments, segment_size), (1, 0), "no frame here says that it is a super-packet");
    assert!(l3_offset as u64 + packet.l3_len() <= wire_len as u64, "the datagram ends inside the frame: {packet:?}");
    assert!(header_len >= 20 && payload_offset > l3_offset, "{packet:?}");
    assert!(
        payload_offset as u32 <= packet::MAX_HEADER_OFFSET + 60 && payload_offset as u32 + payload_len <= wire_len,
        "{packet:?}"
    );
    assert_eq!(packet.last_segment(), payload_len);
    assert!(key.family == 4 || key.family == 6);
    assert!((key.low, key.low_port) <= (key.high, key.high_port), "the key is the same for both directions");
    assert!(packet.marks & (mark::FRAGMENT | mark::LATER_FRAGMENT) != mark::LATER_FRAGMENT);
    assert!(packet.sample_len as u32 <= payload_len.min(packet::SAMPLE_BYTES as u32));
}

fuzz_target!(|data: &[u8]| {
    // The first bytes say how much longer the frame was on the wire than what was kept of it, and what is to be read.
    let [high, low, choice, bytes @ ..] = data else { return };
    let options = Options { tunnels: choice & Options::ALL.tunnels, payload_hints: choice & 1 != 0, ..Options::NONE };
    let wire_len = bytes.len() as u32 + u16::from_be_bytes([*high, *low]) as u32;
    let frame = Captured { bytes, wire_len };
    let parsed = packet::parse_with(frame, options);
    let mut short = Packet::start(wire_len);
    if packet::plain(frame, options, &mut short) == Progress::Done {
        let mut long = Packet::start(wire_len);
        assert_eq!(packet::walk(Long(frame, options), options, &mut long), Ok(()), "{short:?}");
        assert_eq!(short, long, "both ways lead to one packet");
    }
    let Ok(mut packet) = parsed else { return };
    check(&packet, wire_len);
    if fragment::concerns(&packet) {
        let mut fragments = Fragments::new([0x9e37_79b9_7f4a_7c15; SEED_WORDS]);
        let later = packet.marks & mark::LATER_FRAGMENT != 0;
        assert_eq!(fragments.pass(&mut packet, 1).is_err(), later, "nothing is known of any datagram yet");
        assert!(later || fragments.pass(&mut packet, 2).is_ok());
    }
    let mut quoted = packet;
    if packet::quoted(frame, Long(frame, options), &mut quoted) {
        assert!((quoted.key.low, quoted.key.low_port) <= (quoted.key.high, quoted.key.high_port));
    }
});
