"""Differential privacy: what one person moves is bounded, noise holds the stated budget, intervals know of it."""

from __future__ import annotations

import json
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.stats

from uplift_spark import CausalForest, Roles, load_model
from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem, ModelFileError
from uplift_spark.forest.private import bounded, exact_sums, most_trees
from uplift_spark.governance.differential_privacy import PrivacyLedger, private_forest, private_lift, synthetic_units
from uplift_spark.stats.noise import OutcomeEnds, PrivacyBudget, epsilon_of, noise_sd, with_integer_noise

FEATURES = ("x0", "x1", "x2")
ROLES = Roles("unit", "w", "y", FEATURES, "0")
LEARNER = CausalForest(n_trees=40)
POINTS = 1000
ENDS = OutcomeEnds(0.0, 1.0)


def campaign(n: int, seed: int, levels: int = 2) -> tuple[pd.DataFrame, np.ndarray]:
    """Conversions of 10 to 20 %; levels bring 5 points, and 10 more where x0 is above a half; and their effects."""
    rng = np.random.default_rng(seed)
    x, w = rng.random((n, 3)), rng.integers(0, levels, n)
    gain = (0.05 + 0.1 * (x[:, :1] > 0.5)) * np.arange(1, levels) / (levels - 1)
    rate = 0.1 + 0.1 * x[:, 1] + np.where(w > 0, np.take_along_axis(gain, np.maximum(w - 1, 0)[:, None], 1)[:, 0], 0)
    frame = pd.DataFrame(x, columns=list(FEATURES)).assign(unit=np.arange(n) + seed * 10**6, w=w)
    return frame.assign(y=(rng.random(n) < rate).astype(float)), gain


@pytest.fixture(scope="module")
def public() -> pd.DataFrame:
    return campaign(20_000, 999)[0]


@pytest.fixture(scope="module")
def splits(public):
    return LEARNER.fit(public, ROLES).forest


# ---------------------------------------------------------------- budgets and noise


def test_budgets_are_what_bun_and_steinke_say():
    budget = PrivacyBudget(1.0, 1e-6)
    assert epsilon_of(budget.rho, 1e-6) == pytest.approx(1.0) and epsilon_of(0.0, 1e-6) == 0.0
    assert PrivacyBudget(2.0).rho > 2 * budget.rho
    for epsilon, delta in (
        (0.0, 1e-6), (-1.0, 1e-6), (math.nan, 1e-6), (math.inf, 1e-6), (1.0, 0.0), (1.0, 0.1), (1e-300, 1e-6),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="give a number above 0"):
            PrivacyBudget(epsilon, delta)


def test_small_budgets_and_deltas_keep_their_rho():
    """By 50 digits: the difference of two roots alone loses all of it, and 1 / δ is infinite."""
    from decimal import Decimal, getcontext

    getcontext().prec = 50
    for epsilon, delta in ((1e-6, 1e-6), (1e-3, 1e-9), (1.0, 5e-324)):
        chance = -Decimal(delta).ln()
        wanted = ((chance + Decimal(epsilon)).sqrt() - chance.sqrt()) ** 2
        assert PrivacyBudget(epsilon, delta).rho == pytest.approx(float(wanted), rel=1e-14)
        assert epsilon_of(float(wanted), delta) == pytest.approx(epsilon, rel=1e-14)


def test_noise_is_of_integers_of_the_stated_size_and_of_the_budget_that_opendp_computes():
    import opendp.prelude as dp

    zeros, sd = np.zeros((200, 50), np.int64), noise_sd(3.0, 0.02)
    noisy = with_integer_noise(zeros, 3.0, 0.02)
    assert noisy.dtype == np.int64 and noisy.shape == zeros.shape
    assert noisy.std() == pytest.approx(sd, rel=0.05) and abs(noisy.mean()) < 5 * sd / 100
    assert not np.array_equal(noisy, with_integer_noise(zeros, 3.0, 0.02))
    gaussian = dp.m.make_gaussian(dp.vector_domain(dp.atom_domain(T="i64")), dp.l2_distance(T="f64"), scale=sd)
    assert gaussian.map(3.0) == pytest.approx(0.02, rel=1e-9)
    with pytest.raises(TypeError, match="integers alone, not on float64"):
        with_integer_noise(zeros.astype(float), 1.0, 1.0)


# ---------------------------------------------------------------- what one person moves


