#!/bin/sh
# Makes models/sensor.onnx and its card from nothing: builds the agent and the traffic generator, makes traffic in
# network namespaces (needs root and the tools of `cargo xtask setup`), extracts features, trains.
#
#   models/make.sh [SECONDS]     seconds of traffic per run (default 240), four runs
#
# SENSOR_CAPTURES: folder of public captures (default ../shared/captures); without it only our own traffic is used.
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-240}
work=target/models

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --requirement models/requirements.txt
cargo build --release -p sensor -p sensor-tests

for seed in 1 2 3 4; do
    # A run that was made before is kept: remove its folder for a new one.
    [ -f "$work/traffic-$seed/labels.csv" ] ||
        target/release/sensor-traffic --out "$work/traffic-$seed" --seconds "$seconds" --seed "$seed"
done

# Two runs are trained on, the third sets the threshold, the fourth tests.
"$work/venv/bin/python" models/train.py --sensor target/release/sensor --work "$work" \
    --traffic "$work/traffic-1" "$work/traffic-2" "$work/traffic-3" "$work/traffic-4"
target/release/sensor model check models/sensor.onnx
