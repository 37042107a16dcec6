"""Kernels on a CUDA device: as shares of the limits measured in the same run, and against peers.

    make bench-gpu                              # after make test-gpu
    python -m bench.gpu [--only encode decode] [--peer FOLDER] [--quick] [--tune]

Sections: `limits` (bf16 matrix product, copy), `encode`, `phases` (scoring, orthogonalisation and
argmax apart), `grouped` (a page of a whole model in one launch), `peers`, `decode`, `attention`.
Geometry: Llama-3.1-8B, 512 vectors of 128 components a token. `--peer` names the unpacked source of
orthogonal-matching-pursuit-gpu, where it is not installed. `--tune` times the launch parameters of
the encoder for `lexico_codec/kernels/pursuit/tuning.py`. A copy of the result goes to $OUT, if that
is set.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import traceback
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
import triton.testing
from torch import Tensor

from lexico_codec.kernels.attend.coded import CodedLayer, attend
from lexico_codec.kernels.pursuit import naive
from lexico_codec.kernels.pursuit.atoms import Atoms
from lexico_codec.kernels.pursuit.codes import Codes
from lexico_codec.kernels.pursuit.coding import Scoring, encode, reconstruct_into
from lexico_codec.kernels.target import Target
from lexico_lab.record import RESULTS, finish, machine, table

M: Final = 128
LAYERS: Final = 32
KV_HEADS: Final = 8
Q_HEADS: Final = 32
VECTORS_A_TOKEN: Final = 2 * LAYERS * KV_HEADS
SPARSITIES: Final = (1, 2, 8, 16, 32)
ATOMS: Final = (1024, 4096)
SCORINGS: Final[tuple[Scoring, ...]] = ("fp16", "bf16", "fp8")
HEADLINE: Final = ((4096, 16), (4096, 1))
"""(N, s) that the encoder is judged at, in bf16."""
CONTEXTS: Final = (4096, 8192, 16384, 32768, 65536, 131072)

Limits = dict[str, float]
Row = dict[str, Any]


def main() -> None:
    """Runs the sections, prints a table of each and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--peer", type=Path, help="unpacked source of the peer package")
    parser.add_argument("--quick", action="store_true", help="fewer vectors and shapes")
    parser.add_argument("--tune", action="store_true", help="time launch parameters as well")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device: nothing can be measured here")
    if options.peer is not None:
        _shim_peer(options.peer)
    described = {**machine(), "capability": list(torch.cuda.get_device_capability())}
    limits = _limits()
    print(json.dumps(limits), flush=True)
    result: dict[str, Any] = {"limits": limits, "failed": {}}
    sections = [*options.only, *(["tune"] if options.tune else [])]
    for name in sections:
        try:
            rows = (SECTIONS | {"tune": _tune})[name](limits, options.quick)
            print(f"\n{name}\n{table(rows)}", flush=True)
            result[name] = rows
        except Exception as error:  # noqa: BLE001 - one broken section must not cost the others
            traceback.print_exc()
            result["failed"][name] = f"{type(error).__name__}: {error}"[:500]
    finish("gpu", {**_headline(result), **result}, described)
    if os.environ.get("OUT"):
        shutil.copy(RESULTS / "gpu.json", os.environ["OUT"])


def _headline(result: dict[str, Any]) -> dict[str, float | None]:
    """The figures that the project is judged by; None where a section did not run."""

    def least(section: str, key: str, keep: Callable[[Row], bool]) -> float | None:
        found = [row[key] for row in result.get(section, []) if keep(row)]
        return min(found) if found else None

    return {
        "encode_share_of_floor": least(
            "encode",
            "share_of_bf16_floor",
            lambda row: (row["N"], row["s"]) in HEADLINE and row["scoring"] == "bf16",
        ),
        "vs_torch": least("peers", "times", lambda row: row["peer"] == "torch batched"),
        "vs_best_peer": least("peers", "times", lambda row: row["peer"].startswith("omp-gpu")),
        "decode_share_of_copy": least("decode", "share_of_copy", lambda row: True),
        **{
            f"attention_vs_sdpa_from_16k_s{sparsity}": least(
                "attention",
                "times_faster",
                lambda row, sparsity=sparsity: row["tokens"] >= 16384 and row["s"] == sparsity,
            )
            for sparsity in (8, 16)
        },
    }


def _median_ms(call: Callable[..., Any], *args: Any, **keywords: Any) -> float:
    """Milliseconds of `call(*args, **keywords)`."""
    timed = triton.testing.do_bench(
        lambda: call(*args, **keywords), warmup=50, rep=200, return_mode="median"
    )
    return float(timed)


