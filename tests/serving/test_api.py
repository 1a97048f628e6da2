"""The service over real connections: answers, degraded answers, decisions, feedback, the door, and the client."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.forest.frames import arm_roles
from tests.serving.published import BARRED, config_of, features_of, manifest_of, on_trial, publish, running
from uplift_spark import CausalForest
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.experiments.assignment import assign
from uplift_spark.experiments.canary import CHALLENGER_SLICE, canary_design
from uplift_spark.sections.source import Pseudonyms
from uplift_spark.serving.api import serving_app
from uplift_spark.serving.client import ServingClient
from uplift_spark.serving.decisions import DECISION, DELIVERY, OUTCOME, DecisionLog, DecisionPolicy
from uplift_spark.serving.guard import new_key
from uplift_spark.serving.reasons import UNREACHABLE
from uplift_spark.serving.store import (
    CHALLENGER_MODEL,
    CURRENT,
    MODEL,
    UNITS,
    decision_log_file,
    open_version,
    redis_client,
    serving_folder,
)

N = 50


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return config_of(tmp_path_factory.mktemp("served"), exploration=0.2, max_units=60)


@pytest.fixture(scope="module")
def service(config, trained):
    publish(config, *trained, N)
    with running(config) as service:
        yield service


def answers(service, *units):
    status, body = service.post("/v1/effects", {"units": list(units)})
    assert status == 200, body
    return body["answers"]


def waited_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    assert condition()


# ---------------------------------------------------------------- effects


def test_published_units_have_their_batch_scores_to_the_bit(service, trained):
    frame, model = trained
    rows = model.effect(frame[:N])
    effects = [e for one in answers(service, *({"unit_id": f"u{i:06d}"} for i in range(N))) for e in one["effects"]]
    assert [one["level"] for one in effects] == rows["treatment"].tolist()
    for column, name in (("uplift",) * 2, ("uplift_se",) * 2, ("uplift_lower", "lower"), ("uplift_upper", "upper")):
        assert np.array([one[name] for one in effects]).tobytes() == rows[column].to_numpy().tobytes(), column
    one = service.post("/v1/effects", {"unit_id": "u000003"})[1]
    assert one["model"] == {"name": "spring", "version": 1, "published": "v1"} and one["outcome"] == "y"
    assert (one["answers"][0]["source"], one["answers"][0]["degraded"]) == ("model", [])
    assert 0 <= one["answers"][0]["feature_age_seconds"] < 3600


def test_features_alone_and_features_beside_an_id(service, trained):
    frame = trained[0]
    alone, by_id, older = answers(
        service,
        {"features": features_of(frame, 4)},
        {"unit_id": "u000004"},
        {"unit_id": "u000004", "features": {"age": 79}},
    )
    assert alone["effects"] == by_id["effects"] and alone["unit_id"] is None and alone["feature_age_seconds"] == 0
    assert older["effects"] == answers(service, {"features": {**features_of(frame, 4), "age": 79}})[0]["effects"]
    new = answers(service, {"features": {**features_of(frame, 4), "region": "moon"}})[0]
    assert new["new_categories"] == ["region"]


def test_a_unit_that_nobody_knows_gets_the_average_and_says_so(service):
    one = answers(service, {"unit_id": "nobody"})[0]
    assert (one["source"], one["degraded"]) == ("average_effects", ["unit_unknown", "average_effects"])
    assert [e["uplift"] for e in one["effects"]] == [0.5, 0.5] and all(e["low_support"] for e in one["effects"])


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"features": {"age": 30}, "unit_id": "u000001", "extra": 1}, "extra: Extra inputs are not permitted"),
        ({}, "name one unit by unit_id or features, or several under units"),
        ({"units": [{"unit_id": "u000001"}], "unit_id": "u000001"}, "name one unit by unit_id or features"),
        ({"units": [{}]}, r"units[0] has neither unit_id nor features"),
        ({"unit_id": "u000001", "features": {"age": "old"}}, "feature 'age' is a text but the model was trained with"),
        (
            {"units": [{"unit_id": "u000001"}, {"unit_id": "u000002", "features": {"aeg": 1}}]},
            "units[1]: feature 'aeg'",
        ),
        ({"units": [{"unit_id": "a"}] * 61}, "the request has 61 units, 60 at most"),
        ({"unit_id": ""}, "String should have at least 1 character"),
        ({"unit_id": 7}, "Input should be a valid string"),
        (b"{not json", "JSON decode error"),
        (rb'{"unit_id": "\ud800"}', "unit_id"),
        (rb'{"features": {"\ud800": 1}}', "was it renamed?"),
        (b'{"features": {"age": 1e999}}', "features.age"),
    ],
)
def test_a_request_that_does_not_fit_gets_one_sentence(service, body, sentence):
    status, answer = service.post("/v1/effects", body)
    assert status == 422 and sentence in answer["error"] and set(answer) == {"error", "request_id"}


# ---------------------------------------------------------------- decisions and feedback


def decide(service, *requests):
    status, body = service.post("/v1/decisions", {"requests": list(requests)})
    assert status == 200, body
    return body["decisions"]


def test_decisions_follow_plan_and_exploration_and_are_logged_before_they_are_answered(service, config, trained):
    requests = [{"request_key": f"plan-{i}", "unit_id": f"u{i:06d}"} for i in range(N)]
    made = decide(service, *requests)
    policy = DecisionPolicy(manifest_of(trained[1]), config.serving)
    stored = service.app.state.served.stored([one["unit_id"] for one in requests])[0]
    for one in made:
        wanted = policy.decide(one["unit_id"], stored[one["unit_id"]], None)
        assert (one["level"], one["reason"], one["propensity"]) == (wanted.level, wanted.reason, wanted.propensity)
        assert one["overall_propensity"] == wanted.overall
    assert {one["level"] for i, one in enumerate(made) if i % 7 == 0} == {"none"}
    assert made[0]["reason"] == BARRED and made[0]["logged"] and made[0]["campaign"] == "spring"
    span = datetime.fromisoformat(made[0]["expires_at"]) - datetime.fromisoformat(made[0]["decided_at"])
    assert abs(span - timedelta(minutes=30)) < timedelta(seconds=1)
    log = DecisionLog(decision_log_file(config))
    logged = {body["request_key"]: body for _, body in log.entries(DECISION)}
    assert all({**logged[one["request_key"]], "logged": True} == one for one in made)


def test_the_same_request_key_gets_the_same_answer_however_often(service):
    query = {"request_key": "again", "unit_id": "u000001"}
    first = decide(service, query)[0]
    with ThreadPoolExecutor(8) as pool:
        assert all(one == first for one in pool.map(lambda _: decide(service, query)[0], range(24)))


def test_a_days_budget_is_never_exceeded_over_workers_and_restarts(tmp_path, trained):
    """Two services of one log, one after another and at once, as workers are; 4 of money, and levels for .5 and 1."""
    config = config_of(tmp_path, exploration=0.5, budget=4.0)
    publish(config, *trained, N, spend=((0.0, 0.6), (20.0, 0.0)))
    requests = [{"request_key": f"paced-{i}", "unit_id": f"u{i:06d}"} for i in range(N)]
    with running(config) as one:
        made = decide(one, *requests[:15])
    with running(config) as one, running(config) as other, ThreadPoolExecutor(8) as pool:
        made += [a for part in pool.map(lambda i: decide((one, other)[i % 2], requests[i]), range(15, N)) for a in part]
        again = decide(other, *requests)
        waited_for(lambda: "uplift_budget_spent 0.0" not in one.get("/metrics")[1])
    cost = {"none": 0.0, "5%": 0.5, "10%": 1.0}
    assert 3.0 < sum(cost[answer["level"]] for answer in made) <= 4.0
    assert {answer["request_key"]: answer for answer in again} == {answer["request_key"]: answer for answer in made}
    late = [answer for answer in made if answer["reason"] == "day's budget spent"]
    assert late and {(a["level"], a["propensity"], a["overall_propensity"], a["explored"]) for a in late} == {
        ("none", 1.0, None, False)
    }
    barred = [answer for answer in made if answer["unit_id"] == "u000007"]
    assert barred[0]["reason"] == BARRED


def test_a_budget_without_costs_is_refused_before_anything_is_served(tmp_path, trained):
    config = config_of(tmp_path, budget=4.0)
    publish(config, *trained, 5)
    with running(config) as service:
        status, text = service.get("/health/ready")
    assert status == 503 and "serving.budget needs levels whose cost is the same for all units" in text


@pytest.fixture(scope="module")
def challenger(trained):
    """Another model of the same trial."""
    return CausalForest(n_trees=8, n_buckets=4, min_leaf=10, seed=9).fit(trained[0], arm_roles())


def test_the_challenger_answers_for_its_slice_alone_after_a_restart_too(tmp_path, trained, challenger):
    """Slices are those of `uplift canary`; effects are the batch scores of whoever answers, and its version is said."""
    config, (frame, model) = config_of(tmp_path, exploration=0.2), trained
    publish(config, frame, model, N, **on_trial(challenger, 0.3))
    units = [f"u{i:06d}" for i in range(N)]
    arms = assign(units, canary_design("spring-canary-2-1", 0.3))["treatment"].tolist()
    assert 5 < arms.count(CHALLENGER_SLICE) < 30
    batch = {one: by.effect(frame[:N])["uplift"].to_numpy().reshape(N, 2) for one, by in ((1, model), (2, challenger))}
    assert (batch[1] != batch[2]).all()
    versions = [2 if arm == CHALLENGER_SLICE else 1 for arm in arms]
    requests = [
        {"request_key": unit, "unit_id": unit, "features": features_of(frame, i)} for i, unit in enumerate(units)
    ]
    for again in (False, True):
        with running(config) as service:
            for i, one in enumerate(answers(service, *({"unit_id": unit} for unit in units))):
                assert one["model"] == {"name": "spring", "version": versions[i], "published": "v1"}
                assert [e["uplift"] for e in one["effects"]] == batch[versions[i]][i].tolist()
            alone = answers(service, {"features": features_of(frame, arms.index(CHALLENGER_SLICE))})[0]
            assert alone["model"]["version"] == 1
            made = decide(service, *requests)
            assert [one["model"]["version"] for one in made] == versions
            if not again:  # what it would decide by the other model's effects is something else for some
                policy, stored = service.app.state.served.now.policy, service.app.state.served.stored(units)[0]
                by = service.app.state.served.now.challenger
                scored = by.effects([by.encoder.encode(one["features"]) for one in requests])
                wanted = [policy.decide(u, stored[u], fresh).level for u, fresh in zip(units, scored, strict=True)]
                levels = [one["level"] for one in made]
                assert all(levels[i] == wanted[i] for i in range(N) if versions[i] == 2)
                assert any(levels[i] != wanted[i] for i in range(N) if versions[i] == 1)
    logged = [body["model"]["version"] for _, body in DecisionLog(decision_log_file(config)).entries(DECISION)]
    assert logged == versions


def test_a_shadow_decides_for_the_log_and_is_never_answered_from(tmp_path, trained, challenger):
    config, (frame, model) = config_of(tmp_path), trained
    publish(config, frame, model, N, **on_trial(challenger, 0.0))
    units = [f"u{i:06d}" for i in range(N)]
    requests = [{"request_key": u, "unit_id": u, "features": features_of(frame, i)} for i, u in enumerate(units)]
    with running(config) as service:
        made = decide(service, *requests, {"request_key": "x", "unit_id": "nobody"})
        again = decide(service, *requests)
        now = service.app.state.served.now
        stored = service.app.state.served.stored(units)[0]
    assert again == made[:-1] and not any("shadow" in one for one in made)
    assert {one["model"]["version"] for one in made} == {1}
    log = [body for _, body in DecisionLog(decision_log_file(config)).entries(DECISION)]
    assert "shadow" not in log[-1]
    differ = 0
    for i, unit in enumerate(units):
        if i % 7 == 0:  # barred by a rule: there is nothing to decide
            assert "shadow" not in log[i]
            continue
        (effects,) = now.challenger.effects([now.challenger.encoder.encode(features_of(frame, i))])
        level, reason = now.policy.by_policy(stored[unit], effects, None)
        assert log[i]["shadow"] == {"name": "spring", "version": 2, "level": level, "reason": reason}
        differ += level != log[i]["level"]
    assert differ


def test_a_damaged_challenger_refuses_its_version(tmp_path, trained, challenger):
    config = config_of(tmp_path)
    publish(config, *trained, 5, **on_trial(challenger, 0.3))
    file = serving_folder(config) / "v1" / CHALLENGER_MODEL
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="the model of version v1 is not the one that was published"):
        open_version(serving_folder(config))
    publish(config, *trained, 5, **on_trial(challenger, 0.3))  # made anew
    assert open_version(serving_folder(config)).challenger == challenger.forest.to_bytes()


def test_a_used_key_is_refused_alone_and_nothing_of_its_request_is_logged(service, config):
    decide(service, {"request_key": "used", "unit_id": "u000001"})
    wrong = [{"request_key": "beside", "unit_id": "u000003"}, {"request_key": "used", "unit_id": "u000002"}]

    def one(i):
        if i % 4 == 0:
            return service.post("/v1/decisions", {"requests": wrong})
        return service.post("/v1/decisions", {"requests": [{"request_key": f"good-{i}", "unit_id": "u000003"}]})

    with ThreadPoolExecutor(8) as pool:  # many go to disk together
        seen = list(pool.map(one, range(32)))
    assert [status for status, _ in seen] == [409 if i % 4 == 0 else 200 for i in range(32)]
    assert "request key 'used' was used for another unit before" in seen[0][1]["error"]
    logged = {body["request_key"] for _, body in DecisionLog(decision_log_file(config)).entries(DECISION)}
    assert "beside" not in logged and {f"good-{i}" for i in range(32) if i % 4} <= logged


def test_decisions_by_the_plan_need_no_model_and_lack_nothing(service, monkeypatch):
    def unused(_):
        raise AssertionError("scored")

    monkeypatch.setattr(service.app.state.served.now.scorer, "effects", lambda units: unused(units) if units else [])
    made = decide(service, {"request_key": "by-plan", "unit_id": "u000003"}, {"request_key": "of-none", "unit_id": "x"})
    assert [one["degraded"] for one in made] == [[], ["unit_unknown"]]


def test_features_of_a_decision_that_do_not_fit_are_named_by_their_request(service):
    body = [
        {"request_key": "a", "unit_id": "u000001"},
        {"request_key": "b", "unit_id": "u000001", "features": {"x": 1}},
    ]
    status, answer = service.post("/v1/decisions", {"requests": body})
    assert status == 422 and answer["error"].startswith("requests[1]: feature 'x' is none of the model's")


def test_ids_are_trimmed_as_tables_trim_them(service, config):
    made = decide(service, {"request_key": "trimmed", "unit_id": "\ufeff u000003\u00a0\n"})[0]
    assert made["unit_id"] == "u000003" and made["reason"] != "unit not published"
    assert answers(service, {"unit_id": " u000003 "})[0]["source"] == "model"
    status, body = service.post("/v1/effects", {"unit_id": " \ufeff "})
    assert status == 422 and "the id is blank" in body["error"]


def test_an_id_that_sqlite_would_cut_off_is_refused(service):
    """It could not be erased from the log, and would count as one unit with others that begin alike."""
    status, body = service.post("/v1/decisions", {"requests": [{"request_key": "cut", "unit_id": "u\0x"}]})
    assert status == 422 and "holds a zero byte" in body["error"]


@pytest.mark.parametrize("value", [[1], {"a": 1}, "x" * 513, float("nan")])
def test_a_feature_of_no_kind_that_features_have_is_refused_with_what_may_be_sent(service, value):
    """The sentence was that of the first kind alone: "Input should be a valid boolean"."""
    status, body = service.post("/v1/effects", {"features": {"x0": value}})
    assert status == 422 and body["error"].startswith("features.x0: send a number, a text of at most 512 characters")


def test_a_campaign_with_pseudonyms_is_not_served(config):
    hashed = replace(config, pseudonyms=Pseudonyms(key_env="KEY"))
    with pytest.raises(ConfigError, match="campaign spring has pseudonyms in place of unit ids"):
        serving_app(hashed)


def test_a_unit_that_is_not_published_gets_the_control_whatever_it_sends(service, trained):
    features = features_of(trained[0], 1)
    made = decide(service, {"request_key": "stranger", "unit_id": "opted-out", "features": features})[0]
    assert (made["level"], made["reason"], made["propensity"]) == ("none", "unit not published", 1.0)
    assert made["overall_propensity"] is None


def test_fresh_features_decide_at_the_limits_prices(service, config, trained):
    folder = serving_folder(config)
    made = decide(
        service,
        *(
            {"request_key": f"f{i}", "unit_id": f"u{i:06d}", "features": features_of(trained[0], i)}
            for i in range(1, 7)
        ),
    )
    for i, one in enumerate(made, 1):
        effects = {e["level"]: e["uplift"] for e in answers(service, {"unit_id": f"u{i:06d}"})[0]["effects"]}
        nets = {"none": 0.0, "5%": 10 * effects["5%"] - 0.75, "10%": 10 * effects["10%"] - 1.5}
        assert one["explored"] or one["level"] == max(nets, key=nets.get)
    assert folder.exists()


def test_feedback_counts_once(service, config):
    now = datetime.now(UTC).isoformat()
    sends = [{"delivery_id": "d1", "unit_id": "u1", "status": s, "delivered_at": now} for s in ("sent", "delivered")]
    orders = [{"event_id": "o1", "unit_id": "u1", "outcome": "y", "value": 2.5, "occurred_at": now}]
    for new, known in ((1, 0), (0, 1)):
        assert service.post("/v1/deliveries", {"deliveries": sends}) == (202, {"accepted": 2 * new, "known": 2 * known})
        assert service.post("/v1/outcomes", {"outcomes": orders}) == (202, {"accepted": new, "known": known})
    log = DecisionLog(decision_log_file(config))
    assert [body["status"] for _, body in log.entries(DELIVERY)] == ["sent", "delivered"]
    ((_, order),) = log.entries(OUTCOME)
    # The same number of an order, of another unit or another outcome, is another event.
    others = [*orders, {**orders[0], "unit_id": "u2"}, {**orders[0], "outcome": "visits"}]
    assert service.post("/v1/outcomes", {"outcomes": others}) == (202, {"accepted": 2, "known": 1})
    assert service.post("/v1/deliveries", {"deliveries": [{**sends[0], "unit_id": "u2"}]})[1]["accepted"] == 1
    assert len(log.entries(OUTCOME)) == len(log.entries(DELIVERY)) == 3
    assert order["value"] == 2.5 and order["campaign"] == "spring" and order["known_at"] >= now[:19]
    for wrong in ({"value": "NaN"}, {"occurred_at": now[:19]}, {"event_id": ""}):
        assert service.post("/v1/outcomes", {"outcomes": [{**orders[0], **wrong}]})[0] == 422
    assert service.post("/v1/deliveries", {"deliveries": [{**sends[0], "status": "lost"}]})[0] == 422


def counter(service, name):
    """Value of a counter with its labels."""
    values = [line.split()[-1] for line in service.get("/metrics")[1].splitlines() if line.startswith(name + " ")]
    return float(values[0]) if values else 0.0


def test_a_log_that_cannot_be_written_gives_the_control_and_says_so(service, monkeypatch, caplog):
    def full(*_):
        raise EnvironmentProblem("the log cannot be written: disk full")

    alarm = 'uplift_degraded_total{why="log_unavailable"}'
    before = counter(service, alarm)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR, "uplift_spark.serving"):
        patch.setattr(DecisionLog, "append", full)
        made = decide(service, {"request_key": "lost", "unit_id": "u000003"})[0]
        assert (made["level"], made["logged"], made["propensity"]) == ("none", False, None)
        assert "log_unavailable" in made["degraded"]
        now = datetime.now(UTC).isoformat()
        order = {"event_id": "o2", "unit_id": "u1", "outcome": "y", "value": 1.0, "occurred_at": now}
        assert service.post("/v1/outcomes", {"outcomes": [order]})[0] == 503  # it was not taken in
    assert counter(service, alarm) == before + 2
    lines = [json.loads(record.message) for record in caplog.records if record.name == "uplift_spark.serving"]
    assert [line["event"] for line in lines] == ["log not written"] * 2 and "disk full" in lines[0]["reason"]
    assert decide(service, {"request_key": "lost", "unit_id": "u000003"})[0]["logged"]


# ---------------------------------------------------------------- versions, and what is not to be had


def test_a_newer_version_is_served_and_a_damaged_one_is_not(tmp_path, trained):
    config = config_of(tmp_path)
    folder = serving_folder(config)
    publish(config, *trained, 10)
    with running(config) as service:
        assert answers(service, {"unit_id": "u000012"})[0]["source"] == "average_effects"
        publish(config, *trained, 20, version="v2")
        waited_for(lambda: answers(service, {"unit_id": "u000012"})[0]["source"] == "model")
        assert json.loads(service.get("/health/ready")[1])["model"]["published"] == "v2"
        shutil.copytree(folder / "v2", folder / "v3")
        text = (folder / "v3" / "manifest.json").read_text().replace('"v2"', '"v3"')
        (folder / "v3" / "manifest.json").write_text(text)
        (folder / "v3" / MODEL).write_bytes(b"no model")
        (folder / CURRENT).write_text("v3")
        waited_for(lambda: "version_kept" in answers(service, {"unit_id": "u000012"})[0]["degraded"])
        one = answers(service, {"unit_id": "u000012"})[0]
        assert one["source"] == "model" and one["degraded"] == ["version_kept"]
        facts = json.loads(service.get("/health/ready")[1])
        assert facts["status"] == "ready" and "is not the one that was published" in facts["problem"]
        (folder / CURRENT).unlink()
        (folder / CURRENT).mkdir()  # what nobody thought of: a folder in place of the file
        waited_for(lambda: "IsADirectoryError" in json.loads(service.get("/health/ready")[1])["problem"])
        assert answers(service, {"unit_id": "u000012"})[0]["source"] == "model"
        (folder / CURRENT).rmdir()
        publish(config, *trained, 5, version="v4")
        waited_for(lambda: answers(service, {"unit_id": "u000012"})[0]["source"] == "average_effects")
        assert answers(service, {"unit_id": "u000001"})[0]["degraded"] == []


def test_old_features_are_flagged(tmp_path, trained):
    config = config_of(tmp_path, ttl_minutes=30)
    publish(config, *trained, 5, at=time.time() - 1801)
    with running(config) as service:
        one, fresh = answers(
            service, {"unit_id": "u000001"}, {"unit_id": "u000001", "features": features_of(trained[0], 1)}
        )
    assert one["degraded"] == ["features_stale"] and 1801 <= one["feature_age_seconds"] < 3000
    assert fresh["degraded"] == [] and fresh["effects"] == one["effects"]


def test_units_that_cannot_be_read_never_become_an_error(tmp_path, trained):
    config = config_of(tmp_path)
    publish(config, *trained, 5)
    with running(config) as service:

        def damaged(_):
            raise EnvironmentProblem("gone")

        service.app.state.served.now.version.units.get = damaged
        one, sent, some = answers(
            service,
            {"unit_id": "u000001"},
            {"unit_id": "u000001", "features": features_of(trained[0], 1)},
            {"unit_id": "u000001", "features": {"age": 30}},
        )
        made = decide(service, {"request_key": "k", "unit_id": "u000001"})[0]
    assert one["degraded"] == ["store_unavailable", "average_effects"]
    assert sent["degraded"] == ["store_unavailable"] and sent["source"] == "model"
    assert some["degraded"] == ["store_unavailable", "features_incomplete", "average_effects"]
    assert (made["level"], made["degraded"]) == ("none", ["store_unavailable"])
    assert (made["reason"], made["propensity"], made["logged"]) == ("store unavailable", None, True)


def test_redis_gives_the_answers_of_the_file(tmp_path, trained, redis_url):
    client = redis_client(redis_url)
    client.flushall()
    every = [{"unit_id": f"u{i:06d}"} for i in range(10)] + [{"unit_id": "nobody"}]
    seen = []
    for config in (config_of(tmp_path / "file"), config_of(tmp_path / "redis", redis=redis_url)):
        publish(config, *trained, 10, redis=client if config.serving.redis else None)
        with running(config) as service:
            made = decide(service, *({"request_key": f"k{i}", **one} for i, one in enumerate(every)))
            effects = [{**one, "feature_age_seconds": None} for one in answers(service, *every)]
            seen.append((effects, [(one["level"], one["reason"], one["propensity"]) for one in made]))
            if config.serving.redis:
                client.flushall()
                assert answers(service, every[0])[0]["degraded"] == ["store_unavailable", "average_effects"]
    assert seen[0] == seen[1] and not (serving_folder(config) / "v1" / UNITS).exists()


def test_before_anything_is_published_the_service_lives_and_is_not_ready(tmp_path, trained):
    config = config_of(tmp_path)
    with running(config) as service:
        assert service.get("/health/live")[0] == 200 and service.get("/health/ready")[0] == 503
        status, body = service.post("/v1/effects", {"unit_id": "u"})
        assert status == 503 and "run `uplift publish`" in body["error"]
        publish(config, *trained, 3)
        waited_for(lambda: service.get("/health/ready")[0] == 200)


# ---------------------------------------------------------------- the door


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, trained):
    """A service with keys and small limits: (service, {scope: key})."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = {scope: new_key(folder / "keys", scope, (scope,)) for scope in ("effects", "decide", "metrics")}
    keys["few"] = new_key(folder / "keys", "few", ("effects",))
    config = config_of(folder, keys=str(folder / "keys"), max_bytes=4096, timeout_seconds=0.5, rate=5)
    publish(config, *trained, 3)
    with running(config) as service:
        yield service, {scope: {"authorization": f"Bearer {key}"} for scope, key in keys.items()}


