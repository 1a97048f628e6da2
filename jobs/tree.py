"""Grow a policy tree: a few questions that say which level a unit gets, and what they bring to other units.

Reads the hold-out of silver.training_<campaign>, the champion (for its features' bins) and fits outcome models on the
training split; overwrites silver.rewards_<campaign>, appends to gold.policy_tree and gold.uplift_metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config
from uplift_spark.console import main_job
from uplift_spark.errors import ConfigError
from uplift_spark.evaluation.lift_tables import as_arrow
from uplift_spark.evaluation.spark import describe_arms, resampling_hash, score_columns
from uplift_spark.evaluation.summary import interval, number
from uplift_spark.forest.binning import FeatureBins
from uplift_spark.forest.forest import Model
from uplift_spark.lake.schemas import gold_table, silver_table
from uplift_spark.learners.spark import fit_outcome_model, reward_frame
from uplift_spark.policy.spark import tree_of, values_of
from uplift_spark.policy.trees import PolicyTree, TreeValue
from uplift_spark.registry.models import Registered
from uplift_spark.roles import CAMPAIGN, TREATMENT, UNIT
from uplift_spark.runtime import JobResult, ProgressCallback, no_progress

POLICY_TREE, TREE_GAIN = "policy_tree", "policy_tree_gain"


@dataclass(frozen=True)
class TreeInputs:
    """The training table at a version, and the champion, whose levels and bins of features the tree uses.

    worth  value of one unit more of the outcome and cost of every level in the plan's objective
    """

    campaign: Campaign
    model: Registered
    forest: Model
    training: DataFrame
    data: Mapping[str, int]
    worth: tuple[float, list[float]]

    @property
    def config(self) -> Config:
        return self.campaign.config

    @property
    def features(self) -> list[FeatureBins]:
        """Those the tree may ask for."""
        wanted = self.config.tree.features
        return [one for one in self.forest.bins if not wanted or one.name in wanted]


def tree_inputs(campaign: Campaign) -> TreeInputs:
    """Raises ConfigError without a champion, for features it does not have, without the value and costs that profit
    needs; costs by unit (`policy.cost`) are no part of a tree."""
    config, table, model = campaign.config, campaign.training_table, campaign.champion
    version = campaign.lake.version(table)
    forest = campaign.registry.load(model).of(config.roles.outcome)
    known = [one.name for one in forest.bins]
    if unknown := sorted(set(config.tree.features) - set(known)):
        raise ConfigError(f"tree.features names {unknown}, none of the model's: choose from {', '.join(known)}")
    treated = forest.levels.treated
    cost = [0.0] * len(treated) if config.policy.objective == "outcome" else campaign.fixed_costs(treated)
    worth = campaign.outcome_value, [0.0, *cost]
    return TreeInputs(campaign, model, forest, campaign.training_set(version), {table: version}, worth)


def rewarded(inputs: TreeInputs, progress: ProgressCallback) -> DataFrame:
    """Rewards of the hold-out's units (`learners.spark.reward_frame`), and which of them grow the tree: by hash of the
    unit, or of its cluster."""
    config, roles, levels = inputs.config, inputs.forest.roles, inputs.forest.levels
    spec = inputs.campaign.evaluation_spec
    train, holdout = (inputs.training.where(F.col("split") == split) for split in ("train", "holdout"))
    arms = describe_arms(holdout, spec)
    progress("outcome models for what is expected of every unit")
    nuisance = fit_outcome_model(train, roles.over_levels, levels, inputs.forest.bins, config.seed)
    unit_columns = score_columns(levels.names, roles.outcome, arms)
    half = F.pmod(F.xxhash64(F.col(config.roles.cluster or UNIT), F.lit(config.seed)), F.lit(2)) == 0
    hashed = resampling_hash(spec).alias("unit_hash")
    rows = holdout.select(UNIT, half.alias("grows"), hashed, *(f"`{name}`" for name in roles.features), *unit_columns)
    return reward_frame(rows, (UNIT, "grows", "unit_hash"), nuisance, inputs.features, inputs.worth)


@dataclass(frozen=True)
class PolicyTreeResult:
    """A tree, and what it brings to units that had no part in growing it, over each level for all."""

    inputs: TreeInputs
    tree: PolicyTree
    values: list[TreeValue]

    def tables(self, spark: SparkSession) -> dict[str, DataFrame]:
        """What to write to gold."""
        config = self.inputs.config
        metrics = pd.DataFrame(
            [
                (POLICY_TREE, config.roles.outcome, v.against, TREE_GAIN, v.estimate, v.lower, v.upper)
                for v in self.values
            ],
            columns=["model_version", "outcome", TREATMENT, "metric", "value", "lower", "upper"],
        )
        rows = pd.DataFrame(self.tree.rows())
        texts = dict.fromkeys(("feature", "operator", "category", "question", "action"), "string")
        rows = rows.astype({**texts, "yes": "Int64", "no": "Int64", "threshold": "float64"})
        nodes = as_arrow(rows, **{CAMPAIGN: config.campaign})
        return {"policy_tree": spark.createDataFrame(nodes), "uplift_metrics": spark.createDataFrame(as_arrow(metrics))}

    @property
    def summary(self) -> str:
        """The rules, and their worth in words."""
        unit = self.inputs.campaign.gain_unit
        lines = [self.tree.text(), "", f"On the other half of the hold-out, per unit ({unit}):"]
        for value in self.values:
            best = ", the best single level" if value.against == self.tree.levels[self.tree.constant] else ""
            against = f"  over {value.against} for all{best}"
            lines.append(f"{against}: {number(value.estimate)} ({interval(value.lower, value.upper)})")
        return "\n".join(lines)


def grow_policy_tree(inputs: TreeInputs, rewards: DataFrame) -> PolicyTreeResult:
    """The tree of one half of the units, valued on the other. Raises like `policy.spark.tree_of`."""
    section, names = inputs.config.tree, inputs.forest.levels.names
    mine, others = rewards.where("grows"), rewards.where("not grows")
    tree = tree_of(mine, inputs.features, names, section.depth, section.min_units, section.groups)
    return PolicyTreeResult(inputs, tree, values_of(others, tree, inputs.campaign.evaluation_spec.cluster_draws))


def run(campaign: Campaign, progress: ProgressCallback = no_progress, run_id: str | None = None) -> JobResult:
    """Grow the tree on one half of the hold-out and value it on the other."""
    lake, inputs = campaign.lake, tree_inputs(campaign)
    run_id = run_id or campaign.run_id("tree", data=inputs.data, model=inputs.model.version)
    staged = lake.write(silver_table("rewards", campaign.name), rewarded(inputs, progress), run_id, mode="overwrite")
    progress(f"the best tree for {staged.rows:,} units of the hold-out")
    tree = grow_policy_tree(inputs, lake.read(staged.table, staged.version))
    written = [lake.write(gold_table(name), frame, run_id) for name, frame in tree.tables(lake.spark).items()]
    return JobResult.of("tree", run_id, staged, *written, bins_of=inputs.model.version, summary=tree.summary)


if __name__ == "__main__":
    main_job(run)
