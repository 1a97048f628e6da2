"""Inputs that once failed, kept as regression tests: `test_findings.py` holds every one of them to today's rules."""

from __future__ import annotations

import base64
import json
import os
import signal
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.fuzz.pool import MEMORY, Result
from tests.fuzz.targets import TARGETS, Target

FOLDER = Path(__file__).with_name("findings")


def keep(target: str, seed: int, failed: Iterable[Result], folder: Path) -> None:
    """Write the smallest input of each kind of mutation and failure to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    smallest: dict[tuple[str, str], tuple[int, bytes, Result]] = {}
    for result in failed:
        kind, content = TARGETS[target].mutated(seed, result.number)
        key = (kind, result.verdict)
        if key not in smallest or len(content) < len(smallest[key][1]):
            smallest[key] = (result.number, content, result)
    for (kind, verdict), (number, content, result) in smallest.items():
        name = "-".join([target, *kind.split(), *verdict.split()]).replace("/", "-")
        parts = {"target": target, "kind": kind, "was": verdict, "detail": result.detail, "mutation": [seed, number]}
        packed = base64.b85encode(zlib.compress(content, 9)).decode()
        (folder / f"{name}.json").write_text(json.dumps({**parts, "content": packed}, indent=1) + "\n")


def kept(path: Path) -> tuple[str, str, bytes]:
    """(target, kind, input) of a file."""
    parts = json.loads(path.read_text())
    return parts["target"], parts["kind"], zlib.decompress(base64.b85decode(parts["content"]))


def _nth(seed: int, number: int) -> tuple[str, Any]:
    target, kind, content = kept(sorted(FOLDER.glob("*.json"))[number])
    return kind, (target, content)


def _prepared() -> None:
    for target in TARGETS.values():
        target.prepared()


# The kept inputs as a target of their own; and five ways for a worker to end, which test the pool.
FINDINGS = Target(_prepared, _nth, lambda kind, case: TARGETS[case[0]].judged(kind, case[1]), 0)


def _death(kind: str, number: int) -> tuple[str, str]:
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    while number == 2:
        pass
    if number == 3:
        bytearray(2 * MEMORY)
    if number == 4:
        raise KeyError("x")
    return "refused", ""


DEATHS = Target(lambda: None, lambda seed, number: ("death", number), _death, 0)
