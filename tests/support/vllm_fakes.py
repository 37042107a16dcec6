"""What vLLM gives a connector, as plain objects: requests, steps of its scheduler, and matches."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from lexico_client._results import Match
from lexico_codec.geometry import Geometry
from lexico_codec.spec import CacheSpec, make_spec
from lexico_proto.errors import LexicoError

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
    return old


@dataclass
class FakeAnswer:
    """A match that a test lets end."""

    spec: CacheSpec
    token_ids: npt.NDArray[np.uint32]
    finished: bool = False
    pages: int = 0
    error: LexicoError | None = None

    def end(self, pages: int = 0, error: LexicoError | None = None) -> None:
        self.finished, self.pages, self.error = True, pages, error

    def result(self) -> Match:
        assert self.finished, "the scheduler would have waited"
        if self.error is not None:
            raise self.error
        return Match(self.pages * self.spec.page_tokens, self.pages, (), ())


@dataclass
class FakeMatcher:
    """Every match that began."""

    answers: list[FakeAnswer] = field(default_factory=list)
    at_once: int | None = None
    """Pages that are found without any waiting."""

    def __call__(self, spec: CacheSpec, token_ids: npt.NDArray[np.uint32]) -> FakeAnswer:
        answer = FakeAnswer(spec, token_ids)
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
) -> SimpleNamespace:
    """A `SchedulerOutput`: name → (blocks, computed before, scheduled now). Blocks of new and
    resumed requests are all of theirs, of running ones those that were added."""
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
    )
