"""Publish units and the model in use to the online store that `uplift serve` answers from.

Reads the training table as it was scored, gold.uplift_scores and, where they are there, the newest plan of
gold.policy_decisions, gold.canary and bronze.consent; writes the campaign's serving folder, or Redis, and no table.
Units that were erased, or may not be contacted, are gone from the store within the run, and from Redis within a minute
after it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign, Scored
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.forest import Model
from uplift_spark.governance.audit import AuditEvent, signing_key
from uplift_spark.governance.privacy import GATE, MAY, ConsentGate, held_back, units_by_gate
from uplift_spark.governance.rollout import CanaryLog
from uplift_spark.governance.spark import record_event
from uplift_spark.lake.schemas import CONSENT_TABLE, DECISIONS_TABLE, SCORES_TABLE, gold_table
from uplift_spark.policy.allocation import CHOSEN, NOT_WORTH
from uplift_spark.registry.models import CHALLENGER, Registered
from uplift_spark.roles import CAMPAIGN, RUN_ID, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, no_progress
from uplift_spark.serving.decisions import check_challenger, with_slice
from uplift_spark.serving.pacing import spend_curve
from uplift_spark.serving.store import (
    Manifest,
    StoredUnit,
    check_plain_ids,
    publish_version,
    published_already,
    publishing,
    read_manifest,
    redis_client,
    serving_folder,
)

_PREFIX = "_level_"  # of the columns with a level's effect


@dataclass(frozen=True)
class _Sources:
    """What a version is made from: the model in use, its last scores, the newest plan by it (None: there is none), who
    may be contacted, and the versions of the tables read."""

    model: Registered
    scored: Scored
    plan: str | None
    gate: ConsentGate
    versions: Mapping[str, int]


def _sources(campaign: Campaign) -> _Sources:
    """Raises DataError when the model in use has not scored, or consent is required and there is no table of it."""
    lake, model = campaign.lake, campaign.model_in_use
    scored = campaign.last_scored(model.version)
    tables = [SCORES_TABLE]
    plan = None
    if lake.exists(DECISIONS_TABLE):
        try:
            plan = campaign.plan_run(model.version)
            tables.append(DECISIONS_TABLE)
        except DataError:  # other campaigns, or other versions, have planned
            plan = None
    gate = ConsentGate.of(lake, campaign.config.consent)
    versions = {campaign.training_table: scored.feature_version} | {table: lake.version(table) for table in tables}
    if gate.version is not None:
        versions[CONSENT_TABLE] = gate.version
    return _Sources(model, scored, plan, gate, versions)


@dataclass(frozen=True)
class _OnTrial:
    """The challenger: its model and that one's file, and what the manifest says of it."""

    model: Model
    content: bytes
    facts: Mapping[str, Any]


def _on_trial(campaign: Campaign, champion: Registered) -> _OnTrial | None:
    """The challenger of a running canary with its slice, or with `serving.shadow` the one that only decides beside."""
    last, registry, name = CanaryLog(campaign.config, campaign.lake).last, campaign.registry, campaign.config.model_name
    if last is not None and last.state == "running" and last.champion == str(champion.version):
        challenger, salt, share = registry.find(name, int(last.challenger)), last.canary, last.share
    elif campaign.config.serving.shadow and (known := registry.known(name, CHALLENGER)):
        challenger, salt, share = known, "", 0.0
    else:
        return None
    model = registry.load(challenger)
    content = model.to_bytes()
    facts = {"name": challenger.name, "version": challenger.version, "salt": salt, "share": share}
    return _OnTrial(model, content, {**facts, "sha256": hashlib.sha256(content).hexdigest()})


def _rows(campaign: Campaign, sources: _Sources, model: Model) -> DataFrame:
    """One row per unit that has a score: features, assigned_at, effects, gate of consent, level and reason.

    The training table is read as it was scored, and may hold units that were erased since; scores hold none of them.
    """
    lake, versions = campaign.lake, sources.versions
    mine = (F.col("model_name") == sources.scored.model_name) & (F.col(RUN_ID) == sources.scored.run_id)
    scores = lake.read(SCORES_TABLE, versions[SCORES_TABLE]).where(mine)
    effect = F.struct("uplift", "uplift_se", "low_support")
    each = [
        F.max(F.when(F.col(TREATMENT) == level, effect)).alias(f"{_PREFIX}{k}")
        for k, level in enumerate(model.levels.treated)
    ]
    training = campaign.training_set(sources.scored.feature_version)
    rows = training.select(UNIT, "assigned_at", *model.roles.features).join(scores.groupBy(UNIT).agg(*each), UNIT)
    rows = sources.gate.judged(rows)
    if sources.plan is None:
        nothing = F.lit(None).cast("string")
        return rows.withColumns({"_planned": nothing, "_reason": nothing})
    plan = lake.read(DECISIONS_TABLE, versions[DECISIONS_TABLE]).where(
        (F.col(CAMPAIGN) == campaign.name) & (F.col(RUN_ID) == sources.plan)
    )
    decided = plan.select(UNIT, F.col(TREATMENT).alias("_planned"), F.col("reason").alias("_reason"))
    return rows.join(decided, UNIT, "left")


