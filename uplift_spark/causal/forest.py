"""The forest: structure and leaf sums as flat arrays, one Arrow file with a SHA-256 at its end, effects with errors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from uplift_spark.causal.binning import apply_bins
from uplift_spark.causal.kernels import predict
from uplift_spark.causal.rows import Plan, frozen
from uplift_spark.stats.moments import normal_quantile
from uplift_spark.vocabulary import TREATMENT, Levels, ModelFileError, Roles

FORMAT = 1
DIGEST = 32  # bytes of SHA-256 that end the file
Z95 = normal_quantile(0.95)
_ROWS_PER_CALL = 1 << 14
LOW_SUPPORT = 0.5  # a level is thinly supported at a unit when fewer than half of its leaves hold level and control


class Structure(NamedTuple):
    """Trees back to back. Tree t owns nodes[node_start[t]:node_start[t+1]], likewise sets and leaves; may own none."""

    nodes: np.ndarray
    node_start: np.ndarray
    sets: np.ndarray
    set_start: np.ndarray
    leaf_start: np.ndarray

    @property
    def n_trees(self) -> int:
        return self.node_start.size - 1

    @property
    def n_leaves(self) -> int:
        return int(self.leaf_start[-1])


class Tree(NamedTuple):
    """One grown tree before it joins the forest."""

    number: int
    nodes: np.ndarray
    sets: np.ndarray
    n_leaves: int


def assemble(trees: list[Tree], n_trees: int) -> Structure:
    """Concatenate trees in the order of their numbers; a number without a tree owns nothing."""
    ordered = sorted(trees, key=lambda tree: tree.number)
    sizes = np.zeros((3, n_trees + 1), np.int64)
    for tree in ordered:
        sizes[:, tree.number + 1] = (tree.nodes.size, len(tree.sets), tree.n_leaves)
    starts = np.cumsum(sizes, axis=1)
    nodes = np.concatenate([t.nodes for t in ordered]) if ordered else np.empty(0, np.uint64)
    # The kernels index sets unconditionally, so there is always one row.
    sets = np.concatenate([*(t.sets for t in ordered), np.zeros((1, 4), np.uint64)])
    return Structure(nodes, starts[0], sets, starts[1], starts[2])


@dataclass(frozen=True)
class Forest:
    """A trained forest.

    sums    int64 [leaves, K, 3]: fixed-point Σw, Σwy, Σwy² of the estimation rows per leaf and level
    facts   what training found: rows, rows per level, bucket statuses
    """

    plan: Plan
    structure: Structure
    sums: np.ndarray
    facts: Mapping[str, Any]

    @property
    def levels(self) -> Levels:
        return self.plan.levels

    @property
    def roles(self) -> Roles:
        return self.plan.roles

    @property
    def manifest(self) -> dict[str, Any]:
        """Plan and facts as plain JSON values."""
        return {"format": FORMAT, "plan": self.plan.to_dict(), "facts": dict(self.facts)}

    @cached_property
    def _shares(self) -> tuple[np.ndarray, np.ndarray]:
        """(values float64 [leaves, K, 2], usable bool [leaves]): per-leaf shares the effects are solved from."""
        w_bits, y_bits, _ = self.plan.exponents
        total = self.sums[:, :, 0].sum(axis=1).astype(np.float64)
        usable = total > 0
        weight = np.where(usable, total, 1.0)[:, None]
        values = np.empty((*self.sums.shape[:2], 2))
        values[:, :, 0] = self.sums[:, :, 0] / weight
        values[:, :, 1] = np.ldexp(self.sums[:, :, 1] / weight, w_bits - y_bits)
        return values, usable

    def effect_arrays(
        self, batch: pa.RecordBatch | pa.Table, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(effect, standard error, low support) of every row and treated level, each [n, K-1].

        Effects are on the outcome's scale against the control level; NaN where no leaf holds the level or the control.
        """
        bins = apply_bins(batch, self.plan.bins)
        shape = (bins.shape[0], len(self.levels) - 1)
        effect, variance, support = np.empty(shape), np.empty(shape), np.empty(shape)
        values, usable = frozen(self._shares)
        structure, bins = Structure(*frozen(self.structure)), frozen([bins])[0]
        design = (self.plan.bag_size, self.plan.n_buckets)

        def some_rows(low: int) -> None:
            part = np.s_[low : low + _ROWS_PER_CALL]
            out = (effect[part], variance[part], support[part])
            predict(structure, values, usable, design, bins[part], *out)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(some_rows, range(0, len(bins), _ROWS_PER_CALL)))
        return effect, np.sqrt(variance * _left_out(self.plan)), support < LOW_SUPPORT

    def effect_table(self, batch: pa.RecordBatch | pa.Table, threads: int = 1) -> pa.Table:
        """One row per unit and treated level, unit-major, in the columns of `vocabulary.EFFECT_COLUMNS`."""
        effect, se, low = self.effect_arrays(batch, threads)
        k = effect.shape[1]
        units = batch.column(self.roles.unit)
        flat = units.combine_chunks() if isinstance(units, pa.ChunkedArray) else units
        names = pa.array(np.tile(np.arange(k, dtype=np.int32), batch.num_rows))
        columns = {
            self.roles.unit: flat.take(pa.array(np.repeat(np.arange(batch.num_rows), k))),
            TREATMENT: pa.DictionaryArray.from_arrays(names, list(self.levels.treated)).cast(pa.string()),
            "uplift": effect.ravel(),
            "uplift_se": se.ravel(),
            "uplift_lower": (effect - Z95 * se).ravel(),
            "uplift_upper": (effect + Z95 * se).ravel(),
            "low_support": low.ravel(),
        }
        return pa.table(columns)

    def to_bytes(self) -> bytes:
        """The model file's content; equal forests give equal bytes."""
        arrays = {**self.structure._asdict(), "sums": self.sums}
        manifest = json.dumps(self.manifest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        columns = [_packed(array) for array in arrays.values()]
        fields = [pa.field(n, c.type) for n, c in zip(arrays, columns, strict=True)]
        schema = pa.schema(fields, metadata={"uplift_manifest": manifest})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.record_batch(columns, schema=schema))
        content = sink.getvalue().to_pybytes()
        return content + hashlib.sha256(content).digest()

    def save(self, path: str | Path) -> None:
        """Write the model file; appears whole or not at all."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_bytes(self.to_bytes())
        partial.replace(path)


def _left_out(plan: Plan) -> float:
    """Factor on the little-bag variance for estimating outside a tree's own bucket.

    Trees of one bag leave out different buckets. With c_b a bucket's part in a half-sample's deviation, tree b shows
    (Σc - c_b) / (B - 1): the correction for noise between a bag's trees then leaves (B - 2) / (B - 1)² of Var(c) where
    the forest, which leaves out every bucket in turn, has 1 / B. Below four buckets a bag repeats them: no factor.
    """
    b = plan.n_buckets
    return (b - 1) ** 2 / (b * (b - 2)) if b >= plan.bag_size else 1.0


def _packed(array: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(array).ravel())
    return pa.LargeListArray.from_arrays(pa.array([0, len(flat)], pa.int64()), flat)


def load_forest(source: str | Path | bytes) -> Forest:
    """Read a model file (memory-mapped) or its bytes.

    Raises ModelFileError if the file is missing, truncated, edited, of another format, or no model at all; nothing in
    it is ever executed.
    """
    name = "model bytes" if isinstance(source, bytes) else f"model file {source}"
    try:
        buffer = pa.py_buffer(source) if isinstance(source, bytes) else pa.memory_map(str(source)).read_buffer()
    except (OSError, pa.ArrowException) as error:
        raise ModelFileError(f"{name} cannot be read ({str(error).splitlines()[0]}): check its path") from error
    content = buffer.slice(0, max(buffer.size - DIGEST, 0))
    # Before parsing: Arrow's reader ends the whole process on some damaged files.
    if hashlib.sha256(content).digest() != buffer.slice(content.size).to_pybytes():
        raise ModelFileError(f"{name} is damaged, edited or no model: train or download it again")
    try:
        table = pa.ipc.open_file(content).read_all()
        table.validate(full=True)
        manifest = json.loads(table.schema.metadata[b"uplift_manifest"])
        arrays = {n: table.column(n).chunk(0).flatten().to_numpy() for n in (*Structure._fields, "sums")}
        arrays["sets"] = arrays["sets"].reshape(-1, 4)
        return _rebuilt(manifest, arrays, name)
    except (pa.ArrowException, KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelFileError(f"{name} is not a readable model ({reason}): train or download it again") from error


def _rebuilt(manifest: Mapping[str, Any], arrays: dict[str, np.ndarray], name: str) -> Forest:
    if manifest.get("format") != FORMAT:
        raise ModelFileError(f"{name} has format {manifest.get('format')}, this version reads {FORMAT}: retrain it")
    plan = Plan.from_dict(manifest["plan"])
    sums = arrays.pop("sums").reshape(-1, len(plan.levels), 3)
    return Forest(plan, Structure(**arrays), sums, manifest["facts"])


def average_effect(forest: Forest) -> dict[str, float]:
    """Average effect of each treated level over the training rows, from the leaf sums of all trees; NaN if absent."""
    totals = forest.sums.sum(axis=0).astype(np.float64)
    w_bits, y_bits, _ = forest.plan.exponents
    means = [math.ldexp(s / n, w_bits - y_bits) if n else math.nan for n, s, _ in totals]
    return {name: means[k + 1] - means[0] for k, name in enumerate(forest.levels.treated)}
