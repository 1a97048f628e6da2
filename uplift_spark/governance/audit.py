"""Audit trail: entries in a hash chain, Merkle trees of batches of decisions, signed checkpoints. No Spark.

An entry is canonical JSON (RFC 8785) that holds the SHA-256 of the entry before it, so an entry that is edited, dropped
or moved breaks the chain. A chain alone does not show that its end is gone, or that all of it was written anew: a
checkpoint signs how many entries there are and the hash of the last one, and is kept elsewhere.

A batch of decisions has one root in its entry: decisions fall into buckets by the hash of their unit, each bucket is a
Merkle tree (RFC 6962), and the buckets are the leaves of another one. A proof for one unit then needs one bucket's
hashes, not all decisions. `governance.spark` keeps entries and trees in tables.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import rfc8785

from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.runtime import secret_key
from uplift_spark.sections.governance import AuditConf, CheckpointKey

# --------------------------------------------------------------------------------------------------------------------
# Entries and their chain.

GENESIS = "0" * 64
"""What the first entry has for the hash of the entry before it."""
PLAIN_FIELDS = ("seq", "at", "campaign", "actor", "action", "subject", "reason", "job_run")
"""Fields of an entry that are columns of gold.audit_log, too, for queries."""
_SHOWN = 20  # findings that a verification keeps in words


@dataclass(frozen=True)
class AuditEvent:
    """What happened, to be written as an entry.

    actor     who did it: a user's name
    action    promote, decide, allow, erase, export, approve, reject, ...
    subject   on what: a model's version, a plan, a table
    reason    why, in the words of whoever wanted it or of the configuration
    campaign  name of the campaign
    job_run   run id of the job; empty where none ran
    versions  {table, model or code: version} that it rests on
    details   figures and settings; never ids of units
    """

    actor: str
    action: str
    subject: str
    reason: str
    campaign: str
    job_run: str = ""
    versions: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class AuditEntry:
    """An entry of the chain: its number from 1, its canonical JSON, and the SHA-256 of that."""

    seq: int
    text: str
    hash: str

    @property
    def fields(self) -> dict[str, Any]:
        """The entry's fields. Raises DataError where its text is no entry."""
        try:
            fields = dict(json.loads(self.text))
            known = {name: fields[name] for name in (*PLAIN_FIELDS, "previous", "versions", "details")}
            nested = {name: dict(known[name]) for name in ("versions", "details")}
        except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise DataError(
                f"entry {self.seq} of the audit log was edited and is none any more: see `uplift audit verify`"
            ) from error
        return fields | nested


def canonical(value: Any) -> bytes:
    """Write a value as canonical JSON (RFC 8785): equal values have equal bytes, whoever writes them.

    Raises DataError for what JSON cannot hold: NaN, infinity, integers beyond 2^53, other types.
    """
    try:
        return rfc8785.dumps(value)
    except rfc8785.CanonicalizationError as error:
        raise DataError(f"the audit log cannot hold this value: {error}; write it as text") from error


def chained(events: Iterable[AuditEvent], last: AuditEntry | None, at: datetime) -> list[AuditEntry]:
    """Write events as the entries that follow `last`; at: when (UTC). Raises DataError as `canonical`."""
    entries: list[AuditEntry] = []
    for event in events:
        before = entries[-1] if entries else last
        seq = 1 if before is None else before.seq + 1
        text = canonical(
            {
                **asdict(event),
                "seq": seq,
                "at": at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "previous": GENESIS if before is None else before.hash,
            }
        )
        entries.append(AuditEntry(seq, text.decode(), hashlib.sha256(text).hexdigest()))
    return entries


@dataclass(frozen=True)
class ChainCheck:
    """Result of `check_chain`.

    entries   how many entries the log has
    head      hash of the last one
    findings  what is wrong, in sentences, at most 20 of them
    wrong     how many findings there are
    covered   entries up to the newest checkpoint that holds; 0 without one
    """

    entries: int
    head: str
    findings: tuple[str, ...]
    wrong: int
    covered: int = 0

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return self.wrong == 0


class _Findings(list[str]):
    """The first sentences, and how many there were."""

    total = 0

    def add(self, sentence: str) -> None:
        self.total += 1
        if len(self) < _SHOWN:
            self.append(sentence)


