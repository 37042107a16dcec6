"""LMCache servers and the vLLM engines that share by them, for tests: a pair at a time."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.lmcache_server import LMCacheServer, lmcache_server
from tests.support.vllm_engine import Engine, Nursery
from tests.support.waiting import wait_until

WARN_EVERY_S: Final = 60.0
"""Between two warnings of a kind."""
_LOOK_S: Final = 0.5


@dataclass(frozen=True)
class Pair:
    """A running engine, and the server that it shares by."""

    server: LMCacheServer
    engine: Engine
    began: float = field(default_factory=time.monotonic)

    def forget(self) -> None:
        """Empties the server's memory, once nothing in it is being stored."""
        if self.engine.begun:  # by a test that failed
            self.engine.result()
        self.server.settle()
        self.server.forget()

    def hits_again(self, token_ids: list[int], loaded: int) -> None:
        """Waits until the service has so many tokens of a prompt, as this server finds them there.

        What is missing is stored: the engine computes it.
        """

        def hit() -> bool:
            self.forget()
            before = self.server.counts()
            self.engine.generate(token_ids, max_tokens=1)
            changes = self.server.counts() - before
            return changes["lexico_engine_tokens_total loaded"] == loaded

        wait_until(hit, f"a hit of {loaded} tokens", self.server.said, every_s=_LOOK_S)

    def warnings(self, what: str) -> list[str]:
        """Warnings of ours: of `match`, `load` or `store`."""
        lines = self.server.said().splitlines()
        found = [line for line in lines if f"{what} failed, the engine computes by itself" in line]
        minutes = (time.monotonic() - self.began) / WARN_EVERY_S
        assert len(found) <= 1 + minutes, found
        return found


class Pairs:
    """Each pair runs until another one is asked for."""

    def __init__(self, nursery: Nursery, folder: Callable[[str], Path]) -> None:
        """
        Args:
            nursery: makes the engines.
            folder: makes a folder of a name, for a server's log.
        """
        self._nursery = nursery
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._wanted: Any = None
        self._pair: Pair | None = None
        self._numbers = itertools.count()

    def like(
        self,
        adapter: dict[str, Any],
        patience: dict[str, Any] | None = None,
        flags: tuple[str, ...] = (),
        **options: Any,
    ) -> Pair:
        """The pair that runs, if it was started so, or a new one.

        Args:
            adapter: specification of the server's L2 adapter.
            patience: what else the engine's connector is told.
            flags: others of the server's command.
            options: of the engine. Without any it has no prefix cache: blocks in it are not free
                until a later step.
        """
        wanted = adapter, patience, flags, options
        if self._pair is None or self._wanted != wanted:
            self.close()
            self._wanted = wanted
            log = self._folder("lmcache") / f"lmcache-{next(self._numbers)}.log"
            server = self._stack.enter_context(lmcache_server(adapter, log, flags))
            told: dict[str, Any] = {"enable_prefix_caching": False, **options}
            engine = self._nursery.engine(kv_transfer_config=server.connector(patience), **told)
            self._pair = Pair(server, self._stack.enter_context(engine))
        return self._pair

    def again(self) -> Pair:
        """A new pair like the one that runs, which ends first."""
        adapter, patience, flags, options = self._wanted
        self.close()
        return self.like(adapter, patience, flags, **options)

    def alone(self, **options: Any) -> Engine:
        """An engine without LMCache; it runs until a pair is asked for, or another one."""
        self.close()
        return self._stack.enter_context(self._nursery.engine(**options))

    def close(self) -> None:
        """Ends what runs: first the engine."""
        self._pair = None
        self._stack.close()


class Counted:
    """What a server's adapter counted since."""

    def __init__(self, server: LMCacheServer) -> None:
        self._server, self._before = server, server.counts()

    def changes(self) -> Counter[str]:
        """Family and label values → by how much it became more."""
        return self._server.counts() - self._before

    def reach(self, name: str, number: int) -> None:
        """Waits until so many were counted."""

        def reached() -> bool:
            return self.changes()[name] >= number

        wait_until(reached, f"{number} of {name}", self._server.said, every_s=_LOOK_S)
