"""The numbers of today are those in `digests.json`, made by `python -m tests.golden.make`: no change of code moves any.

Where a table or a column gets another name, it is entered below, and its values must still be the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.sql import SparkSession

from tests.golden.campaigns import CAMPAIGNS
from tests.golden.digest import Digests, differences, table_digest
from tests.golden.frames import CASES, case_digests, portable_digest
from tests.golden.make import FILE, campaign, machine

# {table now: table then}, as in {"gold.lift": "gold.lift_table"}; <campaign> stands for the campaign's name.
RENAMED_TABLES: dict[str, str] = {}

# {table now: {column now: column then}}; the table "effect" stands for what models tell in Python.
_OF_A_CAMPAIGN = {"campaign": "experiment"}
RENAMED: dict[str, dict[str, str]] = {
    **dict.fromkeys(("bronze.assignment", "bronze.delivery", "bronze.outcome", "bronze.quarantine"), _OF_A_CAMPAIGN),
    **dict.fromkeys(("bronze.truth", "silver.label"), _OF_A_CAMPAIGN),
    **dict.fromkeys(("gold.policy_decisions", "gold.policy_limits", "gold.policy_curve"), _OF_A_CAMPAIGN),
    **dict.fromkeys(("gold.policy_scenarios", "gold.cost_curve"), _OF_A_CAMPAIGN),
    **dict.fromkeys(("gold.average_effects", "gold.balance", "gold.sensitivity"), _OF_A_CAMPAIGN),
    "gold.policy_tree": {**_OF_A_CAMPAIGN, "question": "asks"},
    "gold.overlap": {**_OF_A_CAMPAIGN, "trimmed": "set_aside"},
    "silver.compared_<campaign>": {"outcome_mean": "expected"},
    "silver.adjusted_<campaign>": {"outcome_mean": "expected", "propensities": "odds"},
}

QUICK = ("hillstrom",)
LONG = ("dr_learner ordered", "x_learner arms", "r_learner")  # boosted trees, seconds each


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    """What was written down."""
    return json.loads(FILE.read_text())


def changes(old: Mapping[str, Digests], new: Mapping[str, Digests], campaign_name: str, to_the_bit: bool) -> list[str]:
    """A sentence for each difference between two states of a lakehouse."""
    then, told = dict(old), []
    for name, said in new.items():
        shared = name.replace(f"_{campaign_name}", "_<campaign>")
        before = RENAMED_TABLES.get(shared, shared).replace("_<campaign>", f"_{campaign_name}")
        if before not in then:
            told.append(f"{name} is a new table of {said['rows']} rows.")
        else:
            told += differences(name, then.pop(before), said, RENAMED.get(shared), to_the_bit)
    return told + [f"{name}, a table of {said['rows']} rows, is gone." for name, said in then.items()]


def unlike(name: str, old: Digests, new: Digests, to_the_bit: bool) -> list[str]:
    """A sentence for each difference between two digests of what a model file holds or tells."""
    if "sha256" in new:
        same = old["sha256"] == new["sha256"] or not to_the_bit
        return [] if same else [f"{name} has other bytes."]
    return differences(name, old, new, RENAMED.get("effect"), to_the_bit)


def of_case(golden: dict[str, Any], name: str) -> dict[str, Digests]:
    return {what: said for what, said in golden["estimators"].items() if what.startswith(f"{name}: ")}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in CASES])
def test_a_model_is_the_same_and_tells_the_same(name: str, golden: dict[str, Any]) -> None:
    then, now = of_case(golden, name), case_digests(name)
    assert then.keys() == now.keys()
    to_the_bit = golden["made on"] == machine()
    told = [line for what, said in now.items() for line in unlike(what, then[what], said, to_the_bit)]
    assert not told, "\n".join(told)


def test_an_onnx_file_tells_the_same(golden: dict[str, Any]) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    told = unlike("onnx", golden["estimators"]["onnx: effect"], portable_digest(), golden["made on"] == machine())
    assert not told, "\n".join(told)


def test_every_case_is_written_down(golden: dict[str, Any]) -> None:
    assert {what.partition(": ")[0] for what in golden["estimators"]} == {*CASES, "onnx"}
    assert set(CAMPAIGNS) <= golden.keys()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, few), marks=[] if name in QUICK and few else pytest.mark.slow, id=f"{name}-{where}")
        for name in CAMPAIGNS
        for few, where in ((True, "here"), (False, "by workers"))
    ],
)
def ran(request: pytest.FixtureRequest, spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A campaign's name and what it leaves: the same whether this process or Spark's workers do the work."""
    name, few = request.param
    yield name, campaign(name, spark, tmp_path_factory.mktemp(name), time.monotonic(), few)


