//! Per direction: bins, TCP and IP detail, bulks, ICMP, payload hints.

use super::base::{count, opening};
use super::{Feature, Form, Presence, record_feature};
use crate::flow::{icmp_kind, ip_seen};
use crate::packet::tcp_option;
use crate::whole::fraction;

fn bit(bits: u8, mask: u8) -> u64 {
    (bits & mask != 0).into()
}

/// `$p`: prefix, `$side`: 0 or 1, `$who`: for the text, `$none`: when it is missing.
macro_rules! details {
    ($p:literal, $side:literal, $who:literal, $none:expr) => {
        [
            record_feature!(concat!($p, "_payload_min"), "bytes", "size", concat!("smallest L4 payload of a packet ", $who, ", empty ones included, at most 65535"), $none, |r| count(r, $side, |d| d.payload_min.into())),
            record_feature!(concat!($p, "_iat_bin_1"), "frames", "inter-arrival", concat!("frames ", $who, " whose time since the previous one of that direction is below 8.192 µs (lower edge included)"), Presence::Always, |r| count(r, $side, |d| d.iat_bins[0] as u64)),
            record_feature!(concat!($p, "_iat_bin_2"), "frames", "inter-arrival", concat!("frames ", $who, " whose time since the previous one of that direction is from 8.192 µs to 65.536 µs (lower edge included)"), Presence::Always, |r| count(r, $side, |d| d.iat_bins[1] as u64)),
            record_feature!(concat!($p, "_iat_bin_3"), "frames", "inter-arrival", concat!("frames ", $who, " whose time since the previous one of that direction is from 65.536 µs to 524.288 µs (lower edge included)"), Presence::Always, |r| count(r, $side, |d| d.iat_bins[2] as u64)),
            record_feature!(concat!($p, "_iat_bin_4"), "frames", "inter-arrival", concat!("frames ", $who, " whose time since the previous one of that direction is from 524.288 µs to 4.194304 ms (lower edge included)"), Presence::Always, |r| count(r, $side, |d| d.iat_bins[3] as u64)),
            record_feature!(concat!($p, "_iat_bin_5"), "frames", "inter-arrival", concat!("frames ", $who, " whose time since the previous one of that direction is from 4.194304 ms to 33.554432 ms (lower edge included)"), Presence::Always, |r| count(r, $side, |d| d.iat_bins[4] as u64)),
            record_feature!(concat!($p, "_iat_bin_6"), "frames", "inter-arrival", concat!("frames ", $who, " whose time since the previous one of that direction is from 33.554432 ms to 268.435456 ms (lower edge included)"), Presence::Always, |r| count(r, $side, |d| d.iat_bins[5] as u64)),
            record_feature!(concat!($p, "_iat_bin_7"), "frames", "inter-arrival", concat!("frames ", $who, " whose time since the previous one of that direction is from 268.435456 ms to 2.147483648 s (lower edge included)"), Presence::Always, |r| count(r, $side, |d| d.iat_bins[6] as u64)),
            record_feature!(concat!($p, "_iat_bin_8"), "frames", "inter-arrival", concat!("frames ", $who, " whose time since the previous one of that direction is from 2.147483648 s on (lower edge included)"), Presence::Always, |r| count(r, $side, |d| d.iat_bins[7] as u64)),
            record_feature!(concat!($p, "_window_zero"), "packets", "tcp", concat!("packets ", $who, " with a TCP window of 0 and no SYN, FIN or RST"), Presence::Tcp, |r| count(r, $side, |d| d.zero_windows as u64)),
            record_feature!(concat!($p, "_mss"), "bytes", "tcp", concat!("maximum segment size option of the last SYN ", $who), Presence::Mss($side), |r| opening(r, $side, |o| o.mss.into())),
            record_feature!(concat!($p, "_wscale"), "1", "tcp", concat!("window scale option (shift) of the last SYN ", $who), Presence::WindowScale($side), |r| opening(r, $side, |o| o.wscale.into())),
            record_feature!(concat!($p, "_sack_permitted"), "0/1", "tcp", concat!("a SYN ", $who, " permits selective acknowledgements"), Presence::TcpDirection($side), |r| opening(r, $side, |o| bit(o.tcp_options, tcp_option::SACK_PERMITTED))),
            record_feature!(concat!($p, "_timestamps"), "0/1", "tcp", concat!("a SYN ", $who, " carries timestamps"), Presence::TcpDirection($side), |r| opening(r, $side, |o| bit(o.tcp_options, tcp_option::TIMESTAMPS))),
            record_feature!(concat!($p, "_retransmitted"), "packets", "tcp", concat!("packets that repeat bytes which were seen before: wholly below the highest sequence number, in no skipped range, in the receiver's window, no keep-alive; a repeated SYN or FIN too, ", $who), Presence::Tcp, |r| count(r, $side, |d| d.retransmitted as u64)),
            record_feature!(concat!($p, "_out_of_order"), "packets", "tcp", concat!("packets that come late: wholly below the highest sequence number, in bytes that were skipped and not acknowledged since, in the receiver's window, ", $who), Presence::Tcp, |r| count(r, $side, |d| d.out_of_order as u64)),
            record_feature!(concat!($p, "_duplicate_acks"), "packets", "tcp", concat!("duplicate acknowledgements (RFC 5681, section 2), ", $who), Presence::Tcp, |r| count(r, $side, |d| d.duplicate_acks as u64)),
            record_feature!(concat!($p, "_keep_alives"), "packets", "tcp", concat!("keep-alives (RFC 9293, section 3.8.4), sent while all is acknowledged, at most 65535, ", $who), Presence::Tcp, |r| count(r, $side, |d| d.keep_alives as u64)),
            record_feature!(concat!($p, "_flags_first"), "1", "flags", concat!("TCP flags byte of the first packet ", $who), Presence::TcpDirection($side), |r| opening(r, $side, |o| o.flags.into())),
            record_feature!(concat!($p, "_ttl_first"), "hops", "ip", concat!("IPv4 TTL or IPv6 hop limit of the first packet ", $who), $none, |r| opening(r, $side, |o| o.ttl.into())),
            record_feature!(concat!($p, "_dscp"), "1", "ip", concat!("DSCP (0 to 63) of the first packet ", $who), $none, |r| count(r, $side, |d| (d.traffic_class >> 2).into())),
            record_feature!(concat!($p, "_dscp_changed"), "0/1", "ip", concat!("a packet has another DSCP than the first one ", $who), $none, |r| count(r, $side, |d| bit(d.ip_seen, ip_seen::DSCP_CHANGED))),
            record_feature!(concat!($p, "_ecn_capable"), "0/1", "ip", concat!("a packet has ECN code point ECT(0) or ECT(1), ", $who), $none, |r| count(r, $side, |d| bit(d.ip_seen, ip_seen::ECN << 1 | ip_seen::ECN << 2))),
            record_feature!(concat!($p, "_ecn_congestion"), "0/1", "ip", concat!("a packet has ECN code point CE, ", $who), $none, |r| count(r, $side, |d| bit(d.ip_seen, ip_seen::ECN << 3))),
            record_feature!(concat!($p, "_df_set"), "0/1", "ip", concat!("a packet has the IPv4 flag Don't Fragment, ", $who), Presence::Ipv4($side), |r| count(r, $side, |d| bit(d.ip_seen, ip_seen::DF_SET))),
            record_feature!(concat!($p, "_df_clear"), "0/1", "ip", concat!("a packet lacks the IPv4 flag Don't Fragment, ", $who), Presence::Ipv4($side), |r| count(r, $side, |d| bit(d.ip_seen, ip_seen::DF_CLEAR))),
            record_feature!(concat!($p, "_ip_options"), "0/1", "ip", concat!("a packet has IPv4 options, ", $who), Presence::Ipv4($side), |r| count(r, $side, |d| bit(d.ip_seen, ip_seen::OPTIONS))),
            record_feature!(concat!($p, "_fragments"), "packets", "ip", concat!("IP fragments ", $who, ", the first of a datagram included"), Presence::Always, |r| opening(r, $side, |o| o.fragments.into())),
            record_feature!(concat!($p, "_extensions"), "1", "ip", concat!("IPv6 extension headers (and AH, ESP of IPv4) seen ", $who, ": hop-by-hop 1, routing 2, fragment 4, AH 8, destination options 16, mobility 32, HIP or Shim6 64, ESP 128"), $none, |r| opening(r, $side, |o| o.extensions.into())),
            record_feature!(concat!($p, "_flow_label"), "1", "ip", concat!("IPv6 flow label of the first packet ", $who), Presence::Ipv6($side), |r| opening(r, $side, |o| o.flow_label.into())),
            record_feature!(concat!($p, "_bursts"), "bursts", "shape", concat!("longest runs of frames of one direction, ", $who), Presence::Always, |r| r.bursts_of($side)),
            record_feature!(concat!($p, "_bulks"), "bulks", "shape", concat!("bulks (four packets or more with payload of one direction, gaps of at most 1 s, no payload of the other direction between) ", $who), Presence::Always, |r| count(r, $side, |d| d.bulks as u64)),
            record_feature!(concat!($p, "_bulk_packets"), "packets", "shape", concat!("packets with payload in bulks ", $who), Presence::Always, |r| count(r, $side, |d| d.bulk_packets as u64)),
            record_feature!(concat!($p, "_bulk_bytes"), "bytes", "shape", concat!("L4 payload bytes in bulks ", $who), Presence::Always, |r| count(r, $side, |d| d.bulk_bytes)),
            record_feature!(concat!($p, "_bulk_seconds"), "seconds", "shape", concat!("time from the first to the last packet of each bulk, summed, ", $who), Presence::Always, |r| count(r, $side, |d| d.bulk_ns)).of(Form::Nanoseconds),
            record_feature!(concat!($p, "_icmp_echo_requests"), "frames", "icmp", concat!("ICMP echo requests ", $who), Presence::Icmp, |r| count(r, $side, |d| d.icmp(icmp_kind::ECHO_REQUEST) as u64)),
            record_feature!(concat!($p, "_icmp_echo_replies"), "frames", "icmp", concat!("ICMP echo replies ", $who), Presence::Icmp, |r| count(r, $side, |d| d.icmp(icmp_kind::ECHO_REPLY) as u64)),
            record_feature!(concat!($p, "_icmp_errors_sent"), "frames", "icmp", concat!("ICMP errors ", $who), Presence::Icmp, |r| count(r, $side, |d| d.icmp(icmp_kind::ERROR) as u64)),
            record_feature!(concat!($p, "_icmp_others"), "frames", "icmp", concat!("ICMP messages that are neither echo nor error ", $who), Presence::Icmp, |r| count(r, $side, |d| d.icmp(icmp_kind::OTHER) as u64)),
            record_feature!(concat!($p, "_hint_text"), "1", "payload hints", concat!("share of printable ASCII, tab, line feed and carriage return in the first 16 bytes of the first payload ", $who), Presence::Hint($side), |r| opening(r, $side, |o| fraction(o.hint_text.into(), o.hint_len.into()))).of(Form::Fraction),
            record_feature!(concat!($p, "_hint_high"), "1", "payload hints", concat!("share of bytes from 0x80 on in the first 16 bytes of the first payload ", $who), Presence::Hint($side), |r| opening(r, $side, |o| fraction(o.hint_high.into(), o.hint_len.into()))).of(Form::Fraction),
            record_feature!(concat!($p, "_hint_entropy"), "bits", "payload hints", concat!("Shannon entropy of the first 16 bytes of the first payload ", $who, ", in steps of 1/32 bit"), Presence::Hint($side), |r| opening(r, $side, |o| o.hint_entropy.into())).of(Form::Entropy),
            record_feature!(concat!($p, "_hint_tls"), "1", "payload hints", concat!("TLS version (769 to 772) of the first payload ", $who, ": of its ClientHello or ServerHello, else of its record; 0 = no TLS"), Presence::TcpHint($side), |r| opening(r, $side, |o| o.version.into())),
            record_feature!(concat!($p, "_hint_quic"), "1", "payload hints", concat!("QUIC version (1, 0x6b3343cf, or a draft 0xff0000..) or DTLS version (0xfe..) of the first payload ", $who, "; 0 = neither"), Presence::UdpHint($side), |r| opening(r, $side, |o| o.version.into())),
        ]
    };
}

pub(super) const FORWARD: [Feature; 44] = details!("fwd", 0, "from the initiator", Presence::Direction(0));
pub(super) const REVERSE: [Feature; 44] = details!("bwd", 1, "from the responder", Presence::Direction(1));
