"""The script MLflow runs to build a registered forest ("models from code"): the artifact holds arrays, never pickles.

Not imported by the package: `registry` hands this file's path to MLflow, which copies it beside the forest's file.
"""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel

from uplift_spark import load_model


class MlflowUpliftModel(PythonModel):
    """`predict`: one row per unit in, one row per unit and treated level out (see `MlflowUpliftModel.effect`)."""

    def load_context(self, context: Any) -> None:
        self.forest = load_model(context.artifacts["forest"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        return self.forest.effect(model_input)


mlflow.models.set_model(MlflowUpliftModel())
