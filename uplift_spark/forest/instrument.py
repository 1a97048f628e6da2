"""Complier effects where not everybody who was assigned a level was delivered it: assignment as instrument.

A level's complier effect is what it does to units that take it because they are assigned it: the effect of assignment
on the outcome over that on delivery (Imbens & Angrist 1994), near each unit as in the instrumental forest (Athey,
Tibshirani & Wager 2019, s. 7). Both are effects of one forest, from the same leaves, solved once from sums over
the trees; beside them stand the intention-to-treat effects. Trees are split on the outcome less what deliveries bring
on average, y - τ0 d: the effect of assignment on it is ITT_d(x) (τ(x) - τ0), which differs between units as complier
effects do, where that on y differs with mere delivery, too.

Assumed: assignment moves the outcome through delivery alone, and keeps nobody from being delivered.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.binning import ArrowRows, FeatureBins, Features, encode_features
from uplift_spark.forest.encode import TypedRows, encode
from uplift_spark.forest.forest import Forest, forest_of_parts, model_line
from uplift_spark.forest.modelfile import FORMAT, check_array_names, check_manifest, packed_file, read_file
from uplift_spark.forest.training import Params, fit_rows
from uplift_spark.roles import LEFT, Levels, Roles
from uplift_spark.runtime import ProgressCallback

MIN_INSTRUMENT_T = (
    3.0  # standard errors that the effect on delivery must be from zero for a ratio to be reported (t of 3: F of 9)
)


@dataclass(frozen=True)
class Instrumental:
    """A forest of outcomes `LEFT` and delivery: a model whose effects are those on compliers.

    roles      of assignment and outcome
    overall    τ0, the outcome that a delivery brings on average, as two-stage least squares has it
    delivered  column with whether, or how much of it, a unit was delivered
    """

    forest: Forest
    roles: Roles
    overall: float
    delivered: str

    def __repr__(self) -> str:
        return model_line(self, "Instrumental forest")

    @property
    def kind(self) -> str:
        """See `Model.kind`."""
        return "instrumental_forest"

    @property
    def levels(self) -> Levels:
        """Levels of assignment, control first."""
        return self.forest.levels

    @property
    def bins(self) -> tuple[FeatureBins, ...]:
        """Features, in their order."""
        return self.forest.bins

    @property
    def manifest(self) -> dict[str, Any]:
        """What it is, as plain JSON values."""
        parts = {"overall": self.overall, "delivered": self.delivered, "outcome": self.roles.outcome}
        return {"format": FORMAT, "instrument": parts, "forest": self.forest.manifest}

    def of(self, outcome: str) -> Instrumental:
        """Itself, of the one outcome it has; ConfigError for others."""
        if outcome != self.roles.outcome:
            raise ConfigError(f"the model has no outcome {outcome!r}: it was trained for {self.roles.outcome!r} alone")
        return self

    def effect_arrays(
        self, batch: ArrowRows | Features, threads: int = 1, *, errors: bool = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`complier_effects`: what is weak has low support; which needs errors, requested or not."""
        return self.complier_effects(batch, threads)

    def to_bytes(self) -> bytes:
        """The model file's content; equal models give equal bytes."""
        return packed_file(self.manifest, {"forest": np.frombuffer(self.forest.to_bytes(), np.uint8)})

    @classmethod
    def from_parts(cls, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Instrumental:
        """From what `modelfile.read_file` gives of its file; raises ValueError for parts that do not fit together."""
        check_manifest("instrument", manifest)
        check_array_names(arrays, {"forest"})
        inner, parts = read_file(arrays["forest"].tobytes()), manifest["instrument"]
        forest = forest_of_parts(*inner)
        if inner[0] != manifest["forest"] or forest.roles.outcomes != (LEFT, parts["delivered"]):
            raise ValueError("its forest is not that of its manifest")
        roles = replace(forest.roles, outcome=parts["outcome"], more_outcomes=())
        return cls(forest, roles, parts["overall"], parts["delivered"])

    def intention_to_treat(self, rows: ArrowRows | Features, threads: int = 1) -> np.ndarray:
        """Effect of assignment itself on the outcome, float64 [n, L], without errors."""
        rows = encode_features(rows, self.roles.features, threads)
        left, moved = (
            self.forest.of(name).effect_arrays(rows, threads, errors=False)[0] for name in (LEFT, self.delivered)
        )
        return np.asarray(left + self.overall * moved)

    def complier_effects(
        self, rows: ArrowRows | Features, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(complier effect, standard error, weak) of every row and level, [n, L] each.

        Errors are by the delta method, with the two effects taken to err together as much as they can: what they have
        in common is not known, so intervals are wide rather than narrow. Weak: the effect on delivery is less than
        WEAK of its errors from zero, or support is low; effect and error are NaN there.
        """
        rows = encode_features(rows, self.roles.features, threads)
        estimates = [self.forest.of(name).effect_arrays(rows, threads) for name in (LEFT, self.delivered)]
        (left, left_error, low), (moved, moved_error, few) = estimates
        weak = low | few | ~(np.abs(moved) > MIN_INSTRUMENT_T * moved_error)
        apart = np.where(weak, np.nan, left) / np.where(weak, np.nan, moved)
        error = (left_error + np.abs(apart) * moved_error) / np.abs(moved)
        return self.overall + apart, np.where(weak, np.nan, error), weak


def fit_instrumental(
    table: pa.Table, roles: Roles, delivered: str, params: Params, progress: ProgressCallback = lambda _: None
) -> Instrumental:
    """Train from a trial: `roles` of assignment and outcome, `delivered` a numeric column, 0 where nothing was.

    Raises DataError when delivery is missing, or no level moves it; else like `fit_table`.
    """
    for name in (delivered, roles.outcome):
        if name not in table.column_names:
            raise DataError(f"column {name!r} is missing from the frame: complier effects need it")
    inner = left_roles(roles, delivered)
    rows = encode(table, replace(inner, outcome=roles.outcome), os.cpu_count() or 1)
    left, overall = without_delivery(rows, inner)
    return Instrumental(fit_rows(left, params, progress), roles, overall, delivered)


def left_roles(roles: Roles, delivered: str) -> Roles:
    """Roles of the forest over what `without_delivery` gives. Raises ConfigError for roles with more outcomes, scores,
    or delivery among the features."""
    if roles.more_outcomes or roles.scores:
        raise ConfigError("an instrumental forest has one outcome and no scores: drop more_outcomes and scores")
    return replace(roles, outcome=LEFT, more_outcomes=(delivered,))


def without_delivery(rows: TypedRows, inner: Roles) -> tuple[TypedRows, float]:
    """The rows with `LEFT` in place of the outcome, under the roles of `left_roles`, and τ0.

    rows  have the outcome and delivery as outcomes

    τ0 is by two-stage least squares with an indicator of each level as instruments, rounded to six digits: rows in any
    order then give the same.
    """
    y, (delivered,) = rows.outcomes[rows.roles.outcome], inner.more_outcomes
    d = rows.outcomes[delivered]
    if missing := int(np.count_nonzero(~np.isfinite(d))):
        raise DataError(
            f"column {delivered!r} is null, NaN or infinite in {missing} of {d.size} rows: fill or drop them"
        )
    names, level_code = rows.level_codes()
    weight = np.ones(d.size) if rows.weight is None else rows.weight
    if rows.propensity is not None:
        weight = weight / rows.propensity
    finite = np.where(np.isfinite(y), y, 0.0)  # bad outcomes are counted where all rows are checked, levels too
    known = level_code >= 0
    parts = (weight, weight * d, weight * finite, weight * d**2)
    sums = np.stack([np.bincount(level_code[known], part[known], len(names)) for part in parts])
    overall = two_stage(sums, delivered, d.size)
    outcomes = {LEFT: y - overall * d, delivered: d}
    return replace(rows, roles=inner, outcomes=outcomes), overall


def two_stage(sums: np.ndarray, delivered: str, rows: int) -> float:
    """τ0 from Σw, Σwd, Σwy and Σwd² of every level, [4, K]. DataError where assignment moves no delivery."""
    total = sums[0]
    arms = sums[1] / total
    moved = arms - np.average(arms, weights=total)
    scatter = float(total @ moved**2)
    if not scatter > 1e-12 * float(sums[3].sum()):
        raise DataError(f"column {delivered!r} is the same in all arms of {rows} rows: assignment moves no delivery")
    return float(f"{float(sums[2] @ moved) / scatter:.6g}")


def complier_average(
    on_outcome: np.ndarray, on_delivery: np.ndarray, cluster: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(average complier effect, standard error) of each level, [L]: the ratio of averages of scores.

    on_outcome, on_delivery  unbiased scores of the effects of assignment on either, float64 [n, L], such as
                             `explain.trial_scores` or differences of doubly robust ones (Frölich 2007)
    cluster                  int [n]: units of one are not independent
    """
    n = len(on_outcome)
    moved = on_delivery.mean(axis=0)
    effect = on_outcome.mean(axis=0) / moved
    influence = (on_outcome - effect * on_delivery) / moved
    if cluster is not None:
        cluster_code = np.unique(cluster, return_inverse=True)[1]
        influence = np.stack([np.bincount(cluster_code, column) for column in influence.T], axis=1)
    groups = len(influence)
    return effect, np.sqrt((influence**2).sum(axis=0) * groups / (groups - 1)) / n
