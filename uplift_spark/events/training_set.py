"""The training set of a campaign, from its events at fixed versions: the work of `uplift features`.

`events_of` reads the events, `training_of` makes the rows, `fit_maturity` and `with_maturity_weights` let mature labels
stand for all units that were assigned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from uplift_spark.config import HAPPENED_AT, Config, Feature
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.events.features import (
    check_features,
    features_as_of,
    hash_sample,
    hash_split,
    mature_units,
)
from uplift_spark.events.ingest import level_of_dose
from uplift_spark.forest.binning import FeatureBins
from uplift_spark.governance.privacy import Objections
from uplift_spark.lake.schemas import ASSIGNMENT_TABLE, DELIVERY_TABLE, EVENT_TABLE, OUTCOME_TABLE, profile_table
from uplift_spark.lake.session import moment, utc
from uplift_spark.lake.tables import ERASED, Lake
from uplift_spark.learners.nuisances import Blend, features_of
from uplift_spark.learners.spark import sampled_rows
from uplift_spark.roles import CAMPAIGN, DOSE, MATURITY_WEIGHT, PROPENSITY, RUN_ID, TREATMENT, UNIT, Roles
from uplift_spark.runtime import ProgressCallback, no_progress
from uplift_spark.sections.source import TableSource, TrialConf
from uplift_spark.spark_versions import union_by_name

# --------------------------------------------------------------------------------------------------------------------
# Weights of maturity.
# Labels mature by the calendar. Where the units assigned first differ from those assigned last, a model of the mature
# labels describes the first ones only. So each unit counts by the inverse of the probability that a unit with its
# features is mature by now (inverse probability of censoring; Robins & Rotnitzky 1992). This assumes that among units
# with equal features, effects do not depend on when a unit was assigned.

MIN_MATURITY = (
    0.05  # probabilities of being mature are held above: no unit counts more than 20 times as much as another
)
MATURITY_ROWS = 100_000  # of the mature and of the others to learn from, at most
_STATES = ("false", "true")


@dataclass(frozen=True)
class Maturity:
    """How probable maturity is: `model` of the sampled rows, which are so large a share of all, [2], of either state.

    mature  share of the units that are mature
    """

    bins: tuple[FeatureBins, ...]
    model: Blend
    shares: np.ndarray
    mature: float

    def weights(self, batch: pa.RecordBatch | pa.Table) -> np.ndarray:
        """Weight of each row if it is mature, float64 [n]: about 1 on average over the mature."""
        reweighted = self.model.predict_proba(features_of(batch, self.bins)) / self.shares
        probability = reweighted[:, 1] / reweighted.sum(axis=1)
        return self.mature / np.maximum(probability, MIN_MATURITY)


def fit_maturity(units: DataFrame, features: tuple[str, ...], seed: int, progress: ProgressCallback) -> Maturity:
    """From a frame of unit_id, mature boolean and the features, one row per assigned unit.

    Raises DataError when all units, or hardly any, are mature.
    """
    state, nothing = F.col("mature").cast("string").alias("state"), F.lit(0.0).alias("nothing")
    frame = units.select(UNIT, state, nothing, *(f"`{name}`" for name in features))
    roles = Roles(UNIT, "state", "nothing", features, _STATES[0])
    counted: dict[str, int] = {row[0]: row[1] for row in frame.groupBy("state").count().collect()}
    few = [name for name in _STATES if counted.get(name, 0) < 100]
    if few:
        raise DataError(
            f"{counted.get('true', 0):,} of {sum(counted.values()):,} labels are mature: for labels.maturity_weights "
            "at least 100 must be, and 100 must not; drop the option, or wait"
        )
    sample = sampled_rows(frame, roles, (2, seed), MATURITY_ROWS)
    taken = np.bincount(sample.level_code, minlength=2)
    progress(f"how probable maturity is, from {len(sample.level_code):,} of {sample.coding.total:,} units")
    model = Blend(True, sample.spec.categorical, seed).fit(sample.features, sample.level_code, sample.weight)
    total = np.array([counted[name] for name in _STATES])
    return Maturity(sample.coding.bins, model, taken / total, float(total[1] / total.sum()))


def with_maturity_weights(training: DataFrame, maturity: Maturity) -> DataFrame:
    """The training set with the column `maturity_weight`, map only."""
    fields = ", ".join(f"`{f.name}` {f.dataType.simpleString()}" for f in training.schema.fields)
    return training.mapInArrow(partial(weighted, maturity), f"{fields}, {MATURITY_WEIGHT} double")


# Workers: Arrow in, Arrow out, no Spark.


def weighted(maturity: Maturity, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows with their weights."""
    for batch in batches:
        yield batch.append_column(MATURITY_WEIGHT, pa.array(maturity.weights(batch), pa.float64()))


