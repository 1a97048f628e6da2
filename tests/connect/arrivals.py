"""Rows by stream, replay and load as a Connect client, told as JSON: `python -m tests.connect.arrivals FOLDER` with
SPARK_REMOTE set."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse, RolesConf, Simulation
from uplift_spark.errors import UpliftError
from uplift_spark.events.load import Load
from uplift_spark.jobs import load, optimize, replay, stream
from uplift_spark.jobs.replay import Replay
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake

CONF = Config(campaign="shop", source=Simulation(units=1000), roles=RolesConf("conversion", "none", ("age",)))


def main(folder: str) -> None:
    lakehouse = Lakehouse(path=f"{folder}/lakehouse")
    spark = spark_session(lakehouse)
    lake, shop = Lake(spark, lakehouse), f"{folder}/shop"

    def add(unit: str | None, **more: Any) -> None:
        rows = spark.createDataFrame([(unit, "login")], "unit_id string, event string")
        rows = rows.withColumns({"occurred_at": F.current_timestamp(), **more})
        feed = rows.write.format("delta").mode("append").option("delta.enableChangeDataFeed", "true")
        feed.option("mergeSchema", "true").save(shop)

    def streamed() -> dict[str, Any]:
        result = stream.run(Campaign(CONF, lake), load=Load("bronze.event", shop, "delta"))
        return {"good": result.details["good"], "rejected": result.details["rejected"]}

    def repaired(expression: str) -> Any:
        try:
            return replay.run(
                Campaign(CONF, lake), replay=Replay.of("bronze.event", None, [f"unit_id={expression}"])
            ).details["replayed"]
        except UpliftError as error:
            return f"{type(error).__name__}: {error}"

    add("a")
    add(None)
    first = streamed()
    add("b")
    second = streamed()
    (state,) = Path(lakehouse.path).glob("_checkpoints/*")
    shutil.rmtree(state)
    add("c")
    report = {"first": first, "second": second, "after_loss": streamed()}
    report |= {"wrong": repaired("max(event)"), "replayed": repaired("'x'"), "again": repaired("'x'")}
    add("d", price=F.lit(2.5))
    load.run(Campaign(CONF, lake), load=Load("bronze.event", shop, "delta", new_columns=("price",)))
    report["optimized"] = optimize.run(Campaign(CONF, lake), tables=("bronze.event",)).details["bronze.event"]["files"]
    rows = lake.read("bronze.event").select("unit_id", "price").collect()
    report["rows"] = sorted([row["unit_id"], row["price"]] for row in rows)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1])
