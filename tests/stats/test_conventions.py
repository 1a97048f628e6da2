"""Other libraries' figures: by hand, from their published definitions row by row, and by the libraries where there are.

The references below take rows, one unit at a time, and know nothing of bins or sums.
"""

import numpy as np
import pandas as pd
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.stats import curves as c
from uplift_spark.stats.curves import uplift_curve

CLOSE = {"rtol": 0, "atol": 1e-10}


def rows(n=400, seed=0, ties=False, share=0.5):
    """Scores, arms and outcomes in rank order; both arms come late in the ranking for even seeds."""
    rng = np.random.default_rng(seed)
    score = rng.integers(0, n // 8, n) / 7 if ties else rng.permutation(n) / 7
    treated = (rng.random(n) < share).astype(int)
    order = np.argsort(-score, kind="stable")
    score, treated = score[order], treated[order]
    if seed % 2 == 0:
        treated[:3] = seed // 2 % 2
    y = (rng.random(n) < 0.2 + 0.3 * treated * score / score.max()).astype(int)
    return score, treated, y


def sums_of(bins, treated, y):
    size = int(bins.max()) + 1
    return c.ArmSums(
        *(np.bincount(bins, weights=v * (treated == arm), minlength=size) for arm in (1, 0) for v in (y**0, y))
    )


def by_score(score, treated, y):
    return sums_of(np.unique(-score, return_inverse=True)[1], treated, y)


def by_unit(treated, y):
    return sums_of(np.arange(len(y)), treated, y)


# ---- references, from the definitions


def tops(treated, y):
    """(T, Y_T, C, Y_C) of the first i rows, i = 1 ... n."""
    for i in range(1, len(y) + 1):
        t, e = treated[:i], y[:i]
        yield int(t.sum()), int((e * t).sum()), int((1 - t).sum()), int((e * (1 - t)).sum())


def sklift_points(score, treated, y, kind):
    """Points where the score changes, and (0, 0)."""
    units, values = [0], [0.0]
    for i, (t, yt, n, yn) in enumerate(tops(treated, y)):
        if i + 1 < len(score) and score[i + 1] == score[i]:
            continue
        if kind == "uplift":
            value = ((yt / t if t else 0) - (yn / n if n else 0)) * (i + 1)
        else:
            value = yt - (yn * t / n if n else 0)
        units.append(i + 1)
        values.append(value)
    return np.array(units), np.array(values)


def area(units, values):
    return sum((b - a) * (v + w) / 2 for a, b, v, w in zip(units, units[1:], values, values[1:], strict=False))


def sklift_score(score, treated, y, kind, negative_effect=True):
    units, values = sklift_points(score, treated, y, kind)
    if kind == "uplift":
        control_events, misses = ((y == 1) & (treated == 0)).sum(), ((y == 0) & (treated == 1)).sum()
        best = 2 * (y == treated) + (y if control_events > misses else treated)
    else:
        best = y * treated - y * (1 - treated)
    order = np.argsort(-best, kind="stable")
    perfect = sklift_points(best[order], treated[order], y[order], kind)
    if not negative_effect:
        perfect = np.array([0, values[-1], len(y)]), np.array([0, values[-1], values[-1]])
    random = len(y) * values[-1] / 2
    return (area(units, values) - random) / (area(*perfect) - random)


def straight(values):
    """Leading unknown values on a straight line from 0, which is put in front."""
    first = next(i for i, v in enumerate(values) if v is not None)
    return [0.0] + [values[first] * (i + 1) / (first + 1) if i < first else v for i, v in enumerate(values)]


def causalml_curve(treated, y, kind):
    points = list(tops(treated, y))
    if kind == "qini":
        return np.array(straight([yt - yn * t / n if n else None for t, yt, n, yn in points]))
    lift = straight([yt / t - yn / n if t and n else None for t, yt, n, yn in points])
    return np.array([v * i for i, v in enumerate(lift)])


def h2o_table(score, treated, y, kind, nbins):
    """Units and the curve's value of each bin, bins found by walking the thresholds as the scoring does."""
    starts = sorted({float(np.quantile(score, (nbins - i - 1) / nbins)) for i in range(nbins)}, reverse=True)
    units, values, total = [], [], [0, 0, 0, 0]
    for k, start in enumerate(starts):
        mine = [r for r in range(len(y)) if score[r] >= start and (k == 0 or score[r] < starts[k - 1])]
        for r in mine:
            total[0 if treated[r] else 2] += 1
            total[1 if treated[r] else 3] += y[r]
        t, yt, n, yn = total
        known = n > 0 if kind == "qini" else t > 0 and n > 0
        value = {"qini": lambda: yt - yn * t / n, "lift": lambda: yt / t - yn / n}  # noqa: B023
        value["gain"] = lambda: (yt / t - yn / n) * (t + n)  # noqa: B023
        units.append(len(mine))
        values.append(value[kind]() if known else None)
    return np.array(units), np.array(straight(values)[1:])


# ---- by hand

FOUR = c.ArmSums(*(np.array(a) for a in ([1, 0, 1, 0], [1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1])))
"""Treated with the event, control without, treated without, control with it: one unit a bin."""


def test_scikit_uplift_by_hand():
    units, gain = c.sklift_uplift_curve(FOUR)
    assert units.tolist() == [0, 1, 2, 3, 4] and gain.tolist() == [0, 1, 2, 1.5, 0]
    assert c.sklift_qini_curve(FOUR)[1].tolist() == [0, 1, 1, 1, 0]
    # This is the perfect order, of uplift and of Qini: the areas above the random line, 4.5 and 3, are their own.
    assert c.sklift_uplift_auc_score(FOUR) == 1 and c.sklift_qini_auc_score(FOUR) == 1
    # The other way round: areas of 0, -1, -2, -1.5, 0 and of 0, 0, -1, -0.5, 0.
    turned = c.ArmSums(*(a[::-1] for a in (FOUR.treated, FOUR.treated_y, FOUR.control, FOUR.control_y)))
    assert c.sklift_uplift_auc_score(turned) == -1
    assert c.sklift_qini_auc_score(turned) == -0.5
    # All tied: the random line itself.
    tied = c.ArmSums(*(a.sum(keepdims=True) for a in (FOUR.treated, FOUR.treated_y, FOUR.control, FOUR.control_y)))
    assert c.sklift_uplift_auc_score(tied) == c.sklift_qini_auc_score(tied) == 0
    assert c.sklift_uplift_at_k(FOUR, 0.5) == 1 and c.sklift_uplift_at_k(FOUR, 3) == 0.5
    assert c.sklift_uplift_at_k(FOUR, 0.5, by_group=True) == 1 and c.sklift_uplift_at_k(FOUR, 2, by_group=True) == 0


def test_causalml_by_hand():
    # After 1 unit the lift is unknown: half of the 1 after 2 units; then 1/2 of 3 and 0 of 4.
    assert c.causalml_gain(FOUR).tolist() == [0, 0.5, 2, 1.5, 0]
    assert c.causalml_auuc_score(FOUR, normalize=False) == pytest.approx(4 / 5)
    assert np.isnan(c.causalml_auuc_score(FOUR))  # no average effect to divide by
    three = c.ArmSums(*(a[:3] for a in (FOUR.treated, FOUR.treated_y, FOUR.control, FOUR.control_y)))
    assert c.causalml_auuc_score(three) == pytest.approx((0.5 + 2 + 1.5) / 1.5 / 4)
    assert c.causalml_qini(three).tolist() == [0, 0.5, 1, 1]
    assert c.causalml_qini_score(three, normalize=False) == pytest.approx((0.5 + 1 + 1) / 4 - 0.5)


def test_h2o_by_hand():
    """Ten rows and the curves that H2O's own tests state for them."""
    score = np.array([0.1, -0.1, 0.2, 0.5, 0.55, 0.13, -0.2, 0.11, 0.3, 0.9])
    treated, y = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 0, 0, 0, 1, 1])
    sums = sums_of(c.h2o_bins(score, 10), treated, y)
    third = 1 / 3
    np.testing.assert_allclose(c.h2o_curve(sums), [0, 0, 0, 0, 2 * third, 0, -2 * third, 0, 0.4, 0], **CLOSE)
    np.testing.assert_allclose(c.h2o_curve(sums, "lift"), [0, 0, 0, 0, third, 0, -third / 2, 0, 0.1, 0], **CLOSE)
    gain = [0, 0, 0, 0, 5 * third, 0, -3.5 * third, 0, 0.9, 0]
    np.testing.assert_allclose(c.h2o_curve(sums, "gain"), gain, **CLOSE)
    assert c.h2o_auuc(sums, "gain") == pytest.approx(sum(gain) / 11)
    assert c.h2o_auuc(sums, "gain", normalize=True) == pytest.approx(sum(gain) / 11)  # it ends at 0: not divided
    assert c.h2o_bins(np.array([1.0, 2, 2, 2, 3]), 2).tolist() == [1, 0, 0, 0, 0]


