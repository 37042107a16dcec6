"""The connector under schedules of any kind: admissions, hits, preemptions, aborts, reused blocks.

After each event, every block that the engine believes computed holds the keys and values of the
tokens that it is believed to hold; and when all is over, nothing is kept.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lexico_proto.metrics import ENGINE_TOKENS
from tests.support.vllm_fakes import request
from tests.support.vllm_schedules import Engine
from tests.support.vllm_truth import Client, Truth

BEGINNINGS = [list(range(first, first + 40)) for first in (100, 200)]
"""Prompts begin as one of these, so that many share much."""
SEEDS, EVENTS = 24, 150


class Schedule:
    """An engine, and what happens to it."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.client = Client()
        self.engine = Engine(
            self.client,
            Truth(),
            page_tokens=draw.choice([4, 6, 8, 16]),
            blocks=draw.randint(14, 26),
            budget=draw.randint(3, 20),
        )
        self.ahead = draw.random() < 0.5
        self.number = 0
        self.events: dict[Callable[[], None], float] = {
            self.add: 6,
            self.step: 12,
            self.answer: 8,
            self.go_on: 8,
            self.come: 1,
            self.share: 3,
            self.abort: 2,
            self.lose: 2,
            self.forget: 1,
            self.reset: 0.3 if draw.random() < 0.3 else 0,
        }

    def run(self) -> None:
        for event in self.draw.choices(
            list(self.events), weights=list(self.events.values()), k=EVENTS
        ):
            event()
            self.engine.check()
        self.engine.settle()

    def add(self) -> None:
        """A request, under a name that another had, perhaps."""
        draw = self.draw
        if draw.random() < 0.7 or f"r{self.number}" in self.engine.requests:
            self.number += 1
        own = range(500, 500 + draw.randint(0, 6))
        ids = [*draw.choice(BEGINNINGS)[: draw.randint(1, 32)], *own]
        made = request(
            f"r{self.number}",
            len(ids),
            all_token_ids=ids or [1],
            cache_salt="s" if draw.random() < 0.2 else None,
            lora_request="adapter" if draw.random() < 0.1 else None,
        )
        self.engine.add(made, draw.randint(0, 5))

    def step(self) -> None:
        self.engine.step(ahead=self.ahead)

    def answer(self) -> None:
        if asked := self.engine.finding.open:
            self.engine.finding.answer(
                self.draw.randrange(len(asked)), failing=self.draw.random() < 0.1
            )

    def go_on(self) -> None:
        """A page of a load or a store comes, or fails."""
        if gates := self.client.gates:
            gate = gates.pop(self.draw.randrange(len(gates)))
            gate.failing = self.draw.random() < 0.1
            gate.passed.set()
            self.engine.service.run()

    def come(self) -> None:
        """All that is under way comes."""
        self.engine.let_come()

    def share(self) -> None:
        """Another engine stores a prompt."""
        self.engine.share(self.draw.choice(BEGINNINGS)[: self.draw.randint(8, 40)])

    def abort(self) -> None:
        alive = [name for name, each in self.engine.requests.items() if each.state != "aborted"]
        if alive:
            self.engine.abort(self.draw.choice(alive))

    def lose(self) -> None:
        """A page leaves the store."""
        if pages := self.client.pages:
            del pages[self.draw.choice(list(pages))]

    def forget(self) -> None:
        """The engine's own prefix cache is emptied."""
        self.engine.cached.clear()

    def reset(self) -> None:
        """Weights are changed in place."""
        if self.engine.last is None and self.engine.quiet:
            self.engine.reset()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_blocks_hold_what_the_engine_believes_and_nothing_is_kept(seed: int) -> None:
    schedule = Schedule(seed)
    engine = schedule.engine
    try:
        schedule.run()
        assert not engine.side._prompts
        assert not engine.side._alone
        assert not engine.worker._over
        kept = engine.worker._loads, engine.worker._stores, engine.worker._staged
        assert kept == (0, 0, 0)
        assert sorted(engine.free) == list(range(len(engine.users)))
    finally:
        engine.close()


def test_the_schedules_have_what_they_are_for() -> None:
    """Loads that came and that did not, requests that ran again, and ends under a load."""
    tokens: dict[str, int | float] = {}
    seen: set[str] = set()
    for seed in range(12):
        schedule = Schedule(seed)
        schedule.run()
        seen |= schedule.engine.seen
        for (what,), number in schedule.engine.metrics.snapshot()[ENGINE_TOKENS].items():
            tokens[what] = tokens.get(what, 0) + number
        schedule.engine.close()
    assert tokens["loaded"] > 0 < tokens["lost"]
    assert seen == {"preempted", "aborted under a load", "failed in part", "failed", "hit again"}
