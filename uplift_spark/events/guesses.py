"""What a table of a finished campaign says by itself: control, unit, kinds of outcomes, features. No Spark.

`guess_roles` guesses what the user did not say, each guess a line with the option that overrides it.
`events.quickstart` writes the configuration that follows from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.stats

from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.events.column_names import (
    control_of,
    doses_of,
    is_better,
    is_dose_name,
    is_id_name,
    is_money_name,
    is_negation,
    is_outcome_name,
    is_row_number_name,
    is_worse,
    natural_order,
    plain_name,
    yes_of_texts,
)
from uplift_spark.events.files import YES_NO, id_text, level_texts, number_column
from uplift_spark.roles import DOSE, Direction, Levels, levels_at_doses, round_levels

MOST_LEVELS = 20
MOST_TEXTS = 1000  # different texts of a feature; more are names, not categories
_CODES = (-1.0, -9.0, -99.0, -999.0, -9999.0, -99999.0, -999999.0)  # often stand for a missing number


@dataclass(frozen=True)
class Answers:
    """What the user says of the table.

    outcomes  columns, or COLUMN=VALUE where the outcome is whether a column has a value; the first is trained
    direction decrease where less of the first outcome is better, else increase; None: by its name
    cost      {level: money}; the key "" stands for every level, and for one unit of a treatment that is a number
    keep      features whatever a guess says; drop, columns that are none
    randomised  whether the treatment was assigned at random
    cluster   column of the group that was treated as one, such as a school; None: one that the rows show
    """

    treatment: str
    outcomes: tuple[str, ...]
    control: str | None = None
    unit: str | None = None
    direction: Direction | None = None
    value: float | None = None
    cost: Mapping[str, float] = field(default_factory=dict)
    budget: float | None = None
    propensity: str | None = None
    keep: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    randomised: bool = True
    cluster: str | None = None


@dataclass(frozen=True)
class Guesses:
    """Parts of the columns, under their names in the table; `lines` say each guess and the option that overrides it.

    levels   {text in the treatment column: name of the level}, the control first
    outcomes {name: column}; values, {column: {text: number}} of those that are no numbers
    dropped  {column: why it is no feature}; allowed, {feature that looks like a leak: why it stays}
    grid     doses to report effects at, where the treatment is a number of many values; cost_per_dose, of one unit more
    """

    treatment: str
    levels: dict[str, str]
    dose: dict[str, float] | None
    unit: str | None
    outcomes: dict[str, str]
    values: dict[str, dict[str, float]]
    features: tuple[str, ...]
    missing: tuple[float, ...]
    segments: tuple[str, ...]
    value: dict[str, float]
    cost: dict[str, float]
    budget: float | None
    propensity: str | None
    dropped: dict[str, str]
    lines: tuple[str, ...]
    randomised: bool = True
    allowed: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    direction: Direction = "increase"
    cluster: str | None = None
    grid: tuple[float, ...] = ()
    cost_per_dose: float | None = None

    @property
    def grid_levels(self) -> Levels | None:
        """Levels at the doses of the grid, the control first; None without one."""
        return levels_at_doses(self.control, self.grid) if self.grid else None

    @property
    def names(self) -> dict[str, str]:
        """{column: name that tables can have} of outcomes, features and the cluster."""
        names = {column: name for name, column in self.outcomes.items()}
        parts = (self.treatment, self.unit, self.propensity)  # Spark tells columns apart regardless of case
        taken = {name.lower() for name in (*names.values(), *filter(None, parts), *([DOSE] if self.grid else ()))}
        for column in (*self.features, *filter(None, (self.cluster,))):
            names[column] = plain_name(column, taken)
            taken.add(names[column].lower())
        return names

    @property
    def control(self) -> str:
        """Name of the control."""
        return next(iter(self.levels.values()))

    def without(
        self, reasons: Mapping[str, str], allowed: Mapping[str, str] | None = None, warnings: Sequence[str] = ()
    ) -> Guesses:
        """The same without some features, each with the reason; `allowed` ones stay on record, `warnings` are said."""
        left = tuple(name for name in self.features if name not in reasons)
        if not left:
            raise DataError(
                "no column is left as a feature: name some with --feature, or add columns of before the treatment"
            )
        kept = tuple(name for name in self.segments if name in left)
        return replace(
            self,
            features=left,
            segments=kept,
            dropped={**self.dropped, **reasons},
            allowed={**self.allowed, **(allowed or {})},
            warnings=(*self.warnings, *warnings),
        )

    def report(self) -> list[str]:
        """Every guess in a line, with the option that overrides it."""
        by_reason: dict[str, list[str]] = {}
        for column, reason in self.dropped.items():
            by_reason.setdefault(reason, []).append(column)
        lines = [f"features: {len(self.features)} columns, {_some(self.features)} (--drop COLUMN leaves one out)"]
        lines += [
            f"no feature: {_some(columns)}: {reason} (--feature COLUMN keeps it)"
            for reason, columns in by_reason.items()
        ]
        renamed = {column: name for column, name in self.names.items() if column != name}
        if renamed:
            some = [f"{old} is {new}" for old, new in renamed.items()][:3]
            lines.append(f"renamed: {', '.join(some)}{f' and {len(renamed) - 3} more' if len(renamed) > 3 else ''}")
        return [*self.lines, *lines, *self.warnings]


def guess_roles(table: pa.Table, answers: Answers) -> Guesses:
    """Guess the parts of a table's columns from what the user says and from the rows.

    Args:
        table: one row per unit, as `events.files.read_typed` types it.
        answers: treatment and outcome at least.

    Returns:
        The guesses.

    Raises:
        ConfigError: a column or level that `answers` names is not there.
        DataError: the treatment has one level or too many, an outcome is no number, or no feature is left.
    """
    columns = table.column_names
    check_columns_of(answers, columns)
    _check_money(answers)
    lines: list[str] = []
    grid = _grid(table.column(answers.treatment), answers, lines)
    texts = level_texts(table.column(answers.treatment), grid).to_pandas().str.strip()
    levels, dose = _levels(texts, answers, lines) if grid is None else ({name: name for name in grid.names}, None)
    arm = texts.map({text: code for code, text in enumerate(levels)}).fillna(-1).astype(int).to_numpy()
    counted = tuple(_counted(table, one) for one in answers.outcomes)
    outcome_columns = [_split(one)[0] for one in counted]
    outcomes, values, first = _outcomes(table, counted, lines)
    warnings = _few_cases(first, arm, list(levels.values()), outcome_columns[0])
    direction = _direction(counted[0], answers, lines)
    unit = _unit(table, answers, lines)
    special = {answers.treatment, *outcome_columns, *filter(None, (unit, answers.propensity))}
    rest = [name for name in columns if name not in special]
    cluster, inner = _cluster(table, rest, answers, arm, lines)
    rest = [name for name in rest if name != cluster]
    dropped = {name: f"groups of one treatment each, inside those of {cluster}" for name in inner}
    for name in rest:
        if reason := dropped.get(name) or _reason(table, name, answers, arm, first):
            dropped[name] = reason
    codes = {code for name in rest if name not in dropped for code in _missing_codes(table.column(name))}
    if codes:
        listed = ", ".join(f"{code:g}" for code in sorted(codes))
        verb = "stand" if len(codes) > 1 else "stands"
        lines.append(f"missing: {listed} {verb} for a missing value (edit source.missing)")
    for name in [name for name in dropped if dropped[name] == _OTHER_OUTCOME and _is_number(table, name)][:3]:
        outcomes[plain_name(name, [other.lower() for other in outcomes])] = name
    later = [first, *(_numbers_of(table, name) for name in list(outcomes.values())[1:] if name not in values)]
    cells = {name: _cells(table, name, codes) for name in rest if name not in dropped}
    dropped |= _derived({n: c for n, c in cells.items() if n not in answers.keep}, cells, arm, later)
    features = [name for name in rest if name not in dropped]
    segments = _segments(table, features, cells)
    money = {name: 1.0 for name, column in outcomes.items() if is_money_name(column) and _is_amount(table, column)}
    if answers.value is not None:
        money[next(iter(outcomes))] = answers.value
    guesses = Guesses(
        answers.treatment, levels, dose, unit, outcomes, values, tuple(features), tuple(sorted(codes)), segments, money,
        _costs(levels, answers, grid is not None), answers.budget, answers.propensity, dropped, tuple(lines),
        answers.randomised,
        direction=direction, cluster=cluster, grid=() if grid is None else tuple(map(float, grid.treated)),
        cost_per_dose=None if grid is None else answers.cost.get(""),
    )  # fmt: skip
    return guesses.without({}, warnings=warnings)


def check_columns_of(answers: Answers, columns: Sequence[str]) -> None:
    """Raise ConfigError for a column that the answers name and that is not there, or that plays two parts."""
    outcomes = [_split(one)[0] for one in answers.outcomes]
    single = (answers.unit, answers.propensity, answers.cluster)
    parts = [answers.treatment, *outcomes, *answers.keep, *filter(None, single)]
    for name in (*parts, *answers.drop):
        if name not in columns:
            raise ConfigError(f"there is no column {name!r}: {hint(name, columns)}")
    if twice := sorted({name for name in parts if parts.count(name) > 1}):
        raise ConfigError(
            f"column {twice[0]!r} cannot be two of treatment, outcome, unit, cluster, propensity and feature"
        )


def _check_money(answers: Answers) -> None:
    """Raise ConfigError for money that cannot be."""
    costs = {f"--cost {level}{'=' if level else ''}": cost for level, cost in answers.cost.items()}
    for option, amount in {"--budget ": answers.budget, **costs}.items():
        if amount is not None and not amount >= 0:
            raise ConfigError(f"{option}{amount:g} is no amount of money: give 0 or more")
    if answers.value is not None and not 0 <= answers.value < np.inf:
        raise ConfigError(
            f"--value {answers.value:g} is no amount of money: give what one unit of the outcome is worth, 0 or more; "
            "where less of it is better, say --direction decrease and give what one unit less is worth"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _split(outcome: str) -> tuple[str, str | None]:
    column, separator, value = outcome.partition("=")
    return column, value if separator else None


# --------------------------------------------------------------------------------------------------------------------
# Levels of the treatment.


def _levels(texts: pd.Series, answers: Answers, lines: list[str]) -> tuple[dict[str, str], dict[str, float] | None]:
    counts = texts.value_counts()
    where = f"column {answers.treatment!r}"
    if len(counts) < 2:
        raise DataError(f"{where} has one level only ({', '.join(counts.index) or 'none'}): effects need two")
    if len(counts) > MOST_LEVELS:
        raise DataError(
            f"{where} has {len(counts):,} different values: a treatment has 2 to {MOST_LEVELS} levels; round a number "
            "to some doses, or name another column with --treatment"
        )
    listed = ", ".join(f"{text} ({n:,})" for text, n in counts.items())
    if (empty := int(texts.isna().sum())) > 0:
        lines.append(f"treatment: {empty:,} rows without a level are rejected")
    if twins := sorted(str(text) for text in counts.index if sum(counts.index.str.lower() == str(text).lower()) > 1):
        lines.append(f"warning: levels {_some(twins)} differ by their case alone (edit source.arms to make them one)")
    control, sure = _control([str(text) for text in counts.index], answers.control, where)
    others = sorted((str(text) for text in counts.index if text != control), key=natural_order)
    names = {control: control, **{text: text for text in others}}
    if control.lower() in ("0", "false", "no", "n", "f"):
        names[control] = "none"
        if len(others) == 1:
            names[others[0]] = "treated"
    how = (
        ""
        if answers.control
        else " (--control says otherwise)"
        if sure
        else ", by its name alone (--control says otherwise)"
    )
    as_named = [f"{text} is called {name}" for text, name in names.items() if text != name]
    lines.append(f"treatment: {answers.treatment}, {listed}{'; ' if as_named else ''}{', '.join(as_named)}")
    lines.append(f"control: {names[control]}{how}")
    dose = doses_of(names, is_dose_name(answers.treatment))
    if dose:
        lines.append(f"dose: {', '.join(f'{name} {number:g}' for name, number in dose.items())} (edit roles.dose)")
    return names, dose


def _control(levels: list[str], wanted: str | None, where: str) -> tuple[str, bool]:
    if wanted is not None:
        if wanted not in levels:
            raise ConfigError(f"--control {wanted!r} is no level of {where}: {hint(wanted, levels)}")
        return wanted, True
    return control_of(levels)


def _grid(column: pa.ChunkedArray, answers: Answers, lines: list[str]) -> Levels | None:
    """Levels at round doses, where the treatment is a number of many values; else None."""
    name, kind = answers.treatment, column.type
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    if not numeric or len(column.unique()) <= MOST_LEVELS or is_id_name(name):
        return None
    doses = [dose for dose in number_column(column, name).to_pylist() if dose is not None and np.isfinite(dose)]
    try:
        rows = round_levels(doses, None if answers.control is None else float(answers.control))
    except ValueError:
        raise ConfigError(
            f"--control {answers.control!r} is no number, and column {name!r} is one: give one, as in --control 0"
        ) from None
    if rows:
        control = f"{next(iter(rows)):g}"
        counts = ", ".join(f"{dose:g} ({n:,})" for dose, n in sorted(rows.items()))
        lines.append(f"treatment: {name}, a number from {min(doses):g} to {max(doses):g}")
        lines.append(f"grid: a unit counts as the nearest of {counts} (edit roles.grid)")
        lines.append(f"control: {control}{'' if answers.control else ' (--control says otherwise)'}")
    return levels_at_doses(control, list(rows)[1:]) if rows else None


# --------------------------------------------------------------------------------------------------------------------
# Outcomes and the unit.


def _counted(table: pa.Table, outcome: str) -> str:
    """The outcome as COLUMN=VALUE where its texts say which of two counts, else as it is."""
    column, wanted = _split(outcome)
    if wanted is not None or not pa.types.is_string(table.schema.field(column).type):
        return outcome
    texts = [str(text) for text in table.column(column).to_pandas().dropna().str.strip().unique()[: MOST_LEVELS + 1]]
    if all(text.lower() in YES_NO for text in texts) or len(texts) > MOST_LEVELS:
        return outcome
    meaning = yes_of_texts(texts) or {}
    counts = [text for text, number in meaning.items() if number]
    return f"{column}={counts[0]}" if len(counts) == 1 else outcome


def _outcomes(
    table: pa.Table, wanted_outcomes: Sequence[str], lines: list[str]
) -> tuple[dict[str, str], dict[str, dict[str, float]], np.ndarray]:
    outcomes: dict[str, str] = {}
    values: dict[str, dict[str, float]] = {}
    first = np.empty(0)
    for position, one in enumerate(wanted_outcomes):
        column, wanted = _split(one)
        numbers, meaning = _outcome_numbers(table.column(column), column, wanted)
        _refuse_no_outcome(numbers, column)
        present = numbers[~np.isnan(numbers)]
        binary = bool(np.isin(present, (0.0, 1.0)).all())
        name = plain_name(column, [other.lower() for other in outcomes])
        kind = f"yes or no, {present.mean():.2%} yes" if binary else f"a number, {present.mean():.4g} on average"
        if meaning is not None:
            values[column] = meaning
        outcomes[name] = column
        unknown = f", not known in {len(numbers) - len(present):,} rows" if len(present) < len(numbers) else ""
        if wanted is not None:
            kind = f"{kind}: {wanted} counts (--outcome {column}=VALUE says otherwise)"
        elif not binary and len(two := np.unique(present)) == 2:
            kind = f"{kind}; only {two[0]:g} and {two[1]:g} occur (--outcome {column}={two[1]:g} counts the latter)"
        lines.append(f"outcome: {column}, {kind}{unknown}")
        if position == 0:
            first = numbers
    return outcomes, values, first


LEAST_CASES = 10  # of each value of a yes-or-no outcome in a level; below it, nothing can be learned


def _few_cases(outcome: np.ndarray, arm: np.ndarray, levels: Sequence[str], column: str) -> list[str]:
    """Warnings of levels with too few rows, or too few of either end of an outcome, to learn from."""
    binary = bool(np.isin(outcome[~np.isnan(outcome)], (0.0, 1.0)).all())
    warnings = []
    for code, level in enumerate(levels):
        values = outcome[(arm == code) & ~np.isnan(outcome)]
        cases = int(min(values.sum(), len(values) - values.sum())) if binary else len(values)
        if cases < LEAST_CASES:
            end = f", {cases:,} of them with the rarer end of {column}" if binary else ""
            warnings.append(
                f"warning: {level} has {len(values):,} rows with an outcome{end}: too few to tell on whom it works"
            )
    return warnings


def _refuse_no_outcome(numbers: np.ndarray, column: str) -> None:
    """Raise DataError for an outcome on which no effect can show, or that is infinite somewhere."""
    present = numbers[~np.isnan(numbers)]
    if infinite := int(np.isinf(present).sum()):
        raise DataError(f"column {column!r} is infinite in {infinite:,} rows: correct them, or leave them empty")
    if len(np.unique(present)) < 2:
        what = f"{present[0]:g} in all {len(present):,} rows that have a value" if len(present) else "empty in all rows"
        raise DataError(f"column {column!r} is {what}: no effect can show on it, name another with --outcome")


def _direction(outcome: str, answers: Answers, lines: list[str]) -> Direction:
    """Which way the first outcome should go: as said, else by its name.

    Raises ConfigError where the name may mean either end, as `churn=No` and `no_churn` do.
    """
    column, counted = _split(outcome)
    worse = counted is not None and is_worse(counted)
    bad = worse or is_worse(column)
    plain = counted is None or worse or YES_NO.get(counted.lower()) == 1.0
    if answers.direction is None and bad and (not plain or is_negation(outcome)):
        raise ConfigError(
            f"whether more or less of {outcome!r} is better does not show from its name: say --direction increase or "
            "--direction decrease"
        )
    chosen: Direction = answers.direction or ("decrease" if bad else "increase")
    other = "increase" if chosen == "decrease" else "decrease"
    named = ", by its name" if bad or is_better(column) else ""
    how = "" if answers.direction else f"{named} (--direction {other} says otherwise)"
    lines.append(f"direction: {'less' if chosen == 'decrease' else 'more'} of {outcome} is better{how}")
    return chosen


def _outcome_numbers(
    column: pa.ChunkedArray, name: str, wanted: str | None
) -> tuple[np.ndarray, dict[str, float] | None]:
    """The outcome as numbers, and what its texts mean where that is no number."""
    if wanted is None:
        try:
            return number_column(column, f"column {name!r}").to_pandas().to_numpy(dtype=float), None
        except DataError as error:
            some = [str(text) for text in column.to_pandas().dropna().unique()[:3]]
            raise DataError(f"{error}; or say which counts, as in --outcome {name}={some[0]}") from error
    texts = id_text(column).to_pandas().str.strip()
    present = [str(text) for text in texts.dropna().unique()]
    if wanted not in present:
        raise ConfigError(f"--outcome {name}={wanted}: the column has no such value, {hint(wanted, present)}")
    if len(present) > MOST_LEVELS:
        raise ConfigError(f"--outcome {name}={wanted}: the column has {len(present):,} values, too many to list")
    meaning = {text: float(text == wanted) for text in present}
    return texts.map(meaning).to_numpy(dtype=float), meaning


def _unit(table: pa.Table, answers: Answers, lines: list[str]) -> str | None:
    if answers.unit is not None:
        lines.append(f"unit: {answers.unit}{_unfit_units(table, answers.unit)}")
        return answers.unit
    for name in sorted(table.column_names, key=is_row_number_name):
        if name in (answers.treatment, *answers.keep) or not is_id_name(name):
            continue
        column = table.column(name)
        distinct = len(column.unique())
        if column.null_count == 0 and distinct == table.num_rows:
            lines.append(f"unit: {name}, another in every row (--unit says otherwise)")
            return name
        if column.null_count == 0 and distinct > table.num_rows // 20 and distinct == _rows_that_differ(table):
            equal = table.num_rows - distinct
            lines.append(f"unit: {name}; {equal:,} rows that repeat another are left out (--unit says otherwise)")
            return name
        if distinct > table.num_rows // 20:
            lines.append(f"unit: not {name}, which repeats; if its rows are one unit, put them together first")
    lines.append("unit: the number of the row (--unit names a column)")
    return None


def _rows_that_differ(table: pa.Table) -> int:
    return len(table.to_pandas().drop_duplicates())


def _unfit_units(table: pa.Table, name: str) -> str:
    """What is to be said of ids that are empty or repeat.

    Raises DataError for ids that were rounded, and where most rows would be rejected.
    """
    column = table.column(name)
    if pa.types.is_floating(column.type):
        rounded = int((column.to_pandas().abs() >= 2.0**53).sum())
        if rounded:
            raise DataError(
                f"column {name!r} holds {rounded:,} ids that doubles round, so that units become one: save ids as text "
                "or as whole numbers"
            )
    ids = id_text(column).to_pandas().str.strip()
    empty, repeated = int((ids.isna() | (ids == "")).sum()), int(ids.dropna().duplicated(keep=False).sum())
    if repeated > len(ids) / 2 and _rows_that_differ(table) > len(column.unique()):
        raise DataError(
            f"column {name!r} repeats in {repeated:,} of {len(ids):,} rows, which would be rejected as they are not "
            "equal: put the rows of a unit together first, or name another column with --unit"
        )
    said = [f"{empty:,} rows without one are rejected"] if empty else []
    said += [f"{repeated:,} rows share one and are rejected unless they are equal"] if repeated else []
    return "".join(f", {one}" for one in said)


LEAST_CLUSTERS = 20  # of each level


def _cluster(
    table: pa.Table, candidates: Sequence[str], answers: Answers, arm: np.ndarray, lines: list[str]
) -> tuple[str | None, list[str]]:
    """(column of the groups that were treated as one, others whose groups lie inside those).

    All rows of each of its values have one level, too many of them for chance; the one of the fewest values is taken.
    """
    if answers.cluster is not None:
        if empty := table.column(answers.cluster).null_count:
            raise DataError(f"column {answers.cluster!r} is empty in {empty:,} rows: name a cluster of every row")
        lines.append(f"cluster: {answers.cluster}")
        return answers.cluster, []
    sizes = {}
    for name in candidates:
        kind = table.schema.field(name).type
        if name not in (*answers.keep, *answers.drop) and (pa.types.is_integer(kind) or pa.types.is_string(kind)):
            sizes[name] = _treated_as_one(table.column(name), arm)
    groups = sorted((size, name) for name, size in sizes.items() if size)
    if not groups:
        return None, []
    size, name = groups[0]
    lines.append(
        f"cluster: {name}, as all rows of each of its {size:,} values got one level; they stay together, and intervals "
        f"take them as one (--drop {name} says otherwise)"
    )
    within = [other for _, other in groups[1:] if _lies_inside(table, other, name)]
    return name, within


def _lies_inside(table: pa.Table, inner: str, outer: str) -> bool:
    """Whether all rows of each value of a column have one value of another."""
    pairs = table.select([inner, outer]).group_by([inner, outer]).aggregate([])
    return pairs.num_rows == len(table.column(inner).unique())


def _treated_as_one(column: pa.ChunkedArray, arm: np.ndarray) -> int:
    """Number of a column's values if the rows of each have one level, as by chance they would not; else 0."""
    if column.null_count or not LEAST_CLUSTERS * 2 <= len(column.unique()) < len(column):
        return 0
    codes = np.asarray(pd.factorize(column.to_pandas())[0])
    counts = _counts(codes, arm)[:, 1:]
    counts = counts[counts.sum(axis=1) > 0]
    if (counts > 0).sum(axis=1).max() > 1 or (counts > 0).sum(axis=0).min() < LEAST_CLUSTERS:
        return 0
    share = counts.sum(axis=0) / counts.sum()
    chance = np.log((share[None, :] ** counts.sum(axis=1)[:, None]).sum(axis=1)).sum()
    return len(counts) if chance < _CERTAIN else 0


