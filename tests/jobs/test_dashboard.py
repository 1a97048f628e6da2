"""`uplift dashboard`: pages from Delta tables in a folder, without Java; what is not there is said."""

from __future__ import annotations

import html
import json
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from deltalake import CommitProperties, write_deltalake
from pyspark.sql import SparkSession

from tests.dashboards.samples import sample_frames, sample_units
from uplift_spark.campaign import Campaign
from uplift_spark.errors import ConfigError, DamagedTableError, EnvironmentProblem
from uplift_spark.jobs import dashboard

CONF = {
    "campaign": "spring",
    "roles": {"outcome": "visit", "control": "none", "features": ["region"]},
    "economics": {"value": {"visit": 7.0}, "cost": {"mail": 0.5}},
    "lift": {"segments": ["region"]},
    "policy": {"budget": 1000},
}


def written(folder: Path, table: str, frame: pd.DataFrame, run_id: str) -> None:
    schema, name = table.split(".")
    notes = CommitProperties(custom_metadata={"userMetadata": json.dumps({"run_id": run_id})})
    rows = pa.Table.from_pandas(frame.reset_index(drop=True), preserve_index=False)
    write_deltalake(folder / schema / name, rows, mode="append", commit_properties=notes)


@pytest.fixture(scope="module")
def campaign(tmp_path_factory) -> Campaign:
    """A lakehouse as jobs leave it: scores, lift tables, a plan, monitored windows; no canary, no retrain."""
    home = tmp_path_factory.mktemp("dashboard")
    lake = home / "lake"
    conf = home / "spring.yaml"
    conf.write_text(yaml.safe_dump(CONF | {"lakehouse": {"path": str(lake)}}))
    units = sample_units(1200)
    ids = [f"u{i}" for i in range(1200)]
    scores = pd.DataFrame(
        {"unit_id": ids, "treatment": "mail", "uplift": units.benefit[:, 0], "uplift_lower": units.lower[:, 0]}
    ).assign(uplift_upper=lambda rows: 2 * rows["uplift"] - rows["uplift_lower"], uplift_se=0.01, low_support=False)
    scores = scores.assign(model_name="spring", model_version="3", feature_version=0, run_id="score-1")
    scores["scored_at"] = pd.Timestamp("2025-03-01", tz="UTC")
    written(lake, "gold.uplift_scores", scores, "score-1")
    training = pd.DataFrame(
        {"unit_id": ids, "treatment": ["none" if a % 2 == 0 else "mail" for a in units.arm], "visit": units.outcome}
    ).assign(propensity=0.5, split=["holdout" if a >= 0 else "train" for a in units.arm], region="north")
    written(lake, "silver.training_spring", training, "features-1")
    one = Campaign(conf)
    lift_run = one.lift_run
    frames = {key: rows.assign(campaign="spring") for key, rows in sample_frames().items() if key != "findings"}
    for name in ("lift_table", "uplift_curve", "uplift_metrics"):
        frames[name] = frames[name].drop(columns="campaign").assign(run_id=lift_run)
    for name, rows in frames.items():
        run_id = rows["run_id"].iloc[-1] if "run_id" in rows else "policy-1"
        written(lake, f"gold.{name}", rows.assign(run_id=rows.get("run_id", run_id)), run_id)
    reason = ["best within the limits"] * 500 + ["not worth it within the limits"] * 600 + ["rule young"] * 100
    decisions = pd.DataFrame({"unit_id": ids, "treatment": ["mail"] * 500 + ["none"] * 700, "reason": reason})
    decisions = decisions.assign(gain=1.0, cost=0.5, run_id="policy-1", campaign="spring", model_version="3")
    written(lake, "gold.policy_decisions", decisions, "policy-1")
    return one


def test_pages_are_written_from_the_tables(campaign, tmp_path):
    result = dashboard.run(campaign, request=dashboard.DashboardRequest(to=tmp_path))
    assert sorted(result.details["pages"]) == sorted(path.name for path in tmp_path.iterdir())
    assert not result.tables and not result.run_id
    page = (tmp_path / "executive.html").read_text()
    assert "500 of 1,200 units are to be treated" in page and "A rule bars 100, most by “rule young”" in page
    assert "An alert that pages is open: error_rate" in page
    debug = (tmp_path / "debug.html").read_text()
    assert "No retrain was considered yet" in debug and "gold.uplift_scores" in debug


def test_the_page_s_query_says_why_one_unit_gets_what_it_gets(campaign, tmp_path):
    dashboard.run(campaign, request=dashboard.DashboardRequest(to=tmp_path))
    page = html.unescape((tmp_path / "executive.html").read_text())
    query = re.search(r'uplift sql --conf CAMPAIGN.yaml "(SELECT d\.[^"]*)"', page)[1]
    rows = campaign.sql(query.replace("'ID'", "'u7'")).to_dict("records")
    (score,) = campaign.sql("SELECT * FROM gold.uplift_scores WHERE unit_id = 'u7'").to_dict("records")
    assert [(row["treatment"], row["level"], row["gain"]) for row in rows] == [("mail", "mail", 1.0)]
    assert rows[0]["uplift_lower"] == score["uplift_lower"] and rows[0]["reason"] == "best within the limits"


