"""What docs/ shows runs and is true; no Spark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

from uplift_spark.sections.canary import CanaryConf
from uplift_spark.sections.governance import Governance

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


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples write files, and none of them into the project."""
    monkeypatch.chdir(tmp_path)


def examples_of(page: str) -> int:
    """Run a page's examples; every line that ends with its value in a comment has that value. Returns their number."""
    names: dict[str, object] = {}
    shown = 0
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S):
        exec(block, names)
        for expression, value in re.findall(r"^(\S.*?)  # (.+)$", block, re.M):
            assert str(eval(expression, names)) == value, expression
            shown += 1
    return shown


def test_the_page_on_governance_runs_and_shows_what_comes_out() -> None:
    assert examples_of("governance.md") == 10


def test_configurations_on_the_page_on_governance_are_read() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "governance.md").read_text(), re.S)
    sections = [TypeAdapter(Governance).validate_python(yaml.safe_load(block)["governance"]) for block in blocks]
    assert len(sections) == 2 and sections[0].approval is not None and sections[1].access is not None


def test_the_page_on_experiments_runs_and_shows_what_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert examples_of("experiments.md") >= 7
    assert "primary spend, arm on: +" in capsys.readouterr().out


def test_the_page_on_canaries_shows_the_defaults_and_every_key() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "canary.md").read_text(), re.S)
    shown = yaml.safe_load(block)["canary"]
    assert TypeAdapter(CanaryConf).validate_python(shown) == CanaryConf()
    assert set(shown) == set(CanaryConf.__dataclass_fields__)
    assert set(shown["margins"]) == set(vars(CanaryConf().margins))
