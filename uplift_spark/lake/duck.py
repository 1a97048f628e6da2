"""Queries over a folder's tables in DuckDB, without Spark (`local_query`): the same answers, or none.

Of the checked tree of a query each piece is written anew for DuckDB with its type, and only what means the same in both
engines: null first or last, whole numbers that overflow, division by zero, casts of texts, rounding half up, NaN.
Whatever else a query holds raises NotLocal, and so does every error of DuckDB: Spark then runs the query, and says what
is wrong with it. DuckDB sees no name of the query's and no file: tables are Arrow tables with columns c0, c1, ...

Sums of fractional numbers may differ in the last of their 16 digits, as they do between two runs of Spark.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

from sqlglot import exp

from uplift_spark.errors import ConfigError, hint
from uplift_spark.lake.duck_functions import (
    AGGREGATES,
    DUCK_TYPES,
    FUNCTIONS,
    MACROS,
    NUMBER_KINDS,
    WINDOW_FUNCTIONS,
    DuckValue,
    as_compared,
    as_double,
    converted,
    in_common_type,
    in_number_type,
    not_the_same,
    put_together,
)
from uplift_spark.lake.local_tables import NESTED, LocalTable, LocalTables, NotLocal
from uplift_spark.sql_gate import checked_tree

if TYPE_CHECKING:
    import pyarrow as pa

MOST_CELLS = 50_000_000
"""Rows times columns that a query may bring into memory; more is Spark's."""

_NAMELESS = "\0"  # what Spark calls by a text of its own; a subquery may have such a column
_MOST_SOURCES = 64  # tables and subqueries of a query, each WITH counted as often as it is named


@dataclass
class _Source:
    """What stands in FROM: how the query calls it, and its columns by the query's names; `hidden` are those of USING
    that are listed once."""

    alias: str
    columns: list[tuple[str, DuckValue]]
    hidden: frozenset[str] = frozenset()


@dataclass
class _Scope:
    """The names that an expression may use."""

    sources: list[_Source]
    outer: _Scope | None = None
    items: dict[str, DuckValue] = field(default_factory=dict)
    merged: dict[str, DuckValue] = field(default_factory=dict)


@dataclass(frozen=True)
class _Rows:
    """A query in DuckDB's SQL, whose columns are c0, c1, ...; their names and kinds."""

    sql: str
    columns: tuple[tuple[str, str], ...]


def local_query(tables: LocalTables, query: str, limit: int | None = None) -> pa.Table:
    """Rows of a query that only reads.

    Args:
        tables: Of a folder.
        query: SQL as Spark takes it; two of its columns may have one name.
        limit: Most rows to give.

    Returns:
        An Arrow table as Spark gives it: times have the zone UTC.

    Raises:
        ConfigError: the query does more than read, or there is no such table or column.
        NotLocal: DuckDB cannot run it with the same answer.
    """
    import duckdb

    tree = checked_tree(query)
    if tree is None:
        raise NotLocal("Spark alone knows what DESCRIBE, SHOW and EXPLAIN tell")
    writer = _Writer(tables)
    rows = writer.query(tree, _Scope([]), {})
    if _NAMELESS in dict(rows.columns):
        not_the_same("the name of a result (write AS name)")
    held = {name: writer.read(name) for name in writer.needed}
    setup: dict[str, str | bool | int | float | list[str]] = {
        "enable_external_access": "false",
        "python_enable_replacements": "false",
    }
    connection = duckdb.connect(":memory:", config=setup)
    try:
        for macro in MACROS:
            connection.execute(macro)
        for name, table in held.items():
            connection.from_arrow(table).create_view(name)  # `register` would load pandas, for two seconds
        connection.execute("SET lock_configuration = true")
        text = rows.sql if limit is None else f"SELECT * FROM ({rows.sql}) LIMIT {limit}"
        result = connection.sql(text).to_arrow_table()
    except duckdb.Error as error:
        raise NotLocal(f"DuckDB says: {str(error).splitlines()[0]}") from error
    finally:
        connection.close()
    return _as_spark_gives(result, rows.columns)


