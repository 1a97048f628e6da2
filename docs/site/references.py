"""Reference pages of the guide, written from what the code declares.

`pages` gives each page as Markdown: verbs from the files in jobs/, the configuration from its dataclasses, tables from
their contracts, Python's names from `uplift_spark.__all__`, messages from the errors that are raised.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from datetime import date, datetime
from functools import cache
from importlib import import_module
from inspect import getdoc
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
import yaml
from pydantic.fields import FieldInfo

import uplift_spark
from uplift_spark import console
from uplift_spark.cli import app, verbs
from uplift_spark.config import Config
from uplift_spark.gold_views import GOLD_VIEWS
from uplift_spark.governance.permissions import VERBS_OF
from uplift_spark.lake.contracts import Contract
from uplift_spark.lake.schemas import all_contracts

ROOT = Path(__file__).resolve().parents[2]
HEAD = "This page is written from the code when the guide is built.\n\n"
# One link a concept: the page of the guide that explains a verb in its place.
EXPLAINED = {
    "experiments": ("assign", "check", "readout", "power"),
    "monitoring": ("monitor", "digest"),
    "costs": ("costs",),
    "alerts": ("monitoring_files", "alert"),
    "dashboards": ("dashboard",),
    "retraining": ("retrain",),
    "canary": ("canary", "rollback"),
    "gamedays": ("gameday",),
    "runbooks": ("runbook",),
    "serving": ("publish", "serve"),
    "governance": ("audit", "approve", "reject", "grants", "card", "expire"),
    "quickstart": ("quickstart",),
    "demo": ("demo",),
}


def pages() -> dict[str, str]:
    """{name: text in Markdown} of every reference page."""
    return {
        "verbs": verbs_page(),
        **verb_pages(),
        "configuration": configuration_page(),
        "tables": tables_page(),
        "python": python_page(),
        "messages": messages_page(),
        "changes": (ROOT / "CHANGELOG.md").read_text(),
    }


# --------------------------------------------------------------------------------------------------------------------
# Text.

_LISTED = re.compile(r"^(`?[\w.{}<>]+`?(?:, `?[\w.{}<>]+`?)*) {2,}(\S.*)$")


def safe(text: str) -> str:
    """Text whose < is no tag of HTML; what stands in backticks stays as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else part.replace("<", "&lt;") for part in parts)


def cell(text: object) -> str:
    """Text as a cell of a table."""
    return safe(" ".join(str(text).split())).replace("|", "\\|")


def prose(text: str | None) -> str:
    """A docstring as Markdown: lines such as `key   what it means` become a list."""
    lines: list[str] = []
    for line in (text or "").splitlines():
        listed = _LISTED.match(line)
        if listed:
            if lines and lines[-1] and not lines[-1].startswith(("- ", "  ")):
                lines.append("")
            names = ", ".join(f"`{name.strip('`')}`" for name in listed[1].split(", "))
            lines.append(f"- {names}: {safe(listed[2])}")
        else:
            lines.append(("  " + safe(line.strip())) if line.startswith(" ") else safe(line))
    return "\n".join(lines)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    body = ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *body]) + "\n"


# --------------------------------------------------------------------------------------------------------------------
# Verbs.


def commands() -> dict[str, Any]:
    """{verb: its command with every option}, in the order of `uplift --help`."""
    whole: Any = typer.main.get_command(app)
    return {name: command_of(name) for name in whole.commands}


def command_of(name: str) -> Any:
    """The command of one verb, as the command line has it; click's class, in the copy of it that Typer uses."""
    verb = name.replace("-", "_")
    if verb not in verbs():
        whole: Any = typer.main.get_command(app)
        return whole.commands[name]
    job = import_module(f"uplift_spark.jobs.{verb}")
    if hasattr(job, "command"):
        own: Any = console.own_command(verb, job.command, job.__doc__)
    else:
        own = console.job_command(verb, job.run, getattr(job, "options", console.no_options))
    return typer.main.get_command(own)


