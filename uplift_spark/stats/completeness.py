"""Whether events are all there: how many are still under way, days whose events are missing, arms not reached (R1.2).

All three work on counts by whole days and by arm, which merge; none assumes a distribution of delays or of rates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

# A day with less than this share of the events expected of it is taken for an outage. Weekends and campaigns have
# days that are weak without anything being lost.
OUTAGE = 0.25


def known_shares(day: np.ndarray, delay: np.ndarray, n: np.ndarray, days: int) -> np.ndarray:
    """Probability that an event of each of the last `days` days is known by now, float64 [days], today's first.

    n[i] events happened day[i] days before now and became known delay[i] days later, delay <= day. What happened
    lately is seen only if it was reported fast; the product of reversed hazards, as of claims that are under way
    (chain ladder; Kalbfleisch and Lawless 1989), corrects for that without a model. 1 without any event.
    """
    longest = int(delay.max(initial=0))
    share = np.ones(longest + 1)
    for d in range(longest, 0, -1):
        seen = day >= d
        at, before = n[seen & (delay == d)].sum(), n[seen & (delay <= d)].sum()
        share[d - 1] = share[d] * (1.0 - at / before if before else 1.0)
    return share[np.minimum(np.arange(days), longest)]


def completeness(day: np.ndarray, n: np.ndarray, share: np.ndarray) -> float:
    """Events known over events expected to have occurred, from `known_shares`; NaN without any event."""
    known = n.sum()
    return float(known / (n / share[day]).sum()) if known else float("nan")


@dataclass(frozen=True)
class MissingDay:
    """A day, counted back from now, whose events are missing: how many are `known`, how many were `expected`."""

    day: int
    known: int
    expected: float


def missing_days(units: np.ndarray, events: np.ndarray, share: np.ndarray, alpha: float) -> list[MissingDay]:
    """Days with far fewer events than units of the same age have on other days; latest first.

    units   assigned s whole days ago [S]
    events  units' first events at age a, in whole days since the assignment, of those assigned s days ago [S, A]
    share   `known_shares` of at least the last S days
    alpha   bound on the probability that any day of sound data is found, whatever their number

    A day is found when its rate is significantly below OUTAGE of that at the same ages on other days: given the events
    at each age, those of the day are a sum of independent draws, and the multiplicative Chernoff bound on its lower
    tail needs no large numbers. Only the first event of a unit is a draw. Campaigns that assign all units on one day
    have no other days to compare with: nothing is found.
    """
    day, age = np.indices((max(0, len(units) - 1), events.shape[1]))
    since = day + age + 1  # by now the units have lived through that age
    inside, at = since < len(units), (np.minimum(since, len(units) - 1), age)
    seen = np.where(inside, events[at], 0)
    risk = np.where(inside, (units[:, None] - np.cumsum(events, 1) + events)[at], 0) * share[day]
    others = np.maximum(0.0, risk.sum(0) - risk)
    odds = np.where(others > 0, OUTAGE * risk, 0.0)
    bound = (seen.sum(0) * odds / np.maximum(odds + others, 1e-300)).sum(1)
    known = np.where(others > 0, seen, 0).sum(1)
    limit = alpha / max(1, int((bound > 0).sum()))
    found = [j for j in range(len(bound)) if _lower_tail(known[j], bound[j]) <= limit]
    return [MissingDay(j, int(known[j]), float(bound[j] / OUTAGE)) for j in found]


def _lower_tail(known: int, expected: float) -> float:
    """Bound on P(X <= known) of a sum of independent draws with this mean."""
    if known >= expected:
        return 1.0
    return float(np.exp(known - expected + (known * np.log(expected / known) if known else 0.0)))


@dataclass(frozen=True)
class Unreached:
    """An arm whose deliveries fail more often than the other arms'; rates are delivered over logged."""

    arm: str
    rate: float
    others: float
    p_value: float


def unreached_arms(sends: Mapping[str, tuple[int, int]], alpha: float, gap: float) -> list[Unreached]:
    """Arms delivered less than the rest, by more than `gap` and by more than chance; sends is {arm: (delivered, all)}.

    Fisher's exact test, one-sided, of each arm against the others together, Bonferroni over arms: equal rates are
    called unequal with probability alpha at most.
    """
    from scipy.stats import hypergeom

    delivered, total = (sum(one[i] for one in sends.values()) for i in (0, 1))
    found = []
    for arm, (mine, n) in sends.items():
        if not n or n == total:
            continue
        p = min(1.0, len(sends) * float(hypergeom.cdf(mine, total, delivered, n)))
        rate, others = mine / n, (delivered - mine) / (total - n)
        if p <= alpha and others - rate > gap:
            found.append(Unreached(arm, rate, others, p))
    return found
