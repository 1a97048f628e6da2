"""Pictures of pages as SVG text: bars, curves, whiskers, trends and histograms, with 95 % intervals; days by lane.

Colours come from the page's style.
Texts are escaped. A picture without a finite number is an empty text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from markupsafe import Markup

_WIDTH, _HEIGHT = 560, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 26, 38


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from below `low` to above `high`, about `count` of them; 0 and 1 for an empty range."""
    if not (np.isfinite(low) and np.isfinite(high)) or high <= low:
        return [0.0, 1.0]
    raw = (high - low) / count
    power = 10.0 ** np.floor(np.log10(raw))
    step = power * min((m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999), default=10)
    first, last = np.floor(low / step + 1e-9), np.ceil(high / step - 1e-9)
    return [float(f"{k * step:.10g}") for k in np.arange(first, last + 1)]


@dataclass(frozen=True)
class _Axis:
    """A scale from numbers to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> str:
        return f"{self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start):.1f}".removesuffix(
            ".0"
        )


def _finite(*columns: pd.Series) -> np.ndarray:
    values = np.concatenate([column.to_numpy(np.float64) for column in columns]) if columns else np.array([])
    return values[np.isfinite(values)]


def _svg(width: int, height: int, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" text-anchor="middle">').format(
        width, height, label
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _text(x: object, y: object, text: object, kind: str = "tick", anchor: str = "middle") -> Markup:
    own = "" if anchor == "middle" else Markup(' text-anchor="{}"').format(anchor)
    return Markup('<text x="{}" y="{}" class="{}"{}>{}</text>').format(x, y, kind, own, text)


def _line(x1: object, y1: object, x2: object, y2: object, kind: str) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="{}"/>').format(x1, y1, x2, y2, kind)


def _grid(values: Sequence[float], y: _Axis, width: int) -> list[Markup]:
    parts = []
    for value in values:
        parts.append(_line(_LEFT, y(value), width - _RIGHT, y(value), "zero" if value == 0 else "grid"))
        parts.append(_text(_LEFT - 6, float(y(value)) + 4, f"{value:g}", anchor="end"))
    return parts


def bars_svg(deciles: pd.DataFrame, scale: float, label: str) -> Markup:
    """Bars of the observed effect by tenth with 95 % intervals, and diamonds at the predictions.

    Args:
        deciles: Rows of gold.lift_table with cut `decile`, of one level and outcome.
        scale: What effects are multiplied by to be shown.
        label: Title, which names the unit.
    """
    rows = deciles.assign(tenth=deciles["bucket"].astype(int)).sort_values("tenth")
    known = _finite(rows["uplift"], rows["uplift_lower"], rows["uplift_upper"], rows["predicted_uplift"]) * scale
    if not len(known):
        return Markup("")
    values = ticks(min(0.0, known.min()), max(0.0, known.max()))
    y = _Axis(values[0], values[-1], _HEIGHT - _BOTTOM, _TOP)
    x = _Axis(0.5, 10.5, _LEFT, _WIDTH - _RIGHT)
    parts = [_text(_LEFT - 44, 14, label, "title", "start"), *_grid(values, y, _WIDTH)]
    for row in rows.to_dict("records"):
        parts.append(_text(x(row["tenth"]), _HEIGHT - _BOTTOM + 16, row["tenth"]))
        if np.isfinite(row["uplift"]):
            ends = sorted((float(y(0)), float(y(row["uplift"] * scale))))
            parts.append(
                Markup('<rect x="{:.1f}" y="{:.1f}" width="32" height="{:.1f}" class="bar"/>').format(
                    float(x(row["tenth"])) - 16, ends[0], max(ends[1] - ends[0], 0.5)
                )
            )
        if np.isfinite(row["uplift_lower"]) and np.isfinite(row["uplift_upper"]):
            low, high = y(row["uplift_lower"] * scale), y(row["uplift_upper"] * scale)
            parts.append(_line(x(row["tenth"]), low, x(row["tenth"]), high, "whisker"))
        if np.isfinite(row["predicted_uplift"]):
            at = float(x(row["tenth"])), float(y(row["predicted_uplift"] * scale))
            parts.append(Markup('<path d="M{:.1f} {:.1f}l5 5l-5 5l-5 -5z" class="diamond"/>').format(at[0], at[1] - 5))
    parts.append(_text((_WIDTH + _LEFT) / 2, _HEIGHT - 6, "tenth of the units, best predicted first"))
    return _svg(_WIDTH, _HEIGHT, label, parts)


def curves_svg(level: str, curve: pd.DataFrame, scale: float, unit: str) -> Markup:
    """The gain by share of units treated, best first, with its 95 % band, and the line of treating at random.

    Args:
        level: Title of the panel.
        curve: Rows of gold.uplift_curve of one level and outcome.
        scale: What gains are multiplied by to be shown.
        unit: Of the gain, in words.
    """
    width = 360
    rows = curve.sort_values("fraction")
    known = _finite(rows["gain"], rows["gain_lower"], rows["gain_upper"]) * scale
    if not len(known):
        return Markup("")
    values = ticks(min(0.0, known.min()), max(0.0, known.max()), 4)
    y, x = _Axis(values[0], values[-1], _HEIGHT - _BOTTOM, _TOP), _Axis(0, 1, _LEFT, width - _RIGHT)
    parts = [_text(_LEFT - 44, 14, f"{level}: gain per unit, {unit}", "title", "start"), *_grid(values, y, width)]
    banded = rows.dropna(subset=["gain_lower", "gain_upper"])
    upper = [f"{x(f)},{y(g * scale)}" for f, g in zip(banded["fraction"], banded["gain_upper"], strict=True)]
    lower = [f"{x(f)},{y(g * scale)}" for f, g in zip(banded["fraction"], banded["gain_lower"], strict=True)]
    if upper:
        parts.append(Markup('<polygon points="{}" class="band"/>').format(" ".join([*upper, *lower[::-1]])))
    for column, kind in (("random_gain", "random"), ("gain", "curve")):
        line = rows.dropna(subset=[column])
        points = " ".join(f"{x(f)},{y(g * scale)}" for f, g in zip(line["fraction"], line[column], strict=True))
        parts.append(Markup('<polyline points="{}" class="{}"/>').format(points, kind))
    parts += [_text(x(f), _HEIGHT - _BOTTOM + 16, f"{100 * f:.0f} %") for f in (0, 0.25, 0.5, 0.75)]
    parts.append(_text(width - 2, _HEIGHT - _BOTTOM + 16, "100 %", anchor="end"))  # else the edge cuts it
    parts.append(_text((width + _LEFT) / 2, _HEIGHT - 6, "share of units treated"))
    return _svg(width, _HEIGHT, f"gain of {level} by share of units treated", parts)


_LETTERS, _MOST_LETTERS = 26, 40  # of a line's name: for so many there is always room; at most so many are shown


def whiskers_svg(rows: pd.DataFrame, scale: float, unit: str, what: str = "effect", heading: str = "") -> Markup:
    """Effects of a segment's buckets as points with 95 % intervals, one a line; hollow where units are few.

    Args:
        rows: Rows of gold.lift_table, one a bucket; or others with its columns of a bucket and of an effect.
        scale: What effects are multiplied by to be shown.
        unit: Of the effect, in words.
        what: The effect, in words.
        heading: Title, where the picture needs one.
    """
    known = _finite(rows["uplift"], rows["uplift_lower"], rows["uplift_upper"]) * scale
    if not len(known):
        return Markup("")
    values = ticks(min(0.0, known.min()), max(0.0, known.max()), 4)
    letters = min(max(len(str(name)) for name in rows["bucket"]), _MOST_LETTERS)
    left = 190 + 7 * max(letters - _LETTERS, 0)
    width, step, top = left + 270, 24, 22 if heading else 4
    height = step * len(rows) + top + 36
    x = _Axis(values[0], values[-1], left, width - 20)
    parts = [_text(8, 14, heading, "title", "start")] if heading else []
    parts += [_line(x(v), top, x(v), height - 34, "zero" if v == 0 else "grid") for v in values]
    parts += [_text(x(v), height - 20, f"{v:g}") for v in values]
    title = f"{what}, {unit}; bars: 95 % interval"
    parts.append(_text(min((left + width) / 2, width - 3.0 * len(title)), height - 4, title))
    for number, row in enumerate(rows.to_dict("records")):
        middle = top + step * number + step / 2
        parts.append(_text(left - 10, middle + 4, _cut_off(row["bucket"], letters), "name", "end"))
        if np.isfinite(row["uplift_lower"]) and np.isfinite(row["uplift_upper"]):
            ends = x(row["uplift_lower"] * scale), x(row["uplift_upper"] * scale)
            parts.append(_line(ends[0], middle, ends[1], middle, "whisker"))
        kind = "hollow" if row["low_sample"] else "dot"
        at = x(row["uplift"] * scale)
        parts.append(Markup('<circle cx="{}" cy="{:.1f}" r="4.5" class="{}"/>').format(at, middle, kind))
    return _svg(width, height, f"{what}s by bucket, {unit}", parts)


def _cut_off(name: str, letters: int = _LETTERS) -> str:
    most = max(letters, _LETTERS)
    return name if len(name) <= most else name[: most - 1] + "…"


def sizes_svg(names: Sequence[str], sizes: Sequence[float], scale: float, label: str) -> Markup:
    """Sizes as bars, one a line, from the first name downwards.

    Args:
        names: Of the lines.
        sizes: Not below zero.
        scale: What they are multiplied by to be shown.
        label: Title, which names the unit.
    """
    largest = max([size for size in sizes if np.isfinite(size)], default=0.0)
    if not largest > 0:
        return Markup("")
    values = ticks(0.0, largest * scale, 4)
    width, step, left = 460, 24, 190
    height = step * len(names) + 52
    x = _Axis(values[0], values[-1], left, width - 20)
    parts = [_text(8, 14, label, "title", "start")]
    parts += [_line(x(v), 22, x(v), height - 22, "zero" if v == 0 else "grid") for v in values]
    parts += [_text(x(v), height - 6, f"{v:g}") for v in values]
    for number, (name, size) in enumerate(zip(names, sizes, strict=True)):
        top = 26 + step * number
        parts.append(_text(left - 10, top + 14, _cut_off(name), "name", "end"))
        if np.isfinite(size):
            bar = Markup('<rect x="{}" y="{}" width="{:.1f}" height="14" class="bar"/>')
            parts.append(bar.format(left, top + 2, max(float(x(size * scale)) - left, 0.5)))
    return _svg(width, height, label, parts)


def interval_svg(value: float, lower: float, upper: float, scale: float, level: str, kind: str = "dot") -> Markup:
    """One figure with its interval beside zero, small.

    Args:
        value: The figure.
        lower: Lower end.
        upper: Upper end.
        scale: What all three are multiplied by to be shown.
        level: Of the interval, in words.
        kind: `dot`, or `hollow` where units are few.
    """
    ends = [end * scale for end in (value, lower, upper)]
    if not np.isfinite(ends).all():
        return Markup("")
    low, high = min(0.0, *ends), max(0.0, *ends)
    width = 220
    x = _Axis(low, high if high > low else low + 1, 8, width - 8)
    parts = [
        _line(x(0), 2, x(0), 22, "zero"),
        _line(x(ends[1]), 12, x(ends[2]), 12, "whisker"),
        Markup('<circle cx="{}" cy="12" r="4.5" class="{}"/>').format(x(ends[0]), kind),
    ]
    return _svg(width, 24, f"{ends[0]:.4g}, {level} interval {ends[1]:.4g} to {ends[2]:.4g}; the line is zero", parts)


def trend_svg(rows: pd.DataFrame, scale: float, label: str) -> Markup:
    """A figure window by window with its interval as a band; nothing of fewer than two windows.

    Args:
        rows: `value`, `lower` and `upper` in the order of their windows.
        scale: What they are multiplied by to be shown.
        label: What it is, in words.
    """
    known = _finite(rows["value"], rows["lower"], rows["upper"]) * scale
    if rows["value"].notna().sum() < 2:
        return Markup("")
    width, height = 220, 56
    low, high = float(known.min()), float(known.max())
    y = _Axis(low, high if high > low else low + 1, height - 6, 6)
    x = _Axis(0, len(rows) - 1, 6, width - 6)
    points = [(x(i), row) for i, row in enumerate(rows.to_dict("records")) if np.isfinite(row["value"])]
    banded = [(at, row) for at, row in points if np.isfinite(row["lower"]) and np.isfinite(row["upper"])]
    parts = []
    if banded:
        over = [f"{at},{y(row['upper'] * scale)}" for at, row in banded]
        under = [f"{at},{y(row['lower'] * scale)}" for at, row in banded[::-1]]
        parts.append(Markup('<polygon points="{}" class="band"/>').format(" ".join([*over, *under])))
    line = " ".join(f"{at},{y(row['value'] * scale)}" for at, row in points)
    parts.append(Markup('<polyline points="{}" class="curve"/>').format(line))
    return _svg(width, height, label, parts)


def histogram_svg(edges: Sequence[float], counts: Sequence[int], scale: float, label: str) -> Markup:
    """How many units have which value.

    Args:
        edges: Of the bins, one more than there are bins.
        counts: Units by bin.
        scale: What the edges are multiplied by to be shown.
        label: Title, which names the unit.
    """
    if not len(counts) or not max(counts) > 0 or not edges[-1] > edges[0]:
        return Markup("")
    width, height = 360, 200
    values = ticks(0.0, float(max(counts)), 4)
    y = _Axis(values[0], values[-1], height - _BOTTOM, _TOP)
    x = _Axis(edges[0] * scale, edges[-1] * scale, _LEFT, width - _RIGHT)
    parts = [_text(_LEFT - 44, 14, label, "title", "start"), *_grid(values, y, width)]
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, right, top = float(x(low * scale)), float(x(high * scale)), float(y(count))
        parts.append(
            Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="bar"/>').format(
                left + 0.5, top, max(right - left - 1, 0.5), height - _BOTTOM - top
            )
        )
    inside = [tick for tick in ticks(edges[0] * scale, edges[-1] * scale, 4) if x.low <= tick <= x.high]
    parts += [_text(x(tick), height - _BOTTOM + 16, f"{tick:g}") for tick in inside]
    return _svg(width, height, label, parts)


def lanes_svg(lanes: Sequence[str], marks: Sequence[tuple[float, str, str]], label: str) -> Markup:
    """What happened on which day, a lane for each kind; a mark says its words where a pointer rests on it.

    Args:
        lanes: Names, from top to bottom; the first is that of faults, the last that of what is well again.
        marks: (day, lane, words), of one lane at least.
        label: Title.
    """
    width, step, left = 900, 34, 130
    height = step * len(lanes) + 56
    known = [day for day, _, _ in marks]
    values = ticks(min(known), max(known), 8) if max(known) > min(known) else [known[0] - 1, known[0] + 1]
    x = _Axis(values[0], values[-1], left, width - 24)
    parts = [_text(0, 16, label, "title", "start")]
    for value in values:
        parts.append(_line(x(value), 26, x(value), height - 26, "grid"))
        parts.append(_text(x(value), height - 8, f"day {value:g}"))
    kinds = {lanes[0]: "fault", lanes[-1]: "well"}
    for number, lane in enumerate(lanes):
        y = 44 + step * number
        parts += [_text(0, y + 4, lane, "name", "start"), _line(left, y, width - 24, y, "grid")]
        for day, own, words in marks:
            if own == lane:
                circle = Markup('<circle cx="{}" cy="{}" r="6" class="{}"><title>{}</title></circle>')
                parts.append(circle.format(x(day), y, kinds.get(lane, "dot"), f"day {day:.4g}: {words}"))
    return _svg(width, height, label, parts)
