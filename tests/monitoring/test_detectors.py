"""Conformance of the eight detectors: silent in sound windows, loud where a fault is injected, silent without sums.

A campaign is simulated: a control and two levels, features that move with nothing, predicted uplift that is right,
deliveries, delays of labels. A fault changes the simulated rows, not the sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest

from uplift_spark.monitoring.detectors import (
    DETECTORS,
    DetectorLimits,
    Margin,
    WindowFacts,
    window_findings,
)
from uplift_spark.monitoring.drift import ColumnBins, window_drift, with_triggers
from uplift_spark.monitoring.lift import ScoreSums
from uplift_spark.stats.findings import Finding

CONTROL, LEVELS, ROWS = "none", ("mail", "call"), 12_000
FEATURES = (*(f"x{i}" for i in range(6)), "region")
EDGES = np.linspace(0.0, 0.3, 10)
LIMITS = DetectorLimits()


@dataclass
class SimulatedWindow:
    """Rows of a window, to be harmed by a fault before they are added up."""

    rng: np.random.Generator
    n: int = ROWS
    x: np.ndarray = field(init=False)
    region: np.ndarray = field(init=False)
    arm: np.ndarray = field(init=False)
    outcome: np.ndarray = field(init=False)
    reached: np.ndarray = field(init=False)
    delay: np.ndarray = field(init=False)
    unknown: Mapping[str, int] = field(default_factory=dict)
    lasting: tuple[str, ...] = ()
    treated: int = 0

    def __post_init__(self) -> None:
        self.x = self.rng.normal(size=(self.n, 6))
        self.region = self.rng.choice(["north", "south", "west"], self.n, p=[0.5, 0.3, 0.2])
        self.arm = self.rng.choice(3, self.n, p=[0.4, 0.3, 0.3])
        self.react()
        self.reached = self.rng.random(self.n) < 0.995
        self.treated = int(self.rng.binomial(int((self.arm == 0).sum()), 0.002))

    @property
    def uplift(self) -> np.ndarray:
        return 0.15 + 0.1 * np.tanh(self.x[:, 0])

    def react(self, factor: float = 1.0) -> None:
        self.outcome = (self.rng.random(self.n) < 0.2 + (self.arm > 0) * self.uplift * factor).astype(float)
        self.delay = np.minimum(self.rng.geometric(0.4, self.n) - 1, 9)

    def facts(self, bins: ColumnBins, reference: WindowFacts | None = None) -> WindowFacts:
        rows = pa.table({**{f"x{i}": self.x[:, i] for i in range(6)}, "region": pa.array(self.region.tolist())})
        names = (CONTROL, *LEVELS)
        arms = {name: bins.count(rows.filter(pa.array(self.arm == code))) for code, name in enumerate(names)}
        scores = {}
        for code, level in enumerate(LEVELS, 1):
            two = np.where(self.arm == 0, 0, np.where(self.arm == code, 1, -1))
            weight = np.where(self.arm == 0, 1 / 0.4, 1 / 0.3)
            scores[level] = ScoreSums.of(EDGES, self.uplift, np.full(self.n, 0.05), two, self.outcome, weight)
        happened = self.outcome > 0
        facts = WindowFacts(
            control=CONTROL,
            bins=bins,
            features=FEATURES,
            arms=arms,
            units=self.n,
            delays={"buy": np.bincount(self.delay[happened], minlength=10)},
            age_days=9 if reference is None else 6,
            scores=scores,
            margins={level: Margin(10.0, 0.5) for level in LEVELS},
            sends={
                name: (int(self.reached[self.arm == code].sum()), int((self.arm == code).sum()))
                for code, name in enumerate(names)
                if code
            },
            treated=self.treated,
            unknown=self.unknown,
        )
        if reference is None:
            return facts
        usual = reference.all_arms
        drift = with_triggers(window_drift(bins, usual, usual, facts.all_arms), [self.lasting])
        return replace(facts, drift=tuple(drift))


def sample_bins() -> ColumnBins:
    window = SimulatedWindow(np.random.default_rng(0))
    columns = {f"x{i}": window.x[:, i] for i in range(6)}
    return ColumnBins.of_sample(pa.table({**columns, "region": window.region.tolist()}), most=64)


BINS = sample_bins()
REFERENCE = SimulatedWindow(np.random.default_rng(1), 4 * ROWS).facts(BINS)


# --------------------------------------------------------------------------------------------------------------------
# Faults, as they happen.


def leaked(window: SimulatedWindow) -> None:
    window.x[:, 3] += 1.2 * (window.arm == 1)  # counts mails that were opened


def lagging(window: SimulatedWindow) -> None:
    window.delay = np.minimum(window.delay + 1, 9)


def lost(window: SimulatedWindow) -> None:
    window.outcome *= window.rng.random(window.n) < 0.3


def confounded(window: SimulatedWindow) -> None:
    moved = (window.rng.random(window.n) < 0.25) & (window.x[:, 1] > 0.5)  # a colleague helps good customers
    window.arm = np.where(moved, 2, window.arm)
    window.react()


def drifting(window: SimulatedWindow) -> None:
    window.x[:, 2] += 0.3
    window.lasting = ("x2",)


def thinned(window: SimulatedWindow) -> None:
    rare = (window.arm == 1) & (window.rng.random(window.n) < 0.99)
    window.arm = np.where(rare, 2, window.arm)
    window.react()


def wasted(window: SimulatedWindow) -> None:
    window.react(factor=0.0)


def other_unit(window: SimulatedWindow) -> None:
    window.x[:, 4] = 100 * window.x[:, 4] + 50


def new_level(window: SimulatedWindow) -> None:
    window.unknown = {"sms": 12}


def unreached(window: SimulatedWindow) -> None:
    window.reached &= ~((window.arm == 2) & (window.rng.random(window.n) < 0.08))


def treated_control(window: SimulatedWindow) -> None:
    window.treated = int((window.arm == 0).sum() * 0.04)


FAULTS: list[tuple[str, Callable[[SimulatedWindow], None], str]] = [
    ("treatment_leakage", leaked, "x3"),
    ("label_lag", lagging, "buy"),
    ("label_lag", lost, "buy"),
    ("confounding", confounded, "x1"),
    ("drift", drifting, "x2"),
    ("low_sample", thinned, "mail"),
    ("over_targeting", wasted, ""),
    ("deployment_mismatch", other_unit, "x4"),
    ("deployment_mismatch", new_level, "treatment"),
    ("non_compliance", unreached, "call"),
    ("non_compliance", treated_control, CONTROL),
]


def finding(name: str, seed: int, fault: Callable[[SimulatedWindow], None] | None = None) -> Finding | None:
    window = SimulatedWindow(np.random.default_rng(seed))
    if fault is not None:
        fault(window)
    return DETECTORS[name](REFERENCE, window.facts(BINS, REFERENCE), LIMITS)


def test_every_detector_has_a_fault() -> None:
    assert {name for name, _, _ in FAULTS} == set(DETECTORS)
    assert len(DETECTORS) == 8


@pytest.mark.parametrize(("name", "fault", "where"), FAULTS, ids=[fault.__name__ for _, fault, _ in FAULTS])
def test_detector_finds_the_fault_and_says_what_to_do(
    name: str, fault: Callable[[SimulatedWindow], None], where: str
) -> None:
    results = [finding(name, 100 + seed, fault) for seed in range(4)]
    assert all(results)
    for one in results:
        assert one is not None
        assert one.check == name and one.severity in ("page", "ticket")
        assert one.about == where or not where
        assert one.action and one.sentence and math.isfinite(one.figure)
        assert one.p_value is None or one.p_value <= LIMITS.alpha


def test_sound_windows_are_silent() -> None:
    for seed in range(12):
        window = SimulatedWindow(np.random.default_rng(1000 + seed))
        assert window_findings(REFERENCE, window.facts(BINS, REFERENCE)) == []


@pytest.mark.simulation
def test_false_alarms_in_200_sound_windows() -> None:
    false = dict.fromkeys(DETECTORS, 0)
    for seed in range(200):
        window = SimulatedWindow(np.random.default_rng(5000 + seed))
        for one in window_findings(REFERENCE, window.facts(BINS, REFERENCE)):
            false[one.check] += 1
    print("false alarms in 200 sound windows:", false)
    assert max(false.values()) <= 4


@pytest.mark.simulation
@pytest.mark.parametrize(("name", "fault", "where"), FAULTS, ids=[fault.__name__ for _, fault, _ in FAULTS])
def test_power(name: str, fault: Callable[[SimulatedWindow], None], where: str) -> None:
    power = sum(finding(name, 9000 + seed, fault) is not None for seed in range(25)) / 25
    print(f"{name} of {fault.__name__}: power {power:.0%}")
    assert power >= 0.95


@pytest.mark.parametrize("name", DETECTORS)
def test_what_was_not_measured_is_no_finding(name: str) -> None:
    nothing = WindowFacts(CONTROL, BINS)
    assert DETECTORS[name](nothing, nothing, LIMITS) is None
    assert DETECTORS[name](REFERENCE, nothing, LIMITS) is None


def test_arms_that_differ_by_design_are_no_leak_and_no_confounding() -> None:
    def by_design(seed: int, n: int, reference: WindowFacts | None) -> WindowFacts:
        window = SimulatedWindow(np.random.default_rng(seed), n)
        moved = (window.rng.random(n) < 0.25) & (window.x[:, 1] > 0)
        window.arm = np.where(moved, 2, window.arm)
        window.react()
        return window.facts(BINS, reference)

    usual = by_design(1, 4 * ROWS, None)
    now = by_design(2, ROWS, usual)
    assert DETECTORS["confounding"](REFERENCE, now, LIMITS) is not None
    assert DETECTORS["confounding"](usual, now, LIMITS) is None
    assert DETECTORS["treatment_leakage"](usual, now, LIMITS) is None


def test_a_window_whose_labels_still_ripen_is_held_to_the_units_that_it_will_have() -> None:
    def ripening(n: int, share: float) -> Finding | None:
        window = SimulatedWindow(np.random.default_rng(11), n)
        mature = window.rng.random(n) < share
        window.outcome = np.where(mature, window.outcome, np.nan)
        facts = window.facts(BINS, REFERENCE)
        return DETECTORS["low_sample"](REFERENCE, replace(facts, labelled=int(mature.sum())), LIMITS)

    assert ripening(4000, 1.0) is None and ripening(4000, 0.05) is None  # 60 of 1,200 units an arm
    one = ripening(100, 0.5)
    assert one is not None and one.figure < one.threshold
    assert "will have" in one.sentence and "once all labels are mature" in one.sentence
    whole = SimulatedWindow(np.random.default_rng(11), 200).facts(BINS, REFERENCE)  # and no more labels to come
    few = DETECTORS["low_sample"](REFERENCE, replace(whole, labelled=200), LIMITS)
    assert few is not None and " has " in few.sentence and "mature" not in few.sentence


def test_pages_come_first() -> None:
    window = SimulatedWindow(np.random.default_rng(3))
    drifting(window)
    unreached(window)
    results = window_findings(REFERENCE, window.facts(BINS, REFERENCE))
    assert [(one.check, one.severity) for one in results] == [("non_compliance", "page"), ("drift", "ticket")]
