"""Tokens that somebody else signed."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from lexico_proto.errors import ConfigurationError, Unauthenticated
from lexico_proto.watched import look_again
from lexico_services.auth import Tenants
from lexico_services.caller import Caller
from lexico_services.config import ListenConfig
from lexico_services.door_config import JwtConfig
from lexico_services.roles import ADMIN, RELOAD, USUAL

jwt = pytest.importorskip("jwt", reason="the extra jwt is not installed")

ISSUER, AUDIENCE = "https://issuer.example", "lexico"
KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
_MAKERS = {
    "RS256": jwt.algorithms.RSAAlgorithm,
    "ES256": jwt.algorithms.ECAlgorithm,
    "EdDSA": jwt.algorithms.OKPAlgorithm,
}


def _public(algorithm: str, key: Any = None, **more: object) -> dict[str, Any]:
    public = (key or KEYS[algorithm]).public_key()
    return {**_MAKERS[algorithm].to_jwk(public, as_dict=True), "kid": algorithm, **more}


def _written(folder: Path, *keys: dict[str, Any]) -> Path:
    file = folder / "keys.json"
    file.write_text(json.dumps({"keys": keys or [_public(each) for each in KEYS]}))
    return file


def _tokens(file: Path, **config: str) -> Any:
    from lexico_services.json_web_tokens import JsonWebTokens

    return JsonWebTokens(JwtConfig(file, ISSUER, AUDIENCE, **config))


def _claims(**changes: Any) -> dict[str, Any]:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, "tenant": "red"}
    return {name: value for name, value in {**claims, **changes}.items() if value is not None}


def _signed(algorithm: str = "ES256", key: Any = None, header: Any = None, **changes: Any) -> str:
    headers = {"kid": algorithm} if header is None else header
    token: str = jwt.encode(_claims(**changes), key or KEYS[algorithm], algorithm, headers)
    return token


def _text(part: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")


@pytest.mark.parametrize("algorithm", KEYS)
def test_each_algorithm(tmp_path: Path, algorithm: str) -> None:
    tokens = _tokens(_written(tmp_path))
    assert tokens.caller(_signed(algorithm)) == Caller("red", USUAL)
    other = {"kid": next(name for name in KEYS if name != algorithm)}
    with pytest.raises(Unauthenticated):
        tokens.caller(_signed(algorithm, header=other))


def test_what_is_no_such_token_is_left_to_others(tmp_path: Path) -> None:
    tokens = _tokens(_written(tmp_path))
    for text in ("", "0123456789abcdef", "a.b", "é.é.é", "a" * 9000 + ".b.c"):
        assert tokens.caller(text) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"exp": 1}, "exp"),
        ({"exp": None}, "lacks"),
        ({"exp": "soon"}, "sound"),
        ({"exp": 1e400}, "sound"),
        ({"nbf": 1 << 32}, "nbf"),
        ({"aud": "others"}, "aud"),
        ({"aud": None}, "lacks"),
        ({"iss": "https://issuer.example/"}, "iss"),
        ({"iss": None}, "lacks"),
        ({"tenant": None}, "tenant"),
        ({"tenant": ""}, "tenant"),
        ({"tenant": 7}, "tenant"),
        ({"tenant": "a\ud800"}, "tenant"),
        ({"tenant": "a" * 256}, "tenant"),
        ({"roles": "root"}, "roles"),
        ({"roles": []}, "roles"),
        ({"roles": [["admin"]]}, "roles"),
        ({"roles": {"admin": True}}, "roles"),
    ],
)
def test_claims_that_do_not_do(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unauthenticated, match=said):
        _tokens(_written(tmp_path)).caller(_signed(**changes))


def test_an_audience_among_others(tmp_path: Path) -> None:
    assert _tokens(_written(tmp_path)).caller(_signed(aud=["x", AUDIENCE])).tenant == "red"


@pytest.mark.parametrize("roles", ["admin reload", ["reload", "admin"]])
def test_roles(tmp_path: Path, roles: object) -> None:
    caller = _tokens(_written(tmp_path), roles_claim="scope").caller(_signed(scope=roles))
    assert caller.roles == {ADMIN, RELOAD}


def test_a_claim_by_its_path(tmp_path: Path) -> None:
    tokens = _tokens(_written(tmp_path), tenant_claim="kubernetes.io/namespace")
    inside: dict[str, Any] = {"kubernetes.io": {"namespace": "blue"}}
    assert tokens.caller(_signed(**inside)).tenant == "blue"
    assert tokens.caller(_signed(**{"kubernetes.io/namespace": "green"})).tenant == "green"
    with pytest.raises(Unauthenticated):
        tokens.caller(_signed(**{"kubernetes.io": "blue"}))


def test_the_header_does_not_choose_the_algorithm(tmp_path: Path) -> None:
    """`none`, and HMAC with the public key as its secret: RFC 8725, section 2.1."""
    tokens = _tokens(_written(tmp_path))
    public = KEYS["RS256"].public_key()
    secrets = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        json.dumps(_public("RS256")).encode(),
    ]
    for name in ("none", "None", "NONE", "HS256", "HS512", "RS384", "PS256"):
        for secret in secrets:
            body = _text({"alg": name, "kid": "RS256"}) + b"." + _text(_claims())
            sums = [b"", hmac.digest(secret, body, "sha512" if "512" in name else "sha256")]
            for signature in sums:
                end = base64.urlsafe_b64encode(signature).rstrip(b"=")
                with pytest.raises(Unauthenticated):
                    tokens.caller((body + b"." + end).decode())


def test_signatures_of_others(tmp_path: Path) -> None:
    tokens = _tokens(_written(tmp_path))
    stranger = ec.generate_private_key(ec.SECP256R1())
    for header in ({"kid": "ES256"}, {"kid": "of nobody"}, {}, {"kid": "ES256", "crit": ["b64"]}):
        with pytest.raises(Unauthenticated):
            tokens.caller(_signed(key=stranger, header=header))
    good = _signed()
    start, body, end = good.split(".")
    for bent in (
        f"{start}.{body[:-2]}AA.{end}",
        f"{start}.{body}.",
        f".{body}.{end}",
        f"{good[:-4]}AAAA",
    ):
        with pytest.raises(Unauthenticated):
            tokens.caller(bent)


def test_one_key_needs_no_name(tmp_path: Path) -> None:
    assert _tokens(_written(tmp_path, _public("ES256"))).caller(_signed(header={})).tenant == "red"


def test_a_key_that_is_taken_out_no_longer_counts(tmp_path: Path) -> None:
    file = _written(tmp_path)
    tokens, token = _tokens(file), _signed()
    assert tokens.caller(token).tenant == "red"
    for broken in ("", "{}", '{"keys": []}', '{"keys": [7]}'):
        file.write_text(broken)
        look_again()
        assert tokens.caller(token).tenant == "red"  # the former set stays in force
    _written(tmp_path, _public("RS256"))
    look_again()
    with pytest.raises(Unauthenticated):  # though it was found good before
        tokens.caller(token)


def test_a_token_is_verified_once_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lexico_services import json_web_tokens as module

    verified, decode = [], jwt.decode

    def counting(*arguments: Any, **more: Any) -> Any:
        verified.append(1)
        return decode(*arguments, **more)

    monkeypatch.setattr(jwt, "decode", counting)
    monkeypatch.setattr(module, "_KEPT", 3)
    tokens = _tokens(_written(tmp_path))
    first = _signed("EdDSA", exp=int(time.time()) + 600)
    assert tokens.caller(first) is tokens.caller(first)
    assert len(verified) == 1
    for number in range(3):  # more than are kept: the first is verified again
        tokens.caller(_signed("EdDSA", jti=f"{number}"))
    assert len(tokens._keys.now().good) == 3
    tokens.caller(first)
    assert len(verified) == 5
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 600 + module.LEEWAY_S)
    assert tokens.caller(first).tenant == "red"  # asked again, of a library with another clock
    assert len(verified) == 6


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ([{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}], "secret"),
        ([jwt.algorithms.ECAlgorithm.to_jwk(KEYS["ES256"], as_dict=True)], "secret"),
        ([_public("ES256"), _public("RS256", kid="ES256")], "twice"),
        ([_public("ES256", kid=7)], "no text"),
        ([_public("ES256", x="AA")], "sound"),
        ([_public("ES256", ec.generate_private_key(ec.SECP384R1()))], "ES384"),
        ([_public("ES256", use="enc")], "no key"),
        ([{"kid": "a"}], "sound"),
    ],
)
def test_key_sets_that_do_not_do(tmp_path: Path, keys: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        _tokens(_written(tmp_path, *keys))
    assert str(tmp_path) in caught.value.message


def test_a_short_key(tmp_path: Path) -> None:
    number = base64.urlsafe_b64encode(hashlib.sha512(b"n").digest() * 2).decode()
    with pytest.raises(ConfigurationError, match="bits"):
        _tokens(_written(tmp_path, {"kty": "RSA", "n": number, "e": "AQAB", "kid": "a"}))


def test_beside_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("blue:with.two.dots.or:more\ngreen:a.token.with1616\n")
    config = JwtConfig(_written(tmp_path), ISSUER, AUDIENCE)
    tenants = Tenants.of(ListenConfig(token_file=tmp_path / "tokens", jwt=config))
    for token, tenant in ((_signed(), "red"), ("a.token.with1616", "green")):
        assert tenants.caller_of((("authorization", f"Bearer {token}"),)).tenant == tenant
    with pytest.raises(Unauthenticated):
        tenants.caller_of((("authorization", "Bearer x.y.z"),))


def test_without_the_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jwt", None)
    monkeypatch.delitem(sys.modules, "lexico_services.json_web_tokens", raising=False)
    config = JwtConfig(_written(tmp_path), ISSUER, AUDIENCE)
    with pytest.raises(ConfigurationError, match=r"lexico-offload\[jwt\]"):
        Tenants.of(ListenConfig(jwt=config))
