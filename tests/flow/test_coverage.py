"""The intervals of lift tables and metrics hold the truth of the campaign simulator as often as they say."""

import numpy as np
import pyarrow as pa
import pytest

from uplift_spark.causal.simulate import CampaignSimulator, effect_column
from uplift_spark.config import Economics
from uplift_spark.flow.aggregate import Plan, Ranking, add_rows, merge_cells, thresholds, unpacked
from uplift_spark.flow.evaluation import Arms, Evaluation, Setup, metric_table
from uplift_spark.flow.lift import lift_table
from uplift_spark.stats.moments import FixedPoint
from uplift_spark.stats.qini import rank_bins, true_curve

LEVEL, BINS, KEYS = "10%", 20, 1 << 20
VALUE, COST = {"conversion": 40.0, "revenue": 0.5}, {LEVEL: 0.3}
MANY = 400_000
METRICS = {"qini", "auuc", "autoc", "ate", "top_30_percent_uplift", "top_30_percent_minus_average"}


def model(table, seed):
    """A model's predictions: the true effect on conversion, blurred unit by unit."""
    rng = np.random.default_rng(seed)
    effect = table[effect_column("conversion", LEVEL)].to_numpy()
    return effect + rng.normal(0, 0.005, len(effect))


def evaluated(table, predicted, replicates):
    """`evaluate` without Spark, on the units of the control and of LEVEL."""
    arm = np.array(table["treatment"].to_pylist())
    mine = np.isin(arm, ["none", LEVEL])
    key = np.floor((predicted[mine] + 0.1) / 0.2 * KEYS).astype(np.int64)
    outcomes = [table[name].to_numpy()[mine].astype(float) for name in VALUE]
    n = int(mine.sum())
    rows = {
        "level": pa.array(np.zeros(n, np.int32)), "treated": (arm[mine] == LEVEL).astype(np.int32), "key": key,
        "unit_hash": np.random.default_rng(len(outcomes[0])).integers(-(2**63), 2**63, n, dtype=np.int64),
        "weight": np.ones(n), "value_0": outcomes[0], "value_1": outcomes[1], "predicted": predicted[mine],
    }  # fmt: skip
    found, mass = np.unique(key, return_counts=True)
    ranking = Ranking(thresholds(found[::-1], mass[::-1], BINS)[None])
    points = tuple(FixedPoint.of(1.0, float(np.abs(values).max())) for values in (*outcomes, predicted))
    plan = Plan((LEVEL,), points, replicates, 7)
    batches = merge_cells(add_rows([pa.RecordBatch.from_pydict(rows)], ranking, plan))
    sums = unpacked(pa.Table.from_batches(batches), BINS, plan)
    units = {name: int((arm == name).sum()) for name in ("none", LEVEL)}
    setup = Setup("none", tuple(VALUE), bins=BINS, replicates=replicates)
    return Evaluation((LEVEL,), setup, Arms(units, False, False, 1.0, (1.0, 1.0), {}), sums)


def truths(simulator):
    """{(outcome, figure): truth} of the model's ranking, over many units: METRICS, effects by decile."""
    table = simulator.units(MANY)
    order = np.argsort(-model(table, 1), kind="stable")
    share = rank_bins(np.ones(MANY), BINS)
    known = {}
    for outcome in VALUE:
        effect = table[effect_column(outcome, LEVEL)].to_numpy()[order]
        sums = np.bincount(share, weights=effect, minlength=BINS)
        curve = true_curve(np.bincount(share, minlength=BINS), sums)
        top = float(curve.at(np.array([0.3]))[0] / 0.3)
        average = float(curve.average_effect)
        figures = {
            "qini": curve.qini, "auuc": curve.auuc, "autoc": curve.autoc, "ate": average,
            "top_30_percent_uplift": top, "top_30_percent_minus_average": top - average,
        }  # fmt: skip
        deciles = sums.reshape(10, -1).sum(axis=1) / (MANY / 10)
        figures |= {f"decile {d + 1}": effect for d, effect in enumerate(deciles)}
        figures |= {
            f"roi {d + 1}": (effect * VALUE[outcome] - COST[LEVEL]) / COST[LEVEL] for d, effect in enumerate(deciles)
        }
        known |= {(outcome, name): float(value) for name, value in figures.items()}
    return known


def coverage(trials, units, replicates):
    """{figure: share of intervals that hold the truth}; deciles and outcomes together."""
    known, held = truths(CampaignSimulator(seed=1)), {}
    for seed in range(trials):
        table = CampaignSimulator(seed=1000 + seed).units(units)
        evaluation = evaluated(table, model(table, 2 + seed), replicates)
        metrics, lift = metric_table(evaluation), lift_table(evaluation, Economics(VALUE, COST))
        rows = [(r.outcome, r.metric, r.lower, r.upper) for r in metrics.itertuples() if r.metric in METRICS]
        for r in lift[lift["cut"] == "decile"].itertuples():
            rows.append((r.outcome, f"decile {r.bucket}", r.uplift_lower, r.uplift_upper))
            rows.append((r.outcome, f"roi {r.bucket}", r.roi_lower, r.roi_upper))
        for outcome, name, low, high in rows:
            key = (outcome, name.split(" ")[0])
            held.setdefault(key, []).append(low <= known[outcome, name] <= high)
    return {key: (float(np.mean(found)), len(found)) for key, found in held.items()}


def test_intervals_hold_the_simulators_truth():
    found = coverage(60, 20_000, 60)
    # 60 trials: three standard errors of .95 are .085; deciles count tenfold.
    assert all(share >= 0.865 for share, _ in found.values()), found
    assert all(0.91 <= found[outcome, "decile"][0] <= 0.985 for outcome in VALUE), found


@pytest.mark.simulation
def test_intervals_hold_the_simulators_truth_closely():
    found = coverage(500, 20_000, 200)
    print(found)
    assert all(0.93 <= share <= 0.97 for share, _ in found.values()), found