def _option_row(option: Any) -> tuple[str, str, str]:
    """(name, default, meaning); only what every version of Typer knows of an option."""
    word = (option.metavar or option.name.strip("_")).upper()
    if _is_argument(option):
        name = word
    else:
        name = ", ".join([*option.opts, *option.secondary_opts]) + ("" if option.is_flag else f" {word}")
    default = option.default() if callable(option.default) else option.default
    unsaid = default in (None, False, "") or not hasattr(default, "__len__" if isinstance(default, str) else "real")
    said = "required" if option.required else ("" if unsaid else f"`{default}`")
    return f"`{name}`", said, option.help or ""


def _is_argument(option: Any) -> bool:
    return not option.opts[0].startswith("-")


def _usage(name: str, command: Any) -> str:
    """The shortest call of a verb, with what it cannot do without."""
    words = ["uplift", name]
    for option in command.params:
        value = "conf/X.yaml" if option.name == "conf" else option.name.strip("_").upper()
        if _is_argument(option):
            words.append(value if option.required else f"[{value}]")
        elif option.required:
            words += [option.opts[-1], value]
    return " ".join(words)


def _explained_by(verb: str) -> str:
    page = next((page for page, names in EXPLAINED.items() if verb in names), "verbs")
    title = re.search(r"^# (.*)$", (ROOT / "docs" / f"{page}.md").read_text(), re.M)
    return f"[{title[1] if title else page}](../../{page}.md)"


def verbs_page() -> str:
    """The list of verbs, each with a link to its page."""
    summaries = verbs()
    rows = [
        (f"[`{name}`](verbs/{name}.md)", summaries.get(name.replace("-", "_")) or (one.help or "").partition("\n")[0])
        for name, one in commands().items()
    ]
    return "\n".join(
        [
            "# Verbs and options\n",
            HEAD,
            "A verb is a word after `uplift`. It is also a file in `jobs/`, which `spark-submit` and Databricks run as "
            "it is. Each has a page with its options, what it reads and writes, and its messages.\n\n`--conf` names "
            "the campaign's configuration. `--set KEY=VALUE` changes one key for this call. `--run-id` names the run. "
            "A run that is called again on the same configuration and data adds nothing.\n",
            table(["verb", "what it does"], rows),
        ]
    )


def verb_pages() -> dict[str, str]:
    """{`verbs/<verb>`: its page}: what its file says of it, how it is called, its options, tables and messages."""
    return {f"verbs/{name}": _verb_page(name, command) for name, command in commands().items()}


def _verb_page(name: str, command: Any) -> str:
    verb = name.replace("-", "_")
    options = [_option_row(one) for one in command.params if one.name != "help" and not getattr(one, "hidden", False)]
    parts = [f"# uplift {name}\n", HEAD, prose(command.help), ""]
    parts += [f"```console\n$ {_usage(name, command)}\n```\n", f"The guide: {_explained_by(verb)}.\n"]
    parts += ["\n## Options\n", table(["option", "default", "meaning"], options)]
    if keys := _run_keys().get(verb):
        linked = ", ".join(f"`{key}`" for key in keys)
        parts.append(f"\nIts run is another one when one of these keys changes: {linked}.\n")
    if steps := _rows_about(name, "step"):
        parts += ["\n## What it reads and writes\n", table(["call", "reads", "writes"], steps)]
    if tables := [one.table for one in all_contracts() if one.job == verb]:
        listed = ", ".join(f"`{table_}`" for table_ in tables)
        parts.append(f"\n[Tables](../tables.md) that it writes first: {listed}.\n")
    if calls := _rows_about(name, ""):
        parts += ["\n## Calls\n", table(["call", "what it does"], calls)]
    if roles := [role for role, may in VERBS_OF.items() if any(one.partition(" ")[0] == verb for one in may)]:
        may = ", ".join(f"`{role}`" for role in roles)
        parts.append(f"\nWith [`governance.access`](../../governance.md#who-may-run-what) it runs for {may}.\n")
    parts += [
        "\n## How it ends\n",
        "The exit code is 0 where all went well, 1 after an error in one sentence on standard error, and 2 where the "
        "command line is not understood. [Messages](../messages.md) has the sentences of all rooms of the package.\n",
    ]
    if own := _messages_of(verb):
        rows = sorted((*message.parts, f"`{message.kind}`") for message in own)
        parts += ["\nMessages of its own:\n", table(["message", "what to do", "class"], rows)]
    return "\n".join(parts)


