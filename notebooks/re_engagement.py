# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Re-engagement: how many pushes a week?
#
# A language course sends push messages so that learners come back. More messages bring more lessons, up to a point.
# They also make people switch messages off, and who has done so cannot be reached again. A trial drew for each of
# 20,000 learners whether they got no message, one, three or seven a week, for four weeks.
#
# The trial is simulated, so every claim is also compared with the truth. Below every claim stands an `assert`.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from uplift_spark import CausalForest, Roles
from uplift_spark.experiments.backtest import LoggedColumns, backtest
from uplift_spark.experiments.readout import ReadoutMetric

n, lesson_worth, opt_out_cost = 20_000, 0.50, 6.0
dose = {"none": 0, "1 a week": 1, "3 a week": 3, "7 a week": 7}
pushed = list(dose)[1:]
rng = np.random.default_rng(61)
learners = pd.DataFrame({
    "learner": range(n),
    "days_away": rng.integers(1, 60, n),
    "streak_before": rng.geometric(0.1, n),
    "system": rng.choice(["ios", "android"], n),
})  # fmt: skip
recent = learners["days_away"] <= 20
# Of a dose: lessons rise and level off, opt-outs rise faster than the dose. Who left long ago hardly comes back.
true_lessons = {p: np.where(recent, 2.4, 0.3) * (1 - np.exp(-dose[p] / 2)) for p in dose}
true_opt_outs = {p: np.where(recent, 0.04, 0.05) * dose[p] ** 1.3 / 3 for p in dose}
learners["pushes"] = rng.choice(list(dose), n)
on_dose = lambda by_dose: np.select([learners["pushes"] == p for p in dose], [by_dose[p] for p in dose])  # noqa: E731
learners["lessons"] = rng.poisson(1.0 + 2.0 * recent + on_dose(true_lessons))
learners["opted_out"] = (rng.random(n) < 0.02 + on_dose(true_opt_outs)).astype(int)
train, rest = learners[: n // 2], learners[n // 2 :].reset_index(drop=True)
of_rest = np.arange(n // 2, n)

# %% [markdown]
# ## More lessons, more opt-outs
#
# Levels are ordered, and `dose` says so: the forest takes the shape of the response from all levels at once. Lessons
# shape the trees. Opt-outs are estimated in the same leaves.

# %%
roles = Roles(
    "learner", "pushes", "lessons", ["days_away", "streak_before", "system"], control="none", dose=dose,
    more_outcomes=["opted_out"],
)  # fmt: skip
model = CausalForest(n_trees=60, seed=61).fit(train, roles)
overall = {
    outcome: model.lift(rest, outcome=outcome).query("cut == 'all'").set_index("treatment").loc[pushed]
    for outcome in ("lessons", "opted_out")
}
shown = ["uplift", "uplift_lower", "uplift_upper"]
for outcome, truth in (("lessons", true_lessons), ("opted_out", true_opt_outs)):
    overall[outcome]["truth"] = [truth[p][of_rest].mean() for p in pushed]
    rows = overall[outcome]
    assert rows["truth"].between(rows["uplift_lower"], rows["uplift_upper"]).sum() >= 2
lessons, opt_outs = overall["lessons"], overall["opted_out"]
assert (lessons["uplift_lower"] > 0).all()
assert opt_outs.loc["7 a week", "uplift_lower"] > opt_outs.loc["3 a week", "uplift_upper"]
pd.concat([lessons[[*shown, "truth"]], opt_outs[[*shown, "truth"]]], keys=["lessons", "opt-outs"])

# %% [markdown]
# From three messages to seven, lessons rise by a third or less, and opt-outs more than double.

# %%
steps = pd.DataFrame({"lessons": lessons["uplift"], "opt-outs": opt_outs["uplift"]})
assert steps.loc["7 a week", "lessons"] < 1.4 * steps.loc["3 a week", "lessons"]
assert steps.loc["7 a week", "opt-outs"] > 2 * steps.loc["3 a week", "opt-outs"]
figure, panels = plt.subplots(1, 2, figsize=(9.4, 3.0), layout="constrained")
for axes, rows, scale, title in (
    (panels[0], lessons, 1, "Lessons in four weeks"),
    (panels[1], opt_outs, 100, "Opt-outs, points"),
):
    doses = [dose[p] for p in pushed]
    value, lower, upper, truth = (scale * rows[name] for name in [*shown, "truth"])
    axes.errorbar(doses, value, yerr=[value - lower, upper - value], fmt="o", color="#0072B2", capsize=3, label="trial")
    axes.plot(doses, truth, "D", color="black", ms=4, label="truth")
    axes.axhline(0, color="#6b6b6b", lw=0.8)
    axes.set_xlim(0, 8)
    axes.set_xticks([0, 1, 3, 7])
    axes.set_xlabel("pushes a week")
    axes.set_title(f"{title}: effect, hold-out, 95 % intervals", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
panels[0].legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# ## The right number for each learner
#
# A lesson is worth 50 cents, an opt-out costs 6 euros. Each learner gets the number that is worth most, or none.

# %%
worth = {
    outcome: model.effect(rest, outcome=outcome).pivot(index="learner", columns="treatment", values="uplift")[pushed]
    for outcome in ("lessons", "opted_out")
}
net = lesson_worth * worth["lessons"] - opt_out_cost * worth["opted_out"]
true_net = pd.DataFrame(
    {p: lesson_worth * true_lessons[p][of_rest] - opt_out_cost * true_opt_outs[p][of_rest] for p in dose}
)
plan = pd.Series(np.where(net.max(axis=1) > 0, net.idxmax(axis=1), "none"), name="plan")
away = pd.cut(rest["days_away"], [0, 20, 60], labels=["up to 20 days", "longer"]).rename("away")
who_gets = pd.crosstab(away, plan, normalize="index").reindex(columns=list(dose), fill_value=0.0)
assert who_gets.loc["up to 20 days", ["1 a week", "3 a week"]].sum() > 0.8
assert who_gets.loc["longer", "none"] > who_gets.loc["up to 20 days", "none"] + 0.4
assert who_gets.loc["longer", "7 a week"] < 0.05
who_gets

# %% [markdown]
# ## What it brings
#
# Learners of the hold-out whose number happens to be the plan's stand for all: one in four. The same goes for fixed
# numbers.

# %%
money = lesson_worth * rest["lessons"] - opt_out_cost * rest["opted_out"]
per_learner = ReadoutMetric("money", "money", role="primary")


def brings(rule: pd.Series | str, against: str = "none") -> list[float]:
    """Euros a learner that a rule brings more than one number for all, with its 95 % interval."""
    chosen = rule if isinstance(rule, str) else rule.to_numpy()
    rows = rest.assign(money=money, rule=chosen, share=1 / len(dose))
    read = backtest(rows, [per_learner], list(dose), LoggedColumns("rule", "pushes", "share"))
    (one,) = (one for one in read.metrics if one.arm == against)
    return [one.effect, one.lower, one.upper]


rules = {**{p: p for p in pushed}, "the plan": plan}
gains = pd.DataFrame({name: brings(rule) for name, rule in rules.items()}, index=["euros", "lower", "upper"]).T
position = {p: k for k, p in enumerate(dose)}
gains["truth"] = [
    true_net.to_numpy()[np.arange(len(rest)), np.broadcast_to(pd.Series(rule).map(position), len(rest))].mean()
    for rule in rules.values()
]
over_all = brings(plan, "3 a week")
assert gains["truth"].between(gains["lower"], gains["upper"]).sum() >= 3
assert gains.loc["the plan", "lower"] > 0 > gains.loc["7 a week", "upper"]
assert gains["truth"].idxmax() == "the plan" and over_all[1] > 0
assert gains.loc["the plan", "truth"] > 0.85 * true_net.max(axis=1).mean()
print("the plan over three a week for all: {:.2f} euros a learner ({:.2f} to {:.2f})".format(*over_all))
gains

# %% [markdown]
# ## What to do
#
# Send three messages a week to learners who have been away for up to three weeks. Leave most of the others alone.
# Never send seven.
#
# ## What these data do not support
#
# - **Numbers between those of the trial.** Two or five a week were not tried. A forest of doses reads them off a
#   curve; the curve is an assumption there.
# - **What happens after four weeks.** An opt-out lasts. That is why it was priced, and the price is a guess: at 2
#   euros more learners would get messages.
# - **That the system matters.** iOS and Android do not differ visibly.

# %%
cheaper = lesson_worth * worth["lessons"] - 2.0 * worth["opted_out"]
by_system = model.lift(rest, segments=["system"]).query("cut == 'segment:system' and treatment == '3 a week'")
by_system = by_system.set_index("bucket")
errors = (by_system["uplift_upper"] - by_system["uplift_lower"]) / (2 * 1.96)
assert (cheaper.max(axis=1) > 0).mean() > (plan != "none").mean() + 0.05
assert abs(by_system.loc["ios", "uplift"] - by_system.loc["android", "uplift"]) < 1.96 * np.hypot(*errors)
by_system[["n", *shown]]
