"""A campaign's source, simulated or a trial's CSV file, as bronze events: the work of `uplift ingest`.

`find` fetches a public data set, `read_trial` reads its file, `simulated_tables` and `trial_tables` make the bronze
tables, `prepare` puts one run together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructType

from uplift_spark.config import Config, RolesConf, Simulation, TrialConf
from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem, hint
from uplift_spark.events.files import read_texts
from uplift_spark.events.simulate import (
    ATTRIBUTES,
    CATEGORIES,
    CHUNK,
    OUTCOMES,
    ArmsOf,
    CampaignSimulator,
    effect_column,
)
from uplift_spark.governance.privacy import key_of, pseudonymised
from uplift_spark.lake.contracts import count_checked
from uplift_spark.lake.schemas import (
    ASSIGNMENT_TABLE,
    OUTCOME_TABLE,
    QUARANTINE,
    TRUTH_TABLE,
    Contract,
    Rule,
    bronze_table,
    check,
    profile_table,
    with_levels,
)
from uplift_spark.lake.session import instant, plus_hours, utc
from uplift_spark.lake.tables import Lake
from uplift_spark.roles import CAMPAIGN, DOSE, TREATMENT, DoseBins, checked_name
from uplift_spark.runtime import ProgressCallback, state_folder
from uplift_spark.spark_versions import local_frame, mapped_frame, union_by_name

# --------------------------------------------------------------------------------------------------------------------
# Public data sets: from $UPLIFT_DATA, else downloaded once. A file is used only when its checksum is the declared one.

DATA_FOLDER = "UPLIFT_DATA"
_TIMEOUT_SECONDS = 30
_BLOCK = 1 << 20


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def find(trial: TrialConf) -> Path:
    """Find a trial's file and verify its checksum; returns the local path.

    Looks in $UPLIFT_DATA, then for the path itself, then in `cache_folder`, then downloads from `trial.url` into it. A
    file that is there must have `trial.sha256`, a download `trial.url_sha256`, where these are named.
    Raises DataError when the content is not the declared one, EnvironmentProblem when the file cannot be had.
    """
    folder = os.environ.get(DATA_FOLDER)
    for path in (*([Path(folder) / trial.file] if folder else []), Path(trial.file)):
        if path.is_file():
            return _verified(path, trial.sha256)
    if trial.url is None:
        raise EnvironmentProblem(_missing(trial, "it has no public home to download from"))
    declared = trial.url_sha256 or trial.sha256
    key = declared or hashlib.sha256(trial.url.encode()).hexdigest()
    cached = cache_folder() / f"{key[:16]}-{Path(trial.url).name}"
    if not cached.is_file():
        _download(trial, cached, declared)
    return _verified(cached, declared)


def cache_folder() -> Path:
    """Where downloads are kept; not created here."""
    return state_folder() / "data"


def _verified(path: Path, declared: str | None) -> Path:
    if declared is not None and (actual := sha256(path)) != declared:
        raise DataError(
            f"{path} has SHA-256 {actual}, not the declared {declared}: it is damaged or another version; "
            "replace the file, or change source.sha256 if you mean this one"
        )
    return path


def _download(trial: TrialConf, target: Path, declared: str | None) -> None:
    """Fetch into a temporary file beside `target`, moved there only when whole and as declared."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch) / target.name
        try:
            with urllib.request.urlopen(str(trial.url), timeout=_TIMEOUT_SECONDS) as reply, part.open("wb") as stream:
                shutil.copyfileobj(reply, stream, _BLOCK)
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise EnvironmentProblem(_missing(trial, f"{trial.url} cannot be downloaded ({reason})")) from error
        if declared is not None and (actual := sha256(part)) != declared:
            raise DataError(f"{trial.url} sent a file with SHA-256 {actual}, not the declared {declared}: nothing kept")
        os.replace(part, target)


def _missing(trial: TrialConf, why: str) -> str:
    folder = os.environ.get(DATA_FOLDER)
    state = f"{DATA_FOLDER} is {folder}, which lacks it" if folder else f"{DATA_FOLDER} is not set"
    return f"{trial.file} is not here: {state}, and {why}; set {DATA_FOLDER} to the folder that contains it"


# --------------------------------------------------------------------------------------------------------------------
# A real trial's CSV file as a typed Arrow table: numbers, categories, and nulls for what is missing.

