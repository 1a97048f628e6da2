"""A small campaign and its writing jobs: a new writing job is one more entry in `JOBS`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from uplift_spark.campaign import Campaign
from uplift_spark.config import (
    Compare,
    Config,
    Economics,
    Feature,
    ForestConf,
    Labels,
    Lakehouse,
    Lift,
    NuisancesConf,
    Policy,
    Refresh,
    RegistryConf,
    RolesConf,
    Scenario,
    Simulation,
    TreeConf,
    Tune,
)
from uplift_spark.events.load import Load
from uplift_spark.experiments.protocol import ReadingOptions
from uplift_spark.governance.approvals import VersionVerdict
from uplift_spark.governance.erasure import Erasure
from uplift_spark.governance.retention import run_retention
from uplift_spark.jobs import (
    alert,
    approve,
    assign,
    audit,
    card,
    check,
    erase,
    features,
    ingest,
    load,
    monitor,
    optimize,
    readout,
    reject,
    replay,
    retrain,
    stream,
    train,
)
from uplift_spark.jobs.replay import Replay
from uplift_spark.lake.schemas import ALERTS_TABLE, columns_to_fill
from uplift_spark.lake.tables import Lake
from uplift_spark.monitoring.alerts import AlertEvent
from uplift_spark.sections.costs import Costs
from uplift_spark.sections.experiment import ExperimentConf, ExperimentMetric, SwitchbackConf
from uplift_spark.sections.governance import ApprovalConf, AuditConf, BiasConf, Governance, RetentionConf
from uplift_spark.sections.monitoring import Monitoring
from uplift_spark.sections.source import EventsSource, EventTable, TableSource
from uplift_spark.serving.decisions import DECISION, DELIVERY, OUTCOME, DecisionLog, LogEntry

UNITS = 400

_FEATURES = (
    Feature("orders_30d", aggregate="count", source="event", event="order", window_days=30),
    Feature("spent_90d", aggregate="sum", source="event", event="order", window_days=90),
    Feature("items_90d", aggregate="distinct", source="event", event="order", window_days=90),
)
_DOSE = {"none": 0.0, "5%": 5.0, "10%": 10.0}
CAMPAIGN = Config(
    campaign="spring",
    source=Simulation(units=UNITS),
    roles=RolesConf("conversion", "none", ("recency_days", "region", "orders_30d", "spent_90d", "items_90d"), _DOSE),
    features=_FEATURES,
    labels=Labels(window_days=14),
    forest=ForestConf(n_trees=8, min_leaf=5, n_buckets=2),
    lift=Lift(segments=("region",), bins=10, replicates=50),
    economics=Economics(value={"conversion": 40.0}, cost={"5%": 0.5, "10%": 1.0}),
    policy=Policy(budget=5.0),
    scenarios={"half": Scenario(budget=2.5)},
    tree=TreeConf(depth=1, min_units=30),
    tune=Tune(trials=2, space={"min_leaf": [5, 10]}),
    nuisances=NuisancesConf(folds=2, permuted=0),
)

_APPROVAL = ApprovalConf(("metadata",), owner="crm", purpose="offers", legal_basis="consent")
GOVERNED = replace(CAMPAIGN, governance=Governance(AuditConf(), _APPROVAL, BiasConf(("region",), min_units=30)))

_THIRD = 1 / 3
TRIAL = ExperimentConf(
    "winter-2025",
    {"none": _THIRD, "5%": _THIRD, "10%": 1 - 2 * _THIRD},
    (ExperimentMetric("conversion", "conversion", "primary"),),
)

Run = Callable[[Lake], object]


@dataclass(frozen=True)
class Job:
    """A writing job and two runs of it; faults hit the second, in a lakehouse that holds the first.

    apart  the two runs may come in any order, or at once, and leave the same; a verdict on what was decided before
           may not
    """

    first: Run
    second: Run
    apart: bool = True


def _job(verb: str, config: Config, lake: Lake) -> object:
    return import_module(f"uplift_spark.jobs.{verb}").run(Campaign(replace(config, lakehouse=lake.lakehouse), lake))


def _runs(verb: str, **changes: Any) -> Job:
    """A job on the campaign, and then on the campaign with `changes`."""
    return Job(partial(_job, verb, CAMPAIGN), partial(_job, verb, replace(CAMPAIGN, **changes)))


def _unit(number: int) -> str:
    """The name of a unit of the simulated campaign, from 0."""
    return f"spring-{number + 1:010d}"


def _load(table: str, file: str, header: str, lines: list[str], lake: Lake) -> object:
    """Load a file of these lines, some of which break the contract; it lies beside the lakehouse."""
    path = Path(lake.lakehouse.path).parent / "sources" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")
    return load.run(Campaign(CAMPAIGN, lake), load=Load(table, str(path), "csv", historic=True))


def _orders(file: str, first: int, lake: Lake) -> object:
    """Three orders of every second unit before the assignment, and rows without a unit, for quarantine."""
    header = "unit_id,event,item,value,occurred_at,event_id"
    lines = [
        f"{_unit(unit)},order,i{(unit + k) % 7},{unit % 50 + k}.25,2024-12-{1 + (unit + 9 * k) % 28:02d},{unit}-{k}"
        for unit in range(first, UNITS, 2)
        for k in range(3)
    ]
    return _load("bronze.event", file, header, [*lines, ",order,i1,1,2024-12-01,", "x,order,i1,much,2024-12-01,"], lake)


def _sends_and_consent(lake: Lake) -> None:
    header = "unit_id,campaign,delivery_id,status,delivered_at,event_id"
    sends = [f"{_unit(unit)},spring,d{unit},delivered,2025-01-06T06:00Z," for unit in range(0, UNITS, 3)]
    _load("bronze.delivery", "sends.csv", header, sends, lake)
    header = "unit_id,purpose,granted,changed_at"
    _load(
        "bronze.consent", "consent.csv", header, [f"{_unit(u)},marketing,true,2024-01-01" for u in range(UNITS)], lake
    )


def _first_loads(lake: Lake) -> None:
    _sends_and_consent(lake)
    _orders("even.csv", 0, lake)


def _decisions(units: int, lake: Lake) -> object:
    """Load the log of a service, beside the lakehouse, with decisions about so many units; one outcome is rejected."""
    file = _sources(lake) / f"decisions_{units}.sqlite"
    if not file.exists():
        log = DecisionLog(file)
        log.append([entry for unit in range(units) for entry in _served(f"u{unit}", unit == 0)])
        log.close()
        with closing(sqlite3.connect(file)) as db, db:  # as if every stage had the same log
            db.execute("UPDATE log SET id = '00000000000000aa'")
            db.execute("UPDATE entry SET logged_at = 0")
    return load.run(Campaign(CAMPAIGN, lake), load=load.LoggedDecisions(file))


def _served(unit: str, rejected: bool) -> list[LogEntry]:
    """A decision about a unit, its delivery and its outcome; a rejected one is of a day to come."""
    at, later = "2025-03-03T09:00:00+00:00", "2025-03-09T09:00:00+00:00"
    decision = {
        "request_key": unit, "unit_id": unit, "level": "5%", "reason": "a rehearsal", "propensity": 0.8,
        "overall_propensity": 0.8, "explored": False, "decided_at": at, "degraded": [],
        "model": {"name": "spring", "version": 1, "published": "v1"},
    }  # fmt: skip
    delivery = {"unit_id": unit, "delivery_id": unit, "status": "delivered", "delivered_at": at, "known_at": at}
    outcome = {"unit_id": unit, "outcome": "conversion", "event_id": "e", "value": 1.0, "known_at": at}
    outcome["occurred_at"] = later if rejected else at
    facts = {DECISION: decision, DELIVERY: delivery, OUTCOME: outcome}
    return [LogEntry(kind, unit, body) for kind, body in facts.items()]


def _feed_and_stream(lake: Lake) -> None:
    """Stream a table's events, and give it more; it lies beside the lakehouse."""
    feed = Path(lake.lakehouse.path).parent / "sources" / "feed"
    for part in range(2):
        if not feed.exists() or part:
            rows = lake.spark.range(part * 300, part * 300 + 300, 1, 2).selectExpr(
                f"if(id % 50 = 0, '', concat('spring-', lpad(id % {UNITS} + 1, 10, '0'))) AS unit_id",
                "'visit' AS event",
                "CAST(NULL AS string) AS item",
                "CAST(id AS double) AS value",
                "timestamp'2024-12-24T12:00:00Z' AS occurred_at",
                "CAST(id AS string) AS event_id",
            )
            rows.write.format("delta").option("delta.enableChangeDataFeed", "true").mode("append").save(str(feed))
        if not part:
            _stream(lake)


