"""Signed decisions: what an edge function may keep and check for itself, until it expires.

A token is a JSON Web Signature by Ed25519 (RFC 7515, RFC 8037) over one decision. Public keys are published as a JSON
Web Key Set (RFC 7517); a key's id is its thumbprint (RFC 7638).
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from uplift_spark.errors import ConfigError, DataError
from uplift_spark.roles import plain_id
from uplift_spark.sections.serving import Serving

JWKS_PATH = "/.well-known/jwks.json"
JWKS_SECONDS = 300
"""Time for which public keys may be kept; a new key signs once it has been published for so long."""
TOKEN_TYPE, TOKEN_ALGORITHM = "uplift-decision+jwt", "EdDSA"
CLOCK_LEEWAY = 5.0  # seconds that the clock of whoever checks may be behind
_LONGEST = 8192  # characters of a token
_SIGNED = ("level", "propensity", "overall_propensity", "explored")


def unit_digest(campaign: str, unit: str) -> str:
    """What stands for a unit in tokens of a campaign: SHA-256 of both, in hexadecimal digits.

    It keeps ids out of tokens and differs between campaigns; who can guess an id can recognise it.
    """
    # Half a character has no UTF-8; the service takes no such id, and it has a digest that no id has.
    return hashlib.sha256(f"{campaign}\n{unit}".encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class _Key:
    private: Ed25519PrivateKey
    jwk: Mapping[str, str]
    since: float  # from when it has been published: when its file was written, or came into the folder


class SigningKeys:
    """The private keys of a folder, read again whenever it changes.

    All are published. The last one by name signs, once it has been there for `JWKS_SECONDS`: until then whoever checks
    may not know it, and the one before it goes on. A file that is moved into the folder keeps the time at which it was
    written: what was not there at the reading before counts from now.

    Args:
        folder: Of files *.pem, an Ed25519 private key without a password each.
        clock: Seconds since 1970.

    Raises:
        ConfigError: There is no key, or a file is none.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock
        self._stamp = self._stamp_of()
        self._keys = self._read()

    def jwks(self) -> dict[str, Any]:
        """The public keys, as a JSON Web Key Set."""
        self._refresh()
        return {"keys": [dict(key.jwk) for key in self._keys]}

    def token(self, decision: Mapping[str, Any], seconds: float) -> str | None:
        """Sign a decision.

        Args:
            decision: As the service answers it.
            seconds: Time for which the token holds, at most until the decision expires.

        Returns:
            The token; None for a decision that must not be kept: it is not logged, lacks something, or has expired.
        """
        now = self._clock()
        expires = int(min(now + seconds, datetime.fromisoformat(decision["expires_at"]).timestamp()))
        if not decision["logged"] or decision["degraded"] or expires <= now:
            return None
        self._refresh()
        known = [key for key in self._keys if now - key.since >= JWKS_SECONDS]
        key = known[-1] if known else self._keys[0]
        header = {"alg": TOKEN_ALGORITHM, "typ": TOKEN_TYPE, "kid": key.jwk["kid"]}
        claims = {
            "aud": decision["campaign"], "sub": unit_digest(decision["campaign"], decision["unit_id"]),
            "jti": decision["request_key"], "iat": int(now), "exp": expires,
            **{name: decision[name] for name in _SIGNED}, "model_version": decision["model"]["version"],
        }  # fmt: skip
        signed = f"{_encoded(_json(header))}.{_encoded(_json(claims))}"
        return f"{signed}.{_encoded(key.private.sign(signed.encode()))}"

    def _refresh(self) -> None:
        try:
            stamp = self._stamp_of()
            if stamp != self._stamp:
                known, now = {key.jwk["kid"]: key.since for key in self._keys}, self._clock()
                self._keys = tuple(
                    replace(key, since=known.get(key.jwk["kid"], max(key.since, now))) for key in self._read()
                )
                self._stamp = stamp
        except ConfigError as error:  # half-written, or taken away: the keys that were read last stay
            facts = {"event": "signing keys not read", "reason": str(error)}
            logging.getLogger("uplift_spark.serving").warning(json.dumps(facts))

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*.pem"))

    def _stamp_of(self) -> tuple[tuple[str | int, ...], ...]:
        try:
            states = [(file.name, file.stat()) for file in self._files()]
        except OSError as error:
            raise ConfigError(f"serving.signing.keys {self._folder} cannot be read: {error.strerror}") from error
        # All keys are of one size, and archives give all files one time: what the file system itself notes, too.
        parts = ("st_ino", "st_ctime_ns", "st_mtime_ns", "st_size")
        return tuple((name, *(getattr(state, part) for part in parts)) for name, state in states)

    def _read(self) -> tuple[_Key, ...]:
        keys = {key.jwk["kid"]: key for key in map(_key_of, self._files())}  # a copy of a file is no second key
        if not keys:
            raise ConfigError(
                f"serving.signing.keys {self._folder} has no file *.pem: make a key with `openssl genpkey -algorithm "
                f"ed25519 -out {self._folder}/1.pem`"
            )
        return tuple(keys.values())


