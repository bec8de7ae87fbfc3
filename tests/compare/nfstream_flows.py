"""Flows of captures as the PyPI package nfstream sees them, as CSV.

    nfstream_flows.py OUTPUT CAPTURE...

No dissection, statistics and the first 16 packets, default timeouts. Sizes are those of IP packets (accounting mode 1), but
those of the first packets are payloads (mode 3): what Sensor's view has. Tunnels over UDP are not decoded, as by default
in Sensor.
"""

import csv
import os
import sys

from nfstream import NFStreamer

IDLE_S, ACTIVE_S, FIRST = 120, 1800, 16
IP, PAYLOAD = 1, 3
PER_FLOW = ("id", "expiration_id")


def stream(path, accounting_mode):
    return NFStreamer(
        source=path,
        decode_tunnels=False,
        promiscuous_mode=False,
        idle_timeout=IDLE_S,
        active_timeout=ACTIVE_S,
        accounting_mode=accounting_mode,
        n_dissections=0,
        statistical_analysis=True,
        splt_analysis=FIRST,
        n_meters=1,
    )


def flows(path):
    for flow, again in zip(stream(path, IP), stream(path, PAYLOAD), strict=True):
        flow.splt_ps = again.splt_ps
        row = {"capture": path}
        for key, value in zip(flow.keys(), flow.values()):
            if key not in PER_FLOW:
                row[key] = " ".join(map(str, value)) if isinstance(value, list) else value
        yield row


def main():
    output, captures = sys.argv[1], sys.argv[2:]
    with open(output, "w", newline="") as file:
        writer = None
        for number, path in enumerate(captures):
            if sys.stderr.isatty():
                print(f"\r{number + 1}/{len(captures)} {os.path.basename(path):60.60}", end="", file=sys.stderr)
            try:
                for row in flows(path):
                    if writer is None:
                        writer = csv.DictWriter(file, row.keys())
                        writer.writeheader()
                    writer.writerow(row)
            except (OSError, ValueError, RuntimeError) as error:
                print(f"\n{path}: {error}", file=sys.stderr)



if __name__ == "__main__":
    main()
