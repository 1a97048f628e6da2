"""Designs with thin overlap or few events, and some with plenty: do intervals that are not flagged cover the truth?

    python -m tests.forest.thin_data --draws 500                    # all designs; hours, most of them for the learners
    python -m tests.forest.thin_data --draws 100 --designs heavy clusters

Each draw fits on fresh rows and is judged at the same new units, whose effects are known. A design holds if nominal
95 % intervals of what is not flagged cover at least 93 %, within two errors, and, where data are plenty, at most 2 %
is flagged. Refused draws claim nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from uplift_spark import CausalForest, MetaLearner, Roles, average_effects
from uplift_spark.errors import DataError

POINTS, POINTS_SEED = 300, 10**6
COVERS, FLAGS = 0.93, 0.02
Z95 = 1.959964
FEATURES = ("x0", "x1", "x2")
ROLES = Roles("unit", "w", "y", FEATURES, "0")
Draw = Callable[[int, np.random.Generator], tuple[pd.DataFrame, np.ndarray]]


# ---------------------------------------------------------------- trials: a frame, and each unit's effects [n, L]


def trial(
    rates: Callable[[np.ndarray], np.ndarray], shares: tuple[float, ...], n: int, rng: np.random.Generator
) -> tuple[pd.DataFrame, np.ndarray]:
    """Events at these rates of every level, [n, K] by features [n, 3], and levels at random in these shares."""
    x = rng.random((n, 3))
    w = rng.choice(len(shares), n, p=shares)
    return framed(x, w, rates(x), rng)


def framed(x: np.ndarray, w: np.ndarray, rate: np.ndarray, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Units of these features and levels [n], with an event at the rate [n, K] of their level."""
    y = (rng.random(len(w)) < rate[np.arange(len(w)), w]).astype(float)
    frame = pd.DataFrame(x, columns=list(FEATURES)).assign(unit=np.arange(len(w)), w=w, y=y)
    return frame, rate[:, 1:] - rate[:, :1]


def constant(*rates: float) -> Callable[[np.ndarray], np.ndarray]:
    """The same rates for everybody."""
    return lambda x: np.tile(rates, (len(x), 1))


def some_gain(control: float, *treated: float) -> Callable[[np.ndarray], np.ndarray]:
    """Rates that differ from the control's where x0 is above a half."""
    return lambda x: np.where(x[:, [0]] > 0.5, (control, *treated), control)


def by_stratum(x: np.ndarray) -> np.ndarray:
    """Events at .1 % and .2 %, and ten times as many in a fifth of the units."""
    return np.where(x[:, [0]] > 0.8, 0.01, 0.001) * np.array([1.0, 2.0])


