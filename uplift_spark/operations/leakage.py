"""The features job's guard: no training set with a feature that knows too much, unless that is on record (R7.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import Column, DataFrame

from uplift_spark.causal.leakage import Finding, find_leaks
from uplift_spark.config import Config
from uplift_spark.flow.features import sampled
from uplift_spark.operations.runs import Say
from uplift_spark.vocabulary import PROPENSITY, DataError


def to_look_at(config: Config, labels: Mapping[str, int]) -> Column:
    """Which units' rows `guard_training` wants to see, given how many were `labelled`, of these `immature`."""
    units = max(1.0, (labels["labelled"] - labels["immature"]) * (1.0 - config.holdout))
    return sampled(config.seed, min(1.0, config.leakage.rows / units))


def guard_training(sample: DataFrame, config: Config, say: Say) -> dict[str, Any]:
    """Look for leaks in rows of the training split; what was compared and which findings were overridden.

    sample    a sample (`to_look_at`) of the training set, which is not yet written

    Returns {"rows", "compared": of these, to find features that predict the treatment, "allowed": [{"feature", "rule",
    "statistic", "p_value", "reason"}]}. Raises DataError that names every feature with a finding that is not allowed.
    """
    settings, roles = config.leakage, config.unit_roles
    rows = sample.filter("split = 'train'").select(*roles.columns).toArrow()
    logged = not rows.num_rows or rows.column(PROPENSITY).null_count < rows.num_rows
    leaks = find_leaks(rows, roles, settings.alpha, config.seed, randomised=settings.randomised and logged)
    if not settings.randomised or not logged:
        why = "no propensity was logged" if settings.randomised else "leakage.randomised is false"
        say(f"leakage: features were not compared between arms, because {why}")
    else:
        say(f"leakage: features of {leaks.compared:,} of {leaks.rows:,} sampled rows were compared between arms")
    _refuse([one for one in leaks.findings if one.feature not in settings.allow], config)
    for one in leaks.findings:
        say(f"leakage: allowed because {settings.allow[one.feature]!r}: {one.sentence}")
    allowed = [_record(one, settings.allow[one.feature]) for one in leaks.findings]
    return {"rows": leaks.rows, "compared": leaks.compared, "allowed": allowed}


def _refuse(findings: list[Finding], config: Config) -> None:
    if findings:
        names = sorted({one.feature for one in findings})
        raise DataError(
            f"table silver.training_{config.campaign} was not written, {len(names)} of {len(config.roles.features)} "
            f"features leak: {'; '.join(one.sentence for one in findings)}; to keep one as it is, state the reason on "
            f"record: leakage.allow: {{{names[0]}: <reason>}}"
        )


def _record(one: Finding, reason: str) -> dict[str, Any]:
    found = {"statistic": round(one.statistic, 6), "p_value": round(one.p_value, 6)}
    return {"feature": one.feature, "rule": one.rule, **found, "reason": reason}
