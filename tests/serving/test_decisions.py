"""Decisions by the policy, shares dealt by the experiments' hash, and a log that neither loses nor repeats."""

from __future__ import annotations

import math
import sqlite3
import stat
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.serving.published import config_of
from uplift_spark.config import Lakehouse
from uplift_spark.errors import ConflictError, EnvironmentProblem
from uplift_spark.experiments.assignment import assign
from uplift_spark.jobs.erase import logs_beside
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.decisions import (
    BEST_NOW,
    DECISION,
    EXPLORATION,
    HELD_OUT,
    NO_PLAN,
    NONE_WORTH,
    NOT_PUBLISHED,
    NOT_READ,
    OFF,
    OUTCOME,
    Decision,
    DecisionLog,
    DecisionPolicy,
    LogEntry,
    Logged,
    stored_effects,
)
from uplift_spark.serving.scorer import LevelEffect
from uplift_spark.serving.store import Manifest, StoredUnit, decision_log_file

LEVELS = ("none", "5%", "10%")
PRICED = {"planned": True, "value": 10.0, "cost": {"5%": 1.0, "10%": 2.0}, "net": True, "price": 0.5}
IDS = [f"u{i}" for i in range(4000)]


def policy(facts=None, **serving) -> DecisionPolicy:
    made = Manifest(
        "spring", "v1", "spend", (("x", "number"),), LEVELS, {}, {}, ("too often",),
        PRICED if facts is None else facts, {},
    )  # fmt: skip
    return DecisionPolicy(made, Serving(**serving))


def planned(level="10%", reason="best within the limits", effects=((0.1, 0.2, False), (0.3, 0.2, True))) -> StoredUnit:
    return StoredUnit((1.0,), 0, effects, (level, reason))


def effects(five, ten):
    return [LevelEffect("5%", five, 0.1, False), LevelEffect("10%", ten, 0.1, False)]


def test_what_bars_a_unit_comes_before_what_it_would_gain():
    assert policy(enabled=False).decide("u", planned(), None) == policy().decide("u", planned(), None).__class__(
        "none", OFF, 1.0
    )
    always = policy(exploration=0.999, holdout=0.0)
    assert {(always.decide(u, None, None).level, always.decide(u, None, None).reason) for u in IDS[:200]} == {
        ("none", NOT_PUBLISHED)
    }
    barred = {always.decide(u, planned("none", "too often"), None).reason for u in IDS[:200]}
    assert barred == {"too often"}


def test_the_plan_stands_unless_fresh_features_say_otherwise():
    stands = policy().decide("u", planned(), None)
    assert (stands.level, stands.reason, stands.propensity) == ("10%", "best within the limits", 1.0)
    # 10 a unit: at 1.5 times the cost, 5 % nets 10 · 0.5 - 1.5 = 3.5, and 10 % nets 10 · 0.6 - 3 = 3.
    fresh = policy().decide("u", planned(), effects(0.5, 0.6))
    assert (fresh.level, fresh.reason) == ("5%", BEST_NOW)
    assert policy().decide("u", planned(), effects(0.5, 0.66)).level == "10%"
    assert policy().decide("u", planned(), effects(0.15, 0.3)) == fresh.__class__("none", NONE_WORTH, 1.0)
    assert policy().decide("u", planned(), effects(math.nan, math.nan)).reason == NONE_WORTH
    # Limits that have no price in money: the plan knows of them, fresh effects do not.
    assert policy({"planned": True}).decide("u", planned(), effects(9.0, 9.0)).reason == "best within the limits"


def test_a_unit_without_a_plan_is_treated_only_where_no_rule_could_bar_it():
    """Rules of the policy are applied when it plans, and versions of old do not say whether there are any."""
    unplanned, wanted = StoredUnit((1.0,), 0, ((0.5, 0.1, False), (0.6, 0.1, False))), Decision("none", NO_PLAN, 1.0)
    for facts in ({**PRICED, "rules": True}, PRICED):
        for live in (policy(facts), policy(facts, exploration=0.999), policy(facts, holdout=0.9)):
            made = {live.decide(unit, unplanned, fresh) for unit in IDS[:50] for fresh in (None, effects(9.0, 9.0))}
            assert made == {wanted}
    free = {**PRICED, "rules": False}
    assert policy(free).decide("u", unplanned, None) == Decision("5%", BEST_NOW, 1.0)
    assert policy(free).decide("u", unplanned, effects(0.5, 0.9)).level == "10%"
    assert policy({"planned": False, "rules": False}).decide("u", unplanned, None) == wanted


