"""A vLLM engine without a set: its scheduler's side takes one over, the worker's side follows."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexico_client import AsyncClient
from lexico_client.engines._coding import coding_of
from lexico_client.engines._counts import Counts
from lexico_client.engines._service import Service
from lexico_client.engines.vllm._coded import Finder, set_at_hand
from lexico_client.engines.vllm._config import ConnectorConfig
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._orders import Orders
from lexico_client.engines.vllm._paged import PagedCache
from lexico_client.engines.vllm._scheduler import SchedulerSide
from lexico_client.engines.vllm._worker import WorkerSide
from lexico_proto.errors import ConfigurationError, Unavailable
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_TOKENS, Family, Metrics
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import PATIENT, small_dictionary
from tests.support.vllm_caches import cpu
from tests.support.vllm_fakes import BLOCK_TOKENS, GEOMETRY, engine_spec, request, step
from tests.support.waiting import PATIENCE_S, wait_until
from tests.support.without_set import Service as Transport
from tests.support.without_set import said

BASE = engine_spec(group_layers=0)
SET = small_dictionary(layers=2, head_dim=8, kv_heads=2)
TOKENS, STORED = 35, 32
BLOCKS = list(range(9))
PAPER = ConnectorConfig.of({"reload": "127.0.0.1:7412", "codec": "paper", "recent_tokens": 3})


class Node:
    """Both sides of an engine, each with a client of its own, as in two processes."""

    def __init__(self, transport: Transport, folder: Path, config: ConnectorConfig = PAPER) -> None:
        self.metrics = Metrics()
        counts = Counts(LOG, self.metrics)
        eager = replace(PATIENT, sets=1e-9)
        fronts = (
            AsyncClient(transport=transport, dictionaries_dir=folder / part, timeouts=eager)
            for part in ("scheduler", "worker")
        )
        self.asking, self.moving = (Service(front, "vllm", LOG) for front in fronts)
        self.coding = coding_of(self.asking, config, BASE, "my models/tiny", known_positions=True)
        self.scheduler = SchedulerSide(
            BASE,
            Finder(self.asking, self.coding, config.recent_tokens, PATIENCE_S),
            counts,
            block_tokens=BLOCK_TOKENS,
            recent_tokens=config.recent_tokens,
        )
        self.worker = WorkerSide(
            BASE,
            self.moving,
            counts,
            set_at_hand(config, BASE),
            load_seconds=PATIENCE_S,
            offload_seconds=PATIENCE_S,
            drain_seconds=PATIENCE_S,
            staging_bytes=1 << 20,
            concurrent_loads=2,
            concurrent_stores=1,
        )
        g = GEOMETRY
        self.layers = [
            cpu(len(BLOCKS), BLOCK_TOKENS, g.kv_heads, g.head_dim, g.torch_dtype)
            for _ in range(g.layers)
        ]
        named = [(f"layers.{i}", each.tensor, each.write) for i, each in enumerate(self.layers)]
        self.cache, _ = PagedCache.over(named, BASE, BLOCK_TOKENS)
        self.worker.register(self.cache)
        self.loaded = torch.empty(0)
        """What the last prompt's load left in its blocks."""

    def prompt(self, name: str) -> tuple[int, set[int]]:
        """Runs a prompt as an engine does; tokens that were promised, and blocks that were lost."""
        asked = request(name, TOKENS)
        promised, lost = self.asked(asked), set[int]()
        if promised:
            self.scheduler.allocated(asked, BLOCKS, promised)
            self.worker.begin(self._carried(step()))
            wait_until(self.worker.arrived, "the load's end")
            lost = self.worker.bad_blocks()
            self.scheduler.lost(lost)
        self.loaded = self.cache.copied(BLOCKS, 0, STORED)
        computed = 0 if lost else promised
        self.compute(computed)
        orders = self._carried(step(new={name: (BLOCKS, computed, TOKENS - computed)}))
        self.worker.stage(orders)
        wait_until(lambda: not self.worker.stores_under_way, "every store's end")
        self.scheduler.finished(name)
        return promised, lost

    def asked(self, asked: Any) -> int:
        """Tokens that are promised."""
        promised: list[int | None] = []

        def answered() -> bool:
            promised.append(self.scheduler.matched(asked, 0))
            return promised[-1] is not None

        wait_until(answered, "an answer")
        return promised[-1] or 0

    def takes(self) -> None:
        """Asks until a set was taken over."""

        def taken() -> bool:
            self.asked(request("looking"))
            self.scheduler.finished("looking")
            return not self.coding.waiting

        wait_until(taken, "the set to be taken over")

    def compute(self, first: int) -> None:
        at = torch.arange(first, TOKENS)
        for layer, each in enumerate(self.layers):
            each.write(EXACT[layer, 0, first:], EXACT[layer, 1, first:], at)

    def counted(self, family: Family) -> dict[str, int | float]:
        counts = self.metrics.snapshot().get(family, {})
        return {" ".join(values): number for values, number in counts.items() if number}

    def close(self) -> None:
        self.asking.close()
        self.worker.close()

    def _carried(self, of: Any) -> Orders:
        """As vLLM brings them to another process."""
        orders: Orders = pickle.loads(pickle.dumps(self.scheduler.orders(of)))  # noqa: S301
        return orders


