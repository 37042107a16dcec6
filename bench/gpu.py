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
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from bench.gpu_decode import attention, decode
from bench.gpu_encode import encode, grouped, peers, phases, shim_peer, tune
from bench.gpu_timing import Limits, Row, limits_of_card
from lexico_lab.record import RESULTS, finish, machine, table

HEADLINE: Final = ((4096, 16), (4096, 1))
"""(N, s) that the encoder is judged at, in bf16."""

Section = Callable[[Limits, bool], list[Row]]

SECTIONS: Final[dict[str, Section]] = {
    "encode": encode,
    "phases": phases,
    "grouped": grouped,
    "peers": peers,
    "decode": decode,
    "attention": attention,
}


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
        shim_peer(options.peer)
    described = {**machine(), "capability": list(torch.cuda.get_device_capability())}
    limits = limits_of_card()
    print(json.dumps(limits), flush=True)
    result: dict[str, Any] = {"limits": limits, "failed": {}}
    sections = [*options.only, *(["tune"] if options.tune else [])]
    for name in sections:
        try:
            rows = (SECTIONS | {"tune": tune})[name](limits, options.quick)
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
                partial(_is_long, sparsity),
            )
            for sparsity in (8, 16)
        },
    }


def _is_long(sparsity: int, row: Row) -> bool:
    return bool(row["tokens"] >= 16384 and row["s"] == sparsity)


if __name__ == "__main__":
    main()
