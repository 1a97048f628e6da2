"""The audit trail without Spark: canonical entries, the chain under tampering, signed checkpoints, Merkle proofs."""

from __future__ import annotations

import hashlib
import json
import random
import time
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from deltalake import write_deltalake

from uplift_spark.campaign import Campaign
from uplift_spark.config import Config, Lakehouse, RolesConf
from uplift_spark.errors import ConfigError, DataError, EnvironmentProblem
from uplift_spark.governance import audit
from uplift_spark.governance.audit import (
    AuditEntry,
    AuditEvent,
    BucketRoot,
    Checkpoint,
    CheckpointFolder,
    Ed25519Signer,
    HmacSigner,
    batch_root,
    bucket_count,
    bucket_of,
    canonical,
    chained,
    check_chain,
    decision_leaf,
    inclusion_path,
    leaf_hash,
    merkle_root,
    root_of_path,
    signer_of,
    signing_key,
    unit_proof,
)
from uplift_spark.jobs import audit as audit_job
from uplift_spark.sections.governance import AuditConf, CheckpointKey

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
# The leaves and roots that Certificate Transparency's own tests use for RFC 6962.
CT_LEAVES = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
CT_LEAVES.append(bytes.fromhex("606162636465666768696a6b6c6d6e6f"))
CT_ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def pem_pair() -> tuple[bytes, bytes]:
    key = Ed25519PrivateKey.generate()
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none)
    return private, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)


def event(number: int = 1, **changes) -> AuditEvent:
    details = {"units": number, "share": number / 7}
    return replace(AuditEvent("ann", "decide", f"plan {number}", "nightly", "spring", details=details), **changes)


def log_of(n: int) -> list[AuditEntry]:
    return chained([event(i) for i in range(1, n + 1)], None, AT)


def rows(entries: list[AuditEntry]) -> list[dict]:
    return [{"seq": e.seq, "entry": e.text, "hash": e.hash} | columns(e) for e in entries]


def columns(entry: AuditEntry) -> dict:
    return {name: entry.fields[name] for name in audit.PLAIN_FIELDS}


def checkpoint(entries: list[AuditEntry], signer: audit.Signer) -> Checkpoint:
    return Checkpoint(entries[0].hash, len(entries), entries[-1].hash, "2026-03-01T12:00:00.000000Z").signed(signer)


def test_entries_are_canonical_and_linked_by_their_hashes() -> None:
    first, second = chained([event(1), event(2, reason="späť\n")], None, AT)
    assert first.text == (
        '{"action":"decide","actor":"ann","at":"2026-03-01T12:00:00.000000Z","campaign":"spring",'
        '"details":{"share":0.14285714285714285,"units":1},"job_run":"","previous":"' + "0" * 64 + '",'
        '"reason":"nightly","seq":1,"subject":"plan 1","versions":{}}'
    )
    assert first.hash == hashlib.sha256(first.text.encode()).hexdigest()
    assert second.seq == 2 and second.fields["previous"] == first.hash
    # One after the other gives the same chain as both at once.
    assert chained([event(2, reason="späť\n")], first, AT) == [second]
    assert check_chain(rows([first, second])).holds
    # Numbers that Python and RFC 8785 write differently.
    (odd,) = chained([event(details={"p": 1e-7, "n": 1e16, "one": 1.0})], None, AT)
    assert '"details":{"n":10000000000000000,"one":1,"p":1e-7}' in odd.text and check_chain(rows([odd])).holds
    for value in (float("nan"), float("inf"), 2**60, {1: 2}, object()):
        with pytest.raises(DataError, match="the audit log cannot hold this value"):
            canonical({"value": value})


def tampered(entries: list[AuditEntry], kind: str, draw: random.Random) -> list[dict]:
    """The log after one tampering, by someone who has the tables and the code but not the key."""
    n, log = len(entries), rows(entries)
    k = draw.randrange(n)
    if kind == "text":
        log[k]["entry"] = log[k]["entry"].replace('"ann"', '"bob"')
    elif kind == "column":
        name = draw.choice(audit.PLAIN_FIELDS[1:])
        log[k][name] = f"{log[k][name]}x"
    elif kind == "text and hash":
        text = log[k]["entry"].replace('"nightly"', '"asked by the boss"')
        log[k] |= {"entry": text, "hash": hashlib.sha256(text.encode()).hexdigest(), "reason": "asked by the boss"}
    elif kind == "drop":
        del log[draw.randrange(n - 1)]
    elif kind == "drop and renumber":
        del log[draw.randrange(n - 1)]
        log = [row | {"seq": i} for i, row in enumerate(log, 1)]
    elif kind == "reorder":
        a, b = draw.sample(range(n), 2)
        log[a], log[b] = log[b] | {"seq": a + 1}, log[a] | {"seq": b + 1}
    elif kind == "insert":
        log.insert(k, log[k])
    elif kind == "truncate":
        log = log[: draw.randrange(n)]
    elif kind == "rewrite the end":
        keep = draw.randrange(n)
        again = chained(
            [event(i, actor="bob") for i in range(keep + 1, n + 1)], entries[keep - 1] if keep else None, AT
        )
        log = rows([*entries[:keep], *again])
    elif kind == "rewrite all":
        log = rows(chained([event(i, actor="bob") for i in range(1, n + draw.randrange(1, 9))], None, AT))
    elif kind == "add":
        log = rows([*entries, *chained([event(99)], entries[-1], AT)])
    return log


