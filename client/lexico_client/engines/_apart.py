"""Pages that are no prompt: each is a sequence of its own, which an engine knows by a hash.

For engines that tell a page's hash and not its position, see ADR 0068. One question asks about many
of them; each is sent and brought by a call of its own, several at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from lexico_client._async_client import AsyncClient
from lexico_client._results import Loaded, PageOutcome
from lexico_client.engines._hashed import hashed_pages
from lexico_codec.inputs import PageInputs
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput


class PagesApart:
    """The calls of a client, for such pages."""

    def __init__(self, client: AsyncClient, scheme: str) -> None:
        """
        Args:
            client: of the adapter.
            scheme: of the engine's hashes, see `hashed_pages`.
        """
        self._client = client
        self._scheme = scheme

    async def stored(
        self, spec: CacheSpec, hashes: Sequence[bytes], timeout: float, *, renew: bool = False
    ) -> list[bool]:
        """Which of the pages are stored.

        Args:
            spec: what they belong to; its codec one of `Codec.without_positions`.
            hashes: one a page.
            timeout: seconds.
            renew: the missing ones will be sent, so those that are there must not expire before.

        Raises:
            InvalidInput: a codec that asks for a page's position, or a hash that is too short.
            ConfigurationError: a codec that cannot do without.
            LexicoError: the service could not answer.
        """
        ids, inputs = self._pages(spec, hashes)
        match = await self._client.match(
            spec, ids, inputs=inputs, apart=True, renew=renew, timeout=timeout
        )
        return list(match.present)

    async def load(
        self, spec: CacheSpec, page_hash: bytes, memory: CacheMemory, timeout: float
    ) -> Loaded:
        """Brings a page that `stored` has found. What fails is a miss, see `AsyncClient.load`.

        Args:
            spec, page_hash, timeout: as for `stored`.
            memory: where it goes: all layers and heads.

        Raises:
            InvalidInput, ShapeMismatch: the memory does not fit, or as `stored`.
        """
        ids, inputs = self._pages(spec, [page_hash])
        return await self._client.load(
            spec,
            ids,
            lambda _: lambda _, group: memory.within(spec.group_range(group)),
            inputs=inputs,
            pages=range(1),
            timeout=timeout,
        )

    async def offload(
        self, spec: CacheSpec, page_hash: bytes, memory: CacheMemory, timeout: float
    ) -> PageOutcome:
        """Sends a page, if the service lacks it.

        Args:
            spec, page_hash, timeout: as for `stored`.
            memory: where it lies; it must not change meanwhile.

        Raises:
            LexicoError: as `AsyncClient.offload`, and as `stored`.
        """
        ids, inputs = self._pages(spec, [page_hash])
        report = await self._client.offload(
            spec,
            ids,
            lambda _, group: memory.within(spec.group_range(group)),
            inputs=inputs,
            timeout=timeout,
        )
        return report.pages[0]

    def _pages(
        self, spec: CacheSpec, hashes: Sequence[bytes]
    ) -> tuple[npt.NDArray[np.uint32], PageInputs]:
        if spec.codec != spec.codec.without_positions():
            raise InvalidInput(
                f"pages apart: codec {spec.codec.name} asks for their positions, which are not "
                "known: give `codec.without_positions()`"
            )
        return hashed_pages(self._scheme, hashes, spec.page_tokens)