def test_nobody_knows_how_likely_a_decision_was_that_a_store_without_an_answer_made():
    live = policy(exploration=0.999, holdout=0.9)
    assert {live.decide(unit, None, None, False) for unit in IDS[:50]} == {Decision("none", NOT_READ, None)}
    assert policy(enabled=False).decide("u", None, None, False).reason == OFF


def test_batch_effects_that_are_not_known_are_nan():
    unknown = stored_effects(policy().manifest, planned(effects=((None, None, True), (0.3, 0.2, False))))
    assert math.isnan(unknown[0].uplift) and unknown[0].low_support and unknown[1].uplift == 0.3
    assert stored_effects(policy().manifest, StoredUnit((1.0,), 0)) is None


def test_exploration_is_what_experiments_assign():
    """Level, whether it is random, and propensity are those of `assign`, unit by unit."""
    live = policy(exploration=0.3, holdout=0.2)
    decisions = [live.decide(unit, planned("5%"), None) for unit in IDS]
    table = assign(IDS, live.experiment, decisions=["5%"] * len(IDS))
    for one, row in zip(decisions, table.itertuples(), strict=True):
        if row.left_out is not None:
            assert (one.level, one.reason) == ("none", HELD_OUT)
            continue
        assert (one.level, one.explored) == (row.treatment, row.explored)
        assert one.propensity == pytest.approx(row.propensity, rel=1e-12)
        assert (one.reason == EXPLORATION) == row.explored
    assert [live.decide(unit, planned("5%"), None) for unit in IDS] == decisions  # sticky


def test_shares_are_as_logged():
    """χ² of the levels against the logged propensities, at p = 1e-4; and the holdout's share."""
    live = policy(exploration=0.3, holdout=0.1)
    decisions = [live.decide(unit, planned("5%"), None) for unit in IDS]
    taking_part = [one for one in decisions if one.reason != HELD_OUT]
    held = len(IDS) - len(taking_part)
    assert abs(held - 400) < 4 * math.sqrt(4000 * 0.1 * 0.9)
    counts = Counter(one.level for one in taking_part)
    wanted = {level: len(taking_part) * (0.1 + 0.7 * (level == "5%")) for level in LEVELS}
    assert sum((counts[level] - n) ** 2 / n for level, n in wanted.items()) < 18.4
    assert {one.level: round(one.propensity, 12) for one in taking_part} == {"none": 0.1, "5%": 0.8, "10%": 0.1}


@pytest.mark.slow
def test_off_policy_value_of_what_is_served_holds():
    """Logged propensities of 200 simulated days give what 10 % for everybody brings, within 2 errors in 93 % of them.

    The plan gives 10 % to those who gain most by it: a mean over whoever got 10 % would be far too high.
    """
    rng, inside, naive, units = np.random.default_rng(4), 0, [], IDS[:600]
    for day in range(200):
        live = policy(exploration=0.5)
        live.manifest = replace(live.manifest, campaign=f"day{day}")
        gains = rng.random(len(units)) < 0.5
        made = [
            live.decide(unit, planned("10%" if gain else "5%"), None) for unit, gain in zip(units, gains, strict=True)
        ]
        given = np.array([one.level == "10%" for one in made])
        weight = given / np.array([one.propensity for one in made])
        outcome = 1.0 + 4.0 * gains * given + rng.normal(size=len(units))
        terms = weight * outcome
        inside += abs(terms.mean() - 3.0) < 2 * terms.std(ddof=1) / math.sqrt(len(units))
        naive.append(outcome[given].mean())
    assert inside >= 186
    assert np.mean(naive) > 4.0


# ---------------------------------------------------------------- the log


def entry(key, unit="u1", kind=DECISION, level="5%"):
    return LogEntry(kind, key, {"unit_id": unit, "level": level})


@pytest.fixture
def log(tmp_path):
    log = DecisionLog(tmp_path / "log" / "decisions.sqlite")
    yield log
    log.close()


