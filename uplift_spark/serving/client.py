"""A client of `uplift serve` for other Python services: a few retries, a bounded wait, and an answer in any case."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import urllib3

from uplift_spark.errors import DataError, EnvironmentProblem

UNREACHABLE = "service_unreachable"
_AGAIN = frozenset({408, 429, 502, 503, 504})


class ServingClient:
    """Asks the service for effects and decisions.

    A decision has a request key, so that asking again never decides twice. When the service does not answer in time,
    `decide` answers the control: what a unit gets without the service.

    Args:
        url: Of the service, such as http://127.0.0.1:8080.
        control: Name of the control level.
        key: API key; None where the service wants none.
        timeout: Seconds that each try may take.
        retries: Tries after the first.
    """

    def __init__(self, url: str, control: str, key: str | None = None, timeout: float = 0.5, retries: int = 2) -> None:
        self._url, self._control = url.rstrip("/"), control
        again = urllib3.Retry(
            total=retries, backoff_factor=0.05, backoff_max=timeout, status_forcelist=_AGAIN, allowed_methods=None,
            raise_on_status=False, respect_retry_after_header=False, redirect=0,
        )  # fmt: skip
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._pool = urllib3.PoolManager(headers=headers, timeout=urllib3.Timeout(timeout), retries=again)

    def effects(self, units: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Effects on units.

        Args:
            units: {"unit_id": id} or {"features": {...}}, or both, of each.

        Returns:
            An answer for each, in their order; see docs/serving.md.

        Raises:
            DataError: The service refused the request.
            EnvironmentProblem: The service did not answer.
        """
        answers: list[dict[str, Any]] = self._post("effects", {"units": [dict(unit) for unit in units]}, "answers")
        return answers

    def decide(
        self, unit_id: str, request_key: str | None = None, features: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """The level to give a unit now.

        Args:
            unit_id: The unit.
            request_key: Name of the occasion, which gets one decision however often it is sent; by default a new one.
            features: Fresh features, in place of the published ones.

        Returns:
            The decision; the control with `degraded: ["service_unreachable"]` when the service did not answer.

        Raises:
            DataError: The service refused the request.
        """
        key = uuid.uuid4().hex if request_key is None else request_key
        query: dict[str, Any] = {"request_key": key, "unit_id": unit_id}
        if features is not None:
            query["features"] = dict(features)
        try:
            decision: dict[str, Any] = self._post("decisions", {"requests": [query]}, "decisions")[0]
            return decision
        except EnvironmentProblem:
            unknown = {"propensity": None, "overall_propensity": None, "explored": False}
            lost = {**unknown, "logged": False, "degraded": [UNREACHABLE]}
            return {**query, "level": self._control, "reason": "service unreachable", **lost}

    def report(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> int:
        """Report what happened: `deliveries` or `outcomes`. Rows may be sent again, and count once.

        Args:
            kind: deliveries or outcomes.
            rows: See docs/serving.md.

        Returns:
            Rows that are new to the service; it knows the others already.

        Raises:
            DataError: The service refused the request.
            EnvironmentProblem: The service did not answer: report the rows again later.
        """
        return int(self._post(kind, {kind: [dict(row) for row in rows]}, "accepted"))

    def _post(self, path: str, body: Mapping[str, Any], wanted: str) -> Any:
        try:
            answer = self._pool.request("POST", f"{self._url}/v1/{path}", body=json.dumps(body).encode())
        except urllib3.exceptions.HTTPError as error:
            raise EnvironmentProblem(f"the service at {self._url} does not answer: {type(error).__name__}") from error
        if answer.status in _AGAIN or answer.status >= 500:
            raise EnvironmentProblem(f"the service at {self._url} does not answer: status {answer.status}")
        try:
            facts = json.loads(answer.data)
        except ValueError:
            facts = None
        known = isinstance(facts, dict) and (answer.status >= 400 or wanted in facts)
        if not known:  # a proxy, or another service
            raise EnvironmentProblem(f"what answers at {self._url} is not the service: status {answer.status}")
        if answer.status >= 400:
            raise DataError(f"the service refused the request: {facts.get('error', answer.status)}")
        return facts[wanted]
