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
# # Pricing: how large should the incentive be?
#
# A price takes any value, and so does a voucher, which is a price below zero. The question is not whether to give one
# but how large it should be, and whether it should differ between people.
#
# The trial is real, if its file is there (`$UPLIFT_DATA`, else `../shared/data`): in rural Malawi people had been
# tested for HIV, and drew a voucher of 0 to 3 dollars, to be paid out when they fetched their result (Thornton,
# 2008). Without the file a trial of the same shape is simulated. Every claim below has an `assert`, which must hold
# for both.

# %%
# %matplotlib inline
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from uplift_spark import CausalForest, Roles, average_effects

folders = [Path(os.environ.get("UPLIFT_DATA", "")), *(at / "../shared/data" for at in (Path.cwd(), Path.cwd().parent))]
files = [folder / "thornton_hiv" / "thornton_hiv.dta" for folder in folders]
source = next((file for file in files if file.is_file()), None)


def simulated(n: int = 2_900, villages: int = 120) -> pd.DataFrame:
    """A trial of the same shape: the first cents bring most, whoever lives far away comes less often."""
    rng = np.random.default_rng(83)
    village = rng.integers(0, villages, n)
    amount = np.where(rng.random(n) < 0.22, 0.0, rng.integers(1, 31, n) / 10)
    frame = pd.DataFrame({"villnum": village, "tinc": amount, "age": rng.integers(15, 70, n), "hiv2004": 0})
    frame["distvct"] = rng.uniform(0, 5, villages)[village]
    rate = 0.40 + 0.42 * (1 - np.exp(-amount / 0.5)) - 0.03 * frame["distvct"] + rng.normal(0, 0.08, villages)[village]
    return frame.assign(got=(rng.random(n) < rate).astype(float))


people = simulated() if source is None else pd.read_stata(source)
people = people.dropna(subset=["got", "tinc", "villnum", "age", "distvct"]).reset_index(drop=True)
people = people[["villnum", "tinc", "got", "age", "distvct"]].reset_index(names="person")
people = people.astype({"villnum": int, "tinc": float, "got": float, "age": float, "distvct": float})
kind = "simulated" if source is None else "real"
print(f"{len(people):,} people of {people['villnum'].nunique()} villages, {kind} trial")
assert len(people) > 2_500 and people["villnum"].nunique() > 40
assert people["tinc"].min() == 0 and people["tinc"].max() <= 3.01

# %% [markdown]
# ## Demand
#
# Without a voucher two in five people come or fewer. With any voucher most do.

# %%
bins = [-0.01, 0.0, 0.5, 1.0, 1.5, 2.0, 3.01]
names = ["none", "to .50", "to 1.00", "to 1.50", "to 2.00", "above 2"]
people["voucher"] = pd.cut(people["tinc"], bins, labels=names).astype(str)
demand = people.groupby("voucher").agg(people=("got", "size"), amount=("tinc", "mean"), came=("got", "mean")).loc[names]
assert 0.2 < demand.loc["none", "came"] < 0.5
assert (demand["came"].iloc[1:] > demand.loc["none", "came"] + 0.1).all()
demand

# %% [markdown]
# ## The effect of any amount
#
# `grid` makes the treatment a number. One forest then gives the effect at any dose, and `model.at` reads off others
# without training again. People of a village stay together. Whether the response is a line or a curve is decided by
# the data: the first cents bring much more than later ones, so it is a curve.

# %%
grid = (0.25, 0.5, 1.0, 1.5, 2.0, 2.5)
roles = Roles("person", "tinc", "got", ["age", "distvct"], control=0, grid=grid, cluster="villnum")
model = CausalForest(n_trees=60, seed=83).fit(people, roles)
line = CausalForest(n_trees=60, seed=83, criterion="slope").fit(people, roles)
doses = np.round(np.arange(0.1, 2.81, 0.1), 2)


def mean_effects(model: object, doses: np.ndarray) -> pd.Series:
    """Mean predicted effect of each dose over all people."""
    effects = model.at([float(dose) for dose in doses]).effect(people)
    return effects.groupby(effects["treatment"].astype(float))["uplift"].mean()