def _units(table: pa.Table, model: Model) -> Iterator[tuple[str, StoredUnit]]:
    """Units of a collected frame; NaN is not known, as null is."""
    levels = [f"{_PREFIX}{k}" for k in range(len(model.levels.treated))]
    for batch in table.to_batches(max_chunksize=10_000):
        features = [batch.column(name).to_pylist() for name in model.roles.features]
        at = batch.column("assigned_at").cast(pa.timestamp("us")).cast(pa.int64()).to_pylist()
        effects = [batch.column(name).to_pylist() for name in levels]
        plan = zip(batch.column("_planned").to_pylist(), batch.column("_reason").to_pylist(), strict=True)
        units = batch.column(UNIT).to_pylist()
        columns = zip(units, zip(*features, strict=True), at, zip(*effects, strict=True), plan, strict=True)
        for unit, values, moment, by_level, (level, reason) in columns:
            scores = tuple(
                (_known(one["uplift"]), _known(one["uplift_se"]), bool(one["low_support"])) for one in by_level if one
            )
            yield (
                str(unit),
                StoredUnit(
                    tuple(map(_feature, values)),
                    0 if moment is None else moment,
                    scores if len(scores) == len(levels) else None,
                    None if level is None else (level, reason),
                ),
            )


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value


def _feature(value: Any) -> float | str | None:
    return value if value is None or isinstance(value, str) else _known(float(value))


