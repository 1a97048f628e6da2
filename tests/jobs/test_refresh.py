"""`uplift refresh`: new labels in the champion's trees, registered, rebuilt, erased from; and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.jobs.test_train_score import ROLES, TABLE, conf, training_rows
from uplift_spark.campaign import Campaign
from uplift_spark.config import Lakehouse, LearnerConf, Refresh
from uplift_spark.errors import ConfigError, UnfitRowsError
from uplift_spark.estimators import UpliftModel
from uplift_spark.governance.erasure import Erasure, run_erasure
from uplift_spark.jobs import refresh, score, train
from uplift_spark.jobs.refresh import due
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry, rebuild

pytestmark = [pytest.mark.spark, pytest.mark.slow]  # runs whole jobs, tens of seconds each
OLD, ALL = 1600, 2400


def rows() -> pd.DataFrame:
    """2,400 units; those after the first 1,600 came ten days later, and treatment did the opposite to them."""
    frame = training_rows(ALL)
    late = frame.index >= OLD
    frame.loc[late, "visit"] = np.where(frame["recency"] < 6, 0.0, frame["spend"] / 10)[late]
    return frame.assign(assigned_at=frame["assigned_at"] + pd.to_timedelta(np.where(late, 10, 0), unit="D"))


def write(lake, frame, run_id):
    lake.write(TABLE, lake.spark.createDataFrame(frame), run_id, mode="overwrite")


def fading(lake, days):
    return replace(conf(lake), refresh=Refresh(half_life_days=days))


@pytest.fixture(scope="module")
def story(spark, tmp_path_factory):
    """Train on the early units, refresh when the late ones have come: as they are, again, fading."""
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("refresh"))))
    write(lake, rows()[:OLD], "features-1")
    state = SimpleNamespace(lake=lake, registry=Registry.of(conf(lake)))
    train.run(Campaign(conf(lake), lake))
    state.idle = refresh.run(Campaign(conf(lake), lake))
    write(lake, rows(), "features-2")
    state.first = refresh.run(Campaign(conf(lake), lake))
    state.again = refresh.run(Campaign(conf(lake), lake))
    state.champion = state.registry.find("spring")
    state.fading = refresh.run(Campaign(fading(lake, 5.0), lake))
    state.grown = state.registry.load(state.registry.find("spring", 1))
    return state


def expected_bytes(story, half_life=None):
    """The bytes in one process: of the model that was grown, not of a refreshed one."""
    frame = rows().query("split == 'train'").drop(columns="split")
    frame = frame.assign(day=(frame["assigned_at"] - pd.Timestamp(0)).dt.days)
    return UpliftModel(story.grown).refresh(frame, half_life, "day").to_bytes()


def test_the_champion_is_the_grown_forest_with_all_rows(story):
    assert story.champion.run_id == story.first.run_id and story.champion.refresh["of"] == 1
    assert story.registry.load(story.champion).to_bytes() == expected_bytes(story) != story.grown.to_bytes()


def test_a_rerun_registers_nothing(story):
    assert story.again == story.first


def test_it_is_the_version_that_was_grown_that_is_refreshed_again(story):
    fading = story.registry.find("spring")
    assert dict(fading.refresh) == {"of": 1, "half_life_days": 5.0}
    assert story.registry.load(fading).to_bytes() == expected_bytes(story, 5.0)


def test_it_says_that_splits_no_longer_serve(story):
    metrics = story.registry.logged_metrics("spring", story.first.run_id)
    assert metrics["rows_new"] == 600 and metrics["changed_p"] < 1e-6
    assert due({"rows": 10, "rows_grown_on": 5, "stale_p": 0.04}).startswith("due: the splits")
    assert due({"rows": 16, "rows_grown_on": 5, "stale_p": 0.5}).startswith("due: 16 rows deserve")
    assert due({"rows": 10, "rows_grown_on": 5, "stale_p": 0.5}) == "not due"
    assert due({"rows": 10, "rows_grown_on": 5}) == "not due by the number of rows; splits were not tested"


def test_without_new_rows_nothing_is_registered(story):
    assert (story.idle.details["version"], story.first.details["version"]) == (1, 2)
    assert "no row is new" in story.idle.details["regrow"]


def test_a_refreshed_version_is_rebuilt_and_scored_with(story):
    for result in (story.first, story.fading):
        assert rebuild(conf(story.lake), story.lake, result.run_id).details["same_bytes"]
    scored = score.run(Campaign(conf(story.lake, version=story.champion.version), story.lake))
    assert scored.tables["gold.uplift_scores"]["rows"] == 2 * ALL


def test_rows_that_only_a_new_forest_takes_make_a_regrow_due(story):
    frame = rows()
    frame.loc[frame.index >= OLD, "zip"] = "z9"
    lake = story.lake
    version = lake.version(TABLE)
    write(lake, frame, "features-3")
    try:
        tested = refresh.run(Campaign(conf(lake), lake), unless_due=True)
        assert "version" not in tested.details and tested.details["regrow"].startswith("due: ")
        with pytest.raises(UnfitRowsError, match=r"'zip' in 600 of 1800 rows has categories .*, \['z9'\]"):
            refresh.run(Campaign(conf(lake), lake))
    finally:
        write(lake, lake.read(TABLE, version).toPandas(), "features-4")


def test_what_was_trained_otherwise_is_not_refreshed(story):
    other = replace(conf(story.lake), roles=replace(ROLES, features=("recency",)))
    with pytest.raises(ConfigError, match="version 1 was trained with other roles"):
        refresh.run(Campaign(other, story.lake))


def test_only_forests_are_refreshed(story):
    learner = replace(conf(story.lake, name="meta"), learner=LearnerConf(kind="t_learner", replicates=0))
    learner = replace(learner, roles=replace(ROLES, more_outcomes=()), refresh=Refresh(half_life_days=5.0))
    train.run(Campaign(learner, story.lake))
    with pytest.raises(ConfigError, match="version 1 is no causal forest"):
        refresh.run(Campaign(learner, story.lake))


def test_units_are_erased_from_it_for_good(story):
    run_erasure(conf(story.lake), story.lake, Erasure(("u1", "u2201")))
    after = story.registry.find("spring")
    gone = rows().query("split == 'train' and unit_id not in ('u1', 'u2201')").drop(columns="split")
    assert story.registry.load(after).to_bytes() == UpliftModel(story.grown).estimate(gone).to_bytes()
    assert after.erasure_of and after.refresh is None
    # The next refresh starts from the trees that never saw them.
    refresh.run(Campaign(fading(story.lake, 5.0), story.lake))
    assert story.registry.find("spring").refresh["of"] == after.version
