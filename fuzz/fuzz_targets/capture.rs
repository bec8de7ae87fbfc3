//! Any bytes as a capture file: nothing panics, no record is larger than is allowed, reading always ends.
#![no_main]

use libfuzzer_sys::fuzz_target;

// The reader alone: the agent's crate, with all that it is built on, would be compiled for nothing.
#[path = "../../sensor/src/replay/capture.rs"]
mod capture;

/// Bytes in small pieces, as a pipe gives them.
struct Pieces<'a>(&'a [u8]);

impl std::io::Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let len = into.len().min(self.0.len()).min(7);
        let (now, later) = self.0.split_at(len);
        into[..len].copy_from_slice(now);
        self.0 = later;
        Ok(len)
    }
}

/// Everything that a reader says of a capture.
fn read(input: impl std::io::Read, len: usize) -> (Vec<(u64, u32, u32, Vec<u8>)>, Option<String>) {
    let mut packets = Vec::new();
    let mut capture = match capture::Capture::open(input) {
        Ok(capture) => capture,
        Err(error) => return (packets, Some(format!("{error:#}"))),
    };
    let by_interface = capture.is_pcapng();
    let mut link = None;
    loop {
        match capture.read() {
            Ok(Some(packet)) => {
                let first = *link.get_or_insert(packet.link);
                assert!(by_interface || packet.link == first, "a pcap file has one link type");
                assert!(packet.bytes.len() <= packet.wire_len as usize);
                packets.push((packet.time_ns, packet.link, packet.wire_len, packet.bytes.to_vec()));
            }
            Ok(None) => {
                assert!(capture.is_drained());
                return (packets, None);
            }
            Err(error) => return (packets, Some(format!("{error:#}"))),
        }
        assert_eq!(capture.packets(), packets.len() as u64);
        assert!(packets.len() <= len, "every packet takes bytes of the file");
    }
}

fuzz_target!(|data: &[u8]| {
    let whole = read(data, data.len());
    assert_eq!(whole, read(Pieces(data), data.len()), "what is read does not depend on how the bytes come");
});
