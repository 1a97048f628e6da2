"""`uplift publish` on tables: parity with batch scores, consent and erasure, once for the same inputs."""

from __future__ import annotations

import hashlib
import json
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
from uplift_spark.config import Config, Consent, Economics, Lakehouse, Policy
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.experiments.assignment import assign
from uplift_spark.experiments.canary import CHALLENGER_SLICE, canary_design
from uplift_spark.governance.rollout import CanaryLog, CanaryRecord
from uplift_spark.jobs import publish
from uplift_spark.lake.tables import Lake
from uplift_spark.sections.governance import AuditConf, Governance
from uplift_spark.sections.source import Pseudonyms
from uplift_spark.serving.scorer import Scorer
from uplift_spark.serving.store import UNITS, Manifest, StoredUnit, open_version, publishing, serving_folder

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
    """Versions of one model, as `Registry` gives them; the first is the champion."""

    def __init__(self, *models) -> None:
        self.models = models

    def find(self, name, version="champion"):
        number = version if isinstance(version, int) else 1
        sha256 = hashlib.sha256(self.models[number - 1].to_bytes()).hexdigest()
        return SimpleNamespace(name="spring", version=number, sha256=sha256)

    def load(self, version):
        return self.models[version.version - 1]

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
        governance=Governance(audit=AuditConf()),
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


def consent(lake, units, granted, run, day="2025-01-01", purpose="marketing"):
    frame = pd.DataFrame({"unit_id": list(units), "purpose": purpose, "granted": granted, "source": "crm"})
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


def test_what_units_cost_leaves_out_whom_a_rule_bars():
    """By hand, 2 a unit: a gains .8 by the level that costs 1, b nothing, and c may not have any."""
    effect = pa.struct([("uplift", pa.float64()), ("uplift_se", pa.float64()), ("low_support", pa.bool_())])

    def column(*uplifts):
        return pa.array([u and {"uplift": u, "uplift_se": 0.1, "low_support": False} for u in uplifts], effect)

    table = pa.table(
        {
            "_level_0": column(0.4, 0.1, 9.0),
            "_level_1": column(0.9, None, 9.0),
            "_reason": ["best within the limits", None, "age below 18"],
        }
    )
    facts = {"price": 0.0, "value": 2.0, "cost": {"5%": 0.5, "10%": 1.0}, "net": True}
    manifest = Manifest("spring", "v1", "y", (("age", "number"),), ("none", "5%", "10%"), {}, {}, (), facts, {})
    filled = publish._of_units(manifest, table, {})
    assert filled.barred == ("age below 18",) and filled.spend[0] == (0.0, 0.5)
    assert filled.spend[-1] == (pytest.approx(0.8), 0.0)
    assert publish._of_units(replace(manifest, policy={}), table, {}).spend == ()


def test_a_campaign_with_pseudonyms_is_not_published():
    config = Config(campaign="spring", source=None, roles={"outcome": "y", "control": "none", "features": ["x"]})
    campaign = SimpleNamespace(config=replace(config, pseudonyms=Pseudonyms(key_env="KEY")))
    with pytest.raises(ConfigError, match="campaign spring has pseudonyms in place of unit ids"):
        publish.run(campaign)


def entries(lake):
    rows = lake.read("gold.audit_log").where("action = 'publish'").orderBy("seq").collect()
    return [json.loads(row["entry"])["details"] for row in rows]


@pytest.mark.slow
def test_published_units_are_the_scored_ones_and_leave_when_they_must(house, model, rows, monkeypatch):
    campaign, lake = house
    first = publish.run(campaign)
    assert first.details["written"] == N and first.details["plan"] == "policy-1"
    version = open_version(serving_folder(campaign.config))
    manifest, ids = version.manifest, rows["unit_id"].tolist()
    assert manifest.barred == ("age below 18",) and manifest.policy["price"] == 0.25 and manifest.policy["net"]
    assert manifest.policy["required"] and not manifest.policy["rules"]
    stored = version.units.get(ids)
    batch = model.effect(rows.rename(columns={"unit_id": "unit"}))
    assert [e for u in ids for e, _, _ in stored[u].effects] == batch["uplift"].tolist()
    assert {one.at for one in stored.values()} == {1736164800000001}
    scorer = Scorer(model.forest)
    names = [name for name, _ in manifest.features]
    encoded = [scorer.encoder.encode(dict(zip(names, stored[u].features, strict=True))) for u in ids]
    assert [one.uplift for effects in scorer.effects(encoded) for one in effects] == batch["uplift"].tolist()
    assert stored[ids[1]].decision == ("none", "age below 18") and stored[ids[0]].decision[0] == "10%"
    # What a unit that no rule bars costs at the price 0: 2 a unit of the outcome, 10% for 1 and 5% for .5.
    assert manifest.levels == ("none", "10%", "5%")
    gain = 2.0 * batch["uplift"].to_numpy().reshape(N, 2) - [1.0, 0.5]
    cost = np.where(gain.max(axis=1) > 0, np.array([1.0, 0.5])[gain.argmax(axis=1)], 0.0)[np.arange(N) % 5 != 1]
    assert manifest.spend[0] == (0.0, pytest.approx(cost.mean())) and manifest.spend[-1][1] == 0.0
    mean = batch[batch["treatment"] == "5%"]["uplift"].mean()
    assert manifest.averages["5%"][0] == pytest.approx(mean, rel=1e-12)
    version.units.close()

    with monkeypatch.context() as patch:
        patch.setattr(publish, "_rows", None)  # no row is read to find out that there is nothing to do
        again = publish.run(campaign)
    assert again.run_id == first.run_id and "already" in str(again.details["published"])
    assert (again.details["units"], again.details["held_back"]) == (N, 0)
    file = serving_folder(campaign.config) / str(version.manifest.version) / UNITS
    file.write_bytes(file.read_bytes()[:-1])
    mended = publish.run(campaign)
    assert mended.details["written"] == N and mended.run_id == first.run_id

    consent(lake, ids[:2], False, "load-2", "2025-03-01")  # two withdraw
    lake.delete_rows("gold.uplift_scores", f"unit_id = '{ids[2]}'")  # one is erased
    third = publish.run(campaign)
    assert third.run_id != first.run_id
    assert (third.details["written"], third.details["unchanged"], third.details["removed"]) == (0, N - 3, 3)
    version = open_version(serving_folder(campaign.config))
    assert set(version.units.get(ids)) == set(ids[3:])
    version.units.close()
    assert third.details["held_back"] == {"withdrew": 2} and third.details["units"] == N - 3
    # Published three times, one of them anew after damage: two entries, and none of a run that found nothing to do.
    assert [one["held_back"] for one in entries(lake)] == [0, {"withdrew": 2}]


