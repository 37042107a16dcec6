"""What keys and values are in a test of schedules: every token has a number of its own, and every
time that it is computed is told from others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_client.engines.vllm._coded import Found
from lexico_codec.codecs.codec import Codec
from lexico_codec.geometry import Geometry
from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Unavailable
from tests.support.vllm_fakes import FakeAnswer

_PARTS: Final = 256
"""Of a number, to tell layers, heads and components apart. All of it is exact in float32."""


class Truth:
    """Keys and values, `[layers, 2, tokens, kv_heads, head_dim]`: a token's number and the place in
    the model. The last component of a head has the computation in place of the token.
    """

    def __init__(self, geometry: Geometry) -> None:
        g = geometry
        self._places = (
            torch.arange(g.layers * 2 * g.kv_heads * g.head_dim).view(
                g.layers, 2, 1, g.kv_heads, g.head_dim
            )
            / _PARTS
        )
        self._numbers: dict[Hashable, int] = {}
        self._known: dict[Hashable, Tensor] = {}
        self._computations = 0

    def computation(self) -> int:
        """A number for one more computation."""
        self._computations += 1
        return self._computations

    def of(
        self,
        model: Hashable,
        ids: Sequence[int],
        first: int,
        stop: int,
        computation: int = 0,
        held: Slice | None = None,
    ) -> Tensor:
        """Of tokens `first` to `stop` of a sequence.

        Args:
            model: weights and adapter.
            ids: of the sequence, from position 0 on.
            computation: when they were computed.
            held: layers and heads alone; None for all.
        """
        return self._made(self._of(model, tuple(ids))[first:stop], computation, held)

    def of_ends(
        self, ends: Sequence[tuple[Hashable, Sequence[int]]], count: int, held: Slice
    ) -> Tensor:
        """Of so many last tokens of each of some sequences.

        Args:
            ends: model and token ids.
        """
        return self._made(
            torch.cat([self._of(model, tuple(ids))[-count:] for model, ids in ends]), 0, held
        )

    def holds(self, here: Tensor, wanted: Tensor) -> bool:
        """Whether keys and values are the wanted ones, whenever they were computed."""
        known = torch.equal(here[..., :-1], wanted[..., :-1])
        return known and torch.equal(here[..., -1] % 1, wanted[..., -1] % 1)

    def _made(self, numbers: Tensor, computation: int, held: Slice | None) -> Tensor:
        places = self._places
        if held is not None:
            layers, heads = held.layers, held.heads
            places = places[layers.start : layers.stop, :, :, heads.start : heads.stop]
        made = numbers.view(1, 1, -1, 1, 1) + places
        made[..., -1] = computation + places[..., -1]
        return made

    def _of(self, model: Hashable, ids: tuple[int, ...]) -> Tensor:
        if (model, ids) not in self._known:
            numbers, before = list[int](), 0
            for each in ids:
                name = (model, before, each)
                before = self._numbers.setdefault(name, len(self._numbers) + 1)
                numbers.append(before)
            self._known[model, ids] = torch.tensor(numbers, dtype=torch.float32)
        return self._known[model, ids]


class Finding:
    """Matches that are answered when the test has them, by what is stored then."""

    def __init__(self, stored: Callable[[CacheSpec, Sequence[int]], int], codec: Codec) -> None:
        self.stored, self.codec = stored, codec
        self.open: list[FakeAnswer] = []

    def begin(self, base: CacheSpec, token_ids: npt.NDArray[np.uint32]) -> FakeAnswer:
        self.open.append(FakeAnswer(base, token_ids))
        return self.open[-1]

    def answer(self, place: int, *, failing: bool = False) -> None:
        asked = self.open.pop(place)
        pages = self.stored(asked.spec, asked.token_ids.tolist())
        found = Found(asked.spec, pages, asked.spec, pages)
        asked.come(found, Unavailable("as the test has it") if failing else None)
