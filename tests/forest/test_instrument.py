"""Complier effects: against hand sums and two-stage least squares, known truth, and what cannot be told."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from uplift_spark import InstrumentalForest, load_model
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.forest.encode import encode
from uplift_spark.forest.explain import trial_scores
from uplift_spark.forest.instrument import complier_average, fit_instrumental, left_roles, without_delivery
from uplift_spark.forest.training import Params, fit_table
from uplift_spark.roles import Roles

QUICK = Params(n_trees=100)


def trial(n: int, seed: int = 0, k: int = 2, p: int = 6) -> pd.DataFrame:
    """Athey, Tibshirani & Wager (2019), table 3: who is delivered depends on the noise of the outcome."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(n, p)), rng.normal(size=n)
    tau, mu = np.maximum(x[:, :k], 0).sum(axis=1), np.maximum(x[:, k : k + 2], 0).sum(axis=1)
    z = (rng.random(n) < 2 / 3).astype(int)
    w = z * (rng.random(n) < 1 / (1 + np.exp(-noise)))
    frame = pd.DataFrame(x).add_prefix("x")
    return frame.assign(unit=np.arange(n), z=z.astype(str), w=w * 1.0, y=(w - 0.5) * tau + mu + noise, tau=tau)


def roles(p: int = 6, **more) -> Roles:
    return Roles("unit", "z", "y", tuple(f"x{j}" for j in range(p)), "0", **more)


def fitted(frame, params=QUICK):
    return fit_instrumental(pa.Table.from_pandas(frame), roles(), "w", params)


def test_what_deliveries_bring_on_average_is_two_stage_least_squares():
    frame = trial(900).assign(z=np.random.default_rng(1).integers(0, 3, 900).astype(str))
    frame["w"] = (frame.z.astype(int) * 0.4 > np.random.default_rng(2).random(900)) * 1.0
    rows = encode(pa.Table.from_pandas(frame), roles(more_outcomes=("w",)))
    _, overall = without_delivery(rows, left_roles(roles(), "w"))
    arms = pd.get_dummies(frame.z).to_numpy(float)
    first = arms @ np.linalg.lstsq(arms, frame.w, rcond=None)[0]
    design = np.column_stack([np.ones(900), first])
    assert overall == pytest.approx(np.linalg.lstsq(design, frame.y, rcond=None)[0][1], rel=1e-5)


def test_complier_effects_hold_where_a_comparison_by_delivery_misses():
    model, new = fitted(trial(6000)), trial(2000, 1)
    effect, error, weak = model.complier_effects(pa.Table.from_pandas(new))
    strong = ~weak[:, 0]
    assert strong.mean() > 0.9
    miss = effect[strong, 0] - new.tau[strong]
    assert abs(miss.mean()) < 0.25 and np.sqrt((miss**2).mean()) < 0.75 * new.tau.std()
    assert (np.abs(miss) < 1.96 * error[strong, 0]).mean() > 0.85
    naive = fit_table(pa.Table.from_pandas(trial(6000).assign(z=lambda f: f.w.astype(int).astype(str))), roles(), QUICK)
    assert (naive.effect_arrays(pa.Table.from_pandas(new))[0][:, 0] - new.tau).mean() > 0.4


def test_a_file_gives_the_same_complier_effects_back(tmp_path):
    model, new = InstrumentalForest(n_trees=12).fit(trial(1500), roles(), "w"), trial(50, 1)
    model.save(tmp_path / "model")
    again = load_model(tmp_path / "model")
    pd.testing.assert_frame_equal(again.effect(new), model.effect(new))
    assert again.to_bytes() == model.to_bytes() and again.roles == model.roles and again.roles.outcome == "y"
    with pytest.raises(ConfigError, match="needs a causal forest, not the model's instrumental_forest"):
        model.explain(new)
    with pytest.raises(ConfigError, match="has no outcome 'z'"):
        model.effect(new, "z")


def test_intention_to_treat_stands_beside():
    model, new = fitted(trial(6000)), trial(2000, 1)
    itt = model.intention_to_treat(pa.Table.from_pandas(new))[:, 0]
    assert (itt - new.tau / 2).mean() == pytest.approx(0, abs=0.12)  # every second one takes it


