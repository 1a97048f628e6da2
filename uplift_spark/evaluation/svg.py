"""Pictures of a report as SVG text: bars, curves and whiskers with 95 % intervals; colours come from the page's style.

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
        return f"{self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start):.1f}"


def _finite(*columns: pd.Series) -> np.ndarray:
    values = np.concatenate([column.to_numpy(np.float64) for column in columns]) if columns else np.array([])
    return values[np.isfinite(values)]


def _svg(width: int, height: int, label: str, parts: Sequence[Markup]) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label)
    return head + Markup("").join(parts) + Markup("</svg>")


def _text(x: object, y: object, text: object, kind: str = "tick", anchor: str = "middle") -> Markup:
    return Markup('<text x="{}" y="{}" class="{}" text-anchor="{}">{}</text>').format(x, y, kind, anchor, text)


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
    parts += [_text(x(f), _HEIGHT - _BOTTOM + 16, f"{100 * f:.0f} %") for f in (0, 0.25, 0.5, 0.75, 1)]
    parts.append(_text((width + _LEFT) / 2, _HEIGHT - 6, "share of units treated"))
    return _svg(width, _HEIGHT, f"gain of {level} by share of units treated", parts)


def whiskers_svg(rows: pd.DataFrame, scale: float, unit: str) -> Markup:
    """Effects of a segment's buckets as points with 95 % intervals, one a line; hollow where units are few.

    Args:
        rows: Rows of gold.lift_table, one a bucket.
        scale: What effects are multiplied by to be shown.
        unit: Of the effect, in words.
    """
    known = _finite(rows["uplift"], rows["uplift_lower"], rows["uplift_upper"]) * scale
    if not len(known):
        return Markup("")
    values = ticks(min(0.0, known.min()), max(0.0, known.max()), 4)
    width, step, left = 460, 24, 190
    height = step * len(rows) + 40
    x = _Axis(values[0], values[-1], left, width - 20)
    parts = [_line(x(v), 4, x(v), height - 34, "zero" if v == 0 else "grid") for v in values]
    parts += [_text(x(v), height - 20, f"{v:g}") for v in values]
    parts.append(_text((left + width) / 2, height - 4, f"effect, {unit}; bars: 95 % interval"))
    for number, row in enumerate(rows.to_dict("records")):
        middle = 4 + step * number + step / 2
        name = row["bucket"] if len(row["bucket"]) <= 26 else row["bucket"][:25] + "…"
        parts.append(_text(left - 10, middle + 4, name, "name", "end"))
        if np.isfinite(row["uplift_lower"]) and np.isfinite(row["uplift_upper"]):
            ends = x(row["uplift_lower"] * scale), x(row["uplift_upper"] * scale)
            parts.append(_line(ends[0], middle, ends[1], middle, "whisker"))
        kind = "hollow" if row["low_sample"] else "dot"
        at = x(row["uplift"] * scale)
        parts.append(Markup('<circle cx="{}" cy="{:.1f}" r="4.5" class="{}"/>').format(at, middle, kind))
    return _svg(width, height, f"effects by bucket, {unit}", parts)
