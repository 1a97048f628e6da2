"""The file of a model: one Arrow record of arrays with a manifest, and a SHA-256 at its end.

Nothing in a file is ever executed, and nothing of it reaches compiled code unchecked. A digest tells of accidents, not
of intent: whoever changes a file can compute it anew. So what a file holds is checked as if it came from a stranger:
sizes before anything is unpacked, types and shapes of the manifest and of every array, every node of every tree. That a
file is the one that was written, no check of the file itself can tell: a signature does (`registry.models`).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from uplift_spark.errors import ModelFileError
from uplift_spark.forest.binning import MAX_CATEGORIES, FeatureBins
from uplift_spark.forest.effects import CRITERIA, contrast_matrix, dose_matrix
from uplift_spark.forest.encode import MONOTONE, ForestPlan
from uplift_spark.forest.grow import Baseline
from uplift_spark.forest.overlap import Overlap
from uplift_spark.forest.trees import TREE_FAULTS, Structure, first_fault, frozen
from uplift_spark.roles import Levels

FORMAT = 3
DIGEST = 32  # bytes of SHA-256 that end the file
_MAGIC = b"ARROW1\x00\x00"
_ALIGNED = 8
_TYPES = (pa.uint8(), pa.uint64(), pa.int32(), pa.int64(), pa.float64())


def packed_file(manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of a model file; equal parts give equal bytes."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    columns = [_packed(array) for array in arrays.values()]
    fields = [pa.field(n, c.type) for n, c in zip(arrays, columns, strict=True)]
    schema = pa.schema(fields, metadata={"uplift_manifest": text})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    content = sink.getvalue().to_pybytes()
    return content + hashlib.sha256(content).digest()


def _packed(array: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(array).ravel())
    return pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), flat)


def save_file(path: str | Path, content: bytes) -> None:
    """Write a model file; appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def named(source: str | Path | bytes) -> str:
    """What errors call a model file."""
    return "model bytes" if isinstance(source, bytes) else f"model file {source}"


def unreadable(name: str, error: Exception) -> ModelFileError:
    """What a file whose parts do not fit together raises."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    reason = reason if len(reason) <= 200 else f"{reason[:200]}…"
    return ModelFileError(f"{name} is not a readable model ({reason}): train or download it again")


@contextmanager
def reading(source: str | Path | bytes) -> Iterator[None]:
    """Whatever goes wrong while a file is read becomes one ModelFileError that names it.

    A crafted file can make the libraries that read it raise anything, so every exception is meant.
    """
    try:
        yield
    except ModelFileError as error:
        if isinstance(source, bytes) or named(source) in str(error):
            raise
        # A model within the model says what is wrong with it; the file that a user knows is the outer one.
        raise ModelFileError(f"{named(source)}: {error}") from error
    except Exception as error:
        raise unreadable(named(source), error) from error


def read_file(source: str | Path | bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and flat arrays of a model file (memory-mapped) or its bytes; arrays are read-only views of it.

    Raises ModelFileError if it is missing, truncated, edited, of another format, or no model at all.
    """
    name = named(source)
    try:
        buffer = pa.py_buffer(source) if isinstance(source, bytes) else pa.memory_map(str(source)).read_buffer()
    except (OSError, pa.ArrowException) as error:
        raise ModelFileError(f"{name} cannot be read ({str(error).splitlines()[0]}): check its path") from error
    content = buffer.slice(0, max(buffer.size - DIGEST, 0))
    if hashlib.sha256(content).digest() != buffer.slice(content.size).to_pybytes():
        raise ModelFileError(f"{name} is damaged, edited or no model: train or download it again")
    with reading(source):
        text, arrays = _unpacked(content)
        manifest = json.loads(text, parse_constant=_no_number)
        if not isinstance(manifest, dict):
            raise ValueError("its manifest is no mapping")
    if manifest.get("format") != FORMAT:
        raise ModelFileError(
            f"{name} has format {manifest.get('format')!r:.40}, this version reads {FORMAT}: retrain it"
        )
    return manifest, arrays


