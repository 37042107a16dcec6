"""An engine's paged memory: pages of ours in it, to load into and to copy from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lexico_client._load import PageView
from lexico_client.engines.vllm._layout import Write, elements, recognised
from lexico_client.engines.vllm._orders import LoadOrder
from lexico_client.engines.vllm._ranks import number_of
from lexico_codec.memory import CacheMemory
from lexico_codec.spec import CacheSpec
from lexico_proto.errors import Unsupported


class PagedCache:
    """Keys and values of the layers and heads that a rank holds of a model, in blocks."""

    def __init__(self, memory: CacheMemory, split: int = 1) -> None:
        """
        Args:
            memory: of these layers and heads, with any block table.
            split: blocks of the memory that one block of the engine's scheduler is.
        """
        self._memory = memory
        self._split = split

    @classmethod
    def over(
        cls,
        layers: Sequence[tuple[str, Tensor, Write]],
        spec: CacheSpec,
        block_tokens: int,
    ) -> tuple[PagedCache, str]:
        """The memory of an engine's layers, and the layout that it was found to have.

        Args:
            layers: name, tensor and the engine's way to write into it, of each layer in order.
            spec: what the pages belong to; of a rank, its slice of them.
            block_tokens: tokens of a block, as the engine's scheduler has it; kernels may have it
                in smaller ones.

        Raises:
            Unsupported: layers, types or layouts that cannot be described.
        """
        geometry, keys, values, layouts = spec.geometry, [], [], set[str]()
        if len(layers) != geometry.layers:
            raise Unsupported(f"the engine has {len(layers)} layers, not {geometry.layers}")
        for name, registered, write in layers:
            tensor = elements(registered, geometry.torch_dtype)
            if tensor.dtype != geometry.torch_dtype:
                raise Unsupported(f"{name}: a cache of {tensor.dtype}, not {geometry.dtype}")
            layout, views = recognised(
                tensor, block_tokens, geometry.kv_heads, geometry.head_dim, write, name
            )
            layouts.add(f"{layout}, {views[0].shape[1]} tokens a block")
            keys.append(views[0])
            values.append(views[1])
        nothing = torch.zeros(0, dtype=torch.int64, device=keys[0].device)
        shard = spec.shard
        memory = CacheMemory.of(
            keys,
            values,
            0,
            block_table=nothing,
            first_layer=shard.first_layer,
            first_head=shard.first_head,
        )
        split = block_tokens // memory.tables.block_tokens
        return cls(memory, split), "; ".join(sorted(layouts))

    @property
    def block_tokens(self) -> int:
        """Tokens of a block, as the engine's scheduler has it."""
        return self._memory.tables.block_tokens * self._split

    @property
    def device(self) -> torch.device:
        """Where the memory is."""
        return self._memory.device

    def tokens(self, blocks: Sequence[int], first: int, count: int) -> CacheMemory:
        """The memory of some tokens of a sequence.

        Args:
            blocks: ids of the blocks of the sequence, from position 0 on.
            first: position of the first token.
            count: how many.

        Raises:
            ShapeMismatch, InvalidInput: blocks that are not there, or too few.
        """
        size, split = self.block_tokens, self._split
        skipped, end = first // size, -(-(first + count) // size)
        parts = [block * split + part for block in blocks[skipped:end] for part in range(split)]
        table = torch.tensor(parts, dtype=torch.int64, device=self.device)
        return self._memory.at(count, table, first - skipped * size)

    def beside(self, count: int) -> CacheMemory:
        """Memory of its own for so many tokens, of the same layers and heads."""
        layers, kinds, _, heads, dim = self._memory.shape
        tensor = torch.empty(
            (layers, kinds, count, heads, dim), dtype=self._memory.dtype, device=self.device
        )
        first_layer, first_head = self._memory.first_layer, self._memory.first_head
        return CacheMemory.over(tensor, first_layer=first_layer, first_head=first_head)

    def copied(self, blocks: Sequence[int], first: int, count: int) -> Tensor:
        """A copy of some tokens, `[layers, 2, count, kv_heads, head_dim]`, on the device, in the
        order of the current stream. Arguments and errors as of `tokens`."""
        memory = self.tokens(blocks, first, count)
        with torch.inference_mode(memory.is_inference()):
            return memory.read()


class PageTarget:
    """Where the pages of an order go: straight into the blocks, but for pages of which a part alone
    is wanted. Of those a buffer takes the whole, and `settle` copies what is wanted: other tokens
    of their blocks are there already, and others may be reading them.
    """

    def __init__(self, cache: PagedCache, spec: CacheSpec, order: LoadOrder) -> None:
        self._cache = cache
        self._spec = spec
        self._order = order
        self._memories: dict[int, CacheMemory] = {}
        self._edges: dict[int, CacheMemory] = {}

    @property
    def pages(self) -> range:
        """Those that have a wanted token."""
        size, order = self._spec.page_tokens, self._order
        return range(order.start // size, -(-order.stop // size))

    def __call__(self, pages: int) -> PageView:
        """The views, whatever the number of pages."""
        return self._view

    def settle(self, pages: int) -> None:
        """Copies what is wanted of the pages that came in buffers.

        Args:
            pages: how many of `pages` came.
        """
        came, size, order = self.pages[:pages], self._spec.page_tokens, self._order
        for page, edge in self._edges.items():
            if page not in came:
                continue
            first = max(order.start, page * size)
            count = min(order.stop, (page + 1) * size) - first
            memory = self._cache.tokens(order.blocks, first, count)
            with torch.inference_mode(memory.is_inference()):
                memory.write(edge.read().narrow(2, first - page * size, count))
        if self._edges and self._cache.device.type == "cuda":
            torch.cuda.current_stream(self._cache.device).synchronize()

    def lost(self, pages: int) -> set[int]:
        """Ids of the blocks in which a wanted token is missing.

        Args:
            pages: how many of `pages` came.
        """
        size, order = self._spec.page_tokens, self._order
        came = max(order.start, min(order.stop, (self.pages.start + pages) * size))
        block = self._cache.block_tokens
        return (
            set(order.blocks[came // block : -(-order.stop // block)])
            if came < order.stop
            else set()
        )

    def _view(self, page: int, group: int) -> CacheMemory:
        size, layers, order = self._spec.page_tokens, self._spec.group_range(group), self._order
        first = page * size
        if order.start <= first and first + size <= order.stop:
            if page not in self._memories:
                self._memories[page] = self._cache.tokens(order.blocks, first, size)
            return self._memories[page].within(layers)
        if page not in self._edges:
            self._edges[page] = self._cache.beside(size)
        return self._edges[page].within(layers)


def in_order(layers: Mapping[str, Tensor], first: int = 0) -> list[tuple[str, Tensor]]:
    """Layers by their number.

    Args:
        layers: name, see `number_of`, → tensor.
        first: number of the first one.

    Raises:
        Unsupported: names that do not number the layers from there on.
    """
    numbered: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in layers.items():
        number = number_of(name)
        if number in numbered:
            raise Unsupported(f"layer {name}: its name does not say which one it is")
        numbered[number] = (name, tensor)
    wanted = list(range(first, first + len(numbered)))
    if sorted(numbered) != wanted:
        raise Unsupported(f"caches of layers {sorted(numbered)}, not {wanted}")
    return [numbered[number] for number in wanted]
