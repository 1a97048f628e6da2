"""Every public name is documented the same way, and its examples run; no Spark."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys

import pytest

import uplift_spark
from uplift_spark import estimators

# A campaign needs a lakehouse: `tests/test_campaign.py` runs what README shows of it.
NAMES = sorted(set(uplift_spark.__all__) - {"__version__", "Campaign"})


def documented() -> dict[str, object]:
    """Public classes and functions, and public methods defined in this package."""
    found: dict[str, object] = {}
    for name in NAMES:
        found[name] = member = getattr(uplift_spark, name)
        if inspect.isclass(member) and name != "Roles":
            own = {n: m for n, m in vars(member).items() if inspect.isfunction(m) and not n.startswith("_")}
            found |= {f"{name}.{method}": function for method, function in own.items()}
    return found


MEMBERS = documented()


@pytest.fixture(scope="module")
def shared():
    """The names that the module's own example defines."""
    names = dict(vars(estimators))
    (test,) = doctest.DocTestFinder(recurse=False).find(estimators, "estimators", globs=names)
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0
    return test.globs


@pytest.mark.parametrize("name", MEMBERS)
def test_the_example_shows_what_comes_out(name, shared):
    member, failures = MEMBERS[name], []
    names = {**vars(inspect.getmodule(member)), **shared}
    tests = doctest.DocTestFinder(recurse=False).find(member, name, globs=names)
    for test in tests:
        doctest.DocTestRunner(verbose=False).run(test, out=failures.append)
    assert not failures, "".join(failures)
    plain = name in ("UpliftModel.save", "UpliftModel.to_bytes")  # said in one line, or shown where models are read
    assert plain or sum(len(test.examples) for test in tests) > 0


@pytest.mark.parametrize("name", MEMBERS)
def test_the_docstring_has_its_sections(name):
    member = MEMBERS[name]
    text = inspect.getdoc(member) or ""
    summary = text.partition("\n\n")[0]
    assert summary.rstrip().endswith("."), summary
    if inspect.isfunction(member):
        assert not summary.split()[0].endswith("s"), "the summary is no imperative"
        arguments = set(inspect.signature(member).parameters) - {"self"}
        missing = [f"{argument}:" for argument in arguments if f"    {argument}:" not in text]
        assert not missing
        assert not arguments or {"Args:", "Raises:"} <= set(text.split())


def test_a_model_prints_on_one_line(shared):
    assert repr(shared["model"]) == "<UpliftModel forest: effects of 5% against none on spend, by 2 features>"


def test_pandas_frames_need_no_spark():
    code = "import sys, pandas, uplift_spark.estimators as e; e.frame_rows(pandas.DataFrame())"
    code += "; sys.exit('pyspark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
