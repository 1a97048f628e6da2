"""The whole path of a service in one command (`make serve-demo`), on simulated customers whose true effects are known.

    python -m tests.serving.served_day --units 12000

Trains on a trial, publishes, serves on loopback with two workers, sends a day of traffic through the API: decisions
with holdout and exploration, deliveries, and outcomes that come as the decided level has them come. Then it loads the
log of decisions, labels what was served, monitors it, and shows what the service brought beside the truth. Ends with
exit code 1 where answers, log and bronze do not count the same.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import urllib3
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from tests.load.service import free_port, ready
from uplift_spark.campaign import Campaign
from uplift_spark.config import Leakage, Lift
from uplift_spark.events import simulate
from uplift_spark.events.load import Load
from uplift_spark.events.simulate import draw_customers
from uplift_spark.jobs import load, monitor
from uplift_spark.jobs.load import LoggedDecisions
from uplift_spark.lake.schemas import (
    DECISION_TABLE,
    LABEL_TABLE,
    QUARANTINE,
    TRUTH_TABLE,
    bronze_table,
    gold_table,
    profile_table,
)
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT
from uplift_spark.serving.client import ServingClient
from uplift_spark.serving.decisions import DECISION, DELIVERY, OUTCOME, DecisionLog
from uplift_spark.serving.reasons import HELD_OUT
from uplift_spark.serving.store import decision_log_file

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf" / "demo.yaml"
OUTCOME_NAME = "conversion"
HOLDOUT, EXPLORATION = 0.2, 0.2
STRANGERS = 25  # who come by and are not published
CLIENTS = 8

console = Console(width=120, highlight=False)


def main() -> None:
    """Run everything, print it, and exit with 1 where counts do not reconcile."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=12_000, help="simulated customers")
    parser.add_argument("--trees", type=int, default=100)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "serve-demo", help="is made anew")
    arguments = parser.parse_args()
    sys.exit(0 if serve_a_day(arguments.folder, arguments.units, arguments.trees) else 1)


def serve_a_day(folder: Path, units: int, trees: int) -> bool:
    """The whole path below a folder, which is made anew; whether all counts reconcile."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    overrides = overrides_of(folder, units, trees)
    with Campaign(CONF, overrides=overrides).closing() as campaign:
        _say("1. a trial of simulated customers: ingested, trained on, scored, planned, published")
        campaign.run("ingest", "features", "train", "score", "policy", progress=_quiet)
        campaign.job("publish", _quiet)
        truth = Truth.of(campaign)
        _say(f"2. a day of traffic through the API, {CLIENTS} clients, two workers")
        with served(folder, overrides) as url:
            day = traffic(url, truth, np.random.default_rng(campaign.config.seed))
        _say("3. the log loaded into bronze, twice, as the second time must add nothing")
        first, again = (load.run(campaign, load=LoggedDecisions()).details["added"] for _ in range(2))
        live = live_campaign(campaign, folder, truth, day.end)
        counts = reconciled(live, campaign, day, first, again)
        console.print(counts.table)
        _say("4. what was served: labels, the monitor's KPIs, lift by the model's ranking, beside the truth")
        live.run("features", "score", "lift", progress=_quiet)
        monitor.run(live, window=day.start, now=day.end + timedelta(days=2))
        console.print(kpi_lines(live))
        console.print(lift_lines(live, truth))
        console.print(readout_lines(live, truth))
    console.print(
        "Estimates are from what was logged and reported, true figures from the simulator: an interval holds its true\n"
        "figure on 19 days of 20. Attributes are those of the trial, months old, which the KPI of freshness says."
    )
    console.print("Counts reconcile." if counts.right else "Counts do NOT reconcile: see the first table.")
    return counts.right


def overrides_of(folder: Path, units: int, trees: int) -> tuple[str, ...]:
    """What differs from the demo's configuration."""
    facts = {
        "lakehouse.path": folder / "lakehouse", "source.units": units, "forest.n_trees": trees, "lift.outcomes": [],
        "source.max_lift": 0.1, "policy.budget": units * 0.1, "consent.required": "false",
        "serving.port": free_port(), "serving.workers": 2, "serving.rate": 1e6,
        "serving.holdout": HOLDOUT, "serving.exploration": EXPLORATION,
    }  # fmt: skip
    return tuple(f"{key}={value}" for key, value in facts.items())


# --------------------------------------------------------------------------------------------------------------------
# What is true of the simulated customers.


