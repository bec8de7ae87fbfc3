# SYNs of made-up sources in 198.19.0.0/16, at a rate; says once a second how many it has sent.
#   flood.py DEVICE SOURCE_MAC DESTINATION_MAC SERVER FIRST_PORT PORTS RATE SECONDS
import random
import socket
import struct
import sys
import time

device, source_mac, mac, server = sys.argv[1:5]
first_port, ports, rate = map(int, sys.argv[5:8])
until = time.monotonic() + float(sys.argv[8])
out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
out.bind((device, 0))
ethernet = bytes.fromhex((mac + source_mac).replace(":", "")) + b"\x08\x00"
target = socket.inet_aton(server)


def total(data):
    return sum(struct.unpack(f">{len(data) // 2}H", data))


def folded(number):
    number = (number & 0xFFFF) + (number >> 16)
    return ~((number & 0xFFFF) + (number >> 16)) & 0xFFFF


ip_head = struct.pack(">BBHHHBBH", 0x45, 0, 40, 0, 0x4000, 60, 6, 0)
ip_sum = total(ip_head) + total(target)
tcp_sum = total(target) + 6 + 20 + 0x5002 + 64240
draw = random.Random(7).getrandbits
begun, sent = time.monotonic(), 0
while time.monotonic() < until:
    due = int((time.monotonic() - begun) * rate) - sent
    for _ in range(min(due, 256)):
        low, port, seq = draw(16), 1024 + draw(15), draw(32)
        to = first_port + draw(16) % ports
        words = 0xC613 + low
        ip = ip_head[:10] + struct.pack(">HHH", folded(ip_sum + words), 0xC613, low) + target
        check = folded(tcp_sum + words + port + to + (seq >> 16) + (seq & 0xFFFF))
        frame = ethernet + ip + struct.pack(">HHIIHHHH", port, to, seq, 0, 0x5002, 64240, check, 0)
        try:
            out.send(frame)
        except OSError:
            time.sleep(0.0005)  # the device's queue is full
        sent += 1
    if due <= 0:
        time.sleep(0.0005)
print(sent, flush=True)
