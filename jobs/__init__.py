"""One verb a file: `run(config, lake)` reads tables, calls `flow`, writes tables. Installed as `uplift_spark.jobs`."""
