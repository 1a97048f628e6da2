"""Tables of a campaign for the pages' tests, and the programs that run their script."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from tests.evaluation.test_lift_tables import MONEY, evaluation
from uplift_spark.dashboards.tables import CampaignTables, PolicyFacts
from uplift_spark.dashboards.whatif import WhatIfUnits, whatif_script, whatif_sums
from uplift_spark.evaluation.drivers import AGREE, DRIVER_COLUMNS, driver_sentence
from uplift_spark.evaluation.lift_tables import lift_table
from uplift_spark.evaluation.metrics import curve_table, metric_table

NOW = datetime(2025, 3, 10, 1, tzinfo=UTC)
NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed, which runs the pages' script here")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: `apt-get install chromium`")


def sample_units(n: int = 6000, seed: int = 3, weighted: bool = False) -> WhatIfUnits:
    """Units with two levels whose effects differ in kind; a third of them are the hold-out."""
    rng = np.random.default_rng(seed)
    benefit = np.column_stack([rng.normal(0.02, 0.05, n), rng.normal(0.03, 0.06, n)])
    arm = np.where(rng.random(n) < 1 / 3, rng.integers(0, 3, n), -1)
    chance = 0.2 + np.where(arm > 0, benefit[np.arange(n), np.maximum(arm, 1) - 1], 0.0)
    outcome = np.where(arm >= 0, (rng.random(n) < chance).astype(float), 0.0)
    weight = np.where(rng.random(n) < 0.5, 3.0, 2.0) if weighted else np.full(n, 3.0)
    return WhatIfUnits(benefit, benefit - rng.uniform(0.01, 0.03, benefit.shape), arm, outcome, weight)


def planned(sums: dict, settings: list[dict], function: str = "planOf") -> list[dict]:
    """What the page's script plans at each of the settings, by node."""
    call = f"{function}(sums, one{', 40' if function == 'frontierOf' else ''})"
    code = (
        whatif_script() + "\nconst [sums, every] = JSON.parse(require('fs').readFileSync(0));"
        f"filledSums(sums);console.log(JSON.stringify(every.map((one) => {call})));"
    )
    done = subprocess.run(
        [str(NODE), "-e", code], input=json.dumps([sums, settings]), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def sample_frames(effect=(0.4, 0.0), n: int = 400) -> dict[str, pd.DataFrame]:
    """Gold tables of a lift run, a plan, and two monitored windows."""
    source = evaluation(effect, n=n)
    lift = lift_table(source, MONEY).assign(model_version="3")
    plan = pd.DataFrame(
        {"budget": [500.0, 1000.0, 2000.0], "treated": [1000.0, 2000.0, 4000.0], "cost": [500.0, 1000.0, 2000.0]}
    ).assign(gain=[900.1234, 1500.4, 1999.0], observed=[880.0, 1400.0, 1700.0])
    plan = plan.assign(observed_lower=plan["observed"] - 300.55, observed_upper=plan["observed"] + 300.55)
    limits = pd.DataFrame({"name": ["spend"], "most": [1000.0], "least": [np.nan], "used": [1000.0], "price": [0.31]})
    return {
        "lift_table": lift, "uplift_curve": curve_table(source), "uplift_metrics": metric_table(source),
        "lift_driver": sample_drivers(), "policy_curve": plan, "policy_limits": limits, **monitored(),
    }  # fmt: skip


def sample_drivers(gain: float = 0.0312, level: str = "mail") -> pd.DataFrame:
    """gold.lift_driver: a driver that is proven where `gain` is large, another that is not, and one in a segment."""
    rows = [
        ("all", "all", 1, "recency", "recency of at most 30", 0.0171, gain, 0.96),
        ("all", "all", 2, "spend", "spend above 12.5", 0.0083, 0.0021, 0.72),
        ("segment:region", "north", 1, "recency", "recency of at most 30", np.nan, gain + 0.0013, 0.96),
    ]
    names = ["cut", "bucket", "rank", "feature", "condition", "mean_shap", "gain", "agreement"]
    table = pd.DataFrame(rows, columns=names).assign(
        outcome="visit", treatment=level, n=4321, n_meets=1234, effect_misses=0.0111, low_sample=False,
        gain_lower=lambda frame: frame["gain"] - 0.0123, gain_upper=lambda frame: frame["gain"] + 0.0123,
    )  # fmt: skip
    table = table.assign(
        effect_meets=table["effect_misses"] + table["gain"], stable=table["agreement"] >= AGREE,
        proven=table["gain_lower"] > 0, adjusted_p=np.where(table["gain_lower"] > 0, 0.00017, 0.83),
    )  # fmt: skip
    return table.assign(sentence=[driver_sentence(row, 100.0) for row in table.to_dict("records")])[[*DRIVER_COLUMNS]]


def monitored() -> dict[str, pd.DataFrame]:
    """gold.kpi, gold.drift, gold.findings and gold.alerts of two windows."""
    days = pd.to_datetime(["2025-03-08", "2025-03-09"], utc=True)
    figures = [
        ("prediction_latency", "ms", 120.5, 110.0, 131.0, 5000.0, 200.0, 250.0, "ok"),
        ("error_rate", "share", 0.0301, 0.025, 0.036, 5000.0, 0.01, 0.02, "alert"),
        ("delivery_rate", "share", 0.995, 0.99, 0.999, 4000.0, 0.99, 0.99, "ok"),
        ("feature_freshness", "minutes", 12.0, np.nan, np.nan, 1.0, 5.0, 30.0, "missed"),
    ]
    names = ["kpi", "unit", "value", "lower", "upper", "n", "target", "alert", "state"]
    parts = [
        pd.DataFrame(figures, columns=names).assign(
            window_start=day, window_end=day + pd.Timedelta(days=1), as_of=day + pd.Timedelta(days=1), cut="all",
            n_needed=np.nan, severity="page", note="", run_id=f"monitor-{day:%d}",
        )
        for day in days
    ]  # fmt: skip
    kpi = pd.concat(parts, ignore_index=True)
    window = {key: kpi[key].iloc[-1] for key in ("window_start", "window_end", "as_of")}
    drift = pd.DataFrame({"name": ["age", "region"], "state": ["steady", "drift"], "distance": [0.01, 0.0812]})
    drift = drift.assign(n=5000, distance_most=0.1, adjusted_p=[0.7, 0.001], stability=0.02, **window)
    alerts = pd.DataFrame(
        {
            "alert": ["a", "a", "b"], "sequence": [1, 2, 1], "rule": ["error_rate", "error_rate", "drift_score"],
            "event": ["pending", "fired", "resolved"], "severity": ["page", "page", "ticket"],
            "summary": ["3 % fail"] * 3, "by": "", "at": pd.to_datetime(["2025-03-09"] * 3, utc=True),
        }
    )  # fmt: skip
    findings = pd.DataFrame(columns=["severity", "finding", "about", "sentence", "action", *window])
    return {"kpi": kpi, "drift": drift, "findings": findings, "alerts": alerts}


def sample_tables(frames: dict[str, pd.DataFrame] | None = None, **changes) -> CampaignTables:
    """One campaign: level `mail`, outcome `visit`."""
    units = sample_units(2000)
    one = WhatIfUnits(units.benefit[:, :1], units.lower[:, :1], np.minimum(units.arm, 1), units.outcome, units.weight)
    parts = {
        "campaign": "spring", "control": "none", "outcome": "visit", "direction": "increase",
        "policy": PolicyFacts(MONEY.value, MONEY.cost, 1000.0),
        "frames": sample_frames() if frames is None else frames,
        "decisions": pd.DataFrame(
            {"treatment": ["mail", "none", "none"], "n": [2000, 2900, 100], "gain": 0.0, "cost": 0.0,
             "reason": ["best within the limits", "not worth it within the limits", "kept out at random"]}
        ),
        "whatif": whatif_sums(one, ["mail"]), "widths": {"mail": (0.05, 5000)},
        "histogram": {"mail": ([0.0, 0.1, 0.2], [3, 5])}, "versions": (("gold.lift_table", 40, 2),), "now": NOW,
    }  # fmt: skip
    return CampaignTables(**(parts | changes))
