"""What differs between versions of Spark, without a session; and what works where Spark is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_type

from uplift_spark.forest.spark import kept
from uplift_spark.lake.session import planned_for_few_rows
from uplift_spark.spark_versions import (
    arrow_type,
    batches_to_bytes,
    bytes_to_batches,
    cut_groups,
    delta_artefact,
    few_rows,
    held,
    local_frame,
    mapped,
    mapped_frame,
    spark_type,
    try_settings,
)

ROOT = Path(__file__).resolve().parents[1]

# Installed packages but Spark's: an import of these fails as where they are not installed.
WITHOUT_SPARK = "import sys\nfor name in ('pyspark', 'py4j', 'delta'):\n    sys.modules[name] = None\n"


@pytest.mark.parametrize(
    ("spark", "delta", "artefact"),
    [
        ("3.5", "3.3.2", "io.delta:delta-spark_2.12:3.3.2"),
        ("4.0", "4.0.1", "io.delta:delta-spark_2.13:4.0.1"),
        ("4.0", "4.1.0", "io.delta:delta-spark_4.0_2.13:4.1.0"),
        ("4.1", "4.1.0", "io.delta:delta-spark_4.1_2.13:4.1.0"),
        ("4.1", "4.4.0", "io.delta:delta-spark_4.1_2.13:4.4.0"),
        ("4.2", "4.4.0", "io.delta:delta-spark_4.2_2.13:4.4.0"),
    ],
)
def test_delta_artefacts_are_those_that_are_published(spark: str, delta: str, artefact: str) -> None:
    assert delta_artefact(spark, delta) == artefact


KINDS = [
    *(T.BooleanType(), T.ByteType(), T.ShortType(), T.IntegerType(), T.LongType(), T.FloatType(), T.DoubleType()),
    *(T.StringType(), T.BinaryType(), T.DateType(), T.TimestampType(), T.TimestampNTZType(), T.NullType()),
    T.DecimalType(20, 3),
    T.ArrayType(T.StructType([T.StructField("a", T.LongType(), False)]), False),
    T.MapType(T.StringType(), T.ArrayType(T.TimestampType())),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.simpleString())
def test_types_are_those_of_spark_and_go_back(kind: T.DataType) -> None:
    try:
        theirs = to_arrow_type(kind, timezone="UTC")
    except TypeError:  # 4.0 and 3.5 take no zone, and give that of the session
        theirs = to_arrow_type(kind) if "timestamp'" not in str(kind.jsonValue()) else arrow_type(kind)
    assert arrow_type(kind) == theirs
    assert spark_type(arrow_type(kind)) == kind


def test_what_spark_has_no_type_for_is_refused_and_intervals_fit_no_role() -> None:
    with pytest.raises(TypeError, match="uint64 has no type of Spark"):
        spark_type(pa.uint64())
    assert arrow_type(T.DayTimeIntervalType()) == pa.struct([])


def total(start: int, group: pa.Table) -> pa.Table:
    return pa.table(
        {"key": group.column("key")[:1], "n": [start + group.num_rows], "sum": [sum(group["x"].to_pylist())]}
    )


def test_groups_are_cut_at_their_keys_across_batches() -> None:
    table = pa.table({"key": [None, None, 1, 1, 1, 2], "part": [0, 0, 0, 0, 1, 1], "x": [1, 2, 3, 4, 5, 6]})
    for size in range(1, 7):
        cut = pa.Table.from_batches(cut_groups(total, (10,), ("key", "part"), iter(table.to_batches(size))))
        assert cut.to_pylist() == [
            {"key": None, "n": 12, "sum": 3},
            {"key": 1, "n": 12, "sum": 7},
            {"key": 1, "n": 11, "sum": 5},
            {"key": 2, "n": 11, "sum": 6},
        ]
    assert not list(cut_groups(total, (10,), ("key",), iter([table.to_batches()[0].slice(0, 0)])))


def test_arrow_tables_travel_as_bytes_without_a_changed_value() -> None:
    table = pa.table(
        {
            "whole": pa.array([2**60 + 1, None], pa.int64()),
            "number": pa.array([np.nan, None], pa.float64(), from_pandas=False),
            "bytes": [b"\x00\xff", None],
        }
    )
    messages = batches_to_bytes(iter(table.to_batches(1)))
    back = pa.Table.from_batches(bytes_to_batches(table.schema, messages))
    assert str(back.to_pylist()) == str(table.to_pylist())


class Picky:
    """A session whose configuration takes one setting alone."""

    def __init__(self) -> None:
        self.conf = self
        self.values: dict[str, str] = {}

    def set(self, key: str, value: str) -> None:
        if key != "spark.sql.session.timeZone":
            raise RuntimeError(f"[CONFIG_NOT_AVAILABLE] Configuration {key} is not available.\nmore")
        self.values[key] = value


def test_refused_settings_are_skipped_and_reported() -> None:
    session = Picky()
    refused = try_settings(session, {"spark.a": "1", "spark.sql.session.timeZone": "UTC"})  # type: ignore[arg-type]
    assert refused == {"spark.a": "[CONFIG_NOT_AVAILABLE] Configuration spark.a is not available."}
    assert session.values == {"spark.sql.session.timeZone": "UTC"}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_SPARK + code], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False
    )


@pytest.mark.slow
def test_pandas_estimators_work_without_spark() -> None:
    code = """
