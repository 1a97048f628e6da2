"""What a campaign costs, what it brought against treating nobody, and what it will have cost by its end.

`gain_against_nobody` reads sums of assigned units; `forecast_cost` days of money; `cost_summary` says both in words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta

import numpy as np
import pandas as pd
from scipy import stats

COST_KINDS = ("treating", "incentive", "infrastructure", "expense")
LEAST_CONTROL, LEAST_DAYS = 30, 14
_WEEK = 7
_FEW = 15.0  # units' weight of how all units scatter against those of the control that are worth anything
_SPREAD_DAYS = 2.5  # days that count, at least, before spending says anything of days to come


@dataclass(frozen=True)
class WorthSums:
    """Sums over assigned units, each of which is worth y by its outcomes; of its control the weight is a = 1 / p, where
    p is the probability with which the design dealt it the control.

    units, worth     n and Σ y
    control          units of it
    a, ay            Σ a and Σ a y of the control
    b, by, byy       Σ b, Σ b y and Σ b y² of the control, where b = (1 - p) / p²
    yy               Σ y² of all units
    worthy           units of the control whose y is not 0
    """

    units: int
    worth: float
    control: int
    a: float
    ay: float
    b: float
    by: float
    byy: float
    yy: float
    worthy: int

    def __add__(self, other: WorthSums) -> WorthSums:
        names = ("units", "worth", "control", "a", "ay", "b", "by", "byy", "yy", "worthy")
        return WorthSums(*(getattr(self, name) + getattr(other, name) for name in names))


_NOTHING = WorthSums(0, 0.0, 0, a=0.0, ay=0.0, b=0.0, by=0.0, byy=0.0, yy=0.0, worthy=0)


@dataclass(frozen=True)
class CampaignGain:
    """Money: `value` with its standard `error`; both NaN where no control tells, and `note` says why."""

    value: float
    error: float
    note: str = ""

    def interval(self, z: float = stats.norm.ppf(0.975)) -> tuple[float, float]:
        """Ends of the interval, 95 % by default."""
        return self.value - z * self.error, self.value + z * self.error


def gain_against_nobody(sums: WorthSums) -> CampaignGain:
    """What all units are worth, less what they would be had nobody been treated.

    The control tells what they would be, each unit of which counts 1 / p (Hájek's mean): right for trials and for
    targeted campaigns that keep a control of everybody, whatever the levels are. The gain is that of these units, so
    its error is the error of the design alone: of whom chance made the control. Few units of it that are worth anything
    know little of how units scatter: then that of all units counts, too, where it is larger.

    Args:
        sums: Of all units.

    Returns:
        The gain, in money.
    """
    if sums.control < LEAST_CONTROL:
        return CampaignGain(
            math.nan, math.nan, f"{sums.control} units of the control are too few to tell what treating brought"
        )
    mean = sums.ay / sums.a
    own = sums.byy - 2 * mean * sums.by + mean * mean * sums.b
    overall = sums.worth / sums.units
    larger = max(own, sums.b * (sums.yy / sums.units - overall * overall))
    spread = (sums.worthy * own + _FEW * larger) / (sums.worthy + _FEW)
    value = sums.worth - sums.units * mean
    if not math.isfinite(value + spread):
        return CampaignGain(
            math.nan,
            math.nan,
            "sums of what units are worth are no number: see economics.value, and propensities near 0",
        )
    # Σ a estimates n; the mean is of the units that the weights stand for.
    return CampaignGain(value, sums.units / sums.a * math.sqrt(max(0.0, spread)))


@dataclass(frozen=True)
class CostForecast:
    """Cost of a campaign by its end: `value` with the ends of a 95 % interval, NaN where the days are too few."""

    value: float
    lower: float
    upper: float
    note: str = ""


def forecast_cost(daily: Mapping[date, float], today: date, end: date, first: date | None = None) -> CostForecast:
    """What a campaign will have cost by its end, from its days so far.

    A day to come costs what the same weekday cost so far; with fewer than two weeks, what a day did. Days scatter
    around that as they did, and days that follow each other are alike as they were (by their first autocorrelation).

    Where nearly all was spent on one or two days, as when all units are assigned at once, days to come cannot be judged
    by those that are over.

    Args:
        daily: {day: money}; a day between the first and `today` that is not there cost nothing.
        today: The last whole day that is known.
        end: The campaign's last day.
        first: The campaign's first day, by default the first that cost anything. What was paid before it or after
            `today` counts, and says nothing about days to come.

    Returns:
        The forecast; once the end is reached the cost is exact.
    """
    spent = float(sum(daily.values()))
    left = max(0, (end - today).days)
    if not left:
        return CostForecast(spent, spent, spent)
    first = min(daily, default=end) if first is None else first
    if first > today:
        return CostForecast(math.nan, math.nan, math.nan, "no day of the campaign is over yet")
    days = [first + timedelta(days=i) for i in range((today - first).days + 1)]
    money = np.array([daily.get(day, 0.0) for day in days])
    if problem := _no_days_to_go_by(spent, money):
        return CostForecast(math.nan, math.nan, math.nan, problem)
    coming = [today + timedelta(days=i + 1) for i in range(left)]
    if len(days) < LEAST_DAYS:
        note = f"{len(days)} days are too few for an interval: {LEAST_DAYS} are needed"
        return CostForecast(spent + left * float(money.mean()), math.nan, math.nan, note)
    weekday = np.array([day.weekday() for day in days])
    usual = np.array([money[weekday == one].mean() for one in range(_WEEK)])
    rest = money - usual[weekday]
    freedom = len(days) - _WEEK
    variance = float(rest @ rest) / freedom
    alike = float(rest[1:] @ rest[:-1] / (rest @ rest)) if variance > 0 else 0.0
    # Residuals around weekdays' means are less alike than the days are, by about (1 + 3 r) / n (Kendall).
    alike = min(0.9, max(0.0, alike + (1 + 3 * alike) / len(days)))
    wider = (1 + alike) / (1 - alike)
    # Days to come scatter, and so does each weekday's mean, which all of its days to come share.
    ahead = np.bincount([day.weekday() for day in coming], minlength=_WEEK)
    each = np.bincount(weekday, minlength=_WEEK)
    error = math.sqrt(variance * wider * (left + float((ahead**2 / each).sum())))
    half = float(stats.t.ppf(0.975, freedom / wider)) * error
    value = spent + float(usual[[day.weekday() for day in coming]].sum())
    least = spent if money.min() >= 0 else -math.inf  # what is spent is spent, unless money comes back
    return CostForecast(value, max(least, value - half), value + half)


def _no_days_to_go_by(spent: float, money: np.ndarray) -> str:
    """Why days to come cannot be judged by the days so far; empty where they can."""
    largest = float(np.abs(money).max())
    if not math.isfinite(spent + largest * len(money)):
        return "costs are too large to be added up: see economics.cost and bronze.expense"
    if largest == 0:
        return "nothing was spent yet"
    scaled = np.abs(money) / largest
    if scaled.sum() ** 2 < _SPREAD_DAYS * (scaled @ scaled):  # effective days, by Kish
        return (
            f"{scaled.max() / scaled.sum():.0%} of what was spent fell on one day, which says nothing of days to come"
        )
    return ""


def roi_rows(
    costs: pd.DataFrame, worth: Mapping[str, tuple[int, WorthSums]], why_not: str = ""
) -> list[dict[str, object]]:
    """Rows of gold.roi: of each model version whose plan assigned units, `none` before any plan, and `all`.

    What is shared, infrastructure and expenses, is divided among the versions by their units.

    Args:
        costs: Rows of gold.costs: kind, amount, model_version.
        worth: {model version: (treated units, sums of all its units)}.
        why_not: Why the gain is not known, whatever the sums are.

    Returns:
        {column: value} of each row; figures that are not known are NaN.
    """
    everything = sum((sums for _, sums in worth.values()), start=_NOTHING)
    treated = sum(n for n, _ in worth.values())
    rows = [_roi_row("all", costs, treated, everything, 1.0, why_not)]
    if set(worth) != {"none"}:
        for version, (n, sums) in sorted(worth.items()):
            mine = costs[costs["model_version"].fillna("none").eq(version) | costs["kind"].isin(COST_KINDS[2:])]
            rows.append(_roi_row(version, mine, n, sums, sums.units / max(1, everything.units), why_not))
    return rows


def _roi_row(
    version: str, costs: pd.DataFrame, treated: int, sums: WorthSums, share: float, why_not: str
) -> dict[str, object]:
    by_kind = costs.groupby("kind")["amount"].sum()
    money = {kind: float(by_kind.get(kind, 0.0)) * (share if kind in COST_KINDS[2:] else 1.0) for kind in COST_KINDS}
    cost = sum(money.values())
    gain = CampaignGain(math.nan, math.nan, why_not) if why_not else gain_against_nobody(sums)
    ends = (gain.value, *gain.interval())
    names = ("", "_lower", "_upper")
    return {
        **{"model_version": version, "units": sums.units, "treated": treated},
        **{"treating": money["treating"], "incentives": money["incentive"]},
        **{"infrastructure": money["infrastructure"], "expenses": money["expense"], "cost": cost},
        **{f"gain{name}": value for name, value in zip(names, ends, strict=True)},
        **{f"net{name}": value - cost for name, value in zip(names, ends, strict=True)},
        **{
            f"roi{name}": (value - cost) / cost if cost > 0 else math.nan
            for name, value in zip(names, ends, strict=True)
        },
        "note": gain.note,
    }


def cost_summary(row: Mapping[str, object], forecast: CostForecast | None) -> str:
    """Say the row `all` of gold.roi in sentences, and whether the budget holds.

    Args:
        row: The row, with `budget` and `ends` where there are any.
        forecast: Of the cost by the end; None without an end.

    Returns:
        A sentence a line.
    """
    number = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    names = ("treating", "incentives", "infrastructure", "expenses")
    parts = [f"{name} {number[name]:,.2f}" for name in names if number[name]]
    detail = f": {', '.join(parts)}" if parts else ""
    lines = [f"{row['treated']:,} of {row['units']:,} units were treated; it cost {number['cost']:,.2f}{detail}"]
    if math.isnan(number["gain"]):
        lines.append(f"what it brought is not known: {row['note']}")
    else:
        ends = f"{number['gain_lower']:,.2f} to {number['gain_upper']:,.2f}"
        net = f"{number['net']:,.2f} ({number['net_lower']:,.2f} to {number['net_upper']:,.2f})"
        lines.append(f"it brought {number['gain']:,.2f} ({ends}) against treating nobody, net of all costs {net}")
    if forecast is not None:
        lines.append(_forecast_sentence(forecast, row))
    return "\n".join(lines)


def _forecast_sentence(forecast: CostForecast, row: Mapping[str, object]) -> str:
    if math.isnan(forecast.value):
        return f"no forecast: {forecast.note}"
    known = not math.isnan(forecast.lower)
    between = f" ({forecast.lower:,.2f} to {forecast.upper:,.2f})" if known else f" ({forecast.note})"
    said = f"by {row['ends']} it will have cost {forecast.value:,.2f}{between}"
    budget = row.get("budget")
    if not isinstance(budget, int | float) or math.isnan(budget):
        return said
    return f"{said}: {budget_verdict(forecast, budget)}, which is {budget:,.2f}"


def budget_verdict(forecast: CostForecast, budget: float) -> str:
    """Whether a budget holds, in words: the whole interval has to lie on one side for a verdict.

    Args:
        forecast: Of the cost by the end.
        budget: Money.

    Returns:
        `within the budget`, `over the budget`, or `perhaps over the budget` where the forecast is on one side of it and
        its interval, or without one anything, may be on the other.
    """
    sure = not math.isnan(forecast.lower)
    if sure and forecast.upper <= budget:
        return "within the budget"
    return "over the budget" if sure and forecast.lower > budget else "perhaps over the budget"


def prices_of_days(runs: pd.DataFrame, rates: Mapping[str, float]) -> list[dict[str, object]]:
    """Rows of gold.costs for the time that jobs took.

    Args:
        runs: job, started_at and seconds of each.
        rates: {job: money an hour}, `other` for those not named.

    Returns:
        {column: value}, one a day and job that has a rate.
    """
    sums: dict[tuple[date, str], float] = {}
    for job, started_at, seconds in zip(*(runs[name] for name in ("job", "started_at", "seconds")), strict=True):
        if job in rates or "other" in rates:
            key = pd.Timestamp(started_at).date(), str(job)
            sums[key] = sums.get(key, 0.0) + float(seconds) / 3600
    return [
        {
            **{"day": day, "kind": "infrastructure", "item": job, "quantity": hours},
            "amount": hours * rates.get(job, rates.get("other", 0.0)),
        }
        for (day, job), hours in sorted(sums.items())
    ]
