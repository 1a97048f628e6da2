"""Named errors: one sentence for the user. Nothing here touches files or the environment."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UpliftError(Exception):
    """One sentence for the user: what is wrong, where, how many, and the fix. Commands exit with 1 on it."""


class ConfigError(UpliftError):
    """The configuration file or an argument is wrong."""


class DataError(UpliftError):
    """A table or frame breaks its contract; names table, column and count."""


class UnfitRowsError(DataError):
    """Rows that a forest cannot take into its sums; a forest trained anew on them could."""


class DamagedTableError(UpliftError):
    """Files of a Delta table are damaged, so that no engine reads it; names the table and the file."""


class ModelFileError(UpliftError):
    """A model file is truncated, edited, of another version, or not a model."""


class ConflictError(UpliftError):
    """A run wrote this table before with other data, or another writer won the race."""


class OvertakenError(ConflictError):
    """Another run wrote what this one was about to write; nothing of this one's was added to that table."""


class EnvironmentProblem(UpliftError):
    """Java, a registry or a store this machine needs is missing or out of reach."""


def hint(name: str, known: Iterable[str]) -> str:
    """What a message says of a name that is not among the known ones: which it may mean, else what there is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"it has {', '.join(known[:30]) or 'none'}"


SPARK_PACKAGES = ("pyspark", "py4j", "delta")
NO_SPARK = (
    "this needs Spark, and PySpark is not installed: pip install 'uplift-spark[local]', or run it where Spark runs"
)
