"""The rules of the house, enforced: who may import whom, what no module may touch, how long things may be, which words.

Each rule is a function from a module's source to the sentences it breaks; each has a test that makes it fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import uplift_spark
from tests.house import Module, banned_words, importers, modules, repeated_names
from uplift_spark.config import Config

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "uplift_spark"

# The ground, from the bottom to the top: each part imports only from those before it.
GROUND = (
    *("errors", "roles", "runtime", "spark_versions", "gold_views", "sql_gate"),
    *("sections", "config"),
    *("stats", "forest", "learners", "evaluation", "estimators"),
)
# Rooms above the ground, and the other rooms each may import. What jobs read and write, they read and write in rooms.
ROOMS: dict[str, set[str]] = {
    "lake": set(),
    "registry": {"lake", "monitoring"},
    "events": {"lake", "governance"},
    "policy": {"lake", "registry", "campaign", "governance"},
    "governance": {"lake", "registry"},
    "experiments": {"lake", "campaign", "events", "governance"},
    "serving": {"experiments"},
    "monitoring": set(),
    "dashboards": {"monitoring", "policy"},
    "campaign": {"lake", "registry", "events", "policy", "jobs"},  # jobs when `Campaign.run` is called
    "console": {"campaign", "lake", "governance"},
    "gamedays": {"campaign", "lake", "registry", "events", "monitoring", "governance", "jobs"},  # it plays the jobs
    "jobs": {
        *("lake", "registry", "events", "policy", "experiments", "monitoring", "governance", "serving"),
        *("campaign", "console", "dashboards", "gamedays"),
    },
    "cli": {"campaign", "console", "events", "lake", "jobs"},
}
# These rooms map frames and sections to frames and sums; tables are read and written elsewhere.
FRAMES_ONLY = {
    *("stats", "forest", "learners", "estimators", "evaluation", "policy", "experiments", "monitoring", "dashboards"),
}
# Modules that may import pyspark when they are imported; estimators do it when a caller gives them a Spark frame.
SPARK_ROOMS = {"lake", "events", "evaluation", "policy", "registry", "governance", "campaign", "jobs", "console"}
# MLServer imports it, in an environment of its own.
OTHER_ENVIRONMENT = {"uplift_spark.serving.inference"}
SPARK_EDGES = {
    "uplift_spark.spark_versions",
    "uplift_spark.forest.spark",
    "uplift_spark.learners.spark",
    "uplift_spark.experiments.spark",
    "uplift_spark.monitoring.spark",
    "uplift_spark.experiments.protocol",
    "uplift_spark.experiments.programme_tables",
    "uplift_spark.gamedays.runbooks",
    "uplift_spark.experiments.switchback_tables",
    "uplift_spark.estimators",
}
SPARKLESS_MODULES = {
    *("uplift_spark.events.simulate", "uplift_spark.events.files", "uplift_spark.events.guesses"),
    "uplift_spark.events.column_names",
    "uplift_spark.events.quickstart",
    *("uplift_spark.lake.duck", "uplift_spark.lake.duck_functions", "uplift_spark.lake.local_tables"),
    *("uplift_spark.evaluation.metrics", "uplift_spark.evaluation.sums", "uplift_spark.evaluation.lift_tables"),
    *("uplift_spark.evaluation.pictures", "uplift_spark.evaluation.html_page", "uplift_spark.evaluation.svg"),
    "uplift_spark.evaluation.report",
    *("uplift_spark.policy.allocation", "uplift_spark.policy.trees", "uplift_spark.registry.retraining"),
    *("uplift_spark.governance.audit", "uplift_spark.governance.bias", "uplift_spark.governance.permissions"),
    "uplift_spark.governance.documents",
    *("uplift_spark.gamedays.world", "uplift_spark.gamedays.timeline"),
}

# Absent on Spark Connect and Databricks serverless.
OF_BOTH_KINDS = {
    ("uplift_spark.forest.spark", "sparkContext"),  # has another way for Spark Connect
    ("uplift_spark.lake.session", "sparkContext"),  # ends a local session that it started itself
    ("uplift_spark.lake.session", "_gateway"),
}
NOT_OVER_CONNECT = {
    "sparkContext", "SparkContext", "rdd", "toRDD", "_jvm", "_jsparkSession", "_jdf", "_jc", "_sc", "_gateway",
    "createGlobalTempView", "createOrReplaceGlobalTempView",
}  # fmt: skip
CACHING = {"cache", "persist", "unpersist", "localCheckpoint", "cacheTable"}
KEEPER = ("uplift_spark.forest.spark", "kept")  # goes on without where a cluster refuses
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
TABLE_ACCESS = {"read", "write", "readStream", "writeStream"}
TABLE_CALLS = {"table", "sql", "saveAsTable", "insertInto", "writeTo", "forPath", "forName", "toTable", "createTable"}
WORKER_CALLS = {"mapInArrow", "mapInPandas", "applyInArrow", "applyInPandas", "map_batches", "mapped", "mapped_frame"}

# Rows are drawn by the hash of their unit (`stats.sampling`), so that a rerun on other partitions draws the same ones.
DRAWING_BY_PARTITION = {"rand", "randn", "sample", "sampleBy", "randomSplit", "monotonically_increasing_id"}

MOST_LINES = {"function": 60, "module": 800, "job": 300}
MOST_ARGUMENTS = 8
SMALL = 150  # lines under which a module with one importer lives with its importer


def of(name: str, text: str) -> Module:
    """A snippet as if it stood in module `name` of the package."""
    return Module(f"{PACKAGE}.{name}", text)


# ---------------------------------------------------------------- imports


def imported(module: Module) -> Iterator[str]:
    """Dotted names a module imports anywhere, lazily or for types too; names from this package as their full path."""
    for node in module.nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            yield from (f"{base}.{alias.name}" if base.startswith(PACKAGE) else base for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) == "import_module":
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    base = module.name.split(".")[: -node.level]
    return ".".join([*base, *([node.module] if node.module else [])])


def _called(node: ast.Call) -> str:
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def imports_against_the_plan(module: Module) -> list[str]:
    """Imports that go up the ground, from the ground into a room, or into a room that is closed to this one."""
    broken = []
    for name in imported(module):
        parts = _home(name).split(".")
        if parts[0] != PACKAGE or len(parts) == 1 or parts[1] not in {*GROUND, *ROOMS}:
            continue
        if not _may_import(module.room, parts[1]):
            broken.append(f"{module.name} imports {name}: {module.room} may import {_allowed(module.room)}")
        if module.is_job and parts[1] == "jobs" and len(parts) > 2 and parts[2] != module.name.split(".")[2]:
            broken.append(f"{module.name} imports {name}: a job never imports another")
    return broken


def _may_import(room: str, target: str) -> bool:
    return room in ("", target) or target in _allowed(room)


def _allowed(room: str) -> list[str]:
    """Parts that a room may import beside itself."""
    if room in GROUND:
        return list(GROUND[: GROUND.index(room)])
    return [*GROUND, *sorted(ROOMS.get(room, set()))]


def _home(name: str) -> str:
    """Where a public name really lives: `uplift_spark.Roles` is `uplift_spark.roles.Roles`."""
    package, _, public = name.partition(".")
    home = uplift_spark._HOME.get(public) if package == PACKAGE else None
    return f"{home}.{public}" if home else name


def imports_by_computed_name(module: Module) -> list[str]:
    """Only the command line finds modules by a computed name, so that every other import can be read off the source."""
    if module.name in (PACKAGE, f"{PACKAGE}.cli"):
        return []
    return [
        f"{module.name}:{node.lineno} imports a module by a computed name: only cli does"
        for node in module.nodes
        if isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__")
        if not (node.args and isinstance(node.args[0], ast.Constant))
    ]


def spark_in_sparkless_modules(module: Module) -> list[str]:
    """Cores run on machines without Spark: it is imported by Spark rooms and by the edges of forest and learners."""
    if (module.room in SPARK_ROOMS and module.name not in SPARKLESS_MODULES) or module.name in SPARK_EDGES:
        return []
    nodes = module.tree.body if module.room == "cli" else module.nodes  # commands import when they run
    names = [name for node in nodes for name in _names_imported_by(node)]
    return [
        f"{module.name} imports {name}: this module runs without Spark"
        for name in names
        if name.split(".")[0] in ("pyspark", "delta")
    ]


def _names_imported_by(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


# ---------------------------------------------------------------- forbidden calls


def not_over_connect(module: Module) -> list[str]:
    """Names that only a classic local session knows, also when fetched by `getattr`."""
    return [
        f"{module.name}:{node.lineno} uses {name}: it does not exist over Spark Connect"
        for node, name in _names(module)
        if name in NOT_OVER_CONNECT and (module.name, name) not in OF_BOTH_KINDS
    ]


def _names(module: Module) -> Iterator[tuple[ast.expr | ast.alias, str]]:
    for node in module.nodes:
        if isinstance(node, ast.Attribute):
            yield node, node.attr
        elif isinstance(node, ast.Name):
            yield node, node.id
        elif isinstance(node, ast.alias):
            yield node, node.name
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node, node.value


def caching(module: Module) -> list[str]:
    """Serverless refuses cache and persist, so frames are kept in one place, which goes on without."""
    kept = {
        call
        for node in module.nodes
        if isinstance(node, ast.FunctionDef) and (module.name, node.name) == KEEPER
        for call in ast.walk(node)
    }
    return [
        f"{module.name}:{node.lineno} calls .{node.func.attr}(): only {'.'.join(KEEPER)} keeps frames"
        for node in module.nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CACHING
        if node not in kept
    ]


def unpickling(module: Module) -> list[str]:
    """A stored model is arrays: nothing in the package may execute what it reads."""
    broken = [
        f"{module.name} imports {name}: files are arrays, never pickles"
        for name in imported(module)
        if name.split(".")[0] in UNSAFE_MODULES or name.startswith("joblib")
    ]
    for node in module.nodes:
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and _is_not_false(node.value):
            broken.append(f"{module.name}:{node.value.lineno} sets allow_pickle: files are arrays, never pickles")
    return broken


def _is_not_false(node: ast.expr) -> bool:
    return not (isinstance(node, ast.Constant) and node.value is False)


def table_access_outside_lake(module: Module) -> list[str]:
    """Rooms map frames to frames: `spark.read.…`, `frame.write.…` and tables by name belong to `lake`."""
    if module.room not in FRAMES_ONLY:
        return []
    called = {id(node.func) for node in module.nodes if isinstance(node, ast.Call)}
    broken = []
    for node in module.nodes:
        if not isinstance(node, ast.Attribute):
            continue
        # `file.read()` is a call of `read`; Spark's readers and writers are attributes that something is called on.
        reader = node.attr in TABLE_ACCESS and id(node) not in called
        arrow = isinstance(node.value, ast.Name) and node.value.id in ("pa", "pyarrow", "self")
        if reader or (node.attr in TABLE_CALLS and id(node) in called and not arrow):
            broken.append(f"{module.name}:{node.lineno} uses .{node.attr}: this room neither reads nor writes tables")
    return broken


def closures_as_workers(module: Module) -> list[str]:
    """What runs in Spark's Python workers is a module-level function, testable without Spark."""
    nested = {
        inner.name
        for outer in _functions(module)
        for inner in ast.walk(outer)
        if isinstance(inner, ast.FunctionDef) and inner is not outer
    }
    return [
        f"{module.name}:{node.lineno} gives {_called(node)} a closure: use a module-level function and partial"
        for node in module.nodes
        if isinstance(node, ast.Call) and _called(node) in WORKER_CALLS and node.args
        if any(_is_closure(part, nested) for argument in node.args[:2] for part in ast.walk(argument))
    ]


