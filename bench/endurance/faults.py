"""What chaos does to the service, one thing after another, and how each is mended."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psutil
import redis

from bench.endurance.stack import Nodes, Stack

Fault = Callable[[Stack, Nodes, random.Random], None]


def _kill(words: str) -> Fault:
    def kill(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
        if process := stack.one(words):
            with suppress(psutil.Error):
                process.kill()

    return kill


def _sleep(dice: random.Random, most: float = 2.5) -> None:
    time.sleep(dice.uniform(0.2, most))


def kill_node(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """A node vanishes in the middle of a call."""
    dice.choice(nodes.living).kill()


def end_serve(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """An orderly restart under load."""
    stack.serve.terminate()
    stack.serve.wait()


def restart_redis(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Redis dies, and comes back empty."""
    stack.restart_redis()


def stop_redis(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Redis hangs for a while."""
    stack.redis.send_signal(signal.SIGSTOP)
    _sleep(dice)
    stack.redis.send_signal(signal.SIGCONT)


def stop_encoder(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """An encoder hangs for a while."""
    if process := stack.one("Encoder"):
        with suppress(psutil.Error):
            process.suspend()
            _sleep(dice)
            process.resume()


def slow_network(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Every answer of Redis comes 100 ms late."""
    stack.proxy.delay_s = 0.1
    _sleep(dice)
    stack.proxy.delay_s = 0.0


def forgetful_network(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Connections go dead without a reset; later ones work."""
    stack.proxy.forget()


def black_hole(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Whatever is sent vanishes for a while, on later connections too."""
    stack.proxy.swallows = True
    _sleep(dice)
    stack.proxy.swallows = False
    stack.proxy.cut()


def refuse_connections(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Nobody listens on the port of Redis for a while."""
    stack.proxy.refuse()
    _sleep(dice)
    stack.proxy.accept()


def demote_redis(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Redis is a replica for a while, of a primary that is not there: nothing can be written."""
    with suppress(redis.RedisError):
        client = stack.direct()
        client.replicaof("127.0.0.1", 1)
        _sleep(dice)
        client.replicaof("NO", "ONE")


def cut_network(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Every connection to Redis is reset."""
    stack.proxy.cut()


def damage_pages(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """A byte of some frames turns, or a frame is cut, emptied, lost or put in another's place, or
    something else stands under the page's name.
    """
    with suppress(redis.RedisError):
        client = stack.direct()
        names = list(client.scan_iter("lx1:p:*", count=1000, _type="hash"))
        for name in dice.sample(names, min(20, len(names))):
            frames: dict[bytes, bytes] = client.hgetall(name)  # type: ignore[assignment]
            field = dice.choice(sorted(frames) or [b""])
            frame = bytearray(frames.get(field, b""))
            if not frame:
                continue
            kind = dice.randrange(6)
            if kind == 0:
                frame[dice.randrange(len(frame))] ^= 1 << dice.randrange(8)
                client.hset(name, field, bytes(frame))
            elif kind == 1:
                client.hset(name, field, bytes(frame[: len(frame) // 2]))
            elif kind == 2:
                client.hdel(name, field)
            elif kind == 3:
                client.hset(name, field, b"")
            elif kind == 4:
                client.set(name, b"x", ex=600)
            else:
                other = client.hget(dice.choice(names), field)
                if other:
                    client.hset(name, field, other)


def lose_pages(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Half of the pages are gone."""
    with suppress(redis.RedisError):
        client = stack.direct()
        names = list(client.scan_iter("lx1:p:*", count=1000))
        lost = dice.sample(names, len(names) // 2)
        if lost:
            client.unlink(*lost)


def fill_redis(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """Nothing more may be stored for a while."""
    with suppress(redis.RedisError):
        client = stack.direct()
        before = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        _sleep(dice)
        client.config_set("maxmemory", str(before))
        client.config_set("maxmemory-policy", "volatile-ttl")


def refuse_writes(stack: Stack, nodes: Nodes, dice: random.Random) -> None:
    """The user may not write any more; then he may again."""
    with suppress(redis.RedisError):
        client = stack.direct()
        client.acl_setuser("default", enabled=True, categories=["-@write"])
        _sleep(dice)
        client.acl_setuser("default", enabled=True, categories=["+@write"])


FAULTS: Final[dict[str, Fault]] = {
    "encoder killed": _kill("Encoder"),
    "ingress killed": _kill("Ingress"),
    "reload server killed": _kill("reload-server"),
    "raylet killed": _kill("raylet"),
    "serve killed": _kill("serve --drain"),
    "serve ended": end_serve,
    "node killed": kill_node,
    "redis restarted": restart_redis,
    "redis stopped": stop_redis,
    "encoder stopped": stop_encoder,
    "redis read-only": demote_redis,
    "network slow": slow_network,
    "network forgetful": forgetful_network,
    "network swallows": black_hole,
    "network refuses": refuse_connections,
    "network cut": cut_network,
    "pages damaged": damage_pages,
    "pages lost": lose_pages,
    "store full": fill_redis,
    "rights revoked": refuse_writes,
}
MEDIUM: Final = frozenset({"encoder killed", "ingress killed"})
"""Those after which Ray Serve starts a part again, which takes seconds."""
HEAVY: Final = frozenset({"raylet killed", "serve killed", "serve ended", "reload server killed"})
"""Those after which the whole service starts again."""
