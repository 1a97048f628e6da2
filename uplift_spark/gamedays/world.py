"""The customers of a simulated campaign, day by day, with faults that begin and end. No Spark.

Every day as many customers come, half of them get a mail at random, and whoever buys buys within a day. Mail helps
customers above 40 and puts younger ones off. A fault changes what is so (a partner sends other customers), or what is
reported (labels that do not come, ages in months, mails that do not arrive, a mailer that chooses by age).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import pandas as pd

from uplift_spark.errors import ConfigError
from uplift_spark.roles import CAMPAIGN, PROPENSITY, TREATMENT, UNIT

CAMPAIGN_STARTS = datetime(2025, 1, 6, tzinfo=UTC)
"""Midnight of day 0, a Monday."""
NO_MAIL, MAIL, BOUGHT = "none", "mail", "bought"
WINDOW_DAYS, WAIT_DAYS = 1.0, 0.25
"""Purchases of a day count, and are known a quarter of a day later at the latest."""

WorldFault = Literal["partner", "label_outage", "non_delivery", "confounding", "months"]
"""partner: 30 % of the customers come from a new channel, are older, and mail puts them off. label_outage: purchases
that would have become known then are held back. non_delivery: 40 % of the mails fail. confounding: older customers get
more mail than the logged propensity says. months: the source reports ages in months."""

_Times = pd.Series | pd.DatetimeIndex
_BASE, _HELPS, _PUTS_OFF, _PARTNER = 0.45, 0.35, -0.15, -0.35
_REACHED, _REACHED_BADLY, _PARTNER_SHARE = 0.999, 0.6, 0.3


@dataclass(frozen=True)
class FaultDays:
    """A fault from midnight of day `first` to midnight of day `until`."""

    kind: WorldFault
    first: int
    until: int

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.until:
            raise ConfigError(
                f"fault {self.kind} lasts from day {self.first} to {self.until}: let it end after it begins"
            )


@dataclass(frozen=True)
class World:
    """A campaign's customers.

    campaign  its name
    days      that are simulated
    per_day   customers of each
    faults    that happen
    seed      of all that is random
    """

    campaign: str
    days: int
    per_day: int
    faults: Sequence[FaultDays] = ()
    seed: int = 7
    units: pd.DataFrame = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.per_day < 100 or self.days < 1:
            raise ConfigError(
                f"{self.per_day} customers on each of {self.days} days show nothing: take at least 100 on one day"
            )
        object.__setattr__(self, "units", self._units())

    def _during(self, kind: WorldFault, day: np.ndarray) -> np.ndarray:
        """Whether a fault is there on each day, bool [n]."""
        there = np.zeros(len(day), bool)
        for fault in self.faults:
            there |= (fault.kind == kind) & (day >= fault.first) & (day < fault.until)
        return there

    def _units(self) -> pd.DataFrame:
        rng, n = np.random.default_rng(self.seed), self.days * self.per_day
        day = np.repeat(np.arange(self.days), self.per_day)
        hour = np.sort(rng.uniform(0, 24, (self.days, self.per_day)), axis=1).ravel()
        partner = self._during("partner", day) & (rng.random(n) < _PARTNER_SHARE)
        age = np.clip(rng.normal(np.where(partner, 48, 43), 8), 18, 90).round(1)
        channel = np.where(partner, "partner", rng.choice(["shop", "web"], n))
        leaning = 1 / (1 + np.exp(-0.5 * (age - 43) / 8))
        mail = rng.random(n) < np.where(self._during("confounding", day), leaning, 0.5)
        assigned = pd.Timestamp(self.at(0)) + _hours(day * 24 + hour)
        unit_ids = [f"c{number:06d}" for number in range(n)]
        frame = pd.DataFrame({UNIT: unit_ids, "day": day, "age": age, "channel": channel, "mail": mail})
        frame["assigned_at"] = _micros(assigned)
        frame["buys"] = rng.random(n) < purchase_rate(age, channel, mail)
        occurred = frame["assigned_at"] + _hours(rng.uniform(0, 24 * WINDOW_DAYS, n))
        frame["occurred_at"], frame["known_at"] = occurred, occurred + _hours(rng.uniform(0.5, 24 * WAIT_DAYS, n))
        reached = rng.random(n) < np.where(self._during("non_delivery", day), _REACHED_BADLY, _REACHED)
        return frame.assign(reached=reached)

    def at(self, day: float, hour: float = 0) -> datetime:
        """A moment of a day by the campaign's clock."""
        return CAMPAIGN_STARTS + timedelta(days=day, hours=hour)

    # ----------------------------------------------------------------------------------------------------------------
    # What is reported, as the raw tables take it.

    def assignments(self) -> pd.DataFrame:
        """Who was assigned what, with the propensity of the design."""
        rows = self.units[[UNIT, "assigned_at"]].copy()
        rows[CAMPAIGN], rows[PROPENSITY] = self.campaign, 0.5
        rows[TREATMENT] = np.where(self.units["mail"], MAIL, NO_MAIL)
        return rows

    def profiles(self, mended: bool = False) -> pd.DataFrame:
        """Attributes of the customers as their source reports them, or as it should have."""
        months = self._during("months", self.units["day"].to_numpy()) & (not mended)
        rows = self.units[[UNIT, "channel"]].assign(age=np.where(months, 12.0, 1.0) * self.units["age"])
        moment = self.units["assigned_at"] - pd.Timedelta(minutes=1)
        return rows.assign(observed_at=moment, known_at=moment)

    def reported_in_months(self) -> pd.Series:
        """Which customers' ages are reported in months, bool [n]."""
        return pd.Series(self._during("months", self.units["day"].to_numpy()), self.units.index)

    def purchases(self) -> pd.DataFrame:
        """All purchases, whether they are reported or held back."""
        rows = self.units.loc[self.units["buys"], [UNIT, "occurred_at", "known_at"]]
        return purchase_rows(self.campaign, rows[UNIT], rows["occurred_at"], rows["known_at"], "order")

    def held_back(self, purchases: pd.DataFrame) -> pd.Series:
        """Which purchases an outage of the labels holds back, bool [n]."""
        held = pd.Series(False, purchases.index)
        for fault in self.faults:
            if fault.kind == "label_outage":
                known = purchases["known_at"]
                held |= (known >= self.at(fault.first)) & (known < self.at(fault.until))
        return held

    def deliveries(self) -> pd.DataFrame:
        """What became of each mail."""
        sent = self.units[self.units["mail"]]
        status = np.where(sent["reached"], "delivered", "failed")
        return delivery_rows(self.campaign, sent[UNIT], status, sent["assigned_at"] + pd.Timedelta(minutes=10), "mail")

    def purchases_after(self, units: pd.DataFrame, at: datetime, occasion: str, seed: int) -> pd.DataFrame:
        """Purchases of customers who were decided on once more, by the same true effects.

        Args:
            units: Their `unit_id` and `treatment`, one row each.
            at: When the decisions come into force.
            occasion: Begins the events' ids.
            seed: Of all that is random.

        Returns:
            Rows for bronze.outcome.
        """
        rng = np.random.default_rng([self.seed, seed])
        rows = units.sort_values(UNIT).merge(self.units[[UNIT, "age", "channel"]], on=UNIT)
        rate = purchase_rate(rows["age"].to_numpy(), rows["channel"].to_numpy(), (rows[TREATMENT] == MAIL).to_numpy())
        bought = rows[rng.random(len(rows)) < rate]
        occurred = pd.Timestamp(at) + _hours(rng.uniform(0.1, 23, len(bought)))
        known = occurred + _hours(rng.uniform(0.1, 2, len(bought)))
        return purchase_rows(self.campaign, bought[UNIT], occurred, known, occasion)


