"""Treatments that are no two arms: which basis wins where, on generated trials and on two real campaigns.

    make bench ONLY=doses                             # all tables; the real ones where $UPLIFT_DATA is set
    python tests/benchmarks/bench_doses.py curved products --rows 10000 --draws 5

EconML's closest joins in where that is installed (the extra bench). Errors and coverage are of effects on 5,000 units
not trained on, all doses or levels together. `vouchers` trains on the exact amounts and on the levels whose bins hold
them, and has each forest choose who gets how much: what its plan is worth beside the best one. Real tables: average
effects of Thornton's (2008) incentives to learn a
test result, by amount; price elasticities of orange juice in the Dominick's store panel, which nobody randomised, as
the rows are and with what brand and promotion tell of price and sales taken out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.effects import Z95
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.learners.nuisances import NuisanceSpec, crossfit_residuals
from uplift_spark.roles import DoseBins, Roles, levels_at_doses
from uplift_spark.stats.sampling import unit_hashes

HELD_OUT = 5000
DOSES = (2.0, 5.0, 10.0)
PACKAGES = {f"{a}/{b}": (a, b) for a in range(3) for b in range(3)}
Effects = Callable[[pd.DataFrame], np.ndarray]  # true effects [n, L]
EffectArrays = tuple[np.ndarray, np.ndarray]  # effects and errors [n, L]


def steep(x: pd.Series) -> pd.Series:
    """A step from 1 to 2 at one third (Wager & Athey 2018, equation 28)."""
    return 1 + 1 / (1 + np.exp(-20 * (x - 1 / 3)))


def units(n: int, rng: np.random.Generator, p: int = 6) -> pd.DataFrame:
    """Features in [0, 1]."""
    return pd.DataFrame(rng.random((n, p))).add_prefix("x").assign(unit=np.arange(n))


def features(frame: pd.DataFrame) -> tuple[str, ...]:
    """Columns that are features."""
    return tuple(name for name in frame.columns if name.startswith("x"))


def dosed(n: int, rng: np.random.Generator, curve: Callable[[np.ndarray], np.ndarray]) -> tuple[pd.DataFrame, Effects]:
    """A third gets nothing, the others a gamma dose; effects are steep(x0) steep(x1) curve(dose)."""
    frame = units(n, rng)
    frame["w"] = rng.gamma(2, 2.5, n) * (rng.random(n) > 1 / 3)
    per_unit = steep(frame.x0) * steep(frame.x1)
    frame["y"] = 2 * frame.x2 - 1 + per_unit * curve(frame.w) + rng.normal(size=n)
    return frame, lambda new: np.outer(steep(new.x0) * steep(new.x1), curve(np.array(DOSES)))


def packaged(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, Effects]:
    """Five packages without order, each for units of its own, and no package."""
    frame = units(n, rng)
    code = rng.integers(0, 6, n)

    def effects(new: pd.DataFrame) -> np.ndarray:
        return np.column_stack([steep(new[f"x{k}"]) - 1 for k in range(5)])

    own = np.column_stack([np.zeros(n), effects(frame)])[np.arange(n), code]
    return frame.assign(w=code.astype(str), y=2 * frame.x5 - 1 + own + rng.normal(size=n)), effects


def crossed(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, Effects]:
    """Two products in three doses each, better together where x1 is large."""
    frame = units(n, rng)
    a, b = rng.integers(0, 3, n), rng.integers(0, 3, n)

    def effect(new: pd.DataFrame, a: object, b: object) -> object:
        return 0.3 * steep(new.x0) * a + 0.2 * b + 0.3 * (steep(new.x1) - 1) * a * b

    frame["w"] = pd.Series(a).astype(str) + "/" + pd.Series(b).astype(str)
    frame["y"] = 2 * frame.x2 - 1 + effect(frame, a, b) + rng.normal(size=n)
    names = [name for name in sorted(PACKAGES) if name != "0/0"]
    return frame, lambda new: np.column_stack([effect(new, *PACKAGES[name]) for name in names])


def by_forest(frame: pd.DataFrame, new: pd.DataFrame, roles: Roles, params: Params) -> tuple[EffectArrays, str]:
    """Effects by level name, and the basis that was taken."""
    forest = fit_table(pa.Table.from_pandas(frame), roles, params)
    effect, error, _ = forest.effect_arrays(pa.Table.from_pandas(new), os.cpu_count() or 1)
    order = np.argsort(forest.levels.treated) if not roles.grid else np.arange(len(DOSES))
    return (effect[:, order], error[:, order]), forest.plan.criterion


def per_level(frame: pd.DataFrame, new: pd.DataFrame, roles: Roles) -> EffectArrays:
    """Effects of one binary forest per level."""
    results = []
    for level in sorted(set(frame.w) - {roles.control}):
        pair = frame[frame.w.isin([level, roles.control])]
        results.append(by_forest(pair, new, replace(roles, dose=None), Params())[0])
    return tuple(np.column_stack(part) for part in zip(*results, strict=True))  # type: ignore[return-value]


def by_econml(name: str, frame: pd.DataFrame, new: pd.DataFrame) -> EffectArrays:
    """EconML's closest: its causal forest on residuals, with 200 trees and boosted nuisances, of the dose, of its
    splines, of indicators of packages, of two doses and their product."""
    from econml.dml import CausalForestDML
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
    from sklearn.multioutput import MultiOutputRegressor
    from sklearn.preprocessing import PolynomialFeatures, SplineTransformer

    trees, boosted = {"max_iter": 75, "max_leaf_nodes": 8}, HistGradientBoostingRegressor
    nuisance_models: dict[str, object] = {"model_t": MultiOutputRegressor(boosted(**trees))}
    x, targets, treatment = list(features(frame)), [np.array([[dose]]) for dose in DOSES], frame[["w"]].to_numpy()
    base = np.array([[0.0]])
    if name == "curved":
        nuisance_models["treatment_featurizer"] = SplineTransformer(n_knots=5, degree=3, include_bias=False)
    if name == "packages":
        nuisance_models = {"model_t": HistGradientBoostingClassifier(**trees), "discrete_treatment": True}
        targets, base = [np.array([[level]]) for level in sorted(set(frame.w) - {"0"})], np.array([["0"]])
    if name == "products":
        nuisance_models["treatment_featurizer"] = PolynomialFeatures(interaction_only=True, include_bias=False)
        treatment = np.array([PACKAGES[level] for level in frame.w], float)
        targets = [np.array([PACKAGES[level]], float) for level in sorted(PACKAGES) if level != "0/0"]
        base = np.array([[0.0, 0.0]])
    model = CausalForestDML(model_y=boosted(**trees), n_estimators=200, cv=3, random_state=1, **nuisance_models)
    model.fit(frame.y.to_numpy(), treatment, X=frame[x].to_numpy())
    results = []
    for dose in targets:
        sides = {"T0": np.repeat(base, len(new), axis=0), "T1": np.repeat(dose, len(new), axis=0)}
        if name == "packages":
            sides = {side: values.ravel() for side, values in sides.items()}
        low, high = model.effect_interval(new[x].to_numpy(), **sides)
        results.append([(low + high).ravel() / 2, (high - low).ravel() / (2 * Z95)])
    effect, error = (np.column_stack(part) for part in zip(*results, strict=True))
    return effect, error


def contenders(name: str, frame: pd.DataFrame) -> dict[str, tuple[Roles, str | None]]:
    """{what: (roles, criterion)} of a trial; None: by the data."""
    roles = Roles("unit", "w", "y", features(frame), "0")
    if name in ("straight", "curved"):
        dose = replace(roles, grid=DOSES)
        return {"by the data": (dose, None), "slope": (dose, "slope"), "spline": (dose, "spline")}
    if name == "packages":
        ordered = replace(roles, dose={str(k): k for k in range(6)})
        return {"by the data": (roles, None), "slope of their numbers": (ordered, "slope")}
    crossed_roles = replace(roles, control="0/0", dose=PACKAGES)
    return {"by the data": (crossed_roles, None), "one-hot": (replace(crossed_roles, dose=None), "one_hot")}


TRIALS: dict[str, Callable[[int, np.random.Generator], tuple[pd.DataFrame, Effects]]] = {
    "straight": lambda n, rng: dosed(n, rng, lambda w: w / 5),
    "curved": lambda n, rng: dosed(n, rng, lambda w: 2 * (1 - np.exp(-w / 3))),
    "packages": packaged,
    "products": crossed,
}


def generated(name: str, rows: int, draws: int, out: Console) -> None:
    """Print error and coverage of every contender on a trial."""
    by_package: dict[str, list[tuple[float, float]]] = {}
    chosen = set()
    for seed in range(draws):
        frame, effects = TRIALS[name](rows, np.random.default_rng(seed))
        new = units(HELD_OUT, np.random.default_rng(1000 + seed))
        true, results = effects(new), {}
        for what, (roles, criterion) in contenders(name, frame).items():
            results[what], basis = by_forest(frame, new, roles, Params(criterion=criterion))
            chosen |= {basis} if criterion is None else set()
        if name in ("packages", "products"):
            results["one forest per level"] = per_level(
                frame, new, Roles("unit", "w", "y", features(frame), min(frame.w))
            )
        if find_spec("econml"):
            results["EconML's closest"] = by_econml(name, frame, new)
        for what, (effect, error) in results.items():
            covered = float((np.abs(effect - true) < Z95 * error).mean())
            by_package.setdefault(what, []).append((float(np.sqrt(((effect - true) ** 2).mean())), covered))
    table = Table("basis", "RMSE", "covered", title=f"{name}: {rows:,} rows, {draws} draws; taken: {', '.join(chosen)}")
    for what, figures in by_package.items():
        rmse, covered = np.mean(figures, axis=0)
        table.add_row(what, f"{rmse:.4f}", f"{covered:.3f}")
    out.print(table)


VOUCHERS = (1.0, 2.0, 3.0)  # dollars; one costs a dollar


def vouchered(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, Effects]:
    """A fifth gets nothing, the others up to three dollars; more bring less and less, in different units at once."""
    frame = units(n, rng)
    frame["w"] = 3.0 * rng.random(n) * (rng.random(n) > 0.2)

    frame["y"] = 2 * frame.x2 - 1 + 3.0 * steep(frame.x0) * (1.0 - np.exp(-frame.w / 1.5)) + rng.normal(size=n)
    return frame, lambda new: np.outer(3.0 * steep(new.x0), 1.0 - np.exp(-np.array(VOUCHERS) / 1.5))


def plan_value(effect: np.ndarray, true: np.ndarray) -> float:
    """What a unit brings after costs, on average, where each gets the amount of which `effect` [n, L] says the most."""
    net, brought = (np.column_stack([np.zeros(len(one)), one - np.array(VOUCHERS)]) for one in (effect, true))
    return float(brought[np.arange(len(net)), net.argmax(axis=1)].mean())


def vouchers(rows: int, draws: int, out: Console) -> None:
    """Print error and coverage of effects, and what plans by them are worth, of exact doses and of levels."""
    dose = Roles("unit", "w", "y", features(units(1, np.random.default_rng(0))), "0", grid=VOUCHERS)
    levels = levels_at_doses("0", VOUCHERS)
    bins, numbers = DoseBins.around(levels), dict(zip(levels.names, levels.doses or (), strict=True))
    level = replace(dose, grid=())
    figures: dict[str, list[tuple[float, ...]]] = {}
    chosen: set[str] = set()
    for seed in range(draws):
        frame, effects = vouchered(rows, np.random.default_rng(seed))
        binned = frame.assign(w=[bins.level(one) for one in frame.w])
        new = units(HELD_OUT, np.random.default_rng(1000 + seed))
        true = effects(new)
        for what, (data, roles) in {
            "exact doses": (frame, dose),
            "levels, ordered": (binned, replace(level, dose=numbers)),
            "levels, unordered": (binned, level),
        }.items():
            (effect, error), basis = by_forest(data, new, roles, Params())
            chosen |= {basis} if what == "exact doses" else set()
            rmse, held = np.sqrt(((effect - true) ** 2).mean()), (np.abs(effect - true) < Z95 * error).mean()
            figures.setdefault(what, []).append((rmse, held, plan_value(effect, true)))
        same = [plan_value(np.tile(np.eye(3)[k] * 9, (len(true), 1)), true) for k in range(3)]
        figures.setdefault("best amount for all", []).append((np.nan, np.nan, max(same)))
        figures.setdefault("oracle", []).append((0.0, np.nan, plan_value(true, true)))
    best = np.mean([one[2] for one in figures["oracle"]])
    title = f"vouchers: {rows:,} rows, {draws} draws; taken of exact doses: {', '.join(sorted(chosen))}"
    table = Table("learned from", "RMSE", "covered", "plan brings", "of the oracle's", title=title)
    for what, drawn in figures.items():
        rmse, held, value = np.mean(drawn, axis=0)
        cells = ["-" if np.isnan(one) else f"{one:.3f}" for one in (rmse, held)]
        table.add_row(what, *cells, f"{value:.3f}", f"{value / best:.1%}")
    out.print(table)


def average(forest: Forest, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Average effects over the rows and their errors, [L] each."""
    bins = apply_bins(pa.Table.from_pandas(frame), forest.plan.bins)
    mean, covariance = forest.averages(bins)
    return mean[0], np.sqrt(np.diag(covariance[0]))