# ---- against the references

CASES = [
    {"seed": s, "ties": t, "share": p} for s, t, p in ((0, False, 0.5), (1, True, 0.8), (2, True, 0.5), (3, False, 0.1))
]


@pytest.mark.parametrize("case", CASES)
def test_scikit_uplift_by_its_definition(case):
    score, treated, y = rows(**case)
    sums = by_score(score, treated, y)
    for kind, curve in (("uplift", c.sklift_uplift_curve), ("qini", c.sklift_qini_curve)):
        np.testing.assert_allclose(curve(sums), sklift_points(score, treated, y, kind), **CLOSE)
    assert abs(c.sklift_uplift_auc_score(sums) - sklift_score(score, treated, y, "uplift")) < 1e-10
    for effects in (True, False):
        auc = c.sklift_qini_auc_score(sums, negative_effect=effects)
        assert abs(auc - sklift_score(score, treated, y, "qini", effects)) < 1e-10
    units = by_unit(treated, y)
    for k in (0.3, 0.77, 50):
        first = np.arange(len(y)) < (int(k * len(y)) if k < 1 else k)
        means = [y[first & (treated == arm)].mean() for arm in (1, 0)]
        assert abs(c.sklift_uplift_at_k(units, k) - (means[0] - means[1])) < 1e-10
        if k < 1:
            arms = [y[treated == arm] for arm in (1, 0)]
            means = [arm[: int(k * len(arm))].mean() for arm in arms]
            assert abs(c.sklift_uplift_at_k(units, k, by_group=True) - (means[0] - means[1])) < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_causalml_by_its_definition(case):
    _, treated, y = rows(**case)
    sums = by_unit(treated, y)
    gain, qini = (causalml_curve(treated, y, kind) for kind in ("gain", "qini"))
    np.testing.assert_allclose(c.causalml_gain(sums), gain, **CLOSE)
    np.testing.assert_allclose(c.causalml_qini(sums), qini, **CLOSE)
    for normalize in (True, False):
        by = [abs(a[-1]) if normalize else 1 for a in (gain, qini)]
        assert abs(c.causalml_auuc_score(sums, normalize) - (gain / by[0]).mean()) < 1e-10
        above = qini / by[1] - np.linspace(0, qini[-1] / by[1], len(qini))
        assert abs(c.causalml_qini_score(sums, normalize) - above.mean()) < 1e-10


