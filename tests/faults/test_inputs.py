"""Every row of the table of inputs; `make faults ARGS="--parts files"` prints it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.inputs import CITIES, INPUTS, Input, Refused, Result, csv, found


@pytest.mark.parametrize("one", INPUTS, ids=lambda one: f"{one.kind}: {one.words}".replace("\\", "/"))
def test_an_input_arrives_whole_or_is_refused_in_a_sentence(one: Input, tmp_path: Path) -> None:
    assert found(one, tmp_path)[1] == []


def test_the_table_has_inputs_of_every_kind_each_once() -> None:
    assert len(INPUTS) >= 140 and len({(one.kind, one.words) for one in INPUTS}) == len(INPUTS)
    assert all(one.before and one.words for one in INPUTS)


def test_a_row_fails_on_another_value_a_lost_row_a_missing_word_and_a_traceback(tmp_path: Path) -> None:
    def wrong(read: object, expected: object, said: str = "") -> list[str]:
        return found(Input("k", "w", "b", 2, read, expected, said), tmp_path)[1]  # type: ignore[arg-type]

    rows = {"id": ["Müller", "Möller"], "city": ["Köln", "Bonn"]}
    assert wrong(csv(CITIES), rows) == []
    assert "is not" in wrong(csv(CITIES), {**rows, "id": ["Müller", "Müller"]})[0]
    assert wrong(lambda _: Result([1, 2], 1), [1, 2]) == ["2 rows came, 1 go on and 0 are counted"]
    assert wrong(lambda _: Result([1.0], 1, 1), [1]) and wrong(lambda _: Result([True], 1, 1), [1])
    assert "is not said in" in wrong(csv(CITIES), rows, "guess")[0]
    assert wrong(lambda _: 1 / 0, rows) == ["ends in a traceback"]
    assert "refused" in wrong(csv(""), rows)[0] and "is not" in wrong(csv(""), Refused("is full"))[0]
    assert wrong(csv(CITIES), Refused("is full"))
