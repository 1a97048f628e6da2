"""What a contract of a table is, and how rows are checked against it.

`check` splits rows into good ones and rejected ones, `conform` makes a frame fit its table, `read_cells` casts cells of
a source to a contract's types, and `current` gives tables of the last release the names of this one. The contracts
themselves are in `lake.schemas`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    ArrayType,
    BinaryType,
    BooleanType,
    DataType,
    DateType,
    DoubleType,
    FloatType,
    LongType,
    MapType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from uplift_spark.errors import DataError
from uplift_spark.roles import CAMPAIGN, RUN_ID, UNIT

# --------------------------------------------------------------------------------------------------------------------
# Rules and contracts, the split of good rows from rejected ones, and frames made to fit a table.

INGESTED_AT = "ingested_at"

# How the comment of a column begins that the table got later, on record.
ADDED = "added by run "

# What reading a source leaves beside a row, for `check`: {rule, reason} of cells that could not be read, and the row
# as JSON as the source gave it.
FAULTS, RAW_ROW = "__faults", "__raw_row"

_TYPES: dict[str, DataType] = {
    "string": StringType(),
    "double": DoubleType(),
    "bigint": LongType(),
    "boolean": BooleanType(),
    "timestamp": TimestampType(),
    "date": DateType(),
    "binary": BinaryType(),
    "array<double>": ArrayType(DoubleType()),
    "array<bigint>": ArrayType(LongType()),
    "array<string>": ArrayType(StringType()),
    "map<string,double>": MapType(StringType(), DoubleType()),
}
# Casts that lose nothing (a bigint beyond 2^53 as double aside) and so need no decision; `void` is an untyped null.
_WIDER = {
    **dict.fromkeys(("tinyint", "smallint", "int", "bigint"), ("bigint", "double", "string")),
    **dict.fromkeys(("float", "boolean"), ("double",)),
    "void": tuple(_TYPES),
}
# Further columns of an open table beside doubles and strings; maps hold scores of levels, which forests are trained on.
_KEPT_AS_THEY_ARE = ("array<double>", "map<string,double>")
_BROKEN, _REPEATED, _ALIKE = "__broken", "__repeated", "__alike"
# What two deliveries of one row may differ in: they are one row all the same.
_OF_DELIVERY = ("source", RUN_ID, INGESTED_AT, "known_at")
EXACT_TIME = {
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timeZone": "UTC",
    "ignoreNullFields": "false",
}


@dataclass(frozen=True)
class Rule:
    """`sql` is true for a good row; null counts as broken. A `constraint` is also enforced by the table itself."""

    name: str
    sql: str
    reason: str
    constraint: bool = False


@dataclass(frozen=True)
class Contract:
    """What a table holds, and what every row of it keeps to.

    columns    exactly these; an `open` table may hold further columns of doubles, arrays of or maps to them, or strings
    job        the job that writes it first
    rules      what every row must meet; see `check`
    unique     columns whose values together occur once per checked frame
    append_only Delta itself refuses to change or delete a row; erasing a user means lifting that property first
    cluster_by columns to cluster by where the storage offers it
    skip_by    columns whose bounds every file keeps, for queries to skip files by, those of cluster_by among them; when
               empty Delta's first 32. Bounds of all columns cost a third of a write, so long tables name their few
    renamed    {column: its name in tables that the last release made}; such tables are read and written all the same
    reworded   {column: {text of the last release: text now}}, as parts of the column's values
    later      columns that tables of the last release lack: such a table gets them with its next run, null in the rows
               that it has
    """

    table: str
    job: str
    columns: StructType
    rules: tuple[Rule, ...] = ()
    unique: tuple[str, ...] = ()
    open: bool = False
    append_only: bool = False
    cluster_by: tuple[str, ...] = ()
    skip_by: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    reworded: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    later: tuple[str, ...] = ()

    @property
    def constraints(self) -> dict[str, str]:
        return {rule.name: rule.sql for rule in self.rules if rule.constraint}


@dataclass(frozen=True)
class RowCounts:
    """What `check` makes of rows: how many are good, how many are `rejected` by each rule, and how many are left out as
    `copies` of good ones."""

    good: int
    rejected: Mapping[str, int]
    copies: int


def check(frame: DataFrame, contract: Contract, counts: RowCounts | None = None) -> tuple[DataFrame, DataFrame]:
    """Split rows into (good, rejected); every row of `frame` is in exactly one of the two, or is another's copy.

    good      the rows that meet every rule, with `frame`'s columns
    rejected  the others in the shape of bronze.quarantine: the first broken rule, every reason, the row as JSON

    Good rows of one key that are equal are one row, known since the first of them; `count_checked` counts the copies,
    and its `counts` spare looking for them where there are none.
    Rows of one key that contradict each other are all rejected: nothing tells which one is right. Rows that bring
    FAULTS are rejected for these alone; these and RAW_ROW are no columns of the results. Both results are lazy; each
    evaluates `frame` anew, so it must give the same rows again. Raises DataError for a missing column or one of
    another type.
    """
    marked, columns = _marked(frame, contract)
    fine = F.size(_BROKEN) == 0
    rejected = _quarantine(marked.where(~fine), columns, contract.table)
    if not contract.unique or (counts is not None and not counts.copies):
        return marked.where(fine).select(*columns), rejected
    good = marked.where(fine & F.col(_REPEATED).isNull()).select(*columns)
    content = content_of(columns)
    first = {name: F.min(name).alias(name) for name in columns if name not in content}
    alike = marked.where(fine & F.col(_REPEATED).isNotNull()).groupBy(*content).agg(F.lit(1), *first.values())
    return good.unionByName(alike.select(*columns)), rejected


def count_checked(frame: DataFrame, contract: Contract) -> RowCounts:
    """Count what `check` makes of the rows, in one pass."""
    marked, _ = _marked(frame, contract)
    rule = F.get(_BROKEN, F.lit(0))["rule"].alias("rule")
    # Of rows whose key occurs once, all keys are the same here: null. Others may be copies, of which some break a rule.
    key = F.when(F.col(_REPEATED).isNotNull(), F.struct(*contract.unique)) if contract.unique else F.lit(None)
    sums = F.count(F.lit(1)).alias("n"), F.count(_REPEATED).alias("repeated"), F.count_distinct(key).alias("keys")
    counts = marked.groupBy(rule).agg(*sums).collect()
    rejected = {row["rule"]: row["n"] for row in counts if row["rule"] is not None}
    copies = sum(row["repeated"] - row["keys"] for row in counts if row["rule"] is None)
    good = sum(row["n"] for row in counts if row["rule"] is None) - copies
    return RowCounts(good, dict(sorted(rejected.items())), copies)


def content_of(columns: Iterable[str]) -> list[str]:
    """List the columns that say what a row is about, not how and when it was delivered."""
    return [name for name in columns if name not in _OF_DELIVERY and not name.startswith("_")]


def row_hash(columns: Sequence[str]) -> Column:
    """Hash what rows say in these columns, nulls included."""
    cells = (part for name in columns for part in (F.col(name).isNull(), F.col(name)))
    return F.xxhash64(*cells)


def _marked(frame: DataFrame, contract: Contract) -> tuple[DataFrame, list[str]]:
    """(rows with _BROKEN and _REPEATED, names of their own columns); see `check`."""
    beside = [name for name in (FAULTS, RAW_ROW) if name in frame.columns]
    missing = [name for name in _from_source(contract) if name not in frame.columns]
    if missing:
        raise DataError(f"rows for {contract.table} lack {_listed(missing)}: add {_them(missing)} to the source")
    own = [have for have in frame.schema if have.name not in beside]
    frame = frame.select(*(_fitted(have, _column(contract, have.name), contract.table) for have in own), *beside)
    marked = _mark_repeated(frame, contract.unique).withColumn(_BROKEN, _broken(frame, contract))
    return marked, [have.name for have in own]


def conform(frame: DataFrame, contract: Contract) -> DataFrame:
    """Give `frame` the contract's columns, types and comments; numbers are widened where nothing is lost.

    Adds ingested_at where the contract has it and the frame has not.
    Raises DataError naming the table and the columns that are missing, unknown, or of another type.
    """
    wanted = contract.columns.fieldNames()
    if INGESTED_AT in wanted and INGESTED_AT not in frame.columns:
        frame = frame.withColumn(INGESTED_AT, F.current_timestamp())
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise DataError(f"rows for {contract.table} lack {_listed(missing)}: add {_them(missing)} before writing")
    unknown = [name for name in frame.columns if name not in wanted]
    if unknown and not contract.open:
        raise DataError(f"rows for {contract.table} have unknown {_listed(unknown)}: drop {_them(unknown)}")
    order = frame.columns if contract.open else wanted
    return frame.select(*(_fitted(frame.schema[name], _column(contract, name), contract.table) for name in order))


def old_names(contract: Contract | None, have: Iterable[str]) -> dict[str, str]:
    """Find the columns that `have` contains under the name of the last release: {name now: name there}."""
    have = set(have)
    renamed = {} if contract is None else contract.renamed
    return {new: old for new, old in renamed.items() if old in have and new not in have}


def current(rows: DataFrame, contract: Contract | None) -> DataFrame:
    """Give `rows` of a stored table the names and texts of this release."""
    renamed = old_names(contract, rows.columns)
    if contract is None:
        return rows
    if absent := [name for name in contract.later if name not in rows.columns]:
        rows = rows.withColumns({name: F.lit(None).cast(contract.columns[name].dataType) for name in absent})
    if not renamed:
        return rows
    rows = rows.withColumnsRenamed({old: new for new, old in renamed.items()})
    for name, texts in contract.reworded.items():
        for old, new in texts.items():
            value = F.replace(F.col(name), F.lit(old), F.lit(new))
            rows = rows.withColumn(name, value).withMetadata(name, rows.schema[name].metadata)
    return rows


def added_columns(stored: StructType | None) -> list[StructField]:
    """List the columns that runs have added to a table; new rows may lack them."""
    return [field for field in stored or () if field.metadata.get("comment", "").startswith(ADDED)]


def with_columns(contract: Contract, columns: Iterable[StructField]) -> Contract:
    """Add to `contract` those of `columns` that it lacks; an open contract takes them without this."""
    known = contract.columns.fieldNames()
    more = [field for field in columns if field.name not in known]
    return contract if contract.open else replace(contract, columns=StructType([*contract.columns, *more]))


def _fitted(have: StructField, want: StructField | None, table: str) -> Column:
    value = F.col(have.name)
    if want is None:
        kept = isinstance(have.dataType, StringType) or have.dataType.simpleString() in _KEPT_AS_THEY_ARE
        return value if kept else _widened(value, have, DoubleType(), table)
    return _widened(value, have, want.dataType, table).alias(want.name, metadata=want.metadata)


def _widened(value: Column, have: StructField, want: DataType, table: str) -> Column:
    if not widens(have.dataType, want):
        source, target = have.dataType.simpleString(), want.simpleString()
        raise DataError(f"column {have.name} of {table} is {source}, not {target}: cast it first")
    return value if have.dataType == want else value.cast(want).alias(have.name)


def _from_source(contract: Contract) -> list[str]:
    return [name for name in contract.columns.fieldNames() if name not in (RUN_ID, INGESTED_AT)]


def _column(contract: Contract, name: str) -> StructField | None:
    return contract.columns[name] if name in contract.columns.fieldNames() else None


def _mark_repeated(frame: DataFrame, key: Sequence[str]) -> DataFrame:
    """With _REPEATED, in how many rows the key occurs if in several, and _ALIKE, whether these are equal."""
    if not key:
        nothing = {_REPEATED: F.lit(None).cast("bigint"), _ALIKE: F.lit(None).cast("boolean")}
        return frame.withColumns(nothing)
    code = row_hash(content_of(frame.columns))
    if FAULTS in frame.columns:  # a cell that could not be read is null by now, and no null
        code = F.xxhash64(code, F.size(FAULTS))
    hashed = frame.select(*key, code.alias("_hash"))
    alike = (F.min("_hash") == F.max("_hash")).alias(_ALIKE)
    counts = hashed.groupBy(*key).agg(F.count(F.lit(1)).alias(_REPEATED), alike).where(F.col(_REPEATED) > 1)
    # Repeated keys are few or the source is broken; broadcasting them spares a shuffle of whole rows.
    return frame.join(F.broadcast(counts), list(key), "left").select(*frame.columns, _REPEATED, _ALIKE)


def _broken(frame: DataFrame, contract: Contract) -> Column:
    """Array of {rule, reason}, one entry per broken rule, in the contract's order."""
    failures = [_failure(rule, ~F.coalesce(F.expr(rule.sql), F.lit(False))) for rule in contract.rules]
    if contract.open:
        failures += [_infinite(name) for name in _extra_doubles(frame, contract)]
    repeats = F.concat(F.lit(f"{' and '.join(contract.unique)} occur in "), _REPEATED, F.lit(" rows that differ"))
    failures.append(F.when(~F.col(_ALIKE), entry("repeated", repeats)))
    broken = F.filter(F.array(*failures), lambda failure: failure.isNotNull())
    # What could not be read is null by now: the rules would call it missing.
    return F.when(F.size(FAULTS) > 0, F.col(FAULTS)).otherwise(broken) if FAULTS in frame.columns else broken


