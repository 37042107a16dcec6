"""vLLM's scheduler as far as a connector meets it, over one rank or several, on blocks whose
content is checked.

What the engine believes is held against what is in its blocks. Nothing runs by itself: answers,
pages of loads, stores, and steps of ranks that go ahead come when a test lets them.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any, Final, cast

from lexico_client.engines._counts import Counts
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._scheduler import SchedulerSide
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import Metrics
from tests.support.sliced_pages import split
from tests.support.vllm_blocks import BLOCK_TOKENS, Blocks, RankMemory, Request, Run, Step
from tests.support.vllm_store import Store
from tests.support.vllm_truth import Finding

STAGED_PAGES: Final = 6


class Engine(Blocks):
    """One engine: `step` is one of vLLM's, the other methods are what comes from outside."""

    def __init__(
        self,
        store: Store,
        spec: CacheSpec,
        way: tuple[int, int] = (1, 1),
        *,
        blocks: int = 20,
        budget: int = 12,
        ahead: bool = False,
        draw: random.Random,
    ) -> None:
        """
        Args:
            store: shared with other engines.
            spec: of the model's pages.
            way: ranks that split heads, and that split layers.
            blocks, budget: of the engine, and tokens that a step computes at most.
            ahead: whether a step is scheduled before it is known what came of the one before it.
            draw: which rank goes first.
        """
        super().__init__(blocks)
        self.store, self.spec, self.budget, self.draw = store, spec, budget, draw
        self.finding = Finding(store.stored, spec.codec)
        self.metrics = Metrics()
        counts = Counts(LOG, self.metrics)
        self.side = SchedulerSide(
            spec, self.finding, counts, block_tokens=BLOCK_TOKENS, recent_tokens=1
        )
        g, (tensor, pipeline) = spec.geometry, way
        self.ranks = [
            RankMemory(
                store,
                spec,
                way,
                number,
                held,
                blocks,
                self.metrics,
                staging_bytes=STAGED_PAGES * spec.page_bytes // (tensor * pipeline),
                concurrent_loads=2,
                concurrent_stores=1,
            )
            for number, held in enumerate(split(g.layers, g.kv_heads, tensor, pipeline))
        ]
        self.requests: dict[str, Request] = {}
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.finished: set[str] = set()
        self.preempted: set[str] = set()
        self.seen: set[str] = set()
        """What happened."""
        self.pending: deque[Step] = deque()
        """Steps of which it is not known what came of them."""
        self.ahead = ahead
        self._awaited = Counter[str]()
        """Request → ranks of which it is not known whether its load has ended there."""
        self._failed_at: dict[str, set[int]] = {}

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
        self.weights = object()
        self.side.reset()

    @property
    def quiet(self) -> bool:
        """Whether no request holds blocks though it does not run."""
        states = {each.state for each in self.requests.values()}
        held = any(each.holds for each in self.requests.values())
        return not held and not states & {"remote", "aborted"}

    # A step

    def step(self) -> None:
        """Schedules, computes, and takes in what came of it: of the step before, where the engine
        schedules ahead."""
        step = self._scheduled()
        self.pending.append(step)
        for rank in self.ranks:
            rank.queue.append(step)
        while len(self.pending) > self.ahead:
            self._complete()

    def go_ahead(self) -> None:
        """A rank computes what it is to compute, before others do."""
        behind = [rank for rank in self.ranks if rank.queue]
        if behind:
            self.draw.choice(behind).run()

    def _complete(self) -> None:
        """Takes in what came of the first step that is pending."""
        step = self.pending.popleft()
        while behind := [rank for rank in self.ranks if step in rank.queue]:
            self.draw.choice(behind).run()
        self._take_in(step)

    def _scheduled(self) -> Step:
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
        for order in orders.stores:
            self.store.models.setdefault(order.spec.namespace, self.weights)
            self.store.orders[id(order.token_ids)] = self.store.truth.computation()
        runs = list[tuple[Request, Run]]()
        for each, _ in [*new, *cached]:
            count = tokens[each.request.request_id]
            model = (self.weights, each.model)
            run = Run(model, tuple(each.ids), tuple(each.blocks), each.computed, count)
            runs.append((each, run))
            each.computed += count
        fresh, self.fresh = self.fresh, []
        return Step(orders, runs, fresh, told.finished_req_ids, self.store.truth.computation())

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

    def _take_in(self, step: Step) -> None:
        """As vLLM's `KVOutputAggregator` and `update_from_output`: a block that one rank lost is
        lost, and a load has ended once it has on every rank."""
        arrived, bad = list[str](), set[int]()
        for ended, lost in step.told:
            bad |= lost
            for name in ended:
                self._awaited[name] += 1
                if self._awaited[name] == len(self.ranks):
                    del self._awaited[name]
                    arrived.append(name)
        if self._awaited:
            self.seen.add("ended on some ranks")
        if len({frozenset(lost) for _, lost in step.told}) > 1:
            self.seen.add("failed on some ranks")
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
        for request, run in step.runs:
            if request.state == "running" and run.computed + run.count <= request.computed:
                self._keep(request, run.computed + run.count)
                if run.computed + run.count == len(request.ids):
                    self._sampled(request)

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

    def check(self) -> None:
        """Every block that the engine believes computed holds the right keys and values, on every
        rank, and what went to the store was right."""
        assert not self.store.wrong, self.store.wrong
        settled = not self.pending
        names, blocks = list[tuple[Any, Any]](), list(self.cached.values())
        for name in self.cached:
            (lora, _), ids = cast("Any", name)
            names.append(((self.weights, lora), ids))
        for rank in self.ranks:
            rank.check_cached(blocks, names)
            for request in self.requests.values():
                if request.state in ("waiting", "running") and settled:
                    model = (self.weights, request.model)
                    rank.check(Run(model, request.ids, request.blocks, request.computed, 0))

    def let_come(self) -> None:
        """Answers all questions, and lets all loads and stores end."""
        while self.finding.open:
            self.finding.answer(0)
        self.store.let_come()

    @property
    def storing(self) -> bool:
        """Whether pages are on their way to the store."""
        return any(rank.worker.stores_under_way for rank in self.ranks)

    def settle(self) -> None:
        """Lets everything come, until every request is over."""
        for _ in range(2000):
            self.let_come()
            if not self.requests and not self.storing and not self.pending:
                break
            self.step()
            self.check()
            if not self.requests:
                self.ahead = False
                self.store.expire()
        left = {name: each.state for name, each in self.requests.items()}
        assert not left, f"requests that never end: {left}"
        self.step()
