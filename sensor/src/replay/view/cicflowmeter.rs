//! The view `cicflowmeter`: the 84 columns that CICFlowMeter publishes, under its names and in its order, each with the
//! meaning that its name and documentation give it. Where the original's value is another one, [`Column::differs`] says
//! so and why (Engelen et al. 2021, "Troubleshooting an Intrusion Detection Dataset"; Rosay et al. 2022, "Network
//! Intrusion Detection: A Comprehensive Analysis of CIC-IDS2017"; and its source, BasicFlow.java).

use std::time::{Duration, SystemTime};

use sensor_common::flow::ip_seen;
use sensor_common::packet::protocol;

use super::figures::{self, BACKWARD, BOTH, FORWARD, duration_ns, flag, gaps, half, or_missing, packets, payload};
use super::{Column, Row, float, integer, put, text};
use crate::replay::table::{SECOND_NS, Timeouts};

/// A flow is cut 120 s after its start; TCP's close ends it as everywhere in Sensor.
pub(super) fn timeouts() -> Timeouts {
    let idle_ns = 120 * SECOND_NS;
    Timeouts { idle_ns, established_ns: idle_ns, active_ns: idle_ns, goes_on: false, ..Timeouts::default() }
}

const EMPTY: &str = "missing, not 0, where the direction is empty";
const FIRST_TWICE: &str = "the original counts the first packet twice";
const RATE: &str = "missing where the duration is 0; the original gives Infinity or NaN";
const GAPS: &str = "missing, not 0, with fewer than two packets; with ns precision, the original's IPv6 times are ms";
const FLAGS: &str = "the original never sees the flags of IPv6 packets";
const PUSH: &str = "the original looks at the flow's first packet only";
const BULK: &str = "the original takes every packet for backward, and divides integers; missing, not 0, without a bulk";
const SUBFLOW: &str = "the original counts gaps instead of subflows (0 for most flows), and divides integers";
const PERIOD: &str = "the original never counts the last active period";
const IDLE: &str = "missing, not 0, without an idle period";

