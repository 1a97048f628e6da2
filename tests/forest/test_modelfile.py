"""A forest's file: whatever is wrong with its structure is refused before any kernel sees it, in one sentence."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.forest.test_overlap import MAIL, always_mailed
from uplift_spark import CausalForest, load_model
from uplift_spark.errors import ModelFileError
from uplift_spark.forest.modelfile import packed_file, read_file
from uplift_spark.forest.trees import CATEGORICAL, LEAF, MISSING_RIGHT, TREE_FAULTS, first_fault, frozen

MODELS = Path(__file__).resolve().parents[1] / "golden" / "last_release" / "models"
Parts = tuple[dict[str, Any], dict[str, np.ndarray]]


def parts_of(name: str) -> Parts:
    """Manifest and arrays of a file of the last release, to be changed."""
    manifest, arrays = read_file(MODELS / f"{name}.uplift")
    return manifest, {name: array.copy() for name, array in arrays.items()}


def refusal(manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    """The sentence that a file of these parts, with the digest that fits, is refused with."""
    with pytest.raises(ModelFileError) as caught:
        load_model(packed_file(manifest, arrays))
    assert "\n" not in str(caught.value) and "model bytes" in str(caught.value)
    return str(caught.value)


# --------------------------------------------------------------------------------------------------------------------
# Trees. By hand: a split by a number, below it a split by a set and a leaf.

N_BINS, BY_SET = np.array([5, 4]), np.array([False, True])


def word(child: int, low: int = 0, upper: int = 0) -> int:
    """A node: child or leaf, what is split by, threshold or set."""
    return child << 32 | upper << 16 | low


TREE = [word(1, 0, 2), word(3, 1 | CATEGORICAL, 0), word(0, LEAF), word(1, LEAF), word(2, LEAF)]


def fault(nodes: list[int], sets: int = 1, leaves: int | None = None) -> str:
    """What the check says of one tree, '' if nothing."""
    starts = [
        np.array([0, n], np.int64) for n in (len(nodes), sets, (len(nodes) + 1) // 2 if leaves is None else leaves)
    ]
    arrays = (np.array(nodes, np.uint64), starts[0], np.zeros((sets + 1, 4), np.uint64), starts[1], starts[2])
    return TREE_FAULTS[first_fault(*frozen((*arrays, N_BINS, BY_SET)))[1]]


def test_a_tree_passes_and_so_does_a_leaf_alone() -> None:
    assert fault(TREE) == fault([word(0, LEAF)], 0) == fault([], 0) == ""
    assert fault([word(1, MISSING_RIGHT, 3), *TREE[2:4]], 0) == ""


@pytest.mark.parametrize(
    ("place", "node", "said"),
    [
        (0, word(0, 0, 2), "child"),  # a loop of one
        (1, word(0, 1 | CATEGORICAL), "child"),  # back to the root
        (1, word(1, 1 | CATEGORICAL), "child"),  # its own child
        (0, word(4, 0, 2), "child"),  # the right child is beyond the end
        (0, word(2**31, 0, 2), "child"),
        (0, word(2**32 - 1, 0, 2), "child"),
        (0, word(2, 0, 2), "child"),  # two parents
        (0, word(1, 2, 2), "feature that is not there"),
        (0, word(1, 0x1FFF, 2), "feature that is not there"),
        (0, word(1, CATEGORICAL, 0), "another way"),  # a number by a set
        (1, word(3, 1, 0), "another way"),  # a category by a threshold
        (1, word(3, 1 | CATEGORICAL | MISSING_RIGHT), "another way"),
        (0, word(1, 0, 5), "another way"),  # a threshold above every bin
        (0, word(1, MISSING_RIGHT, 4), "another way"),
        (1, word(3, 1 | CATEGORICAL, 1), "set that is not its own"),
        (1, word(3, 1 | CATEGORICAL, 0xFFFF), "set that is not its own"),
        (2, word(3, LEAF), "leaf that is not its own"),
        (2, word(2**32 - 1, LEAF), "leaf that is not its own"),
        (2, word(1, LEAF), "there twice"),
        (2, word(0, LEAF | 1), "leaf"),
        (2, word(1, 0, 2), "child"),  # a leaf that splits
        (0, word(0, LEAF), "there twice"),  # a root that is a leaf, with more behind it
    ],
)
def test_what_no_tree_has_is_refused(place: int, node: int, said: str) -> None:
    assert said in fault([*TREE[:place], node, *TREE[place + 1 :]])


def test_a_tree_has_one_leaf_more_than_splits() -> None:
    assert "no leaves" in fault(TREE, leaves=2) and "no leaves" in fault(TREE, leaves=0)
    assert "no leaves" in fault([], leaves=1)


@pytest.mark.parametrize("prefix", ["", "baseline_"])
@pytest.mark.parametrize("child", [0, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_crafted_child_or_leaf_of_a_file_is_refused(prefix: str, child: int) -> None:
    manifest, arrays = parts_of("forest_doses")
    nodes = arrays[f"{prefix}nodes"]
    for is_leaf in (0, LEAF):
        changed = nodes.copy()
        at = int(np.flatnonzero((nodes & np.uint64(LEAF)) == is_leaf)[-1])
        changed[at] = np.uint64(child << 32) | (nodes[at] & np.uint64(0xFFFFFFFF))
        if changed[at] != nodes[at]:
            assert f"array {prefix}nodes" in refusal(manifest, {**arrays, f"{prefix}nodes": changed})


# --------------------------------------------------------------------------------------------------------------------
# Arrays.


@pytest.mark.parametrize(
    "name", ["node_start", "set_start", "leaf_start", "baseline_node_start", "baseline_leaf_start"]
)
@pytest.mark.parametrize("number", [-1, 1, 2**31, 2**62, -(2**63)])
@pytest.mark.parametrize("place", [0, 3, -1])
def test_starts_rise_from_nothing_to_what_is_there(name: str, number: int, place: int) -> None:
    manifest, arrays = parts_of("forest_binary")
    arrays[name][place] = number
    refusal(manifest, arrays)


@pytest.mark.parametrize("name", sorted(parts_of("forest_binary")[1]))
def test_an_array_of_another_size_type_or_none_is_refused(name: str) -> None:
    manifest, arrays = parts_of("forest_binary")
    array = arrays[name]
    for changed in (array[:-1], array[:0], np.append(array, array[-1:]), np.zeros(array.size, np.uint8)):
        refusal(manifest, {**arrays, name: changed})
    if name != "mix":  # forests have one or none
        refusal(manifest, {other: a for other, a in arrays.items() if other != name})
    assert "more" in refusal(manifest, {**arrays, "more": array})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("weights", -1, "less than nothing"),
        ("weights", 601, "more than its rows"),
        ("mix", np.inf, "finite"),
        ("baseline_values", np.nan, "finite"),
        ("baseline_values", np.inf, "finite"),
    ],
)
def test_values_that_no_training_gives_are_refused(name: str, value: float, said: str) -> None:
    manifest, arrays = parts_of("forest_binary")
    arrays[name][0] = value
    assert said in refusal(manifest, arrays)


@pytest.fixture(scope="module")
def overlapping() -> bytes:
    """A forest with propensities of its levels, for features tell them."""
    return CausalForest(n_trees=8, min_leaf=20, n_buckets=4).fit(always_mailed(3000, 5), MAIL).to_bytes()


@pytest.mark.parametrize(
    "name", ["overlap_shares", "overlap0_nodes", "overlap0_node_start", "overlap0_values", "overlap1_leaf_start"]
)
def test_propensities_are_held_to_the_same(overlapping: bytes, name: str) -> None:
    manifest, arrays = read_file(overlapping)
    assert load_model(packed_file(manifest, arrays)).to_bytes() == overlapping
    array = arrays[name]
    for changed in (array[:-1], np.append(array, array[-1:]), np.zeros(array.size, np.uint8), ~array.view(np.int64)):
        refusal(manifest, {**arrays, name: changed.view(array.dtype) if changed.dtype == np.int64 else changed})
    refusal(manifest, {other: a for other, a in arrays.items() if other != name})


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "both tell of propensities"),
        ({"log_e_value": 20.0}, "lacking"),
        ({"log_e_value": "x", "lacking": {"mail": 0.1}}, "log_e_value"),
        ({"log_e_value": 20.0, "lacking": {"mail": 7.0}}, "lack"),
        ({"log_e_value": 20.0, "lacking": {}}, ""),
    ],
)
def test_facts_of_propensities_are_theirs(overlapping: bytes, value: Any, said: str) -> None:
    manifest, arrays = read_file(overlapping)
    facts = {name: fact for name, fact in manifest["facts"].items() if name != "overlap"}
    assert said in refusal({**manifest, "facts": facts if value is None else {**facts, "overlap": value}}, arrays)


# --------------------------------------------------------------------------------------------------------------------
# Manifests.


def set_in(*keys: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one value of a manifest."""

    def change(manifest: dict[str, Any]) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        set_in("plan", "n_trees", to=12),
        set_in("plan", "n_trees", to=2**40),
        set_in("plan", "bag_size", to=3),
        set_in("plan", "bag_size", to=0),
        set_in("plan", "n_buckets", to=2**40),
        set_in("plan", "growth_buckets", to=0),
        set_in("plan", "growth_buckets", to=3),
        set_in("plan", "seed", to=2**64),
        set_in("plan", "exponents", to=[0]),
        set_in("plan", "exponents", to=[0, 2**40]),
        set_in("plan", "criterion", to="cubic"),
        set_in("plan", "monotone", to="sideways"),
        set_in("plan", "levels", to={"names": ["none", "none", "5%"], "doses": [0.0, 5.0, 10.0]}),
        set_in("plan", "levels", to={"names": ["none", "5%", "10%"], "doses": [0.0, 0.0, 0.0]}),
        set_in("plan", "levels", to={"names": ["none", "5%", "10%"], "doses": [0.0, [5.0], 10.0]}),
        set_in("plan", "levels", "doses", to=[0.0, 5.0]),
        set_in("plan", "levels", "names", to="abc"),
        set_in("plan", "bins", 0, "edges", to=[3.0, 2.0]),
        set_in("plan", "bins", 0, "edges", to=list(range(300))),
        set_in("plan", "bins", 0, "name", to="spend"),
        set_in("plan", "bins", 3, "categories", to=["east", "east"]),
        set_in("plan", "bins", 0, to={"name": "age"}),
        set_in("plan", "roles", "features", to=["age"]),
        set_in("plan", "roles", "unit", to=5),
        set_in("plan", "roles", "unit", to=None),
        set_in("plan", "roles", "more_outcomes", to=["other"]),
        set_in("plan", "roles", "more", to=1),
        set_in("plan", "debias", to=1),
        set_in("facts", "rows", to=-1),
        set_in("facts", "rows", to="600"),
        set_in("facts", "buckets", to=[]),
        set_in("facts", "corrected_variance", to="much"),
        set_in("facts", to=None),
        set_in("more", to=1),
    ],
)
def test_a_manifest_that_does_not_fit_its_arrays_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    manifest, arrays = parts_of("forest_doses")
    change(manifest)
    refusal(manifest, arrays)


