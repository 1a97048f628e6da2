"""The section `monitoring` of a configuration: windows, KPIs and their thresholds, drift, requests that were served.
`config` names it; see there."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.roles import checked_name
from uplift_spark.sections.source import STRICT

Threshold = float | Literal["default"] | None
"""A number; null: none; left out: the KPI's own."""


def _whole(value: Any) -> Any:
    """A file has texts, and of numbers that are listed pydantic takes numbers alone."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _check_sql(texts: dict[str, str]) -> None:
    if texts:
        from uplift_spark.sql_gate import checked_expression  # its parser takes half a second to load

        for key, text in texts.items():
            checked_expression(key, text)


@dataclass(frozen=True, config=STRICT)
class KpiConf:
    """An entry of `monitoring.kpis`: other thresholds for a KPI of the platform, or a KPI of one's own.

    target      what is aimed at; null: nothing
    alert       from where on somebody is called; null: never
    min_n       observations under which no alert is given
    severity    whether an alert pages or opens a ticket

    Of one's own, which is Σ value / Σ per over the rows of a window, with its interval:

    table       `schema.table` of the lakehouse
    time        its column that says when a row happened
    value       SQL over the columns of a row, see `sql_gate.checked_expression`
    per         SQL; 1 by default, so that the KPI is the mean of `value`
    where       SQL; only rows for which it holds count
    better      on which side of its thresholds a good value lies
    unit        of value and thresholds
    definition  what it is, in one sentence
    """

    target: Threshold = "default"
    alert: Threshold = "default"
    min_n: Annotated[int, Field(ge=1)] | None = None
    severity: Literal["page", "ticket"] | None = None
    table: str | None = None
    time: str | None = None
    value: str | None = None
    per: str = "1"
    where: str | None = None
    better: Literal["below", "above"] | None = None
    unit: str = "ratio"
    definition: str = ""

    @property
    def own(self) -> bool:
        """Whether it is a KPI of the user's own."""
        return self.table is not None

    @property
    def changes(self) -> dict[str, Any]:
        """Keys of a KPI of the platform that are replaced."""
        keys = {"min_n": self.min_n, "severity": self.severity}
        thresholds = {"target": self.target, "alert": self.alert}
        return {k: v for k, v in keys.items() if v is not None} | {
            k: v for k, v in thresholds.items() if v != "default"
        }


@dataclass(frozen=True, config=STRICT)
class DriftConf:
    """`monitoring.drift`: when a column drifts, see `monitoring.drift`.

    size      least distance that matters
    alpha     of p-values after adjustment for all columns
    windows   of the last so many windows, the newest among them,
    needed    so many must drift for a trigger
    weeks     that windows of the same weekday are looked for, where there are none of last year
    holidays  days that are compared with one another alone
    bins      of a column's values, at most
    rows      of the training set that bins are made from, at most about; all are counted
    """

    size: Annotated[float, Field(gt=0, lt=1)] = 0.05
    alpha: Annotated[float, Field(ge=1e-9, le=0.5)] = 0.01
    windows: Annotated[int, Field(ge=1, le=100)] = 5
    needed: Annotated[int, Field(ge=1, le=100)] = 2
    weeks: Annotated[int, Field(ge=1, le=52)] = 2
    holidays: tuple[date, ...] = ()
    bins: Annotated[int, Field(ge=10, le=2048)] = 256
    rows: Annotated[int, Field(ge=1000)] = 100_000

    def __post_init__(self) -> None:
        if self.needed > self.windows:
            raise ConfigError(
                f"monitoring.drift.needed is {self.needed}, but only {self.windows} windows are looked at: lower it"
            )


@dataclass(frozen=True, config=STRICT)
class RequestsConf:
    """`monitoring.requests`: the log of requests for predictions, for latency and errors.

    table    `schema.table` of the lakehouse, a row a request
    time     column: when the request came
    ms       SQL over the columns of a row: milliseconds that it took
    failed   SQL: whether it failed by a fault of the service
    version  column with the model version that answered, which a canary compares; none by default
    """

    table: str
    time: str
    ms: str
    failed: str
    version: str | None = None

    def __post_init__(self) -> None:
        _check_sql({"monitoring.requests.ms": self.ms, "monitoring.requests.failed": self.failed})
        for key in ("time", "version"):
            if (name := getattr(self, key)) is not None:
                checked_name(name, f"monitoring.requests.{key}")


@dataclass(frozen=True, config=STRICT)
class Monitoring:
    """`monitoring`, for `uplift monitor`: what a running campaign is watched by.

    hours     of a window; windows begin at midnight (UTC)
    alpha     probability that an interval of a KPI misses, and that a detector finds something in a sound window
    kpis      {KPI: thresholds, or a KPI of one's own}
    drift     when a column drifts
    requests  log of served requests; without it latency and errors are not measured here
    """

    RUNS: ClassVar = {
        "monitor": "campaign roles roles.direction labels economics monitoring nuisances seed holdout registry.name "
        "policy.objective feature_definitions outcomes"
    }
    hours: Annotated[Literal[1, 2, 3, 4, 6, 8, 12, 24, 168], BeforeValidator(_whole)] = 24
    alpha: Annotated[float, Field(ge=1e-6, le=0.1)] = 0.001
    kpis: dict[str, KpiConf] = Field(default_factory=dict)
    drift: DriftConf = Field(default_factory=DriftConf)
    requests: RequestsConf | None = None

    @property
    def logs(self) -> tuple[str, ...]:
        """Tables that KPIs are measured from, beside the campaign's events."""
        own = [str(kpi.table) for kpi in self.kpis.values() if kpi.own]
        return tuple(sorted({*own, *([self.requests.table] if self.requests else [])}))

    def __post_init__(self) -> None:
        for name, kpi in self.kpis.items():
            where = f"monitoring.kpis.{checked_name(name, 'KPI')}"
            keys = [key for key in ("time", "value", "better", "where") if getattr(kpi, key) is not None]
            if not kpi.own and keys:
                raise ConfigError(f"{where} has {keys[0]} and no table: name the table that a KPI of your own is of")
            if kpi.own and (missing := [key for key in ("time", "value", "better") if getattr(kpi, key) is None]):
                raise ConfigError(f"{where} is a KPI of your own and lacks {', '.join(missing)}: add it")
            if kpi.own:
                checked_name(str(kpi.time), f"{where}.time")
                texts = {f"{where}.value": str(kpi.value), f"{where}.per": kpi.per}
                _check_sql(texts | ({f"{where}.where": kpi.where} if kpi.where is not None else {}))
