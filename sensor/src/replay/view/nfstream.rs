//! The view `nfstream`: NFStream 6's columns (core, statistical_analysis, splt_analysis = 16, no dissection), under its
//! names, units and deviations, and with its rules for the end of a flow. "Source" is who sent the first packet.
//!
//! NFStream measures sizes at a layer of choice (accounting_mode). A record holds lengths from the IP header on and the
//! payload of the first packets: volumes and `_ps` are those of accounting_mode = 1, `splt_ps` those of 3.

use super::figures::{self, BOTH, count, flag, gaps, l3, or_missing, packets, times};
use super::{Column, Row, Value, float, integer, put, text};
use crate::replay::export::Endpoint;
use crate::replay::table::{Reason, SECOND_NS, Timeouts};

/// Idle 120 s, active 1800 s; FIN, RST and the reuse of ports end nothing.
pub(super) fn timeouts() -> Timeouts {
    let (idle_ns, active_ns) = (120 * SECOND_NS, 1800 * SECOND_NS);
    Timeouts { idle_ns, established_ns: idle_ns, active_ns, linger_ns: u64::MAX, reopen: false, goes_on: false }
}

/// From who sent the first packet.
const SRC: usize = 0;
/// Back.
const DST: usize = 1;

const LAYER: &str = "always the IP layer (accounting_mode = 1; NFStream's default 0 counts link headers and padding)";
const EMPTY: &str = "missing, not 0, where the direction is empty";
const LAYER_EMPTY: &str = "always the IP layer (accounting_mode = 1); missing, not 0, where the direction is empty";
const PRECISION: &str = "ns precision: NFStream cuts times to ms first; missing, not 0, with fewer than two packets";
const UNKNOWN: &str = "always missing: a record holds no link-layer addresses";

/// The three directions of a group of columns.
macro_rules! directions {
    ($of:ident: $(($suffix:literal, $unit:literal, $text:literal, $kind:ident, $get:ident, $differs:expr)),* $(,)?) => {
        [$(
            $kind(concat!(stringify!($of), "_", $suffix), $unit, $text, directions!(@ $of $get)).differs($differs),
        )*]
    };
    (@ bidirectional $get:ident) => { $get::<BOTH> };
    (@ src2dst $get:ident) => { $get::<SRC> };
    (@ dst2src $get:ident) => { $get::<DST> };
}

macro_rules! core {
    ($of:ident) => {
        directions!($of:
            ("first_seen_ms", "ms", "time of the first packet since the epoch, cut to ms", integer, first_seen, EMPTY),
            ("last_seen_ms", "ms", "time of the last packet since the epoch, cut to ms", integer, last_seen, EMPTY),
            ("duration_ms", "ms", "difference of the two", integer, duration, EMPTY),
            ("packets", "packets", "packets", integer, sent, ""),
            ("bytes", "bytes", "bytes from the IP header on", integer, bytes, LAYER),
        )
    };
}

macro_rules! sizes {
    ($of:ident) => {
        directions!($of:
            ("min_ps", "bytes", "smallest packet", integer, min_ps, LAYER_EMPTY),
            ("mean_ps", "bytes", "mean size of a packet", float, mean_ps, LAYER_EMPTY),
            ("stddev_ps", "bytes", "sample deviation of the same, 0 of one packet", float, stddev_ps, LAYER_EMPTY),
            ("max_ps", "bytes", "largest packet", integer, max_ps, LAYER_EMPTY),
        )
    };
}

macro_rules! spacing {
    ($of:ident) => {
        directions!($of:
            ("min_piat_ms", "ms", "smallest time between two packets", float, min_piat, PRECISION),
            ("mean_piat_ms", "ms", "mean time between two packets", float, mean_piat, PRECISION),
            ("stddev_piat_ms", "ms", "sample deviation of the same, 0 of one", float, stddev_piat, PRECISION),
            ("max_piat_ms", "ms", "largest time between two packets", float, max_piat, PRECISION),
        )
    };
}

