"""Effects against the truth: error, correlation, share of the best possible Qini, coverage, per trial, size and level.

    make bench ONLY=truth                             # simulated campaigns and the generated trials of the literature
    python tests/benchmarks/bench_truth.py --trials rct conv --sizes 10000 100000 --seeds 3

One process, no Spark: the forest is the same, byte for byte. Effects are judged on 50,000 units not trained on.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from uplift_spark.events.simulate import ATTRIBUTES, BENCHMARKS, CampaignSimulator, effect_column
from uplift_spark.forest.effects import Z95
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.roles import Roles
from uplift_spark.stats.curves import true_curve

CAMPAIGNS = {"binary": 2, "ordered": 3, "unordered": 4}
GENERATED = ("rct", "conf", "conv", "multi", "mconv")
HELD_OUT = 50_000
SimulatedData = tuple[pa.Table, np.ndarray, Roles]


def campaign(design: str, n: int, seed: int) -> SimulatedData:
    """n units of a simulated campaign, true effects [n, K-1], roles."""
    simulator = CampaignSimulator(design, CAMPAIGNS[design], seed=seed)
    units, levels = simulator.units(n), simulator.levels
    dose = dict(zip(levels.names, levels.doses, strict=True)) if levels.doses and design == "ordered" else None
    tau = [units.column(effect_column("conversion", level)).to_numpy() for level in levels.treated]
    return units, np.column_stack(tau), Roles("unit_id", "treatment", "conversion", ATTRIBUTES, levels.control, dose)


def generated(name: str, n: int, seed: int) -> SimulatedData:
    """n units of a generated trial, as `campaign`; levels beyond two are ordered."""
    trial = BENCHMARKS[name](n, seed)
    features = {f"x{j}": column for j, column in enumerate(trial.X.T)}
    units = pa.table({"unit": np.arange(n), "w": trial.w, "y": trial.y, **features})
    levels = trial.tau.shape[1] + 1
    dose = {str(k): float(k) for k in range(levels)} if levels > 2 else None
    return units, trial.tau, Roles("unit", "w", "y", tuple(features), "0", dose)


TRIALS = {d: partial(campaign, d) for d in CAMPAIGNS} | {g: partial(generated, g) for g in GENERATED}
SIZES = {t: (20_000, 200_000) if t in CAMPAIGNS else (10_000, 100_000) for t in TRIALS}


def qini_of(score: np.ndarray, tau: np.ndarray) -> float:
    """True Qini of ranking by `score`."""
    return float(true_curve(np.ones(tau.size), tau[np.argsort(-score, kind="stable")]).qini)


def figures(trial: str, n: int, seed: int) -> list[tuple[str, list[float]]]:
    """Per treated level: [sd of the truth, RMSE, correlation, share of the best Qini, coverage, seconds, buckets]."""
    units, truth, roles = TRIALS[trial](n + HELD_OUT, seed)
    started = time.monotonic()
    forest = fit_table(units.slice(0, n), roles, Params(seed=seed))
    seconds = time.monotonic() - started
    effect, se, _ = forest.effect_arrays(units.slice(n), os.cpu_count() or 1)
    rows = []
    for k, level in enumerate(forest.levels.treated):
        tau, effect_k = truth[n:, k], effect[:, k]
        rmse = float(np.sqrt(np.mean((effect_k - tau) ** 2)))
        share, correlation = qini_of(effect_k, tau) / qini_of(tau, tau), np.corrcoef(effect_k, tau)[0, 1]
        covered = float((np.abs(effect_k - tau) < Z95 * se[:, k]).mean())
        rows.append((level, [tau.std(), rmse, correlation, share, covered, seconds, forest.plan.n_buckets]))
    return rows


def parsed() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--sizes", type=int, nargs="+", help="training units; each trial has its own by default")
    parser.add_argument("--seeds", type=int, default=3)
    return parser.parse_known_args()[0]


def main() -> None:
    """Print one row per trial, size and level; means over seeds, the spread of RMSE and Qini share beside them."""
    arguments = parsed()
    names = ("trial", "units", "level", "sd of truth", "RMSE", "corr", "of best Qini", "coverage", "fit s", "buckets")
    table = Table(*names, box=None)
    for trial in arguments.trials:
        for n in arguments.sizes or SIZES[trial]:
            results = [figures(trial, n, seed) for seed in range(1, arguments.seeds + 1)]
            for i, (level, _) in enumerate(results[0]):
                values = np.array([one[i][1] for one in results])
                (sd, rmse, corr, share, covered, seconds, buckets), spread = values.mean(axis=0), values.std(axis=0)
                cells = [f"{sd:.4f}", f"{rmse:.4f} ± {spread[1]:.4f}", f"{corr:.2f}", f"{share:.2f} ± {spread[3]:.2f}"]
                table.add_row(trial, f"{n:,}", level, *cells, f"{covered:.2f}", f"{seconds:.1f}", f"{buckets:.0f}")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
