"""Play days of a simulated campaign by the jobs themselves, with a clock of the campaign's own and a timeline.

Every job reads as of the clock (`labels.as_of`), so a day can be played whatever day it is. What a day has to show is
checked at once: a job that says or records something else ends the game day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.errors import UpliftError
from uplift_spark.estimators import params_of, train_model
from uplift_spark.events.load import Load
from uplift_spark.gamedays.timeline import Happened, TimelineEntry
from uplift_spark.gamedays.world import BOUGHT, MAIL, NO_MAIL, WAIT_DAYS, WINDOW_DAYS, World
from uplift_spark.jobs import alert, canary, features, load, monitor, policy, retrain, runbook, score, train
from uplift_spark.lake.schemas import (
    ALERTS_TABLE,
    ASSIGNMENT_TABLE,
    DECISIONS_TABLE,
    DELIVERY_TABLE,
    OUTCOME_TABLE,
    gold_table,
    profile_table,
)
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import CHALLENGER, Origin
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, code_version, no_progress

ARRIVALS = "arrivals"
"""Folder of the files that come in."""
MORNING = 7
"""The hour of the campaign's clock at which the nightly jobs have run."""


class GameDayFailed(UpliftError):
    """A job said or recorded something else than the game day has to show."""


def game_config(world: World, folder: Path) -> Config:
    """Configure the simulated campaign: the platform's thresholds, with few trees and small samples.

    Args:
        world: Its customers.
        folder: Of its lakehouse.

    Returns:
        The configuration.
    """
    return TypeAdapter(Config).validate_python(
        {
            "campaign": world.campaign,
            "source": None,
            "roles": {"outcome": BOUGHT, "control": NO_MAIL, "features": ["age", "channel"]},
            "labels": {"window_days": WINDOW_DAYS, "wait_days": WAIT_DAYS},
            "forest": {"n_trees": 24, "min_leaf": 20, "n_buckets": 2},
            "economics": {"value": {BOUGHT: 10}, "cost": {MAIL: 0.1}},
            "policy": {"objective": "outcome", "budget": float(world.days * world.per_day)},
            "lift": {"replicates": 100},
            "compare": {"points": 5},
            "consent": {"required": False},
            # A window has a thousand customers; the KPI of drift asks for as many, and some object.
            "monitoring": {"kpis": {"drift_score": {"min_n": 300}}},
            "retrain": {"age_days": 45},
            "canary": {"share": 0.25},
            "governance": {"audit": {}},
            "alerts": {"outbox": str(folder / "outbox"), "settle_minutes": 0},
            "lakehouse": {"path": str(folder / "lakehouse")},
        }
    )