curve, straight = mean_effects(model, doses), mean_effects(line, doses)
at_no_voucher = float(demand.loc["none", "came"])
print(model.manifest["plan"]["reason"])
assert curve[0.5] > 0.5 * curve[2.0] > 0
assert straight[0.5] < 0.35 * straight[2.0]

# %% [markdown]
# Intervals for averages come from comparisons of groups, with villages as the units that vary. Points are groups of
# people by what they drew; the blue curve is the forest's, the grey one a straight line, which promises too little of
# small vouchers.


# %%
def came_more(rows: pd.DataFrame, draws: int = 400) -> pd.Series:
    """More people who came than without a voucher, with a 95 % interval by resampling of villages."""
    both = pd.concat([rows, people[people["voucher"] == "none"]])
    sums = both.groupby(["villnum", both["voucher"] == "none"])["got"].agg(["sum", "size"]).unstack(fill_value=0)
    weights = np.random.default_rng(1).poisson(1.0, (draws, len(sums)))
    total = np.vstack([np.ones(len(sums)), weights]) @ sums.to_numpy(float)
    gap = total[:, 0] / total[:, 2] - total[:, 1] / total[:, 3]
    half = 1.96 * gap[1:].std()
    return pd.Series({"effect": gap[0], "lower": gap[0] - half, "upper": gap[0] + half})


effects = pd.DataFrame({name: came_more(people[people["voucher"] == name]) for name in names[1:]}).T
effects["amount"] = demand["amount"]
effects["forest"] = np.interp(effects["amount"], curve.index, curve)
effects["line"] = np.interp(effects["amount"], straight.index, straight)
inside = effects["forest"].between(effects["lower"], effects["upper"])
assert (effects["lower"] > 0).all()
assert inside.sum() >= 4
assert effects.loc["to .50", "line"] < effects.loc["to .50", "lower"]
effects

# %%
figure, axes = plt.subplots(figsize=(7.8, 3.2), layout="constrained")
spread = [100 * (effects["effect"] - effects["lower"]), 100 * (effects["upper"] - effects["effect"])]
axes.errorbar(
    effects["amount"], 100 * effects["effect"], yerr=spread, fmt="o", color="black", capsize=3, label="groups"
)
axes.plot(curve.index, 100 * curve, color="#0072B2", label="forest, any amount")
axes.plot(straight.index, 100 * straight, color="#b0b0b0", label="straight line")
axes.axhline(0, color="#6b6b6b", lw=0.8)
axes.set_xlim(0, 3)
axes.set_xlabel("voucher, dollars")
axes.set_ylabel("more people who come, points")
axes.set_title("Effect of a voucher against none, 95 % intervals", loc="left", fontsize=11)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# On average a dollar more brings several points. `average_effects` estimates that without a model of who gains. It is
# an average over all amounts, steep beginning and flat end alike.

# %%
one_more = average_effects(people, roles).query("estimand == 'one unit more'").iloc[0]
late = model.at([2.0], partial=True).effect(people)["uplift"].mean()
early = model.at([0.25], partial=True).effect(people)["uplift"].mean()
print(f"a dollar more: {100 * one_more['estimate']:.1f} points"
      f" ({100 * one_more['lower']:.1f} to {100 * one_more['upper']:.1f});"
      f" at 25 cents {100 * early:.0f}, at two dollars {100 * late:.0f} points a dollar")  # fmt: skip
assert one_more["lower"] > 0
assert early > 2 * late

# %% [markdown]
# ## The best amount
#
# Vouchers are paid to all who come, also to those who would have come without. So a person who comes *because* of the
# voucher costs more than its amount. If a result that is fetched is worth 5 dollars, the best amount is where `rate *
# (5 - amount)` is largest.


# %%
def best_amount(worth: float) -> float:
    profit = (at_no_voucher + curve) * (worth - curve.index)
    return float(profit.idxmax()) if profit.max() > at_no_voucher * worth else 0.0


