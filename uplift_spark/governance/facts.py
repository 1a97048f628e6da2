"""What is on record about a version, as figures that name their source (`CardFacts`); starts no Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from uplift_spark.config import Config
from uplift_spark.governance.documents import Cell, CitedFigure, other_figure, table_figure
from uplift_spark.lake.schemas import (
    AUDIT_TABLE,
    BIAS_TABLE,
    CONSENT_TABLE,
    DECISIONS_TABLE,
    SCORES_TABLE,
    gold_table,
)
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, Roles, benefit_interval

if TYPE_CHECKING:
    from uplift_spark.registry.models import Registered

NOT_STATED = "not stated"
"""What stands for an owner, a purpose or a legal basis that the configuration does not name."""
LIFT_HEADS = ("outcome", "level", "cut", "bucket", "units", "predicted", "observed", "lower", "upper", "few units")
METRIC_HEADS = ("outcome", "level", "metric", "value", "lower", "upper")
BIAS_HEADS = ("attribute", "group", "measure", "units", "mean", "difference", "lower", "upper", "adjusted p", "flag")
_LIFT_KEYS = (RUN_ID, "outcome", TREATMENT, "cut", "bucket")
_LIFT_FIGURES = ("n", "predicted_uplift", "uplift", "uplift_lower", "uplift_upper")
_BIAS_FIGURES = ("units", "mean", "difference", "difference_lower", "difference_upper", "adjusted_p")
_OF_SCORES = {
    "n": ("*", "rows"),
    "low_support": ("low_support", "true"),
    "width": ("uplift_upper - uplift_lower", "mean"),
}


@dataclass(frozen=True)
class TableOfUnits:
    """A table in which people are rows: rows, Delta version, and how long deleted files and its history are kept, in
    Delta's words."""

    name: str
    rows: int
    version: int
    keeps_files: str
    keeps_log: str


