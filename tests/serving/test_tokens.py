"""Signed decisions: what a token says, what is refused, and keys that come and go; no Spark."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.serving.published import config_of, publish, running
from uplift_spark.errors import ConfigError, DataError
from uplift_spark.serving.api import serving_app
from uplift_spark.serving.client import ServingClient
from uplift_spark.serving.tokens import (
    JWKS_PATH,
    JWKS_SECONDS,
    SigningKeys,
    public_jwk,
    unit_digest,
    verified_decision,
)

NOW = 1_800_000_000.0


def pem(private) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def add_key(folder, name, at=NOW - 10 * JWKS_SECONDS):
    """A new private key in a folder, written at a moment."""
    folder.mkdir(exist_ok=True)
    private = ed25519.Ed25519PrivateKey.generate()
    (folder / name).write_bytes(pem(private))
    os.utime(folder / name, (at, at))
    return private


def decision_at(now=NOW, **changes):
    """A decision as the service answers it, made now."""
    moment = datetime.fromtimestamp(now, UTC)
    facts = {
        "request_key": "visit-17", "unit_id": "ü1", "campaign": "spring", "level": "10%", "reason": "best",
        "propensity": 0.87, "overall_propensity": 0.78, "explored": False, "decided_at": moment.isoformat(),
        "expires_at": (moment + timedelta(minutes=30)).isoformat(),
        "model": {"name": "spring", "version": 3, "published": "v1"}, "degraded": [], "logged": True,
    }  # fmt: skip
    return {**facts, **changes}


class Clock:
    def __init__(self, now=NOW):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def keys(tmp_path):
    add_key(tmp_path / "keys", "1.pem")
    return SigningKeys(tmp_path / "keys", Clock())


def part(value) -> str:
    return (
        base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode())
        .rstrip(b"=")
        .decode()
    )


def parts_of(token):
    return [json.loads(base64.urlsafe_b64decode(one + "==")) for one in token.split(".")[:2]]


def test_a_token_says_what_was_decided_for_whom_until_when(keys):
    token = keys.token(decision_at(), 60)
    header, claims = parts_of(token)
    (jwk,) = keys.jwks()["keys"]
    assert header == {"alg": "EdDSA", "typ": "uplift-decision+jwt", "kid": jwk["kid"]}
    assert set(jwk) == {"kty", "crv", "x", "kid", "use", "alg"}  # nothing private
    assert claims == verified_decision(token, keys.jwks(), "spring", "ü1", NOW + 59)
    assert claims == {
        "aud": "spring", "sub": unit_digest("spring", "ü1"), "jti": "visit-17", "iat": int(NOW), "exp": int(NOW) + 60,
        "level": "10%", "propensity": 0.87, "overall_propensity": 0.78, "explored": False, "model_version": 3,
    }  # fmt: skip
    assert "ü1" not in json.dumps(claims, ensure_ascii=False)
    assert unit_digest("summer", "ü1") != unit_digest("spring", "ü1")


def test_keys_and_signatures_are_those_of_the_rfc():
    """RFC 8037, appendices A.2 to A.5."""
    d = base64.urlsafe_b64decode("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=")
    private = ed25519.Ed25519PrivateKey.from_private_bytes(d)
    jwk = public_jwk(private.public_key())
    assert jwk["x"] == "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"
    assert jwk["kid"] == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    signed = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
    wanted = "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    assert part(private.sign(signed.encode())) == wanted


def test_a_token_holds_no_longer_than_its_decision(keys):
    short = decision_at(expires_at=datetime.fromtimestamp(NOW + 20.5, UTC).isoformat())
    assert parts_of(keys.token(short, 60))[1]["exp"] == int(NOW) + 20
    # A request that is repeated is answered as before, but a decision that has expired is not signed again.
    assert keys.token(decision_at(NOW - 1800), 60) is None
    later = parts_of(keys.token(decision_at(NOW - 1790), 60))[1]
    assert later["exp"] == int(NOW) + 10


@pytest.mark.parametrize("changes", [{"logged": False}, {"degraded": ["features_stale"]}])
def test_a_decision_that_nobody_logged_or_that_lacks_something_is_not_kept(keys, changes):
    assert keys.token(decision_at(**changes), 60) is None


def forged(keys, header=None, claims=None, signer=None):
    """A token with other contents, signed by `signer`, or with the old signature."""
    token = keys.token(decision_at(), 60)
    old = parts_of(token)
    body = f"{part({**old[0], **(header or {})})}.{part({**old[1], **(claims or {})})}"
    return f"{body}.{token.split('.')[2] if signer is None else part(signer.sign(body.encode()))}"


@pytest.mark.parametrize("alg", ["none", "None", "HS256", "ES256", "", None, ["EdDSA"]])
def test_no_other_algorithm_is_taken_not_even_none(keys, alg):
    token = forged(keys, {"alg": alg})
    for sent in (token, token.rsplit(".", 1)[0] + "."):
        with pytest.raises(DataError, match="which alone is taken"):
            verified_decision(sent, keys.jwks(), "spring", "ü1", NOW)


def test_a_public_key_is_no_secret_to_sign_with(keys):
    """The classic: a token signed by HMAC with the public key as the secret."""
    import hashlib
    import hmac

    (jwk,) = keys.jwks()["keys"]
    body = forged(keys, {"alg": "HS256"}).rsplit(".", 1)[0]
    mac = hmac.digest(base64.urlsafe_b64decode(jwk["x"] + "="), body.encode(), hashlib.sha256)
    with pytest.raises(DataError, match="which alone is taken"):
        verified_decision(f"{body}.{part(mac)}", keys.jwks(), "spring", "ü1", NOW)


@pytest.mark.parametrize(
    "claims", [{"level": "none"}, {"exp": 2**40}, {"sub": unit_digest("spring", "u2")}, {"aud": "summer"}]
)
def test_what_was_altered_is_refused(keys, claims):
    with pytest.raises(DataError, match="was altered"):
        verified_decision(forged(keys, claims=claims), keys.jwks(), "spring", "ü1", NOW)


def test_every_character_of_a_token_counts(keys):
    token = keys.token(decision_at(), 60)
    for place in range(len(token)):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(DataError):
            verified_decision(token[:place] + other + token[place + 1 :], keys.jwks(), "spring", "ü1", NOW)


def test_a_key_that_is_not_published_is_refused_whatever_it_calls_itself(keys):
    mine = ed25519.Ed25519PrivateKey.generate()
    jwk = public_jwk(mine.public_key())
    with pytest.raises(DataError, match="key is not known"):
        verified_decision(forged(keys, {"kid": jwk["kid"]}, signer=mine), keys.jwks(), "spring", "ü1", NOW)
    with pytest.raises(DataError, match="was altered"):  # by the id of ours
        verified_decision(forged(keys, signer=mine), keys.jwks(), "spring", "ü1", NOW)
    with pytest.raises(DataError, match="was altered"):  # a key in the header is not looked at
        verified_decision(forged(keys, {"jwk": jwk}, signer=mine), keys.jwks(), "spring", "ü1", NOW)
    with pytest.raises(DataError, match="which alone is taken"):
        verified_decision(forged(keys, {"crit": ["exp"]}), keys.jwks(), "spring", "ü1", NOW)


def test_another_campaign_another_unit_and_another_time_are_refused(keys):
    token = keys.token(decision_at(), 60)

    def check(campaign="spring", unit="ü1", now=NOW):
        return verified_decision(token, keys.jwks(), campaign, unit, now)

    assert check(now=NOW - 5)["level"] == check(now=NOW + 59.9)["level"] == "10%"
    for wrong in ({"campaign": "summer"}, {"unit": "u2"}):
        with pytest.raises(DataError, match="is not of campaign"):
            check(**wrong)
    for wrong in ({"now": NOW + 60}, {"now": NOW - 6}):
        with pytest.raises(DataError, match="has expired, or is of a time to come"):
            check(**wrong)


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.b.c.d", "..", "*.*.*", "e30.e30.e30=", "W10.e30.AA", "x" * 9000])
def test_what_is_no_token_is_refused(keys, token):
    with pytest.raises(DataError):
        verified_decision(token, keys.jwks(), "spring", "ü1", NOW)


@pytest.mark.parametrize("token", [None, b"a.b.c", 7])
def test_what_is_not_even_a_text_is_refused(keys, token):
    """As of an answer with "token": null."""
    with pytest.raises(DataError, match="no compact JSON Web Signature"):
        verified_decision(token, keys.jwks(), "spring", "ü1", NOW)


def test_keys_of_other_kinds_are_passed_over_and_what_are_no_keys_is_said(keys):
    token, (jwk,) = keys.token(decision_at(), 60), keys.jwks()["keys"]
    others = [{"kty": "RSA", "n": "AQ", "e": "AQAB"}, {"kid": jwk["kid"], "kty": "RSA"}, "none", {**jwk, "kid": None}]
    assert verified_decision(token, {"keys": [*others, jwk]}, "spring", "ü1", NOW)
    for broken in (None, [], {}, {"keys": None}, {"error": "busy"}):
        with pytest.raises(DataError, match=r"are no JSON Web Key Set: fetch /\.well-known"):
            verified_decision(token, broken, "spring", "ü1", NOW)
    with pytest.raises(DataError, match="key is not known"):
        verified_decision(token, {"keys": others}, "spring", "ü1", NOW)
    for x in ("AAAA", "*", 7):
        with pytest.raises(DataError, match="is no Ed25519 key: fetch"):
            verified_decision(token, {"keys": [{**jwk, "x": x}]}, "spring", "ü1", NOW)


def test_ids_are_compared_as_the_service_reads_them(keys):
    token = keys.token(decision_at(), 60)
    assert verified_decision(token, keys.jwks(), "spring", " ü1\n", NOW)  # blanks around an id are no part of it
    with pytest.raises(DataError, match="and this unit"):
        verified_decision(token, keys.jwks(), "spring", "\ud800", NOW)


# ---------------------------------------------------------------- keys


def signer_of(token):
    return parts_of(token)[0]["kid"]


def test_a_new_key_is_published_at_once_and_signs_once_everybody_knows_it(tmp_path):
    """Each token can be checked by whoever keeps the public keys as long as allowed, at every moment of a rotation."""
    folder, clock = tmp_path / "keys", Clock()
    first = public_jwk(add_key(folder, "1.pem", NOW).public_key())["kid"]
    keys = SigningKeys(folder, clock)
    assert signer_of(keys.token(decision_at(), 60)) == first  # the only one there is
    clock.now = NOW + 2 * JWKS_SECONDS
    second = public_jwk(add_key(folder, "2.pem", clock.now).public_key())["kid"]
    cached = keys.jwks()
    assert [key["kid"] for key in cached["keys"]] == [first, second]
    before = keys.token(decision_at(clock.now), 60)
    clock.now += JWKS_SECONDS
    after = keys.token(decision_at(clock.now), 60)
    assert (signer_of(before), signer_of(after)) == (first, second)
    assert verified_decision(after, cached, "spring", "ü1", clock.now)
    (folder / "1.pem").unlink()
    assert [key["kid"] for key in keys.jwks()["keys"]] == [second]
    with pytest.raises(DataError, match="key is not known"):
        verified_decision(before, keys.jwks(), "spring", "ü1", clock.now - JWKS_SECONDS)


def test_a_key_that_was_written_long_ago_signs_five_minutes_after_it_came_into_the_folder(tmp_path):
    """`mv`, `rsync -t` and `tar` keep the time of a file."""
    clock = Clock()
    first = public_jwk(add_key(tmp_path / "keys", "1.pem").public_key())["kid"]
    keys = SigningKeys(tmp_path / "keys", clock)
    cached = keys.jwks()
    second = public_jwk(add_key(tmp_path / "made", "2.pem", NOW - 86400).public_key())["kid"]
    shutil.move(tmp_path / "made" / "2.pem", tmp_path / "keys" / "2.pem")
    assert verified_decision(keys.token(decision_at(), 60), cached, "spring", "ü1", NOW)
    assert [key["kid"] for key in keys.jwks()["keys"]] == [first, second]
    clock.now += JWKS_SECONDS
    os.utime(tmp_path / "keys" / "2.pem", (clock.now, clock.now))  # the same key is no newer for that
    assert signer_of(keys.token(decision_at(clock.now), 60)) == second


def test_a_key_in_place_of_one_of_the_same_time_is_seen_and_a_copy_is_no_second_key(tmp_path):
    folder = tmp_path / "keys"
    add_key(folder, "1.pem", NOW - 86400)
    keys = SigningKeys(folder, Clock())
    new = public_jwk(add_key(tmp_path / "made", "1.pem", NOW - 86400).public_key())["kid"]
    os.replace(tmp_path / "made" / "1.pem", folder / "1.pem")
    assert signer_of(keys.token(decision_at(), 60)) == new  # at once, as the other leaked
    shutil.copy(folder / "1.pem", folder / "2.pem")
    assert [key["kid"] for key in keys.jwks()["keys"]] == [new]


def test_keys_that_cannot_be_read_leave_those_that_were(tmp_path, caplog):
    folder = tmp_path / "keys"
    add_key(folder, "1.pem")
    keys = SigningKeys(folder, Clock())
    before = keys.jwks()
    (folder / "2.pem").write_text("-----BEGIN PRIVATE KEY-----\nhalf")
    assert keys.jwks() == before and verified_decision(keys.token(decision_at(), 60), before, "spring", "ü1", NOW)
    assert "2.pem is no Ed25519 private key" in caplog.text and "half" not in caplog.text
    for file in folder.iterdir():
        file.unlink()
    assert keys.jwks() == before and "has no file *.pem" in caplog.text


def test_a_folder_without_a_key_or_with_one_of_another_kind_is_refused(tmp_path):
    folder = tmp_path / "keys"
    with pytest.raises(ConfigError, match=r"has no file \*\.pem: make a key with `openssl genpkey"):
        SigningKeys(folder)
    folder.mkdir()
    (folder / "1.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(ConfigError, match=r"1\.pem is no Ed25519 private key"):
        SigningKeys(folder)
    (folder / "1.pem").unlink()
    command = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(folder / "1.pem")]
    subprocess.run(command, check=True, capture_output=True)
    assert len(SigningKeys(folder).jwks()["keys"]) == 1


# ---------------------------------------------------------------- without the package: the examples of the guide

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


@pytest.fixture
def at_the_edge(tmp_path):
    """(jwks, {what: (token, campaign, unit)}): one that holds now, under `good`, and what must be refused."""
    add_key(tmp_path / "keys", "1.pem")
    clock = Clock(time.time())
    keys, now = SigningKeys(tmp_path / "keys", clock), clock.now
    good = keys.token(decision_at(now), 60)
    head, body, signature = good.split(".")
    jwks, (_, claims) = keys.jwks(), parts_of(good)
    stranger = ed25519.Ed25519PrivateKey.generate()
    other = f"{part({**parts_of(good)[0], 'kid': public_jwk(stranger.public_key())['kid']})}.{body}"
    clock.now = now - 120
    old = keys.token(decision_at(clock.now), 60)
    clock.now = now + 120
    early = keys.token(decision_at(clock.now), 60)
    none = part({**parts_of(good)[0], "alg": "none"})
    tokens = {
        "good": good, "altered": f"{head}.{part({**claims, 'level': 'none'})}.{signature}", "expired": old,
        "early": early, "no algorithm": f"{none}.{body}.", "other algorithm": f"{none}.{body}.{signature}",
        "unknown key": f"{other}.{part(stranger.sign(other.encode()))}", "two parts": f"{head}.{body}",
        "four parts": f"{good}.{signature}", "cut": good[:-4], "empty": "",
    }  # fmt: skip
    cases = {what: (token, "spring", "ü1") for what, token in tokens.items()}
    return jwks, {**cases, "other campaign": (good, "summer", "ü1"), "other unit": (good, "spring", "u2")}


def test_the_python_example_takes_what_holds_and_refuses_the_rest(at_the_edge):
    jwks, cases = at_the_edge
    names: dict[str, Any] = {}
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "def decision_of" in block]
    exec(block, names)
    for check in (names["decision_of"], lambda token, keys, *whose: verified_decision(token, keys, *whose)):
        taken = {}
        for what, (token, campaign, unit) in cases.items():
            with suppress(Exception):
                taken[what] = check(token, jwks, campaign, unit)["level"]
        assert taken == {"good": "10%"}


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_javascript_example_takes_what_holds_and_refuses_the_rest(at_the_edge, tmp_path):
    jwks, cases = at_the_edge
    (block,) = re.findall(r"```js\n(.*?)```", PAGE, re.S)
    program = f"""{block}
    const [jwks, cases] = {json.dumps([jwks, cases])}, taken = {{}};
    for (const [what, [token, campaign, unit]] of Object.entries(cases)) {{
      try {{ taken[what] = (await decisionOf(token, jwks, campaign, unit)).level; }}
      catch (error) {{ }}
    }}
    console.log(JSON.stringify(taken));
    """
    file = tmp_path / "edge.mjs"
    file.write_text(program)
    done = subprocess.run(["node", "--no-warnings", str(file)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"good": "10%"}


# ---------------------------------------------------------------- the service


@pytest.fixture(scope="module")
def signing(tmp_path_factory, trained):
    """(service, folder of its keys)."""
    folder = tmp_path_factory.mktemp("signing")
    add_key(folder / "keys", "1.pem", time.time() - 2 * JWKS_SECONDS)
    config = config_of(folder, signing={"keys": str(folder / "keys"), "seconds": 60}, holdout=0.2)
    publish(config, *trained, 9)
    with running(config) as service:
        yield service, folder / "keys"


def sent(service, method, path, body=None, **headers):
    text = None if body is None else json.dumps(body).encode()
    return service._pool.request(
        method, service.url + path, body=text, headers={"content-type": "application/json", **headers}
    )


def jwks_of(service):
    return json.loads(sent(service, "GET", JWKS_PATH).data)


def test_a_decision_by_http_comes_with_a_token_that_the_published_keys_check(signing):
    service, _ = signing
    requests = [{"request_key": f"edge-{i}", "unit_id": f"u{i:06d}"} for i in range(9)]
    answer = sent(service, "POST", "/v1/decisions", {"sign": True, "requests": requests})
    assert answer.headers["cache-control"] == "private, max-age=59"
    for one in json.loads(answer.data)["decisions"]:
        claims = verified_decision(one["token"], jwks_of(service), "spring", one["unit_id"])
        same = ("level", "propensity", "overall_propensity", "explored")
        assert {name: claims[name] for name in same} == {name: one[name] for name in same}
        assert (claims["jti"], claims["model_version"]) == (one["request_key"], 1)
    again = service.post("/v1/decisions", {"sign": True, "requests": requests})[1]["decisions"]
    for one, before in zip(again, json.loads(answer.data)["decisions"], strict=True):
        token = one.pop("token")
        assert one == {name: value for name, value in before.items() if name != "token"}
        assert verified_decision(token, jwks_of(service), "spring", one["unit_id"])["jti"] == one["request_key"]
    client = ServingClient(service.url, "none", timeout=30)
    assert verified_decision(client.decide("u000001", sign=True)["token"], jwks_of(service), "spring", "u000001")
    assert "token" not in client.decide("u000001")


def test_what_must_not_be_kept_has_no_token_and_says_so(signing):
    service, _ = signing
    unknown = {"sign": True, "requests": [{"request_key": "edge-x", "unit_id": "nobody"}]}
    answer = sent(service, "POST", "/v1/decisions", unknown)
    assert json.loads(answer.data)["decisions"][0]["token"] is None and answer.headers["cache-control"] == "no-store"
    plain = sent(service, "POST", "/v1/decisions", {"requests": [{"request_key": "edge-1", "unit_id": "u000001"}]})
    assert plain.headers["cache-control"] == "no-store" and "token" not in json.loads(plain.data)["decisions"][0]


def test_public_keys_need_no_api_key_and_are_kept_by_their_tag(signing):
    service, _ = signing
    answer = sent(service, "GET", JWKS_PATH)
    assert answer.status == 200 and answer.headers["content-type"] == "application/jwk-set+json"
    assert answer.headers["cache-control"] == f"public, max-age={JWKS_SECONDS}"
    same = sent(service, "GET", JWKS_PATH, **{"if-none-match": answer.headers["etag"]})
    assert (same.status, same.data) == (304, b"") and same.headers["etag"] == answer.headers["etag"]
    assert sent(service, "GET", JWKS_PATH, **{"if-none-match": '"other"'}).status == 200


def test_keys_change_while_the_service_runs(signing):
    service, folder = signing
    tag = sent(service, "GET", JWKS_PATH).headers["etag"]
    new = public_jwk(add_key(folder, "2.pem", time.time() - 2 * JWKS_SECONDS).public_key())["kid"]
    assert sent(service, "GET", JWKS_PATH, **{"if-none-match": tag}).status == 200
    (folder / "1.pem").unlink()
    token = ServingClient(service.url, "none", timeout=30).decide("u000001", sign=True)["token"]
    assert signer_of(token) == new and verified_decision(token, jwks_of(service), "spring", "u000001")


def test_a_decision_that_could_not_be_made_any_more_is_answered_again_but_not_signed_again(tmp_path, trained):
    """Else whoever asks with the same request key keeps a level until the decision expires, long after `seconds`."""
    add_key(tmp_path / "keys", "1.pem", time.time() - 2 * JWKS_SECONDS)
    signing = {"keys": str(tmp_path / "keys"), "seconds": 60}
    config = config_of(tmp_path, signing=signing)
    body = {"sign": True, "requests": [{"request_key": f"visit-{i}", "unit_id": f"u{i:06d}"} for i in (3, 8)]}
    publish(config, *trained, 9)
    with running(config) as service:
        before = service.post("/v1/decisions", body)[1]["decisions"]
        assert all(one.pop("token") for one in before)
        publish(config, *trained, 5, version="v2")  # u000008 is gone
        end = time.monotonic() + 60
        while service.app.state.served.now.version.manifest.version != "v2" and time.monotonic() < end:
            time.sleep(0.05)
        answer = sent(service, "POST", "/v1/decisions", body)
        after = json.loads(answer.data)["decisions"]
        assert [one.pop("token") is not None for one in after] == [True, False] and after == before
        assert answer.headers["cache-control"] == "no-store"
    with running(config_of(tmp_path, enabled=False, signing=signing)) as service:
        after = service.post("/v1/decisions", body)[1]["decisions"]
        assert [one.pop("token") for one in after] == [None, None] and after == before


def test_nothing_is_signed_unless_keys_are_configured(tmp_path, trained):
    config = config_of(tmp_path)
    publish(config, *trained, 3)
    with running(config) as service:
        status, body = service.post("/v1/decisions", {"sign": True, "requests": [{"request_key": "k", "unit_id": "u"}]})
        assert status == 422 and "name a folder of keys in serving.signing.keys" in body["error"]
        status, text = service.get(JWKS_PATH)
        assert status == 404 and "name a folder of keys" in json.loads(text)["error"]
    with pytest.raises(ConfigError, match=r"has no file \*\.pem"):
        serving_app(config_of(tmp_path, signing={"keys": str(tmp_path / "nothing")}))