RESERVED = ("unit_id", "treatment", "campaign", "observed_at", "known_at", "source", "run_id", "ingested_at")
NULL_TEXT = ("", "NA", "NaN", "nan", "null", "NULL")


def read_trial(path: Path, trial: TrialConf) -> pa.Table:
    """Read the columns that a trial declares, one row per row of the file (plain or gzip).

    `_row` (int64, from 1), the unit and treatment columns as text, outcomes as float64, attributes as float64, or text
    for categories. Empty cells, NULL_TEXT and the codes in `trial.missing` are null. Raises ConfigError when a column
    plays two parts, DataError when the file has no row, lacks a column, is not a CSV, or a column has the wrong type.
    """
    check_declaration(trial)
    text = _read_text(path, trial)
    columns = {"_row": pa.array(range(1, text.num_rows + 1), pa.int64())}
    for name in text.column_names:
        columns[name] = _typed(text[name].to_pandas(), name, trial, path)
    return pa.table(columns)


def _declared(trial: TrialConf) -> list[str]:
    unit = [trial.unit] if trial.unit else []
    return [*unit, trial.treatment, *trial.outcomes, *trial.attributes]


def check_declaration(trial: TrialConf) -> None:
    """Raise ConfigError when the declared columns clash with each other or with those of the profile table."""
    for name in (*trial.outcomes, *trial.attributes):
        if checked_name(name, "source column") in RESERVED or name.startswith("_"):
            raise ConfigError(f"source column {name!r} is a name the tables use themselves: rename it in the file")
    leaking = sorted({trial.treatment, *trial.outcomes} & set(trial.attributes))
    if leaking:
        raise ConfigError(f"source.attributes contains {leaking}, the treatment or an outcome: remove them")
    if len(set(_declared(trial))) < len(_declared(trial)):
        raise ConfigError("source names a column twice among unit, treatment, outcomes and attributes: remove one")
    if strangers := sorted(set(trial.categorical) - set(trial.attributes)):
        raise ConfigError(f"source.categorical contains {strangers}, not among source.attributes: add them there")


def _read_text(path: Path, trial: TrialConf) -> pa.Table:
    wanted = _declared(trial)
    table, _ = read_texts(path)
    for name in wanted:
        _require_column(name, table.column_names, path)
    if table.num_rows == 0:
        raise DataError(f"{path} has a header but no rows: replace the file")
    return table.select(wanted)


def _require_column(name: str, present: list[str], path: Path) -> None:
    count = present.count(name)
    if count == 1:
        return
    if count > 1:
        raise DataError(f"{path} has {count} columns named {name!r}: keep one")
    raise DataError(f"{path} has no column {name!r}, which the source declares: {hint(name, present)}")


def _typed(values: pd.Series, name: str, trial: TrialConf, path: Path) -> pa.Array:
    """Null the missing codes, then decide: text for keys and categories, float64 for numbers."""
    values = values.str.strip()
    values = values.mask(values.isin(NULL_TEXT), None)
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    values = values.mask(numbers.isin(trial.missing) | values.isna(), None)
    if name in (trial.unit, trial.treatment, *trial.categorical):
        return pa.array(values, pa.string(), from_pandas=True)
    stray = values.notna() & numbers.isna()
    if name in trial.attributes and stray.sum() == values.notna().sum() > 0:
        return pa.array(values, pa.string(), from_pandas=True)
    if stray.any():
        raise DataError(_stray_text(values[stray], name, trial, path))
    return pa.array(numbers.mask(values.isna()), pa.float64(), from_pandas=True)


def _stray_text(stray: pd.Series, name: str, trial: TrialConf, path: Path) -> str:
    head = f"{path}: column {name!r} must hold numbers but {len(stray):,} rows hold text such as {stray.iloc[0]!r}"
    fix = "correct them, or list the column under source.categorical" if name in trial.attributes else "correct them"
    return f"{head}: {fix}"


# --------------------------------------------------------------------------------------------------------------------
# The bronze tables of a campaign: assignment, outcome, profile, and the true effects where they are known.
# An outcome of 0 is no event. An outcome that is not known is an event with a null value. Both sources are historic
# loads: a row counts as known from the moment it happened, whenever it is loaded.

PROFILE_LEAD = timedelta(days=1)

_Batches = Iterator[pa.RecordBatch]
Slice = Callable[[pa.RecordBatch, CampaignSimulator], _Batches]


