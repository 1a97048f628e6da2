"""`uplift publish` on tables: parity with batch scores, consent and erasure, once for the same inputs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from decimal import Decimal
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.forest.frames import FEATURES, arm_roles, ordered_frame
from uplift_spark import CausalForest
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse
from uplift_spark.errors import DataError
from uplift_spark.jobs import publish
from uplift_spark.lake.tables import Lake
from uplift_spark.serving.scorer import Scorer
from uplift_spark.serving.store import StoredUnit, open_version, serving_folder

N = 120


@pytest.fixture(scope="module")
def model():
    return CausalForest(n_trees=16, n_buckets=4, min_leaf=10).fit(ordered_frame(800, seed=1), arm_roles())


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    frame = ordered_frame(800, seed=1)[:N].rename(columns={"unit": "unit_id", "arm": "treatment"})
    return frame[["unit_id", "treatment", *FEATURES]].assign(
        member=frame["member"].astype(float),
        propensity=0.3,
        split="train",
        assigned_at=pd.Timestamp("2025-01-06 12:00:00.000001"),
    )


class _Registry:
    """One version of one model, as `Registry` gives it."""

    def __init__(self, model) -> None:
        self.model = model
        sha256 = hashlib.sha256(model.to_bytes()).hexdigest()
        self.version = SimpleNamespace(name="spring", version=1, sha256=sha256)

    def find(self, *_):
        return self.version

    def load(self, _):
        return self.model

    @property
    def store(self):
        return SimpleNamespace(model=lambda name: name)


@pytest.fixture(scope="module")
def house(spark, tmp_path_factory, model, rows):
    """(campaign, lake) with scores by the model, a plan and statements on consent."""
    path = str(tmp_path_factory.mktemp("publish"))
    lake = Lake(spark, Lakehouse(path=path))
    config = Config(
        campaign="spring", source=None, lakehouse=lake.lakehouse,
        roles={"outcome": "y", "control": "none", "features": list(FEATURES)},
        economics={"value": {"y": 2.0}, "cost": {"5%": 0.5, "10%": 1.0}}, policy={"budget": 20.0},
    )  # fmt: skip
    lake.write("silver.training_spring", spark.createDataFrame(rows), "features-1", mode="overwrite")
    scores = model.effect(rows.rename(columns={"unit_id": "unit"})).rename(columns={"unit": "unit_id"})
    scores = scores.assign(
        model_name="spring", model_version="1", feature_version=0, scored_at=pd.Timestamp("2025-02-01")
    )
    lake.write("gold.uplift_scores", spark.createDataFrame(scores), "score-1")
    plan = pd.DataFrame({"unit_id": rows["unit_id"], "campaign": "spring", "model_version": "1"}).assign(
        treatment=np.where(np.arange(N) % 3 == 0, "10%", "none"), gain=1.0, cost=1.0, value=1.0,
        reason=np.where(np.arange(N) % 5 == 1, "age below 18", "best within the limits"),
    )  # fmt: skip
    lake.write("gold.policy_decisions", spark.createDataFrame(plan), "policy-1")
    limits = pd.DataFrame(
        {"campaign": ["spring"], "name": ["spend"], "most": [20.0], "least": [np.nan], "used": [19.0], "price": [0.25]}
    )
    lake.write("gold.policy_limits", spark.createDataFrame(limits), "policy-1")
    consent(lake, rows["unit_id"], True, "load-1")
    campaign = Campaign(config, lake)
    campaign.__dict__["registry"] = _Registry(model.forest)
    return campaign, lake


def consent(lake, units, granted, run, day="2025-01-01"):
    frame = pd.DataFrame({"unit_id": list(units), "purpose": "marketing", "granted": granted, "source": "crm"})
    when = pd.Timestamp(day)
    lake.write("bronze.consent", lake.spark.createDataFrame(frame.assign(changed_at=when, known_at=when)), run)


def test_units_of_a_collected_frame_keep_their_bits_and_say_what_is_not_known(model):
    """NaN and null are not known; decimals and true are numbers; a unit without all levels has none."""
    effect = pa.struct([("uplift", pa.float64()), ("uplift_se", pa.float64()), ("low_support", pa.bool_())])
    known = {"uplift": 0.1 + 0.2, "uplift_se": 1 / 3, "low_support": False}
    unsure = {"uplift": float("nan"), "uplift_se": float("nan"), "low_support": True}
    table = pa.table(
        {
            "unit_id": ["a", "b", "c"],
            "assigned_at": pa.array([pd.Timestamp("2025-01-06 12:00:00.000001", tz="UTC")] * 2 + [None]),
            "age": [30.0, float("nan"), None],
            "spend": pa.array([Decimal("1.50"), None, Decimal("0.1")]),
            "region": ["north", None, "moon"],
            "member": [True, None, False],
            "_level_0": pa.array([known, unsure, known], effect),
            "_level_1": pa.array([known, known, None], effect),
            "_planned": ["5%", None, "none"],
            "_reason": ["best within the limits", None, "age below 18"],
        }
    )
    units = dict(publish._units(table, model.forest))
    assert units["a"] == StoredUnit(
        (30.0, 1.5, "north", 1.0), 1736164800000001, ((0.1 + 0.2, 1 / 3, False),) * 2, ("5%", "best within the limits")
    )
    assert units["b"] == StoredUnit(
        (None, None, None, None), 1736164800000001, ((None, None, True), (0.1 + 0.2, 1 / 3, False)), None
    )
    assert units["c"] == StoredUnit((None, 0.1, "moon", 0.0), 0, None, ("none", "age below 18"))
    assert StoredUnit.from_json(units["a"].to_json()) == units["a"]
    averages = publish._averages(table, model.levels.treated)
    first, second = model.levels.treated
    assert averages[first] == pytest.approx((0.1 + 0.2, 1 / 3)) and averages[second] == pytest.approx((0.3, 1 / 3))


@pytest.mark.slow
def test_published_units_are_the_scored_ones_and_leave_when_they_must(house, model, rows):
    campaign, lake = house
    first = publish.run(campaign)
    assert first.details["written"] == N and first.details["plan"] == "policy-1"
    version = open_version(serving_folder(campaign.config))
    manifest, ids = version.manifest, rows["unit_id"].tolist()
    assert manifest.barred == ("age below 18",) and manifest.policy["price"] == 0.25 and manifest.policy["net"]
    stored = version.units.get(ids)
    batch = model.effect(rows.rename(columns={"unit_id": "unit"}))
    assert [e for u in ids for e, _, _ in stored[u].effects] == batch["uplift"].tolist()
    assert {one.at for one in stored.values()} == {1736164800000001}
    scorer = Scorer(model.forest)
    names = [name for name, _ in manifest.features]
    encoded = [scorer.encoder.encode(dict(zip(names, stored[u].features, strict=True))) for u in ids]
    assert [one.uplift for effects in scorer.effects(encoded) for one in effects] == batch["uplift"].tolist()
    assert stored[ids[1]].decision == ("none", "age below 18") and stored[ids[0]].decision[0] == "10%"
    mean = batch[batch["treatment"] == "5%"]["uplift"].mean()
    assert manifest.averages["5%"][0] == pytest.approx(mean, rel=1e-12)
    version.units.close()

    again = publish.run(campaign)
    assert again.run_id == first.run_id and "already" in str(again.details["published"])

    consent(lake, ids[:2], False, "load-2", "2025-03-01")  # two withdraw
    lake.delete_rows("gold.uplift_scores", f"unit_id = '{ids[2]}'")  # one is erased
    third = publish.run(campaign)
    assert third.run_id != first.run_id
    assert (third.details["written"], third.details["unchanged"], third.details["removed"]) == (0, N - 3, 3)
    version = open_version(serving_folder(campaign.config))
    assert set(version.units.get(ids)) == set(ids[3:])
    version.units.close()


@pytest.mark.slow
def test_without_scores_or_needed_consent_nothing_is_published(house, spark, tmp_path):
    campaign, lake = house
    other = Lake(spark, Lakehouse(path=str(tmp_path)))
    config = replace(campaign.config, lakehouse=other.lakehouse)
    empty = Campaign(config, other)
    empty.__dict__["registry"] = campaign.registry
    with pytest.raises(DataError, match="run `uplift score`"):
        publish.run(empty)
    scores = lake.read("gold.uplift_scores").drop("run_id")
    other.write("gold.uplift_scores", scores, "score-1")
    with pytest.raises(DataError, match=r"table bronze\.consent does not exist, and consent\.required is true"):
        publish.run(empty)
    assert not serving_folder(config).exists()
