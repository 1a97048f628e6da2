"""Policy trees: at most three questions about a unit that say which level it gets, and what that brings (R5.3).

A numeric feature is asked x <= threshold, and missing counts as lowest: it goes with the low side, or alone. A
categorical feature is asked for one category, or whether it is missing.

Units are bins uint8 [n, p] (`causal.binning`) and rewards float64 [n, K] by level, the control's first: doubly robust
scores of the outcome's value, less costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from uplift_spark.causal.binning import FeatureBins
from uplift_spark.stats.intervals import MIN_CLUSTERS, Draws, effective_clusters, resampled_error, resampled_sums
from uplift_spark.stats.moments import FIELDS, LARGEST, MIN_UNITS, POWERS, FixedPoint, Moments, normal_quantile, ratio
from uplift_spark.vocabulary import DataError


@dataclass(frozen=True)
class Node:
    """One node of a tree: a question (feature -1 at a leaf), the nodes of units that answer yes and no, and figures.

    units  that the tree was grown from     action  the leaf's level, by number (-1 at a question)
    value  mean reward of these units under the tree less that under the control, as the growing units have it: the
           tree was chosen for it, so it promises too much; `values` of other units do not
    """

    feature: int
    bin: int
    yes: int
    no: int
    action: int
    units: int
    value: float


@dataclass(frozen=True)
class PolicyTree:
    """Which level a unit gets; nodes from the root on, each before those below it.

    constant  number of the one level that would have been best for all units the tree was grown from
    """

    features: tuple[FeatureBins, ...]
    levels: tuple[str, ...]
    missing: tuple[bool, ...]
    nodes: tuple[Node, ...]
    constant: int

    def actions(self, bins: np.ndarray) -> np.ndarray:
        """Number of each unit's level, int64 [n], from bins uint8 [n, p]."""
        at, out = {0: np.arange(len(bins))}, np.empty(len(bins), np.int64)
        for number, node in enumerate(self.nodes):
            units = at[number]
            if node.feature < 0:
                out[units] = node.action
                continue
            mine = bins[units, node.feature]
            yes = mine == node.bin if self.features[node.feature].categorical else mine <= node.bin
            at[node.yes], at[node.no] = units[yes], units[~yes]
        return out

    def rows(self) -> list[dict[str, Any]]:
        """One dict per node: node, depth, feature, operator, threshold, category, asks, yes, no, action, units, value.

        operator   '<=' a threshold (missing answers yes), 'is' a category, or 'is missing'
        asks       the question in words         yes, no   numbers of the nodes that the answers lead to
        A leaf has its action and None for a question, an inner node the reverse.
        """
        depth, out = {0: 0}, []
        for number, node in enumerate(self.nodes):
            row: dict[str, Any] = {"node": number, "depth": depth[number], **self._question(node)}
            leaf = node.feature < 0
            row |= {"yes": None, "no": None} if leaf else {"yes": node.yes, "no": node.no}
            row |= {"action": self.levels[node.action] if leaf else None, "units": node.units, "value": node.value}
            depth |= {below: depth[number] + 1 for below in (node.yes, node.no)}
            out.append(row)
        return out

    def _question(self, node: Node) -> dict[str, Any]:
        asked: dict[str, Any] = dict.fromkeys(("feature", "operator", "threshold", "category", "asks"))
        if node.feature < 0:
            return asked
        one = self.features[node.feature]
        asked["feature"] = name = one.name
        if node.bin == 0:
            return asked | {"operator": "is missing", "asks": f"{name} is missing"}
        if one.categories is not None:
            category = one.categories[node.bin - 1]
            return asked | {"operator": "is", "category": category, "asks": f"{name} is {category!r}"}
        most = one.edges[node.bin - 1]
        words = f"{name} <= {most:.6g}" + " or missing" * self.missing[node.feature]
        return asked | {"operator": "<=", "threshold": most, "asks": words}

    def text(self) -> str:
        """The rules as lines to read."""
        return "\n".join(self._lines(self.rows(), 0))

    def _lines(self, rows: list[dict[str, Any]], at: int) -> list[str]:
        row, indent = rows[at], "    " * rows[at]["depth"]
        if row["action"] is not None:
            return [
                f"{indent}{row['action']}  ({row['units']:,} units, {row['value']:+.4g} each over {self.levels[0]})"
            ]
        yes, no = (self._lines(rows, row[side]) for side in ("yes", "no"))
        return [f"{indent}if {row['asks']}:", *yes, f"{indent}else:", *no]