def _extra_doubles(frame: DataFrame, contract: Contract) -> Iterable[str]:
    known = contract.columns.fieldNames()
    return [c.name for c in frame.schema if isinstance(c.dataType, (DoubleType, FloatType)) and c.name not in known]


def _infinite(name: str) -> Column:
    endless = F.col(name).isin(float("inf"), float("-inf"))
    return F.when(endless, entry("attribute_finite", F.lit(f"{name} is infinite")))


def _failure(rule: Rule, broken: Column) -> Column:
    return F.when(broken, entry(rule.name, F.lit(rule.reason)))


def entry(rule: str, reason: Column) -> Column:
    """Make one entry of FAULTS: the rule that a row breaks, and the reason."""
    return F.struct(F.lit(rule).alias("rule"), reason.alias("reason"))


def _quarantine(rejected: DataFrame, columns: Sequence[str], table: str) -> DataFrame:
    def own(name: str, otherwise: Column) -> Column:
        return (F.col(name) if name in columns else otherwise).alias(name)

    row = F.col(RAW_ROW) if RAW_ROW in rejected.columns else as_json(columns)
    return rejected.select(
        F.lit(table).alias("source_table"),
        F.col(_BROKEN)[0]["rule"].alias("rule"),
        F.array_join(F.transform(_BROKEN, lambda failure: failure["reason"]), "; ").alias("reason"),
        row.alias("row"),
        own("source", F.lit(None).cast("string")),
        own(CAMPAIGN, F.lit(None).cast("string")),
        own(RUN_ID, F.lit(None).cast("string")),
        own(INGESTED_AT, F.current_timestamp()),
    )


