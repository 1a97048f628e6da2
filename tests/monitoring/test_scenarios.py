"""promtool proves every rule; a rule that is spoilt fails its cases, so that the proof means something."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.monitoring.services import program
from uplift_spark.errors import EnvironmentProblem
from uplift_spark.monitoring.kpis import FOUNDING_KPIS, kpi_named
from uplift_spark.monitoring.prometheus import (
    PromRule,
    RuleFileNames,
    ScrapeTargets,
    alertmanager_file,
    monitor_rules,
    platform_rules,
    prometheus_file,
    rule_files,
    service_rules,
    serving_records,
)
from uplift_spark.monitoring.scenarios import CASES, case_files, proven_cases, rule_cases

NAMES = RuleFileNames()


def every_rule() -> list[PromRule]:
    return [*monitor_rules("spring", FOUNDING_KPIS, 24), *service_rules("spring", FOUNDING_KPIS), *platform_rules()]


def written(folder: Path, rules: list[PromRule], of: list[PromRule] | None = None) -> list[str]:
    """Files of rules, and tests of `of`; names of the tests."""
    tests = case_files(of or rules, NAMES, "test")
    for name, text in {**rule_files(rules, serving_records("spring", FOUNDING_KPIS), NAMES), **tests}.items():
        (folder / name).write_text(text)
    return list(tests)


def test_every_rule_has_every_case() -> None:
    for rule in every_rule():
        cases = rule_cases(rule)
        assert sorted(case.case for case in cases) == sorted(CASES), rule.name
        by_case = {case.case: [fires for _, fires in case.checks] for case in cases}
        assert by_case["fires"] == [False, True] and by_case["resets"] == [True, False]
        assert True not in by_case["holds"] + by_case["low traffic"]
        assert by_case["absent"] == [rule.kind in ("absent", "down", "node_down")]


def test_without_promtool_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="promtool is not there: install Prometheus"):
        proven_cases(tmp_path, [], ["test.yaml"])


@pytest.mark.slow
def test_promtool_proves_every_rule_in_every_case(tmp_path: Path) -> None:
    """Among them: a total outage pages within ten minutes at 99 %, and one error of one request pages nobody."""
    promtool, rules = program("promtool"), every_rule()
    tests = written(tmp_path, rules)
    (tmp_path / "prometheus.yml").write_text(prometheus_file(ScrapeTargets(), [NAMES.kpis, NAMES.service]))
    for command in (["check", "rules", NAMES.kpis, NAMES.service], ["check", "config", "prometheus.yml"]):
        subprocess.run([promtool, *command], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    burn = next(rule for rule in rules if rule.name == "UpliftErrorRateBurn1h")
    fires = next(case for case in rule_cases(burn) if case.case == "fires")
    outage = fires.checks[-1][0] - 60  # everything was in order for an hour
    assert fires.checks[-1][1] and 8 < outage <= 10
    low = next(case for case in rule_cases(burn) if case.case == "low traffic")
    assert [values for name, values in low.series if 'status="500"' in name] == ["0 1+0x200"]
    assert [values for name, values in low.series if 'status="200"' in name] == ["0+0x200"]
    proven = proven_cases(tmp_path, rules, tests)
    assert len(proven) == 5 * len(rules) and not [key for key, came_out in proven.items() if not came_out]


@pytest.mark.slow
def test_a_spoilt_rule_fails_the_case_that_it_spoils(tmp_path: Path) -> None:
    program("promtool")
    delivery = kpi_named("delivery_rate")
    rule, absent = monitor_rules("spring", [delivery], 24)[:2]
    spoilt = {
        "fires": replace(rule, expr=rule.expr.replace("< 0.99", "< 0.5")),
        "holds": replace(rule, hold=0),
        "low traffic": replace(rule, expr=rule.expr.replace(">= 100", ">= 0")),
    }
    for case, wrong in spoilt.items():
        tests = written(tmp_path, [wrong, absent], [rule, absent])
        proven = proven_cases(tmp_path, [rule, absent], tests)
        assert not proven["spring", rule.name, case]
        assert all(proven["spring", absent.name, one] for one in CASES)
    lift = monitor_rules("spring", [kpi_named("lift_degradation")], 24)[0]
    spoilt = {"holds": "> 0.0 and ", "resets": "> 0.1 and "}  # it needs both: an interval beyond 0, a value beyond .1
    for case, term in spoilt.items():
        assert term in lift.expr
        wrong = replace(lift, expr=lift.expr.replace(term, "> -1 and "))
        proven = proven_cases(tmp_path, [lift], written(tmp_path, [wrong], [lift]))
        assert [one for one in CASES if not proven["spring", lift.name, one]] == [case]
    (tmp_path / NAMES.kpis).write_text("groups: 7")
    with pytest.raises(EnvironmentProblem, match="promtool does not take the tests"):
        proven_cases(tmp_path, [rule], tests)


@pytest.mark.slow
def test_amtool_takes_the_routes(tmp_path: Path) -> None:
    amtool = program("amtool")
    (tmp_path / "alertmanager.yml").write_text(alertmanager_file({}))
    subprocess.run(
        [amtool, "check-config", "alertmanager.yml"], cwd=tmp_path, check=True, capture_output=True, timeout=60
    )
    for severity in ("page", "ticket"):
        route = [
            amtool,
            "config",
            "routes",
            "test",
            "--config.file=alertmanager.yml",
            f"severity={severity}",
            "campaign=a",
        ]
        out = subprocess.run(route, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60).stdout
        assert out.strip() == severity
