"""Mutate what the platform reads and see that it is refused in one sentence or read whole. `make fuzz` runs everything.

ARGS="--mutations 2000 --seed 3" runs some of it. A mutation is known by its seed and number: any run can be repeated.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz import findings, pool
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run the targets, print what became of their mutations and keep what failed; 1 if anything did."""
    arguments = parsed()
    failed = 0
    for name in arguments.targets:
        started = time.monotonic()
        count = arguments.mutations or TARGETS[name].mutations
        work = pool.Work(name, arguments.seed, arguments.first, count)
        results = pool.run(work, arguments.workers, lambda line: print(line, flush=True))
        bad = [result for result in results if result.verdict in pool.FAILURES]
        print(f"\n{name}: {count:,} mutations, {time.monotonic() - started:.0f} s\n\n{pool.table(results)}", flush=True)
        for result in bad[: arguments.show]:
            print(f"  {result.verdict} at {name}:{arguments.seed}:{result.number} ({result.kind}): {result.detail}")
        if arguments.keep:
            findings.keep(name, arguments.seed, bad, Path(arguments.keep))
        failed += len(bad)
    print(f"\n{failed} failures")
    return int(failed > 0)


def parsed() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--mutations", type=int, default=0, help="of each target; by default its own number")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--show", type=int, default=20, help="failures to print, at most")
    parser.add_argument("--keep", help="folder for inputs that failed, one of each kind")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
