//! Rows of other tools' views, and when they end flows.

use super::*;

fn rows_of(view: View, frames: &[(u64, Vec<u8>)]) -> Outcome {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("a.pcap");
    std::fs::write(&path, pcap(frames, false, true, 1)).expect("write");
    let options = ExtractOptions { captures: vec![path], view, ..ExtractOptions::default() };
    extract_with(&options)
}

#[test]
fn nfstream_does_not_end_flows_at_a_reset() {
    let mut frames = conversation();
    frames.push((5_000_000, tcp(false, 0x02, 0)));
    frames.push((119 * SECOND_NS, tcp(true, 0x12, 0)));
    frames.push((239 * SECOND_NS, tcp(false, 0x10, 0)));
    let found = rows_of(View::NfStream, &frames);
    found.result.as_ref().expect("readable");
    assert_eq!(found.rows.len(), 2, "119 s of idleness end nothing, 120 s do");
    let get = |column| found.get(0, column);
    assert_eq!((get("bidirectional_packets"), get("expiration_id")), ("8", "0"));
    assert_eq!((get("src_ip"), get("dst_ip"), get("src_mac")), ("198.18.0.1", "198.18.0.2", ""));
    assert_eq!((get("bidirectional_bytes"), get("src2dst_bytes"), get("dst2src_max_ps")), ("1320", "260", "940"));
    assert_eq!((get("bidirectional_first_seen_ms"), get("dst2src_duration_ms")), ("1000000", "118999"));
    assert_eq!(get("splt_direction"), "[0, 1, 0, 0, 1, 1, 0, 1, -1, -1, -1, -1, -1, -1, -1, -1]");
    assert_eq!(get("splt_ps"), "[0, 0, 0, 100, 900, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1]");
    assert_eq!(get("splt_piat_ms"), "[0, 1, 0, 1, 1, 1, 1, 118995, -1, -1, -1, -1, -1, -1, -1, -1]");
    assert_eq!((get("src2dst_syn_packets"), get("bidirectional_syn_packets")), ("2", "4"));
}

/// Who answers is not the source, even where the contract knows better who opened the connection.
#[test]
fn nfstream_takes_the_first_sender_for_the_source() {
    let found = rows_of(View::NfStream, &[(0, tcp(true, 0x12, 0)), (1_000_000, tcp(false, 0x10, 0))]);
    assert_eq!((found.get(0, "src_ip"), found.get(0, "src2dst_syn_packets")), ("198.18.0.2", "1"));
    let found = rows_of(View::Sensor, &[(0, tcp(true, 0x12, 0)), (1_000_000, tcp(false, 0x10, 0))]);
    assert_eq!(found.get(0, "src"), "198.18.0.1");
}

#[test]
fn cicflowmeter_cuts_flows_after_two_minutes() {
    let frames: Vec<_> = (0..5).map(|step| (step * 40 * SECOND_NS, tcp(step % 2 == 1, 0x18, 10))).collect();
    let found = rows_of(View::CicFlowMeter, &frames);
    let packets: Vec<_> = (0..found.rows.len())
        .map(|row| (found.get(row, "Total Fwd Packet"), found.get(row, "Total Bwd packets")))
        .collect();
    assert_eq!(packets, [("2", "1"), ("1", "1")]);
    let get = |column| found.get(0, column);
    assert_eq!((get("Flow Duration"), get("Flow IAT Mean"), get("Flow IAT Std")), ("80000000.0", "40000000.0", "0.0"));
    assert_eq!((get("Idle Mean"), get("Active Max"), get("Bwd IAT Mean")), ("40000000.0", "0.0", ""));
    assert_eq!(get("Flow ID"), "198.18.0.1-198.18.0.2-1000-80-6");
    assert_eq!((get("Timestamp"), get("Label")), ("1970-01-01T00:16:40.000000000Z", "NeedManualLabel"));
    assert_eq!((get("Fwd Header Length"), get("Fwd Bytes/Bulk Avg")), ("40", ""));
}
