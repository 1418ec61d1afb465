"""
The benchmarks from the command line: which rows, how thoroughly, and where the results go.

    run.py [--quick] [--out FOLDER] [ROW ...]

A whole run writes results.json and what L{report} makes of it. Other runs write only to FOLDER. The
exit status is 1 if a server sent a wrong byte; a bar that is not met is only printed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import machine
import report
from bench import Bench
from peers import HERE
from rows import ROWS, Row

_QUIET = 0.03
"""The share of the processors that other programs may use before figures become doubtful."""

_UNITS = {
    "poemsPerSecond": ("poems/s", "{:,.0f}", 1.0),
    "bytesPerSecond": ("MB/s", "{:,.1f}", 1e6),
    "cpuMicroseconds": ("CPU µs/poem", "{:,.1f}", 1.0),
    "serverBusy": ("server busy", "{:.0%}", 1.0),
    "busy": ("clients busy", "{:.0%}", 1.0),
    "p50us": ("p50 µs", "{:,.0f}", 1.0),
    "p99us": ("p99 µs", "{:,.0f}", 1.0),
    "maxus": ("max µs", "{:,.0f}", 1.0),
    "milliseconds": ("ms", "{:,.1f}", 1.0),
    "residentMiB": ("resident MiB", "{:,.1f}", 1.0),
    "kernelMiB": ("kernel MiB", "{:,.1f}", 1.0),
}


def printRow(row: Row) -> None:
    """Print a row's figures and bars."""
    print(f"\n{row.title}")
    width = max(map(len, row.samples))
    print(" " * width, *(f"{_UNITS[key][0]:>12}" for key in row.figures))
    for name, sample in row.samples.items():
        print(f"{name:<{width}}", *(f"{_cell(key, sample):>12}" for key in row.figures))
    for bar in row.bars:
        wanted = f"at least {bar.least}" if bar.least is not None else f"at most {bar.most}"
        isAsked = bar.least is not None or bar.most is not None
        verdict = f" ({wanted}: {'met' if bar.isMet else 'NOT MET'})" if isAsked else ""
        print(f"  {bar.claim}: {bar.ratio:.2f}{verdict}", flush=True)


def _cell(key: str, sample: dict[str, float]) -> str:
    _, form, unit = _UNITS[key]
    return form.format(sample[key] / unit) if key in sample else "-"


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description="Measure fastpoetry against its peers.")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write results")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    options = parser.parse_args()
    if unknown := set(options.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    machine.isolate()
    bench = Bench(seconds=0.5, rounds=1) if options.quick else Bench(seconds=1.5, rounds=5)
    bench.prepare()
    machine.startJournal()
    described = machine.describe()
    print(*(f"{key}: {value}" for key, value in described.items()), sep="\n")
    if (busy := machine.othersBusy()) > _QUIET:
        print(f"WARNING: others use {busy:.0%} of the processors: these figures are not to be kept")
    found: dict[str, Row] = {}
    for name in options.rows or ROWS:
        found[name] = ROWS[name](bench)
        printRow(found[name])
    whole = not options.rows and not options.quick
    if folder := options.out or (HERE if whole else None):
        rows = {name: asdict(row) for name, row in found.items()}
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"machine": described, "rows": rows}, indent=1)
        (folder / "results.json").write_text(text + "\n")
        report.write(folder)


if __name__ == "__main__":
    main()
