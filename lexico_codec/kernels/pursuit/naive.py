"""Orthogonal matching pursuit in plain PyTorch: oracle of the kernels beside it.

It serves float64, devices without a kernel, and machines where none could be compiled.

The residual form: every step scores the residual against all atoms again and never holds a Gram
matrix. The mathematics and its sources are in README.md of this folder.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.atoms import MAX_ATOMS, UNIT_NORM_SLACK
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.limits import MAX_SPARSITY
from lexico_proto.errors import InvalidInput, NonFiniteCache, ShapeMismatch

"""Atoms a vector: a count fits one byte."""

_DEPENDENT: Final = {torch.float32: 1e-5, torch.float64: 1e-12}  # least ||q||² of a new direction
_CODED: Final = {
    torch.float32: 2e-6,
    torch.float64: 4e-15,
}  # relative residual that is rounding only
_FOLD: Final = 32
_SCORES_PER_CHUNK: Final = 1 << 20  # 4 MiB of float32 scores: they stay in the cache


def omp(vectors: Tensor, atoms: Tensor, sparsity: int, tolerance: float | None = None) -> Codes:
    """Batched orthogonal matching pursuit.

    A vector is done at `sparsity` atoms, or when `||r||² <= tolerance² ||x||²`, or when the best
    atom depends on those picked already. Zero vectors have no atoms. Scratch is bounded whatever B
    is, and equal input on the same machine gives equal output.

    Args:
        vectors: `[B, m]` float32 or float64.
        atoms: `[N, m]`, same dtype and device, rows of unit norm within fp16 rounding.
        sparsity: most atoms a vector, 1..min(m, N, 255).
        tolerance: relative error at which a vector is done, in [0, 1), or None.

    Raises:
        ShapeMismatch: a shape, dtype or device that does not fit.
        NonFiniteCache: NaN, infinity or a norm that overflows among the vectors.
        InvalidInput: sparsity, tolerance or atoms out of range.

    Source: Pati, Rezaiifar, Krishnaprasad 1993; the stop rule is Lexico's (arXiv 2412.08890).
    """
    _check(vectors, atoms, sparsity, tolerance)
    padding = atoms.new_zeros(-len(atoms) % _FOLD, atoms.shape[1])
    folded = torch.cat([atoms, padding])  # scores of padding are 0: never picked by a live vector
    rows = min(4096, max(64, _SCORES_PER_CHUNK // len(folded)))
    with torch.no_grad():
        parts = [
            _pursue(chunk, folded, sparsity, tolerance or 0.0)
            for chunk in torch.split(vectors, rows)
        ]
    indices, coefficients, counts = (torch.cat(column) for column in zip(*parts, strict=True))
    if not bool(coefficients.isfinite().all()):
        raise NonFiniteCache("vectors: a norm overflows")
    return Codes(indices, coefficients, counts)


def reconstruct(codes: Codes, atoms: Tensor) -> Tensor:
    """The vectors `[B, m]` that codes stand for: `x̂ = Σ coefficient · atom`.

    Raises:
        ShapeMismatch: codes and atoms whose shapes or dtypes do not fit.
        InvalidInput: an index outside the dictionary.
    """
    indices, coefficients = codes.indices, codes.coefficients
    if atoms.ndim != 2 or indices.ndim != 2 or indices.shape != coefficients.shape:
        raise ShapeMismatch("codes: indices and coefficients must be [B, s], atoms [N, m]")
    if coefficients.dtype != atoms.dtype:
        raise ShapeMismatch(f"coefficients: {coefficients.dtype}, atoms are {atoms.dtype}")
    if indices.numel() == 0:
        return atoms.new_zeros(len(indices), atoms.shape[1])
    low, high = torch.aminmax(indices)
    if int(low) < 0 or int(high) >= len(atoms):
        raise InvalidInput(f"indices: outside the dictionary's 0..{len(atoms) - 1}")
    return torch.nn.functional.embedding_bag(
        indices, atoms, per_sample_weights=coefficients, mode="sum"
    )


def _pursue(x: Tensor, atoms: Tensor, sparsity: int, tolerance: float) -> list[Tensor]:
    exponent = torch.frexp(x.abs().amax(1)).exponent.clamp(-126, 126)  # norms near 1, exactly
    residual = torch.ldexp(x, -exponent[:, None])  # [b, m]
    limit = max(tolerance, _CODED[x.dtype]) ** 2 * _dot(residual, residual)
    alive = _dot(residual, residual) > limit  # [b]; False for zero vectors
    counts = x.new_zeros(len(x), dtype=torch.int32)
    scores = x.new_empty(len(x), len(atoms))  # one buffer for all steps: fresh pages cost a third
    indices = x.new_zeros(len(x), sparsity, dtype=torch.int32)
    amplitudes = x.new_zeros(len(x), sparsity)  # x ≈ Σ amplitude · direction
    triangle = x.new_zeros(len(x), sparsity, sparsity)  # atom_k = Σ_i triangle[i, k] direction_i
    triangle.diagonal(dim1=1, dim2=2).fill_(1)
    directions: list[Tensor] = []
    for k in range(sparsity):
        if not bool(alive.any()):
            break
        best = _strongest(torch.mm(residual, atoms.T, out=scores).abs_())  # [b]
        direction = atoms[best]  # [b, m]
        for i, former in enumerate(directions):  # modified Gram-Schmidt
            overlap = _dot(former, direction)
            triangle[:, i, k] = overlap
            direction = torch.addcmul(direction, former, overlap[:, None], value=-1)
        square = _dot(direction, direction)
        alive = alive & (square > _DEPENDENT[x.dtype])
        counts += alive
        direction = direction * torch.where(alive, square.rsqrt(), 0)[:, None]  # 0 once done
        directions.append(direction)
        amplitude = _dot(direction, residual)
        residual = torch.addcmul(residual, direction, amplitude[:, None], value=-1)
        indices[:, k] = torch.where(alive, best, 0)
        amplitudes[:, k] = amplitude
        triangle[:, k, k] = torch.where(alive, square.sqrt(), 1)
        alive = alive & (_dot(residual, residual) > limit)
    coefficients = _back_substitute(triangle, amplitudes)
    return [indices, torch.ldexp(coefficients, exponent[:, None]), counts]


def _back_substitute(triangle: Tensor, amplitudes: Tensor) -> Tensor:
    coefficients = amplitudes.clone()
    for k in reversed(range(amplitudes.shape[1])):
        coefficients[:, k] /= triangle[:, k, k]
        coefficients[:, :k] -= triangle[:, :k, k] * coefficients[:, k, None]
    return coefficients


def _strongest(scores: Tensor) -> Tensor:
    """Column of each row's largest score; torch reduces a middle dimension ten times faster."""
    folded = scores.view(len(scores), _FOLD, -1)  # [b, 32, N / 32]
    column = folded.amax(1).argmax(1)  # [b]
    rivals = folded.gather(2, column[:, None, None].expand(-1, _FOLD, 1))[..., 0]  # [b, 32]
    return rivals.argmax(1) * folded.shape[2] + column


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(1)


