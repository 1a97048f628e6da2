"""The pages in Chromium: no request, no error, and sliders that plan what the script plans elsewhere."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.dashboards.browser import chromium
from tests.dashboards.samples import needs_chromium, needs_node, planned, sample_tables
from tests.dashboards.test_pages import big_campaign
from uplift_spark.dashboards.pages import PAGES, dashboard_pages
from uplift_spark.spark_versions import sql_text
from uplift_spark.sql_gate import checked_query

REFUSED = """new Promise((ready) => {
  const number = document.querySelector('.whatif input[type=number]'), panel = document.querySelector('article');
  const before = panel.dataset.plan;
  number.value = '-5';
  number.dispatchEvent(new Event('input'));
  setTimeout(() => ready([panel.dataset.plan === before, number.getAttribute('aria-invalid'),
    document.querySelector('.refusal').textContent]), 100);
})"""
MOVED = """new Promise((ready) => {
  const number = document.querySelector('.whatif input[type=number]'), panel = document.querySelector('article');
  const before = panel.dataset.plan;
  number.value = '121';
  number.dispatchEvent(new Event('input'));
  (function wait() { panel.dataset.plan === before ? setTimeout(wait, 10) : ready(panel.dataset.plan); })();
})"""


@needs_chromium
@needs_node
def test_pages_ask_for_nothing_and_plan_by_their_sliders(tmp_path):
    tables = sample_tables()
    with chromium(tmp_path / "profile") as browser:
        for file, text in dashboard_pages([tables]).items():
            (tmp_path / file).write_text(text)
            browser.open(tmp_path / file)
            if file == "executive.html":
                same, invalid, words = browser.run(REFUSED)
                assert same and invalid == "true" and "Write a number of 0 or more" in words and "1,000" in words
                shown = json.loads(browser.run(MOVED))
                settings = {"budget": 121, "value": 7.0, "cost": [0.5], "levels": [True], "safe": False, "net": True}
                (plan,) = planned(tables.whatif, [settings])
                assert shown.pop("units") == pytest.approx(plan.pop("units"))
                assert shown == pytest.approx(plan) and shown["spend"] == pytest.approx(121)
                assert "budget: 121" in browser.run("document.querySelector('.conf').value")
            if file != "oncall.html":
                cut = "const cut = document.querySelector('.cut'); cut.value = 'segment:region';"
                count = "document.querySelectorAll('.segment-table tr').length"
                assert browser.run(f"{cut} cut.dispatchEvent(new Event('change')); {count}") == 3  # head, north, south
            assert browser.requests == [] and browser.errors == []


ASKED = """(() => {
  const unit = document.querySelector('.unit');
  unit.value = %s;
  unit.dispatchEvent(new Event('input'));
  return document.querySelector('.query').value;
})()"""


@needs_chromium
@pytest.mark.parametrize("unit", ["u7", 'o\'b\\r "x" $HOME `id` <b> \u202e\u0645\u0631'])
def test_the_command_that_explains_a_unit_holds_its_id_as_text(tmp_path, unit):
    page = tmp_path / "executive.html"
    page.write_text(dashboard_pages([sample_tables(scores_run="score-1", plan_run="policy-1")])["executive.html"])
    with chromium(tmp_path / "profile") as browser:
        browser.open(page)
        target = browser.run("document.querySelector('header a').getAttribute('href')")
        assert browser.run(f"document.querySelector('{target}').textContent") == "Why one unit gets what it gets"
        command = browser.run(ASKED % json.dumps(unit))
        assert browser.errors == []
    shell = f'uplift() {{ printf %s "$4"; }}; {command}'
    query = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert f"d.unit_id = {sql_text(unit)} AND d.run_id = 'policy-1' AND s.run_id = 'score-1'" in query
    assert checked_query(query) and query.count(sql_text(unit)) == 1


@pytest.mark.slow
@needs_chromium
def test_hostile_names_run_nothing(tmp_path):
    name = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    frames = {key: rows.replace({"mail": name, "north": name}) for key, rows in sample_tables().frames.items()}
    with chromium(tmp_path / "profile") as browser:
        for file, text in dashboard_pages([sample_tables(frames, campaign=name)]).items():
            (tmp_path / file).write_text(text)
            browser.open(tmp_path / file)
            assert browser.run("document.title").endswith(name)
            assert browser.run("document.images.length") == 0 and browser.run("document.scripts.length") == 2
            assert browser.requests == [] and browser.errors == []
    assert len(PAGES) == 3


@pytest.mark.slow
@needs_chromium
@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_needs_no_sideways_scrolling(tmp_path, width):
    with chromium(tmp_path / "profile") as browser:
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
        for file, text in dashboard_pages([sample_tables()]).items():
            (tmp_path / file).write_text(text)
            browser.open(tmp_path / file)
            assert browser.run("document.documentElement.scrollWidth") <= width, file


@pytest.mark.slow
@needs_chromium
def test_ten_thousand_segments_are_drawn_in_part_and_found(tmp_path):
    page = tmp_path / "debug.html"
    page.write_text(dashboard_pages([big_campaign(0, 10_000, 5)])["debug.html"])
    with chromium(tmp_path / "profile") as browser:
        browser.open(page)
        cut = "const cut = document.querySelector('.cut'); cut.value = 'segment:region x device';"
        browser.run(f"{cut} cut.dispatchEvent(new Event('change')); 0")
        drawn = browser.run("document.querySelectorAll('.segment-table tr').length")
        assert 10 < drawn < 1000
        find = "const find = document.querySelector('.find'); find.value = 'region 9999 of';"
        browser.run(f"{find} find.dispatchEvent(new Event('input')); 0")
        assert browser.run("document.querySelectorAll('.segment-table tr').length") == 2  # head, and that one
        assert "region 9999 of the north x tablet" in browser.run(
            "document.querySelector('.segment-table').textContent"
        )
        assert browser.requests == [] and browser.errors == []
