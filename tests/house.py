"""Measure the house: files, lines, importers, names, words. `make house` prints the table.

`python tests/house.py FOLDER` measures another checkout, so that two states can be compared. Standard library only.
"""

from __future__ import annotations

import ast
import io
import re
import statistics
import sys
import tokenize
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

PACKAGE = "uplift_spark"

# One word a concept. As a part of a name: `largest_odds`, `Asked`, `told_levels`.
BANNED_IN_NAMES = {
    *("odds", "chances", "told", "asked", "given", "found", "made", "done", "seen", "look", "looks", "judge"),
    *("expected", "drawn", "pulls", "received"),
}
# As names of their own: too general to say what they are.
BANNED_NAMES = {
    *("Spec", "Setup", "Setting", "Plan", "Inputs", "Fitted", "Look", "Judge", "Say", "say", "mix", "keep_out"),
    *("EXPERIMENT", "set_aside"),
}
# In comments, docstrings, messages and columns.
BANNED_IN_TEXTS = re.compile(r"\b(odds|told|asked|keep_out|set aside|set_aside|pulls|coalitions?)\b", re.IGNORECASE)
BANNED_MODULES = {
    *("lanes", "coalitions", "places", "rows", "samples", "responses", "truth", "customers", "benchmarks", "inputs"),
    *("sources", "trials", "runs", "verbs", "vocabulary"),
}
# Lines that must say what the last release called a thing, or what Spark calls it.
OLD_OR_FOREIGN = (
    "renamed=",
    "reworded=",
    "RENAMED: ClassVar = ",
    "model files",
    "inflight_tasks",
    "connection_made(",
    "data_received(",
)
# Every room's test of a module is `tests/<room>/test_<module>*.py`.


@dataclass(frozen=True)
class Module:
    """One source file: dotted name, text, syntax tree."""

    name: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the tree, walked once for all rules."""
        return list(ast.walk(self.tree))

    @property
    def room(self) -> str:
        """`forest` of `uplift_spark.forest.grow`, `cli` of `uplift_spark.cli`, '' of the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""

    @property
    def is_job(self) -> bool:
        return self.room == "jobs" and self.name.count(".") > 1

    @cached_property
    def public_names(self) -> list[str]:
        """Classes, functions and constants at the top level whose name has no leading underscore."""
        names: list[str] = []
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.append(node.name)
            elif isinstance(node, ast.Assign):
                targets = [part for target in node.targets for part in ast.walk(target)]
                names += [part.id for part in targets if isinstance(part, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names.append(node.target.id)
        return [name for name in names if not name.startswith("_")]


@cache
def modules(root: Path) -> list[Module]:
    """Every module of the package and of jobs/, by dotted name."""
    files = [(path, path.relative_to(root)) for path in sorted((root / PACKAGE).rglob("*.py"))]
    files += [(path, Path(PACKAGE) / path.relative_to(root)) for path in sorted((root / "jobs").glob("*.py"))]
    names = [".".join(as_.with_suffix("").parts).removesuffix(".__init__") for _, as_ in files]
    return [Module(name, path.read_text()) for name, (path, _) in zip(names, files, strict=True)]


def importers(every: list[Module]) -> dict[str, set[str]]:
    """{module: modules that import it or a name of it}, both within the package."""
    known = {module.name for module in every}
    found: dict[str, set[str]] = {name: set() for name in known}
    for module in every:
        for node in module.nodes:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                targets = [f"{node.module}.{alias.name}" for alias in node.names]
                for target in [node.module, *targets]:
                    if target in known and target != module.name:
                        found[target].add(module.name)
    return found


def repeated_names(every: list[Module]) -> dict[str, list[str]]:
    """{public name: its modules}, of names that occur twice; what every job may have aside."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module in every:
        for name in dict.fromkeys(module.public_names):
            if not (module.is_job and name in ("run", "options", "command", "NAMES_ITS_RUN", "READS_RESULTS")):
                homes[name].append(module.name)
    return {name: where for name, where in sorted(homes.items()) if len(where) > 1}


def banned_words(module: Module) -> list[tuple[int, str]]:
    """(line, word) of every banned name, and of every banned word in a comment, docstring or other string."""
    words: list[tuple[int, str]] = []
    if module.name.rsplit(".", 1)[-1] in BANNED_MODULES:
        words.append((1, f"module {module.name}"))
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if any(marker in token.line for marker in OLD_OR_FOREIGN):
            continue
        if token.type == tokenize.NAME and _is_banned(token.string):
            words.append((token.start[0], token.string))
        elif token.type in (tokenize.STRING, tokenize.COMMENT):
            words += [(token.start[0], match.group(0)) for match in BANNED_IN_TEXTS.finditer(token.string)]
    return words


def _is_banned(name: str) -> bool:
    parts = {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
    return name in BANNED_NAMES or bool(parts & BANNED_IN_NAMES)


def mirrored(root: Path, every: list[Module]) -> tuple[int, int]:
    """(modules with a test file of their name in the room of their name, modules)."""
    own = [module for module in every if module.public_names and not module.name.endswith("__init__")]
    with_test = 0
    for module in own:
        room, _, name = module.name.removeprefix(f"{PACKAGE}.").rpartition(".")
        with_test += any((root / "tests" / room).glob(f"test_{name}*.py"))
    return with_test, len(own)


def rules(root: Path) -> int:
    """Rules that tests/test_architecture.py holds every module to."""
    tree = ast.parse((root / "tests" / "test_architecture.py").read_text())
    lists = [n for n in tree.body if isinstance(n, ast.AnnAssign | ast.Assign) and "RULES" in ast.unparse(n)[:12]]
    return len(lists[0].value.elts) if lists and isinstance(lists[0].value, ast.Tuple) else 0


def measure(root: Path) -> list[tuple[str, str]]:
    """Rows of the table: what is measured, and the figure."""
    every = modules(root)
    sizes = {module.name: len(module.text.splitlines()) for module in every}
    filled = [size for size in sizes.values() if size > 5]
    largest = max(sizes, key=sizes.__getitem__)
    single = [name for name, by in importers(every).items() if len(by) == 1 and ".jobs" not in name]
    words = Counter(word.lower() for module in every for _, word in banned_words(module))
    tested, own = mirrored(root, every)
    return [
        ("package files", f"{len(every)}"),
        ("lines", f"{sum(sizes.values()):,}"),
        ("median module, lines", f"{statistics.median(filled):.0f}"),
        ("largest module, lines", f"{sizes[largest]} ({largest})"),
        ("modules with one importer", f"{len(single)}"),
        ("public names that occur twice", f"{len(repeated_names(every))}"),
        ("banned words", f"{sum(words.values())} ({', '.join(f'{w} {n}' for w, n in words.most_common(6))})"),
        ("rules in force", f"{rules(root)}"),
        ("modules with mirrored tests", f"{tested} of {own}"),
    ]


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1]
    for label, figure in measure(folder):
        print(f"{label:32} {figure}")
