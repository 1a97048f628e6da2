"""The three documents from tables of known content: every figure is looked up where the page says it comes from."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from deltalake import write_deltalake

from tests.governance.walk import figures_of, printed_right, walked
from uplift_spark.config import Config, Labels, Lakehouse, Lift, RolesConf, Simulation
from uplift_spark.governance.cards import card_documents
from uplift_spark.governance.documents import document_files, document_markdown
from uplift_spark.governance.facts import CardFacts, TableOfUnits
from uplift_spark.registry.models import Registered
from uplift_spark.sections.governance import ApprovalConf, AuditConf, BiasConf, Governance, RetentionConf

FEATURES = ("age", "city")
CONFIG = Config("spring", Simulation(units=100), RolesConf("spend", "none", FEATURES), labels=Labels(window_days=14))
MODEL = Registered("spring", 3, "train-1", "run", "ab" * 32, {"silver.training_spring": 0}, "v1", {"kind": "forest"})
BARE = CardFacts(CONFIG, MODEL, CONFIG.training_roles, None, ("silver.training_spring", 0))


def lift_row(cut: str, bucket: str, n: int, uplift: float, half: float) -> dict[str, object]:
    return {
        "run_id": "lift-1", "outcome": "spend", "treatment": "mail", "cut": cut, "bucket": bucket, "n": n,
        "predicted_uplift": uplift / 3, "uplift": uplift, "uplift_lower": uplift - half, "uplift_upper": uplift + half,
        "low_sample": n < 100,
    }  # fmt: skip


def tables() -> dict[str, pd.DataFrame]:
    """Tables of a campaign of 1,000 units with a run that is not the newest beside it."""
    draw = np.random.default_rng(5)
    n = 1000
    training = pd.DataFrame(
        {
            "unit_id": [f"u{k}" for k in range(n)], "treatment": np.where(draw.random(n) < 0.5, "mail", "none"),
            "split": np.where(draw.random(n) < 0.5, "train", "holdout"), "spend": draw.normal(20.0, 7.0, n),
            "age": np.where(draw.random(n) < 0.1, np.nan, draw.integers(18, 90, n)), "city": draw.choice(["a", "b"], n),
        }
    )  # fmt: skip
    scores = pd.DataFrame(
        {
            "run_id": "score-1",
            "model_version": "3",
            "treatment": "mail",
            "low_support": draw.random(n) < 0.03,
            "uplift_lower": draw.normal(-1, 0.3, n),
            "uplift_upper": draw.normal(2, 0.3, n),
        }
    )
    lift = [
        lift_row("all", "all", 500, 1 / 3, 0.2),
        lift_row("decile", "1", 50, -1.23456, 0.5),
        lift_row("segment:city", "a", 250, 0.1, 0.2),
    ]
    metric = {"run_id": "lift-1", "outcome": "spend", "treatment": "mail", "metric": "qini"}
    bias = {"run_id": "bias-1", "cut": "city", "measure": "treated", "units": 250, "mean": 0.4, "adjusted_p": 0.001}
    apart = {"difference": 0.2, "difference_lower": 0.1, "difference_upper": 0.3}
    decided = pd.DataFrame({"run_id": "policy-1", "treatment": ["mail"] * 400 + ["none"] * 600, "gain": draw.random(n),
                            "cost": 0.25, "reason": ["best within the limits"] * 400 + ["withdrew"] * 600})  # fmt: skip
    return {
        "silver.training_spring": training,
        "gold.uplift_scores": scores,
        "gold.policy_decisions": decided,
        "gold.lift_table": pd.DataFrame([*lift, {**lift[0], "run_id": "lift-0", "uplift": 9.0}]),
        "gold.uplift_metrics": pd.DataFrame([{**metric, "value": 0.123456, "lower": 0.01, "upper": np.nan}]),
        "gold.bias_audit": pd.DataFrame(
            [{**bias, **apart, "bucket": "a", "flag": "difference"}, {**bias, **apart, "bucket": "b", "flag": ""}]
        ),
        "gold.policy_limits": pd.DataFrame(
            [{"run_id": "policy-1", "name": "spend", "most": 100.0, "least": np.nan, "used": 100.0, "price": 0.5}]
        ),
        "bronze.consent": pd.DataFrame(
            {"unit_id": ["u1", "u2", "u2"], "purpose": "marketing", "granted": [True, True, False]}
        ),
        "bronze.quarantine": pd.DataFrame(
            {"campaign": ["spring"], "source_table": ["bronze.outcome"], "rule": ["value_finite"]}
        ),
        "gold.audit_log": pd.DataFrame({"campaign": "spring", "action": ["register", "export", "erase", "card"]}),
    }


def facts_of(held: dict[str, pd.DataFrame]) -> CardFacts:
    training = held["silver.training_spring"]
    of = {name.partition(".")[2]: rows for name, rows in held.items()}
    of_arm = training.groupby(["split", "treatment"])["spend"]
    arms = of_arm.agg(n="size", mean="mean").reset_index()
    rows = training[training["split"] == "train"]
    age, city = rows["age"], rows["city"]
    features = pd.DataFrame(
        [
            {
                "feature": "age",
                "kind": "number",
                "missing": age.isna().mean(),
                "kinds": age.nunique(),
                "least": age.min(),
                "mean": age.mean(),
                "most": age.max(),
            },
            {"feature": "city", "kind": "text", "missing": city.isna().mean(), "kinds": city.nunique()},
        ]
    )
    scores, width = of["uplift_scores"], of["uplift_scores"]["uplift_upper"] - of["uplift_scores"]["uplift_lower"]
    low = {"treatment": "mail", "n": len(scores), "low_support": scores["low_support"].mean(), "width": width.mean()}
    plan = of["policy_decisions"].groupby(["treatment", "reason"])
    log = of["audit_log"][of["audit_log"]["action"] != "card"]
    entry = {
        "seq": 2,
        "at": "2026",
        "actor": "bob",
        "action": "approve",
        "subject": "model spring version 3",
        "reason": "good",
    }
    frames = {
        "lift": of["lift_table"][of["lift_table"]["run_id"] == "lift-1"], "metrics": of["uplift_metrics"],
        "bias": of["bias_audit"], "limits": of["policy_limits"], "scores": pd.DataFrame([low]), "arms": arms,
        "decisions": plan.agg(n=("gain", "size"), gain=("gain", "sum"), cost=("cost", "sum")).reset_index(),
        "features": features, "period": pd.DataFrame([{"first": "2026-01-01", "last": "2026-01-09"}]),
        "consent": of["consent"].groupby(["purpose", "granted"]).size().reset_index(name="n"),
        "quarantine": of["quarantine"].groupby(["source_table", "rule"]).size().reset_index(name="n"),
        "actions": log.groupby("action").size().reset_index(name="n"), "entries": pd.DataFrame([entry]),
        "proxies": pd.DataFrame([{"seq": 1, "cut": "city", "feature": "age", "strength": 0.4567}]),
    }  # fmt: skip
    runs = {"scores": "score-1", "lift": "lift-1", "plan": "policy-1", "bias": "bias-1"}
    people = (TableOfUnits("silver.training_spring", len(training), 0, "interval 400 days", ""),)
    return replace(BARE, runs=runs, frames=frames, tables=people, logged={"rows": float(len(rows))})


def test_every_figure_is_the_tables_to_the_printed_digit(tmp_path: Path) -> None:
    held = tables()
    for name, rows in held.items():
        write_deltalake(str(tmp_path / name.replace(".", "/")), rows)
    files = document_files(card_documents(facts_of(held)))
    counts = {name: walked(text, tmp_path) for name, text in files.items() if name.endswith("html")}
    assert {name for one in counts.values() for name in one} == {*held, "registry", "configuration", "audit"}
    assert sum(sum(one.values()) for one in counts.values()) > 100
    # Markdown prints the same figures in the same order.
    for name in ("model_card", "data_sheet", "privacy_impact"):
        text, at = files[f"{name}.md"], 0
        for value, _, _, shown in figures_of(files[f"{name}.html"]):
            at = text.index("not known" if value is None else shown, at)
    card = files["model_card.md"]
    assert "| spend | mail | decile | 1 | 50 | -0.412 | -1.23 | -1.73 | -0.735 | yes |" in card.split("harms**")[1]
    assert "a proxy of city, with a strength of 0.457 of 1" in card and "approve by bob on 2026: good" in card
    assert "| withdrew | none | 600 |" in files["privacy_impact.md"]
    # A figure that is not the table's is found.
    changed = re.sub(r'<data value="500.0"', '<data value="501.0"', files["model_card.html"], count=1)
    with pytest.raises(AssertionError):
        walked(changed, tmp_path)


def test_what_is_not_there_is_a_sentence_and_no_figure() -> None:
    documents = card_documents(BARE)
    texts = {one.name: document_markdown(one) for one in documents}
    for name, words in (
        ("model_card", "This version was not evaluated: run `uplift score` and `uplift lift` with it."),
        ("model_card", "This version has no bias audit"),
        ("model_card", "There is no plan by this version"),
        ("model_card", "No threshold is set: governance.approval is not configured."),
        ("model_card", "There is no audit log: whether leaks were let pass is not known."),
        ("data_sheet", "No statement about consent is on record"),
        ("data_sheet", "it is not known what left the lakehouse"),
        ("privacy_impact", "Purpose: not stated. Legal basis: not stated."),
        ("privacy_impact", "Nothing shows yet that the model is of use"),
        ("privacy_impact", "none: governance.audit is not set"),
    ):
        assert words in texts[name], (name, words)
    sources = {
        key
        for one in document_files(documents).items()
        if one[0].endswith("html")
        for _, source, _, _ in figures_of(one[1])
        for key in source
    }
    assert sources == {"configuration"}
    assert [len(one.questions) for one in documents] == [6, 7, 13]
    gone = replace(BARE, absent={"arms": "Its files are gone."})
    assert document_markdown(card_documents(gone)[1]).count("Its files are gone.") == 1


def test_retention_is_on_the_page_and_only_what_is_not_set_is_put_to_the_owner() -> None:
    names = ("silver.training_spring", "gold.uplift_scores", "bronze.consent")
    people = tuple(TableOfUnits(name, 7, 3, "interval 168 hours", "") for name in names)
    kept = RetentionConf({"silver": 400})
    facts = replace(BARE, tables=people, config=replace(BARE.config, governance=Governance(retention=kept)))
    text = document_markdown(card_documents(facts)[2])
    assert "| silver.training\\_spring | 7 | 3 | 400 days | interval 168 hours |" in text.replace("g_s", "g\\_s")
    assert "| never: a withdrawal that went would let its unit be contacted again |" in text
    assert text.count("After which time are rows of gold.uplift_scores due?") == 1
    assert "rows are due in silver.training_spring; no time is set for gold.uplift_scores" in text
    assert "rows that are due are deleted, and units on request" in text
    bare = document_markdown(card_documents(replace(BARE, tables=people))[2])
    assert "After which time are rows of silver.training_spring, gold.uplift_scores due?" in bare
    assert "governance.retention is not configured" in bare and "none by age: governance.retention is not set" in bare
    log = replace(facts, frames={"actions": pd.DataFrame([{"action": "expired", "n": 4}])})
    assert "Deletions that were begun, by the audit log: 0; complete: 4." in document_markdown(card_documents(log)[2])


def test_what_the_configuration_says_is_on_the_page() -> None:
    governance = Governance(
        AuditConf(), ApprovalConf(owner="crm", purpose="offers", legal_basis="consent", least=0.25),
        BiasConf(attributes=("city",), tolerance={"treated": 0.05}),
    )  # fmt: skip
    config = replace(CONFIG, governance=governance, lift=Lift(segments=("city",)), lakehouse=Lakehouse(path="x"))
    card, _, impact = map(document_markdown, card_documents(replace(BARE, config=config, champion=3)))
    for words in (
        "| version | 3, the champion |",
        "| owner | crm |",
        "must exceed 0.25 for some level",
        "| treated | 0.05 |",
        "Results are cut by city.",
        "compares groups of city",
    ):
        assert words in card
    assert "Purpose: offers. Legal basis: consent." in impact and "What are purpose and legal basis?" not in impact
    assert "without checkpoints a cut end goes unnoticed" in impact


@pytest.mark.parametrize(
    ("value", "text", "right"),
    [(1234.4, "1,234", True), (1234.6, "1,234", False), (0.123456, "0.123", True), (0.123456, "0.124", False),
     (0.02001, "0.02", True), (99.96, "100", True), (-1.5, "-1.5", True), (0.0, "0", True), (2e-7, "0", True)],
)  # fmt: skip
def test_the_walk_knows_right_digits_from_wrong_ones(value: float, text: str, right: bool) -> None:
    assert printed_right(value, text) == right
