"""What pages are made from: rows of gold tables of one campaign, as frames (`CampaignTables`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from uplift_spark.evaluation.drivers import DRIVER_COLUMNS
from uplift_spark.evaluation.report import PageData, Verdict
from uplift_spark.gold_views import NOT_OPEN
from uplift_spark.roles import Direction

GOLD_OF_PAGES = (
    *("lift_table", "uplift_curve", "uplift_metrics", "policy_limits", "policy_curve", "policy_scenarios", "kpi"),
    *("lift_driver", "drift", "findings", "alerts", "retrain", "canary", "experiment", "readout", "experiment_health"),
    "roi",
)
"""Names of the gold tables that pages show rows of; in none of them anybody is a row."""

ALERT_DAYS = 7
"""Days of which pages list what alerts did."""


@dataclass(frozen=True)
class PolicyFacts:
    """What the configuration says of plans.

    value    {outcome: money}           cost  {level: money}
    budget   None for none              net   costs are taken off the gain (objective profit)
    safe     the lower ends count       other limits beside the budget, by name
    by_unit  levels whose cost differs by unit
    """

    value: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None
    net: bool = True
    safe: bool = False
    other: tuple[str, ...] = ()
    by_unit: tuple[str, ...] = ()


@dataclass(frozen=True)
class CampaignTables:
    """One campaign's rows.

    frames     {name of a gold table: its rows of the campaign's newest run, or of all windows and events}; a table that
               is not there has no entry, an empty frame has no row of the campaign; figures that are null or infinite
               are not known (NaN)
    decisions  units, gain and cost of the newest plan by treatment and reason; None where they were not read
    whatif     `whatif_sums`; None where the scores were not read, and `why_not` says why
    widths     mean width of the predictions' intervals and units by level; empty where they were not read
    histogram  {level: (edges, counts) of predicted uplift}
    versions   (table, rows, Delta version)
    plan_run   run of the plan that `decisions` are of, and scores_run of the scores; empty where they were not read
    hours      of a monitored window
    kpi_level  level of the intervals of KPIs
    now        when the page was written
    """

    campaign: str
    control: str
    outcome: str
    direction: Direction
    policy: PolicyFacts
    frames: Mapping[str, pd.DataFrame]
    decisions: pd.DataFrame | None = None
    whatif: Mapping[str, Any] | None = None
    why_not: str = ""
    widths: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    histogram: Mapping[str, tuple[list[float], list[int]]] = field(default_factory=dict)
    versions: tuple[tuple[str, int, int], ...] = ()
    plan_run: str = ""
    scores_run: str = ""
    hours: float = 24.0
    kpi_level: float = 0.999
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    simulated: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "frames", {name: _with_unknowns(rows) for name, rows in self.frames.items()})

    def rows(self, name: str) -> pd.DataFrame:
        """Rows of a gold table; none where it is not there."""
        return self.frames.get(name, pd.DataFrame())

    @cached_property
    def page(self) -> PageData:
        """The tables of the newest lift run as the report takes them."""
        empty = {
            "lift_table": ["outcome", "treatment", "cut", "bucket", "n", "predicted_uplift", "uplift"],
            "uplift_curve": ["outcome", "treatment", "fraction", "gain", "gain_lower", "gain_upper"],
            "uplift_metrics": ["outcome", "treatment", "metric", "value", "lower", "upper"],
            "lift_driver": list(DRIVER_COLUMNS),
        }
        lift, curve, metrics, drivers = (
            self.rows(name) if len(self.rows(name)) else pd.DataFrame(columns=columns)
            for name, columns in empty.items()
        )
        rates = frozenset(
            str(outcome) for outcome, rows in lift.groupby("outcome") if "mean_treated" in rows and _are_counts(rows)
        )
        return PageData(
            self.campaign, self.control, lift, curve, metrics, units=self.units, date="", rates=rates,
            value=self.policy.value, cost=self.policy.cost, direction=self.direction,
            plan=self.rows("policy_curve"), drivers=drivers,
        )  # fmt: skip

    @property
    def verdict(self) -> Verdict | None:
        """The advice on the level to use; None without a lift table."""
        return self.page.best

    @property
    def units(self) -> int:
        """Units that the plan decided about; 0 where it was not read."""
        return 0 if self.decisions is None or self.decisions.empty else int(self.decisions["n"].sum())

    @property
    def scale(self) -> float:
        """What effects on the outcome are multiplied by to be shown: rates are in percentage points."""
        return 100.0 if self.outcome in self.page.rates else 1.0

    @property
    def unit(self) -> str:
        """What effects are counted in, in words."""
        return "percentage points" if self.scale == 100 else self.outcome

    @cached_property
    def plan(self) -> dict[str, float] | None:
        """The row of gold.policy_curve at the plan's own budget; None without a plan or a budget."""
        curve, limits = self.rows("policy_curve"), self.rows("policy_limits")
        curve = curve[curve["budget"].notna()] if len(curve) else curve
        if curve.empty:
            return None
        budget = limits.loc[limits["name"] == "spend", "most"].dropna() if len(limits) else pd.Series(dtype=float)
        most = float(budget.iloc[0]) if len(budget) else self.policy.budget
        if most is None or not np.isfinite(most):
            most = float(curve["budget"].max())
        row = curve.loc[(curve["budget"] - most).abs().idxmin()]
        names = ("budget", "treated", "cost", "gain", "observed", "observed_lower", "observed_upper")
        return {name: float(row[name]) for name in names}

    @cached_property
    def kpis(self) -> pd.DataFrame:
        """gold.kpi: of each window, KPI and cut the row that was known last; windows in their order."""
        rows = self.rows("kpi")
        if rows.empty:
            return rows
        keys = ["window_start", "window_end", "kpi", "cut"]
        last = rows.sort_values("as_of", kind="stable").drop_duplicates(keys, keep="last")
        return last.sort_values(["window_end", "kpi", "cut"], kind="stable").reset_index(drop=True)

    @cached_property
    def kpis_now(self) -> pd.DataFrame:
        """Of `kpis` the newest window's."""
        return self.kpis[self.kpis["window_end"] == self.kpis["window_end"].max()] if len(self.kpis) else self.kpis

    def of_newest_window(self, name: str) -> pd.DataFrame:
        """Rows of gold.drift or gold.findings of the newest window that was monitored."""
        rows = self.rows(name)
        if rows.empty or self.kpis.empty:
            return rows
        mine = rows[rows["window_end"] == self.kpis["window_end"].max()]
        return mine[mine["as_of"] == mine["as_of"].max()] if len(mine) else mine

    @cached_property
    def open_alerts(self) -> pd.DataFrame:
        """The newest event of each alert that is neither over nor closed."""
        rows = self.rows("alerts")
        if rows.empty:
            return rows
        last = rows.sort_values("sequence").drop_duplicates("alert", keep="last")
        return last[~last["event"].isin(NOT_OPEN)].sort_values("at")

    @cached_property
    def recent_alerts(self) -> pd.DataFrame:
        """What alerts did in the last ALERT_DAYS days, the newest first: one that fired and is over is among them."""
        rows = self.rows("alerts")
        if rows.empty:
            return rows
        rows = rows.assign(at=pd.to_datetime(rows["at"], utc=True))
        since = pd.Timestamp(self.now) - pd.Timedelta(days=ALERT_DAYS)
        mine = rows[(rows["at"] >= since) & (rows["event"] != "pending")]
        return mine.sort_values(["at", "sequence"], ascending=False, kind="stable")

    @cached_property
    def last_canary(self) -> dict[str, Any] | None:
        """The newest row of gold.canary."""
        rows = self.rows("canary")
        return None if rows.empty else {str(k): v for k, v in rows.sort_values("step").iloc[-1].items()}


def _with_unknowns(rows: pd.DataFrame) -> pd.DataFrame:
    """A column without any value as NaN, and infinite figures, too: neither can be shown."""
    empty = {name: np.nan for name in map(str, rows) if rows[name].dtype == object and rows[name].isna().all()}
    rows = rows.assign(**empty) if empty else rows
    infinite = [name for name in map(str, rows.select_dtypes("float")) if np.isinf(rows[name]).any()]
    return rows.assign(**{name: rows[name].where(np.isfinite(rows[name])) for name in infinite}) if infinite else rows


def _are_counts(rows: pd.DataFrame) -> bool:
    """Whether the outcome is 0 or 1: every mean is a whole number of units over the units."""
    for mean, n in (("mean_treated", "n_treated"), ("mean_control", "n_control")):
        values, units = rows[mean].to_numpy(np.float64), rows[n].to_numpy(np.float64)
        known = np.isfinite(values)
        total = values[known] * units[known]
        if not (
            (values[known] >= 0) & (values[known] <= 1) & (np.abs(total - np.rint(total)) < 1e-6 * (1 + total))
        ).all():
            return False
    return True
