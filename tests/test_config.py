"""One YAML file per campaign: what is read, what is refused and with which words."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import yaml

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Simulation, TrialConf, load_config
from uplift_spark.errors import ConfigError
from uplift_spark.events.table_source import open_source
from uplift_spark.jobs import simulate
from uplift_spark.runtime import plain_values

ROOT = Path(__file__).resolve().parents[1]

SMALL = """
campaign: spring
source: {kind: simulation, units: 1000}
roles: {outcome: visit, control: none, features: [age, zip]}
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "spring.yaml"
    path.write_text(SMALL)
    return path


def refused(path: Path, *overrides: str) -> str:
    """The sentence a configuration is refused with; it always names the file."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_small_file_gets_defaults(conf: Path) -> None:
    config = load_config(conf)
    assert config.source == Simulation(units=1000)
    assert (config.seed, config.holdout, config.lakehouse.path) == (7, 0.5, "lakehouse")
    assert config.roles.features == ("age", "zip")


def test_configuration_cannot_be_changed(conf: Path) -> None:
    config = load_config(conf)
    with pytest.raises(FrozenInstanceError):
        config.seed = 8  # type: ignore[misc]


def test_overrides_are_yaml_values_at_dotted_keys(conf: Path) -> None:
    config = load_config(conf, ("source.units=20", "seed=9", "roles.features=[age]", "lift.outcomes=[spend]"))
    assert (config.source.units, config.seed) == (20, 9)  # type: ignore[union-attr]
    assert (config.roles.features, config.lift.outcomes) == (("age",), ("spend",))


@pytest.mark.parametrize("hours", ["24", "168"])
def test_hours_of_a_window_may_be_written_in_a_file(conf: Path, hours: str) -> None:
    assert load_config(conf, (f"monitoring.hours={hours}",)).monitoring.hours == int(hours)
    with pytest.raises(ConfigError, match=r"monitoring.hours: Input should be 1, 2"):
        load_config(conf, ("monitoring.hours=5",))


def test_training_roles_read_the_training_set(conf: Path) -> None:
    roles = load_config(conf).training_roles
    assert (roles.unit, roles.treatment, roles.outcome, roles.propensity) == (
        "unit_id", "treatment", "visit", "propensity",
    )  # fmt: skip
    assert roles.more_outcomes == ()
    assert load_config(conf, ("roles.more_outcomes=[spend]",)).training_roles.outcomes == ("visit", "spend")


def test_outcomes_have_windows_of_their_own(conf: Path) -> None:
    config = load_config(conf, ("lift.outcomes=[spend, visit]", "labels={window_days: 7, windows: {spend: 30}}"))
    assert {name: config.labels.days(name) for name in config.outcomes} == {"visit": 7, "spend": 30}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("colour=red", ["unknown key", "colour"]),
        ("roles.colour=red", ["unknown key", "roles.colour"]),
        ("source.colour=red", ["unknown key", "colour"]),
        ("source.units=many", ["source", "units", "integer"]),
        ("source.units=0", ["units", "greater than or equal to 1"]),
        ("holdout=1", ["holdout", "less than 1"]),
        ("forest.n_trees=1", ["forest.n_trees", "greater than or equal to 4"]),
        ("source.kind=magic", ["source", "magic"]),
        ("campaign=a;b", ["campaign", "letters, digits and underscores"]),
        ("campaign=a`b", ["campaign", "letters, digits and underscores"]),
        ("lakehouse.catalog=a--b", ["lakehouse.catalog", "letters, digits and underscores"]),
        ("roles.features=['x`y']", ["roles.features", "x`y"]),
        ("roles.outcome='visit;'", ["outcome", "visit;"]),
        ("roles.more_outcomes=['a;b']", ["outcome", "a;b"]),
        ("lift.outcomes=['a b']", ["outcome", "a b"]),
        ("labels.windows={spend: 30}", ["labels.windows", "['spend']", "none of the outcomes visit"]),
        ("labels.windows={visit: 0}", ["labels.windows", "greater than 0"]),
        ("labels.window_days=4000", ["labels.window_days", "less than or equal to 3650"]),
        ("labels.window_days=.inf", ["labels.window_days", "finite number"]),
        ("economics.cost={mail: .nan}", ["economics.cost.mail", "finite number"]),
        ("economics.value={visit: .inf}", ["economics.value.visit", "finite number"]),
        ("serving.budget=.inf", ["serving.budget", "finite number"]),
        ("costs={budget: .inf, end: 2026-12-31}", ["costs.budget", "finite number"]),
        ("labels.wait_days=-1", ["labels.wait_days", "greater than or equal to 0"]),
        ("policy.budget=-1", ["policy.budget", "greater than or equal to 0"]),
        ("leakage.allow={height: known}", ["leakage.allow", "height", "not among roles.features"]),
        ("leakage.allow={age: ''}", ["leakage.allow.age", "at least 1 character"]),
        ("leakage.alpha=0", ["leakage.alpha", "greater than or equal to"]),
        ("seed", ["key.sub=value"]),
        ("campaign.x=1", ["campaign", "not a mapping"]),
    ],
)
def test_wrong_values_are_named(conf: Path, override: str, words: list[str]) -> None:
    message = refused(conf, override)
    assert [word for word in words if word not in message] == []


def test_a_source_may_be_left_out_and_ingest_asks_for_it_in_its_own_words(conf: Path) -> None:
    lines = [line for line in conf.read_text().splitlines() if not line.startswith("source:")]
    conf.write_text("\n".join(lines))
    config = load_config(conf)
    assert config.source is None
    with pytest.raises(ConfigError, match=r"no `source` to ingest: add one, or bring the rows of .* by `uplift load`"):
        open_source(config, None, print)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["campaign", "roles"])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    raw = yaml.safe_load(SMALL)
    del raw[key]
    path = tmp_path / "part.yaml"
    path.write_text(yaml.safe_dump(raw))
    message = refused(path)
    assert key in message
    assert "part.yaml" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be a mapping"),
        ("- a\n- b\n", "not list"),
        ("a: [", "not valid YAML"),
        ("a: {b: c: d}", "not valid YAML"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert words in refused(path)


def test_a_missing_file_and_a_binary_one_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.yaml")
    (tmp_path / "model.bin").write_bytes(b"\xff\xfe\x00\x80")
    assert "model.bin" in refused(tmp_path / "model.bin")


def test_an_override_that_is_no_yaml_is_refused(conf: Path) -> None:
    assert "seed=[" in refused(conf, "seed=[")


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config, Config)
    assert isinstance(config.source, Simulation | TrialConf)
    assert config.roles.outcome not in config.roles.features


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("units: 3, spend: 4", "one of spend, units, share and gap, not spend and units"),
        ("level: mail", "one of spend, units, share and gap, not none"),
        ("gap: 0.1", "needs a segment"),
        ("units: 3, segment: age", "needs both `segment` and `bucket`"),
    ],
)
def test_limits_that_make_no_sense_are_refused(conf: Path, limit: str, words: str) -> None:
    assert words in refused(conf, f"policy.limits=[{{{limit}}}]")


def test_segments_may_cross_features(conf: Path) -> None:
    config = load_config(conf, ("lift.segments=[age, age x device, device x zip]",))
    assert config.lift.segments == ("age", "age x device", "device x zip")
    assert config.lift.columns == ("age", "device", "zip")
    assert [feature.name for feature in config.feature_definitions] == ["age", "zip", "device"]


@pytest.mark.parametrize(
    ("segments", "words"),
    [
        ("age*zip", "lift.segments entry 'age*zip' is not a plain name"),
        ("age x zip code", "lift.segments: of 'age x zip code' 'zip code' is not a plain name"),
        ("age x age", "'age x age' crosses a feature with itself"),
        ("age x zip, zip x age", "'zip x age' is 'age x zip' once more: remove one of them"),
    ],
)
def test_segments_that_make_no_sense_are_refused(conf: Path, segments: str, words: str) -> None:
    assert words in refused(conf, f"lift.segments=[{segments}]")


def test_an_old_name_of_a_key_is_read_with_a_warning(conf: Path) -> None:
    with pytest.warns(FutureWarning, match=r"spring.yaml: policy.keep_out is now called policy.global_holdout: rename"):
        old = load_config(conf, ("policy.keep_out=0.05",))
    assert old == load_config(conf, ("policy.global_holdout=0.05",))
    assert old.policy.global_holdout == 0.05
    words = "both are there: remove policy.keep_out"
    assert words in refused(conf, "policy.keep_out=0.05", "policy.global_holdout=0.1")
    assert "policy" in refused(conf, "policy=3")


@pytest.mark.parametrize(
    "text", ["no", "No", "off", "y", "true", "1:1", "010", "1E5", "1_000", "0x1F", "2025-01-06", "5"]
)
def test_an_unquoted_level_is_the_text_that_stands_there(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plain.yaml"
    roles = f"roles: {{outcome: visit, control: {text}, features: [age], dose: {{{text}: 0, other: 1e0}}}}"
    path.write_text(f"campaign: spring\nsource: {{kind: simulation, units: 010}}\n{roles}\n")
    config = load_config(path)
    assert config.roles.control == text and config.roles.dose == {text: 0.0, "other": 1.0}
    assert config.source == Simulation(units=10)
    assert load_config(path, (f"registry.name=m{text[0]}", f"roles.control={text}")).roles.control == text


def test_true_and_false_may_be_written_as_people_do(conf: Path) -> None:
    for text in ("yes", "on", "true", "True"):
        assert load_config(conf, (f"labels.delivered={text}",)).labels.delivered is True
    assert load_config(conf, ("registry.champion=no",)).registry.champion is False
    assert load_config(conf, ("tune.space={min_leaf: [5, null]}",)).tune.space == {"min_leaf": [5, None]}
    assert load_config(conf, ("labels.windows={visit: 1e1}",)).labels.days("visit") == 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SMALL + "seed: 3\nseed: 4\n", "line 6: key 'seed' is there twice: keep one"),
        (SMALL + "labels: {windows: {visit: 3, visit: 4}}", "key 'visit' is there twice"),
        (SMALL.replace("none", "null"), "roles.control: YAML reads nothing, ~ and an unquoted null as no value"),
        (SMALL.replace("none", "~"), "put the text in quotes"),
        (SMALL.replace("1000", "1:30"), "units"),
        ("a: " + "[" * 5000 + "]" * 5000, "is nested too deep to be read"),
        ("a: " + "{a: " * 5000 + "1" + "}" * 5000, "is nested too deep to be read"),
        (SMALL + "seed:\t[", "not valid YAML: line "),
    ],
)
def test_yaml_that_would_lose_something_is_refused_in_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "lossy.yaml"
    path.write_text(text)
    assert words in refused(path)


def test_a_budget_of_null_in_a_scenario_is_no_budget_and_not_that_of_the_plan(conf: Path) -> None:
    config = load_config(
        conf,
        ("policy.budget=100", "scenarios={same: {}, half: {budget: 50}, free: {budget: null}, inf: {budget: .inf}}"),
    )
    budgets = {
        name: simulate._changed(Campaign(config), scenario).config.policy.budget
        for name, scenario in config.scenarios.items()
    }
    assert budgets == {"same": 100, "half": 50, "free": None, "inf": None}
    same, free = (Campaign(load_config(conf, (f"scenarios={{a: {text}}}",))) for text in ("{}", "{budget: null}"))
    assert same.run_id("simulate") != free.run_id("simulate")
    assert load_config(conf, ("policy.budget=.inf",)).policy.all_limits == ()


GRID = ("roles.control=0", "roles.grid=[3, 1, 2]", "source=null")


def test_a_grid_trains_on_doses_and_evaluates_on_levels(conf: Path) -> None:
    config = load_config(conf, (*GRID, "economics.cost_per_dose=0.5", "economics.cost={2: 7}"))
    assert config.training_roles.treatment == "dose" and config.training_roles.grid == (1.0, 2.0, 3.0)
    assert config.training_roles.propensity is None and config.unit_roles.propensity == "propensity"
    assert config.unit_roles.treatment == "treatment" and config.unit_roles.grid == ()
    assert config.unit_roles.dose == config.roles.level_doses == {"0": 0.0, "1": 1.0, "2": 2.0, "3": 3.0}
    assert config.economics.cost == {"1": 0.5, "2": 7.0, "3": 1.5}


def test_a_grid_makes_new_runs_and_no_grid_none(conf: Path) -> None:
    plain, doses = load_config(conf, ("source=null", "roles.control=0")), load_config(conf, GRID)
    assert "roles.grid_doses" not in plain.run_identity("ingest")
    assert doses.run_identity("ingest")["roles.grid_doses"] == {"0": 0.0, "1": 1.0, "2": 2.0, "3": 3.0}
    identity = [plain_values(config.run_identity("features")) for config in (plain, doses)]
    assert "grid" not in identity[0]["roles"] and identity[1]["roles"]["grid"] == [1.0, 2.0, 3.0]
    assert "cost_per_dose" not in plain_values(plain.economics)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["source={kind: simulation}"], ["a source of kind simulation", "drop one"]),
        (
            ["source={kind: trial, file: x, treatment: t, outcomes: [visit], attributes: [age]}"],
            ["kind trial", "table"],
        ),
        (
            ["source={kind: table, path: x, treatment: t, outcomes: [visit], attributes: [age], arms: {0: a}}"],
            ["source.arms", "drop one"],
        ),
        (["nuisances={}"], ["section nuisances", "drop one"]),
        (["learner.kind=t_learner"], ["learner.kind t_learner", "drop one"]),
        (["roles.dose={0: 0, 1: 1}"], ["roles.grid is for treatments that are numbers", "drop one"]),
        (["roles.control=none"], ["roles.control is 'none'", "give a number"]),
        (["roles.grid=[1, 1]"], ["names a dose twice"]),
        (["roles.grid=[[1, 2]]"], ["roles.grid", "number"]),
        (["roles.features=[age, dose]"], ["column 'dose' of its own", "source.rename"]),
        (
            [
                "experiment={salt: spring_2, arms: {0: 0.5, 1: 0.5}, "
                "metrics: [{name: visit, kind: conversion, role: primary}]}"
            ],
            ["section experiment", "drop one"],
        ),
    ],
)
def test_what_knows_levels_alone_is_refused_with_a_grid(conf: Path, changes: list[str], words: list[str]) -> None:
    message = refused(conf, *GRID, *changes)
    assert [word for word in words if word not in message] == []


def test_costs_by_dose_need_doses(conf: Path) -> None:
    assert "needs levels of one dose each" in refused(conf, "economics.cost_per_dose=1")
