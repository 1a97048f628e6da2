"""Tests of assignment: known answers, even and independent draws, ramps, strata, propensities, and SQL's equality."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments.assignment import (
    DIALECTS,
    PROGRAMME_REASON,
    RAMP_REASON,
    SLOT_REASON,
    STOPPED_REASON,
    AssignmentColumns,
    Experiment,
    ProgrammeHoldout,
    Slot,
    assign,
    assignment_sql,
    check_change,
    check_together,
    hashed,
    in_programme_holdout,
    uniform,
)

ODD_IDS = ["17", "0017", "9223372036854775807", "1234567890123456789", "Zoë", "Zoe\u0308", "用户", "🙂", " a", "A", "a"]
GOLDEN_ARMS = ["control", "20%", "control", "control", "20%", "20%", "control", "10%", "10%", "control", "10%"]
GOLDEN_MD5 = "d2278a8eb731386adcfb6f6101e67e55"
THIRDS = Experiment("spring-2026", {"control": 0.5, "10%": 0.3, "20%": 0.2})


def reference(unit: str, salt: str, draw: str = "arm") -> float:
    """The draw in one line, as anyone would write it: a number in [0, 1)."""
    return int(hashlib.md5(f"{salt}/{draw}:{unit}".encode()).hexdigest()[:8], 16) / 2**32


def numbered(count: int, start: int = 0) -> list[str]:
    return [f"u{k:08d}" for k in range(start, start + count)]


# ---------------------------------------------------------------- known answers


def test_known_answers() -> None:
    """Arms that stay for ever: a change here moves the units of every running experiment."""
    arms = assign(ODD_IDS, THIRDS).treatment.tolist()
    draws = [reference(unit, "spring-2026") for unit in ODD_IDS]
    assert arms == ["control" if d < 0.5 else "10%" if d < 0.8 else "20%" for d in draws]
    assert arms == GOLDEN_ARMS
    # `echo -n 'spring-2026/arm:0017' | md5sum`
    assert f"{hashed(['0017'], 'spring-2026', 'arm')[0, 0]:016x}" == GOLDEN_MD5[:16]
    assert f"{hashed(['0017'], 'spring-2026', 'arm')[0, 1]:016x}" == GOLDEN_MD5[16:]


def test_integers_are_their_digits() -> None:
    numbers = [17, 9223372036854775807, 1234567890123456789, -5]
    arms = assign([str(k) for k in numbers], THIRDS)
    for ids in (numbers, np.array(numbers), pd.Series(numbers), pa.array(numbers), pa.chunked_array([numbers])):
        pd.testing.assert_frame_equal(assign(ids, THIRDS), arms)
    pd.testing.assert_frame_equal(assign(pd.Categorical(arms.unit_id), THIRDS), arms)


@pytest.mark.parametrize("share", [1e-6, 1e-3, 1 / 3, 0.999999])
def test_shares_are_exact_to_a_millionth(share: float) -> None:
    cut = Experiment("exact", {"a": share, "b": 1 - share}).cuts[0]
    assert abs(cut / 2**32 - share) < 1e-9


# ---------------------------------------------------------------- even and independent


def p_of_counts(counts: np.ndarray, shares: np.ndarray) -> float:
    expectation = counts.sum() * shares
    return float(chi2.sf(((counts - expectation) ** 2 / expectation).sum(), counts.size - 1))


def arm_codes(units: list[str], experiment: Experiment, draw: str = "arm") -> np.ndarray:
    return np.searchsorted(experiment.cuts, uniform(units, experiment.salt, draw), side="right")


def test_arms_are_balanced_over_salts() -> None:
    """p-values of χ² over 300 salts are uniform: a share that is off by 1 % of itself fails, see the next test."""
    units, shares = numbered(3000), np.array([0.5, 0.3, 0.2])
    p = [
        p_of_counts(np.bincount(arm_codes(units, replace(THIRDS, salt=f"s-{k}")), minlength=3), shares)
        for k in range(300)
    ]
    assert (
        np.mean(np.array(p) < 0.01) <= 0.03
    )  # 1 % are due; more than 9 of 300 come once in 900 runs, and salts are fixed
    assert p_of_counts(np.histogram(p, bins=10, range=(0, 1))[0], np.full(10, 0.1)) > 0.001


def test_the_balance_test_notices_a_biased_hash() -> None:
    """A hash that does not mix, the sum of the bytes of sequential ids, is caught by the same figure."""
    units, shares = numbered(3000), np.array([0.5, 0.3, 0.2])
    sums = np.array([sum(unit.encode()) % 256 for unit in units]) << 24
    counts = np.bincount(np.searchsorted(THIRDS.cuts, sums, side="right"), minlength=3)
    assert p_of_counts(counts, shares) < 1e-6


def test_salts_and_draws_are_independent() -> None:
    units = numbered(4000)
    pairs = [(("spring", "arm"), (f"s-{k}", "arm")) for k in range(60)]
    pairs += [((f"s-{k}", "arm"), (f"s-{k}", draw)) for k in range(20) for draw in ("ramp", "explore", "slot")]
    p = []
    for (salt, draw), (other, other_draw) in pairs:
        first = arm_codes(units, replace(THIRDS, salt=salt), draw)
        second = arm_codes(units, replace(THIRDS, salt=other), other_draw)
        shares = np.array([0.5, 0.3, 0.2])
        p.append(p_of_counts(np.bincount(first * 3 + second, minlength=9), np.outer(shares, shares).ravel()))
    assert min(p) > 0.01 / len(p) and np.mean(np.array(p) < 0.05) <= 0.12
    same = arm_codes(units, THIRDS)
    assert p_of_counts(np.bincount(same * 3 + same, minlength=9), np.outer(shares, shares).ravel()) < 1e-12


# ---------------------------------------------------------------- ramp, slots, holdout, stopped arms


def test_a_ramp_moves_nobody() -> None:
    units = numbered(20_000)
    parts = [assign(units, replace(THIRDS, ramp=ramp)).treatment for ramp in (0.05, 0.2, 0.5, 1.0)]
    for small, large in pairwise(parts):
        assert (small.dropna() == large[small.notna()]).all() and small.notna().sum() < large.notna().sum()
    assert abs(parts[0].notna().mean() - 0.05) < 0.006
    assert set(assign(units, replace(THIRDS, ramp=0.05)).left_out) == {None, RAMP_REASON}


def test_slots_exclude_and_namespaces_cross() -> None:
    units = numbered(20_000)
    one = replace(THIRDS, salt="one", slot=Slot("shop", 0.0, 0.25))
    two = replace(THIRDS, salt="two", slot=Slot("shop", 0.25, 1.0))
    in_one, in_two = (assign(units, e).treatment.notna() for e in (one, two))
    assert not (in_one & in_two).any() and (in_one | in_two).all() and abs(in_one.mean() - 0.25) < 0.01
    crossing = assign(units, replace(THIRDS, salt="three", slot=Slot("mail", 0.0, 0.5))).treatment.notna()
    assert abs((in_one & crossing).mean() - 0.125) < 0.01
    check_together([one, two, replace(THIRDS, salt="three", slot=Slot("mail", 0.0, 0.5))])
    assert set(assign(units, one).left_out) == {None, SLOT_REASON}
    assert assign(units, one).participation.unique() == pytest.approx([0.25])


def test_programme_holdout_is_the_same_in_every_campaign() -> None:
    units, programme = numbered(20_000), ProgrammeHoldout("programme-2026", 0.05)
    held = in_programme_holdout(units, programme)
    assert abs(held.mean() - 0.05) < 0.006
    for salt in ("one", "two"):
        rows = assign(units, replace(THIRDS, salt=salt, programme=programme, ramp=0.5))
        assert (rows.left_out[held] == PROGRAMME_REASON).all() and rows.treatment[held].isna().all()
        assert rows.propensity[held].isna().all() and rows.participation.unique() == pytest.approx([0.95 * 0.5])
    more = in_programme_holdout(units, ProgrammeHoldout("programme-2026", 0.1))
    assert more[held].all() and more.sum() > held.sum()


def test_a_stopped_arm_moves_nobody() -> None:
    units = numbered(5000)
    before, after = assign(units, THIRDS), assign(units, replace(THIRDS, stopped=("20%",)))
    stays = before.treatment != "20%"
    assert (after.treatment[stays] == before.treatment[stays]).all()
    assert (after.left_out[~stays] == STOPPED_REASON).all() and after.treatment[~stays].isna().all()
    assert after.propensity[after.treatment == "10%"].unique() == pytest.approx([0.3 / 0.8])
    assert after.participation.unique() == pytest.approx([0.8])


# ---------------------------------------------------------------- strata and clusters


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 10_000))
def test_strata_are_exact(sizes: list[int], salt: int) -> None:
    strata = [f"s{k}" for k, size in enumerate(sizes) for _ in range(size)]
    units = numbered(len(strata))
    rows = assign(units, replace(THIRDS, salt=f"salt-{salt}", stratified=True), strata=strata)
    counts = pd.crosstab(pd.Series(strata), rows.treatment).reindex(columns=list(THIRDS.arms), fill_value=0)
    ideal = np.outer(sizes, list(THIRDS.arms.values()))
    assert (np.abs(counts.to_numpy() - ideal) < 1).all() and counts.to_numpy().sum() == len(units)
    order = np.random.default_rng(salt).permutation(len(units))
    again = assign(
        [units[k] for k in order],
        replace(THIRDS, salt=f"salt-{salt}", stratified=True),
        strata=[strata[k] for k in order],
    )
    assert again.treatment.tolist() == rows.treatment.iloc[order].tolist()


def test_strata_keep_the_probability_of_each_unit() -> None:
    """Seven units in a stratum cannot be cut 50/30/20; over salts every unit still gets each arm by its share."""
    units, design = numbered(7), replace(THIRDS, stratified=True)
    counts = np.zeros((7, 3))
    for k in range(400):
        arms = assign(units, replace(design, salt=f"k-{k}"), strata=["x"] * 7).treatment
        counts[np.arange(7), arms.map(list(THIRDS.arms).index)] += 1
    assert min(p_of_counts(row, np.array([0.5, 0.3, 0.2])) for row in counts) > 0.001


def test_a_ramp_in_strata_moves_nobody() -> None:
    units, strata = numbered(4000), [str(k % 7) for k in range(4000)]
    design = replace(THIRDS, stratified=True)
    full = assign(units, design, strata=strata).treatment
    part = assign(units, replace(design, ramp=0.3), strata=strata).treatment
    assert (part.dropna() == full[part.notna()]).all() and abs(part.notna().mean() - 0.3) < 0.03


def test_strata_balance_the_units_that_take_part() -> None:
    """Units of the programme's holdout are not ranked: they would leave gaps."""
    units, strata = numbered(4000), [str(k % 7) for k in range(4000)]
    design = replace(THIRDS, stratified=True, programme=ProgrammeHoldout("programme", 0.2))
    rows = assign(units, design, strata=strata)
    counts = pd.crosstab(pd.Series(strata)[rows.treatment.notna()], rows.treatment)[list(THIRDS.arms)].to_numpy()
    assert (np.abs(counts - counts.sum(axis=1, keepdims=True) * np.array([0.5, 0.3, 0.2])) < 1).all()