def _stream(lake: Lake) -> object:
    source = Path(lake.lakehouse.path).parent / "sources" / "feed"
    return stream.run(Campaign(CAMPAIGN, lake), load=Load("bronze.event", str(source), "delta"))


def _replay(rule: str, repair: str, lake: Lake) -> object:
    return replay.run(Campaign(CAMPAIGN, lake), replay=Replay.of("bronze.event", rule, [repair]))


def _optimize(tables: tuple[str, ...], lake: Lake) -> object:
    return optimize.run(Campaign(CAMPAIGN, lake), tables=tables)


def _erase(units: tuple[str, ...], purge: bool, lake: Lake) -> object:
    return erase.run(Campaign(replace(CAMPAIGN, lakehouse=lake.lakehouse), lake), erasure=Erasure(units, purge))


def _expire(day: int, lake: Lake) -> object:
    """What is due on a day of January 2026: the older orders, and from the 16th on labels, too."""
    retention = RetentionConf({"bronze.event": 400, "silver.label": 375})
    config = replace(CAMPAIGN, lakehouse=lake.lakehouse, governance=Governance(retention=retention))
    return run_retention(config, lake, now=datetime(2026, 1, day, tzinfo=UTC))


def _sources(lake: Lake) -> Path:
    return Path(lake.lakehouse.path).parent / "sources"


