"""From a finished campaign to its configuration: `uplift quickstart` and its Python twin `Campaign.from_frame`.

Spark is needed for Delta tables alone.

`prepare_conf` reads a file, a Delta table or what was piped in, guesses (`events.guesses`), and writes the
configuration that follows; `stage_frame` and `stage_stream` first put rows that have no file into the lakehouse's
folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from uplift_spark.config import load_config
from uplift_spark.errors import ConfigError, DataError, hint
from uplift_spark.events.column_names import is_assignment_time, plain_name
from uplift_spark.events.files import (
    FileFormat,
    id_text,
    is_amount_text,
    level_texts,
    number_column,
    plain_table,
    read_typed,
)
from uplift_spark.events.guesses import MOST_LEVELS, Answers, Guesses, check_columns_of, guess_roles
from uplift_spark.roles import DIRECTIONS, Direction, Roles, checked_name
from uplift_spark.runtime import ProgressCallback
from uplift_spark.stats.sampling import unit_hashes
from uplift_spark.stats.tests import inverse_shares

if TYPE_CHECKING:
    from uplift_spark.lake.tables import Lake

LAKEHOUSE = "lakehouse"  # folder beside conf/
_INPUTS = "inputs"  # folder of rows that have no file of their own, inside the lakehouse's
MOST_GUESSED = 500_000  # rows of a Delta table that guesses rest on
_SUFFIX = re.compile(r"\.(csv|tsv|txt|parquet|dta|gz|zip|bz2|xz|xlsx?|ods|json|arrow|feather|orc)$", re.I)
_TABLE_NAME = re.compile(r"\w+\.\w+(\.\w+)?")

# --------------------------------------------------------------------------------------------------------------------
# Where rows come from.


class FrameOptions(TypedDict, total=False):
    """What `Campaign.from_frame` takes beside the frame and its main columns: the options of `uplift quickstart`.

    direction        "decrease" where less of the first outcome is better, else "increase"; by its name by default
    value, budget    money that one unit of the outcome is worth (one less, with "decrease"); money to spend
    cost             money of treating one unit, of one unit of a treatment that is a number, or {level: money}
    propensity       column with the probability of the level received
    cluster          column of the group that was treated as one; by default one that the rows show
    feature, drop    columns to keep as features whatever a guess says; columns that are none
    randomised       False where nobody randomised: who was treated is then learned from the features
    """

    direction: Direction | None
    value: float | None
    cost: float | Mapping[str, float] | None
    budget: float | None
    propensity: str | None
    cluster: str | None
    feature: Sequence[str]
    drop: Sequence[str]
    randomised: bool


def answers_of(
    treatment: str, outcome: str | Sequence[str], control: str | None, unit: str | None, options: Mapping[str, Any]
) -> Answers:
    """Answers from the arguments of `Campaign.from_frame`. Raises ConfigError for an option that does not exist."""
    known = FrameOptions.__annotations__
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"from_frame has no option {unknown[0]!r}: {hint(unknown[0], known)}")
    chosen: FrameOptions = {**options}  # type: ignore[typeddict-item]
    cost = chosen.get("cost")
    return Answers(
        treatment,
        (outcome,) if isinstance(outcome, str) else tuple(outcome),
        None if control is None else str(control),
        unit,
        checked_direction(chosen.get("direction")),
        chosen.get("value"),
        cost if isinstance(cost, Mapping) else {} if cost is None else {"": float(cost)},
        chosen.get("budget"),
        chosen.get("propensity"),
        _listed(chosen.get("feature")),
        _listed(chosen.get("drop")),
        chosen.get("randomised", True),
        chosen.get("cluster"),
    )


def checked_direction(wanted: str | None) -> Direction | None:
    """A direction as the user gave it. Raises ConfigError for any but increase and decrease."""
    known = next((one for one in DIRECTIONS if one == wanted), None)
    if known != wanted:
        raise ConfigError(f"--direction {wanted!r} is neither increase nor decrease: choose one")
    return known


def _listed(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())


_PYTHON = {
    "--direction decrease": 'direction="decrease"',
    "--direction increase": 'direction="increase"',
    "--not-randomised": "randomised=False",
    "--feature COLUMN": "feature=[COLUMN]",
    "--drop COLUMN": "drop=[COLUMN]",
    "--propensity COLUMN": "propensity=COLUMN",
    "--unit COLUMN": "unit=COLUMN",
    "--cluster COLUMN": "cluster=COLUMN",
}


def python_options(text: str) -> str:
    """A sentence about options of the command as one about arguments of `Campaign.from_frame`."""
    for option, argument in _PYTHON.items():
        text = text.replace(option, argument)
    return re.sub(r"--([a-z]+)[ =]?", r"\1=", re.sub(r"--([a-z]+) (COLUMN |says|names)", r"\1= \2", text))


def frame_table(frame: Any) -> pa.Table:
    """Rows of a pandas or Arrow frame, or of any other that Arrow reads; named index levels become columns.

    Raises ConfigError for a Spark frame, DataError for columns of one name or of mixed types, and without rows.
    """
    if hasattr(frame, "mapInArrow"):
        raise ConfigError("from_frame takes a pandas or Arrow frame: save this one as a table for `uplift quickstart`")
    try:
        if isinstance(frame, pd.DataFrame):
            if frame.columns.has_duplicates:
                twice = frame.columns[frame.columns.duplicated()][0]
                raise DataError(f"the frame has several columns {twice!r}: rename them")
            named = [name for name in frame.index.names if name is not None and name not in frame.columns]
            rows = frame.reset_index(named) if named else frame
            table = pa.Table.from_pandas(rows.rename(columns=str), preserve_index=False)
        else:
            table = pa.table(frame)
    except pa.ArrowNotImplementedError as error:
        raise DataError(
            f"a column has a type that tables do not ({'; '.join(map(str, error.args))}): cast it to number or text"
        ) from error
    except pa.ArrowException as error:
        raise DataError(f"a column mixes types ({'; '.join(map(str, error.args))}): cast it to one type") from error
    except TypeError as error:
        if isinstance(frame, pd.DataFrame):
            raise DataError(
                f"a column has a type that tables do not ({error}): cast it to number, text or time"
            ) from error
        raise ConfigError(f"from_frame takes a pandas or Arrow frame, not a {type(frame).__name__}") from error
    if not table.num_rows or not table.num_columns:
        raise DataError(f"the frame has {table.num_rows} rows and {table.num_columns} columns: it needs some of each")
    return table


@dataclass(frozen=True)
class Staged:
    """Rows that had no file of their own, in a hidden file beside the one they are to become: `prepare_conf` renames
    it once all is well, so that a mistake costs no earlier rows. Messages call them `name`."""

    part: Path
    path: Path
    name: str


def stage_frame(frame: Any, home: Path, name: str, progress: ProgressCallback) -> Staged:
    """Write a frame's rows into the lakehouse's folder below `home`. Raises like `frame_table`."""
    notes: list[str] = []
    table = plain_table(frame_table(frame), "the frame", notes)
    for note in notes:
        progress(note)
    return _staged(home, f"{plain_name(name)}.parquet", "the frame", lambda part: pq.write_table(table, part))


def stage_stream(stream: BinaryIO, home: Path, name: str) -> Staged:
    """Write what was piped in into the lakehouse's folder below `home`. Raises DataError without any."""
    content = stream.read()
    if not content.strip():
        raise DataError("nothing came in on standard input: pipe a file into `uplift quickstart -`, or name it")
    suffix = "parquet" if content.startswith(b"PAR1") else "csv"
    return _staged(home, f"{plain_name(name)}.{suffix}", "standard input", lambda part: part.write_bytes(content))


