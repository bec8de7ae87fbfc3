#!/usr/bin/env python3
"""Compares packet counts per conversation and direction: `tshark -z conv,…` and `sensor extract`.

    tshark_compare.py SENSOR.csv REPORT.md CAPTURE...

SENSOR.csv: `sensor extract` of the same captures. A conversation is two endpoints of one capture, whatever ended flows or
VLANs it had. Every difference gets the first class of CLASSES that explains it; exits with 1 if one has none.
"""

import collections
import concurrent.futures
import csv
import ipaddress
import os
import re
import subprocess
import sys

import facts

TABLES = {"tcp": 6, "udp": 17, "sctp": 132, "ip": None, "ipv6": None}
TITLES = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp", "IPv4": "ip", "IPv6": "ipv6"}
ROW = re.compile(r"^(\S+)\s+<->\s+(\S+)\s+(\d+) \S+(?: \S+)?\s+(\d+) \S+(?: \S+)?\s+(\d+) ")
CLASSES = {
    "link type": "Link types that Sensor does not read, and format 2.3 of old libpcaps.",
    "IP in IP": "tshark counts outer and inner packets; Sensor the inner by setting, else the outer.",
    "later fragment": "Fragments behind the first: without reassembly tshark knows no ports for them; Sensor counts them in their "
    "flow, or by cause where the first is missing.",
    "longer than its frame": "The IP header claims more bytes than the frame has: `truncated_network` in Sensor.",
    "cut by the capture": "A short snap length: headers that one of the two could not read.",
    "lengths that cannot be": "Impossible header lengths: counted by cause in Sensor.",
    "no IP by its EtherType": "IP behind something else than Ethernet, VLAN tags, PPPoE and MPLS.",
    "vlan twice": "More VLAN tags than two.",
    "pppoe": "PPPoE that is no session, or whose protocol is not IP.",
    "mpls": "MPLS with something else than IP behind it.",
    "extension header": "Extension headers that one of the two does not follow.",
    "other EtherType": "Link headers that Sensor does not read (FabricPath, 802.1ah and others).",
    "tunnel": "Addresses of inner packets (GTP-U, GRE, CAPWAP, Teredo and others): tshark counts them too, Sensor by "
    "setting.",
}


def endpoint(text, ports):
    if not ports:
        return str(ipaddress.ip_address(text))
    address, _, port = text.rpartition(":")
    return str(ipaddress.ip_address(address)), int(port)


def tshark(path):
    """(table, low, high) → packets from low, packets from high."""
    command = ["tshark", "-n", "-q", "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-r", path]
    for table in TABLES:
        command += ["-z", f"conv,{table}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)
    found, table = collections.Counter(), None
    for line in done.stdout.splitlines():
        if line.endswith(" Conversations"):
            table = TITLES.get(line.split()[0])
        row = ROW.match(line)
        if row and table:
            a, b = (endpoint(row[side], TABLES[table]) for side in (1, 2))
            back, forth = int(row[3]), int(row[4])
            found[table, min(a, b), max(a, b), a <= b] += forth
            if a != b:
                found[table, min(a, b), max(a, b), b <= a] += back
            else:
                found[table, a, b, True] += back
    return found


def sensor(path):
    """Capture → the same."""
    found = collections.defaultdict(collections.Counter)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            counts = found[os.path.basename(row["capture"])]
            hosts = [str(ipaddress.ip_address(row[name])) for name in ("src", "dst")]
            ends = [(hosts[0], int(row["sport"])), (hosts[1], int(row["dport"]))]
            table = "ipv6" if ":" in hosts[0] else "ip"
            pairs = [(table, *hosts)]
            pairs += [(name, *ends) for name, number in TABLES.items() if number == int(row["protocol"])]
            for name, a, b in pairs:
                counts[name, min(a, b), max(a, b), a <= b] += int(row["fwd_packets"])
                counts[name, min(a, b), max(a, b), b <= a] += int(row["bwd_packets"])
    return found


def main():
    rows, report, captures = sys.argv[1], sys.argv[2], sys.argv[3:]
    ours = sensor(rows)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        theirs = dict(zip(captures, pool.map(tshark, captures)))
    count, sample, compared, same = collections.Counter(), {}, collections.Counter(), collections.Counter()
    for path in captures:
        capture = os.path.basename(path)
        by_pair, whole, _ = facts.read(path)
        mine, other = ours.get(capture, {}), theirs[path]
        for number in sorted(mine.keys() | other.keys(), key=str):
            table, a, b, _ = number
            if not mine.get(number) and not other.get(number):
                continue
            compared[table] += 1
            if mine.get(number, 0) == other.get(number, 0):
                same[table] += 1
                continue
            hosts = (a[0], b[0]) if TABLES[table] else (a, b)
            pair = (min(hosts), max(hosts))
            fact = set(by_pair.get(pair, {"tunnel"})) | {"link type", "other EtherType"} & set(whole)
            name = next((name for name in CLASSES if name in fact), "unexplained")
            count[table, name] += 1
            sample.setdefault(name, []).append((capture, *number, mine.get(number, 0), other.get(number, 0)))
    with open(report, "w") as file:
        print("| | " + " | ".join(TITLES) + " | explanation |\n|---|" + "---:|" * len(TITLES) + "---|", file=file)
        line = lambda name, numbers, text: print(
            f"| {name} | " + " | ".join(f"{numbers(table):,}" for table in TABLES) + f" | {text} |", file=file
        )
        line("conversations and directions", lambda table: compared[table], "")
        line("same packet count", lambda table: same[table], "")
        for name, text in list(CLASSES.items()) + [("unexplained", "")]:
            if name in sample or name == "unexplained":
                line(name, lambda table: count[table, name], text)
    for name, found in sample.items():
        print(f"{name}: {len(found)}, e.g. {found[:6 if name != 'unexplained' else 40]}", file=sys.stderr)
    return 1 if "unexplained" in sample else 0


if __name__ == "__main__":
    sys.exit(main())
