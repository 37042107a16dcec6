"""Learning of one dictionary: minibatch OMP and online coordinate descent on its statistics.

Every minibatch is coded with the current atoms; the sums `A = Σ w c cᵀ` and `B = Σ w x cᵀ` are kept
with slowly growing memory, and each atom in turn moves to the minimum of the quadratic that they
define (Mairal, Bach, Ponce, Sapiro: Online Learning for Matrix Factorization and Sparse Coding,
JMLR 2010, algorithm 2). Far fewer vectors are needed than with gradient steps, because every update
is a least-squares fit to all recent codes. Codes are rounded as a frame rounds them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode, reconstruct
from lexico_codec.sets.atom_tensors import unit_rows
from lexico_lab.training.rounding import Rounding, as_lexico
from lexico_proto.errors import InvalidInput, NonFiniteCache, ShapeMismatch

_LOG = logging.getLogger(__name__)
_MEMORY_EXPONENT: Final = 3.0  # statistics of batch i weigh about (i / t)^3 at batch t
_QUIET_FROM: Final = 0.9  # no revival in the last tenth: a fresh atom needs a few updates
_DEAD_SHARE: Final = 0.02  # of the mean use; an atom used less is replaced
_CURVE_VECTORS: Final = 4096  # enough for a mean within a percent or two
_CURVE_ATOMS: Final = 64


@dataclass(frozen=True, slots=True)
class LearnSettings:
    """How one dictionary is learned."""

    atoms: int = 1024
    """N."""
    sparsity: int = 8
    """Atoms a vector, s."""
    vectors: int = 500_000
    """Vectors coded in all; a vector can be met several times."""
    batch: int = 16384
    """Vectors a minibatch."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.sparsity <= min(self.atoms, 255):
            raise InvalidInput(f"sparsity: must be 1..{min(self.atoms, 255)}, not {self.sparsity}")
        if self.vectors < 1 or self.batch < 1:
            raise InvalidInput("vectors and batch: must be positive")


@dataclass(frozen=True, slots=True)
class Learned:
    """One trained dictionary."""

    atoms: Tensor
    """`[N, m]` float16, unit norm within rounding; or int8, see `unit_rows`."""
    relative_error: float
    """Mean of `||x - x̂|| / ||x||` over the held-out vectors."""
    energy_error: float
    """`sqrt(Σ ||x - x̂||² / Σ ||x||²)` over the held-out vectors."""
    revived: int
    """Dead atoms replaced on the way."""
    seconds: float
    """Wall time."""
    mean: Tensor | None = None
    """`[kv_heads, m]` float16, removed from the vectors before; None where none was."""
    errors: Tensor | None = None
    """`[S + 1]` float32, see `error_curve`, over the held-out vectors; None where not measured."""


