"""What a flow's record gets from elsewhere: ICMP errors that quote it, the fragments of its datagrams after a clock that
steps back, and the host context of its source and its service."""

import struct

from frames import (
    A, A6, B, B6, C, ICMP, ICMPV6, MS, SECOND, UDP,
    Tcp, Udp, ethernet, ip4, ip6, payload, udp,
)  # fmt: skip

EPOCH = 1_700_000_000
TICK = 2**26
"""The clock of the host context, ns; its ticks are counted in 32 bits."""
ALIGN = 15 * 149 * 2
"""Ticks after which sub-windows of 15 (1 s), 149 (10 s) and 894 (60 s) ticks begin together."""


def quoting(frame, network=20):
    """What an ICMP error quotes of a frame: its IP header and 8 bytes more (RFC 792)."""
    return frame[14 : 14 + network + 8]


def icmp4(src, dst, kind, code, quote):
    return ethernet(ip4(src, dst, ICMP, struct.pack("!BBHI", kind, code, 0, 0) + quote))


def icmp_errors():
    """Errors about a datagram, a SYN and a datagram over IPv6. Then one about a flow that nobody saw, one from the other
    end about what came back to it, and one about a fragment behind the first, whose data would read as the ports of
    the first flow."""
    datagram, syn = Udp().send(0, 20), Tcp(((A, 1000), (B, 81))).send(0, "S")
    six = Udp(((A6, 4000), (B6, 5000))).send(0, 20)
    stranger, back = Udp(((A, 4001), (B, 5000))).send(0, 20), Udp().send(1, 20)
    later = ethernet(ip4(A, B, UDP, udp(4000, 5000, payload(8)), ident=9, fragment=7))
    about_six = struct.pack("!BBHI", 1, 4, 0, 0) + quoting(six, 40)
    return [
        (0 * MS, datagram),
        (1 * MS, icmp4(B, A, 3, 3, quoting(datagram))),
        (2 * MS, syn),
        (3 * MS, icmp4(C, A, 3, 1, quoting(syn))),
        (4 * MS, icmp4(C, A, 11, 0, quoting(syn))),
        (5 * MS, six),
        (6 * MS, ethernet(ip6(B6, A6, ICMPV6, about_six))),
        (7 * MS, icmp4(B, A, 3, 3, quoting(stranger))),
        (8 * MS, icmp4(A, B, 3, 3, quoting(back))),
        (9 * MS, icmp4(B, A, 11, 1, quoting(later))),
    ]


def fragments_clock_back():
    """Later fragments of identification 77 after the clock went back: 10 s, which is as good as 10 s later; 40 s, which is
    too far; an hour, another recording, in which the identification is used again."""
    datagram = udp(4000, 5000, payload(100))
    more = 0x2000
    first = ethernet(ip4(A, B, UDP, datagram[:56], ident=77, fragment=more))
    later = ethernet(ip4(A, B, UDP, datagram[56:], ident=77, fragment=7))
    times = (
        (7200_000, first), (7200_001, later), (7190_000, later), (7160_000, later),
        (3600_000, later), (3600_001, first), (3600_002, later), (3625_000, later), (3640_000, later),
    )  # fmt: skip
    return [(ms * MS, frame) for ms, frame in times]


def host_context():
    """Four connections of one client to one service, of which one is refused and one is not answered; five SYNs to another
    port, each from another source; and a datagram at the end, which is when the context is asked for. Times are in ticks
    from where all sub-windows begin."""
    epoch = EPOCH * SECOND // TICK
    begin = (epoch + ALIGN - epoch % 2**32 % ALIGN) * TICK - EPOCH * SECOND
    at = lambda tick, ms=0: begin + tick * TICK + ms * MS + 1000
    first, refused, silent, half = (Tcp(((A, port), (B, 80))) for port in (1000, 1001, 1002, 1003))
    frames = [
        (at(0), first.send(0, "S")),
        (at(0, 1), first.send(1, "SA")),
        (at(0, 2), first.send(0, "A")),
        (at(5), refused.send(0, "S")),
        (at(5, 1), refused.send(1, "RA")),
        (at(10), silent.send(0, "S")),
        (at(20), half.send(0, "S")),
        (at(20, 1), half.send(1, "SA")),
    ]
    for number in range(1, 6):
        frames.append((at(200, number), Tcp(((f"198.19.0.{number}", 2000), (B, 443))).send(0, "S")))
    return frames + [(at(220), Udp(((C, 4000), (B, 5000))).send(0, 10))]


CAPTURES = [icmp_errors, fragments_clock_back, host_context]
