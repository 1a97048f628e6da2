"""The audit trail in tables: entries that writers add without forking the chain, trees of decisions, and answers.

`record_event` adds an entry, `record_plan` the one of a plan with a tree of its decisions. `AuditLog` verifies and
shows them and explains a unit's decision. The chain itself, proofs and signatures are in `governance.audit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.config import Config
from uplift_spark.errors import ConflictError, DataError
from uplift_spark.governance.audit import (
    PLAIN_FIELDS,
    AuditEntry,
    AuditEvent,
    BucketRoot,
    ChainCheck,
    Checkpoint,
    CheckpointFolder,
    batch_root,
    bucket_count,
    bucket_of,
    chained,
    check_chain,
    decision_leaf,
    merkle_root,
    signer_of,
    signing_key,
    unit_proof,
)
from uplift_spark.governance.permissions import acting_user
from uplift_spark.governance.privacy import GATE, gated, key_of, pseudonym
from uplift_spark.lake.local_tables import local_tables
from uplift_spark.lake.schemas import (
    AUDIT_TABLE,
    AUDIT_TREES,
    CONSENT_TABLE,
    DECISIONS_TABLE,
    SCORES_TABLE,
    gold_table,
)
from uplift_spark.lake.tables import Lake, absence
from uplift_spark.roles import CAMPAIGN, PROPENSITY, RUN_ID, TREATMENT, UNIT
from uplift_spark.runtime import code_version, plain_values

_LEAF_BYTES = 32
_TRIES = 30  # each one that is lost means that another writer's entry is there
_PART = 200_000  # entries that a verification reads at a time
_DECISION = (RUN_ID, CAMPAIGN, UNIT, TREATMENT, "reason", "gain", "cost", "value", "model_version")
"""Columns of a decision that its hash is of."""

# --------------------------------------------------------------------------------------------------------------------
# Entries: two writers at once never fork the chain.
# An entry's number is part of the run id under which it is written, and the lake writes a run once: of two writers that
# both saw entry 10 as the last, one writes entry 11 and the other reads the log again.


def record_event(
    config: Config, lake: Lake, event: AuditEvent, once: bool = True, among: Sequence[str] = ()
) -> AuditEntry | None:
    """Add an entry to gold.audit_log, and sign a checkpoint of it where the configuration names a place.

    Args:
        config: Of the campaign; without `governance.audit` nothing is written.
        lake: Where the log is.
        event: What happened; an empty actor is whoever runs this, an empty campaign the configuration's.
        once: Leave out an event that the newest entry of its action and subject says already, as when a job is run
            again.
        among: Actions whose newest entry counts for `once`, where one takes another back; by default the event's own.

    Returns:
        The entry, new or known; None where the configuration has no audit log.

    Raises:
        ConflictError: Other writers won every race.
    """
    conf = config.governance.audit
    if conf is None:
        return None
    signer = signing_key(conf)  # one that is not there shows before anything is written
    actor, details = event.actor or acting_user(config), finite_values(event.details)
    event = replace(event, actor=actor, campaign=event.campaign or config.campaign, details=details)
    for _ in range(_TRIES):
        first, last, same = _newest(lake, event, among or (event.action,))
        if once and same is not None and _says(same, event):
            return same
        (entry,) = chained([event], last, datetime.now(UTC))
        try:
            _append(lake, entry)
        except ConflictError:
            continue  # another writer's entry has this number now
        if conf.checkpoints is not None and signer is not None:
            log = entry.hash if first is None else first.hash
            mark = Checkpoint(log, entry.seq, entry.hash, entry.fields["at"])
            CheckpointFolder(conf.checkpoints).add(mark.signed(signer))
        return entry
    raise ConflictError(f"other writers won {AUDIT_TABLE} {_TRIES} times in a row: run it again when they are done")


def finite_values(details: Mapping[str, Any]) -> dict[str, Any]:
    """Turn figures and settings into values of JSON: null for what is not known, not finite or no number."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, list):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {key: plain(value) for key, value in plain_values(details).items()}


def _newest(lake: Lake, event: AuditEvent, actions: Sequence[str]) -> tuple[AuditEntry | None, ...]:
    """The first entry, the last one, and the last of these actions on the event's subject."""
    if not lake.exists(AUDIT_TABLE):
        return None, None, None
    log = lake.read(AUDIT_TABLE)
    alike = F.col("action").isin(*actions) & (F.col("subject") == event.subject)
    numbers = log.agg(F.max("seq"), F.max(F.when(alike, F.col("seq")))).collect()[0]
    wanted = [1, *(number for number in numbers if number is not None)]
    rows = log.where(F.col("seq").isin(wanted)).select("seq", "entry", "hash").collect()
    entries = {row["seq"]: AuditEntry(*row) for row in rows}
    return entries.get(1), entries.get(numbers[0]), entries.get(numbers[1])


