"""What the rows allow to claim: where a level is as good as never received, and which have too few rows or events."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import scipy.stats

from uplift_spark.errors import DataError
from uplift_spark.forest.grow import Baseline, CrossfitLimits, crossfit_trees
from uplift_spark.forest.trees import BLOCK, frozen, leaves_of
from uplift_spark.stats.intervals import wilson_interval
from uplift_spark.stats.moments import MIN_UNITS, normal_quantile
from uplift_spark.stats.sampling import folds_of

# --------------------------------------------------------------------------------------------------------------------
# In a trial nothing tells the level that a unit received. Training tests that on the planning sample, in two steps: a
# chi-square test of every feature's bins against the levels, which costs next to nothing and settles nearly every
# trial; and, where it finds something, cross-fitted trees of each level's propensity e_k(x). These are believed if they
# foretell the levels of the fold that they did not see: the likelihood ratio of their propensities to the arms' shares
# is an e-value, which by chance exceeds CHANCE with probability 1 / CHANCE at most, whatever the trees are like
# (Vovk & Wang 2021).
#
# Where the test fails, rows weigh h(x) / e_k(x) with h(x) = 1 / Σ 1 / e_k(x), so that in every leaf the levels' rows
# have the same features (overlap weights: Li, Morgan & Zaslavsky 2018; Li & Li 2019). With the outcome centred this
# centres the treatment, too: of two levels the treated weigh 1 - e, the control e, and rows whose level was sure count
# nothing. Rows with logged propensities keep those; only rows without a comparable one are left out.
#
# A level lacks at a unit whose neighbourhood has less than LACKING of the level's share, one unit more being added to
# those that are there: nine that the share would bring and none there is too few. Effects of that level, or of all
# levels if the control lacks, are then carried over from elsewhere, and are flagged.

SCREENED = 1e-3  # p-value, times the number of features, from which propensities are looked into
CHANCE = 1e4  # e-value that is believed
LACKING = 0.1  # of a level's share: where less of the rows received it, it lacks
MOST_LACKING = 0.9  # of all rows: where more have nothing to compare with, training refuses
LEAF_ROWS = 10.0  # rows with the level, and without it, that the shares bring to a leaf of propensity trees


@nb.njit(cache=True, nogil=True)
def leaf_averages(routes, values, bins, out):
    """Mean leaf value over all trees: bins uint8 [n, p] -> out float64 [n]."""
    trees = len(routes.rounds)
    leaves = np.empty((BLOCK, trees), np.int32)
    for low in range(0, bins.shape[0], BLOCK):
        high = min(low + BLOCK, bins.shape[0])
        leaves_of(routes, bins[low:high], leaves)
        for i in range(low, high):
            total = 0.0
            for t in range(trees):
                total += values[leaves[i - low, t]]
            out[i] = total / trees


@dataclass(frozen=True)
class Overlap:
    """Propensities of K levels by features, control first; made only where the features tell the level.

    trees   of each level, cross-fitted: values are the share of rows with the level; None: its share everywhere
    shares  of each level among all rows, float64 [K]
    log_e   logarithm of the e-value
    lacking share of the sample's rows at which each treated level, or the control, lacks, [K-1]
    """

    trees: tuple[Baseline | None, ...]
    shares: np.ndarray
    log_e: float
    lacking: tuple[float, ...] = ()

    def propensities(self, bins: np.ndarray, fold: np.ndarray | None = None, threads: int = 1) -> np.ndarray:
        """e_k(x), float64 [n, K]: by the trees that a training row's fold had no part in, or by all for new rows."""
        out = np.tile(self.shares, (len(bins), 1))
        for k, one in enumerate(self.trees):
            if one is not None:
                out[:, k] = _averaged(one, bins, threads) if fold is None else one.predict(bins, fold, threads)
        return out

    def present(self, propensities: np.ndarray) -> np.ndarray:
        """Whether each level is received near units with these propensities, bool [n, K]."""
        return np.asarray(propensities >= LACKING * self.shares)

    def lacks(self, bins: np.ndarray, threads: int = 1) -> np.ndarray:
        """Whether each treated level, or the control, lacks near new rows, bool [n, K-1]."""
        near = self.present(self.propensities(bins, threads=threads))
        return ~(near[:, 1:] & near[:, :1])

    def weights(self, rows: tuple[np.ndarray, ...], logged: bool, threads: int = 1) -> np.ndarray:
        """Weights of training rows (bins, fold, level code), at most 1, float64 [n]; with `logged` ones 1 or 0."""
        bins, fold, level = rows
        e = self.propensities(bins, fold, threads)
        near, own = self.present(e), (np.arange(len(level)), level)
        compared = near[own] & near[:, 0] & near[:, 1:].any(axis=1)
        if logged:
            return compared.astype(np.float64)
        inverse = np.where(near, 1.0 / np.maximum(e, 1e-12), 0.0)
        return np.where(compared, inverse[own] / np.maximum(inverse.sum(axis=1), 1e-12), 0.0)

    def facts(self, names: tuple[str, ...]) -> dict[str, Any]:
        """What a manifest says of it, levels by name."""
        return {"log_e_value": self.log_e, "lacking": dict(zip(names[1:], self.lacking, strict=True))}

    def sentence(self, names: tuple[str, ...]) -> str:
        """What a user should know of it."""
        far = [f"{share:.1%} for {name}" for name, share in zip(names[1:], self.lacking, strict=True) if share]
        flagged = f"; low_support flags the rows without comparable ones: {', '.join(far)}" if far else ""
        return f"the features tell the level received: rows are weighted by their propensities{flagged}"

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of a model file."""
        parts: dict[str, np.ndarray] = {"overlap_shares": self.shares}
        for k, one in enumerate(self.trees):
            if one is not None:
                parts |= {f"overlap{k}_{name}": array for name, array in one.structure._asdict().items()}
                parts[f"overlap{k}_values"] = one.values
        return parts


def _averaged(trees: Baseline, bins: np.ndarray, threads: int) -> np.ndarray:
    routes, (bins, values), out = trees.structure.routes, frozen((bins, trees.values)), np.empty(len(bins))
    bounds = np.linspace(0, len(bins), threads + 1).astype(int)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda a, b: leaf_averages(routes, values, bins[a:b], out[a:b]), bounds[:-1], bounds[1:]))
    return out


def fit_overlap(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    names: tuple[str, ...],
    n_bins: tuple[np.ndarray, np.ndarray],
    seed: int,
    threads: int = 1,
) -> Overlap | None:
    """Propensities from (bins uint8 [n, p], level code [n], key uint64 [n]) in canonical order, or None in a trial.

    names   of the K levels, control first
    n_bins  (number of bins int64 [p], categorical bool [p])

    Rows of one key, such as a household's, count as one. Raises DataError where hardly any row has comparable ones.
    """
    bins, level, key = rows
    group = np.unique(key, return_inverse=True)[1]
    weight = 1.0 / np.bincount(group)[group]
    if not _screened(bins, level, weight, len(names)):
        return None
    counts = np.bincount(level, minlength=len(names))
    columns, salt = np.ascontiguousarray(bins.T), np.uint64(seed)
    each = max(4, 32 // len(names))
    fits = [
        _one_level(columns, level == k, key, salt, n_bins, each) for k in range(1 if len(names) == 2 else len(names))
    ]
    trees = fits[0] if len(names) == 2 else tuple(mine for mine, _ in fits)
    overlap = Overlap(trees, counts / len(level), 0.0)
    fold = folds_of(key, salt)
    e = overlap.propensities(bins, fold, threads)
    ratio = (e / e.sum(axis=1, keepdims=True) / overlap.shares)[np.arange(len(level)), level]
    by_fold = np.bincount(fold, weight * np.log(ratio), minlength=2)
    log_e = float(np.logaddexp(*by_fold) - np.log(2.0))
    if not log_e > np.log(CHANCE):
        return None
    lacks = overlap.lacks(bins, threads)
    if (nothing := lacks.all(axis=1)).mean() > MOST_LACKING:
        raise DataError(
            f"{int(nothing.sum())} of {len(level)} rows have features with which units received either {names[0]!r} "
            "alone or never: nothing shows an effect apart from what chose the level; drop the feature that decides "
            "it, or train where it was left to chance"
        )
    return Overlap(trees, overlap.shares, log_e, tuple(lacks.mean(axis=0).tolist()))


def _screened(bins: np.ndarray, level: np.ndarray, weight: np.ndarray, levels: int) -> bool:
    """Whether some feature's bins have other shares of the levels than chance gives them."""
    total, limit = weight.sum(), SCREENED / bins.shape[1]
    for column in bins.T:
        cell = column.astype(np.int64) * levels + level
        table = np.bincount(cell, weight, 256 * levels).reshape(256, levels)
        table = table[table.sum(axis=1) > 0]
        by_share = table.sum(axis=1)[:, None] * table.sum(axis=0) / total
        known = by_share > 0
        statistic = ((table - by_share)[known] ** 2 / by_share[known]).sum()
        freedom = (len(table) - 1) * ((table.sum(axis=0) > 0).sum() - 1)
        if freedom and scipy.stats.chi2.sf(statistic, freedom) < limit:
            return True
    return False


