"""A version on trial, promoted or taken back, on record: the states of canaries, and whose decisions are in force.

`CanaryLog` keeps the states in gold.canary: each follows from the last one, under a claim, so that of two who act at
once one is refused, and each has an entry in the audit log before it holds. What was decided is written down before it
is done; a run that was killed goes on from there. Every deed can be done twice: done already, it does nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.errors import ConfigError, ConflictError, DataError, OvertakenError
from uplift_spark.governance.approvals import promote
from uplift_spark.governance.audit import AuditEntry, AuditEvent
from uplift_spark.governance.spark import newest_entry, record_event, record_plan
from uplift_spark.lake.contracts import INGESTED_AT
from uplift_spark.lake.schemas import (
    AUDIT_TABLE,
    CANARY_TABLE,
    DECISIONS_TABLE,
    SCORES_TABLE,
    gold_table,
)
from uplift_spark.lake.session import moment, utc
from uplift_spark.lake.tables import Claim, Lake
from uplift_spark.registry.models import CHALLENGER, Registered, Registry
from uplift_spark.roles import CAMPAIGN, RUN_ID, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id

_OF_A_PLAN = ("policy_limits", "policy_curve")  # beside the decisions, by the plan's run
_TIMES = ("at", "started_at")

# --------------------------------------------------------------------------------------------------------------------
# States, in gold.canary.


@dataclass(frozen=True)
class CanaryRecord:
    """A row of gold.canary, see there."""

    canary: str
    step: int
    at: datetime
    started_at: datetime
    state: str
    verdict: str | None
    reason: str
    champion: str
    challenger: str
    share: float
    plan: str | None = None
    evidence: str | None = None


class CanaryLog:
    """The canaries and rollbacks of a campaign, one after another.

    Reading it claims to be the next who writes: whoever writes in between has this one's writes refused.

    Args:
        config: Of the campaign.
        lake: Where the tables are.
        now: What time it is; by default the clock's at each record.

    Raises:
        DataError: The clock is behind the last record.
    """

    def __init__(self, config: Config, lake: Lake, now: datetime | None = None) -> None:
        self.config, self.lake, self._fixed = config, lake, None if now is None else utc(now)
        self._name = f"canary of {config.campaign}"
        self._claim: Claim = lake.claim(CANARY_TABLE, self._name)
        self.records = self._read()
        if self.records and self.now < (last := self.records[-1]).at:
            raise DataError(
                f"the clock says {self.now:%Y-%m-%d %H:%M:%S} UTC, which is before the last record of {CANARY_TABLE}, "
                f"{last.at:%Y-%m-%d %H:%M:%S}: it went back; set the machine's clock, then run it again"
            )

    @property
    def now(self) -> datetime:
        """What time it is, in UTC."""
        return self._fixed or datetime.now(UTC)

    def _read(self) -> list[CanaryRecord]:
        if not self.lake.exists(CANARY_TABLE):
            return []
        rows = self.lake.read(CANARY_TABLE).where(F.col(CAMPAIGN) == self.config.campaign)
        names = [field.name for field in fields(CanaryRecord)]
        listed = rows.select(*(F.unix_micros(name).alias(name) if name in _TIMES else name for name in names))
        records = [row.asDict() for row in listed.orderBy("step").collect()]
        return [CanaryRecord(**{**row, **{name: moment(row[name]) for name in _TIMES}}) for row in records]

    @property
    def last(self) -> CanaryRecord | None:
        """The newest record; None before the first."""
        return self.records[-1] if self.records else None

    def plans(self, canary: str) -> dict[str, datetime]:
        """Plans in which the slices of a canary have their decisions: {run: since when}."""
        records = [one for one in self.records if one.canary == canary]
        return {one.plan: one.at for one in reversed(records) if one.plan is not None}

    def since(self, canary: str) -> datetime | None:
        """When the slices of a canary came into force; None before."""
        return min(self.plans(canary).values(), default=None)

    def refuse_overtaken(self) -> None:
        """Raise ConflictError where somebody came to a state that this one has not read: it may undo what we do."""
        if self.lake.exists(CANARY_TABLE):
            mine = self.lake.read(CANARY_TABLE).where(F.col(CAMPAIGN) == self.config.campaign)
            if mine.count() != len(self.records):
                raise ConflictError(self._overtaken)

    @property
    def _overtaken(self) -> str:
        return (
            f"another `uplift canary` or `uplift rollback` of campaign {self.config.campaign} runs: wait until it is "
            "done, then look at `uplift canary status`"
        )

    def add(self, record: CanaryRecord) -> CanaryRecord:
        """Come to a state; its number and time are filled in here. The entry in the audit log comes first.

        Raises ConflictError when someone else came to another one meanwhile.
        """
        record = replace(record, step=len(self.records) + 1, at=self.now)
        note(self.config, self.lake, record, f"{record.state} ({record.step})", record.reason)
        frame = self.lake.filled(CANARY_TABLE, [{**asdict(record), CAMPAIGN: self.config.campaign}])
        run_id = f"{record.canary}-{record.step}-{uuid.uuid4().hex[:12]}"  # two who write at once must not pass for one
        try:
            self.lake.write(CANARY_TABLE, frame, run_id, claim=self._claim)
        except OvertakenError as error:
            raise ConflictError(self._overtaken) from error
        self._claim = self.lake.claim(CANARY_TABLE, self._name)
        self.records.append(record)
        self.refuse_overtaken()  # who wrote before the new claim would not be noticed by it
        return record


def note(config: Config, lake: Lake, record: CanaryRecord, deed: str, reason: str) -> None:
    """Add the entry of a deed to the audit log, once, before it is done."""
    versions = {"champion": record.champion, "challenger": record.challenger}
    details = {"share": record.share, "verdict": record.verdict, "evidence": record.evidence}
    event = AuditEvent("", "canary", f"canary {record.canary}: {deed}", reason, "", "", versions, details)
    record_event(config, lake, event)


def check_unpinned(config: Config, verb: str) -> None:
    """Raise ConfigError where the configuration names the version in use: moving the champion would change nothing."""
    if config.registry.version is not None:
        raise ConfigError(
            f"registry.version names version {config.registry.version}, whichever is the champion: leave it out for "
            f"`uplift {verb}`"
        )


# --------------------------------------------------------------------------------------------------------------------
# Plans: whose decisions are in force.


@dataclass(frozen=True)
class PlanRun:
    """A plan in gold.policy_decisions: its run, and the model versions that its decisions are by."""

    run_id: str
    versions: frozenset[str]

    def is_by(self, version: int | str) -> bool:
        """Whether every decision is by this version."""
        return self.versions == {str(version)}


def plan_runs(lake: Lake, campaign: str) -> list[PlanRun]:
    """List the campaign's plans, the one in force first."""
    if not lake.exists(DECISIONS_TABLE):
        return []
    mine = lake.read(DECISIONS_TABLE).where(F.col(CAMPAIGN) == campaign)
    rows = mine.groupBy(RUN_ID).agg(F.collect_set("model_version").alias("versions")).collect()
    known = {row[RUN_ID]: PlanRun(row[RUN_ID], frozenset(row["versions"])) for row in rows}
    order = dict.fromkeys(str(commit.notes.get("run_id")) for commit in lake.history(DECISIONS_TABLE))
    return [known[run] for run in order if run in known]


