"""The fault table: bad input of every kind, what the platform says to it, and whether that is what it should say.

Every row runs the platform's own jobs on a lakehouse of its own; `Fault.expected` is a pattern of what they answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import functions as F

from tests.faults.matrix import aligned
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Feature, ForestConf, Labels, Lakehouse, RegistryConf, RolesConf, Simulation
from uplift_spark.errors import UpliftError
from uplift_spark.events.load import Load
from uplift_spark.jobs import features, load, score, train
from uplift_spark.lake.tables import Lake

DAYS, EACH, WINDOW = 24, 150, 3
AS_OF = datetime(2024, 2, 1)
_FIRST = pd.Timestamp("2024-01-08")
_DOSE = {"none": 0.0, "5%": 5.0, "10%": 10.0}
CAMPAIGN = Config(
    campaign="shop",
    source=Simulation(units=1),
    roles=RolesConf("visit", "none", ("age", "orders"), _DOSE),
    features=(Feature("orders", aggregate="count", source="event", event="order"),),
    labels=Labels(window_days=WINDOW, as_of=AS_OF),
    forest=ForestConf(n_trees=8, min_leaf=5, n_buckets=2),
)


@dataclass(frozen=True)
class Answer:
    """What the platform answered: an error's class, the quarantine, a warning or the rows it made; and its words."""

    by: str
    message: str


@dataclass(frozen=True)
class Fault:
    """A fault, in words and as something to run; `by` and `expected`, a pattern, are what should be found."""

    name: str
    situation: str
    check: Callable[[Lake], Answer]
    by: str
    expected: str

    def holds(self, result: Answer) -> bool:
        """Whether that is what should be found."""
        return result.by == self.by and re.search(self.expected, result.message) is not None


def refusal(run: Callable[[], object]) -> Answer:
    """The named error a run ends in."""
    try:
        run()
    except UpliftError as error:
        return Answer(type(error).__name__, str(error))
    return Answer("nothing", "no error")


# ---------------------------------------------------------------- a campaign with units assigned every day