def test_clusters_share_an_arm() -> None:
    units, clusters = numbered(3000), [f"h{k // 3}" for k in range(3000)]
    design = replace(THIRDS, clustered=True)
    rows = assign(units, design, clusters=clusters)
    assert rows.groupby(clusters).treatment.nunique().eq(1).all()
    assert rows.treatment[::3].tolist() == assign(clusters[::3], THIRDS).treatment.tolist()
    strata = [str(k // 3 % 4) for k in range(3000)]
    rows = assign(units, replace(design, stratified=True), clusters=clusters, strata=[strata, strata])
    counts = pd.crosstab(pd.Series(strata[::3]), rows.treatment[::3].to_numpy())[list(THIRDS.arms)].to_numpy()
    assert rows.groupby(clusters).treatment.nunique().eq(1).all()
    assert (np.abs(counts - 250 * np.array([0.5, 0.3, 0.2])) < 1).all()


# ---------------------------------------------------------------- propensity by design


def test_propensities_average_to_the_shares() -> None:
    """Σ1/p over an arm's units estimates all units that take part, with exploration, holdout and a stopped arm."""
    units = numbered(60_000)
    decisions = ["10%" if k % 3 else "control" for k in range(60_000)]
    design = replace(THIRDS, exploration=0.2, programme=ProgrammeHoldout("programme", 0.1))
    rows = assign(units, design, decisions=decisions)
    part = rows[rows.treatment.notna()]
    sums = (1 / part.propensity).groupby(part.treatment).sum() / len(part)
    assert sums.to_numpy() == pytest.approx(np.ones(3), abs=0.05)
    by_hand = {("10%", "10%"): 0.2 * 0.3 + 0.8, ("10%", "20%"): 0.2 * 0.2, ("control", "control"): 0.2 * 0.5 + 0.8}
    for (decision, arm), propensity in by_hand.items():
        cell = part[(np.array(decisions)[part.index] == decision) & (part.treatment == arm)]
        assert cell.propensity.unique() == pytest.approx([propensity]) and len(cell) > 0
    assert abs(part.explored.mean() - 0.2) < 0.01
    assert (part.treatment[~part.explored] == np.array(decisions)[part.index][~part.explored]).all()


def test_propensities_with_exploration_and_a_stopped_arm() -> None:
    decisions = ["20%"] * 4000 + ["10%"] * 4000
    design = replace(THIRDS, exploration=0.2, stopped=("20%",))
    rows = assign(numbered(8000), design, decisions=decisions)
    part = rows[rows.treatment.notna()]
    by_hand = {("20%", "10%"): 0.3 / 0.8, ("10%", "10%"): (0.06 + 0.8) / 0.96, ("10%", "control"): 0.1 / 0.96}
    for (decision, arm), propensity in by_hand.items():
        cell = part[(np.array(decisions)[part.index] == decision) & (part.treatment == arm)]
        assert cell.propensity.unique() == pytest.approx([propensity])
    assert rows.participation.groupby(decisions).first().to_dict() == pytest.approx({"10%": 0.96, "20%": 0.16})


# ---------------------------------------------------------------- SQL

DESIGNS = {
    "plain": (THIRDS, AssignmentColumns()),
    "everything": (
        replace(
            THIRDS,
            ramp=0.7,
            slot=Slot("shop", 0.0, 0.8),
            programme=ProgrammeHoldout("programme", 0.1),
            stopped=("20%",),
            exploration=0.3,
        ),
        AssignmentColumns(decision="decision"),
    ),
    "strata": (
        replace(THIRDS, stratified=True, ramp=0.6, programme=ProgrammeHoldout("programme", 0.1)),
        AssignmentColumns(strata=("region", "tier")),
    ),
    "clusters": (
        replace(
            THIRDS, clustered=True, slot=Slot("shop", 0.1, 1.0), programme=ProgrammeHoldout("programme", 0.1, True)
        ),
        AssignmentColumns(cluster="household"),
    ),
    "strata of clusters": (
        replace(THIRDS, clustered=True, stratified=True, programme=ProgrammeHoldout("programme", 0.3)),
        AssignmentColumns(cluster="household", strata=("region",)),
    ),
}


def users(count: int = 6000) -> pd.DataFrame:
    """Units with every odd id, in households, regions and tiers, with decisions."""
    units = [*ODD_IDS, *(f"{k:07d}" for k in range(count - len(ODD_IDS)))]
    k = np.arange(count)
    return pd.DataFrame(
        {
            "unit_id": units,
            "household": [f"hé{j}" for j in k // 3],
            "region": np.array(["north", "süd", "east", "west"])[k // 3 % 4],
            "tier": k % 3,
            "decision": np.array(["control", "10%", "20%"])[k % 3],
        }
    )


def in_python(rows: pd.DataFrame, experiment: Experiment, columns: AssignmentColumns) -> pd.DataFrame:
    arrays = {
        "clusters": rows[columns.cluster] if columns.cluster else None,
        "strata": [rows[name] for name in columns.strata] if columns.strata else None,
        "decisions": rows[columns.decision] if columns.decision else None,
    }
    return assign(rows.unit_id, experiment, **arrays)


def assert_same(result: pd.DataFrame, wanted: pd.DataFrame) -> None:
    result = result.set_index("unit_id").loc[wanted.unit_id].reset_index()
    for column in ("treatment", "left_out"):
        assert result[column].where(result[column].notna(), None).tolist() == wanted[column].tolist()
    assert result.explored.tolist() == wanted.explored.tolist()
    assert result.propensity.to_numpy(float) == pytest.approx(wanted.propensity.to_numpy(), rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", DESIGNS)
def test_duckdb_gives_the_same_arms(name: str) -> None:
    duckdb = pytest.importorskip("duckdb", reason="DuckDB, the other SQL engine of these tests, is not installed")
    rows = users()
    experiment, columns = DESIGNS[name]
    query = assignment_sql(experiment, columns, "duckdb").select("rows")
    assert_same(duckdb.sql(query).df(), in_python(rows, experiment, columns))


def test_sql_gives_rows_without_id_no_arm() -> None:
    """`assign` refuses such rows; a query can only name them."""
    duckdb = pytest.importorskip("duckdb", reason="DuckDB, the other SQL engine of these tests, is not installed")
    query = assignment_sql(THIRDS, dialect="duckdb").select("(SELECT unnest([NULL, '', 'u1']) AS unit_id)")
    rows = duckdb.sql(query).df()
    assert rows.treatment.notna().tolist() == [False, False, True]
    assert rows.left_out.tolist()[:2] == ["id, stratum or decision missing"] * 2


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_writes_the_thresholds(dialect: str) -> None:
    treatment = assignment_sql(THIRDS, dialect=dialect).treatment
    assert "< '80000000' THEN 'control'" in treatment and "< 'cccccccd' THEN '10%'" in treatment
    assert "'spring-2026/arm:' || CAST(unit_id AS" in treatment and "md5(" in treatment
    in_strata = assignment_sql(
        replace(THIRDS, stratified=True), AssignmentColumns(strata=("region",)), dialect
    ).treatment
    digits = re.findall(r"CAST\([^=]*? AS BIGINT\) - 1\) \* \d+", in_strata)
    assert len(digits) == 16 and "AS BIGINT) - 1) * 268435456" in in_strata  # 15 * 16⁷ overflows 32 bits


# ---------------------------------------------------------------- refusals

BAD_DESIGNS = [
    ({"arms": {"control": 0.5, "a": 0.4}}, "add up to 0.9: make them add up to 1"),
    ({"arms": {"control": 1.0}}, "has 1 arm: name the control"),
    ({"arms": {"control": 1.0, "a": 0.0}}, "arm a of spring has share 0"),
    ({"arms": {"control": 0.5, "a": float("nan")}}, "share nan"),
    ({"arms": {"control": 0.5, "it's": 0.5}}, "name it without quotes"),
    ({"salt": "a b"}, "'a b' is no salt"),
    ({"ramp": 0.0}, "ramp of spring is 0.0"),
    ({"stopped": ("b",)}, "stops arm 'b', which it has not"),
    ({"stopped": ("control",)}, "end the experiment instead"),
    ({"exploration": 1.5}, "exploration of spring is 1.5"),
    ({"exploration": 0.5, "stratified": True}, "drop one of them"),
    ({"slot": Slot("spring")}, "uses one salt twice"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD_DESIGNS)
def test_bad_designs_are_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Experiment(**{"salt": "spring", "arms": {"control": 0.5, "a": 0.5}, **change})


@pytest.mark.parametrize("part", [lambda: Slot("shop", 0.5, 0.5), lambda: ProgrammeHoldout("programme", 1.0)])
def test_bad_parts_are_refused(part) -> None:
    with pytest.raises(ConfigError, match="use"):
        part()


BAD_IDS = [
    ([1.0, 2.0], "has type double: ids must be text or integers"),
    (["a", None, None], "is null in 2 rows"),
    (["a", "", ""], "is empty in 2 rows"),
    (["a", 1], "mixes types"),
    ([2**70], "mixes types"),
    ([True], "has type bool"),
]


@pytest.mark.parametrize(("ids", "sentence"), BAD_IDS)
def test_bad_ids_are_refused(ids: list, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        assign(ids, THIRDS)


BAD_ARRAYS = [
    (THIRDS, {"strata": ["x", "y"]}, "does not use `strata`"),
    (replace(THIRDS, clustered=True), {}, "give assign\\(\\) the array `clusters`"),
    (replace(THIRDS, clustered=True), {"clusters": ["h"]}, "`clusters` has 1 rows and ids 2"),
    (replace(THIRDS, stratified=True), {"strata": [["x", "y"], ["x"]]}, "`strata` has 1 rows and ids 2"),
    (
        replace(THIRDS, stratified=True, clustered=True),
        {"strata": ["x", "y"], "clusters": ["h", "h"]},
        "1 clusters lie in",
    ),
    (replace(THIRDS, exploration=0.1), {"decisions": ["control", "30%"]}, "names '30%' in 1 rows"),
]


@pytest.mark.parametrize(("experiment", "arrays", "sentence"), BAD_ARRAYS)
def test_bad_arrays_are_refused(experiment: Experiment, arrays: dict, sentence: str) -> None:
    with pytest.raises((ConfigError, DataError), match=sentence):
        assign(["a", "b"], experiment, **arrays)


def test_repeated_units_in_strata_are_refused() -> None:
    with pytest.raises(DataError, match="2 ids are there twice"):
        assign(["a", "a", "a"], replace(THIRDS, stratified=True), strata=["x", "x", "x"])


CHANGES = [
    ({"arms": {"control": 0.5, "10%": 0.2, "20%": 0.3}}, "has other arms than"),
    ({"arms": {"10%": 0.3, "control": 0.5, "20%": 0.2}}, "has other arms than"),
    ({"ramp": 0.1}, "falls from 0.5 to 0.1"),
    ({"stopped": ()}, "starts arm '20%' again"),
    ({"programme": ProgrammeHoldout("programme", 0.2)}, "has other programme than"),
    ({"clustered": True}, "has other clustered than"),
]


@pytest.mark.parametrize(("change", "sentence"), CHANGES)
def test_a_changed_design_needs_a_new_salt(change: dict, sentence: str) -> None:
    before = replace(THIRDS, ramp=0.5, stopped=("20%",))
    with pytest.raises(ConfigError, match=sentence):
        check_change(before, replace(before, **change))
    check_change(before, replace(before, **change, salt="spring-2"))
    check_change(before, replace(before, ramp=0.9, stopped=("20%",)))


def test_experiments_that_clash_are_refused() -> None:
    one = replace(THIRDS, slot=Slot("shop", 0, 0.5))
    clashes = {
        "2 experiments have salt spring-2026": [one, one],
        "overlap in namespace shop from 0.4": [one, replace(one, salt="two", slot=Slot("shop", 0.4, 0.6))],
        "assign clusters and units": [one, replace(one, salt="two", slot=Slot("shop", 0.5, 0.6), clustered=True)],
        "has another holdout in two": [
            replace(one, programme=ProgrammeHoldout("programme", 0.1)),
            replace(THIRDS, salt="two", programme=ProgrammeHoldout("programme", 0.2)),
        ],
    }
    for sentence, experiments in clashes.items():
        with pytest.raises(ConfigError, match=sentence):
            check_together(experiments)


def test_sql_refuses_what_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="'duckdbb' is unknown: did you mean 'duckdb'"):
        assignment_sql(THIRDS, dialect="duckdbb")
    with pytest.raises(ConfigError, match="name its column `strata`"):
        assignment_sql(replace(THIRDS, stratified=True))
    with pytest.raises(ConfigError, match="drop the column `cluster`"):
        assignment_sql(THIRDS, AssignmentColumns(cluster="household"))
    with pytest.raises(ConfigError, match="not a plain name"):
        AssignmentColumns(unit="unit id; DROP TABLE x")
