"""A client of `uplift serve` for other Python services: a few retries, a bounded wait, and an answer in any case."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import urllib3

from uplift_spark.errors import DataError, EnvironmentProblem
from uplift_spark.serving.reasons import UNREACHABLE

_AGAIN = frozenset({408, 429, 502, 503, 504})


class RequestRefused(DataError):
    """The service refused a request.

    Args:
        sentence: What it said.
        status: Of its answer: 401 and 403 are about the key, 409 is about the request key, 422 about the rest.
    """

    def __init__(self, sentence: str, status: int) -> None:
        super().__init__(sentence)
        self.status = status


class ServingClient:
    """Asks the service for effects and decisions.

    A decision has a request key, so that asking again never decides twice. When the service does not answer in time,
    `decide` answers the control: what a unit gets without the service.

    Args:
        url: Of the service, such as http://127.0.0.1:8080.
        control: Name of the control level.
        key: API key; None where the service wants none.
        timeout: Seconds that each try waits for a connection, and for each part of an answer.
        retries: Tries after the first.
    """

    def __init__(self, url: str, control: str, key: str | None = None, timeout: float = 0.5, retries: int = 2) -> None:
        self._url, self.control = url.rstrip("/"), control
        again = urllib3.Retry(
            total=retries, backoff_factor=0.05, backoff_max=timeout, status_forcelist=_AGAIN, allowed_methods=None,
            raise_on_status=False, respect_retry_after_header=False, redirect=0,
        )  # fmt: skip
        headers = {"content-type": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        self._pool = urllib3.PoolManager(headers=headers, timeout=urllib3.Timeout(timeout), retries=again)

    def ready(self) -> dict[str, Any]:
        """What the service serves.

        Returns:
            `campaign`, `control` and `model` of the version that it answers from.

        Raises:
            EnvironmentProblem: The service did not answer, or has no version yet.
        """
        return self._facts(*self._send("GET", "/health/ready"), "control")

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
        self,
        unit_id: str,
        request_key: str | None = None,
        features: Mapping[str, Any] | None = None,
        sign: bool = False,
    ) -> dict[str, Any]:
        """The level to give a unit now.

        Args:
            unit_id: The unit.
            request_key: Name of the occasion, which gets one decision however often it is sent; by default a new one.
            features: Fresh features, in place of the published ones.
            sign: Whether the decision is to have a signed `token`; the service then needs `serving.signing`.

        Returns:
            The decision; the control with `degraded: ["service_unreachable"]` when the service did not answer.

        Raises:
            DataError: The service refused the request, or a value has no JSON.
        """
        key = uuid.uuid4().hex if request_key is None else request_key
        query: dict[str, Any] = {"request_key": key, "unit_id": unit_id}
        if features is not None:
            query["features"] = dict(features)
        try:
            body = {"requests": [query], **({"sign": True} if sign else {})}
            decision: dict[str, Any] = self._post("decisions", body, "decisions")[0]
            return decision
        except EnvironmentProblem:
            unknown = {"propensity": None, "overall_propensity": None, "explored": False}
            lost = {**unknown, "logged": False, "degraded": [UNREACHABLE]}
            return {**query, "level": self.control, "reason": "service unreachable", **lost}

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
            content = json.dumps(body).encode()
        except (TypeError, ValueError) as error:
            raise DataError(
                f"the request cannot be written as JSON ({error}): send texts, numbers, true, false and None; "
                "`value.item()` of what NumPy holds"
            ) from error
        return self._facts(*self._send("POST", f"/v1/{path}", content), wanted)[wanted]

    def _send(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of an answer; EnvironmentProblem where there is none."""
        try:
            answer = self._pool.request(method, f"{self._url}{path}", body=body)
        except urllib3.exceptions.HTTPError as error:
            raise EnvironmentProblem(f"the service at {self._url} does not answer: {type(error).__name__}") from error
        if answer.status in _AGAIN or answer.status >= 500:
            raise EnvironmentProblem(f"the service at {self._url} does not answer: status {answer.status}")
        return answer.status, answer.data

    def _facts(self, status: int, content: bytes, wanted: str) -> dict[str, Any]:
        """An answer as JSON values, with the one that is wanted."""
        try:
            facts = json.loads(content)
        except ValueError:
            facts = None
        if not isinstance(facts, dict) or (status < 400 and wanted not in facts):  # a proxy, or another service
            raise EnvironmentProblem(f"what answers at {self._url} is not the service: status {status}")
        if status >= 400:
            raise RequestRefused(f"the service refused the request: {facts.get('error', status)}", status)
        return facts
