"""A forest's effects without this package: a file that ONNX Runtime (from 1.21) evaluates, in its many languages.

The graph is what `Forest.effect_arrays` does, in three steps:

1. TreeEnsemble (ai.onnx.ml 5) takes a unit down every tree, in float64: a split between bins compares the number itself
   with the bin's edge, the same double the forest holds, so nothing is rounded at cut points. Of categories the trees
   ask whether they are outside a set, a column for each set that any split has. (The operator knows sets itself, but
   ONNX Runtime copies all that is below such a split once per member.) Each tree gives the number of the leaf, which a
   double holds exactly; the operator sums one number per leaf only, and the moments are several.
2. The leaves' moments are gathered and summed over the trees, in float64.
3. Ratios, the common effect of ordered levels, the response to doses, support and the average that stands in: ordinary
   operators.

There are no standard errors: they need the influence of trees less their buckets' means and, to correct noise, a
normal tail that ONNX has no operator for. A unit takes 8 bytes per tree and moment (10 kB with 200 trees) on its way,
so a caller with millions of rows gives them in parts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem, hint
from uplift_spark.forest.binning import OTHER, FeatureBins
from uplift_spark.forest.effects import PIVOT
from uplift_spark.forest.forest import LOW_SUPPORT, Forest
from uplift_spark.forest.modelfile import save_file
from uplift_spark.forest.shapley import leaf_moments
from uplift_spark.forest.trees import LEAF, MAX_FEATURES, MISSING_RIGHT
from uplift_spark.roles import LEFT

# Those of onnx 1.16, the first with TreeEnsemble: a file of a later version is refused by older runtimes.
OPSETS, IR_VERSION = {"": 21, "ai.onnx.ml": 5}, 10
OUTPUTS = ("uplift", "low_support")
ONNX_MISSING = ""  # what stands for a missing category: ONNX has no null
_LEQ = 0  # TreeEnsemble's comparison: at most
_LARGEST = np.finfo(np.float64).max
# ONNX Runtime 1.21 takes a root for a leaf if the leaf on one of its sides has the number of the split on the
# other (microsoft/onnxruntime issue 24679). The latter is at most one above the number of leaves in the trees before,
# so two leaves in front that are of no tree keep the former above it.
_UNUSED = 2


def export_onnx(forest: Forest, level: str, path: str | Path | None = None) -> bytes:
    """The effect of one treated level as an ONNX file's content; written to `path`, too, if that is given.

    Inputs are the forest's features by their names, [n, 1] each: numbers and booleans float64, NaN where missing;
    categories text, "" where missing. Outputs are uplift, float64 [n] on the outcome's scale, and low_support, bool
    [n], as `Forest.effect_arrays` tells them: a level that is not known at a unit is NaN, and so is a unit with an
    infinite number, which the forest refuses. Equal forests give equal bytes.

    Of a forest of doses (`roles.grid`) the levels are those of its grid, as in "2.5"; see `Forest.at` for others.

    Raises EnvironmentProblem without the package onnx, ConfigError for a level that is not treated and for forests
    whose effects are held monotone, of an instrument or of units whose features tell the level, DataError for features
    that the graph cannot tell apart: a category that is empty text, a name that an output has.
    """
    try:
        from onnx import checker
    except ImportError as error:
        raise EnvironmentProblem(
            "ONNX files need onnx: install the extra `portable` (uplift-spark[portable])"
        ) from error
    _check(forest, level)
    graph = _Graph()
    uplift, low = _effect(graph, forest, forest.levels.treated.index(level) + 1)
    graph.output(OUTPUTS[0], uplift, "DOUBLE")
    graph.output(OUTPUTS[1], low, "BOOL")
    facts = {"level": level, "control": forest.levels.control, "outcome": forest.roles.outcome}
    model = graph.model({**facts, "features": json.dumps([one.name for one in forest.bins])})
    checker.check_model(model)
    content = bytes(model.SerializeToString(deterministic=True))
    if path is not None:
        save_file(path, content)
    return content


def _check(forest: Forest, level: str) -> None:
    """Raise what `export_onnx` says."""
    if not isinstance(forest, Forest):
        raise ConfigError(f"a causal forest can be exported, this is a {type(forest).__name__}: train a CausalForest")
    if forest.roles.outcome == LEFT:
        raise ConfigError(
            "complier effects are not exported: export a forest of the outcome itself, for its assignment"
        )
    plan = forest.plan
    if plan.monotone:
        raise ConfigError(f"effects are held {plan.monotone}: an exported forest is trained without `monotone`")
    if level not in forest.levels.treated:
        raise ConfigError(f"level {level!r} has no effect to export: {hint(str(level), forest.levels.treated)}")
    if "private" in forest.facts:
        raise ConfigError(
            "files for ONNX do not hold the noise of a differentially private forest: score with this package"
        )
    if plan.overlap is not None:
        raise ConfigError(
            "the features tell the level received, and files for ONNX do not hold where a level lacks: "
            "export a forest of a trial, or score with this package"
        )
    if not np.diff(forest.structure.node_start).any():
        raise ConfigError("the forest has no tree: train it on more rows")
    for one in forest.bins:
        if one.categories and ONNX_MISSING in one.categories:
            raise DataError(
                f"column {one.name!r} holds 1 category that is empty text, which in ONNX stands for a missing one: "
                "rename it and train again"
            )
        if one.name in OUTPUTS:
            raise DataError(f"column {one.name!r} has the name of an output of the graph: rename it and train again")


class _Graph:
    """Nodes and constants as they are added; values of its own have a colon in their names."""

    def __init__(self) -> None:
        from onnx import TensorProto, helper, numpy_helper

        self._kinds, self._make, self._tensor = TensorProto, helper, numpy_helper.from_array
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self.axis = self.constant(np.array([1]))

    def add(self, operator: str, *inputs: str, domain: str = "", count: int = 1, **attributes: Any) -> Any:
        """Add an operator; returns the name of its output, or a list of `count` names."""
        if "to" in attributes:
            attributes["to"] = getattr(self._kinds, attributes["to"])
        names = [f"{operator}:{len(self._nodes)}:{i}" for i in range(count)]
        self._nodes.append(self._make.make_node(operator, inputs, names, domain=domain, **attributes))
        return names[0] if count == 1 else names

    def constant(self, values: np.ndarray) -> str:
        """Add a constant; returns its name."""
        name = f"constant:{len(self._constants)}"
        self._constants.append(self._tensor(values, name))
        return name

    def number(self, value: float) -> str:
        """Add a number, float64."""
        return self.constant(np.float64(value) * np.ones(1))

    def tensor(self, values: np.ndarray) -> Any:
        """An array as an operator's attribute."""
        return self._tensor(values)

    def input(self, name: str, kind: str) -> None:
        """Add an input [n, 1]."""
        self._inputs.append(self._make.make_tensor_value_info(name, getattr(self._kinds, kind), ["n", 1]))

    def output(self, name: str, value: str, kind: str) -> None:
        """Give a value [n, 1] out as [n]."""
        self._nodes.append(self._make.make_node("Squeeze", [value, self.axis], [name]))
        self._outputs.append(self._make.make_tensor_value_info(name, getattr(self._kinds, kind), ["n"]))

    def model(self, facts: dict[str, str]) -> Any:
        """The whole, with facts about it in its metadata."""
        graph = self._make.make_graph(self._nodes, "uplift", self._inputs, self._outputs, self._constants)
        opsets = [self._make.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        model = self._make.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets, producer_name="uplift-spark")
        self._make.set_model_props(model, facts)
        return model


