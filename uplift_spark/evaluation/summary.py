"""The evaluation as text for a terminal: lift by decile, metrics with intervals, and what the data do not show.

`lift_summary` writes it, `caveats` the sentences on what its figures rest on.
"""

from __future__ import annotations

import io
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from uplift_spark.evaluation.lift_tables import LOW_CLUSTERS, unclear_metrics
from uplift_spark.evaluation.metrics import MEAN_DOSE_METRIC, METRICS, Arms, Cut, Truth, curve_figures
from uplift_spark.roles import Direction

_WIDTH = 140
_HEADS = ("decile", "treated", "control", "mean treated", "mean control", "predicted", "uplift", "95 % interval", "ROI")
_MEANING = {"ate": "average effect", "qini": "Qini"}


def number(value: float) -> str:
    """Format a number with four significant digits; a dash where it is unknown."""
    return "-" if pd.isna(value) else f"{value:.4g}"


def amount(value: float) -> str:
    """Format an amount: whole from 1,000 on, else with four significant digits."""
    return f"{value:,.0f}" if abs(value) >= 1000 else number(value)


def interval(lower: float, upper: float) -> str:
    """Format an interval as `a to b`, or `not known`."""
    return "not known" if pd.isna(lower) or pd.isna(upper) else f"{number(lower)} to {number(upper)}"


def lift_summary(lift: pd.DataFrame, metrics: pd.DataFrame, truth: dict[str, Truth] | None = None) -> str:
    """Plain text: one lift table per level for the predicted outcome, metrics of all outcomes, and plain statements."""
    outcome = lift["outcome"].iloc[0]
    parts = [_decile_table(rows, outcome, level) for level, rows in _by_level(lift[lift["outcome"] == outcome])]
    parts.append(_metric_table(metrics, truth or {}))
    statements = (*truth_statements(truth or {}, outcome), *plain_statements(lift, metrics))
    return "\n".join([tables_text(parts), "", *statements])


def tables_text(tables: Sequence[Table]) -> str:
    """Write tables one below the other as plain text."""
    console = Console(
        file=io.StringIO(), width=_WIDTH, color_system=None, force_terminal=False, markup=False, emoji=False
    )
    for table in tables:
        console.print(table)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in lines).rstrip()


