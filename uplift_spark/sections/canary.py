"""Section `canary` of a configuration: how a challenger proves itself before it becomes the champion; and the states
that a canary comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.roles import checked_name
from uplift_spark.sections.source import STRICT

_Margin = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True, config=STRICT)
class CanaryMargins:
    """`canary.margins`: how much worse than the champion a challenger may be and still count as no worse.

    errors    share of the requests that fail
    latency   share of the requests that take longer than `canary.slow_ms`
    delivery  share of the treated units that are not reached
    opt_outs  share of the units that withdraw their consent
    outcome   mean outcome of a unit, as a share of the champion's
    """

    errors: _Margin = 0.01
    latency: _Margin = 0.02
    delivery: _Margin = 0.01
    opt_outs: _Margin = 0.005
    outcome: _Margin = 0.1


@dataclass(frozen=True, config=STRICT)
class CanaryConf:
    """`canary`, for `uplift canary` and `uplift rollback`; no part of any run's identity.

    share      of the units, by salted hash, that get the challenger's decisions; as many others are the champion's
               slice, which it is compared with
    alpha      probability that a challenger as good as the champion is ever rolled back, all checks and all looks
               together; the probability that one worse by a margin is ever promoted is smaller
    min_days   before which nothing is promoted; rolled back it may be at any time
    max_days   after which a canary without a verdict ends, and the champion stays
    min_units  units in each slice under which a check says nothing
    tuned_for  units of both slices at which the intervals are narrowest
    slow_ms    a request that takes longer is slow
    unit       column with the unit in the table that `monitoring.requests` names
    margins    what counts as no worse
    """

    share: Annotated[float, Field(gt=0)] = 0.05
    alpha: Annotated[float, Field(ge=1e-6, le=0.2)] = 0.01
    min_days: Annotated[float, Field(ge=0, le=3650)] = 1.0
    max_days: Annotated[float, Field(gt=0, le=3650)] = 28.0
    min_units: Annotated[int, Field(ge=30)] = 500
    tuned_for: Annotated[int, Field(ge=100)] = 10_000
    slow_ms: Annotated[float, Field(gt=0)] = 250.0
    unit: str = "unit_id"
    margins: CanaryMargins = Field(default_factory=CanaryMargins)

    def __post_init__(self) -> None:
        if self.share > 0.5:
            raise ConfigError(
                f"canary.share is {self.share:g}, but the champion needs a slice as large to be compared with: use at "
                "most .5"
            )
        if self.min_days > self.max_days:
            raise ConfigError(
                f"canary.min_days is {self.min_days:g}, but canary.max_days ends the canary after {self.max_days:g}: "
                "lower it"
            )
        checked_name(self.unit, "canary.unit")


# --------------------------------------------------------------------------------------------------------------------
# The states of a canary.

CanaryVerdict = Literal["promote", "roll back", "inconclusive", "ended"]
CanaryState = Literal[
    "running", "promoting", "rolling back", "ending", "restoring", "promoted", "rolled back", "ended", "restored"
]
UNFINISHED: tuple[CanaryState, ...] = ("promoting", "rolling back", "ending", "restoring")
"""A deed was decided and may be half done: whoever comes next carries it out, whatever the figures say by then."""
ON_TRIAL: tuple[CanaryState, ...] = ("running", "promoting", "rolling back", "ending")
"""States of a canary that is not over; `restoring` is a rollback's."""
GOES_ON: tuple[CanaryState, ...] = (*ON_TRIAL, "restoring")
"""States in which what is in force may change any moment."""
_AFTER_VERDICT: Mapping[CanaryVerdict, CanaryState] = {
    "promote": "promoting",
    "roll back": "rolling back",
    "ended": "ending",
    "inconclusive": "running",
}
_AT_END: Mapping[CanaryState, CanaryState] = {
    "promoting": "promoted",
    "rolling back": "rolled back",
    "ending": "ended",
    "restoring": "restored",
}


def state_after(verdict: CanaryVerdict) -> CanaryState:
    """Give the state that a running canary comes to by a verdict."""
    return _AFTER_VERDICT[verdict]


def state_at_end(state: CanaryState) -> CanaryState:
    """Give the state that an unfinished one comes to once its deeds are done."""
    return _AT_END[state]