def plan_decisions(lake: Lake, campaign: str, run_id: str) -> DataFrame:
    """Decisions of one plan, without the run's id and its time: whoever writes them again does it now."""
    mine = (F.col(CAMPAIGN) == campaign) & (F.col(RUN_ID) == run_id)
    return lake.read(DECISIONS_TABLE).where(mine).drop(RUN_ID, INGESTED_AT)


def with_challenger(champion: DataFrame, challenger: DataFrame, units: DataFrame) -> DataFrame:
    """Give the units of a slice the challenger's decisions.

    Args:
        champion: Its plan, one row a unit.
        challenger: Its decisions, one row a unit.
        units: Ids of the slice.

    Returns:
        One row for each unit of the champion's plan. A unit about which the challenger decides nothing keeps the
        champion's decision.
    """
    theirs = challenger.join(units, UNIT, "left_semi").join(champion.select(UNIT), UNIT, "left_semi")
    rest = champion.join(theirs.select(UNIT), UNIT, "left_anti")
    return rest.unionByName(theirs.select(*champion.columns))


def write_plan(config: Config, lake: Lake, rows: DataFrame, run_id: str, source: str, why: str) -> None:
    """Write a plan made from plan `source`, with its limits and prices, and put it on record like any other."""
    for name in _OF_A_PLAN:  # first: a plan without its prices would be read as one without limits
        table = gold_table(name)
        if lake.exists(table):
            mine = (F.col(CAMPAIGN) == config.campaign) & (F.col(RUN_ID) == source)
            if not (copied := lake.read(table).where(mine).drop(RUN_ID)).isEmpty():
                lake.write(table, copied, run_id)
    lake.write(DECISIONS_TABLE, rows, run_id)
    entry = newest_entry(lake, ("decide",), f"plan {source}")
    versions = {} if entry is None else entry.fields["versions"]
    record_plan(config, lake, run_id, versions, {"made_from": source, "why": why})


