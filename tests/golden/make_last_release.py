"""Makes `last_release/`: what a user of version 0.1.0 has on disk. It was run once, at commit f493a52.

Run it again (`python -m tests.golden.make_last_release`) only when a release is made: `test_last_release.py` shows that
today's code reads what that code wrote.

models/*.uplift     a file of each kind of model
frame.parquet       units that the models know nothing of
effects.parquet     what the models told of them
lakehouse.tar.gz    a small campaign's tables and its MLflow store; where it lay is written as PLACE in the store
conf.yaml           the campaign's configuration
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path

import pandas as pd

from tests.golden.campaigns import uplift
from tests.golden.frames import DOSE, FEATURES, MAIL, MAILED, ORDERED, PLAN, SPENT, golden_frame, new_frame
from tests.golden.make import session
from uplift_spark import CausalForest, InstrumentalForest, MetaLearner, Roles

FOLDER = Path(__file__).with_name("last_release")
PLACE = "/place-of-the-lakehouse"
VERBS = ("ingest", "features", "train", "score", "lift", "policy")
LEARNERS = ("t_learner", "s_learner", "x_learner", "r_learner", "dr_learner", "class_transformation")
SCORED = Roles("unit", "arm", "y_arm", FEATURES, "none", dose=DOSE, scores="scores")

CONF = """\
# A small simulated campaign of the last release.
campaign: last
source: {kind: simulation, units: 600, design: ordered, arms: 3, assigned_at: 2025-01-06}
roles:
  outcome: conversion
  control: none
  dose: {none: 0, 5%: 5, 10%: 10}
  features: [recency_days, avg_basket, age, region]
labels: {window_days: 14, as_of: 2025-03-01}
forest: {n_trees: 8, min_leaf: 10, n_buckets: 2, max_bins: 16}
economics:
  value: {conversion: 25.0}
  cost: {5%: 0.10, 10%: 0.20}
lift: {segments: [region], bins: 10, replicates: 50}
consent: {required: false}
policy: {budget: 20}
"""


def models() -> None:
    """A file of each kind of model, and its effects."""
    frame, new = golden_frame(600), new_frame()
    small = CausalForest(n_trees=8, seed=7, max_bins=16, max_depth=4, min_leaf=10, n_buckets=2)
    each = CausalForest(n_trees=8, seed=7, max_bins=16, max_depth=4, min_leaf=10, n_buckets=2, per_level=True)
    wide = InstrumentalForest(n_trees=8, seed=7, max_bins=16, max_depth=4, min_leaf=10, n_buckets=2)
    made = {
        "forest_binary": small.fit(frame, MAILED),
        "forest_doses": small.fit(frame, ORDERED),
        "forest_arms": small.fit(frame, MAIL),
        "forest_grid": small.fit(frame, SPENT),
        "forest_plans": small.fit(frame, PLAN),
        "forest_scores": small.fit(frame, SCORED),
        "per_level": each.fit(frame, ORDERED),
        "instrumental": wide.fit(frame, Roles("unit", "mailed", "y_delivered", FEATURES, "0"), "delivered"),
        **{kind: MetaLearner(kind, replicates=0).fit(frame.head(200), MAILED) for kind in LEARNERS},
    }
    told = []
    for name, model in made.items():
        model.save(FOLDER / "models" / f"{name}.uplift")
        told.append(model.effect(new).assign(model=name))
    new.drop(columns="scores").to_parquet(FOLDER / "frame.parquet", index=False)
    pd.concat(told, ignore_index=True).to_parquet(FOLDER / "effects.parquet", index=False)


def put(store: Path, old: str, new: str) -> None:
    """Write `new` for `old` wherever an MLflow store names the place of its files."""
    with closing(sqlite3.connect(store, isolation_level=None)) as database:
        names = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        database.execute("PRAGMA foreign_keys = OFF")
        for table in names:
            for _, column, kind, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                    change = f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)'
                    database.execute(change, (old, new, old))
        database.execute("VACUUM")


def lakehouse(work: Path) -> None:
    """A campaign's tables and models, as an archive."""
    spark = session(work)
    place = work / "lakehouse"
    with contextlib.chdir(work):
        for verb in VERBS:
            uplift(verb, "--conf", FOLDER / "conf.yaml", "--set", f"lakehouse.path={place}")
    spark.stop()
    put(place / "mlflow.db", str(place), PLACE)
    put(place / "mlflow.db", str(work), "")
    for file in place.glob("mlartifacts/**/MLmodel"):
        file.write_text(re.sub(r"(uri|model_code_path): /\S*/", r"\1: /", file.read_text()))
    with tarfile.open(FOLDER / "lakehouse.tar.gz", "w:gz", compresslevel=9) as archive:
        for file in sorted(path for path in place.rglob("*") if path.is_file() and not path.name.endswith(".crc")):
            archive.add(file, f"lakehouse/{file.relative_to(place)}", filter=_nobody)


def _nobody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def main() -> None:
    """Make the folder anew."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / "models").mkdir(parents=True)
    (FOLDER / "conf.yaml").write_text(CONF)
    models()
    with tempfile.TemporaryDirectory() as work:
        lakehouse(Path(work).resolve())


if __name__ == "__main__":
    main()
