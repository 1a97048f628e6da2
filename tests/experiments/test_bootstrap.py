"""Tests of bootstrap intervals from sums of groups: by hand, scipy on the same data, and coverage by simulation."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import bootstrap as scipy_bootstrap

from uplift_spark.experiments import bootstrap
from uplift_spark.experiments.bootstrap import (
    UNIT_GROUPS,
    BootstrapInterval,
    GroupCells,
    Resampler,
    UnitGroupSums,
    group_count,
    groups_of,
)
from uplift_spark.experiments.estimates import MetricColumns, arm_effect, covariate_slopes, point_effects
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns, readout, trial_sums
from uplift_spark.experiments.health import ReadoutDesign
from uplift_spark.experiments.readout import ReadoutMetric, read_sums
from uplift_spark.experiments.sequential import StoppingRule
from uplift_spark.stats.moments import CrossMoments

DESIGN = ReadoutDesign({"off": 0.5, "on": 0.5})
SPEND = ReadoutMetric("spend", "spend", covariates=("before",), role="primary")
A_SESSION = ReadoutMetric("a session", "spend", denominator="sessions")
AT_END = ReadingTime(at_end=True, days=28)
PLAIN = BootstrapInterval(0.05, 0.05, np.inf)


def trial(units: int, seed: int = 1) -> pd.DataFrame:
    """Half of the treated take a treatment that adds 1 to a spend of about 10."""
    rng = np.random.default_rng(seed)
    d = pd.DataFrame({"unit_id": [f"u{k}" for k in range(units)], "treatment": rng.choice(["off", "on"], units)})
    d["region"] = rng.choice(["north", "south"], units)
    d["took"] = ((d["treatment"] == "on") & (rng.random(units) < 0.5)).astype(int)
    d["before"] = rng.normal(10, 2, units)
    d["sessions"] = rng.poisson(3, units) + 1
    d["spend"] = d["before"] + rng.normal(0, 1, units) + d["took"]
    return d


# ---------------------------------------------------------------- sums by group


def test_groups_follow_from_the_id_alone() -> None:
    """The hash is XXH64 of the text with seed 42, as Spark has it: `xxhash64('a')` is -8582455328737087284."""
    hashes = [-8582455328737087284]
    assert groups_of(pa.array(["a"]), "unit_id").tolist() == [one % UNIT_GROUPS for one in hashes]
    assert groups_of(pa.array([17]), "unit_id").tolist() == groups_of(pa.array(["17"]), "unit_id").tolist()
    counts = np.bincount(groups_of(pa.array([f"u{k}" for k in range(102_400)]), "unit_id"), minlength=UNIT_GROUPS)
    assert ((counts - 100) ** 2 / 100).sum() == pytest.approx(UNIT_GROUPS - 1, abs=5 * np.sqrt(2 * UNIT_GROUPS))


def test_sums_of_cells_come_in_any_order_and_fold_with_their_number() -> None:
    rng, arms = np.random.default_rng(2), ("off", "on")
    strata = [f"s{k:03d}" for k in range(40)]
    assert [group_count(cells) for cells in (2, 32, 33, 80, 128, 129)] == [1024, 1024, 512, 256, 256, 0]
    cell, group = rng.integers(0, 80, 5000), rng.integers(0, UNIT_GROUPS, 5000)
    x = rng.normal(size=(5000, 3))
    whole = UnitGroupSums.of(x, cell, group, (2, 40))
    assert whole.totals.shape == (2, 40, 256, 4)
    k = int(np.flatnonzero(cell == 51)[0])
    mine = (cell == 51) & (group % 256 == group[k] % 256)
    np.testing.assert_allclose(whole.totals[1, 11, group[k] % 256], [mine.sum(), *x[mine].sum(axis=0)])
    cells = GroupCells()
    for part in np.array_split(rng.permutation(5000), 7):  # each with its few cells, so in more groups
        for one in np.unique(cell[part]):
            rows = part[cell[part] == one]
            sums = UnitGroupSums.of(x[rows], np.zeros(len(rows), int), group[rows], (1,))
            cells.add(arms[one // 40], strata[one % 40], sums.totals[0])
    np.testing.assert_allclose(cells.sums(arms, strata, 3).totals, whole.totals, atol=1e-12)
    for one in strata + [f"t{k}" for k in range(40)]:
        cells.add("off", one, np.zeros((UNIT_GROUPS, 4)))
    assert cells.sums(arms, [*strata, *(f"t{k}" for k in range(40))], 3).groups == 0


def test_figures_of_a_resample_are_those_of_its_rows() -> None:
    """Rows repeated as often as their group counts give the same effect, with strata, a covariate and a ratio."""
    d = trial(300)
    sums, _ = trial_sums(d, [SPEND, A_SESSION], DESIGN, ReadoutColumns(stratum="region"))
    assert sums.groups is not None
    resampler = Resampler(sums.groups, replicates=3)
    n, mean = resampler._resamples
    counts = bootstrap._weights(sums.groups.groups, 3)[groups_of(pa.array(d["unit_id"]), "unit_id"), 2]
    rows = d.loc[d.index.repeat(counts)]
    rows = rows.assign(unit_id=np.arange(len(rows)))
    again, _ = trial_sums(rows, [SPEND, A_SESSION], DESIGN, ReadoutColumns(stratum="region"))
    for metric in (SPEND, A_SESSION):
        place = sums.placed(metric)
        slopes = covariate_slopes(sums.pair(1), place)
        effect, relative = point_effects(n[2], mean[2], place, slopes)
        wanted = arm_effect(again.pair(1), MetricColumns(place.numerator, place.denominator))
        if metric is SPEND:
            moved = arm_effect(again.pair(1), MetricColumns(place.covariates[0][0]))
            assert float(effect) == pytest.approx(float(wanted.effect - slopes[0] * moved.effect), rel=1e-9)
        else:
            assert float(effect) == pytest.approx(float(wanted.effect), rel=1e-9)
            assert float(relative) == pytest.approx(float(wanted.relative), rel=1e-9)
    effect, relative = point_effects(sums.moments.n, sums.moments.mean, sums.placed(SPEND), slopes=np.array([0.9]))
    assert np.isfinite(effect) and np.isfinite(relative)


def test_the_effect_of_all_units_is_that_of_the_readout() -> None:
    sums, _ = trial_sums(trial(300), [SPEND, A_SESSION], DESIGN, ReadoutColumns(stratum="region"))
    for metric in (SPEND, A_SESSION):
        place = sums.placed(metric)
        whole = arm_effect(sums.pair(1), place)
        slopes = covariate_slopes(sums.pair(1), place)
        ours = point_effects(sums.moments.n, sums.moments.mean, place, slopes)
        assert [float(one) for one in ours] == pytest.approx([float(whole.effect), float(whole.relative)], rel=1e-12)


# ---------------------------------------------------------------- scipy on the same data


def test_equal_to_scipy_within_monte_carlo_error() -> None:
    """scipy.stats.bootstrap (percentiles, two skewed samples) and ours: ends differ by hundredths of the error, as
    those of two runs of either do."""
    rng = np.random.default_rng(5)
    arm = np.arange(600) % 4 == 0  # a quarter treated: skewness does not cancel
    y = np.exp(rng.normal(0, 1.2, 600))
    theirs = scipy_bootstrap(
        (y[arm], y[~arm]), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(3), vectorized=True,
    )  # fmt: skip
    sums = UnitGroupSums.of(y[:, None], arm.astype(int), np.arange(600), (2, 1))
    value = y[arm].mean() - y[~arm].mean()
    low, high = Resampler(sums, replicates=20_000).interval(_difference, value, PLAIN)
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.1 * theirs.standard_error)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.1 * theirs.standard_error)
    plain = arm_effect(CrossMoments.of(y[:, None], arm.astype(int), (2, 1)), MetricColumns(0))
    unknown = Resampler(sums).interval(_difference, value, BootstrapInterval(0.05, 0.05, np.nan))
    assert np.isnan(unknown).all()
    assert high - value > 1.05 * (value - low)  # as skewed as the values; Welch's is symmetric
    assert float(plain.upper - plain.effect) == pytest.approx(float(plain.effect - plain.lower))


def test_random_groups_of_units_are_as_good_as_units() -> None:
    """200,000 units in 1,024 groups: the error of the bootstrap is Welch's to some percent."""
    rng = np.random.default_rng(6)
    arm = rng.integers(0, 2, 200_000)
    y = rng.gamma(0.2, 50, 200_000)
    sums = UnitGroupSums.of(y[:, None], arm, rng.integers(0, UNIT_GROUPS, 200_000), (2, 1))
    plain = arm_effect(CrossMoments.of(y[:, None], arm, (2, 1)), MetricColumns(0))
    low, high = Resampler(sums).interval(_difference, float(plain.effect), PLAIN)
    assert (high - low) / float(plain.upper - plain.lower) == pytest.approx(1, abs=0.1)


