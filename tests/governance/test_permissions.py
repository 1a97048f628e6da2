"""Who may run what, by the system's user or a token, and the GRANTs of the same roles. No Spark."""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from uplift_spark import cli, console, jobs
from uplift_spark.cli import app, verbs
from uplift_spark.config import Config, Lakehouse, RolesConf
from uplift_spark.errors import ConfigError
from uplift_spark.gold_views import GOLD_VIEWS
from uplift_spark.governance import permissions
from uplift_spark.governance.permissions import TOKEN_ENV, VERBS_OF, acting_user, check_permitted, grants
from uplift_spark.lake.schemas import all_contracts
from uplift_spark.runtime import os_user
from uplift_spark.sections.costs import Costs
from uplift_spark.sections.governance import AccessConf, ApprovalConf, AuditConf, Governance

ROLES = {"operator": ("olga", "etl`s"), "approver": ("ann",), "viewer": ("vic", "ann"), "privacy_officer": ("pia",)}
SHA = hashlib.sha256(b"a token of ann's").hexdigest()


def conf(**lakehouse) -> Config:
    access = AccessConf(ROLES, {"ann": SHA.upper()})
    roles = RolesConf("visit", "none", ("age",))
    return Config(
        "spring", {"kind": "simulation"}, roles, lakehouse=Lakehouse(**lakehouse), governance=Governance(access=access)
    )


def test_each_verb_has_a_role_and_no_role_a_verb_that_is_not_there() -> None:
    listed = {verb.partition(" ")[0] for role in VERBS_OF.values() for verb in role}
    assert {command.name.replace("-", "_") for command in app.registered_commands if command.name} == set(verbs())
    own = {command.callback.__name__ for command in app.registered_commands if command.callback and not command.name}
    assert set(verbs()) | own == listed and own == {"demo", "quickstart", "sql", "tables"}


@pytest.mark.parametrize(
    ("user", "may", "may_not"),
    [
        ("vic", ("doctor", "audit", "audit show"), ("report", "train", "sql", "audit explain", "erase", "approve")),
        ("olga", ("train", "policy", "export", "audit bias"), ("approve", "erase", "audit explain")),
        ("ann", ("approve", "reject", "audit verify"), ("train", "erase", "export")),
        ("pia", ("erase", "audit explain"), ("train", "export", "approve")),
        ("nobody", (), ("report", "audit")),
    ],
)
def test_a_user_may_what_a_role_may(user: str, may: tuple, may_not: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "os_user", lambda: user)
    for action in may:
        check_permitted(conf(), action)
    for action in may_not:
        with pytest.raises(ConfigError, match=f"{user} (is|has no role).*may not run `uplift {action}`"):
            check_permitted(conf(), action)
        check_permitted(replace(conf(), governance=Governance()), action)  # without the section everybody may


def test_a_token_is_its_users_and_a_wrong_one_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permissions, "os_user", lambda: "vic")
    assert acting_user(conf()) == "vic"
    monkeypatch.setenv(TOKEN_ENV, "a token of ann's")
    assert acting_user(conf()) == "ann"
    check_permitted(conf(), "approve")
    monkeypatch.setenv(TOKEN_ENV, "guessed")
    with pytest.raises(ConfigError, match="nobody's token"):
        check_permitted(conf(), "report")
    with pytest.raises(Exception, match="pattern"):
        AccessConf(ROLES, {"ann": "a token of ann's"})


def test_on_databricks_the_user_is_the_one_that_spark_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's user is root there for everybody, and a token must not make one user two in checks and log."""

    class Session:
        def sql(self, query: str) -> Session:
            assert query == "SELECT current_user()"
            return self

        def collect(self) -> list[tuple[str]]:
            return [("vic",)]

    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "16.4")
    monkeypatch.setattr("uplift_spark.lake.session.spark_session", lambda _: Session())
    monkeypatch.setenv(TOKEN_ENV, "a token of ann's")
    assert acting_user(conf()) == "vic"
    check_permitted(conf(), "doctor")
    with pytest.raises(ConfigError, match="vic is viewer and may not run `uplift approve`"):
        check_permitted(conf(), "approve")


