"""The house rules, enforced: who may import whom, what no module may touch, how long things may be.

Each rule is a function from a module's source to the sentences it breaks; each has a test that makes it fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import yaml

import uplift_spark

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "uplift_spark"

# From the bottom to the top; a part imports only from lower ranks, and parts of one rank never import each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("vocabulary",),
    ("sections",),
    ("choices",),
    ("config",),
    ("stats",),
    ("causal",),
    ("flow",),
    ("experiments", "policy", "monitoring"),
    ("operations",),
    ("cli",),
    ("jobs",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
# Parts beside the line: what they may import, and who may import them.
BESIDE = {
    "lake": ({"vocabulary", "config"}, {"operations", "jobs", "cli"}),
    "serving": ({"vocabulary", "config", "stats", "causal"}, {"jobs", "cli"}),
}
SPARKLESS = ("stats", "causal", "serving")

# Absent on Spark Connect and Databricks serverless.
OF_BOTH_KINDS = {("uplift_spark.forest.spark", "sparkContext")}  # has another way for Spark Connect
NOT_OVER_CONNECT = {
    "sparkContext", "SparkContext", "rdd", "toRDD", "_jvm", "_jsparkSession", "_jdf", "_jc", "_sc", "_gateway",
    "createGlobalTempView", "createOrReplaceGlobalTempView",
}  # fmt: skip
CACHING = {"cache", "persist", "unpersist", "localCheckpoint", "cacheTable"}
KEEPER = ("uplift_spark.forest.spark", "kept")  # goes on without where a cluster refuses
UNSAFE_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
TABLE_ACCESS = {"read", "write", "readStream", "writeStream"}
TABLE_CALLS = {"table", "sql", "saveAsTable", "insertInto", "writeTo", "forPath", "forName", "toTable", "createTable"}
WORKER_CALLS = {"mapInArrow", "mapInPandas", "applyInArrow", "applyInPandas"}

MOST_LINES = {"function": 60, "module": 400, "job": 60}
MOST_ARGUMENTS = 8


@dataclass(frozen=True)
class Module:
    """One source file: dotted name, text, syntax tree."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def part(self) -> str:
        """The layer's name: `causal` of `uplift_spark.forest.grow`, '' of the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def is_job(self) -> bool:
        return self.part == "jobs" and self.name.count(".") > 1


def modules() -> list[Module]:
    """Every module of the package and of jobs/, by dotted name."""
    files = [(path, path.relative_to(ROOT)) for path in sorted((ROOT / PACKAGE).rglob("*.py"))]
    files += [(path, Path(PACKAGE) / path.relative_to(ROOT)) for path in sorted((ROOT / "jobs").glob("*.py"))]
    names = [".".join(as_.with_suffix("").parts).removesuffix(".__init__") for _, as_ in files]
    return [Module(name, path.read_text()) for name, (path, _) in zip(names, files, strict=True)]


def of(name: str, text: str) -> Module:
    """A snippet as if it stood in module `name` of the package."""
    return Module(f"{PACKAGE}.{name}", text)


# ---------------------------------------------------------------- imports


def imported(module: Module) -> Iterator[str]:
    """Dotted names a module imports anywhere, lazily or for types too; names from this package as their full path."""
    for node in ast.walk(module.tree):
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


def imports_against_the_layers(module: Module) -> list[str]:
    """Imports that go up, sideways, or into a part that is closed to this one."""
    broken = []
    for name in imported(module):
        parts = _home(name).split(".")
        if parts[0] != PACKAGE or len(parts) == 1 or parts[1] not in set(RANK) | set(BESIDE):
            continue
        if not _may_import(module.part, parts[1]):
            broken.append(f"{module.name} imports {name}: imports go {' <- '.join('|'.join(p) for p in LAYERS)}")
        if module.is_job and parts[1] == "jobs" and len(parts) > 2 and parts[2] != module.name.split(".")[2]:
            broken.append(f"{module.name} imports {name}: a job never imports another")
    return broken


def _may_import(importer: str, target: str) -> bool:
    if importer in ("", target):
        return True
    if importer in BESIDE:
        return target in BESIDE[importer][0]
    if target in BESIDE:
        return importer in BESIDE[target][1]
    return RANK[target] < RANK[importer]


def _home(name: str) -> str:
    """Where a public name really lives: `uplift_spark.Roles` is `uplift_spark.roles.Roles`."""
    package, _, public = name.partition(".")
    home = uplift_spark._HOME.get(public) if package == PACKAGE else None
    return f"{home}.{public}" if home else name


def spark_in_sparkless_parts(module: Module) -> list[str]:
    """`stats`, `causal` and `serving` run on machines without Spark."""
    if module.part not in SPARKLESS:
        return []
    return [
        f"{module.name} imports {name}: this part runs without Spark"
        for name in imported(module)
        if name.split(".")[0] in ("pyspark", "delta")
    ]


# ---------------------------------------------------------------- forbidden calls


def not_over_connect(module: Module) -> list[str]:
    """Names that only a classic local session knows, also when fetched by `getattr`."""
    return [
        f"{module.name}:{node.lineno} uses {name}: it does not exist over Spark Connect"
        for node, name in _names(module)
        if name in NOT_OVER_CONNECT and (module.name, name) not in OF_BOTH_KINDS
    ]


def _names(module: Module) -> Iterator[tuple[ast.expr | ast.alias, str]]:
    for node in ast.walk(module.tree):
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
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and (module.name, node.name) == KEEPER
        for call in ast.walk(node)
    }
    return [
        f"{module.name}:{node.lineno} calls .{node.func.attr}(): only {'.'.join(KEEPER)} keeps frames"
        for node in ast.walk(module.tree)
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
    for node in ast.walk(module.tree):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and _is_not_false(node.value):
            broken.append(f"{module.name}:{node.value.lineno} sets allow_pickle: files are arrays, never pickles")
    return broken


def _is_not_false(node: ast.expr) -> bool:
    return not (isinstance(node, ast.Constant) and node.value is False)


def table_access_in_flow(module: Module) -> list[str]:
    """`flow` maps frames to frames: `spark.read.…`, `frame.write.…` and tables by name belong to `lake`."""
    if module.part != "flow":
        return []
    called = {id(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    broken = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Attribute):
            continue
        # `file.read()` is a call of `read`; Spark's readers and writers are attributes that something is called on.
        reader = node.attr in TABLE_ACCESS and id(node) not in called
        arrow = isinstance(node.value, ast.Name) and node.value.id in ("pa", "pyarrow")
        if reader or (node.attr in TABLE_CALLS and id(node) in called and not arrow):
            broken.append(f"{module.name}:{node.lineno} uses .{node.attr}: flow neither reads nor writes tables")
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
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and _called(node) in WORKER_CALLS and node.args
        if any(_is_closure(part, nested) for part in ast.walk(node.args[0]))
    ]


def _is_closure(node: ast.AST, nested: set[str]) -> bool:
    return isinstance(node, ast.Lambda) or (isinstance(node, ast.Name) and node.id in nested)


# ---------------------------------------------------------------- sizes and docstrings


def _functions(module: Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


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
        if count > MOST_ARGUMENTS and not function.name.startswith("__"):
            broken.append(f"{module.name}.{function.name} takes {count} arguments: at most {MOST_ARGUMENTS}")
    return broken


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


RULES: tuple[Callable[[Module], list[str]], ...] = (
    imports_against_the_layers,
    spark_in_sparkless_parts,
    not_over_connect,
    caching,
    unpickling,
    table_access_in_flow,
    closures_as_workers,
    too_long,
    too_many_arguments,
    undocumented,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps(rule: Callable[[Module], list[str]]) -> None:
    broken = [sentence for module in modules() for sentence in rule(module)]
    assert not broken, "\n".join(broken)


# ---------------------------------------------------------------- each rule can fail

GOOD = [
    (imports_against_the_layers, of("causal.forest", "from uplift_spark.stats.moments import Moments")),
    (imports_against_the_layers, of("causal.forest", "from .grower import grow")),
    (imports_against_the_layers, of("flow.lift", "import numpy\nfrom uplift_spark.causal import binning")),
    (imports_against_the_layers, of("lake.tables", "from uplift_spark.config import Lakehouse")),
    (imports_against_the_layers, of("jobs.lift", "from uplift_spark.cli import main_job")),
    (imports_against_the_layers, of("jobs.train", "from uplift_spark import CausalForest, Roles")),
    (imports_against_the_layers, of("serving.api", "from uplift_spark.causal.model import Model")),
    (spark_in_sparkless_parts, of("flow.lift", "import pyspark")),
    (not_over_connect, of("flow.lift", "frame.mapInArrow(work, schema)")),
    (caching, of("stats.qini", "import functools\n@functools.cache\ndef f(): ...")),
    (unpickling, of("causal.model", "np.load(path, allow_pickle=False)")),
    (table_access_in_flow, of("flow.training", "pa.table({'tree': trees})")),
    (table_access_in_flow, of("flow.pictures", "handle.read(); handle.write(text)")),
    (table_access_in_flow, of("operations.registry", "spark.read.table('x')")),
    (closures_as_workers, of("flow.scoring", "def f(): frame.mapInArrow(partial(work, model), schema)")),
    (too_long, of("flow.x", "def f():\n" + "    pass\n" * 59)),
    (too_many_arguments, of("flow.x", "def f(a, b, c, d, e, f, g, h): ...")),
    (undocumented, of("flow.x", '"""Doc."""\ndef _f(): ...\ndef f():\n    """Doc."""')),
    (undocumented, of("flow.__init__", "")),
]

BAD = [
    (imports_against_the_layers, of("causal.forest", "from uplift_spark.evaluation.lift_tables import x")),
    (imports_against_the_layers, of("causal.forest", "from ..flow import lift")),
    (imports_against_the_layers, of("stats.qini", "def f():\n    import uplift_spark.forest.forest")),
    (imports_against_the_layers, of("policy.rules", "from uplift_spark import monitoring")),
    (imports_against_the_layers, of("flow.lift", "from uplift_spark.lake.tables import Lake")),
    (imports_against_the_layers, of("flow.lift", "import_module('uplift_spark.runtime')")),
    (imports_against_the_layers, of("lake.tables", "from uplift_spark.stats import qini")),
    (imports_against_the_layers, of("operations.runs", "from uplift_spark.serving import api")),
    (imports_against_the_layers, of("causal.lift", "from uplift_spark import CausalForest")),
    (imports_against_the_layers, of("jobs.lift", "from uplift_spark.jobs.score import run")),
    (spark_in_sparkless_parts, of("causal.forest", "def f():\n    from pyspark.sql import DataFrame")),
    (spark_in_sparkless_parts, of("serving.api", "import delta")),
    (not_over_connect, of("lake.session", "spark.sparkContext.setLogLevel('ERROR')")),
    (not_over_connect, of("flow.lift", "frame.rdd")),
    (not_over_connect, of("flow.lift", "getattr(spark, '_jvm')")),
    (not_over_connect, of("flow.lift", "from pyspark import SparkContext")),
    (not_over_connect, of("jobs.lift", "frame.createGlobalTempView('x')")),
    (caching, of("flow.lift", "frame.cache().count()")),
    (unpickling, of("causal.model", "import pickle\npickle.load(f)")),
    (unpickling, of("causal.model", "from pickle import load")),
    (unpickling, of("causal.model", "np.load(path, allow_pickle=True)")),
    (table_access_in_flow, of("flow.lift", "spark.read.format('delta').load(x)")),
    (table_access_in_flow, of("flow.lift", "frame.write.save(x)")),
    (table_access_in_flow, of("flow.lift", "frame.sparkSession.table('gold.lift_table')")),
    (table_access_in_flow, of("flow.lift", "frame.writeTo('x')")),
    (closures_as_workers, of("flow.scoring", "frame.mapInArrow(lambda b: b, schema)")),
    (closures_as_workers, of("flow.scoring", "def f():\n  def g(b): ...\n  frame.groupBy('b').applyInArrow(g, s)")),
    (too_long, of("flow.x", "def f():\n" + "    pass\n" * 60)),
    (too_long, of("flow.x", "x = 1\n" * 401)),
    (too_long, of("jobs.lift", "x = 1\n" * 61)),
    (too_many_arguments, of("flow.x", "def f(a, b, c, d, e, f, g, h, *, i): ...")),
    (undocumented, of("flow.x", '"""Doc."""\ndef f(): ...')),
    (undocumented, of("flow.x", "x = 1")),
    (undocumented, of("flow.x", '"""Doc."""\nclass A:\n  """Doc."""\n  def f(self):\n    a\n    b\n    c\n    d')),
]


@pytest.mark.parametrize(("rule", "module"), GOOD)
def test_rule_accepts(rule: Callable[[Module], list[str]], module: Module) -> None:
    assert rule(module) == []


@pytest.mark.parametrize(("rule", "module"), BAD)
def test_rule_refuses(rule: Callable[[Module], list[str]], module: Module) -> None:
    assert len(rule(module)) == 1


def test_every_rule_refuses() -> None:
    assert {rule for rule, _ in BAD} == set(RULES)


def test_every_part_has_a_layer() -> None:
    parts = {module.part for module in modules()} - {""}
    assert parts <= set(RANK) | set(BESIDE)
    assert {"vocabulary", "config", "causal", "cli"} <= parts


# ---------------------------------------------------------------- what an import loads


def loaded_by(statement: str) -> set[str]:
    """Names of the modules in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert process.returncode == 0, process.stderr
    return set(process.stdout.split())


def test_sparkless_parts_load_no_spark() -> None:
    names = [module.name for module in modules() if module.part in SPARKLESS]
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


def test_bundle_runs_the_jobs_that_exist() -> None:
    bundle = yaml.safe_load((ROOT / "databricks.yml").read_text())
    (job,) = bundle["resources"]["jobs"].values()
    tasks = {task["task_key"]: task for task in job["tasks"]}
    assert list(tasks) == ["ingest", "features", "train", "score", "lift", "policy"]
    for key, task in tasks.items():
        assert task["spark_python_task"]["python_file"] == f"jobs/{key}.py"
        assert (ROOT / "jobs" / f"{key}.py").is_file()
        assert task["environment_key"] in {e["environment_key"] for e in job["environments"]}
    after = {key: [d["task_key"] for d in task.get("depends_on", [])] for key, task in tasks.items()}
    line = {"ingest": [], "features": ["ingest"], "train": ["features"], "score": ["train"]}
    assert after == {**line, "lift": ["score"], "policy": ["score"]}
    assert (ROOT / bundle["variables"]["conf"]["default"]).is_file()
    assert len(bundle["targets"]) == 2
