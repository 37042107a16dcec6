"""Scripts by their digest, wherever the servers are that should know them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from redis.exceptions import NoScriptError

from lexico_store.redis_exchange import Argument
from lexico_store.redis_servers import Servers


class Script:
    """A Lua script. A server that has forgotten it, or never knew it, is given its text: a restart,
    a failover and a slot on the move all lead to such a server."""

    def __init__(self, servers: Servers, text: str) -> None:
        self._servers = servers
        self._text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """Its reply. `keys` share one slot; the first decides where it runs.

        Raises:
            redis.RedisError, OSError: as `Servers.run`.
        """
        rest = (len(keys), *keys, *args)
        try:
            return self._servers.run([("EVALSHA", self._digest, *rest)])[0]
        except NoScriptError:
            return self._servers.run([("EVAL", self._text, *rest)])[0]
