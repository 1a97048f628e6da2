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
# # Feature rollout: is the new search good enough for everybody?
#
# An app has a new search. It should lead to more bookings, and it must not make the app crash. A trial gives it to
# half of the users who come in four weeks, and the team wants to look every Monday. Three questions: how many users
# does that take, when may the team stop, and who should get the search?
#
# The trial is simulated, so every claim is also compared with the truth. Below every claim stands an `assert`.

# %%
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import norm

from uplift_spark import CausalForest, Roles
from uplift_spark.experiments.assignment import Experiment, assign
from uplift_spark.experiments.design import PlannedMetric, TrialDesign, sample_size
from uplift_spark.experiments.frames import ReadingTime, ReadoutColumns, readout
from uplift_spark.experiments.health import ReadoutDesign
from uplift_spark.experiments.readout import ReadoutMetric
from uplift_spark.experiments.sequential import StoppingRule

# %% [markdown]
# ## How many users
#
# One user in five books today. A lift of 2 points would pay for the search. With four looks the trial needs 2 % more
# users than with one look at the end.

# %%
arms = {"old": 0.5, "new": 0.5}
looks = (0.25, 0.5, 0.75, 1.0)
weekly = StoppingRule("group_sequential", analyses=looks)
booking = PlannedMetric("conversion", 0.20)
size = sample_size(booking, TrialDesign(inflation=weekly.inflation(power=0.9)), effect=0.02, target=0.9)
once = sample_size(booking, TrialDesign(), effect=0.02, target=0.9)
n = 20_000
print(f"{once.total:,} users for one look, {size.total:,} for four; the trial takes {n:,}")
assert once.total < size.total < 1.04 * once.total
assert size.total < n

# %% [markdown]
# ## Why not simply look every week?
#
# Here are 4,000 trials of a feature that does nothing, each read at the four looks. Whoever stops at the first
# p-value below .05 reports a gain or a loss in about one trial of eight. Read by the rule that was laid down, it is
# one in twenty, as promised.

# %%
rng = np.random.default_rng(5)
steps = rng.normal(size=(4_000, len(looks)))
z = steps.cumsum(axis=1) / np.sqrt(np.arange(1, len(looks) + 1))
naive = 2 * norm.sf(abs(z))
valid = np.column_stack([weekly.valid_p(naive[:, k], looks[: k + 1], n * looks[k], n) for k in range(len(looks))])
alarms = pd.Series({"p < .05 at any look": (naive < 0.05).any(axis=1).mean(),
                    "by the rule": (valid < 0.05).any(axis=1).mean()})  # fmt: skip
assert 0.10 < alarms["p < .05 at any look"] < 0.16
assert 0.035 < alarms["by the rule"] < 0.065
alarms.rename("share of false alarms").to_frame()

# %% [markdown]
# ## The trial, look by look
#
# Arms follow from a hash of the user's id: the same user sees the same search on every device. Crashes are a
# guardrail: one user more in a hundred is accepted, and not a bit more than that.

