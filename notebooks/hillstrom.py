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
# # Hillstrom's e-mail trial: whom does which e-mail bring back?
#
# 64,000 customers got no e-mail, one about men's merchandise, or one about women's, and were watched for two weeks.
# `make demo CONF=conf/hillstrom.yaml` has grown a causal forest on half of them and written the tables read here.
# Below every claim stands an `assert`: when the data stop supporting it, this notebook fails.

# %%
# %matplotlib inline
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import chisquare

from uplift_spark import CausalForest
from uplift_spark.campaign import last_scored
from uplift_spark.config import load_config
from uplift_spark.evaluation.pictures import decile_picture, qini_picture
from uplift_spark.lake.session import spark_session
from uplift_spark.lake.tables import Lake
from uplift_spark.registry.models import Registry
from uplift_spark.runtime import derive_run_id
from uplift_spark.stats.curves import uplift_curve
from uplift_spark.stats.intervals import bootstrap_interval
from uplift_spark.stats.moments import Moments, difference

conf = Path("conf/hillstrom.yaml")
# A configuration's paths are relative to the project, wherever this notebook was started.
os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / conf).is_file()))
config = load_config(conf)
lake = Lake(spark_session(config.lakehouse), config.lakehouse)

# %% [markdown]
# A lakehouse holds many campaigns, models and runs, so first: which ones are looked at. A run's id follows from its
# configuration and inputs.

# %%
registry = Registry.of(config)
champion = registry.find(config.model_name)
scored = last_scored(config, lake, registry)
lift_run = derive_run_id("lift", config, scores=scored)
training = f"silver.training_{config.campaign}"
of_run = f"run_id = '{lift_run}'"
of_scores = f"model_name = '{scored.model_name}' AND s.run_id = '{scored.run_id}'"
pd.options.display.float_format = "{:.3g}".format


def sql(query: str) -> pd.DataFrame:
    return lake.sql(query).toPandas()


print(f"{champion.name} version {champion.version}, trained on {training} version {scored.feature_version}, {lift_run}")
assert scored.model_version == str(champion.version), "the champion has not scored yet: run `uplift score`"
assert len(sql(f"SELECT 1 FROM gold.lift_table WHERE {of_run} LIMIT 1")), "no lift table of it: run `uplift lift`"

# %% [markdown]
# ## The trial
#
# Without an e-mail 10.6 % visit, with the men's 18.3 %, with the women's 15.1 %. Few buy: about one in a hundred.

# %%
arms = sql(f"""
    SELECT treatment AS email, count(*) AS customers, 100 * avg(visit) AS visit_percent,
           100 * avg(conversion) AS conversion_percent, avg(spend) AS spend_dollars
    FROM {training} VERSION AS OF {scored.feature_version} GROUP BY treatment ORDER BY visit_percent
""").set_index("email")
assert arms["visit_percent"].round(1).to_dict() == {"none": 10.6, "womens": 15.1, "mens": 18.3}
assert arms["conversion_percent"].between(0.5, 1.5).all()
arms

# %% [markdown]
# The draw was fair: arms are equally large, and no feature differs from the control arm by more than 0.02 standard
# deviations.

# %%
customers = lake.read(training, scored.feature_version).toPandas()
train, holdout = (customers[customers["split"] == split] for split in ("train", "holdout"))
features = pd.get_dummies(customers[["recency", "history", "mens", "womens", "newbie", "zip_code", "channel"]])
means = features.groupby(customers["treatment"]).mean()
balance = ((means - means.loc["none"]) / features.std()).drop("none").T
assert chisquare(arms["customers"]).pvalue > 0.05
assert balance.abs().max(axis=None) < 0.02
balance

# %% [markdown]
# ## Lift on the hold-out
#
# The forest never saw these customers. Sorted by its prediction, the three tenths it puts first should respond more
# than the average. For the **women's** e-mail they do.

# %%
sql(f"""
    SELECT int(bucket) AS decile, n AS customers, 100 * mean_control AS control_percent, 100 * predicted_uplift AS
           predicted_points, 100 * uplift AS lift_points, 100 * uplift_lower AS lower, 100 * uplift_upper AS upper
    FROM gold.lift_table WHERE {of_run} AND outcome = 'visit' AND treatment = 'womens' AND cut = 'decile'
    ORDER BY decile
""").set_index("decile")

