"""One verb a file, installed as `uplift_spark.jobs`: its options, what it reads, decides, writes and reports.

`run(campaign, progress, run_id, *, ...)` does the work. Where the command line has options beyond --conf, --set and
--run-id, `options` takes them and returns the arguments of `run` that they stand for.
"""
