"""Leakage guards: their level without leaks under every kind of design, their power, and who is named."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.stats

from uplift_spark.config import load_config
from uplift_spark.errors import DataError
from uplift_spark.events import leakage
from uplift_spark.events.leakage import find_leaks
from uplift_spark.events.simulate import ATTRIBUTES, BENCHMARKS, CampaignSimulator
from uplift_spark.roles import Roles

DATA = os.environ.get("UPLIFT_DATA")
CONF = Path(__file__).parents[2] / "conf"
FEATURES = ("age", "spend", "orders", "city", "income")
# Arm shares of three strata; the last entry of a design's name says what is drawn as one.
DESIGNS = {
    "units": dict(shares=[[0.5, 0.5]]),
    "strata": dict(shares=[[0.5, 0.5], [0.2, 0.8], [0.7, 0.3]]),
    "strata of 3 arms": dict(shares=[[0.4, 0.3, 0.3], [0.2, 0.2, 0.6], [0.6, 0.3, 0.1]]),
    "whole clusters": dict(shares=[[0.5, 0.5]], members=4, whole=True),
    "units in clusters": dict(shares=[[0.6, 0.4]], members=4),
    "clusters in strata": dict(shares=[[0.5, 0.5], [0.3, 0.7], [0.6, 0.4]], members=4, whole=True),
}


def of_designs(*quick, among=tuple(DESIGNS)):
    """The designs, of which all but the quick ones are left to `make slow`."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in among]