# %%
metrics = sql(f"SELECT outcome, treatment, metric, value, lower, upper FROM gold.uplift_metrics WHERE {of_run}")


def metric(name: str, outcome: str, email: str) -> pd.Series:
    """Value and 95 % bootstrap interval of one figure."""
    matching = metrics[(metrics[["metric", "outcome", "treatment"]] == (name, outcome, email)).all(axis=1)]
    return matching[["value", "lower", "upper"]].iloc[0]


def in_points(row: pd.Series) -> str:
    value, lower, upper = 100 * row
    return f"{value:.2f} points ({lower:.2f} to {upper:.2f})"


def lift_of(rows: pd.DataFrame, email: str, outcome: str = "visit", against: str = "none") -> pd.Series:
    """Lift with its 95 % interval, by the formula of the lift table."""
    arms = [Moments.of(rows.loc[rows["treatment"] == arm, outcome].to_numpy()) for arm in (email, against)]
    effect = difference(*arms)
    return pd.Series({"value": effect.estimate, "lower": effect.lower, "upper": effect.upper}, dtype=float)


def gap(first: pd.Series, second: pd.Series) -> pd.Series:
    """Difference of two lifts of different customers with its 95 % interval."""
    half = ((first["upper"] - first["lower"]) ** 2 + (second["upper"] - second["lower"]) ** 2) ** 0.5 / 2
    value = first["value"] - second["value"]
    return pd.Series({"value": value, "lower": value - half, "upper": value + half})


for email in ("womens", "mens"):
    print(f"{email} e-mail, effect on visits:")
    print("  average          ", in_points(metric("ate", "visit", email)))
    print("  top three deciles", in_points(metric("top_30_percent_uplift", "visit", email)))
    print("  difference       ", in_points(metric("top_30_percent_minus_average", "visit", email)))
assert metric("top_30_percent_minus_average", "visit", "womens")["lower"] > 0

# %% [markdown]
# For the **men's** e-mail that difference cannot be told from zero, and every decile responds. Bars have 95 %
# intervals; diamonds are the predictions.

# %%
lift = sql(f"SELECT * FROM gold.lift_table WHERE {of_run} AND outcome = 'visit'")
deciles = lift[lift["cut"] == "decile"].astype({"bucket": int}).set_index(["treatment", "bucket"]).sort_index()
unclear = metric("top_30_percent_minus_average", "visit", "mens")
assert unclear["lower"] < 0 < unclear["upper"]
assert (deciles.loc["mens", "uplift_lower"] > 0).all()
decile_picture(lift, rate=True)

# %% [markdown]
# On the whole the predictions for the women's e-mail agree with what was seen: lift rises with them at a slope that may
# be 1 and is not 0. In single deciles they can be off. Both e-mails' mean prediction is a little above the hold-out's
# lift, by no more than chance explains: so is the lift of the half that the forest was trained on.

# %%
inside = deciles["predicted_uplift"].between(deciles["uplift_lower"], deciles["uplift_upper"])
for email in ("womens", "mens"):
    slope, bias = metric("calibration_slope", "visit", email), metric("prediction_bias", "visit", email)
    lifts = {"training half": lift_of(train, email), "hold-out": lift_of(holdout, email)}
    by_chance = gap(*lifts.values())
    print(f"{email} e-mail:")
    print("  calibration slope {:.2f} ({:.2f} to {:.2f})".format(*slope))
    print(f"  predictions inside their decile's interval: {inside[email].sum()} of 10")
    for half, results in lifts.items():
        print(f"  lift of the {half:13} {in_points(results)}")
    print(f"  mean prediction minus hold-out {in_points(bias)}")
    assert bias["lower"] < 0 < bias["value"]
    assert by_chance["lower"] < 0 < by_chance["value"]
slope = metric("calibration_slope", "visit", "womens")
assert 0 < slope["lower"] < 1 < slope["upper"]
assert not inside["womens"].all()