def widens(source: DataType, target: DataType) -> bool:
    """Say whether values of type `source` fit a column of `target`, as they are or by a cast that loses nothing."""
    have, want = source.simpleString(), target.simpleString()
    return have == want or want in _WIDER.get(have, ())


def as_json(columns: Sequence[str]) -> Column:
    """Write columns as a JSON text, nulls and microseconds included, whatever the session's time zone."""
    return F.to_json(F.struct(*columns), EXACT_TIME)


def _listed(columns: Sequence[str]) -> str:
    return f"column{'s' if len(columns) > 1 else ''} {', '.join(columns)}"


def _them(columns: Sequence[str]) -> str:
    return "them" if len(columns) > 1 else "it"


def declared(*lines: str) -> StructType:
    """Make a schema from lines of the form `name type[: comment]`; the type has no blank."""
    schema = StructType()
    for line in lines:
        column, _, comment = line.partition(": ")
        name, kind = column.split(" ")
        schema.add(name, _TYPES[kind], metadata={"comment": comment} if comment else {})
    return schema


# --------------------------------------------------------------------------------------------------------------------
# Cells of a source as values of a contract's types. A cell that cannot be read becomes a fault, never a silent null.
# Points in time without a zone are UTC, whatever the session's time zone.

# A line that is no row of its file, as Spark's readers of text keep it.
UNREAD = "__unread"

