"""`uplift retrain`: a campaign whose effects turn round, from train and monitor to a challenger; what it refuses."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter
from pyspark.sql import functions as F

from tests.jobs.conftest import rows_of
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse
from uplift_spark.errors import ConfigError, DataError, OvertakenError
from uplift_spark.governance.rollout import CanaryLog, CanaryRecord
from uplift_spark.jobs import features, ingest, monitor, retrain, train
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.evidence import was_on_trial

START, WEEKS, UNITS = datetime(2025, 1, 6, tzinfo=UTC), 6, 4000
WEEK = timedelta(days=7)


def assigned() -> pd.DataFrame:
    """Units of each week; after the first mail harms those whom it helped before."""
    rng = np.random.default_rng(5)
    n, week = UNITS * WEEKS, np.repeat(np.arange(WEEKS), UNITS)
    age, visits, arm = rng.normal(40, 10, n), rng.poisson(3, n), rng.choice(["none", "mail"], n)
    effect = np.where(week < 1, 0.4 * (age > 40), np.where(age > 40, -0.2, 0.3))
    bought = rng.random(n) < 0.25 + (arm == "mail") * effect
    when = pd.Timestamp(START.replace(tzinfo=None)) + pd.to_timedelta(week * 168 + rng.uniform(0, 168, n), unit="h")
    columns = {"unit": [f"u{i}" for i in range(n)], "arm": arm, "bought": bought.astype(float), "age": age}
    return pd.DataFrame({**columns, "visits": visits, "at": when.astype("datetime64[us]")})


def as_of(campaign: Campaign, weeks: float, **sections) -> Campaign:
    """The campaign as it was known so many weeks after its start."""
    labels = replace(campaign.config.labels, as_of=START + weeks * WEEK)
    return campaign.changed(replace(campaign.config, labels=labels, **sections))


@pytest.fixture(scope="module")
def campaign(spark, tmp_path_factory) -> Campaign:
    folder = tmp_path_factory.mktemp("weekly")
    assigned().to_parquet(folder / "units.parquet")
    lake = Lake(spark, Lakehouse(path=str(folder / "lakehouse")))
    source = {"kind": "table", "path": str(folder / "units.parquet"), "unit": "unit", "treatment": "arm"}
    config = TypeAdapter(Config).validate_python(
        {
            "campaign": "weekly",
            "source": {**source, "outcomes": ["bought"], "attributes": ["age", "visits"], "assigned_at": "at"},
            "roles": {"outcome": "bought", "control": "none", "features": ["age", "visits"]},
            "labels": {"window_days": 2},
            "forest": {"n_trees": 16, "min_leaf": 20, "n_buckets": 2},
            "lift": {"replicates": 100},
            "compare": {"points": 5},
            "monitoring": {"hours": 168},
            "governance": {"audit": {}},
            "lakehouse": {"path": lake.lakehouse.path},
        }
    )
    campaign = Campaign(config, lake)
    ingest.run(campaign)
    return campaign


def canary_rows(campaign: Campaign, version: str) -> int:
    """Put on record that a version was rolled back by its canary; the records."""
    log = CanaryLog(campaign.config, campaign.lake)
    trial = (f"weekly-canary-{version}-1", 0, log.now, log.now, "rolled back", "roll back", "worse", "1", version, 0.05)
    log.add(CanaryRecord(*trial))
    return len(log.records)


pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each


def test_options_of_the_command() -> None:
    assert retrain.options("prices changed") == {"because": "prices changed", "dry_run": False}
    with pytest.raises(ConfigError, match="--because is blank: say why"):
        retrain.options("  ")
    with pytest.raises(ConfigError, match="--dry-run makes no run: leave --run-id out"):
        retrain.options(None, True, "mine")


def test_the_story_of_a_campaign(campaign: Campaign, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lake, early, late = campaign.lake, as_of(campaign, 1.3), as_of(campaign, 5.4)
    with pytest.raises(DataError, match=r"gold.kpi has no window of 168 h of campaign weekly"):
        retrain.run(early)
    nowhere = tmp_path / "nowhere"
    empty = Campaign(replace(early.config, lakehouse=Lakehouse(path=str(nowhere))))
    empty = Campaign(empty.config, Lake(lake.spark, empty.config.lakehouse))
    with pytest.raises(DataError, match=r"gold.kpi has no window"):
        retrain.run(empty, dry_run=True)
    assert not nowhere.exists()
    features.run(early)
    train.run(early)
    with pytest.raises(
        DataError, match=r"gold.kpi has no window of 168 h of campaign weekly: run `uplift monitor` first"
    ):
        retrain.run(early)

    # The week that the champion was trained on: nothing to do, once.
    monitor.run(early, window=START + 0.5 * WEEK)
    calm = retrain.run(early)
    assert calm.details["decision"] == "not_needed" and calm.tables["gold.retrain"]["rows"] >= 8
    again = retrain.run(early)
    assert again.run_id == calm.run_id and not again.tables and again.details["decision"] == "not_needed"
    with pytest.raises(DataError, match=r"units were assigned until .* run `uplift monitor` for the windows"):
        retrain.run(late)

    # Effects turn round: a dry run writes nothing, an incident forbids it, else there is a challenger.
    monitor.run(late, window=START + 4.5 * WEEK)
    rows = lake.read("gold.retrain").count()
    dry = retrain.run(late, dry_run=True)
    assert dry.details["decision"] == "would fit a new model" and lake.read("gold.retrain").count() == rows
    assert "lift_drop: fires: level mail" in dry.details["summary"]
    with monkeypatch.context() as patch:
        patch.setattr(retrain, "open_incidents", lambda *_: {"label_lag": ("in the window", "labels are missing")})
        blocked = retrain.run(late)
    assert blocked.details["decision"] == "blocked" and blocked.details["model_version"] == "none"

    result = retrain.run(late)
    checks = rows_of(lake, "gold.retrain", run_id=result.run_id).set_index("check")
    assert result.details["decision"] == "challenger", result.details["summary"]
    assert set(checks["decision"]) == {"challenger"} and set(checks["champion_version"]) == {"1"}
    assert checks.loc["lift_drop", "state"] == "fires" and checks.loc["lift_drop", "figure"] > 0.5
    assert checks.loc["fit", "sentence"].startswith("regrow: a regrow is due: ")
    assert list(checks.loc[["arm:none", "champion", "floor:policy_value_dr"], "state"]) == ["passes"] * 3
    trained = lake.read(*next(iter(campaign.registry.find("weekly", 1).data_versions.items()))).agg(
        {"assigned_at": "max"}
    )
    version = int(result.details["model_version"])
    registry = campaign.registry
    assert registry.find("weekly", "challenger").version == version > 1 and registry.find("weekly").version == 1
    new = late.training_set(split="holdout").join(trained).where(F.col("assigned_at") > F.col("max(assigned_at)"))
    assert checks.loc["champion", "n"] == new.count()
    log = rows_of(lake, "gold.audit_log", action="retrain")
    assert list(log.sort_values("seq")["job_run"]) == [blocked.run_id, result.run_id]

    # Killed before the alias was set, the run sets it when it runs again.
    registry._client.delete_registered_model_alias(registry.store.model("weekly"), "challenger")
    again = retrain.run(late)
    assert again.run_id == result.run_id and not again.tables
    assert registry.find("weekly", "challenger").version == version
    assert len(rows_of(lake, "gold.audit_log", action="retrain")) == 2


def test_of_two_at_once_the_second_is_refused(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    late, facts = as_of(campaign, 5.4), retrain._facts

    def meanwhile(it, because):
        monkeypatch.setattr(retrain, "_facts", facts)
        retrain.run(late, run_id="first")
        return facts(it, because)

    quiet = as_of(campaign, 5.4, retrain=replace(campaign.config.retrain, least=10**6))
    monkeypatch.setattr(retrain, "_facts", meanwhile)
    late = quiet
    with pytest.raises(OvertakenError, match=r"another run wrote gold.retrain while run second .* run it again"):
        retrain.run(quiet, run_id="second")
    assert set(rows_of(campaign.lake, "gold.retrain", run_id="first")["decision"]) == {"not_needed"}
    assert not len(rows_of(campaign.lake, "gold.retrain", run_id="second"))


def test_a_new_model_that_does_not_pass_is_no_challenger(campaign: Campaign) -> None:
    high = replace(campaign.config.retrain, floors={"policy_value_dr": 10.0})
    before = campaign.registry.find("weekly", "challenger").version
    result = retrain.run(as_of(campaign, 5.4, retrain=high), because="a floor that nothing reaches")
    assert result.details["decision"] == "rejected" and "the floor is 10" in result.details["summary"]
    assert campaign.registry.find("weekly", "challenger").version == before
    # What was on trial is no challenger again, by a run that is repeated or by another that comes to the same model.
    tried = canary_rows(campaign, str(before))
    assert tried and was_on_trial(campaign.lake, "weekly", before)
    late, registry = as_of(campaign, 5.4), campaign.registry
    registry.drop_alias("weekly", "challenger")
    assert retrain.run(late).details["decision"] == "challenger" and registry.known("weekly", "challenger") is None
    result = retrain.run(late, because="once more")
    assert result.details["decision"] == "stopped" and registry.known("weekly", "challenger") is None
    assert f"version {before} was on trial already, in canary weekly-canary" in result.details["summary"]
    few = replace(campaign.config.retrain, arm_units=10**6)
    result = retrain.run(as_of(campaign, 5.4, retrain=few), because="too few units")
    assert result.details["decision"] == "stopped" and result.details["model_version"] == "none"
