"""The user's own table, from the file to bronze: what arrives, what is refused with which words, another try."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, RolesConf, load_config
from uplift_spark.errors import ConfigError, ConflictError, DataError
from uplift_spark.events.table_source import check_names, refuse_wrong_propensities
from uplift_spark.jobs import features, ingest
from uplift_spark.lake.tables import Lake
from uplift_spark.sections.source import LONG_AGO, TableSource

CSV = """Kunde;Source;arm;bought;total ads;zip;since;stop
1001;web;Ja;Yes;1,5;01234;2024-01-03;
1002;shop;Nein;No;2,25;1234;;
1002;shop;Nein;No;2,25;1234;;
1003;"a
b";Nein;Yes;-99;00001;2024-01-02;
1004;web;Ja;No;;1E5;2024-01-02;
1005;web;Ja;No;;1;2024-01-02;
1005;web;Nein;No;;1;2024-01-02;
;web;Ja;No;;1;2024-01-02;
1006;web;Vielleicht;No;;1;2024-01-02;
1007;web;Nein;;;1;2024-01-02;
1008;web;Nein;No;;1;2024-01-02;x
"""


def source(path: Path | str, **changes: Any) -> TableSource:
    usual: dict[str, Any] = {
        "unit": "Kunde",
        "treatment": "arm",
        "arms": {"Ja": "mail", "Nein": "none"},
        "outcomes": ("bought",),
        "attributes": ("channel", "ads", "zip", "since"),
        "rename": {"Source": "channel", "total ads": "ads"},
        "where": "stop IS NULL",
        "missing": (-99.0,),
    }
    return TableSource(kind="table", path=str(path), **{**usual, **changes})


def config(one: TableSource, **changes: Any) -> Config:
    usual: dict[str, Any] = {
        "campaign": "own",
        "roles": RolesConf("bought", "none", ("channel", "ads", "zip", "since")),
    }
    return Config(source=one, **{**usual, **changes})


def rows(lake: Lake, table: str) -> pd.DataFrame:
    frame = lake.read(table).toPandas()
    return frame[frame["campaign"] == "own"] if "campaign" in frame else frame


@pytest.mark.slow
def test_a_file_as_users_have_them_arrives_whole(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "customers.csv"
    path.write_text(CSV, encoding="cp1252")
    said: list[str] = []
    result = ingest.run(Campaign(config(source(path)), lake), said.append)
    assert result.details == {
        "units": {"mail": 2, "none": 3},
        "rejected": {"unit_present": 1, "treatment_known": 1, "repeated": 2},
        "unknown": {"bought": 1},
        "left_out": 1,
        "equal_rows": 1,
    }
    assert "10 of 11 rows meet source.where, the others are left out" in said
    assert "1 rows are equal to another row of their unit: each counts once" in said
    profile = rows(lake, "bronze.profile_own").set_index("unit_id").sort_index()
    assert profile["zip"].to_list() == ["01234", "1234", "00001", "1E5", "1"]
    assert profile["channel"].to_list()[:3] == ["web", "shop", "a\nb"]
    assert profile["ads"].fillna(-1).to_list() == [1.5, 2.25, -1, -1, -1]
    assert profile["since"].iloc[0] == (date(2024, 1, 3) - date(1970, 1, 1)).days and pd.isna(profile["since"].iloc[1])
    assigned = rows(lake, "bronze.assignment").set_index("unit_id")
    assert assigned["treatment"].to_dict() == {
        "1001": "mail", "1002": "none", "1003": "none", "1004": "mail", "1007": "none",
    }  # fmt: skip
    assert assigned["propensity"].to_dict()["1001"] == 0.4 and set(assigned["assigned_at"]) == {LONG_AGO}
    events = rows(lake, "bronze.outcome").set_index("unit_id")["value"]
    assert events["1001"] == events["1003"] == 1.0 and pd.isna(events["1007"]) and len(events) == 3

    again = ingest.run(Campaign(config(source(path)), lake))
    assert again.run_id == result.run_id and all(table["skipped"] for table in again.tables.values())
    (tmp_path / "elsewhere").mkdir()
    path = path.rename(tmp_path / "elsewhere" / path.name)
    assert ingest.run(Campaign(config(source(path)), lake)).run_id == result.run_id
    assert features.run(Campaign(config(source(path), holdout=1e-6), lake)).details["labelled"] == 5


@pytest.mark.slow
def test_another_try_takes_the_place_of_the_first(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "customers.csv"
    path.write_text("id,arm,y,x\n" + "".join(f"{i},{i % 2},{i % 3},{i % 5}\n" for i in range(20)))
    plain: dict[str, Any] = {"rename": {}, "where": None, "missing": (), "arms": None, "unit": "id"}
    first = source(path, **plain, outcomes=("y",), attributes=("x",))
    roles = RolesConf("y", "0", ("x",))
    one = ingest.run(Campaign(config(first, roles=roles), lake))
    path.write_text("id,arm,y,x,z\n" + "".join(f"{i},{i % 2},{i % 3},a{i % 5},{i}\n" for i in range(30)))
    second = source(path, **plain, outcomes=("y",), attributes=("x", "z"))
    with pytest.raises(ConflictError, match=r"already holds campaign 'own' .* with --replace"):
        ingest.run(Campaign(config(second, roles=roles), lake))
    said: list[str] = []
    two = ingest.run(Campaign(config(second, roles=roles), lake), said.append, replace=True)
    assert f"bronze.assignment: 20 rows of {one.run_id} removed, older versions have them" in said
    assert len(rows(lake, "bronze.assignment")) == 30 and set(rows(lake, "bronze.outcome")["run_id"]) == {two.run_id}
    assert list(rows(lake, "bronze.profile_own").columns[:3]) == ["unit_id", "x", "z"]
    for table in ("bronze.assignment", "bronze.profile_own"):
        assert lake.properties(table)["delta.appendOnly"] == "true"
    for again in (True, False):
        same = ingest.run(Campaign(config(second, roles=roles), lake), replace=again)
        assert same.run_id == two.run_id and all(table["skipped"] for table in same.tables.values())
    path.write_text("id,arm,y,x\n" + "".join(f"{i},{i % 2},{i % 3},{i % 5}\n" for i in range(20)))
    back = ingest.run(Campaign(config(first, roles=roles), lake), replace=True)  # to what was there before
    assert back.run_id not in (one.run_id, two.run_id) and len(rows(lake, "bronze.assignment")) == 20


@pytest.mark.slow
def test_a_delta_table_at_a_version(lake: Lake, tmp_path: Path) -> None:
    path = str(tmp_path / "crm")
    at = "timestamp'2024-03-01 10:00:00Z'"
    some = (
        f"SELECT CAST(id AS double) AS Kunde, IF(id % 2 = 0, true, false) AS arm, 'Yes' AS bought, id AS ads,"
        f" {at} AS sent, IF(id % 2 = 0, 0.5D, 0.5D) AS p FROM range(%s)"
    )
    for n in (20, 40):
        lake.spark.sql(some.replace("%s", str(n))).write.format("delta").mode("overwrite").save(path)
    own = source(
        path, rename={}, where=None, missing=(), attributes=("ads",), assigned_at="sent", propensity="p", version=0,
        arms={"true": "mail", "false": "none"},
    )  # fmt: skip
    roles = RolesConf("bought", "none", ("ads",))
    result = ingest.run(Campaign(config(own, roles=roles), lake))
    assert result.details["units"] == {"mail": 10, "none": 10}
    assigned = rows(lake, "bronze.assignment")
    assert sorted(assigned["unit_id"], key=int) == [str(i) for i in range(20)]
    assert set(assigned["assigned_at"]) == {datetime(2024, 3, 1, 10)} and set(assigned["propensity"]) == {0.5}
    with pytest.raises(DataError, match=r"crm has no version 7 to read, its newest is 1"):
        ingest.run(Campaign(config(source(path, rename={}, version=7), roles=roles), lake))
    with pytest.raises(ConfigError, match=r"source.unit is missing: .* name the column of their id"):
        ingest.run(Campaign(config(source(path, rename={}, unit=None), roles=roles), lake))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"outcomes": ("boughtt",)}, DataError, r"no column 'boughtt', .* did you mean 'bought'"),
        ({"outcomes": ("zip",), "attributes": ("ads",)}, DataError, r"'zip' must hold numbers, but 1 rows .*'a'"),
        ({"where": "stop IS"}, ConfigError, r"source.where='stop IS' must be an expression over"),
        ({"arms": {"Ja": "a", "Nein": "b"}}, ConfigError, "none of the source's levels"),
        ({"assigned_at": "zip"}, DataError, r"'zip' is string, not a time: .*source.types: \{zip: '%d.%m.%Y'\}"),
        ({"propensity": "p"}, DataError, r"'p' is not the probability .* 0.50 times in mail, 1.50 times in none"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_write(
    changes: dict[str, Any], error: type[Exception], message: str, lake: Lake, tmp_path: Path
) -> None:
    path = tmp_path / "c.csv"
    lines = [f"{i},{'Ja' if i % 4 == 0 else 'Nein'},1,{i},{'a' if i == 3 else i},,.5\n" for i in range(800)]
    path.write_text("Kunde,arm,bought,ads,zip,stop,p\n" + "".join(lines))
    usual: dict[str, Any] = {"rename": {}, "attributes": ("ads", "zip"), **changes}
    with pytest.raises(error, match=message) as caught:
        ingest.run(Campaign(config(source(path, **usual), roles=RolesConf("bought", "none", ("ads",))), lake))
    assert "\n" not in str(caught.value) and lake.tables() == []


@pytest.mark.parametrize("name", ["Source", "TREATMENT", "run_id", "_x", "split", "Mature", "total ads"])
def test_names_that_the_tables_use_are_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(ConfigError, match=r"source.rename: \{"):
        check_names(source("x.csv", attributes=(name,)))


def test_names_that_differ_by_case_are_refused() -> None:
    with pytest.raises(ConfigError, match="'x1' and 'X1' differ by their case alone"):
        check_names(source("x.csv", attributes=("x1", "X1")))


def test_the_inverse_propensities_of_every_level_add_up_to_all_units() -> None:
    own = SimpleNamespace(propensity_columns=("p",))

    def arms(treated: tuple[int, float], control: tuple[int, float]) -> list[dict[str, Any]]:
        named = {"mail": treated, "none": control}
        return [
            {"treatment": arm, "n": n, "_inverse": n / p, "_spread": n * (1 - p) / p**2}
            for arm, (n, p) in named.items()
        ]

    for right in ((300, 0.3), (700, 0.7)), ((9, 0.3), (11, 0.7)), ((31_000, 0.3), (69_000, 0.7)):
        refuse_wrong_propensities(arms(*right), own, "x")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"1,000 units 2\.33 times in none"):
        refuse_wrong_propensities(arms((300, 0.3), (700, 0.3)), own, "x")  # type: ignore[arg-type]


def test_propensities_by_level(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    lines = [f"{i},{'Ja' if i % 4 == 0 else 'Nein'},1,{i},.25\n" for i in range(400)]
    path.write_text("Kunde,arm,bought,ads,p\n" + "".join(lines))
    own = source(path, rename={}, where=None, attributes=("ads",), propensity={"mail": "p"})
    ingest.run(Campaign(config(own, roles=RolesConf("bought", "none", ("ads",))), lake))
    assigned = rows(lake, "bronze.assignment")
    assert assigned.groupby("treatment")["propensity"].mean().to_dict() == {"mail": 0.25, "none": 0.75}


def test_a_configuration_says_what_texts_mean_without_quotes(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "campaign: own\n"
        "source: {kind: table, path: x.csv, treatment: arm, outcomes: [bought], attributes: [plan, vip],\n"
        "  arms: {Yes: mail, No: none},\n"
        "  values: {bought: {Yes: 1, No: 0}, vip: {Y: 1, N: 0}, plan: {001: basic, 1: 1}}}\n"
        "roles: {outcome: bought, control: none, features: [plan, vip]}\n"
    )
    own = load_config(tmp_path / "own.yaml").source
    assert isinstance(own, TableSource) and own.arms == {"Yes": "mail", "No": "none"}
    assert own.values["bought"] == {"Yes": 1.0, "No": 0.0} and own.values["vip"] == {"Y": 1.0, "N": 0.0}
    assert own.values["plan"] == {"001": "basic", "1": "1"}  # texts, as one of them is no number


def test_a_table_is_a_path_or_a_name() -> None:
    with pytest.raises(ConfigError, match="needs one of `path`"):
        TableSource(kind="table", treatment="a", outcomes=("y",), attributes=("x",))


@pytest.mark.slow
def test_a_cluster_of_numbers_is_kept_as_ids(lake: Lake, tmp_path: Path) -> None:
    path = tmp_path / "schools.csv"
    lines = [f"{unit},{('none', 'mail')[unit // 4 % 2]},{unit % 2},{unit % 7},{unit // 4}" for unit in range(40)]
    path.write_text("\n".join(["Kunde,arm,bought,age,school", *lines]))
    one = source(path, arms=None, attributes=("age", "school"), rename={}, where=None, missing=())
    roles = RolesConf("bought", "none", ("age",), cluster="school")
    ingest.run(Campaign(config(one, roles=roles), lake), lambda line: None)
    profile = rows(lake, "bronze.profile_own")
    assert sorted(set(profile["school"]), key=int) == [str(school) for school in range(10)]
    assert profile["age"].dtype == float


DOSES = """Kunde,price,bought,ads
a,0,1,1
b,0.5,1,1
c,0.51,0,1
d,"1,5",0,1
e,2,0,1
f,250,1,1
g,free,1,1
h,,1,1
i,inf,1,1
j,1e0,1,1
k,-99,0,1
"""


def priced(path: Path, **changes: Any) -> Config:
    one = source(path, treatment="price", arms=None, attributes=("ads",), rename={}, where=None)
    roles = RolesConf("bought", "0", ("ads",), grid=(1, 2))
    return config(one, roles=roles, **changes)


def test_doses_stand_beside_the_level_of_their_bin(lake: Lake, tmp_path: Path) -> None:
    """Tables of a campaign of levels, there before, get the column and keep their rows."""
    levels = tmp_path / "levels.csv"
    levels.write_text("Kunde,arm,bought,ads\n" + "".join(f"{i},{i % 2},1,{i}\n" for i in range(4)))
    plain = source(levels, arms=None, attributes=("ads",), rename={}, where=None)
    ingest.run(Campaign(config(plain, campaign="levels", roles=RolesConf("bought", "0", ("ads",))), lake))
    assert "dose" not in lake.read("bronze.assignment").columns

    path = tmp_path / "prices.csv"
    path.write_text(DOSES)
    said: list[str] = []
    result = ingest.run(Campaign(priced(path), lake), said.append)
    assert result.details["units"] == {"0": 2, "1": 2, "2": 2}
    assert result.details["rejected"] == {"treatment_number": 4, "treatment_present": 1}
    assert result.details["mean_dose"] == {"0": 0.25, "1": 0.755, "2": 126.0}
    assert "4 rows rejected by rule treatment_number, kept in bronze.quarantine" in said
    assert any("column 'price' has 4 doses that are no finite number: correct them" in line for line in said)
    assert result.details["beyond_the_grid"] == 1
    assert any("column 'price' has 1 doses below -0.5 or above 2.5, which count as" in line for line in said)
    assigned = rows(lake, "bronze.assignment").set_index("unit_id").sort_index()
    assert assigned["dose"].to_dict() == {"a": 0.0, "b": 0.5, "c": 0.51, "e": 2.0, "f": 250.0, "j": 1.0}
    bins = priced(path).roles.bins
    assert bins is not None
    assert assigned["treatment"].to_list() == [bins.level(dose) for dose in assigned["dose"]]
    quarantined = rows(lake, "bronze.quarantine")["row"].str.cat()
    assert '"treatment":"free"' in quarantined and '"treatment":"1,5"' in quarantined
    everybody = lake.read("bronze.assignment").toPandas()
    assert everybody.loc[everybody["campaign"] == "levels", "dose"].isna().tolist() == [True] * 4

    again = ingest.run(Campaign(priced(path), lake))
    assert again.run_id == result.run_id and all(table["skipped"] for table in again.tables.values())
    more = config(plain, campaign="later", roles=RolesConf("bought", "0", ("ads",)))
    ingest.run(Campaign(more, lake))  # a campaign of levels after it
    assert lake.read("bronze.assignment").where("campaign = 'later' AND dose IS NULL").count() == 4

    other = replace(priced(path), roles=RolesConf("bought", "0", ("ads",), grid=(2,)))
    with pytest.raises(DataError, match=r"6 units of campaign 'own', 2 of them with the level of another grid"):
        features.run(Campaign(other, lake))
    campaign = config(plain, campaign="levels", roles=RolesConf("bought", "0", ("ads",), grid=(1,)))
    with pytest.raises(DataError, match=r"4 of them without a number in column 'dose'"):
        features.run(Campaign(campaign, lake))
    empty = replace(priced(path, campaign="thin"), roles=RolesConf("bought", "0", ("ads",), grid=(1, 2, 40, 80)))
    with pytest.raises(DataError, match=r"column 'price' has no dose nearest to 40: remove it from roles.grid"):
        ingest.run(Campaign(empty, lake))
