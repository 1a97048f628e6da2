"""One verb a file, installed as `uplift_spark.jobs`: its options, what it reads, decides, writes and reports.

`run(campaign, progress, run_id, *, ...)` does the work. Where the command line has options beyond --conf, --set and
--run-id, `options` takes them and returns the arguments of `run` that they stand for. A verb whose file says
`NAMES_ITS_RUN = True` takes no --run-id; with `READS_RESULTS = True` Spark starts when it is first needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uplift_spark.config import Config

DEMO_JOBS = ("ingest", "features", "train", "score", "lift", "report")
"""The jobs of `uplift demo`, in their order."""


def whole_line(config: Config) -> tuple[str, ...]:
    """Verbs from a campaign's source to its report.

    With `nuisances` where the configuration asks for them, and `policy` where it knows what the outcome is worth and
    every level costs.
    """
    costs, roles, named = config.economics.cost, config.roles, getattr(config.source, "arms", None)
    levels = set(named.values() if isinstance(named, dict) else roles.level_doses or costs) - {roles.control}
    priced = roles.outcome in config.economics.value and bool(levels) and levels <= set(costs)
    verbs = list(DEMO_JOBS)
    if config.nuisances is not None:
        verbs.insert(verbs.index("train"), "nuisances")
    if priced:
        verbs.insert(verbs.index("report"), "policy")
    return tuple(verbs)
