"""Tables as the last release made them: with its names of columns and its texts."""

from __future__ import annotations

import json

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.lake.contracts import conform
from uplift_spark.lake.schemas import contract_of
from uplift_spark.lake.storage import Layout, Save, storage_of
from uplift_spark.lake.tables import Lake


def made_by_last_release(lake: Lake, table: str, frame: DataFrame, run_id: str) -> None:
    """Write rows with names of this release and texts of the last into a table with the names of the last."""
    contract = contract_of(table)
    assert contract is not None and contract.renamed
    rows = conform(frame.withColumn("run_id", F.lit(run_id)), contract).drop(*contract.later)
    rows = rows.withColumnsRenamed(dict(contract.renamed))
    order = tuple(contract.renamed.get(name, name) for name in contract.cluster_by)
    layout = Layout((), order, contract.skip_by, contract.constraints, contract.append_only)
    storage = storage_of(lake.spark, lake.lakehouse)
    run = {"txnAppId": f"{table}:{run_id}", "txnVersion": "1", "userMetadata": json.dumps({"run_id": run_id})}
    storage.save(rows, Save(table, "append", {**run, **storage.create(table, rows.schema, layout)}))
