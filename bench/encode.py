"""Vectors coded a second on the CPU: the compiled kernel against its twin and against peers.

    python -m bench.encode [--rounds 5] [--threads 1 2]

All coders take the same vectors and dictionary in one interleaved run. The peers are the algorithms
of the package orthogonal-matching-pursuit-gpu and scikit-learn's; each gets the batch that suits it
best of those tried. Behind `compiled` come the instruction sets that it falls back to elsewhere.
`vs_twin` and `vs_best_peer` are its lowest ratios over headline shapes and threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

import numpy as np
import torch
from orthogonal_matching_pursuit_gpu import run_omp
from sklearn.linear_model import orthogonal_mp_gram
from torch import Tensor

from lexico_codec.kernels import library
from lexico_codec.kernels.dispatch import Kernel
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import encode, reconstruct
from lexico_lab.record import finish, gate, machine, table

SHAPES: Final = ((64, 1024, 8), (128, 4096, 16), (64, 1280, 8), (128, 1024, 8))
"""(m, N, s); the first two are the ones of the headline, the third is the shipped set's."""
HEADLINE: Final = SHAPES[:2]
VECTORS: Final = 8192
LEAST_BATCH: Final = 64
MOST_ERROR: Final = 1.01
"""Of a coder's error over the twin's, or its speed means nothing."""


@dataclass(frozen=True)
class Coder:
    """One way to code vectors, with the batch that it is given at a time."""

    name: str
    batch: int
    code: Callable[[Tensor], Any]
    """`[batch, m]` to codes of the coder's own kind; this is what is timed."""
    restore: Callable[[Any], Tensor]
    """Those codes to vectors."""


@dataclass(frozen=True)
class Timed:
    """What a coder did in one round."""

    rate: float
    """Vectors a second."""
    error: float
    """`||x - x̂|| / ||x||` over the first 64 vectors."""
    decode_rate: float
    """Vectors a second of reconstruction, where the codes are ours; else 0."""


def main() -> None:
    """Measures every shape and thread count and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not library.available():
        raise SystemExit("the compiled kernel was not built: run `python hatch_build.py`")
    if not options.no_gate:
        gate("tests/kernels/test_compiled*.py", "tests/unit/test_omp.py")
    described = {**machine(), "isa": library.isa()}
    rows: list[dict[str, Any]] = []
    for threads in dict.fromkeys(options.threads):
        torch.set_num_threads(threads)
        for shape in SHAPES:
            rows += _measure(shape, threads, options.rounds)
    print(table(rows))
    finish("encode", {**headline(rows), "rows": rows}, described)


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The lowest ratios over headline shapes and thread counts, and those of the fall-backs."""
    judged = [row for row in rows if _shape(row) in HEADLINE]

    def least(coder: str, key: str) -> float:
        return min(float(row[key]) for row in judged if row["coder"] == coder)

    names = ("vs_twin", "vs_best_peer", "decode_vs_encode")
    behind = {row["coder"] for row in judged if row["coder"].startswith("compiled ")}
    return {name: least("compiled", name) for name in names} | {
        f"vs_twin_{coder.split()[1]}": least(coder, "vs_twin") for coder in sorted(behind)
    }


def _shape(row: dict[str, Any]) -> tuple[int, int, int]:
    return row["m"], row["N"], row["s"]


def _measure(shape: tuple[int, int, int], threads: int, rounds: int) -> list[dict[str, Any]]:
    m, size, sparsity = shape
    atoms, vectors = _data(m, size)
    kept = [_best_batch(same, vectors) for same in _coders(atoms, sparsity)]
    seen: dict[str, list[Timed]] = {coder.name: [] for coder in kept}
    for turn in range(rounds):
        for coder in kept if turn % 2 else reversed(kept):
            seen[coder.name].append(_run(coder, vectors))
    errors = {name: timed[-1].error for name, timed in seen.items()}
    if errors["compiled"] > MOST_ERROR * errors["twin"]:
        raise SystemExit(f"the compiled kernel codes worse than its twin: {errors}")
    peers = [name for name in seen if name != "twin" and not name.startswith("compiled")]
    best = max(peers, key=lambda name: statistics.median(t.rate for t in seen[name]))
    return [
        {
            "m": m,
            "N": size,
            "s": sparsity,
            "threads": threads,
            "coder": coder.name,
            "batch": coder.batch,
            "vectors_s": statistics.median(t.rate for t in seen[coder.name]),
            "relative_error": seen[coder.name][-1].error,
            "vs_twin": _ratio(seen[coder.name], seen["twin"]),
            "vs_best_peer": _ratio(seen[coder.name], seen[best]),
            "decode_vs_encode": statistics.median(t.decode_rate / t.rate for t in seen[coder.name]),
        }
        for coder in kept
    ]