@dataclass(frozen=True)
class SecondWave:
    """Customers of an earlier campaign who come again.

    campaign  the earlier one
    number    draws days and outcomes anew, not 0
    dealt     unit_id, treatment (null: takes no part) and propensity of each, and what was decided for it
    decision  column of the latter
    """

    campaign: str
    number: int
    dealt: DataFrame
    decision: str


@dataclass(frozen=True)
class Stamp:
    """What every row of one ingest run carries; times without a zone are UTC."""

    campaign: str
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
        """Campaign, times and origin of outcomes that occurred, and were known, at `at`; they have no event_id."""
        no_id = F.lit(None).cast("string")
        times = {"occurred_at": at, "event_id": no_id, "known_at": at}
        return {CAMPAIGN: F.lit(self.campaign), **times, **self.origin()}


def simulated_tables(
    chunks: DataFrame, simulator: CampaignSimulator, units: int, stamp: Stamp, again: SecondWave | None = None
) -> dict[str, DataFrame]:
    """Make the bronze tables of a simulated campaign on the workers that hold `chunks` (column id: chunk index).

    Keys: profile, truth, outcome, assignment. Each frame makes its chunks anew when it is written, so that no table
    passes through the driver or a cache, unless rows are few. The profile is observed a day before the assignment.
    With a second wave, customers have the arms that it says.
    """
    if again is None:
        tables = {name: _sliced(chunks, name, simulator, units) for name in _SLICES}
    else:
        tables = _wave_tables(chunks, simulator, units, again)
    assigned_at = instant(stamp.assigned_at)
    campaign = {CAMPAIGN: F.lit(stamp.campaign)}
    return {
        "profile": tables["profile"].withColumns(stamp.observed(utc(stamp.assigned_at) - PROFILE_LEAD)),
        "truth": tables["truth"].withColumns({**campaign, "run_id": F.lit(stamp.run_id)}),
        "outcome": tables["outcome"]
        .withColumns(stamp.occurred(plus_hours(assigned_at, F.col("delay_hours"))))
        .drop("delay_hours"),
        "assignment": tables["assignment"]
        .withColumns({**campaign, "assigned_at": plus_hours(assigned_at, F.col("hours")), **stamp.origin()})
        .drop("hours"),
    }


def _sliced(chunks: DataFrame, name: str, simulator: CampaignSimulator, units: int) -> DataFrame:
    slice_, schema = _SLICES[name]
    return mapped_frame(chunks, partial(_make, slice_=slice_, simulator=simulator, units=units), schema)


def _wave_tables(
    chunks: DataFrame, simulator: CampaignSimulator, units: int, again: SecondWave
) -> dict[str, DataFrame]:
    """Tables of customers who come again: each buys what it would buy under its arm, the control where it has none.

    What they would buy is made for every arm, by the same chance, and joined with the arms: these may be of any number.
    """
    simulator = replace(simulator, wave=again.number)
    names = simulator.levels.names
    of_level = {name: replace(simulator, arms_of=partial(_all_get, code)) for code, name in enumerate(names)}
    control, dealt = of_level[names[0]], again.dealt
    bought = [
        _sliced(chunks, "outcome", one, units).withColumn(TREATMENT, F.lit(name)) for name, one in of_level.items()
    ]
    arms = dealt.select("unit_id", F.coalesce(TREATMENT, F.lit(names[0])).alias(TREATMENT))
    taking_part = dealt.where(F.col(TREATMENT).isNotNull()).select("unit_id", TREATMENT, "propensity")
    return {
        "profile": _sliced(chunks, "profile", control, units).join(dealt.select("unit_id", again.decision), "unit_id"),
        "truth": _sliced(chunks, "truth", control, units),
        "outcome": union_by_name(bought).join(arms, ["unit_id", TREATMENT]).drop(TREATMENT),
        "assignment": _sliced(chunks, "assignment", control, units)
        .drop(TREATMENT, "propensity")
        .join(taking_part, "unit_id"),
    }