def test_a_key_opens_its_own_paths_only(guarded):
    service, keys = guarded
    body = {"unit_id": "u000001"}
    assert service.post("/v1/effects", body)[0] == 401
    assert service.post("/v1/effects", body, {"authorization": "Bearer guess"})[0] == 401
    status, answer = service.post("/v1/effects", body, keys["decide"])
    assert (
        status == 403 and answer["error"] == "the key of decide does not open /v1/effects: it needs the scope effects"
    )
    assert service.post("/v1/effects", body, keys["effects"])[0] == 200
    assert service.get("/metrics")[0] == 401 and service.get("/metrics", keys["metrics"])[0] == 200
    assert service.get("/health/live")[0] == service.get("/health/ready")[0] == service.get("/openapi.json")[0] == 200


def raw(service, parts, until=b"request_id"):
    """What comes back for bytes that are sent as they are."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except OSError:
            pass  # it was closed at the other end
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
                if b"\r\n\r\n" in answer and until in answer:
                    break
        except OSError:
            pass
        return answer.decode()


def head(key, extra):
    lines = ["POST /v1/effects HTTP/1.1", "host: x", f"authorization: {key['authorization']}", *extra]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_a_body_that_is_too_large_is_refused_chunked_or_not(guarded):
    service, keys = guarded
    announced = raw(service, [head(keys["effects"], ["content-length: 5000"])])
    chunks = [head(keys["effects"], ["transfer-encoding: chunked"]), *[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 6]
    for answer in (announced, raw(service, chunks)):
        assert answer.startswith("HTTP/1.1 413 ") and "the body is larger than 4096 bytes" in answer


def test_a_body_that_never_comes_is_not_waited_for(guarded):
    service, keys = guarded
    answer = raw(service, [head(keys["effects"], ["content-length: 100"]), b'{"unit_id"'])
    assert answer.startswith("HTTP/1.1 408 ") and "did not arrive within 0.5 seconds" in answer


def test_callers_without_a_key_hold_up_nobody(guarded):
    """They are refused before their bodies come, and wait in nobody's place; paths without a key take no body."""
    service, _ = guarded
    waiting = "content-length: 100"
    for path, answer in (("/v1/effects", "401"), ("/v1/nothing", "404"), ("/", "404"), ("/health/live", "405")):
        lines = f"POST {path} HTTP/1.1\r\nhost: x\r\n{waiting}\r\n\r\n"
        start = time.monotonic()
        assert raw(service, [lines.encode()], until=b"\r\n\r\n").startswith(f"HTTP/1.1 {answer} ")
        assert time.monotonic() - start < 0.45  # not the half second that bodies are waited for
    live = f"GET /health/live HTTP/1.1\r\nhost: x\r\n{waiting}\r\n\r\n"
    assert raw(service, [live.encode()], until=b"live").startswith("HTTP/1.1 200 ")


