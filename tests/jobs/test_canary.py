"""`uplift canary` and `uplift rollback` end to end: promoted, rolled back, ended, killed at every step, refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tests.jobs.test_train_score import TABLE, conf, training_rows
from uplift_spark.campaign import Campaign
from uplift_spark.config import Economics, ForestConf, Lakehouse, Policy
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.experiments.assignment import assign
from uplift_spark.experiments.canary import canary_design
from uplift_spark.governance.approvals import VersionVerdict
from uplift_spark.governance.rollout import CanaryLog, plan_decisions, plan_runs
from uplift_spark.governance.spark import AuditLog
from uplift_spark.jobs import approve, canary, policy, rollback, runbook, score, train
from uplift_spark.lake.schemas import CANARY_TABLE
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import CHALLENGER, Registry
from uplift_spark.sections.canary import CanaryConf, CanaryMargins
from uplift_spark.sections.governance import ApprovalConf, AuditConf, Governance

pytestmark = [pytest.mark.spark, pytest.mark.slow]  # whole jobs, tens of seconds each
START = datetime(2025, 3, 1, tzinfo=UTC)
RIPE = START + timedelta(days=15)
N = 1200


def config_of(lake):
    return replace(
        conf(lake),
        economics=Economics(value={"visit": 10.0}, cost={"5%": 0.5, "10%": 1.0}),
        policy=Policy(budget=300.0),
        canary=CanaryConf(share=0.5, min_units=100, margins=CanaryMargins(outcome=0.2)),
        governance=Governance(AuditConf()),
    )


@pytest.fixture(scope="module")
def prepared(spark, tmp_path_factory):
    """Folder of a lakehouse in which version 1 is the champion with a plan in force, and version 2 the challenger."""
    folder = tmp_path_factory.mktemp("canary") / "lakehouse"
    lake = Lake(spark, Lakehouse(path=str(folder)))
    lake.write(TABLE, spark.createDataFrame(training_rows(N)), "features-1", mode="overwrite")
    campaign = Campaign(config_of(lake), lake)
    train.run(campaign)
    score.run(campaign)
    policy.run(campaign)
    other = campaign.changed(replace(campaign.config, forest=ForestConf(n_trees=12, min_leaf=5, n_buckets=4)))
    other = other.changed(replace(other.config, registry=replace(other.config.registry, champion=False)))
    second = train.run(other).details["version"]
    campaign.registry.set_alias(campaign.registry.find("spring", second), CHALLENGER)
    return folder


@pytest.fixture
def campaign(spark, prepared, tmp_path):
    """The campaign in a copy of its own."""
    folder = tmp_path / "lakehouse"
    shutil.copytree(prepared, folder)
    lake = Lake(spark, Lakehouse(path=str(folder)))
    return Campaign(config_of(lake), lake)


def outcomes(campaign, factor, run):
    """Outcomes of all units a day after the start; those of the challenger's slice are so many times as large."""
    name = CanaryLog(campaign.config, campaign.lake, RIPE).last.canary
    units = training_rows(N)["unit_id"]
    arms = assign(list(units), canary_design(name, 0.5))["treatment"].to_numpy()
    rng = np.random.default_rng(5)
    value = rng.uniform(0.5, 1.5, N) * np.where(arms == "challenger", factor, 1.0)
    frame = pd.DataFrame({"unit_id": units, "campaign": "spring", "outcome": "visit", "value": value})
    when = pd.Timestamp("2025-03-02")
    frame = frame.assign(event_id=None, occurred_at=when, known_at=when, source="test")
    schema = "unit_id string, campaign string, outcome string, value double, event_id string, occurred_at timestamp, "
    frame = campaign.lake.spark.createDataFrame(frame, schema + "known_at timestamp, source string")
    campaign.lake.write("bronze.outcome", frame, run)


def versions_in_force(campaign):
    (plan, *_) = plan_runs(campaign.lake, "spring")
    rows = plan_decisions(campaign.lake, "spring", plan.run_id).toPandas()
    assert len(rows) == N and rows["unit_id"].is_unique
    return rows.groupby("model_version").size().to_dict()