@pytest.mark.slow
def test_a_running_canary_publishes_its_challenger_for_its_slice(house, model, rows):
    """Units of the slice have the challenger's batch scores, to the bit; when the canary is over it is gone."""
    campaign, lake = house
    trial = CausalForest(n_trees=8, n_buckets=4, min_leaf=10, seed=9).fit(ordered_frame(800, seed=1), arm_roles())
    live = with_conf(campaign, {})
    live.__dict__["registry"] = _Registry(model.forest, trial.forest)
    log = CanaryLog(campaign.config, lake)
    when = log.now
    record = log.add(CanaryRecord("spring-canary-2-1", 0, when, when, "running", None, "on trial", "1", "2", 0.3))
    result = publish.run(live)
    assert result.details["challenger"] == 2
    version = open_version(serving_folder(campaign.config))
    assert version.challenger == trial.forest.to_bytes() and version.manifest.challenger["salt"] == record.canary
    stored = version.units.get(rows["unit_id"].tolist())
    version.units.close()
    ours = assign(list(stored), canary_design(record.canary, 0.3)).set_index("unit_id")["treatment"] == CHALLENGER_SLICE
    frame = rows.rename(columns={"unit_id": "unit"})
    batch = {by: one.effect(frame).groupby("unit")["uplift"].agg(list) for by, one in ((True, trial), (False, model))}
    assert ours.any() and not ours.all()
    assert all([e for e, _, _ in one.effects] == batch[ours[unit]][unit] for unit, one in stored.items())
    fewer = replace(arm_roles(), features=arm_roles().features[:-1])
    other = CausalForest(n_trees=4, n_buckets=4).fit(ordered_frame(800, seed=1), fewer)
    live.__dict__["registry"] = _Registry(model.forest, other.forest)
    with pytest.raises(DataError, match="version 2 on trial has other features or levels than the version in use"):
        publish.run(live)
    log.add(replace(record, state="rolled back"))
    assert "challenger" not in publish.run(live).details
    assert open_version(serving_folder(campaign.config)).challenger is None


@pytest.mark.slow
def test_another_consent_value_or_policy_is_another_version(house):
    campaign, _ = house
    dear = Economics(value={"y": 3.0}, cost={"5%": 0.5, "10%": 1.0})
    rules = [{"exclude": {"minors": "age < 18"}}, {"contacts": 3}, {"global_holdout": 0.1}]
    changes = [{}, {"economics": dear}, {"policy": Policy(budget=20.0, objective="outcome")}]
    changes += [{"consent": Consent("mail")}, {"policy": Policy(budget=20.0, **rules[0])}]
    seen = [policy_facts(campaign, change) for change in changes]
    assert len({json.dumps(one, sort_keys=True) for one in seen}) == len(changes)
    assert [policy_facts(campaign, {"policy": Policy(**rule)})["rules"] for rule in rules] == [True] * 3

    first = publish.run(campaign)
    other = with_conf(campaign, {"consent": Consent(required=False)})
    second = publish.run(other)
    assert second.run_id != first.run_id and "published" not in second.details


def with_conf(campaign, changes):
    other = Campaign(replace(campaign.config, **changes), campaign.lake)
    other.__dict__["registry"] = campaign.registry
    return other


def policy_facts(campaign, changes):
    other = with_conf(campaign, changes)
    return publish._policy(other, publish._sources(other), ("5%", "10%"))


@pytest.mark.slow
def test_consent_of_strangers_publishes_nothing(house):
    """Ids that are written otherwise would let withdrawals through."""
    campaign, lake = house
    consent(lake, ["U-1"], False, "load-3", purpose="mail")
    other = with_conf(campaign, {"consent": Consent("mail", required=False)})
    with pytest.raises(DataError, match=r"none of the rows of bronze\.consent of purpose 'mail' is of a unit that was"):
        publish.run(other)


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
    left = [path.name for path in serving_folder(config).iterdir()]
    assert left == [".publishing"]  # the lock of who publishes


def test_of_two_at_once_the_second_reads_and_publishes_nothing(tmp_path):
    config = Config("spring", None, {"outcome": "y", "control": "none", "features": ["age"]},
                    lakehouse=Lakehouse(path=str(tmp_path)))  # fmt: skip
    with publishing(serving_folder(config)), pytest.raises(ConflictError, match="another `uplift publish`"):
        publish.run(SimpleNamespace(config=config))  # a campaign without tables to read
