"""One capture for each known defect of CICFlowMeter (Engelen et al. 2021, Rosay et al. 2022), in that order, and one for
those that its Python port adds. Times are in ns, lengths in bytes of L4 payload."""

from frames import A, B, A6, B6, ESP, MS, SCTP, SECOND, Tcp, Udp, ethernet, handshake, ip4, payload
import struct


def cic_01_bulk():
    """Two bulks forward, one back; three packets that the other direction interrupts, and a gap above a second."""
    talk = Udp()
    at = lambda side, *packets: [(ms * MS, talk.send(side, length)) for ms, length in packets]
    return (
        at(0, (0, 100), (50, 200), (150, 300), (250, 400))
        + at(1, (300, 500), (400, 500), (500, 500), (600, 500), (700, 500))
        + at(0, (800, 100), (850, 100), (900, 100))
        + at(1, (950, 50))
        + at(0, (1000, 250), (1050, 250), (1150, 250), (1250, 250))
        + at(0, (2350, 10))
    )


def cic_02_length():
    """Lengths whose mean and deviation change when the first packet is counted twice."""
    talk = Udp()
    return [(0, talk.send(0, 100)), (100 * MS, talk.send(0, 300)), (200 * MS, talk.send(1, 200))]


def cic_03_push_urgent():
    """PSH and URG in packets after the first, in both directions."""
    talk = Tcp()
    return handshake(talk) + [
        (10 * MS, talk.send(0, "PA", 10)),
        (20 * MS, talk.send(1, "PAU", 20)),
        (30 * MS, talk.send(0, "PAU", 30)),
        (40 * MS, talk.send(1, "AU", 40)),
        (50 * MS, talk.send(0, "A")),
    ]


def cic_04_window():
    """Windows that change with every packet."""
    talk = Tcp()
    frames = []
    steps = [(0, "S", 0, 1000), (1, "SA", 0, 2000), (0, "A", 0, 1100), (1, "PA", 10, 3000), (0, "A", 0, 1200)]
    for number, (side, flags, length, window) in enumerate(steps + [(1, "PA", 10, 4000), (0, "A", 0, 0)]):
        talk.window[side] = window
        frames.append((number * MS, talk.send(side, flags, length)))
    return frames


def cic_05_ratio():
    """Quotients that are no integers: two packets forward, three back, in two subflows."""
    talk = Udp()
    return [
        (0, talk.send(0, 100)),
        (100 * MS, talk.send(1, 200)),
        (1600 * MS, talk.send(1, 200)),
        (1700 * MS, talk.send(0, 101)),
        (1800 * MS, talk.send(1, 201)),
    ]


def cic_06_subflow():
    """A flow without a pause, and one with pauses of exactly, just above and well above a second."""
    short, long = Udp(), Udp(((A, 4001), (B, 5000)))
    frames = [(ms * MS, short.send(0, 30)) for ms in (0, 200, 400)]
    frames += [(ms * MS, long.send(0, 30)) for ms in (50, 550, 1550, 2551, 4050, 4150)]
    return sorted(frames, key=lambda frame: frame[0])


def cic_07_fin():
    """The responder closes first; data, its acknowledgement, FIN and ACK follow."""
    talk = Tcp()
    return handshake(talk) + [
        (10 * MS, talk.send(0, "PA", 100)),
        (20 * MS, talk.send(1, "FA")),
        (21 * MS, talk.send(0, "A")),
        (22 * MS, talk.send(0, "PA", 50)),
        (23 * MS, talk.send(1, "A")),
        (24 * MS, talk.send(0, "FA")),
        (25 * MS, talk.send(1, "A")),
    ]


def cic_08_reset():
    """A reset connection; the next one uses the same ports a second later."""
    first, second = Tcp(), Tcp(isn=(700_000, 900_000))
    return (
        handshake(first)
        + [(10 * MS, first.send(0, "PA", 100)), (20 * MS, first.send(1, "RA"))]
        + handshake(second, SECOND)
    )