def _check(vectors: Tensor, atoms: Tensor, sparsity: int, tolerance: float | None) -> None:
    if vectors.ndim != 2:
        raise ShapeMismatch(f"vectors: must be [B, m], not {list(vectors.shape)}")
    if atoms.ndim != 2 or atoms.shape[1] != vectors.shape[1]:
        raise ShapeMismatch(f"atoms: must be [N, {vectors.shape[1]}], not {list(atoms.shape)}")
    if vectors.dtype not in _DEPENDENT:
        raise ShapeMismatch(f"vectors: must be float32 or float64, not {vectors.dtype}")
    if atoms.dtype != vectors.dtype or atoms.device != vectors.device:
        raise ShapeMismatch("atoms: must have the dtype and device of vectors")
    if len(atoms) > MAX_ATOMS:
        raise InvalidInput(f"atoms: at most {MAX_ATOMS} atoms, not {len(atoms)}")
    most = min(MAX_SPARSITY, atoms.shape[1], len(atoms))
    if not 1 <= sparsity <= most:
        raise InvalidInput(f"sparsity: must be 1..{most} here, not {sparsity}")
    if tolerance is not None and not 0 <= tolerance < 1:
        raise InvalidInput(f"tolerance: must be in [0, 1), not {tolerance}")
    if not bool(vectors.isfinite().all()):
        raise NonFiniteCache("vectors: NaN or infinity")
    if not bool(((_dot(atoms, atoms) - 1).abs() <= UNIT_NORM_SLACK).all()):  # NaN fails too
        raise InvalidInput("atoms: every row must be finite and of unit norm")