def _one_level(
    columns: np.ndarray,
    has_level: np.ndarray,
    key: np.ndarray,
    seed: np.uint64,
    n_bins: tuple[np.ndarray, np.ndarray],
    trees: int,
) -> tuple[Baseline | None, Baseline | None]:
    """Trees of one level's propensity, and of that of all others; None where features tell nothing of it."""
    share, one = float(has_level.mean()), np.ones(len(has_level), np.int64)
    leaf = LEAF_ROWS / max(min(share, 1.0 - share), 1.0 / len(has_level))
    grown = crossfit_trees(
        columns, (key, one, has_level.astype(np.int64)), seed, n_bins, CrossfitLimits(leaf, 0.0, 0.0, trees)
    )
    if grown is None:
        return None, None
    structure, (n, taken) = grown[0], grown[1].T.astype(np.float64)
    # One unit more: a handful of rows without the level does not say that nobody there receives it.
    mine, others = ((x + 1.0) / (n + 1.0 / max(s, 1e-12)) for x, s in ((taken, share), (n - taken, 1.0 - share)))
    return Baseline(structure, mine), Baseline(structure, others)


# --------------------------------------------------------------------------------------------------------------------
# Few units, few events. Little bags and resamples see the variance of what is in the rows: of an event that no row has
# they know nothing, so intervals about 0 of 12 come out narrow, and those about 0 of 1,000 have no width. A level with
# fewer than FEWEST_ROWS rows is refused. One with fewer than MIN_UNITS rows or FEW_EVENTS events is flagged everywhere,
# with errors of at least what Wilson's (1927) bounds of the two arms' rates come to together (Newcombe 1998). An event
# is a row with another outcome than the least, or than the largest, whichever more rows of the level have. Where all
# rows of the level have the one and all of the control the other, the level decides the outcome, as it decides a cost:
# then there is no flag.

