"""The report's page: its advice, its figures against the tables, and names that hold markup."""

import re

import numpy as np
import pandas as pd
import pytest

from tests.dashboards.samples import sample_drivers
from tests.evaluation.test_lift_tables import MONEY, evaluation
from uplift_spark.evaluation.drivers import driver_sentence
from uplift_spark.evaluation.html_page import short
from uplift_spark.evaluation.lift_tables import lift_table
from uplift_spark.evaluation.metrics import curve_table, metric_table
from uplift_spark.evaluation.report import (
    PROFILE_COLUMNS,
    PageData,
    page_text,
    plan_rows,
    profile_of_frame,
    render_page,
    traits,
)
from uplift_spark.evaluation.svg import ticks


def page_of(effect=(0.4, 0.0), n=400, **changes):
    source = evaluation(effect, n=n)
    tables = lift_table(source, MONEY), curve_table(source), metric_table(source)
    parts = {"rates": source.rates, "value": MONEY.value, "cost": MONEY.cost, **changes}
    return PageData("spring", "none", *tables, units=5000, date="2025-01-06", **parts)


def test_the_tenths_that_pay_are_advised_and_judged_by_the_hold_out():
    data = page_of()
    best = data.best
    # 7 * effect exceeds .5 where the effect exceeds .0714: in the first 7 of 10 tenths.
    predicted = data.rows("mail", "decile")["predicted_uplift"]
    assert best.action == "best" and best.share == (predicted * 7 > 0.5).mean() == 0.7
    gain = data.curve.query("outcome == 'visit' and fraction.round(6) == .7").iloc[0]
    assert best.net["value"] == pytest.approx(7 * gain["gain"] - 0.7 * 0.5)
    assert best.net["lower"] == pytest.approx(7 * gain["gain_lower"] - 0.7 * 0.5)
    assert "Give mail to the best 70 %" in page_text(data)


@pytest.mark.parametrize(
    ("changes", "badge"),
    [
        ({"effect": (0.0, 0.0)}, "Do not use mail"),
        ({"effect": (0.0, 0.0), "cost": {}}, "mail is not proven"),
        ({"effect": (0.2, 0.2)}, "Give mail to everyone"),
        ({"n": 1}, "Too few units to judge mail"),
    ],
)
def test_every_case_has_its_advice(changes, badge):
    data = page_of(**changes)
    assert badge in page_text(data) and badge in render_page(data)


def test_every_figure_from_a_table_is_a_number_of_that_table():
    data = page_of()
    html = render_page(data)
    known = {"metrics": data.metrics[["value", "lower", "upper"]].to_numpy().ravel()}
    pattern = r'<data value="([^"]*)" data-of="([^"]*)"(?: data-scale="([^"]*)")?>([^<]*)</data>'
    figures = re.findall(pattern, html)
    checked = [(float(v), float(by or 1), text, of) for v, of, by, text in figures if of in known]
    assert len(figures) > 20 and len(checked) >= 6
    assert all(value in known[of] and text == short(value * by) for value, by, text, of in checked)
    assert html.count("<data ") == len(figures)


def test_what_the_trial_showed_stands_on_the_page_the_primary_metric_first():
    figures = {"treatment": "mail", "effect": 0.41, "lower": 0.2, "upper": 0.6, "p_adjusted": 0.01, "status": "better"}
    rows = [{**figures, "metric": "churn", "role": "secondary"}, {**figures, "metric": "visit", "role": "primary"}]
    old = pd.DataFrame(rows).assign(override=None)
    new = old.assign(bootstrap_lower=0.1875, bootstrap_upper=0.625)
    assert "What the trial showed" not in render_page(page_of())
    for table, ends in ((old, "interval not known"), (new, "0.188")):
        html = render_page(page_of(trial=table, verdict="ship mail: visit <rises>"))
        part = html[html.index("What the trial showed") : html.index("What the data show")]
        assert part.index("<td>visit") < part.index("<td>churn") and "visit &lt;rises&gt;" in part and ends in part
        assert "read all the same" not in part
    html = render_page(page_of(trial=new.assign(override="the <b>team</b> knows"), verdict="ship mail"))
    assert "read all the same: the &lt;b&gt;team&lt;/b&gt; knows" in html
    html = render_page(page_of(verdict="broken: arms are uneven"))
    assert "broken: arms are uneven" in html and "by bootstrap" not in html


