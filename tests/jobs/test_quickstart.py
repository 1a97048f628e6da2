"""`uplift quickstart`: a finished campaign in one file to its report, with nothing edited."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from uplift_spark import cli
from uplift_spark.campaign import Campaign
from uplift_spark.config import load_config
from uplift_spark.lake.tables import Lake

N = 3000


def customers(folder: Path) -> Path:
    """A trial of two mails as somebody exported it: semicolons, a decimal comma, names with blanks, no ids."""
    rng = np.random.default_rng(5)
    arm = rng.choice(["No mail", "Mail A", "Mail B"], N)
    recent = rng.random(N)
    bought = rng.random(N) < 0.1 + 0.3 * (arm == "Mail A") * (recent > 0.5)
    table = pd.DataFrame({"Mailing": arm, "Bought": np.where(bought, "Yes", "No"), "days since order": recent.round(3)})
    path = folder / "spring sale.csv"
    table.to_csv(path, index=False, sep=";", decimal=",")
    return path


@pytest.mark.usefixtures("spark")
def test_one_file_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    path = customers(tmp_path)
    monkeypatch.chdir(tmp_path)
    line = f"uplift quickstart '{path}' --treatment Mailing --outcome Bought --value 20 --cost .5"
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err[-2000:]
    conf = yaml.safe_load((tmp_path / "conf" / "spring_sale.yaml").read_text())
    assert conf["roles"]["control"] == "No mail" and conf["roles"]["features"] == ["days_since_order"]
    assert conf["economics"]["cost"] == {"Mail A": 0.5, "Mail B": 0.5}
    page = (tmp_path / "lakehouse" / "reports" / "spring_sale" / "latest.html").read_text()
    decision = printed.out.partition("The decision")[2]
    badge = next(line for line in decision.splitlines() if line.startswith("Give Mail A"))
    assert badge.rstrip(".") in page and "lakehouse/reports/spring_sale" in decision.replace("\n", "")
    assert "gold.policy_decisions" in printed.out and "assigned from" not in page  # nobody said when


@pytest.mark.slow
@pytest.mark.usefixtures("spark")
def test_a_delta_table_by_its_folder(
    tmp_path: Path, lake: Lake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pd.read_csv(customers(tmp_path), sep=";", decimal=",").rename(columns={"days since order": "days"})
    frame["customer_id"] = np.arange(N)
    folder = tmp_path / "spring"
    lake.spark.createDataFrame(frame).write.format("delta").save(str(folder))
    monkeypatch.chdir(tmp_path)
    line = "uplift quickstart spring --treatment Mailing --outcome Bought --conf-only"
    monkeypatch.setattr("sys.argv", shlex.split(line))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().err
    assert not ended.value.code and "3,000 rows, 4 columns" in printed, printed[-2000:]
    conf = tmp_path / "conf" / "spring.yaml"
    campaign = Campaign(load_config(conf), lake)
    assert campaign.config.source.path == "spring" and campaign.config.source.unit == "customer_id"
    campaign.run("ingest", progress=lambda line: None)
    assert campaign.sql("SELECT count(*) AS n FROM bronze.assignment")["n"].tolist() == [N]


@pytest.mark.slow
def test_a_frame_runs_and_a_better_one_takes_its_place(tmp_path: Path, lake: Lake) -> None:
    frame, said = pd.read_csv(customers(tmp_path), sep=";", decimal=","), []
    for rows in (frame[:2000], frame):
        campaign = Campaign.from_frame(rows, "Mailing", "Bought", folder=tmp_path, progress=said.append)
        campaign._lake = lake
        assert campaign.run("ingest", "features", progress=said.append) is campaign
    assert campaign.sql("SELECT count(*) AS n FROM silver.training_campaign")["n"].tolist() == [N]
    assert [line for line in said if line.startswith("features  ")]
