"""From leaf sums to effects: treatment bases, errors from little bags, regression on the basis."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Protocol

import numba as nb
import numpy as np

from uplift_spark.errors import ConfigError
from uplift_spark.forest.encode import ForestPlan
from uplift_spark.forest.kernels import IN_CACHE, debiased_variance, sum_shares
from uplift_spark.forest.trees import BLOCK, LANES, new_lists
from uplift_spark.roles import Levels
from uplift_spark.stats.moments import normal_quantile

# --------------------------------------------------------------------------------------------------------------------
# Split criteria as treatment bases: a criterion is the map from doses to φ, the kernel is the same for all.
# A node's effect θ is the coefficient of Y on φ(W) inside the node; a split's gain is Σ_children θ'Aθ - parent's, A the
# node's scatter of φ (Athey, Tibshirani & Wager 2019). Where effects are reported at doses that are no levels of their
# own, or of levels with several doses, they are computed from θ, too (`forest.effects`). A new criterion is one class
# and one entry in CRITERIA.

KNOTS = 5
_BETWEEN = (0.05, 0.275, 0.5, 0.725, 0.95)  # quantiles of the levels at which knots lie (Harrell 2015, table 2.3)


class Criterion(Protocol):
    """Maps treatment levels to the basis in which effects are compared."""

    def basis(self, levels: Levels) -> np.ndarray:
        """φ of each level, float64 [q, K]; column 0 is the control."""
        ...

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """φ of any doses [m, d] on the scale that `levels` fix, float64 [q, m]."""
        ...


class Slope:
    """Ordered levels: φ = dose, θ = conditional average partial effect (the continuous causal forest)."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Doses scaled to unit range, float64 [1, K]: scale-free, so ridge and limits mean the same for any unit."""
        return self.at(levels, dose_matrix(levels))

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """See `Criterion`; float64 [1, m]."""
        return _scaled(levels, _of_one_dose(doses, "slope")).T


class Spline:
    """Ordered levels with a curved response: a natural cubic spline of the dose, straight beyond the outer knots."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Dose and three curved terms, float64 [4, K]."""
        return self.at(levels, dose_matrix(levels))

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """See `Criterion`; float64 [4, m]. Raises ConfigError when there are fewer levels than knots."""
        own = _scaled(levels, dose_matrix(levels))[:, 0]
        if own.size < KNOTS:
            raise ConfigError(f"criterion spline has {KNOTS} knots, and there are {own.size} levels: take slope")
        knots = np.quantile(own, _BETWEEN)
        x = _scaled(levels, _of_one_dose(doses, "spline"))[:, 0]
        cubes = np.maximum(x[:, None] - knots, 0.0) ** 3
        pieces = (cubes[:, :-1] - cubes[:, -1:]) / (knots[-1] - knots[:-1])
        return np.vstack([x, (pieces[:, :-1] - pieces[:, -1:]).T])


class Product:
    """Levels with several doses, such as discount and frequency: φ = each dose and the products of any two."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Doses scaled to unit range, then pairwise interactions, float64 [d + d (d - 1) / 2, K]."""
        return self.at(levels, dose_matrix(levels))

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """See `Criterion`."""
        x = _scaled(levels, doses)
        return np.vstack([x.T, *(x[:, a] * x[:, b] for a, b in combinations(range(x.shape[1]), 2))])


class OneHot:
    """Unordered arms: φ = one indicator per treated level, θ = each arm's effect; binary is its K = 2 case."""

    def basis(self, levels: Levels) -> np.ndarray:
        """Indicators, float64 [K-1, K]."""
        return np.eye(len(levels))[1:]

    def at(self, levels: Levels, doses: np.ndarray) -> np.ndarray:
        """Raises ConfigError: arms without order have nothing between them."""
        raise ConfigError("criterion one_hot knows the levels only, no doses between them: take slope or spline")


CRITERIA: dict[str, Criterion] = {"slope": Slope(), "spline": Spline(), "product": Product(), "one_hot": OneHot()}


def default_criterion(levels: Levels) -> str:
    """Slope when the levels carry a dose, product when they carry several and are enough of them, else one-hot."""
    if levels.doses is None:
        return "one_hot"
    if dose_matrix(levels).shape[1] == 1:
        return "slope"
    return "product" if identified(CRITERIA["product"].basis(levels)) else "one_hot"