def state(campaign):
    """What users meet: champion, alias of the challenger, decisions, scores, state."""
    registry = campaign.registry
    on_trial = registry.known("spring", CHALLENGER)
    return SimpleNamespace(
        champion=campaign.champion.version,
        challenger=None if on_trial is None else on_trial.version,
        plan=versions_in_force(campaign),
        scores=campaign.last_scored().model_version,
        state=CanaryLog(campaign.config, campaign.lake, datetime(2030, 1, 1, tzinfo=UTC)).last.state,
    )


def third_version(campaign):
    third = replace(campaign.config, forest=ForestConf(n_trees=16, min_leaf=5, n_buckets=4))
    third = campaign.changed(replace(third, registry=replace(third.registry, champion=False)))
    return campaign.registry.find("spring", train.run(third).details["version"])


def do(campaign, what, now=RIPE):
    return canary.run(campaign, what=what, now=now).details


def test_a_canary_from_start_to_promotion_and_back(campaign):
    details = do(campaign, "start", START)
    assert details["state"] == "running" and "the challenger's slice has its decisions" in details["summary"]
    mixed = versions_in_force(campaign)
    assert set(mixed) == {"1", "2"} and abs(mixed["2"] - N / 2) < 80
    arms = assign(list(training_rows(N)["unit_id"]), canary_design(details["canary"], 0.5)).set_index("unit_id")
    (plan, *_) = plan_runs(campaign.lake, "spring")
    rows = plan_decisions(campaign.lake, "spring", plan.run_id).toPandas().set_index("unit_id")
    assert ((rows["model_version"] == "2") == (arms["treatment"][rows.index] == "challenger")).all()
    assert campaign.last_scored().model_version == "1"  # the challenger's scores are newer, and not in force
    do(campaign, "start", START)  # a second start is the first one
    assert len(CanaryLog(campaign.config, campaign.lake, RIPE).records) == 2
    said = do(campaign, "status", START + timedelta(days=1))["summary"]
    assert (
        "Verdict: inconclusive" in said and "outcome per unit: not compared, a table of outcomes is not there" in said
    )
    outcomes(campaign, 1.05, "outcomes-1")
    records = len(CanaryLog(campaign.config, campaign.lake, RIPE).records)
    assert "Verdict: promote" in do(campaign, "status")["summary"]
    assert len(CanaryLog(campaign.config, campaign.lake, RIPE).records) == records  # status writes nothing
    details = do(campaign, "decide")
    assert (details["state"], details["verdict"]) == ("promoted", "promote")
    promoted = {"champion": 2, "challenger": None, "plan": {"2": N}, "scores": "2", "state": "promoted"}
    assert vars(state(campaign)) == promoted
    assert do(campaign, "decide")["state"] == "promoted"  # nothing is left to do
    assert vars(state(campaign)) == promoted
    for _ in range(2):  # repeated, it comes to the same end
        details = rollback.run(campaign, now=RIPE).details
        assert details["version"] == 1
        assert vars(state(campaign)) == {
            "champion": 1, "challenger": None, "plan": {"1": N}, "scores": "1", "state": "restored",
        }  # fmt: skip
    assert "is restored already" in details["summary"]
    rollback.run(campaign, to=2, reason="it was not the model", now=RIPE)
    assert vars(state(campaign)) == {**promoted, "state": "restored"}
    log = AuditLog(campaign.config, campaign.lake)
    assert log.verify(decisions=True).holds
    subjects = list(log.show(100).to_pandas()["subject"])
    for words in ("promoting", "promoted", "decide by version 2", "alias challenger taken", "restoring", "restored"):
        assert any(words in subject for subject in subjects), words


class Killed(BaseException):
    """The process ends here."""


