"""Small campaigns run by the command line in one Spark session, and digests of every table they leave.

Only the commands, the configurations in `conf/`, Delta tables in `<lakehouse>/<schema>/<table>`, and the files of the
MLflow store beside them are used: all that a user sees, and nothing else of the package.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pyspark.sql import SparkSession

from tests.golden.digest import Digests, table_digest
from uplift_spark import cli

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ("bronze", "silver", "gold")

# Columns that no digest holds, and why.
LEFT_OUT = {
    "ingested_at": "the time of the run",
    "scored_at": "the time of the run",
    "code_version": "the commit",
    "run_id": "follows from the names of configuration keys, too; digested by itself, see RUN_IDS",
}
RUN_IDS = "run_id"

# {campaign: {table: columns}} whose last bits are not the same in two runs: their first ten digits count.
# Nuisances are sums over a fold's rows, and plans sum units: Spark's workers add them in another order.
ROUNDED: dict[str, dict[str, tuple[str, ...]]] = {
    "demo": {
        "gold.policy_curve": ("cost", "gain"),
        "gold.policy_scenarios": ("cost", "gain", "true_gain"),
    },
    "confounded": {
        "silver.adjusted_confounded": ("outcome_mean", "propensities", "scores"),
        "gold.policy_curve": ("cost", "gain"),
    },
}

# Columns of some tables that no digest holds either.
LEFT_OUT_OF = {
    "gold.policy_scenarios": {"gap": "the difference of two sums that are equal but for their last bits"},
    "gold.lift_table": {"campaign": "a column that the numbers are older than"},
}

# {table: {column: {value now: value then}}}; <campaign> stands for the campaign's name.
REWORDED: dict[str, dict[str, dict[str, str]]] = {
    "silver.adjusted_<campaign>": {"split": {"trimmed": "set aside"}},
}

# Figures that MLflow keeps and that are times.
TIMED = ("seconds",)
# Parameters that the last release did not keep: which learner a version is.
NEW_PARAMS = ("kind",)


def uplift(*arguments: str | Path) -> str:
    """What a command prints; RuntimeError with what it says on stderr if it fails. Uses the session that is there."""
    told, error = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["uplift", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(told), contextlib.redirect_stderr(error):
            cli.main()
    except SystemExit as stop:
        if stop.code:
            raise RuntimeError(f"uplift {' '.join(map(str, arguments))} failed: {error.getvalue()[-2000:]}") from None
    finally:
        sys.argv = before
    return told.getvalue()


@dataclass(frozen=True)
class Campaign:
    """A configuration made smaller, the commands to run, and the file of a trial, which `mails` makes."""

    conf: str
    verbs: tuple[str, ...]
    changes: tuple[str, ...]
    file: str | None = None
    erases: bool = False


_SMALL = ("forest.n_trees=16", "lift.bins=10", "lift.replicates=50")

CAMPAIGNS = {
    "demo": Campaign(
        "demo.yaml",
        (
            *("ingest", "features", "train", "score", "lift", "compare", "policy", "simulate", "tree", "tune"),
            "refresh",
        ),
        (
            *_SMALL,
            "source.units=4000",
            "source.max_lift=0.03",
            "economics.cost={5%: 0.1, 10%: 0.2}",
            "labels.as_of=2025-03-01",
            "lift.segments=[region, region x device]",
            "policy.budget=100",
            "policy.keep_out=0.05",
            "policy.limits=[{units: 300, level: 10%}, {gap: 0.2, segment: device}]",
            "policy.exclude={minors: age < 20}",
            "consent.required=false",
            "compare.against=[forest_per_level, t_learner]",
            "compare.points=10",
            "scenarios={half: {budget: 50}, small: {levels: [5%], limits: []}}",
            "tune.trials=2",
            "tune.rows=1000",
            "tune.held_out=500",
            "tune.space={max_depth: [4], min_leaf: [20]}",
            "refresh.half_life_days=30",
        ),
        erases=True,
    ),
    "confounded": Campaign(
        "confounded.yaml",
        ("ingest", "features", "nuisances", "train", "score", "lift", "policy"),
        (
            *_SMALL,
            "source.units=3000",
            "labels.as_of=2025-03-01",
            "nuisances.folds=2",
            "nuisances.placebo_outcomes=[tenure_months]",
            "consent.required=false",
            "policy.budget=100",
        ),
    ),
    "hillstrom": Campaign(
        "hillstrom.yaml",
        ("ingest", "features", "train", "score", "lift"),
        (
            *_SMALL,
            "labels.as_of=2008-05-01",
            "roles.more_outcomes=[spend]",
        ),
        file="mails.csv",
    ),
}
ERASED = 3


def mails(rows: int = 4000, seed: int = 20080306) -> str:
    """A file with the columns of Hillstrom's trial, made up."""
    rng = np.random.default_rng(seed)
    history = rng.integers(30 * 16, 1000 * 16, rows) / 16
    segment = rng.choice(["No E-Mail", "Mens E-Mail", "Womens E-Mail"], rows)
    womens = rng.integers(0, 2, rows)
    chance = 0.1 + 0.08 * (segment == "Womens E-Mail") * womens + 0.06 * (segment == "Mens E-Mail")
    visit = (rng.random(rows) < chance).astype(int)
    conversion = visit * (rng.random(rows) < 0.2)
    frame = pd.DataFrame(
        {
            "recency": rng.integers(1, 13, rows),
            "history_segment": np.where(history < 200, "1) $0 - $200", "2) $200 +"),
            "history": history,
            "mens": np.where(womens == 1, rng.integers(0, 2, rows), 1),
            "womens": womens,
            "zip_code": rng.choice(["Urban", "Surburban", "Rural"], rows),
            "newbie": rng.integers(0, 2, rows),
            "channel": rng.choice(["Phone", "Web", "Multichannel"], rows),
            "segment": segment,
            "visit": visit,
            "conversion": conversion,
            "spend": conversion * rng.integers(16, 1600, rows) / 16,
        }
    )
    return frame.to_csv(index=False, lineterminator="\n")


