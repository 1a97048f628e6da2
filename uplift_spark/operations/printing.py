"""Frames, and this program's name, as text for a terminal. Imports no Spark: `uplift --help` answers at once."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd


def rich_table(rows: pd.DataFrame) -> Table:
    """A frame as a table of text: numbers right-aligned, floats to 4 significant digits, nulls empty."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in rows.columns:
        numeric = rows[column].dtype.kind in "iuf"
        table.add_column(str(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows.itertuples(index=False):
        table.add_row(*(cell(value) for value in row))
    return table


def cell(value: Any) -> str:
    """One value as text, see `rich_table`."""
    if value is None or value != value:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def program() -> str:
    """What to type to run this program again from here."""
    called = Path(sys.argv[0])
    on_path = shutil.which("uplift")
    if on_path and called.exists() and Path(on_path).samefile(called):
        return "uplift"
    return os.path.relpath(called) if called.name == "uplift" else "uplift"