def test_what_the_framework_refuses_has_a_sentence_and_an_id_too(guarded):
    service, keys = guarded
    answers = [service._pool.request("PUT", f"{service.url}/v1/effects", body=b"{}", headers=keys["effects"])]
    answers.append(service._pool.request("GET", f"{service.url}/docs/nothing", headers=keys["effects"]))
    for answer, status in zip(answers, (405, 404), strict=True):
        body = json.loads(answer.data)
        assert answer.status == status and set(body) == {"error", "request_id"}
        assert body["request_id"] == answer.headers["x-request-id"]


def test_a_caller_above_its_rate_learns_when_to_come_back(guarded):
    service, keys = guarded
    seen = [
        service._pool.request("POST", f"{service.url}/v1/effects", body=b"{}", headers=keys["few"]) for _ in range(40)
    ]
    assert {one.status for one in seen} == {422, 429}
    assert all(1 <= int(one.headers["retry-after"]) <= 3 for one in seen if one.status == 429)


def test_requests_have_ids_and_the_log_holds_nobody(guarded, caplog):
    service, keys = guarded
    time.sleep(0.2)
    with caplog.at_level(logging.INFO, "uplift_spark.serving"):
        body = json.dumps({"unit_id": "secret-person", "features": {"region": "secret-place"}}).encode()
        sent = {**keys["effects"], "content-type": "application/json", "x-request-id": "trace-7"}
        answer = service._pool.request("POST", f"{service.url}/v1/effects", body=body, headers=sent)
        bad = service._pool.request(
            "POST", f"{service.url}/v1/effects", body=body, headers={**keys["effects"], "x-request-id": "no id\u00e9"}
        )
    assert answer.headers["x-request-id"] == "trace-7" and len(bad.headers["x-request-id"]) == 32
    lines = [json.loads(record.message) for record in caplog.records if record.name == "uplift_spark.serving"]
    mine = next(line for line in lines if line.get("request_id") == "trace-7")
    assert (mine["path"], mine["status"], mine["caller"]) == ("/v1/effects", answer.status, "effects") and mine[
        "ms"
    ] > 0
    assert "secret" not in json.dumps(lines)