def killed_everywhere(monkeypatch, act):
    """Kill `act` before and after each of its deeds in turn, and run it again each time, until it comes to its end."""
    killed = set()

    def deadly(owner, name, key):
        original = getattr(owner, name)

        def deed(self, *args, **kwargs):
            what = (name, *key(args))
            if (what, "before") not in killed:
                killed.add((what, "before"))
                raise Killed(what)
            result = original(self, *args, **kwargs)
            if (what, "after") not in killed:
                killed.add((what, "after"))
                raise Killed(what)
            return result

        monkeypatch.setattr(owner, name, deed)

    # A record's run ends in letters of its own: two at once must not pass for one.
    deadly(Lake, "write", lambda args: (args[0], args[2].rpartition("-")[0] if args[0] == CANARY_TABLE else args[2]))
    deadly(Registry, "set_alias", lambda args: (args[0].version, *args[1:]))
    deadly(Registry, "drop_alias", lambda args: args)
    for _ in range(200):
        try:
            act()
            monkeypatch.undo()
            return len(killed)
        except Killed:
            continue
    raise AssertionError("it never comes to its end")


def test_killed_at_each_step_it_comes_to_the_same_end(campaign, monkeypatch):
    assert killed_everywhere(monkeypatch, lambda: do(campaign, "start", START)) >= 12
    assert set(versions_in_force(campaign)) == {"1", "2"}
    outcomes(campaign, 1.05, "outcomes-1")
    assert killed_everywhere(monkeypatch, lambda: do(campaign, "decide")) >= 12
    assert vars(state(campaign)) == {
        "champion": 2, "challenger": None, "plan": {"2": N}, "scores": "2", "state": "promoted",
    }  # fmt: skip
    assert killed_everywhere(monkeypatch, lambda: rollback.run(campaign, now=RIPE)) >= 10
    assert vars(state(campaign)) == {
        "champion": 1, "challenger": None, "plan": {"1": N}, "scores": "1", "state": "restored",
    }  # fmt: skip
    assert AuditLog(campaign.config, campaign.lake).verify(decisions=True).holds


def test_a_worse_challenger_is_rolled_back_whatever_the_figures_say_afterwards(campaign, monkeypatch):
    do(campaign, "start", START)
    outcomes(campaign, 0.5, "outcomes-1")
    monkeypatch.setattr(canary, "carry_out", lambda trial: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        do(campaign, "decide")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"is rolling back: run `uplift canary decide` to finish that first"):
        do(campaign, "start")
    monkeypatch.setattr(canary, "read_now", None)  # decided is decided: nobody looks again
    details = do(campaign, "decide")
    assert details["state"] == "rolled back" and "the challenger is worse" in details["summary"]
    assert vars(state(campaign)) == {
        "champion": 1, "challenger": None, "plan": {"1": N}, "scores": "1", "state": "rolled back",
    }  # fmt: skip
    with pytest.raises(
        ConfigError, match="model spring has no version with the alias challenger: run `uplift retrain`"
    ):
        do(campaign, "start")


def test_without_a_verdict_it_goes_on_and_at_last_ends_with_the_champion(campaign):
    do(campaign, "start", START)
    for _ in range(2):
        assert do(campaign, "decide", START + timedelta(days=2))["verdict"] == "inconclusive"
    records = CanaryLog(campaign.config, campaign.lake, RIPE).records
    assert [one.state for one in records] == ["running"] * 3  # started, planned, looked at; not again
    policy.run(campaign, run_id="policy-nightly")  # the champion plans anew, and the slice keeps the challenger's
    assert versions_in_force(campaign) == {"1": N}
    do(campaign, "decide", START + timedelta(days=3))
    assert set(versions_in_force(campaign)) == {"1", "2"}
    details = do(campaign, "decide", START + timedelta(days=28))
    assert (details["state"], details["verdict"]) == ("ended", "ended")
    assert vars(state(campaign)) == {
        "champion": 1, "challenger": None, "plan": {"1": N}, "scores": "1", "state": "ended",
    }  # fmt: skip


