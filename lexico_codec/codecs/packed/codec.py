"""lexico-packed: the same sparse codes, made small.

Keys are coded before RoPE, and per-head means are removed first (`lexico train --codec
lexico-packed`), which lowers the error of equally many atoms. The order of a vector's atoms means
nothing, so it is not stored: a set of n atoms is its rank among all sets, within a bit or two of
log2 C(N, n). Coefficients take a few bits each under one scale a vector. Where the set says how
much each table gains by atoms, the atoms go where they help most.

Attention over codes would need the means and the rotation in `CodedLayer`, so `has_codes` is False.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from lexico_codec.codecs.codec import Place, tables_of
from lexico_codec.codecs.packed.coefficients import LEAST_BITS, MOST_BITS, quantise
from lexico_codec.codecs.packed.packed_codes import (
    MOST_ATOMS,
    TABLE_BYTES,
    read,
    rows_of,
    write,
)
from lexico_codec.codecs.packed.subsets import subset_code
from lexico_codec.codecs.parameters import check_tolerance, check_whole
from lexico_codec.codecs.sparse import SparseCodec, write_sums
from lexico_codec.geometry import Geometry
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode
from lexico_codec.kernels.pursuit.preparation import Preparation
from lexico_codec.memory import CacheMemory
from lexico_codec.sets.dictionary import AtomSet, DictionarySet
from lexico_codec.tensors import bytes_of, tensor_from
from lexico_proto.errors import DamagedFrame, DictionaryMismatch

_TYPICAL_ATOMS: Final = 1024  # for estimates: the codec does not know the set


@dataclass(frozen=True)
class PackedCodec(SparseCodec):
    """Body: sinks, what each table's counts and scales are relative to, then five runs of bits:
    counts, scales, ranks, low bits of indices, coefficients.
    """

    name: ClassVar[str] = "lexico-packed"
    codec_id: ClassVar[int] = 3

    sparsity: int = 8
    """Mean of the most atoms a vector (s), over layers and over keys and values."""
    tolerance: float | None = None
    """Stop at this relative error (delta) of the vector without its mean, or None to always use
    all."""
    bits: int = 4
    """Least bits of a coefficient, its sign among them; where more pay, a table takes up to 8."""

    def __post_init__(self) -> None:
        check_whole(self.name, "sparsity", self.sparsity, 1, MOST_ATOMS)
        check_whole(self.name, "bits", self.bits, LEAST_BITS, MOST_BITS)
        check_tolerance(self.name, self.tolerance)

    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """Of 1024 atoms a dictionary, with scales of a byte; with a tolerance the most."""
        code = subset_code(_TYPICAL_ATOMS, self.sparsity)
        vector = code.bits(self.sparsity) + self.bits * self.sparsity + 8
        counts = 0 if self.tolerance is None else self.sparsity.bit_length()
        return 2 * TABLE_BYTES + 8 + tokens * 2 * geometry.kv_heads * (vector + counts) // 8

    def _encode(self, source: CacheMemory, place: Place, dictionary: DictionarySet | None) -> bytes:
        """Codes every vector of the group but the sinks', then looks for the best coefficients."""
        atoms, limits, preparation = self._parts(dictionary, place, source.shape, source.device)
        group = source.read()
        sinks = self.sink_tokens(place.first_token, group.shape[2])
        prepared = preparation.apply(group.flatten(0, 1)[:, sinks:])
        codes = _pursue(prepared.flatten(1, 2), atoms, limits, self.tolerance)
        squares = prepared.square().sum(-1).flatten()
        chosen = quantise(codes, atoms, squares, self.bits)
        return b"".join([bytes_of(group[:, :, :sinks]), write(chosen, atoms.sizes)])

    def _decode(
        self,
        body: memoryview,
        place: Place,
        dictionary: DictionarySet | None,
        target: CacheMemory,
        shape: tuple[int, ...],
    ) -> None:
        """Reconstructs what is wanted: sinks exact, the rest as sums of atoms, turned."""
        layers, _, tokens, heads, dim = shape
        atoms, limits, preparation = self._parts(dictionary, place, shape, target.device)
        sinks = self.sink_tokens(place.first_token, tokens)
        exact_bytes = 2 * layers * sinks * heads * dim * target.dtype.itemsize
        if len(body) < exact_bytes:
            raise DamagedFrame(f"packed body of {len(body)} bytes: sinks alone are {exact_bytes}")
        exact = tensor_from(body[:exact_bytes], target.dtype, (layers, 2, sinks, heads, dim))
        tables, own_heads = tables_of(target.layers), target.heads
        wanted = rows_of(tables, own_heads, (2 * layers, tokens - sinks, heads))
        codes = read(body[exact_bytes:], atoms.sizes, limits, (tokens - sinks) * heads, wanted)
        write_sums(
            target,
            exact[target.layers.start : target.layers.stop],
            codes,
            atoms.narrow(tables.start, len(tables)),
            preparation.part(tables, own_heads),
        )

    def _parts(
        self,
        dictionary: DictionarySet | None,
        place: Place,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> tuple[Atoms, tuple[int, ...], Preparation]:
        """Dictionaries, most atoms and preparation of a group's tables."""
        layers, _, tokens, heads, dim = shape
        found = self._set_for(dictionary, place, layers, dim)
        atoms = found.stack(place.first_layer, layers, device)
        means = found.means(place.first_layer, layers, device)
        end = place.first_head + heads
        if end > means.shape[1]:
            raise DictionaryMismatch(
                f"a dictionary set of {means.shape[1]} KV heads for heads up to {end}"
            )
        tables = range(2 * place.first_layer, 2 * (place.first_layer + layers))
        whole = found.stack(0, found.layers)
        limits = whole.form(
            ("allocation", self.sparsity), lambda: _allocation(found, self.sparsity)
        )
        preparation = Preparation(
            rope=place.rope,
            turned=(True, False) * layers if place.rope is not None else (),
            first_position=place.first_token + self.sink_tokens(place.first_token, tokens),
            mean=means[:, place.first_head : end],
        )
        return atoms, tuple(limits[table] for table in tables), preparation


def _allocation(dictionary: AtomSet, sparsity: int) -> tuple[int, ...]:
    """Most atoms of every table, keys' before values' in each layer; see `allocate`."""
    sizes = dictionary.stack(0, dictionary.layers).sizes
    caps = [min(size, dictionary.head_dim, MOST_ATOMS) for size in sizes]
    errors = dictionary.errors
    curves = None if errors is None else errors.flatten(0, 1).double().tolist()
    return allocate(curves, caps, sparsity)


def allocate(
    curves: Sequence[Sequence[float]] | None, caps: Sequence[int], sparsity: int
) -> tuple[int, ...]:
    """How many atoms each table gets, `sparsity` on average.

    Atoms go one by one to the table whose error falls most by its next one, the first of equals.
    Nothing but comparisons and differences of doubles is involved: every machine finds the same.

    Args:
        curves: for each table what is left after 0, 1, … atoms; None gives all tables the same.
        caps: most atoms of each table.
        sparsity: mean atoms a table.

    Returns:
        Atoms of each table; fewer than asked for in all where caps and curves end before.
    """
    if curves is None:
        return tuple(min(sparsity, cap) for cap in caps)
    given = [0] * len(caps)
    caps = [min(cap, len(curve) - 1) for cap, curve in zip(caps, curves, strict=True)]
    queue = [(curve[1] - curve[0], table) for table, curve in enumerate(curves) if caps[table]]
    heapq.heapify(queue)
    for _ in range(sparsity * len(caps)):
        if not queue:
            break
        _, table = heapq.heappop(queue)
        given[table] += 1
        at, curve = given[table], curves[table]
        if at < caps[table]:
            heapq.heappush(queue, (curve[at + 1] - curve[at], table))
    return tuple(given)


def _pursue(vectors: Tensor, atoms: Atoms, limits: Sequence[int], tolerance: float | None) -> Codes:
    """Plain codes of `[tables, rows, m]`, tables with equal limits side by side in one launch."""
    tables, rows, _ = vectors.shape
    width = max(limits)
    indices = vectors.new_zeros(tables, rows, width, dtype=torch.int32)
    coefficients = vectors.new_zeros(tables, rows, width)
    counts = vectors.new_zeros(tables, rows, dtype=torch.int32)
    first = 0
    while first < tables:
        limit, end = limits[first], first + 1
        while end < tables and limits[end] == limit:
            end += 1
        if limit and rows:
            some = encode(vectors[first:end], atoms.narrow(first, end - first), limit, tolerance)
            indices[first:end, :, :limit] = some.indices.view(-1, rows, limit)
            coefficients[first:end, :, :limit] = some.coefficients.view(-1, rows, limit)
            counts[first:end] = some.counts.view(-1, rows)
        first = end
    return Codes(indices.flatten(0, 1), coefficients.flatten(0, 1), counts.flatten())