def _as_spark_gives(result: pa.Table, columns: Sequence[tuple[str, str]]) -> pa.Table:
    import pyarrow as pa

    arrays, fields = [], []
    for (name, kind), column in zip(columns, result.columns, strict=True):
        if kind == "timestamp":
            column = column.cast(pa.timestamp("us", "UTC"))
        elif kind == "null":
            column = pa.chunked_array([pa.nulls(len(result))])
        elif kind == "string":
            column = column.cast(pa.string())
        arrays.append(column)
        fields.append(pa.field(name, column.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def as_texts(rows: pa.Table) -> pa.Table:
    """Dates, times (both in UTC) and bytes (hexadecimal) as the texts that Spark makes of them; all else stays."""
    import pyarrow as pa

    columns = [_text_column(column) for column in rows.columns]
    return pa.Table.from_arrays(columns, names=rows.column_names)


def _text_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow as pa

    if pa.types.is_binary(column.type):
        texts = [None if value is None else value.hex().upper() for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, pa.string())])
    is_time = pa.types.is_timestamp(column.type)
    if not (is_time or pa.types.is_date32(column.type)):
        return column
    import pyarrow.compute as pc  # takes as long to load as pyarrow itself

    if is_time:  # written with six digits of a second
        texts = pc.utf8_rtrim(column.cast(pa.timestamp("us")).cast(pa.string()), "0")
        texts = pc.replace_substring_regex(texts, r"\.$", "")
    else:
        texts = column.cast(pa.string())
    return pc.replace_substring_regex(texts, r"^(\d{5})", r"+\1")  # years beyond 9999 have a plus


