"""Where less of the outcome is better: every path ranks, values and treats first whom treatment helps. No Spark.

The mirror: outcome 1 - y with effects -s and `increase` is the same campaign as y with s and `decrease`, so that ranks,
Qini, money, plan and the report's figures must be the same, and effects the same with another sign.
"""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tests.evaluation.scored import LEVELS, campaign
from tests.evaluation.test_comparison import COST, PRICE, trial
from tests.policy.test_planning import conf
from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Economics, RolesConf
from uplift_spark.errors import ConfigError
from uplift_spark.estimators import CausalForest, UpliftModel, load_model
from uplift_spark.evaluation.comparison import Rules, Values, add_values
from uplift_spark.evaluation.lift_tables import lift_table
from uplift_spark.evaluation.metrics import (
    EFFECTS,
    Evaluation,
    EvaluationSpec,
    curve_table,
    evaluate_rows,
    metric_table,
    truth_of,
)
from uplift_spark.evaluation.pictures import decile_picture, qini_picture
from uplift_spark.evaluation.report import PageData, page_text, plan_rows, render_page, supported
from uplift_spark.evaluation.summary import direction_words
from uplift_spark.jobs import refresh
from uplift_spark.policy.allocation import Candidates, Constraint, Problem, allocate, scan_candidates
from uplift_spark.policy.trees import fit_tree
from uplift_spark.roles import Direction, Roles, benefit, benefit_interval, benefit_name
from uplift_spark.runtime import derive_run_id
from uplift_spark.stats.offpolicy import prices

MONEY = Economics({"churn": 25.0, "stays": 25.0, "spend": 0.4}, {"5%": 0.5, "10%": 1.0})
QUALITY = {"qini", "auuc", "autoc"}
NAMES = ("outcome", "treatment", "cut", "bucket", "fraction", "metric")


def mirrored(direction: Direction) -> tuple[pd.DataFrame, pd.DataFrame, EvaluationSpec]:
    """A campaign against churn, which treatment lowers: as churn, or as its mirror, staying."""
    holdout, scores, _ = campaign(n=4000, seed=3)
    outcome = "churn" if direction == "decrease" else "stays"
    stays = holdout.pop("visit")
    holdout[outcome] = 1 - stays if direction == "decrease" else stays
    scores = scores.assign(uplift=-scores["uplift"] if direction == "decrease" else scores["uplift"])
    spec = EvaluationSpec(
        "none", (outcome, "spend"), ("city",), bins=20, replicates=50, order=LEVELS, direction=direction
    )
    return holdout, scores, spec


def both() -> tuple[Evaluation, Evaluation]:
    fewer, more = (evaluate_rows(*mirrored(direction)) for direction in ("decrease", "increase"))
    return fewer, more


FEWER, MORE = both()


def aligned(table: pd.DataFrame) -> pd.DataFrame:
    return table.replace({"outcome": {"churn": "stays"}}).set_index([n for n in NAMES if n in table.columns])


def test_the_first_decile_is_the_one_whose_outcome_falls_most() -> None:
    lift = lift_table(FEWER, MONEY)
    for level in LEVELS:
        rows = lift[(lift["cut"] == "decile") & (lift["treatment"] == level) & (lift["outcome"] == "churn")]
        predicted = rows.set_index("bucket")["predicted_uplift"]
        assert predicted.is_monotonic_increasing and predicted.idxmin() == "1"
    strong = lift[(lift["cut"] == "decile") & (lift["treatment"] == "10%") & (lift["outcome"] == "churn")]
    assert strong["uplift"].iloc[0] < -0.3 < strong["uplift"].iloc[-1]
    assert strong["roi"].iloc[0] > 0 and strong["revenue"].iloc[0] > 0 > strong["incremental_outcomes"].iloc[0]


