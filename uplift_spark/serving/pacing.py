"""Budget pacing: the price of money at each moment of a day, so that the day's budget lasts, and is spent.

Each decision costs its level's cost. The log of decisions counts requests and money by quarters of an hour, whichever
worker decides and however often the service is started again, and refuses what no longer fits. From those counts
follows how many requests are still to come: the day's curve of earlier days, at today's height. The published units say
what a request costs at each price of money, today's spending by how much visitors differ from them. The price is the
one at which the requests to come cost what is left. It is found anew every second from the counts alone: nothing is
remembered that a restart could lose, and no step size has to be tuned. (Dual prices that follow a budget by feedback:
Balseiro and Gur, Management Science 65, 2019.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np

from uplift_spark.errors import ConfigError
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.store import Manifest

SLOTS = 96
"""Quarters of an hour of a day."""
MICRO = 1_000_000
"""Money is counted in whole millionths: sums are exact."""
MOST_MONEY = 1e12
"""Of a day: SQLite's sums of millionths hold nine times as much."""

_POINTS = 200  # of a curve
_LATE = 4  # slots by which a first day may begin later than others do
_EVEN = 0.1  # days' weight of a day without hours in the curve of the day
_AT_FIRST = 0.05  # share of a usual day whose weight the usual height has against today's
_FEW = 20.0  # decisions' weight of the earlier days' ratio of spending against today's

DayCounts = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of a day by quarter of an hour, each [SLOTS]: requests, millionths that were foreseen for them, millionths spent."""


@dataclass(frozen=True)
class Spend:
    """What a decision costs, for the log to count or to refuse.

    day       in the campaign's time zone, and the slot in it
    cost      millionths of the level
    foreseen  millionths that a request costs on average at the price of the moment
    most      millionths of the dearest level: with less than that left nothing more is decided, whichever level it is,
              so that the end of a budget depends on no draw
    budget    millionths of the day
    """

    day: str
    slot: int
    cost: int
    foreseen: int
    most: int
    budget: int


def spend_curve(effects: np.ndarray, costs: np.ndarray, value: float, net: bool) -> tuple[tuple[float, float], ...]:
    """Compute what a unit costs on average at each price of money.

    Args:
        effects: On each unit of each treated level, in the outcome's unit, float [n, levels]; NaN where not known.
        costs: Of each treated level, float [levels].
        value: Of one unit of the outcome.
        net: Whether a level's own cost is taken off what it brings.

    Returns:
        (price, mean cost), prices rising from 0 to the one at which nothing that costs is worth it.
    """
    gain = np.where(np.isfinite(effects), effects * value - costs * float(net), -np.inf)
    bought = costs > 0
    if not len(gain) or not bought.any():
        return ((0.0, 0.0),)
    ends = (gain[:, bought] / costs[bought]).max(axis=1)
    ends = ends[ends > 0]
    if not len(ends):
        return ((0.0, 0.0),)
    steps = np.quantile(ends, np.linspace(0, 1, _POINTS))
    prices = np.unique([0.0, *steps, np.nextafter(steps[-1], np.inf)])
    return tuple((float(price), _mean_cost(gain, costs, price)) for price in prices)


def _mean_cost(gain: np.ndarray, costs: np.ndarray, price: float) -> float:
    net = gain - costs * price
    best = net.argmax(axis=1)
    return float(np.where(net.max(axis=1) > 0, costs[best], 0.0).mean())


class Pacer:
    """The price of money by the clock and by what the log counts.

    Args:
        manifest: The version that is served.
        conf: Section `serving`, with a budget.

    Raises:
        ConfigError: The version does not say what decisions cost, or nothing that it decides costs anything.
    """

    def __init__(self, manifest: Manifest, conf: Serving) -> None:
        assert conf.budget is not None
        if "price" not in manifest.policy or not manifest.spend:
            raise ConfigError(
                "serving.budget needs levels whose cost is the same for all units, and limits that are all of money: "
                "set economics and policy so and run `uplift publish` again, or leave serving.budget out"
            )
        self._zone = ZoneInfo(conf.timezone)
        # Costs are rounded up and the budget down, beyond what floats cannot hold: a budget is never exceeded.
        micro = {level: round(cost * MICRO, 3) for level, cost in manifest.policy["cost"].items()}
        self._costs = {level: math.ceil(cost) for level, cost in micro.items()}
        self._most = max(self._costs.values(), default=0)
        if conf.budget > MOST_MONEY:
            raise ConfigError(
                f"serving.budget is {conf.budget:g}, and at most {MOST_MONEY:g} can be counted in millionths: write "
                "budget, economics.value and economics.cost in a larger unit of money"
            )
        if not 0 < self._most <= conf.budget * MICRO:
            raise ConfigError(
                f"serving.budget is {conf.budget:g} and the dearest level costs {self._most / MICRO:g}: a budget paces "
                "levels that cost something, and a day's pays for one at least"
            )
        self._budget = math.floor(round(conf.budget * MICRO, 3))
        prices, costs = np.asarray(manifest.spend, np.float64).T
        self._prices, self._mean_costs = prices, costs * MICRO
        held, share, levels = conf.holdout, conf.exploration, len(manifest.levels)
        self._random = (1 - held) * share * sum(self._costs.values()) / levels
        self._by_policy = (1 - held) * (1 - share)

    def price(self, at: float, days: Mapping[str, DayCounts]) -> float:
        """The price of money at a moment.

        Args:
            at: Seconds since 1970.
            days: {day: counts} of today and of earlier days; see `DecisionLog.spending`. The oldest may not be whole.

        Returns:
            What a unit of money counts for beside itself, at least 0.
        """
        day, part = self.day(at), self._part(at)
        nothing = np.zeros(SLOTS)
        requests, foreseen, spent = days.get(day, (nothing,) * 3)
        before = [counts for other, counts in sorted(days.items()) if other < day]
        until, to_come = _requests_to_come(part, requests, _whole_days([one[0] for one in before], requests))
        usual = _ratio(sum(one[2].sum() for one in before), sum(one[1].sum() for one in before), self._most, 1.0)
        ratio = _ratio(spent.sum(), foreseen.sum(), self._most, usual)
        left = max(0.0, self._budget * until - float(spent.sum()))
        wanted = (left / (to_come * ratio) - self._random) / self._by_policy
        return float(np.interp(wanted, self._mean_costs[::-1], self._prices[::-1]))

    def spend(self, level: str, at: float, price: float) -> Spend:
        """What a decision at a moment costs.

        Args:
            level: Of the decision.
            at: Seconds since 1970.
            price: From `price`.

        Returns:
            For the log.
        """
        policy = float(np.interp(price, self._prices, self._mean_costs))
        foreseen = round(self._random + self._by_policy * policy)
        slot = min(int(self._part(at) * SLOTS), SLOTS - 1)
        return Spend(self.day(at), slot, self._costs.get(level, 0), foreseen, self._most, self._budget)

    def spent(self, at: float, days: Mapping[str, DayCounts]) -> float:
        """Money that the day's decisions have cost so far."""
        counts = days.get(self.day(at))
        return 0.0 if counts is None else float(counts[2].sum()) / MICRO

    def day(self, at: float) -> str:
        """The day of a moment in the campaign's time zone, YYYY-MM-DD."""
        return datetime.fromtimestamp(at, self._zone).date().isoformat()

    def _part(self, at: float) -> float:
        """How much of the day is over."""
        now = datetime.fromtimestamp(at, self._zone)
        return (now.hour * 3600 + now.minute * 60 + now.second + now.microsecond / 1e6) / 86400