@dataclass(frozen=True)
class Truth:
    """The customers: ids, levels with the control first, probability to buy left alone, what each level adds to it."""

    ids: list[str]
    levels: tuple[str, ...]
    base: np.ndarray
    effect: np.ndarray  # [units, levels], the control's 0

    @classmethod
    def of(cls, campaign: Campaign) -> Truth:
        """Of the campaign's simulator; units are in the order of their ids."""
        config, source = campaign.config, campaign.config.source
        rows = campaign.true_effects()
        assert rows is not None and source is not None
        wide = rows.groupBy(UNIT).pivot(TREATMENT).agg(F.max("effect")).orderBy(UNIT).toPandas()
        levels = (config.roles.control, *(config.roles.dose or {}))
        levels = tuple(dict.fromkeys(levels))
        effect = np.column_stack([np.zeros(len(wide)), *(wide[level].to_numpy() for level in levels[1:])])
        base = np.concatenate(
            [
                _buying_rate(np.random.default_rng([config.seed, index]), size)
                for index, size in simulate.chunk_sizes(len(wide))
            ]
        )
        return cls(wide[UNIT].tolist(), levels, base, effect)

    def of_level(self, units: Sequence[str], levels: Sequence[str]) -> np.ndarray:
        """True effect on each unit of the level beside it."""
        place = {unit: i for i, unit in enumerate(self.ids)}
        code = {level: k for k, level in enumerate(self.levels)}
        return np.array([self.effect[place[u], code[level]] for u, level in zip(units, levels, strict=True)])


def _buying_rate(rng: np.random.Generator, size: int) -> np.ndarray:
    score = simulate._score(draw_customers(rng, simulate.CHUNK))
    return np.asarray(simulate.BASE_RATE * np.exp(score - simulate._LOG_MEAN_EXP))[:size]


# --------------------------------------------------------------------------------------------------------------------
# The day.


@dataclass
class Day:
    """What clients saw: answers by request key, deliveries and outcomes that the service took in."""

    start: datetime
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    repeated: int = 0
    deliveries: int = 0
    outcomes: int = 0
    end: datetime = datetime.min