import numpy as np, pandas as pd
from uplift_spark import CausalForest, MetaLearner, Roles
rng = np.random.default_rng(7)
offered = rng.integers(0, 2, 600)
frame = pd.DataFrame({"unit": range(600), "arm": np.where(offered, "mail", "none"), "age": rng.integers(18, 80, 600)})
frame["spend"] = offered * (frame["age"] < 40) + rng.normal(size=600)
roles = Roles("unit", "arm", "spend", ("age",), control="none")
for model in (CausalForest(n_trees=8, seed=7), MetaLearner("x_learner", 2)):
    print(len(model.fit(frame, roles).effect(frame)))
"""
    process = run(code)
    assert process.returncode == 0, process.stderr
    assert process.stdout.split() == ["600", "600"]


def test_a_verb_without_spark_says_what_to_install() -> None:
    process = run(
        "sys.argv = ['uplift', 'train', '--conf', 'conf/demo.yaml']\nfrom uplift_spark.cli import main\nmain()"
    )
    assert process.returncode == 1
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert "pip install 'uplift-spark[local]'" in process.stderr


def test_a_campaign_without_spark_says_what_to_install() -> None:
    process = run(
        "import uplift_spark\ntry:\n    uplift_spark.Campaign\nexcept Exception as error:\n    print(repr(error))"
    )
    assert process.stdout.startswith('EnvironmentProblem("Campaign: ')
    assert "pip install 'uplift-spark[local]'" in process.stdout


class Rows:
    """A frame that knows its rows alone."""

    def __init__(self, table: pa.Table) -> None:
        self.parts = [table]

    def unionAll(self, other: Rows) -> Rows:
        whole = Rows(self.parts[0])
        whole.parts = [*self.parts, *other.parts]
        return whole


class Session:
    """Serverless compute: refuses local rows beyond a size."""

    def __init__(self, most: int) -> None:
        self.most = most

    def createDataFrame(self, table: pa.Table) -> Rows:
        assert table.nbytes <= self.most or len(table) == 1
        return Rows(table)


@pytest.mark.parametrize("most", [1, 100, 4_096, 10**9])
def test_local_rows_beyond_a_size_go_in_parts_and_none_is_lost(most: int) -> None:
    words = ["x" * (5_000 if i < 3 else i % 7) for i in range(400)]
    rows = pa.table({"n": np.arange(400), "words": words})
    frame = local_frame(Session(most), rows, most)  # type: ignore[arg-type]
    assert pa.concat_tables(frame.parts) == rows  # type: ignore[attr-defined]
    assert (len(frame.parts) == 1) == (most == 10**9)  # type: ignore[attr-defined]
    empty = local_frame(Session(most), rows.slice(0, 0), most)  # type: ignore[arg-type]
    assert len(empty.parts) == 1  # type: ignore[attr-defined]


EMPTY_PIECES = [(0, 0, 2, 2), (2, 0, 2), (1, 0, 3), (0, 2), (2, 0), (0,)]


def in_pieces(sizes: tuple[int, ...]) -> pa.Table:
    return pa.concat_tables([pa.table({"n": pa.array(range(size), pa.int64())}) for size in sizes])


@pytest.mark.parametrize("sizes", EMPTY_PIECES)
def test_local_rows_go_to_spark_without_empty_pieces(sizes: tuple[int, ...]) -> None:
    rows = in_pieces(sizes)
    frame = local_frame(Session(10**9), rows)  # type: ignore[arg-type]
    (part,) = frame.parts  # type: ignore[attr-defined]
    assert all(len(batch) for batch in part.to_batches()) and part["n"].to_pylist() == rows["n"].to_pylist()


def test_no_row_behind_a_file_without_rows_is_lost(spark: SparkSession) -> None:
    assert [local_frame(spark, in_pieces(sizes)).count() for sizes in EMPTY_PIECES] == [4, 4, 4, 2, 2, 0]


def test_where_nothing_can_be_kept_every_pass_reads_anew() -> None:
    class Refusing:
        def persist(self, level: object) -> None:
            raise PySparkException("[NOT_SUPPORTED_WITH_SERVERLESS] PERSIST TABLE is not supported")

    rows = Refusing()
    with kept(rows) as same:  # type: ignore[arg-type]
        assert same is rows


def doubled(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Lists of each row's number and twice it."""
    for batch in batches:
        pairs = [[float(one), 2.0 * one] for one in batch.column("id").to_pylist()]
        yield pa.record_batch({"id": batch.column("id"), "pair": pa.array(pairs, pa.list_(pa.float64()))})