def test_an_error_of_ours_shows_no_stack(guarded, caplog, monkeypatch):
    service, keys = guarded

    def broken(_):
        raise RuntimeError("secret-person has no row")

    monkeypatch.setattr(service.app.state.served, "stored", broken)
    with caplog.at_level(logging.INFO, "uplift_spark.serving"):
        status, body = service.post("/v1/effects", {"unit_id": "secret-person"}, keys["effects"])
    assert status == 500 and set(body) == {"error", "request_id"} and "Traceback" not in json.dumps(body)
    lines = [json.loads(record.message) for record in caplog.records if record.name == "uplift_spark.serving"]
    error = next(line for line in lines if line["event"] == "error")
    assert error["error"] == "RuntimeError" and any("broken" in place for place in error["where"])
    assert error["request_id"] == body["request_id"] and "secret" not in json.dumps(lines)


def test_too_many_at_once_are_refused_and_the_others_are_answered(tmp_path, trained, monkeypatch):
    config = config_of(tmp_path, max_running=4)
    publish(config, *trained, 3)
    append = DecisionLog.append

    def slow(self, entries):
        time.sleep(0.3)
        return append(self, entries)

    monkeypatch.setattr(DecisionLog, "append", slow)
    with running(config) as service, ThreadPoolExecutor(24) as pool:

        def one(i):
            return service.post("/v1/decisions", {"requests": [{"request_key": f"k{i}", "unit_id": "u000001"}]})[0]

        seen = list(pool.map(one, range(24)))
    assert set(seen) == {200, 503} and seen.count(200) >= 4


