"""What vLLM gives a connector, as plain objects: requests, steps of its scheduler, and answers."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from lexico_client.engines.vllm._coded import Found
from lexico_codec.codecs.codec import Codec
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto.errors import InternalError, LexicoError

PAGE_TOKENS, BLOCK_TOKENS = 8, 4
GEOMETRY = Geometry(layers=2, kv_heads=2, head_dim=8, dtype="float32")


def engine_spec(codec: str = "lossless", **changes: Any) -> CacheSpec:
    """A spec of a tiny model with pages of two blocks, each of two groups."""
    fields = {"weights": bytes(32), "geometry": GEOMETRY, "page_tokens": PAGE_TOKENS}
    return make_spec(**{**fields, "codec": codec, "group_layers": 1, **changes})


def request(name: str = "a", tokens: int = 35, **changes: Any) -> SimpleNamespace:
    """A request of that many prompt tokens, as `vllm.v1.request.Request` shows it."""
    ids = list(range(100, 100 + tokens))
    fields: dict[str, Any] = {
        "request_id": name,
        "prompt_token_ids": ids,
        "all_token_ids": ids,
        "num_tokens": tokens,
        "num_output_tokens": 0,
        "cache_salt": None,
        "lora_request": None,
        "mm_features": [],
        "prompt_embeds": None,
        "pooling_params": None,
        "skip_reading_prefix_cache": False,
    }
    return SimpleNamespace(**{**fields, **changes})


def grown(old: SimpleNamespace, more: int) -> SimpleNamespace:
    """The same request once it has generated tokens."""
    ids = old.all_token_ids + list(range(900, 900 + more))
    old.all_token_ids, old.num_tokens = ids, len(ids)
    old.num_output_tokens += more
    return old


@dataclass
class FakeAnswer:
    """An answer that a test lets come."""

    spec: CacheSpec
    token_ids: npt.NDArray[np.uint32]
    finished: bool = False
    found: Found | None = None
    error: LexicoError | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def end(self, pages: int = 0, error: LexicoError | None = None) -> None:
        """So many pages are stored, of the prompt's spec."""
        self.come(Found(self.spec, pages, self.spec, pages), error)

    def come(self, found: Found, error: LexicoError | None = None) -> None:
        self.finished, self.found, self.error = True, found, error
        self.ended.set()

    def result(self) -> Found:
        assert self.ended.is_set(), "the scheduler would have waited"
        if not self.finished:
            raise InternalError("the loop ended under the call")
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found


@dataclass
class FakeFinder:
    """Every question that was asked."""

    codec: Codec
    answers: list[FakeAnswer] = field(default_factory=list)
    at_once: int | None = None
    """Pages that are found without any waiting."""

    def begin(self, base: CacheSpec, token_ids: npt.NDArray[np.uint32]) -> FakeAnswer:
        answer = FakeAnswer(base, token_ids)
        if self.at_once is not None:
            answer.end(self.at_once)
        self.answers.append(answer)
        return answer


def step(
    *,
    new: dict[str, tuple[list[int], int, int]] | None = None,
    running: dict[str, tuple[list[int], int, int]] | None = None,
    resumed: dict[str, tuple[list[int], int, int]] | None = None,
    finished: set[str] | None = None,
    preempted: set[str] | None = None,
    within: bool = False,
) -> SimpleNamespace:
    """A `SchedulerOutput`: name → (blocks, computed before, scheduled now). Blocks of new and
    resumed requests are all of theirs, of running ones those that were added; `within` is whether
    another connector loads for some of them before they are computed."""
    new, running, resumed = new or {}, running or {}, resumed or {}
    cached = {**running, **resumed}
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, block_ids=(blocks,), num_computed_tokens=computed)
            for name, (blocks, computed, _) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            resumed_req_ids=set(resumed),
            new_block_ids=[(blocks,) if blocks else None for blocks, _, _ in cached.values()],
            num_computed_tokens=[computed for _, computed, _ in cached.values()],
        ),
        num_scheduled_tokens={name: each[2] for name, each in {**new, **cached}.items()},
        finished_req_ids=finished or set(),
        preempted_req_ids=preempted,
        has_sync_kv_loads=within,
    )
