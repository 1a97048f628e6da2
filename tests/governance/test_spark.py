"""The audit log in tables: writers at once, a plan whose decisions are proven, and what verification finds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tests.jobs import test_policy
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.governance.audit import AuditEvent, CheckpointFolder, bucket_of, decision_leaf, merkle_root
from uplift_spark.governance.spark import (
    AuditLog,
    _split,
    finite_values,
    known_batches,
    leaf_batches,
    rebuilt_batches,
    record_event,
    tree_batches,
)
from uplift_spark.jobs import audit, policy
from uplift_spark.lake.tables import Lake
from uplift_spark.sections.governance import AuditConf, CheckpointKey, Governance


def on_record(config: Config, folder: Path) -> Config:
    key = CheckpointKey(kind="hmac", key_env="UPLIFT_AUDIT_KEY")
    return replace(config, governance=Governance(audit=AuditConf(str(folder), key)))


@pytest.fixture(scope="module", autouse=True)
def key():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPLIFT_AUDIT_KEY", "a secret of sixteen bytes")
        yield


@pytest.fixture(scope="module")
def planned(spark, tmp_path_factory) -> Campaign:
    """A campaign whose plan is on record, with checkpoints in another folder."""
    folder = tmp_path_factory.mktemp("governed")
    lake = Lake(spark, Lakehouse(path=str(folder / "lakehouse")))
    training, scores = test_policy.frames()
    lake.write("silver.training_spring", spark.createDataFrame(training), "features-1", mode="overwrite")
    lake.write("gold.uplift_scores", spark.createDataFrame(scores), "score-1")
    config = on_record(test_policy.conf(lake, limits=(), exclude={"young": "age < 25"}), folder / "elsewhere")
    campaign = Campaign(config, lake)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        policy.run(campaign)
        policy.run(campaign)  # a rerun is the same plan and adds no entry
    return campaign


@pytest.mark.slow
def test_writers_at_once_make_one_chain(lake: Lake, tmp_path: Path) -> None:
    config = on_record(test_policy.conf(lake), tmp_path / "elsewhere")
    assert record_event(replace(config, governance=Governance()), lake, AuditEvent("", "erase", "x", "y", "")) is None
    assert lake.tables() == []

    def write(number: int) -> int:
        entry = record_event(config, lake, AuditEvent("ann", "erase", f"units of run {number}", "a request", ""))
        assert entry is not None
        return entry.seq

    with ThreadPoolExecutor(3) as pool:
        numbers = list(pool.map(write, range(5)))
    assert sorted(numbers) == [1, 2, 3, 4, 5]
    assert write(2) == numbers[2] and write(4) == numbers[4]  # said already
    assert (
        record_event(config, lake, AuditEvent("ann", "erase", "units of run 4", "a request", ""), once=False).seq == 6
    )
    log = AuditLog(config, lake)
    checked = log.verify()
    assert checked.holds and (checked.entries, checked.covered) == (6, 6)
    assert len(CheckpointFolder(str(tmp_path / "elsewhere")).read()) == 6
    with pytest.raises(Exception, match="DELTA_CANNOT_MODIFY_APPEND_ONLY"):
        lake.spark.sql(f"DELETE FROM {lake.reference('gold.audit_log')} WHERE seq = 6")
    with lake.unlocked("gold.audit_log"):
        lake.spark.sql(f"INSERT INTO {lake.reference('gold.audit_log')} BY NAME SELECT 'erase' AS action")
    assert log.verify().findings == ("row 1 has no seq: it was edited, or is none of the log's",)
    with lake.unlocked("gold.audit_log"):
        lake.spark.sql(f"DELETE FROM {lake.reference('gold.audit_log')} WHERE seq IS NULL")
    with lake.unlocked("gold.audit_log"):  # an attacker who may write the lakehouse
        lake.spark.sql(f"DELETE FROM {lake.reference('gold.audit_log')} WHERE seq = 6")
    assert "the log has 5 entries, and a checkpoint says 6: its end was cut off" in log.verify().findings
    with pytest.raises(DataError, match="the audit log does not hold, 1 findings: the log has 5 entries"):
        audit.run(Campaign(config, lake), question=audit.AuditQuestion("verify"))


@pytest.mark.slow
def test_a_verdict_that_was_taken_back_is_on_record_again(lake: Lake, tmp_path: Path) -> None:
    config = on_record(test_policy.conf(lake), tmp_path / "elsewhere")

    def verdict(action: str) -> int:
        event = AuditEvent("bob", action, "model spring version 1", "because", "")
        entry = record_event(config, lake, event, among=("approve", "reject"))
        assert entry is not None
        return entry.seq

    assert [verdict(one) for one in ("approve", "approve", "reject", "approve", "approve")] == [1, 1, 2, 3, 3]


def test_a_plan_is_on_record_and_each_decision_is_proven(planned: Campaign) -> None:
    log = AuditLog(planned.config, planned.lake)
    shown = audit.run(planned, question=audit.AuditQuestion("show")).details["entries"]
    assert list(shown["action"]) == ["decide"] and shown["subject"][0].startswith("plan policy-")
    checked = audit.run(planned, question=audit.AuditQuestion("verify", decisions=True)).details
    assert checked["entries"] == 1 and checked["checkpoints"].startswith("all 1 entries are covered")
    answer = log.explain("u1")
    decision = planned.decisions().where("unit_id = 'u1'").collect()[0]
    assert answer["decision"]["treatment"] == decision["treatment"] and answer["proven"]
    assert set(answer["scores"]) == {"5%", "10%"} and "spend" in answer["prices"]
    assert answer["versions"]["scores"] == "score-1" and answer["versions"]["silver.training_spring"] == 0
    assert answer["assignment"]["propensity"] is not None
    text = audit.run(planned, question=audit.AuditQuestion("explain", "u1")).details["explanation"]
    for words in (
        "Unit u1 gets",
        "Score of 10%",
        "Price of spend",
        "Rule young: age < 25",
        "entry 1 of",
        "a proof leads",
    ):
        assert words in text
    with pytest.raises(DataError, match="has no decision about unit 'nobody'"):
        log.explain("nobody")
    with pytest.raises(DataError, match="has no plan policy-x of campaign spring"):
        log.explain("u1", "policy-x")


@pytest.mark.slow
def test_edited_decisions_and_hashes_are_found(planned: Campaign) -> None:
    lake, log = planned.lake, AuditLog(planned.config, planned.lake)
    decisions, trees = lake.reference("gold.policy_decisions"), lake.reference("gold.audit_trees")
    lake.spark.sql(f"UPDATE {decisions} SET gain = gain + 1 WHERE unit_id IN ('u1', 'u2')")
    assert log.verify().holds  # the log itself does
    (found,) = log.verify(decisions=True).findings
    assert found.startswith("gold.policy_decisions: 2 decisions of plan policy-")
    with pytest.raises(DataError, match="edited after the plan was written"):
        log.explain("u1")
    assert log.explain("u3")["proven"]
    lake.spark.sql(f"DELETE FROM {decisions} WHERE unit_id IN ('u1', 'u2')")  # as an erasure does
    assert log.verify(decisions=True).holds and log.explain("u3")["proven"]
    with lake.unlocked("gold.audit_trees"):
        lake.spark.sql(f"UPDATE {trees} SET leaves = concat(leaves, unhex('{decision_leaf({'a': 1}).hex()}'))")
    assert "were edited" in log.verify().findings[0]


def decisions(n: int) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "run_id": ["policy-1"] * n, "campaign": ["spring"] * n, "unit_id": [f"u{i}" for i in range(n)],
            "treatment": ["5%"] * n, "reason": ["best"] * n, "gain": [i / 3 for i in range(n)], "cost": [0.1] * n,
            "value": [None] * n, "model_version": ["1"] * n,
        }
    )  # fmt: skip


def test_workers_build_the_same_tree_from_any_batches_and_find_edited_ones() -> None:
    whole = decisions(500)
    (leaves,) = leaf_batches(4, iter([whole]))
    assert leaves["bucket"].to_pylist()[:3] == [bucket_of(f"u{i}", 4) for i in range(3)]
    first = whole.slice(0, 1).to_pylist()[0]
    assert leaves["leaf"][0].as_py() == decision_leaf(first) != decision_leaf(first | {"gain": 1.0})
    ordered = pa.Table.from_batches([leaves]).sort_by([("bucket", "ascending"), ("leaf", "ascending")])
    trees = [list(tree_batches(iter(ordered.to_batches(max_chunksize=size)))) for size in (1000, 7)]
    tables = [pa.Table.from_batches(one) for one in trees]
    assert tables[0].equals(tables[1]) and tables[0]["units"].to_pylist() == [
        leaves["bucket"].to_pylist().count(b) for b in range(4)
    ]
    assert list(tree_batches(iter([]))) == []
    rows = tables[0].to_pylist()
    assert [merkle_root(sorted(_split(row["leaves"]))).hex() for row in rows] == [row["root"] for row in rows]
    assert sum(len(batch) for batch in known_batches(iter(tables[0].to_batches()))) == 500
    assert not [b for one in rebuilt_batches(iter(tables[0].to_batches())) for b in one["bucket"].to_pylist()]
    rows[2]["leaves"] = rows[2]["leaves"][:-32] + bytes(32)
    rows[3]["leaves"] = rows[3]["leaves"][32:]
    (wrong,) = rebuilt_batches(iter(pa.Table.from_pylist(rows).to_batches()))
    assert wrong["bucket"].to_pylist() == [2, 3]


def test_figures_that_json_cannot_hold_are_written_as_null_or_text() -> None:
    facts = {"gap": float("nan"), "budget": float("inf"), "deep": {"n": np.int64(3), "list": (1.5, float("nan"))}}
    assert finite_values(facts) == {"gap": None, "budget": "unlimited", "deep": {"n": 3, "list": [1.5, None]}}


def test_an_explanation_says_it_all_in_words() -> None:
    score = {"uplift": 0.2, "uplift_lower": 0.1, "uplift_upper": 0.3, "low_support": True}
    decision = {"unit_id": "u1", "treatment": "5%", "reason": "best within the limits", "gain": 0.5, "cost": 0.1}
    answer = {
        "decision": {**decision, "run_id": "policy-1", "model_version": "3"}, "scores": {"5%": score}, "prices": {},
        "rules": {"exclude": {"young": "age < 18"}, "contacts": 3, "global_holdout": 0.05, "bound": "expected"},
        "consent": {"purpose": "marketing", "then": "may be contacted", "now": "withdrew"},
        "assignment": {"treatment": "none", "propensity": None, "split": "train"}, "versions": {"scores": "score-1"},
        "entry": {"seq": 7, "hash": "x", "at": "2026", "actor": "ann", "reason": "policy"}, "proven": True,
    }  # fmt: skip
    text = audit.explanation_text(answer)
    for words in (
        "Unit u1 gets 5%: best within the limits.", "Score of 5%: 0.2 (0.1 to 0.3); too few units",
        "No limit has a price.",
        "Rule young: age < 18", "at most 3", "Left out at random: 0.05", "Consent to marketing now: withdrew",
        "propensity not logged", "Versions: scores score-1", "entry 7 of 2026 by ann (policy); a proof leads",
    ):  # fmt: skip
        assert words in text, words


def test_questions_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for wrong in (("verfy",), ("explain",), ("show", "u1")):
        with pytest.raises(ConfigError):
            audit.AuditQuestion(*wrong)
