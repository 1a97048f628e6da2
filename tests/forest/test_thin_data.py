"""The designs with thin overlap or few events: their coverage in a few draws, and in full; `thin_data` prints it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.forest.thin_data import COVERS, DESIGNS, FLAGS, Shown, shown

# Meta-learners are fitted 21 times a draw, which takes seconds: in full alone.
QUICK = ("no_control", "level_lacks", "five_percent", "rare_level", "clusters", "plenty")


def test_designs_are_ten_at_least_of_every_kind_beside_some_of_plenty() -> None:
    thin = [design for design in DESIGNS.values() if not design.plenty]
    assert len(thin) >= 10 and len(DESIGNS) - len(thin) >= 3 and len({one.words for one in thin}) == len(thin)
    assert {design.who for design in thin} >= {"forest", "forest per level", "t_learner", "x_learner"}


@pytest.mark.parametrize("name", QUICK)
def test_what_is_not_flagged_covers_in_a_few_draws(name: str) -> None:
    draws = shown(replace(DESIGNS[name], learner=replace(DESIGNS[name].learner, n_trees=60)), range(2))
    assert draws.refused == 0 and draws.coverage[0] > 0.8
    lacks = {"no_control": 0.11, "level_lacks": 0.08}.get(name)
    assert draws.flagged == pytest.approx(lacks, abs=0.04) if lacks else draws.flagged < 0.3
    assert not DESIGNS[name].plenty or draws.flagged <= FLAGS


@pytest.mark.simulation
@pytest.mark.parametrize("name", DESIGNS)
def test_what_is_not_flagged_covers(name: str) -> None:
    draws = shown(DESIGNS[name], range(500))
    share, error = draws.coverage
    print(*draws.cells())
    assert not share + 2 * error < COVERS
    assert not DESIGNS[name].plenty or draws.flagged <= FLAGS


def test_a_design_does_not_hold_where_intervals_are_too_narrow_or_plenty_is_flagged() -> None:
    claims = np.full(100, 50)
    thin, plenty = DESIGNS["one_percent"], DESIGNS["plenty"]
    assert Shown(thin, 0, np.full(100, 47), claims, claims).holds
    assert not Shown(thin, 0, np.full(100, 45), claims, claims).holds
    assert not Shown(plenty, 0, np.full(100, 46), claims - 2, claims).holds
    alone = Shown(thin, 3, 0 * claims, 0 * claims, claims)
    assert alone.holds and alone.flagged == 1.0 and "all flagged" in alone.cells()
    few = Shown(thin, 0, np.array([50, 40, 50]), claims[:3], claims[:3])
    assert few.holds and few.coverage[0] == pytest.approx(140 / 150) and "near" not in few.cells()