def identified(basis: np.ndarray) -> bool:
    """Whether the levels of a basis [q, K] tell its coefficients apart."""
    return int(np.linalg.matrix_rank(np.vstack([np.ones(basis.shape[1]), basis]))) == 1 + len(basis)


def dose_matrix(levels: Levels) -> np.ndarray:
    """Doses of levels that have some, float64 [K, d]."""
    return np.asarray(levels.doses, np.float64).reshape(len(levels), -1)


def _scaled(levels: Levels, doses: np.ndarray) -> np.ndarray:
    """Doses [m, d] with the control's at zero and the levels' over a range of one."""
    own = dose_matrix(levels)
    return (doses - own[0]) / (own.max(axis=0) - own.min(axis=0))


def _of_one_dose(doses: np.ndarray, name: str) -> np.ndarray:
    if doses.shape[1] > 1:
        raise ConfigError(f"criterion {name} is for levels with one dose, these have {doses.shape[1]}: take product")
    return doses


# --------------------------------------------------------------------------------------------------------------------
# From how little bags differ to variances of effects and of their averages (Athey, Tibshirani & Wager 2019, s. 4).

Z95 = normal_quantile(0.95)
CORRECTED_VARIANCE, _SHARED_GROWTH = 0.6, 0.8  # see `variance_factor`


def bag_covariance(influence: np.ndarray, design: tuple[int, int, int]) -> np.ndarray:
    """Little-bag covariance of averages from their trees' influence [T, K-1]: [K-1, K-1], positive semidefinite.

    As in the kernel a bag speaks through those of its trees that do, and a bucket's only tree is not centred.
    """
    bag, n_buckets, _ = design
    speaks = (influence != 0).sum(axis=1) > 0
    for b in range(n_buckets):
        mine = b + n_buckets * np.flatnonzero(speaks[b::n_buckets])
        if mine.size > 1:
            influence[mine] = (influence[mine] - influence[mine].mean(axis=0)) * math.sqrt(mine.size / (mine.size - 1))
    count = speaks.reshape(-1, bag).sum(axis=1)
    bags, there = influence.reshape(-1, bag, influence.shape[1])[count > 1], speaks.reshape(-1, bag)[count > 1]
    if not len(bags):
        return np.zeros((influence.shape[1], influence.shape[1]))
    count = count[count > 1]
    means = bags.sum(axis=1) / count[:, None]
    apart = (bags - means[:, None]) * there[:, :, None]
    between = means.T @ means / len(means)
    noise = np.einsum("gtk,gtl,g->kl", apart, apart, 1.0 / (count * (count - 1))) / len(means)
    if not np.isfinite(between - noise).all():  # no row has effects
        return np.full_like(between, np.nan)
    values, vectors = np.linalg.eigh(between - noise)
    covariance = (vectors * np.maximum(values, 0.0)) @ vectors.T
    # Where bags differ no more than the trees in them, nothing was found, not certainty: as for single effects.
    least = [debiased_variance(between[k, k], noise[k, k], len(means)) for k in range(len(covariance))]
    return np.asarray(covariance + np.diag(np.maximum(least - np.diag(covariance), 0.0)))


def few_bags(bags: int) -> float:
    """What a variance that is known from that many bags is multiplied by, so that normal intervals hold their level.

    A t quantile in place of the normal one (its first term, Cornish & Fisher 1938), squared. Degrees of freedom are
    half the bags: about as much as the bags vary is taken off for the trees in them. In simulations averages were
    covered .935 of the time without it, the mean of ten designs of 500 draws each (`make simulations`).
    """
    return (1.0 + (Z95**2 + 1.0) / (2.0 * max(bags, 2))) ** 2


def left_out(plan: ForestPlan) -> float:
    """What the little-bag variance is multiplied by because trees of one bag are estimated on different buckets.

    That looks like noise between them. With each bucket's part in a half-sample's deviation of variance 1, the bags
    show `between - within / (bag - 1)` where the forest, which leaves out every bucket in turn, has 1 / B.
    """
    b, g, bag = plan.n_buckets, plan.growth_buckets, plan.bag_size
    # The first bag stands for all: the next ones leave out the same pattern of buckets, turned around.
    weights = ((np.arange(b) - np.arange(bag)[:, None]) % b >= g) / (b - g)
    between, each = float((weights.mean(axis=0) ** 2).sum()), 1.0 / (b - g)
    return 1.0 / b / max(between - (each - between) / max(bag - 1, 1), 0.25 / b)


