"""
The benchmarks from the command line: which rows, how thoroughly, and where the results go.

    run.py [--quick] [--out FOLDER] [ROW ...]

After a whole run it writes results.json and the charts beside itself; otherwise only where it is
told. Exit status 1 when a server gave a wrong byte; a bar that is not met is only printed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import chart
import machine
from bench import Bench
from peers import HERE
from rows import ROWS, Row

_QUIET = 0.03
"""What others may use of the processors before figures become doubtful."""

_UNITS = {
    "poemsPerSecond": ("poems/s", "{:,.0f}"),
    "bytesPerSecond": ("MB/s", "{:,.1f}"),
    "cpuMicroseconds": ("CPU µs/poem", "{:,.1f}"),
    "serverBusy": ("server busy", "{:.0%}"),
    "busy": ("clients busy", "{:.0%}"),
    "p50us": ("p50 µs", "{:,.0f}"),
    "p99us": ("p99 µs", "{:,.0f}"),
    "maxus": ("max µs", "{:,.0f}"),
    "milliseconds": ("ms", "{:,.1f}"),
    "residentMiB": ("resident MiB", "{:,.1f}"),
    "kernelMiB": ("kernel MiB", "{:,.1f}"),
    "residentPerHeld": ("resident B/held", "{:,.0f}"),
    "kernelPerHeld": ("kernel B/held", "{:,.0f}"),
}


def printRow(row: Row) -> None:
    """
    A table of absolutes, the first server's as ratios beside them, and the bars.
    """
    print(f"\n{row.title}")
    width = max(len(name) for name in row.samples)
    print(" " * width, *(f"{_UNITS[key][0]:>18}" for key in row.figures))
    first = next(iter(row.samples.values()))
    for name, sample in row.samples.items():
        cells = [_cell(key, sample, first, bool(row.bars)) for key in row.figures]
        print(f"{name:<{width}}", *(f"{cell:>18}" for cell in cells))
    for bar in row.bars:
        wanted = f"at least {bar.least}" if bar.least is not None else f"at most {bar.most}"
        verdict = "met" if bar.isMet else "NOT MET"
        asked = f" ({wanted}: {verdict})" if bar.least is not None or bar.most is not None else ""
        print(f"  {bar.claim}: {bar.ratio:.2f}{asked}")


def _cell(key: str, sample: dict[str, float], first: dict[str, float], compares: bool) -> str:
    """
    A figure, and what it is to the first server's.
    """
    if key not in sample:
        return "-"
    figure = sample[key] / 1e6 if key == "bytesPerSecond" else sample[key]
    text = _UNITS[key][1].format(figure)
    if compares and first.get(key) and sample is not first and "%" not in text:
        text += f" ({sample[key] / first[key]:.2f})"
    return text


def main() -> None:
    """
    Measure, print, and write down.
    """
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
        results = {
            "machine": described,
            "rows": {name: asdict(row) for name, row in found.items()},
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
        chart.drawAll(results, folder)


if __name__ == "__main__":
    main()
