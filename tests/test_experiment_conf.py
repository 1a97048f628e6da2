"""The section `experiment`: what it says of a trial, and one sentence for each thing that is wrong with it."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from uplift_spark.config import Config, load_config
from uplift_spark.errors import ConfigError

TRIAL = """
campaign: spring
source: {kind: simulation, units: 1000}
roles: {outcome: spend, control: off, features: [age]}
experiment:
  salt: spring-2026
  arms: {off: 0.5, on: 0.5}
  metrics:
    - {name: spend, kind: revenue, role: primary, covariates: [spend_before]}
    - {name: basket, kind: ratio, column: spend, denominator: orders, covariates: [[spend_before, orders_before]]}
    - {name: complaints, kind: conversion, column: complaint, role: guardrail, better: down, margin: 0.01}
  strata: [region]
  start: 2026-03-02
  end: 2026-03-29
  units: 40000
  plan: obf
  analyses: [0.25, 0.5, 0.75, 1]
"""


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "spring.yaml"
    path.write_text(TRIAL)
    return path


def test_a_trial_is_read(conf: Path) -> None:
    trial = load_config(conf).experiment
    assert trial is not None
    assert (trial.control, trial.start, trial.analyses) == ("off", date(2026, 3, 2), (0.25, 0.5, 0.75, 1.0))
    assert trial.outcome_columns == ("spend", "orders", "complaint")
    assert trial.unit_columns == ("region", "spend_before", "orders_before")
    assert [one.outcome for one in trial.metrics] == ["spend", "spend", "complaint"]


def test_the_training_set_holds_what_the_trial_reads(conf: Path) -> None:
    config = load_config(conf)
    assert config.outcomes == ("spend", "orders", "complaint")
    assert config.unit_columns == ("age", "region", "spend_before", "orders_before")
    own = load_config(conf, ("experiment.table=silver.units",))
    assert (own.outcomes, own.unit_columns) == (("spend",), ("age",))
    assert load_config(conf, ("labels.windows={orders: 7}",)).labels.days("orders") == 7


def test_runs_of_campaigns_without_a_trial_stay_what_they_were(conf: Path) -> None:
    """What the trial reads is part of a run of `features`; how it is read, or its name, is not."""

    def run(*changes: str) -> dict[str, object]:
        return load_config(conf, changes).run_identity("features")

    assert "trial_outcomes" in run() and "trial_outcomes" not in run("experiment=~")
    assert run("experiment.alpha=.1", "experiment.name=Spring") == run()
    config: Config = load_config(conf)
    assert set(config.run_identity("readout")) == {"campaign", "experiment", "labels"}


METRICS = "experiment.metrics="
SPEND = "{name: spend, kind: revenue, role: primary}"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (METRICS + "[{name: spend, kind: revenue}]", "of experiment.metrics none is primary: give `role: primary`"),
        (METRICS + f"[{SPEND}, {SPEND.replace('spend', 'visits')}]", "spend, visits are primary"),
        (METRICS + f"[{SPEND}, {SPEND}]", "has spend twice: give metrics names of their own"),
        (METRICS + "[{name: spend, kind: ratio, role: primary}]", "kind ratio goes with a denominator"),
        (METRICS + f"[{SPEND}, {{name: a, kind: count, role: guardrail}}]", "metric a: a margin goes with role guard"),
        (METRICS + "[{name: spend, kind: revenue, role: primary, margin: 0.1}]", "or drop the margin"),
        (METRICS + "[{name: spend, kind: revenue, role: primary, covariates: [spend]}]", "spend is a metric of the ex"),
        (METRICS + "[{name: 'a b', kind: revenue, role: primary}]", "'a b' is not a plain name"),
        (METRICS + "[{name: spend, kind: money, role: primary}]", "experiment.metrics.0.kind"),
        ("experiment.arms={off: 0.5, on: 0.4}", "shares of experiment.arms add up to 0.9: make them add up to 1"),
        ("experiment.arms={off: 1}", "experiment.arms has 1 arm: name the control and at least one other"),
        ("experiment.arms={off: 1, on: 0}", "arm on of experiment.arms has share 0"),
        ("experiment.arms={on: 0.5, off: 0.5}", "begins with 'on', but roles.control is 'off'"),
        ("roles.dose={off: 0, low: 1}", "experiment.arms has 'on', no level of roles.dose: it has low, off"),
        ("experiment.salt=a b", "experiment.salt 'a b' is no salt"),
        ("experiment.strata=[spend]", "spend is a metric of the experiment and a stratum"),
        ("experiment.cluster=household", "experiment.cluster is household, but roles.cluster is None: the unit of"),
        ("roles.cluster=household", "experiment.cluster is None, but roles.cluster is household: the unit of"),
        ("experiment.analyses=[0.5, 1, 1.2]", "has a look at 1.2 of the units, after the end of the trial"),
        ("experiment.analyses=[0.5, 0.4, 1]", "experiment.analyses are 0.5, 0.4, 1: let them rise to 1"),
        ("experiment.analyses=[0.5]", "let them rise to 1"),
        ("experiment.plan=none", "experiment.analyses go with plan obf, pocock, hsd, not with none"),
        ("experiment.units=~", "experiment.plan obf reads at shares of the planned units: set experiment.units"),
        ("experiment.end=2026-03-02", "experiment.end 2026-03-02 is not after its start 2026-03-02"),
        ("experiment.exploration=0.1", "experiment.exploration goes with experiment.decision"),
        ("experiment.namespace={name: shop, start: 0.5, stop: 0.5}", "goes from 0.5 to 0.5"),
        ("experiment.namespace={name: x y}", "experiment.namespace.name 'x y' is no salt"),
        ("experiment.holdout={salt: all-2026, share: 0}", "experiment.holdout.share"),
        ("experiment.colour=red", "unknown key 'experiment.colour'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(conf: Path, change: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(conf, (change,))
    message = str(caught.value)
    assert sentence in message and "\n" not in message
