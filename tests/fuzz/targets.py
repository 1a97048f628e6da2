"""What is fuzzed: a target makes the input of a number, and says what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fuzz import inputs, model_files

Judgement = tuple[str, str]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    prepared  what a worker does first, without bounds: imports, kernels
    mutated   (seed, number) -> (kind of mutation, input)
    judged    (kind, input) -> (verdict, detail); whatever it raises counts as an untyped error
    mutations  how many a whole run takes
    """

    prepared: Callable[[], object]
    mutated: Callable[[int, int], tuple[str, Any]]
    judged: Callable[[str, Any], Judgement]
    mutations: int


def drawn(mutated: Callable[[np.random.Generator], tuple[str, Any]]) -> Callable[[int, int], tuple[str, Any]]:
    """The mutation of a seed and a number, whatever ran before it."""
    return lambda seed, number: mutated(np.random.default_rng([seed, number]))


TARGETS = {
    "model_files": Target(model_files.known, drawn(model_files.mutated), model_files.judged, 100_000),
    "configurations": Target(inputs.prepared, drawn(inputs.mutated_configuration), inputs.judged_configuration, 20_000),
    "input_files": Target(inputs.prepared, drawn(inputs.mutated_input), inputs.judged_input, 20_000),
}