# %% [markdown]
# ## Qini
#
# The curve adds up what is gained when those predicted best get the e-mail first; the Qini is the area between it and
# the dashed line of a random order. For the women's e-mail it is above zero.

# %%
visits = metrics[metrics["outcome"] == "visit"]
for email in ("womens", "mens"):
    print(f"Qini of the {email} e-mail on visits: {in_points(metric('qini', 'visit', email))}")
assert metric("qini", "visit", "womens")["lower"] > 0
curves = sql(f"SELECT * FROM gold.uplift_curve WHERE {of_run} AND outcome = 'visit' ORDER BY treatment, fraction")
qini_picture(curves, visits, rate=True)

# %% [markdown]
# These intervals cover the chance of the hold-out, not that of the forest. So, from the same rows, forests of four
# other seeds: the women's Qini is above zero with each of them. The men's interval contains zero with some, so a single
# seed's does not settle whether its order is better than a random one.


# %%
def ranked(effects: pd.DataFrame, email: str) -> pd.DataFrame:
    """The hold-out's customers with this e-mail or none, best prediction first; `place` runs from 0 to 1."""
    rows = holdout[holdout["treatment"].isin([email, "none"])]
    rows = rows.merge(effects.loc[effects["treatment"] == email, ["unit_id", "uplift"]], on="unit_id")
    return rows.assign(rank=rows["uplift"].rank(pct=True, ascending=False)).sort_values("rank")


def qini(rows: pd.DataFrame, email: str) -> pd.Series:
    """Qini of the order of `rows` with its 95 % bootstrap interval, as in gold.uplift_metrics but without bins."""
    treated, visited = (rows["treatment"] == email).to_numpy(float), rows["visit"].to_numpy(float)
    draws = np.random.default_rng(config.seed).poisson(1.0, (200, len(rows)))
    arms = [(w * treated, w * treated * visited, w * (1 - treated), w * (1 - treated) * visited) for w in (1, *draws)]
    value, *resampled = (uplift_curve(*sums).qini for sums in arms)
    lower, upper = bootstrap_interval(value, np.array(resampled))
    return pd.Series({"value": value, "lower": lower, "upper": upper}, dtype=float)


results = {}
for seed in (1, 2, 3, 4):
    of_seed = CausalForest(**vars(config.forest), seed=seed).fit(train, config.training_roles).effect(holdout)
    results |= {(email, seed): 100 * qini(ranked(of_seed, email), email) for email in ("womens", "mens")}
other_seeds = pd.DataFrame(results).T.rename_axis(["email", "seed"]).sort_index()
assert (other_seeds.loc["womens", "lower"] > 0).all()
assert (other_seeds.loc["mens", "lower"] < 0).any()
other_seeds

# %% [markdown]
# ## Who reacts to which e-mail
#
# First the segments of the lift table. Hardly any differs from its e-mail's average: of 16 intervals of 95 % chance
# alone makes about one miss it, and not more than two do.

# %%
segments = sql(f"""
    WITH found AS (SELECT * FROM gold.lift_table WHERE {of_run} AND outcome = 'visit')
    SELECT s.treatment AS email, substring(s.cut, 9) AS feature, s.bucket, s.n AS customers,
           100 * s.uplift AS lift_points, 100 * s.uplift_lower AS lower, 100 * s.uplift_upper AS upper,
           a.uplift NOT BETWEEN s.uplift_lower AND s.uplift_upper AS misses_average
    FROM found s JOIN found a ON a.treatment = s.treatment AND a.cut = 'all'
    WHERE s.cut LIKE 'segment:%' ORDER BY email, feature, s.bucket
""").set_index(["email", "feature", "bucket"])
assert len(segments) == 16 and segments["misses_average"].sum() <= 2
segments

# %% [markdown]
# What does differ is what a customer bought in the year before. The women's e-mail brings back those who bought women's
# merchandise; among those who bought men's only, its effect on the hold-out cannot be told from zero. The men's e-mail
# works on all, most on the few who bought both, and on buyers of women's merchandise not measurably worse than the
# women's e-mail.

