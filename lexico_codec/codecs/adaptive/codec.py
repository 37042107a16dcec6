"""lexico-adaptive: the paper's code (arXiv 2412.08890) with atoms that the context adds.

A frame learns a few atoms for each of its dictionaries from the vectors that the set codes worst,
and stores them in front of its codes. Nothing outlives the frame: pages stay independent. Keys of
one text under other positions differ by RoPE, so few keys share an atom; values of repeated tokens
do, in the first layers to the bit.

`has_codes` is False: a cache of codes attends over one dictionary a table, and here every page
would bring its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lexico_codec.codecs.adaptive import added_atoms
from lexico_codec.codecs.adaptive.adaptation import Adaptation
from lexico_codec.codecs.codec import Place, tables_of
from lexico_codec.codecs.lexico import ragged_codes
from lexico_codec.codecs.parameters import check_tolerance, check_whole
from lexico_codec.codecs.sparse import SparseCodec, write_sums
from lexico_codec.geometry import Geometry
from lexico_codec.limits import MAX_SPARSITY
from lexico_codec.memory import CacheMemory
from lexico_codec.sets.dictionary import DictionarySet
from lexico_codec.tensors import bytes_of


@dataclass(frozen=True)
class AdaptiveCodec(SparseCodec):
    """Body: sinks, how many atoms each table adds, those atoms, then the sections of lexico; an
    index behind the set's atoms means an added one.
    """

    name: ClassVar[str] = "lexico-adaptive"
    codec_id: ClassVar[int] = 6
    set_of: ClassVar[str] = "lexico"

    tolerance: float | None = 0.2
    """A vector is done at this relative error (delta), and atoms are added for those that miss it;
    None always uses s atoms, and adds atoms for those whose error is largest."""
    added: int = 64
    """Most atoms that each layer's keys, and its values, add in a frame."""
    bits: int = 4
    """Of a component of an added atom."""

    def __post_init__(self) -> None:
        check_whole(self.name, "sparsity", self.sparsity, 1, MAX_SPARSITY)
        check_tolerance(self.name, self.tolerance)
        check_whole(self.name, "added", self.added, 1, added_atoms.MOST_ADDED)
        check_whole(self.name, "bits", self.bits, added_atoms.LEAST_BITS, added_atoms.MOST_BITS)

    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """3 s + 2 bytes a vector, and all the atoms that may be added."""
        vectors = tokens * geometry.kv_heads
        added = min(self.added, vectors) * geometry.head_dim * self.bits // 8
        return 2 * (vectors * (3 * self.sparsity + 2) + added + 2)

    def _encode(self, source: CacheMemory, place: Place, dictionary: DictionarySet | None) -> bytes:
        """Codes every vector of the group but the sinks', once more with the atoms it adds."""
        group = source.read()
        layers, _, tokens, _, dim = group.shape
        found = self._set_for(dictionary, place, layers, dim)
        atoms = found.stack(place.first_layer, layers, group.device)
        sinks = self.sink_tokens(place.first_token, tokens)
        vectors = group.flatten(0, 1)[:, sinks:]  # [2 * layers, tokens, heads, dim]
        codes, levels = Adaptation(
            vectors, atoms, self.sparsity, self.tolerance, most=self.added, bits=self.bits
        ).find()
        sections = (
            bytes_of(group[:, :, :sinks]),
            added_atoms.write([rows.cpu() for rows in levels], self.bits),
            ragged_codes.write(codes),
        )
        return b"".join(sections)

    def _decode(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        target: CacheMemory,
        shape: tuple[int, ...],
    ) -> None:
        """Reconstructs what is wanted: sinks exact, the rest as sums of atoms."""
        layers, _, tokens, heads, dim = shape
        sinks = self.sink_tokens(place.first_token, tokens)
        exact, rest = ragged_codes.split_sinks(body, shape, sinks, target.dtype)
        found = self._set_for(dictionary, place, layers, dim)
        atoms = found.stack(place.first_layer, layers, target.device)
        wanted = tables_of(target.layers)
        counts, added, rest = added_atoms.read(
            rest, atoms.tables, dim, self.bits, self.added, wanted
        )
        sizes = [size + count for size, count in zip(atoms.sizes, counts, strict=True)]
        codes = ragged_codes.read(rest, sizes, (tokens - sinks) * heads, self.sparsity)
        rows = torch.split(added.to(target.device), counts[wanted.start : wanted.stop])
        own = atoms.narrow(wanted.start, len(wanted))
        write_sums(
            target,
            exact[target.layers.start : target.layers.stop],
            codes.part(wanted, target.heads, (2 * layers, tokens - sinks, heads)),
            added_atoms.joined_for_now(own, rows, self.added),
        )
