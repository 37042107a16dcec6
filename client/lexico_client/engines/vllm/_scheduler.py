"""The scheduler's side: what of a prompt is promised, and what is to be loaded and stored.

Nothing here holds the engine up. A match runs on a loop of its own, and until it has answered the
engine is told to ask again; an engine that has nothing else to do waits for it a moment. A request
is known from the first question about it to its end.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from lexico_client.engines._counts import Counts
from lexico_client.engines.vllm._coded import Found
from lexico_client.engines.vllm._log import LOG
from lexico_client.engines.vllm._orders import REST_S, LoadOrder, Orders, StoreOrder
from lexico_codec.codecs.codec import Codec
from lexico_codec.spec import CacheSpec, salt_bytes
from lexico_proto.errors import LexicoError
from lexico_proto.limits import DIGEST_BYTES

_RANDOM_BYTES: Final = 16


class Answer(Protocol):
    """A match under way."""

    @property
    def ended(self) -> threading.Event:
        """Set when there is a result, or will be none."""

    def result(self) -> Found:
        """Of one that has ended.

        Raises:
            LexicoError: the service could not answer, or its loop has ended.
        """


class Finding(Protocol):
    """Asks the service; `Finder` is one."""

    @property
    def codec(self) -> Codec:
        """What new pages are coded with now."""

    def begin(self, base: CacheSpec, token_ids: npt.NDArray[np.uint32]) -> Answer:
        """Begins to ask on another thread, and returns at once."""


class Step(Protocol):
    """What an engine is about to compute."""

    scheduled_new_reqs: Sequence[Any]
    scheduled_cached_reqs: Any
    num_scheduled_tokens: dict[str, int]
    preempted_req_ids: set[str] | None
    has_sync_kv_loads: bool


@dataclass
class _Prompt:
    """A request as far as it is known here."""

    request: Any
    """The engine's."""
    base: CacheSpec
    """What its pages belong to without a set."""
    token_ids: npt.NDArray[np.uint32]
    """All of them, when it was last asked about."""
    prompt_pages: int
    """Full pages of what is computed as its prompt: those that are stored."""
    answer: Answer | None = None
    """The last match; None for a prompt without a full page."""
    learnt: bool = False
    """Whether its answer was looked at."""
    used: bool = False
    """Whether the engine went on with it: a later question, after a preemption, is another one."""
    found: Found | None = None
    """What the service is known to have; None where it did not say, or not yet."""
    promised: int = 0
    """Token behind the last one that was promised."""
    counted: bool = False
    """Whether its outcome is counted, for one round of questions."""
    failed: bool = False
    """Whether a load of its failed: nothing is promised to it any more."""
    offered: bool = False
    """Whether its pages were given to be stored, or need not be."""
    outputs: int = 0
    """Tokens that it had generated when it was last given blocks."""
    blocks: list[int] = field(default_factory=list)


