"""The gate of all SQL that users write: queries that only read, and expressions over a row's own columns.

Nothing of a text runs because nothing was said against it: every piece, every kind of node, every function and every
table must be one of those listed here, and what runs is what the checked tree says, not the text. So Spark never sees
a piece that this module has not read: comments, hints and odd characters do not get past, whatever Spark would make of
them. Without Spark; `sqlglot` parses.

Constants go around the parser, as Spark reads them: it sees a number in their place, so no digit and no escape changes.
A text whose tree does not say all of its pieces in their order is refused, see `_refuse_loss`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

from sqlglot import exp
from sqlglot.dialects.spark import Spark
from sqlglot.errors import ParseError, SqlglotError
from sqlglot.generators.spark import SparkGenerator
from sqlglot.parsers.spark import SparkParser
from sqlglot.tokens import Token, TokenType

from uplift_spark.errors import ConfigError, hint
from uplift_spark.gold_views import GOLD_VIEWS, view_query
from uplift_spark.roles import SCHEMAS

_MOST_CHARACTERS = 100_000

# --------------------------------------------------------------------------------------------------------------------
# Functions, by the names that Spark gives them. Whatever is not here is refused: functions that call Java, read files
# or the session, say who and where the process is, wait or fail on purpose, and those that users register.


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SCALARS = _words(
    """
    abs acos acosh asin asinh atan atan2 atanh bin bround cbrt ceil ceiling conv cos cosh cot csc degrees div e exp
    expm1 factorial floor greatest hypot least ln log log10 log1p log2 mod negative pi pmod positive pow power radians
    rint round sec sign signum sin sinh sqrt tan tanh try_add try_divide try_mod try_multiply try_subtract width_bucket
    bit_count bit_get getbit shiftleft shiftright shiftrightunsigned
    coalesce equal_null if ifnull isnan isnotnull isnull nanvl nullif nullifzero nvl nvl2 zeroifnull not
    bigint binary boolean date decimal double float int smallint string timestamp tinyint
    ascii base64 bit_length btrim char char_length character_length chr collate concat concat_ws contains decode elt
    encode endswith find_in_set format_number format_string hex initcap instr is_valid_utf8 lcase left len length
    levenshtein like ilike locate lower lpad ltrim luhn_check make_valid_utf8 mask octet_length overlay position printf
    quote regexp regexp_count regexp_extract regexp_extract_all regexp_instr regexp_like regexp_replace regexp_substr
    repeat replace reverse right rlike rpad rtrim sentences soundex space split split_part startswith substr substring
    substring_index to_char to_number to_varchar translate trim try_to_number ucase unbase64 unhex upper url_decode
    url_encode parse_url try_parse_url try_url_decode validate_utf8 try_validate_utf8 crc32 hash md5 sha sha1 sha2
    xxhash64 to_binary try_to_binary
    add_months convert_timezone date_add date_diff date_format date_from_unix_date date_part date_sub date_trunc
    dateadd datediff datepart day dayname dayofmonth dayofweek dayofyear from_unixtime from_utc_timestamp hour last_day
    make_date make_dt_interval make_interval make_timestamp make_timestamp_ltz make_timestamp_ntz make_ym_interval
    minute month monthname months_between next_day quarter second timestamp_micros timestamp_millis timestamp_seconds
    timestampadd timestampdiff to_date to_timestamp to_timestamp_ltz to_timestamp_ntz to_unix_timestamp
    to_utc_timestamp trunc try_make_interval try_make_timestamp try_make_timestamp_ltz try_make_timestamp_ntz
    try_to_date try_to_timestamp unix_date unix_micros unix_millis unix_seconds weekday weekofyear year extract
    aggregate array array_append array_compact array_contains array_distinct array_except array_insert array_intersect
    array_join array_max array_min array_position array_prepend array_remove array_repeat array_size array_sort
    array_union arrays_overlap arrays_zip cardinality element_at exists filter flatten forall get map map_concat
    map_contains_key map_entries map_filter map_from_arrays map_from_entries map_keys map_values map_zip_with
    named_struct reduce sequence size slice sort_array str_to_map struct transform transform_keys transform_values
    try_element_at zip_with
    from_csv from_json get_json_object json_array_length json_object_keys schema_of_csv schema_of_json to_csv to_json
    typeof
    """
)
_AGGREGATES = _words(
    """
    any any_value approx_count_distinct approx_percentile array_agg avg bit_and bit_or bit_xor bool_and bool_or
    collect_list collect_set corr count count_if covar_pop covar_samp every first first_value grouping grouping_id
    histogram_numeric kurtosis last last_value listagg max max_by mean median min min_by mode percentile
    percentile_approx percentile_cont percentile_disc product regr_avgx regr_avgy regr_count regr_intercept regr_r2
    regr_slope regr_sxx regr_sxy regr_syy skewness some std stddev stddev_pop stddev_samp string_agg sum try_avg
    try_sum var_pop var_samp variance
    cume_dist dense_rank lag lead nth_value ntile percent_rank rank row_number
    """
)
_CHANGING = _words(
    "curdate current_date current_timestamp now rand randn random shuffle unix_timestamp uniform uuid"
)  # another result at another time
_GENERATORS = _words("explode explode_outer inline inline_outer json_tuple posexplode posexplode_outer stack")
_TABLE_FUNCTIONS = _GENERATORS | {"range"}

_OF_UNITS = _words("date_add date_diff dateadd datediff timestampadd timestampdiff")  # datediff(day, a, b)

# Words that Spark takes for a function where no column has the name.
_IDENTITY_WORDS = _words("current_user session_user user current_catalog current_database current_schema")
_CLOCK_WORDS = _words("current_date current_time current_timestamp localtimestamp grouping__id")
_HIDDEN = "_metadata"  # of every table: the paths of its files

# --------------------------------------------------------------------------------------------------------------------
# Nodes, and the parts of each that may be there.

_BINARY = ("this", "expression")
_LIST = ("this", "expressions")
_VALUES: dict[type[exp.Expr], tuple[str, ...]] = {
    **{
        kind: _BINARY
        for kind in (
            *(exp.And, exp.Or, exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.NullSafeEQ, exp.Is),
            *(exp.Add, exp.Sub, exp.Mul, exp.Mod, exp.IntDiv, exp.BitwiseAnd, exp.BitwiseOr, exp.BitwiseXor),
            *(exp.NullSafeNEQ, exp.RegexpLike, exp.Escape, exp.Dot),
        )
    },
    exp.Alias: ("this", "alias"),
    exp.All: ("this",),
    exp.Anonymous: _LIST,
    exp.Any: ("this",),
    exp.Between: ("this", "low", "high"),
    exp.BitwiseNot: ("this",),
    exp.Boolean: ("this",),
    exp.Bracket: _LIST,
    exp.Case: ("this", "ifs", "default"),
    exp.Cast: ("this", "to"),
    exp.Collate: _BINARY,
    exp.Column: ("this", "table", "db", "catalog"),
    exp.ColumnDef: ("this", "kind"),
    exp.DPipe: (*_BINARY, "safe"),
    exp.DataType: (*_LIST, "nested"),
    exp.DataTypeParam: ("this",),
    exp.Div: (*_BINARY, "typed", "safe"),
    exp.Extract: _BINARY,
    exp.Identifier: ("this", "quoted"),
    exp.If: ("this", "true", "false"),
    exp.ILike: (*_BINARY, "negate"),
    exp.In: _LIST,
    exp.Interval: ("unit",),
    exp.IntervalSpan: _BINARY,
    exp.Lambda: ("this", "expressions"),
    exp.Like: (*_BINARY, "negate"),
    exp.Literal: ("this", "is_string"),
    exp.Neg: ("this",),
    exp.Not: ("this",),
    exp.Null: (),
    exp.Paren: ("this",),
    exp.TryCast: ("this", "to", "requires_string", "safe"),
    exp.Var: ("this",),
}
_QUERIES: dict[type[exp.Expr], tuple[str, ...]] = {
    exp.Aliases: _LIST,
    exp.CTE: ("this", "alias"),
    exp.Cube: ("expressions",),
    exp.CurrentDate: (),
    exp.CurrentTimestamp: (),
    exp.Distinct: ("expressions",),
    exp.Except: ("this", "expression", "distinct", "with_", "order", "limit", "offset"),
    exp.Exists: ("this",),
    exp.Filter: _BINARY,
    exp.From: ("this",),
    exp.Group: ("expressions", "cube", "rollup", "grouping_sets", "all"),
    exp.GroupingSets: ("expressions",),
    exp.Having: ("this",),
    exp.IgnoreNulls: ("this",),
    exp.In: ("this", "expressions", "query"),
    exp.Intersect: ("this", "expression", "distinct", "with_", "order", "limit", "offset"),
    exp.Join: ("this", "side", "kind", "on", "using", "method"),
    exp.Lateral: ("this", "view", "outer", "alias"),
    exp.Limit: ("expression",),
    exp.Offset: ("expression",),
    exp.Order: ("expressions",),
    exp.Ordered: ("this", "desc", "nulls_first"),
    exp.Pivot: ("fields", "expressions", "unpivot", "alias", "columns", "pivot_column_naming"),
    exp.PivotAlias: ("this", "alias"),
    exp.RespectNulls: ("this",),
    exp.Rollup: ("expressions",),
    exp.Select: (
        *("expressions", "distinct", "from_", "joins", "laterals", "where", "group", "having", "windows", "order"),
        *("limit", "offset", "with_", "qualify"),
    ),
    exp.Qualify: ("this",),
    exp.Star: ("except_",),
    exp.Subquery: ("this", "alias", "with_", "order", "limit", "offset", "joins"),
    exp.Table: ("this", "db", "catalog", "alias", "joins", "laterals", "version", "pivots"),
    exp.TableAlias: ("this", "columns"),
    exp.Tuple: ("expressions",),
    exp.Union: ("this", "expression", "distinct", "by_name", "with_", "order", "limit", "offset"),
    exp.Values: ("expressions", "alias"),
    exp.Version: ("this", "expression", "kind"),
    exp.Where: ("this",),
    exp.Window: ("this", "partition_by", "order", "spec", "over", "alias", "first"),
    exp.WindowSpec: ("kind", "start", "start_side", "end", "end_side"),
    exp.With: ("expressions", "recursive"),
    exp.WithinGroup: _BINARY,
}

# --------------------------------------------------------------------------------------------------------------------
# Pieces of a text, as Spark cuts it.

_UNITS = r"(?:YEAR|QUARTER|MONTH|WEEK|DAY|HOUR|MINUTE|SECOND|MILLISECOND|MICROSECOND)S?"
_PIECES = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
  | (?P<comment>--(?:\\\n|[^\r\n])* | /\*(?!\+)(?:(?!/\*|\*/).)*\*/)
  | (?P<bytes>X'[0-9a-f]*')
  | (?P<raw>R'[^']*' | R"[^"]*")
  | (?P<text>'(?:[^'\\]|\\.|'')*+' | "(?:[^"\\]|\\.|"")*+")
  | (?P<quoted>`(?:[^`]|``)++`)
  | (?P<number>(?:[0-9]++\.?+[0-9]*+|(?<![\w`)\]])\.[0-9]++)(?:e[+-]?[0-9]++)?+(?:BD|[LSYDF])?+(?![\w'"`]))
  | (?P<typed>(?:DATE|TIMESTAMP|TIMESTAMP_NTZ|TIMESTAMP_LTZ)(?=\s*['"]))
  | (?P<word>[a-z_][a-z0-9_]*+(?!['"]))
  | (?P<sign><=>|<=|>=|<>|!=|==|\|\||->|::|-(?!-)|/(?!\*)|[+*%=<>&|^~(),.:\[\]])
    """,
    re.X | re.S | re.I | re.A,
)
_SAME = {"==": "=", "!=": "<>", "MINUS": "EXCEPT", "INTEGER": "INT", "LONG": "BIGINT", "REAL": "FLOAT"}
_SAME |= {"SHORT": "SMALLINT", "BYTE": "TINYINT", "DEC": "DECIMAL", "NUMERIC": "DECIMAL"}
_UNSAID = frozenset({"AS", "INNER", "OUTER", "ASC", "NOT", "::", "CAST", "(", ")"})  # said otherwise, or not needed


