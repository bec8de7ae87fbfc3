#!/usr/bin/env bash
# Packets per second of processor time and peak memory of `sensor extract`, nfstream and the Python cicflowmeter, each on one CPU, on the same
# capture in the same run; the table goes into docs/comparison.md.
#
#     tests/compare/speed.sh CAPTURE [CPU]
#
# Run tests/compare/run.sh first: it makes the environment of the Python tools. cicflowmeter gets the first 20,000 packets.
set -euo pipefail
capture=$(realpath "$1") cpu=${2:-0}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=target/compare python=target/compare/venv/bin/python
cargo build --quiet --release -p sensor --bin sensor
"$python" tests/compare/speed.py "$cpu" target/release/sensor "$capture" "$work" >"$work/speed.md"
python3 tests/compare/write.py speed "$work/speed.md" "$(basename "$capture"), CPU $cpu of $(nproc)"