def _is_closure(node: ast.AST, nested: set[str]) -> bool:
    return isinstance(node, ast.Lambda) or (isinstance(node, ast.Name) and node.id in nested)


# ---------------------------------------------------------------- sizes and docstrings


def _functions(module: Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in module.nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def too_long(module: Module) -> list[str]:
    """Functions, modules and jobs have a greatest length, in lines with comments and docstrings."""
    kind = "job" if module.is_job else "module"
    lines = len(module.text.splitlines())
    broken = [f"{module.name} has {lines} lines: a {kind} has at most {MOST_LINES[kind]}"] * (lines > MOST_LINES[kind])
    for function in _functions(module):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > MOST_LINES["function"]:
            broken.append(f"{module.name}.{function.name} has {length} lines: at most {MOST_LINES['function']}")
    return broken


def too_many_arguments(module: Module) -> list[str]:
    """More than eight arguments are an object nobody has named yet."""
    broken = []
    for function in _functions(module):
        arguments = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
        count = len([a for a in arguments if a.arg not in ("self", "cls")])
        if count > MOST_ARGUMENTS and not function.name.startswith("__") and not _is_command(function):
            broken.append(f"{module.name}.{function.name} takes {count} arguments: at most {MOST_ARGUMENTS}")
    return broken


def _is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Options of a command are its arguments; nobody calls it."""
    return any(ast.unparse(one).startswith("app.command") for one in function.decorator_list)


def draws_by_partition(module: Module) -> list[str]:
    """Draws that depend on how rows lie in partitions give other rows after a retry."""
    return [
        f"{module.name}:{node.lineno} calls {_called(node)}: draw by the hash of the unit (`stats.sampling`)"
        for node in module.nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in DRAWING_BY_PARTITION
        if isinstance(node.func.value, ast.Name) and node.func.value.id in ("F", "frame", "rows")
    ]


def banned_words_in(module: Module) -> list[str]:
    """One word a concept: names and texts use the words of the glossary."""
    return [f"{module.name}:{line} says {word!r}: the glossary has another word" for line, word in banned_words(module)]


def undocumented(module: Module) -> list[str]:
    """Modules, public functions, classes and methods say what they promise; a method of a protocol says it there."""
    classes = [node for node in module.tree.body if isinstance(node, ast.ClassDef)]
    promised = {m.name for c in classes for m in c.body if isinstance(m, ast.FunctionDef) and ast.get_docstring(m)}
    missing = [] if ast.get_docstring(module.tree) or not module.text.strip() else [module.name]
    for node in module.tree.body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            missing.append(f"{module.name}.{node.name}")
        if isinstance(node, ast.ClassDef):
            bare = {method.name for method in _public_methods(node)} - promised
            missing += [f"{module.name}.{node.name}.{name}" for name in sorted(bare)]
    return [f"{name} has no docstring" for name in missing]


def _public_methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    """Methods a reader cannot guess: properties and bodies of three lines need no docstring."""
    methods = [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_")]
    return [m for m in methods if not m.decorator_list and (m.end_lineno or 0) - m.lineno > 3]


_TABLE_NAME = re.compile(r"(bronze|silver|gold)\.(\w|$)")


def tables_named_twice(module: Module) -> list[str]:
    """Names of tables in code that does not declare them; docstrings and messages, which have blanks, may name them."""
    if module.name in (
        "uplift_spark.lake.schemas",
        "uplift_spark.lake.gold_tables",
        "uplift_spark.config",
    ):  # config is below the lake
        return []
    prose = {id(node.value) for node in module.nodes if isinstance(node, ast.Expr)}
    return [
        f"{module.name}:{node.lineno} names table {node.value!r}: take the name from lake.schemas"
        for node in module.nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
        if " " not in node.value and _TABLE_NAME.match(node.value)
    ]


RULES: tuple[Callable[[Module], list[str]], ...] = (
    imports_against_the_plan,
    imports_by_computed_name,
    spark_in_sparkless_modules,
    not_over_connect,
    caching,
    unpickling,
    table_access_outside_lake,
    closures_as_workers,
    draws_by_partition,
    too_long,
    too_many_arguments,
    undocumented,
    banned_words_in,
    tables_named_twice,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps(rule: Callable[[Module], list[str]]) -> None:
    broken = [sentence for module in modules(ROOT) for sentence in rule(module)]
    assert not broken, "\n".join(broken)


def test_public_names_have_one_home() -> None:
    every = modules(ROOT)
    assert repeated_names(every) == {}
    twice = [
        of("stats.a", "def fit(): ..."),
        of("forest.b", "fit = 1"),
        of("jobs.c", "def run(): ..."),
        of("jobs.d", "def run(): ..."),
    ]
    assert repeated_names(twice) == {"fit": ["uplift_spark.stats.a", "uplift_spark.forest.b"]}


def lost_references(every: list[Module]) -> list[str]:
    """`module.name` in texts, where the module has nothing of that name any more."""
    names: dict[str, set[str]] = {}
    for module in every:
        *_, room, stem = ["", *module.name.split(".")]
        names.setdefault(room, set()).add(stem)
        here = names.setdefault(stem, set())
        for node in module.nodes:
            known = (getattr(node, field, None) for field in ("name", "asname", "id", "attr", "arg"))
            here |= {name.rsplit(".", 1)[-1] for name in known if isinstance(name, str)}
    sections = {field.name for field in fields(Config)}  # `policy.exclude` is a key
    return [
        f"{module.name}: {reference} is not there"
        for module in every
        for reference, stem, name in re.findall(r"(`([a-z_]+)\.(\w+)`)", module.text)
        if stem in names.keys() - sections and name not in names[stem] and not name.startswith("py")
    ]


def test_names_in_texts_exist() -> None:
    assert lost_references(modules(ROOT)) == []
    moved = [of("stats.a", "def fit(): ..."), of("forest.b", "x = 1  # see `a.fit`, `a.grow`, `labels.as_of`, `c.x`")]
    assert lost_references(moved) == ["uplift_spark.forest.b: `a.grow` is not there"]


def small_splinters(every: list[Module]) -> list[str]:
    """Modules under SMALL lines with one importer: they live with their importer."""
    lines = {module.name: len(module.text.splitlines()) for module in every if module.text.strip()}
    by = importers(every)
    return [
        f"{name} has {lines[name]} lines and one importer, {min(by[name])}"
        for name in lines
        if lines[name] < SMALL
        and len(by[name]) == 1
        and not name.endswith("__init__")
        and f"{PACKAGE}.jobs" not in name
    ]


def test_small_modules_live_with_their_importer() -> None:
    assert small_splinters(modules(ROOT)) == []
    pair = [of("stats.a", "x = 1"), of("forest.b", "from uplift_spark.stats.a import x")]
    assert small_splinters(pair) == ["uplift_spark.stats.a has 1 lines and one importer, uplift_spark.forest.b"]


# ---------------------------------------------------------------- each rule can fail

GOOD = [
    (imports_against_the_plan, of("forest.forest", "from uplift_spark.stats.moments import Moments")),
    (imports_against_the_plan, of("forest.forest", "from .grow import grow_tree")),
    (imports_against_the_plan, of("evaluation.metrics", "import numpy\nfrom uplift_spark.forest import binning")),
    (imports_against_the_plan, of("estimators", "from uplift_spark.evaluation.metrics import x")),
    (imports_against_the_plan, of("lake.tables", "from uplift_spark.config import Lakehouse")),
    (imports_against_the_plan, of("jobs.lift", "from uplift_spark.console import main_job")),
    (imports_against_the_plan, of("jobs.train", "from uplift_spark import CausalForest, Roles")),
    (imports_against_the_plan, of("serving.api", "from uplift_spark.forest.forest import Forest")),
    (imports_by_computed_name, of("cli", "import_module(f'uplift_spark.jobs.{verb}')")),
    (imports_by_computed_name, of("forest.onnx", "import_module('onnx')")),
    (spark_in_sparkless_modules, of("evaluation.spark", "import pyspark")),
    (spark_in_sparkless_modules, of("forest.spark", "import pyspark")),
    (spark_in_sparkless_modules, of("cli", "def f():\n    import pyspark")),
    (not_over_connect, of("evaluation.metrics", "frame.mapInArrow(work, schema)")),
    (caching, of("stats.curves", "import functools\n@functools.cache\ndef f(): ...")),
    (unpickling, of("forest.forest", "np.load(path, allow_pickle=False)")),
    (table_access_outside_lake, of("forest.spark", "pa.table({'tree': trees})")),
    (table_access_outside_lake, of("evaluation.pictures", "handle.read(); handle.write(text)")),
    (table_access_outside_lake, of("lake.tables", "spark.read.table('x')")),
    (closures_as_workers, of("forest.spark", "def f(): frame.mapInArrow(partial(work, model), schema)")),
    (draws_by_partition, of("evaluation.sums", "random.sample(names, 3)")),
    (too_long, of("evaluation.x", "def f():\n" + "    pass\n" * 59)),
    (too_many_arguments, of("evaluation.x", "def f(a, b, c, d, e, f, g, h): ...")),
    (undocumented, of("evaluation.x", '"""Doc."""\ndef _f(): ...\ndef f():\n    """Doc."""')),
    (undocumented, of("evaluation.__init__", "")),
    (tables_named_twice, of("evaluation.x", '"""gold.x."""\nerror("gold.x has no row")')),
    (banned_words_in, of("evaluation.x", "frame_of = profound(frame)  # given the frame, a good look")),
]

BAD = [
    (imports_against_the_plan, of("forest.forest", "from uplift_spark.evaluation.metrics import x")),
    (imports_against_the_plan, of("forest.forest", "from ..learners import nuisances")),
    (imports_against_the_plan, of("stats.curves", "def f():\n    import uplift_spark.forest.forest")),
    (imports_against_the_plan, of("evaluation.metrics", "from uplift_spark import policy")),
    (imports_against_the_plan, of("evaluation.metrics", "from uplift_spark.lake.tables import Lake")),
    (imports_against_the_plan, of("evaluation.metrics", "import_module('uplift_spark.registry.models')")),
    (imports_against_the_plan, of("lake.tables", "from uplift_spark.registry import models")),
    (imports_against_the_plan, of("serving.api", "from uplift_spark.lake.tables import Lake")),
    (imports_against_the_plan, of("forest.forest", "from uplift_spark import CausalForest")),
    (imports_against_the_plan, of("jobs.lift", "from uplift_spark.cli import app")),
    (imports_against_the_plan, of("jobs.lift", "from uplift_spark.jobs.score import run")),
    (imports_by_computed_name, of("jobs.lift", "import_module(f'uplift_spark.jobs.{verb}')")),
    (imports_by_computed_name, of("campaign", "__import__(name)")),
    (spark_in_sparkless_modules, of("forest.forest", "def f():\n    from pyspark.sql import DataFrame")),
    (spark_in_sparkless_modules, of("policy.trees", "import pyspark")),
    (spark_in_sparkless_modules, of("evaluation.metrics", "import pyspark")),
    (spark_in_sparkless_modules, of("serving.api", "import delta")),
    (spark_in_sparkless_modules, of("cli", "import pyspark")),
    (not_over_connect, of("lake.tables", "spark.sparkContext.setLogLevel('ERROR')")),
    (not_over_connect, of("evaluation.metrics", "frame.rdd")),
    (not_over_connect, of("evaluation.metrics", "getattr(spark, '_jvm')")),
    (not_over_connect, of("evaluation.metrics", "from pyspark import SparkContext")),
    (not_over_connect, of("jobs.lift", "frame.createGlobalTempView('x')")),
    (caching, of("evaluation.metrics", "frame.cache().count()")),
    (unpickling, of("forest.forest", "import pickle\npickle.load(f)")),
    (unpickling, of("forest.forest", "from pickle import load")),
    (unpickling, of("forest.forest", "np.load(path, allow_pickle=True)")),
    (table_access_outside_lake, of("evaluation.metrics", "spark.read.format('delta').load(x)")),
    (table_access_outside_lake, of("forest.spark", "frame.write.save(x)")),
    (table_access_outside_lake, of("policy.spark", "frame.sparkSession.table('gold.lift_table')")),
    (table_access_outside_lake, of("learners.spark", "frame.writeTo('x')")),
    (closures_as_workers, of("forest.spark", "frame.mapInArrow(lambda b: b, schema)")),
    (closures_as_workers, of("forest.spark", "def f():\n  def g(b): ...\n  frame.groupBy('b').applyInArrow(g, s)")),
    (draws_by_partition, of("evaluation.sums", "frame.orderBy(F.rand(7))")),
    (draws_by_partition, of("evaluation.sums", "frame.sample(0.1)")),
    (too_long, of("evaluation.x", "def f():\n" + "    pass\n" * 60)),
    (too_long, of("evaluation.x", "x = 1\n" * 801)),
    (too_long, of("jobs.lift", "x = 1\n" * 301)),
    (too_many_arguments, of("evaluation.x", "def f(a, b, c, d, e, f, g, h, *, i): ...")),
    (undocumented, of("evaluation.x", '"""Doc."""\ndef f(): ...')),
    (undocumented, of("evaluation.x", "x = 1")),
    (
        undocumented,
        of("evaluation.x", '"""Doc."""\nclass A:\n  """Doc."""\n  def f(self):\n    a\n    b\n    c\n    d'),
    ),
    (tables_named_twice, of("evaluation.x", "lake.read('gold.lift_table')")),
    (tables_named_twice, of("jobs.x", "lake.write(f'silver.{kind}_x', rows)")),
    (banned_words_in, of("evaluation.x", "largest_odds = 1")),
    (banned_words_in, of("evaluation.x", "class ToldLevels: ...")),
    (banned_words_in, of("evaluation.x", "x = 1  # as users are told")),
    (banned_words_in, of("forest.rows", "x = 1")),
]


@pytest.mark.parametrize(("rule", "module"), GOOD)
def test_rule_accepts(rule: Callable[[Module], list[str]], module: Module) -> None:
    assert rule(module) == []


@pytest.mark.parametrize(("rule", "module"), BAD)
def test_rule_refuses(rule: Callable[[Module], list[str]], module: Module) -> None:
    assert len(rule(module)) == 1


def test_every_rule_refuses() -> None:
    assert {rule for rule, _ in BAD} == set(RULES)


def test_every_room_has_a_place_in_the_plan() -> None:
    rooms = {module.room for module in modules(ROOT)} - {""}
    assert rooms == {*GROUND, *ROOMS}


# ---------------------------------------------------------------- what an import loads


def loaded_by(statement: str) -> set[str]:
    """Names of the modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


def test_cores_load_no_spark() -> None:
    core = {"stats", "forest", "learners", "experiments", "serving", "monitoring"}
    every = [m.name for m in modules(ROOT) if m.room in core or m.name in SPARKLESS_MODULES]
    names = [name for name in every if name not in {*SPARK_EDGES, *OTHER_ENVIRONMENT}]
    loaded = loaded_by(f"import {', '.join(names)}")
    assert set(names) <= loaded
    assert not {name for name in loaded if name.split(".")[0] in ("pyspark", "delta", "mlflow")}


def test_importing_the_package_loads_nothing_else() -> None:
    loaded = loaded_by("import uplift_spark")
    assert {name for name in loaded if name.startswith(PACKAGE)} == {PACKAGE}
    assert not {"numpy", "pandas", "pyspark", "numba"} & loaded


def test_help_loads_neither_spark_nor_mlflow_nor_numba() -> None:
    loaded = loaded_by("import uplift_spark.cli")
    assert not {"pyspark", "mlflow", "numba", "pandas"} & loaded


def test_public_names_are_there() -> None:
    for name in sorted(set(uplift_spark.__all__) - {"__version__"}):
        assert getattr(uplift_spark, name).__doc__
    with pytest.raises(AttributeError, match="Nothing"):
        _ = uplift_spark.Nothing


# ---------------------------------------------------------------- packaging


def test_every_package_is_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = set(project["tool"]["setuptools"]["packages"])
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / PACKAGE).rglob("*.py")}
    assert shipped == {".".join(folder.parts) for folder in folders} | {f"{PACKAGE}.jobs"}


def test_every_dependency_is_pinned_and_no_index_is_named() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [d for extra in project["optional-dependencies"].values() for d in extra]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_distribution(line) for line in lines if "==" in line}
    assert {_distribution(dependency) for dependency in wanted} <= pinned
    assert not [line for line in lines if "://" in line or line.startswith("-")]


def _distribution(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>!~; ]", requirement)[0]).lower()
