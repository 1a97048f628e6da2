"""`uplift monitoring-files`: files by the configuration, in one sentence what is wrong; no Spark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.monitoring.services import program
from uplift_spark.console import own_command
from uplift_spark.errors import ConfigError, EnvironmentProblem
from uplift_spark.jobs import monitoring_files

ROOT = Path(__file__).resolve().parents[2]
CONF = ["--conf", str(ROOT / "conf" / "demo.yaml")]


def run(*options: str) -> None:
    own_command("monitoring-files", monitoring_files.command, "help")(args=[*CONF, *options], standalone_mode=False)


def names_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_files_follow_from_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--to", str(tmp_path / "a"))
    names = {"uplift-kpis.yaml", "test-uplift-kpis-1m.yaml", "prometheus.yml", "alertmanager.yml"}
    pages = {f"dashboards/{name}.json" for name in ("executive", "on-call", "debug")}
    assert names_of(tmp_path / "a") == names | pages
    assert "alerting rules of demo" in capsys.readouterr().out
    settings = ["monitoring.kpis.drift_score.alert=.3", "alerts.sinks.chat={kind: webhook, url_file: /run/chat}"]
    run("--to", str(tmp_path / "b"), "--serving", "localhost:8000", *(f"--set={one}" for one in settings))
    assert names_of(tmp_path / "b") > names | pages | {"uplift-service.yaml"}
    assert "> 0.3 and" in (tmp_path / "b" / "uplift-kpis.yaml").read_text()
    assert "0.3" in json.dumps(json.loads((tmp_path / "b" / "dashboards" / "debug.json").read_text()))
    content = yaml.safe_load((tmp_path / "b" / "alertmanager.yml").read_text())
    assert {one["name"] for one in content["receivers"]} == {"demo-page", "demo-ticket", "page", "ticket"}
    assert [one["slack_configs"][0]["api_url_file"] for one in content["receivers"]] == ["/run/chat"] * 4
    shown = capsys.readouterr().out
    assert "outage fires after" in shown and "8.64" in shown
    # Latency and errors are a monitor's own where it has a log of requests.
    assert "UpliftErrorRate\n" not in (tmp_path / "b" / "uplift-kpis.yaml").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--serving", "8000"], "--serving 8000 is no HOST:PORT"),
        (["--serving", "other=localhost:1"], "--serving names other, none of the campaigns demo"),
        (CONF, "--conf names campaign demo twice"),
        (["--set", "monitoring.kpis.error_rate.alert=0.001"], "thresholds the wrong way round"),
        (["--set", "monitoring.kpis.delivery_rate.alert=0"], "a share is never below that"),
        (["--set", "alerts.sinks.chat={kind: webhook, url_env: CHAT}"], "has its secret in .CHAT, which Alertmanager"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path: Path, options: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        run("--to", str(tmp_path / "files"), *options)
    assert not (tmp_path / "files").exists()


def test_a_folder_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        run("--to", str(tmp_path / "file"))


@pytest.mark.slow
def test_the_table_of_what_promtool_proved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("promtool", "amtool"):
        program(name)
    run("--to", str(tmp_path), "--check")
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "Uplift" in line]
    assert len(lines) > 10 and all(line[-5:] == ["yes"] * 5 for line in lines)
