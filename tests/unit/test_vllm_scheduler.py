"""What the connector tells vLLM's scheduler, and what it orders, without an engine."""

from __future__ import annotations

import logging
import pickle
import threading
from typing import Any

import numpy as np
import pytest

from lexico_client.engines._counts import Counts
from lexico_client.engines.vllm import _scheduler
from lexico_client.engines.vllm._coded import Found
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._orders import LoadOrder, StoreOrder
from lexico_client.engines.vllm._scheduler import SchedulerSide
from lexico_codec.limits import MIN_ASSEMBLY_BYTES
from lexico_proto.errors import InternalError, Unavailable
from lexico_proto.metrics import ENGINE_REQUESTS, ENGINE_TOKENS, Metrics
from tests.support.client_fixtures import small_dictionary
from tests.support.vllm_fakes import (
    BLOCK_TOKENS,
    PAGE_TOKENS,
    FakeFinder,
    engine_spec,
    grown,
    request,
    step,
)
from tests.support.waiting import PATIENCE_S

BLOCKS = list(range(20, 29))  # of 36 tokens


class Rig:
    def __init__(self, at_once: int | None = None, **options: Any) -> None:
        spec = options.pop("spec", engine_spec())
        self.metrics, self.finder = Metrics(), FakeFinder(spec.codec, at_once=at_once)
        fields = {"block_tokens": BLOCK_TOKENS, "recent_tokens": 16, **options}
        self.side = SchedulerSide(spec, self.finder, Counts(LOG, self.metrics), **fields)

    def outcomes(self) -> dict[str, int | float]:
        counts = self.metrics.snapshot().get(ENGINE_REQUESTS, {})
        return {values[0]: number for values, number in counts.items()}

    def tokens(self) -> dict[str, int | float]:
        return {v[0]: n for v, n in self.metrics.snapshot().get(ENGINE_TOKENS, {}).items()}


def test_the_scheduler_is_told_to_ask_again_until_the_match_has_answered() -> None:
    rig, a = Rig(), request()
    rig.side.new_request(a)
    assert [rig.side.matched(a, 0) for _ in range(3)] == [None] * 3
    assert len(rig.finder.answers) == 1
    rig.finder.answers[0].end(3)
    assert [rig.side.matched(a, 0) for _ in range(3)] == [3 * PAGE_TOKENS] * 3
    assert rig.outcomes() == {"hit": 1}
    assert rig.tokens() == {"asked": 35, "promised": 24}