def new_canary(log: CanaryLog, registry: Registry) -> CanaryRecord:
    """Describe the canary that may start now. Raises ConfigError or DataError, a sentence each, where none may."""
    config = log.config
    champion, challenger = registry.find(config.model_name), registry.known(config.model_name, CHALLENGER)
    if challenger is None:
        raise ConfigError(
            f"model {champion.name} has no version with the alias {CHALLENGER}: run `uplift retrain`, or "
            "give a version the alias in MLflow"
        )
    if champion.version == challenger.version:
        raise ConfigError(
            f"version {champion.version} of model {champion.name} is champion and {CHALLENGER} both: there is nothing "
            "to compare; train another version"
        )
    if champion.sha256 == challenger.sha256:
        raise ConfigError(
            f"versions {champion.version} and {challenger.version} of model {champion.name} are the same file: there "
            "is nothing to compare; train another version"
        )
    ripe = max(config.labels.days(name) for name in config.outcomes) + config.labels.wait_days
    if ripe >= config.canary.max_days:
        raise ConfigError(
            f"labels are mature after {ripe:g} days, and canary.max_days ends the canary after "
            f"{config.canary.max_days:g}: raise canary.max_days, or no outcome is ever compared"
        )
    if not any(plan.is_by(champion.version) for plan in plan_runs(log.lake, config.campaign)):
        raise DataError(
            f"{DECISIONS_TABLE} has no plan of campaign {config.campaign} by version {champion.version}: run `uplift "
            "policy` first, a canary gives some of the units the challenger's decisions"
        )
    earlier = {one.canary for one in log.records}
    name = f"{config.campaign[:32]}-canary-{challenger.version}-{len(earlier) + 1}"  # a salt has 64 characters at most
    versions, now = (str(champion.version), str(challenger.version)), log.now
    why = f"version {challenger.version} on trial against version {champion.version}"
    return CanaryRecord(name, 0, now, now, "running", None, why, *versions, config.canary.share)


