"""Gives a model the present contract's version and hash, without training: for when the contract has grown.

    python3 models/restamp.py --sensor target/release/sensor models/sensor.onnx

The hash covers only the features that the model names, so it changes only when one of these is redefined; whoever runs this
says that none is (a text may have been made clearer). `sensor model check` then proves the graph on its golden rows. Needs
no package: the new values are as long as the old ones, so they take their places in the file.
"""

import argparse
import json
import re
import subprocess
from pathlib import Path


def listing(sensor):
    """What `sensor features` says: version and features."""
    done = subprocess.run([str(sensor), "features", "--format", "json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def hash_of(document, names):
    """FNV-1a, 64 bits, over name, unit, definition and missing rule of these features, each ended by a zero byte."""
    features = {feature["name"]: feature for feature in document["features"]}
    value = 0xCBF29CE484222325
    for name in names:
        for key in ("name", "unit", "definition", "missing"):
            for byte in features[name][key].encode() + b"\0":
                value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def entry(key, value):
    """A metadata property in the file: field 1 is the key, field 2 the value, each with its length in one byte."""
    key = f"sensor.{key}".encode()
    return b"\x0a" + bytes([len(key)]) + key + b"\x12", value


def replace(data, key, value):
    start, pattern = entry(key, value)
    at = data.index(start) + len(start)
    if data[at] != len(value):
        raise SystemExit(f"sensor.{key} has {data[at]} bytes, not {len(value)}: export the model again")
    return data[: at + 1] + value.encode() + data[at + 1 + len(value) :]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sensor", type=Path, required=True, help="the agent whose contract is stamped")
    arguments = parser.parse_args()
    document = listing(arguments.sensor)
    data = arguments.model.read_bytes()
    found = re.search(rb"sensor\.features\x12[\x00-\xff]{1,3}?(\[\"[a-z0-9_\",]*\])", data)
    if found is None:
        raise SystemExit("the file has no sensor.features")
    data = replace(data, "contract_version", str(document["version"]))
    data = replace(data, "contract_hash", hash_of(document, json.loads(found[1])))
    arguments.model.write_bytes(data)


if __name__ == "__main__":
    main()