_DATE, _TIME, _ZONE = r"\d{4}-\d{2}-\d{2}", r"[T ]\d{2}:\d{2}(:\d{2}(\.\d{1,9})?)?", r"(Z|[+-]\d{2}(:?\d{2})?)"
_MOMENT = f"^{_DATE}({_TIME}{_ZONE}?)?$"
# Spark's cast also takes Java's "1d" and "0x1p3".
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$|^[+-]?(?i:inf|infinity)$|^(?i:nan)$"
_KINDS = {
    "timestamp": "a point in time (ISO 8601, as in 2025-01-31T09:30:00Z)",
    "double": "a number",
    "bigint": "a whole number",
    "boolean": "true or false",
}
_YEARS = ("1971", "2199")  # of campaigns; as texts, as all years between have four digits
_AROUND = r"[\s\p{Z}\x{FEFF}]"
_SHOWN = 100  # characters of a bad value that its reason repeats


def fits(have: DataType, want: DataType, text: bool) -> bool:
    """Say whether `read_cells` can read a column of type `have` as `want`; `text`: the source has texts only."""
    unzoned = isinstance(have, TimestampNTZType) and isinstance(want, TimestampType)
    return widens(have, want) or unzoned or (text and isinstance(have, StringType))


def read_cells(frame: DataFrame, wanted: StructType, renamed: Mapping[str, str], *beside: str) -> DataFrame:
    """Cast the columns of `wanted` that `frame` has to their types; add FAULTS, RAW_ROW and the columns `beside`.

    renamed   {wanted name: frame's name} where the two differ
    A column UNREAD of `frame` holds the lines that are no row. Columns must fit (`fits`); blank texts are null where
    the wanted type is no text.
    """
    raw = [name for name in frame.columns if name not in (UNREAD, *beside)]
    cells, faults = [], []
    for want in wanted:
        name = renamed.get(want.name, want.name)
        if name in raw:
            value = _value(F.col(name), frame.schema[name].dataType, want.dataType)
            value = trimmed_id(value) if want.name == UNIT else value
            cells.append(value.alias(want.name))
            faults.append(_fault(name, frame.schema[name].dataType, want.dataType, value))
    row = as_json(raw)
    if UNREAD in frame.columns:
        unread = F.col(UNREAD).isNotNull()
        # The cells of such a line are wherever its commas happen to be.
        whole = entry("row_readable", F.lit("the line is not a row with the columns of its file"))
        faults = [F.when(unread, whole), *(F.when(~unread, fault) for fault in faults)]
        row = F.when(unread, as_json([UNREAD])).otherwise(row)
    broken = F.filter(F.array(*faults), lambda fault: fault.isNotNull())
    return frame.select(*cells, broken.alias(FAULTS), row.alias(RAW_ROW), *beside)


