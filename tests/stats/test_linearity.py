import numpy as np
import pytest
import scipy.stats

from uplift_spark.stats.tests import linearity

DOSES = np.array([0.0, 1.0, 2.0, 4.0])


def cells(rng: np.random.Generator, curve: float, rows: int = 150, segments: int = 2) -> tuple[np.ndarray, ...]:
    """Units, means and variances of segments with unequal slopes and noise, and `curve` in the second one."""
    n = np.tile(np.array([4, 1, 1, 2]) * rows // 4, (segments, 1))
    slope, noise = np.arange(1.0, segments + 1.0), np.linspace(1.0, 3.0, DOSES.size)
    bend = curve * np.arange(segments)[:, None] * (DOSES - 2.0) ** 2
    y = [
        [rng.normal(slope[s] * DOSES[c] + bend[s, c], noise[c], n[s, c]) for c in range(DOSES.size)]
        for s in range(segments)
    ]
    mean, variance = (np.array([[f(one) for one in row] for row in y]) for f in (np.mean, lambda one: one.var(ddof=1)))
    return n, mean, variance


def test_one_cell_more_than_coefficients_is_a_t_test_of_the_departure():
    rng = np.random.default_rng(0)
    n, mean, variance = (part[:1, :3] for part in cells(rng, 0.3))
    apart = np.array([1.0, -2.0, 1.0])  # what a line through 0, 1 and 2 misses
    error = np.sqrt((apart**2 * variance / n).sum())
    freedom = error**4 / ((apart**2 * variance / n) ** 2 / (n - 1)).sum()
    by_hand = 2 * scipy.stats.t.sf(abs((apart * mean).sum()) / error, freedom)
    assert linearity(n, mean, variance, DOSES[None, :3]).p_value[0] == pytest.approx(by_hand, rel=1e-9)


def test_where_it_fails_and_what_that_costs():
    test = linearity(*cells(np.random.default_rng(1), 0.5, 4000), DOSES[None])
    assert test.holm[0] > 0.05 and test.holm[1] < 1e-6 and test.overall < 1e-6
    curve = 0.5 * (DOSES - 2.0) ** 2
    share = np.array([4, 1, 1, 2]) / 8
    noise = np.linspace(1.0, 3.0, 4) ** 2
    weight = share / noise
    design = np.column_stack([np.ones(4), DOSES])
    line = design @ np.linalg.solve(design.T @ (weight[:, None] * design), design.T @ (weight * curve))
    assert test.missed[1] == pytest.approx(np.sqrt(share @ (curve - line) ** 2), rel=0.1)
    assert test.missed[0] < 0.1


def test_no_more_cells_than_coefficients_tell_nothing():
    n, mean, variance = cells(np.random.default_rng(2), 0.0)
    few = np.where(np.arange(4) < 2, n, 29)
    test = linearity(np.vstack([few[:1], n[1:]]), mean, variance, DOSES[None])
    assert np.isnan([test.p_value[0], test.holm[0], test.missed[0]]).all()
    assert test.overall == pytest.approx(test.p_value[1])


def rejected(curve: float, draws: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    tests = [linearity(*cells(rng, curve, rows), DOSES[None]) for _ in range(draws)]
    return np.mean([[one.overall < 0.05, (one.holm < 0.05).any()] for one in tests], axis=0)


def test_level_and_power():
    assert (rejected(0.0, 400, 150) < 0.09).all()
    assert (rejected(0.25, 100, 300) > 0.8).all()


@pytest.mark.simulation
@pytest.mark.parametrize("rows", [120, 1000])
def test_level_of_many_draws(rows):
    rates = rejected(0.0, 4000, rows)
    print(f"\nlinear truth, {rows} units a cell or less: rejected {rates[0]:.3f}, in some segment {rates[1]:.3f}")
    assert ((rates > 0.025) & (rates < 0.075)).all()