def _own(lake: Lake, name: str, source: TableSource | EventsSource) -> Campaign:
    config = Config(name, source, RolesConf("bought", "none", ("age",)), lakehouse=lake.lakehouse)
    return Campaign(config, lake)


def shelf(units: int, lake: Lake, replaces: bool = False) -> object:
    """Ingest a campaign of that many units from a file of its own; one row of it is rejected."""
    path = _sources(lake) / f"shelf_{units}.csv"
    path.parent.mkdir(exist_ok=True)
    lines = [f"u{i},{'mail' if i % 2 else 'none'},{i % 3 % 2},{20 + i % 50}" for i in range(units)]
    path.write_text("\n".join(["unit,arm,bought,age", *lines, ",mail,1,30", ""]))
    source = TableSource(
        kind="table", path=str(path), unit="unit", treatment="arm", outcomes=("bought",), attributes=("age",),
        assigned_at=datetime(2025, 1, 6, tzinfo=UTC),
    )  # fmt: skip
    return ingest.run(_own(lake, "shelf", source), replace=replaces)


def nights(count: int, lake: Lake, replaces: bool = False, first: int = 1) -> object:
    """Ingest tables of events as they are after so many nights: files of 40 units each, one row of each rejected."""
    folder = _sources(lake) / f"nights_{first}_{count}"
    for night in range(first, count + 1):
        units = range(40 * night, 40 * night + 40)
        rows = {
            "sends": [f"u{i},{'mail' if i % 2 else 'none'},2025-01-06T00:00Z,.5" for i in units],
            "orders": [f"u{i},1,2025-01-07T00:00Z" for i in units if i % 3] + [",1,2025-01-07T00:00Z"],
            "people": [f"u{i},{20 + i % 50},2025-01-01T00:00Z" for i in units],
        }
        heads = {
            "sends": "unit_id,treatment,assigned_at,propensity",
            "orders": "unit_id,value,occurred_at",
            "people": "unit_id,age,observed_at",
        }
        for table, lines in rows.items():
            (folder / table).mkdir(parents=True, exist_ok=True)
            (folder / table / f"{night}.csv").write_text("\n".join([heads[table], *lines, ""]))
    source = EventsSource(
        "events",
        assignment=EventTable(str(folder / "sends"), format="csv"),
        outcome=EventTable(str(folder / "orders"), format="csv", columns={"outcome": "'bought'"}, historic=True),
        profile=EventTable(str(folder / "people"), format="csv", historic=True),
    )
    return ingest.run(_own(lake, "nights", source), replace=replaces)


