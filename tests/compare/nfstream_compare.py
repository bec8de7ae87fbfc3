#!/usr/bin/env python3
"""Compares `sensor extract --view nfstream` with the package nfstream, value by value.

    nfstream_compare.py NFSTREAM.csv SENSOR.csv ENDS.csv REPORT.md [--idle SECONDS]

NFSTREAM.csv: nfstream_flows.py. SENSOR.csv: `sensor extract --view nfstream`. ENDS.csv: `sensor extract`, for the reasons
why flows end. All of the same captures. Flows are matched by capture, endpoints, protocol and VLAN, in the order in
which they start. Every difference gets the first class of CLASSES or VALUES that explains it; exits with 1 if one has none.
"""

import argparse
import collections
import csv
import ipaddress
import os
import sys

import facts

# Class → what it is. The order is that in which they are tried; the facts stand for packets of the flow's two addresses.
CLASSES = {
    "link type": "Captures that one of the two does not read: link types, HDLC with something else in it, and format 2.3 of old "
    "libpcaps, which has the two lengths of a packet exchanged.",
    "IP in IP": "nfstream always follows IP-in-IP; Sensor by setting, else the outer flow counts.",
    "longer than its frame": "The IP header claims more bytes than the frame has: counted by nfstream as it claims, by "
    "Sensor under the cause `truncated_network`.",
    "cut by the capture": "A short snap length: nfstream refuses IPv6 packets that are cut.",
    "no IP by its EtherType": "nfstream reads any frame whose next byte looks like an IP version; Sensor goes by the "
    "EtherType or address family.",
    "lengths that cannot be": "Headers that are longer than what holds them: nfstream counts them, some in a flow with "
    "ports 0; Sensor counts them by cause.",
    "later fragment": "Fragments behind the first: nfstream ignores them; Sensor counts them in the flow of the first.",
    "extension header": "AH and IPv6 extension headers: Sensor goes on to the transport behind them, nfstream not always.",
    "vlan twice": "Two VLAN tags: nfstream keeps the inner id (802.1Q only), Sensor both.",
    "pppoe": "PPPoE: nfstream reads every session frame as IP.",
    "mpls": "MPLS: nfstream reads whatever follows the labels as IP.",
    "ports beyond TCP and UDP": "Ports of SCTP and UDP-Lite: nfstream has none.",
    "clock goes back": "Packets out of order: nfstream moves them up to the latest time of the whole capture; Sensor to the "
    "latest of their flow, and a step back beyond the idle timeout ends all flows.",
    "ICMP": "Echo requests: Sensor tells them apart by identifier; nfstream has one flow for a pair of hosts.",
    "several": "More than one of these at once.",
    "closed": "Sensor ends a TCP flow at RST or when both FINs are acknowledged, and when its ports are used again; "
    "nfstream never.",
    "timeout": "A gap that reaches the timeout only when times are cut to ms, or only when they are not.",
}
VALUES = {
    "milliseconds": "nfstream cuts times to whole ms before it subtracts; each time differs by less than 1 ms, a sample "
    "deviation of two by less than 1.5 ms.",
    "missing": "What does not exist (a direction without packets, a gap of one packet) is missing in Sensor and 0 in "
    "nfstream.",
    "payload": "nfstream knows no payload of protocols beyond TCP, UDP and ICMP (0); in Sensor it is what follows the IP "
    "header.",
    "16 bits": "nfstream keeps sizes in 16 bits.",
}
FLAGS = ("syn", "cwr", "ece", "urg", "ack", "psh", "rst", "fin")
SIDES = ("bidirectional", "src2dst", "dst2src")
COLUMNS = (
    [f"{side}_{name}" for side in SIDES for name in ("first_seen_ms", "last_seen_ms", "duration_ms", "packets", "bytes")]
    + [f"{side}_{kind}_{what}" for side in SIDES for what in ("ps", "piat_ms") for kind in ("min", "mean", "stddev", "max")]
    + [f"{side}_{flag}_packets" for side in SIDES for flag in FLAGS]
    + ["splt_direction", "splt_ps", "splt_piat_ms"]
)


def endpoints(row, names=("src_ip", "src_port", "dst_ip", "dst_port")):
    src, sport, dst, dport = (row[name] for name in names)
    return (str(ipaddress.ip_address(src)), int(sport)), (str(ipaddress.ip_address(dst)), int(dport))


def key(row):
    a, b = endpoints(row)
    return os.path.basename(row["capture"]), min(a, b), max(a, b), int(row["protocol"]), int(row.get("vlan_id") or 0)


def flows(path):
    """Rows by flow key, each list in the order of their start."""
    found = collections.defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            found[key(row)].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: float(row["bidirectional_first_seen_ms"]))
    return found


def ends(path):
    """Reasons why the flows of a key ended, without VLANs."""
    found = collections.defaultdict(set)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            a, b = endpoints(row, ("src", "sport", "dst", "dport"))
            found[os.path.basename(row["capture"]), min(a, b), max(a, b), int(row["protocol"])].add(row["end"])
    return found


