"""What every page for a browser has: numbers that name their table, the style, light and dark, on screens and paper.

Figures stand in `<data>` elements: `value` is the number as it is in the table, `data-of` names its source.
"""

from __future__ import annotations

import pkgutil
import re

import numpy as np
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape


def short(value: float, digits: int = 3) -> str:
    """A number for a reader: three significant digits, thousands with commas; a dash where it is not known."""
    if not np.isfinite(value):
        return "-"
    if value and abs(value) < 10 ** (digits - 1):
        text = f"{value:.{digits}g}"
        return f"{value:.6f}".rstrip("0") if "e" in text and abs(value) >= 1e-6 else text
    return f"{round(value):,}"


def figure(value: float, source: str, scale: float = 1.0) -> Markup:
    """A number of a table as HTML that names its table; `scale`, where it is not 1, is what it is multiplied by."""
    known = "" if not np.isfinite(value) else repr(float(value))
    shown = "" if scale == 1 else Markup(' data-scale="{:g}"').format(scale)
    return Markup('<data value="{}" data-of="{}"{}>{}</data>').format(known, source, shown, short(value * scale))


def between(lower: float, upper: float, source: str, scale: float = 1.0) -> Markup:
    """An interval as HTML; words where it is not known."""
    if not (np.isfinite(lower) and np.isfinite(upper)):
        return Markup("interval not known")
    return Markup("{} to {}").format(figure(lower, source, scale), figure(upper, source, scale))


def coded(text: object) -> Markup:
    """A text as HTML, what stands between backticks as code."""
    return Markup(re.sub("`([^`<>]+)`", r"<code>\1</code>", str(escape(text))))


def package_text(package: str, name: str) -> str:
    """Read a text that lies beside the modules of a package.

    Args:
        package: Dotted name.
        name: Of the file.

    Returns:
        The text.
    """
    source = pkgutil.get_data(package, name)
    assert source is not None
    return source.decode()


def page_template(package: str, name: str) -> Template:
    """Make the template of a page: texts are escaped, an unknown name is an error.

    Args:
        package: Dotted name of the package that the template lies in.
        name: Of its file.

    Returns:
        A template that knows `figure`, `between`, `isfinite`, `short`, `coded`, and `style`, the pages' common CSS.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    style = Markup(package_text("uplift_spark.evaluation", "page.css"))
    environment.globals.update(
        figure=figure, between=between, isfinite=np.isfinite, short=short, style=style, coded=coded
    )
    return environment.from_string(package_text(package, name))
