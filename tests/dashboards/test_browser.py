"""The pages in Chromium: no request, no error, and sliders that plan what the script plans elsewhere."""

from __future__ import annotations

import html
import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.dashboards.samples import CHROMIUM, needs_chromium, needs_node, planned, sample_tables
from uplift_spark.dashboards.pages import PAGES, dashboard_pages

MOVE = """<script>(function wait() {
  if (!document.body.dataset.ready) return setTimeout(wait, 20);
  const number = document.querySelector('.whatif input[type=number]');
  number.value = '121'; number.dispatchEvent(new Event('input'));
  requestAnimationFrame(() => requestAnimationFrame(() => { document.body.dataset.moved = 'yes'; }));
})()</script></body>"""


def opened(page: Path, profile: Path) -> tuple[str, str, list[str]]:
    """The page's DOM once its script has run, what the console says, and what the page asked the network for."""
    log = profile / "net.json"
    command = [
        *(str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
        *("--no-first-run", f"--user-data-dir={profile / 'profile'}", "--virtual-time-budget=3000"),
        *("--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    # The browser's own calls, of components and time, are no page's: those have another initiator.
    asked = re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]+)"', log.read_text()) if log.exists() else []
    own = ("google.com", "googleapis.com", "gstatic.com", "gvt1.com")
    return done.stdout, console, [url for url in asked if not any(host in url for host in own)]


@needs_chromium
@needs_node
def test_pages_ask_for_nothing_and_plan_by_their_sliders(tmp_path):
    tables = sample_tables()
    for file, text in dashboard_pages([tables]).items():
        page = tmp_path / file
        page.write_text(text.replace("</body>", MOVE) if file == "executive.html" else text)
        dom, console, asked = opened(page, tmp_path)
        assert "data-ready=" in dom and console == "" and asked == [], (file, console, asked)
        if file != "executive.html":
            continue
        shown = json.loads(html.unescape(re.search(r'data-plan="([^"]*)"', dom).group(1)))
        settings = {"budget": 121, "value": 7.0, "cost": [0.5], "levels": [True], "safe": False, "net": True}
        (plan,) = planned({k: v for k, v in tables.whatif.items() if k != "levels"}, [settings])
        assert shown.pop("units") == pytest.approx(plan.pop("units"))
        assert shown == pytest.approx(plan) and shown["spend"] == pytest.approx(121)
        assert "budget: 121" in dom and dom.count("<circle") > 3


@pytest.mark.slow
@needs_chromium
def test_hostile_names_run_nothing(tmp_path):
    name = "</script><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    tables = sample_tables(campaign=name)
    frames = {key: rows.replace({"mail": name, "north": name}) for key, rows in tables.frames.items()}
    for file, text in dashboard_pages([sample_tables(frames, campaign=name)]).items():
        (tmp_path / file).write_text(text)
        dom, console, asked = opened(tmp_path / file, tmp_path)
        assert "data-ready=" in dom and "<title>owned" not in dom and "<img" not in dom
        assert console == "" and asked == []
    assert len(PAGES) == 3
