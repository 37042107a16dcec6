"""Secrets that an installation needs, with new random passwords and tokens.

python -m k8s.new_secrets team-a team-b | kubectl create --namespace lexico -f -

Made once: `create` refuses to replace what is there. The store's rights are those of
`lexico_store.redis_rights`.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
import sys
from collections.abc import Sequence
from typing import Any, Final

from lexico_store.redis_rights import RULE

SMOKE_TEST: Final = "smoke-test"
"""Tenant of the smoke test."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

REPLICA_RULE: Final = "-@all +psync +replconf +ping"
SENTINEL_RULE: Final = (
    "allchannels -@all +multi +exec +slaveof +ping +subscribe +publish +config|rewrite +role +info "
    "+client|setname +client|kill +script|kill +failover"
)
"""What a sentinel does at the servers that it watches."""


def secrets_of(tenants: Sequence[str]) -> list[dict[str, Any]]:
    """Secret objects, without a namespace.

    Args:
        tenants: each is given one token with the usual roles.
    """
    store = _store()
    tokens = {tenant: _random() for tenant in (*tenants, SMOKE_TEST)}
    lines = "".join(f"{tenant}:{token}\n" for tenant, token in tokens.items())
    ray = _random()
    return [
        _secret("lexico-store", store),
        _secret(
            "lexico-ray-state",
            {"password": ray, "users.acl": f"user default on >{ray} ~* &* +@all\n"},
        ),
        _secret("lexico-ray-token", {"auth_token": _random()}),
        _secret("lexico-tokens", {"tokens": lines}),
        _secret("lexico-smoke-test", {"token": tokens[SMOKE_TEST]}),
    ]


def _store() -> dict[str, str]:
    """Users of the page store: the service, replicas, sentinels, and who makes a cluster."""
    password, replica, sentinel, operator = (_random() for _ in range(4))
    users = [
        # Whoever shows nothing may find out that the server answers: the kubelet does.
        "user default on nopass resetchannels -@all +ping",
        f"user lexico on >{password} resetchannels {RULE}",
        f"user replica on >{replica} resetchannels {REPLICA_RULE}",
        f"user sentinel on >{sentinel} {SENTINEL_RULE}",
        f"user operator on >{operator} ~* &* +@all",
    ]
    return {
        "password": password,
        "operator-password": operator,
        "users.acl": "\n".join(users) + "\n",
        "replication.conf": f"masteruser replica\nmasterauth {replica}\n",
        "sentinel.conf": "sentinel auth-user lexico sentinel\n"
        f"sentinel auth-pass lexico {sentinel}\n",
    }


def _secret(name: str, data: dict[str, str]) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/name": "lexico-offload",
        "app.kubernetes.io/part-of": "lexico-offload",
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": labels},
        "type": "Opaque",
        "stringData": data,
    }


def _random() -> str:
    """256 bits, of letters and digits alone: some of them become lines of configuration files."""
    return secrets.token_hex(32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the Secrets as one JSON document, which kubectl reads."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tenant", nargs="*", help="name of a tenant, who is given a token")
    tenants: list[str] = parser.parse_args(arguments).tenant
    for tenant in tenants:
        if not _NAME.fullmatch(tenant) or tenant == SMOKE_TEST:
            parser.error(f"{tenant!r} cannot be a tenant's name here")
    document = {"apiVersion": "v1", "kind": "List", "items": secrets_of(tenants)}
    sys.stdout.write(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