# --------------------------------------------------------------------------------------------------------------------
# Features: what is none, and why.

_OTHER_OUTCOME = "an outcome of after the treatment by its name"


def _reason(table: pa.Table, name: str, answers: Answers, arm: np.ndarray, outcome: np.ndarray) -> str | None:
    """Why a column is no feature; None where it may be one."""
    if name in answers.drop:
        return "left out by --drop"
    column = table.column(name)
    n, distinct = table.num_rows, len(column.unique()) - bool(column.null_count)
    if name in answers.keep:
        return None
    outcomes = [_split(one)[0] for one in answers.outcomes]
    if distinct < 2 and not (distinct == 1 and 0 < column.null_count < n):
        return "the same in all rows"
    text = pa.types.is_string(column.type)
    if is_id_name(name) and distinct > n // 20:
        return "an id by its name"
    if text and distinct > n // 2:
        return "another text in most rows"
    if text and distinct > MOST_TEXTS:
        return f"more than {MOST_TEXTS:,} different texts"
    if pa.types.is_integer(column.type) and distinct == n and (n > 100 or _counts_rows(column)):
        return "another number in every row"
    if is_outcome_name(name, outcomes):
        return _OTHER_OUTCOME
    codes = _coded(column)
    if _explains(codes, arm) > 0.98:
        return "a copy of the treatment"
    return _like_outcome(column, codes, outcome)