def _assign(ramp: float, lake: Lake) -> object:
    """Arms for units of a file, which lies beside the lakehouse."""
    path = Path(lake.lakehouse.path).parent / "sources" / "crm.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["unit_id", *map(_unit, range(UNITS))]) + "\n")
    trial = replace(TRIAL, ramp=ramp)
    campaign = Campaign(replace(CAMPAIGN, campaign="winter", lakehouse=lake.lakehouse, experiment=trial), lake)
    return assign.run(campaign, units=assign.UnitsToAssign(str(path), datetime(2025, 2, 3, tzinfo=UTC)))


def _schedule(regions: int, lake: Lake, why: str | None = None) -> object:
    """A switchback's blocks, of regions of a file, which lies beside the lakehouse; with a reason, their reading."""
    path = Path(lake.lakehouse.path).parent / "sources" / f"regions{regions}.csv"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(["region", *(f"r{k}" for k in range(regions))]) + "\n")
    days = {"start": date(2025, 2, 3), "end": date(2025, 2, 9)}
    table = path.parent / "rides.parquet"
    trial = replace(TRIAL, salt="hours-2025", table=str(table), switchback=SwitchbackConf(hours=6.0), **days)
    campaign = Campaign(replace(CAMPAIGN, campaign="hours", lakehouse=lake.lakehouse, experiment=trial), lake)
    result = assign.run(campaign, units=assign.UnitsToAssign(str(path), datetime(2025, 2, 3, tzinfo=UTC)))
    return result if why is None else _read_blocks(campaign, table, why)


def _read_blocks(campaign: Campaign, table: Path, why: str) -> object:
    """A reading of the switchback: an observation an hour in two regions."""
    if not table.exists():
        times, regions = pd.date_range("2025-02-03", periods=7 * 24, freq="h"), ("r0", "r1")
        rows = pd.DataFrame([(time, region) for time in times for region in regions], columns=["time", "region"])
        rows = rows.assign(conversion=(rows.index * 7 % 11 < 4).astype(float))
        rows.astype({"time": "datetime64[us]"}).to_parquet(table)
    return readout.run(campaign, reading=ReadingOptions(datetime(2025, 2, 10, tzinfo=UTC), override=why))


_FIRING = "3f2a9c0d11e4b7a8"  # fingerprint of an alert


def _first_alert(lake: Lake) -> object:
    """An alert that fires, and somebody who takes care of it."""
    at = datetime(2025, 2, 3, tzinfo=UTC)
    fired = AlertEvent("spring", _FIRING, "label_lag", "ticket", "{}", 1, 1, "fired", at, notify=True)
    schema = columns_to_fill(ALERTS_TABLE)
    row = tuple(asdict(fired)[name] for name in schema.fieldNames())
    lake.write(ALERTS_TABLE, lake.spark.createDataFrame([row], schema), "alerts-fired")
    return _alert("acknowledge", lake)


def _alert(what: str, lake: Lake) -> object:
    deed = alert.AlertDeed(what, _FIRING, "ann", "the provider was down")
    return alert.run(Campaign(CAMPAIGN, lake), deed=deed, now=datetime(2025, 2, 4, tzinfo=UTC))


def _read(job: ModuleType, why: str, lake: Lake) -> object:
    """The training set of the simulated campaign; so few units may be refused for any reason."""
    campaign = Campaign(replace(CAMPAIGN, lakehouse=lake.lakehouse, experiment=TRIAL), lake)
    return job.run(campaign, reading=ReadingOptions(final=True, override=why))


