"""Sections `economics` and `costs` of a configuration: what things are worth, and what a campaign costs. `config` names
them; see there."""

from __future__ import annotations

from datetime import date
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from uplift_spark.errors import ConfigError
from uplift_spark.sections.source import STRICT


@dataclass(frozen=True, config=STRICT)
class Economics:
    """`economics`: what things are worth, in any one currency.

    value  {outcome: money that one unit of it is worth; with `roles.direction: decrease`, that one unit less is worth}
    cost   {level: money that treating one unit with it costs}
    """

    # `costs` may be left out, and its job runs all the same.
    RUNS: ClassVar = {
        "costs": "campaign roles.outcome roles.control roles.cluster roles.direction labels economics policy.cost costs"
    }
    value: dict[str, float] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Incentive:
    """An entry of `costs.incentives`: what treated units redeem.

    outcome  of which each unit costs
    amount   of money
    """

    outcome: str
    amount: Annotated[float, Field(ge=0)]


@dataclass(frozen=True, config=STRICT)
class Costs:
    """`costs`, for `uplift costs`: what is spent beside `economics.cost`, and what may be. With this section each job's
    seconds are kept in gold.run_log.

    budget      money for the whole campaign, everything counted
    end         its last day, such as 2026-12-31
    rates       {job: money an hour}; `other` for all that are not named. Jobs without a rate cost nothing here
    incentives  {level: what its units redeem}, such as `5%: {outcome: revenue, amount: 0.05}`
    """

    budget: Annotated[float, Field(gt=0)] | None = None
    end: date | None = None
    rates: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    incentives: dict[str, Incentive] = Field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.budget is not None and self.end is None:
            raise ConfigError("costs.budget is set without costs.end: give the campaign's last day, such as 2026-12-31")