def test_counters_count_every_request_and_each_decision_once(service):
    requests = 'uplift_requests_total{path="/v1/effects",status="200"}'
    before = counter(service, requests)
    answers(service, {"unit_id": "nobody"})
    answers(service, {"unit_id": "u000001"})
    assert counter(service, requests) == before + 2
    barred = 'uplift_decisions_total{explored="false",level="none"}'
    before = counter(service, barred)
    for _ in range(3):
        decide(service, {"request_key": "counted", "unit_id": "u000007"})
    assert counter(service, barred) == before + 1
    assert 'uplift_degraded_total{why="unit_unknown"}' in service.get("/metrics")[1]


def test_the_description_of_the_api_names_paths_and_examples(service):
    page = json.loads(service.get("/openapi.json")[1])
    assert {"/v1/effects", "/v1/decisions", "/v1/deliveries", "/v1/outcomes"} <= set(page["paths"])
    assert page["components"]["schemas"]["DecisionsRequest"]["examples"]


# ---------------------------------------------------------------- the client


def test_the_client_asks_decides_and_reports(service, trained):
    client = ServingClient(service.url, "none", timeout=30)
    one = client.effects([{"unit_id": "u000001"}, {"features": features_of(trained[0], 1)}])
    assert one[0]["effects"] == one[1]["effects"]
    made = client.decide("u000001", "by-client")
    assert made == client.decide("u000001", "by-client") and made["logged"]
    assert client.decide("u000001")["request_key"] != client.decide("u000001")["request_key"]
    now = datetime.now(UTC).isoformat()
    order = {"event_id": "o9", "unit_id": "u000001", "outcome": "y", "value": 1.0, "occurred_at": now}
    assert client.report("outcomes", [order]) == 1
    with pytest.raises(DataError, match="the service refused the request: feature 'aeg' is none"):
        client.effects([{"unit_id": "u000001", "features": {"aeg": 1}}])


