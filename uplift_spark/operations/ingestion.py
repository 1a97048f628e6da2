"""From a campaign's source to the bronze frames of one ingest run: the simulator, or a real trial's file (R1.1)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType

from uplift_spark.causal.simulate import CHUNK, CampaignSimulator
from uplift_spark.config import Config, RolesConf, Simulation, Trial
from uplift_spark.flow.clock import instant
from uplift_spark.flow.ingest import Stamp, named_rows, simulated_tables, tally, trial_tables
from uplift_spark.flow.pseudonyms import key_of, pseudonymised
from uplift_spark.lake.contracts import Contract, Rule, check, with_levels
from uplift_spark.lake.tables import Lake
from uplift_spark.operations.runs import Say
from uplift_spark.operations.sources import find
from uplift_spark.operations.trials import check_declaration, read_trial
from uplift_spark.vocabulary import ConfigError, ConflictError, DataError

CHUNKS_PER_TASK = 5
ROWS_PER_TASK = 100_000


@dataclass(frozen=True)
class Batch:
    """Bronze frames by table name, in the order to write them, and what to tell about them.

    The assignment comes last: until it is there, no later job sees the campaign.
    """

    tables: dict[str, DataFrame]
    details: dict[str, Any] = field(default_factory=dict)


def prepare(config: Config, lake: Lake, run_id: str, say: Say) -> Batch:
    """Frames of the run, lazily; raises a named error before anything is written when the source is unfit."""
    key = key_of(config)
    refuse_second_load(lake, config.campaign, run_id)
    if isinstance(config.source, Simulation):
        batch = _simulated(config, config.source, lake.spark, run_id, say)
        return replace(batch, tables={table: pseudonymised(rows, key) for table, rows in batch.tables.items()})
    return _trial(config, config.source, lake.spark, run_id, say)


def refuse_second_load(lake: Lake, campaign: str, run_id: str) -> None:
    """Raise ConflictError when another run has loaded this campaign: its units would be there twice."""
    table = "bronze.assignment"
    if not lake.exists(table):
        return
    others = lake.read(table).filter((F.col("experiment") == campaign) & (F.col("run_id") != run_id))
    if found := others.select("run_id").head():
        raise ConflictError(
            f"table {table} already holds campaign {campaign!r} from run {found[0]} with another source: "
            "give this one another name under `campaign`, or another lakehouse"
        )


def _simulated(config: Config, source: Simulation, spark: SparkSession, run_id: str, say: Say) -> Batch:
    simulator = CampaignSimulator(
        source.design, source.arms, source.confounding, source.noise, config.seed, f"{config.campaign}-"
    )
    check_levels(config.roles, simulator.levels.names)
    n_chunks = -(-source.units // CHUNK)
    chunks = spark.range(0, n_chunks, 1, -(-n_chunks // CHUNKS_PER_TASK))
    say(f"simulating {source.units:,} units, levels {', '.join(simulator.levels.names)}")
    stamp = Stamp(config.campaign, "simulation", run_id, source.assigned_at, datetime.now(UTC))
    frames = simulated_tables(chunks, simulator, source.units, stamp)
    return Batch(_named(frames, config.campaign), {"units": source.units})


def _trial(config: Config, source: Trial, spark: SparkSession, run_id: str, say: Say) -> Batch:
    check_declaration(source)
    levels = _declared_levels(config.roles, source)
    path = find(source)
    rows = read_trial(path, source)
    say(f"{rows.num_rows:,} rows read from {path.name}")
    named = pseudonymised(named_rows(_spread(rows, spark), source, config.campaign), key_of(config))
    good, rejected = check(named, _contract(levels, source))
    refused = {row["rule"]: row["n"] for row in rejected.groupBy("rule").agg(F.count("*").alias("n")).collect()}
    counts = [row.asDict() for row in tally(good, source).collect()]
    units = {row["treatment"]: row["n"] for row in sorted(counts, key=lambda row: str(row["treatment"]))}
    _require_arms(units, config.roles.control, path, source)
    odds = {level: n / sum(units.values()) for level, n in units.items()}
    stamp = Stamp(config.campaign, path.name, run_id, source.assigned_at, datetime.now(UTC))
    frames = trial_tables(good, source, odds, stamp)
    details = {"rows": rows.num_rows, "units": units, "rejected": refused, "unknown": _unknown(counts, source)}
    _tell(details, say)
    quarantine = {"quarantine": _stamped(rejected, stamp)} if refused else {}
    return Batch(_named({**quarantine, **frames}, config.campaign), details)


def _spread(rows: pa.Table, spark: SparkSession) -> DataFrame:
    """The rows behind a shuffle: without one Spark's optimizer works a local table off itself, row by row."""
    return spark.createDataFrame(rows).repartition(max(2, -(-rows.num_rows // ROWS_PER_TASK)), "_row")


def check_levels(roles: RolesConf, names: Collection[str]) -> None:
    """Raise ConfigError unless `roles` speak of the levels the source has."""
    if roles.control not in names:
        raise ConfigError(f"roles.control {roles.control!r} is none of the source's levels: {', '.join(names)}")
    if roles.dose is not None and set(roles.dose) != set(names):
        raise ConfigError(f"roles.dose names {', '.join(roles.dose)}; the source's levels are {', '.join(names)}")


def _declared_levels(roles: RolesConf, source: Trial) -> tuple[str, ...]:
    """Levels the configuration names; empty when it leaves them to the file."""
    if source.arms is not None:
        check_levels(roles, tuple(source.arms.values()))
        return tuple(dict.fromkeys(source.arms.values()))
    return tuple(roles.dose or ())


def _contract(levels: tuple[str, ...], source: Trial) -> Contract:
    """What every row of a trial's file must meet before any part of it becomes an event."""
    unique = ("unit_id",) if source.unit else ()  # row numbers do not repeat
    keys = StructType().add("unit_id", StringType()).add("treatment", StringType())
    rules = (
        Rule("unit_present", "unit_id IS NOT NULL", "the unit id is empty"),
        Rule("treatment_present", "treatment IS NOT NULL", "the treatment is empty"),
    )
    contract = Contract("bronze.assignment", "ingest", keys, rules, unique=unique, open=True)
    return with_levels(contract, levels) if levels else contract


def _require_arms(units: dict[str, int], control: str, path: Path, source: Trial) -> None:
    found = ", ".join(f"{level} ({n:,})" for level, n in units.items()) or "none"
    if control not in units:
        raise DataError(
            f"{path}: no good row of column {source.treatment!r} is the control {control!r}, found {found}: "
            "correct roles.control, source.arms or the file"
        )
    if len(units) < 2:
        raise DataError(f"{path}: column {source.treatment!r} has one arm only, {found}: a trial needs two")


def _unknown(counts: list[dict[str, Any]], source: Trial) -> dict[str, int]:
    totals = {outcome: sum(row[outcome] for row in counts) for outcome in source.outcomes}
    return {outcome: n for outcome, n in totals.items() if n}


def _stamped(rejected: DataFrame, stamp: Stamp) -> DataFrame:
    return rejected.withColumns(
        {
            "source": F.lit(stamp.source),
            "experiment": F.lit(stamp.experiment),
            "run_id": F.lit(stamp.run_id),
            "ingested_at": instant(stamp.ingested_at),
        }
    )


def _tell(details: dict[str, Any], say: Say) -> None:
    say("units: " + ", ".join(f"{level} {n:,}" for level, n in details["units"].items()))
    for rule, n in details["rejected"].items():
        say(f"{n:,} rows rejected by rule {rule}, kept in bronze.quarantine")
    for outcome, n in details["unknown"].items():
        say(f"{outcome} is not known of {n:,} units: kept as events without a value")


def _named(frames: dict[str, DataFrame], campaign: str) -> dict[str, DataFrame]:
    tables = {"profile": f"profile_{campaign}"}
    return {f"bronze.{tables.get(name, name)}": frame for name, frame in frames.items()}
