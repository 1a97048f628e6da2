"""Backtests of a policy: figures by hand, what is refused, and by simulation with known truth what intervals hold."""

from __future__ import annotations

import doctest

import numpy as np
import pandas as pd
import pytest

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.experiments import backtest as module
from uplift_spark.experiments.assignment import Experiment, assign
from uplift_spark.experiments.backtest import (
    LoggedColumns,
    PolicyReadout,
    backtest,
    backtest_terms,
    layout_of,
    read_policy,
    term_moments,
)
from uplift_spark.experiments.readout import ReadoutMetric

ARMS = ("none", "5%", "10%")
SPEND = ReadoutMetric("spend", "spend", role="primary", covariates=("before",))
MONEY = (2.0, {"5%": 0.5, "10%": 1.5})


def campaign(n: int, seed: int, explore: float = 0.3, clusters: int = 0) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Units of a targeted campaign with what each would spend under every arm; half of them gain, half lose.

    The policy knows who gains and gives these the arm 10 %; the arms are those of `assign`, so that propensities are by
    design. With clusters, all units of one share a shock, an arm and a decision.
    """
    rng = np.random.default_rng(seed)
    group = rng.integers(0, clusters, n) if clusters else np.arange(n)
    shock = rng.normal(0, 1.0, group.max() + 1)[group] if clusters else 0.0
    gains = (rng.random(group.max() + 1) < 0.5)[group]
    before = rng.gamma(4.0, 2.0, n)
    base = 0.8 * before + shock + rng.normal(0, 2.0, n)
    effect = {"none": np.zeros(n), "5%": np.where(gains, 0.5, -0.2), "10%": np.where(gains, 1.0, -0.6)}
    decision = np.where(gains, "10%", "none")
    design = Experiment(f"wave-{seed}", dict.fromkeys(ARMS, 1 / 3), exploration=explore, clustered=bool(clusters))
    ids = [f"u{seed}-{k}" for k in range(n)]
    rows = assign(ids, design, decisions=decision, clusters=[f"c{seed}-{k}" for k in group] if clusters else None)
    frame = rows.assign(policy=decision, before=before, group=group)
    frame["spend"] = base + np.select([frame["treatment"] == arm for arm in ARMS], [effect[arm] for arm in ARMS])
    return frame, effect


def true_value(effect: dict[str, np.ndarray], frame: pd.DataFrame, arm: str, money: bool) -> float:
    """Mean that the policy brings more than giving all the arm, in the population: half of the units gain."""
    by = {"none": (0.0, 0.0), "5%": (0.5, -0.2), "10%": (1.0, -0.6)}
    costs = MONEY[1] if money else {}
    value = MONEY[0] if money else 1.0
    policy = 0.5 * (value * 1.0 - costs.get("10%", 0.0))
    return policy - (value * np.mean(by[arm]) - costs.get(arm, 0.0))


def test_figures_by_hand() -> None:
    """Without covariates and with equal weights: the difference of means among units for which the two differ."""
    rng = np.random.default_rng(3)
    frame = pd.DataFrame({"treatment": rng.choice(["off", "on"], 4000), "propensity": 0.5})
    frame["policy"] = np.where(rng.random(4000) < 0.4, "on", "off")
    frame["sales"] = rng.normal(3.0, 1.0, 4000) + 0.5 * (frame["treatment"] == "on")
    result = backtest(frame, [ReadoutMetric("sales", "sales", role="primary")], ["off", "on"])
    on, off = (result.metrics[k] for k in (1, 0))
    differs = frame[frame["policy"] == "on"]
    means = differs.groupby("treatment")["sales"].agg(["mean", "var", "size"])
    wanted = len(differs) / 4000 * (means.loc["on", "mean"] - means.loc["off", "mean"])
    assert off.effect == pytest.approx(wanted, abs=0.01)
    # What differs is the share of units to which the policy gives the arm: that it is random, too, is in the error.
    error = len(differs) / 4000 * np.sqrt((means["var"] / means["size"]).sum())
    assert off.error == pytest.approx(error, rel=0.1)
    assert off.treated == pytest.approx(on.treated, abs=0.01) and off.control == pytest.approx(3.0, abs=0.1)
    assert (off.status, on.status) == ("better", "worse")
    assert result.overlap[0].units == pytest.approx(len(differs))
    assert result.overlap[0].effective == pytest.approx((means.loc["on", "size"], means.loc["off", "size"]))
    assert "policy against off for all, sales a unit: +0.2" in result.text()


def test_sums_of_parts_are_the_sums_of_the_whole() -> None:
    frame, _ = campaign(3000, 1)
    layout = layout_of([SPEND], ARMS, money=MONEY)
    codes = [pd.Index(ARMS).get_indexer(frame[name]) for name in ("treatment", "policy")]
    terms = backtest_terms(layout, *codes, frame["propensity"].to_numpy(), frame[list(layout.columns)].to_numpy())
    parts = term_moments(terms[:1000]) + term_moments(terms[1000:])
    whole, merged = read_policy(layout, term_moments(terms)), read_policy(layout, parts)
    assert [one.effect for one in merged.metrics] == pytest.approx([one.effect for one in whole.metrics], rel=1e-9)
    assert [one.metric for one in whole.metrics] == ["spend", "profit"] * 3
    read = backtest(frame, [SPEND], ARMS, money=MONEY)
    assert [one.error for one in read.metrics] == pytest.approx([one.error for one in whole.metrics], rel=1e-9)


def test_costs_are_known_and_add_no_noise() -> None:
    frame, _ = campaign(4000, 2)
    result = {(one.metric, one.arm): one for one in backtest(frame, [SPEND], ARMS, money=MONEY).metrics}
    for arm in ARMS:
        spend, profit = result["spend", arm], result["profit", arm]
        spent = 1.5 * (frame["policy"] == "10%").mean() - MONEY[1].get(arm, 0.0)
        assert profit.effect == pytest.approx(2 * spend.effect - spent, abs=0.02)
        assert profit.error == pytest.approx(2 * spend.error, rel=0.06)


def test_without_exploration_there_are_no_figures() -> None:
    """All units got what the policy decided: nothing is known of what others would have brought."""
    frame, _ = campaign(4000, 4)
    followed = frame[frame["treatment"] == frame["policy"]].assign(propensity=1.0)
    with pytest.raises(DataError, match="policy gives another arm than none, 0 effective ones got none"):
        backtest(followed, [SPEND], ARMS)


def test_propensities_that_are_not_those_of_the_design_are_refused() -> None:
    frame, _ = campaign(20_000, 5)
    wrong = frame.assign(propensity=1 / 3)
    with pytest.raises(DataError, match=r"those that got the policy's arm stand for 2[0-9.]+% of them"):
        backtest(wrong, [SPEND], ARMS)


def test_one_arm_without_overlap_leaves_the_others() -> None:
    frame, _ = campaign(6000, 6)
    result = backtest(
        frame[frame["treatment"] != "5%"].assign(propensity=lambda f: f["propensity"] * 10 / 9), [SPEND], ARMS
    )
    assert {one.arm for one in result.metrics} == {"none", "10%"}
    assert "not compared: of" in result.text() and "0 effective ones got 5%" in result.text()


def test_a_policy_that_gives_all_units_one_arm() -> None:
    frame, _ = campaign(3000, 7)
    result = backtest(frame.assign(policy="5%"), [SPEND], ARMS)
    assert {one.arm for one in result.metrics} == {"none", "10%"}
    assert result.overlap[1].problem == "the policy gives all units 5%"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"policy": "20%"}, "column 'policy' is no arm in 500 rows: use none, 5%, 10%"),
        ({"treatment": None}, "column 'treatment' is no arm in 500 rows"),
        ({"propensity": 0.0}, r"column 'propensity' is outside \(0, 1\] in 500 rows"),
        ({"propensity": 1e-320}, r"column 'propensity' is outside \(0, 1\] in 500 rows"),
        ({"spend": np.nan}, "column 'spend' is no number in 500 rows"),
        ({"spend": -1e170}, r"column 'spend' is 1e\+70 or more in 500 rows, whose squares cannot be added up"),
        ({"before": 1e170}, r"column 'before' is 1e\+70 or more in 500 rows"),
        ({"group": [None, *range(499)]}, "column 'group' is missing in 1 rows"),
    ],
)
def test_rows_that_do_not_fit(change: dict[str, object], sentence: str) -> None:
    frame, _ = campaign(500, 8)
    with pytest.raises(DataError, match=sentence):
        backtest(frame.assign(**change), [SPEND], ARMS, LoggedColumns(cluster="group"))
    with pytest.raises(DataError, match="the frame has no row"):
        backtest(frame.head(0), [SPEND], ARMS)


@pytest.mark.parametrize(
    ("arms", "options", "sentence"),
    [
        (("none", "5%", "5%"), {}, "arms are none, 5%, 5%: name at least two, each once"),
        (("none",), {}, "arms are none: name at least two"),
        ((), {}, "arms are none: name at least two"),
        (ARMS, {"money": (2.0, {"5": 0.5})}, "money names the cost of '5', which is no arm: did you mean '5%'"),
        (ARMS, {"money": (np.inf, {"5%": 0.5})}, "money has a value or a cost that is no finite number"),
        (ARMS, {"money": (2.0, {"5%": np.nan})}, "money has a value or a cost that is no finite number"),
        *((ARMS, {"alpha": alpha}, "alpha is .*: use a level such as .05") for alpha in (0, 1, 5, np.nan)),
    ],
)
def test_requests_that_would_give_other_figures_than_were_meant(arms, options, sentence: str) -> None:
    frame, _ = campaign(500, 8)
    with pytest.raises(ConfigError, match=sentence):
        backtest(frame, [SPEND], arms, **options)
    with pytest.raises(ConfigError, match="money is the value of the primary metric, and no metric"):
        backtest(frame, [ReadoutMetric("spend", "spend")], ARMS, money=MONEY)


def test_what_does_not_vary_has_no_error() -> None:
    frame, _ = campaign(6000, 9)
    result = backtest(frame.assign(spend=0.0), [SPEND], ARMS)
    assert {one.status for one in result.metrics} == {"open"}
    assert "nan" not in result.text() and "its error is not known, as spend does not vary there" in result.text()


def test_what_is_not_there() -> None:
    frame, _ = campaign(500, 8)
    with pytest.raises(ConfigError, match="column 'decided' is not in the frame"):
        backtest(frame, [SPEND], ARMS, LoggedColumns(policy="decided"))
    basket = ReadoutMetric("basket", "spend", denominator="before", role="primary")
    with pytest.raises(ConfigError, match="no metric is a mean over units"):
        backtest(frame, [basket], ARMS)


def replicated(runs: int, n: int, explore: float, clusters: int = 0) -> pd.DataFrame:
    """Coverage, mean estimate, its spread over its error, and truth of each comparison."""
    lines = []
    for seed in range(runs):
        frame, effect = campaign(n, 1000 + seed, explore, clusters)
        columns = LoggedColumns(cluster="group" if clusters else None)
        result: PolicyReadout = backtest(frame, [SPEND], ARMS, columns, money=MONEY)
        for one in result.metrics:
            truth = true_value(effect, frame, one.arm, one.metric == "profit")
            lines.append(
                (one.metric, one.arm, one.effect, one.error, one.lower <= truth <= one.upper, truth, one.saved)
            )
    table = pd.DataFrame(lines, columns=["metric", "arm", "effect", "error", "covers", "truth", "saved"])
    groups = table.groupby(["metric", "arm"])
    out = groups[["effect", "error", "covers", "truth", "saved"]].mean()
    return out.assign(spread=groups["effect"].std() / out["error"], runs=groups.size())


@pytest.mark.simulation
@pytest.mark.parametrize(("n", "explore", "clusters"), [(2000, 0.3, 0), (5000, 0.1, 0), (4000, 0.5, 1000)])
def test_intervals_hold_the_truth(n: int, explore: float, clusters: int) -> None:
    runs = 2000
    table = replicated(runs, n, explore, clusters)
    print(f"{n} units, exploration {explore}, clusters {clusters}\n{table.round(4).to_string()}")
    assert (abs(table["covers"] - 0.95) < 0.0175).all(), table
    assert (abs(table["effect"] - table["truth"]) < 4 * table["error"] / np.sqrt(runs)).all(), table
    assert (abs(table["spread"] - 1) < 0.07).all(), table
    assert clusters or (table["saved"] > 0.3).all(), table


def test_a_quick_simulation() -> None:
    """Bounds that 60 sound campaigns exceed about once in a million runs."""
    table = replicated(60, 1500, 0.3)
    assert (table["covers"] >= 0.75).all()
    assert (abs(table["effect"] - table["truth"]) < 6 * table["error"] / np.sqrt(60)).all(), table


def test_examples() -> None:
    assert doctest.testmod(module).failed == 0