def numbers(text):
    return [float(word) if word else None for word in text.replace(",", " ").strip("[]").split()] or [None]


def differences(ours, theirs):
    """(column, class or None) of each value that is not the same."""
    for column in COLUMNS:
        if column not in ours or column not in theirs:
            yield column, None
            continue
        a, b = numbers(ours[column]), numbers(theirs[column])
        if len(a) != len(b):
            yield column, None
        for x, y in zip(a, b):
            if x == y or x is not None and abs(x - y) <= 1e-9 * max(abs(x), abs(y)):
                continue
            if x is None and y == 0:
                yield column, "missing"
            elif x is not None and "_ms" in column and abs(x - y) <= (1.5 if "stddev" in column else 1):
                yield column, "milliseconds"
            elif column == "splt_ps" and y == 0 and int(ours["protocol"]) not in (1, 6, 17, 58):
                yield column, "payload"
            elif x is not None and "_ps" in column and x > 65535:
                yield column, "16 bits"
            else:
                yield column, None


def explain(fact, why, ours, theirs, idle_ms):
    """The class of a difference in a key's flows, from the facts about its addresses and the reasons why flows ended."""
    packets = lambda rows: sum(int(row["bidirectional_packets"]) for row in rows)
    apart = abs(packets(ours) - packets(theirs))
    for name in CLASSES:
        # A class explains no more packets than facts.py found to have its property.
        if fact.get(name, 0) >= max(apart, 1):
            return name
    if sum(fact.get(name, 0) for name in CLASSES) >= max(apart, 1):
        return "several"
    if why & {"fin", "rst", "closed", "reopened"}:
        return "closed"
    starts = sorted(float(row["bidirectional_first_seen_ms"]) for row in ours + theirs)
    lasts = sorted(float(row["bidirectional_last_seen_ms"]) for row in ours + theirs)
    if any(abs(start - last - idle_ms) <= 1 for start in starts for last in lasts):
        return "timeout"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nfstream")
    parser.add_argument("sensor")
    parser.add_argument("ends")
    parser.add_argument("report")
    parser.add_argument("captures", nargs="+")
    parser.add_argument("--idle", type=float, default=120)
    args = parser.parse_args()
    theirs, ours, why = flows(args.nfstream), flows(args.sensor), ends(args.ends)
    oddities = {os.path.basename(path): facts.read(path) for path in args.captures}
    packets = sum(count for _, _, count in oddities.values())

    count, sample = collections.Counter(), {}
    value_count, value_flows = collections.Counter(), collections.Counter()
    compared = same = values = 0
    for number in sorted(ours.keys() | theirs.keys()):
        capture, a, b = number[:3]
        by_pair, whole, _ = oddities[capture]
        fact = by_pair.get((min(a[0], b[0]), max(a[0], b[0])), {}) if "link type" not in whole else whole
        mine, other = ours.get(number, []), theirs.get(number, [])
        reason = lambda: explain(fact, why.get(number[:4], set()), mine, other, args.idle * 1000)
        if len(mine) != len(other):
            name = reason() or "unexplained"
            count[name] += len(mine) + len(other)
            sample.setdefault(name, number)
            continue
        for x, y in zip(mine, other):
            compared += 1
            values += len(COLUMNS)
            found = list(differences(x, y))
            if endpoints(x) != endpoints(y):
                found.append(("source", None))
            odd = [column for column, name in found if name is None]
            if odd:
                name = reason() or "unexplained"
                count[name] += 1
                sample.setdefault(name, (*number, odd[:4], [(x.get(c), y.get(c)) for c in odd[:2]]))
                continue
            same += len(COLUMNS) - len({column for column, _ in found})
            for name in {name for _, name in found}:
                value_flows[name] += 1
            value_count.update(name for _, name in found)
    with open(args.report, "w") as report:
        print(
            f"{len(args.captures)} captures, {packets:,} packets: {sum(map(len, ours.values())):,} flows of Sensor, "
            f"{sum(map(len, theirs.values())):,} of nfstream. {compared:,} pairs of flows were compared in {len(COLUMNS)} "
            f"columns each: of {values:,} values {same:,} are the same; the others are explained here.\n",
            file=report,
        )
        print("| class | flows | values | explanation |\n|---|---:|---:|---|", file=report)
        for name, text in VALUES.items():
            if value_flows[name]:
                print(f"| {name} | {value_flows[name]:,} | {f'{value_count[name]:,}' if value_count[name] else ''} | {text} |", file=report)
        for name, text in CLASSES.items():
            if count[name]:
                print(f"| {name} | {count[name]:,} | | {text} |", file=report)
        print(f"| **unexplained** | {count['unexplained']:,} | | |", file=report)
    for name in list(CLASSES) + ["unexplained"]:
        if name in sample:
            print(f"{name}: {count[name]}, e.g. {sample[name]}", file=sys.stderr)
    return 1 if count["unexplained"] else 0


if __name__ == "__main__":
    sys.exit(main())
