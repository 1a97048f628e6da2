"""An attack, what should be seen of it, and what is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from uplift_spark.errors import UpliftError


@dataclass(frozen=True)
class Attack:
    """Something hostile to run; `by` and `expected`, a pattern, are the refusal that should be seen."""

    kind: str
    text: str
    run: Callable[[], object]
    by: str
    expected: str

    def seen(self) -> tuple[str, str]:
        """(class of the error, its message) that the attack ends in; `executed` where it ends in none."""
        try:
            self.run()
        except UpliftError as error:
            return type(error).__name__, str(error)
        except Exception as error:  # what is no named error is a crash
            return f"crash: {type(error).__name__}", str(error)
        return "executed", "no error"

    def holds(self, seen: tuple[str, str]) -> bool:
        """Whether what is seen is what should be, in one sentence."""
        by, message = seen
        said = re.search(self.expected, message) is not None
        return by == self.by and said and "\n" not in message


def checked(attacks: Iterable[Attack]) -> tuple[list[tuple[str, str, str, str]], int]:
    """Rows (kind, attack, as expected or not, what was seen), and how many are not as expected."""
    rows, failed = [], 0
    for attack in attacks:
        seen = attack.seen()
        good = attack.holds(seen)
        failed += not good
        cut = " ".join(attack.text.split())
        rows.append((attack.kind, cut[:70], "yes" if good else "NO", f"{seen[0]}: {' '.join(seen[1].split())}"))
    return rows, failed