def _all_get(code: int, levels: tuple[str, ...], ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    return np.full(len(ids), code), np.ones(len(ids))


def _make(batches: _Batches, slice_: Slice, simulator: CampaignSimulator, units: int) -> _Batches:
    """Worker: one table's rows of every chunk whose index arrives."""
    for batch in batches:
        for index in batch.column("id").to_pylist():
            yield from slice_(simulator.chunk(index, min(CHUNK, units - index * CHUNK)), simulator)


def _assignment_slice(chunk: pa.RecordBatch, simulator: CampaignSimulator) -> _Batches:
    assigned = chunk.filter(pc.is_valid(chunk.column("treatment")))
    columns = assigned.select(["unit_id", "treatment", "propensity"]).columns
    yield pa.RecordBatch.from_arrays([*columns, _hours_of(assigned)], ["unit_id", "treatment", "propensity", "hours"])


def _hours_of(chunk: pa.RecordBatch) -> pa.Array:
    """Hours from the campaign's start to each unit's assignment."""
    if "day" not in chunk.schema.names:
        return pa.array(np.zeros(len(chunk)))
    return pc.multiply(chunk.column("day"), 24.0)


def _profile_slice(chunk: pa.RecordBatch, simulator: CampaignSimulator) -> _Batches:
    yield chunk.select(["unit_id", *ATTRIBUTES])


def _outcome_slice(chunk: pa.RecordBatch, simulator: CampaignSimulator) -> _Batches:
    for outcome in OUTCOMES:
        happened = chunk.filter(pc.not_equal(chunk.column(outcome), 0.0))
        yield pa.RecordBatch.from_pydict(
            {
                "unit_id": happened.column("unit_id"),
                "outcome": pa.repeat(outcome, happened.num_rows),
                "value": happened.column(outcome),
                "delay_hours": pc.add(happened.column("delay_hours"), _hours_of(happened)),
            }
        )


def _truth_slice(chunk: pa.RecordBatch, simulator: CampaignSimulator) -> _Batches:
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
    "assignment": (_assignment_slice, "unit_id string, treatment string, propensity double, hours double"),
    "outcome": (_outcome_slice, "unit_id string, outcome string, value double, delay_hours double"),
    "profile": (
        _profile_slice,
        ", ".join(["unit_id string", *(f"{a} {'string' if a in CATEGORIES else 'double'}" for a in ATTRIBUTES)]),
    ),
    "truth": (_truth_slice, "unit_id string, treatment string, outcome string, effect double"),
}


def named_rows(rows: DataFrame, trial: TrialConf, campaign: str) -> DataFrame:
    """A trial's typed rows (`events.ingest.read_trial`) with unit_id and treatment in place of the file's columns.

    Without a unit column the row number names the unit: `<campaign>-000001`. A value of the treatment column that
    `arms` does not map stays as it is, to be rejected as unknown.
    """
    arm = F.col(trial.treatment)
    level = arm if trial.arms is None else F.coalesce(looked_up(trial.arms, arm), arm)
    unit = F.col(trial.unit) if trial.unit else F.format_string(f"{campaign}-%06d", "_row")
    return rows.select(
        unit.alias("unit_id"), level.alias("treatment"), F.col("_row"), *trial.outcomes, *trial.attributes
    )


def looked_up(table: Mapping[str, str] | Mapping[str, float], key: Column) -> Column:
    """The value of a key in a mapping, null for other keys."""
    return F.create_map(*[F.lit(part) for pair in table.items() for part in pair])[key]


def tally(good: DataFrame, trial: TrialConf) -> DataFrame:
    """Units by treatment: treatment, n, and per outcome (under its name) how many values the file does not know."""
    unknown = [F.count_if(F.col(outcome).isNull()).alias(outcome) for outcome in trial.outcomes]
    return good.groupBy("treatment").agg(F.count(F.lit(1)).alias("n"), *unknown)


def trial_tables(
    good: DataFrame, trial: TrialConf, propensity: Mapping[str, float], stamp: Stamp
) -> dict[str, DataFrame]:
    """Make the bronze tables of a trial's good rows. Keys: profile, outcome, assignment.

    propensity  level -> propensity; in a completely randomised trial a level's share of the units estimates it
    The profile counts as observed at the assignment.
    """
    assigned_at = instant(stamp.assigned_at)
    assigned = {
        CAMPAIGN: F.lit(stamp.campaign),
        "assigned_at": assigned_at,
        "propensity": looked_up(propensity, F.col("treatment")),
    }
    return {
        "profile": good.select("unit_id", *trial.attributes).withColumns(stamp.observed(stamp.assigned_at)),
        "outcome": _events(good, trial, stamp),
        "assignment": good.select("unit_id", "treatment").withColumns({**assigned, **stamp.origin()}),
    }