def test_a_request_that_is_repeated_gets_the_first_answer(log):
    first = {"unit_id": "u1", "level": "5%"}
    assert log.append([entry("k1"), entry("k2")]) == [Logged(first, True)] * 2
    again = log.append([entry("k1", level="10%"), entry("k3", level="10%")])
    assert again == [Logged(first, False), Logged({**first, "level": "10%"}, True)]
    assert log.append([entry("k1", kind=OUTCOME, level="10%")])[0].new  # another kind of key
    assert [body["level"] for _, body in log.entries(DECISION)] == ["5%", "5%", "10%"]
    numbers = [number for number, _ in log.entries(DECISION)]
    assert [number for number, _ in log.entries(DECISION, after=numbers[0])] == numbers[1:]


def test_a_key_of_another_unit_leaves_nothing_of_the_batch_in_the_log(log):
    log.append([entry("k1")])
    for batch in ([entry("k2"), entry("k1", "u2")], [entry("k2"), entry("k3"), entry("k3", "u2")]):
        with pytest.raises(ConflictError, match=r"request key 'k\d' was used for another unit before"):
            log.append(batch)
    assert len(log.entries(DECISION)) == 1
    assert log.append([entry("k2")])[0].new


def test_units_that_are_erased_are_in_no_file_of_the_log(log):
    log.append([entry("k1", "secret-person"), entry("k2", "ü"), entry("k3", "secret-person", OUTCOME), entry("k4")])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in log._file.parent.iterdir()}
    assert set(modes.values()) == {0o600} and len(modes) == 3  # the file, and what SQLite writes beside it
    assert log.erase(["secret-person", "ü", "nobody"]) == 3
    assert [body["unit_id"] for _, body in log.entries(DECISION)] == ["u1"] and not log.entries(OUTCOME)
    assert not [path for path in log._file.parent.iterdir() if b"secret-person" in path.read_bytes()]
    assert log.erase(["secret-person"]) == 0
    assert log.append([entry("k1", "u2")])[0].new


def test_the_verb_that_erases_finds_the_log_where_it_lies(tmp_path):
    config = config_of(tmp_path)
    assert logs_beside(config) == {} and not decision_log_file(config).exists()  # nothing was served here
    for one in (config, config_of(tmp_path, log=str(tmp_path / "elsewhere" / "log.sqlite"))):
        log = DecisionLog(decision_log_file(one))
        log.append([entry("k1"), entry("k2", "u2")])
        ((name, erase),) = logs_beside(one).items()
        assert (name, erase(["u1"]), erase(["u1"])) == ("log of decisions", 1, 0)
        assert [body["unit_id"] for _, body in log.entries(DECISION)] == ["u2"]
        log.close()
    assert logs_beside(replace(config, lakehouse=Lakehouse(path="s3://bucket/house"))) == {}


def test_processes_that_write_at_once_agree_on_one_answer_for_each_key(tmp_path):
    file = tmp_path / "decisions.sqlite"
    logs = [DecisionLog(file) for _ in range(4)]
    for log in logs:
        log.WAIT = 30.0

    def work(n):
        return [logs[n].append([entry(f"k{i}", level=f"by {n}")])[0].body["level"] for i in range(50)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(work, range(4)))
    assert all(one == answers[0] for one in answers)
    assert len(logs[0].entries(DECISION)) == 50
    for log in logs:
        log.close()


KILLED = """
import os, sys
from pathlib import Path
from uplift_spark.serving.decisions import DecisionLog, LogEntry
log, answered = DecisionLog(Path(sys.argv[1])), open(sys.argv[2], "w")
for i in range(100000):
    log.append([LogEntry("decision", f"k{i}", {"unit_id": f"u{i}"})])
    answered.write(f"k{i}\\n")
    answered.flush()
    if i == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0, 7, 61])
def test_no_decision_that_was_answered_is_lost_when_the_process_is_killed(tmp_path, moment):
    file, answered = tmp_path / "decisions.sqlite", tmp_path / "answered"
    command = [sys.executable, "-c", KILLED, str(file), str(answered), str(moment)]
    assert subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode == -9
    logged = {body["unit_id"] for _, body in DecisionLog(file).entries(DECISION, limit=10_000)}
    assert {line.replace("k", "u") for line in answered.read_text().split()} <= logged
    assert len(logged) == moment + 1


def test_a_log_that_cannot_be_written_says_so_and_works_again(log, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(log, "_append", full)
        with pytest.raises(EnvironmentProblem, match="cannot be written: database or disk is full"):
            log.append([entry("k1")])
    assert log.entries(DECISION) == []
    assert log.append([entry("k1")])[0].new
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        DecisionLog(log._file / "below a file" / "log")
