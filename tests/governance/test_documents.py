"""Documents as Markdown and HTML: the same figures in both, sources beside them, texts that mark up nothing."""

from __future__ import annotations

import html
import json
import re

import pytest

from uplift_spark.governance.documents import (
    NOT_KNOWN,
    CardDocument,
    Chapter,
    CitedFigure,
    FigureTable,
    OpenQuestion,
    document_files,
    document_html,
    document_markdown,
    figure_table,
    other_figure,
    sentence,
    table_figure,
)

FIGURE = re.compile(r'<data value="([^"]*)" data-of="([^"]*)"(?: data-scale="([^"]*)")?>([^<]*)</data>')
N = table_figure(12345, "gold.lift_table", "n", {"bucket": "a|b"}, version=3)
LOW = table_figure(0.01234, "gold.uplift_scores", "low_support", {}, "true")
UNKNOWN = table_figure(None, "gold.lift_table", "uplift", {})
NAME = """<script>alert("x")</script> & 'mail' *a* _b_ [c](d) a|b"""


def document() -> CardDocument:
    rows = ((NAME, N), ("many", sentence(LOW, " of the units")), ("few", UNKNOWN))
    blocks = (
        sentence("There are ", N, " units of ", NAME, "."),
        FigureTable(NAME, ("group", "figure"), rows),
        OpenQuestion("Who answers `uplift card`?"),
        figure_table("Empty", ("a",), [], "No row is there."),
    )
    return CardDocument("sample", "A sample", NAME, (Chapter("One", blocks), Chapter("Two", (sentence("End."),))))


def test_figures_print_the_same_digits_in_both() -> None:
    assert (N.text, LOW.text, UNKNOWN.text, CitedFigure(-0.5, "{}").text) == ("12,345", "1.23 %", NOT_KNOWN, "-0.5")
    assert other_figure(2, "registry", "rows").source == '{"registry": "rows"}'
    page, text = document_html(document()), document_markdown(document())
    figures = [
        (value, json.loads(html.unescape(of)), float(scale or 1), shown)
        for value, of, scale, shown in FIGURE.findall(page)
    ]
    assert page.count("<data ") == len(figures) == 4
    assert [one[3] for one in figures] == ["12,345", "12,345", "1.23", NOT_KNOWN]
    assert figures[0][1] == {
        "table": "gold.lift_table", "version": 3, "column": "n", "take": "value", "where": {"bucket": "a|b"}
    }  # fmt: skip
    assert "1.23</data> % of the units" in page and "1.23 % of the units" in text
    assert text.count("12,345") == 2 and NOT_KNOWN in text


def test_texts_mark_up_nothing_and_the_page_stands_alone() -> None:
    page, text = document_html(document()), document_markdown(document())
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src)=|https?://|@import|url\(", page)
    assert "<script" not in text and r"\*a\* \_b\_ \[c\](d) a\|b" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 3 for line in rows) and len(rows) == 5
    assert rows[1] == "|---|---:|"
    assert "<code>uplift card</code>" in page and "`uplift card`" in text


def test_questions_wait_for_an_answer_and_empty_tables_are_a_sentence() -> None:
    assert document().questions == ("Who answers `uplift card`?",)
    page, text = document_html(document()), document_markdown(document())
    assert "**Question to the owner:** Who answers" in text and "> Answer:" in text
    assert "No row is there." in page and "No row is there." in text and "Empty" not in page


def test_files_are_two_a_document_and_the_same_each_time() -> None:
    assert sorted(document_files([document()])) == ["sample.html", "sample.md"]
    assert document_files([document()]) == document_files([document()])


@pytest.mark.parametrize(("take", "unit"), [("missing", " %"), ("true", " %"), ("mean", ""), ("rows", "")])
def test_shares_are_in_percent(take: str, unit: str) -> None:
    assert table_figure(0.5, "t", "c", {}, take).unit == unit