# %%
names = {(1, 0): "men's only", (0, 1): "women's only", (1, 1): "both"}
customers["bought"] = [names[flags] for flags in zip(customers["mens"], customers["womens"], strict=True)]
holdout = holdout.assign(bought=customers["bought"])
by_bought = pd.DataFrame({
    (email, bought): 100 * lift_of(rows, email)
    for email in ("mens", "womens")
    for bought, rows in holdout.groupby("bought")
}).T.rename_axis(["email", "bought"])  # fmt: skip
assert by_bought.loc[("womens", "women's only"), "lower"] > 100 * metric("ate", "visit", "womens")["value"]
assert by_bought.loc[("womens", "men's only"), "lower"] < 0 < by_bought.loc[("womens", "men's only"), "upper"]
assert (by_bought.loc["mens", "lower"] > 0).all()
assert by_bought.loc[("mens", "both"), "lower"] > 100 * metric("ate", "visit", "mens")["value"]
assert lift_of(holdout[holdout["womens"] == 1], "mens", against="womens")["upper"] > 0
by_bought

# %%
colours = {"men's only": "#0072B2", "women's only": "#D55E00", "both": "#009E73"}
figure, axes = plt.subplots(figsize=(7.6, 3.4), layout="constrained")
for rank, (bought, colour) in enumerate(colours.items()):
    results = by_bought.xs(bought, level="bought")
    error = [results["value"] - results["lower"], results["upper"] - results["value"]]
    across = [email + 0.12 * (rank - 1) for email in range(len(results))]
    axes.errorbar(across, results["value"], yerr=error, fmt="o", capsize=3, color=colour, label=f"bought {bought}")
axes.axhline(0, color="#6b6b6b", lw=0.8)
axes.set_xticks(range(2), ["men's e-mail", "women's e-mail"])
axes.set_xlim(-0.5, 1.5)
axes.set_ylabel("lift in visits, points")
axes.set_title("Lift by what was bought before, hold-out, 95 % intervals", loc="left", fontsize=11)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %% [markdown]
# The forest found this by itself: it expects more of the women's e-mail for everyone who bought women's merchandise
# only than for anyone who bought men's only, with more than two points between. For every group its mean prediction
# lies inside the interval above, for the few who bought both near its lower end.

# %%
effects = sql(f"""
    SELECT s.treatment AS email,
           CASE WHEN t.mens = 1 AND t.womens = 1 THEN "both" WHEN t.mens = 1 THEN "men's only"
                ELSE "women's only" END AS bought,
           floor(400 * s.uplift) / 4 AS points, count(*) AS customers
    FROM gold.uplift_scores s
    JOIN {training} VERSION AS OF {scored.feature_version} t ON t.unit_id = s.unit_id
    WHERE {of_scores} GROUP BY ALL ORDER BY points
""")
figure, panels = plt.subplots(1, 2, figsize=(8.8, 3.2), sharex=True, sharey=True, layout="constrained")
for axes, (email, rows) in zip(panels, effects.groupby("email"), strict=True):
    for bought, colour in colours.items():
        results = rows[rows["bought"] == bought]
        axes.bar(results["points"], results["customers"], 0.25, align="edge", color=colour, alpha=0.55, label=bought)
    axes.set_title(f"{email} e-mail", loc="left", fontsize=11)
    axes.set_xlabel("predicted effect on visits, points")
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("customers per quarter point")
panels[0].legend(title="bought", frameon=False, loc="upper left")
plt.show()

# %%
predictions = sql(f"SELECT unit_id, treatment, uplift FROM gold.uplift_scores s WHERE {of_scores}")
expected = predictions.rename(columns={"treatment": "email"}).merge(holdout[["unit_id", "bought"]], on="unit_id")
compared = by_bought.assign(predicted=100 * expected.groupby(["email", "bought"])["uplift"].mean())
points = effects.groupby(["email", "bought"])["points"]
assert points.min()["womens", "women's only"] > points.max()["womens", "men's only"] + 2.25
assert compared["predicted"].between(compared["lower"], compared["upper"]).all()
compared

# %% [markdown]
# Every customer's effect comes with an interval. For the men's e-mail practically all of them lie above zero, for the
# women's so do those of buyers of women's merchandise, but not those of all others.

