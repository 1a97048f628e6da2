"""Configurations and input files as targets of `tests.fuzz`: whatever is changed, they are read or refused."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.fuzz import pool
from uplift_spark.config import load_config
from uplift_spark.errors import UpliftError
from uplift_spark.events.files import read_typed
from uplift_spark.events.guesses import Answers, guess_roles

CONF = Path(__file__).resolve().parents[2] / "conf"
Draw = np.random.Generator

# What people and programs leave in texts, and what readers stumble over.
CELLS = (
    "", " ", "NaN", "null", "NA", "-", "1e309", "-1e309", "1E5", "007", "0x1F", "1,5", "1.234,50", "1 000", "١٢٣", "½",
    "True", "no", "Yes", "12:30", "2026-02-30", "2026-01-01T25:00", "0000-00-00", "9999-12-31T23:59:59.999999999Z",
    "18446744073709551616", "9" * 400, "x" * 200_000, "\x00", "\ufeff", "\u202e", "😀", "\ud7ff", "e\u0301", "'", '"',
    '""', "\\", "\\N", "\r", "\n", "\r\n", "\t", ";", ",", "|", "#", "=1+1", "<b>", "${HOME}", "`a`", "a.b", "a b",
)  # fmt: skip
VALUES = (
    "null", "~", "[]", "{}", "[[]]", "{a: 1}", "[1, two, {}]", "yes", "no", "on", "1:1", "010", "1e309", "-1", ".nan",
    ".inf", "-0", "1.5", "2147483648", "99999999999999999999", "''", '"\\0"', "!!python/object:os.system x", "!!binary",
    "&a [*a]", "*b", "&a x", "<<: *a", "|", ">", "@x", "`x`", "%x", "? x", "- x", "x: y: z", "\t", "'", '"', "#", "😀",
    "2026-01-01", "2026-13-01", "../../etc/passwd", "select 1", "age < 18 or 1=1", "rand() < 0.5", "(select 1)",
    "x" * 9999, "[" * 3000, "{a: " * 500, "- " * 2000,
)  # fmt: skip


@cache
def folder() -> Path:
    """Where a worker writes the file of a mutation; the worker's end leaves nothing behind but one file."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def one_sentence(error: UpliftError) -> tuple[str, str]:
    """Verdict on an input that was refused."""
    text = str(error)
    return ("refused", "") if text and "\n" not in text.strip() else (pool.UNTYPED, text[:200])


# --------------------------------------------------------------------------------------------------------------------
# Configurations.


@cache
def configurations() -> tuple[str, ...]:
    """Those of the project."""
    return tuple(path.read_text() for path in sorted(CONF.glob("*.yaml")))


def mutated_configuration(draw: Draw) -> tuple[str, bytes]:
    """A configuration with a few changes of one kind."""
    kind = str(draw.choice(list(CONF_KINDS)))
    text = configurations()[int(draw.integers(len(configurations())))]
    for _ in range(int(draw.integers(1, 4))):
        text = CONF_KINDS[kind](draw, text)
    content = text.encode("utf-8", "surrogatepass")
    return kind, _changed_bytes(draw, content) if kind == "bytes" else content


def judged_configuration(kind: str, content: bytes) -> tuple[str, str]:
    """Whether it is read, or refused in one sentence."""
    path = folder() / "campaign.yaml"
    path.write_bytes(content)
    try:
        load_config(path)
    except UpliftError as error:
        return one_sentence(error)
    return "read", ""


def _value(draw: Draw) -> str:
    return VALUES[int(draw.integers(len(VALUES)))]


def _line(draw: Draw, text: str, change: Callable[[str], list[str]]) -> str:
    lines = text.split("\n")
    at = int(draw.integers(len(lines)))
    return "\n".join([*lines[:at], *change(lines[at]), *lines[at + 1 :]])


def _other_value(draw: Draw, text: str) -> str:
    return _line(draw, text, lambda line: [f"{line.split(':')[0]}: {_value(draw)}"])


def _other_key(draw: Draw, text: str) -> str:
    keys = ("", "Roles", "features", "units", "UNITS", "x.y", "a b", "1", "no", "[a]", "? a", "odds", "__class__")
    key = keys[int(draw.integers(len(keys)))]
    return _line(draw, text, lambda line: [f"{' ' * (len(line) - len(line.lstrip()))}{key}:{line.partition(':')[2]}"])


def _moved(draw: Draw, text: str) -> str:
    by = int(draw.integers(-3, 4))
    return _line(draw, text, lambda line: [" " * by + line if by > 0 else line[-by:]])


def _twice_or_gone(draw: Draw, text: str) -> str:
    copies = int(draw.integers(0, 3))
    return _line(draw, text, lambda line: [line] * copies)


def _inserted(draw: Draw, text: str) -> str:
    at = int(draw.integers(len(text) + 1))
    return text[:at] + _value(draw) + text[at:]


CONF_KINDS: dict[str, Callable[[Draw, str], str]] = {
    "values": _other_value,
    "keys": _other_key,
    "indents": _moved,
    "lines": _twice_or_gone,
    "text put in": _inserted,
    "bytes": lambda draw, text: text,
}


def _changed_bytes(draw: Draw, content: bytes) -> bytes:
    """One to eight bytes changed, put in or taken out."""
    changed = bytearray(content)
    for _ in range(int(draw.integers(1, 9))):
        at = int(draw.integers(len(changed) + 1))
        how = int(draw.integers(3))
        changed[at : at + (how != 1)] = b"" if how == 2 else draw.bytes(1)
    return bytes(changed)


