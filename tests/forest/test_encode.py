"""Encoding: a frame's columns are checked and cast in one place, once; what comes after takes typed columns."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import uplift_spark
from uplift_spark import CausalForest, InstrumentalForest
from uplift_spark.errors import DataError
from uplift_spark.events.leakage import find_leaks
from uplift_spark.forest import binning, defaults, encode
from uplift_spark.forest.forest import effect_table
from uplift_spark.forest.refresh import forest_residuals, refreshed_table, staleness
from uplift_spark.forest.spark import bin_batches, check_batches, summarise_batches
from uplift_spark.learners.nuisances import sample_table
from uplift_spark.roles import Roles

ROLES = Roles(
    *("unit", "arm", "y", ("number", "whole", "flag", "text", "category"), "none"),
    propensity="p",
    weight="w",
    more_outcomes=("y2",),
)
TINY = {"n_trees": 4, "n_buckets": 2, "max_depth": 2}
CASTS = {"as_numbers", "as_text", "is_number", "is_text"}
AT_HOME = {"binning.py", "encode.py"}


def trial(n: int = 600, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    number, arm = np.where(rng.random(n) < 0.1, np.nan, rng.normal(size=n)), rng.choice(["none", "a"], n)
    text = rng.choice(["x", "y", None], n)
    return pd.DataFrame(
        {
            **{"unit": np.arange(n) + 10_000 * seed, "arm": arm, "y": rng.normal(size=n) + (arm == "a"), "p": 0.5},
            **{"w": rng.random(n) + 0.5, "y2": rng.normal(size=n), "house": rng.integers(0, n // 2, n)},
            **{"number": number, "whole": rng.integers(0, 5, n), "flag": rng.random(n) < 0.5, "text": text},
            **{"category": pd.Categorical(rng.choice(["k", "l", "m"], n)), "day": np.arange(n) % 3},
            "took": (arm == "a") & (rng.random(n) < 0.8),
        }
    )


def table_of(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return trial()


@pytest.fixture(scope="module")
def model(frame):
    return CausalForest(**TINY).fit(frame, ROLES)


@pytest.fixture
def casts(monkeypatch) -> list[int]:
    """Rows of every cast of a column, of ids too; samples are smaller than the frame, so that casting one shows."""
    sizes: list[int] = []

    def counting(cast):
        def counted(column, *more):
            sizes.append(len(column))
            return cast(column, *more)

        return counted

    for name in ("as_numbers", "as_text"):
        counted = counting(getattr(binning, name))
        monkeypatch.setattr(binning, name, counted)
        monkeypatch.setattr(encode, name, counted)
    monkeypatch.setattr(encode, "unit_hashes", counting(encode.unit_hashes))
    monkeypatch.setattr(defaults, "sample_rows", lambda features: 200)
    return sizes


USES = {
    "fit": lambda frame, model: CausalForest(**TINY).fit(frame, model.roles),
    "estimate": lambda frame, model: model.estimate(frame),
    "refresh": lambda frame, model: model.refresh(frame),
    "residuals": lambda frame, model: forest_residuals(model.forest.of("y"), table_of(frame)),
    "nuisances": lambda frame, model: sample_table(
        table_of(frame), replace(model.roles, more_outcomes=()), (2, 1), 100
    ),
    "leaks": lambda frame, model: find_leaks(table_of(frame), model.roles),
    "summaries on workers": lambda frame, model: list(summarise_batches(model.roles, table_of(frame).to_batches())),
    "bins on workers": lambda frame, model: list(bin_batches(model.forest.plan, (), table_of(frame).to_batches())),
}


@pytest.mark.parametrize("use", USES)
def test_each_column_is_cast_once(frame, model, casts, use):
    columns = [name for name in model.roles.columns if use not in ("residuals", "nuisances") or name != "y2"]
    USES[use](frame, model)
    assert casts == [len(frame)] * len(columns)


def test_each_column_is_cast_once_by_the_instrumental_forest(frame, casts):
    roles = replace(ROLES, more_outcomes=())
    model = InstrumentalForest(**TINY).fit(frame, roles, "took")
    assert casts == [len(frame)] * (len(roles.columns) + 1)
    casts.clear()
    model.effect(frame)  # of two forests, with the same features
    assert casts == [len(frame)] * len(roles.features)


def test_each_column_is_cast_once_by_refreshes_of_several_days_and_the_test_of_splits(frame, model, casts):
    refreshed_table(table_of(frame), model.forest, 2.0, "day")
    assert casts == [len(frame)] * len(ROLES.columns)
    before = forest_residuals(model.forest, table_of(frame))
    casts.clear()
    staleness(model.forest, before, table_of(frame))
    assert casts == [len(frame)] * (len(ROLES.columns) - 1)
    casts.clear()
    effect_table(model.forest.of("y"), table_of(frame))
    assert casts == [len(frame)] * len(ROLES.features)


def test_checks_on_workers_cast_each_column_once(frame, model, casts):
    (batch,) = table_of(frame).to_batches()
    list(check_batches(model.forest, [batch.append_column("_day", batch.column("day"))]))
    assert casts == [len(frame)] * len(ROLES.columns)


def casters(source: str) -> set[str]:
    """Names of casts that a module's text has in any way."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    return CASTS & (names | {node.name for node in nodes if isinstance(node, ast.alias)})


