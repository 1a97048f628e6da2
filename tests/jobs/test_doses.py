"""Treatments that are numbers, from the file to the report: a price trial whose truth is known, and a real one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.jobs.conftest import rows_of
from uplift_spark import CausalForest, UpliftModel
from uplift_spark.campaign import Campaign
from uplift_spark.config import load_config
from uplift_spark.errors import ConfigError
from uplift_spark.events.ingest import DATA_FOLDER
from uplift_spark.jobs import features, ingest, lift, policy, publish, refresh, report, score, train
from uplift_spark.lake.tables import Lake

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

N = 4000
GRID = (1.0, 2.0, 3.0)
LINE = (ingest, features, train, score, lift, policy, report)


def price_trial(n: int = N, first: int = 0) -> pd.DataFrame:
    """Customers whose voucher is any number of dollars up to 3, nothing for a fifth of them; `slope` is the truth."""
    rng = np.random.default_rng(first)
    age, mood = rng.uniform(18, 80, n).round(1), rng.normal(size=n).round(3)
    voucher = np.where(rng.random(n) < 0.2, 0.0, rng.uniform(0, 3, n).round(3))
    slope = np.where(age > 50, 2.0, 0.5)
    spend = 1 + 0.5 * mood + slope * voucher + rng.normal(size=n)
    ids = [f"u{i}" for i in range(first, first + n)]
    region = rng.choice(["north", "south"], n)
    columns = {"id": ids, "voucher": voucher, "spend": spend, "age": age, "mood": mood, "region": region}
    return pd.DataFrame({**columns, "slope": slope})


def conf(folder: Path, path: Path, **changes: Any) -> Path:
    """A configuration for a trial of vouchers as users write it."""
    attributes = ["age", "mood", "region"]
    sections = {
        "campaign": "vouchers",
        "source": {
            "kind": "table",
            "path": str(path),
            "unit": "id",
            "treatment": "voucher",
            "outcomes": ["spend"],
            "attributes": attributes,
        },
        "roles": {"outcome": "spend", "control": "0", "grid": list(GRID), "features": attributes},
        "forest": {"n_trees": 60},
        "lift": {"segments": ["region"], "bins": 10, "replicates": 50},
        "economics": {"value": {"spend": 1}, "cost_per_dose": 1},
        "policy": {"budget": 1000},
        "lakehouse": {"path": str(folder / "lakehouse")},
        **changes,
    }
    file = folder / f"{sections['campaign']}.yaml"
    file.write_text(yaml.safe_dump(sections))
    return file


def test_a_price_trial_whose_truth_is_known(lake: Lake, tmp_path: Path) -> None:
    trial = price_trial()
    path = tmp_path / "vouchers.csv"
    trial.drop(columns="slope").to_csv(path, index=False)
    campaign = Campaign(load_config(conf(tmp_path, path)), lake)
    results = {job.__name__.rpartition(".")[2]: job.run(campaign, lambda line: None) for job in LINE}

    training = rows_of(lake, "silver.training_vouchers").set_index("unit_id")
    assert training["dose"].to_dict() == trial.set_index("id")["voucher"].to_dict()
    nearest = np.abs(training["dose"].to_numpy()[:, None] - [0, *GRID]).argmin(axis=1)
    assert training["treatment"].to_list() == [("0", "1", "2", "3")[one] for one in nearest]

    # Effects at the doses of the grid against the truth, on units that training never saw.
    effects = rows_of(lake, "gold.uplift_scores")
    assert set(effects["treatment"]) == {"1", "2", "3"} and len(effects) == 3 * N
    held = training[training["split"] == "holdout"]
    effects = effects[effects["unit_id"].isin(held.index)]
    truth = effects["unit_id"].map(trial.set_index("id")["slope"]) * effects["treatment"].astype(float)
    error = np.sqrt(((effects["uplift"] - truth) ** 2).mean())
    covered = effects["uplift_lower"].le(truth) & truth.le(effects["uplift_upper"])
    assert error < truth.std() / 4, (error, truth.std())
    assert covered.mean() > 0.85, covered.mean()
    # A forest of the levels alone takes the doses of a bin for that of its name.
    levels = CausalForest(n_trees=60, seed=7).fit(
        training[training["split"] == "train"].reset_index(), campaign.config.unit_roles
    )
    by_level = levels.effect(held.reset_index()).set_index(["unit_id", "treatment"])["uplift"]
    exact = effects.assign(truth=truth).set_index(["unit_id", "treatment"])["truth"]
    assert error < np.sqrt(((by_level - exact) ** 2).mean())

    lifted = rows_of(lake, "gold.lift_table", cut="all").set_index("treatment")["uplift"]
    mean = rows_of(lake, "gold.uplift_metrics", metric="mean_dose").set_index("treatment")["value"]
    assert mean.to_dict() == pytest.approx(held.groupby("treatment")["dose"].mean().to_dict())
    slope = trial["slope"].mean()
    for level in ("1", "2", "3"):
        assert lifted[level] == pytest.approx(slope * (mean[level] - mean["0"]), abs=0.35)
    sentence = f"Mean doses are 1 {mean['1']:.4g}, 2 {mean['2']:.4g}, 3 {mean['3']:.4g}"
    assert sentence in results["lift"].details["summary"]
    page = (tmp_path / "lakehouse" / "reports" / "vouchers" / "latest.html").read_text()
    assert sentence in page
    assert "dose_spend.png" in results["lift"].details["pictures"] and campaign.plot.doses() is not None

    plan = rows_of(lake, "gold.policy_decisions").set_index("unit_id")
    assert plan["cost"].sum() <= 1000 and set(plan["treatment"]) <= {"0", "1", "2", "3"}
    paid = plan[plan["treatment"] != "0"]
    assert (paid["cost"] == paid["treatment"].astype(float)).all()  # a dollar a dollar
    assert paid.index.map(trial.set_index("id")["slope"]).to_numpy().mean() > 1.95  # who responds by less costs more


def test_new_rows_come_into_the_trees(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "vouchers.csv"
    trial = price_trial(1500).drop(columns="slope")
    trial.to_csv(path, index=False)
    campaign = Campaign(load_config(conf(tmp_path, path, forest={"n_trees": 16}, consent={"required": False})), lake)
    for job in LINE[:3]:
        job.run(campaign, lambda line: None)
    more = price_trial(500, first=1500).drop(columns="slope")
    pd.concat([trial, more]).to_csv(path, index=False)
    ingest.run(campaign, lambda line: None, replace=True)
    features.run(campaign, lambda line: None)
    refreshed = refresh.run(campaign, lambda line: None)
    assert refreshed.details["version"] == 2 and refreshed.details["trees_of"] == 1
    score.run(campaign, lambda line: None)
    assert len(rows_of(lake, "gold.uplift_scores")) == 3 * 2000
    assert publish.run(campaign, lambda line: None).details["units"] == 2000
    pytest.importorskip("onnx")
    assert len(UpliftModel(campaign.registry.load(campaign.model_in_use)).to_onnx("2")) > 1000


def test_rows_in_any_partitions_make_the_same_model(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "vouchers.csv"
    price_trial(1500).drop(columns="slope").to_csv(path, index=False)
    campaign = Campaign(load_config(conf(tmp_path, path)), lake)
    for job in LINE[:2]:
        job.run(campaign, lambda line: None)
    rows, roles = lake.read("silver.training_vouchers"), campaign.config.training_roles
    forest = CausalForest(n_trees=16)
    expected = forest.fit(rows.toPandas(), roles).to_bytes()
    assert [forest.fit(rows.repartition(n), roles).to_bytes() == expected for n in (1, 2, 7)] == [True] * 3


THORNTON = Path(os.environ.get(DATA_FOLDER, "")) / "thornton_hiv" / "thornton_hiv.dta"


@pytest.mark.skipif(not THORNTON.is_file(), reason="thornton_hiv/thornton_hiv.dta is not in $UPLIFT_DATA")
def test_a_real_trial_of_incentives(lake: Lake, tmp_path: Path) -> None:
    """Thornton (2008): vouchers drawn at random, from nothing to three dollars, for who picks up a test's result."""
    frame = pd.read_stata(THORNTON)
    rows = frame[["tinc", "got", "age", "distvct", "villnum"]].dropna(subset=["tinc", "got", "villnum"])
    path = tmp_path / "incentives.parquet"
    rows.assign(villnum=rows["villnum"].astype(int)).reset_index(names="id").to_parquet(path)
    source = {
        "kind": "table",
        "path": str(path),
        "unit": "id",
        "treatment": "tinc",
        "outcomes": ["got"],
        "attributes": ["age", "distvct", "villnum"],
    }
    roles = {"outcome": "got", "control": "0", "grid": [1, 2, 3], "features": ["age", "distvct"], "cluster": "villnum"}
    file = conf(
        tmp_path, path, source=source, roles=roles, campaign="incentives",
        economics={"value": {"got": 10}, "cost_per_dose": 1}, lift={"bins": 10, "replicates": 50},
    )  # fmt: skip
    campaign = Campaign(load_config(file), lake)
    for job in LINE:
        job.run(campaign, lambda line: None)
    effect = campaign.lift_table(cut="all").set_index("treatment")["uplift"]
    # By her regressions any incentive brings about .43. Some of the control's bin got a few cents, so lift shows less.
    scores = rows_of(lake, "gold.uplift_scores").groupby("treatment")["uplift"].mean()
    assert 0.2 < effect["1"] < effect["2"] < 0.5, effect
    assert ((scores - effect).between(0, 0.15) & scores.between(0.3, 0.6)).all(), (scores, effect)


def test_a_meta_learner_of_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"learner.kind x_learner knows levels"):
        load_config(conf(tmp_path, tmp_path / "x.csv", learner={"kind": "x_learner"}))