def _counts_rows(column: pa.ChunkedArray) -> bool:
    return bool((np.diff(column.to_numpy()) == 1).all())


def _coded(column: pa.ChunkedArray) -> np.ndarray:
    """Codes of a column's values, int [n]; numbers of many values by up to 64 quantiles, of ten rows or more each."""
    values = column.to_pandas()
    most = min(64, max(2, len(values) // 10))
    if values.dtype.kind in "iufM" and values.nunique() > most:
        return np.asarray(pd.qcut(values.rank(method="first"), most, labels=False).fillna(-1).astype(int)) + 1
    return np.asarray(pd.factorize(values)[0]) + 1


def _counts(codes: np.ndarray, arm: np.ndarray) -> np.ndarray:
    """Rows of each code and arm, [codes, 1 + arms]; the first column has those of no arm."""
    width = int(arm.max(initial=0)) + 2
    flat = np.bincount(codes * width + arm + 1, minlength=(int(codes.max(initial=0)) + 1) * width)
    return flat.reshape(-1, width)


def _explains(codes: np.ndarray, arm: np.ndarray) -> float:
    """How much of the error of guessing the arm the column takes away, 0 to 1."""
    counts = _counts(codes, arm)
    missed = 1.0 - counts.sum(axis=0).max() / counts.sum()
    left = 1.0 - counts.max(axis=1).sum() / counts.sum()
    return 1.0 - left / missed if missed > 0 else 0.0


def _like_outcome(column: pa.ChunkedArray, codes: np.ndarray, outcome: np.ndarray) -> str | None:
    """Whether a number happens only with the outcome, or the outcome only with it: steps of one funnel."""
    known = ~np.isnan(outcome)
    happened = known & (outcome != 0)
    if np.isin(outcome[known], (0.0, 1.0)).all() and _explains(codes[known], outcome[known].astype(int)) > 0.98:
        return "a copy of the outcome"
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        return None
    values = number_column(column, "").to_pandas().fillna(0.0).to_numpy(dtype=float)
    some = values != 0
    for inner, outer in ((some & known, happened), (happened, some & known)):
        share = outer.sum() / max(known.sum(), 1)
        if inner.sum() >= 25 and share < 0.5 and not (inner & ~outer).any() and share ** float(inner.sum()) < 1e-6:
            return "a step of the outcome: one never happens without the other"
    return None


# ---- features that others make needless, or that describe the assignment or the outcome


def _numbers_of(table: pa.Table, name: str) -> np.ndarray:
    return number_column(table.column(name), name).to_pandas().to_numpy(dtype=float)


def _cells(table: pa.Table, name: str, missing: Iterable[float]) -> pd.Series:
    """A column's values, null where a code says so; texts as numbers by first appearance, which compare faster."""
    column = table.column(name)
    if pa.types.is_string(column.type):
        column = column.combine_chunks().dictionary_encode().indices
    values = column.to_pandas()
    return values.where(~values.isin(list(missing))) if values.dtype.kind in "iuf" else values


def _derived(
    candidates: Mapping[str, pd.Series], cells: Mapping[str, pd.Series], arm: np.ndarray, outcomes: Sequence[np.ndarray]
) -> dict[str, str]:
    """{column: why it is no feature} of those among `candidates` that follow from the assignment, from an outcome, or
    from another column of `cells`."""
    reasons: dict[str, str] = {}
    for name, values in candidates.items():
        if _of_the_assignment(values, arm):
            reasons[name] = "a code of the treatment: the same throughout one level, but not in the others"
        elif any(_mean_of_outcome(values, outcome, arm) for outcome in outcomes):
            reasons[name] = "a mean of the outcome in groups: made from it"
    holes = {_bytes(values.isna()): name for name, values in reversed(list(cells.items())) if values.isna().any()}
    alike: dict[bytes, str] = {}
    for name, values in cells.items():
        if name in reasons:
            continue
        twins = [alike[key] for key in _orders(values) if key in alike]
        mask = _flag(values)
        hole = next((holes[key] for key in (_bytes(mask), _bytes(~mask)) if key in holes), None) if len(mask) else None
        if name in candidates and hole is not None and hole != name:
            reasons[name] = "says where another column is missing, which is seen anyhow"
        elif name in candidates and twins:
            reasons[name] = f"the same as {twins[0]} in other values"
        else:
            alike.update(dict.fromkeys(_orders(values)[:1], name))
    kept = {name: values for name, values in cells.items() if name not in reasons}
    return reasons | _dummies({name: c for name, c in kept.items() if name in candidates}, kept)


def _bytes(mask: pd.Series) -> bytes:
    return np.packbits(mask.to_numpy(dtype=bool)).tobytes()


def _flag(values: pd.Series) -> pd.Series:
    """Where a column of two values has the larger one; empty for other columns."""
    present = values.dropna().unique()
    if len(present) != 2 or values.isna().any():
        return pd.Series(dtype=bool)
    return values == max(present)


def _orders(values: pd.Series) -> list[bytes]:
    """What columns that say the same share: codes by first appearance of few values; ranks of many, both ways."""
    if values.nunique() <= MOST_LEVELS:
        return [pd.factorize(values)[0].astype(np.int16).tobytes()]
    if values.dtype.kind not in "iuf":
        return [pd.factorize(values)[0].tobytes()]
    up = values.rank(method="dense").fillna(0.0).to_numpy()
    return [up.tobytes(), np.where(up > 0, up.max() + 1 - up, 0.0).tobytes()]


def _dummies(candidates: Mapping[str, pd.Series], cells: Mapping[str, pd.Series]) -> dict[str, str]:
    """Flags that say whether a text, or a code of few values, is one of them: at least two of one column."""
    reasons: dict[str, str] = {}
    flags = {name: mask for name, values in candidates.items() if len(mask := _flag(values))}
    by_mask = {_bytes(mask): name for name, mask in flags.items()}
    for other, values in cells.items():
        if other in flags or not 3 <= values.nunique() <= MOST_LEVELS:
            continue
        named = {value: by_mask.get(_bytes(values == value)) for value in values.dropna().unique()}
        hits = {flag: value for value, flag in named.items() if flag}
        if len(hits) >= 2:
            reasons |= {flag: f"says whether {other} has one value, which is seen anyhow" for flag in hits}
    return reasons


def _of_the_assignment(values: pd.Series, arm: np.ndarray) -> bool:
    """Whether all units of one level have one value, as units of the others hardly ever do by chance."""
    codes, few = pd.factorize(values, use_na_sentinel=False)
    if len(few) > MOST_LEVELS:
        return False
    counts = _counts(codes, arm)[:, 1:].T.astype(float)
    n = counts.sum(axis=1)
    for k in np.flatnonzero(n > 0):
        j = int(counts[k].argmax())
        others = (counts[:, j].sum() - counts[k, j]) / max(n.sum() - n[k], 1.0)
        if counts[k, j] == n[k] and n[k] * np.log(max(others, 1e-300)) < _CERTAIN:
            return True
    return False


_CERTAIN = np.log(1e-9)
_GROUPS = (5, 1000)  # of equal values in which a column may hold the outcome's mean


def _mean_of_outcome(values: pd.Series, outcome: np.ndarray, arm: np.ndarray) -> bool:
    """Whether a column is nearer to the outcome's mean among the rows of each value than a rate known before can be.

    Such a rate misses these rows' means by their sampling error: the sum of squared misses, each over its variance, is
    a chi-square, whose lower tail tells. It must also explain all but a twentieth of the means' spread. Means are
    those of all units, of the treated, of the control, and of the treated less the control.
    """
    if values.dtype.kind != "f" or not _GROUPS[0] <= values.nunique() <= _GROUPS[1]:
        return False
    known = ~np.isnan(outcome) & values.notna().to_numpy() & (arm >= 0)
    rows = pd.DataFrame({"at": values[known].to_numpy(), "y": outcome[known], "arm": np.minimum(arm[known], 1)})
    spread = rows["y"].var()
    if not 0 < spread < np.inf:
        return False
    each = rows.groupby(["arm", "at"])["y"].agg(["mean", "size"]).unstack("arm")
    mean, size = each["mean"], each["size"]
    whole = rows.groupby("at")["y"].agg(["mean", "size"])
    parts = [(whole["mean"], spread / whole["size"])]
    parts += [(mean[k], spread / size[k]) for k in mean.columns]
    if len(mean.columns) == 2:
        parts.append((mean[1] - mean[0], spread / size[1] + spread / size[0]))
    for average, variance in parts:
        rates = pd.DataFrame({"mean": average, "weight": 1.0 / variance}).dropna()
        miss = float((rates["weight"] * (rates["mean"] - rates.index) ** 2).sum())
        centre = np.average(rates["mean"], weights=rates["weight"]) if len(rates) else 0.0
        total = float((rates["weight"] * (rates["mean"] - centre) ** 2).sum())
        near = len(rates) >= _GROUPS[0] and miss < 0.05 * total
        if near and scipy.stats.chi2.logcdf(miss, len(rates)) < _CERTAIN:
            return True
    return False


def _is_number(table: pa.Table, name: str) -> bool:
    try:
        number_column(table.column(name), name)
    except DataError:
        return False
    return not pa.types.is_temporal(table.schema.field(name).type)


def _is_amount(table: pa.Table, name: str) -> bool:
    if not _is_number(table, name):
        return False
    values = number_column(table.column(name), name).to_pandas().dropna()
    return not values.isin((0.0, 1.0)).all()


def _missing_codes(column: pa.ChunkedArray) -> set[float]:
    """Codes such as -999 below numbers that are all 0 or more."""
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return set()
    values = np.unique(column.to_pandas().dropna().to_numpy(dtype=float))
    negative = values[values < 0]
    return set(negative.tolist()) if 0 < len(negative) <= 2 and set(negative) <= set(_CODES[2:]) else set()


def _segments(table: pa.Table, features: Sequence[str], cells: Mapping[str, pd.Series]) -> tuple[str, ...]:
    """Up to three features of few values, texts first."""
    few = {name: cells[name].nunique() for name in features}
    texts = [name for name in features if pa.types.is_string(table.schema.field(name).type) and 2 <= few[name] <= 8]
    flags = [name for name in features if name not in texts and few[name] == 2]
    return tuple((texts + flags)[:3])


def _costs(levels: Mapping[str, str], answers: Answers, numbers: bool) -> dict[str, float]:
    (control_text, control), *treated = levels.items()
    if any(answers.cost.get(name) for name in (control, control_text)):
        raise ConfigError(f"--cost {control}: the control is not treated and costs nothing, leave it out")
    known = {*levels.values(), *levels, ""}
    if strangers := sorted(set(answers.cost) - known):
        raise ConfigError(
            f"--cost names {strangers[0]!r}, no level of the treatment: {hint(strangers[0], levels.values())}"
        )
    each = None if numbers else answers.cost.get("")
    costs = {name: answers.cost.get(name, answers.cost.get(text, each)) for text, name in treated}
    return {name: cost for name, cost in costs.items() if cost is not None}
