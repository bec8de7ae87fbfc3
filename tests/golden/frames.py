"""Bytes of frames and captures: as little as the golden captures need, readable beside the RFCs.

A frame is Ethernet and padded to 60 bytes, as on a wire. Checksums of IPv4 headers are right; those of transports
are left 0, as nothing here reads them. Addresses are of 198.18.0.0/15 (RFC 2544) and 2001:db8::/32 (RFC 3849).
"""

import ipaddress
import struct

A, B, C = "198.18.0.1", "198.18.0.2", "198.18.0.3"
A6, B6 = "2001:db8::1", "2001:db8::2"

ICMP, TCP, UDP, GRE, ESP, AH, ICMPV6, SCTP = 1, 6, 17, 47, 50, 51, 58, 132
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60

MS = 1_000_000
"""A millisecond in ns: times of frames are in ns since the capture's first second."""
SECOND = 1_000 * MS


def payload(length):
    """`length` bytes that are nobody's header."""
    return bytes(0x61 + position % 16 for position in range(length))


def checksum(data):
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(packet, vlans=(), pad=60):
    """An IP packet in Ethernet. `vlans`: tag control information of each 802.1Q tag, outer first."""
    ethertype = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    tags = b"".join(struct.pack("!HH", 0x8100, tci) for tci in vlans)
    frame = bytes.fromhex("020000000002 020000000001") + tags + struct.pack("!H", ethertype) + packet
    return frame.ljust(pad, b"\0")


def ip4(src, dst, protocol, body, options=b"", ttl=64, tos=0, ident=0, fragment=0x4000):
    """RFC 791. `fragment`: flags and offset; 0x4000 is "do not fragment"."""
    header_len = 20 + len(options)
    addresses = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    start = struct.pack(
        "!BBHHHBBH", 0x40 | header_len // 4, tos, header_len + len(body), ident, fragment, ttl, protocol, 0
    )
    header = start + addresses + options
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + body


def ip6(src, dst, protocol, body, extensions=(), hops=64, traffic_class=0, label=0):
    """RFC 8200. `extensions`: (protocol number, bytes behind "next header") of each extension header."""
    chain = [kind for kind, _ in extensions] + [protocol]
    headers = b"".join(bytes([following]) + rest for following, (_, rest) in zip(chain[1:], extensions))
    addresses = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    first = 6 << 28 | traffic_class << 20 | label
    return struct.pack("!IHBB", first, len(headers) + len(body), chain[0], hops) + addresses + headers + body


def udp(sport, dport, data):
    """RFC 768."""
    return struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data


FLAGS = {"F": 0x01, "S": 0x02, "R": 0x04, "P": 0x08, "A": 0x10, "U": 0x20, "E": 0x40, "C": 0x80}
"""TCP flags by the letter that tcpdump uses (U: urgent, E: ECN echo, C: congestion window reduced)."""


def tcp(sport, dport, flags, seq=0, ack=0, window=1000, options=b"", data=b""):
    """RFC 9293."""
    bits = sum(FLAGS[letter] for letter in flags)
    offset = (20 + len(options)) << 2
    return struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset, bits, window, 0, 0) + options + data


class Udp:
    """Datagrams between two endpoints; side 0 speaks first."""

    def __init__(self, ends=((A, 4000), (B, 5000)), vlans=()):
        self.ends, self.vlans = ends, vlans

    def send(self, side, length):
        """A frame with `length` payload bytes."""
        (src, sport), (dst, dport) = self.ends[side], self.ends[1 - side]
        ip = ip6 if ":" in src else ip4
        return ethernet(ip(src, dst, UDP, udp(sport, dport, payload(length))), self.vlans)


class Tcp:
    """Segments between two endpoints, with sequence and acknowledgement numbers as both would send them."""

    def __init__(self, ends=((A, 1000), (B, 80)), isn=(100_000, 500_000), window=(1000, 2000), vlans=(), ip=None):
        self.ends, self.window, self.vlans = ends, list(window), vlans
        self.next = list(isn)
        self.ip = ip or (ip6 if ":" in ends[0][0] else ip4)

    def send(self, side, flags, length=0, seq=None, ack=None, options=b"", data=None, **ip_fields):
        """A frame. `seq`, `ack`: other numbers than the connection's; with `seq` given it does not move on."""
        (src, sport), (dst, dport) = self.ends[side], self.ends[1 - side]
        number = self.next[side] if seq is None else seq
        reply = 0 if "A" not in flags else self.next[1 - side] if ack is None else ack
        body = payload(length) if data is None else data
        if seq is None:
            self.next[side] = (number + len(body) + ("S" in flags) + ("F" in flags)) % 2**32
        segment = tcp(sport, dport, flags, number % 2**32, reply % 2**32, self.window[side], options, body)
        return ethernet(self.ip(src, dst, TCP, segment, **ip_fields), self.vlans)


def handshake(talk, start=0, step=MS):
    """SYN, SYN-ACK, ACK at `start`, one and two `step`s later."""
    return [
        (start, talk.send(0, "S")),
        (start + step, talk.send(1, "SA")),
        (start + 2 * step, talk.send(0, "A")),
    ]


def pcap(frames, epoch):
    """A pcap file with nanoseconds: (ns since second `epoch`, bytes) of each frame, in the order given."""
    file = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262_144, 1)
    for time_ns, frame in frames:
        seconds, nanoseconds = divmod(time_ns, SECOND)
        file += struct.pack("<IIII", epoch + seconds, nanoseconds, len(frame), len(frame)) + frame
    return file
