"""`uplift power`: sample size, power and smallest effect without a session."""

from __future__ import annotations

import pytest

from uplift_spark.errors import ConfigError
from uplift_spark.jobs.power import command, power_keys


def figures(capsys, *args, **options) -> dict[str, str]:
    """{what: figure} of the printed lines."""
    command(*args, **options)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    return {line.rpartition("  ")[0].strip(): line.rpartition("  ")[2].strip() for line in lines}


def test_sample_size_of_revenue(capsys) -> None:
    printed = figures(capsys, "revenue", 1.0, sd=5.0, per_day=100_000)
    assert printed["units of the control"] == printed["units of arm 1"] == "436,049"
    assert printed["units of the trial"] == "872,098" and printed["days, in whole weeks"] == "14"
    assert printed["units to tell apart two halves whose effects differ by as much"] == "3,488,392"


def test_power_and_smallest_lift(capsys) -> None:
    printed = figures(capsys, "conversion", 0.1, units=318_132)
    assert printed["power for a lift of 0.03"] == "0.8000" and printed["the same as a lift"] == "3.0000%"


def test_clusters_and_arms(capsys) -> None:
    printed = figures(capsys, "conversion", 0.1, lift=0.3, set_=["icc=.05", "cluster_size=20", "shares=0.5,0.25,0.25"])
    counts = [int(text) for text in printed["clusters, control first"].split(",")]
    assert counts[0] == pytest.approx(2 * counts[1], abs=1) and counts[1] == counts[2]
    assert printed["units of arm 2"] == f"{20 * counts[2]:,}"


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        ("share=0.5,0.5", "did you mean 'shares'"),
        ("icc", "is no KEY=VALUE"),
        ("icc=much", "use a number"),
        ("shares=half", "use numbers with commas"),
        ("two_sided=0", "use true or false"),
    ],
)
def test_bad_settings_are_refused(pair: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        power_keys([pair])


def test_a_mean_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="--mean is 0"):
        command("revenue", 0.0, sd=1.0)