def signing_keys(conf: Serving) -> SigningKeys | None:
    """The keys that a configuration names; None where it names none. Raises ConfigError where they cannot be read."""
    return None if conf.signing is None else SigningKeys(Path(conf.signing.keys))


def _key_of(file: Path) -> _Key:
    try:
        private, since = load_pem_private_key(file.read_bytes(), None), file.stat().st_mtime
    except OSError as error:
        raise ConfigError(f"serving.signing.keys: {file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError):
        private, since = None, 0.0
    if not isinstance(private, Ed25519PrivateKey):
        raise ConfigError(
            f"serving.signing.keys: {file} is no Ed25519 private key in PEM without a password: make one with `openssl "
            "genpkey -algorithm ed25519`"
        )
    return _Key(private, public_jwk(private.public_key()), since)


def public_jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """A public key as a JSON Web Key, with its thumbprint as `kid`."""
    required = {"crv": "Ed25519", "kty": "OKP", "x": _encoded(key.public_bytes_raw())}
    thumbprint = _encoded(hashlib.sha256(_json(required)).digest())
    return {**required, "kid": thumbprint, "use": "sig", "alg": TOKEN_ALGORITHM}


def verified_decision(
    token: str, jwks: Mapping[str, Any], campaign: str, unit_id: str, now: float | None = None
) -> dict[str, Any]:
    """Check a token, and read the decision in it.

    Args:
        token: That came with a request, or lay in a cache.
        jwks: The service's public keys, as /.well-known/jwks.json answers them.
        campaign: That the decision must be of.
        unit_id: Unit that it must be for.
        now: Seconds since 1970; by default this machine's clock.

    Returns:
        The claims: level, propensity, overall_propensity, explored, model_version, and those of JWT.

    Raises:
        DataError: The token is malformed, of an unknown key, altered, expired, or of another campaign or unit; or what
            are said to be public keys are none.
    """
    at = time.time() if now is None else now
    parts = token.split(".") if isinstance(token, str) and len(token) <= _LONGEST else []
    if len(parts) != 3:
        raise DataError("the token is no compact JSON Web Signature: it has three parts, in at most 8192 characters")
    header, claims, signature = _object(parts[0]), _object(parts[1]), _decoded(parts[2])
    # What the header wants is compared with the one thing that is served, and never followed.
    if (header.get("alg"), header.get("typ")) != (TOKEN_ALGORITHM, TOKEN_TYPE) or "crit" in header:
        raise DataError(f"the token is not {TOKEN_TYPE} signed by {TOKEN_ALGORITHM}, which alone is taken")
    try:
        _public_key(jwks, header.get("kid")).verify(signature, f"{parts[0]}.{parts[1]}".encode())
    except InvalidSignature:
        raise DataError("the token was altered: its signature does not hold") from None
    if claims["aud"] != campaign or claims["sub"] != unit_digest(campaign, plain_id(unit_id)):
        raise DataError(f"the token is not of campaign {campaign!r} and this unit: ask the service")
    if not claims["iat"] - CLOCK_LEEWAY <= at < claims["exp"]:
        raise DataError("the token has expired, or is of a time to come: ask the service")
    return claims


def _public_key(jwks: Any, kid: Any) -> Ed25519PublicKey:
    """The key of this id in a set, which may hold keys of other kinds."""
    keys = jwks.get("keys") if isinstance(jwks, Mapping) else None
    if not isinstance(keys, Sequence):
        raise DataError(f"the public keys are no JSON Web Key Set: fetch {JWKS_PATH} again")
    ours = (one for one in keys if isinstance(one, Mapping) and (one.get("kty"), one.get("crv")) == ("OKP", "Ed25519"))
    key = next((one for one in ours if isinstance(kid, str) and one.get("kid") == kid), None)
    if key is None:
        raise DataError(f"the token's key is not known: fetch {JWKS_PATH} again")
    try:
        return Ed25519PublicKey.from_public_bytes(_decoded(key["x"]))
    except (KeyError, TypeError, ValueError, DataError) as error:
        raise DataError(f"the public key {kid!r} is no Ed25519 key: fetch {JWKS_PATH} again") from error


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    """base64url without padding. Other spellings of the same bytes are refused: a token has one."""
    try:
        content = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        content = b""
    if _encoded(content) != text:
        raise DataError("the token is no compact JSON Web Signature: a part is no base64url")
    return content


def _object(part: str) -> dict[str, Any]:
    try:
        value = json.loads(_decoded(part))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DataError("the token is no compact JSON Web Signature: a part is no JSON object")
    return value
