"""Inputs that once crashed, hung, took gigabytes or raised what no caller expects: held to today's rules, for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import findings, pool

KEPT = sorted(findings.FOLDER.glob("*.json"))


def test_some_are_kept() -> None:
    assert KEPT


def test_what_once_failed_fails_no_more() -> None:
    """In a worker process: one that crashes fails the test, not the run."""
    results = pool.run(pool.Work("findings", 0, 0, len(KEPT)), 1, lambda line: None)
    assert len(results) == len(KEPT)
    failed = {KEPT[result.number].name: result for result in results if result.verdict in pool.FAILURES}
    assert failed == {}


@pytest.mark.slow
def test_a_crash_and_a_hang_are_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the test above can fail: the pool goes on behind a mutation that kills its worker."""
    monkeypatch.setattr(pool, "SECONDS", 1.0)
    results = pool.run(pool.Work("deaths", 0, 0, 5), 1, lambda line: None)
    verdicts = [result.verdict for result in results]
    assert verdicts == ["refused", pool.CRASH, pool.HANG, pool.BIG, pool.UNTYPED]
