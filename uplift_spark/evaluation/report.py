"""The report of a campaign as one page: what to do, for whom, what it brings, how sure, and what the data do not show.

`render_page` writes the page from rows of gold tables; it needs no network and no script. `level_verdict`
decides what is advised about one level. Which deciles to treat is decided by predictions, and judged by the outcomes
of a hold-out that had no say in it.

Every figure stands in a `<data>` element: `value` is the number as it is in the table, `data-of` names its source.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from uplift_spark.evaluation.drivers import DRIVER_COLUMNS, driver_words
from uplift_spark.evaluation.html_page import between, figure, page_template
from uplift_spark.evaluation.lift_tables import SEGMENT
from uplift_spark.evaluation.svg import bars_svg, curves_svg, whiskers_svg
from uplift_spark.roles import Direction, benefit, benefit_interval

PROFILE_COLUMNS = ("treatment", "bucket", "feature", "category", "n", "value", "spread")
"""Columns of a profile: mean, or share of a category, and spread of a feature in a tenth of the ranking."""

_STRONG = 0.15  # standard deviations: a smaller difference is not worth a manager's attention
_MOST_TRAITS, _MOST_BUCKETS, _MOST_SENTENCES = 6, 8, 5
_SIGNIFICANT = 0.05
_SHARES = (0.1, 0.3, 0.5)  # of the units, for a plan without a budget


@dataclass(frozen=True)
class PageData:
    """What a page is made from.

    lift, curve, metrics  rows of gold.lift_table, gold.uplift_curve and gold.uplift_metrics of one run
    profile   rows as of `profile_of_frame`: tenths 1 and 10 of each level's ranking, and all
    plan      rows of gold.policy_curve of the campaign's newest plan; empty without one
    drivers   rows of gold.lift_driver of the run; empty where the model has none
    verdict   of the trial's newest reading, in words; empty where it was not read
    trial     rows of gold.readout of that reading; empty where it was broken
    units     in the training table
    rates     outcomes that are 0 or 1: shown in percentage points
    value     {outcome: money that one is worth}       cost  {level: money that treating one unit costs}
    direction decrease where less of the outcome is better: gains are what it falls by
    facts     (label, text) of how it was done         caveats  sentences on what the figures rest on
    """

    campaign: str
    control: str
    lift: pd.DataFrame
    curve: pd.DataFrame
    metrics: pd.DataFrame
    units: int
    date: str
    profile: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(PROFILE_COLUMNS)))
    plan: pd.DataFrame = field(default_factory=pd.DataFrame)
    drivers: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(DRIVER_COLUMNS)))
    verdict: str = ""
    trial: pd.DataFrame = field(default_factory=pd.DataFrame)
    rates: frozenset[str] = frozenset()
    value: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    direction: Direction = "increase"
    facts: Sequence[tuple[str, str]] = ()
    caveats: Sequence[str] = ()

    @property
    def outcome(self) -> str:
        """The outcome that the model predicts: the first of the lift table."""
        return "" if self.lift.empty else str(self.lift["outcome"].iloc[0])

    @property
    def levels(self) -> list[str]:
        """Treated levels in the lift table's order."""
        return list(dict.fromkeys(self.lift["treatment"]))

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What is advised about each level."""
        return [level_verdict(self, level) for level in self.levels]

    @property
    def best(self) -> Verdict | None:
        """The level to use: of those that are shown to pay the one predicted to bring most, else of all."""
        return max(self.verdicts, key=lambda one: (one.is_advised, one.promise), default=None)

    def rows(self, level: str, cut: str, outcome: str | None = None) -> pd.DataFrame:
        """Rows of the lift table of one level, cut and outcome."""
        mine = (self.lift["treatment"] == level) & (self.lift["cut"] == cut)
        return self.lift[mine & (self.lift["outcome"] == (outcome or self.outcome))]

    def metric(self, name: str, level: str, outcome: str | None = None) -> dict[str, float]:
        """Value, lower and upper of one metric; NaN where the table has none."""
        table = self.metrics
        mine = (
            (table["metric"] == name) & (table["treatment"] == level) & (table["outcome"] == (outcome or self.outcome))
        )
        row = table[mine]
        return {c: float(row[c].iloc[0]) if len(row) else np.nan for c in ("value", "lower", "upper")}

    def driver_rows(self, level: str) -> pd.DataFrame:
        """Drivers of one level over all units, the first features first."""
        rows = self.drivers
        return rows[(rows["treatment"] == level) & (rows["cut"] == "all")].sort_values("rank", kind="stable")

    def segment_drivers(self, level: str) -> list[str]:
        """Sentences of what is proven to drive a level's lift in segments, the surest first."""
        rows = self.drivers
        mine = rows[(rows["treatment"] == level) & (rows["cut"] != "all") & rows["proven"].eq(True)]
        return [str(one) for one in mine.sort_values("adjusted_p", kind="stable")["sentence"].head(_MOST_SENTENCES)]

    def gain(self, level: str, share: float) -> dict[str, float]:
        """Gain per unit of the population at a share of units treated: the curve's point next to it."""
        mine = self.curve[(self.curve["treatment"] == level) & (self.curve["outcome"] == self.outcome)]
        if mine.empty:
            return dict.fromkeys(("gain", "gain_lower", "gain_upper"), np.nan)
        row = mine.loc[(mine["fraction"] - share).abs().idxmin()]
        return {c: float(row[c]) for c in ("gain", "gain_lower", "gain_upper")}


