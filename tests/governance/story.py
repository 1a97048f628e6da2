"""The approval story on a lakehouse of its own: trained, refused, mended, approved, objected to, erased, verified.

`make approval-story` plays it by the commands that people would type, each under its own user, checks what each of them
says and what the audit log has of it, and prints a table; it ends with 1 where anything differs. The lakehouse stays in
build/approval-story until the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from deltalake import DeltaTable
from rich.console import Console
from rich.table import Table

from uplift_spark import cli
from uplift_spark.config import Lakehouse
from uplift_spark.console import open_lake
from uplift_spark.governance.permissions import TOKEN_ENV
from uplift_spark.lake.schemas import AUDIT_TABLE, gold_table

ROOT = Path(__file__).resolve().parents[2]
USERS = {"tess": ("operator", "approver"), "bob": ("approver",), "pia": ("privacy_officer",), "vic": ("viewer",)}
"""Who takes part: tess trains, bob approves, pia keeps the law, vic is an auditor who only reads."""
WAITING = "--set registry.version=1"
"""While a version waits it is named: nothing is used that nobody approved."""
PLANNED = r"The plan is predicted to bring [^\n]* for a cost of [\d.,]*\d"
CAP = "policy:\n  limits: [{gap: 0.02, segment: sex}]\n"
_CONF = """# Written by `make approval-story`.
campaign: offer
source:
  kind: table
  path: offer.csv
  unit: customer
  treatment: arm
  outcomes: [spend]
  attributes: [opens, visits, age, sex]
  assigned_at: 2025-01-06
roles: {{outcome: spend, control: none, features: [opens, visits, age]}}
features:
  - {{name: sex, protected: true, targeting: false}}
forest: {{n_trees: 40}}
economics: {{value: {{spend: 1.0}}, cost: {{mail: 2.0}}}}
lift: {{segments: [sex], bins: 10, replicates: 50}}
consent: {{required: false}}
governance:
  audit: {{checkpoints: checkpoints, key: {{key_file: audit.pem}}}}
  approval:
    needs: [evaluation, bias, other_approver, metadata, card]
    owner: crm
    purpose: the spring offer
    legal_basis: legitimate interest
  bias:
    # What counts here is who gets the offer; what it brings to those who get it may differ.
    tolerance: {{treated: 0.05, cost: 0.1, predicted: 3, realised: 3}}
  access:
    roles: {roles}
    tokens: {tokens}