def test_an_engine_that_has_nothing_to_compute_waits_for_the_match(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a wait that nothing but the answer ends."""
    monkeypatch.setattr(_scheduler, "REST_S", PATIENCE_S)
    rig, a, b = Rig(), request("a"), request("b")
    rig.side.new_request(a)
    (answer,) = rig.finder.answers
    assert not rig.side.orders(step(new={"b": ([1], 0, 4)})).idle  # it has: at once
    assert not rig.side.orders(step()).idle  # and that may run still
    waiting = threading.Thread(target=lambda: rig.side.orders(step()), daemon=True)
    waiting.start()
    assert waiting.is_alive()
    answer.end(3)
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert rig.side.matched(a, 0) == 3 * PAGE_TOKENS
    rig.side.allocated(a, BLOCKS[:6], 3 * PAGE_TOKENS)
    rig.side.new_request(b)
    orders = rig.side.orders(step())  # there is a load to begin: at once
    assert orders.idle
    assert len(orders.loads) == 1


def test_a_match_begins_with_the_first_question_where_nobody_said_that_a_request_is_new() -> None:
    rig, a = Rig(), request()
    assert rig.side.matched(a, 0) is None
    assert rig.finder.answers[0].token_ids.tolist() == a.prompt_token_ids


@pytest.mark.parametrize(
    ("tokens", "pages", "computed", "promised"),
    [
        (35, 4, 0, 32),
        (33, 4, 0, 32),
        (32, 4, 0, 28),  # one token at least is computed, and blocks are whole
        (35, 4, 16, 16),
        (35, 2, 16, 0),
        (35, 1, 32, 0),
        (7, 0, 0, 0),
    ],
)
def test_promises_are_of_whole_blocks_and_leave_a_token(
    tokens: int, pages: int, computed: int, promised: int
) -> None:
    assert Rig(pages).side.matched(request(tokens=tokens), computed) == promised


def test_of_a_lossy_codec_the_newest_tokens_are_left_to_the_engine() -> None:
    spec = engine_spec("lexico", dictionary=bytes(range(32)))
    assert Rig(4, spec=spec).side.matched(request(tokens=35), 0) == 16  # 19 of them, whole blocks
    assert Rig(4, spec=spec, recent_tokens=1).side.matched(request(tokens=35), 0) == 32


def test_a_load_that_is_not_worth_it_is_not_promised() -> None:
    rig = Rig(4, min_load_tokens=17)
    assert rig.side.matched(request("a"), 16) == 0
    assert rig.side.matched(request("b"), 0) == 32
    assert rig.outcomes() == {"local": 1, "hit": 1}


def test_blocks_are_ordered_once_and_a_second_call_orders_nothing() -> None:
    rig, a = Rig(3), request()
    assert rig.side.matched(a, 8) == 16
    rig.side.allocated(a, BLOCKS[:6], 16)
    rig.side.allocated(a, BLOCKS, 0)  # once it is there
    orders = rig.side.orders(step())
    assert rig.side.orders(step()).loads == []
    (load,) = orders.loads
    assert (load.start, load.stop, load.blocks) == (8, 24, tuple(BLOCKS[:6]))
    assert load.token_ids.tolist() == a.prompt_token_ids[:24]
    again = pickle.loads(pickle.dumps(load))  # noqa: S301 - vLLM sends it so
    assert np.array_equal(again.token_ids, load.token_ids)


def stores(rig: Rig, steps: list[Any]) -> list[list[StoreOrder]]:
    return [rig.side.orders(each).stores for each in steps]


def test_a_prompt_is_stored_with_the_step_that_ends_it() -> None:
    rig, a = Rig(1), request()
    rig.side.matched(a, 0)
    found = stores(
        rig,
        [
            step(new={"a": (BLOCKS[:4], 0, 16)}),
            step(running={"a": (BLOCKS[4:6], 16, 8)}),
            step(running={"a": (BLOCKS[6:], 24, 11)}),
            step(running={"a": ([], 35, 1)}),
        ],
    )
    assert [len(each) for each in found] == [0, 0, 1, 0]
    (order,) = found[2]
    assert (order.first_page, order.blocks) == (1, tuple(BLOCKS[:8]))
    assert order.token_ids.tolist() == a.prompt_token_ids[:32]


def test_what_is_stored_already_is_not_stored() -> None:
    rig, a = Rig(4), request()
    rig.side.matched(a, 0)
    assert stores(rig, [step(new={"a": (BLOCKS, 32, 3)})]) == [[]]


def test_a_service_that_did_not_answer_gets_no_copies(caplog: pytest.LogCaptureFixture) -> None:
    rig, a, b = Rig(), request("a"), request("b")
    with caplog.at_level(logging.WARNING):
        for each in (a, b):
            rig.side.new_request(each)
            rig.finder.answers[-1].end(error=Unavailable("gone"))
            assert rig.side.matched(each, 0) == 0
    assert stores(rig, [step(new={"a": (BLOCKS, 0, 35)})]) == [[]]
    assert rig.outcomes() == {"failed": 2}
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_loop_that_has_ended_is_a_failure_and_no_error_of_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ended(*_: Any) -> Any:
        raise InternalError("the client's event loop has ended")

    rig = Rig()
    monkeypatch.setattr(rig.finder, "begin", ended)
    assert rig.side.matched(request(), 0) == 0
    assert rig.outcomes() == {"failed": 1}


def test_each_order_to_store_is_an_assembly_of_its_own() -> None:
    """Ranks get the same order: so the slices that they send are of one computation."""
    rig = Rig(0)
    for name in ("a", "b"):
        rig.side.matched(request(name), 0)
    found = stores(rig, [step(new=dict.fromkeys(("a", "b"), (BLOCKS, 0, 35)))])[0]
    assemblies = {order.assembly for order in found}
    assert len(assemblies) == 2
    assert all(len(each) == MIN_ASSEMBLY_BYTES for each in assemblies)


def test_an_engine_that_only_loads_or_only_stores() -> None:
    loads, saves = Rig(3, stores=False), Rig(3, loads=False)
    assert (loads.side.matched(request(), 0), saves.side.matched(request(), 0)) == (24, 0)
    one = [step(new={"a": (BLOCKS, 0, 35)})]
    assert [len(stores(rig, one)[0]) for rig in (loads, saves)] == [0, 1]


def test_a_preempted_request_is_asked_about_anew_and_its_old_blocks_are_forgotten() -> None:
    rig, a = Rig(), request()
    rig.side.new_request(a)
    rig.finder.answers[0].end(1)
    assert rig.side.matched(a, 0) == 8
    rig.side.allocated(a, BLOCKS[:2], 8)
    assert stores(rig, [step(new={"a": (BLOCKS[:4], 8, 8)})]) == [[]]
    assert rig.side.matched(a, 0) is None  # it is waiting again
    rig.finder.answers[1].end(2)
    assert rig.side.matched(a, 0) == 16
    rig.side.allocated(a, BLOCKS[4:8], 16)
    (load,) = rig.side.orders(step()).loads
    assert (load.start, load.stop, load.blocks) == (0, 16, tuple(BLOCKS[4:8]))
    (order,) = stores(rig, [step(resumed={"a": (list(range(9)), 16, 19)})])[0]
    assert (order.first_page, order.blocks) == (2, tuple(range(8)))


def test_what_was_generated_is_matched_too_but_the_prompt_alone_is_stored() -> None:
    rig, a = Rig(2), request()
    rig.side.matched(a, 0)
    rig.side.allocated(a, BLOCKS, 16)
    assert rig.side.matched(grown(a, 10), 0) == 16
    assert rig.finder.answers[-1].token_ids.tolist() == a.all_token_ids
    (order,) = stores(rig, [step(resumed={"a": (list(range(12)), 16, 29)})])[0]
    assert len(order.token_ids) == 32


def test_lost_blocks_are_computed_stored_again_and_not_promised_twice() -> None:
    """A page that is matched for ever and never decodes must not be asked for in a circle."""
    rig, a = Rig(4), request()
    assert rig.side.matched(a, 0) == 32
    rig.side.allocated(a, BLOCKS[:8], 32)
    rig.side.orders(step())
    rig.side.lost({BLOCKS[3], 77})
    assert rig.side.matched(a, 0) == 0
    assert len(rig.finder.answers) == 1
    (order,) = stores(rig, [step(new={"a": (BLOCKS, 12, 23)})])[0]
    assert order.first_page == 1
    assert rig.outcomes() == {"hit": 1}


@pytest.mark.parametrize(
    ("why", "changes"),
    [
        ("lora", {"lora_request": object()}),
        ("multimodal", {"mm_features": [object()]}),
        ("embeddings", {"prompt_token_ids": None}),
        ("embeddings", {"prompt_embeds": object()}),
        ("pooling", {"pooling_params": object()}),
        ("logprobs", {"skip_reading_prefix_cache": True}),
    ],
)
def test_requests_that_are_not_token_ids_alone_are_left_alone(
    why: str, changes: dict[str, Any]
) -> None:
    rig, a = Rig(4), request(**changes)
    rig.side.new_request(a)
    assert [rig.side.matched(a, 0), rig.side.matched(a, 0)] == [0, 0]
    rig.side.allocated(a, BLOCKS, 0)
    assert stores(rig, [step(new={"a": (BLOCKS, 0, 35)})]) == [[]]
    assert (rig.finder.answers, rig.outcomes()) == ([], {why: 1})


def test_a_request_that_got_a_picture_later_is_promised_nothing_more() -> None:
    """A session's inputs grow: the ids of a picture's place say nothing of the picture."""
    rig, a = Rig(4), request()
    assert rig.side.matched(a, 0) == 32
    rig.side.allocated(a, BLOCKS, 32)
    grown(a, 8).mm_features = [object()]
    assert rig.side.matched(a, 0) == 0
    assert len(rig.finder.answers) == 1


def test_cache_salts_are_namespaces_of_their_own() -> None:
    rig = Rig(0, spec=engine_spec(salt="site"))
    for name, salt in (("a", None), ("b", "x"), ("c", "y"), ("d", "x")):
        rig.side.matched(request(name, cache_salt=salt), 0)
    spaces = [answer.spec.namespace for answer in rig.finder.answers]
    assert spaces[0] == engine_spec(salt="site").namespace
    assert len(set(spaces)) == 3
    assert spaces[1] == spaces[3]
    other = Rig(0)
    other.side.matched(request(cache_salt="x"), 0)
    assert other.finder.answers[0].spec.namespace not in spaces


def test_orders_bear_the_spec_that_was_matched() -> None:
    rig, a = Rig(1), request(cache_salt="x")
    rig.side.matched(a, 0)
    rig.side.allocated(a, BLOCKS[:2], 8)
    orders = rig.side.orders(step(new={"a": (BLOCKS, 8, 27)}))
    each: list[LoadOrder | StoreOrder] = [*orders.loads, *orders.stores]
    assert [order.spec for order in each] == [rig.finder.answers[0].spec] * 2
    assert each[0].spec.salt not in (b"", b"x")


def test_after_a_reset_nothing_from_before_is_found(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig(4)
    rig.side.matched(request("a"), 0)
    rig.side.reset()
    assert "caches were reset" in caplog.text
    rig.side.matched(request("b"), 0)
    rig.side.reset()
    rig.side.matched(request("c"), 0)
    assert len({answer.spec.namespace for answer in rig.finder.answers}) == 3


def test_nothing_is_kept_of_requests_that_are_over() -> None:
    rig = Rig(2)
    for number in range(50):
        name = f"r{number}"
        lora = object() if number % 2 else None
        rig.side.matched(request(name, lora_request=lora), 0)
        rig.side.finished(name)
        rig.side.orders(step(finished={name}))
    assert not rig.side._prompts
    assert not rig.side._alone
    assert rig.side.orders(step(running={"r1": ([1], 8, 1)})).stores == []


def test_a_request_of_a_name_that_another_had_is_stored() -> None:
    """vLLM tells of the end of the other with the step after it, where the new one may begin."""
    rig, a = Rig(0), request("a")
    rig.side.matched(a, 0)
    rig.side.finished("a")
    rig.side.matched(a, 0)
    rig.side.allocated(a, BLOCKS, 0)
    orders = rig.side.orders(step(new={"a": (BLOCKS, 0, 35)}, finished={"a"}))
    assert len(orders.stores) == 1
    rig.side.lost({BLOCKS[0]})
    assert rig.side._prompts["a"].failed


def test_blocks_of_a_preempted_request_are_another_ones() -> None:
    rig, a, b = Rig(3), request("a"), request("b")
    rig.side.matched(a, 0)
    rig.side.allocated(a, BLOCKS, 24)
    rig.side.orders(step(new={"a": (BLOCKS, 24, 4)}))
    rig.side.orders(step(preempted={"a"}))
    rig.side.matched(b, 0)
    rig.side.allocated(b, BLOCKS, 24)
    rig.side.lost({BLOCKS[2]})
    assert rig.side.matched(b, 0) == 0
    assert rig.side.matched(a, 0) == 24


def test_a_loop_that_ends_under_a_match_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody will answer then: who asks again would ask for ever."""
    rig, a = Rig(), request()
    assert rig.side.matched(a, 0) is None
    rig.finder.answers[0].ended.set()
    assert rig.side.matched(a, 0) == 0
    assert rig.outcomes() == {"failed": 1}
    assert caplog.messages[0].startswith("match failed")


# A set that is published while the engine runs

SET = small_dictionary(layers=2, head_dim=8, kv_heads=2)
BEFORE, NOW = engine_spec(), engine_spec("lexico", dictionary=SET.digest)


def test_a_prompt_from_before_the_set_is_loaded_lossless_and_stored_as_new_pages_are() -> None:
    rig, a = Rig(), request()
    rig.side.new_request(a)
    rig.finder.codec = NOW.codec
    rig.finder.answers[0].come(Found(NOW, 1, BEFORE, 4))
    assert rig.side.matched(a, 0) == 32  # as lossless pages allow: not the newest 16 less
    rig.side.allocated(a, BLOCKS[:8], 32)
    orders = pickle.loads(pickle.dumps(rig.side.orders(step(new={"a": (BLOCKS, 32, 3)}))))  # noqa: S301 - vLLM sends it so
    assert [order.spec for order in orders.loads] == [BEFORE]
    assert [(order.spec, order.first_page) for order in orders.stores] == [(NOW, 1)]


def test_what_a_load_from_before_lost_is_not_missing_among_the_pages_of_now() -> None:
    rig, a = Rig(), request()
    rig.side.new_request(a)
    rig.finder.codec = NOW.codec
    rig.finder.answers[0].come(Found(NOW, 3, BEFORE, 4))
    rig.side.matched(a, 0)
    rig.side.allocated(a, BLOCKS[:8], 32)
    rig.side.lost({BLOCKS[0]})
    (order,) = stores(rig, [step(new={"a": (BLOCKS, 0, 35)})])[0]
    assert (order.spec, order.first_page) == (NOW, 3)


def test_a_prompt_that_was_asked_about_before_the_set_came_is_not_stored_lossless() -> None:
    """By its end blocks of its may be of another prompt's lossy load."""
    rig, a = Rig(1), request()
    rig.side.matched(a, 0)
    rig.finder.codec = NOW.codec
    assert stores(rig, [step(new={"a": (BLOCKS, 8, 27)})]) == [[]]
