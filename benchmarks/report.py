"""
What is shown of the results: the picture, and the lines of public text that state figures.

    report.py

Draws benchmarks/figures.svg from benchmarks/results.json, and prints those lines of README.md and
docs/scaling.md that state figures and say something else. It measures and decides nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peers import HERE, ROOT

_OURS, _THEIRS = "#d9622b", "#6e8fb3"

_LINES = {
    "README.md": """
| poems/s, 64 readers at a time | {rate[fastpoetry][poemsPerSecond]:,.0f} | \
nginx {rate[nginx][poemsPerSecond]:,.0f}, the tutorial's server \
{rate[tutorial][poemsPerSecond]:,.0f} |
| server CPU a poem | {rate[fastpoetry][cpuMicroseconds]:.1f} µs | \
nginx {rate[nginx][cpuMicroseconds]:.1f} µs, the tutorial's \
{rate[tutorial][cpuMicroseconds]:.1f} µs |
| poems/s where the server is the limit | {card[fastpoetry][poemsPerSecond]:,.0f} | \
nginx {card[nginx][poemsPerSecond]:,.0f}, uvloop {card[uvloop][poemsPerSecond]:,.0f} |
| poems/s for readers 10 ms away | {distance[fastpoetry][poemsPerSecond]:,.0f} | \
nginx {distance[nginx][poemsPerSecond]:,.0f} |
| poems/s beside 10,000 slow readers | {held[beside 10,000][poemsPerSecond]:,.0f} | \
without them {held[fastpoetry][poemsPerSecond]:,.0f} |
| p99 at half of nginx's rate | {latency[fastpoetry][p99us]:,.0f} µs | \
nginx {latency[nginx][p99us]:,.0f} µs |
| a poem of 16 MiB | {sizes[16777216 fastpoetry][MBps]:,.0f} MB/s | \
the loop in C {sizes[16777216 loop][MBps]:,.0f} MB/s |
| proxy, poems/s | {proxy[proxy][poemsPerSecond]:,.0f} | \
nginx `proxy_pass` {proxy[nginx-proxy][poemsPerSecond]:,.0f}, \
systemd-socket-proxyd {proxy[socket-proxyd][poemsPerSecond]:,.0f} |
| cold start, Debian's Twisted | {start[fastpoetry][milliseconds]:.0f} ms | \
the tutorial's {start[tutorial][milliseconds]:.0f} ms, \
`twistd3 --version` {start[twistd --version][milliseconds]:.0f} ms |
| memory of a server that waits | {start[fastpoetry][residentMiB]:.1f} MiB | \
the tutorial's {start[tutorial][residentMiB]:.1f} MiB |
""",
    "docs/scaling.md": """
| one core | {card[fastpoetry][poemsPerSecond]:,.0f} poems of 3 kB a second, all its work counted \
| `run.py card` |
| many cores | {cores[fastpoetry, 2][poemsPerSecond]:,.0f} from two processes, \
{cores[nginx, 2][poemsPerSecond]:,.0f} from nginx's two workers | `run.py cores` |
| the edge | {proxy[proxy][poemsPerSecond]:,.0f} from a copy; the origin itself \
{proxy[fastpoetry][poemsPerSecond]:,.0f}, nginx as a proxy \
{proxy[nginx-proxy][poemsPerSecond]:,.0f} | `run.py proxy` |
""",
}
"""The lines of each file that state figures."""


def write(folder: Path) -> None:
    """
    Draw the picture, and print which lines are to change.

    @param folder: has results.json, of a whole run or of some rows.
    """
    results = json.loads((folder / "results.json").read_text())["rows"]
    rows: dict[str, Any] = {name: row["samples"] for name, row in results.items()}
    for sample in rows.get("sizes", {}).values():
        sample["MBps"] = sample["bytesPerSecond"] / 1e6
    if {"rate", "card", "sizes"} <= rows.keys():
        _draw(rows, folder / "figures.svg")
    for name, lines in _LINES.items():
        has = (ROOT / name).read_text().splitlines()
        for line in lines.strip().splitlines():
            try:
                wanted = line.format_map(rows)
            except KeyError:  # of a row that was not measured
                continue
            if wanted not in has:
                print(f"{name} is to say:\n{wanted}")


def _draw(rows: dict[str, Any], path: Path) -> None:
    """Bars for the comparison, a line for the growth with size."""
    from matplotlib import pyplot, use
    from matplotlib.ticker import EngFormatter

    use("svg")
    pyplot.style.use(HERE / "figures.mplstyle")
    figure, (rates, costs, sizes) = pyplot.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
    for axes, title, key in (
        (rates, "poems a second", "poemsPerSecond"),
        (costs, "CPU a poem, µs", "cpuMicroseconds"),
    ):
        labels, values, colours = [], [], []
        for row, where in (("card", "card"), ("rate", "loopback")):
            for server, sample in reversed(rows[row].items()):
                labels.append(f"{server}, {where}")
                values.append(sample[key])
                colours.append(_OURS if server == "fastpoetry" else _THEIRS)
        bars = axes.barh(labels, values, color=colours)
        form = "{:,.0f}" if key == "poemsPerSecond" else "{:.1f}"
        axes.bar_label(bars, [form.format(value) for value in values], padding=3)
        axes.grid(visible=False)
        axes.set(title=title, xticks=[], xlim=(0, max(values) * 1.25))
    costs.set_yticks([])
    for server, colour in (("loop", _THEIRS), ("fastpoetry", _OURS)):
        found = {
            int(name.split()[0]): sample for name, sample in rows["sizes"].items() if server in name
        }
        points = [sample["bytesPerSecond"] for sample in found.values()]
        label = server if server == "fastpoetry" else "a loop in C"
        sizes.plot(list(found), points, marker="o", color=colour, label=label)
    sizes.set(title="bytes a second, by size of the poem", xscale="log", yscale="log")
    sizes.xaxis.set_major_formatter(EngFormatter("B"))
    sizes.yaxis.set_major_formatter(EngFormatter("B"))
    sizes.minorticks_off()
    sizes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    write(HERE)
