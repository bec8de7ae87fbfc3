//! What a capture's own form does to its packets: interfaces of other link types, sections, times that step back, the
//! ports of tunnels. And what readers of the rows make of them.

use super::*;

/// A block of a pcapng file, little endian.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    let len = (body.len() as u32 + 12).to_le_bytes();
    [&kind.to_le_bytes()[..], &len, &body, &len].concat()
}

fn section() -> Vec<u8> {
    block(0x0a0d_0d0a, &[&0x1a2b_3c4d_u32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat())
}

fn interface(link: u16, snap_len: u32) -> Vec<u8> {
    block(1, &[&link.to_le_bytes()[..], &[0, 0], &snap_len.to_le_bytes()].concat())
}

/// A packet of an interface at `time_us`, of which `kept` bytes were kept.
fn packet(interface: u32, time_us: u32, frame: &[u8], kept: usize) -> Vec<u8> {
    let (kept, len) = (kept.min(frame.len()), frame.len() as u32);
    block(6, &[&[interface, 0, time_us, kept as u32, len].map(u32::to_le_bytes).concat()[..], &frame[..kept]].concat())
}

#[test]
fn a_packet_of_a_foreign_link_type_is_counted_and_skipped() {
    // USB, and 802.11 with radiotap.
    for foreign in [220, 127] {
        let mut file = [section(), interface(1, 0), interface(foreign, 0)].concat();
        for step in 0..20 {
            file.extend(packet(0, step, &tcp(false, 0x18, 10), usize::MAX));
            if step == 9 {
                file.extend(packet(1, step, &[7; 40], usize::MAX));
            }
        }
        let found = extract_bytes(&file, &[]);
        let totals = found.result.as_ref().expect("readable");
        assert_eq!((totals.packets, totals.recorded, totals.flows), (21, 20, 1));
        assert_eq!(totals.refused[Cause::NotIp as usize], 1);
        let line = format!("1 packets are of link type {foreign}, which is not read");
        assert!(found.report.contains(&line), "{}", found.report);
    }
    // In another section, the same number is another interface.
    let mut file = [section(), interface(220, 0), packet(0, 1, &[7; 40], usize::MAX)].concat();
    file.extend([section(), interface(1, 0), packet(0, 2, &tcp(false, 0x18, 10), usize::MAX)].concat());
    let found = extract_bytes(&file, &[]);
    assert_eq!(found.result.expect("readable").recorded, 1);
    // Nothing in it can be read: that is not a capture without flows.
    let file = [section(), interface(127, 0), packet(0, 1, &[7; 40], usize::MAX)].concat();
    let found = extract_bytes(&file, &[]);
    let error = format!("{:#}", found.result.expect_err("no packet is read"));
    assert!(error.contains("none of its packets can be read: link type 127 is not supported"), "{error}");
    assert!(found.report.contains("1 packets = 0 in 0 flows + 1 not_ip"), "{}", found.report);
    let file = [section(), interface(127, 0)].concat();
    extract_bytes(&file, &[]).result.expect("no packets, no harm");
}

#[test]
fn each_interface_has_its_snap_length() {
    let frame = tcp(false, 0x18, 900);
    let mut file = [section(), interface(1, 60), interface(1, 0)].concat();
    file.extend(packet(0, 1, &frame, 60));
    file.extend(packet(1, 2, &frame, usize::MAX));
    // A simple packet block is of the first interface, and is cut where that cuts.
    file.extend(block(3, &[&(frame.len() as u32).to_le_bytes()[..], &frame[..60]].concat()));
    let found = extract_bytes(&file, &[]);
    assert_eq!(found.result.as_ref().expect("readable").recorded, 3);
    assert_eq!((found.get(0, "packets"), found.get(0, "fwd_payload_bytes")), ("3", "2700"));
}

#[test]
fn times_that_step_back_are_said() {
    let at = |ms: u64| (ms * 1_000_000, tcp(false, 0x18, 10));
    let found = extract_bytes(&pcap(&[at(10_000), at(10_200), at(8_950), at(10_100), at(10_300)], false, true, 1), &[]);
    let said = "2 packets are older than one before them, by up to 1.25 s";
    assert!(found.report.contains(said), "{}", found.report);
    let found = extract_bytes(&pcap(&[at(1), at(1), at(2)], false, true, 1), &[]);
    assert!(!found.report.contains("older"), "{}", found.report);
}

#[test]
fn vxlan_is_read_on_the_ports_of_the_setting() {
    let inner = tcp(false, 0x18, 10);
    let vxlan = |port: u16| {
        let mut outer = tcp(false, 0, 0);
        let len = (8 + 8 + inner.len()) as u16;
        outer.truncate(34);
        outer[16..18].copy_from_slice(&(20 + len).to_be_bytes());
        outer[23] = packet::protocol::UDP;
        outer.extend([5000, port, len, 0].map(u16::to_be_bytes).concat());
        outer.extend([8, 0, 0, 0, 0, 0, 42, 0]);
        outer.extend(&inner);
        outer
    };
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("a.pcap");
    let frames: Vec<_> = [4789, 8472, 14_789].into_iter().map(|port| (0, vxlan(port))).collect();
    std::fs::write(&path, pcap(&frames, false, true, 1)).expect("write");
    let inside = |vxlan_ports| {
        let parser =
            packet::Options { tunnels: packet::Encapsulation::Vxlan.bit(), vxlan_ports, ..packet::Options::NONE };
        let found = extract_with(&ExtractOptions { captures: vec![path.clone()], parser, ..ExtractOptions::default() });
        let inner = (0..found.rows.len()).find(|row| found.get(*row, "encapsulation") == "vxlan");
        inner.map(|row| (found.get(row, "tunnel_id").to_owned(), found.get(row, "packets").to_owned()))
    };
    let some = |packets: &str| Some(("42".to_owned(), packets.to_owned()));
    assert_eq!(inside(packet::Ports::VXLAN), some("2"));
    assert_eq!(inside(packet::Ports::of(&[14_789])), some("1"));
    assert_eq!(inside(packet::Ports::of(&[4790])), None);
}

/// Probes of one packet, behind which no number need have a fraction, then a connection.
fn probes_then_a_connection() -> Vec<(u64, Vec<u8>)> {
    let mut frames: Vec<_> = (0..300u64)
        .map(|number| {
            let mut probe = tcp(false, 0x02, 0);
            probe[36..38].copy_from_slice(&(1000 + number as u16).to_be_bytes());
            (number * 1_000_000, probe)
        })
        .collect();
    frames.extend(conversation().into_iter().map(|(time_ns, frame)| (time_ns + SECOND_NS, frame)));
    frames
}

#[test]
fn a_column_of_numbers_looks_like_one_from_its_first_row() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("a.pcap");
    std::fs::write(&path, pcap(&probes_then_a_connection(), false, true, 1)).expect("write");
    for view in [View::Sensor, View::CicFlowMeter, View::NfStream] {
        let found = extract_with(&ExtractOptions { captures: vec![path.clone()], view, ..ExtractOptions::default() });
        assert!(found.rows.len() > 300);
        for (position, column) in view.columns().iter().enumerate() {
            for cell in found.rows.iter().map(|row| &row[position]).filter(|cell| !cell.is_empty()) {
                match column.kind() {
                    view::Kind::Float => assert!(cell.contains('.'), "{view:?} {}: {cell}", column.name),
                    view::Kind::Integer => assert!(cell.parse::<i64>().is_ok(), "{view:?} {}: {cell}", column.name),
                    view::Kind::Text => {}
                }
            }
        }
    }
}

#[test]
fn a_flow_without_a_label_has_none_in_any_format() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("a.pcap");
    std::fs::write(&path, pcap(&conversation(), false, true, 1)).expect("write");
    let rows = |format| {
        let options =
            ExtractOptions { captures: vec![path.clone()], format: Some(format), ..ExtractOptions::default() };
        let mut output = Vec::new();
        run(&options, Box::new(&mut output), &mut io::sink()).expect("rows");
        output
    };
    let object: serde_json::Value = serde_json::from_slice(&rows(Format::Jsonl)).expect("a row");
    assert!(object["label"].is_null(), "{}", object["label"]);
    use parquet::file::reader::{FileReader as _, SerializedFileReader};
    let file = SerializedFileReader::new(bytes::Bytes::from(rows(Format::Parquet))).expect("a Parquet file");
    let row = file.get_row_iter(None).expect("rows").next().expect("one").expect("a row");
    let label = row.get_column_iter().find(|(name, _)| *name == "label").expect("the column").1.clone();
    assert_eq!(label, parquet::record::Field::Null);
}
