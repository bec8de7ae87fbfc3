"""What is out of the ordinary in a capture, by pair of addresses: what differences between tools are explained with.

A reader of its own (pcap and pcapng) and a dissector that trusts nothing: it neither refuses nor repairs a packet, but says
what is odd about it. Nothing here is Sensor's code or that of a tool compared with.
"""

import collections
import ipaddress
import struct

IP_IN_IP = (4, 41)
EXTENSIONS = (0, 43, 51, 60, 135, 139, 140)


def frames(path):
    """(ns, link type, bytes, length on the wire) of each packet; ends silently where the file is damaged."""
    with open(path, "rb") as file:
        data = file.read()
    magic = data[:4]
    if magic == b"\x0a\x0d\x0d\x0a":
        yield from pcapng(data)
        return
    orders = {
        b"\xd4\xc3\xb2\xa1": ("<", 1000),
        b"\xa1\xb2\xc3\xd4": (">", 1000),
        b"\x4d\x3c\xb2\xa1": ("<", 1),
        b"\xa1\xb2\x3c\x4d": (">", 1),
    }
    if magic not in orders:
        return
    order, unit = orders[magic]
    link = struct.unpack_from(order + "I", data, 20)[0] & 0xFFFF
    at = 24
    while at + 16 <= len(data):
        seconds, fraction, kept, wire = struct.unpack_from(order + "IIII", data, at)
        if at + 16 + kept > len(data) and at + 16 + wire <= len(data):
            # Format 2.3 of old libpcaps, which has the two lengths exchanged.
            kept, wire, link = wire, kept, -1
        if at + 16 + kept > len(data):
            return
        yield seconds * 10**9 + fraction * unit, link, data[at + 16 : at + 16 + kept], wire
        at += 16 + kept


def pcapng(data):
    at, order, interfaces, last = 0, "<", [], 0
    while at + 12 <= len(data):
        kind = struct.unpack_from("<I", data, at)[0]
        if kind == 0x0A0D0D0A:
            order = "<" if data[at + 8 : at + 12] == b"\x4d\x3c\x2b\x1a" else ">"
            interfaces = []
        kind, length = struct.unpack_from(order + "II", data, at)
        if length < 12 or at + length > len(data):
            return
        body = data[at + 8 : at + length - 4]
        if kind == 1:
            link, _, _ = struct.unpack_from(order + "HHI", body)
            units, option = 10**6, 8
            while option + 4 <= len(body):
                code, size = struct.unpack_from(order + "HH", body, option)
                if code == 9 and size == 1:
                    value = body[option + 4]
                    units = 2 ** (value & 0x7F) if value & 0x80 else 10**value
                if code == 0:
                    break
                option += 4 + (size + 3) // 4 * 4
            interfaces.append((link, units))
        elif kind in (2, 6) and len(body) >= 20:
            number = struct.unpack_from(order + ("I" if kind == 6 else "H"), body)[0]
            high, low, kept, wire = struct.unpack_from(order + "IIII", body, 4)
            if number < len(interfaces):
                link, units = interfaces[number]
                last = ((high << 32 | low) * 10**9) // units
                yield last, link, body[20 : 20 + kept], wire
        elif kind == 3 and interfaces:
            wire = struct.unpack_from(order + "I", body)[0]
            yield last, interfaces[0][0], body[4 : 4 + wire], wire
        at += length


def network_layer(link, frame):
    """(offset of what may be IP, facts on the way), or None."""
    facts = set()
    if link == 1:
        if len(frame) < 14:
            return None
        kind, at = struct.unpack_from("!H", frame, 12)[0], 14
        while kind in (0x8100, 0x88A8, 0x9100) and at + 4 <= len(frame):
            facts.add("vlan" if kind == 0x8100 and "vlan" not in facts else "vlan twice")
            kind = struct.unpack_from("!H", frame, at + 2)[0]
            at += 4
        if kind == 0x8864 and at + 8 <= len(frame):
            facts.add("pppoe")
            kind = {0x21: 0x0800, 0x57: 0x86DD}.get(struct.unpack_from("!H", frame, at + 6)[0], 0)
            at += 8
        elif kind in (0x8847, 0x8848):
            facts.add("mpls")
            while at + 4 <= len(frame) and not frame[at + 2] & 1:
                at += 4
            at += 4
            kind = 0x0800
    elif link in (12, 14, 101, 228, 229):
        kind, at = 0x0800, 0
    elif link in (0, 108):
        family = min(struct.unpack("<I", frame[:4])[0], struct.unpack(">I", frame[:4])[0]) if len(frame) >= 4 else 0
        kind, at = 0x0800 if family in (2, 10, 24, 28, 30) else 0, 4
    elif link in (113, 276):
        at = 16 if link == 113 else 20
        if len(frame) < at:
            return None
        kind = struct.unpack_from("!H", frame, 14 if link == 113 else 0)[0]
    else:
        facts.add("link type")
        kind, at = 0x0800, {9: 2 if frame[:1] not in (b"\x0f", b"\x8f") else 4, 104: 4, 50: 4}.get(link, 0)
    if kind not in (0x0800, 0x86DD):
        facts.add("no IP by its EtherType")
        if kind >= 0x600 and kind not in (0x0806, 0x8035, 0x88CC, 0x888E, 0x8863, 0x9000):
            facts.add("other EtherType")
    return at, facts