def _effect(graph: _Graph, forest: Forest, level_code: int) -> tuple[str, str]:
    """(uplift, low support), [n, 1] each, of the level at this place."""
    splits = _splits(forest)
    numbers, sets = [], []
    for f, one in enumerate(forest.bins):
        graph.input(one.name, "STRING" if one.categorical else "DOUBLE")
        if one.categories is None:
            numbers.append(one.name)
        elif len(splits.sets[f]):
            sets.append(_outside(graph, one, splits.sets[f]))
    features = graph.add("Concat", *numbers, *sets, axis=1)
    leaves = graph.add("TreeEnsemble", features, domain="ai.onnx.ml", **_trees(graph, forest, splits))
    columns, at = _columns(forest, level_code), graph.add("Cast", leaves, to="INT64")
    held = graph.add("Gather", graph.constant(columns), at, axis=0)
    summed = graph.add("ReduceSum", held, graph.axis, keepdims=0)
    moments = graph.add("Split", summed, axis=1, num_outputs=columns.shape[1], count=columns.shape[1])
    uplift, low = _shown(graph, moments, forest, level_code)
    if not forest.plan.partial and forest._thin[1][level_code - 1]:
        low = graph.add("Or", low, graph.constant(np.ones(1, bool)))
    if numbers:
        infinite = graph.add("Cast", graph.add("IsInf", graph.add("Concat", *numbers, axis=1)), to="UINT8")
        bad = graph.add("Cast", graph.add("ReduceMax", infinite, graph.axis), to="BOOL")
        uplift = graph.add("Where", bad, graph.number(np.nan), uplift)
    return uplift, low


