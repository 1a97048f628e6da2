"""The proof of every rule by `promtool test rules`: it fires, holds, resets, stays quiet without traffic or data.

Each rule's kind says what its input is in each case; thresholds, windows and holds come from the rule itself, so a rule
with other thresholds has other tests. Times are minutes.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from uplift_spark.errors import EnvironmentProblem
from uplift_spark.monitoring.budgets import least_errors, minutes_to_alert, objective_of
from uplift_spark.monitoring.prometheus import (
    DEGRADED,
    LATENCY,
    NODE_JOB,
    OOM_KILLS,
    REQUESTS,
    SERVICE_KINDS,
    SERVING_JOB,
    WINDOW_END,
    PromRule,
    RuleFileNames,
    RuleKind,
    kpi_metric,
    yaml_text,
)

Case = Literal["fires", "holds", "resets", "low traffic", "absent"]
CASES: tuple[Case, ...] = ("fires", "holds", "resets", "low traffic", "absent")
"""fires: after its hold, not before. holds: what passes within the hold fires nothing. resets: it ends when things are
well again. low traffic: too few units or requests fire nothing. absent: without its series a rule stays quiet, and
those about absence fire."""

Checks = tuple[tuple[int, bool], ...]
"""(minute, whether the alert fires then)."""

PER_MINUTE = 60
"""Requests a minute of a service in these tests."""


@dataclass(frozen=True)
class RuleCase:
    """One case of one rule: series, and when its alert fires.

    series  (series, values in promtool's notation), a value every `step` minutes
    """

    rule: PromRule
    case: Case
    series: tuple[tuple[str, str], ...]
    checks: Checks
    step: int = 1


def rule_cases(rule: PromRule) -> list[RuleCase]:
    """Make the five cases of a rule.

    Args:
        rule: Of any kind.

    Returns:
        One of each of `CASES`.
    """
    return _MAKERS[rule.kind](rule)


def case_files(rules: Sequence[PromRule], names: RuleFileNames, stem: str) -> dict[str, str]:
    """Write the tests of all rules.

    Args:
        rules: To be proven.
        names: Files of the rules, beside these.
        stem: How the files' names begin.

    Returns:
        {file: YAML}. Rules whose series do not meet share a test, as promtool evaluates every rule of a file in each.
    """
    shared: dict[tuple[str, int], dict[tuple[str, str, Case], list[RuleCase]]] = {}
    for case in (case for rule in rules for case in rule_cases(rule)):
        window = case.rule.window.name if case.rule.window else ""
        file = names.service if case.rule.kind in SERVICE_KINDS else names.kpis
        tests = shared.setdefault((file, case.step), {})
        tests.setdefault((case.rule.kind, window, case.case), []).append(case)
    return {
        f"{stem}-{Path(file).stem}-{step}m.yaml": yaml_text(
            {
                "rule_files": [file],
                "evaluation_interval": f"{step}m",
                "tests": [_test_entry(own) for own in tests.values()],
            }
        )
        for (file, step), tests in shared.items()
    }


def _test_entry(cases: Sequence[RuleCase]) -> dict[str, Any]:
    series = {name: values for case in cases for name, values in case.series}
    return {
        "interval": f"{cases[0].step}m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": _firing(case),
                "eval_time": f"{minute}m",
                "exp_samples": [{"labels": "{}", "value": int(fires)}],
            }
            for case in cases
            for minute, fires in case.checks
        ],
    }


def _firing(case: RuleCase) -> str:
    """Count the rule's alerts that fire with all of its labels; the comment tells a failure's case."""
    labels = {"alertname": case.rule.name, "alertstate": "firing", **case.rule.labels}
    matchers = ", ".join(f'{name}="{value}"' for name, value in labels.items())
    return f"count(ALERTS{{{matchers}}}) or vector(0) # {case.case}"


def proven_cases(folder: Path, rules: Sequence[PromRule], names: Sequence[str]) -> dict[tuple[str, str, Case], bool]:
    """Run the tests with promtool.

    Args:
        folder: Of the files.
        rules: That they are of.
        names: Files of tests.

    Returns:
        {(campaign, rule, case): whether it came out as it must}.

    Raises:
        EnvironmentProblem: promtool is not there, or does not take the files.
    """
    promtool = shutil.which("promtool")
    if promtool is None:
        raise EnvironmentProblem("promtool is not there: install Prometheus (Debian: apt-get install prometheus)")
    command = [promtool, "test", "rules", *names]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900, check=False)
    output = process.stdout + process.stderr
    proven = {(rule.campaign, rule.name, case): True for rule in rules for case in CASES}
    for key in proven:
        campaign, rule, case = key
        of = f'campaign=\\"{campaign}\\"' if campaign else ""
        lines = [line for line in output.splitlines() if f'alertname=\\"{rule}\\"' in line and f"# {case}" in line]
        proven[key] = not [line for line in lines if of in line]
    if process.returncode and all(proven.values()):
        raise EnvironmentProblem(f"promtool does not take the tests in {folder}: {output.strip()[-500:]}")
    return proven


# --------------------------------------------------------------------------------------------------------------------
# Cases by kind.


def _steady(value: float, minutes: int) -> str:
    return f"{value!r}+0x{max(minutes - 1, 0)}"


def _missing(minutes: int) -> str:
    return f"_x{minutes}"


def _phases(*parts: tuple[float | None, int]) -> str:
    """Values that last so many minutes each; None: no value."""
    return " ".join(_missing(n) if value is None else _steady(value, n) for value, n in parts)


def _metric(name: str, **labels: str) -> str:
    return name + "{" + ", ".join(f'{label}="{value}"' for label, value in labels.items()) + "}"


def _kpi_series(rule: PromRule, values: str, ends: str, n: int, minutes: int) -> tuple[tuple[str, str], ...]:
    assert rule.kpi is not None
    name, at = rule.kpi.name, {"campaign": rule.campaign, "cut": "all"}
    parts = {"": values, "lower": ends, "upper": ends}
    return (
        *((_metric(kpi_metric(name, part), **at), shown) for part, shown in parts.items()),
        (_metric(kpi_metric(name, "n"), **at), _steady(n, minutes)),
        (_metric(WINDOW_END, campaign=rule.campaign, kpi=name), _steady(0, minutes)),
    )


def _threshold_cases(rule: PromRule) -> list[RuleCase]:
    kpi, hold = rule.kpi, rule.hold
    assert kpi is not None and kpi.alert is not None
    step = 0.1 * abs(kpi.alert) or 0.1
    bad, well = kpi.alert + (step if kpi.better == "below" else -step), kpi.alert  # at the threshold all is well
    unsure = kpi.must_exclude  # an interval that reaches it says nothing, however bad the value

    def case(
        name: Case, n: int, checks: Checks, *ends: tuple[float | None, int], value: float | None = None
    ) -> RuleCase:
        values = ends if value is None else [(value, sum(minutes for _, minutes in ends))]
        return RuleCase(rule, name, _kpi_series(rule, _phases(*values), _phases(*ends), n, hold * 4), checks)

    return [
        case("fires", kpi.min_n, ((hold - 1, False), (hold + 1, True)), (bad, hold * 4)),
        case(
            "holds",
            kpi.min_n,
            ((hold - 3, False), (hold + 1, False), (hold + 9, False)),
            (bad, hold - 2),
            (unsure, hold * 3),
            value=bad,
        ),
        case("resets", kpi.min_n, ((hold + 3, True), (hold + 6, False)), (bad, hold + 5), (well, hold * 3)),
        case("low traffic", kpi.min_n - 1, ((hold * 3, False),), (bad, hold * 4)),
        RuleCase(rule, "absent", (), ((hold * 3, False),)),
    ]


def _absent_cases(rule: PromRule) -> list[RuleCase]:
    kpi, hold = rule.kpi, rule.hold
    assert kpi is not None
    name, other = _metric(WINDOW_END, campaign=rule.campaign, kpi=kpi.name), f"not-{rule.campaign}"
    n = (_metric(kpi_metric(kpi.name, "n"), campaign=rule.campaign, cut="all"), _steady(0, hold * 4))
    return [
        RuleCase(rule, "fires", (), ((hold - 1, False), (hold + 1, True))),
        # Prometheus looks back five minutes for a value, so a series counts as missing from then on.
        *_on_off(rule, ((name, None, 1.0),), lag=0),
        RuleCase(rule, "low traffic", ((name, _steady(0, hold * 4)), n), ((hold * 3, False),)),
        RuleCase(
            rule,
            "absent",
            ((_metric(WINDOW_END, campaign=other, kpi=kpi.name), _steady(0, hold * 4)),),
            ((hold + 1, True),),
        ),
    ]


def _on_off(
    rule: PromRule, series: Sequence[tuple[str, float | None, float]], lag: int, before: int = 0
) -> list[RuleCase]:
    """`holds` and `resets` of series (name, value where it is bad, value where all is well), bad from `before` on.

    lag  minutes that the rule stays breached after the series are well again
    """
    hold = rule.hold
    short, long = max(hold - lag - 2, 1), hold + 5

    def values(bad: int) -> tuple[tuple[str, str], ...]:
        start = [before] if before else []
        return tuple(
            (name, _phases(*((good, n) for n in start), (off, bad), (good, hold * 4 + lag)))
            for name, off, good in series
        )

    end = before + long + lag
    return [
        RuleCase(rule, "holds", values(short), tuple((before + at, False) for at in (short - 1, hold + 1, hold + 9))),
        RuleCase(rule, "resets", values(long), ((before + hold + 3, True), (end + 2, False))),
    ]


def _stale_cases(rule: PromRule) -> list[RuleCase]:
    hold, late = rule.hold, 2.5 * rule.hours * 3600
    name = _metric(WINDOW_END, campaign=rule.campaign, kpi="delivery_rate")
    old, fresh = 600 - late, 3600.0  # promtool's clock starts at 0: the window is too old from minute 10 on
    n = (_metric(kpi_metric("delivery_rate", "n"), campaign=rule.campaign, cut="all"), _steady(0, 60))

    def case(of: Case, checks: Checks, *parts: tuple[float | None, int]) -> RuleCase:
        return RuleCase(rule, of, ((name, _phases(*parts)),), checks)

    return [
        case("fires", ((10 + hold - 1, False), (10 + hold + 2, True)), (old, 60)),
        case("holds", ((10 + hold - 3, False), (10 + hold + 2, False), (55, False)), (old, 10 + hold - 2), (fresh, 60)),
        case("resets", ((10 + hold + 3, True), (10 + hold + 7, False)), (old, 10 + hold + 5), (fresh, 60)),
        RuleCase(rule, "low traffic", ((name, _steady(fresh, 60)), n), ((40, False),)),
        RuleCase(rule, "absent", (), ((40, False),)),
    ]


def _burn_cases(rule: PromRule) -> list[RuleCase]:
    """Traffic in order for the whole long window, then errors: all requests where that is what the window is for."""
    window, kpi = rule.window, rule.kpi
    assert window is not None and kpi is not None
    objective = objective_of(kpi)
    step = 1 if window.long <= 60 else 5 if window.long <= 6 * 60 else 10
    limit = window.factor * (1 - objective)
    # Whole numbers: a counter whose sums are rounded seems to fall, which Prometheus takes for a restart.
    per_step = PER_MINUTE * step
    failed = per_step if window.long <= 60 else min(per_step, math.ceil(1.5 * limit * per_step))
    share, fine = failed / per_step, per_step - failed
    least = least_errors(window, objective)
    outage = minutes_to_alert(window, objective, share, PER_MINUTE, least)
    start = window.long

    def at(minute: float) -> int:
        return math.ceil(minute / step) * step

    def case(of: Case, bad: float, checks: Checks) -> RuleCase:
        """Errors begin at `start` and last `bad` minutes: before, there is no counter of errors."""
        n, ok = at(bad) // step, start // step
        rest = at(window.short + 4 * step) // step + at(outage) // step
        errors = f"{_missing(ok)} 0+{failed}x{n} {failed * n}+0x{rest}"
        good = per_step * ok
        served = f"0+{per_step}x{ok} {good + fine}+{fine}x{n - 1} {good + fine * n + per_step}+{per_step}x{rest}"
        return RuleCase(rule, of, _requests(rule, errors, served), checks, step)

    fires = at(start + outage) + step
    end = at(outage + 3 * step)
    one = _requests(rule, "0 1+0x200", "0+0x200")
    return [
        case("fires", end, ((at(start + outage - 2.5 * step), False), (fires, True))),
        case("holds", outage / 3, ((at(start + outage / 2), False), (at(start + outage + 2 * step), False))),
        case("resets", end, ((start + end, True), (at(start + end + window.short + step), False))),
        RuleCase(rule, "low traffic", one, tuple((at(minute), False) for minute in (1, 2, 5, 30, 60, 120)), step),
        RuleCase(rule, "absent", (), ((at(60), False),), step),
    ]


def _requests(rule: PromRule, errors: str, served: str) -> tuple[tuple[str, str], ...]:
    def one(status: str) -> str:
        return _metric(REQUESTS, campaign=rule.campaign, job=SERVING_JOB, path="/v1/effects", status=status)

    return (one("500"), errors), (one("200"), served)


def _latency_cases(rule: PromRule) -> list[RuleCase]:
    kpi, hold = rule.kpi, rule.hold
    assert kpi is not None and kpi.alert is not None
    rate, limit = max(PER_MINUTE, kpi.min_n), kpi.alert / 1000
    start = 20

    def series(slow: int, then: int, per_minute: int = rate) -> tuple[tuple[str, str], ...]:
        """`start` minutes of quick requests, then slow ones, then quick ones again."""
        total = start + slow + then
        quick = [f"0+{per_minute}x{start}", f"{per_minute * start}+0x{slow - 1}"]
        quick += [f"{per_minute * (start + 1)}+{per_minute}x{then}"] if then else []
        names = {"le": f"{limit!r}"}, {"le": repr(limit * 40)}, {"le": "+Inf"}
        labels = {"campaign": rule.campaign, "job": SERVING_JOB, "path": "/v1/effects"}
        values = " ".join(quick), f"0+{per_minute}x{total}", f"0+{per_minute}x{total}"
        buckets = [(_metric(f"{LATENCY}_bucket", **labels, **n), v) for n, v in zip(names, values, strict=True)]
        return (*buckets, (_metric(f"{LATENCY}_count", **labels), f"0+{per_minute}x{total}"))

    labels = {"campaign": rule.campaign, "job": SERVING_JOB, "path": "/v1/effects"}
    few = [
        (_metric(f"{LATENCY}_bucket", **labels, le=le), v) for le, v in ((f"{limit!r}", "0+0x99"), ("+Inf", "0 1+0x98"))
    ]
    return [
        RuleCase(rule, "fires", series(30, 0), ((start + hold - 1, False), (start + hold + 3, True))),
        RuleCase(rule, "holds", series(2, 40), ((start + 4, False), (start + hold + 2, False), (start + 30, False))),
        RuleCase(rule, "resets", series(20, 40), ((start + 18, True), (start + 20 + 8, False))),
        RuleCase(
            rule, "low traffic", (*few, (_metric(f"{LATENCY}_count", **labels), "0 1+0x98")), ((3, False), (30, False))
        ),
        RuleCase(rule, "absent", (), ((40, False),)),
    ]


def _up_cases(rule: PromRule, up: str, requests: tuple[tuple[str, str], ...]) -> list[RuleCase]:
    hold = rule.hold
    return [
        RuleCase(rule, "fires", ((up, _steady(0, hold * 4)),), ((hold - 1, False), (hold + 1, True))),
        *_on_off(rule, ((up, 0.0, 1.0),), lag=0),
        RuleCase(rule, "low traffic", ((up, _steady(1, hold * 4)), *requests), ((hold * 3, False),)),
        RuleCase(rule, "absent", (), ((hold + 1, True),)),
    ]


def _down_cases(rule: PromRule) -> list[RuleCase]:
    up = _metric("up", campaign=rule.campaign, job=SERVING_JOB, instance="localhost:8000")
    return _up_cases(rule, up, _requests(rule, "0+0x60", "0+0x60"))


def _node_cases(rule: PromRule) -> list[RuleCase]:
    return _up_cases(rule, _metric("up", job=NODE_JOB, instance="localhost:9100"), ())


def _memory_cases(rule: PromRule) -> list[RuleCase]:
    return _count_cases(rule, _metric(OOM_KILLS, job=NODE_JOB, instance="localhost:9100"))


def _unlogged_cases(rule: PromRule) -> list[RuleCase]:
    labels = {"campaign": rule.campaign, "job": SERVING_JOB, "why": "log_unavailable"}
    return _count_cases(rule, _metric(DEGRADED, **labels))


def _count_cases(rule: PromRule, name: str) -> list[RuleCase]:
    """A counter that rises by one at minute 20; the rule looks 15 minutes back."""
    risen = ((name, _phases((3, 20), (4, 60))),)
    return [
        RuleCase(rule, "fires", risen, ((19, False), (21, True))),
        RuleCase(rule, "holds", risen, ((20, False),)),
        RuleCase(rule, "resets", risen, ((30, True), (37, False))),
        RuleCase(rule, "low traffic", ((name, _steady(3, 60)),), ((40, False),)),
        RuleCase(rule, "absent", (), ((40, False),)),
    ]


_MAKERS: dict[RuleKind, Callable[[PromRule], list[RuleCase]]] = {
    "threshold": _threshold_cases,
    "absent": _absent_cases,
    "stale": _stale_cases,
    "burn": _burn_cases,
    "latency": _latency_cases,
    "unlogged": _unlogged_cases,
    "down": _down_cases,
    "memory": _memory_cases,
    "node_down": _node_cases,
}
