"""A campaign whose published model is in a registry and was evaluated; all in a folder, without Spark."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from deltalake import write_deltalake

from tests.forest.frames import arm_roles
from tests.serving.published import config_of, publish
from uplift_spark import UpliftModel
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.registry.models import Origin, Registered, Registry, log_facts

QINI = (0.021, 0.009, 0.033)
"""Value and interval of the metric `qini` of level 10%."""


def registered(config: Config, model: UpliftModel) -> tuple[Registry, Registered]:
    """Register the model as version 1, and make it the champion."""
    registry = Registry.of(config)
    forest = model.forest
    roles = replace(arm_roles(), unit="unit_id", treatment="treatment")
    kinds = {one.name: "string" if one.categorical else "double" for one in forest.bins}
    origin = Origin(
        "train-1", roles, {"unit_id": "string", **kinds}, {"silver.training_spring": 0}, 0, "v1.2.3",
        {"n_trees": 16, "seed": 0, "kind": "forest"},
    )  # fmt: skip
    version = registry.log_model("spring", forest.to_bytes(), origin, *log_facts(forest, 1.0))
    registry.set_alias(version, "champion")
    return registry, version


def evaluated(campaign: Campaign, metrics: dict[str, tuple[float, float, float]] | None = None) -> str:
    """Write scores of version 1 and its evaluation; returns the lift run's id."""
    path = Path(campaign.config.lakehouse.path)
    now = pa.array([pd.Timestamp("2025-02-01", tz="UTC")], pa.timestamp("us", tz="UTC"))
    row: dict[str, Any] = {"run_id": ["score-1"], "model_name": ["spring"], "model_version": ["1"]}
    scores = {**row, "unit_id": ["u1"], "treatment": ["10%"], "uplift": [0.1], "feature_version": [0]}
    write_deltalake(path / "gold" / "uplift_scores", pa.table({**scores, "scored_at": now}), mode="overwrite")
    run_id = campaign.run_id("lift", scores=campaign.last_scored(1))
    figures = metrics or {"qini": QINI}
    n = len(figures)
    columns = dict(zip(("value", "lower", "upper"), map(list, zip(*figures.values(), strict=True)), strict=True))
    same = {"run_id": run_id, "model_version": "1", "outcome": "y", "treatment": "10%"}
    table = pa.table({**{name: [text] * n for name, text in same.items()}, "metric": list(figures), **columns})
    write_deltalake(path / "gold" / "uplift_metrics", table, mode="overwrite")
    return str(run_id)


def known_campaign(folder: Path, frame: pd.DataFrame, model: UpliftModel, **serving: Any) -> Campaign:
    """A campaign that is published, registered and evaluated."""
    config = config_of(folder, **serving)
    publish(config, frame, model, 20, at=time.time())
    registered(config, model)
    campaign = Campaign(config)
    evaluated(campaign)
    return campaign
