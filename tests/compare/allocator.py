"""Processor time of `sensor extract` by several builds of the agent: allocator.py CAPTURE ROUNDS BINARY...

Each round runs every binary once, in turn, on CPU 0, so that what else the machine does falls on all of them; the medians of user
and system time count. The first binary is what the others are compared with. For docs/decisions/0022-static-binary.md:

    cargo build --release -p sensor && cargo xtask dist --arch x86_64 --only archive
    python3 tests/compare/allocator.py big.pcap 7 target/release/sensor target/static/built/x86_64/sensor
"""

import os
import statistics
import sys
import tempfile


def run(command):
    """Seconds of user and of system time, and the peak in MiB, of one run."""
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {0})
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        try:
            os.execv(command[0], command)
        finally:
            os._exit(127)
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed: {status}")
    return usage.ru_utime, usage.ru_stime, usage.ru_maxrss / 1024


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    capture, rounds, binaries = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    runs = {binary: [] for binary in binaries}
    with tempfile.TemporaryDirectory() as folder:
        rows = os.path.join(folder, "rows.csv")
        for number in range(rounds):
            # Another one begins each round: none always runs behind the same neighbour.
            first = number % len(binaries)
            for binary in binaries[first:] + binaries[:first]:
                runs[binary].append(run([binary, "extract", "--force", "-o", rows, capture]))
    print("| binary | user + system, s: median (lowest, highest) | times the first | user | system | peak, MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    base = None
    for binary in binaries:
        total = sorted(user + system for user, system, _ in runs[binary])
        median = statistics.median(total)
        base = base or median
        user, system, _ = (statistics.median(column) for column in zip(*runs[binary]))
        peak = max(peak for _, _, peak in runs[binary])
        print(
            f"| {binary} | {median:.2f} ({total[0]:.2f}, {total[-1]:.2f}) | {median / base:.2f} "
            f"| {user:.2f} | {system:.2f} | {peak:.0f} |"
        )


if __name__ == "__main__":
    main()
