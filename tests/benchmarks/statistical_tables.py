"""The statistical tables: are intervals true, is nothing found in nothing, do buckets and shared levels cost or pay?

    make simulations                                                     # after the replicated tests; minutes
    python tests/benchmarks/statistical_tables.py intervals --replications 500 --peers econml --peer-replications 20
    python tests/benchmarks/statistical_tables.py null buckets leaves levels trials --replications 500

Every table is over fresh draws of training data; effects are judged at the same 1,000 units not trained on. ± is the
standard error over replications. Defaults everywhere, unless the table is about a parameter.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from engine_peers import PEERS, Options
from rich.console import Console
from rich.progress import track
from rich.table import Table

from uplift_spark.config import TrialConf, load_config
from uplift_spark.errors import UpliftError
from uplift_spark.events.ingest import find, read_trial
from uplift_spark.events.simulate import BENCHMARKS, Benchmark
from uplift_spark.forest.binning import apply_bins
from uplift_spark.forest.effects import Z95
from uplift_spark.forest.forest import Forest
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.roles import Roles
from uplift_spark.stats.curves import rank_bins, true_curve, uplift_curve
from uplift_spark.stats.intervals import bootstrap_interval, poisson_weights

POINTS, POINTS_SEED = 1000, 10**6
Draw = Callable[[int, int], Benchmark]


def table_of(trial: Benchmark) -> pa.Table:
    """A trial as a table of units; features x0, x1, ..."""
    features = {f"x{j}": column for j, column in enumerate(trial.X.T)}
    return pa.table({"unit": np.arange(len(trial.w)), "w": trial.w, "y": trial.y, "e": trial.propensity, **features})


def roles_of(trial: Benchmark) -> Roles:
    """Levels beyond two are ordered; propensities are given, as a trial logs them."""
    levels = trial.e.shape[1]
    dose = {str(k): float(k) for k in range(levels)} if levels > 2 else None
    return Roles("unit", "w", "y", tuple(f"x{j}" for j in range(trial.X.shape[1])), "0", dose, propensity="e")


def fitted(trial: Benchmark, seed: int, **params: int) -> Forest:
    """Our forest with its defaults, but for `params`."""
    return fit_table(table_of(trial), roles_of(trial), Params(seed=seed, **params))


@dataclass
class Replicated:
    """Effects and errors [R, 1000, K-1] of R fits, the truth [1000, K-1], averages and their errors [R, K-1]."""

    effects: np.ndarray
    errors: np.ndarray
    tau: np.ndarray
    average: np.ndarray
    average_error: np.ndarray

    @property
    def rmse(self) -> tuple[float, float]:
        """Root mean square error over replications and units, and its standard error."""
        each = ((self.effects - self.tau) ** 2).mean(axis=(1, 2))
        rmse = float(np.sqrt(each.mean()))
        return rmse, float(each.std() / np.sqrt(len(each)) / 2 / max(rmse, 1e-12))

    @property
    def coverage(self) -> float:
        return float((np.abs(self.effects - self.tau) < Z95 * self.errors).mean())

    @property
    def average_coverage(self) -> np.ndarray:
        """Share of intervals that cover the average effect, per level."""
        return (np.abs(self.average - self.tau.mean(axis=0)) < Z95 * self.average_error).mean(axis=0)


def replicate(draw: Draw, n: int, reps: int, **params: int) -> Replicated:
    """Fit on `reps` draws of n rows and predict at the fixed units; the average effect is over them, too."""
    points = draw(POINTS, POINTS_SEED)
    units, results = table_of(points), []
    for seed in track(range(reps), f"{reps} fits of {n:,} rows", transient=True):
        forest = fitted(draw(n, seed), seed, **params)
        effect, error, _ = forest.effect_arrays(units, 2)
        bins = apply_bins(units, forest.plan.bins)
        average, covariance = forest.averages(bins)
        results.append((effect, error, average[0], np.sqrt(np.diagonal(covariance[0]))))
    effects, errors, averages, average_errors = (np.stack(part) for part in zip(*results, strict=True))
    return Replicated(effects, errors, points.tau, averages, average_errors)


INTERVALS: dict[str, tuple[Draw, int]] = {
    **{f"T1, d={d}": (partial(BENCHMARKS["no_effect"], p=d), 500) for d in (2, 10, 20, 30)},
    **{f"T2, d={d}": (partial(BENCHMARKS["rct"], p=d), 5_000) for d in (2, 8)},
    "T3, d=8": (partial(BENCHMARKS["peak"], p=8), 10_000),
    "rct": (BENCHMARKS["rct"], 10_000),
    "multi": (BENCHMARKS["multi"], 10_000),
    "Nie-Wager B": (BENCHMARKS["nie_wager_b"], 2_000),
}


def intervals(arguments: argparse.Namespace) -> Table:
    """Coverage, width, bias over error; of averages per level; beside peers on the same draws (fewer of them)."""
    heads = ("design", "rows", "who", "fits", "RMSE", "bias", "covers truth", "width", "se / sd", "average covered")
    table = Table(*heads, box=None, title="Intervals")
    for name, (draw, n) in INTERVALS.items():
        result = replicate(draw, n, arguments.replications)
        covered = " ".join(f"{c:.3f}" for c in result.average_coverage)
        table.add_row(name, f"{n:,}", "ours", str(len(result.effects)), *_interval_cells(result), covered)
        for peer in arguments.peers if result.tau.shape[1] == 1 else ():
            theirs = _peer(peer, draw, n, arguments.peer_replications)
            table.add_row("", "", peer, str(len(theirs.effects)), *_interval_cells(theirs), "")
    return table


def _interval_cells(replicated: Replicated) -> list[str]:
    sd = replicated.effects.std(axis=0, ddof=1)
    bias = np.sqrt(
        max(0.0, np.mean((replicated.effects.mean(axis=0) - replicated.tau) ** 2 - sd**2 / len(replicated.effects)))
    )
    rmse, error = replicated.rmse
    cells = [f"{rmse:.4f} ± {error:.4f}", f"{bias:.4f}", f"{replicated.coverage:.3f}"]
    return [*cells, f"{2 * Z95 * replicated.errors.mean():.3f}", f"{replicated.errors.mean() / sd.mean():.2f}"]


def _peer(name: str, draw: Draw, n: int, reps: int) -> Replicated:
    points, results = draw(POINTS, POINTS_SEED), []
    for seed in track(range(reps), f"{name}: {reps} fits of {n:,} rows", transient=True):
        peer = PEERS[name](Options(trees=200, threads=2, seed=seed))
        peer.fit(draw(n, seed))
        results.append(peer.predict(points.X))
    effect, error = (np.stack(part).reshape(reps, *points.tau.shape) for part in zip(*results, strict=True))
    return Replicated(effect, error, points.tau, effect[:, 0], error[:, 0])


def _nothing(n: int, seed: int, levels: int = 2) -> Benchmark:
    """Null trial: p=5, X normal, Y=min(x₂,0)+N(0,1), no effect of any level."""
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((n, 5)), rng.integers(0, levels, n)
    y = np.minimum(x[:, 2], 0.0) + rng.standard_normal(n)
    return Benchmark(x, w, y, np.zeros((n, levels - 1)), np.full((n, levels), 1.0 / levels))


def null(arguments: argparse.Namespace) -> Table:
    """What the forest shows where there is nothing: the spread of effects against what the intervals say."""
    heads = ("levels", "rows", "fits", "sd of effects", "mean se", "spread / se", "units whose interval misses 0")
    table = Table(*heads, "average covered", box=None, title="No effect at all (tests: pytest -m simulation)")
    for levels, n in ((2, 1_500), (2, 15_000), (4, 6_000)):
        result = replicate(partial(_nothing, levels=levels), n, arguments.replications)
        spread, error = result.effects.std(axis=1).mean(), result.errors.mean()
        cells = [f"{spread:.4f}", f"{error:.4f}", f"{spread / error:.2f}", f"{1 - result.coverage:.3f}"]
        averages = " ".join(f"{c:.3f}" for c in result.average_coverage)
        table.add_row(str(levels), f"{n:,}", str(len(result.effects)), *cells, averages)
    return table


def buckets(arguments: argparse.Namespace) -> Table:
    """RMSE by number of buckets against the default's: what splitting the rows costs."""
    table = Table("trial", "rows", "buckets", "RMSE", "to the best", box=None, title="Buckets")
    for name in ("rct", "multi", "conv"):
        for n in arguments.sizes:
            variants = [{}, *({"n_buckets": b} for b in (2, 4, 8, 16, 32, 64, 128))]
            errors = [replicate(BENCHMARKS[name], n, arguments.few, **params).rmse for params in variants]
            best = min(rmse for rmse, _ in errors)
            for params, (rmse, error) in zip(variants, errors, strict=True):
                label = str(params.get("n_buckets", "default"))
                table.add_row(name, f"{n:,}", label, f"{rmse:.5f} ± {error:.5f}", f"{rmse / best:.3f}")
    return table


