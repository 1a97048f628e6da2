"""scikit-learn's estimators in model files, as skops writes them, and what is checked before and after they are read.

skops loads no type that is not trusted, but trusts what the types hold; scikit-learn's compiled trees follow every
number of theirs without looking. So an archive is read in three steps: sizes and types from its table and its schema,
before anything is unpacked; then skops; then every tree, before anything is predicted.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import numpy as np

from uplift_spark.errors import ModelFileError

# Classes and functions that boosted trees and nuisances are made of, by their names or how those begin.
_CLASSES = (
    *("sklearn.ensemble._hist_gradient_boosting.", "sklearn._loss.", "sklearn.compose._column_transformer."),
    *("sklearn.impute._base.", "sklearn.linear_model._logistic.", "sklearn.linear_model._ridge."),
    *("sklearn.pipeline.Pipeline", "sklearn.preprocessing._data.StandardScaler"),
    *("sklearn.preprocessing._encoders.", "sklearn.preprocessing._label.LabelEncoder"),
    *("sklearn.preprocessing._function_transformer.FunctionTransformer", "sklearn.utils.validation.check_array"),
    *("builtins.", "functools.partial", "numpy."),
    *("uplift_spark.learners.nuisances.Blend", "uplift_spark.learners.nuisances.NuisanceModels"),
)
# What skops itself does not trust of these.
_TRUSTED = [
    "functools.partial",
    "numpy.dtype",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.utils.validation.check_array",
    "uplift_spark.learners.nuisances.Blend",
    "uplift_spark.learners.nuisances.NuisanceModels",
]
_LOADERS = {
    *("DictNode", "ListNode", "TupleNode", "JsonNode", "SliceNode", "NdArrayNode", "DTypeNode", "TypeNode"),
    *("ObjectNode", "LossNode", "FunctionNode", "PartialNode", "RandomGeneratorNode"),
}
# An archive may unpack to so many times its size, and so many bytes more: those of boosted trees do to ten times.
_RATIO, _BASE = 100, 16 << 20
_SCHEMA = "schema.json"
_BITSET_WORDS = 8


def stored(parts: Any) -> np.ndarray:
    """scikit-learn's estimators, and lists and mappings of them, as skops writes them: uint8. Equal estimators do not
    have equal bytes: these tell when they were written."""
    import skops.io

    return np.frombuffer(skops.io.dumps(parts, compression=ZIP_DEFLATED), np.uint8)


def restored(content: bytes) -> Any:
    """The inverse of `stored`.

    Raises ModelFileError before anything is loaded that those estimators do not need, and ValueError, or what skops
    raises, for an archive that is none of them.
    """
    import skops.io

    _check_archive(content)
    try:
        parts = skops.io.loads(content, trusted=_TRUSTED)
    except TypeError as error:
        if not str(error).startswith("Untrusted types"):
            raise
        raise _not_loaded([str(error).splitlines()[0].partition(": ")[2].strip("[].")]) from error
    for boosted in _boosted(parts):
        _check_boosted(boosted)
    return parts


# --------------------------------------------------------------------------------------------------------------------
# Before skops: nothing larger than it says, nothing larger than such an archive can be, no type that is none of ours.


def _check_archive(content: bytes) -> None:
    most = _RATIO * len(content) + _BASE
    with ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type not in (ZIP_STORED, ZIP_DEFLATED) for entry in entries.values()):
            raise ValueError("an archive of its estimators is compressed in a way that none is")
        if sum(entry.file_size for entry in entries.values()) > most:
            raise ValueError("an archive of its estimators unpacks to far more than any does")
        for name in entries:
            if name != _SCHEMA:
                _check_array(archive, name, entries[name].file_size)
        strangers, read = set(), 0
        for node in _nodes(json.loads(archive.read(_SCHEMA))):
            name = f"{node.get('__module__')}.{node.get('__class__')}"
            if node["__loader__"] not in _LOADERS or not name.startswith(_CLASSES):
                strangers.add(name)
            if "file" in node:
                read += entries[node["file"]].file_size
    if strangers:
        raise _not_loaded(strangers)
    if read > most:  # an entry may be read once for every place that names it
        raise ValueError("an archive of its estimators unpacks to far more than any does")


def _not_loaded(types: Iterable[str]) -> ModelFileError:
    names = ", ".join(sorted(types))[:200]
    return ModelFileError(f"the model's file holds {names}, which is not loaded: train it again")


def _check_array(archive: ZipFile, name: str, size: int) -> None:
    """The header of an array says how much memory to take: no more than there is to read."""
    with archive.open(name) as entry:
        start = entry.read(10)
        if start[:8] != np.lib.format.magic(1, 0):
            raise ValueError(f"its array {name[:80]} is of another format")
        header = entry.read(int.from_bytes(start[8:], "little"))
    shape, kind = _header(start[8:] + header)
    values = size - len(start) - len(header)
    count = 1
    for length in shape:
        count *= length
    if kind.hasobject or min(shape, default=0) < 0 or count * kind.itemsize != values:
        raise ValueError(f"its array {name[:80]} is not of the size that it says")


@lru_cache(1024)
def _header(text: bytes) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and type that a header says; those of many trees are the same, and numpy takes long to read one."""
    shape, _, kind = np.lib.format.read_array_header_1_0(io.BytesIO(text))
    return shape, kind


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every node of skops' schema; without recursion, as one may be as deep as it likes."""
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            stack.extend(value.values())
            if "__loader__" in value:
                yield value
        elif isinstance(value, list):
            stack.extend(value)