def _rows_about(name: str, head: str) -> list[list[str]]:
    """Rows about a verb in the table of docs/verbs.md with this head; links lead from the verb's page."""
    text = (ROOT / "docs" / "verbs.md").read_text()
    rows: list[list[str]] = []
    for block in re.findall(r"^\| *(\w*) *\|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M):
        if block[0] != head:
            continue
        for line in block[1].splitlines():
            cells = [one.strip().replace("\\|", "|") for one in re.split(r"(?<!\\)\|", line)[1:-1]]
            called = {
                verb for call in re.findall(r"`uplift ([^`]*)`", cells[0]) for verb in call.partition(" ")[0].split("|")
            }
            if name in called:
                rows.append([_relinked(one) for one in cells])
    return rows


def _relinked(text: str) -> str:
    """Links of docs/verbs.md as links of a page two folders below."""
    text = re.sub(r"\]\(#", "](verbs.md#", text)
    return re.sub(r"\]\((?!https?:)([\w/-]+\.md)", r"](../../\1", text)


def _messages_of(verb: str) -> list[Message]:
    """Errors that are raised in the file of a verb, or in its function of the command line."""
    file = ROOT / "jobs" / f"{verb}.py"
    tree: ast.AST | None = ast.parse((file if file.exists() else ROOT / "uplift_spark" / "cli.py").read_text())
    if not file.exists():
        tree = next((one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name == verb), None)
    return [] if tree is None else raised(("jobs", node) for node in ast.walk(tree))


@cache
def _run_keys() -> dict[str, list[str]]:
    declared: dict[str, list[str]] = {}
    for section in sections():
        for verb, keys in getattr(section.of, "RUNS", {}).items():
            declared[verb] = keys.split()
    return declared


# --------------------------------------------------------------------------------------------------------------------
# Configuration.


@dataclass(frozen=True)
class Section:
    """A dataclass of the configuration, and where its keys stand in the file."""

    path: str
    of: type

    @property
    def anchor(self) -> str:
        """Of its heading, as MkDocs makes it."""
        return re.sub(r"[^\w-]+", "-", self.path.lower()).strip("-")


def _plain(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is put together from."""
    if get_origin(annotation) in (Annotated, Union, UnionType, tuple, dict):
        parts = get_args(annotation)
        for part in parts[:1] if get_origin(annotation) is Annotated else parts:
            yield from _plain(part)
    else:
        yield annotation


def sections() -> list[Section]:
    """Every section of the configuration, in the order of the file; sections within sections follow theirs."""
    found: list[Section] = []

    def visit(path: str, of: type) -> None:
        if any(section.of is of for section in found):
            return
        found.append(Section(path or "the file", of))
        hints = get_type_hints(of, include_extras=True)
        for one in fields(of):
            inner = [part for part in _plain(hints[one.name]) if is_dataclass(part)]
            for part in inner:
                where = f"{path}.{one.name}" if path else one.name
                kind = _only_value(part, "kind") if len(inner) > 1 else None
                visit(f"{where}, kind {kind}" if kind else where, part)  # type: ignore[arg-type]

    visit("", Config)
    return found


def _only_value(of: Any, name: str) -> str | None:
    """The one value that a key may have, of sections that it tells apart."""
    values = get_args(get_type_hints(of).get(name))
    return str(values[0]) if len(values) == 1 else None


def meanings(of: type) -> tuple[str, dict[str, str], str]:
    """(what a section is, {key: what it means}, what else is said), from its docstring."""
    names = {one.name for one in fields(of)}
    before: list[str] = []
    after: list[str] = []
    known: dict[str, str] = {}
    current: list[str] = []
    for line in (getdoc(of) or "").splitlines():
        match = re.match(r"^(\w+(?:, \w+)*)( +)(\S.*)$", line)
        keys = match[1].split(", ") if match else []
        if match and set(keys) <= names and (len(match[2]) > 1 or known):
            current = keys
            known |= dict.fromkeys(keys, match[3])
        elif current and line.startswith(" "):
            known |= {key: f"{known[key]} {line.strip()}" for key in current}
        else:
            current = []
            (after if known else before).append(line)
    return "\n".join(before).strip(), known, "\n".join(after).strip()


def _bounds(info: FieldInfo) -> list[str]:
    words = {"Gt": "above {gt}", "Ge": "at least {ge}", "Lt": "below {lt}", "Le": "at most {le}"}
    found = []
    for rule in info.metadata:
        kind = type(rule).__name__
        if kind in words:
            found.append(words[kind].format(**{kind.lower(): getattr(rule, kind.lower())}))
    return found


def kind_of(annotation: Any, places: dict[type, Section]) -> str:
    """A key's type in words, sections as links."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [word for extra in parts[1:] if isinstance(extra, FieldInfo) for word in _bounds(extra)]
        return ", ".join([kind_of(parts[0], places), *bounds])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(kind_of(part, places) for part in parts if part is not NoneType))
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is tuple:
        inner = [part for part in parts if part is not Ellipsis]
        return f"list of {kind_of(inner[0], places)}" if len(inner) == 1 else f"list of {len(inner)}"
    if origin is dict:
        return f"{{{kind_of(parts[0], places)}: {kind_of(parts[1], places)}}}"
    if annotation in places:
        return f"[{places[annotation].path.split(', ')[-1]}](#{places[annotation].anchor})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", datetime: "time", date: "day"}
    return names.get(annotation, "anything" if annotation is Any else getattr(annotation, "__name__", str(annotation)))