@dataclass(frozen=True)
class _Piece:
    """A piece of a text: its kind, how it is written for Spark, and where it begins."""

    kind: str
    text: str
    start: int


class _Refusal(Exception):
    """What is wrong, and where in the text it begins."""

    def __init__(self, what: str, start: int | None = None) -> None:
        super().__init__(what)
        self.start = start


def _pieces(text: str) -> list[_Piece]:
    """Cut a text into pieces, constants as Spark reads them. Raises _Refusal for what is no piece."""
    if len(text) > _MOST_CHARACTERS:
        raise _Refusal(f"it has {len(text):,} characters, more than {_MOST_CHARACTERS:,}")
    if "${" in text:
        raise _Refusal("`${` is not allowed: Spark would put a variable in its place", text.index("${"))
    pieces: list[_Piece] = []
    place = 0
    while place < len(text):
        match = _PIECES.match(text, place)
        if match is None:
            raise _Refusal(_not_a_piece(text[place:]), place)
        kind = match.lastgroup or ""
        if kind not in ("space", "comment"):
            pieces.append(_Piece(kind, _written(kind, match.group(), place), place))
        place = match.end()
    return _joined(pieces)


def _not_a_piece(rest: str) -> str:
    if rest.startswith("/*+"):
        return "hints are not allowed"
    if rest.startswith(";"):
        return "only one statement is allowed"
    if rest.startswith("/*"):
        return "a comment does not end, or has another one within"
    if rest[0] in "'\"`":
        return f"the quote {rest[0]} is not closed"
    if rest[0].isdigit():
        return "this is no number: put a name that begins with a digit into backquotes"
    if rest[0].isalpha():
        return "a name with other letters than a to z must stand in backquotes"
    return f"the character {rest[0]!r} has no meaning here"