# --------------------------------------------------------------------------------------------------------------------
# Input of the features job: the events of one campaign at fixed versions, checked. And the counts that it reports.

MATURITY_UNITS = 200_000  # that maturity is learnt from, at most about
Sends = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Events:
    """One campaign's events and how they are to be read.

    deliveries  None when the lakehouse has no such table: logging them is a campaign's choice
    sources     what features are made from: the profile and, if a definition uses it, behaviour
    versions    Delta version read of each table
    read        {source of features: (table, Delta version)}
    run_ids     the runs that wrote events and profiles: the identity of the input, whatever other campaigns add; of
                behaviour, which belongs to no campaign, the version; the last erasure of assigned units; and the loads
                of objections to profiling
    as_of       labels are read as of this time
    names       outcomes to label, the trained one first
    columns     feature columns of the training set: features, then segments that are no features
    unmatched   {table: rows whose unit was never assigned}, of the tables that have any
    objecting   assigned units that are left out because they object to profiling
    """

    assignments: DataFrame
    outcomes: DataFrame
    deliveries: DataFrame | None
    sources: dict[str, DataFrame]
    read: dict[str, tuple[str, int]]
    versions: dict[str, int]
    run_ids: tuple[str, ...]
    as_of: datetime
    names: tuple[str, ...]
    columns: tuple[str, ...]
    unmatched: dict[str, int]
    objecting: int = 0


def events_of(config: Config, lake: Lake, progress: ProgressCallback = no_progress) -> Events:
    """Read the campaign's events at the tables' present versions.

    Rows that join no assignment are counted and said, and campaigns whose names differ from this one by their case.
    Raises DataError when the campaign has no assignment, a table is missing, or most rows of one join nothing;
    ConfigError for an outcome without any event and for features that are unknown or would leak the treatment or an
    outcome.
    """
    campaign = config.campaign
    definitions = config.feature_definitions
    named = {"profile": profile_table(campaign)}
    if any(f.source == "event" and f.of is None for f in definitions):
        named["event"] = EVENT_TABLE
    logged = (DELIVERY_TABLE,) if lake.exists(DELIVERY_TABLE) else ()
    tables = (ASSIGNMENT_TABLE, OUTCOME_TABLE, *logged, *named.values())
    versions = {table: lake.version(table) for table in tables}
    frames = {table: lake.read(table, version) for table, version in versions.items()}
    sources = {source: frames.pop(table) for source, table in named.items()}
    read = {source: (table, versions[table]) for source, table in named.items()}
    mine = {table: frame.filter(F.col(CAMPAIGN) == campaign) for table, frame in frames.items()}
    mine[ASSIGNMENT_TABLE] = _with_doses(config, mine[ASSIGNMENT_TABLE])
    columns = config.unit_columns
    arrivals = _arrivals({**frames, named["profile"]: sources["profile"]}, campaign, progress)
    present = sorted({name for *_, name, _ in arrivals if name is not None})
    taken = {*config.outcomes, *present, *_source_columns(config)}
    check_features(definitions, sources["profile"], named["profile"], taken)
    _require_events(definitions, sources.get("event"))
    _require_outcomes(config.outcomes, present, campaign)
    behaved = [f"{table}@{versions[table]}" for source, table in named.items() if source == "event"]
    erased = lake.properties(ASSIGNMENT_TABLE).get(ERASED)
    run_ids = (*sorted({run for _, run, _, _ in arrivals}), *behaved, *([f"erased@{erased}"] if erased else []))
    as_of = utc(config.labels.as_of) if config.labels.as_of else max(at for table, *_, at in arrivals if table in mine)
    attributes = any(feature.source == "profile" for feature in definitions)
    described = {named["profile"]: sources["profile"]} if attributes else {}
    unmatched = _unmatched({**mine, **described}, config, progress)
    objecting = 0
    if (objections := Objections.of(lake)) is not None:  # their later events are no longer those of any unit
        everybody = mine[ASSIGNMENT_TABLE]
        mine[ASSIGNMENT_TABLE] = objections.without(everybody)
        objecting = objections.count_in(everybody)
        progress(f"{objecting:,} assigned units object to profiling: they get no features")
        run_ids = (*run_ids, *(f"profiling@{run}" for run in objections.run_ids))
    events = (mine[ASSIGNMENT_TABLE], mine[OUTCOME_TABLE], mine.get(DELIVERY_TABLE))
    return Events(*events, sources, read, versions, run_ids, as_of, config.outcomes, columns, unmatched, objecting)


