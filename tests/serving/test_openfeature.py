"""Flags decided by the service over real connections, through the SDK's own client, contexts and hooks."""

from __future__ import annotations

import asyncio
import socket
from datetime import datetime

import numpy as np
import pytest
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.event import ProviderEvent
from openfeature.exception import ErrorCode, GeneralError
from openfeature.flag_evaluation import FlagEvaluationOptions, FlagType, Reason
from openfeature.hook import Hook
from openfeature.provider import ProviderStatus

from tests.serving.published import config_of, publish, running
from uplift_spark.errors import DataError
from uplift_spark.serving.client import ServingClient
from uplift_spark.serving.decisions import DECISION, DecisionLog
from uplift_spark.serving.guard import new_key
from uplift_spark.serving.openfeature import REQUEST_KEY, UpliftProvider
from uplift_spark.serving.store import decision_log_file

N = 50


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return config_of(tmp_path_factory.mktemp("flags"), exploration=0.2, holdout=0.2)


@pytest.fixture(scope="module")
def service(config, trained):
    publish(config, *trained, N)
    with running(config) as service:
        yield service


@pytest.fixture
def flags(service):
    """The SDK's client, with our provider."""
    api.set_provider_and_wait(UpliftProvider({"spring": client_of(service)}, features=("age", "region")))
    yield api.get_client()
    api.clear_providers()
    api.clear_hooks()
    api.set_evaluation_context(EvaluationContext())


def client_of(service, **options):
    return ServingClient(service.url, "none", timeout=30, **options)


def unit(i, **attributes):
    return EvaluationContext(f"u{i:06d}", attributes)


def test_a_flag_is_the_level_a_switch_or_the_whole_decision(flags, service):
    reasons = set()
    for i in range(30):
        here = unit(i, **{REQUEST_KEY: f"page-{i}"})
        whole = flags.get_object_details("spring", {}, here)
        text = flags.get_string_details("spring", "default", here)
        switch = flags.get_boolean_details("spring", False, here)
        decision = client_of(service).decide(f"u{i:06d}", f"page-{i}")
        assert whole.value == decision and text.value == decision["level"]
        assert switch.value is (decision["level"] != "none")
        assert {whole.variant, text.variant, switch.variant} == {decision["level"]}
        noted = text.flag_metadata
        assert (noted["propensity"], noted["degraded"]) == (decision["propensity"], "")
        assert noted.get("overall_propensity") == decision["overall_propensity"]
        assert (noted["model_name"], noted["model_version"], noted["published"]) == ("spring", 1, "v1")
        assert noted["expires_at"] == decision["expires_at"] and noted["request_key"] == f"page-{i}"
        barred = i % 7 == 0
        dealt = decision["explored"] or decision["reason"] == "holdout"
        wanted = Reason.DEFAULT if barred else Reason.SPLIT if dealt else Reason.TARGETING_MATCH
        assert whole.reason == text.reason == switch.reason == wanted and text.error_code is None
        reasons.add(wanted)
    assert len(reasons) == 3


def test_an_occasion_gets_one_decision_and_without_one_each_evaluation_gets_its_own(flags, config):
    def logged():
        return len(DecisionLog(decision_log_file(config)).entries(DECISION, limit=10_000))

    before = logged()
    for _ in range(3):
        flags.get_string_value("spring", "default", unit(1, **{REQUEST_KEY: "once"}))
    assert logged() == before + 1
    for _ in range(3):
        flags.get_string_value("spring", "default", unit(1))
    assert logged() == before + 4


def test_contexts_merge_and_only_named_attributes_are_features(flags, service, trained):
    """Transaction and client contexts carry the unit; the fresh age changes the decision as it does by plain HTTP."""
    api.set_evaluation_context(EvaluationContext("u000001", {"email": "a@b.c", "since": datetime(2026, 1, 1)}))
    for age in range(18, 80, 12):
        here = EvaluationContext(attributes={"age": age})
        plain = client_of(service).decide("u000001", None, {"age": age})
        decision = flags.get_object_value("spring", {}, here)
        changes = ("request_key", "decided_at", "expires_at")
        assert {k: v for k, v in decision.items() if k not in changes} == {
            k: v for k, v in plain.items() if k not in changes
        }
        assert decision["unit_id"] == "u000001"


class Noting(Hook):
    """Notes what the SDK says to hooks; sets the unit before evaluations."""

    def __init__(self):
        self.said = []

    def before(self, hook_context, hints):
        self.said.append(("before", hook_context.flag_type, hook_context.provider_metadata.name))
        return EvaluationContext("u000001")

    def after(self, hook_context, details, hints):
        self.said.append(("after", details.variant, details.reason))

    def error(self, hook_context, exception, hints):
        self.said.append(("error", exception.error_code))

    def finally_after(self, hook_context, details, hints):
        self.said.append(("finally", details.flag_metadata.get("campaign")))


