"""The guide: reference pages say all that the code declares, pictures are what the simulations draw; no Spark."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from dataclasses import fields, make_dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

import uplift_spark
from uplift_spark.cli import app
from uplift_spark.gold_views import GOLD_VIEWS
from uplift_spark.lake.schemas import all_contracts

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / "docs" / "site"
sys.path.insert(0, str(SITE))

import pictures  # noqa: E402
import references  # noqa: E402

sys.path.remove(str(SITE))


def test_the_navigation_names_every_page_once() -> None:
    text = re.search(r"^nav:\n(.*)\Z", (ROOT / "mkdocs.yml").read_text(), re.M | re.S)
    assert text is not None
    named = re.findall(r"[\w/-]+\.md", text[1])
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    generated = {f"reference/{name}.md" for name in ast.literal_eval(page_names())}
    assert sorted(named) == sorted(there | generated)


def page_names() -> str:
    """Keys of what `references.pages` returns, without making the pages."""
    source = re.search(r"def pages\(\).*?return \{(.*?)\n    \}", (SITE / "references.py").read_text(), re.S)
    assert source is not None
    return str(re.findall(r'"(\w+)":', source[1]))


def test_every_key_of_the_configuration_is_explained() -> None:
    page = references.configuration_page()
    for section in references.sections():
        text = page.partition(f"{{#{section.anchor}}}")[2].partition("\n## ")[0]
        rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", text, re.M))
        assert list(rows) == [one.name for one in fields(section.of)], section.path
        silent = [key for key, meaning in rows.items() if not meaning.strip()]
        assert not silent, f"{section.of.__name__} says nothing about {silent}: add them to its docstring"


def test_a_key_has_its_type_its_bounds_its_default_and_its_meaning() -> None:
    page = references.configuration_page()
    assert "| `holdout` | number, above 0, below 1 | `0.5` | share of the units" in page
    assert "| `criterion` | `auto` or `slope` or `spline`" in page
    assert "| `arms` | whole number, at least 2, at most 20 | `3` |" in page
    assert "| `campaign` | text | required |" in page
    assert "| `limits` | list of [policy.limits](#policy-limits) |" in page


def test_a_docstring_s_table_of_keys_is_read() -> None:
    text = """`example`: for this test.

    one, two  what both mean,
              on two lines
    three     the last
    """
    of = make_dataclass("Of", ["one", "two", "three"], namespace={"__doc__": text})
    said, known, more = references.meanings(of)
    assert said == "`example`: for this test." and more == ""
    assert known == {"one": "what both mean, on two lines", "two": "what both mean, on two lines", "three": "the last"}


def test_the_page_on_tables_has_every_table_and_column() -> None:
    page = references.tables_page()
    for contract in all_contracts():
        text = page.partition(f"\n### {contract.table}\n")[2].partition("\n### ")[0]
        assert re.findall(r"^\| `([\w.]+)` \|", text, re.M) == contract.columns.names, contract.table


def test_the_page_on_tables_has_every_view_with_its_sentence() -> None:
    page = references.tables_page()
    for view in GOLD_VIEWS.values():
        assert f"| `gold.{view.name}` | {references.cell(view.meaning)} |" in page, view.name


def test_the_page_on_python_has_every_public_name() -> None:
    page = references.python_page()
    for name in set(uplift_spark.__all__) - {"__version__"}:
        assert re.search(rf"^::: uplift_spark\.[\w.]+\.{name}$", page, re.M), name
    imported = set()
    for text in (ROOT / "docs").glob("*.md"):
        imported |= set(re.findall(r"^from (uplift_spark\.[\w.]+) import", text.read_text(), re.M))
    lacking = {module for module in imported if f"::: {module}\n" not in page}
    assert not lacking, f"pages import from {lacking}: add them to references.MODULES"


def test_messages_are_split_into_what_is_wrong_and_what_to_do() -> None:
    every = references.messages()
    assert len(every) > 600 and {one.room for one in every} <= set(references.SUBJECTS)
    assert sum(bool(one.parts[1]) for one in every) > 0.75 * len(every)
    one = references.Message("ConfigError", "config", "compare.against names a model twice: remove the duplicate")
    assert one.parts == ("compare.against names a model twice", "remove the duplicate")
    assert references.Message("DataError", "lake", "… cannot be read: …").parts == ("… cannot be read: …", "")


def test_messages_that_the_page_on_troubles_explains_are_said() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## Results that surprise")[0]
    texts = "\n".join(all_texts())
    headings = re.findall(r"^### (.*)$", page, re.M)
    assert len(headings) > 15
    for heading in headings:
        if heading.startswith("rows are missing"):
            continue  # a symptom
        pieces = [piece.strip(" ,…[]") for piece in heading.split("…")]
        for piece in filter(None, pieces):
            assert piece in texts, f"no message says {piece!r}"


def all_texts() -> list[str]:
    """Every text of the package, adjacent ones joined, … for what is filled in."""
    kinds = ast.JoinedStr | ast.BinOp | ast.Constant
    return [references.sentence(node) for _, node in references.nodes() if isinstance(node, kinds)]


def test_prose_escapes_tags_and_makes_lists_of_aligned_lines() -> None:
    text = references.prose("Reads silver.training_<campaign> and `a <b>`.\nkey  what it\n     means")
    assert text == "Reads silver.training_&lt;campaign> and `a <b>`.\n\n- `key`: what it\n  means"


@pytest.mark.slow
def test_every_verb_has_a_page_with_its_options_and_what_it_reads_and_writes() -> None:
    pages = references.verb_pages()
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert set(pages) == {f"verbs/{name}" for name in known}
    index = references.verbs_page()
    for name, command in references.commands().items():
        page = pages[f"verbs/{name}"]
        assert f"(verbs/{name}.md)" in index and page.startswith(f"# uplift {name}\n")
        assert page.count(f"\n$ uplift {name}") == 1 and "\n## How it ends\n" in page and "The guide: [" in page
        options = page.partition("## Options")[2].partition("\n## ")[0]
        for option in command.params:
            shown = option.opts[-1] if option.opts[-1].startswith("-") else (option.metavar or option.name).upper()
            hidden = option.hidden or option.name == "help"
            assert (f"`{shown}" in options or f", {shown}" in options) is not hidden, (name, shown)
        assert set(re.findall(r"that it writes first: (.*)\.$", page, re.M)) == {
            ", ".join(f"`{one.table}`" for one in group)
            for group in [[one for one in all_contracts() if one.job == name.replace("-", "_")]]
            if group
        }
    steps = re.search(r"^\| step \|.*\n\|[-|]+\n((?:\|.*\n)+)", (ROOT / "docs" / "verbs.md").read_text(), re.M)
    assert steps is not None
    listed = set(re.findall(r"^\| `uplift ([\w-]+)", steps[1], re.M))
    assert listed == {name for name in known if "## What it reads and writes" in pages[f"verbs/{name}"]} - {"reject"}
    assert "| `--replace` |  | Take the place of the campaign's earlier rows. |" in pages["verbs/ingest"]
    assert "(../../serving.md#into-bronze)" in pages["verbs/load"]
    assert "is broken" in pages["verbs/check"] and "`privacy_officer`" in pages["verbs/erase"]


@pytest.mark.slow
def test_the_navigation_has_the_page_of_each_verb_below_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs", reason="`make docs` installs it")
    monkeypatch.syspath_prepend(SITE)
    hooks = importlib.import_module("hooks")
    nav = [{"Home": "index.md"}, {"Reference": [{"Verbs": "reference/verbs.md"}, "x.md"]}]
    ((all_verbs, *each),) = [one["Verbs"] for one in hooks.with_verbs(nav)[1]["Reference"][:1]]
    assert all_verbs == {"All verbs": "reference/verbs.md"} and hooks.with_verbs(nav)[0] == nav[0]
    assert [page for one in each for page in one.values()] == [
        f"reference/{name}.md" for name in references.verb_pages()
    ]


# --------------------------------------------------------------------------------------------------------------------
# Pictures.


def test_the_figures_that_the_page_on_uplift_shows_are_the_simulation_s() -> None:
    page = (ROOT / "docs" / "concepts" / "uplift.md").read_text()
    for name, (base, added) in pictures.KINDS.items():
        effect = "none" if not added else f"{abs(added):.0%} {'more' if added > 0 else 'less'}".replace("%", " points")
        assert f"| {name} | {base:.0%} | {effect} |".replace("%", " %") in page
    rows = pictures.kinds().set_index("bucket")
    for name, (_, added) in pictures.KINDS.items():
        assert rows.loc[name, "uplift_lower"] <= added <= rows.loc[name, "uplift_upper"]


def test_of_twenty_intervals_the_page_s_number_holds_the_truth() -> None:
    rows = pictures.repeated()
    held = int((~rows["low_sample"]).sum())
    assert f"Here {held} of {len(rows)} intervals hold the truth." in (
        ROOT / "docs" / "concepts" / "intervals.md"
    ).read_text().replace("\n", " ")


@pytest.mark.slow
def test_pictures_are_what_the_script_draws() -> None:
    """To a fifth of a pixel, as another processor may round the last digit otherwise."""
    number = re.compile(r"-?\d+\.\d+")
    drawn = pictures.pictures()
    assert {path.name for path in pictures.FOLDER.glob("*.svg")} == set(drawn)
    for name, svg in drawn.items():
        kept = (pictures.FOLDER / name).read_text()
        assert len(kept) < 8000
        assert number.sub("", kept) == number.sub("", svg), name
        there, now = (np.array([*map(float, number.findall(text))]) for text in (kept, svg))
        assert np.abs(there - now).max() < 0.2, name


@pytest.mark.slow
def test_pictures_show_what_the_pages_say() -> None:
    first, second = pictures.honest()
    assert first["uplift"].max() - first["uplift"].min() > 0.4  # the learner's own rows
    zero = (second["uplift_lower"] <= 0) & (second["uplift_upper"] >= 0)
    assert zero.sum() >= 9
    (_, differ), (_, alike) = pictures.gains().values()
    assert differ["lower"].iloc[0] > 0 > alike["lower"].iloc[0] and alike["upper"].iloc[0] > 0


def test_the_configuration_of_the_guide_reads_no_other_host() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert "http" not in text and yaml.safe_load(re.sub(r"!!\S+", "", text))["theme"]["font"] is False