class _Writer:
    """Writes a query for DuckDB, and notes the columns of tables that it needs."""

    def __init__(self, tables: LocalTables) -> None:
        self.tables = tables
        self.needed: dict[str, set[int]] = {}
        self._known: dict[tuple[str, int | None], str] = {}
        self._tables: dict[str, LocalTable] = {}
        self._sources = self._cells = 0

    def read(self, name: str) -> pa.Table:
        """The columns that are needed of a table, called c<number>."""
        table = self._tables[name]
        numbers = sorted(self.needed[name]) or [0]
        self._cells += table.rows * len(numbers)
        if self._cells > MOST_CELLS:
            raise NotLocal(f"{table.rows:,} rows of {table.name} are many")
        rows = table.read([table.columns[number].name for number in numbers])
        for number, kind in enumerate(rows.schema.types):
            if str(kind).startswith("timestamp"):  # a time in UTC without its zone: DuckDB's own, with no extension
                rows = rows.set_column(number, rows.field(number).name, rows.column(number).cast("timestamp[us]"))
        return rows.rename_columns([f"c{number}" for number in numbers])

    # ------------------------------------------------------------------------------------------------------------
    # Queries.

    def query(self, node: exp.Expr, outer: _Scope, named: Mapping[str, Callable[[], _Rows]]) -> _Rows:
        """A SELECT, or several with UNION, EXCEPT or INTERSECT between them."""
        named = self._with(node, outer, named)
        if isinstance(node, exp.Select):
            return self._select(node, outer, named)
        if isinstance(node, exp.Subquery) and not node.args.get("alias") and not node.args.get("joins"):
            return self._ordered(node, self.query(node.this, outer, named))
        if isinstance(node, exp.Union | exp.Except | exp.Intersect) and not node.args.get("by_name"):
            return self._combined(node, outer, named)
        not_the_same(type(node).__name__.lower())

    def _with(
        self, node: exp.Expr, outer: _Scope, named: Mapping[str, Callable[[], _Rows]]
    ) -> Mapping[str, Callable[[], _Rows]]:
        own = node.args.get("with_")
        if own is None:
            return named
        if own.args.get("recursive"):
            not_the_same("WITH RECURSIVE")
        for each in own.expressions:
            before = named
            heads = [head.name for head in each.args["alias"].args.get("columns") or ()]

            def rows(each: exp.Expr = each, before: Any = before, heads: list[str] = heads) -> _Rows:
                return _renamed(self.query(each.this, outer, before), heads)

            named = {**named, each.alias.lower(): rows}
        return named

    def _combined(self, node: exp.Expr, outer: _Scope, named: Mapping[str, Callable[[], _Rows]]) -> _Rows:
        left, right = (self.query(node.args[side], outer, named) for side in ("this", "expression"))
        if [kind for _, kind in left.columns] != [kind for _, kind in right.columns]:
            not_the_same("putting columns of different types below each other")
        word = type(node).__name__.upper()
        every = "" if node.args.get("distinct") else " ALL"
        return self._ordered(node, _Rows(f"({left.sql}) {word}{every} ({right.sql})", left.columns))

    def _ordered(self, node: exp.Expr, rows: _Rows) -> _Rows:
        """A whole query with its ORDER BY, which names its columns, and its LIMIT."""
        scope = _Scope([_Source("", [(name, DuckValue(f"c{i}", kind)) for i, (name, kind) in enumerate(rows.columns)])])
        end = self._order(node, scope, list(dict(rows.columns)), rows) + self._limit(node)
        return _Rows(f"SELECT * FROM ({rows.sql}){end}", rows.columns) if end else rows

    def _order(self, node: exp.Expr, scope: _Scope, names: Sequence[str], rows: _Rows) -> str:
        order = node.args.get("order")
        if order is None:
            return ""
        parts = []
        for each in order.expressions:
            place = _ordinal(each.this, len(rows.columns))
            if place is not None and rows.columns[place][1] == NESTED:
                not_the_same("an order by nested values")
            parts.append((str(place + 1) if place is not None else self.value(each.this, scope).sql) + _direction(each))
        return " ORDER BY " + ", ".join(parts)

    def _limit(self, node: exp.Expr) -> str:
        text = ""
        for part, word in (("limit", "LIMIT"), ("offset", "OFFSET")):
            if (value := node.args.get(part)) is not None:
                if not (isinstance(value.expression, exp.Literal) and re.fullmatch(r"\d{1,9}", value.expression.this)):
                    not_the_same(f"{word} of an expression")
                text += f" {word} {value.expression.this}"
        return text

    def _select(self, node: exp.Select, outer: _Scope, named: Mapping[str, Callable[[], _Rows]]) -> _Rows:
        for part in ("laterals", "windows", "qualify"):
            if node.args.get(part):
                not_the_same(part)
        self._named = named
        scope = _Scope([], outer)
        text = self._from(node, scope, named)
        self._named = named
        items: list[tuple[str, DuckValue]] = []
        for each in node.expressions:
            items += self._item(each, scope)
            if isinstance(each, exp.Alias):
                scope.items.setdefault(each.alias.lower(), items[-1][1])
        if any(value.kind == "decimal" and value.constant is not None for _, value in items):
            not_the_same("a decimal constant as a result")
        listed = ", ".join(f"{value.sql} AS c{number}" for number, (_, value) in enumerate(items))
        distinct = self._distinct(node)
        text = f"SELECT {distinct}{listed}{text}"
        if (where := node.args.get("where")) is not None:
            text += f" WHERE {self._boolean(where.this, replace(scope, items={})).sql}"
        text += self._group(node, scope, items)
        if (having := node.args.get("having")) is not None:
            text += f" HAVING {self._boolean(having.this, scope).sql}"
        rows = _Rows(text, tuple((name, value.kind) for name, value in items))
        if distinct:  # an order can only be by what is listed
            return self._ordered(node, rows)
        ordered = _Scope([_Source("", items)], scope)  # names of results come before those of tables
        return replace(rows, sql=text + self._order(node, ordered, [], rows) + self._limit(node))

    def _distinct(self, node: exp.Select) -> str:
        distinct = node.args.get("distinct")
        if distinct is not None and distinct.expressions:
            not_the_same("DISTINCT ON")
        return "" if distinct is None else "DISTINCT "

    def _group(self, node: exp.Select, scope: _Scope, items: Sequence[tuple[str, DuckValue]]) -> str:
        group = node.args.get("group")
        if group is None:
            return ""
        if any(group.args.get(part) for part in ("cube", "rollup", "grouping_sets", "all")):
            not_the_same("GROUP BY with CUBE, ROLLUP, GROUPING SETS or ALL")
        keys = []
        for each in group.expressions:
            place = _ordinal(each, len(items))
            keys.append(items[place][1].sql if place is not None else self.value(each, scope).sql)
        return " GROUP BY " + ", ".join(keys)

    def _item(self, node: exp.Expr, scope: _Scope) -> list[tuple[str, DuckValue]]:
        if isinstance(node, exp.Star) or (isinstance(node, exp.Column) and isinstance(node.this, exp.Star)):
            return self._star(node, scope)
        if isinstance(node, exp.Alias):
            return [(node.alias, self.value(node.this, scope))]
        if isinstance(node, exp.Column):
            return [(node.name, self.value(node, scope))]
        return [(_spark_name(node), self.value(node, scope))]

    def _star(self, node: exp.Expr, scope: _Scope) -> list[tuple[str, DuckValue]]:
        star = node.this if isinstance(node, exp.Column) else node
        if star.args.get("except_") or not scope.sources:
            not_the_same("* EXCEPT")
        wanted = node.args.get("table")
        if wanted is None:
            columns = [(name, scope.merged[name.lower()]) for name in self._merged_names(scope)]
            parts = [(source, source.hidden) for source in scope.sources]
        else:
            columns = []
            parts = [(source, frozenset[str]()) for source in scope.sources if source.alias == wanted.name.lower()]
            if len(parts) != 1 or node.args.get("db"):
                not_the_same(f"{wanted.name}.*")
        for source, hidden in parts:
            columns += [(name, value) for name, value in source.columns if name.lower() not in hidden]
        for _, value in columns:
            self._noted(value)
        return columns

    def _merged_names(self, scope: _Scope) -> list[str]:
        first = {name.lower(): name for source in reversed(scope.sources) for name, _ in source.columns}
        return [first[name] for name in scope.merged]

    # ------------------------------------------------------------------------------------------------------------
    # FROM.

    def _from(self, node: exp.Select, scope: _Scope, named: Mapping[str, Callable[[], _Rows]]) -> str:
        start = node.args.get("from_")
        if start is None:
            return ""
        text = " FROM " + self._source(start.this, scope, named)
        for join in node.args.get("joins") or ():
            text += self._join(join, scope, named)
        return text

    def _source(self, node: exp.Expr, scope: _Scope, named: Mapping[str, Callable[[], _Rows]]) -> str:
        self._sources += 1
        if self._sources > _MOST_SOURCES:
            not_the_same(f"more than {_MOST_SOURCES} tables")
        own = f"t{self._sources}"
        alias = node.args.get("alias")
        heads = [head.name for head in (alias.args.get("columns") or ())] if alias is not None else []
        for part in ("joins", "laterals", "pivots"):
            if node.args.get(part):
                not_the_same(part)
        if isinstance(node, exp.Subquery):
            rows, called = self.query(node.this, _Scope([]), named), ""
            if any(node.args.get(part) for part in ("order", "limit", "offset", "with_")):
                not_the_same("a subquery of this form")
        elif isinstance(node, exp.Table) and isinstance(node.this, exp.Identifier):
            called = node.name
            if len(node.parts) == 1:
                rows = named[node.name.lower()]()
            else:
                return self._table(node, own, alias, heads, scope)
        else:
            not_the_same("a table of this form")
        rows = _renamed(rows, heads)
        columns = [(name, DuckValue(f"{own}.c{i}", kind)) for i, (name, kind) in enumerate(rows.columns)]
        scope.sources.append(_Source((alias.name if alias is not None else called).lower(), columns))
        return f"({rows.sql}) AS {own}"

    def _table(self, node: exp.Table, own: str, alias: Any, heads: list[str], scope: _Scope) -> str:
        version = node.args.get("version")
        number = None
        if version is not None:
            if version.this != "VERSION" or not re.fullmatch(r"\d{1,18}", version.expression.this):
                not_the_same("TIMESTAMP AS OF")
            number = int(version.expression.this)
        parts = [part.name for part in node.parts][-2:]
        key = (".".join(parts).lower(), number)
        if key not in self._known:
            self._known[key] = f"r{len(self._known)}"
            self._tables[self._known[key]] = self.tables.table(key[0], number)
            self.needed[self._known[key]] = set()
        name = self._known[key]
        columns = [
            (column.name, DuckValue(f"{own}.c{i}", column.kind)) for i, column in enumerate(self._tables[name].columns)
        ]
        if heads:
            not_the_same("an alias with names of columns")
        self._of_table[own] = name
        scope.sources.append(_Source((alias.name if alias is not None else parts[-1]).lower(), columns))
        return f"{name} AS {own}"

    @property
    def _of_table(self) -> dict[str, str]:
        return self.__dict__.setdefault("_aliases", {})

    def _noted(self, value: DuckValue) -> DuckValue:
        own, _, column = value.sql.partition(".c")
        if own in self._of_table and column.isdigit():
            if value.kind == NESTED:
                not_the_same("a nested column")
            self.needed[self._of_table[own]].add(int(column))
        return value

    def _join(self, node: exp.Join, scope: _Scope, named: Mapping[str, Callable[[], _Rows]]) -> str:
        side, kind = (str(node.args.get(part) or "").upper() for part in ("side", "kind"))
        if node.args.get("method") or kind not in ("", "INNER", "OUTER", "CROSS", "SEMI", "ANTI"):
            not_the_same(f"{node.args.get('method') or kind} JOIN")
        left = list(scope.sources)
        source = self._source(node.this, scope, named)
        right = scope.sources[-1]
        using = [each.name for each in node.args.get("using") or ()]
        on = node.args.get("on")
        if using:
            condition = " AND ".join(self._same(name, left, right, side, kind, scope) for name in using)
        elif on is not None:
            condition = self._boolean(on, scope).sql
        else:
            if side or kind not in ("", "INNER", "CROSS"):
                not_the_same("this JOIN without ON")
            return f" CROSS JOIN {source}"
        if kind in ("SEMI", "ANTI"):
            scope.sources.pop()
            if side not in ("", "LEFT"):
                not_the_same(f"{side} {kind} JOIN")
            return f" {kind} JOIN {source} ON {condition}"
        if kind == "CROSS":
            not_the_same("CROSS JOIN with ON")
        return f" {side or 'INNER'} JOIN {source} ON {condition}"

    def _same(self, name: str, left: list[_Source], right: _Source, side: str, kind: str, scope: _Scope) -> str:
        """The condition of one column of USING, which is listed once, first."""
        own = self._column_of(name, left) if name.lower() not in scope.merged else scope.merged[name.lower()]
        other = self._column_of(name, [right])
        if own is None or other is None or own.kind != other.kind:
            not_the_same("USING of these columns")
        self._noted(own), self._noted(other)
        if kind not in ("SEMI", "ANTI"):
            both = DuckValue(f"coalesce({own.sql}, {other.sql})", own.kind)
            scope.merged[name.lower()] = other if side == "RIGHT" else both if side == "FULL" else own
            for source in scope.sources:
                source.hidden |= {name.lower()}
        return f"{own.sql} = {other.sql}"

    def _column_of(self, name: str, sources: Sequence[_Source]) -> DuckValue | None:
        columns = [value for source in sources for own, value in source.columns if own.lower() == name.lower()]
        if len(columns) > 1:
            not_the_same(f"column {name} of two tables")
        return columns[0] if columns else None

    # ------------------------------------------------------------------------------------------------------------
    # Expressions.

    def value(self, node: exp.Expr, scope: _Scope) -> DuckValue:
        """An expression."""
        write = _NODES.get(type(node))
        if write is None:
            not_the_same(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).lower())
        written: DuckValue = write(self, node, scope)
        return written

    def _boolean(self, node: exp.Expr, scope: _Scope) -> DuckValue:
        value = self.value(node, scope)
        if value.kind not in ("boolean", "null"):
            not_the_same(f"a {value.kind} as a condition")
        return value

    def _column(self, node: exp.Column, scope: _Scope) -> DuckValue:
        if node.args.get("db") or isinstance(node.this, exp.Star):
            not_the_same("a name of this form")
        name, table = node.name, node.args.get("table")
        place: _Scope | None = scope
        while place is not None:
            if table is None and name.lower() in place.merged:
                return self._noted(place.merged[name.lower()])
            sources = [one for one in place.sources if table is None or one.alias == table.name.lower()]
            value = self._column_of(name, sources)
            if value is None and table is None:
                value = place.items.get(name.lower())
            if value is not None:
                return self._noted(value)
            place = place.outer
        return self._unknown(name, table, scope)

    def _unknown(self, name: str, table: Any, scope: _Scope) -> NoReturn:
        known: set[str] = set()
        place: _Scope | None = scope
        while place is not None:
            known |= {own for source in place.sources for own, _ in source.columns} | {*place.items}
            place = place.outer
        if table is not None or any(own.lower() == name.lower() for own in known):
            not_the_same(f"{table.name}.{name}" if table is not None else name)
        other = _name_before(name, known)
        if other is not None:
            not_the_same(f"column {name}, which a table of the last release calls {other},")
        raise ConfigError(f"the query does not run: there is no column {name!r}, {hint(name, known)}")

    def _literal(self, node: exp.Literal, scope: _Scope) -> DuckValue:
        text = node.this
        if node.is_string:
            inner = text[1:-1].replace("\\'", "'")
            if "\\" in inner or "\0" in inner:
                not_the_same("a text with a backslash")
            return DuckValue(_quoted(inner), "string", inner)
        if match := re.fullmatch(r"(DATE|TIMESTAMP) '(\d{4}-\d\d-\d\d)( \d\d:\d\d:\d\d(?:\.\d{1,6})?)?'", text):
            kind, day, clock = match.groups()
            if kind == "DATE" and clock:
                not_the_same("a date with a time")
            return DuckValue(f"CAST('{day}{clock or ''}' AS {kind})", kind.lower())
        if (match := re.fullmatch(r"(\d{1,19})(L?)", text, re.I)) and int(match.group(1)) < 2**63:
            number = int(match.group(1))
            kind = "bigint" if match.group(2) or number > 2**31 - 1 else "int"
            return DuckValue(f"CAST({number} AS {DUCK_TYPES[kind]})", kind, str(number))
        if match := re.fullmatch(r"(\d*\.?\d*)(?:e([+-]?\d+))?(d?)", text, re.I):
            if match.group(2) or match.group(3):
                return DuckValue(f"CAST('{text.rstrip('dD')}' AS DOUBLE)", "double")
            return DuckValue(f"CAST('{text}' AS DOUBLE)", "decimal", text)
        not_the_same(f"the constant {text[:30]}")

    def _comparison(self, node: exp.Expr, scope: _Scope) -> DuckValue:
        a, b = as_compared(self.value(node.this, scope), self.value(node.expression, scope))
        return DuckValue(f"({a} {_COMPARISONS[type(node)]} {b})", "boolean")

    def _connected(self, node: exp.Expr, scope: _Scope) -> DuckValue:
        left, right = self._boolean(node.this, scope), self._boolean(node.expression, scope)
        return DuckValue(f"({left.sql} {'AND' if isinstance(node, exp.And) else 'OR'} {right.sql})", "boolean")

    def _not(self, node: exp.Not, scope: _Scope) -> DuckValue:
        return DuckValue(f"(NOT {self._boolean(node.this, scope).sql})", "boolean")

    def _is(self, node: exp.Is, scope: _Scope) -> DuckValue:
        if not isinstance(node.expression, exp.Null | exp.Boolean):
            not_the_same("IS with this")
        if isinstance(node.expression, exp.Boolean):
            word = "TRUE" if node.expression.this else "FALSE"
            return DuckValue(f"({self._boolean(node.this, scope).sql} IS {word})", "boolean")
        return DuckValue(f"({self.value(node.this, scope).sql} IS NULL)", "boolean")

    def _between(self, node: exp.Between, scope: _Scope) -> DuckValue:
        value, low, high = (self.value(node.args[part], scope) for part in ("this", "low", "high"))
        (a, least), (b, most) = as_compared(value, low), as_compared(value, high)
        return DuckValue(f"({a} >= {least} AND {b} <= {most})", "boolean")

    def _in(self, node: exp.In, scope: _Scope) -> DuckValue:
        value = self.value(node.this, scope)
        if (query := node.args.get("query")) is not None:
            rows = self._inner(query, scope)
            if len(rows.columns) != 1 or rows.columns[0][1] != value.kind:
                not_the_same("IN a query of another type")
            return DuckValue(f"({value.sql} IN ({rows.sql}))", "boolean")
        pairs = [as_compared(value, self.value(each, scope)) for each in node.expressions]
        if len({mine for mine, _ in pairs}) != 1:
            not_the_same("IN values of several types")
        return DuckValue(f"({pairs[0][0]} IN ({', '.join(other for _, other in pairs)}))", "boolean")

    def _inner(self, node: exp.Expr, scope: _Scope) -> _Rows:
        named = self._named
        inner = node.this if isinstance(node, exp.Subquery) else node
        rows = self.query(inner, scope, named)
        self._named = named
        return rows

    def _exists(self, node: exp.Exists, scope: _Scope) -> DuckValue:
        return DuckValue(f"EXISTS ({self._inner(node.this, scope).sql})", "boolean")

    def _scalar(self, node: exp.Subquery, scope: _Scope) -> DuckValue:
        rows = self._inner(node, scope)
        if len(rows.columns) != 1:
            not_the_same("a subquery of several columns")
        return DuckValue(f"({rows.sql})", rows.columns[0][1])

    def _like(self, node: exp.Like, scope: _Scope) -> DuckValue:
        value, pattern = self.value(node.this, scope), self.value(node.expression, scope)
        if value.kind != "string" or pattern.constant is None or node.args.get("negate"):
            not_the_same("LIKE of this")
        return DuckValue(f"({value.sql} LIKE {pattern.sql})", "boolean")

    def _calculated(self, node: exp.Expr, scope: _Scope) -> DuckValue:
        sign = "+" if isinstance(node, exp.Add) else "-" if isinstance(node, exp.Sub) else "*"
        values = [self.value(node.this, scope), self.value(node.expression, scope)]
        (a, b), kind = in_number_type(values, "a calculation")
        return DuckValue(f"({a} {sign} {b})", kind)

    def _divided(self, node: exp.Div, scope: _Scope) -> DuckValue:
        left, right = self.value(node.this, scope), self.value(node.expression, scope)
        kinds = {left.kind, right.kind}
        if not kinds <= {*NUMBER_KINDS, "decimal"} or ("decimal" in kinds and "double" not in kinds):
            not_the_same("a division of these")
        return DuckValue(f"divided({as_double(left)}, {as_double(right)})", "double")

    def _modulo(self, node: exp.Mod, scope: _Scope) -> DuckValue:
        (a, b), kind = in_number_type([self.value(node.this, scope), self.value(node.expression, scope)], "%")
        if kind == "double":
            not_the_same("% of fractional numbers")
        return DuckValue(f"modulo({a}, {b})", kind)

    def _negative(self, node: exp.Neg, scope: _Scope) -> DuckValue:
        value = self.value(node.this, scope)
        if value.kind not in ("int", "bigint", "double") and value.constant is None:
            not_the_same(f"- before a {value.kind}")
        if value.kind == "string":
            not_the_same("- before a text")
        return replace(value, sql=f"(-{value.sql})", constant=value.constant and f"-{value.constant}")

    def _joined(self, node: exp.DPipe, scope: _Scope) -> DuckValue:
        return put_together([self.value(node.this, scope), self.value(node.expression, scope)])

    def _case(self, node: exp.Case, scope: _Scope) -> DuckValue:
        subject = None if node.this is None else self.value(node.this, scope)
        conditions = []
        for each in node.args["ifs"]:
            if subject is None:
                conditions.append(self._boolean(each.this, scope).sql)
            else:
                a, b = as_compared(subject, self.value(each.this, scope))
                conditions.append(f"{a} = {b}")
        values = [self.value(each.args["true"], scope) for each in node.args["ifs"]]
        default = node.args.get("default")
        values.append(DuckValue("NULL", "null") if default is None else self.value(default, scope))
        texts, kind = in_common_type(values, "CASE")
        whens = " ".join(f"WHEN {when} THEN {then}" for when, then in zip(conditions, texts, strict=False))
        return DuckValue(f"(CASE {whens} ELSE {texts[-1]} END)", kind)

    def _cast(self, node: exp.Cast, scope: _Scope) -> DuckValue:
        to = node.args["to"]
        name = {"INT": "int", "BIGINT": "bigint", "DOUBLE": "double", "TEXT": "string", "VARCHAR": "string"}
        name |= {"DATE": "date", "TIMESTAMP": "timestamp", "TIMESTAMPTZ": "timestamp"}
        kind = None if to.expressions else name.get(to.this.name)
        if kind is None:
            not_the_same("a cast to this type")
        return converted(self.value(node.this, scope), kind)

    def _window(self, node: exp.Window, scope: _Scope) -> DuckValue:
        if node.args.get("alias") or node.args.get("first"):
            not_the_same("a named window")
        value = self._function(node.this, scope, windowed=True)
        parts = []
        if keys := node.args.get("partition_by"):
            parts.append("PARTITION BY " + ", ".join(self.value(key, scope).sql for key in keys))
        if (order := node.args.get("order")) is not None:
            terms = [self.value(each.this, scope).sql + _direction(each) for each in order.expressions]
            parts.append("ORDER BY " + ", ".join(terms))
        if (spec := node.args.get("spec")) is not None:
            ends = [f"{spec.args.get(end)} {spec.args.get(f'{end}_side') or ''}".strip() for end in ("start", "end")]
            usual = {"UNBOUNDED PRECEDING", "CURRENT ROW", "UNBOUNDED FOLLOWING"}
            if spec.args.get("kind") not in ("ROWS", "RANGE") or not set(ends) <= usual:
                not_the_same("a window of these bounds")
            parts.append(f"{spec.args['kind']} BETWEEN {ends[0]} AND {ends[1]}")
        return DuckValue(_beside(value.sql, f" OVER ({' '.join(parts)})"), value.kind)

    def _filter(self, node: exp.Filter, scope: _Scope) -> DuckValue:
        name = node.this.name.lower() if isinstance(node.this, exp.Anonymous) else ""
        if name not in AGGREGATES or name == "count_if":
            not_the_same("FILTER of this")
        value = self._function(node.this, scope)
        condition = self._boolean(node.expression.this, scope).sql
        return replace(value, sql=_beside(value.sql, f" FILTER (WHERE {condition})"))

    def _function(self, node: exp.Expr, scope: _Scope, windowed: bool = False) -> DuckValue:
        if not isinstance(node, exp.Anonymous):
            not_the_same("a window of this")
        name = node.this.lower()
        if name in AGGREGATES:
            return self._aggregate(name, node.expressions, scope)
        write = (WINDOW_FUNCTIONS if windowed else FUNCTIONS).get(name)
        if write is None:
            not_the_same(f"function {name}")
        return write([self.value(each, scope) for each in node.expressions])

    def _aggregate(self, name: str, arguments: Sequence[exp.Expr], scope: _Scope) -> DuckValue:
        if name == "count" and len(arguments) == 1 and isinstance(arguments[0], exp.Star):
            return DuckValue("count(*)", "bigint")
        distinct = ""
        if len(arguments) == 1 and isinstance(arguments[0], exp.Distinct):
            distinct, arguments = "DISTINCT ", arguments[0].expressions
        if len(arguments) != 1:
            not_the_same(f"{name} of several values")
        return AGGREGATES[name](self.value(arguments[0], scope), distinct)


