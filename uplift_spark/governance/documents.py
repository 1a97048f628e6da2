"""Documents of figures and sentences that become Markdown and one HTML page, equal to the printed digit. No Spark.

A `CitedFigure` knows where it comes from: a table with its version, its rows and its column, a registry or the
configuration. In HTML that source stands beside the figure, so that a program can look it up and compare.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from uplift_spark.evaluation.html_page import coded, figure, page_template, short

NOT_KNOWN = "not known"
"""What stands in a table where a figure does not exist."""


@dataclass(frozen=True)
class CitedFigure:
    """A figure with its source.

    value   as the source has it; NaN where it is not known
    source  JSON, see `table_figure`
    scale   what it is multiplied by to be shown
    unit    behind it
    """

    value: float
    source: str
    scale: float = 1.0
    unit: str = ""

    @property
    def text(self) -> str:
        """The figure as it is printed."""
        return f"{short(self.value * self.scale)}{self.unit}" if math.isfinite(self.value) else NOT_KNOWN


def table_figure(
    value: Any, table: str, column: str, where: Mapping[str, Any], take: str = "value", version: int | None = None
) -> CitedFigure:
    """Cite a figure of a table.

    Args:
        value: The figure; None and NaN are not known.
        table: `schema.table`.
        column: Its column; `*` of counts.
        where: {column: value, or a list of values} that tell the rows.
        take: What is taken of the rows' column: value (of the one row), rows, mean, least, most, sum, missing (share
            of rows without a value), true (share of rows where it holds), kinds (different values).
        version: Delta version read; None for the newest.

    Returns:
        The figure; shares in percent.
    """
    source: dict[str, Any] = {"table": table, "take": take, "column": column, "where": dict(where)}
    if version is not None:
        source["version"] = version
    share = take in ("missing", "true")
    return CitedFigure(_number(value), _canonical(source), *((100.0, " %") if share else ()))


def other_figure(value: Any, kind: str, name: str) -> CitedFigure:
    """Cite a figure that no table holds.

    Args:
        value: The figure; None and NaN are not known.
        kind: `registry`, a figure that the training run logged; `configuration`, a key of it; `audit`, an entry's.
        name: Of the figure there.

    Returns:
        The figure.
    """
    return CitedFigure(_number(value), _canonical({kind: name}))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _canonical(source: Mapping[str, Any]) -> str:
    return json.dumps(source, sort_keys=True, default=str)


# --------------------------------------------------------------------------------------------------------------------
# Blocks.


@dataclass(frozen=True)
class Sentence:
    """A paragraph, or a cell of several words and figures: texts and figures, one after another."""

    parts: tuple[str | CitedFigure, ...]


Cell = str | CitedFigure | Sentence


@dataclass(frozen=True)
class FigureTable:
    """Rows of texts and figures below heads; `title` stands above it."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class OpenQuestion:
    """What no table can tell: it is put to the owner, and an empty line waits for the answer."""

    question: str


Block = Sentence | FigureTable | OpenQuestion


@dataclass(frozen=True)
class Chapter:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class CardDocument:
    """A document: `name` is that of its files, `about` a line on what it is and whose structure it follows."""

    name: str
    title: str
    about: str
    chapters: tuple[Chapter, ...] = field(default_factory=tuple)

    @property
    def questions(self) -> tuple[str, ...]:
        """What is put to the owner, in order."""
        return tuple(b.question for chapter in self.chapters for b in chapter.blocks if isinstance(b, OpenQuestion))


def sentence(*parts: str | CitedFigure) -> Sentence:
    """Make a paragraph of texts and figures."""
    return Sentence(parts)


def figure_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Cell]], absent: str) -> Block:
    """Make a table; where there is no row, the sentence `absent` in its place."""
    if not rows:
        return sentence(absent)
    return FigureTable(title, tuple(heads), tuple(tuple(row) for row in rows))


# --------------------------------------------------------------------------------------------------------------------
# Markdown and HTML.


def document_files(documents: Sequence[CardDocument]) -> dict[str, str]:
    """Write documents as files.

    Args:
        documents: Each becomes two.

    Returns:
        {`<name>.md` and `<name>.html`: text}; the same documents give the same bytes.
    """
    files = {f"{one.name}.md": document_markdown(one) for one in documents}
    return files | {f"{one.name}.html": document_html(one) for one in documents}


