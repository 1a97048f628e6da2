"""What a policy brings, from arms that were assigned with known probabilities, whoever chose them. numpy, no Spark.

A policy names an arm for each unit. It is compared with giving all units one arm, the control or another. Of a unit
that got the arm in question with probability p, 1/p units like it speak (inverse probability weighting, Horvitz and
Thompson 1952); all others say nothing of it. What is expected of units with such covariates is taken off, level by
level (doubly robust: Robins, Rotnitzky and Zhao 1994). Weights have mean 1 by design, so whatever is multiplied by
"weight less 1" has mean 0, and a regression on such columns takes variance off without a bias that matters. All of it
follows from counts, means and products of columns, which add up, in one pass of any engine.

Units for which the policy and the arm agree add nothing, neither effect nor noise. Where too few of the others got
either of the two, or weights do not have mean 1, the logged arms do not overlap with the policy: there are no figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import t

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.experiments.estimates import ratio_bounds
from uplift_spark.experiments.frames import NO_ROW
from uplift_spark.experiments.readout import PRIMARY, MetricReadout, ReadoutMetric
from uplift_spark.roles import PROPENSITY, TREATMENT
from uplift_spark.stats.moments import LARGEST, MIN_UNITS, CrossMoments
from uplift_spark.stats.tests import holm

POLICY_ROLE, PROFIT = "policy", "profit"
TOO_LARGE = (
    f"is {LARGEST:g} or more in {{n:,}} rows, whose squares cannot be added up: correct them, or use a larger unit"
)
"""Of a column; with the number of rows."""
_OFF, _BEYOND = 0.05, 3.29  # weights off their mean of 1, by so much and beyond so many errors (p = .001)


@dataclass(frozen=True)
class Reward:
    """What a unit brings: value · outcome - cost of its arm.

    name      as a readout says it
    column    outcome
    value     of one unit of it
    costs     of each arm, control first; empty for none
    better    'up' or 'down'
    primary   whether it decides
    """

    name: str
    column: str
    value: float = 1.0
    costs: tuple[float, ...] = ()
    better: str = "up"
    primary: bool = False


@dataclass(frozen=True)
class BacktestLayout:
    """Which numbers are added up.

    arms        control first
    rewards     what is compared
    covariates  columns measured before the treatment
    clustered   whether rows of one cluster are not independent
    """

    arms: tuple[str, ...]
    rewards: tuple[Reward, ...]
    covariates: tuple[str, ...] = ()
    clustered: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """Outcomes, then covariates, each once."""
        return tuple(dict.fromkeys([*(one.column for one in self.rewards), *self.covariates]))

    @property
    def width(self) -> int:
        """Terms of a unit in each comparison: count, differs, effects, means, and columns of mean 0."""
        return 2 + 2 * len(self.rewards) + 3 * (1 + len(self.covariates))


def layout_of(
    metrics: Sequence[ReadoutMetric],
    arms: Sequence[str],
    *,
    money: tuple[float, Mapping[str, float]] | None = None,
    clustered: bool = False,
) -> BacktestLayout:
    """What of a readout's metrics a policy is compared by: means over units; ratios are left out.

    Args:
        metrics: One of them primary.
        arms: Control first.
        money: Value of one unit of the primary metric, and the cost of treating a unit by arm: adds `profit`.
        clustered: Whether clusters were randomised.

    Returns:
        The layout, whose covariates are those of all these metrics.
    """
    means = [one for one in metrics if one.denominator is None]
    rewards = [Reward(one.name, one.column, better=one.better, primary=one.role == PRIMARY) for one in means]
    primary = next((one for one in rewards if one.primary), None)
    if money is not None and primary is not None and PROFIT not in {one.name for one in rewards}:
        value, costs = money
        rewards.append(Reward(PROFIT, primary.column, value, tuple(costs.get(arm, 0.0) for arm in arms)))
    covariates = dict.fromkeys(name for one in means for name in one.covariates if isinstance(name, str))
    return BacktestLayout(tuple(arms), tuple(rewards), tuple(covariates), clustered)


def backtest_terms(
    layout: BacktestLayout, arm: np.ndarray, policy: np.ndarray, propensity: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Terms of each unit, float64 [n, arms, width].

    Args:
        layout: Which.
        arm: Code of the arm that the unit got, int [n].
        policy: Code of the arm that the policy gives it, int [n].
        propensity: Probability of the arm that it got, [n].
        values: Of `layout.columns`, [n, columns].

    Returns:
        For the comparison with each arm: 1; whether the policy differs; of each reward the weighted difference, then
        the weighted mean under the arm; and columns whose mean is 0 by design.
    """
    place = {name: k for k, name in enumerate(layout.columns)}
    base = np.column_stack([np.ones(len(arm)), *(values[:, place[name]] for name in layout.covariates)])
    by_policy = np.where(arm == policy, 1 / propensity, 0.0)
    terms = np.empty((len(arm), len(layout.arms), layout.width))
    for k in range(len(layout.arms)):
        by_level, differs = np.where(arm == k, 1 / propensity, 0.0), (policy != k).astype(np.float64)
        effects, means = [], []
        for one in layout.rewards:
            outcome = one.value * values[:, place[one.column]]
            costs = np.array(one.costs or (0.0,) * len(layout.arms))
            effects.append((by_policy - by_level) * outcome - (costs[policy] - costs[k]))
            means.append(by_level * outcome - costs[k])
        level_off = (by_level - 1)[:, None] * base
        zero = [((by_policy - 1) * differs)[:, None] * base, differs[:, None] * level_off]
        zero.append((1 - differs)[:, None] * level_off)
        terms[:, k] = np.column_stack([np.ones(len(arm)), differs, *effects, *means, *zero])
    return terms