def campaign(lake: Lake, lost: tuple[int, ...] = (), bounced: str = "") -> None:
    """EACH units a day for DAYS days, their events, deliveries and profiles, with planted faults.

    lost      days before AS_OF of which no outcome arrived
    bounced   the arm a tenth of whose deliveries fail
    The attribute `visits` counts what came after the treatment; one order of unit 0 was filled in after its assignment.
    """
    rng = np.random.default_rng(3)
    n = DAYS * EACH
    arm = rng.permutation(np.arange(n) % 3)
    units = pd.DataFrame({"unit_id": [f"u{i}" for i in range(n)], "treatment": np.array([*_DOSE])[arm]})
    units["assigned_at"] = _FIRST + pd.to_timedelta(np.arange(n) // EACH, "D")
    tags = {"campaign": "shop", "source": "test"}
    _write(lake, "bronze.assignment", units.assign(propensity=1 / 3, **tags))
    happened = units["assigned_at"] + pd.to_timedelta(rng.integers(0, WINDOW * 86_400, n), "s")
    days = ((pd.Timestamp(AS_OF) - happened) // pd.Timedelta("1D")).to_numpy()
    visible = (rng.uniform(size=n) < 0.3 + 0.1 * arm) & (days >= 0) & ~np.isin(days, lost)
    events = units.assign(occurred_at=happened, known_at=happened, event_id=None, **tags).drop(columns="assigned_at")
    _write(lake, "bronze.outcome", events[visible].assign(outcome="visit", value=1.0).drop(columns="treatment"))
    status = np.where((units["treatment"] == bounced) & (rng.uniform(size=n) < 0.1), "bounced", "delivered")
    sends = events.assign(delivery_id=units["unit_id"], status=status, delivered_at=units["assigned_at"])
    sends = sends.assign(known_at=units["assigned_at"])[arm > 0]
    _write(lake, "bronze.delivery", sends.drop(columns=["treatment", "occurred_at"]))
    profile = units[["unit_id"]].assign(age=rng.integers(18, 80, n).astype(float), visits=rng.poisson(1.0 + 2.0 * arm))
    profile = profile.assign(observed_at=_FIRST, known_at=_FIRST, source="test").astype({"visits": float})
    _write(lake, "bronze.profile_shop", profile)
    day = pd.Timedelta("1D")
    orders = pd.DataFrame({"unit_id": "u0", "known_at": [_FIRST - day, _FIRST + day], "occurred_at": _FIRST - day})
    _write(lake, "bronze.event", orders.assign(event="order", item="i", value=1.0, event_id=None, source="test"))


def _write(lake: Lake, table: str, rows: pd.DataFrame) -> None:
    empty = [name for name in rows if rows[name].isna().all()]
    frame = lake.spark.createDataFrame(rows.drop(columns=empty))
    lake.write(table, frame.withColumns({name: F.lit(None).cast("string") for name in empty}), "test")


def sound(lake: Lake) -> Answer:
    """A campaign without a fault but for one value that was known too late."""
    campaign(lake)
    details = features.run(Campaign(CAMPAIGN, lake)).details
    if details["warnings"]:
        return Answer("warning", "; ".join(details["warnings"]))
    joined = lake.read("silver.training_shop").where("unit_id = 'u0'").collect()[0]["orders"]
    return Answer("training set", f"{joined:g} of 2 orders joined, completeness {details['outcome_completeness']}")


def warned(lake: Lake, **faults: Any) -> Answer:
    """What the features job warns of."""
    campaign(lake, **faults)
    warnings = features.run(Campaign(CAMPAIGN, lake)).details["warnings"]
    return Answer("warning" if warnings else "nothing", "; ".join(warnings))


def leaking(lake: Lake) -> Answer:
    """An attribute that was counted after the treatment, among the features."""
    campaign(lake)
    roles = replace(CAMPAIGN.roles, features=("age", "visits"))
    error = refusal(lambda: features.run(Campaign(replace(CAMPAIGN, roles=roles), lake)))
    return error if not lake.exists("silver.training_shop") else Answer("nothing", "the training set was written")


# ---------------------------------------------------------------- files


def _file(lake: Lake, text: str) -> Path:
    """A CSV file beside the lakehouse."""
    path = Path(lake.lakehouse.path).parent / "in.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def loaded(lake: Lake, text: str, table: str = "bronze.event") -> Answer:
    """What `uplift load` makes of a CSV file: its refusal, else the quarantine, else the rows."""
    path = _file(lake, text)
    how = Load(table, str(path), "csv", historic="known_at" in Load(table, "x", "csv").contract.columns.fieldNames())
    return _outcome(lake, how)


def retyped(lake: Lake) -> Answer:
    """A Parquet file whose time is a text and whose value is a decimal."""
    path = Path(lake.lakehouse.path).parent / "in"
    row = "SELECT 'a' AS unit_id, 'login' AS event, '2024-01-02' AS occurred_at, 1.5BD AS value"
    lake.spark.sql(row).write.parquet(str(path))
    return _outcome(lake, Load("bronze.event", str(path), "parquet"))


def _outcome(lake: Lake, how: Load) -> Answer:
    try:
        result = load.run(Campaign(CAMPAIGN, lake), load=how)
    except UpliftError as error:
        return Answer(type(error).__name__, str(error))
    good = result.details["good"]
    if result.details["rejected"]:
        reasons = sorted({row["reason"] for row in lake.read("bronze.quarantine").select("reason").collect()})
        return Answer("quarantine", f"{result.details['rejected']}, {good} good: {'; '.join(reasons)}")
    if not lake.exists(how.table):  # without rows there is no commit, so nothing makes the table
        return Answer("rows", f"{good} rows: []")
    columns = [name for name in ("unit_id", "occurred_at", "value") if name in lake.read(how.table).columns]
    rows = lake.read(how.table).select(*(F.col(name).cast("string") for name in columns)).collect()
    return Answer("rows", f"{good} rows: {sorted(tuple(row) for row in rows)}")


def local_times(lake: Lake, *times: str) -> Answer:
    """Times of a file, read in a session whose clocks change."""
    lines = "".join(f"u{i},login,{time}\n" for i, time in enumerate(times))
    with _zone(lake, "Europe/Berlin"):
        path = _file(lake, f"unit_id,event,occurred_at\n{lines}")
        result = load.run(Campaign(CAMPAIGN, lake), load=Load("bronze.event", str(path), "csv", historic=True))
    if result.details["rejected"]:
        return Answer("quarantine", lake.read("bronze.quarantine").collect()[0]["reason"])
    rows = lake.read("bronze.event").select("unit_id", F.col("occurred_at").cast("string").alias("at")).collect()
    return Answer("rows", ", ".join(f"{row['unit_id']} {row['at']}" for row in sorted(rows)) + " UTC")


@contextmanager
def _zone(lake: Lake, zone: str) -> Any:
    before = lake.spark.conf.get("spark.sql.session.timeZone")
    lake.spark.conf.set("spark.sql.session.timeZone", zone)
    try:
        yield
    finally:
        lake.spark.conf.set("spark.sql.session.timeZone", str(before))


# ---------------------------------------------------------------- training and scoring


def trained(lake: Lake, n: int = 240) -> Config:
    """A training set with a registered model, and its campaign."""
    rng = np.random.default_rng(1)
    arm = np.arange(n) % 3
    rows = pd.DataFrame({"unit_id": [f"u{i}" for i in range(n)], "treatment": np.array([*_DOSE])[arm]})
    rows = rows.assign(propensity=1 / 3, assigned_at=_FIRST, split="train", age=rng.normal(size=n))
    rows = rows.assign(visit=arm * (rows["age"] > 0) + rng.normal(size=n))
    lake.write("silver.training_shop", lake.spark.createDataFrame(rows), "f1", mode="overwrite")
    config = replace(CAMPAIGN, lakehouse=lake.lakehouse, roles=replace(CAMPAIGN.roles, features=("age",)))
    train.run(Campaign(config, lake))
    return config


def unknown_level(lake: Lake) -> Answer:
    """A level in the data that the configuration does not know."""
    config = trained(lake)
    dose = {"none": 0.0, "5%": 5.0}
    return refusal(lambda: train.run(Campaign(replace(config, roles=replace(config.roles, dose=dose)), lake)))


def emptied(lake: Lake) -> Answer:
    """No unit to score."""
    config = trained(lake)
    nobody = lake.read("silver.training_shop").drop("run_id").where("false")
    lake.write("silver.training_shop", nobody, "f2", mode="overwrite")
    refused = refusal(lambda: train.run(Campaign(config, lake)))
    score.run(Campaign(config, lake))
    scores = lake.read("gold.uplift_scores")
    return Answer("rows", f"{scores.count()} scores with {len(scores.columns)} columns; train: {refused.message}")


def registry_down(lake: Lake) -> Answer:
    """A model store that nothing answers for."""
    config = trained(lake)
    error = refusal(
        lambda: score.run(Campaign(replace(config, registry=RegistryConf(tracking_uri="http://127.0.0.1:9")), lake))
    )
    return error if not lake.exists("gold.uplift_scores") else Answer("nothing", "scores were written")


# ---------------------------------------------------------------- names and runs


def hostile_names(lake: Lake) -> Answer:
    """Names that would end a quoted name or start another statement; a table beside them must survive."""
    rows = lake.spark.range(2)
    lake.write("gold.sentinel", rows, "r1")
    runs: list[Callable[[], object]] = []
    for part in ("x`", "x; DROP TABLE gold.sentinel", "x--", "x\n", "../sentinel"):
        runs += [
            lambda part=part: lake.write(f"gold.{part}", rows, "r2"),  # type: ignore[misc]
            lambda part=part: lake.write("gold.sentinel", rows.withColumnRenamed("id", part), "r2"),  # type: ignore[misc]
            lambda part=part: Lake(lake.spark, Lakehouse(catalog=part)),  # type: ignore[misc]
            lambda part=part: replace(CAMPAIGN, campaign=part),  # type: ignore[misc]
            lambda part=part: Load(f"bronze.profile_{part}", "in", "csv"),  # type: ignore[misc]
        ]
    errors = [refusal(run) for run in runs]
    missed = [one for one in errors if one.by != "ConfigError"]
    if missed or lake.tables() != ["gold.sentinel"] or lake.read("gold.sentinel").count() != 2:
        return Answer("nothing", f"{len(missed)} of {len(errors)} names passed, tables {lake.tables()}")
    return Answer("ConfigError", f"{len(errors)} of {len(errors)} refused, canary whole: {errors[0].message}")


def other_data(lake: Lake) -> Answer:
    """A run that comes back with other rows."""
    lake.write("gold.demo", lake.spark.range(3), "r1")
    return refusal(lambda: lake.write("gold.demo", lake.spark.range(4), "r1"))


_HEADER = "unit_id,event,item,value,occurred_at\n"
_ASSIGNED = "unit_id,campaign,treatment,assigned_at,propensity\n"
_FILES = {
    "renamed": "unit_id,event,when\na,login,2024-01-02\n",
    "missing": "event,occurred_at\nlogin,2024-01-02\n",
    "reordered": "occurred_at,value,item,event,unit_id\n2024-01-02,3,i,login,a\n",
    "untreated": _ASSIGNED + "a,s,NaN,2024-01-01,\nb,s, ,2024-01-01,\nc,s,mail,2024-01-01,\n",
    "repeated": _ASSIGNED + "a,s,mail,2024-01-01,\na,s,none,2024-01-01,\nb,s,mail,2024-01-01,\n",
    "infinite": _HEADER + "a,o,,Infinity,2024-01-02\nb,o,,-Infinity,2024-01-02\nc,o,,1,2024-01-02\n",
    "empty": _HEADER,
}


def file(name: str, table: str = "bronze.event") -> Callable[[Lake], Answer]:
    """A check that loads one of _FILES."""
    return lambda lake: loaded(lake, _FILES[name], table)


def times(*times: str) -> Callable[[Lake], Answer]:
    """A check that loads these times."""
    return lambda lake: local_times(lake, *times)


FAULTS = (
    Fault("none; one value known late", "order before, known after the assignment", sound, "training set",
          r"^1 of 2 orders joined, completeness {'visit': 1.0}$"),
    Fault("post-treatment feature", "attribute counted after the mailing", leaking, "DataError",
          r"silver.training_shop was not written, 1 of 2 features leak: feature 'visits' predicts the treatment"),
    Fault("label outage", "no outcome of three days arrived", lambda lake: warned(lake, lost=(2, 3, 4)), "warning",
          "^visit: 0 first events on 3 days from about 2024-01-27 to 2024-01-29 where 1[5-9][0-9] were expected"),
    Fault("delivery failure in one arm", "a tenth of the sends of 10% bounced",
          lambda lake: warned(lake, bounced="10%"), "warning", r"^arm '10%': [\d,]+ of [\d,]+ units were reached \(\d"),
    Fault("renamed column", "when for occurred_at", file("renamed"), "DataError",
          "it lacks occurred_at; it has unknown when; rename"),
    Fault("missing column", "no unit_id", file("missing"), "DataError", "it lacks unit_id; rename, add"),
    Fault("reordered columns", "the last first", file("reordered"), "rows",
          r"^1 rows: \[\('a', '2024-01-02 00:00:00', '3.0'\)\]$"),
    Fault("retyped columns", "Parquet: time a string, value a decimal", retyped, "DataError",
          r"column value is decimal\(2,1\), not double; column occurred_at is string, not timestamp"),
    Fault("NaN treatment", "NaN and a blank among three", file("untreated", "bronze.assignment"), "quarantine",
          "{'treatment_present': 2}, 1 good: treatment is missing"),
    Fault("infinite values", "Infinity and -Infinity among three", file("infinite"), "quarantine",
          "{'value_finite': 2}, 1 good: value is not finite"),
    Fault("duplicate ids", "a unit assigned twice", file("repeated", "bronze.assignment"), "quarantine",
          "{'repeated': 2}, 1 good: campaign and unit_id occur in 2 rows that differ"),
    Fault("empty file", "a header and no row", file("empty"), "rows", r"^0 rows: \[\]$"),
    Fault("empty table", "no unit to score, none to train on", emptied, "rows", "^0 scores with 12 columns; train: "),
    Fault("hour that exists twice", "02:30 on 2024-10-27: no zone, +02:00, +01:00",
          times("2024-10-27 02:30", "2024-10-27T02:30+02:00", "2024-10-27T02:30+01:00"), "rows",
          "^u0 2024-10-27 02:30:00, u1 2024-10-27 00:30:00, u2 2024-10-27 01:30:00 UTC$"),
    Fault("hour that does not exist", "02:30 on 2024-03-31: no zone, +01:00",
          times("2024-03-31 02:30", "2024-03-31T02:30+01:00"), "rows",
          "^u0 2024-03-31 02:30:00, u1 2024-03-31 01:30:00 UTC$"),
    Fault("zone by name", "02:30 Europe/Berlin", times("2024-10-27T02:30 Europe/Berlin"), "quarantine",
          r"occurred_at '2024-10-27T02:30 Europe/Berlin' is not a point in time \(ISO 8601"),
    Fault("unknown level", "10% in the data, not in roles.dose", unknown_level, "DataError", "10%"),
    Fault("hostile names", "backtick ; -- newline .. in every name", hostile_names, "ConfigError",
          "^25 of 25 refused, canary whole: .*not a plain name"),
    Fault("registry down", "nobody answers at its address", registry_down, "EnvironmentProblem",
          "MLflow store http://127.0.0.1:9 does not work: it does not answer; start it"),
    Fault("other data, same run", "four rows after three", other_data, "ConflictError",
          r"run r1 wrote table gold.demo before with other data \(3 rows then, 4 now\)"),
)  # fmt: skip


def checked(lake_of: Callable[[int], Lake]) -> tuple[str, int]:
    """(the table as text, how many rows are not as expected); `lake_of` gives an empty lakehouse per row."""
    body, failed = [], 0
    for number, fault in enumerate(FAULTS):
        try:
            result = fault.check(lake_of(number))
        except Exception as error:  # what no row foresees is a row that fails
            result = Answer(type(error).__name__, str(error))
        good = fault.holds(result)
        failed += not good
        message = " ".join(result.message.split())[:120]
        body.append((fault.name, fault.situation, result.by, "yes" if good else "NO", message))
    return aligned(("fault", "input", "found by", "expected", "message"), body), failed
