"""Captures to rows: runs `sensor extract`, so that training sees the numbers that serving computes.

A capture belongs to one part (train, calibrate or test) as a whole. `captures.csv` says which public captures are used,
for what, and who the attacker is; the captures of `sensor-traffic` bring their own labels.csv.
"""

import csv
import fnmatch
import gzip
import hashlib
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import inputs

LABELS = ["benign", "scan", "flood", "slow-http", "brute-force"]
PARTS = ["train", "calibrate", "test"]
# A flow is looked at when its packet count first reaches one of these, as the agent does, and when it ends.
SNAPSHOTS = [4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096]
# A SYN and its refusal are two packets, from a scanner and from a client whose service is gone alike: nothing is said of
# flows below this.
MIN_PACKETS = 3
# Rows of one capture and label that are kept (drawn with the seed): a flood of 20,000 equal flows teaches no more.
MAX_ROWS = 12_000


@dataclass
class Rows:
    """Rows and, for each: label, part, capture, flow, packets."""

    values: np.ndarray
    label: np.ndarray
    part: np.ndarray
    capture: np.ndarray
    flow: np.ndarray
    packets: np.ndarray

    def of(self, mask):
        return Rows(*(getattr(self, field)[mask] for field in self.__dataclass_fields__))


def extract(sensor, captures, labels, output):
    """Runs `sensor extract`. A capture that is cut short gives what was read of it, and a warning."""
    output.unlink(missing_ok=True)
    snapshots = ",".join(map(str, SNAPSHOTS))
    command = [sensor, "extract", *captures, "--labels", labels, "--snapshots", snapshots, "-o", output]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr.strip().splitlines()[-1])
    if not output.exists():
        raise SystemExit(f"sensor extract wrote nothing: {done.stderr}")


def part_of(name):
    """The part of a capture that captures.csv leaves open: 60 % train, 20 % calibrate, 20 % test, by its name."""
    draw = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 10
    return "train" if draw < 6 else "calibrate" if draw < 8 else "test"


def public_captures(folder, work, rules_path):
    """The captures that captures.csv names, its rules as a labels file, and the part of each."""
    with open(rules_path, newline="") as file:
        rules = list(csv.DictReader(file))
    used, parts = [], {}
    lines = ["capture,prefix,protocol,label"]
    for path in sorted(folder.glob("*/*")):
        name = f"{path.parent.name}/{path.name}"
        rule = next((rule for rule in rules if fnmatch.fnmatch(name, rule["capture"])), None)
        if rule is None or rule["part"] == "skip":
            continue
        if path.suffix == ".gz":
            plain = work / "plain" / f"{path.parent.name}__{path.stem}"
            plain.parent.mkdir(exist_ok=True)
            with gzip.open(path) as packed, open(plain, "wb") as file:
                shutil.copyfileobj(packed, file)
            path = plain
        used.append(path)
        parts[str(path)] = rule["part"] if rule["part"] in PARTS else part_of(name)
        for rule in rules:
            if fnmatch.fnmatch(name, rule["capture"]) and rule["part"] != "skip":
                lines.append(f"{path.name},{rule['prefix']},{rule['protocol']},{rule['label']}")
    labels = work / "public-labels.csv"
    labels.write_text("\n".join(lines) + "\n")
    return used, labels, parts


def read(path, part, name, rng):
    """Rows of one export. `part` and `name`: functions of the capture's path."""
    with open(path, newline="") as file:
        reader = csv.reader(file)
        header = next(reader)
        at = {column: position for position, column in enumerate(header)}
        picked = [at[column] for column in inputs.NAMES]
        identity = [at[column] for column in ("capture", "src", "sport", "dst", "dport", "protocol", "first_ns")]
        kept, seen = [], set()
        for row in reader:
            label = row[at["label"]]
            packets = int(row[at["packets"]])
            flow = tuple(row[position] for position in identity)
            # A flow that ends where a snapshot was taken has two equal rows.
            if label not in LABELS or packets < MIN_PACKETS or (flow, packets) in seen:
                continue
            seen.add((flow, packets))
            values = np.array([row[position] or "nan" for position in picked], dtype=np.float64).astype(np.float32)
            capture = row[at["capture"]]
            kept.append((values, LABELS.index(label), part(capture), name(capture), hash_of(flow), packets))
    columns = list(zip(*kept)) if kept else [[np.zeros(len(inputs.NAMES), np.float32)][:0]] + [[]] * 5
    rows = Rows(np.array(columns[0], dtype=np.float32).reshape(-1, len(inputs.NAMES)), *(np.array(c) for c in columns[1:]))
    return thin(rows, rng)


def hash_of(flow):
    return hashlib.sha256("|".join(flow).encode()).hexdigest()[:16]


def thin(rows, rng):
    """At most MAX_ROWS a capture and label, whole flows, except for benign flows, which are all kept."""
    keep = np.ones(len(rows.label), dtype=bool)
    for capture in np.unique(rows.capture):
        for label in range(1, len(LABELS)):
            of_both = np.flatnonzero((rows.capture == capture) & (rows.label == label))
            if len(of_both) <= MAX_ROWS:
                continue
            flows = np.unique(rows.flow[of_both])
            chosen = rng.choice(flows, size=max(1, len(flows) * MAX_ROWS // len(of_both)), replace=False)
            keep[of_both] = np.isin(rows.flow[of_both], chosen)
    return rows.of(keep)


def join(parts):
    fields = Rows.__dataclass_fields__
    return Rows(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))
