"""The checklist of an approval without Spark; verdicts and promotion on record are tested with `uplift approve`."""

from __future__ import annotations

import pytest

from uplift_spark.errors import ConfigError
from uplift_spark.governance.approvals import VersionFacts, VersionVerdict, missing_parts
from uplift_spark.sections.governance import ApprovalConf, AuditConf, BiasConf, Governance

METADATA = {"owner": "crm", "purpose": "marketing", "legal_basis": "consent", "data versions": {"t": 1}}
GOOD = VersionFacts("ann", {"5%": -0.1, "10%": 0.2}, (6, 0), metadata=METADATA, card=True)
EVERY = (*ApprovalConf().needs, "card")


def test_a_complete_checklist_lacks_nothing() -> None:
    assert missing_parts(ApprovalConf(), GOOD, ("bob", "svc")) == []


@pytest.mark.parametrize(
    ("changes", "approvers", "words"),
    [
        ({"evaluations": {}}, ("bob",), "an evaluation with qini (run `uplift score` and `uplift lift`"),
        ({"evaluations": {"5%": -0.1, "10%": -0.02}}, ("bob",), "interval, which is -0.02 for 10%"),
        ({"evaluations": {"5%": float("nan")}}, ("bob",), "an evaluation that passed"),
        ({"bias": None}, ("bob",), "a bias audit (run `uplift audit bias`"),
        ({"bias": (6, 2)}, ("bob",), "it has 2, see gold.bias_audit"),
        ({"bias": (0, 0)}, ("bob",), "a bias audit that compared groups of any attribute (none has enough units"),
        ({"uncompared": ("sex",)}, ("bob",), "a bias audit that compared groups of sex (none has enough units"),
        ({"card": None}, ("bob",), "a model card (run `uplift card` with this version)"),
        ({"card": False}, ("bob",), "a model card with its newest bias audit"),
        ({}, ("ann",), "an approver other than ann, who trained it"),
        ({}, ("bob", "ann"), "an approver other than ann"),
        ({"trained_by": None}, ("bob",), "an entry of who trained it"),
        ({"metadata": {**METADATA, "owner": "", "legal_basis": ""}}, ("bob",), "metadata: owner, legal_basis (set"),
    ],
)
def test_each_part_that_is_missing_is_said_with_its_remedy(changes: dict, approvers: tuple, words: str) -> None:
    facts = VersionFacts(**{**vars(GOOD), **changes})
    (sentence,) = missing_parts(ApprovalConf(EVERY), facts, approvers)
    assert words in sentence
    # What the configuration does not need is not missing.
    needs = [need for need in EVERY if missing_parts(ApprovalConf((need,)), facts, approvers)]
    assert len(needs) == 1
    assert missing_parts(ApprovalConf(()), facts, approvers) == []


def test_all_that_is_missing_is_said_at_once() -> None:
    assert len(missing_parts(ApprovalConf(), VersionFacts(), ("bob",))) == 3  # without metadata nothing of it is empty
    assert missing_parts(ApprovalConf(least=0.3), GOOD, ("bob",)) != []


def test_configurations_and_verdicts_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs the audit log"):
        Governance(approval=ApprovalConf())
    assert Governance(audit=AuditConf(), approval=ApprovalConf()).approval is not None
    with pytest.raises(ConfigError, match="a signature covers"):
        ApprovalConf(tag="uplift_approval")
    for wrong in ({"attributes": ("sex", "sex")}, {"attributes": ("sex",), "need": ("sex",)}):
        with pytest.raises(ConfigError, match=r"governance\.bias"):
            BiasConf(**wrong)
    for wrong in ({"by": " "}, {"reason": ""}):
        with pytest.raises(ConfigError, match="is blank"):
            VersionVerdict(**{"version": 1, "by": "bob", "reason": "good", **wrong})
