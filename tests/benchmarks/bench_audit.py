"""Seconds of `uplift audit explain` among millions of decisions, and of `uplift audit verify` of a million entries.

    make bench ONLY=audit
    make bench ONLY=audit ARGS="--units 10000000 --entries 1000000"

The decisions are those of a real plan (`bench_policy`) whose tree of hashes is on record; the units asked for lie
anywhere in the table.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
from bench_policy import CAMPAIGN, config, scores, training
from lakes import fresh_lake

from uplift_spark.campaign import Campaign
from uplift_spark.governance.audit import PLAIN_FIELDS, AuditEntry, AuditEvent, chained
from uplift_spark.governance.spark import AuditLog
from uplift_spark.jobs import policy
from uplift_spark.lake.schemas import AUDIT_TABLE
from uplift_spark.sections.governance import AuditConf, Governance

QUESTIONS = 7
PART = 200_000  # entries written at a time


def main() -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--units", type=int, default=100_000, help="decisions of the plan")
    parser.add_argument("--entries", type=int, default=100_000, help="entries of the log")
    arguments = parser.parse_known_args()[0]
    explained(arguments.units)
    verified(arguments.entries)


def explained(units: int) -> None:
    """Explain units of a plan about so many."""
    with fresh_lake("audit", units) as lake:
        spark = lake.spark
        lake.write(f"silver.training_{CAMPAIGN}", training(spark, units), "features", mode="overwrite")
        lake.write("gold.uplift_scores", scores(spark, units), "score", partition_by=("model_name", "model_version"))
        conf = replace(config(lake.lakehouse, units), governance=Governance(audit=AuditConf()))
        started = time.monotonic()
        policy.run(Campaign(conf, lake))
        print(f"a plan about {units:,} units, with a hash of each: {time.monotonic() - started:.1f} s", flush=True)
        seconds = []
        for number in range(QUESTIONS):
            started = time.monotonic()
            answer = AuditLog(conf, lake).explain(f"customer-{units * number // QUESTIONS:09d}")
            seconds.append(time.monotonic() - started)
            assert answer["proven"]
        print(
            f"explain, {QUESTIONS} units one after the other: {', '.join(f'{one:.2f}' for one in seconds)} s "
            f"(the first warms up); middle one {sorted(seconds)[QUESTIONS // 2]:.2f} s"
        )


def verified(entries: int) -> None:
    """Verify a log of so many entries."""
    with fresh_lake("audit", entries) as lake:
        conf = replace(config(lake.lakehouse, entries), governance=Governance(audit=AuditConf()))
        last: AuditEntry | None = None
        for start in range(0, entries, PART):
            part = range(start, min(entries, start + PART))
            events = [AuditEvent("ann", "erase", f"units of run {k}", "a request", CAMPAIGN) for k in part]
            written = chained(events, last, datetime.now(UTC))
            last = written[-1]
            plain = [{name: one.fields[name] for name in PLAIN_FIELDS} for one in written]
            rows = [{**row, "entry": one.text, "hash": one.hash} for row, one in zip(plain, written, strict=True)]
            lake.write(AUDIT_TABLE, lake.spark.createDataFrame(pa.Table.from_pylist(rows)), f"audit-{start}")
        started = time.monotonic()
        checked = AuditLog(conf, lake).verify()
        assert checked.holds and checked.entries == entries
        print(f"verify {entries:,} entries: {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    main()