def packets(found, frame, wire):
    """(source, destination, protocol, facts) of each IP header in a frame, outermost first."""
    at, facts = found
    for _ in range(4):
        if at + 20 > len(frame):
            return
        version, facts = frame[at] >> 4, set(facts)
        if version == 4:
            header, total = (frame[at] & 15) * 4, struct.unpack_from("!H", frame, at + 2)[0]
            fragment, protocol = struct.unpack_from("!H", frame, at + 6)[0], frame[at + 9]
            src, dst = (str(ipaddress.IPv4Address(frame[at + o : at + o + 4])) for o in (12, 16))
            if header < 20 or total < header:
                facts.add("lengths that cannot be")
            if protocol == 51:
                facts.add("extension header")
        elif version == 6:
            if at + 40 > len(frame):
                return
            header, total, protocol = 40, struct.unpack_from("!H", frame, at + 4)[0] + 40, frame[at + 6]
            src, dst = (str(ipaddress.IPv6Address(frame[at + o : at + o + 16])) for o in (8, 24))
            fragment = 0
            while protocol in EXTENSIONS + (44,) and at + header + 8 <= len(frame):
                facts.add("extension header")
                following, size = frame[at + header], frame[at + header + 1]
                if protocol == 44:
                    word = struct.unpack_from("!H", frame, at + header + 2)[0]
                    fragment, size = word >> 3 | (word & 1) << 13, 8
                else:
                    size = (size + 2) * 4 if protocol == 51 else (size + 1) * 8
                protocol, header = following, header + size
        else:
            return
        if fragment & 0x1FFF:
            facts.add("later fragment")
        elif fragment & 0x2000:
            facts.add("first fragment")
        if at + total > wire:
            facts.add("longer than its frame")
        if at + total > len(frame):
            facts.add("cut by the capture")
        rest = total - header
        if not fragment & 0x1FFF:
            transport = at + header
            if protocol == 6:
                offset = (frame[transport + 12] >> 4) * 4 if transport + 13 <= len(frame) else 0
                if rest < 20 or offset < 20 or offset > rest:
                    facts.add("lengths that cannot be")
            elif protocol == 17 and rest < 8 or protocol in (1, 58) and rest < 8:
                facts.add("lengths that cannot be")
        if protocol in (1, 58):
            facts.add("ICMP")
        if protocol in (132, 136):
            facts.add("ports beyond TCP and UDP")
        inner = protocol in IP_IN_IP and not fragment & 0x1FFF
        if inner:
            facts.add("IP in IP")
        yield src, dst, protocol, facts
        if not inner:
            return
        at += header


def read(path):
    """Facts by pair of addresses, and those of the whole capture."""
    by_pair, whole, latest, count = collections.defaultdict(collections.Counter), collections.Counter(), 0, 0
    for time_ns, link, frame, wire in frames(path):
        count += 1
        if link not in (0, 1, 9, 12, 14, 50, 51, 101, 104, 108, 113, 228, 229, 276):
            whole["link type"] += 1
        back = time_ns // 10**6 < latest // 10**6
        latest = max(latest, time_ns)
        found = network_layer(link, frame)
        if found is None:
            continue
        odd = found[1] & {"other EtherType"}
        for src, dst, protocol, facts in packets(found, frame, wire):
            pair = (min(src, dst), max(src, dst))
            odd |= facts
            if back:
                odd.add("clock goes back")
            # Every pair of an outer header is there, odd or not.
            by_pair[pair].update(odd)
        whole.update(odd - {"link type"})
    return by_pair, whole, count