def document_markdown(document: CardDocument) -> str:
    """Write a document as Markdown (tables as GitHub has them)."""
    lines = [f"# {_plain(document.title)}", "", _plain(document.about)]
    for chapter in document.chapters:
        lines += ["", f"## {_plain(chapter.title)}"]
        for block in chapter.blocks:
            lines += ["", *_markdown_lines(block)]
    return "\n".join(lines) + "\n"


def _markdown_lines(block: Block) -> Iterator[str]:
    if isinstance(block, Sentence):
        yield _cell_text(block)
    elif isinstance(block, OpenQuestion):
        yield f"**Question to the owner:** {_plain(block.question)}"
        yield ""
        yield "> Answer:"
    else:
        yield f"**{_plain(block.title)}**"
        yield ""
        yield f"| {' | '.join(map(_plain, block.heads))} |"
        right = [any(isinstance(row[j], CitedFigure) for row in block.rows) for j in range(len(block.heads))]
        yield f"|{'|'.join('---:' if one else '---' for one in right)}|"
        for row in block.rows:
            yield f"| {' | '.join(map(_cell_text, row))} |"


def _cell_text(cell: Cell) -> str:
    if isinstance(cell, Sentence):
        return "".join(map(_cell_text, cell.parts))
    return cell.text if isinstance(cell, CitedFigure) else _plain(cell)


def _plain(text: str) -> str:
    """A text in Markdown: nothing in it marks up, but for code between backticks; no line break leaves its cell."""
    flat = " ".join(text.split()) if "\n" in text else text
    parts = re.split("(`[^`]+`)", flat)
    return "".join(part.replace("|", r"\|") if j % 2 else _escaped(part) for j, part in enumerate(parts))


def _escaped(text: str) -> str:
    marked = re.sub(r"([\\*\[\]|#>]|\b_|_\b|(?<!\w)_)", r"\\\1", text)  # an underscore within a word marks up nothing
    return marked.replace("<", "&lt;")


def document_html(document: CardDocument) -> str:
    """Write a document as one HTML page that asks nothing of any other host."""
    chapters = [(chapter.title, [_html_block(block) for block in chapter.blocks]) for chapter in document.chapters]
    template = page_template("uplift_spark.governance", "document.html.j2")
    return template.render(title=document.title, about=document.about, chapters=chapters)


def _html_block(block: Block) -> Markup:
    if isinstance(block, Sentence):
        return Markup("<p>{}</p>").format(_html_cell(block))
    if isinstance(block, OpenQuestion):
        words = Markup("<p><strong>Question to the owner:</strong> {}</p>").format(coded(block.question))
        return Markup('<div class="question">{}<p class="soft">Answer:</p></div>').format(words)
    texts = [not any(isinstance(row[j], CitedFigure) for row in block.rows) for j in range(len(block.heads))]
    marks = [Markup(' class="text"') if one else Markup("") for one in texts]
    heads = [Markup('<th scope="col"{}>{}</th>').format(*pair) for pair in zip(marks, block.heads, strict=True)]
    rows = [
        Markup("").join(
            Markup("<td{}>{}</td>").format(mark, _html_cell(cell)) for mark, cell in zip(marks, row, strict=True)
        )
        for row in block.rows
    ]
    body = Markup("\n").join(Markup("<tr>{}</tr>").format(row) for row in (Markup("").join(heads), *rows))
    label = escape(block.title)
    return Markup(
        '<h3>{}</h3><div class="scroll" tabindex="0" role="region" aria-label="{}"><table>{}</table></div>'
    ).format(block.title, label, body)


def _html_cell(cell: Cell) -> Markup:
    if isinstance(cell, Sentence):
        return Markup("").join(map(_html_cell, cell.parts))
    if isinstance(cell, str):
        return coded(cell)
    if not math.isfinite(cell.value):
        return Markup('<data value="" data-of="{}">{}</data>').format(cell.source, NOT_KNOWN)
    return figure(cell.value, cell.source, cell.scale) + cell.unit