def test_the_lift_table_is_the_mirrors_with_effects_of_another_sign() -> None:
    fewer, more = aligned(lift_table(FEWER, MONEY)), aligned(lift_table(MORE, MONEY))
    same = ["n", "n_treated", "n_control", "revenue", "cost", "roi", "roi_lower", "roi_upper", "low_sample"]
    same += ["cost_per_incremental", "cost_per_incremental_lower", "cost_per_incremental_upper", "different_p"]
    pd.testing.assert_frame_equal(fewer[same], more[same], rtol=1e-6, atol=1e-9)
    churn = fewer.index.get_level_values("outcome") == "stays"
    for column in ("uplift", "uplift_lower", "shrunk_uplift", "predicted_uplift", "incremental_outcomes"):
        twin = "uplift_upper" if column == "uplift_lower" else column
        np.testing.assert_allclose(fewer.loc[churn, column], -more.loc[churn, twin], rtol=1e-6, atol=1e-9)
        if column != "uplift_lower":  # of the other outcome more is better either way
            np.testing.assert_allclose(fewer.loc[~churn, column], more.loc[~churn, twin], rtol=1e-9)


def test_curves_and_qini_are_the_mirrors() -> None:
    pd.testing.assert_frame_equal(aligned(curve_table(FEWER)), aligned(curve_table(MORE)), rtol=1e-6, atol=1e-9)
    fewer, more = aligned(metric_table(FEWER)), aligned(metric_table(MORE))
    for (outcome, level, metric), row in fewer.iterrows():
        other = more.loc[(outcome, level, metric)]
        turned = outcome == "stays" and (metric in EFFECTS or metric == "prediction_bias")
        wanted = [-other["value"], -other["upper"], -other["lower"]] if turned else list(other)
        np.testing.assert_allclose(list(row), wanted, rtol=1e-5, atol=1e-8, err_msg=f"{outcome} {level} {metric}")
    qini = fewer.xs("qini", level="metric").loc["stays"]
    assert (qini["lower"] > 0).all() and (fewer.xs("ate", level="metric").loc["stays", "upper"] < 0).all()


def test_against_the_true_effects_the_mirrors_qini() -> None:
    effect = np.array([-0.3, -0.1, 0.05])
    rows = [
        {"n": 1, "total": e * 2**30, "by_predicted": k, "by_effect": np.nan}
        for e, k in zip(effect, (2, 1, 0), strict=True)
    ]
    rows += [
        {"n": 1, "total": e * 2**30, "by_predicted": np.nan, "by_effect": k}
        for e, k in zip(effect, (2, 1, 0), strict=True)
    ]
    whole = {"n": 3, "total": effect.sum() * 2**30, "by_predicted": np.nan, "by_effect": np.nan}
    moments = {"rmse": 0.0, "p": 0, "e": 0, "pp": 1, "ee": 1, "pe": 1}
    counted = pd.DataFrame([{**moments, **row} for row in [*rows, whole]])
    truth = truth_of(counted, "decrease")
    other = truth_of(counted.assign(total=-counted["total"]))
    assert truth.curve.qini == other.curve.qini > 0 and truth.oracle.gain.tolist() == other.oracle.gain.tolist()
    assert truth.average_effect == -other.average_effect < 0


def page(direction: Direction, **changes: Any) -> PageData:
    source = FEWER if direction == "decrease" else MORE
    tables = lift_table(source, MONEY), curve_table(source), metric_table(source)
    parts = {"value": MONEY.value, "cost": MONEY.cost, "rates": source.rates, "direction": direction, **changes}
    return PageData("leavers", "none", *tables, units=5000, date="", **parts)


