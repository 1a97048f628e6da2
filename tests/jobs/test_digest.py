"""`uplift digest`: page and message from Delta tables in a folder, without Java."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.jobs.test_dashboard import written
from uplift_spark.campaign import Campaign
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.jobs import digest
from uplift_spark.jobs.digest import DigestRequest

MONDAY = pd.Timestamp("2025-02-03", tz="UTC")
DAY = pd.Timedelta(days=1)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    """A week that was monitored, an hour too, and another campaign beside it."""
    rows = []
    for campaign, day, hours, lift in (("spring", 0, 24, 0.1), ("spring", 6, 24, 0.3), ("spring", 0, 1, 9.0),
                                       ("autumn", 0, 24, 9.0)):  # fmt: skip
        start = MONDAY + day * DAY
        window = {"window_start": start, "window_end": start + pd.Timedelta(hours=hours), "as_of": start + 2 * DAY}
        figures = {"kpi": "observed_lift", "cut": "mail", "value": lift, "lower": lift - 0.1, "upper": lift + 0.1}
        rows.append({"campaign": campaign, **window, **figures, "n": 100.0, "run_id": f"m{day}", "ingested_at": start})
    lake = tmp_path / "lake"
    written(lake, "gold.kpi", pd.DataFrame(rows), "monitor-1")
    at = [MONDAY - pd.Timedelta(seconds=1), MONDAY, MONDAY + 6.9 * DAY, MONDAY + 7 * DAY, MONDAY]
    arms = ["mail", "mail", "mail", "mail", "none"]
    units = pd.DataFrame({"unit_id": list("abcde"), "treatment": arms, "assigned_at": at}).assign(campaign="spring")
    written(lake, "bronze.assignment", units, "load-1")
    sinks = {"log": {"kind": "file", "path": str(tmp_path / "log.jsonl")}}
    sinks |= {"am": {"kind": "alertmanager", "url": "http://127.0.0.1:9"}}
    conf = tmp_path / "spring.yaml"
    text = {"campaign": "spring", "roles": {"outcome": "visit", "control": "none", "features": ["age"]}}
    text |= {"economics": {"cost": {"mail": 2}}, "alerts": {"sinks": sinks}, "lakehouse": {"path": str(lake)}}
    conf.write_text(yaml.safe_dump(text))
    return Campaign(conf)


def test_a_week_as_page_and_message(campaign: Campaign, tmp_path: Path) -> None:
    result = digest.run(campaign, request=DigestRequest(to=tmp_path / "pages", send=True))
    text = (tmp_path / "pages" / "digest_week_2025-02-03.txt").read_text()
    assert text.strip() == result.details["summary"] and "spring: week from 2025-02-03 to 2025-02-09" in text
    assert "mail: 2 units, lift 0.2 (" in text and "spent 4" in text and "windows monitored: 2 of 7" in text
    page = (tmp_path / "pages" / "digest_week_2025-02-03.html").read_text()
    assert "2 of 7 windows were monitored" in page
    assert result.details["sent"] == 1 and "spring: week" in (tmp_path / "log.jsonl").read_text()
    month = digest.run(campaign, request=DigestRequest("month", datetime(2025, 3, 1, tzinfo=UTC), tmp_path))
    assert "mail: 4 units" in month.details["summary"] and "windows monitored: 2 of 28" in month.details["summary"]


def test_what_cannot_be_said_or_sent_is_one_sentence(campaign: Campaign, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--period 'year' is unknown: use week or month"):
        digest.options("year")
    assert digest.options(until="2025-02-10")["request"].until == datetime(2025, 2, 10, tzinfo=UTC)
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(DataError, match=r"no sink took the digest: sink log \(file\) .* cannot be written"):
        digest.run(campaign, request=DigestRequest(to=tmp_path, send=True))
    campaign.config.alerts.sinks.pop("log")
    with pytest.raises(ConfigError, match=r"--send has nowhere to send to: alerts\.sinks has no webhook, mail or file"):
        digest.run(campaign, request=DigestRequest(to=tmp_path, send=True))
    early = DigestRequest(until=datetime(2025, 1, 1, tzinfo=UTC) + timedelta(days=1), to=tmp_path)
    assert "windows monitored: 0 of 7" in digest.run(campaign, request=early).details["summary"]