def _verdict(job: ModuleType, version: int, lake: Lake) -> object:
    """Whoever runs this says yes or no to a version of the simulated campaign's model."""
    campaign = Campaign(replace(GOVERNED, lakehouse=lake.lakehouse), lake)
    return job.run(campaign, verdict=VersionVerdict(version, "bob", "a rehearsal", approves=job is approve))


def _card(version: int, lake: Lake) -> object:
    """The documents of a version of the simulated campaign's model, beside the lakehouse."""
    campaign = Campaign(replace(GOVERNED, lakehouse=lake.lakehouse), lake)
    return card.run(campaign, version=version, to=_sources(lake) / "cards")


def _look_for_bias(level: float, lake: Lake) -> object:
    bias = BiasConf(("region",), min_units=30, level=level)
    governed = replace(GOVERNED, lakehouse=lake.lakehouse, governance=replace(GOVERNED.governance, bias=bias))
    return audit.run(Campaign(governed, lake), question=audit.AuditQuestion("bias"))


_MONDAY, _WEEK = datetime(2025, 1, 6, tzinfo=UTC), timedelta(days=7)


def _weekly(weeks: float, lake: Lake) -> Campaign:
    """A campaign of three weeks, as it was known so many weeks after its start: after the first, mail harms whom it
    helped before."""
    path = _sources(lake) / "weekly.csv"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        draw, n = np.random.default_rng(5), 1500
        lines = ["unit,arm,bought,age,at"]
        for week in range(3):
            for unit in range(n):
                age, mail, hours = draw.normal(40, 10), draw.random() < 0.5, draw.uniform(0, 168)
                effect = 0.4 * (age > 40) if week < 1 else -0.2 if age > 40 else 0.3
                bought = draw.random() < 0.25 + mail * effect
                at = _MONDAY + week * _WEEK + timedelta(hours=hours)
                lines.append(f"w{week}-{unit},{'mail' if mail else 'none'},{int(bought)},{age:.3f},{at:%FT%TZ}")
        path.write_text("\n".join([*lines, ""]))
    source = TableSource(
        kind="table", path=str(path), unit="unit", treatment="arm", outcomes=("bought",), attributes=("age",),
        assigned_at="at",
    )  # fmt: skip
    config = Config(
        "weekly",
        source,
        RolesConf("bought", "none", ("age",)),
        labels=Labels(window_days=2, as_of=_MONDAY + weeks * _WEEK),
        forest=CAMPAIGN.forest,
        lift=Lift(replicates=50),
        compare=Compare(points=5),
        monitoring=Monitoring(hours=168),
        governance=Governance(AuditConf()),
        lakehouse=lake.lakehouse,
    )
    return Campaign(config, lake)


def _first_week(lake: Lake) -> None:
    """The model of the first week, which is then monitored."""
    early = _weekly(1.3, lake)
    for job in (ingest, features, train):
        job.run(early)
    _monitor(0, lake)


def _monitor(week: int, lake: Lake) -> object:
    """A window of a week, as it was known at the end of the third."""
    at = _MONDAY + week * _WEEK
    return monitor.run(_weekly(2.9 if week else 1.3, lake), window=at, now=at + 2 * _WEEK)


def _retrain(because: str, lake: Lake) -> object:
    return retrain.run(_weekly(2.9, lake), because=because)


# Sums of doubly robust scores cannot be refreshed, so this model has none.
_PLAIN = replace(CAMPAIGN, nuisances=None, registry=RegistryConf(name="plain"))


def _train_and_refresh(lake: Lake) -> object:
    _job("train", _PLAIN, lake)
    return _job("refresh", _PLAIN, lake)


_SOME_TABLES = ("bronze.event", "bronze.outcome", "silver.label", "gold.uplift_scores")

