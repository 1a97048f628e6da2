"""Forests as ONNX files: the effects ONNX Runtime finds are those of the forest, at cut points and beyond."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import arm_roles, ordered_frame, ordered_roles, plain_frame, plain_roles, thousand_buckets
from tests.forest.test_doses import dose_frame, dose_roles
from uplift_spark import CausalForest, Roles, load_model
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.forest.binning import OTHER
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.instrument import fit_instrumental
from uplift_spark.forest.onnx import export_onnx
from uplift_spark.forest.training import Params
from uplift_spark.forest.trees import CATEGORICAL, Tree, assemble, leaf_word

SMALL = {"n_trees": 16, "n_buckets": 4, "min_leaf": 10}
EXACT = 1e-12  # of the largest effect: sums in another order, nothing else
RESPONSE = (
    1e-9  # the same where equations are solved: close to what doses no longer determine, rounding counts for more
)


def forest_of(frame: pd.DataFrame, roles: Roles, **more) -> Forest:
    return CausalForest(**{**SMALL, **more}).fit(frame, roles).forest


def probes(forest: Forest, n: int = 1500, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of n units: at, just below and just above cut points, far beyond, missing, of categories unseen."""
    rng, columns = np.random.default_rng(seed), {}
    for one in forest.bins:
        if one.categories is not None:
            column = rng.choice(np.array([*one.categories, "nobody's", None], object), n)
        else:
            edges = np.array([0.0, *one.edges])
            near = [edges, np.nextafter(edges, -np.inf), np.nextafter(edges, np.inf), rng.normal(edges, 1.0)]
            column = rng.choice(np.concatenate([*near, [-1e300, 1e300, np.nan, np.nan]]), n)
        columns[one.name] = column
    return columns


