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
# # Churn: whom should the retention team call?
#
# A telephone company loses about one subscriber in five a year. A call costs 6 euros, a subscriber who stays is worth
# 120. The team calls those who are most likely to leave. Is that the right list?
#
# To find out, a trial called a random half of 20,000 subscribers. The trial is simulated, so the true effect of a
# call on each subscriber is known, and every claim is also compared with it. Below every claim stands an `assert`.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from uplift_spark import CausalForest, Roles

n, call_cost, worth = 20_000, 6.0, 120.0
rng = np.random.default_rng(11)
subscribers = pd.DataFrame({
    "subscriber": range(n),
    "tenure_months": rng.integers(1, 120, n),
    "complaints": rng.poisson(0.6, n),
    "months_left": rng.integers(0, 24, n),  # of the contract
    "data_gb": rng.gamma(2.0, 6.0, n).round(1),
    "plan": rng.choice(["basic", "family", "business"], n, p=[0.5, 0.3, 0.2]),
})  # fmt: skip
complained, free_to_go = subscribers["complaints"] > 0, subscribers["months_left"] < 4
base = 0.10 + 0.10 * complained + 0.25 * free_to_go
# A call helps those who have complained. It reminds those who have not, and whose contract ends, that they may leave.
true_effect = np.select([complained, free_to_go], [-0.10, 0.08], 0.0)
subscribers["arm"] = rng.choice(["none", "call"], n)
rate = base + true_effect * (subscribers["arm"] == "call")
subscribers["left"] = (rng.random(n) < rate).astype(int)
subscribers["true_effect"] = true_effect
train, rest = subscribers[: n // 2], subscribers[n // 2 :]

# %% [markdown]
# ## The trial
#
# Less churn is better, and `direction="decrease"` says so. Effects stay effects on churn: one below zero helps. On
# average a call lowers churn by some points. At 5 points it pays: 6 euros of 120.

# %%
features = ["tenure_months", "complaints", "months_left", "data_gb", "plan"]
roles = Roles("subscriber", "arm", "left", features, control="none", direction="decrease")
model = CausalForest(n_trees=60, seed=11).fit(train, roles)
break_even = call_cost / worth
overall = model.lift(rest, value=worth, cost={"call": call_cost}).query("cut == 'all'").iloc[0]
print(f"churn changes by {100 * overall['uplift']:.1f} points"
      f" ({100 * overall['uplift_lower']:.1f} to {100 * overall['uplift_upper']:.1f})")  # fmt: skip
print(f"calling everybody returns {overall['roi']:.2f} euros net for each euro")
assert overall["uplift_upper"] < 0
assert overall["uplift_lower"] < rest["true_effect"].mean() < overall["uplift_upper"]
assert overall["uplift_lower"] < -break_even < overall["uplift_upper"]

# %% [markdown]
# So it is not settled whether calling everybody pays at all.
#
# ## Whom a call keeps, and whom it drives away
#
# The forest ranks subscribers that it never saw by how far their churn falls. A ranking that helps has a Qini above
# zero. The first deciles stay because of the call. The last leaves because of it.

# %%
effects = model.effect(rest, keep=True)
qini = model.qini(rest).iloc[0]
deciles = model.lift(rest).query("cut == 'decile'").astype({"bucket": int}).set_index("bucket").sort_index()
assert qini["lower"] > 0
assert (deciles.loc[1:2, "uplift_upper"] < -0.03).all()
assert deciles.loc[10, "uplift_lower"] > 0
assert np.corrcoef(effects["uplift"], effects["true_effect"])[0, 1] > 0.8
model.plot.deciles(rest)

# %% [markdown]
# Two features tell the groups apart: complaints and what is left of the contract.

# %%
importance = model.importance()
assert set(importance.index[:2]) == {"complaints", "months_left"}
importance.to_frame()

# %% [markdown]
# ## Risk is not the same as a call that helps
#
# The team's present list puts first who is most likely to leave: its risk comes from subscribers of the training half
# who were not called, by complaints and months left. At the head of that list stand many whose contract ends, and of
# these the ones without a complaint are driven away. Below, both lists have the same length.

# %%
cells = lambda rows: [rows["complaints"].clip(upper=2), rows["months_left"] // 4]  # noqa: E731
not_called = train[train["arm"] == "none"]
risk = not_called.groupby(cells(not_called))["left"].mean()
effects["risk"] = risk.reindex(pd.MultiIndex.from_arrays(cells(effects))).to_numpy()
effects["by_effect"] = np.where(effects["uplift"] < -break_even, "call", "do not call")
calls = (effects["by_effect"] == "call").sum()
first = effects["risk"].rank(ascending=False, method="first") <= calls
effects["by_risk"] = np.where(first, "call", "do not call")
columns = [*subscribers.columns, "by_effect", "by_risk"]
lists = model.lift(effects[columns], segments=["by_effect", "by_risk"], value=worth, cost={"call": call_cost})
lists = lists[lists["cut"].str.startswith("segment:")].set_index(["cut", "bucket"])
shown = ["n", "uplift", "uplift_lower", "uplift_upper", "roi", "roi_lower", "roi_upper"]
ours, theirs = lists.loc[("segment:by_effect", "call")], lists.loc[("segment:by_risk", "call")]
assert 0.3 < calls / len(rest) < 0.6
assert ours["uplift_upper"] < -break_even and ours["roi_lower"] > 0.2
assert theirs["uplift"] > ours["uplift"] + 0.02
lists[shown]

# %% [markdown]
# In money, for 1,000 subscribers on each list. Bars have 95 % intervals; diamonds are the truth of the simulation.

# %%
money = pd.DataFrame({
    name: 1000 * (-worth * row[["uplift", "uplift_upper", "uplift_lower"]].to_numpy(float) - call_cost)
    for name, row in {"everybody": overall, "list by risk": theirs, "list by effect": ours}.items()
}, index=["net", "lower", "upper"]).T  # fmt: skip
of_list = {"everybody": rest["true_effect"], "list by risk": effects.loc[effects["by_risk"] == "call", "true_effect"],
           "list by effect": effects.loc[effects["by_effect"] == "call", "true_effect"]}  # fmt: skip
money["truth"] = [1000 * (-worth * of_list[name].mean() - call_cost) for name in money.index]
figure, axes = plt.subplots(figsize=(7.6, 2.8), layout="constrained")
spread = [money["net"] - money["lower"], money["upper"] - money["net"]]
axes.barh(money.index, money["net"], xerr=spread, color=["#b0b0b0", "#D55E00", "#0072B2"], height=0.55, capsize=3)
axes.plot(money["truth"], money.index, "D", color="black", ms=6, label="truth")
axes.axvline(0, color="#6b6b6b", lw=0.8)
axes.set_xlabel("euros net of the calls, for 1,000 subscribers called")
axes.set_title("What a list brings, hold-out, 95 % intervals", loc="left", fontsize=11)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
plt.show()
assert money["truth"].between(money["lower"], money["upper"]).all()
assert money.loc["list by effect", "lower"] > 1000
money.round()

# %% [markdown]
# ## What to do
#
# Call the subscribers for whom the forest expects churn to fall by more than 5 points, and nobody else.
#
# ## What these data do not support
#
# - **An order among those who are called.** All who have complained gain about equally. Within the list, the half
#   that stands first does not gain visibly more than the other.
# - **What a second call does.** Everybody was called once or never.
# - **A list for next year.** Contracts and offers change: keep a random tenth out of the programme and look again.

# %%
called = effects[effects["by_effect"] == "call"]
half = np.where(called["uplift"].rank(pct=True) <= 0.5, "first", "second")
halves = model.lift(called[list(subscribers.columns)].assign(half=half), segments=["half"]).query(
    "cut == 'segment:half'"
)
halves = halves.set_index("bucket")
errors = (halves["uplift_upper"] - halves["uplift_lower"]) / (2 * 1.96)
gap = halves.loc["first", "uplift"] - halves.loc["second", "uplift"]
assert abs(gap) < 1.96 * np.hypot(*errors)
halves[["n", "uplift", "uplift_lower", "uplift_upper"]]