pub(super) const COLUMNS: [Column; 84] = [
    text("Flow ID", "addresses, ports and protocol: source-destination-port-port-protocol", |row, text| {
        let (a, b) = (row.source, row.destination);
        put(text, format_args!("{}-{}-{}-{}-{}", a.address, b.address, a.port, b.port, row.record.key.protocol));
    })
    .differs("from the initiator to the responder; in the original, the smaller address may come first"),
    text("Src IP", "address of the initiator", |row, text| put(text, row.source.address)).differs(
        "who sent the SYN, or else the first packet seen; in the original, an acknowledgement after the responder's FIN \
         begins a reversed flow",
    ),
    integer("Src Port", "1", "port of the initiator (ICMP echo: the identifier)", |row| Some(row.source.port.into())),
    text("Dst IP", "address of the responder", |row, text| put(text, row.destination.address)),
    integer("Dst Port", "1", "port of the responder (ICMP echo: the identifier)", |row| {
        Some(row.destination.port.into())
    }),
    integer("Protocol", "1", "IP protocol number", |row| Some(row.record.key.protocol.into()))
        .differs("the original merges all but TCP and UDP into one flow of two addresses, protocol 0"),
    text("Timestamp", "time of the first packet, RFC 3339 in UTC", timestamp)
        .differs("the original writes local time, with 12 hours and without a zone"),
    float("Flow Duration", "µs", "time from the first packet to the last", |row| duration_ns(row) as f64 / 1e3)
        .differs("ns precision; in the original, IPv6 times are ms"),
    integer("Total Fwd Packet", "packets", "packets from the initiator", |row| Some(sent::<FORWARD>(row)))
        .differs("the original drops flows of one packet, and cuts flows at the first FIN from the responder"),
    integer("Total Bwd packets", "packets", "packets from the responder", |row| Some(sent::<BACKWARD>(row))),
    integer("Total Length of Fwd Packet", "bytes", "L4 payload from the initiator", |row| {
        Some(bytes::<FORWARD>(row) as i64)
    }),
    integer("Total Length of Bwd Packet", "bytes", "L4 payload from the responder", |row| {
        Some(bytes::<BACKWARD>(row) as i64)
    }),
    float("Fwd Packet Length Max", "bytes", "largest L4 payload of a packet from the initiator", max::<FORWARD>)
        .differs(EMPTY),
    float("Fwd Packet Length Min", "bytes", "smallest L4 payload of a packet from the initiator", min::<FORWARD>)
        .differs(EMPTY),
    float("Fwd Packet Length Mean", "bytes", "mean L4 payload of a packet from the initiator", mean::<FORWARD>)
        .differs(EMPTY),
    float("Fwd Packet Length Std", "bytes", "sample deviation of the same", std::<FORWARD>).differs(EMPTY),
    float("Bwd Packet Length Max", "bytes", "largest L4 payload of a packet from the responder", max::<BACKWARD>)
        .differs(EMPTY),
    float("Bwd Packet Length Min", "bytes", "smallest L4 payload of a packet from the responder", min::<BACKWARD>)
        .differs(EMPTY),
    float("Bwd Packet Length Mean", "bytes", "mean L4 payload of a packet from the responder", mean::<BACKWARD>)
        .differs(EMPTY),
    float("Bwd Packet Length Std", "bytes", "sample deviation of the same", std::<BACKWARD>).differs(EMPTY),
    float("Flow Bytes/s", "bytes/s", "L4 payload of both directions over the duration", |row| {
        per_second(row, bytes::<BOTH>(row))
    })
    .differs(RATE),
    float("Flow Packets/s", "packets/s", "packets of both directions over the duration", rate::<BOTH>).differs(RATE),
    float("Flow IAT Mean", "µs", "mean time between two packets of the flow", iat_mean::<BOTH>).differs(GAPS),
    float("Flow IAT Std", "µs", "sample deviation of the same", iat_std::<BOTH>).differs(GAPS),
    float("Flow IAT Max", "µs", "largest time between two packets of the flow", iat_max::<BOTH>).differs(GAPS),
    float("Flow IAT Min", "µs", "smallest time between two packets of the flow", iat_min::<BOTH>).differs(GAPS),
    float("Fwd IAT Total", "µs", "time from the initiator's first packet to its last", iat_total::<FORWARD>)
        .differs(GAPS),
    float("Fwd IAT Mean", "µs", "mean time between two packets from the initiator", iat_mean::<FORWARD>).differs(GAPS),
    float("Fwd IAT Std", "µs", "sample deviation of the same", iat_std::<FORWARD>).differs(GAPS),
    float("Fwd IAT Max", "µs", "largest time between two packets from the initiator", iat_max::<FORWARD>)
        .differs(GAPS),
    float("Fwd IAT Min", "µs", "smallest time between two packets from the initiator", iat_min::<FORWARD>)
        .differs(GAPS),
    float("Bwd IAT Total", "µs", "time from the responder's first packet to its last", iat_total::<BACKWARD>)
        .differs(GAPS),
    float("Bwd IAT Mean", "µs", "mean time between two packets from the responder", iat_mean::<BACKWARD>)
        .differs(GAPS),
    float("Bwd IAT Std", "µs", "sample deviation of the same", iat_std::<BACKWARD>).differs(GAPS),
    float("Bwd IAT Max", "µs", "largest time between two packets from the responder", iat_max::<BACKWARD>)
        .differs(GAPS),
    float("Bwd IAT Min", "µs", "smallest time between two packets from the responder", iat_min::<BACKWARD>)
        .differs(GAPS),
    integer("Fwd PSH Flags", "packets", "packets with PSH from the initiator", flags::<FORWARD, 3>).differs(PUSH),
    integer("Bwd PSH Flags", "packets", "packets with PSH from the responder", flags::<BACKWARD, 3>).differs(PUSH),
    integer("Fwd URG Flags", "packets", "packets with URG from the initiator", flags::<FORWARD, 5>).differs(PUSH),
    integer("Bwd URG Flags", "packets", "packets with URG from the responder", flags::<BACKWARD, 5>).differs(PUSH),
    integer("Fwd Header Length", "bytes", "L4 headers from the initiator", l4_headers::<FORWARD>)
        .differs("missing where IP options or extension headers stand before TCP: they are not told apart"),
    integer("Bwd Header Length", "bytes", "L4 headers from the responder", l4_headers::<BACKWARD>)
        .differs("missing where IP options or extension headers stand before TCP: they are not told apart"),
    float("Fwd Packets/s", "packets/s", "packets from the initiator over the flow's duration", rate::<FORWARD>)
        .differs("missing, not 0, where the duration is 0"),
    float("Bwd Packets/s", "packets/s", "packets from the responder over the flow's duration", rate::<BACKWARD>)
        .differs("missing, not 0, where the duration is 0"),
    float("Packet Length Min", "bytes", "smallest L4 payload of a packet of the flow", min::<BOTH>),
    float("Packet Length Max", "bytes", "largest L4 payload of a packet of the flow", max::<BOTH>),
    float("Packet Length Mean", "bytes", "mean L4 payload of a packet of the flow", mean::<BOTH>)
        .differs(FIRST_TWICE),
    float("Packet Length Std", "bytes", "sample deviation of the same", std::<BOTH>).differs(FIRST_TWICE),
    float("Packet Length Variance", "bytes²", "square of the same", |row| {
        or_missing(payload(row.record, BOTH).map(|sums| sums.variance()))
    })
    .differs(FIRST_TWICE),
    integer("FIN Flag Count", "packets", "packets with FIN", flags::<BOTH, 0>).differs(FLAGS),
    integer("SYN Flag Count", "packets", "packets with SYN", flags::<BOTH, 1>).differs(FLAGS),
    integer("RST Flag Count", "packets", "packets with RST", flags::<BOTH, 2>).differs(FLAGS),
    integer("PSH Flag Count", "packets", "packets with PSH", flags::<BOTH, 3>).differs(FLAGS),
    integer("ACK Flag Count", "packets", "packets with ACK", flags::<BOTH, 4>).differs(FLAGS),
    integer("URG Flag Count", "packets", "packets with URG", flags::<BOTH, 5>).differs(FLAGS),
    integer("CWR Flag Count", "packets", "packets with CWR", flags::<BOTH, 7>).differs(FLAGS),
    integer("ECE Flag Count", "packets", "packets with ECE", flags::<BOTH, 6>).differs(FLAGS),
    float("Down/Up Ratio", "1", "packets from the responder over those from the initiator", |row| {
        ratio(sent::<BACKWARD>(row) as f64, sent::<FORWARD>(row) as f64)
    })
    .differs("the original divides integers"),
    float("Average Packet Size", "bytes", "mean L4 payload of a packet of the flow", mean::<BOTH>)
        .differs(FIRST_TWICE),
    float("Fwd Segment Size Avg", "bytes", "mean L4 payload of a packet from the initiator", mean::<FORWARD>)
        .differs(EMPTY),
    float("Bwd Segment Size Avg", "bytes", "mean L4 payload of a packet from the responder", mean::<BACKWARD>)
        .differs(EMPTY),
    float("Fwd Bytes/Bulk Avg", "bytes", "L4 payload of a bulk from the initiator", bulk_bytes::<FORWARD>)
        .differs(BULK),
    float("Fwd Packet/Bulk Avg", "packets", "packets of a bulk from the initiator", bulk_packets::<FORWARD>)
        .differs(BULK),
    float("Fwd Bulk Rate Avg", "bytes/s", "payload in bulks from the initiator over time in them", bulk_rate::<FORWARD>)
        .differs(BULK),
    float("Bwd Bytes/Bulk Avg", "bytes", "L4 payload of a bulk from the responder", bulk_bytes::<BACKWARD>)
        .differs(BULK),
    float("Bwd Packet/Bulk Avg", "packets", "packets of a bulk from the responder", bulk_packets::<BACKWARD>)
        .differs(BULK),
    float("Bwd Bulk Rate Avg", "bytes/s", "payload in bulks from the responder over time in them", bulk_rate::<BACKWARD>)
        .differs(BULK),
    float("Subflow Fwd Packets", "packets", "packets from the initiator in a subflow, on average", |row| {
        in_subflow(row, sent::<FORWARD>(row) as f64)
    })
    .differs(SUBFLOW),
    float("Subflow Fwd Bytes", "bytes", "L4 payload from the initiator in a subflow, on average", |row| {
        in_subflow(row, bytes::<FORWARD>(row) as f64)
    })
    .differs(SUBFLOW),
    float("Subflow Bwd Packets", "packets", "packets from the responder in a subflow, on average", |row| {
        in_subflow(row, sent::<BACKWARD>(row) as f64)
    })
    .differs(SUBFLOW),
    float("Subflow Bwd Bytes", "bytes", "L4 payload from the responder in a subflow, on average", |row| {
        in_subflow(row, bytes::<BACKWARD>(row) as f64)
    })
    .differs(SUBFLOW),
    integer("FWD Init Win Bytes", "1", "TCP window, unscaled, of the initiator's first packet", window::<FORWARD>)
        .differs("missing, not 0, where it is not TCP; the original never sees windows of IPv6 packets"),
    integer("Bwd Init Win Bytes", "1", "TCP window, unscaled, of the responder's first packet", window::<BACKWARD>)
        .differs("the original gives the last packet's window; missing, not 0, where it is not TCP"),
    integer("Fwd Act Data Pkts", "packets", "packets with L4 payload from the initiator", |row| {
        Some(figures::count(row.record, FORWARD, |half| half.payload_packets()) as i64)
    })
    .differs("the original never counts the flow's first packet"),
    float("Fwd Seg Size Min", "bytes", "smallest L4 payload of a packet from the initiator", min::<FORWARD>)
        .differs("the original gives the smallest header"),
    float("Active Mean", "µs", "mean length of an active period: packets with gaps of at most 5 s", |row| {
        let active = row.record.active();
        ratio(active.sum_us as f64, active.count as f64)
    })
    .differs(PERIOD),
    float("Active Std", "µs", "sample deviation of the same", |row| {
        let active = row.record.active();
        figures::variance(active.count, active.sum_us, active.square_us2.into()).sqrt()
    })
    .differs(PERIOD),
    float("Active Max", "µs", "longest active period", |row| row.record.active().max_us as f64).differs(PERIOD),
    float("Active Min", "µs", "shortest active period", |row| row.record.active().min_us as f64).differs(PERIOD),
    float("Idle Mean", "µs", "mean length of an idle period: a gap of more than 5 s", |row| {
        let idle = row.record.idle();
        ratio(idle.sum_us as f64, idle.count as f64)
    })
    .differs(IDLE),
    float("Idle Std", "µs", "sample deviation of the same", |row| {
        let idle = row.record.idle();
        figures::variance(idle.count, idle.sum_us, idle.square_us2.into()).sqrt()
    })
    .differs(IDLE),
    float("Idle Max", "µs", "longest idle period", |row| idle_or_missing(row, row.record.idle().max_us)).differs(IDLE),
    float("Idle Min", "µs", "shortest idle period", |row| idle_or_missing(row, row.record.idle().min_us)).differs(IDLE),
    text("Label", "label by the rules of --labels, \"NeedManualLabel\" without one", |row, text| {
        let label = row.label();
        text.push_str(if label.is_empty() { "NeedManualLabel" } else { label });
    }),
];