def _staged(home: Path, file: str, name: str, write: Callable[[Path], Any]) -> Staged:
    folder = home / LAKEHOUSE / _INPUTS
    folder.mkdir(parents=True, exist_ok=True)
    staged = Staged(folder / f".part.{os.getpid()}.{file}", folder / file, name)  # the suffix says how to read it
    write(staged.part)
    return staged


def is_table(source: str) -> bool:
    """Whether Spark reads a source: the folder of a Delta table, a location in a cloud, or the name of a table."""
    path = Path(source)
    if "://" in source or (path / "_delta_log").is_dir():
        return True
    return bool(_TABLE_NAME.fullmatch(source)) and not path.exists() and not _SUFFIX.search(source)


@dataclass(frozen=True)
class OwnData:
    """Rows to guess from, the keys of `source` under which the line finds them, and what is to be said of both."""

    table: pa.Table
    source: Mapping[str, Any]
    notes: tuple[str, ...]
    numbered: bool = True  # whether rows have numbers, so that the unit needs no column


def read_source(source: str, lake: Lake | None) -> OwnData:
    """Read the rows to guess from. Raises ConfigError for a table without `lake`, DataError for what cannot be read."""
    if not is_table(source):
        read = read_typed(source)
        notes = (*read.notes, f"{read.table.num_rows:,} rows, {read.table.num_columns} columns")
        return OwnData(read.table, {"path": source}, notes)
    from uplift_spark.events.table_source import delta_sample

    if lake is None:
        raise ConfigError(f"{source} is a table: open a lakehouse to read it")
    rows, count = delta_sample(lake, source, MOST_GUESSED)
    notes_of_types: list[str] = []
    table = plain_table(rows, source, notes_of_types)
    said = f"{count:,} rows, {table.num_columns} columns"
    some = [f"guesses rest on {table.num_rows:,} rows chosen by hash"] if table.num_rows < count else []
    key = "table" if _TABLE_NAME.fullmatch(source) and not Path(source).exists() else "path"
    return OwnData(table, {key: source}, (*notes_of_types, said, *some), numbered=False)