# %%
spread = sql(f"""
    SELECT s.treatment AS email, t.womens AS bought_womens, count(*) AS customers, 100 * avg(uplift) AS mean_points,
           100 * percentile(uplift, 0.05) AS p5, 100 * percentile(uplift, 0.5) AS p50,
           100 * percentile(uplift, 0.95) AS p95, 100 * avg(uplift_se) AS mean_error_points,
           100 * avg(int(uplift_lower > 0)) AS above_zero_percent
    FROM gold.uplift_scores s JOIN {training} VERSION AS OF {scored.feature_version} t ON t.unit_id = s.unit_id
    WHERE {of_scores} GROUP BY ALL ORDER BY email, bought_womens
""").set_index(["email", "bought_womens"])
above_zero = spread["above_zero_percent"]
assert (spread["customers"].groupby("email").sum() == 64_000).all()
assert (above_zero["mens"] > 99).all() and above_zero["womens", 1] > 99 and above_zero["womens", 0] < 95
spread

# %% [markdown]
# ## The same forest from pandas
#
# `CausalForest.fit` takes a pandas frame as well as a Spark frame. With the same rows, parameters and seed it gives the
# registered champion, byte for byte, though that one was grown by Spark jobs.

# %%
model = CausalForest(**vars(config.forest), seed=config.seed).fit(train, config.training_roles)
registered = registry.load(champion)
assert dict(champion.data_versions) == {training: scored.feature_version}, "the champion was trained on other rows"
assert model.to_bytes() == registered.to_bytes(), "other code trained the champion: run the demo in a new lakehouse"
print(f"{len(train):,} customers, {model.forest.structure.n_leaves:,} leaves, {len(model.to_bytes()):,} equal bytes")

# %%
three = holdout.drop_duplicates("bought")
units = ", ".join(f"'{unit}'" for unit in three["unit_id"])
stored = sql(f"""
    SELECT unit_id, treatment, uplift FROM gold.uplift_scores s WHERE {of_scores} AND unit_id IN ({units})
""")
results = three[["unit_id", "bought", "recency", "history"]].merge(model.effect(three), on="unit_id")
both = results.merge(stored, on=["unit_id", "treatment"], suffixes=("", "_stored"))
assert len(both) == 6 and (both["uplift"] == both["uplift_stored"]).all()
results

# %% [markdown]
# ## What these data do not support
#
# - **Ranking by purchases or money.** The forest was trained on visits. On conversion and on spend the Qini of both
#   e-mails cannot be told from zero: nobody should promise that this order of customers earns more.
# - **Leaving anyone out of the men's e-mail.** No decile is without effect, and whether its order is better than a
#   random one is not settled: from other seeds of the forest its Qini cannot be told from zero.
# - **That the women's e-mail earns money,** on the hold-out alone: its average effect on spend contains zero. (Over
#   all 64,000 customers it does not. Half a trial was kept for checking, and spend is noisy.)
# - **More than one flag.** Among those who bought women's merchandise, and among the others, the half that the forest
#   ranks first does not respond visibly more to the women's e-mail than the other half.

# %%
claims = metrics[metrics["metric"].isin(["ate", "qini"])].set_index(["metric", "outcome", "treatment"]).sort_index()
claims["contains_zero"] = (claims["lower"] <= 0) & (claims["upper"] >= 0)
assert claims.loc[("qini", ["conversion", "spend"]), "contains_zero"].all()
assert claims.loc[("ate", "spend", "womens"), "contains_zero"]
assert lift_of(customers, "womens", "spend")["lower"] > 0
claims

# %%
by_womens = ranked(predictions, "womens")
rank = by_womens.groupby("womens")["rank"].rank(pct=True)
by_womens["half"] = (rank <= 0.5).map({True: "first", False: "second"})
halves = pd.DataFrame({key: 100 * lift_of(rows, "womens") for key, rows in by_womens.groupby(["womens", "half"])}).T
halves.index = halves.index.set_names(["bought_womens", "half"])
for _, results in halves.groupby("bought_womens"):
    assert gap(*(row for _, row in results.iterrows()))["lower"] < 0
halves

# %%
lake.spark.stop()
