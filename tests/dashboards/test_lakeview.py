"""AI/BI dashboards: every dataset runs on Spark and has what its widgets show; what is newest is shown, once."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest

from tests.lake.test_gold_views import rows_of
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse, RolesConf
from uplift_spark.dashboards.lakeview import LakeviewParameters, lakeview_files
from uplift_spark.errors import ConfigError
from uplift_spark.jobs import dashboard
from uplift_spark.lake.tables import Lake
from uplift_spark.spark_versions import sql_text

ABOUT = LakeviewParameters("spark_catalog", "spring", "visit")
FILES = {name: json.loads(text) for name, text in lakeview_files(ABOUT).items()}


def datasets() -> dict[str, dict[str, Any]]:
    return {one["name"]: one for file in FILES.values() for one in file["datasets"]}


def widgets() -> list[tuple[str, dict[str, Any]]]:
    return [(name, item) for name, file in FILES.items() for page in file["pages"] for item in page["layout"]]


@pytest.mark.parametrize("name", FILES)
def test_widgets_fit_the_grid_and_name_what_their_query_has(name: str) -> None:
    (page,) = FILES[name]["pages"]
    taken: set[tuple[int, int]] = set()
    for item in page["layout"]:
        at = item["position"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["width"]) for j in range(at["height"])}
        assert not taken & cells and max(x for x, _ in cells) < 6
        taken |= cells
        (query,) = item["widget"]["queries"]
        assert query["name"] == "main_query"  # any other name leaves a widget blank
        fields = [field["name"] for field in query["query"]["fields"]]
        shown = json.dumps(item["widget"]["spec"]["encodings"])
        used = [part.partition('"')[0] for part in shown.split('"fieldName": "')[1:]]
        assert used and set(used) <= set(fields)
        assert item["widget"]["spec"]["frame"]["description"]
    names = [item["widget"]["name"] for item in page["layout"]]
    assert len(set(names)) == len(names)
    tops = [item["position"]["y"] for item in page["layout"]]
    assert all(a <= b for a, b in pairwise(tops))


def test_every_parameter_of_a_query_is_declared_with_its_default() -> None:
    for one in datasets().values():
        (query,) = one["queryLines"]
        declared = {p["keyword"]: p["defaultSelection"]["values"]["values"][0]["value"] for p in one["parameters"]}
        used = {key for key in ("campaign", "outcome") if f":{key}" in query}
        assert set(declared) == used and declared.items() <= vars(ABOUT).items()
        assert query.count(".gold.") == query.count("`spark_catalog`.gold.") > 0


@pytest.fixture(scope="module")
def shown(spark, tmp_path_factory) -> dict[str, list[dict[str, Any]]]:
    """Rows of every dataset."""
    lake = Lake(spark, Lakehouse(path=str(tmp_path_factory.mktemp("lakeview") / "lakehouse")))
    sizes = {("x", "3"): 6, ("x", "4"): 6, ("y", "3"): 6, ("y", "4"): 2}
    plan = [
        {"unit_id": f"{level}{version}{i}", "treatment": level, "model_version": version}
        for (level, version), n in sizes.items()
        for i in range(n)
    ]
    for n in (1, 2):
        rows_of(lake, "costs", f"costs-{n}", {"amount": 10.0 * n}, {"amount": 1.0, "kind": "expense"})
        rows_of(lake, "roi", f"costs-{n}", {"model_version": "all", "net": 100.0 * n}, {"model_version": "3"})
        rows_of(lake, "policy_curve", f"policy-{n}", {"budget": 50.0 * n}, {"campaign": "other"})
        rows_of(lake, "policy_decisions", f"policy-{n}", *plan)
        rows_of(lake, "kpi", f"monitor-{n}", {"kpi": "error_rate", "cut": "all", "value": 0.1 * n})
    rows_of(lake, "costs", "costs-3", {"amount": 99.0})  # of a run that was killed: gold.roi has none of it
    of = {"outcome": "visit", "treatment": "mail"}
    cuts = [
        {**of, "cut": "all"},
        {**of, "cut": "segment:age", "bucket": "old"},
        {**of, "cut": "decile", "bucket": "10"},
    ]
    rows_of(lake, "lift_table", "lift-2", *({**one, "uplift": 9.0} for one in cuts))
    rows_of(lake, "lift_table", "lift-1", *cuts)
    rows_of(lake, "uplift_curve", "lift-1", of)
    rows_of(lake, "uplift_metrics", "lift-1", of)
    rows_of(lake, "lift_driver", "lift-1", of)
    rows_of(
        lake, "alerts", "alerts-1", {"alert": "a", "sequence": 1, "event": "fired"}, {"alert": "b", "event": "fired"}
    )
    rows_of(lake, "alerts", "alerts-2", {"alert": "a", "sequence": 2, "event": "resolved"})
    for table, run in (("findings", "monitor-2"), ("drift", "monitor-2"), ("canary", "canary-1")):
        rows_of(lake, table, run, {})
    lake.sql("SELECT 1").collect()  # lets the session know the tables by their names

    def bound(query: str) -> str:  # Delta's parser takes no parameters, which those of Databricks do
        return re.sub(r":(campaign|outcome)\b", lambda hit: sql_text(vars(ABOUT)[hit.group(1)]), query)

    rows = {name: spark.sql(bound(one["queryLines"][0])).collect() for name, one in datasets().items()}
    return {name: [row.asDict() for row in some] for name, some in rows.items()}


def test_every_dataset_runs_and_has_what_its_widgets_show(shown) -> None:
    for _, item in widgets():
        (query,) = item["widget"]["queries"]
        rows = shown[query["query"]["datasetName"]]
        assert rows and {field["name"] for field in query["query"]["fields"]} <= set(rows[0])


def test_what_is_newest_is_shown_once(shown) -> None:
    assert [row["net"] for row in shown["net_of_costs"]] == [200.0]
    assert sorted(row["amount"] for row in shown["spending"]) == [1.0, 20.0]
    assert [row["budget"] for row in shown["plans"]] == [100.0]
    plan = [(row["units"], row["gain"], row["cost"]) for row in shown["decisions"]]
    assert plan == [(12, 12.0, 12.0), (8, None, None)]  # no sum where two units of a version are hidden
    assert [row["value"] for row in shown["kpis"]] == [0.2] == [row["value"] for row in shown["kpi_trends"]]
    assert [row["uplift"] for row in shown["levels"]] == [1.0]  # of the run that was written last
    assert [row["rule"] for row in shown["open_alerts"]] == ["x"]  # the other one is resolved
    assert {row["figure"] for row in shown["deciles"]} == {"mail, observed", "mail, predicted"}


def test_without_a_catalog_it_says_what_to_do(tmp_path) -> None:
    campaign = Campaign(Config("spring", None, RolesConf("visit", "none", ("age",))))
    with pytest.raises(ConfigError, match=r"lakehouse\.catalog is not set: name it"):
        dashboard.run(campaign, request=dashboard.DashboardRequest("lakeview", tmp_path))