macro_rules! flags {
    ($of:ident) => {
        directions!($of:
            ("syn_packets", "packets", "packets with SYN", integer, syn, ""),
            ("cwr_packets", "packets", "packets with CWR", integer, cwr, ""),
            ("ece_packets", "packets", "packets with ECE", integer, ece, ""),
            ("urg_packets", "packets", "packets with URG", integer, urg, ""),
            ("ack_packets", "packets", "packets with ACK", integer, ack, ""),
            ("psh_packets", "packets", "packets with PSH", integer, psh, ""),
            ("rst_packets", "packets", "packets with RST", integer, rst, ""),
            ("fin_packets", "packets", "packets with FIN", integer, fin, ""),
        )
    };
}

const IDENTITY: [Column; 14] = [
    integer("id", "1", "number of the row, from 0", |row| Some(row.number as i64)),
    integer("expiration_id", "1", "why the flow ended: 0 idle or end of the capture, 1 active timeout", |row| {
        Some(match row.reason {
            Reason::Active | Reason::Cut => 1,
            Reason::Snapshot(_) => -1,
            _ => 0,
        })
    })
    .differs("-1 where the row is a snapshot"),
    text("src_ip", "address of who sent the first packet", |row, text| put(text, ends(row).0.address)),
    unknown("src_mac"),
    unknown("src_oui"),
    integer("src_port", "1", "its port", |row| Some(ends(row).0.port.into()))
        .differs("ICMP echo: the identifier, else 0; NFStream has 0"),
    text("dst_ip", "address of the other end", |row, text| put(text, ends(row).1.address)),
    unknown("dst_mac"),
    unknown("dst_oui"),
    integer("dst_port", "1", "its port", |row| Some(ends(row).1.port.into()))
        .differs("ICMP echo: the identifier, else 0; NFStream has 0"),
    integer("protocol", "1", "IP protocol number", |row| Some(row.record.key.protocol.into())),
    integer("ip_version", "1", "4 or 6", |row| Some(row.record.key.family.into())),
    integer("vlan_id", "1", "VLAN id, the inner one of two, 0 without", |row| {
        let [outer, inner] = row.record.key.vlans;
        Some(if inner == 0 { outer } else { inner }.into())
    }),
    integer("tunnel_id", "1", "what the flow is tunnelled in: 0 nothing, 1 GTP, 5 VXLAN, 6 GRE", |row| {
        Some(match row.record.key.encapsulation {
            1 => 6,
            3 => 5,
            5 => 1,
            _ => 0,
        })
    })
    .differs("0 without --tunnels, and inside plain IP tunnels"),
];

const SPLT: [Column; 3] = [
    text("splt_direction", "of each of the first 16 packets: 0 from the source, 1 back, -1 no packet", |row, text| {
        list(text, |position| arrival(row, position).map(|(back, ..)| back));
    }),
    text("splt_ps", "size of each of the first 16 packets, bytes, -1 no packet", |row, text| {
        list(text, |position| arrival(row, position).map(|(_, payload, _)| payload));
    })
    .differs("the L4 payload (accounting_mode = 3): the record holds no other size packet by packet"),
    text(
        "splt_piat_ms",
        "time between each of the first 16 packets and the one before, ms, -1 no packet",
        |row, text| {
            let mut at_us = row.record.first_ns / 1000;
            list(text, |position| {
                let (_, _, iat_us) = arrival(row, position)?;
                let before_ms = at_us / 1000;
                at_us += iat_us;
                Some((at_us / 1000 - before_ms) as i64)
            });
        },
    ),
];

pub(super) fn columns() -> Vec<Column> {
    [
        &IDENTITY[..],
        &core!(bidirectional),
        &core!(src2dst),
        &core!(dst2src),
        &sizes!(bidirectional),
        &sizes!(src2dst),
        &sizes!(dst2src),
        &spacing!(bidirectional),
        &spacing!(src2dst),
        &spacing!(dst2src),
        &flags!(bidirectional),
        &flags!(src2dst),
        &flags!(dst2src),
        &SPLT,
    ]
    .concat()
}

const fn unknown(name: &'static str) -> Column {
    Column { name, unit: "", definition: "link-layer address or vendor", differs: UNKNOWN, value: Value::Never }
}

/// Who sent the first packet, and the other end.
fn ends(row: &Row<'_>) -> (Endpoint, Endpoint) {
    if first_side(row) == 0 { (row.source, row.destination) } else { (row.destination, row.source) }
}