def trial(seed, n=400, shares=((0.5, 0.5),), members=1, whole=False):
    """A trial without leaks; its stratum is a feature, features of a cluster's members are alike."""
    rng = np.random.default_rng(seed)
    cluster = np.sort(rng.integers(0, n // members, n)) if members > 1 else np.arange(n)
    alike = rng.normal(size=(n, 3))[cluster] if members > 1 else rng.normal(size=(n, 3))
    city = rng.integers(0, len(shares), n)[cluster]
    e = np.asarray(shares)[city]
    draw = rng.random(n)[cluster] if whole else rng.random(n)
    arm = (draw[:, None] > e.cumsum(axis=1)[:, :-1]).sum(axis=1)
    income = np.where(rng.random(n) < 0.2, np.nan, rng.lognormal(size=n))
    return pd.DataFrame(
        {
            "unit": [f"u{i}" for i in range(n)],
            "cluster": cluster,
            "arm": [f"arm {k}" for k in arm],
            "e": e[np.arange(n), arm],
            "y": (rng.random(n) < 0.1 + 0.05 * arm + 0.1 * (alike[:, 0] > 0)).astype(float),
            "age": alike[:, 0],
            "spend": np.exp(alike[:, 1] + 0.3 * rng.normal(size=n)),
            "orders": rng.poisson(np.exp(0.5 * alike[:, 2])),
            "city": pd.Series([f"city {c}" for c in city], dtype=object),
            "income": income,
        }
    )


def find(frame, features=FEATURES, propensity="e", cluster=None, alpha=0.001, **more):
    roles = Roles("unit", "arm", "y", features, "arm 0", propensity=propensity, cluster=cluster)
    return find_leaks(pa.Table.from_pandas(frame, preserve_index=False), roles, alpha, **more)


def findings_of(frame, features=FEATURES, **more):
    return {(one.feature, one.rule) for one in find(frame, features, **more).findings}


# ---------------------------------------------------------------- level


def rate(design, reps, alpha, **more):
    """Share of trials without leaks in which something is found."""
    options = DESIGNS[design]
    more = {"cluster": "cluster" if "members" in options else None, **more}
    share = float(np.mean([bool(findings_of(trial(seed, **options), alpha=alpha, **more)) for seed in range(reps)]))
    print(f"{design} {more}: {share:.3f} of {reps} at level {alpha}")
    return share


@pytest.mark.parametrize("design", of_designs("units", "clusters in strata"))
def test_without_leaks_the_level_is_held(design):
    reps, alpha = 40, 0.2
    most = scipy.stats.binom.isf(1e-4, reps, alpha) / reps
    least = 0.02 if design == "units" else 0.0  # the test does reject at times
    assert least < rate(design, reps, alpha) + 1e-9 <= most


@pytest.mark.simulation
@pytest.mark.parametrize("design", DESIGNS)
def test_without_leaks_the_level_is_held_in_full(design):
    reps, alpha = 1000, 0.1
    assert rate(design, reps, alpha) <= scipy.stats.binom.isf(1e-4, reps, alpha) / reps


@pytest.mark.parametrize(
    ("design", "change"), [("strata of 3 arms", {"propensity": None}), ("whole clusters", {"cluster": None})]
)
def test_a_design_that_is_not_declared_breaks_the_level(design, change):
    assert rate(design, 20, 0.05, **change) > 0.3


def test_one_treated_per_household_is_a_design():
    """Arms of a household's members exclude each other: levels move between households as they are."""
    rng, hits = np.random.default_rng(0), 0
    for seed in range(40):
        frame = trial(seed).assign(cluster=np.arange(400) // 2, e=0.5)
        first = rng.integers(0, 2, 200)
        frame["arm"] = [f"arm {k}" for k in np.column_stack([first, 1 - first]).ravel()]
        hits += bool(findings_of(frame, alpha=0.1, cluster="cluster"))
    assert hits <= scipy.stats.binom.isf(1e-4, 40, 0.1)


@pytest.mark.parametrize("confounding", [0.0, 1.0])
def test_simulated_campaigns_are_clean_under_their_logged_propensities(confounding):
    table = CampaignSimulator("ordered", 3, confounding).units(20_000)
    roles = dict(unit="unit_id", treatment="treatment", outcome="conversion", features=ATTRIBUTES, control="none")
    clean = find_leaks(table, Roles(**roles, propensity="propensity", more_outcomes=("revenue",)))
    assert clean.findings == () and clean.rows == 20_000
    assert (clean.compared == 20_000) == (confounding == 0) and clean.compared > 5_000
    assert bool(find_leaks(table, Roles(**roles)).findings) == (confounding > 0)  # the log is what excuses it


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmark_trials_are_clean(name):
    simulated = BENCHMARKS[name](4_000, 1)
    features = {f"x{j}": simulated.X[:, j] for j in range(simulated.X.shape[1])}
    table = pa.table(
        {"unit": np.arange(4_000), "arm": simulated.w, "e": simulated.propensity, "y": simulated.y, **features}
    )
    assert find_leaks(table, Roles("unit", "arm", "y", tuple(features), "0", propensity="e")).findings == ()


@pytest.mark.skipif(not DATA, reason="UPLIFT_DATA is not set: the trials' files are not here")
@pytest.mark.parametrize("name", ["hillstrom", "karlan_list"])
def test_real_trials_are_clean_and_their_outcomes_are_not(name):
    config = load_config(CONF / f"{name}.yaml")
    source, features = config.source, config.roles.features
    frame = pd.read_csv(Path(DATA, source.file), na_values=list(map(str, source.missing)))
    frame = frame.dropna(subset=list(source.outcomes)).assign(unit=lambda f: np.arange(len(f)))
    table = pa.Table.from_pandas(frame, preserve_index=False)
    target, *others = source.outcomes
    assert (
        find_leaks(table, Roles("unit", source.treatment, target, features, "x", more_outcomes=others)).findings == ()
    )
    leaks = find_leaks(table, Roles("unit", source.treatment, target, (*features, others[-1]), "x")).findings
    assert {one.feature for one in leaks} == {others[-1]}


# ---------------------------------------------------------------- power


def _arm(frame):
    return (frame.arm != "arm 0").to_numpy()


def _after(frame, rng):
    return rng.poisson(1.0 + 0.3 * _arm(frame))


def _missing(frame, rng):
    return np.where((rng.random(len(frame)) < 0.05) & ~_arm(frame), np.nan, rng.normal(size=len(frame)))


def _text(frame, rng):
    return np.where(rng.random(len(frame)) < 0.05 + 0.1 * _arm(frame), "mailed", "web")


def _copy(frame, rng):
    return 20.0 * frame.y + rng.normal(size=len(frame))


def _status(frame, rng):
    return pd.Series(np.where(frame.y > 0, "bought", rng.choice(["new", "old"], len(frame))), dtype=object)


TREATMENT, JOINT, OUTCOME = "predicts_treatment", "predicts_treatment_jointly", "outcome_like"


@pytest.mark.parametrize("design", of_designs("units", among=("units", "strata of 3 arms", "whole clusters")))
@pytest.mark.parametrize(
    ("leak", "rule"),
    [(_after, TREATMENT), (_missing, TREATMENT), (_text, TREATMENT), (_copy, OUTCOME), (_status, OUTCOME)],
)
def test_a_leak_is_detected_and_alone_named(leak, rule, design):
    options, hits, named = DESIGNS[design], [], []
    for seed in range(5):
        frame = trial(seed, 6_000, **options)
        frame["leak"] = leak(frame, np.random.default_rng(seed))
        hits.append(findings_of(frame, (*FEATURES, "leak"), cluster="cluster" if "members" in options else None))
        named += [feature for feature, _ in hits[-1]]
    assert all(("leak", rule) in hit for hit in hits), (
        hits
    )  # an outcome's copy also tells the arm where effects are large
    assert set(named) == {"leak"}


def test_features_that_tell_the_arm_only_together_are_detected():
    frame, rng = trial(1, 6_000), np.random.default_rng(1)
    key = rng.integers(0, 2, 6_000)
    other = np.where(rng.random(6_000) < 0.3, key ^ _arm(frame), rng.integers(0, 2, 6_000))
    hit = find(frame.assign(key=key, other=other), (*FEATURES, "key", "other")).findings
    assert [one.rule for one in hit] == [JOINT] and hit[0].feature in ("key", "other")
    assert "together with others" in hit[0].sentence and hit[0].p_value <= 0.0005


def test_sentences_name_feature_reason_and_fix():
    frame = trial(1, 6_000)
    frame["gap"], frame["points"] = _missing(frame, np.random.default_rng(1)), _copy(frame, np.random.default_rng(1))
    gap, points = find(frame, (*FEATURES, "gap", "points")).findings
    for words in (
        "'gap' predicts the treatment",
        "mostly by where it is missing",
        "as of the assignment",
        "6,000 rows",
    ):
        assert words in gap.sentence
    for words in ("'points' orders units by outcome 'y'", "beyond the plausible 0.9", "remove the feature"):
        assert words in points.sentence


def test_a_good_predictor_of_the_outcome_is_no_leak():
    frame, rng = trial(1, 6_000), np.random.default_rng(1)
    before = frame.assign(y=rng.normal(size=6_000))
    before["last"] = 0.9 * before.y + np.sqrt(1 - 0.9**2) * rng.normal(size=6_000)
    assert findings_of(before, (*FEATURES, "last")) == set()
    assert findings_of(before.assign(last=before.y * 2 + 1), (*FEATURES, "last")) == {("last", OUTCOME)}
    rare = frame.assign(y=(rng.random(6_000) < 0.01).astype(float), none=0.0, few=rng.poisson(0.01, 6_000))
    assert findings_of(rare, (*FEATURES, "none", "few")) == set()  # equal to the outcome in 98 of 100 rows


# ---------------------------------------------------------------- the parts


def test_the_answer_does_not_depend_on_the_order_of_rows():
    frame = trial(3, 2_000, **DESIGNS["strata of 3 arms"])
    frame["leak"] = _after(frame, np.random.default_rng(0))
    mixed = frame.sample(frac=1, random_state=0)
    assert find(frame, (*FEATURES, "leak")) == find(mixed, (*FEATURES, "leak"))


def test_observational_and_tiny_tables_are_not_compared():
    frame = trial(1, 2_000)
    frame["copy"] = _arm(frame).astype(float)
    assert (one := find(frame, ("copy",), randomised=False)).findings == () and (one.rows, one.compared) == (2_000, 0)
    assert find(frame[:80], ("copy",)) == find(frame[:80], ("copy",), randomised=False)
    empty = pa.Table.from_pandas(frame, preserve_index=False).slice(0, 0)
    assert find_leaks(empty, Roles("unit", "arm", "y", FEATURES, "arm 0", propensity="e")).rows == 0
    assert find(frame[_arm(frame)]).compared == 0


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("e", 0.0, r"'e' is not in \(0, 1\] in 3 of 200 rows"),
        ("e", None, r"'e' is not in \(0, 1\] in 3 of 200 rows"),
        ("arm", None, "'arm' is null in 3 rows"),
        ("age", np.inf, "'age' is infinite in 3 rows"),
    ],
)
def test_unfit_rows_are_refused(column, value, message):
    frame = trial(1, 200)
    frame.loc[:2, column] = value
    with pytest.raises(DataError, match=message):
        find(frame)
    with pytest.raises(DataError, match="column 'height' is missing"):
        find(frame, ("height",))


def test_chi_square_and_concordance_agree_with_others():
    rng = np.random.default_rng(0)
    bins, level = rng.integers(0, 5, (300, 2)).astype(np.uint8), rng.integers(0, 3, 300)
    terms, df = leakage._residuals(bins, level)
    for j in range(2):
        table = np.histogram2d(bins[:, j], level, (np.arange(6), np.arange(4)))[0]
        expected = scipy.stats.chi2_contingency(table, correction=False)
        assert (terms[j].sum(), df[j]) == (pytest.approx(expected.statistic), expected.dof)

    draws = []
    for _ in range(400):
        y = rng.integers(0, 4, 80)
        score = np.round(y + rng.normal(size=80))
        draws.append((*leakage._concordance(score, y), scipy.stats.somersd(y, score).statistic))
    d, error, reference = np.array(draws).T
    assert d == pytest.approx(reference)
    assert error.mean() == pytest.approx(d.std(), rel=0.15)