_SHAPE = (GEOMETRY.layers, 2, TOKENS, GEOMETRY.kv_heads, GEOMETRY.head_dim)
EXACT = torch.randn(_SHAPE, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def transport() -> Transport:
    return Transport()


@pytest.fixture
def node(transport: Transport, tmp_path: Path) -> Iterator[Node]:
    made = Node(transport, tmp_path)
    yield made
    made.close()


def distance(found: Tensor) -> float:
    return float((found - EXACT[:, :, :STORED]).norm() / EXACT.norm())


def test_lossless_until_a_set_is_published_and_then_with_it(
    transport: Transport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(transport, tmp_path)
    (line,) = said(caplog)
    assert line.startswith("no set for my models/tiny with preset paper: running lossless")
    assert "lexico train --model 'my models/tiny'" in line
    assert node.prompt("a") == (0, set())
    assert node.prompt("b") == (STORED, set())
    assert distance(node.loaded) == 0

    transport.offer(SET, BASE)
    node.takes()
    assert node.prompt("c") == (STORED, set())  # of before, bit by bit, and stored as of now
    assert distance(node.loaded) == 0
    assert node.prompt("d") == (STORED, set())
    assert 0 < distance(node.loaded) < 1
    assert node.counted(ENGINE_PAGES) == {"sent": 8}
    assert node.counted(ENGINE_TOKENS)["loaded"] == 3 * STORED
    assert [text[:9] for text in said(caplog)[1:]] == ["set taken"]
    node.close()


def test_engines_with_and_without_the_set_share(
    node: Node, transport: Transport, tmp_path: Path
) -> None:
    """One had the set from its start, as a file; one took it over."""
    file = tmp_path / "set.safetensors"
    SET.save(file)
    other = Node(transport, tmp_path / "other", replace(PAPER, dictionary=str(file)))
    assert not other.coding.waiting
    assert other.prompt("a") == (0, set())  # and registers it
    assert node.prompt("a") == (0, set())
    transport.offer(SET, BASE)
    node.takes()
    assert node.prompt("b") == (STORED, set())
    assert 0 < distance(node.loaded) < 1
    assert other.counted(ENGINE_PAGES) == {"sent": 4}
    other.close()


def test_a_worker_that_cannot_get_the_set_has_a_miss(
    node: Node, transport: Transport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport.offer(SET, BASE)
    node.takes()
    node.prompt("a")
    transport.dictionaries.clear()
    lost = node.prompt("b")
    assert lost == (STORED, set(BLOCKS[: STORED // BLOCK_TOKENS]))
    assert node.counted(ENGINE_TOKENS)["lost"] == STORED
    assert "load failed, the engine computes by itself: reason=unknown-dictionary" in caplog.text


def test_a_service_that_forgot_a_set_that_was_fetched_takes_no_pages_of_it(
    node: Node, transport: Transport
) -> None:
    transport.offer(SET, BASE)
    node.takes()
    transport.dictionaries.clear()
    assert node.prompt("a") == (0, set())
    assert node.counted(ENGINE_PAGES) == {"failed": 4}
    assert not transport.pages


def test_a_set_that_is_published_is_there_from_the_start(
    transport: Transport, tmp_path: Path
) -> None:
    transport.offer(SET, BASE)
    node = Node(transport, tmp_path, replace(PAPER, without_set="refuse"))
    assert (node.coding.waiting, node.coding.source) == (False, "published")
    node.close()


def test_an_engine_may_refuse_to_start_without_a_set(transport: Transport, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="codec: preset paper needs a set") as refused:
        Node(transport, tmp_path, replace(PAPER, without_set="refuse"))
    assert "\n" not in str(refused.value)


def test_a_service_that_is_away_at_the_start_is_no_set(
    transport: Transport, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transport.refuses = Unavailable("gone")
    node = Node(transport, tmp_path)
    assert "published ones could not be asked for" in said(caplog)[0]
    transport.refuses = None
    transport.offer(SET, BASE)
    node.takes()
    node.close()


def test_where_pages_of_before_cannot_be_asked_for_those_of_now_count(
    node: Node, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    transport.offer(SET, BASE)
    node.takes()
    matching = transport.match

    async def match(asked: reload.MatchRequest, timeout: float) -> reload.MatchResponse:
        if asked.namespace == BASE.namespace:
            raise Unavailable("gone")
        return await matching(asked, timeout)

    monkeypatch.setattr(transport, "match", match)
    assert node.prompt("a") == (0, set())
    assert node.counted(ENGINE_PAGES) == {"sent": 4}