@dataclass(frozen=True)
class Verdict:
    """What is advised about one level.

    action   everyone, best, none, unproven or unknown        share  of the units to treat, by the predictions
    ranked   whether the hold-out shows that some respond more than others
    effect   on the outcome, of treating all: value, lower, upper
    gain     of treating `share`, per unit of the population: benefit, see `roles.benefit`
    net      money per unit of the population; NaN without value and cost
    promise  predicted net gain, by which levels are compared
    """

    level: str
    action: str
    share: float
    ranked: bool
    effect: Mapping[str, float]
    gain: Mapping[str, float]
    net: Mapping[str, float]
    promise: float

    @property
    def is_advised(self) -> bool:
        """Whether treating somebody is advised."""
        return self.action in ("everyone", "best")

    @property
    def _to_pay(self) -> str:
        return " to pay" if np.isfinite(self.net["value"]) else ""

    @property
    def badge(self) -> str:
        """The advice in a few words."""
        percent = f"{100 * self.share:.0f} %"
        return {
            "everyone": f"Give {self.level} to everyone",
            "best": f"Give {self.level} to the best {percent}",
            "none": f"Do not use {self.level}",
            "unproven": f"{self.level} is not proven{self._to_pay}: do not roll out yet",
            "unknown": f"Too few units to judge {self.level}",
        }[self.action]


def level_verdict(data: PageData, level: str) -> Verdict:
    """What is advised about one level.

    Args:
        data: Tables of the campaign.
        level: A treated level of the lift table.

    Returns:
        The verdict: treat the tenths whose predicted effect is worth more than treating costs (all or none where the
        hold-out does not show that the ranking works), if the hold-out's outcomes show with 95 % confidence that this
        pays. Without value or cost an effect above zero pays; below zero where less of the outcome is better.
    """
    effect, qini = data.metric("ate", level), data.metric("qini", level)
    ranked = bool(qini["lower"] > 0)
    worth, price = data.value.get(data.outcome, np.nan), data.cost.get(level, np.nan)
    in_money = bool(np.isfinite(worth) and np.isfinite(price))
    predicted = benefit(data.rows(level, "decile")["predicted_uplift"].to_numpy(np.float64), data.direction)
    margin = predicted * (worth if in_money else 1.0)
    margin = margin - (price if in_money else 0.0)
    whole = benefit(effect["value"], data.direction)
    average = whole * worth - price if in_money else whole
    pays = float((margin > 0).mean()) if ranked and len(margin) else float(average > 0)
    gain = data.gain(level, pays)
    net = {
        name: gain[f"gain{end}"] * worth - pays * price if in_money else np.nan
        for name, end in (("value", ""), ("lower", "_lower"), ("upper", "_upper"))
    }
    judged = net if in_money else {"value": gain["gain"], "lower": gain["gain_lower"], "upper": gain["gain_upper"]}
    promise = float(np.clip(margin, 0, None).mean()) if ranked and len(margin) else max(float(average), 0.0)
    _, most = benefit_interval(effect["lower"], effect["upper"], data.direction)
    everyone = most * worth - price if in_money else most
    action = _action(effect, pays, judged["lower"], everyone)
    return Verdict(level, action, pays, ranked, effect, gain, net, 0.0 if np.isnan(promise) else promise)


