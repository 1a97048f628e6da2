"""Guesses about a finished campaign's columns: right where the rows tell, and said with the option that overrides."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from uplift_spark.config import load_config
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.events.column_names import control_of, is_id_name, is_outcome_name, plain_name, yes_of_texts
from uplift_spark.events.guesses import Answers, guess_roles
from uplift_spark.events.quickstart import LEAK_ROWS, conf_text, leaks_of, parsed_costs, prepare_conf, without_leaks

N = 4000


def shop(**more: Any) -> pa.Table:
    rng = np.random.default_rng(7)
    arm, visit = rng.integers(0, 2, N), rng.integers(0, 10, N) == 0
    columns: dict[str, Any] = {
        "customer_id": np.arange(N) + 5000,
        "group": np.where(arm == 1, "Mail", "Control"),
        "visit": visit.astype(int),
        "total ads": rng.normal(size=N),
        "Source": rng.choice(["web", "shop"], N),
        "x1": rng.integers(0, 5, N),
        "X1": rng.integers(0, 5, N),
        "age": np.where(rng.integers(0, 9, N) == 0, -999, rng.integers(18, 80, N)),
        "constant": np.ones(N),
        "mailed": arm,
        "basket": visit * rng.integers(0, 2, N) * 20.0,
        "spend": visit * rng.exponential(10, N),
        "comment": [f"text {i}" for i in range(N)],
    }
    return pa.table({**columns, **more})


def test_a_table_as_users_have_them(tmp_path: Path) -> None:
    guesses = guess_roles(shop(), Answers("group", ("visit",), value=25.0, cost={"": 0.1}))
    assert (guesses.control, guesses.unit, guesses.levels) == (
        "Control",
        "customer_id",
        {"Control": "Control", "Mail": "Mail"},
    )
    assert guesses.features == ("total ads", "Source", "x1", "X1", "age") and guesses.missing == (-999.0,)
    assert set(guesses.dropped) == {"constant", "mailed", "basket", "spend", "comment"}
    assert guesses.dropped["mailed"] == "a copy of the treatment" and guesses.dropped["basket"].startswith("a step")
    assert guesses.names == {
        "visit": "visit", "spend": "spend", "total ads": "total_ads", "Source": "Source_1", "x1": "x1", "X1": "X1_1",
        "age": "age",
    }  # fmt: skip
    assert any("--control" in line for line in guesses.lines) and any("--unit" in line for line in guesses.lines)
    path = tmp_path / "own.yaml"
    path.write_text(conf_text(guesses, "own", {"path": "x.csv"}, {"path": "lakehouse"}))
    config = load_config(path)
    assert config.roles.features == ("total_ads", "Source_1", "x1", "X1_1", "age")
    assert config.economics.value == {"spend": 1.0, "visit": 25.0} and config.economics.cost == {"Mail": 0.1}
    assert config.lift.segments == ("Source_1",) and config.lift.outcomes == ("spend",)


@pytest.mark.parametrize(
    ("levels", "control", "names"),
    [
        (("0", "1"), "none", {"0": "none", "1": "treated"}),
        (("Womens E-Mail", "No E-Mail"), "No E-Mail", None),
        (("ad", "psa"), "psa", None),
        (("test", "control"), "control", None),
        (("Yes", "No"), "none", {"No": "none", "Yes": "treated"}),
        (("gate_40", "gate_30"), "gate_30", None),
        (("true", "false"), "none", None),
    ],
)
def test_the_control_by_its_name(levels: tuple[str, ...], control: str, names: dict[str, str] | None) -> None:
    guesses = guess_roles(shop(group=[levels[i % 2] for i in range(N)]), Answers("group", ("visit",)))
    assert guesses.control == control and (names is None or guesses.levels == names)
    chosen = guess_roles(shop(group=[levels[i % 2] for i in range(N)]), Answers("group", ("visit",), control=levels[0]))
    assert next(iter(chosen.levels)) == levels[0]


def test_doses_are_numbers_that_are_no_mere_codes() -> None:
    priced = [("none", "5%", "10%")[i % 3] for i in range(N)]
    assert guess_roles(shop(group=priced), Answers("group", ("visit",))).dose == {"none": 0.0, "5%": 5.0, "10%": 10.0}
    coded = guess_roles(shop(group=[i % 3 for i in range(N)]), Answers("group", ("visit",)))
    assert coded.dose is None and list(coded.levels.values()) == ["none", "1", "2"]


def test_less_is_better_where_the_name_says_so() -> None:
    churn = [str(("Yes", "No")[i % 4 > 0]) for i in range(N)]
    guesses = guess_roles(shop(churn=churn), Answers("group", ("churn",)))
    assert guesses.direction == "decrease" and guesses.outcomes == {"churn": "churn", **guesses.outcomes}
    assert "direction: less of churn is better, by its name (--direction increase says otherwise)" in guesses.lines
    more = guess_roles(shop(churn=churn), Answers("group", ("churn",), direction="increase"))
    assert more.direction == "increase" and "direction: more of churn is better" in more.lines
    fewer = guess_roles(shop(), Answers("group", ("visit",), direction="decrease"))
    assert fewer.direction == "decrease" and fewer.outcomes["visit"] == "visit"
    assert guess_roles(shop(), Answers("group", ("visit",))).direction == "increase"


@pytest.mark.parametrize(
    ("name", "direction"),
    [
        *((name, "decrease") for name in ("churned", "Unsubscribed", "complaints", "returns", "items_returned")),
        *((name, "decrease") for name in ("cancelled", "opt_out", "refund_sum", "defaulted")),
        *((name, "increase") for name in ("spend", "returning_visits", "return_on_ads", "conversion", "retained")),
    ],
)
def test_the_direction_by_the_outcomes_name(name: str, direction: str) -> None:
    amounts = [float(i % 7) for i in range(N)]  # less of a number can be better, too
    assert guess_roles(shop(**{name: amounts}), Answers("group", (name,))).direction == direction


@pytest.mark.parametrize("outcome", ["churn=No", "cancellation=kept", "no_churn", "status=not cancelled"])
def test_a_name_that_may_mean_either_end_is_asked_about(outcome: str) -> None:
    column, _, value = outcome.partition("=")
    cells = [(value, "Yes")[i % 2] for i in range(N)] if value else [float(i % 2) for i in range(N)]
    with pytest.raises(ConfigError, match=r"does not show from its name: say --direction increase or --direction"):
        guess_roles(shop(**{column: cells}), Answers("group", (outcome,)))
    said = guess_roles(shop(**{column: cells}), Answers("group", (outcome,), direction="decrease"))
    assert said.direction == "decrease"
    for column, bad in (("churn", "Yes"), ("status", "cancelled")):
        cells = [(bad, "other")[i % 2] for i in range(N)]
        assert guess_roles(shop(**{column: cells}), Answers("group", (f"{column}={bad}",))).direction == "decrease"


def test_an_outcome_that_is_a_value_of_a_column() -> None:
    state = [("Left", "Stays")[i % 3 > 0] for i in range(N)]
    guesses = guess_roles(shop(state=state), Answers("group", ("state=Left",)))
    assert guesses.values == {"state": {"Left": 1.0, "Stays": 0.0}}
    with pytest.raises(DataError, match=r"say which counts, as in --outcome state=Left"):
        guess_roles(shop(state=state), Answers("group", ("state",)))


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (Answers("grup", ("visit",)), "no column 'grup': did you mean 'group'"),
        (Answers("group", ("visits",)), "no column 'visits'"),
        (Answers("group", ("visit",), control="Mial"), "--control 'Mial' is no level"),
        (Answers("group", ("visit",), cost={"Mial": 1.0}), "--cost names 'Mial'"),
        (Answers("constant", ("visit",)), "one level only"),
        (Answers("customer_id", ("visit",)), r"has 4,000 different values"),
    ],
)
def test_what_is_not_there_is_refused(answers: Answers, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        guess_roles(shop(), answers)
    assert "\n" not in str(caught.value)


def test_codes_of_the_assignment_are_no_features() -> None:
    rng = np.random.default_rng(2)
    ratio = rng.integers(0, 4, N)
    asked = np.where(ratio > 0, rng.integers(1, 4, N), 0)  # one value throughout the control
    table = shop(group=ratio, ratio2=ratio == 2, asked=asked, unlike=rng.integers(0, 2, N))
    guesses = guess_roles(table, Answers("group", ("visit",)))
    for name in ("ratio2", "asked"):
        assert guesses.dropped[name].startswith("a code of the treatment"), name
    assert "unlike" in guesses.features
    rare = rng.integers(0, N // 3, N) == 0  # hardly anybody has it: that one level has none is chance
    assert "rare" in guess_roles(shop(rare=rare), Answers("group", ("visit",), drop=("mailed",))).features


def test_means_of_the_outcome_are_no_features_but_earlier_rates_are() -> None:
    rng = np.random.default_rng(6)
    n, region = 20_000, rng.integers(0, 30, 20_000)
    truth, arm = rng.uniform(0.05, 0.3, 30), rng.integers(0, 2, n)
    y = (rng.random(n) < truth[region]).astype(float)
    last_year = rng.binomial(700, truth) / 700
    means = {
        "mean": [y[region == g].mean() for g in range(30)],
        "of_treated": [y[(region == g) & (arm == 1)].mean() for g in range(30)],
        "lift": [y[(region == g) & (arm == 1)].mean() - y[(region == g) & (arm == 0)].mean() for g in range(30)],
    }
    made = {name: np.array(values)[region] for name, values in means.items()}
    table = pa.table({"arm": arm, "bought": y, "x": rng.normal(size=n), "last_year": last_year[region], **made})
    guesses = guess_roles(table, Answers("arm", ("bought",)))
    assert guesses.features == ("x", "last_year")
    assert {guesses.dropped[name] for name in made} == {"a mean of the outcome in groups: made from it"}


def test_columns_that_another_one_says_anyhow_are_no_features() -> None:
    rng = np.random.default_rng(8)
    plan, mood = rng.choice(["basic", "plus", "pro"], N), rng.normal(size=N)
    women = rng.integers(0, 2, N)
    score = np.where(rng.integers(0, 9, N) == 0, np.nan, mood)
    extra: dict[str, Any] = {
        "plan": plan, "plan_plus": plan == "plus", "plan_pro": plan == "pro", "female": women, "male": 1 - women,
        "mood": mood, "mood_rank": np.exp(-mood), "score": score, "no_score": np.isnan(score),
        "no_age": (pa.array(shop()["age"]).to_numpy() == -999).astype(int), "only_pro": plan == "pro",
    }  # fmt: skip
    guesses = guess_roles(shop(**extra), Answers("group", ("visit",)))
    reasons = {name: guesses.dropped.get(name, "") for name in extra}
    assert [name for name in extra if not reasons[name]] == ["plan", "female", "mood", "score"]
    assert reasons["male"] == "the same as female in other values" and reasons["mood_rank"].startswith(
        "the same as mood"
    )
    assert "is missing" in reasons["no_score"] and "is missing" in reasons["no_age"]
    assert reasons["plan_plus"].startswith("says whether plan has one value")
    kept = guess_roles(shop(**extra), Answers("group", ("visit",), keep=("male", "no_age")))
    assert {"male", "no_age"} <= set(kept.features)
    assert "no_age" not in guesses.segments and guess_roles(shop(), Answers("group", ("visit",))).segments == (
        "Source",
    )


def test_a_column_named_after_a_dose_holds_doses() -> None:
    table = shop(ratio=[i % 4 for i in range(N)])
    assert guess_roles(table, Answers("ratio", ("visit",))).dose == {"none": 0.0, "1": 1.0, "2": 2.0, "3": 3.0}


def test_what_differs_between_arms_is_no_feature() -> None:
    rng = np.random.default_rng(3)
    table = shop()
    later = np.array([text == "Mail" for text in table["group"].to_pylist()]) + rng.normal(1, 1, N)
    table = table.append_column("later", pa.array(later))
    guesses = guess_roles(table, Answers("group", ("visit",)))
    assert leaks_of(table, guesses) == {"later": "differs between the arms"}
    clean = without_leaks(table, guesses, Answers("group", ("visit",)))
    assert "later" not in clean.features and clean.allowed == {}
    (warning,) = clean.warnings
    assert "does not look like a randomised trial: later tells who" in warning and "--not-randomised" in warning


def test_leaks_are_found_in_a_long_file_that_is_sorted_by_level() -> None:
    n = 2 * LEAK_ROWS + 10_000
    rng = np.random.default_rng(4)
    arm, x = np.repeat(["Control", "Mail"], n // 2), rng.normal(size=n)
    later = (arm == "Mail") + rng.normal(0, 1, n)
    table = pa.table({"arm": arm, "y": rng.integers(0, 2, n), "x": x, "later": later})
    guesses = guess_roles(table, Answers("arm", ("y",)))
    assert leaks_of(table, guesses) == {"later": "differs between the arms"}


def test_names_and_costs() -> None:
    assert plain_name("Source") == "Source_1" and plain_name("2nd x", ["c_2nd_x"]) == "c_2nd_x_1"
    assert parsed_costs(["mail=.1", "2"]) == {"mail": 0.1, "": 2.0}
    with pytest.raises(ConfigError, match="must look like"):
        parsed_costs(["mail"])


def test_a_configuration_that_was_edited_stays(tmp_path: Path) -> None:
    path = tmp_path / "my shop.csv"
    lines = [f"{i},{'ab'[i % 2]},{i % 3 % 2},{i % 7}\n" for i in range(300)]
    path.write_text("id,arm,y,x\n" + "".join(lines))
    answers = Answers("arm", ("y",), control="a")
    conf, _ = prepare_conf(str(path), answers, tmp_path, None, lambda line: None)
    assert conf == tmp_path / "conf" / "my_shop.yaml" and yaml.safe_load(conf.read_text())["campaign"] == "my_shop"
    prepare_conf(str(path), answers, tmp_path, None, lambda line: None)
    conf.write_text(conf.read_text() + "seed: 3\n")
    with pytest.raises(ConfigError, match=r"my_shop.yaml was edited"):
        prepare_conf(str(path), answers, tmp_path, None, lambda line: None)


@pytest.mark.parametrize(
    ("name", "outcome", "after"),
    [
        ("outcome.response.time", "outcome.correct", True),  # dots, blanks and capitals part words as underscores do
        ("Post Test", "y", True),
        ("postOp4hour_cough", "y", True),
        ("g4reading", "g4math", True),  # of one time
        ("g1reading", "g4math", False),
        ("primary_12", "turnout_12", True),
        ("primary_10", "turnout_12", False),
        ("wt71", "wt82_71", False),
        ("re75", "re78", False),  # earnings of an earlier year
        ("pain90min", "pain30min", True),  # both count from one moment
        ("number3m", "number12m", True),
        ("retention_1", "retention_7", True),
        ("futime", "status", True),  # a survival trial's pair
        ("status", "time", True),
        ("time", "visit", False),
        ("pre_score", "score", False),
        ("baseline_y_12", "y_12", False),
        ("spend_q3_2024", "spend_q4_2024", False),
        ("f1", "y", False),
        ("mu1", "y_factual", True),  # what a simulation knows
        ("y_cfactual", "y_factual", True),
        ("exposure", "visit", True),
    ],
)
def test_what_comes_after_the_treatment_by_its_name(name: str, outcome: str, after: bool) -> None:
    assert is_outcome_name(name, (outcome,)) is after


@pytest.mark.parametrize(
    ("levels", "control", "sure"),
    [
        (("Lev+5FU", "Lev", "Obs"), "Obs", False),
        (("regular.with.aide", "regular", "small.class"), "regular", False),
        (("new_page", "old_page"), "old_page", False),
        (("P", "A"), "P", False),
        (("T", "C"), "C", True),
        (("gate_40", "gate_30"), "gate_30", False),
        (("$10 off", "$5 off"), "$5 off", False),
        (("2", "1"), "1", False),
        (("-1", "1"), "-1", False),
        (("0_placebo", "1_drug"), "0_placebo", True),
        (("treatment", "comparison"), "comparison", False),
    ],
)
def test_the_control_among_levels_of_real_trials(levels: tuple[str, ...], control: str, sure: bool) -> None:
    assert control_of(levels) == (control, sure)


@pytest.mark.parametrize(
    ("texts", "counted"),
    [
        (("did not vote", "voted"), "voted"),
        (("failure", "success"), "success"),
        (("0_no", "1_yes"), "1_yes"),
        (("Alive", "Dead"), "Alive"),
        (("churned", "stayed"), "stayed"),
        (("employed", "unemployed"), "employed"),
        (("kept", "cancelled"), "cancelled"),
        (("increase", "decrease"), None),
        (("Left", "Stays"), None),
        (("low", "mid", "high"), None),
    ],
)
def test_which_text_of_an_outcome_counts(texts: tuple[str, ...], counted: str | None) -> None:
    meaning = yes_of_texts(texts)
    assert meaning == (None if counted is None else {text: float(text == counted) for text in texts})


def test_an_outcome_in_two_texts_needs_no_option() -> None:
    voted = [("did not vote", "voted")[i % 3 > 0] for i in range(N)]
    guesses = guess_roles(shop(turnout=voted), Answers("group", ("turnout",)))
    assert guesses.values == {"turnout": {"did not vote": 0.0, "voted": 1.0}}
    assert any("voted counts (--outcome turnout=VALUE says otherwise)" in line for line in guesses.lines)


def clustered() -> pa.Table:
    school = np.arange(N) // 20
    group = np.where(np.random.default_rng(1).permutation(N // 20)[school] % 2 == 1, "Mail", "Control")
    return shop(group=group, school=school * 7, classroom=[f"c{i // 10}" for i in range(N)], mailed=np.zeros(N))


def test_what_was_treated_as_one_is_a_cluster(tmp_path: Path) -> None:
    guesses = guess_roles(clustered(), Answers("group", ("visit",)))
    assert guesses.cluster == "school" and not {"school", "classroom"} & set(guesses.features)
    assert guesses.dropped["classroom"] == "groups of one treatment each, inside those of school"
    assert "school" not in leaks_of(clustered(), guesses)
    path = tmp_path / "own.yaml"
    path.write_text(conf_text(guesses, "own", {"path": "x.csv"}, {"path": "lakehouse"}))
    config = load_config(path)
    assert config.roles.cluster == "school" and config.roles.features == tuple(
        guesses.names[name] for name in guesses.features
    )
    assert "school" in config.source.attributes  # type: ignore[union-attr]
    assert guess_roles(clustered(), Answers("group", ("visit",), drop=("school", "classroom"))).cluster is None
    assert guess_roles(shop(), Answers("group", ("visit",))).cluster is None
    assert guess_roles(shop(), Answers("group", ("visit",), cluster="x1")).cluster == "x1"


def test_rows_that_repeat_others_do_not_hide_the_id() -> None:
    rows = shop()
    twice = pa.concat_tables([rows, rows.slice(0, 500)])
    guesses = guess_roles(twice, Answers("group", ("visit",)))
    assert guesses.unit == "customer_id" and "500 rows that repeat another are left out" in "".join(guesses.lines)
    with pytest.raises(DataError, match=r"column 'x1' repeats in 4,000 of 4,000 rows, which would be rejected"):
        guess_roles(rows, Answers("group", ("visit",), unit="x1"))


def test_too_few_cases_are_warned_of() -> None:
    one = [float(i == 0) for i in range(N)]
    report = guess_roles(shop(visit=one), Answers("group", ("visit",))).report()
    assert sum(line.startswith("warning:") and "rarer end of visit: too few" in line for line in report) == 2
    assert not any("too few" in line for line in guess_roles(shop(), Answers("group", ("visit",))).report())


def test_few_rows_explain_nothing_by_chance() -> None:
    few = pa.table(
        {"rownames": range(1, 23), "arm": ["a", "b"] * 11, "y": [i * 5 % 7 for i in range(22)], "age": range(40, 62)}
    )
    guesses = guess_roles(few.append_column("bmi", pa.array([i * i % 23 for i in range(22)])), Answers("arm", ("y",)))
    assert guesses.unit == "rownames" and guesses.features == ("bmi",)


def test_codes_that_count_from_one_are_no_doses() -> None:
    table = shop(group=[str(1 + i % 3) for i in range(N)])
    assert guess_roles(table, Answers("group", ("visit",))).dose is None


def test_a_value_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--value -5 is no amount of money.*--direction decrease"):
        guess_roles(shop(), Answers("group", ("visit",), value=-5.0))


def test_amounts_and_dates_as_people_write_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    days = rng.integers(0, 300, N)
    frame = shop().to_pandas().assign(
        paid=[f"${amount:,.2f}" for amount in rng.gamma(2, 800, N)],
        **{"the share": [f"{share:.1f} %" for share in rng.uniform(0, 90, N)]},
        unsure=[f"{day % 90},{day % 10} %" for day in days],  # 12,5 % is no 125
        joined=[f"{1 + day % 28}/{1 + day % 12}/2023" for day in days],
        unclear=[f"{1 + day % 12}.{1 + day % 11}.2023" for day in days],
        assigned_at="2024-03-01",
        last_login=[f"2024-03-{2 + day % 28:02d}" for day in days],
        first_seen=[f"2023-01-{day:02d}" for day in rng.integers(1, 29, N)],
    )  # fmt: skip
    frame.to_csv(tmp_path / "own.csv", index=False)
    said: list[str] = []
    conf, guesses = prepare_conf(str(tmp_path / "own.csv"), Answers("group", ("paid",)), tmp_path, None, said.append)
    kinds = {"paid": "number", "joined": "%d/%m/%Y", "the_share": "number"}  # under the names of the configuration
    assert yaml.safe_load(conf.read_text())["source"]["types"] == kinds
    assert sum(line.startswith("type: ") for line in said) == 3
    assert {"the share", "joined", "unclear", "first_seen"} <= set(guesses.features)
    assert "unsure" not in kinds
    assert guesses.dropped["last_login"] == "times of after assigned_at"


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        *(
            (name, True)
            for name in ("userid", "User ID", "customerNo", "patient_id", "hhid", "rownames", "uuid", "index")
        ),
        *((name, False) for name in ("saving.index", "paid", "valid", "age", "customer_type", "household_size")),
    ],
)
def test_an_id_by_its_name(name: str, is_id: bool) -> None:
    assert is_id_name(name) is is_id


# ---- treatments that are numbers


def vouchers(**more: Any) -> pa.Table:
    rng = np.random.default_rng(3)
    voucher = np.where(rng.random(N) < 0.2, 0.0, rng.uniform(0, 3, N).round(2))
    columns = {"customer_id": np.arange(N), "age": rng.integers(18, 80, N), "dose": rng.normal(size=N)}
    return pa.table({**columns, "voucher": voucher, "spend": voucher + rng.normal(size=N), **more})


def test_a_number_of_many_values_gets_a_grid(tmp_path: Path) -> None:
    guesses = guess_roles(vouchers(), Answers("voucher", ("spend",), value=1.0, cost={"": 1.0}))
    assert (guesses.control, guesses.grid, guesses.dose) == ("0", (1.0, 2.0, 3.0), None)
    assert (guesses.cost, guesses.cost_per_dose) == ({}, 1.0)
    assert "treatment: voucher, a number from 0 to 3" in guesses.lines
    (said,) = [line for line in guesses.lines if line.startswith("grid: ")]
    assert re.fullmatch(
        r"grid: a unit counts as the nearest of 0 \(.*\), 1 \(.*\), 2 \(.*\), 3 \(.*\) \(edit .*\)", said
    )
    counted = [int(n.replace(",", "")) for n in re.findall(r"\((\d[\d,]*)\)", said)]
    assert sum(counted) == N
    path = tmp_path / "own.yaml"
    path.write_text(conf_text(guesses, "own", {"path": "x.csv"}, {"path": "lakehouse"}))
    config = load_config(path)
    assert config.roles.grid == (1.0, 2.0, 3.0) and config.source.arms is None  # type: ignore[union-attr]
    assert config.economics.cost == {"1": 1.0, "2": 2.0, "3": 3.0}
    assert "dose" not in config.roles.features and len(config.roles.features) == 2  # a feature of that name is renamed


def test_grids_of_prices_and_of_a_control_that_was_named() -> None:
    prices = vouchers(price=np.random.default_rng(0).uniform(9.5, 14.9, N)).drop_columns(["voucher"])
    guesses = guess_roles(prices, Answers("price", ("spend",)))
    assert (guesses.control, guesses.grid) == ("10", (12.0, 14.0))
    guesses = guess_roles(prices, Answers("price", ("spend",), control="12"))
    assert (guesses.control, guesses.grid) == ("12", (10.0, 14.0))
    with pytest.raises(ConfigError, match="--control 'none' is no number, and column 'price' is one"):
        guess_roles(prices, Answers("price", ("spend",), control="none"))


def test_leaks_of_a_number_are_looked_for_among_its_levels() -> None:
    table = vouchers()
    table = table.append_column("paid", pa.array(np.asarray(table.column("voucher")) * 2 + 1))
    guesses = without_leaks(table, guess_roles(table, Answers("voucher", ("spend",))), Answers("voucher", ("spend",)))
    assert "paid" in guesses.dropped and "age" in guesses.features


def test_ids_and_texts_are_no_doses() -> None:
    with pytest.raises(DataError, match="different values: a treatment has 2 to 20 levels"):
        guess_roles(vouchers(), Answers("customer_id", ("spend",)))
    words = vouchers(word=[f"w{i % 50}" for i in range(N)])
    with pytest.raises(DataError, match="different values: a treatment has 2 to 20 levels"):
        guess_roles(words, Answers("word", ("spend",)))
