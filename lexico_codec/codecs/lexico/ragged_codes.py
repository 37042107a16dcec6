"""Sparse codes as codec lexico lays them out: docs/format.md, lexico, id 2.

Counts, exponents, indices and coefficients, each for all vectors. Every length is checked before it
is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.quantise import LEAST_EXPONENT
from lexico_codec.tensors import bytes_of, tensor_from
from lexico_proto.errors import DamagedFrame, InternalError


def write(codes: Codes) -> bytes:
    """The sections of quantised codes.

    Args:
        codes: of any width; what lies past a count is left out.
    """
    indices, coefficients, exponents = codes.indices, codes.coefficients, codes.exponents
    if exponents is None:  # cannot be: the type is shared with plain codes
        raise InternalError("quantised codes without exponents")
    width = indices.shape[1]
    if not bool((codes.counts == width).all()):
        used = torch.arange(width, device=indices.device) < codes.counts[:, None]
        indices, coefficients = indices[used], coefficients[used]
    sections = (codes.counts, exponents, indices, coefficients)
    return b"".join(bytes_of(section) for section in sections)


def read(body: memoryview, sizes: Sequence[int], rows: int, sparsity: int) -> Codes:
    """Codes of every table's vectors.

    Args:
        body: the sections, which nothing follows.
        sizes: atoms in the dictionary of each table.
        rows: vectors a table.
        sparsity: most atoms a vector.

    Returns:
        Quantised codes of `tables * rows` vectors, in the CPU's memory.

    Raises:
        DamagedFrame: sections that no encoder writes for these sizes.
    """
    vectors = len(sizes) * rows
    nonzeros, rest = divmod(len(body) - 2 * vectors, 3)
    if nonzeros < 0 or rest:
        raise DamagedFrame(f"codes of {len(body)} bytes do not hold {vectors} vectors")
    counts = np.frombuffer(body, np.uint8, vectors)
    if int(counts.sum(dtype=np.int64)) != nonzeros or int(counts.max(initial=0)) > sparsity:
        raise DamagedFrame("counts do not add up to the codes that follow")
    exponents = np.frombuffer(body, np.int8, vectors, offset=vectors)
    indices = np.frombuffer(body, "<i2", nonzeros, offset=2 * vectors)
    coefficients = np.frombuffer(body, np.uint8, nonzeros, offset=2 * vectors + 2 * nonzeros)
    if int(indices.min(initial=0)) < 0 or bool(((coefficients & 0x7F) == 0x7F).any()):
        raise DamagedFrame("code with a negative index or a coefficient that is no number")
    if int(exponents.min(initial=0)) < LEAST_EXPONENT:
        raise DamagedFrame("exponent that no float32 has")
    index, fp8 = _padded(counts, indices, coefficients)
    by_table = index.reshape(len(sizes), -1)
    if bool((by_table.max(axis=1, initial=0) >= np.array(sizes)).any()):
        raise DamagedFrame("index beyond a dictionary")
    return Codes(
        indices=torch.from_numpy(index),
        coefficients=torch.from_numpy(fp8),
        counts=torch.tensor(counts),
        exponents=torch.tensor(exponents),
    )


def split_sinks(
    body: memoryview, shape: tuple[int, ...], sinks: int, dtype: torch.dtype
) -> tuple[Tensor, memoryview]:
    """The exact first tokens of a group, and what follows them.

    Args:
        body: of a frame.
        shape: `(layers, 2, tokens, kv_heads, head_dim)` of the group.
        sinks: tokens that are exact.
        dtype: their element type.

    Returns:
        `[layers, 2, sinks, kv_heads, head_dim]` over the body, read-only by convention; the rest.

    Raises:
        DamagedFrame: the body is too short.
    """
    layers, _, _, heads, dim = shape
    size = 2 * layers * sinks * heads * dim * dtype.itemsize
    if len(body) < size:
        raise DamagedFrame(f"body of {len(body)} bytes: sinks alone are {size}")
    return tensor_from(body[:size], dtype, (layers, 2, sinks, heads, dim)), body[size:]


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