def check_neighbours(pairs: int, splits, rows_per_person: int) -> float:
    """Sums with and without each of so many persons, who may have many rows with outcomes far beyond the ends; the
    largest move as a share of what is stated."""
    roles = replace(ROLES, cluster="person")
    forest = replace(splits, plan=replace(splits.plan, roles=roles))
    rng, largest, drawn = np.random.default_rng(5), 0.0, 0
    while drawn < pairs:
        n = 60
        frame = campaign(n, int(rng.integers(10**6)))[0].assign(person=rng.integers(0, 20, n))
        frame["y"] = rng.choice([-1e6, -0.3, 0.0, 0.4, 1.0, 7.0, 1e9], n)
        table = pa.Table.from_pandas(frame, preserve_index=False)
        plan, whole, squares = exact_sums(table, forest, ENDS, rows_per_person)
        length, most = rows_per_person * math.sqrt(most_trees(plan)), ENDS.most
        persons = frame["person"].unique()
        for person in persons[: pairs - drawn]:
            left = table.filter(pa.array(frame["person"] != person))
            _, without, squares_without = exact_sums(left, forest, ENDS, rows_per_person)
            moved = np.abs(whole - without).astype(float)
            assert np.linalg.norm(squares - squares_without) <= rows_per_person * ENDS.most_square
            shares = np.sqrt((moved**2).sum(axis=(0, 1))) / (length, length * most)
            assert (shares <= 1.0).all() and moved[..., 1].max() <= rows_per_person * most
            largest = max(largest, float(shares.max()))
        drawn += len(persons[: pairs - drawn])
    return largest


@pytest.mark.parametrize("rows_per_person", [1, 3])
def test_no_person_moves_the_sums_by_more_than_is_stated(splits, rows_per_person):
    assert check_neighbours(20, splits, rows_per_person) > 0.2


@pytest.mark.simulation
@pytest.mark.parametrize("rows_per_person", [1, 3])
def test_no_person_of_ten_thousand_moves_the_sums_by_more_than_is_stated(splits, rows_per_person):
    largest = check_neighbours(5000, splits, rows_per_person)
    print(f"{rows_per_person} rows a person, 5,000 pairs: the largest move is {largest:.3f} of what is stated")
    assert largest > 0.5


def test_a_person_has_so_many_rows_and_takes_part_in_so_many_trees(splits):
    frame = campaign(4000, 3)[0].assign(person=lambda one: one.index // 8)
    forest = replace(splits, plan=replace(splits.plan, roles=replace(ROLES, cluster="person")))
    from uplift_spark.forest.encode import bin_rows, encode

    rows = bin_rows(encode(pa.Table.from_pandas(frame), forest.roles), forest.plan)
    kept = bounded(rows, forest.plan, 3)
    assert np.unique(kept.key, return_counts=True)[1].max() == 3
    assert 0.98 < len(np.unique(kept.key)) / 500 <= 1.0  # few take part in too many trees
    mixed = rows.take(np.random.default_rng(1).permutation(len(rows.unit)))
    assert set(bounded(mixed, forest.plan, 3).unit) == set(kept.unit)
    assert splits.plan.n_trees / 2 < most_trees(splits.plan) <= splits.plan.n_trees


def attacked(rho_used: float, runs: int) -> float:
    """The lower bound of ε, at 95 %, that the best attack on a person's presence shows, where noise is of `rho_used`.

    Of two Gaussian laws apart by the person's whole share, the likelihood ratio decides best (Neyman & Pearson).
    """
    moved = np.zeros(64, np.int64)
    moved[:32] = 1000
    length = float(np.sqrt((moved.astype(float) ** 2).sum()))
    delta = 1e-6
    seen = np.array(
        [
            [float(with_integer_noise(one, length, rho_used) @ moved) / length**2 for one in (0 * moved, moved)]
            for _ in range(runs)
        ]
    )
    best = 0.0
    for threshold in np.quantile(seen, np.linspace(0.02, 0.98, 49)):
        hits, alarms = (seen[:, 1] > threshold).sum(), (seen[:, 0] > threshold).sum()
        tpr = scipy.stats.beta.ppf(0.05 / 98, hits, runs - hits + 1) if hits else 0.0
        fpr = scipy.stats.beta.ppf(1 - 0.05 / 98, alarms + 1, runs - alarms) if alarms < runs else 1.0
        if tpr > delta and fpr > 0:
            best = max(best, math.log((tpr - delta) / fpr))
    return best


def test_an_attack_on_membership_shows_less_than_the_stated_epsilon():
    rho = PrivacyBudget(1.0).rho
    assert attacked(rho, 500) < 1.0
    assert attacked(400 * rho, 500) > 1.0  # with a twentieth of the noise it would show more


@pytest.mark.simulation
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_no_attack_of_twenty_thousand_shows_the_stated_epsilon(epsilon):
    shown = attacked(PrivacyBudget(epsilon).rho, 20_000)
    print(f"ε = {epsilon}: an attack shows at least {shown:.3f}")
    assert 0.05 * epsilon < shown < epsilon


# ---------------------------------------------------------------- the ledger


def test_a_ledger_adds_up_and_refuses_what_is_not_left(tmp_path):
    ledger = PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(2.0))
    assert ledger.spent == 0.0 and ledger.entries().empty
    ledger.spend(PrivacyBudget(1.0), "spring")
    assert ledger.spent == pytest.approx(1.0)
    with pytest.raises(ConflictError, match=r"has ε = 1.\d+ left of 2, and 'summer' asks for 2: ask for less"):
        ledger.spend(PrivacyBudget(2.0), "summer")
    assert ledger.entries()["what"].tolist() == ["spring"]
    part = PrivacyLedger(tmp_path / "parts.db", PrivacyBudget(2.0))
    tenth = epsilon_of(PrivacyBudget(2.0).rho / 10, 1e-6)
    for k in range(10):
        part.spend(PrivacyBudget(tenth), f"part {k}")
    assert part.spent == pytest.approx(2.0)


