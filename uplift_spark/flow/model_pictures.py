"""Several models in one picture: Qini by level, and what each brings for what it costs (R4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from uplift_spark.flow.pictures import COLOURS, INK, MUTED, clean, empty_figure, units_of

_MOST_FEATURES = 30

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def comparison_picture(metrics: pd.DataFrame, curves: pd.DataFrame, rate: bool) -> Figure:
    """Qini of every model by level with 95 % intervals, and their cost curves, the first model's with its band.

    metrics  `comparing.compared_metrics`        curves  `comparing.cost_curves`        rate  outcome is 0 or 1
    """
    figure = empty_figure(11.0, 4.6)
    left, right = figure.subplots(1, 2)
    models = list(dict.fromkeys(curves["model"]))
    colours = dict(zip(models, COLOURS * len(models), strict=False))
    _draw_qini(left, metrics[metrics["metric"] == "qini"], colours, rate)
    _draw_curves(right, curves, colours, rate)
    return figure


def _draw_qini(axes: Axes, qini: pd.DataFrame, colours: dict[str, str], rate: bool) -> None:
    scale, unit = units_of(rate)
    levels = list(dict.fromkeys(qini["treatment"]))
    for number, (model, colour) in enumerate(colours.items()):
        rows = qini[qini["model_version"] == model].set_index("treatment").loc[levels]
        place = np.arange(len(levels)) + (number - (len(colours) - 1) / 2) * 0.5 / len(colours)
        error = np.stack([rows["value"] - rows["lower"], rows["upper"] - rows["value"]]) * scale
        style: dict[str, Any] = {"fmt": "o", "ms": 5, "color": colour, "elinewidth": 1.6, "capsize": 2.5}
        axes.errorbar(rows["value"] * scale, place, xerr=error, label=_named(model), **style)
    clean(axes, "Qini on the hold-out, 95 % intervals")
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set_yticks(range(len(levels)), levels)
    axes.set_ylim(len(levels) - 0.4, -0.6)
    axes.set_xlabel(f"Qini per unit{unit}")
    axes.grid(axis="x", color="#e6e6e6", lw=0.8)
    axes.grid(visible=False, axis="y")


def _draw_curves(axes: Axes, curves: pd.DataFrame, colours: dict[str, str], rate: bool) -> None:
    scale, unit = units_of(rate)
    for number, (model, colour) in enumerate(colours.items()):
        rows = curves[curves["model"] == model]
        if not number:
            band = rows["gain_lower"] * scale, rows["gain_upper"] * scale
            axes.fill_between(rows["cost"], *band, color=colour, alpha=0.15, lw=0)
        axes.plot(rows["cost"], rows["gain"] * scale, color=colour, lw=2, label=_named(model))
    clean(axes, f"Gain for what treating costs; band: 95 % of {_named(next(iter(colours)))}")
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xlim(left=0)
    axes.set_xlabel("cost per unit of the population")
    axes.set_ylabel(f"gain in {curves['outcome'].iloc[0]} per unit{unit}")
    if not curves["cost"].max() > 0:
        text = "Treating costs nothing in this configuration:\nthere is no budget to spread."
        axes.text(0.5, 0.3, text, transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_xticks([0])
    axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=INK)


def balance_picture(balance: pd.DataFrame, negligible: float) -> Figure:
    """A love plot: what differs most between each level and the control, as units are and weighed by propensity.

    balance  `averages.balance_table`        negligible  standardised difference
    """
    kinds = {"difference": ("as they are", MUTED), "difference_weighted": ("weighed", COLOURS[0])}
    named = balance["feature"] + balance["category"].map(lambda c: "" if c is None else f" = {c}").astype(str)
    sizes = balance["difference"].abs().groupby(named).max().sort_values(ascending=False)
    rows = list(sizes.index[:_MOST_FEATURES])[::-1]
    levels = list(dict.fromkeys(balance["treatment"]))
    figure = empty_figure(1.6 + 4.2 * len(levels), 1.4 + 0.27 * len(rows))
    panels = figure.subplots(1, len(levels), sharex=True, sharey=True, squeeze=False)[0]
    for axes, level in zip(panels, levels, strict=True):
        mine = balance[balance["treatment"] == level].set_axis(named[balance["treatment"] == level]).reindex(rows)
        axes.axvspan(-negligible, negligible, color=MUTED, alpha=0.12, lw=0)
        for column, (label, colour) in kinds.items():
            axes.plot(mine[column], range(len(rows)), "o", ms=5, color=colour, label=label)
        axes.set_yticks(range(len(rows)), rows, fontsize=9)
        axes.set_xlabel("difference of means, in standard deviations")
        clean(axes, f"{level} against the control")
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _named(model: str) -> str:
    return f"version {model}" if model.isdigit() else model.replace("t_learner", "T-learner").replace("_", " ")