def test_if_all_comply_effects_are_those_of_the_forest():
    frame = trial(3000).assign(w=lambda f: f.z.astype(float))
    model, table = fitted(frame), pa.Table.from_pandas(trial(200, 1))
    left = model.forest.of("_left").effect_arrays(table)
    effect, error, weak = model.complier_effects(table)
    assert not weak.any()
    assert effect == pytest.approx(model.overall + left[0]) and error == pytest.approx(left[1], rel=1e-6)
    assert model.intention_to_treat(table) == pytest.approx(effect)


def test_where_nobody_near_complies_nothing_is_reported():
    frame = trial(6000)
    frame["w"] = frame.w * (frame.x0 > 0)
    effect, error, weak = fitted(frame).complier_effects(pa.Table.from_pandas(trial(1000, 1)))
    never = trial(1000, 1).x0.to_numpy() < -0.5
    assert weak[never, 0].mean() > 0.9 and weak[~never, 0].mean() < 0.5
    assert np.isnan(effect[weak]).all() and np.isnan(error[weak]).all()


def averaged(n: int, seed: int, size: int = 1):
    frame = trial(n, seed)
    frame = frame.loc[np.repeat(np.arange(n), size)]
    level, propensity = frame.z.astype(int).to_numpy(), np.array([1 / 3, 2 / 3])
    scores = [trial_scores(frame[name].to_numpy(), level, propensity) for name in ("y", "w")]
    return complier_average(*scores, np.repeat(np.arange(n), size) if size > 1 else None)


def test_clusters_of_equals_change_nothing():
    (one, its), (five, theirs) = averaged(500, 0), averaged(500, 0, 5)
    assert five == pytest.approx(one, rel=1e-2) and theirs == pytest.approx(its, rel=1e-2)


def covered(draws: int, n: int = 1500) -> float:
    truth = 2 * np.sqrt(1 / (2 * np.pi))  # E of two X^+; taking it up is independent of X
    results = [averaged(n, seed) for seed in range(draws)]
    return float(np.mean([abs(effect[0] - truth) < 1.96 * error[0] for effect, error in results]))


def test_averages_cover():
    assert covered(150) > 0.89


@pytest.mark.simulation
def test_averages_cover_closely():
    share = covered(1000)
    print(f"\naverage complier effect: covered in {share:.3f} of 1,000 draws of 1,500")
    assert 0.925 < share < 0.975


@pytest.mark.simulation
@pytest.mark.parametrize(("n", "published"), [(2000, 0.87), (4000, 0.91), (8000, 0.91)])
def test_published_coverage(n, published, draws=20):
    """Table 3 of Athey, Tibshirani & Wager (2019), k = 2, p = 6: coverage of 95 % intervals, there of 4,000 trees."""
    rows = []
    for seed in range(draws):
        new = trial(2000, 10_000 + seed)
        effect, error, weak = fitted(trial(n, seed), Params()).complier_effects(pa.Table.from_pandas(new))
        strong = ~weak[:, 0]
        miss = effect[strong, 0] - new.tau[strong]
        rows.append(
            [(np.abs(miss) < 1.96 * error[strong, 0]).mean(), (miss**2).mean(), error[strong, 0].mean(), strong.mean()]
        )
    coverage, square, width, share = np.mean(rows, axis=0)
    print(
        f"\n{n} rows: covered {coverage:.3f} (published {published}), MSE {square:.3f}, error {width:.3f}, "
        f"told of {share:.3f}"
    )
    assert coverage > published - 0.05


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.drop(columns="w"), "column 'w' is missing"),
        (lambda f: f.assign(w=f.w.where(f.index > 6)), "column 'w' is null, NaN or infinite in 7 of 500"),
        (lambda f: f.assign(w=0.0), "column 'w' is the same in all arms of 500 rows"),
    ],
)
def test_bad_deliveries_are_named(spoil, message):
    with pytest.raises(DataError, match=message):
        fitted(spoil(trial(500)))


def test_roles_that_do_not_fit_are_named():
    with pytest.raises(ConfigError, match="one outcome and no scores"):
        fit_instrumental(pa.Table.from_pandas(trial(500)), roles(more_outcomes=("tau",)), "w", QUICK)
