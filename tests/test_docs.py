"""What docs/ shows runs and is true; no Spark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()


def test_the_page_on_python_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) >= 5
    for block in blocks:
        exec(block, names)
    shown = re.search(r"^model  # (.*)$", PAGE, re.M)
    assert shown is not None and repr(names["model"]) == shown.group(1)
    columns = re.search(r"effects = .*# (.*)$", PAGE, re.M)
    assert columns is not None and list(names["effects"].columns) == columns.group(1).split(", ")  # type: ignore[attr-defined]
    lift = names["lift"]
    assert set(lift["cut"]) == {"all", "decile", "segment:region", "segment:recency"}  # type: ignore[index]
    by_bucket = lift[lift["cut"] == "segment:recency"].set_index("bucket")["uplift"]  # type: ignore[index]
    assert by_bucket["0"] > 0.05 > by_bucket["11"] - 0.05
    assert (tmp_path / "qini.png").stat().st_size > 10_000


def test_pages_that_texts_name_exist() -> None:
    for text in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for page in re.findall(r"docs/[\w/]+\.(?:md|png)", text.read_text()):
            assert (ROOT / page).is_file(), f"{text.name} names {page}"


def test_the_page_on_experiments_runs_and_shows_what_comes_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What its commands print is tested with Spark, in tests/jobs/test_experiment.py."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    shown = 0
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "experiments.md").read_text(), re.S):
        exec(block, names)
        for expression, value in re.findall(r"^(\S.*?)  # (.+)$", block, re.M):
            assert str(eval(expression, names)) == value, expression
            shown += 1
    assert shown >= 7
    assert "primary spend, arm on: +" in capsys.readouterr().out