def _difference(n: np.ndarray, mean: np.ndarray) -> np.ndarray:
    return point_effects(n, mean, MetricColumns(0), np.zeros(0))[0]


# ---------------------------------------------------------------- in a readout


def test_a_readout_has_them_for_every_figure() -> None:
    columns = ReadoutColumns(stratum="region", taken="took")
    table = readout(trial(2000), [SPEND, A_SESSION], DESIGN, columns, time=AT_END).table().set_index(["role", "metric"])
    for key, row in table.iterrows():
        half = row["upper"] - row["lower"]
        assert row["bootstrap_lower"] == pytest.approx(row["lower"], abs=0.06 * half), key
        assert row["bootstrap_upper"] == pytest.approx(row["upper"], abs=0.06 * half), key
        if key[0] == "complier":
            assert np.isnan(row["relative_bootstrap_lower"])
            continue
        half = row["relative_upper"] - row["relative_lower"]
        assert row["relative_bootstrap_lower"] == pytest.approx(row["relative_lower"], abs=0.06 * half), key
        assert row["relative_bootstrap_upper"] == pytest.approx(row["relative_upper"], abs=0.06 * half), key


def test_an_early_look_widens_them_as_it_does_the_others() -> None:
    weekly = StoppingRule("group_sequential", analyses=(0.25, 1.0))
    looks = [ReadoutDesign({"off": 0.5, "on": 0.5}, planned_units=8000, stopping=weekly), DESIGN]
    early, late = (readout(trial(2000), [SPEND], look, time=ReadingTime(days=7)).metrics[0] for look in looks)
    wider = (early.upper - early.lower) / (late.upper - late.lower)
    assert wider > 2
    assert early.bootstrap_upper - early.bootstrap_lower == pytest.approx(
        wider * (late.bootstrap_upper - late.bootstrap_lower), rel=1e-6
    )


