"""Delays, missing days and unreached arms: by hand, and their error rates by simulation under the null."""

import numpy as np
import pytest

from uplift_spark.stats.tests import completeness, completeness_error, known_shares, missing_days, unreached_arms

ALPHA = 0.01
AGES, DAYS = 7, 30


def test_shares_known_by_hand():
    """Of ten events two days ago five were known at once, five a day later; yesterday's late five are still to come."""
    day, delay, n = np.array([2, 2, 1, 1, 0]), np.array([0, 1, 0, 1, 0]), np.array([5, 5, 4, 4, 3])
    share = known_shares(day, delay, n, 4)
    np.testing.assert_allclose(share, [0.5, 1, 1, 1])
    assert completeness(day, n, share) == pytest.approx(21 / 24)
    assert np.isnan(completeness(day[:0], n[:0], share))
    # One event of each day, reported after as many days: by these delays none of the later ones could be known.
    late = np.array([0, 3])
    share = known_shares(late, late, np.ones(2), 4)
    assert share.tolist() == [0, 0, 0, 1] and completeness(late, np.ones(2), share) == 1.0
    np.testing.assert_array_equal(known_shares(day[:0], delay[:0], n[:0], 2), [1, 1])


def test_shares_known_are_those_of_the_delays():
    rng = np.random.default_rng(1)
    day = rng.integers(0, 20, 200_000)
    delay = rng.geometric(0.4, day.size) - 1
    known = delay <= day
    share = known_shares(day[known], delay[known], np.ones(known.sum(), int), 20)
    np.testing.assert_allclose(share, 1 - 0.6 ** (np.arange(20) + 1), atol=0.01)
    estimate = completeness(day[known], np.ones(known.sum()), share)
    assert estimate == pytest.approx(known.mean(), abs=0.003)


def test_the_error_of_the_delays_by_hand_and_against_many_draws():
    """Ten events two days ago, five of them known a day late: today's share is .5, with the error of five of ten."""
    day, delay, n = np.array([2, 2, 0]), np.array([0, 1, 0]), np.array([5, 5, 4])
    share = known_shares(day, delay, n, 3)
    assert completeness_error(day, delay, n, share) == pytest.approx(8 * np.sqrt(0.5 / (0.5 * 10)) / 18)
    assert completeness_error(day, np.zeros(3, int), n, np.ones(3)) == 0.0
    assert completeness_error(day[:0], delay[:0], n[:0], share) == 0.0
    rng, values, variances = np.random.default_rng(4), [], []
    for _ in range(400):  # simulation: events on each of 12 days, a tenth of them late
        day = rng.integers(1, 13, 800)
        delay = np.where(rng.random(800) < 0.1, rng.integers(0, 12, 800), 0)
        seen = delay <= day
        day, delay, n = day[seen], delay[seen], np.ones(seen.sum(), int)
        share = known_shares(day, delay, n, 13)
        values.append(n.sum() / completeness(day, n, share) / 800)
        drawn = (1 - seen.mean()) / seen.sum()  # which of the events are known is a draw, too
        variances.append((drawn, completeness_error(day, delay, n, share) ** 2))
    assert np.std(values) == pytest.approx(np.sqrt(np.sum(np.mean(variances, 0))), rel=0.1)
    assert np.mean(variances, 0)[1] > 0.2 * np.mean(variances, 0)[0]  # and without the error it would be too small


def campaign(rng, per_day=200, rate=0.05, lost=()):
    """Units assigned every day of DAYS, and their first events at each age but on the days `lost`."""
    units = np.full(DAYS, per_day)
    day = np.arange(DAYS)[:, None] - np.arange(AGES) - 1
    hazard = rate * 0.6 ** np.arange(AGES)
    events, left = np.zeros((DAYS, AGES), int), units.copy()
    for age in range(AGES):
        events[:, age] = rng.binomial(left, hazard[age]) * (day[:, age] >= 0)
        left = left - events[:, age]
    return units, np.where(np.isin(day, lost), 0, events)


@pytest.mark.parametrize("per_day", [5, 200])
def test_sound_days_are_rarely_taken_for_an_outage(per_day):
    rng = np.random.default_rng(2)
    alarms = sum(bool(missing_days(*campaign(rng, per_day), np.ones(DAYS), ALPHA)) for _ in range(500))
    assert alarms <= 10  # P(more | alpha = .01) < .02


def test_weak_days_are_no_outage():
    rng = np.random.default_rng(3)
    for _ in range(200):
        units, events = campaign(rng)
        day = np.arange(DAYS)[:, None] - np.arange(AGES) - 1
        weekend = rng.binomial(events, 0.4)
        assert missing_days(units, np.where(day % 7 < 2, weekend, events), np.ones(DAYS), ALPHA) == []


def test_an_outage_is_detected_with_its_days():
    """About 24 events a day: all of three days found in at least 95 % of histories, and no other day."""
    rng = np.random.default_rng(4)
    outages = [
        [one.day for one in missing_days(*campaign(rng, rate=0.1, lost=(0, 1, 2)), np.ones(DAYS), ALPHA)]
        for _ in range(200)
    ]
    assert sum(days == [0, 1, 2] for days in outages) >= 190
    assert all(set(days) <= {0, 1, 2} for days in outages)


def test_events_under_way_are_no_outage_and_one_day_s_units_cannot_be_compared():
    rng = np.random.default_rng(5)
    share = np.minimum(1, np.arange(1, DAYS + 1) / 4)
    units, events = campaign(rng, 2_000)
    day = np.maximum(0, np.arange(DAYS)[:, None] - np.arange(AGES) - 1)
    arrived = rng.binomial(events, share[day])
    assert missing_days(units, arrived, share, ALPHA) == []
    assert [one.day for one in missing_days(units, np.where(day < 1, 0, arrived), np.ones(DAYS), ALPHA)] == [0]
    alone = np.zeros(DAYS, int)
    alone[20] = 10_000
    events = np.zeros((DAYS, AGES), int)
    events[20, :2] = 500
    assert missing_days(alone, events, np.ones(DAYS), ALPHA) == []


def test_equal_arms_are_rarely_called_unreached():
    rng = np.random.default_rng(6)
    for rate, n in ((0.99, 1_000), (0.5, 30)):
        draws = rng.binomial(n, rate, (1_000, 3))
        alarms = sum(bool(unreached_arms({str(i): (int(k), n) for i, k in enumerate(d)}, ALPHA, 0.0)) for d in draws)
        assert alarms <= 18  # P(more | alpha = .01) < .01


def test_an_arm_that_is_not_reached_is_named():
    """98 % against 95 % of 2,000 each: found in at least 99 of 100 trials."""
    rng = np.random.default_rng(7)
    detections = 0
    for _ in range(200):
        sends = {arm: (int(rng.binomial(2_000, rate)), 2_000) for arm, rate in (("5%", 0.98), ("10%", 0.95))}
        detections += [one.arm for one in unreached_arms(sends, ALPHA, 0.01)] == ["10%"]
    assert detections >= 198
    (one,) = unreached_arms({"5%": (990, 1_000), "10%": (0, 1_000)}, ALPHA, 0.01)
    assert (one.rate, one.others) == (0.0, 0.99) and one.p_value < 1e-100
    assert unreached_arms({"5%": (99_800, 100_000), "10%": (99_500, 100_000)}, ALPHA, 0.01) == []
    assert unreached_arms({"mail": (0, 10)}, ALPHA, 0.01) == unreached_arms({}, ALPHA, 0.01) == []
