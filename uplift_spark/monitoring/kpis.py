"""The figures that a running campaign is watched by: what each is, its target, when it is an alert.

Declared once: tables, alerts, rule files and dashboards take names, units and thresholds from here.

A threshold is read with the figure's interval. A figure beyond its threshold whose interval reaches back is noise as
likely as news, so it is `unsure`, not an `alert`, and says how many units would tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from uplift_spark.errors import ConfigError, hint
from uplift_spark.roles import checked_name
from uplift_spark.sections.monitoring import KpiConf, Monitoring

Better = Literal["below", "above"]
Severity = Literal["page", "ticket"]
KpiMeasure = Literal["share", "mean", "ratio", "quantile", "distance", "age", "forecast"]
KpiState = Literal["ok", "missed", "unsure", "alert", "too_few", "no_data"]

FORECAST_KPI = "cost_forecast"
"""Name of the KPI that looks ahead; its interval is of 95 % whatever `monitoring.alpha` is."""

BEYOND_ALERT: tuple[KpiState, ...] = ("alert", "unsure")


@dataclass(frozen=True)
class Kpi:
    """Declaration of one figure.

    name        as in gold.kpi and, with the prefix `uplift_`, in Prometheus
    unit        of value and thresholds: ms, minutes, share, ratio, money, outcome
    better      on which side of a threshold a good value lies
    target      what is aimed at; None: nothing is
    alert       from where on somebody is called; None: nobody ever is
    min_n       observations under which no alert is given
    definition  what is measured, in one sentence
    measure     how the value is formed: share (bad of all events, or good of all where more is better; it has an error
                budget), mean, ratio of two sums, quantile, distance (of distributions), age or forecast
    severity    whether an alert pages or opens a ticket
    n_of        what n counts
    baseline    the value where nothing is wrong, if an alert has to tell the value from that alone: the value is beyond
                `alert`, its whole interval beyond `baseline`; None: the whole interval is beyond `alert`

    Raises ConfigError when a threshold lies the wrong way round, is no number, or can never be crossed.
    """

    name: str
    unit: str
    better: Better
    target: float | None
    alert: float | None
    min_n: int
    definition: str
    measure: KpiMeasure = "mean"
    severity: Severity = "ticket"
    n_of: str = "units"
    baseline: float | None = None

    def __post_init__(self) -> None:
        where = f"monitoring.kpis.{checked_name(self.name, 'KPI')}"
        for key in ("target", "alert"):
            value = getattr(self, key)
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"{where}.{key} is {value}: give a finite number, or null for none")
        if self.min_n < 1:
            raise ConfigError(f"{where}.min_n is {self.min_n}: an alert needs at least one of its {self.n_of}")
        if self.alert is None:
            return
        limit = 1.0 if self.better == "below" else 0.0
        bounded = self.measure in ("share", "distance") and self.unit in ("share", "distance")
        if bounded and not self.is_worse(limit, self.alert):
            side = "above" if self.better == "below" else "below"
            raise ConfigError(
                f"{where}.alert is {self.alert:g}, but a {self.unit} is never {side} that: nobody would ever be "
                "called; give another one, or null for none"
            )
        if self.target is not None and self.is_worse(self.target, self.alert):
            side = "less" if self.better == "below" else "more"
            raise ConfigError(
                f"{where} has its thresholds the wrong way round: {side} is better, so alert ({self.alert:g}) must not "
                f"be {side} than target ({self.target:g}); swap them"
            )

    @property
    def must_exclude(self) -> float | None:
        """What the interval of a value must lie beyond for an alert."""
        return self.alert if self.baseline is None else self.baseline

    @property
    def when_called(self) -> str:
        """When somebody is called, to stand behind "when"; empty where nobody ever is."""
        if self.alert is None:
            return ""
        side = "above" if self.better == "below" else "below"
        if self.baseline is None:
            return f"the whole interval is {side} {self.alert:g}"
        return f"the value is {side} {self.alert:g} and the whole interval {side} {self.baseline:g}"

    def is_worse(self, value: float, threshold: float) -> bool:
        """Whether a value lies on the bad side of a threshold."""
        return value > threshold if self.better == "below" else value < threshold

    def state(self, value: float, lower: float, upper: float, n: float) -> KpiState:
        """Read a value with its interval.

        Args:
            value: The figure; NaN where nothing was measured.
            lower: Lower end of its interval; NaN where there is none: the value counts as exact.
            upper: Upper end.
            n: Observations behind it.

        Returns:
            `ok`, or `missed`: worse than the target; `alert`: the value is worse than the alert threshold, its whole
            interval worse than `must_exclude`; `unsure`: the value is, its interval is not; `too_few`: beyond the
            threshold, but n < min_n; `no_data`.
        """
        if not n > 0 or math.isnan(value):
            return "no_data"
        if self.alert is not None and self.must_exclude is not None and self.is_worse(value, self.alert):
            if n < self.min_n:
                return "too_few"
            near = lower if self.better == "below" else upper
            return "alert" if math.isnan(near) or self.is_worse(near, self.must_exclude) else "unsure"
        return "missed" if self.target is not None and self.is_worse(value, self.target) else "ok"

    def n_needed(self, value: float, lower: float, upper: float, n: float) -> float:
        """How many observations would make a value like this an alert: intervals shrink with √n.

        Args:
            value: The figure.
            lower: Lower end of its interval.
            upper: Upper end.
            n: Observations behind it.

        Returns:
            A number of observations; infinite for a value equal to `must_exclude`, NaN where nobody can say:
            no interval, no threshold, a forecast.
        """
        near = lower if self.better == "below" else upper
        unknown = math.isnan(value) or math.isnan(near)
        if (
            self.must_exclude is None or not n > 0 or unknown or self.measure == "forecast"
        ):  # days to come are no sample
            return math.nan
        distance = abs(value - self.must_exclude)
        return max(1.0, math.ceil(n * ((value - near) / distance) ** 2)) if distance else math.inf


FOUNDING_KPIS: tuple[Kpi, ...] = (
    Kpi(
        *("prediction_latency", "ms", "below", 200.0, 250.0, 100),
        "95th percentile of the time that a request for a prediction takes.",
        *("quantile", "page", "requests"),
    ),
    Kpi(
        *("error_rate", "share", "below", 0.01, 0.02, 100),
        "Share of the requests for predictions that fail by a fault of the service.",
        *("share", "page", "requests"),
    ),
    Kpi(
        *("drift_score", "distance", "below", 0.05, 0.1, 1000),
        "Largest Kolmogorov-Smirnov distance of a feature from the training set, over all features.",
        *("distance", "ticket", "units"),
    ),
    Kpi(
        *("lift_degradation", "share", "below", 0.05, 0.1, 1000),
        "Share of the lift of the reference that is lost: 1 - lift now / lift then.",
        *("ratio", "ticket", "units", 0.0),
    ),
    Kpi(
        *("delivery_rate", "share", "above", 0.99, 0.99, 100),
        "Share of the units assigned to a treatment that were reached.",
        *("share", "page", "units"),
    ),
    Kpi(
        *("outcome_completeness", "share", "above", 0.99, 0.99, 100),
        "Share of the events of mature labels that are known.",
        *("share", "page", "events"),
    ),
    Kpi(
        *("feature_freshness", "minutes", "below", 5.0, 30.0, 1),
        "Age of the newest row of the features' oldest source, at the end of the window.",
        *("age", "ticket", "rows"),
    ),
    Kpi(
        *("uplift_interval_width", "ratio", "below", 1.25, 1.5, 1000),
        "Mean width of the predictions' 95 % intervals, over that of the reference.",
        *("ratio", "ticket", "units"),
    ),
    Kpi(
        *("uplift_roi", "ratio", "above", 0.0, 0.0, 1000),
        "Value of the incremental outcomes less the cost of treating, over this cost.",
        *("ratio", "ticket", "units"),
    ),
    Kpi(
        *("cost_per_incremental", "money", "below", None, None, 1000),
        "Cost of treating, over the incremental outcomes.",
        *("ratio", "ticket", "units"),
    ),
    Kpi(
        *(FORECAST_KPI, "ratio", "below", 1.0, 1.0, 1),
        "All that the campaign will have cost by its end, as forecast, over its budget.",
        *("forecast", "ticket", "days"),
    ),
)
"""The platform's KPIs with their thresholds where the configuration has no others."""