def _events(good: DataFrame, trial: TrialConf, stamp: Stamp) -> DataFrame:
    """One row per unit and outcome that is not 0; a null value where the file does not know it."""
    occurred_at = instant(utc(stamp.assigned_at) + timedelta(days=trial.outcome_after_days))
    outcomes = [F.struct(F.lit(o).alias("outcome"), F.col(o).alias("value")) for o in trial.outcomes]
    events = good.select("unit_id", F.inline(F.array(*outcomes))).filter("value IS NULL OR value <> 0")
    return events.withColumns(stamp.occurred(occurred_at))


# --------------------------------------------------------------------------------------------------------------------
# One ingest run: from the simulator, or a trial's file, to the frames to write.

CHUNKS_PER_TASK = 5
ROWS_PER_TASK = 100_000


@dataclass(frozen=True)
class Batch:
    """Bronze frames by table name, in the order to write them, and details for the job's result.

    The assignment comes last: until it is there, no later job sees the campaign.
    """

    tables: dict[str, DataFrame]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SimulatedTrial:
    """A designed trial that a simulation plays: who gets which arm, from when on, on how many days; see
    `simulate.CampaignSimulator`. In a second wave arms are those of the wave."""

    arms_of: ArmsOf | None
    start: datetime
    days: int
    again: SecondWave | None = None


def prepare(
    config: Config, lake: Lake, run_id: str, progress: ProgressCallback, trial: SimulatedTrial | None = None
) -> Batch:
    """Prepare the frames of a simulation or a trial, lazily; an unfit source raises a named error before any write.

    A simulation draws its arms itself, unless it plays a designed `trial`.
    """
    key = key_of(config)
    if isinstance(config.source, Simulation):
        batch = _simulated(config, config.source, lake.spark, (run_id, trial), progress)
        return replace(batch, tables={table: pseudonymised(rows, key) for table, rows in batch.tables.items()})
    assert isinstance(config.source, TrialConf)  # tables are those of `events.table_source`
    return _trial(config, config.source, lake.spark, run_id, progress)


def refuse_second_load(lake: Lake, campaign: str, run_id: str) -> None:
    """Raise ConflictError when another run has loaded this campaign: its units would be there twice."""
    table = ASSIGNMENT_TABLE
    if not lake.exists(table):
        return
    others = lake.read(table).filter((F.col(CAMPAIGN) == campaign) & (F.col("run_id") != run_id))
    if other := others.select("run_id").head():
        raise ConflictError(
            f"table {table} already holds campaign {campaign!r} from run {other[0]} with another source: "
            "give this one another name under `campaign`, or run `uplift ingest` with --replace to take its place"
        )