def _no_number(text: str) -> None:
    raise ValueError(f"its manifest holds {text}, which is no number")


# --------------------------------------------------------------------------------------------------------------------
# Arrow's layout, read by hand where Arrow's own reader trusts the file: it unpacks compressed buffers of any size and
# follows offsets that are checked after the fact. A model's file is one record batch, never compressed, each column one
# list of plain numbers: what is read is a table of offsets, each held against the file's size.


def _unpacked(content: pa.Buffer) -> tuple[bytes, dict[str, np.ndarray]]:
    """Text of the manifest and arrays of the Arrow file `content`."""
    view = memoryview(content)
    if bytes(view[:8]) != _MAGIC or bytes(view[-6:]) != _MAGIC[:6]:
        raise ValueError("it is no Arrow file")
    start, size = _message(view, len(_MAGIC))
    schema = pa.ipc.read_schema(content.slice(len(_MAGIC), start + size - len(_MAGIC)))
    start, size = _message(view, start + size)
    body = start + size
    length, nodes, buffers = _record_batch(view[start:body], len(view) - body)
    count = len(schema)
    if length != 1 or len(nodes) != 2 * count or len(buffers) != 4 * count or len(set(schema.names)) != count:
        raise ValueError("its record batch does not fit its schema")
    arrays = {}
    for i, field in enumerate(schema):
        if not pa.types.is_large_list(field.type) or field.type.value_type not in _TYPES:
            raise ValueError(f"its array {field.name!r:.80} has type {field.type!s:.40}")
        values = nodes[2 * i + 1][0]
        kind = np.dtype(field.type.value_type.to_pandas_dtype())
        (_, no_nulls), (at, ends), (_, none_either), (first, total) = buffers[4 * i : 4 * i + 4]
        lists = _numbers(view, body + at, min(ends // 8, 2), np.dtype(np.int64))
        if no_nulls or none_either or nodes[2 * i] != (1, 0) or nodes[2 * i + 1][1] or lists.tolist() != [0, values]:
            raise ValueError(f"its array {field.name!r:.80} is not one list of numbers")
        if not values * kind.itemsize <= total:
            raise ValueError(f"its array {field.name!r:.80} is cut off")
        arrays[field.name] = _numbers(view, body + first, values, kind)
    return schema.metadata[b"uplift_manifest"], arrays


def _numbers(view: memoryview, at: int, count: int, kind: np.dtype) -> np.ndarray:
    array = np.frombuffer(view, kind, count, at)
    return array if array.flags.aligned else frozen([array.copy()])[0]


def _message(view: memoryview, at: int) -> tuple[int, int]:
    """(place, size) of the metadata of the message that begins there."""
    mark, size = _read("<Ii", view, at)
    if mark != 0xFFFFFFFF or not 0 < size <= len(view) - at - 8:
        raise ValueError("its messages are cut off")
    return at + 8, size


def _record_batch(meta: memoryview, room: int) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]]]:
    """(rows, (length, nulls) of every array, (offset, size) of every buffer) of a record batch with `room` for a body.

    The layout of a table of FlatBuffers: a place of the table's fields, then the fields. Message: version, type of the
    header, header, size of the body; RecordBatch: length, nodes, buffers, compression.
    """
    message = _fields(meta, _read("<I", meta, 0)[0])
    if _read("<B", meta, message[1])[0] != 3:
        raise ValueError("its second message is no record batch")
    batch = _fields(meta, message[2] + _read("<I", meta, message[2])[0])
    if batch.get(3):
        raise ValueError("its arrays are compressed, as no model's are")
    pairs = []
    for field in (1, 2):
        at = batch[field] + _read("<I", meta, batch[field])[0]
        count = _read("<I", meta, at)[0]
        if count > len(meta) // 16:
            raise ValueError("its record batch is cut off")
        numbers = _read(f"<{2 * count}q", meta, at + 4)
        pairs.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    nodes, buffers = pairs
    end = 0
    for offset, size in buffers:
        if offset < end or size < 0 or offset + size > room or offset % _ALIGNED:
            raise ValueError("its arrays do not lie one behind the other within the file")
        end = offset + size
    if any(length < 0 for length, _ in nodes):
        raise ValueError("its arrays have no length")
    return _read("<q", meta, batch[0])[0], nodes, buffers


