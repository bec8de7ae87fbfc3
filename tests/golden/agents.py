"""One capture for each mistake that eBPF agents make. The one that no capture shows, updates lost between two CPUs, is
held by tests/programs/threads.rs."""

import struct

from frames import (
    A, A6, AH, B, B6, C, DESTINATION, ESP, FRAGMENT, HOP_BY_HOP, MS, ROUTING, SECOND, TCP, UDP,
    Tcp, Udp, ethernet, handshake, ip4, ip6, payload, tcp, udp,
)  # fmt: skip


def ebpf_ipv4_options():
    """TCP behind an IPv4 header of 32 bytes, whose options would read as ports 257 and 257."""
    talk = Tcp()
    nops = b"\x01" * 12
    return [
        (0, talk.send(0, "S")),
        (1 * MS, talk.send(1, "SA")),
        (2 * MS, ethernet(ip4(A, B, TCP, tcp(1000, 80, "PA", 100_001, 500_001, data=payload(100)), options=nops))),
    ]


def ebpf_fragments():
    """A datagram of 100 bytes in two fragments and its answer; then two later fragments that belong to nothing that is
    known: another identification, and the same one after 31 s. Their data would read as ports 22 and 80."""
    datagram = udp(4000, 5000, payload(48) + struct.pack("!HH", 22, 80) + payload(48))
    more = 0x2000
    later = lambda ident: ethernet(ip4(A, B, UDP, datagram[56:], ident=ident, fragment=7))
    return [
        (0, ethernet(ip4(A, B, UDP, datagram[:56], ident=77, fragment=more))),
        (1 * MS, later(77)),
        (2 * MS, Udp().send(1, 10)),
        (3 * MS, later(78)),
        (31 * SECOND, later(77)),
    ]


def ebpf_fragments_ipv6():
    """The same over IPv6, and a datagram with a fragment header that is whole (an atomic fragment, RFC 6946)."""
    datagram = udp(4000, 5000, payload(100))
    header = lambda offset, more, ident: (FRAGMENT, struct.pack("!BHI", 0, offset << 3 | more, ident))
    return [
        (0, ethernet(ip6(A6, B6, UDP, datagram[:56], [header(0, 1, 77)]))),
        (1 * MS, ethernet(ip6(A6, B6, UDP, datagram[56:], [header(7, 0, 77)]))),
        (2 * MS, ethernet(ip6(B6, A6, UDP, udp(5000, 4000, payload(10)), [header(0, 0, 5)]))),
        (3 * MS, ethernet(ip6(A6, B6, UDP, datagram[56:], [header(7, 0, 78)]))),
    ]


def ebpf_extensions():
    """IPv6 extension headers: hop-by-hop, routing and destination options before TCP; AH, whose length counts in words
    of four bytes, before UDP; ESP, behind which nothing can be read although it looks like TCP."""
    options = lambda units: bytes([units - 1]) + b"\x01" + bytes([8 * units - 4]) + bytes(8 * units - 4)
    chain = [(HOP_BY_HOP, options(1)), (ROUTING, b"\0\xfd\0" + bytes(4)), (DESTINATION, options(2))]
    # 24 bytes: next header, length (24 / 4 - 2), reserved, SPI, sequence number, 12 bytes of check value.
    ah = [(AH, struct.pack("!BHII", 4, 0, 256, 1) + bytes(12))]
    segment = tcp(1000, 80, "S", 100_000)
    return [
        (0, ethernet(ip6(A6, B6, TCP, segment, chain))),
        (1 * MS, ethernet(ip6(A6, B6, UDP, udp(4000, 5000, payload(30)), ah))),
        (2 * MS, ethernet(ip6(A6, B6, ESP, struct.pack("!II", 256, 1) + segment))),
        (3 * MS, ethernet(ip4(A, B, AH, bytes([UDP]) + ah[0][1] + udp(4000, 5000, payload(30))))),
    ]


def ebpf_vlan():
    """One 5-tuple without a tag, in VLAN 100 (priority 5), and in VLAN 100 inside VLAN 25: three flows."""
    plain, tagged, double = Udp(), Udp(vlans=[5 << 13 | 100]), Udp(vlans=[25, 100])
    return [
        (0, plain.send(0, 10)),
        (1 * MS, tagged.send(0, 20)),
        (2 * MS, double.send(0, 30)),
        (3 * MS, tagged.send(1, 21)),
        (4 * MS, double.send(1, 31)),
        (5 * MS, double.send(0, 32)),
    ]


def ebpf_flags():
    """Several flags in each packet: a handshake with ECN, urgent data, a FIN with data."""
    talk = Tcp()
    return [
        (0, talk.send(0, "SEC")),
        (1 * MS, talk.send(1, "SAE")),
        (2 * MS, talk.send(0, "A")),
        (3 * MS, talk.send(0, "PUA", 10)),
        (4 * MS, talk.send(0, "FPA", 20)),
        (5 * MS, talk.send(1, "A")),
    ]


def ebpf_one_address():
    """Both ends on one address: a connection, and a socket that talks to itself."""
    talk = Tcp(((A, 1000), (A, 80)))
    itself = Udp(((A, 5000), (A, 5000)))
    return handshake(talk) + [
        (10 * MS, talk.send(0, "PA", 10)),
        (11 * MS, talk.send(1, "PA", 20)),
        (12 * MS, talk.send(1, "PA", 30)),
        (20 * MS, itself.send(0, 5)),
        (21 * MS, itself.send(1, 5)),
    ]


def ebpf_gso_off():
    """350 bytes as four segments on the wire."""
    talk = Tcp()
    opening = handshake(talk)
    sent = [(10 * MS, talk.send(0, flags, length)) for flags, length in (("A", 100),) * 3 + (("PA", 50),)]
    return opening + sent + [(20 * MS, talk.send(1, "A"))]


def ebpf_gso_on():
    """The same 350 bytes as the one super-packet that a hook sees under segmentation offload. A capture does not say
    how many segments it stands for; golden.rs gives the figures of the kernel beside it."""
    talk = Tcp()
    return handshake(talk) + [(10 * MS, talk.send(0, "PA", 350)), (20 * MS, talk.send(1, "A"))]


CAPTURES = [
    ebpf_ipv4_options,
    ebpf_fragments,
    ebpf_fragments_ipv6,
    ebpf_extensions,
    ebpf_vlan,
    ebpf_flags,
    ebpf_one_address,
    ebpf_gso_off,
    ebpf_gso_on,
]