def test_where_there_are_none() -> None:
    """Sums without groups, and more strata than groups are kept for."""
    d = trial(2000)
    sums, facts = trial_sums(d, [SPEND], DESIGN, time=AT_END)
    bare = type(sums)(sums.arms, sums.strata, sums.columns, sums.moments)
    row = read_sums(bare, [SPEND], DESIGN, facts).metrics[0]
    assert np.isnan(row.bootstrap_lower) and np.isfinite(row.lower)
    d["shop"] = [f"{k // 20:03d}" for k in range(2000)]
    row = readout(d, [SPEND], DESIGN, ReadoutColumns(stratum="shop"), time=AT_END).metrics[0]
    assert np.isnan(row.bootstrap_lower) and np.isfinite(row.lower)


# ---------------------------------------------------------------- simulated trials


def covered(kind: str, trials: int, seed: int) -> tuple[float, float]:
    """Share of the trials whose interval holds the true effect, and mean width over that of the analytic interval."""
    rng, held, width = np.random.default_rng(seed), 0, 0.0
    for _ in range(trials):
        x, arm, metric, truth = _simulated(kind, rng)
        moments = CrossMoments.of(x, arm, (2, 1))
        plain = arm_effect(moments, metric)
        sums = UnitGroupSums.of(x, arm, rng.integers(0, UNIT_GROUPS, len(x)), (2, 1))
        slopes = covariate_slopes(moments, metric)

        def figure(n: np.ndarray, mean: np.ndarray, metric=metric, slopes=slopes) -> np.ndarray:
            return point_effects(n, mean, metric, slopes)[0]

        how = BootstrapInterval(0.05, 0.05, float(plain.freedom))
        low, high = Resampler(sums, replicates=1000).interval(figure, float(plain.effect), how)
        held += low <= truth <= high
        width += (high - low) / float(plain.upper - plain.lower)
    return held / trials, width / trials