# %%
users = assign([f"user-{k}" for k in range(n)], Experiment("search-autumn", arms))
users["day"] = pd.Timestamp("2026-09-07") + pd.to_timedelta(np.arange(n) * 28 // n, unit="D")
users["phone"] = rng.choice(["new phone", "old phone"], n, p=[0.75, 0.25])
users["visits_before"] = rng.poisson(4, n)
users["city"] = rng.choice(["big", "small"], n)
on_new, old_phone = users["treatment"] == "new", users["phone"] == "old phone"
# On new phones the search brings 5 points and no crash. On old ones it is slow: no gain, and 8 points more crash.
users["true_booking"] = np.where(old_phone, 0.0, 0.05)
users["true_crash"] = np.where(old_phone, 0.08, 0.0)
chance = 0.10 + 0.025 * np.minimum(users["visits_before"], 8) + on_new * users["true_booking"]
users["booked"] = (rng.random(n) < chance).astype(int)
users["crashed"] = (rng.random(n) < 0.01 + on_new * users["true_crash"]).astype(int)

metrics = [
    ReadoutMetric("bookings", "booked", covariates=("visits_before",), role="primary"),
    ReadoutMetric("crashes", "crashed", role="guardrail", better="down", margin=0.01, margin_of="absolute"),
]
design = ReadoutDesign(arms, planned_units=n, planned_days=28, stopping=weekly)
columns = ReadoutColumns(day="day", propensity="propensity")
results = {}
for k, share in enumerate(looks):
    so_far = users[: int(n * share)]
    time = ReadingTime(earlier=looks[:k], at_end=share == 1.0)
    results[7 * (k + 1)] = readout(so_far, metrics, design, columns, time=time)
verdicts = pd.Series({day: str(result.verdict) for day, result in results.items()}, name="verdict")
for day, verdict in verdicts.items():
    print(f"day {day}: {verdict}")
first, last = (results[day].table().set_index("metric") for day in (7, 28))
assert results[7].verdict.word == "keep going"
assert results[14].verdict.word == results[28].verdict.word == "roll back"
assert last.loc["bookings", "status"] == "better" and last.loc["crashes", "status"] == "harmed"
assert last.loc["bookings", "lower"] < users["true_booking"].mean() < last.loc["bookings", "upper"]
assert last.loc["crashes", "lower"] < users["true_crash"].mean() < last.loc["crashes", "upper"]
assert first.loc["bookings", "upper"] - first.loc["bookings", "lower"] > 2 * (
    last.loc["bookings", "upper"] - last.loc["bookings", "lower"]
)

# %%
figure, panels = plt.subplots(1, 2, figsize=(9.4, 3.0), layout="constrained", sharex=True)
for axes, metric, title in zip(panels, ("bookings", "crashes"), ("Bookings", "Crashes"), strict=True):
    rows = pd.DataFrame({day: result.table().set_index("metric").loc[metric] for day, result in results.items()}).T
    value, lower, upper = (100 * rows[name].astype(float) for name in ("effect", "lower", "upper"))
    axes.errorbar(rows.index, value, yerr=[value - lower, upper - value], fmt="o", color="#0072B2", capsize=3)
    axes.axhline(0, color="#6b6b6b", lw=0.8)
    axes.set_title(f"{title}, effect with the interval of that look", loc="left", fontsize=11)
    axes.set_ylabel("points")
    axes.set_xlabel("day")
    axes.set_xticks([7, 14, 21, 28])
    axes.set_xlim(4, 31)
    axes.spines[["top", "right"]].set_visible(False)
panels[1].axhline(1.0, color="#D55E00", lw=1, ls="--", label="accepted")
panels[1].legend(frameon=False)
plt.show()

# %% [markdown]
# Bookings rise, and crashes rise by more than was accepted. For everybody the answer is no. The rule says so from day
# 14 on. Here the trial ran on, to learn for whom the search is good.
#
# ## For whom it would be yes
#
# The forest is told to look for differences in crashes. It finds the phone.

# %%
roles = Roles(
    "unit_id", "treatment", "crashed", ["phone", "visits_before", "city"], control="old", direction="decrease",
    more_outcomes=["booked"],
)  # fmt: skip
half = n // 2
order = rng.permutation(n)
train, rest = users.iloc[order[:half]], users.iloc[order[half:]]
model = CausalForest(n_trees=48, seed=5).fit(train, roles)
importance = model.importance()
assert importance.index[0] == "phone"
crashes = model.lift(rest, segments=["phone"]).query("cut == 'segment:phone'").set_index("bucket")
bookings = model.lift(rest, outcome="booked", segments=["phone"]).query("cut == 'segment:phone'").set_index("bucket")
shown = ["n", "uplift", "uplift_lower", "uplift_upper"]
assert crashes.loc["old phone", "uplift_lower"] > 0.04
assert bookings.loc["new phone", "uplift_lower"] > 0.02
pd.concat([bookings[shown], crashes[shown]], keys=["bookings", "crashes"])

# %% [markdown]
# The phone was chosen on one half of the users. So the other half may be read as a trial of its own, on new phones
# only: it was laid down before these users were looked at. Both the gain and the guardrail hold.

# %%
on_new_phones = rest[rest["phone"] == "new phone"]
confirmed = readout(
    on_new_phones, metrics, ReadoutDesign(arms), ReadoutColumns(), time=ReadingTime(days=28, at_end=True)
)
table = confirmed.table().set_index("metric")
print(confirmed.text())
assert str(confirmed.verdict).startswith("ship new")
assert table.loc["bookings", "lower"] < 0.05 < table.loc["bookings", "upper"]
assert table.loc["crashes", "status"] == "safe"

# %% [markdown]
# ## What to do
#
# Ship the new search to new phones. Keep the old one on old phones until it no longer crashes, and try again.
#
# ## What these data do not support
#
# - **A gain on old phones.** The interval of bookings there contains zero.
# - **More than the phone.** Neither the city nor visits before the trial changes the effect on bookings visibly.
# - **Crashes of less than one user in a hundred.** The guardrail was set there, and the trial was not made for less.

# %%
line = model.lift(rest, outcome="booked", segments=["city"]).query("cut == 'segment:city'").set_index("bucket")
spread = (line["uplift_upper"] - line["uplift_lower"]) / (2 * 1.96)
assert bookings.loc["old phone", "uplift_lower"] < 0 < bookings.loc["old phone", "uplift_upper"]
assert abs(line.loc["big", "uplift"] - line.loc["small", "uplift"]) < 1.96 * np.hypot(*spread)
line[shown]