def _beside(aggregate: str, more: str) -> str:
    """An aggregate with FILTER or OVER, which stand within the cast of its sum."""
    if not aggregate.startswith("CAST("):
        return aggregate + more
    inner, _, kind = aggregate.removeprefix("CAST(").rpartition(" AS ")
    return f"CAST({inner}{more} AS {kind}"


def _spark_name(node: exp.Expr) -> str:
    """What Spark calls an aggregate of a plain column that has no name of its own."""
    name = node.this.lower() if isinstance(node, exp.Anonymous) else ""
    if name in ("count", "sum", "avg", "min", "max") and len(node.expressions) == 1:
        of = node.expressions[0]
        if isinstance(of, exp.Star):
            return "count(1)"
        distinct = "DISTINCT " if isinstance(of, exp.Distinct) else ""
        of = of.expressions[0] if distinct and len(of.expressions) == 1 else of
        if isinstance(of, exp.Column) and len(of.parts) == 1 and re.fullmatch(r"[a-z_]\w*", of.name, re.A):
            return f"{name}({distinct}{of.name})"
    return _NAMELESS


def _renamed(rows: _Rows, heads: Sequence[str]) -> _Rows:
    if not heads:
        return rows
    if len(heads) != len(rows.columns):
        not_the_same("an alias with other names of columns")
    return replace(rows, columns=tuple(zip(heads, (kind for _, kind in rows.columns), strict=True)))