@dataclass(frozen=True)
class CardFacts:
    """All that the documents of a version rest on.

    config       of the campaign
    model        the version; `roles` are those of its file
    champion     version that is the champion now; None without one
    training     table and Delta version it was trained on
    logged       {figure: value} that its training run logged
    environment  {`python` or a distribution: version} it was trained in
    runs         {scores, lift, plan, bias: run id}; what is not there has no entry
    frames       rows by name: metrics, lift, bias, limits, averages as their gold tables have them; scores (treatment,
                 n, low_support, width), decisions (treatment, reason, n, gain, cost), arms (split, treatment, n, mean),
                 features (feature, kind, missing, kinds, least, mean, most), period (first, last), consent (purpose,
                 granted, n), quarantine (source_table, rule, n), proxies (seq, cut, feature, strength), entries (of the
                 audit log, about this version), allowed (of allow and override), actions (action, n)
    tables       tables in which people are rows
    absent       {name of a frame: sentence that says why it is not there}
    """

    config: Config
    model: Registered
    roles: Roles
    champion: int | None
    training: tuple[str, int]
    logged: Mapping[str, float] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    frames: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tables: Sequence[TableOfUnits] = ()
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and version of the model, in words."""
        return f"{self.model.name} version {self.model.version}"

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Rows of a frame; none where it is not there."""
        frame = self.frames.get(name)
        return [] if frame is None else [{str(k): v for k, v in row.items()} for row in frame.to_dict("records")]

    def why_not(self, name: str, otherwise: str) -> str:
        """The sentence that stands in a frame's place."""
        return self.absent.get(name, otherwise)

    def stated(self, key: str) -> str:
        """Owner, purpose or legal_basis, in the configuration's words."""
        approval = self.config.governance.approval
        return (getattr(approval, key) if approval is not None else "") or NOT_STATED

    # ----------------------------------------------------------------------------------------------------------------
    # Figures.

    def configured(self, key: str) -> CitedFigure:
        """A number of the configuration."""
        value: Any = self.config
        for part in key.split("."):
            value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        return other_figure(value, "configuration", key)

    def cells(
        self, row: Mapping[str, Any], table: str, columns: Sequence[str], keys: Sequence[str]
    ) -> list[CitedFigure]:
        """Figures of one row of a table that `keys` tell from the others."""
        return [table_figure(row[column], table, column, {key: row[key] for key in keys}) for column in columns]

    def of_training(self, value: Any, column: str, take: str, where: Mapping[str, Any]) -> CitedFigure:
        """A figure of the table that the version was trained on."""
        table, version = self.training
        return table_figure(value, table, column, where, take, version)

    def of_scores(self, row: Mapping[str, Any], name: str) -> CitedFigure:
        """Units scored with a level (`n`), share with low support, or mean width of the intervals."""
        version = str(self.model.version)
        where = {RUN_ID: self.runs["scores"], "model_version": version, TREATMENT: row[TREATMENT]}
        column, take = _OF_SCORES[name]
        return table_figure(row[name], SCORES_TABLE, column, where, take)

    def of_plan(self, row: Mapping[str, Any], name: str) -> CitedFigure:
        """Units (`n`), gain or cost of the newest plan, by level and reason."""
        where = {RUN_ID: self.runs["plan"], TREATMENT: row[TREATMENT], "reason": row["reason"]}
        column, take = ("*", "rows") if name == "n" else (name, "sum")
        return table_figure(row[name], DECISIONS_TABLE, column, where, take)

    def of_log(self, *actions: str) -> CitedFigure:
        """Entries of the campaign in the audit log with one of these actions."""
        n = sum(row["n"] for row in self.rows("actions") if row["action"] in actions)
        where = {CAMPAIGN: self.config.campaign, "action": sorted(actions)}
        return table_figure(n, AUDIT_TABLE, "*", where, "rows")

    def of_consent(self, row: Mapping[str, Any]) -> CitedFigure:
        """Statements of a purpose that grant it, or withdraw it."""
        where = {"purpose": row["purpose"], "granted": row["granted"]}
        return table_figure(row["n"], CONSENT_TABLE, "*", where, "rows")

    # ----------------------------------------------------------------------------------------------------------------
    # Rows of tables.

    def metric_rows(self, *metrics: str) -> list[list[Cell]]:
        """Rows below METRIC_HEADS: of these metrics, of all by default."""
        keys = (RUN_ID, "outcome", TREATMENT, "metric")
        return [
            [
                *(row[key] for key in keys[1:]),
                *self.cells(row, gold_table("uplift_metrics"), ("value", "lower", "upper"), keys),
            ]
            for row in self.rows("metrics")
            if not metrics or row["metric"] in metrics
        ]

    def entry_rows(self, *actions: str) -> list[list[Cell]]:
        """Number and words of the audit log's entries about this version: of these actions, of all by default."""
        return [
            [str(row["seq"]), f"{row['action']} by {row['actor']} on {row['at']}: {row['reason']}"]
            for row in self.rows("entries")
            if not actions or row["action"] in actions
        ]

    def lift_rows(self, cut: str) -> list[list[Cell]]:
        """Rows below LIFT_HEADS of `all`, `decile` or `segment`."""
        return [self._lift_row(row) for row in self.rows("lift") if row["cut"].partition(":")[0] == cut]

    def harm_rows(self) -> list[list[Cell]]:
        """Rows below LIFT_HEADS of the trained outcome whose whole interval is on the wrong side of nought."""
        direction = self.roles.direction
        return [
            self._lift_row(row)
            for row in self.rows("lift")
            if row["outcome"] == self.roles.outcome
            and benefit_interval(row["uplift_lower"], row["uplift_upper"], direction)[1] < 0
        ]

    def _lift_row(self, row: Mapping[str, Any]) -> list[Cell]:
        figures = self.cells(row, gold_table("lift_table"), _LIFT_FIGURES, _LIFT_KEYS)
        return [*(str(row[key]) for key in _LIFT_KEYS[1:]), *figures, "yes" if row["low_sample"] else ""]

    def bias_rows(self, flagged: bool) -> list[list[Cell]]:
        """Rows below BIAS_HEADS of the newest bias audit: those with a flag, or all."""
        keys = (RUN_ID, "cut", "bucket", "measure")
        return [
            [*(row[key] for key in keys[1:]), *self.cells(row, BIAS_TABLE, _BIAS_FIGURES, keys), row["flag"]]
            for row in self.rows("bias")
            if row["flag"] or not flagged
        ]

    def arm_rows(self, *splits: str) -> list[list[Cell]]:
        """Split, level, units and mean outcome of the training table: of these splits, of all by default."""
        rows: list[list[Cell]] = []
        for row in self.rows("arms"):
            where = {"split": row["split"], TREATMENT: row[TREATMENT]}
            if not splits or row["split"] in splits:
                n = self.of_training(row["n"], "*", "rows", where)
                mean = self.of_training(row["mean"], self.roles.outcome, "mean", where)
                rows.append([row["split"], row[TREATMENT], n, mean])
        return rows

    @property
    def arm_heads(self) -> tuple[str, ...]:
        """Heads above `arm_rows`."""
        return ("split", "level", "units", f"mean {self.roles.outcome}")