def cic_09_active_idle():
    """Active for 7 s (with a pause of exactly 5 s in it), idle for 8 s, active for 3 s until the capture ends."""
    talk = Udp()
    return [(second * SECOND, talk.send(0, 10)) for second in (0, 1, 2, 7, 15, 16, 17, 18)]


def cic_10_single_packet():
    """A scan: one SYN to each of three ports."""
    return [(port * MS, Tcp(((A, 1000), (B, port))).send(0, "S")) for port in (21, 22, 23)]


def cic_11_act_data():
    """The first packet of the flow carries data."""
    talk = Tcp()
    return [
        (0, talk.send(0, "PA", 100)),
        (1 * MS, talk.send(1, "PA", 10)),
        (2 * MS, talk.send(0, "PA", 50)),
        (3 * MS, talk.send(0, "A")),
    ]


def cic_12_ipv6():
    """TCP over IPv6, at times that milliseconds do not resolve."""
    talk = Tcp(((A6, 1000), (B6, 80)))
    micro = MS // 1000
    return handshake(talk, step=250 * micro) + [
        (750 * micro, talk.send(0, "PA", 100)),
        (1250 * micro, talk.send(1, "PA", 200)),
    ]


def cic_13_zero_duration():
    """Two packets at one instant, and a flow of one packet: nothing per second exists."""
    talk = Udp()
    return [(0, talk.send(0, 10)), (0, talk.send(0, 20)), (MS, Udp(((A, 4001), (B, 5000))).send(0, 30))]


def cic_14_segment_size():
    """Payloads of 10 bytes and more behind TCP headers of 32 bytes (two NOPs and timestamps, RFC 7323)."""
    talk = Tcp()
    stamps = b"\x01\x01\x08\x0a" + struct.pack("!II", 1, 0)
    return [(number * MS, talk.send(0, "PA", length, options=stamps)) for number, length in enumerate((200, 10, 30))]


def cic_15_protocols():
    """ESP, OSPF and two SCTP associations between the same two hosts."""
    sctp = lambda sport, dport: struct.pack("!HHII", sport, dport, 1, 0) + payload(16)
    return [
        (0, ethernet(ip4(A, B, ESP, payload(24)))),
        (1 * MS, ethernet(ip4(A, B, 89, payload(44)))),
        (2 * MS, ethernet(ip4(A, B, SCTP, sctp(7000, 38412)))),
        (3 * MS, ethernet(ip4(A, B, SCTP, sctp(7001, 38412)))),
        (4 * MS, ethernet(ip4(B, A, SCTP, sctp(38412, 7000)))),
        (5 * MS, ethernet(ip4(B, A, ESP, payload(32)))),
    ]


def cic_16_memory():
    """A flow of 100 packets, 50 with 10 and 50 with 30 bytes: golden.rs replays it until a list would show."""
    talk = Udp()
    return [(number * MS, talk.send(0, 30 if number % 2 else 10)) for number in range(100)]


def cic_python_port():
    """Recorded in 1995, with FINs, three subflows and a pause: what the Python port gets wrong beyond the above."""
    talk = Tcp()
    return handshake(talk) + [
        (10 * MS, talk.send(0, "PA", 120)),
        (1510 * MS, talk.send(1, "PA", 60)),
        (1511 * MS, talk.send(0, "A")),
        (8000 * MS, talk.send(0, "FA")),
        (8001 * MS, talk.send(1, "FA")),
        (8002 * MS, talk.send(0, "A")),
    ]


cic_python_port.epoch = 800_000_000

CAPTURES = [
    cic_01_bulk,
    cic_02_length,
    cic_03_push_urgent,
    cic_04_window,
    cic_05_ratio,
    cic_06_subflow,
    cic_07_fin,
    cic_08_reset,
    cic_09_active_idle,
    cic_10_single_packet,
    cic_11_act_data,
    cic_12_ipv6,
    cic_13_zero_duration,
    cic_14_segment_size,
    cic_15_protocols,
    cic_16_memory,
    cic_python_port,
]