fn timestamp(row: &Row<'_>, text: &mut String) {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_nanos(row.record.first_ns));
    // 64 bits of ns end in the year 2554.
    put(text, humantime::format_rfc3339_nanos(time.unwrap_or(SystemTime::UNIX_EPOCH)));
}

fn ratio(of: f64, to: f64) -> f64 {
    if to == 0.0 { f64::NAN } else { of / to }
}

fn sent<const SIDE: usize>(row: &Row<'_>) -> i64 {
    packets(row.record, SIDE) as i64
}

fn bytes<const SIDE: usize>(row: &Row<'_>) -> u64 {
    figures::count(row.record, SIDE, |half| half.payload_bytes)
}

fn max<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(payload(row.record, SIDE).map(|sums| sums.max as f64))
}

fn min<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(payload(row.record, SIDE).map(|sums| sums.min as f64))
}

fn mean<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(payload(row.record, SIDE).map(|sums| sums.mean()))
}

fn std<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(payload(row.record, SIDE).map(|sums| sums.deviation()))
}

fn per_second(row: &Row<'_>, count: u64) -> f64 {
    ratio(count as f64 * 1e9, duration_ns(row) as f64)
}

fn rate<const SIDE: usize>(row: &Row<'_>) -> f64 {
    per_second(row, packets(row.record, SIDE))
}