@contextmanager
def served(folder: Path, overrides: Sequence[str]) -> Iterator[str]:
    """`uplift serve` as a user starts it; gives its address, and ends it."""
    sets = [part for one in overrides for part in ("--set", one)]
    port = next(one for one in overrides if one.startswith("serving.port=")).partition("=")[2]
    command, url = [sys.executable, "-m", "uplift_spark.cli", "serve", "--conf", str(CONF), *sets], ""
    with (folder / "service.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT) as one:
        try:
            pool, url, end = urllib3.PoolManager(retries=False), f"http://127.0.0.1:{port}", time.monotonic() + 240
            while not ready(pool, url):
                if time.monotonic() > end or one.poll() is not None:
                    raise RuntimeError(f"the service did not start:\n{(folder / 'service.log').read_text()[-2000:]}")
                time.sleep(0.2)
            yield url
        finally:
            one.terminate()


def traffic(url: str, truth: Truth, rng: np.random.Generator) -> Day:
    """Most customers come by, some twice, a few strangers; some requests are sent again, as after a lost answer.

    Whoever gets a level is sent it; whoever comes buys as the first level decided has it.
    """
    day = Day(datetime.now(UTC))
    come = np.flatnonzero(rng.random(len(truth.ids)) < 0.8)
    visits = [(f"visit-{i}", truth.ids[i]) for i in come]
    visits += [(f"again-{i}", truth.ids[i]) for i in come[::10]]
    visits += [(f"stranger-{i}", f"stranger-{i}") for i in range(STRANGERS)]
    client = ServingClient(url, control=truth.levels[0])

    def decide(visit: tuple[str, str]) -> dict[str, Any]:
        return client.decide(visit[1], request_key=visit[0])

    with ThreadPoolExecutor(CLIENTS) as pool:
        for answer in pool.map(decide, visits):
            day.answers[answer["request_key"]] = answer
        again = visits[::20]
        day.repeated = len(again)
        for answer in pool.map(decide, again):
            assert answer == day.answers[answer["request_key"]], f"{answer['request_key']} has two answers"
    decided = {answer["unit_id"]: answer for key, answer in reversed(day.answers.items()) if key.startswith("visit")}
    at = datetime.now(UTC).isoformat()
    sent = [one for one in decided.values() if one["level"] != truth.levels[0]]
    deliveries = [
        {"delivery_id": f"mail-{one['unit_id']}", "unit_id": one["unit_id"], "status": "delivered", "delivered_at": at}
        for one in sent
    ]
    levels = [decided[truth.ids[i]]["level"] for i in come]
    rate = truth.base[come] + truth.of_level([truth.ids[i] for i in come], levels)
    bought = come[rng.random(len(come)) < rate]
    outcomes = [
        {"event_id": "order-1", "unit_id": truth.ids[i], "outcome": OUTCOME_NAME, "value": 1.0, "occurred_at": at}
        for i in bought
    ]
    day.deliveries, day.outcomes = _reported(client, "deliveries", deliveries), _reported(client, "outcomes", outcomes)
    assert _reported(client, "outcomes", outcomes) == 0, "outcomes that are sent twice count twice"
    day.end = datetime.now(UTC)
    return day


def _reported(client: ServingClient, kind: str, rows: list[dict[str, Any]]) -> int:
    return sum(client.report(kind, rows[first : first + 500]) for first in range(0, len(rows), 500))


# --------------------------------------------------------------------------------------------------------------------
# What came of it.


def live_campaign(campaign: Campaign, folder: Path, truth: Truth, end: datetime) -> Campaign:
    """The campaign that the service's decisions are loaded under: same customers, same features, the trial's model."""
    config, lake = campaign.config, campaign.lake
    name = f"{config.campaign}_served"
    rows = lake.read(profile_table(config.campaign)).drop("source", RUN_ID, "ingested_at").toArrow()
    pq.write_table(rows, folder / "profile.parquet")
    load.run(campaign, load=Load(profile_table(name), str(folder / "profile.parquet"), "parquet"))
    effects = [
        {UNIT: unit, CAMPAIGN: name, TREATMENT: level, "outcome": OUTCOME_NAME, "effect": float(truth.effect[i, k])}
        for i, unit in enumerate(truth.ids)
        for k, level in enumerate(truth.levels)
        if k
    ]
    lake.write(TRUTH_TABLE, lake.spark.createDataFrame(pa.Table.from_pylist(effects)), "served-truth")
    labels = replace(config.labels, window_days=1.0, as_of=end + timedelta(days=1.5))
    changes: dict[str, Any] = {
        "campaign": name, "source": None, "registry": replace(config.registry, name=config.campaign),
        "labels": labels, "lift": Lift(), "leakage": Leakage(randomised=False),
    }  # fmt: skip
    return campaign.changed(replace(config, **changes))


@dataclass(frozen=True)
class Reconciled:
    """Counts of the day, side by side, and whether they agree."""

    table: Table
    right: bool


def reconciled(
    live: Campaign, campaign: Campaign, day: Day, first: dict[str, int], again: dict[str, int]
) -> Reconciled:
    """Count answers, log and bronze."""
    log, lake = DecisionLog(decision_log_file(campaign.config)), live.lake
    logged = [body for _, body in log.entries(DECISION, limit=10**9)]
    decisions = lake.read(DECISION_TABLE).where(F.col(CAMPAIGN) == live.name).toPandas()
    answered, in_log = (Counter(one["level"] for one in rows) for rows in (day.answers.values(), logged))
    in_bronze = Counter(decisions[TREATMENT])
    rows = [(f"decisions: {level}", *(c[level] for c in (answered, in_log, in_bronze))) for level in sorted(answered)]
    known = {one["unit_id"] for one in day.answers.values() if one["overall_propensity"] is not None}
    firsts = {one["unit_id"] for one in logged if one["overall_propensity"] is not None}
    rows.append(("customers assigned by them", len(known), len(firsts), first["assignment"]))
    for what, kind, n in (("deliveries", DELIVERY, day.deliveries), ("purchases", OUTCOME, day.outcomes)):
        in_table = lake.read(bronze_table(kind)).where(F.col(CAMPAIGN) == live.name).count()
        rows.append((what, n, len(log.entries(kind, limit=10**9)), in_table))
    rejected = 0
    if lake.exists(QUARANTINE):
        rejected = lake.read(QUARANTINE).where(F.col("source").startswith("decisions.sqlite")).count()
    table = Table("", "answered or accepted", "in the log", "in bronze", title="Counts")
    for what, *numbers in rows:
        table.add_row(what, *(f"{n:,}" for n in numbers))
    table.add_row("sent again, same answer", f"{day.repeated:,}", "0", "0")
    table.add_row("loaded by a second run", "", "", f"{sum(again.values()):,}")
    table.add_row("rejected", "", "", f"{rejected:,}")
    right = all(len(set(numbers)) == 1 for _, *numbers in rows) and not sum(again.values()) and not rejected
    return Reconciled(table, right and all(one["logged"] for one in day.answers.values()))


def kpi_lines(live: Campaign) -> Table:
    """The monitor's KPIs of the day that were measured."""
    rows = live.lake.read(gold_table("kpi")).where(F.col(CAMPAIGN) == live.name).where("value IS NOT NULL")
    table = Table("KPI", "of", "value", "interval", "state", title="The monitor's KPIs of the day")
    for row in rows.orderBy("kpi", "cut").toPandas().to_dict("records"):
        interval = _interval(row["lower"], row["upper"], "{:.4g}")
        table.add_row(row["kpi"], row["cut"], f"{row['value']:.4g}", interval, row["state"])
    return table


def lift_lines(live: Campaign, truth: Truth) -> Table:
    """Effects by the model's ranking among the hold-out, which training has not seen, beside the truth."""
    lift = live.lift_table()
    lift = lift[lift["cut"] == "all"]
    holdout = live.training_set(split="holdout").select(UNIT).toPandas()[UNIT].tolist()
    table = Table("level", "customers", "predicted", "observed", "95 % interval", "true", title="Lift table, hold-out")
    for row in lift.to_dict("records"):
        true = truth.of_level(holdout, [row[TREATMENT]] * len(holdout)).mean()
        numbers = (f"{row[name]:.4f}" for name in ("predicted_uplift", "uplift"))
        interval = _interval(row["uplift_lower"], row["uplift_upper"])
        table.add_row(row[TREATMENT], f"{row['n']:,}", *numbers, interval, f"{true:.4f}")
    return table


def readout_lines(live: Campaign, truth: Truth) -> Table:
    """What the service brought against its holdout, and each level against the control by the logged propensities."""
    lake = live.lake
    labels = lake.read(LABEL_TABLE).where(F.col(CAMPAIGN) == live.name)
    firsts = lake.read(DECISION_TABLE).where((F.col(CAMPAIGN) == live.name) & F.col("assigns")).select(UNIT, "reason")
    value = F.col("outcomes")[OUTCOME_NAME].alias("y")
    rows = labels.join(firsts, UNIT).select(UNIT, TREATMENT, "propensity", "reason", value).toPandas()
    table = Table(
        "compared", "customers", "estimate", "95 % interval", "true",
        title="More purchases per customer: what was served, against the control",
    )  # fmt: skip
    held = (rows["reason"] == HELD_OUT).to_numpy()
    y = rows["y"].to_numpy()
    effect = y[~held].mean() - y[held].mean()
    error = np.sqrt(y[~held].var(ddof=1) / (~held).sum() + y[held].var(ddof=1) / held.sum())
    true = truth.of_level(rows[UNIT][~held].tolist(), rows[TREATMENT][~held].tolist()).mean()
    _add(table, "the served policy, against the holdout", len(rows), effect, error, true)
    for level in truth.levels[1:]:
        effect, error = _by_propensity(rows, level, truth.levels[0])
        true = truth.of_level(rows[UNIT].tolist(), [level] * len(rows)).mean()
        _add(table, f"{level} for everybody", len(rows), effect, error, true)
    return table


def _by_propensity(rows: pd.DataFrame, level: str, control: str) -> tuple[float, float]:
    """Difference of two weighted means, and its standard error by their influence functions."""
    influence, means = np.zeros(len(rows)), []
    for one, sign in ((level, 1.0), (control, -1.0)):
        weight = (rows[TREATMENT] == one).to_numpy() / rows["propensity"].to_numpy()
        mean = float((weight * rows["y"]).sum() / weight.sum())
        influence += sign * weight * (rows["y"].to_numpy() - mean) / weight.mean()
        means.append(sign * mean)
    return sum(means), float(influence.std(ddof=1) / np.sqrt(len(rows)))


def _add(table: Table, what: str, n: int, effect: float, error: float, true: float) -> None:
    interval = _interval(effect - 1.96 * error, effect + 1.96 * error)
    table.add_row(what, f"{n:,}", f"{effect:.4f}", interval, f"{true:.4f}")


def _interval(lower: float | None, upper: float | None, form: str = "{:.4f}") -> str:
    known = lower is not None and upper is not None and np.isfinite(lower) and np.isfinite(upper)
    return f"{form.format(lower)} to {form.format(upper)}" if known else ""


def _say(line: str) -> None:
    console.print(f"[bold]{line}[/bold]")


def _quiet(line: str) -> None:
    """Progress of the jobs, which nobody waits for here; warnings are shown."""
    if "warning" in line:
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    main()
