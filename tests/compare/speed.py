"""The runs of speed.sh: prints the table. speed.py CPU SENSOR CAPTURE WORK_FOLDER."""

import importlib.metadata
import os
import pathlib
import struct
import sys

import facts

RUNS, SHORT = 3, 20_000
NFSTREAM = """
import sys
from nfstream import NFStreamer
extra = dict(statistical_analysis=True, splt_analysis=16) if sys.argv[2] == "statistics" else {}
print(sum(1 for _ in NFStreamer(source=sys.argv[1], n_dissections=0, n_meters=1, accounting_mode=1, **extra)))
"""


def run(cpu, command):
    """(seconds of processor time, peak MB) of one run on one CPU, the process's children included.

    Not the time on the clock: on a machine that does other things, too, that is theirs as well.
    """
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {cpu})
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        try:
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed: {status}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def head(capture, packets, path):
    """Writes the first packets of a capture as pcap; how many there were."""
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262_144, 1))
        number = 0
        for time_ns, _, frame, wire in facts.frames(capture):
            if number == packets:
                break
            number += 1
            file.write(struct.pack("<IIII", time_ns // 10**9, time_ns % 10**9 // 1000, len(frame), wire) + frame)
    return number


def main():
    cpu, sensor, capture, work = int(sys.argv[1]), sys.argv[2], sys.argv[3], pathlib.Path(sys.argv[4])
    count, short = sum(1 for _ in facts.frames(capture)), work / "short.pcap"
    short_count = head(capture, SHORT, short)
    version = importlib.metadata.version
    output = str(work / "speed.csv")
    nfstream = [sys.executable, "-c", NFSTREAM, capture]
    tools = [
        ("sensor extract, whole contract", count, RUNS, [sensor, "extract", "--force", "-o", output, capture]),
        ("sensor extract --view nfstream", count, RUNS,
         [sensor, "extract", "--force", "--view", "nfstream", "-o", output, capture]),
        (f"nfstream {version('nfstream')}, counters", count, RUNS, [*nfstream, "core"]),
        (f"nfstream {version('nfstream')}, with statistics", count, RUNS, [*nfstream, "statistics"]),
        (f"cicflowmeter {version('cicflowmeter')} (Python)", short_count, 1,
         [str(pathlib.Path(sys.executable).with_name("cicflowmeter")), "-f", str(short), "-c", output]),
    ]  # fmt: skip
    print("| tool | packets | packets in a second of processor time, best (median) | peak memory, MB |\n|---|---:|---:|---:|")
    for name, packets, runs, command in tools:
        taken = sorted(run(cpu, command) for _ in range(runs))
        best, median = packets / taken[0][0], packets / taken[len(taken) // 2][0]
        print(f"| {name} | {packets:,} | {best:,.0f} ({median:,.0f}) | {max(mb for _, mb in taken):,.0f} |", flush=True)


if __name__ == "__main__":
    main()
