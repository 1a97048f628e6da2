"""A worker process of `tests.fuzz.pool`: TARGET SEED LOW HIGH SECONDS; writes [number], then what became of it."""

from __future__ import annotations

import json
import os
import sys
import warnings

from tests.fuzz import pool
from tests.fuzz.findings import DEATHS, FINDINGS
from tests.fuzz.targets import TARGETS


def main() -> None:
    """Mutations LOW ≤ number < HIGH."""
    # Results go where the pool reads; whatever the code under test prints goes nowhere.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    name, (seed, low, high), seconds = sys.argv[1], map(int, sys.argv[2:5]), float(sys.argv[5])
    target = {**TARGETS, "findings": FINDINGS, "deaths": DEATHS}[name]
    target.prepared()
    pool.bound_memory()
    for number in range(low, high):
        out.write(json.dumps([number]).encode() + b"\n")
        pool.bound_time(seconds)
        kind, content = target.mutated(seed, number)
        try:
            verdict, detail = target.judged(kind, content)
        except MemoryError as error:
            verdict, detail = pool.BIG, str(error)
        except Exception as error:
            verdict, detail = pool.UNTYPED, f"{type(error).__name__}: {str(error)[:200]}"
        out.write(json.dumps([number, kind, verdict, detail]).encode() + b"\n")


if __name__ == "__main__":
    main()
