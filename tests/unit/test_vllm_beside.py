"""The scheduler's side beside another connector, which loads within the steps that go on from what
it brings. Whether that came is told with a step's output: until then nothing is stored of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from lexico_client.engines._counts import Counts
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._scheduler import SchedulerSide
from lexico_proto.metrics import Metrics
from tests.support.vllm_fakes import BLOCK_TOKENS, FakeFinder, engine_spec, grown, request, step

BLOCKS = list(range(20, 29))  # of 36 tokens


def made() -> SchedulerSide:
    """Of an engine with nothing stored."""
    spec = engine_spec()
    finder, counts = FakeFinder(spec.codec, at_once=0), Counts(LOG, Metrics())
    return SchedulerSide(spec, finder, counts, block_tokens=BLOCK_TOKENS, recent_tokens=16)


def admitted(side: SchedulerSide, name: str = "a", blocks: list[int] = BLOCKS) -> SimpleNamespace:
    """A request that the other connector loads for, and that has blocks."""
    found = request(name)
    assert side.matched(found, 0) == 0
    side.allocated(found, blocks, 0)
    return found


def stored(side: SchedulerSide, told: SimpleNamespace) -> list[str]:
    return [order.request_id for order in side.orders(told).stores]


def test_a_prompt_is_stored_once_its_first_token_is_there() -> None:
    side = made()
    a = admitted(side)
    assert stored(side, step(new={"a": (BLOCKS, 24, 11)}, within=True)) == []
    assert stored(side, step(running={"a": ([], 35, 1)})) == [], "an engine that runs ahead"
    grown(a, 1)
    assert stored(side, step(running={"a": ([], 36, 1)})) == ["a"]
    assert stored(side, step(running={"a": ([], 37, 1)})) == []


@pytest.mark.parametrize("ahead", [False, True])
def test_of_a_load_that_failed_nothing_is_stored(ahead: bool) -> None:
    side = made()
    a = admitted(side)
    assert stored(side, step(new={"a": (BLOCKS, 24, 11)}, within=True)) == []
    if ahead:
        assert stored(side, step(running={"a": ([], 35, 1)})) == []
    side.lost({BLOCKS[2]})
    assert stored(side, step(running={"a": ([], 8, 27)})) == []
    grown(a, 1)
    assert stored(side, step(running={"a": ([], 35, 1)})) == []


def test_nor_of_a_request_that_went_on_from_its_blocks() -> None:
    """The engine has a block in its own prefix cache as soon as it is to be loaded."""
    side = made()
    admitted(side)
    assert stored(side, step(new={"a": (BLOCKS, 24, 11)}, within=True)) == []
    other = [*BLOCKS[:6], 40, 41, 42]
    b = admitted(side, "b", other)
    assert stored(side, step(new={"b": (other, 24, 11)})) == []
    side.lost({BLOCKS[2]})
    grown(b, 1)
    assert stored(side, step(running={"b": ([], 35, 1)})) == []


def test_tokens_of_before_a_preemption_say_nothing_of_what_came_after() -> None:
    side = made()
    a = admitted(side)
    assert stored(side, step(new={"a": (BLOCKS[:4], 12, 4)}, within=True)) == []
    grown(a, 1)
    side.allocated(a, BLOCKS, 0)
    assert stored(side, step(resumed={"a": (BLOCKS, 24, 12)}, preempted={"a"})) == []
    grown(a, 1)
    assert stored(side, step(running={"a": ([], 36, 1)})) == ["a"]


def test_alone_a_prompt_is_stored_with_its_step() -> None:
    side = made()
    admitted(side)
    assert stored(side, step(new={"a": (BLOCKS, 0, 35)})) == ["a"]