more = curve[curve > 0]
per_person = ((at_no_voucher + more) * more.index / more).rename("dollars for each additional person")
amounts = pd.Series({worth: best_amount(worth) for worth in (1.0, 2.0, 5.0, 10.0)}, name="best voucher")
gain = (at_no_voucher + curve[amounts[5.0]]) * (5.0 - amounts[5.0]) - at_no_voucher * 5.0
nearest = effects.iloc[(effects["amount"] - amounts[5.0]).abs().argmin()]
rates = at_no_voucher + nearest[["lower", "upper"]].to_numpy(float)
low, high = rates * (5.0 - nearest["amount"]) - at_no_voucher * 5.0
print(f"worth 5 dollars: a voucher of {amounts[5.0]:.2f} brings {gain:.2f} dollars a person net; people who drew about"
      f" that brought between {low:.2f} and {high:.2f}")  # fmt: skip
assert amounts.is_monotonic_increasing and 0 < amounts[5.0] < 1.5
assert gain > 0 and low > 0
assert per_person[2.0] > 2 * per_person[0.5] > 0.5
figure, axes = plt.subplots(figsize=(7.8, 3.0), layout="constrained")
for worth, colour in ((2.0, "#009E73"), (5.0, "#0072B2"), (10.0, "#D55E00")):
    net = (at_no_voucher + curve) * (worth - curve.index) - at_no_voucher * worth
    axes.plot(net.index, net, color=colour, label=f"worth {worth:.0f} dollars")
    axes.plot(amounts[worth], net.get(amounts[worth], 0.0), "o", color=colour)
axes.axhline(0, color="#6b6b6b", lw=0.8)
axes.set_xlabel("voucher, dollars")
axes.set_ylabel("dollars a person, net")
axes.set_title("What a voucher for all brings more than none; dots are the best amounts", loc="left", fontsize=11)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# ## A price for each person?
#
# It sounds attractive. A forest that is grown on half of the villages can be tested on the others: do its predictions
# tell people apart? For doses that take any value a plain check does it. Among people of the other villages, compare
# the effect of any voucher in the half that the forest puts first with that in the half that it puts last.

# %%
villages = np.random.default_rng(3).permutation(people["villnum"].unique())
first_half = people["villnum"].isin(villages[: len(villages) // 2])
other = CausalForest(n_trees=60, seed=83).fit(people[first_half], roles)
rest = people[~first_half].reset_index(drop=True)
predicted = other.at([1.0]).effect(rest)["uplift"]
rest["half"] = np.where(predicted > predicted.median(), "first", "last")


def any_voucher(rows: pd.DataFrame) -> pd.Series:
    """Effect of any voucher in these rows, with its 95 % interval by village means."""
    slope = np.polyfit((rows["tinc"] > 0).astype(float), rows["got"], 1)[0]
    residual = rows["got"] - rows.groupby(rows["tinc"] > 0)["got"].transform("mean")
    treated = (rows["tinc"] > 0).astype(float)
    score = (treated - treated.mean()) * residual / ((treated - treated.mean()) ** 2).sum()
    half = 1.96 * np.sqrt((score.groupby(rows["villnum"]).sum() ** 2).sum())
    return pd.Series({"effect": slope, "lower": slope - half, "upper": slope + half})


halves = pd.DataFrame({name: any_voucher(rows) for name, rows in rest.groupby("half")}).T
errors = (halves["upper"] - halves["lower"]) / (2 * 1.96)
gap = halves.loc["first", "effect"] - halves.loc["last", "effect"]
print(f"first half more than last: {100 * gap:.1f} points, give or take {196 * np.hypot(*errors):.1f}")
assert (halves["lower"] > 0).all()
assert abs(gap) < 1.96 * np.hypot(*errors)
halves

# %% [markdown]
# ## What to do
#
# One amount for all, below a dollar and a half at a worth of 5 dollars. Most of the gain comes with the first cents.
#
# ## What these data do not support
#
# - **A price for each person.** By age and distance effects do not differ visibly.
# - **Amounts above 3 dollars.** Nobody drew more.
# - **What a result is worth.** The best amount hangs on it, and no trial says it.
# - **Other goods.** These people fetched a result. Buyers of something else have another curve: run the trial there.
