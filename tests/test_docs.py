"""What docs/ shows runs and is true; no Spark."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from pydantic import TypeAdapter

from uplift_spark.config import Config
from uplift_spark.lake.schemas import all_contracts
from uplift_spark.runtime import read_yaml
from uplift_spark.sections.canary import CanaryConf
from uplift_spark.sections.governance import Governance
from uplift_spark.sql_gate import checked_query

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text()
PAGES = sorted((ROOT / "docs").rglob("*.md"))


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
    for text in (ROOT / "README.md", *PAGES):
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
    assert examples_of("governance.md") == 12


def test_configurations_on_the_page_on_governance_are_read() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "governance.md").read_text(), re.S)
    sections = [TypeAdapter(Governance).validate_python(yaml.safe_load(block)["governance"]) for block in blocks]
    assert len(sections) == 3 and sections[0].approval is not None and sections[1].access is not None
    assert sections[2].retention is not None


def test_the_page_on_experiments_runs_and_shows_what_comes_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert examples_of("experiments.md") >= 7
    assert "primary spend, arm on: +" in capsys.readouterr().out


def test_the_page_on_canaries_shows_the_defaults_and_every_key() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "canary.md").read_text(), re.S)
    shown = yaml.safe_load(block)["canary"]
    assert TypeAdapter(CanaryConf).validate_python(shown) == CanaryConf()
    assert set(shown) == set(CanaryConf.__dataclass_fields__)
    assert set(shown["margins"]) == set(vars(CanaryConf().margins))


# --------------------------------------------------------------------------------------------------------------------
# Every block of every page: Python runs, configurations are read, queries name columns that are there, commands parse.

# Pages whose Python has a test of its own.
TESTED_ALONE = {"python.md", "governance.md", "experiments.md", "serving.md"}
# Programs that are not ours.
OTHERS = {"pip", "curl", "openssl", "databricks", "spark-submit", "python", ".venv/bin/jupytext"}
BASE = {"campaign": "spring", "roles": {"outcome": "y", "control": "none", "features": ["age"]}}


@dataclass(frozen=True)
class Block:
    """A block of code of a page, and where it begins."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = re.finditer(r"^( *)```(\w*)\n(.*?)^\1```$", text, re.M | re.S)
    name = str(page.relative_to(ROOT / "docs") if page.is_relative_to(ROOT / "docs") else page.name)
    return [Block(name, text[: one.start()].count("\n") + 1, one[2], one[3]) for one in found]


BLOCKS = [block for page in (*PAGES, ROOT / "README.md") for block in blocks_of(page)]