def test_a_ledger_keeps_the_budget_that_it_was_begun_with(tmp_path):
    PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(1.0)).spend(PrivacyBudget(1.0), "all of it")
    larger = PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(9.0))
    with pytest.raises(ConfigError, match="was begun with ε = 1, δ = 1e-06, which hold for all"):
        larger.spend(PrivacyBudget(1.0), "more")
    assert len(PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(1.0)).entries()) == 1


def test_a_ledger_that_cannot_be_read_or_written_publishes_nothing(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text").write_text("no database" * 1000)
    for name in ("folder", "text", "missing/ledger.db"):
        with pytest.raises(EnvironmentProblem, match=f"the privacy ledger .*{name} cannot be read or written"):
            PrivacyLedger(tmp_path / name, PrivacyBudget(1.0)).spend(PrivacyBudget(1.0), "spring")
    monkeypatch.chdir(tmp_path)
    in_memory = PrivacyLedger(":memory:", PrivacyBudget(1.0))  # SQLite would forget it with each use
    in_memory.spend(PrivacyBudget(np.float32(1.0)), "spring")
    assert in_memory.spent == pytest.approx(1.0) and (tmp_path / ":memory:").is_file()


@pytest.mark.parametrize("missing", [False, True])
def test_what_is_refused_costs_no_budget(tmp_path, splits, monkeypatch, missing):
    """Noise is the last that can fail, and the ledger is the last before it."""
    ledger, budget = PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(2.0)), PrivacyBudget(1.0)
    frame = in_cities(500, 1)
    if missing:
        monkeypatch.setitem(sys.modules, "opendp.prelude", None)
    monkeypatch.setattr(CausalForest, "fit", lambda *_: SimpleNamespace(forest=splits))
    changes = {"a level": {"w": 7}, "a column": {"x0": None}, "an outcome": {"y": math.nan}}
    for what, change in changes.items():
        broken = frame.drop(columns="x0") if what == "a column" else frame.assign(**change)
        with pytest.raises(ConfigError if missing else DataError, match="needs OpenDP" if missing else "column "):
            private_forest(LEARNER, frame, broken, ROLES, budget, ledger=ledger)
    for act in (
        lambda: private_forest(LEARNER, frame, frame, ROLES, budget, rows_per_person=1.5, ledger=ledger),
        lambda: private_lift(frame, ROLES, ["0", "1"], {}, budget, (0.0, 1e300), ledger=ledger),
        lambda: private_lift(frame, ROLES, ["0"], {}, budget, ledger=ledger),
        lambda: synthetic_units(frame, ROLES, ["0", "1", "1"], VALUES, budget, ledger=ledger),
    ):
        with pytest.raises(ConfigError):
            act()
    assert ledger.entries().empty


def test_of_many_who_spend_at_once_no_more_than_the_budget_is_spent(tmp_path):
    def one(k: int) -> bool:
        try:
            PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(1.0)).spend(PrivacyBudget(0.5), f"release {k}")
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        spent = sum(pool.map(one, range(24)))
    allowed = int(PrivacyBudget(1.0).rho / PrivacyBudget(0.5).rho)
    ledger = PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(1.0))
    assert spent == allowed == len(ledger.entries()) and ledger.spent <= 1.0