"""


def offers(units: int, seed: int = 3) -> pd.DataFrame:
    """A trial in which those who open mail answer it, by 6 on average; 65 % of women do and 40 % of men.

    Args:
        units: Customers, half of them in each arm.
        seed: Of all that is random.

    Returns:
        One row a customer.
    """
    draw = np.random.default_rng(seed)
    sex = draw.choice(["f", "m"], units)
    opens = (draw.random(units) < np.where(sex == "f", 0.65, 0.40)).astype(int)
    mail = draw.random(units) < 0.5
    visits, age = draw.poisson(3, units), draw.integers(18, 80, units)
    spend = np.maximum(0.0, draw.normal(10 + visits, 3) + 6.0 * mail * opens)
    customers = [f"c{number:06d}" for number in range(units)]
    arm = np.where(mail, "mail", "none")
    return pd.DataFrame(
        {"customer": customers, "arm": arm, "spend": spend.round(2), "opens": opens, "visits": visits, "age": age}
    ).assign(sex=sex)


class NotAsPlayed(Exception):
    """A step said something else, or is on record otherwise."""


@dataclass
class Stage:
    """A lakehouse below a folder, and what was played on it so far."""

    folder: Path
    units: int
    say: Callable[[str], None]
    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    entries: int = 0

    @classmethod
    def at(cls, folder: Path, units: int, say: Callable[[str], None]) -> Stage:
        """Write the trial's file, keys and configuration into an empty folder."""
        offers(units).to_csv(folder / "offer.csv", index=False)
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / "audit.pem").write_bytes(private)
        public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (folder / "audit.pub").write_bytes(public)
        roles: dict[str, list[str]] = {}
        for user, own in USERS.items():
            for role in own:
                roles.setdefault(role, []).append(user)
        tokens = {user: hashlib.sha256(_token(user).encode()).hexdigest() for user in USERS}
        (folder / "offer.yaml").write_text(_CONF.format(roles=json.dumps(roles), tokens=json.dumps(tokens)))
        return cls(folder, units, say)

    def play(self, step: str, user: str, line: str, says: str, record: Sequence[str] = (), fails: bool = False) -> str:
        """Run a command as a user, and check it.

        Args:
            step: What happens, in words.
            user: Who runs it.
            line: The command, without `uplift` and `--conf`.
            says: Pattern that what it prints matches; what matches stands in the table.
            record: Actions that it adds to the audit log, in order.
            fails: Whether it is refused.

        Returns:
            All that it printed.

        Raises:
            NotAsPlayed: It printed or left on record something else.
        """
        self.say(step)
        code, printed = self._run(user, shlex.split(line))
        if bool(code) != fails:
            raise NotAsPlayed(f"`uplift {line}` by {user} ended with {code}: {printed[-2000:]}")
        match = re.search(says, printed, re.DOTALL)
        if match is None:
            raise NotAsPlayed(f"`uplift {line}` by {user} says nothing like {says!r}: {printed[-2000:]}")
        new = self._new_entries()
        if [action for _, action in new] != list(record):
            raise NotAsPlayed(f"`uplift {line}` by {user} is on record as {new}, not as {list(record)}")
        words = " ".join(match.group(0).split())
        self.rows.append((step, user, line, words, ", ".join(f"{seq} {action}" for seq, action in new) or "-"))
        return printed

    def note(self, step: str, user: str, deed: str, words: str) -> None:
        """Put what is no command into the table."""
        self.rows.append((step, user, deed, words, "-"))

    def add(self, words: str) -> None:
        """Put more words into the last row: what the step has to show."""
        step, user, line, known, record = self.rows[-1]
        self.rows[-1] = (step, user, line, f"{known}; {words}", record)

    def recorded(self, action: str) -> list[dict[str, Any]]:
        """Entries of the audit log with an action, in order."""
        log = self.table(AUDIT_TABLE).sort_values("seq")
        return [json.loads(entry) for entry in log.loc[log["action"] == action, "entry"]]

    def _run(self, user: str, arguments: Sequence[str]) -> tuple[int, str]:
        shown, code = io.StringIO(), 0
        argv = ["uplift", *arguments, "--conf", "offer.yaml"]
        with (
            mock.patch.dict(os.environ, {TOKEN_ENV: _token(user)}),
            mock.patch.object(sys, "argv", argv),
            contextlib.redirect_stdout(shown),
            contextlib.redirect_stderr(shown),
        ):
            try:
                cli.main()
            except SystemExit as stop:
                code = int(stop.code or 0)
        return code, shown.getvalue()

    def _new_entries(self) -> list[tuple[int, str]]:
        if not (self.table_folder(AUDIT_TABLE) / "_delta_log").exists():
            return []
        log = self.table(AUDIT_TABLE).sort_values("seq")
        new = log[log["seq"] > self.entries]
        self.entries += len(new)
        return list(zip(new["seq"], new["action"], strict=True))

    def table_folder(self, name: str) -> Path:
        """Where a table lies."""
        return self.folder / "lakehouse" / name.replace(".", "/")

    def table(self, name: str) -> pd.DataFrame:
        """Rows of a table, read without Spark."""
        return DeltaTable(str(self.table_folder(name))).to_pandas()

    def shares(self) -> str:
        """Share treated by sex in the newest bias audit."""
        audit = self.table(gold_table("bias_audit"))
        newest = audit[audit["run_id"] == self.recorded("bias")[-1]["job_run"]]
        treated = newest[newest["measure"] == "treated"].set_index("bucket")["mean"]
        return f"treated: {treated['f']:.0%} of f, {treated['m']:.0%} of m"

    def exported(self, folder: str) -> pd.DataFrame:
        """Rows of an export."""
        parts = [pd.read_parquet(file) for file in sorted((self.folder / folder).glob("*.parquet"))]
        return pd.concat(parts, ignore_index=True)


