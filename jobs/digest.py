"""Write a week or a month of a campaign as a page and a message: lift, return, triggers, alerts, drift, costs.

Reads what `uplift monitor`, `retrain` and `canary` wrote and counts bronze.assignment; writes digest_<day>.html and
digest_<day>.txt, and no table. A folder on this machine is read without Java. `--send` brings the message to the sinks
of `alerts.sinks` that take tickets; Alertmanager, which takes alerts alone, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from uplift_spark.campaign import Campaign
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.lake.local_tables import local_tables
from uplift_spark.lake.schemas import ASSIGNMENT_TABLE, gold_table
from uplift_spark.monitoring.digest import (
    DIGEST_PERIODS,
    DIGEST_TABLES,
    CampaignDigest,
    DigestPeriod,
    DigestSpan,
    as_moments,
    digest_day,
    digest_page,
    make_digest,
    span_of,
)
from uplift_spark.monitoring.sinks import SinkFailure, deliver
from uplift_spark.roles import CAMPAIGN, TREATMENT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress, write_files
from uplift_spark.spark_versions import sql_text

READS_RESULTS = True  # so Spark starts only where DuckDB cannot read them
NAMES_ITS_RUN = True  # a page has no run: it shows those of the tables
_MOMENTS = ("window_start", "window_end", "as_of", "ingested_at", "at", "started_at")
_WINDOWED = ("kpi", "drift")


@dataclass(frozen=True)
class DigestRequest:
    """Which period: the last one that was over on day `until`, by default at the newest monitored window's end.

    to    folder of the page; by default beside the reports
    send  whether the message goes to the sinks
    """

    period: DigestPeriod = "week"
    until: datetime | None = None
    to: Path | None = None
    send: bool = False

    def __post_init__(self) -> None:
        if self.period not in DIGEST_PERIODS:
            raise ConfigError(f"--period {self.period!r} is unknown: use week or month")


def options(
    period: Annotated[str, typer.Option(help="week or month.")] = "week",
    until: Annotated[str | None, typer.Option(help="Day by which the period is over, as in 2025-02-03.")] = None,
    to: Annotated[Path | None, typer.Option(help="Folder of page and message; by default beside the reports.")] = None,
    send: Annotated[bool, typer.Option("--send", help="Send the message to `alerts.sinks`.")] = False,
) -> dict[str, Any]:
    """Which period, where to, and whether it is sent."""
    return {"request": DigestRequest(period, digest_day(until), to, send)}  # type: ignore[arg-type]


def run(
    campaign: Campaign,
    progress: ProgressCallback = no_progress,
    run_id: str | None = None,
    *,
    request: DigestRequest | None = None,
) -> JobResult:
    """Write the page and the message of a period, and send it where that is wanted."""
    request = request or DigestRequest()
    tables = read_tables(campaign)
    kpis = tables.get("kpi", pd.DataFrame())
    newest = kpis["window_end"].max().to_pydatetime() if len(kpis) else datetime.now(UTC)
    span = span_of(request.period, request.until or newest)
    config = campaign.config
    digest = make_digest(
        campaign.name, span, tables, assigned_units(campaign, span), config.economics.cost,
        config.monitoring.hours, config.roles.direction,
    )  # fmt: skip
    name = f"digest_{span.period}_{span.start:%Y-%m-%d}"
    folder = request.to or campaign.reports("digests")
    text = "\n".join([digest.title, *digest.lines()])
    write_files(folder, {f"{name}.html": digest_page(digest), f"{name}.txt": text + "\n"})
    details: dict[str, Any] = {"page": folder / f"{name}.html", "summary": text}
    if request.send:
        details["sent"] = send(campaign, digest, progress)
    return JobResult("digest", "", details=details)


def read_tables(campaign: Campaign) -> dict[str, pd.DataFrame]:
    """{name: the campaign's rows}, of windows of the present length; what is not there has no entry."""
    local = local_tables(campaign.config.lakehouse)
    there = set(local.names() if local is not None else campaign.lake.tables())
    frames = {}
    for name in DIGEST_TABLES:
        if gold_table(name) in there:
            mine = f"{CAMPAIGN} = {sql_text(campaign.name)}"
            rows = as_moments(campaign.sql(f"SELECT * FROM {gold_table(name)} WHERE {mine}"), _MOMENTS)
            if name in _WINDOWED:
                length = pd.Timedelta(hours=campaign.config.monitoring.hours)
                rows = rows[rows["window_end"] - rows["window_start"] == length]
            frames[name] = rows
    return frames


def assigned_units(campaign: Campaign, span: DigestSpan) -> dict[str, int]:
    """{level: units assigned in the period}, without the control."""
    start, end = (f"'{moment:%Y-%m-%d %H:%M:%S}+00:00'" for moment in (span.start, span.end))
    mine = f"{CAMPAIGN} = {sql_text(campaign.name)} AND assigned_at >= {start} AND assigned_at < {end}"
    query = f"SELECT {TREATMENT}, count(*) AS n FROM {ASSIGNMENT_TABLE} WHERE {mine} GROUP BY {TREATMENT}"
    counts = campaign.sql(query)
    pairs = zip(counts[TREATMENT].astype(str), counts["n"].astype(int), strict=True)
    return {level: n for level, n in pairs if level != campaign.config.roles.control}


def send(campaign: Campaign, digest: CampaignDigest, progress: ProgressCallback) -> int:
    """Bring the message to the sinks that take tickets; how many took it. Raises DataError where none did."""
    sinks = {
        name: conf
        for name, conf in campaign.config.alerts.sinks.items()
        if conf.kind != "alertmanager" and "ticket" in conf.severities
    }
    if not sinks:
        raise ConfigError("--send has nowhere to send to: alerts.sinks has no webhook, mail or file that takes tickets")
    failures = []
    for name, conf in sinks.items():
        try:
            deliver(name, conf, digest, datetime.now(UTC))
        except SinkFailure as failure:
            failures.append(f"sink {name} ({conf.kind}) {failure.reason}")
            progress(failures[-1])
    if len(failures) == len(sinks):
        raise DataError(f"no sink took the digest: {'; '.join(failures)}; run it again with --send")
    return len(sinks) - len(failures)


if __name__ == "__main__":
    main_job(run, options)