def _simulated(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, MetricColumns, float]:
    """Columns [rows, V] of the randomised units, their arm, the metric, its true effect."""
    if kind == "clusters":  # 60, 30 an arm, of 10 to 30 users
        size = rng.integers(10, 31, 60).astype(float)
        arm = rng.permutation(np.arange(60) % 2)
        total = size * (np.sqrt(0.2) * rng.normal(size=60) + 0.5 * arm) + np.sqrt(0.8 * size) * rng.normal(size=60)
        return np.column_stack([total, size]), arm, MetricColumns(0, 1), 0.5
    units = {"revenue": 6000, "heavy revenue": 4000}.get(kind, 400)
    arm = rng.permutation(np.arange(units) % 2)
    noise, before = rng.normal(size=units), rng.normal(size=units)
    if "revenue" in kind:  # one in ten buys; the standard deviation is 5.1 times the mean, or 6.4 times
        tail = 1.2 if kind == "heavy revenue" else 1.0
        buys = rng.random(units) < 0.1 + 0.02 * arm
        return (buys * np.exp(3 + tail * noise))[:, None], arm, MetricColumns(0), 0.02 * np.exp(3 + tail**2 / 2)
    if kind == "ratio":
        sessions = rng.poisson(2, units) + 1.0 + (before > 1)
        return np.column_stack([sessions * (3 + before + 0.2 * arm) + noise, sessions]), arm, MetricColumns(0, 1), 0.2
    y = 5 + 0.6 * before + 0.8 * noise + 0.3 * arm
    cuped = MetricColumns(0, None, ((1, None),))
    return np.column_stack([y, before]), arm, cuped if kind == "cuped" else MetricColumns(0), 0.3


KINDS = ("mean", "revenue", "ratio", "cuped", "clusters")


@pytest.mark.parametrize("kind", KINDS)
def test_coverage_quickly(kind: str) -> None:
    """150 trials: five standard errors around .95 are .86 and more."""
    share, width = covered(kind, 150, 11)
    assert share >= 0.86 and width == pytest.approx(1, abs=0.12)


@pytest.mark.simulation
@pytest.mark.parametrize("kind", [*KINDS, "heavy revenue"])
def test_coverage(kind: str) -> None:
    share, width = covered(kind, 4000, 7)
    print(f"coverage of the bootstrap, {kind}: {share:.4f}, {width:.3f} times as wide as by the delta method")
    assert (0.92 if kind == "heavy revenue" else 0.94) <= share <= 0.96


def test_ignoring_clusters_would_not_hold() -> None:
    """The coverage test can fail: users of one cluster in groups of their own give intervals that are too narrow."""
    rng, held = np.random.default_rng(1), 0
    for _ in range(60):
        arm = (np.arange(60) % 2).repeat(20)
        y = (np.sqrt(0.2) * rng.normal(size=60)).repeat(20) + np.sqrt(0.8) * rng.normal(size=1200)
        sums = UnitGroupSums.of(y[:, None], arm, rng.integers(0, UNIT_GROUPS, 1200), (2, 1))
        value = y[arm == 1].mean() - y[arm == 0].mean()
        low, high = Resampler(sums, replicates=500).interval(_difference, value, PLAIN)
        held += low <= 0 <= high
    assert held < 50


def test_examples() -> None:
    assert doctest.testmod(bootstrap).failed == 0