def test_nothing_is_made_where_the_ledger_refuses(tmp_path, public):
    ledger = PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(0.1))
    frame = campaign(1000, 1)[0]
    with pytest.raises(ConflictError, match="'forest of the effects on y' asks for 1"):
        private_forest(CausalForest(n_trees=8), public[:2000], frame, ROLES, PrivacyBudget(1.0), ledger=ledger)
    with pytest.raises(ConflictError, match="'lift of y by nothing' asks for 1"):
        private_lift(frame, ROLES, ["0", "1"], {}, PrivacyBudget(1.0), ledger=ledger)
    assert ledger.entries().empty


# ---------------------------------------------------------------- forests


def check_forests(draws: int, public, epsilon: float, learner=LEARNER, n: int = 30_000) -> tuple[np.ndarray, ...]:
    """Whether each effect of each draw's forest is covered, its errors, and its squared misses."""
    points, truth = campaign(POINTS, 10**6)
    inside, errors, missed = [], [], []
    for seed in range(draws):
        model = private_forest(learner, public, campaign(n, seed)[0], ROLES, PrivacyBudget(epsilon))
        effects = model.effect(points)
        off = effects["uplift"].to_numpy() - truth[:, 0]
        inside.append(np.abs(off) <= 1.96 * effects["uplift_se"].to_numpy())
        errors.append(effects["uplift_se"].to_numpy())
        missed.append(off**2)
    return np.array(inside), np.array(errors), np.array(missed)


def test_a_private_forest_finds_who_gains_more_and_its_errors_know_the_noise(public):
    wide, narrow = (check_forests(2, public, epsilon) for epsilon in (0.5, 8.0))
    assert wide[1].mean() > 1.3 * narrow[1].mean()
    assert wide[0].mean() > 0.8 and narrow[0].mean() > 0.75
    points, truth = campaign(POINTS, 10**6)
    model = private_forest(LEARNER, public, campaign(30_000, 1)[0], ROLES, PrivacyBudget(2.0))
    effect = model.effect(points)["uplift"]
    assert effect[truth[:, 0] > 0.1].mean() > 0.08 + effect[truth[:, 0] < 0.1].mean() - 0.04


@pytest.mark.simulation
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0, 10.0])
def test_intervals_of_private_forests_cover(epsilon):
    public = campaign(50_000, 999)[0]
    inside, errors, missed = check_forests(200, public, epsilon, n=50_000)
    share = inside.mean(axis=1)
    print(f"ε = {epsilon}: covers {share.mean():.3f}, error {errors.mean():.4f}, RMSE {np.sqrt(missed.mean()):.4f}")
    assert share.mean() + 2 * share.std() / math.sqrt(len(share)) > 0.93


def test_a_private_forest_is_a_model_file_like_others_and_takes_no_further_rows(tmp_path, public):
    frame = campaign(20_000, 2)[0]
    model = private_forest(LEARNER, public, frame, ROLES, PrivacyBudget(1.0))
    path = tmp_path / "model.bin"
    path.write_bytes(model.to_bytes())
    again = load_model(path.read_bytes())
    pd.testing.assert_frame_equal(again.effect(frame[:50]), model.effect(frame[:50]))
    assert again.to_bytes() == model.to_bytes()
    facts = again.manifest["facts"]
    assert facts["private"]["epsilon"] == 1.0
    assert facts["rows"] == pytest.approx(20_000, rel=0.05) and facts["rows"] != 20_000
    one = model.forest.unit_effects(np.zeros((1, 3), np.uint8))
    many = model.forest.effects_of(np.zeros((2, 3), np.uint8))
    assert one[1][0, 0] == many[1][0, 0]
    for act in (model.estimate, model.refresh):
        with pytest.raises(ConfigError, match="a differentially private forest takes no further rows: make a new one"):
            act(frame)
    with pytest.raises(ConfigError, match="differentially private"):
        model.to_onnx("1")
    other = private_forest(LEARNER, public, frame, ROLES, PrivacyBudget(1.0))
    assert other.to_bytes() != model.to_bytes()  # noise has no seed


def test_nothing_of_the_private_rows_but_noisy_sums_is_in_the_file(public):
    """Rows that differ beyond what the sums hold, with the same noise, give the same file."""
    frame = campaign(3000, 2)[0]
    other = frame.assign(y=frame["y"] * 1e9, x0=frame["x0"] + 1e-12)
    splits = CausalForest(n_trees=16).fit(public[:5000], ROLES).forest
    tables = [pa.Table.from_pandas(one, preserve_index=False) for one in (frame, other)]
    (plan, sums, *_), (plan_too, sums_too, *_) = (exact_sums(table, splits, ENDS, 1) for table in tables)
    assert plan.to_dict() == plan_too.to_dict() and np.array_equal(sums, sums_too)