def _default(one: Field[Any]) -> str:
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    if isinstance(value, FieldInfo):
        value = value.default_factory() if value.default_factory else value.default  # type: ignore[call-arg]
    if value is MISSING:
        return "required"
    if value is None or value in ((), {}) or is_dataclass(value):
        return ""
    if isinstance(value, datetime | date):
        return f"`{value}`"
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, sort_keys=False)
    return f"`{text.strip().removesuffix('...').strip()}`"


def configuration_page() -> str:
    """Every key of the configuration: its type, its default, and what it means."""
    every = sections()
    places = {section.of: section for section in every}
    parts = [
        "# Configuration\n",
        HEAD,
        "A campaign is one YAML file. Only `campaign`, `roles` and in most cases `source` must be there. Every other "
        "section may be left out, and so may every key with a default. A key that nobody knows is an error.\n",
        "A value without quotes is the text that stands there. Its key says whether it is a number, a time, or true or "
        "false. So levels may be called `no` or `010`.\n",
        "Any key can be changed for one call: `--set policy.budget=5000`.\n",
    ]
    for section in every:
        said, known, more = meanings(section.of)
        hints = get_type_hints(section.of, include_extras=True)
        parts += [f"\n## {section.path} {{#{section.anchor}}}\n", prose(said), ""]
        rows = []
        for one in fields(section.of):
            inner = next((part for part in _plain(hints[one.name]) if part in places), None)
            meaning = known.get(one.name) or _first_sentence(inner)
            if not meaning and (only := _only_value(section.of, one.name)):
                meaning = f"always `{only}` here"
            rows.append((f"`{one.name}`", kind_of(hints[one.name], places), _default(one), meaning))
        parts += [table(["key", "type", "default", "meaning"], rows), prose(more), ""]
    return "\n".join(parts)


def _first_sentence(of: type | None) -> str:
    """What a section is for, from its docstring, without its name."""
    if of is None:
        return ""
    said = " ".join(meanings(of)[0].split())
    what = said.partition(": ")[2] or said
    return re.split(r"[:.] ", what)[0].rstrip(".:")


