"""What the pages of many large campaigns take: megabytes, milliseconds to the first picture and of a slider.

    python tests/benchmarks/bench_dashboard.py --campaigns 20 --segments 1000 --levels 5 --axe axe.min.js

Chromium opens each page over file://, three times, and says what it asked for and complained of. `--axe` names a copy
of axe-core, whose serious and critical findings are counted in light and dark.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.dashboards.browser import Browser, chromium
from tests.dashboards.test_pages import big_campaign
from uplift_spark.dashboards.pages import dashboard_pages

PICTURE = """new Promise((ready) => { (function look() {
  const shown = performance.getEntriesByName('first-contentful-paint');
  shown.length ? ready(shown[0].startTime) : setTimeout(look, 20); })(); })"""
SLIDER = """new Promise((ready) => {
  const slider = document.querySelector('.whatif input[type=range]'), panel = document.querySelector('article');
  const begun = performance.now();
  new MutationObserver((_, one) => { one.disconnect(); requestAnimationFrame(() => ready(performance.now() - begun)); })
    .observe(panel, {attributes: true, attributeFilter: ['data-plan']});
  slider.value = %d;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
})"""
FINDINGS = """axe.run().then((all) => JSON.stringify(all.violations
  .filter((one) => ['serious', 'critical'].includes(one.impact)).map((one) => [one.id, one.nodes.length])))"""


def main() -> None:
    """Print a line a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, value in (("campaigns", 20), ("segments", 1000), ("levels", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--axe", type=Path)
    chosen = parser.parse_known_args()[0]
    begun = time.monotonic()
    tables = [big_campaign(number, chosen.segments, chosen.levels) for number in range(chosen.campaigns)]
    made = time.monotonic()
    pages = dashboard_pages(tables)
    print(f"tables {made - begun:.1f} s, pages {time.monotonic() - made:.1f} s")
    with tempfile.TemporaryDirectory(prefix="bench-dashboard-") as folder:
        for name, text in pages.items():
            (Path(folder) / name).write_text(text)
        with chromium(Path(folder) / "profile") as browser:
            for name, text in pages.items():
                print(f"{name}: {len(text.encode()) / 1e6:.2f} MB, {', '.join(figures(browser, Path(folder) / name))}")
                if chosen.axe is not None:
                    print("  " + "; ".join(findings(browser, chosen.axe.read_text())))


def figures(browser: Browser, page: Path) -> Iterator[str]:
    """First picture, script ready, sliders, requests and complaints of a page."""
    shown, ready = [], []
    for _ in range(3):
        browser.open(page)
        shown.append(float(browser.run(PICTURE)))
        ready.append(float(browser.run("document.body.dataset.ready")))
    yield f"first picture {median(shown):.0f} ms ({max(shown):.0f} at most), script {median(ready):.0f} ms"
    if browser.run("!!document.querySelector('.whatif input[type=range]')"):
        moved = [float(browser.run(SLIDER % share)) for share in (10, 35, 60, 80, 25, 90, 5)]
        yield f"slider {median(moved):.0f} ms ({max(moved):.0f} at most)"
    yield f"{len(browser.requests)} requests, {len(browser.errors)} complaints"


def findings(browser: Browser, axe: str) -> Iterator[str]:
    """Serious findings of axe in each of the colours."""
    for scheme in ("light", "dark"):
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        browser.run(axe + ";0")
        wrong = json.loads(browser.run(FINDINGS))
        yield f"axe, {scheme}: {len(wrong)} serious" + (f" {wrong}" if wrong else "")


if __name__ == "__main__":
    main()