def test_no_other_module_casts_columns():
    root = Path(uplift_spark.__file__).parent
    files = [*root.rglob("*.py"), *(root.parent / "jobs").glob("*.py")]
    at_home = {path for path in files if path.parent.name == "forest" and path.name in AT_HOME}
    assert len(at_home) == len(AT_HOME) and all(casters(path.read_text()) for path in at_home)
    elsewhere = {str(path): casters(path.read_text()) for path in files if path not in at_home}
    assert not {path: names for path, names in elsewhere.items() if names}


@pytest.mark.parametrize(
    "line",
    [
        "from uplift_spark.forest.binning import as_numbers as numbers",
        "values = binning.as_text(column)",
        "cast = is_number",
    ],
)
def test_a_cast_elsewhere_would_show(line):
    assert len(casters(line)) == 1


def test_text_is_coded_by_its_dictionary():
    plain = binning.as_text(pa.chunked_array([["b", None], ["a", "b"]]))
    assert plain.codes.tolist() == [0, -1, 1, 0] and plain.names.to_pylist() == ["b", "a"]
    assert plain.counts() == {"b": 2, "a": 1} and plain.take(np.array([2])).counts() == {"a": 1}
    assert plain.coded_by(["a", "c"]).tolist() == [-1, -1, 0, -1]
    # A dictionary may name a value twice, and none; codes then follow the text.
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3, None], pa.int8()), pa.array(["b", "a", "b", None]))
    repeated = binning.as_text(coded)
    assert repeated.codes.tolist() == [0, 1, 0, -1, -1] and repeated.names.to_pylist() == ["b", "a"]


def test_rows_keep_their_types_and_their_order():
    rows = encode.encode(table_of(trial(5)), replace(ROLES, cluster="house"))
    frame = trial(5)
    assert rows.outcomes["y"].tolist() == frame.y.tolist() and rows.weight.tolist() == frame.w.tolist()
    assert rows.features["flag"].values.tolist() == frame.flag.astype(float).tolist()
    assert rows.features["number"].values == pytest.approx(frame.number, nan_ok=True)
    some = rows.take(np.array([4, 1]))
    assert (
        len(some) == 2 and some.unit.tolist() == rows.unit[[4, 1]].tolist() and some.key.tolist() != some.unit.tolist()
    )
    names, codes = some.level_codes()
    assert [names[code] for code in codes] == frame.arm[[4, 1]].tolist()


def test_whole_floats_name_levels_like_integers_and_nan_names_none():
    table = table_of(trial(4)).drop_columns(["arm"]).append_column("arm", pa.array([1.0, 0.0, float("nan"), None]))
    rows = encode.encode(table, replace(ROLES, control="0"))
    assert rows.level_codes()[0] == ["0", "1"] and rows.level_codes()[1].tolist() == [1, 0, -1, -1]
    assert encode.summarise(rows).bad == {"arm: null or NaN": 2}


def test_ids_that_are_missing_are_counted_not_hashed():
    table = table_of(trial(4)).drop_columns(["unit"]).append_column("unit", pa.array(["a", None, "b", None]))
    rows = encode.encode(table, ROLES)
    assert rows.missing_ids["unit"].tolist() == [False, True, False, True] and not rows.unit[[1, 3]].any()
    assert encode.summarise(rows).bad == {"unit: null": 2}
    assert encode.summarise(rows.take(np.array([0, 2]))).bad == {}
    with pytest.raises(DataError, match="column unit: null in 2 of 4 rows"):
        encode.check_summary(encode.summarise(rows), ROLES)


def test_categories_of_pandas_give_the_model_of_their_text(frame):
    as_text = frame.assign(category=frame.category.astype(str))
    reordered = frame.assign(category=frame.category.cat.set_categories(["m", "unused", "l", "k"]))
    models = [CausalForest(**TINY).fit(one, ROLES).to_bytes() for one in (frame, as_text, reordered)]
    assert models[0] == models[1] == models[2]
