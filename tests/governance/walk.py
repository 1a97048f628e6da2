"""Look up every figure of a page where the page says that it comes from, by deltalake and pandas alone."""

from __future__ import annotations

import html
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
from deltalake import DeltaTable

FIGURE = re.compile(r'<data value="([^"]*)" data-of="([^"]*)"(?: data-scale="([^"]*)")?>([^<]*)</data>')


def figures_of(page: str) -> list[tuple[float | None, dict[str, Any], float, str]]:
    """(value, source, scale, text) of each figure; a value that is not known is None."""
    found = [
        (float(value) if value else None, json.loads(html.unescape(of)), float(scale or 1), text)
        for value, of, scale, text in FIGURE.findall(page)
    ]
    assert len(found) == page.count("<data ")
    return found


def in_table(lakehouse: Path, source: Mapping[str, Any]) -> float | None:
    """The figure that a table of a lakehouse in a folder has."""
    schema, _, name = source["table"].partition(".")
    frame = DeltaTable(str(lakehouse / schema / name), version=source.get("version")).to_pandas()
    for column, value in source["where"].items():
        frame = frame[frame[column].isin(value if isinstance(value, list) else [value])]
    column, take = source["column"], source["take"]
    if take == "rows":
        return float(len(frame))
    values = frame.eval(column) if " " in column else frame[column]
    if take == "value":
        assert len(frame) == 1, f"{len(frame)} rows of {source}"
        return None if pd.isna(values.iloc[0]) else float(values.iloc[0])
    taken = {
        "mean": lambda: values.mean(), "least": lambda: values.min(), "most": lambda: values.max(),
        "sum": lambda: values.sum(), "missing": lambda: values.isna().mean(), "kinds": lambda: values.nunique(),
        "true": lambda: values.astype(float).mean(),
    }[take]()  # fmt: skip
    return None if pd.isna(taken) else float(taken)


def printed_right(value: float, text: str) -> bool:
    """Whether the text is the value to three significant digits, and whole numbers in full."""
    shown = Decimal(text.replace(",", ""))
    if value == 0:
        return shown == 0
    step = 1.0 if abs(value) >= 100 else max(10.0 ** (math.floor(math.log10(abs(value))) - 2), 1e-6)
    return abs(Decimal(value) - shown) <= Decimal(step) / 2 * Decimal("1.0000001")


def walked(page: str, lakehouse: Path) -> Counter[str]:
    """Check each figure of a page that a table has.

    Returns:
        How many came from each table, and under `registry`, `configuration`, `audit` how many from elsewhere.
    """
    counts: Counter[str] = Counter()
    for value, source, scale, text in figures_of(page):
        kind = source.get("table") or next(iter(source))
        counts[kind] += 1
        if value is None:
            assert text == "not known", source
        else:
            assert printed_right(value * scale, text), (value, scale, text, source)
        if "table" in source:
            there = in_table(lakehouse, source)
            same = value == there or (None not in (value, there) and abs(value - there) <= 1e-11 * max(1.0, abs(there)))
            assert same, (value, there, source)
    return counts