def thornton(out: Console) -> None:
    """Attendance by incentive; households of a village are drawn together."""
    frame = pd.read_stata(Path(os.environ["UPLIFT_DATA"]) / "thornton_hiv" / "thornton_hiv.dta")
    frame = frame.dropna(subset=["got", "tinc", "villnum"]).reset_index(names="unit")
    frame["villnum"] = frame["villnum"].astype(int)
    doses = (0.1, 0.5, 1.0, 2.0, 3.0)
    roles = Roles("unit", "tinc", "got", ("age", "distvct", "hiv2004"), "0", grid=doses, cluster="villnum")
    table = Table("incentive, USD", "more who came, line", "spline", title=f"Thornton: {len(frame):,} people, villages")
    columns, reason = [], ""
    for criterion in ("slope", "spline"):
        forest = fit_table(pa.Table.from_pandas(frame), roles, Params(criterion=criterion))
        mean, error = average(forest, frame)
        low, high = mean - Z95 * error, mean + Z95 * error
        columns.append([f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(mean, low, high, strict=True)])
    reason = fit_table(pa.Table.from_pandas(frame), roles, Params()).plan.reason
    for dose, line, spline in zip(doses, *columns, strict=True):
        table.add_row(f"{dose:g}", line, spline)
    out.print(table)
    out.print(f"by the data: {reason}")