@pytest.mark.parametrize("nbins", [7, 40, 1000])
@pytest.mark.parametrize("case", CASES)
def test_h2o_by_its_definition(case, nbins):
    score, treated, y = rows(**case)
    sums = sums_of(c.h2o_bins(score, nbins), treated, y)
    for kind in ("qini", "lift", "gain"):
        units, curve = h2o_table(score, treated, y, kind, nbins)
        assert sums.units.tolist() == units.tolist()
        np.testing.assert_allclose(c.h2o_curve(sums, kind), curve, **CLOSE)
        n = len(y)
        assert abs(c.h2o_auuc(sums, kind) - (curve * units).sum() / (n + 1)) < 1e-10
        by = abs(curve[-1]) if kind != "lift" else 1
        assert abs(c.h2o_auuc(sums, kind, normalize=True) - (curve / by * units).sum() / (n + 1)) < 1e-10
        random = curve[-1] / n * units.cumsum()
        assert abs(c.h2o_aecu(sums, kind) - ((curve - random) * units).sum() / (n + 1)) < 1e-10


# ---- against the libraries


@pytest.mark.parametrize("case", CASES)
def test_scikit_uplift_by_itself(case):
    peer = pytest.importorskip("sklift.metrics", reason="scikit-uplift is not here: it comes with the extra bench")
    score, treated, y = rows(**case)
    sums, units = by_score(score, treated, y), by_unit(treated, y)
    assert abs(c.sklift_uplift_auc_score(sums) - peer.uplift_auc_score(y, score, treated)) < 1e-10
    for effects in (True, False):
        result = c.sklift_qini_auc_score(sums, effects)
        assert abs(result - peer.qini_auc_score(y, score, treated, negative_effect=effects)) < 1e-10
    ranks = -np.arange(len(y))  # the library takes tied units in an order of its own
    for k in (0.3, 50):
        assert abs(c.sklift_uplift_at_k(units, k) - peer.uplift_at_k(y, ranks, treated, "overall", k)) < 1e-10
    result = c.sklift_uplift_at_k(units, 0.3, by_group=True)
    assert abs(result - peer.uplift_at_k(y, ranks, treated, "by_group", 0.3)) < 1e-10


@pytest.mark.parametrize("case", CASES)
def test_causalml_by_itself(case):
    peer = pytest.importorskip("causalml.metrics", reason="CausalML is not here: it comes with the extra bench")
    _, treated, y = rows(**case)
    frame, sums = pd.DataFrame({"model": -np.arange(len(y)), "w": treated, "y": y}), by_unit(treated, y)
    for normalize in (True, False):
        scores = c.causalml_auuc_score(sums, normalize), c.causalml_qini_score(sums, normalize)
        assert abs(scores[0] - peer.auuc_score(frame, normalize=normalize)["model"]) < 1e-10
        assert abs(scores[1] - peer.qini_score(frame, normalize=normalize)["model"]) < 1e-10


