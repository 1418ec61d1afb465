"""
The results as pictures: bars for the comparison, lines for the growth.

Writes plain SVG by hand. Colours stand on light and on dark paper alike. It computes nothing.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

_INK, _OURS, _THEIRS = "#7d8590", "#d9622b", "#6e8fb3"
_STYLE = (
    f"text{{font:12px system-ui,sans-serif;fill:{_INK}}}"
    ".head{font-weight:600}.end{text-anchor:end}.mid{text-anchor:middle}"
)

_TITLES = {
    "fastpoetry": "fastpoetry",
    "nginx": "nginx stream return",
    "loop": "C loop",
    "uvloop": "uvloop protocol",
    "asyncio": "asyncio protocol",
    "silent": "tutorial, silent",
    "tutorial": "tutorial",
}

_MEASURES = (("poems/s", "poemsPerSecond"), ("server CPU, µs a poem", "cpuMicroseconds"))

Point = tuple[float, float]


def drawAll(results: dict[str, Any], folder: Path) -> None:
    """
    Write bars.svg and growth.svg, as far as their rows were measured.

    @param results: as run.py writes them to results.json.
    """
    rows = results["rows"]
    if "rate" in rows:
        (folder / "bars.svg").write_text(drawBars(rows["rate"]["title"], rows["rate"]["samples"]))
    if {"held-curve", "size-curve", "journal-curve"} <= set(rows):
        (folder / "growth.svg").write_text(drawGrowth(rows))


def drawBars(title: str, samples: dict[str, dict[str, float]]) -> str:
    """
    Two columns of bars: poems a second, and what one costs.
    """
    height, left, width, gap = 24, 140, 210, 70
    parts = [_text(0, 14, title, "head")]
    for column, (label, key) in enumerate(_MEASURES):
        x = left + column * (width + gap)
        parts.append(_text(x, 38, label))
        most = max(sample[key] for sample in samples.values())
        for place, (name, sample) in enumerate(samples.items()):
            y = 48 + place * height
            length = sample[key] / most * width
            parts.append(_bar(x, y, length, height - 8, name == "fastpoetry"))
            parts.append(
                _text(
                    x + length + 6,
                    y + 12,
                    f"{sample[key]:,.0f}" if sample[key] > 1000 else f"{sample[key]:.1f}",
                )
            )
            if not column:
                parts.append(_text(left - 10, y + 12, _TITLES[name], "end"))
    return _svg(left + 2 * (width + gap), 52 + len(samples) * height, parts)


def drawGrowth(rows: dict[str, Any]) -> str:
    """
    Poems a second above, what one costs below, against readers held, size and records.
    """
    held = {"fastpoetry": _against(rows["held-curve"]["samples"], "")}
    size = {
        name: _against(rows["size-curve"]["samples"], f" {name}") for name in ("fastpoetry", "loop")
    }
    journal = {"fastpoetry": _against(rows["journal-curve"]["samples"], "")}
    panels = (("readers held", held), ("bytes of the poem", size), ("records a second", journal))
    width, height = 290, 170
    parts = [_key(2 * width - 60, 34)]
    for column, (label, curves) in enumerate(panels):
        parts.append(_text(column * width + 50, 14, f"against {label}", "head"))
        for line, (name, key) in enumerate(_MEASURES):
            drawn = {
                server: [(x, sample[key]) for x, sample in curve]
                for server, curve in curves.items()
            }
            plot = _plot(name, drawn, width - 80, height - 62)
            at = f"translate({column * width + 50},{line * height + 48})"
            parts.append(f'<g transform="{at}">{plot}</g>')
    return _svg(len(panels) * width, 2 * height + 20, parts)


def _key(x: float, y: float) -> str:
    """
    Whose line is whose.
    """
    both = _text(x, y, "fastpoetry", "end"), _text(x + 8, y, "C loop")
    return "".join(
        words.replace("<text", f'<text style="fill:{colour}"')
        for words, colour in zip(both, (_OURS, _THEIRS), strict=False)
    )


def _against(
    samples: dict[str, dict[str, float]], ending: str
) -> list[tuple[float, dict[str, float]]]:
    """
    Samples whose names are a number and an ending, by that number.
    """
    return [
        (float(name.removesuffix(ending)), sample)
        for name, sample in samples.items()
        if name.endswith(ending) and name.removesuffix(ending).isdigit()
    ]


def _plot(title: str, curves: Mapping[str, Sequence[Point]], width: int, height: int) -> str:
    """
    Lines over a logarithmic x; y is logarithmic too where it spans more than a factor of 20.
    """
    xs = sorted({x for curve in curves.values() for x, _ in curve})
    ys = [y for curve in curves.values() for _, y in curve]
    logarithmic = max(ys) > 20 * min(ys)
    bottom, top = (min(ys) / 1.5, max(ys) * 1.5) if logarithmic else (0.0, max(ys) * 1.15)
    across = _scale(_stretch(xs[0]), _stretch(xs[-1]), 0, width)
    bend: Callable[[float], float] = math.log10 if logarithmic else float
    up = _scale(bend(bottom), bend(top), height, 0)
    parts = [_text(0, -10, title)]
    for y in _ticks(bottom, top, logarithmic):
        at = up(bend(y))
        parts.append(f'<path d="M0 {at:.1f}H{width}" stroke="{_INK}" stroke-opacity=".25"/>')
        parts.append(_text(-6, at + 4, _short(y), "end"))
    room = width + 40.0
    for x in reversed(xs):
        if room - across(_stretch(x)) >= 36:
            room = across(_stretch(x))
            parts.append(_text(room, height + 18, _short(x), "mid"))
    for name, curve in curves.items():
        points = [(across(_stretch(x)), up(bend(y))) for x, y in curve]
        parts.append(_line(points, name == "fastpoetry"))
    return "".join(parts)


def _stretch(x: float) -> float:
    """
    Logarithmic, with a place for nought beside one.
    """
    return math.log10(x) if x else -1.0


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """
    Where a value stands on an axis.
    """
    span = high - low or 1.0
    return lambda value: start + (value - low) / span * (end - start)


def _ticks(bottom: float, top: float, logarithmic: bool) -> list[float]:
    """
    A few round values of an axis.
    """
    if logarithmic:
        powers = range(math.ceil(math.log10(bottom)), math.floor(math.log10(top)) + 1)
        return [10.0**power for power in powers]
    step = 10.0 ** math.floor(math.log10(top))
    step = next(part for part in (step / 5, step / 2, step, step * 2) if top / part <= 5)
    return [step * place for place in range(int(top / step) + 1)]


def _short(value: float) -> str:
    """
    A number as an axis has room for it.
    """
    for unit, letter in ((1 << 20, "Mi"), (1_000_000, "M"), (1_000, "k")):
        if value >= unit and value % unit == 0:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    """
    Words at a place.
    """
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'


def _bar(x: float, y: float, width: float, height: float, ours: bool) -> str:
    """
    One bar.
    """
    colour = _OURS if ours else _THEIRS
    return f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" rx="2" fill="{colour}"/>'


def _line(points: Sequence[Point], ours: bool) -> str:
    """
    One curve with its points.
    """
    colour = _OURS if ours else _THEIRS
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in points)
    line = f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    return f'{line}<g fill="{colour}">{dots}</g>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    """
    A whole picture.
    """
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    return "\n".join([head, f"<style>{_STYLE}</style>", *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    results = Path(sys.argv[1]) if sys.argv[1:] else here / "results.json"
    drawAll(json.loads(results.read_text()), here)
