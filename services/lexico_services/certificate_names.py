"""Who a client is by the names in its certificate."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from lexico_proto.certificates import names_of
from lexico_proto.errors import ConfigurationError, Unauthenticated
from lexico_proto.metrics import Metrics
from lexico_proto.watched import WatchedFiles
from lexico_services.caller import Caller, Peer, is_tenant
from lexico_services.roles import USUAL, read_roles

_CERTIFICATES_KEPT: Final = 1024
_TENANT: Final = "{tenant}"


class CertificateNames:
    """Lines of `NAME TENANT [ROLES]`, with spaces between; the first that fits a name counts.

        spiffe://cluster.local/ns/{tenant}/sa/node    {tenant}
        *.gpu.example                                 research    offload,reload

    NAME is a URI or a DNS name. In it, `*` and `{tenant}` stand for one part: what has no slash in
    a URI, what has no dot in a DNS name. Roles have commas between them. The file is read again
    when it changes; one without a line is an error at the start, and names nobody later.
    """

    def __init__(self, path: Path, metrics: Metrics | None = None) -> None:
        """
        Raises:
            ConfigurationError: the file cannot be read, or a line cannot be used.
        """
        self._path = path
        self._rules = WatchedFiles("tenants file", (path,), self._read, metrics)
        if not self._rules.now():
            raise ConfigurationError(f"tenants file {path} names no tenant")
        self._names = lru_cache(_CERTIFICATES_KEPT)(names_of)

    def caller(self, peer: Peer) -> Caller:
        """Whom the certificate of the connection names.

        Raises:
            Unauthenticated: it names nobody, or two tenants, or ended since the connection began.
        """
        pem = next(iter(peer.get("x509_pem_cert", ())), None)
        if pem is None:
            raise Unauthenticated("send 'authorization: Bearer <token>', or show a certificate")
        try:
            names = self._names(pem)
        except ConfigurationError as error:
            raise Unauthenticated(error.message) from error
        if time.time() >= names.end:
            raise Unauthenticated("the client's certificate ended: connect with a new one")
        rules = self._rules.now()
        said = [(name, True) for name in names.uris] + [(name, False) for name in names.hosts]
        found = [caller for caller in (_first(rules, *each) for each in said) if caller]
        if not found:
            raise Unauthenticated("no tenant for the names in the client's certificate")
        if any(caller != found[0] for caller in found):
            raise Unauthenticated("the names in the client's certificate stand for different ones")
        return found[0]

    def _read(self, contents: Sequence[bytes]) -> Sequence[_Rule]:
        try:
            lines = contents[0].decode().splitlines()
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"tenants file {self._path}: is no UTF-8") from error
        rules = []
        for number, line in enumerate(lines, 1):
            if line.strip() and not line.startswith("#"):
                rule = _rule(line.split())
                if rule is None:
                    raise ConfigurationError(
                        f"tenants file {self._path} line {number}: needs NAME TENANT or NAME "
                        "TENANT ROLES, with {tenant} in both or in neither"
                    )
                rules.append(rule)
        return rules


@dataclass(frozen=True)
class _Rule:
    name: re.Pattern[str]
    uri: bool
    """Whether it is for URIs, else for DNS names."""
    tenant: str | None
    """None for what stands in the name."""
    roles: frozenset[str]

    def caller(self, name: str, uri: bool) -> Caller | None:
        found = self.name.fullmatch(name)
        if found is None or uri is not self.uri:
            return None
        tenant = found["tenant"] if self.tenant is None else self.tenant
        return Caller(tenant, self.roles) if is_tenant(tenant) else None


def _first(rules: Sequence[_Rule], name: str, uri: bool) -> Caller | None:
    return next((caller for caller in (rule.caller(name, uri) for rule in rules) if caller), None)


def _rule(words: Sequence[str]) -> _Rule | None:
    if len(words) not in (2, 3):
        return None
    name, tenant = words[:2]
    roles = read_roles(words[2].split(",")) if len(words) == 3 else USUAL
    times, taken = name.count(_TENANT), tenant == _TENANT
    if roles is None or times > 1 or taken != (times == 1) or not is_tenant(tenant):
        return None
    uri = ":" in name
    part = "[^/]+" if uri else "[^.]+"
    pattern = re.escape(name if uri else name.lower()).replace(r"\*", part)
    pattern = pattern.replace(re.escape(_TENANT), f"(?P<tenant>{part})")
    return _Rule(re.compile(pattern), uri, None if taken else tenant, roles)