@dataclass(frozen=True)
class InForce:
    """Brings a version into force: scores, decisions, online store.

    log        of the campaign's canaries: who is overtaken does nothing more
    run        runs score, policy or publish with the model in use
    published  whether the campaign has an online store
    """

    log: CanaryLog
    run: Callable[[str], JobResult]
    published: bool

    @property
    def lake(self) -> Lake:
        """Of the campaign."""
        return self.log.lake

    def _announce(self, record: CanaryRecord, deed: str) -> None:
        self.log.refuse_overtaken()
        note(self.log.config, self.lake, record, deed, record.reason)

    def bring(self, version: Registered, record: CanaryRecord, progress: ProgressCallback) -> dict[str, Any]:
        """Bring the champion's scores, decisions and online store into force; what is there is left as it is.

        An earlier plan by this version is copied, so that a rollback waits for no optimisation; else a plan is made.
        Consent is looked at again where decisions leave, by `uplift publish` and `uplift export`.
        """
        details: dict[str, Any] = {}
        if not self._scored(version):
            self._announce(record, f"score with version {version.version}")
            details["scores"] = self.run("score").run_id
        plans = plan_runs(self.lake, self.log.config.campaign)
        if plans and not plans[0].is_by(version.version):
            self._announce(record, f"decide by version {version.version}")
            details["plan"] = self._plan(version, plans, record, progress)
        if self.published:
            self._announce(record, f"publish version {version.version}")
            details["published"] = self.run("publish").run_id
        return details

    def _scored(self, version: Registered) -> bool:
        if not self.lake.exists(SCORES_TABLE):
            return False
        name = F.col("model_name").isin(version.name, self.log.config.model_name)
        rows = self.lake.read(SCORES_TABLE).where(name & (F.col("model_version") == str(version.version)))
        return not rows.isEmpty()

    def _plan(self, version: Registered, plans: list[PlanRun], record: CanaryRecord, progress: ProgressCallback) -> str:
        earlier = next((one for one in plans if one.is_by(version.version)), None)
        if earlier is None:
            self.run("policy")
            plans = plan_runs(self.lake, self.log.config.campaign)
            earlier = next(one for one in plans if one.is_by(version.version))
            if earlier is plans[0]:
                return earlier.run_id
        run_id = derive_run_id("restore", {"canary": record.canary}, plan=earlier.run_id, after=plans[0].run_id)
        progress(f"plan {earlier.run_id} by version {version.version} is in force again, as {run_id}")
        rows = plan_decisions(self.lake, self.log.config.campaign, earlier.run_id)
        write_plan(self.log.config, self.lake, rows, run_id, earlier.run_id, record.reason)
        return run_id


# --------------------------------------------------------------------------------------------------------------------
# Aliases.


def make_champion(config: Config, lake: Lake, registry: Registry, version: Registered, record: CanaryRecord) -> None:
    """Point the alias champion at a version, on record, and take the alias challenger away."""
    promote(config, lake, registry, version, record.reason)
    end_trial(config, lake, registry, record)


def end_trial(config: Config, lake: Lake, registry: Registry, record: CanaryRecord) -> None:
    """Take the alias challenger away from the version on trial, on record; another version's stays."""
    on_trial = registry.known(config.model_name, CHALLENGER)
    if on_trial is not None and str(on_trial.version) == record.challenger:
        note(config, lake, record, f"alias {CHALLENGER} taken from version {record.challenger}", record.reason)
        registry.drop_alias(config.model_name, CHALLENGER)


def other_champion(config: Config, registry: Registry, record: CanaryRecord) -> Registered | None:
    """Find a version that became the champion while a canary ran, without its verdict; None where none did."""
    champion = registry.known(config.model_name)
    known = (record.champion, *([record.challenger] if record.state == "promoting" else []))
    return None if champion is None or str(champion.version) in known else champion


def earlier_champion(lake: Lake, records: list[CanaryRecord], current: Registered) -> int | None:
    """Find the version that was the champion before the current one; None where nobody recorded it."""
    for record in reversed(records):
        if record.state == "promoted" and record.challenger == str(current.version):
            return int(record.champion)
    for details in _promotions(lake, current):
        if details["version"] == current.version and details["instead_of"] is not None:
            return int(details["instead_of"])
    return None


def was_champion(lake: Lake, records: list[CanaryRecord], version: Registered) -> bool:
    """Whether a version is on record as the champion of some time."""
    if any(record.champion == str(version.version) for record in records):
        return True
    return any(version.version in (one["version"], one["instead_of"]) for one in _promotions(lake, version))


def _promotions(lake: Lake, model: Registered) -> list[Mapping[str, Any]]:
    """What the audit log says of each promotion of a model's versions, newest first."""
    if not lake.exists(AUDIT_TABLE):
        return []
    mine = (F.col("action") == "promote") & (F.col("subject") == f"champion of {model.name}")
    rows = lake.read(AUDIT_TABLE).where(mine).orderBy(F.desc("seq")).select("seq", "entry", "hash").collect()
    return [AuditEntry(*row).fields["details"] for row in rows]
