"""Say how many units a trial needs, or what a trial of so many units can show.

Reads no table and starts no Spark. Without --units it prints the sample size for --lift; with --units the power for
--lift and the smallest lift that such a trial shows.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import typer

from uplift_spark.console import main_command, out, words_table
from uplift_spark.errors import ConfigError, hint
from uplift_spark.experiments.design import (
    PlannedMetric,
    TrialDesign,
    days_needed,
    minimum_effect,
    power,
    sample_size,
    sample_size_for_gap,
)

_OPTIONS = ("kind", "mean", "sd")  # of a metric, which have options of their own
METRIC_KEYS = {field.name for field in fields(PlannedMetric)} - {*_OPTIONS}
TEXT_KEYS = {field.name for field in fields(TrialDesign) if field.type == "str"}
KEYS = {field.name for field in fields(TrialDesign)} | METRIC_KEYS


def power_keys(pairs: list[str]) -> dict[str, Any]:
    """Values of `--set KEY=VALUE`: fields of `TrialDesign` and `PlannedMetric`.

    Args:
        pairs: Texts such as `shares=0.4,0.3,0.3` or `icc=.02`.

    Returns:
        {key: value}, shares as a tuple of numbers.

    Raises:
        ConfigError: A key is unknown, or its value is not what it takes.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in KEYS:
            raise ConfigError(f"--set {pair!r} is no KEY=VALUE of a trial's design: {hint(key, KEYS)}")
        try:
            if key == "shares":
                values[key] = tuple(float(share) for share in text.split(","))
            elif key == "two_sided":
                values[key] = {"true": True, "false": False}[text.lower()]
            else:
                values[key] = text if key in TEXT_KEYS else float(text)
        except (ValueError, KeyError):
            kind = {"shares": "numbers with commas between them", "two_sided": "true or false"}.get(key, "a number")
            raise ConfigError(f"--set {key}={text} has a value that {key} does not take: use {kind}") from None
    return values


def power_rows(metric: PlannedMetric, trial: TrialDesign, lift: float, target: float) -> tuple[list[list[str]], int]:
    """(what, figure) of the trial that a relative lift needs, and its units."""
    effect = metric.lift(lift)
    size = sample_size(metric, trial, effect, target)
    gap = sample_size_for_gap(metric, trial, effect, target=target)
    rows = [[f"units of arm {k}" if k else "units of the control", f"{n:,}"] for k, n in enumerate(size.units)]
    if size.clusters is not None:
        rows.append(["clusters, control first", ", ".join(f"{n:,}" for n in size.clusters)])
    rows.append(["units of the trial", f"{size.total:,}"])
    rows.append(["units to tell apart two halves whose effects differ by as much", f"{gap.total:,}"])
    return rows, size.total


def shown_rows(metric: PlannedMetric, trial: TrialDesign, lift: float, target: float, units: int) -> list[list[str]]:
    """(what, figure) of what a trial of so many units can show."""
    smallest = minimum_effect(metric, trial, units, target, fall=metric.lift(lift) < 0)
    return [
        [f"power for a lift of {lift:.4g}", f"{power(metric, trial, metric.lift(lift), units):.4f}"],
        [f"smallest effect with power {target:g}", f"{smallest:.6g}"],
        ["the same as a lift", f"{smallest / metric.mean:.4%}"],
    ]


def command(
    kind: Annotated[str, typer.Argument(help="conversion, count or revenue.")],
    mean: Annotated[float, typer.Option("--mean", help="Mean of the control: a rate, a count, money.")],
    lift: Annotated[float, typer.Option("--lift", help="Relative lift to show: .03 is 3 %.")] = 0.03,
    sd: Annotated[float | None, typer.Option("--sd", help="Standard deviation of revenue.")] = None,
    units: Annotated[int | None, typer.Option("--units", help="Units of the trial, all arms together.")] = None,
    target: Annotated[float, typer.Option("--power", help="Power that is wanted.")] = 0.8,
    per_day: Annotated[float | None, typer.Option("--per-day", help="New units a day: prints the days.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=f"One of {', '.join(sorted(KEYS))}.")
    ] = None,
) -> None:
    """Print sample size, or power and smallest effect."""
    values = power_keys(set_ or [])
    of_metric = {key: values.pop(key) for key in METRIC_KEYS & set(values)}
    metric, trial = PlannedMetric(kind, mean, sd=sd, **of_metric), TrialDesign(**values)
    if metric.mean == 0:
        raise ConfigError("--mean is 0, of which no lift is a share: give the control's mean")
    if units is None:
        rows, needed = power_rows(metric, trial, lift, target)
    else:
        rows, needed = shown_rows(metric, trial, lift, target, units), units
    if per_day is not None:
        rows.append(["days, in whole weeks", f"{days_needed(needed, per_day)}"])
    out().print(words_table(("", ""), rows))


if __name__ == "__main__":
    main_command(command, __doc__)
