"""A page of the whole model, put together out of the slices that its ranks hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lexico_codec.limits import MAX_ASSEMBLY_BYTES, MAX_SLICES, MIN_ASSEMBLY_BYTES
from lexico_codec.pieces import Piece, Pieces
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import InvalidInput


@dataclass(frozen=True)
class Slice:
    """Layers and KV heads of the whole model."""

    layers: range
    heads: range

    @classmethod
    def of(cls, spec: CacheSpec) -> Slice:
        """The slice that a spec's shard is."""
        shard, g = spec.shard, spec.geometry
        return cls(
            range(shard.first_layer, shard.first_layer + g.layers),
            range(shard.first_head, shard.first_head + g.kv_heads),
        )

    @property
    def area(self) -> int:
        """Layers times KV heads."""
        return len(self.layers) * len(self.heads)

    def overlaps(self, other: Slice) -> bool:
        """Whether both hold some head of some layer."""
        return _meet(self.layers, other.layers) and _meet(self.heads, other.heads)

    def __str__(self) -> str:
        layers, heads = self.layers, self.heads
        return f"layers {layers.start}..{layers.stop - 1}, KV heads {heads.start}..{heads.stop - 1}"


class SlicedPage:
    """Collects the slices of one page. No head of a layer is ever taken from two of them."""

    def __init__(self, whole: CacheSpec, page: int) -> None:
        """
        Args:
            whole: the spec of the whole model.
            page: index of the page, for messages.
        """
        self._whole = whole
        self._page = page
        self._slices: dict[Slice, tuple[int, list[Piece]]] = {}

    def add(self, held: Slice, checksum: int, pieces: list[Piece]) -> bool:
        """Takes a slice.

        Args:
            held: which one.
            checksum: XXH3-64 of its bytes, which has proved right.
            pieces: its bytes: `[layers, 2, tokens, kv_heads, head_dim]` of what it holds. They must
                not change.

        Returns:
            Whether it was missing. One that is there already, with the same bytes, is left alone.

        Raises:
            InvalidInput: it is there with other bytes, or shares heads of a layer with another, or
                there are too many.
        """
        there = self._slices.get(held)
        if there is not None:
            if there[0] == checksum:
                return False
            raise InvalidInput(
                f"page {self._page}: two different bodies of {held} in one assembly: which of them "
                "is right is not known, so the page is not stored"
            )
        for other in self._slices:
            if held.overlaps(other):
                raise InvalidInput(
                    f"page {self._page}: {held} and {other} overlap in one assembly: the ranks of "
                    "a model hold slices that are apart, or the same"
                )
        if len(self._slices) >= MAX_SLICES:
            raise InvalidInput(f"page {self._page}: more than {MAX_SLICES} slices")
        self._slices[held] = checksum, pieces
        return True

    @property
    def empty(self) -> bool:
        """Whether there is no slice yet."""
        return not self._slices

    @property
    def complete(self) -> bool:
        """Whether the slices are the whole page: none of them overlap, so areas add up to it."""
        g = self._whole.geometry
        return sum(held.area for held in self._slices) == g.layers * g.kv_heads

    def take(self) -> list[Piece]:
        """The bytes of the whole page, in pieces, once it is complete. The slices are let go.

        Slices of all KV heads are the page's bytes one behind the other, and are not copied.
        """
        slices, self._slices = self._slices, {}
        ordered = sorted(slices, key=lambda held: held.layers.start)
        g = self._whole.geometry
        if all(len(held.heads) == g.kv_heads for held in ordered):
            return [piece for held in ordered for piece in slices[held][1]]
        row = g.head_dim * g.itemsize
        out = np.empty((g.layers, 2, self._whole.page_tokens, g.kv_heads, row), np.uint8)
        for held in ordered:
            body = Pieces(slices.pop(held)[1])
            part = out[
                held.layers.start : held.layers.stop, :, :, held.heads.start : held.heads.stop
            ]
            part[...] = np.frombuffer(body.cut(0, len(body)), np.uint8).reshape(part.shape)
        return [out.reshape(-1)]


def check_assembly(spec: CacheSpec, assembly: bytes) -> None:
    """Whether an upload says what its pages are to be put together with: slices must.

    Raises:
        InvalidInput: slices without an assembly, or with one of another length.
    """
    if not spec.is_whole and not MIN_ASSEMBLY_BYTES <= len(assembly) <= MAX_ASSEMBLY_BYTES:
        raise InvalidInput(
            f"slices of a model need an assembly of {MIN_ASSEMBLY_BYTES} to {MAX_ASSEMBLY_BYTES} "
            "bytes, the same for the ranks that computed them together, drawn anew for each "
            f"computation: there are {len(assembly)} bytes"
        )


def _meet(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop
