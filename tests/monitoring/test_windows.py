"""Windows: which one is due, sums that travel and are kept without loss, delays of labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.monitoring.windows import (
    WINDOW_OUTCOME,
    WindowPlan,
    add_facts,
    batch_facts,
    count_batches,
    kept_plan,
    kept_sums,
    label_delays,
    plan_of,
    propensity_column,
    read_kept_sums,
    read_plan,
    sum_rows,
    uplift_column,
    window_facts,
    window_of,
    window_to_monitor,
    without_propensity,
)
from uplift_spark.roles import DELIVERED, PROPENSITY, TREATMENT, Levels


@dataclass
class LinearModel:
    """What a window needs of a model: two levels whose uplift is linear in x."""

    levels: Levels = field(default_factory=lambda: Levels(("none", "mail", "call")))
    roles: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(features=("x", "region"), outcome="buy"))

    def effect_arrays(self, rows: pa.RecordBatch | pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = np.asarray(rows.column("x").to_numpy(zero_copy_only=False))
        effect = np.stack([0.1 * x, 0.2 * x], axis=1)
        return effect, np.full_like(effect, 0.01), np.zeros_like(effect, bool)


MODEL = LinearModel()


def rows(n: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "x": rng.normal(size=n),
            "region": pa.array(rng.choice(["north", "south"], n)),
            TREATMENT: pa.array(rng.choice(["none", "mail", "call"], n)),
            PROPENSITY: pa.array([None if i % 7 == 0 else 0.25 for i in range(n)], pa.float64()),
            DELIVERED: pa.array([None if i % 2 else float(i % 3 > 0) for i in range(n)], pa.float64()),
            WINDOW_OUTCOME: pa.array([None if i % 5 == 0 else float(i % 4 == 0) for i in range(n)], pa.float64()),
        }
    )


@pytest.fixture(scope="module")
def plan() -> WindowPlan:
    return plan_of(MODEL, rows(2000, 1), 32)  # type: ignore[arg-type]


def test_columns_are_features_scores_by_level_and_propensities_by_arm(plan: WindowPlan) -> None:
    arms = [propensity_column(arm) for arm in ("none", "mail", "call")]
    assert plan.bins.names == ("x", "region", uplift_column("mail"), uplift_column("call"), *arms)
    facts = batch_facts(plan, MODEL, rows(900, 2))  # type: ignore[arg-type]
    table = rows(900, 2).to_pandas()
    missing = facts.all_arms.missing[plan.bins.names.index("propensity:mail")]
    assert missing == ((table[TREATMENT] != "mail") | table[PROPENSITY].isna()).sum()
    assert without_propensity(facts) == table[PROPENSITY].isna().sum() > 0
    logged = table[table[DELIVERED].notna() & (table[TREATMENT] == "mail")]
    assert facts.sends["mail"] == (logged[DELIVERED].sum(), len(logged))
    mail = table[table[WINDOW_OUTCOME].notna() & table[PROPENSITY].notna() & (table[TREATMENT] == "mail")]
    assert facts.scores["mail"].arms[:, 1, 0].sum() == len(mail)  # nobody knows how many the others stand for
    assert facts.scores["mail"].arms[:, 1, 1].sum() == pytest.approx((1 / mail[PROPENSITY]).sum())


def test_units_of_which_the_model_knows_nothing_spoil_no_bins() -> None:
    table = rows(2000, 1)
    some = np.where(np.arange(2000) % 3 == 0, np.nan, table.column("x").to_numpy())
    edges = plan_of(MODEL, table.set_column(0, "x", pa.array(some)), 32).scores["mail"]  # type: ignore[arg-type]
    assert np.isfinite(edges).all() and len(edges) == 19
    nothing = table.set_column(0, "x", pa.array(np.full(2000, np.nan)))
    assert len(plan_of(MODEL, nothing, 32).scores["mail"]) == 0  # type: ignore[arg-type]


def test_batches_partitions_and_kept_rows_add_to_the_same(plan: WindowPlan) -> None:
    table = rows(3000, 3)
    whole = batch_facts(plan, MODEL, table)  # type: ignore[arg-type]
    parts = [
        pa.Table.from_batches(count_batches(plan, MODEL, table.slice(at, 1000).to_batches(max_chunksize=300)))  # type: ignore[arg-type]
        for at in (2000, 0, 1000)
    ]
    travelled = window_facts(plan, pa.concat_tables(parts))
    kept = kept_sums(pa.Table.from_batches([sum_rows(travelled)]))
    again_plan = read_plan(kept_plan(plan), plan.levels, plan.features)
    again = window_facts(again_plan, read_kept_sums(kept))
    for facts in (travelled, again):
        assert facts.units == 3000 and facts.sends == whole.sends
        assert facts.treated == whole.sends["none"][0]
        for arm, counts in whole.arms.items():
            for name in ("counts", "totals", "missing", "new"):
                np.testing.assert_array_equal(getattr(facts.arms[arm], name), getattr(counts, name))
        for level, sums in whole.scores.items():
            np.testing.assert_array_equal(facts.scores[level].units, sums.units)
            np.testing.assert_allclose(facts.scores[level].arms, sums.arms, rtol=1e-9)
            assert facts.scores[level].mean_width == pytest.approx(sums.mean_width)
    np.testing.assert_array_equal(again_plan.bins.edges["x"], plan.bins.edges["x"])
    assert again_plan.bins.categories == plan.bins.categories


def test_windows_add(plan: WindowPlan) -> None:
    one, two = (batch_facts(plan, MODEL, rows(500, seed)) for seed in (4, 5))  # type: ignore[arg-type]
    both = batch_facts(plan, MODEL, pa.concat_tables([rows(500, 4), rows(500, 5)]))  # type: ignore[arg-type]
    total = add_facts(one, two)
    assert total.units == both.units and total.sends == both.sends
    np.testing.assert_array_equal(total.all_arms.counts, both.all_arms.counts)


def test_no_rows_are_no_sums_and_no_reference(plan: WindowPlan) -> None:
    assert list(count_batches(plan, MODEL, [])) == []  # type: ignore[arg-type]
    assert window_facts(plan, read_kept_sums([])).units == 0
    with pytest.raises(DataError, match=r"no reference: the hold-out of the model's training set has no row"):
        plan_of(MODEL, rows(0, 1), 32)  # type: ignore[arg-type]


def test_windows_begin_at_midnight_and_weeks_on_monday() -> None:
    at = datetime(2025, 1, 30, 17, 40)
    assert window_of(at, 24).start == datetime(2025, 1, 30, tzinfo=UTC)
    assert window_of(at, 6).start == datetime(2025, 1, 30, 12, tzinfo=UTC)
    assert window_of(at, 168).start == datetime(2025, 1, 27, tzinfo=UTC)
    assert window_of(at, 1).end == datetime(2025, 1, 30, 18, tzinfo=UTC)


def test_the_window_due_is_the_last_one_over() -> None:
    now = datetime(2025, 1, 30, 0, 5, tzinfo=UTC)
    day = datetime(2025, 1, 29, tzinfo=UTC)
    assert window_to_monitor(now, 24, None).start == day
    assert window_to_monitor(now, 24, day).start == day
    assert window_to_monitor(now, 24, day, datetime(2025, 1, 3, 8)).start == datetime(2025, 1, 3, tzinfo=UTC)
    with pytest.raises(ConfigError, match=r"window from 2025-01-30 00:00 to 2025-01-31 00:00 UTC is not over"):
        window_to_monitor(now, 24, None, now)
    with pytest.raises(ConfigError, match=r"the clock goes back: the last window over is 2025-01-28.*--window"):
        window_to_monitor(datetime(2025, 1, 29, 1, tzinfo=UTC), 24, day)


def test_delays_of_mature_labels() -> None:
    days = pd.DataFrame(
        [
            {"outcome": None, "since": 9, "day": None, "delay": None, "fewer": None, "mature": True, "n": 50},
            {"outcome": None, "since": 2, "day": None, "delay": None, "fewer": None, "mature": False, "n": 70},
            {"outcome": "buy", "since": 9, "day": 8, "delay": 0, "fewer": 0, "mature": True, "n": 6},
            {"outcome": "buy", "since": 9, "day": 8, "delay": 2, "fewer": 0, "mature": True, "n": 3},
            {"outcome": "buy", "since": 9, "day": 1, "delay": 0, "fewer": 0, "mature": True, "n": 2},
            {"outcome": "buy", "since": 2, "day": 2, "delay": 1, "fewer": 0, "mature": False, "n": 4},
        ]
    )
    facts = label_delays(days, ("buy", "visit"), 2.4)
    assert facts["age_days"] == 2 and facts["labelled"] == 50
    assert list(facts["delays"]["buy"]) == [6, 0, 3] and list(facts["delays"]["visit"]) == [0, 0, 0]
    share, events, _ = facts["complete"]["buy"]
    assert events == 11 and share == pytest.approx(11 / (9 + 2 / (6 / 9)))  # of the youngest a third is under way
    assert label_delays(days, ("buy",), -0.5) == {"labelled": 50}
    assert label_delays(days[~days["mature"]], ("buy",), 2.0) == {"labelled": 0}


def completeness_in_the_morning(late: float, whole_days: bool) -> tuple[float, float]:
    """(estimated, true) share of known events of a day's units at seven in the morning: they happen within two days and
    are known within six hours, or so many within thirty."""
    rng, n, read_at = np.random.default_rng(4), 40_000, 48 + 7
    happened = rng.uniform(0, 24, n) + rng.uniform(0, 24, n)
    known = happened + np.where(rng.random(n) < late, rng.uniform(0, 30, n), rng.uniform(0, 6, n))
    there = known <= read_at
    day, before = (np.floor((read_at - at[there]) / 24).astype(int) for at in (happened, known))
    fewer = 0 if whole_days else day - np.floor((48 - happened[there]) / 24).astype(int)
    rows = {"outcome": "buy", "mature": True, "day": day, "delay": day - before, "fewer": fewer, "n": 1}
    estimated, *_ = label_delays(pd.DataFrame(rows), ("buy",), 7 / 24)["complete"]["buy"]
    return estimated, float(there.mean())


def test_a_window_is_as_complete_as_it_is_at_whatever_hour_it_is_read() -> None:
    assert completeness_in_the_morning(0.0, whole_days=False) == (1.0, 1.0)
    assert completeness_in_the_morning(0.0, whole_days=True)[0] < 0.97  # the last day as if it were over
    (estimated, true), (before, _) = (completeness_in_the_morning(0.1, whole_days) for whole_days in (False, True))
    assert true < 0.99 and abs(estimated - true) < 0.02 and before - true < -0.06