def kpi_named(name: str, kpis: Iterable[Kpi] = FOUNDING_KPIS) -> Kpi:
    """Find a KPI by its name.

    Args:
        name: of the KPI.
        kpis: among which it is sought.

    Returns:
        The declaration.

    Raises:
        ConfigError: There is none of this name.
    """
    known = {kpi.name: kpi for kpi in kpis}
    if name not in known:
        raise ConfigError(f"KPI {name!r} is unknown: {hint(name, known)}")
    return known[name]


LIFT_FIGURES: tuple[Kpi, ...] = (
    Kpi(
        *("estimated_lift", "outcome", "above", None, None, 1000),
        "Uplift per unit that the window's covariates let expect, before labels ripen; effects given them stay.",
        *("mean", "ticket", "units"),
    ),
    Kpi(
        *("estimated_qini", "outcome", "above", None, None, 1000),
        "Area between the gain of treating the best first and that of treating at random, expected likewise.",
        *("mean", "ticket", "units"),
    ),
    Kpi(
        *("observed_lift", "outcome", "above", None, None, 1000),
        "Uplift per unit by the window's labels that are mature.",
        *("mean", "ticket", "units"),
    ),
)
"""Figures without thresholds: what the others are read beside."""


def campaign_kpis(monitoring: Monitoring) -> tuple[Kpi, ...]:
    """Declare the KPIs of a campaign: the platform's with its thresholds, then its own.

    Args:
        monitoring: The section of the configuration.

    Returns:
        The declarations.

    Raises:
        ConfigError: A KPI is unknown, or a threshold lies the wrong way round.
    """
    platform = (*FOUNDING_KPIS, *LIFT_FIGURES)
    names = {kpi.name for kpi in platform}
    for name, conf in monitoring.kpis.items():
        if name not in names and not conf.own:
            raise ConfigError(
                f"monitoring.kpis.{name} is no KPI (one of your own needs table, time, value and better): "
                f"{hint(name, names)}"
            )
        if name in names and conf.own:
            raise ConfigError(f"monitoring.kpis.{name} is a KPI of the platform: give your own another name")
    changed = with_thresholds(platform, {n: c.changes for n, c in monitoring.kpis.items() if not c.own})
    own = (
        Kpi(
            *(name, conf.unit, conf.better or "below", *_own_thresholds(conf), conf.min_n or 1),
            conf.definition or f"{conf.value} per {conf.per} of {conf.table}",
            *("ratio", conf.severity or "ticket", "rows"),
        )
        for name, conf in monitoring.kpis.items()
        if conf.own
    )
    return (*changed, *own)


def _own_thresholds(conf: KpiConf) -> tuple[float | None, float | None]:
    target, alert = (None if value == "default" else value for value in (conf.target, conf.alert))
    return target, alert


def with_thresholds(kpis: Iterable[Kpi], changes: Mapping[str, Mapping[str, object]]) -> tuple[Kpi, ...]:
    """Replace thresholds of some KPIs.

    Args:
        kpis: Declarations.
        changes: {KPI: {key: value}}, of `target`, `alert`, `min_n` and `severity`.

    Returns:
        All declarations in their order.

    Raises:
        ConfigError: A KPI is unknown, or a threshold lies the wrong way round.
    """
    known = {kpi.name: kpi for kpi in kpis}
    for name, keys in changes.items():
        known[name] = replace(kpi_named(name, known.values()), **keys)  # type: ignore[arg-type]
    return tuple(known.values())