@dataclass(frozen=True)
class PolicyOverlap:
    """How much the logged arms say of a policy against giving all units an arm.

    arm        that all units would get
    units      for which the two differ
    effective  units that count: of those that got the policy's arm, and of those that got this one
    problem    why there are no figures; empty where there are
    """

    arm: str
    units: float
    effective: tuple[float, float]
    problem: str = ""


@dataclass(frozen=True)
class PolicyReadout:
    """Figures of a policy.

    metrics  a row for each reward and arm: `control` is the mean if all units got this arm, `treated` under the policy
    overlap  of each arm
    units    rows that were read
    """

    metrics: tuple[MetricReadout, ...]
    overlap: tuple[PolicyOverlap, ...]
    units: float

    def refuse(self) -> None:
        """Raise DataError where the policy can be compared with no arm."""
        if not self.metrics:
            raise DataError("; ".join(one.problem for one in self.overlap))

    def text(self) -> str:
        """A line for each comparison, and for each one that cannot be made."""
        sizes = {one.arm: one for one in self.overlap}
        lines = []
        for one in self.metrics:
            share = f" ({one.relative:+.2%})" if math.isfinite(one.relative) else ""
            low, high = sizes[one.arm].effective
            between = f"between {one.lower:+.5g} and {one.upper:+.5g}, p = {one.p_adjusted:.2g}"
            if not math.isfinite(one.error):
                between = f"its error is not known, as {one.metric} does not vary there"
            lines.append(
                f"policy against {one.arm} for all, {one.metric} a unit: {one.effect:+.5g}{share}, {between}: "
                f"{one.status} (by {low:,.0f} and {high:,.0f} effective units)"
            )
        return "\n".join([*lines, *(f"not compared: {one.problem}" for one in self.overlap if one.problem)])


def read_policy(
    layout: BacktestLayout,
    moments: CrossMoments,
    alpha: float = 0.05,
    *,
    level: float | None = None,
    valid_p: Callable[[np.ndarray], np.ndarray] | None = None,
) -> PolicyReadout:
    """Read a policy from the sums of its terms.

    Args:
        layout: What was added up.
        moments: Of `backtest_terms`, [arms]; rows are units, or clusters with the terms of their units added up.
        alpha: Level at which p-values are read, two-sided.
        level: Level of the intervals, where the trial is read more than once; by default alpha.
        valid_p: Makes p-values hold at all readings of the trial.

    Returns:
        The figures; p-values are adjusted over arms (Holm), each reward for itself.
    """
    rows: list[MetricReadout] = []
    overlap = []
    for k, arm in enumerate(layout.arms):
        sums = _Raw(layout, moments[k])
        size = sums.overlap(arm)
        overlap.append(size)
        if not size.problem:
            rows += [sums.compared(r, arm, size, level or alpha) for r in range(len(layout.rewards))]
    if valid_p is not None and rows:
        held = valid_p(np.array([row.p_value for row in rows]))
        rows = [replace(row, p_value=float(p)) for row, p in zip(rows, held, strict=True)]
    units = float(moments.n[0] * moments.mean[0, 0])
    return PolicyReadout(tuple(_with_status(rows, layout, alpha)), tuple(overlap), units)


