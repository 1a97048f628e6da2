"""The whole path of a service, as `make serve-demo` runs it, with few customers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serving import served_day


@pytest.mark.slow
def test_answers_log_and_bronze_count_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert served_day.serve_a_day(tmp_path / "day", 3000, 24)
    shown = capsys.readouterr().out
    for title in ("Counts", "The monitor's KPIs of the day", "Lift table, hold-out", "what was served"):
        assert title in shown
