"""`uplift quickstart`: a finished campaign in one file to its report, with nothing edited."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from uplift_spark import cli

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
