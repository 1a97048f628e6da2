"""What all campaigns of a programme bring together: units that no campaign treats against all others. No Spark.

A campaign's own trial says what it brings beside all others that run. What the programme brings is another question:
two campaigns may move the same purchase, or only both of them one. A holdout over all campaigns (`ProgrammeHoldout`)
answers it as a trial of two arms, which follow from the ids alone. Beside it stands the sum of the single effects; the
difference is what campaigns add to, or take from, each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import norm

from uplift_spark.errors import ConfigError, hint
from uplift_spark.experiments.assignment import ProgrammeHoldout, in_programme_holdout
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns, trial_sums
from uplift_spark.experiments.health import ReadoutDesign
from uplift_spark.experiments.readout import (
    GUARDRAIL,
    PRIMARY,
    SECONDARY,
    MetricReadout,
    ReadoutMetric,
    TrialReadout,
    TrialSums,
    read_sums,
)
from uplift_spark.experiments.sequential import StoppingRule
from uplift_spark.roles import TREATMENT

PROGRAMME_ROLE = "programme"
HELD_OUT_ARM, ALL_CAMPAIGNS = "held out", "all campaigns"
SUM_OF_SINGLES, BEYOND_SUM = "sum of single effects", "beyond the sum"


@dataclass(frozen=True)
class SingleEffect:
    """What one campaign's own readout says of a metric.

    campaign  its name
    metric    as the programme's readout names it
    arm       level, or the policy of a targeted campaign
    units     that got it because of the campaign
    effect    of a unit, against the control
    error     standard error
    """

    campaign: str
    metric: str
    arm: str
    units: float
    effect: float
    error: float


@dataclass(frozen=True)
class ProgrammeReadout:
    """What a programme brings.

    trial  held-out units against all others: findings and figures
    rows   of role `programme`: for each metric the total effect of a unit that is not held out, the sum of the single
           effects by the same units, and the difference
    """

    trial: TrialReadout
    rows: tuple[MetricReadout, ...]

    def text(self) -> str:
        """Findings, then a line for each figure."""
        lines = [f"{one.severity}: {one.sentence}" for one in self.trial.findings]
        for one in self.rows:
            share = f" ({one.relative:+.2%})" if math.isfinite(one.relative) else ""
            lines.append(
                f"{one.metric} a unit, {one.arm}: {one.effect:+.5g}{share}, between {one.lower:+.5g} and "
                f"{one.upper:+.5g}, p = {one.p_value:.2g}"
            )
        return "\n".join(lines)


def check_singles(singles: Sequence[SingleEffect], metrics: Sequence[ReadoutMetric]) -> None:
    """Refuse single effects that would be left out of the sum, or make it no number.

    Args:
        singles: Effects of the campaigns' own readouts.
        metrics: By which the programme is read.

    Raises:
        ConfigError: One is of a metric that is not read, not finite, or of units or an error below 0.
    """
    names = [one.name for one in metrics]
    for one in singles:
        about = f"the single effect of campaign {one.campaign}, arm {one.arm}, on {one.metric}"
        if one.metric not in names:
            raise ConfigError(f"{about} is of no metric that the programme is read by: {hint(one.metric, names)}")
        if not (math.isfinite(one.effect) and 0 <= one.units < math.inf and 0 <= one.error < math.inf):
            raise ConfigError(f"{about} needs finite numbers, units and an error of at least 0: correct it")


def programme_metrics(metrics: Sequence[ReadoutMetric]) -> tuple[ReadoutMetric, ...]:
    """Metrics by which a programme is read: those that are means over units, whose effects add up; none is a
    guardrail. Raises ConfigError where none of them is primary."""
    means = [one for one in metrics if one.denominator is None]
    if not any(one.role == PRIMARY for one in means):
        raise ConfigError("a programme is read by means over units, and none is primary: make one the primary metric")
    return tuple(
        replace(one, role=SECONDARY, margin=None, margin_of="relative") if one.role == GUARDRAIL else one
        for one in means
    )


def programme_design(programme: ProgrammeHoldout, alpha: float = 0.05, randomised: str | None = None) -> ReadoutDesign:
    """The trial of two arms that a programme's holdout is; `randomised` names the cluster, where these are held out."""
    shares = {HELD_OUT_ARM: programme.share, ALL_CAMPAIGNS: 1 - programme.share}
    design = ReadoutDesign(shares, stopping=StoppingRule("fixed", alpha))
    return design if randomised is None else replace(design, randomised=randomised)


