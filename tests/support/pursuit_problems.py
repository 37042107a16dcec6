"""Problems for the compiled pursuit kernel, and how its codes are compared."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.pursuit import compiled, naive
from lexico_codec.kernels.pursuit.codes import Codes

ISAS = library.supported() if library.available() else []
TIE = 2e-5  # of ||x||: float32 cannot tell scores that close apart
ERROR_RATIO = 1e-4  # on ||x - x̂|| over the float64 twin's, and of ||x|| where that is nothing


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set of this machine."""
    monkeypatch.setenv(library.ISA_VARIABLE, request.param)
    return str(request.param)


def problem(m: int, n: int, rows: int, seed: int, outliers: bool = False) -> tuple[Tensor, Tensor]:
    """Sums of twelve Laplace-weighted atoms plus noise; with outliers, a few loud channels."""
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(n, m, generator=generator)
    if outliers:
        atoms[:, ::17] *= 6
    atoms /= atoms.norm(dim=1, keepdim=True)
    picked = torch.randint(n, (rows, 12), generator=generator)
    weights = torch.randn(rows, 12, generator=generator).sign()
    weights *= torch.empty(rows, 12).exponential_(generator=generator)
    x = (weights[..., None] * atoms[picked]).sum(1)
    x += 0.1 * torch.randn(rows, m, generator=generator)
    if outliers:
        x[:, m // 2] *= 20
    return x, atoms


def encode(x: Tensor, atoms: Tensor, sparsity: int, tolerance: float | None = None) -> Codes:
    starts = (0, len(atoms))
    packed = compiled.pack(atoms, starts)
    return Codes(*compiled.omp(x[None], atoms, starts, packed, sparsity, tolerance))


def reconstruct(codes: Codes, atoms: Tensor) -> Tensor:
    starts = (0, len(atoms))
    return compiled.reconstruct(codes.indices, codes.coefficients, codes.counts, atoms, starts)[0]


def rows_of(codes: Codes, which: slice | Tensor) -> Codes:
    return Codes(codes.indices[which], codes.coefficients[which], codes.counts[which])


def equal(one: Codes, other: Codes) -> None:
    assert torch.equal(one.counts, other.counts)
    assert torch.equal(one.indices, other.indices)
    assert torch.equal(one.coefficients, other.coefficients)


def in_nan(tensor: Tensor) -> Tensor:
    """The same values with NaN on both sides, at an odd address."""
    wide = torch.full((tensor.numel() + 1001,), float("nan"))
    inside = wide[501 : 501 + tensor.numel()].view(tensor.shape)
    return inside.copy_(tensor)


def agrees(x: Tensor, atoms: Tensor, ours: Codes, tolerance: float | None = None) -> None:
    """Same picks as the float64 twin up to ties, and no worse an error."""
    x, atoms = x.double(), atoms.double()
    theirs = naive.omp(x, atoms, ours.indices.shape[1], tolerance)
    past = torch.arange(ours.indices.shape[1]) >= ours.counts[:, None]
    assert (ours.indices[past] == 0).all()
    assert (ours.coefficients[past] == 0).all()
    norms = x.norm(dim=1)
    rebuilt = naive.reconstruct(Codes(ours.indices, ours.coefficients.double(), ours.counts), atoms)
    error, best = (x - rebuilt).norm(dim=1), (x - naive.reconstruct(theirs, atoms)).norm(dim=1)
    for row in range(len(x)):
        k = min(int(ours.counts[row]), int(theirs.counts[row]))
        differ = (ours.indices[row, :k] != theirs.indices[row, :k]).nonzero()
        if len(differ):
            first = int(differ[0])
            assert _tied(x[row], atoms, ours.indices[row], theirs.indices[row], first), row
        elif ours.counts[row] == theirs.counts[row]:
            assert error[row] <= best[row] * (1 + ERROR_RATIO) + ERROR_RATIO * norms[row], row
        else:  # float32 stopped earlier or later: on rounding, on the guard or on the tolerance
            assert error[row] <= max(tolerance or 0, 2e-3) * 1.01 * norms[row], row


def _tied(x: Tensor, atoms: Tensor, ours: Tensor, theirs: Tensor, first: int) -> bool:
    """Whether the picks that differ at `first` score alike on the exact residual."""
    support = atoms[theirs[:first].long()].T
    residual = x - support @ torch.linalg.lstsq(support, x).solution if first else x
    scores = (atoms @ residual).abs()
    return bool((scores[ours[first]] - scores[theirs[first]]).abs() <= TIE * x.norm())
