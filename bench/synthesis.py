"""What it costs to multiply decoded components back, sparse against dense, on the CPU.

    python -m bench.synthesis [--rounds 15]

Real pages of SmolLM2-135M in codec lexico-residual. In each round every page of a preset is
restored by the compiled kernel, of what is not zero alone, and by dense products of float32, in
turns. `sparse_speedup` is the dense time over the sparse one, a median over rounds, the worse of
one thread and all, for preset balanced; the rows have the others, and the share of second
components that are not zero. `rounding` is by how much components of the two differ, in steps of
the preset: a root mean square over a token's components, a mean over tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from typing import Any, Final
from unittest import mock

import torch

from bench.codec_speed import prefix_of
from lexico_codec.keys import page_keys
from lexico_codec.pages import decode_group, encode_group
from lexico_codec.sets.builtin import load_builtin
from lexico_codec.sets.transform import QUALITIES, Transform
from lexico_lab.evaluation.ways import way_of
from lexico_lab.models import load_model, quiet
from lexico_lab.record import finish, gate, machine, table
from lexico_lab.studies.ours import RESIDUAL_SET

PAGE: Final = 64
Call = tuple[Transform, int, torch.Tensor, int, range, slice]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--no-gate", action="store_true")
    options = parser.parse_args()
    if not options.no_gate:
        gate("tests/kernels/test_synthesis.py", "tests/contract/test_codec_residual_steps.py")
    described, rows = machine(), list[dict[str, Any]]()
    quiet()
    pages = _pages()
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        torch.set_num_threads(threads)
        for quality, calls in pages.items():
            times: dict[str, list[float]] = {"compiled": [], "naive": []}
            for run in range(options.rounds + 1):  # the first warms up
                for kernel in times if run % 2 else reversed(times):
                    start = time.perf_counter()
                    for call in calls:
                        _restored(call, kernel)
                    if run:
                        times[kernel].append(time.perf_counter() - start)
            ratios = [b / a for a, b in zip(times["compiled"], times["naive"], strict=True)]
            rows.append(
                {
                    "threads": threads,
                    "preset": quality,
                    "not zero": _density(calls),
                    "rounding": _rounding(calls, quality),
                    "speedup": statistics.median(ratios),
                    "min": min(ratios),
                    "max": max(ratios),
                }
            )
    print(table(rows))
    least = min(row["speedup"] for row in rows if row["preset"] == "balanced")
    finish("synthesis", {"sparse_speedup": least, "rows": rows}, described)


def _pages() -> dict[str, list[Call]]:
    """What `Transform.restored` is called with as each preset's pages are decoded."""
    ids, geometry, exact = prefix_of(load_model("smollm2"))
    residual = load_builtin(RESIDUAL_SET)
    found: dict[str, list[Call]] = {}
    for quality in QUALITIES:
        way = way_of(quality, "lexico-residual", {"quality": quality}, geometry, PAGE, residual)
        calls = found.setdefault(quality, [])
        usual = Transform.restored

        def seen(
            self: Transform,
            run: int,
            arranged: torch.Tensor,
            *rest: Any,
            calls: list[Call] = calls,
            usual: Any = usual,
        ) -> torch.Tensor:
            calls.append((self, run, arranged.clone(), *rest))
            made: torch.Tensor = usual(self, run, arranged, *rest)
            return made

        with (
            mock.patch.object(Transform, "restored", seen),
            mock.patch.object(Transform, "restores", return_value=False),  # step by step
        ):
            for page, key in enumerate(page_keys(way.spec, ids)):
                part = exact[:, :, page * PAGE : (page + 1) * PAGE].contiguous()
                frame = encode_group(way.spec, key, page, 0, part, way.dictionary)
                decode_group(way.spec, key, page, 0, frame, part, way.dictionary)
    return found


def _restored(call: Call, kernel: str) -> torch.Tensor:
    transform, run, arranged, count, wanted, columns = call
    return transform.restored(run, arranged, count, wanted, columns, kernel=kernel)


def _rounding(calls: list[Call], quality: str) -> float:
    off = []
    for call in calls:
        transform, run = call[:2]
        difference = _restored(call, "compiled") - _restored(call, "naive")
        components = transform.components(run, difference.mT.contiguous())
        off.append(components.square().mean(0).sqrt() / transform.steps[quality])
    return float(torch.cat(off).mean())


def _density(calls: list[Call]) -> float:
    second = torch.cat([each[2][each[0].order.shape[1] :] for each in calls], 1)
    return float((second != 0).float().mean())


if __name__ == "__main__":
    main()