def test_the_page_has_every_verb_of_every_role() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "governance.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (?:an? (\w+)'s, and )?(.*) \|$", page, re.M)
    documented: dict[str, set[str]] = {}
    for role, base, verbs_ in rows:
        if role in VERBS_OF:
            documented[role] = documented.get(base, set()) | set(verbs_.replace("-", "_").split(", "))
    assert documented == {role: set(verbs_) for role, verbs_ in VERBS_OF.items()}


def test_the_systems_user_is_not_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os_user()
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody-else")
    assert os_user() == mine != "somebody-else"


def test_grants_are_least_privilege() -> None:
    statements = grants(conf(catalog="main"))
    assert len(statements) == len(set(statements))
    to = {
        name: [s for s in statements if s.endswith(f"TO `{name}`;")] for name in ("vic", "olga", "ann", "pia", "etl``s")
    }
    assert sum(map(len, to.values())) == len(statements) and len(to["olga"]) == len(to["etl``s"])
    assert not [s for s in to["vic"] if "MODIFY" in s or "silver" in s or "bronze" in s]
    assert {s.split("`")[5] for s in to["ann"] if "MODIFY" in s} == {"bias_audit", "audit_log"}
    assert not [s for s in to["ann"] if "bronze" in s]
    # A viewer reads every gold table without units, and none with them; the trees of the log hold hashes alone.
    gold = [one for one in all_contracts() if one.table.startswith("gold.")]
    figures = {one.table.split(".")[1] for one in gold if "unit_id" not in one.columns.fieldNames()}
    readable = {s.split("`")[5] for s in to["vic"] if s.startswith("GRANT SELECT ON TABLE")}
    assert readable == figures | set(GOLD_VIEWS)
    for wrong in (conf(), replace(conf(catalog="main"), governance=Governance())):
        with pytest.raises(ConfigError, match=r"GRANTs need governance\.access"):
            grants(wrong)


def test_views_that_a_viewer_reads_show_no_unit() -> None:
    gold = {one.table: one.columns.fieldNames() for one in all_contracts() if one.table.startswith("gold.")}
    for view in GOLD_VIEWS.values():
        whole = re.findall(r"t\.\*.*? FROM (gold\.\w+) t", view.query)
        assert len(whole) == view.query.count("t.*") and "unit_id" not in view.query, view.name
        assert not [table for table in whole if "unit_id" in gold[table]], view.name
    assert "t.*" not in GOLD_VIEWS["v_plan"].query  # the only one of rows about units has sums


def test_whoever_reads_the_schema_needs_no_right_to_its_views() -> None:
    """Analysts and approvers have the schema, so a right to single views would be one too many."""
    access = AccessConf({"analyst": ("ana",), "approver": ("ann",), "operator": ("olga",), "privacy_officer": ("pia",)})
    statements = grants(replace(conf(catalog="main"), governance=Governance(access=access)))
    assert not [one for one in statements if "`v_" in one]
    for name in ("ana", "ann", "olga", "pia"):
        reads = [one for one in statements if re.search(rf"SELECT.* ON SCHEMA `main`.`gold` TO `{name}`;", one)]
        assert len(reads) == 1, name