def no_control(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Everybody is treated in a tenth of the units, which are x2 = 1; half of the others are."""
    x = rng.random((n, 3))
    x[:, 2] = rng.random(n) < 0.1
    w = np.where(x[:, 2] == 1, 1, rng.integers(0, 2, n))
    return framed(x, w, np.array([0.45, 0.10]) + 0.10 * (x[:, [0]] > 0.5), rng)


def level_lacks(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Nobody has the second level in a seventh of the units, which are x2 = 1."""
    x = rng.random((n, 3))
    x[:, 2] = rng.random(n) < 0.15
    w = np.where(x[:, 2] == 1, rng.integers(0, 2, n), rng.integers(0, 3, n))
    return framed(x, w, np.array([0.3, 0.2, 0.4]) + 0.2 * x[:, [2]], rng)


def steep(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """The propensity goes from .02 to .98 with x1, and so does the outcome."""
    x = rng.random((n, 3))
    w = (rng.random(n) < 1 / (1 + np.exp(-8 * (x[:, 1] - 0.5)))).astype(int)
    return framed(x, w, 0.2 + 0.3 * x[:, [1]] + np.array([0.0, 0.2]) * (x[:, [0]] > 0.5), rng)


def few_treated(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Forty units are treated; the outcome is normal."""
    frame, _ = trial(constant(0.5, 0.5), (1 - 40 / n, 40 / n), n, rng)
    tau = 1.0 * frame["x0"].to_numpy()
    return frame.assign(y=frame["x1"] + tau * frame["w"] + rng.normal(size=n)), tau[:, None]


def heavy(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Sales: one unit in five buys for a lognormal sum, whose mean is 3.08; a tenth is treated, who buy twice as often
    where x0 is above a half."""
    frame, gain = trial(some_gain(0.2, 0.4), (0.9, 0.1), n, rng)
    return frame.assign(y=frame["y"] * np.exp(1.5 * rng.normal(size=n))), gain * np.exp(1.5**2 / 2)


def clusters(n: int, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray]:
    """Sixty shops of as many units, half of them treated; shops differ in their rates."""
    shop = np.arange(n) * 60 // n
    treated, level = rng.permutation(60) % 2, rng.normal(scale=0.07, size=60)
    rate = np.clip(np.array([0.25, 0.35]) + level[shop][:, None], 0.0, 1.0)
    frame, _ = framed(rng.random((n, 3)), treated[shop], rate, rng)
    return frame.assign(shop=shop), np.full((n, 1), 0.1)


# ---------------------------------------------------------------- designs


@dataclass(frozen=True)
class Design:
    """A design: what is thin about it, its draws, rows and estimator; `plenty` where nothing is thin."""

    words: str
    draw: Draw
    n: int
    learner: CausalForest | MetaLearner | None = None
    roles: Roles = ROLES
    plenty: bool = False

    @property
    def who(self) -> str:
        """What estimates."""
        if self.learner is None:
            return "average effects"
        if isinstance(self.learner, MetaLearner):
            return self.learner.kind
        return "forest per level" if self.learner.per_level else "forest"

    def claims(self, seed: int, points: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """(effect, standard error, flagged) of the points and levels, [n, L] each; None where training refuses."""
        frame, _ = self.draw(self.n, np.random.default_rng(seed))
        try:
            if self.learner is None:
                table = average_effects(frame, self.roles, folds=2, seed=seed)
                ate = table[table["estimand"] == "ate"]
                effect, error = (ate[name].to_numpy()[None] for name in ("estimate", "error"))
                return effect, error, np.zeros(effect.shape, bool)
            effects = replace(self.learner, seed=seed).fit(frame, self.roles).effect(points)
        except DataError:
            return None
        columns = (effects[name].to_numpy() for name in ("uplift", "uplift_se", "low_support"))
        effect, error, low = (column.reshape(len(points), -1) for column in columns)
        return effect, error, low


TREES, EACH = CausalForest(), CausalForest(per_level=True)
T, X = MetaLearner("t_learner"), MetaLearner("x_learner")

DESIGNS: dict[str, Design] = {
    "no_control": Design("no control in a tenth of the units", no_control, 3000, TREES),
    "level_lacks": Design("one level of three lacks in a seventh", level_lacks, 4000, EACH),
    "steep": Design("propensities from .02 to .98", steep, 4000, TREES),
    "one_percent": Design("1 % treated", partial(trial, constant(0.2, 0.35), (0.99, 0.01)), 6000, TREES),
    "five_percent": Design("5 % treated", partial(trial, some_gain(0.15, 0.25), (0.95, 0.05)), 2000, TREES),
    "rare_level": Design(
        "one level of three has 2 %", partial(trial, constant(0.2, 0.25, 0.35), (0.49, 0.49, 0.02)), 4000, TREES
    ),
    "rare_events": Design("events at .3 % and .6 %", partial(trial, constant(0.003, 0.006), (0.5, 0.5)), 10_000, TREES),
    "strata": Design("events at .1 % to 2 %, by stratum", partial(trial, by_stratum, (0.5, 0.5)), 10_000, TREES),
    "heavy": Design("sales with a heavy tail, 10 % treated", heavy, 3000, TREES),
    "clusters": Design("30 clusters an arm", clusters, 1200, TREES, replace(ROLES, cluster="shop")),
    "few_treated": Design("40 treated of 600", few_treated, 600, X),
    "few_events": Design(
        "15 % treated, events at 8 % and 16 %", partial(trial, constant(0.08, 0.16), (0.85, 0.15)), 800, T
    ),
    "average": Design("5 % treated, events at 3 % and 6 %", partial(trial, constant(0.03, 0.06), (0.95, 0.05)), 6000),
    "plenty": Design(
        "plenty of two levels", partial(trial, some_gain(0.3, 0.4), (0.5, 0.5)), 4000, TREES, plenty=True
    ),
    "plenty_each": Design(
        "plenty of three levels", partial(trial, some_gain(0.3, 0.35, 0.4), (0.4, 0.3, 0.3)), 6000, EACH, plenty=True
    ),
    "plenty_learner": Design(
        "plenty of two levels", partial(trial, constant(0.3, 0.4), (0.5, 0.5)), 1000, T, plenty=True
    ),
}  # fmt: skip


# ---------------------------------------------------------------- what draws show


@dataclass(frozen=True)
class Shown:
    """What a design's draws show: of each that was not refused, claims that cover the truth, claims that are not
    flagged, and claims, [draws] each."""

    design: Design
    refused: int
    inside: np.ndarray
    kept: np.ndarray
    claims: np.ndarray

    @property
    def coverage(self) -> tuple[float, float]:
        """Share of what is not flagged that covers the truth, and its standard error over draws; NaN if all is."""
        total = self.kept.sum()
        if not total:
            return np.nan, np.nan
        share = self.inside.sum() / total
        return float(share), float(np.sqrt(((self.inside - share * self.kept) ** 2).sum()) / total)

    @property
    def flagged(self) -> float:
        """Share of claims that are flagged."""
        return float(1.0 - self.kept.sum() / max(self.claims.sum(), 1))

    @property
    def holds(self) -> bool:
        """Whether what is not flagged covers, within two errors, and plenty is not flagged."""
        share, error = self.coverage
        return not share + 2 * error < COVERS and not (self.design.plenty and self.flagged > FLAGS)

    def cells(self) -> tuple[str, ...]:
        """Its line of the table."""
        share, error = self.coverage
        covers = "all flagged" if np.isnan(share) else f"{share:.3f} ± {error:.3f}"
        draws = len(self.claims) + self.refused
        numbers = (f"{self.design.n:,}", f"{draws}", f"{self.refused / draws:.3f}", f"{self.flagged:.3f}", covers)
        verdict = "yes" if self.holds else "NO"
        return self.design.words, self.design.who, *numbers, verdict if share >= COVERS or not self.holds else "near"


def shown(design: Design, draws: Iterable[int]) -> Shown:
    """What these draws of a design show."""
    points, truth = design.draw(POINTS, np.random.default_rng(POINTS_SEED))
    if design.learner is None:
        truth = truth.mean(axis=0, keepdims=True)
    refused, counts = 0, []
    for seed in draws:
        claims = design.claims(seed, points)
        if claims is None:
            refused += 1
            continue
        effect, error, low = claims
        inside = np.abs(effect - truth) <= Z95 * error
        counts.append((int((inside & ~low).sum()), int((~low).sum()), low.size))
    columns: Any = np.array(counts, np.int64).reshape(-1, 3).T
    return Shown(design, refused, *columns)


HEADS = ("design", "estimator", "rows", "draws", "refused", "flagged", "not flagged covers", "holds")


def main() -> int:
    """Print a line for each design; 1 if one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first draw's seed")
    parser.add_argument("--designs", nargs="*", choices=list(DESIGNS), default=list(DESIGNS))
    arguments = parser.parse_args()
    results = []
    for name in arguments.designs:
        results.append(shown(DESIGNS[name], range(arguments.first, arguments.first + arguments.draws)))
        print(f"{name}: {', '.join(results[-1].cells()[3:])}", file=sys.stderr, flush=True)
    print(pd.DataFrame([one.cells() for one in results], columns=HEADS).to_string(index=False, justify="left"))
    return int(not all(one.holds for one in results))


if __name__ == "__main__":
    sys.exit(main())
