"""Extension of griffe: the house's docstrings as Markdown, for the page on Python."""

from __future__ import annotations

import re
import sys
from inspect import cleandoc
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).parent))

import references

_SECTIONS = re.compile(r"^(Args|Returns|Raises|Yields|Attributes|Examples?|Source|References?):", re.M)


class HouseDocstrings(griffe.Extension):
    """Lines such as `key   what it means` are a list, and an Example holds code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the text of one docstring."""
        if obj.docstring is None:
            return
        text = re.sub(r"^Example:$", "Examples:", cleandoc(obj.docstring.value), flags=re.M)
        start = _SECTIONS.search(text)
        end = start.start() if start else len(text)
        obj.docstring.value = f"{references.prose(text[:end])}\n\n{text[end:]}"
