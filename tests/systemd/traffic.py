#!/usr/bin/env python3
"""UDP at a steady rate, and what of it arrives.

traffic.py send SOURCE DESTINATION PORT RATE SECONDS   prints how many datagrams were sent, and from which port
traffic.py receive PORT                                counts until SIGTERM, prints {"SOURCE": [datagrams, longest gap in s]}
"""

import json
import signal
import socket
import sys
import time

STEP = 0.005


def send(source, destination, port, rate, seconds):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((source, 0))
    begun, sent = time.monotonic(), 0
    while (now := time.monotonic() - begun) < seconds:
        # What is late is caught up with, but never in a burst that a queue of the kernel would cut.
        for _ in range(min(int(now * rate) - sent, 50)):
            sock.sendto(sent.to_bytes(8, "big"), (destination, port))
            sent += 1
        time.sleep(STEP)
    print(sent, sock.getsockname()[1])


def receive(port):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # SO_RCVBUFFORCE: nothing may be lost behind the programs for want of room.
    sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
    sock.bind(("0.0.0.0", port))
    sock.settimeout(0.1)
    going = True

    def stop(*_):
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    seen = {}
    while True:
        try:
            _, (source, _) = sock.recvfrom(64)
        except TimeoutError:
            # Only when the queue is empty, so that all that has arrived is counted.
            if not going:
                break
            continue
        now = time.monotonic()
        count, gap, last = seen.get(source, (0, 0.0, now))
        seen[source] = (count + 1, max(gap, now - last), now)
    print(json.dumps({source: [count, round(gap, 3)] for source, (count, gap, _) in seen.items()}))


if __name__ == "__main__":
    command, *rest = sys.argv[1:]
    if command == "send":
        send(rest[0], rest[1], int(rest[2]), float(rest[3]), float(rest[4]))
    else:
        receive(int(rest[0]))