# --------------------------------------------------------------------------------------------------------------------
# Tables.

LAYERS = {
    "gold": "Results. People and dashboards query these.",
    "silver": "What models are trained on, put together from bronze.",
    "bronze": "Raw events, as they came. `uplift load` and `uplift ingest` add to them.",
}


def tables_page() -> str:
    """Every table: what writes it, its columns and its rules."""
    parts = [
        "# Tables\n",
        HEAD,
        "`uplift tables` lists those of your lakehouse with their rows. `uplift contract TABLE` prints one of those "
        "below. Query them with `uplift sql`:\n",
        '```console\n$ uplift sql "SELECT treatment, bucket, uplift, uplift_lower, uplift_upper FROM gold.lift_table '
        "WHERE cut = 'decile'\"\n```\n",
        "A table whose name ends in `<campaign>` exists once a campaign. `run_id` says which run wrote a row: "
        "filter by it, or query the [views](#views), which leave the newest.\n",
    ]
    views = [(f"`gold.{view.name}`", view.meaning) for view in GOLD_VIEWS.values()]
    parts += [
        "\n## Views\n",
        "Gold tables keep every run. A view leaves the rows that count now, each with its campaign's name; beside what "
        "its sentence names it has the columns of its table. `uplift sql` knows the views wherever the tables are. For "
        "other tools `uplift dashboard lakeview` writes `views.sql`, which creates them in a catalog: see [BI "
        "tools](../dashboards.md#in-any-bi-tool).\n",
        table(["view", "what its rows are"], views),
    ]
    for layer, said in LAYERS.items():
        contracts = [one for one in all_contracts() if one.table.startswith(f"{layer}.")]
        parts += [f"\n## {layer.capitalize()}\n", said, ""]
        for contract in contracts:
            parts += _table_lines(contract)
    return "\n".join(parts)


def _table_lines(contract: Contract) -> list[str]:
    rows = [
        (f"`{column.name}`", column.dataType.simpleString(), column.metadata.get("comment", ""))
        for column in contract.columns.fields
    ]
    written = f"`uplift {contract.job}` writes it first."
    lines = [f"\n### {contract.table}\n", written, "", table(["column", "type", "meaning"], rows)]
    if contract.open:
        lines.append("\nIt may have further columns.\n")
    if contract.unique:
        lines.append(f"\nUnique: {', '.join(f'`{name}`' for name in contract.unique)}.\n")
    if contract.rules:
        lines.append(f"\nA row is rejected when {'; or '.join(safe(rule.reason) for rule in contract.rules)}.\n")
    return lines


# --------------------------------------------------------------------------------------------------------------------
# Python.

# Modules that pages of the guide import from, beside the names of the package itself.
MODULES = {
    "Experiments": (
        "experiments.assignment", "experiments.backtest", "experiments.design", "experiments.frames",
        "experiments.health", "experiments.programme", "experiments.readout",
        "experiments.rerandomise", "experiments.sequential", "experiments.simulation", "experiments.switchback",
    ),
    "Governance": (
        "governance.approvals", "governance.audit", "governance.bias", "governance.differential_privacy",
        "governance.documents", "governance.permissions", "sections.governance", "stats.noise",
    ),
    "Serving": ("serving.client", "serving.openfeature", "serving.tokens"),
    "Errors": ("errors",),
}  # fmt: skip


def python_page() -> str:
    """The names that users import, for mkdocstrings to fill in."""
    parts = [
        "# Python\n",
        HEAD,
        "What `from uplift_spark import ...` offers. [In Python](../python.md) shows it at work.\n",
    ]
    for name in uplift_spark.__all__:
        if name in uplift_spark._HOME:
            parts.append(f"\n::: {uplift_spark._HOME[name]}.{name}\n    options: {{inherited_members: true}}\n")
    for title, modules in MODULES.items():
        parts.append(f"\n## {title}\n")
        for module in modules:
            shown = "{heading_level: 3, show_root_full_path: true, show_root_members_full_path: false}"
            parts.append(f"\n::: uplift_spark.{module}\n    options: {shown}\n")
    return "\n".join(parts)