def time_text(name: str, kind: DataType, texts: str) -> Column:
    """Write a time that was computed from texts in ISO 8601, for `read_cells`.

    A time of a year that no campaign ran in is made unreadable, unless the texts have this year: digits that are no
    seconds become a time in 1970, or one far ahead. Other types than times and dates stay as they are.

    name   column of type `kind`        texts  column of the texts that the time comes from
    """
    value = F.col(name)
    if isinstance(kind, TimestampType | TimestampNTZType):
        zone = "Z" if isinstance(kind, TimestampNTZType) else ""
        value = F.concat(F.get_json_object(as_json([name]), f"$.{name}"), F.lit(zone))
    elif isinstance(kind, DateType):
        value = value.cast("string")
    elif not isinstance(kind, StringType):
        return value
    year = F.regexp_extract(F.coalesce(value, F.lit("")), r"^\s*([+-]?\d{4,})-", 1)
    dated = F.concat(F.lit(r"(?<!\d)"), year, F.lit(r"([-/.]|\d{4}(?!\d))|[-/.]"), year, F.lit(r"(?!\d)"))
    likely = (year == "") | year.between(*_YEARS) | F.regexp(texts, dated)
    return F.when(likely, value).otherwise(F.concat(F.lit("digits, not the time "), value))


def numbers_or_text(frame: DataFrame, names: list[str]) -> dict[str, DataType]:
    """Infer types of text columns in one pass: {name: double if all its texts are numbers, else string}."""
    if not names:
        return {}
    numeric = frame.agg(*(F.min(_blank(F.col(n)) | F.trim(n).rlike(_NUMBER)).alias(n) for n in names)).collect()[0]
    return {name: StringType() if numeric[name] is False else DoubleType() for name in names}