def _written(kind: str, text: str, start: int) -> str:
    """A piece as it is written for Spark; texts always between single quotes, whatever double ones mean there."""
    if kind in ("text", "raw"):
        inner = text[1:-1] if kind == "text" else text[2:-1].replace("\\", "\\\\")
        mark = text[0] if kind == "text" else ""
        parts = re.findall(r"\\.|''|\"\"|.", inner, re.S)
        return "'" + "".join(_escaped(part, mark) for part in parts) + "'"
    if kind == "quoted" and any(ord(letter) < 32 for letter in text):
        raise _Refusal("a name must not hold control characters", start)
    return text.upper() if kind in ("bytes", "typed") else text


def _escaped(part: str, mark: str) -> str:
    if part == "''":
        return "\\'" if mark == "'" else "\\'\\'"
    if part == '""':
        return '"' if mark == '"' else '""'
    return "\\'" if part == "'" else part


def _joined(pieces: list[_Piece]) -> list[_Piece]:
    """Dates, times and intervals with their texts as one constant. Raises _Refusal for texts side by side."""
    joined: list[_Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if last is not None and piece.kind in ("text", "raw"):
            if last.kind in ("text", "raw"):
                raise _Refusal("two texts side by side: write one, or concat", piece.start)
            if last.kind == "typed":
                joined[-1] = replace(last, kind="constant", text=f"{last.text} {piece.text}")
                continue
        joined.append(piece)
    whole: list[_Piece] = []
    while joined:
        if n := _interval(joined):
            text = " ".join(piece.text for piece in joined[:n]).replace("- ", "-")
            whole.append(_Piece("constant", text, joined[0].start))
            joined = joined[n:]
        else:
            whole.append(joined.pop(0))
    kinds = {"bytes": "constant", "number": "constant", "raw": "text"}
    return [replace(piece, kind=kinds.get(piece.kind, piece.kind)) for piece in whole]


def _interval(pieces: Sequence[_Piece]) -> int:
    """How many pieces at the beginning are a constant interval such as INTERVAL '1-2' YEAR TO MONTH."""
    if not (pieces and pieces[0].kind == "word" and pieces[0].text.upper() == "INTERVAL"):
        return 0
    n = 1
    while n < len(pieces):
        sign = int(pieces[n].text == "-")
        value = pieces[n + sign] if n + sign < len(pieces) else None
        if value is None or value.kind not in ("text", "number"):
            break
        n += sign + 1
        if n < len(pieces) and re.fullmatch(_UNITS, pieces[n].text, re.I):
            n += 1
            after = [piece.text for piece in pieces[n : n + 2]]
            if len(after) == 2 and after[0].upper() == "TO" and re.fullmatch(_UNITS, after[1], re.I):
                n += 2
        elif value.kind == "number":
            break
    return n if n > 1 else 0


# --------------------------------------------------------------------------------------------------------------------
# The tree of a text, and the text of a tree.


class _Parser(SparkParser):
    """Spark's grammar in which a function is its name and its arguments, and no more."""

    FUNCTIONS: ClassVar[dict[str, Any]] = {}
    FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {
        name: SparkParser.FUNCTION_PARSERS[name] for name in ("CAST", "TRY_CAST", "EXTRACT")
    }
    NO_PAREN_FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {
        name: SparkParser.NO_PAREN_FUNCTION_PARSERS[name] for name in ("CASE",)
    }
    ARRAY_CONSTRUCTORS: ClassVar[dict[str, Any]] = {}  # with them array(1, 2)[0] is read as array(0)
    STRICT_CAST = True
    JOINS_HAVE_EQUAL_PRECEDENCE = False
    ADD_JOIN_ON_TRUE = False

    def raise_error(self, message: str, token: Token | None = None) -> None:
        """Raise with the place, which the message of sqlglot has for its own text only."""
        token = token or self._curr or self._prev
        raise _Unparsed(message.partition(":")[0], token.start if token else 0)


class _Unparsed(ParseError):
    def __init__(self, message: str, start: int) -> None:
        super().__init__(message)
        self.start = start


class _Generator(SparkGenerator):
    """Writes every node as it was read."""

    TRANSFORMS: ClassVar[dict[Any, Any]] = {
        kind: SparkGenerator.TRANSFORMS[kind]
        for kind in (exp.RegexpLike, exp.IntDiv, exp.Union, exp.Except, exp.Intersect)
    }

    def not_sql(self, expression: exp.Not) -> str:
        """NOT before what it denies, but IS NOT NULL, which a column without an alias is called by."""
        if isinstance(expression.this, exp.Is):
            return f"{self.sql(expression.this, 'this')} IS NOT {self.sql(expression.this, 'expression')}"
        return str(super().not_sql(expression))

    def literal_sql(self, expression: exp.Literal) -> str:
        """A constant, as `_pieces` wrote it."""
        return str(expression.this)


class _Gate(Spark):
    Parser = _Parser
    Generator = _Generator


class _Tree:
    """The tree of a text, and where in the text its nodes begin."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self.pieces = pieces
        self._starts: list[tuple[int, int]] = []
        self.root = self._parsed()

    def _parsed(self) -> exp.Expr:
        text = ""
        constants: dict[TokenType, list[str]] = {TokenType.STRING: [], TokenType.NUMBER: []}
        for piece in self.pieces:
            self._starts.append((len(text), piece.start))
            if piece.kind in ("text", "constant"):
                kind = TokenType.STRING if piece.kind == "text" else TokenType.NUMBER
                constants[kind].append(piece.text)
                text += "'x' " if piece.kind == "text" else "1 "
            else:
                text += piece.text + " "
        gate = _Gate()
        try:
            tokens = gate.tokenize(text)
            for kind, mine in constants.items():
                known = [token for token in tokens if token.token_type == kind]
                if len(known) != len(mine):
                    raise _Refusal("it begins like no query", self.pieces[0].start)
                for token, constant in zip(known, mine, strict=True):
                    token.text = constant
            trees = gate.parser().parse(tokens, text)
        except _Unparsed as error:
            raise _Refusal(f"it cannot be read ({error})", self._place(error.start)) from error
        except SqlglotError as error:
            raise _Refusal("it cannot be read", None) from error
        except RecursionError as error:
            raise _Refusal("it is nested too deeply", None) from error
        if len(trees) != 1 or trees[0] is None:
            raise _Refusal("it must be one statement", None)
        return trees[0]

    def _place(self, start: int) -> int:
        return max(ours for theirs, ours in self._starts if theirs <= start)

    def refuse(self, node: exp.Expr, what: str) -> NoReturn:
        """Raise _Refusal with the place where a node begins, if any part of it has one."""
        places = [part.meta["start"] for part in node.walk() if "start" in part.meta]
        raise _Refusal(what, self._place(min(places)) if places else None)

    def put_in_views(self) -> None:
        """Have the query of each view of GOLD_VIEWS stand where its name does: no catalog need know the views."""
        for table in list(self.root.find_all(exp.Table)):
            name = table.name.lower()
            if name not in GOLD_VIEWS or table.db.lower() != "gold":
                continue
            if table.args.get("version"):
                self.refuse(table, f"{name} is a view, which has no versions: name its table")
            parts = {part: table.args.get(part) for part in ("joins", "laterals", "pivots")}
            alias = table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name))
            table.replace(exp.Subquery(this=_Tree(_pieces(view_query(name))).root, alias=alias, **parts))

    def text(self, catalog: str | None = None) -> str:
        """What the tree says, every name in backquotes, where Spark can take it for nothing else.

        Raises _Refusal unless the tree says all pieces in their order; then tables get their catalog.
        """
        text = self.root.sql(dialect=_Gate, comments=False, normalize_functions=False)
        said, read = _essence(_pieces(text)), _essence(self.pieces)
        differ = [start for (mine, _), (theirs, start) in zip(said, read, strict=False) if mine != theirs]
        if differ or len(said) != len(read):
            raise _Refusal("it cannot be passed on as it stands: write it more plainly", [*differ, read[-1][1]][0])
        self.put_in_views()
        for table in self.root.find_all(exp.Table) if catalog else ():
            if len(table.parts) == 2:
                table.set("catalog", exp.to_identifier(catalog))
        return self.root.sql(dialect=_Gate, comments=False, normalize_functions=False, identify=True)


def _essence(pieces: Sequence[_Piece]) -> list[tuple[str, int]]:
    """Pieces that carry the meaning, and where each begins; the last is how often NOT is said."""
    words = [piece.text.upper() if piece.kind in ("word", "sign") else piece.text for piece in pieces]
    words = [_SAME.get(word, word) for word in words]
    kept: list[tuple[str, int]] = []
    denied = 0
    for number, (word, piece) in enumerate(zip(words, pieces, strict=True)):
        last = words[number - 1] if number else ""
        ordered = word == "NULLS" and words[number + 1 : number + 2] == ["LAST" if last == "DESC" else "FIRST"]
        ends = number > 1 and last == "NULLS" and word == ("LAST" if words[number - 2] == "DESC" else "FIRST")
        denied += word in ("NOT", "<=>")
        if word in _UNSAID or ordered or ends or (word == "ALL" and last == "SELECT"):
            continue
        if word == "<=>":
            kept += [(each, piece.start) for each in ("IS", "DISTINCT", "FROM")]
        else:
            kept.append((word, piece.start))
    return [*kept, (f"{denied} denied", pieces[-1].start if pieces else 0)]


# --------------------------------------------------------------------------------------------------------------------
# What a tree may hold.


class _Check:
    """Walks a tree and refuses what is not listed."""

    def __init__(self, tree: _Tree, functions: frozenset[str], catalog: str | None = None) -> None:
        self.tree = tree
        self.functions = functions
        self.catalog = catalog

    def nodes(self, kinds: Mapping[type[exp.Expr], tuple[str, ...]]) -> None:
        """Refuse nodes, and parts of nodes, that are not among `kinds`; functions and types that are not listed."""
        for node in list(self.tree.root.walk()):
            parts = kinds.get(type(node))
            if parts is None:
                self.tree.refuse(node, f"{_in_words(node)} is not allowed")
            for part, value in node.args.items():
                if value and part not in parts:
                    self.tree.refuse(node, f"{_in_words(node)} with {part.strip('_')} is not allowed")
                plain = isinstance(node, exp.Literal | exp.Identifier) or not isinstance(value, str)
                if not plain and not re.fullmatch(r"[\w ]*", value, re.A):
                    self.tree.refuse(node, f"{_in_words(node)} is not allowed")
            if isinstance(node, exp.Anonymous):
                self._function(node)
            if isinstance(node, exp.Dot) and not isinstance(node.expression, exp.Identifier):
                self.tree.refuse(node, "a function of a schema is not allowed")
            if isinstance(node, exp.DataType) and node.this == exp.DType.USERDEFINED:
                self.tree.refuse(node, "this type is not allowed")

    def _function(self, node: exp.Anonymous) -> None:
        name = node.this
        if not isinstance(name, str):
            self.tree.refuse(node, "a function's name must not stand in backquotes")
        if name.lower() not in self.functions:
            self.tree.refuse(node, f"function {name.lower()} is not allowed")
        unit = node.expressions[0] if name.lower() in _OF_UNITS and len(node.expressions) == 3 else None
        if isinstance(unit, exp.Column) and re.fullmatch(_UNITS, unit.name, re.I):
            unit.replace(exp.var(unit.name))

    def columns(self, words: frozenset[str], known: Collection[str] | None) -> None:
        """Refuse columns that are none of the `known` ones (None: any), and `words` that Spark takes for functions."""
        names = {name.lower() for name in known or ()}
        for node in self.tree.root.find_all(exp.Column):
            first, *rest = [part.name.lower() for part in node.parts]
            if first in names:
                continue
            if known is not None and not (isinstance(node.this, exp.Star)):
                self.tree.refuse(node, f"there is no column {node.parts[0].name!r}, {hint(node.parts[0].name, known)}")
            if _HIDDEN in (first, *rest):
                self.tree.refuse(node, f"{_HIDDEN} is not allowed")
            if first in words and not rest:
                self.tree.refuse(node, f"{first} is not allowed: for a column write its table's name before it")

    def tables(self) -> None:
        """Refuse tables that are none of the lakehouse, and no table functions that are listed."""
        for node in self.tree.root.find_all(exp.Table):
            if isinstance(node.this, exp.Anonymous):
                if node.this.name.lower() not in _TABLE_FUNCTIONS or node.args.get("db"):
                    self.tree.refuse(node, f"function {node.this.name.lower()} is no table")
                continue
            parts = [part.name for part in node.parts]
            if len(parts) == 1 and parts[0].lower() in _with_names(node):
                continue
            if not _is_table(parts, self.catalog):
                self.tree.refuse(node, _NO_TABLE.format(".".join(parts)))
            if (version := node.args.get("version")) and not isinstance(version.expression, exp.Literal):
                self.tree.refuse(node, "the version must be a number or a time")


def _with_names(table: exp.Table) -> set[str]:
    """Names that WITH gives to queries where the table stands."""
    names: set[str] = set()
    node: exp.Expr = table
    while (parent := node.parent) is not None:
        if isinstance(parent, exp.With):
            earlier = parent.expressions[: parent.expressions.index(node) + bool(parent.recursive)]
            names |= {query.alias.lower() for query in earlier}
        elif (own := parent.args.get("with_")) is not None and own is not node:
            names |= {query.alias.lower() for query in own.expressions}
        node = parent
    return names


_NO_TABLE = "{} is no table of the lakehouse: name one such as gold.lift_table, `uplift tables` lists them"


def _is_table(parts: Sequence[str], catalog: str | None) -> bool:
    """Whether the parts are a plain name of a table of the lakehouse, with or without its catalog."""
    known = (catalog or "spark_catalog").lower()
    plain = all(re.fullmatch(r"\w+", part, re.A) for part in parts)
    mine = len(parts) == 2 or (len(parts) == 3 and parts[0].lower() == known)
    return plain and mine and parts[-2].lower() in SCHEMAS


def _in_words(node: exp.Expr) -> str:
    if isinstance(node, exp.Placeholder | exp.JSONExtract):
        return "a colon outside of a type"
    return " ".join(re.findall("[A-Z]+[a-z]*", type(node).__name__)).lower()


# --------------------------------------------------------------------------------------------------------------------
# The two doors.


def checked_query(query: str, catalog: str | None = None) -> str:
    """Check that a query only reads tables of the lakehouse.

    Args:
        query: SELECT, WITH or VALUES, or one of DESCRIBE, SHOW and EXPLAIN over the same.
        catalog: Of the lakehouse; None for one in a folder.

    Returns:
        The query to run in its place, which holds nothing that was not checked.

    Raises:
        ConfigError: It does something else, or cannot be read; with the place.
    """
    try:
        return _query(_pieces(re.sub(r"\s*;\s*\Z", "", query)), catalog)
    except _Refusal as refusal:
        raise ConfigError(f"uplift sql only reads: {_sentence(refusal, query)}") from refusal


def _query(pieces: list[_Piece], catalog: str | None) -> str:
    words = [piece.text.upper() for piece in pieces]
    first = next((word for word in words if word != "("), "")
    if first == "EXPLAIN" and words[0] == first:
        detail = words[1:2] if words[1:2] and words[1] in ("EXTENDED", "FORMATTED", "COST", "CODEGEN") else []
        return " ".join([first, *detail, _query(pieces[1 + len(detail) :], catalog)])
    if first in ("DESCRIBE", "DESC", "SHOW") and words[0] == first:
        return _described(pieces, catalog)
    if first not in ("SELECT", "WITH", "VALUES"):
        raise _Refusal("start the query with SELECT or WITH, DESCRIBE, SHOW, EXPLAIN")
    return _selecting(pieces, catalog).text(catalog)


def _selecting(pieces: list[_Piece], catalog: str | None) -> _Tree:
    tree = _Tree(pieces)
    check = _Check(tree, _SCALARS | _AGGREGATES | _CHANGING | _TABLE_FUNCTIONS, catalog)
    check.nodes(_VALUES | _QUERIES)
    check.columns(_IDENTITY_WORDS, None)
    check.tables()
    return tree


def checked_tree(query: str) -> exp.Expr | None:
    """Check a query over a folder's tables like `checked_query`; for engines that write it anew.

    Args:
        query: As `checked_query` takes it.

    Returns:
        Its tree, in which every function is a name with its arguments and every constant is as Spark's SQL writes it;
        None for DESCRIBE, SHOW and EXPLAIN.

    Raises:
        ConfigError: As `checked_query`.
    """
    checked_query(query)
    pieces = _pieces(re.sub(r"\s*;\s*\Z", "", query))
    first = next((piece.text.upper() for piece in pieces if piece.text != "("), "")
    if first not in ("SELECT", "WITH", "VALUES"):
        return None
    tree = _selecting(pieces, None)
    tree.put_in_views()
    return tree.root


_TABLE_PARTS = r"(`?\w+`?(?: \. `?\w+`?)+)"
_OF_TABLE = re.compile(
    rf"(DESC(?:RIBE)?(?: TABLE)?(?: EXTENDED| FORMATTED| DETAIL)?) {_TABLE_PARTS}"
    rf"|(DESC(?:RIBE)? HISTORY) {_TABLE_PARTS}( LIMIT \d+)?"
    rf"|(SHOW COLUMNS (?:IN|FROM)) {_TABLE_PARTS}",
    re.I | re.A,
)
_LISTS = re.compile(rf"SHOW (?:SCHEMAS|DATABASES)|SHOW TABLES (?:IN|FROM) (?:{'|'.join(SCHEMAS)})", re.I | re.A)


def _described(pieces: list[_Piece], catalog: str | None) -> str:
    """DESCRIBE of a table; SHOW of tables, schemas and columns."""
    text = " ".join(piece.text for piece in pieces)
    if match := _OF_TABLE.fullmatch(text):
        verb, table, *rest = (part for part in match.groups() if part)
        parts = table.replace("`", "").split(" . ")
        if not _is_table(parts, catalog):
            raise _Refusal(_NO_TABLE.format(".".join(parts)), pieces[-1].start)
        return "".join([verb, " ", ".".join(f"`{part}`" for part in _in_catalog(parts, catalog)), *rest])
    if _LISTS.fullmatch(text):
        return text
    raise _Refusal(
        "of what is known about tables it shows DESCRIBE [HISTORY or DETAIL] TABLE, SHOW COLUMNS IN TABLE, "
        "SHOW TABLES IN SCHEMA and SHOW SCHEMAS"
    )


def _in_catalog(parts: list[str], catalog: str | None) -> list[str]:
    return [catalog, *parts] if catalog and len(parts) == 2 else parts


def checked_expression(key: str, text: str, columns: Collection[str] | None = None) -> str:
    """Check that SQL is an expression over the columns of one row, with the same result whenever it is computed.

    Args:
        key: Where it stands, as in `policy.exclude.minors`, for the message.
        text: The SQL.
        columns: Names of the row's columns; None: they are not known yet.

    Returns:
        The expression to use in its place, which holds nothing that was not checked.

    Raises:
        ConfigError: It is something else, or cannot be read; with the key and the place.
    """
    try:
        pieces = _pieces(text)
        if not pieces:
            raise _Refusal("it is empty")
        tree = _Tree([_Piece("sign", "(", 0), *pieces, _Piece("sign", ")", len(text))])
        if not isinstance(tree.root, exp.Paren):
            raise _Refusal("it must be one expression")
        check = _Check(tree, _SCALARS)
        check.nodes(_VALUES)
        for name in tree.root.find_all(exp.Alias):
            if not isinstance(name.parent, exp.Anonymous):  # struct(age AS years)
                tree.refuse(name, "it must not name its result")
        check.columns(_IDENTITY_WORDS | _CLOCK_WORDS, columns)
        return tree.text()[1:-1]
    except _Refusal as refusal:
        shown = text if len(text) <= 200 else text[:200] + "..."
        raise ConfigError(
            f"{key}={shown!r} must be an expression over the row's own columns: {_sentence(refusal, text)}"
        ) from refusal


def _sentence(refusal: _Refusal, text: str) -> str:
    if refusal.start is None or refusal.start >= len(text):
        return str(refusal)
    part = text[refusal.start : refusal.start + 40]
    return f"at character {refusal.start + 1}, {part!r}: {refusal}"
