"""Error budgets: how fast one burns, when that pages, how long an outage takes to page, how often noise does.

A service with an objective of 99 % may fail one request in a hundred: that is its budget. A burn rate of 1 uses it up
in exactly the period it is for (30 days); 14.4 uses 2 % of it in an hour. An alert needs a long window, which says that
it matters, and a short one, which says that it still goes on (The Site Reliability Workbook, Google 2018, chapter 5).

Few requests make a ratio of anything: one error of one request is 100 %. So an alert also needs `least_errors` errors
in its long window: as many as a service that is in order brings together less than once in ten years.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import binom

from uplift_spark.errors import ConfigError
from uplift_spark.monitoring.kpis import Kpi, Severity

PERIOD_DAYS = 30
"""Days that an error budget is for."""

FALSE_ALARMS_A_YEAR = 0.1
_MINUTES_A_YEAR = 365.25 * 24 * 60


@dataclass(frozen=True)
class BurnWindow:
    """A burn rate that calls somebody: over `factor` in the last `long` and in the last `short` minutes."""

    factor: float
    long: int
    short: int
    severity: Severity

    @property
    def name(self) -> str:
        """Length of the long window, as Prometheus writes it."""
        return duration_text(self.long)


BURN_WINDOWS = (
    BurnWindow(14.4, 60, 5, "page"),
    BurnWindow(6, 6 * 60, 30, "page"),
    BurnWindow(3, 24 * 60, 2 * 60, "ticket"),
    BurnWindow(1, 3 * 24 * 60, 6 * 60, "ticket"),
)


def duration_text(minutes: int) -> str:
    """Write minutes as Prometheus does.

    Args:
        minutes: Whole minutes.

    Returns:
        As in 5m, 6h, 3d.
    """
    for unit, size in (("d", 24 * 60), ("h", 60)):
        if minutes % size == 0:
            return f"{minutes // size}{unit}"
    return f"{minutes}m"


def objective_of(kpi: Kpi) -> float:
    """Find the share of good events that a KPI aims at.

    Args:
        kpi: A share with a target.

    Returns:
        Between 0 and 1, as .99.

    Raises:
        ConfigError: The KPI is no share, or its target leaves no budget.
    """
    if kpi.measure != "share" or kpi.target is None:
        raise ConfigError(f"KPI {kpi.name} has no error budget: it is no share with a target")
    objective = kpi.target if kpi.better == "above" else 1 - kpi.target
    if not 0 < objective < 1:
        raise ConfigError(
            f"monitoring.kpis.{kpi.name}.target is {kpi.target:g}, which leaves no error budget: aim at a share "
            "between 0 and 1"
        )
    return objective


def usable_windows(objective: float) -> tuple[BurnWindow, ...]:
    """List the burn rates that a total outage reaches: below an objective of 93.06 %, 14.4 never fires.

    Args:
        objective: Share of good events aimed at.

    Returns:
        Those of `BURN_WINDOWS` that can fire.
    """
    return tuple(window for window in BURN_WINDOWS if window.factor * (1 - objective) < 1)


def minutes_to_alert(
    window: BurnWindow, objective: float, error_share: float, per_minute: float = math.inf, least: int = 1
) -> float:
    """How long errors go on before the window's alert fires; before, everything was in order.

    Args:
        window: The burn rate.
        objective: Share of good events aimed at.
        error_share: Share of requests that fail: 1 is a total outage.
        per_minute: Requests a minute.
        least: Errors that the long window needs, see `least_errors`.

    Returns:
        Minutes; infinite where such errors never fire it: 8.64 for a total outage at 99 %, 43.2 at 95 %.
    """
    threshold = window.factor * (1 - objective)
    if error_share <= threshold:
        return math.inf
    minutes = max(threshold / error_share * window.long, least / (per_minute * error_share))
    return minutes if minutes <= window.long else math.inf


def false_alarms_a_year(window: BurnWindow, objective: float, n: int, least: int) -> float:
    """Bound how often the window's alert fires a year though the service is in order.

    In order: errors come independently, at half the alert's burn rate, at most at the rate that the objective allows.
    An alarm can only begin with an error, so there are at most as many as there are errors that meet `least` - 1 others
    in the long window before them; their expectation is the bound. The short window makes it smaller still.

    Args:
        window: The burn rate.
        objective: Share of good events aimed at.
        n: Requests in a long window.
        least: Errors that the long window needs.

    Returns:
        Expected number of false alarms a year, at most.
    """
    budget = 1 - objective
    rate = budget * min(1.0, window.factor / 2)
    needed = max(least, math.floor(window.factor * budget * n + 1e-9) + 1)
    windows = _MINUTES_A_YEAR / window.long
    return windows * n * rate * float(binom.sf(needed - 2, n - 1, rate))


def least_errors(window: BurnWindow, objective: float, a_year: float = FALSE_ALARMS_A_YEAR) -> int:
    """How many errors the long window must hold, so that noise fires the alert less than `a_year` times a year.

    Args:
        window: The burn rate.
        objective: Share of good events aimed at.
        a_year: False alarms a year that are accepted, at whatever traffic.

    Returns:
        A number of errors, 2 at least: one error says nothing.
    """
    for least in range(2, 400):
        if most_false_alarms(window, objective, least) <= a_year:
            return least
    raise ConfigError(f"an objective of {objective:.4%} has no alert that noise leaves alone: aim higher")


def most_false_alarms(window: BurnWindow, objective: float, least: int) -> float:
    """Bound the false alarms a year at the traffic that has most of them.

    Args:
        window: The burn rate.
        objective: Share of good events aimed at.
        least: Errors that the long window needs.

    Returns:
        The largest of `false_alarms_a_year`.
    """
    share = window.factor * (1 - objective)
    # The bound grows with n as long as the same number of errors suffices: its peaks are where one more is needed, give
    # or take the rounding of the division.
    edges = (math.ceil(needed / share) for needed in range(least, least + 30))
    peaks = {max(1, edge - step) for edge in edges for step in (0, 1, 2)}
    return max(false_alarms_a_year(window, objective, n, least) for n in peaks)