def purchase_rate(age: np.ndarray, channel: np.ndarray, mail: np.ndarray) -> np.ndarray:
    """Give the true probability that a customer buys.

    Args:
        age: In years.
        channel: That the customer came by.
        mail: Whether the customer gets one.

    Returns:
        Probabilities, float64 [n].
    """
    effect = np.where(channel == "partner", _PARTNER, np.where(age > 40, _HELPS, _PUTS_OFF))
    return np.asarray(_BASE + np.where(mail, effect, 0.0))


def purchase_rows(campaign: str, units: pd.Series, occurred: _Times, known: _Times, occasion: str) -> pd.DataFrame:
    """Give purchases the columns of bronze.outcome.

    Args:
        campaign: Its name.
        units: Who bought, each once.
        occurred: When.
        known: When that became known.
        occasion: Begins the events' ids.

    Returns:
        One row a purchase.
    """
    columns = {UNIT: units.to_numpy(), CAMPAIGN: campaign, "outcome": BOUGHT, "value": 1.0}
    ids = [f"{occasion}-{unit}" for unit in units]
    return pd.DataFrame(columns).assign(event_id=ids, occurred_at=_micros(occurred), known_at=_micros(known))


def delivery_rows(campaign: str, units: pd.Series, status: np.ndarray, at: pd.Series, occasion: str) -> pd.DataFrame:
    """Give sends the columns of bronze.delivery.

    Args:
        campaign: Its name.
        units: To whom.
        status: What became of each.
        at: When it did.
        occasion: Begins the sends' ids.

    Returns:
        One row a send.
    """
    rows = pd.DataFrame({UNIT: units.to_numpy(), CAMPAIGN: campaign, "status": status})
    ids = [f"{occasion}-{unit}" for unit in units]
    return rows.assign(delivery_id=ids, event_id=ids, delivered_at=_micros(at), known_at=_micros(at))


def _hours(hours: np.ndarray) -> pd.TimedeltaIndex:
    return pd.to_timedelta(hours, unit="h")


def _micros(times: _Times) -> pd.DatetimeIndex:
    """Times as Parquet keeps them for Spark: UTC, to the microsecond."""
    index = pd.DatetimeIndex(times)
    return index.tz_convert(UTC).as_unit("us")
