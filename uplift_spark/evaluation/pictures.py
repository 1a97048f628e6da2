"""Pictures: uplift curves, lift by decile, calibration, effects by dose and segment, a plan's gain by budget.

`write_pictures` saves those of an evaluation; each `*_picture` function draws one. Bands and bars are 95 % intervals.

matplotlib is the optional extra `plots`; figures are drawn without pyplot: no backend, no global state.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from uplift_spark.errors import EnvironmentProblem
from uplift_spark.evaluation.lift_tables import SEGMENT
from uplift_spark.evaluation.metrics import Truth
from uplift_spark.roles import Direction, benefit_name
from uplift_spark.sections.roles import RolesConf

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours: distinct under any kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, MUTED, _GRID = "#222222", "#6b6b6b", "#e6e6e6"
_COLUMNS = 3  # panels a row
_HOLLOW = "Hollow: few units or events."
_BANDS_UP_TO = 4  # more bands than this cover each other


def write_pictures(
    folder: Path,
    lift: pd.DataFrame,
    curves: pd.DataFrame,
    metrics: pd.DataFrame,
    rates: Collection[str] = (),
    truth: Mapping[str, Truth] | None = None,
    roles: RolesConf | None = None,
) -> list[Path]:
    """Write qini_<outcome>.png and lift_<outcome>.png for every outcome; returns their paths.

    calibration_<outcome>.png is written for the outcome the model predicts, dose_<outcome>.png where `roles` give at
    least two of the levels compared with control a dose.

    Tables are those of `metrics.curve_table`, `metrics.metric_table` and `lift_tables.lift_table`; `truth` draws the
    true curves of the outcome the model predicts; outcomes in `rates` are shown in percentage points. Raises
    EnvironmentProblem without matplotlib.
    """
    written = []
    for number, outcome in enumerate(lift["outcome"].unique()):
        rows, points, figures = (table[table["outcome"] == outcome] for table in (lift, curves, metrics))
        rate = outcome in rates
        direction = roles.direction if roles is not None and outcome == roles.outcome else "increase"
        qini = qini_picture(points, figures, rate, truth if number == 0 else None, direction)
        written.append(save(qini, folder / f"qini_{outcome}.png"))
        written.append(save(decile_picture(rows, rate, direction), folder / f"lift_{outcome}.png"))
        if rows.loc[rows["cut"] == "decile", "predicted_uplift"].notna().any():
            calibration = calibration_picture(rows, figures, rate)
            written.append(save(calibration, folder / f"calibration_{outcome}.png"))
        doses = {name: dose for name, dose in roles.level_doses.items() if isinstance(dose, float)} if roles else {}
        if roles is not None and len(set(rows["treatment"]) & set(doses)) > 1:
            written.append(save(dose_picture(rows, doses, roles.control, rate), folder / f"dose_{outcome}.png"))
    return written


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, facecolor="white")
    return path


def qini_picture(
    curves: pd.DataFrame,
    metrics: pd.DataFrame,
    rate: bool,
    truth: Mapping[str, Truth] | None = None,
    direction: Direction = "increase",
) -> Figure:
    """Gain against the share of units treated: a line and a 95 % band per level, its random line, the true curve."""
    figure = empty_figure(7.6, 5.0)
    axes = figure.add_subplot()
    scale, unit = units_of(rate)
    levels = list(curves["treatment"].unique())
    qini = metrics[metrics["metric"] == "qini"].set_index("treatment")
    for level, colour in zip(levels, COLOURS * len(levels), strict=False):
        rows = curves[curves["treatment"] == level]
        share, gain, low, high = (
            rows[c] * by for c, by in (("fraction", 100), ("gain", scale), ("gain_lower", scale), ("gain_upper", scale))
        )
        if len(levels) <= _BANDS_UP_TO:
            axes.fill_between(share, low, high, color=colour, alpha=0.15, lw=0)
        axes.plot(share, rows["random_gain"] * scale, color=colour, lw=1, ls=(0, (4, 3)), alpha=0.8)
        axes.plot(share, gain, color=colour, lw=2, label=_qini_label(level, qini.loc[level], scale, unit))
        if truth and level in truth:
            _draw_truth(axes, truth[level], colour, scale)
    _label_curve(axes, _gain_words(curves["outcome"].iloc[0], direction), unit, bool(truth))
    return figure


def _draw_truth(axes: Axes, truth: Truth, colour: str, scale: float) -> None:
    shares = np.linspace(0, 1, 101)
    axes.plot(shares * 100, truth.curve.at(shares) * scale, color=colour, lw=1.4, ls=(0, (1, 1.6)))


def _qini_label(level: str, qini: Any, scale: float, unit: str) -> str:
    value, lower, upper = (f"{qini[c] * scale:.3g}" for c in ("value", "lower", "upper"))
    interval = f" ({lower} to {upper})" if np.isfinite(qini["lower"]) else ""
    return f"{level}: Qini {value}{interval}{' pp' if unit else ''}"


def _gain_words(outcome: str, direction: Direction) -> str:
    return f"gain in {outcome}" if direction == "increase" else benefit_name(outcome, direction)


def _label_curve(axes: Axes, gain: str, unit: str, with_truth: bool) -> None:
    clean(axes, f"{gain[0].upper()}{gain[1:]} when the units predicted best are treated first")
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of units treated, %")
    axes.set_ylabel(f"gain per unit of the population{unit}")
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    notes = "Band: 95 % bootstrap. Dashed: treating at random." + (" Dotted: true curve." if with_truth else "")
    style: dict[str, Any] = {"ha": "right", "fontsize": 8, "color": MUTED}
    axes.annotate(notes, (1, 0), (0, 6), "axes fraction", textcoords="offset points", **style)


def decile_picture(lift: pd.DataFrame, rate: bool, direction: Direction = "increase") -> Figure:
    """Uplift by decile of the prediction, one panel per level: bars with 95 % intervals, predictions, the average."""
    scale, unit = units_of(rate)
    levels = list(lift["treatment"].unique())
    figure, panels = _panels(len(levels))
    for number, (level, axes) in enumerate(zip(levels, panels, strict=True)):
        of_level = lift[lift["treatment"] == level]
        _draw_deciles(axes, of_level, COLOURS[number % len(COLOURS)], scale)
        axes.set_xlabel(f"decile (1 = {'highest' if direction == 'increase' else 'lowest'} predicted)")
        clean(axes, level)
        if number % _COLUMNS == 0:
            axes.set_ylabel(f"uplift{unit}")
        if number == 0:
            axes.legend(frameon=False, fontsize=8, loc="best")
    _title(figure, f"Uplift in {lift['outcome'].iloc[0]} by decile of the prediction")
    return figure


def _draw_deciles(axes: Axes, lift: pd.DataFrame, colour: str, scale: float) -> None:
    deciles = lift[lift["cut"] == "decile"]
    x, uplift = deciles["bucket"].astype(int), deciles["uplift"] * scale
    error = np.stack([uplift - deciles["uplift_lower"] * scale, deciles["uplift_upper"] * scale - uplift])
    axes.bar(x, uplift, width=0.72, color=colour, alpha=0.35, label="observed, 95 % interval")
    axes.errorbar(x, uplift, yerr=error, fmt="none", ecolor=colour, elinewidth=1.4, capsize=2.5)
    if deciles["predicted_uplift"].notna().any():
        style: dict[str, Any] = {"s": 26, "marker": "D", "facecolor": "white", "edgecolor": INK, "zorder": 3}
        axes.scatter(x, deciles["predicted_uplift"] * scale, label="predicted", **style)
    average = lift.loc[lift["cut"] == "all", "uplift"].iloc[0] * scale
    axes.axhline(average, color=MUTED, lw=1, ls=(0, (4, 3)), label="average")
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xticks(range(1, 11))


def calibration_picture(lift: pd.DataFrame, metrics: pd.DataFrame, rate: bool) -> Figure:
    """Observed against predicted uplift by decile, one panel per level, and the line on which predictions are true.

    Of one outcome: its rows of the lift table and of the metrics, whose slope and p-value of calibration are named.
    """
    scale, unit = units_of(rate)
    levels = list(lift["treatment"].unique())
    figure, panels = _panels(len(levels))
    figures = metrics.set_index(["treatment", "metric"])
    for number, (level, axes) in enumerate(zip(levels, panels, strict=True)):
        rows = lift[(lift["treatment"] == level) & (lift["cut"] == "decile")].dropna(subset=["uplift_lower"])
        colour = COLOURS[number % len(COLOURS)]
        axes.axline((0, 0), slope=1, color=INK, lw=1, ls=(0, (4, 3)), label="predicted = observed")
        axes.axhline(0, color=MUTED, lw=0.8)
        _bars(axes, rows["predicted_uplift"] * scale, rows, scale, colour, "decile, 95 % interval")
        clean(axes, f"{level}\n{_calibration_words(figures.loc[level])}")
        axes.set_xlabel(f"predicted uplift{unit}")
        if number % _COLUMNS == 0:
            axes.set_ylabel(f"observed uplift{unit}")
        if number == 0:
            _legend_below(axes)
    title = f"Uplift in {lift['outcome'].iloc[0]}, predicted and observed by decile of the prediction"
    _title(figure, title, f"p: of the test that predictions are true. {_HOLLOW}")
    return figure


def _calibration_words(figures: Any) -> str:
    slope, p = figures.loc["calibration_slope"], figures.loc["calibration_p", "value"]
    if not np.isfinite(slope["value"]):
        return "too few units for a slope"
    interval = f" ({slope['lower']:.2g} to {slope['upper']:.2g})" if np.isfinite(slope["lower"]) else ""
    p_text = "" if not np.isfinite(p) else ", p < 0.001" if p < 0.001 else f", p = {p:.2g}"
    return f"slope {slope['value']:.2g}{interval}{p_text}"


def dose_picture(lift: pd.DataFrame, doses: Mapping[str, float], control: str, rate: bool) -> Figure:
    """Uplift by dose with 95 % bars, one panel per segment: a line per bucket, and one of all units.

    Of one outcome. Control's effect is 0 by definition. Of a segment with many buckets the largest are drawn.
    """
    scale, unit = units_of(rate)
    rows = lift[lift["treatment"].isin(doses)]
    rows = rows.assign(dose=rows["treatment"].map(doses)).sort_values("dose", kind="stable")
    cuts = [cut for cut in lift["cut"].unique() if cut.startswith(SEGMENT)] or ["all"]
    figure, panels = _panels(len(cuts))
    for number, (cut, axes) in enumerate(zip(cuts, panels, strict=True)):
        shown, title = _largest(rows[rows["cut"] == cut], cut)
        _draw_doses(axes, rows[rows["cut"] == "all"], shown, doses[control], scale)
        clean(axes, title)
        _dose_ticks(axes, {control: doses[control], **dict(zip(rows["treatment"], rows["dose"], strict=True))})
        if number % _COLUMNS == 0:
            axes.set_ylabel(f"uplift{unit}")
        _legend_below(axes)
    _title(figure, f"Uplift in {lift['outcome'].iloc[0]} by dose", f"Bars: 95 % interval. {_HOLLOW}")
    return figure


def _largest(rows: pd.DataFrame, cut: str) -> tuple[pd.DataFrame, str]:
    """Rows of a segment's largest buckets with figures, and the panel's title; none of all units, drawn anyway."""
    if cut == "all":
        return rows.iloc[:0], "all units"
    units = rows[rows["uplift"].notna()].groupby("bucket")["n"].sum().sort_values(ascending=False, kind="stable")
    kept, count, segment = units.index[: len(COLOURS)], rows["bucket"].nunique(), cut.removeprefix(SEGMENT)
    title = segment if len(kept) == count else f"{segment}: {len(kept)} largest of {count} buckets"
    return rows[rows["bucket"].isin(kept)], title


def _draw_doses(axes: Axes, whole: pd.DataFrame, buckets: pd.DataFrame, start: float, scale: float) -> None:
    groups = [("all units", whole), *buckets.groupby("bucket")]
    doses = np.unique([start, *whole["dose"]])
    # Points side by side: bars at the same dose would hide each other.
    offset = min(0.025 * np.ptp(doses), 0.6 * np.diff(doses).min() / len(groups))
    for k, (name, rows) in enumerate(groups):
        shift = (k - (len(groups) - 1) / 2) * offset
        colour = INK if k == 0 else COLOURS[k - 1]
        line = np.r_[start, rows["dose"] + shift], np.r_[0.0, rows["uplift"] * scale]
        order = np.argsort(line[0], kind="stable")
        axes.plot(line[0][order], line[1][order], color=colour, lw=1.8 if k == 0 else 1.1, alpha=0.9)
        _bars(axes, rows["dose"] + shift, rows, scale, colour, str(name))
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xlabel("dose")


def _dose_ticks(axes: Axes, doses: Mapping[str, float]) -> None:
    """Levels as ticks at their doses; numbers where levels lie too close for their names."""
    positions = np.sort(list(doses.values()))
    if np.diff(positions).min() > 0.1 * np.ptp(positions):
        axes.set_xticks(list(doses.values()), labels=list(doses))


def _bars(axes: Axes, x: pd.Series, rows: pd.DataFrame, scale: float, colour: str, label: str) -> None:
    """Uplift as points with 95 % bars; hollow where the table marks a low sample."""
    uplift = rows["uplift"] * scale
    error = np.stack([uplift - rows["uplift_lower"] * scale, rows["uplift_upper"] * scale - uplift])
    axes.errorbar(x, uplift, yerr=error, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2)
    faces = np.where(rows["low_sample"], "white", colour)
    axes.scatter(x, uplift, s=22, marker="o", facecolor=list(faces), edgecolor=colour, zorder=3)
    axes.plot([], [], color=colour, marker="o", ms=4.5, lw=1.2, label=label)


def budget_picture(curve: pd.DataFrame, unit: str, spent: float, gain: float) -> Figure:
    """Gain against the budget: predicted as a line, by the hold-out's outcomes as points with 95 % bars, and the plan.

    curve  gold.policy_curve of one run        unit  of the gain        spent, gain  of the plan itself
    """
    figure = empty_figure(7.6, 5.0)
    axes = figure.add_subplot()
    rows = curve.sort_values("budget")
    axes.plot(np.r_[0, rows["cost"]], np.r_[0, rows["gain"]], color=COLOURS[0], lw=2, label="predicted")
    error = np.stack([rows["observed"] - rows["observed_lower"], rows["observed_upper"] - rows["observed"]])
    bars: dict[str, Any] = {"fmt": "o", "ms": 5, "color": COLOURS[1], "elinewidth": 1.4, "capsize": 2.5}
    axes.errorbar(rows["cost"], rows["observed"], yerr=error, **bars, label="by the hold-out's outcomes, 95 % interval")
    style: dict[str, Any] = {"s": 60, "marker": "D", "facecolor": "white", "edgecolor": INK, "zorder": 3}
    axes.scatter([spent], [gain], label="this plan", **style)
    clean(axes, "What a plan brings for what it costs")
    axes.axhline(0, color=MUTED, lw=0.8)
    axes.set_xlim(left=0)
    axes.set_xlabel("cost of treating")
    axes.set_ylabel(f"gain ({unit})")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def effect_picture(days: pd.DataFrame, metric: str) -> Figure:
    """Effect of each arm over the days of a trial, with the intervals of its design and those of a single reading.

    days  day, arm, effect, lower, upper, plain_lower, plain_upper    metric  its name
    """
    figure = empty_figure(7.6, 5.0)
    axes = figure.add_subplot()
    for (arm, rows), colour in zip(days.groupby("arm", sort=False), COLOURS * len(days), strict=False):
        axes.fill_between(rows["day"], rows["plain_lower"], rows["plain_upper"], color=colour, alpha=0.25, lw=0)
        for bound in ("lower", "upper"):
            axes.plot(rows["day"], rows[bound], color=colour, lw=1, ls=(0, (4, 3)))
        axes.plot(rows["day"], rows["effect"], color=colour, lw=2, marker="o", ms=3, label=str(arm))
    clean(axes, f"Effect on {metric} over time")
    axes.axhline(0, color=MUTED, lw=0.8)
    # The first days' intervals are as wide as all others together.
    near = days[days["day"] >= days["day"].max() / 4]
    ends = near[["plain_lower", "plain_upper", "lower", "upper"]].replace([np.inf, -np.inf], np.nan)
    reach = 1.1 * float(np.nanmax(np.abs(ends.to_numpy()), initial=0.0))
    if reach > 0:
        axes.set_ylim(-reach, reach)
    axes.set_xlabel("day of the trial; dashed: the interval of the design, shaded: of a single reading")
    axes.set_ylabel("effect against the control")
    axes.legend(frameon=False, fontsize=9, loc="best")
    return figure


def units_of(rate: bool) -> tuple[float, str]:
    """What values are multiplied by to be shown, and the unit in words: percentage points for rates."""
    return (100.0, " (percentage points)") if rate else (1.0, "")


def empty_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches; EnvironmentProblem without matplotlib."""
    try:
        from matplotlib.figure import Figure as MatplotlibFigure
    except ImportError as error:
        raise EnvironmentProblem("pictures need matplotlib: install the extra `plots` (uplift-spark[plots])") from error
    return MatplotlibFigure(figsize=(width, height), layout="constrained")


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of panels side by side, three a row, on one scale of the effect."""
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    figure = empty_figure(max(6.4, 4.3 * columns), 3.6 * rows + 0.6)
    panels: list[Axes] = []
    for number in range(count):
        panels.append(figure.add_subplot(rows, columns, number + 1, sharey=panels[0] if panels else None))
    return figure, panels


def _title(figure: Figure, title: str, note: str = "") -> None:
    figure.suptitle("\n".join(filter(None, (title, note))), x=0.02, ha="left", fontsize=12, color=INK)


def _legend_below(axes: Axes) -> None:
    """Bars can be anywhere in a panel: none is covered here."""
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2), ncols=2, borderaxespad=0)


def clean(axes: Axes, title: str) -> None:
    """The house's look: title on the left, horizontal grid lines, no box."""
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.grid(axis="y", color=_GRID, lw=0.8)
    axes.set_axisbelow(True)