def _simulated(
    config: Config,
    source: Simulation,
    spark: SparkSession,
    run: tuple[str, SimulatedTrial | None],
    progress: ProgressCallback,
) -> Batch:
    run_id, trial = run
    shape = (source.design, source.arms, source.confounding, source.noise)
    again = trial.again if trial else None
    prefix = f"{again.campaign if again else config.campaign}-"
    simulator = CampaignSimulator(*shape, config.seed, prefix, source.max_lift)
    check_levels(config.roles, simulator.levels.names)
    start = source.assigned_at
    if trial is not None:
        simulator, start = replace(simulator, arms_of=trial.arms_of, days=trial.days), trial.start
    n_chunks = -(-source.units // CHUNK)
    chunks = spark.range(0, n_chunks, 1, -(-n_chunks // CHUNKS_PER_TASK))
    progress(f"simulating {source.units:,} units, levels {', '.join(simulator.levels.names)}")
    stamp = Stamp(config.campaign, "simulation", run_id, start, datetime.now(UTC))
    frames = simulated_tables(chunks, simulator, source.units, stamp, again)
    return Batch(bronze_tables(frames, config.campaign), {"units": source.units})


def _trial(config: Config, source: TrialConf, spark: SparkSession, run_id: str, progress: ProgressCallback) -> Batch:
    check_declaration(source)
    levels = _declared_levels(config.roles, source)
    path = find(source)
    rows = read_trial(path, source)
    progress(f"{rows.num_rows:,} rows read from {path.name}")
    named = pseudonymised(named_rows(spread_rows(rows, spark), source, config.campaign), key_of(config))
    contract = _contract(levels, source)
    checked = count_checked(named, contract)
    good, rejected = check(named, contract, checked)
    refused = dict(checked.rejected)
    counts = [row.asDict() for row in tally(good, source).collect()]
    units = {row["treatment"]: row["n"] for row in sorted(counts, key=lambda row: str(row["treatment"]))}
    require_arms(units, config.roles.control, path, source.treatment)
    propensity = {level: n / sum(units.values()) for level, n in units.items()}
    stamp = Stamp(config.campaign, path.name, run_id, source.assigned_at, datetime.now(UTC))
    frames = trial_tables(good, source, propensity, stamp)
    details = {"rows": rows.num_rows, "units": units, "rejected": refused, "unknown": _unknown(counts, source)}
    if checked.copies:
        details["equal_rows"] = checked.copies
        progress(f"{checked.copies:,} rows are equal to another row of their unit: each counts once")
    report_counts(details, progress)
    quarantine = {"quarantine": stamped_rejects(rejected, stamp)} if refused else {}
    # The profile first: of two runs at once one ends there, and has written nothing.
    frames = {"profile": frames["profile"], **quarantine, **frames}
    return Batch(bronze_tables(frames, config.campaign), details)


def spread_rows(rows: pa.Table, spark: SparkSession) -> DataFrame:
    """Put the rows behind a shuffle: without one Spark's optimizer works a local table off itself, row by row."""
    return local_frame(spark, rows).repartition(max(2, -(-rows.num_rows // ROWS_PER_TASK)), "_row")


def check_levels(roles: RolesConf, names: Collection[str]) -> None:
    """Raise ConfigError unless control and doses of `roles` are levels of the source."""
    if roles.control not in names:
        raise ConfigError(f"roles.control {roles.control!r} is none of the source's levels: {', '.join(names)}")
    if roles.dose is not None and set(roles.dose) != set(names):
        raise ConfigError(f"roles.dose names {', '.join(roles.dose)}; the source's levels are {', '.join(names)}")


# --------------------------------------------------------------------------------------------------------------------
# Treatments that are numbers: `treatment` is the grid point that is nearest to a unit's dose.

MEAN_DOSE, BEYOND, NUMBER_RULE = "mean_dose", "beyond_the_grid", "treatment_number"


def dose_sums(bins: DoseBins) -> list[Column]:
    """Mean dose of the units of a level, and how many of them have one that the grid is too short for."""
    low, high = bins.ends
    dose = F.col(DOSE)
    return [F.avg(DOSE).alias(MEAN_DOSE), F.count_if((dose < low) | (dose > high)).alias(BEYOND)]


def level_of_dose(dose: Column, bins: DoseBins) -> Column:
    """Name of the level whose bin holds a dose, as `DoseBins.level`; null for what is no finite number."""
    level = F.lit(bins.names[-1])
    for name, edge in zip(bins.names[-2::-1], bins.edges[::-1], strict=True):
        level = F.when(dose <= F.lit(edge), F.lit(name)).otherwise(level)
    return F.when(finite(dose), level)


def finite(number: Column) -> Column:
    """Whether a number is neither null nor NaN nor infinite; false then."""
    return F.coalesce(number.between(-sys.float_info.max, sys.float_info.max), F.lit(False))


def number_rule() -> Rule:
    """What doses must meet: an assignment whose treatment is no finite number is rejected."""
    most = repr(sys.float_info.max)
    known = f"{DOSE} IS NOT NULL AND {DOSE} BETWEEN -{most}D AND {most}D"
    return Rule(NUMBER_RULE, f"{TREATMENT} IS NULL OR ({known})", "the treatment is no finite number")


def refuse_empty_bins(roles: RolesConf, units: Mapping[str, int], where: str) -> None:
    """Raise DataError when no row's dose is nearest to some grid point: no effect of that dose could be evaluated."""
    if empty := [level for level in roles.grid_doses if not units.get(level)]:
        raise DataError(
            f"{where} has no dose nearest to {' or '.join(empty)}: remove {'it' if len(empty) == 1 else 'them'} from "
            "roles.grid, or correct roles.control"
        )


def report_doses(
    bins: DoseBins | None,
    counts: list[dict[str, Any]],
    details: dict[str, Any],
    where: str,
    progress: ProgressCallback,
) -> None:
    """Say the mean dose of the units that count as each level, how many doses are no numbers, and for how many the grid
    is too short; put the first and the last into the details."""
    if bins is None:
        return
    if odd := details["rejected"].get(NUMBER_RULE):
        progress(
            f"warning: {where} has {odd:,} doses that are no finite number: correct them in the file, or name the "
            "number that stands for a missing one in source.missing"
        )
    means = {str(row[TREATMENT]): float(f"{row[MEAN_DOSE]:.4g}") for row in counts}
    details[MEAN_DOSE] = means
    progress("mean dose by level: " + ", ".join(f"{level} {means[level]:g}" for level in bins.names))
    if beyond := sum(row[BEYOND] for row in counts):
        details[BEYOND] = beyond
        low, high = bins.ends
        progress(
            f"warning: {where} has {beyond:,} doses below {low:g} or above {high:g}, which count as the nearest level: "
            "add their doses to roles.grid, or leave such rows out by source.where"
        )


def _declared_levels(roles: RolesConf, source: TrialConf) -> tuple[str, ...]:
    """Levels the configuration names; empty when it leaves them to the file."""
    if source.arms is not None:
        check_levels(roles, tuple(source.arms.values()))
        return tuple(dict.fromkeys(source.arms.values()))
    return tuple(roles.level_doses)


def _contract(levels: tuple[str, ...], source: TrialConf) -> Contract:
    """What every row of a trial's file must meet before any part of it becomes an event."""
    unique = ("unit_id",) if source.unit else ()  # row numbers do not repeat
    keys = StructType().add("unit_id", StringType()).add("treatment", StringType())
    rules = (
        Rule("unit_present", "unit_id IS NOT NULL", "the unit id is empty"),
        Rule("treatment_present", "treatment IS NOT NULL", "the treatment is empty"),
    )
    contract = Contract(ASSIGNMENT_TABLE, "ingest", keys, rules, unique=unique, open=True)
    return with_levels(contract, levels) if levels else contract


def require_arms(units: dict[str, int], control: str, path: object, treatment: str) -> None:
    """Raise DataError unless there are two arms, one of them the control."""
    arms_text = ", ".join(f"{level} ({n:,})" for level, n in units.items()) or "none"
    if control not in units:
        raise DataError(
            f"{path}: no good row of column {treatment!r} is the control {control!r}, found {arms_text}: "
            "correct roles.control, source.arms or the file"
        )
    if len(units) < 2:
        raise DataError(f"{path}: column {treatment!r} has one arm only, {arms_text}: a trial needs two")


def _unknown(counts: list[dict[str, Any]], source: TrialConf) -> dict[str, int]:
    totals = {outcome: sum(row[outcome] for row in counts) for outcome in source.outcomes}
    return {outcome: n for outcome, n in totals.items() if n}


def stamped_rejects(rejected: DataFrame, stamp: Stamp) -> DataFrame:
    """Rejected rows with source, campaign and run."""
    return rejected.withColumns(
        {
            "source": F.lit(stamp.source),
            CAMPAIGN: F.lit(stamp.campaign),
            "run_id": F.lit(stamp.run_id),
            "ingested_at": instant(stamp.ingested_at),
        }
    )


def report_counts(details: Mapping[str, Any], progress: ProgressCallback) -> None:
    """Say how many units each level has, which rows were rejected, and which outcomes are not known."""
    progress("units: " + ", ".join(f"{level} {n:,}" for level, n in details["units"].items()))
    for rule, n in details["rejected"].items():
        progress(f"{n:,} rows rejected by rule {rule}, kept in {QUARANTINE}")
    for outcome, n in details["unknown"].items():
        progress(f"{outcome} is not known of {n:,} units: kept as events without a value")


def tables_of(campaign: str) -> tuple[str, ...]:
    """Raw tables that `uplift ingest` writes for a campaign, in this order: the assignment says that all are there."""
    return (profile_table(campaign), OUTCOME_TABLE, TRUTH_TABLE, QUARANTINE, ASSIGNMENT_TABLE)


def bronze_tables(frames: dict[str, DataFrame], campaign: str) -> dict[str, DataFrame]:
    """Frames by the names of their tables, in the order in which these are written."""
    names = {"profile": profile_table(campaign)}
    named = {names.get(name, bronze_table(name)): frame for name, frame in frames.items()}
    return {table: named[table] for table in sorted(named, key=tables_of(campaign).index)}
