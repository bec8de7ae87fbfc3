#!/usr/bin/env bash
# Rows a second of onnxruntime and of Sensor, in the same run, as a table. About five minutes with the build.
# usage: models/conformance/bench.sh          needs Python 3.11 and models/conformance/requirements.txt:
#        python3 -m venv .venv && .venv/bin/pip install -r models/conformance/requirements.txt
#        PYTHON=.venv/bin/python models/conformance/bench.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --quiet --release -p sensor-tests --bin sensor-model-bench
exec "${PYTHON:-python3}" models/conformance/bench.py \
  --bench "${CARGO_TARGET_DIR:-target}/release/sensor-model-bench" --folder "${CARGO_TARGET_DIR:-target}/model-bench" "$@"