# ---- how they relate to ours


def test_conversions_from_our_auuc_and_qini():
    """What the docstrings state, exactly, where both arms are in the first bin and half of every bin is treated."""
    rng = np.random.default_rng(9)
    half = np.full(200, 2)
    sums = c.ArmSums(half, rng.binomial(2, np.linspace(0.6, 0.2, 200)), half, rng.binomial(2, 0.2, 200))
    ours, n = uplift_curve(sums.treated, sums.treated_y, sums.control, sums.control_y), 800
    auuc, qini, ate = float(ours.auuc), float(ours.qini), float(ours.average_effect)
    units, gain = c.sklift_uplift_curve(sums)
    assert area(units, gain) - n * gain[-1] / 2 == pytest.approx(n**2 * qini, rel=1e-12)
    units, values = c.sklift_qini_curve(sums)
    assert area(units, values) - n * values[-1] / 2 == pytest.approx(n**2 * qini / 2, rel=1e-12)
    plain = (n**2 * auuc + n * ate / 2) / (n + 1)
    assert c.causalml_auuc_score(sums, normalize=False) == pytest.approx(plain, rel=1e-12)
    assert c.causalml_auuc_score(sums) == pytest.approx(plain / (n * ate), rel=1e-12)
    assert c.causalml_qini_score(sums) == pytest.approx(n / (n + 1) * qini / ate, rel=1e-12)
    assert c.sklift_uplift_at_k(sums, 0.3) == pytest.approx(float(ours.at(np.array([0.3]))[0]) / 0.3, rel=1e-12)


def test_leading_axes_are_rankings_of_their_own():
    parts = [by_unit(*rows(60, seed)[1:]) for seed in range(4)]
    together = c.ArmSums(*(np.stack([getattr(p, f) for p in parts]) for f in c.ArmSums.__dataclass_fields__))
    figures = (
        c.sklift_uplift_auc_score, c.sklift_qini_auc_score, c.causalml_auuc_score, c.causalml_qini_score, c.h2o_auuc,
        c.h2o_aecu, lambda sums: c.sklift_qini_auc_score(sums, False), lambda sums: c.sklift_uplift_at_k(sums, 0.4),
    )  # fmt: skip
    for figure in figures:
        np.testing.assert_allclose(figure(together), [figure(part) for part in parts], rtol=1e-12)


def test_bad_input_is_refused_or_not_known():
    money = c.ArmSums(np.array([2, 2]), np.array([7.5, 1]), np.array([2, 2]), np.array([0, 3]))
    for figure in (c.sklift_uplift_auc_score, c.sklift_qini_auc_score):
        with pytest.raises(DataError, match=r"^1 rank bins hold outcomes other than 0 and 1"):
            figure(money)
    assert np.isfinite(c.causalml_auuc_score(money))
    for k in (0, -1, 2.5):
        with pytest.raises(ConfigError, match=rf"^k={k} is neither"):
            c.sklift_uplift_at_k(FOUR, k)
    assert np.isnan(c.sklift_uplift_at_k(FOUR, 5))
    alone = c.ArmSums(np.array([1, 1]), np.array([1, 0]), np.zeros(2), np.zeros(2))
    figures = c.sklift_uplift_auc_score, c.sklift_qini_auc_score, c.causalml_auuc_score, c.causalml_qini_score
    with np.errstate(invalid="ignore"):
        assert all(np.isnan(figure(alone)) for figure in (*figures, c.h2o_auuc, c.h2o_aecu))


def test_a_rankings_figures_are_those_of_each_librarys_bins():
    """CausalML's from a bin per unit, scikit-uplift's from one per distinct score, H2O's from its own."""
    rng = np.random.default_rng(4)
    score, treated, y = rng.integers(0, 30, 200) / 10, rng.random(200) < 0.4, rng.integers(0, 2, 200)
    figures = c.library_metrics(score, treated, y)
    order = np.argsort(-score, kind="stable")
    curve = causalml_curve(treated[order], y[order], "lift")
    assert figures["causalml_auuc_score"] == pytest.approx((curve / abs(curve[-1])).mean())
    distinct = by_score(score, treated.astype(int), y)
    assert figures["sklift_qini_auc_score"] == pytest.approx(float(c.sklift_qini_auc_score(distinct)))
    assert all(np.isfinite(figure) for figure in figures.values()) and len(figures) == 7
    assert not [name for name in c.library_metrics(score, treated, y * 2.5) if name.startswith("sklift")]
    with pytest.raises(ConfigError, match=r"give \[n\] of each"):
        c.library_metrics(score, treated[1:], y)