fn iat_total<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(gaps(row.record, SIDE).map(|gaps| gaps.span_ns as f64 / 1e3))
}

fn iat_mean<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(gaps(row.record, SIDE).map(|gaps| gaps.mean_ns() / 1e3))
}

fn iat_std<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(gaps(row.record, SIDE).map(|gaps| gaps.deviation_ns() / 1e3))
}

fn iat_max<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(gaps(row.record, SIDE).map(|gaps| gaps.max_ns as f64 / 1e3))
}

fn iat_min<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(gaps(row.record, SIDE).map(|gaps| gaps.min_ns as f64 / 1e3))
}

fn flags<const SIDE: usize, const BIT: usize>(row: &Row<'_>) -> Option<i64> {
    Some(flag(row.record, SIDE, BIT))
}

/// The record has the bytes of L3 and L4 headers together. Those of L3 are known where none has options.
fn l4_headers<const SIDE: usize>(row: &Row<'_>) -> Option<i64> {
    let Some(half) = half(row.record, SIDE) else { return Some(0) };
    let each = match row.record.key.protocol {
        protocol::UDP | protocol::UDP_LITE | protocol::ICMP | protocol::ICMPV6 => Some(8),
        protocol::SCTP => Some(12),
        protocol::TCP => None,
        _ => Some(0),
    };
    if let Some(each) = each {
        return Some((half.packets * each) as i64);
    }
    let extensions = row.record.opening(SIDE).map_or(0, |opening| opening.extensions);
    let plain = half.ip_seen & ip_seen::OPTIONS == 0 && extensions == 0;
    let l3 = if row.record.key.family == 4 { 20 } else { 40 };
    plain.then(|| half.header_bytes() as i64 - (half.packets * l3) as i64)
}

fn bulk_bytes<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(half(row.record, SIDE).map(|half| ratio(half.bulk_bytes as f64, half.bulks as f64)))
}

fn bulk_packets<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(half(row.record, SIDE).map(|half| ratio(half.bulk_packets as f64, half.bulks as f64)))
}

fn bulk_rate<const SIDE: usize>(row: &Row<'_>) -> f64 {
    or_missing(half(row.record, SIDE).map(|half| ratio(half.bulk_bytes as f64 * 1e9, half.bulk_ns as f64)))
}

fn in_subflow(row: &Row<'_>, count: f64) -> f64 {
    ratio(count, row.record.subflows as f64)
}

fn window<const SIDE: usize>(row: &Row<'_>) -> Option<i64> {
    let tcp = row.record.key.protocol == protocol::TCP;
    row.record.opening(SIDE).filter(|_| tcp).map(|opening| opening.window.into())
}

fn idle_or_missing(row: &Row<'_>, us: u64) -> f64 {
    if row.record.idle().count == 0 { f64::NAN } else { us as f64 }
}