# Where events are a few tens, an error that rests on few of them is small exactly where the estimate is low by chance:
# in simulations of 20 to 90 events .90 to .93 of nominal 95 % intervals held the effect, though errors were right on
# average. So a unit's variance is drawn up to the mean of all units' by a share that falls with the events
# (`few_share`). Of sums with a heavy tail, such as sales, a few large events decide: there Kish's (1965) effective
# number of events counts, which is that of as many alike ones.

_Z95 = normal_quantile(0.95)
FEWEST_ROWS = 10  # of a level, to be trained on
FEW_EVENTS = 10
MANY_EVENTS, _HALF = 300, 30  # from so many events a unit's own variance counts alone; with so many about half


def level_events(
    rows: Mapping[str, int], ends: Mapping[str, tuple[int, int]], names: tuple[str, ...]
) -> dict[str, int]:
    """Rows of each level with another outcome than the least, or than the largest: whichever are fewer.

    rows    of each level
    ends    of these, rows at the least and at the largest outcome
    names   the levels
    """
    return {name: rows[name] - max(ends[name]) for name in names}


def effective_shares(
    outcome: np.ndarray, level: np.ndarray, bounds: tuple[float, float], names: tuple[str, ...]
) -> dict[str, float]:
    """Kish's effective number of each level's events as a share of their number; without levels of alike events.

    outcome  of rows in canonical order, float64 [n]
    level    code of each row's level in `names`, [n]
    bounds   least and largest outcome; events are counted from the one that more rows of the level have
    """
    low, high = bounds
    shares = {}
    for k, name in enumerate(names):
        own = outcome[level == k]
        usual = low if (own == low).sum() >= (own == high).sum() else high
        size = np.abs(own[own != usual] - usual) / max(high - low, np.finfo(np.float64).tiny)
        if size.size and size.min() < size.max():
            shares[name] = float(size.sum() ** 2 / (size.size * (size**2).sum()))
    return shares