def programme_readout(
    frame: pd.DataFrame,
    programme: ProgrammeHoldout,
    metrics: Sequence[ReadoutMetric],
    columns: ReadoutColumns | None = None,
    *,
    singles: Sequence[SingleEffect] = (),
    cluster: str | None = None,
    alpha: float = 0.05,
    override: str | None = None,
) -> ProgrammeReadout:
    """Read what all campaigns of a programme bring together.

    Args:
        frame: One row a unit, held out or not, whether a campaign reached it or not; outcomes are totals over the whole
            time of the programme. Units that joined a campaign alone would be no fair comparison.
        programme: The holdout of all campaigns.
        metrics: One of them primary; ratios are left out.
        columns: Names of the frame's columns; the arm follows from the ids.
        singles: Effects of the campaigns' own readouts.
        cluster: What was held out where that is no single unit.
        alpha: Level of intervals, two-sided.
        override: Why a holdout that a check refuses is read all the same.

    Returns:
        The figures.

    Raises:
        ConfigError: As `frames.readout`.
        DataError: As `frames.readout`.

    Example:
        >>> rng = np.random.default_rng(5)
        >>> frame = pd.DataFrame({"unit_id": [f"u{k}" for k in range(4000)], "orders": rng.poisson(2.0, 4000)})
        >>> held = ProgrammeHoldout("shop", 0.2)
        >>> frame["orders"] += ~in_programme_holdout(frame["unit_id"], held)
        >>> result = programme_readout(frame, held, [ReadoutMetric("orders", "orders", role="primary")])
        >>> print(result.text())
        orders a unit, all campaigns: +1.0574 (+54.65%), between +0.9492 and +1.1655, p = 9.2e-72
    """
    columns = columns or ReadoutColumns()
    if programme.clustered and cluster is None:
        raise ConfigError(f"programme {programme.salt} holds out clusters: name their column in `cluster`")
    key = str(cluster) if programme.clustered else columns.unit
    if key not in frame.columns:
        raise ConfigError(f"column {key!r} is not in the frame: {hint(key, frame.columns)}")
    chosen = programme_metrics(metrics)
    check_singles(singles, chosen)
    held = in_programme_holdout(frame[key].tolist(), programme)
    columns = replace(columns, treatment=TREATMENT, propensity=None, taken=None)
    rows = frame.assign(**{TREATMENT: np.where(held, HELD_OUT_ARM, ALL_CAMPAIGNS)})
    design = programme_design(programme, alpha, cluster if programme.clustered else None)
    sums, facts = trial_sums(rows, chosen, design, columns, ReadingTime(at_end=True))
    trial = read_sums(sums, chosen, design, facts, override=override)
    return programme_figures(trial, sums, singles, alpha)


def programme_figures(
    trial: TrialReadout, sums: TrialSums, singles: Sequence[SingleEffect], alpha: float = 0.05
) -> ProgrammeReadout:
    """Put the sum of the single effects beside the total effect.

    Args:
        trial: Held-out units against all others.
        sums: Behind it.
        singles: Effects of the campaigns' own readouts.
        alpha: Level of intervals, two-sided.

    Returns:
        The figures. Effects of one campaign count as if they erred together, those of several and the total as if
        independent: as all of them rise with what treated units happen to bring, the last interval is rather too wide.
    """
    others = _units(sums)
    rows: list[MetricReadout] = []
    for total in trial.metrics:
        rows.append(replace(total, role=PROGRAMME_ROLE))
        mine = [one for one in singles if one.metric == total.metric]
        if not mine:
            continue
        effect = sum(one.units * one.effect for one in mine) / others
        by_campaign = pd.Series([one.units * one.error for one in mine]).groupby([one.campaign for one in mine]).sum()
        error = math.sqrt(float((by_campaign**2).sum())) / others
        rows.append(_row(total, SUM_OF_SINGLES, effect, error, alpha))
        rows.append(_row(total, BEYOND_SUM, total.effect - effect, math.hypot(total.error, error), alpha))
    return ProgrammeReadout(trial, tuple(rows))


def _units(sums: TrialSums) -> float:
    """Units that are not held out; of clusters those that they hold."""
    moments = sums.moments.sum(1)[1]
    return float(moments.n if sums.counted is None else moments.n * moments.mean[sums.counted])


def _row(total: MetricReadout, arm: str, effect: float, error: float, alpha: float) -> MetricReadout:
    half = float(norm.isf(alpha / 2)) * error
    p = float(2 * norm.sf(abs(effect) / error)) if error > 0 else math.nan
    return MetricReadout(
        total.metric, PROGRAMME_ROLE, arm, control=total.control, treated=total.control + effect, effect=effect,
        error=error, lower=effect - half, upper=effect + half, p_value=p,
        relative=effect / total.control if total.control > 0 else math.nan, relative_lower=math.nan,
        relative_upper=math.nan, p_adjusted=p, saved=0.0, status="open",
    )  # fmt: skip
