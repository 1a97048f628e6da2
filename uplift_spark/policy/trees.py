"""Policy trees: a few questions decide which level a unit gets.

`fit_tree` finds the best tree, `honest_values` estimates its gain on units that had no part in the search.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numba as nb
import numpy as np

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.binning import MAX_CATEGORIES, FeatureBins
from uplift_spark.stats.curves import rank_bins
from uplift_spark.stats.intervals import MIN_CLUSTERS, Draws, effective_clusters, resampled_error, resampled_sums
from uplift_spark.stats.moments import FIELDS, LARGEST, MIN_UNITS, POWERS, FixedPoint, Moments, normal_quantile, ratio

# --------------------------------------------------------------------------------------------------------------------
# Trees of at most three questions, and their values.
# A question about a numeric feature is x <= threshold. A missing value counts as the lowest: it goes with the low side,
# or alone. A question about a categorical feature is whether it is one category, or whether it is missing.
#
# Units are bins uint8 [n, p] (`forest.binning`) and rewards float64 [n, K] by level, the control's first: doubly robust
# scores of the outcome's value, less costs.


@dataclass(frozen=True)
class Node:
    """One node of a tree: a question (feature -1 at a leaf), the nodes of units that answer yes and no, and figures.

    units  that the tree was grown from     action  the leaf's level, by number (-1 at a question)
    value  mean reward of these units under the tree less that under the control, as the growing units have it: the
           tree was chosen for it, so it promises too much; `policy_values` of other units do not
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
        """One dict per node with the columns of gold.policy_tree, run_id and campaign aside.

        operator   '<=' a threshold (missing answers yes), 'is' a category, or 'is missing'
        question   in words
        yes, no    numbers of the nodes that the answers lead to
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
        question: dict[str, Any] = dict.fromkeys(("feature", "operator", "threshold", "category", "question"))
        if node.feature < 0:
            return question
        one = self.features[node.feature]
        question["feature"] = name = one.name
        if node.bin == 0:
            return question | {"operator": "is missing", "question": f"{name} is missing"}
        if one.categories is not None:
            category = one.categories[node.bin - 1]
            return question | {"operator": "is", "category": category, "question": f"{name} is {category!r}"}
        most = one.edges[node.bin - 1]
        words = f"{name} <= {most:.6g}" + " or missing" * self.missing[node.feature]
        return question | {"operator": "<=", "threshold": most, "question": words}

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
        return [f"{indent}if {row['question']}:", *yes, f"{indent}else:", *no]


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
class TreeValue:
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


def bootstrap_sums(
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


def policy_values(
    tree: PolicyTree, sums: np.ndarray, point: FixedPoint, bootstrap: np.ndarray | None = None
) -> list[TreeValue]:
    """What the tree brings to units that had no part in growing it: over the control, and each other level for all.

    Against the best single level is against `tree.constant`, chosen when the tree was grown: one chosen by these values
    would look worse than it is. Normal intervals; units count as independent, or by `bootstrap_sums` their clusters do,
    and below MIN_CLUSTERS of these nothing is known.
    """
    moments = Moments(**{f: point.floats(f, sums[:, j]) for j, f in enumerate(FIELDS)})
    enough = moments.n >= MIN_UNITS
    mean, error = (np.where(enough, a, np.nan) for a in (moments.mean, np.sqrt(moments.squared_error)))
    if bootstrap is not None:
        errors = resampled_error(ratio(point.floats("wy", bootstrap[:, 1:]), bootstrap[:, :1]))
        error = np.where(enough & (effective_clusters(bootstrap[:, 0]) >= MIN_CLUSTERS), errors, np.nan)
    half = normal_quantile(0.95) * error
    figures = zip(tree.levels, moments.n, mean, error, mean - half, mean + half, strict=True)
    return [TreeValue(level, int(n), *(float(x) for x in rest)) for level, n, *rest in figures]


def honest_values(
    tree: PolicyTree, bins: np.ndarray, rewards: np.ndarray, draws: tuple[np.ndarray, Draws] | None = None
) -> list[TreeValue]:
    """`policy_values` of units in memory, `draws` as in `bootstrap_sums`; raises DataError as `Overview.checked`."""
    point = difference_point(Overview.of(bins, rewards).checked())
    bootstrap = bootstrap_sums(tree, bins, rewards, point, draws) if draws else None
    return policy_values(tree, value_sums(tree, bins, rewards, point), point, bootstrap)


# --------------------------------------------------------------------------------------------------------------------
# The best policy tree, from sums that add.
# Rewards of all units are added up by every pair of features' groups. The value of any tree of depth 2 follows from
# these sums, so all such trees are compared (Athey & Wager 2021; Zhou, Athey & Wager 2023), and the best one of depth 1
# or 2 is exact. Sums are integers, hence the same whatever the partitions. A tree of depth 3 is not exact: its first
# question is that of the best tree of depth 2, below which each side gets its own best tree of depth 2, from one more
# pass over its units.
#
# A feature has at most `groups` groups: missing, then neighbouring numeric bins merged to about equal mass, or each
# category for itself but for the rarest, about which no question is possible. "Exact" is over these questions.

DEFAULT_GROUPS = 32
MOST_BYTES = 1 << 28
"""Of sums that one worker holds."""
_BLOCK = 8192  # units that are added pair by pair of features, whose sums then stay in the cache

AnswerPath = tuple[tuple[int, bool], ...]
"""Answers on the way to a node: (number of the question in the plan, whether it holds)."""


@dataclass(frozen=True, eq=False)
class TreeSearchPlan:
    """Features cut into groups, and the questions a tree may ask.

    point    how rewards are kept as integers
    missing  whether a feature has missing values, by feature
    group    group of each bin, int64 [p, 256]; groups of all features are numbered one after the other
    low, high  groups low <= g < high answer yes to a question, int64 [questions]
    feature, bin  what a question asks: bins up to `bin` of a numeric feature, `bin` itself of a categorical one
    """

    features: tuple[FeatureBins, ...]
    levels: tuple[str, ...]
    point: FixedPoint
    missing: tuple[bool, ...]
    group: np.ndarray
    low: np.ndarray
    high: np.ndarray
    feature: np.ndarray
    bin: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """First group of each feature, then the number of all groups: int64 [p + 1]."""
        return np.append(self.group[:, 0], self.group.max() + 1)

    def reached(self, bins: np.ndarray, path: AnswerPath) -> np.ndarray:
        """Mask of units that give the answers of a path, bool [n]."""
        mask = np.ones(len(bins), bool)
        for question, holds in path:
            feature = self.feature[question]
            group = self.group[feature][bins[:, feature]]
            mask &= ((group >= self.low[question]) & (group < self.high[question])) == holds
        return mask


def tree_search_plan(
    overview: Overview, features: Sequence[FeatureBins], levels: Sequence[str], groups: int = DEFAULT_GROUPS
) -> TreeSearchPlan:
    """Questions to choose from. Raises DataError as `Overview.checked`, ConfigError if the sums would be too large."""
    if len(levels) < 2 or not features or not 2 <= groups <= MAX_CATEGORIES:
        raise ConfigError(
            f"a policy tree of {len(levels)} levels, {len(features)} features and {groups} groups: give it two "
            f"levels or more, one feature or more, and 2 to {MAX_CATEGORIES} groups"
        )
    overview = overview.checked()
    point, missing = FixedPoint.of(1.0, overview.largest), tuple(bool(n) for n in overview.counts[:, 0])
    group, questions, start = [], [], 0
    for f, (one, counts) in enumerate(zip(features, overview.counts, strict=True)):
        unknown = int(counts[one.n_bins :].sum())
        if unknown:
            raise DataError(f"{unknown:,} units have bins that feature {one.name!r} lacks: encode them with its bins")
        mine = start + _groups(one, counts, groups)
        # Bins that end a group; the last group is what the others leave.
        last = np.flatnonzero(np.diff(mine[: one.n_bins]))
        if one.categorical and one.n_bins <= groups:
            last = np.append(last, one.n_bins - 1)
        questions += [(mine[b] if one.categorical else start, mine[b] + 1, f, b) for b in last]
        group.append(mine)
        start = int(mine.max()) + 1
    size = start * start * (1 + len(levels)) * 8
    if size > MOST_BYTES:
        most = int(len(features) * (MOST_BYTES / size) ** 0.5)
        raise ConfigError(
            f"a policy tree of {len(features)} features needs sums of {size / 2**30:.1f} GiB in each worker, more than "
            f"{MOST_BYTES / 2**30:.2f}: choose about {most} of them in tree.features"
        )
    low, high, feature, last = np.array(questions, np.int64).reshape(-1, 4).T
    return TreeSearchPlan(tuple(features), tuple(levels), point, missing, np.array(group), low, high, feature, last)


def _groups(one: FeatureBins, counts: np.ndarray, groups: int) -> np.ndarray:
    """Group of each bin from 0 on, int64 [256]: missing alone, categories alone but for the rarest."""
    bins = np.minimum(np.arange(256), one.n_bins - 1)
    if one.n_bins <= groups:
        return bins
    if one.categorical:
        return np.minimum(bins, groups - 1)
    mass = counts[1 : one.n_bins]
    known = rank_bins(mass if mass.any() else np.ones_like(mass), groups - 1)
    return np.append(0, 1 + np.unique(known, return_inverse=True)[1])[bins]


def empty_pairs(plan: TreeSearchPlan) -> np.ndarray:
    """No units yet: units and rewards by pair of groups, int64 [groups, groups, 1 + K]; sums of parts add up exactly.

    Of two features only the pairs with the earlier one's group first are filled, of one feature those with itself.
    8 * (1 + K) * groups^2 bytes: 20 features of 32 groups and 3 levels take 13 MB, whatever the number of units;
    the search takes three times that.
    """
    groups = int(plan.starts[-1])
    return np.zeros((groups, groups, 1 + len(plan.levels)), np.int64)


def add_pairs(
    sums: np.ndarray, plan: TreeSearchPlan, bins: np.ndarray, rewards: np.ndarray, path: AnswerPath = ()
) -> None:
    """Add to pair sums, in place, the units that give the answers of a path: O(n * p^2 * K)."""
    mask = plan.reached(bins, path)
    bins, rewards = bins[mask], rewards[mask]
    reward = plan.point.integers("wy", np.ones_like(rewards), rewards)
    _add_pairs(bins, plan.group, np.column_stack([np.ones(len(bins), np.int64), reward]), sums)


@nb.njit(cache=True, nogil=True)
def _add_pairs(bins: np.ndarray, group: np.ndarray, terms: np.ndarray, sums: np.ndarray) -> None:
    n, p = bins.shape
    mine = np.empty((p, _BLOCK), np.int32)
    for first in range(0, n, _BLOCK):
        size = min(_BLOCK, n - first)
        for j in range(p):
            for i in range(size):
                mine[j, i] = group[j, bins[first + i, j]]
        for j in range(p):
            for k in range(j, p):
                for i in range(size):
                    for c in range(terms.shape[1]):
                        sums[mine[j, i], mine[k, i], c] += terms[first + i, c]


# ---------------------------------------------------------------- the search


@dataclass(frozen=True, eq=False)
class _Grown:
    """A node while it is sought: sums of its units int64 [1 + K], its question (-1 at a leaf), what is below."""

    totals: np.ndarray
    question: int = -1
    sides: tuple[_Grown, ...] = ()

    @property
    def reward(self) -> int:
        """Rewards of all units under the tree below."""
        return sum(s.reward for s in self.sides) if self.sides else int(self.totals[1:].max())

    @property
    def gain(self) -> int:
        """Rewards under the tree below less those under the control."""
        return self.reward - int(self.totals[1])


PairSumsFunction = Callable[[AnswerPath], np.ndarray]


def best_tree(
    pair_sums: PairSumsFunction, plan: TreeSearchPlan, depth: int = 2, min_units: int = MIN_UNITS
) -> PolicyTree:
    """Find the tree of greatest reward with at least `min_units` units in every leaf; of equals the smaller, or first.

    pair_sums  pair sums of the units that give the answers of a path; called once, at depth 3 for both root sides
    Exact at depth 1 and 2, not at 3, where it is at least as good as depth 2. Raises ConfigError at other depths.
    """
    if depth not in (1, 2, 3) or min_units < 1:
        raise ConfigError(
            f"a policy tree of depth {depth} with {min_units} units a leaf: depth is 1 to 3, units from 1"
        )
    root = _grow(pair_sums, (), plan, depth, min_units)
    nodes: list[Node] = []
    _append(root, plan, nodes)
    constant = int(root.totals[1:].argmax())
    return PolicyTree(plan.features, plan.levels, plan.missing, tuple(nodes), constant)


def _grow(pair_sums: PairSumsFunction, path: AnswerPath, plan: TreeSearchPlan, depth: int, min_units: int) -> _Grown:
    tree = _exact(pair_sums(path), plan, min(depth, 2), min_units)
    if depth <= 2 or not tree.sides:
        return tree
    sides = (_grow(pair_sums, (*path, (tree.question, yes)), plan, depth - 1, min_units) for yes in (True, False))
    return replace(tree, sides=tuple(sides))


def _exact(upper: np.ndarray, plan: TreeSearchPlan, depth: int, min_units: int) -> _Grown:
    each = np.arange(len(upper))
    sums = upper + upper.transpose(1, 0, 2)
    sums[each, each] = alone = upper[each, each]
    best = _one_question(alone[None], plan, min_units)[0]
    if depth == 1:
        return best
    most = _rank(best)
    for question, (low, high) in enumerate(zip(plan.low, plan.high, strict=True)):
        yes = sums[low:high].sum(axis=0)
        if min_units <= yes[: plan.starts[1], 0].sum() <= best.totals[0] - min_units:
            sides = _one_question(np.stack([yes, alone - yes]), plan, min_units)
            candidate = _Grown(best.totals, question, tuple(sides))
            if _rank(candidate) > most:
                best, most = candidate, _rank(candidate)
    return best


def _rank(tree: _Grown) -> tuple[int, int]:
    """Trees in order of reward, among equals the fewer leaves."""
    return tree.reward, -sum(1 + len(side.sides) for side in tree.sides)


def _one_question(sums: np.ndarray, plan: TreeSearchPlan, min_units: int) -> list[_Grown]:
    """Best trees of depth 1 for several sets of units: sums by group, int64 [sets, groups, 1 + K]."""
    totals = sums[:, : plan.starts[1]].sum(axis=1)
    up_to = np.concatenate([np.zeros_like(sums[:, :1]), sums.cumsum(axis=1)], axis=1)
    yes = up_to[:, plan.high] - up_to[:, plan.low]  # right even where sums over all features wrap around
    no = totals[:, None] - yes
    rewards = yes[..., 1:].max(axis=2) + no[..., 1:].max(axis=2)
    rewards[np.minimum(yes[..., 0], no[..., 0]) < min_units] = np.iinfo(np.int64).min
    best = rewards.argmax(axis=1)
    return [
        _Grown(t, int(q), (_Grown(y[q]), _Grown(n[q]))) if r[q] > t[1:].max() else _Grown(t)
        for t, q, y, n, r in zip(totals, best, yes, no, rewards, strict=True)
    ]


def _append(tree: _Grown, plan: TreeSearchPlan, nodes: list[Node]) -> int:
    """Number of the node that is added, with all below it."""
    number, units = len(nodes), int(tree.totals[0])
    value = float(plan.point.floats("wy", np.array(tree.gain))) / max(units, 1)
    nodes.append(Node(-1, -1, -1, -1, int(tree.totals[1:].argmax()), units, value))
    if tree.sides:
        yes, no = (_append(side, plan, nodes) for side in tree.sides)
        feature, last = (int(a[tree.question]) for a in (plan.feature, plan.bin))
        nodes[number] = Node(feature, last, yes, no, -1, units, value)
    return number


def fit_tree(
    bins: np.ndarray,
    rewards: np.ndarray,
    features: Sequence[FeatureBins],
    levels: Sequence[str],
    depth: int = 2,
    min_units: int = MIN_UNITS,
    groups: int = DEFAULT_GROUPS,
) -> PolicyTree:
    """`best_tree` of units in memory. Raises DataError and ConfigError as `tree_search_plan` and `best_tree`."""
    plan = tree_search_plan(Overview.of(bins, rewards), features, levels, groups)
    return best_tree(partial(pair_sums_at, plan, bins, rewards), plan, depth, min_units)


def pair_sums_at(plan: TreeSearchPlan, bins: np.ndarray, rewards: np.ndarray, path: AnswerPath) -> np.ndarray:
    """Pair sums of the units that give the answers of a path."""
    sums = empty_pairs(plan)
    add_pairs(sums, plan, bins, rewards, path)
    return sums
