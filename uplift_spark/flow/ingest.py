"""Raw campaigns as immutable bronze events: assignment, outcome, profile, and the truth where it is known (R1.1).

Events are what happened: an outcome of 0 is no event; an outcome that is not known is an event with a null value.
Both sources are historic loads: a row was known when it happened, whenever it is loaded (R1.3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from uplift_spark.causal.customers import CATEGORIES
from uplift_spark.causal.simulate import ATTRIBUTES, CHUNK, OUTCOMES, CampaignSimulator, effect_column
from uplift_spark.config import Trial
from uplift_spark.flow.clock import instant, plus_hours, utc

PROFILE_LEAD = timedelta(days=1)

Batches = Iterator[pa.RecordBatch]
Slice = Callable[[pa.RecordBatch, CampaignSimulator], Batches]


@dataclass(frozen=True)
class Stamp:
    """What every row of one ingest run carries; times without a zone are UTC."""

    experiment: str
    source: str
    run_id: str
    assigned_at: datetime
    ingested_at: datetime

    def origin(self) -> dict[str, Column]:
        """source, run_id and ingested_at."""
        return {
            "source": F.lit(self.source),
            "run_id": F.lit(self.run_id),
            "ingested_at": instant(self.ingested_at),
        }

    def observed(self, at: datetime) -> dict[str, Column]:
        """Times and origin of profiles observed, and known, at `at`."""
        return {"observed_at": instant(at), "known_at": instant(at), **self.origin()}

    def occurred(self, at: Column) -> dict[str, Column]:
        """Experiment, times and origin of outcomes that occurred, and were known, at `at`; they have no event_id."""
        no_id = F.lit(None).cast("string")
        times = {"occurred_at": at, "event_id": no_id, "known_at": at}
        return {"experiment": F.lit(self.experiment), **times, **self.origin()}


def simulated_tables(chunks: DataFrame, simulator: CampaignSimulator, units: int, stamp: Stamp) -> dict[str, DataFrame]:
    """The bronze tables of a simulated campaign, made where the rows of `chunks` (column id: chunk index) lie.

    Keys: profile, truth, outcome, assignment. Each frame makes its chunks anew when it is written, so that no table
    passes through the driver or a cache. The profile is observed a day before the assignment.
    """
    made = {
        name: chunks.mapInArrow(partial(_make, slice_=slice_, simulator=simulator, units=units), schema)
        for name, (slice_, schema) in _SLICES.items()
    }
    assigned_at = instant(stamp.assigned_at)
    experiment = {"experiment": F.lit(stamp.experiment)}
    return {
        "profile": made["profile"].withColumns(stamp.observed(utc(stamp.assigned_at) - PROFILE_LEAD)),
        "truth": made["truth"].withColumns({**experiment, "run_id": F.lit(stamp.run_id)}),
        "outcome": made["outcome"]
        .withColumns(stamp.occurred(plus_hours(assigned_at, F.col("delay_hours"))))
        .drop("delay_hours"),
        "assignment": made["assignment"].withColumns({**experiment, "assigned_at": assigned_at, **stamp.origin()}),
    }


def _make(batches: Batches, slice_: Slice, simulator: CampaignSimulator, units: int) -> Batches:
    """Worker: one table's rows of every chunk whose index arrives."""
    for batch in batches:
        for index in batch.column("id").to_pylist():
            yield from slice_(simulator.chunk(index, min(CHUNK, units - index * CHUNK)), simulator)


def _assignment_slice(chunk: pa.RecordBatch, simulator: CampaignSimulator) -> Batches:
    yield chunk.select(["unit_id", "treatment", "propensity"])


def _profile_slice(chunk: pa.RecordBatch, simulator: CampaignSimulator) -> Batches:
    yield chunk.select(["unit_id", *ATTRIBUTES])


def _outcome_slice(chunk: pa.RecordBatch, simulator: CampaignSimulator) -> Batches:
    for outcome in OUTCOMES:
        happened = chunk.filter(pc.not_equal(chunk.column(outcome), 0.0))
        yield pa.RecordBatch.from_pydict(
            {
                "unit_id": happened.column("unit_id"),
                "outcome": pa.repeat(outcome, happened.num_rows),
                "value": happened.column(outcome),
                "delay_hours": happened.column("delay_hours"),
            }
        )