def _averages(table: pa.Table, levels: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """{level: [mean effect, error about it of a unit of which nothing is known]}; levels nobody has are left out."""
    averages = {}
    for k, level in enumerate(levels):
        column = table.column(f"{_PREFIX}{k}")  # null where a unit lacks the level
        parts = (pc.struct_field(column, name).to_numpy() for name in ("uplift", "uplift_se"))
        effect, error = (np.asarray(part, np.float64) for part in parts)
        known = np.isfinite(effect) & np.isfinite(error)
        if known.any():
            spread = math.sqrt(float(np.mean(error[known] ** 2) + np.var(effect[known])))
            averages[level] = (float(effect[known].mean()), spread)
    return averages


def _policy(campaign: Campaign, sources: _Sources, levels: tuple[str, ...]) -> dict[str, Any]:
    """What a decision on fresh features reckons with; without `price` the plan's own decisions stand.

    rules  whether the plan has rules that bar units, which nobody has applied to a unit without a plan
    price  what a unit of money is worth at the plan's limits. Known where all limits are of money and every level
           costs the same for all units, or where there is no limit at all.
    """
    config = campaign.config
    facts: dict[str, Any] = {"purpose": sources.gate.purpose, "required": sources.gate.required}
    rules = config.policy.exclude or config.policy.contacts is not None or config.policy.global_holdout
    facts |= {"planned": sources.plan is not None, "rules": bool(rules)}
    try:
        value = campaign.outcome_value
    except ConfigError:
        return facts
    limits, costs = config.policy.all_limits, config.economics.cost
    plain = all(one.spend is not None and one.level is None and one.segment is None for one in limits)
    if not plain or config.policy.costs_by_unit or config.policy.bound != "expected" or not set(levels) <= set(costs):
        return facts
    if limits and sources.plan is None:
        return facts
    price = 0.0
    if limits and sources.plan is not None:
        prices = campaign.lake.read(gold_table("policy_limits")).where(F.col(RUN_ID) == sources.plan)
        price = float(sum(row["price"] for row in prices.select("price").collect()))
    net = config.policy.objective == "profit"
    return {**facts, "value": value, "cost": {level: costs[level] for level in levels}, "net": net, "price": price}


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Make a version of the online store and switch to it; with the same inputs as the served one nothing happens."""
    config = campaign.config
    check_plain_ids(config)
    signing_key(config.governance.audit)  # no unit leaves without an entry
    with publishing(serving_folder(config)):  # what is read within is no older than what another run published
        return _publish(campaign, progress, run_id)


def _publish(campaign: Campaign, progress: ProgressCallback, run_id: str | None) -> JobResult:
    config = campaign.config
    folder, url = serving_folder(config), config.serving.redis
    sources = _sources(campaign)
    model = campaign.registry.load(sources.model)
    content, policy = model.to_bytes(), _policy(campaign, sources, model.levels.treated)
    inputs: dict[str, Any] = {"versions": dict(sources.versions), "scores": sources.scored.run_id}
    inputs["plan"] = sources.plan
    if trial := _on_trial(campaign, sources.model):
        check_challenger(model, trial.model, trial.facts["version"])
        inputs["challenger"] = dict(trial.facts)
    facts = {"campaign": campaign.name, "redis": url is not None, "policy": policy}
    run_id = run_id or derive_run_id("publish", facts, model=sources.model.sha256, **inputs)
    manifest = Manifest(
        campaign.name,
        run_id.replace("-", "_"),
        model.roles.outcome,
        tuple((one.name, "text" if one.categorical else "number") for one in model.bins),
        model.levels.names,
        {"name": sources.model.name, "version": sources.model.version, "sha256": hashlib.sha256(content).hexdigest()},
        {},
        (),
        policy,
        {**inputs, "model": sources.model.sha256},
        challenger=trial.facts if trial else None,
    )
    redis = None if url is None else redis_client(url)
    served = published_already(folder, manifest, redis)
    if served is not None:
        did: dict[str, Any] = {"published": f"already, as {served}"}
    else:
        progress(f"reading units scored by {sources.model.name} version {sources.model.version}")
        rows = _rows(campaign, sources, model)
        table = rows.where(F.col(GATE) == MAY).drop(GATE).toArrow()
        manifest = _of_units(manifest, table, held_back(units_by_gate(rows)))
        progress(f"publishing {len(table):,} units")
        units = _units(table, model)
        units = with_slice(units, manifest, trial.model) if trial else units
        result = publish_version(folder, manifest, content, units, redis, trial.content if trial else None)
        served = result.version
        did = {"written": result.written, "unchanged": result.unchanged, "removed": result.removed}
    manifest = read_manifest(folder, served)
    versions = {"model": sources.model.name, "version": sources.model.version, "plan": sources.plan or "none"}
    versions |= {"challenger": manifest.challenger["version"]} if manifest.challenger else {}
    left = {"held_back": dict(manifest.held_back) or 0, "purpose": sources.gate.purpose}
    details = {"units": manifest.units, **left}
    # A run that was killed before this left no entry: the next one, which publishes nothing, adds it.
    versions_read = {**versions, "consent_version": sources.gate.version}
    event = AuditEvent("", "publish", str(folder), "not stated", "", run_id, versions_read, details)
    record_event(config, campaign.lake, event)
    return JobResult.of("publish", run_id, **versions, **details, **did, folder=str(folder))


def _of_units(manifest: Manifest, table: pa.Table, held: Mapping[str, int]) -> Manifest:
    """The manifest with what the units tell."""
    reasons = {reason for reason in table.column("_reason").unique().to_pylist() if reason is not None}
    barred = tuple(sorted(reasons - {CHOSEN, NOT_WORTH}))
    levels = manifest.levels[1:]
    free = pc.invert(pc.is_in(table.column("_reason"), pa.array(barred, pa.string())))
    curve = _spend(table.filter(free), manifest)
    return replace(manifest, averages=_averages(table, levels), barred=barred, held_back=held, spend=curve)


def _spend(table: pa.Table, manifest: Manifest) -> tuple[tuple[float, float], ...]:
    """What a unit of the table costs at each price of money; nothing where costs differ by unit."""
    facts = manifest.policy
    if "price" not in facts:
        return ()
    columns = (table.column(f"{_PREFIX}{k}") for k in range(len(manifest.levels) - 1))
    effects = [pc.struct_field(column, "uplift").to_numpy().astype(np.float64) for column in columns]
    costs = np.array([facts["cost"][level] for level in manifest.levels[1:]])
    return spend_curve(np.column_stack(effects), costs, facts["value"], facts["net"])


if __name__ == "__main__":
    main_job(run)