def check_chain(
    rows: Iterable[Mapping[str, Any]],
    checkpoints: Sequence[Checkpoint] | None = None,
    signer: Signer | None = None,
) -> ChainCheck:
    """Verify entries against their hashes, their chain, and checkpoints.

    Args:
        rows: `seq`, `entry` (canonical JSON) and `hash` of each entry, in the order of `seq`; values under
            PLAIN_FIELDS, where a row has them, must be those of the entry.
        checkpoints: All there are; None where none are kept, and then truncation and a full rewrite stay unnoticed.
        signer: Verifies their signatures.

    Returns:
        What is wrong, if anything; reading goes on behind a finding.
    """
    findings, heads = _Findings(), {c.entries: "" for c in checkpoints or ()}
    n, last, previous, first = 0, 0, GENESIS, ""
    for row in rows:
        n += 1
        if absent := [name for name in ("seq", "entry", "hash") if row[name] is None]:
            findings.add(f"row {n} has no {absent[0]}: it was edited, or is none of the log's")
            if row["seq"] is None:
                continue  # it has no place in the chain
        for sentence in _row_faults(row, last, previous) if not absent else ():
            findings.add(sentence)
        last, previous, first = row["seq"], row["hash"], first or row["hash"]
        if last in heads:
            heads[last] = row["hash"]
    covered = 0
    if checkpoints is not None:
        covered = _check_against(checkpoints, signer, (last, first, heads), findings)
    return ChainCheck(n, previous, tuple(findings), findings.total, covered)


def _row_faults(row: Mapping[str, Any], last: int, previous: str) -> Iterator[str]:
    seq = row["seq"]
    if seq != last + 1:
        yield f"after entry {last} comes entry {seq}: entries were dropped, or one is there twice"
    if hashlib.sha256(row["entry"].encode()).hexdigest() != row["hash"]:
        yield f"entry {seq} was edited: its text does not have the hash that stands beside it"
    try:
        fields = dict(json.loads(row["entry"]))
        if json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":")) != row["entry"]:
            # Python and RFC 8785 write some numbers and keys differently, so this is looked at once more.
            _check_canonical(row["entry"])
    except (ValueError, TypeError, ArithmeticError, RecursionError, DataError):
        yield f"entry {seq} is no canonical JSON"
        return
    if fields.get("previous") != previous:
        yield f"entry {seq} does not follow the one before it: one was dropped, moved or edited"
    if fields.get("seq") != seq:
        yield f"entry {seq} has number {fields.get('seq')} in its text: it was moved"
    if wrong := [name for name in PLAIN_FIELDS if name in row and row[name] != fields.get(name)]:
        yield f"entry {seq} shows another {wrong[0]} in its column than in its text"


def _check_canonical(text: str) -> None:
    """Raise ValueError or DataError for another text than RFC 8785 has for its value."""
    if canonical(json.loads(text, parse_int=_number)).decode() != text:
        raise ValueError


def _number(digits: str) -> int | float:
    number = int(digits)
    return number if abs(number) < 2**53 else float(digits)  # a float that is a whole number has no sign of it


# --------------------------------------------------------------------------------------------------------------------
# Checkpoints: how many entries there are and the hash of the last, signed, in a folder of small files.


class Signer(Protocol):
    """Signs checkpoints, verifies them, or both."""

    def sign(self, content: bytes) -> str:
        """The signature in hexadecimal digits."""

    def holds(self, content: bytes, signature: str) -> bool:
        """Whether the signature is one of the key's."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a log when it was signed.

    log      hash of its first entry, which tells logs apart
    entries  how many there were
    head     hash of the last one
    at       when it was signed (UTC)
    """

    log: str
    entries: int
    head: str
    at: str
    signature: str = ""

    @property
    def statement(self) -> bytes:
        """What is signed."""
        return canonical({"log": self.log, "entries": self.entries, "head": self.head, "at": self.at})

    def signed(self, signer: Signer) -> Checkpoint:
        """The same with a signature."""
        return Checkpoint(self.log, self.entries, self.head, self.at, signer.sign(self.statement))


def _check_against(
    checkpoints: Sequence[Checkpoint],
    signer: Signer | None,
    log: tuple[int, str, Mapping[int, str]],
    findings: _Findings,
) -> int:
    """Entries covered by checkpoints that hold; whatever does not hold is a finding."""
    n, first, heads = log
    covered = 0
    for one in sorted(checkpoints, key=lambda c: c.entries):
        if signer is not None and not signer.holds(one.statement, one.signature):
            findings.add(f"the checkpoint at entry {one.entries} has no signature of the configured key")
        elif one.entries > n:
            findings.add(f"the log has {n} entries, and a checkpoint says {one.entries}: its end was cut off")
        elif one.log != first:
            findings.add(f"the checkpoint at entry {one.entries} is of another log, or this log was written anew")
        elif heads[one.entries] != one.head:
            findings.add(f"entry {one.entries} has another hash than its checkpoint: the log was written anew up to it")
        else:
            covered = one.entries
    if n > covered:
        findings.add(
            f"entries {covered + 1} to {n} have no checkpoint that holds: their writer was killed before it signed, or "
            "they were added or changed by someone without the key"
        )
    return covered


