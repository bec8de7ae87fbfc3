#!/usr/bin/env python3
"""Writes the golden captures (tests/golden/captures/*.pcap), each with one thing in it that others get wrong.

    tests/golden/make.py            write them
    tests/golden/make.py --check    fail if a committed capture is not what this script makes

What each must give stands in tests/golden/expected/NAME.toml, computed by hand from the definitions. Needs nothing
but Python 3. Run by tests/tests/golden.rs.
"""

import argparse
import pathlib
import sys

import agents
import cicflowmeter
import connections
import lengths
import receivers
import surroundings
from frames import pcap

FOLDER = pathlib.Path(__file__).resolve().parent
EPOCH = 1_700_000_000
"""Second at which captures start: 2023-11-14 22:13:20 UTC."""


def captures():
    """Name → bytes of every capture."""
    made = {}
    for module in (cicflowmeter, agents, connections, receivers, surroundings, lengths):
        for function in module.CAPTURES:
            name = function.__name__.replace("_", "-")
            assert name not in made, name
            made[name] = pcap(function(), getattr(function, "epoch", EPOCH))
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a capture differs")
    check = parser.parse_args().check
    made = captures()
    present = {path.stem: path.read_bytes() for path in (FOLDER / "captures").glob("*.pcap")}
    expected = {path.stem for path in (FOLDER / "expected").glob("*.toml")}
    wrong = [f"{name}.pcap differs from what make.py makes" for name in made if present.get(name) != made[name]]
    wrong += [f"{name}.pcap is made by nothing" for name in present.keys() - made.keys()]
    wrong += [f"expected/{name}.toml is missing" for name in made.keys() - expected]
    wrong += [f"expected/{name}.toml belongs to no capture" for name in expected - made.keys()]
    if not check:
        (FOLDER / "captures").mkdir(exist_ok=True)
        for name, data in made.items():
            (FOLDER / "captures" / f"{name}.pcap").write_bytes(data)
        wrong = [line for line in wrong if "differs" not in line]
    for line in sorted(wrong):
        print(line, file=sys.stderr)
    print(f"{len(made)} captures, {sum(map(len, made.values()))} bytes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