def _value(cell: Column, have: DataType, want: DataType) -> Column:
    if isinstance(have, TimestampNTZType) and isinstance(want, TimestampType):
        # A direct cast would take it for local time of the session.
        return F.concat(cell.cast("string"), F.lit("Z")).cast("timestamp")
    if isinstance(have, StringType) and not isinstance(want, StringType):
        return _from_text(F.trim(cell), want)
    return cell.cast(want)


def _from_text(text: Column, want: DataType) -> Column:
    """Null where `text` is blank or not of the type."""
    if isinstance(want, TimestampType):
        # Spark's cast wants seconds before a zone, and takes what has no zone for local time of the session.
        full = F.regexp_replace(text, f"^({_DATE})$", "$1T00:00:00")
        full = F.regexp_replace(full, rf"^({_DATE}[T ]\d{{2}}:\d{{2}})(?=Z|[+-]|$)", "$1:00")
        full = F.regexp_replace(full, r"([T ][\d:.]+)$", "$1Z")
        return F.when(text.rlike(_MOMENT), full).try_cast(want)
    if isinstance(want, DoubleType):
        return F.when(text.rlike(_NUMBER), text).try_cast(want)
    return text.try_cast(want)


def _fault(name: str, have: DataType, want: DataType, value: Column) -> Column:
    """{rule, reason} where a text is there and no value came of it, else null."""
    if not isinstance(have, StringType) or isinstance(want, StringType):
        return F.lit(None).cast("struct<rule:string,reason:string>")
    cell = F.col(name)
    kind = _KINDS.get(want.simpleString(), want.simpleString())
    reason = F.concat(F.lit(f"{name} '"), F.substring(cell, 1, _SHOWN), F.lit(f"' is not {kind}"))
    return F.when(~_blank(cell) & value.isNull(), entry(f"{name}_readable", reason))


def trimmed_id(unit: Column) -> Column:
    """A unit's id without blanks, line breaks and byte order marks around it: one id everywhere."""
    return F.regexp_replace(unit, f"^{_AROUND}+|{_AROUND}+$", "")


def _blank(cell: Column) -> Column:
    return cell.isNull() | (F.trim(cell) == "")