def test_hooks_come_before_and_after_with_the_variant_and_the_metadata(flags):
    hook = Noting()
    level = flags.get_string_value("spring", "default", None, FlagEvaluationOptions(hooks=[hook]))
    assert hook.said[0] == ("before", FlagType.STRING, "uplift") and hook.said[1][:2] == ("after", level)
    assert hook.said[2] == ("finally", "spring")
    hook = Noting()
    flags.get_string_value("winter", "default", None, FlagEvaluationOptions(hooks=[hook]))
    assert [one[0] for one in hook.said] == ["before", "error", "finally"]
    assert hook.said[1] == ("error", ErrorCode.FLAG_NOT_FOUND)


@pytest.mark.parametrize(
    ("kind", "flag", "context", "code", "sentence"),
    [
        ("string", "winter", unit(1), ErrorCode.FLAG_NOT_FOUND, "it has spring"),
        ("string", "sprin", unit(1), ErrorCode.FLAG_NOT_FOUND, "did you mean 'spring'?"),
        ("string", "spring", EvaluationContext(), ErrorCode.TARGETING_KEY_MISSING, "set the targeting key"),
        ("string", "spring", EvaluationContext("  "), ErrorCode.TARGETING_KEY_MISSING, "set the targeting key"),
        ("integer", "spring", unit(1), ErrorCode.TYPE_MISMATCH, "is a level, not a number"),
        ("float", "spring", unit(1), ErrorCode.TYPE_MISMATCH, "is a level, not a number"),
        ("string", "spring", unit(1, age="old"), ErrorCode.INVALID_CONTEXT, "feature 'age' is a text"),
        ("string", "spring", unit(1, age=float("nan")), ErrorCode.INVALID_CONTEXT, "refused the request"),
        ("string", "spring", unit(1, age=datetime(2026, 1, 1)), ErrorCode.INVALID_CONTEXT, "'age' of flag 'spring' is"),
        ("string", "spring", unit(1, **{REQUEST_KEY: 7}), ErrorCode.INVALID_CONTEXT, "name the occasion"),
        ("string", "spring", EvaluationContext(7), ErrorCode.INVALID_CONTEXT, "is a int: give the unit's id as a text"),
    ],
)
def test_what_fails_gives_the_default_with_a_code_and_a_sentence(flags, kind, flag, context, code, sentence):
    default = {"string": "default", "integer": 5, "float": 0.5}[kind]
    details = getattr(flags, f"get_{kind}_details")(flag, default, context)
    assert (details.value, details.reason, details.error_code) == (default, Reason.ERROR, code)
    assert sentence in details.error_message and details.variant is None


def test_an_occasion_of_another_unit_is_refused(flags):
    flags.get_string_value("spring", "default", unit(1, **{REQUEST_KEY: "mine"}))
    details = flags.get_string_details("spring", "default", unit(2, **{REQUEST_KEY: "mine"}))
    assert (details.value, details.error_code) == ("default", ErrorCode.INVALID_CONTEXT)
    assert "was used for another unit before" in details.error_message


def test_a_unit_that_nobody_knows_gets_the_control_by_default(flags):
    details = flags.get_string_details("spring", "default", EvaluationContext("nobody"))
    assert (details.value, details.reason, details.error_code) == ("none", Reason.DEFAULT, None)
    assert details.flag_metadata["degraded"] == "unit_unknown" and "overall_propensity" not in details.flag_metadata


def test_evaluations_in_an_event_loop_wait_beside_each_other(flags):
    async def every():
        kinds = (flags.get_string_details_async, flags.get_object_details_async, flags.get_boolean_details_async)
        defaults = ("default", {}, False)
        here = unit(1, **{REQUEST_KEY: "async"})
        return await asyncio.gather(*(k("spring", d, here) for k, d in zip(kinds, defaults, strict=True)))

    text, whole, switch = asyncio.run(every())
    assert whole.value["level"] == text.value == text.variant and switch.value is (text.value != "none")


def test_stale_features_an_off_switch_and_a_key_that_opens_nothing_are_said(tmp_path, trained):
    keys = {scope: new_key(tmp_path / "keys", scope, (scope,)) for scope in ("effects", "decide")}
    same = {"keys": str(tmp_path / "keys")}
    stale, off = config_of(tmp_path / "stale", **same), config_of(tmp_path / "off", enabled=False, **same)
    publish(stale, *trained, 9, at=0.0)
    publish(off, *trained, 9)
    with running(stale) as service:
        provider = UpliftProvider({"spring": client_of(service, key=keys["decide"])}, features=("age",))
        old = provider.resolve_string_details("spring", "default", unit(1, age=30))
        assert (old.reason, old.flag_metadata["degraded"]) == (Reason.STALE, "features_stale")
        provider = UpliftProvider({"spring": client_of(service, key=keys["effects"])})
        refused = provider.resolve_string_details("spring", "default", unit(1))
        assert (refused.value, refused.error_code) == ("default", ErrorCode.GENERAL)
        assert "needs the scope decide" in refused.error_message
    with running(off) as service:
        provider = UpliftProvider({"spring": client_of(service, key=keys["decide"])})
        switched = provider.resolve_boolean_details("spring", True, unit(3))
        assert (switched.value, switched.reason) == (False, Reason.DISABLED)