def _truth_slice(chunk: pa.RecordBatch, simulator: CampaignSimulator) -> Batches:
    for outcome in OUTCOMES:
        for level in simulator.levels.treated:
            yield pa.RecordBatch.from_pydict(
                {
                    "unit_id": chunk.column("unit_id"),
                    "treatment": pa.repeat(level, chunk.num_rows),
                    "outcome": pa.repeat(outcome, chunk.num_rows),
                    "effect": chunk.column(effect_column(outcome, level)),
                }
            )


_SLICES: dict[str, tuple[Slice, str]] = {
    "assignment": (_assignment_slice, "unit_id string, treatment string, propensity double"),
    "outcome": (_outcome_slice, "unit_id string, outcome string, value double, delay_hours double"),
    "profile": (
        _profile_slice,
        ", ".join(["unit_id string", *(f"{a} {'string' if a in CATEGORIES else 'double'}" for a in ATTRIBUTES)]),
    ),
    "truth": (_truth_slice, "unit_id string, treatment string, outcome string, effect double"),
}


def named_rows(rows: DataFrame, trial: Trial, campaign: str) -> DataFrame:
    """A trial's typed rows (`operations.trials.read_trial`) with unit_id and treatment in place of the file's columns.

    Without a unit column the row number names the unit: `<campaign>-000001`. A value of the treatment column that
    `arms` does not map stays as it is, to be rejected as unknown.
    """
    arm = F.col(trial.treatment)
    level = arm if trial.arms is None else F.coalesce(_lookup(trial.arms, arm), arm)
    unit = F.col(trial.unit) if trial.unit else F.format_string(f"{campaign}-%06d", "_row")
    return rows.select(
        unit.alias("unit_id"), level.alias("treatment"), F.col("_row"), *trial.outcomes, *trial.attributes
    )


def _lookup(table: Mapping[str, str] | Mapping[str, float], key: Column) -> Column:
    return F.create_map(*[F.lit(part) for pair in table.items() for part in pair])[key]


def tally(good: DataFrame, trial: Trial) -> DataFrame:
    """Units by treatment: treatment, n, and per outcome (under its name) how many values the file does not know."""
    unknown = [F.count_if(F.col(outcome).isNull()).alias(outcome) for outcome in trial.outcomes]
    return good.groupBy("treatment").agg(F.count(F.lit(1)).alias("n"), *unknown)


def trial_tables(good: DataFrame, trial: Trial, odds: Mapping[str, float], stamp: Stamp) -> dict[str, DataFrame]:
    """The bronze tables of a trial's good rows. Keys: profile, outcome, assignment.

    odds   level -> propensity; in a completely randomised trial the share of its units estimates the design's odds
    The profile counts as observed at the assignment.
    """
    assigned_at = instant(stamp.assigned_at)
    assigned = {
        "experiment": F.lit(stamp.experiment),
        "assigned_at": assigned_at,
        "propensity": _lookup(odds, F.col("treatment")),
    }
    return {
        "profile": good.select("unit_id", *trial.attributes).withColumns(stamp.observed(stamp.assigned_at)),
        "outcome": _events(good, trial, stamp),
        "assignment": good.select("unit_id", "treatment").withColumns({**assigned, **stamp.origin()}),
    }


def _events(good: DataFrame, trial: Trial, stamp: Stamp) -> DataFrame:
    """One row per unit and outcome that is not 0; a null value where the file does not know it."""
    occurred_at = instant(utc(stamp.assigned_at) + timedelta(days=trial.outcome_after_days))
    outcomes = [F.struct(F.lit(o).alias("outcome"), F.col(o).alias("value")) for o in trial.outcomes]
    events = good.select("unit_id", F.inline(F.array(*outcomes))).filter("value IS NULL OR value <> 0")
    return events.withColumns(stamp.occurred(occurred_at))
