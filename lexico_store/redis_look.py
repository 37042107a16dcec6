"""One look at a server: role, memory, rights, version. It changes nothing there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import redis
from redis.exceptions import NoPermissionError

from lexico_store.deadline import within
from lexico_store.findings import Finding, Level
from lexico_store.redis_exchange import Command, interview
from lexico_store.redis_rights import IN_A_CLUSTER, KEYS, RULE, lacking, trial

LEAST_VERSION: Final = (7, 0)
POLICY: Final = "volatile-ttl"
"""Named to those who have no volatile- policy; any of them will do, this one best: ADR 0043."""
REPLICA_BUFFER_BYTES: Final = 1 << 30
"""What a replica's output buffer should bear: the writes during one full copy, in pages."""
_MIB: Final = 1 << 20

Ask = Callable[[Sequence[Command]], list[Any]]
"""Replies to commands; those that are errors too."""


def look_at_server(pool: redis.ConnectionPool, timeout_s: float, *, cluster: bool) -> list[Finding]:
    """What there is to say of the server behind `pool`.

    Args:
        timeout_s: for all of it.
        cluster: its URL says that it is a node of a cluster.

    Raises:
        redis.RedisError, OSError: it does not answer, or refuses our login.
    """
    with within(timeout_s), interview(pool, timeout_s) as ask:
        info = _info(ask)
        configured = _config(ask)
        findings = _rights(ask, cluster)  # the last question: it leaves a MULTI open
    if info is None:
        remedy = "allow it +info, to be told what is wrong with the server"
        return [*findings, Finding(Level.NOTE, "the store's user may not use INFO", remedy)]
    for found in (_version(info), _mode(info, cluster), _role(info), _memory(info)):
        findings += found
    return [*findings, *_copies(info, configured), *_disk(info, configured)]


def server_info(pool: redis.ConnectionPool, timeout_s: float) -> dict[str, str] | None:
    """What INFO says; None where the user may not ask.

    Raises:
        redis.RedisError, OSError: the server does not answer.
    """
    with within(timeout_s), interview(pool, timeout_s) as ask:
        return _info(ask)


def _info(ask: Ask) -> dict[str, str] | None:
    (text,) = ask([("INFO",)])
    if isinstance(text, NoPermissionError):
        return None
    if isinstance(text, Exception):
        raise text
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _config(ask: Ask) -> dict[str, str]:
    """Settings that INFO does not have; empty where the user may not ask, as at most providers."""
    names = ("client-output-buffer-limit", "save")
    found: dict[str, str] = {}
    for reply in ask([("CONFIG", "GET", name) for name in names]):
        if isinstance(reply, list) and len(reply) == 2:
            found[reply[0].decode()] = reply[1].decode(errors="replace")
    return found


def _rights(ask: Ask, cluster: bool) -> list[Finding]:
    # An EXEC without a MULTI is an error of another kind where it is allowed.
    exec_, multi = ask([("EXEC",), ("MULTI",)])
    if isinstance(multi, NoPermissionError):  # what follows would be carried out
        what = "the store's user may not use MULTI, so that no page can be stored"
        return [Finding(Level.REFUSED, what, f"give it the rights {RULE}")]
    if isinstance(multi, Exception):
        raise multi
    commands = trial(cluster=cluster)
    names, keys_refused = lacking([("EXEC",), *commands], [exec_, *ask(commands)])
    findings = []
    for name in IN_A_CLUSTER:
        if name in names:
            names.remove(name)
            what = f"the store's user may not use {name.upper()}: pages of slots that move fail"
            findings.append(Finding(Level.WARNING, what, f"allow it +{name}"))
    if names:
        missing = " ".join(f"+{name}" for name in names)
        what = f"the store's user may not use {', '.join(names).upper()}"
        findings.append(Finding(Level.REFUSED, what, f"allow it {missing}"))
    if keys_refused:
        what = "the store's user may not touch the store's names"
        findings.append(Finding(Level.REFUSED, what, f"allow it {KEYS}"))
    return findings


