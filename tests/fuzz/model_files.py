"""Model files as a target of `tests.fuzz`: those of the last release, changed and given the digest that fits.

A digest tells of accidents, not of intent: whoever changes a file can compute it anew. So every mutation but those of
kind "bytes, old digest" ends with the digest of what it holds, at every depth: models within models, archives.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from tests.fuzz import pool
from uplift_spark import load_model
from uplift_spark.errors import UpliftError

FOLDER = Path(__file__).resolve().parents[1] / "golden" / "last_release"
DIGEST = 32
Draw = np.random.Generator
Arrays = dict[str, np.ndarray]
# Numbers at which code breaks: ends of types, signs, one beyond.
EDGES = (
    0,
    1,
    -1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32 - 1,
    2**62,
    2**63 - 1,
    -(2**63),
)
REALS = (0.0, -1.0, 1e308, -1e308, 5e-324, float("nan"), float("inf"), float("-inf"))
VALUES = (None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -0.5, "", "x", "none", "_", [], {}, [[]], [None], {"": 0})
CHILD, FEATURE, SET, LEAF, CATEGORICAL, MISSING = 32, 0x1FFF, 16, 1 << 15, 1 << 14, 1 << 13


@cache
def corpus() -> dict[str, bytes]:
    """File of each kind of model, by name."""
    return {path.stem: path.read_bytes() for path in sorted((FOLDER / "models").glob("*.uplift"))}


@cache
def frame() -> pd.DataFrame:
    """Units to score."""
    return pd.read_parquet(FOLDER / "frame.parquet").head(24)


# --------------------------------------------------------------------------------------------------------------------
# What became of a file.


def judged(kind: str, content: bytes) -> tuple[str, str]:
    """(verdict, detail) of a mutated file: it is loaded and scores units, whatever its digest says."""
    try:
        effects = load_model(content).effect(frame())
    except UpliftError as error:
        if _ran_out(error):
            return pool.BIG, str(error)
        return ("refused", "") if "\n" not in str(error) else (pool.UNTYPED, str(error))
    if kind.startswith("structure"):
        return pool.ACCEPTED, ""
    same = digest_of(effects) in known()
    return ("loaded, same effects" if same else "loaded, other values"), ""


def digest_of(effects: pd.DataFrame) -> str:
    """What effects are compared by."""
    numbers = effects[["uplift", "uplift_se"]].to_numpy(np.float64)
    return hashlib.sha256(np.ascontiguousarray(numbers).tobytes() + repr(list(effects.columns)).encode()).hexdigest()


@cache
def known() -> set[str]:
    """Digests of the effects of all files as they are."""
    return {digest_of(load_model(content).effect(frame())) for content in corpus().values()}


def _ran_out(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, MemoryError) or _ran_out(error.__cause__ or error.__context__))


# --------------------------------------------------------------------------------------------------------------------
# Mutations.


def mutated(draw: Draw) -> tuple[str, bytes]:
    """(kind, file) of a mutation."""
    names = list(corpus())
    # Boosted trees take ten times as long to read as a forest: half as many of them.
    weights = np.array([1.0 if "fit_0" in unpacked(corpus()[name])[1] else 2.0 for name in names])
    content = corpus()[names[int(draw.choice(len(names), p=weights / weights.sum()))]]
    kind = str(draw.choice(list(KINDS), p=np.array([weight for weight, _ in KINDS.values()]) / 100))
    return kind, KINDS[kind][1](draw, content)


@cache
def unpacked(content: bytes) -> tuple[dict[str, Any], Arrays]:
    """Manifest and arrays of a file that is intact."""
    table = pa.ipc.open_file(pa.py_buffer(content[:-DIGEST])).read_all()
    arrays = {name: table.column(name).chunk(0).flatten().to_numpy() for name in table.column_names}
    return json.loads(table.schema.metadata[b"uplift_manifest"]), arrays


def packed(manifest: Any, arrays: Arrays, **options: Any) -> bytes:
    """A file of any manifest and arrays, with its digest."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    columns = [
        pa.array([array.tolist() if array.dtype == object else array], pa.large_list(_kind(array)))
        for array in arrays.values()
    ]
    schema = pa.schema(
        [pa.field(n, c.type) for n, c in zip(arrays, columns, strict=True)], metadata={"uplift_manifest": text}
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_batch(pa.record_batch(columns, schema=schema))
    return sealed(sink.getvalue().to_pybytes())


def _kind(array: np.ndarray) -> pa.DataType:
    return pa.array(array.ravel()[:1]).type if array.dtype != object else pa.string()


def sealed(content: bytes) -> bytes:
    """The content with its digest."""
    return content + hashlib.sha256(content).digest()


def _bytes(draw: Draw, content: bytes) -> bytes:
    """One to eight bytes, or a whole word, changed."""
    changed = bytearray(content)
    for _ in range(int(draw.integers(1, 9))):
        at = int(draw.integers(len(changed)))
        if draw.random() < 0.3 and at + 8 <= len(changed):
            changed[at : at + 8] = (
                (int(draw.choice(len(EDGES))) and EDGES[int(draw.integers(len(EDGES)))]).to_bytes(
                    8, "little", signed=True
                )
                if draw.random() < 0.5
                else draw.bytes(8)
            )
        else:
            changed[at] = int(draw.integers(256))
    return bytes(changed)


def any_bytes(draw: Draw, content: bytes) -> bytes:
    """Bytes of the file changed, in the last third most of the time: header and manifest are small."""
    return sealed(_bytes(draw, content[:-DIGEST]))


def metadata_bytes(draw: Draw, content: bytes) -> bytes:
    """Bytes of what Arrow reads first and last changed: schema, offsets, footer."""
    body = bytearray(content[:-DIGEST])
    ends = (slice(0, min(6000, len(body) // 3)), slice(max(0, len(body) - 3000), len(body)))
    part = ends[int(draw.integers(2))]
    body[part] = _bytes(draw, bytes(body[part]))
    return sealed(bytes(body))


def old_digest(draw: Draw, content: bytes) -> bytes:
    """Bytes changed without a new digest."""
    return _bytes(draw, content)


def cut_or_padded(draw: Draw, content: bytes) -> bytes:
    """A file that ends early, or goes on."""
    body = content[:-DIGEST]
    if draw.random() < 0.5:
        return sealed(body[: int(draw.integers(len(body)))])
    at = int(draw.integers(len(body)))
    return sealed(body[:at] + draw.bytes(int(draw.integers(1, 64))) + body[at:])


def in_depth(
    change: Callable[[Draw, dict[str, Any], Arrays], tuple[Any, Arrays] | bytes],
) -> Callable[[Draw, bytes], bytes]:
    """A change of manifest and arrays of the file or of a forest within it."""

    def changed(draw: Draw, content: bytes) -> bytes:
        manifest, arrays = unpacked(content)
        manifest, arrays = json.loads(json.dumps(manifest)), dict(arrays)
        inner = [name for name in arrays if name.startswith("forest")]
        if inner and (draw.random() < 0.8 or change is _tree_structure):
            name = str(draw.choice(inner))
            arrays[name] = np.frombuffer(changed(draw, arrays[name].tobytes()), np.uint8)
            return packed(manifest, arrays)
        result = change(draw, manifest, arrays)
        return result if isinstance(result, bytes) else packed(*result)

    return changed


def _array_values(draw: Draw, manifest: dict[str, Any], arrays: Arrays) -> tuple[Any, Arrays] | bytes:
    """Numbers of an array changed."""
    name = str(draw.choice(list(arrays)))
    array = arrays[name].copy()
    for _ in range(int(draw.integers(1, 4))):
        if array.size:
            at = int(draw.integers(array.size))
            array[at] = _number(draw, array)
    return manifest, {**arrays, name: array}


def _number(draw: Draw, array: np.ndarray) -> Any:
    if array.dtype.kind == "f":
        return REALS[int(draw.integers(len(REALS)))] if draw.random() < 0.7 else draw.normal()
    info = np.iinfo(array.dtype)
    if draw.random() < 0.5:
        return np.clip(EDGES[int(draw.integers(len(EDGES)))], info.min, info.max).astype(array.dtype)
    return (
        draw.integers(info.min, info.max, dtype=array.dtype, endpoint=True)
        if draw.random() < 0.5
        else draw.choice(array)
    )


def _array_shapes(draw: Draw, manifest: dict[str, Any], arrays: Arrays) -> tuple[Any, Arrays]:
    """An array that is shorter, longer, of another type, missing or there under another's name."""
    name = str(draw.choice(list(arrays)))
    array, what = arrays[name], int(draw.integers(8))
    if what == 0:
        arrays = {n: a for n, a in arrays.items() if n != name}
    elif what == 1:
        arrays[name] = array[: int(draw.integers(array.size))]
    elif what == 2:
        arrays[name] = np.concatenate([array, array[: int(draw.integers(1, array.size + 1))]])
    elif what == 3:
        kinds = (np.int8, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64, bool)
        with np.errstate(all="ignore"):
            arrays[name] = array.astype(kinds[int(draw.integers(len(kinds)))])
    elif what == 4:
        arrays[name] = np.array(["x"] * int(draw.integers(1, 4)), object)
    elif what == 5:
        arrays[name] = arrays[str(draw.choice(list(arrays)))]
    elif what == 6:
        arrays[str(draw.choice(["more", "mix", "mix1", "baseline_values", "baseline_nodes", "fit_1", "forest_2"]))] = (
            array
        )
    else:
        arrays[name] = array[:0]
    return manifest, arrays


def _manifest_values(draw: Draw, manifest: dict[str, Any], arrays: Arrays) -> tuple[Any, Arrays] | bytes:
    """Values of the manifest changed, lost or doubled."""
    for _ in range(int(draw.integers(1, 3))):
        _change_json(draw, manifest)
    text = json.dumps(manifest)
    if draw.random() < 0.05:
        depth = int(draw.integers(10, 100_000))
        text = '{"format":3,"plan":' + "[" * depth + "]" * depth + "}"
    return packed(text.encode(), arrays)


def _change_json(draw: Draw, value: Any) -> None:
    """Walk down from a JSON value and change one place."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = keys[int(draw.integers(len(keys)))]
        inner = value[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.85:
            value = inner
            continue
        what = draw.random()
        if what < 0.15:
            del value[key]
        elif what < 0.25 and isinstance(value, list):
            value.append(copy.deepcopy(inner))
        elif what < 0.25:
            value[str(draw.choice(["more", "x", "told", "partial", "per_level", "instrument", "learner"]))] = (
                copy.deepcopy(inner)
            )
        elif isinstance(inner, bool):
            value[key] = not inner
        elif what < 0.6 and isinstance(inner, int | float):
            value[key] = inner + [1, -1, 0.5, 1e6, -1e6, 2**40][int(draw.integers(6))]
        else:
            value[key] = copy.deepcopy(VALUES[int(draw.integers(len(VALUES)))])
        return


def _tree_structure(draw: Draw, manifest: dict[str, Any], arrays: Arrays) -> tuple[Any, Arrays] | bytes:
    """Nodes that no tree has: a child, leaf, feature or set that is not there, a loop, a leaf that two share."""
    if "nodes" not in arrays:
        return _boosted_structure(draw, manifest, arrays)
    prefix = "baseline_" if "baseline_nodes" in arrays and draw.random() < 0.4 else ""
    nodes, start = arrays[f"{prefix}nodes"].copy(), arrays[f"{prefix}node_start"]
    at = int(draw.integers(nodes.size))
    tree = int(np.searchsorted(start, at, side="right")) - 1
    word, own, size = int(nodes[at]), at - int(start[tree]), int(start[tree + 1] - start[tree])
    low, child = word & 0xFFFFFFFF, word >> CHILD
    if word & LEAF:
        leaves = (size + 1) // 2
        child = int(
            draw.choice(
                [leaves, leaves + 1, 2**31 - 1, 2**31, 2**32 - 1, *([(child + 1) % leaves] if leaves > 1 else [])]
            )
        )
        if draw.random() < 0.2:
            low &= ~LEAF
            child = own
    else:
        options = [own, 0, size - 1, size, 2**31, 2**32 - 1, max(own - 1, 0)]
        what = int(draw.integers(3))
        if what == 0:
            low = (low & ~FEATURE) | int(draw.choice([len(manifest["plan"]["bins"]), FEATURE]))
        elif what == 1 and low & CATEGORICAL:
            low = (low & 0xFFFF) | int(draw.choice([arrays[f"{prefix}sets"].size // 4, 0xFFFF])) << SET
        else:
            child = int(draw.choice(options))
    nodes[at] = np.uint64(child << CHILD | low)
    return manifest, {**arrays, f"{prefix}nodes": nodes}


def _boosted_structure(draw: Draw, manifest: dict[str, Any], arrays: Arrays) -> tuple[Any, Arrays]:
    """The same of scikit-learn's trees."""
    name = next(name for name in arrays if name.startswith("fit_"))

    def change(entries: dict[str, bytes]) -> None:
        trees = [n for n, c in entries.items() if n.endswith(".npy") and b"'is_leaf'" in c[:1000]]
        loaded = [(n, np.load(io.BytesIO(entries[n]))) for n in trees]
        entry, nodes = [(n, a) for n, a in loaded if not a["is_leaf"].all()][int(draw.integers(3))]
        at = int(draw.choice(np.flatnonzero(nodes["is_leaf"] == 0)))
        what = int(draw.integers(4))
        if what < 2:
            nodes[("left", "right")[what]][at] = int(draw.choice([2**31, 2**32 - 1, len(nodes), at, 0]))
        elif what == 2:
            nodes["feature_idx"][at] = int(draw.choice([2**40, -1, -(2**40), 10_000]))
        else:
            nodes["is_categorical"][at], nodes["bitset_idx"][at] = 1, int(draw.choice([2**31, 2**32 - 1, 10_000]))
        sink = io.BytesIO()
        np.save(sink, nodes)
        entries[entry] = sink.getvalue()

    return manifest, {**arrays, name: _rezipped(arrays[name], change)}


def _rezipped(array: np.ndarray, change: Callable[[dict[str, bytes]], None]) -> np.ndarray:
    """An archive with entries changed; with the checksums that fit."""
    with zipfile.ZipFile(io.BytesIO(array.tobytes())) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    change(entries)
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return np.frombuffer(sink.getvalue(), np.uint8)


def _archive(draw: Draw, manifest: dict[str, Any], arrays: Arrays) -> tuple[Any, Arrays] | bytes:
    """Entries of an archive of boosted trees changed; of a file without any, the manifest."""
    names = [name for name in arrays if name.startswith("fit_")]
    if not names:
        return _manifest_values(draw, manifest, arrays)

    def change(entries: dict[str, bytes]) -> None:
        if draw.random() < 0.5:
            schema = json.loads(entries["schema.json"])
            for _ in range(int(draw.integers(1, 3))):
                _change_json(draw, schema)
            entries["schema.json"] = json.dumps(schema).encode()
            return
        name = str(draw.choice([name for name in entries if name.endswith(".npy")]))
        what = draw.random()
        if what < 0.1:
            del entries[name]
        elif what < 0.2:
            entries[name] = entries[str(draw.choice(list(entries)))]
        elif what < 0.5:
            head = min(200, len(entries[name]))
            entries[name] = _bytes(draw, entries[name][:head]) + entries[name][head:]
        else:
            entries[name] = _bytes(draw, entries[name])

    return manifest, {**arrays, names[0]: _rezipped(arrays[names[0]], change)}


def _bomb(draw: Draw, manifest: dict[str, Any], arrays: Arrays) -> tuple[Any, Arrays] | bytes:
    """A small file that takes gigabytes: Arrow's compression, an archive's, a header of a huge array, huge counts."""
    names = [name for name in arrays if name.startswith("fit_")]
    if names and draw.random() < 0.8:
        huge = (
            np.lib.format.magic(1, 0),
            b"{'descr': '<f8', 'fortran_order': False, 'shape': (%d,), }" % (2 ** int(draw.integers(28, 50))),
        )
        header = huge[0] + len(huge[1]).to_bytes(2, "little") + huge[1]

        def change(entries: dict[str, bytes]) -> None:
            name = str(draw.choice([name for name in entries if name.endswith(".npy")]))
            entries[name] = header if draw.random() < 0.7 else header + bytes(200 << 20)

        return manifest, {**arrays, names[0]: _rezipped(arrays[names[0]], change)}
    if draw.random() < 0.1:
        zeros = np.zeros(40 << 20, np.int64)
        return packed(manifest, {**arrays, str(draw.choice(list(arrays))): zeros}, compression="zstd")
    if draw.random() < 0.5 or "plan" not in manifest:
        return packed(manifest, arrays, compression=str(draw.choice(["zstd", "lz4"])))
    key = str(draw.choice(["n_trees", "bag_size", "n_buckets", "growth_buckets", "seed"]))
    manifest["plan"][key] = int(2 ** int(draw.integers(20, 62)))
    return manifest, arrays


# {kind: (share in percent, mutation)}
KINDS: dict[str, tuple[int, Callable[[Draw, bytes], bytes]]] = {
    "bytes": (14, any_bytes),
    "bytes of header and footer": (14, metadata_bytes),
    "bytes, old digest": (2, old_digest),
    "cut or padded": (4, cut_or_padded),
    "values of arrays": (16, in_depth(_array_values)),
    "shapes of arrays": (10, in_depth(_array_shapes)),
    "values of the manifest": (18, in_depth(_manifest_values)),
    "structure of trees": (12, in_depth(_tree_structure)),
    "entries of archives": (8, in_depth(_archive)),
    "bombs": (2, in_depth(_bomb)),
}
