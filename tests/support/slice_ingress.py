"""An ingress that ranks send slices to, without gRPC: its encoders keep what they are given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

from lexico_codec.checksum import Checksum
from lexico_codec.keys import page_keys
from lexico_codec.pieces import Piece
from lexico_codec.put_messages import PageEnd
from lexico_codec.slices import Slice
from lexico_codec.spec import CacheSpec
from lexico_proto.metrics import SLICED_PAGES, Metrics
from lexico_services.config import OffloadConfig
from lexico_services.offload.ingress import Ingress
from lexico_services.offload.upload import Report, Upload
from lexico_services.policies import Policies
from lexico_services.telemetry.gauges import watch_ingress
from lexico_store.scopes import tenant_scope
from lexico_worker.page_encoder import Outcome, PageDone, PageJob
from tests.support.client_fixtures import small_spec
from tests.support.sliced_pages import bodies_of, split, whole_page
from tests.support.waiting import PATIENCE_S, until

SPEC: Final = small_spec("raw")
PAGE_BYTES: Final = SPEC.page_bytes
LAYERS, HEADS = SPEC.geometry.layers, SPEC.geometry.kv_heads
RED, BLUE = tenant_scope("red"), tenant_scope("blue")
HALVES: Final = split(LAYERS, HEADS, 1, 2)
ONE: Final = b"the first engine's"
OTHER: Final = b"another engine's"


class Encoders:
    """Keep what they are given, once they are let go."""

    def __init__(self) -> None:
        self.pages: dict[tuple[bytes, int], bytes] = {}
        self.jobs: list[PageJob] = []
        self.failing: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()

    async def running(self) -> int | None:
        return None

    async def place(self, page: list[Piece]) -> Any:
        return b"".join(piece.tobytes() for piece in page)

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.jobs.append(job)
        await self.go.wait()
        if self.failing is not None:
            raise self.failing
        if self.pages.setdefault((job.scope, job.page), placed) is not placed:
            return PageDone(Outcome.PRESENT)
        return PageDone(Outcome.STORED, len(placed))


class Rig:
    """An ingress, and prompts of random pages."""

    def __init__(self, policies: Policies | None = None, **config: Any) -> None:
        self.encoders, self.metrics = Encoders(), Metrics()
        bounds = {"idle_s": PATIENCE_S, "slice_wait_s": PATIENCE_S, **config}
        self.ingress = Ingress(self.encoders, OffloadConfig(**bounds), self.metrics, policies)
        watch_ingress(self.metrics, self.ingress)

    async def put(
        self,
        held: Slice,
        pages: Sequence[int] = (0,),
        *,
        scope: bytes = RED,
        assembly: bytes = ONE,
        spec: CacheSpec = SPEC,
        seed: int = 0,
        cut: bool = False,
        wait_committed: bool = True,
    ) -> Report:
        """A Put of one rank. Page p has the bytes of seed + p.

        Args:
            cut: leaves out the last end.
        """
        ids = range(7, 7 + (pages[-1] + 1) * spec.page_tokens)
        keys = page_keys(spec, ids)
        part = spec.held_by(held.layers, held.heads)
        upload = Upload(scope, part, ids, pages, [keys[page] for page in pages], assembly=assembly)

        async def parts() -> AsyncIterator[memoryview | PageEnd]:
            for page in pages:
                body = bodies_of(spec, whole_page(spec, seed + page), held)
                checksum = Checksum()
                checksum.add(body)
                yield memoryview(body)
                await asyncio.sleep(0)
                if not (cut and page == pages[-1]):
                    yield PageEnd(page, checksum.value())

        return await self.ingress.put(upload, parts(), wait_committed=wait_committed)

    def ended(self) -> dict[str, int | float]:
        counts = self.metrics.snapshot().get(SLICED_PAGES, {})
        return {values[0]: number for values, number in counts.items() if number}

    def shown(self, family: Any) -> int | float:
        return self.metrics.snapshot()[family][()]

    async def all_free(self) -> None:
        def used() -> int:
            return self.ingress.budget.used

        await until(lambda: not used(), "all room to be free", used)
        assert not self.ingress.partial.waiting
        assert not self.ingress.partial._needed
        assert not self.ingress.partial._encoding
        assert not self.ingress._tenant_bytes._used


def outcomes(report: Report) -> list[Outcome | None]:
    return [None if done is None else done.outcome for done in report.pages.values()]


def stored(report: Report) -> set[int]:
    """The pages that a Put completed."""
    return {page for page, done in report.pages.items() if done is not None}
