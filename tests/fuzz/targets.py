"""What is fuzzed: a target makes the input of a number, and says what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.fuzz import model_files

Judgement = tuple[str, str]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    prepared  what a worker does first, without bounds: imports, kernels
    mutated   (generator) -> (kind of mutation, input)
    judged    (kind, input) -> (verdict, detail); whatever it raises counts as an untyped error
    mutations  how many a whole run takes
    """

    prepared: Callable[[], object]
    mutated: Callable[[np.random.Generator], tuple[str, Any]]
    judged: Callable[[str, Any], Judgement]
    mutations: int


TARGETS = {"model_files": Target(model_files.known, model_files.mutated, model_files.judged, 100_000)}


def generator(seed: int, number: int) -> np.random.Generator:
    """The draws of one mutation, whatever ran before it."""
    return np.random.default_rng([seed, number])
