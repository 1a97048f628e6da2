"""Sections `economics` and `costs` of a configuration: what things are worth, and what a campaign costs. `config` names
them; see there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
    cost_per_dose  money that one unit more of the dose costs, where levels have one dose each (`roles.grid`,
           `roles.dose`): a level that `cost` does not name costs this times its dose less the control's
    """

    # `costs` may be left out, and its job runs all the same.
    RUNS: ClassVar = {
        "costs": "campaign roles.outcome roles.control roles.cluster roles.direction labels economics policy.cost costs"
    }
    LATER: ClassVar = ("cost_per_dose",)
    value: dict[str, float] = Field(default_factory=dict)
    cost: dict[str, float] = Field(default_factory=dict)
    cost_per_dose: float | None = None

    def by_level(self, doses: Mapping[str, float | tuple[float, ...]], control: str) -> Economics:
        """The same with a cost for every level that has a dose, see `cost_per_dose`."""
        if self.cost_per_dose is None:
            return self
        one = {level: dose for level, dose in doses.items() if not isinstance(dose, tuple)}
        if control not in one:
            raise ConfigError(
                "economics.cost_per_dose needs levels of one dose each: set roles.grid or roles.dose, or give costs by "
                "level in economics.cost"
            )
        costs = {level: self.cost_per_dose * (dose - one[control]) for level, dose in one.items() if level != control}
        return replace(self, cost={**costs, **self.cost})


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