def fed(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Features as the graph takes them."""
    return {
        name: np.where(pd.isna(x), "", x)[:, None] if x.dtype == object else x[:, None] for name, x in columns.items()
    }


def roots_are_distinct(content: bytes) -> bool:
    """Whether no root has the same number on both sides, leaf or split: runtimes that are around stumble over it."""
    onnx = pytest.importorskip("onnx")
    (trees,) = (node for node in onnx.load_from_string(content).graph.node if node.op_type == "TreeEnsemble")
    attributes = {one.name: np.array(one.ints) for one in trees.attribute}
    true, false = (attributes[f"nodes_{side}nodeids"][attributes["tree_roots"]] for side in ("true", "false"))
    return bool((true != false).all())


def gap(forest: Forest, level: str, columns: dict[str, np.ndarray] | None = None) -> float:
    """The largest distance between the effects of graph and forest, in scales of the effect; support is the same."""
    content = export_onnx(forest, level)
    assert roots_are_distinct(content)
    session = pytest.importorskip("onnxruntime").InferenceSession(content)
    columns = probes(forest) if columns is None else columns
    uplift, low = session.run(["uplift", "low_support"], fed(columns))
    k = forest.levels.treated.index(level)
    right, _, thin = (part[:, k] for part in forest.effect_arrays(pa.table(columns), errors=False))
    assert uplift.dtype == np.float64 and np.array_equal(np.isnan(uplift), np.isnan(right))
    assert np.array_equal(low, thin)
    return float(np.nanmax(np.abs(uplift - right)) / np.nanmax(np.abs(right)))


def coded_frame(n: int = 4000) -> pd.DataFrame:
    """Three hundred shops, a third of which have an effect."""
    frame = plain_frame(n)
    shop = np.random.default_rng(1).integers(0, 300, n)
    frame["y"] += frame["w"] * (shop % 3 == 0) * 3.0
    return frame.assign(xshop=[f"shop {i}" for i in shop])


FORESTS = {
    "binary": (lambda: plain_frame(2000), plain_roles, {}),
    "ordered": (lambda: ordered_frame(3000), lambda _: ordered_roles(), {}),
    "unordered": (lambda: ordered_frame(3000, 1), lambda _: arm_roles(), {"debias": False, "centre": False}),
    "deep": (lambda: ordered_frame(2000, 2), lambda _: ordered_roles(), {"min_leaf": 2}),
    "weighted": (
        lambda: ordered_frame(2000).assign(h=lambda f: 0.1 + f["spend"]),
        lambda _: arm_roles(weight="h"),
        {},
    ),
    "text alone": (lambda: ordered_frame(2000), lambda _: Roles("unit", "arm", "y", ("region",), "none"), {}),
    "shops": (coded_frame, plain_roles, {"min_leaf": 5}),
}


@pytest.mark.parametrize("name", FORESTS)
def test_graph_and_forest_tell_the_same(name):
    make, roles, more = FORESTS[name]
    frame = make()
    forest = forest_of(frame, roles(frame), **more)
    asks_sets = bool((forest.structure.nodes & np.uint64(CATEGORICAL)).any())
    assert asks_sets == any(one.categorical for one in forest.bins)
    assert (name in ("ordered", "deep")) == bool(forest._shrinkage(forest._contrasts)[2].any())
    assert (name == "shops") == any(one.n_bins == OTHER + 1 for one in forest.bins)
    for level in forest.levels.treated:
        assert gap(forest, level) < EXACT
    own = {one.name: frame[one.name].to_numpy()[:400] for one in forest.bins}
    own = {name: x if x.dtype == object else x.astype(np.float64) for name, x in own.items()}
    assert gap(forest, level, own) < EXACT


@pytest.mark.parametrize("criterion", ["slope", "spline"])
def test_responses_to_doses(criterion):
    forest = forest_of(dose_frame(3000), dose_roles(), criterion=criterion, min_leaf=30)
    for level in ("2", "5", "8"):
        assert gap(forest, level) < RESPONSE
    assert gap(forest.at((2.5,)), "2.5") < RESPONSE
    assert gap(forest.at((5.0,), partial=True), "5") < RESPONSE
    thin = replace(forest, sums=forest.sums >> 3)  # an eighth of the rows
    assert thin.effect_arrays(pa.table(probes(thin)), errors=False)[2].any()
    assert gap(thin, "5") < RESPONSE
    nobody = replace(forest, level_shrinkage=None, sums=np.zeros_like(forest.sums))
    session = pytest.importorskip("onnxruntime").InferenceSession(export_onnx(nobody, "5"))
    assert np.isnan(session.run(["uplift"], fed(probes(nobody)))[0]).all()


def test_responses_to_packages():
    rng, frame = np.random.default_rng(3), ordered_frame(3000)
    a, b = rng.integers(0, 3, 3000), rng.integers(0, 3, 3000)
    frame = frame.assign(
        arm=[f"{x}/{y}" for x, y in zip(a, b, strict=True)], y=frame["y"] + a * b * (frame["age"] > 50)
    )
    dose = {f"{x}/{y}": (float(x), float(y)) for x in range(3) for y in range(3)}
    forest = forest_of(frame, Roles("unit", "arm", "y", ("age", "spend", "region"), "0/0", dose=dose))
    assert forest.plan.criterion == "product"
    assert gap(forest, "2/2") < RESPONSE and gap(forest, "1/0") < RESPONSE


def test_low_support_and_absent_levels():
    frame = ordered_frame(3000)
    rare = frame[(frame["arm"] != "10%") | ((frame["age"] > 60) & (frame["spend"] > 1))]
    forest = forest_of(rare, arm_roles(), min_leaf=5)
    with pytest.raises(ConfigError, match="the features tell the level received"):
        export_onnx(forest, "10%")
    forest = replace(forest, plan=replace(forest.plan, overlap=None, weighted_by_propensity=True))
    columns = probes(forest)
    low = forest.effect_arrays(pa.table(columns), errors=False)[2][:, forest.levels.treated.index("10%")]
    assert low.any() and not low.all()
    assert gap(forest, "10%") < EXACT and gap(forest, "5%") < EXACT
    alone = replace(forest, level_shrinkage=None)
    assert np.isnan(alone.effect_arrays(pa.table(columns), errors=False)[0]).any()
    assert gap(alone, "10%") < EXACT
    spreadless = forest._shrinkage(forest._contrasts).copy()
    spreadless[5] = np.nan  # then no average stands in
    assert gap(replace(forest, level_shrinkage=spreadless), "10%") < EXACT


def test_buckets_that_grew_nothing_and_further_outcomes():
    frame, _ = thousand_buckets()
    roles = plain_roles(frame, more_outcomes=("z",))
    forest = forest_of(frame.assign(z=frame["y"] ** 2), roles, n_trees=200, n_buckets=1000)
    assert (np.diff(forest.structure.node_start) == 0).any() and (np.diff(forest.structure.node_start) == 1).any()
    assert gap(forest.of("y"), "1") < EXACT and gap(forest.of("z"), "1") < EXACT


def test_trees_of_one_leaf_whatever_the_features():
    frame = ordered_frame(1000)
    for features in (("region",), ("age", "region")):
        forest = forest_of(frame, Roles("unit", "arm", "y", features, "none"), min_leaf=600)
        assert set(np.diff(forest.structure.node_start)) == {1}
        assert gap(forest, "5%") < EXACT


def by_hand(words: list[int], n_leaves: int) -> Forest:
    """A forest of one tree with these nodes, its leaves having effects 0, 1, ..."""
    forest = forest_of(plain_frame(500), plain_roles(plain_frame(1)), n_trees=2, bag_size=2, debias=False)
    one = Tree(0, np.array(words, np.uint64), np.zeros((0, 4), np.uint64), n_leaves)
    sums = np.zeros((n_leaves, 2, forest.sums.shape[2]), np.int64)
    w_bits, y_bits, *_ = forest.plan.exponents
    sums[:, :, 0] = 100 << w_bits
    sums[:, 1, 1] = 100 * np.arange(n_leaves) * 2**y_bits
    return replace(forest, structure=assemble([one], 2), sums=sums, level_shrinkage=None)


def split(feature: int, last_left: int, child: int, missing_right: int) -> int:
    """Node word of a split whose left side ends with that bin."""
    return child << 32 | (last_left - missing_right) << 16 | missing_right << 13 | feature


def test_a_root_with_a_leaf_beside_a_split_of_the_same_number():
    words = [split(0, 9, 1, 0), leaf_word(1), split(1, 5, 3, 1), leaf_word(0), leaf_word(2)]
    forest = by_hand(words, 3)
    effects = forest.effect_arrays(pa.table(probes(forest)), errors=False)[0]
    assert set(np.round(effects[:, 0], 9)) == {0.0, 1.0, 2.0}
    assert gap(forest, "1") < EXACT


def test_splits_that_part_missing_values_from_all_others():
    for word in (split(0, 0, 1, 0), split(0, 255, 1, 1)):
        forest = by_hand([word, leaf_word(1), leaf_word(0)], 2)
        columns = probes(forest)
        effects = forest.effect_arrays(pa.table(columns), errors=False)[0][:, 0]
        missing = np.isnan(columns["x0"])
        assert len({*effects[missing]}) == len({*effects[~missing]}) == 1 and len({*effects}) == 2
        assert gap(forest, "1") < EXACT


def test_the_standards_own_evaluator_agrees():
    reference = pytest.importorskip("onnx.reference")
    forest = forest_of(ordered_frame(2000), ordered_roles())
    columns = probes(forest, 60)
    model = pytest.importorskip("onnx").load_from_string(export_onnx(forest, "10%"))
    uplift, low = reference.ReferenceEvaluator(model).run(None, fed(columns))
    right, _, thin = (part[:, 1] for part in forest.effect_arrays(pa.table(columns), errors=False))
    assert np.allclose(uplift, right, rtol=0, atol=EXACT) and np.array_equal(low, thin)


def test_a_file_from_the_model_and_what_it_says(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    frame = ordered_frame(1000)
    frame["spent"] = 2 * frame["y"] + frame["spend"]
    model = CausalForest(**SMALL).fit(frame, ordered_roles(more_outcomes=("spent",)))
    content = model.to_onnx("10%", tmp_path / "spring.onnx", outcome="spent")
    assert (tmp_path / "spring.onnx").read_bytes() == content
    assert content == load_model(model.to_bytes()).to_onnx("10%", outcome="spent")
    session = runtime.InferenceSession(tmp_path / "spring.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["level"], facts["control"], facts["outcome"]) == ("10%", "none", "spent")
    assert [(one.name, one.type) for one in session.get_inputs()] == [
        ("age", "tensor(double)"),
        ("spend", "tensor(double)"),
        ("region", "tensor(string)"),
        ("member", "tensor(double)"),
    ]
    effects = model.effect(frame, outcome="spent").query("treatment == '10%'")["uplift"].to_numpy()
    columns = {one.name: frame[one.name].to_numpy() for one in model.forest.bins}
    columns["member"] = columns["member"].astype(np.float64)
    assert np.allclose(session.run(None, fed(columns))[0], effects, rtol=0, atol=EXACT * np.abs(effects).max())


def test_an_infinite_number_has_no_effect():
    runtime = pytest.importorskip("onnxruntime")
    forest = forest_of(plain_frame(1000), plain_roles(plain_frame(1)))
    columns = {f"x{j}": np.full(4, 0.5) for j in range(5)}
    columns["x3"] = np.array([0.5, np.inf, -np.inf, np.nan])
    uplift = runtime.InferenceSession(export_onnx(forest, "1")).run(["uplift"], fed(columns))[0]
    assert np.isnan(uplift).tolist() == [False, True, True, False]


def test_what_cannot_be_exported_is_refused(monkeypatch):
    pytest.importorskip("onnx")
    doses = forest_of(dose_frame(1000), dose_roles())
    with pytest.raises(ConfigError, match="level '4' has no effect to export"):
        export_onnx(doses, "4")
    held = forest_of(ordered_frame(1000), ordered_roles(), monotone="increasing")
    with pytest.raises(ConfigError, match="trained without `monotone`"):
        export_onnx(held, "5%")
    plain = forest_of(ordered_frame(1000), ordered_roles())
    with pytest.raises(ConfigError, match="level '5' has no effect to export: did you mean '5%'"):
        export_onnx(plain, "5")
    with pytest.raises(ConfigError, match="level 5 has no effect"):
        export_onnx(plain, 5)
    with pytest.raises(ConfigError, match="level 'none' has no effect"):
        export_onnx(plain, "none")
    trial = plain_frame(1000).assign(took=lambda f: f["w"] * (f["x1"] > 0.3))
    complier = fit_instrumental(pa.Table.from_pandas(trial), plain_roles(trial), "took", Params(**SMALL))
    for one in (complier, complier.forest):
        with pytest.raises(ConfigError, match=r"train a CausalForest|complier effects are not exported"):
            export_onnx(one, "1")
    none = replace(plain, structure=assemble([], plain.plan.n_trees), sums=plain.sums[:0])
    with pytest.raises(ConfigError, match="no tree"):
        export_onnx(none, "5%")


def test_features_that_the_graph_cannot_tell_apart_are_refused():
    pytest.importorskip("onnx")
    frame = ordered_frame(1000)
    empty = forest_of(frame.assign(region=frame["region"].replace("north", "")), ordered_roles())
    with pytest.raises(DataError, match="'region' holds 1 category that is empty text"):
        export_onnx(empty, "5%")
    named = frame.rename(columns={"age": "uplift"})
    forest = forest_of(named, Roles("unit", "arm", "y", ("uplift", "spend"), "none"))
    with pytest.raises(DataError, match="'uplift' has the name of an output"):
        export_onnx(forest, "5%")


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    forest = forest_of(plain_frame(500), plain_roles(plain_frame(1)))
    with pytest.raises(EnvironmentProblem, match=r"uplift-spark\[portable\]"):
        export_onnx(forest, "1")