def test_a_service_of_another_campaign_or_control_decides_nothing(service, config):
    before = len(DecisionLog(decision_log_file(config)).entries(DECISION, limit=10_000))
    provider = UpliftProvider({"summer": client_of(service)})
    details = provider.resolve_string_details("summer", "default", unit(1))
    assert (details.value, details.error_code) == ("default", ErrorCode.FLAG_NOT_FOUND)
    assert "serves campaign 'spring'" in details.error_message
    provider = UpliftProvider({"spring": ServingClient(service.url, "nobody", timeout=30)})
    details = provider.resolve_boolean_details("spring", False, unit(1))
    assert (details.value, details.error_code) == (False, ErrorCode.GENERAL)
    assert "is 'none', but its client was made with 'nobody'" in details.error_message
    assert len(DecisionLog(decision_log_file(config)).entries(DECISION, limit=10_000)) == before


def test_one_feature_needs_no_list(service):
    """Its letters would be taken for names of attributes, and the feature would not be sent."""
    here = unit(1, age="old")
    details = UpliftProvider({"spring": client_of(service)}, features="age").resolve_string_details("spring", "d", here)
    assert details.error_code == ErrorCode.INVALID_CONTEXT and "feature 'age' is a text" in details.error_message


class Answering(ServingClient):
    """A client whose service is another one from one moment to the next, or no service of ours."""

    def __init__(self, ready, campaign):
        super().__init__("http://127.0.0.1:9", "none")
        self.facts, self.campaign, self.n_ready = ready, campaign, 0

    def ready(self):
        self.n_ready += 1
        return self.facts

    def decide(self, unit_id, request_key=None, features=None, sign=False):
        return {"campaign": self.campaign, "level": "10%", "degraded": []}


def test_a_service_that_another_one_takes_the_place_of_decides_nothing():
    """Before a flag's first decision its service is asked; an address may change hands afterwards."""
    client = Answering({"campaign": "spring", "control": "none"}, "summer")
    provider = UpliftProvider({"spring": client})
    for asked in (1, 2):
        details = provider.resolve_string_details("spring", "default", unit(1))
        assert (details.value, details.error_code) == ("default", ErrorCode.FLAG_NOT_FOUND)
        assert "serves campaign 'summer'" in details.error_message and client.n_ready == asked


def test_what_is_no_service_of_ours_makes_no_other_error_than_openfeatures():
    with pytest.raises(GeneralError, match="serves campaign None"):
        UpliftProvider({"spring": Answering({"control": "none"}, None)}).initialize(EvaluationContext())


@pytest.mark.parametrize("value", [datetime(2026, 1, 1), np.int64(3), {1}])
def test_values_that_have_no_json_are_said(value):
    with pytest.raises(DataError, match="cannot be written as JSON"):
        ServingClient("http://127.0.0.1:9", "none").decide("u1", features={"age": value})


def test_a_service_that_is_down_gives_the_default_until_it_is_back(tmp_path, trained):
    config = config_of(tmp_path)
    publish(config, *trained, 9)
    with running(config) as service:
        client = ServingClient(service.url, "none", timeout=30, retries=0)
        provider = UpliftProvider({"spring": client})
        assert provider.resolve_string_details("spring", "default", unit(3)).value == "10%"
    down = provider.resolve_string_details("spring", "default", unit(3))
    assert (down.value, down.reason, down.error_code) == ("default", Reason.ERROR, ErrorCode.GENERAL)
    assert "campaign 'spring' does not answer" in down.error_message


def test_a_provider_that_starts_without_its_service_says_so_and_evaluates_all_the_same(service):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nobody = ServingClient(f"http://127.0.0.1:{port}", "none", timeout=0.2, retries=0)
    events = []
    api.add_handler(ProviderEvent.PROVIDER_ERROR, lambda details: events.append(details.message))
    try:
        with pytest.raises(GeneralError):
            api.set_provider_and_wait(UpliftProvider({"summer": nobody, "spring": client_of(service)}), "shop")
        flags = api.get_client("shop")
        assert flags.get_provider_status() == ProviderStatus.ERROR
        assert flags.get_string_details("summer", "default", unit(1)).value == "default"
        assert flags.get_string_details("spring", "default", unit(1)).error_code is None
    finally:
        api.clear_providers()
    assert events and "does not answer" in events[0]
