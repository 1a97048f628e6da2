"""Campaigns that were no trial: what the naive, the centred and the doubly robust make of them.

    python tests/benchmarks/bench_confounded.py --draws 5 --rows 20000

Average effects and those of 10,000 units not trained on, of the generated trial `conf` and of the simulated campaign
(conversion; likely buyers get higher levels). `as if a trial` is the forest without centring, `centred` takes out what
features explain of the outcome first, `by odds` weighs by the inverse of cross-fitted odds, `scores` is trained on
doubly robust scores from cross-fitted nuisances, as `uplift nuisances` has it; the average of the last is that of the
scores, elsewhere that of the effects. If EconML can be imported, its `CausalForestDML` with as many trees and boosted
nuisances meets the same draws, its average being that over the training rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from uplift_spark import CausalForest, MetaLearner, Roles
from uplift_spark.events.simulate import ATTRIBUTES, CampaignSimulator, conf, effect_column
from uplift_spark.forest.binning import fit_bins
from uplift_spark.learners.nuisances import crossfit, features_of, sample_table
from uplift_spark.stats.aipw import averages_of
from uplift_spark.stats.offpolicy import doubly_robust
from uplift_spark.stats.sampling import unit_hashes

HELD_OUT, MIN_PROPENSITY = 10_000, 0.01
Draw = tuple[pd.DataFrame, pd.DataFrame, Roles, np.ndarray]  # training rows, new rows, roles, true effects of these


def generated(rows: int, seed: int) -> Draw:
    """`conf`, treatment by one feature that the outcome rises with."""

    def frame(n: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
        simulated = conf(n, seed)
        columns = {f"x{j}": column for j, column in enumerate(simulated.X.T)}
        return pd.DataFrame(
            {"unit": np.arange(n), "w": simulated.w.astype(str), "y": simulated.y, **columns}
        ), simulated.tau

    train, (new, true) = frame(rows, seed)[0], frame(HELD_OUT, 10_000 + seed)
    return train, new, Roles("unit", "w", "y", tuple(f"x{j}" for j in range(20)), "0"), true


def campaign(rows: int, seed: int) -> Draw:
    """The simulator's, two discounts."""
    simulator = CampaignSimulator("ordered", 3, confounding=0.8, seed=seed)
    units = simulator.units(rows + HELD_OUT).to_pandas()
    true = units[[effect_column("conversion", level) for level in simulator.levels.treated]].to_numpy()
    dose = dict(zip(simulator.levels.names, simulator.levels.doses or (), strict=True))
    roles = Roles("unit_id", "treatment", "conversion", ATTRIBUTES, "none", dose)
    return units.iloc[:rows], units.iloc[rows:], roles, true[rows:]


def scored(train: pd.DataFrame, roles: Roles) -> tuple[pd.DataFrame, Roles, np.ndarray]:
    """Training rows with scores, roles that say so, and the average effects by these."""
    table = pa.Table.from_pandas(train[list(roles.columns)], preserve_index=False)
    sample = sample_table(table, roles, (5, 7), len(train))
    arrays = (sample.features, sample.level_code, sample.outcome, sample.key, sample.spec)
    nuisances = crossfit(*arrays)
    propensity = np.maximum(nuisances.propensity, MIN_PROPENSITY)
    own = propensity[np.arange(len(propensity)), sample.level_code]
    scores = doubly_robust(sample.outcome, sample.level_code, 1 / own, nuisances.outcome_mean)
    average = averages_of(sample.outcome, sample.level_code, nuisances.outcome_mean, propensity).estimate[:, 0]
    order = np.argsort(unit_hashes(table.column(roles.unit), roles.unit).view(np.int64))
    maps = [dict(zip(sample.spec.levels, row, strict=True)) for row in scores.tolist()]
    return train.iloc[order].assign(dr=maps, p=own), replace(roles, scores="dr"), np.asarray(average)


