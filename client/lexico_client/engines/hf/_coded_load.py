"""Frames' codes as the layers of a `CodedCache`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lexico_client._load import PageView
from lexico_client.engines.hf._coded_layer import CodedCacheLayer, plain_tensors
from lexico_client.engines.hf._recoding import Recoding
from lexico_codec.codecs.sparse import GroupCodes
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.sets.choose import at_hand
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from lexico_codec.spec import CacheSpec


class PrefixCodes:
    """Codes of a prefix that is being loaded, by page and group."""

    def __init__(self, spec: CacheSpec, device: torch.device) -> None:
        self._spec = spec
        self._device = device
        self._groups: dict[tuple[int, int], GroupCodes] = {}

    def allocate(self, pages: int) -> PageView:
        """The receivers of that many pages: a `Target`."""
        return lambda page, group: _Place(self._groups, (page, group), self._device)

    def layers(
        self, tokens: int, recoding: Recoding, dictionary: DictionarySet | None
    ) -> list[CodedCacheLayer]:
        """The layers of a cache of the first tokens; what came is used up.

        Args:
            tokens: those to keep, of pages of which every group came.
            recoding: what becomes of later tokens.
            dictionary: the set that the spec names, for a prefix without pages; None where it is
                not at hand: then such a cache stays exact.
        """
        layers, pages = [], self._spec.pages_of(tokens)
        for group in range(self._spec.groups):
            parts = [self._groups.pop((page, group)) for page in range(pages)]
            if parts:
                parts[-1] = _cut(parts[-1], tokens - (pages - 1) * self._spec.page_tokens)
            for index, layer in enumerate(self._spec.group_range(group)):
                atoms = self._atoms(parts, index, layer, dictionary)
                with plain_tensors():
                    sinks = _sinks_of(parts, index) if parts else self._no_sinks()
                    codes = _codes_of(parts, index) if parts else None
                layers.append(CodedCacheLayer(recoding, atoms, sinks, codes))
        self._groups.clear()
        return layers

    def _atoms(
        self, parts: list[GroupCodes], index: int, layer: int, dictionary: DictionarySet | None
    ) -> Atoms | None:
        if parts:
            return parts[0].atoms.narrow(2 * index, 2)
        if dictionary is None:
            return None
        atoms = at_hand(self._spec.codec, dictionary, AtomSet)
        return atoms.stack(self._spec.shard.first_layer + layer, 1, self._device)

    def _no_sinks(self) -> tuple[Tensor, Tensor]:
        g = self._spec.geometry
        none = torch.empty(g.kv_heads, 0, g.head_dim, dtype=g.torch_dtype, device=self._device)
        return none, none


@dataclass(frozen=True)
class _Place:
    """Where the codes of one group of one page go: a `CodesReceiver`."""

    groups: dict[tuple[int, int], GroupCodes]
    at: tuple[int, int]
    device: torch.device

    def accept(self, codes: GroupCodes) -> None:
        self.groups[self.at] = codes


def _cut(part: GroupCodes, tokens: int) -> GroupCodes:
    """The first tokens of a page."""
    sinks, codes, tables = part.sinks[:, :, :tokens], part.codes, part.atoms.tables
    rows = (tokens - sinks.shape[2]) * part.kv_heads

    def leading(column: Tensor) -> Tensor:
        return column.view(tables, len(column) // tables, *column.shape[1:])[:, :rows].flatten(0, 1)

    return replace(
        part,
        sinks=sinks,
        codes=Codes(
            indices=leading(codes.indices),
            coefficients=leading(codes.coefficients),
            counts=leading(codes.counts),
            exponents=None if codes.exponents is None else leading(codes.exponents),
        ),
    )


def _sinks_of(parts: list[GroupCodes], index: int) -> tuple[Tensor, Tensor]:
    """Exact keys and values of one layer, `[kv_heads, sinks, head_dim]`, in memory of their own."""
    sinks = torch.cat([part.sinks[index] for part in parts], 1)  # [2, sinks, kv_heads, head_dim]
    keys, values = sinks.transpose(1, 2).contiguous()
    return keys, values


def _codes_of(parts: list[GroupCodes], index: int) -> Codes:
    """Codes of one layer: keys of all pages, then values of all pages."""
    tables = [_table(part, 2 * index + half) for half in (0, 1) for part in parts]
    width = max(table.indices.shape[1] for table in tables)
    exponents = [table.exponents for table in tables if table.exponents is not None]
    return Codes(
        indices=torch.cat([_padded(table.indices, width) for table in tables]),
        coefficients=torch.cat([_padded(table.coefficients, width) for table in tables]),
        counts=torch.cat([table.counts for table in tables]),
        exponents=torch.cat(exponents),
    )


def _table(part: GroupCodes, table: int) -> Codes:
    """The codes of one dictionary's vectors, views."""
    codes, rows = part.codes, len(part.codes.counts) // part.atoms.tables
    own = slice(table * rows, (table + 1) * rows)
    exponents = None if codes.exponents is None else codes.exponents[own]
    return Codes(codes.indices[own], codes.coefficients[own], codes.counts[own], exponents)


def _padded(columns: Tensor, width: int) -> Tensor:
    """`[rows, width]`: zeros after a row's last atom, as codes have them."""
    return torch.nn.functional.pad(columns, (0, width - columns.shape[1]))
