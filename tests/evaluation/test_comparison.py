"""One pass from a hold-out to every model's value and cost curve: against plain numpy, and true intervals."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from uplift_spark.evaluation.comparison import Rules, Values, add_values, all_values
from uplift_spark.stats.intervals import bootstrap_interval
from uplift_spark.stats.offpolicy import choice, doubly_robust, prices

COST = np.array([1.0, 2.5])
PRICE = 0.05
FRAME = (
    "unit_hash bigint, level_code int, outcome double, weight double, outcome_mean array<double>, "
    "effects_0 array<double>, effects_1 array<double>"
)


def trial(n, rng, propensity=(0.5, 0.3, 0.2)):
    """(rows, true effects [n, 2]): a binary outcome, odds that depend on x, a good and a poor model of the effects."""
    x = rng.random(n)
    effect = np.column_stack([0.3 * (x - 0.3), 0.5 * (x - 0.5)])
    tilt = np.column_stack([np.ones(n), 0.5 + x, 1.5 - x]) * propensity
    tilt /= tilt.sum(axis=1, keepdims=True)
    level_code = (tilt.cumsum(axis=1) < rng.random(n)[:, None]).sum(axis=1)
    base = 0.3 + 0.2 * x
    outcome = (rng.random(n) < base + np.column_stack([np.zeros(n), effect])[np.arange(n), level_code]).astype(float)
    good, poor = effect + rng.normal(0, 0.02, (n, 2)), rng.normal(0.02, 0.1, (n, 2))
    rows = {
        "unit_hash": rng.integers(-(2**62), 2**62, n),
        "level_code": level_code.astype(np.int32),
        "outcome": outcome,
        "weight": 1 / tilt[np.arange(n), level_code],
        "outcome_mean": np.column_stack([base, base, base]) + 0.05,  # off, which scores must survive
        "effects_0": good,
        "effects_1": poor,
    }
    return rows, effect


def arrow(rows):
    return pa.RecordBatch.from_pydict({k: pa.array(v if v.ndim == 1 else list(v)) for k, v in rows.items()})


def rules_for(rows, replicates, points=8):
    price_grids = tuple(
        np.unique(np.r_[prices(rows[name], COST, points), PRICE])[::-1] for name in ("effects_0", "effects_1")
    )
    return Rules(COST, PRICE, price_grids, (float(rows["weight"].max()), 1.0), replicates, 7)


def values_of(rows, rules):
    (batch,) = add_values(rules, [arrow(rows)])
    return [Values.of(np.frombuffer(sums.as_py(), "<i8"), rules, m) for m, sums in enumerate(batch.column("sums"))]


def test_sums_equal_plain_numpy():
    rows, _ = trial(3000, np.random.default_rng(3))
    rules = rules_for(rows, 5)
    scores = doubly_robust(rows["outcome"], rows["level_code"], rows["weight"], rows["outcome_mean"])
    for m, one in enumerate(values_of(rows, rules)):
        effects, every = rows[f"effects_{m}"], np.arange(3000)
        for b, price in enumerate(rules.prices[m]):
            chosen = choice(effects, COST, price)
            assert one.curve.gain[0, b + 1] == pytest.approx((scores[every, chosen] - scores[:, 0]).mean(), abs=1e-7)
            assert one.curve.cost[0, b + 1] == pytest.approx(np.r_[0, COST][chosen].mean(), abs=1e-9)
        chosen = choice(effects, COST, PRICE)
        means = [
            np.average(rows["outcome"][mine], weights=rows["weight"][mine])
            for mine in ((chosen > 0) & (rows["level_code"] == arm) for arm in (chosen, 0))
        ]
        ipw = (chosen > 0).mean() * (means[0] - means[1])
        assert one.figures(1.0)["policy_value_ipw"][0] == pytest.approx(ipw, abs=1e-7)
        assert one.average[0] == pytest.approx((scores[:, 1:] - scores[:, :1]).mean(axis=0), abs=1e-7)


def test_parts_add_up_to_the_same_bits_in_spark(spark):
    rows, _ = trial(2000, np.random.default_rng(5))
    rules = rules_for(rows, 10)
    alone = values_of(rows, rules)
    listed = [[v.tolist() for v in row] for row in zip(*rows.values(), strict=True)]
    for partitions in (1, 7):
        frame = spark.createDataFrame(listed, FRAME).repartition(partitions)
        for one, other in zip(all_values(frame, rules), alone, strict=True):
            assert np.array_equal(one.sums, other.sums)


def coverage(trials, n, replicates=100):
    """Shares of intervals that hold the truth: figures of the first model, and its difference from the other."""
    many, effect = trial(400_000, np.random.default_rng(10))
    rules = replace(rules_for({k: v[:5000] for k, v in many.items()}, replicates), largest=(1 / 0.05, 1.0))
    gains = np.column_stack([np.zeros(len(effect)), effect])

    def truth(m, price):
        chosen = choice(many[f"effects_{m}"], COST, price)
        return gains[np.arange(len(chosen)), chosen].mean(), np.r_[0, COST][chosen].mean()

    gain, cost = np.array([(0.0, 0.0), *(truth(0, price) for price in rules.prices[0])]).T
    area = (np.diff(cost) * (gain[1:] + gain[:-1]) / 2).sum() + (1.0 - cost[-1]) * gain[-1]
    value, poor = (truth(m, PRICE)[0] for m in range(2))
    real = {"policy_value_dr": value, "policy_value_ipw": value, "multi_arm_auuc": area}
    held = dict.fromkeys([*real, "difference"], 0)
    for seed in range(trials):
        one, other = (v.figures(1.0) for v in values_of(trial(n, np.random.default_rng([9, seed]))[0], rules))
        pair = [figures["policy_value_dr"] for figures in (one, other)]
        figures = {name: (*one[name], real[name]) for name in real}
        figures["difference"] = (pair[0][0] - pair[1][0], pair[0][1] - pair[1][1], value - poor)
        for name, (estimate, draws, known) in figures.items():
            low, high = bootstrap_interval(estimate, draws)
            held[name] += low <= known <= high
    return {name: count / trials for name, count in held.items()}


def test_intervals_hold_the_truth():
    result = coverage(200, 1000)
    assert all(0.90 <= share <= 0.99 for share in result.values()), result  # 200 trials: three errors are 0.046


@pytest.mark.simulation
def test_intervals_hold_the_truth_closely():
    result = coverage(2000, 2000, 200)
    print(result)
    assert all(0.93 <= share <= 0.97 for share in result.values()), result