def _version(info: dict[str, str]) -> list[Finding]:
    text = info.get("redis_version", "")
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if not version or version >= LEAST_VERSION:
        return []
    return [
        Finding(
            Level.REFUSED,
            f"the store runs Redis {text}",
            f"use Redis {LEAST_VERSION[0]} or later, or Valkey",
        )
    ]


def _mode(info: dict[str, str], cluster: bool) -> list[Finding]:
    enabled = info.get("cluster_enabled", "0") == "1"
    if enabled and not cluster:
        what = "the store is a Redis Cluster, and its URL names one server"
        return [Finding(Level.REFUSED, what, "write redis+cluster://, or rediss+cluster://")]
    return []


def _role(info: dict[str, str]) -> list[Finding]:
    if info.get("role") not in ("slave", "replica"):
        return []
    primary = f"{info.get('master_host', '?')}:{info.get('master_port', '?')}"
    what = f"the store is a replica of {primary}, and nothing can be written to it"
    return [Finding(Level.WARNING, what, "give the URL of the primary, or redis+sentinel://")]


def _memory(info: dict[str, str]) -> list[Finding]:
    policy, bound = info.get("maxmemory_policy", ""), int(info.get("maxmemory", "0"))
    findings = []
    if not bound:
        what = "the store has no maxmemory, so it grows until the machine ends it"
        total = int(info.get("total_system_memory", "0")) // _MIB
        remedy = f"set maxmemory below the machine's {total} MiB" if total else "set maxmemory"
        findings.append(Finding(Level.WARNING, what, remedy))
    if policy.startswith("allkeys-"):
        what = f"the store's maxmemory-policy is {policy}, which evicts dictionary sets too"
        findings.append(Finding(Level.WARNING, what, f"set maxmemory-policy {POLICY}"))
    elif policy == "noeviction":
        what = "the store's maxmemory-policy is noeviction, so a full store takes no page"
        findings.append(Finding(Level.WARNING, what, f"set maxmemory-policy {POLICY}"))
    return findings


def _copies(info: dict[str, str], configured: dict[str, str]) -> list[Finding]:
    """Replicas: each page goes through the buffer of each, which has a bound."""
    words = configured.get("client-output-buffer-limit", "").split()
    limits = {words[i]: words[i + 1 : i + 3] for i in range(0, len(words) - 3, 4)}
    hard = limits.get("slave") or limits.get("replica")
    if hard is None or info.get("connected_slaves", "0") == "0":
        return []
    least = min((int(limit) for limit in hard if int(limit)), default=REPLICA_BUFFER_BYTES)
    if least >= REPLICA_BUFFER_BYTES:
        return []
    what = f"replicas of the store are cut off once {least // _MIB} MiB of pages wait for them"
    size = f"{REPLICA_BUFFER_BYTES // _MIB}mb"
    remedy = (
        f'set client-output-buffer-limit "replica {size} {size} 60", and repl-backlog-size 256mb'
    )
    return [Finding(Level.WARNING, what, remedy)]


def _disk(info: dict[str, str], configured: dict[str, str]) -> list[Finding]:
    findings = []
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        what = "the store's last save to disk failed, and it may refuse writes"
        remedy = 'make room on its disk, or set save "" and stop-writes-on-bgsave-error no'
        findings.append(Finding(Level.WARNING, what, remedy))
    ways = ["appendonly yes"] if info.get("aof_enabled", "0") == "1" else []
    if configured.get("save"):
        ways.append(f'save "{configured["save"]}"')
    if ways:
        what = (
            f"the store writes pages to disk ({' and '.join(ways)}): a fork can double its memory"
        )
        remedy = 'set save "" and appendonly no, unless pages are to outlive a restart'
        findings.append(Finding(Level.NOTE, what, remedy))
    return findings