def _says(entry: AuditEntry, event: AuditEvent) -> bool:
    (again,) = chained([replace(event, actor="")], None, datetime.now(UTC))
    apart = ("actor", "at", "previous", "seq")
    return all(entry.fields[name] == value for name, value in again.fields.items() if name not in apart)


def newest_entry(lake: Lake, actions: tuple[str, ...], subject: str) -> AuditEntry | None:
    """Find the newest entry about a subject with one of these actions; None without one."""
    if not lake.exists(AUDIT_TABLE):
        return None
    rows = lake.read(AUDIT_TABLE).where(F.col("action").isin(*actions) & (F.col("subject") == subject))
    newest = rows.orderBy(F.desc("seq")).limit(1).select("seq", "entry", "hash").collect()
    return AuditEntry(*newest[0]) if newest else None


def _append(lake: Lake, entry: AuditEntry) -> None:
    row = {**{name: entry.fields[name] for name in PLAIN_FIELDS}, "entry": entry.text, "hash": entry.hash}
    lake.write(AUDIT_TABLE, lake.spark.createDataFrame(pa.Table.from_pylist([row])), f"audit-{entry.seq}")


# --------------------------------------------------------------------------------------------------------------------
# Decisions: a tree of each plan.


def record_plan(
    config: Config, lake: Lake, run_id: str, versions: Mapping[str, Any], facts: Mapping[str, Any]
) -> AuditEntry | None:
    """Add the entry of a plan whose decisions are written; with `audit.decisions` also a hash of each decision.

    Args:
        config: Of the campaign.
        lake: Where decisions and log are.
        run_id: The plan's run.
        versions: What the plan rests on: tables, model, scores.
        facts: Its figures.

    Returns:
        The entry, whose details hold the root of the decisions' tree; None where the configuration has no audit log.
    """
    conf = config.governance.audit
    if conf is None:
        return None
    if (known := newest_entry(lake, ("decide",), f"plan {run_id}")) is not None:
        return known  # the job is run again; units may have been erased since
    sections = {name: asdict(getattr(config, name)) for name in ("policy", "economics", "consent")}
    details: dict[str, Any] = {**facts, **sections}
    if conf.decisions:
        details |= _write_trees(config, lake, run_id)
    why = "policy of the configuration"
    versions = {**versions, "code": code_version()}
    return record_event(config, lake, AuditEvent("", "decide", f"plan {run_id}", why, "", run_id, versions, details))


def _write_trees(config: Config, lake: Lake, run_id: str) -> dict[str, Any]:
    mine = (F.col(RUN_ID) == run_id) & (F.col(CAMPAIGN) == config.campaign)
    roots = _bucket_roots(lake.read(AUDIT_TREES).where(mine)) if lake.exists(AUDIT_TREES) else []
    if not roots:  # else a run that was killed wrote them, whatever was erased since
        decisions = lake.read(DECISIONS_TABLE).where(mine)
        frame = decision_trees(decisions, bucket_count(decisions.count()))
        written = lake.write(AUDIT_TREES, frame.withColumn(CAMPAIGN, F.lit(config.campaign)), run_id)
        roots = _bucket_roots(lake.read(AUDIT_TREES, written.version).where(mine))
    n = sum(one.units for one in roots)
    return {"units": n, "buckets": bucket_count(n), "root": batch_root(roots)}


def decision_trees(decisions: DataFrame, buckets: int) -> DataFrame:
    """Build the Merkle tree of each bucket of decisions: bucket, buckets, units, root, leaves."""
    leaves = decisions.select(*_DECISION).mapInArrow(partial(leaf_batches, buckets), "bucket bigint, leaf binary")
    parted = leaves.repartition("bucket").sortWithinPartitions("bucket", "leaf")
    trees = parted.mapInArrow(tree_batches, "bucket bigint, units bigint, root string, leaves binary")
    return trees.withColumn("buckets", F.lit(buckets).cast("bigint"))


