"""What MLflow calls to read a registered model's file: `mlflow.pyfunc.load_model` imports this module by its name.

The model's folder holds arrays and the name of this module, no code. The name is part of the folder, though, and MLflow
imports whatever it names: who may write to the folder decides what `mlflow.pyfunc.load_model` runs. `Registry.load`
reads the file alone, and looks at its signature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uplift_spark.estimators import UpliftModel, load_model

if TYPE_CHECKING:
    import pandas as pd


class MlflowUpliftModel:
    """`predict`: one row per unit in, one row per unit and treated level out (see `UpliftModel.effect`)."""

    def __init__(self, model: UpliftModel) -> None:
        self.model = model

    def predict(self, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Effects of the units of a frame; `params` are MLflow's, and none is known."""
        return self.model.effect(model_input)


def _load_pyfunc(path: str) -> MlflowUpliftModel:
    return MlflowUpliftModel(load_model(path))