/// The record's side of who sent the first packet.
fn first_side(row: &Row<'_>) -> usize {
    (row.record.first[0].direction & 1).into()
}

/// The record's side of a direction of NFStream's.
fn side<const OF: usize>(row: &Row<'_>) -> usize {
    if OF == BOTH { BOTH } else { OF ^ first_side(row) }
}

fn first_seen<const OF: usize>(row: &Row<'_>) -> Option<i64> {
    times(row.record, side::<OF>(row)).map(|(first_ns, _)| (first_ns / 1_000_000) as i64)
}

fn last_seen<const OF: usize>(row: &Row<'_>) -> Option<i64> {
    times(row.record, side::<OF>(row)).map(|(_, last_ns)| (last_ns / 1_000_000) as i64)
}

fn duration<const OF: usize>(row: &Row<'_>) -> Option<i64> {
    Some(last_seen::<OF>(row)? - first_seen::<OF>(row)?)
}

fn sent<const OF: usize>(row: &Row<'_>) -> Option<i64> {
    Some(packets(row.record, side::<OF>(row)) as i64)
}

fn bytes<const OF: usize>(row: &Row<'_>) -> Option<i64> {
    Some(count(row.record, side::<OF>(row), |half| half.l3_bytes) as i64)
}

fn min_ps<const OF: usize>(row: &Row<'_>) -> Option<i64> {
    l3(row.record, side::<OF>(row)).map(|sums| sums.min as i64)
}

fn mean_ps<const OF: usize>(row: &Row<'_>) -> f64 {
    or_missing(l3(row.record, side::<OF>(row)).map(|sums| sums.mean()))
}

fn stddev_ps<const OF: usize>(row: &Row<'_>) -> f64 {
    or_missing(l3(row.record, side::<OF>(row)).map(|sums| sums.deviation()))
}

fn max_ps<const OF: usize>(row: &Row<'_>) -> Option<i64> {
    l3(row.record, side::<OF>(row)).map(|sums| sums.max as i64)
}

fn piat<const OF: usize>(row: &Row<'_>, of: impl Fn(figures::Gaps) -> f64) -> f64 {
    or_missing(gaps(row.record, side::<OF>(row)).map(|gaps| of(gaps) / 1e6))
}

fn min_piat<const OF: usize>(row: &Row<'_>) -> f64 {
    piat::<OF>(row, |gaps| gaps.min_ns as f64)
}

fn mean_piat<const OF: usize>(row: &Row<'_>) -> f64 {
    piat::<OF>(row, |gaps| gaps.mean_ns())
}

fn stddev_piat<const OF: usize>(row: &Row<'_>) -> f64 {
    piat::<OF>(row, |gaps| gaps.deviation_ns())
}

fn max_piat<const OF: usize>(row: &Row<'_>) -> f64 {
    piat::<OF>(row, |gaps| gaps.max_ns as f64)
}

/// A function for each TCP flag, by its bit.
macro_rules! flag_functions {
    ($($name:ident $bit:literal),*) => {
        $(fn $name<const OF: usize>(row: &Row<'_>) -> Option<i64> {
            Some(flag(row.record, side::<OF>(row), $bit))
        })*
    };
}
flag_functions!(fin 0, syn 1, rst 2, psh 3, ack 4, urg 5, ece 6, cwr 7);

/// Direction, payload and inter-arrival time (µs) of one of the first packets.
fn arrival(row: &Row<'_>, position: usize) -> Option<(i64, i64, u64)> {
    let arrival = row.record.first[..].get(position).filter(|_| position < row.record.first_len as usize)?;
    let back = arrival.direction as usize ^ first_side(row);
    Some((back as i64, arrival.payload.into(), arrival.iat_us.into()))
}

/// Appends a list of 16 numbers, as NFStream's CSV has it.
fn list(text: &mut String, mut value: impl FnMut(usize) -> Option<i64>) {
    for position in 0..16 {
        text.push_str(if position == 0 { "[" } else { ", " });
        put(text, value(position).unwrap_or(-1));
    }
    text.push(']');
}
