"""Who is calling, by a token of a file or by a certificate; and what they may do."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from lexico_proto.errors import ConfigurationError, PermissionDenied, Unauthenticated
from lexico_proto.watched import look_again
from lexico_services.auth import Tenants
from lexico_services.caller import Caller, Metadata, Peer
from lexico_services.certificate_names import CertificateNames
from lexico_services.config import ListenConfig
from lexico_services.door_config import JwtConfig, TlsConfig
from lexico_services.doors import check_doors, open_doors
from lexico_services.roles import ADMIN, OFFLOAD, RELOAD, ROLES, USUAL
from lexico_services.token_file import TokenFile
from tests.support.authorities import Authority

TOKEN = "0123456789abcdef"
URI = "spiffe://cluster.local/ns/red/sa/node"


@dataclass
class Context:
    """What a call brings."""

    token: str | None = None
    peer: Peer = field(default_factory=dict)

    def invocation_metadata(self) -> Metadata:
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def auth_context(self) -> Peer:
        return self.peer


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def _written(folder: Path, text: str) -> Path:
    file = folder / "file"
    file.write_text(text)
    return file


@pytest.mark.parametrize(
    ("line", "token", "roles"),
    [
        (f"red:{TOKEN}", TOKEN, USUAL),
        (f" red : {TOKEN} ", TOKEN, USUAL),
        (f"red:{TOKEN}:admin", TOKEN, {ADMIN}),
        (f"red:{TOKEN} : offload , reload,admin,operator ", TOKEN, ROLES),
        (f"red:{TOKEN}:reload", TOKEN, {RELOAD}),
        # Tokens with colons are as old as the file.
        (f"red:{TOKEN}:and:more", f"{TOKEN}:and:more", USUAL),
        (f"red:{TOKEN}:more:admin", f"{TOKEN}:more", {ADMIN}),
        (f"red:{TOKEN}:", f"{TOKEN}:", USUAL),
        # Nearly a role, but nobody writes roles so.
        (f"red:{TOKEN}:r3load", f"{TOKEN}:r3load", USUAL),
        ("red:short:0123456789", "short:0123456789", USUAL),
        ("red:sixteen:letters:reloads", "sixteen:letters:reloads", USUAL),
    ],
)
def test_lines_of_a_token_file(
    tmp_path: Path, line: str, token: str, roles: frozenset[str]
) -> None:
    tokens = TokenFile(_written(tmp_path, line))
    assert tokens.caller(token) == Caller("red", frozenset(roles))
    assert tokens.caller(token + "x") is None


@pytest.mark.parametrize(
    "roles",
    [
        "raed",
        "read",
        "Reload",
        "relaod",
        "reload,",
        "admin,more",
        "more,admin",
        "reload;admin",
        "reload admin",
        "operators",
        "offlaod,reload",
    ],
)
def test_a_slip_in_roles_is_no_part_of_the_token(
    tmp_path: Path, roles: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigurationError, match=r"line 2.*admin, offload, operator, reload") as it:
        TokenFile(_written(tmp_path, f"# tokens\nred:{TOKEN}:{roles}\n"))
    assert TOKEN not in it.value.message
    file = _written(tmp_path, f"red:{TOKEN}:admin\n")
    tenants = Tenants.of(ListenConfig(token_file=file))
    file.write_text(f"red:{TOKEN}:{roles}\n")
    look_again()
    assert tenants.admit(Context(TOKEN), ADMIN).tenant == "red", "what it said before is in force"
    (said,) = [record.getMessage() for record in caplog.records if "line 1" in record.getMessage()]
    assert "stays in force" in said


def test_words_that_are_taken_for_a_part_of_the_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = f"red:{TOKEN}:and:more\nblue:{TOKEN}:9f3c\ngreen:{TOKEN}:auditing,billing\n"
    assert TokenFile(_written(tmp_path, lines)).names() == {"red", "blue", "green"}
    said = [record.getMessage() for record in caplog.records]
    assert ["line 1" in said[0], "line 3" in said[1], len(said)] == [True, True, 2]
    assert all(TOKEN not in each and "more" not in each for each in said)


def test_a_mark_of_the_byte_order_is_no_part_of_a_tenant(tmp_path: Path) -> None:
    assert TokenFile(_written(tmp_path, f"\ufeffred:{TOKEN}")).names() == {"red"}


@pytest.mark.parametrize(
    "line", [f"re\ufeffd:{TOKEN}", f"red:{TOKEN}\N{SNOWMAN}", f"re\0d:{TOKEN}"]
)
def test_a_tenant_or_token_that_no_call_can_name(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigurationError, match="line 1: needs tenant:token"):
        TokenFile(_written(tmp_path, line))


def test_a_token_is_named_once_whatever_its_roles(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="line 2") as caught:
        TokenFile(_written(tmp_path, f"red:{TOKEN}\nblue:{TOKEN}:admin\n"))
    assert TOKEN not in caught.value.message


def test_tokens_come_and_go_with_the_file(tmp_path: Path) -> None:
    file = _written(tmp_path, f"red:{TOKEN}\n")
    tenants = Tenants.of(ListenConfig(token_file=file))
    assert tenants.admit(Context(TOKEN), RELOAD).tenant == "red"
    file.write_text(f"red:{TOKEN[::-1]}\n")
    look_again()
    with pytest.raises(Unauthenticated):
        tenants.admit(Context(TOKEN), RELOAD)
    assert tenants.admit(Context(TOKEN[::-1]), RELOAD).tenant == "red"
    for broken in ("red:short\n", "\udc80"):
        file.write_text(broken, errors="surrogateescape")
        look_again()
        assert tenants.admit(Context(TOKEN[::-1]), RELOAD).tenant == "red"


@pytest.mark.parametrize("nobody", ["", "\n", "# none\n"])
def test_the_last_token_can_be_taken_back(tmp_path: Path, nobody: str) -> None:
    file = _written(tmp_path, f"red:{TOKEN}\n")
    tenants = Tenants.of(ListenConfig(token_file=file))
    assert tenants.admit(Context(TOKEN), RELOAD).tenant == "red"
    file.write_text(nobody)
    look_again()
    for token in (TOKEN, "", None):
        with pytest.raises(Unauthenticated):
            tenants.admit(Context(token), RELOAD)
    file.write_text(f"red:{TOKEN}\n")
    look_again()
    assert tenants.admit(Context(TOKEN), RELOAD).tenant == "red"


@pytest.mark.parametrize("nobody", ["", "# none\n"])
def test_the_last_certificate_can_be_taken_back(
    tmp_path: Path, authority: Authority, nobody: str
) -> None:
    file = _written(tmp_path, RULES)
    names = CertificateNames(file)
    peer = _peer(authority, ("one.example",))
    assert names.caller(peer).tenant == "one"
    file.write_text(nobody)
    look_again()
    with pytest.raises(Unauthenticated):
        names.caller(peer)


def test_files_that_name_nobody_are_refused_at_the_start(tmp_path: Path) -> None:
    for made in (TokenFile, CertificateNames):
        with pytest.raises(ConfigurationError, match="names no tenant"):
            made(_written(tmp_path, "# none\n"))


def test_roles_do_not_include_each_other(tmp_path: Path) -> None:
    for given in ROLES:
        tenants = Tenants.of(ListenConfig(token_file=_written(tmp_path, f"red:{TOKEN}:{given}")))
        for needed in ROLES:
            if needed == given:
                assert tenants.admit(Context(TOKEN), needed).roles == {given}
            else:
                with pytest.raises(PermissionDenied, match=needed):
                    tenants.admit(Context(TOKEN), needed)
        assert tenants.admit(Context(TOKEN), *ROLES)


def test_who_may_administer_without_tokens() -> None:
    assert Tenants.of(ListenConfig()).admit(Context(), ADMIN).tenant == "default"
    anybody = Tenants.of(ListenConfig(host="0.0.0.0", allow_anonymous=True))
    assert anybody.admit(Context("whatever"), OFFLOAD).roles == USUAL
    with pytest.raises(PermissionDenied):
        anybody.admit(Context(), ADMIN)


def _peer(authority: Authority, hosts: tuple[str, ...] = (), uris: tuple[str, ...] = ()) -> Peer:
    return {"x509_pem_cert": [authority.issue(hosts, uris).chain]}


RULES = """
# who is who
spiffe://cluster.local/ns/{tenant}/sa/node {tenant}
spiffe://cluster.local/ns/*/sa/operator operators admin
*.GPU.example research offload,reload
{tenant}.tenants.example {tenant} reload
one.example one
"""


@pytest.mark.parametrize(
    ("hosts", "uris", "caller"),
    [
        ((), (URI,), Caller("red")),
        ((), (URI.replace("node", "operator"),), Caller("operators", frozenset({ADMIN}))),
        (("a7.gpu.example",), (), Caller("research")),
        (("A7.gpu.EXAMPLE",), (), Caller("research")),
        (("blue.tenants.example",), (), Caller("blue", frozenset({RELOAD}))),
        (("other.example", "one.example"), (), Caller("one")),
        ((), (URI + "/x",), None),
        ((), ("spiffe://cluster.local/ns/a/b/sa/node",), None),
        ((), ("spiffe://cluster.local/ns//sa/node",), None),
        ((), (URI.upper(),), None),
        (("a.b.gpu.example",), (), None),
        (("oneXexample",), (), None),
        ((), ("one.example:x",), None),
        ((), (), None),
        (("one.example", "a7.gpu.example"), (), None),  # two tenants: nobody can tell
    ],
)
def test_names_of_certificates(
    tmp_path: Path,
    authority: Authority,
    hosts: tuple[str, ...],
    uris: tuple[str, ...],
    caller: Caller | None,
) -> None:
    names = CertificateNames(_written(tmp_path, RULES))
    if caller is None:
        with pytest.raises(Unauthenticated):
            names.caller(_peer(authority, hosts, uris))
    else:
        assert names.caller(_peer(authority, hosts, uris)) == caller


def test_a_host_name_is_no_uri(tmp_path: Path, authority: Authority) -> None:
    names = CertificateNames(_written(tmp_path, f"{URI} red"))
    with pytest.raises(Unauthenticated):
        names.caller(_peer(authority, hosts=(URI,)))


@pytest.mark.parametrize(
    "line",
    [
        "",
        "one.example",
        "one.example one admin more",
        "one.example one admni",
        "one.example {tenant}",
        "{tenant}.example one",
        "{tenant}.{tenant}.example {tenant}",
    ],
)
def test_lines_that_say_nobody(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigurationError, match="tenants file"):
        CertificateNames(_written(tmp_path, line))


def test_a_certificate_that_ends_while_its_connection_lasts(
    tmp_path: Path, authority: Authority
) -> None:
    names = CertificateNames(_written(tmp_path, RULES))
    ended = authority.issue(("one.example",), lasts=timedelta(hours=-1))
    with pytest.raises(Unauthenticated, match="ended"):
        names.caller({"x509_pem_cert": [ended.chain]})


def test_a_token_counts_before_a_certificate(tmp_path: Path, authority: Authority) -> None:
    tokens = TokenFile(_written(tmp_path, f"red:{TOKEN}"))
    (tmp_path / "names").write_text(RULES)
    tenants = Tenants([tokens], CertificateNames(tmp_path / "names"))
    peer = _peer(authority, ("one.example",))
    assert tenants.admit(Context(TOKEN, peer), RELOAD).tenant == "red"
    assert tenants.admit(Context(None, peer), RELOAD).tenant == "one"
    with pytest.raises(Unauthenticated):
        tenants.admit(Context(TOKEN[::-1], peer), RELOAD)
    with pytest.raises(Unauthenticated):
        tenants.admit(Context(), RELOAD)


def test_what_is_said_of_open_doors() -> None:
    tls = TlsConfig(certificate=Path("c"), key=Path("k"))
    assert open_doors(ListenConfig()) == []
    assert open_doors(ListenConfig(token_file=Path("t"))) == []
    open_to_all = open_doors(ListenConfig(host="0.0.0.0", allow_anonymous=True))
    assert "read and write every page" in open_to_all[0]
    assert "tenant default" in open_to_all[0]
    assert "caches travel in clear" in open_to_all[1]
    (clear,) = open_doors(ListenConfig(host="::", token_file=Path("t")))
    assert "tokens and caches travel in clear" in clear
    assert open_doors(ListenConfig(host="::", token_file=Path("t"), tls=tls)) == []


def test_settings_that_need_each_other() -> None:
    some = Path("file")
    for wrong in (
        {"certificate": some},
        {"key": some},
        {"client_ca": some},
        {"certificate": some, "key": some, "tenants_file": some},
    ):
        with pytest.raises(ConfigurationError, match="tls"):
            TlsConfig(**wrong)
    for also in (
        {"keys": some},
        {"keys": some, "issuer": "i"},
        {"issuer": "i"},
        {"tenant_claim": ""},
    ):
        with pytest.raises(ConfigurationError, match="jwt"):
            JwtConfig(**also)


def test_without_the_library_of_certificates_the_extra_is_named(
    tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = TlsConfig(*authority.issue().write(tmp_path, "server"))
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigurationError, match=r"lexico-offload\[tls\]"):
        check_doors(ListenConfig(tls=tls))