def variance_factor(plan: ForestPlan, corrected: float) -> float:
    """What the little-bag variance of single effects is multiplied by, for what all bags share and so cannot show.

    Left-out buckets: see there. Where several buckets grow a tree, trees share growing rows across buckets, too;
    simulations suggest .8 of that.

    Bias correction: with S the forest's smoother the estimate is (2S - S²)y, but what S² takes away is the same in
    every bag, so the bags show the variance of 2Sy. Over the true one that is 4 / (2 - s)², s the smoother's eigenvalue
    where the noise is; simulated designs of 2,000 to 100,000 rows, 2 to 5 levels, strong, weak and no effects gave 1.6
    to 2. A correction by other rows than the estimate's hides less of its noise (`refresh.forest_of`): `corrected`.
    """
    shared = _SHARED_GROWTH if plan.growth_buckets > 1 else 1.0
    return left_out(plan) * shared * (corrected if plan.debias else 1.0)


# --------------------------------------------------------------------------------------------------------------------
# Effects from a response: the regression of the outcome on a treatment basis φ, solved once from sums over
# trees.
# Where doses are cells (`forest.encode`) or levels have several doses, an effect is φ(w)'θ - φ(control)'θ with θ the
# coefficient of Y on φ(W) near the unit (Athey, Tibshirani & Wager 2019, s. 6; Hastie & Tibshirani 1993). Leaf sums by
# cell are all it takes: any basis is a linear map of them, and effects at doses that were not requested when the
# forest was trained, or of one unit of dose more, come from the same file.

_STEP = 1e-4  # of the range of doses, for derivatives
PIVOT = 1e-8


def contrast_matrix(plan: ForestPlan) -> np.ndarray:
    """What θ counts for in each effect of the plan, float64 [L, q]; [0, 0] for one whose levels speak for themselves.

    An effect is that of a dose of `reported` against the control's or, with `partial`, that of one unit more of it.
    Raises ConfigError for a basis that knows no doses between the levels.
    """
    if plan.reported is None:
        return np.zeros((0, 0))
    criterion, doses = CRITERIA[plan.criterion], dose_matrix(plan.reported)
    if plan.partial:
        step = _STEP * np.ptp(dose_matrix(plan.levels))
        ends = [criterion.at(plan.levels, doses[1:] + side) for side in (step, -step)]
        return np.ascontiguousarray((ends[0] - ends[1]).T / (2 * step))
    phi = criterion.at(plan.levels, doses)
    return np.ascontiguousarray((phi[:, 1:] - phi[:, :1]).T)


def moments(values: np.ndarray, basis: np.ndarray, supporting: np.ndarray) -> np.ndarray:
    """Basis moments of leaves: float64 [leaves, M], M = 3 + 2q + q (q + 1) / 2.

    Per row of a leaf: 1 (-1 in a leaf without rows), mean outcome, mean φ (q), mean φy (q), mean φφ' (lower triangle),
    and 1 where the leaf supports effects.

    values      float64 [leaves, K, 2]: Σw_k / Σw and Σwy_k / Σw, -1 in the first place of an empty leaf
    basis       φ of every cell, float64 [q, K]
    supporting  bool [leaves]
    """
    empty = values[:, :1, 0] < 0
    n, s = np.where(empty, 0.0, values[:, :, 0]), values[:, :, 1]
    pairs = np.stack([basis[a] * basis[b] for a in range(len(basis)) for b in range(a + 1)])
    parts = [1.0 - 2.0 * empty, s.sum(axis=1, keepdims=True)]
    parts += [n @ basis.T, s @ basis.T, n @ pairs.T, supporting[:, None].astype(np.float64)]
    return np.concatenate(parts, axis=1)


