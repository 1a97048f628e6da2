"""What README.md promises: its Python runs, its commands and files exist."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from uplift_spark.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = README + "".join(page.read_text() for page in sorted((ROOT / "docs").rglob("*.md")))


def trial(n: int = 2000) -> pd.DataFrame:
    """A small trial with the columns README's example names."""
    draw = np.random.default_rng(1)
    arm, recency = draw.integers(0, 2, n), draw.uniform(0, 12, n)
    visit = draw.uniform(size=n) < 0.1 + 0.3 * arm * (recency < 4)
    columns = {"arm": np.where(arm == 1, "mail", "none"), "visit": visit.astype(int), "recency": recency}
    return pd.DataFrame({"user_id": np.arange(n), **columns, "history": draw.exponential(100, n)})


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    monkeypatch.chdir(tmp_path)
    names = {"frame": trial()}
    exec(example, names)
    effects = names["beside"]
    promised = re.search(r"# unit, (.*)", example)
    assert promised is not None
    assert list(names["effects"].columns) == ["user_id", *promised.group(1).split(", ")]
    assert len(effects) == len(names["frame"])
    recent = effects["recency"] < 4
    assert effects.loc[recent, "uplift"].mean() > effects.loc[~recent, "uplift"].mean() + 0.1


def test_every_command_exists() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    named = {name for names in re.findall(r"[`/]uplift ([a-z|\\]+)[ `]", PAGES) for name in re.split(r"\\?\|", names)}
    assert named - {""} <= known
    assert {"demo", "sql", "tables"} <= named


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", PAGES, re.M)) <= targets


def test_every_file_exists() -> None:
    rooms = "|".join(path.parent.name for path in (ROOT / "uplift_spark").glob("*/__init__.py"))
    quoted = re.findall(rf"`((?:conf|jobs|{rooms}|tests)/[\w/]+\.\w+)`", PAGES)
    wanted = {name for name in [*quoted, *re.findall(r"conf/\w+\.yaml", PAGES)] if "/X." not in name}
    wanted -= {"conf/customers.yaml", "conf/spring.yaml", "conf/vouchers.yaml"}  # which the commands shown there write
    missing = {n for n in wanted if not (ROOT / n).exists() and not (ROOT / "uplift_spark" / n).exists()}
    assert not missing
    assert len(wanted) >= 4
