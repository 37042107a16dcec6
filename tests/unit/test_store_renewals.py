"""Renewals of a prompt's pages on several servers: whatever is sent once more, order holds."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from lexico_store.findings import Finding
from lexico_store.redis_exchange import Exchange, Unit
from lexico_store.redis_servers import Servers
from lexico_store.settings import StoreSettings


class Nodes(Servers):
    """Two servers that take pages by turns, and note what they carry out."""

    fails_over = True

    def __init__(self, lost: int) -> None:
        """
        Args:
            lost: exchanges with the second server that get no answer, the first ones.
        """
        super().__init__(StoreSettings())
        self.pools: list[Any] = [redis.ConnectionPool(port=1), redis.ConnectionPool(port=2)]
        self.lost = lost
        self.done: list[int] = []

    def pool_for(self, unit: Unit) -> Any:
        return self.pools[int(str(unit.name)) % 2]

    def exchange(self, pool: Any, units: dict[int, Unit], *, anew: bool = False) -> Any:
        return Sent(self, pool, units)

    def look(self) -> list[Finding]:
        return []

    def close(self) -> None:
        pass


class Sent(Exchange):
    """Carried out at once, or lost."""

    def __init__(self, nodes: Nodes, pool: Any, units: dict[int, Unit]) -> None:
        super().__init__(pool, units, 1.0, anew=False, last=False)
        self._nodes = nodes

    def send(self) -> None:
        nodes = self._nodes
        if self.pool is nodes.pools[1] and nodes.lost:
            nodes.lost -= 1
            self.heard = False
            self.outcomes = dict.fromkeys(self.units, redis.TimeoutError("lost"))
            return
        nodes.done += [int(str(unit.name)) for unit in self.units.values()]
        self.outcomes = dict.fromkeys(self.units, 1)

    def receive(self) -> None:
        pass


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_pages_ahead_are_renewed_after_what_is_renewed_late(lost: int) -> None:
    nodes, pages = Nodes(lost), 7
    replies = nodes.run(
        [("PEXPIRE", str(page), 60, "XX") for page in reversed(range(pages))], ordered=True
    )
    assert replies == [1] * pages
    last = {page: place for place, page in enumerate(nodes.done)}
    late = [page for page in range(pages) if page % 2]  # the second server's
    for page in late if lost else ():
        assert all(last[ahead] > last[page] for ahead in range(page) if ahead % 2 == 0)


def test_what_has_no_order_is_not_sent_again() -> None:
    nodes = Nodes(1)
    nodes.run([("EXISTS", str(page)) for page in range(6)])
    assert sorted(nodes.done) == list(range(6))