_SLASHED = re.compile(r"(\d{1,2})([/.-])(\d{1,2})\2\d{4}")
_YEAR_FIRST = re.compile(r"\d{4}([/.])\d{1,2}\1\d{1,2}")


def with_types(data: OwnData, answers: Answers) -> OwnData:
    """The rows with amounts such as $1,200.50 and 12 % as numbers and dates such as 31/12/2024 as times.

    Which columns those are goes into the configuration, so that later files are read alike. Ids and levels stay texts.
    """
    if not data.numbered:
        return data
    kept = {answers.treatment, answers.unit}
    kinds, notes = {}, []
    for name in data.table.column_names:
        column = data.table.column(name)
        if name in kept or not pa.types.is_string(column.type):
            continue
        if kind := _kind_of_texts(column):
            kinds[name] = kind
            shown = "a number" if kind == "number" else f"a date, {kind}"
            example = column.drop_null()[0].as_py()
            notes.append(f"type: {name} is {shown}, as in {example!r} (edit source.types)")
    if not kinds:
        return data
    try:
        read = read_typed(data.source["path"], FileFormat(types=kinds))
    except DataError as error:  # as where the file's fractions begin with a comma
        return OwnData(data.table, data.source, (*data.notes, f"types: {', '.join(kinds)} stay texts: {error}"))
    return OwnData(read.table, {**data.source, "types": kinds}, (*data.notes, *notes))


def _kind_of_texts(column: pa.ChunkedArray) -> str | None:
    """Number, the pattern of a date, or None, by all texts; where no day is above 12, days may be months: None."""
    texts = column.drop_null()
    if len(texts.unique()) > MOST_LEVELS and is_amount_text(texts):
        return "number"
    some = [str(text).strip() for text in texts.unique().to_pylist()]
    if not some:
        return None
    if all(match := [_YEAR_FIRST.fullmatch(text) for text in some]):
        separators = {one.group(1) for one in match if one}
        pattern = "%Y{0}%m{0}%d"
    elif all(match := [_SLASHED.fullmatch(text) for text in some]):
        separators = {one.group(2) for one in match if one}
        first, second = (max(int(one.group(k)) for one in match if one) for k in (1, 3))
        if (first > 12) == (second > 12):
            return None
        pattern = "%d{0}%m{0}%Y" if first > 12 else "%m{0}%d{0}%Y"
    else:
        return None
    chosen = pattern.format(separators.pop())
    parsed = pc.strptime(texts, format=chosen, unit="us", error_is_null=True)
    return chosen if not separators and parsed.null_count == 0 else None


