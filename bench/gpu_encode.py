"""Sections of `bench.gpu` on the encoder: rates, phases, whole pages, peers, launch parameters."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Final
from unittest import mock

from torch import Tensor

from bench.gpu_timing import (
    KV_HEADS,
    LAYERS,
    VECTORS_A_TOKEN,
    Limits,
    M,
    Row,
    encode_ours,
    median_ms,
    random_atoms,
    random_vectors,
)
from lexico_codec.kernels.pursuit import naive
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.coding import Scoring

SPARSITIES: Final = (1, 2, 8, 16, 32)
ATOMS: Final = (1024, 4096)
SCORINGS: Final[tuple[Scoring, ...]] = ("fp16", "bf16", "fp8")


def _share(rate: float, m: int, size: int, sparsity: int, limits: Limits) -> float:
    """Share of the tensor-core floor: `2 m N s` operations a vector."""
    return rate * 2 * m * size * sparsity / (limits["bf16_tflops"] * 1e12)


def encode(limits: Limits, quick: bool) -> list[Row]:
    rows = []
    for m, size in [(M, n) for n in ATOMS] + ([] if quick else [(64, 1280), (M, 16384)]):
        atoms = random_atoms(size, m)
        for sparsity in SPARSITIES if m == M else (8,):
            vectors = random_vectors((1 << 18) if quick or sparsity > 8 else 1 << 20, m)
            for scoring in SCORINGS:
                ms = median_ms(encode_ours, vectors, atoms, sparsity, scoring=scoring)
                rate = len(vectors) / ms * 1e3
                rows.append(
                    {
                        "m": m,
                        "N": size,
                        "s": sparsity,
                        "scoring": scoring,
                        "vectors_s": rate,
                        "tokens_s": rate / VECTORS_A_TOKEN,
                        "share_of_bf16_floor": _share(rate, m, size, sparsity, limits),
                    }
                )
    return rows


def _table_by_table(vectors: Tensor, atoms: Atoms, sparsity: int) -> None:
    for t in range(atoms.tables):
        encode_ours(vectors[t : t + 1], atoms.narrow(t, 1), sparsity)


def phases(limits: Limits, quick: bool) -> list[Row]:
    """Time a step: everything, without scoring (a dictionary of one tile), and scoring alone."""
    from bench.gpu_scoring import score_alone

    rows = []
    vectors, atoms = random_vectors(1 << 18), random_atoms(4096)
    with_argmax = median_ms(score_alone, vectors, atoms, argmax=True)
    products = median_ms(score_alone, vectors, atoms, argmax=False)
    for sparsity in (1, 8, 16, 32):
        full = median_ms(encode_ours, vectors, atoms, sparsity)
        one_tile = median_ms(encode_ours, vectors, random_atoms(128), sparsity)
        rows.append(
            {
                "s": sparsity,
                "ms_a_step": full / sparsity,
                "ms_orthogonalise_and_rest": one_tile / sparsity,
                "ms_scoring_with_argmax": with_argmax,
                "ms_products_alone": products,
                "ms_at_floor": len(vectors) * 2 * M * 4096 / limits["bf16_tflops"] / 1e9,
            }
        )
    return rows


def grouped(limits: Limits, quick: bool) -> list[Row]:
    """Pages of the whole model: 64 dictionaries in one launch, down to a flush of 32 tokens."""
    rows = []
    for size in ATOMS:
        atoms = random_atoms(size, tables=2 * LAYERS)
        for tokens in (32, 64, 256) if quick else (32, 64, 256, 1024):
            page = random_vectors(tokens * VECTORS_A_TOKEN).view(2 * LAYERS, tokens, KV_HEADS, M)
            one = median_ms(encode_ours, page, atoms, 8)
            each = median_ms(_table_by_table, page, atoms, 8)
            rate = tokens * VECTORS_A_TOKEN / one * 1e3
            rows.append(
                {
                    "N": size,
                    "tokens": tokens,
                    "ms": one,
                    "tokens_s": rate / VECTORS_A_TOKEN,
                    "share_of_bf16_floor": _share(rate, M, size, 8, limits),
                    "times_faster_than_64_launches": each / one,
                }
            )
    return rows


def peers(limits: Limits, quick: bool) -> list[Row]:
    """Vectors a second of ours over each peer's, on the same vectors."""
    rows = []
    run_omp = _peer()
    for size, sparsity in ((1024, 8), (4096, 16)):
        atoms, vectors = random_atoms(size), random_vectors(1 << 14).float()
        columns = atoms.stack.T.contiguous()
        ours = len(vectors) / median_ms(encode_ours, vectors, atoms, sparsity) * 1e3
        twin = min(_twin_ms(vectors, atoms, sparsity, scores) for scores in (1 << 20, 1 << 24))
        rates = {"torch batched": len(vectors) / twin * 1e3}
        for alg in ("v0", "naive") if run_omp is not None else ():
            batch = vectors[:4096]
            fixed = {"normalize": False, "fit_intercept": False, "alg": alg}
            ms = median_ms(run_omp, columns, batch, sparsity, **fixed)  # type: ignore[arg-type]
            rates[f"omp-gpu {alg}"] = len(batch) / ms * 1e3
        for name, rate in rates.items():
            rows.append(
                {
                    "N": size,
                    "s": sparsity,
                    "peer": name,
                    "vectors_s": rate,
                    "ours_vectors_s": ours,
                    "times": ours / rate,
                }
            )
    return rows


def _twin_ms(vectors: Tensor, atoms: Atoms, sparsity: int, scores: int) -> float:
    """The twin's time with chunks of so many scores: what suits a CPU's cache starves a GPU."""
    with mock.patch.object(naive, "_SCORES_PER_CHUNK", scores):
        return median_ms(naive.omp, vectors, atoms.stack, sparsity)


def tune(limits: Limits, quick: bool) -> list[Row]:
    """Every launch of `tuning.CANDIDATES`, fastest first within a shape."""
    from lexico_codec.kernels.pursuit import tuning

    rows: list[Row] = []
    for m, size in ((64, 1280), (M, 1024), (M, 4096)):
        atoms, vectors = random_atoms(size, m), random_vectors(1 << 17, m)
        for scoring in SCORINGS:
            found = []
            for launch in tuning.CANDIDATES:
                with tuning.forced(launch):
                    try:
                        ms = median_ms(encode_ours, vectors, atoms, 8, scoring=scoring)
                    except Exception as error:  # noqa: BLE001 - too much shared memory, say
                        print(f"tune m={m} {scoring} {launch}: {error}"[:200])
                        continue
                found.append(
                    {"m": m, "N": size, "scoring": scoring, "ms": ms, "launch": str(launch)}
                )
            rows += sorted(found, key=lambda row: float(row["ms"]))[:5]
    return rows


def shim_peer(folder: Path) -> None:
    """Makes the peer importable from its source: its compiled CPU kernels are not used on CUDA."""
    sys.path.insert(0, str(folder / "src" if (folder / "src").is_dir() else folder))
    shim = types.ModuleType("orthogonal_matching_pursuit_gpu.blas_kernels")
    names = ("argmax_blast", "ppsv", "update_projections_blast", "update_D_mybest_blast")
    for name in names:
        setattr(shim, name, None)
    sys.modules[shim.__name__] = shim


def _peer() -> Callable[..., Tensor] | None:
    try:
        from orthogonal_matching_pursuit_gpu.omp import run_omp
    except ImportError as error:
        print(f"peer orthogonal-matching-pursuit-gpu: not there ({error})")
        return None
    return run_omp  # type: ignore[no-any-return]