def _niche(n: int, seed: int) -> Benchmark:
    """A tenth of the units respond with 8 points, the others with 2, on a base rate of about 12 %; e=½, X uniform."""
    rng = np.random.default_rng(seed)
    x, w = rng.random((n, 20)), rng.integers(0, 2, n)
    tau = 0.02 + 0.06 * (x[:, 0] > 0.9)
    y = (rng.random(n) < 0.12 * np.exp(0.8 * (x[:, 2] - 0.5)) + w * tau).astype(float)
    return Benchmark(x, w, y, tau[:, None], np.full((n, 2), 0.5))


def leaves(arguments: argparse.Namespace) -> Table:
    """RMSE and coverage by default, and with half, the same and twice its usual leaf as the smallest."""
    table = Table("trial", "rows", "smallest leaf", "RMSE", "covers truth", box=None, title="Leaf size")
    cells = (("rct", 2_000), ("rct", 10_000), ("rct", 100_000), ("conv", 100_000), ("multi", 10_000), ("niche", 60_000))
    for name, n in cells:
        draw = BENCHMARKS.get(name, _niche)
        usual = int(fitted(draw(n, 0), 0).plan.limits["usual_leaf"])
        for leaf in (None, max(1, usual // 2), usual, 2 * usual):
            result = replicate(draw, n, arguments.few, **({} if leaf is None else {"min_leaf": leaf}))
            rmse, error = result.rmse
            figures = (f"{leaf or 'default'}", f"{rmse:.5f} ± {error:.5f}", f"{result.coverage:.3f}")
            table.add_row(name, f"{n:,}", *figures)
    return table


RESPONSES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda dose: dose,
    "concave": lambda dose: 1.6 * dose - 0.8 * dose**2,
    "non-monotone": lambda dose: 4.0 * dose * (1.0 - dose),
}


def dosed(n: int, seed: int, levels: int, response: str) -> Benchmark:
    """A dose response of one shape whose height depends on two of ten features; equal odds, noise 1."""
    rng = np.random.default_rng(seed)
    x, w = rng.random((n, 10)), rng.integers(0, levels, n)
    height = 1.0 / (1.0 + np.exp(-12.0 * (x[:, 0] - 0.5))) * (0.5 + x[:, 1])
    tau = height[:, None] * RESPONSES[response](np.arange(1, levels) / (levels - 1))
    y = x[:, 2] + np.column_stack([np.zeros(n), tau])[np.arange(n), w] + rng.standard_normal(n)
    return Benchmark(x, w, y, tau, np.full((n, levels), 1.0 / levels))


def _per_level(trial: Benchmark, points: pa.Table, seed: int) -> np.ndarray:
    """Effects [n, K-1] of one binary forest per level against the control."""
    effects = []
    for k in range(1, trial.e.shape[1]):
        mine = np.isin(trial.w, (0, k))
        pair = Benchmark(
            trial.X[mine], (trial.w[mine] == k).astype(int), trial.y[mine], trial.tau[mine][:, [k - 1]],
            trial.e[mine][:, [0, k]] / trial.e[mine][:, [0, k]].sum(axis=1, keepdims=True),
        )  # fmt: skip
        effects.append(fitted(pair, seed).effect_arrays(points, 2, errors=False)[0])
    return np.hstack(effects)


def levels(arguments: argparse.Namespace) -> Table:
    """The continuous causal forest against one binary forest per level: RMSE, and Qini of ranking by each level."""
    heads = (
        "levels",
        "rows",
        "response",
        "RMSE, one forest",
        "RMSE, one per level",
        "ratio",
        "Qini share",
        "per level",
    )
    table = Table(*heads, box=None, title="One forest for all levels, or one per level")
    for k, n in ((5, 5_000), (5, 50_000), (20, 20_000), (20, 200_000)):
        for response in RESPONSES:
            points = dosed(POINTS, POINTS_SEED, k, response)
            units, errors, shares = table_of(points), [], []
            for seed in track(range(arguments.few), f"{k} levels, {n:,} rows, {response}", transient=True):
                trial = dosed(n, seed, k, response)
                both = (fitted(trial, seed).effect_arrays(units, 2, errors=False)[0], _per_level(trial, units, seed))
                errors.append([np.sqrt(np.mean((one - points.tau) ** 2)) for one in both])
                shares.append([_qini_share(one, points.tau) for one in both])
            (ours, theirs), (share, other) = np.mean(errors, axis=0), np.mean(shares, axis=0)
            spread = np.std(errors, axis=0) / np.sqrt(len(errors))
            cells = [f"{ours:.4f} ± {spread[0]:.4f}", f"{theirs:.4f} ± {spread[1]:.4f}", f"{ours / theirs:.2f}"]
            table.add_row(str(k), f"{n:,}", response, *cells, f"{share:.3f}", f"{other:.3f}")
    return table


def _qini_share(effects: np.ndarray, tau: np.ndarray) -> float:
    """Mean over levels with an effect of the Qini of ranking by the estimate, as a share of the best ranking's."""

    def qini(score: np.ndarray, truth: np.ndarray) -> float:
        return float(true_curve(np.ones(truth.size), truth[np.argsort(-score, kind="stable")]).qini)

    kept = [k for k in range(tau.shape[1]) if tau[:, k].std() > 0.01]
    return float(np.mean([qini(effects[:, k], tau[:, k]) / qini(tau[:, k], tau[:, k]) for k in kept]))


def trials(arguments: argparse.Namespace) -> Table:
    """The same two on real trials: Qini of ranking the half not trained on, both ways round, by each level."""
    heads = ("trial", "outcome", "level", "units", "Qini, one forest", "Qini, one per level", "difference")
    table = Table(*heads, box=None, title="One forest for all levels, or one per level: real trials, 95 % intervals")
    for name in ("karlan_list", "hillstrom"):
        config = load_config(Path(__file__).parents[2] / "conf" / f"{name}.yaml")
        assert isinstance(config.source, TrialConf)
        try:
            rows = read_trial(find(config.source), config.source)
        except UpliftError as error:
            table.add_row(name, f"skipped: {error}")
            continue
        arms = [config.source.arms[arm] for arm in rows.column(config.source.treatment).to_pylist()]
        rows = rows.append_column("treatment", pa.array(arms)).append_column("unit_id", rows.column("_row"))
        roles = replace(config.training_roles, propensity=None)
        fold = np.random.default_rng(0).permutation(len(arms)) % 2
        levels, both = _out_of_fold(rows, roles, fold)
        y = rows.column(roles.outcome).to_numpy()
        for k, level in enumerate(levels):
            mine = np.isin(arms, (roles.control, level))
            treated = np.array(arms)[mine] == level
            ours, theirs = (_qini(score[mine, k], fold[mine], treated, y[mine]) for score in both)
            cells = (_with_interval(values) for values in (ours, theirs, ours - theirs))
            table.add_row(name, roles.outcome, level, f"{mine.sum():,}", *cells)
    return table


def _out_of_fold(rows: pa.Table, roles: Roles, fold: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Levels, and effects [2, n, K-1] from forests trained on the other fold: one for all levels, then one for each."""
    parts = []
    for f in (0, 1):
        train, rest = rows.filter(pa.array(fold != f)), rows.filter(pa.array(fold == f))
        whole = fit_table(train, roles, Params(seed=f))
        arms = np.array(train.column(roles.treatment).to_pylist())
        pairs = [train.filter(pa.array(np.isin(arms, (roles.control, level)))) for level in whole.levels.treated]
        apart = [fit_table(pair, replace(roles, dose=None), Params(seed=f)) for pair in pairs]
        estimates = [one.effect_arrays(rest, 2, errors=False)[0] for one in (whole, *apart)]
        parts.append(np.stack([estimates[0], np.hstack(estimates[1:])]))
    effects = np.empty((2, rows.num_rows, parts[0].shape[2]))
    effects[:, fold == 0], effects[:, fold == 1] = parts
    return whole.levels.treated, effects


def _qini(score: np.ndarray, fold: np.ndarray, treated: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Qini of ranking within folds by `score`, then that of 500 resamples: [501]."""
    bins = np.empty(score.size, np.int64)
    for f in (0, 1):
        order = np.flatnonzero(fold == f)[np.argsort(-score[fold == f], kind="stable")]
        bins[order] = rank_bins(np.ones(order.size), 100)
    order = np.argsort(bins, kind="stable")
    weights = poisson_weights(np.arange(score.size), 1, 500)
    weights = np.column_stack([np.ones(score.size), weights])[order]
    starts = np.searchsorted(bins[order], np.arange(100))
    arms = [weights * part[order][:, None] for part in (treated, treated * y, ~treated, ~treated * y)]
    return uplift_curve(*(np.add.reduceat(arm, starts, axis=0).T for arm in arms)).qini


def _with_interval(values: np.ndarray) -> str:
    lower, upper = bootstrap_interval(values[0], values[1:])
    return f"{values[0]:.5f} ({lower:.5f} to {upper:.5f})"


TABLES: dict[str, Callable[[argparse.Namespace], Table]] = {
    "intervals": intervals,
    "null": null,
    "buckets": buckets,
    "leaves": leaves,
    "levels": levels,
    "trials": trials,
}


def main(names: Iterable[str] = TABLES) -> None:
    """Print the tables asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which tables; all by default")
    parser.add_argument("--replications", type=int, default=100, help="fits behind each line on intervals")
    parser.add_argument("--few", type=int, default=5, help="fits behind each line of the other tables")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000], help="rows for the table on buckets")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=[], help="who else to fit for intervals")
    parser.add_argument("--peer-replications", type=int, default=10)
    arguments = parser.parse_args()
    for name in arguments.tables or names:
        Console(width=150).print(TABLES[name](arguments))


if __name__ == "__main__":
    main()