def check_header(source: str, answers: Answers) -> None:
    """Look up the named columns in a Delta table's log, before Spark starts. Raises ConfigError for one that is not
    there; does nothing where the log does not say."""
    columns = delta_columns(Path(source))
    if columns:
        check_columns_of(answers, columns)


def delta_columns(folder: Path) -> list[str]:
    """Names of a Delta table's columns by the newest metadata in the JSON part of its log; none where it has none."""
    for commit in sorted((folder / "_delta_log").glob("*.json"), reverse=True):
        for line in reversed(commit.read_text(encoding="utf-8").splitlines()):
            action = json.loads(line).get("metaData") if '"metaData"' in line else None
            if action:
                return [one["name"] for one in json.loads(action["schemaString"])["fields"]]
    return []


# --------------------------------------------------------------------------------------------------------------------
# The configuration.

_WRITTEN = "# Written by `uplift quickstart`; edit it, and run the jobs with --conf. "
LEAK_ROWS = 50_000  # rows in which features that came after the treatment are looked for, chosen by hash


def conf_text(guesses: Guesses, name: str, source: Mapping[str, Any], lakehouse: Mapping[str, str]) -> str:
    """Write the configuration of a campaign, with a comment on every part that a user may want to change.

    source   `path`, or `table` and `version`, and how the files are read
    """
    names = guesses.names
    rename = {column: new for column, new in names.items() if column != new}
    at = {column: names.get(column, column) for column in (*guesses.outcomes.values(), *guesses.features)}
    first = next(iter(guesses.outcomes))
    cluster = guesses.cluster
    less = f" (of {first} one less)" if guesses.direction == "decrease" else ""
    lines = [
        f"campaign: {name}",
        "source:",
        "  kind: table",
        *(f"  {key}: {_flow(_renamed(value, rename) if key == 'types' else value)}" for key, value in source.items()),
        *(
            [f"  unit: {_flow(guesses.unit)}"]
            if guesses.unit
            else ["  # unit: the column of an id; without it the number of the row"]
        ),
        *([f"  rename: {_flow(rename)}"] if rename else []),
        f"  treatment: {_flow(guesses.treatment)}",
        *_arm_lines(guesses),
        f"  outcomes: {_flow(list(guesses.outcomes))}",
        *(
            [f"  values: {_flow({at[column]: meaning for column, meaning in guesses.values.items()})}"]
            if guesses.values
            else []
        ),
        *([f"  missing: {_flow(list(guesses.missing))}"] if guesses.missing else []),
        *([f"  propensity: {_flow(guesses.propensity)}"] if guesses.propensity else []),
        "  # what describes a unit before the treatment, and nothing that came later",
        *_attribute_lines(guesses),
        "roles:",
        f"  outcome: {_flow(first)}",
        f"  control: {_flow(guesses.control)}",
        *(["  # less of the outcome is better", "  direction: decrease"] if guesses.direction == "decrease" else []),
        *([f"  dose: {_flow(guesses.dose)}"] if guesses.dose else []),
        *_grid_lines(guesses),
        *(["  # its units were treated as one", f"  cluster: {_flow(names[cluster])}"] if cluster else []),
        f"  features: {'*features' if not cluster else _flow([names[column] for column in guesses.features])}",
        *_design_lines(guesses),
        "economics:",
        f"  # money that one unit of an outcome{less} is worth, and that treating one unit with a level costs",
        f"  value: {_flow(guesses.value)}",
        f"  cost: {_flow(guesses.cost)}",
        *([f"  cost_per_dose: {guesses.cost_per_dose:g}"] if guesses.cost_per_dose is not None else []),
        "lift:",
        f"  segments: {_flow([names[column] for column in guesses.segments])}",
        f"  outcomes: {_flow(list(guesses.outcomes)[1:])}",
        *(["policy:", f"  budget: {guesses.budget:g}"] if guesses.budget is not None else []),
        f"lakehouse: {_flow(dict(lakehouse))}",
    ]
    return "\n".join(lines) + "\n"