@pytest.mark.parametrize("changes", [{}, {"value": {}, "cost": {}}, {"cost": {"5%": 9.0, "10%": 9.0}}])
def test_the_report_advises_what_its_mirror_does(changes: dict[str, Any]) -> None:
    fewer, more = page("decrease", **changes), page("increase", **changes)
    for one, other in zip(fewer.verdicts, more.verdicts, strict=True):
        assert (one.action, one.share, one.ranked) == (other.action, other.share, other.ranked)
        assert one.promise == pytest.approx(other.promise) and one.effect["value"] == pytest.approx(
            -other.effect["value"]
        )
        np.testing.assert_allclose(list(one.net.values()), list(other.net.values()), rtol=1e-6)
    texts = [page_text(one) for one in (fewer, more)]
    figures = [[float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,.]*\d|\d", text)] for text in texts]
    assert np.allclose(sorted(map(abs, figures[0])), sorted(map(abs, figures[1])))
    assert plan_rows(fewer)[1][0]["value"] == pytest.approx(plan_rows(more)[1][0]["value"])


def test_the_report_says_less_of_it() -> None:
    text = page_text(page("decrease"))
    assert re.search(r"Give 10% to (everyone|the best \d+ %)", text) and re.search(r"brings \d+ less churn", text)
    shown = " ".join(supported(page("decrease"))[0])
    assert "10% lowers churn on average" in shown and re.search("The best half brings .* of what 10% brings", shown)
    for words in ("outcome churn (less is better)", "Bars below zero help: less churn is better."):
        assert words in render_page(page("decrease")) and words not in render_page(page("increase"))
    assert "less" not in page_text(page("increase")) and direction_words("churn", "increase") == []
    assert plan_rows(page("decrease", value={}))[0].endswith("less churn.")


def test_pictures_name_the_fall() -> None:
    rows = curve_table(FEWER).query("outcome == 'churn'"), metric_table(FEWER).query("outcome == 'churn'")
    (axes,) = qini_picture(*rows, True, direction="decrease").axes
    assert axes.get_title(loc="left").startswith("Less churn when")
    panel = decile_picture(lift_table(FEWER, MONEY).query("outcome == 'churn'"), True, "decrease").axes[0]
    assert panel.get_xlabel() == "decile (1 = lowest predicted)"


def test_models_compared_by_what_their_rules_lower() -> None:
    rows, _ = trial(3000, np.random.default_rng(5))
    names = ("effects_0", "effects_1")
    turned = {**rows, "outcome": 0.0 - rows["outcome"], "outcome_mean": -rows["outcome_mean"]}
    turned |= {name: -rows[name] for name in names}
    grids = tuple(np.unique(np.r_[prices(rows[name], COST, 8), PRICE])[::-1] for name in names)
    figures = []
    for these, direction in ((rows, "increase"), (turned, "decrease")):
        rules = Rules(COST, PRICE, grids, (float(rows["weight"].max()), 1.0), 5, 7, direction)
        batch = pa.RecordBatch.from_pydict({k: pa.array(v if v.ndim == 1 else list(v)) for k, v in these.items()})
        (sums,) = add_values(rules, [batch])
        values = [Values.of(np.frombuffer(one.as_py(), "<i8"), rules, m) for m, one in enumerate(sums.column("sums"))]
        figures.append([one.figures(1.0)[name][0] for one in values for name in one.figures(1.0)])
    assert figures[0] == figures[1] and figures[0][0] > 0


def churn_config(direction: Direction, worth: float = 25.0, **changes: Any) -> Config:
    roles = RolesConf(outcome="churn", control="none", features=("age", "city"), direction=direction)
    costs = {"5%": 0.5, "10%": 1.0}
    return replace(conf(**changes), roles=roles, economics=Economics(value={"churn": worth}, cost=costs))


@pytest.mark.parametrize("objective", ["profit", "outcome"])
def test_a_plan_treats_those_whose_outcome_falls_most(objective: str) -> None:
    rng, n = np.random.default_rng(8), 400
    effects = rng.normal(-0.05, 0.08, (n, 2))
    cost = np.tile([0.5, 1.0], (n, 1))
    plans = []
    for direction, these in (("decrease", effects), ("increase", -effects)):
        worth = Campaign(churn_config(direction, objective=objective)).outcome_value
        gain = these * worth - (cost if objective == "profit" else 0.0)
        units = Candidates(gain, cost, np.zeros((n, 0), np.int64), np.arange(n, dtype=np.uint64))
        limit = Constraint("spend", 60.0, "spend", np.ones(2))
        problem = Problem((limit,), 2, 0, float(np.abs(gain).max()), 1.0)
        plan = allocate(
            problem, lambda p, w, most, units=units, problem=problem: scan_candidates(problem, units, p, w, most)
        )
        plans.append((plan.of(problem, units), plan.gain))
    assert plans[0][0].tolist() == plans[1][0].tolist() and plans[0][1] == plans[1][1] > 0
    treated = plans[0][0] >= 0
    assert 0 < treated.sum() < n and effects.min(axis=1)[treated].max() < effects.min(axis=1)[~treated].mean()


def test_a_policy_tree_gives_the_level_that_lowers_the_outcome() -> None:
    from tests.policy.test_trees import NUMERIC

    bins = (np.arange(600) % 3 + 1).astype(np.uint8)[:, None]
    scores = np.column_stack([np.zeros(600), np.where(bins[:, 0] == 1, -0.4, 0.1)])  # of churn, against the control
    worth = Campaign(churn_config("decrease")).outcome_value
    tree = fit_tree(bins, worth * scores, [NUMERIC], ["none", "10%"], 1)
    assert tree.actions(bins).tolist() == (bins[:, 0] == 1).astype(int).tolist()


def test_the_python_twin_ranks_by_the_direction_and_keeps_it_in_its_file(tmp_path: Any) -> None:
    rng, n = np.random.default_rng(2), 3000
    frame = pd.DataFrame({"unit": range(n), "arm": np.where(rng.random(n) < 0.5, "mail", "none"), "age": rng.random(n)})
    risk = 0.4 - 0.3 * (frame["arm"] == "mail") * (frame["age"] > 0.5)
    frame["churn"] = (rng.random(n) < risk).astype(float)
    frame["stays"] = 1 - frame["churn"]
    roles = Roles("unit", "arm", "churn", ("age",), "none", direction="decrease", more_outcomes=("stays",))
    model = CausalForest(n_trees=20, seed=3).fit(frame[:1500], roles)
    rest = frame[1500:]
    assert model.qini(rest)["lower"].item() > 0 and model.qini(rest, "stays")["lower"].item() > 0
    deciles = model.lift(rest, value=10.0, cost={"mail": 1.0}).query("cut == 'decile'")
    assert deciles["predicted_uplift"].is_monotonic_increasing and deciles["uplift"].iloc[0] < -0.15
    assert deciles["roi"].iloc[0] > 0
    model.save(tmp_path / "churn.uplift")
    again = load_model(tmp_path / "churn.uplift")
    assert again.roles.direction == "decrease" and again.qini(rest).equals(model.qini(rest))
    plain = CausalForest(n_trees=20, seed=3).fit(frame[:1500], replace(roles, direction="increase"))
    assert plain.effect(rest).equals(model.effect(rest))  # effects stay those on the outcome
    assert plain.lift(rest).query("cut == 'decile'")["predicted_uplift"].is_monotonic_decreasing
    assert isinstance(plain, UpliftModel) and "direction" not in str(plain.manifest)


def test_runs_stay_the_same_at_the_default_and_differ_where_ranking_does() -> None:
    jobs = {"ingest", "features", "train", "score", "lift", "policy", "simulate", "compare", "tree", "report"}
    fewer, more = churn_config("decrease"), churn_config("increase")
    changed = {job for job in jobs if derive_run_id(job, fewer) != derive_run_id(job, more)}
    assert changed == {"train", "lift", "policy", "simulate", "compare", "tree", "report"}
    assert all("roles.direction" not in more.run_identity(job) for job in jobs)


def test_another_direction_leaves_a_model_fit_for_a_refresh() -> None:
    holdout, _, _ = campaign(n=600)
    frame = holdout.rename(columns={"visit": "churn"})
    model = CausalForest(n_trees=4).fit(frame, churn_config("increase").training_roles)
    base = SimpleNamespace(name="leavers", version=1)
    refresh._check(Campaign(churn_config("decrease")), base, model)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="was trained with other roles"):
        other = replace(churn_config("decrease"), roles=replace(churn_config("decrease").roles, features=("age",)))
        refresh._check(Campaign(other), base, model)  # type: ignore[arg-type]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"economics.value.churn is -25, but roles.direction .* such as 25"):
        churn_config("decrease", worth=-25.0)
    assert Campaign(churn_config("increase", worth=-25.0)).outcome_value == -25.0
    with pytest.raises(ConfigError, match="'down' is neither increase nor decrease"):
        Roles("unit", "arm", "churn", ("age",), "none", direction="down")  # type: ignore[arg-type]


def test_a_benefit_is_made_in_one_place() -> None:
    assert benefit(-0.3, "decrease") == 0.3 and benefit(-0.3, "increase") == -0.3
    assert not np.signbit(benefit(np.zeros(1), "decrease"))[0]
    assert benefit_interval(-0.3, 0.1, "decrease") == (-0.1, 0.3) and benefit_interval(1, 2, "increase") == (1, 2)
    assert benefit_name("churn", "decrease") == "less churn" and benefit_name("spend", "increase") == "spend"