def _replayed_ms(call: Callable[..., Any], *args: Any, **keywords: Any) -> float:
    """The same of what the device does alone: the launches are replayed as a graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # compiles, and makes what is made once
        for _ in range(2):
            call(*args, **keywords)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call(*args, **keywords)
    replayed = _median_ms(graph.replay)
    del kept
    return replayed


def _limits() -> Limits:
    """What this card does now: TFLOP/s of a bf16 product on random data, TB/s of a copy."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = _median_ms(torch.matmul, a, b)
    source = torch.empty(1 << 30, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    copy = _median_ms(target.copy_, source)
    return {
        "bf16_tflops": 2 * 8192**3 / product / 1e9,
        "copy_tbytes": 2 * source.numel() * 4 / copy / 1e9,
    }


def _atoms(size: int, m: int = M, tables: int = 1) -> Atoms:
    generator = torch.Generator(device="cuda").manual_seed(size)
    drawn = torch.randn(tables * size, m, generator=generator, device="cuda")
    unit = torch.nn.functional.normalize(drawn, dim=1).half().float()
    return Atoms.of(unit, range(0, (tables + 1) * size, size))


def _vectors(count: int, m: int = M) -> Tensor:
    generator = torch.Generator(device="cuda").manual_seed(count)
    return torch.randn(count, m, generator=generator, device="cuda", dtype=torch.bfloat16)


def _share(rate: float, m: int, size: int, sparsity: int, limits: Limits) -> float:
    """Share of the tensor-core floor: `2 m N s` operations a vector."""
    return rate * 2 * m * size * sparsity / (limits["bf16_tflops"] * 1e12)


def _encode(limits: Limits, quick: bool) -> list[Row]:
    rows = []
    for m, size in [(M, n) for n in ATOMS] + ([] if quick else [(64, 1280), (M, 16384)]):
        atoms = _atoms(size, m)
        for sparsity in SPARSITIES if m == M else (8,):
            vectors = _vectors((1 << 18) if quick or sparsity > 8 else 1 << 20, m)
            for scoring in SCORINGS:
                ms = _median_ms(_ours, vectors, atoms, sparsity, scoring=scoring)
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


def _ours(vectors: Tensor, atoms: Atoms, sparsity: int, scoring: Scoring = "bf16") -> Codes:
    return encode(vectors, atoms, sparsity, quantised=True, scoring=scoring, kernel="triton")


def _table_by_table(vectors: Tensor, atoms: Atoms, sparsity: int) -> None:
    for t in range(atoms.tables):
        _ours(vectors[t : t + 1], atoms.narrow(t, 1), sparsity)


def _phases(limits: Limits, quick: bool) -> list[Row]:
    """Time a step: everything, without scoring (a dictionary of one tile), and scoring alone."""
    from bench.gpu_scoring import score_alone

    rows = []
    vectors, atoms = _vectors(1 << 18), _atoms(4096)
    with_argmax = _median_ms(score_alone, vectors, atoms, argmax=True)
    products = _median_ms(score_alone, vectors, atoms, argmax=False)
    for sparsity in (1, 8, 16, 32):
        full = _median_ms(_ours, vectors, atoms, sparsity)
        one_tile = _median_ms(_ours, vectors, _atoms(128), sparsity)
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


def _grouped(limits: Limits, quick: bool) -> list[Row]:
    """Pages of the whole model: 64 dictionaries in one launch, down to a flush of 32 tokens."""
    rows = []
    for size in ATOMS:
        atoms = _atoms(size, tables=2 * LAYERS)
        for tokens in (32, 64, 256) if quick else (32, 64, 256, 1024):
            page = _vectors(tokens * VECTORS_A_TOKEN).view(2 * LAYERS, tokens, KV_HEADS, M)
            one = _median_ms(_ours, page, atoms, 8)
            each = _median_ms(_table_by_table, page, atoms, 8)
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


def _peers(limits: Limits, quick: bool) -> list[Row]:
    """Vectors a second of ours over each peer's, on the same vectors."""
    rows = []
    run_omp = _peer()
    for size, sparsity in ((1024, 8), (4096, 16)):
        atoms, vectors = _atoms(size), _vectors(1 << 14).float()
        columns = atoms.stack.T.contiguous()
        ours = len(vectors) / _median_ms(_ours, vectors, atoms, sparsity) * 1e3
        twin = min(_twin_ms(vectors, atoms, sparsity, scores) for scores in (1 << 20, 1 << 24))
        rates = {"torch batched": len(vectors) / twin * 1e3}
        for alg in ("v0", "naive") if run_omp is not None else ():
            batch = vectors[:4096]
            fixed = {"normalize": False, "fit_intercept": False, "alg": alg}
            ms = _median_ms(run_omp, columns, batch, sparsity, **fixed)  # type: ignore[arg-type]
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
        return _median_ms(naive.omp, vectors, atoms.stack, sparsity)


def _decode(limits: Limits, quick: bool) -> list[Row]:
    """Bytes written a second, as a share of what a copy moves (it reads as many as it writes).

    Of whole calls, which check every index and wait for that, and of the kernel alone.
    """
    from lexico_codec.kernels.pursuit import triton_decode

    rows = []
    tokens, tables = 4096, 2 * LAYERS
    for size, sparsity in ((1024, 8), (4096, 8), (4096, 16)):
        atoms = _atoms(size, tables=tables)
        codes = _random_codes(tables * tokens * KV_HEADS, size, sparsity)
        block_table = torch.randperm(tokens // 16, device="cuda")
        whole = torch.empty(tables, tokens, KV_HEADS, M, dtype=torch.bfloat16, device="cuda")
        plain = list(whole.unbind())
        heads = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in plain]
        pools = [part.view(tokens // 16, 16, KV_HEADS, M).clone() for part in plain]
        for layout, target in (
            ("tokens, heads, dim", Target.of(plain, tokens)),
            ("heads, tokens, dim", Target.of(heads, tokens)),
            ("paged, blocks of 16", Target.of(pools, tokens, block_table)),
        ):
            ms = _median_ms(reconstruct_into, codes, atoms, target, kernel="triton")
            alone = _replayed_ms(triton_decode.reconstruct, codes, atoms, target, None)
            written = tables * tokens * KV_HEADS * M * 2
            rows.append(
                {
                    "N": size,
                    "s": sparsity,
                    "layout": layout,
                    "tokens_s": tables * tokens * KV_HEADS / VECTORS_A_TOKEN / ms * 1e3,
                    "share_of_copy": written / ms / 1e9 / (limits["copy_tbytes"] / 2),
                    "kernel_share_of_copy": written / alone / 1e9 / (limits["copy_tbytes"] / 2),
                }
            )
    return rows


def _random_codes(count: int, size: int, sparsity: int) -> Codes:
    generator = torch.Generator(device="cuda").manual_seed(count)
    indices = torch.randint(size, (count, sparsity), generator=generator, device="cuda")
    coefficients = torch.randn(count, sparsity, generator=generator, device="cuda")
    counts = torch.full((count,), sparsity, dtype=torch.int32, device="cuda")
    return Codes(indices.int(), coefficients, counts).quantised()


def _attention(limits: Limits, quick: bool) -> list[Row]:
    """One decode step of one layer: over codes, and dense through torch's SDPA in fp16.

    Both without the host's part, which would hide the short ones.
    """
    sdpa = torch.nn.functional.scaled_dot_product_attention
    rows = []
    query = torch.randn(Q_HEADS, 1, M, device="cuda", dtype=torch.float16)
    tail = torch.randn(2, KV_HEADS, 132, M, device="cuda", dtype=torch.float16)
    for tokens in CONTEXTS[:3] if quick else CONTEXTS:
        dense = torch.randn(2, 1, KV_HEADS, tokens + 132, M, device="cuda", dtype=torch.float16)
        grouped = query.view(1, KV_HEADS, Q_HEADS // KV_HEADS, M)  # the same, for one query token
        whole = min(
            _replayed_ms(sdpa, query[None], dense[0], dense[1], enable_gqa=True),
            _replayed_ms(sdpa, grouped, dense[0], dense[1]),
        )
        for sparsity in (8, 16):
            atoms = _atoms(4096, tables=2)
            coded = CodedLayer.empty(atoms, KV_HEADS, sparsity)
            coded.append(_random_codes(2 * tokens * KV_HEADS, 4096, sparsity))
            ms = _replayed_ms(attend, query, coded, tail[0], tail[1], M**-0.5, kernel="triton")
            rows.append(
                {
                    "tokens": tokens,
                    "s": sparsity,
                    "us": 1e3 * ms,
                    "sdpa_us": 1e3 * whole,
                    "times_faster": whole / ms,
                    "share_of_dense_bytes": coded.held_bytes / (2 * tokens * KV_HEADS * M * 2),
                }
            )
    return rows


def _tune(limits: Limits, quick: bool) -> list[Row]:
    """Every launch of `tuning.CANDIDATES`, fastest first within a shape."""
    from lexico_codec.kernels.pursuit import tuning

    rows: list[Row] = []
    for m, size in ((64, 1280), (M, 1024), (M, 4096)):
        atoms, vectors = _atoms(size, m), _vectors(1 << 17, m)
        for scoring in SCORINGS:
            found = []
            for launch in tuning.CANDIDATES:
                with tuning.forced(launch):
                    try:
                        ms = _median_ms(_ours, vectors, atoms, 8, scoring=scoring)
                    except Exception as error:  # noqa: BLE001 - too much shared memory, say
                        print(f"tune m={m} {scoring} {launch}: {error}"[:200])
                        continue
                found.append(
                    {"m": m, "N": size, "scoring": scoring, "ms": ms, "launch": str(launch)}
                )
            rows += sorted(found, key=lambda row: float(row["ms"]))[:5]
    return rows


def _shim_peer(folder: Path) -> None:
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


SECTIONS: Final[dict[str, Callable[[Limits, bool], list[Row]]]] = {
    "encode": _encode,
    "phases": _phases,
    "grouped": _grouped,
    "peers": _peers,
    "decode": _decode,
    "attention": _attention,
}


if __name__ == "__main__":
    main()
