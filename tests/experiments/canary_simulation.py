"""Canaries whose truth is known: how often each ends how. Prints the figures of docs/canary.md.

    python -m tests.experiments.canary_simulation [--runs 2000]

Each canary is read after every part of its traffic, and ends at its first verdict. All canaries of a case run at once,
as arrays.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np

from uplift_spark.experiments.canary import SliceSums, check_states
from uplift_spark.sections.canary import CanaryConf

CONF = CanaryConf()


@dataclass(frozen=True)
class Case:
    """Truth of both slices (champion, challenger), units a slice, and in how many looks they arrive.

    spiky     some looks see a hundred times as many units as others, and the slices differ in traffic
    decrease  less of the outcome is better
    """

    name: str
    units: int
    looks: int = 28
    errors: tuple[float, float] = (0.01, 0.01)
    slow: tuple[float, float] = (0.03, 0.03)
    unreached: tuple[float, float] = (0.01, 0.01)
    opt_outs: tuple[float, float] = (0.002, 0.002)
    outcome: tuple[float, float] = (0.05, 0.05)
    spiky: bool = False
    decrease: bool = False


CASES = (
    Case("alike", 10_000),
    Case("alike, spiky traffic, few units", 600, spiky=True),
    Case("alike, large", 150_000),
    Case("errors 1 to 3 %", 5_000, looks=50, errors=(0.01, 0.03)),
    Case("outcome 10 % worse", 150_000, outcome=(0.05, 0.045)),
    Case("outcome 20 % worse", 150_000, outcome=(0.05, 0.04)),
    Case("outcome 20 % more, less is better", 150_000, outcome=(0.05, 0.06), decrease=True),
    Case("no outcome at all", 10_000, outcome=(0.05, 0.0)),
)
_SHARES = (("errors", "errors"), ("latency", "slow"), ("delivery", "unreached"), ("opt_outs", "opt_outs"))


def arrivals(case: Case, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Units of a slice at each look, int64 [runs, looks]."""
    if not case.spiky:
        return np.full((runs, case.looks), case.units // case.looks)
    weights = np.exp(rng.normal(0.0, 2.0, (runs, case.looks)))
    return rng.poisson(case.units * weights / weights.sum(axis=1, keepdims=True))


def shares_of_verdicts(case: Case, runs: int, seed: int = 1) -> dict[str, float]:
    """Share of the canaries that end by each verdict, as `read_canary` gives it without a least number of days."""
    rng = np.random.default_rng(seed)
    new = [arrivals(case, runs, rng) for _ in range(2)]
    total = [np.cumsum(n, axis=1).astype(float) for n in new]
    open_ = np.ones(runs, bool)
    ends = {"roll back": np.zeros(runs, bool), "promote": np.zeros(runs, bool)}
    counts = {
        check: [
            np.cumsum(rng.binomial(n, p), axis=1).astype(float) for n, p in zip(new, getattr(case, name), strict=True)
        ]
        for check, name in (*_SHARES, ("outcome", "outcome"))
    }
    for look in range(case.looks):
        safe, worse = np.ones(runs, bool), np.zeros(runs, bool)
        for check, (champion, challenger) in counts.items():
            sums = [
                SliceSums.of_share(k[:, look], n[:, look]) for k, n in zip((champion, challenger), total, strict=True)
            ]
            with np.errstate(invalid="ignore", divide="ignore"):
                _, _, states = check_states(check, *sums, CONF, case.decrease)
            safe, worse = safe & (states == "safe"), worse | (states == "worse")
        ends["roll back"] |= open_ & worse
        ends["promote"] |= open_ & safe & ~worse
        open_ &= ~(safe | worse)
    return {"looks": float(case.looks), **{name: float(hit.mean()) for name, hit in ends.items()}, "open": open_.mean()}


def figures(runs: int) -> dict[str, dict[str, float]]:
    """{case: {verdict: share}} of so many canaries each."""
    return {case.name: shares_of_verdicts(case, runs) for case in CASES}


def units_alike(check: str, ratio: float) -> int:
    """Units a slice at which two slices with the same ratio are known to be alike: half of all such canaries are."""

    def known(n: int) -> bool:
        both = [SliceSums.of_share(n * ratio, float(n)) for _ in range(2)]
        return str(check_states(check, *both, CONF)[2]) == "safe"

    few, enough = 0, CONF.min_units
    while not known(enough):
        few, enough = enough, 2 * enough
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if known(middle) else (middle, enough)
    return enough


ALIKE = (
    *(("errors", 0.01), ("latency", 0.03), ("delivery", 0.01), ("opt_outs", 0.002)),
    *(("outcome", ratio) for ratio in (0.01, 0.05, 0.2)),
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2000)
    runs = parser.parse_args().runs
    started = time.process_time()
    print(f"{'case':34}{'units a slice':>14}{'looks':>7}{'rolled back':>13}{'promoted':>10}{'no verdict':>12}")
    for case, shares in zip(CASES, figures(runs).values(), strict=True):
        ends = [shares[key] for key in ("roll back", "promote", "open")]
        print(f"{case.name:34}{case.units:14,}{case.looks:7}{ends[0]:13.2%}{ends[1]:10.2%}{ends[2]:12.2%}")
    print(f"{runs:,} canaries a case, {time.process_time() - started:.0f} s of one core")
    print(f"\n{'known to be alike':34}{'share':>10}{'margin':>10}{'units a slice':>16}")
    for check, ratio in ALIKE:
        margin = getattr(CONF.margins, check) * (ratio if check == "outcome" else 1.0)
        print(f"{check:34}{ratio:10.2%}{margin:10.2%}{units_alike(check, ratio):16,}")


if __name__ == "__main__":
    main()