def test_a_challenger_that_needs_approval_waits_for_it(campaign, monkeypatch):
    do(campaign, "start", START)
    outcomes(campaign, 1.05, "outcomes-1")
    governed = campaign.changed(
        replace(campaign.config, governance=Governance(AuditConf(), ApprovalConf(needs=("other_approver",))))
    )
    with pytest.raises(ConfigError, match="spring version 2 was never the champion, and model spring version 2 waits"):
        rollback.run(governed, to=2, now=RIPE)  # a way round the approval
    details = do(governed, "decide")
    assert details["verdict"] == "inconclusive"
    assert "model spring version 2 waits for approval: uplift approve 2 --by NAME" in details["summary"]
    monkeypatch.setattr("uplift_spark.governance.permissions.os_user", lambda: "bob")
    verdict = approve.run(governed, verdict=VersionVerdict(2, "bob", "good")).details
    assert verdict["verdict"] == "Approved" and not verdict["champion"]  # its canary promotes it
    assert do(governed, "decide")["state"] == "promoted"


def test_a_third_version_that_became_the_champion_stays(campaign, monkeypatch):
    do(campaign, "start", START)
    outcomes(campaign, 1.05, "outcomes-1")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(canary, "carry_out", lambda trial: (_ for _ in ()).throw(Killed()))
        do(campaign, "decide")  # decided: promoted, but not yet done
    campaign.registry.set_alias(third_version(campaign), "champion")
    details = do(campaign, "decide")
    assert details["state"] == "ended"
    assert "version 3 became the champion while canary spring-canary-2-1 of version 2 ran" in details["summary"]
    ended = {"champion": 3, "challenger": None, "plan": {"3": N}, "scores": "3", "state": "ended"}
    assert vars(state(campaign)) == ended
    registry = campaign.registry
    registry.set_alias(registry.find("spring", 2), CHALLENGER)
    do(campaign, "start")
    registry.set_alias(registry.find("spring", 1), "champion")
    with pytest.raises(ConfigError, match=r"version 1 became the champion while .* run `uplift canary decide` to end"):
        do(campaign, "start")
    assert "`uplift canary decide` ends it" in do(campaign, "status")["summary"]
    details = rollback.run(campaign, now=RIPE).details  # ends the canary; the third version stays
    assert details["version"] == 1
    assert vars(state(campaign)) == {
        "champion": 1, "challenger": None, "plan": {"1": N}, "scores": "1", "state": "restored",
    }  # fmt: skip
    rollback.run(campaign, to=3, now=RIPE)
    assert vars(state(campaign)) == {**ended, "state": "restored"}


