"""Lengths that headers state and that are not those of what carries them: UDP's own, and the one that a network card fills in."""

import struct

from frames import (
    A, A6, B, B6, DESTINATION, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, MS, TCP, UDP,
    Tcp, ethernet, handshake, ip4, ip6, payload, tcp, udp,
)  # fmt: skip


def stated(length, datagram):
    """A UDP datagram whose length field says `length`."""
    return datagram[:4] + struct.pack("!H", length) + datagram[6:]


def udp_length():
    """Five datagrams of 20 bytes with 80 bytes of surplus behind them (RFC 9868), five of one byte that IP carries with 17 more,
    two over IPv6 with surplus. One whose length is below that of its header, one that claims more than there is."""
    surplus = stated(28, udp(4000, 5000, payload(100)))
    padded = stated(9, udp(4001, 5000, payload(18)))
    six = stated(18, udp(4002, 5000, payload(30)))
    frames = [(step * MS, ethernet(ip4(A, B, UDP, surplus))) for step in range(5)]
    frames += [(step * MS, ethernet(ip4(A, B, UDP, padded))) for step in range(5, 10)]
    frames += [(step * MS, ethernet(ip6(A6, B6, UDP, six))) for step in range(10, 12)]
    frames += [(12 * MS, ethernet(ip4(A, B, UDP, stated(7, udp(4003, 5000, payload(60))))))]
    return frames + [(13 * MS, ethernet(ip4(A, B, UDP, stated(900, udp(4004, 5000, payload(60))))))]


def without_length(frame):
    """The frame as its sender gives it to a card that segments it."""
    at = 16 if frame[14] >> 4 == 4 else 18
    return frame[:at] + bytes(2) + frame[at + 2 :]


def card_fills_in_length():
    """A connection as its server captures it: what it sends in frames above the MTU states no length. Then the same of IPv6
    and of UDP; and, as malformed as ever, an echo request, which no card segments, and a frame that may be padded."""
    talk, six = Tcp(), Tcp(((A6, 1000), (B6, 80)))
    frames = handshake(talk) + [(3 * MS, talk.send(0, "PA", 100))]
    frames += [((4 + step) * MS, without_length(talk.send(1, "A", 4000))) for step in range(5)]
    frames += [(9 * MS, talk.send(0, "A"))]
    frames += [(10 * MS, without_length(six.send(1, "A", 5000)))]
    frames += [(11 * MS, without_length(ethernet(ip4(A, B, UDP, udp(4000, 5000, payload(3000))))))]
    frames += [(12 * MS, without_length(ethernet(ip4(A, B, ICMP, struct.pack("!BBHI", 8, 0, 0, 0) + payload(3000)))))]
    return frames + [(13 * MS, without_length(ethernet(ip4(A, B, TCP, tcp(1000, 80, "A")))))]


def icmpv6_errors_extensions():
    """Datagrams with extension headers, and for each a router's error (time exceeded) that quotes it. The last one is a fragment
    behind the first: its error names no flow."""
    chains = {
        4000: [(HOP_BY_HOP, bytes([0, 5, 2, 0, 0, 1, 0]))],
        4001: [(DESTINATION, bytes([1, 1, 12]) + bytes(12))],
        4002: [(FRAGMENT, struct.pack("!BHI", 0, 0, 7))],
        4003: [(HOP_BY_HOP, bytes([0, 1, 4]) + bytes(4)), (DESTINATION, bytes([0, 1, 4]) + bytes(4))],
        4004: [(FRAGMENT, struct.pack("!BHI", 0, 1 << 3, 9))],
    }
    frames = []
    for step, (port, extensions) in enumerate(chains.items()):
        datagram = ip6(A6, B6, UDP, udp(port, 5000, payload(100)), extensions)
        error = struct.pack("!BBHI", 3, 0, 0, 0) + datagram
        if port != 4004:
            frames += [(2 * step * MS, ethernet(datagram))]
        frames += [((2 * step + 1) * MS, ethernet(ip6("2001:db8::fe", A6, ICMPV6, error)))]
    return frames


CAPTURES = (udp_length, card_fills_in_length, icmpv6_errors_extensions)