def _token(user: str) -> str:
    return f"token of {user}, for this story alone"


def checked(holds: bool, sentence: str) -> None:
    """Raise NotAsPlayed with the sentence unless it holds."""
    if not holds:
        raise NotAsPlayed(sentence)


# --------------------------------------------------------------------------------------------------------------------
# The story. Each part takes the stage; `played` at the end plays them in order.


def trained(stage: Stage) -> None:
    """A version is trained, evaluated and planned with; it waits."""
    stage.play("the trial's rows come in", "tess", "ingest", rf"bronze\.assignment +{stage.units:,}")
    stage.play("features are frozen", "tess", "features", rf"silver\.training_offer +{stage.units:,}")
    stage.play("train", "tess", "train", "version 1 waits for approval", ["register"])
    stage.play("score", "tess", f"score {WAITING}", rf"gold\.uplift_scores +{stage.units:,}")
    stage.play("evaluate on the hold-out", "tess", f"lift {WAITING}", r"gold\.lift_table +[\d,]+")
    stage.play("plan without a cap", "tess", f"policy {WAITING}", PLANNED, ["decide"])


def refused(stage: Stage) -> None:
    """The bias audit fails, and with it every approval."""
    approve = 'approve 1 --by bob --reason "good for all"'
    stage.play("who only reads may not approve", "vic", approve, r"vic is viewer and may not run[^,]*", fails=True)
    stage.play("what is missing is said", "bob", approve, r"it lacks a bias audit[^;]*; a model card", fails=True)
    stage.play("bias audit: it fails", "bob", f"audit bias {WAITING}", r"findings: [1-9]\d*", ["bias"])
    stage.add(stage.shares())
    lacks = r"it lacks a bias audit without findings \(it has \d+"
    stage.play("approval is refused", "bob", approve, lacks, fails=True)


def mended(stage: Stage) -> None:
    """A cap on the gap is put into the policy, and the audit passes."""
    conf = stage.folder / "offer.yaml"
    conf.write_text(conf.read_text() + CAP)
    stage.note("the policy gets a cap", "tess", "edit offer.yaml", CAP.splitlines()[1].strip())
    stage.play("plan within the cap", "tess", f"policy {WAITING}", PLANNED, ["decide"])
    free, capped = (entry["details"]["gain"] for entry in stage.recorded("decide"))
    checked(capped < free, f"the cap costs nothing: {free} and {capped}")
    stage.add(f"without the cap {free:,.0f}")
    stage.play("bias audit: it passes", "bob", f"audit bias {WAITING}", r"findings: 0", ["bias"])
    stage.add(stage.shares())
    stage.play("documents are written", "tess", "card 1 --to cards", r"questions to the owner: \d+", ["card"])


def approved(stage: Stage) -> None:
    """Another person than the trainer approves, and the version becomes the champion."""
    own = 'approve 1 --by tess --reason "my own work"'
    stage.play("not by who trained it", "tess", own, "it lacks an approver other than tess[^\n]*", fails=True)
    yes = 'approve 1 --by bob --reason "same share of all"'
    record = ["approve", "promote"]
    stage.play("approve, and promote", "bob", yes, r"verdict: Approved.*champion: True", record)


