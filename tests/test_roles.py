"""Roles, levels and names: what every other module relies on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uplift_spark.errors import ConfigError, ConflictError, DataError, EnvironmentProblem, ModelFileError, UpliftError
from uplift_spark.roles import DoseBins, Levels, Roles, checked_name, levels_at_doses, round_levels


def roles(**changes: object) -> Roles:
    """Roles of a small trial, with some parts replaced."""
    parts = {"unit": "id", "treatment": "arm", "outcome": "visit", "features": ["age", "zip"], "control": "none"}
    return Roles(**{**parts, **changes})  # type: ignore[arg-type]


def test_roles_name_each_column_once_and_features_last() -> None:
    result = roles(propensity="p", weight="w", cluster="home")
    assert result.columns == ("id", "arm", "visit", "p", "w", "home", "age", "zip")
    assert roles(cluster="id").columns == ("id", "arm", "visit", "age", "zip")
    result = roles(weight="w", more_outcomes=["spend", "cost"])
    assert result.columns == ("id", "arm", "visit", "w", "spend", "cost", "age", "zip")
    assert result.outcomes == ("visit", "spend", "cost")


def test_roles_hold_levels_as_text() -> None:
    result = roles(control=0, dose={0: 0, 1: 5})
    assert result.control == "0"
    assert result.dose == {"0": 0.0, "1": 5.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": []}, "features is empty"),
        ({"features": ["age", "visit"]}, r"\['visit'\], which already play another part"),
        ({"features": ["age", "home"], "cluster": "home"}, r"\['home'\]"),
        ({"features": ["age", "age"]}, "twice"),
        ({"more_outcomes": ["spend", "spend"]}, "more_outcomes names a column twice"),
        ({"more_outcomes": ["visit"]}, r"more_outcomes contains \['visit'\], which already play another part"),
        ({"more_outcomes": ["arm", "w"], "weight": "w"}, r"more_outcomes contains \['arm', 'w'\]"),
        ({"more_outcomes": ["zip"]}, r"features contains \['zip'\], which already play another part"),
        ({"dose": {"5%": 5.0}}, "does not name the control level 'none'"),
        ({"dose": {"none": 0, "a": 5, "b": 5}}, "same dose"),
    ],
)
def test_roles_refuse(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        roles(**changes)


def test_levels_start_with_control() -> None:
    levels = Levels(("none", "5%", "10%"), (0.0, 5.0, 10.0))
    assert (levels.control, levels.treated, len(levels)) == ("none", ("5%", "10%"), 3)


@given(grid=st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True), dose=st.floats(-60, 60, width=32))
def test_a_dose_counts_as_the_nearest_level(grid: list[int], dose: float) -> None:
    levels = levels_at_doses(str(grid[0]), grid[1:])
    level = DoseBins.around(levels).level(dose)
    distance = {name: abs(dose - number) for name, number in zip(levels.names, grid, strict=True)}
    assert distance[level] == min(distance.values())
    if sorted(distance.values())[0] == sorted(distance.values())[1]:  # halfway: the lower one
        assert int(level) == min(int(name) for name in distance if distance[name] == distance[level])


def test_a_grid_reaches_half_a_step_beyond_its_ends() -> None:
    assert DoseBins.around(levels_at_doses("2", (1, 5))).ends == (0.5, 6.5)
    assert DoseBins.around(levels_at_doses("2", ())).ends == (-math.inf, math.inf)


@given(doses=st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=200))
def test_round_doses_have_every_unit_near_one_of_them(doses: list[float]) -> None:
    rows = round_levels(doses)
    if rows:
        bins = DoseBins.around(levels_at_doses(f"{next(iter(rows)):g}", list(rows)[1:]))
        assert rows == {
            float(name): sum(bins.level(dose) == name for dose in doses) for name in map("{:g}".format, rows)
        }
        assert 2 <= len(rows) <= 8


def test_doses_that_hardly_anybody_got_are_left_out() -> None:
    assert round_levels([0.0] * 500 + [5.0] * 300 + [10.0] * 300) == {0.0: 500, 4.0: 300, 10.0: 300}
    assert round_levels([3.0] * 50) == {}


def test_roles_of_numbers_have_levels_beside() -> None:
    doses = roles(treatment="dose", control="0.5", grid=(1, 2.25), weight="w")
    levels = doses.over_levels
    assert (levels.treatment, levels.propensity, levels.grid, levels.weight) == ("treatment", "propensity", (), "w")
    assert levels.dose == {"0.5": 0.5, "1": 1.0, "2.25": 2.25} and levels.control == "0.5"
    assert roles().over_levels == roles()


def test_doses_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"both called 1, to six digits"):
        roles(control="0", grid=(1.0, 1.0000001))


@pytest.mark.parametrize("name", ["a", "_x", "Recency_2", "x" * 128])
def test_plain_names_pass(name: str) -> None:
    assert checked_name(name) == name


BAD_NAMES = ["", "1a", "a b", "a`b", "a;b", "a--b", "a\nb", "a\n", "gold.lift", "x" * 129, "é", None, 3]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_refused(name: object) -> None:
    with pytest.raises(ConfigError, match="letters, digits and underscores"):
        checked_name(name, "column")  # type: ignore[arg-type]


@given(st.text())
def test_a_name_that_passes_can_stand_in_sql(name: str) -> None:
    try:
        checked_name(name)
    except ConfigError:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


def test_every_error_for_users_is_one_kind() -> None:
    for kind in (ConfigError, DataError, ModelFileError, ConflictError, EnvironmentProblem):
        assert issubclass(kind, UpliftError)