def _action(effect: Mapping[str, float], share: float, lower: float, everyone_at_most: float) -> str:
    if not all(map(np.isfinite, effect.values())):
        return "unknown"
    if share > 0 and lower > 0:
        return "everyone" if share == 1 else "best"
    return "none" if share == 0 and everyone_at_most < 0 else "unproven"


# --------------------------------------------------------------------------------------------------------------------
# Figures and sentences.


def _sentence(text: str, *parts: object) -> Markup:
    """A sentence with escaped parts."""
    return Markup(text).format(*parts)


def decision_words(data: PageData) -> list[Markup]:
    """The advice in sentences: whom, what it brings and costs for all units of the training table, how sure."""
    best = data.best
    if best is None:
        return [Markup("The tables hold no level to judge: run the campaign's jobs first.")]
    if best.action == "unknown":
        return [_sentence("{} has too few units in one of its arms for any figure.", best.level)]
    words = [_effect_words(data, best)]
    if best.is_advised:
        words.append(_gain_words(data, best))
    elif best.action == "none":
        words.append(_sentence("Even the upper end of the interval does not pay for what {} costs.", best.level))
    else:
        words.append(
            Markup(
                "What treating would bring is not shown to be more than it costs: its 95 % interval reaches below zero."
            )
        )
    if not best.ranked:
        words.append(
            Markup("The data do not show that some units respond more than others: decide for all of them alike.")
        )
    elif best.action == "best":
        words.append(
            Markup("These are whole tenths of the units; a plan (<code>uplift policy</code>) chooses unit by unit.")
        )
    return words


def _effect_words(data: PageData, verdict: Verdict) -> Markup:
    level, effect, source = verdict.level, verdict.effect, "metrics"
    if data.outcome in data.rates:
        fewer = effect["value"] < 0
        scale, ends = (-1000, ("upper", "lower")) if fewer else (1000, ("lower", "upper"))
        return _sentence(
            "With {}, {} {} of 1,000 units have the outcome <em>{}</em> (95 % interval {}).",
            level, figure(effect["value"], source, scale), "fewer" if fewer else "more", data.outcome,
            between(effect[ends[0]], effect[ends[1]], source, scale),
        )  # fmt: skip
    text = "{} changes the <em>{}</em> of a unit by {} on average (95 % interval {})."
    return _sentence(
        text, level, data.outcome, figure(effect["value"], source), between(effect["lower"], effect["upper"], source)
    )


def _gain_words(data: PageData, verdict: Verdict) -> Markup:
    n, share = data.units, verdict.share
    whom = "all" if share == 1 else f"the best {100 * share:.0f} %"
    gain = {name: n * value for name, value in verdict.gain.items()}
    more = "more" if data.direction == "increase" else _sentence("less <em>{}</em>", data.outcome)
    words = _sentence(
        "Giving it to {} of {} units brings {} {} (95 % interval {})",
        whom, figure(n, "units"), figure(gain["gain"], "curve * units"), more,
        between(gain["gain_lower"], gain["gain_upper"], "curve * units"),
    )  # fmt: skip
    if not np.isfinite(verdict.net["value"]):
        return words + Markup(". What one is worth or costs is not configured (<code>economics</code>).")
    net = {name: n * value for name, value in verdict.net.items()}
    cost = n * share * data.cost[verdict.level]
    return words + _sentence(
        ", costs {} and leaves {} after costs (95 % interval {}).",
        figure(cost, "cost"), figure(net["value"], "net"), between(net["lower"], net["upper"], "net"),
    )  # fmt: skip