# --------------------------------------------------------------------------------------------------------------------
# Messages.

SUBJECTS = {
    "sections": "Configuration", "config": "Configuration", "runtime": "Configuration", "roles": "Configuration",
    "sql_gate": "SQL of users", "estimators": "Estimators in Python", "forest": "Forests", "learners": "Learners",
    "stats": "Statistics", "evaluation": "Lift tables and reports", "events": "Your files and events", "lake": "Tables",
    "policy": "Plans", "experiments": "Experiments", "monitoring": "Monitoring and alerts",
    "registry": "Models and the registry", "governance": "Governance", "serving": "Serving", "jobs": "Verbs",
    "gamedays": "Verbs", "campaign": "Verbs", "cli": "Verbs", "console": "Verbs",
}  # fmt: skip
KINDS = (
    *("ConfigError", "DataError", "DamagedTableError", "ModelFileError", "ConflictError", "OvertakenError"),
    "EnvironmentProblem",
)


@dataclass(frozen=True)
class Message:
    """An error that the package raises: its class, the room it comes from, and its sentence.

    sentence  with … where a name, a number or a list stands
    """

    kind: str
    room: str
    sentence: str

    @property
    def parts(self) -> tuple[str, str]:
        """(what is wrong, what to do); the latter is empty where the sentence says no more than what is wrong."""
        wrong, mark, remedy = self.sentence.rpartition(": ")
        if mark and remedy.strip(" .") != "…" and len(remedy.split()) > 1:
            return wrong, remedy
        wrong, mark, remedy = self.sentence.rpartition("; ")
        return (wrong, remedy) if mark else (self.sentence, "")


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """(room, node) of every error that is raised, and of every text, in the order of the files."""
    kinds = ast.Raise | ast.JoinedStr | ast.BinOp | ast.Constant
    found = []
    for file in [*sorted((ROOT / "uplift_spark").rglob("*.py")), *sorted((ROOT / "jobs").glob("*.py"))]:
        room = "jobs" if file.parent.name == "jobs" else file.relative_to(ROOT).parts[1].removesuffix(".py")
        found += [(room, node) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, kinds)]
    return found


def messages() -> list[Message]:
    """Every error whose sentence stands where it is raised."""
    return raised(nodes())


def raised(every: Iterable[tuple[str, ast.AST]]) -> list[Message]:
    """The errors among (room, node), each once."""
    found = []
    for room, node in every:
        if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
            continue
        kind = getattr(node.exc.func, "id", "")
        text = sentence(node.exc.args[0]) if kind in KINDS and node.exc.args else ""
        if re.sub(r"[…\W]", "", text):
            found.append(Message(kind, room, text))
    return list(dict.fromkeys(found))


def sentence(node: ast.expr) -> str:
    """The text of an expression, … for what is known only when it is raised."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return sentence(node.left) + sentence(node.right)
    return "…"


def messages_page() -> str:
    """Every message by subject: what is wrong, what to do, and the class that Python sees."""
    parts = [
        "# Messages\n",
        HEAD,
        "A message is one sentence: what is wrong, where, and what to do. Here are all whose sentence is fixed. An … "
        "stands for a name or a number of your case. To look one up, search this page for a few of its words that are "
        "no names. [When something is wrong](../troubleshooting.md) explains the most frequent ones.\n",
        "In Python each is an exception of `uplift_spark.errors`; all of them are an `UpliftError`. On the command "
        "line the exit code is 1.\n",
    ]
    every = messages()
    for subject in dict.fromkeys(SUBJECTS.values()):
        rows = [
            (message.parts[0], message.parts[1], f"`{message.kind}`")
            for message in every
            if SUBJECTS.get(message.room) == subject
        ]
        rows.sort()
        if rows:
            parts += [f"\n## {subject}\n", table(["message", "what to do", "class"], rows)]
    return "\n".join(parts)
