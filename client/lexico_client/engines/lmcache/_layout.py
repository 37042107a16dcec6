"""Where keys and values lie in an object of LMCache.

An object holds all layers of one chunk of tokens. LMCache tells its shape and type. Where it keeps
keys and values apart, the shape says what lies where. Where the engine has them together in one
row, it does not, and the user names the layout: nothing is found out by trying. Pages of ours are
the same whatever the layout is, so engines with different ones share; one that is named wrong gives
wrong keys and values to others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from torch import Tensor

from lexico_proto.errors import ConfigurationError, Unsupported


@dataclass(frozen=True)
class ObjectShape:
    """What the shape of an object says."""

    layers: int
    tokens: int
    kv_heads: int


class Layout(ABC):
    """One way to keep keys and values."""

    name: ClassVar[str]
    shape: ClassVar[str]
    """In words."""
    in_place: ClassVar[bool] = True
    """Whether `pages` gives a view, so that what is written there needs no `put`."""

    def read_shape(self, shape: Sequence[int], head_dim: int) -> ObjectShape:
        """Layers, tokens and heads of an object.

        Args:
            shape: of the object's tensor.
            head_dim: of the model.

        Raises:
            Unsupported: no object of this layout.
        """
        found = self._read(tuple(shape), head_dim)
        if found is None or min(found.layers, found.tokens, found.kv_heads) < 1:
            raise Unsupported(
                f"an object of shape {list(shape)} is none of layout {self.name}, which is "
                f"{self.shape}, with a head_dim of {head_dim}; the setting `layout` is one of "
                f"{', '.join(LAYOUTS)}"
            )
        return found

    @abstractmethod
    def _read(self, shape: tuple[int, ...], head_dim: int) -> ObjectShape | None: ...

    @abstractmethod
    def pages(self, tensor: Tensor, shape: ObjectShape) -> Tensor:
        """Keys and values of an object, `[layers, 2, tokens, kv_heads, head_dim]`.

        A view of the object where `in_place`, else a copy.
        """

    def room(self, tensor: Tensor, shape: ObjectShape) -> Tensor:
        """Where a page is to be written that shall be in the object after `put`: a view of it where
        `in_place`."""
        return self.pages(tensor, shape)

    def put(self, pages: Tensor, tensor: Tensor, shape: ObjectShape) -> None:
        """Writes what `room` gave, and was filled since, into the object."""
        if not self.in_place:
            raise NotImplementedError


class KeysFirst(Layout):
    """Keys of all layers, then values."""

    name = "keys-first"
    shape = "[2, layers, tokens, kv_heads * head_dim]"

    def _read(self, shape: tuple[int, ...], head_dim: int) -> ObjectShape | None:
        if len(shape) != 4 or shape[0] != 2 or shape[3] % head_dim:
            return None
        return ObjectShape(shape[1], shape[2], shape[3] // head_dim)

    def pages(self, tensor: Tensor, shape: ObjectShape) -> Tensor:
        split = (2, shape.layers, shape.tokens, shape.kv_heads, -1)
        return tensor.view(split).transpose(0, 1)


class SideBySide(Layout):
    """Each head has its keys and then its values, token by token: vLLM on GPUs since 0.26."""

    name = "side-by-side"
    shape = "[layers, tokens, kv_heads * 2 * head_dim], with or without a 1 in front"

    def _read(self, shape: tuple[int, ...], head_dim: int) -> ObjectShape | None:
        rows = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
        if len(rows) != 3 or rows[2] % (2 * head_dim):
            return None
        return ObjectShape(rows[0], rows[1], rows[2] // (2 * head_dim))

    def pages(self, tensor: Tensor, shape: ObjectShape) -> Tensor:
        split = (shape.layers, shape.tokens, shape.kv_heads, 2, -1)
        return tensor.view(split).permute(0, 3, 1, 2, 4)


@dataclass(frozen=True)
class VllmOnCpu(SideBySide):
    """vLLM's CPU attention: within a block, a head has all keys, transposed, and then all values.

    LMCache takes the block for one of `side-by-side` and cuts it into rows all the same.
    """

    name = "vllm-cpu"
    shape = f"{SideBySide.shape}, and tokens in whole blocks"
    in_place = False

    block_tokens: int
    """The engine's block size."""

    def _read(self, shape: tuple[int, ...], head_dim: int) -> ObjectShape | None:
        found = super()._read(shape, head_dim)
        return None if found is None or found.tokens % self.block_tokens else found

    def pages(self, tensor: Tensor, shape: ObjectShape) -> Tensor:
        keys, values = self._parts(self._heads_of(tensor, shape).contiguous())
        pages = tensor.new_empty((shape.layers, 2, *keys.shape[1:]))
        pages[:, 0], pages[:, 1] = keys, values
        return pages.view(shape.layers, 2, shape.tokens, shape.kv_heads, -1)

    def room(self, tensor: Tensor, shape: ObjectShape) -> Tensor:
        head_dim = tensor.shape[-1] // (2 * shape.kv_heads)
        return tensor.new_empty((shape.layers, 2, shape.tokens, shape.kv_heads, head_dim))

    def put(self, pages: Tensor, tensor: Tensor, shape: ObjectShape) -> None:
        rows = self._heads_of(tensor, shape)
        heads = tensor.new_empty(rows.shape)
        cut = pages.view(shape.layers, 2, -1, self.block_tokens, *pages.shape[3:])
        for part, filled in zip(self._parts(heads), cut.unbind(1), strict=True):
            part.copy_(filled)
        rows.copy_(heads)

    def _heads_of(self, tensor: Tensor, shape: ObjectShape) -> Tensor:
        """`[layers, blocks, kv_heads, block_tokens, 2 * head_dim]`, as a view."""
        width = tensor.shape[-1] // shape.kv_heads
        rows = tensor.view(shape.layers, -1, self.block_tokens, shape.kv_heads, width)
        return rows.transpose(2, 3)

    @staticmethod
    def _parts(heads: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each `[layers, blocks, block_tokens, kv_heads, head_dim]`, of contiguous
        heads, as views."""
        layers, blocks, kv_heads, size, width = heads.shape
        flat = heads.view(layers, blocks, kv_heads, size * width)
        half, dim = size * width // 2, width // 2
        keys = flat[..., :half].view(layers, blocks, kv_heads, dim, size)
        values = flat[..., half:].view(layers, blocks, kv_heads, size, dim)
        return keys.permute(0, 1, 4, 2, 3), values.transpose(2, 3)


LAYOUTS: Final[Mapping[str, type[Layout]]] = {
    each.name: each for each in (KeysFirst, SideBySide, VllmOnCpu)
}


def layout_of(name: str, block_tokens: int) -> Layout:
    """The layout of that name.

    Args:
        name: as a user gives it; empty for the one that needs none.
        block_tokens: the engine's block size, which `vllm-cpu` needs; 0 where it was not given.

    Raises:
        ConfigurationError: naming the setting.
    """
    found = LAYOUTS.get(name or KeysFirst.name)
    if found is None:
        raise ConfigurationError(f"layout: {name!r} is none of {', '.join(LAYOUTS)}")
    if found is not VllmOnCpu:
        return found()
    if block_tokens < 1:
        raise ConfigurationError("block_tokens: layout vllm-cpu needs the engine's block size")
    return VllmOnCpu(block_tokens)