def _fields(meta: memoryview, at: int) -> dict[int, int]:
    """{number: place} of the fields of the table that begins there."""
    places = at - _read("<i", meta, at)[0]
    size = _read("<H", meta, places)[0]
    offsets = _read(f"<{max(size // 2 - 2, 0)}H", meta, places + 4)
    return {number: at + offset for number, offset in enumerate(offsets) if offset}


def _read(form: str, view: memoryview, at: int) -> tuple[Any, ...]:
    if at < 0:  # counts from the end otherwise
        raise ValueError("it points outside itself")
    return struct.unpack_from(form, view, at)


# --------------------------------------------------------------------------------------------------------------------
# Manifests: what they hold, and of which type. An unknown key is refused where it would reach a constructor.

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
_OPEN = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
_Dose = float | list[float]


@with_config(_STRICT)
class _RolesPart(TypedDict):
    unit: str
    treatment: str
    outcome: str
    features: list[str]
    control: str
    dose: dict[str, _Dose] | None
    propensity: str | None
    weight: str | None
    cluster: str | None
    more_outcomes: list[str]
    scores: str | None
    grid: list[float]
    direction: NotRequired[str]


@with_config(_STRICT)
class _LevelsPart(TypedDict):
    names: list[str]
    doses: list[_Dose] | None


@with_config(_STRICT)
class _BinsPart(TypedDict):
    name: str
    edges: NotRequired[list[float]]
    categories: NotRequired[list[str]]
    has_other: NotRequired[bool]


@with_config(_OPEN)
class _Bucket(TypedDict):
    bucket: int
    trees: int


@with_config(_STRICT)
class _OverlapFacts(TypedDict):
    log_e_value: float
    lacking: dict[str, float]


@with_config(_STRICT)
class _Thin(TypedDict):
    rows: int
    events: int
    error: float
    flagged: bool


@with_config(_STRICT)
class _Few(TypedDict):
    share: Annotated[float, Field(ge=0, le=1)]
    variance: Annotated[float, Field(ge=0, allow_inf_nan=False)]


_Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@with_config(_STRICT)
class _Private(TypedDict):
    epsilon: _Size
    delta: _Size
    rho: _Size
    rows_sd: _Size
    outcome_sd: _Size
    variance_shares: list[_Size]


@with_config(_OPEN)
class _FactsPart(TypedDict):
    rows: int
    level_rows: dict[str, int]
    outcome_range: dict[str, list[float | None]]
    buckets: list[_Bucket]
    corrected_variance: NotRequired[float]
    overlap: NotRequired[_OverlapFacts]
    thin: NotRequired[dict[str, dict[str, _Thin]]]
    few: NotRequired[dict[str, dict[str, _Few]]]
    private: NotRequired[_Private]


@with_config(_STRICT)
class _PlanPart(TypedDict):
    roles: _RolesPart
    levels: _LevelsPart
    bins: list[_BinsPart]
    criterion: str
    seed: int
    n_trees: int
    bag_size: int
    n_buckets: int
    growth_buckets: int
    limits: dict[str, float]
    exponents: list[int]
    weighted_by_propensity: bool
    debias: bool
    told: _LevelsPart | None  # the name of `reported` in model files
    edges: list[float]
    partial: bool
    monotone: str | None
    reason: str
    effective: NotRequired[dict[str, dict[str, Annotated[float, Field(ge=0, le=1)]]]]


