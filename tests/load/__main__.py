"""A bounded load on `uplift serve`, on loopback (`make load`): latencies, too much of it, attacks, faults.

    python -m tests.load                                   # latencies at a rate and of clients in turn
    python -m tests.load --parts rate turn much attacks parity faults --seconds 20 --requests 100000

Publishes a small campaign of 200 trees into a temporary folder, starts the command as a user would, and asks for units
at random: effects, then decisions, each of which is on disk before it is answered. Latencies are those that the caller
sees. Ends with exit code 1 where an answer was wrong or lost, or a counter is not what was asked.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.load import parts, peers
from tests.load.service import CampaignOnTrial

PARTS = ("rate", "turn", "much", "attacks", "parity", "faults", "peers", "cases")


def main() -> None:
    """Publish, serve, load, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=["rate", "turn"])
    parser.add_argument("--seconds", type=float, default=10, help="of each part that lasts some time")
    parser.add_argument("--rate", type=float, default=500, help="requests a second")
    parser.add_argument("--clients", type=int, default=64, help="that ask in turn")
    parser.add_argument("--requests", type=int, default=10_000, help="of clients in turn")
    parser.add_argument("--times", type=float, default=3, help="of what it can do, where it is too much")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--units", type=int, default=10_000)
    parser.add_argument("--trees", type=int, default=200)
    parser.add_argument("--peers", help="a Python that has MLServer, Feast and schemathesis")
    arguments = parser.parse_args()
    console, right = Console(width=160, highlight=False), True
    with tempfile.TemporaryDirectory(prefix="uplift-load-") as name:
        campaign = CampaignOnTrial.make(Path(name), arguments.units, arguments.trees, workers=arguments.workers)
        shown = {
            "rate": lambda: parts.at_a_rate(campaign, arguments.seconds, arguments.rate),
            "turn": lambda: parts.clients_in_turn(campaign, arguments.requests, arguments.clients),
            "much": lambda: parts.too_much(campaign, arguments.seconds, arguments.times),
            "attacks": lambda: parts.attacked(campaign, 1.0, 200),
            "parity": lambda: parts.as_in_batches(campaign),
            "faults": lambda: parts.faults(campaign, 0.4 * arguments.rate, arguments.seconds / 2),
            "peers": lambda: peers.beside_others(campaign, arguments.requests // 5, 16, arguments.peers),
            "cases": lambda: peers.cases(campaign, arguments.requests, arguments.peers),
        }
        for part in arguments.parts:
            console.print(f"{part} ...")
            table, good = shown[part]()
            console.print(table)
            right &= good
    sys.exit(0 if right else 1)


if __name__ == "__main__":
    main()
