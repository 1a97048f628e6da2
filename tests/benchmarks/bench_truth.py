"""Effects against the simulator's truth: error, correlation, and share of the best possible Qini, per design and size.

    make bench                                   # 20,000 and 200,000 training units
    python tests/benchmarks/bench_truth.py --sizes 20000 --seeds 3

One process, no Spark: the forest is the same, byte for byte. Effects are judged on 50,000 units not trained on.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from uplift_spark.causal.simulate import ATTRIBUTES, CampaignSimulator, effect_column
from uplift_spark.causal.training import Params, fit_table
from uplift_spark.vocabulary import Roles

DESIGNS = {"binary": 2, "ordered": 3, "unordered": 4}
HELD_OUT = 50_000


def qini_of(score: np.ndarray, tau: np.ndarray) -> float:
    """True Qini per unit of ranking by `score` when `tau` is the true effect: area over the random line."""
    gain = np.cumsum(tau[np.argsort(-score, kind="stable")]) / tau.size
    return float(gain.mean() - gain[-1] / 2)


def figures(design: str, n: int, seed: int) -> list[tuple[str, list[float]]]:
    """Per treated level: [spread of the truth, RMSE, correlation, share of the best Qini, coverage, seconds]."""
    simulator = CampaignSimulator(design, DESIGNS[design], seed=seed)
    units, levels = simulator.units(n + HELD_OUT), simulator.levels
    dose = dict(zip(levels.names, levels.doses, strict=True)) if design == "ordered" and levels.doses else None
    roles = Roles("unit_id", "treatment", "conversion", ATTRIBUTES, levels.control, dose)
    started = time.monotonic()
    forest = fit_table(units.slice(0, n), roles, Params(seed=seed))
    seconds = time.monotonic() - started
    held_out = units.slice(n)
    effect, se, _ = forest.effect_arrays(held_out, os.cpu_count() or 1)
    rows = []
    for k, level in enumerate(forest.levels.treated):
        tau, found = held_out.column(effect_column("conversion", level)).to_numpy(), effect[:, k]
        rmse = float(np.sqrt(np.mean((found - tau) ** 2)))
        share = qini_of(found, tau) / qini_of(tau, tau)
        covered = float((np.abs(found - tau) < 1.96 * se[:, k]).mean())
        rows.append((level, [tau.std(), rmse, np.corrcoef(found, tau)[0, 1], share, covered, seconds]))
    return rows


def main() -> None:
    """Print one row per design, size and level; means over seeds, the spread of the Qini share beside it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--seeds", type=int, default=3)
    arguments, _ = parser.parse_known_args()
    names = ("design", "units", "level", "sd of truth", "RMSE", "corr", "of best Qini", "±", "coverage", "fit s")
    table = Table(*names, box=None)
    for design in DESIGNS:
        for n in arguments.sizes:
            found = [figures(design, n, seed) for seed in range(1, arguments.seeds + 1)]
            for i, (level, _) in enumerate(found[0]):
                values = np.array([one[i][1] for one in found])
                sd, rmse, corr, share, covered, seconds = values.mean(axis=0)
                cells = [f"{sd:.4f}", f"{rmse:.4f}", f"{corr:.2f}", f"{share:.2f}", f"{values[:, 3].std():.2f}"]
                table.add_row(design, f"{n:,}", level, *cells, f"{covered:.2f}", f"{seconds:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
