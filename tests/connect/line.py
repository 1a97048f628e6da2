"""The whole line as a Connect client, told as JSON: `python -m tests.connect.line FOLDER` with SPARK_REMOTE set."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module

import pyarrow as pa

from tests.forest.frames import ordered_frame, ordered_roles
from uplift_spark import CausalForest, MetaLearner
from uplift_spark.campaign import Campaign
from uplift_spark.cli import DEMO_JOBS
from uplift_spark.config import Consent, load_config
from uplift_spark.forest.spark import watched
from uplift_spark.governance.erasure import Erasure, purge
from uplift_spark.jobs import erase, export
from uplift_spark.jobs.export import Export
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake


def slowly(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The rows, after a while: the server reports every two seconds."""
    time.sleep(2.5)
    yield from batches


def main(folder: str) -> None:
    small = (f"lakehouse.path={folder}", "source.units=3000", "forest.n_trees=20", "lift.replicates=50", "lift.bins=10")
    config = load_config("conf/demo.yaml", small)
    spark = spark_session(config.lakehouse)
    lake = Lake(spark, config.lakehouse)
    first = [import_module(f"uplift_spark.jobs.{verb}").run(Campaign(config, lake)) for verb in DEMO_JOBS]
    again = [import_module(f"uplift_spark.jobs.{verb}").run(Campaign(config, lake)) for verb in DEMO_JOBS]
    unit = lake.read("gold.uplift_scores").select("unit_id").first()[0]
    erased = erase.run(Campaign(config, lake), erasure=Erasure((unit,)))
    import_module("uplift_spark.jobs.score").run(Campaign(config, lake))
    exported = export.run(
        Campaign(replace(config, consent=Consent(required=False)), lake), export=Export(f"{folder}/out")
    )
    purge(lake, "bronze.assignment")
    frame = ordered_frame(1500).assign(day=[i % 3 for i in range(1500)])
    remote = spark.createDataFrame(frame.astype({"region": object}).where(frame.notna(), None))
    forest = CausalForest(n_trees=8, min_leaf=10, n_buckets=4)
    learner, plain = MetaLearner("x_learner", 2), replace(ordered_roles(), propensity=None)
    learnt = [learner.fit(source, plain).effect(frame.head(20))["uplift_se"].tolist() for source in (remote, frame)]
    base = forest.fit(frame[:1000], ordered_roles())
    fresh = [base.refresh(source, 2.0, "day").to_bytes() for source in (remote, frame)]
    messages: list[str] = []
    with watched(spark, messages.append, every=0.5):
        spark.range(0, 4, 1, 4).mapInArrow(slowly, "id long").toArrow()
    report = {
        "module": type(spark).__module__,
        "rows": {table: details["rows"] for result in first for table, details in result.tables.items()},
        "again": {table: details["rows"] for result in again for table, details in result.tables.items()},
        "erased": erased.details["removed"],
        "exported": exported.details["units"],
        "purged": lake.read("bronze.assignment").count(),
        "same_refreshed": fresh[0] == fresh[1],
        "same_bytes": forest.fit(remote, ordered_roles()).to_bytes() == forest.fit(frame, ordered_roles()).to_bytes(),
        "same_learner": learnt[0] == learnt[1],
        "messages": messages,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
