"""lexico: the paper's code (arXiv 2412.08890).

Per layer one universal dictionary for keys and one for values; each vector becomes at most s atoms
found by Orthogonal Matching Pursuit, stored as int16 indices and FP8 E4M3 coefficients: 3 s + 2
bytes a vector. The two are the number of atoms and the power of two that keeps outliers from
saturating, in place of the paper's row offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lexico_codec.codecs.codec import Place, tables_of
from lexico_codec.codecs.lexico import ragged_codes
from lexico_codec.codecs.parameters import check_tolerance, check_whole
from lexico_codec.codecs.sparse import GroupCodes, SparseCodec, write_sums
from lexico_codec.geometry import Geometry
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode
from lexico_codec.limits import MAX_SPARSITY
from lexico_codec.memory import CacheMemory
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.tensors import bytes_of


@dataclass(frozen=True)
class LexicoCodec(SparseCodec):
    """Body: sinks, then counts, exponents, indices and coefficients, each for all vectors of the
    group.
    """

    name: ClassVar[str] = "lexico"
    codec_id: ClassVar[int] = 2
    has_codes: ClassVar[bool] = True

    tolerance: float | None = None
    """Stop at this relative error (delta), or None to always use s atoms."""

    def __post_init__(self) -> None:
        check_whole(self.name, "sparsity", self.sparsity, 1, MAX_SPARSITY)
        check_tolerance(self.name, self.tolerance)

    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """3 s + 2 bytes a vector."""
        return tokens * 2 * geometry.kv_heads * (3 * self.sparsity + 2)

    def _encode(self, source: CacheMemory, place: Place, dictionary: DictionarySet | None) -> bytes:
        """Codes every vector of the group but the sinks', all dictionaries in one launch."""
        group = source.read()
        layers, _, tokens, _, dim = group.shape
        found = self._set_for(dictionary, place, layers, dim)
        atoms = found.stack(place.first_layer, layers, group.device)
        sinks = self.sink_tokens(place.first_token, tokens)
        vectors = group.flatten(0, 1)[:, sinks:]  # [2 * layers, tokens, heads, dim]
        codes = encode(vectors, atoms, self.sparsity, self.tolerance, quantised=True)
        return b"".join([bytes_of(group[:, :, :sinks]), ragged_codes.write(codes)])

    def _decode(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        target: CacheMemory,
        shape: tuple[int, ...],
    ) -> None:
        """Reconstructs what is wanted: sinks exact, the rest as sums of atoms."""
        sinks, codes, atoms = self._parsed(
            body, place, dictionary, shape, target.dtype, target.device
        )
        layers, tables = target.layers, tables_of(target.layers)
        sizes = (2 * shape[0], shape[2] - sinks.shape[2], shape[3])
        write_sums(
            target,
            sinks[layers.start : layers.stop],
            codes.part(tables, target.heads, sizes),
            atoms.narrow(tables.start, len(tables)),
        )

    def read(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> GroupCodes:
        """The sinks and the codes of every table, as the body has them."""
        exact, codes, atoms = self._parsed(body, place, dictionary, shape, dtype, device)
        return GroupCodes(exact.to(device), codes.to(device), atoms, shape[3])

    def _parsed(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
    ) -> tuple[Tensor, Codes, Atoms]:
        """Sinks and codes of every table, in the CPU's memory; their dictionaries, on a device."""
        layers, _, tokens, heads, dim = shape
        sinks = self.sink_tokens(place.first_token, tokens)
        exact, rest = ragged_codes.split_sinks(body, shape, sinks, dtype)
        found = self._set_for(dictionary, place, layers, dim)
        atoms = found.stack(place.first_layer, layers, device)
        codes = ragged_codes.read(rest, atoms.sizes, (tokens - sinks) * heads, self.sparsity)
        return exact, codes, atoms