# --------------------------------------------------------------------------------------------------------------------
# After skops: trees that are trees.


def _boosted(value: Any) -> list[Any]:
    """Every model of boosted trees within a value, wherever it stands."""
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    models, known, stack = [], set(), [value]
    while stack:
        value = stack.pop()
        if id(value) in known:
            continue
        known.add(id(value))
        if isinstance(value, HistGradientBoostingClassifier | HistGradientBoostingRegressor):
            models.append(value)
        elif isinstance(value, dict):
            stack.extend(value.values())
        elif isinstance(value, list | tuple):
            stack.extend(value)
        elif isinstance(value, np.ndarray):
            stack.extend(value.ravel().tolist() if value.dtype == object else ())
        elif hasattr(value, "__dict__") and not isinstance(value, type):
            stack.extend(vars(value).values())
    return models


def _check_boosted(model: Any) -> None:
    """Raise ValueError unless every tree of a model of boosted trees follows numbers of its own and of its features."""
    features, categorical = model.n_features_in_, model._bin_mapper.is_categorical_
    if not isinstance(features, int) or not isinstance(categorical, np.ndarray) or categorical.dtype.kind not in "bu":
        raise ValueError("boosted trees do not say what their features are")
    width = model._preprocess_X(np.zeros((1, features)), reset=False).shape
    if width != (1, features) or categorical.shape != (features,) or getattr(model, "_in_fit", False):
        raise ValueError(f"boosted trees of {features} features are given {width[1]}")
    classes = getattr(model, "classes_", None)
    each = len(classes) if isinstance(classes, np.ndarray) and len(classes) > 2 else 1
    if len(model._predictors) > 100_000 or model.n_trees_per_iteration_ != each:
        raise ValueError(f"boosted trees are not {each} an iteration")
    for trees in model._predictors:
        if not isinstance(trees, list | tuple) or len(trees) != each:
            raise ValueError(f"boosted trees are not {each} an iteration")
        for tree in trees:
            _check_tree(tree, categorical)


def _check_tree(tree: Any, categorical: np.ndarray) -> None:
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE

    nodes, sets = tree.nodes, tree.raw_left_cat_bitsets
    if not isinstance(nodes, np.ndarray) or nodes.dtype != PREDICTOR_RECORD_DTYPE or nodes.ndim != 1 or not nodes.size:
        raise ValueError("boosted trees have no nodes")
    if not isinstance(sets, np.ndarray) or sets.dtype != np.uint32 or sets.shape != (len(sets), _BITSET_WORDS):
        raise ValueError("boosted trees have no sets of categories")
    own = np.arange(nodes.size)
    splits = nodes["is_leaf"] == 0
    inner = nodes[splits]
    children = np.stack([inner["left"], inner["right"]]).astype(np.int64)
    # scikit-learn numbers nodes on the way down, and each but the root has one parent: there are no loops.
    if (children <= own[splits]).any() or not np.array_equal(np.sort(children.ravel()), own[1:]):
        raise ValueError("boosted trees have children that are not their own")
    if ((inner["feature_idx"] < 0) | (inner["feature_idx"] >= categorical.size)).any():
        raise ValueError("boosted trees split by features that are not there")
    by_set = inner[inner["is_categorical"] != 0]
    if (by_set["bitset_idx"] >= len(sets)).any() or not categorical[by_set["feature_idx"]].all():
        raise ValueError("boosted trees split by sets that are not there")
    if not np.isfinite(nodes["value"]).all() or np.isnan(inner["num_threshold"]).any():
        raise ValueError("boosted trees hold values that are not finite")
