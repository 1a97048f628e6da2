"""The simulated customers: what is true of them, what is reported, and what each fault changes. No Spark."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from uplift_spark.errors import ConfigError
from uplift_spark.gamedays.world import MAIL, FaultDays, World, purchase_rate

PARTNER = FaultDays("partner", 5, 8)


def lift(units: pd.DataFrame) -> float:
    means = units.groupby("mail")["buys"].mean()
    return float(means[True] - means[False])


def test_mail_helps_above_forty_and_puts_off_the_young_and_the_partners() -> None:
    units = World("w", 10, 5000, [PARTNER]).units
    assert units["unit_id"].is_unique and set(units.groupby("day").size()) == {5000}
    own = units[units["channel"] != "partner"]
    assert lift(own[own["age"] > 40]) == pytest.approx(0.35, abs=0.02)
    assert lift(own[own["age"] <= 40]) == pytest.approx(-0.15, abs=0.02)
    partners = units[units["channel"] == "partner"]
    assert lift(partners) == pytest.approx(-0.35, abs=0.03)
    assert set(partners["day"]) == {5, 6, 7}
    assert len(partners) / (3 * 5000) == pytest.approx(0.3, abs=0.02)


def test_every_row_says_when_it_became_known() -> None:
    world = World("w", 3, 1000)
    purchases, profiles = world.purchases(), world.profiles()
    waited = purchases.merge(world.assignments(), on="unit_id")
    hours = (waited["known_at"] - waited["assigned_at"]) / pd.Timedelta(hours=1)
    assert hours.min() > 0 and hours.max() <= 30  # a day's window and a quarter of a day
    assert (waited["known_at"] > waited["occurred_at"]).all() and purchases["event_id"].is_unique
    before = world.assignments().merge(profiles, on="unit_id")
    assert (before["known_at"] < before["assigned_at"]).all()
    assert world.at(0).weekday() == 0 and str(purchases["known_at"].dtype) == "datetime64[us, UTC]"


def test_an_outage_holds_back_what_would_have_become_known() -> None:
    world = World("w", 6, 1000, [FaultDays("label_outage", 3, 4)])
    purchases = world.purchases()
    held = world.held_back(purchases)
    assert held.any() and (purchases.loc[held, "known_at"] >= world.at(3)).all()
    assert (purchases.loc[held, "known_at"] < world.at(4)).all()
    rest = purchases.loc[~held, "known_at"]
    assert not ((rest >= world.at(3)) & (rest < world.at(4))).any()


def test_a_mailer_that_chooses_by_age_logs_the_old_propensity() -> None:
    world = World("w", 6, 5000, [FaultDays("confounding", 3, 6)])
    ages = world.units.groupby([world.units["day"] >= 3, "mail"])["age"].mean().unstack()
    gap = ages[True] - ages[False]
    assert abs(gap[False]) < 0.5 and 2 < gap[True] < 6
    assert set(world.assignments()["propensity"]) == {0.5}


def test_months_and_failed_mails_are_those_of_their_days() -> None:
    world = World("w", 6, 1000, [FaultDays("months", 2, 3), FaultDays("non_delivery", 4, 5)])
    reported, mended = world.profiles(), world.profiles(mended=True)
    ratio = (reported["age"] / mended["age"]).to_numpy()
    assert np.allclose(ratio, np.where(world.units["day"] == 2, 12, 1))
    assert (world.reported_in_months() == (world.units["day"] == 2)).all()
    sends = world.deliveries().merge(world.units, on="unit_id")
    assert sends["mail"].all() and len(sends) == world.units["mail"].sum()
    reached = (sends["status"] == "delivered").groupby(sends["day"]).mean()
    assert reached[4] == pytest.approx(0.6, abs=0.07) and reached.drop(4).min() > 0.98


def test_whoever_is_decided_on_again_buys_by_the_same_effects() -> None:
    world = World("w", 4, 5000)
    everybody = pd.DataFrame({"unit_id": world.units["unit_id"], "treatment": MAIL})
    at = world.at(5)
    bought = world.purchases_after(everybody, at, "again", 1)
    rate = purchase_rate(world.units["age"].to_numpy(), world.units["channel"].to_numpy(), np.ones(20_000, bool)).mean()
    assert len(bought) / 20_000 == pytest.approx(rate, abs=0.015)
    assert bought["unit_id"].is_unique and (bought["occurred_at"] > pd.Timestamp(at)).all()
    assert not bought.equals(world.purchases_after(everybody, at, "again", 2))


def test_what_shows_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="fault partner lasts from day 5 to 5: let it end after it begins"):
        FaultDays("partner", 5, 5)
    with pytest.raises(ConfigError, match="99 customers on each of 3 days show nothing"):
        World("w", 3, 99)
