"""vLLM's scheduler and worker as far as a connector meets them, on blocks whose content is checked.

What the engine believes is held against what is in its blocks. Nothing runs by itself: answers,
pages of loads, and stores come when a test lets them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Final, cast

import torch
from torch import Tensor

from lexico_client.engines._counts import Counts
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._orders import Orders
from lexico_client.engines.vllm._scheduler import SchedulerSide
from lexico_client.engines.vllm._worker import WorkerSide
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import Metrics
from tests.support.vllm_blocks import BLOCK_TOKENS, Blocks, Request
from tests.support.vllm_fakes import engine_spec
from tests.support.vllm_truth import Client, Finding, Stepped, Truth

STAGED_PAGES: Final = 6


class Engine(Blocks):
    """One engine: `step` is one of vLLM's, the other methods are what comes from outside."""

    def __init__(
        self, client: Client, truth: Truth, *, page_tokens: int, blocks: int = 20, budget: int = 12
    ) -> None:
        spec = engine_spec(page_tokens=page_tokens)
        super().__init__(truth, spec, blocks)
        self.budget = budget
        self._of: dict[bytes, int] = {}
        """Namespace → the weights that its first pages were computed with."""
        client.check = self._check_stored
        self.service = Stepped(client)
        self.client = client
        self.finding = Finding(client, spec.codec)
        self.metrics = Metrics()
        counts = Counts(LOG, self.metrics)
        self.side = SchedulerSide(
            spec, self.finding, counts, block_tokens=BLOCK_TOKENS, recent_tokens=1
        )
        self.worker = WorkerSide(
            spec,
            self.service,
            counts,
            load_seconds=3600,
            offload_seconds=3600,
            drain_seconds=1,
            staging_bytes=STAGED_PAGES * spec.page_bytes,
            concurrent_loads=2,
            concurrent_stores=1,
        )
        self.worker.register(self.cache)
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.finished: set[str] = set()
        self.preempted: set[str] = set()
        self.seen: set[str] = set()
        """What happened."""
        self.last: Callable[[], None] | None = None
        """What the step before gave, in an engine that schedules ahead of it."""

    # From outside

    def add(self, request: SimpleNamespace, to_generate: int) -> None:
        made = Request(request, to_generate)
        self.requests[request.request_id] = made
        self.waiting.append(made)
        self.side.new_request(request)

    def abort(self, name: str) -> None:
        request = self.requests[name]
        self.waiting = [each for each in self.waiting if each is not request]
        self.running = [each for each in self.running if each is not request]
        loading = request.state == "remote" and not request.arrived
        request.state = "aborted"
        self.seen |= {"aborted under a load"} if loading else set()
        self._over(request, keep=loading)

    def reset(self) -> None:
        """The weights are changed in place, with all of vLLM's caches; not while one is loaded."""
        while self.running:
            self._preempt()
        self.cached.clear()
        self.weights += 1
        self.side.reset()

    @property
    def quiet(self) -> bool:
        """Whether no request holds blocks though it does not run."""
        states = {each.state for each in self.requests.values()}
        held = any(each.holds for each in self.requests.values())
        return not held and not states & {"remote", "aborted"}

    # A step

    def step(self, *, ahead: bool = False) -> None:
        """Schedules, computes, and takes in what came of it: of the step before, where the engine
        schedules ahead."""
        new: list[tuple[Request, list[int]]] = []
        cached: list[tuple[Request, list[int]]] = []
        resumed, tokens = set[str](), dict[str, int]()
        budget, ran = self.budget, len(self.running)
        for request in list(self.running):
            count = min(budget, len(request.ids) - request.computed)
            if request not in self.running or count < 1:
                continue
            more = self._grow(request, count)
            if more is None:
                continue
            tokens[request.request.request_id] = count
            cached.append((request, more))
            budget -= count
        cached = [each for each in cached if each[0] in self.running]
        tokens = {each.request.request_id: tokens[each.request.request_id] for each, _ in cached}
        preempted = len(self.running) < ran
        for request in sorted(
            self.waiting, key=lambda each: not (each.holds or each.state == "remote")
        ):
            if preempted or budget < 1 or not self._admit(request):
                continue
            count = min(budget, len(request.ids) - request.computed)
            name = request.request.request_id
            if self._grow(request, count, preempting=False) is None:
                if not (request.holds and self.running):
                    self._give_back(request)
                continue
            self.side.allocated(request.request, request.blocks, 0)
            self.waiting.remove(request)
            self.running.append(request)
            (cached if request.preempted else new).append((request, list(request.blocks)))
            if request.preempted:
                resumed.add(name)
            request.state, request.holds = "running", False
            tokens[name] = count
            budget -= count
        told = SimpleNamespace(
            scheduled_new_reqs=[
                SimpleNamespace(
                    req_id=each.request.request_id,
                    block_ids=(blocks,),
                    num_computed_tokens=each.computed,
                )
                for each, blocks in new
            ],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=[each.request.request_id for each, _ in cached],
                resumed_req_ids=resumed,
                new_block_ids=[(blocks,) if blocks else None for _, blocks in cached],
                num_computed_tokens=[each.computed for each, _ in cached],
            ),
            num_scheduled_tokens=tokens,
            finished_req_ids=self.finished,
            preempted_req_ids=self.preempted,
            has_sync_kv_loads=False,
        )
        self.finished, self.preempted = set(), set()
        orders = self.side.orders(told)
        scheduled = [
            (each, each.computed, tokens[each.request.request_id]) for each, _ in [*new, *cached]
        ]
        for each, _, count in scheduled:
            each.computed += count
        done = self._computed(orders, scheduled, told.finished_req_ids)
        before, self.last = self.last, done
        if before is not None:
            before()
        if not ahead:
            done()
            self.last = None

    def _admit(self, request: Request) -> bool:
        """Whether a request may be given blocks to compute in."""
        if request.state == "remote":
            if not request.arrived:
                return False
            self._loaded(request)
        if request.computed:
            return True
        here = self._local(request)
        external = self.side.matched(request.request, len(here) * BLOCK_TOKENS)
        if external is None:
            return False
        request.blocks = here
        for block in here:
            self._use(block)
        request.computed = len(here) * BLOCK_TOKENS
        if external:
            if not self._fits(request) or self._grow(request, external, preempting=False) is None:
                self._give_back(request)
                return False
            self.side.allocated(request.request, request.blocks, external)
            self.seen |= {"hit again"} if request.preempted else set()
            request.computed += external
            request.state, request.arrived = "remote", False
            return False
        return True

    def _loaded(self, request: Request) -> None:
        """As `_update_waiting_for_remote_kv` of vLLM's."""
        if request.failed:
            self.seen.add("failed in part" if request.computed else "failed")
        if request.failed and not request.computed:
            self._give_back(request)
        else:
            self._keep(request, request.computed)
            request.holds = True
        request.failed = request.arrived = False
        request.state = "waiting"

    def _computed(
        self, orders: Orders, scheduled: list[tuple[Request, int, int]], finished: set[str]
    ) -> Callable[[], None]:
        """The worker's part, and what is to be taken in of it."""
        for request, computed, count in scheduled:
            self._check(request, computed)
            self._write(request, computed, count)
        for order in orders.stores:
            self._of.setdefault(order.spec.namespace, self.weights)
        self.worker.begin(orders)
        self.worker.stage(orders)
        self.worker.over(finished)
        self.service.run()
        arrived, bad = self.worker.arrived(), self.worker.bad_blocks()

        def take() -> None:
            self._invalid(bad)
            if bad:
                self.side.lost(bad)
            for name in arrived:
                request = self.requests[name]
                if request.state == "aborted":
                    self._release(request)
                    del self.requests[name]
                else:
                    assert request.state == "remote", "a load ended that nobody waits for"
                    request.arrived = True
            for request, computed, count in scheduled:
                if request.state == "running" and computed + count <= request.computed:
                    self._keep(request, computed + count)
                    if computed + count == len(request.ids):
                        self._sampled(request)

        return take

    def _sampled(self, request: Request) -> None:
        if request.generated == request.to_generate:
            self.running.remove(request)
            request.state = "over"
            self._over(request)
            return
        request.generated += 1
        token = 900 + request.generated
        request.request.all_token_ids = [*request.ids, token]
        request.request.num_tokens = len(request.ids)
        request.request.num_output_tokens = request.generated

    def _invalid(self, bad: set[int]) -> None:
        for request in self.waiting:
            if request.state != "remote":
                assert not (bad & set(request.blocks)), "a load failed of blocks that are in use"
                continue
            for place, block in enumerate(request.blocks):
                if block in bad and place * BLOCK_TOKENS < request.computed:
                    request.computed, request.failed = place * BLOCK_TOKENS, True
        for request in self.running:
            assert not (bad & set(request.blocks)), "a load failed of blocks that are in use"

    # Blocks

    def _grow(self, request: Request, count: int, *, preempting: bool = True) -> list[int] | None:
        """Blocks for so many tokens more; None where there is no room."""
        needed = -(-(request.computed + count) // BLOCK_TOKENS) - len(request.blocks)
        while needed > len(self.free):
            if not preempting:
                return None
            if self._preempt() is request:
                return None
        return self._take(request, needed)

    def _fits(self, request: Request) -> bool:
        """Whether there is room for all that hold blocks or run, to their ends, and this one."""
        alive = [each for each in self.requests.values() if each.blocks and each is not request]
        ends = [
            -(-(len(each.ids) + each.to_generate) // BLOCK_TOKENS) for each in (*alive, request)
        ]
        return sum(ends) <= len(self.users)

    def _preempt(self) -> Request:
        request = self.running.pop()
        self._give_back(request)
        request.state, request.preempted = "waiting", True
        self.preempted.add(request.request.request_id)
        self.seen.add("preempted")
        self.waiting.insert(0, request)
        return request

    def _give_back(self, request: Request) -> None:
        self._release(request)
        request.computed, request.holds = 0, False

    def _over(self, request: Request, *, keep: bool = False) -> None:
        name = request.request.request_id
        self.side.finished(name)
        self.finished.add(name)
        if not keep:
            self._release(request)
            del self.requests[name]

    # What must hold

    def _check_stored(self, spec: CacheSpec, ids: Sequence[int], page: Tensor) -> bool:
        weights, size = self._of[spec.namespace], spec.page_tokens
        wanted = self.truth.of((weights, None), ids, len(ids) - size, len(ids))
        return torch.equal(page, wanted)

    def share(self, ids: list[int]) -> None:
        """Another engine of the first weights has stored a prompt."""
        size = self.spec.page_tokens
        for page in range(len(ids) // size):
            values = self.truth.of((0, None), ids, page * size, (page + 1) * size)
            self.client.put(self.spec, ids, page, values)

    def check(self) -> None:
        """Every block that the engine believes computed holds the right keys and values, and what
        went to the store was right."""
        assert not self.client.wrong, f"pages that are wrong were stored: {self.client.wrong}"
        for request in self.requests.values():
            if request.state in ("waiting", "running") and self.last is None:
                self._check(request, request.computed)
        for name, block in self.cached.items():
            (lora, _), ids = cast("Any", name)
            first = len(ids) - BLOCK_TOKENS
            here = self.cache.copied([block], 0, BLOCK_TOKENS)
            wanted = self.truth.of((self.weights, lora), ids, first, len(ids))
            assert torch.equal(here, wanted), f"block {block}: found by others, and wrong"

    def let_come(self) -> None:
        """Answers all questions, and lets all loads and stores end."""
        while self.finding.open:
            self.finding.answer(0)
        while self.client.gates:
            self.client.gates.pop().passed.set()
            self.service.run()

    def settle(self) -> None:
        """Lets everything come, until every request is over."""
        for _ in range(2000):
            self.let_come()
            if not self.requests and not self.worker.stores_under_way:
                break
            self.step()
            self.check()
        left = {name: each.state for name, each in self.requests.items()}
        assert not left, f"requests that never end: {left}"
        self.step()

    def close(self) -> None:
        for task in asyncio.all_tasks(self.service.loop):
            task.cancel()
        self.service.run()
        self.service.loop.close()