def test_noise_beyond_every_leaf_is_said(public):
    with pytest.raises(DataError, match=r"the noise of ε = 0.1 is more than any leaf holds, 1,\d+ rows of each level"):
        private_forest(LEARNER, public, campaign(5000, 1)[0], ROLES, PrivacyBudget(0.1))


VALUES = {"x0": (0.0, 1.0), "x1": (0.0, 1.0), "x2": (0.0, 1.0), "city": ["a", "b", "c"]}
CITIES = replace(ROLES, features=tuple(VALUES))


def in_cities(n: int, seed: int) -> pd.DataFrame:
    """`campaign` in two cities of three that are known, and one that is not."""
    frame, _ = campaign(n, seed)
    return frame.assign(city=np.random.default_rng(seed).choice(["a", "b", "elsewhere"], n))


def test_synthetic_units_are_like_the_others_in_what_single_features_tell():
    frame = in_cities(40_000, 4)
    units = synthetic_units(frame, CITIES, ["0", "1"], VALUES, PrivacyBudget(2.0))
    assert len(units) == pytest.approx(40_000, rel=0.15) and set(units) >= set(CITIES.columns)
    assert set(units["city"]) <= {"a", "b", "c"} and (units["city"] == "c").mean() < 0.02
    by_level = units.groupby([units["x0"] > 0.5, "w"])["y"].mean().unstack()
    gain = by_level["1"] - by_level["0"]
    # Noise has no seed. True gains are .05 and .15, and those of bins are drawn towards their mean by design: over 120
    # draws they are .107 (sd .004) on average and .064 (sd .009) apart. Bounds lie four standard deviations off.
    assert (gain[False] + gain[True]) / 2 == pytest.approx(0.1, abs=0.025)
    assert 0.028 < gain[True] - gain[False] < 0.11
    assert not set(units[["x0", "x1"]].itertuples(index=False)) & set(frame[["x0", "x1"]].itertuples(index=False))
    model = private_forest(LEARNER, units, frame, CITIES, PrivacyBudget(2.0))
    points, truth = campaign(500, 5)
    effect = model.effect(points.assign(city="a"))["uplift"].to_numpy()
    assert np.corrcoef(effect, truth[:, 0])[0, 1] > 0.8


def test_what_cannot_be_synthetic_is_refused(tmp_path):
    frame, budget = in_cities(200, 1), PrivacyBudget(1.0)
    with pytest.raises(ConfigError, match="values lack feature 'city'"):
        synthetic_units(frame, CITIES, ["0", "1"], dict.fromkeys(FEATURES, (0.0, 1.0)), budget)
    many = {**VALUES, "city": [str(k) for k in range(33)]}
    with pytest.raises(ConfigError, match="feature 'city' are 33 categories, of 1 to 32: name the most common"):
        synthetic_units(frame, CITIES, ["0", "1"], many, budget)
    with pytest.raises(ConfigError, match=r"values of feature 'x0' are 1\.0 to 1\.0: give its least and its largest"):
        synthetic_units(frame, CITIES, ["0", "1"], {**VALUES, "x0": (1.0, 1.0)}, budget)
    with pytest.raises(ConfigError, match="segment 'city' names the value 'a' twice, so that a unit would count twice"):
        private_lift(frame, CITIES, ["0", "1"], {"city": ["a", "b", "a"]}, budget)
    with pytest.raises(ConfigError, match="levels lack the control '0'"):
        synthetic_units(frame, CITIES, ["1", "2"], VALUES, budget)
    with pytest.raises(DataError, match="column 'unit' repeats a person in 1 rows"):
        synthetic_units(pd.concat([frame, frame[:1]]), CITIES, ["0", "1"], VALUES, budget)
    ledger = PrivacyLedger(tmp_path / "ledger.db", PrivacyBudget(0.5))
    with pytest.raises(ConflictError, match="'synthetic units for y' asks for 1"):
        synthetic_units(frame, CITIES, ["0", "1"], VALUES, budget, ledger=ledger)