class CheckpointFolder:
    """A folder with a file for each checkpoint; files are added, never changed."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def read(self) -> list[Checkpoint]:
        """Every checkpoint, in the order of entries; none where there is no folder yet.

        Raises DataError for a file that is no checkpoint.
        """
        if not self.folder.is_dir():
            return []
        return [self._read(file) for file in sorted(self.folder.glob("checkpoint-*.json"))]

    def _read(self, file: Path) -> Checkpoint:
        try:
            one = Checkpoint(**json.loads(file.read_text(encoding="utf-8")))
            texts = (one.log, one.head, one.at, one.signature)
            if type(one.entries) is not int or not all(isinstance(text, str) for text in texts) or not one.statement:
                raise TypeError
            return one
        except (OSError, ValueError, TypeError, RecursionError, DataError) as error:
            raise DataError(f"{file} is no checkpoint of an audit log: restore it from a backup") from error

    def add(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, unless the folder has one at this entry.

        Raises EnvironmentProblem when the folder cannot be written.
        """
        file = self.folder / f"checkpoint-{checkpoint.entries:012d}.json"
        part = self.folder / f".{file.name}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                part.write_text(canonical(asdict(checkpoint)).decode(), encoding="utf-8")
                part.rename(file)  # whole or not at all
        except OSError as error:
            raise EnvironmentProblem(
                f"the folder of checkpoints {self.folder} cannot be written ({error.strerror or error}): make it "
                "writable or change governance.audit.checkpoints"
            ) from error


@dataclass(frozen=True)
class HmacSigner:
    """HMAC-SHA256 with one secret: who can verify can sign."""

    key: bytes

    def sign(self, content: bytes) -> str:
        return hmac.digest(self.key, content, hashlib.sha256).hex()

    def holds(self, content: bytes, signature: str) -> bool:
        return hmac.compare_digest(self.sign(content).encode(), signature.encode())


class Ed25519Signer:
    """Ed25519: signs with the private key, verifies with the public one (RFC 8032)."""

    def __init__(self, private: bytes | None, public: bytes | None = None) -> None:
        """Keys in PEM; without `public` it is that of `private`. Raises ConfigError for anything else."""
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

        self._private = None if private is None else _pem(private, ed25519.Ed25519PrivateKey, load_pem_private_key)
        if public is not None:
            self._public = _pem(public, ed25519.Ed25519PublicKey, load_pem_public_key)
        elif self._private is not None:
            self._public = self._private.public_key()
        else:
            raise ConfigError(
                "governance.audit.key names no key: name key_env, key_file, key_secret or public_key_file"
            )

    def sign(self, content: bytes) -> str:
        if self._private is None:
            raise ConfigError(
                "governance.audit.key names a public key alone, which verifies and does not sign: name key_env, "
                "key_file or key_secret, too"
            )
        return str(self._private.sign(content).hex())

    def holds(self, content: bytes, signature: str) -> bool:
        from cryptography.exceptions import InvalidSignature

        try:
            self._public.verify(bytes.fromhex(signature), content)
        except (InvalidSignature, ValueError):
            return False
        return True


def _pem(content: bytes, kind: type, load: Any) -> Any:
    try:
        key = load(content, None) if "Private" in kind.__name__ else load(content)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            "governance.audit.key is no key in PEM without a password: make one with `openssl genpkey -algorithm "
            "ed25519`"
        ) from error
    if not isinstance(key, kind):
        raise ConfigError(
            "governance.audit.key is a key of another kind: make one with `openssl genpkey -algorithm ed25519`"
        )
    return key


def signer_of(conf: CheckpointKey) -> Signer:
    """Read the key that a configuration names. Raises ConfigError when it is not there, or is none."""
    private = secret_key("governance.audit.key", conf) if conf.signs else None
    if conf.kind == "hmac" and private is not None:
        return HmacSigner(private)
    public = None
    if conf.public_key_file is not None:
        try:
            public = Path(conf.public_key_file).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"governance.audit.key.public_key_file {conf.public_key_file} cannot be read: {error.strerror}"
            ) from error
    return Ed25519Signer(private, public)


def signing_key(conf: AuditConf | None) -> Signer | None:
    """Read what signs entries, before anything is done that needs one; None where the configuration has no key.

    Raises ConfigError when the key is not there, or is a public one alone.
    """
    if conf is None or conf.key is None:
        return None
    if not conf.key.signs:
        raise ConfigError(
            "governance.audit.key names a public key alone, which verifies and does not sign: name key_env, "
            "key_file or key_secret, too"
        )
    return signer_of(conf.key)


# --------------------------------------------------------------------------------------------------------------------
# Merkle trees of decisions: one root a batch, a proof a unit (RFC 6962, section 2.1).

UNITS_A_BUCKET = 4096


