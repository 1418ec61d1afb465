"""
The picture and the public text that show the results.

    report.py

Draws benchmarks/figures.svg from benchmarks/results.json. Writes the figures of that file and of
benchmarks/booted.json between the marks in README.md, docs/scaling.md and benchmarks/README.md.
It measures nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peers import HERE, ROOT

_OURS, _THEIRS = "#d9622b", "#6e8fb3"

TEXTS = {
    "README.md": [
        """
One run of `make bench` on two virtual processors: the server on one, the clients on the other, a
poem of 3,003 bytes, every byte of it checked ({date}).

| | fastpoetry | beside it |
|---|---|---|
| poems/s, 64 readers at a time | {rate[fastpoetry][poemsPerSecond]:,.0f} | \
nginx {rate[nginx][poemsPerSecond]:,.0f}, the same promise in C \
{rate[promise][poemsPerSecond]:,.0f}, the tutorial's server \
{rate[tutorial][poemsPerSecond]:,.0f} |
| server CPU for a poem | {rate[fastpoetry][cpuMicroseconds]:.1f} µs | \
nginx {rate[nginx][cpuMicroseconds]:.1f} µs, the same promise in C \
{rate[promise][cpuMicroseconds]:.1f} µs, the tutorial's {rate[tutorial][cpuMicroseconds]:.1f} µs |
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
| memory of a waiting server | {start[fastpoetry][residentMiB]:.1f} MiB | \
the tutorial's {start[tutorial][residentMiB]:.1f} MiB |
""",
        """
| on a booted system, with the package | Debian 12 | Debian 13 |
|---|---|---|
| `twistd3 --version` | {bookworm[version]:.0f} ms | {trixie[version]:.0f} ms |
| first reader of a stopped service | {bookworm[first]:.0f} ms | {trixie[first]:.0f} ms |
| longest wait of a newcomer during a restart | {bookworm[restart 0]:.0f} ms | \
{trixie[restart 0]:.0f} ms |
| the same beside 1,000 readers in the middle of a poem | {bookworm[restart 1000]:.0f} ms | \
{trixie[restart 1000]:.0f} ms |
""",
    ],
    "docs/scaling.md": [
        """
| step | carries | measured by |
|---|---|---|
| one core | {card[fastpoetry][poemsPerSecond]:,.0f} poems of 3 kB a second, kernel work included \
| `run.py card` |
| many cores | {cores[fastpoetry, 2][poemsPerSecond]:,.0f} from two processes, \
{cores[nginx, 2][poemsPerSecond]:,.0f} from nginx's two workers | `run.py cores` |
| many machines | a clean stop loses no reader, a kill loses some \
| the tests of haproxy, see below |
| the edge | {proxy[proxy][poemsPerSecond]:,.0f} from a copy; the origin itself \
{proxy[fastpoetry][poemsPerSecond]:,.0f}, nginx as a proxy \
{proxy[nginx-proxy][poemsPerSecond]:,.0f} | `run.py proxy` |
"""
    ],
    "benchmarks/README.md": ["\n{bars}\n"],
}
"""What each file says of the figures, one text for each pair of marks in it."""

_MARKED = re.compile(r"(<!-- figures -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def fill(text: str, texts: Sequence[str], figures: Mapping[str, Any]) -> str:
    """
    Put figures between the marks of a text.

    @param text: has as many pairs of marks as there are texts.
    @param texts: what to put there, as templates.
    @param figures: what the templates name.
    @return: the whole text.
    """
    following = iter(texts)
    return _MARKED.sub(lambda m: m[1] + next(following).format_map(figures) + m[2], text)


def readFigures(folder: Path) -> dict[str, Any]:
    """
    Read what was measured, by the names that the templates use.

    @param folder: has results.json of a whole run, and booted.json.
    @return: for each row its samples, for each release its times, the date, and the table of bars.
    """
    results = json.loads((folder / "results.json").read_text())
    figures: dict[str, Any] = {name: row["samples"] for name, row in results["rows"].items()}
    for sample in figures.get("sizes", {}).values():
        sample["MBps"] = sample["bytesPerSecond"] / 1e6
    return {
        **figures,
        **json.loads((folder / "booted.json").read_text()),
        "date": results["machine"]["date"],
        "bars": tableBars(results["rows"]),
    }


def tableBars(rows: Mapping[str, Any]) -> str:
    """
    Make a table of the bars, and of what was measured against each.

    @param rows: those of results.json.
    @return: a table in Markdown.
    """
    lines = ["| row | ratio | measured | bar | |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        for bar in row["bars"]:
            least, most = bar["least"], bar["most"]
            if least is None and most is None:
                continue
            wanted = f"at least {least}" if most is None else f"at most {most}"
            isMet = bar["ratio"] >= least if most is None else bar["ratio"] <= most
            verdict = "met" if isMet else "**not met**"
            lines.append(
                f"| `{name}` | {bar['claim']} | {bar['ratio']:.2f} | {wanted} | {verdict} |"
            )
    return "\n".join(lines)


def write(folder: Path) -> None:
    """
    Draw the picture; of the results of a whole run, write the texts too.

    @param folder: has results.json. The texts are written if it is the folder of this file.
    """
    rows = json.loads((folder / "results.json").read_text())["rows"]
    if {"rate", "card", "sizes"} <= rows.keys():
        _draw({name: row["samples"] for name, row in rows.items()}, folder / "figures.svg")
    if folder == HERE:
        figures = readFigures(folder)
        for name, texts in TEXTS.items():
            path = ROOT / name
            path.write_text(fill(path.read_text(), texts, figures))


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