def test_grants_let_every_role_run_its_verbs() -> None:
    """What a verb reads and writes, from the contracts of the tables and from what the jobs do to the model."""
    who = {"analyst": "ana", "operator": "olga", "approver": "ann", "privacy_officer": "pia"}
    access = AccessConf({role: (name,) for role, name in who.items()})
    base = conf(catalog="main")
    bound = replace(base, governance=Governance(AuditConf(), ApprovalConf(), access=access))
    free = replace(base, governance=Governance(access=access))

    def rights(config: Config, role: str) -> set[str]:
        end = f" TO `{who[role]}`;"
        return {one.removeprefix("GRANT ").removesuffix(end) for one in grants(config) if one.endswith(end)}

    shared = {"readout": ("gold.experiment", "gold.audit_log"), "audit bias": ("gold.audit_log",)}
    shared |= {"approve": ("gold.audit_log",), "check": ("gold.audit_log",)}
    for role in ("analyst", "approver"):
        mine = rights(bound, role)
        written = {one.table for one in all_contracts() if one.job in VERBS_OF[role]}
        written |= {"gold.bias_audit"} | {table for verb in VERBS_OF[role] for table in shared.get(verb, ())}
        for table in written:
            schema, name = table.split(".")
            assert f"CREATE TABLE ON SCHEMA `main`.`{schema}`" in mine, table
            named = name.replace("<campaign>", "spring")
            assert f"MODIFY ON TABLE `main`.`{schema}`.`{named}`" in mine, table
        assert {f"SELECT ON SCHEMA `main`.`{schema}`" for schema in ("silver", "gold")} <= mine
    timed = replace(bound, costs=Costs())
    assert all("MODIFY ON TABLE `main`.`gold`.`run_log`" in rights(timed, role) for role in ("analyst", "approver"))
    model = " ON FUNCTION `main`.`gold`.`spring`"
    assert "CREATE MODEL ON SCHEMA `main`.`gold`" in rights(bound, "operator")
    for role, wanted in {
        "analyst": {"EXECUTE"},
        "operator": {"EXECUTE", "CREATE MODEL VERSION", "APPLY TAG"},  # approvers promote
        "approver": {"EXECUTE", "APPLY TAG", "MANAGE"},
        "privacy_officer": {"EXECUTE", "CREATE MODEL VERSION", "APPLY TAG", "MANAGE"},
    }.items():
        assert {one.removesuffix(model) for one in rights(bound, role) if one.endswith(model)} == wanted, role
    assert f"MANAGE{model}" in rights(free, "operator")  # training promotes
    assert "CREATE TABLE ON SCHEMA `main`.`silver`" in rights(bound, "privacy_officer")  # silver.trained_<model>


def test_the_command_line_refuses_before_spark_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    text = "campaign: spring\nsource: {kind: simulation}\nroles: {outcome: visit, control: none, features: [age]}\n"
    text += "lakehouse: {catalog: main}\ngovernance: {access: {roles: {viewer: [vic], approver: [ann]}}}\n"
    (tmp_path / "c.yaml").write_text(text)
    monkeypatch.setattr(permissions, "os_user", lambda: "vic")
    units = {"assign": ("--sql", "spark"), "sql": ("SELECT 1",), "monitoring-files": ("--to", str(tmp_path / "out"))}
    for verb in ("train", "demo", "serve", *units, "grants"):
        line = (verb, *units.get(verb, ()))
        monkeypatch.setattr("sys.argv", ["uplift", *line, "--conf", str(tmp_path / "c.yaml")])
        with pytest.raises(SystemExit):
            cli.main()
        assert f"vic is viewer and may not run `uplift {verb}`" in capsys.readouterr().err
    monkeypatch.setattr(permissions, "os_user", lambda: "ann")
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert not done.value.code and "GRANT USE CATALOG ON CATALOG `main` TO `vic`;" in capsys.readouterr().out


def test_every_command_that_reads_a_configuration_names_its_verb() -> None:
    """`read_config` checks who may run a verb, so a call without one would run for everybody."""
    calls = [
        ast.unparse(node)
        for path in (*Path(jobs.__path__[0]).glob("*.py"), Path(cli.__file__), Path(console.__file__))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "read_config"
    ]
    assert len(calls) >= 9 and [call for call in calls if call.count(", ") < 2] == []


def test_readings_of_the_demo_are_readouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Started(Exception):
        """Spark would start now."""

    def started(*_: object) -> None:
        raise Started

    folder = Path(__file__).resolve().parents[2] / "conf"
    example = (folder / "experiment.yaml").read_text().replace("features/", f"{folder}/features/")
    example = example.replace("then: ", f"then: {folder}/")
    (tmp_path / "c.yaml").write_text(example + "governance: {access: {roles: {operator: [olga], viewer: [vic]}}}\n")
    monkeypatch.setattr(console, "open_campaign", started)
    monkeypatch.setattr("sys.argv", ["uplift", "demo", "--conf", str(tmp_path / "c.yaml")])
    monkeypatch.setattr(permissions, "os_user", lambda: "olga")
    with pytest.raises(Started):
        cli.main()
    monkeypatch.setattr(permissions, "os_user", lambda: "vic")
    with pytest.raises(
        ConfigError, match="vic is viewer and may not run `uplift readout`, which analyst or operator may"
    ):
        console.run_jobs({"readout 25%": started}, tmp_path / "c.yaml", None, None)  # type: ignore[dict-item]
