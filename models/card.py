"""The model card: what a user must know before trusting the model, with the numbers of this training run."""

import numpy as np

import inputs
from dataset import LABELS, MIN_PACKETS, PARTS

TEXT = """# Model card: sensor.onnx

Written by `models/train.py`; do not edit. {size:,} bytes, SHA-256 `{digest}`.

A small network ({layers}) that says of a flow, while it lives, whether it is {labels}. It sees one flow at a time
and {count} of its features (`models/inputs.py`): sizes, order, flags, how the connection opened and closed, and pauses
of a second or more. It does not see ports, addresses, TTL, TCP windows, round-trip times or rates.

## Data

{data}

A capture is in one part as a whole. The network learned from *train*; the threshold was set on *calibrate*; the tables
below are of *test*, which neither was fitted to. `sensor-traffic` makes real clients and real attack tools talk to real servers
in network namespaces, each run with another seed; its parts share the servers and the tools, so the public captures are
the harder test. `models/captures.csv` lists those, their labels, and what was left out.{note}

## Threshold

A flow is reported from the score {threshold:.6f} on: the smallest value that at most one in 1,000 benign flows of
*calibrate* reaches, and no smaller than 0.9.

## Test

Benign flows: {benign:,}; reported: {false} ({per_thousand:.2f} per 1,000; 95 % upper bound {bound:.2f} per 1,000).

| label | flows | reported | share | of those named right |
|---|---|---|---|---|
{by_label}

{by_origin}

A flow counts as reported if any look at it reaches the threshold. Looks are taken at {snapshots} packets and at the
end; this is each look alone (reported / flows that reached it):

| packets | {header} |
|---|{rule}
{by_snapshot}

By capture:

| capture | label | flows | reported |
|---|---|---|---|
{by_capture}

The same on *calibrate*: {calibrate}; on *train*: {train}.

## Limits

* One flow at a time: a probe of one closed port is what a client does whose service is gone, and a request of an HTTP
  flood is a request. Where one flow cannot tell, the score stays below the threshold; counts over a source or a
  destination are needed there. Flows below {minimum} packets are not judged at all: most
  probes of a scan and most packets of a flood from made-up addresses are such flows. The table counts the others.
* The name of an attack is less sure than that it is one: the HTTP requests of a scanner's scripts and of a password
  guesser are the same flows, and are told apart by chance.
* At 50 flows a second, {per_thousand:.2f} false reports per 1,000 benign flows are {per_hour:,.0f} an hour (95 % upper bound
  {bound_per_hour:,.0f}), and {benign:,} flows could show nothing below {rule_of_three:.2f} per 1,000 (3 / n). This is too many to
  drop on: run in mode `observe` on your own traffic first, and read `sensor_would_verdicts_total` before you enforce.
* The attacks are those of common tools (nmap, hping3, slowhttptest, hydra and an HTTP load generator) and of few public
  captures. Whoever shapes traffic like a browser's is not found.
* Benign traffic is HTTP, TLS, SSH, DNS, echo and bulk streams of our own, and short public captures of applications.
  Long-lived, rare and industrial protocols are thin. Speed tests, backups and monitoring probes were not checked.

## Reproduce

`models/make.sh` (see `models/README.md`). The training is seeded and single-threaded: the same exports give the same
file. The exports differ from run to run, because real programs made the traffic. onnxruntime agrees with the float64
reference on all rows within {difference:.0e}; `sensor model check models/sensor.onnx` shows that tract does too.
"""


def counts(rows, part):
    of_part = rows.part == part
    cells = [part, str(len(np.unique(rows.capture[of_part])))]
    for number in range(len(LABELS)):
        of_label = of_part & (rows.label == number)
        cells.append(f"{len(np.unique(rows.flow[of_label])):,} ({of_label.sum():,})")
    return "| " + " | ".join(cells) + " |"


def share(part, whole):
    return "–" if whole == 0 else f"{100 * part / whole:.1f} %"


def line(report):
    found = ", ".join(f"{name} {share(item['found'], item['flows'])}" for name, item in report["labels"].items())
    return f"{report['false']} of {report['benign']:,} benign flows reported; {found}"


def by_origin(report):
    """Benign flows of our own runs and of public captures apart: one number for both hides which is which."""
    sums = {True: [0, 0], False: [0, 0]}
    for name, label, flows, found in report["captures"]:
        if label == "benign":
            own = sums[name.startswith("traffic-")]
            own[0], own[1] = own[0] + flows, own[1] + found
    (own, own_found), (public, public_found) = sums[True], sums[False]
    return f"Benign flows reported: {own_found} of {own:,} in our own run, {public_found} of {public:,} in public captures."


def by_capture(report):
    """Attacks one by one; benign flows of public captures only where one was reported."""
    lines, quiet, quiet_flows = [], 0, 0
    for name, label, flows, found in report["captures"]:
        if label == "benign" and found == 0:
            quiet, quiet_flows = quiet + 1, quiet_flows + flows
        else:
            lines.append(f"| {name} | {label} | {flows:,} | {found:,} |")
    return "\n".join([*lines, f"| {quiet} others | benign | {quiet_flows:,} | 0 |"])


def write(rows, reports, threshold, digest, size, difference, layers, note):
    test = reports["test"]
    table = ["| part | captures | " + " | ".join(f"{name}: flows (rows)" for name in LABELS) + " |", "|---" * (2 + len(LABELS)) + "|"]
    labels = [
        f"| {name} | {item['flows']:,} | {item['found']:,} | {share(item['found'], item['flows'])} | {share(item['named'] * 1000, 1000) if item['found'] else '–'} |"
        for name, item in test["labels"].items()
    ]
    looks = [
        f"| {packets} | " + " | ".join(f"{found:,} / {flows:,}" if flows else "–" for flows, found in cells) + " |"
        for packets, cells in test["snapshots"]
    ]
    benign = max(test["benign"], 1)
    return TEXT.format(
        size=size,
        note=f" {note}" if note else "",
        digest=digest,
        layers="-".join(map(str, layers)),
        labels=", ".join(LABELS[:-1]) + " or " + LABELS[-1],
        count=len(inputs.NAMES),
        data="\n".join(table + [counts(rows, part) for part in PARTS]),
        threshold=threshold,
        benign=test["benign"],
        false=test["false"],
        per_thousand=1000 * test["false"] / benign,
        bound=1000 * test["bound"],
        by_label="\n".join(labels),
        by_origin=by_origin(test),
        snapshots=", ".join(str(packets) for packets, _ in test["snapshots"]),
        header=" | ".join(LABELS),
        rule="---|" * len(LABELS),
        by_snapshot="\n".join(looks),
        by_capture=by_capture(test),
        calibrate=line(reports["calibrate"]),
        train=line(reports["train"]),
        minimum=MIN_PACKETS,
        rule_of_three=3000 / benign,
        per_hour=50 * 3600 * test["false"] / benign,
        bound_per_hour=50 * 3600 * test["bound"],
        difference=difference,
    )
