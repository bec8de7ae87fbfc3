#!/usr/bin/env python3
"""Writes a large capture to standard output, for measuring `sensor extract`.

usage: captures.py random [PACKETS [FLOWS]] > FILE   packets of random flows, all of which live to the end
       captures.py scan [PACKETS] > FILE             each packet is a flow of its own, 10 million in 100 s

Times rise by 10 µs from packet to packet; the same arguments give the same file."""

import random
import struct
import sys

ETHERNET = bytes(12) + b"\x08\x00"


def tcp(flow, back, flags, payload):
    a = struct.pack("!I", 0xC6120000 + flow % 0x10000)
    b = struct.pack("!I", 0xC6130000 + flow // 0x10000)
    sport, dport = 1024 + flow % 50000, 443
    ends = b + a + struct.pack("!HH", dport, sport) if back else a + b + struct.pack("!HH", sport, dport)
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + payload, 1, 0, 64, 6, 0) + ends[:8]
    return ETHERNET + ip + ends[8:] + struct.pack("!IIBBHHH", 1, 1, 0x50, flags, 64240, 0, 0) + bytes(payload)


def main():
    kind = sys.argv[1]
    packets = int(sys.argv[2]) if len(sys.argv) > 2 else {"random": 2_000_000, "scan": 10_000_000}[kind]
    flows = int(sys.argv[3]) if len(sys.argv) > 3 else 200_000
    write = sys.stdout.buffer.write
    write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1))
    draw = random.Random(1)
    seen = bytearray(flows)
    pending = []
    for number in range(packets):
        if kind == "scan":
            frame = tcp(number, False, 0x02, 0)
        else:
            flow = draw.randrange(flows)
            count = seen[flow]
            seen[flow] = min(count + 1, 255)
            back = count % 2 == 1
            size = (0, 0, 0, 300, 1400, 0, 120, 900)[count % 8]
            flags = (0x02, 0x12, 0x10)[count] if count < 3 else 0x18 if size else 0x10
            frame = tcp(flow, back, flags, size)
        at = 1_700_000_000_000_000_000 + number * 10_000
        pending.append(struct.pack("<IIII", at // 10**9, at % 10**9, len(frame), len(frame)))
        pending.append(frame)
        if len(pending) >= 4096:
            write(b"".join(pending))
            pending.clear()
    write(b"".join(pending))


main()