@with_config(_STRICT)
class _ForestManifest(TypedDict):
    format: int
    plan: _PlanPart
    facts: _FactsPart


@with_config(_STRICT)
class _PerLevelManifest(TypedDict):
    format: int
    per_level: dict[str, _ForestManifest]
    levels: _LevelsPart


@with_config(_STRICT)
class _InstrumentPart(TypedDict):
    overall: float
    delivered: str
    outcome: str


@with_config(_STRICT)
class _InstrumentManifest(TypedDict):
    format: int
    instrument: _InstrumentPart
    forest: _ForestManifest


@with_config(_STRICT)
class _LearnerPart(TypedDict):
    kind: str
    replicates: int
    rows: int
    folds: int
    seed: int


@with_config(_OPEN)
class _LearnedFacts(TypedDict):
    rows: int
    rows_taken: int
    level_rows: dict[str, int]
    effects_sha256: str
    overlap: NotRequired[_OverlapFacts]
    thin: NotRequired[dict[str, dict[str, _Thin]]]


@with_config(_STRICT)
class _LearnedManifest(TypedDict):
    format: int
    learner: _LearnerPart
    roles: _RolesPart
    levels: _LevelsPart
    bins: list[_BinsPart]
    facts: _LearnedFacts


_MANIFESTS = {
    "forest": _ForestManifest,
    "per_level": _PerLevelManifest,
    "instrument": _InstrumentManifest,
    "learner": _LearnedManifest,
}


@cache
def _adapter(kind: str) -> TypeAdapter:
    return TypeAdapter(_MANIFESTS[kind])


