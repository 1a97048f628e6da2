"""`uplift export`: who is held back by what is known of consent when scores leave, and that files come whole."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.jobs.test_train_score import TABLE, conf, training_rows
from uplift_spark.campaign import Campaign
from uplift_spark.config import Consent, Lakehouse
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.governance.erasure import Erasure
from uplift_spark.jobs import erase, export, score, train
from uplift_spark.jobs import export as steps
from uplift_spark.jobs.export import Export
from uplift_spark.lake.tables import Lake
from uplift_spark.sections.governance import Governance

pytestmark = pytest.mark.slow  # runs whole jobs, tens of seconds each

UNITS = [f"u{i}" for i in range(40)]


def says(lake, run, granted, units, at="2025-01-01", purpose="marketing"):
    frame = lake.spark.createDataFrame(
        [(unit, purpose, granted, "file") for unit in units],
        "unit_id string, purpose string, granted boolean, source string",
    )
    times = (f"timestamp'{at}' AS changed_at", f"timestamp'{at}' AS known_at")
    lake.write("bronze.consent", frame.selectExpr("*", *times), run)


def exported(lake, folder, required=True, price_levels=(), **how):
    config = replace(conf(lake), consent=Consent(required=required), governance=Governance(price_levels=price_levels))
    return export.run(Campaign(config, lake), export=Export(str(folder), **how)).details


def decided(lake, version):
    """A plan of the campaign: 5 % for ten units, 10 % for five, nothing for the others."""
    levels = ["5%"] * 10 + ["10%"] * 5 + ["none"] * 25
    rows = [("spring", unit, level, "so", 1.0, 0.1, 0.9, version) for unit, level in zip(UNITS, levels, strict=True)]
    names = "campaign string, unit_id string, treatment string, reason string, gain double, cost double, value double"
    frame = lake.spark.createDataFrame(rows, f"{names}, model_version string")
    lake.write("gold.policy_decisions", frame, f"policy-{version}")


def units_in(folder):
    return set(pd.read_parquet(folder).unit_id)


@pytest.fixture(scope="module")
def scored(spark, tmp_path_factory):
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("export"))))
    lake.write(TABLE, spark.createDataFrame(training_rows(80)), "features-1", mode="overwrite")
    train.run(Campaign(conf(lake), lake))
    lake.write(TABLE, spark.createDataFrame(training_rows(40)), "features-2", mode="overwrite")  # fewer are scored
    with pytest.raises(DataError, match=r"table gold\.uplift_scores"):
        exported(lake, "/nowhere/x")
    score.run(Campaign(conf(lake), lake))
    return lake


def test_the_gate_counts_what_arrives_after_scoring(scored, tmp_path):
    with pytest.raises(DataError, match=r"bronze\.consent does not exist.*uplift load.*set consent\.required to false"):
        exported(scored, tmp_path / "none")
    assert exported(scored, tmp_path / "all", required=False)["units"] == 40
    decided(scored, "1")
    plan = exported(scored, tmp_path / "plan", required=False, plan=True)  # no table of consent, and none is needed
    assert (plan["units"], plan["untreated"], plan["plan"]) == (15, 25, "policy-1")
    assert plan["levels"] == {"10%": 5, "5%": 10} and plan["held_back"] == 0
    rows = pd.read_parquet(tmp_path / "plan").set_index("unit_id").sort_index()
    assert rows.treatment.to_dict() == {unit: "5%" if i < 10 else "10%" for i, unit in enumerate(UNITS[:15])}
    assert {"campaign", "reason", "gain", "cost", "model_version"} == set(rows) - {"treatment"}
    priced = exported(scored, tmp_path / "priced", required=False, plan=True, price_levels=("10%",))
    noticed = pd.read_parquet(tmp_path / "priced").set_index("unit_id").sort_index()
    assert (noticed.price_notice == (noticed.treatment == "10%")).all() and priced["price_notices"] == 5
    with pytest.raises(ConfigError, match=r"governance\.price_levels names '20%': (it has|did you mean)"):
        exported(scored, tmp_path / "wrong", required=False, plan=True, price_levels=("20%",))
    says(scored, "c1", True, UNITS[:30])
    assert units_in(tmp_path / "all") == set(UNITS)
    first = exported(scored, tmp_path / "granted")
    assert (first["units"], first["held_back"]) == (30, {"no consent": 10})
    assert exported(scored, tmp_path / "planned", plan=True)["units"] == 15
    assert units_in(tmp_path / "granted") == set(UNITS[:30])
    says(scored, "c2", False, [*UNITS[:3], UNITS[35]], at="2025-01-02")
    third = exported(scored, tmp_path / "treated", format="csv", plan=True)
    assert (third["units"], third["levels"], third["held_back"]) == (12, {"10%": 5, "5%": 7}, {"withdrew": 3})
    second = exported(scored, tmp_path / "fewer", format="csv")
    rows = pd.concat(map(pd.read_csv, (tmp_path / "fewer").glob("*.csv")))
    assert set(rows.unit_id) == set(UNITS[3:30]) and len(rows) == 2 * 27
    assert {"unit_id", "treatment", "uplift", "model_version"} <= set(rows) and "run_id" not in rows
    assert (second["units"], second["held_back"]) == (27, {"withdrew": 4, "no consent": 9})
    assert exported(scored, tmp_path / "most", required=False)["held_back"] == {"withdrew": 4}
    assert exported(scored, tmp_path / "case", purpose=" Marketing")["units"] == 27
    with pytest.raises(
        DataError, match=r"bronze\.consent has 34 rows, none of them of purpose 'mail' but of marketing"
    ):
        exported(scored, tmp_path / "other", required=False, purpose="mail")
    says(scored, "c9", False, ["U1", "U2"], purpose="profiling")
    message = (
        r"none of the rows of bronze\.consent of purpose 'profiling' is of a unit .* look like 'U1', here like 'u0'"
    )
    with pytest.raises(DataError, match=message):
        exported(scored, tmp_path / "other", required=False, purpose="profiling", plan=True)
    assert not (tmp_path / "other").exists()
    says(scored, "c10", False, [" u9\n"], purpose="calls")
    assert exported(scored, tmp_path / "calls", required=False, purpose="calls")["held_back"] == {"withdrew": 1}
    erase.run(Campaign(conf(scored), scored), erasure=Erasure((UNITS[5],)))  # the forest is another one now
    with pytest.raises(DataError, match="no row of model 'spring' version 2: run `uplift score`"):
        exported(scored, tmp_path / "late")
    with pytest.raises(
        DataError, match=r"policy_decisions has no run of campaign spring by model version 2.*uplift pol"
    ):
        exported(scored, tmp_path / "late", plan=True)
    score.run(Campaign(conf(scored), scored))
    assert exported(scored, tmp_path / "late")["units"] == 26
    assert UNITS[5] not in units_in(tmp_path / "late")
    says(scored, "c3", False, UNITS, at="2025-01-03")
    assert exported(scored, tmp_path / "zero")["units"] == 0
    assert units_in(tmp_path / "zero") == set()  # a folder with no row in it


def test_the_entry_comes_before_the_files(monkeypatch):
    order, details = [], {"model": "spring", "version": 1, "units": 3, "held_back": 0}
    monkeypatch.setattr(steps, "scores_to_export", lambda *_: ("rows", "export-1", details))
    monkeypatch.setattr(steps, "record_event", lambda _config, _lake, event, once: order.append((event.details, once)))
    monkeypatch.setattr(steps, "_write", lambda rows, _export: order.append(rows))
    result = export.run(Campaign(conf(Lake(None, Lakehouse()))), export=Export("/nowhere/x"))
    assert order == [({"units": 3, "held_back": 0}, False), "rows"] and result.details["files"] == "/nowhere/x"


def test_files_come_whole_or_not_at_all(tmp_path, spark, monkeypatch):
    rows = spark.range(5)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(EnvironmentProblem, match="cannot be made: No space left"):
            steps._write(rows, Export(str(tmp_path / "out")))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.partial").mkdir()  # somebody else's
    (tmp_path / ".out.partial" / "kept").touch()
    steps._write(rows, Export(str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_dir()) == [".out.partial", "out"]
    assert (tmp_path / ".out.partial" / "kept").exists()
    late = Export(str(tmp_path / "late"))
    (tmp_path / "late").mkdir()
    with pytest.raises(ConfigError, match="came to be meanwhile"):
        steps._write(rows, late)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.partial", "late", "out"]
    assert spark.read.parquet(str(tmp_path / "out")).count() == 5
    uri = (tmp_path / "uri").as_uri()
    steps._write(rows, Export(uri))
    assert (tmp_path / "uri" / "_SUCCESS").exists()


def test_csv_is_read_alike_by_other_programs_and_computes_nothing(tmp_path, spark):
    texts = ["plain", ' a "b", c ', "=1+2", "@x", "-2+3", "-5", "+1.5e3", "\t=x", None, "", "a-b"]
    rows = spark.createDataFrame(
        [(i, text, -0.5) for i, text in enumerate(texts)], "i int, unit_id string, gain double"
    )
    steps._write(rows.coalesce(1), Export(str(tmp_path / "out"), "csv"))
    (file,) = (tmp_path / "out").glob("*.csv")
    with file.open(newline="", encoding="utf-8") as stream:
        header, *cells = list(csv.reader(stream))
    assert header == ["i", "unit_id", "gain"] and {gain for _, _, gain in cells} == {"-0.5"}
    formulas = {"=1+2": "'=1+2", "@x": "'@x", "-2+3": "'-2+3", "\t=x": "'\t=x"}
    assert [text for _, text, _ in cells] == [formulas.get(text, text or "") for text in texts]
    assert file.read_bytes().count(b"\r\n") == len(texts) + 1
    steps._write(rows, Export(str(tmp_path / "kept")))
    assert {row["unit_id"] for row in spark.read.parquet(str(tmp_path / "kept")).collect()} == set(texts)


def test_an_export_that_makes_no_sense_is_refused(tmp_path):
    for options, message in (
        ({"to": str(tmp_path)}, "there already"),
        ({"to": " "}, "is blank"),
        ({"to": "x", "format": "xlsx"}, "use one of csv, parquet"),
        ({"to": "x", "purpose": " "}, "--purpose is blank"),
    ):
        with pytest.raises(ConfigError, match=message):
            Export(**options)
