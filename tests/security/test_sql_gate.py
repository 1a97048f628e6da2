"""The gate of users' SQL: what it refuses, what it lets pass, and that what passes means the same."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest

from tests.security import legal, session, sql_attacks
from tests.security.attack import Attack
from uplift_spark import sql_gate
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Policy, RolesConf, Simulation
from uplift_spark.errors import ConfigError
from uplift_spark.lake.tables import Lake
from uplift_spark.sql_gate import checked_expression, checked_query

ROOT = Path(__file__).resolve().parents[2]
ATTACKS = sql_attacks.attacks()


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.text[:60])
def test_an_attack_is_refused_before_spark(attack: Attack) -> None:
    seen = attack.seen()
    assert attack.holds(seen), seen


def test_there_are_attacks_of_every_kind_and_legal_texts_enough() -> None:
    assert len(ATTACKS) >= 190 and len(legal.QUERIES) >= 60 and len(legal.EXPRESSIONS) >= 30


@pytest.mark.parametrize("query", legal.QUERIES)
def test_a_query_that_reads_passes_and_passes_again_unchanged(query: str) -> None:
    checked = checked_query(query)
    assert checked_query(checked) == checked


@pytest.mark.parametrize("text", legal.EXPRESSIONS)
def test_an_expression_passes_and_passes_again_unchanged(text: str) -> None:
    checked = checked_expression("key", text)
    assert checked_expression("key", checked) == checked


def test_what_passes_is_written_plainly() -> None:
    written = {
        "select a, 1.10BD, 'it''s', \"x\", X'0f' from gold.T where a=.5": (
            "SELECT `a`, 1.10BD, 'it\\'s', 'x', X'0F' FROM `gold`.`T` WHERE `a` = .5"
        ),
        "select date '2025-01-01' - interval '1-2' year to month, datediff(day, a, b) from gold.x;": (
            "SELECT DATE '2025-01-01' - interval '1-2' year to month, datediff(day, `a`, `b`) FROM `gold`.`x`"
        ),
        "select r'\\d', '\\n', 12345678901234567890.10, a::int from gold.x a, gold.y left join gold.z using (i)": (
            "SELECT '\\\\d', '\\n', 12345678901234567890.10, CAST(`a` AS INT) FROM `gold`.`x` AS `a`, `gold`.`y` "
            "LEFT JOIN `gold`.`z` USING (`i`)"
        ),
        "describe history gold.x limit 2": "describe history `gold`.`x` limit 2",
    }
    assert {query: checked_query(query) for query in written} == written


def test_tables_are_those_of_the_catalog() -> None:
    query = "WITH x AS (SELECT * FROM gold.a) SELECT * FROM x CROSS JOIN main.silver.b"
    assert checked_query(query, "main") == (
        "WITH `x` AS (SELECT * FROM `main`.`gold`.`a`) SELECT * FROM `x` CROSS JOIN `main`.`silver`.`b`"
    )
    assert checked_query("describe gold.a", "main") == "describe `main`.`gold`.`a`"
    for other in ("other.gold.a", "spark_catalog.gold.a"):
        with pytest.raises(ConfigError, match=f"{other} is no table of the lakehouse"):
            checked_query(f"SELECT * FROM {other}", "main")


def test_columns_of_an_expression_must_be_there() -> None:
    known = ["age", "Home", "tags", "user"]
    for text in ("AGE < 3", "home.city = 'x'", "exists(tags, t -> t = age)", "user = 'x'"):
        checked_expression("key", text, known)
    with pytest.raises(ConfigError, match=r"^key='agee < 3' must .*: there is no column 'agee', did you mean 'age'\?$"):
        checked_expression("key", "agee < 3", known)
    with pytest.raises(ConfigError, match="there is no column 'current_date'"):
        checked_expression("key", "`current_date` > tags", known)


def test_a_policy_keeps_its_text_and_names_the_rule() -> None:
    policy = Policy(exclude={"minors": "age<18"}, cost={"mail": "0.1+x"})
    assert policy.exclude == {"minors": "age<18"} and policy.cost == {"mail": "0.1+x"}
    with pytest.raises(
        ConfigError, match=r"^policy\.exclude\.minors='age < ' must be an expression over the row's own"
    ):
        Policy(exclude={"minors": "age < "})


def _documented() -> list[str]:
    """Queries of the guide, the notebook and the package's own advice."""
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]
    lines = [line for page in pages for line in re.findall(r"uplift sql (\"[^\"]+\")", page.read_text("utf-8"))]
    queries = [shlex.split(line)[0] for line in lines if "…" not in line]
    queries += [q for page in pages for q in re.findall(r"\.sql\(\"([^\"]+)\"\)", page.read_text("utf-8"))]
    notebook = (ROOT / "notebooks" / "hillstrom.py").read_text("utf-8")
    named = {"training": "silver.training_x", "scored.feature_version": "3", "of_run": "run_id = 'r'"}
    named |= {"of_scores": "s.run_id = 'r'", "units": "'a', 'b'"}
    for match in re.finditer(r"\bsql\(f\"(?:\"\"(.*?)\"\"\"|([^\"]+)\")", notebook, re.S):
        text = match[1] or match[2]
        queries.append(re.sub(r"\{([\w.]+)\}", lambda name: named[name[1]], text))
    config = Config("spring", Simulation(), RolesConf("visit", "none", ("age",)))
    return [*queries, *Campaign(config).queries_to_try("lift-1")]