def test_models_within_a_model_are_those_of_its_manifest() -> None:
    manifest, arrays = parts_of("per_level")
    assert "not those of its manifest" in refusal(
        manifest, {"forest_0": arrays["forest_1"], "forest_1": arrays["forest_0"]}
    )
    assert "forest_1" in refusal(manifest, {"forest_0": arrays["forest_0"]})
    assert "damaged" in refusal(manifest, {**arrays, "forest_0": arrays["forest_0"][:-1]})
    manifest, arrays = parts_of("instrumental")
    assert "overall" in refusal({**manifest, "instrument": {**manifest["instrument"], "overall": "x"}}, arrays)
    own, inner = read_file(arrays["forest"].tobytes())
    own["plan"]["reason"] = "another"
    changed = np.frombuffer(packed_file(own, inner), np.uint8)
    assert "not that of its manifest" in refusal(manifest, {"forest": changed})


# --------------------------------------------------------------------------------------------------------------------
# The record of arrays.


def sealed(content: bytes) -> bytes:
    """The content with its digest."""
    return content + hashlib.sha256(content).digest()


def arrow(arrays: dict[str, pa.Array], text: bytes, **options: Any) -> bytes:
    """A sealed file of any Arrow columns."""
    schema = pa.schema([pa.field(n, c.type) for n, c in arrays.items()], metadata={"uplift_manifest": text})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(pa.record_batch(list(arrays.values()), schema=schema))
    return sealed(sink.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("columns", "options", "said"),
    [
        ({"nodes": pa.array([[0] * (64 << 20)], pa.large_list(pa.int64()))}, {"compression": "zstd"}, "compressed"),
        ({"nodes": pa.array([["x"]], pa.large_list(pa.string()))}, {}, "does not fit"),
        ({"nodes": pa.array([1])}, {}, "does not fit"),
        ({"nodes": pa.array([[1], [2]], pa.large_list(pa.int64()))}, {}, "does not fit"),
        ({"nodes": pa.array([[1, None]], pa.large_list(pa.int64()))}, {}, "one list of numbers"),
        ({"nodes": pa.array([None], pa.large_list(pa.int64()))}, {}, "one list of numbers"),
    ],
)
def test_a_record_that_is_no_model_s_is_refused_before_it_is_unpacked(columns: Any, options: Any, said: str) -> None:
    content = arrow(columns, json.dumps({"format": 3}).encode(), **options)
    assert len(content) < 1 << 20
    with pytest.raises(ModelFileError, match=said):
        load_model(content)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff", b'{"format": NaN}', b"[" * 100_000, b'{"format": 2}', b"{}"])
def test_a_manifest_that_cannot_be_read_is_refused(text: bytes) -> None:
    with pytest.raises(ModelFileError) as caught:
        load_model(arrow({"nodes": pa.array([[1]], pa.large_list(pa.int64()))}, text))
    assert "\n" not in str(caught.value)


def test_offsets_of_the_record_stay_within_the_file() -> None:
    """Every word of the record's table of offsets, set to numbers that point outside."""
    content = (MODELS / "forest_binary.uplift").read_bytes()[:-32]
    start = 8 + 8 + int.from_bytes(content[12:16], "little")
    size = 8 + int.from_bytes(content[start + 4 : start + 8], "little")
    whole = load_model(sealed(content)).to_bytes()
    for at in range(start, start + size, 8):
        for number in (-1, 2**62, 8):
            changed = content[:at] + number.to_bytes(8, "little", signed=True) + content[at + 8 :]
            try:
                assert load_model(sealed(changed)).to_bytes() == whole
            except ModelFileError as error:
                assert "\n" not in str(error)