def _renamed(kinds: Mapping[str, str], rename: Mapping[str, str]) -> dict[str, str]:
    """Kinds of columns under the names that the configuration gives them."""
    return {rename.get(column, column): kind for column, kind in kinds.items()}


def _arm_lines(guesses: Guesses) -> list[str]:
    """Of a number none: its levels are those of the grid."""
    if guesses.grid:
        return []
    said = "  # {value in the file: name of the level}; rows with other values are rejected"
    return [said, f"  arms: {_flow(guesses.levels)}"]


def _grid_lines(guesses: Guesses) -> list[str]:
    if not guesses.grid:
        return []
    said = "  # doses to report effects at; models learn from the exact ones, tables count each as the nearest of these"
    return [said, f"  grid: {_flow([int(dose) if dose.is_integer() else dose for dose in guesses.grid])}"]


def _attribute_lines(guesses: Guesses) -> list[str]:
    names = [guesses.names[column] for column in guesses.features]
    if guesses.cluster:
        return [f"  attributes: {_flow([*names, guesses.names[guesses.cluster]])}"]
    return [f"  attributes: &features {_flow(names)}"]


def _design_lines(guesses: Guesses) -> list[str]:
    """Sections about who was treated: none for a trial whose features do not tell the arms apart."""
    allow = {guesses.names[column]: reason for column, reason in guesses.allowed.items()}
    leakage = {**({} if guesses.randomised else {"randomised": False}), **({"allow": allow} if allow else {})}
    lines = [f"leakage: {_flow(leakage)}"] if leakage else []
    if not guesses.randomised:
        propensity = "logged" if guesses.propensity else "fitted"
        lines += [
            "# nobody randomised: who was treated is learned from the features, which must hold whatever decided it",
            f"nuisances: {_flow({'propensity': propensity})}",
        ]
    return lines


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def campaign_name(source: str) -> str:
    """Name of a campaign after its file, folder or table."""
    last = Path(source.rstrip("/")).name if not is_table(source) or "/" in source else source.rpartition(".")[2]
    return plain_name(_SUFFIX.sub("", _SUFFIX.sub("", last)))


def prepare_conf(
    source: str | Staged,
    answers: Answers,
    home: Path,
    name: str | None,
    progress: ProgressCallback,
    lake: Lake | None = None,
) -> tuple[Path, Guesses]:
    """Read a source, guess, and write the configuration that follows.

    Args:
        source: a file, a folder of files, a pattern, the folder of a Delta table, the name of a table, or staged rows,
            which take the place of earlier ones only when the guesses succeed.
        answers: what the user said.
        home: folder of conf/ and of the lakehouse.
        name: of the campaign; by default the source's.
        progress: is called with every guess.
        lake: to read a Delta table by; a catalog's one is where the line writes, too.

    Returns:
        Path of the configuration, and the guesses.

    Raises:
        ConfigError: a column is not there, or the configuration was edited and would be overwritten.
        DataError: the source cannot be read, or its rows are no campaign's.
    """
    staged = source if isinstance(source, Staged) else None
    where = str(source) if staged is None else str(staged.path)
    name = name or campaign_name(where)
    checked_name(name, "campaign")
    conf = home / "conf" / f"{name}.yaml"
    try:
        _refuse_edited(conf)
        data = with_types(read_source(where if staged is None else str(staged.part), lake), answers)
        guesses = _guessed(data, answers, progress)
        if staged is not None:
            staged.part.replace(staged.path)
    except DataError as error:
        raise DataError(str(error).replace(str(staged.part), staged.name) if staged else str(error)) from error
    finally:
        if staged is not None:
            staged.part.unlink(missing_ok=True)
    catalog = lake.lakehouse.catalog if lake is not None else None
    lakehouse = {"catalog": catalog} if catalog else {"path": str(home / LAKEHOUSE)}
    read = data.source if staged is None else {**data.source, "path": where}
    body = conf_text(guesses, name, read, lakehouse)
    conf.parent.mkdir(parents=True, exist_ok=True)
    conf.write_text(f"{_WRITTEN}{_mark(body)}\n{body}")
    load_config(conf)
    return conf, guesses


