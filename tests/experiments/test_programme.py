"""Programme holdouts: figures by hand, refusals, and by simulation with known truth what intervals hold."""

from __future__ import annotations

import doctest
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments import programme as module
from uplift_spark.experiments.assignment import Experiment, ProgrammeHoldout, assign, in_programme_holdout
from uplift_spark.experiments.frames import readout
from uplift_spark.experiments.health import ReadoutDesign
from uplift_spark.experiments.programme import (
    ALL_CAMPAIGNS,
    BEYOND_SUM,
    SUM_OF_SINGLES,
    ProgrammeReadout,
    SingleEffect,
    programme_metrics,
    programme_readout,
)
from uplift_spark.experiments.readout import ReadoutMetric

SPEND = ReadoutMetric("spend", "spend", role="primary", covariates=("before",))
BOTH = -0.3  # what being treated by both campaigns adds
EFFECTS = {"spring": 0.6, "summer": 0.4}
# Half of the units that are not held out are treated by each campaign, independently.
TOTAL = 0.5 * 0.6 + 0.5 * 0.4 + 0.25 * BOTH
SUM = 0.5 * (0.6 + 0.5 * BOTH) + 0.5 * (0.4 + 0.5 * BOTH)


def year(n: int, seed: int, held: ProgrammeHoldout) -> tuple[pd.DataFrame, list[SingleEffect]]:
    """Units with what they spend over a year of two campaigns, and the effects of the campaigns' own trials."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"unit_id": [f"u{seed}-{k}" for k in range(n)], "before": rng.gamma(4.0, 1.0, n)})
    treated = {}
    for name in EFFECTS:
        arms = assign(frame["unit_id"], Experiment(f"{name}-{seed}", {"off": 0.5, "on": 0.5}, programme=held))
        frame[name] = arms["treatment"]
        treated[name] = (arms["treatment"] == "on").to_numpy()
    spend = frame["before"] + rng.normal(0, 1.5, n) + BOTH * (treated["spring"] & treated["summer"])
    frame["spend"] = spend + sum(effect * treated[name] for name, effect in EFFECTS.items())
    singles = []
    for name in EFFECTS:
        mine = frame[frame[name].notna()].assign(treatment=frame[name])
        one = readout(mine, [SPEND], ReadoutDesign({"off": 0.5, "on": 0.5}), override="a simulation").metrics[0]
        singles.append(SingleEffect(name, "spend", "on", treated[name].sum(), one.effect, one.error))
    return frame, singles


def test_figures_by_hand() -> None:
    held = ProgrammeHoldout("shop", 0.2)
    frame, singles = year(5000, 1, held)
    bare = ReadoutMetric("spend", "spend", role="primary")
    result = programme_readout(frame, held, [bare], singles=singles)
    out = in_programme_holdout(frame["unit_id"], held)
    total, summed, beyond = result.rows
    assert [one.arm for one in result.rows] == [ALL_CAMPAIGNS, SUM_OF_SINGLES, BEYOND_SUM]
    assert {one.role for one in result.rows} == {"programme"}
    assert total.effect == pytest.approx(frame["spend"][~out].mean() - frame["spend"][out].mean())
    errors = frame["spend"].groupby(out).var() / frame["spend"].groupby(out).size()
    assert total.error == pytest.approx(np.sqrt(errors.sum()))
    assert summed.effect == pytest.approx(sum(one.units * one.effect for one in singles) / (~out).sum())
    wanted = np.sqrt(sum((one.units * one.error) ** 2 for one in singles)) / (~out).sum()
    assert summed.error == pytest.approx(wanted)
    assert beyond.effect == pytest.approx(total.effect - summed.effect)
    assert "spend a unit, sum of single effects: +0" in result.text()
    narrower = programme_readout(frame, held, [SPEND], singles=singles)
    assert narrower.rows[0].error < 0.8 * total.error


def test_effects_of_one_campaign_err_together() -> None:
    held = ProgrammeHoldout("shop", 0.2)
    frame, _ = year(3000, 2, held)
    one = SingleEffect("spring", "spend", "on", 1000.0, 0.5, 0.1)
    others = (~in_programme_holdout(frame["unit_id"], held)).sum()
    same, apart = (
        programme_readout(frame, held, [SPEND], singles=[one, replace(one, campaign=name)]).rows[1]
        for name in ("spring", "summer")
    )
    assert same.error == pytest.approx(2 * 100 / others)
    assert apart.error == pytest.approx(np.sqrt(2) * 100 / others)


def test_a_holdout_that_lost_units_is_refused() -> None:
    held = ProgrammeHoldout("shop", 0.2)
    frame, singles = year(5000, 3, held)
    out = in_programme_holdout(frame["unit_id"], held)
    lost = frame[~out | (frame["before"] > 3)]
    result: ProgrammeReadout = programme_readout(lost, held, [SPEND], singles=singles)
    assert result.rows == () and result.trial.verdict.word == "broken"
    assert "sample_ratio" in {one.check for one in result.trial.findings}
    assert programme_readout(lost, held, [SPEND], override="to see").rows


def test_only_means_add_up() -> None:
    ratio = ReadoutMetric("basket", "spend", denominator="before")
    guard = ReadoutMetric("calls", "calls", role="guardrail", margin=0.1)
    kept = programme_metrics([SPEND, ratio, guard])
    assert [(one.name, one.role, one.margin) for one in kept] == [
        ("spend", "primary", None),
        ("calls", "secondary", None),
    ]
    with pytest.raises(DataError, match="has no unit"):
        programme_readout(
            pd.DataFrame({"unit_id": ["a"], "spend": [1.0], "before": [1.0]}), ProgrammeHoldout("shop", 0.5), [SPEND]
        )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"metric": "spent"}, "arm on, on spent is of no metric that the programme is read by: did you mean 'spend'"),
        *(({name: bad}, "needs finite numbers") for name in ("units", "effect", "error") for bad in (np.nan, np.inf)),
        *(({name: -1.0}, "units and an error of at least 0") for name in ("units", "error")),
    ],
)
def test_single_effects_that_would_be_left_out_or_spoil_the_sum_are_refused(change: dict, said: str) -> None:
    held = ProgrammeHoldout("shop", 0.2)
    frame, _ = year(1000, 6, held)
    one = {"campaign": "spring", "metric": "spend", "arm": "on", "units": 100.0, "effect": 0.5, "error": 0.1}
    with pytest.raises(ConfigError, match=said):
        programme_readout(frame, held, [SPEND], singles=[SingleEffect(**(one | change))])


def test_a_request_that_does_not_fit_the_holdout_is_refused() -> None:
    frame, _ = year(1000, 6, ProgrammeHoldout("shop", 0.2))
    clusters = ProgrammeHoldout("shop", 0.2, clustered=True)
    with pytest.raises(ConfigError, match="programme shop holds out clusters: name their column"):
        programme_readout(frame, clusters, [SPEND])  # by the ids of units other ones would be held out
    with pytest.raises(ConfigError, match="column 'home' is not in the frame"):
        programme_readout(frame, clusters, [SPEND], cluster="home")
    with pytest.raises(ConfigError, match="column 'unit_id' is not in the frame"):
        programme_readout(frame.drop(columns="unit_id"), ProgrammeHoldout("shop", 0.2), [SPEND])
    with pytest.raises(ConfigError, match="read by means over units, and none is primary"):
        programme_metrics([ReadoutMetric("basket", "spend", denominator="before", role="primary")])


def test_clusters_are_held_out_whole() -> None:
    held = ProgrammeHoldout("shop", 0.3, clustered=True)
    rng = np.random.default_rng(4)
    frame = pd.DataFrame(
        {"unit_id": range(4000), "home": rng.integers(0, 800, 4000), "before": rng.gamma(4.0, 1.0, 4000)}
    )
    frame["spend"] = frame["before"] + rng.normal(0, 1, 800)[frame["home"]] + rng.normal(0, 1, 4000)
    one = SingleEffect("spring", "spend", "on", 1000.0, 0.5, 0.1)
    result = programme_readout(
        frame, held, [ReadoutMetric("spend", "spend", role="primary")], singles=[one], cluster="home"
    )
    out = in_programme_holdout(frame["home"].tolist(), held)
    assert result.rows[0].effect == pytest.approx(frame["spend"][~out].mean() - frame["spend"][out].mean())
    assert result.rows[1].effect == pytest.approx(500 / (~out).sum())
    assert result.trial.units["held out"] == frame["home"][out].nunique()


def replicated(runs: int, n: int) -> pd.DataFrame:
    """Coverage, mean, and spread over error of the total effect, the sum of the single ones and the difference."""
    held, lines = ProgrammeHoldout("shop", 0.2), []
    truth = {ALL_CAMPAIGNS: TOTAL, SUM_OF_SINGLES: SUM, BEYOND_SUM: TOTAL - SUM}
    for seed in range(runs):
        frame, singles = year(n, 100 + seed, held)
        for one in programme_readout(frame, held, [SPEND], singles=singles, override="a simulation").rows:
            lines.append((one.arm, one.effect, one.error, one.lower <= truth[one.arm] <= one.upper, truth[one.arm]))
    groups = pd.DataFrame(lines, columns=["figure", "effect", "error", "covers", "truth"]).groupby("figure")
    return groups.mean().assign(spread=groups["effect"].std() / groups["error"].mean())


@pytest.mark.simulation
def test_intervals_hold_the_truth() -> None:
    runs = 2000
    table = replicated(runs, 2500)
    print(table.round(4).to_string())
    assert (abs(table["effect"] - table["truth"]) < 4 * table["error"] / np.sqrt(runs)).all(), table
    assert abs(table.loc[ALL_CAMPAIGNS, "covers"] - 0.95) < 0.0175, table
    assert abs(table.loc[SUM_OF_SINGLES, "covers"] - 0.95) < 0.0175, table
    assert 0.94 < table.loc[BEYOND_SUM, "covers"] < 0.995, table


def test_a_quick_simulation() -> None:
    """Bounds that 40 sound programmes exceed about once in a million runs."""
    table = replicated(40, 1500)
    assert (table["covers"] >= 0.7).all(), table
    assert (abs(table["effect"] - table["truth"]) < 6 * table["error"] / np.sqrt(40)).all(), table


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0
