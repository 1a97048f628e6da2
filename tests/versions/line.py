"""The small line in this environment, as one line of JSON: `python -m tests.versions.line FOLDER`."""

from __future__ import annotations

import json
import sys
import time
from importlib import import_module

from uplift_spark.campaign import Campaign
from uplift_spark.cli import DEMO_JOBS
from uplift_spark.config import load_config
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake


def main(folder: str) -> None:
    """Run the demo's jobs on few units, and print seconds by job and the digest of the model."""
    small = (f"lakehouse.path={folder}", "source.units=3000", "forest.n_trees=20", "lift.replicates=50", "lift.bins=10")
    config = load_config("conf/demo.yaml", small)
    spark = spark_session(config.lakehouse)
    campaign = Campaign(config, Lake(spark, config.lakehouse))
    seconds = {}
    for verb in DEMO_JOBS:
        started = time.monotonic()
        import_module(f"uplift_spark.jobs.{verb}").run(campaign)
        seconds[verb] = round(time.monotonic() - started, 1)
    model = campaign.registry.find(config.model_name)
    print(json.dumps({"spark": spark.version, "seconds": seconds, "model": model.sha256}))


if __name__ == "__main__":
    main(sys.argv[1])