@dataclass
class Run:
    """A campaign below a folder; with `few` the command's own process does what Spark's workers do else."""

    name: str
    folder: Path
    few: bool = False

    @property
    def campaign(self) -> Campaign:
        """Its configuration and commands."""
        return CAMPAIGNS[self.name]

    @property
    def lakehouse(self) -> Path:
        """Where its tables are."""
        return self.folder / self.name / "lakehouse"

    @property
    def options(self) -> list[str]:
        """What every command is given."""
        conf = ROOT / "conf" / self.campaign.conf
        changes = [*self.campaign.changes, f"lakehouse.path={self.lakehouse}"]
        changes.append(f"lakehouse.few_mb={24 if self.few else 0}")
        if self.campaign.file:
            source = yaml.safe_load(conf.read_text())["source"]
            digest = hashlib.sha256(mails().encode()).hexdigest()
            changes += [f"source.file={self.campaign.file}", f"source.sha256={digest}"]
            changes += [f"source.{key}=null" for key in ("url", "url_sha256") if key in source]
        return ["--conf", str(conf), *(part for change in changes for part in ("--set", change))]

    def run(self, verb: str, *more: str) -> str:
        """Run one command in the campaign's folder, where it puts its pictures; what it printed."""
        self.lakehouse.mkdir(parents=True, exist_ok=True)
        folder = self.lakehouse.parent
        if self.campaign.file:
            (folder / self.campaign.file).write_text(mails())
        with contextlib.chdir(folder), patch.dict(os.environ, {"UPLIFT_DATA": str(folder)}):
            return uplift(verb, *more, *self.options)

    def run_all(self) -> Iterator[str]:
        """Run every command; the name of each when it is done."""
        for verb in self.campaign.verbs:
            self.run(verb)
            yield verb

    def erase(self, spark: SparkSession) -> None:
        """Erase the first units."""
        units = sorted(read(spark, self.lakehouse, "bronze.assignment").column("unit_id").to_pylist())
        self.run("erase", *(part for unit in units[:ERASED] for part in ("--unit", unit)))

    def digests(self, spark: SparkSession) -> dict[str, Digests]:
        """{table: digest}, and of models, of what MLflow keeps, and of run ids."""
        found = {}
        for name in tables(self.lakehouse):
            table = _with_old_words(read(spark, self.lakehouse, name), name.replace(f"_{self.name}", "_<campaign>"))
            found[name] = table_digest(
                table, LEFT_OUT | LEFT_OUT_OF.get(name, {}), ROUNDED.get(self.name, {}).get(name, ())
            )
        return found | {name: table_digest(table) for name, table in stored(self.lakehouse).items()}

    def run_ids(self, spark: SparkSession) -> list[str]:
        """Every run id in the tables."""
        found: set[str] = set()
        for name in tables(self.lakehouse):
            table = read(spark, self.lakehouse, name)
            if RUN_IDS in table.column_names:
                found |= {str(one) for one in table.column(RUN_IDS).unique().to_pylist()}
        return sorted(found)


