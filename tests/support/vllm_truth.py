"""What a test of schedules has in place of the model and of the service: every token has keys and
values that are a number of its own, and nothing comes before the test lets it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_client._results import Loaded, LoadSeconds, PageOutcome
from lexico_client.engines._service import Service
from lexico_client.engines.vllm._coded import Found
from lexico_codec.codecs.codec import Codec
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Unavailable
from tests.support.vllm_fakes import GEOMETRY, FakeAnswer

_OFFSETS: Final = torch.arange(GEOMETRY.layers * 2 * GEOMETRY.kv_heads * GEOMETRY.head_dim).view(
    GEOMETRY.layers, 2, 1, GEOMETRY.kv_heads, GEOMETRY.head_dim
)


class Truth:
    """What keys and values are, `[layers, 2, tokens, kv_heads, head_dim]`, exact in float32."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}

    def of(self, model: Hashable, ids: Sequence[int], first: int, stop: int) -> Tensor:
        """Of tokens `first` to `stop` of a sequence.

        Args:
            model: weights and adapter.
            ids: of the sequence, from position 0 on.
        """
        numbers = [
            self._numbers.setdefault((model, tuple(ids[: place + 1])), len(self._numbers) + 1)
            for place in range(first, stop)
        ]
        return torch.tensor(numbers).view(1, 1, -1, 1, 1) + _OFFSETS / _OFFSETS.numel()


class Stepped(Service):
    """A loop that runs when it is told to, in the thread of the test."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.loop = asyncio.new_event_loop()

    def begin(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.create_task(work)

    def run(self) -> None:
        """Until everything waits for the test."""
        self.loop.run_until_complete(_rounds())


async def _rounds() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class Gate:
    """Where a load or a store waits for the test, at each page."""

    name: str
    passed: asyncio.Event = field(default_factory=asyncio.Event)
    failing: bool = False


class Client:
    """The service as the worker meets it: lossless pages by namespace and token ids."""

    def __init__(self) -> None:
        self.pages: dict[tuple[bytes, tuple[int, ...]], Tensor] = {}
        self.gates: list[Gate] = []
        self.check: Callable[[CacheSpec, Sequence[int], Tensor], bool]
        """Whether a page that is sent, the last of these token ids, is what it should be."""
        self.wrong: list[Sequence[int]] = []

    def stored(self, spec: CacheSpec, ids: Sequence[int]) -> int:
        """Leading pages of a sequence that there are."""
        count = len(ids) // spec.page_tokens
        there = (self._key(spec, ids, page) in self.pages for page in range(count))
        return [*there, False].index(False)

    def put(self, spec: CacheSpec, ids: Sequence[int], page: int, values: Tensor) -> None:
        """A page is in the store."""
        self.pages[self._key(spec, ids, page)] = values

    async def load(
        self, spec: CacheSpec, token_ids: Any, target: Any, *, pages: range, timeout: float
    ) -> Loaded:
        ids, view = token_ids.tolist(), target(len(pages))
        for count, page in enumerate(pages):
            failed = await self._gate("load")
            key = self._key(spec, ids, page)
            if failed or key not in self.pages:
                # A frame of a page that then fails is in the memory already.
                view(page, 0).write(torch.full_like(_group(spec, 0, self._any(spec)), -1))
                reason = Unavailable("as the test has it")
                return Loaded(0, count, len(pages), reason, 0, LoadSeconds(0, 0, 0))
            for group in range(spec.groups):
                view(page, group).write(_group(spec, group, self.pages[key]))
                if group == 0:
                    await self._gate("load")
        return Loaded(0, len(pages), len(pages), None, 0, LoadSeconds(0, 0, 0))

    async def offload(
        self,
        spec: CacheSpec,
        token_ids: Any,
        source: Any,
        *,
        pages: int,
        assembly: bytes,
        timeout: float,
    ) -> Any:
        ids, outcomes = token_ids.tolist(), []
        for page in range(pages):
            key = self._key(spec, ids, page)
            if key in self.pages:
                outcomes.append(PageOutcome.PRESENT)
                continue
            if await self._gate("store"):
                raise Unavailable("as the test has it")
            whole = torch.cat([source(page, group) for group in range(spec.groups)])
            if not self.check(spec, key[1], whole):
                self.wrong.append(key[1])
            self.pages[key] = whole.clone()
            outcomes.append(PageOutcome.STORED)
        return SimpleNamespace(pages=outcomes)

    async def _gate(self, name: str) -> bool:
        gate = Gate(name)
        self.gates.append(gate)
        await gate.passed.wait()
        return gate.failing

    @staticmethod
    def _any(spec: CacheSpec) -> Tensor:
        g = spec.geometry
        return torch.zeros(g.layers, 2, spec.page_tokens, g.kv_heads, g.head_dim)

    @staticmethod
    def _key(spec: CacheSpec, ids: Sequence[int], page: int) -> tuple[bytes, tuple[int, ...]]:
        return spec.namespace, tuple(ids[: (page + 1) * spec.page_tokens])


def _group(spec: CacheSpec, group: int, page: Tensor) -> Tensor:
    layers = spec.group_range(group)
    return page[layers.start : layers.stop]


class Finding:
    """Matches that are answered when the test has them, by what is stored then."""

    def __init__(self, client: Client, codec: Codec) -> None:
        self.client, self.codec = client, codec
        self.open: list[FakeAnswer] = []

    def begin(self, base: CacheSpec, token_ids: npt.NDArray[np.uint32]) -> FakeAnswer:
        self.open.append(FakeAnswer(base, token_ids))
        return self.open[-1]

    def answer(self, place: int, *, failing: bool = False) -> None:
        asked = self.open.pop(place)
        pages = self.client.stored(asked.spec, asked.token_ids.tolist())
        found = Found(asked.spec, pages, asked.spec, pages)
        asked.come(found, Unavailable("as the test has it") if failing else None)