KINDS = (
    *("text", "column", "text and hash", "drop", "drop and renumber", "reorder", "insert"),
    *("truncate", "rewrite the end", "rewrite all", "add"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_one_of_1001_tamperings_is_found(kind: str) -> None:
    draw, signer = random.Random(kind), HmacSigner(b"0123456789abcdef")
    whole = log_of(20)
    signed = [checkpoint(whole[:i], signer) for i in range(1, len(whole) + 1)]
    for _ in range(91):
        entries = whole[: draw.randrange(2, len(whole))]
        checkpoints = signed[: len(entries)]
        found = check_chain(tampered(entries, kind, draw), checkpoints, signer)
        assert not found.holds and found.findings, kind
        if kind not in ("text and hash", "truncate", "rewrite the end", "rewrite all", "add"):
            assert not check_chain(tampered(entries, kind, draw)).holds  # the chain alone shows these


def test_a_rewrite_with_checkpoints_of_another_key_is_found() -> None:
    private, public = pem_pair()
    mine, theirs = Ed25519Signer(private), Ed25519Signer(pem_pair()[0])
    auditor = Ed25519Signer(None, public)
    entries, forged = log_of(5), chained([event(i, actor="bob") for i in range(5)], None, AT)
    assert check_chain(rows(entries), [checkpoint(entries, mine)], auditor).covered == 5
    forgery = [checkpoint(forged[:i], theirs) for i in range(1, 6)]
    found = check_chain(rows(forged), forgery, auditor)
    assert "the checkpoint at entry 1 has no signature of the configured key" in found.findings and found.covered == 0
    # A true checkpoint whose numbers were edited, and all checkpoints removed.
    edited = replace(checkpoint(forged, mine), head=entries[-1].hash)
    assert not check_chain(rows(entries), [edited], auditor).holds
    assert "entries 1 to 5 have no checkpoint that holds" in check_chain(rows(entries), [], auditor).findings[0]
    # What was written after the last checkpoint is said, too.
    found = check_chain(rows(entries), [checkpoint(entries[:3], mine)], auditor)
    assert found.covered == 3 and found.findings[0].startswith("entries 4 to 5 have no checkpoint that holds")
    with pytest.raises(ConfigError, match="a public key alone"):
        auditor.sign(b"x")


def test_findings_name_the_entry_and_what_happened_to_it() -> None:
    log = rows(log_of(4))
    del log[2]
    assert check_chain(log).findings == (
        "after entry 2 comes entry 4: entries were dropped, or one is there twice",
        "entry 4 does not follow the one before it: one was dropped, moved or edited",
    )
    log = rows(log_of(2))
    log[1]["actor"] = "bob"
    assert check_chain(log).findings == ("entry 2 shows another actor in its column than in its text",)
    log[1] |= {"entry": log[1]["entry"].replace(",", ", ", 1)}
    assert "entry 2 is no canonical JSON" in check_chain(log).findings
    for text in ("[1]", "3", "{", '{"a":1,"a":1}'):
        log[1]["entry"] = text
        assert "entry 2 is no canonical JSON" in check_chain(log).findings
    for text in ('{"seq": ' + "9" * 400 + "}", "[" * 100_000):
        log[1]["entry"] = text
        assert "entry 2 is no canonical JSON" in check_chain(log).findings
    many = check_chain([row | {"hash": "x"} for row in rows(log_of(40))])
    assert len(many.findings) == 20 and many.wrong > 40


def test_rows_without_a_number_text_or_hash_are_found() -> None:
    for name in ("seq", "entry", "hash"):
        log = rows(log_of(3))
        log.insert(1, log[1] | {name: None})
        assert f"row 2 has no {name}: it was edited, or is none of the log's" in check_chain(log).findings
    log = rows(log_of(3))
    extra = dict.fromkeys(log[0])
    assert check_chain([extra, *log]).findings == ("row 1 has no seq: it was edited, or is none of the log's",)


@pytest.mark.parametrize("text", [None, "", "[1]", "{}", '{"versions":{},"details":3}', "[" * 100_000, "9" * 5000])
def test_an_entry_that_is_none_is_one_sentence(text: str | None) -> None:
    with pytest.raises(DataError, match="entry 7 of the audit log was edited and is none any more"):
        assert AuditEntry(7, text, "x").fields  # type: ignore[arg-type]


def test_checkpoints_are_files_that_are_added_and_never_changed(tmp_path) -> None:
    folder, signer = CheckpointFolder(str(tmp_path / "far" / "away")), HmacSigner(b"0123456789abcdef")
    assert folder.read() == []
    entries = log_of(12)
    for n in (2, 12):
        folder.add(checkpoint(entries[:n], signer))
    folder.add(replace(checkpoint(entries[:2], signer), at="later"))
    assert [(c.entries, c.at) for c in folder.read()] == [(2, "2026-03-01T12:00:00.000000Z"), (12, folder.read()[1].at)]
    assert check_chain(rows(entries), folder.read(), signer).holds
    assert sorted(p.name for p in folder.folder.iterdir()) == [
        "checkpoint-000000000002.json",
        "checkpoint-000000000012.json",
    ]
    fields = vars(folder.read()[0])
    for wrong in ({}, {**fields, "entries": "2"}, {**fields, "entries": 1 << 60}, {**fields, "signature": None}, [1]):
        (folder.folder / "checkpoint-000000000002.json").write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=r"000002\.json is no checkpoint of an audit log"):
            folder.read()
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        CheckpointFolder(str(tmp_path / "file")).add(checkpoint(entries, signer))


def test_keys_come_from_environment_and_files(tmp_path, monkeypatch) -> None:
    private, public = pem_pair()
    monkeypatch.setenv("AUDIT_KEY", private.decode())
    (tmp_path / "public.pem").write_bytes(public)
    signer = signer_of(CheckpointKey(key_env="AUDIT_KEY"))
    auditor = signer_of(CheckpointKey(public_key_file=str(tmp_path / "public.pem")))
    assert auditor.holds(b"x", signer.sign(b"x")) and not auditor.holds(b"y", signer.sign(b"x"))
    assert not auditor.holds(b"x", "no digits")
    monkeypatch.setenv("AUDIT_KEY", "a secret of many bytes")
    secret = signer_of(CheckpointKey(kind="hmac", key_env="AUDIT_KEY"))
    assert secret.holds(b"x", secret.sign(b"x")) and not secret.holds(b"y", secret.sign(b"x"))
    with pytest.raises(ConfigError, match="no key in PEM"):
        signer_of(CheckpointKey(key_env="AUDIT_KEY"))
    (tmp_path / "public.pem").write_bytes(private)
    with pytest.raises(ConfigError, match="no key in PEM"):
        signer_of(CheckpointKey(public_key_file=str(tmp_path / "public.pem")))
    with pytest.raises(ConfigError, match="cannot be read"):
        signer_of(CheckpointKey(public_key_file=str(tmp_path / "nowhere")))
    assert signing_key(None) is None and signing_key(AuditConf()) is None
    with pytest.raises(ConfigError, match="a public key alone"):
        signing_key(AuditConf("elsewhere", CheckpointKey(public_key_file="p.pem")))
    with pytest.raises(ConfigError, match=r"\$NO_SUCH_KEY, which is not set"):
        signing_key(AuditConf("elsewhere", CheckpointKey(kind="hmac", key_env="NO_SUCH_KEY")))
    for wrong in ({}, {"key_env": "A", "key_file": "b"}, {"kind": "hmac", "public_key_file": "p", "key_env": "A"}):
        with pytest.raises(ConfigError, match=r"governance\.audit\.key"):
            CheckpointKey(**wrong)
    with pytest.raises(ConfigError, match="belong together"):
        AuditConf(checkpoints="elsewhere")


@pytest.mark.parametrize("n", range(1, 9))
def test_roots_and_paths_are_those_of_rfc_6962(n: int) -> None:
    leaves = [leaf_hash(content) for content in CT_LEAVES[:n]]
    assert merkle_root(leaves).hex() == CT_ROOTS[n - 1]
    for index, leaf in enumerate(leaves):
        path = inclusion_path(leaves, index)
        assert root_of_path(leaf, index, n, path).hex() == CT_ROOTS[n - 1]
        for wrong in (path[:-1], [*path, leaf], [bytes(32), *path[1:]]) if n > 1 else ([leaf],):
            try:
                assert root_of_path(leaf, index, n, wrong).hex() != CT_ROOTS[n - 1]
            except DataError as error:
                assert "was changed" in str(error)
        if n > 1:
            with pytest.raises(DataError):
                assert root_of_path(leaf, index + n, n, path).hex() == CT_ROOTS[n - 1]
    assert merkle_root([]).hex() == hashlib.sha256(b"").hexdigest()


def batch(n: int, buckets: int) -> tuple[dict[int, list[bytes]], list[BucketRoot]]:
    leaves: dict[int, list[bytes]] = {}
    for i in range(n):
        leaves.setdefault(bucket_of(f"u{i}", buckets), []).append(decision_leaf(decision(i)))
    trees = {b: sorted(leaves[b]) for b in sorted(leaves)}
    return trees, [BucketRoot(b, len(tree), merkle_root(tree).hex()) for b, tree in trees.items()]


def decision(i: int) -> dict:
    return {"unit_id": f"u{i}", "treatment": "5%", "gain": i / 3, "cost": 1.0, "run_id": "policy-1"}


def test_each_unit_of_a_batch_has_a_proof_and_an_edited_one_has_none() -> None:
    trees, buckets = batch(300, 8)
    root = batch_root(buckets)
    for i in range(0, 300, 7):
        b, leaf = bucket_of(f"u{i}", 8), decision_leaf(decision(i))
        proof = unit_proof(leaf, trees[b], b, buckets)
        assert proof.root(leaf) == root
        with pytest.raises(DataError, match="it was changed"):
            proof.root(decision_leaf(decision(i) | {"gain": 1e9}))
    with pytest.raises(DataError, match="edited after the plan was written"):
        unit_proof(decision_leaf(decision(3) | {"treatment": "10%"}), trees[bucket_of("u3", 8)], 0, buckets)
    # A unit more or less, or an edited one, is another root.
    assert len({batch_root(batch(n, 8)[1]) for n in (299, 300, 301)}) == 3
    assert decision_leaf({"a": 0.1, "b": "ü"}) == leaf_hash('{"a":"0.1","b":"ü"}'.encode())


def test_buckets_hold_about_4096_units_whatever_the_batch() -> None:
    assert [bucket_count(n) for n in (0, 1, 4096, 4097, 8192, 8193, 10_000_000)] == [1, 1, 1, 2, 2, 4, 4096]
    counts = [0] * 16
    for i in range(3200):
        counts[bucket_of(f"u{i}", 16)] += 1
    assert min(counts) > 140 and max(counts) < 260


def test_a_proof_reads_one_bucket_so_ten_million_units_cost_what_few_do() -> None:
    """4,096 buckets as of 10 million decisions, of which one bucket is built: the work of `uplift audit explain`."""
    buckets = bucket_count(10_000_000)
    wanted = bucket_of("u17", buckets)
    leaves = sorted([decision_leaf(decision(17)), *(leaf_hash(str(i).encode()) for i in range(2500))])
    others = [BucketRoot(b, 2441, hashlib.sha256(b"%d" % b).hexdigest()) for b in range(buckets)]
    others[wanted] = BucketRoot(wanted, len(leaves), merkle_root(leaves).hex())
    started = time.process_time()
    proof = unit_proof(decision_leaf(decision(17)), leaves, wanted, others)
    assert proof.root(decision_leaf(decision(17))) == batch_root(others)
    assert time.process_time() - started < 1
    assert len(proof.path) + len(proof.batch_path) <= 26


def test_verification_is_fast_enough_for_a_million_entries() -> None:
    log = rows(log_of(4000))
    started = time.process_time()
    assert check_chain(log).holds
    assert time.process_time() - started < 60 * len(log) / 1e6
    assert json.loads(log[-1]["entry"])["seq"] == 4000


def test_questions_without_a_log_are_answered_before_spark_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("uplift_spark.campaign.spark_session", lambda *_: pytest.fail("Spark is started"))
    house = Lakehouse(path=str(tmp_path))
    campaign = Campaign(Config("spring", None, RolesConf("visit", "none", ("age",)), lakehouse=house))
    asked = {what: audit_job.AuditQuestion(what, "u1" if what == "explain" else None) for what in ("verify", "explain")}
    for question in asked.values():
        with pytest.raises(DataError, match=r"gold\.audit_log does not exist: set governance\.audit"):
            audit_job.run(campaign, question=question)
    write_deltalake(tmp_path / "gold" / "audit_log", pa.table({"seq": [1]}))
    with pytest.raises(DataError, match=r"gold\.policy_decisions does not exist .*: run `uplift policy` first"):
        audit_job.run(campaign, question=asked["explain"])
    assert audit_job.READS_RESULTS  # else the command line starts Spark before it asks