def _with_old_words(table: pa.Table, name: str) -> pa.Table:
    """The table with the values of REWORDED as they were."""
    for column, words in REWORDED.get(name, {}).items():
        values = pa.array([words.get(value, value) for value in table.column(column).to_pylist()], pa.string())
        table = table.set_column(table.column_names.index(column), column, values)
    return table


def tables(lakehouse: Path) -> list[str]:
    """Every table of a lakehouse."""
    logs = sorted(lakehouse.glob("*/*/_delta_log"))
    return [f"{log.parent.parent.name}.{log.parent.name}" for log in logs if log.parent.parent.name in SCHEMAS]


def read(spark: SparkSession, lakehouse: Path, table: str) -> pa.Table:
    """A table as it is now: straight from its files, which takes a tenth of the time, where the log is plain enough."""
    folder = lakehouse / table.replace(".", "/")
    files = _live_files(folder / "_delta_log")
    if files is None:
        return spark.read.format("delta").load(str(folder)).toArrow()
    schema, parts = files
    read_ = []
    for path, values in parts.items():
        rows = pq.ParquetFile(folder / unquote(path)).read()
        for name, value in {**dict.fromkeys(schema), **values}.items():  # columns that came later have no value
            if name in rows.column_names:
                continue
            n = rows.num_rows
            known = pa.nulls(n) if value is None else pa.array([value] * n, pa.string()).cast(_TYPES[schema[name]])
            rows = rows.append_column(name, known)
        read_.append(rows.select(list(schema)))
    return pa.concat_tables(read_, promote_options="default")


_TYPES = {
    "string": pa.string(),
    "long": pa.int64(),
    "integer": pa.int32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
}


def _live_files(log: Path) -> tuple[dict[str, Any], dict[str, dict[str, str | None]]] | None:
    """(types of columns, files with their partition) of a table; None for deletion vectors, checkpoints, no rows."""
    schema: dict[str, Any] = {}
    live: dict[str, dict[str, str | None]] = {}
    if list(log.glob("*.checkpoint*")):
        return None
    for commit in sorted(log.glob("*.json")):
        for line in commit.read_text().splitlines():
            entry = json.loads(line)
            if "metaData" in entry:
                fields = json.loads(entry["metaData"]["schemaString"])["fields"]
                schema = {field["name"]: field["type"] for field in fields}
            elif "remove" in entry:
                live.pop(entry["remove"]["path"], None)
            elif "add" in entry:
                if entry["add"].get("deletionVector"):
                    return None
                live[entry["add"]["path"]] = entry["add"]["partitionValues"]
    return (schema, live) if live else None


def stored(lakehouse: Path) -> dict[str, pa.Table]:
    """Model files by their SHA-256, and parameters and metrics as MLflow keeps them."""
    files = sorted(lakehouse.glob("mlartifacts/**/*.uplift"))
    found = {"model files": pa.table({"sha256": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]})}
    with closing(sqlite3.connect(lakehouse / "mlflow.db")) as store:
        for name, table in (("metrics", "latest_metrics"), ("params", "params")):
            rows = store.execute(f"SELECT key, value FROM {table} ORDER BY key, value").fetchall()
            kept = [(k, v) for k, v in rows if k not in NEW_PARAMS and not any(word in k for word in TIMED)]
            keys, values = zip(*kept, strict=True) if kept else ((), ())
            found[f"mlflow {name}"] = pa.table({"key": list(keys), "value": list(values)})
    return found