def text_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table of texts: the first column names the row, the others hold figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for position, head in enumerate(heads):
        table.add_column(head, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _by_level(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(level, table[table["treatment"] == level]) for level in table["treatment"].unique()]


def _decile_table(rows: pd.DataFrame, outcome: str, level: str) -> Table:
    table = Table(title=f"Lift of {level} on {outcome}, by decile of predicted uplift", box=box.SIMPLE_HEAD)
    for head in _HEADS:
        table.add_column(head, justify="right", no_wrap=True)
    shown = rows[rows["cut"].isin(["decile", "all"])].sort_values("cut", ascending=False, kind="stable")
    for row in shown.to_dict("records"):
        counts = [format(row[c], ",") for c in ("n_treated", "n_control")]
        figures = [number(row[c]) for c in ("mean_treated", "mean_control", "predicted_uplift", "uplift")]
        bounds = interval(row["uplift_lower"], row["uplift_upper"])
        table.add_row(row["bucket"], *counts, *figures, bounds, number(row["roi"]))
    return table


def _metric_table(metrics: pd.DataFrame, truth: dict[str, Truth]) -> Table:
    table = Table(title="Metrics with 95 % bootstrap intervals", box=box.SIMPLE_HEAD)
    for head in ("outcome", "treatment", "metric"):
        table.add_column(head, no_wrap=True)
    for head in ("value", "95 % interval", *(("true value", "best possible") if truth else ())):
        table.add_column(head, justify="right", no_wrap=True)
    predicted = metrics["outcome"].iloc[0]
    for row in metrics.to_dict("records"):
        known = _true_values(truth.get(row["treatment"]), row["metric"]) if row["outcome"] == predicted else ("", "")
        # A p-value has no interval.
        bounds = "" if row["metric"].endswith("_p") else interval(row["lower"], row["upper"])
        cells = (row["outcome"], row["treatment"], row["metric"], number(row["value"]), bounds)
        table.add_row(*cells, *(known if truth else ()))
    return table


def _true_values(truth: Truth | None, metric: str) -> tuple[str, str]:
    """True value of a metric for the model's ranking, and for the ranking by the true effect."""
    if truth is None or metric not in METRICS:
        return "", ""
    figures = [curve_figures(curve, truth.direction)[metric] for curve in (truth.curve, truth.oracle)]
    model, oracle = (number(float(figure)) for figure in figures)
    return model, "" if metric == "ate" else oracle


def truth_statements(truth: dict[str, Truth], outcome: str) -> list[str]:
    """One sentence per level on the predictions' distance from the true effects."""
    return [
        f"Predicted against true effect of {level} on {outcome}: root mean squared error {number(accuracy.rmse)}, "
        f"correlation {accuracy.correlation:.3f}, true Qini {number(float(accuracy.curve.qini))} "
        f"of at best {number(float(accuracy.oracle.qini))}."
        for level, accuracy in truth.items()
    ]


def plain_statements(lift: pd.DataFrame, metrics: pd.DataFrame) -> list[str]:
    """Sentences on what the data do not support: metrics not distinguishable from zero, rows with too few units."""
    sentences = [_unclear(row) for row in unclear_metrics(metrics).to_dict("records")]
    if thin := int(lift["uplift"].isna().sum()):
        sentences.append(f"{thin} of {len(lift)} rows of the lift table have too few units in an arm for a mean: null.")
    return sentences


def _unclear(row: dict[Hashable, Any]) -> str:
    figure = f"{number(row['value'])} ({interval(row['lower'], row['upper'])})"
    what = f"{_MEANING[row['metric']]} of {row['treatment']} on {row['outcome']}"
    return f"{what}: {figure} is not distinguishable from zero."


NO_TRIAL_CAVEAT = (
    "This was no trial: figures hold if whatever decided the treatment, and matters to the outcome, is a feature."
)


def direction_words(outcome: str, direction: Direction) -> list[str]:
    """A sentence on how to read figures of an outcome of which less is better; none else."""
    if direction == "increase":
        return []
    return [
        f"Less {outcome} is better: an effect below zero helps, decile 1 is predicted to fall most, and Qini, AUUC and "
        "gains count how far it falls."
    ]


def dose_words(metrics: pd.DataFrame, control: str) -> list[str]:
    """A sentence on the doses behind each level, of a metric table with mean doses; none else."""
    rows = metrics[metrics["metric"] == MEAN_DOSE_METRIC]
    means = dict(zip(rows["treatment"], rows["value"], strict=True))
    if not means:
        return []
    listed = ", ".join(f"{level} {number(mean)}" for level, mean in means.items() if level != control)
    against = number(means.get(control, float("nan")))
    return [
        f"A unit counts as the level nearest to its dose. Mean doses are {listed}, and {against} where it counts as "
        f"the control {control}: observed lift is that between these doses, predictions are for the doses of the names."
    ]


def caveats(arms: Arms, unseen: bool, cuts: Mapping[str, Cut] | None = None, fitted: bool = False) -> list[str]:
    """Sentences on what the figures rest on, where that is not a randomised trial with a hold-out known to be one."""
    sentences = cut_off(cuts or {})
    if not arms.logged:
        sentences.append("Propensities were not logged: arms are compared as if every unit had the same propensities.")
    if fitted:
        sentences.append(NO_TRIAL_CAVEAT)
    if arms.weighted:
        sentences.append("Propensities vary within an arm: units count by the inverse of theirs.")
    if arms.clusters:
        counted = ", ".join(f"{arm} {n:,}" for arm, n in arms.clusters.items())
        few = f"; below {LOW_CLUSTERS} intervals are too narrow" if min(arms.clusters.values()) < LOW_CLUSTERS else ""
        sentences.append(f"Units come in clusters, which intervals take as independent ({counted}{few}).")
    if not unseen:
        sentences.append(
            "The model is not in the registry: nobody knows whether it was trained on units of this hold-out."
        )
    return sentences


def cut_off(cuts: Mapping[str, Cut]) -> list[str]:
    """A sentence for each outcome that was winsorised."""
    return [f"{name} is cut off at {number(cut.at)} ({cut.units:,} units had more)." for name, cut in cuts.items()]