def supported(data: PageData) -> tuple[list[Markup], list[Markup]]:
    """What the data show, and what they do not show, in sentences about every level and outcome."""
    yes: list[Markup] = []
    no: list[Markup] = []
    for verdict in data.verdicts:
        _about_level(data, verdict, yes, no)
        for outcome in dict.fromkeys(data.lift["outcome"]):
            if outcome != data.outcome:
                _about_outcome(data, verdict.level, outcome, yes, no)
    no.append(
        Markup("What happens after the days that outcomes were watched for, and to people unlike those in the trial.")
    )
    return yes, no


def _about_level(data: PageData, verdict: Verdict, yes: list[Markup], no: list[Markup]) -> None:
    effect, level = verdict.effect, verdict.level
    bounds = [effect["lower"], effect["upper"]]
    if not all(map(np.isfinite, bounds)):
        no.append(_sentence("Anything about {}: too few units.", level))
        return
    if bounds[0] > 0:
        yes.append(_sentence("{} raises {} on average.", level, data.outcome))
    elif bounds[1] < 0:
        yes.append(_sentence("{} lowers {} on average.", level, data.outcome))
    else:
        no.append(
            _sentence("That {} changes {} at all: the interval of its effect contains zero.", level, data.outcome)
        )
    if verdict.ranked:
        yes.append(_sentence("The model's order of the units is right: those it puts first respond more to {}.", level))
        half, whole = data.gain(level, 0.5)["gain"], data.gain(level, 1.0)["gain"]
        if benefit_interval(bounds[0], bounds[1], data.direction)[0] > 0 and half > 0:
            share = _sentence("{} %", figure(half / whole, "curve half / all", 100))
            yes.append(
                _sentence("The best half brings {} of what {} brings.", share, level) + _break_even(data, verdict)
            )
    else:
        no.append(_sentence("Whom to choose for {}: the order of the units may be chance.", level))


def _break_even(data: PageData, verdict: Verdict) -> Markup:
    """What treating one unit of the best half may cost; nothing where the outcome has no value."""
    worth, half = data.value.get(data.outcome, np.nan), data.gain(verdict.level, 0.5)
    if not np.isfinite(worth) or not half["gain_lower"] > 0:
        return Markup("")
    most, sure = (figure(2 * half[c] * worth, "curve half * 2 * value") for c in ("gain", "gain_lower"))
    return _sentence(" It pays as long as treating one of them costs less than {} ({} to be sure).", most, sure)


def _about_outcome(data: PageData, level: str, outcome: str, yes: list[Markup], no: list[Markup]) -> None:
    effect = data.metric("ate", level, outcome)
    if effect["lower"] > 0 or effect["upper"] < 0:
        yes.append(_sentence("{} also {} {}.", level, "raises" if effect["lower"] > 0 else "lowers", outcome))
    else:
        no.append(_sentence("That {} changes {}.", level, outcome))


# --------------------------------------------------------------------------------------------------------------------
# Who responds most and least.