def _ordinal(node: exp.Expr, n: int) -> int | None:
    if not (isinstance(node, exp.Literal) and not node.is_string):
        return None
    if not re.fullmatch(r"\d{1,4}", node.this) or not 1 <= int(node.this) <= n:
        not_the_same(f"position {node.this}")
    return int(node.this) - 1


def _direction(node: exp.Expr) -> str:
    if not isinstance(node, exp.Ordered):
        not_the_same("an order of this form")
    down, first = node.args.get("desc"), node.args.get("nulls_first")
    return f" {'DESC' if down else 'ASC'} NULLS {'FIRST' if first else 'LAST'}"


def _name_before(name: str, known: set[str]) -> str | None:
    """The name of a renamed column in a table of the last release, if it is among the known ones."""
    try:
        from uplift_spark.lake.schemas import OTHER_NAMES
    except ImportError:  # without PySpark
        return None
    other = OTHER_NAMES.get(name)
    return other if other in known else None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.LT: "<",
    exp.LTE: "<=",
}
_COMPARISONS |= {exp.NullSafeEQ: "IS NOT DISTINCT FROM", exp.NullSafeNEQ: "IS DISTINCT FROM"}
_NODES: dict[type[exp.Expr], Callable[[_Writer, Any, _Scope], DuckValue]] = {
    **dict.fromkeys(_COMPARISONS, _Writer._comparison),
    **dict.fromkeys((exp.And, exp.Or), _Writer._connected),
    **dict.fromkeys((exp.Add, exp.Sub, exp.Mul), _Writer._calculated),
    exp.Anonymous: _Writer._function,
    exp.Between: _Writer._between,
    exp.Boolean: lambda writer, node, scope: DuckValue("true" if node.this else "false", "boolean"),
    exp.Case: _Writer._case,
    exp.Cast: _Writer._cast,
    exp.Column: _Writer._column,
    exp.DPipe: _Writer._joined,
    exp.Div: _Writer._divided,
    exp.Exists: _Writer._exists,
    exp.Filter: _Writer._filter,
    exp.In: _Writer._in,
    exp.Is: _Writer._is,
    exp.Like: _Writer._like,
    exp.Literal: _Writer._literal,
    exp.Mod: _Writer._modulo,
    exp.Neg: _Writer._negative,
    exp.Not: _Writer._not,
    exp.Null: lambda writer, node, scope: DuckValue("NULL", "null"),
    exp.Paren: lambda writer, node, scope: writer.value(node.this, scope),
    exp.Subquery: _Writer._scalar,
    exp.Window: _Writer._window,
}