def test_a_campaign_leaves_the_same_tables(ran: Any, golden: dict[str, Any]) -> None:
    name, found = ran
    to_the_bit = golden["made on"] == machine()
    states = [state for state in (name, f"{name} erased") if state in golden]
    assert states == [state for state in (name, f"{name} erased") if state in found]
    told = [f"{state}: {line}" for state in states for line in changes(golden[state], found[state], name, to_the_bit)]
    assert not told, "\n".join(told)


def test_a_run_keeps_its_id(ran: Any, golden: dict[str, Any]) -> None:
    """Ids follow from the configuration and the inputs: with another id a rerun would add rows once more."""
    name, found = ran
    then, now = (set(said[f"{name} run ids"]) for said in (golden, found))
    assert now == then, f"{name}: the runs {sorted(then - now)} are now {sorted(now - then)}"


# ---------------------------------------------------------------- a difference is seen


def small(**columns: Any) -> Digests:
    given = {"unit_id": ["a", "b", "c"], "uplift": [0.1, 0.2, 0.3], "units": [1, 2, 3]}
    return table_digest(pa.table(given | columns))


def test_order_of_rows_and_columns_does_not_count() -> None:
    turned = pa.table({"units": [3, 2, 1], "uplift": [0.3, 0.2, 0.1], "unit_id": ["c", "b", "a"]})
    assert differences("t", small(), table_digest(turned)) == []


def test_a_changed_value_is_told() -> None:
    (line,) = differences("gold.t", small(), small(uplift=[0.1, 0.2, 0.4]))
    assert line == "gold.t: column uplift showed sum 0.6 and shows sum 0.7, other values."


def test_a_changed_bit_is_told_as_one() -> None:
    new = small(uplift=[0.1, 0.2, np.nextafter(0.3, 1)])
    (line,) = differences("gold.t", small(), new)
    assert line == "gold.t: column uplift differs in bits beyond the 10th digit (sum 0.6)."
    assert differences("gold.t", small(), new, to_the_bit=False) == []


def test_values_that_change_rows_are_told() -> None:
    (line,) = differences("gold.t", small(), small(unit_id=["b", "a", "c"]))
    assert line == "gold.t: every column holds the same values, but they meet in other rows."


def test_a_renamed_column_holds_the_same_values() -> None:
    new = pa.table({"unit_id": ["a", "b", "c"], "effect": [0.1, 0.2, 0.3], "units": [1, 2, 3]})
    assert differences("gold.t", small(), table_digest(new), {"effect": "uplift"}) == []
    lost, come = differences("gold.t", small(), table_digest(new))
    assert lost == "gold.t lost the column uplift (sum 0.6)."
    assert come == "gold.t has the new column effect (sum 0.6)."


def test_another_number_of_rows_and_a_lost_table_are_told() -> None:
    new = small(unit_id=["a", "b", "c"])
    fewer = table_digest(pa.table({"unit_id": ["a"], "uplift": [0.1], "units": [1]}))
    assert differences("gold.t", new, fewer)[0] == "gold.t had 3 rows and has 1."
    assert changes({"gold.t": new}, {}, "x", True) == ["gold.t, a table of 3 rows, is gone."]
    assert changes({}, {"gold.t": new}, "x", True) == ["gold.t is a new table of 3 rows."]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([1, 2, 2], [1, 1, 2]),
        ([None, 1.0], [None, 0.0]),
        ([float("nan")], [None]),
        ([[1.0, 2.0]], [[2.0, 1.0]]),
        ([[[1], [2]]], [[[1, 2]]]),
        ([{"a": 1.0}], [{"a": 2.0}]),
        (["1"], ["2"]),
        ([True, False], [True, True]),
    ],
)
def test_other_values_have_another_digest(one: list[Any], other: list[Any]) -> None:
    first, second = (table_digest(pa.table({"x": values})) for values in (one, other))
    assert first["columns"]["x"]["exact"] != second["columns"]["x"]["exact"] and first["exact"] != second["exact"]


def test_the_file_holds_no_path() -> None:
    assert str(Path.home()) not in FILE.read_text() and "/tmp" not in FILE.read_text()
