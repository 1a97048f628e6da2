"""`uplift erase`: units leave every table and the models in use, a rerun finds nothing, a purge leaves no byte."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from tests.governance.test_erasure import a_day_passes, hits
from tests.jobs.test_train_score import ROLES, TABLE, conf, training_rows
from uplift_spark import CausalForest
from uplift_spark.campaign import Campaign
from uplift_spark.config import Lakehouse, Pseudonyms
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.governance import erasure as steps
from uplift_spark.governance.erasure import Erasure
from uplift_spark.governance.privacy import pseudonym
from uplift_spark.jobs import erase, lift, score, train
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry, rebuild
from uplift_spark.serving.decisions import DECISION, DecisionLog, LogEntry
from uplift_spark.serving.store import decision_log_file

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

KEPT, SCORES = "silver.trained_spring_1", "gold.uplift_scores"
FIRST, HELD_OUT, SECOND = "to-erase-5-train", "to-erase-4-holdout", "to-erase-7-train"


def rows():
    """400 units, three of them with ids that nothing else contains."""
    frame = training_rows()
    return frame.replace({"unit_id": {"u5": FIRST, "u4": HELD_OUT, "u7": SECOND}})


def erased(lake, *units, **options):
    return erase.run(Campaign(conf(lake, **options.pop("registry", {})), lake), erasure=Erasure(units, **options))


def expected_bytes(lake, *units):
    """The bytes of the first forest's trees, estimated by pandas from training rows that never had the units."""
    base = SimpleNamespace(**asdict(conf(lake).forest))
    frame = rows().query("split == 'train'").drop(columns="split")
    roles = conf(lake).training_roles
    forest = CausalForest(n_trees=base.n_trees, min_leaf=base.min_leaf, n_buckets=base.n_buckets, seed=7)
    return forest.fit(frame, roles).estimate(frame[~frame["unit_id"].isin(units)]).to_bytes()


def holding(lake, unit):
    """{table: rows of the unit}."""
    tables = [t for t in lake.tables() if "unit_id" in lake.read(t).columns]
    counts = {table: lake.read(table).where(f"unit_id = '{unit}'").count() for table in tables}
    return {table: count for table, count in counts.items() if count}


@pytest.fixture(scope="module")
def story(spark, tmp_path_factory):
    """Train and score; erase a unit of training and one of the hold-out; again; another one once features were made
    anew. What each step gave."""
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("erasure"))))
    lake.write(TABLE, spark.createDataFrame(rows()), "features-1", mode="overwrite")
    state = SimpleNamespace(lake=lake, registry=Registry.of(conf(lake)))
    state.trained = train.run(Campaign(conf(lake), lake))
    score.run(Campaign(conf(lake), lake))
    state.before = {unit: holding(lake, unit) for unit in (FIRST, HELD_OUT)}
    decided = [LogEntry(DECISION, unit, {"unit_id": unit}) for unit in (FIRST, HELD_OUT, "u1")]
    log = DecisionLog(decision_log_file(conf(lake)))
    log.append(decided)
    state.first = erased(lake, FIRST, HELD_OUT, "nobody")
    state.logged = [body["unit_id"] for _, body in log.entries(DECISION)]
    log.close()
    state.after = {unit: holding(lake, unit) for unit in (FIRST, HELD_OUT)}
    state.versions = {table: lake.version(table) for table in lake.tables()}
    state.again = erased(lake, FIRST, HELD_OUT, "nobody")
    state.versions_again = {table: lake.version(table) for table in lake.tables()}
    moved = rows().query("unit_id != @FIRST and unit_id != @HELD_OUT").assign(visit=0.5)
    lake.write(TABLE, spark.createDataFrame(moved), "features-2", mode="overwrite")
    state.second = erased(lake, SECOND)
    return state


def test_the_units_leave_every_table_and_the_result_counts_them(story):
    assert story.before == {FIRST: {SCORES: 2, TABLE: 1}, HELD_OUT: {SCORES: 2, TABLE: 1}}
    assert story.after == {FIRST: {}, HELD_OUT: {}}
    assert story.first.details["removed"] == {SCORES: 4, TABLE: 2, "log of decisions": 2} and story.logged == ["u1"]
    assert story.first.details["units"] == 3
    assert story.lake.read(SCORES).count() == 2 * 397


def test_the_champion_is_the_forest_that_never_saw_them(story):
    registry = story.registry
    assert story.first.details["model"] == {"version 1": "is now version 2"}
    first, second = registry.find("spring", 2), registry.find("spring")
    assert registry.load(first).to_bytes() == expected_bytes(story.lake, FIRST)
    # The campaign's table has moved on since: the second erasure starts from the rows of the first.
    assert (second.version, second.erasure_of, first.erasure_of) == (3, 2, 1)
    assert registry.load(second).to_bytes() == expected_bytes(story.lake, FIRST, SECOND)
    assert (dict(first.data_versions), dict(second.data_versions)) == ({KEPT: 0}, {KEPT: 1})
    assert first.params == registry.find("spring", 1).params
    assert registry.load(second).roles == registry.load(registry.find("spring", 1)).roles
    assert story.lake.read(KEPT).count() == 298


def test_erasing_again_changes_nothing(story):
    assert story.again.details["removed"] == "0 rows" and not story.again.tables
    assert story.versions_again == story.versions
    assert "no version in use" in story.again.details["model"]