def compared(draw: Draw) -> Iterator[tuple[str, np.ndarray, np.ndarray, float]]:
    """(method, average effects [L], effects of the new rows [n, L], seconds)."""
    train, new, roles, _ = draw

    def effects_of(model: Any) -> np.ndarray:
        flat = model.effect(new)["uplift"].to_numpy()
        return np.asarray(flat.reshape(len(new), -1))

    def fitted(learner: Any) -> tuple[np.ndarray, np.ndarray]:
        effects = effects_of(learner.fit(train, roles))
        return effects.mean(axis=0), effects

    arms = train.groupby(roles.treatment)[roles.outcome].mean()
    began = time.monotonic()
    model = CausalForest(centre=False).fit(train, roles)
    took, effects = time.monotonic() - began, effects_of(model)
    apart = arms[list(model.levels.treated)].to_numpy() - arms[roles.control]
    yield "difference of means", apart, np.tile(apart, (len(new), 1)), 0.0
    yield "forest as if a trial", effects.mean(axis=0), effects, took
    methods: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
        "T-learner": lambda: fitted(MetaLearner("t_learner", 0)),
        "forest, centred": lambda: fitted(CausalForest()),
    }
    for name, method in methods.items():
        began = time.monotonic()
        yield name, *method(), time.monotonic() - began
    began = time.monotonic()
    rows, by_scores, average = scored(train, roles)
    weighed = effects_of(CausalForest().fit(rows, replace(roles, propensity="p")))
    yield "forest by odds", weighed.mean(axis=0), weighed, time.monotonic() - began
    yield "forest on scores", average, effects_of(CausalForest().fit(rows, by_scores)), time.monotonic() - began
    began = time.monotonic()
    yield "DR-learner", average, effects_of(MetaLearner("dr_learner", 0).fit(rows, by_scores)), time.monotonic() - began
    if find_spec("econml"):
        began = time.monotonic()
        yield "EconML's forest", *by_econml(draw), time.monotonic() - began


def by_econml(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """(average effects, effects of the new rows) of its causal forest, 200 trees, nuisances as in `bench_doses`."""
    from econml.dml import CausalForestDML
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    train, new, roles, _ = draw
    bins = fit_bins(pa.Table.from_pandas(train), roles.features, 254)
    rows, unseen = (features_of(pa.Table.from_pandas(frame), bins) for frame in (train, new))
    middle = np.nanmedian(rows, axis=0)
    rows, unseen = (np.where(np.isnan(x), middle, x) for x in (rows, unseen))
    trees = {"max_iter": 75, "max_leaf_nodes": 8}
    nuisances = {"model_y": HistGradientBoostingRegressor(**trees), "model_t": HistGradientBoostingClassifier(**trees)}
    model = CausalForestDML(**nuisances, discrete_treatment=True, n_estimators=200, cv=3, random_state=1)
    levels = [roles.control, *sorted(set(train[roles.treatment]) - {roles.control})]
    level_code = train[roles.treatment].map({level: level_code for level_code, level in enumerate(levels)}).to_numpy()
    model.fit(train[roles.outcome].to_numpy(), level_code, X=rows)
    effects = [model.effect(unseen, T0=0, T1=level_code) for level_code in range(1, len(levels))]
    averages = [float(model.ate(rows, T0=0, T1=level_code)) for level_code in range(1, len(levels))]
    order = [levels[1:].index(level) for level in (roles.dose or dict.fromkeys(levels)) if level != roles.control]
    return np.array(averages)[order], np.column_stack(effects)[:, order]


def main() -> None:
    """Print a table for each source of draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--only", choices=("conf", "campaign"))
    arguments, out = parser.parse_args(), Console(width=120)
    for name, draw in (("conf", generated), ("campaign", campaign)):
        if arguments.only not in (None, name):
            continue
        results: dict[str, list[tuple[float, float, float]]] = {}
        for seed in range(arguments.draws):
            data = draw(arguments.rows, seed)
            true = data[3]
            for method, average, effects, seconds in compared(data):
                bias = float((average - true.mean(axis=0)).mean())
                rmse = float(np.sqrt(((effects - true) ** 2).mean()))
                results.setdefault(method, []).append((bias, rmse, seconds))
            out.print(f"{name}: draw {seed + 1} of {arguments.draws}")
        table = Table("method", "bias of the average", "+-", "RMSE of effects", "+-", "seconds")
        for method, rows in results.items():
            mean, error = np.mean(rows, axis=0), np.std(rows, axis=0) / np.sqrt(max(arguments.draws - 1, 1))
            figures = (f"{mean[0]:+.5f}", f"{error[0]:.5f}", f"{mean[1]:.5f}", f"{error[1]:.5f}", f"{mean[2]:.1f}")
            table.add_row(method, *figures)
        out.print(
            f"{name}, {arguments.rows:,} rows, {arguments.draws} draws; "
            f"true average {true.mean():.4f}, spread {true.std():.4f}"
        )
        out.print(table)


if __name__ == "__main__":
    main()