@nb.njit(cache=True, nogil=True, inline="always")
def _score(m, fit, q, score):
    """What moments m say against the fit (a, θ, mean φ) of all trees: Σ(φ - mean φ)(y - a - φ'θ), into score [q]."""
    misfit = m[1] - fit[0] * m[0]
    for a in range(q):
        misfit -= fit[1 + a] * m[2 + a]
    at = 2 + 2 * q
    for a in range(q):
        score[a] = m[2 + q + a] - fit[0] * m[2 + a] - fit[1 + q + a] * misfit
    for a in range(q):
        for b in range(a + 1):
            score[a] -= fit[1 + b] * m[at]
            if b < a:
                score[b] -= fit[1 + a] * m[at]
            at += 1


@nb.njit(cache=True, nogil=True)
def _fit(m, contrasts, fit, weight):
    """Solve the response from moments m, summed over trees: writes fit (a, θ, mean φ) and weight [L, q], what a score
    counts for in each effect. False where the moments do not determine it."""
    effects, q = contrasts.shape
    scatter, at = np.empty((q, q)), 2 + 2 * q
    for a in range(q):
        fit[1 + q + a] = m[2 + a] / m[0]
        for b in range(a + 1):
            scatter[a, b] = scatter[b, a] = m[at] - m[2 + a] * m[2 + b] / m[0]
            at += 1
    for a in range(q):  # Cholesky, in place
        largest = scatter[a, a]
        for b in range(a + 1):
            for c in range(b):
                scatter[a, b] -= scatter[a, c] * scatter[b, c]
            if a == b:
                if not scatter[a, a] > PIVOT * largest:
                    return False
                scatter[a, a] = math.sqrt(scatter[a, a])
            else:
                scatter[a, b] /= scatter[b, b]
    for line in range(effects + 1):
        x = weight[line] if line < effects else fit[1 : 1 + q]
        for a in range(q):
            x[a] = contrasts[line, a] if line < effects else m[2 + q + a] - m[2 + a] * m[1] / m[0]
            for b in range(a):
                x[a] -= scatter[a, b] * x[b]
            x[a] /= scatter[a, a]
        for a in range(q - 1, -1, -1):
            for b in range(a + 1, q):
                x[a] -= scatter[b, a] * x[b]
            x[a] /= scatter[a, a]
    fit[0] = m[1] / m[0]
    for a in range(q):
        fit[0] -= fit[1 + a] * fit[1 + q + a]
    return True


@nb.njit(cache=True, nogil=True)
def _solve(totals, counts, contrasts, state, effect, support):
    """Effects of a block's rows; state is (fit [block, 1 + 2q], weight [block, L, q], centre [B, block, L]), written.

    Counts are replaced by the factors that influence is stretched by, as in `kernels._solve`.
    """
    fit, weight, centre = state
    effects, q = contrasts.shape
    score = np.empty(q)
    for j in range(effect.shape[0]):
        m = np.zeros(totals.shape[2])
        for b in range(totals.shape[0]):
            m += totals[b, j]
        known = m[0] > 0.0 and _fit(m, contrasts, fit[j], weight[j])
        trees = counts[:, j].sum()
        for k in range(effects):
            effect[j, k] = np.nan
            support[j, k] = m[-1] / max(trees, 1.0)
            if known:
                effect[j, k] = 0.0
                for a in range(q):
                    effect[j, k] += contrasts[k, a] * fit[j, 1 + a]
                    weight[j, k, a] *= trees
        for b in range(totals.shape[0]):
            if known:
                _score(totals[b, j], fit[j], q, score)
            for k in range(effects):
                centre[b, j, k] = 0.0
                if known and counts[b, j] > 1.0:
                    for a in range(q):
                        centre[b, j, k] += weight[j, k, a] * score[a] / counts[b, j]
            counts[b, j] = math.sqrt(counts[b, j] / max(counts[b, j] - 1.0, 1.0))


