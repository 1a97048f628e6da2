"""Views over the gold tables, for any tool that speaks SQL (`GOLD_VIEWS`): of each campaign what is newest.

Gold tables keep every run. A view leaves those rows that count now, each with its campaign's name, so that no reader
needs a run's id. `uplift sql` knows the views wherever the tables are; `create_views` writes them for a catalog.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT

NOT_OPEN = ("resolved", "closed", "cancelled", "pending")
"""Last events of alerts that are over, or have not fired yet."""
LEAST_IN_GROUP = 5
"""Units below which views and pages show no sums: both are sent around, so that nobody is a row in them."""


@dataclass(frozen=True)
class GoldView:
    """A view: its name, what its rows are in one sentence, and its query, which names tables alone, no other view."""

    name: str
    meaning: str
    query: str


def _newest(table: str, keys: str, order: str) -> str:
    """(keys, run_id) of the run that counts: its rows are all equal in `order`, and the largest comes first."""
    runs = f"SELECT DISTINCT {keys}, {RUN_ID}, {order} FROM gold.{table} WHERE {CAMPAIGN} IS NOT NULL"
    first = f"ORDER BY {', '.join(f'{name} DESC' for name in order.split(', '))}, {RUN_ID}"
    nth = f"row_number() OVER (PARTITION BY {keys} {first}) AS nth"
    return f"(SELECT {keys}, {RUN_ID} FROM (SELECT {keys}, {RUN_ID}, {nth} FROM ({runs})) WHERE nth = 1)"


def _rows(table: str, runs: str, columns: str = "t.*", keys: str = CAMPAIGN) -> str:
    """Rows of a table of the `runs`, joined by their `keys` and the run's id."""
    same = " AND ".join(f"t.{key} = n.{key}" for key in [*filter(None, keys.split(", ")), RUN_ID])
    return f"SELECT {columns} FROM gold.{table} t JOIN {runs} n ON {same}"


def _sum_of_many(column: str) -> str:
    """The sum of a column over the rows of units; null where they are few, as it would tell of each."""
    return f"CASE WHEN count(*) >= {LEAST_IN_GROUP} THEN sum(t.{column}) END AS {column}"


_LIFT = _newest("lift_table", CAMPAIGN, "ingested_at")
_PLAN = _newest("policy_decisions", CAMPAIGN, "ingested_at")
_COSTS = _newest("roi", CAMPAIGN, "as_of, ingested_at")  # a run of `uplift costs` is complete once it is in gold.roi
_WINDOW = "window_start, window_end"
_WINDOWS = (
    f"(SELECT {CAMPAIGN}, {RUN_ID}, window_end = max(window_end) OVER (PARTITION BY {CAMPAIGN}) AS newest "
    f"FROM {_newest('kpi', f'{CAMPAIGN}, {_WINDOW}', 'as_of, ingested_at')})"
)
_OVER = ", ".join(f"'{event}'" for event in NOT_OPEN)

GOLD_VIEWS = {
    view.name: view
    for view in (
        GoldView(
            "v_lift",
            "Effects by level, decile and segment, on the hold-out, of each campaign's newest lift run.",
            _rows("lift_table", _LIFT),
        ),
        GoldView(
            "v_lift_curve",
            "What treating a share of the units gains, best first, of each campaign's newest lift run.",
            _rows("uplift_curve", _LIFT, f"n.{CAMPAIGN}, t.*", ""),
        ),
        GoldView(
            "v_lift_metrics",
            "How well the model ranks and how large effects are on average, of each campaign's newest lift run.",
            _rows("uplift_metrics", _LIFT, f"n.{CAMPAIGN}, t.*", ""),
        ),
        GoldView(
            "v_driver",
            "What drives lift, in words with intervals, over all units and in segments, of each campaign's newest lift "
            "run.",
            _rows("lift_driver", _LIFT),
        ),
        GoldView(
            "v_plan",
            "Units, predicted gain and cost by treatment and reason, of the plan that is in force; gain and cost of "
            f"fewer than {LEAST_IN_GROUP} units are null.",
            f"SELECT t.{CAMPAIGN}, t.{RUN_ID}, t.model_version, t.{TREATMENT}, t.reason, count(*) AS units, "
            f"{_sum_of_many('gain')}, {_sum_of_many('cost')} FROM gold.policy_decisions t JOIN {_PLAN} n "
            f"ON t.{CAMPAIGN} = n.{CAMPAIGN} AND t.{RUN_ID} = n.{RUN_ID} "
            f"GROUP BY t.{CAMPAIGN}, t.{RUN_ID}, t.model_version, t.{TREATMENT}, t.reason",
        ),
        GoldView(
            "v_plan_curve",
            "What other budgets would bring, predicted and by the hold-out, as of the plan that is in force.",
            _rows("policy_curve", _PLAN),
        ),
        GoldView(
            "v_kpi",
            "KPIs of every monitored window as they were known last; `newest` marks the newest window.",
            _rows("kpi", _WINDOWS, "t.*, n.newest"),
        ),
        GoldView(
            "v_drift",
            "Distance of every column from the training set, window by window; `newest` as in v_kpi.",
            _rows("drift", _WINDOWS, "t.*, n.newest"),
        ),
        GoldView(
            "v_findings",
            "What the detectors found in every window, and what to do; `newest` as in v_kpi.",
            _rows("findings", _WINDOWS, "t.*, n.newest"),
        ),
        GoldView(
            "v_alerts",
            "The last event of every alert; `open` marks those that are neither over nor closed.",
            f"SELECT t.*, t.event NOT IN ({_OVER}) AS open FROM gold.alerts t "
            "JOIN (SELECT alert, max(sequence) AS newest FROM gold.alerts GROUP BY alert) n "
            "ON t.alert = n.alert AND t.sequence = n.newest",
        ),
        GoldView(
            "v_costs",
            "Money spent by day, kind and item, as `uplift costs` added it up last.",
            _rows("costs", _COSTS),
        ),
        GoldView(
            "v_roi",
            "Cost, gain against treating nobody, what is left, and the forecast, as `uplift costs` saw them last.",
            _rows("roi", _COSTS),
        ),
        GoldView(
            "v_readout",
            "Each metric's effect by arm at the newest reading, of each role its own.",
            _rows("readout", _newest("readout", f"{CAMPAIGN}, role", "as_of"), keys=f"{CAMPAIGN}, role"),
        ),
    )
}
"""{name: view}, in the schema `gold`."""


def view_query(name: str, catalog: str | None = None) -> str:
    """The query of a view, over the tables of a catalog, or as the session knows them."""
    query = GOLD_VIEWS[name].query
    return query if catalog is None else re.sub(r"\bgold\.", lambda _: f"{_in_backquotes(catalog)}.gold.", query)


def create_views(catalog: str | None = None) -> str:
    """Write the statements that create the views.

    Args:
        catalog: Where the gold tables are; None for the session's own.

    Returns:
        CREATE OR REPLACE VIEW for each view, each ended by a semicolon and a line break.
    """
    where = "gold" if catalog is None else f"{_in_backquotes(catalog)}.gold"
    texts = ((view, view.meaning.replace("'", "\\'")) for view in GOLD_VIEWS.values())
    return "\n".join(
        f"CREATE OR REPLACE VIEW {where}.{view.name} COMMENT '{text}' AS\n{view_query(view.name, catalog)};\n"
        for view, text in texts
    )


def _in_backquotes(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
