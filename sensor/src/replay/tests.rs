//! Replay over captures that are made here: accounting, timeouts, formats, errors.

mod bad_input;
mod formats;
mod readers;
mod truth;
mod views;

use std::path::Path;

use flate2::write::GzEncoder;

use super::*;

const SECOND_NS: u64 = 1_000_000_000;

/// An Ethernet frame with IPv4 and TCP between 198.18.0.1:1000 and 198.18.0.2:80. Its number is 1; a RST has the number
/// that the other side acknowledges, 2.
fn tcp(back: bool, flags: u8, payload: usize) -> Vec<u8> {
    let mut frame = vec![0u8; 12];
    frame.extend([0x08, 0x00, 0x45, 0]);
    frame.extend((40 + payload as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 6, 0, 0]);
    let (a, b) = ([198, 18, 0, 1], [198, 18, 0, 2]);
    frame.extend(if back { [b, a] } else { [a, b] }.concat());
    let (a, b) = (1000u16.to_be_bytes(), 80u16.to_be_bytes());
    frame.extend(if back { [b, a] } else { [a, b] }.concat());
    let number = if flags & 0x04 != 0 { 2 } else { 1 };
    frame.extend([0, 0, 0, number, 0, 0, 0, 2, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    frame.extend(std::iter::repeat_n(0x61, payload));
    frame
}

fn arp() -> Vec<u8> {
    let mut frame = vec![0u8; 42];
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    frame
}

/// A connection that is opened, used and reset, and a frame that is no IP.
fn conversation() -> Vec<(u64, Vec<u8>)> {
    vec![
        (0, tcp(false, 0x02, 0)),
        (1_000_000, tcp(true, 0x12, 0)),
        (1_100_000, tcp(false, 0x10, 0)),
        (2_000_000, arp()),
        (2_500_000, tcp(false, 0x18, 100)),
        (3_000_000, tcp(true, 0x18, 900)),
        (4_000_000, tcp(true, 0x14, 0)),
    ]
}

/// A pcap file. `frames`: ns since 1,000 s, and bytes.
fn pcap(frames: &[(u64, Vec<u8>)], big_endian: bool, nanoseconds: bool, link: u32) -> Vec<u8> {
    let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut file = word(if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }).to_vec();
    file.extend(if big_endian { [0, 2, 0, 4] } else { [2, 0, 4, 0] });
    file.extend([word(0), word(0), word(65_535), word(link)].concat());
    for (time_ns, bytes) in frames {
        let fraction = time_ns % SECOND_NS / if nanoseconds { 1 } else { 1_000 };
        file.extend(word((1_000 + time_ns / SECOND_NS) as u32));
        file.extend(word(fraction as u32));
        file.extend([word(bytes.len() as u32), word(bytes.len() as u32)].concat());
        file.extend(bytes);
    }
    file
}

/// A pcapng file with an interface whose times are in ns, and the same frames.
fn pcapng(frames: &[(u64, Vec<u8>)], big_endian: bool) -> Vec<u8> {
    let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let half = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let block = |kind: u32, body: Vec<u8>| {
        let len = word(body.len() as u32 + 12);
        [&word(kind)[..], &len, &body, &len].concat()
    };
    let mut file = block(0x0a0d_0d0a, [word(0x1a2b_3c4d).to_vec(), vec![0; 4], vec![0xff; 8]].concat());
    // An interface name that is not UTF-8, then if_tsresol = 10^-9.
    let options = [&half(2)[..], &half(1), &[0xff, 0, 0, 0], &half(9), &half(1), &[9, 0, 0, 0], &[0; 4]].concat();
    file.extend(block(1, [&half(1)[..], &half(0), &word(0), &options].concat()));
    file.extend(block(5, vec![0; 12]));
    for (time_ns, bytes) in frames {
        let time = 1_000 * SECOND_NS + time_ns;
        let len = word(bytes.len() as u32);
        let mut body = [word(0), word((time >> 32) as u32), word(time as u32), len, len].concat();
        body.extend(bytes);
        body.resize(body.len().next_multiple_of(4), 0);
        file.extend(block(6, body));
    }
    file
}

struct Outcome {
    rows: Vec<csv::StringRecord>,
    header: csv::StringRecord,
    report: String,
    result: Result<Totals>,
}

impl Outcome {
    fn get(&self, row: usize, column: &str) -> &str {
        let position = self.header.iter().position(|name| name == column).expect(column);
        &self.rows[row][position]
    }
}

fn extract_bytes(bytes: &[u8], snapshots: &[u64]) -> Outcome {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("a,b.pcap");
    std::fs::write(&path, bytes).expect("write");
    extract_path(&path, snapshots, None)
}

/// A gzip file of several members, as `cat a.gz b.gz` makes it.
fn gzip(parts: &[&[u8]]) -> Vec<u8> {
    let mut file = Vec::new();
    for part in parts {
        let mut member = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        member.write_all(part).expect("memory");
        file.extend(member.finish().expect("memory"));
    }
    file
}

/// A zstd file of several frames, each a raw block (RFC 8878), and one to skip between them.
fn zstd(parts: &[&[u8]]) -> Vec<u8> {
    let mut file = Vec::new();
    for part in parts {
        file.extend([0x28, 0xb5, 0x2f, 0xfd, 0xa0]);
        file.extend((part.len() as u32).to_le_bytes());
        file.extend(&((part.len() as u32) << 3 | 1).to_le_bytes()[..3]);
        file.extend(*part);
        file.extend([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
    }
    file
}

fn extract_path(path: &Path, snapshots: &[u64], labels: Option<PathBuf>) -> Outcome {
    let options = ExtractOptions {
        captures: vec![path.to_owned()],
        snapshots: snapshots.to_vec(),
        labels,
        ..ExtractOptions::default()
    };
    extract_with(&options)
}

fn extract_with(options: &ExtractOptions) -> Outcome {
    let (mut output, mut report) = (Vec::new(), Vec::new());
    let result = run(options, Box::new(&mut output), &mut report);
    let mut reader = csv::Reader::from_reader(&output[..]);
    let header = reader.headers().expect("header").clone();
    let rows = reader.records().map(|row| row.expect("row")).collect();
    Outcome { rows, header, report: String::from_utf8(report).expect("text"), result }
}

#[test]
fn every_format_gives_the_same_rows() {
    let frames = conversation();
    let plain = pcap(&frames, false, true, 1);
    let expected = extract_bytes(&plain, &[2, 4]);
    assert_eq!(expected.rows.len(), 3, "{}", expected.report);
    for file in [
        pcap(&frames, true, true, 1),
        pcap(&frames, true, false, 1),
        pcap(&frames, false, false, 1),
        pcapng(&frames, true),
        pcapng(&frames, false),
        gzip(&[&plain[..100], &plain[100..]]),
        [gzip(&[&plain[..100]]), vec![0; 3], gzip(&[&plain[100..]]), vec![0; 200_000]].concat(),
        zstd(&[&plain[..100], &plain[100..]]),
    ] {
        let found = extract_bytes(&file, &[2, 4]);
        found.result.as_ref().expect("readable");
        for row in 0..3 {
            assert_eq!(
                found.rows[row].iter().skip(1).collect::<Vec<_>>(),
                expected.rows[row].iter().skip(1).collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn packets_are_accounted_for() {
    let found = extract_bytes(&pcap(&conversation(), false, true, 1), &[2, 4]);
    let totals = found.result.as_ref().expect("readable");
    assert_eq!((totals.packets, totals.recorded, totals.flows), (7, 6, 1));
    assert_eq!(totals.refused[Cause::NotIp as usize], 1);
    assert!(totals.balance());
    assert!(found.report.contains("7 packets = 6 in 1 flows + 1 not_ip"), "{}", found.report);
    let ends: Vec<_> = (0..3).map(|row| (found.get(row, "packets"), found.get(row, "end"))).collect();
    assert_eq!(ends, [("2", "snapshot"), ("4", "snapshot"), ("6", "end")]);
    let numbers: Vec<_> = (0..3).map(|row| (found.get(row, "snapshot"), found.get(row, "last_seen_ns"))).collect();
    assert_eq!(numbers, [("1", "1000001000000"), ("2", "1000002500000"), ("0", "1000004000000")]);
    // By PyPI's communityid.
    assert_eq!(found.get(0, "community_id"), "1:gWuOVgqeM+8hWEx6+4ouyqzPM38=");
    assert_eq!((found.get(0, "initiator_known_by"), found.get(0, "encapsulation")), ("syn", "none"));
    assert_eq!((found.get(0, "vlan_outer"), found.get(0, "interface"), found.get(0, "tunnel_id")), ("", "", ""));
    assert_eq!((found.get(2, "src"), found.get(2, "sport")), ("198.18.0.1", "1000"));
    assert_eq!(
        (found.get(2, "dst"), found.get(2, "dport"), found.get(2, "protocol_name")),
        ("198.18.0.2", "80", "tcp")
    );
    assert_eq!((found.get(2, "bwd_payload_bytes"), found.get(2, "reset")), ("900", "1"));
    assert_eq!(found.get(0, "first_ns"), "1000000000000");
    assert_eq!(found.get(0, "syn_ack_to_ack"), "", "missing is empty");
    assert_eq!(found.get(1, "syn_ack_to_ack"), "0.0001");
}

#[test]
fn flows_end_when_they_should() {
    let data = |at_s: u64| (at_s * SECOND_NS, tcp(false, 0x18, 10));
    let ends = |frames: &[(u64, Vec<u8>)]| {
        let found = extract_bytes(&pcap(frames, false, true, 1), &[]);
        assert!(found.result.as_ref().expect("readable").balance());
        (0..found.rows.len())
            .map(|row| format!("{} {}", found.get(row, "end"), found.get(row, "packets")))
            .collect::<Vec<_>>()
    };
    assert_eq!(ends(&[data(0), data(59), data(118)]), ["end 3"]);
    assert_eq!(ends(&[data(0), data(60)]), ["idle 1", "end 1"]);
    let long: Vec<_> = (0..=61).map(|minute| data(minute * 30)).collect();
    assert_eq!(ends(&long), ["active 60", "end 2"]);
    let reset = |at_s: u64| (at_s * SECOND_NS, tcp(true, 0x04, 0));
    assert_eq!(ends(&[data(0), reset(0), data(1), data(4)]), ["rst 3", "end 1"]);
    let syn = (SECOND_NS, tcp(false, 0x02, 0));
    assert_eq!(ends(&[data(0), reset(0), syn]), ["reopened 2", "end 1"]);
    assert_eq!(ends(&[data(100), data(50), data(101)]), ["end 3"], "a small step back is not a new recording");
    assert_eq!(ends(&[data(100), data(1)]), ["clock 1", "end 1"]);
}

#[test]
fn other_link_types_give_the_same_flow() {
    let expected = extract_bytes(&pcap(&conversation(), false, true, 1), &[]);
    let mut cooked = vec![0u8; 16];
    cooked[14..].copy_from_slice(&[0x08, 0x00]);
    let mut cooked_2 = vec![0u8; 20];
    cooked_2[..2].copy_from_slice(&[0x08, 0x00]);
    for (link, header) in
        [(101, vec![]), (228, vec![]), (0, vec![2, 0, 0, 0]), (108, vec![0, 0, 0, 2]), (113, cooked), (276, cooked_2)]
    {
        let frames: Vec<_> = conversation()
            .into_iter()
            .filter(|(_, frame)| frame[13] == 0)
            .map(|(time_ns, frame)| (time_ns, [&header[..], &frame[14..]].concat()))
            .collect();
        let found = extract_bytes(&pcap(&frames, false, true, link), &[]);
        assert_eq!(found.result.as_ref().expect("readable").recorded, 6, "link type {link}");
        assert_eq!(
            found.rows[0].iter().skip(1).collect::<Vec<_>>(),
            expected.rows[0].iter().skip(1).collect::<Vec<_>>()
        );
    }
    let error = extract_bytes(&pcap(&conversation(), false, true, 127), &[]).result.expect_err("radiotap");
    assert!(format!("{error:#}").contains("link type 127 is not supported"), "{error:#}");
}

#[test]
fn rows_carry_the_label_of_their_rule() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (capture, labels) = (folder.path().join("07-scan.pcap"), folder.path().join("labels.csv"));
    std::fs::write(&capture, pcap(&conversation(), false, true, 1)).expect("write");
    std::fs::write(&labels, "capture,prefix,protocol,label\n0?-scan.pcap,198.18.0.1,tcp,scan\n").expect("write");
    let found = extract_path(&capture, &[], Some(labels));
    assert_eq!(found.get(0, "label"), "scan");
}
