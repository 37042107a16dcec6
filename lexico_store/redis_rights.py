"""What a user of the store must be allowed, and what of it one lacks."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import NoPermissionError, RedisError

from lexico_store import keys
from lexico_store.redis_errors import cause_of_abort
from lexico_store.redis_exchange import Command

KEYS: Final = f"~{keys.PREFIX}:*"
"""The names of everything that the store keeps, as an ACL rule."""

COMMANDS: Final = (
    *("multi", "exec", "evalsha", "eval"),
    *("exists", "hset", "hget", "hgetall", "hstrlen", "pexpire", "persist", "del", "unlink"),
    *("hmget", "hvals", "hdel", "hlen", "hrandfield", "set"),
    *("get", "hexists", "time"),  # in scripts
    *("sadd", "smembers"),
    "ping",
)
"""Every command that the store gives, in a script too. One more here, and the look asks for it."""

USEFUL: Final = ("info", "config|get", "cluster|slots", "asking", "select", "pttl")
"""What the look, a cluster, a database other than 0 and `lexico inspect` take beside them."""

IN_A_CLUSTER: Final = ("asking",)
"""Of those, what a cluster takes beside the commands, and only now and then: while slots move."""

RULE: Final = f"{KEYS} " + " ".join(f"+{name}" for name in (*COMMANDS, *USEFUL))
"""The least that suffices, as `ACL SETUSER name on >password <rule>` takes it."""


def trial(*, cluster: bool = False) -> list[Command]:
    """Commands that tell what a user may do and change nothing, to be sent after a MULTI that was
    granted: a server checks rights when it queues a command, and none of these is ever executed.

    All of them but PING and MULTI, on names that nobody has; in a cluster `IN_A_CLUSTER` too.
    """
    name = f"{keys.PREFIX}:p:{{{secrets.token_hex(20)}}}"
    sample: dict[str, Command] = {
        "evalsha": ("EVALSHA", "0" * 40, 1, name),
        "eval": ("EVAL", "return 0", 1, name),
        "hset": ("HSET", name, "g0", b"x"),
        "hget": ("HGET", name, "g0"),
        "hstrlen": ("HSTRLEN", name, "g0"),
        "pexpire": ("PEXPIRE", name, 1),
        "hmget": ("HMGET", name, "g0"),
        "hdel": ("HDEL", name, "g0"),
        "hexists": ("HEXISTS", name, "g0"),
        "time": ("TIME",),
        "set": ("SET", name, b"x"),
        "sadd": ("SADD", name, b"x"),
    }
    tried = [each for each in COMMANDS if each not in ("multi", "exec", "ping")]
    last: list[Command] = [(each.upper(),) for each in IN_A_CLUSTER] if cluster else []
    return [*(sample.get(each, (each.upper(), name)) for each in tried), *last]


def lacking(commands: Sequence[Command], replies: Sequence[Any]) -> tuple[list[str], bool]:
    """Of the replies to `trial`: the commands that the user may not give, and whether it may not
    touch the store's names."""
    refused, names = [], False
    for command, reply in zip(commands, replies, strict=True):
        error = cause_of_abort(reply) if isinstance(reply, Exception) else None
        if isinstance(error, NoPermissionError):
            if is_about_names(error):
                names = True
            else:
                refused.append(str(command[0]).lower())
    return refused, names


def is_about_names(error: RedisError) -> bool:
    """Whether the user lacks keys and not the command, by the words of Redis 6 to Valkey 9."""
    return re.search(r"\bkeys?\b", str(error)) is not None
