"""Events in place of connections: the same answers, the same door."""

from __future__ import annotations

import base64
import json
import time

import pytest

from tests.serving.published import config_of, publish, running
from uplift_spark.errors import DataError
from uplift_spark.serving import serverless
from uplift_spark.serving.api import SETTINGS, serving_app
from uplift_spark.serving.guard import new_key
from uplift_spark.serving.serverless import EventServer


def event(path: str, body: object = None, method: str = "POST", **headers: str) -> dict:
    text = None if body is None else json.dumps(body)
    sent = {"Content-Type": "application/json", **headers}
    return {"version": "2.0", "rawPath": path, "rawQueryString": "", "headers": sent, "body": text,
            "isBase64Encoded": False, "requestContext": {"http": {"method": method, "path": path}}}  # fmt: skip


@pytest.fixture
def folder(tmp_path, trained):
    publish(config_of(tmp_path), *trained, 20)
    return tmp_path


def test_an_event_is_answered_as_a_request_is(folder):
    config, body = config_of(folder), {"units": [{"unit_id": "u000003"}, {"unit_id": "nobody"}]}
    server = EventServer(serving_app(config))
    try:
        answer = server.answer(event("/v1/effects", body))
        packed = {**event("/v1/effects"), "body": base64.b64encode(json.dumps(body).encode()).decode()}
        again = server.answer({**packed, "isBase64Encoded": True})
        decided = server.answer(event("/v1/decisions", {"requests": [{"request_key": "k", "unit_id": "u000003"}]}))
        live = server.answer(event("/health/ready", method="GET"))
        missing = server.answer(event("/nothing"))
        wrong = server.answer(event("/v1/effects", {"units": 3}))
    finally:
        server.close()
    with running(config) as service:
        status, served = service.post("/v1/effects", body)
        _, later = service.post("/v1/decisions", {"requests": [{"request_key": "k", "unit_id": "u000003"}]})

    def effects(content):
        return [one["effects"] for one in content["answers"]]

    assert (answer["statusCode"], status, answer["isBase64Encoded"]) == (200, 200, False)
    assert effects(json.loads(answer["body"])) == effects(json.loads(again["body"])) == effects(served)
    assert answer["headers"]["x-request-id"] and live["statusCode"] == 200
    assert json.loads(decided["body"]) == later  # the same request key, from the same log
    assert (missing["statusCode"], wrong["statusCode"]) == (404, 422)


def test_keys_count_for_events_and_newer_versions_are_turned_to(folder, trained):
    key = new_key(folder / "keys", "shop", ("effects",))
    config = config_of(folder, keys=str(folder / "keys"))
    server = EventServer(serving_app(config))
    body = {"unit_id": "u000001"}

    def version() -> str:
        answer = server.answer(event("/v1/effects", body, authorization=f"Bearer {key}"))
        return json.loads(answer["body"])["model"]["published"]

    try:
        assert server.answer(event("/v1/effects", body))["statusCode"] == 401
        assert server.answer(event("/v1/decisions", {}, authorization=f"Bearer {key}"))["statusCode"] == 403
        assert version() == "v1"
        publish(config, *trained, 20, version="v2")
        end = time.monotonic() + 30
        while version() != "v2" and time.monotonic() < end:
            time.sleep(0.1)
        assert version() == "v2"
    finally:
        server.close()


@pytest.mark.parametrize("change", [{"rawPath": None}, {"requestContext": {}}, {"isBase64Encoded": True, "body": "?"}])
def test_what_is_no_request_is_refused(folder, change):
    server = EventServer(serving_app(config_of(folder)))
    try:
        with pytest.raises(DataError, match="no HTTP request of payload format 2"):
            server.answer({**event("/v1/effects", {}), **change})
    finally:
        server.close()


def test_the_handler_reads_the_configuration_that_the_environment_names(folder, monkeypatch):
    from tests.jobs.test_serve import written_conf

    monkeypatch.setenv(SETTINGS, json.dumps([str(written_conf(folder)), []]))
    serverless._server.cache_clear()
    try:
        assert serverless.handler(event("/health/ready", method="GET"))["statusCode"] == 200
        assert serverless._server() is serverless._server()
    finally:
        serverless._server().close()
        serverless._server.cache_clear()