# --------------------------------------------------------------------------------------------------------------------
# Several models in one picture: Qini by level, and gain by cost.

_MOST_FEATURES = 30


def comparison_picture(
    metrics: pd.DataFrame, curves: pd.DataFrame, rate: bool, direction: Direction = "increase"
) -> Figure:
    """Qini of every model by level with 95 % intervals, and their cost curves, the first model's with its band.

    metrics  `comparison.compared_metrics`        curves  `comparison.cost_curves`        rate  outcome is 0 or 1
    """
    figure = empty_figure(11.0, 4.6)
    left, right = figure.subplots(1, 2)
    models = list(dict.fromkeys(curves["model"]))
    colours = dict(zip(models, COLOURS * len(models), strict=False))
    _draw_qini(left, metrics[metrics["metric"] == "qini"], colours, rate)
    _draw_curves(right, curves, colours, rate)
    gain = _gain_words(curves["outcome"].iloc[0], direction)
    right.set_ylabel(f"{gain} per unit{units_of(rate)[1]}")
    return figure


def _draw_qini(axes: Axes, qini: pd.DataFrame, colours: dict[str, str], rate: bool) -> None:
    scale, unit = units_of(rate)
    levels = list(dict.fromkeys(qini["treatment"]))
    for number, (model, colour) in enumerate(colours.items()):
        rows = qini[qini["model_version"] == model].set_index("treatment").loc[levels]
        y = np.arange(len(levels)) + (number - (len(colours) - 1) / 2) * 0.5 / len(colours)
        error = np.stack([rows["value"] - rows["lower"], rows["upper"] - rows["value"]]) * scale
        style: dict[str, Any] = {"fmt": "o", "ms": 5, "color": colour, "elinewidth": 1.6, "capsize": 2.5}
        axes.errorbar(rows["value"] * scale, y, xerr=error, label=_named(model), **style)
    clean(axes, "Qini on the hold-out, 95 % intervals")
    axes.axvline(0, color=MUTED, lw=0.8)
    axes.set_yticks(range(len(levels)), levels)
    axes.set_ylim(len(levels) - 0.4, -0.6)
    axes.set_xlabel(f"Qini per unit{unit}")
    axes.grid(axis="x", color="#e6e6e6", lw=0.8)
    axes.grid(visible=False, axis="y")


def _draw_curves(axes: Axes, curves: pd.DataFrame, colours: dict[str, str], rate: bool) -> None:
    scale, _ = units_of(rate)
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
    if not curves["cost"].max() > 0:
        text = "Treating costs nothing in this configuration:\nthere is no budget to spread."
        axes.text(0.5, 0.3, text, transform=axes.transAxes, ha="center", color=MUTED)
        axes.set_xticks([0])
    axes.legend(frameon=False, fontsize=9, loc="best", labelcolor=INK)


def balance_picture(balance: pd.DataFrame, negligible: float) -> Figure:
    """A love plot: what differs most between each level and the control, as units are and weighed by propensity.

    balance  `average_effects.balance_table`        negligible  standardised difference
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