@dataclass
class GameDay:
    """A simulated campaign that is being played.

    world    its customers and faults
    folder   of its lakehouse, and of the files that come in
    now      the campaign's clock
    entries  the timeline so far
    sent     {table: rows that its sources have sent so far}
    """

    world: World
    folder: Path
    base: Campaign
    progress: ProgressCallback
    now: datetime
    entries: list[TimelineEntry] = field(default_factory=list)
    sent: Counter[str] = field(default_factory=Counter)
    _files: int = 0
    _known_alerts: int = 0

    @classmethod
    def of(cls, world: World, folder: Path, lake: Lake, progress: ProgressCallback) -> GameDay:
        """Begin with an empty lakehouse below a folder, in the session of `lake`."""
        config = game_config(world, folder)
        (folder / ARRIVALS).mkdir(parents=True)
        own = Lake(lake.spark, config.lakehouse)
        return cls(world, folder, Campaign(config, own), progress, world.at(0))

    # ----------------------------------------------------------------------------------------------------------------
    # Clock and timeline.

    @property
    def campaign(self) -> Campaign:
        """The campaign as it is known by the clock."""
        labels = replace(self.base.config.labels, as_of=self.now)
        return self.base.changed(replace(self.base.config, labels=labels))

    def at(self, day: int, hour: float = MORNING) -> GameDay:
        """Set the clock forward."""
        moment = self.world.at(day, hour)
        if moment < self.now:
            raise GameDayFailed(f"the clock goes back from {self.now:%Y-%m-%d %H:%M} to {moment:%Y-%m-%d %H:%M}")
        self.now = moment
        return self

    def note(self, kind: Happened, words: str) -> None:
        """Put what happened on the timeline."""
        entry = TimelineEntry(self.now, (self.now - self.world.at(0)).days, kind, words)
        self.entries.append(entry)
        self.progress(f"{entry.clock}  {kind}: {words}")

    def check(self, holds: bool, sentence: str) -> None:
        """Raise GameDayFailed with the sentence and the clock unless it holds."""
        if not holds:
            raise GameDayFailed(f"day {(self.now - self.world.at(0)).days}: {sentence}")

    # ----------------------------------------------------------------------------------------------------------------
    # What comes in.

    def load(self, table: str, rows: pd.DataFrame, replaced: tuple[str, ...] = ()) -> int:
        """Load rows as a file of the campaign's source; the number that was added."""
        self._files += 1
        path = self.folder / ARRIVALS / f"{self._files:02d}.parquet"
        table_of_rows = pa.Table.from_pandas(rows, preserve_index=False)
        pq.write_table(table_of_rows, path, coerce_timestamps="us", allow_truncated_timestamps=True)
        file = Load(table, str(path), "parquet", replace=bool(replaced), replaced=replaced)
        details = self._job(load, load=file).details
        self.check(not details["rejected"] and details["good"] == len(rows),
                   f"{len(rows):,} rows came for {table}, {details['good']:,} were added")  # fmt: skip
        self.sent[table] += 0 if replaced else len(rows)
        return len(rows)

    def open(self, train_on: int, planned: bool, deliveries: bool = False) -> None:
        """Load what the sources report on all days, and train the champion on the days before `train_on`.

        Every row says when it became known, and jobs see what was known by their clock.
        """
        world, purchases = self.world, self.world.purchases()
        in_months, profiles = world.reported_in_months(), world.profiles()
        self.load(ASSIGNMENT_TABLE, world.assignments())
        self.load(profile_table(world.campaign), profiles[~in_months])
        if in_months.any():
            self.load(profile_table(world.campaign), profiles[in_months])
        self.load(OUTCOME_TABLE, purchases[~world.held_back(purchases)])
        if deliveries:
            self.load(DELIVERY_TABLE, world.deliveries())
        self.at(train_on)
        self._job(features)
        version = self._job(train).details["version"]
        self.note("job", f"version {version} is trained and becomes the champion")
        if planned:
            self.plan()

    def lost(self) -> dict[str, int]:
        """{table: rows that its sources have sent and that it has not, or has twice}."""
        return {table: abs(n - self.base.lake.read(table).count()) for table, n in self.sent.items()}

    # ----------------------------------------------------------------------------------------------------------------
    # The jobs of a day.

    def _job(self, job: Any, **options: Any) -> JobResult:
        with self.base.lake.planned():
            result: JobResult = job.run(self.campaign, **options)
        return result

    def plan(self) -> None:
        """Score all customers whose labels are mature, and plan for them with the champion."""
        self._job(score)
        self._job(policy)

    def monitor(self, day: int) -> list[str]:
        """Monitor the window of a day; the alerts that fire then."""
        result = self._job(monitor, window=self.world.at(day, 12), now=self.now)
        if not self._note_alerts():
            firing = ", ".join(result.details["alerts"]) or "none"
            self.note("job", f"monitor of day {day}: nothing new, alerts that fire: {firing}")
        return list(result.details["alerts"])

    def _note_alerts(self) -> int:
        """Put alerts that fired or ended since the last time on the timeline; how many events there were."""
        lake = self.base.lake
        if not lake.exists(ALERTS_TABLE):
            return 0
        rows = lake.read(ALERTS_TABLE).where(f"{CAMPAIGN} = '{self.world.campaign}'").toPandas()
        rows = rows.sort_values(["at", "sequence"], kind="stable")
        new = rows.iloc[self._known_alerts :].to_dict("records")
        self._known_alerts = len(rows)
        for event in new:
            if event["event"] in ("fired", "resolved", "closed"):
                severity = f"{event['severity']} " if event["event"] == "fired" else ""
                self.note("alert", f"{severity}{event['rule']} {event['event']}: {event['summary']}")
        return len(new)

    def retrain(self, decision: str, because: str | None = None) -> Mapping[str, Any]:
        """Decide on a new model; the decision has to be this one."""
        details = self._job(retrain, because=because).details
        summary = str(details["summary"]).splitlines()[-1]
        self.note("decision", f"retrain: {summary}")
        self.check(details["decision"] == decision, f"retrain decided {details['decision']}, not {decision}: {summary}")
        return details

    def canary(self, what: str, state: str) -> Mapping[str, Any]:
        """Start, read or decide a canary, which has to come to this state."""
        details = self._job(canary, what=what, now=self.now).details
        words = {"running": details["summary"].splitlines()[0]}.get(details["state"], self._verdict())
        self.note("decision", f"canary {what}: {details['state']}: {words}")
        self.check(details["state"] == state, f"canary {what} came to {details['state']}: {details['summary']}")
        return details

    def _verdict(self) -> str:
        rows = self.base.lake.read(gold_table("canary")).where(f"{CAMPAIGN} = '{self.world.campaign}'").toPandas()
        return str(rows.sort_values("step")["reason"].iloc[-1])

    def acknowledge(self, rule: str, why: str) -> None:
        """Somebody takes care of an alert, on record."""
        self._job(alert, deed=alert.AlertDeed("acknowledge", rule, "on-call", why), now=self.now)
        self.note("people", f"on-call acknowledges {rule}: {why}")

    def runbook(self, name: str, reason: str, over: bool) -> None:
        """Carry out a runbook, whose steps have to hold in the end (`over`), or to wait for people."""
        request = runbook.RunbookRequest(name, True, reason)
        summary = str(self._job(runbook, request=request, now=self.now).details["summary"])
        self._note_alerts()
        lines = summary.splitlines()
        waits = next((line for line in lines if " waits: " in line), lines[-1])
        self.note("people", f"runbook {name}: {lines[-1] if over else waits}")
        self.check(lines[-1].startswith("All ") == over, f"runbook {name}: {summary}")

    def plan_in_force(self) -> pd.DataFrame:
        """Decisions of the newest plan: unit, level, version."""
        campaign = self.campaign
        rows = campaign.lake.read(DECISIONS_TABLE).where(f"{RUN_ID} = '{campaign.plan_run()}'")
        return rows.select(UNIT, TREATMENT, "model_version").toPandas()

    def follow_plan(self, occasion: str) -> int:
        """Let every customer of the plan in force buy or not as its decisions have it; purchases."""
        rows = self.world.purchases_after(self.plan_in_force(), self.now, occasion, self._files)
        return self.load(OUTCOME_TABLE, rows)

    def swapped_version(self) -> int:
        """Register a version by hand whose arms were mixed up, and give it the alias challenger; its number."""
        campaign, registry = self.campaign, self.base.registry
        config, table, champion = campaign.config, campaign.training_table, self.base.champion
        version = campaign.lake.version(table)
        rows = campaign.training_set(version).where("split = 'train'")
        swap = f"CASE {TREATMENT} WHEN '{MAIL}' THEN '{NO_MAIL}' ELSE '{MAIL}' END AS {TREATMENT}"
        swapped = rows.selectExpr(*(f"`{name}`" for name in rows.columns if name != TREATMENT), swap)
        roles, arguments = config.training_roles, params_of(config)
        model = train_model(arguments, swapped, roles, no_progress)
        inputs = dict(campaign.training_set(version).dtypes)
        origin = Origin("by-hand", roles, inputs, {table: version}, version, code_version(), arguments)
        new = registry.log_model(config.model_name, model.to_bytes(), origin, {"fitted": "by hand"}, {})
        registry.set_alias(new, CHALLENGER)
        self.note(
            "people", f"version {new.version}, fitted by hand with its arms mixed up, gets the alias {CHALLENGER}"
        )
        self.check(new.version != champion.version, "the version by hand is the champion")
        return new.version

    def in_force(self, version: int) -> None:
        """Check that a version is the champion, and that all decisions are its own."""
        plan = set(self.plan_in_force()["model_version"])
        self.check(self.base.champion.version == version and plan == {str(version)},
                   f"version {version} is not in force: the champion is {self.base.champion.version}, decisions are by "
                   f"{', '.join(sorted(plan))}")  # fmt: skip

    def first_fired(self, rules: Iterable[str], since: datetime) -> TimelineEntry | None:
        """The first alert of one of these rules that fired since a moment."""
        wanted = tuple(rules)
        fired = (one for one in self.entries if one.kind == "alert" and one.at >= since and " fired: " in one.words)
        return next((one for one in fired if any(rule in one.words.partition(" fired")[0] for rule in wanted)), None)
