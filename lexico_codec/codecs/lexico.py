"""lexico: the paper's code (arXiv 2412.08890).

Per layer one universal dictionary for keys and one for values; each vector becomes at most s atoms
found by Orthogonal Matching Pursuit, stored as int16 indices and FP8 E4M3 coefficients: 3 s + 2
bytes a vector. The two are the number of atoms and the power of two that keeps outliers from
saturating, in place of the paper's row offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.codecs.abc import (
    SINK_TOKENS,
    Codec,
    GroupCodes,
    Place,
    leading_sinks,
    target_over,
)
from lexico_codec.dictionary import DictionarySet
from lexico_codec.geometry import Geometry
from lexico_codec.kernels import Codes, encode, reconstruct_into
from lexico_codec.quantise import LEAST_EXPONENT
from lexico_codec.tensors import bytes_of, tensor_from
from lexico_proto.errors import (
    ConfigurationError,
    DamagedFrame,
    InternalError,
)

__all__ = ["SINK_TOKENS", "LexicoCodec"]


@dataclass(frozen=True)
class LexicoCodec(Codec):
    """Body: sinks, then counts, exponents, indices and coefficients, each for all vectors of the
    group.
    """

    name: ClassVar[str] = "lexico"
    codec_id: ClassVar[int] = 2
    needs_dictionary: ClassVar[bool] = True
    has_codes: ClassVar[bool] = True

    sparsity: int = 8
    """Most atoms a vector (s)."""
    tolerance: float | None = None
    """Stop at this relative error (delta), or None to always use s atoms."""

    def __post_init__(self) -> None:
        whole = isinstance(self.sparsity, int) and not isinstance(self.sparsity, bool)
        if not whole or not 1 <= self.sparsity <= 255:
            raise ConfigurationError(f"lexico: sparsity={self.sparsity!r} is no integer in 1..255")
        if self.tolerance is not None and not (
            isinstance(self.tolerance, int | float) and 0 < self.tolerance < 1
        ):
            raise ConfigurationError(f"lexico: tolerance={self.tolerance!r} is not in (0, 1)")

    def check_geometry(self, geometry: Geometry) -> None:
        """More atoms than components are never needed, and are refused."""
        if self.sparsity > geometry.head_dim:
            raise ConfigurationError(
                f"lexico: sparsity={self.sparsity} is over the model's head_dim {geometry.head_dim}"
            )

    def sink_tokens(self, first_token: int, tokens: int) -> int:
        """Those of the first four tokens of the sequence that lie in the page."""
        return leading_sinks(first_token, tokens)

    def encoded_bytes(self, geometry: Geometry, tokens: int) -> int:
        """3 s + 2 bytes a vector."""
        return tokens * 2 * geometry.kv_heads * (3 * self.sparsity + 2)

    def encode(self, group: Tensor, place: Place, dictionary: DictionarySet | None) -> bytes:
        """Codes every vector of the group but the sinks', all dictionaries in one launch."""
        layers, _, tokens, _, dim = group.shape
        atoms = self._stack_for(dictionary, place, layers, dim, group.device)
        sinks = self.sink_tokens(place.first_token, tokens)
        vectors = group.flatten(0, 1)[:, sinks:]  # [2 * layers, tokens, heads, dim]
        codes = encode(vectors, atoms, self.sparsity, self.tolerance, quantised=True)
        indices, coefficients = codes.indices, codes.coefficients
        if not bool((codes.counts == self.sparsity).all()):
            used = torch.arange(self.sparsity, device=group.device) < codes.counts[:, None]
            indices, coefficients = indices[used], coefficients[used]
        exponents = codes.exponents
        if exponents is None:  # cannot be: the type is shared with plain codes
            raise InternalError("quantised codes without exponents")
        sections = (group[:, :, :sinks], codes.counts, exponents, indices, coefficients)
        return b"".join(bytes_of(section) for section in sections)

    def decode(
        self, body: memoryview, place: Place, dictionary: DictionarySet | None, out: Tensor
    ) -> None:
        """Reconstructs the group into `out`: sinks exact, the rest as sums of atoms."""
        coded = self.read(body, place, dictionary, tuple(out.shape), out.dtype, out.device)
        sinks = coded.sinks.shape[2]
        target = target_over(out, sinks)
        with torch.no_grad():
            out[:, :, :sinks].copy_(coded.sinks)
        # A sum of atoms may pass the largest float16: the target keeps it from becoming infinity.
        reconstruct_into(coded.codes, coded.atoms, target)

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
        layers, _, tokens, heads, dim = shape
        sinks = self.sink_tokens(place.first_token, tokens)
        exact_bytes = 2 * layers * sinks * heads * dim * dtype.itemsize
        if len(body) < exact_bytes:
            raise DamagedFrame(f"lexico body of {len(body)} bytes: sinks alone are {exact_bytes}")
        exact = tensor_from(body[:exact_bytes], dtype, (layers, 2, sinks, heads, dim))
        atoms = self._stack_for(dictionary, place, layers, dim, device)
        rows = (tokens - sinks) * heads
        codes = _parse(body[exact_bytes:], atoms.sizes, rows, self.sparsity)
        return GroupCodes(exact.to(device), codes.to(device), atoms, heads)