@nb.njit(cache=True, nogil=True)
def _spread(leaves, values, design, block, variance):
    """Little-bag variance of each effect of a block, as `kernels._spread`."""
    stretch, fit, weight, centre = block
    bag, n_buckets, _ = design
    effects, q = weight.shape[1:]
    score, sums, squares = np.empty(q), np.empty(effects), np.empty(effects)
    between, within = np.empty(effects), np.empty(effects)
    for j in range(variance.shape[0]):
        groups = 0.0
        between[:], within[:] = 0.0, 0.0
        for first in range(0, leaves.shape[0], bag):
            trees = 0.0
            sums[:], squares[:] = 0.0, 0.0
            for t in range(first, first + bag):
                if leaves[t, j] < 0:
                    continue
                trees += 1.0
                _score(values[leaves[t, j]], fit[j], q, score)
                for k in range(effects):
                    influence = -centre[t % n_buckets, j, k]
                    for a in range(q):
                        influence += weight[j, k, a] * score[a]
                    influence *= stretch[t % n_buckets, j]
                    sums[k] += influence
                    squares[k] += influence * influence
            if trees < 2.0:
                continue
            groups += 1.0
            for k in range(effects):
                mean = sums[k] / trees
                between[k] += mean * mean
                within[k] += (squares[k] / trees - mean * mean) / (trees - 1.0)
        for k in range(effects):
            variance[j, k] = (
                debiased_variance(between[k] / groups, within[k] / groups, groups) if groups >= 2.0 else np.nan
            )


@nb.njit(cache=True, nogil=True)
def predict_responses(routes, values, design, rows, contrasts, with_errors, out):
    """`kernels.predict_effects` of effects contrasts @ θ: values are `moments`, contrasts [L, q], out [n, L]."""
    bins, halves = rows
    effect, variance, support = out
    (effects, q), n_buckets = contrasts.shape, min(design[1], len(routes.rounds))
    if not with_errors:
        n_buckets = 1
    design = (design[0], n_buckets, design[2])
    block = min(BLOCK, max(4, IN_CACHE // (n_buckets * values.shape[1] * LANES)) * LANES)
    lists, leaves = new_lists(bins.shape[1]), np.full((len(routes.rounds), block), -1, np.int32)
    totals, counts = np.empty((n_buckets, block, values.shape[1])), np.empty((n_buckets, block))
    state = np.zeros((block, 1 + 2 * q)), np.zeros((block, effects, q)), np.empty((n_buckets, block, effects))
    for low in range(0, bins.shape[0], block):
        here = min(block, bins.shape[0] - low)
        part = slice(low, low + here)
        sum_shares(routes, values, (bins, halves, low, here), design, lists, leaves, totals, counts)
        _solve(totals, counts, contrasts, state, effect[part], support[part])
        if with_errors:
            _spread(leaves, values, design, (counts, *state), variance[part])
            for j in range(here):
                if np.isnan(effect[low + j, 0]):
                    variance[low + j] = np.nan


@nb.njit(cache=True, nogil=True)
def average_responses(routes, values, design, rows, contrasts, influence, effects, counts):
    """`kernels.average_influence` of effects contrasts @ θ: values are `moments`, contrasts [L, q]."""
    bins, segment = rows
    (width, q), n_buckets = contrasts.shape, min(design[1], len(routes.rounds))
    halves = np.zeros((bins.shape[0], 0), np.uint64)
    lists, leaves = new_lists(bins.shape[1]), np.empty((len(routes.rounds), BLOCK), np.int32)
    totals, speaking = np.empty((n_buckets, BLOCK, values.shape[1])), np.empty((n_buckets, BLOCK))
    fit, weight = np.zeros((BLOCK, 1 + 2 * q)), np.zeros((BLOCK, width, q))
    centre, score = np.empty((n_buckets, BLOCK, width)), np.empty(q)
    effect, support = np.empty((BLOCK, width)), np.empty((BLOCK, width))
    for low in range(0, bins.shape[0], BLOCK):
        here = min(BLOCK, bins.shape[0] - low)
        sum_shares(routes, values, (bins, halves, low, here), design, lists, leaves, totals, speaking)
        _solve(totals, speaking, contrasts, (fit, weight, centre), effect[:here], support[:here])
        for j in range(here):
            if np.isnan(effect[j].sum()):
                continue
            s = segment[low + j]
            counts[s] += 1.0
            effects[s] += effect[j]
            for t in range(leaves.shape[0]):
                if leaves[t, j] < 0:
                    continue
                _score(values[leaves[t, j]], fit[j], q, score)
                for k in range(width):
                    for a in range(q):
                        influence[s, t, k] += weight[j, k, a] * score[a]
