"""An OpenFeature provider: feature flags and page variants that are decided by uplift (extra `openfeature`).

A flag is a campaign, its variants are the campaign's levels, and the targeting key is the unit. See openfeature.dev.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import (
    ErrorCode,
    GeneralError,
    InvalidContextError,
    OpenFeatureError,
    TargetingKeyMissingError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider import AbstractProvider, Metadata

from uplift_spark.errors import DataError, EnvironmentProblem, hint
from uplift_spark.serving.client import RequestRefused, ServingClient
from uplift_spark.serving.reasons import HELD_OUT, KEPT, OFF, STALE, UNREACHABLE

REQUEST_KEY = "request_key"
"""Attribute of the evaluation context that names the occasion: all evaluations on it get one decision."""

_Value = TypeVar("_Value")
_NOTED = ("campaign", "reason", "propensity", "overall_propensity", "explored", "logged", "request_key", "expires_at")


class UpliftProvider(AbstractProvider):
    """Decides flags by the uplift service.

    A flag as a text is the level, as true or false whether it is anything but the control, as an object the whole
    decision. The variant is the level; the flag's metadata say how likely it was, by which model, until when it holds
    and what it lacks. No evaluation raises: whatever fails gives the default value, with an error code.

    Args:
        clients: {campaign: client of its service}; a flag is evaluated by the client of its key.
        features: Attributes of the evaluation context that count as fresh features, in place of the published ones;
            other attributes are not sent. One may be given without a list.
    """

    def __init__(self, clients: Mapping[str, ServingClient], features: Sequence[str] = ()) -> None:
        super().__init__()
        self._clients, self._features = dict(clients), (features,) if isinstance(features, str) else tuple(features)
        self._checked: set[str] = set()

    def get_metadata(self) -> Metadata:
        """Name of the provider."""
        return Metadata(name="uplift")

    def initialize(self, evaluation_context: EvaluationContext) -> None:
        """Ask each service whether it serves its campaign, with the client's control.

        Raises:
            GeneralError: One does not answer, or serves something else: the other flags are evaluated all the same,
                and this one, too, once it answers.
        """
        problems = []
        for campaign in self._clients:
            try:
                self._client(campaign)
            except OpenFeatureError as error:
                problems.append(str(error.error_message))
        if problems:
            raise GeneralError("; ".join(problems))

    def resolve_string_details(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """The level."""
        return self._resolve(flag_key, default_value, evaluation_context, lambda decision, _: str(decision["level"]))

    def resolve_boolean_details(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """Whether the level is not the control."""
        return self._resolve(
            flag_key, default_value, evaluation_context, lambda decision, control: bool(decision["level"] != control)
        )

    def resolve_object_details(
        self, flag_key: str, default_value: Any, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[Any]:
        """The whole decision, as `ServingClient.decide` gives it."""
        return self._resolve(flag_key, default_value, evaluation_context, lambda decision, _: decision)

    def resolve_integer_details(
        self, flag_key: str, default_value: int, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[int]:
        """TYPE_MISMATCH: levels are no numbers; nothing is decided."""
        return _failed(default_value, TypeMismatchError(_NO_NUMBER.format(flag_key)))

    def resolve_float_details(
        self, flag_key: str, default_value: float, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[float]:
        """TYPE_MISMATCH: levels are no numbers; nothing is decided."""
        return _failed(default_value, TypeMismatchError(_NO_NUMBER.format(flag_key)))

    # The event loop goes on while the service is waited for.

    async def resolve_string_details_async(
        self, flag_key: str, default_value: str, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[str]:
        """`resolve_string_details` in a thread."""
        return await asyncio.to_thread(self.resolve_string_details, flag_key, default_value, evaluation_context)

    async def resolve_boolean_details_async(
        self, flag_key: str, default_value: bool, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[bool]:
        """`resolve_boolean_details` in a thread."""
        return await asyncio.to_thread(self.resolve_boolean_details, flag_key, default_value, evaluation_context)

    async def resolve_object_details_async(
        self, flag_key: str, default_value: Any, evaluation_context: EvaluationContext | None = None
    ) -> FlagResolutionDetails[Any]:
        """`resolve_object_details` in a thread."""
        return await asyncio.to_thread(self.resolve_object_details, flag_key, default_value, evaluation_context)

    def _resolve(
        self,
        flag: str,
        default: _Value,
        context: EvaluationContext | None,
        value_of: Callable[[dict[str, Any], str], _Value],
    ) -> FlagResolutionDetails[_Value]:
        try:
            client = self._client(flag)
            decision = self._decide(client, flag, context or EvaluationContext())
            value, variant = value_of(decision, client.control), str(decision["level"])
            return FlagResolutionDetails(
                value, reason=_reason(decision), variant=variant, flag_metadata=_metadata(decision)
            )
        except OpenFeatureError as error:
            return _failed(default, error)
        except Exception as error:  # a flag must never break the page that it is on
            return _failed(default, GeneralError(f"{type(error).__name__} on deciding flag {flag!r}: {error}"))

    def _client(self, flag: str) -> ServingClient:
        """The client of a flag; before the first decision, which is logged, it asks what the service serves."""
        client = self._clients.get(flag)
        if client is None:
            raise _no_flag(f"flag {flag!r} is no campaign of this provider: {hint(flag, self._clients)}")
        if flag not in self._checked:
            try:
                facts = client.ready()
            except (DataError, EnvironmentProblem) as error:
                raise GeneralError(str(error)) from error
            _check_campaign(flag, facts)
            if facts["control"] != client.control:
                raise GeneralError(
                    f"the control of campaign {flag!r} is {facts['control']!r}, but its client was made with "
                    f"{client.control!r}: name the campaign's control"
                )
            self._checked.add(flag)
        return client

    def _decide(self, client: ServingClient, flag: str, context: EvaluationContext) -> dict[str, Any]:
        unit, key = context.targeting_key, context.attributes.get(REQUEST_KEY)
        if unit is not None and not isinstance(unit, str):
            raise InvalidContextError(
                f"the targeting key of flag {flag!r} is a {type(unit).__name__}: give the unit's id as a text"
            )
        if not unit or not unit.strip():
            raise TargetingKeyMissingError(f"flag {flag!r} is decided for a unit: set the targeting key to its id")
        if key is not None and not isinstance(key, str):
            raise InvalidContextError(f"attribute {REQUEST_KEY!r} of flag {flag!r} is no text: name the occasion")
        sent = {name: context.attributes[name] for name in self._features if name in context.attributes}
        for name, value in sent.items():
            if not isinstance(value, bool | int | float | str | None):
                raise InvalidContextError(
                    f"attribute {name!r} of flag {flag!r} is a {type(value).__name__}: features are numbers, texts, "
                    "true or false"
                )
        try:
            decision = client.decide(unit, key, sent or None)
        except RequestRefused as error:
            if error.status in (401, 403):
                raise GeneralError(str(error)) from error
            raise InvalidContextError(str(error)) from error
        if UNREACHABLE in decision["degraded"]:
            raise GeneralError(f"the service of campaign {flag!r} does not answer")
        try:
            _check_campaign(flag, decision)
        except OpenFeatureError:
            self._checked.discard(flag)  # another service answers at its address: ask it before the next decision
            raise
        return decision


_NO_NUMBER = "flag {!r} is a level, not a number: read it as a text, as true or false, or as an object"


def _check_campaign(flag: str, facts: Mapping[str, Any]) -> None:
    if (campaign := facts.get("campaign")) != flag:
        raise _no_flag(f"the service of flag {flag!r} serves campaign {campaign!r}: give its flag that key")


def _no_flag(sentence: str) -> OpenFeatureError:
    return ErrorCode.to_exception(ErrorCode("FLAG_NOT_FOUND"), sentence)


def _failed(default: _Value, error: OpenFeatureError) -> FlagResolutionDetails[_Value]:
    code = ErrorCode(error.error_code)
    return FlagResolutionDetails(default, error_code=code, error_message=error.error_message, reason=Reason.ERROR)


def _reason(decision: Mapping[str, Any]) -> Reason:
    """Why the level, in OpenFeature's words: a draw, the policy, the policy by what is old, or no design at all."""
    if decision["reason"] == OFF:
        return Reason.DISABLED
    if decision["overall_propensity"] is None:
        return Reason.DEFAULT
    if decision["explored"] or decision["reason"] == HELD_OUT:
        return Reason.SPLIT
    return Reason.STALE if {STALE, KEPT} & set(decision["degraded"]) else Reason.TARGETING_MATCH


def _metadata(decision: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Facts of a decision as OpenFeature's metadata, which have no lists and no null."""
    model = {f"model_{name}": decision["model"][name] for name in ("name", "version")}
    facts = {**{name: decision[name] for name in _NOTED}, **model, "published": decision["model"]["published"]}
    return {
        **{name: value for name, value in facts.items() if value is not None},
        "degraded": ", ".join(decision["degraded"]),
    }
