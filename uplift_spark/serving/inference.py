"""The model in MLServer and KServe, by the Open Inference Protocol: one named tensor a feature in, effects out.

MLServer imports this module by the name that `model-settings.json` has; nothing else does, as MLServer needs other
versions of its libraries than `uplift serve`. Features are judged as everywhere: what is missing or of another kind is
refused, nothing is filled in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlserver import MLModel
from mlserver.errors import InferenceError
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, ResponseOutput
from mlserver.utils import get_model_uri

from uplift_spark.errors import DataError, UpliftError
from uplift_spark.learners.metalearners import load_any
from uplift_spark.serving.scorer import Scorer
from uplift_spark.serving.store import MODEL

INFERENCE_OUTPUTS = ("uplift", "uplift_se", "lower", "upper", "low_support")
"""Tensors that are answered, each of shape [units, treated levels]."""


def tensor_effects(scorer: Scorer, tensors: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Effects on units whose features come as columns.

    Args:
        scorer: Of the model.
        tensors: {feature: a value of each unit}.

    Returns:
        {output of `INFERENCE_OUTPUTS`: values, level by level within a unit}; None where the model cannot tell.

    Raises:
        DataError: A feature is missing, unknown, of another kind, or of another length than the first.
    """
    if not tensors:
        raise DataError("the request has no inputs: send one tensor for each feature")
    lengths = {name: len(values) for name, values in tensors.items()}
    first, n = next(iter(lengths.items()))
    if wrong := [name for name, length in lengths.items() if length != n]:
        raise DataError(f"input {wrong[0]!r} has {lengths[wrong[0]]} values, {first!r} {n}: send one for each unit")
    rows = [dict(zip(tensors, values, strict=True)) for values in zip(*tensors.values(), strict=True)]
    effects = [one for of_unit in scorer.effects([scorer.encoder.encode(row) for row in rows]) for one in of_unit]
    return {name: [_finite(getattr(one, name)) for one in effects] for name in INFERENCE_OUTPUTS}


def _finite(value: float | bool) -> float | bool | None:
    return value if isinstance(value, bool) or math.isfinite(value) else None  # JSON has no NaN


class UpliftRuntime(MLModel):
    """A model of ours as MLServer runs it."""

    async def load(self) -> bool:
        """Read the file that `parameters.uri` names, and warm it before MLServer says that it is ready."""
        file = Path(await get_model_uri(self._settings, wellknown_filenames=[MODEL]))
        self._scorer = Scorer(load_any(file.read_bytes()))
        self._scorer.warm()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Effects on the request's units."""
        tensors = {one.name: list(one.data.root) for one in payload.inputs}
        texts = {one.name for one in payload.inputs if one.datatype == "BYTES"}
        try:
            effects = tensor_effects(self._scorer, {name: _decoded(tensors[name], name in texts) for name in tensors})
        except UpliftError as error:
            raise InferenceError(str(error)) from error
        levels = list(self._scorer.levels)
        shape = [len(effects["uplift"]) // len(levels), len(levels)]
        outputs = [
            ResponseOutput(
                name=name,
                shape=shape,
                datatype="BOOL" if name == "low_support" else "FP64",
                data=values,
                parameters=Parameters(levels=levels),
            )
            for name, values in effects.items()
        ]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def _decoded(values: list[Any], text: bool) -> list[Any]:
    return [one.decode() if text and isinstance(one, bytes) else one for one in values]
