"""What goes wrong with trials, the check that has to notice it, how often it does, and how often it is wrong about a
sound trial; beside it the effect that a reading would have shown, and the true one.

    make bench ONLY=breaks
    make bench ONLY=breaks ARGS="--trials 400"

Trials are simulated (`experiments.simulation`), 8,000 users each; no Spark.
"""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.table import Table

from uplift_spark.experiments.simulation import break_table


def main() -> None:
    """Print a line for each break."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=100)
    trials = parser.parse_known_args()[0].trials
    console = Console(width=120)
    table = Table("what goes wrong", "check", "noticed", "false alarms", "effect read", "true effect", box=None)
    for row in break_table(trials, lambda name: console.print(f"simulating: {name}", style="dim")).itertuples():
        figures = f"{row.caught:.1%}", f"{row.false_alarms:.1%}", f"{row.effect:.2f}", f"{row.true_effect:.2f}"
        table.add_row(row.name, row.check, *figures)
    console.print(f"{trials} broken and {trials} sound trials of each kind")
    console.print(table)


if __name__ == "__main__":
    main()