def _guessed(data: OwnData, answers: Answers, progress: ProgressCallback) -> Guesses:
    for note in data.notes:
        progress(note)
    guesses = guess_roles(data.table, answers)
    if guesses.unit is None and not data.numbered:
        raise ConfigError("rows of a table have no numbers: name the column of the unit's id with --unit COLUMN")
    check_propensity(data.table, guesses)
    guesses = without_leaks(data.table, guesses, answers)
    for line in guesses.report():
        progress(line)
    return guesses


def check_propensity(table: pa.Table, guesses: Guesses) -> None:
    """Raise DataError when the column of the propensity is not the probability of the level that each unit received.

    Rows of other levels and without a probability are left to the checks that follow.
    """
    if guesses.propensity is None:
        return
    name = guesses.propensity
    p = number_column(table.column(name), f"column {name!r}").to_numpy(zero_copy_only=False).astype(float)
    texts = level_texts(table.column(guesses.treatment), guesses.grid_levels).to_pandas().str.strip()
    levels = texts.map(dict(guesses.levels))
    usable = levels.notna().to_numpy() & (p > 0.0) & (p <= 1.0)
    p, levels = p[usable], levels[usable]
    frame = pd.DataFrame({"level": levels.to_numpy(), "inverse": 1.0 / p, "spread": (1.0 - p) / (p * p)})
    sums = frame.groupby("level").sum()
    each = [(str(level), float(row["inverse"]), float(row["spread"])) for level, row in sums.iterrows()]
    if wrong := inverse_shares(each, len(frame)):
        raise DataError(
            f"column {name!r} is not the probability of the level that each unit received: its inverses add up to the "
            f"{len(frame):,} units {', '.join(wrong)}, and must once in every level; if it is the probability of the "
            "treatment on all rows, give a column that has 1 less it in the control; or leave out --propensity COLUMN"
        )


def _refuse_edited(conf: Path) -> None:
    """Raise ConfigError when somebody has edited the configuration that is there."""
    if conf.exists():
        first, _, rest = conf.read_text().partition("\n")
        if not first.startswith(_WRITTEN) or not first.endswith(_mark(rest)):
            raise ConfigError(
                f"{conf} was edited: `uplift demo` with its path runs it as it is, or choose another --name"
            )


def _mark(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:12]


_DIFFERS = "differs between the arms"


def without_leaks(table: pa.Table, guesses: Guesses, answers: Answers) -> Guesses:
    """Leave out features that tell the arms apart, or order units as only the outcome can.

    Those of `answers.keep` stay, with the reason on record. Where nobody randomised, features may tell arms apart.
    """
    later = times_of_after(table, guesses)
    rest = tuple(name for name in guesses.features if name not in later)
    reasons = {**later, **(leaks_of(table, replace(guesses, features=rest), answers.randomised) if rest else {})}
    allowed = {name: "kept by --feature" for name in reasons if name in answers.keep}
    dropped = {name: reason for name, reason in reasons.items() if name not in answers.keep}
    differing = [name for name, reason in reasons.items() if reason == _DIFFERS]
    warned = [f"warning: {_no_trial(differing)}"] if differing else []
    if set(guesses.features) <= set(dropped) and differing:
        raise DataError(f"no feature is left: {_no_trial(differing)}")
    return guesses.without(dropped, allowed, warned)