def blocks_in(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def test_every_block_has_a_language_that_some_test_reads() -> None:
    known = {"python", "py", "js", "yaml", "sql", "json", "console", "bash", "text", ""}
    assert {block.language for block in BLOCKS} <= known
    assert sum(path.read_text().count("```") for path in (*PAGES, ROOT / "README.md")) == 2 * len(BLOCKS)


@pytest.mark.parametrize("page", sorted({b.page for b in blocks_in("python")} - TESTED_ALONE - {"README.md"}))
def test_python_of_other_pages_runs_and_shows_what_comes_out(page: str) -> None:
    examples_of(page)


@pytest.mark.parametrize("block", blocks_in("yaml"), ids=str)
def test_a_configuration_on_a_page_is_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "conf.yaml").write_text(block.text.replace(", ...", ""))
    config = TypeAdapter(Config).validate_python({"source": None} | merged(BASE, read_yaml(tmp_path / "conf.yaml")))
    assert config.campaign


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of both, those of `over` in place of the others."""
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return {**base, **over, **both}


def test_a_configuration_with_an_unknown_key_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="budgt"):
        test_a_configuration_on_a_page_is_read(Block("", 1, "yaml", "policy: {budgt: 3}"), tmp_path)


@cache
def empty_tables() -> duckdb.DuckDBPyConnection:
    """Every table that a contract declares, without rows."""
    connection = duckdb.connect()
    for layer in ("bronze", "silver", "gold"):
        connection.execute(f"CREATE SCHEMA {layer}")
    for contract in all_contracts():
        if "<" in contract.table:
            continue
        kinds = {one.name: one.dataType.simpleString() for one in contract.columns.fields}
        columns = ", ".join(f'"{name}" {sql_type(kind)}' for name, kind in kinds.items())
        connection.execute(f"CREATE TABLE {contract.table} ({columns})")
    return connection


def sql_type(kind: str) -> str:
    """A type of Spark as DuckDB writes it."""
    kind = re.sub(r"array<(\w+)>", r"\1[]", kind)
    return re.sub(r"map<(\w+),(\w+)>", r"map(\1, \2)", kind)


def queries() -> list[tuple[str, str]]:
    """(where, query) of blocks in SQL and of `uplift sql` in all others."""
    found = [(str(block), query) for block in blocks_in("sql") for query in block.text.split(";") if query.strip()]
    for block, words in commands():
        if words[:2] == ["uplift", "sql"]:
            found.append((str(block), next(word for word in words[2:] if word.startswith("SELECT"))))
    return found


def commands() -> list[tuple[Block, list[str]]]:
    """Commands in blocks: lines of a shell, without prompt, comment and variables before the program."""
    found = []
    for block in blocks_in("console", "bash", ""):
        prompts = "$ " in block.text
        for line in block.text.splitlines():
            starts = line.startswith("$ ") or (
                not prompts and re.match(r"(uplift|make|pip|spark-submit|python) ", line)
            )
            if starts:
                words = shlex.split(line.removeprefix("$ "), comments=True)
                found.append((block, [word for n, word in enumerate(words) if n or "=" not in word]))
    return found


@pytest.mark.parametrize(("where", "query"), queries(), ids=[where for where, _ in queries()])
def test_a_query_on_a_page_reads_columns_that_are_there(where: str, query: str) -> None:
    empty_tables().execute(checked_query(query, None)).fetchall()


@cache
def parser_of(verb: str) -> Any:
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    try:
        return importlib.import_module("references").command_of(verb)
    finally:
        sys.path.remove(str(ROOT / "docs" / "site"))


def check_command(words: list[str]) -> None:
    """Parse a command of ours; of others check the files and extras that they name."""
    program, *rest = words
    if program == "uplift":
        verb = rest[0].partition("|")[0]
        parser_of(verb).make_context(verb, rest[1:])
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.M), rest
    else:
        assert program in OTHERS, words
    for place, word in enumerate(rest):
        if program in ("spark-submit", "python") and word.startswith("jobs/"):
            parser_of(Path(word).stem.replace("_", "-")).make_context(word, rest[place + 1 :])
        if extras := re.search(r"uplift-spark\[([\w,]+)\]", word):
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(extras[1].split(",")) <= set(project["optional-dependencies"]), word


def test_every_command_on_every_page_parses() -> None:
    shown = commands()
    assert len(shown) > 40
    for block, words in shown:
        try:
            check_command(words)
        except Exception as error:
            raise AssertionError(f"{block}: {shlex.join(words)}: {error}") from error


def test_a_command_with_an_unknown_option_does_not_parse() -> None:
    with pytest.raises(Exception, match="replicats"):
        check_command(shlex.split("uplift lift --conf conf/X.yaml --replicats 3"))


# --------------------------------------------------------------------------------------------------------------------
# The page for newcomers, command by command.


def outputs(page: str) -> list[tuple[list[str], str]]:
    """(command, what stands below it) of a page's shell."""
    found = []
    for block in blocks_in("console"):
        for part in re.split(r"^\$ ", block.text, flags=re.M)[1:] if block.page == page else ():
            line, _, below = part.partition("\n")
            found.append((shlex.split(line, comments=True), below.strip()))
    return found


def run_here(words: list[str]) -> str:
    """What a command of ours prints, on both streams, blanks at the ends of lines aside."""
    program = [sys.executable, "-m", "uplift_spark.cli", *words[1:]]
    done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
    return "\n".join(line.rstrip() for line in done.stdout.splitlines())


@pytest.mark.parametrize(("page", "campaign"), [("quickstart.md", "customers"), ("doses.md", "vouchers")])
def test_the_quickstart_pages_show_the_guesses(page: str, campaign: str) -> None:
    examples_of(page)
    ((words, below),) = [one for one in outputs(page) if one[1]]
    assert "--conf-only" in words and run_here(words) == below
    assert Path(f"conf/{campaign}.yaml").exists()


@pytest.mark.slow
@pytest.mark.spark
def test_the_quickstart_page_goes_from_a_file_to_the_decision() -> None:
    examples_of("quickstart.md")
    shown = [words for words, below in outputs("quickstart.md") if words[0] == "uplift" and not below]
    assert [words[1] for words in shown] == [
        "doctor",
        "quickstart",
        "tables",
        "sql",
        "sql",
        "train",
        "lift",
        "quickstart",
    ]
    (decision,) = [block.text.strip() for block in blocks_in("text") if block.page == "quickstart.md"]
    printed = [run_here(words) for words in shown[1:]]  # doctor looks at the machine, not at the page
    assert decision in printed[0]
    assert "gold.lift_table" in printed[1] and "qini" in printed[3]


@pytest.mark.slow
@pytest.mark.spark
def test_the_page_on_python_runs_a_whole_campaign() -> None:
    names: dict[str, Any] = {}
    first, (whole,) = next(block for block in blocks_in("python") if block.page == "python.md"), blocks_in("py")
    for block in (first, whole):
        exec(block.text, names)
    assert len(names["campaign"].lift_table(cut="decile")) == 10
