"""Corner cases of connections and of clocks."""

import struct

from frames import A, B, ICMP, MS, SECOND, Tcp, Udp, ethernet, handshake, ip4, payload


def close(talk, start, step=MS):
    """FIN of the initiator, FIN of the responder, the last ACK."""
    return [
        (start, talk.send(0, "FA")),
        (start + step, talk.send(1, "FA")),
        (start + 2 * step, talk.send(0, "A")),
    ]


def tcp_port_reuse():
    """A connection that is closed; a second on the same ports one second later, whose SYN is sent twice."""
    first, second = Tcp(), Tcp(isn=(700_000, 900_000))
    return (
        handshake(first)
        + [(10 * MS, first.send(0, "PA", 100))]
        + close(first, 20 * MS)
        + [(SECOND, second.send(0, "S", seq=700_000))]
        + handshake(second, 2 * SECOND)
        + [(3 * SECOND, second.send(1, "PA", 200))]
    )


def tcp_simultaneous_open():
    """Both ends send a SYN before they see the other's (RFC 9293, figure 8)."""
    talk = Tcp()
    a, b = talk.next
    return [
        (0, talk.send(0, "S")),
        (1 * MS, talk.send(1, "S")),
        (2 * MS, talk.send(0, "SA", seq=a)),
        (3 * MS, talk.send(1, "SA", seq=b)),
        (10 * MS, talk.send(0, "PA", 10)),
        (11 * MS, talk.send(1, "A")),
    ]


def tcp_reset_after_fin():
    """The initiator's FIN is acknowledged, then the responder resets."""
    talk = Tcp()
    return handshake(talk) + [
        (10 * MS, talk.send(0, "PA", 100)),
        (20 * MS, talk.send(0, "FA")),
        (21 * MS, talk.send(1, "A")),
        (30 * MS, talk.send(1, "RA")),
        (31 * MS, talk.send(0, "R")),
    ]


def tcp_half_open():
    """A SYN that is never answered, sent three times; and one whose SYN-ACK is never acknowledged, sent twice."""
    silent, half = Tcp(), Tcp(((A, 1001), (B, 80)))
    isn = half.next[1]
    return [
        (0, silent.send(0, "S", seq=100_000)),
        (SECOND, silent.send(0, "S", seq=100_000)),
        (3 * SECOND, silent.send(0, "S", seq=100_000)),
        (4 * SECOND, half.send(0, "S")),
        (4 * SECOND + 2 * MS, half.send(1, "SA", seq=isn)),
        (5 * SECOND + 2 * MS, half.send(1, "SA", seq=isn)),
    ]


def one_packet():
    """Flows of one packet: TCP, UDP, an ICMP echo request, IGMP."""
    echo = struct.pack("!BBHHH", 8, 0, 0, 0x1234, 1) + payload(32)
    return [
        (0, Tcp().send(0, "S")),
        (1 * MS, Udp().send(0, 18)),
        (2 * MS, ethernet(ip4(A, B, ICMP, echo))),
        (3 * MS, ethernet(ip4(A, "224.0.0.251", 2, payload(8), ttl=1))),
    ]


def tcp_sequence_wrap():
    """Sequence numbers that pass 2^32: inside the data of one connection, at the FIN of another."""
    data, fin = Tcp(isn=(2**32 - 101, 500_000)), Tcp(((A, 1001), (B, 80)), isn=(2**32 - 12, 2**32 - 1))
    return (
        handshake(data)
        + [(number * 10 * MS, data.send(0, "PA", length)) for number, length in ((1, 60), (2, 80), (3, 100))]
        + [(40 * MS, data.send(1, "A"))]
        + close(data, 50 * MS)
        + handshake(fin, 100 * MS)
        + [(110 * MS, fin.send(0, "PA", 10))]
        + close(fin, 120 * MS)
    )


def tcp_keep_alive():
    """Data, then a probe every 20 s (the byte before the next, not sent again: RFC 9293 §3.8.4) and its answer."""
    talk = Tcp()
    frames = handshake(talk) + [(10 * MS, talk.send(0, "PA", 100)), (11 * MS, talk.send(1, "A"))]
    for probe in range(1, 5):
        frames.append((probe * 20 * SECOND, talk.send(0, "A", seq=talk.next[0] - 1)))
        frames.append((probe * 20 * SECOND + MS, talk.send(1, "A")))
    return frames


def idle_40_hours():
    """A pause of 40 hours: two flows."""
    talk = Udp()
    return [(second * SECOND, talk.send(0, 10)) for second in (0, 144_000, 144_001)]


def idle_40_hours_kept():
    """The same where the idle timeout is longer: an inter-arrival time whose square 64 bits do not hold."""
    return idle_40_hours()


def clock_back():
    """A frame that is 0.1 s older than the one before it, as captures of several queues have; then a step back of an
    hour, as merged captures have."""
    talk = Udp()
    times = (7200_000, 7200_500, 7200_400, 7200_750, 7201_000, 3600_000, 3600_250)
    return [(ms * MS, talk.send(0, 10)) for ms in times]


CAPTURES = [
    tcp_port_reuse,
    tcp_simultaneous_open,
    tcp_reset_after_fin,
    tcp_half_open,
    one_packet,
    tcp_sequence_wrap,
    tcp_keep_alive,
    idle_40_hours,
    idle_40_hours_kept,
    clock_back,
]