@contextmanager
def something_else(*answers):
    """URL of a server that gives these answers, (status, body), one after the other, the last one for ever."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            status, body = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@pytest.mark.parametrize("answer", [(200, b"<html>sign in</html>"), (404, b"nothing here"), (200, b"[]"), (200, b"{}")])
def test_what_is_not_the_service_is_taken_for_none(answer):
    with something_else(answer) as url:
        client = ServingClient(url, "none", timeout=30)
        made = client.decide("u1", "k1")
        assert (made["level"], made["logged"], made["degraded"]) == ("none", False, [UNREACHABLE])
        with pytest.raises(EnvironmentProblem, match=rf"is not the service: status {answer[0]}"):
            client.effects([{"unit_id": "u1"}])


def test_a_body_that_came_too_late_is_sent_again():
    with something_else((408, b"{}"), (200, b'{"answers": []}')) as url:
        assert ServingClient(url, "none", timeout=30).effects([]) == []


def test_the_client_falls_back_to_the_control():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = ServingClient(f"http://127.0.0.1:{port}", "none", timeout=0.2, retries=1)
    made = client.decide("u1", "k1")
    assert (made["level"], made["logged"], made["degraded"]) == ("none", False, [UNREACHABLE])
    with pytest.raises(EnvironmentProblem, match="does not answer"):
        client.effects([{"unit_id": "u1"}])
