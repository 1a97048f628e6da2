"""Sections `refresh` and `retrain` of a configuration: new labels into trees that stand, and when a model is fitted
anew. `config` names them; see there."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.sections.source import STRICT

PlanFigure = Literal["policy_value_dr", "policy_value_ipw", "multi_arm_auuc", "multi_arm_qini"]
"""Figures of a model's rule that `uplift compare` writes for all levels together; more is better."""


@dataclass(frozen=True, config=STRICT)
class Refresh:
    """`refresh`, for `uplift refresh`: new labels into the champion's trees.

    half_life_days  a row counts half as much as one assigned so many days later; None: all alike
    """

    RUNS: ClassVar = {"refresh": "campaign roles refresh registry.name"}
    half_life_days: Annotated[float, Field(gt=0)] | None = None


_FLOORS: dict[PlanFigure, float] = {"policy_value_dr": 0.0}


@dataclass(frozen=True, config=STRICT)
class Retrain:
    """`retrain`, for `uplift retrain`: when a model is fitted anew, and what a new one must show to be the challenger.

    volume         more new units with mature labels than these are a reason by themselves
    least          with fewer new ones there is nothing to learn, and no reason counts
    age_days       days between the newest unit that the champion was trained on and the newest monitored window, from
                   which age is a reason; null: never
    drift_size     least distance of a feature that drifts lastingly, and
    drift_p        largest p-value of it, adjusted for all columns
    lift_drop      share of the lift that may be lost
    lift_windows   of so many of the last windows with mature labels
    alpha          probability that a decision sees a drop of the lift where nothing has changed
    quiet_windows  so many of the newest windows must be without an incident
    quarantine     share of the newly ingested rows that may be in quarantine
    arm_units      units that the training rows must have of every level
    holdout        what a new model is validated on: units of the hold-out that are new since the champion was trained,
                   or all
    metric         figure by which it is held against the champion
    margin         share of the champion's figure by which the new one may be worse
    error          probability that one which is worse by this share passes
    floors         {figure: what the new model must exceed, by the lower bound of level 1 - error}
    """

    RUNS: ClassVar = {
        # All that its jobs depend on, too: features, nuisances, refresh, train, compare.
        "retrain": "campaign roles roles.direction labels alarms leakage learner forest refresh nuisances retrain "
        "monitoring.hours monitoring.alpha economics lift compare.points experiment feature_definitions outcomes "
        "trial_outcomes random_arms_only seed holdout registry.name"
    }
    volume: Annotated[int, Field(ge=1)] = 1_000_000
    least: Annotated[int, Field(ge=1)] = 1000
    age_days: Annotated[float, Field(gt=0)] | None = 90.0
    drift_size: Annotated[float, Field(gt=0, lt=1)] = 0.05
    drift_p: Annotated[float, Field(ge=1e-9, le=0.5)] = 0.01
    lift_drop: Annotated[float, Field(gt=0, lt=1)] = 0.05
    lift_windows: Annotated[int, Field(ge=1, le=366)] = 28
    alpha: Annotated[float, Field(ge=1e-6, le=0.1)] = 0.001
    quiet_windows: Annotated[int, Field(ge=1, le=100)] = 2
    quarantine: Annotated[float, Field(ge=0, le=1)] = 0.01
    arm_units: Annotated[int, Field(ge=1)] = 500
    holdout: Literal["new", "all"] = "new"
    metric: PlanFigure = "policy_value_dr"
    margin: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    error: Annotated[float, Field(ge=1e-6, le=0.1)] = 0.01
    floors: dict[PlanFigure, float] = Field(default_factory=lambda: dict(_FLOORS))

    def __post_init__(self) -> None:
        if self.least > self.volume:
            raise ConfigError(
                f"retrain has its thresholds the wrong way round: least ({self.least:,}) is above volume "
                f"({self.volume:,}), so that enough new units would never be a reason; swap them"
            )