def _outside(graph: _Graph, one: FeatureBins, sets: np.ndarray) -> str:
    """Whether a category is outside each of the sets, bool [S, bins]: 1 or 0, float64 [n, S]."""
    categories = one.categories or ()
    codes: dict[str, Any] = {
        "keys_strings": [*categories, ONNX_MISSING],
        "values_int64s": [*range(1, len(categories) + 1), 0],
    }
    other = OTHER if one.has_other else 0
    code = graph.add("LabelEncoder", one.name, domain="ai.onnx.ml", default_int64=other, **codes)
    table = graph.constant(np.ascontiguousarray(~sets.T).astype(np.uint8))
    return str(graph.add("Cast", graph.add("Gather", table, graph.add("Squeeze", code, graph.axis)), to="DOUBLE"))


def _columns(forest: Forest, level_code: int) -> np.ndarray:
    """Moments of every leaf, [leaves, 6 or 10]: 1 of one with rows, n and s of control and level (shares of weight and
    of outcome), support and, where levels learn from each other, cn, c²n, s and cs summed over levels, c their shape.
    Where effects come from a response, `effects.moments`.
    """
    held = leaf_moments(forest)
    if forest.plan.reported:
        return held[:, :-1]
    n, s, supporting = (held[:, j:-1:3] for j in range(3))
    columns = [held[:, -1], n[:, 0], s[:, 0], n[:, level_code], s[:, level_code], supporting[:, level_code]]
    shrinkage = forest._shrinkage(forest._contrasts)
    if shrinkage[2, level_code]:
        shape = shrinkage[0]
        columns += [n @ shape, n @ shape**2, s.sum(axis=1), s @ shape]
    return np.stack(columns, axis=1)


def _shown(graph: _Graph, moments: list[str], forest: Forest, level_code: int) -> tuple[str, str]:
    """(uplift, low support), [n, 1] each, from summed moments: `kernels._solve`, or `effects._solve` of a response, and
    `forest._stand_in`. A level or control without rows is 0 / 0, which is NaN as it is there."""
    add, number = graph.add, graph.number
    contrasts = forest._contrasts
    shrinkage = forest._shrinkage(contrasts)[:, level_code]
    if len(contrasts):
        trees, *_, supporting = moments
        uplift = _response(graph, moments, contrasts[level_code - 1])
    else:
        trees, n0, s0, n1, s1, supporting, *shared = moments
        uplift = add("Mul", number(shrinkage[1]), add("Sub", add("Div", s1, n1), add("Div", s0, n0)))
        if shared:
            uplift = add("Add", uplift, add("Mul", number(shrinkage[2]), _common(graph, trees, *shared)))
    support = add("Div", supporting, add("Max", trees, number(1.0)))
    low = add("Less", support, number(LOW_SUPPORT))
    average, spread = shrinkage[4:]
    if np.isfinite(average) and np.isfinite(spread):
        apart = add("Sub", uplift, number(average))
        own = add("Where", add("IsNaN", apart), number(0.0), apart)
        share = add("Min", add("Div", support, number(LOW_SUPPORT)), number(1.0))
        stood_in = add("Add", number(average), add("Mul", share, own))
        uplift = add("Where", low, stood_in, uplift)
    return uplift, low