def few_share(events: float) -> float:
    """How far the variance of a unit's effect is drawn up to the mean of all units', by the effective events of the
    level or of the control, whichever has fewer: from 1 without any to 0 at MANY_EVENTS."""
    least = _HALF / (_HALF + MANY_EVENTS)
    return max(0.0, (_HALF / (_HALF + events) - least) / (1.0 - least))


def check_level_rows(rows: Mapping[str, int]) -> None:
    """Raise DataError for a level with fewer than FEWEST_ROWS of the rows."""
    for name, count in rows.items():
        if count < FEWEST_ROWS:
            raise DataError(
                f"level {name!r} has {count} of {sum(rows.values())} rows, of at least {FEWEST_ROWS}: "
                "leave it out, merge it with another level, or train on a table that has more of it"
            )


def thin_levels(
    rows: Mapping[str, int], ends: Mapping[str, tuple[int, int]], bounds: tuple[float, float], names: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """Treated levels that have, or whose control has, too few rows or events of an outcome: rows, events, the least
    standard error of an effect and whether it is flagged. Empty where there is plenty.

    rows    of each level
    ends    of these, rows at the least and at the largest outcome
    bounds  least and largest outcome
    names   the levels, control first
    """
    low, high = bounds
    size = high - low if high > low else abs(high) or 1.0
    events = level_events(rows, ends, names)
    least = {name: size / _Z95 * _most_off(events[name], rows[name]) for name in names}
    few = {name for name in names if rows[name] < MIN_UNITS or events[name] < FEW_EVENTS}
    thin, control = {}, names[0]
    for name in names[1:] if control in few else [name for name in names[1:] if name in few]:
        apart = events[name] == events[control] == 0 and ends[name] != (rows[name],) * 2
        decided = (
            apart and (ends[name][0] > 0) != (ends[control][0] > 0) and min(rows[name], rows[control]) >= MIN_UNITS
        )
        error = float(np.hypot(least[name], least[control]))
        thin[name] = {"rows": rows[name], "events": events[name], "error": error, "flagged": not decided}
    return thin


def _most_off(events: int, rows: int) -> float:
    """How far Wilson's 95 % interval of a rate reaches from it at most."""
    rate = events / rows
    lower, upper = wilson_interval(rate, rows)
    return max(upper - rate, rate - lower)


def thin_sentence(thin: Mapping[str, Mapping[str, Any]]) -> str:
    """What a user should know of `thin_levels`."""
    parts = [f"{name} ({one['rows']} rows, {one['events']} events)" for name, one in thin.items()]
    return f"too few rows or events, of the level or the control, for its effects to be relied on: {', '.join(parts)}"


def thin_errors(thin: Mapping[str, Mapping[str, Any]], treated: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(least standard error of each treated level's effects, 0 of one that is not thin; whether it is flagged), [L]."""
    parts = [thin.get(name, {"error": 0.0, "flagged": False}) for name in treated]
    return np.array([one["error"] for one in parts]), np.array([one["flagged"] for one in parts], bool)
