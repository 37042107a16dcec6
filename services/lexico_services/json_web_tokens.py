"""JSON Web Tokens (RFC 7519) against a set of public keys on disk. Needs the extra `jwt`.

A token is refused unless a key of the set signed it with the one algorithm that the key is for:
what the token's header says is never what decides. So `none` is refused, and so is HMAC with a
public key as its secret.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from lexico_proto.errors import ConfigurationError, Unauthenticated
from lexico_proto.metrics import Metrics
from lexico_proto.watched import WatchedFiles
from lexico_services.caller import Caller, is_tenant
from lexico_services.door_config import JwtConfig
from lexico_services.roles import USUAL, read_roles

try:
    import jwt
except ImportError as missing:
    raise ConfigurationError("[jwt] needs PyJWT: pip install 'lexico-offload[jwt]'") from missing

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
MAX_TOKEN_CHARS: Final = 8192
MIN_RSA_BITS: Final = 2048
LEEWAY_S: Final = 30
"""Clocks that differ by this much do not matter, before `nbf` and after `exp`."""
_KEPT: Final = 4096
_PRIVATE: Final = frozenset({"d", "p", "q", "k"})


@dataclass
class _Keys:
    """A key set, and the tokens that it has found good."""

    by_id: Mapping[str | None, jwt.PyJWK]
    good: dict[bytes, tuple[Caller, float]] = field(default_factory=dict)
    """digest of a token → whose it is, and until when."""


class JsonWebTokens:
    """Knows callers by signed claims. For one event loop."""

    def __init__(self, config: JwtConfig, metrics: Metrics | None = None) -> None:
        """
        Args:
            config: has keys, issuer and audience.
            metrics: where readings of the key set are counted.

        Raises:
            ConfigurationError: the key set cannot be read or used.
        """
        if config.keys is None:
            raise ConfigurationError("jwt: keys is not given")
        self._config = config
        self._path = config.keys
        # What a set found good goes with the set.
        self._keys = WatchedFiles("key set", (config.keys,), self._read, metrics)

    def names(self) -> set[str]:
        """None: who is a tenant is the issuer's to say."""
        return set()

    def caller(self, token: str) -> Caller | None:
        """Whose token it is; None where it is no such token at all. What was verified once is known
        until the token ends.

        Raises:
            Unauthenticated: a key, signature, time or claim is not as it must be.
        """
        if token.count(".") != 2 or len(token) > MAX_TOKEN_CHARS or not token.isascii():
            return None
        keys = self._keys.now()
        digest = hashlib.blake2b(token.encode(), digest_size=32, person=b"lexico-jwt").digest()
        known = keys.good.get(digest)
        if known is not None and time.time() < known[1]:
            return known[0]
        keys.good.pop(digest, None)
        caller, end = self._verified(keys, token)
        if len(keys.good) >= _KEPT:
            keys.good.pop(next(iter(keys.good)))  # the one that was verified first
        keys.good[digest] = caller, end
        return caller

    def _verified(self, keys: _Keys, token: str) -> tuple[Caller, float]:
        try:
            header = jwt.get_unverified_header(token)
            name = header.get("kid")
            if name is None and len(keys.by_id) == 1:
                (name,) = keys.by_id
            key = keys.by_id.get(name)
            if key is None or header.get("alg") != key.algorithm_name or "crit" in header:
                raise Unauthenticated("token: no key of ours for its kid and alg")
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._config.audience,
                issuer=self._config.issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
            end = float(claims["exp"])
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise Unauthenticated(f"token: {_WHY.get(type(error), 'is not sound')}") from error
        if not math.isfinite(end):
            raise Unauthenticated("token: is not sound")
        return self._caller(claims), end + LEEWAY_S

    def _caller(self, claims: Mapping[str, Any]) -> Caller:
        tenant = _claim(claims, self._config.tenant_claim)
        if not is_tenant(tenant):
            raise Unauthenticated(f"token: its claim {self._config.tenant_claim} names no tenant")
        said = _claim(claims, self._config.roles_claim)
        if said is None:
            return Caller(tenant, USUAL)
        words = said.split() if isinstance(said, str) else said
        sound = isinstance(words, list) and all(isinstance(word, str) for word in words)
        roles = read_roles(words) if sound else None
        if roles is None:
            raise Unauthenticated(f"token: its claim {self._config.roles_claim} names no roles")
        return Caller(tenant, roles)

    def _read(self, contents: Sequence[bytes]) -> _Keys:
        try:
            entries = json.loads(contents[0])["keys"]
            if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigurationError(f"key set {self._path}: is no JSON Web Key Set") from error
        found: dict[str | None, jwt.PyJWK] = {}
        for number, entry in enumerate(entries, 1):
            if entry.get("use", "sig") != "sig":
                continue
            if _PRIVATE & entry.keys():
                raise ConfigurationError(
                    f"key set {self._path}: key {number} is secret; only public keys belong here"
                )
            name = entry.get("kid")
            if not (name is None or isinstance(name, str)) or name in found:
                raise ConfigurationError(
                    f"key set {self._path}: the kid of key {number} is no text, or there twice"
                )
            found[name] = self._key(number, entry)
        if not found:
            raise ConfigurationError(f"key set {self._path}: has no key for signatures")
        return _Keys(found)

    def _key(self, number: int, entry: Mapping[str, Any]) -> jwt.PyJWK:
        try:
            key = jwt.PyJWK(dict(entry))
        except (jwt.PyJWTError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(f"key set {self._path}: key {number} is not sound") from error
        if key.algorithm_name not in ALGORITHMS:
            raise ConfigurationError(
                f"key set {self._path}: key {number} is for {key.algorithm_name}, not for one of "
                f"{', '.join(ALGORITHMS)}"
            )
        if entry.get("kty") == "RSA" and key.key.key_size < MIN_RSA_BITS:
            raise ConfigurationError(
                f"key set {self._path}: key {number} has {key.key.key_size} bits: at least "
                f"{MIN_RSA_BITS}"
            )
        return key


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    """By its name, else by the path that the name is; None where there is none."""
    if name in claims:
        return claims[name]
    found: Any = claims
    for part in name.split("/"):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


_WHY: Final[Mapping[type, str]] = {
    jwt.ExpiredSignatureError: "it ended (exp)",
    jwt.ImmatureSignatureError: "it does not count yet (nbf, iat)",
    jwt.InvalidAudienceError: "it is for others (aud)",
    jwt.InvalidIssuerError: "somebody else made it (iss)",
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.MissingRequiredClaimError: "it lacks exp, iss or aud",
}
