"""The approval story that `make approval-story` plays, on few customers; and that a step which differs ends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.governance.story import NotAsPlayed, Stage, offers, played, table_of


def test_the_trial_has_the_planted_gap_and_no_other() -> None:
    rows = offers(20_000)
    opening = rows.groupby("sex")["opens"].mean()
    assert opening["f"] == pytest.approx(0.65, abs=0.02) and opening["m"] == pytest.approx(0.40, abs=0.02)
    means = rows.groupby(["opens", "arm"])["spend"].mean()
    assert means[1, "mail"] - means[1, "none"] == pytest.approx(6, abs=0.2)
    assert means[0, "mail"] - means[0, "none"] == pytest.approx(0, abs=0.2)


@pytest.mark.parametrize(
    ("code", "printed", "step", "words"),
    [
        (1, "refused", {}, "ended with 1"),
        (0, "done", {"fails": True}, "ended with 0"),
        (0, "something else", {}, "says nothing like 'done'"),
        (0, "done", {"record": ["export"]}, r"is on record as \[\]"),
    ],
)
def test_a_step_that_differs_ends_the_story(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, printed: str, step: dict[str, Any], words: str
) -> None:
    stage = Stage.at(tmp_path, 10, lambda _: None)
    monkeypatch.setattr(Stage, "_run", lambda *_: (0, "all is done"))
    stage.play("a step", "tess", "train", "done")
    monkeypatch.setattr(Stage, "_run", lambda *_: (code, printed))
    with pytest.raises(NotAsPlayed, match=words):
        stage.play("a step", "tess", "train", "done", **step)
    assert stage.rows == [("a step", "tess", "train", "done", "-")]


@pytest.mark.slow
def test_the_story_is_played_to_its_end(spark: object, tmp_path: Path) -> None:
    stage = Stage.at(tmp_path, 3000, lambda _: None)
    played(stage)
    recorded = [action.split()[1] for row in stage.rows for action in row[4].split(", ") if action != "-"]
    assert recorded == [
        *("register", "decide", "bias", "decide", "bias", "card", "approve", "promote", "export", "export"),
        *("erase", "promote", "erased"),
    ]
    assert table_of(stage).row_count == len(stage.rows)