def _with_doses(config: Config, assignments: DataFrame) -> DataFrame:
    """Assignments with the column `dose` where the treatment is a number, else without it.

    Raises DataError where a unit has no dose, or the level of another grid.
    """
    bins = config.roles.bins
    if bins is None:
        return assignments.drop(DOSE)
    dose = F.col(DOSE) if DOSE in assignments.columns else F.lit(None).cast("double")
    level = level_of_dose(dose, bins)
    other = F.count_if(level.isNotNull() & (level != F.col(TREATMENT))).alias("other")
    counts = assignments.agg(F.count_if(level.isNull()).alias("none"), other, F.count("*").alias("n")).collect()[0]
    where = f"{ASSIGNMENT_TABLE} has {counts['n']:,} units of campaign {config.campaign!r}"
    if counts["none"]:
        raise DataError(
            f"{where}, {counts['none']:,} of them without a number in column {DOSE!r}, which roles.grid needs: bring "
            "them by `uplift ingest` from a source of kind table"
        )
    if counts["other"]:
        raise DataError(
            f"{where}, {counts['other']:,} of them with the level of another grid: run `uplift ingest` with --replace"
        )
    return assignments


TARGETED, LOGGED_PROPENSITY = "targeted", "logged_propensity"
"""Split of units that show no effect, because nobody like them could have got another level; column of the propensity
that was logged, where models learn from random levels alone."""


def training_of(config: Config, events: Events, labels: DataFrame, random: Column | None = None) -> DataFrame:
    """Make the training set of these labels.

    Args:
        config: Of the campaign.
        events: As `events_of` reads them.
        labels: Rows of silver.label.
        random: Propensity of a level that is random, null of others, where models learn from such units alone.

    Returns:
        A row a unit; `split` is TARGETED where a policy was certain of the level.
    """
    units = mature_units(labels, events.names, config.labels.delivered)
    rows = features_as_of(units, events.sources, config.feature_definitions, events.columns)
    split = hash_split(config.seed, config.holdout, config.roles.cluster)
    if random is not None:
        rows = rows.withColumn(LOGGED_PROPENSITY, F.col(PROPENSITY)).withColumn(
            PROPENSITY, F.coalesce(random, PROPENSITY)
        )
    if config.nuisances is None:  # which say themselves where levels overlap
        shows = F.coalesce(F.col(PROPENSITY) < 1, F.lit(True)) if random is None else random.isNotNull()
        split = F.when(shows, split).otherwise(F.lit(TARGETED))
    return rows.withColumn("split", split)


