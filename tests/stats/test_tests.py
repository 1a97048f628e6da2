"""Tests of p-values adjusted for many comparisons, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from uplift_spark.stats.tests import false_discovery, holm

P = np.array([0.01, np.nan, 0.04, 0.03, 0.5])


def test_holm() -> None:
    """4 x .01, 3 x .03, 2 x .04 made to rise, 1 x .5."""
    assert holm(P) == pytest.approx([0.04, np.nan, 0.09, 0.09, 0.5], nan_ok=True)
    assert holm(np.array([0.6, 0.7])).max() == 1.0


def test_false_discovery() -> None:
    """4/1 x .01, 4/2 x .03 made to fall to 4/3 x .04, 4/4 x .5."""
    assert false_discovery(P) == pytest.approx([0.04, np.nan, 0.16 / 3, 0.16 / 3, 0.5], nan_ok=True)
    assert np.isnan(false_discovery(np.array([np.nan]))).all() and holm(np.array([])).size == 0