# --------------------------------------------------------------------------------------------------------------------
# Input files.

ANSWERS = Answers("arm", ("bought",))


@cache
def trial() -> pd.DataFrame:
    """A trial of sixty units, with what files hold: text, codes with zeros, dates, blanks."""
    rng = np.random.default_rng(3)
    n = 60
    return pd.DataFrame(
        {
            "id": [f"u{i:03d}" for i in range(n)],
            "arm": rng.choice(["mail", "none"], n),
            "bought": rng.integers(0, 2, n),
            "zip": [f"0{i:04d}" for i in rng.integers(0, 9999, n)],
            "age": np.where(rng.random(n) < 0.1, np.nan, rng.integers(18, 90, n)),
            "spent": rng.gamma(2.0, 20.0, n).round(2),
            "city": rng.choice(["Köln", "a, b", 'say "x"', ""], n),
            "seen": pd.date_range("2026-01-01", periods=n, freq="h").strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    )


@cache
def inputs() -> dict[str, bytes]:
    """The trial in every format, by the name of its file."""
    parquet, stata = io.BytesIO(), io.BytesIO()
    trial().to_parquet(parquet)
    trial().fillna({"age": 0.0}).to_stata(stata, write_index=False, version=118)
    text = trial().to_csv(index=False).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("trial.csv", text)
    return {
        "trial.csv": text,
        "semicolons.csv": trial().to_csv(index=False, sep=";", decimal=",").encode("cp1252"),
        "tabs.tsv": trial().to_csv(index=False, sep="\t").encode("utf-16"),
        "trial.csv.gz": gzip.compress(text, mtime=0),
        "trial.csv.bz2": bz2.compress(text),
        "trial.csv.xz": lzma.compress(text),
        "trial.csv.zip": archive.getvalue(),
        "trial.parquet": parquet.getvalue(),
        "trial.dta": stata.getvalue(),
    }


def mutated_input(draw: Draw) -> tuple[str, bytes]:
    """A file with changes of one kind; the kind names the file."""
    names = list(inputs())
    name = names[int(draw.integers(len(names)))] if draw.random() < 0.5 else "trial.csv"
    if name != "trial.csv" or draw.random() < 0.2:
        content = inputs()[name]
        cut = content[: int(draw.integers(len(content)))] if draw.random() < 0.2 else content
        return f"bytes of {name}", _changed_bytes(draw, cut)
    kind = str(draw.choice(list(TEXT_KINDS)))
    text = inputs()["trial.csv"].decode()
    for _ in range(int(draw.integers(1, 4))):
        text = TEXT_KINDS[kind](draw, text)
    encodings = ("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "utf-7")
    content = text.encode(encodings[int(draw.integers(len(encodings)))], "replace")
    packed = (lambda b: b, gzip.compress)[int(draw.random() < 0.1)](content)
    return f"{kind} of {'trial.csv' if packed is content else 'trial.csv.gz'}", packed


def judged_input(kind: str, content: bytes) -> tuple[str, str]:
    """Whether its rows are read and its columns understood, or it is refused in one sentence."""
    path = folder() / kind.rpartition(" ")[2]
    path.write_bytes(content)
    try:
        read = read_typed(path)
        guess_roles(read.table, ANSWERS)
    except UpliftError as error:
        return one_sentence(error)
    finally:
        path.unlink()
    return "read", ""


def _cell(draw: Draw) -> str:
    return CELLS[int(draw.integers(len(CELLS)))]


def _other_cell(draw: Draw, text: str) -> str:
    def changed(line: str) -> list[str]:
        cells = line.split(",")
        at = int(draw.integers(len(cells)))
        return [",".join([*cells[:at], _cell(draw), *cells[at + 1 :]])]

    return _line(draw, text, changed)


def _other_header(draw: Draw, text: str) -> str:
    header, _, rows = text.partition("\n")
    names = header.split(",")
    at = int(draw.integers(len(names)))
    others = (_cell(draw), names[int(draw.integers(len(names)))], names[at].upper(), "__index_level_0__", "treatment")
    names[at] = others[int(draw.integers(len(others)))]
    return ",".join(names) + "\n" + rows


def _other_column(draw: Draw, text: str) -> str:
    value, lines = _cell(draw)[:200], text.split("\n")
    cells = [line.split(",") for line in lines]
    at = int(draw.integers(len(cells[0])))
    return "\n".join(",".join([*row[:at], value, *row[at + 1 :]]) if i else lines[0] for i, row in enumerate(cells))


def _put_in(draw: Draw, text: str) -> str:
    at = int(draw.integers(len(text) + 1))
    return text[:at] + _cell(draw) + text[at:]


def _replaced(draw: Draw, text: str) -> str:
    marks = (",", "\n", '"', ".", "0", "mail", "none", " ")
    return text.replace(marks[int(draw.integers(len(marks)))], _cell(draw)[:50])


TEXT_KINDS: dict[str, Callable[[Draw, str], str]] = {
    "cells": _other_cell,
    "names": _other_header,
    "columns": _other_column,
    "lines": _twice_or_gone,
    "text put in": _put_in,
    "marks": _replaced,
}


def prepared() -> Any:
    """What a worker holds before its memory is bounded."""
    return configurations(), inputs(), folder()