def units_that_show_effects(training: DataFrame) -> str:
    """Say how many units models learn from, where a policy was certain of the level of others.

    Args:
        training: Rows of the training set.

    Returns:
        One sentence; empty where every level was random.

    Raises:
        DataError: Some level was certain for all units that got it.
    """
    units: dict[tuple[str, bool], int] = {}
    for row in training.groupBy(TREATMENT, (F.col("split") == TARGETED).alias(TARGETED)).count().collect():
        units[str(row[TREATMENT]), row[TARGETED]] = row["count"]
    return said_of_targeted(units)


def said_of_targeted(units: Mapping[tuple[str, bool], int]) -> str:
    """As `units_that_show_effects`, from {(level, whether a policy was certain of it): units}."""
    certain = {level: n for (level, targeted), n in units.items() if targeted}
    if not certain:
        return ""
    for level, n in sorted(certain.items()):
        if not units.get((level, False)):
            raise DataError(
                f"all {n:,} units with level {level!r} got it by a policy that was certain (propensity 1), so nothing "
                "shows what they would have done otherwise: keep an exploration slice (experiment.exploration, "
                "serving.exploration) or a holdout, or fit propensities (section nuisances)"
            )
    left, whole = sum(certain.values()), sum(units.values())
    return (
        f"models learn from {whole - left:,} of {whole:,} units, whose level was random or not certain; the "
        f"other {left:,} got theirs from a policy and show no effect"
    )


def with_weights(
    config: Config,
    events: Events,
    labels: DataFrame,
    training: DataFrame,
    counts: Mapping[str, int],
    progress: ProgressCallback,
) -> DataFrame:
    """The training set with weights of maturity where the configuration asks for them. `counts` as `label_counts`."""
    if not config.labels.maturity_weights:
        return training
    some = hash_sample(config.seed, min(1.0, MATURITY_UNITS / max(counts["labelled"], 1)))
    units = F.broadcast(labels.filter(some).select("unit_id", "assigned_at", "mature"))
    states = features_as_of(units, events.sources, config.feature_definitions, events.columns)
    return with_maturity_weights(training, fit_maturity(states, config.roles.features, config.seed, progress))


def _source_columns(config: Config) -> set[str]:
    source = config.source
    return {source.treatment, *source.outcomes} if isinstance(source, TrialConf | TableSource) else set()


def _arrivals(
    tables: Mapping[str, DataFrame], campaign: str, progress: ProgressCallback
) -> list[tuple[str, str, str | None, datetime]]:
    """(table, run, outcome or None of other tables, when the last row arrived) in one pass over every table."""
    parts = [_arrived(table, frame, campaign) for table, frame in tables.items()]
    keys = ("table", "campaign", "run_id", "outcome")
    rows = union_by_name(parts).groupBy(*keys).agg(F.max("at").alias("last"), F.count("*").alias("n"))
    mine: list[tuple[str, str, str | None, datetime]] = []
    others: dict[tuple[str, str], int] = {}
    for row in rows.collect():
        if row["campaign"] == campaign:
            mine.append((row["table"], row["run_id"], row["outcome"], moment(row["last"])))
        else:
            others[row["table"], row["campaign"]] = others.get((row["table"], row["campaign"]), 0) + row["n"]
    for (table, other), n in sorted(others.items()):
        progress(
            f"{table}: {n:,} rows of campaign {other!r} are left out, this one is {campaign!r}: write the name alike"
        )
    if not any(table == ASSIGNMENT_TABLE for table, *_ in mine):
        wrong = next((f", but of {other!r}" for table, other in sorted(others) if table == ASSIGNMENT_TABLE), "")
        raise DataError(
            f"table bronze.assignment has no row of campaign {campaign!r}{wrong}: "
            + ("write the name alike" if wrong else "run `uplift ingest` with its conf")
        )
    return mine