def test_queries_of_the_guide_and_the_notebook_pass() -> None:
    documented = _documented()
    assert len(documented) >= 10
    for query in documented:
        checked_query(query)


def test_a_random_text_that_passes_holds_nothing_that_is_not_listed() -> None:
    """Pieces of queries and attacks in any order: what passes is a fixed point, of listed functions and tables."""
    allowed = sql_gate._SCALARS | sql_gate._AGGREGATES | sql_gate._CHANGING | sql_gate._TABLE_FUNCTIONS
    keywords = {
        "in",
        "as",
        "over",
        "filter",
        "by",
        "on",
        "using",
        "values",
        "cast",
        "exists",
        "not",
        "and",
        "or",
        "from",
    }
    keywords |= {
        "sets",
        "then",
        "when",
        "else",
        "where",
        "group",
        "any",
        "all",
        "case",
        "select",
        "lateral",
        "distinct",
    }
    keywords |= {"decimal", "union", "except", "intersect", "having", "join", "cube", "limit", "between", "like", "is"}
    keywords |= {"rows", "range", "for", "pivot", "unpivot", "rollup", "try_cast", "extract"}
    texts = [attack.text.partition(" sql ")[2] for attack in ATTACKS if attack.kind != "odd text"]
    parts = [re.findall(r"\w+|'[^']*'|`[^`]*`|\S", text) for text in (*texts, *legal.QUERIES)]
    chance = random.Random(7)
    passed = 0
    for _ in range(1_500):
        one, other = chance.choice(parts) or ["1"], chance.choice(parts) or ["1"]
        cut, at = chance.randrange(len(one) + 1), chance.randrange(len(other) + 1)
        text = " ".join([*one[:cut], *other[at:][: chance.randrange(1, 12)], *one[cut + chance.randrange(3) :]])
        try:
            checked = checked_query(text)
        except ConfigError:
            continue
        passed += 1
        assert checked_query(checked) == checked
        plain = re.sub(r"'(?:[^'\\]|\\.)*'|`[^`]*`", " ", checked)
        assert {name.lower() for name in re.findall(r"(\w+)\s*\(", plain)} <= allowed | keywords, checked
        assert not re.search(r"[;{}$#@]|/\*|--", plain), checked
    assert passed > 50


def _plain(plan: str) -> str:
    """A parsed plan without its numbers; words of SQL in one case, and both ways to write IS NOT NULL as one."""
    return re.sub(r"#\d+l?|\bplan_id=\d+|@[0-9a-f]+", "", plan.lower()).replace("not isnull(", "isnotnull(")


def test_spark_reads_the_same_plan_from_what_passes(lake: Lake) -> None:
    parser = lake.spark._jsparkSession.sessionState().sqlParser()  # type: ignore[attr-defined]
    for query in legal.QUERIES:
        bare = query.strip().removesuffix(";")
        plans = [_plain(parser.parsePlan(text).toString()) for text in (bare, checked_query(query))]
        assert plans[0] == plans[1], query
    for text in legal.EXPRESSIONS:
        trees = [_plain(parser.parseExpression(one).toString()) for one in (text, checked_expression("k", text))]
        assert trees[0] == trees[1], text


def test_nothing_comes_of_attacks_on_a_session(lake: Lake, tmp_path: Path) -> None:
    rows, failed = session.outcomes(session.Target(lake, tmp_path))
    assert not failed, [row for row in rows if row[2] != "yes"]
