"""What jobs train, and train again: a forest of one of three kinds, or a meta-learner (R3.3, R3.7); or refresh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyspark.sql import functions as F

from uplift_spark import CausalForest, InstrumentalForest, MetaLearner
from uplift_spark.config import DAY, Config
from uplift_spark.operations.runs import Say
from uplift_spark.vocabulary import DELIVERED, Roles

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from uplift_spark.flow.verbs import UpliftModel


def params_of(config: Config) -> dict[str, Any]:
    """Arguments of the learner, as the configuration has them; they tell which it is."""
    asked = config.learner
    if asked.kind == "forest":
        return {**vars(config.forest), "seed": config.seed}
    if asked.kind == "forest_per_level":
        return {**vars(config.forest), "seed": config.seed, "per_level": True}
    if asked.kind == "instrumental_forest":
        return {**vars(config.forest), "seed": config.seed, "delivered": DELIVERED}
    return {**vars(asked), "seed": config.seed}


def train(params: Mapping[str, Any], frame: DataFrame, roles: Roles, say: Say) -> UpliftModel:
    """Train with recorded parameters. Raises as the `fit` of the learner."""
    if "delivered" in params:
        given = {name: value for name, value in params.items() if name != "delivered"}
        return InstrumentalForest(**given).fit(frame, roles, params["delivered"], say)
    learner = MetaLearner(**params) if "kind" in params else CausalForest(**params)
    return learner.fit(frame, roles, say)


def refreshed(model: UpliftModel, rows: DataFrame, how: Mapping[str, Any], say: Say) -> UpliftModel:
    """The model's trees with sums of training rows; `how` holds half_life_days, rows being of the day (UTC) of their
    assignment. Raises as `UpliftModel.refresh`."""
    day = F.floor(F.unix_micros("assigned_at") / F.lit(DAY))
    return model.refresh(rows.withColumn("_day_assigned", day), how["half_life_days"], "_day_assigned", say)