def _arrived(table: str, frame: DataFrame, campaign: str) -> DataFrame:
    """Rows of the campaign, and of those whose names differ by case (lower, upper, a first capital or one in each word)
    or by a blank before or after."""
    outcome = F.col("outcome") if "outcome" in frame.columns else F.lit(None).cast("string").alias("outcome")
    named = F.lit(campaign)
    if CAMPAIGN in frame.columns:
        named = F.col(CAMPAIGN)
        # A list of names lets Delta skip the files of other campaigns, which a function of the column would not.
        cases = (campaign, campaign.lower(), campaign.upper(), campaign.capitalize(), campaign.title())
        frame = frame.filter(named.isin(*dict.fromkeys([*cases, f" {campaign}", f"{campaign} "])))
    columns = ("run_id", outcome, F.unix_micros("ingested_at").alias("at"))
    return frame.select(F.lit(table).alias("table"), named.alias("campaign"), *columns)


# Keys that join nothing: a label of 0 looks like any other, so nobody would see that its events were lost.

_SPELLINGS = "without blanks, upper case, leading zeros and '.0'"


def _unmatched(tables: Mapping[str, DataFrame], config: Config, progress: ProgressCallback) -> dict[str, int]:
    """Count the rows of each table whose unit was never assigned; profiles of other units are no fault.

    Raises DataError when these are more of a table's rows than `alarms.unmatched`, or when more of the assigned units
    than `alarms.without_profile` have no profile that was known by then.
    """
    counts = _joined(tables, F.col(UNIT))
    _refuse_repeated(tables[ASSIGNMENT_TABLE], config.campaign, counts)
    profile, unmatched = profile_table(config.campaign), {}
    for i, table in enumerate(tables):
        rows, strays, limit = counts[f"rows_{i}"], counts[f"strays_{i}"], config.alarms.unmatched
        if table in (ASSIGNMENT_TABLE, profile) or not strays:
            continue
        sentence = f"{table}: {strays:,} of {rows:,} rows are of units that were never assigned; "
        sentence += _spelled(tables, table, counts, i)
        if strays > limit * rows:
            raise DataError(
                f"{sentence}: write the ids alike and load the rows again, or raise alarms.unmatched ({limit:g}) if "
                "this is as it should be"
            )
        progress(sentence)
        unmatched[table] = int(strays)
    without, units = counts["units"] - counts["in_time"], counts["units"]
    if profile in tables and without > config.alarms.without_profile * units:
        i = list(tables).index(profile)
        if late := counts["late"]:
            fix = (
                f"{late:,} units have one in {profile} that became known later, when it was loaded: load it again with "
                "--replace and --historic (known when it was observed), or with --replace and --known-at COLUMN"
            )
        elif counts[f"strays_{i}"]:
            fix = f"{_spelled(tables, profile, counts, i)}: write the ids alike and load {profile} again"
        else:
            fix = f"load them into {profile}"
        raise DataError(
            f"{without:,} of {units:,} units have no profile that was known when they were assigned; {fix}. "
            f"If this is as it should be, raise alarms.without_profile ({config.alarms.without_profile:g})"
        )
    return unmatched


def _refuse_repeated(assignments: DataFrame, campaign: str, counts: Row) -> None:
    """Raise DataError when units of a campaign were assigned more than once: each would count as several."""
    if not counts["twice"]:
        return
    rows = assignments.where(F.col(UNIT) == counts["twin"]).select(RUN_ID, "source").collect()
    runs = sorted({row[RUN_ID] for row in rows})
    files = sorted(row["source"] for row in rows if "#" in str(row["source"]))
    loaded = f", or take out what a load brought with `uplift load --replace --replaced {files[0]}`" if files else ""
    raise DataError(
        f"{ASSIGNMENT_TABLE} has {counts['twice']:,} units of campaign {campaign!r} more than once, such as "
        f"{counts['twin']!r} by {' and '.join(runs)}: run `uplift ingest` with --replace, which takes the place of all "
        f"of them{loaded}"
    )