def profile_of_frame(rows: pd.DataFrame, level: str, features: Sequence[str]) -> pd.DataFrame:
    """The same as `evaluation.spark.profile_of` gives, of a pandas frame.

    Args:
        rows: One a unit, with the features and the column `benefit`, by which units rank: see `roles.benefit`.
        level: The level whose ranking it is.
        features: Columns of numbers, truth values and texts.

    Returns:
        Rows of PROFILE_COLUMNS.
    """
    ranks = rows["benefit"].to_numpy(np.float64)
    cuts = np.percentile(ranks, [10, 90]) if len(ranks) else (0.0, 0.0)
    if cuts[0] == cuts[1]:
        return pd.DataFrame(columns=list(PROFILE_COLUMNS))
    bucket = pd.Series(np.where(ranks >= cuts[1], "1", np.where(ranks <= cuts[0], "10", "rest")), rows.index)
    numbers = [name for name in features if rows[name].dtype.kind in "iuf"]
    sums: dict[str, Any] = {"n": rows.groupby(bucket).size()}
    for i, name in enumerate(numbers):
        values = rows[name].astype(np.float64)
        for kind, column in (("n", values.notna()), ("s", values), ("q", values**2)):
            sums[f"{kind}{i}"] = column.groupby(bucket).sum()
    parts = [
        pd.DataFrame({"_bucket": bucket, "f": name, "c": rows[name].map(_as_word)})
        for name in features
        if name not in numbers
    ]
    keys = ["_bucket", "f", "c"]
    long = pd.concat(parts).dropna().groupby(keys).size().rename("count").reset_index() if parts else None
    return profile_rows(pd.DataFrame(sums), numbers, long, level)


