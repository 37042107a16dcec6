"""LMCache servers that end and start again, in front of a service that stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from lexico_proto.metrics import RECEIVED_BYTES
from tests.lmcache.conftest import CHUNKS, LOADED, SHORT, plugin
from tests.support.engine_prompts import Plain, Prompts
from tests.support.lmcache_pairs import Pairs
from tests.support.lmcache_server import CHUNK_TOKENS, SENT
from tests.support.vllm_service import EngineService
from tests.support.waiting import wait_until

SOON: Final[dict[str, Any]] = {
    "lmcache.mp.heartbeat_interval": 2.0,
    "lmcache.mp.mq_timeout": 20.0,
}
"""How soon an engine finds out that its server is gone."""


def test_an_lmcache_server_that_ends_stores_what_it_has_and_starts_again(
    pairs: Pairs,
    service: EngineService,
    model: Path,
    prompts: Prompts,
    plain: Plain,
    stored: set[str],
) -> None:
    """Its engine goes on without it, and loads from the next one what this one stored."""
    pair = pairs.like(plugin(service, model, **SHORT), patience=SOON)
    received, ids = service.counts(RECEIVED_BYTES), prompts.branch(CHUNK_TOKENS, 4)
    before = len(service.store._pages)
    service.offload.upload_delay_s = 0.02
    first = pair.engine.generate(ids)
    wait_until(lambda: service.counts(RECEIVED_BYTES) != received, "an object to be received")
    assert len(service.store._pages) < before + CHUNKS - 1
    pair.server.end()
    service.offload.upload_delay_s = 0.0
    assert len(service.store._pages) == before + CHUNKS - 1  # the first one was there
    assert "ends before all is stored" not in pair.server.said()

    away = pair.engine.generate(*prompts.apart)
    assert (away.tokens, away.cached) == (plain.apart, [0] * len(plain.apart))

    pair.server.start()

    def hit() -> bool:
        """Once the engine knows that it is back."""
        return pair.engine.generate(ids, max_tokens=1).cached == [LOADED]

    wait_until(hit, "a hit", pair.server.said, every_s=0.5)
    assert pair.server.counts()[SENT] == 0
    again = pair.engine.generate(ids)
    assert (again.tokens, again.cached) == (first.tokens, [LOADED])