def leaf_hash(content: bytes) -> bytes:
    """Hash a leaf; the first byte keeps leaves from being taken for nodes."""
    return hashlib.sha256(b"\0" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees."""
    return hashlib.sha256(b"\1" + left + right).digest()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Compute the root of leaf hashes; of none the hash of nothing."""
    level = list(leaves)
    while len(level) > 1:
        level = _above(level)
    return level[0] if level else hashlib.sha256(b"").digest()


def _above(level: list[bytes]) -> list[bytes]:
    # The last of an odd number goes up as it is, which is the shape of RFC 6962's tree.
    nodes = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return nodes + level[len(nodes) * 2 :]


def inclusion_path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """Collect the hashes that lead from the leaf at `index` to the root, the leaf's neighbour first."""
    level, path = list(leaves), []
    while len(level) > 1:
        if (neighbour := index ^ 1) < len(level):
            path.append(level[neighbour])
        level, index = _above(level), index // 2
    return path


def root_of_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """Compute the root that a leaf's path leads to (RFC 9162, section 2.1.3.2).

    Raises DataError when the path does not belong to a tree of `size` leaves.
    """
    last, rest = size - 1, list(path)
    if not 0 <= index < size:
        raise DataError(f"a tree of {size} leaves has no leaf {index}: the proof was changed")
    while last > 0:
        if index % 2 or index < last:
            if not rest:
                raise DataError(f"a proof of a tree of {size} leaves is too short: it was changed")
            neighbour = rest.pop(0)
            leaf = node_hash(neighbour, leaf) if index % 2 else node_hash(leaf, neighbour)
        index, last = index // 2, last // 2
    if rest:
        raise DataError(f"a proof of a tree of {size} leaves is too long: it was changed")
    return leaf


def decision_leaf(decision: Mapping[str, str | int | float | bool | None]) -> bytes:
    """Hash one decision, a flat record; numbers with a fraction as the shortest text that gives them back."""
    flat = {name: repr(value) if isinstance(value, float) else value for name, value in decision.items()}
    # Texts, whole numbers, true, false and null: here Python's JSON is the canonical one.
    return leaf_hash(json.dumps(flat, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode())


def bucket_count(units: int) -> int:
    """Choose into how many buckets a batch of so many units falls, a power of two."""
    return 1 << max(0, (units - 1).bit_length() - (UNITS_A_BUCKET - 1).bit_length())


def bucket_of(unit: str, buckets: int) -> int:
    """Find the bucket of a unit, by hash of its id."""
    return int.from_bytes(hashlib.sha256(unit.encode()).digest()[:8], "big") % buckets


@dataclass(frozen=True)
class BucketRoot:
    """A bucket of decisions: its number, how many units it has, and the root of its tree in hexadecimal digits."""

    bucket: int
    units: int
    root: str

    @property
    def leaf(self) -> bytes:
        """The bucket as a leaf of its batch's tree."""
        return leaf_hash(canonical(asdict(self)))


def batch_root(buckets: Sequence[BucketRoot]) -> str:
    """Compute the root of a batch, in hexadecimal digits; buckets in the order of their numbers."""
    return merkle_root([one.leaf for one in buckets]).hex()


@dataclass(frozen=True)
class UnitProof:
    """That one decision belongs to a batch: paths from its leaf to its bucket's root, and from there to the batch's."""

    bucket: BucketRoot
    index: int
    path: tuple[bytes, ...]
    batch_index: int
    batch_size: int
    batch_path: tuple[bytes, ...]

    def root(self, leaf: bytes) -> str:
        """Compute the batch's root that the leaf leads to. Raises DataError for a proof that was changed."""
        if root_of_path(leaf, self.index, self.bucket.units, self.path).hex() != self.bucket.root:
            raise DataError(f"a decision does not belong to bucket {self.bucket.bucket} of its batch: it was changed")
        return root_of_path(self.bucket.leaf, self.batch_index, self.batch_size, self.batch_path).hex()


def unit_proof(leaf: bytes, leaves: Sequence[bytes], bucket: int, buckets: Sequence[BucketRoot]) -> UnitProof:
    """Prove that a decision is in a batch.

    Args:
        leaf: Its hash, by `decision_leaf`.
        leaves: Hashes of its bucket, sorted.
        bucket: Number of the bucket.
        buckets: All buckets of the batch, in the order of their numbers.

    Raises:
        DataError: The bucket does not have the decision as it is now.
    """
    index = bisect_left(leaves, leaf)
    position = next((i for i, one in enumerate(buckets) if one.bucket == bucket), None)
    if position is None or index == len(leaves) or leaves[index] != leaf:
        raise DataError("the decision is not the one that was recorded: it was edited after the plan was written")
    return UnitProof(
        buckets[position],
        index,
        tuple(inclusion_path(leaves, index)),
        position,
        len(buckets),
        tuple(inclusion_path([one.leaf for one in buckets], position)),
    )