def _joined(tables: Mapping[str, DataFrame], unit: Column) -> Row:
    """In one shuffle of ids, table i of `tables` being assignments or another:

    units, unit          how many were assigned, and one of them
    twice, twin          how many of these more than once, and one of them
    in_time, late        of these, those whose first profile was known when they were assigned, or only afterwards
    rows_i, strays_i, stray_i   the table's rows, those of units that were never assigned, and one such unit
    """
    observed_at = HAPPENED_AT["profile"]
    ids = []
    for i, (table, frame) in enumerate(tables.items()):
        at = F.lit(None).cast("bigint")
        if table == ASSIGNMENT_TABLE:
            at = F.unix_micros("assigned_at")
        elif observed_at in frame.columns:  # a profile counts once it was observed and known
            at = F.unix_micros(F.greatest(observed_at, "known_at"))
        own = F.lit(table == ASSIGNMENT_TABLE).alias("own")
        ids.append(frame.select(unit.alias(UNIT), own, F.lit(i).alias("part"), at.alias("at")))
    each = union_by_name(ids).groupBy(UNIT)
    by_unit = each.agg(
        F.max(F.when(F.col("own"), F.col("at"))).alias("assigned"),
        F.min(F.when(~F.col("own"), F.col("at"))).alias("known"),
        *(F.count_if(F.col("part") == i).alias(f"n_{i}") for i in range(len(tables))),
    )
    assigned, known = F.col("assigned"), F.col("known")
    repeated = F.col(f"n_{list(tables).index(ASSIGNMENT_TABLE)}") > 1
    counts = [
        F.count_if(repeated).alias("twice"),
        F.min(F.when(repeated, F.col(UNIT))).alias("twin"),
        F.count(assigned).alias("units"),
        F.min(F.when(assigned.isNotNull(), F.col(UNIT))).alias("unit"),
        F.count_if(known <= assigned).alias("in_time"),
        F.count_if(known > assigned).alias("late"),
    ]
    for i in range(len(tables)):
        n = F.col(f"n_{i}")
        stray = assigned.isNull() & (n > 0)
        counts += [
            F.coalesce(F.sum(n), F.lit(0)).alias(f"rows_{i}"),
            F.coalesce(F.sum(F.when(stray, n)), F.lit(0)).alias(f"strays_{i}"),
            F.min(F.when(stray, F.col(UNIT))).alias(f"stray_{i}"),
        ]
    return by_unit.agg(*counts).collect()[0]


def _spelled(tables: Mapping[str, DataFrame], table: str, counts: Row, i: int) -> str:
    """What ids look like in table i and among the assigned, and how many rows would join if they were spelled alike."""
    plain = F.regexp_replace(F.lower(F.trim(UNIT)), r"^0+(?=.)|[.]0+$", "")
    alike = _joined({name: tables[name] for name in (ASSIGNMENT_TABLE, table)}, plain)
    more = counts[f"strays_{i}"] - alike["strays_1"]
    said = f" ({more:,} of them would join {_SPELLINGS})" if more > 0 else ""
    return f"unit ids there look like {counts[f'stray_{i}']!r}, in {ASSIGNMENT_TABLE} like {counts['unit']!r}{said}"


def _require_events(definitions: tuple[Feature, ...], behaviour: DataFrame | None) -> None:
    if behaviour is None:
        return
    present = sorted(row["event"] for row in behaviour.select("event").distinct().collect())
    for feature in definitions:
        if feature.event is not None and feature.event not in present:
            raise ConfigError(
                f"table {EVENT_TABLE} has no event {feature.event!r} of feature {feature.name!r}: "
                f"{hint(feature.event, present)}"
            )


