#!/usr/bin/env bash
# Compares `sensor extract` with nfstream and tshark on a folder of captures, and writes the tables into docs/comparison.md.
#
#     tests/compare/run.sh [FOLDER]       default: $SENSOR_CAPTURES/ndpi, else ../shared/captures/ndpi beside the checkout
#
# Needs python3-venv, the network (once, for nfstream) and tshark (Debian's package; as root it is installed). Everything
# else is below target/compare. Fails if a difference has no explanation.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-${SENSOR_CAPTURES:-../shared/captures}/ndpi}
work=target/compare
mkdir -p "$work"
if ! command -v tshark >/dev/null; then
    [ "$(id -u)" = 0 ] || { echo "tshark is missing: apt-get install tshark" >&2; exit 1; }
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends tshark
fi
if [ ! -x "$work/venv/bin/python" ]; then
    python3 -m venv "$work/venv"
fi
"$work/venv/bin/pip" install --quiet --requirement tests/compare/requirements.txt
cargo build --quiet --release -p sensor --bin sensor
sensor=target/release/sensor

# Captures: what is no link to another file, which some checkouts write as text.
mapfile -t captures < <(find "$folder" -maxdepth 1 -type f -name '*.*cap*' -size +200c | sort)
echo "${#captures[@]} captures in $folder"
rm -f "$work"/*.csv
python3 tests/compare/sensor_flows.py "$sensor" "$work/view.csv" "${captures[@]}"
"$sensor" extract -o "$work/sensor.csv" "${captures[@]}" 2>"$work/sensor.log" || true
tail -n 1 "$work/sensor.log"
"$work/venv/bin/python" tests/compare/nfstream_flows.py "$work/nfstream.csv" "${captures[@]}" 2>"$work/nfstream.log"

status=0
python3 tests/compare/nfstream_compare.py "$work/nfstream.csv" "$work/view.csv" "$work/sensor.csv" "$work/nfstream.md" \
    "${captures[@]}" || status=1
python3 tests/compare/tshark_compare.py "$work/sensor.csv" "$work/tshark.md" "${captures[@]}" || status=1
python3 tests/compare/write.py nfstream "$work/nfstream.md" "$("$work/venv/bin/pip" list 2>/dev/null | awk '/^nfstream/ { print "nfstream " $2 }')"
python3 tests/compare/write.py tshark "$work/tshark.md" "$(tshark --version 2>/dev/null | head -n 1)"
exit $status