def dominicks(out: Console) -> None:
    """Price elasticities by brand and promotion: naive, and of what brand and promotion leave of price and sales."""
    frame = pd.read_csv(Path(os.environ["UPLIFT_DATA"]) / "dominicks_oj" / "oj.csv.gz").rename(columns={"No": "unit"})
    frame["w"], frame["y"] = np.log(frame.price), np.log(frame.sales)
    codes = np.column_stack([frame.brand.astype("category").cat.codes, frame.feat]).astype(float)
    key = unit_hashes(pa.array(frame.unit), "unit")
    spec = NuisanceSpec(("0", "1"), np.array([True, False]))
    left = frame.assign(
        w=crossfit_residuals(codes, frame.w.to_numpy(), key, spec),
        y=crossfit_residuals(codes, frame.y.to_numpy(), key, spec),
    )
    columns = {}
    for what, data in {"as they are": frame.assign(w=frame.w - frame.w.mean()), "centred": left}.items():
        roles = Roles("unit", "w", "y", ("brand", "feat"), "0", grid=(1.0,))
        forest = fit_table(pa.Table.from_pandas(data), roles, Params(criterion="slope"))
        columns[what] = {
            (brand, feat): average(forest, part) for (brand, feat), part in data.groupby(["brand", "feat"], sort=True)
        } | {("all", ""): average(forest, data)}
    everything = np.polyfit(frame.w, frame.y, 1)[0]
    table = Table(
        "brand",
        "promoted",
        *columns,
        title=f"Dominick's: elasticities, {len(frame):,} rows; one line: {everything:.2f}",
    )
    for cell in columns["centred"]:
        cells = [columns[what][cell] for what in columns]
        table.add_row(
            *map(str, cell), *(f"{m[0]:.2f} ({m[0] - Z95 * e[0]:.2f} to {m[0] + Z95 * e[0]:.2f})" for m, e in cells)
        )
    out.print(table)


def main() -> None:
    """Print the tables that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", default=[*TRIALS, "vouchers", "thornton", "dominicks"])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--draws", type=int, default=3)
    arguments, out = parser.parse_args(), Console()
    for name in arguments.tables:
        if name == "vouchers":
            vouchers(arguments.rows, arguments.draws, out)
        elif name in TRIALS:
            generated(name, arguments.rows, arguments.draws, out)
        elif "UPLIFT_DATA" in os.environ:
            {"thornton": thornton, "dominicks": dominicks}[name](out)
        else:
            print(f"{name}: skipped, UPLIFT_DATA is not set", file=sys.stderr)


if __name__ == "__main__":
    main()