def test_whatif_counts_those_whom_no_rule_bars(campaign):
    tables = dashboard.campaign_tables(campaign)
    assert tables.whatif["units"] == 1100 and tables.whatif["leastUnits"] == 30
    held = sum(sum(arm["n"]) for arm in tables.whatif["plain"]["arms"])
    assert held == (sample_units(1200).arm[:1100] >= 0).sum()
    assert tables.frames["kpi"]["value"].tolist() == sample_frames()["kpi"]["value"].tolist()


def test_a_viewer_has_the_pages_without_sums_over_units(campaign, monkeypatch):
    def refused(config, verb):
        if verb == "simulate":
            raise ConfigError("you have the role viewer")

    monkeypatch.setattr(dashboard, "check_permitted", refused)
    tables = dashboard.campaign_tables(campaign)
    assert tables.whatif is None and tables.decisions is None and not tables.histogram
    assert tables.why_not == "What-if is left out: you have the role viewer." and len(tables.page.lift)


def test_a_lakehouse_without_tables_makes_pages_that_say_so(campaign, tmp_path):
    conf = tmp_path / "new.yaml"
    conf.write_text(yaml.safe_dump(CONF | {"lakehouse": {"path": str(tmp_path / "none")}}))
    dashboard.run(Campaign(conf), request=dashboard.DashboardRequest(to=tmp_path / "pages"))
    assert "Nothing was evaluated yet" in (tmp_path / "pages" / "executive.html").read_text()


def test_further_campaigns_stand_on_the_same_pages(campaign, tmp_path):
    conf = tmp_path / "autumn.yaml"
    conf.write_text(yaml.safe_dump(CONF | {"campaign": "autumn", "lakehouse": {"path": str(tmp_path / "none")}}))
    dashboard.run(campaign, request=dashboard.DashboardRequest(to=tmp_path, also=(conf,)))
    page = (tmp_path / "executive.html").read_text()
    assert re.findall(r"<option value=\"\d\">(\w+)</option>", page) == ["spring", "autumn"] and "All campaigns" in page


COMMIT = "00000000000000000000.json"


def cut_off(log: Path) -> str:
    (log / COMMIT).write_text((log / COMMIT).read_text()[:-40])
    return f"commit {COMMIT} is no JSON"


def without_columns(log: Path) -> str:
    lines = (log / COMMIT).read_text().splitlines()
    (log / COMMIT).write_text("\n".join(line for line in lines if "metaData" not in line))
    return f"commit {COMMIT} does not say what its columns are"


def with_a_gap(log: Path) -> str:
    shutil.copy(log / COMMIT, log / "00000000000000000002.json")
    return "commit 1 of its log is gone"


def without_rows(log: Path) -> str:
    (file,) = log.parent.glob("*.parquet")
    file.write_bytes(b"no rows")
    return f"{file.name} is no Parquet file"


@pytest.mark.parametrize("damage", [cut_off, without_columns, with_a_gap, without_rows])
@pytest.mark.parametrize("table", ["policy_limits", "lift_table"])
def test_a_damaged_table_is_named_and_starts_no_spark(campaign, tmp_path, monkeypatch, damage, table):
    lake = tmp_path / "lake"
    shutil.copytree(campaign.config.lakehouse.path, lake)
    wrong = damage(lake / "gold" / table / "_delta_log")
    conf = tmp_path / "spring.yaml"
    conf.write_text(yaml.safe_dump(CONF | {"lakehouse": {"path": str(lake)}}))
    monkeypatch.setattr("uplift_spark.campaign.spark_session", lambda *_: pytest.fail("Spark is started"))
    monkeypatch.setattr(SparkSession, "getActiveSession", lambda: None)  # other tests may have left one
    words = f"table gold.{table} is damaged, {wrong} in {lake}/gold/{table}: restore the folder from a backup"
    for what in ("write", "serve"):
        with pytest.raises(DamagedTableError, match=re.escape(words)):
            dashboard.run(Campaign(conf), request=dashboard.DashboardRequest(what, tmp_path / "pages", port=0))
    with pytest.raises(DamagedTableError, match=re.escape(words)):
        Campaign(conf).sql(f"SELECT * FROM gold.{table}")
    assert len(Campaign(conf).sql("SELECT * FROM gold.kpi")) > 0  # others are read


def test_anything_but_serve_is_refused():
    with pytest.raises(ConfigError, match="has no 'show'"):
        dashboard.DashboardRequest("show")


def test_a_folder_or_a_port_that_cannot_be_used_is_said_in_one_sentence(campaign, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="file cannot be written"):
        dashboard.run(campaign, request=dashboard.DashboardRequest(to=tmp_path / "file"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentProblem, match=f"port {port} of 127.0.0.1 cannot be used .*: name another"):
            dashboard.run(campaign, request=dashboard.DashboardRequest("serve", port=port))


@pytest.mark.slow
def test_pages_need_no_java(campaign, tmp_path):
    """The command starts no JVM: with JAVA_HOME nowhere it writes the pages all the same."""
    house = campaign.config.lakehouse.path
    conf = tmp_path / "spring.yaml"
    conf.write_text(yaml.safe_dump(CONF | {"lakehouse": {"path": house}}))
    command = [
        sys.executable,
        "-m",
        "uplift_spark.cli",
        "dashboard",
        "--conf",
        str(conf),
        "--to",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False,
        env={"PATH": "/nowhere", "JAVA_HOME": "/nowhere", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.html"))) == 3 and "Spark" not in done.stderr