def where_it_runs(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The process that does the work, a row for each partition."""
    rows = sum(map(len, batches))
    yield pa.record_batch({"process": [os.getpid()], "rows": [rows]})


def test_few_rows_are_mapped_here_and_many_by_spark(spark: SparkSession) -> None:
    frame, columns = spark.range(0, 10, 1, 2), "id bigint, pair array<double>"
    assert not few_rows(spark) and held(frame) is frame
    many = mapped(frame, where_it_runs, "process bigint, rows bigint").to_pylist()
    assert sum(one["rows"] for one in many) == 10 and os.getpid() not in {one["process"] for one in many}
    spread = mapped_frame(frame, doubled, columns)
    with planned_for_few_rows(spark):
        assert few_rows(spark) and held(frame).num_rows == 10
        for rows in (frame, held(frame)):
            assert mapped(rows, where_it_runs, "").to_pylist() == [{"process": os.getpid(), "rows": 10}]
        here = mapped_frame(frame, doubled, columns)
        assert here.schema == spread.schema
        empty = frame.where("id < 0")
        for rows in (empty, held(empty)):
            assert mapped(rows, doubled, columns).schema.names == ["id", "pair"]
        none = mapped_frame(empty, doubled, columns)
        assert none.schema == spread.schema and none.count() == 0
        assert mapped(empty, where_it_runs, "").to_pylist() == [{"process": os.getpid(), "rows": 0}]
    assert not few_rows(spark)
    assert sorted(here.collect()) == sorted(spread.collect())


def test_a_session_elsewhere_is_never_asked_whether_rows_are_few() -> None:
    class Session:
        """A session of Connect to any server."""

    Session.__module__ = "pyspark.sql.connect.session"
    assert not few_rows(Session())  # type: ignore[arg-type]