def _common(graph: _Graph, trees: str, cn: str, ccn: str, s: str, cs: str) -> str:
    """θ, the effect common to all levels: `kernels._dose_effect`. Shares of a leaf add to one: Σn is the trees."""
    add = graph.add
    mean = add("Div", cn, trees)
    scatter = add("Sub", ccn, add("Mul", mean, cn))
    theta = add("Div", add("Sub", cs, add("Mul", mean, s)), scatter)
    return str(add("Where", add("Greater", scatter, graph.number(0.0)), theta, graph.number(0.0)))


def _response(graph: _Graph, moments: list[str], contrast: np.ndarray) -> str:
    """contrast'θ from `effects.moments`: `effects._fit`, its Cholesky root and two triangles unrolled; NaN where the
    moments do not determine θ."""
    add, q = graph.add, len(contrast)
    trees, outcome = moments[:2]
    phi, phi_outcome = moments[2 : 2 + q], moments[2 + q : 2 + 2 * q]

    def less(value: str, *factors: str) -> str:
        return str(add("Sub", value, add("Mul", *factors)))

    known = add("Greater", trees, graph.number(0.0))
    mean = [add("Div", one, trees) for one in phi]
    root: list[list[str]] = []
    for a in range(q):
        first = 2 + 2 * q + a * (a + 1) // 2
        row: list[str] = []
        for b in range(a + 1):
            left = scatter = less(moments[first + b], phi[a], mean[b])
            for c in range(b):
                left = less(left, row[c], (row if b == a else root[b])[c])
            if a > b:
                row.append(add("Div", left, root[b][b]))
                continue
            determined = add("Greater", left, add("Mul", graph.number(PIVOT), scatter))
            known = add("And", known, determined)
            row.append(add("Sqrt", left))
        root.append(row)
    theta = [less(phi_outcome[a], mean[a], outcome) for a in range(q)]
    for a in range(q):
        for b in range(a):
            theta[a] = less(theta[a], root[a][b], theta[b])
        theta[a] = add("Div", theta[a], root[a][a])
    for a in range(q - 1, -1, -1):
        for b in range(a + 1, q):
            theta[a] = less(theta[a], root[b][a], theta[b])
        theta[a] = add("Div", theta[a], root[a][a])
    parts = [add("Mul", graph.number(contrast[a]), theta[a]) for a in range(q)]
    effect = parts[0] if q == 1 else add("Sum", *parts)
    return str(add("Where", known, effect, graph.number(np.nan)))


class _Splits(NamedTuple):
    """Splits of all trees, and what they ask; a tree of one leaf is a split, too.

    at       nodes that are splits, int64 [N]
    sets     by feature, the sets that any split has: bool [S, bins]
    column   which column a split asks, int64 [N]: numbers in their order, then sets in theirs
    edge     what is at most this goes left, float64 [N]
    missing  whether what is missing goes left, bool [N]
    """

    at: np.ndarray
    sets: list[np.ndarray]
    column: np.ndarray
    edge: np.ndarray
    missing: np.ndarray