def _with_status(rows: list[MetricReadout], layout: BacktestLayout, alpha: float) -> list[MetricReadout]:
    signs = {one.name: 1.0 if one.better == "up" else -1.0 for one in layout.rewards}
    ended: dict[tuple[str, str], MetricReadout] = {}
    for name, sign in signs.items():
        mine = [row for row in rows if row.metric == name]
        for row, p in zip(mine, holm(np.array([row.p_value for row in mine])), strict=True):
            status = "open" if not p <= alpha else "better" if row.effect * sign > 0 else "worse"
            ended[name, row.arm] = replace(row, p_adjusted=float(p), status=status)
    return [ended[row.metric, row.arm] for row in rows]


class _Raw:
    """Sums of squares and products about 0 of one comparison, and what follows from them."""

    def __init__(self, layout: BacktestLayout, moments: CrossMoments) -> None:
        self.layout, self.rows, self.mean = layout, float(moments.n), moments.mean
        self.squares = moments.products + moments.n * np.outer(moments.mean, moments.mean)
        self.units = self.rows * self.mean[0]
        r, c = len(layout.rewards), 1 + len(layout.covariates)
        self.first_zero, self.step = 2 + 2 * r, c

    def overlap(self, arm: str) -> PolicyOverlap:
        """Effective units by Kish: (Σw)² / Σw² over the units for which policy and arm differ."""
        differ = float(self.rows * self.mean[1])
        effective, off = [], []
        for zero in (self.first_zero, self.first_zero + self.step):
            gap, gap2 = self.rows * self.mean[zero], self.squares[zero, zero]
            total = gap + differ
            square = gap2 + 2 * self.squares[zero, 1] + self.squares[1, 1]
            effective.append(float(total**2 / square) if square > 0 and total > 0 else 0.0)
            error = math.sqrt(max(gap2, 1e-300))
            off.append(gap / differ if differ and abs(gap) > _BEYOND * error else 0.0)
        size = PolicyOverlap(arm, differ, (effective[0], effective[1]))
        return replace(size, problem=self._problem(size, off))

    def _problem(self, size: PolicyOverlap, off: Sequence[float]) -> str:
        if size.units < 0.5:
            return f"the policy gives all units {size.arm}"
        for effective, gap, which in zip(size.effective, off, ("the policy's arm", size.arm), strict=True):
            among = f"of {size.units:,.0f} units to which the policy gives another arm than {size.arm}"
            if effective < MIN_UNITS:
                return (
                    f"{among}, {effective:,.0f} effective ones got {which}, of at least {MIN_UNITS}: their logged arms "
                    "tell nothing of it; explore more, or compare with another arm"
                )
            if abs(gap) > _OFF:
                return (
                    f"{among}, those that got {which} stand for {1 + gap:.1%} of them by their propensities: log the "
                    "probability of each arm, and keep it above 0"
                )
        return ""

    def compared(self, reward: int, arm: str, size: PolicyOverlap, alpha: float) -> MetricReadout:
        """Policy less arm: by ratios of sums, less what columns of mean 0 explain."""
        tops = [2 + reward, 2 + len(self.layout.rewards) + reward]
        zeros = np.arange(self.first_zero, self.layout.width)
        value, covariance, used = self._means(tops, zeros)
        plain = float(self._means(tops, zeros[:0])[1][0, 0])
        (effect, level), variance = map(float, value), float(covariance[0, 0])
        error = math.sqrt(variance) if variance > 0 else math.nan
        # Few units with large weights carry a mean: as many as count are what its error is known from.
        freedom = max(1.0, min(size.effective) - used)
        quantile = float(t.isf(alpha / 2, freedom))
        low, high = ratio_bounds(
            *(value[:1], value[1:]),
            (covariance[:1, 0], covariance[1:, 1], covariance[:1, 1]),
            np.array([quantile]),
            "fieller",
        )
        known = level > 0
        return MetricReadout(
            self.layout.rewards[reward].name, POLICY_ROLE, arm, control=level, treated=effect + level,
            effect=effect, error=error, lower=effect - quantile * error, upper=effect + quantile * error,
            p_value=float(2 * t.sf(abs(effect) / error, freedom)),
            relative=effect / level if known else math.nan,
            relative_lower=float(low[0]) if known else math.nan, relative_upper=float(high[0]) if known else math.nan,
            p_adjusted=math.nan, saved=1 - variance / plain if plain > 0 else 0.0, status="open",
        )  # fmt: skip

    def _means(self, tops: Sequence[int], zeros: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Σ top / Σ units of two columns, less what `zeros` explain; covariance [2, 2]; columns that were of use."""
        among = np.r_[0, zeros]
        scale = np.sqrt(np.maximum(np.diagonal(self.squares)[among], 1e-300))
        gram = self.squares[np.ix_(among, among)] / np.outer(scale, scale)
        inverse = np.linalg.pinv(gram, rcond=1e-10, hermitian=True)
        beta = (inverse @ (self.squares[np.ix_(among, tops)] / scale[:, None])) / scale[:, None]
        slope = beta[1:]
        total = self.rows * (self.mean[tops] - self.mean[zeros] @ slope)
        value = total / self.units
        # A row's residual is linear in its columns: top - slope · zeros - value · units.
        linear = np.zeros((2, len(self.mean)))
        linear[[0, 1], tops] = 1.0
        linear[:, zeros] -= slope.T
        linear[:, 0] -= value
        used = int(np.linalg.matrix_rank(gram, tol=1e-10, hermitian=True))
        spread = linear @ self.squares @ linear.T
        return value, spread / self.units**2 * self.rows / max(self.rows - used, 1.0), used


# --------------------------------------------------------------------------------------------------------------------
# A pandas frame.


@dataclass(frozen=True)
class LoggedColumns:
    """Names of a frame's columns.

    policy      arm that the policy gives the unit
    treatment   arm that it got
    propensity  probability of the arm that it got
    cluster     of units that are not independent of each other
    """

    policy: str = "policy"
    treatment: str = TREATMENT
    propensity: str = PROPENSITY
    cluster: str | None = None


def backtest(
    frame: pd.DataFrame,
    metrics: Sequence[ReadoutMetric],
    arms: Sequence[str],
    columns: LoggedColumns | None = None,
    *,
    money: tuple[float, Mapping[str, float]] | None = None,
    alpha: float = 0.05,
) -> PolicyReadout:
    """Compare a policy with giving all units one arm, from arms that were assigned with known probabilities.

    Args:
        frame: One row a unit.
        metrics: Those that are means over units are compared; their covariates take variance off.
        arms: All arms, control first.
        columns: Names of the frame's columns.
        money: Value of one unit of the primary metric, and cost of treating a unit by arm: profit is compared, too.
        alpha: Level of intervals, two-sided.

    Returns:
        Effects, intervals, and effective units. Propensities count as known: where they were fitted, intervals are too
        narrow.

    Raises:
        ConfigError: A column is missing, there is nothing to compare, or arms, money or alpha are not as they must be.
        DataError: There is no row; rows are missing a value, name another arm, or have propensities outside (0, 1]; no
            arm overlaps.

    Example:
        >>> frame = pd.DataFrame({"treatment": ["off", "on"] * 300, "propensity": 0.5})
        >>> frame["policy"] = ["on", "on", "off", "off"] * 150
        >>> frame["sales"] = [0, 2, 1, 1, 1, 3, 0, 0] * 75
        >>> result = backtest(frame, [ReadoutMetric("sales", "sales", role="primary")], ["off", "on"])
        >>> [(one.arm, round(one.effect, 2)) for one in result.metrics]
        [('off', 1.0), ('on', 0.0)]
    """
    columns, arms = columns or LoggedColumns(), tuple(map(str, arms))
    _check_request(metrics, arms, money, alpha)
    layout = layout_of(metrics, arms, money=money, clustered=columns.cluster is not None)
    numbers = _checked_numbers(frame, layout, columns)
    codes = [_codes(frame, name, layout.arms) for name in (columns.treatment, columns.policy)]
    terms = backtest_terms(layout, codes[0], codes[1], numbers[:, 0], numbers[:, 1:])
    result = read_policy(
        layout, term_moments(terms, None if columns.cluster is None else frame[columns.cluster]), alpha
    )
    result.refuse()
    return result


def _check_request(
    metrics: Sequence[ReadoutMetric], arms: Sequence[str], money: tuple[float, Mapping[str, float]] | None, alpha: float
) -> None:
    if len(set(arms)) < max(2, len(arms)):
        raise ConfigError(f"arms are {', '.join(arms) or 'none'}: name at least two, each once, the control first")
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha:g}: use a level such as .05")
    if all(one.denominator for one in metrics):
        raise ConfigError("no metric is a mean over units: a policy is not compared by ratios; add one")
    if money is None:
        return
    value, costs = money
    if not any(one.role == PRIMARY and one.denominator is None for one in metrics):
        raise ConfigError("money is the value of the primary metric, and no metric over units is primary: name it")
    if unknown := [arm for arm in costs if arm not in arms]:
        raise ConfigError(f"money names the cost of {unknown[0]!r}, which is no arm: {hint(unknown[0], arms)}")
    if not all(map(math.isfinite, (value, *costs.values()))):
        raise ConfigError("money has a value or a cost that is no finite number: correct it")


def _checked_numbers(frame: pd.DataFrame, layout: BacktestLayout, columns: LoggedColumns) -> np.ndarray:
    """Propensity, then `layout.columns`, of each row."""
    needed = [columns.policy, columns.treatment, columns.propensity, *layout.columns]
    for name in (*needed, *([columns.cluster] if columns.cluster else [])):
        if name not in frame.columns:
            raise ConfigError(f"column {name!r} is not in the frame: {hint(name, frame.columns)}")
    if frame.empty:
        raise DataError(NO_ROW)
    if columns.cluster and (n := int(frame[columns.cluster].isna().sum())):
        raise DataError(f"column {columns.cluster!r} is missing in {n:,} rows: fill or drop them")
    numbers = np.column_stack([pd.to_numeric(frame[name], errors="coerce") for name in needed[2:]]).astype(float)
    for wrong, sentence in (
        (~np.isfinite(numbers), "is no number in {n:,} rows: fill or drop them"),
        (np.abs(numbers) >= LARGEST, TOO_LARGE),
    ):
        if wrong.any():
            name = needed[2 + int(wrong.any(axis=0).argmax())]
            raise DataError(f"column {name!r} {sentence.format(n=int(wrong.any(axis=1).sum()))}")
    if n := int(((numbers[:, 0] <= 1 / LARGEST) | (numbers[:, 0] > 1)).sum()):
        raise DataError(
            f"column {columns.propensity!r} is outside (0, 1] in {n:,} rows: log the probability of the arm"
        )
    return numbers


def _codes(frame: pd.DataFrame, name: str, arms: Sequence[str]) -> np.ndarray:
    code = pd.Index(list(arms)).get_indexer(pd.Index(frame[name].astype(str)))
    if n := int((code < 0).sum()):
        raise DataError(f"column {name!r} is no arm in {n:,} rows: use {', '.join(arms)}")
    return np.asarray(code)


def term_moments(terms: np.ndarray, cluster: pd.Series | None = None) -> CrossMoments:
    """Moments [arms] of terms [n, arms, width], those of one cluster added up where `cluster` names them."""
    if cluster is not None:
        code, _ = pd.factorize(cluster)
        summed = np.zeros((code.max() + 1, *terms.shape[1:]))
        np.add.at(summed, code, terms)
        terms = summed
    parts = [CrossMoments.of(terms[:, k]) for k in range(terms.shape[1])]
    return CrossMoments(*(np.stack([getattr(one, name) for one in parts]) for name in ("n", "mean", "products")))
