"""The runtime of MLServer, with a stand-in of the four names it takes from there; MLServer itself is in
`tests/jobs/test_package.py`."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.serving.published import features_of
from uplift_spark.errors import DataError
from uplift_spark.serving.scorer import Scorer


@pytest.fixture
def inference(monkeypatch):
    """The module, imported anew."""
    names = ("mlserver", "mlserver.errors", "mlserver.types", "mlserver.utils")
    modules = {name: ModuleType(name) for name in names}

    class MLModel:
        def __init__(self, settings):
            self._settings, self.name, self.version = settings, settings.name, "v1"

    class InferenceError(Exception):
        pass

    async def get_model_uri(settings, wellknown_filenames=()):
        return settings.uri

    vars(modules["mlserver"]).update(MLModel=MLModel)
    vars(modules["mlserver.errors"]).update(InferenceError=InferenceError)
    kinds = ("InferenceRequest", "InferenceResponse", "Parameters", "ResponseOutput")
    vars(modules["mlserver.types"]).update({name: type(name, (SimpleNamespace,), {}) for name in kinds})
    vars(modules["mlserver.utils"]).update(get_model_uri=get_model_uri)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "uplift_spark.serving.inference", raising=False)
    import uplift_spark.serving.inference as module

    yield module
    sys.modules.pop("uplift_spark.serving.inference", None)


def test_columns_give_the_effects_of_batch_scores(inference, trained):
    frame, model = trained
    rows = [features_of(frame, row) for row in range(5)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    scorer = Scorer(model.forest)
    effects = inference.tensor_effects(scorer, columns)
    expected = [one for of_unit in scorer.effects([scorer.encoder.encode(row) for row in rows]) for one in of_unit]
    assert effects["uplift"] == [one.uplift for one in expected]
    assert effects["upper"] == [one.upper for one in expected]
    assert all(isinstance(one, bool) for one in effects["low_support"])
    with pytest.raises(DataError, match="the request has no inputs"):
        inference.tensor_effects(scorer, {})
    with pytest.raises(DataError, match="input 'spend' has 4 values, 'age' 5"):
        inference.tensor_effects(scorer, {"age": [1.0] * 5, "spend": [1.0] * 4})
    with pytest.raises(DataError, match="feature 'region' is missing"):
        inference.tensor_effects(scorer, {name: values for name, values in columns.items() if name != "region"})


def test_the_runtime_loads_a_file_and_answers_tensors(inference, trained, tmp_path):
    frame, model = trained
    (tmp_path / "model.uplift").write_bytes(model.forest.to_bytes())
    runtime = inference.UpliftRuntime(SimpleNamespace(name="spring", uri=str(tmp_path / "model.uplift")))
    assert asyncio.run(runtime.load())
    rows = [features_of(frame, row) for row in range(3)]
    inputs = [
        SimpleNamespace(
            name=name,
            datatype="BYTES" if name == "region" else "FP64",
            data=SimpleNamespace(
                root=[row[name].encode() if isinstance(row[name], str) else row[name] for row in rows]
            ),
        )
        for name in rows[0]
    ]
    answer = asyncio.run(runtime.predict(SimpleNamespace(inputs=inputs)))
    assert [one.name for one in answer.outputs] == list(inference.INFERENCE_OUTPUTS)
    assert all(one.shape == [3, 2] for one in answer.outputs) and answer.outputs[0].datatype == "FP64"
    with pytest.raises(inference.InferenceError, match="is missing"):
        asyncio.run(runtime.predict(SimpleNamespace(inputs=inputs[1:])))
