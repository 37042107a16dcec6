"""What a caller announces before the bytes of a Put, and what became of its pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lexico_codec.slices import check_assembly
from lexico_codec.spec import CacheSpec
from lexico_codec.upload import checked_keys
from lexico_proto.metrics import OTHER
from lexico_proto.tracing import Trace
from lexico_worker.page_encoder import PageDone


@dataclass(frozen=True)
class Upload:
    """What a caller announces before the bytes."""

    scope: bytes
    spec: CacheSpec
    token_ids: Sequence[int]
    """From the first token of `first_page` to the end of the last page sent."""
    pages: Sequence[int]
    """Indices of the pages sent, ascending."""
    keys: Sequence[bytes]
    """Key of each of those pages."""
    first_page: int = 0
    """Where `token_ids` begin: a long sequence comes in several uploads."""
    parent_key: bytes = b""
    """Key of the page before `first_page`; empty for page 0."""
    trace: Trace = field(default=(), repr=False)
    """What the call is part of; goes along with each page."""
    inputs: Sequence[bytes] = ()
    """What reached the model beside token ids: a digest for each page from `first_page` on, or
    none."""
    tenant: str = OTHER
    """Name of the tenant, for counting."""
    assembly: bytes = b""
    """Of slices, which are put together only with those of the same; ignored for whole pages."""

    def check(self) -> list[bytes]:
        """Whether tokens, pages and keys fit together.

        Returns:
            The keys of the sequence, from its first page to the last one sent.

        Raises:
            InvalidInput, TokenCountMismatch, PageKeyMismatch: naming what does not.
        """
        check_assembly(self.spec, self.assembly)
        return checked_keys(
            self.spec,
            self.token_ids,
            self.pages,
            self.keys,
            first_page=self.first_page,
            parent_key=self.parent_key,
            inputs=self.inputs,
        )


@dataclass
class Seconds:
    """Time by stage, summed over the pages of one Put."""

    receive: float = 0.0
    place: float = 0.0
    encoder: float = 0.0
    encode: float = 0.0
    commit: float = 0.0


@dataclass
class Report:
    """What became of the pages of one Put."""

    pages: dict[int, PageDone | None] = field(default_factory=dict)
    """None for a page that was received and not waited for."""
    seconds: Seconds = field(default_factory=Seconds)
