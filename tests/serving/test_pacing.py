"""A day's budget: spent and never exceeded, whoever comes when, however many workers decide and are started again."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.sections.serving import Serving
from uplift_spark.serving.decisions import DECISION, DecisionLog, DecisionPolicy, LogEntry
from uplift_spark.serving.pacing import MICRO, SLOTS, Pacer, spend_curve
from uplift_spark.serving.reasons import EXPLORATION, HELD_OUT, SPENT
from uplift_spark.serving.store import Manifest, StoredUnit

LEVELS, COSTS = ("none", "5%", "10%"), {"5%": 1.0, "10%": 2.0}
PRICED = {"planned": True, "rules": False, "value": 10.0, "cost": COSTS, "net": True, "price": 0.5}
LAST = "9999-12-31"
MONDAY = datetime(2026, 3, 2, tzinfo=ZoneInfo("UTC")).timestamp()


def manifest(effects: np.ndarray, facts=None) -> Manifest:
    facts = PRICED if facts is None else facts
    curve = spend_curve(effects, np.array(list(COSTS.values())), 10.0, net=True)
    return Manifest("spring", "v1", "y", (("x", "number"),), LEVELS, {}, {}, (), facts, {}, spend=curve)


def test_the_curve_is_what_units_cost_at_each_price():
    """By hand: 10 a unit. A gains 1 net of 5 %, up to the price 1; B gains 4 and 5, so 10 % costs 1 more for 1 more."""
    curve = spend_curve(np.array([[0.2, np.nan], [0.5, 0.7]]), np.array([1.0, 2.0]), 10.0, net=True)

    def at(price):
        return next(cost for p, cost in reversed(curve) if p <= price)

    assert at(0.0) == 1.5 and curve[-1][1] == 0.0
    assert [price for price, _ in curve] == sorted({price for price, _ in curve})
    assert at(1.5) == 0.5 and curve[-1][0] == pytest.approx(4.0)
    assert spend_curve(np.array([[0.05, 0.1]]), np.array([1.0, 2.0]), 10.0, net=True) == ((0.0, 0.0),)
    # Without a level's own cost the same units are worth it for longer.
    assert spend_curve(np.array([[0.2, np.nan]]), np.array([1.0, 2.0]), 10.0, net=False)[-1][0] == pytest.approx(2.0)


def test_what_is_spent_early_makes_money_dearer_and_what_is_left_late_cheaper():
    effects = np.random.default_rng(1).normal(0.3, 0.2, (500, 2))
    pacer = Pacer(manifest(effects), Serving(budget=300.0))

    def price(spent, hour, requests=500):
        counts = np.zeros(SLOTS)
        foreseen, money = counts.copy(), counts.copy()
        counts[0], money[0] = requests, spent * MICRO
        foreseen[0] = money[0]
        return pacer.price(MONDAY + hour * 3600, {"2026-03-02": (counts, foreseen, money)})

    on_time = price(150, 12)
    assert price(250, 12) > on_time > price(50, 12)
    assert price(150, 23) == 0.0  # more is left than whoever comes could cost
    assert price(300, 12) == pytest.approx(pacer._prices[-1])
    assert price(150, 12, requests=2000) > on_time  # more come than money is there for


def test_a_day_begins_at_midnight_where_the_campaign_is():
    pacer = Pacer(manifest(np.full((5, 2), 0.5)), Serving(budget=300.0, timezone="Pacific/Auckland"))
    assert pacer.spend("5%", MONDAY + 10 * 3600, 0.0).day == "2026-03-02"
    assert pacer.spend("5%", MONDAY + 11.5 * 3600, 0.0).day == "2026-03-03"
    assert pacer.spend("5%", MONDAY + 11.5 * 3600, 0.0).slot == 2
    with pytest.raises(ConfigError, match=r"serving.timezone 'Mars/Olympus' is not known"):
        Serving(timezone="Mars/Olympus")


def test_a_budget_that_nothing_can_be_paced_by_is_refused():
    known = manifest(np.full((5, 2), 0.5))
    by_plan = {key: value for key, value in PRICED.items() if key != "price"}
    for unknown in (replace(known, spend=()), replace(known, policy=by_plan)):
        with pytest.raises(ConfigError, match=r"serving\.budget needs levels whose cost is the same for all units"):
            Pacer(unknown, Serving(budget=300.0))
    for free in (replace(known, policy={**PRICED, "cost": {"5%": 0.0, "10%": 0.0}}), known):
        with pytest.raises(ConfigError, match=r"serving\.budget is 1.5 and the dearest level costs"):
            Pacer(free, Serving(budget=1.5))


def entry(pacer, key, level="10%", at=MONDAY):
    body = {"unit_id": key, "level": level, "overall_propensity": 0.5}
    refused = {**body, "level": "none", "reason": SPENT, "overall_propensity": None}
    return LogEntry(DECISION, key, body, pacer.spend(level, at, 0.0), refused)


def test_what_no_longer_fits_is_the_control_for_every_level_and_a_repeated_key_costs_nothing(tmp_path):
    """Of 7: three times 2, and then nothing, though 1 would fit: else the end of a budget would depend on the draw."""
    log, pacer = DecisionLog(tmp_path / "log.sqlite"), Pacer(manifest(np.full((5, 2), 0.5)), Serving(budget=7.0))
    said = [one.body["level"] for one in log.append([entry(pacer, f"k{i}") for i in range(3)])]
    assert said == ["10%"] * 3
    assert [one.new for one in log.append([entry(pacer, "k0"), entry(pacer, "k0")])] == [False, False]
    late = log.append([entry(pacer, "k3", "5%"), entry(pacer, "k4", "none"), entry(pacer, "k5", "5%", MONDAY + 86400)])
    assert [(one.body["level"], one.body.get("reason")) for one in late] == [
        ("none", SPENT), ("none", SPENT), ("5%", None)
    ]  # fmt: skip
    counts = {day: [int(one.sum()) for one in arrays] for day, arrays in log.spending(LAST).items()}
    foreseen = pacer.spend("5%", MONDAY, 0.0).foreseen
    assert counts == {
        "2026-03-02": [5, 3 * foreseen, 6 * MICRO], "2026-03-03": [1, foreseen, MICRO]
    }  # fmt: skip
    assert list(log.spending(LAST, days=1)) == ["2026-03-03"]
    log.close()


def test_days_that_a_clock_left_in_the_future_hide_no_day(tmp_path):
    log, pacer = DecisionLog(tmp_path / "log.sqlite"), Pacer(manifest(np.full((5, 2), 0.5)), Serving(budget=7.0))
    log.append([entry(pacer, f"ahead-{day}", at=MONDAY + (100 + day) * 86400) for day in range(10)])
    log.append([entry(pacer, f"before-{day}", at=MONDAY - (9 - day) * 86400) for day in range(9)])
    log.append([entry(pacer, f"k{i}") for i in range(5)])
    days = log.spending(pacer.day(MONDAY))
    assert len(days) == 8 and max(days) == "2026-03-02" and pacer.spent(MONDAY, days) == 6.0
    assert pacer.price(MONDAY + 3600, days) > 0
    log.close()


def test_money_that_cannot_be_counted_exactly_is_refused_or_rounded_towards_the_budget():
    known = manifest(np.full((5, 2), 0.5))
    with pytest.raises(ConfigError, match=r"serving\.budget is 1e\+15, and at most 1e\+12 .* a larger unit of money"):
        Pacer(known, Serving(budget=1e15))
    with pytest.raises(ConfigError, match=r"the dearest level costs 1e\+13"):
        Pacer(replace(known, policy={**PRICED, "cost": {"5%": 1.0, "10%": 1e13}}), Serving(budget=1e12))
    with pytest.raises(ConfigError, match=r"the dearest level costs 0"):
        Pacer(replace(known, policy={**PRICED, "cost": {}}), Serving(budget=1.0))
    small = {**PRICED, "cost": {"5%": 4e-7, "10%": 1.4e-6}}
    pacer = Pacer(replace(known, policy=small), Serving(budget=2.1e-6))
    assert [pacer.spend(level, MONDAY, 0.0).cost for level in small["cost"]] == [1, 2]
    assert pacer.spend("5%", MONDAY, 0.0).budget == 2
    exact = Pacer(replace(known, policy={**PRICED, "cost": {"5%": 0.1, "10%": 0.29}}), Serving(budget=0.7))
    assert [exact.spend(level, MONDAY, 0.0).cost for level in ("5%", "10%")] == [100_000, 290_000]


def test_workers_that_begin_a_log_at_once_all_can_write(tmp_path):
    """SQLite refuses to change a new file's journal for all but one, at once: about one in a hundred had no log."""
    failed = []

    def begin(file):
        log = DecisionLog(file)
        try:
            log.append([])
            log.spending(LAST)
        except EnvironmentProblem as error:
            failed.append(error)
        log.close()

    for turn in range(60):
        threads = [threading.Thread(target=begin, args=(tmp_path / f"{turn}.sqlite",)) for _ in range(6)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert not failed


def test_workers_that_decide_at_once_spend_one_budget(tmp_path):
    file, pacer = tmp_path / "log.sqlite", Pacer(manifest(np.full((5, 2), 0.5)), Serving(budget=31.0))

    def work(worker):
        log = DecisionLog(file)
        for i in range(20):
            log.append([entry(pacer, f"{worker}-{i}")])
        log.close()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    levels = [body["level"] for _, body in DecisionLog(file).entries(DECISION)]
    assert len(levels) == 80 and levels.count("10%") == 15


# ---------------------------------------------------------------- simulated days with known truth


@dataclass
class World:
    """Customers whose effects are known, and who come by at hours of their own: more in the evening, and more of those
    who gain much, so that visitors are not what was published. `noise` is the error of the published effects."""

    rng: np.random.Generator
    units: int = 1000
    noise: float = 0.1
    exploration: float = 0.05
    holdout: float = 0.1
    budget: float = 400.0
    requests: int = 2000
    effects: np.ndarray = field(init=False)
    published: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.effects = self.rng.normal(0.2, 0.15, (self.units, 1)) * np.array([1.0, 1.6])
        self.published = self.effects + self.rng.normal(0, self.noise, self.effects.shape)
        self.stored = [
            StoredUnit((0.0,), 0, tuple((float(e), self.noise, False) for e in row), ("none", "not worth it"))
            for row in self.published
        ]

    @property
    def conf(self) -> Serving:
        return Serving(budget=self.budget, exploration=self.exploration, holdout=self.holdout)

    def day(self, start: float, since: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """(seconds, units) of a day's requests: a busy evening, a quiet night, and a height of the day's own; those
        that come before hour `since` find no service."""
        n = self.rng.poisson(self.requests * np.exp(self.rng.normal(0, 0.2)))
        peak = self.rng.choice([0, 1], n, p=[0.3, 0.7])
        hour = np.where(peak, self.rng.normal(19, 2, n), self.rng.normal(11, 3.5, n)) % 24
        gain = self.effects[:, 0] - self.effects[:, 0].min()
        units = self.rng.choice(self.units, n, p=gain / gain.sum())
        hour = np.sort(hour)
        return start + hour[hour >= since] * 3600, units[hour >= since]


@dataclass
class Served:
    """What a simulated day brought: money spent, decisions refused at its end, true gain net of costs."""

    spent: float
    refused: int
    gain: float
    best: float
    by_hour: np.ndarray


def serve_day(world: World, file, start: float, batch: int = 10, since: float = 0.0) -> Served:
    """A day's requests through two workers in turn, which see the counts as of the batch; two restarts at any time."""
    seconds, units = world.day(start, since)
    made = manifest(world.published)
    policy = DecisionPolicy(made, world.conf)
    restarts = set(world.rng.integers(0, len(units) // batch + 1, 2).tolist())
    workers = [DecisionLog(file) for _ in range(2)]
    pacer = Pacer(made, world.conf)
    spent, refused, gain, by_hour = 0.0, 0, 0.0, np.zeros(24)
    for number, first in enumerate(range(0, len(units), batch)):
        one = number % 2
        if number in restarts:
            workers[one].close()
            workers[one], pacer = DecisionLog(file), Pacer(made, world.conf)
        entries, days = [], workers[one].spending(pacer.day(start))
        for i in range(first, min(first + batch, len(units))):
            unit, at = f"u{units[i]}", float(seconds[i])
            price = pacer.price(at, days)
            decision = policy.decide(unit, world.stored[units[i]], None, price=price)
            body = {"unit_id": unit, "level": decision.level, "reason": decision.reason}
            spend = pacer.spend(decision.level, at, price)
            entries.append(LogEntry(DECISION, f"{start}-{i}", body, spend, {**body, "level": "none", "reason": SPENT}))
        for i, logged in enumerate(workers[one].append(entries), first):
            level = logged.body["level"]
            refused += logged.body["reason"] == SPENT
            if level != "none":
                spent += COSTS[level]
                by_hour[int((seconds[i] - start) // 3600)] += COSTS[level]
                gain += 10.0 * world.effects[units[i], LEVELS.index(level) - 1] - COSTS[level]
    for log in workers:
        log.close()
    return Served(spent, refused, gain, best_at_one_price(world, policy, units), by_hour)


def best_at_one_price(world: World, policy: DecisionPolicy, units: np.ndarray) -> float:
    """True gain of the one price that spends the budget, by somebody who knew the day's visitors beforehand."""
    dealt = [policy.decide(f"u{i}", world.stored[i], None, price=0.0) for i in range(world.units)]
    fixed = np.array([one.reason in (HELD_OUT, EXPLORATION) for one in dealt])
    costs, nobody = np.array([0.0, *COSTS.values()]), np.zeros(world.units)
    gains = 10.0 * np.column_stack([nobody, world.published]) - costs
    low, high = 0.0, 50.0
    for _ in range(40):
        price = (low + high) / 2
        code = np.where(fixed, [LEVELS.index(one.level) for one in dealt], (gains - costs * price).argmax(axis=1))
        low, high = (price, high) if costs[code][units].sum() > world.budget else (low, price)
    true = 10.0 * np.column_stack([nobody, world.effects]) - costs
    return float(true[np.arange(world.units), code][units].sum())


def test_the_budget_of_simulated_days_is_spent_and_never_exceeded(tmp_path):
    world = World(np.random.default_rng(5), units=300, requests=700, budget=200.0)
    days = [serve_day(world, tmp_path / "log.sqlite", MONDAY + day * 86400) for day in range(4)]
    spent = [one.spent for one in days]
    assert max(spent) <= 200.0 and min(spent[1:]) >= 0.96 * 200.0, spent
    counted = [
        float(counts[2].sum()) / MICRO for counts in DecisionLog(tmp_path / "log.sqlite").spending(LAST).values()
    ]
    assert sorted(counted) == sorted(spent)


@pytest.mark.parametrize(
    ("campaigns", "hour"),
    [(1, 22.0), *(pytest.param(20, hour, marks=pytest.mark.simulation) for hour in (9.0, 20.0, 22.0, 23.5))],
)
def test_a_service_that_was_started_in_the_evening_spends_the_next_days_budgets(tmp_path, campaigns, hour):
    """By the curve of an evening all would still be to come at any time of the next day: half of its budget was left,
    and a third of the one after it. The next day goes by the clock, as a first one, those after it by its curve."""
    for number in range(campaigns):
        world, file = World(np.random.default_rng([13, number])), tmp_path / f"{number}.sqlite"
        spent = [serve_day(world, file, MONDAY + day * 86400, since=0.0 if day else hour).spent for day in range(4)]
        assert max(spent) <= 400.0 and spent[1] >= 0.9 * 400.0 and min(spent[2:]) >= 0.96 * 400.0, (number, spent)


@pytest.mark.simulation
def test_the_budget_is_spent_within_two_per_cent_and_never_exceeded_on_200_days(tmp_path):
    """20 campaigns of 10 days, of which the first knows no day before it; published effects are wrong, visitors are not
    those who were published, days are busier or quieter by a fifth, workers are started again.

    Never over on any day. Within 2 % on 99 % of the days that have one before them, with nearly the true gain of the
    one price that somebody who knew the day's visitors would set. A first day, which has no curve to go by and spends
    by the clock, may leave a tenth.
    """
    days = []
    for number in range(20):
        world, file = World(np.random.default_rng([7, number])), tmp_path / f"{number}.sqlite"
        days += [(day, world.budget, serve_day(world, file, MONDAY + day * 86400)) for day in range(10)]
    shares = np.array([one.spent / budget for _, budget, one in days])
    later = np.array([day > 0 for day, *_ in days])
    assert shares.max() <= 1.0 and shares.min() >= 0.9, np.sort(shares)[:10]
    assert (shares[later] >= 0.98).mean() >= 0.99, np.sort(shares[later])[:10]
    known = [one for day, _, one in days if day]
    assert sum(one.gain for one in known) >= 0.97 * sum(one.best for one in known)