def test_a_canary_counts_from_the_plan_that_put_its_slices_in_force(campaign, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(canary, "renew_plan", lambda trial: (_ for _ in ()).throw(Killed()))
        do(campaign, "start", START)
    with pytest.raises(ConfigError, match="canary spring-canary-2-1 has no plan yet: run `uplift canary start`"):
        do(campaign, "status", START + timedelta(days=27))
    do(campaign, "start", START + timedelta(days=27))
    details = do(campaign, "decide", START + timedelta(days=29))
    assert details["state"] == "running" and "spring-canary-2-1, 2 days old" in details["summary"]


def test_a_decision_that_is_overtaken_changes_nothing(campaign, monkeypatch):
    do(campaign, "start", START)
    outcomes(campaign, 1.05, "outcomes-1")
    read = canary.read_now

    def meanwhile(trial):
        reading = read(trial)
        rollback.run(campaign, now=RIPE, reason="complaints")
        return reading

    monkeypatch.setattr(canary, "read_now", meanwhile)
    with pytest.raises(ConflictError, match="another `uplift canary` or `uplift rollback` of campaign spring runs"):
        do(campaign, "decide")
    assert vars(state(campaign)) == {
        "champion": 1, "challenger": None, "plan": {"1": N}, "scores": "1", "state": "restored",
    }  # fmt: skip


def test_a_rollback_ends_a_canary_that_runs(campaign):
    do(campaign, "start", START)
    details = rollback.run(campaign, now=RIPE, reason="complaints").details
    assert details["version"] == 1 and "complaints: version 1 is restored" in details["summary"]
    assert vars(state(campaign)) == {
        "champion": 1, "challenger": None, "plan": {"1": N}, "scores": "1", "state": "restored",
    }  # fmt: skip


def test_runbooks_put_a_version_in_force_once(campaign):
    do(campaign, "start", START)
    for name, chosen, version in (("rollback", {}, 1), ("hotfix", {"version": 2}, 2)):
        options = runbook.options(name, execute=True, reason="complaints", **chosen)
        dry = runbook.run(campaign, now=RIPE, **runbook.options(name, **chosen)).details["summary"].splitlines()
        assert dry[-1] == "Step 2 of 4 is to do: add --execute and --reason to act.", dry
        for _ in range(2):
            lines = runbook.run(campaign, now=RIPE, **options).details["summary"].splitlines()
            assert lines[-1] == f"All 4 steps hold: nothing is left to do about {name}.", lines
        assert (state(campaign).champion, state(campaign).plan) == (version, {str(version): N})
    governed = campaign.changed(
        replace(campaign.config, governance=Governance(AuditConf(), ApprovalConf(needs=("other_approver",))))
    )
    third = third_version(campaign)
    options = runbook.options("hotfix", execute=True, reason="a mended feature", version=third.version)
    lines = runbook.run(governed, now=RIPE, **options).details["summary"].splitlines()
    assert "1. The version to put in force is there" in lines[1] and "waits" in lines[1], lines
    assert state(campaign).champion == 2


def test_what_cannot_be_done_is_said_in_a_sentence(campaign):
    for what in ("status", "decide"):  # every night, also where no canary runs
        assert "Campaign spring has no canary: `uplift canary start` begins one" in do(campaign, what)["summary"]
    with pytest.raises(ConfigError, match="--to 'one' is no version: give its number, or before for the one before"):
        rollback.options(to="one")
    assert rollback.options(to="3") == {"to": 3, "reason": "rolled back by hand"} and rollback.options()["to"] is None
    registry, unaudited = campaign.registry, campaign.changed(replace(campaign.config, governance=Governance()))
    with pytest.raises(ConfigError, match="version 1 is the first of model spring: none was the champion before it"):
        rollback.run(unaudited, now=RIPE)
    registry.set_alias(registry.find("spring", 2), "champion")
    with pytest.raises(ConfigError, match=r"nobody recorded which version .* name it, as in `uplift rollback --to 1`"):
        rollback.run(unaudited, now=RIPE)
    registry.set_alias(registry.find("spring", 1), "champion")
    pinned = campaign.changed(replace(campaign.config, registry=replace(campaign.config.registry, version=1)))
    with pytest.raises(ConfigError, match=r"registry\.version names version 1, whichever is the champion"):
        do(pinned, "start")
    short = campaign.changed(replace(campaign.config, canary=replace(campaign.config.canary, max_days=10.0)))
    with pytest.raises(ConfigError, match=r"labels are mature after 14 days, and canary\.max_days ends .* after 10"):
        do(short, "start")
    registry.set_alias(registry.find("spring", 1), CHALLENGER)
    with pytest.raises(ConfigError, match="version 1 of model spring is champion and challenger both"):
        do(campaign, "start")
    registry.set_alias(registry.find("spring", 2), CHALLENGER)
    do(campaign, "start", START)
    with pytest.raises(
        DataError, match=r"which is before the last record of gold\.canary, 2025-03-01 00:00:00: it went"
    ):
        do(campaign, "status", START - timedelta(hours=1))
    registry.set_alias(third_version(campaign), CHALLENGER)
    with pytest.raises(ConfigError, match="of version 2 runs: version 3 has to wait until `uplift canary decide`"):
        do(campaign, "start", RIPE)
    ours, theirs = (CanaryLog(campaign.config, campaign.lake, RIPE) for _ in range(2))
    ours.add(replace(ours.last, reason="first"))
    with pytest.raises(ConflictError, match="another `uplift canary` or `uplift rollback` of campaign spring runs"):
        theirs.add(replace(theirs.last, reason="second"))