def _require_outcomes(names: tuple[str, ...], present: list[str], campaign: str) -> None:
    for name in names:
        if name not in present:
            raise ConfigError(
                f"table bronze.outcome has no event of outcome {name!r} in campaign {campaign!r}: {hint(name, present)}"
            )


def label_counts(labels: DataFrame, as_of: datetime) -> tuple[dict[str, int], Sends]:
    """(labelled and immature assignments, {arm: (delivered, all)} of the mature ones; {} without deliveries).

    Raises DataError when there is no label or none is mature.
    """
    mature = F.col("mature")
    rows = labels.groupBy("treatment").agg(
        F.count("*").alias("n"),
        F.count_if(~mature).alias("immature"),
        F.count_if(mature & F.col("delivered").isNotNull()).alias("logged"),
        F.count_if(mature & F.col("delivered")).alias("delivered"),
    )
    arms = sorted(rows.collect(), key=lambda row: str(row["treatment"]))
    labelled, immature = (sum(row[name] for row in arms) for name in ("n", "immature"))
    if not labelled:
        raise DataError(
            f"table silver.label: no assignment was made by {as_of:%Y-%m-%d %H:%M} UTC: set a later labels.as_of"
        )
    if labelled == immature:
        raise DataError(
            f"table silver.label: all {labelled:,} labels are immature as of {as_of:%Y-%m-%d %H:%M} UTC: "
            "wait, shorten labels.window_days, labels.windows or labels.wait_days, or set labels.as_of"
        )
    sends = {row["treatment"]: (row["delivered"], row["logged"]) for row in arms if row["logged"]}
    return {"labelled": labelled, "immature": immature}, sends


def event_details(counts: Iterable[Mapping[str, Any]], sends: Sends) -> dict[str, Any]:
    """What became of the outcomes' events, from rows of `events.labels.event_counts`, and of deliveries, from
    `label_counts`.

    duplicate_events, late_events, label_lag_hours_median and _95 by outcome; delivery_rate by arm if there are any.
    """
    rows = sorted(counts, key=lambda row: str(row["outcome"]))
    return {
        **({"delivery_rate": {arm: round(reached / n, 4) for arm, (reached, n) in sends.items()}} if sends else {}),
        "duplicate_events": sum(row["duplicates"] for row in rows),
        "late_events": sum(row["late"] for row in rows),
        "label_lag_hours_median": {row["outcome"]: round(row["lag_hours"][0], 2) for row in rows if row["counted"]},
        "label_lag_hours_95": {row["outcome"]: round(row["lag_hours"][1], 2) for row in rows if row["counted"]},
    }


def training_counts(
    labelled: dict[str, int], training: DataFrame, features: tuple[str, ...]
) -> tuple[dict[str, int], dict[str, int]]:
    """(`labelled` with outcome_unknown, train, holdout and without_profile, {feature: units without a value}).

    Units without a profile have no feature at all.
    """
    empty = F.coalesce(*[F.col(name).cast("string") for name in features]).isNull()
    missing = [F.count_if(F.col(name).isNull()).alias(f"_{i}") for i, name in enumerate(features)]
    totals = (F.count("*").alias("n"), F.count_if(empty).alias("empty"), *missing)
    rows = training.groupBy("split").agg(*totals).collect()
    units = {row["split"]: row["n"] for row in rows}
    counts = {
        **labelled,
        "outcome_unknown": labelled["labelled"] - labelled["immature"] - sum(units.values()),
        "train": units.get("train", 0),
        "holdout": units.get("holdout", 0),
        **({TARGETED: units[TARGETED]} if TARGETED in units else {}),
        "without_profile": sum(row["empty"] for row in rows),
    }
    return counts, {name: sum(row[f"_{i}"] for row in rows) for i, name in enumerate(features)}
