"""The pages: figures are the tables', sentences follow from them, and whatever a name holds is shown as text."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import subprocess
from datetime import date

import numpy as np
import pandas as pd
import pytest

from tests.dashboards.samples import (
    NODE,
    monitored,
    needs_node,
    sample_drivers,
    sample_frames,
    sample_tables,
    sample_units,
)
from tests.dashboards.test_metrics import roi
from uplift_spark.dashboards.pages import PAGES, dashboard_pages
from uplift_spark.dashboards.tables import CampaignTables, PolicyFacts
from uplift_spark.dashboards.whatif import whatif_sums
from uplift_spark.evaluation.drivers import driver_sentence
from uplift_spark.evaluation.html_page import coded, package_text, short

FIGURE = re.compile(r'<data value="([^"]*)" data-of="([^"]*)"(?: data-scale="([^"]*)")?>([^<]*)</data>')
NAMES = ["</script><script>alert(1)</script>", "\"'`{{ 7*7 }}", "\U0001f680 emoji", "مرحبا \u202e abc", "a" * 300]


def facts_of(page: str) -> dict:
    blob = re.search(r'<script type="text/plain" id="data">([^<]*)</script>', page)
    return json.loads(gzip.decompress(base64.b64decode(blob.group(1))))


def recomputed(tables: CampaignTables) -> dict[str, list[float]]:
    """{source: figures that follow from rows of tables}, each computed anew."""
    plan, rows = tables.plan, tables.decisions
    assert plan is not None and rows is not None
    treated, units = rows.loc[rows["treatment"] != tables.control, "n"].sum(), rows["n"].sum()
    shares = [plan[name] / plan["cost"] for name in ("observed", "observed_lower", "observed_upper")]
    kpi = tables.kpis.set_index("kpi")
    bad = {"error_rate": kpi.loc["error_rate", "value"], "delivery_rate": 1 - kpi.loc["delivery_rate", "value"]}
    n = {name: kpi.loc[name, "n"] for name in bad}
    drifted = tables.rows("drift")["state"] == "drift"
    return {
        "policy_curve: observed / cost": [*shares, plan["treated"]],
        "policy_decisions": [*rows[["n", "gain", "cost"]].to_numpy(float).ravel(), units, treated / units],
        "uplift_scores": [*tables.widths["mail"]],
        "kpi: window_end": [0.0],  # windows that wait: the newest is over
        "kpi: windows added up": [
            *(1 - (bad[name] @ n[name]) / n[name].sum() / 0.01 for name in bad), *(one.sum() for one in n.values())
        ],
        "drift": [drifted.mean(), len(drifted)],
        "alerts": [len(tables.open_alerts)],
    }  # fmt: skip


def test_every_figure_of_a_page_is_one_of_its_table():
    forecast = roi((500.0, 100.25, 900.5), (800.0, 700.125, 900.75), date(2025, 3, 31))
    tables = sample_tables(sample_frames() | forecast, scores_run="score-1")
    derived, walked = recomputed(tables), set()
    for page in dashboard_pages([tables]).values():
        figures = FIGURE.findall(page)
        assert len(figures) == page.count("<data ") and len(figures) > 8
        for value, source, scale, text in figures:
            assert text == short((float(value) if value else np.nan) * float(scale or 1))
            held = [np.asarray(derived.get(source, []), float)]
            if ": " not in source or source not in derived:
                frame = tables.frames.get(source.partition(": ")[0], pd.DataFrame())
                held.append(frame.select_dtypes("number").to_numpy(float).ravel())
            same = np.isclose(np.concatenate(held), float(value or "nan"), rtol=1e-12, atol=0)
            assert same.any() or not value, (value, source)
            walked.add(source)
    named = {"roi: net", "roi: forecast", "lift_table", "lift_driver", "uplift_metrics", "kpi"}
    assert set(derived) | named <= walked


def test_segments_hold_the_printed_digits_of_the_lift_table():
    tables = sample_tables()
    (facts,) = facts_of(dashboard_pages([tables])["debug.html"])["campaigns"]
    cut = facts["cuts"]["segment:region"]
    rows = tables.page.rows("mail", "segment:region").set_index("bucket")
    for i, bucket in enumerate(cut["buckets"]):
        for name, column in (("effect", "uplift"), ("lower", "uplift_lower"), ("upper", "uplift_upper")):
            assert short(cut["levels"][0][name][i]) == short(float(rows.loc[bucket, column]) * 100)
        assert cut["levels"][0]["treated"][i] + cut["levels"][0]["control"][i] == rows.loc[bucket, "n"]
    assert "n" not in cut["levels"][0]
    frames = sample_frames()
    frames["lift_table"]["n"] += 1  # one more of neither arm
    (facts,) = facts_of(dashboard_pages([sample_tables(frames)])["debug.html"])["campaigns"]
    assert facts["cuts"]["segment:region"]["levels"][0]["n"] == [int(n) + 1 for n in rows.loc[cut["buckets"], "n"]]


@needs_node
def test_the_script_prints_figures_as_python_does():
    rng = np.random.default_rng(0)
    values = [float(short(v).replace(",", "")) for v in 10 ** rng.uniform(-5, 7, 400) * rng.choice([-1, 1], 400)]
    script = package_text("uplift_spark.dashboards", "dashboard.js")
    body = script[script.index("  function short(") : script.index("  function element(")]
    code = body + "console.log(JSON.stringify(JSON.parse(require('fs').readFileSync(0)).map(short)))"
    done = subprocess.run([str(NODE), "-e", code], input=json.dumps(values), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [short(value) for value in values]


@pytest.mark.parametrize("name", ["".join(NAMES), NAMES[1]])
def test_names_are_shown_as_text_whatever_they_hold(name):
    frames = sample_frames()
    lift = frames["lift_table"].copy()
    mine = lift["cut"] == "segment:region"
    lift.loc[mine, "bucket"] = [NAMES[i % 5] for i in range(mine.sum())]
    renamed = {key: rows.replace({"mail": name}) for key, rows in {**frames, "lift_table": lift}.items()}
    renamed["alerts"] = renamed["alerts"].assign(rule=name, summary=name)
    rows = renamed["lift_driver"].assign(feature=name, condition=f"{name} above 1", bucket=name)
    sentences = [driver_sentence(row, 100.0) for row in rows.to_dict("records")]
    renamed["lift_driver"] = rows.assign(sentence=sentences)
    policy = PolicyFacts({"visit": 7.0}, {name: 0.5})
    for page in dashboard_pages([sample_tables(renamed, campaign=name, control=name[:8], policy=policy)]).values():
        assert page.count("<script") == 2 and page.count("</script>") == 2
        assert "alert(1)</script>" not in page and "49" not in re.findall(r"<h1>(.*?)</h1>", page)[0]
        assert not re.search(r'(src|href)="(?!(#content|data:,|executive\.html|oncall\.html|debug\.html)")', page)
        assert not re.search(r"https?://(?!www\.w3\.org)|@import|url\(", page)


def test_tables_that_are_not_there_are_said_in_a_sentence():
    pages = dashboard_pages(
        [
            sample_tables(
                {},
                decisions=None,
                whatif=None,
                why_not="What-if is left out: a reason.",
                widths={},
                histogram={},
                versions=(),
            )
        ]
    )
    words = {
        "executive.html": [
            "Nothing was evaluated yet",
            "There is no plan with a budget",
            "What-if is left out: a reason.",
        ],
        "oncall.html": ["No window was monitored yet", "Alerts were never evaluated here"],
        "debug.html": ["No retrain was considered yet", "No version was tried", "Versions were not read"],
    }
    for file, sentences in words.items():
        assert not [one for one in sentences if one not in pages[file]], file


def test_empty_tables_and_missing_figures_make_pages():
    frames = {name: rows[:0] for name, rows in sample_frames().items()}
    unknown = sample_frames()
    for name in ("lift_table", "uplift_curve", "uplift_metrics", "lift_driver", "policy_curve", "kpi"):
        numbers = [c for c in unknown[name].select_dtypes("float") if c not in ("fraction", "budget", "n")]
        unknown[name] = unknown[name].assign(**dict.fromkeys(numbers, np.nan))
    one_arm = sample_frames(n=1)
    for tables in (frames, unknown, one_arm):
        for page in dashboard_pages([sample_tables(tables)]).values():
            assert ">nan<" not in page.lower() and "NaN" not in json.dumps(facts_of(page))


def test_a_campaign_without_signal_says_so_on_every_page():
    pages = dashboard_pages([sample_tables(sample_frames((0.0, 0.0)) | {"policy_curve": pd.DataFrame()})])
    assert all("There is no signal" in page for page in pages.values())
    assert not any("There is no signal" in page for page in dashboard_pages([sample_tables()]).values())


def test_several_campaigns_have_a_choice_and_an_overview():
    page = dashboard_pages([sample_tables(campaign=f"c{i}") for i in range(3)])["executive.html"]
    assert page.count("<article") == 3 and page.count('data-panel="1" hidden') == 1
    assert "All campaigns" in page and page.count('<option value="2">c2</option>') == 1


def big_campaign(number: int, segments: int, levels: int):
    rng = np.random.default_rng(number)
    names = [f"level {k}" for k in range(levels)]
    frames = sample_frames()
    lift = frames["lift_table"][frames["lift_table"]["outcome"] == "visit"]
    row = lift[lift["cut"] == "segment:region"].iloc[0].to_dict()
    parts = [lift.assign(treatment=name) for name in names]
    for name in names:
        n = rng.integers(50, 5000, segments)
        effect = rng.normal(0.02, 0.03, segments)
        half = rng.uniform(0.01, 0.1, segments)
        part = {
            "bucket": [f"region {i} of the north x tablet" for i in range(segments)], "n": n, "n_treated": n // 2,
            "n_control": n - n // 2, "uplift": effect, "uplift_lower": effect - half, "uplift_upper": effect + half,
            "predicted_uplift": rng.normal(0.02, 0.01, segments), "low_sample": n < 200,
            "different_p": rng.random(segments),
        }  # fmt: skip
        parts.append(
            pd.DataFrame({**row, **part, "treatment": name, "cut": "segment:region x device"}, index=range(segments))
        )
    frames["lift_table"] = pd.concat(parts, ignore_index=True)
    for name in ("uplift_curve", "uplift_metrics"):
        frames[name] = pd.concat([frames[name].assign(treatment=level) for level in names], ignore_index=True)
    frames["lift_driver"] = pd.concat([sample_drivers(level=level) for level in names], ignore_index=True)
    units = sample_units(4000, number)
    benefit = rng.normal(0.02, 0.04, (4000, levels))
    units = type(units)(benefit, benefit - 0.02, units.arm, units.outcome, units.weight)
    return sample_tables(frames, campaign=f"campaign {number}", whatif=whatif_sums(units, names, 256))


def test_drivers_are_said_in_the_words_of_their_rows():
    pages = {name: html.unescape(page) for name, page in dashboard_pages([sample_tables()]).items()}
    rows = sample_drivers().to_dict("records")
    sentences = [driver_sentence(row, 100.0) for row in rows]  # recomputed from the figures
    assert [row["proven"] for row in rows] == [True, False, True] and [row["stable"] for row in rows][1] is False
    assert sentences[0] in pages["executive.html"] and sentences[1] not in pages["executive.html"]
    debug = pages["debug.html"]
    assert sentences[0] in debug and "By SHAP, recency moves the model's predictions most" in debug
    assert "Then: spend." in debug and "top features by mean size of SHAP" in debug
    table = debug[debug.index("<h3>What drives lift</h3>") :].partition("</table>")[0]
    assert table.count("<tr") == 4 and "region north" in table and "not proven" in table and "not stable" in table
    assert "What drives lift" not in pages["oncall.html"]


def test_no_driver_is_said_where_none_is_proven_or_measured():
    nothing = dashboard_pages([sample_tables(sample_frames() | {"lift_driver": sample_drivers(0.001)})])
    words = "No driver of lift is proven, of the 2 that the model expects most of."
    assert words in nothing["executive.html"] and words in nothing["debug.html"]
    assert "does not bear recency out: promise nothing" in nothing["debug.html"]
    without = {name: rows for name, rows in sample_frames().items() if name != "lift_driver"}
    pages = dashboard_pages([sample_tables(without)])
    assert "No driver was measured" in pages["debug.html"] and "What drives lift" not in pages["executive.html"]
    assert "No SHAP values are known" in pages["debug.html"]


@pytest.mark.slow
def test_twenty_large_campaigns_fit_into_three_megabytes(tmp_path):
    pages = dashboard_pages([big_campaign(number, 1000, 5) for number in range(20)])
    assert set(pages) == {file for file, _ in PAGES.values()}
    assert max(len(page.encode()) for page in pages.values()) < 3_000_000


def test_code_in_sentences_is_marked_and_escaped():
    assert coded("`x` & <b>`y`") == "<code>x</code> &amp; &lt;b&gt;<code>y</code>"
    assert coded("run `uplift lift`") == "run <code>uplift lift</code>"


def test_windows_that_were_monitored_again_count_once():
    frames = monitored()
    again = frames["kpi"].assign(value=9.0, as_of=frames["kpi"]["as_of"] + pd.Timedelta(hours=1))
    tables = sample_tables({"kpi": pd.concat([again, frames["kpi"]], ignore_index=True)})
    assert len(tables.kpis) == 8 and (tables.kpis["value"] == 9.0).all()


def test_figures_that_are_null_or_infinite_are_not_known():
    frames = sample_frames()
    changes = [
        {"policy_limits": frames["policy_limits"].assign(most=None, used=None, price=None)},
        {"policy_curve": frames["policy_curve"].assign(budget=np.nan)},
        {"policy_curve": frames["policy_curve"].assign(observed=None, observed_lower=None, observed_upper=None)},
        {"lift_table": frames["lift_table"].assign(uplift=np.inf, low_sample=None)},
        {"retrain": pd.DataFrame([{"window_end": None, "decision": None, "check": "decision", "sentence": None}])},
    ]
    for change in changes:
        for page in dashboard_pages([sample_tables(frames | change)]).values():
            assert ">nan" not in page and ">inf" not in page, change
    unlimited = sample_tables(policy=PolicyFacts({"visit": 7.0}, {"mail": 0.5}, float("inf")))
    (facts,) = facts_of(dashboard_pages([unlimited])["executive.html"])["campaigns"]
    assert facts["whatif"]["settings"]["budget"] is None


def test_whom_the_plan_treats_is_said_without_naming_anybody():
    decisions = pd.DataFrame(
        {"treatment": ["mail", "none", "none"], "n": [2000, 2900, 4], "gain": [901.0, 0.0, 77.125],
         "reason": ["best within the limits", "not worth it within the limits", "rule <young>"], "cost": 0.0}
    )  # fmt: skip
    page = dashboard_pages([sample_tables(decisions=decisions, scores_run="score-1")])["executive.html"]
    part = page[page.index("Whom the plan treats, and why") : page.index("What a budget brings")]
    assert "mail to 2,000 units" in part and "WHERE d.unit_id = &#39;ID&#39;" in part and ">901<" in part
    assert "rule &lt;young&gt;" in part and "77.1" not in part  # sums over four units would tell of each
    assert "its effect times 7, less its cost" in part
    for less in ({"decisions": None}, {"decisions": decisions[:0]}, {"scores_run": ""}):
        part = dashboard_pages([sample_tables(**({"decisions": decisions, "scores_run": "score-1"} | less))])
        assert "Why one unit" not in part["executive.html"]


@pytest.mark.parametrize(("effect", "shows"), [((0.4, 0.0), True), ((0.0, 0.0), False)])
def test_the_choice_of_units_and_levels_is_explained(effect, shows):
    frames = sample_frames(effect)
    twice = {
        name: pd.concat([frames[name], frames[name].assign(treatment="call")], ignore_index=True)
        for name in ("lift_table", "uplift_curve", "uplift_metrics")
    }
    page = dashboard_pages([sample_tables(frames | twice)])["executive.html"]
    assert ("The hold-out shows that mail works better on some" in page) is shows
    assert ("The hold-out does not show that mail works better on those chosen" in page) is not shows
    assert "call goes to nobody: within the limits" in page and "mail goes to nobody" not in page


def test_the_plan_stands_beside_the_decision():
    frames = {key: rows for key, rows in sample_frames().items() if key not in monitored()}
    curve = frames["policy_curve"]
    for gain, words in ((1400.0, "these are whom to treat"), (0.0, "whether it may grow"), (-1400.0, "not to be carr")):
        bounds = {"observed": gain, "observed_lower": gain - 300, "observed_upper": gain + 300}
        page = dashboard_pages([sample_tables(frames | {"policy_curve": curve.assign(**bounds)})])["executive.html"]
        head = page[: page.index("Return on investment")]
        assert "The plan below gives mail to 2,000 units" in head and words in head
    nobody = sample_tables(
        decisions=pd.DataFrame({"treatment": ["none"], "n": [9], "reason": ["x"], "gain": 0.0, "cost": 0.0})
    )
    assert "The plan below" not in dashboard_pages([nobody])["executive.html"]


def test_half_the_budget_is_said_in_words():
    curve = sample_frames()["policy_curve"]
    page = dashboard_pages([sample_tables()])["executive.html"]
    half, whole = (curve.iloc[n] for n in (0, 1))
    assert f"Half of it, 500, brings {short(half['gain'])} by prediction and {short(half['observed'])}" in page
    assert f"all of it {short(whole['gain'])} by prediction" in page and "set the slider Budget" not in page
    less = curve.assign(cost=curve["cost"].clip(upper=400.0))
    page = dashboard_pages([sample_tables(sample_frames() | {"policy_curve": less})])["executive.html"]
    assert "The plan spends 400 of it" in page and "set the slider Budget to 200" in page
    alone = sample_tables(sample_frames() | {"policy_curve": curve[1:2]})
    assert "Half of it" not in dashboard_pages([alone])["executive.html"]


def test_intervals_of_kpis_say_their_level():
    page = dashboard_pages([sample_tables(kpi_level=0.99)])["oncall.html"].partition("<script")[0]
    assert "99 % interval" in page and "95 % interval" not in page
    forecast = {"kpi": "cost_forecast", "unit": "ratio", "value": 1.2, "lower": 1.1, "upper": 1.3, "state": "alert"}
    kpi = sample_frames()["kpi"].iloc[-1:].assign(**forecast, target=1.0, alert=1.0, note="budget 1,000.00")
    page = dashboard_pages([sample_tables({"kpi": kpi}, kpi_level=0.99)])["oncall.html"].partition("<script")[0]
    tile = page[page.index("Cost forecast") :].partition("</article>")[0]
    assert "95 % interval" in tile and "raise costs.budget" in tile and "Note: budget 1,000.00" in tile


def test_a_prediction_outside_the_hold_out_s_interval_is_not_promised():
    plan = sample_frames()["policy_curve"]
    words = "The model predicts less than the hold-out shows"
    for shown, gain in ((True, 100.0), (False, 1400.0)):
        frames = sample_frames() | {"policy_curve": plan.assign(gain=gain)}
        assert (words in dashboard_pages([sample_tables(frames)])["executive.html"]) is shown


def test_what_broke_and_is_over_stays_on_the_page_for_a_week():
    frames = sample_frames()
    page = dashboard_pages([sample_tables(frames)])["oncall.html"]
    part = page[page.index("What broke lately") :]
    assert part.index("drift_score") and "resolved" in part and "pending" not in part
    old = frames["alerts"].assign(at=frames["alerts"]["at"] - pd.Timedelta(days=8))
    assert (
        "No alert fired or ended in the last 7 days"
        in dashboard_pages([sample_tables(frames | {"alerts": old})])["oncall.html"]
    )
