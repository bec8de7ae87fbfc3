#!/usr/bin/env python3
"""Puts a table into its section of docs/comparison.md: write.py SECTION TABLE.md WHAT_IT_WAS_MADE_WITH."""

import pathlib
import sys

section, table, tools = sys.argv[1:]
page = pathlib.Path(__file__).resolve().parents[2] / "docs/comparison.md"
start, end = f"<!-- {section}: written by tests/compare, do not edit -->\n", f"<!-- end of {section} -->\n"
before, _, rest = page.read_text().partition(start)
_, _, after = rest.partition(end)
page.write_text(f"{before}{start}\nMade with {tools}.\n\n{pathlib.Path(table).read_text()}\n{end}{after}")
