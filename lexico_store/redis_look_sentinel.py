"""One look at the sentinels of a service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import redis

from lexico_store.findings import Finding, Level
from lexico_store.redis_errors import REFUSED, is_lost

_LEAST_SENTINELS: Final = 3


def look_at_sentinels(sentinels: Sequence[Any], service: str) -> list[Finding]:
    """What each sentinel says of the service; empty if they all agree and are enough.

    Args:
        sentinels: redis-py's client of each.

    Raises:
        redis.RedisError, OSError: none of them answers.
    """
    findings: list[Finding] = []
    silent: list[tuple[str, Exception]] = []
    known: list[dict[str, Any]] = []
    others: set[str] = set()
    for each in sentinels:
        options = each.connection_pool.connection_kwargs
        where = f"{options['host']}:{options['port']}"
        try:
            masters: dict[str, dict[str, Any]] = each.sentinel_masters()
        except REFUSED:
            what = f"sentinel {where} refuses us"
            remedy = "give ?sentinel_username= and &sentinel_password=, and check its ACL"
            findings.append(Finding(Level.REFUSED, what, remedy))
            continue
        except (redis.RedisError, OSError) as error:
            if is_lost(error):
                silent.append((where, error))
            else:
                what = f"{where} is no sentinel"
                remedy = "give the sentinels' hosts and ports, 26379 by default"
                findings.append(Finding(Level.REFUSED, what, remedy))
            continue
        if service in masters:
            known.append(masters[service])
        else:
            others |= set(masters)
            what = f"sentinel {where} knows no service {service!r}"
            names = ", ".join(sorted(masters)) or "none"
            findings.append(Finding(Level.REFUSED, what, f"it knows: {names}"))
    if len(silent) == len(sentinels):
        raise silent[0][1]
    if known:  # those who know it will do, so the rest is not in the way
        findings = [Finding(Level.WARNING, each.what, each.to_do) for each in findings]
        findings += _enough(known)
    findings += [
        Finding(Level.WARNING, f"sentinel {where} does not answer", "start it, or correct the URL")
        for where, _ in silent
    ]
    return findings


def _enough(known: Sequence[dict[str, Any]]) -> list[Finding]:
    """Whether there are enough to fail over, and to."""
    findings = []
    number = max(int(state.get("num-other-sentinels", 0)) for state in known) + 1
    if number < _LEAST_SENTINELS:
        what = (
            f"{number} sentinel watches the store" if number == 1 else f"{number} sentinels watch"
        )
        findings.append(Finding(Level.WARNING, what, "run three, each on a machine of its own"))
    if not any(int(state.get("num-slaves", 0)) for state in known):
        what = "the store's primary has no replica, so that nothing can take over from it"
        findings.append(Finding(Level.WARNING, what, "add a replica"))
    return findings