def _splits(forest: Forest) -> _Splits:
    s = forest.structure
    sizes = np.diff(s.node_start)
    split = (s.nodes & np.uint64(LEAF)) == 0
    alone = s.node_start[:-1][sizes == 1]
    split[alone] = True
    at = np.flatnonzero(split)
    words, tree = np.where(np.isin(at, alone), np.uint64(0), s.nodes[at]), np.repeat(np.arange(s.n_trees), sizes)[at]
    feature = (words & np.uint64(MAX_FEATURES - 1)).astype(np.int64)
    threshold = ((words >> np.uint64(16)) & np.uint64(0xFFFF)).astype(np.int64)
    right = (words & np.uint64(MISSING_RIGHT)) > 0
    column, edge, sets = np.empty(at.size, np.int64), np.full(at.size, 0.5), []
    numeric = np.array([not one.categorical for one in forest.bins])
    first_set = int(numeric.sum())
    for f, one in enumerate(forest.bins):
        mine = np.flatnonzero(feature == f)
        if one.categorical:
            held = s.sets[s.set_start[tree[mine]] + threshold[mine]]
            bits = np.unpackbits(held.view(np.uint8), axis=1, bitorder="little")[:, : one.n_bins]
            unique_bits, which = np.unique(bits, axis=0, return_inverse=True)
            sets.append(unique_bits.astype(bool))
            column[mine] = first_set + which.ravel()
            first_set += len(unique_bits)
        else:  # bin b ends at edges[b - 1]; before the first one is nothing, and the last has no end
            ends = np.array([-_LARGEST, *one.edges, _LARGEST])
            sets.append(np.zeros((0, one.n_bins), bool))
            column[mine] = numeric[:f].sum()
            edge[mine] = ends[np.minimum(threshold[mine] + right[mine], ends.size - 1)]
    return _Splits(at, sets, column, edge, ~right)


def _trees(graph: _Graph, forest: Forest, splits: _Splits) -> dict[str, Any]:
    """TreeEnsemble's attributes. Each tree is an output of its own, and a leaf's weight is its number."""
    s = forest.structure
    sizes = np.diff(s.node_start)
    tree = np.repeat(np.arange(s.n_trees), sizes)
    leaf = (s.nodes & np.uint64(LEAF)) > 0
    child = (s.nodes >> np.uint64(32)).astype(np.int64) + np.where(leaf, s.leaf_start[tree], s.node_start[tree])
    node_id = np.zeros(s.nodes.size, np.int64)
    node_id[splits.at] = np.arange(splits.at.size)
    roots = s.node_start[:-1][sizes > 0]
    attributes: dict[str, Any] = {"tree_roots": node_id[roots], "n_targets": roots.size}
    alone = leaf[splits.at]
    for side, step in (("true", 0), ("false", 1)):
        to = np.where(alone, splits.at, child[splits.at] + step)
        attributes[f"nodes_{side}leafs"] = leaf[to].astype(np.int64)
        attributes[f"nodes_{side}nodeids"] = np.where(leaf[to], _UNUSED + child[to], node_id[to])
    # A tree of one leaf has a copy of it on its false side: ONNX Runtime 1.24 finds the wrong leaf for a split
    # with the same one on both sides, though that is how the standard has it.
    copies = child[splits.at[alone]]
    attributes["nodes_falsenodeids"][alone] = _UNUSED + s.n_leaves + np.arange(copies.size)
    leaves = np.r_[np.zeros(_UNUSED, np.int64), np.arange(s.n_leaves), copies]
    attributes["nodes_featureids"] = splits.column
    attributes["nodes_splits"] = graph.tensor(splits.edge)
    attributes["nodes_modes"] = graph.tensor(np.full(splits.at.size, _LEQ, np.uint8))
    attributes["nodes_missing_value_tracks_true"] = splits.missing.astype(np.int64)
    targets = np.repeat(np.cumsum(sizes > 0) - 1, np.diff(s.leaf_start))
    attributes["leaf_targetids"] = targets[leaves]
    attributes["leaf_weights"] = graph.tensor(leaves.astype(np.float64))
    return attributes
