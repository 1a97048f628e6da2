"""What the features job says when events are missing: still under way, lost for days, or never sent (R1.2, R7.3)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame

from uplift_spark.config import Config, Labels
from uplift_spark.flow.labels import event_counts, event_days
from uplift_spark.operations.datasets import Sends, event_details
from uplift_spark.operations.runs import Say
from uplift_spark.stats.completeness import completeness, known_shares, missing_days, unreached_arms

History = tuple[DataFrame, DataFrame, tuple[str, ...], Labels, datetime]

_TYPES = {**dict.fromkeys(("since", "age", "day", "delay", "n"), "int64"), "first": "bool", "mature": "bool"}


def late_and_missing(config: Config, history: History, sends: Sends, say: Say) -> dict[str, Any]:
    """What became of the outcomes' events and of the deliveries, and what is missing among them; see `event_details`
    and `missing_events`."""
    found = event_details(event_counts(*history), sends)
    return found | missing_events(config, event_days(*history), sends, history[-1], say)


def missing_events(config: Config, days: DataFrame, sends: Sends, as_of: datetime, say: Say) -> dict[str, Any]:
    """{"outcome_completeness": {outcome: share of the mature labels' events that are known}, "warnings": sentences}.

    days    `flow.labels.event_days`
    sends   `label_counts`; the control, which is sent nothing, is left out
    Completeness is null without any event. Every warning is also said.
    """
    rows = days.toPandas()
    units = rows[rows["outcome"].isna()]
    shares: dict[str, float | None] = {}
    warnings = []
    for name in config.outcomes:
        events = rows[rows["outcome"] == name].astype(_TYPES)
        span = int(rows["since"].max()) + 1
        known = known_shares(events["day"].to_numpy(), events["delay"].to_numpy(), events["n"].to_numpy(), span)
        mature = events[events["mature"]]
        share = completeness(mature["day"].to_numpy(), mature["n"].to_numpy(), known)
        shares[name] = None if np.isnan(share) else round(share, 4)
        if share < config.alarms.complete:
            warnings.append(
                f"{name}: {share:.1%} of the mature labels' events are known, less than "
                f"{config.alarms.complete:.1%}: raise labels.wait_days, or labels count too little"
            )
        warnings += _outage(name, config, units, events, known, as_of)
    treated = {arm: counts for arm, counts in sends.items() if arm != config.roles.control}
    for arm in unreached_arms(treated, config.alarms.alpha, config.alarms.delivery_gap):
        reached, n = treated[arm.arm]
        warnings.append(
            f"arm {arm.arm!r}: {reached:,} of {n:,} units were reached ({arm.rate:.1%}), against {arm.others:.1%} of "
            f"the other treated arms (p = {arm.p_value:.2g}): its deliveries fail; mend them before arms are compared"
        )
    for warning in warnings:
        say(f"warning: {warning}")
    return {"outcome_completeness": shares, "warnings": warnings}


def _outage(
    name: str, config: Config, units: pd.DataFrame, events: pd.DataFrame, known: np.ndarray, as_of: datetime
) -> list[str]:
    """One sentence if whole days lack their events. Ages count that the window covers whole."""
    ages = int(config.labels.days(name))
    firsts = events[events["first"] & (events["age"] < ages)]
    table = np.zeros((len(known), ages))
    np.add.at(table, (firsts["since"].to_numpy(), firsts["age"].to_numpy()), firsts["n"].to_numpy())
    assigned = np.bincount(units["since"].to_numpy(), units["n"].to_numpy(), len(known))
    found = missing_days(assigned, table, known, config.alarms.alpha)
    if not found:
        return []
    first, last = (as_of - timedelta(days=one.day + 1) for one in (found[-1], found[0]))
    seen, expected = sum(one.known for one in found), sum(one.expected for one in found)
    return [
        f"{name}: {seen:,} first events on {len(found)} days from about {first:%Y-%m-%d} to {last:%Y-%m-%d} where "
        f"{expected:,.0f} were expected from units of the same age: its feed was out; load what is missing, or set an "
        "earlier labels.as_of"
    ]