def _whole_days(before: list[np.ndarray], today: np.ndarray) -> list[np.ndarray]:
    """Days with requests, the oldest of them only if it did not begin later than the others.

    The service may have been started in its evening: by such a curve all would still be to come at any time of the day.
    """
    before = [one for one in before if one.sum()]
    if not before:
        return []
    begun = [int(one.argmax()) for one in (one > 0 for one in (*before, today)) if one.any()]
    return before[1:] if begun[0] > min(begun) + _LATE else before


def _requests_to_come(part: float, today: np.ndarray, before: list[np.ndarray]) -> tuple[float, float]:
    """(share of the budget to have spent by then, requests until then, at least 1).

    By the curve of earlier days, at the height that today has had, that is all of it, and midnight. On the first day
    nobody knows the curve: money is spent evenly by the clock, hour by hour, as many coming in the next as in the
    busier of the last hour and the day's mean hour.
    """
    if not before:
        hour = min(1.0 / 24, 1.0 - part)
        first = max(0, min(int(part * SLOTS), SLOTS - 1) - 3)
        rates = (today.sum() / max(part, 1.0 / 24), today[first:].sum() / max(part - first / SLOTS, 1.0 / 96))
        return part + hour, max(1.0, float(max(rates)) * hour)
    curve = sum((one / one.sum() for one in before), np.full(SLOTS, _EVEN / SLOTS)) / (len(before) + _EVEN)
    total = float(np.mean([one.sum() for one in before]))
    over = float(np.interp(part * SLOTS, np.arange(SLOTS + 1), [0.0, *np.cumsum(curve)]))
    height = (today.sum() + _AT_FIRST * total) / (over * total + _AT_FIRST * total)
    return 1.0, max(1.0, float(height) * total * (1.0 - over))


def _ratio(spent: float, foreseen: float, most: float, usual: float) -> float:
    """By how much requests cost more than the published units would."""
    few = _FEW * most
    return (float(spent) + few * usual) / (float(foreseen) + few)