def _as_word(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value


def profile_rows(counts: pd.DataFrame, numbers: Sequence[str], words: pd.DataFrame | None, level: str) -> pd.DataFrame:
    """Make the rows of a profile from sums.

    Args:
        counts: One row a `_bucket`: `n` units, and of the i-th number `n<i>`, `s<i>` (sum) and `q<i>` (of squares).
        numbers: Features that are numbers.
        words: `_bucket`, `f` (feature), `c` (category) and `count` of the others; None without any.
        level: The level whose ranking it is.

    Returns:
        Rows of PROFILE_COLUMNS.
    """
    parts = [_number_rows(counts, i, name) for i, name in enumerate(numbers)]
    if words is not None:
        parts += [_share_rows(counts["n"], group, str(name)) for name, group in words.dropna().groupby("f")]
    return pd.concat(parts, ignore_index=True).assign(treatment=level)[list(PROFILE_COLUMNS)]


def _number_rows(counts: pd.DataFrame, position: int, name: str) -> pd.DataFrame:
    sums = counts[[f"{kind}{position}" for kind in "nsq"]].fillna(0.0).astype(np.float64)
    sums.loc["all"] = sums.sum()
    n, s, q = (sums[column].where(sums.iloc[:, 0] > 0) for column in sums.columns)
    spread = float(np.sqrt(max(q["all"] / n["all"] - (s["all"] / n["all"]) ** 2, 0.0)))
    return pd.DataFrame(
        {"bucket": n.index, "feature": name, "category": None, "n": n, "value": s / n, "spread": spread}
    )


def _share_rows(units: pd.Series, group: pd.DataFrame, name: str) -> pd.DataFrame:
    table = group.pivot_table(index="_bucket", columns="c", values="count", fill_value=0).reindex(units.index).fillna(0)
    table.loc["all"] = table.sum()
    n = pd.Series({**units, "all": units.sum()}, dtype=np.float64)
    parts = []
    for category in table.columns:
        share = table[category] / n
        spread = float(np.sqrt(share["all"] * (1 - share["all"])))
        columns = {
            "bucket": n.index,
            "feature": name,
            "category": str(category),
            "n": n,
            "value": share.reindex(n.index),
        }
        parts.append(pd.DataFrame({**columns, "spread": spread}))
    return pd.concat(parts)


def traits(profile: pd.DataFrame, level: str) -> list[dict[str, Any]]:
    """What tells the best tenth of a level's ranking from all units, the strongest first.

    Returns:
        Rows with `name`, `kind` (share or mean), `best`, `whole`, `worst` and `difference` (best from whole, in
        standard deviations); of a feature with several categories the two strongest.
    """
    mine = profile[profile["treatment"] == level]
    rows: list[dict[str, Any]] = []
    for (feature, category), group in mine.groupby(["feature", "category"], dropna=False, sort=False):
        values = group.set_index("bucket")["value"]
        best, whole, worst = (float(values.get(bucket, np.nan)) for bucket in ("1", "all", "10"))
        spread = float(group.loc[group["bucket"] == "all", "spread"].max())
        if not (np.isfinite(best) and np.isfinite(whole)) or not spread > 0:
            continue
        is_share = isinstance(category, str)
        name = f"{feature} is {category}" if is_share else str(feature)
        row: dict[str, Any] = {"feature": feature, "name": name, "kind": "share" if is_share else "mean"}
        rows.append(row | {"best": best, "whole": whole, "worst": worst, "difference": (best - whole) / spread})
    rows.sort(key=lambda row: abs(row["difference"]), reverse=True)
    kept: list[dict[str, Any]] = []
    for row in rows:
        alike = sum(other["feature"] == row["feature"] for other in kept)
        if abs(row["difference"]) >= _STRONG and alike < 2 and len(kept) < _MOST_TRAITS:
            kept.append(row)
    return kept


def segments(data: PageData, level: str) -> list[dict[str, Any]]:
    """Buckets of every segment, the largest first, and whether the data show that any differs from the others."""
    result = []
    for cut in dict.fromkeys(data.lift["cut"]):
        rows = data.rows(level, cut)
        rows = rows[rows["uplift"].notna()]
        if not cut.startswith(SEGMENT) or rows.empty:
            continue
        kept = rows.sort_values("n", ascending=False, kind="stable").head(_MOST_BUCKETS)
        apart = kept.loc[kept["different_p"] < _SIGNIFICANT, "bucket"].tolist()
        result.append({"name": cut.removeprefix(SEGMENT), "rows": kept, "apart": apart, "left": len(rows) - len(kept)})
    return result


def plan_rows(data: PageData) -> tuple[str, list[dict[str, Any]]]:
    """Plans at three budgets: of gold.policy_curve where a plan was made, else the best level by share of the units.

    Returns:
        A sentence on what the rows are, and rows of budget, units, cost, and what a plan brings with its interval.
    """
    if len(data.plan):
        curve = data.plan.sort_values("budget").reset_index(drop=True)
        kept = curve.iloc[sorted({len(curve) // 4, (len(curve) + 1) // 2, len(curve) - 1})]
        rows = [
            {
                "units": row["treated"], "cost": row["cost"], "predicted": row["gain"],
                "value": row["observed"], "lower": row["observed_lower"], "upper": row["observed_upper"],
            }
            for row in kept.to_dict("records")
        ]  # fmt: skip
        return "Best plans over all levels at three budgets, after costs.", rows
    best = data.best
    if best is None:
        return "", []
    worth, price = data.value.get(data.outcome, np.nan), data.cost.get(best.level, np.nan)
    in_money = np.isfinite(worth) and np.isfinite(price)
    rows = []
    for share in _SHARES:
        gain = data.gain(best.level, share)
        cost = data.units * share * price
        row = {"units": data.units * share, "cost": cost, "predicted": np.nan}
        for name, end in (("value", ""), ("lower", "_lower"), ("upper", "_upper")):
            brought = data.units * gain[f"gain{end}"]
            row[name] = brought * worth - cost if in_money else brought
        rows.append(row)
    extra = "extra" if data.direction == "increase" else "less"
    what = "money left after costs" if in_money else f"{extra} {data.outcome}"
    return f"{best.level} for the units predicted best: {what}.", rows


# --------------------------------------------------------------------------------------------------------------------
# The page.


def render_page(data: PageData) -> str:
    """Write the page.

    Args:
        data: Tables of the campaign; names may hold any text, which is escaped.

    Returns:
        HTML of one self-contained page, light and dark, for screens from 320 pixels and for paper.
    """
    best = data.best
    rate = data.outcome in data.rates
    yes, no = supported(data)
    note = "" if best is None else _picture_note(data, best)
    about, rows = plan_rows(data)
    shown = {} if best is None else _pictures(data, best, rate)
    return page_template("uplift_spark.evaluation", "report.html.j2").render(
        data=data, best=best, words=decision_words(data), yes=yes, no=no, note=note, rate=rate,
        scale=100.0 if rate else 1.0, unit="percentage points" if rate else data.outcome, plan_about=about, plan=rows,
        traits=[] if best is None else traits(data.profile, best.level),
        segments=[] if best is None else segments(data, best.level), pictures=shown,
        driven=[] if best is None else driver_words(data.driver_rows(best.level)),
        driven_within=[] if best is None else data.segment_drivers(best.level), trial=_trial_rows(data.trial),
    )  # fmt: skip


_TRIAL_FIGURES = ("effect", "lower", "upper", "bootstrap_lower", "bootstrap_upper", "p_adjusted")
_TRIAL_ROLES = ("primary", "guardrail", "secondary")


def _trial_rows(readout: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Rows of a readout, what decides first; a column that an older version did not write is empty."""
    if readout.empty:
        return []
    rows = readout.reindex(columns=["metric", "role", "treatment", *_TRIAL_FIGURES, "status", "override"])
    rows = rows.astype(dict.fromkeys(_TRIAL_FIGURES, float))
    place = rows["role"].map({role: k for k, role in enumerate(_TRIAL_ROLES)}).fillna(len(_TRIAL_ROLES))
    rows = rows.assign(place=place).sort_values(["place", "role", "metric", "treatment"])
    return rows.assign(override=rows["override"].fillna("")).to_dict("records")


def page_text(data: PageData) -> str:
    """The decision as plain text for a terminal."""
    best = data.best
    words = [Markup(part).striptags() for part in decision_words(data)]
    return "\n".join([*([best.badge + "."] if best else []), *words])


def _picture_note(data: PageData, best: Verdict) -> str:
    whole = data.rows(best.level, "all")
    n = int(whole["n"].iloc[0]) if len(whole) else 0
    parts = (data.campaign, data.date, f"hold-out of {n:,} units ({best.level} and {data.control})")
    return ", ".join(filter(None, parts))


def drivers_svg(rows: pd.DataFrame, scale: float, unit: str, heading: str = "") -> Markup:
    """Differences in effect between units that meet a driver's condition and the others.

    Args:
        rows: Of gold.lift_driver.
        scale: What effects are multiplied by to be shown.
        unit: Of the effect, in words.
        heading: Title, where the picture needs one.

    Returns:
        A picture with 95 % intervals; empty where no difference is known.
    """
    names = {"condition": "bucket", "gain": "uplift", "gain_lower": "uplift_lower", "gain_upper": "uplift_upper"}
    shown = rows[rows["gain"].notna()].drop(columns=["bucket"]).rename(columns=names)
    return whiskers_svg(shown, scale, unit, "difference in effect", heading) if len(shown) else Markup("")


def _pictures(data: PageData, best: Verdict, rate: bool) -> dict[str, Any]:
    scale = 100.0 if rate else 1.0
    unit = "percentage points" if rate else data.outcome
    deciles = data.rows(best.level, "decile")
    curves = data.curve[data.curve["outcome"] == data.outcome]
    panels = [(level, curves[curves["treatment"] == level]) for level in data.levels]
    return {
        "deciles": bars_svg(deciles, scale, f"effect of {best.level} on {data.outcome}, {unit}"),
        "curves": [curves_svg(level, rows, scale, unit) for level, rows in panels if rows["gain"].notna().any()],
        "segments": {one["name"]: whiskers_svg(one["rows"], scale, unit) for one in segments(data, best.level)},
        "drivers": drivers_svg(data.driver_rows(best.level), scale, unit),
    }
