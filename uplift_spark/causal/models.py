"""What a model of effects is, whoever learnt it: how it is asked, its table of effects, its file.

A file is one Arrow record of arrays with a manifest and a SHA-256 at its end; nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from uplift_spark.causal.binning import FeatureBins
from uplift_spark.causal.little_bags import Z95
from uplift_spark.vocabulary import TREATMENT, Levels, ModelFileError, Roles

FORMAT = 3
DIGEST = 32  # bytes of SHA-256 that end the file
# What files of boosted trees and nuisances may hold beside numpy's and scikit-learn's plain parts.
_TRUSTED = [
    "functools.partial",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.utils.validation.check_array",
    "uplift_spark.causal.crossfit.Blend",
    "uplift_spark.causal.crossfit.Fitted",
]


class Model(Protocol):
    """A trained model of one or several outcomes."""

    @property
    def roles(self) -> Roles:
        """Columns it was trained on."""
        ...

    @property
    def levels(self) -> Levels:
        """Those that effects are of, control first."""
        ...

    @property
    def bins(self) -> tuple[FeatureBins, ...]:
        """Its features, in their order."""
        ...

    @property
    def manifest(self) -> dict[str, Any]:
        """What it is, as plain JSON values."""
        ...

    def of(self, outcome: str) -> Model:
        """The model of one outcome alone. Raises ConfigError if it was not trained for it."""
        ...

    def effect_arrays(
        self, batch: pa.RecordBatch | pa.Table, threads: int = 1, *, errors: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(effect, standard error, low support) of every row and treated level, each [n, K-1]."""
        ...

    def to_bytes(self) -> bytes:
        """The model file's content."""
        ...


def effect_table(model: Model, batch: pa.RecordBatch | pa.Table, threads: int = 1) -> pa.Table:
    """One row per unit and treated level, unit-major, in the columns of `vocabulary.EFFECT_COLUMNS`."""
    effect, se, low = model.effect_arrays(batch, threads)
    k = effect.shape[1]
    units = batch.column(model.roles.unit)
    flat = units.combine_chunks() if isinstance(units, pa.ChunkedArray) else units
    names = pa.array(np.tile(np.arange(k, dtype=np.int32), batch.num_rows))
    columns = {
        model.roles.unit: flat.take(pa.array(np.repeat(np.arange(batch.num_rows), k))),
        TREATMENT: pa.DictionaryArray.from_arrays(names, list(model.levels.treated)).cast(pa.string()),
        "uplift": effect.ravel(),
        "uplift_se": se.ravel(),
        "uplift_lower": (effect - Z95 * se).ravel(),
        "uplift_upper": (effect + Z95 * se).ravel(),
        "low_support": low.ravel(),
    }
    return pa.table(columns)


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


def named(source: str | Path | bytes) -> str:
    """What errors call a model file."""
    return "model bytes" if isinstance(source, bytes) else f"model file {source}"


def read_file(source: str | Path | bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and flat arrays of a model file (memory-mapped) or its bytes.

    Raises ModelFileError if it is missing, truncated, edited, of another format, or no model at all.
    """
    name = named(source)
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
        arrays = {n: table.column(n).chunk(0).flatten().to_numpy() for n in table.column_names}
    except (pa.ArrowException, KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        raise unreadable(name, error) from error
    if manifest.get("format") != FORMAT:
        raise ModelFileError(f"{name} has format {manifest.get('format')}, this version reads {FORMAT}: retrain it")
    return manifest, arrays


def unreadable(name: str, error: Exception) -> ModelFileError:
    """What a file whose parts do not fit together raises."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ModelFileError(f"{name} is not a readable model ({reason}): train or download it again")


def save_file(path: str | Path, content: bytes) -> None:
    """Write a model file; appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def stored(parts: Any) -> np.ndarray:
    """scikit-learn's estimators, and lists and mappings of them, as skops writes them: uint8. Equal estimators do not
    have equal bytes: these tell when they were written."""
    from zipfile import ZIP_DEFLATED

    import skops.io

    return np.frombuffer(skops.io.dumps(parts, compression=ZIP_DEFLATED), np.uint8)


def restored(content: bytes) -> Any:
    """The inverse of `stored`; raises ModelFileError before anything is loaded that those estimators do not need."""
    import skops.io

    if strangers := sorted(set(skops.io.get_untrusted_types(data=content)) - set(_TRUSTED)):
        raise ModelFileError(f"the model's file holds {', '.join(strangers)}, which is not loaded: train it again")
    return skops.io.loads(content, trusted=_TRUSTED)