def test_an_erasure_is_no_training_run_and_earlier_runs_can_be_rebuilt(story):
    run = story.registry.find("spring", 2).run_id
    with pytest.raises(
        ConfigError, match=f"'{run}' is an erasure: model 'spring' version 2 has the trees of version 1"
    ):
        rebuild(conf(story.lake), story.lake, run)
    assert rebuild(conf(story.lake), story.lake, story.trained.run_id).details["same_bytes"]


def test_a_version_that_units_were_erased_from_is_not_scored_with(story):
    with pytest.raises(ConfigError, match=r"version 1 was trained on units erased since: set registry\.version to 3"):
        score.run(Campaign(conf(story.lake, version=1), story.lake))


def test_a_version_that_the_configuration_names_is_erased_from_too(spark, tmp_path):
    lake = Lake(spark, Lakehouse(path=str(tmp_path)))
    lake.write(TABLE, spark.createDataFrame(rows()), "features-1", mode="overwrite")
    train.run(Campaign(conf(lake), lake))
    train.run(Campaign(replace(conf(lake, champion=False), seed=8), lake))

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(steps, "erase_units", killed)  # forests are there, nothing else is done
        erased(lake, FIRST, registry={"version": 2})
    registry = Registry.of(conf(lake))
    assert holding(lake, FIRST) == {TABLE: 1}
    assert [registry.find("spring", v).erasure_of for v in (3, 4)] == [1, 2]
    result = erased(lake, FIRST, registry={"version": 2})
    assert result.details["removed"] == {TABLE: 1} and not result.tables
    assert registry.find("spring").version == 3 and registry.known("spring", 5) is None
    # An arm cannot be erased from a model.
    arm = rows().query("treatment == '5%'")["unit_id"]
    with pytest.raises(DataError, match="has no row of 5%"):
        erased(lake, *arm)


@pytest.mark.slow
def test_no_byte_of_the_units_outlives_purges_and_the_champion_can_be_erased_from(story):
    lake = story.lake
    folder = lake.lakehouse.path
    assert {unit for unit in (FIRST, HELD_OUT, SECOND) if hits(folder, unit)} == {FIRST, HELD_OUT, SECOND}
    erased(lake, purge=True)
    assert not [path for unit in (FIRST, HELD_OUT, SECOND) for path in hits(folder, unit) if "_delta_log" not in path]
    with pytest.raises(DataError, match=r"files of version 0 are gone.*--purge"):
        rebuild(conf(lake), lake, story.trained.run_id)
    with pytest.raises(DataError, match=r"files of version 0 are gone.*run `uplift score`"):
        lift.run(Campaign(conf(lake), lake))
    a_day_passes(folder)
    third = erased(lake, "u9", purge=True)
    assert {unit: hits(folder, unit) for unit in (FIRST, HELD_OUT, SECOND)} == {FIRST: {}, HELD_OUT: {}, SECOND: {}}
    assert third.details["removed"][TABLE] == 1
    model = story.registry.find("spring")
    assert story.registry.load(model).to_bytes() == expected_bytes(lake, FIRST, SECOND, "u9")
    with pytest.raises(DataError, match="has no version 0 to read"):
        rebuild(conf(lake), lake, story.trained.run_id)
    score.run(Campaign(conf(lake), lake))


@pytest.mark.slow
def test_a_purge_keeps_what_the_champion_rests_on(spark, tmp_path):
    lake = Lake(spark, Lakehouse(path=str(tmp_path)))
    lake.write(TABLE, spark.createDataFrame(rows()), "features-1", mode="overwrite")
    first = train.run(Campaign(conf(lake), lake))
    lake.write(TABLE, spark.createDataFrame(rows().assign(visit=0.5)), "features-2", mode="overwrite")
    erased(lake, purge=True)
    assert rebuild(conf(lake), lake, first.run_id).details["same_bytes"]
    assert Registry.of(conf(lake)).find("spring").version == 1


def test_tables_only_without_a_model_and_by_the_clear_id_under_pseudonyms(lake, monkeypatch):
    monkeypatch.setenv("UPLIFT_KEY", "k" * 16)
    known = pseudonym(b"k" * 16, "ann")
    frame = rows().head(3).assign(unit_id=["ann", known, "u2"])
    lake.write(TABLE, lake.spark.createDataFrame(frame), "features-1", mode="overwrite")
    result = erase.run(
        Campaign(replace(conf(lake), pseudonyms=Pseudonyms("UPLIFT_KEY")), lake), erasure=Erasure(("ann",))
    )
    assert result.details["removed"] == {TABLE: 1}
    assert sorted(row["unit_id"] for row in lake.read(TABLE).collect()) == ["ann", "u2"]


def test_what_to_erase_comes_from_options_and_a_file(tmp_path):
    file = tmp_path / "ids"
    file.write_text("b\nc\na\n")
    assert Erasure.from_options(["a", "a"], file, False).units == ("a", "b", "c")
    file.write_text("b\n \n")
    with pytest.raises(ConfigError, match="1 of 2 units to erase are blank"):
        Erasure.from_options(None, file, False)
    with pytest.raises(ConfigError, match="nothing to erase"):
        Erasure.from_options(None, None, False)
    with pytest.raises(ConfigError, match="cannot be read"):
        Erasure.from_options(None, tmp_path / "none", False)
    file.write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        Erasure.from_options(None, file, True)


def test_nothing_names_a_unit(story):
    assert ROLES.outcome == "visit"
    for result in (story.first, story.again, story.second):
        assert not [unit for unit in (FIRST, HELD_OUT, SECOND) if unit in repr(result)]
