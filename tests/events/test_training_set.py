"""Which units models learn from after a targeted campaign: those whose level was random, or not certain."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from tests.jobs.conftest import rows_of
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, ForestConf, Labels, RegistryConf, RolesConf
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.training_set import said_of_targeted
from uplift_spark.experiments.assignment import Experiment, assign
from uplift_spark.forest.forest import average_effect

SENT, ARMS = datetime(2025, 1, 6), {"none": 0.5, "mail": 0.5}
EFFECT = 0.5  # on average


def test_what_is_said_of_units_whose_level_was_certain() -> None:
    assert said_of_targeted({("none", False): 10, ("mail", False): 10}) == ""
    said = said_of_targeted({("none", False): 100, ("mail", False): 120, ("mail", True): 1780})
    assert "learn from 220 of 2,000 units" in said and "the other 1,780 got theirs from a policy" in said
    with pytest.raises(DataError, match="all 1,780 units with level 'mail' got it by a policy that was certain"):
        said_of_targeted({("none", False): 100, ("mail", True): 1780})


def campaign_rows(n: int, log: str, seed: int = 4) -> pd.DataFrame:
    """Units with x above .5 are mailed by a policy, one in four has a random level; mail adds 1 - x to about 4·x.

    What is logged: `by_design` of the level, given that nobody knows who is explored; or `certain`, 1 for units that
    the policy decided for, and .5 for the others.
    """
    rng = np.random.default_rng(seed)
    d = pd.DataFrame({"unit_id": [f"u{k}" for k in range(n)], "x": rng.random(n)})
    d["planned"] = np.where(d["x"] > 0.5, "mail", "none")
    arms = assign(d["unit_id"], DESIGN, decisions=d["planned"])
    d["treatment"], d["explored"] = arms["treatment"], arms["explored"]
    d["propensity"] = arms["propensity"] if log == "by_design" else np.where(arms["explored"], 0.5, 1.0)
    d["spend"] = 4 * d["x"] + (1 - d["x"]) * (d["treatment"] == "mail") + rng.normal(0, 0.5, n)
    return d


DESIGN = Experiment("spring-2025", ARMS, exploration=0.25)
SECTION = {
    **{"salt": "spring-2025", "arms": ARMS, "exploration": 0.25, "decision": "planned"},
    **{"metrics": [{"name": "spend", "kind": "revenue", "role": "primary"}]},
}


def campaign_of(lake, rows: pd.DataFrame, experiment: dict | None = None) -> Campaign:
    """A campaign whose events are in the lakehouse."""
    spark = lake.spark
    origin = {"source": "log", "known_at": SENT}
    assigned = rows[["unit_id", "treatment", "propensity"]].assign(campaign="spring", assigned_at=SENT, source="log")
    lake.write("bronze.assignment", spark.createDataFrame(assigned), "by-hand")
    profile = rows[["unit_id", "x"]].assign(
        observed_at=datetime(2025, 1, 1), **{**origin, "known_at": datetime(2025, 1, 1)}
    )
    lake.write("bronze.profile_spring", spark.createDataFrame(profile), "by-hand")
    happened = {"campaign": "spring", "outcome": "spend", "occurred_at": datetime(2025, 1, 7)}
    bought = rows[["unit_id"]].assign(
        value=rows["spend"], event_id=rows["unit_id"], **happened, **{**origin, "known_at": datetime(2025, 1, 7)}
    )
    lake.write("bronze.outcome", spark.createDataFrame(bought), "by-hand")
    config = Config(
        campaign="spring", source={"kind": "simulation"}, roles=RolesConf("spend", "none", ("x",)),
        labels=Labels(window_days=7, as_of=datetime(2025, 2, 1)), lakehouse=lake.lakehouse, experiment=experiment,
        forest=ForestConf(n_trees=24, min_leaf=20, n_buckets=4), registry=RegistryConf(),
    )  # fmt: skip
    return Campaign(config, lake)


def learnt(campaign: Campaign) -> tuple[float, list[str]]:
    """Average effect of mail that the jobs find, and what they say."""
    from uplift_spark.jobs import features, train

    said: list[str] = []
    features.run(campaign, said.append)
    result = train.run(campaign, said.append)
    model = campaign.registry.load(campaign.registry.find("spring", int(str(result.details["version"]))))
    return average_effect(model)["mail"], said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("log", "train_on", "targeted"),
    [("certain", None, True), ("by_design", "logged", False), ("by_design", "random", True)],
)
def test_a_targeted_campaign_teaches_the_true_effect(lake, log: str, train_on: str | None, targeted: bool) -> None:
    rows = campaign_rows(4000, log)
    by_arm = rows.groupby("treatment")["spend"].mean()
    assert by_arm["mail"] - by_arm["none"] > EFFECT + 1  # as if the policy's choice were by chance
    campaign = campaign_of(lake, rows, None if train_on is None else {**SECTION, "train_on": train_on})
    effect, said = learnt(campaign)
    assert effect == pytest.approx(EFFECT, abs=0.15)
    training = rows_of(lake, "silver.training_spring").set_index("unit_id").loc[rows["unit_id"]]
    if train_on == "random":  # readouts of the policy need what was logged
        assert training["logged_propensity"].to_numpy() == pytest.approx(rows["propensity"].to_numpy())
        assert set(training.loc[training["split"] != "targeted", "propensity"]) == {0.5}
    split = training["split"]
    assert ((split == "targeted").to_numpy() == (~rows["explored"].to_numpy() if targeted else False)).all()
    sentences = [line for line in said if "show no effect" in line]
    n = int(rows["explored"].sum())
    assert sentences == ([] if not targeted else sentences) and len(sentences) == targeted
    assert not targeted or f"learn from {n:,} of 4,000 units" in sentences[0]


@pytest.mark.slow
def test_without_a_random_level_nothing_is_learnt(lake) -> None:
    from uplift_spark.jobs import features, train

    rows = campaign_rows(400, "certain")
    campaign = campaign_of(lake, rows[~rows["explored"] | (rows["treatment"] == "none")])
    features.run(campaign)
    with pytest.raises(DataError, match="units with level 'mail' got it by a policy that was certain"):
        train.run(campaign)


def test_random_arms_need_ids_and_exploration(tmp_path) -> None:
    from uplift_spark.experiments.protocol import random_propensity

    parts = {"campaign": "spring", "source": {"kind": "simulation"}, "roles": RolesConf("spend", "none", ("x",))}
    config = Config(**parts, experiment={**SECTION, "train_on": "random"})
    assert config.run_identity("features") != Config(**parts, experiment=SECTION).run_identity("features")
    plain = {key: value for key, value in SECTION.items() if key not in ("exploration", "decision")}
    with pytest.raises(ConfigError, match=r"train_on is random, but without experiment\.exploration every arm is"):
        Config(**parts, experiment={**plain, "train_on": "random"})
    assert random_propensity(Config(**parts, experiment=SECTION)) is None
    with pytest.raises(ConfigError, match="which the training set has as pseudonyms"):
        random_propensity(replace(config, pseudonyms={"key_env": "UPLIFT_KEY"}))
