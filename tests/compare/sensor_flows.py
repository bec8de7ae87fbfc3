"""Flows of captures in Sensor's view nfstream, as CSV, with the capture in front.

    sensor_flows.py SENSOR OUTPUT CAPTURE...
"""

import csv
import io
import subprocess
import sys

sensor, output, captures = sys.argv[1], sys.argv[2], sys.argv[3:]
with open(output, "w", newline="") as file:
    writer = None
    for path in captures:
        # A capture that is cut short gives what was read of it.
        done = subprocess.run([sensor, "extract", "--view", "nfstream", path], capture_output=True, text=True)
        for row in csv.DictReader(io.StringIO(done.stdout)):
            if writer is None:
                writer = csv.DictWriter(file, ["capture", *row])
                writer.writeheader()
            writer.writerow({"capture": path, **row})