def test_plans_without_a_budget_follow_the_curve():
    _, rows = plan_rows(page_of())
    gain = page_of().gain("mail", 0.3)
    assert rows[1]["units"] == 1500 and rows[1]["cost"] == 750
    assert rows[1]["value"] == pytest.approx(5000 * gain["gain"] * 7 - 750)


def test_the_page_is_alone_and_shows_names_as_text():
    name = """<script>alert("x")</script> & 'mail' \U0001f4e7"""
    data = page_of()
    tables = (table.replace({"mail": name}) for table in (data.lift, data.curve, data.metrics))
    html = render_page(PageData(name, name, *tables, units=10, date="", caveats=[name], facts=[(name, name)]))
    assert "<script" not in html and "&lt;script&gt;" in html and "\U0001f4e7" in html
    assert not re.search(r"(src|href)=|https?://|@import|url\(", html)


def test_empty_tables_are_a_sentence():
    empty = page_of()
    none = PageData("spring", "none", empty.lift[:0], empty.curve[:0], empty.metrics[:0], units=0, date="")
    assert "no level to judge" in page_text(none) and "no level to judge" in render_page(none)


def test_traits_are_the_strongest_differences():
    rows = [("mail", b, f, c, 1, v, s) for f, c, s, values in (
        ("age", None, 10.0, (30, 40, 50)), ("city", "x", 0.5, (0.9, 0.5, 0.1)), ("flat", None, 1.0, (1, 1.1, 1)),
    ) for b, v in zip(("1", "all", "10"), values, strict=True)]  # fmt: skip
    found = traits(pd.DataFrame(rows, columns=list(PROFILE_COLUMNS)), "mail")
    assert [(t["name"], t["best"], t["worst"]) for t in found] == [("age", 30, 50), ("city is x", 0.9, 0.1)]


def test_ticks_and_numbers_are_round():
    assert ticks(-0.3, 4.1) == [-1, 0, 1, 2, 3, 4, 5]
    assert ticks(0, 0) == [0, 1] == ticks(np.nan, 1)
    assert [short(v) for v in (0.012345, 1234.6, 99.96, 0.0, float("nan"))] == ["0.0123", "1,235", "100", "0", "-"]


def test_profiles_of_frames_by_hand() -> None:
    rows = pd.DataFrame(
        {
            "benefit": np.arange(21.0),  # cuts at 2 and 18: three units in each tenth
            "age": [np.nan, 10.0, 20.0, *[50.0] * 15, 1.0, 2.0, 6.0],
            "city": ["a", "a", None, *["b"] * 15, "a", "b", "b"],
            "new": [True] * 3 + [False] * 18,
        }
    )
    table = profile_of_frame(rows, "5%", ["age", "city", "new"]).set_index(["feature", "category", "bucket"])["value"]
    ages = table["age"].droplevel(0)
    assert (ages["1"], ages["10"], ages["rest"]) == (3.0, 15.0, 50.0)
    assert table["city", "a"].to_dict() == {"1": 1 / 3, "10": 2 / 3, "rest": 0.0, "all": 3 / 21}
    assert table["new", "true"]["10"] == 1.0
    assert profile_of_frame(rows.assign(benefit=1.0), "5%", ["age"]).empty
    assert profile_of_frame(rows.head(0), "5%", ["age"]).empty


def test_drivers_are_said_and_drawn_and_names_are_text():
    rows = sample_drivers()
    page = render_page(page_of(drivers=rows))
    part = page[page.index("<h2>What drives lift</h2>") :].partition("</section>")[0]
    sentences = [driver_sentence(row, 100.0) for row in rows.to_dict("records")]  # recomputed from the figures
    assert sentences[0] in part and sentences[1] not in part and sentences[2] in part[part.index("In segments") :]
    assert part.count('class="whisker"') == 2 and "difference in effect, percentage points" in part
    assert "What drives lift" not in render_page(page_of())
    nothing = render_page(page_of(drivers=sample_drivers(0.001)))
    assert "No driver of lift is proven, of the 2 that the model expects most of." in nothing
    assert "In segments" not in nothing
    name = "</script><b>\U0001f680 & " + "a" * 300
    evil = rows.assign(feature=name, condition=name, bucket=name, gain=np.nan, gain_lower=np.nan, gain_upper=np.nan)
    evil["sentence"] = [driver_sentence(row, 100.0) for row in evil.to_dict("records")]
    page = render_page(page_of(drivers=evil))
    assert "</script>" not in page and "&lt;b&gt;" in page and ">nan<" not in page