# In the order they need each other: before a job's first run, all jobs above it have run twice.
JOBS: dict[str, Job] = {
    "load": Job(_first_loads, partial(_orders, "odd.csv", 1)),
    # The first run loads what was decided about some units, the second the rest; an older log is refused.
    "decisions": Job(partial(_decisions, 40), partial(_decisions, 90), apart=False),
    "ingest": _runs("ingest", campaign="autumn"),
    "events": Job(partial(nights, 1), partial(nights, 3)),
    "features": _runs("features", holdout=0.4),
    "nuisances": _runs("nuisances", seed=8),
    "train": _runs("train", seed=8),
    # The first run scores with the first model, the second with the champion.
    "score": Job(partial(_job, "score", replace(CAMPAIGN, registry=RegistryConf(version=1))), _runs("score").second),
    "lift": _runs("lift", lift=replace(CAMPAIGN.lift, replicates=60)),
    "policy": _runs("policy", policy=Policy(budget=8.0)),
    "simulate": _runs("simulate", policy=Policy(budget=8.0)),
    # The first run assigns half of the units, the second the others; a ramp that falls is refused.
    "assign": Job(partial(_assign, 0.5), partial(_assign, 1.0), apart=False),
    # The first run makes the blocks of two regions, the second those of a third.
    "schedule": Job(partial(_schedule, 2), partial(_schedule, 3)),
    "blocks": Job(partial(_schedule, 2, why="a rehearsal"), partial(_schedule, 2, why="another")),
    "check": Job(partial(_read, check, "a rehearsal"), partial(_read, check, "another")),
    "readout": Job(partial(_read, readout, "a rehearsal"), partial(_read, readout, "another")),
    "compare": _runs("compare", compare=Compare(against=("t_learner",))),
    "tree": _runs("tree", tree=TreeConf(depth=2, min_units=30)),
    "tune": _runs("tune", seed=8),
    "costs": _runs("costs", costs=Costs(rates={"other": 1.0})),
    # An audit that is repeated after another one is on record once more.
    "audit": Job(partial(_look_for_bias, 0.05), partial(_look_for_bias, 0.01), apart=False),
    "approve": Job(partial(_verdict, approve, 1), partial(_verdict, approve, 2), apart=False),
    "reject": Job(partial(_verdict, reject, 1), partial(_verdict, reject, 2), apart=False),
    "card": Job(partial(_card, 1), partial(_card, 2)),
    # A campaign of its own: a window of its first week, and of its second.
    "monitor": Job(_first_week, partial(_monitor, 1), apart=False),
    "retrain": Job(partial(_retrain, "a rehearsal"), partial(_retrain, "another"), apart=False),
    # The first run acknowledges an alert, the second closes it.
    "alert": Job(_first_alert, partial(_alert, "close"), apart=False),
    # The first run trains and finds no new row; the second refreshes that model, so it comes later, and has rows fade.
    "refresh": Job(
        _train_and_refresh,
        partial(_job, "refresh", replace(_PLAIN, refresh=Refresh(half_life_days=30.0))),
        apart=False,
    ),
    "stream": Job(_feed_and_stream, _stream),
    "replay": Job(
        partial(_replay, "value_readable", "value='1'"), partial(_replay, "unit_present", f"unit_id='{_unit(1)}'")
    ),
    # All tables would be five minutes of the same for every ten kills.
    "optimize": Job(partial(_optimize, ("bronze.event",)), partial(_optimize, _SOME_TABLES)),
    "expire": Job(partial(_expire, 10), partial(_expire, 20)),
    # Two at once: one is refused and runs again. The last model is the same, those in between tell who came first.
    "erase": Job(partial(_erase, (_unit(2),), False), partial(_erase, (_unit(1), _unit(4)), False), apart=False),
    "purge": Job(partial(_erase, (_unit(5),), False), partial(_erase, (), True)),
}


# Two runs that must not both add their rows, for two processes at once; the tests know what must be there afterwards.
AT_ONCE: dict[str, Job] = {
    "shelf": Job(partial(shelf, 500), partial(shelf, 600)),
    "shelf again": Job(partial(shelf, 500, replaces=True), partial(shelf, 600, replaces=True)),
    "nights": Job(partial(nights, 1), partial(nights, 2)),
    "nights again": Job(partial(nights, 2, replaces=True), partial(nights, 3, replaces=True, first=2)),
}


def lakehouse(folder: Path) -> Lakehouse:
    """Where the campaign's tables and models lie below a folder."""
    return Lakehouse(path=str(folder / "lakehouse"))