def check_manifest(kind: Literal["forest", "per_level", "instrument", "learner"], manifest: Mapping[str, Any]) -> None:
    """Raise ValueError unless a manifest has every part that a model of the kind has, each of its type."""
    try:
        _adapter(kind).validate_python(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise ValueError(f"its manifest's {'.'.join(map(str, first['loc']))[:120]}: {first['msg']}") from error


def check_bins(bins: Sequence[FeatureBins], features: Sequence[str]) -> None:
    """Raise ValueError unless bins are of the features, and every bin is a byte."""
    if [one.name for one in bins] != list(features):
        raise ValueError("its bins are not those of its features")
    for one in bins:
        values = one.edges if one.categories is None else one.categories
        if len(values) > MAX_CATEGORIES or (one.categories is not None and len(set(one.categories)) < len(values)):
            raise ValueError(f"feature {one.name!r:.80} has bins that are twice there, or more than {MAX_CATEGORIES}")
        edges = np.array(one.edges, np.float64)
        if one.categories is None and not (np.diff(edges) > 0).all():
            raise ValueError(f"edges of feature {one.name!r:.80} do not ascend")


def check_plan(plan: ForestPlan, facts: Mapping[str, Any]) -> None:
    """Raise ValueError unless the parts of a plan fit each other and what training found."""
    check_bins(plan.bins, plan.roles.features)
    check_model_levels(plan.levels)
    if plan.reported is not None:
        check_model_levels(plan.reported)
    trees, bag, buckets = plan.n_trees, plan.bag_size, plan.n_buckets
    if not (0 < bag <= trees and trees % bag == 0 and 0 < plan.growth_buckets < buckets == len(facts["buckets"])):
        raise ValueError(f"its {trees} trees are not of whole bags of {bag} trees and of {buckets} buckets")
    if len(plan.exponents) != 1 + len(plan.roles.outcomes) or any(abs(one) > 1100 for one in plan.exponents):
        raise ValueError("its exponents are not those of a weight and of every outcome")
    if not set(plan.roles.outcomes) <= set(facts["outcome_range"]) or facts["rows"] < 0 or not 0 <= plan.seed < 2**64:
        raise ValueError("its facts are not those of its outcomes")
    if plan.criterion not in CRITERIA or plan.monotone not in (None, *MONOTONE):
        raise ValueError(f"its criterion {plan.criterion!r:.40} or direction {plan.monotone!r:.40} is unknown")
    if plan.edges and (len(plan.edges) != len(plan.levels) - 1 or not (np.diff(plan.edges) > 0).all()):
        raise ValueError("its edges do not part its levels")
    with np.errstate(all="ignore"):
        doses = [dose_matrix(plan.reported or plan.levels)] if plan.monotone else []
        basis = CRITERIA[plan.criterion].basis(plan.levels)
        if not all(np.isfinite(one).all() for one in (basis, contrast_matrix(plan), *doses)):
            raise ValueError("its doses lie at one place or at infinity")


def check_model_levels(levels: Levels) -> None:
    """Raise ValueError unless levels are at least two, of different names, each of as many doses as the others."""
    names, doses = levels.names, levels.doses
    widths = {len(one) if isinstance(one, tuple) else 0 for one in doses or ()}
    if not 2 <= len(set(names)) == len(names) or (doses is not None and (len(doses) != len(names) or len(widths) > 1)):
        raise ValueError("its levels are not at least two, of different names, with as many doses each")


# --------------------------------------------------------------------------------------------------------------------
# Arrays of a forest: bounds, and that trees are trees. Kernels follow every number of theirs without looking.

_KINDS = {"nodes": np.uint64, "sets": np.uint64, "node_start": np.int64, "set_start": np.int64, "leaf_start": np.int64}


def checked_structure(arrays: Mapping[str, np.ndarray], prefix: str, bins: Sequence[FeatureBins]) -> Structure:
    """The structure of the arrays named so, every node checked. Raises ValueError naming the tree and what is wrong."""
    parts = {name: _of_kind(arrays, prefix + name, kind) for name, kind in _KINDS.items()}
    structure = Structure(**{**parts, "sets": parts["sets"].reshape(-1, 4)})
    sizes = {
        "node_start": structure.nodes.size,
        "set_start": len(structure.sets) - 1,
        "leaf_start": structure.nodes.size,
    }
    for name, most in sizes.items():
        starts = parts[name]
        if starts.size != structure.node_start.size or starts.size < 2 or starts[0] or starts.max() > most:
            raise ValueError(f"its array {prefix}{name} does not begin at 0 and end within the file")
        if (starts[1:] < starts[:-1]).any() or (name != "leaf_start" and starts[-1] != most):
            raise ValueError(f"its array {prefix}{name} does not rise to the last of what it parts")
    counts = np.array([one.n_bins for one in bins], np.int64)
    categorical = np.array([one.categorical for one in bins], bool)
    tree, fault = first_fault(*frozen((*structure, counts, categorical)))
    if fault:
        raise ValueError(f"tree {tree} of its array {prefix}nodes {TREE_FAULTS[fault]}")
    return structure


def _of_kind(arrays: Mapping[str, np.ndarray], name: str, *kinds: type) -> np.ndarray:
    if name not in arrays:
        raise ValueError(f"its array {name} is missing")
    if arrays[name].dtype not in kinds:
        raise ValueError(f"its array {name} has type {arrays[name].dtype}")
    return arrays[name]


def checked_sums(
    arrays: Mapping[str, np.ndarray], structure: Structure, plan: ForestPlan, facts: Mapping[str, Any]
) -> np.ndarray:
    """Leaf sums of a forest, int64 [leaves, K, 1 + 2m]. Raises ValueError for another number of them, or weights that
    no rows of training have."""
    leaves, k, width = structure.n_leaves, len(plan.levels), 2 * len(plan.roles.outcomes)
    weights, outcomes = _of_kind(arrays, "weights", np.int32, np.int64), _of_kind(arrays, "outcomes", np.int64)
    if weights.size != leaves * k or outcomes.size != leaves * k * width:
        raise ValueError(f"its {leaves} leaves do not have {k} weights and {k * width} sums each")
    if plan.n_trees != structure.n_trees:
        raise ValueError(f"it has {structure.n_trees} trees, not the {plan.n_trees} of its manifest")
    weights = weights.reshape(leaves, k)
    most = facts["rows"] if plan.exponents[0] == 0 and not plan.weighted_by_propensity else 2**62 // k
    if weights.size and not 0 <= int(weights.min()) <= int(weights.max()) <= most:
        raise ValueError("its leaves weigh less than nothing or more than its rows")
    sums = np.empty((leaves, k, 1 + width), np.int64)
    sums[:, :, 0] = weights
    sums[:, :, 1:] = outcomes.reshape(leaves, k, width)
    return sums


def checked_baseline(arrays: Mapping[str, np.ndarray], name: str, trees: Structure) -> np.ndarray:
    """Values of a baseline's leaves, float64 [leaves]. Raises ValueError unless there are as many, all finite, and as
    many trees for either fold, each grown."""
    values = _of_kind(arrays, name, np.float64)
    if values.size != trees.n_leaves or not np.isfinite(values).all():
        raise ValueError(f"its array {name} does not hold {trees.n_leaves} finite values")
    if trees.n_trees % 2 or not np.diff(trees.node_start).all():
        raise ValueError(f"the trees of its array {name} are not as many for either fold")
    return values


def checked_overlap(
    arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], bins: Sequence[FeatureBins], names: Sequence[str]
) -> tuple[Overlap | None, set[str]]:
    """(propensities of the levels of these names, if the file holds any; the names of their arrays).

    Raises ValueError unless there are shares of every level, whole trees with a propensity in every leaf, and what the
    facts say of them.
    """
    stated = facts.get("overlap")
    if (stated is None) != ("overlap_shares" not in arrays):
        raise ValueError("its facts and its arrays do not both tell of propensities")
    if stated is None:
        return None, set()
    shares = _of_kind(arrays, "overlap_shares", np.float64)
    lacking = [stated["lacking"][name] for name in names[1:]]
    if shares.size != len(names) or not ((shares > 0) & (shares < 1)).all() or not np.isfinite(stated["log_e_value"]):
        raise ValueError(f"its array overlap_shares does not hold {len(names)} shares")
    if len(stated["lacking"]) != len(lacking) or not all(0 <= share <= 1 for share in lacking):
        raise ValueError("its facts do not tell of which levels lack where")
    trees: list[Baseline | None] = []
    mine = {"overlap_shares"}
    for prefix in (f"overlap{k}_" for k in range(len(names))):
        if f"{prefix}values" in arrays:
            mine |= {f"{prefix}{name}" for name in ("values", *Structure._fields)}
            structure = checked_structure(arrays, prefix, bins)
            values = checked_baseline(arrays, f"{prefix}values", structure)
            if not ((values > 0) & (values < 1)).all():
                raise ValueError(f"its array {prefix}values holds what is no propensity")
            trees.append(Baseline(structure, values))
        else:
            trees.append(None)
    return Overlap(tuple(trees), shares, stated["log_e_value"], tuple(lacking)), mine


def checked_shrinkage(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, int]) -> np.ndarray:
    """`Forest.level_shrinkage` of this shape. Raises ValueError for another, or infinite values; NaN says that an
    average is not known."""
    values = _of_kind(arrays, name, np.float64)
    if values.size != shape[0] * shape[1] or np.isinf(values).any():
        raise ValueError(f"its array {name} does not hold {shape[0]} times {shape[1]} finite values")
    return values.reshape(shape)


def check_array_names(arrays: Mapping[str, np.ndarray], names: set[str]) -> None:
    """Raise ValueError where a file has other arrays than these."""
    if others := sorted(set(arrays) ^ names):
        raise ValueError(f"its arrays are not those of its manifest: {', '.join(others)[:120]}")