def times_of_after(table: pa.Table, guesses: Guesses) -> dict[str, str]:
    """{feature: why it is none} of times that lie after the assignment's where both are known, and of that time."""
    times = [one.name for one in table.schema if pa.types.is_temporal(one.type)]
    moments = [name for name in times if is_assignment_time(name)]
    reasons = {name: "the time of the assignment" for name in moments if name in guesses.features}
    for name in [name for name in times if name in guesses.features and name not in reasons]:
        for moment in moments:
            gap = pc.subtract(number_column(table.column(name), name), number_column(table.column(moment), moment))
            days = gap.drop_null().to_numpy()
            if len(days) >= _KNOWN_TIMES and (days >= 0).mean() > 0.99 and (days > 0).any():
                reasons[name] = f"times of after {moment}"
    return reasons


_KNOWN_TIMES = 25  # rows with both times, to tell by


def _no_trial(columns: Sequence[str]) -> str:
    some = ", ".join(columns[:5]) + (f" and {len(columns) - 5} more" if len(columns) > 5 else "")
    who = "tells" if len(columns) == 1 else "tell"
    return (
        f"this does not look like a randomised trial: {some} {who} who was treated. If nobody randomised, use "
        "--not-randomised, which keeps such columns and weighs units by how likely their treatment was. If it was a "
        "trial, they were recorded after the assignment, or some units were treated more often by design: name the "
        "column of the probability with --propensity COLUMN"
    )


def leaks_of(table: pa.Table, guesses: Guesses, randomised: bool = True) -> dict[str, str]:
    """Features that predict the treatment, or order units as only the outcome can: {column: why it is no feature}."""
    from uplift_spark.events.leakage import find_leaks

    rows = table
    if table.num_rows > LEAK_ROWS:  # a file may be sorted by level, so its first rows may lack one
        hashes = unit_hashes(pa.array(range(table.num_rows)).cast(pa.string()), "row")
        rows = table.take(np.sort(np.argsort(hashes, kind="stable")[:LEAK_ROWS]))
    column = next(iter(guesses.outcomes.values()))
    values = guesses.values.get(column)
    numbers = rows.column(column) if values is None else id_text(rows.column(column))
    outcome = (
        number_column(numbers, f"column {column!r}")
        if values is None
        else pa.array([values.get(one) for one in numbers.to_pylist()], pa.float64())
    )
    arms = level_texts(rows.column(guesses.treatment), guesses.grid_levels)
    columns: dict[str, Any] = {"_unit": pa.array(range(rows.num_rows)), "_arm": arms, "_outcome": outcome}
    for feature in guesses.features:
        cells = rows.column(feature)
        columns[feature] = cells if pa.types.is_string(cells.type) else number_column(cells, f"column {feature!r}")
    if guesses.propensity:
        columns[guesses.propensity] = number_column(rows.column(guesses.propensity), f"column {guesses.propensity!r}")
    if guesses.cluster:
        columns["_cluster"] = id_text(rows.column(guesses.cluster))
    sample = pa.table(columns)
    sample = sample.filter(pc.is_valid(sample.column("_arm")))
    control = next(iter(guesses.levels))
    group = "_cluster" if guesses.cluster else None
    roles = Roles("_unit", "_arm", "_outcome", guesses.features, control, propensity=guesses.propensity, cluster=group)
    leaks = find_leaks(sample, roles, randomised=randomised)
    return {
        one.feature: "follows from the outcome" if one.rule == "outcome_like" else _DIFFERS for one in leaks.findings
    }


def parsed_costs(options: list[str] | None) -> dict[str, float]:
    """{level: cost} of `LEVEL=COST`; a number alone is the cost of every level, under the key "".

    Raises ConfigError for anything else.
    """
    costs = {}
    for option in options or ():
        level, _, text = option.rpartition("=")
        try:
            costs[level] = float(text)
        except ValueError:
            raise ConfigError(f"--cost {option!r} must look like mail=.1, or .1 for every level") from None
    return costs
