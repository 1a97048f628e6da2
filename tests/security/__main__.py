"""What the platform does when it is attacked: hostile SQL at every door, refused before Spark or run on a session.

`make security` runs everything; ARGS="--parts sql" what needs no Spark, ARGS="--shown 20" shows so many of each kind.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.faults.matrix import aligned
from tests.security import session, sql_attacks
from tests.security.attack import Attack, checked

PARTS = ("sql", "session")


def main() -> int:
    """Run the parts asked for and print their tables; 1 if anything is not as it should be."""
    arguments = _parsed()
    started = time.monotonic()
    attacks: list[Attack] = sql_attacks.attacks() if "sql" in arguments.parts else []
    rows, failed = checked(attacks)
    with tempfile.TemporaryDirectory(prefix="security-") as folder:
        if "session" in arguments.parts:
            more, wrong = session.attacked(Path(folder))
            rows, failed = [*rows, *more], failed + wrong
    so_far: Counter[str] = Counter()
    shown = []
    for kind, text, good, seen in rows:
        so_far[kind] += 1
        if so_far[kind] <= arguments.shown or good != "yes":
            shown.append((kind, text, good, seen[-110:]))
    print(aligned(("kind", "attack", "expected", "seen"), shown))
    print("\n" + ", ".join(f"{kind} {n}" for kind, n in so_far.items()))
    print(f"{len(rows)} attacks, {failed} not as expected, {time.monotonic() - started:.0f} s")
    return int(failed > 0)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make security", description=__doc__)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--shown", type=int, default=1_000, help="attacks of each kind to show")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
