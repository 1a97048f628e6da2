"""Approvals end to end: a version that waits, what its checklist lacks, verdicts, promotion; all of it in the log."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.jobs.test_train_score import TABLE, conf, training_rows
from uplift_spark.campaign import Campaign
from uplift_spark.config import Lakehouse, Lift
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.governance.approvals import VersionVerdict
from uplift_spark.governance.audit import AuditEvent
from uplift_spark.governance.spark import AuditLog, record_event
from uplift_spark.jobs import approve, audit, lift, reject, score, train
from uplift_spark.lake.tables import Lake
from uplift_spark.runtime import os_user
from uplift_spark.sections.governance import ApprovalConf, AuditConf, BiasConf, Governance


def governed(config, **approval):
    """The campaign's configuration with approvals; whoever runs the tests trains, so approvers go by --by alone."""
    bias = BiasConf(attributes=("zip",), min_units=30)
    return replace(config, governance=Governance(AuditConf(), ApprovalConf(**approval), bias))


@pytest.fixture(scope="module")
def campaign(spark, tmp_path_factory):
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("approve"))))
    lake.write(TABLE, spark.createDataFrame(training_rows(1200)), "features-1", mode="overwrite")
    return Campaign(governed(conf(lake), owner="crm", purpose="spring", legal_basis="consent"), lake)


def actions(campaign):
    return list(AuditLog(campaign.config, campaign.lake).show(50).to_pandas()["action"])[::-1]


def test_a_version_waits_until_it_is_approved_and_the_log_says_all_of_it(campaign, monkeypatch):
    lines = []
    result = train.run(campaign, lines.append)
    assert not result.details["champion"] and "waits for approval: uplift approve 1 --by NAME" in "".join(lines)
    train.run(campaign)  # a rerun says nothing new
    assert actions(campaign) == ["register"] and campaign.registry.known("spring") is None
    yes = VersionVerdict(1, "bob", "better than nothing")
    with pytest.raises(DataError) as refused:
        approve.run(campaign, verdict=yes)
    for words in (
        "model spring version 1 cannot be approved",
        "an evaluation",
        "a bias audit",
        "an approver other than",
    ):
        assert words in str(refused.value)
    # Another user of the system approves, with a checklist of what this quick test has.
    monkeypatch.setattr("uplift_spark.governance.permissions.os_user", lambda: "bob")
    lenient = campaign.changed(governed(campaign.config, needs=("other_approver", "metadata"), owner="crm"))
    with pytest.raises(
        DataError, match=r"it lacks metadata: purpose, legal_basis \(set governance\.approval\.purpose\)"
    ):
        approve.run(lenient, verdict=yes)
    named = {"owner": "crm", "purpose": "spring", "legal_basis": "consent"}
    lenient = campaign.changed(governed(campaign.config, needs=("other_approver", "metadata"), **named))
    with pytest.raises(DataError, match=f"an approver other than {os_user()}, who trained it"):
        approve.run(lenient, verdict=VersionVerdict(1, os_user(), "my own"))
    assert (
        reject.run(lenient, verdict=VersionVerdict(1, "bob", "not yet", approves=False)).details["verdict"]
        == "Rejected"
    )
    assert not train.run(lenient).details["champion"]
    details = approve.run(lenient, verdict=yes).details
    assert details["champion"] and campaign.champion.version == 1
    assert train.run(lenient).details["champion"]  # approved once, it may be promoted again
    assert actions(campaign) == ["register", "reject", "approve", "promote"]
    # A verdict that is taken back and given again counts anew.
    reject.run(lenient, verdict=VersionVerdict(1, "bob", "not yet", approves=False))
    assert not train.run(lenient).details["champion"]
    assert approve.run(lenient, verdict=yes).details["verdict"] == "Approved" and train.run(lenient).details["champion"]
    tags = campaign.registry._client.get_model_version("spring", "1").tags
    assert (tags["approval"], tags["approval_by"], tags["owner"]) == ("Approved", "bob", "crm")
    assert AuditLog(campaign.config, campaign.lake).verify().holds
    with pytest.raises(ConfigError, match=r"governance\.approval is not set"):
        approve.run(campaign.changed(conf(campaign.lake)), verdict=yes)


@pytest.mark.slow
def test_the_whole_checklist_from_training_to_promotion(campaign, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    rare = BiasConf(attributes=("zip",), min_units=30, level=1e-12)  # nothing is flagged by chance
    governance = replace(campaign.config.governance, bias=rare)
    config = replace(campaign.config, lift=Lift(segments=("zip",), replicates=50), governance=governance)
    whole = campaign.changed(replace(config, registry=replace(config.registry, version=1)))
    train.run(whole)
    score.run(whole)
    lift.run(whole)
    result = audit.run(whole, question=audit.AuditQuestion("bias"))
    rows = whole.lake.read("gold.bias_audit").toPandas()
    assert set(rows["bucket"]) == {"z0", "z1", "z2"} and set(rows["measure"]) == {
        "predicted 5%", "realised 5%", "predicted 10%", "realised 10%",
    }  # fmt: skip
    assert result.details["groups"] == 3 and "groups were compared" in result.details["summary"]
    assert audit.run(whole, question=audit.AuditQuestion("bias")).tables["gold.bias_audit"]["skipped"]
    monkeypatch.setattr("uplift_spark.governance.permissions.os_user", lambda: "bob")
    good = VersionVerdict(1, "bob", "good")
    assert result.details["findings"] == 0 and approve.run(whole, verdict=good).details["verdict"] == "Approved"
    # A later audit that found something, or compared nothing, forbids another approval.
    for groups, findings, words in ((3, 2, r"without findings \(it has 2"), (0, 0, "that compared groups of zip")):
        facts = {"groups": groups, "findings": findings, "uncompared": [] if groups else ["zip"]}
        event = AuditEvent("", "bias", "model spring version 1", "again", "", details=facts)
        record_event(whole.config, whole.lake, event)
        with pytest.raises(DataError, match=f"it lacks a bias audit {words}"):
            approve.run(whole, verdict=good)
    # The same verdict on a newer audit is another one; on the same audit it is the one on record.
    facts = {"groups": 3, "findings": 0, "uncompared": []}
    record_event(
        whole.config, whole.lake, AuditEvent("", "bias", "model spring version 1", "mended", "", details=facts)
    )
    before = actions(whole).count("approve")
    for _ in range(2):
        approve.run(whole, verdict=good)
    assert actions(whole).count("approve") == before + 1