def _parse(body: memoryview, sizes: Sequence[int], rows: int, sparsity: int) -> Codes:
    """Codes of every table's vectors, every length checked before it is used.

    Args:
        body: what follows the sinks.
        sizes: atoms in the dictionary of each table.
        rows: vectors a table.
        sparsity: most atoms a vector.

    Returns:
        Quantised codes of `tables * rows` vectors, in the CPU's memory.
    """
    vectors = len(sizes) * rows
    nonzeros, rest = divmod(len(body) - 2 * vectors, 3)
    if nonzeros < 0 or rest:
        raise DamagedFrame(f"lexico body of {len(body)} bytes does not hold {vectors} vectors")
    counts = np.frombuffer(body, np.uint8, vectors)
    if int(counts.sum(dtype=np.int64)) != nonzeros or int(counts.max(initial=0)) > sparsity:
        raise DamagedFrame("lexico counts do not add up to the codes that follow")
    exponents = np.frombuffer(body, np.int8, vectors, offset=vectors)
    indices = np.frombuffer(body, "<i2", nonzeros, offset=2 * vectors)
    coefficients = np.frombuffer(body, np.uint8, nonzeros, offset=2 * vectors + 2 * nonzeros)
    if int(indices.min(initial=0)) < 0 or bool(((coefficients & 0x7F) == 0x7F).any()):
        raise DamagedFrame("lexico code with a negative index or a coefficient that is no number")
    if int(exponents.min(initial=0)) < LEAST_EXPONENT:
        raise DamagedFrame("lexico exponent that no float32 has")
    index, fp8 = _padded(counts, indices, coefficients)
    by_table = index.reshape(len(sizes), -1)
    if bool((by_table.max(axis=1, initial=0) >= np.array(sizes)).any()):
        raise DamagedFrame("lexico index beyond a dictionary")
    return Codes(
        indices=torch.from_numpy(index),
        coefficients=torch.from_numpy(fp8),
        counts=torch.tensor(counts),
        exponents=torch.tensor(exponents),
    )


def _padded(
    counts: npt.NDArray[np.uint8],
    indices: npt.NDArray[np.int16],
    coefficients: npt.NDArray[np.uint8],
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """Ragged codes as rectangles `[vectors, width]`, zeros after a row's last atom."""
    rows, width = len(counts), int(counts.max(initial=0))
    if rows * width == len(indices):  # every row full: the usual case at fixed s
        return indices.reshape(rows, width).copy(), coefficients.reshape(rows, width).copy()
    used = np.arange(width) < counts[:, None]
    index, fp8 = np.zeros((rows, width), np.int16), np.zeros((rows, width), np.uint8)
    index[used], fp8[used] = indices, coefficients
    return index, fp8