@dataclass(frozen=True)
class Overview:
    """What one look says of units; overviews of parts add up.

    counts   units by feature and bin, int64 [p, 256]
    largest  reward in size
    wrong    units without a finite reward of every level, or without a bin of every feature; counted nowhere else
    """

    counts: np.ndarray
    largest: float
    wrong: int

    @classmethod
    def of(cls, bins: np.ndarray, rewards: np.ndarray) -> Overview:
        """Overview of units."""
        good = np.all(np.abs(rewards) < LARGEST, axis=1)  # NaN is not
        counts = np.array([np.bincount(column, minlength=256) for column in bins[good].T]).reshape(-1, 256)
        return cls(counts, float(np.abs(rewards[good]).max(initial=0.0)), int((~good).sum()))

    @classmethod
    def empty(cls, p: int) -> Overview:
        """No units."""
        return cls(np.zeros((p, 256), np.int64), 0.0, 0)

    def __add__(self, other: Overview) -> Overview:
        return Overview(self.counts + other.counts, max(self.largest, other.largest), self.wrong + other.wrong)

    def checked(self) -> Overview:
        """Itself; raises DataError where a unit's rewards or bins are wrong, or there is none."""
        units = int(self.counts[0].sum()) + self.wrong
        if self.wrong:
            raise DataError(
                f"rewards are missing, infinite or of another number of levels, or bins of another number of features, "
                f"in {self.wrong:,} of {units:,} units of the policy tree: leave these units out or score them anew"
            )
        if not units:
            raise DataError("the policy tree has 0 units: give it the scored units of a hold-out")
        return self


@dataclass(frozen=True)
class Value:
    """Mean reward of units under the tree less that under one level for all, with its 95 % interval.

    NaN below MIN_UNITS units.
    """

    against: str
    units: int
    estimate: float
    error: float
    lower: float
    upper: float


def value_sums(tree: PolicyTree, bins: np.ndarray, rewards: np.ndarray, point: FixedPoint) -> np.ndarray:
    """Mergeable sums of units' rewards under the tree less those under each level, int64 [K, 7] in order of FIELDS.

    point  for differences of rewards: `difference_point`
    """
    y = _gained(tree, bins, rewards)
    ones = np.ones_like(y)
    return np.stack([ones.sum(axis=0).astype(np.int64), *(point.integers(f, ones, y).sum(axis=0) for f in POWERS)], 1)


def drawn_sums(
    tree: PolicyTree, bins: np.ndarray, rewards: np.ndarray, point: FixedPoint, draws: tuple[np.ndarray, Draws]
) -> np.ndarray:
    """Sums of ones and of `value_sums`' differences under resamples of clusters, int64 [R, 1 + K].

    draws  hash of each unit's cluster, int64 [n], and which resamples
    """
    y = _gained(tree, bins, rewards)
    terms = np.column_stack([np.ones(len(y), np.int64), point.integers("wy", np.ones_like(y), y)])
    return resampled_sums(draws[0], terms, draws[1])


def _gained(tree: PolicyTree, bins: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    return np.asarray(rewards[np.arange(len(rewards)), tree.actions(bins)][:, None] - rewards)


def difference_point(overview: Overview) -> FixedPoint:
    """Fixed point that holds differences of two rewards."""
    return FixedPoint.of(1.0, 2 * overview.largest)


def values(tree: PolicyTree, sums: np.ndarray, point: FixedPoint, drawn: np.ndarray | None = None) -> list[Value]:
    """What the tree brings to units that had no part in growing it: over the control, and each other level for all.

    Against the best single level is against `tree.constant`, chosen when the tree was grown: one chosen by these values
    would look worse than it is. Normal intervals; units count as independent, or given `drawn_sums` their clusters do,
    and below MIN_CLUSTERS of these nothing is known.
    """
    moments = Moments(**{f: point.floats(f, sums[:, j]) for j, f in enumerate(FIELDS)})
    enough = moments.n >= MIN_UNITS
    mean, error = (np.where(enough, a, np.nan) for a in (moments.mean, np.sqrt(moments.squared_error)))
    if drawn is not None:
        found = resampled_error(ratio(point.floats("wy", drawn[:, 1:]), drawn[:, :1]))
        error = np.where(enough & (effective_clusters(drawn[:, 0]) >= MIN_CLUSTERS), found, np.nan)
    half = normal_quantile(0.95) * error
    figures = zip(tree.levels, moments.n, mean, error, mean - half, mean + half, strict=True)
    return [Value(level, int(n), *(float(x) for x in rest)) for level, n, *rest in figures]


def honest_values(
    tree: PolicyTree, bins: np.ndarray, rewards: np.ndarray, draws: tuple[np.ndarray, Draws] | None = None
) -> list[Value]:
    """`values` of units in memory, with `draws` as in `drawn_sums`; raises DataError as `Overview.checked`."""
    point = difference_point(Overview.of(bins, rewards).checked())
    drawn = drawn_sums(tree, bins, rewards, point, draws) if draws else None
    return values(tree, value_sums(tree, bins, rewards, point), point, drawn)