def test_noise_on_empty_bins_makes_no_units_of_its_own():
    """Of 4,000 units; counts below nothing are cut off, those above would add up to ten times as many."""
    frame, roles = campaign(4000, 4)[0], replace(ROLES, features=("x0",))
    units = synthetic_units(frame, roles, ["0", "1"], {"x0": (0.0, 1000.0)}, PrivacyBudget(0.02))
    assert 1000 <= len(units) < 20_000  # noise on all bins together has a standard deviation of 3,000
    assert len(synthetic_units(frame, roles, ["0", "1"], {"x0": (0.0, 1.0)}, PrivacyBudget(1e-6))) <= 1_000_000


def neighbours_of(call, monkeypatch, sums_each: int = 2) -> None:
    """The sums that noise goes on move by no more than is stated, with and without each of thirty units."""
    import uplift_spark.governance.differential_privacy as module

    seen: list[tuple[np.ndarray, float]] = []

    def kept(sums, sensitivity, rho):
        seen.append((sums.copy(), sensitivity))
        return sums

    monkeypatch.setattr(module, "with_integer_noise", kept)
    frame = in_cities(300, 1).assign(half=lambda one: np.where(one["x0"] > 0.5, "upper", "lower"), y=1e6)
    for left in (frame, *(frame.drop(index=k) for k in range(30))):
        call(left)
    assert len(seen) == 31 * sums_each
    for part in range(sums_each):
        whole = seen[part][0].astype(float)
        moves = [np.linalg.norm(whole - sums.astype(float)) for sums, _ in seen[sums_each + part :: sums_each]]
        assert max(moves) <= seen[part][1] * (1 + 1e-12) and max(moves) > 0.8 * seen[part][1]


def test_no_unit_moves_what_units_are_synthetic_from_by_more_than_is_stated(monkeypatch):
    neighbours_of(
        lambda one: synthetic_units(one, CITIES, ["0", "1"], VALUES, PrivacyBudget(1.0), (0.0, 1.0)), monkeypatch
    )


@pytest.mark.parametrize(("ends", "sums"), [((0.0, 1.0), 2), ((-3.0, 1000.0), 3)])
def test_no_unit_moves_a_lift_table_by_more_than_is_stated(monkeypatch, ends, sums):
    segments, budget = {"half": ["upper", "lower"]}, PrivacyBudget(1.0)
    neighbours_of(lambda one: private_lift(one, ROLES, ["0", "1"], segments, budget, ends), monkeypatch, sums)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ends": (1.0, 0.0)}, "ends are 1.0 and 0.0: give the least"),
        ({"ends": (0.0, math.inf)}, "ends are 0.0 and inf: give the least"),
        ({"ends": (0.0, 1e300)}, r"ends are 0.0 and 1e\+300: give the least"),
        ({"rows": 0}, "rows_per_person is 0: give a whole number, 1 or more"),
        ({"rows": 1.5}, "rows_per_person is 1.5: give a whole number, 1 or more"),
        ({"rows": math.nan}, "rows_per_person is nan: give a whole number, 1 or more"),
    ],
)
def test_arguments_that_bound_nothing_are_refused(splits, change, message):
    table = pa.Table.from_pandas(campaign(100, 1)[0])
    with pytest.raises(ConfigError, match=message):
        exact_sums(table, splits, OutcomeEnds(*change.get("ends", (0.0, 1.0))), change.get("rows", 1))


def test_roles_without_a_bound_and_unknown_levels_are_refused(public):
    frame = campaign(500, 1)[0].assign(weight=1.0, spend=2.0)
    weighed, learner = public.assign(weight=1.0, spend=2.0), CausalForest(n_trees=8)
    for roles, what in (
        (replace(ROLES, weight="weight"), "weights"),
        (replace(ROLES, more_outcomes=("spend",)), "several outcomes"),
    ):
        with pytest.raises(ConfigError, match=f"a forest with {what} has no differentially private sums"):
            private_forest(learner, weighed[:3000], frame, roles, PrivacyBudget(1.0))
    with pytest.raises(DataError, match="column 'w' has '2', which the splits do not know: they know 0, 1"):
        private_forest(learner, public[:3000], campaign(500, 1, levels=3)[0], ROLES, PrivacyBudget(1.0))


def test_a_file_whose_noise_is_no_number_is_refused(public):
    from uplift_spark.forest.modelfile import check_manifest

    model = private_forest(CausalForest(n_trees=8), public[:3000], campaign(2000, 1)[0], ROLES, PrivacyBudget(1.0))
    manifest = json.loads(json.dumps(model.manifest))
    check_manifest("forest", manifest)
    manifest["facts"]["private"]["rows_sd"] = -1.0
    with pytest.raises((ValueError, ModelFileError), match="rows_sd"):
        check_manifest("forest", manifest)


# ---------------------------------------------------------------- lift tables