def _ratio(mine: Sequence[Timed], other: Sequence[Timed]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a.rate / b.rate for a, b in zip(mine, other, strict=True))


def _data(m: int, size: int) -> tuple[Tensor, Tensor]:
    """A dictionary of correlated atoms, and vectors that are sums of 12 of them plus noise."""
    generator = torch.Generator().manual_seed(m * size)
    spectrum = torch.arange(1, m + 1) ** -0.5
    atoms = torch.randn(size, m, generator=generator) * spectrum
    atoms = torch.nn.functional.normalize(atoms, dim=1).half().float()
    used = torch.randint(size, (VECTORS, 12), generator=generator)
    sign = torch.rand(VECTORS, 12, generator=generator) - 0.5
    weights = sign.sign() * -(1 - 2 * sign.abs()).clamp_min(1e-6).log()  # Laplace
    vectors = (atoms[used] * weights[..., None]).sum(1)
    noise = torch.randn(VECTORS, m, generator=generator) * spectrum
    return atoms, vectors + 0.1 * noise


def _coders(atoms: Tensor, sparsity: int) -> list[list[Coder]]:
    """Every coder, each with the batches to choose from."""
    stacked, columns = Atoms.of(atoms), atoms.T.contiguous()
    wide, gram = columns.double(), (columns.T @ columns).double().numpy()

    def peer(alg: str, batch: int) -> Coder:
        double = alg == "v0_blas"  # float64 only
        table = wide if double else columns

        def code(x: Tensor) -> Tensor:
            return run_omp(  # type: ignore[no-any-return]
                table, x.to(table.dtype), sparsity, normalize=False, fit_intercept=False, alg=alg
            )

        return Coder(f"omp-gpu {alg}", batch, code, lambda dense: dense.float() @ atoms)

    def sklearn(x: Tensor) -> Tensor:
        products = (atoms @ x.T).double().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dense = orthogonal_mp_gram(gram, products, n_nonzero_coefs=sparsity)
        return torch.from_numpy(np.ascontiguousarray(dense.T))

    def ours(name: str, kernel: Kernel, batch: int) -> Coder:
        return Coder(
            name,
            batch,
            lambda x: encode(x, stacked, sparsity, kernel=kernel),
            lambda codes: reconstruct(codes, stacked, kernel=kernel),
        )

    def on(isa: str) -> Coder:
        def code(x: Tensor) -> Codes:
            with mock.patch.dict(os.environ, {library.ISA_VARIABLE: isa}):
                return encode(x, stacked, sparsity, kernel="compiled")

        restore = ours("compiled", "compiled", VECTORS).restore
        return Coder(f"compiled {isa}", VECTORS, code, restore)

    return [
        [ours("compiled", "compiled", VECTORS)],
        *([on(isa)] for isa in library.supported()[1:]),
        [ours("twin", "naive", 1024), ours("twin", "naive", VECTORS)],
        *([peer(alg, batch) for batch in (64, 256, 1024)] for alg in ("v0", "naive", "v0_blas")),
        [Coder("scikit-learn", 64, sklearn, lambda dense: dense.float() @ atoms)],
    ]


def _best_batch(same: Sequence[Coder], vectors: Tensor) -> Coder:
    for coder in same:  # warm up
        coder.code(vectors[: coder.batch])
    return max(same, key=lambda coder: _run(coder, vectors).rate)


def _run(coder: Coder, vectors: Tensor) -> Timed:
    x = vectors[: coder.batch]
    start = time.perf_counter()
    coded = coder.code(x)
    middle = time.perf_counter()
    restored = coder.restore(coded)
    end = time.perf_counter()
    decode_rate = len(x) / (end - middle) if isinstance(coded, Codes) else 0.0
    same = slice(0, LEAST_BATCH)  # the vectors that every coder was given
    error = float((x - restored)[same].norm() / x[same].norm())
    return Timed(len(x) / (middle - start), error, decode_rate)


if __name__ == "__main__":
    main()
