"""Grow a policy tree: a few questions that say which level a unit gets, and what they bring to other units.

Reads the hold-out of silver.training_<campaign>, the champion (for its features' bins) and fits a T-learner on the
training split; overwrites silver.rewards_<campaign>, appends to gold.policy_tree and gold.uplift_metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import fixed_costs, outcome_value, setup_of
from uplift_spark.cli import main_job
from uplift_spark.config import Config
from uplift_spark.errors import ConfigError
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.metrics import describe_arms, drawn_by, seen_columns
from uplift_spark.evaluation.report import interval, number
from uplift_spark.forest.binning import FeatureBins
from uplift_spark.forest.forest import Model
from uplift_spark.lake.tables import Lake
from uplift_spark.learners.spark import fit_t_learner, reward_frame
from uplift_spark.policy.spark import tree_of, values_of
from uplift_spark.policy.trees import PolicyTree, Value
from uplift_spark.registry.models import Registered, Registry
from uplift_spark.roles import EXPERIMENT, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, derive_run_id, silent

TREE, GAIN = "policy_tree", "policy_tree_gain"


@dataclass(frozen=True)
class Inputs:
    """The training table at a version, and the champion, whose levels and bins of features the tree uses.

    worth  value of one unit of the outcome and cost of every level in the plan's objective
    """

    config: Config
    model: Registered
    forest: Model
    training: DataFrame
    data: Mapping[str, int]
    worth: tuple[float, list[float]]

    @property
    def features(self) -> list[FeatureBins]:
        """Those the tree may ask for."""
        wanted = self.config.tree.features
        return [one for one in self.forest.bins if not wanted or one.name in wanted]


def inputs_of(config: Config, lake: Lake, registry: Registry) -> Inputs:
    """Raises ConfigError without a champion, for features it does not have, without the value and costs that profit
    needs; costs by unit (`policy.cost`) are no part of a tree."""
    table = config.training_table
    version = lake.version(table)
    model = registry.find(config.model_name)
    forest = registry.load(model).of(config.roles.outcome)
    known = [one.name for one in forest.bins]
    if unknown := sorted(set(config.tree.features) - set(known)):
        raise ConfigError(f"tree.features names {unknown}, none of the model's: choose from {', '.join(known)}")
    treated = forest.levels.treated
    cost = [0.0] * len(treated) if config.policy.objective == "outcome" else fixed_costs(config, treated)
    worth = outcome_value(config), [0.0, *cost]
    return Inputs(config, model, forest, lake.read(table, version), {table: version}, worth)


def rewarded(given: Inputs, say: ProgressCallback) -> DataFrame:
    """Rewards of the hold-out's units (`learners.spark.reward_frame`), and which of them grow the tree: by hash of the
    unit, or of its cluster."""
    config, roles, levels = given.config, given.forest.roles, given.forest.levels
    train, holdout = (given.training.where(F.col("split") == split) for split in ("train", "holdout"))
    arms = describe_arms(holdout, setup_of(config))
    say("a T-learner for what is expected of every unit")
    nuisance = fit_t_learner(train, roles, levels, given.forest.bins, config.seed)
    seen = seen_columns(levels.names, roles.outcome, arms)
    half = F.pmod(F.xxhash64(F.col(config.roles.cluster or UNIT), F.lit(config.seed)), F.lit(2)) == 0
    hashed = drawn_by(setup_of(config)).alias("unit_hash")
    rows = holdout.select(UNIT, half.alias("grows"), hashed, *(f"`{name}`" for name in roles.features), *seen)
    return reward_frame(rows, (UNIT, "grows", "unit_hash"), nuisance, given.features, given.worth)


@dataclass(frozen=True)
class Grown:
    """A tree, and what it brings to units that had no part in growing it, over each level for all."""

    given: Inputs
    tree: PolicyTree
    values: list[Value]

    def tables(self, spark: SparkSession) -> dict[str, DataFrame]:
        """What to write to gold."""
        config = self.given.config
        metrics = pd.DataFrame(
            [(TREE, config.roles.outcome, v.against, GAIN, v.estimate, v.lower, v.upper) for v in self.values],
            columns=["model_version", "outcome", TREATMENT, "metric", "value", "lower", "upper"],
        )
        rows = pd.DataFrame(self.tree.rows())
        texts = dict.fromkeys(("feature", "operator", "category", "asks", "action"), "string")
        rows = rows.astype({**texts, "yes": "Int64", "no": "Int64", "threshold": "float64"})
        nodes = as_arrow(rows, **{EXPERIMENT: config.campaign})
        return {"policy_tree": spark.createDataFrame(nodes), "uplift_metrics": spark.createDataFrame(as_arrow(metrics))}

    @property
    def summary(self) -> str:
        """The rules, and their worth in words."""
        unit = "money" if self.given.config.policy.objective == "profit" else self.given.config.roles.outcome
        lines = [self.tree.text(), "", f"On the other half of the hold-out, per unit ({unit}):"]
        for value in self.values:
            best = ", the best single level" if value.against == self.tree.levels[self.tree.constant] else ""
            against = f"  over {value.against} for all{best}"
            lines.append(f"{against}: {number(value.estimate)} ({interval(value.lower, value.upper)})")
        return "\n".join(lines)


def grown(given: Inputs, rewards: DataFrame) -> Grown:
    """The tree of one half of the units, valued on the other. Raises like `policy.spark.tree_of`."""
    asked, names = given.config.tree, given.forest.levels.names
    mine, others = rewards.where("grows"), rewards.where("not grows")
    tree = tree_of(mine, given.features, names, asked.depth, asked.min_units, asked.groups)
    return Grown(given, tree, values_of(others, tree, setup_of(given.config).cluster_draws))


def run(config: Config, lake: Lake, run_id: str | None = None, say: ProgressCallback = silent) -> JobResult:
    """Grow the tree on one half of the hold-out and value it on the other."""
    given = inputs_of(config, lake, Registry.of(config))
    run_id = run_id or derive_run_id("tree", config, data=given.data, model=given.model.version)
    staged = lake.write(f"silver.rewards_{config.campaign}", rewarded(given, say), run_id, mode="overwrite")
    say(f"the best tree for {staged.rows:,} units of the hold-out")
    tree = grown(given, lake.read(staged.table, staged.version))
    written = [lake.write(f"gold.{name}", frame, run_id) for name, frame in tree.tables(lake.spark).items()]
    return JobResult.of("tree", run_id, staged, *written, bins_of=given.model.version, summary=tree.summary)


if __name__ == "__main__":
    main_job(run)