def objected(stage: Stage) -> str:
    """A user objects and is left out of what leaves; returns who."""
    plan = 'export --plan --to {} --reason "{}"'
    stage.play("the plan leaves", "tess", plan.format("first", "mailing"), r"units: [\d,]+", ["export"])
    training = stage.table("silver.training_offer")
    fitted = set(training.loc[training["split"] == "train", "unit_id"])  # of these the model has to be freed, too
    unit = min(fitted & set(stage.exported("first")["unit_id"]))
    objection = f"unit_id,purpose,granted,changed_at\n{unit},profiling,false,2025-03-01T09:00:00Z\n"
    (stage.folder / "objections.csv").write_text(objection)
    load = "load bronze.consent --from objections.csv --format csv"
    stage.play(f"{unit} objects to profiling", "tess", load, r"good: 1")
    stage.play("no score for who objected", "tess", "score", rf"gold\.uplift_scores +{stage.units - 1:,}")
    stage.play("the plan without who objected", "tess", plan.format("second", "reminder"), r"units: [\d,]+", ["export"])
    checked(set(stage.exported("first")["unit_id"]) - set(stage.exported("second")["unit_id"]) == {unit},
            f"the second export does not differ by {unit} alone")  # fmt: skip
    why = f"audit explain {unit}"
    printed = stage.play("why did they get it", "pia", why, rf"Unit {unit} gets mail[^\n]*")
    checked("Consent to marketing now: objects to profiling" in printed, f"the objection is not explained: {printed}")
    return unit


def erased(stage: Stage, unit: str) -> None:
    """The user is erased from tables and model, and the log still holds."""
    erase = f'erase --unit {unit} --reason "asked on 1 March"'
    new = r"gold\.policy_decisions[^\n]*removed|is now version 2|removed: [^\n]*"
    stage.play("erase", "pia", erase, new, ["erase", "promote", "erased"])
    for name in ("silver.training_offer", "gold.uplift_scores", "gold.policy_decisions", "bronze.consent"):
        checked(unit not in set(stage.table(name)["unit_id"]), f"{name} still has {unit}")
    gone = rf"no decision about unit '{unit}'[^\n]*"
    stage.play("nothing is left to explain", "pia", f"audit explain {unit}", gone, fails=True)
    public = "--set governance.audit.key.key_file=null --set governance.audit.key.public_key_file=audit.pub"
    whole = rf"entries: {stage.entries}.*chain: holds.*all {stage.entries} entries are covered by signed checkpoints"
    stage.play("an auditor verifies", "vic", f"audit verify --decisions {public}", whole)


def played(stage: Stage) -> None:
    """Play the story, in a session of all commands. Raises NotAsPlayed at the first step that is not as it should."""
    with contextlib.chdir(stage.folder), open_lake(Lakehouse(path="lakehouse")):
        for part in (trained, refused, mended, approved):
            part(stage)
        erased(stage, objected(stage))


def table_of(stage: Stage) -> Table:
    """The steps as a table."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head, ratio in (("step", 3), ("who", 1), ("command", 5), ("what it said", 6), ("on record as", 2)):
        table.add_column(head, ratio=ratio, overflow="fold")
    for row in stage.rows:
        table.add_row(*row)
    return table


def main() -> int:
    """Play the story and print its table; 1 where a step is not as it should be."""
    parser = argparse.ArgumentParser(prog="make approval-story", description=__doc__)
    parser.add_argument("--units", type=int, default=6000, help="customers of the trial")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "approval-story", help="made anew")
    arguments = parser.parse_args()
    started = time.monotonic()
    shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.folder.mkdir(parents=True)

    def say(step: str) -> None:
        print(f"{time.monotonic() - started:6.0f} s  {step}", file=sys.stderr, flush=True)

    stage, wrong = Stage.at(arguments.folder, arguments.units, say), ""
    try:
        played(stage)
    except NotAsPlayed as problem:
        wrong = str(problem)
    Console(markup=False, highlight=False, width=max(150, shutil.get_terminal_size().columns)).print(table_of(stage))
    print(f"\n{len(stage.rows)} steps, {stage.entries} entries, {time.monotonic() - started:.0f} s")
    print(f"not as it should be: {wrong}" if wrong else f"every step said and recorded what it should: {stage.folder}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
