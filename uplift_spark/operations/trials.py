"""A real trial's CSV file as a typed Arrow table: numbers, categories, and nulls for what is missing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv as pcsv

from uplift_spark.config import Trial
from uplift_spark.vocabulary import ConfigError, DataError, checked_name, hint

RESERVED = ("unit_id", "treatment", "experiment", "observed_at", "known_at", "source", "run_id", "ingested_at")
NULL_TEXT = ("", "NA", "NaN", "nan", "null", "NULL")


def read_trial(path: Path, trial: Trial) -> pa.Table:
    """The columns a trial declares, one row per row of the file (plain or gzip).

    `_row` (int64, from 1), the unit and treatment columns as text, outcomes as float64, attributes as float64, or text
    for categories. Empty cells, NULL_TEXT and the codes in `trial.missing` are null. Raises ConfigError when a column
    plays two parts, DataError when the file has no row, lacks a column, is not a CSV, or a column has the wrong type.
    """
    check_declaration(trial)
    text = _read_text(path, trial)
    columns = {"_row": pa.array(range(1, text.num_rows + 1), pa.int64())}
    for name in text.column_names:
        columns[name] = _typed(text[name].to_pandas(), name, trial, path)
    return pa.table(columns)


def _declared(trial: Trial) -> list[str]:
    unit = [trial.unit] if trial.unit else []
    return [*unit, trial.treatment, *trial.outcomes, *trial.attributes]


def check_declaration(trial: Trial) -> None:
    """Raise ConfigError when the declared columns clash with each other or with those of the profile table."""
    for name in (*trial.outcomes, *trial.attributes):
        if checked_name(name, "source column") in RESERVED or name.startswith("_"):
            raise ConfigError(f"source column {name!r} is a name the tables use themselves: rename it in the file")
    leaking = sorted({trial.treatment, *trial.outcomes} & set(trial.attributes))
    if leaking:
        raise ConfigError(f"source.attributes contains {leaking}, the treatment or an outcome: remove them")
    if len(set(_declared(trial))) < len(_declared(trial)):
        raise ConfigError("source names a column twice among unit, treatment, outcomes and attributes: remove one")
    if strangers := sorted(set(trial.categorical) - set(trial.attributes)):
        raise ConfigError(f"source.categorical contains {strangers}, not among source.attributes: add them there")


def _read_text(path: Path, trial: Trial) -> pa.Table:
    wanted = _declared(trial)
    try:
        table = pcsv.read_csv(
            path,
            convert_options=pcsv.ConvertOptions(
                column_types={name: pa.string() for name in wanted},
                null_values=list(NULL_TEXT),
                strings_can_be_null=True,
                quoted_strings_can_be_null=True,
            ),
        )
    except (pa.ArrowInvalid, OSError) as error:
        why = "is empty" if "Empty CSV" in str(error) else f"is not a readable CSV ({str(error).splitlines()[0]})"
        raise DataError(f"{path} {why}: replace the file") from error
    for name in wanted:
        _require_column(name, table.column_names, path)
    if table.num_rows == 0:
        raise DataError(f"{path} has a header but no rows: replace the file")
    return table.select(wanted)


def _require_column(name: str, present: list[str], path: Path) -> None:
    found = present.count(name)
    if found == 1:
        return
    if found > 1:
        raise DataError(f"{path} has {found} columns named {name!r}: keep one")
    raise DataError(f"{path} has no column {name!r}, which the source declares: {hint(name, present)}")


def _typed(values: pd.Series, name: str, trial: Trial, path: Path) -> pa.Array:
    """Null the missing codes, then decide: text for keys and categories, float64 for numbers."""
    values = values.str.strip()
    numbers = pd.to_numeric(values, errors="coerce").astype("float64")
    values = values.mask(numbers.isin(trial.missing) | values.isna() | (values == ""), None)
    if name in (trial.unit, trial.treatment, *trial.categorical):
        return pa.array(values, pa.string(), from_pandas=True)
    stray = values.notna() & numbers.isna()
    if name in trial.attributes and stray.sum() == values.notna().sum() > 0:
        return pa.array(values, pa.string(), from_pandas=True)
    if stray.any():
        raise DataError(_stray_text(values[stray], name, trial, path))
    return pa.array(numbers.mask(values.isna()), pa.float64(), from_pandas=True)


def _stray_text(stray: pd.Series, name: str, trial: Trial, path: Path) -> str:
    head = f"{path}: column {name!r} must hold numbers but {len(stray):,} rows hold text such as {stray.iloc[0]!r}"
    fix = "correct them, or list the column under source.categorical" if name in trial.attributes else "correct them"
    return f"{head}: {fix}"
