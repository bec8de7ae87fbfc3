//! The views beside what their tools publish, and their rules for the end of a flow.

use std::collections::HashSet;

use clap::ValueEnum;

use super::*;

/// CICFlowMeter's header (its `FlowFeature`, as published with its data sets).
const CICFLOWMETER: &str = "Flow ID,Src IP,Src Port,Dst IP,Dst Port,Protocol,Timestamp,Flow Duration,Total Fwd Packet,\
    Total Bwd packets,Total Length of Fwd Packet,Total Length of Bwd Packet,Fwd Packet Length Max,Fwd Packet Length Min,\
    Fwd Packet Length Mean,Fwd Packet Length Std,Bwd Packet Length Max,Bwd Packet Length Min,Bwd Packet Length Mean,\
    Bwd Packet Length Std,Flow Bytes/s,Flow Packets/s,Flow IAT Mean,Flow IAT Std,Flow IAT Max,Flow IAT Min,\
    Fwd IAT Total,Fwd IAT Mean,Fwd IAT Std,Fwd IAT Max,Fwd IAT Min,Bwd IAT Total,Bwd IAT Mean,Bwd IAT Std,Bwd IAT Max,\
    Bwd IAT Min,Fwd PSH Flags,Bwd PSH Flags,Fwd URG Flags,Bwd URG Flags,Fwd Header Length,Bwd Header Length,\
    Fwd Packets/s,Bwd Packets/s,Packet Length Min,Packet Length Max,Packet Length Mean,Packet Length Std,\
    Packet Length Variance,FIN Flag Count,SYN Flag Count,RST Flag Count,PSH Flag Count,ACK Flag Count,URG Flag Count,\
    CWR Flag Count,ECE Flag Count,Down/Up Ratio,Average Packet Size,Fwd Segment Size Avg,Bwd Segment Size Avg,\
    Fwd Bytes/Bulk Avg,Fwd Packet/Bulk Avg,Fwd Bulk Rate Avg,Bwd Bytes/Bulk Avg,Bwd Packet/Bulk Avg,Bwd Bulk Rate Avg,\
    Subflow Fwd Packets,Subflow Fwd Bytes,Subflow Bwd Packets,Subflow Bwd Bytes,FWD Init Win Bytes,Bwd Init Win Bytes,\
    Fwd Act Data Pkts,Fwd Seg Size Min,Active Mean,Active Std,Active Max,Active Min,Idle Mean,Idle Std,Idle Max,\
    Idle Min,Label";

#[test]
fn the_published_columns_in_the_published_order() {
    let names: Vec<_> = View::CicFlowMeter.columns().iter().map(|column| column.name).collect();
    assert_eq!(names, CICFLOWMETER.split(',').collect::<Vec<_>>());
}

#[test]
fn nfstream_has_its_core_statistics_and_sequences() {
    let names: Vec<_> = View::NfStream.columns().iter().map(|column| column.name).collect();
    // 14 of identity, 3 × 5 of volume and time, 3 × 4 of sizes, 3 × 4 of times, 3 × 8 flags, 3 sequences.
    assert_eq!(names.len(), 14 + 15 + 12 + 12 + 24 + 3);
    assert_eq!(
        names[14..19],
        [
            "bidirectional_first_seen_ms",
            "bidirectional_last_seen_ms",
            "bidirectional_duration_ms",
            "bidirectional_packets",
            "bidirectional_bytes",
        ]
    );
    assert_eq!((names[33], names[48], names[79]), ("src2dst_min_ps", "src2dst_max_piat_ms", "splt_piat_ms"));
}

#[test]
fn every_column_is_described_once() {
    for view in View::value_variants() {
        let columns = view.columns();
        let names: HashSet<_> = columns.iter().map(|column| column.name).collect();
        assert_eq!(names.len(), columns.len(), "{view:?}");
        for column in &columns {
            assert!(!column.definition.is_empty(), "{view:?} {}", column.name);
            assert_eq!(column.unit.is_empty(), column.kind() == Kind::Text, "{view:?} {}", column.name);
        }
    }
}