def learn(
    train: Tensor,
    held_out: Tensor,
    settings: LearnSettings,
    weights: Tensor | None = None,
    packed: bool = False,
    device: str = "cpu",
    rounding: Rounding = as_lexico,
) -> Learned:
    """Learns a dictionary from `train` and measures it on `held_out`.

    Equal arguments give equal atoms on the same machine at the same thread count.

    Args:
        train: `[n, m]` float16 or float32, at least one vector an atom that is not zero.
        held_out: `[h, m]`, not part of `train`, h >= 1.
        weights: `[n]`, how much the error of each vector counts, or None for all alike.
        packed: for codec lexico-packed: atoms as int8, and what is left after each number of atoms.
        device: where it computes; vectors go there as they are. What is learned is on the CPU.
        rounding: what storing makes of the codes.

    Raises:
        InvalidInput: too few vectors, or sparsity over m.
        ShapeMismatch, NonFiniteCache: vectors that cannot be learned from.
    """
    start = time.monotonic()
    _check(train, held_out, settings)
    if weights is not None and weights.shape != train.shape[:1]:
        raise ShapeMismatch(f"weights: must be [{len(train)}], not {list(weights.shape)}")
    generator = torch.Generator(device="cpu").manual_seed(settings.seed)  # equal picks anywhere
    train, held_out = train.to(device), held_out.to(device)
    weights = weights.to(device) if weights is not None else None
    atoms = _seed_atoms(train, settings.atoms, generator)
    size, m = atoms.shape
    gram, cross = atoms.new_zeros(size, size), atoms.new_zeros(size, m)  # A [N, N], Bᵀ [N, m]
    use = atoms.new_zeros(size)
    batch = min(settings.batch, len(train))
    steps = max(1, -(-settings.vectors // batch))
    revived = 0
    order = torch.empty(0, dtype=torch.int64, device="cpu")
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = torch.randperm(len(train), generator=generator, device="cpu")
        picked, order = order[:batch].to(device), order[batch:]
        x = train[picked].float()
        codes = rounding(encode(x, atoms, settings.sparsity), x, atoms)
        keep = (1 - 1 / step) ** _MEMORY_EXPONENT
        gram *= keep
        cross *= keep
        use *= keep
        weight = weights[picked] if weights is not None else None
        add = _accumulate if x.device.type == "cpu" else _accumulate_dense
        add(gram, cross, use, x, codes, weight)
        _descend(atoms, gram, cross)
        if step < _QUIET_FROM * steps:
            error = (x - reconstruct(codes, atoms)).square().sum(1)
            revived += _revive(atoms, gram, cross, use, x, error)
    shipped = _as_int8(atoms) if packed else atoms.half()
    relative, energy = held_out_errors(shipped, held_out, settings.sparsity)
    curve = error_curve(shipped, held_out) if packed else None
    shipped, curve = shipped.cpu(), curve.cpu() if curve is not None else None
    seconds = time.monotonic() - start
    _LOG.info("steps=%d revived=%d relative_error=%.4f", steps, revived, relative)
    return Learned(shipped, relative, energy, revived, seconds, errors=curve)


def held_out_errors(atoms: Tensor, vectors: Tensor, sparsity: int) -> tuple[float, float]:
    """Mean relative and energy-weighted error of coding `[h, m]` vectors, zero vectors left out."""
    x = vectors.float()
    wide = unit_rows(atoms)
    error = (x - reconstruct(encode(x, wide, sparsity), wide)).norm(dim=1)
    norm = x.norm(dim=1)
    some = norm > 0
    if not bool(some.any()):
        return 0.0, 0.0
    relative = (error[some] / norm[some]).double().mean()
    energy = (error.double().square().sum() / norm.double().square().sum()).sqrt()
    return float(relative), float(energy)


def error_curve(atoms: Tensor, vectors: Tensor, most: int = _CURVE_ATOMS) -> Tensor:
    """Mean squared error a component after s = 0..S atoms, float32 `[S + 1]`; it never grows.

    Pursuit with S atoms passes through every smaller number, and the projection on the first s
    atoms is that on the first s columns of Q.

    Args:
        atoms: `[N, m]`, as stored.
        vectors: `[h, m]`, h >= 1; at most 4096 of them are looked at, evenly spaced.
        most: S, or less where N or m is.
    """
    x = vectors[:: -(-len(vectors) // _CURVE_VECTORS)].float()
    wide = unit_rows(atoms)
    most = min(most, *wide.shape)
    left = torch.zeros(most + 1, dtype=torch.float64, device=x.device)
    for some in torch.split(x, 512):
        codes = encode(some, wide, most)
        used = torch.arange(most, device=x.device) < codes.counts[:, None]
        picked = torch.where(used[..., None], wide[codes.indices.long()], 0).double()  # [b, S, m]
        directions = torch.linalg.qr(picked.transpose(1, 2)).Q  # [b, m, S]
        along = (directions.transpose(1, 2) @ some.double()[:, :, None])[..., 0]
        taken = torch.where(used, along.square(), 0).sum(0).cumsum(0)
        left += some.double().square().sum() - torch.cat([taken.new_zeros(1), taken])
    return (left.clamp_min(0) / x.numel()).float().cummin(0).values


def _as_int8(atoms: Tensor) -> Tensor:
    """Directions of unit rows with the largest component at 127."""
    return (atoms * (127 / atoms.abs().amax(1, keepdim=True))).round().to(torch.int8)


def _seed_atoms(train: Tensor, size: int, generator: torch.Generator) -> Tensor:
    order = torch.randperm(len(train), generator=generator, device="cpu")
    pool = train[order[: 4 * size].to(train.device)].float()
    pool = pool[pool.norm(dim=1) > 0]
    if len(pool) < size:
        raise InvalidInput(f"train: {size} atoms need as many vectors that are not zero")
    return torch.nn.functional.normalize(pool[:size], dim=1)


def _accumulate(
    gram: Tensor, cross: Tensor, use: Tensor, x: Tensor, codes: Codes, weight: Tensor | None
) -> None:
    size, (_, sparsity) = len(gram), codes.indices.shape
    indices, coefficients = codes.indices.long(), codes.coefficients
    scaled = coefficients if weight is None else coefficients * weight[:, None]
    pairs = indices[:, :, None] * size + indices[:, None, :]  # [b, s, s]
    products = coefficients[:, :, None] * scaled[:, None, :]
    gram.view(-1).index_add_(0, pairs.flatten(), products.flatten())
    for k in range(sparsity):
        cross.index_add_(0, indices[:, k], x * scaled[:, k, None])
    use.index_add_(0, indices.flatten(), (coefficients.flatten() != 0).float())


def _accumulate_dense(
    gram: Tensor, cross: Tensor, use: Tensor, x: Tensor, codes: Codes, weight: Tensor | None
) -> None:
    """The same by products of matrices, for GPUs: there sums of scattered numbers, which threads
    add in any order, would differ from run to run.
    """
    indices, coefficients = codes.indices.long(), codes.coefficients
    dense = x.new_zeros(len(x), len(gram)).scatter_add_(1, indices, coefficients)  # unused ones: 0
    scaled = dense if weight is None else dense * weight[:, None]
    gram.addmm_(dense.T, scaled)
    cross.addmm_(scaled.T, x)
    use += (dense != 0).sum(0)


def _descend(atoms: Tensor, gram: Tensor, cross: Tensor) -> None:
    """One sweep of block coordinate descent in place; unused atoms stay."""
    energy = gram.diagonal()
    for j in energy.nonzero()[:, 0].tolist():
        moved = atoms[j] + (cross[j] - gram[j] @ atoms) / energy[j]
        norm = moved.norm()
        if norm > 1e-6:
            atoms[j] = moved / norm


def _revive(
    atoms: Tensor, gram: Tensor, cross: Tensor, use: Tensor, x: Tensor, error: Tensor
) -> int:
    """Replaces atoms that hardly any vector uses by the vectors coded worst."""
    dead = (use < _DEAD_SHARE * use.mean()).nonzero()[:, 0]
    dead = dead[: len(x)]
    worst = error.topk(len(dead)).indices
    worst = worst[error[worst] > 0]
    dead = dead[: len(worst)]
    atoms[dead] = torch.nn.functional.normalize(x[worst], dim=1)
    gram[dead] = 0
    gram[:, dead] = 0
    cross[dead] = 0
    use[dead] = use.mean()  # a life of a few batches before it is judged
    return len(dead)


def _check(train: Tensor, held_out: Tensor, settings: LearnSettings) -> None:
    for name, vectors in (("train", train), ("held_out", held_out)):
        if vectors.ndim != 2 or vectors.shape[1] != train.shape[-1] or not len(vectors):
            raise ShapeMismatch(f"{name}: must be [n, m] with n >= 1, not {list(vectors.shape)}")
        if not bool(vectors.isfinite().all()):
            raise NonFiniteCache(f"{name}: NaN or infinity")
    if settings.sparsity > train.shape[1]:
        raise InvalidInput(f"sparsity: at most m = {train.shape[1]}, not {settings.sparsity}")
    if len(train) < settings.atoms:
        raise InvalidInput(f"train: {settings.atoms} atoms need more than {len(train)} vectors")