def check_lift(draws: int, epsilon: float) -> tuple[np.ndarray, pd.DataFrame]:
    """Whether the lift of each segment is covered, over draws; and the last table."""
    inside = []
    for seed in range(draws):
        frame, _ = campaign(20_000, seed)
        frame["half"] = np.where(frame["x0"] > 0.5, "upper", "lower")
        table = private_lift(frame, ROLES, ["0", "1"], {"half": ["upper", "lower"]}, PrivacyBudget(epsilon))
        truth = table["value"].map({"all": 0.10, "upper": 0.15, "lower": 0.05}).astype(float)
        inside.append(table["lift_lower"].le(truth) & table["lift_upper"].ge(truth))
    return np.array(inside), table


def test_a_private_lift_table_holds_the_lift():
    inside, table = check_lift(15, 1.0)
    assert 0.8 < inside.mean() <= 1.0
    assert table[["segment", "value", "treatment"]].to_numpy().tolist() == [
        ["all", "all", "1"], ["half", "upper", "1"], ["half", "lower", "1"],
    ]  # fmt: skip
    assert not table["low_sample"].any() and (table["n_treated"] % 1 == 0).all()


@pytest.mark.simulation
@pytest.mark.parametrize("epsilon", [0.2, 1.0, 5.0])
def test_intervals_of_private_lift_cover(epsilon):
    inside, table = check_lift(2000, epsilon)
    print(f"ε = {epsilon}: covers {inside.mean():.3f}, errors {table['lift_se'].round(4).tolist()}")
    assert inside.mean(axis=0).min() > 0.935


SPEND_ENDS = (0.0, 150.0)


def spends(n: int, seed: int) -> pd.DataFrame:
    """`campaign` whose conversions spend 20 to 60, 40 on average, and never near the larger end."""
    frame, _ = campaign(n, seed)
    paid = 20.0 + 40.0 * np.random.default_rng([seed, 1]).beta(2, 2, n)
    return frame.assign(y=frame["y"] * paid, half=np.where(frame["x0"] > 0.5, "upper", "lower"))