class SchedulerSide:
    """Answers one engine's scheduler."""

    def __init__(
        self,
        spec: CacheSpec,
        finding: Finding,
        counts: Counts,
        *,
        block_tokens: int,
        recent_tokens: int,
        min_load_tokens: int = 1,
        loads: bool = True,
        stores: bool = True,
    ) -> None:
        """
        Args:
            spec: what pages belong to without a set, but for the cache salts of requests.
            finding: asks the service.
            counts: of this side.
            block_tokens: the engine's block size; promises end with a block.
            recent_tokens: as `CacheSpec.reloadable_tokens` has it.
            min_load_tokens: fewest tokens that are worth a load.
            loads, stores: whether this engine does.
        """
        self._spec = spec
        self._finding = finding
        self._counts = counts
        self._block = block_tokens
        self._recent = recent_tokens
        self._least = min_load_tokens
        self._loads = loads
        self._stores = stores
        self._reset = b""
        self._specs: dict[bytes, CacheSpec] = {}
        self._prompts: dict[str, _Prompt] = {}
        self._alone: set[str] = set()
        self._orders = Orders()
        self._idle = False
        self._within = False
        """Whether another connector loads within steps: whether all came that a step rested on is
        told with its output."""

    def new_request(self, request: Any) -> None:
        """Begins to ask about a request, so that its answer is there when it is to run."""
        self._asked(request)

    def matched(self, request: Any, computed: int) -> int | None:
        """Tokens that can be loaded behind those that the engine has; None while that is not known.

        Args:
            request: of the engine.
            computed: its leading tokens that the engine has.
        """
        prompt = self._asked(request)
        if prompt is None:
            return 0
        if prompt.answer is not None and not prompt.learnt:
            if not prompt.answer.ended.is_set():
                return None
            self._learn(prompt, prompt.answer)
        return self._promise(prompt, computed)

    def allocated(self, request: Any, blocks: Sequence[int], external: int) -> None:
        """The engine has blocks for a request; where it was promised tokens, they are ordered.

        Args:
            request: of the engine.
            blocks: ids of all of its blocks, from position 0 on.
            external: tokens that are to come; 0 for none.
        """
        prompt = self._prompts.get(request.request_id)
        if prompt is None:
            return
        prompt.used = True
        prompt.blocks = list(blocks)
        prompt.outputs = request.num_output_tokens
        if not external:
            return
        found = prompt.found or Found.nothing(prompt.base)
        size, stop = self._spec.page_tokens, prompt.promised
        ids = prompt.token_ids[: -(-stop // size) * size]
        self._orders.loads.append(
            LoadOrder(request.request_id, found.source, ids, tuple(blocks), stop - external, stop)
        )

    def orders(self, step: Step) -> Orders:
        """What the workers are to do with this step: begin the loads, and store the prompts that
        are computed at its end."""
        self._within |= step.has_sync_kv_loads
        for name in step.preempted_req_ids or ():
            if (prompt := self._prompts.get(name)) is not None:
                prompt.blocks = []  # they are others' from now on
        for each in step.scheduled_new_reqs:
            if (prompt := self._prompts.get(each.req_id)) is not None:
                prompt.blocks = list(each.block_ids[0])
                self._offer(each.req_id, prompt, each.num_computed_tokens, step)
        cached = step.scheduled_cached_reqs
        for place, name in enumerate(cached.req_ids):
            if (prompt := self._prompts.get(name)) is None:
                continue
            more = cached.new_block_ids[place]
            if name in cached.resumed_req_ids:
                prompt.blocks = []
            if more:
                prompt.blocks += more[0]
            self._offer(name, prompt, cached.num_computed_tokens[place], step)
        orders, self._orders = self._orders, Orders()
        idle, before = not step.num_scheduled_tokens, self._idle
        # The step before may run still: an engine goes on before it has what a device computes.
        orders.idle, self._idle = idle and before, idle
        if orders.idle and not orders.loads:
            self._rest()
        return orders

    def lost(self, blocks: Iterable[int]) -> None:
        """Blocks that were not loaded: their requests compute them, and are promised no more."""
        bad = set(blocks)
        for prompt in self._prompts.values():
            places = [place for place, block in enumerate(prompt.blocks) if block in bad]
            if places:
                prompt.failed = True
                # Of another's load: a step may have computed on from what was not there.
                prompt.offered |= self._within
                found = prompt.found
                if found is not None and found.source is found.spec:
                    whole = places[0] * self._block // self._spec.page_tokens
                    prompt.found = found._replace(pages=min(found.pages, whole))

    def finished(self, request_id: str) -> None:
        """A request is over, however it ended. A load of its that is under way goes on."""
        self._prompts.pop(request_id, None)
        self._alone.discard(request_id)

    def reset(self) -> None:
        """Finds nothing any more that was stored before: what an engine asks for whose weights were
        changed. From now on pages have a salt that nobody else has."""
        self._reset = secrets.token_bytes(_RANDOM_BYTES)
        self._specs.clear()
        self._prompts.clear()
        LOG.warning("nothing is found any more that was stored before: the caches were reset")

    def _rest(self) -> None:
        """Waits a moment for an answer, where one is awaited."""
        for prompt in self._prompts.values():
            answer = prompt.answer
            if answer is not None and not (prompt.learnt or prompt.used or answer.ended.is_set()):
                answer.ended.wait(REST_S)
                return

    def _asked(self, request: Any) -> _Prompt | None:
        """What is known of a request, a match about it at least begun; None for one that is left
        alone."""
        name = request.request_id
        prompt = self._prompts.get(name)
        if prompt is None:
            if name in self._alone:
                return None
            if (why := left_alone(request)) is not None:
                self._alone.add(name)
                self._counts.request(why)
                return None
            ids = _ids(request)
            salt = _salt(self._spec.salt, request.cache_salt, self._reset)
            prompt = _Prompt(request, self._base(salt), ids, len(ids) // self._spec.page_tokens)
            self._prompts[name] = prompt
        elif left_alone(request) is not None:  # what it got since is more than token ids
            prompt.failed = True
            return prompt
        elif (len(prompt.token_ids) == request.num_tokens and not prompt.used) or prompt.failed:
            return prompt
        else:
            prompt.token_ids = _ids(request)
            prompt.learnt = prompt.used = prompt.counted = False
        self._ask(prompt)
        return prompt

    def _ask(self, prompt: _Prompt) -> None:
        """Begins a match."""
        prompt.answer = prompt.found = None
        if len(prompt.token_ids) < self._spec.page_tokens:
            prompt.found = Found.nothing(prompt.base)
            return
        try:
            prompt.answer = self._finding.begin(prompt.base, prompt.token_ids)
        except LexicoError as error:  # there is no loop any more
            self._counts.warn("match", error)

    def _base(self, salt: bytes) -> CacheSpec:
        if salt == self._spec.salt:
            return self._spec
        if len(self._specs) > 1024:  # as many callers as there are salts
            self._specs.clear()
        if salt not in self._specs:
            self._specs[salt] = replace(self._spec, salt=salt)
        return self._specs[salt]

    def _learn(self, prompt: _Prompt, answer: Answer) -> None:
        prompt.learnt = True
        try:
            prompt.found = answer.result()
        except LexicoError as error:
            self._counts.warn("match", error)

    def _promise(self, prompt: _Prompt, computed: int) -> int:
        tokens, found = len(prompt.token_ids), prompt.found or Found.nothing(prompt.base)
        usable = found.source.reloadable_tokens(tokens, self._recent)
        there = min(usable, found.there * self._spec.page_tokens) // self._block * self._block
        external = there - computed
        promised = self._loads and not prompt.failed and external >= self._least
        prompt.promised = there if promised else 0
        if not prompt.counted:
            self._count(prompt, tokens, external if promised else 0, there > 0)
        return external if promised else 0

    def _count(self, prompt: _Prompt, tokens: int, promised: int, found: bool) -> None:
        prompt.counted = True
        self._counts.tokens("asked", tokens)
        self._counts.tokens("promised", promised)
        if promised:
            outcome = "hit"
        elif prompt.failed:
            outcome = "unusable"
        elif prompt.found is None:
            outcome = "failed"
        else:
            outcome = "local" if found else "miss"
        self._counts.request(outcome)

    def _offer(self, name: str, prompt: _Prompt, computed: int, step: Step) -> None:
        size, pages = self._spec.page_tokens, prompt.prompt_pages
        if prompt.offered or computed + step.num_scheduled_tokens[name] < pages * size:
            return
        if self._within and prompt.request.num_output_tokens <= prompt.outputs:
            return
        prompt.offered = True
        found = prompt.found
        # Of a service that did not answer nothing is known, and a copy would be made in vain.
        if not self._stores or found is None or found.pages >= pages:
            return
        # A set came since it was asked about. Some of its blocks may be of a lossy load by now: as
        # lossless pages they would be wrong.
        if found.spec.codec != self._finding.codec:
            return
        needed = -(-pages * size // self._block)
        self._orders.stores.append(
            StoreOrder(
                name,
                found.spec,
                prompt.token_ids[: pages * size],
                tuple(prompt.blocks[:needed]),
                found.pages,
                secrets.token_bytes(_RANDOM_BYTES),
            )
        )


def left_alone(request: Any) -> str | None:
    """Why a request's caches are neither loaded nor stored: what reaches the model beside token
    ids is not known exactly, or all of its prompt must be computed; None for one that is shared.
    """
    if request.lora_request is not None:
        return "lora"
    if request.mm_features:
        return "multimodal"
    if request.prompt_token_ids is None or getattr(request, "prompt_embeds", None) is not None:
        return "embeddings"
    if request.pooling_params is not None:
        return "pooling"
    return "logprobs" if request.skip_reading_prefix_cache else None


def _ids(request: Any) -> npt.NDArray[np.uint32]:
    return np.asarray(request.all_token_ids[: request.num_tokens], dtype="<u4")


def _salt(configured: bytes | str, of_request: str | None, reset: bytes) -> bytes:
    """The salt of a request's pages: the configured one alone, or a digest of all that there is."""
    own = salt_bytes(configured)
    if not of_request and not reset:
        return own
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES, person=b"lexico-vllm-salt")
    for part in (own, (of_request or "").encode(errors="surrogatepass"), reset):
        digest.update(struct.pack("<Q", len(part)) + part)
    return digest.digest()
