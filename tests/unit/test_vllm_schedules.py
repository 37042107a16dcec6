"""The connector under schedules of any kind: admissions, hits, preemptions, aborts, reused blocks;
engines of one rank and of several that share a store, ranks that go ahead, fail, die or are stuck.

After each event, every block that an engine believes computed holds on every rank the keys and
values of the tokens that it is believed to hold, and no page was stored of two computations; and
when all is over, nothing is kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lexico_client.engines.vllm import _scheduler
from lexico_codec.geometry import Geometry
from lexico_proto.metrics import ENGINE_PAGES, ENGINE_TOKENS, SLICED_PAGES
from tests.support.vllm_blocks import LOAD_S, RankMemory
from tests.support.vllm_fakes import engine_spec, request
from tests.support.vllm_schedules import Engine
from tests.support.vllm_store import IDLE_S, Store
from tests.support.vllm_truth import Truth

BEGINNINGS = [list(range(first, first + 40)) for first in (100, 200)]
"""Prompts begin as one of these, so that many share much."""
WAYS = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)]
"""Ranks that split heads, and that split layers."""
SEEDS, EVENTS = 24, 300


class Schedule:
    """Engines that share a store, and what happens to them."""

    def __init__(self, seed: int, ways: list[tuple[int, int]] | None = None) -> None:
        self.draw = draw = random.Random(seed)
        # With four ranks and two heads, two hold the same.
        geometry = Geometry(layers=3, kv_heads=draw.choice([2, 4]), head_dim=8, dtype="float32")
        spec = engine_spec(
            geometry=geometry, page_tokens=draw.choice([4, 6, 8, 8, 16]), group_layers=2
        )
        room = draw.choice([4, 16, 1000]) * spec.page_bytes
        self.store = Store(Truth(geometry), room)
        if ways is None:
            ways = draw.choices(WAYS, [1, 2, 2, 2, 1], k=draw.choice([1, 1, 2, 3]))
        self.engines = [
            Engine(
                self.store,
                spec,
                way,
                blocks=draw.randint(14, 26),
                budget=draw.randint(3, 20),
                ahead=draw.random() < 0.5,
                draw=draw,
            )
            for way in ways
        ]
        self.number = 0
        harm = draw.random() < 0.4
        self.hurry = 0.1 if harm else 1.0
        """How often a thread goes on that is at the engine's memory."""
        self.events: dict[Callable[[], None], float] = {
            self.add: 5,
            self.step: 12,
            self.go_ahead: 6,
            self.answer: 8,
            self.go_on: 16,
            self.come: 1 if harm else 3,
            self.share: 6,
            self.abort: 2,
            self.lose: 2,
            self.forget: 1,
            self.reset: 0.3 if draw.random() < 0.3 else 0,
            self.expire: 0.5,
            self.be_late: 2 if harm else 0,
            self.stick: 2 if harm else 0,
            self.go_elsewhere: 0.5 if harm else 0,
            self.die: 0.3 if harm else 0,
        }

    def run(self, events: int = EVENTS) -> None:
        for event in self.draw.choices(
            list(self.events), weights=list(self.events.values()), k=events
        ):
            self.engine = self.draw.choice(self.engines)
            event()
            self.engine.check()
        self.store.loops.frozen.clear()
        for engine in self.engines:
            engine.settle()
        self.store.let_come()
        self.store.loops.skip(2 * IDLE_S)  # uploads of ranks that died are given up

    @property
    def rank(self) -> RankMemory:
        return self.draw.choice(self.engine.ranks)

    def add(self) -> None:
        """A request, under a name that another had, perhaps."""
        draw = self.draw
        if draw.random() < 0.7 or f"r{self.number}" in self.engine.requests:
            self.number += 1
        own = range(500, 500 + draw.randint(0, 6))
        ids = [*draw.choice(BEGINNINGS)[: draw.randint(4, 32)], *own]
        made = request(
            f"r{self.number}",
            len(ids),
            all_token_ids=ids or [1],
            cache_salt="s" if draw.random() < 0.2 else None,
            lora_request="adapter" if draw.random() < 0.1 else None,
        )
        self.engine.add(made, draw.randint(0, 5))

    def step(self) -> None:
        self.engine.step()

    def go_ahead(self) -> None:
        self.engine.go_ahead()

    def answer(self) -> None:
        if asked := self.engine.finding.open:
            self.engine.finding.answer(
                self.draw.randrange(len(asked)), failing=self.draw.random() < 0.1
            )

    def go_on(self) -> None:
        """Pages of loads or stores come, or fail."""
        gates = self.store.gates
        for _ in range(self.draw.randint(1, 16)):
            there = [each for each in gates.open if each.name != "thread"]
            if self.draw.random() < self.hurry:
                there = gates.open
            if there:
                gates.let(self.draw.choice(there), failing=self.draw.random() < 0.05)
                self.store.loops.run()

    def come(self) -> None:
        """All that is under way comes."""
        self.engine.let_come()

    def share(self) -> None:
        """Another engine stores a prompt."""
        self.store.share(self.engine.spec, self.draw.choice(BEGINNINGS)[: self.draw.randint(8, 40)])

    def abort(self) -> None:
        alive = [name for name, each in self.engine.requests.items() if each.state != "aborted"]
        if alive:
            self.engine.abort(self.draw.choice(alive))

    def lose(self) -> None:
        """A page leaves the store."""
        if pages := self.store.pages:
            del pages[self.draw.choice(list(pages))]

    def forget(self) -> None:
        """The engine's own prefix cache is emptied."""
        self.engine.cached.clear()

    def reset(self) -> None:
        """Weights are changed in place."""
        if not self.engine.pending and self.engine.quiet:
            self.engine.reset()

    def expire(self) -> None:
        self.store.expire()

    def be_late(self) -> None:
        """Every deadline passes, also of what is stuck."""
        self.store.loops.skip(LOAD_S + 10)
        for engine in self.engines:
            for rank in engine.ranks:
                rank.service.watch()

    def stick(self) -> None:
        """A rank's loop is stuck, or goes on."""
        frozen, loop = self.store.loops.frozen, self.rank.service.loop
        frozen ^= {loop}
        self.store.loops.run()

    def go_elsewhere(self) -> None:
        """A rank sends to another ingress, or no more."""
        client, store = self.rank.client, self.store
        client.ingress = store.here if client.ingress is store.elsewhere else store.elsewhere

    def die(self) -> None:
        service = self.rank.service
        if not service.dead:
            service.die()

    def check_nothing_is_kept(self) -> None:
        assert not self.store.wrong
        assert not self.store.kept, self.store.kept
        for engine in self.engines:
            side = engine.side
            assert (side._prompts, side._alone, engine._awaited) == ({}, set(), {})
            assert sorted(engine.free) == list(range(len(engine.users)))
            for rank in engine.ranks:
                worker = rank.worker
                assert (worker._orders, worker._over, rank.service.calls) == ({}, set(), {})
                assert (worker._stores, worker._staged) == (0, 0)

    def close(self) -> None:
        self.store.loops.close()


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would come meanwhile comes when a test lets it."""
    monkeypatch.setattr(_scheduler, "REST_S", 0.0)


def ran(seed: int, ways: list[tuple[int, int]] | None = None) -> Schedule:
    schedule = Schedule(seed, ways)
    try:
        schedule.run()
        schedule.check_nothing_is_kept()
    finally:
        schedule.close()
    return schedule


@pytest.mark.parametrize("seed", range(SEEDS))
def test_blocks_hold_what_the_engine_believes_and_nothing_is_kept(seed: int) -> None:
    ran(seed)


def test_the_schedules_have_what_they_are_for() -> None:
    """Loads that came and that did not, requests that ran again, ends under a load; pages that were
    whole and that were given up; ranks that differ."""
    counts: dict[str, int | float] = {}
    seen: set[str] = set()
    for seed in range(4, 12):
        schedule = ran(seed)
        for engine in schedule.engines:
            seen |= engine.seen
        for family in (ENGINE_TOKENS, ENGINE_PAGES, SLICED_PAGES):
            for metrics in (schedule.store.metrics, *(each.metrics for each in schedule.engines)):
                for (what,), number in metrics.snapshot().get(family, {}).items():
                    counts[what] = counts.get(what, 0) + number
    for what in ("loaded", "lost", "sent", "dropped", "failed", "whole", "expired"):
        assert counts[what], what
    assert seen == {
        "preempted",
        "aborted under a load",
        "failed in part",
        "failed",
        "hit again",
        "ended on some ranks",
        "failed on some ranks",
    }