def check_spends(draws: int, epsilon: float, n: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Whether the lift of each segment in money is covered, over draws; and the mean errors over that of the data."""
    inside, errors = [], []
    for seed in range(draws):
        frame = spends(n, seed)
        table = private_lift(frame, ROLES, ["0", "1"], {"half": ["upper", "lower"]}, PrivacyBudget(epsilon), SPEND_ENDS)
        truth = 40.0 * table["value"].map({"all": 0.10, "upper": 0.15, "lower": 0.05}).astype(float)
        inside.append(table["lift_lower"].le(truth) & table["lift_upper"].ge(truth))
        by_arm = frame.groupby("w")["y"]
        errors.append(table["lift_se"][0] / math.sqrt((by_arm.var() / by_arm.size()).sum()))
    return np.array(inside), np.array(errors)


def test_the_variance_of_spends_is_known_with_noise_and_not_that_of_the_ends():
    """The ends allow errors of twice the true one."""
    inside, errors = check_spends(15, 4.0)
    assert inside.mean() > 0.85 and 1.0 < errors.mean() < 1.35


@pytest.mark.simulation
@pytest.mark.parametrize("epsilon", [0.5, 1.0, 5.0])
def test_intervals_of_private_lift_of_spends_cover(epsilon):
    inside, errors = check_spends(2000, epsilon)
    print(f"ε = {epsilon}: covers {inside.mean(axis=0).round(3)}, errors {errors.mean():.2f} of those without privacy")
    assert inside.mean(axis=0).min() > 0.935


def test_a_private_forest_of_spends_is_surer_than_the_ends_allow(public):
    frame, points = spends(20_000, 3), campaign(POINTS, 10**6)[0]
    model = private_forest(LEARNER, spends(20_000, 999), frame, ROLES, PrivacyBudget(8.0), SPEND_ENDS)
    shares = model.forest.facts["private"]["variance_shares"]
    by_arm = frame.groupby("w")["y"]
    largest = by_arm.mean() * (SPEND_ENDS[1] - by_arm.mean())
    assert shares == pytest.approx((by_arm.var() / largest).tolist(), rel=0.35)
    assert all(one >= true for one, true in zip(shares, by_arm.var() / largest, strict=True))
    again = load_model(model.to_bytes())
    pd.testing.assert_frame_equal(again.effect(points), model.effect(points))


def test_cells_of_a_handful_of_units_show_no_lift_and_odd_frames_are_refused():
    frame = campaign(2000, 1)[0].assign(place=lambda one: np.where(one.index < 12, "hamlet", "town"))
    table = private_lift(frame, ROLES, ["0", "1"], {"place": ["hamlet", "town", "nowhere"]}, PrivacyBudget(1.0))
    rows = table.set_index("value")
    assert rows["low_sample"].to_dict() == {"all": False, "hamlet": True, "town": False, "nowhere": True}
    assert rows["lift"].isna().tolist() == rows["low_sample"].tolist()
    with pytest.raises(DataError, match="column 'y' is missing or infinite in 1 rows"):
        private_lift(frame.assign(y=[math.nan, *frame["y"][1:]]), ROLES, ["0", "1"], {}, PrivacyBudget(1.0))
    with pytest.raises(DataError, match="column 'unit' repeats a person in 1 rows"):
        private_lift(frame.assign(unit=[1, *range(1, 2000)]), ROLES, ["0", "1"], {}, PrivacyBudget(1.0))
    with pytest.raises(ConfigError, match="levels lack the control"):
        private_lift(frame, ROLES, ["1"], {}, PrivacyBudget(1.0))


@pytest.mark.parametrize("kind", [int, float, bool, "string", "category"])
def test_levels_and_values_are_those_of_the_frame_however_it_holds_them(kind):
    """A column of whole floats or of true and false once matched nothing, and every unit was left out in silence."""
    frame = campaign(4000, 1)[0].assign(member=lambda one: (one["x0"] > 0.5).astype(int))
    frame = frame.astype({"w": kind, "member": kind})
    levels = sorted(frame["w"].unique())
    roles = Roles("unit", "w", "y", FEATURES, levels[0])
    table = private_lift(frame, roles, levels, {"member": levels}, PrivacyBudget(8.0))
    assert table["n_treated"].tolist() == pytest.approx([2000, 1000, 1000], rel=0.15)


def test_persons_of_several_units_and_roles_without_a_bound_are_refused():
    frame = campaign(2000, 1)[0].assign(home=lambda one: one.index // 4, weight=1.0, text="a", city="a")
    homes, budget = replace(ROLES, cluster="home"), PrivacyBudget(1.0)
    with pytest.raises(DataError, match="column 'home' repeats a person in 1500 rows: keep one row per person"):
        private_lift(frame, homes, ["0", "1"], {}, budget)
    assert len(private_lift(frame[::4], homes, ["0", "1"], {}, budget)) == 1
    for roles, what in ((replace(ROLES, weight="weight"), "weights"), (replace(ROLES, grid=(1.0,)), "doses")):
        with pytest.raises(ConfigError, match=f"the roles have {what}, which no sum with noise allows for"):
            private_lift(frame, roles, ["0", "1"], {}, budget)
    with pytest.raises(ConfigError, match="levels lack a treated level"):
        private_lift(frame, ROLES, ["0"], {}, budget)
    with pytest.raises(ConfigError, match="levels name the value '1' twice"):
        private_lift(frame, ROLES, [0, 1, 1.0], {}, budget)
    spends = frame.assign(y=frame["y"] * 40.0)  # with ends of 0 and 1 they would count as conversions
    beyond = f"column 'y' is below 0 or above 1 in {int(frame['y'].sum())} rows: state the least and the largest"
    for act in (
        lambda: private_lift(spends, ROLES, ["0", "1"], {}, budget),
        lambda: synthetic_units(spends, CITIES, ["0", "1"], VALUES, budget),
        lambda: private_forest(LEARNER, spends, spends, ROLES, budget),
    ):
        with pytest.raises(DataError, match=beyond):
            act()
    assert private_lift(spends, ROLES, ["0", "1"], {}, budget, (0.0, 1.0))["lift"].abs().max() < 1
    for change in ({"y": "1"}, {"unit": 0.5}, {"unit": [1, "1", *range(2, 2000)]}):
        with pytest.raises(DataError, match=r"must be numeric|must be text or integers|mixes types"):
            private_lift(frame.assign(**change), ROLES, ["0", "1"], {}, budget)
    with pytest.raises(DataError, match="column 'nowhere' is missing from the frame"):
        private_lift(frame, ROLES, ["0", "1"], {"nowhere": ["a"]}, budget)
    with pytest.raises(DataError, match=r"column 'text' is no number, and its values are 0\.0 to 1\.0"):
        synthetic_units(frame, replace(ROLES, features=("text",)), ["0", "1"], {"text": (0, 1)}, budget)
    assert private_lift(frame, ROLES, ["0", "1"], {"text": "a"}, budget)["value"].tolist() == ["all", "a"]
