"""Decisions by the policy, shares dealt by the experiments' hash, and a log that neither loses nor repeats."""

from __future__ import annotations

import math
import sqlite3
import stat
import subprocess
import sys
import threading
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
    ASSIGNMENT,
    DECISION,
    DELIVERY,
    OUTCOME,
    Decision,
    DecisionLog,
    DecisionPolicy,
    LogEntry,
    Logged,
    stored_effects,
)
from uplift_spark.serving.reasons import (
    BEST_NOW,
    EXPLORATION,
    HELD_OUT,
    NO_PLAN,
    NONE_WORTH,
    NOT_PUBLISHED,
    NOT_READ,
    OFF,
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


def test_a_decision_holds_for_a_year_at_most():
    """Beyond the year 9999 each request would fail."""
    with pytest.raises(ValueError, match="decision_minutes"):
        Serving(decision_minutes=1e12)


def test_the_plan_stands_unless_fresh_features_say_otherwise():
    stands = policy().decide("u", planned(), None)
    assert (stands.level, stands.reason, stands.propensity) == ("10%", "best within the limits", 1.0)
    # 10 a unit: at 1.5 times the cost, 5 % nets 10 · 0.5 - 1.5 = 3.5, and 10 % nets 10 · 0.6 - 3 = 3.
    fresh = policy().decide("u", planned(), effects(0.5, 0.6))
    assert (fresh.level, fresh.reason) == ("5%", BEST_NOW)
    assert policy().decide("u", planned(), effects(0.5, 0.66)).level == "10%"
    assert policy().decide("u", planned(), effects(0.15, 0.3)) == Decision("none", NONE_WORTH, 1.0, overall=1.0)
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
    assert policy(free).decide("u", unplanned, None) == Decision("5%", BEST_NOW, 1.0, overall=1.0)
    assert policy(free).decide("u", unplanned, effects(0.5, 0.9)).level == "10%"
    assert policy({"planned": False, "rules": False}).decide("u", unplanned, None) == replace(wanted, overall=1.0)


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


def test_the_overall_propensity_counts_the_holdout_too():
    """Over all units, held out or not, the weights 1/overall of each level add up to the units."""
    live = policy(exploration=0.3, holdout=0.2)
    for level, wanted in (("5%", {"none": 0.2 + 0.08, "5%": 0.64, "10%": 0.08}), ("none", {"none": 0.84, "5%": 0.08})):
        made = [live.decide(unit, planned(level), None) for unit in IDS]
        for one, probability in wanted.items():
            mine = [decision.overall for decision in made if decision.level == one]
            assert {round(value, 12) for value in mine} == {round(probability, 12)}
            assert abs(len(mine) - 4000 * probability) < 4 * math.sqrt(4000 * probability * (1 - probability))
    assert policy(holdout=0.2).decide("u", planned("none", "too often"), None).overall is None
    assert policy(enabled=False).decide("u", planned(), None).overall is None


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


@pytest.mark.simulation
def test_what_the_served_policy_brings_holds_on_200_simulated_days():
    """By overall propensities of all units, held out or not: the plan's value, and what it brings against the control.

    Both within 2 errors of the truth on 93 % of the days, and levels as often as logged by χ² over all days.
    """
    rng, units, inside = np.random.default_rng(6), IDS[:1500], Counter()
    counts, wanted = Counter(), Counter()
    for day in range(200):
        live = policy(exploration=0.3, holdout=0.2)
        live.manifest = replace(live.manifest, campaign=f"day{day}")
        gains = rng.random(len(units)) < 0.5
        plan = np.where(gains, "10%", "5%")
        made = [live.decide(unit, planned(level), None) for unit, level in zip(units, plan.tolist(), strict=True)]
        level, overall = np.array([one.level for one in made]), np.array([one.overall for one in made])
        effect = np.where(level == "10%", 4.0 * gains - 1.0, np.where(level == "5%", 1.0, 0.0))
        outcome = 2.0 + effect + rng.normal(size=len(units))
        by_plan = (level == plan) / overall * outcome
        against = by_plan - (level == "none") / overall * outcome
        true = np.where(gains, 3.0, 1.0)  # each day's own units are the population
        for what, terms, truth in (("value", by_plan, 2.0 + true), ("gain", against, true)):
            inside[what] += abs(terms.mean() - truth.mean()) < 2 * (terms - truth).std(ddof=1) / math.sqrt(len(units))
        for one, by in zip(made, plan.tolist(), strict=True):
            counts[by, one.level] += 1
            for name, share in {"none": 0.2 + 0.08, by: 0.64, ("5%" if by == "10%" else "10%"): 0.08}.items():
                wanted[by, name] += share
    assert min(inside.values()) >= 186
    assert sum((counts[pair] - n) ** 2 / n for pair, n in wanted.items()) < 23.5  # 4 degrees of freedom, p = 1e-4


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


def test_a_batch_of_any_size_and_keys_of_any_signs_are_written_as_they_are(log):
    """Keys that differ behind a sign that ends a text elsewhere are two keys."""
    odd = ["a\0b", "a\0c", "a", 'é"\\', "\u2028", "😀", " x ", "1", "null", '{"a": 1}', "'); DROP TABLE entry; --"]
    batch = [entry(key, unit=key) for key in [*odd, *(f"k{i}" for i in range(1000))]]
    assert all(one.new for one in log.append(batch)) and not any(one.new for one in log.append(batch))
    assert log.entries(DECISION, limit=5000) == [(i + 1, one.body) for i, one in enumerate(batch)]


def test_a_key_is_searched_for_in_an_index_not_in_the_whole_log(log):
    """Or a log of a week would be slower than one of an hour."""
    log.append([entry("k1")])
    seen = []
    log._connection.set_trace_callback(seen.append)
    log.append([entry("k1"), entry("k2")])
    (query,) = [one for one in seen if "given" in one]
    plan = " ".join(row[3] for row in log._connection.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "SEARCH entry USING INDEX" in plan and "SCAN entry" not in plan


def test_who_writes_waits_for_the_others_and_not_for_ever(log, monkeypatch):
    log.append([entry("k1")])
    other = sqlite3.connect(log._file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(log.append, [entry("k2")])
        with pytest.raises(TimeoutError):
            waiting.result(0.2)
        other.execute("COMMIT")
        assert waiting.result(5)[0].new
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(DecisionLog, "WAIT", 0.1)
    with pytest.raises(EnvironmentProblem, match="cannot be written: database is locked"):
        log.append([entry("k3")])
    other.close()
    assert log.append([entry("k3")])[0].new


def test_units_that_are_erased_are_in_no_file_of_the_log(log):
    log.append([entry("k1", "secret-person"), entry("k2", "ü"), entry("k3", "secret-person", OUTCOME), entry("k4")])
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in log._file.parent.iterdir()}
    assert set(modes.values()) == {0o600} and len(modes) == 3  # the file, and what SQLite writes beside it
    assert log.erase(["secret-person", "ü", "nobody"]) == 3
    assert [body["unit_id"] for _, body in log.entries(DECISION)] == ["u1"] and not log.entries(OUTCOME)
    assert not [path for path in log._file.parent.iterdir() if b"secret-person" in path.read_bytes()]
    assert log.erase(["secret-person"]) == 0
    assert log.append([entry("k1", "u2")])[0].new


def test_units_are_erased_while_a_worker_writes_without_a_break(log):
    """SQLite itself tries so seldom that it would find the log taken each time."""
    log.append([entry("k1", "gone")])
    ended, log.WAIT = threading.Event(), 5.0

    def work():
        worker, i = DecisionLog(log._file), 0
        while not ended.is_set():
            assert all(one.new for one in worker.append([entry(f"w{i}-{k}", f"u{k}") for k in range(8)]))
            i += 1
        worker.close()
        return 8 * i

    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(work)
        try:
            erased = [log.erase([unit]) for unit in ("gone", "gone", "nobody")]
        finally:
            ended.set()
        n = written.result()
    assert erased == [1, 0, 0] and len(log.entries(DECISION, limit=100_000)) == n


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


def test_what_is_answered_is_in_the_file_of_the_logs_name_though_that_was_removed_or_replaced(log, caplog):
    log.append([entry("k1")])
    for file in log._file.parent.iterdir():
        file.unlink()
    assert log.append([entry("k2", level="10%")])[0].new
    assert [body["level"] for _, body in log.entries(DECISION)] == ["10%"]
    other = DecisionLog(log._file.parent / "other.sqlite")
    other.append([entry("k3", level="none")])
    other.close()
    for file in log._file.parent.glob("decisions.sqlite*"):
        file.unlink()
    (log._file.parent / "other.sqlite").rename(log._file)
    assert not log.append([entry("k3")])[0].new and log.append([entry("k4")])[0].new
    assert [body["level"] for _, body in log.entries(DECISION)] == ["none", "5%"]
    assert caplog.text.count("its file was removed or replaced") == 2


READ = "import sys; from pathlib import Path; from uplift_spark.serving.decisions import DecisionLog as Log; "
READ += "print([body['level'] for _, body in Log(Path(sys.argv[1])).entries('decision')])"


def test_who_reads_a_log_takes_nothing_from_a_worker_that_writes_and_reads_it(log):
    """A budget's counts are read each second, and `uplift load decisions` comes by meanwhile, in another process."""

    def seen_elsewhere():
        command = [sys.executable, "-c", READ, str(log._file)]
        return subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True).stdout.decode()

    log.append([entry("k1")])
    log.spending("2026-03-01")
    assert seen_elsewhere() == "['5%']\n"
    log.append([entry("k2", level="10%")])
    assert seen_elsewhere() == "['5%', '10%']\n"


def decided(key, unit, level="5%", overall=0.8, at="2026-03-01T09:00:00+00:00"):
    facts = {"request_key": key, "unit_id": unit, "campaign": "spring", "level": level, "reason": EXPLORATION}
    facts |= {"propensity": 0.9, "overall_propensity": overall, "explored": True, "decided_at": at, "expires_at": at}
    model = {"name": "spring", "version": 3, "published": "v7"}
    return LogEntry(DECISION, key, {**facts, "model": model, "degraded": ["unit_unknown", "version_kept"]})


def test_the_first_decision_by_design_assigns_its_unit(log):
    """A unit that was decided for while nothing was dealt, such as by the off switch, is not assigned by that."""
    entries = [decided("k1", "u1", "none", None), decided("k2", "u1"), decided("k3", "u1", "10%"), decided("k4", "u2")]
    log.append(entries)
    rows = log.rows(DECISION, "live").to_pylist()
    assert [(row["request_key"], row["assigns"]) for row in rows] == [
        ("k1", False), ("k2", True), ("k3", False), ("k4", True)
    ]  # fmt: skip
    assert rows[1]["treatment"] == "5%" and rows[1]["model_version"] == "3" and rows[1]["campaign"] == "live"
    assert rows[1]["degraded"] == "unit_unknown, version_kept" and rows[1]["known_at"] >= rows[1]["decided_at"]
    assigned = log.rows(ASSIGNMENT, "live").to_pylist()
    assert [(row["number"], row["unit_id"], row["treatment"], row["propensity"]) for row in assigned] == [
        (2, "u1", "5%", 0.8), (4, "u2", "5%", 0.8)
    ]  # fmt: skip
    # What came before counts wherever rows begin, and rows may come in parts.
    assert log.rows(ASSIGNMENT, "live", 2).column("number").to_pylist() == [4]
    assert [row["assigns"] for row in log.rows(DECISION, "live", 2).to_pylist()] == [False, True]
    assert log.rows(DECISION, "live", 1, 2).column("number").to_pylist() == [2, 3]
    log.erase(["u1"])
    assert log.rows(DECISION, "live").column("unit_id").to_pylist() == ["u2"]


def test_one_event_id_of_two_units_is_two_events(log):
    facts = {"event_id": "order-1", "outcome": "y", "value": 2, "occurred_at": "2026-03-01T10:00:00+02:00"}
    known = {"known_at": "2026-03-01T09:00:00.000001+00:00", "campaign": "spring"}
    log.append([LogEntry(OUTCOME, unit, {"unit_id": unit, **facts, **known}) for unit in ("u1", 'u"2')])
    rows = log.rows(OUTCOME, "live").to_pylist()
    assert [row["event_id"] for row in rows] == ['["u1","order-1"]', '["u\\"2","order-1"]']
    assert rows[0]["value"] == 2.0 and rows[0]["occurred_at"].isoformat() == "2026-03-01T08:00:00+00:00"
    assert not len(log.rows(DELIVERY, "live"))


def test_a_log_keeps_its_id_and_never_gives_a_number_twice(log):
    name, last = log.numbering()
    assert len(name) == 16 and last == 0
    log.append([decided("k1", "u1"), decided("k2", "u2")])
    log.erase(["u2"])
    assert log.numbering() == (name, 2) == DecisionLog(log._file).numbering()
    assert DecisionLog(log._file.parent / "other.sqlite").numbering()[0] != name
    log.append([decided("k3", "u3")])
    assert log.rows(DECISION, "live").column("number").to_pylist() == [1, 3]


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
