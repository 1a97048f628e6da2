"""What drives the effects of a trial, and whether the forest found any: tests on rows that training never saw.

All start from unbiased scores of each unit's effect (`trial_scores`): regressed on the forest's predictions they say
whether these tell units apart (`heterogeneity_test`), regressed on features who gains (`best_linear_projection`).
Errors are HC3, or its counterpart for clusters: what the estimate moves by when a row, or a cluster, is left out.
Predictions must come from trees that did not see the row (or its cluster): on their own rows trees always find effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import scipy.linalg
import scipy.stats

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.encode import check_repeated, encode, encode_numbers, repeated_rows
from uplift_spark.forest.forest import Forest, Model
from uplift_spark.forest.trees import LEAF, node_child, node_feature
from uplift_spark.stats.moments import ratio

IMPORTANCE_DEPTH = 4
DECAY = 2.0
_RANK = 1e-7  # standardised columns whose smallest stretch is below this share of the largest are dependent
_CONSTANT = 1e-10  # relative: a column, or a residual, that varies by less does not vary
_ALONE = 1e-9  # one minus the leverage of a row, or cluster, without which columns are dependent
_CELLS = 1 << 22  # of the clusters' cross products held at once


def trial_scores(
    outcome: np.ndarray, level: np.ndarray, propensities: np.ndarray, baseline: float | np.ndarray | None = None
) -> np.ndarray:
    """Unbiased score of each level's effect against the control on every unit of a trial, float64 [n, K-1].

        score_k = (1[W = k] / e_k - 1[W = 0] / e_0) * (Y - baseline)

    Horvitz & Thompson 1952: its expectation given the unit is Y(k) - Y(0), whatever the baseline, as long as that does
    not depend on the unit's own level and outcome.

    outcome       [n], in the outcome's units, as are the scores
    level         integer codes of the levels received, [n]; 0 is the control
    propensities  [K], or [n, K] where they vary: the probabilities of every level that the assignment used
    baseline      a number or [n], such as a prediction of the outcome from features: the closer, the smaller the
                  variance. By default the mean outcome of the other units

    Raises DataError for outcomes that are not finite, propensities outside (0, 1) or adding to more than one, and a
    level that no unit received; ConfigError for shapes that do not fit.
    """
    y, w, e = np.asarray(outcome, np.float64), np.asarray(level), np.asarray(propensities, np.float64)
    n, k = y.size, e.shape[-1] if e.ndim else 0
    if y.ndim != 1 or w.shape != (n,) or e.shape not in ((k,), (n, k)) or k < 2:
        raise ConfigError(f"outcome {y.shape}, level {w.shape}, propensities {e.shape}: give [n], [n], [K] or [n, K]")
    if not np.issubdtype(w.dtype, np.integer):
        raise ConfigError(f"level has type {w.dtype}: give each unit's level as an integer, 0 for the control")
    _finite(y[:, None], ["outcome"])
    _check_assignment(w, e)
    if baseline is None:
        gap = (y - y.mean()) * (n / (n - 1))
    else:
        gap = y - np.broadcast_to(np.asarray(baseline, np.float64), (n,))
        _finite(gap[:, None], ["baseline"])
    weight = (w[:, None] == np.arange(k)) / e
    return (weight[:, 1:] - weight[:, :1]) * gap[:, None]


def _check_assignment(level: np.ndarray, propensities: np.ndarray) -> None:
    k = propensities.shape[-1]
    bad = int((~((propensities > 0) & (propensities < 1))).sum())
    if bad:
        raise DataError(f"{bad} of {propensities.size} propensities are not inside (0, 1): leave such units out")
    total = float(propensities.sum(axis=-1).max())
    if total > 1.01:  # logged probabilities are rounded
        raise DataError(f"propensities of one unit add to {total:.4g}, more than one: give one per level")
    outside = int(((level < 0) | (level >= k)).sum())
    if outside:
        raise DataError(f"level is not in 0 .. {k - 1} in {outside} of {level.size} rows: {k} propensities are given")
    absent = np.flatnonzero(np.bincount(level, minlength=k) == 0).tolist()
    if absent:
        raise DataError(f"levels {absent} occur in none of {level.size} rows: their effects cannot be scored")


@dataclass(frozen=True)
class HeterogeneityTest:
    """Result of `heterogeneity_test`; arrays are float64 [K-1], one place per treated level.

    mean, mean_error      coefficient of the mean prediction and its standard error: 1 when the average is right
    slope, slope_error    coefficient of prediction minus mean: 1 when differences between units are right, 0 when the
                          predictions tell units apart no better than chance
    t                     slope / slope_error
    p_value               one-sided: small when the predictions find true differences
    df                    degrees of freedom of the t distribution
    """

    mean: np.ndarray
    mean_error: np.ndarray
    slope: np.ndarray
    slope_error: np.ndarray
    t: np.ndarray
    p_value: np.ndarray
    df: int


def heterogeneity_test(
    effect: np.ndarray, score: np.ndarray, weight: np.ndarray | None = None, cluster: np.ndarray | None = None
) -> HeterogeneityTest:
    """Whether predicted effects tell units apart: best linear predictor of the effect given the predictions.

    Per level, least squares of the score on the mean prediction and on prediction minus mean, without intercept
    (Chernozhukov, Demirer, Duflo & Fernandez-Val 2018; grf's `test_calibration`). The p-value is one-sided: with
    predictions out of bag a two-sided test does not hold its level, as these lean against the left-out row's own noise.

    effect    predictions [n] or [n, K-1] by trees that did not see the row, in the outcome's units
    score     of the same shape, from `trial_scores`
    weight    positive sample weights [n]
    cluster   labels [n] of units that are not independent; training must have seen none of these clusters

    NaN: the slope where predictions do not vary, the mean's coefficient where the mean is zero, errors where the score
    does not vary. Raises DataError for values that are not finite, ConfigError for shapes that do not fit.
    """
    effect, score = _columns(effect, "effect"), _columns(score, "score")
    if effect.shape != score.shape:
        raise ConfigError(f"effect {effect.shape} and score {score.shape} differ in shape: give a column per level")
    names = [f"effect of level {k + 1}" for k in range(effect.shape[1])]
    _finite(effect, names)
    w, codes = _checked(score, weight, cluster)
    estimates = np.full((2, 2, score.shape[1]), np.nan)  # mean and slope, each with its error
    df = len(score) - 2 if codes is None else int(codes.max())
    for k in range(score.shape[1]):
        centred, mean, spread = _standardised(effect[:, [k]], w)
        varying = int(spread[0] > 0)
        design = _Design.of(centred[:, :varying], w, codes, names[k : k + varying])
        coefficients, covariance = design.regress(score[:, k])
        scale = np.array([mean[0] or np.nan, spread[0]])[: coefficients.size]
        estimates[: scale.size, 0, k] = coefficients / scale
        estimates[: scale.size, 1, k] = np.sqrt(np.diag(covariance)) / np.abs(scale)
    t = ratio(*estimates[1])
    return HeterogeneityTest(
        estimates[0, 0], estimates[0, 1], estimates[1, 0], estimates[1, 1], t, scipy.stats.t.sf(t, df), df
    )


@dataclass(frozen=True)
class Projection:
    """Result of `best_linear_projection`; arrays are float64 [1 + p, K-1], the intercept first, or [K-1] if joint.

    names            "intercept" and the features
    estimate, error  coefficients and standard errors, in the outcome's units per unit of the feature
    t, p_value       estimate / error and its two-sided p-value
    lower, upper     95 % interval
    df               degrees of freedom of the t distribution
    wald             F statistic of all slopes being zero, with joint_df degrees of freedom and joint_p_value
    """

    names: tuple[str, ...]
    estimate: np.ndarray
    error: np.ndarray
    t: np.ndarray
    p_value: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    df: int
    wald: np.ndarray
    joint_df: tuple[int, int]
    joint_p_value: np.ndarray


def best_linear_projection(
    features: np.ndarray,
    score: np.ndarray,
    names: Sequence[str],
    weight: np.ndarray | None = None,
    cluster: np.ndarray | None = None,
) -> Projection:
    """Linear summary of who gains: least squares of the score on features, with intercept.

    Semenova & Chernozhukov 2021: whatever the effect's true shape, this estimates the straight line closest to it. The
    joint test of all slopes refers to F(p, n - p - 1), with G clusters to Hotelling's F(p, G - p): chi-square would
    reject too often in small samples.

    features  numeric [n, p], fixed before the trial's outcomes were seen; names [p]
    score     [n] or [n, K-1], from `trial_scores`
    weight    positive sample weights [n]
    cluster   labels [n] of units that are not independent

    Errors are NaN where the score does not vary. Raises DataError for missing values (naming column and count) and for
    features that are constant, depend on each other linearly, or do so once a single row or cluster is left out (naming
    the columns); ConfigError for shapes that do not fit.
    """
    x, score, names = _columns(features, "features"), _columns(score, "score"), list(names)
    if x.shape[1] != len(names) or x.shape[0] != score.shape[0] or not names:
        raise ConfigError(f"features {x.shape}, score {score.shape}, {len(names)} names: give [n, p], [n, K-1], [p]")
    _finite(x, names)
    w, codes = _checked(score, weight, cluster)
    z, mean, spread = _standardised(x, w)
    constant = [name for name, s in zip(names, spread, strict=True) if s == 0]
    if constant:
        raise DataError(f"features {constant} are the same in all {len(x)} rows: leave them out")
    design = _Design.of(z, w, codes, names)
    # Coefficients of the standardised columns to those of the features.
    back = np.diag(np.concatenate([[1.0], 1.0 / spread]))
    back[0, 1:] = -mean / spread
    size = (1 + len(names), score.shape[1])
    estimate, error, wald = np.empty(size), np.empty(size), np.empty(size[1])
    for k in range(size[1]):
        coefficients, covariance = design.regress(score[:, k])
        estimate[:, k] = back @ coefficients
        error[:, k] = np.sqrt(np.diag(back @ covariance @ back.T))
        wald[k] = coefficients[1:] @ np.linalg.solve(covariance[1:, 1:], coefficients[1:]) / len(names)
    t, df = ratio(estimate, error), design.df
    half = scipy.stats.t.ppf(0.975, df) * error
    joint_df = (len(names), df if codes is None else df + 1 - len(names))
    wald *= joint_df[1] / df
    return Projection(
        names=("intercept", *names),
        estimate=estimate,
        error=error,
        t=t,
        p_value=2 * scipy.stats.t.sf(np.abs(t), df),
        lower=estimate - half,
        upper=estimate + half,
        df=df,
        wald=wald,
        joint_df=joint_df,
        joint_p_value=scipy.stats.f.sf(wald, *joint_df),
    )


@dataclass(frozen=True)
class _Design:
    """Intercept and standardised columns, factored once for the scores of all levels.

    q, r      thin QR factors [n, c], [c, c] of sqrt(weight) times the columns, intercept first
    root      sqrt(weight), [n]
    codes     cluster of each row as 0 .. G-1, [n], or None when each row is its own
    names     of the columns without the intercept, for messages
    df        of the t distribution of one coefficient: n - c, or G - 1
    """

    q: np.ndarray
    r: np.ndarray
    root: np.ndarray
    codes: np.ndarray | None
    names: list[str]
    df: int

    @classmethod
    def of(cls, z: np.ndarray, weight: np.ndarray, codes: np.ndarray | None, names: list[str]) -> _Design:
        """Factor columns z [n, c-1]; DataError if they depend on each other or rows or clusters are too few."""
        n, slopes = z.shape
        groups = n if codes is None else int(codes.max()) + 1
        if n <= slopes + 1 or groups <= max(slopes, 1):
            what = "rows" if codes is None else "clusters"
            raise DataError(f"{groups} {what} are too few for {slopes} columns and an intercept: take fewer columns")
        root = np.sqrt(weight)
        q, r = np.linalg.qr(root[:, None] * np.column_stack([np.ones(n), z]))
        dependent = _dependent(r, names)
        if dependent:
            raise DataError(f"features {dependent} depend on each other linearly: leave one of them out")
        return cls(q, r, root, codes, names, n - slopes - 1 if codes is None else groups - 1)

    def regress(self, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(coefficients [c], their covariance [c, c]) of one score [n]; the covariance is NaN if nothing is left over.

        HC3 (MacKinnon & White 1985); with clusters CR3 (Bell & McCaffrey 2002). Both add up, over rows or clusters,
        the squared change of the coefficients when it is left out.
        """
        y = self.root * score
        fitted = self.q.T @ y
        residual = y - self.q @ fitted
        inverse = scipy.linalg.solve_triangular(self.r, np.eye(fitted.size))
        if np.linalg.norm(residual) <= _CONSTANT * np.linalg.norm(y):
            return inverse @ fitted, np.full(inverse.shape, np.nan)
        pull = self.q * residual[:, None]
        change = self._row_changes(pull) if self.codes is None else self._cluster_changes(pull, self.codes)
        return inverse @ fitted, inverse @ (change.T @ change) @ inverse.T

    def _row_changes(self, pull: np.ndarray) -> np.ndarray:
        """Each row's pull over one minus its leverage, [n, c]."""
        room = 1.0 - np.einsum("ij,ij->i", self.q, self.q)
        if room.min() < _ALONE:
            self._refuse(np.arange(room.size) == room.argmin(), "row")
        return pull / room[:, None]

    def _cluster_changes(self, pull: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """(I - Q_g'Q_g)^-1 of each cluster's summed influence, [G, c], from that of the rows [n, c]."""
        size = pull.shape[1]
        order = np.argsort(codes, kind="stable")
        ends = np.searchsorted(codes[order], np.arange(codes.max() + 2))
        step = max(1, _CELLS // size**2)
        changes = []
        for low in range(0, ends.size - 1, step):
            high = min(low + step, ends.size - 1)
            rows = order[ends[low] : ends[high]]
            within, q = codes[rows] - low, self.q[rows]
            room = np.broadcast_to(np.eye(size), (high - low, size, size)).copy()
            for a in range(size):
                for b in range(size):
                    room[:, a, b] -= np.bincount(within, q[:, a] * q[:, b], high - low)
            least = np.linalg.eigvalsh(room)[:, 0]
            if least.min() < _ALONE:
                self._refuse(codes == low + least.argmin(), "cluster")
            sums = np.stack([np.bincount(within, pull[rows, a], high - low) for a in range(size)], axis=1)
            changes.append(np.linalg.solve(room, sums[:, :, None])[:, :, 0])
        return np.concatenate(changes)

    def _refuse(self, alone: np.ndarray, what: str) -> None:
        rest = scipy.linalg.qr(self.q[~alone] @ self.r, mode="economic")[1]
        raise DataError(
            f"features {_dependent(rest, self.names) or self.names} would be constant or depend on each other without "
            f"a single {what}, so no error can be given: leave one of them out or merge rare values"
        )


def _dependent(r: np.ndarray, names: list[str]) -> list[str]:
    """Names of the columns that take part in a linear dependence, from a triangular factor [c, c], intercept first."""
    _, stretch, axes = np.linalg.svd(r)
    stretch = np.pad(stretch, (0, len(axes) - stretch.size))
    null = axes[stretch <= _RANK * stretch[0]]
    parts = np.sqrt((null**2).sum(axis=0))[1:]
    return [name for name, part in zip(names, parts, strict=True) if part > 1e-4]


def _standardised(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(columns with weighted mean 0 and variance 1 [n, p], means [p], standard deviations [p]: 0 if constant)."""
    share = weight / weight.sum()
    mean = share @ x
    centred = x - mean
    spread = np.sqrt(share @ centred**2)
    spread = np.where(spread > _CONSTANT * np.abs(x).max(axis=0), spread, 0.0)
    return centred / np.where(spread > 0, spread, 1.0), mean, spread


def _columns(values: np.ndarray, what: str) -> np.ndarray:
    """Numbers as float64 [n, columns]."""
    array = np.asarray(values, np.float64)
    if array.ndim not in (1, 2) or array.shape[0] < 3:
        raise ConfigError(f"{what} has shape {array.shape}: give at least three rows, as [n] or [n, columns]")
    return array[:, None] if array.ndim == 1 else array


def _finite(columns: np.ndarray, names: Sequence[str]) -> None:
    """Raise DataError naming the first column with missing or infinite values, and their number."""
    bad = (~np.isfinite(columns)).sum(axis=0)
    for name, count in zip(names, bad.tolist(), strict=True):
        if count:
            raise DataError(f"{name!r} is missing or infinite in {count} of {len(columns)} rows: drop or fill them")


def _checked(
    score: np.ndarray, weight: np.ndarray | None, cluster: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """(weights [n] with mean 1, cluster codes [n] or None), after checking these and the score."""
    n = len(score)
    _finite(score, [f"score of level {k + 1}" for k in range(score.shape[1])])
    w = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    labels = np.zeros(n) if cluster is None else np.asarray(cluster)
    if w.shape != (n,) or labels.shape != (n,):
        raise ConfigError(f"weight {w.shape} and cluster {labels.shape} must have one value for each of {n} rows")
    bad = int((~(np.isfinite(w) & (w > 0))).sum())
    if bad:
        raise DataError(f"column 'weight' is not a positive finite number in {bad} of {n} rows: fix or drop them")
    missing = sum(label is None or label != label for label in labels.tolist())
    if missing:
        raise DataError(f"column 'cluster' is missing in {missing} of {n} rows: fill or drop them")
    return w / w.mean(), None if cluster is None else np.unique(labels, return_inverse=True)[1]


def variable_importance(forest: Forest) -> dict[str, float]:
    """Share of each feature in the forest's upper splits, {feature: share}; adds to 1, all zeros without any split.

    A split counts with the weight of the estimation rows that pass it, over depth^2 (1 at the root), down to depth 4:
    grf's `variable_importance` and its defaults, except that grf counts splits. It says what trees looked at, not that
    effects differ by it: without any difference all features have a share. `best_linear_projection` tests.
    """
    passing, splits = _split_weights(forest)
    names = [bins.name for bins in forest.plan.bins]
    shares = np.zeros(len(names))
    for depth, level_nodes in enumerate(splits[:IMPORTANCE_DEPTH], start=1):
        features = node_feature.py_func(forest.structure.nodes[level_nodes])
        shares += np.bincount(features, passing[level_nodes], len(names)) / depth**DECAY
    total = shares.sum()
    return dict(zip(names, (shares / total if total > 0 else shares).tolist(), strict=True))


def _split_weights(forest: Forest) -> tuple[np.ndarray, list[np.ndarray]]:
    """(estimation weight that passes each node, float64 [nodes]; places of all trees' splits, one array per depth)."""
    s = forest.structure
    tree = np.repeat(np.arange(s.n_trees), np.diff(s.node_start))
    child = node_child.py_func(s.nodes)
    leaf = s.nodes & np.uint64(LEAF) != 0
    left = s.node_start[tree] + child  # of splits
    passing = np.zeros(s.nodes.size)
    passing[leaf] = forest.sums[:, :, 0].sum(axis=1)[s.leaf_start[tree[leaf]] + child[leaf]]
    splits = []
    level_nodes = s.node_start[:-1][np.diff(s.node_start) > 0]
    while (level_nodes := level_nodes[~leaf[level_nodes]]).size:
        splits.append(level_nodes)
        level_nodes = np.concatenate([left[level_nodes], left[level_nodes] + 1])
    for level_nodes in reversed(splits):
        passing[level_nodes] = passing[left[level_nodes]] + passing[left[level_nodes] + 1]
    return passing, splits


# --------------------------------------------------------------------------------------------------------------------
# The tests of a model on the rows of a table.


def heterogeneity_table(model: Model, rows: pa.Table, threads: int = 1) -> pa.Table:
    """`heterogeneity_test` of the model's effects, a row per treated level; scores as in `unit_scores`."""
    scores, weight, cluster = unit_scores(model, rows)
    test = heterogeneity_test(model.effect_arrays(rows, threads, errors=False)[0], scores, weight, cluster)
    names = ("mean", "mean_error", "slope", "slope_error", "t", "p_value")
    return pa.table({"treatment": list(model.levels.treated), **{name: getattr(test, name) for name in names}})


def projection_table(model: Model, rows: pa.Table, features: Sequence[str] | None = None) -> pa.Table:
    """`best_linear_projection` on the named features, by default all numeric ones of the model: a row per treated level
    and coefficient. Raises ConfigError for features that are not numeric."""
    numeric = [one.name for one in model.bins if not one.categorical]
    names = numeric if features is None else list(features)
    if unknown := sorted(set(names) - set(numeric)) or not names:
        raise ConfigError(f"{unknown or 'none'} is no numeric feature of the model: choose from {', '.join(numeric)}")
    scores, weight, cluster = unit_scores(model, rows)
    columns = np.column_stack(list(encode_numbers(rows, names).values()))
    line = best_linear_projection(columns, scores, names, weight, cluster)
    size, treated = len(line.names), model.levels.treated
    parts = {part: getattr(line, part).T.ravel() for part in ("estimate", "error", "t", "p_value", "lower", "upper")}
    return pa.table(
        {
            "treatment": np.repeat(treated, size).tolist(),
            "feature": list(line.names) * len(treated),
            **parts,
            "joint_p_value": np.repeat(line.joint_p_value, size),
        }
    )


def unit_scores(model: Model, rows: pa.Table) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Scores of every treated level's effect [n, L], weights and clusters [n] or None, from the columns of the roles.

    Scores are doubly robust where the roles name such, else `trial_scores` by the logged propensity or, without one, by
    the arms' shares. Raises ConfigError for models of doses or of compliers, DataError for levels the model lacks.
    """
    roles, levels = model.roles, model.levels
    if roles.grid or model.kind == "instrumental_forest":
        raise ConfigError(f"a {model.kind} of doses or of compliers has no scores of levels: train a CausalForest")
    typed = encode(rows, roles)
    check_repeated(repeated_rows(typed.unit), roles.unit)
    if roles.scores:
        units = [dict(one) for one in rows.column(roles.scores).to_pylist()]
        values = np.array([[one[name] for name in levels.names] for one in units], np.float64)
        return values[:, 1:] - values[:, :1], typed.weight, typed.cluster
    level, n = typed.level.coded_by(levels.names), len(typed)
    if unknown := int((level < 0).sum()):
        raise DataError(f"column {roles.treatment!r} is no level of the model in {unknown} rows: drop them")
    propensities = np.bincount(level, minlength=len(levels)) / n
    if typed.propensity is not None:
        # Only that of the level received is logged, and only that is used: the others share the rest.
        own = typed.propensity
        propensities = np.tile(((1 - own) / (len(levels) - 1))[:, None], len(levels))
        propensities[np.arange(n), level] = own
    return trial_scores(typed.outcomes[roles.outcome], level, propensities), typed.weight, typed.cluster