def leaf_batches(buckets: int, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: bucket and hash of each decision."""
    for batch in batches:
        decisions = batch.to_pylist()
        columns = [[bucket_of(one[UNIT], buckets) for one in decisions], [decision_leaf(one) for one in decisions]]
        yield pa.record_batch([pa.array(columns[0], pa.int64()), pa.array(columns[1], pa.binary())], ["bucket", "leaf"])


def tree_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: rows sorted by bucket and hash to one row a bucket."""
    bucket, leaves = -1, list[bytes]()
    for batch in batches:
        for number, leaf in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            if number != bucket and leaves:
                yield _tree(bucket, leaves)
                leaves = []
            bucket = number
            leaves.append(leaf)
    if leaves:
        yield _tree(bucket, leaves)


def _tree(bucket: int, leaves: list[bytes]) -> pa.RecordBatch:
    root, joined = merkle_root(leaves).hex(), b"".join(leaves)
    values = {"bucket": [bucket], "units": [len(leaves)], "root": [root], "leaves": [joined]}
    return pa.record_batch(values)


def _bucket_roots(trees: DataFrame) -> list[BucketRoot]:
    rows = trees.select("bucket", "units", "root").toArrow().to_pylist()
    return sorted((BucketRoot(**row) for row in rows), key=lambda one: one.bucket)


def _split(leaves: bytes) -> list[bytes]:
    return [leaves[i : i + _LEAF_BYTES] for i in range(0, len(leaves), _LEAF_BYTES)]


# --------------------------------------------------------------------------------------------------------------------
# Answers: whether the log holds, what it says, why a unit got what it got.


def _no_log() -> str:
    return (
        f"table {AUDIT_TABLE} does not exist: set governance.audit in the configuration, and the next job that trains, "
        "decides, exports or erases begins the log"
    )


def check_on_record(config: Config, decisions: bool = False) -> None:
    """Refuse a question about a log that was not begun, before Spark starts.

    Args:
        config: Of the campaign; a lakehouse that is no folder of this machine is not looked at.
        decisions: Whether the question is about decisions, too.

    Raises:
        DataError: There is no audit log, or no decision.
    """
    tables = local_tables(config.lakehouse)
    if tables is None:
        return
    if not tables.exists(AUDIT_TABLE):
        raise DataError(_no_log())
    if decisions and not tables.exists(DECISIONS_TABLE):
        raise DataError(absence(DECISIONS_TABLE, config.lakehouse))


@dataclass(frozen=True)
class AuditLog:
    """The audit log of a lakehouse. Raises DataError from its methods when there is none yet."""

    config: Config
    lake: Lake

    def _read(self) -> DataFrame:
        if not self.lake.exists(AUDIT_TABLE):
            raise DataError(_no_log())
        return self.lake.read(AUDIT_TABLE)

    def verify(self, decisions: bool = False) -> ChainCheck:
        """Check every entry, checkpoint and tree; with `decisions` also each decision that is still there."""
        conf = self.config.governance.audit
        checkpoints = signer = None
        if conf is not None and conf.checkpoints is not None and conf.key is not None:
            checkpoints, signer = CheckpointFolder(conf.checkpoints).read(), signer_of(conf.key)
        log = self._read().select(*PLAIN_FIELDS, "entry", "hash")
        plans: dict[str, dict[str, Any]] = {}
        checked = check_chain(_watched(log, plans), checkpoints, signer)
        faults = [
            sentence for run_id, fields in plans.items() for sentence in self._tree_faults(run_id, fields, decisions)
        ]
        return replace(checked, findings=(*checked.findings, *faults), wrong=checked.wrong + len(faults))

    def _tree_faults(self, run_id: str, fields: Mapping[str, Any], decisions: bool) -> Iterator[str]:
        """What is wrong with the hashes of a plan's decisions, and with the decisions."""
        details = fields["details"]
        if "root" not in details:
            return
        if type(details.get("buckets")) is not int or details["buckets"] < 1:
            yield f"entry {fields['seq']} has a root of plan {run_id} and no number of buckets: it was edited"
            return
        mine = (F.col(RUN_ID) == run_id) & (F.col(CAMPAIGN) == fields[CAMPAIGN])
        trees = self.lake.read(AUDIT_TREES).where(mine) if self.lake.exists(AUDIT_TREES) else None
        roots = [] if trees is None else _bucket_roots(trees)
        if trees is None or batch_root(roots) != details["root"]:
            yield f"{AUDIT_TREES} does not have the hashes that entry {fields['seq']} recorded for plan {run_id}"
            return
        wrong = trees.mapInArrow(rebuilt_batches, "bucket bigint").toArrow().column(0).to_pylist()
        if wrong:
            yield f"{AUDIT_TREES}: the hashes of {len(wrong)} buckets of plan {run_id} were edited, such as {wrong[0]}"
        if decisions:
            rows = self.lake.read(DECISIONS_TABLE).where(mine).select(*_DECISION)
            now = rows.mapInArrow(partial(leaf_batches, details["buckets"]), "bucket bigint, leaf binary")
            known = trees.mapInArrow(known_batches, "leaf binary")
            edited = now.join(known, "leaf", "left_anti").count()
            if edited:
                yield f"{DECISIONS_TABLE}: {edited:,} decisions of plan {run_id} are not those that were recorded"

    def show(self, limit: int, action: str | None = None) -> pa.Table:
        """The newest entries, newest first: number, time, who, what, on what, why."""
        log = self._read().where(F.col(CAMPAIGN) == self.config.campaign)
        rows = log if action is None else log.where(F.col("action") == action)
        return rows.orderBy(F.desc("seq")).limit(limit).select(*(n for n in PLAIN_FIELDS if n != CAMPAIGN)).toArrow()

    def explain(self, unit: str, run_id: str | None = None) -> dict[str, Any]:
        """Why a unit got what it got by a plan, the campaign's newest by default.

        Returns:
            decision, scores by level, prices of the limits, rules, consent then and now, the propensity of the
            assignment, versions, the entry, and that a proof leads from the decision to the root in the entry.

        Raises:
            DataError: No plan is on record, the unit has no decision in it, or the decision is not the recorded one.
        """
        key = key_of(self.config)
        unit = unit if key is None else pseudonym(key, unit)
        entry = self._plan_entry(run_id)
        fields = entry.fields
        question = _Question(self.config, self.lake, unit, fields)
        parts: dict[str, Callable[[], Any]] = {
            "decision": question.decision, "scores": question.scores, "prices": question.prices,
            "consent": question.consent, "assignment": question.assignment, "proof": question.proof,
        }  # fmt: skip
        with ThreadPoolExecutor(4) as pool:
            running = {name: pool.submit(part) for name, part in parts.items()}
            answer = {name: one.result() for name, one in running.items()}
        proof = answer.pop("proof")
        if proof is not None:
            leaves, roots, bucket = proof
            leaf = decision_leaf(answer["decision"])
            if unit_proof(leaf, leaves, bucket, roots).root(leaf) != fields["details"]["root"]:
                raise DataError(f"the hashes of plan {fields['job_run']} are not those of entry {entry.seq}")
        rules = {name: fields["details"]["policy"][name] for name in ("exclude", "contacts", "global_holdout", "bound")}
        return {
            **answer, "rules": rules, "versions": fields["versions"],
            "entry": {"seq": entry.seq, "hash": entry.hash, **{n: fields[n] for n in ("at", "actor", "reason")}},
            "proven": proof is not None,
        }  # fmt: skip

    def _plan_entry(self, run_id: str | None) -> AuditEntry:
        plans = self._read().where((F.col(CAMPAIGN) == self.config.campaign) & (F.col("action") == "decide"))
        if run_id is not None:
            plans = plans.where(F.col("job_run") == run_id)
        rows = plans.orderBy(F.desc("seq")).limit(1).select("seq", "entry", "hash").collect()
        if not rows:
            which = "no plan" if run_id is None else f"no plan {run_id}"
            raise DataError(
                f"{AUDIT_TABLE} has {which} of campaign {self.config.campaign}: run `uplift policy` with "
                "governance.audit in its conf"
            )
        return AuditEntry(*rows[0])


def _watched(log: DataFrame, plans: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rows of the log in their order; entries of plans are kept in `plans`."""
    for part in _parts(log):
        for batch in part.orderBy("seq").toArrow().to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                if row["action"] == "decide":
                    plans[row["job_run"]] = _fields(row)
                yield row


def _parts(log: DataFrame) -> Iterator[DataFrame]:
    """The log in parts that fit into memory, by number; in one where numbers are not those of a log."""
    low, high, n, numbered = log.agg(F.min("seq"), F.max("seq"), F.count(F.lit(1)), F.count("seq")).collect()[0]
    if low is None or high - low >= 2 * n:
        yield log
        return
    if numbered < n:
        yield log.where("seq IS NULL")
    for start in range(low, high + 1, _PART):
        yield log.where((F.col("seq") >= start) & (F.col("seq") < start + _PART))


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return AuditEntry(row["seq"], row["entry"], row["hash"]).fields
    except DataError:  # the chain's check says so
        return {"details": {}}


def rebuilt_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: numbers of the buckets whose leaves do not have their root."""
    for batch in batches:
        rows = batch.select(["bucket", "units", "root", "leaves"]).to_pylist()
        wrong = [
            row["bucket"]
            for row in rows
            if len(row["leaves"]) != _LEAF_BYTES * row["units"]
            or merkle_root(_split(row["leaves"])).hex() != row["root"]
        ]
        yield pa.record_batch({"bucket": pa.array(wrong, pa.int64())})


def known_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Worker: one row for each hash of a bucket."""
    for batch in batches:
        leaves = [leaf for row in batch.column("leaves").to_pylist() for leaf in _split(row)]
        yield pa.record_batch({"leaf": pa.array(leaves, pa.binary())})


@dataclass(frozen=True)
class _Question:
    """What tables say about one unit of a plan; `fields` are those of the plan's entry."""

    config: Config
    lake: Lake
    unit: str
    fields: Mapping[str, Any]

    def _rows(self, frame: DataFrame) -> list[dict[str, Any]]:
        return list(frame.toArrow().to_pylist())

    def decision(self) -> dict[str, Any]:
        mine = (F.col(UNIT) == self.unit) & (F.col(RUN_ID) == self.fields["job_run"])
        rows = self._rows(self.lake.read(DECISIONS_TABLE).where(mine).select(*_DECISION))
        if not rows:
            raise DataError(
                f"plan {self.fields['job_run']} has no decision about unit {self.unit!r}: it was not scored, or it was "
                "erased since"
            )
        return rows[0]

    def scores(self) -> dict[str, dict[str, float]]:
        versions = self.fields["versions"]
        mine = (F.col(UNIT) == self.unit) & (F.col(RUN_ID) == versions["scores"])
        columns = ("uplift", "uplift_lower", "uplift_upper", "low_support")
        rows = self._rows(self.lake.read(SCORES_TABLE).where(mine).select(TREATMENT, *columns))
        return {row.pop(TREATMENT): row for row in sorted(rows, key=lambda row: row[TREATMENT])}

    def prices(self) -> dict[str, float]:
        table = gold_table("policy_limits")
        if not self.lake.exists(table):
            return {}
        mine = F.col(RUN_ID) == self.fields["job_run"]
        rows = self._rows(self.lake.read(table).where(mine).select("name", "price"))
        return {row["name"]: row["price"] for row in rows}

    def consent(self) -> dict[str, str | None]:
        """May the unit be contacted, by what was known to the plan and by what is known now."""
        conf, version = self.fields["details"]["consent"], self.fields["versions"].get(CONSENT_TABLE)
        one = self.lake.spark.createDataFrame([(self.unit,)], f"{UNIT} string")
        known = [("then", version)] if version is not None else []
        known += [("now", None)] if self.lake.exists(CONSENT_TABLE) else []
        gates: dict[str, str | None] = {"purpose": conf["purpose"]}
        for when, at in known:
            said = self.lake.read(CONSENT_TABLE, at).where(F.col(UNIT) == self.unit)
            gates[when] = gated(one, said, conf["purpose"], conf["required"]).collect()[0][GATE]
        return gates

    def assignment(self) -> dict[str, Any]:
        """The level that the unit was assigned in the trial, and how probable that was."""
        table = self.config.training_table
        rows = self.lake.read(table, self.fields["versions"][table]).where(F.col(UNIT) == self.unit)
        assigned = self._rows(rows.select(TREATMENT, PROPENSITY, "split"))
        return assigned[0] if assigned else {}

    def proof(self) -> tuple[list[bytes], list[BucketRoot], int] | None:
        """Hashes of the unit's bucket, roots of all buckets, and the number of the bucket."""
        details = self.fields["details"]
        if "root" not in details:
            return None
        trees = self.lake.read(AUDIT_TREES).where(F.col(RUN_ID) == self.fields["job_run"])
        bucket = bucket_of(self.unit, details["buckets"])
        rows = self._rows(trees.where(F.col("bucket") == bucket).select("leaves"))
        if not rows:
            raise DataError(f"{AUDIT_TREES} has no bucket {bucket} of plan {self.fields['job_run']}: rows were removed")
        return _split(rows[0]["leaves"]), _bucket_roots(trees), bucket
